"""Three nodes: any of them takes any call, and callers do not notice who leads or that the leader changed."""

import asyncio
import contextlib
from dataclasses import replace

import grpc
import pytest

from controlplane import limits, status
from controlplane.datadir import Start
from controlplane.errors import ControlPlaneError, Invalid, OutcomeUnknown, Unavailable
from controlplane.forward import Forwarder, Request, Router
from controlplane.loopback import Relay, free_ports
from controlplane.node import Call
from controlplane.replication.local import LocalLog
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import records_pb2
from tests.server.regions import Region, create, flag, operation, running, until


def followers(region, leader):
    return [name for name in region.members if name != leader]


async def test_every_node_takes_writes_and_reads_them_back(tmp_path):
    async with running(tmp_path, 3) as region, contextlib.AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(region.caller(node=name)) for name in region.members]
        for number, caller in enumerate(callers):
            await caller.call("CreateWorkflow", create(f"w{number}"))
            for reader in callers:
                reply = await reader.call("GetWorkflow", api.GetWorkflowRequest(id=f"w{number}"))
                assert api.GetWorkflowReply.FromString(reply).workflow.version == 1


async def test_a_forwarded_write_is_the_callers(tmp_path):
    async with running(tmp_path, 3) as region:
        leader = await region.leader()
        node = followers(region, leader)[0]
        async with region.caller("operator", node=node, name="maria") as maria:
            reply = api.SetFlagReply.FromString(await maria.call("SetFlag", flag("f")))
            assert reply.meta.actor == "controlplane://acme/prod/eu-west/operator/maria"
            assert reply.header.node == leader


async def test_errors_survive_forwarding(tmp_path):
    async with running(tmp_path, 3) as region:
        node = followers(region, await region.leader())[0]
        async with region.caller(node=node) as agent:
            await agent.call("CreateWorkflow", create("w"))
            with pytest.raises(ControlPlaneError) as raised:
                await agent.call("CreateWorkflow", create("w"))
            assert type(raised.value).__name__ == "Refused"
            assert raised.value.details


async def test_what_was_forwarded_is_not_forwarded_again(tmp_path):
    async with running(tmp_path, 3) as region:
        leader = await region.leader()
        here, there = followers(region, leader)
        async with region.caller("peer", "all", node=here, name=there) as peer:
            talk = await peer.session()
            uri = "controlplane://acme/prod/eu-west/agent/a"
            await talk.send(operation(1, "CreateWorkflow", create("w"), on_behalf_of=uri))
            error = await talk.error(1)
            assert isinstance(error, Unavailable)
            assert error.reason == "NOT_LEADER"
            assert error.details["leader"] == leader


async def test_a_session_at_a_follower_keeps_its_order(tmp_path):
    async with running(tmp_path, 3) as region:
        node = followers(region, await region.leader())[0]
        async with region.caller(node=node) as agent:
            talk = await agent.session()
            await talk.send(operation(0, "CreateWorkflow", create("w")))
            swaps = [
                api.CompareAndSwapWorkflowRequest(
                    header=create("w").header, id="w", version=version, state=b"x", schema_version=1
                )
                for version in range(1, 100)
            ]
            await talk.send(*(operation(n, "CompareAndSwapWorkflow", swap) for n, swap in enumerate(swaps, 1)))
            for number in range(100):
                assert not (await talk.reply(number)).status


async def writes_until(caller, prefix, done):
    """Write one record after another; returns how many were acknowledged. Any failure fails the test."""
    count = 0
    while not done.is_set():
        await caller.call("CreateWorkflow", create(f"{prefix}{count}"), timeout_s=10)
        count += 1
    return count


