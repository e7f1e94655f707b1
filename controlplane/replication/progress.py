"""What a leader knows of one follower, and what it may send it next. Pure.

Theory of operation. A follower is in one of three states, as in etcd:

- PROBE: where its log agrees with ours is not known. One append at a time; `next_index` only moves down, never to or
  below what is matched. A probe that got lost is repeated, empty, at the next beat.
- STREAM: it agrees up to `next_index - 1` unless something was lost. Many appends in flight, within a window.
- SNAPSHOT: what it needs next is below our boundary. Chunks of a snapshot, within a window; a gap or a silence makes
  the sender go back to what is known to be written.

1. Every fresh start begins a new `stream`; a refusal of an older stream is stale and ignored (B4). So a refusal in
   STREAM may start sending again at once, from where the follower says its log ends, without a probe in between.
2. `match_index` only grows while this leadership lasts, but for a follower whose disk was replaced.
3. A follower that refuses what it acknowledged (its disk was set back) is asked once a beat, not at once again.
4. What is in flight is bounded by number and by bytes; one append, and one chunk, may always leave.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum
from math import inf

from controlplane.replication.snapshots import Snapshot
from controlplane.replication.tail import ENTRY_OVERHEAD_BYTES, Entry


class Mode(Enum):
    """How a follower is fed."""

    PROBE = "probe"
    STREAM = "stream"
    SNAPSHOT = "snapshot"


class Progress:
    """One follower, seen from the leader."""

    __slots__ = (
        "acked_offset",
        "commit_told",
        "fed_index",
        "flights",
        "flying_bytes",
        "free_bytes",
        "heard",
        "learner",
        "match_index",
        "mode",
        "moved",
        "next_index",
        "rewound",
        "round",
        "sent",
        "sent_offset",
        "snapshot",
        "stream",
        "waiting",
    )

    def __init__(self, next_index: int, now: float) -> None:
        self.mode = Mode.PROBE
        self.next_index = next_index
        self.match_index = 0
        self.fed_index = 0  # What the core was told.
        self.commit_told = 0
        self.waiting = False  # PROBE: one append is in flight.
        self.stream = 1
        self.flights: deque[tuple[int, int]] = deque()  # STREAM: last index and bytes of each append in flight,
        self.flying_bytes = 0  # and the bytes of all.
        self.heard = now
        self.round = 0
        self.sent = -inf  # When an append last left.
        self.learner = False
        self.free_bytes = 0
        self.snapshot: Snapshot | None = None
        self.sent_offset = self.acked_offset = 0
        self.rewound = False
        self.moved = now  # SNAPSHOT: when it last got further, or was last asked how it stands.

    def probe(self) -> None:
        """Start anew from what is known: after a refusal, a broken link or a snapshot."""
        self.mode = Mode.PROBE
        self.stream += 1
        self.next_index = self.match_index + 1 if self.match_index else self.next_index
        self.waiting = False
        self.snapshot = None
        self._land()

    def sent_entries(self, entries: Sequence[Entry]) -> None:
        """Note that an append with `entries`, the next ones, left. STREAM only."""
        size = sum(len(entry.payload) + ENTRY_OVERHEAD_BYTES for entry in entries)
        self.next_index += len(entries)
        self.flights.append((self.next_index - 1, size))
        self.flying_bytes += size

    def _land(self) -> None:
        self.flights.clear()
        self.flying_bytes = 0

    def matched(self, match_index: int, equal_index: int) -> None:
        """Note that the follower's log equals ours up to `equal_index` and is on its disk up to `match_index`."""
        self.match_index = max(self.match_index, match_index)
        while self.flights and self.flights[0][0] <= self.match_index:
            self.flying_bytes -= self.flights.popleft()[1]
        if self.mode is Mode.PROBE or (self.snapshot and self.match_index >= self.snapshot.meta.index):
            self.mode = Mode.STREAM
            self.next_index = equal_index + 1
            self.waiting = False
            self.snapshot = None
            self._land()
        self.next_index = max(self.next_index, self.match_index + 1)

    def refused(self, prev_index: int, hint_index: int, stream: int) -> None:
        """Note that the follower lacks (prev_index, its term); `hint_index` is the highest that may agree."""
        if stream != self.stream:
            return
        lower = max(self.match_index + 1, min(prev_index, hint_index + 1))
        if self.mode is Mode.STREAM and prev_index > self.match_index:
            if hint_index < self.match_index:
                self.probe()
                return
            self.stream += 1
            self.next_index = lower
            self._land()
        elif self.mode is Mode.PROBE and prev_index == self.next_index - 1 and lower < self.next_index:
            self.next_index = lower
            self.waiting = False

    def forget(self, next_index: int) -> None:
        """Note that the follower's disk was replaced: nothing known of it holds."""
        self.match_index = 0
        self.next_index = next_index
        self.probe()

    def send_snapshot(self, snapshot: Snapshot | None, now: float) -> None:
        """Feed it `snapshot` from its beginning (None: one is being made)."""
        self.mode = Mode.SNAPSHOT
        self.snapshot = snapshot
        self.sent_offset = self.acked_offset = 0
        self.moved = now
        self.waiting = False
        self._land()

    def chunk_written(self, offset: int, now: float) -> None:
        """Note that the follower has written everything below `offset` (0 when it lost or refused what it had)."""
        if offset > self.acked_offset:
            self.moved, self.rewound = now, False
        elif offset < self.acked_offset or not self.rewound:
            # A piece is missing: go back to it, once until something arrives.
            self.sent_offset, self.rewound = offset, True
        self.acked_offset = offset
        self.sent_offset = max(self.sent_offset, offset)
