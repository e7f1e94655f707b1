"""PURE. A drill as a picture: faults, who led, how many writes were acknowledged each second, and what failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from controlplane.checking.histories import Event, Phase
from controlplane.checking.pictures import Mark, Span, timeline
from controlplane.drills.runner import STRIKES, Course, Happening

_MARKS_MAX = 400


def draw(course: Course) -> str:
    """Return the picture as SVG."""
    end_s = _s(max(course.end_ns, 1))
    events = course.recorder.events
    return timeline(
        f"{course.plan.scenario}, {course.plan.title}",
        end_s,
        faults=[Span(_s(each.at_ns), _s(each.until_ns), each.says) for each in course.timeline if each.what in STRIKES],
        lanes={"leader": _leaders(course.timeline, end_s)},
        rates={"writes/s": _rate(events, end_s)},
        marks=[Mark(_s(each.at_ns), f"{each.kind} {each.value}") for each in _failed(events)][:_MARKS_MAX],
    )


def _leaders(happenings: Iterable[Happening], end_s: float) -> list[Span]:
    changes = [each for each in happenings if each.what == "leader"]
    ends = [*(_s(each.at_ns) for each in changes[1:]), end_s]
    return [Span(_s(each.at_ns), end, each.node) for each, end in zip(changes, ends, strict=False)]


def _rate(events: Iterable[Event], end_s: float) -> Sequence[tuple[float, float]]:
    each_second = Counter(
        event.at_ns // 1_000_000_000
        for event in events
        if event.kind == "cas" and event.phase is Phase.OK and event.value is not None
    )
    return [(second + 0.5, float(each_second[second])) for second in range(int(end_s))]


def _failed(events: Iterable[Event]) -> list[Event]:
    return [event for event in events if event.kind == "cas" and event.phase in (Phase.FAIL, Phase.INFO)]


def _s(at_ns: int) -> float:
    return at_ns / 1e9
