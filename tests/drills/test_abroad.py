"""What is computed of several regions from a history: one in which all is well, and each way in which it is not."""

from dataclasses import asdict, replace

import pytest

from controlplane.checking.histories import Recorder
from controlplane.drills import abroad
from controlplane.drills.abroad import AWAY, BACK, BEFORE, BOTH, DURING, HOME, LOSS, MOVE, STALE, STOPS, Setting

MS = 1_000_000
HERE, THERE = "eu-west", "us-east"
SETTING = Setting(
    STOPS,
    HERE,
    {HERE: ["n1", "n2"], THERE: ["m1"]},
    cut_off=["eu-central", "us-east"],
    apart=["n2"],
    cut_ns=1_000 * MS,
    held_ns=5_000 * MS,
    healed_ns=5_010 * MS,
)
AGENTS = {"eu-west/n1": HERE, "eu-west/n2": HERE, "us-east/m1": THERE}
END_MS = 9_000
THROWN = {
    (BEFORE, HERE): (100, 1_200),
    (BEFORE, THERE): (100, 1_200),
    (DURING, HERE): (1_100, 8_000),
    (DURING, THERE): (1_100, 8_000),
    (BOTH, HERE): (1_100, 7_000),
    (BOTH, THERE): (1_100, 8_000),
}
"""(word, region) → when it was thrown, and when released."""


def heard(at_ms):
    """When a change that is made at this time is heard of on the other side."""
    return at_ms + 200 if at_ms < 1_000 or at_ms > 5_000 else 5_500


def looked(agent, at_ms):
    """What an agent finds if all is well."""
    if agent == "eu-west/n2" and 3_000 < at_ms < 5_050:
        return {STALE}
    found = set()
    for (word, region), (thrown, freed) in THROWN.items():
        apart = agent == "eu-west/n2" and 1_000 < thrown < 5_000
        near = region == AGENTS[agent] and not apart
        since, until = (thrown + 50, freed + 50) if near else (heard(thrown), heard(freed))
        if since <= at_ms < until:
            found.add(f"{word}@{region}")
    return found


def history(view=looked, thrown=THROWN):
    """Everything that is written down of `thrown`, if agents find what `view` says."""
    recorder = Recorder()
    acts = [(thrown_ms, "throws", *of) for of, (thrown_ms, _) in thrown.items()]
    acts += [(freed_ms, "frees", *of) for of, (_, freed_ms) in thrown.items()]
    looks = [(at_ms, "looks", agent, "") for agent in AGENTS for at_ms in range(0, END_MS, 100)]
    for process, (at_ms, kind, key, region) in enumerate(sorted(acts + looks)):
        if kind == "looks":
            recorder.invoke(process, key, kind, None, at_ms * MS)
            recorder.ok(process, tuple(sorted(view(key, at_ms))), at_ms * MS)
        else:
            recorder.invoke(process, key, kind, region, at_ms * MS)
            recorder.ok(process, True, at_ms * MS)
    return recorder.events


def judged(events, setting=SETTING):
    found = abroad.claims(abroad.measure(events, setting), setting)
    return {claim.name for claim in found if claim.passed is False}, {
        claim.name for claim in found if claim.passed is None
    }


def test_stops_that_hold_on_both_sides_and_then_everywhere():
    measured = abroad.measure(history(), SETTING)
    assert asdict(measured) == {
        "refused_ms": 100,
        "refused_there_ms": 100,
        "acted_late": 0,
        "revived": 0,
        "crossed": 0,
        # One of two agents here could not know what it was stopped by.
        "held_while_cut": 2,
        "heard_ms": 490,
        "held_by_others": 3,
        "freed_ms": 200,
        "left_stopped": 0,
        "looks_min": 90,
        # n2 was cut off from its own region: it heard of nothing, and did not act from when it could not know.
        "refused_at_ms": {"eu-west/n1": 100, "eu-west/n2": 2_000, "us-east/m1": 100},
        "heard_at_ms": {"eu-west/n1": 490, "eu-west/n2": 490, "us-east/m1": 490},
    }
    assert judged(history()) == (set(), {"stops_in_eu-central"})


