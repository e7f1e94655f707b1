"""Watches at every node that break and resume while others write; the event log says what they had to deliver.

Three kinds of watcher: one at each node by plain streams, which resumes where it was; one through the SDK; and one that
begins with a listing each time, at any node.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from random import Random
from typing import Any, ClassVar

import grpc

from chaos.real.callers import Region
from chaos.real.recording import Worker
from chaos.real.workloads import workflows
from chaos.real.workloads.base import OBSERVER, Keys, Workload, events
from chaos.real.workloads.workflows import Written
from controlplane.checking import watches
from controlplane.checking.histories import History, Value
from controlplane.checking.invariants import stale_reads, writes
from controlplane.checking.models import Register
from controlplane.v1 import api_pb2 as api

PREFIX = "watched/"
BREAK_S = (0.2, 2.0)
"""A watcher leaves its stream after so long, if the stream has not broken before."""
REACH_S = 10.0
"""So soon after the end of the load every watcher has everything."""
_REST_S = 0.05
_KINDS = {
    api.WatchReply.STARTED: watches.Kind.STARTED,
    api.WatchReply.SNAPSHOT: watches.Kind.SNAPSHOT,
    api.WatchReply.SYNCED: watches.Kind.SYNCED,
    api.WatchReply.CHANGES: watches.Kind.CHANGES,
    api.WatchReply.PROGRESS: watches.Kind.PROGRESS,
}


class Watches(Workload):
    """Writers of watched and of other workflows, and those who watch."""

    name: ClassVar[str] = "watch"
    workers: ClassVar[int] = 10

    def __init__(self, region: Region, seed: int) -> None:
        super().__init__(region, seed)
        self._keys = Keys(PREFIX, 8)
        self._others = Keys("unwatched/", 1)
        self._seen: dict[str, int] = {}
        """The newest version that anybody saw: contention is for others, watchers need changes."""
        self._watched: dict[str, list[watches.Session]] = {}
        self._begin = self._end = 0
        self._written = asyncio.Event()
        self._until_s = 0.0
        self._events: list[api.Change] = []

    async def prepare(self) -> None:
        """Learn where the watching begins."""
        self._begin = (await self.callers.sdk.list_workflows(limit=1)).header.revision

    def work(self, over: asyncio.Event) -> list[Coroutine[Any, Any, None]]:
        """Writers, and watchers of every kind; these go on until they have everything."""
        watching = [self._resuming(node) for node in self.region.names]
        return [self._write(super().work(over)), *watching, self._listing(over), self._through_sdk()]

    async def step(self, worker: Worker) -> None:
        """Write a watched workflow or, sometimes, another one."""
        keys = self._keys if worker.random.random() < 0.8 else self._others
        key = keys.take(worker.random)
        version = self._seen.get(key, 0)
        if worker.random.random() < 0.2:
            await self._read(worker, key)
        elif version:
            await self._note(worker, key, await workflows.swap(self.book, worker, self.writer(worker), key, version))
        else:
            await self._note(worker, key, await workflows.create(self.book, worker, self.writer(worker), key))

    async def ask_for_everything(self) -> None:
        """Read the event log, and each key once more."""
        changes = await events(self.callers.sdk, "workflow")
        self._events = [change for change in changes if change.name.startswith(PREFIX)]
        reader = self.worker(OBSERVER)
        for key in (*self._keys.all, *self._others.all):
            await self._read(reader, key)

    def judge(self, history: History) -> None:
        """Every watcher saw what was committed: in order, whole, once, without a gap, up to the end."""
        self.linearizable("linearizability", history.operations, Register())
        self.broken(stale_reads(history))
        present: dict[str, list[Value]] = {}
        for change in self._events:
            present.setdefault(change.name, []).append(change.workflow.state.decode())
        mine = [each for each in history.operations if each.key.startswith(PREFIX)]
        failed = [each for each in history.failures if each.key.startswith(PREFIX)]
        self.broken(writes(History(tuple(mine), tuple(failed)), present))
        self._judge_watchers()
        self.noticed()

    def _judge_watchers(self) -> None:
        truth = watches.committed(map(_change, self._events), after=self._begin, up_to=self._end)
        for name, sessions in self._watched.items():
            for finding in watches.check(sessions, truth, reached=0 if name == "listing" else self._end):
                self.found(finding.promise, f"watcher {name}: {finding.text}")
        sessions_seen = sum(map(len, self._watched.values()))
        self.checked["watches"] = f"{sessions_seen} sessions against {len(truth.transactions)} transactions"
        if sessions_seen < 2 * len(self._watched):
            self.found("load", "watchers hardly ever resumed: nothing was shown about breaks")

    # Writing

    async def _read(self, worker: Worker, key: str) -> None:
        reply = await workflows.read(self.book, worker, self.callers.sdk, key)
        if reply is not None:
            self._seen[key] = max(reply.workflow.version, self._seen.get(key, 0))

    async def _note(self, worker: Worker, key: str, written: Written | None) -> None:
        """Remember how far watchers have to come; after a refusal look where the workflow stands."""
        if written is None:
            await self._read(worker, key)
        else:
            self._seen[key] = max(written.version, self._seen.get(key, 0))
            self._end = max(self._end, written.revision)

    # Watching

    async def _write(self, writers: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Run the writers; then it is known how far watchers have to come."""
        try:
            await asyncio.gather(*writers)
        finally:
            self._until_s = time.monotonic() + REACH_S
            self._written.set()

    async def _resuming(self, node: str) -> None:
        """Watch at one node, from where the last stream of it had come to."""
        random, cursor = Random(f"{self.random.random()}/{node}"), self._begin
        while not self._written.is_set() or (cursor < self._end and time.monotonic() < self._until_s):
            cursor = await self._watch_once(node, node, random, after=cursor, listing=False)

    async def _listing(self, over: asyncio.Event) -> None:
        """List and then watch, at one node after the other."""
        random = Random(f"{self.random.random()}/listing")
        while not over.is_set():
            await self._watch_once("listing", random.choice(self.region.names), random, after=None, listing=True)

    async def _through_sdk(self) -> None:
        """Watch through the SDK, which resumes by itself and keeps to itself where streams begin."""
        messages: list[watches.Message] = [watches.Message(watches.Kind.STARTED, self._begin)]
        self._watched["sdk"] = [watches.Session(messages, self._begin)]
        stream = self.callers.sdk.watch_transactions(
            kinds=("workflow",), prefix=PREFIX, after_revision=self._begin, progress=True
        )
        reading = asyncio.create_task(self._collect(stream, messages))
        try:
            await self._written.wait()
            while messages[-1].revision < self._end and time.monotonic() < self._until_s:  # noqa: ASYNC110 - it grows.
                await asyncio.sleep(_REST_S)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _collect(self, stream: AsyncIterator[api.WatchReply], messages: list[watches.Message]) -> None:
        async for reply in stream:
            if reply.kind != api.WatchReply.STARTED:
                messages.append(_message(reply))  # noqa: PERF401 - others look at it meanwhile.

    async def _watch_once(self, name: str, node: str, random: Random, *, after: int | None, listing: bool) -> int:
        """One stream until it breaks or is left; return the revision that it came to."""
        messages: list[watches.Message] = []
        # A node that is behind must not tell less than what was asked for, whatever it is asked to prove first.
        header = api.RequestHeader(consistency=random.choice((api.LINEARIZABLE, api.LOCAL)))
        request = api.WatchRequest(header=header, kinds=["workflow"], prefix=PREFIX, snapshot=listing)
        if after is not None:
            request.after_revision = after
        stream = self.callers.channels[node].stream("Watch", request.SerializeToString())
        try:
            async with asyncio.timeout(random.uniform(*BREAK_S)):
                async for encoded in stream:
                    messages.append(_message(api.WatchReply.FromString(encoded)))  # noqa: PERF401 - it breaks off.
        except TimeoutError:
            self.book.count("streams left")
        except grpc.aio.AioRpcError:
            self.book.count("streams broken")
        finally:
            stream.cancel()
        if messages:
            self._watched.setdefault(name, []).append(watches.Session(messages, after, listing))
        await asyncio.sleep(random.uniform(0, _REST_S))
        return messages[-1].revision if messages else after or 0


def _message(reply: api.WatchReply) -> watches.Message:
    return watches.Message(_KINDS[reply.kind], reply.revision, tuple(map(_change, reply.changes)))


def _change(change: api.Change) -> watches.Change:
    value = change.workflow.state.decode() if change.HasField("workflow") else None
    return watches.Change(change.name, change.meta.revision, value)
