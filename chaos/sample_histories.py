"""Histories of systems that are right, and spoiled ones that are certainly wrong: what checkers are checked with.

A subject is an object of which every operation takes effect at one moment between its call and its return (or, if the
outcome is unknown, at any later one, or never). `sample` lets processes use subjects in virtual time. `spoil` changes
one answer so that no order can explain the history any more, whatever else is in it. Everything is drawn from the
generator that the caller hands in.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from random import Random
from typing import NamedTuple, Protocol

from controlplane.checking.histories import Event, Operation, Phase, Value

_SLOWEST_NS = 1_000_000
# How long after its call an operation of unknown outcome may still take effect.
_LATE_NS = 20 * _SLOWEST_NS


class Subject(Protocol):
    """An object that clients use."""

    def ask(self, random: Random, process: int) -> tuple[str, Value]:
        """What `process` asks next: kind and argument."""

    def act(self, process: int, kind: str, argument: Value) -> Value:
        """Let it happen; the answer."""


class Register:
    """A versioned register; its clients swap what they saw last."""

    def __init__(self) -> None:
        self._state: tuple[int, Value] = (0, None)
        self._seen: dict[int, int] = {}
        self._values = count(1)

    def ask(self, random: Random, process: int) -> tuple[str, Value]:
        """Reads and swaps, a blind write now and then."""
        value = next(self._values)
        draw = random.random()
        if draw < 0.5:
            return "read", None
        if draw < 0.55:
            return "write", value
        seen = self._seen.get(process, 0)
        return ("cas", (seen, value)) if seen else ("create", value)

    def act(self, process: int, kind: str, argument: Value) -> Value:
        """See the kinds of `controlplane.checking.models`."""
        version, _ = self._state
        answer: Value = None
        if kind == "cas":
            assert isinstance(argument, tuple)
            if argument[0] == version:
                answer = self._put(argument[1])
        elif kind == "write" or (kind == "create" and not version):
            answer = self._put(argument)
        elif kind == "read" and version:
            answer = self._state
        self._seen[process] = self._state[0]
        return answer

    def _put(self, value: Value) -> int:
        self._state = (self._state[0] + 1, value)
        return self._state[0]


class Lease:
    """A lease that sometimes expires."""

    def __init__(self) -> None:
        self._held: tuple[Value, int] | None = None
        self._fences = count(1)
        self._told: dict[int, tuple[Value, int]] = {}
        self._expiry = 0.0

    def ask(self, random: Random, process: int) -> tuple[str, Value]:
        """Whoever was told that it holds renews or resigns; others campaign or look."""
        self._expiry = random.random()
        mine = self._told.get(process)
        if mine is not None and random.random() < 0.7:
            return random.choice(("renew", "renew", "resign")), mine
        return random.choice((("campaign", f"p{process}"), ("observe", None)))

    def act(self, process: int, kind: str, argument: Value) -> Value:
        """See the kinds of `controlplane.checking.models`."""
        if self._expiry < 0.05:
            self._held = None
        self._expiry = 1.0
        if kind == "campaign":
            self._held = self._held or (argument, next(self._fences))
            if self._held[0] == argument:
                self._told[process] = self._held
        elif kind in ("renew", "resign"):
            mine = self._held == argument
            if not mine or kind == "resign":
                self._told.pop(process, None)
            if mine and kind == "resign":
                self._held = None
            return mine
        return self._held


class AppendList:
    """A list that grows at its end."""

    def __init__(self) -> None:
        self._items: tuple[Value, ...] = ()
        self._values = count(1)

    def ask(self, random: Random, process: int) -> tuple[str, Value]:
        """Appends and reads."""
        return ("append", next(self._values)) if random.random() < 0.4 else ("read", None)

    def act(self, process: int, kind: str, argument: Value) -> Value:
        """See the kinds of `controlplane.checking.models`."""
        if kind == "read":
            return self._items
        self._items = (*self._items, argument)
        return len(self._items) - 1


class Switch:
    """A kill switch."""

    def __init__(self) -> None:
        self._engaged = False

    def ask(self, random: Random, process: int) -> tuple[str, Value]:
        """Mostly checks."""
        return random.choice(("engage", "release", "check", "check", "check")), None

    def act(self, process: int, kind: str, argument: Value) -> Value:
        """See the kinds of `controlplane.checking.models`."""
        before = self._engaged
        if kind == "check":
            return before
        self._engaged = kind == "engage"
        return before != self._engaged


SUBJECTS: Mapping[str, Callable[[], Subject]] = {
    "register": Register,
    "lease": Lease,
    "list": AppendList,
    "switch": Switch,
}
"""By the name of their model."""


class Load(NamedTuple):
    """How a sample is made; `unknown` and `failed` are shares of the operations."""

    keys: int = 1
    per_key: int = 200
    processes: int = 10
    unknown: float = 0.02
    failed: float = 0.01


def sample(random: Random, model: str, load: Load) -> list[Event]:
    """The events of a history that is right, by time."""
    events: list[Event] = []
    for number in range(load.keys):
        events += _Play(random, SUBJECTS[model](), f"{model}-{number}", load, number * load.processes).run()
    return sorted(events, key=lambda event: event.at_ns)


class _Play:
    """Processes that use one subject in virtual time."""

    def __init__(self, random: Random, subject: Subject, key: str, load: Load, first_process: int) -> None:
        self._random, self._subject, self._key, self._load = random, subject, key, load
        self._processes = range(first_process, first_process + load.processes)
        self._asked = 0
        self._number = count()
        self._due: list[tuple[int, int, Callable[[int], None]]] = []
        self._events: list[Event] = []

    def run(self) -> list[Event]:
        """All events, by time."""
        for process in self._processes:
            self._then(0, partial(self._call, process))
        while self._due:
            at, _, happens = heapq.heappop(self._due)
            happens(at)
        return self._events

    def _then(self, at: int, happens: Callable[[int], None], *, within: int = _SLOWEST_NS) -> None:
        heapq.heappush(self._due, (at + self._random.randint(1, within), next(self._number), happens))

    def _call(self, process: int, at: int) -> None:
        if self._asked == self._load.per_key:
            return
        self._asked += 1
        kind, argument = self._subject.ask(self._random, process)
        self._events.append(Event(at, process, Phase.INVOKE, self._key, kind, argument))
        draw = self._random.random()
        if draw < self._load.unknown:
            self._then(at, partial(self._end, process, Phase.INFO, kind, "deadline"))
            if draw < self._load.unknown / 2:
                self._then(at, partial(self._happen_unheard, process, kind, argument), within=_LATE_NS)
        elif draw < self._load.unknown + self._load.failed:
            self._then(at, partial(self._end, process, Phase.FAIL, kind, "unavailable"))
        else:
            self._then(at, partial(self._happen, process, kind, argument))

    def _happen(self, process: int, kind: str, argument: Value, at: int) -> None:
        answer = self._subject.act(process, kind, argument)
        self._then(at, partial(self._end, process, Phase.OK, kind, answer))

    def _happen_unheard(self, process: int, kind: str, argument: Value, at: int) -> None:
        self._subject.act(process, kind, argument)

    def _end(self, process: int, phase: Phase, kind: str, value: Value, at: int) -> None:
        self._events.append(Event(at, process, phase, self._key, kind, value))
        self._then(at, partial(self._call, process))


class Spoiled(NamedTuple):
    """A history with one answer changed."""

    how: str
    operations: list[Operation]


def spoil(random: Random, model: str, operations: Sequence[Operation]) -> Spoiled | None:
    """Change one answer of a one-key history so that it is certainly wrong; None if nothing could be spoiled."""
    ways = list(_WAYS[model].items())
    random.shuffle(ways)
    for how, way in ways:
        found = list(way(operations))
        if found:
            number, replacement = random.choice(found)
            spoiled = list(operations)
            spoiled[number : number + 1] = [replacement] if replacement else []
            return Spoiled(how, spoiled)
    return None


_Change = tuple[int, Operation | None]
"""An operation's number, and what stands there instead."""


