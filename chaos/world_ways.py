"""Connections between simulated regions, as gRPC has them: encoded messages in, encoded messages out.

Theory of operation. A process keeps one connection to each endpoint that it calls. Two ordered streams of packets run
over it, one each way; a cut holds them up, and they resume late, as TCP does after a back-off. Calls share the
connection. What a caller of `controlplane.federation.ways` may rely on is kept, and what it may not is broken:

1. The messages of a call arrive in order, once, or the call ends. Nothing is ever sent twice.
2. A caller whose connection hears nothing for as long as a ping may take gives it up. What it had sent may arrive all
   the same, late, followed by the end of the connection; or never. The other side notices much later.
3. A process that died is answered for by its host (a reset), unless that vanished too: then by nobody.
4. A call that its caller gave up, or whose time is over, is cancelled at the server, wherever that stands.
5. What a reader does not read, its writer may not send for long: a window for each call.

Not here: several connections to one endpoint, a server's limit of streams, GOAWAY.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import grpc

from chaos.plane_loop import ProcessLoop
from controlplane import status
from controlplane.errors import ControlPlaneError, Unavailable
from controlplane.federation.links import FOLLOW

if TYPE_CHECKING:
    from chaos.world_node import Member

Address = tuple[str, str]
"""Region and node."""
Way = tuple[str, str]
"""From one region to another."""
Ended = tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]

WINDOW_BYTES = 65_536
_CLIENT, _SERVER = 0, 1
_PING_S = 1.0
# A caller pings every two seconds and waits as long for an answer; a server asks after twenty, and waits for ten.
_SILENT_S = (4.0, 30.0)
_RESUME_S = (0.001, 0.2, 0.6)
_GIVES_UP_S = (0.25, 1.0)
_BACKOFF_S = (0.1, 1.0)
_BROKEN: Ended = (grpc.StatusCode.UNAVAILABLE, "the connection broke", ())


class World(Protocol):
    """What the network between regions needs of the simulation."""

    random: Random

    def now(self) -> float:
        """True time."""

    def at(self, delay: float, function: Callable[..., None], *args: Any) -> None:
        """Schedule."""

    def member(self, address: Address) -> Member | None:
        """The process that runs there and serves."""

    def paused(self, address: Address) -> bool:
        """Whether the process there stands still."""

    def passes(self, source: str, target: str, message: bytes, *, copies: bool) -> None:
        """Look at a message that leaves one region for another; `copies`: over a stream of copies, from the home."""


class Roads:
    """All that lies between regions."""

    def __init__(self, world: World, ways: Iterable[Way], delay_s: float) -> None:
        self.world, self._delay_s = world, delay_s
        self.blocks: Counter[Way] = Counter()
        self.slow: dict[Way, float] = dict.fromkeys(ways, 0.0)
        self.counts: Counter[str] = Counter()
        self._connections: dict[int, Connection] = {}
        self._numbers = 0
        self._vanished: dict[Address, None] = {}
        world.at(_PING_S, self._look)

    # What breaks it.

    def cut(self, ways: Iterable[Way], for_s: float) -> None:
        """Hold up whatever goes these ways for a while."""
        chosen = list(ways)
        self.blocks.update(chosen)
        self.world.at(for_s, self._heal, chosen)

    def _heal(self, ways: list[Way]) -> None:
        self.blocks.subtract(ways)
        for connection in list(self._connections.values()):
            for pipe in connection.pipes:
                if pipe.way in ways:
                    self.world.at(self.world.random.choice(_RESUME_S), pipe.pump)

    def reset(self, one: str, other: str) -> None:
        """Break every connection between two regions; each side hears of it."""
        for connection in list(self._connections.values()):
            if {connection.pipes[0].way[0], connection.pipes[0].way[1]} == {one, other}:
                for side in (_CLIENT, _SERVER):
                    connection.close(side, lost=True, told=False)
                self.counts["connections reset"] += 1

    def process_died(self, member: Member, *, silent: bool) -> None:
        """Its connections end; with `silent` its host answers nothing from now on."""
        if silent:
            self._vanished[member.address] = None
        for connection in list(self._connections.values()):
            for side in (_CLIENT, _SERVER):
                if connection.members[side] is member:
                    connection.close(side, lost=silent or self.world.random.random() < 0.5, told=not silent)

    def process_started(self, address: Address) -> None:
        """Its host answers again."""
        self._vanished.pop(address, None)

    # What connections need.

    def delay(self, way: Way) -> float:
        """How long a packet takes."""
        return self._delay_s * self.world.random.uniform(0.5, 1.5) + self.slow[way]

    def whole(self, one: str, other: str) -> bool:
        """Whether packets go both ways."""
        return not self.blocks[one, other] and not self.blocks[other, one]

    def vanished(self, address: Address) -> bool:
        """Whether nobody answers there, not even to say that nobody is there."""
        return address in self._vanished

    def connect(self, channel: Channel) -> None:
        """Begin to connect; the channel hears of what came of it."""
        member, target, world = channel.member, channel.target, self.world
        here, there = member.address[0], target[0]
        if not self.whole(here, there) or self.vanished(target) or world.paused(target):
            world.at(world.random.uniform(*_GIVES_UP_S), channel.failed)
            return
        world.at(self.delay((here, there)) + self.delay((there, here)), self._connected, channel)

    def _connected(self, channel: Channel) -> None:
        member, server = channel.member, self.world.member(channel.target)
        if member.loop.dead:
            return
        if server is None or not self.whole(member.address[0], channel.target[0]):
            channel.failed()
            return
        self._numbers += 1
        connection = Connection(self, self._numbers, channel, server)
        self._connections[self._numbers] = connection
        self.counts["connections made"] += 1
        member.loop.call_soon(channel.made, connection)

    def forget(self, connection: Connection) -> None:
        """Nobody holds it any more."""
        self._connections.pop(connection.number, None)

    def _look(self) -> None:
        """Pings, and what comes of their missing."""
        for connection in list(self._connections.values()):
            connection.look()
        self.world.at(_PING_S, self._look)


class _Pipe:
    """One direction of a connection. `to` is the side that reads."""

    __slots__ = ("_connection", "_last_at", "_roads", "queue", "to", "way")

    def __init__(self, roads: Roads, connection: Connection, to: int, way: Way) -> None:
        self._roads, self._connection, self.to, self.way = roads, connection, to, way
        self.queue: deque[tuple[float, tuple[Any, ...]]] = deque()
        self._last_at = 0.0

    def put(self, packet: tuple[Any, ...]) -> None:
        """Send a packet: what it is first, then the call, then what belongs to it."""
        world = self._roads.world
        self._last_at = at = max(self._last_at, world.now() + self._roads.delay(self.way))
        self.queue.append((at, packet))
        world.at(at - world.now(), self.pump)

    def pump(self) -> None:
        """Deliver what is due."""
        roads, connection = self._roads, self._connection
        if roads.blocks[self.way] or not self.queue:
            return
        now, reader = roads.world.now(), connection.members[self.to]
        while self.queue and self.queue[0][0] <= now + 1e-9:
            _, packet = self.queue.popleft()
            if reader.loop.dead or not connection.up[self.to]:
                # Its host says that there is no such connection, if there is a host.
                if packet[0] != "fin" and connection.up[1 - self.to] and not roads.vanished(reader.address):
                    connection.pipes[self.to].put(("fin",))
                continue
            reader.loop.call_soon(connection.take, self.to, packet)


class Connection:
    """A connection that was made, with the calls on it."""

    def __init__(self, roads: Roads, number: int, channel: Channel, server: Member) -> None:
        self.number, self._roads = number, roads
        client = channel.member
        self.members = (client, server)
        here, there = client.address[0], server.address[0]
        # By the side that writes.
        self.pipes = (_Pipe(roads, self, _SERVER, (here, there)), _Pipe(roads, self, _CLIENT, (there, here)))
        self.up = [True, True]
        self.calls: dict[int, Calling] = {}
        self.served: dict[int, Serving] = {}
        self._channel = channel
        self._heard = [roads.world.now()] * 2

    def send(self, side: int, *packet: Any) -> None:
        """Send to the other side."""
        if self.up[side]:
            self.pipes[side].put(packet)

    def look(self) -> None:
        """Ping, or give up."""
        now = self._roads.world.now()
        if not self.calls:
            self._heard[_CLIENT] = now
        for side in (_CLIENT, _SERVER):
            if not self.up[side] or self._roads.world.paused(self.members[side].address):
                continue
            if now - self._heard[side] > _SILENT_S[side]:
                self._roads.counts["connections given up"] += 1
                self.close(side, lost=self._roads.world.random.random() < 0.5, told=True)
        if self.up[_CLIENT] and not self._roads.world.paused(self.members[_CLIENT].address):
            self.send(_CLIENT, "ping")

    def close(self, side: int, *, lost: bool, told: bool) -> None:
        """One side holds it for closed. `lost`: what it had sent and is under way with it; `told`: the other hears."""
        if not self.up[side]:
            return
        if lost:
            self.pipes[side].queue.clear()
        if told:
            self.send(side, "fin")
        self.up[side] = False
        self.members[side].loop.call_soon(self._ended, side)
        if not any(self.up):
            self._roads.forget(self)

    def _ended(self, side: int) -> None:
        if side == _CLIENT:
            self._channel.lost(self)
            calls, self.calls = self.calls, {}
            for call in calls.values():
                call.ends(_BROKEN)
        else:
            served, self.served = self.served, {}
            for serving in served.values():
                serving.cancel()

    def take(self, side: int, packet: tuple[Any, ...]) -> None:
        """A packet has arrived at this side, whose process gets round to it now."""
        if not self.up[side]:
            return
        self._heard[side] = self._roads.world.now()
        match packet:
            case ("ping",):
                self.send(side, "pong")
            case ("fin",):
                self.close(side, lost=True, told=False)
            case ("begin", number, method, timeout_s):
                self.served[number] = Serving(self, number, method, timeout_s)
            case ("message" | "window", number, content):
                self._hands(side, number, content)
            case ("cancel", number) if number in self.served:
                self.served.pop(number).cancel()
            case ("end", number, ended) if number in self.calls:
                self.calls.pop(number).ends(ended)

    def _hands(self, side: int, number: int, content: bytes | int) -> None:
        end: _End | None = self.calls.get(number) if side == _CLIENT else self.served.get(number)
        if end is None:
            return
        if isinstance(content, bytes):
            end.takes(content)
        else:
            end.widens(content)


class _Bell:
    """Wakes all who wait for something to change."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()

    async def wait(self) -> None:
        await self._event.wait()


