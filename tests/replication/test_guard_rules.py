"""Each rule of the guard that one exchange can show: with the rule it holds, without it the defect is there.

The table of all defects and the tests that close them is in README.md beside this file.
"""

from __future__ import annotations

import pytest

from controlplane.errors import Fatal
from controlplane.replication import Role
from controlplane.replication.guard import Bounds, Malformed, Outcome, Timing
from controlplane.replication.tail import Cut, Entry, Recovered
from controlplane.v1 import raft_pb2 as wire
from tests.replication.solo import TIMING, Solo, entries, holding


def with_and_without(rule: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("off", [frozenset(), frozenset({rule})], ids=["rule", "defect"])


@with_and_without("B1")
def test_b1_commit_only_from_a_verified_append(off: frozenset[str]) -> None:
    node = Solo(recovered=holding(5, term=1), off=off)
    node.hear("b", 2, append=wire.Append(unanchored=True, commit=5))
    node.tick()
    assert (node.guard.commit == 5) == bool(off)


@with_and_without("B2")
def test_b2_acks_of_another_term_do_not_count(off: frozenset[str]) -> None:
    node = Solo(("b", "c", "d", "e"), recovered=holding(5, term=1), off=off)
    node.lead()
    node.propose()
    node.tick()
    node.sync()
    node.matched("b", node.tail.last_index)
    node.matched("c", node.tail.last_index, term=1)
    node.tick()
    assert bool(node.outcomes) == bool(off)


@with_and_without("B3")
def test_b3_a_repeated_or_shorter_append_cuts_nothing(off: frozenset[str]) -> None:
    node = Solo(off=off)
    node.append("b", 1, (0, 0), *entries(1, 5, 1))
    node.ops.clear()
    node.append("b", 1, (0, 0), *entries(1, 3, 1))
    assert (Cut(2) in node.ops or Cut(1) in node.ops) == bool(off)
    assert (node.tail.last_index == 5) == (not off)


def test_b3_only_what_conflicts_is_cut() -> None:
    node = Solo(recovered=holding(6, term=1))
    node.append("b", 2, (2, 1), Entry(3, 1, b"3"), Entry(4, 2, b"new"))
    assert [op for op in node.ops if isinstance(op, Cut)] == [Cut(4)]
    assert node.tail.entry(4) == Entry(4, 2, b"new")


def test_b4_what_is_on_its_way_to_a_follower_is_bounded_in_bytes() -> None:
    node = Solo(bounds=Bounds(append_bytes_max=1, bytes_in_flight_max=5000))
    node.lead()
    first = node.tail.last_index + 1
    for size in (9000, 2000, 2000, 2000, 2000):
        node.propose(bytes(size))
    node.tick()

    def sent() -> list[int]:
        return [entry.index - first for peer, append in node.said("append") if peer == "b" for entry in append.entries]

    assert sent() == [0], "one may always leave, however large"
    node.sync()
    node.matched("b", first)
    assert sent() == [1, 2, 3]
    node.matched("b", first + 1)
    assert sent() == [4]


@with_and_without("B4")
def test_b4_a_stale_refusal_moves_nothing(off: frozenset[str]) -> None:
    node = Solo(recovered=holding(40, term=1), off=off)
    node.lead()
    progress = node.guard._progress["b"]
    refusal = wire.AppendAck(result=wire.AppendAck.RESULT_CONFLICT, prev_index=40, hint=3, stream=progress.stream - 1)
    node.hear("b", node.tail.term, append_ack=refusal)
    assert (progress.next_index < 41) == bool(off)


def snapshot_chunk(index: int, term: int, data: bytes = b"state") -> wire.SnapshotChunk:
    return wire.SnapshotChunk(index=index, index_term=term, size=len(data), digest=b"d", data=data)


@with_and_without("B5")
def test_b5_a_snapshot_that_is_not_ahead_is_ignored(off: frozenset[str]) -> None:
    recovered = Recovered(8, 1, tuple(entries(9, 12, 1)), 1, None, 12)
    node = Solo(recovered=recovered, applied=(12, 1), off=off)
    node.hear("b", 1, snapshot_chunk=snapshot_chunk(10, 1))
    assert bool(node.chunks) == bool(off)
    if not off:
        assert [ack.match for _, ack in node.said("append_ack")] == [10]


def test_b5_a_log_that_agrees_with_a_snapshot_is_kept() -> None:
    node = Solo(recovered=holding(10, term=1))
    node.hear("b", 1, snapshot_chunk=snapshot_chunk(8, 1))
    assert not node.chunks
    assert node.guard.commit == 8
    assert node.tail.last_index == 10


def test_b6_the_log_is_kept_when_the_store_is_ahead_of_its_boundary() -> None:
    node = Solo(recovered=holding(10, term=1), applied=(6, 1))
    assert (node.tail.boundary_index, node.tail.last_index) == (0, 10)
    planted = Solo(recovered=holding(10, term=1), applied=(6, 1), off={"B6"})
    assert (planted.tail.boundary_index, planted.tail.last_index) == (6, 6)


def test_b6_a_log_that_the_store_contradicts_begins_again() -> None:
    node = Solo(recovered=holding(10, term=1), applied=(12, 2))
    assert (node.tail.boundary_index, node.tail.boundary_term, node.tail.last_index) == (12, 2, 12)


@with_and_without("barrier")
def test_b8_an_ack_promises_only_what_is_on_disk(off: frozenset[str]) -> None:
    node = Solo(off=off)
    node.append("b", 1, (0, 0), *entries(1, 3, 1))
    before = [ack.match for _, ack in node.said("append_ack")]
    assert before == ([3] if off else [])
    node.sync()
    if not off:
        assert [ack.match for _, ack in node.said("append_ack")] == [3]


@with_and_without("barrier")
def test_b8_a_vote_leaves_after_its_sync(off: frozenset[str]) -> None:
    node = Solo(off=off)
    node.tick(TIMING.election_min_s / 2)
    node.hear("b", 1, vote=wire.Vote(last_index=0, last_term=0))
    assert bool(node.said("vote_reply")) == bool(off)
    node.sync()
    assert bool(node.said("vote_reply")) == (not off)


@with_and_without("ownsync")
def test_b8_the_leaders_own_unsynced_entries_do_not_count(off: frozenset[str]) -> None:
    node = Solo(off=off)
    node.lead()
    node.propose()
    node.tick()
    node.matched("b", node.tail.last_index)
    node.tick()
    assert bool(node.outcomes) == bool(off)
    node.sync()
    node.tick()
    assert node.outcomes == [(Outcome.APPLIED, node.tail.last_index)]


def test_b9_apply_begins_after_what_the_store_has_applied() -> None:
    node = Solo(recovered=holding(10, term=1, commit=8), applied=(6, 1))
    node.tick()
    assert [entry.index for entry in node.applied_entries] == [7, 8]
    planted = Solo(recovered=holding(10, term=1, commit=8), applied=(6, 1), off={"B9"})
    with pytest.raises(AssertionError):
        planted.tick()


@with_and_without("B12")
def test_b12_a_vote_counts_once(off: frozenset[str]) -> None:
    node = Solo(("b", "c", "d", "e"), off=off)
    node.campaign()
    for _ in range(2):
        node.hear("b", node.tail.term, vote_reply=wire.VoteReply())
    assert (node.guard.role is Role.LEADER) == bool(off)
    # A straggler of an older term in between must not make the guard forget who voted.
    node.hear("c", node.tail.term - 1, vote_reply=wire.VoteReply())
    node.hear("b", node.tail.term, vote_reply=wire.VoteReply())
    assert (node.guard.role is Role.LEADER) == bool(off)


@with_and_without("B13")
def test_b13_a_cut_off_node_does_not_raise_its_term(off: frozenset[str]) -> None:
    node = Solo(off=off)
    for _ in range(20):
        node.tick(TIMING.election_max_s)
        node.sync()
    assert (node.tail.term >= 20) == bool(off)
    assert (node.tail.term == 0) == (not off)


@with_and_without("B13")
def test_b13_no_vote_while_the_leader_is_alive_unless_it_asked_for_it(off: frozenset[str]) -> None:
    node = Solo(off=off)
    node.append("b", 1, (0, 0))
    node.hear("c", 2, vote=wire.Vote(last_index=0, last_term=0))
    assert (node.tail.term == 2) == bool(off)
    node.hear("c", 3, vote=wire.Vote(last_index=0, last_term=0, forced=True))
    assert node.tail.term == 3


@with_and_without("B14")
def test_b14_a_leader_without_a_majority_steps_down(off: frozenset[str]) -> None:
    node = Solo(off=off)
    node.lead()
    for _ in range(40):
        node.tick(TIMING.beat_s)
    assert (node.guard.role is Role.LEADER) == bool(off)


def test_b14_a_sync_of_its_own_does_not_keep_a_leader() -> None:
    """What followers acknowledged counts when the own slow disk has it too; that says nothing of whether they live."""
    node = Solo()
    node.lead()
    node.guard.propose(b"1", lambda *_: None)
    node.tick()
    for peer in ("b", "c"):
        node.matched(peer, node.tail.last_index)
    node.tick(0.75 * TIMING.fallback_s)
    assert node.guard.role is Role.LEADER
    node.sync()
    node.tick(0.3 * TIMING.fallback_s)
    assert node.guard.role is not Role.LEADER


@with_and_without("readround")
def test_b14_a_read_waits_for_a_round_that_began_after_it(off: frozenset[str]) -> None:
    node = Solo(off=off)
    node.lead()
    node.read()
    node.tick()
    assert bool(node.reads) == bool(off)
    asked = max(append.round for _, append in node.said("append"))
    node.matched("b", node.tail.last_index, round=asked - 1)
    node.tick()
    assert bool(node.reads) == bool(off)
    node.matched("b", node.tail.last_index, round=asked)
    node.tick()
    assert node.reads == [True]


@with_and_without("readterm")
def test_b14_a_read_waits_for_a_commit_of_the_leaders_own_term(off: frozenset[str]) -> None:
    node = Solo(recovered=holding(3, term=1), off=off)
    node.campaign()
    node.hear("b", node.tail.term, vote_reply=wire.VoteReply())
    node.read()
    node.tick()
    asked = max(append.round for _, append in node.said("append"))
    ack = wire.AppendAck(result=wire.AppendAck.RESULT_HEARD, round=asked)
    node.hear("b", node.tail.term, append_ack=ack)
    node.tick()
    assert bool(node.reads) == bool(off)


@with_and_without("nonce")
def test_b14_an_answer_meant_for_an_earlier_process_proves_nothing(off: frozenset[str]) -> None:
    before, after = Solo(off=off, seed=1), Solo(off=off, seed=2)
    for node in (before, after):
        node.append("b", 1, (0, 0))
        node.sync()
        node.sent.clear()
        node.read()
        node.tick()
    ((_, ask),) = before.said("read")
    after.hear("b", 1, read_reply=wire.ReadReply(nonce=ask.nonce, number=ask.number, known=True, index=0))
    after.tick()
    assert bool(after.reads) == bool(off)


def asked_of(node: Solo, leader: str) -> wire.Read:
    """The one read that `node` asks `leader` for in its next turn."""
    node.tick()
    ((peer, ask),) = node.said("read")
    assert peer == leader
    return ask


def test_b14_a_read_is_asked_anew_of_whoever_leads_next() -> None:
    node = Solo()
    node.append("b", 1, (0, 0))
    node.sync()
    node.read()
    before = asked_of(node, "b")
    node.append("c", 2, (0, 0))
    node.sync()
    after = asked_of(node, "c")
    # An answer of the one that fell would be as of before.
    node.hear("b", 1, read_reply=wire.ReadReply(nonce=before.nonce, number=before.number, known=True, index=0))
    node.tick()
    assert node.reads == []
    node.hear("c", 2, read_reply=wire.ReadReply(nonce=after.nonce, number=after.number, known=True, index=0))
    node.tick()
    assert node.reads == [True]


def test_b14_a_read_is_asked_anew_over_a_new_link() -> None:
    node = Solo()
    node.append("b", 1, (0, 0))
    node.sync()
    node.read()
    asked_of(node, "b")
    node.guard.disconnected("b", node.now)
    node.guard.connected("c", node.now)
    node.tick()
    assert node.said("read") == []
    node.guard.connected("b", node.now)
    ask = asked_of(node, "b")
    node.hear("b", 1, read_reply=wire.ReadReply(nonce=ask.nonce, number=ask.number, known=True, index=0))
    node.tick()
    assert node.reads == [True]


def test_b14_a_read_that_was_asked_of_another_is_proven_by_the_own_leadership() -> None:
    node = Solo()
    node.append("b", 1, (0, 0))
    node.sync()
    node.read()
    asked_of(node, "b")
    node.lead()
    node.tick(TIMING.beat_s)
    asked = max(append.round for _, append in node.said("append"))
    node.matched("c", node.tail.last_index, round=asked)
    node.tick()
    assert node.reads == [True]


def test_b14_a_read_waits_no_longer_because_it_is_asked_anew() -> None:
    node = Solo()
    node.append("b", 1, (0, 0))
    node.sync()
    node.read()
    for _ in range(int(TIMING.fallback_s / 0.1)):
        node.tick(0.1)
        node.append("b", 1, (0, 0))
        node.guard.connected("b", node.now)
    assert node.reads == []
    node.tick(0.1)
    assert node.reads == [False]


@with_and_without("B15")
def test_b15_a_broken_link_to_the_leader_starts_an_election_at_once(off: frozenset[str]) -> None:
    node = Solo(off=off)
    node.append("b", 1, (0, 0))
    node.sync()
    node.guard.disconnected("b", node.now)
    node.tick(TIMING.election_min_s / 4)
    assert bool(node.said("pre_vote")) == (not off)


@with_and_without("B16")
def test_b16_losing_leadership_answers_nothing(off: frozenset[str]) -> None:
    node = Solo(off=off)
    node.lead()
    node.propose()
    node.tick()
    index = node.tail.last_index
    node.append("b", 9, (index, node.tail.term), commit=0)
    node.tick()
    assert node.outcomes == ([(Outcome.REFUSED, 0)] if off else [])
    node.sync()
    node.append("b", 9, (index, node.tail.term_at(index)), Entry(index + 1, 9, b""), commit=index + 1)
    node.sync()
    node.tick()
    if not off:
        assert node.outcomes == [(Outcome.APPLIED, index)]


def test_b16_another_entry_in_its_place_is_a_definite_failure() -> None:
    node = Solo()
    node.lead()
    node.propose()
    node.tick()
    index, before = node.tail.last_index, node.tail.term_at(node.tail.last_index - 1)
    node.append("b", 9, (index - 1, before), Entry(index, 9, b"other"), commit=index)
    node.sync()
    node.tick()
    assert node.outcomes == [(Outcome.DISCARDED, index)]


def test_b17_a_snapshot_under_way_stops_nothing() -> None:
    node = Solo()
    node.hear("b", 1, snapshot_chunk=snapshot_chunk(50, 1))
    assert len(node.chunks) == 1
    node.sync()
    node.sent.clear()
    # While the host installs: heartbeats are answered, entries are taken, nothing is applied.
    node.append("b", 1, (0, 0), *entries(1, 3, 1), commit=3)
    node.sync()
    node.tick()
    assert [ack.match for _, ack in node.said("append_ack")][-1] == 3
    assert not node.applied_entries
    node.applied = (50, 1)
    node.guard.snapshot_installed(node.chunks[0][0], node.now)
    node.sync()
    assert (node.tail.boundary_index, node.tail.last_index) == (50, 50)
    assert 50 in [ack.match for _, ack in node.said("append_ack")]


@with_and_without("B18")
def test_b18_an_entry_leaves_when_it_is_proposed(off: frozenset[str]) -> None:
    node = Solo(off=off)
    node.lead()
    node.tick()
    node.sent.clear()
    node.propose()
    node.tick()
    assert any(append.entries for _, append in node.said("append")) == (not off)


def test_b20_membership_is_fixed() -> None:
    node = Solo()
    with pytest.raises(NotImplementedError, match="--replace"):
        node.guard.change_membership("add", "d")


@with_and_without("B21")
def test_b21_entries_are_bounded(off: frozenset[str]) -> None:
    node = Solo(off=off, bounds=Bounds(entry_bytes_max=100))
    node.lead()
    if off:
        node.propose(b"x" * 101)
    else:
        with pytest.raises(ValueError, match="at most 100"):
            node.propose(b"x" * 101)
    node.propose(b"x" * 100)


def test_b21_oversized_and_broken_appends_close_the_link() -> None:
    node = Solo(bounds=Bounds(entry_bytes_max=100))
    with pytest.raises(Malformed):
        node.append("b", 1, (0, 0), Entry(1, 1, b"x" * 101))
    with pytest.raises(Malformed):
        node.append("b", 1, (0, 0), Entry(2, 1, b"gap"))
    with pytest.raises(Malformed):
        node.guard.receive("b", wire.RaftMessage(version=99, term=1, append=wire.Append()), node.now)
    with pytest.raises(Malformed):
        node.guard.receive("b", wire.RaftMessage(version=1, term=1), node.now)
    assert len(node.tail) == 0


@with_and_without("recount")
def test_replace_a_leader_that_counted_the_lost_disk_steps_down(off: frozenset[str]) -> None:
    node = Solo(off=off)
    node.lead()
    term = node.tail.term
    node.matched("b", 0, learner=True)
    assert (node.guard.role is Role.LEADER) == bool(off)
    assert (node.tail.term == term) == bool(off)


@with_and_without("replace")
def test_replace_a_learner_neither_votes_nor_counts(off: frozenset[str]) -> None:
    node = Solo(off=off, learner=True)
    node.tick(TIMING.election_max_s)
    node.sent.clear()
    node.hear("b", 7, vote=wire.Vote(last_index=9, last_term=6))
    node.sync()
    assert bool(node.said("vote_reply")) == bool(off)
    node.append("b", 8, (0, 0))
    node.sync()
    assert [ack.learner for _, ack in node.said("append_ack")] == [not off]


def test_replace_a_learner_joins_above_every_term_its_peers_know() -> None:
    node = Solo(learner=True)
    node.append("b", 3, (0, 0), *entries(1, 4, 3), commit=4)
    node.sync()
    node.tick()
    asks = dict(node.said("pre_vote"))
    assert set(asks) == {"b", "c"}
    for peer, term in (("b", 3), ("c", 3)):
        node.hear(peer, term, pre_vote_reply=wire.PreVoteReply(nonce=asks[peer].nonce))
    node.tick(TIMING.election_min_s)
    ((_, ask),) = node.said("read")
    node.hear("b", 3, read_reply=wire.ReadReply(nonce=ask.nonce, number=ask.number, known=True, index=4))
    node.tick()
    assert not node.caught_up_calls
    node.sync()
    assert node.caught_up_calls == 1
    node.guard.joined(node.now)
    node.tick(TIMING.election_min_s)
    node.hear("c", 3, vote=wire.Vote(last_index=9, last_term=3))
    node.sync()
    assert not node.said("vote_reply"), "its vote of term 3 may have been given before the disk was lost"
    node.hear("c", 4, vote=wire.Vote(last_index=9, last_term=3))
    node.sync()
    assert len(node.said("vote_reply")) == 1


def test_replace_a_learner_waits_for_every_peer() -> None:
    node = Solo(learner=True)
    node.append("b", 3, (0, 0), *entries(1, 4, 3), commit=4)
    node.sync()
    node.tick()
    asks = dict(node.said("pre_vote"))
    node.hear("b", 3, pre_vote_reply=wire.PreVoteReply(nonce=asks["b"].nonce))
    node.hear("c", 3, pre_vote_reply=wire.PreVoteReply(nonce=asks["c"].nonce + 1))
    node.tick(TIMING.election_min_s)
    assert not node.said("read")


def test_a_single_node_answers_only_what_is_synced() -> None:
    node = Solo(())
    node.tick(TIMING.election_max_s)
    node.propose()
    node.tick()
    node.tick()
    assert node.guard.role is Role.LEADER
    assert not node.outcomes
    node.sync()
    node.tick()
    assert node.outcomes == [(Outcome.APPLIED, 2)]
    assert node.guard.ready
    node.read()
    node.tick()
    node.tick()
    assert node.reads == [True]
    assert node.guard.status(node.now).fresh_s == 0


def test_two_leaders_in_a_term_stop_the_process() -> None:
    node = Solo()
    node.lead()
    with pytest.raises(Fatal, match="both lead"):
        node.append("b", node.tail.term, (0, 0))


def test_a_conflict_with_a_committed_entry_stops_the_process() -> None:
    node = Solo(recovered=holding(5, term=1, commit=5), applied=(5, 1))
    with pytest.raises(Fatal, match="committed"):
        node.append("b", 2, (4, 2))


def test_proposals_are_refused_by_followers_during_transfer_and_beyond_the_bound() -> None:
    node = Solo(bounds=Bounds(proposals_max=1))
    node.propose()
    node.tick()
    assert node.outcomes == [(Outcome.REFUSED, 0)]
    node.lead()
    node.propose()
    node.propose()
    node.tick()
    assert node.outcomes[1:] == [(Outcome.REFUSED, 0)]
    assert node.guard.transfer("nobody", node.now) is None
    assert node.guard.transfer("b", node.now) == "b"
    node.propose()
    node.tick()
    assert node.outcomes[2:] == [(Outcome.REFUSED, 0)]


def test_transfer_waits_until_the_target_has_everything() -> None:
    node = Solo()
    node.lead()
    node.propose()
    node.tick()
    node.guard.transfer("b", node.now)
    node.tick()
    assert not node.said("timeout_now")
    node.matched("b", node.tail.last_index)
    node.tick()
    assert [peer for peer, _ in node.said("timeout_now")] == ["b"]
    node.tick(TIMING.election_max_s + 0.01)
    node.propose()
    node.tick()
    assert Outcome.REFUSED not in [outcome for outcome, _ in node.outcomes]


def test_trim_never_goes_beyond_what_the_store_has_on_disk() -> None:
    node = Solo(recovered=holding(10, term=1, commit=10), applied=(10, 1))
    assert node.guard.trim(4, keep_entries=0, keep_bytes=0) == 4
    assert node.guard.trim(10, keep_entries=3, keep_bytes=1 << 20) == 7
    assert node.guard.trim(10, keep_entries=100, keep_bytes=0) == 10


def test_a_slow_follower_gets_a_snapshot_and_the_log_is_held_for_it() -> None:
    node = Solo(recovered=Recovered(8, 1, tuple(entries(9, 12, 1)), 1, None, 12), applied=(12, 1))
    node.lead()
    node.guard._progress["c"].forget(13)
    refusal = wire.AppendAck(
        result=wire.AppendAck.RESULT_CONFLICT, prev_index=12, hint=0, stream=node.guard._progress["c"].stream
    )
    node.hear("c", node.tail.term, append_ack=refusal)
    node.tick()
    assert node.snapshots_wanted == 1
    floor = node.guard.applied
    node.propose()
    node.tick()
    node.matched("b", node.tail.last_index)
    node.sync()
    node.tick()
    assert node.guard.applied > floor
    assert node.guard.trim(node.guard.applied, 0, 0) == floor


def test_timing_is_checked() -> None:
    with pytest.raises(ValueError, match="beats"):
        Timing(0.1, 0.2, 0.05)


def test_replace_a_leader_learns_from_a_read_that_a_disk_was_replaced() -> None:
    node = Solo()
    node.lead()
    node.hear("b", node.tail.term, read=wire.Read(nonce=1, number=1, learner=True))
    assert node.guard.role is Role.FOLLOWER
    assert [reply.known for _, reply in node.said("read_reply")] == [False]


def test_replace_a_disk_that_is_replaced_again_begins_anew() -> None:
    node = Solo()
    node.campaign()
    for peer in ("b", "c"):
        node.hear(peer, node.tail.term, vote_reply=wire.VoteReply())
    node.tick()
    node.sync()
    last = node.tail.last_index
    node.matched("c", 0, learner=True)
    node.matched("c", last, learner=True, stream=2)
    node.sent.clear()
    conflict = wire.AppendAck(result=wire.AppendAck.RESULT_CONFLICT, prev_index=last, hint=0, learner=True)
    for stream in (1, 2):
        # Of an older stream it says nothing: that is where the disk before may have stood.
        conflict.stream = stream
        node.hear("c", node.tail.term, append_ack=conflict)
        assert [append.prev_index for peer, append in node.said("append") if peer == "c"] == [0] * (stream - 1)
    assert node.guard.role is Role.LEADER


def test_a_node_starts_at_the_term_of_its_log() -> None:
    # The snapshot was installed, and the power failed before its term was on disk.
    node = Solo(recovered=holding(3, term=5, voted_for="b"), applied=(241, 8))
    assert (node.tail.term, node.tail.voted_for) == (8, None)
    node.hear("b", 8, append=wire.Append(unanchored=True))
    node.sync()
    assert [message.term for _, message in node.sent if message.HasField("append_ack")] == [8]


def test_replace_waiting_for_the_host_is_not_busy() -> None:
    node = Solo(learner=True)
    node.append("b", 3, (0, 0))
    node.sync()
    node.tick()
    for peer, ask in node.said("pre_vote"):
        node.hear(peer, 3, pre_vote_reply=wire.PreVoteReply(nonce=ask.nonce))
    node.tick(TIMING.election_min_s)
    ((_, ask),) = node.said("read")
    node.hear("b", 3, read_reply=wire.ReadReply(nonce=ask.nonce, number=ask.number, known=True, index=0))
    node.tick()
    node.sync()
    node.tick(0.001)
    assert node.caught_up_calls == 1
    assert node.guard.deadline > node.now


def test_acks_that_no_follower_sends_close_the_link() -> None:
    node = Solo()
    node.lead()
    with pytest.raises(Malformed, match="beyond"):
        node.matched("b", node.tail.last_index + 1)
    with pytest.raises(Malformed, match="round"):
        node.matched("b", 1, round=10**6)
    with pytest.raises(Malformed):
        node.hear("b", 1 << 63, append=wire.Append())
    with pytest.raises(Malformed):
        node.hear("stranger", 1, append=wire.Append())


def test_b14_an_ack_never_echoes_a_round_of_another_leader() -> None:
    node = Solo()
    node.append("b", 1, (0, 0), *entries(1, 3, 1), round=44, stream=9)
    node.sync()
    node.sent.clear()
    node.hear("c", 2, snapshot_chunk=snapshot_chunk(2, 1))
    node.sync()
    acks = [ack for _, ack in node.said("append_ack")]
    assert acks
    assert {(ack.round, ack.stream) for ack in acks} == {(0, 0)}


def test_replace_a_learner_without_a_leader_is_not_busy() -> None:
    node = Solo(learner=True)
    for _ in range(5):
        node.tick(TIMING.election_max_s)
        assert node.guard.deadline > node.now


def test_of_two_that_ask_at_once_one_gives_way() -> None:
    node = Solo()
    node.tick(TIMING.election_max_s + 0.001)
    asks = node.said("pre_vote")
    assert len(asks) == 2
    node.hear("b", 0, pre_vote=wire.PreVote(next_term=1, nonce=5))
    assert [reply.granted for _, reply in node.said("pre_vote_reply")] == [True]
    node.hear("c", 0, pre_vote_reply=wire.PreVoteReply(next_term=1, granted=True, nonce=asks[0][1].nonce))
    assert node.guard.role is Role.FOLLOWER, "having given way, it no longer stands"


def test_a_candidate_with_the_higher_name_does_not_give_way() -> None:
    node = Solo(("A", "B"))
    node.tick(TIMING.election_max_s + 0.001)
    node.sent.clear()
    node.hear("A", 0, pre_vote=wire.PreVote(next_term=1, nonce=5))
    assert [reply.granted for _, reply in node.said("pre_vote_reply")] == [False]


def test_a_follower_that_lost_what_it_acknowledged_does_not_keep_the_leader_busy() -> None:
    node = Solo(recovered=holding(40, term=1))
    node.lead()
    for _ in range(50):
        progress = node.guard._progress["b"]
        for prev_index in (progress.match_index, progress.next_index - 1, progress.next_index + 5):
            refusal = wire.AppendAck(
                result=wire.AppendAck.RESULT_CONFLICT, prev_index=prev_index, hint=2, stream=progress.stream
            )
            node.hear("b", node.tail.term, append_ack=refusal)
            node.tick()
    assert len([1 for peer, _ in node.said("append") if peer == "b"]) <= 3


def test_followers_hear_of_a_commit_soon_and_once() -> None:
    node = Solo()
    node.lead()
    node.tick(TIMING.beat_s)
    node.commit()
    node.sent.clear()
    assert node.guard.deadline <= node.now + TIMING.notice_s
    node.tick(TIMING.notice_s)
    assert [append.commit for _, append in node.said("append")] == [node.tail.last_index] * 2
    node.tick()
    assert not node.said("append")


def test_news_of_a_commit_waits_for_an_entry_only_where_entries_are_frequent() -> None:
    node = Solo()
    node.lead()
    waits = []
    for pause in (TIMING.election_min_s, TIMING.beat_s / 2, TIMING.beat_s / 2, 2 * TIMING.beat_s):
        node.tick(pause)
        node.commit()
        waits.append(node.guard.deadline - node.now)
        node.tick(TIMING.notice_s)
    assert waits == pytest.approx([0, TIMING.notice_s, TIMING.notice_s, 0])


def test_followers_do_not_acknowledge_the_news_of_a_commit() -> None:
    node = Solo()
    node.append("b", 1, (0, 0), *entries(1, 2, 1))
    node.sync()
    assert [ack.match for _, ack in node.said("append_ack")] == [2]
    node.append("b", 1, (2, 1), commit=2, notice=True)
    node.tick()
    assert node.applied == (2, 1)
    assert not node.said("append_ack")
    node.append("b", 1, (2, 1), commit=2)
    assert node.said("append_ack")


def test_news_of_a_commit_is_answered_by_who_has_more_to_say() -> None:
    """A follower that cannot take it says so; one that has not said yet what is on its disk says that."""
    node = Solo()
    node.append("b", 1, (4, 1), commit=4, notice=True)
    node.sync()
    assert [ack.result for _, ack in node.said("append_ack")] == [wire.AppendAck.RESULT_CONFLICT]
    node = Solo(recovered=holding(3, term=1))
    node.append("b", 1, (3, 1), commit=3, notice=True)
    assert [ack.match for _, ack in node.said("append_ack")] == [3]


def test_a_beat_is_left_out_where_an_append_has_just_left() -> None:
    node = Solo()
    node.lead()
    node.tick(TIMING.beat_s)
    node.sent.clear()
    node.tick(0.75 * TIMING.beat_s)
    node.propose()
    node.tick()
    assert [len(append.entries) for _, append in node.said("append")] == [1, 1]
    node.tick(0.25 * TIMING.beat_s)
    assert not node.said("append")
    node.tick(TIMING.beat_s)
    assert len(node.said("append")) == 2


def test_a_round_for_a_read_leaves_at_once_all_the_same() -> None:
    node = Solo()
    node.lead()
    node.propose()
    node.tick()
    node.sent.clear()
    node.read()
    node.tick()
    rounds = [append.round for _, append in node.said("append")]
    assert len(rounds) == 2
    node.matched("b", node.tail.last_index, round=rounds[0])
    node.tick()
    assert node.reads == [True]


def test_b9_what_one_tick_applies_is_bounded_in_number_and_in_bytes() -> None:
    log = tuple(Entry(index, 1, bytes(size)) for index, size in enumerate((10, 10, 10, 10, 500, 90, 90, 90), 1))
    node = Solo(
        recovered=Recovered(0, 0, log, 1, None, 8), bounds=Bounds(applies_per_tick_max=3, apply_bytes_per_tick_max=100)
    )
    applied = []
    while node.guard.deadline <= node.now:
        node.tick()
        applied.append(node.applied[0])
    assert applied == [3, 5, 7, 8]


def following(off: frozenset[str] = frozenset()) -> Solo:
    """A follower of "b", which leads term 1, that heard from it now."""
    node = Solo(off=off)
    node.append("b", 1, (0, 0))
    node.sync()
    node.sent.clear()
    return node


def parts_for(node: Solo, seconds: float, *, peer: str = "b", term: int = 1, step: float = 0.05) -> None:
    for _ in range(round(seconds / step)):
        node.now += step
        node.guard.heard_part(peer, term, node.now)
        node.tick()


def asked_for_a_vote(node: Solo) -> bool:
    """Whether it would be given in a pre-vote."""
    node.sent.clear()
    node.hear("c", 1, pre_vote=wire.PreVote(next_term=2, last_index=0, last_term=0, nonce=1))
    return [reply.granted for _, reply in node.said("pre_vote_reply")] == [True]


@with_and_without("parts")
def test_parts_of_a_message_say_that_the_leader_is_alive(off: frozenset[str]) -> None:
    node = following(off)
    parts_for(node, TIMING.fallback_s - 0.1)
    assert bool(node.said("pre_vote")) == bool(off)
    assert asked_for_a_vote(node) == bool(off)
    assert node.guard.leader == (None if off else "b")


@with_and_without("patience")
def test_parts_are_waited_for_no_longer_than_their_leader_leads_without_an_answer(off: frozenset[str]) -> None:
    node = following(off)
    parts_for(node, TIMING.fallback_s + TIMING.election_max_s + 0.1)
    assert bool(node.said("pre_vote")) == (not off)
    node = following(off)
    for _ in range(3):
        parts_for(node, TIMING.fallback_s - 0.1)
        node.append("b", 1, (0, 0))
    assert not node.said("pre_vote"), "what is whole begins it anew"


@pytest.mark.parametrize(("peer", "term"), [("c", 1), ("b", 0), ("b", 2), ("c", 2)])
def test_parts_of_anybody_else_or_of_another_term_say_nothing(peer: str, term: int) -> None:
    node = following()
    parts_for(node, TIMING.election_max_s + 0.1, peer=peer, term=term)
    assert node.said("pre_vote")
    assert (node.guard.term, node.guard.leader) == (1, None)
    parts_for(node, 0.1)
    assert asked_for_a_vote(node), "who stands follows nobody"


def test_parts_on_a_link_that_broke_say_nothing() -> None:
    node = following()
    node.guard.disconnected("b", node.now)
    parts_for(node, TIMING.election_min_s / 2, step=0.01)
    assert node.said("pre_vote")


def test_parts_are_not_answered_and_prove_nothing() -> None:
    node = following()
    node.read()
    node.tick()
    node.sent.clear()
    parts_for(node, 0.3)
    assert not node.sent
    assert not node.reads
    leader = Solo()
    leader.lead()
    leader.read()
    leader.tick()
    for peer in ("b", "c"):
        parts_for(leader, TIMING.fallback_s / 2 + 0.1, peer=peer)
    assert leader.guard.role is Role.FOLLOWER, "nobody has answered it for so long"
    assert leader.reads == [False]
