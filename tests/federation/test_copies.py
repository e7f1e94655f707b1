"""Copies of shared records: they arrive, survive cuts and restarts, and nothing else does."""

from __future__ import annotations

import asyncio

import pytest

from controlplane import limits
from controlplane.errors import Invalid
from controlplane.features import flags
from controlplane.federation.links import INGRESS
from controlplane.kernel import keys
from controlplane.kernel.transaction import Kind
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import GLOBAL, HOME_ONLY, JURISDICTION, Flag, FlagType, Partition, Passage, Variant
from controlplane.v1.state_pb2 import Event, Guard
from tests.federation.fleet import CENTRAL, EAST, WEST, Spy, running
from tests.server.regions import create, flag, until, write_header


async def write_some(fleet, prefix, count=5, region=WEST):
    async with fleet.caller(region) as maria:
        for n in range(count):
            await maria.call("SetFlag", flag(f"{prefix}{n}"))
            await maria.call("CreateWorkflow", create(f"{prefix}{n}"))


async def test_each_region_gets_what_it_may_have_and_nothing_else(tmp_path):
    async with running(tmp_path) as fleet:
        await write_some(fleet, "a")
        await fleet.settled()
        assert len(fleet[EAST].held(WEST, GLOBAL)) == 5
        assert fleet[EAST].held(WEST, JURISDICTION) == {}
        assert len(fleet[CENTRAL].held(WEST, JURISDICTION)) == 5
        assert fleet[CENTRAL].held(WEST, HOME_ONLY) == {}
        for home in (CENTRAL, EAST):
            await write_some(fleet, "b", region=home)
            await fleet.settled(home)


async def test_a_region_that_was_cut_off_goes_on_says_so_and_catches_up(tmp_path):
    async with running(tmp_path) as fleet:
        await write_some(fleet, "a")
        await fleet.settled()
        assert fleet[EAST].link(WEST).state == "up"
        await until(lambda: fleet[EAST].link(WEST).views[0].age_ms < 60_000)
        for other in (WEST, CENTRAL):
            await fleet.cut(EAST, other)
        await until(lambda: all(fleet[EAST].link(other).state == "down" for other in (WEST, CENTRAL)))
        before = fleet[EAST].held(WEST, GLOBAL)
        await write_some(fleet, "b")
        await write_some(fleet, "c", region=EAST)
        assert fleet[EAST].held(WEST, GLOBAL) == before
        # What was copied can be read, and says how old it is.
        async with fleet.caller(EAST) as reader:
            header = api.RequestHeader(partition=f"{WEST}.prod.global", consistency=api.LOCAL)
            reply = api.GetFlagReply.FromString(
                await reader.call("GetFlag", api.GetFlagRequest(header=header, name="a0"))
            )
            oldest = reply.header.age_ms
            await until(lambda: fleet[EAST].link(WEST).views[0].age_ms > oldest)
        for other in (WEST, CENTRAL):
            await fleet.heal(EAST, other)
        await fleet.settled()
        await fleet.settled(EAST)
        await until(lambda: fleet[EAST].link(WEST).state == "up")


async def test_the_age_of_a_copy_is_known_everywhere(tmp_path):
    async with running(tmp_path) as fleet:
        await fleet.settled()
        views = lambda: [view.age_ms for view in fleet[CENTRAL].link(WEST).views]  # noqa: E731
        await until(lambda: len(views()) == 2 and max(views()) < 3000)


async def test_either_side_is_restarted_and_copying_resumes_where_it_stood(tmp_path):
    async with running(tmp_path) as fleet:
        await write_some(fleet, "a")
        await fleet.settled()
        for name in (EAST, WEST, CENTRAL):
            await until(lambda: fleet[EAST].passages(direction=Passage.INGRESS, counterparty=WEST))
            listings = len(fleet[EAST].passages(sort="listing"))
            await fleet[name].restart()
            await write_some(fleet, f"after {name}")
            await fleet.settled()
            assert len(fleet[EAST].passages(sort="listing")) == listings


