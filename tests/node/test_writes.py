"""How calls become entries, and what callers are told when the log does its worst."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import limits, waiting
from controlplane.errors import (
    Compacted,
    Contended,
    ControlPlaneError,
    Denied,
    Fatal,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from controlplane.geography import Atlas
from controlplane.kernel import keys, machine
from controlplane.kernel.store import Batch
from controlplane.kernel.transaction import Tx
from controlplane.node import Call
from controlplane.telemetry import Counts, NodeCollector
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Flag, FlagType, FlagValue, Partition, Reach, Scope, ScopeKind, Variant
from controlplane.v1.state_pb2 import Entry, Txn
from tests.node.harness import (
    AGENT,
    CONFIG,
    DEV,
    OTHER,
    PROCESS,
    SPARE,
    STATE,
    Attempt,
    Region,
    reply_of,
    settle,
    within,
)


def entry_of(packed: bytes) -> Entry:
    return Entry.FromString(packed[1:])


def creation(name: str, **header: object) -> api.CreateWorkflowRequest:
    return api.CreateWorkflowRequest(id=name, state=b"s", header=header)


def swap(version: int, state: bytes = b"t", name: str = "w", **header: object) -> api.CompareAndSwapWorkflowRequest:
    return api.CompareAndSwapWorkflowRequest(id=name, version=version, state=state, header=header)


def engagement(reason: str = "why", tenant: str = "acme", **header: object) -> api.EngageSwitchRequest:
    scope = Scope(kind=ScopeKind.SCOPE_TENANT, name=tenant)
    return api.EngageSwitchRequest(scope=scope, header={"reason": reason, **header})


async def failure(future: asyncio.Future[bytes]) -> ControlPlaneError:
    with pytest.raises(ControlPlaneError) as caught:
        await within(future)
    return caught.value


def foreign(region: Region, count: int = 1) -> bytes:
    """An entry of another leader that takes `count` revisions."""
    txns = [Txn(actor="other") for _ in range(count)]
    return machine.pack(Entry(base=region.node.revision, salt=region.entropy(16), txns=txns))


# Batching


async def test_calls_that_wait_land_in_one_entry_in_their_order() -> None:
    async with Region() as region:
        region.log.automatic = False
        first = region.submit("CreateWorkflow", creation("w"))
        attempt = await within(region.log.appends.get())
        waiting = [region.submit("CompareAndSwapWorkflow", swap(n, b"%d" % n)) for n in range(1, 6)]
        await settle()
        assert region.log.appends.empty()
        assert not any(future.done() for future in (first, *waiting))
        attempt.commit()
        second = await within(region.log.appends.get())
        assert len(entry_of(second.entry).txns) == 5
        second.commit()
        versions = [reply_of("CompareAndSwapWorkflow", await within(future)).version for future in waiting]
        assert versions == [2, 3, 4, 5, 6]
        assert reply_of("CreateWorkflow", first.result()).version == 1


async def test_those_who_were_answered_together_are_planned_together_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "GATHER_PAUSE_S", 0.3)
    monkeypatch.setattr(limits, "GATHER_S_MAX", 30.0)
    async with Region() as region:
        region.log.automatic = False
        first = region.submit("CreateWorkflow", creation("w0"))
        (await within(region.log.appends.get())).commit()
        await within(first)
        alone = region.submit("CreateWorkflow", creation("w1"))
        attempt = await within(region.log.appends.get())
        assert len(entry_of(attempt.entry).txns) == 1, "who is alone does not wait"
        pair = [region.submit("CreateWorkflow", creation(f"w{n}")) for n in (2, 3)]
        attempt.commit()
        attempt = await within(region.log.appends.get())
        attempt.commit()
        await within(asyncio.gather(alone, *pair))
        early = region.submit("CreateWorkflow", creation("w4"))
        await settle()
        assert region.log.appends.empty(), "one of two is back: the other has a moment"
        late = region.submit("CreateWorkflow", creation("w5"))
        attempt = await within(region.log.appends.get())
        assert len(entry_of(attempt.entry).txns) == 2
        attempt.commit()
        await within(asyncio.gather(early, late))
        stop = region.submit("EngageSwitch", engagement())
        await settle()
        assert not region.log.appends.empty(), "a kill switch waits for nobody"
        region.log.appends.get_nowait().commit()
        await within(stop)


async def test_nobody_is_answered_before_it_is_applied() -> None:
    async with Region() as region:
        region.log.automatic = False
        future = region.submit("CreateWorkflow", creation("w"))
        attempt = await within(region.log.appends.get())
        await settle()
        assert not future.done()
        assert region.node.revision == 0
        attempt.commit()
        reply = reply_of("CreateWorkflow", await within(future))
        assert (reply.header.revision, reply.header.epoch, reply.header.age_ms) == (1, 1, 0)


async def test_a_batch_closes_before_the_entry_grows_too_large() -> None:
    """Small requests may have large transactions: losers of a campaign are told what the winner published."""
    async with Region() as region:
        value = b"v" * (400 * 1024)
        won = api.CampaignRequest(name="e", process=PROCESS, ttl_ms=1000, value=value)
        assert (await region.call("Campaign", won)).elected
        lost = [
            region.submit("Campaign", api.CampaignRequest(name="e", process=b"q" * 16, ttl_ms=1000), actor=OTHER)
            for _ in range(20)
        ]
        for future in lost:
            assert reply_of("Campaign", await within(future)).holder.election.value == value
        assert max(map(len, region.log.entries)) <= limits.ENTRY_BYTES_MAX
        assert len(region.log.entries) < 20


async def test_a_batch_is_bounded_by_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "BATCH_TXNS_MAX", 4)
    async with Region() as region:
        futures = [region.submit("CreateWorkflow", creation(f"w{n}")) for n in range(10)]
        for future in futures:
            await within(future)
        assert [len(entry_of(entry).txns) for entry in region.log.entries] == [4, 4, 2]


async def test_a_batch_closes_when_planning_it_has_taken_long() -> None:
    async with Region() as region:
        turns: list[int] = []

        def slow(_: Tx) -> api.RequestHeader:
            region.now_s += limits.PLAN_S_MAX / 2
            turns.append(loop_turns)
            return api.RequestHeader()

        def wrong(_: Tx) -> api.RequestHeader:
            region.now_s += limits.PLAN_S_MAX
            turns.append(loop_turns)
            raise Invalid("no", reason="WRONG")

        loop_turns = 0
        futures = [region.node.transact(STATE, "Slow", slow, timeout_s=60) for _ in range(6)]
        futures += [region.node.transact(STATE, "Wrong", wrong, timeout_s=60) for _ in range(6)]
        while not all(future.done() for future in futures):
            loop_turns += 1
            await asyncio.sleep(0)
        assert [len(entry_of(entry).txns) for entry in region.log.entries] == [2, 2, 2]
        assert all(isinstance(future.exception(), Invalid) for future in futures[6:])
        assert max(turns.count(turn) for turn in turns) == 2, "others have a turn between two rounds"


async def test_what_is_wrong_whatever_the_state_leaves_no_trace() -> None:
    async with Region() as region:
        bad = region.submit("CreateWorkflow", creation("bad\nname"))
        good = region.submit("CreateWorkflow", creation("w"))
        assert (await failure(bad)).reason == "NAME_BAD_CHARACTERS"
        assert reply_of("CreateWorkflow", await within(good)).header.revision == 1


async def test_a_refusal_is_replicated_with_its_place_and_its_details() -> None:
    async with Region() as region:
        await region.create("w")
        error = await failure(region.submit("CompareAndSwapWorkflow", swap(9)))
        assert isinstance(error, Refused)
        assert (error.reason, error.details) == ("VERSION_MISMATCH", {"version": "1", "as_of": "2"})
        assert region.node.revision == 2
        error = await failure(region.submit("CompareAndSwapWorkflow", swap(9, name="nobody")))
        assert isinstance(error, NotFound)
        assert (error.reason, error.details["as_of"]) == ("WORKFLOW_NOT_FOUND", "3")


async def test_that_the_past_is_no_longer_kept_is_an_answer_too() -> None:
    async with Region() as region:

        def feature(_: Tx) -> None:
            raise Compacted("gone", reason="HISTORY_COMPACTED", oldest=7)

        error = await failure(region.node.transact(STATE, "Test", feature, timeout_s=5))
        assert (type(error), error.reason) == (Compacted, "HISTORY_COMPACTED")
        assert (error.details["oldest"], error.details["as_of"]) == ("7", "1")


async def test_a_caller_that_gave_up_is_not_planned() -> None:
    async with Region() as region:
        gone = region.submit("CreateWorkflow", creation("w"))
        gone.cancel()
        assert (await region.create("v")).header.revision == 1


async def test_a_call_whose_deadline_passed_is_never_appended() -> None:
    async with Region() as region:
        region.log.automatic = False
        region.submit("CreateWorkflow", creation("w"))
        attempt = await within(region.log.appends.get())
        late = region.submit("CreateWorkflow", creation("late"), deadline_s=1.0)
        region.now_s += 1.0
        attempt.commit()
        error = await failure(late)
        assert isinstance(error, Unavailable)
        assert error.reason == "DEADLINE"
        assert region.log.appends.empty()


async def test_a_full_queue_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "QUEUE_CALLS_MAX", 3)
    async with Region() as region:
        region.log.automatic = False
        region.submit("CreateWorkflow", creation("w"))
        attempt = await within(region.log.appends.get())
        region.log.automatic = True
        queued = [region.submit("CreateWorkflow", creation(f"w{n}")) for n in range(3)]
        over = region.submit("CreateWorkflow", creation("over"))
        assert over.done()
        assert (await failure(over)).reason == "OVERLOADED"
        attempt.commit()
        for future in queued:
            await within(future)


async def test_queued_calls_are_bounded_by_their_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "QUEUE_BYTES_MAX", 5000)
    async with Region() as region:
        region.log.automatic = False
        region.submit("CreateWorkflow", creation("first"))
        attempt = await within(region.log.appends.get())
        region.log.automatic = True
        large = [
            region.submit("CreateWorkflow", api.CreateWorkflowRequest(id=f"w{n}", state=b"x" * 2000)) for n in range(3)
        ]
        assert [future.done() for future in large] == [False, False, True]
        assert (await failure(large[2])).reason == "OVERLOADED"
        attempt.commit()
        for future in large[:2]:
            await within(future)
        await region.create("w9", b"x" * 2000)


async def test_kill_switches_and_renewals_neither_queue_behind_the_rest_nor_find_it_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "QUEUE_CALLS_MAX", 3)
    async with Region() as region:
        won = api.CampaignRequest(name="e", process=PROCESS, ttl_ms=1000)
        fence = (await region.call("Campaign", won)).holder.fence
        region.log.automatic = False
        region.submit("CreateWorkflow", creation("first"))
        attempt = await within(region.log.appends.get())
        ordinary = [region.submit("CreateWorkflow", creation(f"w{n}")) for n in range(3)]
        urgent = [
            region.submit("EngageSwitch", engagement()),
            region.submit("Renew", api.RenewRequest(name="e", process=PROCESS, fence=fence)),
        ]
        assert not any(future.done() for future in urgent)
        attempt.commit()
        attempt = await within(region.log.appends.get())
        actions = [txn.action for txn in entry_of(attempt.entry).txns]
        assert actions == ["EngageSwitch", "Renew", *["CreateWorkflow"] * 3]
        attempt.commit()
        for future in (*urgent, *ordinary):
            await within(future)


async def test_each_sort_of_call_has_room_and_a_place_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many renewals wait, a kill switch is admitted, and goes before them; so do the region's own calls."""
    monkeypatch.setattr(limits, "QUEUE_CALLS_MAX", 3)
    async with Region() as region:
        won = api.CampaignRequest(name="e", process=PROCESS, ttl_ms=1000)
        fence = (await region.call("Campaign", won)).holder.fence
        renewal = api.RenewRequest(name="e", process=PROCESS, fence=fence)
        region.log.automatic = False
        region.submit("CreateWorkflow", creation("first"))
        attempt = await within(region.log.appends.get())
        ordinary = [region.submit("CreateWorkflow", creation(f"w{n}")) for n in range(4)]
        due = [region.submit("Renew", api.RenewRequest.FromString(renewal.SerializeToString())) for _ in range(4)]
        own = [region.node.transact(STATE, "Own", lambda _: api.RequestHeader(), timeout_s=60) for _ in range(4)]
        stops = [region.submit("EngageSwitch", engagement(tenant=f"t{n}")) for n in range(4)]
        for over in (ordinary.pop(), due.pop(), own.pop(), stops.pop()):
            assert (await failure(over)).reason == "OVERLOADED"
        attempt.commit()
        attempt = await within(region.log.appends.get())
        actions = [txn.action for txn in entry_of(attempt.entry).txns]
        assert actions == [*["EngageSwitch"] * 3, *["Own"] * 3, *["Renew"] * 3, *["CreateWorkflow"] * 3]
        attempt.commit()
        await within(asyncio.gather(*ordinary, *due, *own, *stops))


