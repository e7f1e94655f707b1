"""What agents and operators of the simulated region do.

Now and then a request that was answered is asked again, much later and elsewhere: it has to get the same answer, or
the region has to say that it has forgotten it, not too early.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from chaos.plane_clients import CONFIG, DEV, STATE, Client, Question, World
from chaos.plane_node import Broken, NotReached
from chaos.plane_watchers import MirrorAgent, Watcher, told, written
from chaos.sim_oracle import Violation
from controlplane import features
from controlplane.checking.histories import Value
from controlplane.errors import Compacted, ControlPlaneError, NotFound, OutcomeUnknown, Refused, Unavailable
from controlplane.kernel import keys
from controlplane.kernel.transaction import scope_of
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Flag, FlagType, FlagValue, Scope, ScopeKind, Variant

_TTLS_MS = (500, 1000, 3000)
_REPEATS_KEPT = 4000
_AGAIN_S = 2.0


class Worker(Client):
    """Moves workflows on by compare-and-swap."""

    def __init__(self, world: World, number: int, environment: str, workflows: Sequence[str]) -> None:
        super().__init__(world, number, environment)
        self._versions = dict.fromkeys(workflows, 0)

    async def work(self) -> None:
        """See `Client`."""
        workflow = self.random.choice(list(self._versions))
        if self.random.random() < 0.4:
            await self.look(workflow)
        elif not self._versions[workflow]:
            await self._create(workflow)
        else:
            await self.swap(workflow)

    async def last(self) -> None:
        """See `Client`."""
        for workflow in self._versions:
            await self.look(workflow)

    async def look(self, workflow: str) -> None:
        """Read a workflow."""
        request = api.GetWorkflowRequest(id=workflow)
        reply = await self.recorded(workflow, "read", None, self.read("GetWorkflow", request), _workflow)
        if reply is not None:
            self._versions[workflow] = reply.workflow.version

    async def _create(self, workflow: str) -> None:
        state = self._value()
        request = api.CreateWorkflowRequest(id=workflow, state=state.encode())
        await self.recorded(workflow, "create", state, self.write("CreateWorkflow", request), _version)
        self._versions[workflow] = 1

    async def swap(self, workflow: str, fence: api.Fence | None = None) -> None:
        """Write the next version."""
        version, state = self._versions[workflow], self._value()
        request = api.CompareAndSwapWorkflowRequest(id=workflow, version=version, state=state.encode())
        if fence is not None:
            request.header.fence.CopyFrom(fence)
        asking = self.write("CompareAndSwapWorkflow", request)
        reply = await self.recorded(workflow, "cas", (version, state), asking, _version)
        if reply is None:
            await self.look(workflow)
        else:
            self._versions[workflow] = reply.version

    def _value(self) -> str:
        return f"{self.number}.{self.random.getrandbits(40):x}"


class Orchestrator(Worker):
    """Campaigns, renews, and acts under its fence; sometimes it sleeps through its own expiry."""

    def __init__(self, world: World, number: int, environment: str, election: str, job: str) -> None:
        super().__init__(world, number, environment, [job])
        self._election, self._job = election, job
        self._holder = f"{self.actor}#{self.process.hex()}"
        self._fence: api.Fence | None = None
        self._ttl_ms = 500

    async def work(self) -> None:
        """See `Client`."""
        if self._fence is None:
            await self._campaign()
        elif self.random.random() < 0.5:
            await self._renew(self._fence)
        elif self.random.random() < 0.1:
            await self._resign(self._fence)
        else:
            await self._act(self._fence)

    async def _act(self, fence: api.Fence) -> None:
        if self.random.random() < 0.1:
            await self.pause(self._ttl_ms / 1000)
        if not self._versions[self._job]:
            await self._create(self._job)
        else:
            await self.swap(self._job, fence)

    async def _campaign(self) -> None:
        if self.random.random() < 0.3:
            await self._observe()
            return
        self._ttl_ms = self.random.choice(_TTLS_MS)
        request = api.CampaignRequest(name=self._election, process=self.process, ttl_ms=self._ttl_ms)
        asking = self.write("Campaign", request)
        reply = await self.recorded(
            self._election, "campaign", self._holder, asking, lambda reply: _tenure(reply.holder)
        )
        if reply is not None and reply.elected:
            self._fence = reply.holder.fence
        elif reply is not None:
            await self.pause(0.5)

    async def _renew(self, fence: api.Fence) -> None:
        request = api.RenewRequest(name=self._election, process=self.process, fence=fence)
        argument = (self._holder, fence.revision)
        reply = await self.recorded(self._election, "renew", argument, self.write("Renew", request), lambda _: True)
        if reply is None:
            await self._observe()

    async def _resign(self, fence: api.Fence) -> None:
        request = api.ResignRequest(name=self._election, process=self.process, fence=fence)
        argument, asking = (self._holder, fence.revision), self.write("Resign", request)
        await self.recorded(self._election, "resign", argument, asking, lambda reply: reply.resigned)
        self._fence = None

    async def _observe(self) -> None:
        asking = self.read("GetElection", api.GetElectionRequest(name=self._election))
        reply = await self.recorded(self._election, "observe", None, asking, lambda reply: _tenure(reply.holder))
        if reply is not None and (self._fence is None or reply.holder.fence != self._fence):
            self._fence = None


class FlagOperator(Client):
    """Sets flags, blindly or as they were read, and restores them."""

    def __init__(self, world: World, number: int, environment: str, flags: Sequence[str]) -> None:
        super().__init__(world, number, environment, "operator")
        self._flags: dict[str, tuple[int, int]] = dict.fromkeys(flags, (0, 0))
        self._past: dict[str, list[tuple[int, str]]] = {flag: [] for flag in flags}

    async def work(self) -> None:
        """See `Client`."""
        flag = self.random.choice(list(self._flags))
        chance = self.random.random()
        if chance < 0.4:
            await self._look(flag)
        elif chance < 0.6 and self._past[flag]:
            await self._restore(flag)
        else:
            await self._set(flag)

    async def last(self) -> None:
        """See `Client`."""
        for flag in self._flags:
            await self._look(flag)

    async def _look(self, flag: str) -> None:
        reply = await self.recorded(
            flag, "read", None, self.read("GetFlag", api.GetFlagRequest(name=flag)), lambda reply: _flag(reply.flag)
        )
        if reply is not None:
            meta = reply.flag.meta
            self._flags[flag] = meta.version, meta.revision
            self._past[flag].append((meta.revision, reply.flag.flag.default_variant))
            await self._look_back(flag)

    async def _look_back(self, flag: str) -> None:
        """What a flag was at a revision, it was at that revision for ever."""
        revision, value = self.random.choice(self._past[flag])
        try:
            reply = await self.read("GetFlag", api.GetFlagRequest(name=flag, at_revision=revision))
        except Unavailable:
            return
        except (Refused, NotFound, Compacted) as error:
            raise Violation(f"HISTORY {flag} at {revision}: {error.reason}") from error
        if reply.flag.flag.default_variant != value or reply.flag.meta.revision != revision:
            raise Violation(f"HISTORY {flag} was {value} at {revision}, and is said to have been {_flag(reply.flag)}")

    async def _restore(self, flag: str) -> None:
        revision, value = self.random.choice(self._past[flag])
        asking = self.write("RestoreFlag", api.RestoreFlagRequest(name=flag, revision=revision))
        await self.recorded(flag, "write", value, asking, lambda reply: reply.flag.meta.version)

    async def _set(self, flag: str) -> None:
        value = f"v{self.number}-{self.random.getrandbits(40):x}"
        request = api.SetFlagRequest(flag=_definition(flag, value))
        version, revision = self._flags[flag]
        kind: str = self.random.choice(("write", "cas" if version else "create"))
        argument: Value = (version, value) if kind == "cas" else value
        request.expected_revision = revision if kind == "cas" else 0
        request.must_not_exist = kind == "create"
        asking = self.write("SetFlag", request)
        await self.recorded(flag, kind, argument, asking, lambda reply: reply.meta.version)


class Stopper(Client):
    """Engages and releases kill switches."""

    def __init__(self, world: World, number: int, environment: str, scopes: Sequence[Scope]) -> None:
        super().__init__(world, number, environment, "operator")
        self._scopes = scopes

    async def work(self) -> None:
        """See `Client`."""
        scope = self.random.choice(self._scopes)
        request: Any
        if self.random.random() < 0.5:
            kind, method, request = "engage", "EngageSwitch", api.EngageSwitchRequest(scope=scope)
        else:
            kind, method, request = "release", "ReleaseSwitch", api.ReleaseSwitchRequest(scope=scope)
        asking = self.write(method, request, reason="an exercise")
        await self.recorded(scope_name(scope), kind, None, asking, lambda reply: reply.changed)
        await self.pause(0.5)


class Asker(Client):
    """An agent that asks whether it may act, at any node."""

    def __init__(self, world: World, number: int, environment: str, tenants: Sequence[str]) -> None:
        super().__init__(world, number, environment)
        self._tenants = tenants

    async def work(self) -> None:
        """See `Client`."""
        await self._check(self.random.choice(self._tenants))

    async def last(self) -> None:
        """See `Client`."""
        for tenant in self._tenants:
            await self._check(tenant)

    async def _check(self, tenant: str) -> None:
        asking = self.read("CheckSwitches", api.CheckSwitchesRequest(subject=api.Subject(tenant=tenant)))
        name = f"tenant:{tenant}"
        await self.recorded(name, "check", None, asking, lambda reply: name in map(_switch, reply.stopped_by))


class Reader(Client):
    """Reads what is near, how old it is said to be, and what happened."""

    async def work(self) -> None:
        """See `Client`."""
        consistency = self.random.choice((api.LOCAL, api.LOCAL, api.AT_LEAST))
        try:
            if self.random.random() < 0.5:
                await self.read("ListWorkflows", api.ListWorkflowsRequest(limit=3), consistency)
            else:
                await self._list_events(consistency)
        except ControlPlaneError as error:
            self.world.done[f"{type(error).__name__} on reading"] += 1

    async def _list_events(self, consistency: int) -> None:
        chronicle, after = self.world.chronicle, self.random.randint(0, self._since)
        request = api.ListEventsRequest(after_revision=after, limit=20, kinds=["flag", "switch"])
        try:
            reply = await self.read("ListEvents", request, consistency)
        except Compacted:
            chronicle.compacted(after)
            return
        scope = scope_of(CONFIG)
        prefixes = (scope + keys.text("flag"), scope + keys.text("switch"))
        expected = [each for _, group in chronicle.between(after, reply.header.revision, prefixes) for each in group]
        listed = told(CONFIG, reply.changes)
        if listed != written(expected[: len(listed)]) or reply.more != (len(listed) < len(expected)):
            raise Violation(f"EVENTS after {after} up to {reply.header.revision} are not those that happened")


class Repeater(Client):
    """Asks again what others asked, with their name and their request ids."""

    def __init__(self, world: World, number: int, environment: str) -> None:
        super().__init__(world, number, environment)
        self._questions: deque[tuple[int, Question]] = deque(maxlen=_REPEATS_KEPT)

    def remember(self, question: Question) -> None:
        """Keep a request; whoever asked it has its last answer."""
        self._questions.append((self.world.chronicle.revision, question))

    async def work(self) -> None:
        """See `Client`."""
        if not self._questions:
            return
        revision, question = self.random.choice(self._questions)
        header = _header(question)
        # Without a date a request is recognised only for as long as nothing at all is forgotten.
        if not header.HasField("since") and self.world.chronicle.revision - revision > self.world.chronicle.span // 2:
            return
        self._node = self.random.choice(self.world.names)
        self.world.done["repeated"] += 1
        try:
            await (self._again(question) if self.random.random() < 0.7 else self._look_up(question, header))
        except OutcomeUnknown as unknown:
            if unknown.reason == "OUTCOME_FORGOTTEN" and question.request is not None:
                self.world.chronicle.forgotten(question.request)
        except ControlPlaneError:
            self.world.done["repeated without an answer"] += 1

    async def _look_up(self, question: Question, header: api.RequestHeader) -> None:
        request = api.GetOutcomeRequest(header=header)
        request.header.consistency = api.LINEARIZABLE
        asked = replace(question, method="GetOutcome", packed=request.SerializeToString(), request=None)
        reply = await self.insist(asked, _AGAIN_S)
        if question.request is not None:
            self.world.chronicle.looked_up(question.request, reply)

    async def _again(self, question: Question) -> None:
        try:
            async with asyncio.timeout(_AGAIN_S):
                packed = await self.world.ask(self._node, question, _AGAIN_S)
        except (Refused, NotFound) as refusal:
            self._refused(question, refusal)
        except (TimeoutError, Broken, NotReached):
            self.world.done["repeated without an answer"] += 1
        else:
            self._told(question, packed)


def _header(question: Question) -> api.RequestHeader:
    request: Any = features.WRITES[question.method].request.FromString(question.packed)
    header: api.RequestHeader = request.header
    return header


def _workflow(reply: Any) -> Value:
    return reply.workflow.version, reply.workflow.workflow.state.decode()


def _version(reply: Any) -> Value:
    version: int = reply.version
    return version


def _flag(view: api.FlagView) -> Value:
    return view.meta.version, view.flag.default_variant


def _tenure(view: api.ElectionView) -> Value:
    if not view.HasField("fence"):
        return None
    return f"{view.election.holder}#{view.election.process.hex()}", view.fence.revision


def _switch(view: api.SwitchView) -> str:
    return scope_name(view.switch.scope)


def scope_name(scope: Scope) -> str:
    """A scope as histories name it."""
    return f"tenant:{scope.name}" if scope.kind == ScopeKind.SCOPE_TENANT else "environment:"


def _definition(name: str, value: str) -> Flag:
    variant = Variant(name=value, value=FlagValue(string_value=value))
    return Flag(name=name, type=FlagType.STRING, enabled=True, variants=[variant], default_variant=value)


def population(world: World) -> tuple[list[Client], list[Watcher]]:
    """Everybody who takes part."""
    tenants = ("t0", "t1")
    scopes = [Scope(kind=ScopeKind.SCOPE_TENANT, name=name) for name in tenants]
    makers: list[Callable[[int], Client]] = [
        *(lambda n: Worker(world, n, "prod", ["w0", "w1", "w2"]) for _ in range(3)),
        *(lambda n: Worker(world, n, "dev", ["w0", "w1"]) for _ in range(2)),
        *(lambda n: Orchestrator(world, n, "prod", "e0", "job0") for _ in range(2)),
        *(lambda n: Orchestrator(world, n, "dev", "e0", "job0") for _ in range(2)),
        *(lambda n: FlagOperator(world, n, "prod", ["f0", "f1"]) for _ in range(2)),
        *(lambda n: Stopper(world, n, "prod", scopes) for _ in range(2)),
        *(lambda n: Asker(world, n, "prod", tenants) for _ in range(2)),
        lambda n: Reader(world, n, "prod"),
        lambda n: Repeater(world, n, "prod"),
    ]
    clients = [make(number) for number, make in enumerate(makers)]
    watchers = [
        Watcher(world, len(clients), CONFIG, ["flag", "switch"]),
        Watcher(world, len(clients) + 1, STATE, ["workflow", "election"]),
        Watcher(world, len(clients) + 2, DEV, ["election"]),
        MirrorAgent(world, len(clients) + 3, CONFIG, tenants),
    ]
    return clients, watchers
