"""Every command, against a real plane."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from controlplane.loopback import free_ports

Cpctl = Callable[..., Result]
Told = Callable[..., Any]


def test_status_names_the_leader(told: Told, cpctl: Cpctl) -> None:
    document = told("status")
    assert document["role"] == "leader"
    assert document["leader"] == document["node"] == told("region", "leader")["leader"]
    assert document["node"] in cpctl("status").stdout


def test_members_are_well(told: Told) -> None:
    [member] = told("member", "health")["members"]
    assert member["problem"] is None
    assert member["role"] == "leader"


def test_a_flag_through_its_life(told: Told, cpctl: Cpctl) -> None:
    first = told("flag", "set", "life", "3", "--reason", "begin")["meta"]["revision"]
    told("flag", "set", "life", "4", "--if-revision", str(first))
    assert cpctl("flag", "set", "life", "5", "--if-revision", str(first)).exit_code == 5
    assert cpctl("flag", "set", "life", "5", "--if-absent").exit_code == 5
    assert told("flag", "get", "life")["variants"] == {"value": 4}
    assert told("flag", "get", "life", "--at", str(first))["variants"] == {"value": 3}
    told("flag", "off", "life")
    assert told("flag", "get", "life")["enabled"] is False
    told("flag", "on", "life")
    restored = told("flag", "restore", "life", str(first), "--reason", "3 was better")
    assert restored["variants"] == {"value": 3}
    versions = told("flag", "history", "life")["versions"]
    assert [each["variants"]["value"] for each in versions] == [3, 4, 4, 4, 3]
    assert [each["meta"]["reason"] for each in versions] == ["3 was better", "", "", "", "begin"]
    assert "life" in cpctl("flag", "list").stdout


def test_switching_on_twice_writes_once(told: Told) -> None:
    told("flag", "set", "twice", "true")
    before = told("flag", "get", "twice")["meta"]["revision"]
    assert told("flag", "on", "twice")["meta"]["revision"] == before


def test_variants_and_types(told: Told, cpctl: Cpctl) -> None:
    told("flag", "set", "model", "--variant", "a=x", "--variant", "b=7", "--default", "b", "--type", "string")
    flag = told("flag", "get", "model")
    assert (flag["type"], flag["variants"], flag["default"]) == ("string", {"a": "x", "b": "7"}, "b")
    assert cpctl("flag", "set", "model").exit_code == 2
    assert cpctl("flag", "set", "model", "1", "--variant", "a=1").exit_code == 2


def test_config_says_which_flag_decided(told: Told) -> None:
    told("flag", "set", "max_iter", "25")
    document = told("config", "--user", "u", "--tenant", "t")
    assert document["config"]["max_iterations"] == 25
    [field] = [each for each in document["fields"] if each["name"] == "max_iterations"]
    assert (field["flag"], field["reason"], field["value"]) == ("max_iter", "static", 25)


def test_values_from_standard_input_and_files(told: Told, tmp_path: Path) -> None:
    told("workflow", "create", "from-stdin", "-", stdin='{"step": 1}')
    assert told("workflow", "get", "from-stdin")["state"] == '{"step": 1}'
    file = tmp_path / "state"
    file.write_bytes(b"\x00\xff")
    told("workflow", "cas", "from-stdin", "1", f"@{file}")
    document = told("workflow", "get", "from-stdin")
    assert (document["state"], document["state_encoding"]) == ("AP8=", "base64")


def test_a_workflow_through_its_life(told: Told, cpctl: Cpctl) -> None:
    created = told("workflow", "create", "order-1", "a", "--code-version", "v1")
    assert created["version"] == 1
    assert told("workflow", "cas", "order-1", "1", "b")["version"] == 2
    late = cpctl("workflow", "cas", "order-1", "1", "c")
    assert late.exit_code == 5
    assert "VERSION_MISMATCH" in late.stderr
    assert cpctl("workflow", "create", "order-1", "a").exit_code == 5
    assert told("workflow", "get", "order-1", "--at", str(created["revision"]))["state"] == "a"
    assert [each["state"] for each in told("workflow", "history", "order-1")["versions"]] == ["b", "a"]
    assert [each["id"] for each in told("workflow", "list", "--prefix", "order-")["workflows"]] == ["order-1"]


def test_lists_go_on_over_pages(told: Told, cpctl: Cpctl) -> None:
    for number in range(5):
        told("workflow", "create", f"page-{number}", "x")
    beginning, whole = (told("workflow", "list", "--prefix", "page-", "--limit", limit) for limit in ("3", "5"))
    assert (len(beginning["workflows"]), beginning["more"]) == (3, True)
    assert (len(whole["workflows"]), whole["more"]) == (5, False)
    assert "there is more" in cpctl("workflow", "list", "--prefix", "page-", "--limit", "3").stdout
    assert "there is more" not in cpctl("workflow", "list", "--prefix", "page-").stdout


def test_kill_switches(told: Told, cpctl: Cpctl) -> None:
    assert cpctl("kill", "engage", "tenant:acme").exit_code == 2  # No reason given.
    assert told("kill", "engage", "tenant:acme", "--reason", "drill")["changed"] is True
    assert told("kill", "engage", "tenant:acme", "--reason", "drill")["changed"] is False
    stopped = cpctl("kill", "check", "--tenant", "acme", "--json")
    assert stopped.exit_code == 10
    assert json.loads(stopped.stdout)["stopped_by"][0]["scope"] == "tenant:acme"
    assert told("kill", "check", "--tenant", "other")["stopped"] is False
    assert [each["scope"] for each in told("kill", "list", "--engaged")["switches"]] == ["tenant:acme"]
    told("kill", "release", "tenant:acme", "--reason", "over")
    assert cpctl("kill", "check", "--tenant", "acme").exit_code == 0
    [switch] = told("kill", "list")["switches"]
    assert (switch["engaged"], switch["engaged_reason"]) == (False, "drill")


def test_nobody_holds_a_name_nobody_campaigned_for(told: Told) -> None:
    assert told("election", "get", "nobody")["holder"] is None
    assert told("election", "list")["elections"] == []


def test_the_log_says_who_and_why(told: Told, cpctl: Cpctl) -> None:
    revision = told("flag", "set", "logged", "1", "--reason", "because")["meta"]["revision"]
    events = told("log", "--after", str(revision - 1), "--kind", "flag")["events"]
    assert (events[0]["name"], events[0]["meta"]["reason"]) == ("logged", "because")
    assert events[0]["meta"]["action"] == "SetFlag"
    assert "on, value: 1" in cpctl("log", "--after", str(revision - 1), "--kind", "flag").stdout


def test_a_request_nobody_made_was_not_applied(cpctl: Cpctl) -> None:
    result = cpctl("outcome", "00" * 16, "--json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["outcome"] == "not_applied"


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (("flag", "get", "nothing"), 4, "NotFound"),
        (("flag", "get", "no\x01name"), 2, "Invalid"),
        (("workflow", "get", "x", "--partition", "elsewhere"), 4, "NotFound"),
    ],
)
def test_errors_are_documents_too(cpctl: Cpctl, arguments: tuple[str, ...], code: int, kind: str) -> None:
    result = cpctl(*arguments, "--json")
    assert result.exit_code == code
    assert result.stdout == ""
    assert json.loads(result.stderr)["error"] == kind


def test_nobody_there(cpctl: Cpctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.cli.command._CONNECT_TIMEOUT_S", 0.5)
    [port] = free_ports(1)
    result = cpctl("--address", f"127.0.0.1:{port}", "status")
    assert result.exit_code == 8
    assert "next:" in result.stderr


def test_contexts(cpctl: Cpctl, address: str) -> None:
    nothing = {"CONTROLPLANE_ADDRESSES": "", "CONTROLPLANE_INSECURE": ""}
    assert cpctl("context", "set", "here", "--address", address, "--insecure", **nothing).exit_code == 0
    listed = json.loads(cpctl("context", "list", "--json", **nothing).stdout)["contexts"]
    assert [(each["name"], each["current"], each["addresses"]) for each in listed] == [("here", True, [address])]
    assert cpctl("status", **nothing).exit_code == 0
    assert cpctl("--context", "there", "status", **nothing).exit_code == 2
    assert cpctl("context", "use", "there", **nothing).exit_code == 2


def test_watch_prints_a_line_for_each_change(address: str, told: Told) -> None:
    after = told("flag", "set", "watched", "1")["meta"]["revision"]
    watch = [sys.executable, "-c", "from controlplane.cli import main; main()", "--address", address, "--insecure"]
    arguments = [*watch, "watch", "--kind", "flag", "--prefix", "watched", "--after", str(after), "--json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            told("flag", "set", "watched", "2")
            assert process.stdout is not None
            change = json.loads(process.stdout.readline())
        finally:
            process.kill()
    assert (change["name"], change["value"]["variants"]) == ("watched", {"value": 2})
