"""One process of the simulated region: the product's node, controllers and router over the simulated consensus host.

Theory of operation. `sim_node.Node` is the host of the guard: disk, timers, snapshots. Here its machine is the real
`controlplane.node.Node` over a store with real rows, and the process has an event loop, on which node, controllers and
router run as they do in production. `SimLog` is what `raft.RaftLog` is there: the `Log` port over the guard.

1. Whatever happens to the guard is followed by one turn (`pump`); listeners hear of changes after it.
2. A write goes through the product's own `Router`: it is planned here, forwarded once, or waits for a leader. Its
   sessions run over the same simulated links as consensus does, and break with them.
3. What is asked of the process is remembered until it is answered, so that a call that is never answered is found.
4. A crash ends the loop at once. Callers hear of it, or not (a silent one).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from chaos import sim_node
from chaos.plane_chronicle import SLOWEST_CLOCK, Chronicle
from chaos.plane_disk import Image, RegionDisk, RegionStore, image_of
from chaos.plane_loop import ProcessLoop
from chaos.sim_node import Clock
from chaos.sim_oracle import Violation
from controlplane import features, limits, status
from controlplane.controllers import Controllers
from controlplane.errors import ControlPlaneError, OutcomeUnknown, Unavailable
from controlplane.forward import Forwarder, Request, Router
from controlplane.geography import Atlas
from controlplane.identity import Identity
from controlplane.kernel.machine import Applied
from controlplane.kernel.store import MemoryStore
from controlplane.node import Call, Node
from controlplane.replication import Log, LogStatus, Machine, Role
from controlplane.replication.guard import Outcome
from controlplane.replication.host import applied_at
from controlplane.replication.snapshots import SnapshotMeta
from controlplane.replication.tail import Entry
from controlplane.sdk.mirror import Mirror
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Partition

FLEET, REGION = "fleet", "eu"
_T = TypeVar("_T")
_RETRY_S = 0.02
_FRESHNESS_S = 1.0
_WALL_MS = 1_700_000_000_000
# Wall clocks of nodes differ by this much, and jump when a process starts.
_WALL_SKEW_MS = 300_000
# A call ends this long after its deadline at the latest: its entry may be under way, and timers fire late.
_ENTRY_S = limits.CALL_TIMEOUT_S
_LATE_S = 1.0


class Broken(Exception):
    """The connection ended before the answer: what was asked may have happened."""


class NotReached(Exception):
    """Nobody listens there: what was asked has certainly not happened."""


Answer = Callable[[bytes | BaseException], None]


class World(sim_node.World, Protocol):
    """What a process needs of the simulation around it."""

    region: str
    atlas: Atlas | None
    partitions: Sequence[Partition]
    chronicle: Chronicle
    patience_s: float
    parts: Parts


class SimLog:
    """`Log` over the guard of a simulated process."""

    def __init__(self, process: Replica) -> None:
        self._process = process
        self.listeners: list[Callable[[], None]] = []

    async def start(self, machine: Machine) -> None:
        """See `Log`; the guard runs already."""

    async def stop(self) -> None:
        """See `Log`; processes here end by crashing."""

    async def append(self, entry: bytes, *, timeout_s: float) -> int:
        """See `Log`. May lose patience before `timeout_s`: a caller must be able to live with that."""
        process = self._process
        answer: asyncio.Future[tuple[Outcome, int]] = process.loop.create_future()
        process.call(process.guard.propose, entry, partial(_answer, answer))
        process.pump()
        try:
            async with asyncio.timeout(min(timeout_s, process.world.patience_s)):
                return applied_at(*await answer)
        except TimeoutError:
            raise OutcomeUnknown("the log gave no answer in time", reason="LOG_TIMEOUT") from None

    async def barrier(self, *, timeout_s: float) -> None:
        """See `Log`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._round():  # noqa: ASYNC110 - nothing announces that a round may succeed now.
                    await asyncio.sleep(_RETRY_S)
        except TimeoutError:
            raise Unavailable("no majority confirmed this node's state in time", reason="NO_MAJORITY") from None

    async def transfer(self, target: str | None, *, timeout_s: float) -> str:
        """See `Log`; leadership is moved by the schedule here."""
        raise Unavailable("not here", reason="TRANSFER_IMPOSSIBLE")

    def status(self) -> LogStatus:
        """See `Log`."""
        return self._process.guard.status(self._process.clock.now())

    def on_change(self, listener: Callable[[], None]) -> None:
        """See `Log`."""
        self.listeners.append(listener)

    async def keep_fresh(self) -> None:
        """Prove now and then that a follower's state is current, so that its age means something."""
        while True:
            await asyncio.sleep(_FRESHNESS_S)
            if self._process.guard.role is not Role.LEADER:
                with contextlib.suppress(Unavailable):
                    await self.barrier(timeout_s=_FRESHNESS_S)

    async def _round(self) -> bool:
        process = self._process
        answer: asyncio.Future[bool] = process.loop.create_future()
        process.call(process.guard.read, partial(_answer_one, answer), process.clock.now())
        process.poke()
        return await answer


