"""Many schedules of something whole, a region or a fleet: run side by side, and told."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from chaos.sim_runs import Report
from chaos.simulation import Result

# From this many schedules on, a kind of fault that never happened is a failure of the run.
_ALL_FAULTS_FROM = 200
_VIOLATIONS_SHOWN = 20

One = Callable[[int], tuple[Result, float]]
"""Runs the schedule of one seed; what it showed, and the seconds of CPU it took. To be pickled."""
Seen = Callable[[Report], None]


def timed(run: Callable[[], Result]) -> tuple[Result, float]:
    """Run one schedule; return what it showed, and the seconds of CPU it took."""
    began = time.process_time()
    result = run()
    if not result.violation:
        result.trace.clear()  # Only read when something is wrong, and long.
    return result, time.process_time() - began


def run_each(
    one: One,
    seeds: Iterable[int],
    *,
    stop_at: int | None = None,
    wall_s_max: float = float("inf"),
    jobs: int = 1,
    seen: Seen = lambda _: None,
) -> Report:
    """Run one schedule per seed, in `jobs` processes; stop after `stop_at` violations or `wall_s_max` seconds.

    `seen` is called after every run. The results come in the order of the seeds, whatever `jobs` is.
    """
    report, began = Report(), time.monotonic()
    with _runs(one, seeds, jobs) as runs:
        for result, cpu_s in runs:
            report.add(result, cpu_s)
            report.wall_s = time.monotonic() - began
            seen(report)
            if report.wall_s > wall_s_max or (stop_at is not None and len(report.violations) >= stop_at):
                break
    return report


@contextmanager
def _runs(one: One, seeds: Iterable[int], jobs: int) -> Iterator[Iterator[tuple[Result, float]]]:
    if jobs == 1:
        yield map(one, seeds)
        return
    # A fresh interpreter each: nothing is shared but the seeds.
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield pool.imap(one, seeds)


@contextmanager
def progress(total: int, what: str) -> Iterator[Seen]:
    """Show how far it is, on a terminal only; what is wrong is said at once, as the rest may take long."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        task = shown.add_task(what, total=total)

        def seen(report: Report) -> None:
            red = f", {len(report.violations)} violations" if report.violations else ""
            shown.update(task, completed=report.runs, description=f"{what}{red}")
            if report.last.violation:
                print(f"seed {report.last.seed}: {report.last.violation}", file=sys.stderr, flush=True)

        yield seen


def tell(report: Report, repeat: Callable[[int], str], *, as_json: bool) -> None:
    """Print what happened, as JSON or as a table; `repeat` says how to repeat the run of a seed."""
    summary = _summary(report)
    if as_json:
        print(json.dumps(summary, indent=1))
        return
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
        print(f"    {repeat(result.seed)} --trace")


def exit_code(report: Report, kinds: Sequence[str]) -> int:
    """1 if anything was wrong, or if in many schedules one of these kinds of fault never happened, which is said."""
    missing = [kind for kind in kinds if not report.faults[kind]] if report.runs >= _ALL_FAULTS_FROM else []
    for kind in missing:
        print(f"fault {kind} never happened: this run proves nothing about it", file=sys.stderr)
    return 1 if report.violations or missing else 0


def print_trace(result: Result) -> None:
    """Print everything that was noted of one run."""
    print("\n".join(result.trace))
    print(f"fingerprint {result.fingerprint:08x}")


def _summary(report: Report) -> dict[str, Any]:
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
