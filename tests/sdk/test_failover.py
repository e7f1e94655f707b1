"""A region of three real nodes that lose their leader: callers do not notice, and nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from controlplane import sdk
from controlplane.loopback import LoopbackRegion, Program, ending
from controlplane.sdk import SCOPE_TENANT, Scope

from .scripted import eventually

WRITERS = 8
_NUMBERS = count()


@pytest.fixture(scope="module")
def region(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackRegion]:
    """One for all: each test leaves it whole, and writes names of its own."""
    region = LoopbackRegion(tmp_path_factory.mktemp("region"), fleet="test", environment="test")
    with ending(region.nodes):
        region.start()
        yield region


async def entered(region: LoopbackRegion, role: str = "agent") -> sdk.ControlPlane:
    """Connect; a region that just starts may need longer than one attempt."""
    for _ in range(3):
        cp = sdk.ControlPlane.connect(region.addresses, **region.identity(role, f"{role}-{next(_NUMBERS)}"))
        try:
            return await cp.__aenter__()
        except sdk.Unavailable:
            continue
    pytest.fail("\n".join(node.tail() for node in region.nodes))


class Load:
    """Writers that count up a workflow each; one of them shares its workflow with all."""

    def __init__(self, cp: sdk.ControlPlane, name: str) -> None:
        self.cp = cp
        self.name = name
        self.acknowledged = 0
        self._stop = False

    async def run(self) -> None:
        await self.cp.create_workflow(self.name, b'{"n":0}')
        async with asyncio.TaskGroup() as group:
            for _ in range(WRITERS):
                group.create_task(self._write())

    def stop(self) -> None:
        self._stop = True

    async def _write(self) -> None:
        while not self._stop:
            await self.cp.update_state_with_retry(self.name, lambda state: {"n": state["n"] + 1}, max_retries=10_000)
            self.acknowledged += 1

    async def more(self, writes: int = 20) -> None:
        goal = self.acknowledged + writes
        await eventually(lambda: self.acknowledged >= goal, timeout_s=15)


async def whole(operator: sdk.ControlPlane) -> None:
    """Wait until the leader hears every node again: before that, losing another one is losing the majority."""
    async with asyncio.timeout(20):
        while True:
            status = await operator.get_status()
            if status.role == "leader" and all(member.connected for member in status.members):
                return
            await asyncio.sleep(0.05)


def leader_of(cp: sdk.ControlPlane, region: LoopbackRegion) -> Program:
    return region.nodes[region.names.index(cp._channel.region.leader)]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("lose", "regain"), [(Program.kill, Program.start), (Program.pause, Program.resume)], ids=["killed", "silent"]
)
async def test_losing_the_leader_is_not_noticed(
    region: LoopbackRegion, lose: Callable[[Program], None], regain: Callable[[Program], None]
) -> None:
    cp, operator = await entered(region), await entered(region, "operator")
    load = Load(cp, name := f"shared/{lose.__name__}")
    running = asyncio.create_task(load.run())
    for _ in range(2):
        await eventually(lambda: cp._channel.region.leader != "", timeout_s=15)
        await load.more()
        leader = leader_of(cp, region)
        lose(leader)
        await load.more()
        cp.ensure_alive()
        regain(leader)
        await load.more()
        await whole(operator)
    load.stop()
    await running
    state = (await cp.get_workflow(name)).workflow.workflow.state
    assert json.loads(state) == {"n": load.acknowledged}
    await cp.close()
    await operator.close()


@pytest.mark.timeout(120)
async def test_leases_and_watches_survive_a_change_of_leader(region: LoopbackRegion) -> None:
    cp, operator = await entered(region), await entered(region, "operator")
    await cp.create_workflow("fenced", b'{"n":0}')
    seen: list[int] = []

    async def watch() -> None:
        async for change in cp.watch(kinds=("workflow",), prefix="fenced", after_revision=0):
            seen.append(change.meta.version)  # noqa: PERF401 - it never ends.

    watching = asyncio.create_task(watch())
    async with cp.election("orchestrator", ttl_s=4).campaign() as lease:
        for round_ in range(2):
            leader = leader_of(cp, region)
            leader.kill()
            for _ in range(10):
                await cp.update_state_with_retry("fenced", lambda state: {"n": state["n"] + 1}, fence=lease.fence)
            scope = Scope(kind=SCOPE_TENANT, name=f"t{round_}")
            engaged = await operator.engage(scope, reason="drill")
            await cp.mirror_synced(engaged.header.revision)
            assert cp.stopped(tenant=f"t{round_}")
            leader.start()
            await whole(operator)
        assert lease.valid
    await eventually(lambda: len(seen) == 21)
    assert seen == list(range(1, 22))
    watching.cancel()
    await cp.close()
    await operator.close()
