"""A small share of the fuzzing, what it found before, and that it can fail."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from chaos import fuzz
from chaos.fuzz import Outcome, Target, feed_one, run
from chaos.fuzz_files import REGION_FILE, JournalFiles, RegionFile
from chaos.fuzz_targets import TARGETS
from chaos.fuzzing import Places, Share, fuzz_command, outcomes, together
from chaos.mutations import NUMBERS, drawn, redrawn, spoiled
from controlplane.replication import journal
from controlplane.v1.api_pb2 import SetFlagRequest
from controlplane.v1.raft_pb2 import RaftMessage


def fuzzed(kind: str, folder: Path, inputs: range, *, seed: int = 1) -> Outcome:
    with closing(TARGETS[kind](folder)) as target:
        return run(target, kind, inputs, seed=seed)


@pytest.mark.parametrize(
    ("kind", "became"),
    [
        ("journal", {"refused", "whole", "believed"}),
        ("wire", {"refused", "link closed", "taken", "stopped"}),
        ("snapshot", {"refused", "whole", "believed"}),
        ("region", {"refused", "taken"}),
        ("rpc", {"some answered", "all refused"}),
    ],
)
def test_bad_input_is_refused_or_harmless(kind: str, became: set[str], tmp_path: Path) -> None:
    inputs = range(100 if kind == "journal" else 300)
    found = fuzzed(kind, tmp_path, inputs)
    assert not found.failure, found.failure
    assert found.inputs == len(inputs)
    # Inputs that are all refused at the door, or all harmless, prove nothing.
    assert became <= set(found.outcomes), found.outcomes
    assert all(found.outcomes[word] > 3 for word in became)


@pytest.mark.parametrize("kind", TARGETS)
def test_an_input_is_drawn_from_its_number_alone(kind: str, tmp_path: Path) -> None:
    target = TARGETS[kind](tmp_path)
    again = [target.make(Random(f"1/{kind}/{number}")) for number in (3, 7, 3)]
    target.close()
    assert again[0] == again[2] != again[1]


@pytest.mark.parametrize(
    "line",
    [
        f"quota_bytes = {'9' * 5000}",
        f"quota_bytes = 0x{'f' * 5000}",
        f"fleet = {'[' * 3000}",
        f"administrators = [{'[' * 300}{']' * 300}]",
        "[" + ".".join("a" * 1000) + "]",
    ],
)
def test_region_files_that_once_were_no_clear_error(line: str, tmp_path: Path) -> None:
    target = RegionFile(tmp_path)
    found = feed_one(target, "region", line.encode() + b"\n" + REGION_FILE.read_bytes())
    assert not found.failure, found.failure
    assert found.outcomes == {"refused": 1}


# The fuzzer can fail.


class Weak:
    """A parser of `length, bytes` that believes what it reads; `how` says in what it is weak."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.held: list[bytearray] = []

    def make(self, random: Random) -> bytes:
        return spoiled(random, b"\x00\x00\x00\x05hello")

    def feed(self, given: bytes) -> str:
        size = int.from_bytes(given[:4], "big")
        content = given[4 : 4 + size]
        if self.how == "crash" and size > len(given) - 4:
            raise IndexError("out of range")
        if self.how == "memory":
            self.held.append(bytearray(b"\x01") * min(size, 64 << 20))
        if self.how == "slow" and size > 1 << 16:
            time.sleep(30)
        if self.how == "wrong" and content != b"hello":
            raise fuzz.Wrong(f"{content!r} was read")
        if self.how == "panic" and size > 1 << 16:
            raise BaseException("native code gave up")
        return "taken"

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("crash", "IndexError"),
        ("memory", "memory grew by"),
        ("slow", "an input took more than 1 s"),
        ("wrong", "was read"),
        ("panic", "native code gave up"),
    ],
)
def test_a_weak_parser_is_caught(how: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "INPUT_S_MAX", 1)
    target: Target = Weak(how)
    found = run(target, "weak", range(300), seed=1, growth_bytes_max=48 << 20)
    assert text in found.failure
    assert found.failed_at is not None
    alone = run(Weak(how), "weak", range(found.failed_at, found.failed_at + 1), seed=1)
    assert how == "memory" or text in alone.failure, "the number alone repeats it"


def test_a_sound_parser_passes() -> None:
    found = run(Weak("in nothing"), "weak", range(500), seed=1)
    assert (found.failure, found.inputs) == ("", 500)


def test_a_journal_without_checksums_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = JournalFiles(tmp_path)
    monkeypatch.setattr(journal.Journal, "_unsealed", lambda _, __, row, ___: row[5:])
    found = run(target, "journal", range(300), seed=1)
    assert found.failed_at is not None
    assert "was written" in found.failure or "Error" in found.failure


