"""What a leaf of the ledger says, and the commitments in it.

Theory of operation. A leaf is one line of JSON in one fixed form, so that any program can read it and one leaf has one
encoding:

    {"v":1,"index":7,"revision":12,"at_ms":1700000000000,"hash":"…","entry":"…","open":[["egress","…"]]}

`index` is its place in the tree, from 0. `revision`, `at_ms` and `hash` (the running hash) are the region's state after
the entry. `entry` commits to the entry's bytes, and each pair of `open` to one audited record that the entry wrote: its
class in clear, its content not. The n-th pair is record n of that leaf.

A commitment is HMAC-SHA256 of a content under a key of its own, which is derived from the entry's random salt and the
record's number:

    key(n) = HMAC(salt, "controlplane/ledger/record/" ‖ n in four bytes)      commitment = HMAC(key(n), content)

1. It hides: without salt or key, contents can be neither read nor guessed and tried.
2. It binds: keys have one length, so two openings of one commitment would be a collision of SHA-256.
3. It is opened one at a time: key(n) is handed out, and says nothing about the salt or the other keys.
4. It can be forgotten: once the salt is destroyed, what was not handed out before can never be opened.

Contents are JSON objects of texts, whole numbers, truths, and lists of those, in the one encoding of `canonical`. They
are read by reviewers: names of people, users or tenants, keys and values have no place in them.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from controlplane import limits

CLASSES = (
    *("egress", "ingress", "grant", "denial", "break-glass", "switch", "exception", "move", "erase", "restore"),
    "unreadable",
)
"""Of audited records."""
RECORDS_MAX = limits.BATCH_TXNS_MAX * limits.WRITES_PER_TXN_MAX
"""Audited records of one entry, and so of one leaf: every write of a full batch."""
CONTENT_BYTES_MAX = 16 * 1024
"""The content of one audited record."""
LEAF_BYTES_MAX = 4 * 1024 * 1024
"""An encoded leaf; one with `RECORDS_MAX` records is shorter."""
KEY_BYTES = 32

_HASH_BYTES = 32
_VERSION = 1
_RECORD = b"controlplane/ledger/record/"
_ENTRY = b"controlplane/ledger/entry"
_CLASS = "|".join(CLASSES)
_PAIR = re.compile(rf'\["({_CLASS})","([0-9a-f]{{64}})"\]'.encode())
_NUMBER = "(0|[1-9][0-9]{0,18})"
_FORM = re.compile(
    rf'\{{"v":{_VERSION},"index":{_NUMBER},"revision":{_NUMBER},"at_ms":{_NUMBER},'
    rf'"hash":"([0-9a-f]{{64}})","entry":"([0-9a-f]{{64}})","open":\[([^ ]*)\]\}}'.encode()
)

# Made once: json.dumps with options makes one for every call.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)

Value = str | int | bool | Sequence["Value"]
Content = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Leaf:
    """See the head of this module. `open` holds (class, commitment) of each audited record, in the order of writes."""

    index: int
    revision: int
    at_ms: int
    hash: bytes
    entry: bytes
    open: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Transfer:
    """What an egress or ingress record says: that something went to, or came from, the region `peer`.

    `door` is the way it took: "agent", "operator", "http", "metrics"; "federation" if both sides agree on what passed,
    "unconfirmed" if it was sent by federation and the other side did not say that it came. `reach` is as region files
    write it; left empty, it is not known, and a verifier cannot say that it was allowed.
    `first` … `last` are revisions of the home region, `count` the records among them, `digest` (32 bytes) is of what
    was carried and the same on both sides. `partition` is left empty if several were carried.
    """

    peer: str
    door: str
    reach: str
    epoch: int
    first: int
    last: int
    count: int
    digest: bytes
    partition: str = field(default="")

    def content(self) -> Content:
        """As it is committed to."""
        return {
            "peer": self.peer,
            "door": self.door,
            "reach": self.reach,
            "epoch": self.epoch,
            "first": self.first,
            "last": self.last,
            "count": self.count,
            "digest": self.digest.hex(),
            **({"partition": self.partition} if self.partition else {}),
        }


def encode(leaf: Leaf) -> bytes:
    """The bytes that are hashed into the tree; no newline. Raises ValueError for what `decode` would refuse."""
    if len(leaf.open) > RECORDS_MAX:
        raise ValueError("more audited records than an entry can hold")
    pairs = ",".join(f'["{name}","{commitment_.hex()}"]' for name, commitment_ in leaf.open)
    encoded = (
        f'{{"v":{_VERSION},"index":{leaf.index},"revision":{leaf.revision},"at_ms":{leaf.at_ms},'
        f'"hash":"{leaf.hash.hex()}","entry":"{leaf.entry.hex()}","open":[{pairs}]}}'
    ).encode()
    decode(encoded)
    return encoded


def decode(line: bytes) -> Leaf:
    """What `encode` made. Raises ValueError for anything else, also for the same JSON written otherwise."""
    parts = _FORM.fullmatch(line) if len(line) <= LEAF_BYTES_MAX else None
    if parts is None:
        raise ValueError("not a leaf of a ledger, or not in its one form")
    index, revision, at_ms = (int(number) for number in parts.groups()[:3])
    running, entry, pairs = parts.groups()[3:]
    found = _PAIR.findall(pairs)
    if b",".join(b'["%b","%b"]' % pair for pair in found) != pairs or len(found) > RECORDS_MAX:
        raise ValueError("not the audited records of a leaf")
    opened = tuple((name.decode(), bytes.fromhex(told.decode())) for name, told in found)
    return Leaf(index, revision, at_ms, bytes.fromhex(running.decode()), bytes.fromhex(entry.decode()), opened)


def record_key(salt: bytes, n: int) -> bytes:
    """The key that opens record `n` of the entry with this salt, and nothing else."""
    return hmac.digest(salt, _RECORD + n.to_bytes(4, "big"), "sha256")


def committed(key: bytes, content: bytes) -> bytes:
    """The commitment to a content under a record's key. Raises ValueError for a key that is not `KEY_BYTES` long."""
    if len(key) != KEY_BYTES:
        raise ValueError("not the key of a record")
    return hmac.digest(key, content, "sha256")


def commitment(salt: bytes, n: int, content: bytes) -> bytes:
    """The commitment to record `n` of an entry.

    Total, because it is computed while entries are applied. A salt shorter than the 16 bytes that planners give an
    entry binds as well, and hides less.
    """
    return committed(record_key(salt, n), content)


def entry_commitment(salt: bytes, entry: bytes) -> bytes:
    """The commitment to an entry's bytes."""
    return committed(hmac.digest(salt, _ENTRY, "sha256"), entry)


def canonical(content: Content) -> bytes:
    """The one encoding of a content. Raises ValueError if it holds anything that has more than one, or is too long."""
    _check(content)
    encoded = _ENCODER.encode(content).encode()
    if len(encoded) > CONTENT_BYTES_MAX:
        raise ValueError("the content of an audited record is too long")
    return encoded


def _check(content: Content) -> None:
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise ValueError("the content of an audited record is an object")
    for value in content.values():
        for each in value if isinstance(value, list | tuple) else (value,):
            if not isinstance(each, str | int):
                raise ValueError("an audited record holds texts, whole numbers and lists of those")
