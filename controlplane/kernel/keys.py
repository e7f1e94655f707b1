"""Where things stand in the store: order-preserving encodings of keys, and the layout of the key space.

A record's key is `home / reach / partition / epoch / kind / name`. Residency comes first, so that what an exporter may
see is a range of keys and not a filter. Text parts end with a zero byte; a zero byte inside one is written as 00 FF,
which sorts after every terminated part. Numbers are eight bytes, big-endian.

The first byte of a store key says what the row is: see the constants below.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

RECORD = b"r"
"""+ key → the newest `Event` of the key."""
EVENT = b"e"
"""+ domain + revision + n (2 bytes) → `Event`; domain is the encoded home and reach."""
HISTORY = b"h"
"""+ key + revision → `Event`."""
OUTCOME = b"o"
"""+ generation + digest of nonce and identity (16 bytes) → `Outcome`."""
LEDGER = b"l"
"""+ what `features.audit` puts there: rows beside the state, equal on every replica and not part of its hash."""
STATE = b"m/state"
"""→ `State`."""

CURSOR_KIND = "cursor"
"""The one kind that a transaction may write outside of its partition: see `state.proto`, `Txn`."""

ERASURE_KIND = "erasure"
"""Records that say of others that they were erased; see `erasure_name`."""

_END = b"\0"
_NUMBER_BYTES = 8


class Key(NamedTuple):
    """The parts of a record's key. `reach` is the name of a `Reach` value."""

    home: str
    reach: str
    partition: str
    epoch: int
    kind: str
    name: str


def number(value: int) -> bytes:
    """Eight bytes that sort like `value` (0 ≤ value < 2⁶³)."""
    return value.to_bytes(_NUMBER_BYTES, "big")


def text(value: str) -> bytes:
    """A terminated part that sorts like the UTF-8 bytes of `value`."""
    return value.encode().replace(_END, b"\0\xff") + _END


def domain(home: str, reach: str) -> bytes:
    """The prefix shared by everything of one home and reach."""
    return text(home) + text(reach)


def scope(home: str, reach: str, partition: str, epoch: int) -> bytes:
    """The prefix shared by all records of one epoch of a partition."""
    return domain(home, reach) + text(partition) + number(epoch)


def within(scope_bytes: bytes, kind: str, name: str) -> bytes:
    """The key of a record in a scope."""
    return scope_bytes + text(kind) + text(name)


def decode(key: bytes) -> Key:
    """Take a record's key apart. Raises ValueError for anything `within` did not make."""
    home, at = _text(key, 0)
    reach, at = _text(key, at)
    partition, at = _text(key, at)
    epoch, at = int.from_bytes(key[at : at + _NUMBER_BYTES], "big"), at + _NUMBER_BYTES
    kind, at = _text(key, at)
    name, at = _text(key, at)
    if at != len(key):
        raise ValueError("bytes after the last part of a key")
    return Key(home, reach, partition, epoch, kind, name)


@lru_cache(maxsize=1024)
def domain_of(scope_bytes: bytes) -> bytes:
    """The domain that a scope or key lies in. Raises ValueError if it has no two text parts."""
    _, at = _text(scope_bytes, 0)
    _, at = _text(scope_bytes, at)
    return scope_bytes[:at]


def home_and_reach(scope_bytes: bytes) -> tuple[str, str]:
    """The two parts of a scope's or key's domain. Raises ValueError if it has none."""
    home, at = _text(scope_bytes, 0)
    reach, _ = _text(scope_bytes, at)
    return home, reach


def scope_of(key: bytes) -> bytes:
    """The scope that a record's key lies in. Raises ValueError if it lies in none."""
    at = 0
    for _ in range(3):
        _, at = _text(key, at)
    return key[: at + _NUMBER_BYTES]


def own_place(region: str) -> tuple[str, str]:
    """Reach and id of the partition in which a region keeps what it notes about itself."""
    return "HOME_ONLY", f"{region}.system"


def cursor_name(home: str, reach: str) -> str:
    """The name of the record that says how far a region's shared records were copied."""
    return f"{home}/{reach}"


def erasure_name(key: bytes) -> str:
    """What an erased record goes by: tells its name only to those who can guess it."""
    return hashlib.sha256(b"controlplane erasure v1\0" + key).hexdigest()


def event(domain_bytes: bytes, revision: int, n: int) -> bytes:
    """The store key of the n-th event of a revision."""
    return EVENT + domain_bytes + number(revision) + n.to_bytes(2, "big")


def events(domain_bytes: bytes, first: int, last: int) -> tuple[bytes, bytes]:
    """The range of store keys of all events of revisions `first` … `last`."""
    prefix = EVENT + domain_bytes
    return prefix + number(first), prefix + number(last + 1)


def history(key: bytes, revision: int) -> bytes:
    """The store key of what `key` became at `revision`."""
    return HISTORY + key + number(revision)


def generation(number_of: int) -> bytes:
    """The prefix of all outcomes of a generation."""
    return OUTCOME + number(number_of)


def outcome_slices(first: int, last: int) -> tuple[bytes, bytes]:
    """The range of outcomes from slice `first` up to, not including, `last`; a generation has 256 equal slices."""
    return _slice(first), _slice(last)


def children(prefix: bytes) -> tuple[bytes, bytes]:
    """The range of keys that continue `prefix`, which must end a part or stand inside one."""
    return prefix, prefix + b"\xff"


def _slice(number_of: int) -> bytes:
    return generation(number_of >> 8) + bytes([number_of & 0xFF])


def _text(key: bytes, start: int) -> tuple[str, int]:
    at = start
    while True:
        at = key.index(_END, at)
        if key[at + 1 : at + 2] != b"\xff":
            return key[start:at].replace(b"\0\xff", _END).decode(), at + 1
        at += 2
