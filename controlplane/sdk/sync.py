"""The same client for programs without an event loop: scripts, threads, notebooks, forked workers.

    from controlplane.sdk.sync import ControlPlane

    with ControlPlane("127.0.0.1:7000", insecure=True) as cp:
        cp.update_state_with_retry("order-4711", lambda state: {**state, "step": "paid"})

A thread of its own runs the asyncio client; every method hands its call over and waits. So it works where a loop is
running already, and any number of threads may share one object. `config`, `stopped`, `check` and `ensure_alive` do not
even hand over: they ask the mirror from the calling thread. What the caller passes in to be called, such as a mutator,
runs in the calling thread too, so that it can neither delay nor end what the thread does for others.

1. Whatever interrupts the waiting (`KeyboardInterrupt`, what a signal handler raises) cancels what was waited for.
2. After `close`, and from before a fork on, what still runs fails as Unavailable or OutcomeUnknown (`CLIENT_CLOSED`).
3. Threads that need a connection wait for the same attempt, each for no longer than its call may take.

**Forking.** gRPC does not survive a fork while it runs. So just before `os.fork` (also by `multiprocessing` or a
pre-forking server) every client of this module waits for the calls under way, closes, and lets gRPC end its threads;
calls that would begin meanwhile wait for the fork. Afterwards parent and child each connect anew when they next need
to, with random request ids of their own. They never share a connection. What a fork ends: watches, campaigns and leases
of the parent (`LeaseLost`), so campaign after forking. What it cannot protect: gRPC used in the same process by anyone
else, asyncio clients of this SDK included.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

from controlplane.errors import ControlPlaneError, Unavailable
from controlplane.limits import MIRROR_AGE_MAX_MS
from controlplane.sdk import client
from controlplane.sdk import clock as clocks
from controlplane.sdk.calls import WriteOptions
from controlplane.sdk.clock import Clock
from controlplane.sdk.codec import JSON, Codec
from controlplane.sdk.election import Lease
from controlplane.sdk.mirror import AgentConfig, Mirror
from controlplane.sdk.session import Credentials
from controlplane.v1 import api_pb2 as api

P = ParamSpec("P")
S = TypeVar("S")
T = TypeVar("T")

FORK_WAIT_S = 10.0
"""How long a fork waits for the calls under way. They end by themselves unless given a longer time."""

DRAIN_S = 1.0
"""How long gRPC may take to let go of a client that was closed."""


class _Runner:
    """A thread with an event loop and a client in it. It connects once, and ends if it cannot, or when told to."""

    def __init__(self, make: Callable[[], client.ControlPlane]) -> None:
        self.opened: Future[None] = Future()
        """Done when the attempt to connect is over; its error is everybody's."""
        self.client: client.ControlPlane
        """There once it is `connected`."""
        self.connected = False
        self.over = False
        """Nothing can be run any more."""
        self.begun: set[Coroutine[Any, Any, Any]] = set()
        """What runs in the thread for callers."""
        # Reentrant: the garbage collector may bring `end` about anywhere.
        self._gate = threading.RLock()
        self._loop = asyncio.new_event_loop()
        self._life = self._loop.create_task(self._live(make))
        self._thread = threading.Thread(target=self._main, name="controlplane", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread and wait for it; whatever interrupts the waiting cancels it there.

        Raises Unavailable (CLIENT_CLOSED) if the thread ends or has ended, RuntimeError in the thread itself.
        """
        if self._is_here():
            work.close()
            raise RuntimeError("the synchronous client was called in its own thread, which it would wait for for ever")
        running = self._start(work)
        try:
            return running.result()
        except CancelledError:
            raise _closed() from None
        except BaseException:
            running.cancel()
            raise

    def end(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what ends something, and wait; an interrupt does not stop it. What has ended with the thread is fine.

        Does not wait in the thread itself, where the garbage collector may have come upon a generator.
        """
        with suppress(Unavailable, CancelledError):
            running = self._start(work)
            if not self._is_here():
                running.result()

    def stop(self) -> None:
        """Close the client, or give up connecting, and end the thread. Idempotent."""
        if self._is_here():
            raise RuntimeError("the synchronous client was closed in its own thread, which it would wait for for ever")
        if not self.over:
            with self._gate:
                if not self.over:
                    self.over = True
                    self._loop.call_soon_threadsafe(self._life.cancel)
        self._thread.join()

    def _is_here(self) -> bool:
        return threading.current_thread() is self._thread

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        # Asked before the lock too: after a fork, its holder may be a thread that is not there.
        if not self.over:
            with self._gate:
                # Whatever gets in here is in the loop's queue before what ends the loop, and so is cancelled with it.
                if not self.over:
                    self.begun.add(work)
                    running = asyncio.run_coroutine_threadsafe(work, self._loop)
                    running.add_done_callback(lambda _: self.begun.discard(work))
                    return running
        work.close()
        raise _closed()

    async def _live(self, make: Callable[[], client.ControlPlane]) -> None:
        async with make() as self.client:
            self.connected = True
            self.opened.set_result(None)
            with suppress(asyncio.CancelledError):
                await self._loop.create_future()

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        failure: Exception = _closed()
        try:
            self._loop.run_until_complete(self._life)
        except asyncio.CancelledError:
            pass  # Stopped before it was connected.
        except Exception as error:
            if self.opened.done():
                raise
            failure = error
        finally:
            with self._gate:
                self.over = True
            self._loop.run_until_complete(self._drain())
            self._loop.close()
            if not self.opened.done():
                self.opened.set_exception(failure)

    async def _drain(self) -> None:
        """Let everything end: by cancelling it what callers began, by itself what gRPC did.

        gRPC's threads answer to tasks of its own, cancelled or not, and complain if the loop is closed by then.
        """
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            if task.get_coro() in self.begun:
                task.cancel()
        if rest:
            _, rest = await asyncio.wait(rest, timeout=DRAIN_S)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await self._loop.shutdown_asyncgens()


def _closed() -> Unavailable:
    return Unavailable("the client was closed, or the process forked", reason="CLIENT_CLOSED")


class _Forks:
    """Keeps calls and forks apart: a fork waits for the calls under way, and calls that would begin wait for the fork.

    A call within another one of the same thread (a signal handler's, say) does not wait: the fork waits for both.
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        """Begin without threads, and with a lock that nobody holds."""
        self.runners: weakref.WeakSet[_Runner] = weakref.WeakSet()
        """Those that run, among others; also if their client was dropped without closing it."""
        self.turn = threading.Condition(threading.RLock())
        """Held while a connection is looked up or begun, and by a fork from when calls have ended until it is over."""
        self._calls: dict[int, int] = {}
        self._pending = 0

    @contextmanager
    def call(self, timeout_s: float | None) -> Iterator[None]:
        """Make a call. Raises Unavailable if it has to wait for a fork for longer than `timeout_s`."""
        me = threading.get_ident()
        with self.turn:
            if me not in self._calls and not self.turn.wait_for(lambda: not self._pending, timeout_s):
                raise Unavailable("the process was about to fork until the call's deadline", reason="DEADLINE")
            self._calls[me] = self._calls.get(me, 0) + 1
        try:
            yield
        finally:
            with self.turn:
                # A forked process begins without calls, even if its one thread is in one.
                left = self._calls.pop(me, 1) - 1
                if left:
                    self._calls[me] = left
                elif self._pending:
                    self.turn.notify_all()

    def before(self) -> None:
        """Let the calls of other threads end, then every connection."""
        me = threading.get_ident()
        self.turn.acquire()
        self._pending += 1
        try:
            self.turn.wait_for(lambda: not self._calls.keys() - {me}, FORK_WAIT_S)
        finally:
            runners = list(self.runners)
            for each in runners:
                each.stop()
            if runners:
                # gRPC ends its threads when the last of its objects goes.
                gc.collect()

    def after_in_parent(self) -> None:
        """Go on."""
        self._pending -= 1
        self.turn.notify_all()
        self.turn.release()

    def after_in_child(self) -> None:
        """Begin anew, in the only thread there is."""
        self._begin()


_forks = _Forks()
os.register_at_fork(before=_forks.before, after_in_parent=_forks.after_in_parent, after_in_child=_forks.after_in_child)


def _blocking(
    method: Callable[Concatenate[client.ControlPlane, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[ControlPlane, P], T]:
    """Turn a method of the asyncio client into one that waits, to connect as well, for as long as the call may take."""

    def call(self: ControlPlane, /, *args: P.args, **kwargs: P.kwargs) -> T:
        timeout_s, began_s = kwargs.get("timeout_s"), clocks.now()
        allowed_s = timeout_s if isinstance(timeout_s, int | float) else self._timeout_s
        with self._connected(allowed_s) as runner:
            kwargs["timeout_s"] = max(0.0, allowed_s - (clocks.now() - began_s))
            return runner.run(method(runner.client, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call


class ControlPlane:
    """A blocking client of one region. Every method is that of `controlplane.sdk.ControlPlane`, without `await`.

    Differently done: `campaign` is a context manager and stands for `election(...).campaign`; the constructor stands
    for `connect`. Not there: `on_kill_change`, whose listener would run in the client's thread (a thread of the
    caller's can `watch(kinds=("switch",))` or `("stop",)`), and an election's `holder` and `observe` (`get_election`,
    `watch(kinds=("election",))`).
    """

    def __init__(  # noqa: PLR0913 - each is a choice of the caller's.
        self,
        addresses: str | Sequence[str],
        *,
        ca: Credentials | None = None,
        cert: Credentials | None = None,
        key: Credentials | None = None,
        insecure: bool = False,
        server_name: str | None = None,
        timeout_s: float = client.CALL_TIMEOUT_S,
        mirror: bool = True,
        mirror_age_max_ms: int = MIRROR_AGE_MAX_MS,
        follow_leader: bool = True,
        clock: Clock = clocks.now,
    ) -> None:
        """See `controlplane.sdk.ControlPlane.connect`. Connects when first needed, and again after a fork.

        What cannot connect raises Unavailable (UNREACHABLE): a call at its deadline, everything else when the attempt
        is given up, after `controlplane.sdk.client.CONNECT_TIMEOUT_S`.
        """
        self._make = functools.partial(
            client.ControlPlane.connect,
            addresses,
            ca=ca,
            cert=cert,
            key=key,
            insecure=insecure,
            server_name=server_name,
            timeout_s=timeout_s,
            mirror=mirror,
            mirror_age_max_ms=mirror_age_max_ms,
            follow_leader=follow_leader,
            clock=clock,
        )
        self._timeout_s = timeout_s
        self._runner: _Runner | None = None

    def __enter__(self) -> Self:
        try:
            with self._connected():
                return self
        except ControlPlaneError:
            raise
        except BaseException:
            # Interrupted while connecting: nobody will leave what was not entered.
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. Idempotent; it can be used again, and then connects anew."""
        with _forks.call(None):
            runner = self._runner
            if runner is None:
                return
            runner.stop()
            with _forks.turn:
                if self._runner is runner:
                    self._runner = None

    # Without a call

    def config(self, user: str = "", tenant: str = "") -> AgentConfig:
        """Return how to run for a user of a tenant; see `controlplane.sdk.ControlPlane.config`."""
        return self._at_hand().config(user, tenant)

    def stopped(
        self, *, tenant: str = "", agent_type: str = "", workflow: str = "", tools: Collection[str] = ()
    ) -> tuple[api.SwitchView, ...]:
        """Return the engaged kill switches that cover the subject. Raises MirrorStale."""
        return self._at_hand().stopped(tenant=tenant, agent_type=agent_type, workflow=workflow, tools=tools)

    def check(self, subject: api.Subject) -> tuple[api.SwitchView, ...]:
        """Do the same as `stopped`, for a subject in one piece."""
        return self._at_hand().check(subject)

    def ensure_alive(
        self, *, tenant: str = "", agent_type: str = "", workflow: str = "", tools: Collection[str] = ()
    ) -> None:
        """Raise Stopped if kill switches cover the subject, MirrorStale if that cannot be known."""
        self._at_hand().ensure_alive(tenant=tenant, agent_type=agent_type, workflow=workflow, tools=tools)

    @property
    def mirror(self) -> Mirror:
        """The mirror itself."""
        return self._at_hand().mirror

    @property
    def revision(self) -> int:
        """The newest revision that this client has seen."""
        return self._at_hand().revision

    # With one

    mirror_synced = _blocking(client.ControlPlane.mirror_synced)
    create_workflow = _blocking(client.ControlPlane.create_workflow)
    get_workflow = _blocking(client.ControlPlane.get_workflow)
    compare_and_swap = _blocking(client.ControlPlane.compare_and_swap)
    list_workflows = _blocking(client.ControlPlane.list_workflows)
    workflow_history = _blocking(client.ControlPlane.workflow_history)
    set_flag = _blocking(client.ControlPlane.set_flag)
    get_flag = _blocking(client.ControlPlane.get_flag)
    list_flags = _blocking(client.ControlPlane.list_flags)
    flag_history = _blocking(client.ControlPlane.flag_history)
    restore_flag = _blocking(client.ControlPlane.restore_flag)
    get_agent_config = _blocking(client.ControlPlane.get_agent_config)
    engage = _blocking(client.ControlPlane.engage)
    release = _blocking(client.ControlPlane.release)
    except_switch = _blocking(client.ControlPlane.except_switch)
    list_switches = _blocking(client.ControlPlane.list_switches)
    check_switches = _blocking(client.ControlPlane.check_switches)
    renew = _blocking(client.ControlPlane.renew)
    resign = _blocking(client.ControlPlane.resign)
    get_election = _blocking(client.ControlPlane.get_election)
    list_elections = _blocking(client.ControlPlane.list_elections)
    get_region = _blocking(client.ControlPlane.get_region)
    get_status = _blocking(client.ControlPlane.get_status)
    get_outline = _blocking(client.ControlPlane.get_outline)
    list_break_glass = _blocking(client.ControlPlane.list_break_glass)
    erase_record = _blocking(client.ControlPlane.erase_record)
    transfer_region = _blocking(client.ControlPlane.transfer_region)
    list_events = _blocking(client.ControlPlane.list_events)
    list_partitions = _blocking(client.ControlPlane.list_partitions)
    move_partition = _blocking(client.ControlPlane.move_partition)
    list_quarantine = _blocking(client.ControlPlane.list_quarantine)
    get_outcome = _blocking(client.ControlPlane.get_outcome)

    def update_state_with_retry(
        self,
        workflow_id: str,
        mutator: Callable[[S], S],
        max_retries: int = 5,
        *,
        codec: Codec[S] = JSON,
        schema_range: tuple[int, int] = (0, 0),
        schema_version: int | None = None,
        code_version: str | None = None,
        **options: Unpack[WriteOptions],
    ) -> S:
        """Do as `controlplane.sdk.ControlPlane.update_state_with_retry`, with the same errors.

        The mutator and the codec run in the calling thread, between two calls: they may take their time, call this
        client, fork, or raise anything. The mutator cannot be a coroutine function (TypeError).
        """

        def change(state: S) -> S:
            new = mutator(state)
            if inspect.isawaitable(new):
                if inspect.iscoroutine(new):
                    new.close()
                raise TypeError(f"the mutator for workflow {workflow_id} has to return the new state, not an awaitable")
            return new

        update = client.Update(
            workflow_id, change, max_retries, codec, schema_range, schema_version, code_version, options
        )
        return _here(update.apply(_plain(self.get_workflow), _plain(self.compare_and_swap), _plain(time.sleep)))

    def watch(
        self,
        *,
        kinds: Sequence[str] = (),
        prefix: str = "",
        after_revision: int | None = None,
        snapshot: bool = False,
        partition: str = "",
    ) -> Generator[api.Change, None, None]:
        """Yield changes as they happen; close the generator to stop. See `controlplane.sdk.ControlPlane.watch`."""
        return self._each(
            lambda plane: plane.watch(
                kinds=kinds, prefix=prefix, after_revision=after_revision, snapshot=snapshot, partition=partition
            )
        )

    def watch_transactions(
        self,
        *,
        kinds: Sequence[str] = (),
        prefix: str = "",
        after_revision: int | None = None,
        snapshot: bool = False,
        partition: str = "",
        progress: bool = False,
    ) -> Generator[api.WatchReply, None, None]:
        """Yield whole transactions. See `controlplane.sdk.ControlPlane.watch_transactions`."""
        return self._each(
            lambda plane: plane.watch_transactions(
                kinds=kinds,
                prefix=prefix,
                after_revision=after_revision,
                snapshot=snapshot,
                partition=partition,
                progress=progress,
            )
        )

    def watch_region(self) -> Generator[api.Region, None, None]:
        """Yield the region as it is and then after every change of its leader."""
        return self._each(lambda plane: plane.watch_region())

    @contextmanager
    def campaign(
        self,
        name: str,
        *,
        ttl_s: float = 10.0,
        value: bytes = b"",
        partition: str = "",
        timeout_s: float | None = None,
    ) -> Iterator[Lease]:
        """Wait to be elected and hold the lease for the body, renewed by the client's own thread.

        A thread cannot be interrupted: the body has to ask `lease.valid` or `lease.ensure()`, and pass
        `fence=lease.fence` with its writes. If the lease was lost by the end of the body, LeaseLost is raised there,
        unless the body raised something else. Raises NotElected if the campaign is not won within `timeout_s`,
        Unavailable if there is no connection by then.
        """
        began_s = clocks.now()
        runner = self._ready(timeout_s)
        if timeout_s is not None:
            timeout_s = max(0.0, timeout_s - (clocks.now() - began_s))
        election = runner.client.election(name, ttl_s=ttl_s, value=value, partition=partition)
        held = _Held(election.campaign(timeout_s=timeout_s), runner.begun)
        try:
            lease = runner.run(held.begin())
            yield lease
            lease.ensure()
        finally:
            # Also if `begin` was interrupted: it may have won by then.
            runner.end(held.end())

    # The thread

    def _each(self, begin: Callable[[client.ControlPlane], AsyncIterator[T]]) -> Generator[T, None, None]:
        runner = self._ready()
        found = begin(runner.client)
        try:
            while True:
                try:
                    yield runner.run(_next(found))
                except StopAsyncIteration:
                    return
        finally:
            runner.end(_close(found))

    @contextmanager
    def _connected(self, timeout_s: float | None = None) -> Iterator[_Runner]:
        """Have the runner for one call, and a fork wait until the call is over.

        Waits for a connection for `timeout_s`; absent: until the attempt is given up.
        """
        began_s = clocks.now()
        if timeout_s is not None:
            timeout_s = min(threading.TIMEOUT_MAX, timeout_s)
        with _forks.call(timeout_s):
            with _forks.turn:
                if self._runner is None or self._runner.over:
                    self._runner = _Runner(self._make)
                    _forks.runners.add(self._runner)
                runner = self._runner
            try:
                runner.opened.result(None if timeout_s is None else timeout_s - (clocks.now() - began_s))
            except TimeoutError:
                raise Unavailable(
                    f"no connection within {timeout_s:.3f} s", reason="UNREACHABLE", hint="is a node up at the address?"
                ) from None
            yield runner

    def _ready(self, timeout_s: float | None = None) -> _Runner:
        with self._connected(timeout_s) as runner:
            return runner

    def _at_hand(self) -> client.ControlPlane:
        runner = self._runner
        if runner is None or runner.over or not runner.connected:
            runner = self._ready()
        return runner.client


class _Held:
    """A lease in the client's thread: entered and left by one task, as its cancellation demands."""

    def __init__(self, campaign: Any, begun: set[Coroutine[Any, Any, Any]]) -> None:
        self._campaign = campaign
        self._begun = begun
        self._over = asyncio.Event()
        self._elected = False
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> Lease:
        elected: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        holding = self._hold(elected)
        self._begun.add(holding)
        self._task = asyncio.create_task(holding)
        self._task.add_done_callback(lambda _: self._begun.discard(holding))
        try:
            return await elected
        except asyncio.CancelledError:
            self._task.cancel()
            raise

    async def end(self) -> None:
        self._over.set()
        if self._task is not None:
            if not self._elected:
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _hold(self, elected: asyncio.Future[Lease]) -> None:
        try:
            async with self._campaign as lease:
                self._elected = True
                if not elected.done():
                    elected.set_result(lease)
                await self._over.wait()
        except BaseException as error:
            # Once elected, the lease itself says how it stands.
            if not elected.done():
                elected.set_exception(error)


async def _next(changes: AsyncIterator[T]) -> T:
    return await anext(changes)


async def _close(changes: Any) -> None:
    await changes.aclose()


def _plain(call: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Make something that waits look like what `_here` can run."""

    async def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return call(*args, **kwargs)

    return run


def _here(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in this thread, without a loop: everything that it awaits waits by itself (`_plain`)."""
    try:
        work.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    raise AssertionError("it awaited something else")
