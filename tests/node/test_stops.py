"""What other regions stop, on a node that holds copies of theirs: asked, listed, watched, and mirrored by agents."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import limits, watch
from controlplane.errors import Compacted, Invalid
from controlplane.features import federation, partitions, switches
from controlplane.geography import Atlas
from controlplane.kernel import keys
from controlplane.kernel.store import MemoryStore
from controlplane.kernel.transaction import scope_of
from controlplane.node import Call
from controlplane.sdk.mirror import KINDS, STOPS, Mirror
from controlplane.v1 import api_pb2 as api
from controlplane.v1.federation_pb2 import Shared
from controlplane.v1.records_pb2 import GLOBAL, JURISDICTION, Partition, Reach, Scope, ScopeKind, Stop
from controlplane.v1.state_pb2 import Origin
from tests.node.harness import AGENT, PARTITIONS, Region, message, reply_of, within
from tests.node.test_watch import CHANGES, PROGRESS, SNAPSHOT, STARTED, SYNCED, replacement

FLEET = "fleet"
OWN = Partition(id="eu.prod.stops", home="eu", epoch=1, reach=GLOBAL, environment="prod", default_for=["stop"])
WATCH = api.WatchRequest(kinds=["stop"])
CALC, SEARCH = (Scope(kind=ScopeKind.SCOPE_TOOL, name=name) for name in ("calc", "search"))


def shared_by(region: str, environment: str = "prod", reach: Reach = GLOBAL, epoch: int = 1) -> Partition:
    name = f"{region}.{environment}.stops"
    return Partition(id=name, home=region, epoch=epoch, reach=reach, environment=environment, default_for=["stop"])


class Here(Region):
    """A region that hears of others."""

    def __init__(self, **more: Any) -> None:
        super().__init__(partitions=[*PARTITIONS, OWN], **more)
        self.told: dict[str, int] = {}

    async def __aenter__(self) -> Here:
        await self.node.start()
        return self

    async def learn(self, there: Partition) -> None:
        def learn(tx: Any) -> Any:
            return federation.learn(tx, there.home, there.reach, [there])

        await within(self.node.transact(partitions.system("eu"), "Learn", learn, timeout_s=5.0))

    async def hear(self, there: Partition, *scopes: Scope, engaged: bool = True) -> int:
        """Copy one transaction of another region, whether it was learned of or not; its revision there."""
        revision = self.told[there.home] = self.told.get(there.home, 0) + 1
        origin = Origin(home=there.home, epoch=there.epoch, revision=revision, created=1, version=1)
        value = Stop(engaged=engaged).SerializeToString()
        ids = [switches.opaque(FLEET, there.environment, switches.record_name(scope)) for scope in scopes]
        copies = [Shared(key=keys.within(scope_of(there), "stop", each), value=value, origin=origin) for each in ids]

        def take(tx: Any) -> Any:
            return federation.take_transaction(tx, "eu", revision, copies)

        await within(self.node.transact(there, "Copy", take, timeout_s=5.0))
        return revision

    async def throw(self, scope: Scope, *, engaged: bool = True) -> None:
        method, kind = (
            ("EngageSwitch", api.EngageSwitchRequest) if engaged else ("ReleaseSwitch", api.ReleaseSwitchRequest)
        )
        await self.call(method, kind(scope=scope, header={"reason": "why"}))

    async def make_exception(self, scope: Scope, region: str, revision: int, epoch: int = 1) -> Any:
        request = api.ExceptSwitchRequest(
            scope=scope, region=region, epoch=epoch, revision=revision, header={"reason": "us is unreachable"}
        )
        return await self.call("ExceptSwitch", request)

    async def stopped_by(self, *tools: str, environment: str = "prod", **subject: str) -> list[tuple[str, str]]:
        """Regions and names of scopes."""
        request = api.CheckSwitchesRequest(subject={"tools": tools, **subject}, header={"consistency": api.LOCAL})
        reply = await self.call("CheckSwitches", request, environment=environment)
        return [(view.region, view.switch.scope.name) for view in reply.stopped_by]

    async def stops(self, **request: Any) -> list[api.StopView]:
        return list((await self.call("ListSwitches", api.ListSwitchesRequest(**request))).stops)


# Asking


async def test_any_region_stops_and_each_releases_its_own() -> None:
    async with Here() as here:
        for region in ("us", "ap"):
            await here.learn(shared_by(region))
        await here.throw(SEARCH)
        await here.hear(shared_by("us"), SEARCH, CALC)
        await here.hear(shared_by("ap"), SEARCH)
        assert await here.stopped_by("search") == [("", "search"), ("ap", "search"), ("us", "search")]
        assert await here.stopped_by("calc") == [("us", "calc")]
        assert await here.stopped_by("other") == []
        await here.throw(SEARCH, engaged=False)
        await here.hear(shared_by("us"), SEARCH, engaged=False)
        assert await here.stopped_by("search") == [("ap", "search")]
        await here.hear(shared_by("ap"), SEARCH, engaged=False)
        assert await here.stopped_by("search") == []


async def test_other_environments_are_not_stopped() -> None:
    async with Here() as here:
        await here.learn(shared_by("us"))
        await here.hear(shared_by("us"), Scope(kind=ScopeKind.SCOPE_ENVIRONMENT), SEARCH)
        assert await here.stopped_by("search") == [("us", ""), ("us", "search")]
        assert await here.stopped_by("search", environment="dev") == []
        assert (await here.call("ListSwitches", api.ListSwitchesRequest(), environment="dev")).stops == []


async def test_stops_outlive_the_process_and_the_arrival_of_a_snapshot() -> None:
    async with Here() as here:
        await here.learn(shared_by("us"))
        await here.hear(shared_by("us"), SEARCH)
    async with Here(store=here.store) as again:
        assert await again.stopped_by("search") == [("us", "search")]
    async with Here() as behind:
        assert await behind.stopped_by("search") == []
        behind.store.commit(replacement(here.store))
        behind.node.reloaded()
        assert await behind.stopped_by("search") == [("us", "search")]


async def test_what_is_engaged_is_known_without_reading_what_ever_was() -> None:
    us = shared_by("us")

    def known(region: Here) -> tuple[list[str], list[str], list[str]]:
        node = region.node
        anew = switches.Engaged()
        anew.look(node.store)
        found = [
            (
                sorted(scope.name for p in PARTITIONS for scope in engaged.switches(p)),
                [*engaged.stops(OWN)],
                [*engaged.stops(us)],
            )
            for engaged in (node.engaged, anew)
        ]
        assert found[0] == found[1]
        return found[0]

    async with Here() as region:
        await region.learn(us)
        assert known(region) == ([], [], [])
        await region.create("switch")
        for scope in (CALC, SEARCH):
            await region.throw(scope)
        await region.hear(us, CALC, SEARCH)
        both = sorted(switches.opaque(FLEET, "prod", switches.record_name(scope)) for scope in (CALC, SEARCH))
        assert known(region) == (["calc", "search"], [], both)
        await region.throw(CALC, engaged=False)
        await region.throw(CALC, engaged=False)
        await region.hear(us, SEARCH, engaged=False)
        assert known(region)[0] == ["search"]
        assert known(region)[2] == [switches.opaque(FLEET, "prod", switches.record_name(CALC))]
        # Another store takes its place, in which nothing is engaged.
        region.node.store = MemoryStore()
        region.node.reloaded()
        assert known(region) == ([], [], [])


async def test_a_new_epoch_of_a_region_releases_nothing() -> None:
    """Whatever a home lost when it was moved or restored: only what it says of the same scope afterwards counts."""
    async with Here() as here:
        await here.learn(shared_by("us"))
        await here.hear(shared_by("us"), SEARCH, CALC)
        for epoch in (2, 4):
            await here.learn(shared_by("us", epoch=epoch))
            assert await here.stopped_by("search", "calc") == [("us", "search"), ("us", "calc")]
        now = shared_by("us", epoch=4)
        await here.hear(now, SEARCH, engaged=False)
        assert await here.stopped_by("search", "calc") == [("us", "calc")]
        assert {(stop.epoch, stop.engaged) for stop in await here.stops()} == {(1, True), (4, False)}
        await here.make_exception(CALC, "us", 1)
        assert await here.stopped_by("calc") == []
        await here.hear(now, CALC)
        assert await here.stopped_by("calc") == [("us", "calc")]
        agent = Agent(here)
        for kinds in (KINDS, STOPS):
            await agent.pump(kinds)
        assert agent.stopped_by("search", "calc") == [("us", "calc")]
    async with Here(store=here.store) as again:
        assert await again.stopped_by("search", "calc") == [("us", "calc")]


async def test_an_exception_is_for_one_stop_of_one_region() -> None:
    async with Here() as here:
        for region in ("us", "ap"):
            await here.learn(shared_by(region))
            await here.hear(shared_by(region), SEARCH, CALC)
        assert (await here.make_exception(SEARCH, "us", 1)).changed
        assert not (await here.make_exception(SEARCH, "us", 1)).changed
        assert await here.stopped_by("search") == [("ap", "search")]
        assert await here.stopped_by("calc") == [("ap", "calc"), ("us", "calc")]
        await here.make_exception(CALC, "us", 1, epoch=2)
        assert await here.stopped_by("calc") == [("ap", "calc"), ("us", "calc")]
        await here.hear(shared_by("us"), SEARCH)
        assert await here.stopped_by("search") == [("ap", "search"), ("us", "search")]


async def test_an_exception_is_recorded_with_who_and_why_and_admitted_when_the_store_is_full() -> None:
    async with Here(quota_bytes=1, free_bytes=lambda: 0) as here:
        await here.learn(shared_by("us"))
        await here.hear(shared_by("us"), SEARCH)
        await here.make_exception(SEARCH, "us", 1)
        assert await here.stopped_by("search") == []
        reply = await here.call("ListEvents", api.ListEventsRequest(kinds=["exception"]))
        [change] = reply.changes
        assert (change.meta.actor, change.meta.reason) == (AGENT, "us is unreachable")
        assert (change.exception.region, change.exception.epoch, change.exception.revision) == ("us", 1, 1)


async def test_stops_are_listed_once_with_the_first_page() -> None:
    async with Here() as here:
        await here.learn(shared_by("us"))
        await here.hear(shared_by("us"), SEARCH)
        await here.hear(shared_by("us"), CALC)
        await here.hear(shared_by("us"), CALC, engaged=False)
        for scope in (CALC, SEARCH):
            await here.throw(scope)
        await here.make_exception(SEARCH, "us", 1)
        stops = await here.stops(limit=1)
        assert [(stop.scope.name, stop.engaged, stop.excepted, stop.revision) for stop in stops] == [
            ("search", True, True, 1),
            ("calc", False, False, 3),
        ]
        assert {(stop.region, stop.epoch) for stop in stops} == {("us", 1)}
        assert [stop.scope.name for stop in await here.stops(engaged_only=True)] == ["search"]
        assert await here.stops(after="tool:calc") == []


async def test_callers_of_other_regions_are_not_shown_what_third_regions_stop() -> None:
    """Here hears of fr by way of their common law; us, outside of it, may ask here only about what is this region's."""
    atlas = Atlas(FLEET, "eu", {"eu": "eu", "fr": "eu", "us": "us"}, {"us": frozenset([GLOBAL]), "fr": frozenset()})
    async with Here(atlas=atlas) as here:
        there = shared_by("fr", reach=JURISDICTION)
        await here.learn(there)
        await here.hear(there, SEARCH)
        await here.throw(CALC)

        async def ask(method: str, request: Any, region: str) -> Any:
            packed = request.SerializeToString()
            call = Call(method, packed, AGENT, "prod", here.now_s + 5, region)
            return reply_of(method, await within(here.node.submit(call)))

        subject = {"tools": ["search", "calc"]}
        for region, stopped in (("eu", ["calc", "search"]), ("us", ["calc"])):
            found = (await ask("CheckSwitches", api.CheckSwitchesRequest(subject=subject), region)).stopped_by
            assert [view.switch.scope.name for view in found] == stopped
            assert len((await ask("ListSwitches", api.ListSwitchesRequest(), region)).stops) == len(stopped) - 1
        call = Call("Watch", snapshot().SerializeToString(), AGENT, "prod", here.now_s + 5, "us")
        following = await here.node.watch(call)
        assert [api.WatchReply.FromString(await anext(following)).kind for _ in range(2)] == [STARTED, SYNCED]
        await following.aclose()