async def test_callers_do_not_notice_a_transfer(tmp_path):
    async with running(tmp_path, 3) as region, contextlib.AsyncExitStack() as stack:
        callers = {name: await stack.enter_async_context(region.caller(node=name)) for name in region.members}
        operator = await stack.enter_async_context(region.caller("operator", node="n1"))
        done = asyncio.Event()
        writing = [asyncio.create_task(writes_until(caller, name, done)) for name, caller in callers.items()]
        for _ in range(3):
            before = await region.leader()
            target = followers(region, before)[0]
            reply = await operator.call("TransferRegion", api.TransferRegionRequest(target=target))
            assert api.TransferRegionReply.FromString(reply).leader == target
            await until(lambda target=target: region.members[target].log.status().ready)
        done.set()
        counts = await asyncio.gather(*writing)
        assert all(counts)
        for name, count in zip(callers, counts, strict=True):
            for number in range(count):
                await callers["n1"].call("GetWorkflow", api.GetWorkflowRequest(id=f"{name}{number}"))


async def test_callers_of_the_others_do_not_notice_a_leader_that_is_gone(tmp_path):
    async with running(tmp_path, 3) as region, contextlib.AsyncExitStack() as stack:
        leader = await region.leader()
        others = followers(region, leader)
        callers = {name: await stack.enter_async_context(region.caller(node=name)) for name in others}
        done = asyncio.Event()
        writing = [asyncio.create_task(writes_until(caller, name, done)) for name, caller in callers.items()]
        await until(lambda: region.members[leader].node.revision > 50)
        await region.members.pop(leader).stop()
        reached = max(member.node.revision for member in region.members.values())
        await until(lambda: min(member.node.revision for member in region.members.values()) > reached + 50)
        done.set()
        assert all(await asyncio.gather(*writing))


async def test_a_session_survives_a_leader_that_is_gone(tmp_path):
    """64 operations in flight at a follower while its leader goes: each answered once, none failed."""
    async with running(tmp_path, 3) as region:
        leader = await region.leader()
        async with region.caller(node=followers(region, leader)[0]) as agent:
            talk = await agent.session()
            sent = 64
            await talk.send(*(operation(n, "CreateWorkflow", create(f"w{n}")) for n in range(sent)))
            stopping = None
            while len(talk.replies) < 1000:
                message = await talk.receive()
                failures = [status.decode(reply.status) for reply in message.replies if reply.status]
                assert not failures, [(type(error).__name__, error.reason, str(error)) for error in failures]
                more = range(sent, sent + len(message.replies))
                await talk.send(*(operation(n, "CreateWorkflow", create(f"w{n}")) for n in more))
                sent = more.stop
                if stopping is None and sent > 300:
                    stopping = asyncio.create_task(region.members.pop(leader).stop())
            await stopping
            assert all(len(replies) == 1 for replies in talk.replies.values())
            assert any(message.region.leader not in ("", leader) for message in talk.messages)


async def test_without_a_majority_calls_wait_and_then_say_so(tmp_path):
    async with running(tmp_path, 3) as region:
        leader = await region.leader()
        gone = followers(region, leader)
        for name in gone:
            await region.members.pop(name).stop()
        async with region.caller(node=leader) as agent:
            with pytest.raises((Unavailable, OutcomeUnknown)):
                await agent.call("CreateWorkflow", create("w"), timeout_s=1.5)
            # What needs nobody else is still answered.
            local = api.RequestHeader(consistency=api.LOCAL)
            await agent.call("ListWorkflows", api.ListWorkflowsRequest(header=local))


async def test_a_call_waits_for_the_leader_to_come(tmp_path):
    """Two of three nodes are down; a call made now is answered as soon as one of them is back."""
    async with running(tmp_path, 3) as region:
        leader = await region.leader()
        gone = followers(region, leader)
        for name in gone:
            await region.members.pop(name).stop()
        await until(lambda: region.members[leader].log.status().leader is None)
        async with region.caller(node=leader) as agent:
            call = asyncio.create_task(agent.call("CreateWorkflow", create("w"), timeout_s=20))
            router = region.members[leader].server.router
            await until(lambda: router.waiting == 1)
            await region.start(gone[0], Start.NORMAL)
            await call
            assert router.waiting == 0


