"""A person's right to have a record gone: the record, what it was before, and what was answered about it.

1. `erase` deletes the record and writes an `Erasure` beside it, under a digest of its key. That record lies in the same
   partition, so it travels wherever copies went.
2. Every region that has it, the home as well as those that hold copies, looks for what is left in its own store
   (`traces`), and erases it in steps (`sweep`). What was written after the erasure is not touched.
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
from typing import Any, TypeVar

from google.protobuf.message import DecodeError

from controlplane import limits
from controlplane.errors import Invalid, NotFound, Refused
from controlplane.features import audit, checks, leases, moves, partitions, workflows
from controlplane.kernel import keys
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

    def covers(self, key: bytes) -> bool:
        """Whether this is the record's key, now or under a former home; which of these erased it is no matter."""
        for scope in self.scopes:
            if key.startswith(scope + keys.text(self.kind)):
                return self.name in (keys.erasure_name(key), keys.erasure_name(self.scope + key[len(scope) :]))
        return False

    def is_past(self, event: Event) -> bool:
        """Whether it was written before the erasure, or by a former home."""
        return _written_at(event) <= self.upto or not event.key.startswith(self.scope)


@dataclass(slots=True)
class Traces:
    """What is left in a store: keys of rows, and leaves of the ledger that commit to entries which wrote it."""

    rows: list[bytes] = field(default_factory=list)
    leaves: set[int] = field(default_factory=set)


def pending(view: View, region: str, among: Iterable[Partition]) -> list[Wanted]:
    """Erasures in these partitions that the region has not swept."""
    system = scope_of(partitions.system(region))
    found = []
    for partition in among:
        scope = scope_of(partition)
        for _, packed in view.scan(*keys.children(keys.RECORD + scope + keys.text(ERASURE.name))):
            event = Event.FromString(packed)
            name, at = keys.decode(event.key).name, _written_at(event)
            done = view.get(keys.RECORD + keys.within(system, ERASED.name, name))
            if done is None or Erased.FromString(Event.FromString(done).value).revision < at:
                with contextlib.suppress(DecodeError):
                    # What another region sent may be anything.
                    kind = Erasure.FromString(event.value).kind
                    at_home, was_home = partition.home == region, any(each.home == region for each in partition.former)
                    answered = at if at_home else moves.ALL if was_home else 0
                    found.append(Wanted(scope, name, kind, at, at_home, answered, _former(partition)))
    return found


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


def due(view: View, region: str) -> int:
    """The revision at which the last erasure was swept; 0 if none was."""
    prefix = keys.RECORD + scope_of(partitions.system(region)) + keys.text(ERASED.name)
    return max((Event.FromString(packed).revision for _, packed in view.scan(*keys.children(prefix))), default=0)


def traces(view: View, wanted: Wanted, pause: Callable[[], None]) -> Traces:
    """Look for all that is left in a store that has the erasure already. For a thread: calls `pause` often.

    Events and versions that hold a value, and outcomes of what wrote them or which show an election's holder. That
    something was deleted stays: watchers have to hear of it.
    """
    found = Traces()
    written: set[int] = set()
    for row, packed in _paused(_events(view, wanted), pause):
        event = Event.FromString(packed)
        if not event.HasField("value") or not wanted.is_past(event) or not wanted.covers(event.key):
            continue
        found.rows.append(row)
        written.add(event.revision)
        leaf = audit.leaf_of(view, event.revision, event.at_ms)
        if leaf is not None:
            found.leaves.add(leaf)
    if not wanted.answered:
        return found
    for row, packed in _paused(view.scan(*keys.children(keys.OUTCOME)), pause):
        outcome = Outcome.FromString(packed)
        if outcome.revision in written or _shows(outcome, wanted):
            found.rows.append(row)
    return found


def _events(view: View, wanted: Wanted) -> Iterator[tuple[bytes, bytes]]:
    """Events that may be the record's, and all of its versions."""
    of_kind = [scope + keys.text(wanted.kind) for scope in wanted.scopes]
    for domain in dict.fromkeys(map(keys.domain_of, wanted.scopes)):
        for row, packed in view.scan(*keys.children(keys.EVENT + domain)):
            # Whether it is that kind at all is seen without taking it apart; others pass by, for the pauses between.
            yield row, packed if any(each in packed for each in of_kind) else b""
    for each in of_kind:
        yield from _versions(view, each, wanted)


def _versions(view: View, of_kind: bytes, wanted: Wanted) -> Iterator[tuple[bytes, bytes]]:
    at, end = keys.children(keys.HISTORY + of_kind)
    while (first := next(iter(view.scan(at, end)), None)) is not None:
        key = first[0][len(keys.HISTORY) : -len(keys.number(0))]
        if wanted.covers(key):
            yield from view.scan(*keys.children(keys.HISTORY + key))
        else:
            yield first[0], b""
        at = keys.HISTORY + key + _AFTER_ALL


def _shows(outcome: Outcome, wanted: Wanted) -> bool:
    """Whether a reply shows the election that was erased. What kind of reply it is, its outcome does not say."""
    if (
        wanted.kind != leases.ELECTION.name
        or outcome.verdict != Outcome.COMMITTED
        or outcome.revision > wanted.answered
    ):
        return False
    try:
        name = api.CampaignReply.FromString(outcome.reply).holder.election.name
    except DecodeError:
        return False
    return bool(name) and any(wanted.covers(keys.within(scope, wanted.kind, name)) for scope in wanted.scopes)


def _written_at(event: Event) -> int:
    """The revision at the record's home."""
    return event.origin.revision if event.HasField("origin") else event.revision


def _paused(rows: Iterable[tuple[bytes, bytes]], pause: Callable[[], None]) -> Iterator[tuple[bytes, bytes]]:
    for n, row in enumerate(rows):
        if n % _ROWS_BETWEEN_PAUSES == 0:
            pause()
        yield row


def steps(found: Traces, wanted: Wanted) -> Iterator[Callable[[Tx], RequestHeader]]:
    """Transactions of the system partition that erase what was found; the last one says that it is done.

    They may be run again from the beginning: what is gone already is no matter.
    """
    yield from (_sweeping(rows) for rows in _parts(found.rows, limits.ERASES_PER_TXN_MAX))
    *more, last = [*_parts(sorted(found.leaves), LEAVES_PER_RECORD_MAX)] or [[]]
    for n, named in enumerate(more):
        yield _noting(f"{wanted.name}.{n}", Erased(revision=wanted.upto, leaves=named))
    yield _noting(wanted.name, Erased(revision=wanted.upto, leaves=last))


def _parts(items: Sequence[T], count: int) -> Iterator[Sequence[T]]:
    return (items[at : at + count] for at in range(0, len(items), count))


def _sweeping(rows: Iterable[bytes]) -> Callable[[Tx], RequestHeader]:
    def run(tx: Tx) -> RequestHeader:
        tx.erase(rows)
        return RequestHeader()

    return run


def _noting(name: str, erased: Erased) -> Callable[[Tx], RequestHeader]:
    def run(tx: Tx) -> RequestHeader:
        tx.put(ERASED, name, erased)
        return RequestHeader()

    return run
