"""What must hold at every moment of a simulated run, and the one exception that says it does not.

The oracle sees everything: every disk, every log, every applied entry. It knows nothing of how the rules work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from math import inf
from typing import NamedTuple, Protocol

from chaos.sim_disk import Disk
from controlplane.replication import Role
from controlplane.replication.tail import Entry, Tail

# How far back logs are compared each time; what is older was compared before.
_MATCHED_BACK = 64


class Violation(Exception):
    """An invariant is broken; the text begins with its name."""


class Watched(Protocol):
    """A running node, as the oracle sees it."""

    name: str
    process: int
    tail: Tail

    @property
    def role(self) -> Role:
        """Its role."""


class _Committed(NamedTuple):
    entry: Entry
    term: int  # In which it was committed.


class Oracle:
    """Remembers what was committed, applied, acknowledged and observed, and compares."""

    def __init__(self, disks: dict[str, Disk]) -> None:
        self.counts: Counter[str] = Counter()
        self.max_commit = 0
        self.observed = 0  # The highest index any client has seen the effect of.
        self.applied_numbers: dict[int, int] = {}
        self._disks = disks
        self._leaders: dict[int, tuple[str, int]] = {}
        self._committed: dict[int, _Committed] = {}
        self._durable_at: object = None  # The disks' changes when what was committed was last looked for on them.
        self._acknowledged_to = 0
        self._applied: dict[int, tuple[int, bytes, int]] = {}

    def leads(self, node: Watched) -> None:
        """Election safety and leader completeness, when `node` has become leader."""
        term, tail = node.tail.term, node.tail
        known = self._leaders.setdefault(term, (node.name, node.process))
        if known != (node.name, node.process):
            raise Violation(f"ELECTION_SAFETY term {term}: {known[0]} and {node.name}")
        voters = [name for name, disk in self._disks.items() if name == node.name or disk.votes.get(term) == node.name]
        if 2 * len(voters) <= len(self._disks):
            raise Violation(f"MINORITY_LEADER {node.name} leads term {term}; on disk are the votes of {voters}")
        self.counts["elections"] += 1
        for index in range(tail.boundary_index + 1, self.max_commit + 1):
            known_entry = self._committed.get(index)
            if known_entry and known_entry.term < term and not tail.holds(index, known_entry.entry.term):
                raise Violation(
                    f"LEADER_COMPLETENESS {node.name} leads term {term} without {_place(known_entry.entry)}"
                )

    def looks(self, node: Watched) -> None:
        """A commit is on a majority of disks when the first node learns of it."""
        tail = node.tail
        if tail.commit <= self.max_commit:
            return
        for index in range(max(self.max_commit, tail.boundary_index) + 1, tail.commit + 1):
            entry = tail.entry(index)
            if not self._on_majority(entry):
                raise Violation(f"COMMIT_WITHOUT_MAJORITY {node.name} {_place(entry)}")
            self._committed[index] = _Committed(entry, tail.term)
            self.counts["commits"] += 1
        self.max_commit = tail.commit

    def _on_majority(self, entry: Entry) -> bool:
        # A disk that was replaced, or is about to be, lost its copy after it counted, and gets it back before it counts
        # again.
        held = 0
        for disk in self._disks.values():
            if disk.learner or disk.damaged or disk.holds(entry):
                held += 1
        return 2 * held > len(self._disks)

    def applies(self, name: str, entry: Entry, digest: int, number: int | None) -> None:
        """State-machine safety: every node applies the same entry at an index, and reaches the same running hash."""
        self.counts["applies"] += 1
        mine = (entry.term, entry.payload, digest)
        if self._applied.setdefault(entry.index, mine) != mine:
            raise Violation(f"STATE_MACHINE_SAFETY {name} applied another entry at {entry.index}")
        if number is not None:
            self.applied_numbers.setdefault(number, entry.index)

    def compares(self, name: str, index: int, digest: int) -> None:
        """A mark that arrived at `name` is that of the one history."""
        known = self._applied.get(index)
        if index and (known is None or known[2] != digest):
            raise Violation(f"REPLICA_DIVERGENCE seen by {name} at {index}")

    def still_durable(self) -> None:
        """What was committed is still on a majority of disks; looked for again only where something may have gone."""
        disks = self._disks.values()
        state = [(disk.life, disk.changes, disk.learner) for disk in disks]
        if state == self._durable_at:
            return
        # Up to here the stores of a majority cover everything.
        covered = sorted(
            inf if disk.learner or disk.damaged else max(disk.base.index, disk.boundary[0]) for disk in disks
        )
        for index in range(int(min(covered[(len(covered) - 1) // 2], self.max_commit)) + 1, self.max_commit + 1):
            known = self._committed.get(index)
            if known and not self._on_majority(known.entry):
                raise Violation(f"COMMITTED_LOST {_place(known.entry)} is on a minority of disks")
        self._durable_at = state

    def survives(self, name: str, tail: Tail) -> None:
        """What the process at `name` counted as durable is still on its disk after a crash."""
        disk = self._disks[name]
        for index in range(tail.boundary_index + 1, tail.durable + 1):
            if not disk.holds(tail.entry(index)):
                raise Violation(f"DURABLE_LOST {name} had {_place(tail.entry(index))} on disk before it crashed")

    def logs_match(self, nodes: Sequence[Watched]) -> None:
        """Log matching: two logs that agree on an entry's term at an index agree on everything below."""
        for a, b in combinations(nodes, 2):
            high = min(a.tail.last_index, b.tail.last_index)
            low = max(a.tail.boundary_index, b.tail.boundary_index, high - _MATCHED_BACK)
            agreed = False
            for index in range(high, low, -1):
                x, y = a.tail.entry(index), b.tail.entry(index)
                agreed = agreed or x.term == y.term
                if agreed and x != y:
                    raise Violation(f"LOG_MATCHING {a.name} and {b.name} differ at {index}, below an agreement")

    def acknowledged(self, number: int, index: int, floor: int) -> None:
        """An acknowledged write is applied, after everything that was seen before it was sent."""
        if self.applied_numbers.get(number) != index:
            raise Violation(f"ACKNOWLEDGED_LOST write {number} at {index}")
        if index <= floor:
            raise Violation(f"REAL_TIME_ORDER write {number} at {index}, but {floor} was seen before it began")
        self.observed = max(self.observed, index)
        self._acknowledged_to = max(self._acknowledged_to, index)

    def read(self, name: str, index: int, floor: int) -> None:
        """A read sees everything that was seen before it was sent."""
        if index < floor:
            raise Violation(f"STALE_READ at {name} of {index}, but {floor} was seen before it began")
        self.observed = max(self.observed, index)

    def definite_failures(self, numbers: Sequence[int]) -> None:
        """What was reported as certainly not done was not done."""
        for number in numbers:
            if number in self.applied_numbers:
                raise Violation(f"FALSE_FAILURE write {number} was applied at {self.applied_numbers[number]}")

    def everything_acknowledged(self, applied: Sequence[int]) -> None:
        """At the end every node has applied all that was acknowledged."""
        if min(applied) < self._acknowledged_to:
            raise Violation(f"ACKNOWLEDGED_LOST {self._acknowledged_to} was acknowledged; applied are {applied}")


def _place(entry: Entry) -> str:
    return f"entry {entry.index} of term {entry.term}"
