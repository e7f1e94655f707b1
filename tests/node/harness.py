"""One real node over a real store, and a log whose every step the test decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from itertools import count
from types import TracebackType
from typing import Any

from google.protobuf.message import Message

from controlplane import features, limits
from controlplane.errors import OutcomeUnknown, Unavailable
from controlplane.kernel.store import MemoryStore, Row, Store
from controlplane.node import Call, Node
from controlplane.replication import LogStatus, Machine, Role
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Partition, Reach

AGENT = "controlplane://fleet/prod/eu/agent/a1"
OTHER = "controlplane://fleet/prod/eu/agent/a2"
PROCESS = b"p" * 16
CONFIG = Partition(
    id="eu.prod.config",
    home="eu",
    epoch=1,
    reach=Reach.GLOBAL,
    environment="prod",
    default_for=["flag", "switch"],
)
STATE = Partition(
    id="eu.prod.state",
    home="eu",
    epoch=1,
    reach=Reach.HOME_ONLY,
    environment="prod",
    default_for=["workflow", "election"],
)
SPARE = Partition(id="eu.prod.spare", home="eu", epoch=3, reach=Reach.HOME_ONLY, environment="prod")
DEV = Partition(
    id="eu.dev.all",
    home="eu",
    epoch=1,
    reach=Reach.HOME_ONLY,
    environment="dev",
    default_for=["flag", "switch", "workflow", "election"],
)
BARE = Partition(id="eu.bare", home="eu", epoch=1, reach=Reach.HOME_ONLY, environment="bare", default_for=["flag"])
PARTITIONS = (CONFIG, STATE, SPARE, DEV, BARE)
PATIENCE_S = 20.0


class Scanned(MemoryStore):
    """Counts the rows that scans of it take."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Row]:
        for row in super().scan(start, end, reverse=reverse):
            self.rows += 1
            yield row


class Attempt:
    """One `append` or `barrier` that waits for the test to decide its fate."""

    def __init__(self, log: ScriptedLog, entry: bytes = b"") -> None:
        self.entry = entry
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._log = log

    def commit(self) -> None:
        """The entry is committed and applied; the caller is told."""
        self.answer(self._log.commit(self.entry))

    def answer(self, index: int = 0) -> None:
        if not self.done.done():
            self.done.set_result(index)

    def discard(self) -> None:
        """It certainly never happens."""
        self.done.set_exception(Unavailable("discarded", reason="NO_LEADER"))

    def unknown(self) -> None:
        """Nobody can say; the test may `commit` the entry later, or never."""
        self.done.set_exception(OutcomeUnknown("no answer", reason="TIMEOUT"))


class ScriptedLog:
    """A `Log` of one node. Automatic until told otherwise; entries of other leaders come through `commit`."""

    def __init__(self) -> None:
        self.automatic = True
        self.ready = True
        self.term, self.index, self.fresh_s = 1, 0, 0.0
        self.appends: asyncio.Queue[Attempt] = asyncio.Queue()
        self.barriers: asyncio.Queue[Attempt] = asyncio.Queue()
        self.entries: list[bytes] = []
        self._listeners: list[Callable[[], None]] = []
        self._machine: Machine | None = None

    async def start(self, machine: Machine) -> None:
        self._machine = machine
        self.index, self.term = machine.applied[0], max(1, machine.applied[1])

    async def stop(self) -> None:
        pass

    async def append(self, entry: bytes, *, timeout_s: float) -> int:
        if not self.ready:
            raise Unavailable("not the leader", reason="NOT_LEADER")
        if self.automatic:
            return self.commit(entry)
        attempt = Attempt(self, entry)
        self.appends.put_nowait(attempt)
        return await attempt.done

    async def barrier(self, *, timeout_s: float) -> None:
        if self.automatic:
            return
        attempt = Attempt(self)
        self.barriers.put_nowait(attempt)
        try:
            await asyncio.wait_for(attempt.done, timeout_s)
        except TimeoutError:
            raise Unavailable("no answer", reason="TIMEOUT") from None

    async def transfer(self, target: str | None, *, timeout_s: float) -> str:
        raise Unavailable("nobody else is here", reason="NO_PEER")

    def status(self) -> LogStatus:
        role, leader = (Role.LEADER, "n1") if self.ready else (Role.FOLLOWER, "n2")
        return LogStatus(role, leader, self.term, self.index, self.index, self.index, self.ready, self.fresh_s, {})

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    # What tests do

    def commit(self, entry: bytes) -> int:
        """Commit an entry, whoever's it is."""
        assert self._machine is not None
        self.index += 1
        self.entries.append(entry)
        self._machine.apply(self.index, self.term, entry)
        return self.index

    def lose(self) -> None:
        """Somebody else leads now."""
        self.ready = False
        self._tell()

    def lead(self) -> None:
        """Lead again, in a new term."""
        self.ready, self.term = True, self.term + 1
        self.commit(b"")
        self._tell()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()


