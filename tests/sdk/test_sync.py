"""The synchronous face: in threads, beside a running loop, around forks."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from controlplane import sdk
from controlplane.sdk import (
    SCOPE_TOOL,
    ConflictError,
    LeaseLost,
    NotElected,
    NotFound,
    Scope,
    Stopped,
    Unavailable,
    at_least,
)
from controlplane.sdk.sync import ControlPlane
from controlplane.testing import Plane

from .forking import SCENARIOS

SERVE = """
import sys
from controlplane.testing import plane
with plane() as running:
    print(running.address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """A control plane in a process of its own, for processes that fork."""
    child = subprocess.Popen([sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        yield child.stdout.readline().strip()
    finally:
        child.kill()
        child.wait()


def add_one(cp: ControlPlane, workflow: str) -> None:
    cp.update_state_with_retry(workflow, lambda state: {"n": state["n"] + 1}, max_retries=200)


def count(cp: ControlPlane, workflow: str) -> int:
    return int(json.loads(cp.get_workflow(workflow).workflow.workflow.state)["n"])


def test_calls_config_and_kills(shared: Plane) -> None:
    with shared.connect_sync() as cp:
        cp.create_workflow("sync", b'{"n":0}')
        add_one(cp, "sync")
        assert count(cp, "sync") == 1
        with pytest.raises(NotFound):
            cp.get_workflow("nobody")
        cp.mirror_synced(shared.kill(Scope(kind=SCOPE_TOOL, name="sync")))
        with pytest.raises(Stopped):
            cp.ensure_alive(tools=("sync",))
        assert cp.config("u", "t").prompt_version == "v3"
        assert cp.revision > 0


def test_it_closes_and_opens_again(shared: Plane) -> None:
    cp = shared.connect_sync()
    with cp:
        cp.get_region()
    cp.close()
    assert cp.get_region().region.leader
    cp.close()


def test_many_threads_share_one(shared: Plane) -> None:
    with shared.connect_sync() as cp, ThreadPoolExecutor(8) as pool:
        cp.create_workflow("threads", b'{"n":0}')
        for each in [pool.submit(add_one, cp, "threads") for _ in range(40)]:
            each.result()
        assert count(cp, "threads") == 40


async def test_it_works_where_a_loop_runs_already(shared: Plane) -> None:
    """As in a notebook: it blocks the loop, and it works."""
    with shared.connect_sync() as cp:
        assert cp.get_region().region.leader
        assert asyncio.get_running_loop().is_running()


def test_leases(shared: Plane) -> None:
    with shared.connect_sync() as cp:
        cp.create_workflow("led", b"")
        with cp.campaign("sync-lead", ttl_s=1.0) as lease:
            assert lease.valid
            cp.compare_and_swap("led", 1, b"", fence=lease.fence)
            with pytest.raises(NotElected), cp.campaign("sync-lead", ttl_s=1.0, timeout_s=0.1):
                pytest.fail("elected twice")
        assert not lease.valid
        assert not cp.get_election("sync-lead").HasField("holder")


def test_watches(shared: Plane) -> None:
    with shared.connect_sync() as cp:
        changes = cp.watch(kinds=("workflow",), prefix="seen-", after_revision=cp.revision)
        cp.create_workflow("seen-1", b"")
        cp.create_workflow("seen-2", b"")
        assert [next(changes).name, next(changes).name] == ["seen-1", "seen-2"]
        changes.close()


def test_watches_of_transactions_and_of_the_region(shared: Plane) -> None:
    with shared.connect_sync() as cp:
        assert next(cp.watch_region()).leader == "test-1"
        transactions = cp.watch_transactions(kinds=("workflow",), prefix="whole-", after_revision=cp.revision)
        revision = cp.create_workflow("whole-1", b"").header.revision
        assert next(transactions).revision == revision


def test_every_method_is_there_but_those_it_names() -> None:
    theirs = {name for name in dir(sdk.ControlPlane) if not name.startswith("_")}
    missing = theirs - set(dir(ControlPlane)) - {"clock"}
    assert missing == {"connect", "election", "on_kill_change"}
    assert ControlPlane.__doc__ is not None
    assert all(name in ControlPlane.__doc__ for name in missing)


# Mutators


def test_a_mutator_runs_in_the_caller_s_thread_and_may_call_the_client(shared: Plane) -> None:
    with shared.connect_sync() as cp:
        cp.create_workflow("calling", b'{"n":0}')
        seen: list[threading.Thread] = []

        def mutate(state: dict[str, int]) -> dict[str, int]:
            seen.append(threading.current_thread())
            cp.ensure_alive()
            return {"n": count(cp, "calling") + 1}

        assert cp.update_state_with_retry("calling", mutate) == {"n": 1}
        assert seen == [threading.current_thread()]


def test_a_slow_mutator_keeps_nobody_waiting(shared: Plane) -> None:
    with shared.connect_sync() as cp, ThreadPoolExecutor(1) as pool:
        cp.create_workflow("slow", b"{}")
        begun, served = threading.Event(), threading.Event()

        def mutate(state: dict[str, bool]) -> dict[str, bool]:
            begun.set()
            return {"served": served.wait(20)}

        updating = pool.submit(cp.update_state_with_retry, "slow", mutate)
        assert begun.wait(20)
        assert cp.get_workflow("slow", timeout_s=5.0).workflow.version == 1
        served.set()
        assert updating.result() == {"served": True}


def test_what_a_mutator_raises_ends_the_update_alone(shared: Plane) -> None:
    def leave(_: object) -> NoReturn:
        sys.exit("enough")

    async def wait(state: object) -> object:
        return state

    with shared.connect_sync() as cp:
        cp.create_workflow("left", b"{}")
        with pytest.raises(SystemExit):
            cp.update_state_with_retry("left", leave)
        with pytest.raises(TypeError, match="workflow left"):
            cp.update_state_with_retry("left", wait)
        with pytest.raises(TypeError, match="workflow left"):
            cp.update_state_with_retry("left", lambda state: state.update(n=1))
        assert cp.get_workflow("left").workflow.version == 1


def test_it_tries_as_often_as_the_other_client(control_plane: Plane) -> None:
    with control_plane.connect_sync() as cp:
        cp.create_workflow("w", b'{"n":0}')
        control_plane.conflict_next(4)
        assert cp.update_state_with_retry("w", lambda state: {"n": state["n"] + 1}) == {"n": 1}
        control_plane.conflict_next(5)
        with pytest.raises(ConflictError) as conflict:
            cp.update_state_with_retry("w", lambda state: state)
        assert conflict.value.tries == 5


# Endings


def test_in_its_own_thread_it_does_not_wait_for_itself(shared: Plane) -> None:
    with shared.connect_sync() as cp:

        async def call_back(work: Callable[[], object]) -> None:
            work()

        for work in (cp.get_region, cp.close):
            with pytest.raises(RuntimeError, match="own thread"):
                cp._ready().run(call_back(work))
        assert cp.get_region().region.leader


def test_what_comes_after_the_end_is_told_so(shared: Plane) -> None:
    with shared.connect_sync() as cp:
        runner = cp._ready()
        cp.create_workflow("watched", b"")
        changes = cp.watch(kinds=("workflow",), prefix="watched", snapshot=True)
        assert next(changes).name == "watched"
        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(next, changes)
            cp.close()
            with pytest.raises(Unavailable) as closed:
                watching.result()
        assert closed.value.reason == "CLIENT_CLOSED"
        with pytest.raises(Unavailable) as closed:
            runner.run(asyncio.sleep(0))
        assert closed.value.reason == "CLIENT_CLOSED"
        runner.stop()


def test_nothing_gets_in_while_it_ends(shared: Plane) -> None:
    with shared.connect_sync() as cp, ThreadPoolExecutor(2) as pool:
        runner, begun, ending, over = cp._ready(), threading.Event(), threading.Event(), threading.Event()

        async def linger() -> None:
            begun.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                ending.set()
                over.wait(20)

        lingering = pool.submit(runner.run, linger())
        assert begun.wait(20)
        closing = pool.submit(cp.close)
        assert ending.wait(20)
        late = asyncio.sleep(0)
        with pytest.raises(Unavailable) as closed:
            runner.run(late)
        assert closed.value.reason == "CLIENT_CLOSED"
        assert late.cr_frame is None
        over.set()
        with pytest.raises(Unavailable) as closed:
            lingering.result(20)
        assert closed.value.reason == "CLIENT_CLOSED"
        closing.result(20)


LEAVE_EARLY = """
import sys
from controlplane.sdk.sync import ControlPlane
def leave_early():
    with ControlPlane(sys.argv[1], insecure=True) as cp:
        changes = cp.watch(kinds=("workflow",), after_revision=cp.revision)
        cp.create_workflow("seen-early", b"")
        for change in changes:
            break
    print("left")
leave_early()
"""


def test_leaving_a_watch_and_then_the_client_says_nothing(shared: Plane) -> None:
    argv = [sys.executable, "-X", "dev", "-W", "ignore:::google", "-c", LEAVE_EARLY, shared.address]
    left = subprocess.run(argv, capture_output=True, text=True, timeout=50, check=True)
    assert (left.stdout, left.stderr) == ("left\n", "")


def test_a_lease_ends_with_its_client(shared: Plane) -> None:
    with shared.connect_sync() as cp:
        with pytest.raises(LeaseLost), cp.campaign("ending", ttl_s=0.5) as lease:  # noqa: PT012 - at its end.
            cp.close()
            assert not lease.valid
        with pytest.raises(ZeroDivisionError), cp.campaign("ending", ttl_s=0.5):  # noqa: PT012 - it ends the body.
            cp.close()
            raise ZeroDivisionError
        with cp.campaign("ending", timeout_s=30.0) as lease:
            assert lease.valid


def test_a_lease_that_was_lost_is_told_at_the_end_of_the_body(shared: Plane) -> None:
    with shared.connect_sync() as cp, pytest.raises(LeaseLost):  # noqa: PT012 - it is raised at the end.
        with cp.campaign("stolen", ttl_s=1.0) as lease:
            cp.resign("stolen", cp.get_election("stolen").holder.election.process, lease.fence)
            until = time.monotonic() + 20
            while lease.valid and time.monotonic() < until:
                cp.get_region()
        pytest.fail("the loss was not told")


# Interruptions


class Interruption(Exception):
    """What a signal handler raises."""


@contextmanager
def interrupted() -> Iterator[None]:
    """Raise Interruption in this thread in a moment."""

    def handle(*_: object) -> NoReturn:
        raise Interruption

    before = signal.signal(signal.SIGUSR1, handle)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        with pytest.raises(Interruption):
            yield
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_an_interrupted_campaign_leaves_no_candidate(shared: Plane) -> None:
    with shared.connect_sync() as holder, shared.connect_sync() as cp:
        with holder.campaign("haunted"), interrupted(), cp.campaign("haunted", value=b"ghost"):
            pytest.fail("elected twice")
        with holder.campaign("haunted", timeout_s=5.0) as lease:
            assert lease.valid


def test_an_interruption_cancels_what_is_waited_for(shared: Plane) -> None:
    with shared.connect_sync() as cp:
        runner = cp._ready()
        with interrupted():
            cp.get_workflow("future", consistency=at_least(10**9), timeout_s=60.0)
        with interrupted():
            next(cp.watch(kinds=("flag",), prefix="never"))

        async def rest() -> list[Any]:
            return [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]

        until = time.monotonic() + 20
        while {task.get_coro().__name__ for task in runner.run(rest())} & {"get_workflow", "_next"}:
            assert time.monotonic() < until
        assert cp.get_region().region.leader


# Connecting


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nobody answers."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def test_connecting_takes_no_longer_than_the_call_may(nobody: str) -> None:
    cp = ControlPlane(nobody, insecure=True)
    for work in (
        lambda: cp.get_region(timeout_s=0.2),
        lambda: cp.update_state_with_retry("w", lambda state: state, timeout_s=0.2),
        lambda: cp.campaign("c", timeout_s=0.2).__enter__(),
    ):
        began = time.monotonic()
        with pytest.raises(Unavailable) as unavailable:
            work()
        assert unavailable.value.reason == "UNREACHABLE"
        assert time.monotonic() - began < 5
    began = time.monotonic()
    cp.close()
    assert time.monotonic() - began < 5


def test_those_who_wait_for_a_connection_wait_for_the_same(nobody: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.sdk.client.CONNECT_TIMEOUT_S", 1.0)
    cp = ControlPlane(nobody, insecure=True)
    together = threading.Barrier(4)

    def ask() -> BaseException | None:
        together.wait()
        try:
            cp.ensure_alive()
        except Unavailable as error:
            return error
        return None

    with ThreadPoolExecutor(4) as pool:
        errors = [each.result() for each in [pool.submit(ask) for _ in range(4)]]
    assert errors[0] is not None
    assert all(error is errors[0] for error in errors)


def test_closing_ends_an_attempt_to_connect(nobody: str) -> None:
    cp = ControlPlane(nobody, insecure=True)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(cp.config)
        while cp._runner is None:
            assert not asking.done()
        cp.close()
        with pytest.raises(Unavailable) as closed:
            asking.result(5)
    assert closed.value.reason == "CLIENT_CLOSED"


# Forks


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_around_a_fork(elsewhere: str, scenario: str) -> None:
    argv = [sys.executable, str(Path(__file__).with_name("forking.py")), scenario, elsewhere]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 0, ended.stderr
