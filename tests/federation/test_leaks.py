"""A canary in what is pinned, in who wrote it and why: it is looked for in all that another region holds or hears."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from random import Random

import pytest

from chaos import leaks_peer, leaks_search
from controlplane import status
from controlplane.errors import ControlPlaneError
from controlplane.federation.links import packed
from controlplane.identity import Identity
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import federation_pb2 as wire
from controlplane.v1 import records_pb2
from controlplane.v1.records_pb2 import GLOBAL, HOME_ONLY, JURISDICTION
from tests.federation.fleet import CENTRAL, EAST, FLEET, WEST, Spy, running
from tests.server.regions import create, flag, until, write_header

CANARY = "kanarienvogel"
PINNED = f"{WEST}.prod.home-only"
TERMS_OF_REACH = {EAST: (GLOBAL,), CENTRAL: (JURISDICTION, GLOBAL)}


async def plant(fleet, count=3):
    """Put the canary into all that does not travel: values and names of pinned records, and who wrote any, and why."""
    async with fleet.caller(WEST, name=CANARY) as writer:
        for n in range(count):
            await writer.call("CreateWorkflow", create(f"{CANARY}-{n}", CANARY.encode(), partition=PINNED))
            reason = {"partition": PINNED, "reason": f"because of {CANARY}"}
            await writer.call("SetFlag", flag(f"{CANARY}{n}", **reason))
            scope = records_pb2.Scope(kind=records_pb2.SCOPE_TENANT, name=f"{CANARY}{n}")
            engaged = api.EngageSwitchRequest(header=write_header(reason=f"{CANARY} broke"), scope=scope)
            await writer.call("EngageSwitch", engaged)
            # What travels: the record, not who wrote it and why.
            await writer.call("SetFlag", flag(f"public{n}", reason=f"asked for by {CANARY}"))
            await writer.call("CreateWorkflow", create(f"shared{n}", reason=f"{CANARY} again"))


def holds_canary(chunks):
    return [chunk for chunk in chunks if CANARY.encode() in chunk]


async def spied_on(fleet, region):
    """Every message that a follower in `region` can get out of the home, by listing and by following."""
    found = []
    for reach in TERMS_OF_REACH[region]:
        for hello in ({"revision": 1}, {"revision": fleet[WEST].node.revision, "listing": True}):
            # Another stream of the same region may take the place of this one, and then it is asked again.
            while True:
                async with fleet.peer(region, WEST) as peer:
                    spy = Spy(fleet, region, WEST, reach, peer, **hello)
                    await spy.open()
                    with contextlib.suppress(ControlPlaneError):
                        while not (reply := await spy.read()).progress and not reply.page.last:
                            if reply.revision >= fleet[WEST].node.revision - 3 and reply.HasField("transaction"):
                                break
                    found += spy.messages
                    spy.close()
                    if len(spy.messages) > 1:
                        break
    return found


@pytest.mark.parametrize("region", [EAST, CENTRAL])
async def test_nothing_pinned_is_in_any_message_or_store_of_another_region(tmp_path, region):
    async with running(tmp_path) as fleet:
        await plant(fleet)
        await fleet.settled()
        await fleet[region].member.federation.stop()
        heard = await spied_on(fleet, region)
        assert any(b"public0" in message for message in heard)
        assert any(b"shared0" in message for message in heard) is (region == CENTRAL)
        assert holds_canary(heard) == []
        assert any(b"public0" in row for row in fleet[region].everything())
        assert holds_canary(fleet[region].everything()) == []
        assert holds_canary(fleet[WEST].everything()) != []


async def test_not_through_cuts_restarts_and_another_file_either(tmp_path):
    async with running(tmp_path) as fleet:
        await plant(fleet, 1)
        await fleet.cut(WEST, EAST)
        await plant_more(fleet, "cut")
        await fleet.heal(WEST, EAST)
        await fleet.settled()
        for name in (WEST, EAST):
            await fleet[name].restart()
            await plant_more(fleet, f"restart {name}")
        fleet[WEST].may_leave = {CENTRAL: [], EAST: ["global"]}
        await fleet[WEST].restart()
        await plant_more(fleet, "narrower")
        fleet[WEST].may_leave = {}
        await fleet[WEST].restart()
        await plant_more(fleet, "as before")
        await fleet.settled()
        for region in (EAST, CENTRAL):
            assert holds_canary(fleet[region].everything()) == []
            assert fleet[region].held(WEST, HOME_ONLY) == {}
        assert fleet[EAST].held(WEST, JURISDICTION) == {}


async def plant_more(fleet, name):
    async with fleet.caller(WEST, name=CANARY) as writer:
        await writer.call("CreateWorkflow", create(f"{CANARY}-{name}", CANARY.encode(), partition=PINNED))
        await writer.call("SetFlag", flag(f"public-{name}", reason=CANARY))


async def test_not_from_stores_on_disk_and_through_another_leader(tmp_path):
    """The stores of the home are those of real nodes, which read ranges in another way than those in memory."""
    async with running(tmp_path, eu_west=3, us_east=1) as fleet:
        await plant(fleet, 30)
        await fleet.settled()
        await fleet[WEST].member.stop()
        await until(lambda: any(m.running and m.node.log.status().ready for m in fleet[WEST].members.values()))
        leader = fleet[WEST].member
        async with fleet.caller(WEST, node=leader.name, name=CANARY) as writer:
            await writer.call("SetFlag", flag("public-after", reason=CANARY), timeout_s=10)
        await fleet.settled()
        await fleet[EAST].member.federation.stop()
        async with fleet.peer(EAST, WEST, leader.name) as peer:
            for hello in ({"revision": 1}, {"revision": leader.node.revision, "listing": True}):
                spy = Spy(fleet, EAST, WEST, GLOBAL, peer, **hello)
                await spy.open()
                while not (reply := await spy.read()).progress and not reply.page.last:
                    pass
                spy.close()
                assert any(b"public-after" in message for message in spy.messages)
                assert holds_canary(spy.messages) == []
        assert holds_canary(fleet[EAST].everything()) == []
        assert leader.server.counts.defects == 0


async def test_not_by_asking_nor_in_what_is_said_about_it(tmp_path, caplog):
    partition = {"partition": PINNED}
    async with running(tmp_path) as fleet, fleet.caller(EAST) as maria, fleet.caller(CENTRAL) as neighbour:
        await plant(fleet)
        await fleet.settled()
        heard = []
        for caller in (maria, neighbour):
            header = api.RequestHeader(**partition)
            for method, request in {
                "GetWorkflow": api.GetWorkflowRequest(header=header, id=f"{CANARY}-0"),
                "ListWorkflows": api.ListWorkflowsRequest(header=header),
                "GetFlag": api.GetFlagRequest(header=header, name=f"{CANARY}0"),
                "ListFlags": api.ListFlagsRequest(header=header),
                "ListSwitches": api.ListSwitchesRequest(header=header),
                "ListEvents": api.ListEventsRequest(header=header),
                "CreateWorkflow": create(f"{CANARY}-0", **partition),
                "SetFlag": flag(f"{CANARY}0", **partition),
            }.items():
                with pytest.raises(ControlPlaneError) as raised:
                    await caller.call(method, request)
                assert raised.value.reason == "PARTITION_PINNED", method
                heard.append(status.encode(raised.value))
        for region in (EAST, CENTRAL):
            heard.append(fleet[region].link(WEST).SerializeToString())
            heard.append(repr(fleet[region].metrics()).encode())
        heard += [repr(fleet[WEST].metrics()).encode(), fleet[WEST].link(EAST).SerializeToString()]
        heard += [each.SerializeToString() for each in fleet[WEST].passages()]
        heard += [record.getMessage().encode() for record in caplog.records]
        assert holds_canary(heard) == []


def whom(reply):
    """Everybody whom the metadata of a reply names, and every reason in it."""
    found = set()
    for field, value in reply.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                found |= {each.actor, each.reason} if isinstance(each, api.Meta) else whom(each)
    return found - {""}


async def test_who_wrote_and_why_is_told_at_home_only_also_of_what_travels(tmp_path):
    async with running(tmp_path) as fleet, contextlib.AsyncExitStack() as callers:
        maria, neighbour, at_home = [
            await callers.enter_async_context(fleet.caller(name)) for name in (EAST, CENTRAL, WEST)
        ]
        await plant(fleet, 1)
        await fleet.settled()
        shared, lawful = (api.RequestHeader(partition=f"{WEST}.prod.{word}") for word in ("global", "jurisdiction"))
        public = {"header": shared, "name": "public0"}
        for caller, request in [
            (maria, api.GetFlagRequest(**public)),
            (maria, api.GetFlagHistoryRequest(**public)),
            (maria, api.ListFlagsRequest(header=shared)),
            (neighbour, api.ListWorkflowsRequest(header=lawful)),
            (neighbour, api.GetWorkflowHistoryRequest(header=lawful, id="shared0")),
        ]:
            reply = await said(caller, request)
            assert reply.header.region == WEST
            assert whom(reply) == set(), request
        assert whom(await said(at_home, api.GetFlagRequest(**public))) == {
            f"controlplane://acme/prod/{WEST}/operator/{CANARY}",
            f"asked for by {CANARY}",
        }
        # Events are read where the copy is, unless a node asks for them.
        async with fleet.peer(EAST, WEST) as peer:
            events = api.ListEventsRequest(header=shared).SerializeToString()
            terms = packed(fleet[EAST].member.federation.links.get(WEST).terms)
            brought = wire.ForwardRequest(method="ListEvents", request=events, timeout_ms=5000, terms=terms)
            brought.on_behalf_of = f"controlplane://acme/prod/{EAST}/operator/maria"
            told = wire.ForwardReply.FromString(await peer.call("Forward", brought, service="Federation"))
            reply = api.ListEventsReply.FromString(told.reply)
            assert "public0" in [change.name for change in reply.changes]
            assert whom(reply) == set()
        # Who asks is told what they wrote themselves.
        await maria.call("SetFlag", flag("hers", partition=f"{WEST}.prod.global", reason="mine"))
        hers = api.GetFlagRequest(header=shared, name="hers")
        assert whom(await said(maria, hers)) == {f"controlplane://acme/prod/{EAST}/operator/maria", "mine"}
        assert whom(await said(neighbour, hers)) == set()


async def test_a_switch_among_shared_records_stays_and_holds_nothing_up(tmp_path):
    async with running(tmp_path) as fleet, fleet.caller(WEST, name=CANARY) as writer, fleet.caller(EAST) as maria:
        await fleet.settled()
        there = {"partition": f"{WEST}.prod.global"}
        scope = records_pb2.Scope(kind=records_pb2.SCOPE_TENANT, name="somebody")
        reason = f"{CANARY} broke"
        await writer.call(
            "EngageSwitch", api.EngageSwitchRequest(header=write_header(reason=reason, **there), scope=scope)
        )
        await writer.call("SetFlag", flag("after", **there))
        header = api.RequestHeader(consistency=api.LOCAL, **there)

        async def has_come():
            listed = await said(maria, api.ListFlagsRequest(header=header))
            return [view.flag.name for view in listed.flags] == ["after"]

        async with asyncio.timeout(20):
            while not await has_come():  # noqa: ASYNC110 - what is awaited has no event here.
                await asyncio.sleep(0.01)
        assert holds_canary(fleet[EAST].everything()) == []
        asked = api.ListSwitchesRequest(header=api.RequestHeader(**there))
        assert CANARY in str(await said(writer, asked))
        assert CANARY not in str(await said(maria, asked))


async def said(caller, request):
    method = type(request).__name__.removesuffix("Request")
    return getattr(api, f"{method}Reply").FromString(await caller.call(method, request))


@pytest.mark.parametrize(("region", "law"), [(EAST, "eu"), (CENTRAL, "us")])
async def test_not_by_any_call_nor_to_a_peer_that_lies(tmp_path, region, law):
    """Every call with every consistency, there and by a node's hand, and every beginning of a stream that may pass."""
    planted = leaks_search.words(Random(7))
    reaches = {"home-only": planted.pinned, "jurisdiction": planted.law, "global": planted.shared}
    async with running(tmp_path) as fleet, contextlib.AsyncExitStack() as open_ones:
        home, ear = leaks_peer.Ear(), leaks_peer.Ear()

        async def caller(identity, at, told):
            address = f"127.0.0.1:{fleet[at].ports[0]}"
            made = leaks_peer.Caller(address, fleet.credentials(identity), told, identity.region, quiet_s=0.05)
            return await open_ones.enter_async_context(made)

        writers = {word: await caller(Identity(FLEET, "prod", WEST, "operator", word), WEST, home) for word in planted}
        partitions = {f"{WEST}.prod.{reach}": word for reach, word in reaches.items()}
        revision = await leaks_peer.plant(writers, planted, partitions, "1")
        await fleet.settled()
        own = await caller(Identity(FLEET, "prod", region, "operator", "maria"), region, ear)
        node = Identity(FLEET, "all", region, "peer", fleet[region].node_names[0])
        peer = await caller(node, WEST, ear)
        terms = packed(fleet[region].member.federation.links.get(WEST).terms)
        asked = ["", *partitions]
        await own.everything(leaks_peer.every_request(asked, revision, own=True))
        requests = leaks_peer.every_request(asked, revision, own=False)
        await peer.forwarded(requests, terms, f"controlplane://{FLEET}/prod/{region}/operator/maria")
        # The true follower would take the streams away from the one that lies.
        await fleet[region].member.federation.stop()
        third = CENTRAL if region == EAST else EAST
        counts = [await peer.follow(*each) for each in leaks_peer.every_hello(terms, third, law, revision)]
        assert sum(count > 1 for count in counts) > 20
        assert ear.answers["ok"] > 100
        assert {"PARTITION_PINNED", "MAY_NOT_LEAVE", "TERMS_OF_ANOTHER", "LINK_PAUSED"} <= {*ear.answers}

        searched = leaks_search.Searched(region, planted._asdict())
        for what, message in ear.heard:
            searched.look("told", what, message)
        for row in fleet[region].everything():
            searched.look("rows", "", row)
        found = {(each.what, each.place.partition(":")[0]) for each in searched.findings}
        arrives = ["shared", "law"] if region == CENTRAL else ["shared"]
        assert found == {(word, place) for word in arrives for place in ("told", "rows")}
        assert all(fleet[name].member.server.counts.defects == 0 for name in fleet.regions)


def test_the_search_sees_a_word_however_it_is_written():
    word = leaks_search.words(Random(3)).pinned
    for ahead in range(3):
        text = b"x" * ahead + word.encode() + b"tail"
        for written in (
            text,
            text.hex().encode(),
            base64.b64encode(text),
            text.upper(),
            text.decode().encode("utf-16-le"),
        ):
            searched = leaks_search.Searched(EAST, {"pinned": word})
            searched.look("told", "", b"before " + written + b" after")
            assert searched.findings, (ahead, written)
    searched.findings.clear()
    searched.look("told", "", word[:-1].encode() + b"-" + base64.b64encode(b"something else entirely"))
    assert searched.findings == []
