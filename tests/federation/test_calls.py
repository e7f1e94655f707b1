"""Calls for a partition of another region: handed to its home once, and what is told or denied there is recorded."""

from __future__ import annotations

import pytest

from controlplane import status
from controlplane.errors import ControlPlaneError, Denied, Invalid, NotFound, Refused, Unavailable
from controlplane.federation.links import packed
from controlplane.node import Call
from controlplane.server.desk import submitted
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import federation_pb2 as wire
from controlplane.v1.records_pb2 import GLOBAL, Passage
from tests.federation.fleet import CENTRAL, EAST, WEST, running
from tests.server.regions import Talk, create, flag, operation, until

PINNED = f"{WEST}.prod.home-only"
MARIA = f"controlplane://acme/prod/{EAST}/operator/maria"


async def error_of(call):
    with pytest.raises(ControlPlaneError) as raised:
        await call
    return raised.value


def get_flag(partition, name="f", consistency=api.LINEARIZABLE):
    return api.GetFlagRequest(header=api.RequestHeader(partition=partition, consistency=consistency), name=name)


def pinned():
    header = api.RequestHeader(partition=PINNED, consistency=api.LINEARIZABLE)
    return api.GetElectionRequest(header=header, name="who")


async def test_a_write_and_a_linearizable_read_are_answered_by_the_home(tmp_path):
    home = f"{WEST}.prod.global"
    async with running(tmp_path) as fleet, fleet.caller(EAST) as maria:
        written = api.SetFlagReply.FromString(await maria.call("SetFlag", flag("f", partition=home)))
        assert written.header.region == WEST
        assert written.meta.actor == MARIA
        read = api.GetFlagReply.FromString(await maria.call("GetFlag", get_flag(home)))
        assert (read.header.region, read.flag.meta.revision) == (WEST, written.meta.revision)
        await fleet.settled()
        copy = api.GetFlagReply.FromString(await maria.call("GetFlag", get_flag(home, consistency=api.LOCAL)))
        assert (copy.header.region, copy.flag.meta.revision) == (EAST, written.meta.revision)


async def test_one_request_has_one_outcome_at_home(tmp_path):
    async with running(tmp_path) as fleet, fleet.caller(EAST) as maria:
        # Its region is far ahead of the home: what it has seen there says nothing about the home.
        for n in range(30):
            await maria.call("SetFlag", flag(f"own{n}"))
        request = flag("f", partition=f"{WEST}.prod.global", since=fleet[EAST].node.revision)
        one = api.SetFlagReply.FromString(await maria.call("SetFlag", request))
        again = api.SetFlagReply.FromString(await maria.call("SetFlag", request))
        assert one.header.revision == again.header.revision


async def test_sessions_reach_the_home_too_and_errors_come_back_as_they_were(tmp_path):
    async with running(tmp_path) as fleet, fleet.caller(CENTRAL) as maria:
        there = f"{WEST}.prod.jurisdiction"
        talk = await maria.session()
        await talk.send(operation(1, "CreateWorkflow", create("w", partition=there)))
        assert not (await talk.reply(1)).status
        await talk.send(operation(2, "CreateWorkflow", create("w", partition=there)))
        assert isinstance(await talk.error(2), Refused)
        request = api.GetWorkflowRequest(header=api.RequestHeader(partition=there), id="none")
        await talk.send(operation(3, "GetWorkflow", request))
        error = await talk.error(3)
        assert (type(error), error.reason) == (NotFound, "WORKFLOW_NOT_FOUND")


async def test_what_is_pinned_is_denied_from_outside_and_that_is_recorded_once_for_many(tmp_path):
    async with running(tmp_path) as fleet, fleet.caller(EAST) as maria, fleet.caller(CENTRAL) as neighbour:
        for _ in range(30):
            error = await error_of(maria.call("GetElection", pinned()))
            assert (type(error), error.reason) == (Denied, "PARTITION_PINNED")
        await until(lambda: fleet[WEST].passages(sort="denial", counterparty=EAST))
        assert len(fleet[WEST].passages(sort="denial")) == 1
        # The same jurisdiction is still another region.
        assert (await error_of(neighbour.call("GetElection", pinned()))).reason == "PARTITION_PINNED"
        await until(lambda: fleet[WEST].passages(sort="denial", counterparty=CENTRAL))
        await fleet[WEST].restart()
        assert sum(each.records for each in fleet[WEST].passages(sort="denial", counterparty=EAST)) == 30
        assert all(each.digest == b"" for each in fleet[WEST].passages(sort="denial"))
        assert fleet[WEST].member.server.counts.denials == {}


