"""Agents and operators of the simulated region: what they ask, how they insist, and what they write down.

Each client is one strand of work that asks one thing after the other, at any node, as an SDK does: again and elsewhere
with the same request id until its time is up. What it was told goes into a history, which is checked for
linearizability when the run is over; what can be judged at once is judged by the chronicle.

1. An operation without an answer is of unknown outcome if any attempt may have reached a log; else it failed.
2. A refusal by the rules is an answer.
3. Now and then a request that was answered is asked again, much later and elsewhere: it has to get the same answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from chaos.plane_chronicle import Chronicle, RequestKey, Written
from chaos.plane_node import FLEET, REGION, Broken, NotReached
from chaos.sim_oracle import Violation
from controlplane import features
from controlplane.checking.histories import Recorder, Value
from controlplane.errors import Compacted, ControlPlaneError, NotFound, OutcomeUnknown, Refused, Unavailable
from controlplane.kernel import keys
from controlplane.kernel.transaction import scope_of
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Flag, FlagType, FlagValue, Partition, Reach, Scope, ScopeKind, Variant

CONFIG = Partition(
    id="eu.prod.config", home=REGION, epoch=1, reach=Reach.GLOBAL, environment="prod", default_for=["flag", "switch"]
)
STATE = Partition(
    id="eu.prod.state",
    home=REGION,
    epoch=1,
    reach=Reach.HOME_ONLY,
    environment="prod",
    default_for=["workflow", "election"],
)
DEV = Partition(
    id="eu.dev.all",
    home=REGION,
    epoch=1,
    reach=Reach.HOME_ONLY,
    environment="dev",
    default_for=["flag", "switch", "workflow", "election"],
)
PARTITIONS = (CONFIG, STATE, DEV)

_T = TypeVar("_T")
_THINK_S = (0.02, 0.1, 0.2, 0.5)
TIMEOUTS_S = (0.4, 2.0, 4.0, 8.0)
_BACKOFF_S = (0.02, 0.2)
_TTLS_MS = (500, 1000, 3000)
# A watcher that hears nothing for this long looks for another node; progress comes every second.
_SILENCE_S = 3.5
_REPEATS_KEPT = 400
_AGAIN_S = 2.0
# Requests without a date may be repeated only while nothing can have been forgotten.
_UNDATED = 0.1


class World(Protocol):
    """What clients need of the simulation."""

    random: Random
    names: list[str]
    chronicle: Chronicle
    history: Recorder
    done: Counter[str]
    stopping: bool

    def now(self) -> float:
        """True time."""

    def log(self, *words: object) -> None:
        """Write a line of the trace."""

    def ask(self, name: str, question: Question, timeout_s: float) -> asyncio.Future[bytes]:
        """Ask a node; raises one of the eight errors, `Broken` or `NotReached`."""

    def watch(self, name: str, question: Question) -> Stream:
        """Watch at a node."""

    def remember(self, question: Question) -> None:
        """Keep a request, to be asked again."""


class Stream(Protocol):
    """The messages of one watch as they arrive."""

    async def next(self) -> bytes:
        """The next message; raises what ended the watch."""

    def close(self) -> None:
        """End it."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request as it goes over the wire, and who asks."""

    method: str
    packed: bytes
    actor: str
    environment: str
    consistency: int = api.LINEARIZABLE
    request: RequestKey | None = None


