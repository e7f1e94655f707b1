"""What one client alone would see: sequential models, written from the promises and not from the code.

| model | kind | argument | result |
|---|---|---|---|
| `Register` | create | value | version 1, or None: it exists |
| | write | value | the new version |
| | cas | (version, value) | the new version, or None: it is another version, or absent |
| | read | | (version, value), or None: absent |
| `Lease` | campaign | holder | (holder, fence) of who holds it now, be it somebody else |
| | renew, resign | (holder, fence) | True, or False: not held under this fence |
| | observe | | (holder, fence), or None: nobody |
| | expire | | True. Ask this with an unknown outcome to declare that a lease may end from here on |
| `AppendList` | append | value | its place, from 0; or None: not told |
| | read | | all values, in order |
| `Switch` | engage, release | | True if that changed something, False if not; or None: not told |
| | check | | whether it is engaged |

A refusal by the rules is an answer, and has to be justified by the state. What an operation could have done when nobody
knows its outcome is modelled as well. Keys of a lease are elections, of a switch its scopes. A holder is whatever names
a tenure's owner: a person and a process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from controlplane.checking.histories import Operation, Value
from controlplane.checking.linearizability import Model

Versioned: TypeAlias = tuple[int, Value]
"""Version (0: absent) and value."""
Held: TypeAlias = "tuple[Value, int | None, int]"
"""Holder or None, its fence (None while nobody was told it), and the greatest fence that anybody was told."""


class Register:
    """A value with a version that grows by one per write."""

    start: Versioned = (0, None)

    def step(self, state: Versioned, operation: Operation) -> tuple[Versioned, ...]:
        """See `Model.step`."""
        kind, argument = operation.kind, operation.argument
        if kind == "read":
            return (state,) if operation.unknown or operation.result == (state if state[0] else None) else ()
        if kind == "cas":
            expected, value = _two(argument)
            written = expected == state[0] > 0
        elif kind in ("create", "write"):
            value, written = argument, kind == "write" or not state[0]
        else:
            raise _unknown_kind("register", kind)
        after = (state[0] + 1, value) if written else state
        return (after,) if operation.unknown or operation.result == (after[0] if written else None) else ()


class Lease:
    """At most one holder; a new tenure has a fence (a whole number) beyond all earlier ones.

    A lease ends when it is resigned or when it expires. By default it may expire at any time, which shows only in that
    others are elected or nobody is seen to hold it. With `spontaneous=False` it ends only by an operation "expire".
    """

    start: Held = (None, None, 0)

    def __init__(self, *, spontaneous: bool = True) -> None:
        self._spontaneous = spontaneous
        self._kinds: dict[str, Callable[[Held, Operation], tuple[Held, ...]]] = {
            "campaign": self._campaign,
            "renew": self._renew,
            "resign": self._resign,
            "observe": self._observe,
            "expire": lambda state, _: (_ended(state),),
        }

    def step(self, state: Held, operation: Operation) -> tuple[Held, ...]:
        """See `Model.step`."""
        kind = self._kinds.get(operation.kind)
        if kind is None:
            raise _unknown_kind("lease", operation.kind)
        # By the time of the operation the lease may have expired: its result tells.
        befores = (state, _ended(state)) if self._spontaneous and state[0] is not None else (state,)
        return tuple(after for before in befores for after in kind(before, operation))

    def _campaign(self, state: Held, operation: Operation) -> tuple[Held, ...]:
        holder, _, greatest = state
        if operation.unknown:
            return (state,) if holder is not None else ((operation.argument, None, greatest),)
        told_holder, told_fence = _tenure(operation.result)
        if holder is not None:
            return _seen(state, told_holder, told_fence)
        elected = told_holder == operation.argument and told_fence > greatest
        return ((told_holder, told_fence, told_fence),) if elected else ()

    def _renew(self, state: Held, operation: Operation) -> tuple[Held, ...]:
        held = _seen(state, *_tenure(operation.argument))
        if operation.unknown:
            return (state,)
        if operation.result is True:
            return held
        # Nobody was told this tenure's fence yet: it may be another one than the caller's.
        return () if held and state[1] is not None else (state,)

    def _resign(self, state: Held, operation: Operation) -> tuple[Held, ...]:
        held = _seen(state, *_tenure(operation.argument))
        if operation.unknown:
            return tuple(map(_ended, held))
        return tuple(map(_ended, held)) if operation.result is True else self._renew(state, operation)

    def _observe(self, state: Held, operation: Operation) -> tuple[Held, ...]:
        if operation.unknown:
            return (state,)
        if operation.result is None:
            return (state,) if state[0] is None else ()
        return _seen(state, *_tenure(operation.result))


class AppendList:
    """A list that only grows at its end."""

    start: tuple[Value, ...] = ()

    def step(self, state: tuple[Value, ...], operation: Operation) -> tuple[tuple[Value, ...], ...]:
        """See `Model.step`."""
        if operation.kind == "append":
            fits = operation.unknown or operation.result is None or operation.result == len(state)
            return ((*state, operation.argument),) if fits else ()
        if operation.kind == "read":
            return (state,) if operation.unknown or operation.result == state else ()
        raise _unknown_kind("list", operation.kind)


class Switch:
    """A kill switch: engaged until it is released."""

    start = False

    def step(self, state: bool, operation: Operation) -> tuple[bool, ...]:
        """See `Model.step`."""
        if operation.kind == "check":
            return (state,) if operation.unknown or operation.result is state else ()
        if operation.kind not in ("engage", "release"):
            raise _unknown_kind("switch", operation.kind)
        after = operation.kind == "engage"
        fits = operation.unknown or operation.result is None or operation.result is (state != after)
        return (after,) if fits else ()


MODELS: Final[Mapping[str, Callable[[], Model[Any]]]] = {
    "register": Register,
    "lease": Lease,
    "lease-declared": lambda: Lease(spontaneous=False),
    "list": AppendList,
    "switch": Switch,
}
"""Every model by the name it has on a command line."""


def _seen(state: Held, holder: Value, fence: int) -> tuple[Held, ...]:
    """The state, if that is who holds it: a fence that nobody was told becomes known by this."""
    held_by, known, greatest = state
    if held_by is None or held_by != holder or (fence <= greatest if known is None else fence != known):
        return ()
    return ((holder, fence, fence),)


def _ended(state: Held) -> Held:
    return (None, None, state[2])


def _tenure(value: Value) -> tuple[Value, int]:
    holder, fence = _two(value)
    if not isinstance(fence, int):
        raise ValueError(f"a fence is a whole number, not {fence!r}")
    return holder, fence


def _two(value: Value) -> tuple[Value, Value]:
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(f"two values are expected, not {value!r}")
    return value[0], value[1]


def _unknown_kind(model: str, kind: str) -> ValueError:
    return ValueError(f"the {model} knows no operation {kind!r}")