async def test_waiting_calls_are_bounded_and_end_by_their_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "QUEUE_CALLS_MAX", 10)
    async with running(tmp_path, 3) as region:
        leader = await region.leader()
        for name in followers(region, leader):
            await region.members.pop(name).stop()
        await until(lambda: region.members[leader].log.status().leader is None)
        async with region.caller("operator", node=leader) as operator:
            talk = await operator.session()
            await talk.send(*(operation(n, "CreateWorkflow", create("w"), timeout_ms=500) for n in range(12)))
            reasons = [(await talk.error(n)).reason for n in range(12)]
            assert reasons == ["NO_LEADER"] * 10 + ["OVERLOADED"] * 2
            assert region.members[leader].server.router.waiting == 0


class EndsWithAnErrorWhenCancelled(Forwarder):
    """gRPC may answer the cancelling of a stream with an error of its own."""

    async def _session(self):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise grpc.RpcError from None


async def test_a_session_that_ends_otherwise_than_cancelled_does_not_keep_a_node_from_stopping():
    forwarder = EndsWithAnErrorWhenCancelled(
        "127.0.0.1:1", None, asyncio.get_running_loop().time, lambda: None, lambda request, error: None
    )
    forwarder.start()
    await asyncio.sleep(0)
    await asyncio.wait_for(forwarder.stop(), 10)


async def test_a_defect_in_what_forwards_fails_the_node(tmp_path, monkeypatch):
    async with running(tmp_path, 3) as region:
        leader = await region.leader()
        name = followers(region, leader)[0]
        member = region.members[name]

        def broken(_):
            raise KeyError("a defect")

        monkeypatch.setattr(member.server.router._forwarders[leader], "_take", broken)
        async with region.caller(node=name) as agent:
            talk = await agent.session()
            await talk.send(operation(1, "CreateWorkflow", create("w")))
            async with asyncio.timeout(20):
                with pytest.raises(KeyError, match="a defect"):
                    await asyncio.shield(member.node.failed)


async def test_waiting_calls_are_bounded_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "QUEUE_BYTES_MAX", 100_000)
    async with running(tmp_path, 3) as region:
        leader = await region.leader()
        for name in followers(region, leader):
            await region.members.pop(name).stop()
        await until(lambda: region.members[leader].log.status().leader is None)
        router = region.members[leader].server.router
        async with region.caller("operator", node=leader) as operator:
            talk = await operator.session()
            large = [operation(n, "CreateWorkflow", create("w", bytes(30_000)), timeout_ms=1000) for n in range(4)]
            await talk.send(*large)
            assert (await talk.error(3)).reason == "OVERLOADED"
            assert router.waiting == 3
            switch = api.EngageSwitchRequest(header=create("w", reason="test").header)
            switch.scope.name, switch.scope.kind = "t" * 20_000, records_pb2.SCOPE_TENANT
            await talk.send(operation(4, "EngageSwitch", switch, timeout_ms=1000))
            reasons = [(await talk.error(n)).reason for n in (0, 1, 2, 4)]
            assert reasons == ["NO_LEADER"] * 4
            # What has ended takes no room.
            await talk.send(operation(5, "CreateWorkflow", create("w", bytes(30_000)), timeout_ms=100))
            assert (await talk.error(5)).reason == "NO_LEADER"


async def test_who_claims_to_have_seen_the_future_keeps_nobody_waiting(tmp_path):
    async with running(tmp_path, 3) as region:
        node = followers(region, await region.leader())[0]
        async with region.caller(node=node) as agent:
            for number in range(3):
                with pytest.raises(Unavailable) as raised:
                    await agent.call("CreateWorkflow", create("w", since=1 << 62))
                assert raised.value.reason == "SINCE_IN_FUTURE"
                assert region.members[node].server.router.waiting == 0
                await agent.call("CreateWorkflow", create(f"w{number}"))


