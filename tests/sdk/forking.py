"""Scenarios around a fork, each run in a fresh process: `forking.py SCENARIO ADDRESS`.

A fork copies whatever else runs in a process, so a test runner with servers inside is no place for them.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from controlplane.sdk import LeaseLost, Unavailable, at_least
from controlplane.sdk.nonce import nonce
from controlplane.sdk.sync import FORK_WAIT_S, ControlPlane, _forks


def in_child(work: Callable[[], object]) -> None:
    """Fork, run, and demand that the child ends well."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code == 0, f"the child ended with {code}"


def add_one(cp: ControlPlane, workflow: str) -> None:
    cp.update_state_with_retry(workflow, lambda state: {"n": state["n"] + 1}, max_retries=1000)


def count(cp: ControlPlane, workflow: str) -> int:
    return int(json.loads(cp.get_workflow(workflow).workflow.workflow.state)["n"])


def parent_never_connected(address: str) -> None:
    with_parent = ControlPlane(address, insecure=True)
    in_child(lambda: with_parent.create_workflow("unconnected", b'{"n":0}'))
    assert count(with_parent, "unconnected") == 0
    with_parent.close()


def parent_connected(address: str) -> None:
    with ControlPlane(address, insecure=True) as cp:
        cp.create_workflow("forked", b'{"n":0}')

        def work() -> None:
            cp.ensure_alive()
            for _ in range(5):
                add_one(cp, "forked")
            cp.close()

        for _ in range(3):
            in_child(work)
            add_one(cp, "forked")
        assert count(cp, "forked") == 18


def parent_busy(address: str) -> None:
    """Calls are under way in other threads: they end, with their answers, and go on afterwards."""
    with ControlPlane(address, insecure=True) as cp, ThreadPoolExecutor(4) as pool:
        cp.create_workflow("busy", b'{"n":0}')
        adding = [pool.submit(add_one, cp, "busy") for _ in range(200)]
        for _ in range(3):
            in_child(lambda: None)
        for each in adding:
            each.result()
        assert count(cp, "busy") == 200


def child_of_a_busy_parent_works(address: str) -> None:
    with ControlPlane(address, insecure=True) as cp, ThreadPoolExecutor(4) as pool:
        cp.create_workflow("both", b'{"n":0}')
        adding = [pool.submit(add_one, cp, "both") for _ in range(50)]
        in_child(lambda: add_one(cp, "both"))
        for each in adding:
            each.result()
        assert count(cp, "both") == 51


def forks_are_not_kept_waiting(address: str) -> None:
    """However many calls want to begin: they wait for the fork, which waits for those under way. None is cut off."""
    with ControlPlane(address, insecure=True) as cp, ThreadPoolExecutor(6) as pool:
        over = threading.Event()

        def call() -> int:
            calls = 0
            while not over.is_set():
                cp.get_region()
                calls += 1
            return calls

        calling = [pool.submit(call) for _ in range(6)]
        try:
            for _ in range(3):
                cp.get_region()
                began = time.monotonic()
                in_child(lambda: None)
                assert time.monotonic() - began < FORK_WAIT_S / 2
        finally:
            over.set()
        assert all(each.result() for each in calling)


def a_mutator_forks(address: str) -> None:
    with ControlPlane(address, insecure=True) as cp:
        cp.create_workflow("mutated", b'{"n":0}')

        def mutate(state: dict[str, int]) -> dict[str, int]:
            in_child(cp.get_region)
            return {"n": state["n"] + 1}

        began = time.monotonic()
        assert cp.update_state_with_retry("mutated", mutate) == {"n": 1}
        assert time.monotonic() - began < FORK_WAIT_S / 2


def a_call_within_a_call_does_not_wait_for_the_fork(address: str) -> None:
    """A signal handler calls while a fork waits for the call that it interrupted."""
    with ControlPlane(address, insecure=True) as cp, ThreadPoolExecutor(1) as pool:
        forking: list[Future[None]] = []
        inner: list[object] = []

        def handle(*_: object) -> None:
            forking.append(pool.submit(in_child, lambda: None))
            while not _forks._pending:
                assert not forking[0].done()
            inner.append(cp.get_region())

        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(Unavailable) as late:
            cp.get_workflow("future", consistency=at_least(10**9), timeout_s=2.0)
        assert late.value.reason == "DEADLINE"
        forking[0].result()
        assert inner


def leases_and_watches_end(address: str) -> None:
    """In the parent, where they were; a child that leaves the body is told the same."""
    with ControlPlane(address, insecure=True) as cp, ThreadPoolExecutor(1) as pool:
        cp.create_workflow("watched", b"")
        changes = cp.watch(kinds=("workflow",), prefix="watched", snapshot=True)
        assert next(changes).name == "watched"
        watching = pool.submit(next, changes)
        try:
            with cp.campaign("forked") as lease:
                child = os.fork()
                assert not lease.valid
        except LeaseLost:
            told = True
        else:
            told = False
        if child == 0:
            os._exit(0 if told and cp.get_region().region.leader else 1)
        assert told
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with pytest.raises(Unavailable) as closed:
            watching.result(20)
        assert closed.value.reason == "CLIENT_CLOSED"


def a_client_that_was_dropped(address: str) -> None:
    """Nobody closed it, and it still does not run while the process forks."""
    ControlPlane(address, insecure=True).get_region()
    gc.collect()
    in_child(lambda: None)
    assert not [thread for thread in threading.enumerate() if thread.name == "controlplane"]


def _worker(address: str, workflow: str) -> None:
    with ControlPlane(address, insecure=True) as cp:
        add_one(cp, workflow)


def by_multiprocessing(address: str) -> None:
    context = multiprocessing.get_context("fork")
    with ControlPlane(address, insecure=True) as cp:
        cp.create_workflow("pool", b'{"n":0}')
        workers = [context.Process(target=_worker, args=(address, "pool")) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)
        assert [worker.exitcode for worker in workers] == [0, 0, 0]
        assert count(cp, "pool") == 3


def request_ids_differ(_: str) -> None:
    nonce()
    read, write = os.pipe()
    in_child(lambda: [os.write(write, nonce()) for _ in range(10)])
    theirs = os.read(read, 160)
    ours = {nonce() for _ in range(600)}
    assert not ours & {theirs[at : at + 16] for at in range(0, 160, 16)}


SCENARIOS = {
    each.__name__: each
    for each in (
        parent_never_connected,
        parent_connected,
        parent_busy,
        child_of_a_busy_parent_works,
        forks_are_not_kept_waiting,
        a_mutator_forks,
        a_call_within_a_call_does_not_wait_for_the_fork,
        leases_and_watches_end,
        a_client_that_was_dropped,
        by_multiprocessing,
        request_ids_differ,
    )
}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](sys.argv[2])
