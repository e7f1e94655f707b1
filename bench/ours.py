"""This control plane: a three-node region on loopback with mutual TLS, and the clients that load it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from bench.side import CALL_TIMEOUT_S, RECONNECT, VALUE, Write, settled, told_apart
from controlplane import sdk
from controlplane.loopback import LoopbackRegion, Program
from controlplane.v1 import api_pb2 as api

_CHANNELS = 10
_WATCHED = 0
R = TypeVar("R", bound=Message)


class Ours:
    """One region. A worker's record is a workflow: created by its first write, compared and swapped afterwards."""

    name = "controlplane"

    def __init__(self, folder: Path, *, ledger: bool = True) -> None:
        """Without its `ledger` it is there to be compared with."""
        self._region = LoopbackRegion(folder, fleet="bench")
        if not ledger:
            for node in self.nodes:
                node.argv[node.argv.index("controlplane")] = "bench.unledgered"
        self._identity = self._region.identity("operator", "bench")
        contents = [self._identity[part].read_bytes() for part in ("ca", "key", "cert")]
        self._credentials = grpc.ssl_channel_credentials(*contents)
        self._versions: dict[int, int] = {}
        self._probes = 0

    @property
    def nodes(self) -> Sequence[Program]:
        """The processes, in the order of their numbers."""
        return self._region.nodes

    async def start(self) -> None:
        """Start all nodes; return when writes are committed."""
        self._region.start()
        await settled(self)

    def restart(self, node: int) -> None:
        """Start a node that has ended, on the data it left."""
        self.nodes[node].start()

    async def leader(self) -> int:
        """The number of the node that leads."""
        for number in range(len(self.nodes)):
            async with self._channel(number) as channel:
                try:
                    request = api.GetStatusRequest(header=api.RequestHeader(consistency=api.LOCAL))
                    status = await _method(channel, "Operators/GetStatus", api.GetStatusReply)(request, timeout=1)
                except grpc.RpcError:
                    continue
                if status.role == "leader":
                    return number
        raise LookupError("no leader")

    @asynccontextmanager
    async def writer(self, way: str) -> AsyncIterator[Write]:
        """A client of the leader: plain unary calls, or the SDK's stream."""
        if way == "unary":
            async with self._channel(await self.leader()) as channel:
                yield self._unary(channel)
        else:
            async with sdk.ControlPlane.connect(self._region.addresses, mirror=False, **self._identity) as plane:
                yield stream_writer(plane, self._versions)

    @asynccontextmanager
    async def switcher(self) -> AsyncIterator[Write]:
        """A client over the SDK's stream that engages, and the next time releases, the worker's own kill switch."""
        async with sdk.ControlPlane.connect(self._region.addresses, mirror=False, **self._identity) as plane:
            engaged: set[int] = set()

            async def write(worker: int) -> None:
                scope = sdk.Scope(kind=sdk.SCOPE_TENANT, name=f"tenant-{worker}")
                await (plane.release if worker in engaged else plane.engage)(scope, reason="benchmark")
                engaged.symmetric_difference_update({worker})

            yield write

    @asynccontextmanager
    async def probe(self, nodes: Sequence[int]) -> AsyncIterator[Sequence[Write]]:
        """One unary writer for each of `nodes`; each write is a new small record."""
        channels = [self._channel(node) for node in nodes]
        try:
            yield [self._creator(channel) for channel in channels]
        finally:
            await asyncio.gather(*(channel.close() for channel in channels))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Sequence[Write]]:
        """The same small writes through the SDK, as an agent makes them: it finds the new leader by itself."""
        async with sdk.ControlPlane.connect(self._region.addresses, mirror=False, **self._identity) as plane:

            async def write(_: int) -> object:
                self._probes += 1
                return await plane.create_workflow(f"probe/{self._probes}", b"{}")

            yield [write]

    def cpu_s(self) -> float:
        """Seconds that the processes of all nodes have had of the processor."""
        return sum(_cpu_s(node.pid) for node in self.nodes)

    @asynccontextmanager
    async def mirrored(self) -> AsyncIterator[sdk.ControlPlane]:
        """A client with a mirror that holds some flags and switches."""
        async with sdk.ControlPlane.connect(self._region.addresses, **self._identity) as plane:
            value = sdk.Variant(name="value", value=sdk.FlagValue(string_value="model-a"))
            await plane.set_flag(
                sdk.Flag(
                    name="agent_model",
                    type=sdk.FlagType.STRING,
                    enabled=True,
                    variants=[value],
                    default_variant="value",
                )
            )
            for tool in ("scrape", "email", "shell"):
                scope = sdk.Scope(kind=sdk.SCOPE_TOOL, name=tool)
                reply = await plane.engage(scope, reason="benchmark")
            await plane.mirror_synced(reply.header.revision)
            yield plane

    def store_folder(self, node: int) -> Path:
        """Where a node keeps its store."""
        return self._region.data_folder(node) / "store"

    @asynccontextmanager
    async def reader(self, node: int) -> AsyncIterator[Write]:
        """Linearizable reads of one record, through one node."""
        async with self._channel(node) as channel:
            # A list of one: unlike a get it has an answer whether or not the record exists, as etcd's range has.
            page = _method(channel, "Agents/ListWorkflows", api.ListWorkflowsReply)

            async def read(worker: int) -> object:
                return await page(api.ListWorkflowsRequest(prefix=_id(worker), limit=1), timeout=1)

            yield read

    @asynccontextmanager
    async def watchers(self, count: int) -> AsyncIterator[tuple[Sequence[AsyncIterator[object]], Write]]:
        """Streams of one watch each, spread over the nodes."""
        channels = [self._channel(number % len(self.nodes), number) for number in range(_CHANNELS)]
        request = api.WatchRequest(kinds=["workflow"], prefix=_id(_WATCHED))
        try:
            async with self.writer("unary") as write:
                await write(_WATCHED)
                streams = [_watch(channels[number % _CHANNELS], request) for number in range(count)]
                for stream in streams:
                    await asyncio.wait_for(anext(stream), CALL_TIMEOUT_S)
                yield streams, write
        finally:
            await asyncio.gather(*(channel.close() for channel in channels))

    def _channel(self, node: int, number: int = 0) -> grpc.aio.Channel:
        options = [*RECONNECT, *told_apart(number)]
        return grpc.aio.secure_channel(self._region.addresses[node], self._credentials, options=options)

    def _unary(self, channel: grpc.aio.Channel) -> Write:
        create = _method(channel, "Agents/CreateWorkflow", api.CreateWorkflowReply)
        swap = _method(channel, "Agents/CompareAndSwapWorkflow", api.CompareAndSwapWorkflowReply)
        versions = self._versions

        async def write(worker: int) -> None:
            version = versions.get(worker)
            header = api.RequestHeader(request_id=os.urandom(16))
            reply: api.CreateWorkflowReply | api.CompareAndSwapWorkflowReply
            if version is None:
                reply = await create(
                    api.CreateWorkflowRequest(header=header, id=_id(worker), state=VALUE), timeout=CALL_TIMEOUT_S
                )
            else:
                request = api.CompareAndSwapWorkflowRequest(header=header, id=_id(worker), version=version, state=VALUE)
                reply = await swap(request, timeout=CALL_TIMEOUT_S)
            versions[worker] = reply.version

        return write

    def _creator(self, channel: grpc.aio.Channel) -> Write:
        create = _method(channel, "Agents/CreateWorkflow", api.CreateWorkflowReply)

        async def write(_: int) -> object:
            self._probes += 1
            header = api.RequestHeader(request_id=os.urandom(16))
            request = api.CreateWorkflowRequest(header=header, id=f"probe/{self._probes}", state=b"{}")
            return await create(request, timeout=CALL_TIMEOUT_S)

        return write


