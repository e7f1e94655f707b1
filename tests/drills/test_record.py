"""The record of a drill: what is signed, and that nothing in it can be changed unnoticed."""

import copy
import json

import pytest

from controlplane import signing
from controlplane.drills import evidence, picture, record
from controlplane.drills.record import Chosen
from tests.drills.conftest import MS


@pytest.fixture
def written(signed):
    """The content of a record on disk, the folder it lies in with its history, and the trusted public key."""
    return signed.read_bytes(), signed.parent, signing.public_key(signed.parent / "maria.key.pub")


def checked(content, folder, trusted):
    made, signature = record.opened(content)
    signed = signing.is_signed(record.canonical(made), signature["value"], trusted)
    return signed, {check.name: check for check in record.recheck(made, folder)}


def failed(checks):
    return {name for name, check in checks.items() if not check.passed}


def test_a_record_verifies_without_a_region(written):
    content, folder, trusted = written
    signed, checks = checked(content, folder, trusted)
    assert signed
    assert not failed(checks)
    made, _ = record.opened(content)
    assert made["verdict"] == "passed"
    assert made["measured"]["recovery_ms"] == 401
    assert made["findings"] == []
    assert {"recovery_ms", "lost_writes", "linearizable", "acted_after_kill", "verdict"} <= set(checks)


def test_whole_numbers_only_and_bytes_that_do_not_depend_on_order(written):
    made, _ = record.opened(written[0])
    turned = json.loads(json.dumps(made), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    assert record.canonical(turned) == record.canonical(made)
    assert b"." not in json.dumps(made["measured"]).encode()
    with pytest.raises(record.RecordInvalid, match="whole numbers"):
        record.opened(written[0].replace(b'"recovery_ms": 401', b'"recovery_ms": 0.5'))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("recovery_ms", 4),
        ("lost_writes", 1),
        ("stale_reads", 1),
        ("linearizable", "not linearizable"),
        ("acknowledged", 10_000),
        ("fencing_refusals", 3),
        ("acted_after_kill", 7),
        ("first_failed_ms", 1),
    ],
)
def test_a_changed_number_is_named(written, name, value):
    content, folder, trusted = written
    made, signature = record.opened(content)
    made["measured"][name] = value
    signed, checks = checked(record.sealed(made, signature["public_key"], signature["value"]), folder, trusted)
    assert not signed
    assert failed(checks) == {f"measured {name}"}


def test_every_changed_claim_is_named(written):
    content, folder, _ = written
    made, _ = record.opened(content)
    for number, claim in enumerate(made["claims"]):
        changed = copy.deepcopy(made)
        changed["claims"][number]["actual"] = "something else"
        assert claim["name"] in {check.name for check in record.recheck(changed, folder) if not check.passed}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            lambda made: made["window"].update(begin_ns=2000 * MS),
            {"window", "recovery_ms", "measured recovery_ms", "measured kill_confirmed_ms"},
        ),
        (lambda made: made["timeline"].pop(1), {"window"}),
        (lambda made: made["claims"].pop(0), {"recovery_ms"}),
        (lambda made: made["claims"].append({"name": "honest", "passed": True}), {"honest"}),
        (lambda made: made["wanted"].update(rto_target_ms=10), {"recovery_ms", "verdict"}),
        (lambda made: made.update(verdict="failed"), {"verdict"}),
        (lambda made: made.update(ended_early="aborted"), {"verdict"}),
        (lambda made: made["history"].update(agents=[]), {"measured agents_silence_ms"}),
    ],
)
def test_what_was_turned_is_named_even_under_a_stolen_key(written, change, named):
    content, folder, _ = written
    made, _ = record.opened(content)
    change(made)
    assert {check.name for check in record.recheck(made, folder) if not check.passed} >= named


def test_anybody_elses_key_does_not_count(written, tmp_path):
    content, _, trusted = written
    made, _ = record.opened(content)
    signing.new(tmp_path / "other.key")
    other = signing.Signer(tmp_path / "other.key")
    forged = other.sign(record.canonical(made))
    assert not signing.is_signed(record.canonical(made), forged, trusted)
    assert signing.is_signed(record.canonical(made), forged, other.public_key)
    for nonsense in ("", "zz", "00" * 64, forged[:-2]):
        assert not signing.is_signed(record.canonical(made), nonsense, other.public_key)