class Region:
    """A node named n1 in region eu, with time that moves when the test says so."""

    def __init__(
        self,
        *,
        store: Store | None = None,
        partitions: Sequence[Partition] = PARTITIONS,
        **more: Any,
    ) -> None:
        self.now_s, self.unix_ms = 1000.0, 1_700_000_000_000
        self.log = ScriptedLog()
        self.store: Store = store if store is not None else MemoryStore()
        self._drawn = count(1)
        self.node = Node(
            fleet="fleet",
            region="eu",
            name="n1",
            partitions=partitions,
            store=self.store,
            log=self.log,
            clock=lambda: self.now_s,
            wall_ms=lambda: self.unix_ms,
            entropy=self.entropy,
            **more,
        )

    async def __aenter__(self) -> Region:
        await self.node.start()
        # What the node does when it first looks at the clock, in real time, is over before the test begins.
        self.node._watches.tick(self.now_s)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.node.stop()
        if self.node.failed.done() and kind is None:
            self.node.failed.result()

    def entropy(self, size: int) -> bytes:
        return next(self._drawn).to_bytes(size, "big")

    def submit(
        self,
        method: str,
        request: Message,
        *,
        actor: str = AGENT,
        environment: str = "prod",
        deadline_s: float = 5.0,
    ) -> asyncio.Future[bytes]:
        """Start a call; a write without a request id gets one."""
        header = request.header  # type: ignore[attr-defined]
        if method in features.WRITES and not header.request_id:
            header.request_id = self.entropy(limits.REQUEST_ID_BYTES)
        call = Call(method, request.SerializeToString(), actor, environment, self.now_s + deadline_s)
        return self.node.submit(call)

    async def call(self, method: str, request: Message, **more: Any) -> Any:
        """The reply of one call."""
        return reply_of(method, await asyncio.wait_for(self.submit(method, request, **more), PATIENCE_S))

    async def watch(
        self, request: api.WatchRequest, *, environment: str = "prod", deadline_s: float = 5.0
    ) -> AsyncGenerator[bytes, None]:
        call = Call("Watch", request.SerializeToString(), AGENT, environment, self.now_s + deadline_s)
        async with aclosing(await self.node.watch(call)) as messages:
            async for message in messages:
                yield message

    # Shorthands

    async def create(self, workflow: str, state: bytes = b"s", **more: Any) -> Any:
        return await self.call("CreateWorkflow", api.CreateWorkflowRequest(id=workflow, state=state), **more)

    async def swap(self, workflow: str, version: int, state: bytes = b"t", **more: Any) -> Any:
        request = api.CompareAndSwapWorkflowRequest(id=workflow, version=version, state=state)
        return await self.call("CompareAndSwapWorkflow", request, **more)

    async def workflow(self, workflow: str, **header: Any) -> Any:
        return await self.call("GetWorkflow", api.GetWorkflowRequest(id=workflow, header=header))


def reply_of(method: str, packed: bytes) -> Any:
    reply = getattr(api, f"{method}Reply").FromString(packed)
    assert reply.header.region == "eu"
    assert reply.header.node == "n1"
    return reply


async def within(what: Any) -> Any:
    """What `what` comes to; fails rather than hangs."""
    return await asyncio.wait_for(what, PATIENCE_S)


async def settle(turns: int = 20) -> None:
    """Let everything that can run without help run."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that something in the background brings about."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - the condition has no event.
            await asyncio.sleep(0.001)


async def message(watch: AsyncGenerator[bytes, None]) -> api.WatchReply:
    """The next message of a watch."""
    return api.WatchReply.FromString(await within(anext(watch)))
