"""The same client for programs without an event loop: scripts, threads, notebooks, forked workers.

    from controlplane.sdk.sync import ControlPlane

    with ControlPlane("127.0.0.1:7000", insecure=True) as cp:
        cp.update_state_with_retry("order-4711", lambda state: {**state, "step": "paid"})

A thread of its own runs the asyncio client; every method hands its call over and waits. So it works where a loop is
running already, and any number of threads may share one object. `config`, `stopped`, `check` and `ensure_alive` do not
even hand over: they ask the mirror from the calling thread.

**Forking.** gRPC does not survive a fork while it runs. So just before `os.fork` (also by `multiprocessing` or a
pre-forking server) every client of this module waits for the calls under way, closes, and lets gRPC end its threads;
afterwards parent and child each connect anew when they next need to, with random request ids of their own. They never
share a connection. What a fork ends: watches and leases of the parent (`LeaseLost`), so campaign after forking. What it
cannot protect: gRPC used in the same process by anyone else, asyncio clients of this SDK included.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from controlplane.errors import Unavailable
from controlplane.limits import MIRROR_AGE_MAX_MS
from controlplane.sdk import client
from controlplane.sdk import clock as clocks
from controlplane.sdk.clock import Clock
from controlplane.sdk.election import Lease
from controlplane.sdk.mirror import AgentConfig, Mirror
from controlplane.sdk.session import Credentials
from controlplane.v1 import api_pb2 as api

P = ParamSpec("P")
T = TypeVar("T")

FORK_WAIT_S = 10.0
"""How long a fork waits for the calls under way. They end by themselves unless given a longer time."""


class _Runner:
    """A thread with an event loop and a connected client in it."""

    def __init__(self, make: Callable[[], client.ControlPlane]) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._main, name="controlplane", daemon=True)
        self._thread.start()
        try:
            self.client = self.run(self._open(make))
        except BaseException:
            self._end()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the thread and wait for it; an interrupt here cancels it there."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except CancelledError:
            raise Unavailable("the client was closed, or the process forked", reason="CLIENT_CLOSED") from None
        except KeyboardInterrupt:
            future.cancel()
            raise

    def stop(self) -> None:
        """Close the client and end the thread."""
        self.run(self.client.close())
        self._end()

    @staticmethod
    async def _open(make: Callable[[], client.ControlPlane]) -> client.ControlPlane:
        return await make().__aenter__()

    def _main(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def _end(self) -> None:
        self.run(self._drain())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    @staticmethod
    async def _drain() -> None:
        """Cancel whatever still runs (watches, leases) and let it end."""
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()


def _blocking(
    method: Callable[Concatenate[client.ControlPlane, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[ControlPlane, P], T]:
    """Turn a method of the asyncio client into one that waits."""

    def call(self: ControlPlane, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._connected() as runner:
            return runner.run(method(runner.client, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call


class ControlPlane:
    """A blocking client of one region. Every method is that of `controlplane.sdk.ControlPlane`, without `await`."""

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
        """See `controlplane.sdk.ControlPlane.connect`. Connects when first needed, and again after a fork."""
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
        self._runner: _Runner | None = None
        self._forget_threads()
        _clients.add(self)

    def __enter__(self) -> Self:
        with self._connected():
            return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection. Idempotent; it can be used again, and then connects anew."""
        with self._turn:
            runner, self._runner = self._runner, None
        if runner is not None:
            runner.stop()

    # Without a call

    def config(self, user: str = "", tenant: str = "") -> AgentConfig:
        """Return how to run for a user of a tenant; see `controlplane.sdk.ControlPlane.config`."""
        return self._at_hand().client.config(user, tenant)

    def stopped(
        self, *, tenant: str = "", agent_type: str = "", workflow: str = "", tools: tuple[str, ...] = ()
    ) -> tuple[api.SwitchView, ...]:
        """Return the engaged kill switches that cover the subject. Raises MirrorStale."""
        return self._at_hand().client.stopped(tenant=tenant, agent_type=agent_type, workflow=workflow, tools=tools)

    def check(self, subject: api.Subject) -> tuple[api.SwitchView, ...]:
        """Do the same as `stopped`, for a subject in one piece."""
        return self._at_hand().client.check(subject)

    def ensure_alive(
        self, *, tenant: str = "", agent_type: str = "", workflow: str = "", tools: tuple[str, ...] = ()
    ) -> None:
        """Raise Stopped if kill switches cover the subject, MirrorStale if that cannot be known."""
        self._at_hand().client.ensure_alive(tenant=tenant, agent_type=agent_type, workflow=workflow, tools=tools)

    @property
    def mirror(self) -> Mirror:
        """The mirror itself."""
        return self._at_hand().client.mirror

    @property
    def revision(self) -> int:
        """The newest revision that this client has seen."""
        return self._ready().client.revision

    # With one

    mirror_synced = _blocking(client.ControlPlane.mirror_synced)
    update_state_with_retry = _blocking(client.ControlPlane.update_state_with_retry)
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
    get_election = _blocking(client.ControlPlane.get_election)
    list_elections = _blocking(client.ControlPlane.list_elections)
    get_region = _blocking(client.ControlPlane.get_region)
    get_status = _blocking(client.ControlPlane.get_status)
    erase_record = _blocking(client.ControlPlane.erase_record)
    transfer_region = _blocking(client.ControlPlane.transfer_region)
    list_events = _blocking(client.ControlPlane.list_events)
    list_partitions = _blocking(client.ControlPlane.list_partitions)
    move_partition = _blocking(client.ControlPlane.move_partition)
    list_quarantine = _blocking(client.ControlPlane.list_quarantine)
    get_outcome = _blocking(client.ControlPlane.get_outcome)

    def watch(
        self,
        *,
        kinds: Sequence[str] = (),
        prefix: str = "",
        after_revision: int | None = None,
        snapshot: bool = False,
        partition: str = "",
    ) -> Iterator[api.Change]:
        """Yield changes as they happen; close the generator to stop. See `controlplane.sdk.ControlPlane.watch`."""
        runner = self._ready()
        changes = runner.client.watch(
            kinds=kinds, prefix=prefix, after_revision=after_revision, snapshot=snapshot, partition=partition
        )
        try:
            while True:
                try:
                    yield runner.run(_next(changes))
                except StopAsyncIteration:
                    return
        finally:
            runner.run(_close(changes))

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
        `fence=lease.fence` with its writes. Raises NotElected.
        """
        runner = self._ready()
        held = _Held(
            runner.client.election(name, ttl_s=ttl_s, value=value, partition=partition).campaign(timeout_s=timeout_s)
        )
        lease = runner.run(held.begin())
        try:
            yield lease
        finally:
            runner.run(held.end())

    # The thread

    @contextmanager
    def _connected(self) -> Iterator[_Runner]:
        """Have the runner for one call; a fork waits until the call is over."""
        runner = self._ready(calling=True)
        try:
            yield runner
        finally:
            with self._turn:
                self._calls -= 1
                self._turn.notify_all()

    def _at_hand(self) -> _Runner:
        return self._runner or self._ready()

    def _ready(self, *, calling: bool = False) -> _Runner:
        with self._turn:
            if self._runner is None:
                self._runner = _Runner(self._make)
            self._calls += calling
            return self._runner

    def _forget_threads(self) -> None:
        """Begin without a runner, and with a lock that nobody holds."""
        self._turn = threading.Condition(threading.RLock())
        self._calls = 0
        self._runner = None

    def _before_fork(self) -> None:
        self._turn.acquire()
        self._turn.wait_for(lambda: not self._calls, FORK_WAIT_S)
        runner, self._runner = self._runner, None
        if runner is not None:
            runner.stop()

    def _after_fork_in_parent(self) -> None:
        self._turn.release()


class _Held:
    """A lease in the client's thread: entered and left by one task, as its cancellation demands."""

    def __init__(self, campaign: Any) -> None:
        self._campaign = campaign
        self._over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> Lease:
        elected: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold(elected))
        try:
            return await elected
        except asyncio.CancelledError:
            self._task.cancel()
            raise

    async def end(self) -> None:
        self._over.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _hold(self, elected: asyncio.Future[Lease]) -> None:
        try:
            async with self._campaign as lease:
                elected.set_result(lease)
                await self._over.wait()
        except BaseException as error:
            if elected.done():
                raise
            elected.set_exception(error)


async def _next(changes: AsyncIterator[api.Change]) -> api.Change:
    return await anext(changes)


async def _close(changes: Any) -> None:
    await changes.aclose()


_clients: weakref.WeakSet[ControlPlane] = weakref.WeakSet()
_forking: list[ControlPlane] = []


def _before_fork() -> None:
    _forking[:] = _clients
    for each in _forking:
        each._before_fork()
    if _forking:
        # gRPC ends its threads when the last of its objects goes.
        gc.collect()


def _after_fork_in_parent() -> None:
    for each in _forking:
        each._after_fork_in_parent()
    _forking.clear()


def _after_fork_in_child() -> None:
    for each in _forking:
        each._forget_threads()
    _forking.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
