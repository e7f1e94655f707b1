"""What works in each region of a fleet while it is broken: three loads of its own, and those who look at the others.

The loads are those of single regions, at a gentler pace, so the same models judge them: the workflows and flags of a
region, and its switches. What others share is watched (`Watcher`), and asked about with every question about switches.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

from chaos.fleet_checks import Look, Record, Session, Throw, Told
from chaos.real.callers import Callers, Region
from chaos.real.recording import Question, Worker, now_ns
from chaos.real.workloads.base import OBSERVER, Workload, nothing
from chaos.real.workloads.cas import Cas
from chaos.real.workloads.flags import Flags
from controlplane.checking.histories import History
from controlplane.checking.models import Switch
from controlplane.errors import Compacted, OutcomeUnknown, Unavailable
from controlplane.limits import PAGE_MAX
from controlplane.sdk import SCOPE_TOOL, ControlPlane, MirrorStale, Scope, Subject
from controlplane.sdk.calls import Calls
from controlplane.v1 import api_pb2 as api

SCOPES = tuple(f"shared-{number}" for number in range(4))
"""Tools that every region stops and releases for itself."""
_LOOK_S = 0.1
_SESSION_S = (1.0, 6.0)
_RETRY_S = 0.1
_PAUSE_S = 0.2
_FOLLOW_S = 0.5


class _Own(Workload):
    """A load of one region of a fleet: its callers have names that no other load has."""

    workers: ClassVar[int] = 3
    pause_s: ClassVar[float] = _PAUSE_S
    floor: ClassVar[float] = 3.0

    async def enter(self, name: str, **options: object) -> Callers:
        """See `Workload.enter`."""
        return await super().enter(f"{self.name}-{name}", **options)


class OwnWorkflows(_Own, Cas):
    """Workflows of the region's jurisdiction."""

    def __init__(self, region: Region, seed: int, chronicle: Chronicle) -> None:
        super().__init__(region, seed)
        self._chronicle = chronicle

    async def happened(self) -> Sequence[api.Change]:
        """See `Cas`: of events that were dropped meanwhile, what was taken down before."""
        await self._chronicle.catch_up()
        return self._chronicle.changes


class OwnFlags(_Own, Flags):
    """Flags that every region has a copy of."""


@dataclass(slots=True)
class Looks:
    """What observers of one region were told of the stops of others."""

    by: dict[tuple[str, str, str], list[Look]] = field(default_factory=dict)
    """By observer, home and scope; in the order of each observer's questions."""

    def add(
        self, observer: str, homes: Iterable[str], scope: str, began_ns: int, found: Iterable[api.SwitchView]
    ) -> None:
        """Write down an answer, also for those of `homes` that stop nothing."""
        stopped = {view.region: view.meta.revision for view in found if view.region}
        ended_ms = time.time_ns() // 1_000_000
        for home in {*homes, *stopped}:
            self.by.setdefault((observer, home, scope), []).append(Look(began_ns, ended_ms, stopped.get(home, 0)))


class OwnStops(_Own):
    """Kill switches of scopes that every region uses: thrown here, asked about here, and in a mirror."""

    name: ClassVar[str] = "stops"

    def __init__(self, region: Region, seed: int, others: Iterable[str]) -> None:
        super().__init__(region, seed)
        self.looks = Looks()
        self.throws: dict[str, list[Throw]] = {}
        self.scopes = list(SCOPES)
        self._others = tuple(others)
        self._mirror: ControlPlane

    async def prepare(self) -> None:
        """Connect an agent with a mirror."""
        self._mirror = (await self.enter("agent", mirror=True)).sdk

    def work(self, over: asyncio.Event) -> list[Coroutine[Any, Any, None]]:
        """Workers, and the one who looks at the mirror."""
        return [*super().work(over), self._look_on(over)]

    async def step(self, worker: Worker) -> None:
        """Do one of: engage, release, ask."""
        scope = worker.random.choice(SCOPES)
        chance = worker.random.random()
        if chance < 0.1:
            await self.throw(worker, scope, engage=True)
        elif chance < 0.18:
            await self.throw(worker, scope, engage=False)
        else:
            await self.ask(worker, self.somebody(worker), worker.random.choice(self.scopes))

    async def throw(self, worker: Worker, scope: str, *, engage: bool) -> bool:
        """Engage or release; whether that was acknowledged."""
        caller = self.writer(worker)
        call = caller.engage if engage else caller.release
        of = Scope(kind=SCOPE_TOOL, name=scope)

        async def asking() -> api.EngageSwitchReply | api.ReleaseSwitchReply:
            return await call(of, reason=f"chaos {worker.unique()}")

        question = Question(scope, "engage" if engage else "release", writes=True)
        reply = await self.book.ask(worker, question, asking, lambda reply: reply.changed, nothing)
        if reply is not None and reply.changed:
            self.throws.setdefault(scope, []).append(Throw(reply.switch.meta.revision, now_ns()))
        return reply is not None

    async def ask(self, worker: Worker, caller: Calls, scope: str) -> api.CheckSwitchesReply | None:
        """Ask the region what stops users of a tool: of its own, for the history; of others, for `looks`."""
        began_ns = now_ns()
        reply = await self.book.ask(
            worker,
            Question(scope, "check"),
            lambda: caller.check_switches(Subject(tools=[scope])),
            lambda reply: any(not view.region for view in reply.stopped_by),
            nothing,
        )
        if reply is not None:
            self.looks.add(f"worker {worker.process}", self._others, scope, began_ns, reply.stopped_by)
        return reply

    async def ask_for_everything(self) -> None:
        """Ask each node about each scope."""
        reader = self.worker(OBSERVER)
        for caller in self.callers.everyone():
            for scope in self.scopes:
                await self.ask(reader, caller, scope)

    def judge(self, history: History) -> None:
        """One switch per scope, as far as this region's own are concerned."""
        self.linearizable("linearizability", history.operations, Switch())
        self.noticed()

    async def _look_on(self, over: asyncio.Event) -> None:
        while not over.is_set():
            for scope in self.scopes:
                began_ns = now_ns()
                try:
                    found = self._mirror.stopped(tools=(scope,))
                except MirrorStale:
                    self.book.count("mirrors that were stale")
                else:
                    self.looks.add("mirror", self._others, scope, began_ns, found)
            await asyncio.sleep(_LOOK_S)


