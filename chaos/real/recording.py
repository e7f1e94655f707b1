"""What clients asked and were told, written down as it happens.

Rules: (1) what is asked is noted before it is sent, what is answered after it arrived, on one monotonic clock; (2) a
refusal is an answer, and is recorded as one; (3) OutcomeUnknown is the one error after which a write may have happened;
after every other it has not, and nothing is learnt from a read that failed; (4) an error that no fault explains is
noted as unexpected, and makes the run red.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from chaos.real.callers import Answer
from controlplane.checking.histories import Recorder, Value
from controlplane.errors import Contended, ControlPlaneError, OutcomeUnknown, Unavailable

R = TypeVar("R")
EVENTS_MAX = 2_000_000

now_ns = time.monotonic_ns
"""The one clock of a history."""


@dataclass(slots=True)
class Worker:
    """One client that does one thing after the other; a process of the history."""

    process: int
    random: Random
    written: int = 0

    def unique(self) -> str:
        """A value that nobody else writes."""
        self.written += 1
        return f"{self.process}/{self.written}"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: recorded under `kind`, of `key`. `writes`: it may change something."""

    key: str
    kind: str
    argument: Value = None
    writes: bool = False


class Book:
    """The history of a run, and what else was noticed on the way."""

    def __init__(self, events_max: int = EVENTS_MAX) -> None:
        self.recorder = Recorder(events_max)
        self.counts: dict[str, int] = {}
        self.unexpected: list[str] = []
        self.answered_ns: list[int] = []
        self.failed_ns: list[int] = []
        self.operations = self.writes = self.unknown = 0

    def count(self, what: str, by: int = 1) -> None:
        """Note that something happened, for the report."""
        self.counts[what] = self.counts.get(what, 0) + by

    async def ask(
        self,
        worker: Worker,
        question: Question,
        asking: Callable[[], Awaitable[R]],
        told: Callable[[R], Value],
        refused: Callable[[ControlPlaneError], Value],
    ) -> R | None:
        """Ask, and write down what became of it; return the answer, None for a refusal or failure.

        `told` and `refused` say what the history keeps of an answer. Only the eight errors are handled.
        """
        self.operations += 1
        self.writes += question.writes
        self.recorder.invoke(worker.process, question.key, question.kind, question.argument, now_ns())
        try:
            reply = await asking()
        except Answer as error:
            self._ok(worker, refused(error))
            return None
        except ControlPlaneError as error:
            self._failed(worker, question, error)
            return None
        except asyncio.CancelledError:
            self.recorder.info(worker.process, "CANCELLED", now_ns())
            raise
        self._ok(worker, told(reply))
        return reply

    def _ok(self, worker: Worker, result: Value) -> None:
        at_ns = now_ns()
        self.answered_ns.append(at_ns)
        self.recorder.ok(worker.process, result, at_ns)

    def _failed(self, worker: Worker, question: Question, error: ControlPlaneError) -> None:
        at_ns = now_ns()
        self.failed_ns.append(at_ns)
        self.count(f"{type(error).__name__}")
        if question.writes and isinstance(error, OutcomeUnknown):
            self.unknown += 1
            self.recorder.info(worker.process, error.reason, at_ns)
        else:
            self.recorder.fail(worker.process, error.reason, at_ns)
        if not isinstance(error, OutcomeUnknown | Unavailable | Contended):
            self.unexpected.append(f"{question.kind} of {question.key}: {type(error).__name__} {error.reason}: {error}")
