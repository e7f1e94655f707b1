"""What other regions stop, as agents meet it: in a mirror by itself, and over a real server."""

from __future__ import annotations

import asyncio
from timeit import repeat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import sdk
from controlplane.errors import Compacted
from controlplane.features import switches
from controlplane.sdk import SCOPE_AGENT_TYPE, SCOPE_ENVIRONMENT, SCOPE_TOOL, Scope, Stopped
from controlplane.sdk.mirror import KINDS, STOPS
from controlplane.testing import Plane
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import records_pb2 as records

from .scripted import Answer, connected, eventually
from .test_mirror import changed, fed, fresh, switch
from .test_watching import accept, asked, listing, watching

W = api.WatchReply
FLEET = "fleet"
SEARCH = Scope(kind=SCOPE_TOOL, name="search")


def stop(
    name: str = "tool:search",
    region: str = "us",
    *,
    engaged: bool = True,
    revision: int = 5,
    created: int = 1,
    environment: str = "prod",
) -> api.Change:
    return api.Change(
        kind="stop",
        name=switches.opaque(FLEET, environment, name),
        home=region,
        meta=api.Meta(revision=revision, created=created, actor="somebody", reason="some reason"),
        stop=records.Stop(engaged=engaged),
    )


def exception(name: str = "tool:search", region: str = "us", revision: int = 5, epoch: int = 1) -> api.Change:
    value = records.StopException(region=region, epoch=epoch, revision=revision)
    return api.Change(kind="exception", name=switches.exception_name(region, name), exception=value)


class Fed:
    """A mirror of a region of the fleet, and the revision that it has come to."""

    def __init__(self, *stops: api.Change, fleet: str = FLEET) -> None:
        self.mirror = fresh()
        self.mirror.of_fleet(fleet)
        self.revision = 10
        if stops:
            self.hear(*stops)

    def hear(self, *stops: api.Change, epoch: int = 1) -> list[api.SwitchView]:
        self.revision += 1
        message = W(kind=W.CHANGES, revision=self.revision, changes=stops, epoch=epoch)
        told = self.mirror.feed(STOPS, message)
        self.mirror.feed(KINDS, W(kind=W.PROGRESS, revision=self.revision))
        return told

    def own(self, *changes: api.Change) -> list[api.SwitchView]:
        self.revision += 1
        return fed(self.mirror, changed(self.revision, *changes))

    def stopped(self, *tools: str, tenant: str = "") -> list[tuple[str, str]]:
        return [(view.region, view.switch.scope.name) for view in self.mirror.stopped(0.0, tenant, tools=tools)]


# The mirror by itself


@pytest.mark.parametrize("environment", ["dev", "test", "staging", "prod"])
def test_a_stop_of_another_region_stops_whom_it_covers(environment: str) -> None:
    agent = Fed(stop(environment=environment), stop("tenant:acme", environment=environment))
    assert agent.stopped("search") == [("us", "search")]
    assert agent.stopped("other", "search", tenant="acme") == [("us", "acme"), ("us", "search")]
    assert agent.stopped("other") == []
    [view] = agent.mirror.stopped(0.0, tools=("search",))
    assert view.switch == records.Switch(scope=SEARCH, engaged=True)
    assert (view.meta.revision, view.meta.actor, view.meta.reason) == (5, "", "")
    agent.hear(stop(environment=environment, engaged=False, revision=6))
    assert agent.stopped("search") == []


def test_own_switches_and_other_regions_add_up() -> None:
    agent = Fed(stop("tenant:acme", "us"), stop("tenant:acme", "ap"))
    agent.own(switch("acme", engaged=True, revision=11))
    assert agent.stopped(tenant="acme") == [("", "acme"), ("us", "acme"), ("ap", "acme")]
    agent.own(switch("acme", engaged=False, revision=12))
    agent.hear(stop("tenant:acme", "us", engaged=False, revision=6))
    assert agent.stopped(tenant="acme") == [("ap", "acme")]


def test_an_exception_is_for_exactly_one_stop() -> None:
    agent = Fed(stop(region="us"), stop(region="ap"))
    agent.own(exception(region="us", epoch=2), exception("tool:other"))
    assert agent.stopped("search") == [("us", "search"), ("ap", "search")]
    agent.own(exception(region="us"))
    assert agent.stopped("search") == [("ap", "search")]
    assert [(each.region, each.excepted) for each in agent.mirror.stops()] == [("us", True), ("ap", False)]
    agent.hear(stop(region="us", revision=9))
    assert agent.stopped("search") == [("us", "search"), ("ap", "search")]


def test_a_stop_told_of_under_a_new_epoch_is_another_one() -> None:
    agent = Fed(stop())
    agent.own(exception())
    assert agent.stopped("search") == []
    agent.hear(stop(), epoch=2)
    assert agent.stopped("search") == [("us", "search")]