def changed(agents, begin_ms, end_ms, more=(), less=()):
    """Agents that find more, or less, than they should from then to then."""

    def view(agent, at_ms):
        found = looked(agent, at_ms)
        if agent in agents and begin_ms <= at_ms < end_ms and found != {STALE}:
            return (found | set(more)) - set(less)
        return found

    return history(view)


N1, N2, M1 = ["eu-west/n1"], ["eu-west/n2"], ["us-east/m1"]


@pytest.mark.parametrize(
    ("events", "wrong"),
    [
        # Thrown here, and heeded by nobody for two seconds.
        (changed(N1, 1_100, 3_300, less=["during@eu-west"]), {"refused_ms"}),
        (changed(M1, 1_100, 3_300, less=["both@us-east"]), {"refused_there_ms"}),
        # Cut off from its own region too, and not stopping by itself.
        (
            history(lambda agent, at_ms: looked(agent, at_ms) - {STALE}),
            # It knew of the stop of before, and forgot it.
            {"revived"},
        ),
        # The other side released it, nobody here can know, and somebody is free.
        (changed(N1, 2_000, 2_100, less=["before@us-east"]), {"revived"}),
        (changed(N1, 2_000, 9_000, less=["before@us-east"]), {"revived", "held_while_cut"}),
        (changed(M1, 4_000, 4_100, less=["during@us-east"]), {"revived"}),
        # What was thrown there was known here while nothing passed.
        (changed(N1, 4_000, 4_100, more=["during@us-east"]), {"crossed_the_cut", "revived"}),
        # It never came over.
        (changed(N1, 5_000, 9_000, less=["both@us-east"]), {"heard_after_healing_ms", "held_by_others"}),
        # One region's release freed what another one held.
        (changed(M1, 7_300, 8_000, less=["both@us-east"]), {"revived", "acted_late"}),
        (changed(N1, 7_000, 9_000, less=["both@us-east"]), {"revived", "held_by_others"}),
        # Stopped for ever.
        (changed(M1, 8_000, 9_000, more=["both@eu-west"]), {"freed_ms", "left_stopped"}),
    ],
)
def test_each_way_in_which_stops_do_not_hold_is_told(events, wrong):
    assert judged(events)[0] == wrong


def test_who_acts_on_when_it_cannot_have_heard_is_late():
    def view(agent, at_ms):
        return set() if agent == "eu-west/n2" and 1_000 < at_ms < 7_000 else looked(agent, at_ms)

    setting = replace(SETTING, held_ns=7_000 * MS, healed_ns=7_000 * MS)
    assert "acted_late" in judged(history(view), setting)[0]


def test_without_anybody_there_only_this_side_is_judged():
    alone = replace(SETTING, watched={HERE: ["n1"]}, cut_off=[THERE], apart=[])
    mine = {of: times for of, times in THROWN.items() if of[1] == HERE}
    assert judged(history(thrown=mine), alone) == (set(), {"stops_in_us-east"})
    nothing = judged(history(lambda agent, at_ms: set(), mine), alone)
    assert nothing[0] == {"refused_ms", "acted_late"} - ({"acted_late"} if THROWN[DURING, HERE][1] < 6_200 else set())


LOST = Setting(
    LOSS,
    HERE,
    {HERE: ["n1"], THERE: ["m1"]},
    lost=THERE,
    copied=f"{THERE}.prod.state",
    cut_ns=1_000 * MS,
    held_ns=6_000 * MS,
    healed_ns=6_010 * MS,
)


