"""What every `Log` promises, asked of the local log and of real regions of one and three nodes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from controlplane.credentials import Pem
from controlplane.datadir import Start
from controlplane.errors import OutcomeUnknown, Unavailable
from controlplane.replication import Role
from controlplane.replication.local import LocalLog
from tests.replication.livenodes import Node, Region, Register, running, until

KINDS = ["local", "one node", "three nodes"]
Make = Callable[..., contextlib.AbstractAsyncContextManager["Subject"]]


class Subject:
    """A log to ask, its machine, and a way to stop and start all of it."""

    def __init__(self, region: Region | None, node: Node | None = None) -> None:
        self.region, self._node = region, node

    async def leader(self) -> Node:
        if self.region is not None:
            return await self.region.leader()
        assert self._node is not None
        return self._node


@contextlib.asynccontextmanager
async def local(path: Path) -> AsyncIterator[Subject]:
    machine = Register(path / "local")
    log = LocalLog("n1", machine.store)
    await log.start(machine)
    yield Subject(None, Node("n1", log, machine))  # type: ignore[arg-type]
    await log.stop()
    machine.store.close()


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, tmp_path: Path, credentials: Callable[..., Pem]) -> Make:
    @contextlib.asynccontextmanager
    async def region(count: int) -> AsyncIterator[Subject]:
        how = Start.NORMAL if (tmp_path / "n1").exists() else Start.BOOTSTRAP
        async with running(tmp_path, count, credentials, how=how) as nodes:
            yield Subject(nodes)

    if request.param == "local":
        return lambda: local(tmp_path)
    return lambda: region(1 if request.param == "one node" else 3)


async def test_entries_are_applied_in_order_and_answered_with_their_index(make: Make) -> None:
    async with make() as subject:
        node = await subject.leader()
        indexes = [await node.log.append(b"%d" % n, timeout_s=5) for n in range(50)]
        assert indexes == sorted(set(indexes))
        assert node.machine.seen == [(index, b"%d" % n) for n, index in enumerate(indexes)]


async def test_concurrent_entries_are_each_applied_once(make: Make) -> None:
    async with make() as subject:
        node = await subject.leader()
        indexes = await asyncio.gather(*(node.log.append(b"%d" % n, timeout_s=5) for n in range(100)))
        assert sorted(node.machine.seen) == sorted((index, b"%d" % n) for n, index in enumerate(indexes))


async def test_a_barrier_shows_what_was_appended_before(make: Make) -> None:
    async with make() as subject:
        node = await subject.leader()
        others = subject.region.followers() if subject.region else []
        for n in range(20):
            await node.log.append(b"%d" % n, timeout_s=5)
            for each in [node, *others]:
                await each.log.barrier(timeout_s=5)
                assert each.machine.entries()[-1] == b"%d" % n


async def test_the_leader_says_so_and_is_ready(make: Make) -> None:
    async with make() as subject:
        node = await subject.leader()
        status = node.log.status()
        assert (status.role, status.leader, status.ready) == (Role.LEADER, node.name, True)
        assert status.applied <= status.commit <= status.last
        await until(lambda: node.log.status().fresh_s < 5)


async def test_listeners_hear_of_leadership(make: Make) -> None:
    async with make() as subject:
        await subject.leader()
        if subject.region is None:
            return
        heard: list[str] = []
        for node in subject.region.nodes.values():
            node.log.on_change(lambda name=node.name: heard.append(name))
        if len(subject.region.nodes) == 3:
            await (await subject.leader()).log.transfer(None, timeout_s=5)
            assert set(heard) == set(subject.region.nodes)


async def test_stop_and_start_keep_everything(make: Make) -> None:
    async with make() as subject:
        node = await subject.leader()
        for n in range(30):
            await node.log.append(b"%d" % n, timeout_s=5)
    async with make() as subject:
        node = await subject.leader()
        await node.log.append(b"30", timeout_s=5)
        assert node.machine.entries() == [b"%d" % n for n in range(31)]


async def test_a_stopped_log_refuses_with_certainty(make: Make) -> None:
    async with make() as subject:
        node = await subject.leader()
    with pytest.raises(Unavailable):
        await node.log.append(b"late", timeout_s=1)
    with pytest.raises(Unavailable):
        await node.log.barrier(timeout_s=1)
    with pytest.raises(Unavailable):
        await node.log.transfer(None, timeout_s=1)


async def test_followers_refuse_to_append(tmp_path: Path, credentials: Callable[..., Pem]) -> None:
    async with running(tmp_path, 3, credentials) as region:
        await region.leader()
        for node in region.followers():
            with pytest.raises(Unavailable) as refused:
                await node.log.append(b"x", timeout_s=5)
            assert refused.value.reason == "NOT_LEADING"


async def test_transfer_moves_leadership_to_whom_it_names(tmp_path: Path, credentials: Callable[..., Pem]) -> None:
    async with running(tmp_path, 3, credentials) as region:
        leader = await region.leader()
        target = region.followers()[0].name
        assert await leader.log.transfer(target, timeout_s=5) == target
        assert (await region.leader()).name == target
        with pytest.raises(Unavailable):
            await leader.log.transfer("n9", timeout_s=1)
        await region.nodes[target].log.append(b"after", timeout_s=5)


async def test_without_a_majority_nothing_is_acknowledged_or_read(
    tmp_path: Path, credentials: Callable[..., Pem]
) -> None:
    async with running(tmp_path, 3, credentials) as region:
        leader = await region.leader()
        await region.stop(*(node.name for node in region.followers()))
        with pytest.raises((OutcomeUnknown, Unavailable)):
            await leader.log.append(b"alone", timeout_s=0.3)
        with pytest.raises(Unavailable):
            await leader.log.barrier(timeout_s=0.3)
        await until(lambda: leader.log.status().role is not Role.LEADER)
        assert b"alone" not in leader.machine.entries()


async def test_a_stopping_leader_hands_over_without_an_election_timeout(
    tmp_path: Path, credentials: Callable[..., Pem]
) -> None:
    async with running(tmp_path, 3, credentials) as region:
        leader = await region.leader()
        name = leader.name
        began = time.monotonic()
        await region.stop(name)
        assert (await region.leader()).name != name
        assert time.monotonic() - began < 2


async def test_a_follower_is_fresh_without_being_asked(tmp_path: Path, credentials: Callable[..., Pem]) -> None:
    async with running(tmp_path, 3, credentials) as region:
        await region.leader()
        await until(lambda: all(node.log.status().fresh_s < 2 for node in region.nodes.values()))


async def test_pure_memory_needs_no_store(tmp_path: Path) -> None:
    machine = Register(tmp_path)
    log = LocalLog("n1")
    await log.start(machine)
    assert await log.append(b"x", timeout_s=20) == 2
    await log.stop()
    machine.store.close()
