"""`python -m chaos fuzz`: hand bad input to everything that reads, and see that it is refused or harmless.

1. An input is bytes, drawn from (seed, kind, number) alone, so that one number repeats it; what failed is saved too.
2. A target says what became of an input. Any exception that it does not expect is a failure, and so is an input that
   takes longer than `INPUT_S_MAX`, or memory that grows by more than `GROWTH_BYTES_MAX` after the first inputs.
3. A run ends at its first failure.
"""

from __future__ import annotations

import faulthandler
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType
from typing import Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

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
    for count, number in enumerate(inputs):
        if count == min(_WARM_INPUTS, len(inputs) // 2):
            least = _largest_bytes()
        begins(number)
        found.given = target.make(Random(f"{seed}/{kind}/{number}"))
        found.failure = _feed(target, found)
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
    found.failure = _feed(target, found)
    return found


def _feed(target: Target, found: Outcome) -> str:
    """What went wrong, or nothing."""
    try:
        with _at_most(INPUT_S_MAX):
            found.outcomes[target.feed(found.given)] += 1
    except (KeyboardInterrupt, SystemExit):
        raise
    # The boundary: whatever escapes a reader is what this looks for, panics of native code included.
    except BaseException:
        return traceback.format_exc(limit=-6).strip()
    return ""


class _TooSlow(Exception):
    """An input took too long."""


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def late(_signal: int, _frame: FrameType | None) -> None:
        raise _TooSlow(f"an input took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    rest = signal.setitimer(signal.ITIMER_REAL, seconds)
    # Native code that never comes back hears no signal: the process ends, and `running` says at which input.
    faulthandler.dump_traceback_later(2 * seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, *rest)
        signal.signal(signal.SIGALRM, before)


def _largest_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@click.command("fuzz")
@click.option("--inputs", default=50_000, show_default=True, help="Of each kind.")
@click.option("--kind", "kinds", multiple=True, help="journal, wire, snapshot, region, rpc; all of them if not given.")
@click.option("--seed", default=1, show_default=True)
@click.option("--from", "first", default=0, show_default=True, help="Number of the first input.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), default=Path("build/fuzz"), show_default=True)
@click.option("--replay", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Hand in this file.")
def fuzz_command(
    *, inputs: int, kinds: tuple[str, ...], seed: int, first: int, keep: Path, replay: Path | None
) -> None:
    """Hand spoiled input to every reader. Exit code 1 at the first that is not refused as it should be."""
    from chaos.fuzz_targets import TARGETS  # noqa: PLC0415 - the readers bring half of the product with them.

    unknown = set(kinds) - set(TARGETS)
    if unknown:
        raise click.UsageError(f"no kind {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    if replay is not None and len(kinds) != 1:
        raise click.UsageError("--replay needs one --kind")
    found = []
    for kind in kinds or TARGETS:
        with (
            tempfile.TemporaryDirectory(prefix="fuzz-", dir=scratch()) as folder,
            closing(TARGETS[kind](Path(folder))) as target,
        ):
            if replay is not None:
                found.append(feed_one(target, kind, replay.read_bytes()))
            else:
                found.append(_shown(target, kind, range(first, first + inputs), seed, keep))
    _report(found)
    for outcome in found:
        if outcome.failure:
            _save(outcome, keep)
    sys.exit(1 if any(outcome.failure for outcome in found) else 0)


def scratch() -> str | None:
    """Where files are parsed, not kept: in memory, if there is such a place."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a new folder of its own is made there.


def _shown(target: Target, kind: str, inputs: range, seed: int, keep: Path) -> Outcome:
    """Run with a bar. The number under way stands in a file, should native code take the whole process down or hang."""
    console = Console(stderr=True)
    keep.mkdir(parents=True, exist_ok=True)
    running = keep / f"{kind}-running"
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(kind, total=len(inputs))

        def begins(number: int) -> None:
            running.write_text(f"--kind {kind} --seed {seed} --from {number} --inputs 1\n")
            progress.update(task, completed=number - inputs.start)

        found = run(target, kind, inputs, seed=seed, begins=begins)
    running.unlink()
    return found


def _report(found: list[Outcome]) -> None:
    table = Table(title="Bad input")
    for column in ("kind", "inputs", "seconds", "largest growth", "what became of them"):
        table.add_column(column, justify="left" if column in ("kind", "what became of them") else "right")
    for outcome in found:
        became = ", ".join(f"{word} {count:,}" for word, count in sorted(outcome.outcomes.items()))
        became += f"[bold red] FAILED at {outcome.failed_at}[/]" if outcome.failure else ""
        growth = f"{outcome.growth_bytes / (1 << 20):.0f} MiB"
        table.add_row(outcome.kind, f"{outcome.inputs:,}", f"{outcome.seconds:.0f}", growth, became)
    Console().print(table)


def _save(outcome: Outcome, keep: Path) -> None:
    print(outcome.failure)
    if outcome.failed_at is None:
        return
    path = keep / f"{outcome.kind}-{outcome.seed}-{outcome.failed_at}.bin"
    path.write_bytes(outcome.given)
    again = f"python -m chaos fuzz --kind {outcome.kind} --seed {outcome.seed} --from {outcome.failed_at} --inputs 1"
    print(f"kept: {path}; repeat: {again}")
