"""Where state lives: an ordered map from bytes to bytes that changes by whole batches only.

`Store` has two implementations in daily use: `MemoryStore` here, and `storage.RocksStore`. `Overlay` is a view of a
store with changes on top that nobody else sees: what a leader plans over.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

Row = tuple[bytes, bytes]


@dataclass(slots=True)
class Batch:
    """Changes that happen together: first the range deletes, then the deletes, then the puts."""

    puts: dict[bytes, bytes] = field(default_factory=dict)
    deletes: set[bytes] = field(default_factory=set)
    ranges: list[tuple[bytes, bytes]] = field(default_factory=list)


class View(Protocol):
    """Something that can be read."""

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, or None."""

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Row]:
        """Rows with start ≤ key < end in order of keys, or from the top down.

        Valid only until the next commit; a caller that stops early closes the iterator by dropping it.
        """


class StoreSnapshot(View, Protocol):
    """A consistent view that later commits do not touch. Usable from one other thread."""

    def close(self) -> None:
        """Give up what the snapshot pins."""


class Store(View, Protocol):
    """A view that one owner may change."""

    def commit(self, batch: Batch) -> None:
        """Make `batch` visible, whole; after a crash it is there whole or not at all, and so is all before it."""

    def snapshot(self) -> StoreSnapshot:
        """The store as it is now."""


class MemoryStore:
    """A `Store` in a dictionary and a sorted list. Nothing outlives the process."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._order: list[bytes] = []

    def get(self, key: bytes) -> bytes | None:
        """See `View`."""
        return self._values.get(key)

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Row]:
        """See `View`."""
        keys = self._between(start, end)
        for key in reversed(keys) if reverse else keys:
            yield key, self._values[key]

    def commit(self, batch: Batch) -> None:
        """See `Store`."""
        for start, end in batch.ranges:
            for key in self._between(start, end):
                self._delete(key)
        for key in batch.deletes:
            self._delete(key)
        for key, value in batch.puts.items():
            if key not in self._values:
                bisect.insort(self._order, key)
            self._values[key] = value

    def snapshot(self) -> MemoryStore:
        """See `Store`. A copy."""
        copy = MemoryStore()
        copy._values, copy._order = dict(self._values), list(self._order)
        return copy

    def close(self) -> None:
        """See `StoreSnapshot`."""

    def _between(self, start: bytes, end: bytes) -> list[bytes]:
        return self._order[bisect.bisect_left(self._order, start) : bisect.bisect_left(self._order, end)]

    def _delete(self, key: bytes) -> None:
        if self._values.pop(key, None) is not None:
            del self._order[bisect.bisect_left(self._order, key)]


class Overlay:
    """A view of `base` with changes on top. `take` hands the changes over as one batch.

    Range deletes reach only what `base` holds: they are for rows past their retention, which nobody writes any more.
    """

    def __init__(self, base: View) -> None:
        self._base = base
        self._changes: dict[bytes, bytes | None] = {}
        self._ranges: list[tuple[bytes, bytes]] = []

    def get(self, key: bytes) -> bytes | None:
        """See `View`."""
        if key in self._changes:
            return self._changes[key]
        if self._ranges and self._dropped(key):
            return None
        return self._base.get(key)

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Row]:
        """See `View`."""
        changes = self._changes
        mine = sorted((k for k in changes if start <= k < end), reverse=reverse)
        theirs = (
            row
            for row in self._base.scan(start, end, reverse=reverse)
            if row[0] not in changes and not self._dropped(row[0])
        )
        ours = ((key, value) for key in mine if (value := changes[key]) is not None)
        return heapq.merge(ours, theirs, key=_key, reverse=reverse)

    def put(self, key: bytes, value: bytes) -> None:
        """Set `key`."""
        self._changes[key] = value

    def delete(self, key: bytes) -> None:
        """Remove `key`."""
        self._changes[key] = None

    def drop(self, start: bytes, end: bytes) -> None:
        """Remove what `base` holds in [start, end)."""
        self._ranges.append((start, end))

    def take(self) -> Batch:
        """All changes, in the order in which their keys were first touched."""
        batch = Batch(ranges=self._ranges)
        for key, value in self._changes.items():
            if value is None:
                batch.deletes.add(key)
            else:
                batch.puts[key] = value
        return batch

    def changes(self) -> dict[bytes, bytes | None]:
        """The changes by key; None stands for a delete."""
        return self._changes

    def ranges(self) -> list[tuple[bytes, bytes]]:
        """The range deletes."""
        return self._ranges

    def _dropped(self, key: bytes) -> bool:
        return any(start <= key < end for start, end in self._ranges)


def _key(row: Row) -> bytes:
    return row[0]
