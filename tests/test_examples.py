"""The examples do what they say, each in a process of its own against `controlplane dev`."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.sdk import SCOPE_AGENT_TYPE, SCOPE_TOOL, Scope, Unavailable
from controlplane.sdk.sync import ControlPlane

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory, unused_tcp_port_factory: object) -> Iterator[str]:
    """A running `controlplane dev`."""
    port = unused_tcp_port_factory()  # type: ignore[operator]
    folder = tmp_path_factory.mktemp("dev")
    argv = [sys.executable, "-m", "controlplane", "dev", "--port", str(port), "--data", str(folder / "data")]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(argv, stdout=log, stderr=log)
    address = f"127.0.0.1:{port}"
    try:
        _wait_for(address, server, folder / "log")
        yield address
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + 20
    while True:
        try:
            with ControlPlane(address, insecure=True, mirror=False, timeout_s=1.0):
                return
        except Unavailable:
            if server.poll() is not None or time.monotonic() > give_up:
                pytest.fail(f"controlplane dev does not serve:\n{log.read_text()}")


def run(example: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(EXAMPLES / example), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=40, check=False)


def test_script(dev: str) -> None:
    first, second = run("script.py", dev), run("script.py", dev)
    assert first.returncode == 0, first.stderr
    assert "prompt v3" in first.stdout
    assert "'payments': 1" in first.stdout
    assert "'payments': 2" in second.stdout


def test_script_obeys_a_kill(dev: str) -> None:
    scope = Scope(kind=SCOPE_TOOL, name="bank")
    with ControlPlane(dev, insecure=True) as cp:
        cp.engage(scope, reason="drill")
        stopped = run("script.py", dev)
        cp.release(scope, reason="over")
    assert stopped.returncode == 1
    assert "stopped by tool:bank" in stopped.stderr


def test_agents_take_turns_and_obey(dev: str) -> None:
    argv = [sys.executable, str(EXAMPLES / "agent.py"), dev, "12"]
    agents = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    scope = Scope(kind=SCOPE_AGENT_TYPE, name="planner")
    with ControlPlane(dev, insecure=True) as cp:
        changes = cp.watch(kinds=("workflow",), prefix="plan-of-the-day", snapshot=True)
        next(change for change in changes if json.loads(change.workflow.state).get("step", 0) >= 3)
        cp.engage(scope, reason="drill")
        held = cp.get_workflow("plan-of-the-day").workflow.version
        time.sleep(1.0)
        # A step that was under way when the switch was thrown may still have landed.
        assert cp.get_workflow("plan-of-the-day").workflow.version <= held + 1
        cp.release(scope, reason="over")
        changes.close()
    output = "".join(agent.communicate(timeout=40)[0] for agent in agents)
    assert [agent.returncode for agent in agents] == [0, 0]
    assert "holding still, stopped by agent_type:planner" in output
    fences = [int(fence) for fence in re.findall(r"elected, fence (\d+)", output)]
    assert len(set(fences)) == 2


def test_the_readme_s_agent(dev: str) -> None:
    readme = (EXAMPLES.parent / "README.md").read_text()
    (agent,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    source = agent.replace("127.0.0.1:7000", dev)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 0, done.stderr
    with ControlPlane(dev, insecure=True) as cp:
        assert json.loads(cp.get_workflow("order-42").workflow.workflow.state) == {"step": 1}


@pytest.mark.skipif(
    importlib.util.find_spec("langgraph") is None, reason="langgraph is not installed: pip install langgraph"
)
def test_graph(dev: str) -> None:
    done = run("graph.py", dev)
    assert done.returncode == 0, done.stderr
    assert "answered by gpt-4o-2024-08, prompt v3" in done.stdout
