"""How cpctl ends: at a terminal, in a pipe, on a full disk, and where it cannot even begin."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from controlplane.cli import main
from controlplane.sdk import SCOPE_TENANT, Scope
from controlplane.testing import plane

Cpctl = Callable[..., Result]
CPCTL = [sys.executable, "-c", "from controlplane.cli import main; main()"]
FULL = Path("/dev/full")
WAIT_S = 30


def ended(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CPCTL, *arguments], stderr=subprocess.PIPE, text=True, timeout=WAIT_S, check=False, **options
    )


@contextmanager
def asked(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A cpctl at a terminal that has asked its question and waits for the answer."""
    here, there = pty.openpty()
    with subprocess.Popen([*CPCTL, *arguments], stdin=there, stdout=there, stderr=there) as process:
        os.close(there)
        try:
            said = b""
            while not said.rstrip().endswith((b"[y/N]:", b"give that up:")):
                said += os.read(here, 4096)
            # A signal just before it reads would be noticed with the next key only.
            call = Path(f"/proc/{process.pid}/syscall")
            while call.exists() and call.read_text().split()[1:2] != ["0x0"]:
                assert process.poll() is None
            yield process, here
        finally:
            process.kill()
            os.close(here)


def heard(terminal: int) -> str:
    """What is said until the program ends."""
    said = b""
    try:
        while more := os.read(terminal, 4096):
            said += more
    except OSError:
        pass  # Of a terminal whose other end was closed.
    return said.decode()


ERASE = ["partition", "erase", "--partition", "local.dev.all", "--kind", "workflow", "--key", "asked", "--reason", "r"]
MOVE = ["partition", "move", "local.dev.all", "--to", "us", "--forced", "--attest", "it burnt down", "--reason", "r"]


@pytest.mark.parametrize("command", [ERASE, MOVE])
def test_ctrl_c_at_a_question_ends_it(address: str, command: list[str]) -> None:
    with asked("--address", address, "--insecure", *command) as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(WAIT_S) == 130


@pytest.mark.parametrize("command", [ERASE, MOVE])
def test_no_is_an_answer(address: str, command: list[str]) -> None:
    with asked("--address", address, "--insecure", *command) as (process, terminal):
        os.write(terminal, b"n\n")
        assert "NOT_CONFIRMED" in heard(terminal)
        assert process.wait(WAIT_S) == 2


def test_yes_is_one_too(address: str, told: Callable[..., Any], cpctl: Cpctl) -> None:
    told("workflow", "create", "asked", "s")
    with asked("--address", address, "--insecure", *ERASE) as (process, terminal):
        os.write(terminal, b"y\n")
        heard(terminal)
        assert process.wait(WAIT_S) == 0
    assert cpctl("workflow", "get", "asked").exit_code == 4


def test_ctrl_c_leaves_the_stop_of_another_region_in_force() -> None:
    with plane() as here:
        run = ["--address", here.address, "--insecure"]
        here.kill_abroad(Scope(kind=SCOPE_TENANT, name="acme"), "us")
        listed = CliRunner().invoke(main, [*run, "kill", "list", "--json"])
        [stop] = json.loads(listed.stdout)["stops"]
        named = [f"--{part}={stop[part]}" for part in ("region", "epoch", "revision")]
        with asked(*run, "kill", "except", "tenant:acme", *named, "--reason", "r") as (process, _):
            process.send_signal(signal.SIGINT)
            assert process.wait(WAIT_S) == 130
        assert CliRunner().invoke(main, [*run, "kill", "check", "--tenant", "acme"]).exit_code == 10


OUTPUTS = [["drill", "list"], ["drill", "list", "--json"], ["status"], ["status", "--json"], ["--help"], ["log"]]