class _End:
    """What both ends of a call have in common: what has arrived, and how much may be sent."""

    def __init__(self, side: int, number: int) -> None:
        self._side, self._number = side, number
        self._inbox: deque[bytes] = deque()
        self._window = WINDOW_BYTES
        self._read_bytes = 0
        self._bell = _Bell()
        self.connection: Connection | None = None

    def takes(self, message: bytes) -> None:
        """A message has arrived."""
        self._inbox.append(message)
        self._bell.ring()

    def widens(self, size: int) -> None:
        """The other side has read so many bytes."""
        self._window += size
        self._bell.ring()

    def _next(self) -> bytes:
        message = self._inbox.popleft()
        self._read_bytes += len(message)
        if self._read_bytes > WINDOW_BYTES // 2 and self.connection is not None:
            self.connection.send(self._side, "window", self._number, self._read_bytes)
            self._read_bytes = 0
        return message

    def _put(self, connection: Connection, message: bytes) -> None:
        self._window -= len(message)
        connection.send(self._side, "message", self._number, message)


class Calling(_End):
    """A call as its caller has it: `controlplane.federation.ways.Stream`."""

    def __init__(self, channel: Channel, number: int, method: str, timeout_s: float | None) -> None:
        super().__init__(_CLIENT, number)
        self._channel, self._method, self._timeout_s = channel, method, timeout_s
        self._ended: Ended | None = None

    def begins(self, connection: Connection) -> None:
        """There is a connection."""
        if self._ended is None:
            self.connection = connection
            connection.calls[self._number] = self
            connection.send(_CLIENT, "begin", self._number, self._method, self._timeout_s)
            self._bell.ring()

    def ends(self, ended: Ended) -> None:
        """The call is over."""
        if self._ended is None:
            self._ended = ended
            self._bell.ring()

    async def write(self, message: bytes) -> None:
        """See `Stream`."""
        while self._ended is None and (self.connection is None or self._window <= 0):
            await self._bell.wait()
        if self._ended is not None or self.connection is None:
            raise self._why()
        self._put(self.connection, message)
        member, target = self._channel.member, self._channel.target
        member.world.fleet.passes(member.address[0], target[0], message, copies=False)

    async def read(self) -> bytes:
        """See `Stream`."""
        while not self._inbox:
            if self._ended is not None:
                raise self._why()
            await self._bell.wait()
        return self._next()

    def cancel(self) -> None:
        """See `Stream`."""
        if self._ended is None:
            self.ends((grpc.StatusCode.CANCELLED, "", ()))
            self._channel.waiting.pop(self._number, None)
            if self.connection is not None:
                self.connection.calls.pop(self._number, None)
                self.connection.send(_CLIENT, "cancel", self._number)

    def _why(self) -> ControlPlaneError:
        code, text, trailers = self._ended or _BROKEN
        if code is grpc.StatusCode.OK:
            return Unavailable("the other side ended the stream", reason="STREAM_ENDED")
        return status.from_call(code, text, trailers)


