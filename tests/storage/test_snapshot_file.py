"""Snapshots as files: whole or refused, installed or not at all, and never in the loop's way."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane import storage
from controlplane.errors import Fatal
from controlplane.kernel.store import Batch
from controlplane.storage import RocksStore, read_snapshot, write_snapshot
from controlplane.v1.peer_pb2 import SnapshotHeader

HEADER = SnapshotHeader(format=1, fleet="f", region="r", index=7, term=3)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RocksStore]:
    store = RocksStore(tmp_path / "store")
    yield store
    store.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A snapshot file of three blocks."""
    folder = tmp_path_factory.mktemp("snapshot")
    store = RocksStore(folder / "store")
    store.commit(Batch(puts={b"k%03d" % n: os.urandom(500) for n in range(150)}))
    write_snapshot(store.snapshot(), folder / "file", HEADER)
    store.close()
    return (folder / "file").read_bytes()


def rows_of(path: Path, header: SnapshotHeader = HEADER) -> list[tuple[bytes, bytes]]:
    return [row for block in read_snapshot(path, header) for row in block]


def test_it_carries_every_row(store: RocksStore, tmp_path: Path) -> None:
    rows = {bytes([n % 251, n // 251]): os.urandom(n % 2000) for n in range(1000)}
    store.commit(Batch(puts=rows))
    view = store.snapshot()
    store.commit(Batch(ranges=[(b"\x00", b"\xff")]))
    write_snapshot(view, tmp_path / "file", HEADER)
    assert rows_of(tmp_path / "file") == sorted(rows.items())


def test_an_empty_store_has_an_empty_snapshot(store: RocksStore, tmp_path: Path) -> None:
    write_snapshot(store.snapshot(), tmp_path / "file", HEADER)
    assert rows_of(tmp_path / "file") == []


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_b10_any_flipped_bit_is_noticed(tmp_path: Path, written: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(written) - 1))
    damaged = bytearray(written)
    damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "file").write_bytes(damaged)
    with pytest.raises(Fatal, match=str(tmp_path / "file")):
        rows_of(tmp_path / "file")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_b10_a_cut_or_lengthened_file_is_noticed(tmp_path: Path, written: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(written) - 1))
    for content in (written[:cut], written + b"\0"):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(Fatal):
            rows_of(tmp_path / "file")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300))
def test_garbage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(Fatal):
        rows_of(tmp_path / "file")


@pytest.mark.parametrize("field", ["fleet", "region", "index", "term", "format"])
def test_a_snapshot_of_something_else_is_refused(tmp_path: Path, written: bytes, field: str) -> None:
    (tmp_path / "file").write_bytes(written)
    other = SnapshotHeader.FromString(HEADER.SerializeToString())
    setattr(other, field, "x" if field in ("fleet", "region") else 9)
    with pytest.raises(Fatal, match="not the snapshot it should be"):
        rows_of(tmp_path / "file", other)


class Shown:
    """A view of a store that shows rows in the order given."""

    def __init__(self, *rows: tuple[bytes, bytes]) -> None:
        self._rows = rows

    def get(self, key: bytes) -> bytes | None:
        return dict(self._rows).get(key)

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        return iter(self._rows)

    def close(self) -> None: ...


@pytest.mark.parametrize("names", [b"ba", b"aa"])
def test_rows_out_of_order_or_twice_are_refused(tmp_path: Path, names: bytes) -> None:
    write_snapshot(Shown(*((bytes([name]), b"1") for name in names)), tmp_path / "file", HEADER)
    with pytest.raises(Fatal, match="out of order"):
        rows_of(tmp_path / "file")


def test_a_block_larger_than_any_is_refused_before_room_is_made_for_it(tmp_path: Path, written: bytes) -> None:
    first = 16 + int.from_bytes(written[8:12], "big")
    (tmp_path / "file").write_bytes(written[:first] + b"\xff" * 4 + written[first + 4 :])
    with pytest.raises(Fatal, match="larger than any"):
        rows_of(tmp_path / "file")


