"""`pip install controlplane` brings the SDK alone: it imports without what only servers and terminals need.

And what a program has to name of it is in one place.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

from controlplane import sdk

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


def test_what_callers_get_and_give_can_be_named() -> None:
    kinds = (sdk.ControlPlane, sdk.Election)
    methods = [method for kind in kinds for _, method in inspect.getmembers(kind, inspect.isroutine)]
    shown = [str(inspect.signature(method)) for method in methods if not method.__name__.startswith("_")]
    named = {name for text in shown for name in re.findall(r"(?:api|records)\.(\w+)", text)}
    # A reply is had by calling, and seldom handed on.
    assert {name for name in named if not name.endswith("Reply")} <= set(sdk.__all__)
