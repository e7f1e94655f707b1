"""A run as a picture: faults, leaders, answers per second, and what failed. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from chaos.real.report import Led, Report, Strike
from controlplane.checking.pictures import Mark, Span, timeline

_STEP_S = 0.25
_MARKS_MAX = 400


def drawn(report: Report, began_ns: int, answered_ns: Sequence[int], failed_ns: Sequence[int]) -> str:
    """The picture of one run, as SVG. Times are ns on the clock of its history."""
    answered = [(at - began_ns) / 1e9 for at in answered_ns]
    failed = [(at - began_ns) / 1e9 for at in failed_ns]
    healed = [each.healed_s or each.began_s for each in report.strikes]
    seconds = max([report.seconds, *healed, *answered[-1:], *failed[-1:]])
    return timeline(
        f"{report.workload} under {report.nemesis}, seed {report.seed}: {report.verdict}",
        seconds,
        faults=[_span(each, seconds) for each in report.strikes],
        lanes={"leader": list(_leaders(report.leaders, seconds))},
        rates={"answers/s": _rate(answered, seconds), "failures/s": _rate(failed, seconds)},
        marks=[*_served(report.strikes), *(Mark(at, "an operation failed") for at in failed[:_MARKS_MAX])],
    )


def _span(strike: Strike, seconds: float) -> Span:
    return Span(strike.began_s, strike.healed_s or seconds, strike.fault)


def _served(strikes: Iterable[Strike]) -> list[Mark]:
    return [Mark(each.served_s, f"served after {each.fault}", bad=False) for each in strikes if each.served_s]


def _leaders(leaders: Sequence[Led], seconds: float) -> Iterable[Span]:
    ends = [each.at_s for each in leaders[1:]] + [seconds]
    for led, end_s in zip(leaders, ends, strict=False):
        yield Span(max(0.0, led.at_s), end_s, f"{led.leader}, term {led.term}")


def _rate(times: Iterable[float], seconds: float) -> list[tuple[float, float]]:
    steps = Counter(int(at // _STEP_S) for at in times)
    return [(step * _STEP_S, steps[step] / _STEP_S) for step in range(int(seconds // _STEP_S) + 1)]
