"""What regions share: copies of each other's records, how far copying has come, and what passed between them.

A region's leader follows another region's shared records with one cursor for each reach. What it hears becomes
transactions of its own log that write the copies and move the cursor, so that nothing is copied twice, skipped or torn,
whoever leads. Copies lie under their home's keys: no exporter, who is handed key ranges of its own home, can see them.

1. A copy is never older than what it replaces: the home's revisions decide, not the order of arrival. Only where the
   home began again from a backup, what it lists counts (`restorations`).
2. A listing goes through the keys in order. What is not in it and lies between two of its keys is gone at home, and is
   deleted in the same transaction.
3. Who wrote a record, and why, stays at home: it is in no copy, and in no answer to a caller of another region.
4. What may leave is written down before the first of it does (`Grant`), and what came in and went out after
   (`Passage`), by both sides, each from what it saw itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable

from google.protobuf.message import Message

from controlplane import limits
from controlplane.errors import Refused
from controlplane.features import moves, partitions, restorations
from controlplane.features.switches import EXCEPTION, STOP, SWITCH
from controlplane.kernel import keys, machine
from controlplane.kernel.store import View
from controlplane.kernel.transaction import Kind, Tx, scope_of
from controlplane.v1 import api_pb2
from controlplane.v1.api_pb2 import RequestHeader
from controlplane.v1.federation_pb2 import Shared, SharedPage
from controlplane.v1.records_pb2 import Cursor, Grant, Move, Partition, Passage, Reach, Stop, Switch
from controlplane.v1.state_pb2 import Event, Origin

CURSOR = Kind(keys.CURSOR_KIND, Cursor, reserved=True)
FOREIGN = Kind("foreign", Partition, reserved=True)
GRANT = Kind("grant", Grant, history_kept=None, reserved=True)
PASSAGE = Kind("passage", Passage, reserved=True)

AGE_UNKNOWN_MS = (1 << 32) - 1
"""Age of a state that was never proven current, or that is not as new as the last one that was."""

_SAYING_WHO = frozenset({SWITCH.name, EXCEPTION.name})
_WRITES = limits.WRITES_PER_TXN_MAX - 1
"""Copies of one transaction: the cursor is written beside them."""


def cursor_name(peer: str, reach: Reach) -> str:
    """Names the cursor of what `peer` shares with this reach."""
    return keys.cursor_name(peer, Reach.Name(reach))


def carrier(peer: str, reach: Reach) -> Partition:
    """The partition of a transaction that moves a cursor and copies nothing."""
    return Partition(id=f"{peer}.shared", home=peer, epoch=1, reach=reach)


def cursor_at(view: View, region: str, peer: str, reach: Reach) -> Cursor:
    """How far `region` has copied; a new cursor lists everything."""
    key = keys.within(scope_of(partitions.system(region)), CURSOR.name, cursor_name(peer, reach))
    event = machine.event_at(view, key)
    return Cursor.FromString(event.value) if event else Cursor(peer=peer, reach=reach, epoch=1)


# -- the side that follows


def begin_listing(tx: Tx, region: str, cursor: Cursor, revision: int, restored: int = 0) -> RequestHeader | None:
    """Copy everything anew, as of at least the home's `revision`; what was copied stays until it is found gone.

    `restored`: the revision with which the home began again, if it ever did. What is here of before may be of a past
    that it has lost, however new: what it lists counts, but for stops (see `restorations`).
    """
    if _read_cursor(tx, region, cursor) != cursor:
        return None
    anew = Cursor(peer=cursor.peer, reach=cursor.reach, epoch=cursor.epoch, revision=revision, listing=True)
    # A listing that was begun for that and did not come to its end goes on with it.
    anew.restored = restored if cursor.revision < restored else cursor.restored
    anew.age_ms = AGE_UNKNOWN_MS
    return _move(tx, region, anew)


def take_page(tx: Tx, region: str, page: SharedPage) -> RequestHeader | None:
    """Copy a page of a listing, or as much of it as one transaction can hold: ask again until the cursor is past it.

    None if it was taken already, or is not the next one. Raises `Refused` for what its sender may not share.
    """
    cursor = _cursor_of(tx, region)
    if not cursor.listing or not page.after <= cursor.listed < page.upto:
        return None
    scope = scope_of(tx.partition)
    first, end = max(cursor.listed + b"\0", scope), min(page.upto + b"\0", scope + b"\xff")
    past = is_past(tx, region, tx.partition)
    here = {event.key: event for event in tx.copies(first, end)} if first < end and not past else {}
    there = {each.key: each for each in page.records if each.key > cursor.listed and not past}
    writes, listed = 0, cursor.listed
    for key in sorted({*here, *there}):
        if writes == _WRITES:
            break
        listed = key
        mine = here.get(key)
        lost = mine is not None and mine.origin.revision < cursor.restored
        writes += _take(tx, there.get(key), mine, page_revision=cursor.revision, lost=lost)
    else:
        listed = page.upto
    done = page.last and listed == page.upto
    moved = Cursor()
    moved.CopyFrom(cursor)
    moved.listing, moved.listed = not done, b"" if done else listed
    moved.began = cursor.revision if done else 0
    if done:
        moved.restored = 0
    return _move(tx, region, moved)


def is_past(tx: Tx, region: str, partition: Partition) -> bool:
    """Whether what the partition's home shares is no longer to be copied, as another one follows it.

    So it is from when this region began to take it over: what it takes must not change any more.
    """
    move = moves.move_at(tx.view, region, partition.id)
    if move is not None:
        begun = move.phase in (Move.ADOPTING, Move.ADOPTED, Move.LEFT)
        known = moves.adopted(move) if begun else moves.placed(move)
        # What it declined says only who offered it.
        if (begun or known.home == region) and moves.newer(known, partition):
            return True
    key = keys.within(scope_of(partitions.system(region)), FOREIGN.name, partition.id)
    event = tx.newest(key)
    return event is not None and moves.newer(Partition.FromString(event.value), partition)


def take_transaction(
    tx: Tx, region: str, revision: int, records: Iterable[Shared], *, after: int | None = None
) -> RequestHeader | None:
    """Copy one transaction of the home; None if it was copied already. Raises `Refused` for what may not be shared.

    With `after`, None also unless everything up to there was copied and nothing beyond: where several are under way at
    once, one that fails lets none behind it pass.
    """
    cursor = _cursor_of(tx, region)
    if cursor.revision >= revision or after not in (None, cursor.revision):
        return None
    if cursor.listing:
        raise Refused("a listing comes before what follows it", reason="LISTING_UNFINISHED")
    if not is_past(tx, region, tx.partition):
        for each in records:
            _take(tx, each, tx.newest(each.key), page_revision=0)
    moved = Cursor()
    moved.CopyFrom(cursor)
    # There may be more at home by now.
    moved.revision, moved.age_ms = revision, AGE_UNKNOWN_MS
    return _move(tx, region, moved)


def note_progress(tx: Tx, region: str, revision: int, age_ms: int, *, after: int | None = None) -> RequestHeader | None:
    """Nothing changed at home up to `revision`, as of `age_ms` ago. `after`: see `take_transaction`."""
    cursor = _cursor_of(tx, region)
    if cursor.listing or cursor.revision > revision or after not in (None, cursor.revision):
        return None
    moved = Cursor()
    moved.CopyFrom(cursor)
    moved.revision, moved.age_ms = revision, age_ms
    return _move(tx, region, moved)


def learn(tx: Tx, peer: str, reach: Reach, found: Iterable[Partition]) -> RequestHeader | None:
    """Remember the partitions that a peer shares. In the system partition. Raises `Refused` for others' partitions.

    One that was elsewhere before is remembered once its copy is whole: until then that of its former home is shown.
    """
    news = False
    cursor = cursor_at(tx.view, tx.partition.home, peer, reach)
    for partition in found:
        if not may_share(partition, peer, reach):
            raise Refused(f"{peer} may not share this partition", reason="PARTITION_FOREIGN")
        complete = not partition.since or (not cursor.listing and cursor.revision >= partition.since)
        news = _leave(tx, partition, complete=complete) or news
        row = tx.get(FOREIGN, partition.id)
        later = row is None or not moves.newer(row.value, partition)
        if complete and later and (row is None or row.value != partition):
            tx.put(FOREIGN, partition.id, partition)
            news = True
    return RequestHeader() if news else None


def withdraw(tx: Tx, peer: str, reach: Reach, shared: Container[str]) -> RequestHeader | None:
    """Note what a peer shows no longer: nobody can say how old the copies of that are. In the system partition."""
    gone = [each.value for each in tx.list(FOREIGN) if is_gone(each.value, peer, reach, shared)]
    for partition in gone:
        partition.withdrawn = True
        tx.put(FOREIGN, partition.id, partition)
    return RequestHeader() if gone else None


def is_gone(partition: Partition, peer: str, reach: Reach, shared: Container[str]) -> bool:
    """Whether a partition that a peer showed is not among those that it shows now, and that is not known yet."""
    return (partition.home, partition.reach) == (peer, reach) and not (partition.withdrawn or partition.id in shared)


def hear(tx: Tx, found: Iterable[Partition]) -> RequestHeader | None:
    """Stop writing where another region is the home by now, as a third one tells. In the system partition.

    Where this one is taken for the home and has forgotten that, it goes on as that, in an epoch of which nobody knows.
    """
    region = tx.partition.home
    news = [_go_on(tx, each) if each.home == region else _leave(tx, each, complete=False) for each in found]
    return RequestHeader() if any(news) else None


def decline(tx: Tx, partition: Partition, epoch: int) -> RequestHeader | None:
    """See `moves.decline`; of what this region was taking over it gets a whole copy again. In the system partition."""
    before = moves.move_at(tx.view, tx.partition.home, partition.id)
    done = moves.decline(tx, partition, epoch)
    if done is not None:
        _list_passed_by(tx, before)
    return done


def _leave(tx: Tx, now: Partition, *, complete: bool) -> bool:
    before = moves.move_at(tx.view, tx.partition.home, now.id)
    left = moves.leave(tx, now, complete=complete)
    if left:
        _list_passed_by(tx, before)
    return left


def _list_passed_by(tx: Tx, before: Move | None) -> None:
    """List anew what this region did not copy while it was taking over: see `is_past`."""
    region = tx.partition.home
    if before is None or before.phase != Move.ADOPTING or before.partition.home == region:
        return
    for cursor in [row.value for row in tx.list(CURSOR)]:
        # Of others as well, which had taken it over before them.
        passed_by = cursor.peer != before.partition.home or cursor.revision > before.upto
        if cursor.reach == before.partition.reach and passed_by and not cursor.listing:
            cursor.listing, cursor.listed, cursor.began, cursor.age_ms = True, b"", 0, AGE_UNKNOWN_MS
            _move(tx, region, cursor)


def _go_on(tx: Tx, told: Partition) -> bool:
    region, row = tx.partition.home, tx.get(moves.MOVE, told.id)
    taking_over = row is not None and row.value.phase == Move.ADOPTING
    if taking_over or not restorations.newest(tx.view, region).revision:
        return False
    known, upto = moves.recorded(tx, told.id), tx.revision
    if known is None or known.home != region:
        foreign = tx.get(FOREIGN, told.id)
        if foreign is None:
            return False
        known = foreign.value
        cursor = cursor_at(tx.view, region, known.home, known.reach)
        if cursor.listing or cursor.revision < max(1, known.since):
            return False
        upto = cursor.revision
    same = (known.reach, known.environment) == (told.reach, told.environment)
    if not same or not moves.newer(told, known):
        return False
    moves.go_on(tx, known, 1 + max(told.epoch, row.value.epoch if row else 0), upto)
    return True


def may_share(partition: Partition, peer: str, reach: Reach) -> bool:
    """Whether a peer may say that it is this partition's home: it created it, or took it over."""
    own = moves.creator(partition.id) == peer
    return partition.home == peer and partition.reach == reach and (own or bool(partition.former))


