"""Watches: in order, once, whole, without gaps, from any revision, at bounded cost."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import limits, watch
from controlplane.abroad import Abroad
from controlplane.errors import Compacted, ControlPlaneError, Invalid, Unavailable
from controlplane.features.partitions import RETENTION, RETENTION_NAME, system
from controlplane.kernel import keys, machine
from controlplane.kernel.store import Batch, MemoryStore, Store
from controlplane.kernel.transaction import scope_of
from controlplane.node import Call
from controlplane.places import Places
from controlplane.storage import RocksStore
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import (
    Flag,
    FlagType,
    FlagValue,
    Former,
    Partition,
    Reach,
    Retention,
    Scope,
    ScopeKind,
    Variant,
    Workflow,
)
from controlplane.v1.state_pb2 import Entry, Event, Range, Txn, Write
from tests.node.harness import AGENT, CONFIG, PROCESS, SPARE, STATE, Region, Scanned, message, settle, until, within

STARTED, SNAPSHOT, SYNCED = api.WatchReply.STARTED, api.WatchReply.SNAPSHOT, api.WatchReply.SYNCED
CHANGES, PROGRESS = api.WatchReply.CHANGES, api.WatchReply.PROGRESS
WATCH = api.WatchRequest(kinds=["workflow"])


@pytest.fixture(params=["roomy", "tiny"])
def _tail(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny tail nearly everything is read from the store, a few events at a time."""
    if request.param == "tiny":
        monkeypatch.setattr(watch, "_TAIL_TXNS_MAX", 2)
        monkeypatch.setattr(watch, "_PAGE", 3)


def wanted(**fields: object) -> api.WatchRequest:
    return api.WatchRequest(kinds=["workflow"], **fields)


def bulk(region: Region, *transactions: list[str], value: bytes = b"v", scope: bytes | None = None) -> bytes:
    """An entry of another leader: each transaction writes workflows of these names."""
    scope = scope_of(STATE) if scope is None else scope
    txns = [
        Txn(
            scope=scope,
            action="Bulk",
            writes=[
                Write(
                    key=keys.within(scope, "workflow", name), value=Workflow(id=name, state=value).SerializeToString()
                )
                for name in names
            ],
        )
        for names in transactions
    ]
    return machine.pack(Entry(base=region.node.revision, salt=region.entropy(16), txns=txns))


def shown(reply: api.WatchReply) -> tuple[int, list[str]]:
    return reply.revision, [change.name for change in reply.changes]


async def changes(following: AsyncGenerator[bytes, None], count: int) -> list[tuple[int, list[str]]]:
    """The next `count` transactions; progress between them must not go back."""
    seen, last = [], 0
    while len(seen) < count:
        reply = await message(following)
        assert reply.revision >= last
        last = reply.revision
        if reply.kind == CHANGES:
            assert reply.revision not in [revision for revision, _ in seen]
            seen.append(shown(reply))
    return seen


# Order, wholeness, resuming


@pytest.mark.usefixtures("_tail")
async def test_every_transaction_comes_once_whole_and_in_order_from_any_revision() -> None:
    async with Region() as region:
        region.log.commit(bulk(region, ["a"], ["b", "c", "d", "e", "f", "g", "h"], ["a", "b"], ["c"]))
        region.log.commit(bulk(region, ["x"], scope=scope_of(SPARE)))
        region.log.commit(bulk(region, ["d", "e", "f"], ["a"]))
        everything = [
            (1, ["a"]),
            (2, list("bcdefgh")),
            (3, ["a", "b"]),
            (4, ["c"]),
            (6, ["d", "e", "f"]),
            (7, ["a"]),
        ]
        for after in range(8):
            following = region.watch(wanted(after_revision=after))
            started = await message(following)
            assert (started.kind, started.revision, started.region, started.epoch) == (STARTED, after, "eu", 1)
            expected = [each for each in everything if each[0] > after]
            assert await changes(following, len(expected)) == expected
            region.log.commit(bulk(region, [f"new{after}"]))
            everything.append((region.node.revision, [f"new{after}"]))
            assert await changes(following, 1) == everything[-1:]
            await following.aclose()


