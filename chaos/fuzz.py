"""Hand bad input to a reader, and see that it is refused or harmless. `fuzzing` has the command.

1. An input is bytes, drawn from (seed, kind, number) alone, so that one number repeats it; what failed is saved too.
2. A target says what became of an input. Any exception that it does not expect is a failure, and so is an input that
   takes longer than `INPUT_S_MAX`, or memory that grows by more than `GROWTH_BYTES_MAX` after the first inputs.
3. A run ends at its first failure.
"""

from __future__ import annotations

import faulthandler
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from types import FrameType, TracebackType
from typing import Protocol, Self

INPUT_S_MAX = 20
"""One input, on a machine that is busy with other things as well."""
GROWTH_BYTES_MAX = 256 << 20
"""The largest the process ever was, beyond what it was after the first inputs."""
_WARM_INPUTS = 100


class Wrong(AssertionError):
    """An input was taken for something that it is not."""


class Target(Protocol):
    """A reader, and where its inputs come from."""

    def make(self, random: Random) -> bytes:
        """An input, mostly a spoiled sample."""

    def feed(self, given: bytes) -> str:
        """What became of an input, in a word. Raises `Wrong` for what must not be; anything else is a failure too."""

    def close(self) -> None:
        """Give up what it holds."""


@dataclass
class Outcome:
    """What a run of one kind found."""

    kind: str
    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    growth_bytes: int = 0
    failed_at: int | None = None
    failure: str = ""
    given: bytes = b""

    @property
    def inputs(self) -> int:
        """How many were handed in."""
        return self.outcomes.total()


def run(
    target: Target,
    kind: str,
    inputs: range,
    *,
    seed: int,
    growth_bytes_max: int = GROWTH_BYTES_MAX,
    begins: Callable[[int], None] = lambda _: None,
) -> Outcome:
    """Hand in the inputs of these numbers, up to the first failure; `begins` hears of each before it is handed in."""
    found = Outcome(kind, seed)
    begin = time.monotonic()
    least = None
    with _Watchdog() as watchdog:
        for count, number in enumerate(inputs):
            if count == min(_WARM_INPUTS, len(inputs) // 2):
                least = _largest_bytes()
            begins(number)
            found.given = target.make(Random(f"{seed}/{kind}/{number}"))
            found.failure = _feed(target, found, watchdog)
            found.growth_bytes = _largest_bytes() - least if least is not None else 0
            if not found.failure and found.growth_bytes > growth_bytes_max:
                found.failure = f"memory grew by {found.growth_bytes >> 20} MiB"
            if found.failure:
                found.failed_at = number
                break
    found.seconds = time.monotonic() - begin
    return found


def feed_one(target: Target, kind: str, given: bytes) -> Outcome:
    """Hand in one input, as it was saved."""
    found = Outcome(kind, 0, given=given)
    with _Watchdog() as watchdog:
        found.failure = _feed(target, found, watchdog)
    return found


def _feed(target: Target, found: Outcome, watchdog: _Watchdog) -> str:
    """What went wrong, or nothing."""
    try:
        with watchdog.one_input():
            found.outcomes[target.feed(found.given)] += 1
    except (KeyboardInterrupt, SystemExit):
        raise
    # The boundary: whatever escapes a reader is what this looks for, panics of native code included.
    except BaseException:
        return traceback.format_exc(limit=-6).strip()
    return ""


class _TooSlow(Exception):
    """An input took too long."""


class _Watchdog:
    """Ends an input that takes too long, without a thread for each one."""

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGALRM, _late)
        self._rest = signal.getitimer(signal.ITIMER_REAL)
        self._armed_at: float | None = None
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, *self._rest)
        signal.signal(signal.SIGALRM, self._before)

    @contextmanager
    def one_input(self) -> Iterator[None]:
        """Raises `_TooSlow` in an input that takes more than `INPUT_S_MAX`."""
        now = time.monotonic()
        if self._armed_at is None or now - self._armed_at > INPUT_S_MAX:
            # Native code that never comes back hears no signal: the process ends, and `running` says at which input.
            # This starts a thread, so it is armed for a while and not for each input.
            faulthandler.dump_traceback_later(3 * INPUT_S_MAX, exit=True, file=2)
            self._armed_at = now
        signal.setitimer(signal.ITIMER_REAL, INPUT_S_MAX)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def _late(_signal: int, _frame: FrameType | None) -> None:
    raise _TooSlow(f"an input took more than {INPUT_S_MAX} s")


def _largest_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