def test_a_stop_of_an_earlier_epoch_stays_until_its_region_says_something_of_the_same() -> None:
    agent = Fed(stop(), stop("tool:other"))
    assert [each.switch.engaged for each in agent.hear(stop("tool:other", engaged=False), epoch=2)] == [False]
    assert agent.stopped("search", "other") == [("us", "search")]
    # What was told of another time is over.
    agent.hear(stop("tool:other", revision=9), epoch=1)
    assert agent.stopped("search", "other") == [("us", "search")]
    assert sorted((each.epoch, each.engaged) for each in agent.mirror.stops()) == [(1, True), (2, False)]


def test_where_a_region_tells_of_one_scope_twice_the_engaged_one_counts() -> None:
    """In two partitions, one after the other: what is released in one is not released in the other."""
    agent = Fed(stop(created=1), stop(created=4, revision=7))
    agent.hear(stop(created=4, revision=8, engaged=False))
    assert agent.stopped("search") == [("us", "search")]


def test_stops_of_the_own_region_are_its_switches_affair() -> None:
    agent = Fed(stop(region=""))
    assert agent.stopped("search") == []
    assert agent.mirror.stops() == ()


def test_as_long_as_the_fleet_is_not_known_every_stop_stops_everybody() -> None:
    agent = Fed(stop(), fleet="")
    agent.own(exception())
    [view] = agent.mirror.stopped(0.0, "any", "planner")
    assert (view.region, view.switch.engaged, view.switch.scope.kind) == ("us", True, 0)
    assert view.switch.scope.name in str(Stopped((view,)))
    agent.mirror.of_fleet(FLEET)
    assert agent.stopped("any") == agent.stopped("search") == []
    agent.mirror.of_fleet("")
    agent.hear(stop(revision=6))
    assert agent.stopped("any") == []
    assert agent.stopped("search") == [("us", "search")]


def test_another_fleet_s_ids_stop_nobody_here() -> None:
    assert Fed(stop(), fleet="another").stopped("search") == []


def test_a_listing_of_stops_replaces_stops_and_nothing_else() -> None:
    agent = Fed(stop(), stop("tool:old"))
    agent.own(switch("acme", engaged=True, revision=11))
    agent.mirror.restart(STOPS, listing=True)
    agent.mirror.feed(STOPS, W(kind=W.STARTED, revision=20))
    agent.mirror.feed(STOPS, W(kind=W.SNAPSHOT, revision=20, changes=[stop("tool:new")], epoch=1))
    assert agent.stopped("old", "new", tenant="acme") == [("", "acme"), ("us", "old")]
    agent.mirror.feed(STOPS, W(kind=W.SYNCED, revision=20))
    assert agent.stopped("search", "old", "new", tenant="acme") == [("", "acme"), ("us", "new")]


def test_listeners_are_told_what_is_known() -> None:
    agent = Fed()
    [told] = agent.hear(stop())
    assert (told.region, told.switch.engaged, told.switch.scope.kind) == ("us", True, 0)
    assert told.switch.scope.name == switches.opaque(FLEET, "prod", "tool:search")
    value = records.Switch(scope=SEARCH, engaged=True)
    known = agent.own(api.Change(kind="switch", name="tool:search", switch=value))
    assert [(each.region, each.switch.scope.name) for each in known] == [("", "search"), ("us", "search")]
    [freed] = agent.own(exception())
    assert (freed.region, freed.switch.engaged, freed.switch.scope) == ("us", False, SEARCH)
    [again] = agent.hear(stop(revision=6))
    assert (again.region, again.switch.engaged) == ("us", True)
    assert agent.hear(stop(revision=6)) == []


def test_a_check_stays_cheap_whatever_others_stop() -> None:
    """An order of magnitude above the aim, so that it fails for a wrong design and not for a busy machine."""
    quiet = Fed()
    loud = Fed(*(stop(f"tool:t{n}", revision=n + 1, created=n + 1) for n in range(500)))
    for agent in (quiet, loud):
        check = agent.mirror.stopped
        check(0.0, "acme", "planner", "w", ("t",))
        cost = min(repeat(lambda: check(0.0, "acme", "planner", "w", ("t",)), number=1000)) / 1000  # noqa: B023
        assert cost < 10e-6


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["us", "ap"]), st.sampled_from("abc"), st.booleans()), max_size=12),
    st.sampled_from(["us", "ap"]),
    st.sampled_from("abc"),
    st.integers(1, 14),
)
def test_hearing_of_one_more_stop_frees_nobody(
    before: list[tuple[str, str, bool]], region: str, tool: str, excepted: int
) -> None:
    agent = Fed()
    for revision, (of, name, engaged) in enumerate(before, 1):
        agent.hear(stop(f"tool:{name}", of, engaged=engaged, revision=revision))
    # Of the past: nobody knows what a stop that is yet to come will be called.
    agent.own(exception(f"tool:{tool}", region, min(excepted, max(1, len(before)))))
    stopped = {tools: set(agent.stopped(*tools)) for tools in ("a", "b", "c", "abc")}
    agent.hear(stop(f"tool:{tool}", region, revision=len(before) + 2))
    for tools, was in stopped.items():
        assert was <= set(agent.stopped(*tools))
    assert (region, tool) in agent.stopped(tool)


