"""Consensus behind one small port.

A `Log` agrees with its peers on a sequence of opaque entries and hands each one, once and in order, to the local
`Machine`. Two implementations are in daily use: `raft.RaftLog` (PySyncObj's election and commit core, made safe by
`guard`) and `LocalLog` (one node, no peers: `controlplane dev` and tests). Nothing above this package knows which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol


class Role(Enum):
    """What this node is to its region's log right now."""

    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(frozen=True, slots=True)
class LogStatus:
    """One moment of a log, for status pages, metrics and routing; never a fence.

    `ready` is true on a leader that has applied an entry of its own term, so that its state is the region's newest:
    only then may it plan. `fresh_s` is the age in seconds of the last proof that this node's state was current (the
    start of the last successful barrier or, on a leader, of the last round a majority answered); infinity if never.
    """

    role: Role
    leader: str | None
    term: int
    commit: int
    applied: int
    last: int
    ready: bool
    fresh_s: float
    peers: dict[str, PeerStatus]


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What this node knows of one peer; `match` and `state` are known to the leader only."""

    connected: bool
    match: int
    state: str
    heard_s: float


class Machine(Protocol):
    """What a log drives: the replicated state of one node. Every method runs on the event loop's thread."""

    @property
    def applied(self) -> tuple[int, int]:
        """Index and term of the last entry applied; (0, 0) before the first. Stored in one batch with its effects."""

    def apply(self, index: int, term: int, entry: bytes) -> None:
        """Apply one committed entry. Total: it never raises but `Fatal`, which stops the process.

        An empty `entry` is the log's own (a new leader's first): it moves `applied` and nothing else.
        """


class Log(Protocol):
    """Agreement on a sequence of entries.

    Guarantee: an entry for which `append` returned is on the disks of a majority and applied here; it is never lost.
    Every method is called from the event loop's thread.
    """

    async def start(self, machine: Machine) -> None:
        """Bring the log up over what `machine` has applied. Raises `Fatal` on damage, naming file and next step."""

    async def stop(self) -> None:
        """Hand leadership over if this node leads (bounded wait), then close everything."""

    async def append(self, entry: bytes, *, timeout_s: float) -> int:
        """Commit and apply `entry`; return its index.

        Raises `Unavailable` when it is certain that the entry never entered a log or was discarded from it, and
        `OutcomeUnknown` when it may yet be applied (no answer in `timeout_s`, or leadership was lost meanwhile).
        Only the leader accepts; one caller (the node's planner) keeps one entry in flight.
        """

    async def barrier(self, *, timeout_s: float) -> None:
        """Return once the local machine holds everything committed before this call began. Any node may ask.

        Concurrent callers share a round that starts after they arrived. Raises `Unavailable`.
        """

    async def transfer(self, target: str | None, *, timeout_s: float) -> str:
        """Move leadership to `target` (or the most advanced peer) and return the new leader. Leader only."""

    def status(self) -> LogStatus:
        """The present moment."""

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` (which must not raise or block) after any change of role, leader, term or readiness."""
