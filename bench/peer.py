"""etcd: a three-node cluster on loopback, and the clients that load it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from bench.etcd import rpc_pb2 as pb
from bench.side import CALL_TIMEOUT_S, RECONNECT, VALUE, Write, settled, told_apart, writing
from controlplane import certs
from controlplane.identity import EVERY_ENVIRONMENT, Identity
from controlplane.loopback import Program, free_ports

# etcd refuses a transaction of more operations than this.
_TXN_OPS_MAX = 128
# Transactions in flight when coalescing.
_TXNS_MAX = 2
_CHANNELS = 10
_NODES = 3
R = TypeVar("R", bound=Message)


def installed() -> str | None:
    """The path of etcd, if it is installed."""
    return shutil.which("etcd")


class Etcd:
    """A cluster of three; every write is synced, as etcd always does.

    As it comes, without TLS; `secure`: with mutual TLS between nodes and towards clients, as ours always has it.
    """

    def __init__(self, folder: Path, *, heartbeat_ms: int = 100, election_ms: int = 1000, secure: bool = False) -> None:
        self.name = f"etcd {heartbeat_ms}/{election_ms}" + (" mTLS" if secure else "")
        self._credentials: grpc.ChannelCredentials | None = None
        flags: list[str] = []
        if secure:
            self._credentials, flags = _secured(folder)
        scheme = "https" if secure else "http"
        ports = free_ports(2 * _NODES)
        self.addresses = [f"127.0.0.1:{port}" for port in ports[:_NODES]]
        peers = [f"{scheme}://127.0.0.1:{port}" for port in ports[_NODES:]]
        cluster = ",".join(f"n{number}={url}" for number, url in enumerate(peers))
        self.nodes = [
            Program(
                [
                    *(
                        installed() or "etcd",
                        "--name",
                        f"n{number}",
                        "--data-dir",
                        str(folder / f"n{number}"),
                    ),
                    *("--listen-client-urls", f"{scheme}://{address}"),
                    *("--advertise-client-urls", f"{scheme}://{address}"),
                    *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                    *("--initial-cluster", cluster, "--initial-cluster-token", folder.name),
                    *("--heartbeat-interval", str(heartbeat_ms), "--election-timeout", str(election_ms)),
                    *("--logger", "zap", "--log-level", "error"),
                    *flags,
                ],
                folder / f"n{number}.log",
            )
            for number, (address, peer) in enumerate(zip(self.addresses, peers, strict=True))
        ]

    async def start(self) -> None:
        """Start all nodes; return when writes are committed."""
        for node in self.nodes:
            node.start()
        await settled(self)

    def restart(self, node: int) -> None:
        """Start a node that has ended, on the data it left."""
        self.nodes[node].start()

    async def leader(self) -> int:
        """The number of the node that leads."""
        for number, address in enumerate(self.addresses):
            async with self._channel(address) as channel:
                try:
                    status = await _method(channel, "Maintenance/Status", pb.StatusResponse)(
                        pb.StatusRequest(), timeout=1
                    )
                except grpc.RpcError:
                    continue
                if status.leader == status.header.member_id:
                    return number
        raise LookupError("no leader")

    @asynccontextmanager
    async def writer(self, way: str) -> AsyncIterator[Write]:
        """A client of the leader."""
        channel = self._channel(self.addresses[await self.leader()])
        async with writing(way, channel, _put, _Coalescer) as write:
            yield write

    @asynccontextmanager
    async def probe(self, nodes: Sequence[int]) -> AsyncIterator[Sequence[Write]]:
        """One unary writer for each of `nodes`."""
        channels = [self._channel(self.addresses[node]) for node in nodes]
        try:
            yield [_put(channel) for channel in channels]
        finally:
            await asyncio.gather(*(channel.close() for channel in channels))

    @asynccontextmanager
    async def reader(self, node: int) -> AsyncIterator[Write]:
        """Linearizable reads of one record, through one node."""
        async with self._channel(self.addresses[node], RECONNECT) as channel:
            get = _method(channel, "KV/Range", pb.RangeResponse)

            async def read(worker: int) -> object:
                return await get(pb.RangeRequest(key=_key(worker)), timeout=1)

            yield read

    @asynccontextmanager
    async def watchers(self, count: int) -> AsyncIterator[tuple[Sequence[AsyncIterator[object]], Write]]:
        """Streams of one watch each, spread over the nodes."""
        channels = [self._channel(self.addresses[number % _NODES], told_apart(number)) for number in range(_CHANNELS)]
        request = pb.WatchRequest(create_request=pb.WatchCreateRequest(key=_key(0)))
        try:
            streams = [_watch(channels[number % _CHANNELS], request) for number in range(count)]
            for stream in streams:
                await asyncio.wait_for(anext(stream), CALL_TIMEOUT_S)
            async with self.writer("unary") as write:
                yield streams, write
        finally:
            await asyncio.gather(*(channel.close() for channel in channels))

    def _channel(self, address: str, options: Sequence[tuple[str, int]] = ()) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, self._credentials, options=options)


def _secured(folder: Path) -> tuple[grpc.ChannelCredentials, list[str]]:
    """A client's credentials, and the flags of nodes that ask for them; all made in `folder`."""
    authority = certs.create_authority("etcd", folder / "certificates")
    everyone = Identity("etcd", EVERY_ENVIRONMENT, "bench", "peer", "etcd")
    issued = certs.issue(authority, everyone, folder / "certificates", ["127.0.0.1"])
    ca, cert, key = str(issued.authority), str(issued.certificate), str(issued.key)
    flags = [
        *("--client-cert-auth", "--trusted-ca-file", ca, "--cert-file", cert, "--key-file", key),
        *("--peer-client-cert-auth", "--peer-trusted-ca-file", ca, "--peer-cert-file", cert, "--peer-key-file", key),
    ]
    contents = [file.read_bytes() for file in (issued.authority, issued.key, issued.certificate)]
    return grpc.ssl_channel_credentials(*contents), flags


