"""A person's right to have a record gone: the record, what it was before, and what was answered about it.

1. `erase` deletes the record and writes an `Erasure` beside it, under a digest of its key. That record lies in the same
   partition, so it travels wherever copies went.
2. Every region that has it, the home as well as those that hold copies, knows which of them it has not swept
   (`Unswept`), looks for what is left in its own store (`traces`, for many at once), and erases it in steps
   (`sweeping`, `noting`). What was written after the erasure is not touched.
3. The last step writes an `Erased` record at home there: an audited one, which names the leaves of the region's ledger
   whose salts go with it, and neither the record nor its digest. From its revision on, files have to be scrubbed.

Erased can be what holds people's words and nothing else rests on: workflows, and elections that nobody holds (ending a
lease is for its holder, or its time). Switches, stops and exceptions cannot: one that is gone stops nobody any more.
Nor can flags: without one, agents fall back on defaults, and may use a tool that it took from them. What the region
notes about itself is evidence, and names no person.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError

from controlplane import limits
from controlplane.errors import Invalid, NotFound, Refused
from controlplane.features import audit, checks, leases, moves, partitions, workflows
from controlplane.kernel import keys, machine
from controlplane.kernel.machine import Changed
from controlplane.kernel.store import View
from controlplane.kernel.transaction import Kind, Tx, scope_of
from controlplane.v1 import api_pb2 as api
from controlplane.v1.api_pb2 import RequestHeader
from controlplane.v1.records_pb2 import Erased, Erasure, Partition
from controlplane.v1.state_pb2 import Event, Outcome

T = TypeVar("T")

ERASURE = Kind(keys.ERASURE_KIND, Erasure, reserved=True)
ERASED = Kind("erased", Erased, reserved=True)

LEAVES_PER_RECORD_MAX = 512
"""So that what is said of them fits into one record of the ledger."""

_ERASABLE = {kind.name: kind for kind in (workflows.WORKFLOW, leases.ELECTION)}
_AFTER_ALL = b"\xff" * 9
_ERASURE, _ERASED, _ELECTION = (keys.text(kind.name) for kind in (ERASURE, ERASED, leases.ELECTION))
_ROWS_BETWEEN_PAUSES = 256


def erase(tx: Tx, request: api.EraseRecordRequest) -> api.EraseRecordReply:
    """Delete the record, and have every region erase what is left of it. Erasing it again changes nothing.

    Refused for kinds that cannot be erased, and while an election is held. `NotFound` for a workflow that is not there
    and was not erased; of an election that nobody holds there is always something to look for.
    """
    kind, name = _kind_of(request), checks.name(request.name, "name")
    row = tx.get(kind, name)
    digest = keys.erasure_name(keys.within(scope_of(tx.partition), kind.name, name))
    former = tx.get(ERASURE, digest)
    if kind is leases.ELECTION and row is not None:
        raise Refused(
            "the election is held: a lease is not ended by erasing it",
            reason="ELECTION_HELD",
            hint="have its holder resign, or wait until it has expired",
        )
    if kind is workflows.WORKFLOW and row is None:
        if former is None:
            raise NotFound("there is no such workflow", reason="WORKFLOW_NOT_FOUND")
        return api.EraseRecordReply(revision=former.revision, erasure=digest)
    version = former.value.version if former else 0
    if row is not None:
        tx.delete(kind, name)
        # Its deletion counts, too.
        version = row.version + 1
    tx.put(ERASURE, digest, Erasure(kind=kind.name, version=version))
    return api.EraseRecordReply(revision=tx.revision, erasure=digest)


def _kind_of(request: api.EraseRecordRequest) -> Kind[Any]:
    if not request.header.partition:
        raise Invalid("say which partition", reason="PARTITION_MISSING", field="header.partition")
    if not request.header.reason.strip():
        raise Invalid("a record is erased for a reason: say it", reason="REASON_MISSING", field="header.reason")
    kind = _ERASABLE.get(request.kind)
    if kind is None:
        raise Invalid(
            f"records of kind {request.kind[:64]!r} cannot be erased, only of {', '.join(sorted(_ERASABLE))}",
            reason="KIND_NOT_ERASABLE",
            hint="kill switches and flags stop agents, and what the region notes is evidence",
            field="kind",
        )
    return kind


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an erasure is about. `upto` is its revision at the record's home: what came later is not meant.

    What former homes wrote is meant whenever that was: nobody can ask for it any more. Not `at_home`: here are copies.
    What was answered here is meant up to revision `answered`; 0: the record never was at home here.
    """

    scope: bytes
    name: str
    kind: str
    upto: int
    at_home: bool
    answered: int
    former: tuple[bytes, ...] = ()

    @property
    def scopes(self) -> tuple[bytes, ...]:
        """Wherever the record may have been."""
        return self.scope, *self.former

    def is_past(self, event: Event) -> bool:
        """Whether it was written before the erasure, or by a former home."""
        return _written_at(event) <= self.upto or not event.key.startswith(self.scope)


