"""Is there an order of the operations that explains every answer: the search for it.

The search is Wing and Gong's, with Lowe's memory of what was tried: take operations one by one, each between its call
and its return, run them through a sequential model, go back where no operation fits.

1. Keys are independent: each is searched on its own.
2. An operation may be next if it was called before the earliest return among those that were not taken. Operations
   are sorted by call, so the candidates begin at the first one not taken and end where a call is later than every
   return seen on the way.
3. What was taken is a number `low` below which everything was taken, and a set of bits counted from there: small,
   however long the history is. Together with the model's state it names a place of the search.
4. What fits and leaves the state as it is, is taken at once and for good: whatever order explains the rest also does
   with it in front. So reads and refusals cost no search.
5. Unknown outcomes have a set of bits of their own. They are tried last, only where they change the state, and need
   not be taken at all. Of those that are the same to a model (kind and argument) the one called first is taken first:
   it may stand wherever a later one may.
6. A place is not tried again with the same unknown outcomes taken as before, or with more: what explains the rest from
   there would have done so with fewer taken, too. (Of all points that were tried and from which the rest could be
   explained, look at the one nearest to the end: its next point was tried too, or one that is no worse.)
7. Each point has an earliest outstanding return. The latest of these over all points is where the history became
   impossible: before it, some order explains everything; with it, none does.
8. The search takes at most so many steps per key, a step being one question to the model; then it is UNDECIDED.

Figure: 50,000 operations of ten processes on each of 100 registers, 2 % of unknown outcome, took 0.2 to 0.3 s of CPU
on a busy machine of two cores (`python -m chaos check --self`). Leases cost more, as they may expire at any time, and
blind appends whose place nobody was told cost most; keep keys small.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from enum import Enum
from itertools import chain
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from controlplane.checking.histories import NEVER, Operation, Value

S = TypeVar("S", bound=Hashable)

STEPS_MAX = 2_000_000
"""Steps per key."""


class Verdict(Enum):
    """What a check found. Everything but LINEARIZABLE is a failure."""

    LINEARIZABLE = "linearizable"
    NOT_LINEARIZABLE = "not linearizable"
    UNDECIDED = "undecided"


class Model(Protocol[S]):
    """A sequential machine: what one process alone would see. States are hashable and never changed."""

    @property
    def start(self) -> S:
        """The state of a key that nobody touched."""

    def step(self, state: S, operation: Operation) -> tuple[S, ...]:
        """The states that may follow if `operation` happens now with its result; none: it cannot happen now.

        If the outcome is unknown, `result` means nothing: the states that may follow from any result. Only kind,
        argument and result count, not who asked or when. Kinds the model does not know raise `ValueError`.
        """


class Failure(NamedTuple):
    """A key that is not linearizable, or undecided, at the latest point that could be explained."""

    key: str
    verdict: Verdict
    placed: tuple[Operation, ...]
    """The longest explanation: these operations, in this order."""
    state: str
    """The model's state after them."""
    stuck: Operation
    """The answer that no order explains (of an undecided key: that this order does not)."""
    unplaced: tuple[Operation, ...]
    """Every answered operation that could have been next, and does not fit; `stuck` is one of them."""

    @property
    def window(self) -> tuple[Operation, ...]:
        """What to look at: the unplaced, whatever overlaps them, and what was placed last, by call."""
        begin = min(operation.called for operation in self.unplaced)
        near = [operation for operation in self.placed if operation.returned >= begin and not operation.unknown]
        shown = dict.fromkeys((*near[-_NEAR_MAX:], *self.placed[-_CONTEXT:], *self.unplaced))
        return tuple(sorted(shown, key=_called))

    def __str__(self) -> str:
        where = f"after {len(self.placed)} operations, in state {self.state}"
        return f"{self.key}: {self.verdict.value} {where}; {_words(self.stuck)} fits nowhere"


class Result(NamedTuple):
    """The verdict over all keys; UNDECIDED only if no key is certainly wrong."""

    verdict: Verdict
    operations: int
    keys: int
    steps: int
    failures: tuple[Failure, ...]

    @property
    def ok(self) -> bool:
        """Whether everything was explained."""
        return self.verdict is Verdict.LINEARIZABLE


def check(operations: Iterable[Operation], model: Model[S], *, steps_max: int = STEPS_MAX) -> Result:
    """Search each key for an order that explains its answers, in at most `steps_max` steps per key."""
    keys: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        keys[operation.key].append(operation)
    searches = [_Search(key, keys[key], model, steps_max) for key in sorted(keys)]
    failures = tuple(failure for search in searches if (failure := search.run()))
    verdicts = {failure.verdict for failure in failures}
    verdict = next((worse for worse in _WORST_FIRST if worse in verdicts), Verdict.LINEARIZABLE)
    return Result(verdict, sum(map(len, keys.values())), len(keys), sum(search.steps for search in searches), failures)


class _Point(NamedTuple, Generic[S]):
    """A point of the search, reached from `before` by taking `operations`."""

    before: _Point[S] | None
    operations: list[Operation]
    mark: _Mark[S]
    branches: Iterator[tuple[int, S]]
    """Which candidate may come next, known ones first, and the state after it."""


_Mark: TypeAlias = "tuple[int, int, int, S]"
"""What tells points apart: `low`, what was taken from there on, the unknown that were taken, the model's state."""