@pytest.mark.usefixtures("_tail")
async def test_without_a_revision_a_watch_begins_now() -> None:
    async with Region() as region:
        await region.create("before")
        following = region.watch(WATCH)
        assert (await message(following)).revision == 1
        await region.create("after")
        assert await changes(following, 1) == [(2, ["after"])]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=5),
    st.integers(1, 7),
    st.integers(1, 5),
    st.integers(0, 12),
)
def test_pages_cut_no_transaction(sizes: list[list[int]], page: int, tail: int, after: int) -> None:
    """Whatever the sizes of transactions, pages and the tail, a watcher sees all that came after its revision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "_PAGE", page)
        patch.setattr(watch, "_TAIL_TXNS_MAX", tail)
        asyncio.run(_watch_bulk(sizes, after))


async def _watch_bulk(sizes: list[list[int]], after: int) -> None:
    async with Region() as region:
        following = region.watch(wanted(after_revision=after))
        await message(following)
        expected = []
        for entry in sizes:
            transactions = [[f"n{n}" for n in range(size)] for size in entry]
            expected += enumerate(transactions, region.node.revision + 1)
            region.log.commit(bulk(region, *transactions))
        expected = [each for each in expected if each[0] > after]
        assert await changes(following, len(expected)) == expected


@pytest.mark.usefixtures("_tail")
async def test_a_snapshot_then_changes_leave_no_gap_and_never_go_back() -> None:
    async with Region() as region:
        for name in "abcde":
            await region.create(name, b"1")
        following = region.watch(wanted(snapshot=True))
        versions: dict[str, int] = {}
        synced = 0
        for n in range(2, 8):
            reply = await message(following)
            for change in reply.changes:
                assert change.meta.version > versions.get(change.name, 0)
                versions[change.name] = change.meta.version
            if reply.kind in (SNAPSHOT, SYNCED):
                assert reply.revision == 5
                assert all(change.meta.revision <= 5 for change in reply.changes)
                synced += reply.kind == SYNCED
            for name in "abcde":
                await region.swap(name, n - 1, b"%d" % n)
        while versions != dict.fromkeys("abcde", 7):
            reply = await message(following)
            for change in reply.changes:
                assert change.meta.version == versions[change.name] + 1
                versions[change.name] = change.meta.version
        assert synced == 1


async def test_a_snapshot_of_nothing_is_complete() -> None:
    async with Region() as region:
        following = region.watch(wanted(snapshot=True))
        assert [(await message(following)).kind for _ in range(3)] == [STARTED, SYNCED, PROGRESS]


class Shown(Scanned):
    """Its views count in the rows that are taken from it, and in what is held of it."""

    def __init__(self) -> None:
        super().__init__()
        self.open = 0

    def snapshot(self) -> Shown:
        self.open += 1
        return self

    def close(self) -> None:
        self.open -= 1


async def large(region: Region, count: int = 20) -> None:
    """Workflows of which few are a page."""
    for n in range(count):
        region.log.commit(bulk(region, [f"w{n:02}"], value=b"v" * (300 * 1024)))


async def test_a_listing_takes_no_more_from_the_store_than_is_read() -> None:
    store = Shown()
    async with Region(store=store) as region:
        await large(region)
        store.rows = 0
        following = region.watch(wanted(snapshot=True))
        assert (await message(following)).kind == STARTED
        assert store.rows <= 4
        listed = []
        while (reply := await message(following)).kind == SNAPSHOT:
            assert reply.ByteSize() < 1100 * 1024
            listed += [change.name for change in reply.changes]
            assert store.rows <= len(listed) + 4
        assert listed == [f"w{n:02}" for n in range(20)]
        assert (reply.kind, store.open) == (SYNCED, 0)


async def test_long_listings_are_bounded_and_short_ones_hold_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LISTINGS_PER_NODE_MAX", 1)
    store = Shown()
    async with Region(store=store) as region:
        await large(region)
        await region.call("Campaign", api.CampaignRequest(name="e", process=PROCESS, ttl_ms=1000))
        first = region.watch(wanted(snapshot=True))
        await message(first)
        with pytest.raises(Unavailable) as caught:
            await message(region.watch(wanted(snapshot=True)))
        assert caught.value.reason == "WATCHES_FULL"
        assert store.open == 1
        short = region.watch(api.WatchRequest(kinds=["election"], snapshot=True))
        assert (await message(short)).kind == STARTED
        assert store.open == 1
        assert [(await message(short)).kind for _ in range(2)] == [SNAPSHOT, SYNCED]
        await first.aclose()
        assert store.open == 0
        assert (await message(region.watch(wanted(snapshot=True)))).kind == STARTED


async def test_a_listing_that_nobody_reads_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LISTING_PAUSE_S_MAX", 0.01)
    store = Shown()
    async with Region(store=store) as region:
        await large(region)
        following = region.watch(wanted(snapshot=True))
        await message(following)
        assert store.open == 1
        await until(lambda: store.open == 0)
        with pytest.raises(Compacted) as caught:
            await message(following)
        assert caught.value.reason == "LISTING_ENDED"


async def test_a_listing_may_take_long_as_long_as_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LISTING_PAUSE_S_MAX", 0.5)
    async with Region(store=Shown()) as region:
        await large(region)
        following = region.watch(wanted(snapshot=True))
        began = asyncio.get_running_loop().time()
        first, second = await message(following), await message(following)
        assert (first.kind, second.kind) == (api.WatchReply.STARTED, api.WatchReply.SNAPSHOT)
        await asyncio.sleep(0.3)
        await message(following)
        # Beyond the pause that was allowed when it began.
        await asyncio.sleep(max(0.0, began + 0.6 - asyncio.get_running_loop().time()))
        assert (await message(following)).kind in (api.WatchReply.SNAPSHOT, api.WatchReply.SYNCED)
        await following.aclose()


async def test_listings_leave_turns_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TURN_CALLS_MAX", 1)
    store = Shown()
    async with Region(store=store) as region:
        await large(region)
        store.rows = 0
        beginnings = [asyncio.ensure_future(anext(region.watch(wanted(snapshot=True)))) for _ in range(8)]
        while not all(beginning.done() for beginning in beginnings):
            before = store.rows
            await asyncio.sleep(0)
            assert store.rows - before <= 4


async def test_a_large_listing_comes_in_messages_of_bounded_size() -> None:
    async with Region() as region:
        for n in range(8):
            await region.create(f"w{n}", b"x" * 400_000)
        following = region.watch(wanted(snapshot=True))
        names, messages = [], 0
        while (reply := await message(following)).kind != SYNCED:
            assert reply.ByteSize() < limits.MESSAGE_BYTES_MAX // 2
            names += [change.name for change in reply.changes]
            messages += 1
        assert names == [f"w{n}" for n in range(8)]
        assert messages > 3


async def test_a_deletion_is_a_change_without_a_value_and_a_renewal_is_none() -> None:
    async with Region() as region:
        following = region.watch(api.WatchRequest(kinds=["election"]))
        await message(following)
        campaign = api.CampaignRequest(name="e", process=PROCESS, ttl_ms=1000)
        fence = (await region.call("Campaign", campaign)).holder.fence
        await region.call("Renew", api.RenewRequest(name="e", process=PROCESS, fence=fence))
        await region.call("Resign", api.ResignRequest(name="e", process=PROCESS, fence=fence))
        seen = []
        while len(seen) < 2:
            reply = await message(following)
            seen += [(reply.revision, change.WhichOneof("value"), change.meta.action) for change in reply.changes]
        assert seen == [(1, "election", "Campaign"), (3, None, "Resign")]


async def test_a_change_says_who_what_and_why() -> None:
    async with Region() as region:
        following = region.watch(api.WatchRequest(kinds=["switch"]))
        await message(following)
        scope = Scope(kind=ScopeKind.SCOPE_TENANT, name="acme")
        await region.call("EngageSwitch", api.EngageSwitchRequest(scope=scope, header={"reason": "runaway"}))
        (change,) = (await message(following)).changes
        assert (change.kind, change.name, change.switch.engaged) == ("switch", "tenant:acme", True)
        assert change.meta == api.Meta(
            revision=1,
            created=1,
            version=1,
            actor=AGENT,
            action="EngageSwitch",
            reason="runaway",
            at_ms=region.unix_ms,
        )


# What a watcher sees


@pytest.mark.usefixtures("_tail")
async def test_kinds_prefix_and_partition_decide_what_is_seen() -> None:
    async with Region() as region:
        named = region.watch(wanted(prefix="a", after_revision=0))
        spare = region.watch(api.WatchRequest(header={"partition": SPARE.id}, after_revision=0))
        switches = region.watch(api.WatchRequest(kinds=["switch", "flag"], after_revision=0))
        for name in ("a", "ab", "b", "a\u00ff", "ba"):
            await region.create(name)
        await region.call("CreateWorkflow", api.CreateWorkflowRequest(id="a", header={"partition": SPARE.id}))
        scope = Scope(kind=ScopeKind.SCOPE_REGION)
        await region.call("EngageSwitch", api.EngageSwitchRequest(scope=scope, header={"reason": "r"}))
        assert await changes(named, 3) == [(1, ["a"]), (2, ["ab"]), (4, ["a\u00ff"])]
        assert await changes(spare, 1) == [(6, ["a"])]
        assert await changes(switches, 1) == [(7, ["region:"])]
        region.now_s += limits.PROGRESS_MS / 1000
        for following in (named, spare, switches):
            assert (await message(following)).kind == PROGRESS
            await following.aclose()


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (api.WatchRequest(kinds=["nothing"]), "KIND_UNKNOWN"),
        (api.WatchRequest(kinds=["flag", "workflow"]), "PARTITION_AMBIGUOUS"),
        (api.WatchRequest(), "PARTITION_AMBIGUOUS"),
        (api.WatchRequest(kinds=["partition"]), "PARTITION_MISSING"),
        (wanted(header={"partition": "nowhere"}), "PARTITION_UNKNOWN"),
        (wanted(header={"partition": "eu.dev.all"}), "ENVIRONMENT_MISMATCH"),
        (wanted(header={"consistency": 9}), "CONSISTENCY_UNKNOWN"),
        (wanted(prefix="a\0"), "PREFIX_BAD"),
        (wanted(prefix="x" * 257), "PREFIX_BAD"),
    ],
)
async def test_a_watch_that_makes_no_sense_is_refused_before_it_begins(request_: api.WatchRequest, reason: str) -> None:
    async with Region() as region:
        with pytest.raises(ControlPlaneError) as caught:
            await message(region.watch(request_))
        assert caught.value.reason == reason
        assert region.node.status().watchers == 0


async def test_garbage_is_no_watch() -> None:
    async with Region() as region:
        with pytest.raises(Invalid) as caught:
            await region.node.watch(Call("Watch", b"\xff\xff", AGENT, "prod", region.now_s + 1))
        assert caught.value.reason == "REQUEST_MALFORMED"


async def test_a_watch_waits_for_the_consistency_that_it_asks_for() -> None:
    async with Region() as region:
        region.log.automatic = False
        following = region.watch(WATCH)
        first = asyncio.ensure_future(anext(following))
        barrier = await within(region.log.barriers.get())
        await settle()
        assert not first.done()
        region.log.commit(bulk(region, ["a"]))
        barrier.answer()
        assert api.WatchReply.FromString(await within(first)).revision == 1
        late = asyncio.ensure_future(anext(region.watch(wanted(header={"consistency": api.AT_LEAST, "revision": 2}))))
        await settle()
        assert not late.done()
        region.log.commit(bulk(region, ["b"]))
        assert api.WatchReply.FromString(await within(late)).revision == 2
        assert (await message(region.watch(wanted(header={"consistency": api.LOCAL})))).revision == 2
        assert region.log.barriers.empty()


# Too old


async def compact(region: Region, floor: int) -> None:
    scope = scope_of(system("eu"))
    key = keys.within(scope, RETENTION.name, RETENTION_NAME)
    trims = [
        Range(start=start, end=end)
        for start, end in (keys.events(keys.domain_of(scope_of(p)), 0, floor) for p in (STATE, CONFIG))
    ]
    value = Retention(event_floor=floor).SerializeToString()
    txn = Txn(scope=scope, writes=[Write(key=key, value=value, quiet=True)], trims=trims)
    region.log.commit(machine.pack(Entry(base=region.node.revision, salt=region.entropy(16), txns=[txn])))


async def test_below_the_floor_a_watch_says_compacted_and_above_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_TAIL_TXNS_MAX", 1)
    async with Region() as region:
        for n in range(6):
            await region.create(f"w{n}")
        await compact(region, 4)
        for after in (0, 3):
            with pytest.raises(Compacted) as caught:
                await message(region.watch(wanted(after_revision=after)))
            assert (caught.value.reason, caught.value.details["oldest"]) == ("EVENTS_COMPACTED", "5")
            assert region.node.status().watchers == 0
        assert await changes(region.watch(wanted(after_revision=4)), 2) == [(5, ["w4"]), (6, ["w5"])]
        listing = region.watch(wanted(snapshot=True, after_revision=0))
        await message(listing)
        assert len((await message(listing)).changes) == 6


async def test_a_watcher_that_reads_too_slowly_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_TAIL_TXNS_MAX", 1)
    async with Region() as region:
        following = region.watch(wanted(after_revision=0))
        await message(following)
        for n in range(6):
            await region.create(f"w{n}")
        await compact(region, 4)
        with pytest.raises(Compacted):
            await message(following)
        assert region.node.status().watchers == 0


async def test_an_idle_watcher_keeps_up_without_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that it wants was written: with each report of progress it is past what the others wrote."""
    monkeypatch.setattr(limits, "PROGRESS_MS_MIN", 1)
    monkeypatch.setattr(watch, "_TAIL_TXNS_MAX", 1)
    async with Region() as region:
        following = region.watch(wanted(prefix="mine"))
        assert [(await message(following)).kind for _ in range(2)] == [STARTED, PROGRESS]
        for n in range(6):
            await region.create(f"w{n}")
        await compact(region, 6)
        region.now_s += limits.PROGRESS_MS / 1000
        reply = await message(following)
        assert (reply.kind, reply.revision) == (PROGRESS, 7)
        await region.create("mine")
        assert await changes(following, 1) == [(8, ["mine"])]