def test_another_history_is_noticed(written):
    content, folder, trusted = written
    history = folder / "drill.history.jsonl"
    lines = history.read_text().splitlines()
    history.write_text("\n".join(lines[:-4]) + "\n")
    _, checks = checked(content, folder, trusted)
    assert {"history", "lost_writes"} <= failed(checks)
    history.write_text("nonsense\n")
    assert failed(checked(content, folder, trusted)[1]) == {"history"}
    history.unlink()
    _, checks = checked(content, folder, trusted)
    assert "not beside the record" in checks["history"].says


def test_a_drill_that_ended_early_has_not_passed(course):
    course.ended_early = "aborted at n2"
    made = record.compose(course, Chosen("because", "", owner="team", retest_days=7), b"", "h")
    assert made["verdict"] == "failed"
    assert [(each["kind"], each["owner"], each["retest_by"]) for each in made["findings"]] == [
        ("failed", "team", "2023-11-21")
    ]


def test_clients_that_waited_longer_than_the_region_are_a_finding(course):
    course.processes = ["maker", "register n1", "register n2", "engage"]
    made = record.compose(course, Chosen("because", ""), b"", "h")
    assert made["verdict"] == "passed"
    assert [each["kind"] for each in made["findings"]] == ["note"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"record": 1, "signature": {}}',
        b'{"record": {"format": 99}, "signature": {}}',
        b"[" * 100_000,
        b'{"record": {"format": 1, "a": "\\ud800"}, "signature": {}}',
        b'{"record": {"format": 1, "verdict": "failed", "verdict": "passed"}, "signature": {}}',
    ],
)
def test_what_is_no_record(content):
    with pytest.raises(record.RecordInvalid):
        record.opened(content)


def test_a_history_of_anything_is_told_to_be_none(written):
    content, folder, _ = written
    made, _ = record.opened(content)
    history = folder / made["history"]["file"]
    began, *rest = history.read_text().splitlines(keepends=True)
    odd = {"at_ns": 1, "process": 99, "phase": "invoke", "key": "k", "kind": "cas", "value": [1]}
    for value in ([1], [], "x"):
        pair = [{**odd, "value": value}, {**odd, "phase": "ok", "at_ns": 2, "value": 3}]
        history.write_text("".join([*(json.dumps(each) + "\n" for each in pair), began, *rest]))
        assert "history" in {check.name for check in record.recheck(made, folder) if not check.passed}
    made["history"]["file"] = "a\0b"
    assert {check.name for check in record.recheck(made, folder) if not check.passed} == {"history"}


def test_a_record_that_is_not_whole(written):
    content, folder, _ = written
    made, _ = record.opened(content)
    for part in ("history", "window", "measured", "claims", "seen", "wanted", "timeline", "verdict"):
        broken = {name: value for name, value in made.items() if name != part}
        with pytest.raises(record.RecordInvalid):
            record.recheck(broken, folder)


def test_a_page_and_a_picture_for_people(written, course):
    made, _ = record.opened(written[0])
    page = record.markdown(made, record.recheck(made, written[1]))
    for words in ("# Drill kill-leader: PASSED", "| recovery ms | at most 2000 | 401 | PASS | yes |", "because"):
        assert words in page
    drawn = picture.draw(course)
    assert drawn.startswith("<svg")
    assert "kill n1 for 5 s" in drawn


def test_keys_are_private_and_never_replaced(tmp_path):
    public = signing.new(tmp_path / "k")
    assert (tmp_path / "k").stat().st_mode & 0o077 == 0
    with pytest.raises(FileExistsError):
        signing.new(tmp_path / "k")
    with pytest.raises(signing.KeyInvalid):
        signing.Signer(public)
    with pytest.raises(signing.KeyInvalid):
        signing.public_key(tmp_path / "k")
    assert signing.Signer(tmp_path / "k").public_key == signing.public_key(public)


def test_the_bound_of_a_kill_is_that_of_a_mirror():
    assert evidence.KILL_BOUND_MS == 5000
