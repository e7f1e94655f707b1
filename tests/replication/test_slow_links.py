"""Links that are slow, and not silent: real nodes whose every connection goes through a relay with a rate."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

from controlplane.datadir import Start
from controlplane.replication.guard import Timing
from tests.replication.livenodes import Region

_PIECE_BYTES = 16 << 10


class Uplink:
    """What one node may send, to all others together."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = 0.0

    async def carry(self, size: int) -> None:
        """Return when `size` bytes have left."""
        loop = asyncio.get_running_loop()
        self._free_at = max(self._free_at, loop.time()) + size / self._bytes_per_s
        await asyncio.sleep(self._free_at - loop.time())


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uplink: Uplink) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(_PIECE_BYTES):
            await uplink.carry(len(piece))
            writer.write(piece)
            await writer.drain()
    writer.close()


class SlowRegion(Region):
    """Nodes that reach each other through relays, and send `bytes_per_s` each."""

    def __init__(self, path: Path, bytes_per_s: float, **options: object) -> None:
        super().__init__(path, ("n1", "n2", "n3"), None, options)
        self._uplinks = {name: Uplink(bytes_per_s) for name in self.names}
        self._relays: dict[tuple[str, str], asyncio.Server] = {}

    async def relay(self) -> None:
        pairs = [(source, target) for source in self.names for target in self.names if source != target]
        for source, target in pairs:
            self._relays[source, target] = await asyncio.start_server(
                lambda reader, writer, s=source, t=target: self._serve(s, t, reader, writer),  # type: ignore[misc]
                "127.0.0.1",
            )

    async def _serve(self, source: str, target: str, back: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        try:
            forth, into = await asyncio.open_connection(*self.addresses[target].split(":"), limit=_PIECE_BYTES)
        except (OSError, KeyError):
            out.close()
            return
        await asyncio.gather(pump(back, into, self._uplinks[source]), pump(forth, out, self._uplinks[target]))

    def _others(self, name: str) -> dict[str, str]:
        ports = {other: self._relays[name, other].sockets[0].getsockname()[1] for other in self.names if other != name}
        return {other: f"127.0.0.1:{port}" for other, port in ports.items()}

    async def close(self) -> None:
        await self.stop()
        for server in self._relays.values():
            server.close()


@contextlib.asynccontextmanager
async def slow(path: Path, bytes_per_s: float, **options: object) -> AsyncIterator[SlowRegion]:
    region = SlowRegion(path, bytes_per_s, **options)
    await region.relay()
    try:
        await region.start(how=Start.BOOTSTRAP)
        yield region
    finally:
        await region.close()


async def test_a_large_entry_on_a_slow_link_costs_its_leader_nothing(tmp_path: Path) -> None:
    """It is on its way to both followers for 1.2 s, longer than they wait for a leader that says nothing."""
    timing = Timing(election_min_s=0.5, election_max_s=1.0, beat_s=0.1)
    async with slow(tmp_path, 3.2e6, timing=timing) as region:
        leader = await region.leader()
        term = leader.log.status().term
        for _ in range(2):
            began = asyncio.get_running_loop().time()
            await leader.log.append(os.urandom(1_900_000), timeout_s=10)
            assert asyncio.get_running_loop().time() - began > timing.election_min_s
        assert {node.log.status().term for node in region.working()} == {term}
        assert all(node.log.counters.links_broken == 0 for node in region.nodes.values())
