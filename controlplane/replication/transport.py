"""Links between the nodes of a region: gRPC streams over mutual TLS that carry `RaftMessage`s, and nothing else.

Theory of operation. Two nodes keep two streams, one each way; a stream carries messages from the node that
dialled to the node that answered. Only the answering side can read the other's certificate, so everything
that is *received* comes from a caller whose certificate was checked. A link is *up* while both of its streams
are.

1. **Identity.** The caller's certificate must say role peer, this fleet, this region and the node that its
   hello claims. The hello must also name us, this wire version, and the incarnation of its data folder; the
   owner decides on that. Refusals carry a stable reason. The dialling side relies on the fleet's CA and on
   the address in the certificate. The certificate is looked at before anything is read: who is no peer of this
   region holds no stream, and of one peer's streams only the newest may keep us waiting for its hello.
2. **Order.** One stream per direction and peer. A newer one (by generation) replaces the older, whose
   messages are dropped from then on.
3. **A broken link is news.** The end of either stream is reported at once; silence is found by keepalive
   within about two seconds and, earlier, by the owner's own timers.
4. **Bounded.** What waits for a peer is bounded in bytes and count; when full it is dropped and the link
   starts again: the protocol above tolerates loss. Whatever waits while a write is under way leaves as one
   frame, if it fits one.
5. **A slow link is not a silent one.** A message larger than a frame leaves in parts, one after the other, and each of
   them is told to the owner: a large message may take longer than a peer may be silent. At most one message is under
   way on a stream, in parts that follow each other and within `message_bytes_max`; anything else ends the stream.
6. **Nothing received is trusted further than its type.** Garbage ends the stream, is counted and harms nobody
   else.
7. **Warm.** Every peer is dialled from the start and again within half a second after a break; a peer that
   dials us is dialled back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

import grpc
from google.protobuf.message import DecodeError

from controlplane import status
from controlplane.addresses import is_loopback, why_not
from controlplane.credentials import Credentials
from controlplane.errors import ControlPlaneError, Denied, Invalid, Refused, Unavailable
from controlplane.identity import Identity
from controlplane.replication.guard import Malformed
from controlplane.v1.peer_pb2 import Goodbye, PeerFrame, PeerHello, RaftBatch, RaftPart
from controlplane.v1.peer_pb2_grpc import PeerServicer, PeerStub, add_PeerServicer_to_server
from controlplane.v1.raft_pb2 import RaftMessage

WIRE_VERSION = 1
_GOODBYE_S = 0.1
_REDIAL_AT_LEAST_S = 0.05


@dataclass(frozen=True, slots=True)
class LinkBounds:
    """Bounds and times of a link; seconds and bytes.

    `frame_bytes`: how much leaves at once. A peer hears nothing from us for as long as that takes on a slow link, so it
    is far less than what the slowest link carries in an election timeout.
    """

    waiting_bytes_max: int = 16 << 20
    waiting_count_max: int = 8192
    frame_bytes: int = 64 << 10
    message_bytes_max: int = 4 << 20
    text_bytes_max: int = 256
    hello_timeout_s: float = 1.0
    redial_min_s: float = 0.01
    redial_max_s: float = 0.5
    keepalive_s: float = 1.0
    keepalive_timeout_s: float = 0.6
    streams_max: int = 64


@dataclass(slots=True)
class LinkCounters:
    """What happened on all links since the start; only ever grows."""

    frames_sent: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    messages_dropped: int = 0
    links_broken: int = 0
    streams_refused: int = 0
    frames_malformed: int = 0


class Owner(Protocol):
    """Who the links serve. Called on the loop; must not block, and raises only what is named."""

    def hello(self, peer: str) -> PeerHello:
        """Return what to tell `peer` of this node: incarnation, known, standing, log_empty, term."""

    def meet(self, peer: str, hello: PeerHello) -> None:
        """Judge what `peer` says of itself; raise a `ControlPlaneError` to refuse the link."""

    def refused(self, peer: str, error: ControlPlaneError) -> None:
        """Hear that `peer` refused us."""

    def defect(self, error: BaseException) -> None:
        """Hear that a peer is dialled no more, because of what nobody expected."""

    def up(self, peer: str) -> None:
        """Hear that messages go both ways from now on."""

    def down(self, peer: str) -> None:
        """Hear that they no longer do."""

    def received(self, peer: str, messages: Sequence[RaftMessage]) -> None:
        """Take messages, in the order sent. Raises `Malformed` to have the link closed."""

    def heard(self, peer: str, term: int) -> None:
        """Hear that a part came, not the last one, of a message that `peer` sent in `term`."""


class Disturbance(Protocol):
    """What a drill does to the links. Called on the loop; must neither raise nor block."""

    def leaving(self, peer: str, message: RaftMessage) -> bool:
        """Whether `message` may leave now; if not it is lost, or kept to be given to `queue` later."""

    def arriving(self, peer: str) -> bool:
        """Whether messages that came from `peer` are handed on."""


class _Parts:
    """The message that is under way on a stream in parts, if any."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._data = bytearray()
        self._of = (0, 0)  # Term and size.

    def __bool__(self) -> bool:
        return bool(self._data)

    def add(self, part: RaftPart) -> RaftMessage | None:
        """Take the next part; return the message once it is whole. Raises `Malformed`."""
        if not self._data:
            self._of = (part.term, part.size)
        follows = (part.term, part.size) == self._of and part.offset == len(self._data)
        if not follows or not part.data or part.offset + len(part.data) > part.size or part.size > self._bytes_max:
            raise Malformed("a part that does not fit its message")
        self._data += part.data
        return self._whole(part.term) if len(self._data) == part.size else None

    def _whole(self, term: int) -> RaftMessage:
        try:
            message = RaftMessage.FromString(bytes(self._data))
        except DecodeError as error:
            raise Malformed("parts that make no message") from error
        if message.term != term:
            raise Malformed(f"parts of term {term} make a message of term {message.term}")
        self._data.clear()
        return message


