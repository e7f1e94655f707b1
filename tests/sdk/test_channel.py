"""Retries, broken and silent sessions, deadlines: against nodes that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path
from time import monotonic

import grpc
import pytest

from controlplane import sdk
from controlplane.errors import Contended, Denied, Invalid, NotFound, OutcomeUnknown, Refused, Unavailable
from controlplane.sdk import channel as channel_module
from controlplane.sdk.session import Tls
from controlplane.v1 import api_pb2 as api

from .scripted import Answer, Script, connected, created, eventually, scripted


def in_turn(*answers: Answer) -> Script:
    """Answer with each in turn, then with the last for ever."""
    rest: Iterator[Answer] = chain(answers, repeat(answers[-1]))
    return lambda _: next(rest)


def client(*addresses: str, timeout_s: float = 20.0, follow_leader: bool = True) -> sdk.ControlPlane:
    return sdk.ControlPlane.connect(
        addresses, insecure=True, mirror=False, timeout_s=timeout_s, follow_leader=follow_leader
    )


def requests(operations: list[api.Operation]) -> list[bytes]:
    return [each.request for each in operations if each.method == "CreateWorkflow"]


BUSY = Unavailable("no leader", reason="NO_LEADER")
UNSURE = OutcomeUnknown("who knows", reason="FORWARD_BROKEN")


@pytest.mark.parametrize("error", [BUSY, UNSURE])
async def test_asks_again_with_the_same_bytes(error: Answer) -> None:
    async with scripted(in_turn(error, error, created())) as [node], client(node.address) as cp:
        reply = await cp.create_workflow("w", b"state")
        assert reply.version == 1
        sent = requests(node.seen)
        assert len(sent) == 3
        assert len(set(sent)) == 1
        header = api.CreateWorkflowRequest.FromString(sent[0]).header
        assert len(header.request_id) == 16
        assert header.HasField("since")


@pytest.mark.parametrize(
    "error",
    [
        Invalid("no", reason="NAME_EMPTY"),
        Denied("no", reason="ROLE_DENIED"),
        NotFound("no", reason="WORKFLOW_NOT_FOUND"),
        Refused("no", reason="WORKFLOW_EXISTS"),
        Contended("no", reason="CONTENDED"),
    ],
)
async def test_an_answer_is_final(error: Refused) -> None:
    async with scripted(in_turn(error)) as [node], client(node.address) as cp:
        with pytest.raises(type(error)) as caught:
            await cp.create_workflow("w", b"state")
        assert caught.value.reason == error.reason
        assert len(requests(node.seen)) == 1


async def test_in_doubt_a_denial_proves_nothing() -> None:
    denied = Denied("no", reason="ROLE_DENIED")
    async with scripted(in_turn(UNSURE, denied, created())) as [node], client(node.address) as cp:
        assert (await cp.create_workflow("w", b"state")).version == 1
        assert len(requests(node.seen)) == 3


async def test_at_its_deadline_a_call_in_doubt_is_unknown() -> None:
    async with scripted(in_turn(UNSURE, BUSY)) as [node], client(node.address, timeout_s=0.3) as cp:
        began = monotonic()
        with pytest.raises(OutcomeUnknown) as caught:
            await cp.create_workflow("w", b"state")
        assert caught.value.reason == "DEADLINE"
        assert monotonic() - began > 0.25


async def test_at_its_deadline_a_call_that_never_happened_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    # One attempt, then rest: an attempt on its way at the deadline would be in doubt.
    monkeypatch.setattr("controlplane.sdk.channel.random.uniform", lambda low, high: 60.0)
    async with scripted(in_turn(BUSY)) as [node], client(node.address, timeout_s=0.3) as cp:
        with pytest.raises(Unavailable):
            await cp.create_workflow("w", b"state")


async def test_an_unanswered_write_is_unknown_and_an_unanswered_read_unavailable() -> None:
    async with scripted(in_turn(None)) as [node], client(node.address, timeout_s=0.3) as cp:
        with pytest.raises(OutcomeUnknown):
            await cp.create_workflow("w", b"state")
        with pytest.raises(Unavailable):
            await cp.get_workflow("w")


async def test_what_the_region_forgot_is_asked_again_only_if_it_was_the_only_attempt() -> None:
    forgotten = OutcomeUnknown("long ago", reason="OUTCOME_FORGOTTEN")
    async with scripted(in_turn(forgotten, created())) as [node], client(node.address) as cp:
        node.revision = 7
        await cp.get_region()
        assert (await cp.create_workflow("w", b"state")).version == 1
        first, second = (api.CreateWorkflowRequest.FromString(each).header for each in requests(node.seen))
        assert first.request_id == second.request_id
    async with scripted(in_turn(UNSURE, forgotten, created())) as [node], client(node.address) as cp:
        with pytest.raises(OutcomeUnknown) as caught:
            await cp.create_workflow("w", b"state")
        assert caught.value.reason == "OUTCOME_FORGOTTEN"


async def test_what_began_a_new_epoch_meanwhile_is_asked_again_without_the_old_one() -> None:
    def moved(operation: api.Operation) -> Answer:
        request = api.CreateWorkflowRequest.FromString(operation.request)
        if request.id == "before":
            header = api.ReplyHeader(revision=1, epoch=1)
            return api.CreateWorkflowReply(header=header, version=1).SerializeToString()
        if request.header.epoch == 1:
            return OutcomeUnknown("a new epoch", reason="EPOCH_CHANGED")
        return created()

    async with scripted(moved) as [node], client(node.address) as cp:
        await cp.create_workflow("before", b"state")
        assert (await cp.create_workflow("w", b"state")).version == 1


async def test_what_another_region_or_partition_says_of_itself_is_not_said_of_the_own() -> None:
    def answer(operation: api.Operation) -> Answer:
        header = api.ReplyHeader(region="us", revision=1 << 40, epoch=3)
        return api.CreateWorkflowReply(header=header, version=1).SerializeToString()

    async with scripted(answer) as [node], client(node.address) as cp:
        await cp.create_workflow("w", b"state", partition="us.prod.state")
        assert cp.revision < 1 << 40
        await cp.create_workflow("w", b"state")
        await cp.create_workflow("w", b"state", partition="us.prod.state")
        sent = [api.CreateWorkflowRequest.FromString(each).header for each in requests(node.seen)]
        assert [header.epoch for header in sent] == [0, 0, 3]


async def test_what_became_of_a_call_is_asked_as_of_when_it_was_first_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.sdk.calls.REQUESTS_REMEMBERED_MAX", 2)
    known = api.GetOutcomeReply().SerializeToString()
    async with (
        scripted(lambda each: known if each.method == "GetOutcome" else created(revision=1)) as [node],
        client(node.address) as cp,
    ):
        for number in range(3):
            node.revision = 10 * (number + 1)
            await cp.get_region()
            await cp.create_workflow("w", b"state", request_id=bytes([number]) * 16)
        for number in range(3):
            await cp.get_outcome(bytes([number]) * 16)
        asked = [each.request for each in node.seen if each.method == "GetOutcome"]
        headers = [api.GetOutcomeRequest.FromString(each).header for each in asked]
        # As many as it remembers, and those that were made last.
        assert [header.since if header.HasField("since") else None for header in headers] == [None, 20, 30]


async def test_what_is_asked_together_leaves_together() -> None:
    async with scripted(in_turn(created())) as [node], client(node.address) as cp:
        await asyncio.gather(*(cp.create_workflow(f"w{number}", b"state") for number in range(100)))
        assert max(node.messages) == 100


async def test_a_message_stays_within_its_bound() -> None:
    async with scripted(in_turn(created())) as [node], client(node.address) as cp:
        state = bytes(512 * 1024)
        await asyncio.gather(*(cp.create_workflow(f"w{number}", state) for number in range(20)))
        assert len(requests(node.seen)) == 20
        assert max(node.messages) < 10


async def test_a_broken_session_is_not_noticed() -> None:
    async with scripted(in_turn(None), in_turn(None)) as nodes, client(*(node.address for node in nodes)) as cp:
        at, other = await connected(*nodes)
        other.script = in_turn(created())
        call = asyncio.create_task(cp.create_workflow("w", b"state"))
        await eventually(lambda: bool(requests(at.seen)))
        await at.stop()
        assert (await call).version == 1
        assert requests(at.seen) == requests(other.seen)


async def test_a_silent_session_is_left() -> None:
    answer = in_turn(created())
    async with scripted(answer, answer) as nodes, client(*(node.address for node in nodes)) as cp:
        at, other = await connected(*nodes)
        await cp.create_workflow("w", b"state")
        at.silent = True
        # Whoever stayed would end unknown at its deadline.
        assert (await cp.create_workflow("w2", b"state")).version == 1
        assert requests(other.seen)


async def test_goes_to_the_leader_and_stays_there() -> None:
    async with scripted(in_turn(created()), in_turn(created())) as [follower, leader]:
        follower.region = api.Region(leader="b", leader_address=leader.address)
        leader.region = follower.region
        async with client(follower.address) as cp:
            await eventually(lambda: bool(leader.sessions) and not follower.sessions)
            await cp.create_workflow("w", b"state")
            assert requests(leader.seen)
            assert not requests(follower.seen)


async def test_an_unreachable_leader_changes_nothing() -> None:
    async with scripted(in_turn(created())) as [follower]:
        follower.region = api.Region(leader="b", leader_address="127.0.0.1:1")
        async with client(follower.address) as cp:
            assert (await cp.create_workflow("w", b"state")).version == 1


async def test_a_node_that_knows_no_leader_is_left_for_one_that_does() -> None:
    async with scripted(in_turn(None), in_turn(created())) as nodes, client(*(node.address for node in nodes)) as cp:
        cut_off, whole = await connected(*nodes)
        cut_off.script, whole.script = in_turn(None), in_turn(created())
        whole.region = api.Region(name="eu-west", leader="b", leader_address=whole.address)
        await cut_off.lead("", "")
        await cp.create_workflow("w", b"")
        assert requests(whole.seen)
        await eventually(lambda: not cut_off.sessions)


async def test_a_node_that_knows_no_leader_either_is_not_moved_to() -> None:
    async with scripted(in_turn(None), in_turn(None)) as nodes, client(*(node.address for node in nodes)) as cp:
        here, other = await connected(*nodes)
        other.region = api.Region(name="eu-west")
        tried = other.opened
        await here.lead("", "")
        asking = asyncio.create_task(cp.create_workflow("w", b""))
        await eventually(lambda: other.opened > tried)
        await eventually(lambda: not other.sessions)
        assert here.sessions
        assert requests(here.seen)
        assert not requests(other.seen)
        asking.cancel()


async def test_keeps_to_its_addresses_when_told_so() -> None:
    async with scripted(in_turn(created()), in_turn(created())) as [follower, leader]:
        follower.region = api.Region(leader="b", leader_address=leader.address)
        async with client(follower.address, follow_leader=False) as cp:
            await cp.create_workflow("w", b"state")
            assert not leader.sessions


async def test_what_is_in_flight_during_a_move_is_answered_where_it_was_asked() -> None:
    async with scripted(in_turn(None), in_turn(created())) as [old, new], client(old.address) as cp:
        call = asyncio.create_task(cp.create_workflow("w", b"state"))
        await eventually(lambda: bool(requests(old.seen)))
        await old.lead("b", new.address)
        await eventually(lambda: bool(new.sessions))
        # The old node never answers: after its time the call goes to the new one, unchanged.
        assert (await call).version == 1
        assert requests(old.seen) == requests(new.seen)


async def test_nobody_there(unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.sdk.client.CONNECT_TIMEOUT_S", 0.3)
    with pytest.raises(Unavailable) as caught:
        async with client(f"127.0.0.1:{unused_tcp_port}"):
            pass
    assert caught.value.reason == "UNREACHABLE"


async def test_closing_answers_every_call() -> None:
    async with scripted(in_turn(None)) as [node]:
        cp = client(node.address)
        await cp.__aenter__()
        write = asyncio.create_task(cp.create_workflow("w", b"state"))
        read = asyncio.create_task(cp.get_workflow("w"))
        await eventually(lambda: len(node.seen) >= 2)
        await cp.close()
        with pytest.raises(OutcomeUnknown):
            await write
        with pytest.raises(Unavailable):
            await read
        with pytest.raises(Unavailable):
            await cp.get_workflow("w")


async def test_closing_answers_a_call_that_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.sdk.channel.random.uniform", lambda low, high: 60.0)
    async with scripted(in_turn(BUSY)) as [node], client(node.address) as cp:
        call = asyncio.create_task(cp.create_workflow("w", b"state"))
        await eventually(lambda: bool(requests(node.seen)))
        await cp.get_region()
        await cp.close()
        with pytest.raises(Unavailable) as closed:
            await call
        assert closed.value.reason == "CLIENT_CLOSED"


async def test_what_was_given_up_before_it_left_is_not_sent() -> None:
    async with scripted(in_turn(created())) as [node], client(node.address) as cp:
        call = asyncio.create_task(cp.create_workflow("w", b"state"))
        await asyncio.sleep(0)
        call.cancel()
        await cp.get_region()
        assert requests(node.seen) == []


async def test_what_is_on_its_way_at_once_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.sdk.session.WINDOW", 10)
    async with scripted(in_turn(None)) as [node], client(node.address) as cp:
        calls = [asyncio.create_task(cp.create_workflow(f"w{number}", b"state")) for number in range(30)]
        await eventually(lambda: bool(node.messages))
        assert node.messages[0] == 10
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_watches_of_one_client_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "WATCHES_PER_SESSION_MAX", 1)
    async with scripted(in_turn(None)) as [node], client(node.address) as cp:
        first = asyncio.create_task(anext(cp.watch()))
        await eventually(lambda: bool(node.streams))
        with pytest.raises(Unavailable) as full:
            await anext(cp.watch())
        assert full.value.reason == "WATCHES_FULL"
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def test_a_call_in_doubt_is_not_made_anew_for_a_region_that_was_started_over() -> None:
    future = Unavailable("not yet", reason="SINCE_IN_FUTURE")
    answer, ahead_s = in_turn(UNSURE, future, future, created()), 0.0

    def started_over(operation: api.Operation) -> Answer:
        nonlocal ahead_s
        ahead_s, node.revision = 5.0, 3
        return answer(operation)

    async with (
        scripted(started_over) as [node],
        sdk.ControlPlane.connect(node.address, insecure=True, mirror=False, clock=lambda: monotonic() + ahead_s) as cp,
    ):
        node.revision = 9
        await cp.get_region()
        assert (await cp.create_workflow("w", b"state")).version == 1
        assert cp.revision == 3
        assert len(requests(node.seen)) >= 4
        assert len(set(requests(node.seen))) == 1


def test_certificates_that_cannot_be_read_for_a_moment_are_those_of_before(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("ca", "cert", "key")]
    for file in files:
        file.write_bytes(b"pem")
    tls = Tls(*files)
    files[2].unlink()
    assert isinstance(tls(), grpc.ChannelCredentials)


async def test_waiting_calls_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controlplane.sdk.channel.WAITING_MAX", 10)
    async with scripted(in_turn(None)) as [node], client(node.address, timeout_s=0.5) as cp:
        calls = [asyncio.create_task(cp.create_workflow("w", b"")) for _ in range(50)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        reasons = {each.reason for each in outcomes if isinstance(each, Unavailable)}
        assert "CLIENT_QUEUE_FULL" in reasons


def test_insecure_stays_on_this_machine() -> None:
    with pytest.raises(Invalid) as caught:
        sdk.ControlPlane.connect("10.0.0.1:7000", insecure=True)
    assert caught.value.reason == "INSECURE_REMOTE"


def test_credentials_are_demanded() -> None:
    with pytest.raises(Invalid) as caught:
        sdk.ControlPlane.connect("127.0.0.1:7000")
    assert caught.value.reason == "CREDENTIALS_MISSING"


def test_patience_is_shorter_than_an_election() -> None:
    assert 2 * channel_module.SILENT_S + 2 * channel_module.TICK_S < 0.3


async def test_many_calls_wait_through_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than may newly wait: what was accepted is never refused later."""
    monkeypatch.setattr("controlplane.sdk.channel.WAITING_MAX", 50)
    async with scripted(in_turn(None), in_turn(None)) as nodes, client(*(node.address for node in nodes)) as cp:
        at, other = await connected(*nodes)
        other.script = in_turn(created())
        calls = []
        for sent in (50, 100, 150, 200):
            calls += [asyncio.create_task(cp.create_workflow("w", b"")) for _ in range(50)]
            await eventually(lambda sent=sent: len(requests(at.seen)) == sent)
        await at.stop()
        assert len(await asyncio.gather(*calls)) == 200


async def test_garbage_from_a_server_is_left_behind() -> None:
    async with scripted(lambda _: b"\xff\xff\xff", in_turn(created())) as nodes, client(nodes[0].address) as cp:
        with pytest.raises(OutcomeUnknown) as caught:
            await cp.create_workflow("w", b"")
        assert caught.value.reason == "REPLY_MALFORMED"
        nodes[0].script = in_turn(created())
        assert (await cp.create_workflow("w", b"")).version == 1


async def test_a_call_made_again_says_since_when_it_was_first_made() -> None:
    async with scripted(lambda _: created()) as [node], client(node.address) as cp:
        for node.revision in (3, 9):
            await cp.get_region()
            await cp.create_workflow("w", b"", request_id=b"r" * 16)
        await cp.create_workflow("w", b"", request_id=b"s" * 16)
        await cp.create_workflow("w", b"", request_id=b"t" * 16, since=5)
        await cp.create_workflow("w", b"", since=7)
        sent = [api.CreateWorkflowRequest.FromString(request).header.since for request in requests(node.seen)]
        assert sent == [3, 3, 9, 5, 7]