@dataclass(frozen=True, slots=True)
class Parts:
    """What a process is made of; a planted defect replaces one of them."""

    node: Callable[..., Node] = Node
    log: Callable[[Replica], SimLog] = SimLog
    controllers: Callable[[Node], Controllers] = Controllers
    disk: Callable[..., RegionDisk] = RegionDisk
    mirror: Callable[[float], Mirror] = Mirror


class Forwarded(NamedTuple):
    """Operations that a node forwards: `process` and `session` fence off what belongs to an earlier connection."""

    process: int
    session: int
    encoded: bytes


class Returned(NamedTuple):
    """Replies to what was forwarded in `session` of `process`."""

    process: int
    session: int
    encoded: bytes


class _Session(Forwarder):
    """The product's forwarder, over a simulated link in place of a gRPC channel."""

    def __init__(self, process: Replica, peer: str, router: SimRouter) -> None:
        super().__init__("", None, process.clock.now, router._flush, router.failed)
        self._process, self._peer, self._number = process, peer, 0

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self.up and self._unsent:
                encoded = self._envelope().SerializeToString()
                message = Forwarded(self._process.process, self._number, encoded)
                self._process.world.network.send(self._process.name, self._peer, message)

    def linked(self, up: bool) -> None:
        """The link came up, or broke: then the session ends too."""
        if self.up:
            self._set_up(False)
        if up:
            self._number += 1
            self._set_up(True)
            self._wake.set()

    def took(self, returned: Returned) -> None:
        """Take replies, unless they belong to an earlier session."""
        if (returned.process, returned.session) == (self._process.process, self._number):
            self._take(returned.encoded)


class SimRouter(Router):
    """The product's router, with simulated sessions to the other nodes."""

    def __init__(self, process: Replica, peers: Sequence[str], plan: Callable[[Call], asyncio.Future[bytes]]) -> None:
        super().__init__(process.name, plan, cast(Log, process.log), {}, None, process.clock.now)
        self.sessions = {peer: _Session(process, peer, self) for peer in peers}
        self._forwarders = dict(self.sessions)


class _Asked(Request):
    """A call of a client, or of another node on behalf of one."""

    __slots__ = ("_answer",)

    def __init__(self, call: Call, answer: Answer, *, final: bool) -> None:
        super().__init__(call, final=final)
        self._answer = answer

    def answered(self, reply: bytes) -> None:
        """See `Request`."""
        self._answer(reply)

    def failed(self, error: BaseException) -> None:
        """See `Request`."""
        self._answer(error)


class _Open(NamedTuple):
    """A call that this process has not answered yet."""

    method: str
    begun_at: float
    timeout_s: float
    answer: Answer


