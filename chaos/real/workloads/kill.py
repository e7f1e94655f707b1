"""Kill switches: thrown and taken back while agents ask, at every node and of their mirrors, whether they may act."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, ClassVar

from chaos.real.callers import Callers, Region
from chaos.real.recording import Question, Worker, now_ns
from chaos.real.workloads.base import OBSERVER, Keys, Workload
from controlplane.checking.histories import NEVER, History, Operation, Value
from controlplane.checking.invariants import Act, Kill, kills
from controlplane.checking.models import Switch
from controlplane.errors import ControlPlaneError, Unavailable
from controlplane.sdk import SCOPE_TENANT, ControlPlane, MirrorStale, Scope, Subject
from controlplane.sdk.calls import Calls
from controlplane.v1 import api_pb2 as api

MIRROR_AGE_MAX_MS = 1000
"""The bound: so long after a kill was confirmed nobody acts any more, or has been told that he cannot know."""
FRESH_TIMEOUT_S = 10.0
_LOOK_S = 0.04


class Kills(Workload):
    """Operators throw switches; agents ask nodes and mirrors."""

    name: ClassVar[str] = "kill"
    workers: ClassVar[int] = 12

    def __init__(self, region: Region, seed: int) -> None:
        super().__init__(region, seed)
        self._keys = Keys("tenant-", 3)
        self._looks: list[Operation] = []
        self._mirrors: list[ControlPlane] = []
        self._written = 0

    async def prepare(self) -> None:
        """Connect one agent that follows the leader, and one that keeps to each node."""
        options = {"mirror": True, "mirror_age_max_ms": MIRROR_AGE_MAX_MS}
        crews: list[Callers] = [await self.enter("agent", **options)]
        for node, address in zip(self.region.names, self.region.addresses, strict=True):
            crews.append(await self.enter(f"agent-at-{node}", addresses=[address], follow_leader=False, **options))
        self._mirrors = [crew.sdk for crew in crews]

    def work(self, over: asyncio.Event) -> list[Coroutine[Any, Any, None]]:
        """Workers, and those who look at the mirrors."""
        looking = [self._look(number, mirror, over) for number, mirror in enumerate(self._mirrors)]
        return [*super().work(over), *looking]

    async def step(self, worker: Worker) -> None:
        """Do one of: engage, release, ask a node."""
        key = self._keys.take(worker.random)
        chance = worker.random.random()
        if chance < 0.18:
            await self._throw(worker, key, engage=True)
        elif chance < 0.3:
            await self._throw(worker, key, engage=False)
        else:
            await self._check(worker, self.somebody(worker), key)

    async def ask_for_everything(self) -> None:
        """Ask each node about each scope, and wait for every mirror to be fresh."""
        reader = self.worker(OBSERVER)
        for caller in self.callers.everyone():
            for key in self._keys.all:
                await self._check(reader, caller, key)
        for number, mirror in enumerate(self._mirrors):
            try:
                await mirror.mirror_synced(self.callers.sdk.revision, timeout_s=FRESH_TIMEOUT_S)
            except Unavailable as error:
                self.found("healing", f"mirror {number}: {error}")
            for key in self._keys.all:
                self._ask_mirror(number, mirror, key)

    def judge(self, history: History) -> None:
        """One switch per scope; nobody acts after the bound; nothing is released but by a release."""
        self.linearizable("linearizability", history.operations, Switch())
        self._judge_mirrors(history.operations)
        self.noticed()

    async def _throw(self, worker: Worker, key: str, *, engage: bool) -> None:
        caller = self.writer(worker)
        scope = Scope(kind=SCOPE_TENANT, name=key)
        throw = caller.engage if engage else caller.release
        question = Question(key, "engage" if engage else "release", writes=True)

        async def ask() -> api.EngageSwitchReply | api.ReleaseSwitchReply:
            return await throw(scope, reason=f"chaos {worker.unique()}")

        await self.book.ask(worker, question, ask, lambda reply: reply.changed, _nothing)

    async def _check(self, worker: Worker, caller: Calls, key: str) -> None:
        subject = Subject(tenant=key)
        await self.book.ask(
            worker,
            Question(key, "check"),
            lambda: caller.check_switches(subject),
            lambda reply: bool(reply.stopped_by),
            _nothing,
        )

    async def _look(self, number: int, mirror: ControlPlane, over: asyncio.Event) -> None:
        """Ask a mirror about every scope in use, as an agent does before each act."""
        while not over.is_set():
            for key in self._keys.now():
                self._ask_mirror(number, mirror, key)
            await asyncio.sleep(_LOOK_S)

    def _ask_mirror(self, number: int, mirror: ControlPlane, key: str) -> None:
        at_ns = now_ns()
        try:
            stopped = bool(mirror.stopped(tenant=key))
        except MirrorStale:
            self.book.count("mirrors that were stale")
            return
        self._looks.append(Operation(OBSERVER + 1 + number, key, "look", None, stopped, at_ns, at_ns))

    def _judge_mirrors(self, operations: Sequence[Operation]) -> None:
        """Hold what mirrors said against what had been confirmed; of both kinds, because a mirror has one bound."""
        thrown, looks = _by_key(operations), _by_key(self._looks)
        for said, kind, against in ((False, "engage", "release"), (True, "release", "engage")):
            looked = changes = 0
            for key, mine in looks.items():
                stops = confirmed(thrown.get(key, []), kind, against)
                acts = [_act(look) for look in mine if look.result is said]
                looked, changes = looked + len(acts), changes + len(stops)
                self.broken(kills(stops, acts, MIRROR_AGE_MAX_MS * 1_000_000))
            self.checked[f"mirrors, {kind}"] = f"{looked} looks against {changes} changes"
            if not looked or not changes:
                self.found("load", f"nothing was shown about mirrors after {kind}")


def confirmed(operations: Sequence[Operation], kind: str, against: str) -> list[Kill]:
    """Throws of one kind in one scope that were answered, each until the first one that can have undone it."""
    stops = []
    others = [each for each in operations if each.kind == against]
    for each in operations:
        if each.kind == kind and not each.unknown:
            undone = (other.called for other in others if other.returned > each.called)
            stops.append(Kill(each.key, each.returned, min(undone, default=NEVER)))
    return stops


def _by_key(operations: Sequence[Operation]) -> dict[str, list[Operation]]:
    found: dict[str, list[Operation]] = {}
    for each in operations:
        found.setdefault(each.key, []).append(each)
    return found


def _act(look: Operation) -> Act:
    return Act(look.key, f"mirror {look.process}", look.called, look.returned)


def _nothing(_: ControlPlaneError) -> Value:
    """None of these calls has a refusal; one that comes nevertheless fits no model."""
    return "refused"
