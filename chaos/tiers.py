"""`python -m chaos tier`: everything that a change, a night or a release has to pass.

Each part is a command of its own (what it prints is the command that repeats it), so a tier is lists of them, and this
module only runs the lists, keeps going when a part fails, and says at the end what passed, what failed and what was
skipped. Seeds begin where `--seed` says: fixed for a change, so that a red run is red again; new ones for the night.

Three lists, because real processes wait most of the time for what they broke, and simulations never do:

1. What is **counted** takes every core at the lowest priority, one part after the other, at the same time as
2. what is **real**: nodes and faults in real time, one run after the other, at the priority of the tier.
3. What is **measured** has the machine to itself, after both.

What a counted part prints is kept in a file and shown when it ends; the others are seen as they go.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.table import Table

from chaos.real.commands import SKIPPED_CODE

SUMMARY = Path("build/chaos/summary.json")
_POLITE_S = 30.0
_LOWEST = 19


class Part(NamedTuple):
    """A command of a tier, without `python -m chaos`; run with so many seeds, each for so many seconds at most."""

    name: str
    arguments: str
    seconds_max: int
    seeds: int = 1

    def argv(self, seed: int, jobs: int) -> list[str]:
        """What is run."""
        return [sys.executable, "-m", "chaos", *self.arguments.format(seed=seed, jobs=jobs).split()]


class Tier(NamedTuple):
    """The parts of a tier, by what they do to a machine and need of it."""

    counted: Sequence[Part] = ()
    real: Sequence[Part] = ()
    measured: Sequence[Part] = ()

    @property
    def parts(self) -> list[Part]:
        """All of them."""
        return [*self.counted, *self.real, *self.measured]


class Ended(NamedTuple):
    """A part that was run. `code` is None if it was still running when its time was over, and was ended."""

    part: Part
    command: str
    code: int | None
    seconds: float

    @property
    def verdict(self) -> str:
        """In one word."""
        return _VERDICTS.get(self.code, "FAIL")


def _consensus(schedules: int, seconds_max: int) -> Part:
    return Part("consensus", f"sweep --schedules {schedules} --seed {{seed}} --jobs {{jobs}}", seconds_max)


def _region(schedules: int, seconds_max: int) -> Part:
    return Part("whole region", f"simulate-region --schedules {schedules} --seed {{seed}} --jobs {{jobs}}", seconds_max)


def _fleets(schedules: int, seconds_max: int) -> Part:
    return Part("whole fleets", f"simulate-fleet --schedules {schedules} --seed {{seed}} --jobs {{jobs}}", seconds_max)


def _bad_input(inputs: int, seconds_max: int) -> Part:
    return Part("bad input", f"fuzz --inputs {inputs} --seed {{seed}} --jobs {{jobs}}", seconds_max)


_VERDICTS = {0: "PASS", SKIPPED_CODE: "SKIPPED", None: "HUNG"}
_HOUR_S = 3600
# What needs one core only comes first, while real processes need the most of the others.
TIERS: Mapping[str, Tier] = {
    "commit": Tier(
        counted=(
            Part("the checker", "check --self --seed {seed}", _HOUR_S),
            Part("disks", "disks --steps 40 --seed {seed}", _HOUR_S),
            Part("planted defects", "plants --seed {seed} --jobs {jobs}", _HOUR_S),
            _bad_input(50_000, _HOUR_S),
            _region(300, _HOUR_S),
            _fleets(12, _HOUR_S),
            _consensus(2_000, _HOUR_S),
        ),
        real=(
            Part("real processes", "run --matrix --seed {seed}", _HOUR_S),
            Part("a fleet", "fleet --scenario mixed --seconds 30 --seed {seed}", _HOUR_S),
            Part("leaks", "leaks --scenario short --seed {seed}", _HOUR_S),
        ),
    ),
    "nightly": Tier(
        counted=(
            Part("disks", "disks --steps 1000 --seed {seed}", 8 * _HOUR_S),
            Part("planted defects", "plants --jobs {jobs}", 4 * _HOUR_S),
            _bad_input(20_000_000, 72 * _HOUR_S),
            _region(20_000, 24 * _HOUR_S),
            _fleets(4_000, 24 * _HOUR_S),
            _consensus(200_000, 48 * _HOUR_S),
        ),
        real=(
            # 12 runs of a minute each over proxies, 8 in namespaces and 4 with bad disks, and the control experiment.
            Part("real processes", "run --matrix --seconds 60 --seed {seed}", 2 * _HOUR_S, seeds=42),
            Part("a fleet", "fleet --scenario mixed --seconds 120 --seed {seed}", _HOUR_S, seeds=20),
            Part("a fleet listed anew", "fleet --scenario listed-anew --seconds 60 --seed {seed}", _HOUR_S, seeds=10),
            Part("a fleet of nine", "fleet --scenario mixed --seconds 120 --size 3 --seed {seed}", _HOUR_S, seeds=5),
            Part("leaks", "leaks --seconds 10 --seed {seed}", _HOUR_S, seeds=10),
            Part(
                "an hour of everything", "run --workload cas --nemesis mixed --seconds 3600 --seed {seed}", 2 * _HOUR_S
            ),
            Part(
                "an hour between hosts",
                "run --workload watch --nemesis mixed --topology namespaces --seconds 3600 --seed {seed}",
                2 * _HOUR_S,
            ),
        ),
        measured=(
            Part("failover", "failover --kills 50", _HOUR_S),
            Part("failover after idling", "failover --kills 50 --idle 10", 2 * _HOUR_S),
        ),
    ),
}


@click.command("tier")
@click.argument("name", type=click.Choice(list(TIERS)))
@click.option("--seed", type=click.IntRange(1), default=1, show_default=True, help="The first seed of every part.")
@click.option("--jobs", type=click.IntRange(1, 64), help="Processes, where a part can.  [default: one per core]")
@click.option("--plan", is_flag=True, help="Say what would be run, and run nothing.")
def tier_command(name: str, *, seed: int, jobs: int | None, plan: bool) -> None:
    """Run everything that a change has to pass (`commit`), or a night (`nightly`). Exit 1 unless all of it passed."""
    jobs = jobs or min(64, len(os.sched_getaffinity(0)))
    if plan:
        print("\n".join(_planned(TIERS[name], seed, jobs)))
        return
    ended = asyncio.run(Running(seed, jobs, Console(stderr=True, highlight=False)).all_of(TIERS[name]))
    SUMMARY.parent.mkdir(parents=True, exist_ok=True)
    parts = [_as_json(each) for each in ended]
    SUMMARY.write_text(json.dumps({"tier": name, "seed": seed, "jobs": jobs, "parts": parts}, indent=1) + "\n")
    Console(highlight=False).print(_table(ended))
    sys.exit(any(each.verdict in ("FAIL", "HUNG") for each in ended))


def _planned(tier: Tier, seed: int, jobs: int) -> list[str]:
    """A line for each command."""
    lists = zip(("counted", "real", "measured"), tier, strict=True)
    return [
        f"{what:<9} {_command(part.argv(seed + number, jobs))}"
        for what, parts in lists
        for part in parts
        for number in range(part.seeds)
    ]


def _command(argv: Sequence[str]) -> str:
    return "python -m " + " ".join(argv[2:])


class Running:
    """A tier that is being run. Whatever ends it ends what it started."""

    def __init__(self, seed: int, jobs: int, console: Console) -> None:
        self._seed = seed
        self._jobs = jobs
        self._console = console

    async def all_of(self, tier: Tier) -> list[Ended]:
        """Run the whole tier."""
        async with asyncio.TaskGroup() as group:
            counted = group.create_task(self._one_by_one(tier.counted, kept=True))
            real = group.create_task(self._one_by_one(tier.real))
        return [*counted.result(), *real.result(), *await self._one_by_one(tier.measured)]

    async def _one_by_one(self, parts: Sequence[Part], *, kept: bool = False) -> list[Ended]:
        return [await self._run(part, self._seed + number, kept) for part in parts for number in range(part.seeds)]

    async def _run(self, part: Part, seed: int, kept: bool) -> Ended:
        """Run one part; `kept`: at the lowest priority, and shown when it ends."""
        argv = part.argv(seed, self._jobs)
        command = _command(argv)
        self._console.rule(f"{part.name}: {command}", align="left")
        began = time.monotonic()
        if not kept:
            code = await _code(argv, part.seconds_max)
        else:
            file = SUMMARY.parent / f"{part.name.replace(' ', '-')}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            code = await _code(["nice", "-n", str(_LOWEST), *argv], part.seconds_max, file)
            self._console.rule(f"{part.name} ended: {command}", align="left")
            sys.stdout.write(file.read_text())
        return Ended(part, command, code, time.monotonic() - began)


async def _code(argv: Sequence[str], seconds_max: float, file: Path | None = None) -> int | None:
    """Its exit code, or None if it had to be ended. What it prints goes to `file`, if there is one."""
    if file is None:
        process = await asyncio.create_subprocess_exec(*argv)
    else:
        with file.open("wb") as output:
            process = await asyncio.create_subprocess_exec(*argv, stdout=output, stderr=subprocess.STDOUT)
    try:
        async with asyncio.timeout(seconds_max):
            return await process.wait()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            await _end(process)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Politely first, so that it ends what it started."""
    process.send_signal(signal.SIGINT)
    try:
        async with asyncio.timeout(_POLITE_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _as_json(ended: Ended) -> dict[str, object]:
    return {
        "name": ended.part.name,
        "command": ended.command,
        "verdict": ended.verdict,
        "exit_code": ended.code,
        "seconds": round(ended.seconds, 1),
    }


def _table(ended: Sequence[Ended]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("part", "verdict", "seconds", "repeat with"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left")
    for each in ended:
        table.add_row(each.part.name, each.verdict, f"{each.seconds:.0f}", each.command)
    return table
