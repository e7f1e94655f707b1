"""What a drill would do, without doing it."""

from dataclasses import replace

import pytest

from controlplane import limits
from controlplane.drills import scenarios
from controlplane.drills.faults import Kind
from controlplane.drills.scenarios import SCENARIOS, Facts, Options, Until
from controlplane.errors import Invalid

REGIONS = ("eu-central", "us-east")
THREE = Facts("n2", ("n1", "n2", "n3"), REGIONS)
WITH_EAST = replace(THREE, there=(("us-east", ("m1", "m2")),))
WITH_BOTH = replace(THREE, there=(("us-east", ("m1",)), ("eu-central", ("c1",))))
FIVE = Facts("n4", ("n1", "n2", "n3", "n4", "n5"), REGIONS)
MOVING = Options(moved="eu-west.prod.shared")


def strikes(plan):
    return [strike for step in plan.steps for strike in step.strikes]


@pytest.mark.parametrize("facts", [THREE, FIVE], ids=["three", "five"])
@pytest.mark.parametrize("name", sorted({*SCENARIOS} - {"move-home"}))
def test_every_drill_that_breaks_something_is_framed_by_calm_bounded_and_says_what_it_does(name, facts):
    # Which of several is to be lost has to be said.
    plan = scenarios.plan(name, facts, Options(regions=("us-east",) if name == "region-loss" else ()))
    first, *_, last = plan.steps
    assert not first.strikes
    assert not last.strikes
    assert first.load_s == last.load_s == scenarios.CALM_S
    assert strikes(plan)
    assert all(limits.FAULT_MS_MIN <= each.duration_ms <= limits.FAULT_MS_MAX for each in strikes(plan))
    assert plan.struck <= set(facts.nodes)
    assert plan.blast
    assert all(step.until is Until.WELL for step in plan.steps if step.strikes)
    assert all(step.load_s * 1000 >= each.duration_ms for step in plan.steps for each in step.strikes)
    assert plan.rto_target_ms <= plan.silence_ms_max
    assert plan.seconds * 1000 < limits.RESERVATION_MS_MAX


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("kill-leader", [Kind.KILL]),
        ("isolate-leader", [Kind.CUT]),
        ("one-way-loss", [Kind.CUT_OUT, Kind.CUT_IN]),
        ("pause-leader", [Kind.PAUSE]),
        ("divergent-rejoin", [Kind.CUT]),
        ("kill-switch", [Kind.CUT]),
    ],
)
def test_the_leader_is_struck(name, kinds):
    found = strikes(scenarios.plan(name, THREE))
    assert [each.kind for each in found] == kinds
    assert {each.node for each in found} == {"n2"}


@pytest.mark.parametrize(("facts", "lost"), [(THREE, 2), (FIVE, 3)])
def test_a_majority_is_lost_at_one_moment(facts, lost):
    (step,) = [step for step in scenarios.plan("majority-loss", facts).steps if step.strikes]
    assert len(step.strikes) == lost
    assert facts.leader in {each.node for each in step.strikes}


def test_a_rolling_restart_touches_every_node_once_and_the_leader_last():
    plan = scenarios.plan("rolling-restart", FIVE)
    assert [each.node for each in strikes(plan)] == ["n1", "n2", "n3", "n5", "n4"]
    assert all(len(step.strikes) <= 1 for step in plan.steps)


def test_only_a_follower_is_replaced():
    plan = scenarios.plan("replace-node", THREE)
    assert plan.replaced == "n3"
    assert [each.kind for each in strikes(plan)] == [Kind.REPLACE]


def test_a_rejoining_node_is_left_behind_by_more_than_the_engines_window_or_all_that_is_kept():
    def behind(**options):
        return max(step.bulk_bytes for step in scenarios.plan("divergent-rejoin", THREE, Options(**options)).steps)

    assert behind() > 64 * 1024
    # What a log keeps (16 MiB), and half as much again before it is trimmed.
    assert behind(past_compaction=True) > 24 << 20


def test_what_the_operator_chooses_is_done():
    plan = scenarios.plan("kill-leader", THREE, Options(down_s=7, calm_s=0.5, kill_switch=True))
    assert [each.duration_ms for each in strikes(plan)] == [7000]
    assert plan.steps[0].load_s == 0.5
    assert plan.kill_switch
    assert not scenarios.plan("kill-leader", THREE).kill_switch
    assert scenarios.plan("kill-switch", THREE).kill_switch


