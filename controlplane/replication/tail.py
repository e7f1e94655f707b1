"""The part of the log that is still in memory, and every change of it as one operation for the disk.

Theory of operation. A log is a snapshot (held by the store) up to a *boundary* and, above it, a contiguous run of
entries. `Tail` holds that run, the term, the vote and the commit index. Each change is made in memory at once and
handed to `sink` as an operation with a growing sequence number; the host writes operations in order, many in one
synced batch, and reports how far it came with `synced`. Pure: no clock, no chance, no I/O.

1. Indexes are contiguous: boundary + 1, boundary + 2, ... Nothing else can be added.
2. Committed entries are never cut (`Fatal`).
3. Nothing at or below the boundary but the boundary's own term can be asked for (`Fatal`, never another entry's term).
4. `durable` counts an entry only when the operation that added it is on disk, also after a cut and a second add.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from controlplane.errors import Fatal

# What an entry costs in memory beyond its payload; counted so that many empty entries are bounded too.
ENTRY_OVERHEAD_BYTES = 160


class Entry(NamedTuple):
    """One entry of the log; an empty payload is a leader's own first entry."""

    index: int  # type: ignore[assignment]  # Hides tuple.index, which nobody calls.
    term: int
    payload: bytes


class Add(NamedTuple):
    """Append one entry after the last."""

    index: int  # type: ignore[assignment]  # Hides tuple.index, which nobody calls.
    term: int
    payload: bytes


class Cut(NamedTuple):
    """Remove every entry from `from_index` on."""

    from_index: int


class Meta(NamedTuple):
    """The term and the vote cast in it; must be on disk before anything that depends on it leaves the node."""

    term: int
    voted_for: str | None


class Commit(NamedTuple):
    """The commit index; advisory, it may reach the disk late."""

    index: int  # type: ignore[assignment]  # Hides tuple.index, which nobody calls.


class Trim(NamedTuple):
    """Entry `boundary_index` becomes the boundary: it and everything below it is forgotten."""

    boundary_index: int
    boundary_term: int


class Reset(NamedTuple):
    """Forget every entry; the log begins again above (index, term)."""

    index: int  # type: ignore[assignment]  # Hides tuple.index, which nobody calls.
    term: int


Op = Add | Cut | Meta | Commit | Trim | Reset
Sink = Callable[[int, Op], None]


class Recovered(NamedTuple):
    """What a disk holds: the boundary, the entries above it in order, term, vote and commit index."""

    boundary_index: int = 0
    boundary_term: int = 0
    entries: tuple[Entry, ...] = ()
    term: int = 0
    voted_for: str | None = None
    commit: int = 0