async def test_events_can_be_listed_in_pages_of_whole_transactions() -> None:
    async with Region() as region:
        region.log.commit(bulk(region, ["a"], ["b", "c", "d"], ["e", "f"], ["g"]))
        seen, after, pages = [], 0, 0
        while True:
            request = api.ListEventsRequest(after_revision=after, limit=2, kinds=["workflow"])
            reply = await region.call("ListEvents", request)
            seen += [(change.meta.revision, change.name) for change in reply.changes]
            after, pages = reply.seen, pages + 1
            assert after == reply.changes[-1].meta.revision
            if not reply.more:
                break
        assert seen == [(1, "a"), (2, "b"), (2, "c"), (2, "d"), (3, "e"), (3, "f"), (4, "g")]
        assert pages == 4
        for after in (4, 5, (1 << 64) - 1):
            request = api.ListEventsRequest(after_revision=after, kinds=["workflow"])
            assert not (await region.call("ListEvents", request)).changes
        with pytest.raises(Invalid):
            await region.call("ListEvents", api.ListEventsRequest(limit=limits.PAGE_MAX + 1, kinds=["workflow"]))
        await compact(region, 2)
        with pytest.raises(Compacted):
            await region.call("ListEvents", api.ListEventsRequest(after_revision=1, kinds=["workflow"]))


