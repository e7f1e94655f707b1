"""Whether a region is well enough to be cut off from others, and whether it has caught up."""

import pytest

from controlplane import limits
from controlplane.drills import steadiness
from controlplane.drills.nodes import Look
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import GLOBAL, Former, Partition
from tests.drills.conftest import look


def link(region="us-east", state="up", age_ms=300, *, listing=False):
    views = [api.View(reach=GLOBAL, revision=9, age_ms=age_ms, listing=listing)]
    return api.Link(region=region, state=state, reason="because", views=views)


def looks(*links):
    """What the nodes say: only the leader knows its links itself."""
    found = {name: look(name) for name in ("n1", "n2", "n3")}
    leading = api.GetStatusReply()
    leading.CopyFrom(found["n1"].status)
    leading.role = "leader"
    leading.links.extend(links)
    found["n2"].status.links.append(link(state="down"))
    return {**found, "n1": Look(found["n1"].address, leading, found["n1"].faults)}


def test_the_regions_are_those_that_the_leader_has_links_with():
    assert steadiness.facts(looks(link(), link("eu-central"))).regions == ("us-east", "eu-central")
    assert steadiness.facts({"n1": look("n1")}).regions == ()


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (link(state="down"), "is down: because"),
        (link(state="paused"), "is paused: because"),
        (link(age_ms=6_000), "not up to date"),
        (link(listing=True), "not up to date"),
    ],
)
def test_what_is_degraded_already_is_not_cut(found, word):
    (problem,) = steadiness.problems_between(looks(found, link("eu-central")), ["us-east", "eu-central"])
    assert word in problem
    assert steadiness.problems_between(looks(found, link("eu-central")), ["eu-central"]) == []


def test_caught_up_is_what_is_of_a_moment_after_healing():
    assert steadiness.caught_up(looks(link(age_ms=300)), ["us-east"], 301)
    assert not steadiness.caught_up(looks(link(age_ms=300)), ["us-east"], 300)
    assert not steadiness.caught_up(looks(link(state="down")), ["us-east"], 1_000)
    assert not steadiness.caught_up(looks(link(listing=True)), ["us-east"], 1_000)
    assert not steadiness.caught_up(looks(), ["us-east"], 1_000)


def test_a_region_of_one_node_may_be_cut_off_but_not_be_broken():
    one = {"n1": look("n1")}
    assert steadiness.problems(one, nodes_min=1) == []
    assert steadiness.problems(one) == ["the region has one node: it survives no fault"]


def place(state, home="eu-west", epoch=3, **more):
    former = [Former(home="us-east", epoch=1)] * more.pop("moved", 0)
    partition = Partition(id="p", home=home, epoch=epoch, default_for=more.pop("default_for", ["flag"]), former=former)
    return api.PartitionView(partition=partition, state=state, **more)


@pytest.mark.parametrize(
    ("here", "there", "why"),
    [
        (place("home"), place("copy"), ""),
        (place("sealed"), place("copy"), "under way"),
        (place("adopting"), place("copy"), "under way"),
        (place("copy", "us-east"), place("home", "us-east"), "is at home in us-east, not in eu-west"),
        (place("home", default_for=["stop"]), place("copy"), "is for stops"),
        (place("home", moved=limits.HOMES_MAX - 2), place("copy"), ""),
        (place("home", moved=limits.HOMES_MAX - 1), place("copy"), "was moved 63 times"),
        (place("home", quarantined=1), place("copy"), "in eu-west records of p are in quarantine"),
        (place("home"), place("copy", quarantined=1), "in us-east records of p are in quarantine"),
        (place("home"), place("left"), "us-east does not see p at home"),
        (place("home"), place("copy", epoch=2), "us-east does not see p at home"),
    ],
)
def test_what_keeps_a_home_from_being_moved_and_back(here, there, why):
    found = steadiness.problems_of_move({"eu-west": here, "us-east": there}, "eu-west")
    assert any(why in each for each in found) if why else found == []
