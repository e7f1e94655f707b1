"""`python -m chaos tier`: everything that a change, a night or a release has to pass, one part after the other.

Each part is a command of its own (what it prints is the command that repeats it), so a tier is a list, and this module
only runs the list, keeps going when a part fails, and says at the end what passed, what failed and what was skipped.
Seeds begin where `--seed` says: fixed for a change, so that a red run is red again; new ones for the night.
"""

from __future__ import annotations

import contextlib
import json
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


class Part(NamedTuple):
    """A command of a tier, without `python -m chaos`; run with so many seeds, each for so many seconds at most."""

    name: str
    arguments: str
    seconds_max: int
    seeds: int = 1

    def argv(self, seed: int, jobs: int) -> list[str]:
        """What is run."""
        return [sys.executable, "-m", "chaos", *self.arguments.format(seed=seed, jobs=jobs).split()]


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


_VERDICTS = {0: "PASS", SKIPPED_CODE: "SKIPPED", None: "HUNG"}
_HOUR_S = 3600
TIERS: Mapping[str, Sequence[Part]] = {
    "commit": (
        _consensus(2_000, 1200),
        _region(300, 900),
        Part("planted defects", "plants --seed {seed} --jobs {jobs}", 900),
        Part("the checker", "check --self --seed {seed}", 300),
        Part("bad input", "fuzz --inputs 50000 --seed {seed}", 2400),
        Part("disks", "disks --steps 40 --seed {seed}", 900),
        Part("real processes", "run --matrix --seed {seed}", 1800),
    ),
    "nightly": (
        _consensus(200_000, 36 * _HOUR_S),
        _region(20_000, 12 * _HOUR_S),
        Part("planted defects", "plants --jobs {jobs}", 2 * _HOUR_S),
        Part("bad input", "fuzz --inputs 2000000 --seed {seed}", 12 * _HOUR_S),
        Part("disks", "disks --steps 1000 --seed {seed}", 4 * _HOUR_S),
        Part("real processes", "run --matrix --seed {seed}", _HOUR_S, seeds=20),
        Part("an hour of everything", "run --workload cas --nemesis mixed --seconds 3600 --seed {seed}", 2 * _HOUR_S),
        Part("failover", "failover --kills 50", _HOUR_S),
        Part("failover after idling", "failover --kills 50 --idle 10", 2 * _HOUR_S),
    ),
}


@click.command("tier")
@click.argument("name", type=click.Choice(list(TIERS)))
@click.option("--seed", type=click.IntRange(1), default=1, show_default=True, help="The first seed of every part.")
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="Processes, where a part can.")
def tier_command(name: str, *, seed: int, jobs: int) -> None:
    """Run everything that a change has to pass (`commit`), or a night (`nightly`). Exit 1 unless all of it passed."""
    console = Console(stderr=True, highlight=False)
    ended = [_run(part, seed + number, jobs, console) for part in TIERS[name] for number in range(part.seeds)]
    SUMMARY.parent.mkdir(parents=True, exist_ok=True)
    parts = [_as_json(each) for each in ended]
    SUMMARY.write_text(json.dumps({"tier": name, "seed": seed, "jobs": jobs, "parts": parts}, indent=1) + "\n")
    Console(highlight=False).print(_table(ended))
    sys.exit(any(each.verdict in ("FAIL", "HUNG") for each in ended))


def _run(part: Part, seed: int, jobs: int, console: Console) -> Ended:
    argv = part.argv(seed, jobs)
    command = "python -m " + " ".join(argv[2:])
    console.rule(f"{part.name}: {command}", align="left")
    began = time.monotonic()
    with subprocess.Popen(argv) as child:  # noqa: S603 - ourselves
        code = _wait(child, part.seconds_max)
    return Ended(part, command, code, time.monotonic() - began)


def _wait(child: subprocess.Popen[bytes], seconds_max: float) -> int | None:
    """Its exit code, or None if it had to be ended: politely first, so that it ends what it started."""
    try:
        return child.wait(seconds_max)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_POLITE_S)
        child.kill()
        return None


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
