"""The journal against a plain model of the log, under crashes, and under damage to every part of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rocksdict import DBRecoveryMode, Rdict, WriteBatch

from controlplane.errors import Fatal
from controlplane.replication import journal as journal_module
from controlplane.replication.journal import Journal, JournalThread
from controlplane.replication.tail import Add, Commit, Entry, Meta, Op, Recovered, Tail
from controlplane.storage import Tuning, rocks_options

PAYLOADS = st.one_of(st.binary(max_size=20), st.just(b"\x02pickled"), st.just(b""))
NEXT = "start with --replace"


@dataclass
class Model:
    """What a tail did to its log, step by step, through the real `Tail`."""

    tail: Tail = field(init=False)
    ops: list[Op] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tail = Tail(Recovered(), lambda _, op: self.ops.append(op))

    def take(self) -> list[Op]:
        ops, self.ops = self.ops, []
        return ops

    def recovered(self) -> Recovered:
        tail = self.tail
        entries = tuple(tail.entry(index) for index in range(tail.boundary_index + 1, tail.last_index + 1))
        return Recovered(tail.boundary_index, tail.boundary_term, entries, tail.term, tail.voted_for, tail.commit)


def add(model: Model, payload: bytes) -> None:
    tail = model.tail
    tail.add(Entry(tail.last_index + 1, max(tail.term, tail.last_term), payload))


def act(model: Model, action: str, payload: bytes, share: float) -> None:
    """Do one thing a guard may do; `share` chooses where in the log."""
    tail = model.tail
    match action:
        case "add":
            add(model, payload)
        case "cut" if tail.last_index > tail.commit:
            tail.cut(tail.commit + 1 + int(share * (tail.last_index - tail.commit - 1)))
        case "term":
            tail.set_term(tail.term + 1, ["n1", "nœd", None][int(share * 2.9)])
        case "commit":
            tail.set_commit(tail.commit + int(share * (tail.last_index - tail.commit)) + 1)
        case "trim":
            tail.trim(tail.boundary_index + int(share * (tail.commit - tail.boundary_index)))
        case "reset":
            tail.reset(tail.last_index + int(share * 50), tail.term)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["add"] * 6 + ["cut", "term", "commit", "commit", "trim", "reset"]), PAYLOADS, st.floats(0, 1)
    ),
    max_size=12,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(ACTIONS, max_size=6), reopen=st.booleans())
def test_it_recovers_what_the_log_was(
    tmp_path: Path, batches: list[list[tuple[str, bytes, float]]], reopen: bool
) -> None:
    shutil.rmtree(tmp_path / "j", ignore_errors=True)
    model, journal = Model(), Journal(tmp_path / "j")
    for batch in batches:
        for action, payload, share in batch:
            act(model, action, payload, share)
        journal.write(model.take())
        if reopen:
            journal.close()
            journal = Journal(tmp_path / "j")
        assert journal.recover() == model.recovered()
    journal.close()


def filled(folder: Path, entries: int = 20) -> Model:
    """A closed journal of some entries above a boundary, and a vote."""
    model, journal = Model(), Journal(folder)
    model.tail.set_term(3, "n2")
    for n in range(entries):
        add(model, b"entry %d" % n)
        if n == entries // 2:
            model.tail.set_commit(5)
            model.tail.trim(4)
        journal.write(model.take())
    journal.close()
    return model


def raw(folder: Path) -> Rdict:
    return Rdict(str(folder), rocks_options(Tuning(), DBRecoveryMode.tolerate_corrupted_tail_records()))


def open_and_recover(folder: Path) -> Recovered:
    journal = Journal(folder)
    try:
        return journal.recover()
    finally:
        journal.close()


def test_an_untouched_journal_is_empty_and_a_written_one_is_not(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert journal.empty
    assert journal.recover() == Recovered()
    journal.write([Meta(0, None)])
    assert not journal.empty
    journal.close()
    journal = Journal(tmp_path)
    assert not journal.empty
    journal.close()


KEYS = {"state": b"s", "first": b"e" + (5).to_bytes(8, "big"), "last": b"e" + (20).to_bytes(8, "big")}


@pytest.mark.parametrize("row", KEYS)
@pytest.mark.parametrize("region", ["format", "checksum", "head", "middle", "end"])
def test_b8_a_flipped_bit_in_any_part_of_a_row_is_refused(tmp_path: Path, row: str, region: str) -> None:
    filled(tmp_path)
    database = raw(tmp_path)
    content = bytearray(database[KEYS[row]])
    at = {"format": 0, "checksum": 2, "head": 6, "middle": len(content) // 2, "end": len(content) - 1}[region]
    content[at] ^= 0x04
    database[KEYS[row]] = bytes(content)
    database.close()
    with pytest.raises(Fatal, match=NEXT) as refused:
        open_and_recover(tmp_path)
    assert str(tmp_path) in str(refused.value)
    assert {"state": "state row", "first": "entry 5", "last": "entry 20"}[row] in str(refused.value)


@pytest.mark.parametrize("row", KEYS)
def test_b8_a_missing_row_is_refused(tmp_path: Path, row: str) -> None:
    filled(tmp_path)
    database = raw(tmp_path)
    del database[KEYS[row]]
    database.close()
    with pytest.raises(Fatal, match=NEXT):
        open_and_recover(tmp_path)


def test_a_commit_index_outside_of_the_log_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write([Add(1, 1, b"a"), Commit(2)])
    journal.close()
    with pytest.raises(Fatal, match="commit index 2 lies outside"):
        open_and_recover(tmp_path)


def test_b8_a_row_in_another_place_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    database = raw(tmp_path)
    database[KEYS["last"]] = database[KEYS["first"]]
    database.close()
    with pytest.raises(Fatal, match="checksum of entry 20"):
        open_and_recover(tmp_path)


def test_an_unknown_format_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "JOURNAL_FORMAT", 2)
    filled(tmp_path)
    monkeypatch.undo()
    with pytest.raises(Fatal, match=r"format 2, which this version does not know. Start the version that wrote it"):
        open_and_recover(tmp_path)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_b8_a_flipped_bit_anywhere_in_the_files_never_changes_what_is_read(
    tmp_path: Path, share: float, bit: int
) -> None:
    shutil.rmtree(tmp_path / "j", ignore_errors=True)
    model = filled(tmp_path / "j")
    files = [path for kind in ("*.log", "*.sst", "MANIFEST-*", "CURRENT") for path in (tmp_path / "j").glob(kind)]
    sizes = [path.stat().st_size for path in files]
    at = int(share * sum(sizes))
    for path, size in zip(files, sizes, strict=True):
        if at < size:
            content = bytearray(path.read_bytes())
            content[at] ^= 1 << bit
            path.write_bytes(content)
            break
        at -= size
    assert recovered_or_refused(tmp_path / "j") in (model.recovered(), None)


def recovered_or_refused(folder: Path) -> Recovered | None:
    try:
        return open_and_recover(folder)
    except Fatal:
        return None


def test_b8_every_batch_is_synced_and_commit_indexes_alone_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def counted(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fdatasync(descriptor)

    def syncs() -> int:
        assert all(Path(name).suffix == ".log" for name in synced)
        return len(synced)

    fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", counted)
    journal = Journal(tmp_path)
    before = syncs()
    for index in range(1, 6):
        journal.write([Add(index, 1, b"x"), Commit(index - 1)])
        journal.write([Commit(index)])
    assert syncs() == before + 5
    journal.write([Meta(2, "n1")])
    assert syncs() == before + 6
    journal.close()


def test_a_torn_last_batch_is_dropped_whole(tmp_path: Path) -> None:
    """Whatever a crash leaves of the last batch, the journal is what it was before it or after it."""
    states, model, journal = [], Model(), Journal(tmp_path / "j")
    logs: list[int] = []
    for n in range(4):
        model.tail.set_term(n + 1, "n1")
        add(model, b"first of %d" % n)
        add(model, b"second of %d" % n)
        journal.write(model.take())
        states.append(model.recovered())
        logs.append(next((tmp_path / "j").glob("*.log")).stat().st_size)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "j", copy)
    journal.close()
    whole = next(copy.glob("*.log")).read_bytes()[: logs[3]]
    for cut in range(logs[1], logs[3], 9):
        shutil.rmtree(tmp_path / "torn", ignore_errors=True)
        shutil.copytree(copy, tmp_path / "torn")
        next((tmp_path / "torn").glob("*.log")).write_bytes(whole[:cut])
        assert open_and_recover(tmp_path / "torn") == states[1 if cut < logs[2] else 2]


def test_b8_a_flipped_bit_in_the_last_record_is_refused(tmp_path: Path) -> None:
    """Also where it makes a length point past the end of the file, which RocksDB takes for a tear."""
    model, journal, logs = Model(), Journal(tmp_path / "j"), [0]
    for n in range(3):
        add(model, b"entry %d" % n)
        journal.write(model.take())
        logs.append(next((tmp_path / "j").glob("*.log")).stat().st_size)
    shutil.copytree(tmp_path / "j", tmp_path / "copy")
    journal.close()
    for at in [*range(8), *range(8, logs[3] - logs[2], 16)]:
        shutil.rmtree(tmp_path / "torn", ignore_errors=True)
        shutil.copytree(tmp_path / "copy", tmp_path / "torn")
        path = next((tmp_path / "torn").glob("*.log"))
        content = bytearray(path.read_bytes()[: logs[3]])
        content[logs[2] + at] ^= 0x40
        path.write_bytes(content)
        with pytest.raises(Fatal, match=NEXT):
            open_and_recover(tmp_path / "torn")


CHILD = """
import sys
from pathlib import Path
from controlplane.replication.journal import Journal
from controlplane.replication.tail import Entry, Recovered, Tail