@dataclass(slots=True)
class _Inbound:
    """The stream we listen to."""

    process: bytes
    generation: int
    replaced: asyncio.Future[None]
    parts: _Parts


@dataclass(slots=True, eq=False)
class _Link:
    """All there is for one peer."""

    peer: str
    address: str
    waiting: deque[RaftMessage] = field(default_factory=deque)
    waiting_bytes: int = 0
    work: asyncio.Event = field(default_factory=asyncio.Event)
    redial: asyncio.Event = field(default_factory=asyncio.Event)
    overflow: asyncio.Event = field(default_factory=asyncio.Event)
    outbound: bool = False
    greeting: asyncio.Future[PeerFrame] | None = None  # Of a stream that has not said hello.
    inbound: _Inbound | None = None
    up: bool = False


class Transport:
    """The links of one node.

    `start` opens the port and dials every peer; `stop` closes all, saying goodbye.
    """

    def __init__(
        self,
        me: Identity,
        peers: Mapping[str, str],
        listen: str,
        credentials: Credentials | None,
        owner: Owner,
        *,
        random: Random,
        bounds: LinkBounds | None = None,
    ) -> None:
        """`peers` maps names to host:port.

        Without credentials, every address must be a loopback one (ValueError).
        """
        self._me = me
        self._listen = listen
        self._credentials = credentials
        self._owner = owner
        self._random = random
        self._bounds = bounds or LinkBounds()
        self._process = secrets.token_bytes(16)
        self._generation = 0
        self._links = {peer: _Link(peer, address) for peer, address in peers.items() if peer != me.name}
        self._server: grpc.aio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self.counters = LinkCounters()
        self.disturbance: Disturbance | None = None
        self.port = 0
        if credentials is None:
            _require_loopback([listen, *peers.values()])

    async def start(self) -> None:
        """Open the port (`port` tells which, when 0 was asked for). Raises `Unavailable` when it is taken."""
        server = grpc.aio.server(options=self._options(), maximum_concurrent_rpcs=self._bounds.streams_max)
        add_PeerServicer_to_server(_Service(self), server)  # type: ignore[no-untyped-call]
        try:
            self.port = self._bind(server)
        except RuntimeError as error:
            raise Unavailable(
                f"cannot listen on {self._listen}: {why_not(self._listen)}", reason="PORT_TAKEN"
            ) from error
        await server.start()
        self._server = server

    def dial(self, peers: Mapping[str, str] | None = None) -> None:
        """Begin to dial every peer, at other addresses than first given if `peers` names them."""
        for link in self._links.values():
            link.address = (peers or {}).get(link.peer, link.address)
            task = asyncio.create_task(self._keep(link), name=f"link to {link.peer}")
            task.add_done_callback(self._kept)
            self._tasks.append(task)

    async def stop(self) -> None:
        """Say goodbye on every link and close."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        for link in self._links.values():
            if link.inbound is not None and not link.inbound.replaced.done():
                link.inbound.replaced.set_result(None)
        if self._server is not None:
            await self._server.stop(_GOODBYE_S)
            self._server = None

    def send(self, peer: str, message: RaftMessage) -> None:
        """Queue `message`, or drop it: when the link is down, or when the peer reads too slowly."""
        if self.disturbance is None or self.disturbance.leaving(peer, message):
            self.queue(peer, message)

    def queue(self, peer: str, message: RaftMessage) -> None:
        """Do as `send` does, whatever a drill does to the link."""
        link = self._links[peer]
        if not link.outbound:
            self.counters.messages_dropped += 1
            return
        link.waiting.append(message)
        link.waiting_bytes += message.ByteSize()
        bounds = self._bounds
        if link.waiting_bytes > bounds.waiting_bytes_max or len(link.waiting) > bounds.waiting_count_max:
            self._drop(link)
            link.overflow.set()
        link.work.set()

    def is_up(self, peer: str) -> bool:
        """Whether messages go both ways."""
        return self._links[peer].up

    def _drop(self, link: _Link) -> None:
        self.counters.messages_dropped += len(link.waiting)
        link.waiting.clear()
        link.waiting_bytes = 0

    def _changed(self, link: _Link) -> None:
        up = link.outbound and link.inbound is not None
        if up == link.up:
            return
        link.up = up
        if up:
            self._owner.up(link.peer)
        else:
            self.counters.links_broken += 1
            self._owner.down(link.peer)

    def _bind(self, server: grpc.aio.Server) -> int:
        if self._credentials is None:
            return server.add_insecure_port(self._listen)
        return server.add_secure_port(self._listen, self._credentials.of_server())

    def _channel(self, address: str) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(address, options=self._options())
        return grpc.aio.secure_channel(address, self._credentials.of_client(), options=self._options())

    def _options(self) -> list[tuple[str, int]]:
        bounds = self._bounds
        return [
            ("grpc.max_receive_message_length", bounds.message_bytes_max),
            ("grpc.max_send_message_length", bounds.message_bytes_max),
            ("grpc.keepalive_time_ms", round(bounds.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", round(bounds.keepalive_timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.max_ping_strikes", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", 100),
            ("grpc.max_concurrent_streams", 4),
            ("grpc.server_handshake_timeout_ms", 5000),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 500),
            ("grpc.so_reuseport", 0),
            ("grpc.enable_http_proxy", 0),
            ("grpc.enable_retries", 0),
        ]

    def _hello(self, peer: str) -> PeerHello:
        hello = self._owner.hello(peer)
        hello.wire = WIRE_VERSION
        hello.fleet, hello.region, hello.node, hello.to = self._me.fleet, self._me.region, self._me.name, peer
        hello.process = self._process
        return hello

    # Dialling.

    async def _keep(self, link: _Link) -> None:
        """Keep one stream to the peer for ever; the pause between attempts grows, and ends when the peer dials us."""
        bounds, loop = self._bounds, asyncio.get_running_loop()
        pause_s = bounds.redial_min_s
        # A stream that is cancelled may end with an error of gRPC's instead: then nobody would cancel this again.
        while True:
            began_s = loop.time()
            await self._dialled(link)
            if self._stopping:
                return
            if loop.time() - began_s > bounds.redial_max_s:
                pause_s = bounds.redial_min_s
            await asyncio.sleep(min(pause_s, _REDIAL_AT_LEAST_S) * self._random.uniform(0.5, 1.0))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s * self._random.uniform(0.5, 1.0)):
                    await link.redial.wait()
            link.redial.clear()
            pause_s = min(2 * pause_s, bounds.redial_max_s)

    def _kept(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._owner.defect(error)

    async def _dialled(self, link: _Link) -> None:
        """Run one stream to its end."""
        channel = self._channel(link.address)
        try:
            call = PeerStub(channel).Stream()  # type: ignore[no-untyped-call]
            try:
                async with asyncio.timeout(self._bounds.hello_timeout_s):
                    await self._greet(link, call)
                await self._run(link, call)
            finally:
                call.cancel()
        except grpc.aio.AioRpcError as error:
            self._heard_refusal(link, error)
        except _Unfit:
            self.counters.streams_refused += 1
        except ControlPlaneError as error:
            self._owner.refused(link.peer, error)
        except (TimeoutError, asyncio.InvalidStateError):
            pass
        finally:
            link.outbound = False
            self._drop(link)
            self._changed(link)
            await channel.close()

    async def _greet(self, link: _Link, call: _Call) -> None:
        self._generation += 1
        hello = self._hello(link.peer)
        hello.generation = self._generation
        await call.write(PeerFrame(hello=hello))
        frame = await call.read()
        if not isinstance(frame, PeerFrame):
            await _raise_status(call)
            raise Invalid("the stream ended without a hello", reason="HELLO_MISSING")
        try:
            _check_hello(frame, self._me, link.peer, self._bounds)
            self._owner.meet(link.peer, frame.hello)
        except ControlPlaneError as error:
            raise _Unfit from error

    async def _run(self, link: _Link, call: _Call) -> None:
        """Write until either side ends the stream, or the peer reads too slowly."""
        link.outbound = True
        link.overflow.clear()
        self._changed(link)
        ends = [asyncio.create_task(end) for end in (self._write(link, call), _until_end(call), link.overflow.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            ends[0].cancel()
            await _say_goodbye(call)
            raise
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _write(self, link: _Link, call: _Call) -> None:
        while True:
            await link.work.wait()
            link.work.clear()
            while link.waiting:
                for frame in self._frames(self._take(link)):
                    self.counters.frames_sent += 1
                    await call.write(frame)

    def _frames(self, messages: list[RaftMessage]) -> Iterator[PeerFrame]:
        """The frames that carry what `_take` returned."""
        step = self._bounds.frame_bytes
        if len(messages) > 1 or messages[0].ByteSize() <= step:
            yield PeerFrame(batch=RaftBatch(messages=messages))
            return
        term, data = messages[0].term, messages[0].SerializeToString()
        for offset in range(0, len(data), step):
            part = RaftPart(term=term, size=len(data), offset=offset, data=data[offset : offset + step])
            yield PeerFrame(part=part)

    def _take(self, link: _Link) -> list[RaftMessage]:
        """What waits, up to one frame; one message at least."""
        taken: list[RaftMessage] = []
        size = 0
        while link.waiting:
            next_bytes = link.waiting[0].ByteSize()
            if taken and size + next_bytes > self._bounds.frame_bytes:
                break
            size += next_bytes
            taken.append(link.waiting.popleft())
        link.waiting_bytes -= size
        self.counters.messages_sent += len(taken)
        return taken

    def _heard_refusal(self, link: _Link, error: grpc.aio.AioRpcError) -> None:
        if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
            return
        self._owner.refused(link.peer, status.from_call(error.code(), error.details(), _trailers(error)))

    # Answering.

    async def serve(self, context: _Context) -> None:
        """Answer one stream: greet, then hand what it brings to the owner until it ends or a newer one replaces it."""
        caller = self._caller(context)
        first = await self._first(caller, context)
        # In one turn of the loop: nothing of an older stream is taken, and none is let in, once this one was.
        link = self._admit(first, caller)
        replaced = asyncio.get_running_loop().create_future()
        parts = _Parts(self._bounds.message_bytes_max)
        mine = _Inbound(first.hello.process, first.hello.generation, replaced, parts)
        self._replace(link, mine)
        try:
            await context.write(PeerFrame(hello=self._hello(link.peer)))
            await self._attend(link, mine, context)
        finally:
            if link.inbound is mine:
                link.inbound = None
                self._changed(link)

    async def _attend(self, link: _Link, mine: _Inbound, context: _Context) -> None:
        listening = asyncio.create_task(self._hear(link, mine, context))
        try:
            await asyncio.wait({listening, mine.replaced}, return_when=asyncio.FIRST_COMPLETED)
            if listening.done():
                listening.result()
        finally:
            listening.cancel()

    async def _hear(self, link: _Link, mine: _Inbound, context: _Context) -> None:
        while isinstance(frame := await context.read(), PeerFrame):
            if link.inbound is not mine or not self._take_in(link, mine.parts, frame):
                return

    def _caller(self, context: _Context) -> _Link | None:
        """The peer whose certificate this is; None where there are no certificates. Raises `Denied`."""
        return self._link(_certified(context, self._me)) if self._credentials is not None else None

    def _link(self, peer: str) -> _Link:
        link = self._links.get(peer)
        if link is None:
            raise Denied(f"{peer} is not a node of this region", reason="PEER_UNKNOWN")
        return link

    async def _first(self, caller: _Link | None, context: _Context) -> PeerFrame:
        """Wait for the first frame, unless another stream of the same caller comes meanwhile. Raises TimeoutError."""
        reading = asyncio.ensure_future(context.read())
        if caller is not None:
            if caller.greeting is not None:
                caller.greeting.cancel()
            caller.greeting = reading
        try:
            await asyncio.wait({reading}, timeout=self._bounds.hello_timeout_s)
            if not reading.done():
                raise TimeoutError
            if reading.cancelled():
                raise Refused("a newer stream is open", reason="STREAM_STALE")
            first = reading.result()
        finally:
            reading.cancel()
            if caller is not None and caller.greeting is reading:
                caller.greeting = None
        if not isinstance(first, PeerFrame):
            raise Invalid("the stream ended without a hello", reason="HELLO_MISSING")
        return first

    def _admit(self, frame: PeerFrame, caller: _Link | None) -> _Link:
        peer = caller.peer if caller is not None else frame.hello.node
        _check_hello(frame, self._me, peer, self._bounds)
        link = self._link(peer)
        newest = link.inbound
        if newest and newest.process == frame.hello.process and newest.generation >= frame.hello.generation:
            raise Refused("a newer stream is open", reason="STREAM_STALE")
        self._owner.meet(peer, frame.hello)
        return link

    def _replace(self, link: _Link, mine: _Inbound) -> None:
        """Listen only to this stream from here on, and dial the peer back if we have none to it."""
        if link.inbound is not None:
            if not link.inbound.replaced.done():
                link.inbound.replaced.set_result(None)
            link.inbound = None
            self._changed(link)
        link.inbound = mine
        link.redial.set()
        self._changed(link)

    def _take_in(self, link: _Link, parts: _Parts, frame: PeerFrame) -> bool:
        """Hand one frame on; False ends the stream."""
        if frame.HasField("goodbye"):
            return False
        try:
            messages = _messages(parts, frame)
            self.counters.messages_received += len(messages)
            if self.disturbance is not None and not self.disturbance.arriving(link.peer):
                return True
            if messages:
                self._owner.received(link.peer, messages)
            elif frame.HasField("part"):
                self._owner.heard(link.peer, frame.part.term)
        except Malformed:
            self.counters.frames_malformed += 1
            return False
        return True


def _messages(parts: _Parts, frame: PeerFrame) -> Sequence[RaftMessage]:
    """What is whole with `frame`. Raises `Malformed`."""
    if frame.HasField("part"):
        message = parts.add(frame.part)
        return [] if message is None else [message]
    if frame.HasField("batch") and not parts:
        return frame.batch.messages
    raise Malformed("a frame that may not stand here")


class _Unfit(Exception):
    """We dialled a peer and do not want it: our refusal, which the peer learns when it dials us."""


_Call = Any  # grpc.aio.StreamStreamCall and
_Context = Any  # grpc.aio.ServicerContext, as their stubs type neither reads nor trailers precisely.


class _Service(PeerServicer):
    """The gRPC face of `Transport.serve`: errors become statuses here."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def Stream(self, _frames: object, context: _Context) -> None:  # noqa: N802
        """See peer.proto."""
        counters = self._transport.counters
        try:
            await self._transport.serve(context)
        except ControlPlaneError as error:
            counters.streams_refused += 1
            await context.abort(status.code_of(error), str(error), ((status.TRAILER, status.encode(error)),))
        except TimeoutError:
            counters.streams_refused += 1
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no hello arrived")
        except DecodeError:
            counters.frames_malformed += 1
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a frame")


