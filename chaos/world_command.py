"""`python -m chaos simulate-fleet`: run schedules of whole fleets, print what happened, fail on any violation."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from chaos.sim_runs import Report
from chaos.simulation import Result
from chaos.world import World
from chaos.world_faults import kinds_of, make_fleet_schedule
from chaos.world_node import FleetParts
from chaos.world_plants import PLANTS

# From this many schedules on, a kind of fault that never happened is a failure of the run.
_ALL_FAULTS_FROM = 200
_VIOLATIONS_SHOWN = 20
MIXED = "mixed"
# Regions of one node are a third of the work, and show as much of what is between regions.
_MIXTURE = (1, 1, 3)


class Settings(NamedTuple):
    """What the runs of one report have in common. `nodes` 0: one or three, by seed."""

    nodes: int = 0
    seconds: float = 60.0
    plant: str = ""

    def nodes_of(self, seed: int) -> int:
        """The nodes of each region in one run."""
        return self.nodes or _MIXTURE[seed % len(_MIXTURE)]


def world_of(settings: Settings, seed: int, *, whole_trace: bool = False) -> World:
    """Return the world of one seed, before its first moment."""
    schedule = make_fleet_schedule(seed, nodes=settings.nodes_of(seed), seconds=settings.seconds)
    return World(schedule, parts=PLANTS.get(settings.plant, FleetParts()), whole_trace=whole_trace)


def run_one(settings: Settings, seed: int) -> tuple[Result, float]:
    """Run one schedule; return what it showed, and the seconds of CPU it took."""
    began = time.process_time()
    result = world_of(settings, seed).run()
    if not result.violation:
        result.trace.clear()  # Only read when something is wrong, and long.
    return result, time.process_time() - began


def simulate_fleet(
    seeds: Iterable[int],
    settings: Settings = Settings(),  # noqa: B008 - immutable.
    *,
    stop_at: int | None = None,
    jobs: int = 1,
    seen: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Run one schedule per seed, in `jobs` processes; stop after `stop_at` violations.

    `seen` is called after every run. The results come in the order of the seeds, whatever `jobs` is.
    """
    report, began = Report(), time.monotonic()
    with _runs(settings, seeds, jobs) as runs:
        for result, cpu_s in runs:
            report.add(result, cpu_s)
            report.wall_s = time.monotonic() - began
            seen(report)
            if stop_at is not None and len(report.violations) >= stop_at:
                break
    return report


@contextmanager
def _runs(settings: Settings, seeds: Iterable[int], jobs: int) -> Iterator[Iterator[tuple[Result, float]]]:
    one = partial(run_one, settings)
    if jobs == 1:
        yield map(one, seeds)
        return
    # A fresh interpreter each: nothing is shared but the seeds.
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield pool.imap(one, seeds)


@click.command("simulate-fleet")
@click.option("--nodes", type=click.Choice(["1", "3", MIXED]), default=MIXED, show_default=True, help="Of each region.")
@click.option("--schedules", type=click.IntRange(1), default=20, show_default=True, help="How many, one per seed.")
@click.option("--seed", default=1, show_default=True, help="The first seed.")
@click.option("--seconds", default=60.0, show_default=True, help="Simulated seconds of each schedule.")
@click.option("--plant", type=click.Choice(list(PLANTS)), help="Plant a defect in every node.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@click.option("--stop-at", type=click.IntRange(1), help="Stop after this many violations.")
@click.option("--trace", is_flag=True, help="Print the trace of the first violation, or of the only schedule.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def simulate_fleet_command(  # noqa: PLR0913 - one per option.
    *,
    nodes: str,
    schedules: int,
    seed: int,
    seconds: float,
    plant: str | None,
    jobs: int,
    stop_at: int | None,
    trace: bool,
    as_json: bool,
) -> None:
    """Simulate whole fleets, two or three regions with all who work there, under faults; exit 1 on any violation."""
    settings = Settings(0 if nodes == MIXED else int(nodes), seconds, plant or "")
    report = simulate_fleet(range(seed, seed + schedules), settings, stop_at=stop_at, jobs=jobs, seen=_show)
    if as_json:
        print(json.dumps(_as_json(report), indent=1))
    else:
        _print(report, settings)
    if trace:
        again = world_of(settings, report.violations[0].seed if report.violations else seed, whole_trace=True).run()
        print("\n".join(again.trace))
        print(f"fingerprint {again.fingerprint:08x}")
    missing = [kind for kind in kinds_of(settings.nodes or 3) if not report.faults[kind]]
    missing = missing if report.runs >= _ALL_FAULTS_FROM else []
    for kind in missing:
        print(f"fault {kind} never happened: this run proves nothing about it", file=sys.stderr)
    sys.exit(1 if report.violations or missing else 0)


def _show(report: Report) -> None:
    """Say at once what is wrong: the rest may take long."""
    if report.last.violation:
        print(f"seed {report.last.seed}: {report.last.violation}", file=sys.stderr, flush=True)


def _as_json(report: Report) -> dict[str, Any]:
    return {
        "schedules": report.runs,
        "simulated_hours": round(report.seconds / 3600, 2),
        "simulated_s_per_cpu_s": round(report.seconds / max(report.cpu_s, 1e-9), 1),
        "cpu_s": round(report.cpu_s, 1),
        "wall_s": round(report.wall_s, 1),
        "operations": report.counts["operations checked"],
        "faults": dict(sorted(report.faults.items())),
        "counts": dict(sorted(report.counts.items())),
        "violations": [{"seed": result.seed, "violation": result.violation} for result in report.violations],
    }


def _print(report: Report, settings: Settings) -> None:
    summary = _as_json(report)
    for title, counts in (("faults", summary["faults"]), ("counts", summary["counts"])):
        print(f"{title}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    table = Table("schedules", "simulated", "operations", "faults", "violations", "CPU s", "simulated s per CPU s")
    table.add_row(
        str(report.runs),
        f"{summary['simulated_hours']} h",
        str(summary["operations"]),
        str(sum(report.faults.values())),
        str(len(report.violations)),
        f"{report.cpu_s:.1f}",
        f"{summary['simulated_s_per_cpu_s']:.0f}",
    )
    Console(width=100).print(table)
    for result in report.violations[:_VIOLATIONS_SHOWN]:
        print(f"seed {result.seed}: {result.violation}")
        print(f"    {repeat(settings, result.seed)} --trace")


def repeat(settings: Settings, seed: int) -> str:
    """Return the command that repeats one run."""
    command = f"python -m chaos simulate-fleet --nodes {settings.nodes_of(seed)} --seconds {settings.seconds:g}"
    return command + (f" --plant {settings.plant}" if settings.plant else "") + f" --seed {seed} --schedules 1"
