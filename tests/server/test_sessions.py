"""Sessions: order, coalescing, errors per operation, watches, cancel, and callers that misbehave."""

import asyncio

import pytest

from controlplane import limits
from controlplane.errors import Invalid, Refused
from controlplane.v1 import api_pb2 as api
from tests.server.regions import create, operation, running, until


def swap(identifier, version, state):
    return api.CompareAndSwapWorkflowRequest(
        header=create(identifier).header, id=identifier, version=version, state=state, schema_version=1
    )


async def test_the_first_message_says_where_the_leader_is(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        talk = await agent.session()
        assert talk.messages[0].region.leader_address == region.config.node("n1").address
        assert not talk.messages[0].replies


async def test_writes_of_a_session_are_planned_in_order(tmp_path):
    """A chain of swaps, each of which needs the one before, sent at once and in several messages."""
    async with running(tmp_path) as region, region.caller() as agent:
        talk = await agent.session()
        chain = [operation(0, "CreateWorkflow", create("w"))]
        chain += [operation(n, "CompareAndSwapWorkflow", swap("w", n, b"%d" % n)) for n in range(1, 200)]
        for start in range(0, 200, 50):
            await talk.send(*chain[start : start + 50])
        for number in range(200):
            assert not (await talk.reply(number)).status, number
        assert len(talk.messages) < 100


async def test_errors_belong_to_their_operation(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        talk = await agent.session()
        await talk.send(
            operation(1, "CreateWorkflow", create("w")),
            operation(2, "CompareAndSwapWorkflow", swap("w", 7, b"x")),
            operation(3, "Nothing"),
            operation(4, "Session"),
            operation(5, "SetFlag"),
            api.Operation(id=6, method="CreateWorkflow", request=b"\xff\xff"),
            operation(7, "GetWorkflow", api.GetWorkflowRequest(id="w")),
            operation(8, "GetRegion"),
        )
        assert isinstance(await talk.error(2), Refused)
        assert (await talk.error(3)).reason == "METHOD_UNKNOWN"
        assert (await talk.error(4)).reason == "METHOD_UNKNOWN"
        assert (await talk.error(5)).reason == "ROLE_DENIED"
        assert (await talk.error(6)).reason == "REQUEST_MALFORMED"
        for identifier in (1, 7, 8):
            assert not (await talk.reply(identifier)).status


async def test_an_identifier_used_twice_ends_the_session(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        talk = await agent.session()
        watch = operation(1, "Watch", api.WatchRequest(kinds=["flag"]))
        await talk.send(watch)
        await talk.reply(1)
        await talk.send(watch)
        assert (await talk.end()).reason == "OPERATION_ID_REUSED"


async def test_garbage_ends_the_session_alone(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent, region.caller() as other:
        talk, good = await agent.session(), await other.session()
        await talk.stream.write(b"\xff\xff\xff")
        with pytest.raises(Invalid) as raised:
            await talk.receive()
        assert raised.value.reason == "REQUEST_MALFORMED"
        await good.send(operation(1, "GetRegion"))
        assert not (await good.reply(1)).status


async def test_a_session_that_is_done_gets_all_its_answers(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        talk = await agent.session()
        await talk.send(*(operation(n, "CreateWorkflow", create(f"w{n}")) for n in range(100)))
        await talk.stream.done_writing()
        for number in range(100):
            assert not (await talk.reply(number)).status
        assert await talk.stream.read() is not None
        assert await asyncio.wait_for(talk.stream.code(), 5)


async def test_a_watch_inside_a_session_and_its_end(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        talk = await agent.session()
        await talk.send(operation(1, "Watch", api.WatchRequest(kinds=["workflow"])))
        first = await talk.reply(1)
        assert first.more
        assert api.WatchReply.FromString(first.reply).kind == api.WatchReply.STARTED
        await talk.send(operation(2, "CreateWorkflow", create("w")))
        while not any(api.WatchReply.FromString(reply.reply).changes for reply in talk.replies[1]):
            await talk.receive()
        await talk.send(api.Operation(id=1, cancel=True), api.Operation(id=99, cancel=True))
        while talk.replies[1][-1].more:
            await talk.receive()
        assert not talk.replies[1][-1].status
        await until(lambda: not region.members["n1"].node.status().watchers)
        # The identifier is free again.
        seen = len(talk.replies[1])
        await talk.send(operation(1, "Watch", api.WatchRequest(kinds=["flag"])))
        assert (await talk.reply(1, seen)).more


async def test_what_is_cancelled_is_counted_as_what_it_was(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        talk = await agent.session()
        await talk.send(operation(1, "WatchRegion"))
        await talk.reply(1)
        await talk.send(api.Operation(id=1, cancel=True))
        while talk.replies[1][-1].more:
            await talk.receive()
        counted = region.members["n1"].server.counts.calls
        assert (counted["WatchRegion", "ok"], counted["Watch", "ok"]) == (1, 0)


async def test_a_watch_that_is_cancelled_as_it_ends_has_one_end(tmp_path, monkeypatch):
    async with running(tmp_path) as region, region.caller() as agent:
        server, over = region.members["n1"].server, asyncio.Event()

        async def stream(_):
            await over.wait()
            raise Refused("it ends", reason="OVER")

        monkeypatch.setattr(server._desk, "stream", stream)
        talk = await agent.session()
        await talk.send(operation(1, "Watch"), operation(2, "GetRegion"))
        await talk.reply(2)
        (session,) = server._sessions
        over.set()
        # The watch has ended in this turn of the loop, and the session hears of it in the next.
        await asyncio.sleep(0)
        session._cancel(1)
        assert not (await talk.reply(1)).status
        await talk.send(operation(3, "GetRegion"))
        await talk.reply(3)
        assert len(talk.replies[1]) == 1
        assert session._watches == 0


async def test_a_watch_that_cannot_begin(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        talk = await agent.session()
        await talk.send(operation(1, "Watch", api.WatchRequest(kinds=["nonsense"])))
        assert (await talk.error(1)).reason == "KIND_UNKNOWN"


async def test_watches_of_a_session_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "WATCHES_PER_SESSION_MAX", 3)
    async with running(tmp_path) as region, region.caller() as agent:
        talk = await agent.session()
        await talk.send(*(operation(n, "WatchRegion") for n in range(4)))
        assert (await talk.error(3)).reason == "WATCHES_FULL"
        for number in range(3):
            assert not (await talk.reply(number)).status


async def test_a_caller_that_vanishes_leaves_nothing(tmp_path):
    async with running(tmp_path) as region:
        member = region.members["n1"]
        listeners = set(member.server.region._listeners)
        async with region.caller() as agent:
            talk = await agent.session()
            await talk.send(*(operation(n, "Watch", api.WatchRequest(kinds=["flag"])) for n in range(10)))
            await talk.reply(9)
            assert member.node.status().watchers == 10
        await until(lambda: not member.server._sessions and not member.node.status().watchers)
        assert member.server.region._listeners == listeners


async def test_a_caller_that_stops_reading_is_not_read_from(tmp_path, monkeypatch):
    """Its replies wait at the node up to a bound, then the node stops reading; others go on."""
    monkeypatch.setattr(limits, "SESSION_REPLIES_BYTES_MAX", 1 << 20)
    async with running(tmp_path) as region, region.caller() as greedy, region.caller() as other:
        await other.call("CreateWorkflow", create("big", bytes(256 * 1024)))
        talk = await greedy.session()
        read = api.GetWorkflowRequest(id="big", header=api.RequestHeader(consistency=api.LOCAL))
        sent = 0

        async def flood():
            nonlocal sent
            while True:
                await talk.send(*(operation(n, "GetWorkflow", read) for n in range(sent, sent + 100)))
                sent += 100
                await asyncio.sleep(0)

        flooding = asyncio.create_task(flood())
        (session,) = member_sessions(region)
        await until(session._is_full)
        # Long enough to fill whatever the transport buffers; what the node itself holds stays bounded.
        most = 0
        for _ in range(100):
            await asyncio.sleep(0.01)
            most = max(most, session._held_bytes)
            await other.call("GetRegion")
        assert most <= limits.SESSION_REPLIES_BYTES_MAX + limits.READS_PER_SESSION_MAX * 257 * 1024
        assert len(session._running) <= limits.READS_PER_SESSION_MAX
        flooding.cancel()


async def test_a_message_of_too_many_operations_ends_the_session_alone(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent, region.caller() as other:
        talk, good = await agent.session(), await other.session()
        most = limits.OPERATIONS_PER_SESSION_MAX
        await talk.send(*(api.Operation(id=1, cancel=True) for _ in range(most)))
        await talk.send(operation(2, "GetRegion"))
        assert not (await talk.reply(2)).status
        await talk.stream.write(b"\x0a\x00" * (most + 1))
        assert (await talk.end()).reason == "TOO_MANY_OPERATIONS"
        await good.send(operation(1, "GetRegion"))
        assert not (await good.reply(1)).status


@pytest.mark.parametrize("idle", [api.Operation(id=1, cancel=True), api.Operation(method="Nothing")])
async def test_operations_that_cost_nothing_take_turns(tmp_path, idle):
    """The event loop turns while a message full of cancels or of failures is worked off."""
    async with running(tmp_path) as region, region.caller() as agent:
        talk = await agent.session()
        loop, turns = asyncio.get_running_loop(), 0

        def turn():
            nonlocal turns
            turns += 1
            loop.call_soon(turn)

        await talk.send(operation(7, "GetRegion"))
        await talk.reply(7)
        count = limits.OPERATIONS_PER_SESSION_MAX // 2
        turn()
        session, before = member_sessions(region)[0], turns
        begun = []
        taking = session._desk.intake.take

        async def take():
            await taking()
            begun.append(turns)

        session._desk.intake.take = take
        await talk.send(*([idle] * count))
        await until(lambda: len(begun) == count)
        assert max(begun.count(each) for each in set(begun)) <= limits.OPERATIONS_PER_TURN_MAX
        assert begun[-1] - before >= count // limits.OPERATIONS_PER_TURN_MAX


async def test_a_caller_that_reads_no_failures_is_not_read_from(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "OPERATIONS_PER_SESSION_MAX", 100)
    async with running(tmp_path) as region, region.caller() as greedy:
        talk = await greedy.session()
        flooding = asyncio.create_task(flood(talk, api.Operation(method="Nothing"), 50))
        (session,) = member_sessions(region)
        await until(session._is_full)
        assert len(session._running) + len(session._ready) <= 100
        flooding.cancel()


async def flood(talk, wanted, number):
    while True:
        await talk.send(*([wanted] * number))
        await asyncio.sleep(0)


async def test_a_defect_in_one_operation_is_that_operations_answer(tmp_path, monkeypatch):
    async with running(tmp_path) as region, region.caller() as agent:
        server = region.members["n1"].server

        def broken(*_):
            raise KeyError("what nobody may see")

        monkeypatch.setattr(server.region, "answer", broken)
        talk = await agent.session()
        await talk.send(
            operation(1, "GetRegion"), operation(2, "CreateWorkflow", create("w")), operation(3, "GetRegion")
        )
        for number in (1, 3):
            error = await talk.error(number)
            assert (error.reason, str(error)) == ("INTERNAL", "internal error")
        assert not (await talk.reply(2)).status
        monkeypatch.undo()
        monkeypatch.setattr(server._desk, "principal", broken)
        (session,) = member_sessions(region)
        session._principals.clear()
        await talk.send(operation(1, "GetRegion"))
        assert talk.error_of(await talk.reply(1, 1)).reason == "INTERNAL"
        assert server.counts.defects == 3
        assert len(session._running) == session._reads == 0


async def test_a_caller_that_vanishes_before_its_last_answer_leaves_no_task(tmp_path, monkeypatch):
    async with running(tmp_path) as region:
        server = region.members["n1"].server
        async with region.caller() as agent:
            talk = await agent.session()
            # An operation that is never answered.
            monkeypatch.setattr(server._desk, "run", lambda _: None)
            await talk.send(operation(1, "GetRegion"))
            await talk.stream.done_writing()
            await until(settling)
        await until(lambda: not server._sessions)
        assert not settling()


def settling():
    return [task for task in asyncio.all_tasks() if task.get_coro().__qualname__ == "Session._settle"]


def member_sessions(region):
    return [session for member in region.members.values() for session in member.server._sessions]


async def test_a_reply_over_the_limit_is_an_error(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        for number in range(10):
            await agent.call("CreateWorkflow", create(f"w{number}", bytes(500 * 1024)))
        talk = await agent.session()
        await talk.send(operation(1, "ListWorkflows", api.ListWorkflowsRequest()))
        reply = await talk.reply(1)
        if reply.status:
            assert (await talk.error(1)).reason == "REPLY_TOO_LARGE"
        else:
            assert len(reply.reply) <= limits.MESSAGE_BYTES_MAX
        await talk.send(operation(2, "ListWorkflows", api.ListWorkflowsRequest(limit=1)))
        assert not (await talk.reply(2)).status


async def test_draining_answers_what_was_begun(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        talk = await agent.session()
        await talk.send(*(operation(n, "CreateWorkflow", create(f"w{n}")) for n in range(200)))
        await talk.reply(0)
        await region.members["n1"].server.drain()
        assert (await talk.end()).reason == "STOPPING"
        assert not any(reply.status for replies in talk.replies.values() for reply in replies)
