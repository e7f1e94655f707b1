"""Kill switches across regions: what is told, what is heeded, and what an exception frees."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import limits
from controlplane.errors import Invalid
from controlplane.features import federation, switches
from controlplane.identity import ENVIRONMENTS
from controlplane.kernel import keys, machine
from controlplane.kernel.store import MemoryStore, Store
from controlplane.kernel.transaction import Reader, scope_of
from controlplane.v1 import api_pb2 as api
from controlplane.v1.federation_pb2 import Shared
from controlplane.v1.records_pb2 import GLOBAL, HOME_ONLY, Partition, Scope, ScopeKind, Stop
from controlplane.v1.state_pb2 import Origin
from tests.features.test_federation import transact

FLEET, HERE, OTHERS = "fleet", "eu", ("ap", "us")
NAMES = ("environment:", "tenant:acme", "agent_type:planner", "workflow:w", "tool:search", "tool:calc")
EVERYTHING = api.Subject(tenant="acme", agent_type="planner", workflow="w", tools=["search", "calc"])
SUBJECTS = [
    api.Subject(),
    api.Subject(tenant="acme"),
    api.Subject(agent_type="planner", tools=["search"]),
    api.Subject(workflow="w", tools=["other", "calc"]),
    EVERYTHING,
]

Stopping = set[tuple[str, str, int]]
"""Region, scope by its record name, revision at home."""


def partition(region: str, kind: str, environment: str = "prod") -> Partition:
    reach = GLOBAL if kind == "stop" else HOME_ONLY
    name = f"{region}.{environment}.{kind}"
    return Partition(id=name, home=region, epoch=1, reach=reach, environment=environment, default_for=[kind])


class World:
    """This region, and others that throw switches, tell of them, and are heard of here."""

    def __init__(self) -> None:
        self.homes: dict[str, Store] = {region: MemoryStore() for region in OTHERS}
        self.here = MemoryStore()

    def throw(self, region: str, name: str, *, engaged: bool) -> None:
        scope = switches.scope_of_name(name)
        kind, run = (
            (api.EngageSwitchRequest, switches.engage) if engaged else (api.ReleaseSwitchRequest, switches.release)
        )
        transact(self.homes[region], partition(region, "switch"), lambda tx: run(tx, kind(scope=scope)))  # type: ignore[arg-type]

    def announce(self, region: str) -> set[str]:
        """Tell of everything that is news; what was told."""
        home, thrown, told = self.homes[region], partition(region, "switch"), partition(region, "stop")
        now = machine.state_of(home).revision
        news, _ = switches.unannounced(FLEET, Reader(home, thrown, now), Reader(home, told, now))
        outcome = transact(home, told, lambda tx: switches.announce(tx, FLEET, thrown, NAMES))
        assert (outcome is None) == (not news)
        return set(news)

    def hear(self, region: str) -> None:
        """Copy all that the region has told."""
        there = partition(region, "stop")
        at = federation.cursor_at(self.here, HERE, region, GLOBAL).revision
        home = self.homes[region]
        by_revision: dict[int, list[Shared]] = {}
        for event in machine.events(home, keys.domain(region, "GLOBAL"), at, machine.state_of(home).revision):
            by_revision.setdefault(event.revision, []).extend(federation.shared([event]))
        for revision, found in sorted(by_revision.items()):
            transact(
                self.here,
                there,
                lambda tx, r=revision, f=found: federation.take_transaction(tx, HERE, r, f),  # type: ignore[misc]
            )

    def hear_of(self, there: Partition, name: str, *, engaged: bool, revision: int, environment: str = "prod") -> None:
        """Copy one stop, as its home may have told it."""
        key = keys.within(scope_of(there), "stop", switches.opaque(FLEET, environment, name))
        origin = Origin(home=there.home, epoch=there.epoch, revision=revision, created=revision, version=1)
        copy = Shared(key=key, value=Stop(engaged=engaged).SerializeToString(), origin=origin)
        transact(self.here, there, lambda tx: federation.take_transaction(tx, HERE, revision, [copy]))

    def make_exception(self, region: str, name: str, revision: int, epoch: int = 1) -> None:
        request = api.ExceptSwitchRequest(
            scope=switches.scope_of_name(name), region=region, epoch=epoch, revision=revision
        )
        transact(self.here, partition(HERE, "switch"), lambda tx: switches.make_exception(tx, request))

    def abroad(self, environment: str = "prod") -> switches.Abroad:
        own = Reader(self.here, partition(HERE, "switch", environment), 0)
        readers = [Reader(self.here, partition(region, "stop", environment), 0) for region in OTHERS]
        return switches.Abroad(FLEET, environment, own, readers)

    def stopping(self, subject: api.Subject = EVERYTHING, environment: str = "prod") -> Stopping:
        views = list(self.abroad(environment).stopping(subject))
        for view in views:
            assert view.switch.engaged
            told = (view.switch.engaged_by, view.switch.engaged_reason, view.meta.actor, view.meta.action)
            assert not any((*told, view.meta.reason))
        found = {(view.region, switches.record_name(view.switch.scope), view.meta.revision) for view in views}
        assert len(found) == len(views)
        return found


REGIONS, SWITCHES = st.sampled_from(OTHERS), st.sampled_from(NAMES)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("throw"), REGIONS, SWITCHES, st.booleans()),
        st.tuples(st.just("announce"), REGIONS, SWITCHES, st.booleans()),
        st.tuples(st.just("hear"), REGIONS, SWITCHES, st.booleans()),
        st.tuples(st.just("except"), REGIONS, SWITCHES, st.booleans()),
    ),
    min_size=10,
    max_size=40,
)


class Model:
    """What is said of each switch at its home, by its home, and here: engaged or not, and for the how many-th time."""

    def __init__(self) -> None:
        self.thrown: dict[tuple[str, str], tuple[bool, int]] = {}
        self.told: dict[tuple[str, str], tuple[bool, int]] = {}
        self.heard: dict[tuple[str, str], tuple[bool, int]] = {}
        self.excepted: dict[tuple[str, str], int] = {}

    def throw(self, region: str, name: str, engaged: bool) -> None:
        was, times = self.thrown.get((region, name), (False, 0))
        if was != engaged:
            self.thrown[region, name] = (engaged, times + engaged)

    def announce(self, region: str) -> set[str]:
        news = set()
        for of, (engaged, times) in self.thrown.items():
            was, told = self.told.get(of, (False, 0))
            if of[0] == region and (engaged != was or (engaged and times != told)):
                self.told[of] = (engaged, times)
                news.add(of[1])
        return news

    def hear(self, region: str) -> None:
        self.heard |= {of: told for of, told in self.told.items() if of[0] == region}

    def stopping(self) -> set[tuple[str, str]]:
        return {of for of, (engaged, times) in self.heard.items() if engaged and self.excepted.get(of) != times}


@settings(max_examples=250, deadline=None)
@given(STEPS)
def test_an_agent_is_stopped_by_what_was_heard_and_not_excepted(steps: list[tuple[str, str, str, bool]]) -> None:
    world, model = World(), Model()
    for what, region, name, engaged in steps:
        if what == "throw":
            world.throw(region, name, engaged=engaged)
            model.throw(region, name, engaged)
        elif what == "announce":
            assert world.announce(region) == model.announce(region)
        elif what == "hear":
            world.hear(region)
            model.hear(region)
        else:
            for of, its_name, revision in world.stopping():
                if (of, its_name) == (region, name):
                    world.make_exception(region, name, revision)
                    model.excepted[region, name] = model.heard[region, name][1]
        found = world.stopping()
        assert {(of, its_name) for of, its_name, _ in found} == model.stopping()
        for subject in SUBJECTS:
            covering = set(switches.covering(subject))
            assert world.stopping(subject) == {each for each in found if each[1] in covering}


STOPS = st.lists(st.tuples(REGIONS, SWITCHES, st.booleans()), max_size=12)


@settings(max_examples=150, deadline=None)
@given(STOPS, st.lists(st.tuples(REGIONS, SWITCHES, st.integers(1, 14), st.integers(1, 2)), max_size=6), STOPS)
def test_hearing_of_another_stop_frees_nobody(
    before: list[tuple[str, str, bool]], excepted: list[tuple[str, str, int, int]], more: list[tuple[str, str, bool]]
) -> None:
    world, revision = World(), 1
    for region, name, engaged in before:
        revision += 1
        world.hear_of(partition(region, "stop"), name, engaged=engaged, revision=revision)
    for region, name, of, epoch in excepted:
        # Of the past: nobody knows what a stop that is yet to come will be called.
        world.make_exception(region, name, max(1, min(of, revision)), epoch)
    for region, name, _ in more:
        revision += 1
        stopped = [{each[:2] for each in world.stopping(subject)} for subject in SUBJECTS]
        world.hear_of(partition(region, "stop"), name, engaged=True, revision=revision)
        for subject, was in zip(SUBJECTS, stopped, strict=True):
            assert was <= {each[:2] for each in world.stopping(subject)}


@settings(max_examples=150, deadline=None)
@given(STOPS, st.integers(0, 11))
def test_an_exception_frees_from_exactly_one(stops: list[tuple[str, str, bool]], which: int) -> None:
    world = World()
    for revision, (region, name, engaged) in enumerate(stops, 1):
        world.hear_of(partition(region, "stop"), name, engaged=engaged, revision=revision)
    before = world.stopping()
    if not before:
        return
    one = sorted(before)[which % len(before)]
    world.make_exception(*one)
    assert world.stopping() == before - {one}


@pytest.mark.parametrize(("epoch", "off"), [(2, 0), (1, 1), (1, -1)])
def test_an_exception_for_another_epoch_or_revision_frees_nobody(epoch: int, off: int) -> None:
    world = World()
    world.hear_of(partition("us", "stop"), "tool:search", engaged=True, revision=7)
    world.make_exception("us", "tool:search", 7 + off, epoch)
    assert world.stopping() == {("us", "tool:search", 7)}


def test_the_next_stop_of_the_same_scope_counts_again() -> None:
    world = World()

    def told() -> None:
        world.announce("us")
        world.hear("us")

    world.throw("us", "tool:search", engaged=True)
    told()
    [(_, _, revision)] = world.stopping()
    world.make_exception("us", "tool:search", revision)
    assert not world.stopping()
    told()
    assert not world.stopping()
    world.throw("us", "tool:search", engaged=False)
    world.throw("us", "tool:search", engaged=True)
    # Released and engaged before anybody was told of either: still another stop.
    told()
    [(_, _, again)] = world.stopping()
    assert again > revision
    world.throw("us", "tool:search", engaged=False)
    told()
    assert not world.stopping()


def test_what_is_told_says_neither_what_nor_who_nor_why() -> None:
    world = World()
    world.throw("us", "tenant:acme", engaged=True)
    world.announce("us")
    home = world.homes["us"]
    [event] = machine.events(home, keys.domain("us", "GLOBAL"), 0, machine.state_of(home).revision)
    [copy] = federation.shared([event])
    for secret in (b"acme", b"tenant", b"secret"):
        assert secret not in copy.SerializeToString()


def test_a_switch_of_scope_region_never_travels() -> None:
    world = World()
    scope = api.EngageSwitchRequest(scope=Scope(kind=ScopeKind.SCOPE_REGION))
    transact(world.homes["us"], partition("us", "switch"), lambda tx: switches.engage(tx, scope))
    assert world.announce("us") == set()
    thrown, told = partition("us", "switch"), partition("us", "stop")
    assert transact(world.homes["us"], told, lambda tx: switches.announce(tx, FLEET, thrown, ["region:"])) is None
    # Nor is it heeded if some region tells of one all the same.
    world.hear_of(told, "region:", engaged=True, revision=9)
    assert not world.stopping()


@pytest.mark.parametrize("environment", [each for each in ENVIRONMENTS if each != "prod"])
def test_other_environments_go_on(environment: str) -> None:
    world = World()
    world.hear_of(partition("us", "stop"), "environment:", engaged=True, revision=1)
    world.hear_of(partition("us", "stop"), "tool:search", engaged=True, revision=2)
    assert len(world.stopping()) == 2
    assert not world.stopping(environment=environment)
    # The id of one environment means nothing in another, wherever it turns up.
    world.hear_of(partition("us", "stop", environment), "tool:search", engaged=True, revision=3, environment="prod")
    assert not world.stopping(environment=environment)


def test_ids_differ_by_fleet_environment_and_scope() -> None:
    ids = {
        switches.opaque(fleet, environment, name)
        for fleet in ("f", "g")
        for environment in ENVIRONMENTS
        for name in NAMES
    }
    assert len(ids) == 2 * len(ENVIRONMENTS) * len(NAMES)
    assert all(len(each) == 32 and set(each) <= set("0123456789abcdef") for each in ids)


def test_the_id_is_what_it_was() -> None:
    """Regions of different releases have to agree on it."""
    assert switches.opaque("demo", "prod", "tenant:acme") == "649776ffbd993dd21f65a34a34acd987"


def listed(world: World, engaged_only: bool = False) -> list[tuple[str, bool, bool, str]]:
    return [
        (view.region, view.engaged, view.excepted, switches.record_name(view.scope) if view.HasField("scope") else "")
        for view in world.abroad().stops(engaged_only)
    ]


def test_stops_are_listed_with_what_is_known_of_them_engaged_ones_first() -> None:
    world = World()
    for revision, (name, engaged) in enumerate([("tool:a", False), ("tool:b", True), ("tool:c", True)], 1):
        world.hear_of(partition("us", "stop"), name, engaged=engaged, revision=revision)
    engage = api.EngageSwitchRequest(scope=switches.scope_of_name("tool:b"))
    transact(world.here, partition(HERE, "switch"), lambda tx: switches.engage(tx, engage))
    world.make_exception("us", "tool:c", 3)
    first = sorted(listed(world)[:2], key=lambda each: each[3])
    assert first == [("us", True, False, "tool:b"), ("us", True, True, "tool:c")]
    assert listed(world)[2:] == [("us", False, False, "")]
    assert sorted(listed(world, engaged_only=True)) == sorted(first)


def test_a_listing_is_bounded_and_prefers_what_is_engaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAGE_MAX", 3)
    world = World()
    for revision in range(1, 9):
        world.hear_of(partition("us", "stop"), f"tool:t{revision}", engaged=revision > 6, revision=revision)
    assert [each[1] for each in listed(world)] == [True, True, False]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"region": "us", "epoch": 1, "revision": 1, "scope": {"kind": ScopeKind.SCOPE_REGION}}, "EXCEPTION_MALFORMED"),
        ({"region": "us", "epoch": 0, "revision": 1}, "EXCEPTION_MALFORMED"),
        ({"region": "us", "epoch": 1, "revision": 0}, "EXCEPTION_MALFORMED"),
        ({"region": "us/x", "epoch": 1, "revision": 1}, "EXCEPTION_MALFORMED"),
        ({"region": "", "epoch": 1, "revision": 1}, "NAME_EMPTY"),
        ({"region": HERE, "epoch": 1, "revision": 1}, "EXCEPTION_OF_OWN"),
        ({"region": "us", "epoch": 1, "revision": 1, "scope": {"kind": 99}}, "SCOPE_UNKNOWN"),
    ],
)
def test_an_exception_that_makes_no_sense_is_refused(request_: dict[str, Any], reason: str) -> None:
    request = api.ExceptSwitchRequest(**{"scope": {"kind": ScopeKind.SCOPE_TOOL, "name": "t"}, **request_})
    with pytest.raises(Invalid) as caught:
        transact(MemoryStore(), partition(HERE, "switch"), lambda tx: switches.make_exception(tx, request))
    assert caught.value.reason == reason