def _answered(operations: Sequence[Operation], *kinds: str) -> Iterator[tuple[int, Operation]]:
    for number, operation in enumerate(operations):
        if not operation.unknown and operation.kind in kinds:
            yield number, operation


def _phantom_value(operations: Sequence[Operation]) -> Iterator[_Change]:
    for number, read in _answered(operations, "read"):
        if isinstance(read.result, tuple) and read.result:
            yield number, read._replace(result=(read.result[0], "never written"))


def _stale_read(operations: Sequence[Operation]) -> Iterator[_Change]:
    """A read tells what another one told whose successor was known before this one began."""
    reads = [(number, read) for number, read in _answered(operations, "read") if isinstance(read.result, tuple)]
    for number, read in reads:
        before = {other.result for _, other in reads if other.returned < read.called}
        older = [result for result in before if result != max(before, key=_version_told)]
        if older:
            yield number, read._replace(result=min(older, key=_version_told))


def _version_told(versioned: Value) -> int:
    """The version in (version, value)."""
    assert isinstance(versioned, tuple)
    assert isinstance(versioned[0], int)
    return versioned[0]


def _two_winners(operations: Sequence[Operation]) -> Iterator[_Change]:
    won = {write.result for _, write in _answered(operations, "create", "write", "cas") if write.result is not None}
    for number, cas in _answered(operations, "cas"):
        if cas.result is None and _version_told(cas.argument) + 1 in won:
            yield number, cas._replace(result=_version_told(cas.argument) + 1)


def _refused_seen(operations: Sequence[Operation]) -> Iterator[_Change]:
    """A swap whose value was read says that it was refused."""
    seen = {read.result[1] for _, read in _answered(operations, "read") if isinstance(read.result, tuple)}
    for number, cas in _answered(operations, "cas"):
        if cas.result is not None and isinstance(cas.argument, tuple) and cas.argument[1] in seen:
            yield number, cas._replace(result=None)


