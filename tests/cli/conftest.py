"""cpctl in this process, against a real `controlplane dev`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from controlplane.cli import main
from controlplane.loopback import Program, ending, free_ports

Cpctl = Callable[..., Result]


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a development plane of one node answers."""
    folder = tmp_path_factory.mktemp("dev")
    [port] = free_ports(1)
    serve = [sys.executable, "-m", "controlplane", "dev", "--port", str(port), "--data", str(folder / "data")]
    program = Program(serve, folder / "log")
    with ending([program]):
        program.start()
        at = f"127.0.0.1:{port}"
        end = time.monotonic() + 30
        while CliRunner().invoke(main, ["--address", at, "--insecure", "status"]).exit_code:
            assert program.running, program.tail()
            assert time.monotonic() < end, program.tail()
        yield at


@pytest.fixture
def cpctl(address: str, tmp_path: Path) -> Cpctl:
    """Run cpctl with arguments; the result has exit_code, stdout and stderr."""
    environment = {"CONTROLPLANE_ADDRESSES": address, "CONTROLPLANE_INSECURE": "1", "XDG_CONFIG_HOME": str(tmp_path)}

    def run(*arguments: str, stdin: str | None = None, **variables: str) -> Result:
        return CliRunner().invoke(main, arguments, input=stdin, env=environment | variables)

    return run


@pytest.fixture
def told(cpctl: Cpctl) -> Callable[..., Any]:
    """Run cpctl with --json and expect it to succeed; the document it printed."""

    def run(*arguments: str, stdin: str | None = None) -> Any:
        result = cpctl(*arguments, "--json", stdin=stdin)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return run
