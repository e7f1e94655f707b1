"""The demonstration itself, with fewer agents: real processes, certificates, and a killed leader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(120)
def test_the_demonstration_is_green(tmp_path: Path) -> None:
    out = tmp_path / "demo.json"
    demo = [sys.executable, "-m", "controlplane", "demo", "--agents", "6", "--out", str(out)]
    done = subprocess.run(demo, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(out.read_text())
    assert report["ok"]
    assert report["agents"] == 6
    assert report["writes_lost"] == report["agent_calls_failed"] == 0
    assert report["leader_changes"] >= 1
    assert report["replicas_equal"]