# Leadership


async def test_a_follower_accepts_no_write_and_says_who_leads() -> None:
    async with Region() as region:
        region.log.lose()
        error = await failure(region.submit("CreateWorkflow", creation("w")))
        assert isinstance(error, Unavailable)
        assert (error.reason, error.details["leader"]) == ("NOT_LEADER", "n2")


async def test_calls_that_wait_are_let_go_when_leadership_is_lost() -> None:
    async with Region() as region:
        region.log.automatic = False
        in_flight = region.submit("CreateWorkflow", creation("w"))
        attempt = await within(region.log.appends.get())
        waiting = region.submit("CreateWorkflow", creation("v"))
        region.log.lose()
        assert (await failure(waiting)).reason == "NOT_LEADER"
        assert not in_flight.done()
        attempt.unknown()
        assert isinstance(await failure(in_flight), OutcomeUnknown)


async def test_an_entry_that_was_discarded_is_unavailable_and_safe_to_ask_again() -> None:
    async with Region() as region:
        region.log.automatic = False
        future = region.submit("CreateWorkflow", creation("w", request_id=b"r" * 16))
        (await within(region.log.appends.get())).discard()
        assert isinstance(await failure(future), Unavailable)
        region.log.automatic = True
        assert (await region.call("CreateWorkflow", creation("w", request_id=b"r" * 16))).version == 1


