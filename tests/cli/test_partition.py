"""`cpctl partition erase`, against a real node with a real disk."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

Cpctl = Callable[..., Result]
HERE = ["--partition", "local.dev.all", "--kind", "workflow", "--key", "person"]


def test_a_record_is_erased_and_every_node_says_so(cpctl: Cpctl, told: Callable[..., Any]) -> None:
    told("workflow", "create", "person", "secret")
    erased = told("partition", "erase", *HERE, "--reason", "asked to", "--yes")
    assert erased["done"]
    [node] = erased["nodes"]
    assert (node["state"], node["pending"]) == ("done", 0)
    assert node["scrubbed"] == node["due"] > erased["revision"]
    again = told("partition", "erase", *HERE, "--reason", "asked to", "--yes")
    assert (again["revision"], again["erasure"]) == (erased["revision"], erased["erasure"])
    assert told("status")["erasures"] == {name: node[name] for name in ("pending", "due", "scrubbed")}
    assert told("partition", "erase", "--status")["nodes"] == [node]
    assert cpctl("workflow", "get", "person").exit_code == 4
    assert "done" in cpctl("partition", "erase", "--status").stdout


def test_it_is_not_done_by_mistake(cpctl: Cpctl, told: Callable[..., Any]) -> None:
    told("workflow", "create", "kept", "s")
    here = [*HERE[:-1], "kept"]
    assert cpctl("partition", "erase", *here, "--yes").exit_code == 2
    assert cpctl("partition", "erase", *here, "--reason", "r").exit_code == 2
    missing = cpctl("partition", "erase", *HERE[:-1], "nobody", "--reason", "r", "--yes", "--json")
    assert (missing.exit_code, json.loads(missing.stderr)["reason"]) == (4, "WORKFLOW_NOT_FOUND")
    assert told("workflow", "get", "kept")


def test_a_node_that_does_not_answer_is_not_done(cpctl: Cpctl, monkeypatch: pytest.MonkeyPatch) -> None:
    # The name of the module is the name of the command as well.
    monkeypatch.setattr(sys.modules["controlplane.cli.erase"], "_MEMBER_TIMEOUT_S", 0.0)
    result = cpctl("partition", "erase", "--status", "--json")
    assert result.exit_code == 11
    [node] = json.loads(result.stdout)["nodes"]
    assert (node["done"], node["state"]) == (False, "does not answer")