async def test_a_filter_that_matches_little_is_looked_for_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "EVENTS_SCANNED_MAX", 4)
    async with Region() as region:
        region.log.commit(bulk(region, *([f"w{n}"] for n in range(10))))
        scope = Scope(kind=ScopeKind.SCOPE_TENANT, name="acme")
        header = {"reason": "runaway", "partition": STATE.id}
        await region.call("EngageSwitch", api.EngageSwitchRequest(scope=scope, header=header))
        found, after, pages = [], 0, []
        while not pages or pages[-1].more:
            request = api.ListEventsRequest(header={"partition": STATE.id}, after_revision=after, kinds=["switch"])
            pages.append(await region.call("ListEvents", request))
            after = pages[-1].seen
            found += [change.name for change in pages[-1].changes]
        assert found == ["tenant:acme"]
        assert [page.seen for page in pages] == [4, 8, 11]


async def test_pages_of_events_are_bounded_in_bytes() -> None:
    async with Region() as region:
        for n in range(6):
            region.log.commit(bulk(region, [f"w{n}"], value=b"x" * 400_000))
        reply = await region.call("ListEvents", api.ListEventsRequest(kinds=["workflow"]))
        assert len(reply.changes) == 2
        assert reply.more


# Cost


async def test_a_thousand_watchers_of_one_filter_share_one_encoding() -> None:
    async with Region() as region:
        following = [region.watch(WATCH) for _ in range(1000)]
        for each in following:
            await message(each)
            await message(each)
        assert region.node.status().watchers == 1000
        await region.create("w")
        received = [await within(anext(each)) for each in following]
        assert shown(api.WatchReply.FromString(received[0])) == (1, ["w"])
        assert len({id(each) for each in received}) == 1


