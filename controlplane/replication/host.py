"""What the guard needs of the process around it, and the terms on which it works. Pure.

The guard decides; its host has the loop, the links, the disk and the snapshots. `controlplane.replication.raft` is the
host of a real node, the simulator that of a virtual one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from controlplane import limits
from controlplane.errors import OutcomeUnknown, Unavailable
from controlplane.replication.snapshots import SnapshotMeta
from controlplane.v1.raft_pb2 import RaftMessage


class Malformed(Exception):
    """A peer sent what no correct peer sends: the host closes the link and counts it."""


class Outcome(Enum):
    """What became of a proposal; all but UNKNOWN are definite."""

    APPLIED = "applied"  # Committed, on this node's disk and applied here.
    REFUSED = "refused"  # It never entered a log.
    DISCARDED = "discarded"  # It stood in a log, but another entry was committed in its place.
    UNKNOWN = "unknown"  # It may yet be committed, or was, unseen.


def applied_at(outcome: Outcome, index: int) -> int:
    """Return the index of an applied entry; raise what any other outcome means to the caller."""
    if outcome is Outcome.APPLIED:
        return index
    if outcome is Outcome.REFUSED:
        raise Unavailable("this node does not lead now", reason="NOT_LEADING")
    if outcome is Outcome.DISCARDED:
        raise Unavailable("another leader's entry took the place of this one", reason="ENTRY_DISCARDED")
    raise OutcomeUnknown("leadership was lost before the entry was known to be committed", reason="LEADERSHIP_LOST")


# Called once, from inside `tick`, with the outcome and the index (0 when REFUSED).
Done = Callable[[Outcome, int], None]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. An election starts after a silence drawn from [min, max]; a leader's beat must be well below min.

    `notice_s`: how long a leader waits for an entry to carry the news of a commit before it sends the news alone. Where
    commits are more than a beat apart it does not wait.
    """

    election_min_s: float = 0.150
    election_max_s: float = 0.300
    beat_s: float = 0.030
    notice_s: float = 0.002

    def __post_init__(self) -> None:
        if not 0 < 3 * self.beat_s <= self.election_min_s < self.election_max_s:
            raise ValueError("beats must be three times as frequent as elections, and election_min_s < election_max_s")

    @property
    def fallback_s(self) -> float:
        """How long a leader stays one without hearing from a majority."""
        return 2 * self.election_max_s


@dataclass(frozen=True, slots=True)
class Bounds:
    """Everything here that could grow. An append is at most one entry or `append_bytes_max` of them.

    Another leaves for a follower while less than `appends_in_flight_max` and `bytes_in_flight_max` are on their way.
    """

    entry_bytes_max: int = limits.ENTRY_BYTES_MAX
    append_bytes_max: int = 256 * 1024
    appends_in_flight_max: int = 32
    bytes_in_flight_max: int = 8 * 1024 * 1024
    chunk_bytes: int = 256 * 1024
    chunks_in_flight_max: int = 8
    proposals_max: int = 1024
    reads_max: int = 4096
    # Bounds how long one tick holds the loop: a full entry takes a hundred times as long to apply as a small one.
    applies_per_tick_max: int = 512
    apply_bytes_per_tick_max: int = 64 * 1024
    # What the log may grow to only because a snapshot is under way; beyond it the transfer starts again.
    held_bytes_max: int = 256 * 1024 * 1024

    @property
    def follower_bytes_max(self) -> int:
        """The most that is on its way to one follower: a link must be able to hold it."""
        one_append = max(self.entry_bytes_max, self.append_bytes_max)
        return self.bytes_in_flight_max + one_append + self.chunks_in_flight_max * self.chunk_bytes


class Host(Protocol):
    """What the guard needs done. No method may call the guard back, except as `snapshot_chunk` says."""

    def send(self, peer: str, message: RaftMessage) -> None:
        """Queue `message`, never to be changed, for `peer`; it may be lost. Report a broken link later, not here."""

    def changed(self) -> None:
        """Role, leader, term or readiness changed."""

    def mark(self) -> bytes:
        """Return this node's applied (revision, running hash); opaque to the guard, called at every beat."""

    def marked(self, peer: str, mark: bytes) -> None:
        """Compare the mark of the leader `peer`; raise `Fatal` if it contradicts this node's state."""

    def free_bytes(self) -> int:
        """Return the room left on this node's disk; rides on acks, so keep it cached."""

    def snapshot_wanted(self) -> None:
        """Make a snapshot of the present state off the loop, then call `snapshot_ready` or `snapshot_unready`.

        Never asked for twice at once.
        """

    def snapshot_chunk(self, meta: SnapshotMeta, offset: int, data: bytes) -> None:
        """Write a piece of the leader's snapshot; pieces come in order, offset 0 starts anew and drops what was there.

        Report with `snapshot_written` (at once from within, if it likes). When `meta.size` bytes are there: verify,
        install into a new folder durably and switch to it, all off the loop, then call `snapshot_installed` or
        `snapshot_failed`. Between the last piece and that call the guard applies nothing.
        """

    def caught_up(self) -> None:
        """Record durably that this learner's disk counts from now on, then call `joined`."""
