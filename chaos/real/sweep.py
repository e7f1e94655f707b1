"""One fault at every call that a disk sees: tear each write, end at each sync, fail each once; then look what is there.

A run of a real data folder, journal and store (`sweep_victim`), from the first moment of a new node on, is made again
and again, each time with one fault at the next call. Afterwards, and after a loss of power where that belongs to it:

1. The folder opens as if nothing had happened: without a flag, or with `--bootstrap` if it was not made yet.
2. The journal opens, and holds what it held after the last step reported durable, or after the one that was under way.
   Batches of nothing but commit indexes are not synced, and may be missing.
3. The store opens, holds the results of entries 1 to some index without a gap, and the journal holds what comes next.
4. A disk that refuses ends the run with `Fatal`, if it is noticed at all, and with nothing else.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self

import click
from rich.console import Console
from rich.progress import Progress

from chaos.real import Unsupported
from chaos.real.commands import SKIPPED_CODE
from chaos.real.disks import drop_unsynced
from chaos.real.shim import Orders, Shim, build
from chaos.real.sweep_victim import APPLIED, REFUSED, TUNING, Step, begun, key, steps
from chaos.scratch import scratch
from controlplane.datadir import DataFolder, Standing
from controlplane.errors import Fatal
from controlplane.replication.journal import Journal
from controlplane.replication.tail import Recovered
from controlplane.storage import RocksStore

_TEAR_BYTES: Final = (0, 1, 6, 7, 8, 30, 100, 1000)
_ENDS: Final = {0: "done", REFUSED: "Fatal", -9: "killed"}
_NEVER: Final = 1 << 60
_END_TIMEOUT_S: Final = 10.0


Call = Literal["write", "log", "sync"]


class Kind(NamedTuple):
    """A fault at one call: at which calls, what happens there, and whether the power goes with it."""

    name: str
    at: Call
    orders: Callable[[Random], Orders]
    power: bool


KINDS: Final = (
    Kind("tear", "log", lambda random: Orders(tear_after_bytes=random.choice(_TEAR_BYTES)), power=False),
    Kind("tear, power gone", "log", lambda random: Orders(tear_after_bytes=random.choice(_TEAR_BYTES)), power=True),
    Kind("end at sync, power gone", "sync", lambda _: Orders(sync_kills=1), power=True),
    Kind("sync fails, power gone", "sync", lambda _: Orders(sync_errno=errno.EIO, hit_calls=1), power=True),
    Kind("no room", "write", lambda _: Orders(write_errno=errno.ENOSPC, hit_calls=1), power=False),
)


@dataclass(slots=True)
class Swept:
    """What a sweep found: cases by kind and by how the run ended, and what was wrong."""

    cases: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class Victim:
    """The process under the shim that makes the runs, in a folder of its own."""

    def __init__(self, folder: Path, seed: int, count: int) -> None:
        self.shim = Shim(build(folder), folder / "shim")
        argv = [*self.shim.command, sys.executable, "-m", "chaos.real.sweep_victim", str(seed), str(count)]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate(timeout=_END_TIMEOUT_S)
        self.shim.close()

    def run(self, folder: Path, orders: Orders) -> tuple[int, int]:
        """Make one run in `folder` under `orders`; return its exit code, and how many steps were reported durable."""
        folder.mkdir()
        self.shim.forget_files()
        self.shim.order(orders, folder)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{folder}\n")
        self._process.stdin.flush()
        said = self._process.stdout.readline().split()
        self.shim.order(Orders())
        return int(said[0]), int(said[1])


class Sweep:
    """All cases of one run, in `folder`; those that went wrong leave their folders there. Raises `Unsupported`."""

    def __init__(self, folder: Path, *, seed: int, count: int) -> None:
        self.found = Swept()
        self._folder, self._seed, self._count = folder, seed, count
        self._plan, self._random = list(steps(seed, count)), Random(seed)

    def run(self, every: int, tell: Callable[[int, int], None]) -> Swept:
        """Try every call, or one in `every`; `tell` hears how many of how many are done."""
        with Victim(self._folder, self._seed, self._count) as victim:
            cases = list(self._cases(_calls(victim, self._folder / "whole"), every))
            for number, (kind, call) in enumerate(cases, start=1):
                self._try(victim, self._folder / f"{number:06}", kind, call)
                tell(number, len(cases))
        return self.found

    def _cases(self, calls: Mapping[Call, int], every: int) -> Iterator[tuple[Kind, int]]:
        for kind in KINDS:
            for call in range(self._random.randrange(every), calls[kind.at], every):
                yield kind, call

    def _try(self, victim: Victim, folder: Path, kind: Kind, call: int) -> None:
        code, done = victim.run(folder, replace(kind.orders(self._random), skip_calls=call))
        if kind.power:
            drop_unsynced(folder, victim.shim.durable(), self._random)
        ended = _ENDS.get(code, f"code {code}")
        self.found.cases[kind.name, ended] += 1
        try:
            problem = wrong_with(folder, self._plan, done) if code in _ENDS else "that is not how a node may end"
        except Fatal as refusal:
            problem = str(refusal)
        if problem:
            self.found.problems.append(f"{kind.name} at call {call}, {ended} after {done} steps: {problem} [{folder}]")
        else:
            shutil.rmtree(folder)


def _calls(victim: Victim, folder: Path) -> dict[Call, int]:
    """How many calls a run makes of which nothing fails."""
    seen: dict[Call, int] = {}
    armed: dict[Call, Orders] = {"write": Orders(write_errno=errno.ENOSPC), "log": Orders(tear_after_bytes=0)}
    for at, orders in armed.items():
        before = victim.shim.counts()
        code, _ = victim.run(folder, replace(orders, skip_calls=_NEVER))
        assert code == 0
        after = victim.shim.counts()
        seen |= {at: after.writes_seen - before.writes_seen, "sync": after.syncs - before.syncs}
        shutil.rmtree(folder)
    if not all(seen.values()):
        raise Unsupported(f"the library between a process and its disk sees nothing: {seen}")
    return seen


def wrong_with(folder: Path, plan: Sequence[Step], done: int) -> str:
    """What is wrong with what a run left, if anything is. Raises `Fatal` if it cannot be opened."""
    with closing(begun(folder)) as data:
        return _problem(data, plan, done)


def _problem(data: DataFolder, plan: Sequence[Step], done: int) -> str:
    journal = Journal(data.journal)
    try:
        held = journal.recover()
        if data.identity.standing is Standing.MEMBER and journal.empty:
            return "a member's journal was never written"
    finally:
        journal.close()
    if held not in _possible(plan, done):
        return f"the journal holds {held.boundary_index}..{held.boundary_index + len(held.entries)} of another state"
    store = RocksStore(data.store, TUNING)
    try:
        return _store_problem(store, held, plan)
    finally:
        store.close()


def _possible(plan: Sequence[Step], done: int) -> list[Recovered]:
    """What the journal may hold after so many steps were reported: since the last one that was synced, and one more."""
    states = [Recovered(), *(step.after for step in plan)]
    sure = max((number for number in range(1, done + 1) if plan[number - 1].synced), default=0)
    return states[sure : done + 2]


def _store_problem(store: RocksStore, held: Recovered, plan: Sequence[Step]) -> str:
    applied = int(store.get(APPLIED) or b"0")
    missing = [index for index in range(1, applied + 1) if store.get(key(index)) is None]
    beyond = sum(1 for _ in store.scan(key(applied + 1), key(10**8 - 1)))
    if missing or beyond:
        return f"the store has applied {applied}, but lacks {missing[:3]} and has {beyond} beyond"
    if applied < held.boundary_index:
        return f"the store has applied {applied}, and the journal begins after {held.boundary_index}"
    if applied > held.boundary_index + len(held.entries):
        return f"the store has applied {applied}, which the journal does not know"
    known = {entry.index: entry.payload for step in plan for entry in step.after.entries if entry.index <= held.commit}
    wrong = [index for index in range(1, applied + 1) if index in known and store.get(key(index)) != known[index]]
    return f"the store holds something else at {wrong[:3]}" if wrong else ""


@click.command("disks")
@click.option("--steps", "count", type=click.IntRange(1), default=60, show_default=True, help="Batches of one run.")
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Hit every so manieth call only.")
@click.option("--seed", default=1, show_default=True, help="What a run does follows from it.")
def disks_command(*, count: int, every: int, seed: int) -> None:
    """Fail, tear and end at every single call that the journal and the store make to their disk."""
    console = Console()
    # In memory: what a disk keeps is decided by the shim, and a real one takes most of the time with syncs.
    folder = Path(tempfile.mkdtemp(prefix="chaos-disks-", dir=scratch()))
    try:
        with Progress(console=console, transient=True) as progress:
            task = progress.add_task("cases")
            swept = Sweep(folder, seed=seed, count=count).run(
                every, lambda done, of: progress.update(task, completed=done, total=of)
            )
    except Unsupported as why:
        console.print(f"[bold yellow]SKIPPED[/]: {why}")
        sys.exit(SKIPPED_CODE)
    for (kind, ended), cases in sorted(swept.cases.items()):
        console.print(f"{kind}: {ended} {cases}")
    console.print(f"cases {swept.cases.total()}, wrong {len(swept.problems)}")
    for problem in swept.problems:
        console.print(problem, markup=False)
    if swept.problems:
        console.print(f"again: python -m chaos disks --steps {count} --every {every} --seed {seed}", markup=False)
        sys.exit(1)
    shutil.rmtree(folder)
