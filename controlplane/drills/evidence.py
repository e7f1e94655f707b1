"""PURE. What a drill showed, computed from the history of its clients and the times of its faults.

Whoever has a record and its history can call `measure` again and must get the same.

1. An acknowledged write is a compare-and-swap that was answered with a new version.
2. The recovery time is the longest time without any acknowledged write, from the first fault to the end: nobody has to
   guess when a service was "down", and a region that stumbles twice is not better than one that falls once.
3. A write is lost if it was acknowledged and another value stands at its version, or the version read at the end is
   lower. A read is stale if it shows less than what somebody had been told before it began.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from controlplane.checking.histories import Event, History, Operation, Phase, Value, pair
from controlplane.checking.linearizability import check
from controlplane.checking.models import Lease, Register
from controlplane.limits import MIRROR_AGE_MAX_MS

KILL_BOUND_MS: Final = MIRROR_AGE_MAX_MS
"""After a kill is confirmed, nobody who asks its mirror may act later than this."""
KILL_CONFIRMED_MORE_MS: Final = 3_000
"""A kill that is asked for right after a fault is confirmed so long after the region serves again, at the latest."""
ACKNOWLEDGED_MIN: Final = 50
CAUGHT_UP_MS_MAX: Final = 15_000
"""Regions try to reach each other every two seconds, at most."""
VIEW_AGE_LESS_MS: Final = 2_500
"""A copy's age is looked at now and then: it need not have been seen as old as the cut lasted."""
REPLICATION_MS_MAX: Final = 30_000
NOT_CHECKED: Final = "not checked"
"""The rule of a claim about something that nobody could see; its target says why."""

_REGISTER_KINDS: Final = frozenset({"create", "cas", "read"})
_MS: Final = 1_000_000
_NOTHING: Final[tuple[int, Value]] = (-1, None)


@dataclass(frozen=True, slots=True)
class Window:
    """From the first fault to the end of the load, in ns of the history's clock."""

    begin_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What can be computed from the history. Milliseconds count from the first fault."""

    acknowledged: int
    unknown: int
    failed: int
    recovery_ms: int
    agents_silence_ms: int
    first_failed_ms: int | None
    first_good_ms: int | None
    lost_writes: int
    stale_reads: int
    linearizable: str
    leases: str
    fences_reversed: int
    fencing_refusals: int
    kill_confirmed_ms: int | None
    acted_after_kill: int
    stopped_after_ms: int | None
    """From the confirmation of the kill to the last act of anyone."""

    @property
    def unknown_percent(self) -> int:
        """Share of writes with an unknown outcome, rounded up."""
        return -(-100 * self.unknown // max(1, self.acknowledged + self.unknown + self.failed))


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence of a record: what was wanted, what was."""

    name: str
    rule: str
    """"at most", "at least" or "is"; or `NOT_CHECKED`."""
    target: int | str
    actual: int | str | None
    computed: bool
    """Whether anyone with the history can compute it again."""

    @property
    def passed(self) -> bool | None:
        """Whether what was is what was wanted; None: nobody could see it."""
        if self.rule == NOT_CHECKED:
            return None
        if isinstance(self.actual, int) and isinstance(self.target, int):
            return {"at most": self.actual <= self.target, "at least": self.actual >= self.target}.get(
                self.rule, self.actual == self.target
            )
        return self.actual == self.target

    @property
    def says(self) -> str:
        """The claim in words."""
        if self.rule == NOT_CHECKED:
            return f"{self.name.replace('_', ' ')}: NOT CHECKED, {self.target}"
        wanted = "" if self.rule == "is" else f"{self.rule} "
        return f"{self.name.replace('_', ' ')}: {self.actual} (wanted {wanted}{self.target})"


@dataclass(frozen=True, slots=True)
class Seen:
    """What only the one who ran the drill could see."""

    faults_observed: str
    replicas: str
    replication_ms: int | None
    votes: str = ""
    """For a replaced node: "after catching up", or what it did instead."""
    diverged_entries: int = 0
    """Entries that the cut off leader held and could not commit, at most."""
    snapshot: str = "no"
    """Whether the leader was seen to send the rejoining node a snapshot."""
    links_down: str = ""
    """Of regions that were cut off: "all" if the leader said so of each, or those of which it did not."""
    isolated: str = "no"
    """Whether the leader was seen to have no link with any region."""
    view_age_ms: int = 0
    """How old the copy of each region that was cut off became at least."""
    caught_up_ms: int | None = None
    """How long after healing every copy was of a moment after it."""
    stops_lost: int = 0
    """Stops of other regions that were in force before and were not any more while they were cut off."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the drill had to show beyond what every drill has to."""

    rto_target_ms: int
    fencing: bool
    kill_switch: bool
    replaced: str
    rejoins: str = ""
    by_snapshot: bool = False
    unknown_percent_max: int = 5
    cut_ms: int = 0
    """How long other regions were to be cut off; 0: they were not."""
    isolated: bool = False
    moved: bool = False
    """A home is moved, and nothing broken."""