# -- the side that is followed


def shared(events: Iterable[Event]) -> list[Shared]:
    """Events as they leave: without who and why.

    Kill switches and exceptions from them say it in their values too, so they do not leave at all, wherever an operator
    had them put; what other regions need of them is a stop.
    """
    return [each for event in events if (each := _stripped(event)) is not None]


def told(method: str, reply: bytes, region: str) -> bytes:
    """The encoded reply of a call as a caller of `region`, another one, hears it: with no who and why but its own."""
    message = getattr(api_pb2, f"{method}Reply").FromString(reply)
    _forget_who_and_why(message, region)
    encoded: bytes = message.SerializeToString()
    return encoded


def grant(tx: Tx, wanted: Grant) -> RequestHeader | None:
    """Write down that a peer may hold copies, or no longer. In the system partition."""
    name = cursor_name(wanted.peer, wanted.reach)
    row = tx.get(GRANT, name)
    if (row is None and not wanted.open) or (row is not None and row.value == wanted):
        return None
    tx.put(GRANT, name, wanted)
    return RequestHeader()


def granted(view: View, region: str, peer: str, reach: Reach) -> bool:
    """Whether it is written down that `peer` may hold copies of this reach."""
    key = keys.within(scope_of(partitions.system(region)), GRANT.name, cursor_name(peer, reach))
    event = machine.event_at(view, key)
    return event is not None and Grant.FromString(event.value).open


