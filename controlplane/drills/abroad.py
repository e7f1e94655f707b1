"""PURE. What a drill showed of several regions, computed from the history: stops, a loss, a home that moves.

Whoever has the record and its history can compute it again, as with `evidence`.

1. *Looks.* At every node of every region where somebody may look, an agent asks its mirror again and again which of the
   drill's stops are in force ("WORD@REGION"), or finds that it cannot know (STALE), which stops it as well.
2. A region was cut off for certain from `cut_ns` to `held_ns`, and not any more from `healed_ns` on: what faults are
   asked for and what they do is some milliseconds apart.
3. What nobody could see is said to be not checked; it is neither passed nor failed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from controlplane.checking.histories import NEVER, Event, History, Operation, Value, pair
from controlplane.drills.evidence import CAUGHT_UP_MS_MAX, KILL_BOUND_MS, NOT_CHECKED, VIEW_AGE_LESS_MS, Claim

STOPS: Final = "stops"
LOSS: Final = "loss"
MOVE: Final = "move"
AWAY, BACK = "away", "back"
"""The two moves of a home."""

HOME: Final = "home"
"""Whose last state others are compared with."""
STALE: Final = "stale"
BEFORE, DURING, BOTH = "before", "during", "both"
"""Words: thrown in each region before the cut and released while it lasts; thrown meanwhile; thrown meanwhile by all,
and released by one after the other."""
REFUSED_MS_MAX: Final = 2_000
"""So soon after somebody asked for a stop every node of that region heeds it, unless it is cut off from the region."""
LOOKS_MIN: Final = 20
"""Of each agent."""
READS_MIN: Final = 5
"""Of the copy, at each node, while its home is lost."""
ACKNOWLEDGED_MIN: Final = 3
"""Writes of each side, under each home that a partition has in turn."""
UNREACHABLE: Final = "HOME_UNREACHABLE"
_LATE_MS: Final = 1_500
"""What held to the end of the cut was seen so shortly before it."""
_MS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Setting:
    """Where it took place. Times are nanoseconds of the history's clock."""

    about: str
    home: str
    watched: Mapping[str, Sequence[str]]
    """Region → the nodes at which somebody looked."""
    cut_off: Sequence[str] = ()
    """The regions that `home` was cut off from."""
    apart: Sequence[str] = ()
    """Nodes of `home` that were cut off from it as well."""
    lost: str = ""
    copied: str = ""
    """A partition at home in `lost`, of which there is a copy here; empty: none was named."""
    cut_ns: int = 0
    held_ns: int = 0
    healed_ns: int = 0
    to: str = ""
    moved: str = ""
    """A partition at home in `home`, whose home was moved to `to` and back."""
    pause_ms_max: int = 0
    linked: Sequence[str] = ()
    """The regions that `home` has links with, where a home is moved."""

    @property
    def unchecked(self) -> list[str]:
        """Regions on the other side of the cut, or that may know what is moved, where nobody could look."""
        return sorted({*self.cut_off, *self.linked} - set(self.watched))


@dataclass(frozen=True, slots=True)
class Stops:
    """What became of stops. None: it did not come to that everywhere."""

    refused_ms: int | None
    """From asking for a stop to the first refusal at the slowest node of the region where it was thrown."""
    refused_there_ms: int | None
    """The same of the other regions."""
    acted_late: int
    revived: int
    """Looks that found somebody free who had been stopped, before a release can have been heard of."""
    crossed: int
    """Looks that knew of what was thrown on the other side of the cut."""
    held_while_cut: int
    """Agents that were still stopped when the cut ended by what had been released on its other side."""
    heard_ms: int | None
    """From healing to the moment when everybody knew of everything thrown meanwhile."""
    held_by_others: int
    """Agents that saw one region release what the others still held, and stayed stopped."""
    freed_ms: int | None
    """From the last release to the moment when everybody was free."""
    left_stopped: int
    looks_min: int
    refused_at_ms: Mapping[str, int | None]
    """By agent, of the region where it was thrown: from asking for a stop to the first refusal, the slowest of all."""
    heard_at_ms: Mapping[str, int | None]
    """By agent, of the other regions: from healing to when all was known there."""