async def test_many_filters_do_not_make_the_tail_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_TAIL_BYTES_MAX", 20_000)
    monkeypatch.setattr(watch, "_PAGE_BYTES", 2_000)
    async with Region() as region:
        following = [region.watch(wanted(prefix="w" * (n % 7), after_revision=0)) for n in range(14)]
        for each in following:
            await message(each)
        for n in range(40):
            await region.create(f"wwwwwww{n}", b"x" * 500)
        expected = [(n + 1, [f"wwwwwww{n}"]) for n in range(40)]
        for each in following:
            assert await changes(each, 40) == expected
            tail = region.node._watches._tail
            held = sum(recent.size for recent in tail._recent)
            encoded = sum(len(packed) for recent in tail._recent for packed in recent.encoded.values())
            assert encoded < held == tail._bytes <= 20_000


async def test_watchers_of_other_things_leave_nothing_in_the_tail() -> None:
    async with Region() as region:
        following = [region.watch(wanted(prefix=f"p{n}", after_revision=0)) for n in range(50)]
        for n in range(50):
            await region.create(f"q{n}")
        for each in following:
            assert [(await message(each)).kind for _ in range(2)] == [STARTED, PROGRESS]
        assert not any(recent.encoded for recent in region.node._watches._tail._recent)


async def test_a_slow_watcher_holds_one_page_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_PAGE_BYTES", 10_000)
    monkeypatch.setattr(watch, "_TAIL_TXNS_MAX", 10)
    async with Region() as region:
        following = region.watch(wanted(after_revision=0))
        await message(following)
        for n in range(50):
            await region.create(f"w{n:02d}", b"x" * 4000)
            if n == 0:
                await message(following)
        gc.collect()
        assert sum(isinstance(each, watch._Recent) for each in gc.get_objects()) <= 10
        assert await changes(following, 49) == [(n + 1, [f"w{n:02d}"]) for n in range(1, 50)]