# Watching


@pytest.fixture(params=["roomy", "tiny"])
def _tail(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny tail nearly everything is read from the store, a few events at a time."""
    if request.param == "tiny":
        monkeypatch.setattr(watch, "_TAIL_TXNS_MAX", 2)
        monkeypatch.setattr(watch, "_PAGE", 3)


def snapshot() -> api.WatchRequest:
    return api.WatchRequest(kinds=["stop"], snapshot=True)


def resumed(after: int) -> api.WatchRequest:
    return api.WatchRequest(kinds=["stop"], after_revision=after)


async def announced(here: Here, name: str) -> None:
    """What the leader does."""

    def announce(tx: Any) -> Any:
        tx.put(switches.STOP, name, Stop(engaged=True))
        return api.RequestHeader()

    await within(here.node.transact(OWN, "AnnounceStops", announce, timeout_s=5.0))


@pytest.mark.usefixtures("_tail")
async def test_stops_of_all_regions_come_in_the_order_of_this_region_s_log() -> None:
    async with Here() as here:
        us, ap = shared_by("us"), shared_by("ap", reach=JURISDICTION, epoch=3)
        for there in (us, ap):
            await here.learn(there)
        start = here.node.revision
        many = [Scope(kind=ScopeKind.SCOPE_TOOL, name=f"t{n}") for n in range(7)]
        expected = []
        for step in range(12):
            if step % 4 == 0:
                await here.hear(us, *many)
                expected.append((here.node.revision, "us", 7, 1))
            elif step % 4 == 1:
                await here.hear(ap, SEARCH)
                expected.append((here.node.revision, "ap", 1, 3))
            elif step % 4 == 2:
                await announced(here, f"s{step}")
                expected.append((here.node.revision, "", 1, 0))
            else:
                await here.throw(Scope(kind=ScopeKind.SCOPE_TOOL, name=f"own{step}"))
        for after in range(start, here.node.revision):
            following, seen, last = here.watch(resumed(after)), [], 0
            assert (await message(following)).kind == STARTED
            while last < expected[-1][0]:
                reply = await message(following)
                assert reply.revision >= last
                last = reply.revision
                if reply.kind == CHANGES:
                    homes = {change.home for change in reply.changes}
                    seen.append((reply.revision, *homes, len(reply.changes), reply.epoch))
            assert seen == [each for each in expected if each[0] > after]
            await following.aclose()


async def test_a_listing_has_the_stops_of_all_regions_with_their_epochs() -> None:
    async with Here() as here:
        us, ap = shared_by("us"), shared_by("ap", epoch=3)
        for there in (us, ap, shared_by("us", "dev")):
            await here.learn(there)
        await here.hear(us, SEARCH, CALC)
        await here.hear(ap, SEARCH)
        await here.hear(shared_by("us", "dev"), SEARCH)
        await announced(here, "own")
        following, seen = here.watch(snapshot()), []
        while (reply := await message(following)).kind != SYNCED:
            seen += [(change.home, reply.epoch, change.meta.revision) for change in reply.changes]
        assert sorted(seen) == [("", 0, here.node.revision), ("ap", 3, 1), ("us", 1, 1), ("us", 1, 1)]


async def test_where_nobody_tells_of_stops_a_watch_is_empty_and_says_how_far_it_is() -> None:
    async with Region() as region:
        following = region.watch(snapshot())
        assert [(await message(following)).kind for _ in range(3)] == [STARTED, SYNCED, PROGRESS]


async def refused(following: AsyncGenerator[bytes, None]) -> str:
    with pytest.raises(Compacted) as caught:
        await message(following)
    return caught.value.reason


async def test_a_watch_ends_when_another_region_is_learned_of() -> None:
    async with Here() as here:
        await here.learn(shared_by("us"))
        following = here.watch(resumed(here.node.revision))
        assert [(await message(following)).kind for _ in range(2)] == [STARTED, PROGRESS]
        waiting = asyncio.ensure_future(message(following))
        await here.learn(shared_by("ap"))
        with pytest.raises(Compacted) as caught:
            await within(waiting)
        assert caught.value.reason == "PARTITIONS_CHANGED"
        assert here.node.status().watchers == 0


async def test_nobody_goes_on_from_before_a_region_was_learned_of() -> None:
    """Its stops may have been copied before that, where a watch of then did not look."""
    async with Here() as here:
        await here.learn(shared_by("us"))
        before = here.node.revision
        await here.hear(shared_by("ap"), SEARCH)
        seen = here.node.revision
        await here.learn(shared_by("ap"))
        for after in (before, seen):
            assert await refused(here.watch(resumed(after))) == "PARTITIONS_CHANGED"
        assert (await message(here.watch(resumed(here.node.revision)))).kind == STARTED
        following = here.watch(snapshot())
        assert [(await message(following)).kind for _ in range(3)] == [STARTED, SNAPSHOT, SYNCED]
    async with Here(store=here.store) as again:
        assert await refused(again.watch(resumed(seen))) == "PARTITIONS_CHANGED"


async def test_a_region_learned_of_while_a_watch_waits_to_begin_is_looked_at() -> None:
    async with Here() as here:
        await here.learn(shared_by("us"))
        here.log.automatic = False
        first = asyncio.ensure_future(message(here.watch(snapshot())))
        barrier = await within(here.log.barriers.get())
        here.log.automatic = True
        await here.learn(shared_by("ap"))
        await here.hear(shared_by("ap"), SEARCH)
        barrier.answer()
        assert (await within(first)).revision == here.node.revision
        assert await here.stopped_by("search")


async def test_a_region_learned_of_before_the_listing_begins_ends_the_watch() -> None:
    async with Here() as here:
        call = Call("Watch", snapshot().SerializeToString(), AGENT, "prod", here.now_s + 5)
        following = await here.node.watch(call)
        await here.learn(shared_by("us"))
        await here.hear(shared_by("us"), SEARCH)
        with pytest.raises(Compacted) as caught:
            await within(anext(following))
        assert caught.value.reason == "PARTITIONS_CHANGED"
        await following.aclose()


async def test_after_a_snapshot_is_installed_a_watch_of_stops_begins_anew() -> None:
    async with Here() as ahead:
        await ahead.learn(shared_by("us"))
        await ahead.hear(shared_by("us"), SEARCH)
    async with Here() as behind:
        following = behind.watch(WATCH)
        assert [(await message(following)).kind for _ in range(2)] == [STARTED, PROGRESS]
        behind.store.commit(replacement(ahead.store))
        behind.node.reloaded()
        assert await refused(following) == "PARTITIONS_CHANGED"


async def test_exceptions_are_watched_where_the_switches_lie() -> None:
    flags, kills = (
        Partition(id=f"eu.prod.{kind}", home="eu", epoch=1, reach=GLOBAL, environment="prod", default_for=[kind])
        for kind in ("flag", "switch")
    )
    async with Here() as here:
        following = here.watch(api.WatchRequest(kinds=KINDS))
        await message(following)
        await here.make_exception(SEARCH, "us", 7)
        while not (reply := await message(following)).changes:
            pass
        assert [(change.kind, change.name) for change in reply.changes] == [("exception", "us/tool:search")]
    async with Region(partitions=[flags, kills]) as apart:
        with pytest.raises(Invalid) as caught:
            await message(apart.watch(api.WatchRequest(kinds=KINDS)))
        assert caught.value.reason == "PARTITION_AMBIGUOUS"
        for kinds in Mirror(1.0).split():
            assert (await message(apart.watch(api.WatchRequest(kinds=kinds)))).kind == STARTED


# What agents hold of it


class Agent:
    """A mirror of a node, fed by watches that begin again at every step, where the last ones ended."""

    def __init__(self, here: Here) -> None:
        self.here = here
        self.mirror = Mirror(1.0)
        self.mirror.of_fleet(FLEET)

    async def pump(self, kinds: tuple[str, ...]) -> None:
        """Take in everything up to the node's revision."""
        if self.mirror.resume_at(kinds) != self.here.node.revision:
            place = self.mirror.resume_at(kinds)
            request = api.WatchRequest(kinds=kinds, snapshot=place is None, after_revision=place)
            try:
                await self._take(kinds, request)
            except Compacted:
                await self._take(kinds, api.WatchRequest(kinds=kinds, snapshot=True))

    async def _take(self, kinds: tuple[str, ...], request: api.WatchRequest) -> None:
        self.mirror.restart(kinds, listing=request.snapshot)
        following = self.here.watch(request)
        try:
            while self.mirror.resume_at(kinds) != self.here.node.revision:
                # Have a watch that sees nothing say so.
                self.here.now_s += 1.0
                self.here.node._watches.tick(self.here.now_s)
                self.mirror.feed(kinds, await message(following))
        finally:
            await following.aclose()

    def stopped_by(self, *tools: str, **subject: str) -> list[tuple[str, str]]:
        self.mirror.mark(0.0, self.mirror.revision, 0)
        return [(view.region, view.switch.scope.name) for view in self.mirror.stopped(0.0, tools=tools, **subject)]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("throw"), st.sampled_from(["search", "calc"]), st.booleans()),
        st.tuples(st.sampled_from(["us", "ap"]), st.sampled_from(["search", "calc", "both"]), st.booleans()),
        st.tuples(st.just("except"), st.sampled_from(["search", "calc"]), st.sampled_from(["us", "ap"])),
        st.tuples(st.just("learn"), st.sampled_from(["us", "ap"]), st.integers(1, 2)),
        st.tuples(st.just("pump"), st.sampled_from([KINDS, STOPS]), st.none()),
    ),
    max_size=16,
)


