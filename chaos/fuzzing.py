"""`python -m chaos fuzz`: every reader's share of bad input, in this process or in several.

With several jobs each kind's numbers are cut into as many ranges, and each range is a run in a process of its own, with
bounds of its own. A report says what all of them found together, and of their failures the one of the lowest number, so
that it does not depend on how many there were.
"""

from __future__ import annotations

import multiprocessing
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple, TextIO

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from chaos.fuzz import Outcome, feed_one, run
from chaos.fuzz_targets import TARGETS
from chaos.scratch import scratch

_TOLD_INPUTS = 100
"""How often a process says how far it is."""


@click.command("fuzz")
@click.option("--inputs", default=50_000, show_default=True, help="Of each kind.")
@click.option("--kind", "kinds", multiple=True, help="journal, wire, snapshot, region, rpc; all of them if not given.")
@click.option("--seed", default=1, show_default=True)
@click.option("--from", "first", default=0, show_default=True, help="Number of the first input.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), default=Path("build/fuzz"), show_default=True)
@click.option("--replay", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="Hand in this file.")
def fuzz_command(
    *, inputs: int, kinds: tuple[str, ...], seed: int, first: int, jobs: int, keep: Path, replay: Path | None
) -> None:
    """Hand spoiled input to every reader. Exit code 1 at the first that is not refused as it should be."""
    unknown = set(kinds) - set(TARGETS)
    if unknown:
        raise click.UsageError(f"no kind {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    if replay is not None and len(kinds) != 1:
        raise click.UsageError("--replay needs one --kind")
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=scratch()) as folder:
        if replay is not None:
            with closing(TARGETS[kinds[0]](Path(folder))) as target:
                found = [feed_one(target, kinds[0], replay.read_bytes())]
        else:
            found = _search(
                kinds or tuple(TARGETS), range(first, first + inputs), seed, jobs, Places(keep, Path(folder))
            )
    _report(found)
    for outcome in found:
        if outcome.failure:
            _save(outcome, keep)
    sys.exit(1 if any(outcome.failure for outcome in found) else 0)


class Places(NamedTuple):
    """Where what failed is kept, and where files are parsed."""

    keep: Path
    scratch: Path


class Share(NamedTuple):
    """What one process does: a range of one kind's inputs."""

    kind: str
    inputs: range
    seed: int

    def work(self, places: Places, seen: Callable[[int], None]) -> Outcome:
        """Hand the inputs in; `seen` hears how many were handed in since it was last called.

        The number under way stands in a file, should native code take the whole process down or hang.
        """
        name = f"{self.kind}-{self.inputs.start}"
        (places.scratch / name).mkdir()
        told = self.inputs.start
        with closing(TARGETS[self.kind](places.scratch / name)) as target, self.running(places).open("w") as running:

            def begins(number: int) -> None:
                nonlocal told
                _rewrite(running, repeat(self.kind, self.seed, number))
                if number - told >= _TOLD_INPUTS:
                    seen(number - told)
                    told = number

            found = run(target, self.kind, self.inputs, seed=self.seed, begins=begins)
        self.running(places).unlink()
        return found

    def running(self, places: Places) -> Path:
        """The file that says which input is under way."""
        return places.keep / f"{self.kind}-{self.inputs.start}-running"

    def ended(self, code: int | None, places: Places) -> Outcome:
        """What is known of a process that ended without a word."""
        command = self.running(places).read_text().strip() if self.running(places).exists() else "nothing"
        failure = f"the process ended with code {code}; under way: {command}"
        return Outcome(self.kind, self.seed, failure=failure)


def _rewrite(file: TextIO, line: str) -> None:
    """Lines only become longer, so nothing has to be cut off."""
    file.seek(0)
    file.write(line + "\n")
    file.flush()


def repeat(kind: str, seed: int, number: int) -> str:
    """Return the command that repeats one input."""
    return f"python -m chaos fuzz --kind {kind} --seed {seed} --from {number} --inputs 1"


def _search(kinds: Sequence[str], inputs: range, seed: int, jobs: int, places: Places) -> list[Outcome]:
    """Hand in the inputs of every kind, with a bar; one outcome per kind."""
    shares = [
        Share(kind, inputs[len(inputs) * job // jobs : len(inputs) * (job + 1) // jobs], seed)
        for kind in kinds
        for job in range(jobs)
    ]
    places.keep.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks = {kind: progress.add_task(kind, total=len(inputs)) for kind in kinds}

        def seen(share: Share, handed_in: int) -> None:
            progress.advance(tasks[share.kind], handed_in)

        found = list(outcomes([share for share in shares if share.inputs], jobs, places, seen))
    return [together([each for each in found if each.kind == kind]) for kind in kinds]


def outcomes(
    shares: Iterable[Share], jobs: int, places: Places, seen: Callable[[Share, int], None]
) -> Iterator[Outcome]:
    """Have every share worked, in this process or in `jobs` others. Whoever stops asking ends those."""
    if jobs == 1:
        for share in shares:
            yield share.work(places, partial(seen, share))
        return
    waiting = list(shares)
    workers: list[_Worker] = []
    try:
        while waiting or workers:
            while waiting and len(workers) < jobs:
                workers.append(_Worker(waiting.pop(0), places))
            ready = wait([worker.words for worker in workers])
            for worker in [each for each in workers if each.words in ready]:
                said = worker.hear()
                if isinstance(said, int):
                    seen(worker.share, said)
                    continue
                workers.remove(worker)
                yield said
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that works one share: a fresh interpreter, so that the memory it needs is that share's alone."""

    def __init__(self, share: Share, places: Places) -> None:
        context = multiprocessing.get_context("spawn")
        self.share = share
        self._places = places
        self.words, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_work, args=(share, places, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def hear(self) -> int | Outcome:
        """How many more were handed in, or what was found, after which the process is over."""
        try:
            said: int | Outcome = self.words.recv()
        except (EOFError, OSError):
            self._process.join()
            return self.share.ended(self._process.exitcode, self._places)
        if isinstance(said, Outcome):
            self._process.join()
        return said

    def end(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.join()


def _work(share: Share, places: Places, words: Connection[int | Outcome, None]) -> None:
    """Run in the process of a worker. It ends when nobody listens any more."""
    # A terminal interrupts everybody in front of it; the process that waits for this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        words.send(share.work(places, words.send))
    except BrokenPipeError:
        sys.exit(1)


def together(found: Sequence[Outcome]) -> Outcome:
    """One outcome of all shares of a kind."""
    failed = [each for each in found if each.failure]
    first = min(failed, key=lambda each: float("inf") if each.failed_at is None else each.failed_at, default=found[0])
    return Outcome(
        first.kind,
        first.seed,
        outcomes=sum((each.outcomes for each in found), Counter()),
        seconds=max(each.seconds for each in found),
        growth_bytes=max(each.growth_bytes for each in found),
        failed_at=first.failed_at,
        failure=first.failure,
        given=first.given,
    )


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
    print(f"kept: {path}; repeat: {repeat(outcome.kind, outcome.seed, outcome.failed_at)}")