async def test_a_watcher_of_little_is_not_told_of_every_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_TAIL_TXNS_MAX", 1)
    async with Region() as region:
        for n in range(200):
            await region.create(f"w{n}")
        await region.create("mine")
        following = region.watch(wanted(prefix="mine", after_revision=0))
        messages = [await message(following) for _ in range(3)]
        assert [reply.kind for reply in messages][:2] == [STARTED, CHANGES]
        assert messages[1].revision == 201


async def test_places_for_watchers_are_limited_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "WATCHES_PER_NODE_MAX", 2)
    async with Region() as region:
        one, two = region.watch(WATCH), region.watch(wanted(prefix="p"))
        await message(one)
        await message(two)
        with pytest.raises(Unavailable) as caught:
            await message(region.watch(WATCH))
        assert caught.value.reason == "WATCHES_FULL"
        await one.aclose()
        assert region.node.status().watchers == 1
        await message(region.watch(WATCH))


async def test_a_watch_that_is_cancelled_while_it_waits_frees_its_place() -> None:
    async with Region() as region:
        following = region.watch(WATCH)
        await message(following)
        await message(following)
        waiting = asyncio.ensure_future(anext(following))
        await settle()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert region.node.status().watchers == 0
        assert not region.node._watches._groups


# Progress, stopping, replacement of the store


async def test_idle_watchers_report_progress_and_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROGRESS_MS_MIN", 1)
    async with Region() as region:
        following = region.watch(wanted(prefix="mine"))
        await message(following)
        await message(following)
        await region.create("other")
        region.log.fresh_s = 0.25
        waiting = asyncio.ensure_future(anext(following))
        await settle()
        region.now_s += limits.PROGRESS_MS / 1000
        reply = api.WatchReply.FromString(await within(waiting))
        assert (reply.kind, reply.revision, reply.age_ms, reply.region) == (PROGRESS, 1, 250, "eu")
        region.log.fresh_s = float("inf")
        region.now_s += limits.PROGRESS_MS / 1000
        assert (await message(following)).age_ms == (1 << 32) - 1


async def test_stopping_ends_watches_and_says_so() -> None:
    region = Region()
    await region.node.start()
    following = region.watch(WATCH)
    await message(following)
    await message(following)
    waiting = asyncio.ensure_future(anext(following))
    await settle()
    await region.node.stop()
    with pytest.raises(Unavailable) as caught:
        await within(waiting)
    assert caught.value.reason == "STOPPING"