@dataclass(frozen=True, slots=True)
class Loss:
    """What became of a region that lost another one. Of calls and copies, what was asked while it was lost."""

    calls_before: int = 0
    calls_refused: int = 0
    calls_answered: int = 0
    calls_otherwise: int = 0
    copies_read: int = 0
    copies_failed: int = 0
    copies_back: int = 0
    copies_age_ms: int = 0
    configurations_kept: int = 0
    configurations_lost: int = 0
    written_there: int = 0
    lost: int = 0
    twice: int = 0
    unordered: int = 0
    unequal: int = 0
    compared: int = 0


@dataclass(frozen=True, slots=True)
class Moved:
    """What became of a partition whose home was moved and moved back. None: it did not come to that."""

    away_pause_ms: int | None
    """The longest time without an acknowledged write of the client that waited longest, from asking for the move to
    asking for the next, or to the last write of all that was asked for."""
    back_pause_ms: int | None
    under_each_home: int
    """Acknowledged writes of a side under one of the homes: where there were least."""
    lost: int
    reused: int
    gaps: int
    two_homes: int
    """Writes acknowledged under an earlier epoch than one before them, or by two regions in one epoch."""
    elsewhere: int
    """Writes answered by another region, or under another epoch, than the home of that time."""
    reads_min: int
    """LOCAL reads that were answered, at the node where there were least."""
    reads_failed: int
    reads_back: int
    reads_wrong: int
    """Reads of what nobody wrote, or of something else than was acknowledged at that version."""
    epochs: int | None
    """How much higher the epoch is at the end."""
    at_home: int
    """Regions that say at the end that the home is where it was, in the same epoch."""
    compared: int
    unequal: int
    quarantined: int
    paused_ms: Mapping[str, int]
    """By move and side."""


class _Look(NamedTuple):
    at_ns: int
    found: frozenset[str] | None
    """None: the agent could not know."""

    def lacks(self, stop: str) -> bool:
        return self.found is not None and stop not in self.found


class _Throw(NamedTuple):
    """One stop. `freed_ns` is when somebody first asked to release it."""

    word: str
    region: str
    asked_ns: int
    confirmed_ns: int
    freed_ns: int

    @property
    def stop(self) -> str:
        return f"{self.word}@{self.region}"


def named(region: str, node: str) -> str:
    """What an agent that looks is called in the history."""
    return f"{region}/{node}"


def measure(events: Sequence[Event], setting: Setting) -> Stops | Loss | Moved:
    """Compute everything that the history tells. Raises `HistoryInvalid`."""
    history = pair(events)
    if setting.about == MOVE:
        return _moved(history, setting)
    return _loss(history, setting) if setting.about == LOSS else _stops(history, setting)


def claims(measured: Stops | Loss | Moved, setting: Setting) -> list[Claim]:
    """What such a drill has to show, with what it did show."""
    if isinstance(measured, Moved):
        return _claims_of_move(measured, setting)
    if isinstance(measured, Loss):
        return _claims_of_loss(measured, setting)
    return _claims_of_stops(measured, setting)


# -- stops


@dataclass(slots=True)
class _Seen:
    setting: Setting
    throws: list[_Throw]
    looks: dict[str, list[_Look]]
    """By agent, in order."""
    agents: dict[str, str] = field(init=False)
    """Agent → its region."""
    apart: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        self.agents = {named(at, node): at for at, nodes in self.setting.watched.items() for node in nodes}
        self.apart = frozenset(named(self.setting.home, node) for node in self.setting.apart)

    def agents_of(self, region: str) -> list[str]:
        return [agent for agent, at in self.agents.items() if at == region]

    def agents_elsewhere(self, region: str) -> list[str]:
        return [agent for agent, at in self.agents.items() if at != region]

    def meanwhile(self) -> list[_Throw]:
        """What was thrown while the regions were apart."""
        return [each for each in self.throws if each.word in (DURING, BOTH)]