@dataclass(slots=True)
class Traces:
    """What is left in a store: keys of rows, and leaves of the ledger that commit to entries which wrote it."""

    rows: list[bytes] = field(default_factory=list)
    leaves: set[int] = field(default_factory=set)


class _Asked(NamedTuple):
    """An erasure that was not swept: what kind of record it is about, and its revision at that record's home."""

    kind: str
    at: int


class Unswept:
    """Which erasures in a region's store it has not swept yet, in whatever partition they lie.

    Made of a view, which looks at every erasure there ever was (for a thread: it calls `pause` often); kept up to date
    by `took`, which looks at those that changed.
    """

    def __init__(self, view: View, region: str, pause: Callable[[], None] = lambda: None) -> None:
        self.due = 0
        """The revision at which the last erasure was swept; 0 if none was."""
        self._system = scope_of(partitions.system(region))
        self._found: dict[bytes, dict[str, _Asked]] = {}
        swept: dict[str, int] = {}
        for _, packed in _paused(view.scan(*keys.children(keys.RECORD + self._system + _ERASED)), pause):
            event = Event.FromString(packed)
            swept[keys.decode(event.key).name] = Erased.FromString(event.value).revision
            self.due = max(self.due, event.revision)
        for scope in machine.scopes(view):
            for _, packed in _paused(view.scan(*keys.children(keys.RECORD + scope + _ERASURE)), pause):
                event = Event.FromString(packed)
                self._note(event, swept.get(keys.decode(event.key).name, 0))

    def took(self, view: View, changed: Iterable[Changed]) -> None:
        """Take in what was `changed` since, as `about_erasures` says; `view` has it already."""
        for each in changed:
            key = keys.decode(each.key)
            if key.kind == ERASURE.name:
                done = view.get(keys.RECORD + keys.within(self._system, ERASED.name, key.name))
                self._note(each.event, Erased.FromString(Event.FromString(done).value).revision if done else 0)
            elif each.key.startswith(self._system) and each.event.HasField("value"):
                self._swept(key.name, Erased.FromString(each.event.value).revision)
                self.due = max(self.due, each.event.revision)

    def __bool__(self) -> bool:
        """Whether there is any, also in a partition that is not known yet."""
        return any(self._found.values())

    def count(self, among: Iterable[Partition]) -> int:
        """How many there are in these partitions."""
        return sum(len(self._found.get(scope_of(partition), ())) for partition in among)

    def wanted(self, region: str, among: Iterable[Partition], upto: Callable[[Partition], int]) -> Iterator[Wanted]:
        """What has to be swept in these partitions, up to a revision of each one's home."""
        for partition in among:
            scope, top = scope_of(partition), upto(partition)
            at_home, was_home = partition.home == region, any(each.home == region for each in partition.former)
            for name, asked in self._found.get(scope, {}).items():
                if asked.at <= top:
                    answered = asked.at if at_home else moves.ALL if was_home else 0
                    yield Wanted(scope, name, asked.kind, asked.at, at_home, answered, _former(partition))

    def _note(self, event: Event, swept: int) -> None:
        scope, name, at = keys.scope_of(event.key), keys.decode(event.key).name, _written_at(event)
        found = self._found.setdefault(scope, {})
        found.pop(name, None)
        if event.HasField("value") and at > swept:
            with contextlib.suppress(DecodeError):
                # What another region sent may be anything.
                found[name] = _Asked(Erasure.FromString(event.value).kind, at)

    def _swept(self, name: str, revision: int) -> None:
        for found in self._found.values():
            if name in found and found[name].at <= revision:
                del found[name]


