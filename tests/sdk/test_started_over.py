"""A region that comes back without its data: agents must not go on with what they had seen of the one before."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controlplane import sdk
from controlplane.loopback import Program, free_ports
from controlplane.sdk import SCOPE_TOOL, Compacted, MirrorStale, Scope

from .scripted import eventually, scripted
from .test_channel import client

SEARCH = Scope(kind=SCOPE_TOOL, name="search")


@contextlib.asynccontextmanager
async def served(folder: Path, port: int) -> AsyncIterator[str]:
    """A region of one node over `folder`."""
    node = Program(
        [sys.executable, "-m", "controlplane", "dev", "--port", str(port), "--data", str(folder)],
        folder.with_suffix(".log"),
    )
    node.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        node.kill()


def permission(cp: sdk.ControlPlane) -> str:
    try:
        return "stopped" if cp.stopped(tools=["search"]) else "may act"
    except MirrorStale:
        return "unknown"


async def test_agents_follow_a_region_that_lost_its_data(tmp_path: Path) -> None:
    [port] = free_ports(1)
    async with contextlib.AsyncExitStack() as stack:
        async with served(tmp_path / "one", port) as address:
            agent = sdk.ControlPlane.connect(address, insecure=True, mirror_age_max_ms=2000)
            await stack.enter_async_context(agent)
            for number in range(30):
                reply = await agent.create_workflow(f"w{number}", b"{}", timeout_s=20)
            before = reply.header.revision
            heard = asyncio.ensure_future(anext(agent.watch(kinds=["workflow"], after_revision=before)))
            assert permission(agent) == "may act"
        async with served(tmp_path / "two", port) as address:
            async with sdk.ControlPlane.connect(address, insecure=True) as operator:
                assert (await operator.engage(SEARCH, reason="test")).header.revision < before
            # It hears of the switch although that is older than what it had seen.
            await eventually(lambda: permission(agent) == "stopped", timeout_s=20)
            with pytest.raises(Compacted) as raised:
                await heard
            assert raised.value.reason == "REGION_STARTED_OVER"
            assert agent.revision < before
            await agent.create_workflow("new", b"{}")
            async with sdk.ControlPlane.connect(address, insecure=True) as operator:
                reply = await operator.release(SEARCH, reason="test")
            await agent.mirror_synced(reply.header.revision, timeout_s=20)
            assert permission(agent) == "may act"


async def test_a_node_that_is_behind_is_not_a_region_that_was_started_over() -> None:
    async with scripted(lambda _: None) as [node], client(node.address) as cp:
        told: list[None] = []
        channel = cp._channel
        channel.on_started_over.append(lambda: told.append(None))
        node.revision = 50
        await cp.get_region()
        node.revision, node.age_ms = 40, 3_600_000
        await cp.get_region()
        assert (cp.revision, told) == (50, [])
        # Of a state that is younger than the newest one seen, and has less.
        node.age_ms = 0
        async with asyncio.timeout(20):
            while not told:
                await cp.get_region()
                await asyncio.sleep(0.05)
        assert cp.revision == 40
