"""What is asked of a fleet that is being broken: every sort of lie is caught, truth passes, and a real run is green."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chaos import fleet, fleet_checks, fleet_faults
from chaos.fleet import Plan, Report, Strike
from chaos.fleet_checks import Broken, Look, Record, Session, Throw, Told, copies, due, stops, swept, truth_of, untold

SECOND = 1_000_000_000
HOME = (
    Record("a", 3, b"1"),
    Record("b", 5, b"1"),
    Record("c", 5, b"1"),
    Record("a", 8, b"2"),
    Record("b", 9, None),
)
TRUTH = truth_of(HOME)
A3, B5, C5, A8, B9 = HOME


def kinds(findings):
    return [each.promise for each in findings]


def listed(*records, at=1):
    return Session(records, at, ())


def told(*messages):
    return Session(None, 0, messages)


WHOLE = Session((A3,), 10, ((B5, C5), (A8,), (B9,)))


@pytest.mark.parametrize(
    "sessions",
    [
        [WHOLE],
        [Session((), 1, ((A3,), (B5, C5), (A8,), (B9,)))],
        [Session((A3,), 10, ((B5, C5),)), told((A8,), (B9,))],
        # A listing says nothing of what was deleted.
        [Session((A3,), 10, ((C5, B5),)), Session((B5, C5, A8), 20, ((B9,),))],
        # Another node of the region may be behind the one that was asked before.
        [WHOLE, Session((A3,), 5, ((B5, C5), (A8,), (B9,)))],
    ],
)
def test_what_came_as_it_happened_is_no_finding(sessions):
    assert copies(TRUTH, sessions) == []


@pytest.mark.parametrize(
    ("sessions", "promise"),
    [
        ([Session((A3,), 10, ((A8,), (B9,)))], "COPY_LOST"),
        ([Session((A3,), 10, ((B5, C5),)), told((B9,))], "COPY_LOST"),
        ([Session((A3,), 10, ((B5,), (A8,), (B9,)))], "COPY_TORN"),
        ([Session((A3,), 10, ((B5, C5), (A8._replace(value=b"9"),), (B9,)))], "COPY_INVENTED"),
        ([Session((A3,), 10, ((B5, C5), (Record("d", 7, b"1"),), (A8,), (B9,)))], "COPY_INVENTED"),
        ([Session((A3,), 10, ((B5, C5), (A8,), (B5, C5), (B9,)))], "COPY_WENT_BACK"),
        ([Session((A3,), 10, ((B5, C5), (B5, C5), (A8,), (B9,)))], "COPY_WENT_BACK"),
        ([WHOLE, Session((A3,), 20, ((B5, C5), (A8,), (B9,)))], "COPY_WENT_BACK"),
        ([Session((A3,), 10, ((B5, C5, A8), (B9,)))], "COPY_MIXED"),
        ([Session((B5, A3), 10, ((A8,), (B9,)))], "COPY_LISTING"),
        ([Session((B5, C5, A8, Record("d", 2, b"")), 10, ((B9,),))], "COPY_INVENTED"),
        # It was deleted before what is listed beside it was written.
        ([listed(A8, B5, C5), told((B9,)), listed(A8, B5, C5, at=30)], "COPY_WENT_BACK"),
        ([Session((A3,), 10, ((B5, C5), (A8,)))], "COPY_BEHIND"),
    ],
)
def test_a_copy_that_is_not_a_beginning_of_its_home_is_found(sessions, promise):
    found = kinds(copies(TRUTH, sessions))
    assert found[0] == promise, found


@pytest.mark.parametrize(
    ("records", "promises"),
    [
        # Page by page, with versions left out, records that come together, and what is gone.
        ((B5, A8, C5, B9), []),
        ((A3, A8._replace(value=b"9")), ["COPY_INVENTED"]),
        ((A8, A3), ["COPY_WENT_BACK"]),
        ((Record("d", 4, b"1"),), ["COPY_INVENTED"]),
        # A deletion says nothing of when; what comes back after it is not older.
        ((B5, B9._replace(revision=2), B5), []),
    ],
)
def test_a_copy_that_is_made_anew_shows_only_what_was_true_and_nothing_older(records, promises):
    assert kinds(swept(TRUTH, records)) == promises


SWITCHES = [(10, True), (20, False), (30, True)]
TOLD = [Told(11, True, 1_000), Told(21, False, 2_000), Told(31, True, 3_000)]


def look(revision, at_ms):
    return Look(at_ms * 1_000_000, at_ms, revision)


def asked(*throws):
    return due([Throw(revision, at_ms * 1_000_000) for revision, at_ms in throws], SWITCHES, TOLD)


def test_a_switch_that_is_heard_of_and_released_is_no_finding():
    looks = [look(0, 500), look(11, 1_100), look(11, 1_500), look(0, 2_100), look(31, 3_500), look(31, 60_000)]
    throws = asked((10, 1_000), (20, 2_000), (30, 3_000))
    assert throws == [(1_000_000_000, 11), (2_000_000_000, 21), (3_000_000_000, 31)]
    assert stops(TOLD, throws, looks, [], SECOND) == []
    # Who did not ask in between skips what happened in between.
    assert stops(TOLD, throws, [look(11, 1_100), look(31, 3_100)], [], SECOND) == []


@pytest.mark.parametrize(
    ("looks", "promise"),
    [
        # Free before anybody released it.
        ([look(11, 1_100), look(0, 1_500)], "STOP_REVIVED"),
        # Free again, though the last that happened was that it was engaged.
        ([look(31, 3_100), look(0, 3_200)], "STOP_REVIVED"),
        ([look(11, 1_100), look(0, 2_100), look(11, 2_200)], "STOP_WENT_BACK"),
        ([look(12, 1_100)], "STOP_INVENTED"),
        # A release's revision stops nobody.
        ([look(21, 2_100)], "STOP_INVENTED"),
        # Known before it happened.
        ([look(31, 1_500)], "STOP_WENT_BACK"),
        ([look(0, 9_000)], "STOP_LATE"),
        ([look(11, 9_000)], "STOP_LATE"),
    ],
)
def test_what_a_home_never_said_of_a_switch_is_found(looks, promise):
    assert kinds(stops(TOLD, asked((10, 1_000), (20, 2_000), (30, 3_000)), looks, [], SECOND)) == [promise]


def test_nobody_is_late_while_the_way_is_cut_nor_right_after():
    throws, cut = asked((30, 3_000)), [Broken(2_500 * 1_000_000, 8_000 * 1_000_000)]
    looks = [look(11, 2_600), look(11, 7_000), look(11, 8_900)]
    assert stops(TOLD, throws, looks, cut, SECOND) == []
    assert kinds(stops(TOLD, throws, [*looks, look(11, 9_100)], cut, SECOND)) == ["STOP_LATE"]
    # What was effective stays so, cut or not.
    assert kinds(stops(TOLD[:1], asked((10, 1_000)), [look(11, 2_600), look(0, 7_000)], cut, SECOND)) == [
        "STOP_REVIVED"
    ]


def test_what_was_thrown_again_before_it_was_told_is_asked_of_nobody():
    told_late = [Told(35, True, 3_000)]
    throws = [Throw(10, 1), Throw(20, 2), Throw(30, 3)]
    assert due(throws, SWITCHES, told_late) == [(3, 35)]
    assert due([Throw(30, 3)], SWITCHES, TOLD[:2]) == []


def test_a_switch_that_was_never_told_is_found():
    assert untold(SWITCHES, TOLD) == untold([], []) == untold(SWITCHES[:2], []) == []
    assert kinds(untold(SWITCHES, TOLD[:2])) == ["STOP_UNTOLD"]
    assert kinds(untold(SWITCHES[:1], [])) == ["STOP_UNTOLD"]
    assert kinds(untold(SWITCHES[:2], TOLD[:1])) == ["STOP_UNTOLD"]


def test_findings_of_one_scope_are_bounded():
    many = [look(12, 1_100 + n) for n in range(100)]
    assert len(stops(TOLD, [], many, [], SECOND)) == fleet_checks.FINDINGS_MAX
    assert len(copies(TRUTH, [WHOLE, *[told((B5, C5))] * 100])) == fleet_checks.FINDINGS_MAX


def test_a_red_report_says_how_to_repeat_it_and_where_it_is():
    report = Report("mixed", 7, 3, Plan("mixed", 30.0, 7, 3).command, "build/chaos/somewhere")
    report.strikes.append(Strike("region-cut", "eu-west is cut off", 3.0))
    assert report.verdict == "passed"
    report.found("fault", "was not seen")
    said = fleet.said(report)
    assert report.as_json()["verdict"] == "FAILED"
    assert "python -m chaos fleet --scenario mixed --seconds 30 --seed 7 --size 3" in said
    assert "kept in build/chaos/somewhere" in said
    assert replace(Plan("mixed", 30.0, 7), size=1).command.endswith("--seed 7")


class Deaf(fleet_faults.RegionCut):
    """Says that it cut a region off, and does not."""

    async def inject(self) -> None:
        (self._region,) = self.pick(1)
        self.detail = "nobody"
        self.disturbance = self.scene.disturbs(self.around(self._region))

    async def seen(self) -> bool:
        return await self.until(lambda: self.parted(self._region, self.around(self._region)[0][1]), 0.5)


@pytest.mark.timeout(240)
async def test_a_real_fleet_is_red_for_nothing_but_the_fault_that_did_nothing(tmp_path):
    faults = {"kill-under-partition": fleet_faults.KillUnderPartition, "deaf": Deaf}
    report = await fleet.FleetRun(Plan(fleet.MIXED, 20.0, 4), tmp_path, lambda _: None, faults).go()
    deaf = [each for each in report.strikes if each.detail == "nobody"]
    assert deaf
    assert [each.kind for each in report.findings] == ["fault"] * len(deaf), report.findings
    assert "kill-under-partition" in {each.fault for each in report.strikes if each.observed}
    assert all(each.caught_up_s is not None for each in report.strikes)
    assert min(load["answers_per_s"] for load in report.load.values()) > fleet.FLOOR
    assert report.checked["looks at stops of others"] > 6 * fleet.LOOKS_MIN
    assert report.checked["claims of reports that pass"] >= 9
