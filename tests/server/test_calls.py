"""Plain calls: bad input of every kind gets a clear error with a stable reason, and disturbs nobody."""

import asyncio
import contextlib

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane import limits, roles
from controlplane.errors import ControlPlaneError, Invalid, OutcomeUnknown, Unavailable
from controlplane.node import Node
from controlplane.server.desk import STREAMS
from controlplane.v1 import api_pb2 as api
from tests.server.regions import create, running, until


async def error_of(call):
    with pytest.raises(ControlPlaneError) as raised:
        await call
    return raised.value


@pytest.mark.parametrize("method", ["CreateWorkflow", "GetWorkflow", "SetFlag", "GetRegion", "GetStatus", "Campaign"])
async def test_a_request_that_is_no_message(tmp_path, method):
    async with running(tmp_path) as region, region.caller("operator") as operator:
        error = await error_of(operator.call(method, b"\xff\xff\xff\xff"))
        assert isinstance(error, Invalid)
        assert error.reason == "REQUEST_MALFORMED"


async def test_a_missing_or_reused_request_id(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        error = await error_of(agent.call("CreateWorkflow", api.CreateWorkflowRequest(id="w", schema_version=1)))
        assert error.reason == "REQUEST_ID_BAD"
        request = create("w")
        first = await agent.call("CreateWorkflow", request)
        assert await agent.call("CreateWorkflow", request) == first
        request.id = "v"
        error = await error_of(agent.call("CreateWorkflow", request))
        assert isinstance(error, Invalid)
        assert error.reason == "REQUEST_ID_REUSED"


async def test_a_message_over_the_limit(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        error = await error_of(agent.call("CreateWorkflow", bytes(limits.MESSAGE_BYTES_MAX + 1)))
        assert isinstance(error, Invalid)
        assert error.reason == "MESSAGE_TOO_LARGE"
        error = await error_of(agent.call("CreateWorkflow", create("w", bytes(limits.VALUE_BYTES_MAX + 1))))
        assert isinstance(error, Invalid)
        await agent.call("CreateWorkflow", create("w"))


async def test_a_method_that_does_not_exist(tmp_path):
    async with running(tmp_path) as region, region.caller("operator") as operator:
        for service, method in (("Agents", "Nothing"), ("Agents", "SetFlag"), ("Nobody", "GetFlag")):
            error = await error_of(operator.call(method, service=service))
            assert isinstance(error, Invalid)
            assert error.reason == "METHOD_UNKNOWN"


async def test_no_time_left(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        error = await error_of(agent.call("CreateWorkflow", create("w"), timeout_s=0))
        assert isinstance(error, OutcomeUnknown | Unavailable)


async def test_a_defect_keeps_its_text(tmp_path, monkeypatch):
    def broken(self, call):
        raise KeyError("a secret")

    async with running(tmp_path) as region, region.caller() as agent:
        monkeypatch.setattr(Node, "submit", broken)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await agent.channel.unary_unary("/controlplane.v1.Agents/CreateWorkflow")(create("w").SerializeToString())
        assert raised.value.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in str(raised.value)
        assert region.members["n1"].server.counts.defects == 1


METHODS = st.sampled_from(sorted(set(roles.TABLE) - STREAMS - {"Session", *roles.NODES}))


async def test_any_bytes_get_an_answer(tmp_path):
    """Whatever arrives is answered with a reply or one of the eight errors, and is never a defect."""
    async with running(tmp_path) as region, region.caller("operator") as operator:
        loop = asyncio.get_running_loop()

        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(METHODS, st.binary(max_size=200))
        def bombard(method, request):
            future = asyncio.run_coroutine_threadsafe(attempt(method, request), loop)
            future.result(10)

        async def attempt(method, request):
            with contextlib.suppress(ControlPlaneError):
                await operator.call(method, request)

        await asyncio.to_thread(bombard)
        assert region.members["n1"].server.counts.defects == 0


async def test_region_and_status(tmp_path):
    async with running(tmp_path) as region, region.caller("operator") as operator:
        found = api.GetRegionReply.FromString(await operator.call("GetRegion")).region
        assert (found.fleet, found.name, found.jurisdiction, found.leader) == ("acme", "eu-west", "eu", "n1")
        assert found.leader_address == region.config.node("n1").address
        status = api.GetStatusReply.FromString(await operator.call("GetStatus"))
        assert (status.node, status.role, len(status.hash)) == ("n1", "leader", 64)
        assert [(member.name, member.connected) for member in status.members] == [("n1", True)]


async def test_the_first_message_of_a_region_watch(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        stream = agent.stream("WatchRegion")
        first = api.WatchRegionReply.FromString(await stream.read())
        assert first.region.leader == "n1"
        stream.cancel()


async def test_a_watch(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        stream = agent.stream("Watch", api.WatchRequest(kinds=["workflow"]))
        assert api.WatchReply.FromString(await stream.read()).kind == api.WatchReply.STARTED
        await agent.call("CreateWorkflow", create("w"))
        async with asyncio.timeout(10):
            while True:
                reply = api.WatchReply.FromString(await stream.read())
                if reply.changes:
                    break
        assert reply.changes[0].name == "w"
        stream.cancel()
        await until(lambda: not region.members["n1"].node.status().watchers)


async def test_health(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        stub = health_pb2_grpc.HealthStub(agent.channel)
        for service in ("", "controlplane.v1.Agents", "controlplane.v1.Operators"):
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        server = region.members["n1"].server
        await server.announce_stop()
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        # Still answered: a node that is about to stop hands over before it closes.
        await agent.call("CreateWorkflow", create("w"))
        watch.cancel()


async def test_reflection_names_the_services(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        stub = reflection_pb2_grpc.ServerReflectionStub(agent.channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        reply = await call.read()
        names = {service.name for service in reply.list_services_response.service}
        assert {"controlplane.v1.Agents", "controlplane.v1.Operators", "grpc.health.v1.Health"} <= names


async def test_who_does_not_say_who_it_is_is_closed(tmp_path):
    """Long before gRPC's own two minutes."""
    async with running(tmp_path) as region:
        host, _, port = region.config.node("n1").address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(2 * limits.HANDSHAKE_MS_MAX / 1000):
            assert not await reader.read()
        writer.close()
