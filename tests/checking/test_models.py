"""Each model's own rules, one step at a time: what may follow, and what may not."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.checking.histories import NEVER, Operation, Value
from controlplane.checking.linearizability import Model, check
from controlplane.checking.models import MODELS, AppendList, Lease, Register, Switch

UNKNOWN = object()
A, B = ("a", 1), ("b", 2)


def after(model: Model[Any], *steps: tuple[str, Value, Any]) -> set[Any]:
    states = {model.start}
    for kind, argument, result in steps:
        unknown = result is UNKNOWN
        operation = Operation(0, "k", kind, argument, None if unknown else result, 0, NEVER if unknown else 1)
        states = {state for before in states for state in model.step(before, operation)}
    return states


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ([("read", None, None)], (0, None)),
        ([("create", "a", 1), ("create", "b", None), ("read", None, (1, "a"))], (1, "a")),
        ([("write", "a", 1), ("write", "a", 2), ("cas", (2, "b"), 3)], (3, "b")),
        ([("cas", (0, "a"), None)], (0, None)),
        ([("create", "a", UNKNOWN)], (1, "a")),
        ([("create", "a", 1), ("create", "b", UNKNOWN)], (1, "a")),
        ([("create", "a", 1), ("cas", (1, "b"), UNKNOWN), ("cas", (1, "c"), UNKNOWN)], (2, "b")),
    ],
)
def test_register_allows(steps: list[tuple[str, Value, Any]], state: object) -> None:
    assert after(Register(), *steps) == {state}


@pytest.mark.parametrize(
    "steps",
    [
        [("create", "a", None)],
        [("create", "a", 2)],
        [("create", "a", 1), ("create", "b", 2)],
        [("create", "a", 1), ("cas", (1, "b"), None)],
        [("create", "a", 1), ("cas", (2, "b"), 3)],
        [("cas", (0, "a"), 1)],
        [("create", "a", 1), ("read", None, (1, "b"))],
        [("create", "a", 1), ("read", None, None)],
    ],
)
def test_register_refuses(steps: list[tuple[str, Value, Any]]) -> None:
    assert after(Register(), *steps) == set()


HELD = ("campaign", "a", A)


@pytest.mark.parametrize(
    "steps",
    [
        [("observe", None, None), HELD, ("campaign", "a", A), ("campaign", "b", A), ("renew", A, True)],
        [HELD, ("resign", A, True), ("resign", A, False), ("renew", A, False), ("observe", None, None)],
        [HELD, ("resign", A, True), ("campaign", "b", B)],
        [HELD, ("renew", ("a", 7), False), ("renew", ("b", 1), False), ("renew", A, True)],
        # Nobody was told the fence of this tenure until it was seen.
        [("campaign", "a", UNKNOWN), ("observe", None, A), ("renew", A, True)],
        [("campaign", "a", UNKNOWN), ("campaign", "b", ("a", 5)), ("resign", ("a", 5), True)],
        [HELD, ("resign", A, UNKNOWN), ("campaign", "b", B)],
        [HELD, ("expire", None, UNKNOWN), ("campaign", "b", B), ("renew", A, False)],
    ],
)
def test_lease_allows(steps: list[tuple[str, Value, Any]]) -> None:
    assert after(Lease(spontaneous=False), *steps)
    assert after(Lease(), *steps)


@pytest.mark.parametrize(
    "steps",
    [
        [HELD, ("resign", A, True), ("campaign", "b", ("b", 1))],
        [HELD, ("resign", A, True), ("campaign", "b", A)],
        [HELD, ("campaign", "b", ("b", 1))],
        [HELD, ("observe", None, ("a", 2))],
        [HELD, ("observe", None, ("c", 1))],
        [HELD, ("resign", A, True), ("renew", A, True)],
        [HELD, ("resign", A, True), ("campaign", "b", B), ("observe", None, A)],
        [("campaign", "b", A)],
        [("renew", A, True)],
        [HELD, ("resign", A, True), ("campaign", "b", UNKNOWN), ("observe", None, ("b", 1))],
    ],
)
def test_lease_refuses(steps: list[tuple[str, Value, Any]]) -> None:
    assert after(Lease(spontaneous=False), *steps) == set()
    # Seen twice under two fences, a lease may have expired in between, but only if its holder campaigned again.
    assert after(Lease(), *steps) == set()


@pytest.mark.parametrize(
    "steps",
    [
        [HELD, ("campaign", "b", B)],
        [HELD, ("observe", None, None)],
        [HELD, ("renew", A, False)],
        [HELD, ("resign", A, False)],
        [HELD, ("campaign", "a", ("a", 2))],
    ],
)
def test_a_lease_that_ends_unseen_has_to_be_declared_or_allowed(steps: list[tuple[str, Value, Any]]) -> None:
    declared = [steps[0], ("expire", None, UNKNOWN), *steps[1:]]
    assert after(Lease(), *steps)
    assert after(Lease(spontaneous=False), *steps) == set()
    assert after(Lease(spontaneous=False), *declared)


def test_a_declared_end_may_come_late_and_only_once() -> None:
    def told(kind: str, argument: Value, result: Value, called: int) -> Operation:
        return Operation(0, "k", kind, argument, result, called, called + 1)

    history = [
        told("campaign", "a", A, 0),
        Operation(9, "k", "expire", None, None, 2, NEVER),
        told("renew", A, True, 4),
        told("campaign", "b", B, 6),
    ]
    model = Lease(spontaneous=False)
    assert check(history, model).ok
    assert not check([*history, told("campaign", "c", ("c", 3), 8)], model).ok
    assert not check(history[:1] + history[2:], model).ok


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ([("append", "a", 0), ("append", "b", 1), ("read", None, ("a", "b"))], ("a", "b")),
        ([("append", "a", None), ("append", "b", UNKNOWN), ("read", None, ("a", "b"))], ("a", "b")),
        ([("append", "a", 1)], None),
        ([("append", "a", 0), ("read", None, ())], None),
        ([("append", "a", 0), ("append", "b", 1), ("read", None, ("b", "a"))], None),
    ],
)
def test_list(steps: list[tuple[str, Value, Any]], state: object) -> None:
    assert after(AppendList(), *steps) == ({state} if state else set())


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ([("engage", None, True), ("engage", None, False), ("check", None, True)], True),
        ([("engage", None, True), ("release", None, True), ("check", None, False)], False),
        ([("engage", None, None), ("release", None, UNKNOWN), ("check", None, False)], False),
        ([("engage", None, False)], None),
        ([("release", None, True)], None),
        ([("engage", None, True), ("check", None, False)], None),
        ([("engage", None, True), ("release", None, True), ("check", None, True)], None),
    ],
)
def test_switch(steps: list[tuple[str, Value, Any]], state: object) -> None:
    assert after(Switch(), *steps) == (set() if state is None else {state})


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_does_not_know_is_an_error_and_no_verdict(name: str) -> None:
    with pytest.raises(ValueError, match="knows no operation 'dance'"):
        after(MODELS[name](), ("dance", None, None))


@pytest.mark.parametrize(
    ("model", "step"),
    [(Register(), ("cas", "a", 1)), (Lease(), ("campaign", "a", None)), (Lease(), ("renew", ("a", "b"), True))],
)
def test_arguments_of_another_shape_are_an_error(model: Model[Any], step: tuple[str, Value, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|whole number"):
        after(model, step)
