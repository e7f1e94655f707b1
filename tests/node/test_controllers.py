"""What the leader does by itself, on a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from controlplane import controllers, limits
from controlplane.controllers import STALL_S, Controllers, Reaper
from controlplane.errors import Compacted, ControlPlaneError, Fatal, OutcomeUnknown, Refused
from controlplane.features import switches
from controlplane.features.partitions import PARTITION, system
from controlplane.kernel import keys, machine
from controlplane.kernel.store import MemoryStore
from controlplane.kernel.transaction import Reader, scope_of
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Partition, Reach, Scope, ScopeKind, Switch
from controlplane.v1.state_pb2 import Entry, Txn, Write
from tests.kernel.material import seeded
from tests.node.harness import (
    AGENT,
    CONFIG,
    OTHER,
    PARTITIONS,
    PROCESS,
    STATE,
    Region,
    Scanned,
    message,
    settle,
    until,
    within,
)

TTL_S = 10.0
STEP_S = 0.4
"""Less than a stall."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "TICK_S", 0.0005)


@asynccontextmanager
async def leading(region: Region) -> AsyncIterator[Controllers]:
    """Controllers that have taken over."""
    loops = Controllers(region.node)
    async with region:
        loops.start()
        try:
            await until(lambda: loops._term is not None)
            yield loops
        finally:
            await loops.stop()


async def pass_time(region: Region, loops: Controllers, seconds: float) -> None:
    """Let time pass in steps that the loop keeps up with."""
    end = region.now_s + seconds
    while region.now_s < end - 1e-9:
        region.now_s = min(end, region.now_s + STEP_S)
        await until(lambda: loops._reaper._last_tick == region.now_s)
    await settle(50)


def campaign(name: str = "e", process: bytes = PROCESS, ttl_ms: int = int(TTL_S * 1000)) -> api.CampaignRequest:
    return api.CampaignRequest(name=name, process=process, ttl_ms=ttl_ms)


async def held(region: Region, name: str = "e") -> bool:
    request = api.GetElectionRequest(name=name, header={"consistency": api.LOCAL})
    return bool((await region.call("GetElection", request)).HasField("holder"))


def renewal(fence: api.Fence, process: bytes = PROCESS) -> api.RenewRequest:
    return api.RenewRequest(name="e", process=process, fence=fence)


# Leases


async def test_a_lease_expires_after_standing_still_for_its_whole_time_and_not_before() -> None:
    region = Region()
    async with leading(region) as loops:
        await region.call("Campaign", campaign())
        await pass_time(region, loops, TTL_S - 0.01)
        assert await held(region)
        await pass_time(region, loops, 0.02)
        await until(lambda: not loops._reaper._due)
        assert not await held(region)


async def test_a_renewal_starts_the_time_again() -> None:
    region = Region()
    async with leading(region) as loops:
        fence = (await region.call("Campaign", campaign())).holder.fence
        for _ in range(3):
            await pass_time(region, loops, TTL_S - 1)
            await region.call("Renew", renewal(fence))
        assert await held(region)
        await pass_time(region, loops, TTL_S + 0.1)
        assert not await held(region)
        with pytest.raises(Refused) as caught:
            await region.call("Renew", renewal(fence))
        assert caught.value.reason == "LEASE_LOST"


async def test_each_lease_has_its_own_time() -> None:
    region = Region()
    async with leading(region) as loops:
        for n in range(1, 6):
            await region.call("Campaign", campaign(f"e{n}", ttl_ms=n * 1000))
        for n in range(1, 6):
            await pass_time(region, loops, 1.0)
            assert [await held(region, f"e{m}") for m in range(1, 6)] == [m > n for m in range(1, 6)]


async def test_expiry_is_an_event_and_leaves_the_name_to_others_with_a_greater_fence() -> None:
    region = Region()
    async with leading(region) as loops:
        first = (await region.call("Campaign", campaign())).holder.fence
        following = region.watch(api.WatchRequest(kinds=["election"], after_revision=region.node.revision))
        await message(following)
        await pass_time(region, loops, TTL_S + 0.1)
        reply = await message(following)
        while not reply.changes:
            reply = await message(following)
        assert reply.changes[0].meta.action == "ExpireElection"
        assert not reply.changes[0].HasField("election")
        second = (await region.call("Campaign", campaign(process=b"q" * 16), actor=OTHER)).holder
        assert second.election.holder == OTHER
        assert second.fence.revision > first.revision