def measure(events: Sequence[Event], window: Window, agents: Collection[int]) -> Measured:
    """Compute everything; `agents` are the processes that go where the SDK takes them. Raises `HistoryInvalid`."""
    history = pair(events)
    writes = [operation for operation in history.operations if operation.kind == "cas"]
    acks = [operation for operation in writes if not operation.unknown and operation.result is not None]
    registers = [operation for operation in history.operations if operation.kind in _REGISTER_KINDS]
    leases = [operation for operation in history.operations if operation.key == "lease"]
    first_failed = _first_failed(events, window)
    confirmed = _first_return(history, "engage")
    acted = _acted(history, confirmed, _first_call(history, "release"))
    return Measured(
        acknowledged=len(acks),
        unknown=sum(operation.unknown for operation in writes),
        failed=sum(operation.kind == "cas" for operation in history.failures),
        recovery_ms=_silence_ms(acks, window),
        agents_silence_ms=_silence_ms([each for each in acks if each.process in agents], window),
        first_failed_ms=_since(window, first_failed),
        first_good_ms=_since(window, None if first_failed is None else _next_return(acks, first_failed)),
        lost_writes=_lost(registers),
        stale_reads=_stale(registers),
        linearizable=check(registers, Register()).verdict.value,
        leases=check(leases, Lease()).verdict.value,
        fences_reversed=_reversed(history),
        fencing_refusals=sum(each.kind == "act" and each.result is False for each in history.operations),
        kill_confirmed_ms=_since(window, confirmed),
        acted_after_kill=0 if confirmed is None else sum(at > confirmed + KILL_BOUND_MS * _MS for at in acted),
        stopped_after_ms=None if confirmed is None else (max(acted, default=confirmed) - confirmed) // _MS,
    )


def claims(measured: Measured, seen: Seen, wanted: Wanted) -> list[Claim]:
    """Everything that a drill of this kind has to show, with what it did show."""
    found = [
        Claim("recovery_ms", "at most", wanted.rto_target_ms, measured.recovery_ms, True),
        Claim("lost_writes", "is", 0, measured.lost_writes, True),
        Claim("stale_reads", "is", 0, measured.stale_reads, True),
        Claim("linearizable", "is", "linearizable", measured.linearizable, True),
        Claim("leases", "is", "linearizable", measured.leases, True),
        Claim("fences_reversed", "is", 0, measured.fences_reversed, True),
        Claim("fencing_refusals", "at least", int(wanted.fencing), measured.fencing_refusals, True),
        Claim("unknown_percent", "at most", wanted.unknown_percent_max, measured.unknown_percent, True),
        Claim("acknowledged_writes", "at least", ACKNOWLEDGED_MIN, measured.acknowledged, True),
        *([] if wanted.moved else [Claim("faults_observed", "is", "all", seen.faults_observed, False)]),
        Claim("replicas", "is", "equal", seen.replicas, False),
        Claim("full_replication_ms", "at most", REPLICATION_MS_MAX, seen.replication_ms, False),
    ]
    if wanted.kill_switch:
        confirmed_ms_max = wanted.rto_target_ms + KILL_CONFIRMED_MORE_MS
        found.append(Claim("kill_confirmed_ms", "at most", confirmed_ms_max, measured.kill_confirmed_ms, True))
        found.append(Claim("acted_after_kill", "is", 0, measured.acted_after_kill, True))
    if wanted.replaced:
        found.append(Claim("replaced_node_votes", "is", "after catching up", seen.votes, False))
    if wanted.rejoins:
        found.append(Claim("diverged_entries", "at least", 1, seen.diverged_entries, False))
    if wanted.by_snapshot:
        found.append(Claim("rejoined_by_snapshot", "is", "yes", seen.snapshot, False))
    return [*found, *_of_regions(seen, wanted)]


