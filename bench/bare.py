"""What the stack costs with nothing behind it: three Python processes that replicate bytes over gRPC, and no more.

The least that a replicated log of this making has to do: mutual TLS; a leader that gathers what waits into one entry,
sends it to two followers and syncs it; followers that sync it and say so; an answer when a majority has it; watchers
that are told of what is committed. There are no elections, no state, no checks, and nothing is decoded: nothing that is
built on gRPC and Python can do without what this needs, and the rest is ours.

`python -m bench.bare NUMBER FOLDER AUTHORITY KEY CERTIFICATE ADDRESS …` is one of its nodes. `least` puts a state
machine behind it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from bench.side import CALL_TIMEOUT_S, VALUE, Write, settled, told_apart, writing
from controlplane import certs
from controlplane.identity import EVERY_ENVIRONMENT, Identity
from controlplane.loopback import Program, free_ports

_NODES: Final = 3
_LEADER: Final = 0
_CHANNELS: Final = 10
_ID_BYTES: Final = 8
_RECORD_BYTES: Final = _ID_BYTES + len(VALUE)
SESSION: Final = "/bare/Session"
_WRITE, _APPEND, _WATCH = (f"/bare/{method}" for method in ("Write", "Append", "Watch"))
_COMMITTED: Final = b"c"
_WAITING_MAX: Final = 10_000

Context = grpc.aio.ServicerContext[Any, Any]


class Bare:
    """Three such nodes, the first of which leads for ever, as a side of the benchmark."""

    name = "bare gRPC"
    program = "bench.bare"

    def __init__(self, folder: Path) -> None:
        authority = certs.create_authority("bare", folder / "certificates")
        everyone = Identity("bare", EVERY_ENVIRONMENT, "bench", "peer", "bare")
        issued = certs.issue(authority, everyone, folder / "certificates", ["127.0.0.1"])
        contents = [file.read_bytes() for file in (issued.authority, issued.key, issued.certificate)]
        self._credentials = grpc.ssl_channel_credentials(*contents)
        self._addresses = [f"127.0.0.1:{port}" for port in free_ports(_NODES)]
        files = map(str, (issued.authority, issued.key, issued.certificate))
        given = [str(folder), *files, *self._addresses]
        self.nodes = [
            Program([sys.executable, "-m", self.program, str(number), *given], folder / f"n{number}.log")
            for number in range(_NODES)
        ]

    async def start(self) -> None:
        """Start all nodes; return when writes are answered."""
        for node in self.nodes:
            node.start()
        await settled(self)

    def restart(self, node: int) -> None:
        """A node that ended does not come back: nothing is kept for it."""
        raise NotImplementedError

    async def leader(self) -> int:
        """See `Side`."""
        return _LEADER

    def writer(self, way: str) -> AbstractAsyncContextManager[Write]:
        """A client of the leader: plain calls, or a stream that takes along whatever waits."""
        return writing(way, self._channel(_LEADER), _plain, Stream)

    @asynccontextmanager
    async def probe(self, nodes: Sequence[int]) -> AsyncIterator[Sequence[Write]]:
        """See `Side`; only the leader can be asked."""
        assert [*nodes] == [_LEADER]
        async with self._channel(_LEADER) as channel:
            yield [_plain(channel)]

    def reader(self, node: int) -> AbstractAsyncContextManager[Write]:
        """There is nothing to read."""
        raise NotImplementedError

    @asynccontextmanager
    async def watchers(self, count: int) -> AsyncIterator[tuple[Sequence[AsyncIterator[object]], Write]]:
        """Streams of one watch each, spread over the nodes as ours are."""
        channels = [self._channel(number % _NODES, number) for number in range(_CHANNELS)]
        try:
            streams = [_watch(channels[number % _CHANNELS]) for number in range(count)]
            for stream in streams:
                await asyncio.wait_for(anext(stream), CALL_TIMEOUT_S)
            async with self.writer("unary") as write:
                yield streams, write
        finally:
            await asyncio.gather(*(channel.close() for channel in channels))

    def _channel(self, node: int, number: int = 0) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(self._addresses[node], self._credentials, told_apart(number))


def _plain(channel: grpc.aio.Channel) -> Write:
    ask: Callable[..., Any] = channel.unary_unary(_WRITE)
    record = bytes(_ID_BYTES) + VALUE

    async def write(_: int) -> object:
        return await ask(record, timeout=CALL_TIMEOUT_S)

    return write


async def _watch(channel: grpc.aio.Channel) -> AsyncIterator[object]:
    watch: Any = channel.unary_stream(_WATCH)
    async for message in watch(b""):
        yield message


class Stream:
    """Writes of many workers over one stream: numbered items, of which whatever waits leaves together."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call: Any = channel.stream_stream(SESSION)(wait_for_ready=True)
        self._numbers = itertools.count(1)
        self._open: dict[int, asyncio.Future[bytes]] = {}
        self._unsent: list[Any] = []
        self._work = asyncio.Event()
        self._tasks = [asyncio.create_task(self._send()), asyncio.create_task(self._receive())]

    async def write(self, worker: int) -> None:
        """Write the worker's record; returns when it is answered."""
        number = next(self._numbers)
        done = self._open[number] = asyncio.get_running_loop().create_future()
        self._unsent.append(self._item(number, worker))
        self._work.set()
        self._took(worker, await done)

    async def close(self) -> None:
        """Hang up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call.cancel()

    def _item(self, number: int, worker: int) -> Any:
        return number.to_bytes(_ID_BYTES, "big") + VALUE

    def _packed(self, items: Sequence[Any]) -> bytes:
        return b"".join(items)

    def _answers(self, message: bytes) -> Iterator[tuple[int, bytes]]:
        for at in range(0, len(message), _ID_BYTES):
            yield int.from_bytes(message[at : at + _ID_BYTES], "big"), b""

    def _took(self, worker: int, answer: bytes) -> None:
        """Learn what a worker was told."""

    async def _send(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._unsent:
                unsent, self._unsent = self._unsent, []
                await self._call.write(self._packed(unsent))

    async def _receive(self) -> None:
        try:
            async for message in self._call:
                for number, answer in self._answers(message):
                    done = self._open.pop(number)
                    if not done.done():
                        done.set_result(answer)
        finally:
            for done in self._open.values():
                done.cancel()


class Node:
    """One of the processes."""

    def __init__(self, number: int, folder: Path, credentials: grpc.ChannelCredentials, others: Sequence[str]) -> None:
        self._leads = number == _LEADER
        self._file = os.open(folder / f"log-{number}", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self._credentials, self._others = credentials, others
        self._waiting: list[tuple[bytes, asyncio.Future[bytes]]] = []
        self._work = asyncio.Event()
        self._followers: list[Any] = []
        self._complete = asyncio.Event()
        self._acknowledged = asyncio.Event()
        self._acks = 0
        self._watchers: set[asyncio.Queue[bytes]] = set()

    def handlers(self) -> grpc.GenericRpcHandler:
        """What it answers."""
        return grpc.method_handlers_generic_handler(
            "bare",
            {
                "Write": grpc.unary_unary_rpc_method_handler(self._write),
                "Session": grpc.stream_stream_rpc_method_handler(self._session),
                "Append": grpc.stream_stream_rpc_method_handler(self._append),
                "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
            },
        )

    async def lead(self) -> None:
        """Replicate what comes, one entry after the other; does not return."""
        followed = asyncio.gather(*(self._follow(address) for address in self._others))
        followed.add_done_callback(self._abandoned)
        await asyncio.wait_for(self._complete.wait(), CALL_TIMEOUT_S)
        entries = 0
        while not followed.done():
            await self._work.wait()
            self._work.clear()
            while self._waiting:
                await self._gather()
                batch, self._waiting = self._waiting, []
                entry, answers = self._plan([record for record, _ in batch])
                entries += 1
                sent = asyncio.gather(*(follower.write(entry) for follower in self._followers))
                # As in the product: the leader's disk is waited for beside its followers'.
                await self._persist(entry)
                await sent
                while self._acks < entries and not followed.done():
                    self._acknowledged.clear()
                    await self._acknowledged.wait()
                if followed.done():
                    break
                self._apply(entry)
                for (_, done), answer in zip(batch, answers, strict=True):
                    if not done.done():
                        done.set_result(answer)
                await asyncio.gather(*(follower.write(_COMMITTED) for follower in self._followers))
        await followed

    def _abandoned(self, _: object) -> None:
        """Have whoever waits see that a follower has ended: then there is nothing to measure."""
        self._work.set()
        self._acknowledged.set()

    async def _follow(self, address: str) -> None:
        """Keep one follower, and count what it has on disk; the faster one of two decides."""
        async with grpc.aio.secure_channel(address, self._credentials) as channel:
            await asyncio.wait_for(channel.channel_ready(), CALL_TIMEOUT_S)
            call: Any = channel.stream_stream(_APPEND)()
            self._followers.append(call)
            if len(self._followers) == len(self._others):
                self._complete.set()
            acks = 0
            async for _ in call:
                acks += 1
                if acks > self._acks:
                    self._acks = acks
                    self._acknowledged.set()

    def _sync(self, entry: bytes) -> None:
        os.write(self._file, entry)
        os.fdatasync(self._file)

    async def _persist(self, entry: bytes) -> None:
        """Have the leader's disk hold an entry; meanwhile it leaves for the others."""
        await asyncio.get_running_loop().run_in_executor(None, self._sync, entry)

    async def _gather(self) -> None:
        """Wait for more of a batch."""

    def _plan(self, records: Sequence[bytes]) -> tuple[bytes, Sequence[bytes]]:
        """The entry that is replicated, and what each record's writer is told then."""
        return b"".join(records), [record[:_ID_BYTES] for record in records]

    def _apply(self, entry: bytes) -> None:
        """Do what every node does with an entry that a majority has."""
        for watcher in self._watchers:
            if not watcher.full():
                watcher.put_nowait(entry)

    def _submit(self, record: bytes) -> asyncio.Future[bytes]:
        if not self._leads or len(self._waiting) >= _WAITING_MAX:
            raise RuntimeError("it does not lead, or too much waits")
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((record, done))
        self._work.set()
        return done

    async def _write(self, record: bytes, _: Context) -> bytes:
        return await self._submit(record)

    def _records(self, message: bytes) -> Iterator[tuple[int, bytes]]:
        """What came over a stream: numbers and records."""
        for at in range(0, len(message), _RECORD_BYTES):
            yield int.from_bytes(message[at : at + _ID_BYTES], "big"), message[at : at + _RECORD_BYTES]

    def _reply(self, answers: Sequence[tuple[int, bytes]]) -> bytes:
        """What goes back: numbers and what their writers are told."""
        return b"".join(answer for _, answer in answers)

    async def _session(self, _: object, context: Context) -> None:
        answered: list[tuple[int, bytes]] = []
        ready = asyncio.Event()

        async def answer() -> None:
            while True:
                await ready.wait()
                ready.clear()
                while answered:
                    reply = self._reply(answered)
                    answered.clear()
                    await context.write(reply)

        def note(number: int, done: asyncio.Future[bytes]) -> None:
            answered.append((number, done.result()))
            ready.set()

        writer = asyncio.create_task(answer())
        try:
            while isinstance(message := await context.read(), bytes):
                for number, record in self._records(message):
                    self._submit(record).add_done_callback(partial(note, number))
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _append(self, _: object, context: Context) -> None:
        entry = b""
        while isinstance(message := await context.read(), bytes):
            if message == _COMMITTED:
                self._apply(entry)
                continue
            entry = message
            self._sync(entry)
            await context.write(b"a")

    async def _watch(self, _: object, context: Context) -> None:
        told: asyncio.Queue[bytes] = asyncio.Queue(64)
        self._watchers.add(told)
        try:
            await context.write(b"started")
            while True:
                await context.write(await told.get())
        finally:
            self._watchers.discard(told)


def main(made: type[Node]) -> None:
    """Be one of the nodes, as the arguments of the process say; does not return."""
    number, folder, *files = sys.argv[1:6]
    asyncio.run(_serve(made, int(number), Path(folder), [Path(file) for file in files], sys.argv[6:]))


async def _serve(made: type[Node], number: int, folder: Path, files: Sequence[Path], addresses: Sequence[str]) -> None:
    ca, key, certificate = contents = [file.read_bytes() for file in files]
    others = [address for other, address in enumerate(addresses) if other != number]
    node = made(number, folder, grpc.ssl_channel_credentials(*contents), others)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((node.handlers(),))
    server.add_secure_port(
        addresses[number], grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
    )
    await server.start()
    await (node.lead() if number == _LEADER else server.wait_for_termination())


if __name__ == "__main__":
    main(Node)
