"""Histories: what clients asked, what they were told, and when.

A history is a list of events; in a file, one JSON object per line.

1. A process is one strand of work: it has at most one operation open. It begins with INVOKE and ends with OK (it was
   answered; a refusal by the rules is an answer too), FAIL (it certainly did not happen) or INFO (nobody knows).
2. An operation that ended with INFO, or not at all, may take effect at any time after it was called, or never: it
   returns at `NEVER`. Its process may go on with another one.
3. Times are nanoseconds of one monotonic clock, given by the caller. Two operations that touch in the same nanosecond
   count as concurrent.
4. Values are what JSON can say without fractions and objects: None, truth values, whole numbers, texts, and tuples of
   these. They can be compared and hashed, so that models can keep them in their states.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import IO, Any, Final, NamedTuple, TypeAlias

Value: TypeAlias = "bool | int | str | tuple[Value, ...] | None"

NEVER: Final = 1 << 63
"""When an operation with an unknown outcome returned: later than everything else."""
EVENTS_MAX = 2_000_000
"""Events of one history, recorded or read."""
LINE_BYTES_MAX = 1024 * 1024
"""One line of a file."""


class Phase(StrEnum):
    """Where in an operation an event stands."""

    INVOKE = "invoke"
    OK = "ok"
    FAIL = "fail"
    INFO = "info"


class Event(NamedTuple):
    """One line of a history. `value` is the argument at INVOKE, the answer at OK, and the reason at FAIL and INFO."""

    at_ns: int
    process: int
    phase: Phase
    key: str
    kind: str
    value: Value = None


class Operation(NamedTuple):
    """What a process asked about a key, and the answer; `returned` is `NEVER` if the outcome is unknown."""

    process: int
    key: str
    kind: str
    argument: Value
    result: Value
    called: int
    returned: int

    @property
    def unknown(self) -> bool:
        """Whether it may have happened or not."""
        return self.returned == NEVER


class History(NamedTuple):
    """The operations of a history, by the time they were called."""

    operations: tuple[Operation, ...]
    """Answered or of unknown outcome: what a checker has to explain."""
    failures: tuple[Operation, ...]
    """Certainly did not happen; `result` is the reason. Whoever sees an effect of them has found a defect."""

    @property
    def unknown(self) -> int:
        """How many outcomes nobody knows."""
        return sum(operation.unknown for operation in self.operations)


class HistoryInvalid(ValueError):
    """What was given is not a history; the text says where and why."""


class HistoryFull(Exception):
    """The recorder has no room for another operation. What was begun can still be ended."""


class Recorder:
    """Records events in the order of calls. Append-only; not for several threads.

    `invoke` raises `HistoryFull` while there is still room to end everything that is open.
    """

    def __init__(self, events_max: int = EVENTS_MAX) -> None:
        self.events: list[Event] = []
        self._events_max = events_max
        self._open: dict[int, Event] = {}
        self._last_ns = 0

    @property
    def full(self) -> bool:
        """Whether `invoke` would raise `HistoryFull`."""
        return len(self.events) + len(self._open) + 2 > self._events_max

    def invoke(self, process: int, key: str, kind: str, argument: Value, at_ns: int) -> None:
        """Begin an operation. Raises `HistoryInvalid` if `process` has one open."""
        if self.full:
            raise HistoryFull(f"the history has its {self._events_max} events")
        if process in self._open:
            raise HistoryInvalid(f"process {process} asks again before it was answered")
        event = Event(at_ns, process, Phase.INVOKE, key, kind, freeze(argument))
        self._add(event)
        self._open[process] = event

    def ok(self, process: int, result: Value, at_ns: int) -> None:
        """End the open operation of `process`: it was answered."""
        self._end(process, Phase.OK, result, at_ns)

    def fail(self, process: int, reason: str, at_ns: int) -> None:
        """End the open operation of `process`: it certainly did not happen."""
        self._end(process, Phase.FAIL, reason, at_ns)

    def info(self, process: int, reason: str, at_ns: int) -> None:
        """End the open operation of `process`: nobody knows whether it happened."""
        self._end(process, Phase.INFO, reason, at_ns)

    def history(self) -> History:
        """What was recorded so far."""
        return pair(self.events)

    def write(self, path: Path) -> None:
        """Write what was recorded so far to a file."""
        write(path, self.events)

    def _end(self, process: int, phase: Phase, value: Value, at_ns: int) -> None:
        begun = self._open.get(process)
        if begun is None:
            raise HistoryInvalid(f"process {process} has nothing open to end")
        self._add(Event(at_ns, process, phase, begun.key, begun.kind, freeze(value)))
        del self._open[process]

    def _add(self, event: Event) -> None:
        if event.at_ns < self._last_ns:
            raise HistoryInvalid(f"time goes back from {self._last_ns} to {event.at_ns} ns")
        self._last_ns = event.at_ns
        self.events.append(event)


def pair(events: Iterable[Event]) -> History:
    """Match ends with beginnings. Raises `HistoryInvalid` where a process does not follow rule 1."""
    operations: list[Operation] = []
    failures: list[Operation] = []
    begun: dict[int, Event] = {}
    for number, event in enumerate(events, 1):
        if event.phase is Phase.INVOKE:
            if event.process in begun:
                raise HistoryInvalid(f"event {number}: process {event.process} asks again before it was answered")
            begun[event.process] = event
        else:
            operation = _ended(begun.pop(event.process, None), event, number)
            (failures if event.phase is Phase.FAIL else operations).append(operation)
    operations += (_operation(event, None, NEVER) for event in begun.values())
    return History(tuple(sorted(operations, key=_called)), tuple(sorted(failures, key=_called)))


def write(path: Path, events: Iterable[Event]) -> None:
    """Write events to a file, one line each."""
    with path.open("w", encoding="utf-8") as file:
        for event in events:
            file.write(json.dumps(event._asdict(), ensure_ascii=False, separators=(",", ":")) + "\n")


def read(path: Path) -> list[Event]:
    """The events of a file. Raises `HistoryInvalid` with the number of the line that is none, `OSError` as it comes."""
    with path.open("rb") as file:
        return list(_events(file))


def freeze(value: Any) -> Value:
    """A value of rule 4: lists become tuples. Raises `HistoryInvalid` for what rule 4 does not know."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list | tuple):
        return tuple(freeze(item) for item in value)
    raise HistoryInvalid(f"a value cannot be a {type(value).__name__}")


