"""Who is let in, when nothing passes, and what a home or a follower may not be talked into."""

from __future__ import annotations

import asyncio
import logging

import grpc
import grpc.aio
import pytest

from controlplane import process
from controlplane.errors import Compacted, ControlPlaneError, Denied, Invalid, Refused, Unavailable
from controlplane.features import federation as rules
from controlplane.features.partitions import system
from controlplane.federation.links import packed
from controlplane.federation.passages import counted
from controlplane.kernel import keys
from controlplane.kernel.transaction import scope_of
from controlplane.v1 import federation_pb2 as wire
from controlplane.v1.records_pb2 import GLOBAL, HOME_ONLY, JURISDICTION, Grant, Passage
from tests.federation.fleet import CENTRAL, EAST, LAW, WEST, Spy, running
from tests.server.regions import create, flag, until

WRONG_LAW = {"eu": [CENTRAL], "us": [EAST, WEST]}


async def refused(spy):
    try:
        await spy.open()
    except ControlPlaneError as error:
        return error
    return await spy.end()


async def test_terms_that_differ_pause_one_link_loudly_on_both_sides_until_they_agree(tmp_path, caplog):
    async with running(tmp_path) as fleet:
        await fleet.settled()
        fleet[EAST].law = WRONG_LAW
        caplog.clear()
        await fleet[EAST].restart()
        await until(lambda: fleet[EAST].link(WEST).state == fleet[WEST].link(EAST).state == "paused")
        here, there = fleet[WEST].link(EAST), fleet[EAST].link(WEST)
        assert here.reason == there.reason
        assert "jurisdiction" in here.reason
        loud = [r for r in caplog.records if r.levelno >= logging.ERROR and "paused" in r.getMessage()]
        assert 2 <= len(loud) <= 4
        assert fleet[WEST].metrics()["paused", EAST] == fleet[EAST].metrics()["paused", WEST] == 1
        # Nothing passes there, and everything does elsewhere.
        async with fleet.caller(WEST) as at_home, fleet.caller(EAST) as maria:
            await at_home.call("SetFlag", flag("while-paused"))
            await until(lambda: fleet.copied(WEST, CENTRAL, GLOBAL))
            with pytest.raises(Unavailable) as raised:
                await maria.call("SetFlag", flag("x", partition=f"{WEST}.prod.global"))
            assert raised.value.reason == "LINK_PAUSED"
        await until(lambda: fleet[EAST].link(CENTRAL).state == "up")
        assert fleet[EAST].held(WEST, GLOBAL) != fleet[WEST].held(WEST, GLOBAL)
        fleet[EAST].law = LAW
        await fleet[EAST].restart()
        await fleet.settled()
        await until(lambda: fleet[EAST].link(WEST).state == fleet[WEST].link(EAST).state == "up")


async def test_a_map_that_differs_elsewhere_leaves_the_link_open(tmp_path):
    async with running(tmp_path) as fleet:
        fleet[EAST].law = {"eu": [WEST], "us": [EAST, CENTRAL]}
        await fleet[EAST].restart()
        await until(lambda: fleet[EAST].link(CENTRAL).state == "paused")
        async with fleet.caller(WEST) as at_home:
            await at_home.call("SetFlag", flag("f"))
        await fleet.settled()
        assert fleet[EAST].link(WEST).state == "up"


async def test_what_operators_do_not_let_leave_stays_whatever_the_law(tmp_path):
    async with running(tmp_path) as fleet:
        fleet[WEST].may_leave = {CENTRAL: ["global"], EAST: []}
        await fleet[WEST].restart()
        async with fleet.caller(WEST) as at_home:
            await at_home.call("SetFlag", flag("f"))
            await at_home.call("CreateWorkflow", create("w"))
        await until(lambda: fleet.copied(WEST, CENTRAL, GLOBAL))
        assert fleet[CENTRAL].held(WEST, JURISDICTION) == {}
        assert fleet[EAST].held(WEST, GLOBAL) == {}
        kept = {(g.peer, g.reach): g.open for g in grants(fleet[WEST])}
        assert kept == {
            (CENTRAL, GLOBAL): True,
            (CENTRAL, JURISDICTION): False,
            (EAST, GLOBAL): False,
        }