async def test_what_callers_of_other_regions_are_told_is_recorded(tmp_path):
    async with running(tmp_path) as fleet, fleet.caller(EAST) as maria, fleet.caller(WEST) as at_home:
        await at_home.call("SetFlag", flag("f"))
        assert fleet[WEST].passages(sort="answer") == []
        for _ in range(5):
            await maria.call("GetFlag", get_flag(f"{WEST}.prod.global"))
        told = lambda: sum(each.records for each in fleet[WEST].passages(sort="answer", counterparty=EAST))  # noqa: E731
        await until(lambda: told() == 5)
        assert all(each.direction == Passage.EGRESS and each.digest for each in fleet[WEST].passages(sort="answer"))


async def test_a_partition_that_is_not_there_is_denied_and_tells_nothing_of_any(tmp_path):
    """Somebody's slip must not leave a reviewer with an egress record of which nobody can say what it was about."""
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(EAST, role="agent") as planner:
        error = await error_of(planner.call("GetFlag", get_flag(f"{WEST}.prod.globl")))
        assert (type(error), error.reason) == (NotFound, "PARTITION_UNKNOWN")
        await until(lambda: fleet[WEST].passages(counterparty=EAST))
        assert [(each.sort, each.records) for each in fleet[WEST].passages()] == [("denial", 1)]
        # What is not in a partition that is there is told of that one.
        error = await error_of(planner.call("GetFlag", get_flag(f"{WEST}.prod.global")))
        assert (type(error), error.reason) == (NotFound, "FLAG_NOT_FOUND")
        await until(lambda: fleet[WEST].passages(sort="answer"))
        assert [each.reach for each in fleet[WEST].passages(sort="answer")] == [GLOBAL]


async def test_beyond_the_jurisdiction_only_what_is_global_is_answered(tmp_path):
    async with running(tmp_path) as fleet, fleet.caller(EAST) as maria:
        there = api.RequestHeader(partition=f"{WEST}.prod.jurisdiction")
        error = await error_of(maria.call("GetWorkflow", api.GetWorkflowRequest(header=there, id="w")))
        assert (type(error), error.reason) == (Denied, "JURISDICTION_MISMATCH")
        error = await error_of(maria.call("CreateWorkflow", create("w", partition=f"{WEST}.prod.jurisdiction")))
        assert (type(error), error.reason) == (Denied, "JURISDICTION_MISMATCH")


async def test_a_home_that_cannot_be_reached_is_said_and_copies_are_still_read(tmp_path):
    home = f"{WEST}.prod.global"
    async with running(tmp_path) as fleet, fleet.caller(EAST) as maria, fleet.caller(WEST) as at_home:
        await at_home.call("SetFlag", flag("f"))
        await fleet.settled()
        await fleet.cut(EAST, WEST)
        await until(lambda: fleet[EAST].link(WEST).state == "down")
        for call in (
            maria.call("SetFlag", flag("g", partition=home)),
            maria.call("GetFlag", get_flag(home)),
        ):
            error = await error_of(call)
            assert (type(error), error.reason) == (Unavailable, "HOME_UNREACHABLE")
            assert "cpctl status" in error.hint
        await maria.call("GetFlag", get_flag(home, consistency=api.LOCAL))
        await maria.call("SetFlag", flag("own"))
        await fleet.heal(EAST, WEST)
        await until(lambda: fleet[EAST].link(WEST).state == "up")
        await maria.call("SetFlag", flag("g", partition=home))


async def test_the_home_of_a_copy_that_is_no_peer_any_more_cannot_be_reached(tmp_path):
    home = f"{WEST}.prod.global"
    async with running(tmp_path) as fleet, fleet.caller(EAST) as maria, fleet.caller(WEST) as at_home:
        await at_home.call("SetFlag", flag("f"))
        await fleet.settled()
        fleet[EAST].forgotten = {WEST}
        await fleet[EAST].restart()
        error = await error_of(maria.call("SetFlag", flag("g", partition=home)))
        assert (type(error), error.reason) == (Unavailable, "HOME_UNREACHABLE")
        node = fleet[EAST].node
        call = Call("SetFlag", flag("g", partition=home).SerializeToString(), node.actor, "prod", node.clock() + 5)
        with pytest.raises(Unavailable, match="no peer"):
            await submitted(node, None, call)


