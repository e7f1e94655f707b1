"""Who may see and write what, cell by cell; and that two regions come to one agreement, never a wider one."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane import geography
from controlplane.errors import Denied, Invalid
from controlplane.geography import Atlas, Terms, agreement, exported, terms
from controlplane.v1 import federation_pb2
from controlplane.v1.records_pb2 import GLOBAL, HOME_ONLY, JURISDICTION, REACH_UNSPECIFIED, Partition

HOME, SAME, OTHER, UNKNOWN = "eu-west", "eu-central", "us-east", "mars"
MAP = {HOME: "eu", SAME: "eu", "eu-south": "eu", OTHER: "us", "us-west": "us"}
WIDEST = {
    HOME: {SAME: {JURISDICTION, GLOBAL}, OTHER: {GLOBAL}},
    SAME: {HOME: {JURISDICTION, GLOBAL}, OTHER: {GLOBAL}},
    OTHER: {HOME: {GLOBAL}, SAME: {GLOBAL}},
}
YES = ""


def atlas(region=HOME, jurisdictions=None, **may_leave):
    leaves = may_leave or WIDEST[region]
    by_peer = {peer.replace("_", "-"): frozenset(reaches) for peer, reaches in leaves.items()}
    return Atlas("acme", region, MAP if jurisdictions is None else jurisdictions, by_peer)


def partition(reach, home=HOME, environment="prod"):
    return Partition(id=f"{home}.prod.x", home=home, epoch=1, reach=reach, environment=environment)


def verdict(*asked, check=geography.check_read):
    try:
        check(*asked)
    except Denied as error:
        return error.reason
    return YES


CELLS = [
    # reach, caller's region, in the partition's environment, in another one
    (HOME_ONLY, HOME, YES, "ENVIRONMENT_MISMATCH"),
    (HOME_ONLY, SAME, "PARTITION_PINNED", "ENVIRONMENT_MISMATCH"),
    (HOME_ONLY, OTHER, "PARTITION_PINNED", "ENVIRONMENT_MISMATCH"),
    (HOME_ONLY, UNKNOWN, "REGION_UNKNOWN", "REGION_UNKNOWN"),
    (JURISDICTION, HOME, YES, "ENVIRONMENT_MISMATCH"),
    (JURISDICTION, SAME, YES, "ENVIRONMENT_MISMATCH"),
    (JURISDICTION, OTHER, "JURISDICTION_MISMATCH", "ENVIRONMENT_MISMATCH"),
    (JURISDICTION, UNKNOWN, "REGION_UNKNOWN", "REGION_UNKNOWN"),
    (GLOBAL, HOME, YES, "ENVIRONMENT_MISMATCH"),
    (GLOBAL, SAME, YES, "ENVIRONMENT_MISMATCH"),
    (GLOBAL, OTHER, YES, "ENVIRONMENT_MISMATCH"),
    (GLOBAL, UNKNOWN, "REGION_UNKNOWN", "REGION_UNKNOWN"),
    (REACH_UNSPECIFIED, HOME, "REACH_UNDECLARED", "REACH_UNDECLARED"),
    (REACH_UNSPECIFIED, SAME, "REACH_UNDECLARED", "REACH_UNDECLARED"),
    (REACH_UNSPECIFIED, OTHER, "REACH_UNDECLARED", "REACH_UNDECLARED"),
    (REACH_UNSPECIFIED, UNKNOWN, "REGION_UNKNOWN", "REGION_UNKNOWN"),
]


@pytest.mark.parametrize(("reach", "region", "same", "other"), CELLS)
def test_what_the_home_answers(reach, region, same, other):
    assert verdict(atlas(), partition(reach), region, "prod") == same
    for environment in ("staging", "all", "", "PROD", "prod "):
        assert verdict(atlas(), partition(reach), region, environment) == other


@pytest.mark.parametrize(
    ("here", "reach", "of_home", "of_here", "of_a_third"),
    [
        (SAME, HOME_ONLY, "PARTITION_PINNED", "PARTITION_PINNED", "PARTITION_PINNED"),
        (SAME, JURISDICTION, YES, YES, "JURISDICTION_MISMATCH"),
        (SAME, GLOBAL, YES, YES, "NOT_AT_HOME"),
        (OTHER, HOME_ONLY, "PARTITION_PINNED", "PARTITION_PINNED", "PARTITION_PINNED"),
        # What may not be in `here` does not pass through it either, not even for somebody of its home.
        (OTHER, JURISDICTION, "JURISDICTION_MISMATCH", "JURISDICTION_MISMATCH", "JURISDICTION_MISMATCH"),
        (OTHER, GLOBAL, YES, YES, "NOT_AT_HOME"),
    ],
)
def test_what_a_region_with_a_copy_answers(here, reach, of_home, of_here, of_a_third):
    third = OTHER if here == SAME else SAME
    for region, expected in ((HOME, of_home), (here, of_here), (third, of_a_third)):
        assert verdict(atlas(here), partition(reach), region, "prod") == expected
        assert verdict(atlas(here), partition(reach), region, "dev") == "ENVIRONMENT_MISMATCH"
    assert verdict(atlas(here), partition(reach), UNKNOWN, "prod") == "REGION_UNKNOWN"


@pytest.mark.parametrize(("reach", "region", "same", "other"), CELLS)
def test_broken_glass_shows_what_is_pinned_at_home_and_breaks_nothing_else(reach, region, same, other):
    closed = atlas(eu_central=set(), us_east=set())
    for mine in (atlas(), closed):
        through = verdict(mine, partition(reach), region, "prod", check=geography.check_glass)
        assert through == (YES if same in ("PARTITION_PINNED", "JURISDICTION_MISMATCH") else same)
        for environment in ("staging", "all", "", "PROD", "prod "):
            assert verdict(mine, partition(reach), region, environment, check=geography.check_glass) == other
    # Where it is not at home, the glass is no other than the door.
    for here in (SAME, OTHER):
        asked = (atlas(here), partition(reach), region, "prod")
        assert verdict(*asked, check=geography.check_glass) == verdict(*asked)


def test_a_third_region_of_the_jurisdiction_asks_the_home():
    asked = verdict(atlas(SAME), partition(JURISDICTION), "eu-south", "prod")
    assert asked == "NOT_AT_HOME"


def test_seen_is_gone():
    """What may not be copied to a region is not shown to its callers either, whatever the law says."""
    narrow = atlas(eu_central={JURISDICTION}, us_east=set())
    for region, reach, expected in [
        (SAME, JURISDICTION, YES),
        (SAME, GLOBAL, "MAY_NOT_LEAVE"),
        (OTHER, GLOBAL, "MAY_NOT_LEAVE"),
        ("us-west", GLOBAL, "MAY_NOT_LEAVE"),
        ("eu-south", JURISDICTION, "MAY_NOT_LEAVE"),
        (HOME, GLOBAL, YES),
    ]:
        assert verdict(narrow, partition(reach), region, "prod") == expected, (region, reach)


def test_a_home_that_is_not_on_the_map():
    for region in (HOME, SAME, UNKNOWN):
        assert verdict(atlas(), partition(GLOBAL, UNKNOWN), region, "prod") == "REGION_UNKNOWN"


def test_a_partition_without_an_environment_is_nobodys():
    system = partition(HOME_ONLY, environment="")
    for environment in ("", "prod", "all"):
        assert verdict(atlas(), system, HOME, environment) == "ENVIRONMENT_MISMATCH"
    everywhere = partition(HOME_ONLY, environment="all")
    assert verdict(atlas(), everywhere, HOME, "all") == "ENVIRONMENT_MISMATCH"


def test_a_lone_region_serves_its_own():
    alone = Atlas("acme", HOME, {}, {})
    for reach in (HOME_ONLY, JURISDICTION, GLOBAL):
        assert verdict(alone, partition(reach), HOME, "prod") == YES
        assert verdict(alone, partition(reach), SAME, "prod") == "REGION_UNKNOWN"


def test_a_refusal_names_no_partition():
    with pytest.raises(Denied) as denied:
        geography.check_read(atlas(), partition(HOME_ONLY), SAME, "prod")
    assert "eu-west.prod.x" not in f"{denied.value} {denied.value.hint} {denied.value.details}"


@pytest.mark.parametrize("home", [HOME, UNKNOWN])
@pytest.mark.parametrize(
    ("reach", "places"),
    [
        (HOME_ONLY, {HOME}),
        (JURISDICTION, {HOME, SAME, "eu-south"}),
        (GLOBAL, set(MAP)),
        (REACH_UNSPECIFIED, set()),
        (77, set()),
    ],
)
def test_where_records_may_be(home, reach, places):
    found = {region for region in (*MAP, UNKNOWN) if geography.lawful(atlas(SAME), home, reach, region)}
    assert found == (places if home == HOME else set())


@pytest.mark.parametrize(
    ("listed", "peer", "expected"),
    [
        ({JURISDICTION, GLOBAL}, SAME, (JURISDICTION, GLOBAL)),
        ({GLOBAL}, SAME, (GLOBAL,)),
        (set(), SAME, ()),
        ({HOME_ONLY, JURISDICTION}, SAME, (JURISDICTION,)),
        ({HOME_ONLY, JURISDICTION, GLOBAL}, OTHER, (GLOBAL,)),
        ({JURISDICTION}, OTHER, ()),
        ({JURISDICTION, GLOBAL}, UNKNOWN, ()),
        ({JURISDICTION, GLOBAL}, HOME, ()),
    ],
)
def test_what_may_be_exported(listed, peer, expected):
    assert exported(Atlas("acme", HOME, MAP, {peer: frozenset(listed)}), peer) == expected
    assert exported(Atlas("acme", HOME, MAP, {}), peer) == ()


# -- terms and agreements


def linked(ours, theirs):
    """The agreement as `ours` has it, checked against what `theirs` has."""
    one, other = terms(ours, theirs.region), terms(theirs, ours.region)
    agreed = agreement(one, other)
    assert agreement(other, one) == agreed.mirrored()
    return agreed


def test_two_regions_agree():
    agreed = linked(atlas(HOME), atlas(SAME, eu_west={GLOBAL}))
    assert not agreed.paused
    assert (agreed.region, agreed.peer) == (HOME, SAME)
    assert (agreed.sends, agreed.receives) == ((JURISDICTION, GLOBAL), (GLOBAL,))
    assert agreed.same_map
    assert linked(atlas(OTHER), atlas(HOME)).sends == (GLOBAL,)


@pytest.mark.parametrize("jurisdictions", [{**MAP, SAME: "uk"}, {**MAP, HOME: "uk"}, {**MAP, SAME: "us"}])
def test_a_dispute_about_a_jurisdiction_pauses_the_link_and_no_other(jurisdictions):
    moved = atlas(SAME, jurisdictions)
    agreed = linked(atlas(HOME), moved)
    assert agreed.paused
    assert (agreed.sends, agreed.receives) == ((), ())
    assert not linked(atlas(HOME), atlas(OTHER)).paused


def test_the_reason_names_both_views():
    (reason,) = linked(atlas(HOME), atlas(SAME, {**MAP, SAME: "uk"})).pauses
    assert reason == "eu-west has eu-central in jurisdiction eu, eu-central has itself in uk"


def test_a_region_that_is_no_peer():
    agreed = linked(atlas(HOME), atlas(SAME, us_east={GLOBAL}))
    assert agreed.pauses == ("eu-central does not have eu-west as a peer",)


def test_another_region_answers_than_was_meant():
    meant = terms(atlas(HOME), SAME)
    agreed = agreement(meant, terms(atlas(OTHER), HOME))
    assert agreed.pauses == ("eu-west speaks to eu-central, but us-east is there",)
    assert agreement(meant, meant).paused


def test_another_fleet():
    stranger = replace(atlas(SAME), fleet="other")
    assert linked(atlas(HOME), stranger).pauses == ("eu-central is of fleet other, eu-west of fleet acme",)


def test_a_map_that_differs_about_others_only_is_noticed():
    agreed = linked(atlas(HOME), atlas(SAME, {**MAP, "us-west": "ca"}))
    assert not agreed.paused
    assert not agreed.same_map


GOOD = terms(atlas(), SAME)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fleet": "Acme"},
        {"region": ""},
        {"region": SAME},
        {"jurisdiction": "eu\n"},
        {"jurisdiction": ""},
        {"peer": "x" * 64},
        {"peer_jurisdiction": "\x1b[31m"},
        {"map_digest": b"short"},
        {"may_leave": (HOME_ONLY,)},
        {"may_leave": (GLOBAL, GLOBAL)},
        {"may_leave": (GLOBAL, JURISDICTION)},
        {"may_leave": (77,)},
        {"may_leave": (JURISDICTION,), "peer_jurisdiction": "us"},
        {"may_leave": (GLOBAL,), "peer_jurisdiction": ""},
    ],
)
def test_terms_that_cannot_be(wrong):
    with pytest.raises(Invalid) as invalid:
        replace(GOOD, **wrong)
    assert invalid.value.reason == "TERMS_MALFORMED"


def test_terms_are_those_of_the_wire():
    assert Terms("acme", HOME, "eu", SAME, "eu", (JURISDICTION, GLOBAL), atlas().digest()) == GOOD
    message = federation_pb2.Terms(**asdict(GOOD))
    sent = federation_pb2.Terms.FromString(message.SerializeToString())
    received = {field.name: getattr(sent, field.name) for field in sent.DESCRIPTOR.fields}
    assert Terms(**{**received, "may_leave": tuple(sent.may_leave)}) == GOOD


REGIONS = ("a", "b", "c")
_reaches = st.frozensets(st.sampled_from((HOME_ONLY, JURISDICTION, GLOBAL)))
_places = st.sampled_from(("x", "y"))


@st.composite
def _atlases(draw, region):
    others = [other for other in REGIONS if other != region]
    jurisdictions = draw(st.dictionaries(st.sampled_from(others), _places))
    may_leave = draw(st.dictionaries(st.sampled_from(others), _reaches))
    return Atlas("acme", region, {**jurisdictions, region: draw(_places)}, may_leave)


@st.composite
def _narrower(draw, wide):
    """An atlas that says less: fewer other regions, fewer peers, fewer reaches."""
    kept = draw(st.frozensets(st.sampled_from(REGIONS)))
    leaves = {peer: reaches & draw(_reaches) for peer, reaches in wide.may_leave.items() if draw(st.booleans())}
    jurisdictions = {
        region: place for region, place in wide.jurisdictions.items() if region in kept or region == wide.region
    }
    return Atlas(wide.fleet, wide.region, jurisdictions, leaves)


@given(_atlases("a"), _atlases("b"))
def test_both_sides_allow_what_is_agreed(ours, theirs):
    agreed = linked(ours, theirs)
    for reach in agreed.sends:
        assert reach in ours.may_leave["b"]
        for view in (ours, theirs):
            assert reach == GLOBAL or (reach == JURISDICTION and view.jurisdictions["a"] == view.jurisdictions["b"])
    assert set(agreed.receives) <= theirs.may_leave.get("a", frozenset())
    if agreed.paused:
        assert not agreed.sends
        assert not agreed.receives


@given(st.data(), _atlases("a"), _atlases("b"))
def test_who_says_less_gets_and_gives_no_more(data, ours, theirs):
    before = linked(ours, theirs)
    after = linked(data.draw(_narrower(ours)), data.draw(_narrower(theirs)))
    assert set(after.sends) <= set(before.sends)
    assert set(after.receives) <= set(before.receives)
    assert not (before.paused and not after.paused)


_maps = st.fixed_dictionaries(dict.fromkeys(REGIONS, _places))


@given(_maps, _maps, _reaches, _reaches)
def test_while_a_map_changes_the_narrower_one_holds(old, new, of_a, of_b):
    def between(map_of_a, map_of_b):
        return linked(Atlas("acme", "a", map_of_a, {"b": of_a}), Atlas("acme", "b", map_of_b, {"a": of_b}))

    for midway in (between(old, new), between(new, old)):
        for settled in (between(old, old), between(new, new)):
            assert not settled.paused
            assert set(midway.sends) <= set(settled.sends)
            assert set(midway.receives) <= set(settled.receives)
    assert between(old, new).same_map == (old == new)


@given(_atlases("a"), st.sampled_from(REGIONS), st.sampled_from((*REGIONS, "d")))
def test_nothing_is_seen_that_may_not_be_held(mine, home, caller):
    for reach in (REACH_UNSPECIFIED, HOME_ONLY, JURISDICTION, GLOBAL):
        asked = (partition(reach, home), caller, "prod")
        seen = verdict(mine, *asked) == YES
        if seen and home == "a" != caller:
            assert reach in exported(mine, caller)
        if seen and caller != home:
            assert caller in mine.jurisdictions
            assert reach != HOME_ONLY
        if seen and reach == JURISDICTION and caller != home:
            assert mine.jurisdictions[caller] == mine.jurisdictions[home]


@given(_maps, _maps)
def test_equal_digests_are_equal_maps(one, other):
    first, second = Atlas("acme", "a", one, {}), Atlas("acme", "b", dict(reversed(other.items())), {})
    assert (first.digest() == second.digest()) == (one == other)


@given(_atlases("a"), _atlases("b"))
def test_a_link_is_open_between_peers_of_one_mind_only(ours, theirs):
    peers = "b" in ours.may_leave and "a" in theirs.may_leave
    about_a = theirs.jurisdictions.get("a") == ours.jurisdictions["a"]
    about_b = ours.jurisdictions.get("b") == theirs.jurisdictions["b"]
    assert linked(ours, theirs).paused != (peers and about_a and about_b)
