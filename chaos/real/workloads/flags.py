"""Flags: set, set on condition, restored, read one by one at every node, and evaluated as an agent's configuration."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any, ClassVar, NamedTuple

from chaos.real.callers import Callers, Region
from chaos.real.recording import Question, Worker, now_ns
from chaos.real.workloads.base import OBSERVER, Keys, Workload, nothing
from controlplane.checking.histories import History, Operation, Value
from controlplane.checking.invariants import stale_reads
from controlplane.checking.models import Register
from controlplane.sdk import AgentConfig, Flag, FlagType, FlagValue, Variant
from controlplane.sdk.calls import Calls
from controlplane.v1 import api_pb2 as api

FIELDS = {"prompt_version": "agent_prompt", "model": "agent_model"}
"""The fields of an agent's configuration that this load changes, and their flags."""
MIRROR_AGE_MAX_MS = 1000
CONFIG_OPERATIONS_MAX = 800
"""The configuration's flags cannot rotate, so their histories are bounded by doing less."""
_MIRRORS_S = 0.03


class Known(NamedTuple):
    """One version of a flag as somebody saw it."""

    version: int
    revision: int
    value: str


class Looked(NamedTuple):
    """What a mirror that was not stale said of a flag; revision 0: there is none."""

    at_ns: int
    flag: str
    revision: int


class Flags(Workload):
    """Every worker sets and reads the same few flags; mirrors are looked at all the time."""

    name: ClassVar[str] = "flags"

    def __init__(self, region: Region, seed: int) -> None:
        super().__init__(region, seed)
        self._keys = Keys("flag/", 4)
        self._config_operations = 0
        self._seen: dict[tuple[int, str], Known] = {}
        self._by_revision: dict[tuple[str, int], Known] = {}
        self._looked: list[Looked] = []
        self._mirrors: list[Callers] = []

    async def prepare(self) -> None:
        """Connect two clients with a mirror."""
        self._mirrors = [
            await self.enter(f"agent-{number}", mirror=True, mirror_age_max_ms=MIRROR_AGE_MAX_MS) for number in range(2)
        ]

    def work(self, over: asyncio.Event) -> list[Coroutine[Any, Any, None]]:
        """Workers, and one who looks at the mirrors."""
        return [*super().work(over), self._look(over)]

    async def step(self, worker: Worker) -> None:
        """Do one of: set, set on condition, create, restore, read, evaluate."""
        key = self._keys.take(worker.random)
        chance = worker.random.random()
        if chance < 0.15 and self._config_operations < CONFIG_OPERATIONS_MAX:
            self._config_operations += 1
            await self._configure(worker)
        elif chance < 0.5:
            await self._write(worker, key)
        else:
            await self._read(worker, self.somebody(worker), key)

    async def ask_for_everything(self) -> None:
        """Read each flag through each node, and evaluate once more."""
        reader = self.worker(OBSERVER)
        for caller in self.callers.everyone():
            for key in (*self._keys.all, *FIELDS.values()):
                await self._read(reader, caller, key)
            await self._evaluate(reader, caller)

    def judge(self, history: History) -> None:
        """One register per flag, and mirrors within their bound."""
        self.linearizable("linearizability", self._registers(history.operations), Register())
        self.broken(stale_reads(history))
        for text in late(self._looked, history.operations, self._by_revision, MIRROR_AGE_MAX_MS * 1_000_000):
            self.found("mirror too old", text)
        self.checked["mirrors"] = f"{len(self._looked)} looks within {MIRROR_AGE_MAX_MS} ms"
        self.noticed()

    # Writing

    async def _configure(self, worker: Worker) -> None:
        if worker.random.random() < 0.3:
            await self._set(worker, worker.random.choice(tuple(FIELDS.values())))
        else:
            await self._evaluate(worker, self.somebody(worker))

    async def _write(self, worker: Worker, key: str) -> None:
        known = self._seen.get((worker.process, key))
        if known is None:
            await worker.random.choice((self._set, self._create))(worker, key)
        else:
            await worker.random.choice((self._swap, self._swap, self._set_again, self._restore))(worker, key, known)

    async def _set(self, worker: Worker, key: str) -> None:
        value, caller = worker.unique(), self.writer(worker)
        question = Question(key, "write", value, writes=True)
        reply = await self.book.ask(worker, question, lambda: caller.set_flag(flag(key, value)), _version, nothing)
        self._acknowledged(worker, key, value, reply)

    async def _set_again(self, worker: Worker, key: str, _: Known) -> None:
        await self._set(worker, key)

    async def _create(self, worker: Worker, key: str) -> None:
        value, caller = worker.unique(), self.writer(worker)
        question = Question(key, "create", value, writes=True)
        reply = await self.book.ask(
            worker, question, lambda: caller.set_flag(flag(key, value), must_not_exist=True), _version, nothing
        )
        self._acknowledged(worker, key, value, reply)

    async def _swap(self, worker: Worker, key: str, known: Known) -> None:
        value, caller = worker.unique(), self.writer(worker)
        question = Question(key, "cas", (known.version, value), writes=True)
        reply = await self.book.ask(
            worker,
            question,
            lambda: caller.set_flag(flag(key, value), expected_revision=known.revision),
            _version,
            nothing,
        )
        self._acknowledged(worker, key, value, reply)

    async def _restore(self, worker: Worker, key: str, known: Known) -> None:
        """Make the flag what it was when this worker saw it; whatever it is now."""
        caller = self.writer(worker)
        question = Question(key, "write", known.value, writes=True)
        reply = await self.book.ask(
            worker,
            question,
            lambda: caller.restore_flag(key, known.revision),
            lambda reply: reply.flag.meta.version,
            nothing,
        )
        if reply is not None:
            self._saw(worker, reply.flag)

    def _acknowledged(self, worker: Worker, key: str, value: str, reply: api.SetFlagReply | None) -> None:
        if reply is None:
            self._seen.pop((worker.process, key), None)
        else:
            self._note(worker, key, Known(reply.meta.version, reply.meta.revision, value))

    # Reading

    async def _read(self, worker: Worker, caller: Calls, key: str) -> None:
        reply = await self.book.ask(
            worker,
            Question(key, "read"),
            lambda: caller.get_flag(key),
            lambda reply: (reply.flag.meta.version, value_of(reply.flag.flag)),
            nothing,
        )
        if reply is not None:
            self._saw(worker, reply.flag)

    async def _evaluate(self, worker: Worker, caller: Calls) -> None:
        await self.book.ask(
            worker,
            Question("config", "evaluate"),
            lambda: caller.get_agent_config("u-1", "t-1"),
            _evaluated,
            nothing,
        )

    async def _look(self, over: asyncio.Event) -> None:
        """Look at the mirrors, as agents do before whatever they do."""
        while not over.is_set():
            for crew in self._mirrors:
                at_ns = now_ns()
                config = crew.sdk.config()
                if config.stale:
                    self.book.count("stale configurations")
                else:
                    self._looked += looks(at_ns, config)
            await asyncio.sleep(_MIRRORS_S)

    def _saw(self, worker: Worker, view: api.FlagView) -> None:
        self._note(worker, view.flag.name, Known(view.meta.version, view.meta.revision, value_of(view.flag)))

    def _note(self, worker: Worker, key: str, known: Known) -> None:
        self._seen[worker.process, key] = known
        before = self._by_revision.setdefault((key, known.revision), known)
        if before != known:
            self.found("two values", f"{key} at revision {known.revision} is {before} and {known}")

    def _registers(self, operations: Iterable[Operation]) -> Iterator[Operation]:
        """What the model knows: an evaluation is a read of each of its flags."""
        for each in operations:
            if each.kind != "evaluate":
                yield each
            elif not each.unknown:
                yield from self._reads_of(each)

    def _reads_of(self, evaluation: Operation) -> Iterator[Operation]:
        for name, revision, value in _fields(evaluation.result):
            read = evaluation._replace(key=name, kind="read", result=None)
            if not revision:
                yield read
            elif known := self._by_revision.get((name, revision)):
                yield read._replace(result=(known.version, value))
            else:
                # Written with an unknown outcome, and overwritten before anybody read its version.
                self.book.count("evaluations of versions that nobody else saw")