def test_everything_is_synced_before_the_next_step_counts_on_it(
    store: RocksStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def noted(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append(path.suffix if path.suffix == ".log" else path.name)

    store.commit(Batch(puts={b"a": b"1"}))
    for call in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, call, noted)
    write_snapshot(store.snapshot(), tmp_path / "file", HEADER)
    assert synced == ["file"]
    synced.clear()
    staged = store.stage(tmp_path / "file", HEADER)
    # What is in the next generation, and its name.
    assert ".log" in synced
    assert synced.index("000002") < synced.index("store")
    synced.clear()
    store.adopt(staged)
    assert synced == ["CURRENT.new", "store"]


def test_install_replaces_everything_and_survives(store: RocksStore, tmp_path: Path, written: bytes) -> None:
    (tmp_path / "file").write_bytes(written)
    store.commit(Batch(puts={b"old": b"1"}))
    before = store.snapshot()
    staged = store.stage(tmp_path / "file", HEADER)
    assert store.get(b"old") == b"1"
    store.adopt(staged)
    assert list(store.scan(b"", b"\xff")) == rows_of(tmp_path / "file")
    store.sweep()
    assert before.get(b"old") == b"1"
    store.commit(Batch(puts={b"new": b"2"}))
    assert len(list((tmp_path / "store").glob("[0-9]*"))) == 1
    store.close()
    again = RocksStore(tmp_path / "store")
    assert (again.get(b"old"), again.get(b"new"), again.get(b"k000") is None) == (None, b"2", False)
    again.close()


def test_what_a_snapshot_replaces_while_it_is_scrubbed_is_swept_before_the_scrub_is_done(
    store: RocksStore, tmp_path: Path, written: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it stayed for ever, because what another thread is still at work on cannot be closed."""
    rewriting, goes_on = threading.Event(), threading.Event()
    rewritten = storage.rewritten

    def rewritten_slowly(database: Any, folder: Path) -> bool:
        rewriting.set()
        assert goes_on.wait(10)
        return rewritten(database, folder)

    monkeypatch.setattr(storage, "rewritten", rewritten_slowly)
    (tmp_path / "file").write_bytes(written)
    store.commit(Batch(puts={b"old": b"1"}))
    with ThreadPoolExecutor(2) as threads:
        scrubbing = threads.submit(store.scrub)
        assert rewriting.wait(10)
        store.adopt(store.stage(tmp_path / "file", HEADER))
        sweeping = threads.submit(store.sweep)
        with pytest.raises(TimeoutError):
            sweeping.result(0.05)
        goes_on.set()
        assert not scrubbing.result(10)
        sweeping.result(10)
    assert [path.name for path in (tmp_path / "store").glob("[0-9]*")] == ["000002"]
    assert store.scrub()


def test_what_was_replaced_and_is_not_swept_yet_is_not_scrubbed(
    store: RocksStore, tmp_path: Path, written: bytes
) -> None:
    (tmp_path / "file").write_bytes(written)
    store.adopt(store.stage(tmp_path / "file", HEADER))
    assert not store.scrub()
    staged = store.stage(tmp_path / "file", HEADER)
    store.sweep()
    # What is being staged is not what was replaced.
    assert store.scrub()
    store.adopt(staged)
    assert len(list(store.scan(b"", b"\xff"))) > 0


def test_b10_a_damaged_snapshot_changes_nothing(store: RocksStore, tmp_path: Path, written: bytes) -> None:
    store.commit(Batch(puts={b"old": b"1"}))
    (tmp_path / "file").write_bytes(written[:-1])
    with pytest.raises(Fatal, match="ends too early"):
        store.stage(tmp_path / "file", HEADER)
    store.close()
    again = RocksStore(tmp_path / "store")
    assert list(again.scan(b"", b"\xff")) == [(b"old", b"1")]
    again.close()


CRASHING = """
import os, sys
from pathlib import Path
from controlplane import storage
from controlplane.kernel.store import Batch
from controlplane.v1.peer_pb2 import SnapshotHeader

folder, moment = Path(sys.argv[1]), sys.argv[2]
store = storage.RocksStore(folder / "store")
store.commit(Batch(puts={b"old": b"1"}))
staged = store.stage(folder / "file", SnapshotHeader(format=1, fleet="f", region="r", index=7, term=3))
if moment == "staged":
    os._exit(0)
if moment == "pointer written":
    Path.replace = lambda *_: os._exit(0)
store.adopt(staged)
os._exit(0)
"""


def test_what_a_damaged_snapshot_left_is_not_in_the_next_one(store: RocksStore, tmp_path: Path, written: bytes) -> None:
    (tmp_path / "damaged").write_bytes(written[:-1] + bytes([written[-1] ^ 1]))
    with pytest.raises(Fatal, match="does not match"):
        store.stage(tmp_path / "damaged", HEADER)
    write_snapshot(Shown((b"a", b"1")), tmp_path / "file", HEADER)
    store.adopt(store.stage(tmp_path / "file", HEADER))
    assert list(store.scan(b"", b"z")) == [(b"a", b"1")]


@pytest.mark.parametrize("moment", ["staged", "pointer written", "renamed"])
def test_a_crash_leaves_the_old_state_or_the_new(tmp_path: Path, written: bytes, moment: str) -> None:
    (tmp_path / "file").write_bytes(written)
    subprocess.run([sys.executable, "-c", CRASHING, str(tmp_path), moment], check=True, timeout=20)
    store = RocksStore(tmp_path / "store")
    rows = list(store.scan(b"", b"\xff"))
    assert rows == (rows_of(tmp_path / "file") if moment == "renamed" else [(b"old", b"1")])
    assert len(list((tmp_path / "store").glob("[0-9]*"))) == 1
    store.close()


def test_writing_and_installing_yield_to_the_loop(store: RocksStore, tmp_path: Path) -> None:
    """The work is done in slices: many times within it the loop's thread gets the interpreter lock at once."""
    for start in range(0, 20_000, 1000):
        store.commit(Batch(puts={b"%08d" % n: b"v" * 200 for n in range(start, start + 1000)}))

    async def measured() -> tuple[int, float]:
        view = store.snapshot()
        work = asyncio.ensure_future(asyncio.to_thread(write_snapshot, view, tmp_path / "file", HEADER))
        turns, longest, last = 0, 0.0, time.perf_counter()
        while not work.done():
            await asyncio.sleep(0)
            now = time.perf_counter()
            turns, longest, last = turns + 1, max(longest, now - last), now
        await work
        return turns, longest

    turns, longest = asyncio.run(measured())
    assert turns > 100
    assert longest < 0.25
