"""An asyncio event loop for one simulated process: its time is virtual, and it ends when the process does.

Theory of operation. Every process has a loop of its own, because every process has a clock of its own, can be paused
alone, and dies alone. A loop keeps only what is ready to run; everything that comes later is an event of the world,
which all loops share, so the order of all steps of all processes is one, and the same in every run.

1. What is ready runs at one instant of virtual time, in the order in which it became ready.
2. A paused process runs nothing; what became due meanwhile runs when it goes on.
3. A process that has died runs nothing any more, not even the `finally` of its coroutines: a crash does not tidy up.
   `bury` runs them when the world is over, so that nothing is left half closed.
4. No threads, sockets, pipes or signals: nothing that would wait for the real world is here to be called.
5. A loop that never comes to rest is a violation, and so is an exception that nobody took.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar, TypeVarTuple, Unpack

from chaos.sim_node import Clock, Stopped
from chaos.sim_oracle import Violation

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

# Callbacks at one instant; a process that has more to do never rests.
_CALLBACKS_MAX = 100_000
_PAUSE_MARGIN_S = 1e-6
_THREAD_S = 0.1
"""What another thread does takes so long."""


class World(Protocol):
    """What a loop needs of the simulation."""

    def now(self) -> float:
        """True time, in seconds."""

    def at(self, delay: float, function: Callable[..., None], *args: Any) -> None:
        """Call `function` after `delay` seconds of true time."""


class ProcessLoop(asyncio.AbstractEventLoop):
    """The loop of the process `name`. `paused_until` is true time; `clock` is the process's own."""

    def __init__(self, world: World, name: str, clock: Clock, paused_until: Callable[[], float]) -> None:
        self._world, self._name, self._clock, self._paused_until = world, name, clock, paused_until
        self._ready: deque[asyncio.Handle] = deque()
        self._drains = False
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self.dead = self._buried = False

    # What asyncio calls.

    def time(self) -> float:
        """Return the process's time in seconds."""
        return self._clock.now()

    def get_debug(self) -> bool:
        """Return False: asyncio checks nothing more than usual."""
        return False

    def is_running(self) -> bool:
        """Return whether the process lives."""
        return not self.dead

    def is_closed(self) -> bool:
        """Return whether the process has died."""
        return self.dead

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T], **options: Any) -> asyncio.Task[_T]:
        """Return a task of this loop."""
        task: asyncio.Task[_T] = asyncio.Task(coro, loop=self, **options)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def call_soon(
        self,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Run `callback` at this instant, after what is ready already."""
        handle = asyncio.Handle(callback, args, self, context)
        self._push(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run `callback` after `delay` seconds of this process's clock."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Run `callback` when this process's clock shows `when`."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._world.at(self._clock.true_delay(when), self._due, handle)
        return handle

    def run_in_executor(  # type: ignore[override]  # There is one executor.
        self, executor: None, function: Callable[[Unpack[_Ts]], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        """Run `function` at once, which must be given nothing that changes; what it returns is there a moment later."""
        done: asyncio.Future[_T] = self.create_future()
        self.call_later(_THREAD_S, _hand_over, done, function(*args))
        return done

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Leave a cancelled timer where it is: it does nothing when it is due."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """See rule 5; what is only found out when something is thrown away is not known to be a defect."""
        if "handle" in context and not self._buried:
            raise context.get("exception") or Violation(f"UNHANDLED at {self._name}: {context.get('message')}")

    # What the simulation calls.

    def enter(self, function: Callable[..., _T], *args: Any) -> _T:
        """Call `function` as a callback of this loop would be called."""
        previous = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            return function(*args)
        finally:
            asyncio._set_running_loop(previous)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work`; whatever it raises is raised in the simulation."""
        task = self.enter(self.create_task, work)
        task.add_done_callback(_raise)
        return task

    def die(self) -> None:
        """Run nothing any more."""
        self.dead = True

    def bury(self) -> None:
        """Close every coroutine that is left; the world must be over, because they may still say things to it."""
        self.dead, self._buried = False, True
        for task in tuple(self._tasks):
            task.remove_done_callback(_raise)
            task.cancel()
        self.enter(self._run_ready)
        self.die()

    # Inside.

    def _push(self, handle: asyncio.Handle) -> None:
        if self.dead:
            return
        self._ready.append(handle)
        if not self._drains:
            self._drains = True
            self._world.at(0.0, self._drain)

    def _drain(self) -> None:
        if self.dead:
            return
        paused_s = self._paused_until() - self._world.now()
        if paused_s > 0:
            self._world.at(paused_s + _PAUSE_MARGIN_S, self._drain)
            return
        self._drains = False
        self.enter(self._run_ready)

    def _run_ready(self) -> None:
        ready = self._ready
        for _ in range(_CALLBACKS_MAX):
            if not ready:
                return
            handle = ready.popleft()
            if not handle.cancelled():
                handle._run()
        raise Violation(f"BUSY the loop of {self._name} never rests")

    def _due(self, handle: asyncio.TimerHandle) -> None:
        if self.dead or handle.cancelled():
            return
        # The clock may have been slowed down since.
        delay = self._clock.true_delay(handle.when())
        if delay > _PAUSE_MARGIN_S:
            self._world.at(delay, self._due, handle)
        else:
            self._push(handle)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)


def _hand_over(done: asyncio.Future[_T], result: _T) -> None:
    if not done.done():
        done.set_result(result)


def _raise(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if isinstance(error, Violation | Stopped):
        raise error
    if error is not None:
        raise Violation(f"UNEXPECTED {error!r}") from error
