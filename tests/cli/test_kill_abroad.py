"""What other regions stop, in `cpctl kill`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from controlplane.cli import main
from controlplane.sdk import SCOPE_TENANT, SCOPE_TOOL, Scope
from controlplane.testing import Plane, plane

Run = Callable[..., Result]
ACME, SEARCH = Scope(kind=SCOPE_TENANT, name="acme"), Scope(kind=SCOPE_TOOL, name="search")


@pytest.fixture(name="here")
def _here() -> Iterator[Plane]:
    with plane() as running:
        yield running


@pytest.fixture(name="run")
def _run(here: Plane) -> Run:
    return lambda *arguments, **more: CliRunner().invoke(
        main, ["--address", here.address, "--insecure", *arguments], **more
    )


def told(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def stops(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = told(run("kill", "list", "--json"))["stops"]
    return found


def exception(stop: dict[str, Any], scope: str = "tenant:acme", **other: Any) -> list[str]:
    named = [f"--{part}={other.get(part, stop[part])}" for part in ("region", "epoch", "revision")]
    return ["kill", "except", scope, *named, "--reason", "the link is cut, and us says it is over"]


def test_a_stop_is_listed_by_its_id_until_it_is_known_here(here: Plane, run: Run) -> None:
    here.kill_abroad(ACME, "us")
    [stop] = stops(run)
    assert (stop["region"], stop["engaged"], stop["scope"], stop["excepted"]) == ("us", True, None, False)
    assert "acme" not in run("kill", "list").stdout
    assert stop["id"] in run("kill", "list").stdout
    here.kill(ACME)
    assert stops(run)[0]["scope"] == "tenant:acme"
    here.revive_abroad(ACME, "us")
    assert stops(run)[0]["engaged"] is False
    assert told(run("kill", "list", "--engaged", "--json"))["stops"] == []


def test_a_check_says_which_region_stops(here: Plane, run: Run) -> None:
    here.kill_abroad(SEARCH, "us")
    here.kill_abroad(SEARCH, "ap")
    stopped = run("kill", "check", "--tool", "search", "--json")
    assert stopped.exit_code == 10
    by = json.loads(stopped.stdout)["stopped_by"]
    assert [(each["region"], each["scope"], each["engaged_by"]) for each in by] == [
        ("ap", "tool:search", ""),
        ("us", "tool:search", ""),
    ]
    assert "REGION" in run("kill", "check", "--tool", "search").stdout
    assert run("kill", "check", "--tool", "other").exit_code == 0


def test_an_exception_frees_from_one_stop(here: Plane, run: Run) -> None:
    here.kill_abroad(ACME, "us")
    [stop] = stops(run)
    assert told(run(*exception(stop), "--yes", "--json"))["changed"] is True
    assert told(run(*exception(stop), "--yes", "--json"))["changed"] is False
    assert run("kill", "check", "--tenant", "acme").exit_code == 0
    [excepted] = stops(run)
    assert (excepted["excepted"], excepted["scope"]) == (True, "tenant:acme")
    assert "excepted" in run("kill", "list").stdout
    here.revive_abroad(ACME, "us")
    here.kill_abroad(ACME, "us")
    assert run("kill", "check", "--tenant", "acme").exit_code == 10


def test_an_exception_is_asked_for_twice(here: Plane, run: Run) -> None:
    here.kill_abroad(ACME, "us")
    [stop] = stops(run)
    unsure = run(*exception(stop))
    assert unsure.exit_code == 2
    assert "NOT_CONFIRMED" in unsure.stderr
    assert run("kill", "check", "--tenant", "acme").exit_code == 10


@pytest.mark.parametrize("other", [{"revision": 9}, {"epoch": 2}, {"region": "ap"}, {"scope": "tenant:other"}])
def test_an_exception_for_what_is_not_there_is_refused(here: Plane, run: Run, other: dict[str, Any]) -> None:
    here.kill_abroad(ACME, "us")
    [stop] = stops(run)
    result = run(*exception(stop, **other), "--yes", "--json")
    assert result.exit_code == 4
    assert json.loads(result.stderr)["reason"] == "STOP_UNKNOWN"


def test_an_exception_needs_a_reason(run: Run) -> None:
    assert run("kill", "except", "tenant:acme", "--region=us", "--epoch=1", "--revision=1", "--yes").exit_code == 2
