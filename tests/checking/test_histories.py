from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from chaos.sample_histories import Load, sample
from controlplane.checking import histories
from controlplane.checking.histories import NEVER, Event, HistoryFull, HistoryInvalid, Operation, Phase, Recorder


def test_every_end_makes_its_operation() -> None:
    recorder = Recorder()
    recorder.invoke(1, "k", "create", "a", 10)
    recorder.invoke(2, "k", "read", None, 11)
    recorder.ok(1, 1, 20)
    recorder.info(2, "deadline", 21)
    recorder.invoke(2, "k", "cas", [1, "b"], 22)
    recorder.invoke(3, "j", "read", None, 23)
    recorder.fail(3, "unavailable", 24)
    history = recorder.history()
    assert history.operations == (
        Operation(1, "k", "create", "a", 1, 10, 20),
        Operation(2, "k", "read", None, "deadline", 11, NEVER),
        Operation(2, "k", "cas", (1, "b"), None, 22, NEVER),
    )
    assert history.failures == (Operation(3, "j", "read", None, "unavailable", 23, 24),)
    assert history.unknown == 2


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    events = sample(Random(1), "list", Load(keys=2, per_key=40))
    events.append(Event(events[-1].at_ns, 99, Phase.INVOKE, "ключ\n", "append", ("a", (1, None, True), -(1 << 70))))
    histories.write(tmp_path / "h.jsonl", events)
    assert histories.read(tmp_path / "h.jsonl") == events


def test_a_full_recorder_lets_everything_end() -> None:
    recorder = Recorder(events_max=5)
    recorder.invoke(1, "k", "read", None, 1)
    recorder.invoke(2, "k", "read", None, 1)
    assert recorder.full
    with pytest.raises(HistoryFull):
        recorder.invoke(3, "k", "read", None, 1)
    recorder.ok(1, None, 2)
    recorder.ok(2, None, 2)
    assert len(recorder.events) == 4


def test_a_process_does_one_thing_at_a_time() -> None:
    recorder = Recorder()
    with pytest.raises(HistoryInvalid, match="nothing open"):
        recorder.ok(1, None, 1)
    recorder.invoke(1, "k", "read", None, 5)
    with pytest.raises(HistoryInvalid, match="before it was answered"):
        recorder.invoke(1, "k", "read", None, 6)
    with pytest.raises(HistoryInvalid, match="time goes back"):
        recorder.ok(1, None, 4)
    with pytest.raises(HistoryInvalid, match="cannot be a float"):
        recorder.ok(1, [1.5], 6)
    recorder.ok(1, None, 6)


GOOD = {"at_ns": 1, "process": 1, "phase": "invoke", "key": "k", "kind": "read", "value": None}


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("", "Expecting value"),
        ("[]", "an event is an object"),
        (json.dumps(GOOD | {"more": 1}), "an event is an object"),
        (json.dumps(GOOD | {"at_ns": True}), "at_ns must be of type int"),
        (json.dumps(GOOD | {"at_ns": -1}), "at_ns must be from 0"),
        (json.dumps(GOOD | {"process": "1"}), "process must be of type int"),
        (json.dumps(GOOD | {"phase": "begin"}), "'begin' is not a valid Phase"),
        (json.dumps(GOOD | {"value": {"a": 1}}), "cannot be a dict"),
        (json.dumps(GOOD | {"value": 0.5}), "cannot be a float"),
        ('{"at_ns":NaN}', "an event is an object"),
        ("[" * 100_000, "line 2"),
        ("9" * 5_000, "line 2"),
        ("é".encode("latin-1"), "line 2"),
        ('"' + "x" * histories.LINE_BYTES_MAX + '"', "longer than"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str | bytes, text: str) -> None:
    path = tmp_path / "h.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + (line if isinstance(line, bytes) else line.encode()) + b"\n")
    with pytest.raises(HistoryInvalid, match="line 2: ") as caught:
        histories.read(path)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([(1, Phase.OK, "k")], "event 1: process 1 has nothing open"),
        ([(1, Phase.INVOKE, "k"), (2, Phase.INVOKE, "k")], "event 2: process 1 asks again"),
        ([(1, Phase.INVOKE, "k"), (2, Phase.OK, "j")], "event 2: process 1 ends another operation"),
        ([(2, Phase.INVOKE, "k"), (1, Phase.OK, "k")], "event 2: process 1 is answered before it asked"),
    ],
)
def test_events_that_do_not_pair_are_refused(events: list[tuple[int, Phase, str]], text: str) -> None:
    with pytest.raises(HistoryInvalid, match=text):
        histories.pair(Event(at, 1, phase, key, "read") for at, phase, key in events)