def _of_regions(seen: Seen, wanted: Wanted) -> list[Claim]:
    if not wanted.cut_ms:
        return []
    found = [
        Claim("links_down", "is", "all", seen.links_down, False),
        Claim("view_age_ms", "at least", max(0, wanted.cut_ms - VIEW_AGE_LESS_MS), seen.view_age_ms, False),
        Claim("stops_lost", "is", 0, seen.stops_lost, False),
        Claim("caught_up_ms", "at most", CAUGHT_UP_MS_MAX, seen.caught_up_ms, False),
    ]
    return [*found, Claim("isolated_mode_shown", "is", "yes", seen.isolated, False)] if wanted.isolated else found


# -- silence and failures


def _silence_ms(acks: Iterable[Operation], window: Window) -> int:
    """The longest time without a return of these, inside the window."""
    returns = sorted(each.returned for each in acks if window.begin_ns < each.returned < window.end_ns)
    return max(later - earlier for earlier, later in pairwise([window.begin_ns, *returns, window.end_ns])) // _MS


def _first_failed(events: Iterable[Event], window: Window) -> int | None:
    ends = (event.at_ns for event in events if event.kind == "cas" and event.phase in (Phase.FAIL, Phase.INFO))
    return min((at for at in ends if window.begin_ns <= at < window.end_ns), default=None)


def _next_return(acks: Iterable[Operation], after_ns: int) -> int | None:
    return min((each.returned for each in acks if each.called >= after_ns), default=None)


def _since(window: Window, at_ns: int | None) -> int | None:
    return None if at_ns is None else (at_ns - window.begin_ns) // _MS


# -- registers


def _lost(operations: Iterable[Operation]) -> int:
    told: defaultdict[tuple[str, int], set[Value]] = defaultdict(set)
    last: dict[str, tuple[int, Value]] = {}
    for each in operations:
        if each.unknown:
            continue
        if each.kind == "read" and isinstance(each.result, tuple):
            version, value = each.result
            assert isinstance(version, int)
            last[each.key] = (version, value)
        elif each.kind == "cas" and isinstance(each.result, int) and isinstance(each.argument, tuple):
            told[each.key, each.result].add(each.argument[1])
    lost = 0
    for (key, version), values in told.items():
        at_end, value = last.get(key, _NOTHING)
        lost += len(values) - 1 + (at_end < version or (at_end == version and value not in values))
    return lost


def _stale(operations: Iterable[Operation]) -> int:
    keys: defaultdict[str, list[Operation]] = defaultdict(list)
    for each in operations:
        if not each.unknown and _version(each) is not None:
            keys[each.key].append(each)
    return sum(_stale_of(each) for each in keys.values())


def _stale_of(operations: Sequence[Operation]) -> int:
    by_return = sorted(operations, key=lambda each: each.returned)
    returns = [each.returned for each in by_return]
    newest, known = 0, []
    for each in by_return:
        newest = max(newest, _version(each) or 0)
        known.append(newest)
    stale = 0
    for each in operations:
        before = bisect_left(returns, each.called)
        stale += each.kind == "read" and before > 0 and (_version(each) or 0) < known[before - 1]
    return stale


def _version(operation: Operation) -> int | None:
    """The version that somebody was told."""
    found = operation.result[0] if isinstance(operation.result, tuple) else operation.result
    return found if isinstance(found, int) else None


# -- fences and kills


def _reversed(history: History) -> int:
    """Accepted acts that began after an act under a greater fence had been accepted."""
    acts = [each for each in history.operations if each.kind == "act" and each.result is True and not each.unknown]
    by_return = sorted(acts, key=lambda each: each.returned)
    returns = [each.returned for each in by_return]
    greatest, known = -1, []
    for each in by_return:
        greatest = max(greatest, _fence(each))
        known.append(greatest)
    reversed_acts = 0
    for each in acts:
        before = bisect_left(returns, each.called)
        reversed_acts += before > 0 and _fence(each) < known[before - 1]
    return reversed_acts


def _fence(operation: Operation) -> int:
    return operation.argument if isinstance(operation.argument, int) else -1


def _first_return(history: History, kind: str) -> int | None:
    return min((each.returned for each in history.operations if each.kind == kind and not each.unknown), default=None)


def _first_call(history: History, kind: str) -> int | None:
    return min((each.called for each in (*history.operations, *history.failures) if each.kind == kind), default=None)


def _acted(history: History, confirmed: int | None, released: int | None) -> list[int]:
    """When somebody found itself permitted, between the confirmation of the kill and the first try to release it."""
    if confirmed is None:
        return []
    return [
        each.called
        for each in history.operations
        if each.kind == "permitted"
        and each.result is True
        and each.called > confirmed
        and (released is None or each.called < released)
    ]
