"""Many simulated runs, one per seed, in this process or in several; and what they showed together."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
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

    def add(self, result: Result, cpu_s: float) -> None:
        """Count one run in."""
        self.runs += 1
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
    with _runner(settings, jobs) as run:
        for result, cpu_s in run(seeds):
            report.add(result, cpu_s)
            report.wall_s = time.monotonic() - began
            seen(report)
            if report.wall_s > wall_s_max or (stop_at is not None and len(report.violations) >= stop_at):
                break
    return report


_Run = Callable[[Iterable[int]], Iterator[tuple[Result, float]]]


@contextmanager
def _runner(settings: Settings, jobs: int) -> Iterator[_Run]:
    one = partial(run_one, settings)
    if jobs == 1:
        yield partial(map, one)
        return
    # A fresh interpreter each: nothing is shared but the seeds.
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield partial(pool.imap, one)
