"""Links that run through this process: one TCP proxy for every port that one node dials at another. Needs no rights.

Theory of operation. Node a reaches node b only at addresses of proxies that belong to a alone, so that everything
between two nodes passes here and can be told by direction.

1. **A cut holds, it does not drop.** TCP would send again what was lost until the way is open; so does a cut: what
   waits here, the end of a connection included, goes on when it heals. What TCP's backing off adds (seconds after a
   long cut) is not shown; namespaces show it.
2. **Directions are apart.** What a says to b passes the link (a, b) whoever dialled.
3. **A new connection needs both directions** and waits for them, as a handshake does.
4. **Order is kept**, whatever delay and jitter say.
5. **Bounded.** A connection holds `_CHUNKS_MAX` chunks each way and then stops reading, which its sender feels.
6. **Only nodes are cut off.** A node tells its clients the leader's address as it knows it, that of its proxy. Who is
   not the node itself goes through at once.
7. **Counted.** `dropped` counts what a cut held, `delayed` what a pace held up: a fault that met no traffic shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Final

from chaos.real.links import Pace, Pair
from controlplane.config import split_address

_CHUNK_BYTES: Final = 64 << 10
_CHUNKS_MAX: Final = 64
_CONNECTIONS_MAX: Final = 1024
_RST: Final = struct.pack("ii", 1, 0)
_NO_PACE: Final = Pace()


class _Link:
    """One direction between two nodes."""

    def __init__(self, random: Random) -> None:
        self.pace = _NO_PACE
        self.dropped = self.delayed = 0
        self._open = asyncio.Event()
        self._open.set()
        self._random = random

    def cut(self, cut: bool) -> None:
        if cut:
            self._open.clear()
        else:
            self._open.set()

    async def passable(self) -> None:
        if not self._open.is_set():
            self.dropped += 1
            await self._open.wait()

    def due_s(self, size_bytes: int, last_s: float) -> float:
        """When something of this size that arrives now may go on, given when the one before it may."""
        now_s, pace = time.monotonic(), self.pace
        if pace is _NO_PACE:
            return max(now_s, last_s)
        wait_s = (pace.delay_ms + self._random.random() * pace.jitter_ms) / 1000
        due_s = max(now_s + wait_s, last_s)
        return due_s + size_bytes / pace.rate_bytes_s if pace.rate_bytes_s else due_s

    async def wait_until(self, due_s: float) -> None:
        left_s = due_s - time.monotonic()
        if left_s > 0:
            self.delayed += 1
            await asyncio.sleep(left_s)


class _Connection:
    """One connection of a dialler, and the one that was made for it."""

    def __init__(self, there: _Link, back: _Link) -> None:
        self._there, self._back = there, back
        self._writers: list[asyncio.StreamWriter] = []

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str) -> None:
        """Carry both ways until both are over."""
        self._writers.append(writer)
        try:
            await self._there.passable()
            await self._back.passable()
            onward_reader, onward_writer = await asyncio.open_connection(*split_address(target))
            self._writers.append(onward_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(_carry(self._there, reader, onward_writer))
                group.create_task(_carry(self._back, onward_reader, writer))
        except OSError:
            pass  # Nobody listens there: the dialler sees its connection end, as it would have seen a refusal.
        finally:
            self.reset()

    def reset(self) -> None:
        """End both connections at once, so that their other ends see a reset."""
        for writer in self._writers:
            _reset(writer)


async def _carry(link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bring what `reader` gives to `writer` over the link, and then its end."""
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_CHUNKS_MAX)
    reading = asyncio.create_task(_read(link, reader, waiting))
    try:
        with contextlib.suppress(OSError):
            while True:
                due_s, chunk = await waiting.get()
                await link.wait_until(due_s)
                await link.passable()
                if not chunk:
                    break
                writer.write(chunk)
                await writer.drain()
    finally:
        reading.cancel()
        writer.close()


async def _read(link: _Link, reader: asyncio.StreamReader, waiting: asyncio.Queue[tuple[float, bytes]]) -> None:
    due_s, chunk = 0.0, b"-"
    while chunk:
        try:
            chunk = await reader.read(_CHUNK_BYTES)
        except OSError:
            chunk = b""
        due_s = link.due_s(len(chunk), due_s)
        await waiting.put((due_s, chunk))


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None and not writer.transport.is_closing():
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    writer.transport.abort()


def holds(process: int, port: int) -> bool:
    """Whether a process has a connection of this machine from `port`. False if it is gone."""
    sockets = {f"socket:[{inode}]" for inode in _inodes(port)}
    try:
        return any(_link_text(entry) in sockets for entry in Path(f"/proc/{process}/fd").iterdir())
    except OSError:
        return False


def _inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for row in Path(table).read_text().splitlines()[1:]:
            words = row.split()
            if int(words[1].rpartition(":")[2], 16) == port:
                yield words[9]


def _link_text(entry: Path) -> str:
    try:
        return str(entry.readlink())
    except FileNotFoundError:
        return ""  # Closed meanwhile.


class Proxies:
    """All proxies of a region; `Links` for its nodes. `open` makes one, `close` ends everything."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._links: dict[Pair, _Link] = {}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._connections: dict[Pair, set[_Connection]] = {}

    async def open(self, pair: Pair, target: str, is_node: Callable[[int], bool] = lambda _: True) -> str:
        """Return an address of 127.0.0.1 at which the first of `pair` reaches the second, which listens at `target`.

        `is_node` tells from the port of a dialler whether that is the first of `pair`.
        """
        links = self._link(pair), self._link(pair[::-1])

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(self._tasks) >= _CONNECTIONS_MAX:
                _reset(writer)
                return
            known = is_node(writer.get_extra_info("peername")[1])
            connection = _Connection(*(links if known else (_Link(self._random), _Link(self._random))))
            mine = self._connections.setdefault(pair, set())
            mine.add(connection)
            task = asyncio.create_task(connection.run(reader, writer, target), name=f"proxy {pair[0]} to {pair[1]}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(lambda _: mine.discard(connection))

        server = await asyncio.start_server(accepted, "127.0.0.1", 0)
        self._servers.append(server)
        return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """End all connections and proxies."""
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def cut(self, pairs: Iterable[Pair]) -> None:
        """See `Links`."""
        cut = frozenset(pairs)
        for pair, link in self._links.items():
            link.cut(pair in cut)

    async def dropped(self) -> int:
        """See `Links`: how often a cut held something."""
        return sum(link.dropped for link in self._links.values())

    async def slow(self, paces: Mapping[Pair, Pace]) -> None:
        """See `Links`."""
        for pair, link in self._links.items():
            link.pace = paces.get(pair, _NO_PACE)

    async def delayed(self) -> int:
        """See `Links`."""
        return sum(link.delayed for link in self._links.values())

    async def reset(self, pairs: Iterable[Pair]) -> int:
        """See `Links`: connections that the first of each pair dialled."""
        broken = [connection for pair in pairs for connection in self._connections.get(pair, ())]
        for connection in broken:
            connection.reset()
        return len(broken)

    def _link(self, pair: Pair) -> _Link:
        if pair not in self._links:
            self._links[pair] = _Link(Random(self._random.random()))
        return self._links[pair]