# With a region on the other end


async def test_another_region_s_kill_reaches_an_agent(control_plane: Plane) -> None:
    async with control_plane.connect() as cp:
        heard: list[tuple[str, bool]] = []
        cp.on_kill_change(lambda view: heard.append((view.region, view.switch.engaged)))
        cp.ensure_alive(tools=("search",))
        await cp.mirror_synced(await asyncio.to_thread(control_plane.kill_abroad, SEARCH))
        with pytest.raises(Stopped, match="tool:search of elsewhere"):
            cp.ensure_alive(tools=("search",))
        cp.ensure_alive(tools=("other",))
        served = await cp.check_switches(sdk.Subject(tools=["search"]))
        assert tuple(served.stopped_by) == cp.check(sdk.Subject(tools=["search"]))
        await cp.mirror_synced(await asyncio.to_thread(control_plane.kill_abroad, SEARCH, "us"))
        await cp.mirror_synced(await asyncio.to_thread(control_plane.revive_abroad, SEARCH))
        assert [view.region for view in cp.stopped(tools=("search",))] == ["us"]
        await cp.mirror_synced(await asyncio.to_thread(control_plane.revive_abroad, SEARCH, "us"))
        cp.ensure_alive(tools=("search",))
        await eventually(lambda: len(heard) == 4)
        assert heard == [("elsewhere", True), ("us", True), ("elsewhere", False), ("us", False)]


async def test_an_agent_that_begins_later_is_stopped_too(control_plane: Plane) -> None:
    await asyncio.to_thread(control_plane.kill_abroad, Scope(kind=SCOPE_ENVIRONMENT))
    async with control_plane.connect() as cp:
        with pytest.raises(Stopped):
            cp.ensure_alive(agent_type="planner")


async def test_an_exception_reaches_an_agent(control_plane: Plane) -> None:
    async with control_plane.connect() as cp:
        planner = Scope(kind=SCOPE_AGENT_TYPE, name="planner")
        await asyncio.to_thread(control_plane.kill_abroad, planner)
        [found] = (await cp.list_switches()).stops
        reply = await cp.except_switch(planner, found.region, found.epoch, found.revision, reason="cut off")
        await cp.mirror_synced(reply.header.revision)
        cp.ensure_alive(agent_type="planner")
        assert (await cp.list_switches()).stops[0].excepted
        await asyncio.to_thread(control_plane.revive_abroad, planner)
        await cp.mirror_synced(await asyncio.to_thread(control_plane.kill_abroad, planner))
        with pytest.raises(Stopped):
            cp.ensure_alive(agent_type="planner")


def test_the_same_for_programs_without_a_loop(control_plane: Plane) -> None:
    with control_plane.connect_sync() as cp:
        cp.mirror_synced(control_plane.kill_abroad(SEARCH))
        with pytest.raises(Stopped):
            cp.ensure_alive(tools=("search",))
        [found] = cp.list_switches().stops
        cp.mirror_synced(
            cp.except_switch(SEARCH, found.region, found.epoch, found.revision, reason="x").header.revision
        )
        cp.ensure_alive(tools=("search",))


async def test_who_waits_for_a_revision_does_not_wait_for_the_quiet_watch(control_plane: Plane) -> None:
    """The watch of other regions' stops hears nothing of a flag, and reports by itself once a second."""
    async with control_plane.connect() as cp:
        began = asyncio.get_running_loop().time()
        for n in range(4):
            await cp.mirror_synced(await asyncio.to_thread(control_plane.set_flag, "agent_model", f"m{n}"))
        assert asyncio.get_running_loop().time() - began < 2.0


async def test_when_a_region_is_learned_of_the_mirror_lists_again_and_keeps_what_it_has_meanwhile() -> None:
    async with watching(accept, mirror=True) as (cp, [node]):
        await node.push(W(kind=W.CHANGES, revision=11, changes=[stop()], epoch=1))
        await eventually(lambda: bool(cp.mirror.stops()))
        changed_: list[Answer] = [Compacted("others", reason="PARTITIONS_CHANGED")]
        [first] = await connected(node)
        first.script = lambda each: changed_.pop() if changed_ and b"stop" in each.request else None
        nudged = asyncio.create_task(cp.mirror_synced(30))
        await eventually(lambda: len(asked(node, "stop")) == 3)
        assert asked(node, "stop")[-1].snapshot
        # The scripted node says of no fleet: everybody is stopped.
        with pytest.raises(Stopped):
            cp.ensure_alive()
        await listing(node, 30)
        await nudged
        cp.ensure_alive()