# -- both


def record_passage(tx: Tx, passage: Passage) -> RequestHeader | None:
    """Write down what passed; once. In the system partition."""
    place = passages_of(passage.direction, passage.counterparty, passage.reach, passage.epoch)
    name = f"{place}{passage.upto:020d}/{passage.sort}/{(passage.nonce or passage.digest[:8]).hex()}"
    if tx.get(PASSAGE, name) is not None:
        return None
    tx.put(PASSAGE, name, passage)
    return RequestHeader()


def passages_of(direction: Passage.Direction, counterparty: str, reach: Reach, epoch: int) -> str:
    """How the names of passages one way over one link begin; they sort by the revision up to which they go."""
    way = Passage.Direction.Name(direction).lower()
    return f"{way}/{cursor_name(counterparty, reach)}/{epoch}/"


def extended(digest: bytes, print_of_next: bytes) -> bytes:
    """The digest of what passed, with one more transaction, given its `fingerprint`."""
    return hashlib.sha256(digest + print_of_next).digest()


def fingerprint(revision: int, records: Iterable[Shared]) -> bytes:
    """What stands for one transaction in a digest: keys, revisions and values' hashes, in order."""
    sha = hashlib.sha256(keys.number(revision))
    for each in records:
        value = hashlib.sha256(each.value).digest() if each.HasField("value") else b""
        sha.update(keys.number(len(each.key)) + each.key + keys.number(each.origin.revision) + value)
    return sha.digest()


