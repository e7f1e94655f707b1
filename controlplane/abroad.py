"""What a node knows of other regions: the partitions that they share, and how old its copies of them are.

All of it is read from the store, where the leader's followers of other regions put it, so every node of a region knows
the same. Only the time since a cursor moved is this node's own: ages are counted on its clock.

When an entry was planned that says how old a copy was then, a node cannot tell from when it applies it: that may be
much later, after a restart or a pause. But an entry is planned over what all entries before it made, so after they were
committed; and what is applied after the node's state was known to be current was committed after that. So an age is
counted from when the state was last known to be current before the cursor moved the time before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import ceil, inf

from controlplane.features import federation, moves, partitions
from controlplane.features.federation import AGE_UNKNOWN_MS
from controlplane.kernel import keys
from controlplane.kernel.machine import Changed
from controlplane.kernel.store import View
from controlplane.kernel.transaction import scope_of
from controlplane.v1.records_pb2 import Cursor, Partition
from controlplane.v1.state_pb2 import Event


class Abroad:
    """Kept up to date by `took`; `look` begins anew."""

    def __init__(self, region: str) -> None:
        system = scope_of(partitions.system(region))
        self.partitions: dict[str, Partition] = {}
        """Partitions of other regions that share them, by id, as their homes described them."""
        self.revisions: dict[str, int] = {}
        """When each of them was learned of or changed."""
        self.since = 0
        """The newest revision at which one was learned of or changed."""
        self.learned = system + keys.text(federation.FOREIGN.name)
        """How the keys of the records begin that describe them."""
        self._cursors = system + keys.text(federation.CURSOR.name)
        self._earlier: dict[str, list[Partition]] = {}
        self._seen: dict[str, tuple[float, Cursor]] = {}
        self._planned_after = -inf

    def look(self, view: View, now: float) -> None:
        """Learn from a store what was learned before."""
        self.partitions.clear()
        self.revisions.clear()
        self._earlier.clear()
        self._seen.clear()
        self._planned_after = -inf
        self.since = 0
        start, end = keys.children(keys.RECORD + self.learned)
        for _, packed in view.scan(start, end):
            self._learn(view, Event.FromString(packed))
        start, end = keys.children(keys.RECORD + self._cursors)
        for _, packed in view.scan(start, end):
            event = Event.FromString(packed)
            cursor = Cursor.FromString(event.value)
            # How long ago it was written is not known.
            cursor.age_ms = AGE_UNKNOWN_MS
            self._seen[keys.decode(event.key).name] = (now, cursor)

    def took(self, view: View, changed: Iterable[Changed], current_at: Callable[[], float]) -> None:
        """Take in what an entry changed; `current_at` tells when the state before it was last known to be current."""
        moved = []
        for each in changed:
            if each.key.startswith(self.learned):
                self._learn(view, each.event)
            elif each.key.startswith(self._cursors):
                moved.append(each.event)
        for event in moved:
            self._moved(event, self._planned_after)
        if moved:
            self._planned_after = max(self._planned_after, current_at())

    def everywhere(self) -> Iterator[Partition]:
        """All partitions of other regions, and what there are copies of from their earlier epochs."""
        for name in sorted(self.partitions):
            yield self.partitions[name]
            yield from self._earlier.get(name, ())

    def views(self, now: float) -> list[tuple[Cursor, int]]:
        """How far each other region was copied, and how old that is here, in milliseconds, by this node's store."""
        return [
            (cursor, min(ceil((now - seen) * 1000) + cursor.age_ms, AGE_UNKNOWN_MS))
            for _, (seen, cursor) in sorted(self._seen.items())
        ]

    def age_ms(self, partition: Partition, now: float) -> int:
        """How old the copy of a partition is."""
        if partition.withdrawn:
            return AGE_UNKNOWN_MS
        ages = (age for cursor, age in self.views(now) if (cursor.peer, cursor.reach) == _place(partition))
        return next(ages, AGE_UNKNOWN_MS)

    def _learn(self, view: View, event: Event) -> None:
        if not event.HasField("value"):
            return
        partition = Partition.FromString(event.value)
        self.partitions[partition.id] = partition
        self.revisions[partition.id] = event.revision
        self._earlier[partition.id] = [*_earlier_epochs(view, partition)]
        self.since = max(self.since, event.revision)

    def _moved(self, event: Event, planned_after: float) -> None:
        name, cursor, seen = keys.decode(event.key).name, Cursor.FromString(event.value), planned_after
        if seen == -inf:
            seen, cursor.age_ms = 0.0, AGE_UNKNOWN_MS
        if name in self._seen:
            before, known = self._seen[name]
            if before - known.age_ms / 1000 > seen - cursor.age_ms / 1000:
                # It only came nearer to what home was like then.
                seen, cursor.age_ms = before, known.age_ms
        self._seen[name] = (seen, cursor)


def _place(partition: Partition) -> tuple[str, int]:
    return partition.home, partition.reach


def _earlier_epochs(view: View, partition: Partition) -> Iterator[Partition]:
    """The partition as it was in earlier epochs of which there are copies: their stops are still in force."""
    for epoch in moves.epochs_before(view, partition):
        earlier = Partition()
        earlier.CopyFrom(partition)
        earlier.epoch = epoch
        yield earlier