async def test_a_stall_of_the_loop_says_nothing_about_holders() -> None:
    region = Region()
    async with leading(region) as loops:
        await region.call("Campaign", campaign())
        await pass_time(region, loops, TTL_S - 1)
        region.now_s += 60.0
        await until(lambda: loops._reaper._last_tick == region.now_s)
        await settle(50)
        assert await held(region)
        await pass_time(region, loops, TTL_S - 0.1)
        assert await held(region)
        await pass_time(region, loops, 0.2)
        assert not await held(region)


async def test_after_a_change_of_leader_every_lease_has_its_full_time_again() -> None:
    region = Region()
    async with leading(region) as loops:
        await region.call("Campaign", campaign())
        await pass_time(region, loops, TTL_S - 1)
        region.log.lose()
        await until(lambda: loops._term is None)
        region.now_s += STEP_S
        region.log.lead()
        await until(lambda: loops._term == region.log.term)
        await pass_time(region, loops, TTL_S - 0.1)
        assert await held(region)
        await pass_time(region, loops, 0.2)
        assert not await held(region)


async def test_a_new_leader_times_leases_that_were_taken_before_it_led() -> None:
    before = Region()
    async with before:
        await before.call("Campaign", campaign())
    after = Region(store=before.store)
    async with leading(after) as loops:
        await pass_time(after, loops, TTL_S - 0.1)
        assert await held(after)
        await pass_time(after, loops, 0.2)
        assert not await held(after)


async def test_a_follower_expires_nothing() -> None:
    region = Region()
    async with leading(region) as loops:
        await region.call("Campaign", campaign())
        region.log.lose()
        region.now_s += 10 * TTL_S
        await until(lambda: loops._term is None)
        await settle(50)
        assert await held(region)


@pytest.mark.parametrize("first", ["renewal", "expiry"])
async def test_a_race_of_renewal_and_expiry_is_decided_by_their_order(first: str) -> None:
    region = Region()
    async with leading(region) as loops:
        fence = (await region.call("Campaign", campaign())).holder.fence
        await pass_time(region, loops, TTL_S - 0.1)
        region.log.automatic = False
        if first == "renewal":
            renewed = region.submit("Renew", renewal(fence))
            attempt = await within(region.log.appends.get())
            await pass_time(region, loops, 0.2)
        else:
            region.now_s += 0.2
            attempt = await within(region.log.appends.get())
            renewed = region.submit("Renew", renewal(fence))
        region.log.automatic = True
        attempt.commit()
        if first == "renewal":
            await within(renewed)
            await settle(50)
            assert await held(region)
        else:
            with pytest.raises(Refused) as caught:
                await within(renewed)
            assert caught.value.reason == "LEASE_LOST"
            assert not await held(region)


async def test_an_expiry_that_fails_is_proposed_again(caplog: pytest.LogCaptureFixture) -> None:
    region = Region()

    def errors() -> list[object]:
        said = [record.args for record in caplog.records if isinstance(record.args, tuple)]
        return [arg for args in said for arg in args if isinstance(arg, ControlPlaneError)]

    async with region:
        loops = Controllers(region.node)
        loops.start()
        await until(lambda: loops._term is not None)
        await region.call("Campaign", campaign())
        await pass_time(region, loops, TTL_S - 0.1)
        region.log.automatic = False
        region.now_s += 0.2
        (await within(region.log.appends.get())).unknown()
        await until(lambda: bool(errors()))
        assert isinstance(errors()[0], OutcomeUnknown)
        (await within(region.log.appends.get())).commit()
        region.log.automatic = True
        await until(lambda: not loops._reaper._due)
        assert not await held(region)
        await loops.stop()