def _stripped(event: Event) -> Shared | None:
    key = keys.decode(event.key)
    if key.kind in _SAYING_WHO:
        return None
    out = Shared(
        key=event.key,
        origin=Origin(
            home=key.home,
            epoch=key.epoch,
            revision=event.revision,
            created=event.created,
            version=event.version,
            at_ms=event.at_ms,
        ),
    )
    if event.HasField("value"):
        out.value = event.value
    return out


def _forget_who_and_why(message: Message, region: str) -> None:
    if isinstance(message, api_pb2.Meta):
        if message.actor.split("/")[4:5] != [region]:
            for field in ("actor", "action", "reason"):
                message.ClearField(field)
        return
    if isinstance(message, Switch) and message.engaged_by.split("/")[4:5] != [region]:
        message.engaged_by = message.engaged_reason = ""
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for each in [value] if isinstance(value, Message) else value:
                _forget_who_and_why(each, region)


def _take(tx: Tx, there: Shared | None, here: Event | None, *, page_revision: int, lost: bool = False) -> int:
    """Bring one record up to date; how many writes that took. `lost`: its home may not know any more what is here."""
    if lost and here is not None and keys.decode(here.key).kind == STOP.name:
        # What a home has forgotten revives nobody: it stays until the home says something newer of it. What is engaged
        # there now, as it was in the backup, stops here as well.
        if there is None:
            return 0
        lost = there.HasField("value") and Stop.FromString(there.value).engaged
    if there is None:
        if here is None or here.origin.revision > page_revision:
            return 0
        gone = Origin()
        gone.CopyFrom(here.origin)
        tx.copy(here.key, None, gone)
        return 1
    if not there.key.startswith(scope_of(tx.partition)) or there.origin.home != tx.partition.home:
        raise Refused("a record outside of what its sender may share", reason="RECORD_FOREIGN")
    if here is not None and (here.origin == there.origin if lost else here.origin.revision >= there.origin.revision):
        return 0
    if here is None and not there.HasField("value"):
        return 0
    tx.copy(there.key, there.value if there.HasField("value") else None, there.origin)
    return 1


def _cursor_of(tx: Tx, region: str) -> Cursor:
    peer, reach = tx.partition.home, tx.partition.reach
    return _read_cursor(tx, region, Cursor(peer=peer, reach=reach, epoch=1))


def _read_cursor(tx: Tx, region: str, usual: Cursor) -> Cursor:
    row = tx.read_in(scope_of(partitions.system(region)), CURSOR, cursor_name(usual.peer, usual.reach))
    return usual if row is None else row.value


def _move(tx: Tx, region: str, cursor: Cursor) -> RequestHeader:
    scope = scope_of(partitions.system(region))
    tx.put_cursor(scope, CURSOR, cursor_name(cursor.peer, cursor.reach), cursor)
    return RequestHeader()
