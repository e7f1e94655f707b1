"""The tail: what its operations leave on a disk is what it holds, and `durable` never counts what is not there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.sim_disk import Disk
from controlplane.errors import Fatal
from controlplane.replication.tail import ENTRY_OVERHEAD_BYTES, Entry, Recovered, Tail

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "cut", "meta", "commit", "trim", "reset", "sync", "restart"]),
        st.integers(0, 12),
    ),
    # Without a least size they are of five steps on average, however many there may be.
    min_size=20,
    max_size=60,
)


def take(tail: Tail, disk: Disk, step: str, number: int) -> None:
    # Few at a time: a run holds so few entries that more would leave none of them to the next step.
    few = number % 3
    if step == "add":
        tail.add(Entry(tail.last_index + 1, max(tail.last_term, tail.term), b"x" * number))
    elif step == "cut" and tail.last_index - few > max(tail.commit, tail.boundary_index):
        tail.cut(tail.last_index - few)
    elif step == "meta":
        tail.set_term(tail.term + number % 2, "a" if number % 3 else None)
    elif step == "commit":
        tail.set_commit(tail.commit + few)
    elif step == "trim":
        tail.trim(tail.boundary_index + few)
    elif step == "reset":
        tail.reset(tail.last_index + few, tail.term + 1)
        tail.set_term(tail.term + 1, None)
    elif step == "sync":
        disk.sync(tail.seq - few)
        tail.synced(tail.seq - few)


def contents(tail: Tail) -> Recovered:
    held = [tail.entry(index) for index in range(tail.boundary_index + 1, tail.last_index + 1)]
    return Recovered(tail.boundary_index, tail.boundary_term, tuple(held), tail.term, tail.voted_for, tail.commit)


@given(STEPS)
def test_operations_leave_on_disk_what_the_tail_holds(steps: list[tuple[str, int]]) -> None:
    disk = Disk()
    tail = Tail(disk.recovered(), disk.sink)
    for step, number in steps:
        if step == "restart":
            disk.sync(tail.seq)
            disk.waiting.clear()
            again = Tail(disk.recovered(), disk.sink)
            assert contents(again) == contents(tail)
            tail = again
        take(tail, disk, step, number)
        assert tail.payload_bytes == sum(len(entry.payload) for entry in contents(tail).entries)
        assert tail.boundary_index <= tail.durable <= tail.last_index
        assert tail.boundary_index <= tail.commit <= tail.last_index
        if tail.durable > tail.boundary_index:
            assert disk.holds(tail.entry(tail.durable))


def test_durable_counts_an_entry_that_was_cut_and_added_again_only_when_it_is_synced_again() -> None:
    tail = Tail(Recovered(), lambda *_: None)
    tail.add(Entry(1, 1, b"a"))
    tail.add(Entry(2, 1, b"b"))
    first = tail.seq
    tail.cut(2)
    tail.add(Entry(2, 2, b"c"))
    tail.synced(first)
    assert tail.durable == 1
    tail.synced(tail.seq)
    assert tail.durable == 2
    tail.cut(2)
    tail.add(Entry(2, 3, b"d"))
    assert tail.durable == 1


def test_what_is_committed_or_gone_cannot_be_cut_asked_for_or_reset() -> None:
    tail = Tail(Recovered(3, 1, (Entry(4, 1, b""), Entry(5, 2, b"")), 2, None, 4), lambda *_: None)
    for broken in (
        lambda: tail.cut(4),
        lambda: tail.entry(3),
        lambda: tail.entry(6),
        lambda: tail.term_at(2),
        lambda: tail.batch(3, 100),
        lambda: tail.add(Entry(7, 2, b"")),
        lambda: tail.reset(3, 1),
    ):
        with pytest.raises(Fatal):
            broken()
    assert tail.term_at(3) == 1
    assert not tail.holds(2, 1)
    with pytest.raises(Fatal, match="stands where"):
        Tail(Recovered(0, 0, (Entry(2, 1, b""),)), lambda *_: None)


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(0, 35), st.integers(0, 35), st.integers(0, 8000))
def test_trimming_keeps_the_newest_within_both_bounds(
    sizes: list[int], top: int, keep_entries: int, keep_bytes: int
) -> None:
    tail = Tail(Recovered(), lambda *_: None)
    for index, size in enumerate(sizes, 1):
        tail.add(Entry(index, 1, b"x" * size))
    top = min(top, len(sizes))
    to = tail.excess(top, keep_entries, keep_bytes)
    kept = [ENTRY_OVERHEAD_BYTES + size for size in sizes[to:top]]
    assert 0 <= to <= top
    assert len(kept) <= keep_entries or to == top
    assert sum(kept) <= keep_bytes or to == top
    if to:
        one_more = [ENTRY_OVERHEAD_BYTES + sizes[to - 1], *kept]
        assert len(one_more) > keep_entries or sum(one_more) > keep_bytes


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30), st.integers(1, 2000))
def test_a_batch_fits_its_bound_but_is_never_empty(sizes: list[int], bytes_max: int) -> None:
    tail = Tail(Recovered(), lambda *_: None)
    for index, size in enumerate(sizes, 1):
        tail.add(Entry(index, 1, b"x" * size))
    batch = tail.batch(1, bytes_max)
    assert [entry.index for entry in batch] == list(range(1, len(batch) + 1))
    assert len(batch) == 1 or sum(len(entry.payload) + ENTRY_OVERHEAD_BYTES for entry in batch) <= bytes_max
