"""PURE. What has to hold between regions, whatever broke: of copies, and of kill switches thrown elsewhere.

*Copies.* What somebody in another region sees of what a home shares is a beginning of what happened there: whole
transactions, in order, each once. A listing is the state of the home at one of its revisions, and no older than what
was seen before.

*Stops.* At any moment a region stands, for each other region and scope, at one of the states that were told there, in
order. So what was stopped is free again only by a release there, and never before it. So long after a switch was
acknowledged, or after the way between the two was healed, everybody knows of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

from controlplane.checking.invariants import Finding

FINDINGS_MAX = 5
"""Of one watcher or scope: the first ones say it, the rest follows from them."""


class Record(NamedTuple):
    """A version of a shared record. `revision` is the home's; `value` None: it was deleted."""

    name: str
    revision: int
    value: bytes | None


class Session(NamedTuple):
    """What a watcher saw without asking anew.

    `listed`: the whole listing it began with, as of the region's own revision `at`; None if it went on from before.
    """

    listed: tuple[Record, ...] | None
    at: int
    messages: tuple[tuple[Record, ...], ...]
    """A message each, in the order they came."""


Truth = Mapping[int, frozenset[Record]]
"""What happened at home: for each revision at which shared records changed, all of those that did."""


def truth_of(records: Iterable[Record]) -> Truth:
    """The transactions that a home's event log tells of."""
    found: dict[int, set[Record]] = {}
    for record in records:
        found.setdefault(record.revision, set()).add(record)
    return {revision: frozenset(together) for revision, together in sorted(found.items())}


def state_at(truth: Truth, revision: int) -> dict[str, Record]:
    """The newest version of each record up to a revision, without those that were deleted."""
    newest = {each.name: each for at, together in truth.items() if at <= revision for each in together}
    return {name: each for name, each in newest.items() if each.value is not None}


def copies(truth: Truth, sessions: Iterable[Session]) -> list[Finding]:
    """What one watcher of a copy saw that did not happen like that at home, or that it was not shown."""
    return list(islice(_copies(truth, sessions), FINDINGS_MAX))


def swept(truth: Truth, records: Iterable[Record]) -> list[Finding]:
    """What one watcher saw while a copy was made anew that is not true of its home, or goes back.

    A copy that is made anew changes page by page: nothing is said of what is left out, nor of what comes together.
    """
    return list(islice(_swept(truth, records), FINDINGS_MAX))


def _swept(truth: Truth, records: Iterable[Record]) -> Iterator[Finding]:
    newest: dict[str, int] = {}
    for each in records:
        if each.value is not None and each not in truth.get(each.revision, frozenset()):
            yield Finding("COPY_INVENTED", f"{each.name} at {each.revision} was never like that at home")
        if each.value is not None and each.revision < newest.get(each.name, 0):
            yield Finding("COPY_WENT_BACK", f"{each.name}: {each.revision} came after {newest[each.name]}")
        newest[each.name] = max(each.revision, newest.get(each.name, 0))


def _copies(truth: Truth, sessions: Iterable[Session]) -> Iterator[Finding]:
    revisions = list(truth)
    cursor = at = 0
    for session in sessions:
        if session.listed is not None:
            yield from _listing(truth, session.listed)
            newest = max((each.revision for each in session.listed), default=0)
            if session.at >= at and newest < cursor:
                yield Finding("COPY_WENT_BACK", f"a listing ends at {newest}; {cursor} was seen before")
            cursor, at = newest, session.at
        for message in session.messages:
            cursor = yield from _message(truth, revisions, cursor, message)
    if revisions and cursor < revisions[-1]:
        yield Finding("COPY_BEHIND", f"came to {cursor}, the home is at {revisions[-1]}")


def _listing(truth: Truth, listed: Sequence[Record]) -> Iterator[Finding]:
    newest = max((each.revision for each in listed), default=0)
    there = state_at(truth, newest)
    here = {each.name: each for each in listed}
    for name in sorted({*there, *here}):
        mine, theirs = here.get(name), there.get(name)
        if mine is not None and mine not in truth.get(mine.revision, frozenset()):
            yield Finding("COPY_INVENTED", f"{name} at {mine.revision} was never like that at home")
        elif mine != theirs:
            found = "absent" if mine is None else f"as of {mine.revision}"
            wanted = "absent" if theirs is None else f"of {theirs.revision}"
            yield Finding("COPY_LISTING", f"as of {newest} {name} has to be {wanted}; it is listed {found}")


