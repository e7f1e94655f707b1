"""Leaves have one encoding, and commitments open one at a time."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.ledger import leaves
from controlplane.ledger.leaves import Leaf, Transfer

SALT = bytes(range(16))
HASH = st.binary(min_size=32, max_size=32)
NUMBER = st.integers(0, (1 << 63) - 1)
LEAVES = st.builds(
    Leaf, NUMBER, NUMBER, NUMBER, HASH, HASH, st.lists(st.tuples(st.sampled_from(leaves.CLASSES), HASH)).map(tuple)
)
LEAF = Leaf(7, 12, 1_700_000_000_000, b"h" * 32, b"e" * 32, (("egress", b"c" * 32), ("denial", b"d" * 32)))


@given(LEAVES)
def test_a_leaf_is_json_in_one_form(leaf):
    line = leaves.encode(leaf)
    assert leaves.decode(line) == leaf
    read = json.loads(line)
    assert json.dumps(read, separators=(",", ":")).encode() == line
    assert read["hash"] == leaf.hash.hex()
    assert [name for name, _ in read["open"]] == [name for name, _ in leaf.open]
    assert b"\n" not in line


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"v":1', b'"v":2'),
        (b'"index":7', b'"index":07'),
        (b'"index":7', b'"index":-7'),
        (b'"index":7', b'"index":7.0'),
        (b'"index":7,', b'"index":7, '),
        (b'"index":7', b'"index":' + b"7" * 20),
        (b'"revision":12,', b""),
        (b'"revision":12,', b'"revision":12,"revision":13,'),
        (b"6868", b"6868G"[1:]),
        (b"6868", b"ABCD"),
        (b'["egress"', b'["export"'),
        (b'],["denial"', b'],,["denial"'),
        (b'],["denial"', b']["denial"'),
        (b"]]}", b"],]}"),
        (b"]]}", b"]]}\n"),
        (b"]]}", b"]]"),
    ],
)
def test_the_same_leaf_written_otherwise_is_refused(old, new):
    line = leaves.encode(LEAF)
    assert old in line
    with pytest.raises(ValueError, match="leaf"):
        leaves.decode(line.replace(old, new, 1))


def test_what_has_no_encoding_is_refused():
    with pytest.raises(ValueError, match="leaf"):
        leaves.encode(Leaf(-1, 0, 0, b"h" * 32, b"e" * 32))
    with pytest.raises(ValueError, match="leaf"):
        leaves.encode(Leaf(0, 0, 0, b"short", b"e" * 32))
    with pytest.raises(ValueError, match="leaf"):
        leaves.encode(Leaf(0, 0, 0, b"h" * 32, b"e" * 32, (("gossip", b"c" * 32),)))


def test_a_full_leaf_fits():
    pair = (max(leaves.CLASSES, key=len), b"c" * 32)
    full = Leaf(*[(1 << 63) - 1] * 3, b"h" * 32, b"e" * 32, (pair,) * leaves.RECORDS_MAX)
    assert len(leaves.encode(full)) <= leaves.LEAF_BYTES_MAX
    with pytest.raises(ValueError, match="more audited records"):
        leaves.encode(Leaf(0, 0, 0, b"h" * 32, b"e" * 32, (*full.open, pair)))


def test_opening_one_record_opens_no_other():
    key = leaves.record_key(SALT, 0)
    content = leaves.canonical({"what": "one"})
    assert leaves.committed(key, content) == leaves.commitment(SALT, 0, content)
    assert leaves.committed(key, content) != leaves.commitment(SALT, 1, content)
    assert leaves.committed(key, content) != leaves.commitment(SALT[::-1], 0, content)
    others = {leaves.record_key(SALT, n) for n in range(100)}
    assert len(others) == 100
    assert leaves.entry_commitment(SALT, content) not in {leaves.committed(each, content) for each in others}


def test_commitments_stay_what_they_are():
    # A bundle of today has to open under the verifier of any later release.
    assert leaves.commitment(SALT, 3, b"{}").hex() == "c04c68e004f7e902c679b2bd9acd3a7e78562587e1aed65520a827ff03b3b8bb"
    assert (
        leaves.entry_commitment(SALT, b"entry").hex()
        == "a870b4922257be96227574fedca01147766aa45b214e1531238a9852fdcc2248"
    )


@pytest.mark.parametrize("key", [b"", b"k" * 31, b"k" * 33])
def test_only_keys_of_one_length_bind(key):
    with pytest.raises(ValueError, match="key"):
        leaves.committed(key, b"{}")


def test_a_damaged_entry_still_has_a_commitment():
    assert len(leaves.commitment(b"", 0, b"")) == len(leaves.entry_commitment(b"", b"")) == 32


def test_contents_have_one_encoding():
    transfer = Transfer("us-east", "federation", "global", 1, 5, 9, 3, b"d" * 32)
    content = transfer.content()
    assert leaves.canonical(content) == leaves.canonical(dict(reversed(content.items())))
    assert "partition" not in content
    assert Transfer(*content_parts(transfer), partition="eu.prod.x").content()["partition"] == "eu.prod.x"
    for bad in ({"a": 0.5}, {"a": None}, {"a": {"b": 1}}, {"a": [[1]]}, {1: "a"}, ["a"]):
        with pytest.raises(ValueError, match="audited record"):
            leaves.canonical(bad)
    with pytest.raises(ValueError, match="too long"):
        leaves.canonical({"a": "x" * leaves.CONTENT_BYTES_MAX})
    with pytest.raises(ValueError, match="surrogates"):
        leaves.canonical({"a": "\ud800"})


def content_parts(transfer):
    return (
        transfer.peer,
        transfer.door,
        transfer.reach,
        transfer.epoch,
        transfer.first,
        transfer.last,
        transfer.count,
        transfer.digest,
    )
