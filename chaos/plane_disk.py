"""The disk of a node of the simulated region: the journal of `sim_disk`, and a store that holds the real rows.

The running process commits batches to a `RegionStore`; the disk remembers each one until it is synced. A crash of the
process loses none of them, a loss of power any suffix since the last sync, as with the real store; what was lost is
applied again from the log.
"""

from __future__ import annotations

import hashlib
import struct
from collections import deque
from collections.abc import Iterator
from random import Random

from chaos.sim_disk import Applied, Disk, State
from chaos.sim_oracle import Violation
from controlplane import limits
from controlplane.kernel import keys, machine
from controlplane.kernel.store import Batch, MemoryStore
from controlplane.replication.snapshots import SnapshotMeta

_SIZES = struct.Struct(">II")


class RegionStore(MemoryStore):
    """The store of a running process; remembers the last batch for the disk."""

    def __init__(self) -> None:
        super().__init__()
        self._taken: list[Batch] = []

    def commit(self, batch: Batch) -> None:
        """See `Store`."""
        super().commit(batch)
        self._taken.append(batch)

    def taken(self) -> list[Batch]:
        """Return the batches since the last call."""
        taken, self._taken = self._taken, []
        return taken

    def adopt(self, image: MemoryStore) -> None:
        """Hold what `image` holds, and nothing else."""
        self._values, self._order, self._taken = dict(image._values), list(image._order), []

    def rows(self) -> dict[bytes, bytes]:
        """Return everything; treat it as immutable."""
        return self._values


class RegionDisk(Disk):
    """Journal and store of one node.

    `span` is that of a region that begins now: revisions per generation of kept outcomes.
    """

    def __init__(self, life: int = 0, *, span: int = limits.OUTCOME_SPAN, off: frozenset[str] = frozenset()) -> None:
        super().__init__(life, off=off)
        self._span = span
        self._image = empty_image(span)
        self._batches: deque[tuple[int, list[Batch]]] = deque()

    def successor(self) -> RegionDisk:
        """See `Disk`."""
        disk = type(self)(self.life + 1, span=self._span, off=self._off)
        disk.votes = self.votes
        return disk

    def opened(self) -> RegionStore:
        """Return what a starting process finds; nothing is unsynced then."""
        store = RegionStore()
        store.adopt(self._image)
        return store

    def wrote(self, index: int, term: int, batches: list[Batch]) -> None:
        """Take what applying an entry wrote; it is not synced."""
        self.unsynced.append(Applied(index, term, 0, None))
        self._batches.append((index, batches))

    def store_synced(self, index: int) -> None:
        """See `Disk`."""
        super().store_synced(index)
        self._settle()

    def install_image(self, index: int, term: int, image: MemoryStore) -> None:
        """Replace the store, durably and at once."""
        super().install(State(index, term, 0, {}))
        self._batches.clear()
        self._image = image

    def crash(self, random: Random, syncing_seq: int, *, power: bool) -> int:
        """See `Disk`."""
        lost = super().crash(random, syncing_seq, power=power)
        self._settle()
        self._batches.clear()
        return lost

    def _settle(self) -> None:
        while self._batches and self._batches[0][0] <= self.base.index:
            for batch in self._batches.popleft()[1]:
                self._image.commit(batch)


def empty_image(span: int) -> MemoryStore:
    """Return the store of a region in which nothing has happened yet, with `span` in its state."""
    image = MemoryStore()
    state = machine.state_of(image)
    state.outcome_span = span
    image.commit(Batch(puts={keys.STATE: state.SerializeToString(deterministic=True)}))
    return image


class Image:
    """A snapshot of a store in memory, as the guard sends it."""

    def __init__(self, store: MemoryStore) -> None:
        state = machine.state_of(store)
        self._data = b"".join(
            _SIZES.pack(len(key), len(value)) + key + value for key, value in store.scan(b"", b"\xff")
        )
        self.meta = SnapshotMeta(state.index, state.term, len(self._data), hashlib.sha256(self._data).digest())
        self._closed = False

    def read(self, offset: int, size: int) -> bytes:
        """See `Snapshot`."""
        if self._closed:
            raise Violation("SNAPSHOT_USE read after close")
        return self._data[offset : offset + size]

    def close(self) -> None:
        """See `Snapshot`."""
        if self._closed:
            raise Violation("SNAPSHOT_USE closed twice")
        self._closed = True


def image_of(meta: SnapshotMeta, data: bytes) -> MemoryStore | None:
    """Return the store that a snapshot's bytes hold, or None if they are damaged."""
    if hashlib.sha256(data).digest() != meta.digest:
        return None
    image = MemoryStore()
    image.commit(Batch(puts=dict(_rows(data))))
    return image


def _rows(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        key_bytes, value_bytes = _SIZES.unpack_from(data, at)
        middle = at + _SIZES.size + key_bytes
        at, start = middle + value_bytes, at + _SIZES.size
        yield data[start:middle], data[middle:at]
