"""What is computed from a history: known histories, known answers."""

from dataclasses import replace

import pytest

from controlplane.checking.histories import Recorder
from controlplane.drills import evidence
from controlplane.drills.evidence import Claim, Seen, Wanted, Window

MS = 1_000_000
WINDOW = Window(1000 * MS, 10_000 * MS)


class Story:
    """A history told in milliseconds; times have to go forward."""

    def __init__(self):
        self.recorder = Recorder()

    def ask(self, process, key, kind, argument, at_ms):
        self.recorder.invoke(process, key, kind, argument, at_ms * MS)

    def ok(self, process, result, at_ms):
        self.recorder.ok(process, result, at_ms * MS)

    def done(self, process, key, kind, argument, result, at_ms):
        self.ask(process, key, kind, argument, at_ms)
        self.ok(process, result, at_ms + 1)

    def measured(self, window=WINDOW, agents=()):
        return evidence.measure(self.recorder.events, window, agents)


@pytest.fixture
def story():
    told = Story()
    told.done(0, "k", "create", "made", 1, 0)
    return told


def swaps(story, *times, first=1, process=0):
    for number, at_ms in enumerate(times, first):
        story.done(process, "k", "cas", (number, f"v{number + 1}"), number + 1, at_ms)


def test_recovery_is_the_longest_silence_from_the_first_fault_to_the_end(story):
    swaps(story, 500, 900, 1200, 1999, 4000, 9500)
    story.done(0, "k", "read", None, (7, "v7"), 9900)
    found = story.measured()
    assert found.recovery_ms == 5500
    assert found.acknowledged == 6
    assert found.lost_writes == found.stale_reads == 0
    assert found.linearizable == "linearizable"


def test_silence_up_to_the_end_counts_and_without_any_write_it_is_all(story):
    swaps(story, 1100)
    assert story.measured().recovery_ms == 8899
    assert story.measured(Window(2000 * MS, 3000 * MS)).recovery_ms == 1000


def test_the_silence_of_agents_is_their_own(story):
    swaps(story, 1100, 3000, 5000, 7000, 9000)
    swaps(story, 9500, first=6, process=7)
    found = story.measured(agents=[7])
    assert found.recovery_ms == 2000
    assert found.agents_silence_ms == 8501


def test_first_failed_and_first_good(story):
    story.ask(1, "k", "cas", (1, "x"), 1500)
    story.recorder.info(1, "DEADLINE", 1800 * MS)
    story.ask(1, "k", "cas", (1, "y"), 1900)
    story.recorder.fail(1, "NO_LEADER", 2000 * MS)
    swaps(story, 2100)
    found = story.measured()
    assert (found.first_failed_ms, found.first_good_ms) == (800, 1101)
    assert (found.unknown, found.failed, found.acknowledged) == (1, 1, 1)
    assert found.unknown_percent == 34


@pytest.mark.parametrize(
    ("final", "lost"), [((3, "v3"), 0), ((2, "v2"), 1), ((1, "made"), 2), ((3, "another"), 1), (None, 2)]
)
def test_lost_writes_are_counted(story, final, lost):
    swaps(story, 1100, 1200)
    if final is not None:
        story.done(0, "k", "read", None, final, 5000)
    found = story.measured()
    assert found.lost_writes == lost
    assert (found.linearizable == "linearizable") == (lost == 0 or final is None)


def test_two_winners_of_one_version_are_a_lost_write(story):
    story.ask(1, "k", "cas", (1, "a"), 1100)
    story.ask(2, "k", "cas", (1, "b"), 1100)
    story.ok(1, 2, 1200)
    story.ok(2, 2, 1200)
    story.done(0, "k", "read", None, (2, "a"), 5000)
    found = story.measured()
    assert found.lost_writes == 1
    assert found.linearizable == "not linearizable"


def test_a_stale_read_is_counted_and_a_concurrent_one_is_not(story):
    swaps(story, 1100)
    story.done(1, "k", "read", None, (1, "made"), 1500)
    story.done(1, "k", "read", None, (2, "v2"), 1600)
    assert story.measured().stale_reads == 1
    other = Story()
    other.done(0, "k", "create", "made", 1, 0)
    other.ask(0, "k", "cas", (1, "v2"), 1100)
    other.done(1, "k", "read", None, (1, "made"), 1200)
    other.ok(0, 2, 1300)
    assert other.measured().stale_reads == 0


def test_a_refused_swap_is_an_answer_but_no_acknowledged_write(story):
    story.done(0, "k", "cas", (7, "x"), None, 1100)
    found = story.measured()
    assert (found.acknowledged, found.failed, found.unknown) == (0, 0, 0)