@pytest.mark.parametrize("applied", ["before", "after", "never"])
async def test_a_retry_after_an_unknown_outcome_gives_the_one_outcome(applied: str) -> None:
    async with Region() as region:
        await region.create("w")
        request = swap(1, b"mine", request_id=b"r" * 16, since=1)
        region.log.automatic = False
        first = region.submit("CompareAndSwapWorkflow", request)
        attempt = await within(region.log.appends.get())
        attempt.unknown()
        assert isinstance(await failure(first), OutcomeUnknown)
        if applied == "before":
            region.log.commit(attempt.entry)
        again = region.submit("CompareAndSwapWorkflow", request)
        if applied == "before":
            reply = reply_of("CompareAndSwapWorkflow", await within(again))
        else:
            second = await within(region.log.appends.get())
            if applied == "after":
                region.log.commit(attempt.entry)
            second.commit()
            reply = reply_of("CompareAndSwapWorkflow", await within(again))
        assert (reply.version, reply.header.revision) == (2, 2)
        assert reply == reply_of(
            "CompareAndSwapWorkflow", await within(region.submit("CompareAndSwapWorkflow", request))
        )
        assert (await region.workflow("w", consistency=api.LOCAL)).workflow.version == 2


async def test_what_was_applied_is_told_even_if_the_log_falls_silent_then() -> None:
    async with Region() as region:
        region.log.automatic = False
        future = region.submit("CreateWorkflow", creation("w"))
        attempt = await within(region.log.appends.get())
        region.log.commit(attempt.entry)
        attempt.unknown()
        assert reply_of("CreateWorkflow", await within(future)).version == 1