def lost_history(**changes):
    """A region that lost another one, in which all is well but for `changes`: kind → lines that come instead."""
    lines = {
        "calls": [
            *((at_ms, "n1", True) for at_ms in (200, 400)),
            *((at_ms, "n1", "HOME_UNREACHABLE") for at_ms in range(1_100, 5_900, 200)),
            (6_500, "n1", True),
        ],
        "copies": [(at_ms, "n1", (7 if at_ms < 6_100 else 12, at_ms - 900)) for at_ms in range(1_000, 7_000, 200)],
        "configures": [(at_ms, "n1", (3, "abc")) for at_ms in range(0, 7_000, 100)],
        "writes": [(500, "w0", 7), (2_000, "w0", 9), (6_600, "w0", 12)],
        "copied": [(600, "w0", 7), (6_100, "w0", 9), (6_700, "w0", 12)],
        "listed": [],
        "final": [(6_900, THERE, (("w0", 12, 3),)), (6_950, "n1", (("w0", 12, 3),))],
    }
    lines |= changes
    recorder = Recorder()
    every = sorted((at_ms, kind, key, repr(result), result) for kind in lines for at_ms, key, result in lines[kind])
    for process, (at_ms, kind, key, _, result) in enumerate(every):
        recorder.invoke(process, key, kind, None, at_ms * MS)
        if result is None:
            recorder.info(process, "no answer", at_ms * MS)
        elif isinstance(result, str) and kind in ("calls", "copies"):
            recorder.fail(process, result, at_ms * MS)
        else:
            recorder.ok(process, result, at_ms * MS)
    return recorder.events


def test_a_loss_that_is_borne():
    assert judged(lost_history(), LOST) == (set(), set())


