"""A node that is alone: what it acknowledged, it has on disk."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controlplane.errors import Fatal, NotFound, OutcomeUnknown
from controlplane.kernel.store import MemoryStore
from controlplane.node import Call, Node
from controlplane.replication.local import Durable, LocalLog
from controlplane.storage import RocksStore
from controlplane.v1 import api_pb2 as api
from tests.node.harness import AGENT, PARTITIONS, reply_of, until, within


class Gated(RocksStore):
    """Syncs when the test lets it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gate, self.waits = threading.Event(), 0
        self.gate.set()

    def sync(self) -> None:
        self.waits += 1
        assert self.gate.wait(20)
        super().sync()


class Disk(MemoryStore):
    """Keeps what a power cut would leave: what was committed before the last sync."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: MemoryStore = self
        self.broken = False

    def sync(self) -> None:
        if self.broken:
            raise Fatal("cannot sync")
        self.kept = self.snapshot()


def restarted(kept: MemoryStore) -> Disk:
    store = Disk()
    store._values, store._order = dict(kept._values), list(kept._order)
    return store


def node_over(store: Durable) -> Node:
    return Node(
        fleet="fleet",
        region="eu",
        name="n1",
        partitions=PARTITIONS,
        store=store,
        log=LocalLog("n1", store),
        clock=asyncio.get_running_loop().time,
        wall_ms=lambda: 1_700_000_000_000,
        entropy=os.urandom,
    )


@asynccontextmanager
async def running(store: Durable) -> AsyncIterator[Node]:
    node = node_over(store)
    await node.start()
    yield node
    await node.stop()


def ask(node: Node, method: str, request: api.CreateWorkflowRequest | api.GetWorkflowRequest) -> asyncio.Future[bytes]:
    deadline = asyncio.get_running_loop().time() + 20
    return node.submit(Call(method, request.SerializeToString(), AGENT, "prod", deadline))


def create(node: Node, name: str) -> asyncio.Future[bytes]:
    header = api.RequestHeader(request_id=os.urandom(16))
    return ask(node, "CreateWorkflow", api.CreateWorkflowRequest(id=name, state=b"s", header=header))


def look(node: Node, name: str) -> asyncio.Future[bytes]:
    return ask(node, "GetWorkflow", api.GetWorkflowRequest(id=name, header={"consistency": api.LOCAL}))


async def test_nothing_is_acknowledged_or_shown_before_it_is_on_disk(tmp_path: Path) -> None:
    store = Gated(tmp_path / "store")
    async with running(store) as node:
        store.gate.clear()
        waits, written = store.waits, create(node, "w")
        await until(lambda: store.waits > waits)
        assert not written.done()
        assert isinstance(look(node, "w").exception(), NotFound)
        store.gate.set()
        assert reply_of("CreateWorkflow", await within(written)).version == 1
        assert look(node, "w").exception() is None
    store.close()


async def test_what_was_acknowledged_is_there_after_a_power_cut() -> None:
    store, left = Disk(), []
    async with running(store) as node:
        for n in range(3):
            written = create(node, f"w{n}")
            written.add_done_callback(lambda _: left.append(store.kept))
            await within(written)
            state = node.state
    assert len(left) == 3
    for count, kept in enumerate(left, 1):
        async with running(restarted(kept)) as node:
            found = [look(node, f"w{n}").exception() is None for n in range(3)]
            assert found == [n < count for n in range(3)]
            assert reply_of("CreateWorkflow", await within(create(node, "more"))).version == 1
    async with running(restarted(left[-1])) as node:
        assert (node.state.revision, node.state.hash) == (state.revision, state.hash)


async def test_what_could_not_be_synced_is_not_acknowledged() -> None:
    store = Disk()
    node = node_over(store)
    await node.start()
    store.broken = True
    with pytest.raises(OutcomeUnknown):
        await within(create(node, "w"))
    with pytest.raises(Fatal, match="cannot sync"):
        await within(node.failed)
    store.broken = False
    await node.stop()