async def test_a_log_that_takes_what_it_never_applied_is_a_defect() -> None:
    region = Region()
    await region.node.start()
    region.log.automatic = False
    region.submit("CreateWorkflow", creation("w"))
    (await within(region.log.appends.get())).answer(7)
    with pytest.raises(Fatal, match="never applied"):
        await within(region.node.failed)
    await region.node.stop()


async def test_a_retry_that_does_not_say_since_when_is_recognised_all_the_same() -> None:
    """Its first attempt was applied late, or by another leader: this node did not plan what it finds."""
    async with Region() as region:
        await region.create("w")
        request = swap(1, b"mine", request_id=b"r" * 16)
        region.log.automatic = False
        first = region.submit("CompareAndSwapWorkflow", request)
        attempt = await within(region.log.appends.get())
        attempt.unknown()
        assert isinstance(await failure(first), OutcomeUnknown)
        region.log.commit(attempt.entry)
        region.log.automatic = True
        for _ in range(3):
            reply = reply_of("CompareAndSwapWorkflow", await within(region.submit("CompareAndSwapWorkflow", request)))
            assert (reply.version, reply.header.revision) == (2, 2)
        region.log.lead()
        await region.create("v")
        reply = reply_of("CompareAndSwapWorkflow", await within(region.submit("CompareAndSwapWorkflow", request)))
        assert (reply.version, reply.header.revision) == (2, 2)


@pytest.mark.parametrize("header", [{}, {"since": 0}], ids=["undated", "dated"])
async def test_requests_are_recognised_beyond_what_the_planner_remembers(
    header: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "ASKED_MAX", 4)
    async with Region() as region:
        requests = [creation(f"w{n}", request_id=bytes([n]) * 16, **header) for n in range(20)]
        first = [await within(region.submit("CreateWorkflow", request)) for request in requests]
        again = [await within(region.submit("CreateWorkflow", request)) for request in requests]
        assert again == first


@pytest.mark.parametrize("header", [{}, {"since": 0}], ids=["undated", "dated"])
async def test_requests_that_another_leader_applied_are_recognised(header: dict[str, int]) -> None:
    async with Region() as one, Region() as other:
        requests = [creation(f"w{n}", request_id=bytes([n]) * 16, **header) for n in range(3)]
        first = [await within(one.submit("CreateWorkflow", request)) for request in requests]
        for entry in one.log.entries:
            other.log.commit(entry)
        assert [await within(other.submit("CreateWorkflow", request)) for request in requests] == first
        snapshot = Region()
        async with snapshot:
            snapshot.store.commit(Batch(puts=dict(one.store.scan(b"", b"\xff" * 8))))
            snapshot.node.reloaded()
            assert [await within(snapshot.submit("CreateWorkflow", request)) for request in requests] == first


async def test_after_a_snapshot_is_installed_plans_rest_on_what_it_holds() -> None:
    async with Region() as ahead, Region() as behind:
        await ahead.create("w")
        await ahead.swap("w", 1)
        behind.log.commit(ahead.log.entries[0])
        behind.store.commit(Batch(puts=dict(ahead.store.scan(b"", b"\xff" * 8))))
        behind.node.reloaded()
        assert (await behind.swap("w", 2, actor=OTHER)).version == 3


async def test_after_a_snapshot_is_installed_the_ledger_goes_on_from_what_it_holds() -> None:
    async with Region() as ahead, Region() as behind:
        for tenant in "abc":
            await ahead.call("EngageSwitch", engagement(tenant=tenant))
            if tenant == "b":
                behind.store.commit(Batch(puts=dict(ahead.store.scan(b"", b"\xff" * 8))))
                behind.node.reloaded()
        behind.log.index = ahead.log.index - 1
        behind.log.commit(ahead.log.entries[-1])
        assert behind.node.ledger.size == 3
        assert behind.node.ledger.root() == ahead.node.ledger.root()
        assert dict(behind.store.scan(b"l", b"m")) == dict(ahead.store.scan(b"l", b"m"))


async def test_a_name_that_was_given_up_is_free_for_the_next_plan() -> None:
    async with Region() as region:
        campaign = api.CampaignRequest(name="e", process=PROCESS, ttl_ms=1000)
        fence = (await region.call("Campaign", campaign)).holder.fence
        await region.call("Resign", api.ResignRequest(name="e", process=PROCESS, fence=fence))
        next_one = await region.call("Campaign", api.CampaignRequest(name="e", process=b"q" * 16, ttl_ms=1000))
        assert next_one.elected
        assert next_one.holder.fence.revision > fence.revision


