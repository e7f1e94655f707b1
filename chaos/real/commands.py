"""`python -m chaos run`: one run, or the share of them that every change has to pass."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress, TaskID

from chaos.real.control import CONTROL, turned
from chaos.real.faults import NEMESES
from chaos.real.links import SHAPES
from chaos.real.recording import Book
from chaos.real.report import Report, keep, said
from chaos.real.running import NONE, Plan, Run
from chaos.real.timeline import drawn
from chaos.real.workloads import WORKLOADS
from controlplane.checking.pictures import window

SKIPPED_CODE = 77
"""Exit code of a single run that this machine or user cannot have."""
ROOT = Path("build/chaos")
TOPOLOGIES = ("auto", "direct", "proxied", "namespaces")
_WIDTH = 200
_WINDOWS_MAX = 10

_LINKS = (
    ("cas", "kill-leader"),
    ("election", "pause-leader"),
    ("kill", "isolate-leader"),
    ("watch", "kill-any"),
    ("flags", "one-way-in"),
    ("cas", "one-way-out"),
    ("election", "isolate-any"),
    ("watch", "flapping"),
    ("kill", "kill-majority"),
    ("flags", "slow-links"),
    ("watch", "restart-all"),
    ("cas", "mixed"),
)
_DISKS = (("cas", "failing-disk"), ("flags", "torn-write"), ("watch", "power-loss-all"), ("kill", "disk-full"))
_LINKS_S, _SPACES_S, _DISKS_S, _CONTROL_S = 20.0, 8.0, 10.0, 4.0
_EVERY = {**NEMESES, CONTROL.name: CONTROL}


def matrix(seed: int, nodes: int, seconds: float | None = None) -> list[Plan]:
    """Every change's share: twelve runs over proxies and kills, each kind of partition between hosts, a few disks.

    Each lasts for what suffices for a few faults of its kind, or for `seconds`. The last one is the control experiment.
    """
    workloads = list(WORKLOADS)
    plans = [Plan(load, nemesis, seconds or _LINKS_S, seed, nodes, _place(nemesis)) for load, nemesis in _LINKS]
    for number, shape in enumerate(SHAPES):
        load = workloads[number % len(workloads)]
        plans.append(Plan(load, shape, seconds or _SPACES_S, seed, nodes, "namespaces"))
    plans += [Plan(load, nemesis, seconds or _DISKS_S, seed, nodes) for load, nemesis in _DISKS]
    return [*plans, Plan("cas", CONTROL.name, _CONTROL_S, seed, nodes)]


def _place(nemesis: str) -> str:
    return "proxied" if "proxied" in _EVERY[nemesis].topologies else "auto"


@click.command("run")
@click.option("--workload", type=click.Choice(list(WORKLOADS)), default="cas", show_default=True)
@click.option("--nemesis", type=click.Choice([NONE, *_EVERY]), default="kill-leader", show_default=True)
@click.option(
    "--seconds", type=click.FloatRange(2.0, 86_400.0), help="Of load.  [default: 20, with --matrix what each needs]"
)
@click.option("--seed", default=1, show_default=True, help="What faults and load are drawn from.")
@click.option("--nodes", type=click.Choice(["3", "5"]), default="3", show_default=True)
@click.option("--topology", type=click.Choice(TOPOLOGIES), default="auto", show_default=True)
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="Empty; else one below build/chaos.")
@click.option("--matrix", "every", is_flag=True, help="The runs that every change has to pass, one after the other.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def run_command(  # noqa: PLR0913 - one per option.
    *,
    workload: str,
    nemesis: str,
    seconds: float | None,
    seed: int,
    nodes: str,
    topology: str,
    folder: Path | None,
    every: bool,
    as_json: bool,
) -> None:
    """Load real processes, break them, and check everything that clients were told.

    Exit code 0: passed. 1: something was found; the folder named has history, logs and data. 77: cannot be had here.
    """
    if nemesis != NONE and topology not in ("auto", *_EVERY[nemesis].topologies) and not every:
        raise click.UsageError(f"{nemesis} needs one of the topologies {', '.join(_EVERY[nemesis].topologies)}")
    one = Plan(workload, nemesis, seconds or _LINKS_S, seed, int(nodes), topology)
    plans = matrix(seed, int(nodes), seconds) if every else [one]
    console = Console(stderr=as_json, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=as_json, highlight=False, width=_WIDTH)
    reports = []
    for number, plan in enumerate(plans, 1):
        reports.append(perform(plan, folder if not every else None, console))
        if every:
            console.print(f"{number} of {len(plans)}: {plan.workload} under {plan.nemesis}: {reports[-1].verdict}")
    if as_json:
        print(json.dumps([each.as_json() for each in reports] if every else reports[0].as_json(), indent=1))
    else:
        console.print(said(reports))
    raise SystemExit(_code(reports))


def perform(plan: Plan, folder: Path | None, console: Console) -> Report:
    """Run one plan with a progress bar, and keep what is to be kept of it."""
    place = folder or _free(ROOT / f"{plan.workload}-{plan.nemesis}-{plan.seed}")
    if place.exists() and any(place.iterdir()):
        raise click.UsageError(f"{place} is not empty")
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(f"{plan.workload} under {plan.nemesis}", total=plan.seconds)
        run = Run(plan, place, lambda what, seconds: _show(progress, bar, plan, what, seconds), nemeses=_EVERY)
        report = asyncio.run(run.go())
    if plan.nemesis == CONTROL.name:
        report = turned(report)
    keep(report, place, _pictures(run))
    return report


def _pictures(run: Run) -> dict[str, str]:
    """The whole run, and a window for each key that nothing explains."""
    load = run.workload
    book = load.book if load is not None else Book(0)
    pictures = {"timeline.svg": drawn(run.report, run.began_ns, book.answered_ns, book.failed_ns)}
    failures = [failure for result in load.results for failure in result.failures] if load is not None else []
    return pictures | {f"failure-{number}.svg": window(each) for number, each in enumerate(failures[:_WINDOWS_MAX], 1)}


def _show(progress: Progress, bar: TaskID, plan: Plan, what: str, seconds: float) -> None:
    title = f"{plan.workload} under {plan.nemesis}: {what}"
    progress.update(bar, description=title[:90], completed=min(seconds, plan.seconds))


def _free(wanted: Path) -> Path:
    """A folder that is not there yet: what an earlier run kept stays."""
    return next(path for number in count(1) if not (path := wanted.with_name(f"{wanted.name}.{number}")).exists())


def _code(reports: Sequence[Report]) -> int:
    verdicts = {each.verdict for each in reports}
    if "FAILED" in verdicts:
        return 1
    return SKIPPED_CODE if verdicts == {"SKIPPED"} else 0
