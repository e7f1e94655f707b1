"""`controlplane.testing` as an agent's author uses it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from controlplane.sdk import FlagType, NotElected, Refused
from controlplane.testing import Plane, plane

AN_AUTHOR_S_TEST = """
import pytest
from controlplane.sdk import SCOPE_TOOL, Scope, Stopped


def test_stops_when_killed(control_plane):
    with control_plane.connect_sync() as cp:
        cp.ensure_alive(tools=("search",))
        cp.mirror_synced(control_plane.kill(Scope(kind=SCOPE_TOOL, name="search")))
        with pytest.raises(Stopped):
            cp.ensure_alive(tools=("search",))


def test_every_test_has_its_own(control_plane):
    with control_plane.connect_sync() as cp:
        cp.ensure_alive(tools=("search",))
"""


def test_in_a_project_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["controlplane.testing"]\n')
    (tmp_path / "test_agent.py").write_text(AN_AUTHOR_S_TEST)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=50, check=False)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


async def test_a_lease_nobody_renews_expires(control_plane: Plane) -> None:
    async with control_plane.connect() as cp:
        reply = await cp.campaign("lead", bytes(16), 5_000)
        assert reply.elected
        with pytest.raises(NotElected):
            async with cp.election("lead", ttl_s=5).campaign(timeout_s=0.1):
                pytest.fail("elected while it is held")
        await asyncio.to_thread(control_plane.clock.advance, 6)
        async with cp.election("lead", ttl_s=5).campaign(timeout_s=5) as lease:
            assert lease.fence.revision > reply.holder.fence.revision


def test_values_become_flags(control_plane: Plane) -> None:
    for name, value in [("max_iter", 3), ("agent_model", "m"), ("tools", ["a"]), ("on", True), ("heat", 0.7)]:
        revision = control_plane.set_flag(name, value)
    with control_plane.connect_sync() as cp:
        cp.mirror_synced(revision)
        config = cp.config()
        assert (config.max_iterations, config.model, config.tools_enabled) == (3, "m", ("a",))
        heat = cp.get_flag("heat").flag.flag
        assert (heat.type, heat.variants[0].value.number_value) == (FlagType.NUMBER, "0.7")


def test_it_stops_and_stays_stopped() -> None:
    with plane() as running:
        address = running.address
        assert address.startswith("127.0.0.1:")
    running.stop()


def test_refusals_are_the_real_ones(control_plane: Plane) -> None:
    with control_plane.connect_sync() as cp:
        cp.create_workflow("w", b"")
        control_plane.conflict_next()
        with pytest.raises(Refused) as refused:
            cp.compare_and_swap("w", 1, b"")
        assert refused.value.reason == "VERSION_MISMATCH"
        assert cp.get_workflow("w").workflow.meta.action == "Rival"
