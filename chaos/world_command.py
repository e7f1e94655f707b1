"""`python -m chaos simulate-fleet`: run schedules of whole fleets, print what happened, fail on any violation."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import click

from chaos.sim_runs import Report
from chaos.simulation import Result
from chaos.whole_runs import exit_code, print_trace, progress, run_each, tell, timed
from chaos.world import World
from chaos.world_faults import kinds_of, make_fleet_schedule
from chaos.world_node import FleetParts
from chaos.world_plants import PLANTS

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
    return timed(lambda: world_of(settings, seed).run())


def simulate_fleet(
    seeds: Iterable[int],
    settings: Settings = Settings(),  # noqa: B008 - immutable.
    **options: Any,
) -> Report:
    """Run one schedule per seed; `options` are those of `run_each`."""
    return run_each(partial(run_one, settings), seeds, **options)


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
    with progress(schedules, "fleets") as seen:
        report = simulate_fleet(range(seed, seed + schedules), settings, stop_at=stop_at, jobs=jobs, seen=seen)
    tell(report, partial(repeat, settings), as_json=as_json)
    if trace:
        again = report.violations[0].seed if report.violations else seed
        print_trace(world_of(settings, again, whole_trace=True).run())
    sys.exit(exit_code(report, kinds_of(settings.nodes or 3)))


def repeat(settings: Settings, seed: int) -> str:
    """Return the command that repeats one run."""
    command = f"python -m chaos simulate-fleet --nodes {settings.nodes_of(seed)} --seconds {settings.seconds:g}"
    return command + (f" --plant {settings.plant}" if settings.plant else "") + f" --seed {seed} --schedules 1"