def about_erasures(changed: Iterable[Changed]) -> list[Changed]:
    """Those that say of something that it was erased, or swept."""
    # A name may look like a kind.
    alike = (each for each in changed if _ERASURE in each.key or _ERASED in each.key)
    return [each for each in alike if keys.decode(each.key).kind in (ERASURE.name, ERASED.name)]


def _former(partition: Partition) -> tuple[bytes, ...]:
    homes = ((each.home, each.epoch) for each in partition.former)
    return tuple(scope_of(Partition(id=partition.id, home=h, reach=partition.reach, epoch=e)) for h, e in homes)


def erased_since(view: View, among: Iterable[Partition], revision: int) -> bool:
    """Whether any record of these partitions, which are at home here, was erased after a revision."""
    return any(
        Event.FromString(packed).revision > revision
        for partition in among
        for _, packed in view.scan(*keys.children(keys.RECORD + scope_of(partition) + keys.text(ERASURE.name)))
    )


def traces(view: View, wanted: Sequence[Wanted], pause: Callable[[], None]) -> list[Traces]:
    """Look for all that is left of each in a store that has the erasures already. For a thread: calls `pause` often.

    Events and versions that hold a value, and outcomes of what wrote them or which show an election's holder. That
    something was deleted stays: watchers have to hear of it. However many are wanted, the store is read once.
    """
    found, sought = [Traces() for _ in wanted], _Sought(wanted)
    written: dict[int, set[int]] = {}
    for row, packed in _paused(_events(view, wanted, sought), pause):
        event = Event.FromString(packed)
        if not event.HasField("value"):
            continue
        meant = {n for n in sought.find(event.key) if wanted[n].is_past(event)}
        leaf = audit.leaf_of(view, event.revision, event.at_ms) if meant else None
        for n in meant:
            found[n].rows.append(row)
            if leaf is not None:
                found[n].leaves.add(leaf)
        if meant:
            written.setdefault(event.revision, set()).update(meant)
    if not any(each.answered for each in wanted):
        return found
    for row, packed in _paused(view.scan(*keys.children(keys.OUTCOME)), pause):
        outcome = Outcome.FromString(packed)
        for n in {*written.get(outcome.revision, ()), *sought.shown(outcome)}:
            if wanted[n].answered:
                found[n].rows.append(row)
    return found


class _Sought:
    """Finds which of many erasures mean a record, however it was called when they were asked for."""

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self._wanted = wanted
        self._named: dict[bytes, tuple[int, dict[bytes, dict[str, list[int]]]]] = {}
        """By scope and kind of a record: how long the scope is; by the erasure's scope and name: which these are."""
        for n, each in enumerate(wanted):
            for scope in each.scopes:
                _, named = self._named.setdefault(scope + keys.text(each.kind), (len(scope), {}))
                named.setdefault(each.scope, {}).setdefault(each.name, []).append(n)

    @property
    def kinds(self) -> tuple[bytes, ...]:
        """How the keys begin of all records that may be meant."""
        return tuple(self._named)

    def find(self, key: bytes) -> set[int]:
        """Those that mean this key, now or under a former home; which of these erased it is no matter."""
        found: set[int] = set()
        for start, (scope_bytes, named) in self._named.items():
            if key.startswith(start):
                own = keys.erasure_name(key)
                for scope, names in named.items():
                    for name in (own, keys.erasure_name(scope + key[scope_bytes:])):
                        found.update(names.get(name, ()))
        return found

    def shown(self, outcome: Outcome) -> set[int]:
        """Those whose election a reply shows. What kind of reply it is, its outcome does not say."""
        elections = [start for start in self._named if start.endswith(_ELECTION)]
        if not elections or outcome.verdict != Outcome.COMMITTED:
            return set()
        try:
            name = api.CampaignReply.FromString(outcome.reply).holder.election.name
        except DecodeError:
            return set()
        found = {n for start in elections for n in self.find(start + keys.text(name))} if name else set()
        return {n for n in found if outcome.revision <= self._wanted[n].answered}