class Client:
    """One strand of work."""

    def __init__(self, world: World, number: int, environment: str, role: str = "agent") -> None:
        self.world, self.number, self.environment = world, number, environment
        self.random = world.random
        self.actor = f"controlplane://{FLEET}/{environment}/{REGION}/{role}/c{number}"
        self.process = world.random.randbytes(16)
        self._since = 0
        self._node = world.random.choice(world.names)

    async def run(self) -> None:
        """Work until the run is nearly over."""
        while not self.world.stopping:
            await self.pause(self.random.choice(_THINK_S))
            await self.work()
        await self.last()

    async def work(self) -> None:
        """Do one thing."""
        raise NotImplementedError

    async def last(self) -> None:
        """Look a last time at everything, so that what was lost is missed."""

    async def pause(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds * self.random.uniform(0.5, 1.5))

    # Asking.

    async def write(self, method: str, request: Any, *, reason: str = "") -> Any:
        """Return the reply. Raises one of the errors; OutcomeUnknown only if it may have happened."""
        request_id = self.random.randbytes(16)
        request.header.request_id = request_id
        request.header.reason = reason
        if self.random.random() >= _UNDATED:
            request.header.since = self._since
        key = (self.actor, request_id)
        fence = request.header.fence if request.header.HasField("fence") else None
        if fence is not None:
            scope = scope_of(STATE if self.environment == "prod" else DEV)
            election, resource = keys.within(scope, "election", fence.election), f"{self.environment}/{request.id}"
            self.world.chronicle.fenced(key, election, fence.revision, resource)
        question = Question(method, request.SerializeToString(), self.actor, self.environment, request=key)
        return await self.insist(question, self.random.choice(TIMEOUTS_S))

    async def read(self, method: str, request: Any, consistency: int = api.LINEARIZABLE) -> Any:
        """Return the reply."""
        request.header.consistency = consistency
        if consistency == api.AT_LEAST:
            request.header.revision = self._since
        question = Question(method, request.SerializeToString(), self.actor, self.environment, consistency)
        self._node = self.random.choice(self.world.names)
        reply = await self.insist(question, self.random.choice(TIMEOUTS_S))
        if consistency == api.AT_LEAST and reply.header.revision < request.header.revision:
            raise Violation(f"AT_LEAST {request.header.revision} was asked for, {reply.header.revision} served")
        return reply

    async def insist(self, question: Question, timeout_s: float) -> Any:
        """Ask until there is an answer, or time is up."""
        deadline = self.world.now() + timeout_s
        doubt: OutcomeUnknown | None = None
        error: ControlPlaneError = Unavailable("nobody answered", reason="NO_ANSWER")
        while (left_s := deadline - self.world.now()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    packed = await self.world.ask(self._node, question, left_s)
                return self._told(question, packed)
            except (TimeoutError, Broken):
                doubt = OutcomeUnknown("the connection broke", reason="BROKEN") if question.request else None
            except NotReached:
                pass
            except OutcomeUnknown as unknown:
                doubt = unknown
                if unknown.reason == "OUTCOME_FORGOTTEN":
                    break
            except (Refused, NotFound) as refusal:
                self._refused(question, refusal)
                raise
            except ControlPlaneError as failure:
                error = failure
            self._node = self.random.choice(self.world.names)
            await self.pause(self.random.choice(_BACKOFF_S))
        if question.request is not None:
            if doubt is None:
                self.world.chronicle.failed(question.request)
            else:
                self.world.remember(question)
        raise doubt or error

    def _told(self, question: Question, packed: bytes) -> Any:
        reply = getattr(api, f"{question.method}Reply").FromString(packed)
        revision = reply.header.revision
        if question.request is not None:
            kept = type(reply)()
            kept.CopyFrom(reply)
            kept.header.node, kept.header.age_ms = "", 0
            self.world.chronicle.answered(question.request, kept.SerializeToString(deterministic=True), revision)
            self.world.remember(question)
        self._saw(revision)
        self.world.done[question.method] += 1
        return reply

    def _refused(self, question: Question, refusal: ControlPlaneError) -> None:
        if question.request is not None and "as_of" in refusal.details:
            revision = int(refusal.details["as_of"])
            text = f"{type(refusal).__name__} {refusal.reason} {sorted(refusal.details.items())}"
            self.world.chronicle.answered(question.request, text.encode(), revision)
            self.world.remember(question)
            self._saw(revision)
        self.world.done[f"{question.method} refused"] += 1

    def _saw(self, revision: int) -> None:
        self._since = max(self._since, revision)
        self.world.chronicle.tell(revision)

    # Writing down.

    async def recorded(
        self, key: str, kind: str, argument: Value, asking: Awaitable[_T], answer: Callable[[_T], Value]
    ) -> _T | None:
        """Do an operation and write it down; None if it had no answer. `answer` says what was told."""
        history = self.world.history
        history.invoke(self.number, f"{self.environment}/{key}", kind, argument, self._ns())
        try:
            reply = await asking
        except OutcomeUnknown as unknown:
            history.info(self.number, unknown.reason, self._ns())
            self.world.done["unknown"] += 1
            return None
        except (Refused, NotFound) as refusal:
            if refusal.reason in _ANSWERS:
                history.ok(self.number, _ANSWERS[refusal.reason], self._ns())
            else:
                history.fail(self.number, refusal.reason, self._ns())
            return None
        except ControlPlaneError as failure:
            history.fail(self.number, failure.reason, self._ns())
            self.world.done["failed"] += 1
            return None
        history.ok(self.number, answer(reply), self._ns())
        return reply

    def _ns(self) -> int:
        return int(self.world.now() * 1e9)


# Refusals that say what the state is; every other one means that the request did not happen.
_ANSWERS: dict[str, Value] = {
    "WORKFLOW_EXISTS": None,
    "VERSION_MISMATCH": None,
    "WORKFLOW_NOT_FOUND": None,
    "FLAG_EXISTS": None,
    "REVISION_MISMATCH": None,
    "FLAG_NOT_FOUND": None,
    "LEASE_LOST": False,
}


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
    """Reads what is near, and checks how old it is said to be."""

    async def work(self) -> None:
        """See `Client`."""
        consistency = self.random.choice((api.LOCAL, api.LOCAL, api.AT_LEAST))
        request = api.ListWorkflowsRequest(limit=3)
        try:
            await self.read("ListWorkflows", request, consistency)
        except ControlPlaneError as error:
            self.world.done[f"{type(error).__name__} on reading"] += 1


class Repeater(Client):
    """Asks again what others asked, with their name and their request ids."""

    def __init__(self, world: World, number: int, environment: str) -> None:
        super().__init__(world, number, environment)
        self.questions: deque[Question] = deque(maxlen=_REPEATS_KEPT)

    async def work(self) -> None:
        """See `Client`."""
        if not self.questions:
            return
        question = self.random.choice(self.questions)
        dated = _header(question).HasField("since")
        effect = self.world.chronicle.effects.get(question.request or ("", b""))
        if (
            not dated
            and effect is not None
            and self.world.chronicle.revision - effect.revision > _span_safe(self.world)
        ):
            return
        self._node = self.random.choice(self.world.names)
        self.world.done["repeated"] += 1
        try:
            await self._again(question)
        except OutcomeUnknown as unknown:
            if unknown.reason == "OUTCOME_FORGOTTEN" and question.request is not None:
                self.world.chronicle.forgotten(question.request)
        except ControlPlaneError:
            self.world.done["repeated without an answer"] += 1

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


def _span_safe(world: World) -> int:
    return world.chronicle.span // 2


def _header(question: Question) -> api.RequestHeader:
    request: Any = features.WRITES[question.method].request.FromString(question.packed)
    header: api.RequestHeader = request.header
    return header


class Watcher(Client):
    """Follows a partition, at one node after the other, and compares with the chronicle."""

    def __init__(self, world: World, number: int, partition: Partition, kinds: Sequence[str]) -> None:
        super().__init__(world, number, partition.environment)
        self._partition, self._kinds = partition, list(kinds)
        scope = scope_of(partition)
        self.prefixes = tuple(scope + keys.text(kind) for kind in kinds)
        self.cursor: int | None = None

    async def run(self) -> None:
        """Watch until the world ends."""
        while True:
            self._node = self.random.choice(self.world.names)
            try:
                await self._follow()
            except Compacted:
                self.world.done["watches compacted"] += 1
                self.cursor = None
            except (TimeoutError, Broken, NotReached, ControlPlaneError):
                self.world.done["watches broken"] += 1
            await self.pause(0.1)

    async def _follow(self) -> None:
        consistency = api.LINEARIZABLE if self.cursor is None else api.LOCAL
        header = api.RequestHeader(partition=self._partition.id, consistency=consistency)
        request = api.WatchRequest(header=header, kinds=self._kinds, snapshot=self.cursor is None)
        if self.cursor is not None:
            request.after_revision = self.cursor
        question = Question("Watch", request.SerializeToString(), self.actor, self.environment, api.LOCAL)
        stream = self.world.watch(self._node, question)
        until = self.world.now() + self.random.choice((1.0, 5.0, 20.0))
        listing: dict[bytes, bytes] = {}
        try:
            while self.world.stopping or self.world.now() < until:
                async with asyncio.timeout(_SILENCE_S):
                    packed = await stream.next()
                self._take(api.WatchReply.FromString(packed), listing)
        finally:
            stream.close()

    def _take(self, message: api.WatchReply, listing: dict[bytes, bytes]) -> None:
        self.world.done[f"watch {api.WatchReply.Kind.Name(message.kind).lower()}"] += 1
        match message.kind:
            case api.WatchReply.STARTED:
                self._started(message.revision)
            case api.WatchReply.SNAPSHOT:
                listing.update((self._key(change), _value_of(change)) for change in message.changes)
            case api.WatchReply.SYNCED:
                self._listed(message.revision, listing)
            case api.WatchReply.CHANGES:
                self._changed(message)
            case api.WatchReply.PROGRESS:
                self._progressed(message.revision)
            case _:
                raise Violation(f"WATCH a message of kind {message.kind}")

    def _started(self, revision: int) -> None:
        if self.cursor is not None and revision != self.cursor:
            raise Violation(f"WATCH resumed at {revision} instead of {self.cursor}")

    def _listed(self, revision: int, listing: dict[bytes, bytes]) -> None:
        expected = {
            key: _plain(key, each) for key, each in self.world.chronicle.records(revision, self.prefixes).items()
        }
        if listing != expected:
            raise Violation(
                f"WATCH the listing as of {revision} differs in {sorted(listing.items() ^ expected.items())}"
            )
        self.cursor = revision

    def _changed(self, message: api.WatchReply) -> None:
        cursor, revision = self.cursor or 0, message.revision
        if revision <= cursor:
            raise Violation(f"WATCH revision {revision} came after {cursor}")
        told = [(self._key(change), _value_of(change)) for change in message.changes]
        expected = list(self.world.chronicle.between(cursor, revision, self.prefixes))
        if [found for found, _ in expected] != [revision]:
            raise Violation(f"WATCH revision {revision} after {cursor}: the revisions {expected} were to be told")
        if told != [(each.key, _plain(each.key, each)) for each in expected[0][1]]:
            raise Violation(f"WATCH the changes of revision {revision} are not those that were written")
        self.cursor = revision

    def _progressed(self, revision: int) -> None:
        cursor = self.cursor or 0
        missed = [found for found, _ in self.world.chronicle.between(cursor, revision, self.prefixes)]
        if revision < cursor or missed:
            raise Violation(f"WATCH progress from {cursor} to {revision}, without {missed}")
        self.cursor = revision

    def is_level(self) -> bool:
        """Whether everything was told."""
        chronicle = self.world.chronicle
        return self.cursor is not None and not any(chronicle.between(self.cursor, chronicle.revision, self.prefixes))

    def _key(self, change: api.Change) -> bytes:
        return keys.within(scope_of(self._partition), change.kind, change.name)


def _plain(key: bytes, written: Written) -> bytes:
    """A record's value as watchers get it, in a form that can be compared; empty if it is gone."""
    if written.value is None:
        return b""
    kind = features.KINDS[keys.decode(key).kind]
    value: Message = kind.message.FromString(written.value)
    return b"+" + value.SerializeToString(deterministic=True)


def _value_of(change: api.Change) -> bytes:
    which = change.WhichOneof("value")
    if which is None:
        return b""
    value: Message = getattr(change, which)
    return b"+" + value.SerializeToString(deterministic=True)


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
    ]
    return clients, watchers
