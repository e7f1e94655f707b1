"""How long a region is without a leader: kill it again and again, and time the first write that is committed after."""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.load import Client, first_of
from bench.ours import Ours
from bench.side import settled
from controlplane.loopback import ending

WAYS = ("survivor", "sdk")
"""Through a surviving node by plain calls, which node does not matter; or as an agent's SDK finds its way."""
_WARM_TIMEOUT_S = 10.0
_SETTLE_TRIES = 3
_UNASKED_MAX = 5
_WIDTH = 120

Tell = Callable[[], None]


@dataclass(slots=True)
class Failovers:
    """Milliseconds from the signal to the first committed write, by way, in the order measured.

    `unasked` counts changes of the leader before the kill, while nothing was done to it: those rounds are made again.
    """

    kills: int
    idle_s: float
    unasked: int = 0
    taken_ms: dict[str, list[float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """The distributions, and every value."""
        figures = {way: {**_figures(taken), "values_ms": taken} for way, taken in self.taken_ms.items()}
        return {"kills": self.kills, "idle_s": self.idle_s, "unasked": self.unasked, "ways": figures}


async def measure(folder: Path, ways: Sequence[str], kills: int, idle_s: float, tell: Tell) -> Failovers:
    """Kill the leader `kills` times for each way, with connections that were idle for `idle_s` before.

    Raises `TimeoutError` if the region does not come back; that is a finding, not noise.
    """
    done = Failovers(kills, idle_s)
    side = Ours(folder)
    with ending(side.nodes):
        await side.start()
        for _ in range(kills):
            for way in ways:
                done.taken_ms.setdefault(way, []).append(round(await _measured(done, side, way), 2))
                tell()
    return done


async def _measured(done: Failovers, side: Ours, way: str) -> float:
    for _ in range(_UNASKED_MAX):
        taken_ms = await _lose_leader(side, way, done.idle_s)
        if taken_ms is not None:
            return taken_ms
        done.unasked += 1
    raise TimeoutError(f"the leader changed {_UNASKED_MAX} times although nothing was done to it")


async def _lose_leader(side: Ours, way: str, idle_s: float) -> float | None:
    """The time of one failover; None if the leader had changed before it was killed."""
    leader = await side.leader()
    survivors = [node for node in range(len(side.nodes)) if node != leader]
    client: Client = side.client() if way == "sdk" else side.probe(survivors)
    async with client as writes:
        for write in writes:
            await asyncio.wait_for(write(0), _WARM_TIMEOUT_S)
        await asyncio.sleep(idle_s)
        if await side.leader() != leader:
            return None
        began = time.perf_counter()
        side.nodes[leader].send(signal.SIGKILL)
        taken_ms = 1e3 * (await first_of(lambda: (write(0) for write in writes)) - began)
    side.nodes[leader].kill()
    side.restart(leader)
    await _level(side, leader)
    return taken_ms


async def _level(side: Ours, node: int) -> None:
    """Wait until the node that was killed answers linearizable reads, and writes go evenly."""
    async with asyncio.timeout(60), side.reader(node) as read:
        await first_of(lambda: (read(0),))
    for _ in range(_SETTLE_TRIES - 1):
        try:
            return await settled(side)
        except TimeoutError:
            continue
    return await settled(side)


def _figures(taken_ms: Sequence[float]) -> dict[str, float]:
    ordered = sorted(taken_ms)

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return {"n": len(ordered), "p50_ms": statistics.median(ordered), "p99_ms": at(0.99), "max_ms": ordered[-1]}


def _table(done: Failovers) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    made.add_column(f"first write after {done.idle_s:g} s idle and SIGKILL of the leader, through", no_wrap=True)
    for heading in ("kills", "p50", "p99", "max"):
        made.add_column(heading, justify="right")
    for way, taken in done.taken_ms.items():
        figures = _figures(taken)
        times = [f"{figures[name]:.0f} ms" for name in ("p50_ms", "p99_ms", "max_ms")]
        made.add_row({"survivor": "a surviving node", "sdk": "the SDK"}[way], str(len(taken)), *times)
    return made


@click.command("failover")
@click.option("--kills", type=click.IntRange(1, 10_000), default=50, show_default=True, help="For each way.")
@click.option("--idle", default=0.0, show_default=True, help="Seconds without a write before each kill.")
@click.option("--way", "ways", multiple=True, type=click.Choice(WAYS), help="These ways alone.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures there as JSON too.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def failover_command(*, kills: int, idle: float, ways: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Measure how long the loss of a leader is felt: p50, p99 and max over many kills."""
    ways = ways or WAYS
    console = Console(stderr=as_json, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=as_json, highlight=False, width=_WIDTH)
    # Beside the project: what is measured is the disk it lies on, and not a temporary folder in memory.
    build = Path("build")
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="failover-", dir=build) as scratch, Progress(console=console) as progress:
        bar = progress.add_task("killing leaders", total=kills * len(ways))
        done = asyncio.run(measure(Path(scratch), ways, kills, idle, lambda: progress.advance(bar)))
    text = json.dumps(done.as_json(), indent=1)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")
    if as_json:
        print(text)
        return
    console.print(_table(done))
    if done.unasked:
        console.print(f"The leader changed {done.unasked} times before it was killed; those rounds were made again.")
