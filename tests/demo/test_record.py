"""Each rule that makes a run of the demonstration red."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from controlplane.demo.record import WRITES_MIN, Record


def green() -> Record:
    record = Record(agents=2, stops=2, stale_fence_refused=True, fences=[(1, 5), (1, 9)], leaders=["n1", "n2"])
    record.counted["shared/0", "a"] = WRITES_MIN
    record.created = {"task/a/1"}
    record.killed_s = 10.0
    record.wrote(10.1, 10.2)
    record.replicas = {"n1": (7, "aa"), "n2": (7, "aa")}
    record.read_back({"shared/0": {"a": WRITES_MIN}}, {"task/a/1"})
    return record


def test_a_green_run_is_green() -> None:
    report = green().report(1.0)
    assert report["ok"], report["problems"]
    assert report["failover_ms"] == 200.0
    assert (report["writes_acknowledged"], report["writes_lost"]) == (WRITES_MIN + 1, 0)


def spoil(name: str, value: object) -> Callable[[Record], None]:
    return lambda record: setattr(record, name, value)


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (lambda record: record.read_back({"shared/0": {"a": WRITES_MIN - 3}}, {"task/a/1"}), "3 acknowledged writes"),
        (lambda record: record.read_back({"shared/0": {"a": WRITES_MIN}}, set()), "1 acknowledged writes"),
        (lambda record: record.read_back({}, {"task/a/1"}), f"{WRITES_MIN} acknowledged writes"),
        (lambda record: record.read_back({"shared/0": {"a": WRITES_MIN + 1}}, {"task/a/1"}), "1 writes were applied"),
        (spoil("failures", ["Unavailable: x"]), "1 calls failed"),
        (spoil("acts_while_stopped", 1), "stopped agents"),
        (spoil("replicas", {"n1": (7, "aa"), "n2": (7, "bb")}), "replicas differ"),
        (spoil("replicas", {"n1": (7, "aa"), "n2": (8, "bb")}), "replicas differ"),
        (spoil("replicas", {"n1": (7, "aa")}), "replicas differ"),
        (spoil("fences", [(1, 9), (1, 9)]), "fences did not grow"),
        (spoil("fences", [(1, 9)]), "fences did not grow"),
        (spoil("stale_fence_refused", False), "stale fence"),
        (spoil("stale_fence_refused", None), "stale fence"),
        (spoil("first_write_s", None), "no write was acknowledged after"),
        (spoil("leaders", ["n1"]), "leader did not change"),
        (spoil("stops", 1), "no agent was stopped"),
        (lambda record: record.counted.subtract({("shared/0", "a"): 2}), f"only {WRITES_MIN - 1} writes"),
        (spoil("lost", None), "None acknowledged writes"),
        (spoil("broken_off", "TimeoutError: x"), "broken off: TimeoutError: x"),
    ],
)
def test_each_rule_makes_it_red(spoiled: Callable[[Record], None], said: str) -> None:
    record = green()
    spoiled(record)
    assert any(said in problem for problem in record.problems()), record.problems()


def test_a_write_under_way_at_the_kill_ends_no_failover() -> None:
    record = Record(1, killed_s=10.0)
    record.wrote(9.9, 10.01)
    record.wrote(9.0, 9.1)
    assert record.first_write_s is None
    assert record.stalls_s == [pytest.approx(0.11)]
    record.wrote(10.2, 10.4)
    record.wrote(10.1, 10.3)
    assert record.first_write_s == 10.3


def test_no_leader_is_no_change() -> None:
    record = Record(1)
    for leader in ("n1", "", "n1", "n2", "n2"):
        record.led_by(leader)
    assert record.leaders == ["n1", "n2"]
