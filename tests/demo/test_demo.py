"""The demonstration itself, with fewer agents: real processes, certificates, and a killed leader."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.timeout(120)
def test_the_demonstration_is_green(tmp_path: Path) -> None:
    out = tmp_path / "demo.json"
    demo = [sys.executable, "-m", "controlplane", "demo", "--regions", "1", "--agents", "6", "--out", str(out)]
    done = subprocess.run(demo, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert report["ok"]
    assert report["agents"] == 6
    assert report["writes_lost"] == report["agent_calls_failed"] == 0
    assert report["leader_changes"] >= 1
    assert report["replicas_equal"]


def _using(folder: Path) -> list[str]:
    """The command lines of all processes that have to do with `folder`."""
    lines = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(each.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # It ended meanwhile.
    return [line for line in lines if str(folder) in line]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc to see who is still running")
@pytest.mark.timeout(90)
def test_ended_from_outside_it_ends_its_nodes(tmp_path: Path) -> None:
    out = tmp_path / "never.json"
    demo = [sys.executable, "-m", "controlplane", "demo", "--regions", "1", "--agents", "3", "--out", str(out)]
    with subprocess.Popen(demo, stdout=subprocess.DEVNULL, env=os.environ | {"TMPDIR": str(tmp_path)}) as process:
        try:
            end = time.monotonic() + 30
            while sum("serve" in line for line in _using(tmp_path)) < 3:
                assert time.monotonic() < end, "the nodes were not started"
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 143
        finally:
            process.kill()
    assert _using(tmp_path) == []