async def test_a_region_that_is_no_peer_any_more_is_not_let_in_and_its_grant_is_closed(tmp_path):
    async with running(tmp_path) as fleet:
        await fleet.settled()
        assert {(g.peer, g.open) for g in grants(fleet[WEST])} == {(EAST, True), (CENTRAL, True)}
        fleet[WEST].forgotten = {EAST}
        await fleet[WEST].restart()
        await until(lambda: fleet[EAST].link(WEST).state == "paused")
        assert "does not let this region in" in fleet[EAST].link(WEST).reason
        await until(lambda: {(g.peer, g.open) for g in grants(fleet[WEST])} == {(EAST, False), (CENTRAL, True)})
        async with fleet.caller(WEST) as at_home:
            await at_home.call("SetFlag", flag("f"))
        await until(lambda: fleet.copied(WEST, CENTRAL, GLOBAL))
        assert fleet[EAST].held(WEST, GLOBAL) == {}
        fleet[WEST].forgotten = set()
        await fleet[WEST].restart()
        await fleet.settled()
        await until(lambda: fleet[EAST].link(WEST).state == "up")


def grants(region):
    start, end = keys.children(keys.RECORD + scope_of(system(region.name)) + keys.text("grant"))
    rows = region.node.store.scan(start, end)
    return [Grant.FromString(rules.machine.Event.FromString(encoded).value) for _, encoded in rows]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"fleet": "else"}, "FLEET_MISMATCH"),
        ({"region": "ap-south"}, "PEER_UNKNOWN"),
        ({"region": WEST}, "PEER_UNKNOWN"),
        ({"name": "east9"}, "PEER_NAME_UNKNOWN"),
        ({"environment": "prod"}, "PEER_ROLE_REQUIRED"),
        ({"environment": "prod", "role": "operator"}, "PEER_ROLE_REQUIRED"),
    ],
)
async def test_only_nodes_that_the_region_file_names_are_let_in(tmp_path, other, reason):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.peer(EAST, WEST, **other) as stranger:
        error = await refused(Spy(fleet, EAST, WEST, GLOBAL, stranger))
        assert (type(error), error.reason) == (Denied, reason)
        with pytest.raises(Denied) as raised:
            await stranger.call("Forward", b"", service="Federation")
        assert raised.value.reason == reason


