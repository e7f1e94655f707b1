"""What callers share of one node: turns of the loop are few for each, and messages are measured at no great cost."""

import asyncio
import random
import resource
import socket
import time

import pytest

from controlplane import limits
from controlplane.errors import Invalid, Unavailable
from controlplane.server.session import _decoded
from controlplane.server.shares import Intake, hang_up
from controlplane.v1 import api_pb2 as api
from tests.server.deaf import Deaf
from tests.server.regions import create, operation, running, until


async def test_few_operations_are_begun_in_one_turn_and_nobody_overtakes(monkeypatch):
    monkeypatch.setattr(limits, "OPERATIONS_PER_TURN_MAX", 5)
    intake, loop, number, begun = Intake(), asyncio.get_running_loop(), 0, []

    def turn():
        nonlocal number
        number += 1
        loop.call_soon(turn)

    async def caller(name):
        for _ in range(20):
            await intake.take()
            begun.append((number, name))

    turn()
    await asyncio.gather(*(caller(name) for name in range(7)))
    per_turn = [sum(at == each for at, _ in begun) for each in {at for at, _ in begun}]
    assert max(per_turn) == 5
    last = [max(place for place, (_, name) in enumerate(begun) if name == each) for each in range(7)]
    # The first one takes what a turn has, and after that one for each of the others'.
    assert max(last) - min(last) <= 7 * 5 + 7


