"""How much of the event loop reading may have: who reads for long in one turn is taken for dead by its peers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from controlplane import limits

T = TypeVar("T")


class Turns:
    """Shares the event loop between everybody and work that is short by itself and too long together.

    Work begins at once while there is room (`limits.TURN_S` on `clock`, `limits.TURN_CALLS_MAX`), and otherwise later,
    in order. After a turn that was full for its time the others have as much: what else a node does, its word to its
    peers before all, takes many turns from one end to the other. Work must not raise.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: deque[Callable[[], None]] = deque()
        self._spent_s, self._begun = 0.0, 0
        self._next_due = False

    @property
    def room(self) -> bool:
        """Whether work would begin at once."""
        return not self._waiting and self._left()

    def run(self, work: Callable[[], None]) -> None:
        """Have `work` done in its turn."""
        if self.room:
            self._do(work)
        else:
            # There is no room because something was done, so the next turn is due.
            self._waiting.append(work)

    def call(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Have `work` done in its turn, unless nobody waits any more by then; what it returns or raises."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.run(partial(_finish, done, work))
        return done

    def _left(self) -> bool:
        return self._spent_s < limits.TURN_S and self._begun < limits.TURN_CALLS_MAX

    def _do(self, work: Callable[[], None]) -> None:
        if not self._next_due:
            self._next_due = True
            asyncio.get_running_loop().call_soon(self._next)
        began = self._clock()
        work()
        self._spent_s += self._clock() - began
        self._begun += 1

    def _next(self) -> None:
        if self._spent_s >= limits.TURN_S:
            asyncio.get_running_loop().call_later(self._spent_s, self._next)
            self._spent_s, self._begun = 0.0, limits.TURN_CALLS_MAX
            return
        self._spent_s, self._begun, self._next_due = 0.0, 0, False
        while self._waiting and self._left():
            self._do(self._waiting.popleft())


def _finish(done: asyncio.Future[T], work: Callable[[], T]) -> None:
    if done.done():
        return
    try:
        done.set_result(work())
    except Exception as error:
        done.set_exception(error)