journal, ops = Journal(Path(sys.argv[1])), []
tail = Tail(journal.recover(), lambda _, op: ops.append(op))
tail.set_term(tail.term + 1, "n1")
while True:
    for _ in range(3):
        tail.add(Entry(tail.last_index + 1, tail.term, b"%d" % (tail.last_index + 1)))
    tail.set_commit(tail.last_index - 3)
    tail.trim(tail.commit - 20)
    journal.write(ops)
    ops.clear()
    print(tail.boundary_index, tail.last_index, tail.term, flush=True)
"""


def test_b7_b8_sigkill_between_any_two_writes_keeps_everything_reported(tmp_path: Path) -> None:
    for life in range(6):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(20 + 17 * life)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()
        child.wait()
        # The last line may have been cut short with its writer.
        whole = [line for line in lines if line.endswith("\n") and len(line.split()) == 3]
        boundary, last, term = (int(word) for word in whole[-1].split())
        found = open_and_recover(tmp_path)
        assert found.term == term
        assert found.boundary_index >= boundary
        assert found.boundary_index + len(found.entries) in (last, last + 3)
        assert all(entry.payload == b"%d" % entry.index for entry in found.entries)


def test_b6_b7_trimming_keeps_what_is_above_the_boundary(tmp_path: Path) -> None:
    model, journal = Model(), Journal(tmp_path)
    for n in range(100):
        add(model, b"%d" % n)
    model.tail.set_commit(90)
    journal.write(model.take())
    model.tail.trim(60)
    journal.write(model.take())
    journal.close()
    found = open_and_recover(tmp_path)
    assert (found.boundary_index, [entry.index for entry in found.entries]) == (60, list(range(61, 101)))


def test_the_disk_stays_bounded_under_sustained_writing(tmp_path: Path) -> None:
    model, journal = Model(), Journal(tmp_path)
    largest = 0
    for round_ in range(200):
        for _ in range(1000):
            add(model, b"x" * 180)
        model.tail.set_commit(model.tail.last_index)
        model.tail.trim(model.tail.last_index - 2000)
        journal.write(model.take())
        if round_ % 10 == 9:
            largest = max(largest, journal.size_bytes())
    assert largest < 48 << 20
    assert len(journal.recover().entries) == 2000
    journal.close()


def test_a_missing_folder_is_a_new_journal_but_a_lost_file_is_not(tmp_path: Path) -> None:
    filled(tmp_path)
    (tmp_path / "CURRENT").unlink()
    with pytest.raises(Fatal, match=NEXT):
        Journal(tmp_path)


def batched(journal: Journal, batches: list[list[Op]]) -> list[tuple[int, Fatal | None]]:
    """Write batches through the thread, each after the last was reported."""
    reported: list[tuple[int, Fatal | None]] = []
    done = threading.Semaphore(0)

    def report(seq: int, seconds: float, error: Fatal | None) -> None:
        assert seconds >= 0
        reported.append((seq, error))
        done.release()

    thread = JournalThread(journal, report)
    for seq, ops in enumerate(batches, 1):
        thread.write(seq, ops)
        # Nobody hears of what comes behind an error.
        assert (reported and reported[-1][1]) or done.acquire(timeout=10)
    thread.stop(10)
    return reported


def test_the_thread_reports_each_batch_when_it_is_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    assert batched(journal, [[Add(1, 1, b"a")], [Add(2, 1, b"b"), Commit(1)]]) == [(1, None), (2, None)]
    assert [entry.payload for entry in journal.recover().entries] == [b"a", b"b"]
    journal.close()


def test_the_thread_reports_a_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path)
    journal.close()
    ((seq, error),) = batched(journal, [[Add(1, 1, b"a")]])
    assert seq == 1
    assert isinstance(error, Fatal)
    assert "Free or replace the disk" in str(error)


def test_the_thread_writes_nothing_behind_what_it_could_not_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what a batch that failed left: one behind it could be there without it."""
    journal = Journal(tmp_path)

    def refuses(*_: object) -> None:
        monkeypatch.undo()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", refuses)
    reported = batched(journal, [[Add(1, 1, b"a")], [Add(2, 1, b"b")]])
    assert [(seq, error is None) for seq, error in reported] == [(1, False)]
    assert len(journal.recover().entries) <= 1
    journal.close()


