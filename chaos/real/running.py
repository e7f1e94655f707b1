"""One run against real processes: load, faults one after the other, healing, and then every question there is.

1. The load runs from beginning to end. The first and the last part are calm; in them it has to reach its floor.
2. In between faults come one after the other: inject, hold, see that it really did something, heal, wait until writes
   and linearizable reads go through every node again. The next one comes only then, and at least a moment later.
3. Afterwards every node is asked for everything, the nodes are stopped and compared byte for byte, and the history is
   checked. Nothing is tried twice: whatever is wrong makes the run red.
4. Faults and load draw from the seed. Real processes do not repeat themselves, so the same seed gives the same plan and
   not the same history; a red run keeps what it saw.
"""

from __future__ import annotations

import asyncio
import shutil
import time
import traceback
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

from chaos.real import Unsupported
from chaos.real.cluster import Cluster, NodeEnded, Topology
from chaos.real.faults import NEMESES, Fault, Nemesis
from chaos.real.report import Led, Report, Strike, weigh
from chaos.real.workloads import WORKLOADS, Workload

NONE, MIXED = "none", "mixed"
CALM_SHARE = 0.15
CALM_S_MIN = 1.2
"""The calm parts at both ends last so long at least."""
HOLD_S = (0.8, 2.5)
"""How long a fault lasts at least; one that is not felt yet gets the time to be."""
REST_S = (0.4, 1.5)
"""How long the region is left alone between two."""
SERVE_TIMEOUT_S = 30.0
"""So soon after healing writes and linearizable reads have to go through every node again."""
REPLICAS_TIMEOUT_S = 40.0
END_TIMEOUT_S = 30.0
"""Workers end with what they asked last within this time."""
HISTORY = "history.jsonl"
_LOOK_S = 0.1

Say = Callable[[str, float], None]
"""Told what happens, and how many seconds of the load have passed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. `topology` "auto": the usual one of the nemesis."""

    workload: str
    nemesis: str
    seconds: float
    seed: int
    nodes: int = 3
    topology: str = "auto"

    @property
    def command(self) -> str:
        """The command that repeats it."""
        asked = f"python -m chaos run --workload {self.workload} --nemesis {self.nemesis} --seconds {self.seconds:g}"
        asked += f" --seed {self.seed}"
        if self.nodes != 3:
            asked += f" --nodes {self.nodes}"
        return asked if self.topology == "auto" else f"{asked} --topology {self.topology}"