class Replica(sim_node.Node):
    """A process; `world` and `disk` are those of the region."""

    world: World
    disk: RegionDisk

    def __init__(self, world: World, name: str, peers: list[str], disk: RegionDisk, clock: Clock, process: int) -> None:
        self.loop = ProcessLoop(world, name, clock, lambda: world.paused_until(name))  # type: ignore[abstract]  # See its rule 4.
        self.store: RegionStore = disk.opened()
        self.log = world.parts.log(self)
        self._wall_skew_ms = world.random.randint(-_WALL_SKEW_MS, _WALL_SKEW_MS)
        self.plane = self.loop.enter(self._make_plane, world, name, clock)
        self._open: dict[int, _Open] = {}
        self._numbers = count()
        self._news = self._poked = False
        self._links: dict[str, bool] = {}
        self._begun: dict[str, tuple[tuple[int, int], set[int]]] = {}
        self._told: dict[object, Answer] = {}
        self._watches: dict[object, asyncio.Task[None]] = {}
        super().__init__(world, name, peers, disk, clock, process)
        self.router = self.make_router(peers)
        self.controllers = world.parts.controllers(self.plane)
        self.loop.spawn(self._serve())

    def make_router(self, peers: list[str]) -> SimRouter:
        """Return what brings calls to the leader."""
        return SimRouter(self, peers, self.plane.submit)

    def _make_plane(self, world: World, name: str, clock: Clock) -> Node:
        node = world.parts.node(
            fleet=FLEET,
            region=world.region,
            name=name,
            partitions=world.partitions,
            store=self.store,
            log=cast(Log, self.log),
            clock=clock.now,
            wall_ms=lambda: _WALL_MS + self._wall_skew_ms + int(world.now() * 1000),
            entropy=world.random.randbytes,
            atlas=world.atlas,
        )
        node.on_applied(self._took)
        return node

    async def _serve(self) -> None:
        await self.plane.start()
        self.controllers.start()
        self.router.start()
        for peer, up in self._links.items():
            self.router.sessions[peer].linked(up)
        self.loop.spawn(self.log.keep_fresh())

    def died(self, *, silent: bool) -> None:
        """The process is gone: nothing of it runs, and callers are told unless it vanished silently."""
        self.loop.die()
        if not silent:
            for answer in (*(one.answer for one in self._open.values()), *self._told.values()):
                answer(Broken())
        self._open.clear()

    # Callers.

    def ask(self, call: Callable[[], Call], timeout_s: float, answer: Answer) -> None:
        """Have a call answered; it is made when the process gets round to it."""
        self.loop.call_soon(self._ask, call, timeout_s, answer)

    def _ask(self, make: Callable[[], Call], timeout_s: float, answer: Answer) -> None:
        call = make()
        number = next(self._numbers)
        self._open[number] = _Open(call.method, self.world.now(), timeout_s, answer)
        self.submit(call, partial(self._answered, number))

    def submit(self, call: Call, answer: Answer, *, final: bool = False) -> None:
        """Bring a call to whoever answers it, as the server does."""
        if call.method in features.WRITES:
            self.router.submit(_Asked(call, answer, final=final))
        else:
            self.plane.submit(call).add_done_callback(lambda future: answer(_result(future)))

    def _answered(self, number: int, result: bytes | BaseException) -> None:
        one = self._open.pop(number, None)
        if one is not None:
            one.answer(result)

    def watch(self, stream: object, call: Callable[[], Call], tell: Answer) -> None:
        """Follow what a caller wants to see; `stream` names it to `unwatch`. What ends it is told last."""
        self.loop.call_soon(self._watch, stream, call, tell)

    def _watch(self, stream: object, make: Callable[[], Call], tell: Answer) -> None:
        self._told[stream] = tell
        self._watches[stream] = self.loop.spawn(self._follow(make(), tell))

    async def _follow(self, call: Call, tell: Answer) -> None:
        try:
            async with contextlib.aclosing(await self.plane.watch(call)) as messages:
                async for message in messages:
                    tell(message)
        except ControlPlaneError as error:
            tell(error)

    def unwatch(self, stream: object) -> None:
        """End a watch."""
        self.loop.call_soon(self._unwatch, stream)

    def _unwatch(self, stream: object) -> None:
        self._told.pop(stream, None)
        watch = self._watches.pop(stream, None)
        if watch is not None:
            watch.cancel()

    def overdue(self) -> str:
        """Which call should have been answered by now; empty: none."""
        now, resumed_at = self.world.now(), self.world.paused_until(self.name)
        for one in self._open.values():
            allowed_s = one.timeout_s + (_ENTRY_S if one.method in features.WRITES else 0.0)
            if now > max(one.begun_at, resumed_at) + allowed_s / SLOWEST_CLOCK + _LATE_S:
                return f"{one.method} asked at {one.begun_at:.3f} with {one.timeout_s:.3f} s"
        return ""

    # Links.

    def receive(self, messages: Sequence[tuple[str, Any]]) -> None:
        """See `sim_node.Node`; sessions between nodes share the links."""
        rest = []
        for peer, message in messages:
            if isinstance(message, Forwarded):
                self.loop.enter(self._serve_forwarded, peer, message)
            elif isinstance(message, Returned):
                self.loop.enter(self.router.sessions[peer].took, message)
            else:
                rest.append((peer, message))
        if rest:
            super().receive(rest)

    def linked(self, peer: str, up: bool) -> None:
        """The link to `peer` came up or broke."""
        self._links[peer] = up
        self.loop.call_soon(self._linked, peer, up)

    def _linked(self, peer: str, up: bool) -> None:
        if self.router._task is not None:
            self.router.sessions[peer].linked(up)

    def _serve_forwarded(self, peer: str, message: Forwarded) -> None:
        # These links repeat messages, a session does not: an operation comes once, or its session ends.
        session, begun = (message.process, message.session), set[int]()
        if self._begun.get(peer, ((0, 0), begun))[0] == session:
            begun = self._begun[peer][1]
        self._begun[peer] = session, begun
        for operation in api.SessionRequest.FromString(message.encoded).operations:
            if operation.id in begun:
                continue
            begun.add(operation.id)
            caller = Identity.parse(operation.on_behalf_of)
            call = Call(
                operation.method,
                operation.request,
                caller.uri,
                caller.environment,
                self.clock.now() + operation.timeout_ms / 1000,
                "" if caller.region == self.world.region else caller.region,
            )
            self.submit(call, partial(self._return, peer, message, operation.id), final=True)

    def _return(self, peer: str, message: Forwarded, number: int, result: bytes | BaseException) -> None:
        reply = api.SessionReply()
        if isinstance(result, bytes):
            reply.replies.add(id=number, reply=result)
        else:
            reply.replies.add(id=number, status=status.encode(result))
        back = Returned(message.process, message.session, reply.SerializeToString())
        self.world.network.send(self.name, peer, back)

    # Turns.

    def pump(self) -> None:
        """See `sim_node.Node`; then tell what changed."""
        self._poked = False
        super().pump()
        if self._news:
            self._news = False
            self.loop.enter(self._tell)
        self.check()

    def poke(self) -> None:
        """Take one turn after whatever else is about to run."""
        if not self._poked:
            self._poked = True
            self.loop.call_soon(self.pump)

    def changed(self) -> None:
        """See `guard.Host`."""
        super().changed()
        self._news = True

    def check(self) -> None:
        """A process that may not go on is a violation."""
        failed = self.plane.failed
        if failed.done():
            error = failed.exception()
            raise error if isinstance(error, Violation) else Violation(f"FATAL at {self.name}: {error!r}")

    def _tell(self) -> None:
        for listener in tuple(self.log.listeners):
            listener()

    # Machine.

    @property
    def applied(self) -> tuple[int, int]:
        """See `controlplane.replication.Machine`."""
        return self.plane.applied

    def apply(self, index: int, term: int, entry: bytes) -> None:
        """See `controlplane.replication.Machine`."""
        if index != self.applied[0] + 1:
            raise Violation(f"APPLY_ORDER {self.name} applied {index} after {self.applied[0]}")
        self._entry = entry
        self.plane.apply(index, term, entry)
        self.disk.wrote(index, term, self.store.taken())
        self.world.oracle.applies(self.name, Entry(index, term, entry), self.digest, None)

    def _took(self, applied: Applied) -> None:
        self.world.chronicle.applied(self.name, self._entry, applied, self.world.now(), self.clock)

    @property
    def digest(self) -> int:
        """The running hash, as a number."""
        return int.from_bytes(self.plane.state.hash[:8], "big")

    def mark(self) -> bytes:
        """See `guard.Host`."""
        return self.plane.mark()

    def marked(self, peer: str, mark: bytes) -> None:
        """See `guard.Host`."""
        self.plane.marked(peer, mark)

    # Snapshots.

    def snapshot_wanted(self) -> None:
        """See `guard.Host`."""
        delay = self.world.random.uniform(*self.world.conditions.snapshot_s)
        self._later(delay, self._image_made, self.store.snapshot())

    def _image_made(self, store: MemoryStore) -> None:
        now = self.clock.now()
        if self.world.random.random() < 0.05:
            self.call(self.guard.snapshot_unready, now)
        else:
            self.world.oracle.counts["snapshots made"] += 1
            self.call(self.guard.snapshot_ready, Image(store), now)
        self.pump()

    def _install(self, meta: SnapshotMeta, data: bytes) -> None:
        image = image_of(meta, data) if self.world.random.random() > 0.1 else None
        if image is None:
            self.world.oracle.counts["snapshots damaged"] += 1
            self.call(self.guard.snapshot_failed, meta, self.clock.now())
            self.pump()
            return
        if meta.index < self.applied[0]:
            raise Violation(f"SNAPSHOT_REGRESSION {self.name} from {self.applied[0]} to {meta.index}")
        self.disk.install_image(meta.index, meta.term, image)
        self._later(self.world.random.uniform(0, 0.01), self._switch, meta, image)

    def _switch(self, meta: SnapshotMeta, image: MemoryStore) -> None:
        self.store.adopt(image)
        self.loop.enter(self.plane.reloaded)
        if self.applied != (meta.index, meta.term):
            raise Violation(f"SNAPSHOT_STATE {self.name} stands at {self.applied} after that of {meta.index}")
        self.world.oracle.compares(self.name, meta.index, self.digest)
        self.world.oracle.counts["snapshots installed"] += 1
        self.world.log("installed", self.name, meta.index)
        self.call(self.guard.snapshot_installed, meta, self.clock.now())
        self.pump()


def _answer(answer: asyncio.Future[tuple[Outcome, int]], outcome: Outcome, index: int) -> None:
    if not answer.done():
        answer.set_result((outcome, index))


def _answer_one(answer: asyncio.Future[bool], proven: bool) -> None:
    if not answer.done():
        answer.set_result(proven)


def _result(future: asyncio.Future[bytes]) -> bytes | BaseException:
    error = future.exception()
    return future.result() if error is None else error