async def test_a_request_asked_twice_in_one_batch_happens_once() -> None:
    async with Region() as region:
        request = creation("w", request_id=b"r" * 16)
        twins = [region.submit("CreateWorkflow", request) for _ in range(3)]
        replies = {await within(twin) for twin in twins}
        assert len(replies) == 1
        assert len(region.log.entries) == 1


async def test_a_twin_is_never_told_that_there_is_no_room_for_what_happened() -> None:
    async with Region(quota_bytes=1000) as region:
        request = api.CreateWorkflowRequest(id="w", state=b"x" * 2000, header={"request_id": b"r" * 16})
        twins = [region.submit("CreateWorkflow", request) for _ in range(2)]
        assert len({await within(twin) for twin in twins}) == 1


async def test_one_request_id_means_one_request() -> None:
    async with Region() as region:
        await region.call("CreateWorkflow", creation("w", request_id=b"r" * 16))
        error = await failure(region.submit("CreateWorkflow", creation("v", request_id=b"r" * 16)))
        assert isinstance(error, Invalid)
        assert error.reason == "REQUEST_ID_REUSED"
        same_batch = [region.submit("CreateWorkflow", creation(name, request_id=b"q" * 16)) for name in "xy"]
        assert reply_of("CreateWorkflow", await within(same_batch[0])).version == 1
        assert (await failure(same_batch[1])).reason == "REQUEST_ID_REUSED"
        await region.call("CreateWorkflow", creation("v", request_id=b"r" * 16), actor=OTHER)


async def test_requests_that_say_the_same_in_other_calls_are_others() -> None:
    """Who releases a switch under the id that engaged it must not hear that this was done, while it stays engaged."""
    async with Region() as region:
        engage = engagement(request_id=b"r" * 16)
        release = api.ReleaseSwitchRequest.FromString(engage.SerializeToString())
        await region.call("EngageSwitch", engage)
        assert (await failure(region.submit("ReleaseSwitch", release))).reason == "REQUEST_ID_REUSED"


async def test_conflicts_are_planned_again_in_their_order_and_before_what_came_later() -> None:
    async with Region() as region:
        await region.create("w")
        region.log.automatic = False
        region.submit("CreateWorkflow", creation("first"))
        first = await within(region.log.appends.get())
        batch = [region.submit("CompareAndSwapWorkflow", swap(n)) for n in range(1, 4)]
        first.commit()
        attempt = await within(region.log.appends.get())
        later = region.submit("CompareAndSwapWorkflow", swap(4))
        region.log.commit(foreign(region, 3))
        region.log.automatic = True
        attempt.commit()
        versions = [reply_of("CompareAndSwapWorkflow", await within(future)).version for future in (*batch, later)]
        assert versions == [2, 3, 4, 5]
        assert region.node.status().conflicts == 3


async def test_a_call_that_keeps_losing_is_contended_after_so_many_plans() -> None:
    async with Region() as region:
        region.log.automatic = False
        future = region.submit("CreateWorkflow", creation("w"))
        for _ in range(limits.PLAN_ATTEMPTS_MAX):
            attempt = await within(region.log.appends.get())
            region.log.commit(foreign(region))
            attempt.commit()
        assert isinstance(await failure(future), Contended)
        await settle()
        assert region.log.appends.empty()
        assert machine.event_at(region.store, b"") is None


async def test_what_the_log_itself_appends_does_not_spoil_a_plan() -> None:
    async with Region() as region:
        region.log.automatic = False
        future = region.submit("CreateWorkflow", creation("w"))
        attempt = await within(region.log.appends.get())
        region.log.commit(b"")
        attempt.commit()
        assert reply_of("CreateWorkflow", await within(future)).header.revision == 1
        assert region.node.status().conflicts == 0


async def test_stopping_tells_everyone_something_true() -> None:
    region = Region()
    await region.node.start()
    region.log.automatic = False
    in_flight = region.submit("CreateWorkflow", creation("w"))
    await within(region.log.appends.get())
    waiting = region.submit("CreateWorkflow", creation("v"))
    reading = region.submit("GetWorkflow", api.GetWorkflowRequest(id="w"))
    await within(region.log.barriers.get())
    later = region.submit("GetWorkflow", api.GetWorkflowRequest(id="w", header={"consistency": 1, "revision": 9}))
    await settle()
    await region.node.stop()
    assert isinstance(await failure(in_flight), OutcomeUnknown)
    for future in (waiting, reading, later):
        error = await failure(future)
        assert isinstance(error, Unavailable)
        assert error.reason == "STOPPING"


async def test_replicas_that_differ_at_one_revision_stop() -> None:
    async with Region() as region, Region() as other:
        for each in (region, other):
            await each.create("w")
        region.node.marked("n2", other.node.mark())
        await other.create("x")
        behind = region.node.mark()
        other.node.marked("n1", behind)
        await region.create("y")
        with pytest.raises(Fatal, match="--replace"):
            region.node.marked("n2", other.node.mark())
        await region.create("z")
        with pytest.raises(Fatal, match="differ at revision 2"):
            region.node.marked("n2", other.node.mark())


async def test_so_many_past_states_are_compared_and_no_more() -> None:
    async with Region() as region:
        for _ in range(600):
            region.log.commit(foreign(region))
        with pytest.raises(Fatal, match="differ at revision 100"):
            region.node.marked("n2", keys.number(100) + bytes(32))
        region.node.marked("n2", keys.number(80) + bytes(32))


