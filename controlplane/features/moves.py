"""Moving a partition's home: one region stops writing, another goes on where it stood, under a new epoch.

Each of the two regions has one record of the move, which only its own log changes; the steps of one wait for what the
other has committed.

1. A partition keeps its id; home and epoch change. Of two homes the one of the higher (epoch, region) is right. An
   epoch that was called off is never begun.
2. Planned: the old home seals (from that revision on it writes nothing), and waits. The new one begins when it has
   copied up to the seal, takes over record by record, and then is the home. Until that is committed the move can be
   called off, and it is the new home that says whether it was in time.
3. Forced: the new home begins without asking. What the old one wrote after the revision that had been copied is given
   up, as an operator attests; there it is quarantined as soon as the old home hears of the new one.
4. Records go on counting their versions. Everything else that has a revision (fences, histories) begins anew in the
   new epoch, which compares first.
5. Stops and kill switches stay with the region that throws them: a partition that is for them is not moved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator
from itertools import islice

from controlplane import limits
from controlplane.errors import Invalid, NotFound, Refused, Unavailable
from controlplane.features import checks, partitions
from controlplane.features.switches import STOP, SWITCH
from controlplane.kernel import keys, machine
from controlplane.kernel.store import View
from controlplane.kernel.transaction import Kind, Reader, Tx, scope_of
from controlplane.v1.api_pb2 import RequestHeader
from controlplane.v1.records_pb2 import HOME_ONLY, Cursor, Former, Move, Partition
from controlplane.v1.state_pb2 import Event

MOVE = Kind("move", Move, history_kept=None, reserved=True)

RETRIED = frozenset({"PARTITION_MOVING", "PARTITION_MOVED"})
"""Reasons of `Unavailable` that end when the move does, or when everybody has heard of it."""

_RECORDS, _BYTES = limits.WRITES_PER_TXN_MAX - 1, 512 * 1024
_END = b"\xff"

ALL = (1 << 63) - 1
"""No revision is higher."""


# -- where a partition is


def adopted(move: Move) -> Partition:
    """The partition as it is after the move."""
    after = Partition()
    after.CopyFrom(move.partition)
    after.home, after.epoch, after.since = move.to, move.epoch, move.since
    after.withdrawn = False
    after.former.append(Former(home=move.partition.home, epoch=move.partition.epoch, upto=move.upto))
    return after


def placed(move: Move) -> Partition:
    """The partition as the move leaves it in its present phase."""
    return adopted(move) if move.phase in (Move.ADOPTED, Move.LEFT) else move.partition


def is_sealed(move: Move, region: str) -> bool:
    """Whether the move keeps `region`, the home, from writing."""
    return move.partition.home == region and move.phase in (Move.SEALED, Move.ADOPTING)


def newer(one: Partition, other: Partition) -> bool:
    """Whether `one` is a later home of the partition than `other` (rule 1)."""
    return (one.epoch, one.home) > (other.epoch, other.home)


def creator(partition: str) -> str:
    """The region that created the partition of this id."""
    return partition.partition(".")[0]


def move_at(view: View, region: str, partition: str) -> Move | None:
    """The newest move of a partition that `region` took part in."""
    event = machine.event_at(view, keys.within(scope_of(partitions.system(region)), MOVE.name, partition))
    return None if event is None else Move.FromString(event.value)


def check_open(tx: Tx, region: str, partition: Partition) -> None:
    """Return if `partition` may be written as it is, by the log's own order. Raises `Unavailable`."""
    event = tx.newest(keys.within(scope_of(partitions.system(region)), MOVE.name, partition.id))
    if event is None:
        return
    move = Move.FromString(event.value)
    if is_sealed(move, region):
        raise moving(move)
    now = placed(move)
    if (now.home, now.epoch) != (partition.home, partition.epoch):
        raise moved(now)


def moving(move: Move) -> Unavailable:
    """Nobody writes the partition now, for a moment."""
    return Unavailable(
        f"the partition is on its way from {move.partition.home} to {move.to}",
        reason="PARTITION_MOVING",
        hint="ask again in a moment; cpctl partition show tells how far it is",
    )


