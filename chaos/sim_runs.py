"""Many simulated runs, one per seed, in this process or in several; and what they showed together."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from typing import NamedTuple

from chaos.schedule import FAMILIES, FAULTS, make_schedule
from chaos.simulation import Result, Simulation


class Settings(NamedTuple):
    """What the runs of one report have in common."""

    nodes: int = 3
    seconds: float = 60.0
    profile: str = "lan"
    off: frozenset[str] = frozenset()


@dataclass(slots=True)
class Report:
    """What many runs showed."""

    runs: int = 0
    seconds: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[Result] = field(default_factory=list)
    last: Result = field(init=False)  # The last that was counted in.

    def add(self, result: Result, cpu_s: float) -> None:
        """Count one run in."""
        self.runs += 1
        self.last = result
        self.seconds += result.seconds
        self.cpu_s += cpu_s
        self.counts += result.counts
        self.faults += result.faults
        if result.violation:
            self.violations.append(result)

    def faults_of(self, profile: str) -> dict[str, int]:
        """How often each kind of fault happened that `profile` draws."""
        family = FAMILIES.get(profile)
        kinds = family.kinds if family else () if profile == "calm" else FAULTS
        return {kind: self.faults[kind] for kind in sorted(kinds)}

    def missing_faults(self, profile: str) -> list[str]:
        """Kinds of fault that `profile` draws and that never happened."""
        return [kind for kind, count in self.faults_of(profile).items() if not count]


def run_one(settings: Settings, seed: int, *, whole_trace: bool = False) -> tuple[Result, float]:
    """Run one schedule; return what it showed, and the seconds of CPU it took."""
    began = time.process_time()
    schedule = make_schedule(seed, nodes=settings.nodes, seconds=settings.seconds, profile=settings.profile)
    result = Simulation(schedule, off=settings.off, whole_trace=whole_trace).run()
    if not (result.violation or whole_trace):
        result.trace.clear()  # Only read when something is wrong, and long.
        result.timeline.clear()
    return result, time.process_time() - began


def simulate(
    seeds: Iterable[int],
    settings: Settings = Settings(),  # noqa: B008 - immutable.
    *,
    stop_at: int | None = None,
    wall_s_max: float = float("inf"),
    jobs: int = 1,
    seen: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Run one schedule per seed, in `jobs` processes; stop after `stop_at` violations or `wall_s_max` seconds.

    `seen` is called after every run. The results come in the order of the seeds, whatever `jobs` is.
    """
    report, began = Report(), time.monotonic()
    with _runner(jobs) as run:
        for _, result, cpu_s in run((settings, seed) for seed in seeds):
            report.add(result, cpu_s)
            report.wall_s = time.monotonic() - began
            seen(report)
            if report.wall_s > wall_s_max or (stop_at is not None and len(report.violations) >= stop_at):
                break
    return report


ROUND: tuple[tuple[Settings, int], ...] = (
    (Settings(3, profile="lan"), 18),
    (Settings(3, profile="wan"), 10),
    (Settings(3, profile="wild"), 10),
    (Settings(3, profile="wan-wild"), 12),
    (Settings(3, profile="mixed"), 8),
    (Settings(5, profile="lan"), 8),
    (Settings(5, profile="wan"), 4),
    (Settings(5, profile="wild"), 6),
    (Settings(5, profile="wan-wild"), 5),
    (Settings(5, profile="mixed"), 10),
    *((Settings(family.nodes, profile=name), 1) for name, family in FAMILIES.items() if name != "mixed"),
)
"""A hundred schedules: all profiles and families, each with how many."""


def sweep(
    schedules: int, first_seed: int, *, wall_s_max: float, jobs: int, seen: Callable[[Settings, Report], None]
) -> dict[Settings, Report]:
    """Run `schedules` of all profiles and families, round by round; report each apart.

    `seen` is called after every run, with the report that it was counted into.
    """
    reports = {settings: Report() for settings, _ in ROUND}
    began = time.monotonic()
    with _runner(jobs) as run:
        for settings, result, cpu_s in run(islice(_rounds(first_seed), schedules)):
            reports[settings].add(result, cpu_s)
            seen(settings, reports[settings])
            if time.monotonic() - began > wall_s_max:
                break
    return reports


def _rounds(first_seed: int) -> Iterator[_Task]:
    for number in count(0):
        for settings, share in ROUND:
            for seed in range(first_seed + number * share, first_seed + (number + 1) * share):
                yield settings, seed


_Task = tuple[Settings, int]
_Run = Callable[[Iterable[_Task]], Iterator[tuple[Settings, Result, float]]]


def _run_task(task: _Task) -> tuple[Settings, Result, float]:
    return task[0], *run_one(*task)


@contextmanager
def _runner(jobs: int) -> Iterator[_Run]:
    if jobs == 1:
        yield partial(map, _run_task)
        return
    # A fresh interpreter each: nothing is shared but the seeds.
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield partial(pool.imap, _run_task)