class Panic(BaseException):
    """As a panic in RocksDB's binding: no `Exception`."""


@pytest.mark.parametrize("defect", [MemoryError, Panic])
def test_the_thread_reports_what_nobody_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defect: type[BaseException]
) -> None:
    journal = Journal(tmp_path)

    def explode(*_: object) -> None:
        raise defect

    monkeypatch.setattr(journal_module, "_sealed", explode)
    ((seq, error),) = batched(journal, [[Add(1, 1, b"a")]])
    assert seq == 1
    assert isinstance(error, Fatal)
    assert isinstance(error.__cause__, defect)
    journal.close()


def test_a_thread_that_the_disk_holds_up_says_so_when_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, hangs, goes_on = Journal(tmp_path), threading.Event(), threading.Event()
    fdatasync = os.fdatasync

    def held(descriptor: int) -> None:
        hangs.set()
        assert goes_on.wait(30)
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", held)
    thread = JournalThread(journal, lambda *_: None)
    thread.write(1, [Add(1, 1, b"a")])
    assert hangs.wait(30)
    assert not thread.stop(0.01)
    goes_on.set()
    assert thread.stop(30)
    journal.close()


def test_rocksdb_applies_a_batch_in_its_own_order(tmp_path: Path) -> None:
    """What `Journal` relies on: a range delete reaches what stands before it in the batch, not what follows."""
    database = raw(tmp_path)
    batch = WriteBatch(raw_mode=True)
    batch.put(b"a", b"before")
    batch.put(b"b", b"before")
    batch.delete_range(b"a", b"z")
    batch.put(b"b", b"after")
    database.write(batch)
    assert (database.get(b"a"), database.get(b"b")) == (None, b"after")
    database.close()
