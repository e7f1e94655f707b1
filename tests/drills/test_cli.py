"""What `cpctl drill` says and returns where no region is needed."""

import json

import pytest
from click.testing import CliRunner

from controlplane.cli import main


@pytest.fixture
def cpctl(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    runner = CliRunner()
    return lambda *arguments: runner.invoke(main, ["drill", *map(str, arguments)])


def test_all_drills_are_listed(cpctl):
    rows = json.loads(cpctl("list", "--json").output)["drills"]
    assert {row["name"] for row in rows} == {
        "kill-leader",
        "isolate-leader",
        "one-way-loss",
        "pause-leader",
        "majority-loss",
        "rolling-restart",
        "replace-node",
        "divergent-rejoin",
        "kill-switch",
        "region-cut",
        "kill-under-partition",
        "region-loss",
        "move-home",
    }


def test_a_region_that_takes_part_is_a_context(cpctl, signed):
    done = cpctl("plan", "region-loss", "--there", "elsewhere")
    assert done.exit_code == 2
    assert "there is no context 'elsewhere'" in done.output


def test_a_record_is_verified_and_reported(cpctl, signed):
    done = cpctl("verify", signed, "--trust", f"{signed.parent / 'maria.key'}.pub", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["passed"]
    assert "# Drill kill-leader: PASSED" in cpctl("report", signed).output
    assert json.loads(cpctl("report", signed, "--json").output)["verdict"] == "passed"


def test_a_changed_record_is_told(cpctl, signed):
    signed.write_bytes(signed.read_bytes().replace(b'"recovery_ms": 401', b'"recovery_ms": 4'))
    done = cpctl("verify", signed, "--trust", f"{signed.parent / 'maria.key'}.pub", "--json")
    assert done.exit_code == 12
    wrong = {check["name"] for check in json.loads(done.output)["checks"] if not check["passed"]}
    assert wrong == {"signature", "measured recovery_ms"}


def test_another_key_is_not_trusted(cpctl, signed, tmp_path):
    made = json.loads(cpctl("key", "new", tmp_path / "other.key", "--json").output)
    assert cpctl("verify", signed, "--trust", made["public_key"]).exit_code == 12


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"record": {"format": 7}, "signature": {}}'])
def test_what_is_no_record_is_said_so(cpctl, signed, content):
    signed.write_bytes(content)
    done = cpctl("verify", signed, "--trust", f"{signed.parent / 'maria.key'}.pub")
    assert done.exit_code == 2
    assert "FILE" in done.output


def test_a_key_is_never_replaced_and_a_missing_one_is_told(cpctl):
    missing = cpctl("run", "kill-leader", "--reason", "x", "--yes")
    assert missing.exit_code == 2
    assert "cpctl drill key new" in missing.output
    assert cpctl("key", "new").exit_code == 0
    assert cpctl("key", "new").exit_code == 2


def test_a_reason_is_required(cpctl):
    assert "--reason" in cpctl("run", "kill-leader", "--yes").output
