"""Moves of homes in the ledger: an epoch that is over proves nothing, whoever forges one or has not heard of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane.ledger.bundle import Partition
from tests.ledger.material import Desk, honest, trust

FAIL, PASS, NOT_CHECKED = "FAIL", "PASS", "NOT CHECKED"
GLOBAL = "eu-west.prod.global"


def move(phase, *, epoch=2, former=1, old="eu-west", new="us-east", partition=GLOBAL, **more):
    content = {
        "partition": partition,
        "reach": "global",
        "from": old,
        "former_epoch": former,
        "to": new,
        "epoch": epoch,
        "phase": phase,
        "forced": False,
        "upto": 70,
        "age_ms": 0,
        "attested": "",
    }
    return "move", {**content, **more}


def claiming(report, epoch, home):
    """A report that has the partition in this epoch, at this home."""
    rest = [each for each in report.partitions if each.id != GLOBAL]
    return replace(report, partitions=[*rest, Partition(GLOBAL, home, "global", "prod", epoch)])


def judged(desk: Desk, ledger, epoch, home, **more):
    says = desk.says(desk.written(claiming(ledger.report(), epoch, home)), trust=trust(), **more)
    assert all(says[name][0] == PASS for name in ("LEAVES", "RECORDS", "REACH"))
    return says["HOMES"]


@pytest.fixture(name="desk")
def _desk(tmp_path) -> Desk:
    return Desk(tmp_path)


def test_a_move_that_is_told_as_it_was_passes(desk: Desk):
    moved = honest("eu-west", extra={40: [move("sealed")], 45: [move("left")]})
    told = "2 records of moves, and nothing is claimed under an epoch that they show to be over"
    assert judged(desk, moved, 2, "us-east") == (PASS, told)
    back = {60: [move("adopting", epoch=3, former=2, old="us-east", new="eu-west")]}
    back[61] = [move("adopted", epoch=3, former=2, old="us-east", new="eu-west")]
    moved = honest("eu-west", extra={40: [move("sealed")], 45: [move("left")], **back})
    assert judged(desk, moved, 3, "eu-west")[0] == PASS
    called_off = honest("eu-west", extra={40: [move("sealed")], 45: [move("cancelled")]})
    assert judged(desk, called_off, 1, "eu-west")[0] == PASS


@pytest.mark.parametrize(("epoch", "home"), [(1, "eu-west"), (2, "eu-central"), (1, "us-east")])
def test_a_forged_claim_under_an_epoch_that_is_over_fails(desk: Desk, epoch, home):
    moved = honest("eu-west", extra={40: [move("sealed")], 45: [move("left")]})
    status, says = judged(desk, moved, epoch, home)
    assert status == FAIL
    assert f"in epoch {epoch}, which was over" in says
    assert "leaf 45 of this ledger has it in us-east in epoch 2" in says


@pytest.mark.parametrize(
    "later",
    [
        # Still writing, and giving away, what had left.
        move("sealed", new="eu-central"),
        move("adopted", new="eu-central", old="eu-west"),
        move("left", new="eu-central"),
    ],
)
def test_a_step_that_begins_in_an_epoch_that_is_over_fails(desk: Desk, later):
    forked = honest("eu-west", extra={40: [move("left")], 50: [later]})
    assert judged(desk, forked, 9, "us-east")[0] == FAIL


def test_a_home_that_has_not_heard_yet_is_held_against_the_new_one(desk: Desk):
    """Its own ledger knows nothing of the move: only the bundle of the new home shows that its writes are too late."""
    unaware = honest("eu-west")
    adopted = {40: [move("adopting", forced=True)], 41: [move("adopted", forced=True)]}
    newer = desk.folder / "peer.tar"
    desk.written(honest("us-east", extra=adopted).report()).rename(newer)
    peers = [desk.folder / "eu-central.tar", newer]
    status, says = judged(desk, unaware, 1, "eu-west", peers=peers)
    assert (status, "leaf 41 of us-east" in says) == (FAIL, True)
    assert judged(desk, unaware, 1, "eu-west", peers=[desk.folder / "us-east.tar"])[0] == PASS
    # Clocks differ by up to a minute: what came that close to the end of this bundle says nothing yet.
    for entry, expected in ((79, NOT_CHECKED), (78, NOT_CHECKED), (77, FAIL)):
        late = {entry: [move("adopted", forced=True)]}
        desk.written(honest("us-east", extra=late).report()).rename(newer)
        assert judged(desk, unaware, 1, "eu-west", peers=[newer])[0] == expected


@pytest.mark.parametrize(
    "wrong", [{"phase": "gone"}, {"epoch": 1}, {"epoch": "two"}, {"partition": 7}, {"former_epoch": ""}, {"to": 3}]
)
def test_a_record_that_says_no_move_is_no_record(desk: Desk, wrong):
    name, content = move("left")
    vague = honest("eu-west", extra={40: [(name, {**content, **wrong})]})
    says = desk.says(desk.written(vague.report()), trust=trust())
    assert says["RECORDS"][0] == FAIL
    assert says["HOMES"][0] == NOT_CHECKED


def test_the_statement_says_how_many_moves_it_does_not_tell(desk: Desk):
    steps = {n: [move("sealed"), move("cancelled")] * 20 for n in range(40, 43)}
    told = desk.written(honest("eu-west", extra=steps).report()).read_bytes().decode("utf-8", "replace")
    assert "And 20 more steps: they are in records.jsonl." in told


def test_the_statement_tells_moves_in_words(desk: Desk):
    steps = {
        40: [move("sealed")],
        41: [move("cancelled")],
        42: [move("adopting", forced=True, age_ms=9000)],
        43: [move("adopted", forced=True)],
        44: [move("left")],
    }
    told = desk.written(honest("eu-west", extra=steps).report()).read_bytes().decode("utf-8", "replace")
    for words in (
        "Partitions whose home moved",
        "since then eu-west writes nothing to it",
        "was called off",
        "That copy was 9000 ms old",
        "the forced move from eu-west to us-east, as epoch 2 came to its end",
        "written here after revision 70 is quarantined",
    ):
        assert words in told
    assert "Partitions whose home moved" not in (desk.folder / "eu-west.tar").read_bytes().decode("utf-8", "replace")