def test_fences_that_go_back_are_counted_and_refusals_too(story):
    story.done(0, "guarded", "act", 5, True, 1000)
    story.done(1, "guarded", "act", 9, True, 1100)
    story.done(0, "guarded", "act", 5, False, 1200)
    assert (story.measured().fences_reversed, story.measured().fencing_refusals) == (0, 1)
    story.done(0, "guarded", "act", 5, True, 1300)
    assert story.measured().fences_reversed == 1


def test_acts_after_a_confirmed_kill(story):
    story.done(1, "permission", "permitted", None, True, 1000)
    story.done(2, "switch", "engage", None, True, 1999)
    story.done(1, "permission", "permitted", None, True, 2500)
    story.done(1, "permission", "permitted", None, False, 2600)
    found = story.measured()
    assert (found.kill_confirmed_ms, found.acted_after_kill, found.stopped_after_ms) == (1000, 0, 500)
    late_ms = 2000 + evidence.KILL_BOUND_MS + 1
    story.done(1, "permission", "permitted", None, True, late_ms)
    assert story.measured().acted_after_kill == 1
    story.done(2, "switch", "release", None, True, late_ms + 100)
    story.done(1, "permission", "permitted", None, True, late_ms + 200)
    assert story.measured().acted_after_kill == 1


def test_two_holders_at_once_are_not_a_lease(story):
    story.done(1, "lease", "campaign", "a", ("a", 5), 100)
    story.done(2, "lease", "campaign", "b", ("b", 9), 200)
    assert story.measured().leases == "linearizable"
    story.done(1, "lease", "renew", ("a", 5), True, 300)
    assert story.measured().leases == "not linearizable"


@pytest.mark.parametrize(
    ("rule", "target", "actual", "passed"),
    [
        ("at most", 5, 5, True),
        ("at most", 5, 6, False),
        ("at least", 1, 0, False),
        ("at least", 1, 2, True),
        ("is", 0, 1, False),
        ("is", "all", "all", True),
        ("is", "equal", "different", False),
        ("at most", 30_000, None, False),
    ],
)
def test_a_claim_passes_only_if_it_holds(rule, target, actual, passed):
    assert Claim("x", rule, target, actual, True).passed is passed


def test_what_a_drill_wants_becomes_a_claim(story):
    measured, seen = story.measured(), Seen("all", "equal", 10, "after catching up")
    names = {claim.name for claim in evidence.claims(measured, seen, Wanted(1, True, True, "n3"))}
    plain = {claim.name for claim in evidence.claims(measured, seen, Wanted(1, False, False, ""))}
    assert names - plain == {"kill_confirmed_ms", "acted_after_kill", "replaced_node_votes"}
    fencing = {claim.name: claim.target for claim in evidence.claims(measured, seen, Wanted(1, True, False, ""))}
    assert fencing["fencing_refusals"] == 1


CUT_SEEN = Seen("all", "equal", 0, links_down="all", isolated="yes", view_age_ms=7_800, caught_up_ms=900, stops_lost=0)


def of_regions(seen, **wanted):
    measured = Story().measured()
    found = evidence.claims(measured, seen, Wanted(1_000, False, False, "", **wanted))
    names = ("links_down", "view_age_ms", "stops_lost", "caught_up_ms", "isolated_mode_shown")
    return {each.name: each.passed for each in found if each.name in names}


def test_a_region_that_was_cut_off_has_to_show_it_and_to_have_caught_up():
    assert of_regions(CUT_SEEN) == {}
    assert len(of_regions(CUT_SEEN, cut_ms=8_000, isolated=True)) == 5
    assert all(of_regions(CUT_SEEN, cut_ms=8_000, isolated=True).values())
    assert "isolated_mode_shown" not in of_regions(CUT_SEEN, cut_ms=8_000)


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"links_down": "us-east"}, "links_down"),
        ({"isolated": "no"}, "isolated_mode_shown"),
        ({"view_age_ms": 900}, "view_age_ms"),
        ({"caught_up_ms": None}, "caught_up_ms"),
        ({"caught_up_ms": 60_000}, "caught_up_ms"),
        ({"stops_lost": 1}, "stops_lost"),
    ],
)
def test_each_thing_that_a_cut_region_did_not_show_fails(changes, broken):
    found = of_regions(replace(CUT_SEEN, **changes), cut_ms=8_000, isolated=True)
    assert [name for name, passed in found.items() if not passed] == [broken]