class Tail:
    """The log above its boundary. `strict=False` lets planted defects cut committed entries; tests only."""

    def __init__(self, recovered: Recovered, sink: Sink, *, strict: bool = True) -> None:
        self.boundary_index = recovered.boundary_index
        self.boundary_term = recovered.boundary_term
        self.voted_for = recovered.voted_for
        self._entries = list(recovered.entries)
        self.last_index = self.boundary_index + len(self._entries)  # Of the boundary when there is no entry.
        self._check_contiguous()
        self.term = max(recovered.term, self.last_term)
        self.payload_bytes = sum(len(entry.payload) for entry in self._entries)
        self.commit = max(min(recovered.commit, self.last_index), self.boundary_index)
        self.durable = self.last_index
        self.seq = 0
        self.meta_seq = 0
        self.synced_seq = 0
        self._sink = sink
        self._strict = strict
        self._unsynced: deque[tuple[int, int]] = deque()  # (sequence number, index) of entries added.

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def meta_synced(self) -> bool:
        """Whether the present term and vote are on disk."""
        return self.meta_seq <= self.synced_seq

    @property
    def last_term(self) -> int:
        """Term of the last entry, or of the boundary when there is none."""
        return self._entries[-1].term if self._entries else self.boundary_term

    @property
    def memory_bytes(self) -> int:
        """What the entries cost in memory, roughly; the same total bounds what they cost on disk."""
        return self.payload_bytes + ENTRY_OVERHEAD_BYTES * len(self._entries)

    def entry(self, index: int) -> Entry:
        """The entry at `index`; `Fatal` at or below the boundary and beyond the end."""
        if not self.boundary_index < index <= self.last_index:
            raise Fatal(f"no entry {index} in a log of {self.boundary_index + 1}..{self.last_index}")
        return self._entries[index - self.boundary_index - 1]

    def term_at(self, index: int) -> int:
        """The term of the entry at `index`, which may be the boundary."""
        return self.boundary_term if index == self.boundary_index else self.entry(index).term

    def holds(self, index: int, term: int) -> bool:
        """Whether the log has (index, term), the boundary included."""
        return self.boundary_index <= index <= self.last_index and self.term_at(index) == term

    def batch(self, from_index: int, bytes_max: int) -> list[Entry]:
        """Entries from `from_index` on, at most `bytes_max` of memory, but one at least if there is any."""
        start = from_index - self.boundary_index - 1
        if start < 0:
            raise Fatal(f"entry {from_index} is below the boundary {self.boundary_index}")
        end, left = start, bytes_max
        while end < len(self._entries):
            left -= _cost_bytes(self._entries[end])
            if left < 0 and end > start:
                break
            end += 1
        return self._entries[start:end]

    def add(self, entry: Entry) -> None:
        """Append `entry`, which must follow the last one."""
        if entry.index != self.last_index + 1:
            raise Fatal(f"entry {entry.index} does not follow {self.last_index}")
        self._entries.append(entry)
        self.last_index += 1
        self.payload_bytes += len(entry.payload)
        self._emit(Add(*entry))
        self._unsynced.append((self.seq, entry.index))

    def cut(self, from_index: int) -> None:
        """Remove every entry from `from_index` on; none of them may be committed."""
        if from_index <= self.boundary_index or (self._strict and from_index <= self.commit):
            raise Fatal(f"cut at {from_index}, but {self.commit} is committed")
        start = from_index - self.boundary_index - 1
        self.payload_bytes -= sum(len(entry.payload) for entry in self._entries[start:])
        del self._entries[start:]
        self.last_index = from_index - 1
        self.commit = min(self.commit, from_index - 1)
        self.durable = min(self.durable, from_index - 1)
        while self._unsynced and self._unsynced[-1][1] >= from_index:
            self._unsynced.pop()
        self._emit(Cut(from_index))

    def set_term(self, term: int, voted_for: str | None) -> None:
        """Take `term` and the vote cast in it."""
        if (term, voted_for) != (self.term, self.voted_for):
            self.term, self.voted_for = term, voted_for
            self._emit(Meta(term, voted_for))
            self.meta_seq = self.seq

    def set_commit(self, index: int) -> None:
        """Raise the commit index (it never falls)."""
        if index > self.commit:
            self.commit = min(index, self.last_index)
            self._emit(Commit(self.commit))

    def trim(self, to_index: int) -> None:
        """Make entry `to_index` the boundary; nothing happens unless it is committed and above the present one."""
        if not self.boundary_index < to_index <= self.commit:
            return
        term, count = self.term_at(to_index), to_index - self.boundary_index
        self.payload_bytes -= sum(len(entry.payload) for entry in self._entries[:count])
        del self._entries[:count]
        self.boundary_index, self.boundary_term = to_index, term
        self.durable = max(self.durable, to_index)
        while self._unsynced and self._unsynced[0][1] <= to_index:
            self._unsynced.popleft()
        self._emit(Trim(to_index, term))

    def reset(self, index: int, term: int) -> None:
        """Begin again above (index, term), which the store holds durably and which covers all that is committed."""
        if self._strict and index < self.commit:
            raise Fatal(f"reset to {index}, but {self.commit} is committed")
        self._entries.clear()
        self._unsynced.clear()
        self.payload_bytes = 0
        self.boundary_index, self.boundary_term = index, term
        self.last_index = self.durable = index
        self.commit = index
        self._emit(Reset(index, term))

    def synced(self, seq: int) -> None:
        """Every operation up to `seq` is on disk."""
        self.synced_seq = max(self.synced_seq, seq)
        while self._unsynced and self._unsynced[0][0] <= seq:
            self.durable = self._unsynced.popleft()[1]

    def excess(self, top_index: int, keep_entries: int, keep_bytes: int) -> int:
        """The least index to trim to so that what stays up to `top_index` fits `keep_entries` and `keep_bytes`."""
        top = max(0, min(top_index, self.last_index) - self.boundary_index)
        kept_bytes = self.memory_bytes - sum(_cost_bytes(entry) for entry in self._entries[top:])
        count = 0
        while count < top and (top - count > keep_entries or kept_bytes > keep_bytes):
            kept_bytes -= _cost_bytes(self._entries[count])
            count += 1
        return self.boundary_index + count

    def _emit(self, op: Op) -> None:
        self.seq += 1
        self._sink(self.seq, op)

    def _check_contiguous(self) -> None:
        for index, entry in enumerate(self._entries, self.boundary_index + 1):
            if entry.index != index:
                raise Fatal(f"recovered entry {entry.index} stands where {index} belongs")


def _cost_bytes(entry: Entry) -> int:
    return len(entry.payload) + ENTRY_OVERHEAD_BYTES
