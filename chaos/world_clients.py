"""Who works in a region among others: its own agents and operators, those who look abroad, and those who write there.

What is judged of a region alone is judged as `plane_clients` has it. A neighbour asks its own region for the records of
another one; what it is told is written into that one's history, as if it had asked there.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from chaos.plane_agents import FlagOperator, Orchestrator, Repeater, Worker, scope_name
from chaos.plane_chronicle import Chronicle
from chaos.plane_clients import TIMEOUTS_S, Client, Question, Stream, World
from chaos.plane_node import Broken, NotReached, Parts
from chaos.plane_watchers import Watcher
from chaos.sim_oracle import Violation
from chaos.world_borders import law_word, pinned_word
from controlplane.checking.histories import Recorder
from controlplane.errors import ControlPlaneError, NotFound, OutcomeUnknown, Refused, Unavailable
from controlplane.kernel import keys
from controlplane.kernel.transaction import scope_of
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Flag, Partition, Scope, ScopeKind

if TYPE_CHECKING:
    from chaos.world_region import Home

TENANTS = ("t0", "t1")
SCOPES = tuple(Scope(kind=ScopeKind.SCOPE_TENANT, name=name) for name in TENANTS)
_ABROAD_S = (0.4, 1.0, 2.0)
"""Requests from abroad have no date: they may be repeated only while nothing can have been forgotten."""
_EXCEPTS = 0.03


@dataclass(frozen=True, slots=True)
class CopyQuestion(Question):
    """A question about a copy of the records of region `of`."""

    of: str = ""


class PinnedWorker(Worker):
    """Moves workflows on that stay in the region."""

    def _value(self) -> str:
        return f"{pinned_word(self.world.region)}{super()._value()}"


class LawfulWorker(Worker):
    """Moves workflows on that stay in the jurisdiction."""

    def _value(self) -> str:
        return f"{law_word(self.world.region)}{super()._value()}"


class Stopper(Client):
    """Engages and releases kill switches; sometimes it excepts a stop of another region."""

    def __init__(self, world: Home, number: int) -> None:
        super().__init__(world, number, "prod", "operator")
        self._reason = f"{pinned_word(world.region)}{self.number}"

    async def work(self) -> None:
        """See `Client`."""
        scope, chance = self.random.choice(SCOPES), self.random.random()
        request: Any
        if chance < _EXCEPTS:
            await self._except(scope)
            return
        if chance < 0.5:
            kind, method, request = "engage", "EngageSwitch", api.EngageSwitchRequest(scope=scope)
        else:
            kind, method, request = "release", "ReleaseSwitch", api.ReleaseSwitchRequest(scope=scope)
        asking = self.write(method, request, reason=self._reason)
        await self.recorded(scope_name(scope), kind, None, asking, lambda reply: reply.changed)
        await self.pause(1.0)

    async def _except(self, scope: Scope) -> None:
        try:
            subject = api.Subject(tenant=scope.name)
            found = await self.read("CheckSwitches", api.CheckSwitchesRequest(subject=subject))
            for stop in found.stopped_by:
                if stop.region:
                    request = api.ExceptSwitchRequest(
                        scope=scope, region=stop.region, epoch=1, revision=stop.meta.revision
                    )
                    await self.write("ExceptSwitch", request, reason=self._reason)
                    self.world.done["stops excepted"] += 1
        except ControlPlaneError:
            self.world.done["exceptions not made"] += 1


class Asker(Client):
    """An agent that asks any node whether it may act: what it is told is what its region knew."""

    def __init__(self, world: Home, number: int) -> None:
        super().__init__(world, number, "prod")
        self._home = world

    async def work(self) -> None:
        """See `Client`."""
        tenant = self.random.choice(TENANTS)
        if self.random.random() < 0.5:
            await self._check(tenant)
            return
        try:
            self._judge(tenant, await self.read("CheckSwitches", _about(tenant), api.LOCAL))
        except ControlPlaneError:
            self.world.done["checks failed"] += 1

    async def last(self) -> None:
        """See `Client`."""
        for tenant in TENANTS:
            await self._check(tenant)

    async def _check(self, tenant: str) -> None:
        asking = self.read("CheckSwitches", _about(tenant))
        reply = await self.recorded(f"tenant:{tenant}", "check", None, asking, _stopped_here)
        if reply is not None:
            self._judge(tenant, reply)

    def _judge(self, tenant: str, reply: Any) -> None:
        region, revision = self.world.region, reply.header.revision
        told = {view.region for view in reply.stopped_by}
        wanted = self._home.fleet.borders.stopping(region, revision, self.environment, tenant)
        self.world.done["stopped abroad" if told - {""} else "not stopped abroad"] += 1
        if wanted != told:
            raise Violation(
                f"STOPS {region} says at {revision} that {sorted(told)} stop {tenant}; it knew of {sorted(wanted)}"
            )


class CopyReader(Client):
    """Reads copies of what another region shares: they are what the region has, and no older than they say."""

    def __init__(self, world: Home, number: int, of: Partition) -> None:
        super().__init__(world, number, "prod")
        self._of = of

    async def work(self) -> None:
        """See `Client`."""
        header = api.RequestHeader(partition=self._of.id, consistency=api.LOCAL)
        packed = api.ListFlagsRequest(header=header, limit=100).SerializeToString()
        question = CopyQuestion("ListFlags", packed, self.actor, self.environment, api.LOCAL, of=self._of.home)
        self._node = self.random.choice(self.world.names)
        try:
            reply = await self.insist(question, self.random.choice(TIMEOUTS_S))
        except ControlPlaneError:
            self.world.done["copies not read"] += 1
            return
        if reply.header.region != self.world.region:
            # It had not heard of the partition yet, and asked its home.
            return
        prefix = scope_of(self._of) + keys.text("flag")
        wanted = {
            keys.decode(key).name: Flag.FromString(each.value or b"")
            for key, each in self.world.chronicle.records(reply.header.revision, (prefix,)).items()
        }
        if {view.flag.name: view.flag for view in reply.flags} != wanted:
            raise Violation(f"COPY_SHOWN {self.world.region} lists other flags of {self._of.home} than it has")
        self.world.done["copies read"] += 1

    def _saw(self, revision: int) -> None:
        """Nothing is concluded: it may have been the home that answered."""


class Visit:
    """Another region as a client of this one sees it: `plane_clients.World`."""

    def __init__(self, here: Home, there: str) -> None:
        self._here, self._there = here, there
        self.region, self.random, self.names = here.region, here.random, here.names
        self.asked: deque[tuple[int, Question]] = deque(maxlen=100)

    @property
    def home(self) -> Home:
        """The region visited."""
        return self._here.fleet.regions[self._there]

    @property
    def chronicle(self) -> Chronicle:
        """What happened there."""
        return self.home.chronicle

    @property
    def history(self) -> Recorder:
        """What clients of that region were told."""
        return self.home.history

    @property
    def done(self) -> Counter[str]:
        """What clients of this region did."""
        return self._here.abroad

    @property
    def stopping(self) -> bool:
        """See `World`."""
        return self._here.stopping

    @property
    def parts(self) -> Parts:
        """See `World`."""
        return self._here.parts

    def now(self) -> float:
        """See `World`."""
        return self._here.now()

    def log(self, *words: object) -> None:
        """See `World`."""
        self._here.log(*words)

    def ask(self, name: str, question: Question, timeout_s: float) -> asyncio.Future[bytes]:
        """See `World`."""
        return self._here.ask_with(name, question, timeout_s, self.chronicle.seen)

    def watch(self, name: str, question: Question) -> Stream:
        """See `World`."""
        return self._here.watch(name, question)

    def probe(self, name: str) -> asyncio.Future[tuple[int, int]]:
        """See `World`."""
        return self._here.probe(name)

    def remember(self, question: Question) -> None:
        """See `World`."""
        self.asked.append((self.chronicle.revision, question))

    def elections(self, environment: str) -> Partition:
        """See `World`."""
        return self.home.elections(environment)


class Neighbour(FlagOperator):
    """Writes and reads the flags of another region by way of its own."""

    def __init__(self, visit: Visit, number: int, partition: Partition) -> None:
        # All that a client does with its world is to look at it.
        super().__init__(cast(World, visit), number, "prod", ["f0", "f1"])
        self._visit, self._partition = visit, partition

    async def work(self) -> None:
        """See `Client`."""
        if self._visit.asked and self.random.random() < 0.1:
            await self._again(*self.random.choice(self._visit.asked))
        else:
            await super().work()

    async def write(self, method: str, request: Any, *, reason: str = "") -> Any:
        """See `Client`."""
        request_id = self.random.randbytes(16)
        request.header.request_id, request.header.reason = request_id, reason
        request.header.partition = self._partition.id
        key = (self.actor, request_id)
        question = Question(method, request.SerializeToString(), self.actor, self.environment, request=key)
        self.world.done["asked abroad"] += 1
        return await self.insist(question, self.random.choice(_ABROAD_S))

    async def read(self, method: str, request: Any, consistency: int = api.LINEARIZABLE) -> Any:
        """See `Client`."""
        request.header.partition = self._partition.id
        try:
            return await super().read(method, request, consistency)
        except OutcomeUnknown as unknown:
            raise Unavailable(str(unknown), reason=unknown.reason) from unknown

    async def _look_back(self, flag: str) -> None:
        """What a flag was is asked at home."""

    async def _again(self, revision: int, question: Question) -> None:
        """Ask once more what was answered: it has to be the same answer."""
        if self.world.chronicle.revision - revision > self.world.chronicle.span // 4:
            return
        try:
            async with asyncio.timeout(2.0):
                packed = await self.world.ask(self.random.choice(self.world.names), question, 2.0)
        except (Refused, NotFound) as refusal:
            self._refused(question, refusal)
        except (TimeoutError, Broken, NotReached, ControlPlaneError):
            self.world.done["repeated abroad without an answer"] += 1
        else:
            self._told(question, packed)
            self.world.done["repeated abroad"] += 1


def _about(tenant: str) -> api.CheckSwitchesRequest:
    return api.CheckSwitchesRequest(subject=api.Subject(tenant=tenant))


def _stopped_here(reply: Any) -> bool:
    return any(not view.region for view in reply.stopped_by)


def population(home: Home) -> tuple[list[Client], list[Watcher]]:
    """Everybody who takes part in a region among others."""
    others = [other for other in home.fleet.names if other != home.region]
    shared = home.fleet.shared
    makers: list[Callable[[int], Client]] = [
        lambda n: LawfulWorker(home, n, "prod", ["w0", "w1"]),
        lambda n: PinnedWorker(home, n, "dev", ["w0", "w1"]),
        lambda n: Orchestrator(home, n, "prod", "e0", "job0"),
        lambda n: FlagOperator(home, n, "prod", ["f0", "f1", "f2"]),
        lambda n: Stopper(home, n),
        lambda n: Asker(home, n),
        lambda n: CopyReader(home, n, shared[home.random.choice(others)]),
        lambda n: Repeater(home, n, "prod"),
        *((lambda n, o=other: Neighbour(Visit(home, o), n, shared[o])) for other in others),
    ]
    first = 100 * home.fleet.names.index(home.region)
    clients = [make(first + number) for number, make in enumerate(makers)]
    first += len(clients)
    watchers = [
        Watcher(home, first, shared[home.region], ["flag", "stop"]),
        *(Watcher(home, first + 1 + n, shared[other], ["flag", "stop"]) for n, other in enumerate(others)),
    ]
    return clients, watchers
