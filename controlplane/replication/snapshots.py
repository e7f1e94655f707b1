"""What a snapshot is to the guard: some bytes, and how to know them whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SnapshotMeta:
    """Which state a snapshot holds, and how to know it whole."""

    index: int
    term: int
    size: int
    digest: bytes  # SHA-256 of all its bytes.


class Snapshot(Protocol):
    """A finished snapshot that the leader's host produced; immutable until closed."""

    @property
    def meta(self) -> SnapshotMeta:
        """What it holds."""

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly the bytes asked for (fewer only at the end), from cached pages: it runs on the loop."""

    def close(self) -> None:
        """Let the host delete it: nobody reads it any more."""
