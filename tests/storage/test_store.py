"""The store against a plain dictionary, its views, and what it does about damage."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane import storage
from controlplane.errors import Fatal
from controlplane.kernel.store import Batch, MemoryStore
from controlplane.storage import RocksStore, WriteAheadLogs

KEYS = st.binary(min_size=1, max_size=3)
BATCHES = st.builds(
    Batch,
    puts=st.dictionaries(KEYS, st.binary(max_size=4), max_size=4),
    deletes=st.sets(KEYS, max_size=3),
    ranges=st.lists(st.tuples(KEYS, KEYS).map(lambda pair: (min(pair), max(pair))), max_size=2),
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RocksStore]:
    store = RocksStore(tmp_path / "store")
    yield store
    store.close()


def put(store: RocksStore, **rows: str) -> None:
    store.commit(Batch(puts={key.encode(): value.encode() for key, value in rows.items()}))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(BATCHES, max_size=6), bounds=st.tuples(KEYS, KEYS), looked_up=KEYS)
def test_it_is_what_the_memory_store_is(
    tmp_path: Path, batches: list[Batch], bounds: tuple[bytes, bytes], looked_up: bytes
) -> None:
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    rocks, memory = RocksStore(tmp_path / "store"), MemoryStore()
    for batch in batches:
        rocks.commit(batch)
        memory.commit(batch)
    view = rocks.snapshot()
    for start, end in (bounds, (b"", b"\xff" * 8)):
        for reverse in (False, True):
            expected = list(memory.scan(start, end, reverse=reverse))
            assert list(rocks.scan(start, end, reverse=reverse)) == expected
            assert list(view.scan(start, end, reverse=reverse)) == expected
    assert rocks.get(looked_up) == memory.get(looked_up) == view.get(looked_up)
    rocks.close()


def test_order_of_effect_is_ranges_deletes_puts(store: RocksStore) -> None:
    put(store, a="old", b="old", c="old")
    store.commit(Batch(ranges=[(b"a", b"c")], deletes={b"c"}, puts={b"b": b"new", b"c": b"new"}))
    assert list(store.scan(b"a", b"z")) == [(b"b", b"new"), (b"c", b"new")]


def test_a_scan_shows_the_moment_it_was_called(store: RocksStore) -> None:
    put(store, a="1", b="1")
    rows = store.scan(b"a", b"z")
    put(store, a="2", c="2")
    assert list(rows) == [(b"a", b"1"), (b"b", b"1")]


def test_a_view_does_not_move_with_later_commits(store: RocksStore) -> None:
    put(store, a="1", b="1")
    view = store.snapshot()
    put(store, a="2", c="2")
    store.commit(Batch(ranges=[(b"b", b"c")]))
    assert list(view.scan(b"a", b"z")) == [(b"a", b"1"), (b"b", b"1")]
    assert (view.get(b"a"), view.get(b"c")) == (b"1", None)


def test_scans_of_one_view_may_interleave(store: RocksStore) -> None:
    """Values so large that each scan has to come back to the shared iterator for every row."""
    put(store, **dict.fromkeys("abcd", "x" * 40_000))
    view = store.snapshot()
    up, down = view.scan(b"a", b"z"), view.scan(b"a", b"z", reverse=True)
    seen = [next(up), next(down), next(up), next(down)]
    assert view.get(b"d") is not None
    assert [key for key, _ in [*seen, *up, *down]] == [b"a", b"d", b"b", b"c", b"c", b"d", b"b", b"a"]


def test_a_view_is_read_from_another_thread_while_commits_go_on(store: RocksStore) -> None:
    put(store, **{f"k{n:04d}": "1" for n in range(2000)})
    view, counts = store.snapshot(), []
    thread = threading.Thread(target=lambda: counts.append(sum(value == b"1" for _, value in view.scan(b"k", b"l"))))
    thread.start()
    for n in range(500):
        put(store, **{f"k{n:04d}": "2"})
    thread.join()
    assert counts == [2000]


def test_a_closed_view_is_refused(store: RocksStore) -> None:
    view = store.snapshot()
    view.close()
    with pytest.raises(Fatal, match="closed view"):
        view.get(b"a")


def test_it_opens_again_with_what_it_had(tmp_path: Path) -> None:
    store = RocksStore(tmp_path)
    put(store, a="1")
    store.snapshot()
    store.close()
    store = RocksStore(tmp_path)
    assert store.get(b"a") == b"1"
    store.close()


def test_a_crash_while_it_is_created_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    RocksStore(tmp_path / "whole").close()
    (tmp_path / "half").mkdir()
    storage._write_current(tmp_path / "half", 0)
    (tmp_path / "half" / "000001").mkdir()
    (tmp_path / "half" / "000001" / "MANIFEST-000001").write_bytes(b"torn")
    store = RocksStore(tmp_path / "half")
    put(store, a="1")
    store.close()


def test_write_ahead_logs_are_synced_oldest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("000012.log", "000007.log", "000010.log", "MANIFEST-000004"):
        (tmp_path / name).write_bytes(b"")
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fdatasync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)
    )
    logs = storage.WriteAheadLogs(tmp_path)
    logs.sync()
    (tmp_path / "000007.log").unlink()
    (tmp_path / "000011.log").write_bytes(b"")
    logs.sync()
    logs.close()
    assert synced == ["000007.log", "000010.log", "000012.log", "000010.log", "000011.log", "000012.log"]


def test_a_new_write_ahead_log_has_its_name_synced_and_one_that_is_gone_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[Path] = []
    files: dict[str, int] = {}

    def behind(descriptor: int) -> Path:
        return Path(f"/proc/self/fd/{descriptor}").readlink()

    monkeypatch.setattr(os, "fsync", lambda descriptor: folders.append(behind(descriptor)))
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: files.update({behind(descriptor).name: descriptor}))
    logs = storage.WriteAheadLogs(tmp_path)
    for name in ("000007.log", "000010.log"):
        (tmp_path / name).touch()
        logs.sync()
        assert folders == [tmp_path]
        folders.clear()
        logs.sync()
        assert folders == []
    (tmp_path / "000007.log").unlink()
    logs.sync()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(files["000007.log"])
    logs.close()


def test_closing_it_syncs_what_was_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RocksStore(tmp_path)
    put(store, a="1")
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fdatasync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().suffix)
    )
    store.close()
    assert synced == [".log"]


def test_an_unknown_format_stops_it(tmp_path: Path) -> None:
    RocksStore(tmp_path).close()
    (tmp_path / "CURRENT").write_text(f"store 2 1 {storage._pointer_checksum('2', '1')}\n")
    with pytest.raises(Fatal, match=r"CURRENT: store format 2 is not known"):
        RocksStore(tmp_path)


@pytest.mark.parametrize("damage", ["pointer", "no pointer", "no folder", "manifest", "table"])
def test_damage_is_named_with_the_next_step(tmp_path: Path, damage: str) -> None:
    store = RocksStore(tmp_path)
    put(store, **{f"k{n}": "x" * 1000 for n in range(100)})
    store._db.flush(True)
    store.close()
    match damage:
        case "pointer":
            (tmp_path / "CURRENT").write_text("store 1 7 00000000\n")
        case "no pointer":
            (tmp_path / "CURRENT").unlink()
        case "no folder":
            shutil.rmtree(tmp_path / "000001")
        case "manifest":
            flip(next((tmp_path / "000001").glob("MANIFEST-*")))
        case "table":
            flip(next((tmp_path / "000001").glob("*.sst")))
    with pytest.raises(Fatal, match=str(tmp_path)) as raised:
        read_all(tmp_path)
    assert "--replace" in str(raised.value)


def test_a_view_does_not_take_damage_for_absence(tmp_path: Path) -> None:
    store = RocksStore(tmp_path)
    put(store, **{f"k{n}": "x" * 1000 for n in range(100)})
    store._db.flush(True)
    store.close()
    flip(next((tmp_path / "000001").glob("*.sst")))
    store = RocksStore(tmp_path)
    try:
        view = store.snapshot()
        with pytest.raises(Fatal, match="--replace"):
            _ = [view.get(f"k{n}".encode()) for n in range(100)]
    finally:
        store.close()


def read_all(folder: Path) -> None:
    store = RocksStore(folder)
    try:
        list(store.scan(b"a", b"z"))
    finally:
        store.close()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x10
    path.write_bytes(content)


def test_what_was_deleted_is_in_no_file(store: RocksStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_REWRITE_S", 0.05)

    def on_disk() -> list[Path]:
        return [path for path in tmp_path.rglob("*") if path.is_file() and b"qkzvxw" in path.read_bytes()]

    put(store, a="qkzvxw", b="stays")
    assert store.scrub()
    assert [path.suffix for path in on_disk()] == [".sst"]
    reading = store.snapshot()
    store.commit(Batch(deletes={b"a"}))
    # Whoever reads what was before keeps its files there, and that is said.
    assert not store.scrub()
    assert on_disk()
    reading.close()
    assert store.scrub()
    assert on_disk() == []
    assert (store.get(b"a"), store.get(b"b")) == (None, b"stays")


def test_older_logs_are_synced_before_newer_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (999_998, 999_999, 1_000_000, 1_000_001):
        (tmp_path / f"{number}.log").touch()
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fdatasync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().stem)
    )
    logs = WriteAheadLogs(tmp_path)
    logs.sync()
    logs.close()
    assert synced == ["999998", "999999", "1000000", "1000001"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_not_taken_for_damage(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    try:
        store = RocksStore(disk / "store")
        store.commit(Batch(puts={b"key": b"value"}))
        store.close()
        with contextlib.suppress(OSError), (disk / "filler").open("wb") as filler:
            while True:
                filler.write(bytes(4096))
                filler.flush()
        with pytest.raises(Fatal, match="Nothing is lost: free the disk"):
            RocksStore(disk / "store")
        (disk / "filler").unlink()
        store = RocksStore(disk / "store")
        assert store.get(b"key") == b"value"
        store.close()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