async def test_many_leases_expire_together_in_few_entries() -> None:
    """One after the other, slow commits would look like a stall, and those that remain would start again."""
    region = Region()
    async with leading(region) as loops:
        for n in range(40):
            await region.call("Campaign", campaign(f"e{n}"))
        await pass_time(region, loops, TTL_S - 0.1)
        entries = len(region.log.entries)
        region.log.automatic = False
        region.now_s += 0.2
        attempt = await within(region.log.appends.get())
        await settle(50)
        region.log.automatic = True
        attempt.commit()
        await until(lambda: not loops._reaper._due)
        assert len(region.log.entries) - entries <= 2


def test_the_reaper_knows_only_what_it_is_told() -> None:
    reaper = Reaper()
    reaper.arm(b"a", 1, 1.0, 0.0)
    reaper.arm(b"b", 2, 2.0, 0.0)
    assert reaper.expired(0.0) == []
    assert reaper.expired(0.4) == []
    assert reaper.expired(0.8) == []
    assert reaper.expired(1.0) == [(b"a", 1)]
    reaper.arm(b"a", 3, 1.0, 1.0)
    assert reaper.expired(1.4) == []
    reaper.forget(b"a")
    assert reaper.expired(1.8) == []
    assert reaper.expired(2.0) == [(b"b", 2)]
    assert reaper.expired(2.0 + STALL_S + 0.1) == []
    reaper.clear()
    assert reaper.expired(1000.0) == []


# Partitions


def declared(region: Region) -> dict[str, Partition]:
    reader = Reader(region.store, system("eu"), region.node.revision)
    return {row.name: row.value for row in reader.list(PARTITION)}


async def test_partitions_are_declared_once() -> None:
    region = Region()
    async with leading(region):
        assert declared(region) == {partition.id: partition for partition in PARTITIONS}
        assert region.node.revision == 1
        region.log.lose()
        await settle()
        region.log.lead()
        await settle(200)
        assert region.node.revision == 1
    again = Region(store=region.store)
    async with leading(again):
        assert again.node.revision == 1


async def test_a_new_partition_is_added_and_default_kinds_may_change() -> None:
    region = Region(partitions=[CONFIG])
    async with leading(region):
        assert set(declared(region)) == {CONFIG.id}
    moved = Partition.FromString(CONFIG.SerializeToString())
    moved.default_for[:] = ["flag"]
    wider = Region(store=region.store, partitions=[moved, STATE])
    async with leading(wider):
        assert set(declared(wider)) == {CONFIG.id, STATE.id}


@pytest.mark.parametrize("change", [{"reach": Reach.HOME_ONLY}, {"environment": "dev"}, {"home": "us"}])
async def test_a_region_file_that_contradicts_what_was_created_stops_the_node(change: dict[str, object]) -> None:
    region = Region(partitions=[CONFIG])
    async with leading(region):
        pass
    other = Partition.FromString(CONFIG.SerializeToString())
    for name, value in change.items():
        setattr(other, name, value)
    wrong = Region(store=region.store, partitions=[other])
    await wrong.node.start()
    loops = Controllers(wrong.node)
    loops.start()
    with pytest.raises(Fatal, match="region file"):
        await within(wrong.node.failed)
    await loops.stop()
    await wrong.node.stop()


# Retention


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EVENTS_KEPT", 20)
    monkeypatch.setattr(limits, "TRIM_REVISIONS", 5)


def rows(region: Region, prefix: bytes) -> list[bytes]:
    return [key for key, _ in region.store.scan(*keys.children(prefix))]


@pytest.mark.usefixtures("_short")
async def test_events_are_trimmed_and_who_asks_for_them_is_told() -> None:
    region = Region()
    async with leading(region) as loops:
        created = [(await region.create(f"w{n}")).header.revision for n in range(60)]
        scope = api.WatchRequest(kinds=["workflow"], after_revision=0)
        await until(lambda: loops._due(loops._retention, region.node.revision) == loops._retention)
        floor = loops._retention.event_floor
        assert floor <= region.node.revision - limits.EVENTS_KEPT
        with pytest.raises(Compacted) as caught:
            await message(region.watch(scope))
        assert int(caught.value.details["oldest"]) == floor + 1
        with pytest.raises(Compacted):
            await region.call("ListEvents", api.ListEventsRequest(kinds=["workflow"], after_revision=floor - 1))
        kept = await region.call("ListEvents", api.ListEventsRequest(kinds=["workflow"], after_revision=floor))
        revisions = [change.meta.revision for change in kept.changes]
        assert revisions == [revision for revision in created if revision > floor]
        domain = keys.EVENT + keys.domain("eu", "HOME_ONLY")
        assert all(int.from_bytes(key[-10:-2], "big") > floor for key in rows(region, domain))
        assert (await region.workflow("w0")).workflow.version == 1