def late(
    looked: Iterable[Looked], operations: Iterable[Operation], known: dict[tuple[str, int], Known], bound_ns: int
) -> Iterator[str]:
    """Looks that showed less than what had been acknowledged `bound_ns` before, in words."""
    acknowledged: dict[str, list[tuple[int, int]]] = {}
    for each in sorted(operations, key=lambda operation: operation.returned):
        if each.kind in ("write", "create", "cas") and not each.unknown and isinstance(each.result, int):
            newest = acknowledged.setdefault(each.key, [])
            newest.append((each.returned, max(each.result, newest[-1][1] if newest else 0)))
    for look in looked:
        times = acknowledged.get(look.flag, [])
        place = bisect_right(times, (look.at_ns - bound_ns, 0))
        due = times[place - 1][1] if place else 0
        seen = known.get((look.flag, look.revision))
        if due and (look.revision == 0 or (seen is not None and seen.version < due)):
            yield f"{look.flag}: a mirror showed revision {look.revision} when version {due} had been there for longer"


def flag(name: str, value: str) -> Flag:
    """A flag that is `value` for everybody."""
    variant = Variant(name="on", value=FlagValue(string_value=value))
    return Flag(name=name, type=FlagType.STRING, enabled=True, variants=[variant], default_variant="on")


def value_of(stored: Flag) -> str:
    """What `flag` put there."""
    return stored.variants[0].value.string_value


def looks(at_ns: int, config: AgentConfig) -> list[Looked]:
    """What a mirror's configuration says of the flags that change."""
    return [Looked(at_ns, name, config.fields[field].revision) for field, name in FIELDS.items()]


def _evaluated(reply: api.GetAgentConfigReply) -> Value:
    values = {"prompt_version": reply.config.prompt_version, "model": reply.config.model}
    fields = [field for field in reply.fields if field.name in FIELDS]
    return tuple((field.flag, field.revision, values[field.name]) for field in fields)


def _fields(evaluated: Value) -> Iterator[tuple[str, int, str]]:
    """Flag, revision and value, as `_evaluated` put them together."""
    assert isinstance(evaluated, tuple)
    for field in evaluated:
        assert isinstance(field, tuple)
        name, revision, value = field
        assert isinstance(name, str)
        assert isinstance(revision, int)
        assert isinstance(value, str)
        yield name, revision, value


def _version(reply: api.SetFlagReply) -> Value:
    return reply.meta.version
