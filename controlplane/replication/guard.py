"""The rules that make the consensus core safe: replication, elections, snapshots, reads. Pure.

Theory of operation. `engine.Core` decides votes, leadership, log order and commit, and is told nothing that has not
been verified here first. The guard replicates from the `Tail` with its own progress per follower, asks for votes only
after a pre-vote, applies what is committed and on this node's disk, and answers proposals and reads. It has no clock,
no chance, no I/O and no thread: `now` comes with every event, chance is a `Random` that was passed in, and everything
out goes through `Host`, `Machine.apply` and the tail's sink. So a simulator can run it under every fault.

The rules, each with the defect of the engine that it closes (B1..B21; tests/replication/README.md describes them). A
name can be switched off with `off`, for planting defects in tests and for nothing else:

1.  B1: the commit index rises only to what an append has verified against this log.
2.  B2: an ack counts only in the term in which it was sent.
3.  B3: entries are cut only from the first one that conflicts; a heartbeat never cuts.
4.  B4: a follower is probed with one append in flight, downwards only; refusals of an older stream are stale.
5.  B5: a snapshot that is not ahead is acknowledged and ignored; a log that agrees with it is kept.
6.  B6: on start the log is kept if it holds the store's (index, term); otherwise it begins again there.
7.  B8: `barrier`: acks and votes wait for the sync of what they promise; `ownsync`: a leader's own unsynced entries
    do not count, and nothing unsynced is applied. (B7, B8, B10 and B11 also have rules in the journal and transport.)
8.  B9: apply begins after what the machine says it applied, one entry at a time, in order.
9.  B12: a vote counts once.
10. B13: no election without a pre-vote, and no vote while the leader is alive, unless it asked for the election. Of
    two that stand at once one gives way.
11. B14: a leader that does not hear from a majority steps down; reads prove leadership by a round that began after
    they arrived (`readround`), after a commit of the leader's own term (`readterm`), and an answer is for the process
    that asked (`nonce`).
12. B15: the loss of the link to the leader starts an election at once.
13. B16: losing leadership answers nothing: a proposal's outcome is what its index finally holds, or unknown.
14. B17: snapshots are made and installed by the host, off the loop; meanwhile everything else goes on.
15. B18: an entry is sent when it is proposed, not at the next beat; who was sent one a moment ago needs no beat.
16. B20: the members are fixed.
17. B21: entries and messages are bounded.
18. `replace`: a node whose disk was replaced neither votes nor counts until it has all that was committed, and then
    votes only in terms above any that a peer knew of. `recount`: a leader that counted the lost disk steps down.
19. `parts`: a part of a message from the leader that a node follows says that it is alive, so that a large entry on a
    slow link costs nobody leadership. It postpones this node's election and nothing else: it is not answered, so no
    round, ack or leadership rests on it. `patience`: and that only for as long after a whole message as a leader leads
    without an answer, or a leader that has given up would hold the others up with what is still on its links.

(B19, one clock, is in `engine`.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from random import Random
from typing import Any

from controlplane.errors import Fatal
from controlplane.replication import LogStatus, Machine, PeerStatus, Role
from controlplane.replication.engine import Core, CoreEvents, SyncObjCore, major
from controlplane.replication.host import Bounds, Done, Host, Malformed, Outcome, Timing
from controlplane.replication.progress import Mode, Progress
from controlplane.replication.reads import Asker, ReadDone, Reads
from controlplane.replication.snapshots import Snapshot, SnapshotMeta
from controlplane.replication.tail import Entry, Tail
from controlplane.v1 import raft_pb2 as wire
from controlplane.v1.raft_pb2 import RaftMessage

__all__ = ["WIRE_VERSION", "Bounds", "Done", "Guard", "Host", "Malformed", "Outcome", "SnapshotMeta", "Timing"]

WIRE_VERSION = 1
"""Of raft.proto. A node refuses every other version."""

# Far above any term that can be reached, far below where arithmetic or the wire's 64 bits would end.
_TERM_MAX = 1 << 60

MATCHED = wire.AppendAck.RESULT_MATCHED
CONFLICT = wire.AppendAck.RESULT_CONFLICT
HEARD = wire.AppendAck.RESULT_HEARD
STALE = wire.AppendAck.RESULT_UNSPECIFIED


@dataclass(slots=True)
class _Drain:
    target: str
    until: float
    ask_at: float


class Guard(CoreEvents):
    """One node's consensus. Not thread-safe: one loop owns it.

    The host passes events in (each with `now`, seconds on one monotonic clock) and calls `tick` after any batch of
    them, and no later than `deadline`. All answers (`Done`, read callbacks) are delivered from within `tick`.
    """

    def __init__(  # noqa: PLR0913 - the object graph is built once, by name.
        self,
        me: str,
        peers: Sequence[str],
        tail: Tail,
        machine: Machine,
        host: Host,
        *,
        now: float,
        random: Random,
        timing: Timing = Timing(),  # noqa: B008 - frozen.
        bounds: Bounds = Bounds(),  # noqa: B008
        learner: bool = False,
        off: frozenset[str] = frozenset(),
        core: Callable[..., Core] = SyncObjCore,
    ) -> None:
        self._me = me
        self._peers = tuple(sorted(peers))
        self._nodes = len(self._peers) + 1
        self._tail = tail
        self._machine = machine
        self._host = host
        self._now = now
        self._random = random
        self._timing = timing
        self._bounds = bounds
        self._off = off
        self._nonce = random.getrandbits(64) if "nonce" not in off else 1
        self._linked = dict.fromkeys(self._peers, False)
        self._heard_at = dict.fromkeys(self._peers, -inf)
        self._reported: tuple[object, ...] = ()
        self._answers: list[Callable[[], None]] = []

        self._role = Role.FOLLOWER
        self._leader: str | None = None
        self._leader_seen = self._leader_spoke = -inf  # When it was last heard, and last said something whole.
        self._pre_votes: tuple[int, set[str]] | None = None
        self._votes: tuple[int, set[str]] = (0, set())
        self._forced = False
        self._held: deque[tuple[int, str, RaftMessage]] = deque()

        self._verified = (0, 0)  # The term, and how far this log was verified against its leader's.
        self._late_ack: tuple[str, RaftMessage] | None = None
        self._matched_sent = 0
        self._echo = (0, 0)  # Round and stream of the last append.
        self._incoming: SnapshotMeta | None = None
        self._incoming_handed = self._incoming_written = 0
        self._installing = False

        self._progress: dict[str, Progress] = {}
        self._beat_at, self._election_at, self._tell_at, self._news_at = 0.0, 0.0, inf, -inf
        self._drain: _Drain | None = None
        self._snapshot: Snapshot | None = None
        self._snapshot_floor: int | None = None  # While one is being made: what was applied when it was asked for.
        self._snapshot_asked_at = -inf

        self._numbers = 0
        self._asked: dict[int, Done] = {}
        self._pending: dict[int, list[tuple[int, Done]]] = {}
        self._pending_count = 0

        self._reads = Reads(
            reads_max=bounds.reads_max,
            patience_s=timing.fallback_s,
            answer=self._answer,
            reply=self._reply_read,
        )

        self._learner = learner and "replace" not in off
        self._peer_terms: dict[str, int] = {}
        self._join_at = now
        self._join_seq: int | None = None
        self._join_reading = False

        self._applied, self._applied_term = machine.applied
        self._reconcile()
        self._core = core(me, self._peers, tail, self, timing.fallback_s if "B14" not in off else inf, now)
        self._rearm()

    def _reconcile(self) -> None:
        # Rule 6. The store may stand above the log (a snapshot was installed, then the process died), never below it.
        tail, index, term = self._tail, self._applied, self._applied_term
        if tail.boundary_index > index:
            raise Fatal(f"the store has applied {index}, but the log begins after {tail.boundary_index}")
        keep = tail.holds(index, term) and ("B6" not in self._off or tail.boundary_index == index)
        if not keep:
            tail.reset(index, term)
        if tail.last_term > tail.term:
            # Its term was lost with the power, and no vote with it: votes are on disk before they are given.
            tail.set_term(tail.last_term, None)
        tail.set_commit(index)
        if "B9" in self._off:
            self._applied = tail.boundary_index

    # ------------------------------------------------------------------------------------------ what the core says

    def role_changed(self, role: Role) -> None:
        """See `CoreEvents`."""
        self._role = role
        self._drop_leadership()
        if role is Role.LEADER:
            self._leader = self._me
            self._progress = {peer: Progress(self._tail.last_index + 1, self._now) for peer in self._peers}
            self._beat_at, self._tell_at = self._now, inf
            self._reads.recall()

    def _drop_leadership(self) -> None:
        if self._leader == self._me:
            self._leader = None
        self._progress, self._drain = {}, None
        self._release_snapshot()
        if "B16" in self._off:
            self._give_up_pending()
        self._reads.leadership_ended()

    def _give_up_pending(self) -> None:
        # Only with B16 off: what the library does when it reports a change of leader.
        for waiting in self._pending.values():
            for _, done in waiting:
                self._answer(done, Outcome.REFUSED, 0)
        self._pending.clear()
        self._pending_count = 0

    def campaigned(self) -> None:
        """See `CoreEvents`."""
        tail = self._tail
        vote = wire.Vote(last_index=tail.last_index, last_term=tail.last_term, forced=self._forced)
        for peer in self._peers:
            self._send_synced(peer, RaftMessage(version=WIRE_VERSION, term=tail.term, vote=vote))

    def vote_given(self, peer: str, term: int) -> None:
        """See `CoreEvents`."""
        self._pre_votes = None
        self._rearm()
        self._send_synced(peer, RaftMessage(version=WIRE_VERSION, term=term, vote_reply=wire.VoteReply()))

    def proposed(self, number: int, index: int, term: int) -> None:
        """See `CoreEvents`."""
        self._pending.setdefault(index, []).append((term, self._asked.pop(number)))

    def refused(self, number: int) -> None:
        """See `CoreEvents`."""
        self._pending_count -= 1
        self._answer(self._asked.pop(number), Outcome.REFUSED, 0)

    def _send_synced(self, peer: str, message: RaftMessage) -> None:
        # Rule 7: persist, then send. Only votes wait here, so a few at most.
        if self._tail.meta_synced or "barrier" in self._off:
            self._host.send(peer, message)
        else:
            self._held.append((self._tail.meta_seq, peer, message))

    def _send_held(self, seq: int) -> None:
        while self._held and self._held[0][0] <= seq:
            _, peer, message = self._held.popleft()
            self._host.send(peer, message)
        if self._role is Role.CANDIDATE:
            self._rearm()  # The voters get their full time, however slow this disk was.

    # --------------------------------------------------------------------------------------- what the host tells us

    def receive(self, peer: str, message: RaftMessage, now: float) -> None:
        """Take a message from `peer`, in the order sent on one link. Raises `Malformed` (close the link) or `Fatal`."""
        self._now = now
        if message.version != WIRE_VERSION:
            raise Malformed(f"wire version {message.version} from {peer}; this node speaks {WIRE_VERSION}")
        body = message.WhichOneof("body")
        if body is None or peer not in self._heard_at or message.term > _TERM_MAX:
            raise Malformed(f"a message from {peer} that no peer sends")
        self._heard_at[peer] = now
        _HANDLERS[body](self, peer, message.term, getattr(message, body))

    def heard_part(self, peer: str, term: int, now: float) -> None:
        """Note that a part came, not the last one, of a message that `peer` sent in `term`."""
        self._now = self._heard_at[peer] = now
        follows = self._role is Role.FOLLOWER and peer == self._leader and term == self._tail.term
        patient = now - self._leader_spoke < self._timing.fallback_s or "patience" in self._off
        if follows and patient and self._linked[peer] and "parts" not in self._off:
            self._leader_seen = now
            self._rearm()

    def acknowledged(self, peer: str) -> int:
        """The highest entry that `peer` said is on its disk, to this node as the leader; 0 if it does not lead."""
        progress = self._progress.get(peer)
        return progress.match_index if progress is not None and not progress.learner else 0

    def connected(self, peer: str, now: float) -> None:
        """Note that a link to `peer` is up: messages go out on it from now on."""
        self._now = now
        self._linked[peer] = True
        if peer in self._progress:
            self._progress[peer].probe()
            self._tidy_snapshot()
        if peer == self._leader:
            self._reads.recall()

    def disconnected(self, peer: str, now: float) -> None:
        """Note that the link to `peer` broke. If it led, an election begins at once."""
        self._now = now
        self._linked[peer] = False
        if peer in self._progress:
            self._progress[peer].probe()
            self._tidy_snapshot()
        if peer == self._leader and "B15" not in self._off:
            self._leader_seen = -inf
            soon = now + self._random.uniform(0, self._timing.election_min_s / 4)
            self._election_at = min(self._election_at, soon)

    def synced(self, seq: int, now: float) -> None:
        """Note that every tail operation up to `seq` is on disk: what waited for that may go."""
        self._now = now
        self._tail.synced(seq)
        if self._held and self._held[0][0] <= seq:
            self._send_held(seq)
        for peer, progress in self._progress.items():
            self._feed(peer, progress, alive=False)
        if self._role is Role.FOLLOWER:
            self._send_late_acks()
        self._conclude_join()

    def tick(self, now: float) -> None:
        """Do everything that is due: commit, replicate, elect, apply, answer."""
        self._now = now
        if self._role is Role.LEADER or self._asked:
            self._core.tick(now)
        if self._role is Role.LEADER:
            self._lead()
        elif now >= self._election_at and not self._learner:
            self._stand()
        if self._learner:
            self._learn()
        if self._reads.waiting:
            self._ask_reads()
        self._apply()
        self._report()
        self._deliver()

    @property
    def deadline(self) -> float:
        """When `tick` is due at the latest if nothing else happens."""
        if self._answers or (self._applied < self._tail.commit and self._may_apply):
            return self._now
        if self._learner:
            return self._join_at
        return min(self._beat_at, self._tell_at) if self._role is Role.LEADER else self._election_at

    def _report(self) -> None:
        now = (self._role, self._leader, self._tail.term, self.ready)
        if now != self._reported:
            self._reported = now
            self._host.changed()

    def _answer(self, done: Callable[..., None], *args: object) -> None:
        self._answers.append(lambda: done(*args))

    def _deliver(self) -> None:
        if self._answers:
            answers, self._answers = self._answers, []
            for answer in answers:
                answer()

    # -------------------------------------------------------------------------------------------------- elections

    def _rearm(self) -> None:
        timing = self._timing
        self._election_at = self._now + self._random.uniform(timing.election_min_s, timing.election_max_s)

    def _leader_alive(self) -> bool:
        if self._role is Role.LEADER:
            since = self._now - self._timing.election_max_s
            heard = sum(progress.heard > since and not progress.learner for progress in self._progress.values())
            return major(1 + heard, self._nodes)
        return self._now - self._leader_seen < self._timing.election_min_s

    def _stand(self) -> None:
        self._rearm()
        if self._role is Role.CANDIDATE and self._held:
            return None  # The votes asked for are still waiting for this disk: another term would wait as long.
        self._leader = None
        if not self._peers or "B13" in self._off:
            return self._campaign(forced=False)
        next_term = self._tail.term + 1
        self._pre_votes = (next_term, {self._me})
        return self._ask_pre_votes(self._peers, next_term)

    def _ask_pre_votes(self, peers: Iterable[str], next_term: int) -> None:
        tail = self._tail
        ask = wire.PreVote(next_term=next_term, last_index=tail.last_index, last_term=tail.last_term, nonce=self._nonce)
        for peer in peers:
            self._host.send(peer, RaftMessage(version=WIRE_VERSION, term=tail.term, pre_vote=ask))

    def _campaign(self, *, forced: bool) -> None:
        if self._role is not Role.LEADER and not self._learner:
            self._pre_votes = None
            self._forced = forced
            self._rearm()
            self._core.campaign(self._now)
            self._forced = False

    def _on_pre_vote(self, peer: str, _: int, ask: wire.PreVote) -> None:
        tail, timing = self._tail, self._timing
        theirs, ours = (ask.last_term, ask.last_index), (tail.last_term, tail.last_index)
        # Of two that ask each other at once only one may get it, or they would split the votes.
        ahead = (theirs, peer) > (ours, self._me) if self._pre_votes else theirs >= ours
        granted = ask.next_term > tail.term and ahead and not self._leader_alive() and not self._learner
        if granted:
            self._pre_votes = None
            give_way = self._random.uniform(timing.election_min_s / 4, timing.election_min_s)
            self._election_at = max(self._election_at, self._now + give_way)
        self._say_term(peer, next_term=ask.next_term, granted=granted, nonce=ask.nonce)

    def _say_term(self, peer: str, *, next_term: int = 0, granted: bool = False, nonce: int = 0) -> None:
        reply = wire.PreVoteReply(next_term=next_term, granted=granted, nonce=nonce)
        self._host.send(peer, RaftMessage(version=WIRE_VERSION, term=self._tail.term, pre_vote_reply=reply))

    def _on_pre_vote_reply(self, peer: str, term: int, reply: wire.PreVoteReply) -> None:
        if self._learner and reply.nonce == self._nonce:
            self._peer_terms.setdefault(peer, term)
        if term > self._tail.term:
            return self._core.take_term(term, self._now)
        if self._pre_votes is None or not reply.granted or reply.nonce != self._nonce or self._leader_alive():
            return None
        next_term, voters = self._pre_votes
        if reply.next_term == next_term == self._tail.term + 1:
            voters.add(peer)
            if major(len(voters), self._nodes):
                self._campaign(forced=False)
        return None

    def _on_vote(self, peer: str, term: int, vote: wire.Vote) -> None:
        if self._learner or ("B13" not in self._off and self._leader_alive() and not vote.forced):
            return
        if term < self._tail.term:
            self._say_term(peer)
        else:
            self._core.vote_asked(peer, term, vote.last_index, vote.last_term, self._now)

    def _on_vote_reply(self, peer: str, term: int, _: wire.VoteReply) -> None:
        if term != self._tail.term:
            return
        if self._votes[0] != term:
            self._votes = (term, set())
        seen = self._votes[1]
        if peer not in seen or "B12" in self._off:
            seen.add(peer)
            self._core.vote_won(peer, term, self._now)

    def _on_timeout_now(self, peer: str, term: int, _: wire.TimeoutNow) -> None:
        if term == self._tail.term and peer == self._leader:
            self._campaign(forced=True)

    # --------------------------------------------------------------------------------------------------- follower

    def _is_stale(self, peer: str, term: int) -> bool:
        if term < self._tail.term:
            self._host.send(peer, self._ack_message(STALE, 0, 0))
            return True
        if term == self._tail.term and self._role is Role.LEADER:
            raise Fatal(f"{peer} and this node both lead term {term}")
        return False

    def _hear(self, peer: str, term: int, commit: int) -> None:
        """Take `peer` for the leader and commit up to `commit`, which is verified; the log stays as it is."""
        tail = self._tail
        self._enter_term(term)
        if peer != self._leader:
            self._reads.recall()
        self._leader, self._pre_votes = peer, None
        self._leader_seen = self._leader_spoke = self._now
        self._rearm()
        if term != tail.term or self._role is not Role.FOLLOWER or commit > tail.commit:
            self._core.follow(peer, term, (tail.last_index, tail.last_term), commit, (), self._now)

    def _enter_term(self, term: int) -> None:
        """Forget what was said to the leader of an older term: its rounds and streams mean nothing to this one."""
        if self._verified[0] != term:
            self._verified, self._matched_sent, self._echo = (term, 0), 0, (0, 0)

    def _ack_message(self, result: Any, prev_index: int, hint: int) -> RaftMessage:
        ack = wire.AppendAck(
            result=result,
            round=self._echo[0],
            stream=self._echo[1],
            prev_index=prev_index,
            hint=hint,
            learner=self._learner,
            free_bytes=self._host.free_bytes(),
        )
        return RaftMessage(version=WIRE_VERSION, term=self._tail.term, append_ack=ack)

    def _ack(self, peer: str, result: Any, prev_index: int = 0, hint: int = 0) -> None:
        message = self._ack_message(result, prev_index, hint)
        if result == MATCHED:
            message.append_ack.match = self._matched_sent = self._provable(hint)
        if self._tail.meta_synced or "barrier" in self._off:
            self._host.send(peer, message)
        else:
            self._late_ack = (peer, message)

    def _provable(self, equal_index: int) -> int:
        return equal_index if "barrier" in self._off else min(equal_index, self._tail.durable)

    def _matched(self, peer: str, term: int, equal_index: int, *, grew: bool = False, notice: bool = False) -> None:
        self._verified = (term, max(self._verified[1], equal_index))
        provable = self._provable(equal_index)
        # An append that brought entries is acknowledged once, after their sync; beats say meanwhile that we live. One
        # that only tells of a commit asks for nothing.
        if (grew and provable < equal_index) or (notice and provable <= self._matched_sent):
            return
        self._ack(peer, MATCHED, hint=equal_index)

    def _send_late_acks(self) -> None:
        """After a sync: say what could not be said before it."""
        term, equal_index = self._verified
        late, self._late_ack = self._late_ack, None
        if self._leader is None or self._leader == self._me:
            return
        if term == self._tail.term and self._provable(equal_index) > self._matched_sent:
            self._ack(self._leader, MATCHED, hint=equal_index)
        elif late and late[1].term == self._tail.term:
            self._host.send(*late)

    def _on_append(self, peer: str, term: int, append: wire.Append) -> None:
        self._check_append(peer, append)
        if self._is_stale(peer, term):
            return
        self._enter_term(term)
        self._echo = (append.round, append.stream)
        if append.mark:
            self._host.marked(peer, append.mark)
        if append.unanchored:
            self._hear(peer, term, self._unverified(append.commit))
            self._ack(peer, HEARD)
            return
        entries = [Entry(entry.index, entry.term, entry.payload) for entry in append.entries]
        end = append.prev_index + len(entries)
        prev_index, prev_term = append.prev_index, append.prev_term
        boundary = self._tail.boundary_index
        if prev_index < boundary:
            # What lies at or below the boundary is committed, so it is equal.
            if end <= boundary:
                self._hear(peer, term, min(append.commit, end))
                self._matched(peer, term, end)
                return
            covered = boundary - prev_index
            prev_index, prev_term, entries = boundary, self._tail.boundary_term, entries[covered:]
        if not self._tail.holds(prev_index, prev_term):
            self._hear(peer, term, 0)
            self._ack(peer, CONFLICT, prev_index=append.prev_index, hint=self._agreeing(prev_index))
            return
        self._take(peer, term, prev_index, entries, append.commit)
        self._matched(peer, term, end, grew=bool(entries), notice=append.notice)

    def _check_append(self, peer: str, append: wire.Append) -> None:
        expected = append.prev_index
        for entry in append.entries:
            expected += 1
            if entry.index != expected or len(entry.payload) > self._bounds.entry_bytes_max:
                raise Malformed(f"entries from {peer} are not contiguous or too large")

    def _unverified(self, commit: int) -> int:
        return 0 if "B1" not in self._off else min(commit, self._tail.last_index)

    def _agreeing(self, prev_index: int) -> int:
        """The highest index below a conflict that may agree: a whole term is skipped at a time."""
        tail = self._tail
        hint = min(tail.last_index, prev_index - 1)
        if prev_index <= tail.last_index:
            if prev_index <= tail.commit:
                raise Fatal(f"the leader's log differs from this one at {prev_index}, which is committed")
            term = tail.term_at(prev_index)
            while hint > tail.commit and tail.term_at(hint) == term:
                hint -= 1
        return hint

    def _take(self, peer: str, term: int, prev_index: int, entries: list[Entry], commit: int) -> None:
        """Rules 1 and 3: add what is new, cut only from the first conflict, commit only what was verified."""
        tail = self._tail
        end = prev_index + len(entries)
        known = self._known(entries) if "B3" not in self._off else 0
        if known == len(entries) and ("B3" not in self._off or tail.last_index == end):
            self._hear(peer, term, min(commit, end) if "B1" not in self._off else commit)
            return
        self._hear(peer, term, 0)
        first = prev_index + known
        new = entries[known:]
        self._core.follow(peer, term, (first, tail.term_at(first)), min(commit, end), new, self._now)
        if tail.last_index != end:
            raise Fatal("the core did not take a verified append")

    def _known(self, entries: list[Entry]) -> int:
        tail = self._tail
        count = 0
        for entry in entries:
            if not tail.holds(entry.index, entry.term):
                break
            count += 1
        return count

    # --------------------------------------------------------------------------------------------------- leader

    def _lead(self) -> None:
        self._continue_transfer()
        beat = self._now >= self._beat_at
        asked = self._begin_round(beat)
        if beat or asked:
            self._beat_at = self._now + self._timing.beat_s
        for peer, progress in self._progress.items():
            self._replicate(peer, progress, asked or (beat and self._is_quiet(progress)))
        self._tell_commit()
        if not self._peers:
            self._count_echoes()

    def _is_quiet(self, progress: Progress) -> bool:
        """Whether a follower needs a beat: an append that left a moment ago said the same."""
        return progress.mode is not Mode.STREAM or self._now - progress.sent >= self._timing.beat_s / 2

    def _tell_commit(self) -> None:
        """Let followers hear soon what is committed, also when no entry follows: callers and watchers wait there."""
        commit = self._tail.commit
        behind = [p for p, x in self._progress.items() if x.mode is Mode.STREAM and x.commit_told < commit]
        if not behind or "B18" in self._off:
            self._tell_at = inf
        elif self._tell_at == inf:
            # Where entries are rare, none is about to carry it.
            rare = self._now - self._news_at > self._timing.beat_s
            self._tell_at = self._now + (0 if rare else self._timing.notice_s)
            self._news_at = self._now
        elif self._now >= self._tell_at:
            self._tell_at = inf
            for peer in behind:
                if self._linked[peer]:
                    self._send_append(peer, self._progress[peer], [], notice=True)

    def _feed(self, peer: str, progress: Progress, *, alive: bool) -> None:
        """Tell the core what counts: verified by the follower in this term, and not beyond our own disk."""
        if progress.learner:
            return
        durable = self._tail.durable if "ownsync" not in self._off else progress.match_index
        index = min(progress.match_index, durable)
        if index > progress.fed_index or alive:
            progress.fed_index = max(progress.fed_index, index)
            # A sync of our own is no sign of life of theirs.
            self._core.matched(peer, progress.fed_index, progress.heard)

    def _on_append_ack(self, peer: str, term: int, ack: wire.AppendAck) -> None:
        if term > self._tail.term:
            self._core.take_term(term, self._now)
            return
        current = term == self._tail.term or "B2" in self._off
        if self._role is not Role.LEADER or not current or ack.result == STALE:
            return
        progress = self._progress[peer]
        if ack.learner != progress.learner and not self._still_counts(progress, learner=ack.learner):
            return
        if ack.round > self._reads.round and "B2" not in self._off:
            raise Malformed(f"{peer} answers round {ack.round}; this leader is at {self._reads.round}")
        progress.heard, progress.free_bytes = self._now, ack.free_bytes
        progress.round = max(progress.round, ack.round)
        if ack.result == MATCHED:
            self._on_matched(peer, progress, ack)
        elif ack.result == CONFLICT:
            self._on_conflict(progress, ack)
        self._feed(peer, progress, alive=True)
        self._count_echoes()
        self._replicate(peer, progress, beat=False)

    def _still_counts(self, progress: Progress, *, learner: bool) -> bool:
        """Rule 18: note that a follower became a learner, or counts again. False if this node no longer leads."""
        progress.learner = learner
        if not learner:
            return True
        if progress.fed_index and "recount" not in self._off:
            # The core cannot forget that it counted the lost disk; a new election does.
            self._core.take_term(self._tail.term + 1, self._now)
            return False
        progress.forget(self._tail.last_index + 1)
        self._tidy_snapshot()
        return True

    def _on_matched(self, peer: str, progress: Progress, ack: wire.AppendAck) -> None:
        if max(ack.match, ack.hint) > self._tail.last_index and "B2" not in self._off:
            raise Malformed(f"{peer} acknowledges {ack.match}, beyond this log's {self._tail.last_index}")
        last = self._tail.last_index
        progress.matched(min(ack.match, last), min(max(ack.match, ack.hint), last))
        self._tidy_snapshot()

    def _on_conflict(self, progress: Progress, ack: wire.AppendAck) -> None:
        if "B4" not in self._off:
            if progress.learner and ack.stream == progress.stream and ack.hint < progress.match_index:
                # Its disk was replaced once more before it counted again: nothing that is known of it holds.
                progress.forget(ack.hint + 1)
                self._tidy_snapshot()
                return
            progress.refused(ack.prev_index, ack.hint, ack.stream)
        else:
            # As the library does: each refusal of a pipelined run moves it, and the last one wins.
            progress.probe()
            progress.mode = Mode.STREAM
            progress.next_index = max(1, min(ack.prev_index, self._tail.last_index))

    def _replicate(self, peer: str, progress: Progress, beat: bool) -> None:
        if not beat and progress.mode is Mode.STREAM and progress.next_index > self._tail.last_index:
            return  # Most of the time there is nothing to send.
        if not self._linked[peer] or not (beat or self._sends_at_once):
            return
        if progress.mode is not Mode.SNAPSHOT and progress.next_index <= self._tail.boundary_index:
            progress.send_snapshot(self._usable_snapshot(), self._now)
        if progress.mode is Mode.SNAPSHOT:
            self._replicate_snapshot(peer, progress, beat)
        elif progress.mode is Mode.PROBE and "B4" not in self._off:
            self._probe(peer, progress, beat)
        else:
            self._stream(peer, progress, beat)

    @property
    def _sends_at_once(self) -> bool:
        return "B18" not in self._off and "B4" not in self._off

    def _probe(self, peer: str, progress: Progress, beat: bool) -> None:
        if not progress.waiting:
            self._send_append(peer, progress, self._batch(progress))
            progress.waiting = True
        elif beat:
            self._send_append(peer, progress, [])

    def _stream(self, peer: str, progress: Progress, beat: bool) -> None:
        while progress.next_index <= self._tail.last_index and not self._window_full(progress):
            entries = self._batch(progress)
            self._send_append(peer, progress, entries)
            progress.sent_entries(entries)
            beat = False
        if beat:
            self._send_append(peer, progress, [])

    def _window_full(self, progress: Progress) -> bool:
        bounds = self._bounds
        return (
            len(progress.flights) >= bounds.appends_in_flight_max or progress.flying_bytes >= bounds.bytes_in_flight_max
        )

    def _batch(self, progress: Progress) -> list[Entry]:
        return self._tail.batch(progress.next_index, self._bounds.append_bytes_max)

    def _send_append(self, peer: str, progress: Progress, entries: list[Entry], *, notice: bool = False) -> None:
        tail, prev_index = self._tail, progress.next_index - 1
        progress.commit_told, progress.sent = tail.commit, self._now
        append = wire.Append(
            prev_index=prev_index,
            prev_term=tail.term_at(prev_index),
            commit=tail.commit,
            round=self._reads.round,
            stream=progress.stream,
            mark=b"" if entries else self._host.mark(),
            notice=notice,
        )
        for entry in entries:
            append.entries.add(index=entry.index, term=entry.term, payload=entry.payload)
        self._host.send(peer, RaftMessage(version=WIRE_VERSION, term=tail.term, append=append))

    def _send_unanchored(self, peer: str, progress: Progress) -> None:
        append = wire.Append(unanchored=True, commit=self._tail.commit, round=self._reads.round, stream=progress.stream)
        self._host.send(peer, RaftMessage(version=WIRE_VERSION, term=self._tail.term, append=append))

    # ------------------------------------------------------------------------------------------------- transfer

    def transfer(self, target: str | None, now: float) -> str | None:
        """Begin to hand leadership to `target` (or the most advanced peer); proposals are refused meanwhile.

        Returns the target, or None when this node does not lead or no such peer is connected. It is given up after one
        election timeout; `leader` tells how it ended.
        """
        self._now = now
        able = [p for p, progress in self._progress.items() if self._linked[p] and not progress.learner]
        if self._role is not Role.LEADER or not able or (target is not None and target not in able):
            return None
        chosen = target or max(able, key=lambda p: self._progress[p].match_index)
        self._drain = _Drain(chosen, now + self._timing.election_max_s, now)
        return chosen

    def _continue_transfer(self) -> None:
        drain = self._drain
        if drain is None:
            return
        if self._now > drain.until:
            self._drain = None
        elif self._now >= drain.ask_at and self._progress[drain.target].match_index == self._tail.last_index:
            drain.ask_at = self._now + self._timing.beat_s
            message = RaftMessage(version=WIRE_VERSION, term=self._tail.term, timeout_now=wire.TimeoutNow())
            self._host.send(drain.target, message)

    def change_membership(self, *_: object) -> None:
        """Refuse, always (B20): a change of members takes effect before it is committed, and the engine forgets it."""
        raise NotImplementedError(
            "the members of a region are fixed in its region file; to replace a dead node, start its successor under "
            "the same name with --replace"
        )

    # ------------------------------------------------------------------------------------- snapshots, as leader

    def _usable_snapshot(self) -> Snapshot | None:
        """The snapshot at hand, if the log still begins at or below it; otherwise one is asked for."""
        if self._snapshot and self._snapshot.meta.index >= self._tail.boundary_index:
            return self._snapshot
        self._tidy_snapshot()
        waited = self._now - self._snapshot_asked_at
        if self._snapshot_floor is None and waited >= self._timing.election_max_s and not self._installing:
            self._snapshot_floor, self._snapshot_asked_at = self._applied, self._now
            self._host.snapshot_wanted()
        return None

    def snapshot_ready(self, snapshot: Snapshot, now: float) -> None:
        """Take the snapshot that was wanted; the guard closes it when no follower needs it any more."""
        self._now, self._snapshot_floor = now, None
        self._release_snapshot()
        if self._role is not Role.LEADER:
            snapshot.close()
            return
        self._snapshot = snapshot
        for progress in self._progress.values():
            if progress.mode is Mode.SNAPSHOT and progress.snapshot is None:
                progress.send_snapshot(self._usable_snapshot(), now)
        self._tidy_snapshot()

    def snapshot_unready(self, now: float) -> None:
        """Note that it could not be made; it will be wanted again after an election timeout."""
        self._now, self._snapshot_floor, self._snapshot_asked_at = now, None, now

    def _release_snapshot(self) -> None:
        if self._snapshot:
            self._snapshot.close()
            self._snapshot = None

    def _tidy_snapshot(self) -> None:
        if self._snapshot and not any(p.snapshot is self._snapshot for p in self._progress.values()):
            self._release_snapshot()

    def _replicate_snapshot(self, peer: str, progress: Progress, beat: bool) -> None:
        if beat:
            self._send_unanchored(peer, progress)
        if progress.snapshot is None:
            progress.snapshot = self._usable_snapshot()
        snapshot = progress.snapshot
        if snapshot is None:
            return
        if snapshot.meta.index < self._tail.boundary_index:
            # The log outgrew its bound while this was being sent: streaming could not go on from it.
            progress.send_snapshot(self._usable_snapshot(), self._now)
            return
        if self._now - progress.moved > self._timing.election_max_s:
            self._ask_again(peer, progress, snapshot)
        self._send_chunks(peer, progress, snapshot)

    def _ask_again(self, peer: str, progress: Progress, snapshot: Snapshot) -> None:
        # Chunks were lost, or the follower is installing, or it has forgotten: an empty chunk makes it say which.
        progress.sent_offset, progress.moved = progress.acked_offset, self._now
        if progress.acked_offset == snapshot.meta.size:
            self._send_chunk(peer, snapshot, progress.acked_offset, b"")

    def _send_chunks(self, peer: str, progress: Progress, snapshot: Snapshot) -> None:
        window = self._bounds.chunks_in_flight_max * self._bounds.chunk_bytes
        while progress.sent_offset < min(snapshot.meta.size, progress.acked_offset + window):
            data = snapshot.read(progress.sent_offset, self._bounds.chunk_bytes)
            self._send_chunk(peer, snapshot, progress.sent_offset, data)
            progress.sent_offset += len(data)

    def _send_chunk(self, peer: str, snapshot: Snapshot, offset: int, data: bytes) -> None:
        meta = snapshot.meta
        chunk = wire.SnapshotChunk(
            index=meta.index,
            index_term=meta.term,
            size=meta.size,
            digest=meta.digest,
            offset=offset,
            data=data,
            commit=self._tail.commit,
        )
        self._host.send(peer, RaftMessage(version=WIRE_VERSION, term=self._tail.term, snapshot_chunk=chunk))

    def _on_snapshot_ack(self, peer: str, term: int, ack: wire.SnapshotAck) -> None:
        if term > self._tail.term:
            return self._core.take_term(term, self._now)
        progress = self._progress.get(peer)
        if progress is None or term != self._tail.term or progress.snapshot is None:
            return None
        meta = progress.snapshot.meta
        if ack.index != meta.index or ack.offset > meta.size:
            return None
        progress.heard = self._now
        progress.chunk_written(ack.offset, self._now)
        self._feed(peer, progress, alive=True)
        return self._replicate(peer, progress, beat=False)

    # ----------------------------------------------------------------------------------- snapshots, as follower

    def _on_snapshot_chunk(self, peer: str, term: int, chunk: wire.SnapshotChunk) -> None:
        meta = self._check_chunk(peer, chunk)
        if self._is_stale(peer, term):
            return
        self._hear(peer, term, self._unverified(chunk.commit))
        if "B5" not in self._off and self._has(meta):
            if meta.index > self._tail.commit:
                self._hear(peer, term, meta.index)
            self._matched(peer, term, meta.index)
        else:
            self._take_chunk(meta, chunk)

    def _check_chunk(self, peer: str, chunk: wire.SnapshotChunk) -> SnapshotMeta:
        size = len(chunk.data)
        if not chunk.size > 0 or chunk.offset + size > chunk.size or (not size and chunk.offset < chunk.size):
            raise Malformed(f"a snapshot chunk from {peer} does not fit its snapshot")
        return SnapshotMeta(chunk.index, chunk.index_term, chunk.size, chunk.digest)

    def _has(self, meta: SnapshotMeta) -> bool:
        return meta.index <= self._applied or self._tail.holds(meta.index, meta.term)

    def _take_chunk(self, meta: SnapshotMeta, chunk: wire.SnapshotChunk) -> None:
        if meta != self._incoming and not self._installing and chunk.offset == 0:
            self._incoming, self._incoming_handed, self._incoming_written = meta, 0, 0
        if meta != self._incoming:
            self._ack_snapshot(meta, 0)
        elif chunk.offset == self._incoming_handed and chunk.data:
            self._incoming_handed += len(chunk.data)
            self._installing = self._incoming_handed == meta.size
            self._host.snapshot_chunk(meta, chunk.offset, chunk.data)
        else:
            self._ack_snapshot(meta, self._incoming_written)

    def _ack_snapshot(self, meta: SnapshotMeta, offset: int) -> None:
        if self._leader is not None and self._leader != self._me:
            ack = wire.SnapshotAck(index=meta.index, offset=offset)
            message = RaftMessage(version=WIRE_VERSION, term=self._tail.term, snapshot_ack=ack)
            self._host.send(self._leader, message)

    def snapshot_written(self, meta: SnapshotMeta, offset: int) -> None:
        """Note that everything below `offset` of the incoming snapshot is in the host's file."""
        if meta == self._incoming:
            self._incoming_written = offset
            self._ack_snapshot(meta, offset)

    def snapshot_installed(self, meta: SnapshotMeta, now: float) -> None:
        """Note that the machine stands durably at `meta`; `machine.applied` says so."""
        self._now = now
        self._forget_incoming()
        self._applied, self._applied_term = self._machine.applied
        if (self._applied, self._applied_term) != (meta.index, meta.term):
            raise Fatal(f"a snapshot of {meta.index} was installed, but the machine stands at {self._applied}")
        if self._tail.holds(meta.index, meta.term) and "B5" not in self._off:
            self._tail.set_commit(meta.index)
        else:
            if self._role is Role.LEADER:
                raise Fatal(f"this node leads without entry {meta.index}, which is committed")
            self._tail.reset(meta.index, meta.term)
        for index in [index for index in self._pending if index <= meta.index]:
            self._resolve(index, None)
        if self._role is Role.FOLLOWER and self._leader is not None and self._verified[0] == self._tail.term:
            self._matched(self._leader, self._tail.term, meta.index)

    def snapshot_failed(self, meta: SnapshotMeta, now: float) -> None:
        """Note that the incoming snapshot was damaged or could not be installed; it starts again from nothing."""
        self._now = now
        if meta == self._incoming:
            self._forget_incoming()
            self._ack_snapshot(meta, 0)

    def _forget_incoming(self) -> None:
        self._incoming, self._incoming_handed, self._incoming_written = None, 0, 0
        self._installing = False

    # -------------------------------------------------------------------------------------- proposals and apply

    def propose(self, payload: bytes, done: Done) -> None:
        """Append `payload` to the log if this node leads; then `tick`. Raises ValueError when it is over the bound."""
        if len(payload) > self._bounds.entry_bytes_max and "B21" not in self._off:
            raise ValueError(f"an entry of {len(payload)} bytes; at most {self._bounds.entry_bytes_max}")
        full = self._pending_count >= self._bounds.proposals_max
        if self._role is not Role.LEADER or self._drain or full:
            self._answer(done, Outcome.REFUSED, 0)
            return
        self._numbers += 1
        self._pending_count += 1
        self._asked[self._numbers] = done
        self._core.propose(self._numbers, payload)

    @property
    def _applicable(self) -> int:
        # Rule 7: what is committed but not on this node's disk has to wait.
        tail = self._tail
        return tail.commit if "ownsync" in self._off else min(tail.commit, tail.durable)

    @property
    def _may_apply(self) -> bool:
        return self._applied < self._applicable and not self._installing

    def _apply(self) -> None:
        if self._applied < self._tail.commit and self._may_apply:
            self._apply_some()
        self._reads.applied(self._applied, self._now)

    def _apply_some(self) -> None:
        top = min(self._applicable, self._applied + self._bounds.applies_per_tick_max)
        left = self._bounds.apply_bytes_per_tick_max
        while self._applied < top and left > 0:
            entry = self._tail.entry(self._applied + 1)
            left -= len(entry.payload)
            self._machine.apply(entry.index, entry.term, entry.payload)
            self._applied, self._applied_term = entry.index, entry.term
            if self._pending:
                self._resolve(entry.index, entry.term)

    def _resolve(self, index: int, term: int | None) -> None:
        """Answer the proposals that stood at `index`, which turned out to hold an entry of `term` (None: not seen)."""
        for proposed_term, done in self._pending.pop(index, ()):
            self._pending_count -= 1
            if term is None:
                self._answer(done, Outcome.UNKNOWN, index)
            else:
                self._answer(done, Outcome.APPLIED if term == proposed_term else Outcome.DISCARDED, index)

    def trim(self, durable_index: int, keep_entries: int, keep_bytes: int) -> int:
        """Forget applied entries beyond what is to be kept for slow followers; return the boundary.

        `durable_index` is what the store has on disk for certain: nothing above it is ever forgotten.
        """
        top = min(self._applied, durable_index)
        if not self._installing:
            to_index = min(self._tail.excess(self._applied, keep_entries, keep_bytes), top, self._hold())
            self._tail.trim(to_index)
        return self._tail.boundary_index

    def _hold(self) -> int:
        """What a snapshot under way will need to be streamed from, as long as that stays within its bound."""
        floors = [self._snapshot_floor] if self._snapshot_floor is not None else []
        if self._snapshot:
            floors.append(self._snapshot.meta.index)
        held = floors and self._tail.memory_bytes <= self._bounds.held_bytes_max
        return min(floors) if held else self._tail.last_index

    # ---------------------------------------------------------------------------------------------------- reads

    def read(self, done: ReadDone, now: float) -> None:
        """Answer True once the machine holds all that was committed when this was called; False: it was not proven."""
        self._now = now
        self._reads.ask(done, now)

    def _ask_reads(self) -> None:
        """Ask the leader for an index at which this node's reads may be answered."""
        reads = self._reads
        reads.expire(self._now)
        if self._role is Role.LEADER or not reads.asked:
            return
        leader = self._leader
        self._numbers += 1
        if leader is None or leader == self._me:
            reads.no_leader()
        elif reads.forward(self._numbers):
            ask = wire.Read(nonce=self._nonce, number=self._numbers, learner=self._learner)
            self._host.send(leader, RaftMessage(version=WIRE_VERSION, term=self._tail.term, read=ask))

    def _begin_round(self, beat: bool) -> bool:
        """Begin a round if it is due: every beat, or at once for reads. True if every follower has to hear of it."""
        tail = self._tail
        able = tail.term_at(tail.commit) == tail.term or "readterm" in self._off
        begun = self._reads.begin(tail.commit, self._now, beat=beat, able=able)
        if begun and "readround" in self._off:
            self._reads.echoed(self._reads.round, self._applied, self._now)
        return begun

    def _count_echoes(self) -> None:
        echoes = [0 if progress.learner else progress.round for progress in self._progress.values()]
        majority = sorted([self._reads.round, *echoes])[len(self._peers) // 2]
        self._reads.echoed(majority, self._applied, self._now)

    def _reply_read(self, asker: Asker, index: int | None) -> None:
        peer, ask = asker
        reply = wire.ReadReply(nonce=ask.nonce, number=ask.number, known=index is not None, index=index or 0)
        self._host.send(peer, RaftMessage(version=WIRE_VERSION, term=self._tail.term, read_reply=reply))

    def _on_read(self, peer: str, _: int, ask: wire.Read) -> None:
        progress = self._progress.get(peer)
        if progress and ask.learner and not progress.learner:
            self._still_counts(progress, learner=True)
        if self._role is Role.LEADER:
            self._reads.ask_remote((peer, ask))
        else:
            self._reply_read((peer, ask), None)

    def _on_read_reply(self, _: str, __: int, reply: wire.ReadReply) -> None:
        if reply.nonce == self._nonce:
            index = reply.index if reply.known else None
            self._reads.told(reply.number, index, self._applied, self._now)

    # ------------------------------------------------------------------------------------------ a replaced disk

    def _learn(self) -> None:
        """Rule 18: ask every peer for its term, then prove by a read that everything committed has arrived."""
        if self._now < self._join_at:
            return
        self._join_at = self._now + self._timing.election_min_s
        if self._join_seq is not None:
            return
        unheard = [peer for peer in self._peers if peer not in self._peer_terms]
        if unheard:
            self._ask_pre_votes(unheard, 0)
        elif not self._join_reading:
            self._join_reading = True
            self.read(self._join_read, self._now)

    def _join_read(self, proven: bool) -> None:
        self._join_reading = False
        if proven and self._join_seq is None:
            self._core.burn_vote(max(self._peer_terms.values(), default=0), self._now)
            self._join_seq = self._tail.seq
            self._conclude_join()

    def _conclude_join(self) -> None:
        if self._learner and self._join_seq is not None and self._join_seq <= self._tail.synced_seq:
            self._join_seq = 1 << 62
            self._host.caught_up()

    def joined(self, now: float) -> None:
        """Count from now on: the host has recorded that this disk does."""
        self._now = now
        self._learner = False
        self._rearm()

    # -------------------------------------------------------------------------------------------- what is so

    @property
    def learner(self) -> bool:
        """Whether this node's disk does not count yet: it neither votes nor is its ack counted."""
        return self._learner

    @property
    def role(self) -> Role:
        """This node's role."""
        return self._role

    @property
    def leader(self) -> str | None:
        """Who leads, as far as this node knows."""
        return self._leader

    @property
    def term(self) -> int:
        """The current term."""
        return self._tail.term

    @property
    def commit(self) -> int:
        """The highest index known to be committed."""
        return self._tail.commit

    @property
    def applied(self) -> int:
        """The highest index applied here."""
        return self._applied

    @property
    def ready(self) -> bool:
        """Whether this node leads and has applied an entry of its own term."""
        return self._role is Role.LEADER and self._applied_term == self._tail.term

    def status(self, now: float) -> LogStatus:
        """All of it at one moment."""
        return LogStatus(
            role=self._role,
            leader=self._leader,
            term=self._tail.term,
            commit=self._tail.commit,
            applied=self._applied,
            last=self._tail.last_index,
            ready=self.ready,
            fresh_s=now - self._reads.fresh_at,
            peers={peer: self._peer_status(peer, now) for peer in self._peers},
        )

    def _peer_status(self, peer: str, now: float) -> PeerStatus:
        progress = self._progress.get(peer)
        heard_s = now - self._heard_at[peer]
        if progress is None:
            return PeerStatus(self._linked[peer], 0, "leader" if peer == self._leader else "", heard_s)
        state = "learner" if progress.learner else progress.mode.value
        return PeerStatus(self._linked[peer], progress.match_index, state, heard_s)

    def peer_free_bytes(self) -> dict[str, int]:
        """What each peer last said of its free disk; known to the leader only."""
        return {peer: progress.free_bytes for peer, progress in self._progress.items()}


_HANDLERS: dict[str, Callable[[Guard, str, int, Any], None]] = {
    "append": Guard._on_append,
    "append_ack": Guard._on_append_ack,
    "pre_vote": Guard._on_pre_vote,
    "pre_vote_reply": Guard._on_pre_vote_reply,
    "vote": Guard._on_vote,
    "vote_reply": Guard._on_vote_reply,
    "timeout_now": Guard._on_timeout_now,
    "snapshot_chunk": Guard._on_snapshot_chunk,
    "snapshot_ack": Guard._on_snapshot_ack,
    "read": Guard._on_read,
    "read_reply": Guard._on_read_reply,
}