# Which partition, which epoch, since when


async def test_a_request_means_its_environment_s_partition_or_the_one_it_names() -> None:
    async with Region() as region:
        await region.create("w")
        spare = await region.call("CreateWorkflow", creation("w", partition=SPARE.id))
        assert spare.header.epoch == 3
        dev = region.submit("CreateWorkflow", creation("w"), environment="dev")
        assert reply_of("CreateWorkflow", await within(dev)).version == 1
        for header, reason, kind in (
            ({"partition": DEV.id}, "ENVIRONMENT_MISMATCH", Denied),
            ({"partition": "eu.system"}, "PARTITION_UNKNOWN", NotFound),
            ({"partition": "a\nb"}, "NAME_BAD_CHARACTERS", Invalid),
            ({"partition": "x" * 300}, "NAME_TOO_LONG", Invalid),
        ):
            error = await failure(region.submit("CreateWorkflow", creation("v", **header)))
            assert (type(error), error.reason) == (kind, reason)
            request = api.GetWorkflowRequest(id="w", header=header)
            error = await failure(region.submit("GetWorkflow", request))
            assert (type(error), error.reason) == (kind, reason)
        error = await failure(region.submit("CreateWorkflow", creation("v"), environment="bare"))
        assert error.reason == "PARTITION_MISSING"
        assert region.node.revision == 3


async def test_an_epoch_that_is_over_cannot_be_written_to() -> None:
    async with Region() as region:
        assert (await region.call("CreateWorkflow", creation("w", epoch=1))).header.epoch == 1
        error = await failure(region.submit("CreateWorkflow", creation("v", epoch=2)))
        assert isinstance(error, OutcomeUnknown)
        assert error.reason == "EPOCH_CHANGED"


async def test_a_leader_waits_to_catch_up_with_what_its_caller_saw() -> None:
    async with Region() as region:
        await region.create("w")
        error = await failure(region.submit("CreateWorkflow", creation("v", since=2)))
        assert (type(error), error.reason) == (Unavailable, "SINCE_IN_FUTURE")
        error = await failure(region.submit("CreateWorkflow", creation("v", since=(1 << 64) - 1)))
        assert error.reason == "SINCE_IN_FUTURE"
        await region.call("CreateWorkflow", creation("v", since=1))


@pytest.mark.parametrize("nonce", [b"", b"short", b"x" * 17])
async def test_a_request_id_is_sixteen_bytes(nonce: bytes) -> None:
    async with Region() as region:
        request = creation("w", request_id=nonce).SerializeToString()
        error = await failure(region.node.submit(Call("CreateWorkflow", request, AGENT, "prod", region.now_s + 5)))
        assert (type(error), error.reason) == (Invalid, "REQUEST_ID_BAD")


async def test_what_became_of_a_request_can_be_asked() -> None:
    async with Region() as region:
        await region.call("CreateWorkflow", creation("w", request_id=b"r" * 16))
        await failure(region.submit("CreateWorkflow", creation("w", request_id=b"s" * 16)))

        async def outcome(nonce: bytes, actor: str = AGENT) -> tuple[int, int, str]:
            asked = api.GetOutcomeRequest(header={"request_id": nonce, "since": 0})
            reply = await region.call("GetOutcome", asked, actor=actor)
            return reply.known, reply.revision, reply.reason

        known = api.GetOutcomeReply
        assert await outcome(b"r" * 16) == (known.COMMITTED, 1, "")
        assert await outcome(b"s" * 16) == (known.REFUSED, 2, "WORKFLOW_EXISTS")
        assert await outcome(b"t" * 16) == (known.NOT_APPLIED, 0, "")
        assert await outcome(b"r" * 16, OTHER) == (known.NOT_APPLIED, 0, "")


# Fences


async def test_any_write_may_carry_a_fence_and_only_the_live_holder_s_is_accepted() -> None:
    async with Region() as region:
        campaign = api.CampaignRequest(name="e", process=PROCESS, ttl_ms=1000)
        fence = (await region.call("Campaign", campaign)).holder.fence
        flag = Flag(
            name="f", type=FlagType.BOOL, enabled=True, variants=[Variant(name="on", value=FlagValue(bool_value=True))]
        )
        for request, method in (
            (creation("w", fence=fence), "CreateWorkflow"),
            (engagement(fence=fence), "EngageSwitch"),
            (api.SetFlagRequest(flag=flag, header={"fence": fence}), "SetFlag"),
        ):
            await region.call(method, request)
        theirs = await failure(region.submit("CreateWorkflow", creation("v", fence=fence), actor=OTHER))
        assert theirs.reason == "FENCE_NOT_YOURS"
        await region.call("Resign", api.ResignRequest(name="e", process=PROCESS, fence=fence))
        stale = await failure(region.submit("CreateWorkflow", creation("v", fence=fence)))
        assert (type(stale), stale.reason) == (Refused, "FENCE_STALE")
        newer = (await region.call("Campaign", api.CampaignRequest(name="e", process=PROCESS, ttl_ms=1000))).holder
        assert newer.fence.revision > fence.revision
        stale = await failure(region.submit("CreateWorkflow", creation("v", fence=fence)))
        assert (stale.reason, stale.details["live"]) == ("FENCE_STALE", str(newer.fence.revision))
        await region.call("CreateWorkflow", creation("v", fence=newer.fence))
        other_epoch = api.Fence(election="e", epoch=2, revision=newer.fence.revision)
        assert (
            await failure(region.submit("CreateWorkflow", creation("u", fence=other_epoch)))
        ).reason == "FENCE_STALE"
        nameless = await failure(region.submit("CreateWorkflow", creation("u", fence=api.Fence())))
        assert (type(nameless), nameless.reason) == (Invalid, "NAME_EMPTY")