async def _watch(channel: grpc.aio.Channel, request: pb.WatchRequest) -> AsyncIterator[object]:
    watch: grpc.aio.StreamStreamMultiCallable[pb.WatchRequest, pb.WatchResponse] = channel.stream_stream(
        "/etcdserverpb.Watch/Watch",
        request_serializer=pb.WatchRequest.SerializeToString,
        response_deserializer=pb.WatchResponse.FromString,
    )
    call = watch()
    await call.write(request)
    async for message in call:
        if message.created or message.events:
            yield message


def _method(channel: grpc.aio.Channel, path: str, reply: type[R]) -> grpc.aio.UnaryUnaryMultiCallable[Message, R]:
    return channel.unary_unary(
        f"/etcdserverpb.{path}",
        request_serializer=lambda request: request.SerializeToString(),
        response_deserializer=reply.FromString,
    )


def _key(worker: int) -> bytes:
    return b"bench/%06d" % worker


def _put(channel: grpc.aio.Channel) -> Write:
    put = _method(channel, "KV/Put", pb.PutResponse)

    async def write(worker: int) -> object:
        return await put(pb.PutRequest(key=_key(worker), value=VALUE), timeout=CALL_TIMEOUT_S)

    return write


class _Coalescer:
    """Puts of many workers in one transaction: what a client of etcd can do to save calls."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._txn = _method(channel, "KV/Txn", pb.TxnResponse)
        self._waiting: asyncio.Queue[tuple[int, asyncio.Future[None]]] = asyncio.Queue(_TXN_OPS_MAX * 16)
        self._senders = [asyncio.create_task(self._send()) for _ in range(_TXNS_MAX)]

    async def write(self, worker: int) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._waiting.put((worker, done))
        await done

    async def close(self) -> None:
        for sender in self._senders:
            sender.cancel()
        await asyncio.gather(*self._senders, return_exceptions=True)

    async def _send(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < _TXN_OPS_MAX and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            await self._commit(batch)

    async def _commit(self, batch: list[tuple[int, asyncio.Future[None]]]) -> None:
        puts = [pb.RequestOp(request_put=pb.PutRequest(key=_key(worker), value=VALUE)) for worker, _ in batch]
        try:
            await self._txn(pb.TxnRequest(success=puts), timeout=CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            for _, done in batch:
                done.set_exception(error)
        else:
            for _, done in batch:
                if not done.done():
                    done.set_result(None)
