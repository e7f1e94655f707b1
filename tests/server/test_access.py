"""Who gets in: certificates, roles, environments, and what a denied caller is told."""

import asyncio
import contextlib
import datetime

import grpc
import grpc.aio
import pytest

from controlplane import certs, roles
from controlplane.errors import Denied, Invalid, NotFound, OutcomeUnknown, Refused, Unavailable
from controlplane.identity import ENVIRONMENTS, Identity
from controlplane.server.desk import STREAMS
from controlplane.v1 import api_pb2 as api
from tests.server.regions import FLEET, REGION, Caller, create, flag, operation, running


async def test_an_agent_works(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        created = api.CreateWorkflowReply.FromString(await agent.call("CreateWorkflow", create("w")))
        assert created.version == 1
        got = api.GetWorkflowReply.FromString(await agent.call("GetWorkflow", api.GetWorkflowRequest(id="w")))
        assert got.workflow.meta.actor == "controlplane://acme/prod/eu-west/agent/tester"
        assert (got.header.region, got.header.node) == ("eu-west", "n1")


async def test_every_cell_of_the_table_is_what_the_server_does(tmp_path):
    """Through the real port: an empty request is denied by role, or gets further than that."""
    async with running(tmp_path) as region, contextlib.AsyncExitStack() as stack:
        for role in ("agent", "operator", "approver", "reviewer", "peer"):
            for environment in ENVIRONMENTS:
                caller = await stack.enter_async_context(region.caller(role, environment))
                for method in sorted(set(roles.TABLE) - STREAMS - {"Session", *roles.NODES}):
                    allowed = roles.allowed(method, role, environment)
                    assert await denied(caller, method) is not allowed, (method, role, environment)


async def denied(caller, method):
    try:
        await caller.call(method)
    except Denied as error:
        return error.reason == "ROLE_DENIED"
    except (Invalid, NotFound, Refused, Unavailable):
        return False
    return False


@pytest.mark.parametrize("method", sorted(STREAMS))
async def test_streams_are_authorized(tmp_path, method):
    async with running(tmp_path) as region:
        async with region.caller("reviewer") as reviewer:
            stream = reviewer.stream(method)
            # The ledger of a region that shares nothing is empty, and read to its end at once.
            assert (await stream.read() is grpc.aio.EOF) is (method == "ReadLedger")
            stream.cancel()
        async with region.caller("peer") as peer:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await peer.stream(method).read()
            assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_an_administrator_may_transfer_from_any_environment(tmp_path):
    async with running(tmp_path) as region:
        request = api.TransferRegionRequest(target="nobody")
        async with region.caller("operator", "staging", name="admin") as admin:
            with pytest.raises(Invalid) as raised:
                await admin.call("TransferRegion", request)
            assert raised.value.reason == "NODE_UNKNOWN"
        async with region.caller("operator", "staging", name="other") as other:
            with pytest.raises(Denied):
                await other.call("TransferRegion", request)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [({"fleet": "other"}, "FLEET_MISMATCH"), ({"region": "us-east"}, "REGION_MISMATCH")],
)
async def test_certificates_of_elsewhere(tmp_path, parts, reason):
    async with running(tmp_path) as region, region.caller(**parts) as stranger:
        with pytest.raises(Denied) as raised:
            await stranger.call("GetRegion")
        assert raised.value.reason == reason
        with pytest.raises(Denied) as raised:
            await stranger.session()
        assert raised.value.reason == reason


async def test_another_environments_partition(tmp_path):
    async with running(tmp_path) as region, region.caller(environment="staging") as agent:
        with pytest.raises(Denied) as raised:
            await agent.call("CreateWorkflow", create("w", partition="eu-west.prod.all"))
        assert raised.value.reason == "ENVIRONMENT_MISMATCH"
        with pytest.raises(NotFound):
            await agent.call("CreateWorkflow", create("w", partition="eu-west.prod.more"))
        await agent.call("CreateWorkflow", create("w"))


async def refused_by_tls(address, credentials):
    async with Caller(address, credentials) as caller:
        with pytest.raises(OutcomeUnknown) as raised:
            await caller.call("GetRegion", timeout_s=2)
        return raised.value.reason in {"CONNECTION_LOST", "DEADLINE"}