async def test_a_lease_is_neither_renewed_nor_given_up_by_a_fence_of_another_epoch() -> None:
    async with Region() as region:
        campaign = api.CampaignRequest(name="e", process=PROCESS, ttl_ms=1000)
        fence = (await region.call("Campaign", campaign)).holder.fence
        fence.epoch += 1
        lost = await failure(region.submit("Renew", api.RenewRequest(name="e", process=PROCESS, fence=fence)))
        assert lost.reason == "LEASE_LOST"
        resigned = await region.call("Resign", api.ResignRequest(name="e", process=PROCESS, fence=fence))
        assert not resigned.resigned


async def test_callers_of_other_regions_count_in_revisions_of_their_own_and_learn_of_no_holder() -> None:
    atlas = Atlas("fleet", "eu", {"eu": "eu", "us": "us"}, {"us": frozenset({Reach.GLOBAL})})
    async with Region(atlas=atlas) as region:

        def from_abroad(**header: object) -> asyncio.Future[bytes]:
            flag = Flag(name="f", type=FlagType.BOOL, variants=[Variant(name="on", value=FlagValue(bool_value=True))])
            nonce = region.entropy(limits.REQUEST_ID_BYTES)
            request = api.SetFlagRequest(flag=flag, header={"partition": CONFIG.id, "request_id": nonce, **header})
            who = "controlplane://fleet/prod/us/operator/o1"
            return region.node.submit(
                Call("SetFlag", request.SerializeToString(), who, "prod", region.now_s + 5, region="us")
            )

        await within(from_abroad(since=1 << 40))
        campaign = api.CampaignRequest(name="e", process=PROCESS, ttl_ms=1000)
        live = (await region.call("Campaign", campaign)).holder.fence
        for fence in (live, api.Fence(election="e", epoch=1, revision=99), api.Fence(election="f")):
            assert isinstance(await failure(from_abroad(fence=fence)), Denied)


async def test_what_moved_here_is_fenced_by_the_elections_that_moved_along() -> None:
    """By those of its environment, whatever others of its first home have moved here too."""
    moved = [
        Partition(
            id=f"us.{environment}.{kind}",
            home="eu",
            epoch=2,
            reach=Reach.HOME_ONLY,
            environment=environment,
            default_for=[kind],
        )
        for environment in ("dev", "prod")
        for kind in ("election", "workflow")
    ]
    async with Region(partitions=moved) as region:
        campaign = api.CampaignRequest(name="e", process=PROCESS, ttl_ms=1000)
        fence = (await region.call("Campaign", campaign)).holder.fence
        await region.call("CreateWorkflow", creation("w", fence=fence))


async def test_a_fence_taken_away_in_the_same_batch_does_not_count() -> None:
    async with Region() as region:
        campaign = api.CampaignRequest(name="e", process=PROCESS, ttl_ms=1000)
        fence = (await region.call("Campaign", campaign)).holder.fence
        resigned = region.submit("Resign", api.ResignRequest(name="e", process=PROCESS, fence=fence))
        late = region.submit("CreateWorkflow", creation("w", fence=fence))
        assert reply_of("Resign", await within(resigned)).resigned
        assert (await failure(late)).reason == "FENCE_STALE"
        assert len(region.log.entries) == 2


# Room for stopping


async def test_a_full_store_refuses_ordinary_writes_and_still_stops_agents() -> None:
    async with Region(quota_bytes=3000) as region:
        campaign = api.CampaignRequest(name="e", process=PROCESS, ttl_ms=1000)
        fence = (await region.call("Campaign", campaign)).holder.fence
        await region.create("w", b"x" * 4000)
        before = region.node.revision
        for method, request in (
            ("CreateWorkflow", creation("v")),
            ("CompareAndSwapWorkflow", swap(1)),
            ("Campaign", api.CampaignRequest(name="g", process=PROCESS, ttl_ms=1000)),
            ("RestoreFlag", api.RestoreFlagRequest(name="f", revision=1)),
        ):
            error = await failure(region.submit(method, request))
            assert (type(error), error.reason) == (Refused, "STORE_FULL")
        assert region.node.revision == before
        assert (await region.call("EngageSwitch", engagement())).changed
        release = api.ReleaseSwitchRequest(scope=engagement().scope, header={"reason": "over"})
        assert (await region.call("ReleaseSwitch", release)).changed
        assert (await region.call("Renew", api.RenewRequest(name="e", process=PROCESS, fence=fence))).ttl_ms == 1000
        assert (await region.call("Resign", api.ResignRequest(name="e", process=PROCESS, fence=fence))).resigned
        assert (await region.workflow("w")).workflow.version == 1


