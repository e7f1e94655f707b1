"""Clients of the simulated region: how they ask, how they insist, and what they write down.

Each client is one strand of work that asks one thing after the other, at any node, as an SDK does: again and elsewhere
with the same request id until its time is up. What it was told goes into a history, which is checked for
linearizability when the run is over; what can be judged at once is judged by the chronicle.

1. An operation without an answer is of unknown outcome if any attempt may have reached a log; else it failed.
2. A refusal by the rules is an answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Protocol, TypeVar

from chaos.plane_chronicle import Chronicle, RequestKey
from chaos.plane_node import FLEET, REGION, Broken, NotReached, Parts
from chaos.sim_oracle import Violation
from controlplane.checking.histories import Recorder, Value
from controlplane.errors import (
    Contended,
    ControlPlaneError,
    Denied,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from controlplane.kernel import keys
from controlplane.kernel.transaction import scope_of
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Partition, Reach

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
# How many requests do not say since when: they may be repeated only while nothing can have been forgotten.
_UNDATED, _UNDATED_S_MAX = 0.1, 2.0
# How many requests are asked of two nodes at once.
_TWICE = 0.05


class World(Protocol):
    """What clients need of the simulation."""

    region: str
    random: Random
    names: list[str]
    chronicle: Chronicle
    history: Recorder
    done: Counter[str]
    stopping: bool
    parts: Parts

    def now(self) -> float:
        """True time."""

    def log(self, *words: object) -> None:
        """Write a line of the trace."""

    def ask(self, name: str, question: Question, timeout_s: float) -> asyncio.Future[bytes]:
        """Ask a node; raises one of the eight errors, `Broken` or `NotReached`."""

    def watch(self, name: str, question: Question) -> Stream:
        """Watch at a node."""

    def probe(self, name: str) -> asyncio.Future[tuple[int, int]]:
        """Ask a node for its revision and the age of its state in ms, as sessions tell them; may never be answered."""

    def remember(self, question: Question) -> None:
        """Keep a request, to be asked again."""

    def elections(self, environment: str) -> Partition:
        """Where an environment's leases lie."""


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
        self.actor = f"controlplane://{FLEET}/{environment}/{world.region}/{role}/c{number}"
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
        timeout_s = self.random.choice(TIMEOUTS_S)
        if self.random.random() >= _UNDATED:
            request.header.since = self._since
        else:
            timeout_s = min(timeout_s, _UNDATED_S_MAX)
        key = (self.actor, request_id)
        fence = request.header.fence if request.header.HasField("fence") else None
        if fence is not None:
            scope = scope_of(self.world.elections(self.environment))
            election, resource = keys.within(scope, "election", fence.election), f"{self.environment}/{request.id}"
            self.world.chronicle.fenced(key, election, fence.revision, resource)
        question = Question(method, request.SerializeToString(), self.actor, self.environment, request=key)
        return await self.insist(question, timeout_s)

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
        doubt = self._ask_twin(question, timeout_s) if self.random.random() < _TWICE else None
        error: ControlPlaneError = Unavailable("nobody answered", reason="NO_ANSWER")
        while (left_s := deadline - self.world.now()) > 0:
            try:
                return await self._attempt(question, left_s)
            except OutcomeUnknown as unknown:
                doubt = unknown
                if unknown.reason == "OUTCOME_FORGOTTEN":
                    break
            except (Unavailable, Contended) as failure:
                error = failure
            self._node = self.random.choice(self.world.names)
            await self.pause(self.random.choice(_BACKOFF_S))
        if question.request is not None:
            if doubt is None:
                self.world.chronicle.failed(question.request)
            else:
                self.world.remember(question)
        raise doubt or error

    def _ask_twin(self, question: Question, timeout_s: float) -> OutcomeUnknown | None:
        """Ask another node the same thing at the same time; then the request may happen whatever the first one says."""
        if question.request is None:
            return None
        twin = self.world.ask(self.random.choice(self.world.names), question, timeout_s)
        twin.add_done_callback(partial(self._twin_answered, question))
        return OutcomeUnknown("the twin may have happened", reason="TWIN")

    def _twin_answered(self, question: Question, twin: asyncio.Future[bytes]) -> None:
        error = twin.exception()
        if error is None:
            self._told(question, twin.result())
        elif isinstance(error, Refused | NotFound):
            self._refused(question, error)

    async def _attempt(self, question: Question, left_s: float) -> Any:
        """Ask once. What the transport does is one of the eight errors, as in an SDK."""
        try:
            async with asyncio.timeout(left_s):
                packed = await self.world.ask(self._node, question, left_s)
        except (TimeoutError, Broken):
            kind = OutcomeUnknown if question.request else Unavailable
            raise kind("the connection broke", reason="BROKEN") from None
        except NotReached:
            raise Unavailable("nobody listens", reason="NOT_REACHED") from None
        except (Refused, NotFound) as refusal:
            self._refused(question, refusal)
            raise
        except (Invalid, Denied) as wrong:
            raise Violation(f"{type(wrong).__name__.upper()} {wrong.reason} for a {question.method}") from wrong
        return self._told(question, packed)

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