async def test_certificates_that_tls_refuses(tmp_path):
    now = datetime.datetime.now(datetime.UTC)
    yesterday = certs.Life(now - datetime.timedelta(days=2), now - datetime.timedelta(days=1))
    agent = Identity(FLEET, "prod", REGION, "agent", "a")
    async with running(tmp_path) as region:
        address = region.config.node("n1").address
        expired = region.credentials(agent, life=yesterday)
        foreign = region.credentials(agent, certs.create_authority(FLEET, tmp_path / "other"))
        none = grpc.ssl_channel_credentials(region.authority.file.read_bytes())
        for credentials in (expired, foreign, none, None):
            assert await refused_by_tls(address, credentials)
        async with region.caller() as good:
            await good.call("GetRegion")


async def test_garbage_on_the_port_disturbs_nobody(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        host, port = region.config.node("n1").address.split(":")
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 4096, b"\x16\x03\x01" + b"\xff" * 2000):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(garbage)
            with contextlib.suppress(OSError):
                await asyncio.wait_for(reader.read(), 5)
            writer.close()
        await agent.call("GetRegion")


async def test_a_certificate_without_identity(tmp_path):
    async with running(tmp_path) as region:
        desk = region.members["n1"].server._desk
        for names in ({}, {"x509_subject_alternative_name": (b"DNS:example.org",)}):
            with pytest.raises(Denied) as raised:
                desk.caller(Presents(names))
            assert raised.value.reason == "IDENTITY_MISSING"
        two = (b"controlplane://acme/prod/eu-west/agent/a", b"controlplane://acme/prod/eu-west/operator/a")
        for uris in (two, (b"controlplane://acme/prod/eu-west/agent/\xff",), (b"controlplane://acme",)):
            with pytest.raises(Denied) as raised:
                desk.caller(Presents({"x509_uri": uris}))
            assert raised.value.reason == "IDENTITY_MALFORMED"


class Presents:
    """A connection whose certificate says what it is told."""

    def __init__(self, properties):
        self._properties = properties

    def auth_context(self):
        return self._properties


async def test_on_behalf_of(tmp_path):
    agent_uri = "controlplane://acme/prod/eu-west/agent/tester"
    cases = {
        "": "ON_BEHALF_MISSING",
        "controlplane://acme/all/eu-west/peer/n2": "ON_BEHALF_DENIED",
        "controlplane://other/prod/eu-west/agent/a": "FLEET_MISMATCH",
        "controlplane://acme/prod/us-east/agent/a": "REGION_MISMATCH",
        "nonsense": "IDENTITY_MALFORMED",
    }
    async with running(tmp_path) as region:
        async with region.caller("peer", "all", name="n1") as peer:
            talk = await peer.session()
            for number, (uri, reason) in enumerate(cases.items()):
                await talk.send(operation(number, "CreateWorkflow", create("w"), on_behalf_of=uri))
                assert (await talk.error(number)).reason == reason
            # Authorized again, as the one it is made for.
            await talk.send(operation(20, "SetFlag", flag("f"), on_behalf_of=agent_uri))
            assert (await talk.error(20)).reason == "ROLE_DENIED"
            await talk.send(operation(21, "CreateWorkflow", create("w"), on_behalf_of=agent_uri))
            assert not (await talk.reply(21)).status
        async with region.caller() as agent:
            talk = await agent.session()
            await talk.send(operation(1, "CreateWorkflow", create("v"), on_behalf_of=agent_uri))
            assert (await talk.error(1)).reason == "ON_BEHALF_DENIED"
            got = api.GetWorkflowReply.FromString(await agent.call("GetWorkflow", api.GetWorkflowRequest(id="w")))
            assert got.workflow.meta.actor == agent_uri


async def test_denials_are_counted(tmp_path):
    async with running(tmp_path) as region, region.caller() as agent:
        for _ in range(30):
            with pytest.raises(Denied):
                await agent.call("SetFlag", flag("f"))
        counts = region.members["n1"].server.counts
        assert counts.denials == {"ROLE_DENIED": 30}
        assert counts.calls["SetFlag", "Denied"] == 30
