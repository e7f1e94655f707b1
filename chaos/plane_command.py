"""`python -m chaos simulate-region`: run schedules of a whole region, print what happened, fail on any violation."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from chaos.plane import Region
from chaos.plane_node import Parts
from chaos.plane_plants import PLANTS
from chaos.schedule import PROFILES, make_schedule
from chaos.sim_runs import Report
from chaos.simulation import Result

# From this many schedules on, a kind of fault that never happened is a failure of the run.
_ALL_FAULTS_FROM = 200
_VIOLATIONS_SHOWN = 20
MIXED = "mixed"
# One after the other; every second run has links on which most happens in the time there is.
_MIXTURE = ("lan", "wild", "lan", "wan-wild", "lan", "wan")


class Settings(NamedTuple):
    """What the runs of one report have in common."""

    nodes: int = 3
    seconds: float = 60.0
    profile: str = "lan"
    plant: str = ""

    def profile_of(self, seed: int) -> str:
        """The profile of one run."""
        return _MIXTURE[seed % len(_MIXTURE)] if self.profile == MIXED else self.profile


def region_of(settings: Settings, seed: int, *, whole_trace: bool = False) -> Region:
    """Return the region of one seed, before its first moment."""
    profile = settings.profile_of(seed)
    schedule = make_schedule(seed, nodes=settings.nodes, seconds=settings.seconds, profile=profile)
    return Region(schedule, parts=PLANTS.get(settings.plant, Parts()), whole_trace=whole_trace)


def run_one(settings: Settings, seed: int) -> tuple[Result, float]:
    """Run one schedule; return what it showed, and the seconds of CPU it took."""
    began = time.process_time()
    result = region_of(settings, seed).run()
    if not result.violation:
        result.trace.clear()  # Only read when something is wrong, and long.
    return result, time.process_time() - began


def simulate_region(
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
    with _runs(settings, seeds, jobs) as runs:
        for result, cpu_s in runs:
            report.add(result, cpu_s)
            report.wall_s = time.monotonic() - began
            seen(report)
            if report.wall_s > wall_s_max or (stop_at is not None and len(report.violations) >= stop_at):
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


@click.command("simulate-region")
@click.option("--nodes", type=click.Choice(["1", "3", "5"]), default="3", show_default=True)
@click.option("--schedules", type=click.IntRange(1), default=50, show_default=True, help="How many, one per seed.")
@click.option("--seed", default=1, show_default=True, help="The first seed.")
@click.option("--seconds", default=60.0, show_default=True, help="Simulated seconds of each schedule.")
@click.option("--profile", type=click.Choice([MIXED, *PROFILES]), default=MIXED, show_default=True)
@click.option("--plant", type=click.Choice(list(PLANTS)), help="Plant a defect in every node.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@click.option("--wall", default=float("inf"), help="Stop after this many real seconds.")
@click.option("--stop-at", type=click.IntRange(1), help="Stop after this many violations.")
@click.option("--trace", is_flag=True, help="Print the trace of the first violation, or of the only schedule.")
@click.option(
    "--history", type=click.Path(dir_okay=False, path_type=Path), help="Write what its clients saw to a file."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def simulate_region_command(  # noqa: PLR0913 - one per option.
    *,
    nodes: str,
    schedules: int,
    seed: int,
    seconds: float,
    profile: str,
    plant: str | None,
    jobs: int,
    wall: float,
    stop_at: int | None,
    trace: bool,
    history: Path | None,
    as_json: bool,
) -> None:
    """Simulate a whole region with its agents and operators under faults; exit 1 on any violation."""
    settings = Settings(int(nodes), seconds, profile, plant or "")
    with _progress(schedules) as seen:
        report = simulate_region(
            range(seed, seed + schedules), settings, stop_at=stop_at, wall_s_max=wall, jobs=jobs, seen=seen
        )
    if as_json:
        print(json.dumps(_as_json(report), indent=1))
    else:
        _print(report, settings)
    if trace or history:
        _again(settings, report.violations[0].seed if report.violations else seed, trace=trace, history=history)
    # Every profile but "calm" draws the same kinds of fault.
    missing = report.missing_faults("calm" if profile == "calm" else "lan") if report.runs >= _ALL_FAULTS_FROM else []
    for kind in missing:
        print(f"fault {kind} never happened: this run proves nothing about it", file=sys.stderr)
    sys.exit(1 if report.violations or missing else 0)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Report], None]]:
    """Show how far it is, on a terminal only."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("regions", total=total)

        def seen(report: Report) -> None:
            red = f", {len(report.violations)} violations" if report.violations else ""
            progress.update(task, completed=report.runs, description=f"regions{red}")

        yield seen


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
    command = f"python -m chaos simulate-region --nodes {settings.nodes} --seconds {settings.seconds:g}"
    command += f" --profile {settings.profile_of(seed)}"
    return command + (f" --plant {settings.plant}" if settings.plant else "") + f" --seed {seed} --schedules 1"


def _again(settings: Settings, seed: int, *, trace: bool, history: Path | None) -> None:
    """Run one schedule again, and keep all that was noted."""
    region = region_of(settings, seed, whole_trace=True)
    result = region.run()
    if history is not None:
        region.history.write(history)
    if trace:
        print("\n".join(result.trace))
        print(f"fingerprint {result.fingerprint:08x}")