def _stops(history: History, setting: Setting) -> Stops:
    seen = _Seen(setting, _throws(history), _looks(history, setting))
    near = {agent: _refused_ms(seen, agent, seen.meanwhile()) for agent in seen.agents}
    far = {agent: _heard_ms(seen, agent) for agent in seen.agents}
    certain = [agent for agent in seen.agents if agent not in seen.apart]
    return Stops(
        refused_ms=_worst([near[agent] for agent in certain if seen.agents[agent] == setting.home]),
        refused_there_ms=_worst([near[agent] for agent in certain if seen.agents[agent] != setting.home]),
        acted_late=sum(_acted_late(seen, each) for each in seen.throws),
        revived=sum(_revived(seen, each) for each in seen.throws),
        crossed=sum(_crossed(seen, each) for each in seen.meanwhile()),
        held_while_cut=sum(_held_while_cut(seen, each) for each in seen.throws if each.word == BEFORE),
        heard_ms=_worst(list(far.values())),
        held_by_others=_held_by_others(seen),
        freed_ms=_freed_ms(seen),
        left_stopped=sum(bool(looks) and looks[-1].found != frozenset() for looks in seen.looks.values()),
        looks_min=min((len(looks) for looks in seen.looks.values()), default=0),
        refused_at_ms=near,
        heard_at_ms=far,
    )


def _looks(history: History, setting: Setting) -> dict[str, list[_Look]]:
    found: dict[str, list[_Look]] = {
        named(region, node): [] for region, nodes in setting.watched.items() for node in nodes
    }
    for each in history.operations:
        if each.kind == "looks" and isinstance(each.result, tuple) and each.key in found:
            stops = frozenset(str(stop) for stop in each.result)
            found[each.key].append(_Look(each.called, None if STALE in stops else stops))
    return found


def _throws(history: History) -> list[_Throw]:
    asked: dict[tuple[str, str], int] = {}
    confirmed: dict[tuple[str, str], int] = {}
    freed: dict[tuple[str, str], int] = {}
    for each in (*history.operations, *history.failures):
        if each.kind not in ("throws", "frees"):
            continue
        of = (each.key, str(each.argument))
        begun = asked if each.kind == "throws" else freed
        begun[of] = min(each.called, begun.get(of, NEVER))
        if each.kind == "throws" and each.result is True:
            confirmed[of] = min(each.returned, confirmed.get(of, NEVER))
    return [_Throw(*of, at, confirmed.get(of, NEVER), freed.get(of, NEVER)) for of, at in sorted(asked.items())]


