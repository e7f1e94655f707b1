"""Promises that can be checked without a search: each function lists what breaks one of them.

1. A finding is a violation, never a guess: where order is not certain (intervals that overlap), nothing is said.
2. Values that writers write are unique, so that whoever sees one knows which write it was.
3. At most `FINDINGS_MAX` findings are listed per call; one is enough to fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from controlplane.checking.histories import NEVER, History, Operation, Value

FINDINGS_MAX = 100


class Finding(NamedTuple):
    """A broken promise: its name, and what was seen."""

    promise: str
    text: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.text}"


class Act(NamedTuple):
    """Something that was let happen to a resource, between `called` and `returned` (ns or revisions; may be equal)."""

    resource: str
    by: str
    called: int
    returned: int
    fence: int = 0


class Tenure(NamedTuple):
    """From when until when (ns) a holder believed to hold a lease: from the answer until its own count ended."""

    name: str
    holder: str
    fence: int
    since: int
    until: int


class Kill(NamedTuple):
    """A scope was stopped: confirmed at, and release asked for (whatever came of it) at; ns."""

    scope: str
    confirmed: int
    release_called: int = NEVER


def fences(acts: Iterable[Act]) -> list[Finding]:
    """No accepted act on a resource has a lower fence than one that was over before it began."""
    return _first(_fences(acts))


def tenures(believed: Iterable[Tenure]) -> list[Finding]:
    """No two holders believe to hold the same lease at the same time."""
    return _first(_tenures(believed))


def kills(stops: Iterable[Kill], acts: Iterable[Act], bound_ns: int) -> list[Finding]:
    """No act in a scope is called later than `bound_ns` after its kill was confirmed, until a release is asked for.

    `resource` of an act is the scope; an act under several scopes is given once for each. A check that said "go on" is
    such an act too: so nothing but a release revives what was stopped.
    """
    return _first(_kills(list(stops), acts, bound_ns))


def writes(history: History, present: Mapping[str, Sequence[Value]]) -> list[Finding]:
    """What was acknowledged is there, once; what failed or was refused is not; nor is what nobody wrote.

    `present` holds every value that each key ever had, as told after the end. Counts operations create, write, cas and
    append of `controlplane.checking.models`.
    """
    return _first(_writes(history, present))


def stale_reads(history: History) -> list[Finding]:
    """No read of a `Register` tells an older version than was known to anybody before it began.

    Needs no search, so that it also speaks when a search is undecided. Only reads that promise to be linearizable may
    be of kind "read".
    """
    return _first(_stale_reads(history.operations))


def _first(findings: Iterable[Finding]) -> list[Finding]:
    return list(islice(findings, FINDINGS_MAX))


def _fences(acts: Iterable[Act]) -> Iterator[Finding]:
    by_call = sorted(acts, key=attrgetter("called"))
    over = sorted(by_call, key=attrgetter("returned"), reverse=True)
    greatest: dict[str, Act] = {}
    for act in by_call:
        while over and over[-1].returned < act.called:
            done = over.pop()
            if done.fence >= greatest.get(done.resource, done).fence:
                greatest[done.resource] = done
        before = greatest.get(act.resource)
        if before is not None and act.fence < before.fence:
            text = f"{act.by} acted on {act.resource} at {act.called} under fence {act.fence}"
            yield Finding("FENCE_ORDER", f"{text}, after {before.by} under {before.fence} until {before.returned}")


def _tenures(believed: Iterable[Tenure]) -> Iterator[Finding]:
    last: dict[str, Tenure] = {}
    for tenure in sorted(believed, key=attrgetter("since")):
        before = last.get(tenure.name)
        if before is not None and before.until > tenure.since and before.fence != tenure.fence:
            text = f"{before.holder} believed to hold {tenure.name} until {before.until}"
            yield Finding("TWO_HOLDERS", f"{text}, {tenure.holder} from {tenure.since}")
        if before is None or tenure.until >= before.until:
            last[tenure.name] = tenure


def _kills(stops: list[Kill], acts: Iterable[Act], bound_ns: int) -> Iterator[Finding]:
    for act in acts:
        for stop in stops:
            if act.resource == stop.scope and stop.confirmed + bound_ns < act.called < stop.release_called:
                late_ms = (act.called - stop.confirmed) / 1e6
                yield Finding("ACT_AFTER_KILL", f"{act.by} acted in {act.resource} {late_ms:.1f} ms after its kill")


def _writes(history: History, present: Mapping[str, Sequence[Value]]) -> Iterator[Finding]:
    seen = Counter((key, value) for key, values in present.items() for value in values)
    written = [operation for operation in history.operations if operation.kind in _WRITES]
    failed = [operation for operation in history.failures if operation.kind in _WRITES]
    for operation in written:
        if not operation.unknown and not _refused(operation) and not seen[_written(operation)]:
            yield Finding("ACKNOWLEDGED_LOST", _told(operation))
    for operation in failed + [operation for operation in written if _refused(operation)]:
        if seen[_written(operation)]:
            yield Finding("FAILURE_APPLIED", _told(operation))
    known = {_written(operation) for operation in written + failed}
    for (key, value), count in seen.items():
        if (key, value) not in known:
            yield Finding("PHANTOM", f"{key} had {value!r}, which nobody wrote")
        elif count > 1:
            yield Finding("APPLIED_TWICE", f"{key} had {value!r} {count} times")


def _stale_reads(operations: Sequence[Operation]) -> Iterator[Finding]:
    told = [(operation, version) for operation in operations if (version := _version(operation)) is not None]
    over = sorted(told, key=lambda each: each[0].returned, reverse=True)
    greatest: dict[str, int] = {}
    for operation, version in told:
        while over and over[-1][0].returned < operation.called:
            done, known = over.pop()
            greatest[done.key] = max(known, greatest.get(done.key, 0))
        newest = greatest.get(operation.key, 0)
        if operation.kind == "read" and version < newest:
            yield Finding("STALE_READ", f"{_told(operation)}, but version {newest} was known before it began")


def _version(operation: Operation) -> int | None:
    """The version that an answer told; 0 if there was none, None if it told nothing."""
    if operation.unknown:
        return None
    result = operation.result
    if operation.kind == "read":
        return result[0] if isinstance(result, tuple) and result and isinstance(result[0], int) else 0
    return result if operation.kind in _WRITES and isinstance(result, int) else None


def _refused(operation: Operation) -> bool:
    return operation.kind in ("create", "cas") and operation.result is None and not operation.unknown


def _written(operation: Operation) -> tuple[str, Value]:
    argument = operation.argument
    if operation.kind != "cas":
        return operation.key, argument
    if not isinstance(argument, tuple) or len(argument) != 2:
        raise ValueError(f"cas has a version and a value, not {argument!r}")
    return operation.key, argument[1]


def _told(operation: Operation) -> str:
    asked = f"{operation.key}: process {operation.process}'s {operation.kind}({operation.argument!r})"
    return f"{asked} at {operation.called} was told {operation.result!r}"


_WRITES = ("create", "write", "cas", "append")
