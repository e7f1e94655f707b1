"""A node's disk in the simulation: what is certain, and what a crash may still take.

The journal's operations wait until their batch is synced; a crash of the process may lose any suffix of what was not,
a batch in flight included, torn anywhere. The store writes at once but is not synced: a crash of the process leaves
all of it, a loss of power any prefix since its last sync. A full disk takes nothing more. A flipped bit in a row is
noticed when the row is read again, because CRC-32 notices every single one.

Two defects can be planted with `off`: "B7", a trim that rewrites what it keeps, so that a crash in the middle of it
takes a part of that too; "checksum", rows that are read without being checked.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import NamedTuple

from controlplane.errors import Fatal
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

    def __init__(self, life: int = 0, *, off: frozenset[str] = frozenset()) -> None:
        self.life = life
        self.learner = life > 0
        self.full = False
        self.damaged = ""  # Which row a bit flipped in.
        self.changes = 0  # How often something that stood here may have gone.
        self.votes: dict[int, str | None] = {}  # Every vote that was ever on this disk, by term.
        self._off = off
        self.boundary = (0, 0)
        self.entries: list[Entry] = []
        self.term = 0
        self.voted_for: str | None = None
        self.commit = 0
        self.waiting: deque[tuple[int, Op]] = deque()
        self.base = State(0, 0, 0, {})
        self.unsynced: list[Applied] = []

    def successor(self) -> Disk:
        """The empty disk that replaces this one; what votes the old one held stays known to the oracle."""
        disk = Disk(self.life + 1, off=self._off)
        disk.votes = self.votes
        return disk

    def takes(self) -> None:
        """Return if there is room for what is to be written; `Fatal` if not."""
        if self.full:
            raise Fatal("journal: cannot write: no space left on device. Free or replace the disk, then start again.")

    # The journal.

    def sink(self, seq: int, op: Op) -> None:
        """Take an operation of the tail; it is not on disk yet."""
        self.waiting.append((seq, op))

    def sync(self, seq: int) -> None:
        """Write every operation up to `seq`."""
        while self.waiting and self.waiting[0][0] <= seq:
            self._write(self.waiting.popleft()[1])

    def recovered(self) -> Recovered:
        """What a restarting node reads; `Fatal` when a row is damaged."""
        if self.damaged and "checksum" not in self._off:
            raise Fatal(f"journal is damaged: the checksum of {self.damaged} does not match")
        return Recovered(*self.boundary, tuple(self.entries), self.term, self.voted_for, self.commit)

    def holds(self, entry: Entry) -> bool:
        """Whether `entry` would survive any crash here: in the journal, or in the store that covers it."""
        if self.base.index >= entry.index or self.boundary[0] >= entry.index:
            return True
        position = entry.index - self.boundary[0] - 1
        return position < len(self.entries) and self.entries[position] == entry

    def flip(self, random: Random) -> None:
        """Flip one bit of a durable row: of an entry's payload or term, or of the row with term and commit index."""
        self.changes += 1
        if not self.entries or random.random() < 0.1:
            self.term ^= 1 << random.randrange(8)
            self.damaged = "the state row"
            return
        position = random.randrange(len(self.entries))
        entry = self.entries[position]
        if entry.payload and random.random() < 0.8:
            payload = bytearray(entry.payload)
            payload[random.randrange(len(payload))] ^= 1 << random.randrange(8)
            entry = entry._replace(payload=bytes(payload))
        else:
            entry = entry._replace(term=entry.term ^ (1 << random.randrange(4)))
        self.entries[position] = entry
        self.damaged = f"entry {entry.index}"

    def _write(self, op: Op) -> None:
        match op:
            case Add(index, term, payload):
                self.entries.append(Entry(index, term, payload))
            case Cut(from_index):
                self.changes += 1
                del self.entries[from_index - self.boundary[0] - 1 :]
            case Meta(term, voted_for):
                self.term, self.voted_for = term, voted_for
                # A disk that was replaced learns of the term anew; what the old one voted in it was voted.
                self.votes[term] = voted_for or self.votes.get(term)
            case Commit(index):
                self.commit = index
            case Trim(index, term):
                del self.entries[: index - self.boundary[0]]
                self.boundary = (index, term)
            case Reset(index, term):
                self.changes += 1
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
        self.changes += 1
        self.base, self.unsynced = state, []

    # Crashes.

    def crash(self, random: Random, syncing_seq: int, *, power: bool) -> int:
        """The process dies, or with `power` the whole machine; return how many journal operations were lost."""
        self.changes += 1
        survivors = self._survivors(random, syncing_seq)
        for _ in range(survivors):
            self._write(self.waiting.popleft()[1])
        lost = len(self.waiting)
        if "B7" in self._off and self.waiting:
            self._interrupt(self.waiting[0][1], random)
        self.waiting.clear()
        kept = random.randint(0, len(self.unsynced)) if power else len(self.unsynced)
        self.base = _after(self.base, self.unsynced[:kept])
        self.unsynced = []
        return lost

    def _interrupt(self, op: Op, random: Random) -> None:
        """Only with B7 off: the crash comes while a trim, done as clearing and adding again, is half done."""
        if isinstance(op, Trim):
            self._write(op)
            del self.entries[random.randint(0, len(self.entries)) :]

    def _survivors(self, random: Random, syncing_seq: int) -> int:
        chance = random.random()
        if "B7" in self._off:
            for position, (_, op) in enumerate(self.waiting):
                if isinstance(op, Trim):
                    return position
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
