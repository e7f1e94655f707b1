"""Workflows: created, compared and swapped, read at every node; the history has to be that of one register per key."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ClassVar, TypeVar

from chaos.real.callers import Region
from chaos.real.recording import Question, Worker
from chaos.real.workloads.base import Keys, Workload
from controlplane.checking.histories import History, Value
from controlplane.checking.invariants import stale_reads, writes
from controlplane.checking.models import Register
from controlplane.errors import ControlPlaneError
from controlplane.sdk import LINEARIZABLE, LOCAL, at_least
from controlplane.sdk.calls import Calls, Consistency
from controlplane.v1 import api_pb2 as api

R = TypeVar("R")
_OBSERVER = 1000
"""Process number of the reads after healing."""


class Cas(Workload):
    """Every worker creates, swaps and reads the same few workflows."""

    name: ClassVar[str] = "cas"

    def __init__(self, region: Region, seed: int) -> None:
        super().__init__(region, seed)
        self._keys = Keys("cas/", 6)
        self._seen: dict[tuple[int, str], int] = {}
        """The version that a worker saw last."""
        self._values: dict[tuple[str, int], str] = {}
        """What every version of every key was, whoever saw it."""
        self._present: dict[str, list[str]] = {}
        """What each key was at any time, as the event log tells it in the end."""
        self._wrote: dict[int, tuple[str, int, int]] = {}
        """A worker's latest acknowledged write: key, version, revision."""

    async def step(self, worker: Worker) -> None:
        """Do one of: create, swap, read; the last also with lesser consistency."""
        key = self._keys.take(worker.random)
        version = self._seen.get((worker.process, key), 0)
        chance = worker.random.random()
        if chance < 0.08 or (not version and chance < 0.5):
            await self._create(worker, key)
        elif chance < 0.5:
            await self._look_and_swap(worker, key, version)
        elif chance < 0.9:
            await self._read(worker, self.somebody(worker), key)
        else:
            await self._read_weakly(worker, key)

    async def ask_for_everything(self) -> None:
        """Read each key through each node."""
        reader = self.worker(_OBSERVER)
        for caller in self.callers.everyone():
            for key in self._keys.all:
                await self._read(reader, caller, key)
        for change in await self.events("workflow"):
            if change.name in self._keys.all:
                self._present.setdefault(change.name, []).append(change.workflow.state.decode())

    def judge(self, history: History) -> None:
        """One register per key, nothing acknowledged lost, nothing refused applied, no read stale."""
        operations = [each for each in history.operations if each.kind in ("create", "cas", "read")]
        self.linearizable("linearizability", operations, Register())
        self.broken(stale_reads(history))
        if self._present:
            self.broken(writes(history, self._present))
            self.checked["writes"] = f"{sum(map(len, self._present.values())):,} events"
        self.noticed()

    async def _create(self, worker: Worker, key: str) -> None:
        value = worker.unique()
        question = Question(key, "create", value, writes=True)
        caller = self.writer(worker)
        reply = await self.book.ask(
            worker, question, lambda: caller.create_workflow(key, value.encode()), lambda reply: reply.version, _nothing
        )
        if reply is not None:
            self._acknowledged(worker, key, reply.version, value, reply.header.revision)

    async def _look_and_swap(self, worker: Worker, key: str, version: int) -> None:
        """Swap; mostly after a fresh look, because others are at it too and what was seen before is seldom true."""
        if worker.random.random() < 0.7:
            await self._read(worker, self.somebody(worker), key)
        await self._swap(worker, key, self._seen.get((worker.process, key), version))

    async def _swap(self, worker: Worker, key: str, version: int) -> None:
        value = worker.unique()
        question = Question(key, "cas", (version, value), writes=True)
        caller = self.writer(worker)
        reply = await self.book.ask(
            worker,
            question,
            lambda: caller.compare_and_swap(key, version, value.encode()),
            lambda reply: reply.version,
            _nothing,
        )
        if reply is None:
            # Refused or failed: whatever stands there now, it is time to look again.
            self._seen.pop((worker.process, key), None)
        else:
            self._acknowledged(worker, key, reply.version, value, reply.header.revision)

    async def _read(self, worker: Worker, caller: Calls, key: str) -> None:
        reply = await self.book.ask(
            worker, Question(key, "read"), self._getting(caller, key, LINEARIZABLE), _versioned, _nothing
        )
        if reply is not None:
            self._saw(worker, key, reply.workflow)

    async def _read_weakly(self, worker: Worker, key: str) -> None:
        """Read what a node has, or at least one's own latest write; the answer must be true, if not new."""
        caller = worker.random.choice([*self.callers.at.values()])
        mine = self._wrote.get(worker.process)
        if mine is None or worker.random.random() < 0.5:
            await self._weakly(worker, caller, key, LOCAL)
            return
        written, version, revision = mine
        reply = await self._weakly(worker, caller, written, at_least(revision))
        if reply is None:
            return
        self.book.count("reads of one's own writes")
        if reply.header.revision < revision or reply.workflow.version < version:
            self.found(
                "stale read",
                f"{written}: AT_LEAST {revision} (version {version}) was answered with version"
                f" {reply.workflow.version} as of {reply.header.revision} by {reply.header.node}",
            )

    async def _weakly(
        self, worker: Worker, caller: Calls, key: str, consistency: Consistency
    ) -> api.GetWorkflowReply | None:
        kind = "read_local" if consistency is LOCAL else "read_at_least"
        question = Question(key, kind, consistency.revision)
        reply = await self.book.ask(worker, question, self._getting(caller, key, consistency), _versioned, _nothing)
        if reply is not None:
            self._agrees(key, reply.workflow)
        return reply

    def _getting(
        self, caller: Calls, key: str, consistency: Consistency
    ) -> Callable[[], Coroutine[Any, Any, api.GetWorkflowReply]]:
        return lambda: caller.get_workflow(key, consistency=consistency)

    def _saw(self, worker: Worker, key: str, view: api.WorkflowView) -> None:
        self._seen[worker.process, key] = view.version
        self._agrees(key, view)

    def _agrees(self, key: str, view: api.WorkflowView) -> None:
        """One version of one key has one value, however it is read."""
        self._value(key, view.version, view.workflow.state.decode())

    def _value(self, key: str, version: int, value: str) -> None:
        known = self._values.setdefault((key, version), value)
        if known != value:
            self.found("two values", f"{key}: version {version} is {known} and {value}")

    def _acknowledged(self, worker: Worker, key: str, version: int, value: str, revision: int) -> None:
        self._seen[worker.process, key] = version
        self._wrote[worker.process] = (key, version, revision)
        self._value(key, version, value)


def _versioned(reply: api.GetWorkflowReply) -> Value:
    return reply.workflow.version, reply.workflow.workflow.state.decode()


def _nothing(_: ControlPlaneError) -> Value:
    """A refusal, or absence; which of them the kind of question says."""
    return None
