"""An overlay shows what the store will be once its changes are committed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controlplane.kernel.store import Batch, MemoryStore, Overlay

KEYS = st.binary(max_size=2).filter(bool) | st.sampled_from([b"a", b"b", b"c", b"a\0", b"a\xff"])
RANGES = st.tuples(KEYS, KEYS)
CHANGES = st.lists(
    st.tuples(st.just("put"), KEYS, st.binary(max_size=2))
    | st.tuples(st.just("delete"), KEYS)
    | st.tuples(st.just("drop"), KEYS, KEYS),
    max_size=10,
)
CONTENTS = st.dictionaries(KEYS, st.binary(max_size=2), max_size=8)


def stored(content: dict[bytes, bytes]) -> MemoryStore:
    store = MemoryStore()
    store.commit(Batch(puts=dict(content)))
    return store


def changed(overlay: Overlay, content: dict[bytes, bytes], changes: list[tuple[bytes, ...]]) -> dict[bytes, bytes]:
    """Make `changes` to the overlay, and return what a plain dictionary makes of them: drops reach the base only."""
    kept, mine = dict(content), {}
    for what, *arguments in changes:
        getattr(overlay, str(what))(*arguments)
        if what == "drop":
            kept = {key: value for key, value in kept.items() if not arguments[0] <= key < arguments[1]}
        else:
            mine[arguments[0]] = arguments[1] if what == "put" else None
    return {key: value for key, value in (kept | mine).items() if value is not None}


@given(CONTENTS, CHANGES, st.lists(RANGES, max_size=4))
def test_it_reads_like_a_dictionary(
    content: dict[bytes, bytes], changes: list[tuple[bytes, ...]], ranges: list[tuple[bytes, bytes]]
) -> None:
    overlay = Overlay(stored(content))
    model = changed(overlay, content, changes)
    assert {key: overlay.get(key) for key in {*content, *model, b"a"}} == {
        key: model.get(key) for key in {*content, *model, b"a"}
    }
    for start, end in [*ranges, (b"", b"\xff\xff\xff")]:
        expected = sorted((key, value) for key, value in model.items() if start <= key < end)
        assert list(overlay.scan(start, end)) == expected
        assert list(overlay.scan(start, end, reverse=True)) == expected[::-1]


@given(CONTENTS, CHANGES)
def test_committing_it_makes_the_store_what_it_showed(
    content: dict[bytes, bytes], changes: list[tuple[bytes, ...]]
) -> None:
    store = stored(content)
    overlay = Overlay(store)
    model = changed(overlay, content, changes)
    store.commit(overlay.take())
    assert list(store.scan(b"", b"\xff\xff\xff")) == sorted(model.items())


@given(CONTENTS, CHANGES)
def test_the_store_below_does_not_change_meanwhile(
    content: dict[bytes, bytes], changes: list[tuple[bytes, ...]]
) -> None:
    store = stored(content)
    changed(Overlay(store), content, changes)
    assert list(store.scan(b"", b"\xff\xff\xff")) == sorted(content.items())
