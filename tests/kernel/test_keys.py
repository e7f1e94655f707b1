"""Keys sort like what they encode, and can be taken apart again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.kernel import keys
from controlplane.kernel.keys import Key

# Mostly the characters that an escaping could get wrong: the terminator, its neighbour, and both ends of UTF-8.
TEXTS = st.text(st.sampled_from("\0\0\x01aÿ\u07ff\uffff\U0010ffff"), max_size=5) | st.text(max_size=5)
EPOCHS = st.integers(0, 300) | st.integers(0, (1 << 63) - 1)
KEYS = st.builds(Key, TEXTS, TEXTS, TEXTS, EPOCHS, TEXTS, TEXTS)


def encoded(key: Key) -> bytes:
    return keys.within(keys.scope(key.home, key.reach, key.partition, key.epoch), key.kind, key.name)


def sortable(key: Key) -> tuple[bytes | int, ...]:
    return tuple(part.encode() if isinstance(part, str) else part for part in key)


@given(KEYS)
def test_a_key_can_be_taken_apart(key: Key) -> None:
    assert keys.decode(encoded(key)) == key


@given(KEYS, KEYS)
def test_keys_sort_like_their_parts(one: Key, other: Key) -> None:
    assert (encoded(one) < encoded(other)) == (sortable(one) < sortable(other))
    assert (encoded(one) == encoded(other)) == (one == other)


@given(TEXTS, TEXTS, TEXTS)
def test_parts_that_share_a_beginning_sort_like_their_parts(start: str, one: str, other: str) -> None:
    left, right = Key("eu", "GLOBAL", start + one, 7, one, other), Key("eu", "GLOBAL", start + other, 7, other, one)
    assert (encoded(left) < encoded(right)) == (sortable(left) < sortable(right))


@given(KEYS, st.integers(0, 1 << 40))
def test_the_history_of_a_key_holds_no_other_key(key: Key, revision: int) -> None:
    start, end = keys.history(encoded(key), 0), keys.history(encoded(key), (1 << 63) - 1)
    assert start <= keys.history(encoded(key), revision) < end
    for other in (key._replace(name=key.name + "\0"), key._replace(name=key.name + "\0\0"), key._replace(name="")):
        assert other == key or not start <= keys.history(encoded(other), revision) < end


@given(TEXTS, TEXTS)
def test_children_are_exactly_what_continues_a_prefix(name: str, prefix: str) -> None:
    scope = keys.scope("eu", "GLOBAL", "p", 1)
    start, end = keys.children(scope + keys.text("kind") + keys.text(prefix)[:-1])
    assert (start <= keys.within(scope, "kind", name) < end) == name.startswith(prefix)
    start, end = keys.children(scope + keys.text("kind"))
    assert start <= keys.within(scope, "kind", name) < end
    assert not start <= keys.within(scope, "kind\0", name) < end


@given(TEXTS, TEXTS, TEXTS, EPOCHS)
def test_the_domain_of_a_scope_is_its_home_and_reach(home: str, reach: str, partition: str, epoch: int) -> None:
    assert keys.domain_of(keys.scope(home, reach, partition, epoch)) == keys.domain(home, reach)


@given(st.integers(0, 1 << 40), st.integers(0, 1 << 40), st.integers(0, 127), st.integers(0, 127))
def test_events_sort_by_revision_and_place(one: int, other: int, n: int, m: int) -> None:
    domain = keys.domain("eu", "GLOBAL")
    assert (keys.event(domain, one, n) < keys.event(domain, other, m)) == ((one, n) < (other, m))
    start, end = keys.events(domain, min(one, other), max(one, other))
    assert start <= keys.event(domain, one, n) < end
    assert not start <= keys.event(domain, max(one, other) + 1, 0) < end


@given(st.binary(max_size=40))
def test_garbage_is_refused_and_nothing_else_is_raised(garbage: bytes) -> None:
    try:
        parts = keys.decode(garbage)
    except ValueError:
        return
    assert encoded(parts) == garbage


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_key_that_was_cut_short_is_refused(cut: int) -> None:
    whole = encoded(Key("eu", "GLOBAL", "p", 1, "flag", "name"))
    with pytest.raises(ValueError, match=r"."):
        keys.decode(whole[:-cut])
    with pytest.raises(ValueError, match="after the last part"):
        keys.decode(whole + b"x")
