"""Writes between arrival and answer: what waits, in which order, and which of them are one request.

1. Kill switches go first, then the region's own calls, then what is due on time, then the rest. Each sort has room of
   its own, which no other can take, and keeps its order.
2. Two attempts at one request in the same batch share one answer.
3. A request is new for certain only if its caller had seen a revision since when everything was planned here.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

from google.protobuf.message import Message

from controlplane import limits
from controlplane.errors import ControlPlaneError, Invalid, OutcomeUnknown, Unavailable
from controlplane.kernel.transaction import Tx
from controlplane.v1.records_pb2 import Partition
from controlplane.v1.state_pb2 import RequestId

ASKED_MAX = 8192
"""Requests that a planner remembers."""

Feature = Callable[[Tx], Message | None]
"""What is planned: returns the reply message, or None to leave no trace (nothing to do)."""


class Sort(IntEnum):
    """What goes first, in this order."""

    STOP = 0
    """What is stopped, let go, or not heeded: kill switches and exceptions."""
    OWN = 1
    """The region's own calls."""
    DUE = 2
    """What its caller has to do on time, or must always be able to: renewals, resignations, erasures."""
    ORDINARY = 3
    """Everything else."""


@dataclass(slots=True)
class Waiting:
    """A write between arrival and answer. `dated`: its caller said since when; else it may be older than it looks."""

    feature: Feature
    partition: Partition
    actor: str
    action: str
    reason: str
    request: RequestId | None
    deadline: float
    size: int
    sort: Sort
    done: asyncio.Future[bytes]
    dated: bool = False
    attempts: int = 0

    @property
    def reserved(self) -> bool:
        """Whether it is admitted where ordinary writes are not any more."""
        return self.sort != Sort.ORDINARY


class Asked:
    """The requests that this node planned last and that were applied.

    A request whose caller had seen `floor` before it first asked, and that is not among them, is certainly new: there
    is no need to look for its outcome. What anybody else planned raises the floor.
    """

    def __init__(self, floor: int) -> None:
        self._floor = floor
        self._applied: OrderedDict[tuple[str, bytes], int] = OrderedDict()

    def is_new(self, request: RequestId) -> bool:
        """True only if no outcome of `request` can be in the store; its `since` must be what the caller said."""
        return request.since >= self._floor and (request.identity, request.nonce) not in self._applied

    def add(self, requests: Sequence[RequestId], revision: int) -> None:
        """These were applied, up to `revision`."""
        for request in requests:
            self._applied[request.identity, request.nonce] = revision
        while len(self._applied) > ASKED_MAX:
            _, oldest = self._applied.popitem(last=False)
            self._floor = max(self._floor, oldest)

    def forget(self, revision: int) -> None:
        """Something else was applied, up to `revision`."""
        self._floor = revision
        self._applied.clear()


class _Line:
    """Calls of one sort, in order."""

    def __init__(self) -> None:
        self.calls: deque[Waiting] = deque()
        self.bytes = 0


class Queue:
    """Calls that wait to be planned, sort by sort, each in order."""

    def __init__(self) -> None:
        self._lines = tuple(_Line() for _ in Sort)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def urgent(self) -> bool:
        """Whether something waits that goes first."""
        return any(line.calls for line in self._lines[: Sort.ORDINARY])

    def push(self, waiting: Waiting) -> None:
        """Add at the end. Raises `Unavailable` if there is no room for its sort."""
        line = self._lines[waiting.sort]
        if len(line.calls) >= limits.QUEUE_CALLS_MAX or line.bytes + waiting.size > limits.QUEUE_BYTES_MAX:
            raise overloaded()
        line.calls.append(waiting)
        line.bytes += waiting.size
        self._count += 1

    def pop(self) -> Waiting:
        """Take the next."""
        line = next(line for line in self._lines if line.calls)
        waiting = line.calls.popleft()
        line.bytes -= waiting.size
        self._count -= 1
        return waiting

    def put_back(self, batch: Sequence[Waiting]) -> None:
        """Return what was popped to where it stood; there is always room for that."""
        for waiting in reversed(batch):
            line = self._lines[waiting.sort]
            line.calls.appendleft(waiting)
            line.bytes += waiting.size
        self._count += len(batch)

    def clear(self) -> list[Waiting]:
        """Take all."""
        taken = [waiting for line in self._lines for waiting in line.calls]
        self._lines, self._count = tuple(_Line() for _ in Sort), 0
        return taken


def joins_twin(waiting: Waiting, asked: dict[tuple[str, bytes], Waiting]) -> bool:
    """Let a request that is in this batch already share the answer of its twin; true if there is one."""
    request = waiting.request
    twin = asked.get((request.identity, request.nonce)) if request is not None else None
    if request is None or twin is None or twin.request is None:
        return False
    if twin.request.digest != request.digest:
        fail(waiting.done, reused())
    else:
        twin.done.add_done_callback(partial(_share, waiting.done))
    return True


def _share(done: asyncio.Future[bytes], twin: asyncio.Future[bytes]) -> None:
    if done.done():
        return
    if twin.cancelled():
        done.set_exception(OutcomeUnknown("the first attempt was given up", reason="ATTEMPT_GIVEN_UP"))
    elif (error := twin.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(twin.result())


def reused() -> Invalid:
    """One id must not name two requests."""
    return Invalid("this request id was used for another request", reason="REQUEST_ID_REUSED")


def overloaded() -> Unavailable:
    """There is no room to wait."""
    return Unavailable("too many calls wait already", reason="OVERLOADED", hint="back off, then ask again")


def fail_all(calls: Iterable[Waiting], error: ControlPlaneError) -> None:
    """Answer all of `calls` with `error`."""
    for waiting in calls:
        fail(waiting.done, error)


def fail(done: asyncio.Future[bytes], error: ControlPlaneError) -> None:
    """Answer with `error`, unless it was answered or given up already."""
    if not done.done():
        done.set_exception(error)