async def test_after_a_snapshot_is_installed_watchers_go_on_where_they_were(tmp_path: Path) -> None:
    ahead = Region()
    async with ahead:
        for n in range(9):
            await ahead.create(f"w{n}")
    behind = Region()
    async with behind:
        for entry in islice(ahead.log.entries, 4):
            behind.log.commit(entry)
        following = behind.watch(wanted(after_revision=2))
        assert await changes(following, 2) == [(3, ["w2"]), (4, ["w3"])]
        idle = behind.watch(wanted(prefix="w7"))
        await message(idle)
        await message(idle)
        waiting = [asyncio.ensure_future(anext(each)) for each in (following, idle)]
        waited = asyncio.ensure_future(behind.workflow("w8", consistency=api.AT_LEAST, revision=9))
        await settle()
        behind.store.commit(replacement(ahead.store))
        behind.node.reloaded()
        first = [api.WatchReply.FromString(await within(each)) for each in waiting]
        replies = [reply for reply in first if reply.kind == CHANGES and reply.revision < 6]
        assert shown(replies[0]) == (5, ["w4"])
        assert await changes(following, 4) == [(n + 1, [f"w{n}"]) for n in range(5, 9)]
        assert [shown(first[1])] == [(8, ["w7"])] or await changes(idle, 1) == [(8, ["w7"])]
        assert (await within(waited)).workflow.version == 1
        assert behind.node.revision == 9


def replacement(source: Store) -> Batch:
    everything = (b"", b"\xff" * 8)
    return Batch(ranges=[everything], puts=dict(source.scan(*everything)))


async def test_the_same_holds_over_the_store_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_TAIL_TXNS_MAX", 1)
    monkeypatch.setattr(watch, "_PAGE", 2)
    store = RocksStore(tmp_path / "store")
    async with Region(store=store) as region:
        region.log.commit(bulk(region, ["a"], ["b", "c", "d"], ["e"]))
        listing = region.watch(wanted(snapshot=True))
        assert (await message(listing)).revision == 3
        await region.create("late")
        names = []
        while (reply := await message(listing)).kind != SYNCED:
            names += [change.name for change in reply.changes]
        assert names == list("abcde")
        assert await changes(listing, 1) == [(4, ["late"])]
        following = region.watch(wanted(after_revision=0))
        assert await changes(following, 3) == [(1, ["a"]), (2, ["b", "c", "d"]), (3, ["e"])]
        await following.aclose()
        await listing.aclose()
    store.close()


def flag(name: str) -> Flag:
    return Flag(name=name, type=FlagType.BOOL, variants=[Variant(name="on", value=FlagValue(bool_value=True))])


async def test_records_of_every_kind_are_shown_with_their_values() -> None:
    async with Region() as region:
        await region.call("SetFlag", api.SetFlagRequest(flag=flag("f")))
        following = region.watch(api.WatchRequest(kinds=["flag"], after_revision=0))
        await message(following)
        (change,) = (await message(following)).changes
        assert change.flag.variants[0].name == "on"
        assert change.flag == (await region.call("GetFlag", api.GetFlagRequest(name="f"))).flag.flag


async def test_many_watchers_leave_room_for_everything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_WOKEN_AT_ONCE", 10)
    async with Region() as region:
        await region.create("w")
        streams = [region.watch(WATCH) for _ in range(45)]
        for stream in streams:
            kinds = [(await message(stream)).kind for _ in range(2)]
            assert kinds == [STARTED, PROGRESS]
        ended: list[int] = []
        heard = [asyncio.ensure_future(message(stream)) for stream in streams]
        for future in heard:
            future.add_done_callback(lambda _: ended.append(1))
        await settle()
        writes = [region.swap("w", version) for version in (1, 2)]
        written = asyncio.ensure_future(within(asyncio.gather(*writes)))
        steps = []
        while len(ended) < len(heard):
            before = len(ended)
            await asyncio.sleep(0)
            steps.append(len(ended) - before)
        assert max(steps) <= 10
        await written
        # Whoever was not woken by the first of two yet misses neither.
        for future, stream in zip(heard, streams, strict=True):
            told = [await within(future), await message(stream)]
            assert [each.changes[0].meta.version for each in told] == [2, 3]
            await stream.aclose()