class Watcher:
    """Somebody in one region who watches the copy of what another shares. `sessions` is what was seen."""

    def __init__(self, operator: ControlPlane, home: str, kind: str, partition: str, random: Random) -> None:
        """`partition` is that of the home; empty for stops, which are watched for all regions at once."""
        self.sessions: list[Session] = []
        self._operator, self._home, self._kind, self._partition = operator, home, kind, partition
        self._random = random
        self._seen = 0
        """The own region's revision up to which everything was seen."""
        self._restarts = True
        self.swept: list[Record] = []
        """What was seen while the copy was made anew."""
        self._sweeps = self._turned = False
        self._bound: asyncio.Timeout | None = None

    async def run(self) -> None:
        """Watch until cancelled: now and then from where it stood, now and then anew."""
        while True:
            try:
                async with asyncio.timeout(self._random.uniform(*_SESSION_S)) as self._bound:
                    await self._watch(anew=self._restarts)
            except TimeoutError:
                self._restarts = self._turned or self._random.random() < 0.5
                self._turned = False
            except Compacted:
                self._restarts = True
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(_RETRY_S)

    def sweep(self, *, on: bool) -> None:
        """From now on the copy is made anew, or it is again a beginning of what happens at home: begin anew as well."""
        self._sweeps, self._turned = on, True
        if self._bound is not None and not self._bound.expired():
            self._bound.reschedule(asyncio.get_running_loop().time())

    async def finish(self, timeout_s: float) -> None:
        """Watch to the end of what there is now."""
        revision = (await self._operator.get_status()).header.revision
        async with asyncio.timeout(timeout_s):
            while self._seen < revision:
                try:
                    await self._watch(anew=self._restarts, upto=revision)
                except Compacted:
                    self._restarts = True

    async def _watch(self, *, anew: bool, upto: int | None = None) -> None:
        listed: list[Record] | None = [] if anew else None
        messages: list[tuple[Record, ...]] = []
        at, complete, sweeps = self._seen, not anew, self._sweeps
        stream: Any = self._operator.watch_transactions(
            kinds=[self._kind],
            partition=self._partition,
            snapshot=anew,
            after_revision=None if anew else self._seen,
            progress=True,
        )
        try:
            async for reply in stream:
                records = tuple(record_of(change) for change in reply.changes if change.home == self._home)
                if reply.kind == api.WatchReply.SNAPSHOT:
                    assert listed is not None
                    listed += records
                elif reply.kind == api.WatchReply.SYNCED:
                    at, complete = reply.revision, True
                    self._seen, self._restarts = reply.revision, False
                elif reply.kind == api.WatchReply.CHANGES:
                    if records:
                        messages.append(records)
                    self._seen = reply.revision
                elif reply.kind == api.WatchReply.PROGRESS:
                    self._seen = max(self._seen, reply.revision)
                if upto is not None and complete and self._seen >= upto:
                    return
        finally:
            await stream.aclose()
            if sweeps:
                self.swept += [*(listed or ()), *(record for message in messages for record in message)]
            elif complete:
                self.sessions.append(Session(None if listed is None else tuple(listed), at, tuple(messages)))


class Chronicle:
    """Every change of a kind in a partition of the region itself, as its event log tells it."""

    def __init__(self, operator: Calls, kind: str, partition: str) -> None:
        self.changes: list[api.Change] = []
        self._operator, self._kind, self._partition = operator, kind, partition
        self._after = 0

    async def follow(self) -> None:
        """Take everything down until cancelled, before it is dropped. Raises `Compacted` if that was too slow."""
        while True:
            with contextlib.suppress(Unavailable, OutcomeUnknown):
                await self.catch_up()
            await asyncio.sleep(_FOLLOW_S)

    async def catch_up(self) -> None:
        """Take down all that there is now. Raises the eight errors."""
        more = True
        while more:
            page = await self._operator.list_events(
                kinds=(self._kind,), after_revision=self._after, limit=PAGE_MAX, partition=self._partition
            )
            self.changes += page.changes
            more, self._after = page.more, page.seen


def record_of(change: api.Change) -> Record:
    """What of a change is the same at home and abroad."""
    which = change.WhichOneof("value")
    value = None if which is None else getattr(change, which).SerializeToString(deterministic=True)
    return Record(change.name, change.meta.revision, value)


def stop_of(change: api.Change) -> Told:
    """A stop, as its home's event log tells it."""
    return Told(change.meta.revision, change.stop.engaged, change.meta.at_ms)