def moved(now: Partition) -> Unavailable:
    """The call went to where the partition was."""
    return Unavailable(
        f"the partition's home is {now.home} now, in epoch {now.epoch}",
        reason="PARTITION_MOVED",
        hint="ask again: every region learns of it as soon as it can",
        home=now.home,
    )


# -- the steps, each a transaction of the system partition


def seal(tx: Tx, partition: Partition, to: str, known: Partition | None) -> RequestHeader | None:
    """At the home: write no more, so that `to` may take over; None if it is sealed for `to` already.

    `known` is the latest home that others told of. Raises `Refused`.
    """
    region = tx.partition.home
    row = tx.get(MOVE, partition.id)
    if row is not None and is_sealed(row.value, region):
        if row.value.to == to and not row.value.forced:
            return None
        raise Refused(f"the partition is being moved to {row.value.to} already", reason="PARTITION_MOVING")
    _check_movable(partition)
    _check_at_home(tx, partition)
    engaged = (each.name for each in Reader(tx.view, partition, tx.revision).list(SWITCH) if each.value.engaged)
    if next(engaged, None) is not None:
        raise Refused(
            "kill switches are engaged in this partition, and switches stay where they were thrown",
            reason="PARTITION_HOLDS_SWITCHES",
            hint="release them, or engage them in the partition of the environment's switches",
        )
    epoch = _next_epoch(partition, known, row.value if row else None)
    move = Move(partition=partition, to=to, epoch=epoch, phase=Move.SEALED, upto=tx.revision)
    _put(tx, move)
    return RequestHeader()


def call_off(tx: Tx, partition: str, epoch: int) -> RequestHeader | None:
    """At the old home: write again, now that the new one has said that it never will in this epoch."""
    row = tx.get(MOVE, partition)
    if row is None or (row.value.phase, row.value.epoch) != (Move.SEALED, epoch):
        return None
    tx.put(MOVE, partition, _turned(row.value, Move.CANCELLED))
    return RequestHeader()


def begin(tx: Tx, partition: Partition, epoch: int, upto: int, cursor: Cursor) -> RequestHeader | None:
    """At the new home: take over what was copied up to `upto`, where the old one sealed.

    None if it is not the time, or if this region is a later home than who offers it, who has not heard of that yet.
    Raises `Refused` for what cannot be moved.
    """
    _check_movable(partition)
    row = tx.get(MOVE, partition.id)
    if (row is not None and row.value.epoch >= epoch) or cursor.listing or cursor.revision < upto:
        return None
    if _is_later_here(tx, partition):
        return None
    _put(tx, Move(partition=partition, to=tx.partition.home, epoch=epoch, phase=Move.ADOPTING, upto=upto))
    return RequestHeader()


def begin_forced(
    tx: Tx, partition: Partition, cursor: Cursor | None, upto: int, age_ms: int, attestation: str
) -> RequestHeader:
    """At the new home, without the old one: take over what was copied, as an operator attests that it is down.

    Without a cursor: at the old home, which cannot finish a move that it began, and goes on from its own records.
    Raises `Refused`, or `Invalid` without a word of the operator's.
    """
    region = tx.partition.home
    _check_movable(partition)
    if not checks.free_text(attestation, "attestation").strip():
        raise Invalid(
            "say that the old home is down, and how you know",
            reason="ATTESTATION_MISSING",
            field="attestation",
            hint="--attest",
        )
    row = tx.get(MOVE, partition.id)
    before = row.value if row else None
    if before is not None and before.phase == Move.ADOPTING:
        raise Refused(
            f"{region} is taking the partition over already", reason="PARTITION_MOVING", hint="cpctl partition show"
        )
    if cursor is None:
        _check_at_home(tx, partition)
        if before is None or not is_sealed(before, region):
            raise Refused(f"{region} is the partition's home already", reason="AT_HOME_ALREADY")
        upto = tx.revision
    elif cursor.listing or cursor.revision < max(1, partition.since):
        raise Refused(
            f"the copy of what {partition.home} has is not whole",
            reason="COPY_INCOMPLETE",
            hint="take a region whose copy is whole (cpctl status there), or restore a backup",
        )
    elif cursor.revision != upto:
        raise Refused(
            f"{partition.home} is copied up to revision {cursor.revision}, not {upto} as you were told",
            reason="COPY_MOVED",
            hint="look again: if it still moves, the old home is not down",
            revision=cursor.revision,
        )
    move = Move(
        partition=partition,
        to=region,
        epoch=_next_epoch(partition, None, before),
        phase=Move.ADOPTING,
        forced=True,
        attestation=attestation,
        upto=upto,
        age_ms=age_ms,
    )
    _put(tx, move)
    return RequestHeader()