async def test_whoever_gives_up_waiting_takes_no_turn(monkeypatch):
    monkeypatch.setattr(limits, "OPERATIONS_PER_TURN_MAX", 1)
    intake = Intake()
    await intake.take()
    waiting = [asyncio.create_task(intake.take()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting[1:])
        await intake.take()


MOST = limits.OPERATIONS_PER_SESSION_MAX


@pytest.mark.parametrize("number", [0, 1, 127, MOST, MOST + 1, 3 * MOST])
def test_operations_are_counted_before_they_are_decoded(number):
    chance = random.Random(number)
    sizes = [chance.choice([0, 1, 100, 200]) for _ in range(number)]
    operations = [api.Operation(id=chance.getrandbits(64), request=bytes(size)) for size in sizes]
    # What later versions may add, of each kind, is none of them.
    unknown = b"\x10\x80\x01" + b"\x19" + bytes(8) + b"\x25" + bytes(4) + b"\x82\x7d\x03abc"
    encoded = api.SessionRequest(operations=operations).SerializeToString() + unknown
    if number > MOST:
        with pytest.raises(Invalid) as raised:
            _decoded(encoded)
        assert raised.value.reason == "TOO_MANY_OPERATIONS"
    else:
        assert list(_decoded(encoded).operations) == operations


@pytest.mark.parametrize("garbage", [b"\xff", b"\x0a", b"\x0a\xff", b"\x0b", b"\x08\xff\xff", b"\x0a\x00"])
def test_garbage_is_refused_soon(garbage):
    encoded = garbage * (limits.MESSAGE_BYTES_MAX // len(garbage))
    began = time.process_time()
    with pytest.raises(Invalid):
        _decoded(encoded)
    assert time.process_time() - began < 1


BIG = bytes(400 * 1024)
READ = api.GetWorkflowRequest(id="big", header=api.RequestHeader(consistency=api.LOCAL))
WATCH = api.WatchRequest(kinds=["workflow"], snapshot=True)


def session_of(number):
    reads = [operation(identifier, "GetWorkflow", READ) for identifier in range(number)]
    return api.SessionRequest(operations=reads)


@pytest.mark.parametrize(
    ("method", "request_", "calls"),
    [("GetWorkflow", READ, 60), ("Watch", WATCH, 60), ("Session", session_of(64), 10)],
)
async def test_replies_that_nobody_reads_are_bounded_and_their_callers_cut_off(
    tmp_path, monkeypatch, method, request_, calls
):
    """However they were asked for; meanwhile others read, and afterwards nothing is held."""
    monkeypatch.setattr(limits, "REPLIES_PER_CALLER_BYTES_MAX", 4 << 20)
    monkeypatch.setattr(limits, "REPLY_TIMEOUT_S", 2.0)
    async with running(tmp_path) as region, region.caller() as writer, region.caller(name="other") as other:
        await writer.call("CreateWorkflow", create("big", BIG))
        server = region.members["n1"].server
        async with Deaf(region, "n1", name="deaf") as deaf:
            for _ in range(calls):
                await deaf.ask(f"/controlplane.v1.Agents/{method}", request_, end=method != "Session")
            await until(lambda: server.counts.unread_bytes > (3 << 20))
            while server.counts.unread_bytes:
                # What the others read counts as long as it is on its way.
                assert server.counts.unread_bytes < (4 << 20) + 2 * len(BIG)
                assert len(await other.call("GetWorkflow", READ)) > len(BIG)
            await deaf.closed()
        await until(lambda: server.counts.cut_off == 1)
        assert server.counts.calls[method, "Unavailable"] or server.counts.calls["GetWorkflow", "Unavailable"]
        assert not server._desk.outbox._held
        assert not server._desk.outbox._writes


async def test_reads_are_refused_when_the_node_holds_too_much_and_writes_are_not(tmp_path, monkeypatch):
    async with running(tmp_path) as region, region.caller() as agent:
        await agent.call("CreateWorkflow", create("big", BIG))
        talk = await agent.session()
        stream = agent.stream("Watch", WATCH)
        monkeypatch.setattr(limits, "REPLIES_PER_NODE_BYTES_MAX", len(BIG))
        with pytest.raises(Unavailable) as raised:
            await agent.call("GetWorkflow", READ)
        assert raised.value.reason == "OVERLOADED"
        await talk.send(
            operation(1, "GetWorkflow", READ),
            operation(2, "CreateWorkflow", create("w")),
            operation(3, "Watch", WATCH),
        )
        assert (await talk.error(1)).reason == "OVERLOADED"
        assert not (await talk.reply(2)).status
        while not talk.replies.get(3) or talk.replies[3][-1].more:
            await talk.receive()
        assert talk.error_of(talk.replies[3][-1]).reason == "OVERLOADED"
        del stream
        monkeypatch.setattr(limits, "REPLIES_PER_NODE_BYTES_MAX", 0)
        await agent.call("CreateWorkflow", create("another"))
        with pytest.raises(Unavailable):
            await agent.call("GetRegion")


async def test_small_reads_of_a_session_are_answered_side_by_side(tmp_path):
    """What its first reads were is what a caller's next are taken to be."""
    async with running(tmp_path) as region, region.caller() as agent:
        await agent.call("CreateWorkflow", create("w"))
        talk = await agent.session()
        (session,) = region.members["n1"].server._sessions
        read = api.GetWorkflowRequest(id="w")
        for number in range(40):
            await talk.send(operation(number, "GetWorkflow", read))
            await talk.reply(number)
        assert session._expected_bytes * limits.READS_PER_SESSION_MAX < limits.SESSION_REPLIES_BYTES_MAX


def test_only_the_connection_that_is_meant_is_shut():
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as elsewhere:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as one, socket.create_connection(("127.0.0.1", port)) as two:
            first, second = listener.accept()[0], listener.accept()[0]
            with first, second:
                assert hang_up({one.getsockname()}, elsewhere.getsockname()[1]) == 0
                assert hang_up({one.getsockname()}, port) == 1
                assert one.recv(1) == b""
                second.sendall(b"x")
                assert two.recv(1) == b"x"


async def test_callers_that_hang_up_are_no_defects(tmp_path, caplog):
    async with running(tmp_path) as region, region.caller() as agent:
        await agent.call("CreateWorkflow", create("big", BIG))
        server = region.members["n1"].server
        await until(lambda: not server.counts.unread_bytes)
        for method, asked, end in (("Watch", WATCH, True), ("Session", session_of(4), False)):
            for _ in range(5):
                async with Deaf(region, "n1", name="deaf") as deaf:
                    await deaf.ask(f"/controlplane.v1.Agents/{method}", asked, end=end)
                    await until(lambda: server.counts.unread_bytes > len(BIG))
                await until(lambda: not server.counts.unread_bytes)
        await until(lambda: not server._sessions)
        assert server.counts.defects == 0
        assert "InternalError" not in {outcome for _, outcome in server.counts.calls}
        assert "ExecuteBatchError" not in {outcome for _, outcome in server.counts.calls}
        assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_without_a_descriptor_left_callers_are_cut_off_later(tmp_path, monkeypatch, capsys):
    """To shut a connection takes one, and there may be none just because of those who do not read."""
    monkeypatch.setattr(limits, "REPLY_TIMEOUT_S", 0.1)
    limited = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with running(tmp_path) as region, region.caller() as writer:
        await writer.call("CreateWorkflow", create("big", BIG))
        server = region.members["n1"].server
        # The thread that looks for the connections is there already.
        await asyncio.to_thread(int)
        async with Deaf(region, "n1", name="deaf") as deaf:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, limited[1]))
            try:
                await deaf.ask("/controlplane.v1.Agents/GetWorkflow", READ)
                await until(lambda: "callers_do_not_read" in capsys.readouterr().out)
                assert server.counts.cut_off == 0
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limited)
            await deaf.closed()
        await until(lambda: server.counts.cut_off == 1)
        assert not region.members["n1"].node.failed.done()


async def test_a_defect_in_what_watches_over_callers_fails_the_node(tmp_path, monkeypatch):
    async with running(tmp_path) as region:
        member = region.members["n1"]
        monkeypatch.setattr(member.server._desk.outbox, "_writes", None)
        async with asyncio.timeout(20):
            with pytest.raises(AttributeError):
                await asyncio.shield(member.node.failed)