def _failed_seen(operations: Sequence[Operation]) -> Iterator[_Change]:
    """A write whose value was read is said to have failed, so that it is no operation at all."""
    for number, _ in _refused_seen(operations):
        yield number, None


def _applied_twice(operations: Sequence[Operation]) -> Iterator[_Change]:
    for number, read in _answered(operations, "read"):
        if isinstance(read.result, tuple) and isinstance(read.result[0], int):
            yield number, read._replace(result=(read.result[0] + 1, read.result[1]))


def _lost_write(operations: Sequence[Operation]) -> Iterator[_Change]:
    """Somebody reads nothing after a write was acknowledged."""
    first = min((write.returned for _, write in _answered(operations, "create", "write")), default=None)
    for number, read in _answered(operations, "read"):
        if first is not None and first < read.called and read.result is not None:
            yield number, read._replace(result=None)


def _ghost_holder(operations: Sequence[Operation]) -> Iterator[_Change]:
    for number, operation in _answered(operations, "observe", "campaign"):
        if isinstance(operation.result, tuple):
            yield number, operation._replace(result=("ghost", operation.result[1]))


def _fence_back(operations: Sequence[Operation]) -> Iterator[_Change]:
    """A campaign wins with a fence that was told, before it began, to be somebody else's."""
    tenures = [operation for _, operation in _answered(operations, "observe", "campaign")]
    for number, campaign in _answered(operations, "campaign"):
        for told in tenures:
            if not isinstance(told.result, tuple) or told.returned >= campaign.called:
                continue
            if told.result[0] != campaign.argument:
                yield number, campaign._replace(result=(campaign.argument, told.result[1]))


def _renewed_after_the_next(operations: Sequence[Operation]) -> Iterator[_Change]:
    """A lease is renewed although a later fence was told before the renewal began."""
    tenures = [operation for _, operation in _answered(operations, "observe", "campaign")]
    fences = [(told.returned, told.result[1]) for told in tenures if isinstance(told.result, tuple)]
    for number, renew in _answered(operations, "renew", "resign"):
        assert isinstance(renew.argument, tuple)
        mine = renew.argument[1]
        assert isinstance(mine, int)
        if any(at < renew.called and isinstance(fence, int) and fence > mine for at, fence in fences):
            yield number, renew._replace(result=True)


def _items(operation: Operation) -> tuple[Value, ...]:
    assert isinstance(operation.result, tuple)
    return operation.result


def _item_missing(operations: Sequence[Operation]) -> Iterator[_Change]:
    for number, read in _answered(operations, "read"):
        if len(_items(read)) > 1:
            yield number, read._replace(result=_items(read)[1:])


def _items_swapped(operations: Sequence[Operation]) -> Iterator[_Change]:
    """Two items stand the other way round; the place of one was told to who appended it."""
    placed = {append.argument for _, append in _answered(operations, "append")}
    for number, read in _answered(operations, "read"):
        items = _items(read)
        if len(items) > 1 and (items[0] in placed or items[1] in placed):
            yield number, read._replace(result=(items[1], items[0], *items[2:]))


def _item_twice(operations: Sequence[Operation]) -> Iterator[_Change]:
    for number, read in _answered(operations, "read"):
        if _items(read):
            yield number, read._replace(result=(*_items(read), _items(read)[-1]))


def _item_of_nobody(operations: Sequence[Operation]) -> Iterator[_Change]:
    for number, read in _answered(operations, "read"):
        yield number, read._replace(result=(*_items(read), "never appended"))


def _check_turned(operations: Sequence[Operation]) -> Iterator[_Change]:
    """A check says the opposite of the last throw, with which nothing overlaps."""
    throws = [operation for operation in operations if operation.kind != "check"]
    for number, check in _answered(operations, "check"):
        before = [throw for throw in throws if throw.called <= check.returned]
        last = max(before, key=lambda throw: throw.called, default=None)
        if last is None or last.returned >= check.called:
            continue
        if all(throw is last or throw.returned < last.called for throw in before):
            yield number, check._replace(result=last.kind != "engage")


_Way = Callable[[Sequence[Operation]], Iterator[_Change]]
_WAYS: Mapping[str, Mapping[str, _Way]] = {
    "register": {
        "phantom value": _phantom_value,
        "stale read": _stale_read,
        "two winners": _two_winners,
        "aborted swap seen": _refused_seen,
        "failed write seen": _failed_seen,
        "applied twice": _applied_twice,
        "lost write": _lost_write,
    },
    "lease": {
        "ghost holder": _ghost_holder,
        "fence goes back": _fence_back,
        "renewed after the next": _renewed_after_the_next,
    },
    "list": {
        "item missing": _item_missing,
        "items swapped": _items_swapped,
        "item twice": _item_twice,
        "item of nobody": _item_of_nobody,
    },
    "switch": {"check turned": _check_turned},
}