class Run:
    """One run in `folder`, which has to be empty. `workloads` and `nemeses` are what there is to choose from."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        say: Say,
        workloads: Mapping[str, type[Workload]] = WORKLOADS,
        nemeses: Mapping[str, Nemesis] = NEMESES,
    ) -> None:
        self._nemesis = nemeses[plan.nemesis] if plan.nemesis != NONE else None
        self._place = _place(plan, self._nemesis)
        self.report = Report(
            plan.workload, plan.nemesis, plan.nodes, self._place, plan.seconds, plan.seed, plan.command, str(folder)
        )
        self.workload: Workload | None = None
        self.began_ns = 0
        self._plan = plan
        self._folder = folder
        self._say = say
        self._workloads = workloads
        self._random = Random(f"{plan.seed}/{plan.nemesis}")
        self._calm: list[tuple[float, float]] = []

    async def go(self) -> Report:
        """Run it to its end. Whatever stops it is a finding; only cancelling comes through."""
        try:
            await self._run()
        except Unsupported as error:
            self.report.skipped = str(error)
        except NodeEnded as error:
            self.report.found("node ended", str(error))
        except Exception as error:
            # The one boundary: a run that breaks is red, keeps its folder, and does not keep others from running.
            self.report.found("broken", f"{type(error).__name__}: {error}")
            (self._folder / "broken.txt").write_text(traceback.format_exc())
        if self.workload is not None:
            self._conclude(self.workload)
        return self.report

    # While it runs

    async def _run(self) -> None:
        self._say("starting the nodes", 0.0)
        folder = self._folder.resolve() / "region"
        folder.mkdir(parents=True)
        async with Cluster(folder, self._plan.nodes, self._place, shim=self._wants_shim()) as cluster:
            async with self._workloads[self._plan.workload](cluster, self._plan.seed) as workload:
                self.workload = workload
                await self._loaded(cluster, workload)
                self._say("asking every node for everything", self._plan.seconds)
                await self._read_back(workload)
            self._say("comparing the replicas byte for byte", self._plan.seconds)
            await self._compare(cluster)

    def _wants_shim(self) -> bool:
        """Whether disks and clocks are to be broken: by these faults, or among all if this machine can."""
        if self._nemesis is None:
            return False
        return self._nemesis.shim or (self._nemesis.name == MIXED and shutil.which("gcc") is not None)

    async def _loaded(self, cluster: Cluster, workload: Workload) -> None:
        """Run load and faults side by side."""
        over = asyncio.Event()
        self.began_ns = time.monotonic_ns()
        watching = asyncio.create_task(self._watch_leaders(workload))
        working = [asyncio.create_task(work) for work in workload.work(over)]
        try:
            await _while_all_run(self._acts(cluster, workload), working)
            over.set()
            await asyncio.wait_for(asyncio.gather(*working), END_TIMEOUT_S)
        finally:
            for task in (watching, *working):
                task.cancel()
            await asyncio.gather(watching, *working, return_exceptions=True)

    async def _acts(self, cluster: Cluster, workload: Workload) -> None:
        """A calm part, the faults, a calm part."""
        calm_s = max(CALM_S_MIN, CALM_SHARE * self._plan.seconds)
        end_s = self._plan.seconds - calm_s
        if self._nemesis is None:
            await self._be_calm(self._plan.seconds)
            return
        await self._be_calm(calm_s)
        fault = self._nemesis.make()
        while True:
            await self._strike(cluster, workload, fault)
            rest_s = self._random.uniform(*REST_S)
            if self._now_s() + rest_s >= end_s:
                break
            await self._be_calm(rest_s, counts=False)
        await self._be_calm(max(calm_s, self._plan.seconds - self._now_s()))
        cluster.check()

    async def _strike(self, cluster: Cluster, workload: Workload, fault: Fault) -> None:
        """Break something, see it broken, mend it, and wait until the region serves."""
        strike = Strike(fault.name, self._now_s())
        self.report.strikes.append(strike)
        strike.detail = await fault.inject(cluster, self._random)
        strike.fault = fault.name
        self._say(f"{fault.name}: {strike.detail}", self._now_s())
        await self._hold(self._random.uniform(*HOLD_S), f"{fault.name}: {strike.detail}")
        strike.observed = await fault.observed()
        await fault.heal()
        strike.healed_s = self._now_s()
        self._say(f"{fault.name} healed", self._now_s())
        await self._serving(cluster, workload)
        strike.served_s = self._now_s()

    async def _serving(self, cluster: Cluster, workload: Workload) -> None:
        """Wait until every node serves. Raises `TimeoutError` saying where the nodes stand."""
        try:
            async with asyncio.timeout(SERVE_TIMEOUT_S):
                await cluster.settled(SERVE_TIMEOUT_S)
                await workload.answered()
        except TimeoutError:
            found = [await cluster.status(name) for name in cluster.names]
            where = ", ".join(f"{each.node} {each.role} at {each.header.revision}" for each in found if each)
            raise TimeoutError(f"not every node serves {SERVE_TIMEOUT_S:g} s after healing: {where}") from None

    async def _be_calm(self, seconds: float, *, counts: bool = True) -> None:
        began_s = self._now_s()
        await self._hold(seconds, "calm")
        if counts:
            self._calm.append((began_s, self._now_s()))

    async def _hold(self, seconds: float, what: str) -> None:
        end_s = self._now_s() + seconds
        while (left_s := end_s - self._now_s()) > 0:
            self._say(what, self._now_s())
            await asyncio.sleep(min(left_s, _LOOK_S))

    async def _watch_leaders(self, workload: Workload) -> None:
        async for region in workload.callers.sdk.watch_region():
            last = self.report.leaders[-1] if self.report.leaders else None
            if region.leader and (last is None or (last.leader, last.term) != (region.leader, region.term)):
                self.report.leaders.append(Led(self._now_s(), region.leader, region.term))

    async def _read_back(self, workload: Workload) -> None:
        try:
            await workload.read_back()
        except TimeoutError:
            self.report.found("healing", "not every node answered for everything in time")

    async def _compare(self, cluster: Cluster) -> None:
        try:
            replicas = await cluster.replicas_equal(REPLICAS_TIMEOUT_S)
        except TimeoutError as error:
            self.report.found("replicas", str(error))
            return
        if not replicas.equal:
            self.report.found("replicas", replicas.difference)
        self.report.checked["replicas"] = f"{replicas.rows:,} rows equal at revision {replicas.revision:,}"

    def _now_s(self) -> float:
        return round((time.monotonic_ns() - self.began_ns) / 1e9, 3)

    # When it is over

    def _conclude(self, workload: Workload) -> None:
        """Check the history, and say what was seen."""
        self._say("checking the history", self._plan.seconds)
        book, report = workload.book, self.report
        book.recorder.write(self._folder / HISTORY)
        workload.judge(book.recorder.history())
        report.findings += workload.findings
        report.checked |= workload.checked
        report.counts |= book.counts
        report.load.operations, report.load.answered = book.operations, len(book.answered_ns)
        report.load.failed = len(book.failed_ns)
        report.load.writes, report.load.unknown = book.writes, book.unknown
        report.load.floor = workload.floor
        report.load.calm_rate = self._calm_rate(book.answered_ns)
        weigh(report)

    def _calm_rate(self, answered_ns: Sequence[int]) -> float:
        """Answers per second of the calm parts."""
        spans = [(self.began_ns + int(a * 1e9), self.began_ns + int(b * 1e9)) for a, b in self._calm]
        answered = sum(bisect_right(answered_ns, b) - bisect_left(answered_ns, a) for a, b in spans)
        return round(answered / max(1e-9, sum(b - a for a, b in self._calm)), 1)


def _place(plan: Plan, nemesis: Nemesis | None) -> Topology:
    """The topology that a plan takes: the one it names, or the usual one of its nemesis."""
    usual: Topology = nemesis.topologies[0] if nemesis is not None else "direct"
    return usual if plan.topology == "auto" else cast(Topology, plan.topology)


async def _while_all_run(acts: Coroutine[Any, Any, None], working: Sequence[asyncio.Task[None]]) -> None:
    """Run `acts` to its end; if a worker breaks meanwhile, stop and raise what broke it."""
    acting = asyncio.create_task(acts)
    try:
        while not acting.done():
            waited = {acting, *(task for task in working if not task.done())}
            done, _ = await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        acting.cancel()
        await asyncio.gather(acting, return_exceptions=True)