def take_over(tx: Tx, move: Move, kinds: Collection[str]) -> RequestHeader | None:
    """In the partition as it will be: take over the next records, as many as fit; None if there are no more.

    `kinds` are those that keep a history. Records are taken in the order of their keys, and nobody else writes here, so
    the last one tells how far it has come.
    """
    now = move_at(tx.view, move.to, move.partition.id)
    if now is None or (now.epoch, now.phase) != (move.epoch, Move.ADOPTING):
        return None
    old, new = scope_of(move.partition), scope_of(tx.partition)
    rows = tx.view.scan(keys.RECORD + new, keys.RECORD + new + _END, reverse=True)
    last = next(iter(rows), None)
    start = old if last is None else old + last[0][len(keys.RECORD + new) :] + b"\0"
    size = count = 0
    for event in tx.copies(start, old + _END):
        size += len(event.value)
        if count == _RECORDS or (count and size > _BYTES):
            break
        at = keys.decode(event.key)
        version = event.origin.version if event.HasField("origin") else event.version
        tx.adopt(at.kind, at.name, event.value, version, history=at.kind in kinds)
        count += 1
    return RequestHeader() if count else None


def finish(tx: Tx, move: Move) -> RequestHeader | None:
    """At the new home: be it from now on. None if it was called off, or is done."""
    row = tx.get(MOVE, move.partition.id)
    if row is None or (row.value.epoch, row.value.phase) != (move.epoch, Move.ADOPTING):
        return None
    after = _turned(row.value, Move.ADOPTED)
    after.since = tx.revision
    tx.put(MOVE, move.partition.id, after)
    return RequestHeader()


def go_on(tx: Tx, partition: Partition, epoch: int, upto: int) -> None:
    """Be the home in a new epoch, at a region that has forgotten that it was the home before: see `restorations`.

    From what it has of `partition`, as it knows that, up to revision `upto` of its home.
    """
    move = Move(partition=partition, to=tx.partition.home, epoch=epoch, phase=Move.ADOPTING, forced=True, upto=upto)
    move.attestation = "the region began again from a backup"
    _put(tx, move)


def decline(tx: Tx, partition: Partition, epoch: int) -> RequestHeader | None:
    """At the region that was to be the new home: it will not, in this epoch. None if it is, or has said so.

    Nor does it say so to who is not the home any more, because this region is: that would be on record in the place of
    what made it one.
    """
    row = tx.get(MOVE, partition.id)
    if row is not None and (row.value.partition.home, row.value.epoch) == (partition.home, epoch):
        if row.value.phase != Move.ADOPTING:
            return None
        tx.put(MOVE, partition.id, _turned(row.value, Move.CANCELLED))
        return RequestHeader()
    if (row is not None and row.value.epoch >= epoch) or _is_later_here(tx, partition):
        return None
    _put(tx, Move(partition=partition, to=tx.partition.home, epoch=epoch, phase=Move.CANCELLED))
    return RequestHeader()


def is_declined(move: Move, region: str, epoch: int) -> bool:
    """Whether `region` never takes the partition over in this epoch, whoever asks: it declined that, or a later one.

    What it declined stays on record until something of a higher epoch takes its place. Two homes that do not know of
    each other, of which one gives way, may ask for the same.
    """
    declined = (move.phase, move.to) == (Move.CANCELLED, region) and move.partition.home != region
    return declined and move.epoch >= epoch


