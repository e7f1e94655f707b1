"""What `pip install controlplane` brings is enough for the SDK, and with [cli] for cpctl."""

from __future__ import annotations

import subprocess
import sys

import pytest

SERVER_ONLY = [
    "cryptography",
    "grpc_health",
    "grpc_reflection",
    "prometheus_client",
    "pysyncobj",
    "rocksdict",
    "structlog",
]
TERMINAL = ["click", "rich"]


def imports_without(module: str, blocked: list[str]) -> subprocess.CompletedProcess[str]:
    code = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\nimport {module}\n"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False)


@pytest.mark.parametrize("module", ["controlplane.sdk", "controlplane.sdk.sync"])
def test_sdk_needs_nothing_of_the_server_and_no_terminal(module: str) -> None:
    done = imports_without(module, SERVER_ONLY + TERMINAL)
    assert done.returncode == 0, done.stderr


def test_cpctl_needs_nothing_of_the_server() -> None:
    done = imports_without("controlplane.cli", SERVER_ONLY)
    assert done.returncode == 0, done.stderr


def test_the_block_blocks() -> None:
    done = imports_without("controlplane.storage", SERVER_ONLY)
    assert done.returncode != 0
    assert "rocksdict" in done.stderr
