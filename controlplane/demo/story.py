"""The story of the demonstration: what is done to the region, in which order, and what is looked at afterwards."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from controlplane import sdk
from controlplane.demo.agents import AGENT_TYPE, PLAN, Agent, orchestrate
from controlplane.demo.record import Record
from controlplane.loopback import Certificate, LoopbackRegion, Program, ending

READY_TIMEOUT_S = 30.0
LEVEL_TIMEOUT_S = 10.0
STEP_TIMEOUT_S = 20.0
_SHARED = 8
_CANDIDATES = 3
_QUICK_KILLS = 10
_POLL_S = 0.05

Say = Callable[[str], None]


class NodeEnded(Exception):
    """A node ended that nobody killed."""


class Story:
    """One run of the demonstration in `folder`, with so many agents. `say` is told what happens."""

    def __init__(self, folder: Path, agents: int, say: Say) -> None:
        self._begin(Record(agents), LoopbackRegion(folder), say)

    def _begin(self, record: Record, region: LoopbackRegion, say: Say) -> None:
        self.record = record
        self._region = region
        self._programs = region.nodes
        self._say = say
        self._over = asyncio.Event()
        self._turns = asyncio.Semaphore(0)
        self._killed: Program | None = None

    async def tell(self) -> None:
        """Run it from the first node to the last comparison.

        Raises `TimeoutError` if the region does not get there, `NodeEnded`, and the errors of the operator's calls.
        """
        with ending(self._region.nodes):
            self._say("starting three nodes")
            self._region.start()
            async with self._operator() as operator, AsyncExitStack() as planes:
                await self._prepare(operator)
                crew = await self._enter_agents(planes)
                watching = asyncio.create_task(self._watch_leader(operator))
                working = [asyncio.create_task(agent.work(self._over)) for agent in crew]
                candidates = [plane for _, plane in zip(range(_CANDIDATES), self._planes, strict=False)]
                campaigning = [
                    asyncio.create_task(orchestrate(plane, self._turns, self.record, self._over))
                    for plane in candidates
                ]
                try:
                    await self._acts(operator, crew)
                finally:
                    self._over.set()
                    for task in [watching, *campaigning]:
                        task.cancel()
                    # Agents finish what is under way: whatever was acknowledged to them has to be noted.
                    await asyncio.gather(watching, *campaigning, *working, return_exceptions=True)
                await self._verify(operator)

    async def _acts(self, operator: sdk.ControlPlane, crew: Sequence[Agent]) -> None:
        self._say(f"{len(crew)} agents at work, {_CANDIDATES} of them campaign to orchestrate")
        await self._until(lambda: len(self.record.fences) == 1 and self.record.acknowledged > len(crew))
        await asyncio.sleep(3)
        await self._kill_leader(operator)
        await self._change_orchestrator()
        await self._stop_agents(operator, crew)
        await self._change_orchestrator()
        await self._kill_quickly(operator)
        self._say("a last stretch of work")
        await asyncio.sleep(2)

    @asynccontextmanager
    async def _operator(self) -> AsyncIterator[sdk.ControlPlane]:
        identity = self._region.identity("operator", "admin")
        async with asyncio.timeout(READY_TIMEOUT_S):
            plane = await connected(self._region.addresses, identity)
        try:
            yield plane
        finally:
            await plane.close()

    async def _prepare(self, operator: sdk.ControlPlane) -> None:
        self._say("setting flags and creating shared workflows")
        model = sdk.Flag(
            name="agent_model",
            type=sdk.FlagType.STRING,
            enabled=True,
            variants=[sdk.Variant(name="standard", value=sdk.FlagValue(string_value="model-a"))],
            default_variant="standard",
        )
        await operator.set_flag(model, reason="what the agents run with")
        for workflow in [PLAN, *self._shared()]:
            await operator.create_workflow(workflow, b"{}")

    def _shared(self) -> list[str]:
        return [f"shared/{number}" for number in range(_SHARED)]

    async def _enter_agents(self, planes: AsyncExitStack) -> list[Agent]:
        self._planes: list[sdk.ControlPlane] = []
        return [
            await self._enter(planes, self._region, f"agent-{number + 1:02}", self._shared()[number % _SHARED])
            for number in range(self.record.agents)
        ]

    async def _enter(self, planes: AsyncExitStack, region: LoopbackRegion, name: str, shared: str) -> Agent:
        identity = region.identity("agent", name)
        plane = await planes.enter_async_context(sdk.ControlPlane.connect(region.addresses, **identity))
        self._planes.append(plane)
        return Agent(name, plane, shared, self.record)

    async def _watch_leader(self, operator: sdk.ControlPlane) -> None:
        async for region in operator.watch_region():
            self.record.led_by(region.leader)

    async def _kill_leader(self, operator: sdk.ControlPlane) -> None:
        leader = (await operator.get_region()).region.leader
        self._say(f"SIGKILL of the leader, {leader}, under load")
        node = self._region.nodes[self._region.names.index(leader)]
        self._killed = node
        self.record.killed_s = time.monotonic()
        node.kill()
        await self._until(lambda: self.record.first_write_s is not None and len(self.record.leaders) > 1)
        self._say(f"writes go on after {self.record.failover_ms:.0f} ms, led by {self.record.leaders[-1]}")
        await asyncio.sleep(2)
        self._say(f"starting {leader} again")
        node.start()
        self._killed = None
        await self._until_answers(self._region.names.index(leader))

    async def _change_orchestrator(self) -> None:
        self._say("the orchestrator steps down, another one is elected")
        elected = len(self.record.fences)
        self._turns.release()
        await self._until(lambda: len(self.record.fences) > elected)
        await asyncio.sleep(0.5)

    async def _stop_agents(self, operator: sdk.ControlPlane, crew: Sequence[Agent]) -> None:
        scope = sdk.Scope(kind=sdk.SCOPE_AGENT_TYPE, name=AGENT_TYPE)
        self._say("kill switch for all workers")
        await self._seen_by_all(operator, scope, engage=True)
        await self._until(lambda: all(agent.stopped for agent in crew))
        self._say("all agents stand still")
        await asyncio.sleep(1)
        for agent in crew:
            agent.stopped = False
        await self._seen_by_all(operator, scope, engage=False)
        self._say("released: agents go on")

    async def _kill_quickly(self, operator: sdk.ControlPlane) -> None:
        self._say(f"{_QUICK_KILLS} more kill switches, to measure how fast all agents learn of one")
        scope = sdk.Scope(kind=sdk.SCOPE_TOOL, name="unused")
        for _ in range(_QUICK_KILLS):
            for engage in (True, False):
                await self._seen_by_all(operator, scope, engage=engage)

    async def _seen_by_all(self, operator: sdk.ControlPlane, scope: sdk.Scope, *, engage: bool) -> None:
        """Throw a switch and note how long each agent's mirror took, counted from before the call."""
        began_s = time.monotonic()
        seen: list[float] = []
        ends = [plane.on_kill_change(lambda _: seen.append(time.monotonic() - began_s)) for plane in self._planes]
        try:
            await (operator.engage if engage else operator.release)(scope, reason="demonstration")
            await self._until(lambda: len(seen) >= len(self._planes))
        finally:
            for end in ends:
                end()
        if engage:
            self.record.kill_seen_s += seen

    async def _verify(self, operator: sdk.ControlPlane) -> None:
        self._say("reading everything back")
        counts = {}
        for workflow in self._shared():
            found = await operator.get_workflow(workflow)
            counts[workflow] = sdk.JSON.decode(found.workflow.workflow.state)
        self.record.read_back(counts, await tasks_of(operator))
        self._say("comparing the replicas")
        await self._compare_replicas()

    async def _compare_replicas(self) -> None:
        identity = self._region.identity("operator", "comparer")
        end = time.monotonic() + LEVEL_TIMEOUT_S
        async with AsyncExitStack() as stack:
            nodes = {
                name: await stack.enter_async_context(
                    sdk.ControlPlane.connect(address, mirror=False, follow_leader=False, **identity)
                )
                for name, address in zip(self._region.names, self._region.addresses, strict=True)
            }
            # Leases that were given up may still be expiring: wait until all stand at one revision.
            while not self.record.replicas_equal and time.monotonic() < end:
                for name, plane in nodes.items():
                    status = await plane.get_status(consistency=sdk.LOCAL)
                    self.record.replicas[name] = (status.header.revision, status.hash)
                await asyncio.sleep(_POLL_S)

    async def _until_answers(self, number: int) -> None:
        identity = self._region.identity("operator", f"waiter-{number}")
        async with asyncio.timeout(READY_TIMEOUT_S):
            plane = await connected([self._region.addresses[number]], identity)
        await plane.close()

    async def _until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + STEP_TIMEOUT_S
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError("the region did not do in time what was waited for")
            self._check_nodes()
            await asyncio.sleep(_POLL_S / 10)

    def _check_nodes(self) -> None:
        for node in self._programs:
            if not node.running and node is not self._killed:
                raise NodeEnded(f"a node ended that nobody killed:\n{node.tail()}")


async def connected(addresses: Sequence[str], identity: Certificate) -> sdk.ControlPlane:
    """A client of `addresses`, as soon as they answer and know a leader."""
    while True:
        # A client that could not be entered is closed: each attempt has one of its own.
        plane = sdk.ControlPlane.connect(addresses, mirror=False, follow_leader=len(addresses) > 1, **identity)
        try:
            await plane.__aenter__()
            await plane.get_region()
            return plane
        except (sdk.Unavailable, sdk.OutcomeUnknown):
            await plane.close()
            await asyncio.sleep(_POLL_S)


async def tasks_of(operator: sdk.ControlPlane) -> set[str]:
    """The ids of all workflows that agents created for themselves."""
    present: set[str] = set()
    after, more = "", True
    while more:
        page = await operator.list_workflows(prefix="task/", after=after, limit=1000)
        present.update(view.workflow.id for view in page.workflows)
        after, more = max(present, default=""), page.more
    return present
