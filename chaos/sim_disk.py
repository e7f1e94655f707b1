"""A node's disk in the simulation: what is certain, and what a crash may still take.

The journal's operations wait until their batch is synced; a crash of the process may lose any suffix of what was not,
a batch in flight included, torn anywhere. The store writes at once but is not synced: a crash of the process leaves
all of it, a loss of power any prefix since its last sync.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import NamedTuple

from controlplane.replication.tail import Add, Commit, Cut, Entry, Meta, Op, Recovered, Reset, Trim


class Applied(NamedTuple):
    """One applied entry as the store writes it: where it stands, the running hash, and one put if there was one."""

    index: int  # type: ignore[assignment]  # Hides tuple.index, which nobody calls.
    term: int
    digest: int
    put: tuple[int, int] | None


class State(NamedTuple):
    """A whole state of the machine."""

    index: int  # type: ignore[assignment]  # Hides tuple.index, which nobody calls.
    term: int
    digest: int
    records: dict[int, int]


class Disk:
    """Journal and store of one node; `life` counts how often the disk was replaced."""

    def __init__(self, life: int = 0) -> None:
        self.life = life
        self.learner = life > 0
        self.boundary = (0, 0)
        self.entries: list[Entry] = []
        self.term = 0
        self.voted_for: str | None = None
        self.commit = 0
        self.waiting: deque[tuple[int, Op]] = deque()
        self.base = State(0, 0, 0, {})
        self.unsynced: list[Applied] = []

    # The journal.

    def sink(self, seq: int, op: Op) -> None:
        """Take an operation of the tail; it is not on disk yet."""
        self.waiting.append((seq, op))

    def sync(self, seq: int) -> None:
        """Write every operation up to `seq`."""
        while self.waiting and self.waiting[0][0] <= seq:
            self._write(self.waiting.popleft()[1])

    def recovered(self) -> Recovered:
        """What a restarting node reads."""
        return Recovered(*self.boundary, tuple(self.entries), self.term, self.voted_for, self.commit)

    def holds(self, entry: Entry) -> bool:
        """Whether `entry` would survive any crash here: in the journal, or in the store that covers it."""
        if self.base.index >= entry.index or self.boundary[0] >= entry.index:
            return True
        position = entry.index - self.boundary[0] - 1
        return position < len(self.entries) and self.entries[position] == entry

    def _write(self, op: Op) -> None:
        match op:
            case Add(index, term, payload):
                self.entries.append(Entry(index, term, payload))
            case Cut(from_index):
                del self.entries[from_index - self.boundary[0] - 1 :]
            case Meta(term, voted_for):
                self.term, self.voted_for = term, voted_for
            case Commit(index):
                self.commit = index
            case Trim(index, term):
                del self.entries[: index - self.boundary[0]]
                self.boundary = (index, term)
            case Reset(index, term):
                self.entries.clear()
                self.boundary = (index, term)

    # The store.

    def state(self) -> State:
        """The state as the running process sees it."""
        return _after(self.base, self.unsynced)

    def store_synced(self, index: int) -> None:
        """Everything applied up to `index` is durable."""
        count = sum(applied.index <= index for applied in self.unsynced)
        self.base = _after(self.base, self.unsynced[:count])
        del self.unsynced[:count]

    def install(self, state: State) -> None:
        """Replace the store by `state`, durably and at once."""
        self.base, self.unsynced = state, []

    # Crashes.

    def crash(self, random: Random, syncing_seq: int, *, power: bool) -> int:
        """The process dies, or with `power` the whole machine; return how many journal operations were lost."""
        survivors = self._survivors(random, syncing_seq)
        for _ in range(survivors):
            self._write(self.waiting.popleft()[1])
        lost = len(self.waiting)
        self.waiting.clear()
        kept = random.randint(0, len(self.unsynced)) if power else len(self.unsynced)
        self.base = _after(self.base, self.unsynced[:kept])
        self.unsynced = []
        return lost

    def _survivors(self, random: Random, syncing_seq: int) -> int:
        chance = random.random()
        if chance < 0.4:
            return 0
        if chance < 0.6:
            return sum(seq <= syncing_seq for seq, _ in self.waiting)
        return random.randint(0, len(self.waiting))


def _after(base: State, applied: list[Applied]) -> State:
    if not applied:
        return base
    records = dict(base.records)
    for one in applied:
        if one.put:
            records[one.put[0]] = one.put[1]
    return State(applied[-1].index, applied[-1].term, applied[-1].digest, records)