class Channel:
    """A process's way to one endpoint: its connection, or its attempts at one."""

    def __init__(self, member: Member, target: Address) -> None:
        self.member, self.target = member, target
        self.waiting: dict[int, Calling] = {}
        self._state = "idle"
        self._connection: Connection | None = None
        self._backoff_s = _BACKOFF_S[0]
        self._bell = _Bell()
        self._numbers = 0

    def call(self, method: str, timeout_s: float | None) -> Calling:
        """Begin a call. It fails at once if the last attempt to connect did."""
        self._numbers += 1
        calling = Calling(self, self._numbers, method, timeout_s)
        if self._connection is not None:
            calling.begins(self._connection)
        elif self._state == "failed":
            calling.ends(_BROKEN)
        else:
            self.waiting[self._numbers] = calling
            self._want()
        return calling

    async def reached(self, *, patient: bool) -> bool:
        """See `Ways`."""
        while self._connection is None:
            self._want()
            if self._state == "failed" and not patient:
                return False
            await self._bell.wait()
        return True

    def _want(self) -> None:
        if self._state == "idle":
            self._state = "connecting"
            self.member.world.fleet.roads.connect(self)

    def made(self, connection: Connection) -> None:
        """A connection was made."""
        if not connection.up[_CLIENT]:
            self._fails()
            return
        self._connection, self._state, self._backoff_s = connection, "ready", _BACKOFF_S[0]
        waiting, self.waiting = self.waiting, {}
        for calling in waiting.values():
            calling.begins(connection)
        self._bell.ring()

    def lost(self, connection: Connection) -> None:
        """The connection is gone."""
        if self._connection is connection:
            self._connection, self._state = None, "idle"
            self._bell.ring()

    def failed(self) -> None:
        """No connection could be made."""
        self.member.loop.call_soon(self._fails)

    def _fails(self) -> None:
        self._state = "failed"
        waiting, self.waiting = self.waiting, {}
        for calling in waiting.values():
            calling.ends(_BROKEN)
        self._bell.ring()
        pause_s = self._backoff_s * self.member.world.random.uniform(0.8, 1.2)
        self._backoff_s = min(1.6 * self._backoff_s, _BACKOFF_S[1])
        self.member.loop.call_later(pause_s, self._rested)

    def _rested(self) -> None:
        if self._state == "failed":
            self._state = "idle"
            self._bell.ring()


