"""What the benchmark asks of either side."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

import grpc

from controlplane.loopback import Program

Write = Callable[[int], Awaitable[object]]
"""Write (or read) the record of the worker of this number; returns when it is committed."""
VALUE = b"v" * 200
CALL_TIMEOUT_S = 10.0
SETTLE_TIMEOUT_S = 30.0
RECONNECT = [
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 50),
]
"""Channel options: a node that comes back is found at once, not after gRPC's second of patience."""
# Writes at this pace, each answered within the next, mean that a leader is seated and caches are warm.
SETTLED_WRITES = 50
SETTLED_WRITE_S = 0.05


class Side(Protocol):
    """Three nodes of one system, and clients for them."""

    name: str

    @property
    def nodes(self) -> Sequence[Program]:
        """The processes, in the order of their numbers."""

    async def start(self) -> None:
        """Start all nodes, empty; return when writes are committed."""

    async def leader(self) -> int:
        """The number of the node that leads. Raises `LookupError` when none does."""

    def restart(self, node: int) -> None:
        """Start a node that has ended, on the data it left."""

    def writer(self, way: str) -> AbstractAsyncContextManager[Write]:
        """A client: "unary", or "stream" for the way that coalesces the writes of all workers."""

    def probe(self, nodes: Sequence[int]) -> AbstractAsyncContextManager[Sequence[Write]]:
        """One plain unary writer for each of `nodes`, which talks to it alone."""

    def reader(self, node: int) -> AbstractAsyncContextManager[Write]:
        """Linearizable reads through one node, which fail fast while it does not serve."""

    def watchers(self, count: int) -> AbstractAsyncContextManager[tuple[Sequence[AsyncIterator[object]], Write]]:
        """Started watchers of one record, as iterators over what they are told, and the write that they see."""


class Stream(Protocol):
    """Takes along whatever waits."""

    async def write(self, worker: int) -> None:
        """Write the record of a worker; returns when it is committed."""

    async def close(self) -> None:
        """Hang up."""


@asynccontextmanager
async def writing(
    way: str,
    channel: grpc.aio.Channel,
    plain: Callable[[grpc.aio.Channel], Write],
    stream: Callable[[grpc.aio.Channel], Stream],
) -> AsyncIterator[Write]:
    """A client over a channel of its own: "unary" calls, or a "stream" of them."""
    async with channel:
        if way == "unary":
            yield plain(channel)
        else:
            together = stream(channel)
            try:
                yield together.write
            finally:
                await together.close()


def told_apart(number: int) -> list[tuple[str, int]]:
    """Channel options that give a channel a connection of its own."""
    return [("grpc.use_local_subchannel_pool", 1), ("bench.channel", number)]


async def settled(side: Side) -> None:
    """Return when writes go through at an even pace. Raises `TimeoutError`."""
    async with asyncio.timeout(SETTLE_TIMEOUT_S), side.probe([await _any_leader(side)]) as [write]:
        good = 0
        while good < SETTLED_WRITES:
            began = time.monotonic()
            try:
                await asyncio.wait_for(write(0), 1.0)
            except (grpc.RpcError, TimeoutError):
                good = 0
                await asyncio.sleep(0.05)
            else:
                good = good + 1 if time.monotonic() - began < SETTLED_WRITE_S else 0


async def _any_leader(side: Side) -> int:
    while True:
        try:
            return await side.leader()
        except LookupError:
            await asyncio.sleep(0.05)


def pause(side: Side) -> None:
    """Take a side off the processor."""
    for node in side.nodes:
        node.pause()


async def resume(side: Side) -> None:
    """Put it back and wait until it works evenly."""
    for node in side.nodes:
        node.resume()
    await settled(side)
