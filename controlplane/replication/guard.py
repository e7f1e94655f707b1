"""The rules that make the consensus core safe: replication, elections, snapshots, reads. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from random import Random
from typing import Protocol

from controlplane.replication import LogStatus, Machine, PeerStatus, Role
from controlplane.replication.tail import Tail
from controlplane.v1.raft_pb2 import RaftMessage

# Of proto/controlplane/v1/raft.proto. A node refuses every other version.
WIRE_VERSION = 1


class Malformed(Exception):  # noqa: N818 - the peer's fault, not ours: its link is closed.
    """A peer sent what no correct peer sends: the host closes the link and counts it."""


class Outcome(Enum):
    """What became of a proposal; all but UNKNOWN are definite."""

    APPLIED = "applied"  # Committed, on this node's disk and applied here.
    REFUSED = "refused"  # It never entered a log.
    DISCARDED = "discarded"  # It stood in a log, but another entry was committed in its place.
    UNKNOWN = "unknown"  # It may yet be committed.


# Called once, from inside `tick`, with the outcome and the index (0 when REFUSED or UNKNOWN without one).
Done = Callable[[Outcome, int], None]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. An election starts after a silence drawn from [min, max]; a leader's beat must be well below min."""

    election_min_s: float = 0.150
    election_max_s: float = 0.300
    beat_s: float = 0.030


@dataclass(frozen=True, slots=True)
class Bounds:
    """Everything here that could grow. No message is larger than `entry_bytes_max` plus `append_bytes_max`."""

    entry_bytes_max: int = 1 << 20
    append_bytes_max: int = 1 << 18
    appends_in_flight_max: int = 32
    chunk_bytes: int = 1 << 18
    chunks_in_flight_max: int = 8
    proposals_max: int = 1024
    reads_max: int = 4096
    # Entries kept only because a snapshot is being transferred; beyond this the transfer starts again.
    held_bytes_max: int = 1 << 28


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
        """Exactly the bytes asked for (fewer only at the end). Called on the loop: a page-cached read, no computing."""

    def close(self) -> None:
        """Nobody reads it any more; the host may delete it."""


class Host(Protocol):
    """What the guard needs done. No method may call the guard back, except `snapshot_chunk` as it says."""

    def send(self, peer: str, message: RaftMessage) -> None:
        """Queue `message` for `peer`; it may be lost. Treat it as immutable. Report a broken link later, not from here."""

    def changed(self) -> None:
        """Role, leader, term or readiness may have changed."""

    def mark(self) -> bytes:
        """This node's applied (revision, running hash), opaque to the guard; empty is never compared. Called often."""

    def marked(self, peer: str, mark: bytes) -> None:
        """The leader `peer` reported its mark; raise `Fatal` if it contradicts this node's state."""

    def free_bytes(self) -> int:
        """Room left on this node's disk; rides on acks. Called often: keep it cached."""

    def snapshot_wanted(self) -> None:
        """Make a snapshot of the machine's present state off the loop, then call `snapshot_ready` or `snapshot_unready`.

        Never asked for twice at once.
        """

    def snapshot_chunk(self, meta: SnapshotMeta, offset: int, data: bytes) -> None:
        """Write a piece of the leader's snapshot; pieces come in order, offset 0 starts anew and drops what was there.

        Report with `snapshot_written` (at once from within, if it likes). When `meta.size` bytes are there: verify,
        install into a new folder durably and switch to it, all off the loop, then call `snapshot_installed` or
        `snapshot_failed`. Between the last piece and that call the guard applies nothing.
        """

    def caught_up(self) -> None:
        """A learner has everything: record durably that this disk counts from now on, then call `joined`."""


