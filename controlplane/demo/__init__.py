"""`controlplane demo`: regions on this machine, agents at work, a killed leader, and what became of it."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from controlplane.demo.fleet import FleetStory
from controlplane.demo.record import Record
from controlplane.demo.story import NodeEnded, Story
from controlplane.errors import ControlPlaneError
from controlplane.loopback import ToolFailed

_REFRESH_S = 0.2
_TIMEOUT_S = 300.0
_EXIT_ENDED = 143
_AGENTS = {"1": 24, "3": 21}


@click.command("demo")
@click.option("--agents", type=click.IntRange(3, 200), help="24, or 21 in three regions, unless said otherwise.")
@click.option("--regions", type=click.Choice(["1", "3"]), default="3", show_default=True)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("build/demo.json"),
    show_default=True,
    help="Where the figures go.",
)
@click.option("--keep", is_flag=True, help="Keep certificates, logs and data, and say where they are.")
def command(agents: int | None, regions: str, out: Path, keep: bool) -> None:
    """Regions of three nodes, agents at work, a killed leader; exit code 1 if anything was lost, failed or leaked.

    With three regions, one of them is cut off and healed, a kill switch crosses borders, and the residency reports of
    all are verified offline.
    """
    folder = Path(tempfile.mkdtemp(prefix="controlplane-demo-"))
    console = Console(highlight=False)
    report: dict[str, Any] = {"ok": False}
    try:
        kind = FleetStory if regions == "3" else Story
        report = asyncio.run(_told(kind, folder, agents or _AGENTS[regions], console))
    except asyncio.CancelledError:
        sys.exit(_EXIT_ENDED)
    finally:
        if keep or not report["ok"]:
            console.print(f"certificates, logs and data: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    console.print(_report_table(report))
    console.print(_verdict(report, out))
    sys.exit(0 if report["ok"] else 1)


async def _told(kind: type[Story], folder: Path, agents: int, console: Console) -> dict[str, Any]:
    began_s = time.monotonic()
    # Ended politely from outside, it ends its nodes like after Ctrl-C. Raising from a signal handler instead could
    # hit gRPC in the middle of its own work.
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    progress = _Progress(console, began_s)
    story = kind(folder, agents, progress.say)
    with progress.following(story.record):
        ticking = asyncio.create_task(progress.tick())
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await story.tell()
        except (TimeoutError, NodeEnded, ToolFailed, ControlPlaneError) as error:
            story.record.broken_off = f"{type(error).__name__}: {error}"
        finally:
            ticking.cancel()
    return story.record.report(time.monotonic() - began_s)


class _Progress:
    """What is going on, on a terminal as a few lines that change, elsewhere as a line for each step."""

    def __init__(self, console: Console, began_s: float) -> None:
        self._console = console
        self._began_s = began_s
        self._record = Record(0)
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def following(self, record: Record) -> Live:
        self._record = record
        return self._live

    def say(self, text: str) -> None:
        self._console.print(f"{time.monotonic() - self._began_s:5.1f} s  {text}")

    async def tick(self) -> None:
        while self._console.is_terminal:
            self._live.update(self._line(), refresh=True)
            await asyncio.sleep(_REFRESH_S)

    def _line(self) -> RenderableType:
        record = self._record
        return Text(
            f"         leader {record.leaders[-1] if record.leaders else '-'}"
            f" · {record.acknowledged} writes acknowledged · {len(record.failures)} calls failed"
            f" · {len(record.fences)} orchestrators · {record.stops} agents stopped",
            style="cyan",
        )


_SHOWN = {
    "writes acknowledged": "writes_acknowledged",
    "writes lost": "writes_lost",
    "writes applied twice": "writes_applied_twice",
    "agent calls failed": "agent_calls_failed",
    "kill of the leader to the next write, ms": "failover_ms",
    "longest wait of an agent, ms": "agent_stall_ms_max",
    "changes of leader": "leader_changes",
    "kill switch seen by an agent, p50, ms": "kill_propagation_ms_p50",
    "kill switch seen by an agent, p99, ms": "kill_propagation_ms_p99",
    "acts of stopped agents": "acts_while_stopped",
    "orchestrators elected": "elections_won",
    "fences only grew": "elections_fence_monotonic",
    "stale fence refused": "stale_fence_refused",
    "replicas equal": "replicas_equal",
    "regions": "regions",
    "bytes of pinned data found elsewhere": "pinned_bytes_leaked",
    "reads of pinned data from outside denied": "pinned_read_denied",
    "writes of the region that was cut off": "isolated_writes",
    "shared record at the other regions, p50, ms": "federation_lag_ms_p50",
    "shared record at the other regions, p99, ms": "federation_lag_ms_p99",
    "kill switch seen in other regions, p99, ms": "kill_cross_region_ms_p99",
    "reports verified offline": "report_verified",
    "agents": "agents",
    "duration, s": "duration_s",
}


def _report_table(report: dict[str, Any]) -> RenderableType:
    table = Table(box=None, show_header=False, pad_edge=False)
    for label, key in _SHOWN.items():
        if key not in report:
            continue
        table.add_row(label, Text(_shown(report[key]), style="bold"))
    return table


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _verdict(report: dict[str, Any], out: Path) -> RenderableType:
    if report["ok"]:
        return Text(f"Nothing was lost. Figures in {out}", style="bold green")
    return Text("\n".join(["FAILED:", *report["problems"]]), style="bold red")
