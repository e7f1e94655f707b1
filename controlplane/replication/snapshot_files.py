"""Snapshot files on their way out of a leader and into a follower.

`Outgoing` is what the guard reads from; `Incoming` collects the leader's pieces. Both live in the data
folder's `snapshots`, which is emptied at every start: a snapshot is always made or fetched anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import BinaryIO, Protocol

from controlplane.kernel.store import StoreSnapshot
from controlplane.replication.snapshots import SnapshotMeta
from controlplane.storage import SNAPSHOT_FORMAT, Staged, write_snapshot
from controlplane.v1.peer_pb2 import SnapshotHeader


class SnapshotStore(Protocol):
    """What the log needs of the store under the machine; `storage.RocksStore` is one."""

    def snapshot(self) -> StoreSnapshot:
        """Return the present state, for reading from another thread."""

    def sync(self) -> None:
        """Make everything committed so far durable. Called from a thread."""

    def stage(self, snapshot: Path, expected: SnapshotHeader) -> Staged:
        """Build the next state from a snapshot file, unused as yet. Called from a thread."""

    def adopt(self, staged: Staged) -> None:
        """Switch to it, durably. Called from the loop."""

    def sweep(self) -> None:
        """Remove what the switch left behind. Called from a thread."""

    def scrub(self) -> bool:
        """Have nothing in any file that is not in the state by now; False: ask again. Called from a thread."""


class Outgoing:
    """A finished snapshot file; see `guard.Snapshot`."""

    def __init__(self, path: Path, meta: SnapshotMeta) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY)
        self._meta = meta

    @property
    def meta(self) -> SnapshotMeta:
        """What it holds."""
        return self._meta

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly the bytes asked for, fewer only at the end."""
        return os.pread(self._descriptor, size, offset)

    def close(self) -> None:
        """Remove the file."""
        os.close(self._descriptor)
        self._path.unlink(missing_ok=True)


class Incoming:
    """The one snapshot being received. Used from one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self._size = 0

    def write(self, meta: SnapshotMeta, offset: int, data: bytes) -> None:
        """Append a piece; offset 0 begins anew. Raises ValueError when pieces are missing or too long."""
        if offset == 0:
            self._begin()
        if self._file is None or offset != self._size or offset + len(data) > meta.size:
            raise ValueError(f"piece at {offset} does not continue {self._size} of {meta.size}")
        self._file.write(data)
        self._digest.update(data)
        self._size += len(data)

    def finish(self, meta: SnapshotMeta) -> Path:
        """Close the file and return it; ValueError unless its digest is the one announced."""
        self.close()
        if (self._size, self._digest.digest()) != (meta.size, meta.digest):
            raise ValueError("the snapshot's digest does not match")
        return self._path

    def close(self) -> None:
        """Stop writing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Remove what came so far. What is still to come does not fit any more, and is sent from the beginning."""
        self.close()
        self._path.unlink(missing_ok=True)

    def _begin(self) -> None:
        self.close()
        self._file = self._path.open("wb")
        self._digest = hashlib.sha256()
        self._size = 0


def produce(view: StoreSnapshot, folder: Path, header: SnapshotHeader, serial: int) -> Outgoing:
    """Write `view` to a file below `folder` and close it. For a thread."""
    path = folder / f"out-{serial:06d}"
    try:
        digest = write_snapshot(view, path, header)
    finally:
        view.close()
    return Outgoing(path, SnapshotMeta(header.index, header.term, path.stat().st_size, digest))


def stage(incoming: Incoming, meta: SnapshotMeta, store: SnapshotStore, fleet: str, region: str) -> Staged:
    """Build a state from what was received; ValueError or `Fatal` if it is not as announced. For a thread."""
    return store.stage(incoming.finish(meta), header_of(fleet, region, meta.index, meta.term))


def header_of(fleet: str, region: str, index: int, term: int) -> SnapshotHeader:
    """Return the header of the snapshot after entry (index, term) of a region."""
    return SnapshotHeader(format=SNAPSHOT_FORMAT, fleet=fleet, region=region, index=index, term=term)


def emptied(folder: Path) -> Path:
    """Return `folder`, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