ANSWERED, SAID = [(200, "n1", True)], [(1_500, "n1", "HOME_UNREACHABLE")]


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"calls": [*ANSWERED, *SAID, (2_000, "n1", True)]}, "calls_answered_by_nobody"),
        ({"calls": [*ANSWERED, *SAID, (2_000, "n1", "NOT_LEADER")]}, "calls_failed_otherwise"),
        ({"calls": SAID}, "calls_answered_before"),
        ({"calls": ANSWERED}, "calls_said_unreachable"),
        ({"copies": [(at, "n1", "UNREACHABLE") for at in range(1_100, 5_000, 500)]}, "copies_not_readable"),
        ({"copies": [(at, "n1", None) for at in range(1_100, 5_900, 300)]}, "copies_not_readable"),
        ({"copies": [(at, "n1", (9 - at // 2_000, at)) for at in range(1_100, 5_900, 300)]}, "copies_went_back"),
        ({"copies": [(at, "n1", (7, 100)) for at in range(1_100, 5_900, 300)]}, "copies_age_ms"),
        ({"configures": [(at, "n1", "missing") for at in range(1_100, 5_900, 100)]}, "configurations_lost"),
        ({"configures": [(at, "n1", (9 - at // 2_000, "a")) for at in range(0, 7_000, 100)]}, "configurations_lost"),
        ({"configures": [(at, "n1", (3, f"{at // 2_000}")) for at in range(0, 7_000, 100)]}, "configurations_lost"),
        ({"copied": [(600, "w0", 7), (6_700, "w0", 12)]}, "copies_lost"),
        ({"copied": [(600, "w0", 7), (6_100, "w0", 9), (6_200, "w0", 9), (6_700, "w0", 12)]}, "copies_twice"),
        ({"copied": [(600, "w0", 7), (6_100, "w0", 12), (6_700, "w0", 9)]}, "copies_out_of_order"),
        ({"final": [(6_900, THERE, (("w0", 12, 3),)), (6_950, "n1", (("w0", 9, 2),))]}, "copies_unequal"),
        ({"final": [(6_950, "n1", (("w0", 12, 3),))]}, "copies_compared"),
        ({"writes": []}, "written_there"),
    ],
)  # fmt: skip
def test_each_way_in_which_a_loss_is_not_borne_is_told(changes, wrong):
    assert wrong in judged(lost_history(**changes), LOST)[0]


def test_a_listing_is_as_good_as_what_came_before_it():
    events = lost_history(copied=[(600, "w0", 7)], listed=[(6_700, "w0", 12)])
    assert judged(events, LOST)[0] == set()


def test_without_a_partition_nothing_is_said_of_copies():
    _, unchecked = judged(lost_history(), replace(LOST, copied=""))
    assert unchecked == {"calls_to_the_lost_region", "copies_during_the_loss", "copies_after_the_loss"}


MOVED = Setting(
    MOVE,
    HERE,
    {HERE: ["n1"], THERE: ["m1"]},
    to=THERE,
    moved=f"{HERE}.prod.shared",
    pause_ms_max=2_000,
    linked=[THERE],
)
SIDES = [HERE, THERE]
HOMES = [(HERE, 4, 0), (THERE, 5, 2_300), (HERE, 6, 5_300)]
"""Region, epoch, and from when it answers; moves are asked for at 2,000 and 5,000 and over at 2,500 and 5,500."""


def written():
    """Acknowledged writes of a good move: (ms, process, side, value, version, home, epoch)."""
    lines, version = [(10, 0, HERE, "made", 1, HERE, 4)], 1
    for at_ms in range(100, 8_000, 100):
        if not (2_000 <= at_ms < 2_300 or 5_000 <= at_ms < 5_300):
            home, epoch, _ = next(each for each in reversed(HOMES) if at_ms >= each[2])
            version += 1
            side = version % 2
            lines.append((at_ms, side + 1, SIDES[side], f"v{version}", version, home, epoch))
    return lines


LAST = written()[-1][4]


def moved_history(writes=None, unknown=(), **changes):
    """A home that was moved and moved back, in which all is well but for `changes`: kind → lines that come instead."""
    writes = written() if writes is None else writes
    value = {line[4]: line[3] for line in written()}
    reads = [(line[0] + 40, f"{HERE}/n1", (line[4], line[3])) for line in written()]
    lines = {
        "moves": [(2_000, 2_500, AWAY, THERE, (THERE, 5)), (5_000, 5_500, BACK, HERE, (HERE, 6))],
        "places": [
            *((5, region, (HERE, 4, state, 4, 0)) for region, state in ((HERE, "home"), (THERE, "copy"))),
            *((9_000, region, (HERE, 6, state, 6, 0)) for region, state in ((HERE, "home"), (THERE, "copy"))),
        ],
        "reads": [*reads, *((at_ms, f"{THERE}/m1", told) for at_ms, _, told in reads)],
        "final": [(8_500, who, (("w0", LAST, value[LAST]),)) for who in (HOME, f"{HERE}/n1", f"{THERE}/m1")],
    } | changes
    ends = []
    for at_ms, process, side, value_, version, home, epoch in writes:
        ends.append((at_ms - 5, at_ms, process, "w0", "writes", (side, version - 1, value_), (version, home, epoch)))
    for at_ms, process, side, value_, version in unknown:
        ends.append((at_ms - 5, None, process, "w0", "writes", (side, version - 1, value_), None))
    number = 100
    for kind in ("places", "reads", "final"):
        for at_ms, key, result in lines[kind]:
            number += 1
            asked = "w0" if kind == "reads" else None
            ends.append((at_ms, at_ms + 1, number, key, kind, asked, result))
    for begin_ms, end_ms, way, to, result in lines["moves"]:
        number += 1
        ends.append((begin_ms, end_ms, number, way, "moves", to, result))
    events = []
    for begin_ms, end_ms, process, key, kind, asked, result in ends:
        events.append((begin_ms, 1, process, "invoke", key, kind, asked))
        if end_ms is not None:
            failed = isinstance(result, str)
            events.append((end_ms, 0, process, "fail" if failed else "ok", result))
    recorder = Recorder()
    for at_ms, _, process, what, *rest in sorted(events, key=lambda each: each[:3]):
        if what == "invoke":
            recorder.invoke(process, *rest, at_ms * MS)
        else:
            getattr(recorder, what)(process, *rest, at_ms * MS)
    return recorder.events


def test_a_home_that_moves_and_comes_back():
    assert judged(moved_history(), MOVED) == (set(), set())
    measured = abroad.measure(moved_history(), MOVED)
    # Each side writes every 200 ms; nobody could for 300 ms of a move, and one of them had its turn right after.
    assert (measured.away_pause_ms, measured.back_pause_ms) == (400, 400)
    assert measured.paused_ms == {"away eu-west": 400, "away us-east": 300, "back eu-west": 300, "back us-east": 400}
    assert (measured.epochs, measured.at_home, measured.compared) == (2, 2, 2)


def changed_writes(change, only=lambda line: True):
    """The writes with `change` made to those that are meant; None: left out."""
    found = [change(line) if only(line) else line for line in written()]
    return [line for line in found if line is not None]


def at(begin_ms, end_ms):
    return lambda line: begin_ms <= line[0] < end_ms


def of_version(version):
    return lambda line: line[4] == version


LATE = next(line for line in written() if line[0] > 3_000)
REMADE = (LATE[0] + 30, 3 - LATE[1], HERE, "other", LATE[4], THERE, 5)


@pytest.mark.parametrize(
    ("spoiled", "wrong"),
    [
        # The last acknowledged writes are not there, or others are in their place.
        ({"final": [(8_500, who, (("w0", LAST - 3, f"v{LAST - 3}"),)) for who in (HOME, f"{HERE}/n1", f"{THERE}/m1")]},
         {"moved_writes_lost"}),
        ({"final": [(8_500, who, (("w0", LAST, "x"),)) for who in (HOME, f"{HERE}/n1", f"{THERE}/m1")]},
         {"moved_writes_lost"}),
        # Two were told the same version.
        ({"writes": [*written(), REMADE]}, {"versions_reused", "local_reads_wrong"}),
        # A version that nobody wrote.
        ({"writes": changed_writes(lambda line: None, of_version(20))}, {"versions_missing", "local_reads_wrong"}),
        # The old home goes on after the new one acknowledged.
        ({"writes": changed_writes(lambda line: (*line[:5], HERE, 4), at(2_900, 3_000))},
         {"two_homes", "answered_elsewhere"}),
        # Two regions, one epoch.
        ({"writes": changed_writes(lambda line: (*line[:5], HERE, 5), at(2_900, 3_000))},
         {"two_homes", "answered_elsewhere"}),
        # The new one acknowledges before anybody asked for the move, or under an epoch that nobody was told.
        ({"writes": changed_writes(lambda line: (*line[:5], THERE, 5), at(1_800, 2_000))}, {"answered_elsewhere"}),
        ({"writes": changed_writes(lambda line: (*line[:6], 7), at(5_300, 8_000))},
         {"answered_elsewhere", "writes_under_each_home"}),
        # One side waits for longer than may be, though the other one writes.
        ({"writes": changed_writes(lambda line: (*line[:1], 1, HERE, *line[3:]), at(2_000, 4_300))},
         {"writes_paused_away_ms"}),
        # One never gets to the new home.
        ({"writes": changed_writes(lambda line: (*line[:1], 1, HERE, *line[3:]), at(2_000, 5_000))},
         {"writes_paused_away_ms", "writes_under_each_home"}),
        ({"writes": changed_writes(lambda line: (*line[:1], 1, HERE, *line[3:]), at(5_000, 9_000))},
         {"writes_paused_back_ms", "writes_under_each_home"}),
        # It was never moved back.
        ({"moves": [(2_000, 2_500, AWAY, THERE, (THERE, 5))]},
         {"writes_paused_back_ms", "writes_under_each_home", "answered_elsewhere"}),
        # Reads.
        ({"reads": [(at_ms, f"{HERE}/n1", (2, "v2")) for at_ms in range(500, 900, 50)]}, {"local_reads"}),
        ({"places": [(5, HERE, (HERE, 4, "home", 4, 0)), (5, THERE, (HERE, 4, "copy", 4, 0)),
                     (9_000, HERE, (THERE, 5, "copy", 5, 0)), (9_000, THERE, (THERE, 5, "home", 5, 0))]},
         {"epochs_risen", "regions_that_see_it_at_home"}),
        # Moves that nobody knows of took place meanwhile; or another one had been called off there before.
        ({"places": [(5, HERE, (HERE, 4, "home", 4, 0)), (5, THERE, (HERE, 4, "copy", 4, 0)),
                     (9_000, HERE, (HERE, 8, "home", 8, 0)), (9_000, THERE, (HERE, 8, "copy", 8, 0))]},
         {"epochs_risen"}),
        # One region does not know yet.
        ({"places": [(5, HERE, (HERE, 4, "home", 4, 0)), (5, THERE, (HERE, 4, "copy", 4, 0)),
                     (9_000, HERE, (HERE, 6, "home", 6, 0)), (9_000, THERE, (HERE, 6, "left", 6, 0))]},
         {"regions_that_see_it_at_home"}),
        ({"places": [(5, HERE, (HERE, 4, "home", 4, 0)), (5, THERE, (HERE, 4, "copy", 4, 0)),
                     (9_000, HERE, (HERE, 6, "home", 6, 0)), (9_000, THERE, (HERE, 6, "copy", 6, 3))]},
         {"quarantined"}),
        ({"final": [(8_500, HOME, (("w0", LAST, f"v{LAST}"),)), (8_500, f"{HERE}/n1", (("w0", LAST, f"v{LAST}"),)),
                    (8_500, f"{THERE}/m1", (("w0", LAST - 1, f"v{LAST - 1}"),))]},
         {"nodes_unequal"}),
        ({"final": [(8_500, HOME, (("w0", LAST, f"v{LAST}"),))]}, {"nodes_compared"}),
    ],
)  # fmt: skip
def test_each_way_in_which_a_move_goes_wrong_is_told(spoiled, wrong):
    assert judged(moved_history(**spoiled), MOVED)[0] == wrong


@pytest.mark.parametrize(
    ("read", "wrong"),
    [
        ("UNAVAILABLE", {"local_reads_failed"}),
        ((2, "v2"), {"local_reads_went_back"}),
        ((60, "never written"), {"local_reads_wrong"}),
        ((30, "v29"), {"local_reads_wrong"}),
    ],
)
def test_a_read_that_must_not_be_is_told(read, wrong):
    more = (7_990 if read != (30, "v29") else 3_145, f"{THERE}/m1", read)
    good = [(line[0] + 40, (line[4], line[3])) for line in written()]
    reads = [
        (at_ms, f"{region}/{node}", told) for region, node in ((HERE, "n1"), (THERE, "m1")) for at_ms, told in good
    ]
    assert wrong <= judged(moved_history(reads=[*reads, more]), MOVED)[0] <= wrong | {"local_reads_went_back"}


def test_a_write_of_which_nobody_knows_explains_a_version_but_no_other():
    lost = next(line for line in written() if line[4] == 20)
    writes = changed_writes(lambda line: None, of_version(20))
    assert judged(moved_history(writes, [(lost[0], 9, HERE, "v20", 20)]), MOVED)[0] == set()
    assert judged(moved_history(writes, [(lost[0], 9, HERE, "v20", 21)]), MOVED)[0] >= {"versions_missing"}


def test_a_move_that_was_broken_off_is_judged_by_what_is_there():
    """Nobody was told its epoch: whoever answers there under another one is the home, and nothing else is."""
    unended = [(2_000, None, AWAY, THERE, None), (5_000, 5_500, BACK, HERE, (HERE, 6))]
    assert judged(moved_history(moves=unended), MOVED)[0] == set()
    third = changed_writes(lambda line: (*line[:5], "eu-central", 5), at(2_300, 5_000))
    assert "answered_elsewhere" in judged(moved_history(third, moves=unended), MOVED)[0]


def test_of_a_region_that_may_know_it_and_where_nobody_looks_nothing_is_said():
    setting = replace(MOVED, linked=[THERE, "eu-central"])
    assert judged(moved_history(), setting) == (set(), {"writes_and_reads_in_eu-central"})