class _Search(Generic[S]):
    """The search of one key."""

    def __init__(self, key: str, operations: Sequence[Operation], model: Model[S], steps_max: int) -> None:
        self._key = key
        self._model = model
        self._steps_max = steps_max
        by_call = sorted(operations, key=_called)
        self._known = [operation for operation in by_call if not operation.unknown]
        self._unknown = [operation for operation in by_call if operation.unknown]
        self._same_before = _same_before(self._unknown)
        self._tried: dict[tuple[int, int, S], list[int]] = {}
        self._furthest: _Point[S] | None = None
        self._furthest_ns = -1
        self.steps = 0

    def run(self) -> Failure | None:
        """Nothing if an order was found."""
        point = self._arrive(None, [], (0, 0, 0, self._model.start))
        while point.mark[0] < len(self._known):
            if self.steps > self._steps_max:
                return self._failure(Verdict.UNDECIDED)
            branch = next(point.branches, None)
            if branch is not None:
                point = self._take(point, *branch)
            elif point.before is None:
                return self._failure(Verdict.NOT_LINEARIZABLE)
            else:
                point = point.before
        return None

    def _take(self, here: _Point[S], candidate: int, state: S) -> _Point[S]:
        """Follow a branch, unless it leads to where the search was before (rule 6)."""
        low, taken, unknown_taken, _ = here.mark
        if candidate < len(self._known):
            operation = self._known[candidate]
            mark = (*_settled(low, taken | 1 << (candidate - low)), unknown_taken, state)
        else:
            number = candidate - len(self._known)
            operation = self._unknown[number]
            mark = (low, taken, unknown_taken | 1 << number, state)
        if not self._is_new(mark):
            return here
        there = self._arrive(here, [operation], mark)
        return there if there.mark == mark or self._is_new(there.mark) else here

    def _is_new(self, mark: _Mark[S]) -> bool:
        low, taken, unknown_taken, state = mark
        tried = self._tried.get((low, taken, state))
        if tried is None:
            self._tried[low, taken, state] = [unknown_taken]
            return True
        if any(not fewer & ~unknown_taken for fewer in tried):
            return False
        tried[:] = [other for other in tried if unknown_taken & ~other]
        tried.append(unknown_taken)
        return True

    def _arrive(self, before: _Point[S] | None, operations: list[Operation], mark: _Mark[S]) -> _Point[S]:
        """Take all that fits and changes nothing (rule 4), and find where the search may go on."""
        low, taken, unknown_taken, state = mark
        known, step = self._known, self._model.step
        unchanged = (state,)
        branches: list[tuple[int, S]] = []
        earliest = NEVER
        for number in range(low, len(known)):
            operation = known[number]
            if operation.called > earliest:
                break
            if taken >> (number - low) & 1:
                continue
            self.steps += 1
            states = step(state, operation)
            if states == unchanged:
                operations.append(operation)
                taken |= 1 << (number - low)
                continue
            earliest = min(earliest, operation.returned)
            branches += ((number, after) for after in states)
        unknown = self._unknown_branches(unknown_taken, state, earliest)
        point = _Point(before, operations, (*_settled(low, taken), unknown_taken, state), chain(branches, unknown))
        if earliest > self._furthest_ns:
            self._furthest, self._furthest_ns = point, earliest
        return point

    def _unknown_branches(self, unknown_taken: int, state: S, earliest: int) -> Iterator[tuple[int, S]]:
        for number, operation in enumerate(self._unknown):
            if operation.called > earliest:
                break
            before = self._same_before[number]
            if not unknown_taken >> number & 1 and (before is None or unknown_taken >> before & 1):
                self.steps += 1
                for after in self._model.step(state, operation):
                    if after != state:
                        yield len(self._known) + number, after

    def _failure(self, verdict: Verdict) -> Failure:
        here = self._furthest
        assert here is not None, "there is always a first point"
        low, taken, _, state = here.mark
        later = enumerate(self._known[low:])
        outstanding = [operation for number, operation in later if not taken >> number & 1]
        stuck = min(outstanding, key=_returned)
        unplaced = tuple(operation for operation in outstanding if operation.called <= stuck.returned)
        return Failure(self._key, verdict, tuple(_path(here)), repr(state), stuck, unplaced)


def _same_before(unknown: Sequence[Operation]) -> list[int | None]:
    """For each of the `unknown`, the last one before it that is the same to a model."""
    last: dict[tuple[str, Value], int] = {}
    befores = []
    for number, operation in enumerate(unknown):
        same = operation.kind, operation.argument
        befores.append(last.get(same))
        last[same] = number
    return befores


def _settled(low: int, taken: int) -> tuple[int, int]:
    while taken & 1:
        taken >>= 1
        low += 1
    return low, taken


def _path(point: _Point[S]) -> list[Operation]:
    parts: list[list[Operation]] = []
    at: _Point[S] | None = point
    while at is not None:
        parts.append(at.operations)
        at = at.before
    return [operation for part in reversed(parts) for operation in part]


def _words(operation: Operation) -> str:
    asked = f"{operation.kind}({'' if operation.argument is None else repr(operation.argument)})"
    return f"process {operation.process}'s {asked} -> {operation.result!r}"


def _called(operation: Operation) -> int:
    return operation.called


def _returned(operation: Operation) -> int:
    return operation.returned


_WORST_FIRST = (Verdict.NOT_LINEARIZABLE, Verdict.UNDECIDED)
# How much of what was explained is shown with what was not.
_CONTEXT = 6
_NEAR_MAX = 40
