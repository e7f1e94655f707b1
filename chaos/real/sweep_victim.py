"""A node's disk without its node: a new data folder with journal and store, and what a log does with them.

`python -m chaos.real.sweep_victim SEED STEPS` makes one run for each folder it is sent, in a process of its own, and
says how that ended: its exit code (`REFUSED` after a `Fatal`), and how many steps were finished. A step is one batch of
the journal, reported durable, and the application of what is committed by then. What a run does follows from the seed
alone, so that whoever sweeps knows what must be there afterwards.
"""

from __future__ import annotations

import mmap
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple, NoReturn

from controlplane.datadir import DataFolder, Standing, Start, open_folder
from controlplane.errors import Fatal
from controlplane.kernel.store import Batch
from controlplane.replication.journal import Journal
from controlplane.replication.tail import Commit, Entry, Meta, Op, Recovered, Tail
from controlplane.storage import RocksStore, Tuning

REFUSED = 3
APPLIED = b"applied"
NODES = ("n1", "n2", "n3", None)
# So small that tables are written and merged within a run.
TUNING = Tuning(cache_bytes=1 << 20, write_buffer_bytes=64 << 10)
_TRIM_EVERY = 7
_BLOCK_BYTES = 8192


class Step(NamedTuple):
    """One batch, what the journal holds after it, whether it was synced, and the store's sync and trim before it."""

    ops: tuple[Op, ...]
    after: Recovered
    synced: bool
    trimmed: bool


def steps(seed: int, count: int) -> Iterator[Step]:
    """What a run does, step by step."""
    random, ops = Random(seed), list[Op]()
    tail = Tail(Recovered(), lambda _, op: ops.append(op))
    for number in range(count):
        trimmed = number % _TRIM_EVERY == _TRIM_EVERY - 1
        if trimmed:
            tail.trim(tail.commit - 2)
        _act(tail, random)
        synced = not all(isinstance(op, Commit) for op in ops)
        yield Step(tuple(ops), _held(tail), synced, trimmed)
        ops.clear()


def _act(tail: Tail, random: Random) -> None:
    if random.random() < 0.1:
        tail.set_term(tail.term + 1, random.choice(NODES))
    if random.random() < 0.1 and tail.last_index > tail.commit:
        tail.cut(random.randint(tail.commit + 1, tail.last_index))
    for _ in range(random.choice((0, 1, 1, 2, 5))):
        payload = random.randbytes(random.choice((0, 40, 400, 4000)))
        tail.add(Entry(tail.last_index + 1, max(tail.term, tail.last_term), payload))
    tail.set_commit(random.randint(tail.commit, tail.last_index))


def _held(tail: Tail) -> Recovered:
    entries = tuple(tail.entry(index) for index in range(tail.boundary_index + 1, tail.last_index + 1))
    return Recovered(tail.boundary_index, tail.boundary_term, entries, tail.term, tail.voted_for, tail.commit)


def key(index: int) -> bytes:
    """Where the store keeps what applying an entry came to."""
    return b"k%08d" % index


def begun(folder: Path) -> DataFolder:
    """The data folder, opened as an operator does who wants a new node: made by `--bootstrap`, then without a flag."""
    start = Start.NORMAL if (folder / "IDENTITY").exists() else Start.BOOTSTRAP
    return open_folder(folder, fleet="fleet", region="region", node="n1", start=start)


def run(folder: Path, plan: list[Step], done: mmap.mmap) -> None:
    """Make a node, have it join, do all steps; `done` counts them. Raises `Fatal` when the disk refuses."""
    data = begun(folder)
    journal, store = Journal(data.journal), RocksStore(data.store, TUNING)
    journal.write([Meta(0, None)])
    data.stand(Standing.MEMBER)
    applied = 0
    for step in plan:
        if step.trimmed:
            store.sync()
        journal.write(step.ops)
        done[0:8] = (int.from_bytes(done[0:8], "big") + 1).to_bytes(8, "big")
        held = step.after
        for index in range(applied + 1, held.commit + 1):
            entry = held.entries[index - held.boundary_index - 1]
            store.commit(Batch(puts={key(index): entry.payload[:_BLOCK_BYTES], APPLIED: b"%d" % index}))
            applied = index


def _forked(folder: Path, plan: list[Step]) -> tuple[int, int]:
    done = mmap.mmap(-1, 8)
    child = os.fork()
    if child == 0:
        _end(folder, plan, done)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, int.from_bytes(done[0:8], "big")


def _end(folder: Path, plan: list[Step], done: mmap.mmap) -> NoReturn:
    code = 1
    try:
        run(folder, plan, done)
        code = 0
    except Fatal:
        code = REFUSED
    finally:
        if code == 1:
            traceback.print_exc()
        # A forked process: nothing of its parent's is its to tidy up, nor is a database that may be beyond it.
        os._exit(code)


def main() -> None:
    """Make a run for each folder that comes in."""
    plan = list(steps(int(sys.argv[1]), int(sys.argv[2])))
    for line in sys.stdin:
        code, done = _forked(Path(line.strip()), plan)
        sys.stdout.write(f"{code} {done}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