def _check_hello(frame: PeerFrame, me: Identity, peer: str, bounds: LinkBounds) -> None:
    if not frame.HasField("hello"):
        raise Invalid("the first frame is not a hello", reason="HELLO_MISSING")
    hello = frame.hello
    texts = (hello.fleet, hello.region, hello.node, hello.to, hello.incarnation, hello.known)
    if len(hello.process) != 16 or any(len(text) > bounds.text_bytes_max for text in texts):
        raise Invalid("the hello is malformed", reason="HELLO_MALFORMED")
    if hello.wire != WIRE_VERSION:
        raise Refused(f"wire version {hello.wire} is not known here", reason="WIRE_VERSION_UNKNOWN")
    if (hello.fleet, hello.region) != (me.fleet, me.region):
        raise Denied("the hello is of another fleet or region", reason="PEER_OF_ANOTHER_REGION")
    if hello.node != peer or hello.to != me.name:
        raise Denied("the hello names another node than the one here", reason="PEER_NAME_MISMATCH")


def _certified(context: _Context, me: Identity) -> str:
    """Return the node that the caller's certificate names; `Denied` unless it is a peer of this region."""
    uris = context.auth_context().get("peer_uri", [])
    if len(uris) != 1:
        raise Denied("the certificate carries no identity", reason="IDENTITY_MISSING")
    try:
        caller = Identity.parse(uris[0].decode())
    except (Invalid, UnicodeDecodeError) as error:
        raise Denied("the certificate's identity cannot be read", reason="IDENTITY_MALFORMED") from error
    if caller.role != "peer":
        raise Denied(f"role {caller.role} may not open peer streams", reason="PEER_ROLE_REQUIRED")
    if (caller.fleet, caller.region) != (me.fleet, me.region):
        raise Denied("the certificate is of another fleet or region", reason="PEER_OF_ANOTHER_REGION")
    return caller.name


async def _until_end(call: _Call) -> None:
    """Read the answering side's frames, which say nothing further; return when the stream ends."""
    while isinstance(await call.read(), PeerFrame):
        pass


async def _say_goodbye(call: _Call) -> None:
    with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
        async with asyncio.timeout(_GOODBYE_S):
            await call.write(PeerFrame(goodbye=Goodbye()))


async def _raise_status(call: _Call) -> None:
    """Raise the status that a stream ended with, if it is an error."""
    code = await call.code()
    if code is not grpc.StatusCode.OK:
        raise status.from_call(code, await call.details(), _pairs(await call.trailing_metadata()))


def _trailers(error: grpc.aio.AioRpcError) -> list[tuple[str, str | bytes]]:
    return _pairs(error.trailing_metadata())


def _pairs(metadata: Any) -> list[tuple[str, str | bytes]]:
    return [(str(name), value) for name, value in metadata or ()]


def _require_loopback(addresses: Sequence[str]) -> None:
    for address in addresses:
        host = address.rpartition(":")[0]
        if not is_loopback(host):
            raise ValueError(f"{address}: without certificates only loopback addresses are allowed")