async def test_a_request_that_fits_in_no_message_is_refused_where_it_arrives(tmp_path):
    async with running(tmp_path, 3) as region:
        node = followers(region, await region.leader())[0]
        async with region.caller(node=node) as agent:
            for size in (limits.REQUEST_BYTES_MAX, limits.MESSAGE_BYTES_MAX - 1000):
                with pytest.raises(Invalid) as raised:
                    await agent.call("CreateWorkflow", create("w", bytes(size)))
                assert raised.value.reason == "REQUEST_TOO_LARGE"
            await agent.call("CreateWorkflow", create("w", bytes(limits.VALUE_BYTES_MAX - 1000)))


class Kept(Request):
    """What became of a request."""

    outcome = None

    def answered(self, reply):
        self.outcome = reply

    def failed(self, error):
        self.outcome = error


async def test_a_new_leader_takes_up_what_waits_in_parts_and_in_order():
    """Thousands may wait through a failover; the leader has to beat meanwhile."""
    loop, planned, turns = asyncio.get_running_loop(), [], [0]

    def plan(call):
        planned.append(int(call.request))
        turns[-1] += 1
        done = loop.create_future()
        done.set_result(b"")
        return done

    def turn():
        turns.append(0)
        if len(planned) < 1000:
            loop.call_soon(turn)

    log = LocalLog("n1")
    router = Router("n1", plan, log, {}, None, loop.time)
    router.start()
    try:
        requests = [
            Kept(Call("CreateWorkflow", str(n).encode(), "agent", "prod", loop.time() + 20)) for n in range(1000)
        ]
        for request in requests:
            router.submit(request)
        assert (router.waiting, planned) == (1000, [])
        await log.start(Applies())
        loop.call_soon(turn)
        # Who comes now is behind all those.
        router.submit(Kept(Call("CreateWorkflow", b"1000", "agent", "prod", loop.time() + 20)))
        await until(lambda: len(planned) == 1001)
        assert planned == list(range(1001))
        assert max(turns) <= 300
        # Each is answered in a turn of its own after it is planned.
        await until(lambda: all(request.outcome == b"" for request in requests))
    finally:
        await router.stop()
        await log.stop()


class Applies:
    """A machine that has nothing to apply to."""

    applied = (0, 0)

    def apply(self, index, term, entry):
        self.applied = (index, term)


async def test_nodes_that_listen_elsewhere_than_they_are_found(tmp_path):
    """As behind address translation: every way to a node, of clients and of the others, leads over a relay."""
    region = Region(tmp_path, 3)
    taken = {int(each.rpartition(":")[2]) for node in region.config.nodes for each in node.addresses}
    ports = (port for port in free_ports(16) if port not in taken)
    relays, nodes = [], []
    for node in region.config.nodes:
        listens = [f"127.0.0.1:{next(ports)}" for _ in range(2)]
        nodes.append(replace(node, listen=listens[0], peer_listen=listens[1]))
        for found, at in zip((node.address, node.peer_address), listens, strict=True):
            relays.append(Relay(int(found.rpartition(":")[2]), at))
    region.config = replace(region.config, nodes=tuple(nodes))
    async with contextlib.AsyncExitStack() as stack:
        for relay in relays:
            await relay.heal()
            stack.push_async_callback(relay.cut)
        for node in nodes:
            stack.push_async_callback(lambda name=node.name: region.members[name].stop())
        await asyncio.gather(*(region.start(node.name, Start.BOOTSTRAP) for node in nodes))
        await region.leader()
        for node in nodes:
            async with region.caller(node=node.name) as anna:
                await anna.call("CreateWorkflow", create(f"by way of {node.name}"))
        async with region.caller("operator") as maria:
            found = api.GetStatusReply.FromString(await maria.call("GetStatus"))
        assert [member.address for member in found.members] == [node.address for node in nodes]