def _events(file: IO[bytes]) -> Iterator[Event]:
    number = 0
    while line := file.readline(LINE_BYTES_MAX + 1):
        number += 1
        if number > EVENTS_MAX:
            raise HistoryInvalid(f"line {number}: more than {EVENTS_MAX} events")
        try:
            yield _event(line)
        # Deep nesting ends the parser by RecursionError; numbers with too many digits are a ValueError.
        except (ValueError, RecursionError) as error:
            raise HistoryInvalid(f"line {number}: {error}") from error


def _event(line: bytes) -> Event:
    if len(line) > LINE_BYTES_MAX:
        raise HistoryInvalid(f"longer than {LINE_BYTES_MAX} bytes")
    fields = json.loads(line)
    if not isinstance(fields, dict) or set(fields) != set(Event._fields):
        raise HistoryInvalid(f"an event is an object of {', '.join(Event._fields)}")
    for name, kind in _TYPES.items():
        if type(fields[name]) is not kind:
            raise HistoryInvalid(f"{name} must be of type {kind.__name__}")
    if not 0 <= fields["at_ns"] < NEVER:
        raise HistoryInvalid("at_ns must be from 0 to below 2**63")
    return Event(**fields | {"phase": Phase(fields["phase"]), "value": freeze(fields["value"])})


def _ended(begun: Event | None, end: Event, number: int) -> Operation:
    if begun is None:
        raise HistoryInvalid(f"event {number}: process {end.process} has nothing open to end")
    if (begun.key, begun.kind) != (end.key, end.kind):
        raise HistoryInvalid(f"event {number}: process {end.process} ends another operation than it began")
    if end.at_ns < begun.at_ns:
        raise HistoryInvalid(f"event {number}: process {end.process} is answered before it asked")
    if end.phase is Phase.INFO:
        return _operation(begun, end.value, NEVER)
    return _operation(begun, end.value, end.at_ns)


def _operation(begun: Event, result: Value, returned: int) -> Operation:
    return Operation(begun.process, begun.key, begun.kind, begun.value, result, begun.at_ns, returned)


def _called(operation: Operation) -> int:
    return operation.called


_TYPES: dict[str, type] = {"at_ns": int, "process": int, "phase": str, "key": str, "kind": str}
