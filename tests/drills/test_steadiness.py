"""Whether a region is well enough to be cut off from others, and whether it has caught up."""

import pytest

from controlplane.drills import steadiness
from controlplane.drills.nodes import Look
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import GLOBAL
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
