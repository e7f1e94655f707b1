"""The search against known histories, against spoiled ones, and against trying every order."""

from __future__ import annotations

from itertools import permutations
from random import Random
from typing import Any

import pytest

from chaos.sample_histories import SUBJECTS, Load, sample, spoil
from controlplane.checking import histories
from controlplane.checking.histories import NEVER, Operation, Value
from controlplane.checking.linearizability import Failure, Model, Verdict, check
from controlplane.checking.models import MODELS, AppendList, Lease, Register

GOOD, BAD = Verdict.LINEARIZABLE, Verdict.NOT_LINEARIZABLE


def op(kind: str, argument: Value, result: Value, called: int, returned: int = NEVER, process: int = 0) -> Operation:
    return Operation(process, "k", kind, argument, result, called, returned)


CREATED = op("create", "a", 1, 0, 1)

KNOWN: dict[str, tuple[Verdict, list[Operation]]] = {
    "nothing at all": (GOOD, []),
    "read while it is written, new": (GOOD, [op("create", "a", 1, 0, 9), op("read", None, (1, "a"), 1, 2)]),
    "read while it is written, old": (GOOD, [op("create", "a", 1, 0, 9), op("read", None, None, 1, 2)]),
    "stale read": (BAD, [CREATED, op("cas", (1, "b"), 2, 2, 3), op("read", None, (1, "a"), 4, 5)]),
    "lost write": (BAD, [CREATED, op("read", None, None, 2, 3)]),
    "phantom value": (BAD, [CREATED, op("read", None, (1, "z"), 2, 3)]),
    "two creators": (BAD, [CREATED, op("create", "b", 1, 0, 1)]),
    "two swaps win": (BAD, [CREATED, op("cas", (1, "b"), 2, 2, 9), op("cas", (1, "c"), 2, 2, 9)]),
    "one swap wins": (GOOD, [CREATED, op("cas", (1, "b"), 2, 2, 9), op("cas", (1, "c"), None, 2, 9)]),
    "swap refused for no reason": (BAD, [CREATED, op("cas", (1, "b"), None, 2, 3)]),
    "flip back": (
        BAD,
        [
            CREATED,
            op("cas", (1, "b"), 2, 2, 20),
            op("read", None, (2, "b"), 3, 4),
            op("read", None, (1, "a"), 5, 6),
        ],
    ),
    "refused swap seen": (BAD, [CREATED, op("cas", (7, "b"), None, 2, 3), op("read", None, (2, "b"), 4, 5)]),
    "unknown write never happened": (GOOD, [CREATED, op("cas", (1, "b"), None, 2), op("read", None, (1, "a"), 3, 4)]),
    "unknown write happened late": (
        GOOD,
        [
            CREATED,
            op("cas", (1, "b"), None, 2),
            op("read", None, (1, "a"), 3, 4),
            op("read", None, (2, "b"), 5, 6),
        ],
    ),
    "unknown write seen, then gone": (
        BAD,
        [
            CREATED,
            op("cas", (1, "b"), None, 2),
            op("read", None, (2, "b"), 3, 4),
            op("read", None, (1, "a"), 5, 6),
        ],
    ),
    "unknown write seen before it was asked": (
        BAD,
        [CREATED, op("read", None, (2, "b"), 2, 3), op("cas", (1, "b"), None, 4)],
    ),
    "applied twice": (BAD, [op("write", "a", 1, 0, 1), op("read", None, (2, "a"), 2, 3)]),
    "two of unknown outcome in a row": (
        GOOD,
        [op("write", "b", None, 0), op("write", "a", None, 0), op("read", None, (2, "b"), 5, 6)],
    ),
    "touching in one nanosecond is overlapping": (GOOD, [op("create", "a", 1, 0, 5), op("read", None, None, 5, 6)]),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_histories(name: str) -> None:
    verdict, operations = KNOWN[name]
    assert check(operations, Register()).verdict is verdict
    assert check(reversed(operations), Register()).verdict is verdict


def test_keys_are_independent() -> None:
    operations = [
        CREATED,
        op("read", None, None, 2, 3)._replace(key="other"),
        op("read", None, (1, "z"), 2, 3)._replace(key="bad"),
    ]
    result = check(operations, Register())
    assert (result.verdict, result.keys, result.operations) == (BAD, 3, 3)
    assert [failure.key for failure in result.failures] == ["bad"]


@pytest.mark.parametrize("model", SUBJECTS)
def test_good_histories_are_accepted_and_spoiled_ones_refused(model: str) -> None:
    ways, refused = set(), 0
    for number in range(120):
        random = Random(f"{model}/{number}")
        load = Load(per_key=60, processes=random.choice((2, 5)), unknown=0.0 if model == "switch" else 0.04)
        good = histories.pair(sample(random, model, load)).operations
        assert check(good, MODELS[model]()).verdict is GOOD
        for _ in range(3):
            bad = spoil(random, model, good)
            if bad is not None:
                assert check(bad.operations, MODELS[model]()).verdict is BAD, (number, bad.how)
                ways.add(bad.how)
                refused += 1
    assert refused > 150
    assert len(ways) == {"register": 7, "lease": 3, "list": 4, "switch": 1}[model]


def by_every_order(operations: list[Operation], model: Model[Any]) -> bool:
    """The definition, word by word: some of the unknown, all of the others, in an order that respects real time."""
    known = [operation for operation in operations if not operation.unknown]
    unknown = [operation for operation in operations if operation.unknown]
    for chosen in range(1 << len(unknown)):
        taken = known + [operation for number, operation in enumerate(unknown) if chosen >> number & 1]
        if any(_possible(order, model) for order in permutations(taken)):
            return True
    return False


def _possible(order: tuple[Operation, ...], model: Model[Any]) -> bool:
    if any(later.returned < earlier.called for n, earlier in enumerate(order) for later in order[n:]):
        return False
    states = {model.start}
    for operation in order:
        states = {after for state in states for after in model.step(state, operation)}
    return bool(states)


def _garbled(random: Random, model: str) -> list[Operation]:
    """A short history whose answers are, now and then, those of another operation."""
    load = Load(per_key=random.randint(2, 6), processes=random.randint(1, 4), unknown=0.25)
    operations = list(histories.pair(sample(random, model, load)).operations)
    answered = [number for number, operation in enumerate(operations) if not operation.unknown]
    for _ in range(random.randint(0, 2) if answered else 0):
        number, other = random.choice(answered), random.choice(answered)
        if operations[number].kind == operations[other].kind:
            operations[number] = _off_by_one(random, operations[number]._replace(result=operations[other].result))
    return operations


def _off_by_one(random: Random, operation: Operation) -> Operation:
    """Now and then a version, a fence or a place that is one more or less."""
    off, result = random.choice((0, 0, 1, -1)), operation.result
    if isinstance(result, tuple) and len(result) == 2:
        numbers = (item + off if isinstance(item, int) else item for item in result)
        return operation._replace(result=tuple(numbers))
    return operation._replace(result=result + off) if type(result) is int else operation


@pytest.mark.parametrize("model", MODELS)
def test_the_search_agrees_with_trying_every_order(model: str) -> None:
    verdicts = []
    for number in range(150):
        operations = _garbled(Random(f"{model}/{number}"), model.removesuffix("-declared"))
        said = by_every_order(operations, MODELS[model]())
        assert check(operations, MODELS[model]()).ok is said, number
        verdicts.append(said)
    assert 10 < sum(verdicts) < 145


def _failure(operations: list[Operation], **bounds: int) -> Failure:
    (failure,) = check(operations, Register(), **bounds).failures
    return failure


def test_a_failure_names_the_smallest_window() -> None:
    operations = [op("write", number, number + 1, 10 * number, 10 * number + 5) for number in range(200)]
    stale = op("read", None, (60, 59), 1001, 1003, 1)
    failure = _failure([*operations, stale])
    assert failure.stuck == stale
    assert stale in failure.unplaced
    # Everything that had returned by then is explained, and nothing that was called later is looked at.
    assert len(failure.placed) in (100, 101)
    assert failure.state in ("(100, 99)", "(101, 100)")
    assert len(failure.window) < 15
    assert all(abs(operation.called - 1000) < 100 for operation in failure.window)
    assert "process 1's read() -> (60, 59) fits nowhere" in str(failure)


def test_the_window_ends_where_the_history_became_impossible() -> None:
    """What was called until the stuck answer cannot be explained; without what had not returned before it, it can."""
    cut_short = 0
    for number in range(60):
        random = Random(number)
        bad = spoil(random, "register", histories.pair(sample(random, "register", Load(per_key=80))).operations)
        if bad is None:
            continue
        stuck = _failure(bad.operations).stuck
        before = [operation for operation in bad.operations if operation.called <= stuck.returned]
        pending = [o if o.returned < stuck.returned else o._replace(returned=NEVER) for o in before]
        assert check(pending, Register()).ok
        assert not check(before, Register()).ok
        cut_short += 1
    assert cut_short > 40


def test_a_spent_budget_is_undecided_and_undecided_is_red() -> None:
    """Blind appends that all overlap, told no place, and a read that none of their orders gives: nothing helps."""
    operations = [op("append", number, None, 0, 100, number) for number in range(12)]
    operations.append(op("read", None, (*range(11), 99), 101, 102, 50))
    result = check(operations, AppendList(), steps_max=5_000)
    assert result.verdict is Verdict.UNDECIDED
    assert not result.ok
    assert result.steps < 6_000
    assert "undecided" in str(result.failures[0])


def test_a_certain_failure_counts_more_than_an_undecided_one() -> None:
    undecided = [op("append", number, None, 0, 100, number) for number in range(12)]
    undecided.append(op("read", None, (*range(11), 99), 101, 102, 50))
    wrong = op("read", None, (1,), 0, 1)._replace(key="wrong")
    result = check([*undecided, wrong], AppendList(), steps_max=5_000)
    assert result.verdict is BAD
    assert {failure.verdict for failure in result.failures} == {BAD, Verdict.UNDECIDED}


def test_a_search_takes_few_steps() -> None:
    """What makes it fast, without a clock: about one question to the model per operation."""
    history = histories.pair(sample(Random(1), "register", Load(keys=10, per_key=500)))
    result = check(history.operations, Register())
    assert result.ok
    assert result.steps < 2 * result.operations


class Coin:
    """A model that may answer the same in two ways: a toss leaves the coin as it is or turns it."""

    start = "heads"

    def step(self, state: str, operation: Operation) -> tuple[str, ...]:
        if operation.kind == "toss":
            return ("heads", "tails")
        return (state,) if operation.result == state else ()


@pytest.mark.parametrize("seen", [["heads"], ["tails"], ["heads", "tails"], ["tails", "heads"]])
def test_every_way_of_a_choice_is_tried(seen: list[str]) -> None:
    toss, look = op("toss", None, None, 0, 1), op("look", None, "heads", 2, 3)
    looks = [look._replace(result=side, called=2 + 2 * at, returned=3 + 2 * at) for at, side in enumerate(seen)]
    assert check([toss, *looks], Coin()).ok is (len(seen) == 1)
    again = toss._replace(called=0, returned=9, process=2)
    assert check([toss, again, *looks], Coin()).ok


def test_one_long_operation_does_not_stop_the_search() -> None:
    operations = [op("write", number, number + 1, 10 * number, 10 * number + 5) for number in range(1, 1000)]
    operations.append(op("write", "slow", 1, 0, 20_000, 1))
    assert check(operations, Register()).ok


def test_many_unknown_outcomes_stay_cheap() -> None:
    history = histories.pair(sample(Random(5), "register", Load(per_key=1000, unknown=0.2)))
    assert history.unknown > 150
    result = check(history.operations, Register())
    assert result.ok
    assert result.steps < 200_000


def test_campaigns_of_unknown_outcome_are_tried_as_one() -> None:
    """A rival campaigns in vain for as long as the holder renews; once (lan, 601298) every set of these was tried."""
    held, tenure = ("a", 1), ("b", 20)
    operations = [op("campaign", "a", held, 0, 1)]
    for number in range(1, 20):
        at = 10 * number
        operations.append(op("campaign", "b", None, at, process=1))
        operations.append(op("renew", held, None, at + 1))
        operations.append(op("renew", held, True, at + 2, at + 8))
    seen = [
        op("observe", None, None, 200, 210),
        op("campaign", "b", tenure, 205, 220, 1),
        op("renew", tenure, True, 221, 222),
    ]
    for late, verdict in ((seen, GOOD), ([*seen, op("observe", None, held, 223, 224)], BAD)):
        result = check([*operations, *late], Lease())
        assert result.verdict is verdict
        assert result.steps < 2_000


def test_leases_with_many_unknown_outcomes_stay_cheap() -> None:
    for seed in range(12):
        load = Load(per_key=300, processes=6, unknown=0.1)
        history = histories.pair(sample(Random(f"lease{seed}"), "lease", load))
        result = check(history.operations, Lease())
        assert result.ok
        assert result.steps < 20_000
