"""The synchronous face: in threads, beside a running loop, around forks."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from controlplane.sdk import SCOPE_TOOL, NotElected, NotFound, Scope, Stopped
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


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_around_a_fork(elsewhere: str, scenario: str) -> None:
    argv = [sys.executable, str(Path(__file__).with_name("forking.py")), scenario, elsewhere]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 0, ended.stderr