def test_the_command_keeps_and_repeats_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weak: dict[str, Callable[[Path], Target]] = {"weak": lambda _: Weak("wrong")}
    monkeypatch.setattr("chaos.fuzzing.TARGETS", weak)
    arguments = ["--inputs", "50", "--seed", "4", "--keep", str(tmp_path)]
    done = CliRunner().invoke(fuzz_command, arguments)
    assert done.exit_code == 1
    (kept,) = tmp_path.iterdir()
    seed, number = kept.stem.split("-")[1:]
    assert f"repeat: python -m chaos fuzz --kind weak --seed {seed} --from {number} --inputs 1" in done.output
    again = CliRunner().invoke(fuzz_command, ["--kind", "weak", "--replay", str(kept), "--keep", str(tmp_path)])
    assert again.exit_code == 1
    assert CliRunner().invoke(fuzz_command, ["--kind", "none"]).exit_code == 2


def test_the_command_reports_a_clean_run(tmp_path: Path) -> None:
    arguments = ["--inputs", "20", "--kind", "snapshot", "--kind", "region", "--keep", str(tmp_path)]
    done = CliRunner().invoke(fuzz_command, arguments)
    assert done.exit_code == 0, done.output
    assert not list(tmp_path.iterdir())


# Several processes.


class WeakShare(Share):
    """A share whose reader is weak; its kind says in what."""

    def work(self, places: Places, seen: Callable[[int], None]) -> Outcome:
        if self.kind == "gone":
            self.running(places).write_text("the input that did it")
            os._exit(3)
        if self.kind == "endless":
            seen(1)
            time.sleep(600)
        return run(Weak(self.kind), "weak", self.inputs, seed=self.seed)


def shared(kind: str, places: Places, ranges: int) -> Outcome:
    """What two processes at a time find in so many ranges."""
    shares = [WeakShare(kind, range(100 * number, 100 * number + 100), 1) for number in range(ranges)]
    return together(list(outcomes(shares, 2, places, lambda *_: None)))


def test_processes_find_together_what_one_finds(tmp_path: Path) -> None:
    alone = run(Weak("panic"), "weak", range(300), seed=1)
    found = shared("panic", Places(tmp_path, tmp_path), 3)
    assert alone.failed_at is not None
    assert (found.failed_at, found.given, found.seed) == (alone.failed_at, alone.given, 1), "the first of all failures"
    assert "native code gave up" in found.failure


def test_a_process_that_a_reader_took_down_is_a_failure_and_says_at_what(tmp_path: Path) -> None:
    found = shared("gone", Places(tmp_path, tmp_path), 1)
    assert found.failure == "the process ended with code 3; under way: the input that did it"


def test_whoever_stops_listening_ends_the_processes(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def seen(_: Share, __: int) -> None:
        raise Interrupted

    began = time.monotonic()
    shares = [WeakShare("endless", range(1), 1), WeakShare("endless", range(1, 2), 1)]
    with pytest.raises(Interrupted):
        list(outcomes(shares, 2, Places(tmp_path, tmp_path), seen))
    assert time.monotonic() - began < 300, "the processes would have slept for twice as long"


def test_a_report_does_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    arguments = ["--inputs", "31", "--kind", "snapshot", "--keep", str(tmp_path)]
    alone, shared = (CliRunner().invoke(fuzz_command, [*arguments, "--jobs", jobs]) for jobs in "12")
    assert (alone.exit_code, shared.exit_code) == (0, 0), shared.output
    # All but the column of seconds and the one of memory.
    words = re.compile(r"[a-z]+ \d+")
    assert words.findall(alone.output) == words.findall(shared.output) != []
    assert not list(tmp_path.iterdir())


def test_an_interrupted_command_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "chaos", "fuzz", "--kind", "wire", "--jobs", "2", "--keep", str(tmp_path)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 40
        while len(list(tmp_path.glob("wire-*-running"))) < 2:
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.05)
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        child.send_signal(signal.SIGINT)
        assert child.wait(40) != 0
    assert len(children) >= 2
    assert not [pid for pid in children if Path(f"/proc/{pid}/exe").exists() and _worker(pid)]


def _worker(pid: str) -> bool:
    """Whether a process of that number still works for the command."""
    return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_spoiling_changes_and_stays_small() -> None:
    sample = bytes(range(200))
    inputs = [spoiled(Random(number), sample) for number in range(500)]
    assert sum(given != sample for given in inputs) > 450
    assert max(map(len, inputs)) < 5000
    assert spoiled(Random(1), b"") is not None


def test_messages_are_drawn_with_fields_of_every_type() -> None:
    requests = [drawn(Random(number), SetFlagRequest) for number in range(200)]
    assert len({request.SerializeToString(deterministic=True) for request in requests}) > 150
    assert any(request.flag.variants and request.flag.variants[0].HasField("value") for request in requests)
    message = RaftMessage(version=1, term=7)
    for number in range(50):
        redrawn(Random(number), message)
    assert message != RaftMessage(version=1, term=7)
    assert {(1 << 64) - 1, 0} <= set(NUMBERS)
