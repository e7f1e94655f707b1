"""`python -m chaos simulate-region`: run schedules of a whole region, print what happened, fail on any violation."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click

from chaos.plane import Region
from chaos.plane_node import Parts
from chaos.plane_plants import PLANTS
from chaos.schedule import PROFILES, make_schedule
from chaos.sim_runs import Report
from chaos.simulation import Result
from chaos.whole_runs import exit_code, print_trace, progress, run_each, tell, timed

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
    return timed(lambda: region_of(settings, seed).run())


def simulate_region(
    seeds: Iterable[int],
    settings: Settings = Settings(),  # noqa: B008 - immutable.
    **options: Any,
) -> Report:
    """Run one schedule per seed; `options` are those of `run_each`."""
    return run_each(partial(run_one, settings), seeds, **options)


@click.command("simulate-region")
@click.option("--nodes", type=click.Choice(["3", "5"]), default="3", show_default=True, help="One: simulate-fleet.")
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
    with progress(schedules, "regions") as seen:
        report = simulate_region(
            range(seed, seed + schedules), settings, stop_at=stop_at, wall_s_max=wall, jobs=jobs, seen=seen
        )
    tell(report, partial(repeat, settings), as_json=as_json)
    if trace or history:
        _again(settings, report.violations[0].seed if report.violations else seed, trace=trace, history=history)
    # Every profile but "calm" draws the same kinds of fault.
    sys.exit(exit_code(report, [*report.faults_of("calm" if profile == "calm" else "lan")]))


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
        print_trace(result)