@settings(max_examples=120, deadline=None)
@given(STEPS)
def test_an_agent_that_has_everything_says_what_the_node_says(steps: list[tuple[str, Any, Any]]) -> None:
    """Whatever was thrown, heard, excepted and learned of, in any order, and wherever its watches broke off."""
    asyncio.run(_play(steps))


async def _play(steps: list[tuple[str, Any, Any]]) -> None:
    tools = {"search": (SEARCH,), "calc": (CALC,), "both": (SEARCH, CALC)}
    epochs = {"us": 1, "ap": 1}
    async with Here() as here:
        agent = Agent(here)
        for what, first, second in steps:
            if what == "throw":
                await here.throw(tools[first][0], engaged=second)
            elif what == "except":
                for stop in await here.stops(engaged_only=True):
                    if stop.region == second:
                        await here.make_exception(tools[first][0], stop.region, stop.revision, stop.epoch)
            elif what == "learn":
                epochs[first] = max(epochs[first], second)
                await here.learn(shared_by(first, epoch=epochs[first]))
            elif what == "pump":
                await agent.pump(first)
            else:
                await here.hear(shared_by(what, epoch=epochs[what]), *tools[first], engaged=second)
        for kinds in (KINDS, STOPS):
            await agent.pump(kinds)
        assert agent.mirror.revision == here.node.revision
        for asked in (["search"], ["calc"], ["search", "calc"], ["other"]):
            # The same regions and tools; in which order they are named means nothing.
            assert sorted(agent.stopped_by(*asked)) == sorted(await here.stopped_by(*asked))
        assert sorted(map(str, agent.mirror.stops())) == sorted(map(str, await here.stops()))


async def test_an_agent_grows_old_rather_than_miss_a_region_that_was_learned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between hearing that there is another region and having its stops, a mirror does not pass for up to date."""
    monkeypatch.setattr(limits, "PROGRESS_MS_MIN", 1)
    async with Here() as here:
        agent = Agent(here)
        await here.learn(shared_by("us"))
        for kinds in (KINDS, STOPS):
            await agent.pump(kinds)
        following = here.watch(resumed(agent.mirror.revision))
        agent.mirror.mark(10.0, agent.mirror.revision, 0)
        await here.hear(shared_by("ap"), SEARCH)
        await here.learn(shared_by("ap"))
        await agent.pump(KINDS)
        # The node answers at its newest revision; the watch of stops has nothing but an end to say.
        agent.mirror.mark(20.0, here.node.revision, 0)
        assert await refused(following) == "PARTITIONS_CHANGED"
        assert agent.mirror.age_s(20.0) == 10.0
        await agent.pump(STOPS)
        assert agent.mirror.age_s(20.0) == 0.0
        assert [view.region for view in agent.mirror.stopped(20.0, tools=("search",))] == ["ap"]