def _events(view: View, wanted: Sequence[Wanted], sought: _Sought) -> Iterator[tuple[bytes, bytes]]:
    """Events that may be a record's, and all of its versions."""
    domains = (keys.domain_of(scope) for each in wanted for scope in each.scopes)
    for domain in dict.fromkeys(domains):
        for row, packed in view.scan(*keys.children(keys.EVENT + domain)):
            # Whether it is that kind at all is seen without taking it apart; others pass by, for the pauses between.
            yield row, packed if any(each in packed for each in sought.kinds) else b""
    for each in sought.kinds:
        yield from _versions(view, each, sought)


def _versions(view: View, of_kind: bytes, sought: _Sought) -> Iterator[tuple[bytes, bytes]]:
    at, end = keys.children(keys.HISTORY + of_kind)
    while (first := next(iter(view.scan(at, end)), None)) is not None:
        key = first[0][len(keys.HISTORY) : -len(keys.number(0))]
        if sought.find(key):
            yield from view.scan(*keys.children(keys.HISTORY + key))
        else:
            yield first[0], b""
        at = keys.HISTORY + key + _AFTER_ALL


def _written_at(event: Event) -> int:
    """The revision at the record's home."""
    return event.origin.revision if event.HasField("origin") else event.revision


def _paused(rows: Iterable[tuple[bytes, bytes]], pause: Callable[[], None]) -> Iterator[tuple[bytes, bytes]]:
    for n, row in enumerate(rows):
        if n % _ROWS_BETWEEN_PAUSES == 0:
            pause()
        yield row


def sweeping(found: Iterable[Traces]) -> Iterator[Callable[[Tx], RequestHeader]]:
    """Transactions of the system partition that erase the rows that were found; one after the other, each is large.

    They, and those of `noting`, may be run again from the beginning: what is gone already is no matter.
    """
    rows = [*dict.fromkeys(row for each in found for row in each.rows)]
    return (_erasing(part) for part in _parts(rows, limits.ERASES_PER_TXN_MAX))


def noting(found: Traces, wanted: Wanted) -> Iterator[Callable[[Tx], RequestHeader]]:
    """Transactions of the system partition that say of an erasure what went with it; the last, that it is swept."""
    *more, last = [*_parts(sorted(found.leaves), LEAVES_PER_RECORD_MAX)] or [[]]
    for n, named in enumerate(more):
        yield _noting(f"{wanted.name}.{n}", wanted.upto, named)
    yield _noting(wanted.name, wanted.upto, last)


def _parts(items: Sequence[T], count: int) -> Iterator[Sequence[T]]:
    return (items[at : at + count] for at in range(0, len(items), count))


def _erasing(rows: Iterable[bytes]) -> Callable[[Tx], RequestHeader]:
    def run(tx: Tx) -> RequestHeader:
        tx.erase(rows)
        return RequestHeader()

    return run


def _noting(name: str, revision: int, leaves: Sequence[int]) -> Callable[[Tx], RequestHeader]:
    def run(tx: Tx) -> RequestHeader:
        # The same erasure may be here twice for a while, as a copy and as what was taken over from that: each has a
        # revision of its own, and whoever has swept the later one has swept both.
        before = tx.get(ERASED, name)
        upto = max(revision, before.value.revision) if before is not None else revision
        tx.put(ERASED, name, Erased(revision=upto, leaves=leaves))
        return RequestHeader()

    return run