@pytest.mark.parametrize("command", OUTPUTS)
def test_it_ends_quietly_when_nobody_reads_on(address: str, command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = ended("--address", address, "--insecure", *command, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not FULL.exists(), reason="no full device here")
@pytest.mark.parametrize("command", OUTPUTS)
def test_a_full_disk_is_told(address: str, command: list[str]) -> None:
    with FULL.open("w") as full:
        done = ended("--address", address, "--insecure", *command, stdout=full)
    assert done.returncode == 13
    said = json.loads(done.stderr)["message"] if "--json" in command else done.stderr.strip().removeprefix("error: ")
    assert said == "standard output: No space left on device"


@pytest.mark.parametrize(
    ("command", "config", "named"),
    [
        (["context", "set", "a", "--address", "h:1", "--insecure"], "/dev/null", "/dev/null/controlplane/config.toml"),
        (["context", "set", "a", "--address", "h:1", "--insecure"], "/proc", "/proc/controlplane/config.toml"),
        (["drill", "key", "new"], "/dev/null", "/dev/null/controlplane/drill.key"),
        (["drill", "key", "new", "/dev/null/k"], "", "/dev/null/k"),
        (["drill", "key", "new", "/proc/x/k"], "", "/proc/x/k"),
        (["region", "report", "--out", "/dev/null/bundle"], "", "/dev/null"),
    ],
)
def test_a_file_that_cannot_be_written_is_named_before_anything_is_done(
    tmp_path: Path, command: list[str], config: str, named: str
) -> None:
    # Nobody is asked: nobody is there.
    arguments = ["--address", "127.0.0.1:1", "--insecure", *command]
    variables = {"XDG_CONFIG_HOME": config or str(tmp_path)}
    result = CliRunner().invoke(main, arguments, env=variables)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {named}: ")
    document = json.loads(CliRunner().invoke(main, ["--json", *arguments], env=variables).stderr)
    assert (document["error"], document["reason"]) == ("Invalid", "FILE_UNUSABLE")
    assert document["message"].startswith(f"{named}: ")


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["flag", "get", "--json"], {}),
        (["--json", "--nope"], {}),
        (["flag", "set", "f", "--json"], {}),
        (["flag", "get"], {"CONTROLPLANE_JSON": "1"}),
    ],
)
def test_a_wrong_command_line_is_a_document_too(cpctl: Cpctl, arguments: list[str], variables: dict[str, str]) -> None:
    result = cpctl(*arguments, **variables)
    assert (result.exit_code, result.stdout) == (2, "")
    document = json.loads(result.stderr)
    assert (document["error"], document["reason"]) == ("Invalid", "USAGE")
    assert document["hint"].endswith("--help")


@pytest.mark.parametrize("moment", ["1900-01-01", "1969-12-31T23:59:59.999", "9999-12-31T23:59:59-12:00", "yesterday"])
def test_a_time_that_no_ledger_has(tmp_path: Path, moment: str) -> None:
    arguments = ["--address", "127.0.0.1:1", "--insecure", "region", "report", "--out", str(tmp_path / "bundle")]
    result = CliRunner().invoke(main, [*arguments, "--from", moment, "--to", "9999-12-31"])
    assert (result.exit_code, moment in result.stderr) == (2, True)


def test_options_of_the_program_can_be_variables(cpctl: Cpctl) -> None:
    assert json.loads(cpctl("status", CONTROLPLANE_JSON="1").stdout)["role"] == "leader"
    wrong = cpctl("status", CONTROLPLANE_TIMEOUT="0")
    assert wrong.exit_code == 2
    assert "--timeout" in wrong.stderr


def test_options_of_commands_cannot(cpctl: Cpctl, told: Callable[..., Any]) -> None:
    cpctl("flag", "set", "plain", "1", CONTROLPLANE_FLAG_SET_REASON="nobody's", CONTROLPLANE_FLAG_SET_OFF="1")
    flag = told("flag", "get", "plain")
    assert (flag["meta"]["reason"], flag["enabled"]) == ("", True)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["kill", "engage", "tenant:t", "--reason", " "], "--reason"),
        (["flag", "get", "plain", "--at", "999999"], "--at-least"),
    ],
)
def test_the_next_step_is_an_option(cpctl: Cpctl, told: Callable[..., Any], command: list[str], option: str) -> None:
    told("flag", "set", "plain", "1")
    result = cpctl(*command)
    assert option in result.stderr
    assert "header" not in result.stderr
    assert "AT_LEAST" not in result.stderr


def begun(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    code += "\nfrom controlplane.cli import main\nmain(['--version'])"
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_VERBOSITY"} | variables
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S, check=False, env=environment
    )


def test_what_is_missing_is_named() -> None:
    done = begun("import sys; sys.modules['rich'] = None")
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'controlplane[cli]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_before_it_began_is_no_traceback() -> None:
    interrupt = "def find_spec(name, *_):\n if name == 'rich': raise KeyboardInterrupt"
    done = begun(f"import sys, types\n{interrupt}\nsys.meta_path.insert(0, types.SimpleNamespace(find_spec=find_spec))")
    assert (done.returncode, done.stderr) == (130, "")


@pytest.mark.parametrize(("given", "kept"), [({}, "NONE"), ({"GRPC_VERBOSITY": "INFO"}, "INFO")])
def test_grpc_is_silent_unless_asked(given: dict[str, str], kept: str) -> None:
    done = begun("import atexit, os; atexit.register(lambda: print(os.environ['GRPC_VERBOSITY']))", **given)
    assert done.stdout.splitlines()[-1] == kept


def test_the_sdk_leaves_grpc_alone() -> None:
    code = "import os; os.environ.pop('GRPC_VERBOSITY', None); import controlplane.sdk; print(os.environ)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S, check=True)
    assert "GRPC_VERBOSITY" not in done.stdout
