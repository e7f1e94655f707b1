"""One guard alone, and the words its peers would say to it; for rules that one exchange can show."""

from __future__ import annotations

from random import Random
from typing import Any

from controlplane.replication.guard import WIRE_VERSION, Bounds, Guard, Outcome, Timing
from controlplane.replication.snapshots import SnapshotMeta
from controlplane.replication.tail import Entry, Op, Recovered, Tail
from controlplane.v1 import raft_pb2 as wire
from controlplane.v1.raft_pb2 import RaftMessage

TIMING = Timing()
EMPTY = Recovered()


class Solo:
    """Node "a" of a region; `Host` and `Machine` of its guard. Nothing is synced until `sync` says so."""

    def __init__(
        self,
        peers: tuple[str, ...] = ("b", "c"),
        *,
        recovered: Recovered = EMPTY,
        applied: tuple[int, int] = (0, 0),
        off: frozenset[str] | set[str] = frozenset(),
        seed: int = 1,
        **options: Any,
    ) -> None:
        self.now = 1000.0
        self.sent: list[tuple[str, RaftMessage]] = []
        self.ops: list[Op] = []
        self.applied_entries: list[Entry] = []
        self.applied = applied
        self.outcomes: list[tuple[Outcome, int]] = []
        self.reads: list[bool] = []
        self.chunks: list[tuple[SnapshotMeta, int, bytes]] = []
        self.snapshots_wanted = 0
        self.caught_up_calls = 0
        self.tail = Tail(recovered, lambda _, op: self.ops.append(op), strict=not off)
        self.guard = Guard(
            "a",
            peers,
            self.tail,
            self,
            self,
            now=self.now,
            random=Random(seed),
            timing=TIMING,
            off=frozenset(off),
            **({"bounds": Bounds()} | options),
        )
        for peer in peers:
            self.guard.connected(peer, self.now)

    # Machine.

    def apply(self, index: int, term: int, entry: bytes) -> None:
        assert index == self.applied[0] + 1
        self.applied = (index, term)
        self.applied_entries.append(Entry(index, term, entry))

    # Host.

    def send(self, peer: str, message: RaftMessage) -> None:
        self.sent.append((peer, message))

    def changed(self) -> None: ...

    def mark(self) -> bytes:
        return b""

    def marked(self, peer: str, mark: bytes) -> None: ...

    def free_bytes(self) -> int:
        return 7

    def snapshot_wanted(self) -> None:
        self.snapshots_wanted += 1

    def snapshot_chunk(self, meta: SnapshotMeta, offset: int, data: bytes) -> None:
        self.chunks.append((meta, offset, data))

    def caught_up(self) -> None:
        self.caught_up_calls += 1

    # What happens.

    def sync(self) -> None:
        self.guard.synced(self.tail.seq, self.now)

    def tick(self, after: float = 0.0) -> None:
        self.now += after
        self.guard.tick(self.now)

    def hear(self, peer: str, term: int, **body: Any) -> None:
        """Let `peer` say one thing: hear("b", 1, append=wire.Append(...))."""
        self.guard.receive(peer, RaftMessage(version=WIRE_VERSION, term=term, **body), self.now)

    def append(
        self, peer: str, term: int, prev: tuple[int, int], *entries: Entry, commit: int = 0, **more: Any
    ) -> None:
        """Let the leader `peer` append `entries` after `prev`."""
        rows = [wire.LogEntry(index=e.index, term=e.term, payload=e.payload) for e in entries]
        append = wire.Append(prev_index=prev[0], prev_term=prev[1], entries=rows, commit=commit, **more)
        self.hear(peer, term, append=append)

    def matched(self, peer: str, index: int, *, term: int | None = None, **more: Any) -> None:
        """Let the follower `peer` acknowledge everything up to `index`."""
        ack = wire.AppendAck(result=wire.AppendAck.RESULT_MATCHED, match=index, hint=index, **more)
        self.hear(peer, self.tail.term if term is None else term, append_ack=ack)

    def said(self, body: str) -> list[tuple[str, Any]]:
        """Everything of one kind that was sent, with the receiver; forgets what was sent."""
        found = [(peer, getattr(message, body)) for peer, message in self.sent if message.WhichOneof("body") == body]
        self.sent.clear()
        return found

    def campaign(self) -> None:
        """Wait out the election timeout, win the pre-vote, and ask for votes."""
        self.tick(TIMING.election_max_s + 0.001)
        if self.guard.role.value == "follower":
            ask = self.said("pre_vote")[0][1]
            for peer in self.guard._peers:
                reply = wire.PreVoteReply(next_term=ask.next_term, granted=True, nonce=ask.nonce)
                self.hear(peer, self.tail.term, pre_vote_reply=reply)
                if self.guard.role.value == "candidate":
                    break
        self.sync()

    def lead(self) -> None:
        """Become leader with the votes of every peer, and have the own first entry on disk everywhere."""
        self.campaign()
        for peer in self.guard._peers:
            self.hear(peer, self.tail.term, vote_reply=wire.VoteReply())
        assert self.guard.role.value == "leader"
        self.tick()
        self.sync()
        for peer in self.guard._peers:
            self.matched(peer, self.tail.last_index)
        self.tick()
        self.sync()
        self.tick()
        self.sent.clear()

    def propose(self, payload: bytes = b"x") -> None:
        self.guard.propose(payload, lambda outcome, index: self.outcomes.append((outcome, index)))

    def commit(self) -> None:
        """As the leader of b and c: propose an entry, and have it on all disks."""
        self.propose()
        self.tick()
        for peer in ("b", "c"):
            self.matched(peer, self.tail.last_index)
        self.sync()
        self.tick()

    def read(self) -> None:
        self.guard.read(self.reads.append, self.now)


def entries(first: int, last: int, term: int) -> list[Entry]:
    """Entries first..last of `term`."""
    return [Entry(index, term, b"%d" % index) for index in range(first, last + 1)]


def holding(count: int, term: int, *, commit: int = 0, voted_for: str | None = None) -> Recovered:
    """A disk that holds `count` entries of `term`."""
    return Recovered(0, 0, tuple(entries(1, count, term)), term, voted_for, commit)
