"""The client port of a node: gRPC with mutual TLS, one way in for every call.

Theory of operation. A call passes five steps, the same for a plain call and for an operation of a session: *identity*
(the certificate's URI), *authorize* (the table of roles), *route* (the leader's calls go to the leader, the others are
answered here), *run* (the node), *errors* (one table). Messages stay bytes on the way: the server reads envelopes,
only features read requests.

1. Nothing runs for a caller whose certificate does not name an identity of this fleet and region. Nodes of peer regions
   have a service of their own, and by it bring calls of their region's callers, which are treated as just that.
2. What is forwarded to this node is authorized again, for the caller it is made for, and is never forwarded further.
3. Sizes, deadlines and numbers are bounded before anything is decoded.
4. Errors leave with their reason. What is none of the eight is a defect: logged whole, sent as INTERNAL without its
   text. `Server._guarded` catches everything that one call, and a session everything that one operation, can raise.
   A caller that is gone is counted and is no error.
5. Draining: health says NOT_SERVING, sessions read no more, what was begun is answered, then the port closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from controlplane import limits, roles, status
from controlplane.addresses import is_loopback, why_not
from controlplane.auditor import Auditor, LedgerKeys
from controlplane.config import RegionConfig, split_address
from controlplane.credentials import Credentials
from controlplane.eraser import Eraser, Files
from controlplane.errors import Denied, Fatal, Invalid, Unavailable
from controlplane.federation import Federation
from controlplane.federation.doors import TIMEOUT_S as NOTE_TIMEOUT_S
from controlplane.federation.links import leads
from controlplane.forward import Request, Router
from controlplane.identity import Identity
from controlplane.node import Call, Node
from controlplane.server.descriptors import for_callers
from controlplane.server.desk import ADOPT, COSIGN, EFFECTS, FOLLOW, FORWARD, NOTE, SESSION, STREAMS, Desk, plan
from controlplane.server.drills import Drills, Facts
from controlplane.server.glass import Glass
from controlplane.server.outline import Outlines
from controlplane.server.partitions import Partitions
from controlplane.server.region import RegionView
from controlplane.server.reviewers import Reviewers
from controlplane.server.session import Session
from controlplane.server.shares import Context, full
from controlplane.telemetry import Counts
from controlplane.v1 import federation_pb2

PACKAGE: Final = "controlplane.v1"
SERVICES: Final = {
    f"{PACKAGE}.Agents": roles.AGENTS,
    f"{PACKAGE}.Operators": roles.OPERATORS,
    f"{PACKAGE}.Drills": roles.DRILLS,
    f"{PACKAGE}.Reviewers": roles.REVIEWERS,
}
FEDERATION: Final = f"{PACKAGE}.Federation"

_OPTIONS: Final = [
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX),
    # Two processes must not share a port by accident: each would get half of the calls.
    ("grpc.so_reuseport", 0),
    # A caller that vanished is noticed within half a minute; callers may ping once a second to notice us.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 900),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.server_handshake_timeout_ms", limits.HANDSHAKE_MS_MAX),
]
_DRAIN_S = 5.0

T = TypeVar("T")


class _Call(Request):
    """One plain call in flight: what came of it, never raised."""

    __slots__ = ("done",)

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self.done: asyncio.Future[bytes | BaseException] = asyncio.get_running_loop().create_future()

    def answered(self, reply: bytes) -> None:
        if not self.done.done():
            self.done.set_result(reply)

    def failed(self, error: BaseException) -> None:
        if not self.done.done():
            self.done.set_result(error)


class Server:
    """Serves one node's client port. `node` must have started before `start`, and must outlive `stop`."""

    def __init__(  # noqa: PLR0913 - what one node's port needs of everything else.
        self,
        config: RegionConfig,
        name: str,
        node: Node,
        credentials: Credentials | None,
        *,
        counts: Counts | None = None,
        data: Path | None = None,
        drills: Drills | None = None,
        everybody: Identity | None = None,
        federation: Federation | None = None,
        ledger_keys: LedgerKeys | None = None,
        files: Files | None = None,
        router: Callable[..., Router] = Router,
    ) -> None:
        """Without `credentials` everyone is `everybody`, and only loopback addresses are served.

        Without `federation` no other region is served, or asked. It is started and stopped by whoever made it. `files`
        is what has to be scrubbed of what was erased (None: the node has no files).
        `router` makes what brings calls to the leader; its arguments are those of `Router`.
        """
        self._config, self._node, self._credentials = config, node, credentials
        self.address = config.node(name).address
        self._listens, _ = config.node(name).listens
        self.counts = counts or Counts()
        self._federation = federation
        self.eraser = Eraser(node, files)
        self.region = RegionView(config, name, node, data, federation, self.eraser.report)
        self.auditor = Auditor(node, ledger_keys, _nobody if federation is None else federation.links.cosign)
        peers = {each.name: each.address for each in config.nodes if each.name != name}
        outlines = Outlines(node, self.region, federation)
        glass = Glass(node, self.region, federation, self.counts)
        partitions = Partitions(node, self.region, federation)
        answer = plan(node, self.region, outlines, glass, partitions, federation)
        self.router = router(name, answer, node.log, peers, credentials, node.clock)
        if federation is not None:
            federation.doors.hand_over = self._note
        drills = drills or Drills(Facts(name))
        self._desk = Desk(
            config,
            node,
            self.router,
            self.region,
            self.counts,
            drills=drills,
            glass=glass,
            outlines=outlines,
            reviewers=Reviewers(node, self.auditor, self.region, data),
            partitions=partitions,
            fixed=everybody,
            federation=federation,
        )
        self._sessions: set[Session] = set()
        self._calls = 0
        self._draining = False
        self._health = health.aio.HealthServicer()
        self._health_is_news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises `Fatal` if the address cannot be had."""
        server = grpc.aio.server(options=[*_OPTIONS, ("grpc.max_allowed_incoming_connections", for_callers())])
        server.add_generic_rpc_handlers(tuple(self._handlers()))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection([*SERVICES, "grpc.health.v1.Health", reflection.SERVICE_NAME], server)
        self.port = self._bind(server)
        self.region.start()
        routing = self.router.start()
        self.auditor.start()
        self.eraser.start()
        self.region.subscribe(self._health_is_news.set)
        await self._set_health()
        outbox = self._desk.outbox.watch(self.port)
        self._tasks = [asyncio.create_task(self._report_health()), asyncio.create_task(outbox)]
        for task in (*self._tasks, *routing):
            task.add_done_callback(self._ended)
        await server.start()
        self._server = server

    async def announce_stop(self) -> None:
        """Say NOT_SERVING from now on, and open no more sessions; calls are still answered."""
        self._draining = True
        await self._set_health()

    async def drain(self) -> None:
        """Take nothing new, and answer what was begun, for at most a few seconds."""
        await self.announce_stop()
        for session in tuple(self._sessions):
            session.drain()
        if self._federation is not None:
            self._federation.drain()
        if self._server is not None:
            await self._server.stop(_DRAIN_S)

    async def stop(self) -> None:
        """Close the port and everything behind it."""
        self._draining = True
        self.region.stop()
        if self._server is not None:
            await self._server.stop(0)
        await self.eraser.stop()
        await self.auditor.stop()
        await self.router.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A task that nobody waits for is over: stopped, or by a defect, which the node must not outlive."""
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._node.broken(error)

    def _bind(self, server: grpc.aio.Server) -> int:
        try:
            if self._credentials is not None:
                return server.add_secure_port(self._listens, self._credentials.of_server())
            _require_loopback(self._listens)
            return server.add_insecure_port(self._listens)
        except RuntimeError as error:
            raise Fatal(f"cannot listen on {self._listens}: {why_not(self._listens)}") from error

    # -- calls

    def _handlers(self) -> list[grpc.GenericRpcHandler]:
        handlers = [
            grpc.method_handlers_generic_handler(service, {method: self._handler(method) for method in methods})
            for service, methods in SERVICES.items()
        ]
        if self._federation is not None:
            between_regions: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
                FOLLOW: grpc.stream_stream_rpc_method_handler(self._follow),
                FORWARD: grpc.unary_unary_rpc_method_handler(self._forward),
                COSIGN: grpc.unary_unary_rpc_method_handler(self._cosign),
                ADOPT: grpc.unary_unary_rpc_method_handler(self._adopt),
            }
            handlers.append(grpc.method_handlers_generic_handler(FEDERATION, between_regions))
        return handlers

    def _handler(self, method: str) -> grpc.RpcMethodHandler[Any, Any]:
        if method == SESSION:
            return grpc.stream_stream_rpc_method_handler(self._session)
        if method in STREAMS:
            return grpc.unary_stream_rpc_method_handler(self._streaming(method))
        return grpc.unary_unary_rpc_method_handler(self._unary(method))

    def _unary(self, method: str) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def handle(encoded: bytes, context: Context) -> bytes:
            return await self._guarded(method, context, self._answer(method, encoded, context))

        return handle

    async def _answer(self, method: str, encoded: bytes, context: Context) -> bytes:
        return await self._answered(self._begin(method, encoded, context), context)

    async def _answered(self, call: Call, context: Context) -> bytes:
        request, outbox = _Call(call), self._desk.outbox
        if call.method not in EFFECTS and not outbox.has_room(call.actor):
            raise full()
        if self._calls >= limits.CALLS_PER_NODE_MAX:
            raise Unavailable("too many calls at this node", reason="OVERLOADED", hint="back off, then ask again")
        self._calls += 1
        try:
            self._desk.run(request)
            done = await request.done
        finally:
            self._calls -= 1
        if isinstance(done, BaseException):
            raise done
        if call.method not in EFFECTS and not outbox.has_room(call.actor, len(done)):
            raise full()
        outbox.hand_over(context, call.actor, len(done))
        self.counts.calls[call.method, "ok"] += 1
        return done

    def _streaming(self, method: str) -> Callable[[bytes, Context], Awaitable[None]]:
        async def handle(encoded: bytes, context: Context) -> None:
            await self._guarded(method, context, self._stream(method, encoded, context))

        return handle

    async def _stream(self, method: str, encoded: bytes, context: Context) -> None:
        call = self._begin(method, encoded, context)
        async with contextlib.aclosing(await self._desk.stream(call)) as replies:
            async for reply in replies:
                await self._desk.outbox.send(context, call.actor, reply)

    async def _session(self, _: object, context: Context) -> None:
        await self._guarded(SESSION, context, self._serve(context))

    async def _serve(self, context: Context) -> None:
        caller = self._desk.caller(context)
        self._desk.admit(caller, SESSION)
        if self._draining or len(self._sessions) >= limits.SESSIONS_PER_NODE_MAX:
            raise Unavailable("no more sessions here", reason="STOPPING" if self._draining else "OVERLOADED")
        session = Session(self._desk, caller, context)
        self._sessions.add(session)
        self.counts.sessions += 1
        try:
            await session.serve()
        finally:
            self._sessions.discard(session)
            self.counts.sessions -= 1

    def _begin(self, method: str, encoded: bytes, context: Context) -> Call:
        caller = self._desk.caller(context)
        self._desk.admit(caller, method)
        return self._desk.call(caller, method, encoded, context.time_remaining())

    # -- other regions

    async def _follow(self, _: object, context: Context) -> None:
        await self._guarded(FOLLOW, context, self._export(context))

    async def _export(self, context: Context) -> None:
        assert self._federation is not None
        await self._federation.exporter.serve(self._neighbour(context).region, context)

    async def _forward(self, encoded: bytes, context: Context) -> bytes:
        return await self._guarded(FORWARD, context, self._forwarded(encoded, context))

    async def _cosign(self, encoded: bytes, context: Context) -> bytes:
        return await self._guarded(COSIGN, context, self._cosigned(encoded, context))

    async def _cosigned(self, encoded: bytes, context: Context) -> bytes:
        """Cosign the checkpoint of another region's ledger, as its leader asked."""
        peer = self._neighbour(context).region
        self._require_leader()
        try:
            request = federation_pb2.CosignRequest.FromString(encoded)
        except DecodeError:
            raise Invalid("not a CosignRequest", reason="REQUEST_MALFORMED") from None
        reply = await self.auditor.cosign(peer, request, int(time.time()))
        return reply.SerializeToString()

    async def _adopt(self, encoded: bytes, context: Context) -> bytes:
        return await self._guarded(ADOPT, context, self._adopted(encoded, context))

    async def _adopted(self, encoded: bytes, context: Context) -> bytes:
        """Take over a partition of another region's, or promise not to, as its leader asked."""
        assert self._federation is not None
        peer = self._neighbour(context).region
        self._require_leader()
        try:
            request = federation_pb2.AdoptRequest.FromString(encoded)
        except DecodeError:
            raise Invalid("not an AdoptRequest", reason="REQUEST_MALFORMED") from None
        link = self._federation.links.get(peer)
        if link is None or request.terms.region != peer:
            raise Denied("the terms are not those of the caller's region", reason="TERMS_OF_ANOTHER")
        if link.meet(request.terms).paused:
            raise Unavailable(link.state[1], reason="LINK_PAUSED", hint="make the region files of both sides agree")
        return (await self._federation.mover.adopt(peer, request)).SerializeToString()

    async def _forwarded(self, encoded: bytes, context: Context) -> bytes:
        """Answer a call that a node of another region brought."""
        assert self._federation is not None
        node = self._neighbour(context)
        try:
            request = federation_pb2.ForwardRequest.FromString(encoded)
        except DecodeError:
            raise Invalid("not a ForwardRequest", reason="REQUEST_MALFORMED") from None
        link = self._federation.links.get(node.region)
        try:
            caller = self._desk.principal(node, request.on_behalf_of)
            if link is None or request.terms.region != node.region:
                raise Denied("the terms are not those of the caller's region", reason="TERMS_OF_ANOTHER")
            self._desk.admit(caller, request.method)
        except Denied:
            self._desk.note_denial(node.region)
            raise
        if link.meet(request.terms).paused:
            raise Unavailable(link.state[1], reason="LINK_PAUSED", hint="make the region files of both sides agree")
        times = [each for each in (context.time_remaining(), request.timeout_ms / 1000) if each]
        call = self._desk.call(caller, request.method, request.request, min(times, default=None))
        return federation_pb2.ForwardReply(reply=await self._answered(call, context)).SerializeToString()

    def _neighbour(self, context: Context) -> Identity:
        """Which node of another region calls. Raises `Denied`, and `Unavailable` while a drill cuts that region off."""
        node = self._desk.neighbour(context)
        if self._federation is not None:
            self._federation.links.admit(node.region)
        return node

    async def _note(self, passage: bytes) -> None:
        """Have the leader write down what passed at this node. Raises one of the eight errors."""
        me = self._node.identity
        deadline = self._node.clock() + NOTE_TIMEOUT_S
        request = _Call(Call(NOTE, passage, me.uri, me.environment, deadline))
        self.router.submit(request)
        done = await request.done
        if isinstance(done, BaseException):
            raise done

    def _require_leader(self) -> None:
        """What passes between regions is written down, which only the leader can do: let the caller find it."""
        if not leads(self._node):
            raise Unavailable("this node does not lead the region", reason="NOT_LEADER")

    async def _guarded(self, method: str, context: Context, work: Awaitable[T]) -> T:
        """Return what `work` returns; whatever it raises leaves as a status: `failure` tells errors from defects."""
        try:
            try:
                return await work
            except grpc.aio.InternalError:
                raise
            except Exception as error:
                encoded = self._desk.failure(method, error)
                trailers = ((status.TRAILER, encoded),)
                await context.abort(status.code_of(error), status.text_of(error), trailers)
                raise AssertionError("abort raises") from error
        except grpc.aio.InternalError:
            # gRPC could not write, because the call is over: no defect, and nobody to tell. It logs all but this.
            self.counts.hang_ups += 1
            raise asyncio.CancelledError from None

    # -- health

    async def _report_health(self) -> None:
        while True:
            await self._health_is_news.wait()
            self._health_is_news.clear()
            await self._set_health()

    async def _set_health(self) -> None:
        can_answer = self.region.has_leader and not self._draining
        serving = health_pb2.HealthCheckResponse.SERVING if can_answer else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", *SERVICES):
            await self._health.set(service, serving)


async def _nobody(region: str, _: federation_pb2.CosignRequest) -> federation_pb2.CosignReply:
    raise Unavailable(f"this node has no link with {region}", reason="HOME_UNREACHABLE")


def _require_loopback(address: str) -> None:
    host, _ = split_address(address)
    if not is_loopback(host):
        raise Fatal(f"{address} is not a loopback address: without certificates only this machine may be served")