async def test_the_reserve_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "QUOTA_RESERVED_BYTES", 1000)
    async with Region(quota_bytes=0) as region:
        engaged = [await region.call("EngageSwitch", engagement(tenant=f"t{n}")) for n in range(4)]
        assert all(reply.changed for reply in engaged)
        error = None
        for n in range(20):
            future = region.submit("EngageSwitch", engagement(tenant=f"u{n}"))
            await settle()
            error = error or future.exception()
        assert error is not None
        assert error.reason == "STORE_FULL"


async def test_a_full_disk_refuses_ordinary_writes_only() -> None:
    free = [limits.DISK_FREE_BYTES_MIN]
    async with Region(free_bytes=lambda: free[0]) as region:
        await region.create("w")
        free[0] -= 1
        error = await failure(region.submit("CreateWorkflow", creation("v")))
        assert (type(error), error.reason) == (Refused, "DISK_FULL")
        assert (await region.call("EngageSwitch", engagement())).changed


# Every interleaving


class Schedule:
    """Requests that compete for four names, while entries are lost, late, discarded, or overtaken."""

    def __init__(self, region: Region) -> None:
        self.region, self.log = region, region.log
        self.futures: list[asyncio.Future[bytes]] = []
        self.requests: list[api.CreateWorkflowRequest] = []
        self.undecided: list[Attempt] = []
        self.lost: list[Attempt] = []

    async def step(self, name: str) -> None:
        await settle(6)
        while not self.log.appends.empty():
            self.undecided.append(self.log.appends.get_nowait())
        getattr(self, name)()

    def ask(self, request: api.CreateWorkflowRequest) -> None:
        self.futures.append(self.region.submit("CreateWorkflow", request))
        self.requests.append(request)

    def submit(self) -> None:
        request = creation(f"n{len(self.requests) % 4}", request_id=self.region.entropy(16))
        if len(self.requests) % 2:
            request.header.since = self.region.node.revision
        self.ask(request)

    def retry(self) -> None:
        if self.requests:
            self.ask(self.requests[-1 - len(self.futures) % len(self.requests)])

    def foreign(self) -> None:
        self.log.commit(foreign(self.region))

    def own(self) -> None:
        self.log.commit(b"")

    def depose(self) -> None:
        self.log.lose()
        self.log.lead()

    def late(self) -> None:
        if self.lost:
            self.log.commit(self.lost.pop().entry)

    def commit(self) -> None:
        if self.undecided:
            self.undecided.pop().commit()

    def discard(self) -> None:
        if self.undecided:
            self.undecided.pop().discard()

    def unknown(self) -> None:
        if self.undecided:
            self.lost.append(self.undecided.pop())
            self.lost[-1].unknown()

    async def finish(self) -> None:
        while self.lost:
            self.late()
        self.log.automatic = True
        while self.undecided:
            self.commit()
        await settle()
        while not self.log.appends.empty():
            self.log.appends.get_nowait().commit()
            await settle()


STEPS = ("submit", "commit", "unknown", "late", "discard", "foreign", "own", "depose", "retry")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(STEPS), min_size=10, max_size=40))
def test_no_schedule_makes_a_request_happen_twice_or_lose_its_answer(steps: list[str]) -> None:
    asyncio.run(interleave(steps))


async def interleave(steps: list[str]) -> None:
    async with Region() as region:
        await region.create("w")
        region.log.automatic = False
        schedule = Schedule(region)
        for step in steps:
            await schedule.step(step)
        await schedule.finish()
        await check_answers(region, schedule.futures, schedule.requests)


async def check_answers(
    region: Region, futures: list[asyncio.Future[bytes]], requests: list[api.CreateWorkflowRequest]
) -> None:
    """A retry of any request now tells what all earlier answers to it told, and each name was created once at most."""
    by_id: dict[bytes, set[str]] = {}
    created: dict[str, set[bytes]] = {}
    for future, request in zip(futures, requests, strict=True):
        told = await answer(future)
        final = await answer(region.submit("CreateWorkflow", request))
        nonce = request.header.request_id
        if final == "COMMITTED":
            created.setdefault(request.id, set()).add(nonce)
        if told not in ("OutcomeUnknown", "Unavailable", "Contended"):
            assert told == final
        by_id.setdefault(nonce, set()).add(final)
    assert all(len(finals) == 1 for finals in by_id.values())
    assert all(len(nonces) == 1 for nonces in created.values())
    for name in created:
        assert (await region.workflow(name)).workflow.version == 1


async def answer(future: asyncio.Future[bytes]) -> str:
    try:
        await within(future)
    except Refused as error:
        return f"Refused {error.details}"
    except ControlPlaneError as error:
        return type(error).__name__
    return "COMMITTED"


async def test_a_clock_that_was_ahead_shows() -> None:
    async with Region() as region:
        await region.create("before")
        told = NodeCollector(region.node, Counts(), lambda: 0)
        ahead = "controlplane_recorded_time_ahead_seconds"
        assert [family.samples[0].value for family in told.collect() if family.name == ahead] == [0]
        region.unix_ms += 3_600_000
        await region.create("meanwhile")
        region.unix_ms -= 3_600_000
        await region.create("after")
        assert [family.samples[0].value for family in told.collect() if family.name == ahead] == [3600]
