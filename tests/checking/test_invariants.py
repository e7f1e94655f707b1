from __future__ import annotations

from random import Random

import pytest

from chaos.sample_histories import Load, sample
from controlplane.checking import histories, invariants
from controlplane.checking.histories import NEVER, History, Operation, Value
from controlplane.checking.invariants import Act, Finding, Kill, Tenure


def names(findings: list[Finding]) -> list[str]:
    return [finding.promise for finding in findings]


def act(fence: int, called: int, returned: int, resource: str = "r") -> Act:
    return Act(resource, f"p{fence}", called, returned, fence)


def test_fences() -> None:
    assert invariants.fences([act(1, 0, 1), act(1, 2, 3), act(2, 4, 5), act(1, 0, 9, "other")]) == []
    # Overlapping acts have no order: nothing is certain.
    assert invariants.fences([act(2, 0, 5), act(1, 5, 6)]) == []
    (finding,) = invariants.fences([act(1, 0, 1), act(2, 2, 3), act(1, 4, 5)])
    assert str(finding) == "FENCE_ORDER: p1 acted on r at 4 under fence 1, after p2 under 2 until 3"
    # A long act that ends last does not hide the greater fence that was over before.
    assert names(invariants.fences([act(9, 0, 1), act(3, 0, 2), act(5, 4, 5)])) == ["FENCE_ORDER"]
    assert names(invariants.fences([act(2, 7, 7), act(1, 8, 8)])) == ["FENCE_ORDER"]


def test_findings_are_bounded() -> None:
    acts = [act(1000, 0, 1), *(act(1, at, at) for at in range(2, 500))]
    assert len(invariants.fences(acts)) == invariants.FINDINGS_MAX


def test_tenures() -> None:
    mine, next_one = Tenure("e", "a", 1, 0, 10), Tenure("e", "b", 2, 10, 20)
    assert invariants.tenures([next_one, mine, Tenure("other", "b", 1, 0, 99)]) == []
    assert invariants.tenures([mine, mine._replace(since=5, until=15)]) == []
    assert names(invariants.tenures([mine, next_one._replace(since=9)])) == ["TWO_HOLDERS"]
    # A short renewal in between does not end what was believed before it.
    short = mine._replace(since=1, until=2)
    assert names(invariants.tenures([mine, short, next_one._replace(since=9)])) == ["TWO_HOLDERS"]


@pytest.mark.parametrize(
    ("called", "found"), [(50, []), (100, []), (110, []), (111, ["ACT_AFTER_KILL"]), (200, []), (210, [])]
)
def test_kills(called: int, found: list[str]) -> None:
    stops = [Kill("tenant:a", 100, 200), Kill("tenant:b", 0)]
    assert names(invariants.kills(stops, [Act("tenant:a", "agent", called, called + 1)], bound_ns=10)) == found


def op(kind: str, argument: Value, result: Value, called: int = 0, returned: int = 1) -> Operation:
    return Operation(0, "k", kind, argument, result, called, returned)


WRITTEN = History(
    (op("create", "a", 1), op("cas", (1, "b"), 2), op("cas", (1, "c"), None), op("write", "d", None, 0, NEVER)),
    (op("write", "e", "unavailable"),),
)


@pytest.mark.parametrize(
    ("present", "found"),
    [
        (["a", "b"], []),
        (["a", "b", "d"], []),
        (["a"], ["ACKNOWLEDGED_LOST"]),
        (["a", "b", "c"], ["FAILURE_APPLIED"]),
        (["a", "b", "e"], ["FAILURE_APPLIED"]),
        (["a", "b", "z"], ["PHANTOM"]),
        (["a", "b", "d", "d"], ["APPLIED_TWICE"]),
    ],
)
def test_writes(present: list[Value], found: list[str]) -> None:
    assert names(invariants.writes(WRITTEN, {"k": present})) == found


def test_stale_reads() -> None:
    write, read = op("write", "a", 1, 0, 5), op("read", None, None, 5, 6)
    assert invariants.stale_reads(History((write, read), ())) == []
    assert names(invariants.stale_reads(History((write, read._replace(called=6)), ()))) == ["STALE_READ"]
    seen = op("read", None, (3, "c"), 7, 8)
    older = op("read", None, (2, "b"), 9, 10)
    assert names(invariants.stale_reads(History((seen, older), ()))) == ["STALE_READ"]
    assert invariants.stale_reads(History((seen, older._replace(key="other")), ())) == []
    assert invariants.stale_reads(History((seen, older._replace(returned=NEVER)), ())) == []


def test_good_histories_have_no_stale_reads() -> None:
    for seed in range(20):
        history = histories.pair(sample(Random(seed), "register", Load(unknown=0.1)))
        assert invariants.stale_reads(history) == []
