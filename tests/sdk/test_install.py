"""`pip install controlplane` brings the SDK alone: it imports without what only servers and terminals need."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = """
import importlib.abc, sys

class Absent(importlib.abc.MetaPathFinder):
    names = {"click", "cryptography", "grpc_health", "grpc_reflection", "prometheus_client", "pysyncobj", "pytest",
             "rich", "rocksdict", "structlog"}

    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in self.names:
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
import controlplane.sdk, controlplane.sdk.sync
assert not {name for name in sys.modules if name.startswith(("controlplane.node", "controlplane.server"))}
"""


def test_the_sdk_stands_alone() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