@pytest.mark.usefixtures("_short")
async def test_outcomes_are_trimmed_only_when_they_can_no_longer_be_asked_for() -> None:
    """The span that counts is the one the store was made with, not what this release would choose."""
    span = 16
    region = Region()
    seeded(region.store, span)
    region.node.reloaded()
    async with leading(region) as loops:
        asked: list[tuple[api.CreateWorkflowRequest, int]] = []
        answered = 0
        for n in range(80):
            header = {"request_id": region.entropy(16), "since": region.node.revision}
            request = api.CreateWorkflowRequest(id=f"w{n}", header=header)
            asked.append((request, (await region.call("CreateWorkflow", request)).header.revision))
            for earlier, revision in asked[-span:]:
                try:
                    assert (await region.call("CreateWorkflow", earlier)).header.revision == revision
                except OutcomeUnknown:
                    assert earlier.header.since < machine.outcome_floor(region.node.revision + 1, span)
                else:
                    answered += 1
        assert answered > 200
        await until(lambda: loops._retention.outcome_slice == (region.node.revision // span - 1) << 8)
        await settle(200)
        oldest = int.from_bytes(rows(region, keys.OUTCOME)[0][1:9], "big")
        assert oldest == region.node.revision // span - 1


@pytest.mark.usefixtures("_short")
async def test_a_request_older_than_what_is_kept_never_runs_twice() -> None:
    region = Region()
    seeded(region.store, 16)
    region.node.reloaded()
    async with leading(region):
        await region.create("w")
        request = api.CompareAndSwapWorkflowRequest(
            id="w", version=1, state=b"x", header={"request_id": b"r" * 16, "since": region.node.revision}
        )
        await region.call("CompareAndSwapWorkflow", request)
        await region.swap("w", 2)
        for n in range(50):
            await region.create(f"w{n}")
        with pytest.raises(OutcomeUnknown) as caught:
            await region.call("CompareAndSwapWorkflow", request)
        assert caught.value.reason == "OUTCOME_FORGOTTEN"
        asked = api.GetOutcomeRequest(header=request.header)
        assert (await region.call("GetOutcome", asked)).known == api.GetOutcomeReply.FORGOTTEN
        assert (await region.workflow("w")).workflow.version == 3


@pytest.mark.usefixtures("_short")
async def test_leases_expire_however_much_is_to_be_trimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Region()
    async with before:
        for n in range(300):
            await before.create(f"w{n}")
        await before.call("Campaign", campaign(ttl_ms=1000))
    region = Region(store=before.store)
    append, began_s = region.log.append, region.now_s

    async def append_slowly(entry: bytes, *, timeout_s: float) -> int:
        # All steps of a round together take longer than a stall.
        region.now_s += 1.1 * STALL_S / limits.TRIM_STEPS_MAX
        return await append(entry, timeout_s=timeout_s)

    monkeypatch.setattr(region.log, "append", append_slowly)
    monkeypatch.setattr(controllers, "TICK_S", 0.0)
    election = keys.RECORD + keys.within(scope_of(STATE), "election", "e")
    async with leading(region) as loops:
        await until(lambda: region.store.get(election) is None)
        assert region.now_s - began_s < 1.0 + STALL_S
        assert loops._due(loops._retention, region.node.revision) != loops._retention


async def test_nothing_is_trimmed_before_its_time() -> None:
    region = Region()
    async with leading(region):
        for n in range(30):
            await region.create(f"w{n}")
        await settle(100)
        kept = await region.call("ListEvents", api.ListEventsRequest(kinds=["workflow"]))
        assert len(kept.changes) == 30
        assert kept.changes[0].meta.actor == AGENT


# Telling other regions of kill switches

STOPS = Partition(id="eu.prod.stops", home="eu", epoch=1, reach=Reach.GLOBAL, environment="prod", default_for=["stop"])


def telling(**more: Any) -> Region:
    return Region(partitions=[*PARTITIONS, STOPS], **more)


def throw(name: str = "t", *, engaged: bool = True, kind: ScopeKind = ScopeKind.SCOPE_TOOL) -> tuple[str, Any]:
    method, request = (
        ("EngageSwitch", api.EngageSwitchRequest) if engaged else ("ReleaseSwitch", api.ReleaseSwitchRequest)
    )
    return method, request(scope=Scope(kind=kind, name=name), header={"reason": "runaway"})


def told(region: Region) -> dict[str, tuple[bool, int]]:
    """What was told of tools, by name."""
    reader = Reader(region.store, STOPS, region.node.revision)
    rows = {row.name: (row.value.engaged, row.revision) for row in reader.list(switches.STOP)}
    names = {switches.opaque("fleet", "prod", f"tool:{name}"): name for name in ["t", *(f"t{n}" for n in range(300))]}
    return {names[identifier]: found for identifier, found in rows.items()}


async def test_a_switch_is_told_of_as_soon_as_it_is_thrown(monkeypatch: pytest.MonkeyPatch) -> None:
    region = telling()
    async with leading(region):
        # No tick will come in this test's time.
        monkeypatch.setattr(controllers, "TICK_S", 1000.0)
        await until(lambda: region.node.revision == 1)
        await region.call(*throw())
        await until(lambda: told(region) == {"t": (True, 3)})
        await region.call(*throw(engaged=False))
        await until(lambda: told(region) == {"t": (False, 5)})
        await region.call(*throw(engaged=False))
        await region.call(*throw("never", engaged=False))
        await settle(100)
        assert region.node.revision == 7


async def test_what_does_not_concern_other_regions_is_not_told() -> None:
    region = telling()
    async with leading(region):
        await region.call(*throw("", kind=ScopeKind.SCOPE_REGION))
        # DEV has no partition for stops, and a switch in another partition than the default stops nobody.
        await region.call(*throw(), environment="dev")
        method, request = throw()
        request.header.partition = STATE.id
        await region.call(method, request)
        before = region.node.revision
        await settle(100)
        assert region.node.revision == before
        assert told(region) == {}


async def test_without_a_partition_for_stops_nothing_is_told() -> None:
    region = Region()
    async with leading(region):
        await region.call(*throw())
        await settle(100)
        assert region.node.revision == 2


async def test_the_next_leader_tells_of_what_its_predecessor_did_not() -> None:
    before = telling()
    async with before:
        await before.call(*throw("t1"))
        await before.call(*throw("t2"))
        await before.call(*throw("t2", engaged=False))
    after = telling(store=before.store)
    async with leading(after):
        await until(lambda: [*told(after)] == ["t1"])
        assert told(after)["t1"][0]


async def test_a_leader_that_dies_between_the_switch_and_its_word_leaves_it_to_the_next() -> None:
    region = telling()
    async with leading(region) as loops:
        await until(lambda: region.node.revision == 1)
        region.log.automatic = False
        engaging = region.submit(*throw())
        (await within(region.log.appends.get())).commit()
        await within(engaging)
        word = await within(region.log.appends.get())
        region.log.lose()
        word.discard()
        await until(lambda: loops._term is None)
        assert told(region) == {}
        region.log.automatic = True
        region.log.lead()
        await until(lambda: "t" in told(region))


async def test_word_whose_outcome_is_unknown_is_sent_again_and_told_once() -> None:
    region = telling()
    async with leading(region):
        await until(lambda: region.node.revision == 1)
        region.log.automatic = False
        engaging = region.submit(*throw())
        (await within(region.log.appends.get())).commit()
        await within(engaging)
        word = await within(region.log.appends.get())
        word.unknown()
        region.log.commit(word.entry)
        region.log.automatic = True
        await until(lambda: "t" in told(region))
        await settle(100)
        assert told(region) == {"t": (True, 3)}
        assert region.node.revision == 3


async def test_word_that_was_lost_is_sent_again_by_the_same_leader() -> None:
    region = telling()
    async with leading(region):
        await until(lambda: region.node.revision == 1)
        region.log.automatic = False
        engaging = region.submit(*throw())
        (await within(region.log.appends.get())).commit()
        await within(engaging)
        (await within(region.log.appends.get())).discard()
        region.log.automatic = True
        await until(lambda: told(region) == {"t": (True, 3)})


async def test_word_gets_through_when_ordinary_writes_do_not() -> None:
    region = telling(quota_bytes=1, free_bytes=lambda: 0)
    async with leading(region):
        with pytest.raises(Refused):
            await region.create("w")
        await region.call(*throw())
        await until(lambda: "t" in told(region))


async def test_a_follower_tells_nothing_and_remembers_nothing() -> None:
    region = telling()
    async with leading(region) as loops:
        region.log.lose()
        await until(lambda: loops._term is None)
        region.log.commit(thrown_by_another(region))
        assert region.node.revision == 2
        await until(lambda: not any(herald.names for herald in loops._heralds))
        await settle(100)
        assert told(region) == {}
        region.log.lead()
        await until(lambda: "t" in told(region))


def thrown_by_another(region: Region) -> bytes:
    """An entry of another leader, in which a switch was thrown."""
    scope = scope_of(CONFIG)
    value = Switch(scope=Scope(kind=ScopeKind.SCOPE_TOOL, name="t"), engaged=True).SerializeToString()
    write = Write(key=keys.within(scope, "switch", "tool:t"), value=value)
    txn = Txn(scope=scope, action="EngageSwitch", writes=[write])
    return machine.pack(Entry(base=region.node.revision, salt=region.entropy(16), txns=[txn]))


async def test_many_switches_are_told_of_in_few_transactions() -> None:
    before = telling()
    async with before:
        for n in range(300):
            await before.call(*throw(f"t{n}"))
    after = telling(store=before.store)
    async with leading(after):
        start = after.node.revision
        await until(lambda: len(told(after)) == 300)
        assert after.node.revision - start <= 10


async def test_many_switches_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that says nothing meanwhile leads no more."""
    monkeypatch.setattr(limits, "SWITCHES_SCANNED_MAX", 10)
    store, rows_of_a_turn = Scanned(), 0
    async with telling(store=store) as before:
        for n in range(105):
            await before.call(*throw(f"t{n}"))
    start, end = keys.children(keys.RECORD + scope_of(STOPS))

    async def count() -> None:
        nonlocal rows_of_a_turn
        while True:
            begun = store.rows
            await asyncio.sleep(0)
            rows_of_a_turn = max(rows_of_a_turn, store.rows - begun)

    counting = asyncio.create_task(count())
    async with leading(telling(store=store)):
        await until(lambda: len([*MemoryStore.scan(store, start, end)]) == 105)
    counting.cancel()
    assert rows_of_a_turn == 10


async def test_thrown_to_and_fro_it_is_told_how_it_stands_in_the_end() -> None:
    region = telling()
    async with leading(region):
        throws = [region.submit(*throw(engaged=n % 2 == 0)) for n in range(21)]
        await within(asyncio.gather(*throws))
        await settle(100)
        await until(lambda: told(region).get("t", (False, 0))[0])
        (engaged, revision), thrown = told(region)["t"], Reader(region.store, CONFIG, 0).get(switches.SWITCH, "tool:t")
        assert engaged
        assert thrown is not None
        assert revision > thrown.revision


async def test_a_task_that_the_node_needs_ends_it_with_its_error() -> None:
    async def breaks() -> None:
        raise KeyError("a defect")

    async def waits() -> None:
        await asyncio.Event().wait()

    async def region_with_a_broken_task() -> None:
        async with Region() as region:
            region.node.needs(asyncio.create_task(waits())).cancel()
            await settle()
            assert not region.node.failed.done()
            region.node.needs(asyncio.create_task(breaks()))
            await within(region.node.failed)

    with pytest.raises(KeyError, match="a defect"):
        await region_with_a_broken_task()