async def test_a_copy_is_watched_where_it_is(tmp_path):
    async with running(tmp_path) as fleet, fleet.caller(EAST) as maria, fleet.caller(WEST) as at_home:
        await at_home.call("SetFlag", flag("f"))
        await fleet.settled()
        header = api.RequestHeader(partition=f"{WEST}.prod.global")
        watch = maria.stream("Watch", api.WatchRequest(header=header, kinds=["flag"], snapshot=True))
        while api.WatchReply.FromString(await watch.read()).kind != api.WatchReply.SYNCED:
            pass
        await at_home.call("SetFlag", flag("g"))
        while (seen := api.WatchReply.FromString(await watch.read())).kind != api.WatchReply.CHANGES:
            pass
        assert [(change.name, change.home) for change in seen.changes] == [("g", WEST)]
        watch.cancel()
        header = api.RequestHeader(partition=f"{WEST}.prod.jurisdiction")
        watch = maria.stream("Watch", api.WatchRequest(header=header))
        assert (await ended(watch)).reason == "PARTITION_UNKNOWN"


async def ended(stream):
    code = await stream.code()
    return status.from_call(code, await stream.details(), await stream.trailing_metadata())


def forwarded(fleet, of, at, method, request, on_behalf_of="", **terms):
    own = fleet[of].member.federation.links.get(at)
    said = packed(own.terms)
    for name, value in terms.items():
        setattr(said, name, value)
    return wire.ForwardRequest(
        method=method,
        request=request.SerializeToString(),
        on_behalf_of=on_behalf_of or f"controlplane://acme/prod/{of}/operator/maria",
        timeout_ms=5000,
        terms=said,
    )


async def forward(peer, request):
    return await peer.call("Forward", request, service="Federation")


async def test_no_call_hops_twice(tmp_path):
    async with running(tmp_path) as fleet, fleet.peer(EAST, WEST) as peer:
        await fleet.settled(CENTRAL)
        request = forwarded(fleet, EAST, WEST, "SetFlag", flag("f", partition=f"{CENTRAL}.prod.global"))
        assert (await error_of(forward(peer, request))).reason == "NOT_AT_HOME"
        request = forwarded(fleet, EAST, WEST, "GetFlag", get_flag(f"{CENTRAL}.prod.global"))
        assert (await error_of(forward(peer, request))).reason == "NOT_AT_HOME"
        request = forwarded(fleet, EAST, WEST, "GetFlag", get_flag("eu-central.prod.unheard-of"))
        assert (await error_of(forward(peer, request))).reason == "PARTITION_UNKNOWN"
        assert fleet[CENTRAL].passages(sort="answer") == []


@pytest.mark.parametrize(
    ("on_behalf_of", "reason"),
    [
        (f"controlplane://acme/prod/{WEST}/operator/maria", "REGION_MISMATCH"),
        (f"controlplane://acme/prod/{CENTRAL}/operator/maria", "REGION_MISMATCH"),
        (f"controlplane://other/prod/{EAST}/operator/maria", "FLEET_MISMATCH"),
        (f"controlplane://acme/all/{EAST}/peer/east1", "ON_BEHALF_DENIED"),
        (f"controlplane://acme/prod/{EAST}/reviewer/rita", "ROLE_DENIED"),
        ("maria", "IDENTITY_MALFORMED"),
    ],
)
async def test_a_region_speaks_for_its_own_callers_only(tmp_path, on_behalf_of, reason):
    async with running(tmp_path, eu_west=1, eu_central=1, us_east=1) as fleet, fleet.peer(EAST, WEST) as peer:
        request = forwarded(fleet, EAST, WEST, "SetFlag", flag("f"), on_behalf_of)
        assert (await error_of(forward(peer, request))).reason == reason
        await until(lambda: fleet[WEST].passages(sort="denial", counterparty=EAST))


@pytest.mark.parametrize("method", ["GetStatus", "TransferRegion", "Watch", "Session", "InjectFault", "GetRegion"])
async def test_only_calls_about_records_are_taken_from_elsewhere(tmp_path, method):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.peer(EAST, WEST) as peer:
        request = forwarded(fleet, EAST, WEST, method, api.GetStatusRequest())
        assert (await error_of(forward(peer, request))).reason == "NOT_FOR_OTHER_REGIONS"