class Guard:
    """One node's consensus. Not thread-safe: one loop owns it.

    The host passes events in (each with `now`, seconds on one monotonic clock) and calls `tick` after any batch of them,
    and no later than `deadline`. Everything out goes through `host`, `machine.apply` and the tail's sink. All answers
    (`Done`, read callbacks) are delivered from within `tick`.
    """

    def __init__(
        self,
        me: str,
        peers: Sequence[str],
        tail: Tail,
        machine: Machine,
        host: Host,
        *,
        now: float,
        random: Random,
        timing: Timing = Timing(),
        bounds: Bounds = Bounds(),
        learner: bool = False,
        off: frozenset[str] = frozenset(),
    ) -> None: ...

    # ---- what happened, told by the host

    def receive(self, peer: str, message: RaftMessage, now: float) -> None:
        """A message from `peer`, in the order sent on one link. Raises `Malformed` (close the link) or `Fatal`."""

    def connected(self, peer: str, now: float) -> None:
        """A link to `peer` is up: messages go out on it from now on."""

    def disconnected(self, peer: str, now: float) -> None:
        """The link to `peer` broke. If it led, an election begins at once."""

    def synced(self, seq: int, now: float) -> None:
        """Every tail operation up to `seq` is on disk: what waited for that is sent and applied."""

    def tick(self, now: float) -> None:
        """Do everything that is due: commit, apply, replicate, elect, answer."""

    @property
    def deadline(self) -> float:
        """When `tick` is due at the latest if nothing else happens."""
        raise NotImplementedError

    # ---- what the host wants

    def propose(self, payload: bytes, done: Done) -> None:
        """Append `payload` to the log if this node leads; then `tick`. Raises ValueError when it is over the bound."""

    def read(self, done: Callable[[bool], None], now: float) -> None:
        """Answer True once the machine holds all that was committed when this was called; False: could not be proven."""

    def transfer(self, target: str | None, now: float) -> str | None:
        """Begin to hand leadership to `target` (or the most advanced peer); proposals are refused meanwhile.

        Returns the target, or None when this node does not lead or `target` is unknown or not connected. It is given
        up after one election timeout; `leader` tells how it ended.
        """

    def change_membership(self, *_: object) -> None:
        """Refused, always: the members are those of the region file (B20)."""

    def trim(self, durable_index: int, keep_entries: int, keep_bytes: int) -> int:
        """Forget applied entries beyond what is to be kept for slow followers; return the boundary.

        `durable_index` is what the store has on disk for certain: nothing above it is ever forgotten.
        """

    # ---- snapshots

    def snapshot_ready(self, snapshot: Snapshot, now: float) -> None:
        """The snapshot that was wanted; the guard closes it when no follower needs it any more."""

    def snapshot_unready(self, now: float) -> None:
        """It could not be made; it will be wanted again after an election timeout."""

    def snapshot_written(self, meta: SnapshotMeta, offset: int) -> None:
        """Everything below `offset` of the incoming snapshot is in the host's file."""

    def snapshot_installed(self, meta: SnapshotMeta, now: float) -> None:
        """The machine stands durably at `meta.index`; `machine.applied` says so."""

    def snapshot_failed(self, meta: SnapshotMeta, now: float) -> None:
        """The incoming snapshot was damaged or could not be installed; it starts again from nothing."""

    # ---- a replaced disk

    @property
    def learner(self) -> bool:
        """Whether this node's disk does not count yet: it neither votes nor is its ack counted."""
        raise NotImplementedError

    def joined(self, now: float) -> None:
        """The host recorded that this disk counts: votes and acks do from now on."""

    # ---- what is so

    @property
    def role(self) -> Role:
        """This node's role."""
        raise NotImplementedError

    @property
    def leader(self) -> str | None:
        """Who leads, as far as this node knows."""
        raise NotImplementedError

    @property
    def term(self) -> int:
        """The current term."""
        raise NotImplementedError

    @property
    def commit(self) -> int:
        """The highest index known to be committed."""
        raise NotImplementedError

    @property
    def ready(self) -> bool:
        """Whether this node leads and has applied an entry of its own term."""
        raise NotImplementedError

    def status(self, now: float) -> LogStatus:
        """All of it at one moment."""
        raise NotImplementedError

    def peer_free_bytes(self) -> dict[str, int]:
        """What each peer last said of its free disk; leader only."""
        raise NotImplementedError


__all__ = ["PeerStatus"]