@pytest.mark.parametrize(
    ("name", "facts", "options", "reason"),
    [
        ("nothing", THREE, Options(), "DRILL_UNKNOWN"),
        ("kill-leader", Facts("n1", ("n1",)), Options(), "REGION_TOO_SMALL"),
        ("kill-leader", THREE, Options(down_s=121), "OUT_OF_RANGE"),
        ("pause-leader", THREE, Options(down_s=3), "OUT_OF_RANGE"),
        ("region-cut", Facts("n1", ("n1", "n2", "n3")), Options(), "PEER_UNKNOWN"),
        ("region-cut", THREE, Options(regions=("eu-west",)), "PEER_UNKNOWN"),
        ("region-cut", WITH_EAST, Options(), "PEER_UNKNOWN"),
        ("kill-under-partition", WITH_EAST, Options(regions=("eu-central",)), "PEER_UNKNOWN"),
        ("kill-under-partition", replace(THREE, there=WITH_EAST.there * 2), Options(), "PEER_UNKNOWN"),
        ("region-loss", THREE, Options(), "PEER_UNKNOWN"),
        ("move-home", WITH_EAST, Options(), "PARTITION_MISSING"),
        ("move-home", THREE, MOVING, "PEER_UNKNOWN"),
        ("move-home", WITH_EAST, replace(MOVING, regions=("eu-central",)), "PEER_UNKNOWN"),
        ("move-home", WITH_BOTH, MOVING, "PEER_UNKNOWN"),
        ("move-home", replace(WITH_EAST, regions=("eu-central",)), MOVING, "PEER_UNKNOWN"),
        ("move-home", WITH_EAST, replace(MOVING, kill_switch=True), "OUT_OF_RANGE"),
        ("region-loss", WITH_EAST, Options(regions=("eu-central",)), "PEER_UNKNOWN"),
        ("region-loss", THREE, Options(regions=("us-east",), pause_there=True), "PEER_UNKNOWN"),
        ("region-loss", THREE, Options(regions=("us-east",), copied="eu-west.prod.x"), "PARTITION_FOREIGN"),
    ],
)
def test_what_cannot_be_planned(name, facts, options, reason):
    with pytest.raises(Invalid) as raised:
        scenarios.plan(name, facts, options)
    assert raised.value.reason == reason


def test_a_region_is_cut_off_at_every_node_and_none_of_them_is_harmed():
    plan = scenarios.plan("region-cut", THREE)
    assert {each.node for each in strikes(plan)} == set(THREE.nodes)
    assert {each.regions for each in strikes(plan)} == {REGIONS}
    assert not plan.struck
    assert (plan.cut_off, plan.isolated, plan.cut_ms) == (REGIONS, True, 8_000)
    assert "cut off n1 from eu-central, us-east for 8 s" in [each.says for each in strikes(plan)]
    alone = scenarios.plan("region-cut", Facts("n1", ("n1",), REGIONS), Options(regions=("us-east",)))
    assert (alone.cut_off, alone.isolated) == (("us-east",), False)
    assert not any("isolated" in line for line in alone.blast)
    assert scenarios.plan("kill-leader", THREE).cut_ms == 0


def test_a_node_is_spared_for_being_alone_only_where_the_others_are_a_majority():
    plan = scenarios.plan("kill-under-partition", WITH_EAST)
    assert {each.node for each in strikes(plan) if each.kind is Kind.CUT} == plan.struck == {"n3"} == {*plan.apart}
    assert {each.node for each in strikes(plan) if each.kind is Kind.CUT_REGION} == set(THREE.nodes)
    assert plan.cut_off == REGIONS
    assert any("eu-central" in line and "NOT CHECKED" in line for line in plan.blast)
    assert not any("us-east" in line and "NOT CHECKED" in line for line in plan.blast)
    alone = scenarios.plan("kill-under-partition", Facts("n1", ("n1",), REGIONS))
    assert not alone.struck


def test_nodes_of_a_lost_region_are_paused_only_if_that_is_asked_for():
    chosen = Options(regions=("us-east",))
    plan = scenarios.plan("region-loss", WITH_EAST, chosen)
    assert {each.kind for each in strikes(plan)} == {Kind.CUT_REGION}
    assert not plan.struck_there
    assert "us-east itself goes on" in plan.blast
    plan = scenarios.plan("region-loss", WITH_EAST, replace(chosen, pause_there=True))
    paused = [each for each in strikes(plan) if each.kind is Kind.PAUSE]
    assert [(each.at, each.node) for each in paused] == [("us-east", "m1"), ("us-east", "m2")]
    assert plan.struck_there == {"us-east"}
    # A node there may be called what one is called here.
    assert not plan.struck
    assert paused[0].says == "pause m1 of us-east for 15 s"
    assert any("NO CALL" in line for line in plan.blast)


def test_a_home_is_moved_to_where_an_operator_takes_part_and_back():
    plan = scenarios.plan("move-home", WITH_EAST, replace(MOVING, down_s=4))
    assert [step.move for step in plan.steps] == ["", "away", "back", ""]
    assert not strikes(plan)
    assert not plan.struck
    assert all(step.until is Until.WELL for step in plan.steps if step.move)
    assert plan.steps[0].load_s == plan.steps[-1].load_s == scenarios.CALM_S
    assert (plan.to, plan.pause_ms_max, plan.cut_off) == ("us-east", 4_000, ())
    assert any("PAUSE" in line for line in plan.blast)
    assert any("eu-central" in line and "NOT CHECKED" in line for line in plan.blast)
    chosen = scenarios.plan("move-home", WITH_BOTH, replace(MOVING, regions=("eu-central",)))
    assert chosen.to == "eu-central"