async def _idle(region: Region, prefixes: list[str]) -> list[AsyncGenerator[bytes, None]]:
    """Watchers, each of names of its own, that have heard where they stand and wait."""
    streams = [region.watch(wanted(prefix=prefix)) for prefix in prefixes]
    for stream in streams:
        assert [(await message(stream)).kind for _ in range(2)] == [STARTED, PROGRESS]
    return streams


async def test_watchers_of_many_filters_are_woken_over_several_turns_those_with_something_to_see_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watch, "_WOKEN_AT_ONCE", 10)
    async with Region() as region:
        streams = await _idle(region, [f"w{n:02}" for n in range(45)])
        ended: list[int] = []
        heard = [asyncio.ensure_future(message(stream)) for stream in streams]
        for n, future in enumerate(heard):
            future.add_done_callback(lambda _, n=n: ended.append(n))  # type: ignore[misc]
        await settle()
        region.node._watches.tick(region.now_s + 3600)
        region.log.commit(bulk(region, ["w44"]))
        steps = []
        while len(ended) < len(heard):
            before = len(ended)
            await asyncio.sleep(0)
            steps.append(len(ended) - before)
        assert max(steps) <= 10
        assert ended.index(44) < 21, "it does not wait for those who are told of progress"
        assert [each.result().kind for each in heard] == [PROGRESS] * 44 + [CHANGES]


async def test_watchers_are_woken_in_the_order_of_the_changes() -> None:
    """Not in one that differs from process to process: the simulation has to draw the same for everybody each time."""
    names = [f"w{n}" for n in range(8)]
    woken: list[str] = []

    async def hear(name: str, following: AsyncGenerator[bytes, None]) -> None:
        await changes(following, 1)
        woken.append(name)

    async with Region() as region:
        requests = [api.WatchRequest(kinds=["workflow"], prefix=name, after_revision=0) for name in names]
        watchers = [asyncio.create_task(hear(*each)) for each in zip(names, map(region.watch, requests), strict=True)]
        await settle(100)
        # They are planned together, into one entry.
        await within(asyncio.gather(*(region.create(name) for name in names)))
        await within(asyncio.gather(*watchers))
    assert len(region.log.entries) == 1
    assert woken == names


def test_watches_of_partitions_that_moved_end_in_the_order_of_the_changes() -> None:
    abroad = Abroad("eu")
    ids = [f"eu.prod.p{n}" for n in range(8)]
    here = [Partition(id=each, home="eu", epoch=1, reach=Reach.GLOBAL, environment="prod") for each in ids]
    places = Places("eu", here, abroad)
    assert places.look(MemoryStore()) == []
    changed = []
    for each in here:
        there = Partition(id=each.id, home="us", epoch=2, reach=each.reach, former=[Former(home="eu", epoch=1)])
        abroad.partitions[each.id] = there
        event = Event(key=abroad.learned + keys.text(each.id), revision=5, value=there.SerializeToString())
        changed.append(machine.Changed(event.key, event, b"", False))
    assert [each.id for each in places.took(changed)] == ids
    again = Places("eu", here, Abroad("eu"))
    again.look(MemoryStore())
    again._abroad.partitions.update(abroad.partitions)
    assert [each.id for each in again.look(MemoryStore())] == ids


async def test_a_change_looks_only_at_the_filters_that_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0
    compare = watch.Filter.matches

    def counted(of: watch.Filter, key: bytes) -> bool:
        nonlocal looked_at
        looked_at += 1
        return compare(of, key)

    monkeypatch.setattr(watch.Filter, "matches", counted)
    async with Region() as region:
        streams = await _idle(region, [f"w{n:03}" for n in range(200)] + ["", "w", "w007x"])
        assert region.node.status().watchers == 203
        looked_at = 0
        region.log.commit(bulk(region, ["w007", "other"], ["w007xy"]))
        assert looked_at == 0
        for n, seen in ((7, [["w007"], ["w007xy"]]), (201, [["w007"], ["w007xy"]]), (202, [["w007xy"]])):
            assert [[change.name for change in (await message(streams[n])).changes] for _ in seen] == seen
        assert [change.name for change in (await message(streams[200])).changes] == ["w007", "other"]
        for stream in streams:
            await stream.aclose()
        assert region.node.status().watchers == 0
        assert not region.node._watches._matching._of
        assert not region.node._watches._matching._lengths
