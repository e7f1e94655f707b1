"""What every `Store` promises: one suite, run on each implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.kernel.store import Batch, MemoryStore, Row, Store, View
from controlplane.storage import RocksStore

ALL = (b"", b"\xff" * 8)


@pytest.fixture(params=["memory", "rocks"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    rocks = RocksStore(tmp_path / "store")
    yield rocks
    rocks.close()


def put(store: Store, **rows: str) -> None:
    store.commit(Batch(puts={key.encode(): value.encode() for key, value in rows.items()}))


def content(view: View) -> list[Row]:
    return list(view.scan(*ALL))


def test_it_begins_empty(store: Store) -> None:
    assert content(store) == []
    assert store.get(b"a") is None


def test_an_empty_value_is_a_value(store: Store) -> None:
    store.commit(Batch(puts={b"a": b""}))
    assert store.get(b"a") == b""
    assert content(store) == [(b"a", b"")]


def test_the_last_write_of_a_key_stands(store: Store) -> None:
    put(store, a="1")
    put(store, a="2")
    assert content(store) == [(b"a", b"2")]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_takes_its_start_and_not_its_end(store: Store, reverse: bool) -> None:
    rows = {bytes([first, second]): b"v" for first in (1, 2, 255) for second in (0, 1, 255)}
    store.commit(Batch(puts=rows))
    for start in [*rows, b"\1", b"\3", b""]:
        for end in [*rows, b"\2", b"\xff\xff\xff"]:
            expected = sorted((key, value) for key, value in rows.items() if start <= key < end)
            assert list(store.scan(start, end, reverse=reverse)) == (expected[::-1] if reverse else expected)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_range_that_ends_before_it_starts_is_empty(store: Store, reverse: bool) -> None:
    put(store, a="1", b="2")
    assert list(store.scan(b"b", b"a", reverse=reverse)) == []
    assert list(store.scan(b"a", b"a", reverse=reverse)) == []


def test_keys_sort_by_their_bytes(store: Store) -> None:
    keys = [b"a", b"a\0", b"a\0\0", b"a\0\xff", b"a\1", b"aa", b"b", b"\x80", b"\xff", b"\xff\0"]
    store.commit(Batch(puts=dict.fromkeys(reversed(keys), b"v")))
    assert [key for key, _ in content(store)] == sorted(keys)


@pytest.mark.parametrize(
    ("batch", "left"),
    [
        (Batch(ranges=[(b"a", b"c")]), "cd"),
        (Batch(ranges=[(b"a", b"b"), (b"c", b"z")]), "b"),
        (Batch(ranges=[(b"", b"\xff")]), ""),
        (Batch(deletes={b"a", b"nothing"}), "bcd"),
        (Batch(ranges=[(b"a", b"z")], puts={b"b": b"1"}), "b"),
        (Batch(deletes={b"b"}, puts={b"b": b"1"}), "abcd"),
        (Batch(ranges=[(b"a", b"c")], deletes={b"d"}, puts={b"a": b"1"}), "ac"),
    ],
)
def test_a_batch_is_ranges_then_deletes_then_puts(store: Store, batch: Batch, left: str) -> None:
    put(store, a="1", b="1", c="1", d="1")
    store.commit(batch)
    assert "".join(key.decode() for key, _ in content(store)) == left


def test_a_snapshot_does_not_see_what_comes_after(store: Store) -> None:
    put(store, a="1", b="1", c="1")
    snapshot = store.snapshot()
    store.commit(Batch(puts={b"a": b"2", b"d": b"2"}, deletes={b"b"}, ranges=[(b"c", b"d")]))
    assert content(snapshot) == [(b"a", b"1"), (b"b", b"1"), (b"c", b"1")]
    assert [snapshot.get(key) for key in (b"a", b"b", b"c", b"d")] == [b"1", b"1", b"1", None]
    assert list(snapshot.scan(b"a", b"c", reverse=True)) == [(b"b", b"1"), (b"a", b"1")]
    snapshot.close()
    assert content(store) == [(b"a", b"2"), (b"d", b"2")]


def test_a_scan_that_is_dropped_half_way_is_in_nobody_s_way(store: Store) -> None:
    put(store, a="1", b="1")
    rows = store.scan(*ALL)
    next(rows)
    del rows
    put(store, c="1")
    assert len(content(store)) == 3


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_needs_nobody_to_keep_its_bounds(store: Store, reverse: bool) -> None:
    """rocksdict's iterators point into their bounds: with the bounds gone, rows at the end were left out."""
    put(store, pa="1", pb="2", pc="3", z="4")
    for _ in range(200):
        # Bounds that nobody else refers to, and whose memory others take before the first row is read.
        rows = store.scan(bytes([112]), bytes([112, 255]) + bytes(40), reverse=reverse)
        others = [bytes([65]) * size for size in range(30, 60)]
        assert len(list(rows)) == 3
        assert others


def test_a_batch_handed_in_is_not_kept(store: Store) -> None:
    batch = Batch(puts={b"a": b"1"})
    store.commit(batch)
    batch.puts[b"a"] = b"2"
    assert store.get(b"a") == b"1"


@pytest.mark.parametrize("look", [lambda view: view.get(b"k1999"), lambda view: list(view.scan(b"k1999", b"l"))])
def test_many_rows(store: Store, look: Callable[[View], object]) -> None:
    store.commit(Batch(puts={b"k%04d" % n: b"v" * 100 for n in range(2000)}))
    store.commit(Batch(ranges=[(b"k0500", b"k1500")]))
    assert len(content(store)) == 1000
    assert look(store)
