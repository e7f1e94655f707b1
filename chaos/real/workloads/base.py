"""What all workloads share: a bounded pace, keys that rotate, and the checks that need no model."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from random import Random
from types import TracebackType
from typing import Any, ClassVar, Self

from chaos.real.callers import Callers, Region, Repeats, calling
from chaos.real.recording import Book, Worker
from chaos.real.report import Finding
from controlplane.checking import invariants
from controlplane.checking.histories import History, Value
from controlplane.checking.linearizability import Model, Result, check
from controlplane.errors import ControlPlaneError, OutcomeUnknown, Unavailable
from controlplane.limits import PAGE_MAX
from controlplane.sdk.calls import Calls
from controlplane.v1 import api_pb2 as api

OPERATIONS_PER_KEY = 500
"""After so many a key is given up for a new one, so that its history stays checkable."""
OBSERVER = 1000
"""Process number of the reads after healing; those of workers are below."""
RETRY_S = 0.05
READ_BACK_S = 20.0
READ_BACK_OPERATIONS_S = 200.0
"""How long the reads after healing may take, all together: so many seconds, and one for so many operations before."""


class Keys:
    """Names that rotate: so many in use at a time, each for a bounded number of operations."""

    def __init__(self, prefix: str, at_once: int) -> None:
        self._prefix = prefix
        self._used = [0] * at_once
        self._now = [self._name(slot, 0) for slot in range(at_once)]
        self._generation = 0
        self.all: list[str] = list(self._now)

    def now(self) -> Sequence[str]:
        """The names in use."""
        return self._now

    def take(self, random: Random) -> str:
        """Draw one of them for one operation."""
        slot = random.randrange(len(self._now))
        if self._used[slot] == OPERATIONS_PER_KEY:
            self._generation += 1
            self._used[slot], self._now[slot] = 0, self._name(slot, self._generation)
            self.all.append(self._now[slot])
        self._used[slot] += 1
        return self._now[slot]

    def _name(self, slot: int, generation: int) -> str:
        return f"{self._prefix}{slot}.{generation}"


class Workload(ABC):
    """One kind of load, and what must hold for all that it saw. Used with `async with`; `work` in between."""

    name: ClassVar[str]
    role: ClassVar[str] = "operator"
    workers: ClassVar[int] = 16
    pause_s: ClassVar[float] = 0.08
    """Mean time that a worker rests between two operations."""
    floor: ClassVar[float] = 40.0
    """Answers per second that the calm parts have to reach."""

    def __init__(self, region: Region, seed: int) -> None:
        self.book = Book()
        self.region = region
        self.random = Random(f"{seed}/{self.name}")
        self.findings: list[Finding] = []
        self.checked: dict[str, str] = {}
        self.results: list[Result] = []
        self.callers: Callers
        self._repeats: list[Repeats] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        try:
            self.callers = await self.enter("load")
            await self.prepare()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def enter(self, name: str, **options: object) -> Callers:
        """Connect a caller of its own identity, until the workload ends."""
        callers = await self._stack.enter_async_context(calling(self.region, self.role, name, self.random, **options))
        self._repeats.append(callers.repeats)
        return callers

    async def prepare(self) -> None:  # noqa: B027 - most need nothing.
        """Set up what the load needs, before it begins."""

    def work(self, over: asyncio.Event) -> list[Coroutine[Any, Any, None]]:
        """What runs at the same time until `over`; each ends soon after, with everything answered or given up."""
        return [self._steps(self.worker(number), over) for number in range(self.workers)]

    @abstractmethod
    async def step(self, worker: Worker) -> None:
        """Do one thing. Raises nothing but what is a defect of the harness."""

    async def answered(self) -> None:
        """Return when every node has answered a linearizable read."""
        await asyncio.gather(*(self._answered(node) for node in self.callers.at.values()))

    async def _answered(self, node: Calls) -> None:
        while True:
            try:
                await node.get_election("nobody")
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def read_back(self) -> None:
        """Ask every node for everything, after all is healed. Raises `TimeoutError`."""
        timeout_s = READ_BACK_S + self.book.operations / READ_BACK_OPERATIONS_S
        failed = len(self.book.failed_ns)
        async with asyncio.timeout(timeout_s):
            await self.ask_for_everything()
        if len(self.book.failed_ns) > failed:
            self.found("healing", f"{len(self.book.failed_ns) - failed} reads failed after everything was healed")

    @abstractmethod
    async def ask_for_everything(self) -> None:
        """Read everything that was ever written, at every node."""

    @abstractmethod
    def judge(self, history: History) -> None:
        """Add to `findings` whatever the history, and what was noted beside it, cannot explain."""

    # For workloads

    def worker(self, number: int) -> Worker:
        """A worker with chances of its own."""
        return Worker(number, Random(f"{self.random.random()}/{number}"))

    def found(self, kind: str, text: str) -> None:
        """Make the run red."""
        self.findings.append(Finding(kind, text))

    def broken(self, promises: Iterable[invariants.Finding]) -> None:
        """Make the run red for each broken promise."""
        for each in promises:
            self.found(each.promise, each.text)

    def somebody(self, worker: Worker) -> Calls:
        """The SDK, or one node asked directly."""
        return worker.random.choice(self.callers.everyone())

    def writer(self, worker: Worker) -> Calls:
        """The SDK, or plain calls that go from node to node and repeat what was acknowledged."""
        return worker.random.choice((self.callers.sdk, self.callers.sdk, self.callers.anywhere))

    def linearizable(self, what: str, operations: Iterable[Any], model: Model[Any]) -> None:
        """Search for an order of `operations`; none, or no answer in time, is a finding."""
        result = check(operations, model)
        self.results.append(result)
        self.checked[what] = f"{result.verdict.value}, {result.operations} operations over {result.keys} keys"
        for failure in result.failures:
            self.found(what, str(failure))

    def noticed(self) -> None:
        """Add what any caller notices: errors that no fault explains, answers that changed when asked again."""
        for text in self.book.unexpected:
            self.found("unexpected", text)
        if self.book.recorder.full:
            self.found("load", "the history is full: the load ended before the run")
        for repeats in self._repeats:
            self.book.count("repeated with the same answer", repeats.same)
            for text in repeats.differing:
                self.found("repeat", text)

    async def _steps(self, worker: Worker, over: asyncio.Event) -> None:
        while not over.is_set() and not self.book.recorder.full:
            await self.step(worker)
            await asyncio.sleep(worker.random.uniform(0, 2 * self.pause_s))


def nothing(_: ControlPlaneError) -> Value:
    """A refusal, or absence; which of them, the kind of question says."""
    return None


async def events(caller: Calls, *kinds: str) -> list[api.Change]:
    """Every change of records of these kinds that was ever committed, as the event log tells an operator."""
    changes: list[api.Change] = []
    more, after = True, 0
    while more:
        page = await caller.list_events(kinds=kinds, after_revision=after, limit=PAGE_MAX)
        changes += page.changes
        more, after = page.more, page.seen
    return changes