def sweep(tx: Tx, upto: int) -> RequestHeader | None:
    """In a partition as it is not, or not any more: remove records up to a revision of this region's; None if none is.

    What was taken over elsewhere, and what was copied from a former home, is of no use, and could not be erased.
    """
    scope = scope_of(tx.partition)
    old = (event.key for event in tx.copies(scope, scope + _END) if event.revision <= upto)
    swept = [*islice(old, _RECORDS)]
    for key in swept:
        tx.drop(key)
    return RequestHeader() if swept else None


def leave(tx: Tx, now: Partition, *, complete: bool) -> bool:
    """At a region that takes itself to be the home, or the one to be: another one is, later. True if that was news.

    A sealed home waits until what the new one has is `complete` here, so that it can always be read. One that is taking
    over goes on unless the other is later than it is going to be. Anyone else has been writing what was given up, and
    stops at once.
    """
    region = tx.partition.home
    row = tx.get(MOVE, now.id)
    if row is not None and row.value.phase == Move.ADOPTING:
        if not newer(now, adopted(row.value)):
            # Also one that takes over from itself: what it has written under its new epoch must not be found there by
            # another move to it, of the same epoch.
            return False
        if row.value.partition.home != region:
            tx.put(MOVE, now.id, _turned(row.value, Move.CANCELLED))
            return True
    own = recorded(tx, now.id)
    if own is None or own.home != region or not newer(now, own):
        return False
    if (now.reach, now.environment) != (own.reach, own.environment):
        # Where it may be depends on that, and no move changes it: whoever says so means to have what it may not.
        return False
    known = [each.upto for each in now.former if (each.home, each.epoch) == (region, own.epoch)]
    # Another move may have given it the same epoch: that it came from here, it says itself.
    expected = row is not None and (row.value.phase, row.value.to, row.value.epoch) == (
        Move.SEALED,
        now.home,
        now.epoch,
    )
    if expected and known and not complete:
        return False
    upto = known[0] if known else 0
    left = Move(partition=own, to=now.home, epoch=now.epoch, phase=Move.LEFT, upto=upto, since=now.since)
    # A later home may be of another line, which knows nothing of this one.
    left.disowned.add(home=region, epoch=own.epoch, upto=upto)
    left.forced = row is None or row.value.phase != Move.SEALED or upto < row.value.upto
    _put(tx, left)
    return True


# -- what was given up


def quarantined(view: View, region: str, now: Partition, after: bytes = b"") -> Iterator[Event]:
    """Records above key `after` that `region` wrote after they had been taken over elsewhere, as written last."""
    for _, former in sorted(_own(view, region, now).items()):
        was = Partition(id=now.id, home=region, reach=now.reach, epoch=former.epoch)
        scope = scope_of(was)
        start = max(scope, after + b"\0") if after else scope
        for _, packed in view.scan(keys.RECORD + start, keys.RECORD + scope + _END):
            event = Event.FromString(packed)
            if event.revision > former.upto:
                yield event


def is_given_up(move: Move, partition: Partition, revision: int) -> bool:
    """Whether what `partition.home` wrote at `revision` was given up by a move, or may have been.

    `partition` as that region has it at home, or had it last; `move` is the newest one there. When each of several
    times before that began is not known.
    """
    if revision > partition.since:
        return move.phase == Move.LEFT and revision > move.upto
    before = (*move.disowned, *partition.former)
    own = (each.upto for each in before if each.home == partition.home and each.epoch < partition.epoch)
    return revision > min(own, default=ALL)


