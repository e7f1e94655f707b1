"""Whatever an authenticated peer says: the guard takes it, closes the link or stops the process, and stays bounded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.errors import Fatal
from controlplane.replication.guard import Bounds, Malformed
from controlplane.v1 import raft_pb2 as wire
from controlplane.v1.raft_pb2 import RaftMessage
from tests.replication.solo import Solo, holding

SMALL = st.integers(0, 12)
ANY = st.one_of(SMALL, SMALL, SMALL, st.sampled_from([1 << 31, 1 << 60, (1 << 64) - 1]))
ENTRIES = st.lists(st.builds(wire.LogEntry, index=SMALL, term=SMALL, payload=st.binary(max_size=40)), max_size=4)


def contiguous(prev_index: int, terms: list[int]) -> list[wire.LogEntry]:
    return [wire.LogEntry(index=prev_index + 1 + k, term=term, payload=b"p") for k, term in enumerate(terms)]


APPEND = st.one_of(
    st.builds(
        wire.Append, prev_index=ANY, prev_term=ANY, entries=ENTRIES, commit=ANY, round=ANY, unanchored=st.booleans()
    ),
    st.builds(
        lambda prev, term, terms, commit: wire.Append(
            prev_index=prev, prev_term=term, entries=contiguous(prev, terms), commit=commit
        ),
        SMALL,
        SMALL,
        st.lists(SMALL, max_size=3),
        ANY,
    ),
)
ACK = st.builds(
    wire.AppendAck,
    result=st.integers(0, 5),
    round=ANY,
    stream=SMALL,
    match=ANY,
    prev_index=ANY,
    hint=ANY,
    learner=st.booleans(),
)
CHUNK = st.builds(
    wire.SnapshotChunk, index=ANY, index_term=ANY, size=ANY, offset=ANY, data=st.binary(max_size=8), commit=ANY
)
BODIES = st.one_of(
    APPEND.map(lambda body: {"append": body}),
    ACK.map(lambda body: {"append_ack": body}),
    CHUNK.map(lambda body: {"snapshot_chunk": body}),
    st.builds(wire.PreVote, next_term=ANY, last_index=ANY, last_term=ANY).map(lambda body: {"pre_vote": body}),
    st.builds(wire.PreVoteReply, next_term=ANY, granted=st.booleans()).map(lambda body: {"pre_vote_reply": body}),
    st.builds(wire.Vote, last_index=ANY, last_term=ANY, forced=st.booleans()).map(lambda body: {"vote": body}),
    st.builds(wire.VoteReply).map(lambda body: {"vote_reply": body}),
    st.builds(wire.TimeoutNow).map(lambda body: {"timeout_now": body}),
    st.builds(wire.SnapshotAck, index=ANY, offset=ANY).map(lambda body: {"snapshot_ack": body}),
    st.builds(wire.Read, nonce=ANY, number=ANY, learner=st.booleans()).map(lambda body: {"read": body}),
    st.builds(wire.ReadReply, nonce=ANY, number=ANY, known=st.booleans(), index=ANY).map(
        lambda body: {"read_reply": body}
    ),
    st.just({}),
)
MESSAGES = st.lists(st.tuples(st.sampled_from("bc"), ANY, BODIES), min_size=8, max_size=25)


def stands(node: Solo) -> None:
    """What must hold whatever was said."""
    tail = node.tail
    assert tail.boundary_index <= tail.commit <= tail.last_index
    assert node.applied[0] <= tail.commit
    assert node.guard.commit >= 5, "what was committed stays committed"


def feed(node: Solo, messages: list[tuple[str, int, dict[str, object]]]) -> None:
    for peer, term, body in messages:
        with contextlib.suppress(Malformed):
            node.guard.receive(peer, RaftMessage(version=1, term=term, **body), node.now)  # type: ignore[arg-type]
        node.tick(0.01)
        node.sync()
        stands(node)


def survives(make: Callable[[], Solo], messages: list[tuple[str, int, dict[str, object]]]) -> None:
    node = make()
    with contextlib.suppress(Fatal):
        feed(node, messages)
    assert len(node.guard._held) <= len(messages)
    assert len(node.tail) < 200


@settings(max_examples=300)
@given(MESSAGES)
def test_a_follower_takes_anything(messages: list[tuple[str, int, dict[str, object]]]) -> None:
    survives(
        lambda: Solo(recovered=holding(8, term=2, commit=5), applied=(4, 2), bounds=Bounds(reads_max=10)), messages
    )


@settings(max_examples=300)
@given(MESSAGES)
def test_a_leader_takes_anything(messages: list[tuple[str, int, dict[str, object]]]) -> None:
    def make() -> Solo:
        node = Solo(recovered=holding(8, term=2, commit=5), applied=(4, 2), bounds=Bounds(reads_max=10))
        node.lead()
        node.propose()
        node.read()
        node.tick()
        return node

    survives(make, messages)


def test_reads_of_peers_are_bounded_and_each_is_answered() -> None:
    node = Solo(bounds=Bounds(reads_max=5))
    node.campaign()
    node.hear("b", node.tail.term, vote_reply=wire.VoteReply())
    node.sent.clear()
    for number in range(20):
        node.hear("b", node.tail.term, read=wire.Read(nonce=1, number=number))
    refused = [reply.number for _, reply in node.said("read_reply") if not reply.known]
    assert refused == list(range(5, 20))
    for _ in range(8):
        node.read()
    node.tick()
    assert node.reads == [False, False, False]