def _refused_ms(seen: _Seen, agent: str, throws: Iterable[_Throw]) -> int | None:
    """Until this agent heeded all that its own region threw; one that is cut off from it, until it could not know."""
    took = []
    for each in throws:
        if each.region == seen.agents[agent]:
            apart, looks = agent in seen.apart, [look for look in seen.looks[agent] if look.at_ns > each.asked_ns]
            knows = (look.at_ns for look in looks if each.stop in (look.found or ()) or (apart and look.found is None))
            first = next(knows, None)
            took.append(None if first is None else (first - each.asked_ns) // _MS)
    return _worst(took)


def _acted_late(seen: _Seen, throw: _Throw) -> int:
    """Acts in the region where it was thrown, longer after it was confirmed than any mirror may be old."""
    since = throw.confirmed_ns + KILL_BOUND_MS * _MS
    return sum(
        look.lacks(throw.stop) and since < look.at_ns < throw.freed_ns
        for agent in seen.agents_of(throw.region)
        for look in seen.looks[agent]
    )


def _revived(seen: _Seen, throw: _Throw) -> int:
    freed_ns, setting = throw.freed_ns, seen.setting
    # A release that was made while the regions were apart cannot be known before they are together again.
    abroad_ns = max(freed_ns, setting.held_ns) if freed_ns < setting.held_ns else freed_ns
    count = 0
    for agent, region in seen.agents.items():
        until_ns = freed_ns if region == throw.region else abroad_ns
        known = False
        for look in seen.looks[agent]:
            count += known and look.lacks(throw.stop) and look.at_ns < until_ns
            known = known or (look.found is not None and throw.stop in look.found)
    return count


def _crossed(seen: _Seen, throw: _Throw) -> int:
    return sum(
        look.found is not None and throw.stop in look.found and look.at_ns < seen.setting.held_ns
        for agent in seen.agents_elsewhere(throw.region)
        for look in seen.looks[agent]
    )


def _held_while_cut(seen: _Seen, throw: _Throw) -> int:
    end = seen.setting.held_ns
    begin = max(throw.freed_ns, end - _LATE_MS * _MS)
    return sum(
        any(look.found and throw.stop in look.found and begin < look.at_ns < end for look in seen.looks[agent])
        for agent in seen.agents_elsewhere(throw.region)
    )


def _heard_ms(seen: _Seen, agent: str) -> int | None:
    """Until this agent knew of all that other regions had thrown meanwhile."""
    took: list[int | None] = []
    for each in seen.meanwhile():
        if each.region != seen.agents[agent]:
            first = next((look.at_ns for look in seen.looks[agent] if each.stop in (look.found or ())), None)
            took.append(None if first is None else max(0, first - seen.setting.healed_ns) // _MS)
    return _worst(took)


def _held_by_others(seen: _Seen) -> int:
    every = [each for each in seen.throws if each.word == BOTH]
    home = next((each for each in every if each.region == seen.setting.home), None)
    others = frozenset(each.stop for each in every if each is not home)
    if home is None or not others:
        return 0
    last_ns = min(each.freed_ns for each in every if each is not home)
    return sum(
        any(
            look.found is not None and home.stop not in look.found and others <= look.found
            for look in looks
            if home.freed_ns < look.at_ns < last_ns
        )
        for looks in seen.looks.values()
    )


def _freed_ms(seen: _Seen) -> int | None:
    last_ns = max((each.freed_ns for each in seen.throws), default=NEVER)
    free = [
        next((look.at_ns for look in looks if look.at_ns > last_ns and look.found == frozenset()), None)
        for looks in seen.looks.values()
    ]
    return _worst([None if at is None else (at - last_ns) // _MS for at in free])


def _worst(took: Sequence[int | None]) -> int | None:
    known = [each for each in took if each is not None]
    return max(known) if known and len(known) == len(took) else None


def _claims_of_stops(measured: Stops, setting: Setting) -> list[Claim]:
    every = [named(region, node) for region, nodes in setting.watched.items() for node in nodes]
    abroad = [region for region in setting.watched if region != setting.home]
    found = [
        Claim("refused_ms", "at most", REFUSED_MS_MAX, measured.refused_ms, True),
        Claim("acted_late", "is", 0, measured.acted_late, True),
        Claim("revived", "is", 0, measured.revived, True),
        Claim("freed_ms", "at most", CAUGHT_UP_MS_MAX, measured.freed_ms, True),
        Claim("left_stopped", "is", 0, measured.left_stopped, True),
        Claim("looks_of_each_agent", "at least", LOOKS_MIN, measured.looks_min, True),
    ]
    if abroad:
        # Of each region's stop, all agents of the others; those cut off from their own region know nothing for certain.
        hearers = (len(every) - len(setting.apart)) * (len(setting.watched) - 1)
        found += [
            Claim("refused_there_ms", "at most", REFUSED_MS_MAX, measured.refused_there_ms, True),
            Claim("crossed_the_cut", "is", 0, measured.crossed, True),
            Claim("held_while_cut", "at least", hearers, measured.held_while_cut, True),
            Claim("heard_after_healing_ms", "at most", CAUGHT_UP_MS_MAX, measured.heard_ms, True),
            Claim("held_by_others", "is", len(every), measured.held_by_others, True),
        ]
    return [*found, *_unchecked("stops_in", setting.unchecked)]


# -- a loss


def _loss(history: History, setting: Setting) -> Loss:
    failed = [each for each in _failed(history, "calls") if _during(each, setting)]
    ended = [each for each in _answered(history, "calls") if _during(each, setting)]
    refused = sum(each.result == UNREACHABLE for each in failed)
    unknown = sum(each.unknown for each in ended)
    asked = _answered(history, "copies")
    reads = [each for each in asked if not each.unknown]
    here = [each for each in reads if _during(each, setting)]
    # A read that never ended is as good as one that failed.
    unread = [*_failed(history, "copies"), *(each for each in asked if each.unknown)]
    ages = [
        max((_number(each, 1) for each in here if each.key == node), default=0)
        for node in setting.watched.get(setting.home, ())
    ]
    kept, lost = _configurations(history, setting)
    passed = _passed(history)
    compared = {each.key: each.result for each in _answered(history, "final") if each.key != setting.lost}
    there = [each.result for each in _answered(history, "final") if each.key == setting.lost]
    return Loss(
        calls_before=sum(not each.unknown and each.returned < setting.cut_ns for each in _answered(history, "calls")),
        calls_refused=refused,
        calls_answered=len(ended) - unknown,
        calls_otherwise=len(failed) - refused + unknown,
        copies_read=len(here),
        copies_failed=sum(_during(each, setting) for each in unread),
        copies_back=_back(reads),
        copies_age_ms=min(ages, default=0),
        configurations_kept=kept,
        configurations_lost=lost,
        written_there=len(passed.told),
        lost=sum(not passed.came(each) for each in passed.told),
        twice=sum(len(revisions) - len({*revisions}) for revisions in passed.copied.values()),
        unordered=sum(list(revisions) != sorted(revisions) for revisions in passed.copied.values()),
        unequal=sum(not there or each != there[-1] for each in compared.values()),
        compared=len(compared) if there else 0,
    )


def _answered(history: History, kind: str) -> list[Operation]:
    return [each for each in history.operations if each.kind == kind]


def _failed(history: History, kind: str) -> list[Operation]:
    return [each for each in history.failures if each.kind == kind]


def _during(operation: Operation, setting: Setting) -> bool:
    """Whether all of it lies where nothing could pass. What never ended does so if it began there."""
    end = operation.called if operation.unknown else operation.returned
    return setting.cut_ns < operation.called and end < setting.held_ns


def _number(operation: Operation, place: int) -> int:
    found = operation.result[place] if isinstance(operation.result, tuple) else 0
    return found if isinstance(found, int) else 0


def _back(reads: Iterable[Operation]) -> int:
    """Reads of a copy that showed less than one at the same node before."""
    newest: defaultdict[str, int] = defaultdict(int)
    back = 0
    for each in reads:
        back += _number(each, 0) < newest[each.key]
        newest[each.key] = max(newest[each.key], _number(each, 0))
    return back


def _configurations(history: History, setting: Setting) -> tuple[int, int]:
    """Looks at agents' configurations while the region was lost: those that were there, those missing or older."""
    newest: defaultdict[str, int] = defaultdict(int)
    contents: dict[int, object] = {}
    kept = lost = 0
    for each in _answered(history, "configures"):
        revision = _number(each, 0) if isinstance(each.result, tuple) else -1
        worse = revision < newest[each.key] or contents.setdefault(revision, each.result) != each.result
        newest[each.key] = max(newest[each.key], revision)
        if _during(each, setting):
            kept, lost = kept + (not worse), lost + worse
    return kept, lost


class _Passed(NamedTuple):
    """What was acknowledged at home, and what came of it here: (name, revision)."""

    told: list[tuple[str, int]]
    copied: Mapping[str, list[int]]
    listed: Mapping[str, list[int]]

    def came(self, change: tuple[str, int]) -> bool:
        """A listing is as good as all that came before it."""
        name, revision = change
        later = (each >= revision for each in self.listed.get(name, ()))
        return revision in self.copied.get(name, ()) or any(later)


def _passed(history: History) -> _Passed:
    copied: defaultdict[str, list[int]] = defaultdict(list)
    listed: defaultdict[str, list[int]] = defaultdict(list)
    for each in history.operations:
        if each.kind in ("copied", "listed") and isinstance(each.result, int):
            (copied if each.kind == "copied" else listed)[each.key].append(each.result)
    told = [(each.key, each.result) for each in _answered(history, "writes") if isinstance(each.result, int)]
    return _Passed(told, copied, listed)


def _claims_of_loss(measured: Loss, setting: Setting) -> list[Claim]:
    nodes = len(setting.watched.get(setting.home, ()))
    found = [
        Claim("configurations_kept", "at least", LOOKS_MIN, measured.configurations_kept, True),
        Claim("configurations_lost", "is", 0, measured.configurations_lost, True),
    ]
    if not setting.copied:
        why = f"no partition of {setting.lost} was named: --copy PARTITION"
        names = ("calls_to_the_lost_region", "copies_during_the_loss", "copies_after_the_loss")
        return [*found, *(Claim(name, NOT_CHECKED, why, None, False) for name in names)]
    age_ms = max(0, (setting.held_ns - setting.cut_ns) // _MS - VIEW_AGE_LESS_MS)
    found += [
        Claim("calls_answered_before", "at least", 1, measured.calls_before, True),
        Claim("calls_said_unreachable", "at least", nodes, measured.calls_refused, True),
        Claim("calls_answered_by_nobody", "is", 0, measured.calls_answered, True),
        Claim("calls_failed_otherwise", "is", 0, measured.calls_otherwise, True),
        Claim("copies_read", "at least", READS_MIN * nodes, measured.copies_read, True),
        Claim("copies_not_readable", "is", 0, measured.copies_failed, True),
        Claim("copies_went_back", "is", 0, measured.copies_back, True),
        Claim("copies_age_ms", "at least", age_ms, measured.copies_age_ms, True),
        Claim("written_there", "at least", 1, measured.written_there, True),
        Claim("copies_lost", "is", 0, measured.lost, True),
        Claim("copies_twice", "is", 0, measured.twice, True),
        Claim("copies_out_of_order", "is", 0, measured.unordered, True),
        Claim("copies_compared", "at least", nodes, measured.compared, True),
        Claim("copies_unequal", "is", 0, measured.unequal, True),
    ]
    return [*found, *_unchecked("writes_meanwhile_in", setting.unchecked)]


# -- a home that moves


class _Write(NamedTuple):
    """An acknowledged compare-and-swap, or creation, of one client."""

    process: int
    side: str
    key: str
    value: str
    version: int
    home: str
    epoch: int
    called: int
    returned: int


class _Home(NamedTuple):
    """A home, and when it was asked for and known to be that. `epoch` 0: it was never told."""

    move: str
    region: str
    epoch: int
    asked_ns: int
    known_ns: int

    def answers(self, write: _Write) -> bool:
        return write.home == self.region and (write.epoch == self.epoch or not self.epoch)


def _moved(history: History, setting: Setting) -> Moved:
    writes, homes = _writes(history), _homes(history, setting)
    finals = {each.key: each.result for each in _answered(history, "final")}
    at_home = finals.pop(HOME, None)
    asked = _answered(history, "writes")
    paused = _paused_ms(writes, [*asked, *_failed(history, "writes")], homes)
    places = {region: _places(history, region) for region in setting.watched}
    reads = [each for each in _answered(history, "reads") if not each.unknown]
    nodes = [named(region, node) for region, every in setting.watched.items() for node in every]
    counts = [
        sum(write.side == side and home.answers(write) for write in writes)
        for side in setting.watched
        for home in homes
        if len(homes) > 2
    ]
    return Moved(
        away_pause_ms=_slowest(paused, AWAY),
        back_pause_ms=_slowest(paused, BACK),
        under_each_home=min(counts, default=0),
        lost=_lost(writes, at_home),
        reused=_reused(writes),
        gaps=_gaps(asked, writes, at_home),
        two_homes=_two_homes(writes),
        elsewhere=sum(not _at_home_then(each, homes) for each in writes),
        reads_min=min((sum(each.key == node for each in reads) for node in nodes), default=0),
        reads_failed=len(_failed(history, "reads")) + sum(each.unknown for each in _answered(history, "reads")),
        reads_back=_back_by_workflow(reads),
        reads_wrong=_wrong(reads, asked, writes),
        epochs=_epochs(setting, places),
        at_home=_at_home(setting, places),
        compared=len(finals) if at_home is not None else 0,
        unequal=sum(each != at_home for each in finals.values()),
        quarantined=sum(told[-1][4] for told in places.values() if told),
        paused_ms={f"{move} {side}": took for (move, side), took in sorted(paused.items())},
    )


def _writes(history: History) -> list[_Write]:
    found = []
    for each in _answered(history, "writes"):
        if not each.unknown and isinstance(each.result, tuple) and isinstance(each.argument, tuple):
            (side, _, value), (version, home, epoch) = each.argument, each.result
            found.append(
                _Write(
                    each.process,
                    str(side),
                    each.key,
                    str(value),
                    _whole(version),
                    str(home),
                    _whole(epoch),
                    each.called,
                    each.returned,
                )
            )
    return sorted(found, key=lambda write: write.returned)


def _places(history: History, region: str) -> list[tuple[str, int, str, int, int]]:
    """What a region said, in order: home, epoch, state, the highest epoch it knows of, how much is in quarantine."""
    found = []
    for each in _answered(history, "places"):
        if each.key == region and isinstance(each.result, tuple):
            home, epoch, state, highest, kept = each.result
            found.append((str(home), _whole(epoch), str(state), _whole(highest), _whole(kept)))
    return found


def _homes(history: History, setting: Setting) -> list[_Home]:
    """The homes that the partition had, one after the other."""
    first = next(iter(_places(history, setting.home)), None)
    found = [] if first is None else [_Home("", first[0], first[1], 0, 0)]
    for each in _answered(history, "moves"):
        region, epoch = each.result if isinstance(each.result, tuple) else (each.argument, 0)
        found.append(_Home(each.key, str(region), _whole(epoch), each.called, each.returned))
    return found


def _at_home(setting: Setting, places: Mapping[str, Sequence[tuple[str, int, str, int, int]]]) -> int:
    """Regions that end up with the home where it was, under the epoch that it says itself."""
    own = places.get(setting.home)
    if not own:
        return 0
    return sum(
        bool(told) and told[-1][:3] == (setting.home, own[-1][1], "home" if region == setting.home else "copy")
        for region, told in places.items()
    )


def _paused_ms(
    writes: Sequence[_Write], asked: Iterable[Operation], homes: Sequence[_Home]
) -> dict[tuple[str, str], int]:
    clients = {write.process: write.side for write in writes if write.version > 1}
    last_ns = max((each.called for each in asked), default=0)
    found: dict[tuple[str, str], int] = {}
    for number, home in enumerate(homes[1:], 1):
        end_ns = homes[number + 1].asked_ns if number + 1 < len(homes) else last_ns
        for process, side in clients.items():
            returns = [each.returned for each in writes if each.process == process]
            marks = [home.asked_ns, *(at for at in returns if home.asked_ns < at < end_ns), end_ns]
            longest = max(later - earlier for earlier, later in pairwise(marks))
            found[home.move, side] = max(max(0, longest) // _MS, found.get((home.move, side), 0))
    return found


def _slowest(paused: Mapping[tuple[str, str], int], move: str) -> int | None:
    return max((took for (of, _), took in paused.items() if of == move), default=None)


def _at_end(at_home: Value) -> dict[str, tuple[int, str]]:
    rows = at_home if isinstance(at_home, tuple) else ()
    return {str(row[0]): (_whole(row[1]), str(row[2])) for row in rows if isinstance(row, tuple)}


def _lost(writes: Iterable[_Write], at_home: Value) -> int:
    """Acknowledged writes that are later than what is there at the end, or in whose place something else is."""
    last = _at_end(at_home)
    lost = 0
    for each in writes:
        version, value = last.get(each.key, (0, ""))
        lost += each.version > version or (each.version == version and each.value != value)
    return lost


def _reused(writes: Sequence[_Write]) -> int:
    return len(writes) - len({(each.key, each.version) for each in writes})


def _gaps(asked: Iterable[Operation], writes: Iterable[_Write], at_home: Value) -> int:
    """Versions up to the last that nobody was told of, and that no write of an unknown outcome explains."""
    told = {(each.key, each.version) for each in writes}
    for each in asked:
        if each.unknown and isinstance(each.argument, tuple):
            told.add((each.key, _whole(each.argument[1]) + 1))
    return sum((key, each) not in told for key, (last, _) in _at_end(at_home).items() for each in range(1, last + 1))


def _two_homes(writes: Sequence[_Write]) -> int:
    """`writes` come by the time they were answered."""
    returns, highest = [each.returned for each in writes], [0]
    for each in writes:
        highest.append(max(highest[-1], each.epoch))
    found = sum(each.epoch < highest[bisect_left(returns, each.called)] for each in writes)
    of_epoch: dict[int, str] = {}
    found += sum(of_epoch.setdefault(each.epoch, each.home) != each.home for each in writes)
    for key in {each.key for each in writes}:
        epochs = [each.epoch for each in sorted(writes, key=lambda each: each.version) if each.key == key]
        found += sum(later < earlier for earlier, later in pairwise(epochs))
    return found


def _at_home_then(write: _Write, homes: Sequence[_Home]) -> bool:
    """Whether who answered was asked to be the home before it ended, and not known to be that no more when it began."""
    for number, home in enumerate(homes):
        gone_ns = homes[number + 1].known_ns if number + 1 < len(homes) else NEVER
        if home.answers(write) and home.asked_ns <= write.returned and write.called <= gone_ns:
            return True
    return False


def _back_by_workflow(reads: Iterable[Operation]) -> int:
    newest: defaultdict[tuple[str, str], int] = defaultdict(int)
    back = 0
    for each in reads:
        of = (each.key, str(each.argument))
        back += _number(each, 0) < newest[of]
        newest[of] = max(newest[of], _number(each, 0))
    return back


def _wrong(reads: Iterable[Operation], asked: Iterable[Operation], writes: Iterable[_Write]) -> int:
    told = {(each.key, each.version): each.value for each in writes}
    meant = {
        (each.key, _whole(each.argument[1]) + 1, each.argument[2]) for each in asked if isinstance(each.argument, tuple)
    }
    wrong = 0
    for each in reads:
        version, value = each.result if isinstance(each.result, tuple) else (0, "")
        key = str(each.argument)
        wrong += told.get((key, _whole(version)), value) != value or (key, _whole(version), value) not in meant
    return wrong


def _epochs(setting: Setting, places: Mapping[str, Sequence[tuple[str, int, str, int, int]]]) -> int | None:
    """By how much the epoch rose above all that any region knew of."""
    if setting.home not in places or not all(places.values()):
        return None
    return places[setting.home][-1][1] - max(told[0][3] for told in places.values())


def _whole(value: Value) -> int:
    return value if isinstance(value, int) else 0


def _claims_of_move(measured: Moved, setting: Setting) -> list[Claim]:
    nodes = sum(len(every) for every in setting.watched.values())
    found = [
        Claim("writes_paused_away_ms", "at most", setting.pause_ms_max, measured.away_pause_ms, True),
        Claim("writes_paused_back_ms", "at most", setting.pause_ms_max, measured.back_pause_ms, True),
        Claim("writes_under_each_home", "at least", ACKNOWLEDGED_MIN, measured.under_each_home, True),
        Claim("moved_writes_lost", "is", 0, measured.lost, True),
        Claim("versions_reused", "is", 0, measured.reused, True),
        Claim("versions_missing", "is", 0, measured.gaps, True),
        Claim("two_homes", "is", 0, measured.two_homes, True),
        Claim("answered_elsewhere", "is", 0, measured.elsewhere, True),
        Claim("local_reads", "at least", READS_MIN, measured.reads_min, True),
        Claim("local_reads_failed", "is", 0, measured.reads_failed, True),
        Claim("local_reads_went_back", "is", 0, measured.reads_back, True),
        Claim("local_reads_wrong", "is", 0, measured.reads_wrong, True),
        Claim("epochs_risen", "is", 2, measured.epochs, True),
        Claim("regions_that_see_it_at_home", "is", len(setting.watched), measured.at_home, True),
        Claim("nodes_compared", "is", nodes, measured.compared, True),
        Claim("nodes_unequal", "is", 0, measured.unequal, True),
        Claim("quarantined", "is", 0, measured.quarantined, True),
    ]
    return [*found, *_unchecked("writes_and_reads_in", setting.unchecked)]


def _unchecked(what: str, regions: Iterable[str]) -> Iterator[Claim]:
    for region in regions:
        why = f"no operator of {region} takes part: --there CONTEXT"
        yield Claim(f"{what}_{region}", NOT_CHECKED, why, None, False)