def remains(view: View, region: str, now: Partition, homes: Iterable[str]) -> Iterator[tuple[Partition, int]]:
    """What is in `region` of homes before `now`, and of what never came to be one; but for what is quarantined.

    Each is the partition as it was there, and the revision of `region` up to which its records are of no use.
    """
    own = _own(view, region, now)
    # Nothing is before the home that created it; and stops of an epoch before, which does not move, stay in force.
    for home in homes if now.former else ():
        # Of one epoch, the home whose name sorts last is right.
        last = Partition(id=now.id, home=home, reach=now.reach, epoch=now.epoch + (home < now.home))
        for epoch in epochs_before(view, last):
            given_up = own.get(epoch) if home == region else None
            was = Partition(id=now.id, home=home, reach=now.reach, epoch=epoch)
            yield was, given_up.upto if given_up is not None else ALL


def epochs_before(view: View, partition: Partition) -> Iterator[int]:
    """The epochs before its own in which there are records of a partition, under the same home."""
    scope = scope_of(partition)
    start, end = keys.RECORD + scope[: -len(keys.number(0))], keys.RECORD + scope
    while row := next(iter(view.scan(start, end)), None):
        epoch = keys.decode(row[0][len(keys.RECORD) :]).epoch
        yield epoch
        start = end[: -len(keys.number(0))] + keys.number(epoch + 1)


def _own(view: View, region: str, now: Partition) -> dict[int, Former]:
    """By epoch: the times for which `region` was the home, or took itself to be it."""
    move = move_at(view, region, now.id)
    every = (*(move.disowned if move else ()), *now.former)
    return {former.epoch: former for former in every if former.home == region}


def attested(move: Move) -> str:
    """What the ledger says of an attestation: that there was one, and nothing of its words."""
    return hashlib.sha256(move.attestation.encode()).hexdigest() if move.attestation else ""


def _check_movable(partition: Partition) -> None:
    if partition.reach == HOME_ONLY:
        raise Refused(
            "a home-only partition has no copy elsewhere, and cannot be moved",
            reason="PARTITION_PINNED",
            hint="restore a backup in the region that is to have it",
        )
    if STOP.name in partition.default_for:
        raise Refused(
            "other regions are told of kill switches by this partition, and switches stay where they were thrown",
            reason="PARTITION_HOLDS_STOPS",
            hint="move partitions that are not the default for stops",
        )
    if len(partition.former) >= limits.HOMES_MAX:
        raise Refused(f"the partition was moved {limits.HOMES_MAX} times", reason="MOVED_TOO_OFTEN")


def _check_at_home(tx: Tx, partition: Partition) -> None:
    """The caller looked before; what counts is what the log says. Raises `NotFound` or `Refused`."""
    now = recorded(tx, partition.id)
    if now is None:
        raise NotFound("there is no such partition", reason="PARTITION_UNKNOWN")
    if (now.home, now.epoch) != (partition.home, partition.epoch):
        raise Refused("the partition was moved meanwhile", reason="NOT_AT_HOME", hint="cpctl partition show")


def recorded(tx: Tx, partition: str) -> Partition | None:
    """Where a partition is by this region's own log; None if it never was here, nor on its way here."""
    row = tx.get(MOVE, partition)
    if row is not None:
        return placed(row.value)
    declared = tx.get(partitions.PARTITION, partition)
    return declared.value if declared is not None else None


def _is_later_here(tx: Tx, than: Partition) -> bool:
    """Whether this region is a later home of the partition, or is taking over as one (rule 1)."""
    row = tx.get(MOVE, than.id)
    if row is not None and row.value.phase == Move.ADOPTING:
        return newer(adopted(row.value), than)
    own = recorded(tx, than.id)
    return own is not None and own.home == tx.partition.home and newer(own, than)


def _next_epoch(partition: Partition, known: Partition | None, move: Move | None) -> int:
    return 1 + max(partition.epoch, known.epoch if known else 0, move.epoch if move else 0)


def _put(tx: Tx, move: Move) -> None:
    """Write the record of another move, which takes along what must not be forgotten of those before."""
    row = tx.get(MOVE, move.partition.id)
    if row is not None:
        move.disowned.extend(row.value.disowned)
    tx.put(MOVE, move.partition.id, move)


def _turned(move: Move, phase: Move.Phase) -> Move:
    after = Move()
    after.CopyFrom(move)
    after.phase = phase
    return after
