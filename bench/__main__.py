"""`python -m bench`: run it, print a table, write the figures and the plot."""

from __future__ import annotations

import asyncio
import json
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import click
from rich.console import Console

from bench.figures import FLEET_SPECS, SPECS, figures
from bench.peer import installed
from bench.report import plot, table, targets
from bench.run import FULL, OF_FLEET, QUICK, SIDE_BY_SIDE, Run, Say

_FULL_S = 1080
_QUICK_S = 300


@click.command()
@click.option("--quick", is_flag=True, help="At most five minutes; rougher figures, and the plot stays as it is.")
@click.option("--only", multiple=True, type=click.Choice(SIDE_BY_SIDE + OF_FLEET), help="These phases alone.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("build/bench.json"), show_default=True)
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Else docs/bench.png, if the run was full.")
def main(*, quick: bool, only: tuple[str, ...], out: Path, picture: Path | None) -> None:
    """Measure this control plane, side by side with etcd where it is installed."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Beside the project: what is measured is the disk it lies on, and not a temporary folder in memory.
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir=out.parent)).resolve()
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:5.0f} s  {text}")

    try:
        run = asyncio.run(_measured(folder, say, quick=quick, only=only))
    except asyncio.CancelledError:
        sys.exit(1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    compared = figures(run.samples, SPECS if _any_of(SIDE_BY_SIDE, only) else [])
    alone = figures(run.samples, FLEET_SPECS if _any_of(OF_FLEET, only) else [])
    out.write_text(json.dumps(compared + alone, indent=1) + "\n")
    for made in [table(compared)] * bool(compared) + [targets(alone)] * bool(alone):
        console.print(made)
    console.print(_conditions(time.monotonic() - began, with_peer=bool(compared)))
    if target := picture or (None if quick or only else Path("docs/bench.png")):
        plot(run.samples, target)
        console.print(f"plot: {target}")
    for trouble in run.trouble:
        console.print(f"not measured whole: {trouble}", style="red")
    sys.exit(1 if run.trouble else 0)


def _any_of(phases: tuple[str, ...], only: tuple[str, ...]) -> bool:
    return not only or any(phase in phases for phase in only)


async def _measured(folder: Path, say: Say, *, quick: bool, only: tuple[str, ...]) -> Run:
    run = Run(folder, QUICK if quick else FULL, say)
    # Ended politely from outside, it ends its processes like after Ctrl-C.
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        async with asyncio.timeout(_QUICK_S if quick else _FULL_S):
            await run.measure(only)
    except TimeoutError:
        run.trouble.append("the whole run took too long")
    return run


def _conditions(took_s: float, *, with_peer: bool) -> str:
    peer = (
        "etcd without TLS (mTLS: with), synced; ours with mutual TLS, synced"
        if installed()
        else "etcd is not installed"
    )
    told = [f"{platform.machine()}, Python {platform.python_version()}, {took_s:.0f} s", peer, "medians"]
    return "; ".join(each for each in told if with_peer or each is not peer)


if __name__ == "__main__":
    main()
