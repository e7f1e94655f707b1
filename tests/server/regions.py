"""Real regions for the server's tests: nodes, stores, logs and servers with mutual TLS, all in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio

from controlplane import certs, config, process, status
from controlplane.credentials import Credentials
from controlplane.datadir import Start, open_folder
from controlplane.errors import ControlPlaneError
from controlplane.identity import ENVIRONMENTS, Identity
from controlplane.kernel.store import MemoryStore, Store
from controlplane.loopback import free_ports
from controlplane.node import Node
from controlplane.replication import Log
from controlplane.replication.local import LocalLog
from controlplane.replication.raft import RaftConfig, RaftLog
from controlplane.server import Server
from controlplane.storage import RocksStore
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import audit_pb2, drill_pb2, records_pb2

FLEET, REGION = "acme", "eu-west"


def region_text(size: int, ports: list[int]) -> str:
    """A region file for nodes on this machine, with a partition for every environment."""
    lines = [
        'format = 1\nfleet = "acme"\nregion = "eu-west"\njurisdiction = "eu"\nauthority = "authority.crt"',
        'administrators = ["controlplane://acme/staging/eu-west/operator/admin"]',
    ]
    lines += [
        f'[[node]]\nname = "n{number + 1}"\naddress = "127.0.0.1:{ports[number]}"\n'
        f'peer_address = "127.0.0.1:{ports[size + number]}"\n'
        f'certificate = "n{number + 1}.crt"\nkey = "n{number + 1}.key"'
        for number in range(size)
    ]
    lines += [
        f'[[partition]]\nid = "eu-west.{environment}.all"\nenvironment = "{environment}"\nreach = "home-only"\n'
        'default_for = ["flag", "switch", "workflow", "election"]'
        for environment in ENVIRONMENTS
    ]
    return "\n".join(lines)


class Member:
    """One running node."""

    def __init__(self, node: Node, server: Server, log: Log) -> None:
        self.node, self.server, self.log = node, server, log

    async def stop(self) -> None:
        await self.server.stop()
        await self.node.stop()
        if isinstance(self.node.store, RocksStore):
            self.node.store.close()


class Region:
    """A region whose members run here."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.config = config.parse(region_text(size, free_ports(2 * size)), folder / "region.toml")
        self.authority = certs.authority_for(self.config)
        certs.nodes_for(self.config)
        self.members: dict[str, Member] = {}

    async def start(self, name: str, how: Start) -> None:
        mine = self.config.node(name)
        credentials = process.read_credentials(self.config, mine)
        store: Store = MemoryStore()
        log: Log = LocalLog(name)
        if len(self.config.nodes) > 1:
            store, log = self._on_disk(name, how, credentials)
        loop = asyncio.get_running_loop()
        node = Node(
            fleet=FLEET,
            region=REGION,
            name=name,
            partitions=self.config.partitions,
            store=store,
            log=log,
            clock=loop.time,
            wall_ms=process.wall_ms,
            entropy=os.urandom,
        )
        await node.start()
        server = Server(self.config, name, node, credentials, files=log if isinstance(log, RaftLog) else None)
        await server.start()
        self.members[name] = Member(node, server, log)

    def _on_disk(self, name: str, how: Start, credentials: Credentials) -> tuple[Store, Log]:
        folder = open_folder(self.folder / name, fleet=FLEET, region=REGION, node=name, start=how)
        peers = {each.name: each.peer_address for each in self.config.nodes if each.name != name}
        listen = self.config.node(name).listens[1]
        log = RaftLog(RaftConfig(FLEET, REGION, name, listen, peers, credentials, ballast_bytes=0), folder)
        return RocksStore(folder.store), cast(Log, log)

    async def leader(self) -> str:
        """The name of the ready leader, waiting for one."""
        await until(lambda: any(member.log.status().ready for member in self.members.values()))
        return next(name for name, member in self.members.items() if member.log.status().ready)

    def credentials(self, identity: Identity, authority: certs.Authority | None = None, **sign: Any) -> Any:
        """Channel credentials of a new certificate."""
        authority = authority or self.authority
        signed = authority.sign(identity, **sign)
        folder = self.folder / os.urandom(4).hex()
        signed.save(folder / "crt", folder / "key")
        return grpc.ssl_channel_credentials(
            self.authority.file.read_bytes(), (folder / "key").read_bytes(), (folder / "crt").read_bytes()
        )

    def caller(self, role: str = "agent", environment: str = "prod", node: str = "n1", **other: Any) -> Caller:
        """Somebody who talks to `node`; `other` are further parts of the identity, or what `sign` takes."""
        parts = {"fleet": FLEET, "region": REGION, "name": "tester"}
        parts |= {key: other.pop(key) for key in tuple(other) if key in parts}
        identity = Identity(environment=environment, role=role, **parts)
        return Caller(self.config.node(node).address, self.credentials(identity, **other))