async def test_nobody_gets_a_reach_that_is_not_theirs_or_begins_oddly(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.peer(EAST, WEST) as peer:
        await fleet.settled()
        await fleet[EAST].member.federation.stop()
        for reach in (HOME_ONLY, JURISDICTION, 0, 77):
            error = await refused(Spy(fleet, EAST, WEST, reach, peer, revision=1))
            assert (type(error), error.reason) == (Denied, "MAY_NOT_LEAVE")
        claims = packed(fleet[EAST].member.federation.links.get(WEST).terms)
        claims.jurisdiction = "eu"
        error = await refused(Spy(fleet, EAST, WEST, JURISDICTION, peer, terms=claims))
        assert error.reason in ("LINK_PAUSED", "TERMS_MALFORMED")
        claims = packed(fleet[EAST].member.federation.links.get(WEST).terms)
        claims.region = CENTRAL
        assert (await refused(Spy(fleet, EAST, WEST, GLOBAL, peer, terms=claims))).reason == "TERMS_OF_ANOTHER"
        assert isinstance(await refused(Spy(fleet, EAST, WEST, GLOBAL, peer, revision=0)), Compacted)
        ahead = await refused(Spy(fleet, EAST, WEST, GLOBAL, peer, revision=10**9))
        assert (type(ahead), ahead.reason) == (Refused, "CURSOR_AHEAD")
        assert fleet[WEST].link(EAST).state == "paused"


async def test_only_the_leader_shows_anything(tmp_path):
    async with running(tmp_path, eu_west=3, us_east=1) as fleet:
        follower = next(m for m in fleet[WEST].members.values() if not m.node.log.status().ready)
        async with fleet.peer(EAST, WEST, follower.name) as peer:
            error = await refused(Spy(fleet, EAST, WEST, GLOBAL, peer, revision=1))
            assert (type(error), error.reason) == (Unavailable, "NOT_LEADER")


async def test_an_ack_of_something_else_ends_the_stream_and_is_counted(tmp_path, caplog):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet:
        await fleet.settled()
        await fleet[EAST].member.federation.stop()
        # The true follower must not have acknowledged it: what passed is written down once.
        async with fleet.caller(WEST) as at_home:
            await at_home.call("SetFlag", flag("f"))
        async with fleet.peer(EAST, WEST) as peer:
            spy = Spy(fleet, EAST, WEST, GLOBAL, peer, revision=1)
            await spy.open()
            sent = await spy.read()
            claimed = Passage(direction=Passage.INGRESS, counterparty=WEST, reach=GLOBAL, epoch=1, sort="copy")
            claimed.after, claimed.upto, claimed.records, claimed.digest = 1, sent.revision, 1, bytes(32)
            await spy.send(wire.FollowRequest(ack=wire.FollowAck(passage=claimed, messages=1)))
            error = await spy.end()
            assert (type(error), error.reason) == (Refused, "PASSAGE_DIFFERS")
            assert fleet[WEST].metrics()["differences_total", EAST] == 1
            assert any("not what was sent" in record.getMessage() for record in caplog.records)
            spy = Spy(fleet, EAST, WEST, GLOBAL, peer, revision=1)
            await spy.open()
            sent = await spy.read()
            print_of = counted("copy", sent.revision, sent.transaction.records)
            claimed.digest = rules.extended(bytes(32), print_of.fingerprint)
            await spy.send(wire.FollowRequest(ack=wire.FollowAck(passage=claimed, messages=1)))
            await until(lambda: [p for p in fleet[WEST].passages(sort="copy") if p.after == 1])
            spy.close()


async def test_a_cursor_ahead_of_the_home_pauses_the_link_on_both_sides(tmp_path):
    """The home was restored from a backup: what it says now would be mixed with what it said then."""
    async with running(tmp_path, eu_west=1, us_east=1) as fleet:
        async with fleet.caller(WEST) as at_home:
            for n in range(30):
                await at_home.call("SetFlag", flag(f"f{n}"))
        await fleet.settled()
        await fleet[WEST].stop()
        fleet[WEST].members["west1"].memory = type(fleet[WEST].members["west1"].memory)()
        await fleet[WEST].start()
        await until(lambda: fleet[EAST].link(WEST).state == fleet[WEST].link(EAST).state == "paused")
        assert "backup" in fleet[EAST].link(WEST).reason
        assert len(fleet[EAST].held(WEST, GLOBAL)) == 30


class LyingHome:
    """A server with a true certificate of its region that sends what it likes after a welcome."""

    def __init__(self, fleet, messages):
        self._fleet, self._messages = fleet, messages
        self.streams = 0

    async def start(self):
        own = self._fleet[WEST].config
        given = process.read_credentials(own, own.nodes[0])
        secure = given.of_server()
        self._server = grpc.aio.server()
        handlers = {"Follow": grpc.stream_stream_rpc_method_handler(self._follow)}
        handler = grpc.method_handlers_generic_handler("controlplane.v1.Federation", handlers)
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_secure_port(own.nodes[0].address, secure)
        await self._server.start()

    async def stop(self):
        await self._server.stop(0)

    async def _follow(self, _, context):
        hello = wire.FollowRequest.FromString(await context.read()).hello
        terms = packed(self._fleet[WEST].member_before.federation.links.get(EAST).terms)
        mine = [p for p in self._fleet[WEST].config.partitions if p.reach == GLOBAL]
        welcome = wire.FollowWelcome(terms=terms, oldest=1, partitions=mine)
        await context.write(wire.FollowReply(revision=10**6, welcome=welcome).SerializeToString())
        self.streams += 1
        for message in self._messages(hello):
            await context.write(message if isinstance(message, bytes) else message.SerializeToString())
        await asyncio.Event().wait()


def record(home, reach, partition, revision, name="a", **origin):
    key = keys.within(keys.scope(home, reach, partition, 1), "flag", name)
    at = {"home": home, "epoch": 1, "revision": revision, **origin}
    return wire.Shared(key=key, value=b"x", origin=at)


def transaction(revision, *records):
    return wire.FollowReply(revision=revision, transaction=wire.SharedTransaction(records=records))


MINE = (WEST, "GLOBAL", f"{WEST}.prod.global")
LIES = {
    "of the follower's own": lambda _: [transaction(10**5, record(EAST, "GLOBAL", f"{EAST}.prod.global", 10**5))],
    "of a third region": lambda _: [transaction(10**5, record(CENTRAL, "GLOBAL", f"{CENTRAL}.prod.global", 10**5))],
    "of another reach": lambda _: [transaction(10**5, record(WEST, "HOME_ONLY", f"{WEST}.prod.home-only", 10**5))],
    "of an unknown partition": lambda _: [transaction(10**5, record(WEST, "GLOBAL", f"{WEST}.prod.new", 10**5))],
    "said to be another's": lambda _: [transaction(10**5, record(*MINE, 10**5, home=EAST))],
    "of another revision": lambda _: [transaction(10**5, record(*MINE, 7))],
    "in two partitions": lambda _: [
        transaction(10**5, record(*MINE, 10**5), record(WEST, "GLOBAL", f"{WEST}.prod.other", 10**5))
    ],
    "too many": lambda _: [transaction(10**5, *(record(*MINE, 10**5, f"n{n}") for n in range(128)))],
    "empty": lambda _: [transaction(10**5)],
    "not a key": lambda _: [transaction(10**5, wire.Shared(key=b"\0\0\0", value=b"x"))],
    "garbage": lambda _: [b"\xff\xff\xff"],
    "a page nobody asked for": lambda _: [
        wire.FollowReply(page=wire.SharedPage(partition=MINE[2], after=b"zzz", upto=b"zzzz"))
    ],
    "nothing": lambda _: [wire.FollowReply(revision=3)],
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_home_that_lies_writes_nothing_here(tmp_path, lie):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet:
        async with fleet.caller(WEST) as at_home:
            await at_home.call("SetFlag", flag("f"))
        await fleet.settled()
        fleet[WEST].member_before = fleet[WEST].member
        await fleet[WEST].stop()
        await until(lambda: fleet[EAST].link(WEST).state == "down")
        before = [fleet[EAST].held(home, reach) for home in (WEST, EAST, CENTRAL) for reach in (GLOBAL, HOME_ONLY)]
        cursor = rules.cursor_at(fleet[EAST].node.store, EAST, WEST, GLOBAL)
        home = LyingHome(fleet, LIES[lie])
        await home.start()
        try:
            # It is tried again and again: each stream ends as soon as the lie is read.
            await until(lambda: home.streams >= 2 and fleet[EAST].link(WEST).state == "down")
        finally:
            await home.stop()
        after = [fleet[EAST].held(home, reach) for home in (WEST, EAST, CENTRAL) for reach in (GLOBAL, HOME_ONLY)]
        before[3] = after[3]  # East's own system records.
        assert after == before
        assert rules.cursor_at(fleet[EAST].node.store, EAST, WEST, GLOBAL).revision == cursor.revision
        async with fleet.caller(EAST) as maria:
            await maria.call("SetFlag", flag("own"))


async def test_streams_of_a_stranger_to_the_protocol_end_politely(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.peer(EAST, WEST) as peer:
        await fleet.settled()
        await fleet[EAST].member.federation.stop()
        spy = Spy(fleet, EAST, WEST, GLOBAL, peer)
        await spy.send(wire.FollowRequest(asked=5))
        with pytest.raises(Invalid) as raised:
            await spy.read()
        assert raised.value.reason == "HELLO_MISSING"
        spy = Spy(fleet, EAST, WEST, GLOBAL, peer, revision=1)
        await spy.open()
        await spy.send(wire.FollowRequest(ack=wire.FollowAck(messages=4000)))
        error = await spy.end()
        assert (type(error), error.reason) == (Invalid, "ACK_MALFORMED")
        assert fleet[WEST].member.server.counts.defects == 0