def _cpu_s(pid: int) -> float:
    # After the name of the program, which may contain anything but stands in parentheses: user and system time.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stream_writer(plane: sdk.ControlPlane, versions: dict[int, int]) -> Write:
    """Writes of one workflow for each worker; `versions` are those that were written already, and is kept up."""

    async def write(worker: int) -> None:
        version = versions.get(worker)
        if version is None:
            reply: api.CreateWorkflowReply | api.CompareAndSwapWorkflowReply
            reply = await plane.create_workflow(_id(worker), VALUE)
        else:
            reply = await plane.compare_and_swap(_id(worker), version, VALUE)
        versions[worker] = reply.version

    return write


def _method(channel: grpc.aio.Channel, path: str, reply: type[R]) -> grpc.aio.UnaryUnaryMultiCallable[Message, R]:
    return channel.unary_unary(
        f"/controlplane.v1.{path}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=reply.FromString,
    )


async def _watch(channel: grpc.aio.Channel, request: api.WatchRequest) -> AsyncIterator[object]:
    watch: grpc.aio.UnaryStreamMultiCallable[api.WatchRequest, api.WatchReply] = channel.unary_stream(
        "/controlplane.v1.Agents/Watch",
        request_serializer=api.WatchRequest.SerializeToString,
        response_deserializer=api.WatchReply.FromString,
    )
    async for message in watch(request):
        if message.kind in (api.WatchReply.STARTED, api.WatchReply.CHANGES):
            yield message


def _id(worker: int) -> str:
    return f"bench/{worker:06}"