class Caller:
    """A client that speaks bytes, so that it can say anything."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
        self.channel = (
            grpc.aio.secure_channel(address, credentials, options)
            if credentials
            else grpc.aio.insecure_channel(address, options)
        )

    async def __aenter__(self) -> Caller:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()

    async def call(self, method: str, request: Any = b"", *, timeout_s: float = 20.0, service: str = "") -> bytes:
        """Make one plain call; an error of the call is raised as one of the eight."""
        service = service or SERVICE_OF[method]
        encoded = request if isinstance(request, bytes) else request.SerializeToString()
        try:
            return await self.channel.unary_unary(f"/controlplane.v1.{service}/{method}")(encoded, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise status.from_call(error.code(), error.details(), error.trailing_metadata()) from error

    def stream(self, method: str, request: Any = b"") -> Any:
        encoded = request if isinstance(request, bytes) else request.SerializeToString()
        return self.channel.unary_stream(f"/controlplane.v1.{SERVICE_OF[method]}/{method}")(encoded)

    async def session(self) -> Talk:
        """Open a session and take its first message."""
        talk = Talk(self.channel.stream_stream("/controlplane.v1.Agents/Session")())
        await talk.receive()
        return talk


SERVICE_OF = {
    method.name: service.name
    for file in (api.DESCRIPTOR, audit_pb2.DESCRIPTOR, drill_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}


class Talk:
    """The caller's end of a session."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.messages: list[api.SessionReply] = []
        self.replies: dict[int, list[api.OperationReply]] = {}
        self.order: list[int] = []

    async def send(self, *operations: api.Operation) -> None:
        await self.stream.write(api.SessionRequest(operations=operations).SerializeToString())

    async def receive(self) -> api.SessionReply:
        """Take one message; raises the error that ended the session."""
        async with asyncio.timeout(30):
            try:
                encoded = await self.stream.read()
            except grpc.aio.AioRpcError as error:
                raise status.from_call(error.code(), error.details(), error.trailing_metadata()) from error
        if encoded is grpc.aio.EOF:
            code = await self.stream.code()
            raise status.from_call(code, await self.stream.details(), await self.stream.trailing_metadata())
        message = api.SessionReply.FromString(encoded)
        self.messages.append(message)
        for reply in message.replies:
            self.replies.setdefault(reply.id, []).append(reply)
            self.order.append(reply.id)
        return message

    async def end(self) -> ControlPlaneError:
        """Read on until the session ends; return the error that ended it."""
        while True:
            try:
                await self.receive()
            except ControlPlaneError as error:
                return error

    async def reply(self, identifier: int, number: int = 0) -> api.OperationReply:
        """The reply of an operation, or the `number`th of several."""
        while len(self.replies.get(identifier, ())) <= number:
            await self.receive()
        return self.replies[identifier][number]

    async def error(self, identifier: int) -> ControlPlaneError:
        """The error that answered an operation."""
        return self.error_of(await self.reply(identifier))

    @staticmethod
    def error_of(reply: api.OperationReply) -> ControlPlaneError:
        """The error that is a reply."""
        assert reply.status, reply
        return status.decode(reply.status)


async def until(condition: Callable[[], object]) -> None:
    """Return as soon as `condition` holds."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is awaited has no event of its own.
            await asyncio.sleep(0.01)


def write_header(**fields: Any) -> api.RequestHeader:
    """A header with a fresh request id."""
    return api.RequestHeader(request_id=os.urandom(16), **fields)


def create(identifier: str, state: bytes = b"s", **header: Any) -> api.CreateWorkflowRequest:
    return api.CreateWorkflowRequest(header=write_header(**header), id=identifier, state=state, schema_version=1)


def flag(name: str, **header: Any) -> api.SetFlagRequest:
    value = records_pb2.FlagValue(string_value="x")
    variants = [records_pb2.Variant(name="on", value=value)]
    definition = records_pb2.Flag(
        name=name, type=records_pb2.STRING, enabled=True, variants=variants, default_variant="on"
    )
    return api.SetFlagRequest(header=write_header(**header), flag=definition)


def operation(identifier: int, method: str, request: Any = None, **fields: Any) -> api.Operation:
    encoded = request.SerializeToString() if request is not None else b""
    return api.Operation(id=identifier, method=method, request=encoded, **fields)


@contextlib.asynccontextmanager
async def running(folder: Path, size: int = 1) -> AsyncIterator[Region]:
    """A region of `size` nodes, up and with a leader: one node over the local log, more over Raft and disks."""
    region = Region(folder, size)
    # A test that hangs is ended from outside, and then nothing would be known but that it hung.
    looking = asyncio.get_running_loop().call_later(_LOOK_S, lambda: sys.stderr.write(picture(region)))
    try:
        async with asyncio.TaskGroup() as starting:
            for node in region.config.nodes:
                starting.create_task(region.start(node.name, Start.BOOTSTRAP))
        await region.leader()
        yield region
    finally:
        await asyncio.gather(*(member.stop() for member in region.members.values()))
        looking.cancel()


_LOOK_S = 45.0


def picture(region: Region) -> str:
    """How every member stands, and where every task waits."""
    lines = [f"{name}: {_standing(member)}" for name, member in region.members.items()]
    lines += [f"{task.get_name()} waits in {_place(task.get_coro())}" for task in asyncio.all_tasks()]
    return "\n".join([*lines, ""])


def _standing(member: Member) -> str:
    try:
        status = str(member.log.status())
    except ControlPlaneError as error:
        status = str(error)
    return f"revision {member.node.revision}, {member.server.router.waiting} waiting, {status}"


def _place(coroutine: Any) -> str:
    """The places of a suspended coroutine, from the outermost in."""
    found = []
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        found.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        coroutine = coroutine.cr_await
    return " > ".join(found)