class SimWays:
    """`controlplane.federation.ways.Ways` of one simulated process."""

    def __init__(self, member: Member, endpoints: Mapping[str, Address]) -> None:
        self._channels = {endpoint: Channel(member, target) for endpoint, target in endpoints.items()}

    def stream(self, endpoint: str, method: str) -> Calling:
        """See `Ways`."""
        return self._channels[endpoint].call(method, None)

    async def reached(self, endpoint: str, wait_s: float, *, patient: bool) -> bool:
        """See `Ways`."""
        try:
            async with asyncio.timeout(max(0.0, wait_s)):
                return await self._channels[endpoint].reached(patient=patient)
        except TimeoutError:
            return False

    async def ask(self, endpoint: str, method: str, request: bytes, timeout_s: float) -> bytes:
        """See `Ways`."""
        calling = self._channels[endpoint].call(method, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await calling.write(request)
                return await calling.read()
        except TimeoutError:
            raise status.from_call(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline is over", ()) from None
        finally:
            calling.cancel()

    async def close(self) -> None:
        """See `Ways`. Calls end with their connections, which their process outlives only while it stops."""


class _Aborted(Exception):
    """A handler ended its call with a status."""


class Serving(_End):
    """A call as its server has it: the part of a servicer's context that the product uses."""

    def __init__(self, connection: Connection, number: int, method: str, timeout_s: float | None) -> None:
        super().__init__(_SERVER, number)
        self.connection: Connection = connection
        client, server = connection.members
        self._caller, self._server, self._method = client, server, method
        loop: ProcessLoop = server.loop
        self._deadline = None if timeout_s is None else loop.time() + timeout_s
        self._task = loop.spawn(self._serve())
        if self._deadline is not None:
            loop.call_at(self._deadline, self._task.cancel)

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self._task.cancel()

    def auth_context(self) -> Mapping[str, Any]:
        """Who calls."""
        return {"x509_uri": [self._caller.certificate.encode()]}

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline."""
        return None if self._deadline is None else max(0.0, self._deadline - self._server.loop.time())

    def add_done_callback(self, told: Callable[[object], None]) -> None:
        """Have `told` called when the call is over."""
        self._task.add_done_callback(told)

    async def read(self) -> Any:
        """The next message."""
        while not self._inbox:
            await self._bell.wait()
        return self._next()

    async def write(self, message: bytes) -> None:
        """Send one."""
        while self._window <= 0:
            await self._bell.wait()
        here, there = self._server.address[0], self._caller.address[0]
        self._server.world.fleet.passes(here, there, message, copies=self._method == FOLLOW)
        self._put(self.connection, message)

    async def abort(self, code: grpc.StatusCode, text: str, trailers: Any = ()) -> NoReturn:
        """End the call with a status."""
        self._end_with((code, text, tuple(trailers)))
        raise _Aborted

    def _end_with(self, ended: Ended) -> None:
        self.connection.served.pop(self._number, None)
        self.connection.send(_SERVER, "end", self._number, ended)

    async def _serve(self) -> None:
        with suppress(_Aborted):
            if self._method == FOLLOW:
                await self._server.serve_stream(self)
            else:
                await self.write(await self._server.serve_call(self._method, await self.read(), self))
            self._end_with((grpc.StatusCode.OK, "", ()))
