"""Workflows: created, compared and swapped, read at every node; the history has to be that of one register per key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from chaos.real.callers import Region
from chaos.real.recording import Worker
from chaos.real.workloads import workflows
from chaos.real.workloads.base import OBSERVER, Keys, Workload, events
from chaos.real.workloads.workflows import Written, value_of
from controlplane.checking.histories import History
from controlplane.checking.invariants import stale_reads, writes
from controlplane.checking.models import Register
from controlplane.sdk import LOCAL, at_least
from controlplane.sdk.calls import Calls
from controlplane.v1 import api_pb2 as api


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
        self._wrote: dict[int, Written] = {}
        """A worker's latest acknowledged write."""

    async def step(self, worker: Worker) -> None:
        """Do one of: create, swap, read; the last also with lesser consistency."""
        key = self._keys.take(worker.random)
        version = self._seen.get((worker.process, key), 0)
        chance = worker.random.random()
        if chance < 0.08 or (not version and chance < 0.5):
            self._acknowledged(worker, await workflows.create(self.book, worker, self.writer(worker), key))
        elif chance < 0.5:
            await self._swap(worker, key)
        elif chance < 0.9:
            await self._read(worker, self.somebody(worker), key)
        else:
            await self._read_weakly(worker, key)

    async def ask_for_everything(self) -> None:
        """Read each key through each node, and the event log."""
        reader = self.worker(OBSERVER)
        for caller in self.callers.everyone():
            for key in self._keys.all:
                await self._read(reader, caller, key)
        for change in await self.happened():
            if change.name in self._keys.all:
                self._present.setdefault(change.name, []).append(change.workflow.state.decode())

    async def happened(self) -> Sequence[api.Change]:
        """Every change of a workflow, as the event log tells an operator."""
        return await events(self.callers.sdk, "workflow")

    def judge(self, history: History) -> None:
        """One register per key, nothing acknowledged lost, nothing refused applied, no read stale."""
        operations = [each for each in history.operations if each.kind in ("create", "cas", "read")]
        self.linearizable("linearizability", operations, Register())
        self.broken(stale_reads(history))
        if self._present:
            self.broken(writes(history, self._present))
            self.checked["writes"] = f"{sum(map(len, self._present.values())):,} events"
        self.noticed()

    async def _swap(self, worker: Worker, key: str) -> None:
        """Swap; mostly after a fresh look, because others are at it too and what was seen before is seldom true."""
        if worker.random.random() < 0.7:
            await self._read(worker, self.somebody(worker), key)
        version = self._seen.pop((worker.process, key), 1)
        self._acknowledged(worker, await workflows.swap(self.book, worker, self.writer(worker), key, version))

    async def _read(self, worker: Worker, caller: Calls, key: str) -> None:
        reply = await workflows.read(self.book, worker, caller, key)
        if reply is not None:
            self._seen[worker.process, key] = reply.workflow.version
            self._agrees(key, reply.workflow)

    async def _read_weakly(self, worker: Worker, key: str) -> None:
        """Read what a node has, or at least one's own latest write; the answer must be true, if not new."""
        node = worker.random.choice(list(self.callers.at.values()))
        mine = self._wrote.get(worker.process)
        if mine is None or worker.random.random() < 0.5:
            reply = await workflows.read(self.book, worker, node, key, kind="read_local", consistency=LOCAL)
        else:
            key, consistency = mine.key, at_least(mine.revision)
            reply = await workflows.read(self.book, worker, node, key, kind="read_at_least", consistency=consistency)
            self._is_no_older(mine, reply)
        if reply is not None:
            self._agrees(key, reply.workflow)

    def _is_no_older(self, mine: Written, reply: api.GetWorkflowReply | None) -> None:
        if reply is None:
            return
        self.book.count("reads of one's own writes")
        told = reply.header
        if told.revision < mine.revision or reply.workflow.version < mine.version:
            asked = f"{mine.key}: AT_LEAST {mine.revision}, where it is at version {mine.version}"
            self.found("STALE_READ", f"{asked}, {told.node} told {reply.workflow.version} as of {told.revision}")

    def _agrees(self, key: str, view: api.WorkflowView) -> None:
        """One version of one key has one value, however it is read."""
        self._value(key, view.version, value_of(view))

    def _value(self, key: str, version: int, value: str) -> None:
        known = self._values.setdefault((key, version), value)
        if known != value:
            self.found("TWO_VALUES", f"{key}: version {version} is {known} and {value}")

    def _acknowledged(self, worker: Worker, written: Written | None) -> None:
        if written is not None:
            self._seen[worker.process, written.key] = written.version
            self._wrote[worker.process] = written
            self._value(written.key, written.version, written.value)