def _message(
    truth: Truth, revisions: Sequence[int], cursor: int, message: Sequence[Record]
) -> Generator[Finding, None, int]:
    these = {each.revision for each in message}
    if len(these) != 1 or len({each.name for each in message}) != len(message):
        yield Finding("COPY_MIXED", f"one message holds changes of revisions {sorted(these)}")
        return max(these, default=cursor)
    (revision,) = these
    happened = truth.get(revision, frozenset())
    if revision <= cursor:
        yield Finding("COPY_WENT_BACK", f"{revision} came after {cursor}")
        return cursor
    if invented := [each.name for each in message if each not in happened]:
        yield Finding("COPY_INVENTED", f"{', '.join(invented)} at {revision} was never like that at home")
    elif len(message) != len(happened):
        yield Finding("COPY_TORN", f"{revision} changed {len(happened)} records, and {len(message)} of them came")
    skipped = revisions[bisect_right(revisions, cursor) : bisect_right(revisions, revision - 1)]
    if skipped:
        yield Finding("COPY_LOST", f"after {cursor} came {revision}; {skipped[0]} and {len(skipped) - 1} more did not")
    return revision


class Told(NamedTuple):
    """One thing that a region told others about one scope; `at_ms` is when it was committed, on the wall clock."""

    revision: int
    engaged: bool
    at_ms: int


class Throw(NamedTuple):
    """A switch of one scope that was engaged or released at home at `revision`, and that was acknowledged."""

    revision: int
    acknowledged_ns: int


class Look(NamedTuple):
    """What an observer elsewhere was told: stopped by that region since `revision`; 0: not stopped by it.

    Nanoseconds are those of the history; `ended_ms` is the wall clock when the answer was there.
    """

    began_ns: int
    ended_ms: int
    revision: int


class Broken(NamedTuple):
    """From `began_ns` to `ended_ns` nothing had to pass from one region to the other."""

    began_ns: int
    ended_ns: int


CLOCK_MS = 100
"""Commit and look are stamped by different processes of one machine; so much later a commit may seem to be."""


def untold(switches: Sequence[tuple[int, bool]], told: Sequence[Told]) -> list[Finding]:
    """What became of a scope's switch at home (revision, engaged) and was never told. For when all is quiet."""
    engaged = bool(switches) and switches[-1][1]
    if engaged == (bool(told) and told[-1].engaged):
        return []
    state = "engaged" if engaged else "released"
    return [Finding("STOP_UNTOLD", f"it is {state} at home, and others were told something else last")]


def due(throws: Iterable[Throw], switches: Sequence[tuple[int, bool]], told: Sequence[Told]) -> list[tuple[int, int]]:
    """When others may be asked for what: moment of the acknowledgement and the revision that told of it.

    What was thrown again before it was told asks for nothing: others may never have heard of it.
    """
    ends = {before: after for (before, _), (after, _) in pairwise(switches)}
    found = []
    for throw in throws:
        first = next((each.revision for each in told if each.revision > throw.revision), None)
        if first is not None and first < ends.get(throw.revision, first + 1):
            found.append((throw.acknowledged_ns, first))
    return sorted(found)


def stops(
    told: Sequence[Told],
    asked: Sequence[tuple[int, int]],
    looks: Sequence[Look],
    broken: Sequence[Broken],
    bound_ns: int,
) -> list[Finding]:
    """What one observer was told about a scope, one look after the other, that a home's stops do not explain.

    `asked` is what `due` returns.
    """
    states = [Told(0, False, 0), *told]
    ends = [*(each.revision for each in told), None]
    at, findings = 0, []
    known = {each.revision for each in told if each.engaged}
    for look in looks:
        least = _required(asked, look.began_ns - bound_ns, broken, look.began_ns)
        fitting = [n for n, each in enumerate(states) if _fits(each, look) and each.at_ms <= look.ended_ms + CLOCK_MS]
        later = [n for n in fitting if n >= at]
        now = next((n for n in later if (end := ends[n]) is None or end > least), None)
        if now is not None:
            at = now
            continue
        said = f"stopped since {look.revision}" if look.revision else "not stopped"
        stood = f"{'stopped' if states[at].engaged else 'free'} since {states[at].revision}"
        if later:
            wanted = f"everything up to {least} had to be known"
            findings.append(Finding("STOP_LATE", f"{said}, and {wanted} for {bound_ns / 1e9:g} s"))
        elif look.revision and look.revision not in known:
            findings.append(Finding("STOP_INVENTED", f"{said}, which never happened there"))
        elif look.revision:
            findings.append(Finding("STOP_WENT_BACK", f"{said}, after it was seen {stood}"))
        else:
            findings.append(Finding("STOP_REVIVED", f"{said}, after it was seen {stood}, and nobody had released it"))
        if len(findings) == FINDINGS_MAX:
            break
    return findings


def _fits(state: Told, look: Look) -> bool:
    return (
        state.revision == look.revision if look.revision and state.engaged else not state.engaged and not look.revision
    )


def _required(asked: Sequence[tuple[int, int]], since_ns: int, broken: Sequence[Broken], until_ns: int) -> int:
    """The revision up to which all had to be known at `until_ns`; 0 if the way was not whole since `since_ns`."""
    if any(each.began_ns < until_ns and each.ended_ns > since_ns for each in broken):
        return 0
    return max((revision for acknowledged_ns, revision in asked if acknowledged_ns <= since_ns), default=0)