async def test_what_is_no_longer_kept_is_listed_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "EVENTS_KEPT", 50)
    monkeypatch.setattr(limits, "TRIM_REVISIONS", 10)
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(WEST) as maria:
        home = f"{WEST}.prod.global"
        campaign = api.CampaignRequest(header=write_header(partition=home), name="e", process=b"p" * 16, ttl_ms=60_000)
        won = api.CampaignReply.FromString(await maria.call("Campaign", campaign))
        await write_some(fleet, "a")
        await fleet.settled()
        assert len(fleet[EAST].held(WEST, GLOBAL)) == 6
        await fleet.cut(WEST, EAST)
        await until(lambda: fleet[EAST].link(WEST).state == "down")
        resign = api.ResignRequest(
            header=write_header(partition=home), name="e", process=b"p" * 16, fence=won.holder.fence
        )
        await maria.call("Resign", resign)
        await write_some(fleet, "b", 60)
        copied = next(cursor.revision for cursor, _ in fleet[EAST].node.views())
        exporter = fleet[WEST].member.federation.exporter
        await until(lambda: exporter.oldest() > copied)
        await fleet.heal(WEST, EAST)
        await fleet.settled()
        assert len(fleet[EAST].held(WEST, GLOBAL)) == 65


async def test_what_was_written_while_a_partition_was_not_shown_comes_once_it_is_shown_again(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet:
        shared, home = f"{WEST}.prod.shared", fleet[WEST]
        async with fleet.caller(WEST) as maria:
            await maria.call("SetFlag", flag("before", partition=shared))
            await fleet.settled()
            await fleet.cut(WEST, EAST)
            await maria.call("SetFlag", flag("meanwhile", partition=shared))
            written = home.node.revision
        # As when the region's file changes node by node, and one that has yet to read it leads for a moment.
        home.shares_more = False
        await home.restart()
        await fleet.heal(WEST, EAST)
        await until(lambda: fleet[EAST].node.abroad.partitions[shared].withdrawn)
        await until(lambda: copied_upto(fleet, EAST) >= written)
        home.shares_more = True
        await home.restart()
        await fleet.settled()
        assert len(fleet[EAST].held(WEST, GLOBAL)) == 2
        await until(lambda: not fleet[EAST].node.abroad.partitions[shared].withdrawn)


def copied_upto(fleet, region):
    return next(cursor.revision for cursor, _ in fleet[region].node.views())


async def test_a_link_that_flaps_neither_loses_nor_repeats_anything(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(WEST) as maria:
        done = asyncio.Event()

        def passed():
            return fleet[EAST].metrics().get(("transactions_total", WEST, "global", "ingress"), 0)

        async def flap():
            while not done.is_set():
                seen = passed()
                await until(lambda: done.is_set() or passed() > seen + 20)  # noqa: B023 - awaited here.
                await fleet.cut(WEST, EAST)
                await fleet.heal(WEST, EAST)

        flapping = asyncio.create_task(flap())
        for n in range(300):
            await maria.call("SetFlag", flag(f"f{n % 10}"))
        done.set()
        await flapping
        await fleet.settled()
        assert sorted(copied_versions(fleet[EAST], WEST)) == [30] * 10


def copied_versions(region, home):
    start, end = keys.children(keys.RECORD + keys.domain(home, "GLOBAL"))
    rows = region.node.store.scan(start, end)
    return [Event.FromString(packed).origin.version for _, packed in rows]


async def test_both_sides_write_down_the_same(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet:
        await write_some(fleet, "a", 20)
        await fleet.settled()
        await write_some(fleet, "b", 20)
        await fleet.settled()

        def sums(region, counterparty, direction):
            return sorted(
                (each.sort, each.after, each.upto, each.records, each.digest)
                for each in fleet[region].passages(counterparty=counterparty, direction=direction)
            )

        def both():
            left, came = sums(WEST, EAST, Passage.EGRESS), sums(EAST, WEST, Passage.INGRESS)
            return left == came and sum(each[3] for each in left) >= 40

        await until(both)
        assert fleet[WEST].metrics()["differences_total", EAST] == 0


async def test_a_fresh_region_copies_a_large_store_in_pages(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet, fleet.caller(WEST) as maria:
        await fleet[EAST].stop()
        for n in range(700):
            await maria.call("SetFlag", flag(f"f{n}"))
        fleet[EAST].members["east1"].memory = type(fleet[EAST].members["east1"].memory)()
        await fleet[EAST].start()
        await fleet.settled()
        await until(lambda: sum(p.records for p in fleet[EAST].passages(sort="listing")) == 700)


@pytest.mark.parametrize("cut", [True, False])
async def test_peers_that_cannot_be_reached_hold_up_neither_start_nor_stop(tmp_path, cut):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet:
        await fleet[EAST].stop()
        if cut:
            await fleet.cut(WEST, EAST)
        async with asyncio.timeout(5):
            await fleet[WEST].restart()
        await write_some(fleet, "alone")
        await until(lambda: fleet[WEST].link(EAST).state == "down" and fleet[WEST].link(EAST).reason)
        async with asyncio.timeout(5):
            await fleet[WEST].stop()


async def test_what_a_leader_sent_and_fell_before_it_wrote_it_down_is_written_by_the_next(tmp_path):
    async with running(tmp_path, eu_west=1, us_east=1) as fleet:
        await fleet.settled()
        await fleet.cut(WEST, EAST)
        before = fleet[WEST].node.revision
        await write_some(fleet, "a")
        seen = fleet[WEST].node.revision

        def unconfirmed():
            return fleet[WEST].passages(counterparty=EAST, sort="unconfirmed")

        # A follower that has what no egress record names yet.
        async with fleet.peer(EAST, WEST) as caller:
            spy = Spy(fleet, EAST, WEST, GLOBAL, caller, revision=seen)
            await spy.open()
            await until(unconfirmed)
            spy.close()
            [made_up] = unconfirmed()
            assert made_up.after <= before < made_up.upto == seen
            # Once is enough, however often it comes back.
            for _ in range(2):
                spy = Spy(fleet, EAST, WEST, GLOBAL, caller, revision=seen)
                await spy.open()
                await spy.read()
                spy.close()
            assert unconfirmed() == [made_up]


async def test_a_listing_that_nobody_wrote_down_is_made_up_for_from_its_beginning(tmp_path):
    # Fleets, one node, seed 7626: the home fell after the listing, and its follower had copied on from there.
    async with running(tmp_path, eu_west=1, us_east=1) as fleet:
        await write_some(fleet, "a")
        await fleet.settled()
        await until(lambda: fleet[WEST].passages(counterparty=EAST))
        await fleet.cut(WEST, EAST)
        await write_some(fleet, "b")
        seen = fleet[WEST].node.revision
        async with fleet.peer(EAST, WEST) as caller:
            spy = Spy(fleet, EAST, WEST, GLOBAL, caller, revision=seen, began=seen - 1)
            await spy.open()
            spy.close()
        [made_up] = fleet[WEST].passages(counterparty=EAST, sort="unconfirmed", upto=seen)
        assert made_up.after == 0
        # Of one that is written down in part as well, and once.
        await write_some(fleet, "c")
        seen = fleet[WEST].node.revision
        part = Passage(direction=Passage.EGRESS, counterparty=EAST, reach=GLOBAL, epoch=1, upto=seen, sort="listing")
        await fleet[WEST].member.federation.exporter.write_down(part)
        async with fleet.peer(EAST, WEST) as caller:
            for _ in range(2):
                spy = Spy(fleet, EAST, WEST, GLOBAL, caller, revision=seen, began=seen)
                await spy.open()
                spy.close()
            [made_up] = fleet[WEST].passages(counterparty=EAST, sort="unconfirmed", upto=seen)
            assert made_up.after == 0
            liar = Spy(fleet, EAST, WEST, GLOBAL, caller, revision=seen, began=seen + 1)
            with pytest.raises(Invalid):
                await liar.open()


async def test_what_a_follower_had_is_made_up_for_before_it_lists_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "EVENTS_KEPT", 50)
    monkeypatch.setattr(limits, "TRIM_REVISIONS", 10)
    async with running(tmp_path, eu_west=1, us_east=1) as fleet:
        await fleet.settled()
        await fleet.cut(WEST, EAST)
        before = fleet[WEST].node.revision
        await write_some(fleet, "a")
        seen = fleet[WEST].node.revision
        await write_some(fleet, "b", 60)
        await until(lambda: fleet[WEST].member.federation.exporter.oldest() > seen)
        async with fleet.peer(EAST, WEST) as caller:
            for _ in range(2):
                spy = Spy(fleet, EAST, WEST, GLOBAL, caller, revision=seen)
                await spy.open()
                assert (await spy.end()).reason == "EVENTS_COMPACTED"
            [made_up] = fleet[WEST].passages(counterparty=EAST, sort="unconfirmed")
            assert made_up.after <= before < made_up.upto == seen


@pytest.mark.parametrize("lists", [False, True])
async def test_a_record_that_nobody_can_read_is_not_copied_and_ends_no_node(tmp_path, lists):
    """What a peer sends may be anything. Whoever reads a flag whose name is no text fails."""
    nonsense = Kind(flags.FLAG.name, Guard)
    partition = Partition(id=f"{WEST}.prod.global", home=WEST, reach=GLOBAL, epoch=1)

    def spoil(tx):
        tx.put(nonsense, "spoilt", Guard(key=b"\xff"))
        return api.RequestHeader()

    async with running(tmp_path, eu_west=1, us_east=1) as fleet:
        if not lists:
            await fleet.settled()
        else:
            await fleet.cut(WEST, EAST)
        await fleet[WEST].node.transact(partition, "Spoil", spoil, timeout_s=5)
        if lists:
            await fleet.heal(WEST, EAST)
        link = fleet[EAST].member.federation.links.get(WEST)
        await until(lambda: "RECORD_MALFORMED" in link._troubles.get(INGRESS, ""))
        assert len(fleet[EAST].held(WEST, GLOBAL)) == 0
        async with fleet.caller(EAST) as reader:
            header = api.RequestHeader(partition=partition.id, consistency=api.LOCAL)
            await reader.call("ListFlags", api.ListFlagsRequest(header=header))


async def test_a_copied_flag_that_does_not_fit_together_is_an_error_of_its_field_alone(tmp_path):
    partition = Partition(id=f"{WEST}.prod.global", home=WEST, reach=GLOBAL, epoch=1)
    nothing = [Variant(name="on")]
    broken = [
        Flag(name="agent_prompt", type=FlagType.STRING, enabled=True, default_variant="gone"),
        Flag(
            name="agent_model", type=FlagType.STRING, enabled=True, default_variant="on", variants=[Variant(name="on")]
        ),
        Flag(name="tools", type=FlagType.JSON, enabled=True, default_variant="on"),
        Flag(name="max_iter", type=FlagType.INT, enabled=True, default_variant="on", variants=nothing),
        Flag(name="guardrails", type=FlagType.JSON, enabled=True, default_variant="on"),
    ]
    broken[2].variants.add(name="on").value.json_value = '["\\ud800"]'
    broken[4].variants.add(name="on").value.json_value = "["

    def spoil(tx):
        for each in broken:
            tx.put(flags.FLAG, each.name, each)
        return api.RequestHeader()

    async with running(tmp_path, eu_west=1, us_east=1) as fleet:
        await fleet[WEST].node.transact(partition, "Spoil", spoil, timeout_s=5)
        await fleet.settled()
        async with fleet.caller(EAST) as reader:
            header = api.RequestHeader(partition=partition.id, consistency=api.LOCAL)
            asked = api.GetAgentConfigRequest(header=header, user="u", tenant="t")
            reply = api.GetAgentConfigReply.FromString(await reader.call("GetAgentConfig", asked))
        assert [field.reason for field in reply.fields] == [api.ConfigReason.ERROR] * 5
        assert reply.config.max_iterations == 10