async def test_nonsense_is_refused(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.peer(EAST, WEST) as peer:
        request = forwarded(fleet, EAST, WEST, "Nothing", api.GetStatusRequest())
        assert (await error_of(forward(peer, request))).reason == "METHOD_UNKNOWN"
        assert isinstance(await error_of(peer.call("Forward", b"\xff\xff", service="Federation")), Invalid)
        request = forwarded(fleet, EAST, WEST, "SetFlag", flag("f"), region=CENTRAL)
        assert (await error_of(forward(peer, request))).reason == "TERMS_OF_ANOTHER"
        request = forwarded(fleet, EAST, WEST, "SetFlag", flag("f"), peer_jurisdiction="us")
        assert (await error_of(forward(peer, request))).reason in ("LINK_PAUSED", "TERMS_MALFORMED")


async def test_a_call_that_comes_to_a_follower_is_its_leaders(tmp_path):
    home = f"{WEST}.prod.global"
    async with running(tmp_path, eu_west=3, us_east=1) as fleet:
        leader = fleet[WEST].member.name
        followers = [name for name in fleet[WEST].node_names if name != leader]
        for name in followers:
            async with fleet.peer(EAST, WEST, name) as peer:
                sent = flag(f"by-{name}", partition=home)
                reply = wire.ForwardReply.FromString(await forward(peer, forwarded(fleet, EAST, WEST, "SetFlag", sent)))
                written = api.SetFlagReply.FromString(reply.reply)
                assert (written.header.node, written.meta.actor) == (leader, MARIA)
                asked = forwarded(fleet, EAST, WEST, "GetFlag", get_flag(home, f"by-{name}"))
                read = api.GetFlagReply.FromString(wire.ForwardReply.FromString(await forward(peer, asked)).reply)
                assert read.header.node == leader
                asked = forwarded(fleet, EAST, WEST, "GetElection", pinned())
                assert (await error_of(forward(peer, asked))).reason == "PARTITION_PINNED"
                asked = forwarded(fleet, EAST, WEST, "GetStatus", api.GetStatusRequest())
                assert (await error_of(forward(peer, asked))).reason == "NOT_FOR_OTHER_REGIONS"
        await until(lambda: sum(each.records for each in fleet[WEST].passages(sort="answer")) == 4)
        await until(lambda: fleet[WEST].passages(sort="denial", counterparty=EAST))


async def test_only_nodes_of_the_region_may_speak_for_callers_of_others(tmp_path):
    async with running(tmp_path, eu_west=3, us_east=1) as fleet:
        leader = fleet[WEST].member.name
        own = next(name for name in fleet[WEST].node_names if name != leader)
        async with fleet.peer(WEST, WEST, leader, name=own) as node:
            talk = await node.session()
            await talk.send(operation(1, "SetFlag", flag("f", partition=f"{WEST}.prod.global"), on_behalf_of=MARIA))
            assert not (await talk.reply(1)).status
            await talk.send(operation(2, "GetElection", pinned(), on_behalf_of=MARIA))
            assert (await talk.error(2)).reason == "PARTITION_PINNED"
            stranger = MARIA.replace(EAST, "ap-south")
            await talk.send(operation(3, "SetFlag", flag("f"), on_behalf_of=stranger))
            assert (await talk.error(3)).reason == "REGION_MISMATCH"
            transfer = api.TransferRegionRequest(target=own)
            await talk.send(operation(4, "TransferRegion", transfer, on_behalf_of=MARIA))
            assert (await talk.error(4)).reason == "NOT_FOR_OTHER_REGIONS"
        async with fleet.peer(EAST, WEST, leader) as foreign:
            talk = Talk(foreign.channel.stream_stream("/controlplane.v1.Agents/Session")())
            assert (await talk.end()).reason == "REGION_MISMATCH"


async def test_copying_goes_on_when_the_home_has_another_leader(tmp_path):
    async with running(tmp_path, eu_west=3, us_east=1) as fleet:
        async with fleet.caller(WEST) as at_home:
            await at_home.call("SetFlag", flag("before"))
        await fleet.settled()
        leader = fleet[WEST].member
        await leader.stop()
        await until(lambda: any(m.running and m.node.log.status().ready for m in fleet[WEST].members.values()))
        async with fleet.caller(WEST, node=fleet[WEST].member.name) as at_home:
            await at_home.call("SetFlag", flag("after"), timeout_s=10)
        await fleet.settled()
        assert len(fleet[EAST].held(WEST, GLOBAL)) == 2


async def test_who_may_not_come_here_directly_is_recorded_too(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(EAST, at=WEST) as maria:
        assert (await error_of(maria.call("GetStatus"))).reason == "REGION_MISMATCH"
        await until(lambda: fleet[WEST].passages(sort="denial", counterparty=EAST))
