"""Merkle trees as in RFC 6962 and RFC 9162: append-only, with short proofs that a leaf is in and that nothing changed.

Theory of operation. The tree over n leaves splits at the largest power of two below n, so its left part is *complete*
and never changes again. The hashes of complete parts are the only ones worth storing: node (level, index) is the root
over leaves index·2^level … (index+1)·2^level - 1. Everything else is folded from those when it is needed.

Costs, in hashes computed (each over 65 bytes), for a tree of n leaves: an append 1 to 1 + log₂ n, below 2 on average; a
root or a proof at most log₂ n, with at most 2·log₂ n nodes read. A `Frontier` is at most log₂ n hashes. Storing all
complete nodes takes less than 2 n hashes of 32 bytes.

Leaves and inner nodes are hashed with different first bytes, so that neither can pass for the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()
PROOF_HASHES_MAX = 2 * 64
"""No proof about a tree whose size fits into eight bytes is longer."""

_LEAF = b"\x00"
_NODE = b"\x01"
_SIZE_BYTES = 8

NodeReader = Callable[[int, int], bytes]
"""(level, index) → the stored hash of a complete node. It is asked only for nodes that are complete."""


class Node(NamedTuple):
    """A part of the tree that became complete, to be stored under (level, at): the `at`-th of its level, from 0."""

    level: int
    at: int
    hash: bytes


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf that says `data`."""
    return hashlib.sha256(_LEAF + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node over two hashes."""
    return hashlib.sha256(_NODE + left + right).digest()


def complete_parts(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The complete nodes, as (level, index) from left to right, that cover leaves `start` up to, not including, `end`.

    `start` is 0, or where a split of the tree lies; so they are at most one per bit of `end - start`.
    """
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


class Frontier:
    """What must be kept of a tree to append to it and to know its root: its size and O(log n) hashes."""

    __slots__ = ("_hashes", "size")

    def __init__(self, size: int = 0, hashes: Sequence[bytes] = ()) -> None:
        """Take up a tree of `size` leaves; `hashes` are of its complete parts, from left to right (the largest first).

        Raises ValueError if they are not as many as a tree of that size has, or not hashes.
        """
        if size < 0 or size.bit_length() >= 8 * _SIZE_BYTES or len(hashes) != size.bit_count():
            raise ValueError("not as many hashes as the complete parts of a tree of this size")
        if any(len(each) != HASH_BYTES for each in hashes):
            raise ValueError("a hash of the wrong length")
        self.size = size
        self._hashes = list(hashes)

    @classmethod
    def read(cls, size: int, node: NodeReader) -> Frontier:
        """The frontier that the tree had at `size`, from stored nodes."""
        return cls(size, [node(level, index) for level, index in complete_parts(0, size)])

    @property
    def hashes(self) -> tuple[bytes, ...]:
        """Of the complete parts, from left to right."""
        return tuple(self._hashes)

    def append(self, leaf: bytes) -> list[Node]:
        """Append a leaf's hash; return the nodes that became complete, the leaf itself first."""
        index, level, top = self.size, 0, leaf
        completed = [Node(0, index, leaf)]
        while index & 1:
            top = node_hash(self._hashes.pop(), top)
            index >>= 1
            level += 1
            completed.append(Node(level, index, top))
        self._hashes.append(top)
        self.size += 1
        return completed

    def root(self) -> bytes:
        """The root of the tree as it is now."""
        return _folded(self._hashes)

    def pack(self) -> bytes:
        """The bytes to store: the size and the hashes."""
        return self.size.to_bytes(_SIZE_BYTES, "big") + b"".join(self._hashes)

    @classmethod
    def unpack(cls, packed: bytes) -> Frontier:
        """What `pack` made. Raises ValueError for anything else."""
        size, rest = int.from_bytes(packed[:_SIZE_BYTES], "big"), packed[_SIZE_BYTES:]
        if len(packed) != _SIZE_BYTES + HASH_BYTES * size.bit_count():
            raise ValueError("not a packed frontier")
        return cls(size, [rest[at : at + HASH_BYTES] for at in range(0, len(rest), HASH_BYTES)])


def root_of(leaf_hashes: Iterable[bytes]) -> bytes:
    """The root over leaves' hashes, in O(log n) memory."""
    frontier = Frontier()
    for leaf in leaf_hashes:
        frontier.append(leaf)
    return frontier.root()


def inclusion_proof(index: int, size: int, node: NodeReader) -> list[bytes]:
    """The siblings on the way from leaf `index` to the root of the tree of `size` leaves, the lowest first."""
    if not 0 <= index < size:
        raise ValueError("no such leaf in a tree of this size")
    siblings = []
    start, end = 0, size
    while end - start > 1:
        split = start + _largest_power_below(end - start)
        if index < split:
            siblings.append(_root_within(split, end, node))
            end = split
        else:
            siblings.append(_root_within(start, split, node))
            start = split
    return siblings[::-1]


def consistency_proof(old: int, new: int, node: NodeReader) -> list[bytes]:
    """What shows that the first `old` leaves of the tree of `new` leaves are the tree of `old` leaves.

    Empty if the sizes are equal or `old` is 0: then there is nothing to show.
    """
    if not 0 <= old <= new:
        raise ValueError("a tree does not shrink")
    if old in (0, new):
        return []
    siblings = []
    start, end = 0, new
    while end != old:
        split = start + _largest_power_below(end - start)
        if old <= split:
            siblings.append(_root_within(split, end, node))
            end = split
        else:
            siblings.append(_root_within(start, split, node))
            start = split
    if start > 0:  # Otherwise it is the old root, which the verifier has.
        siblings.append(_root_within(start, end, node))
    return siblings[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `proof` shows that `leaf`, a leaf's hash, is leaf `index` of the tree of `size` leaves under `root`.

    Total: whatever it is handed, it answers. Takes the steps of RFC 9162, section 2.1.3.2.
    """
    if not 0 <= index < size or not _are_hashes(proof):
        return False
    at, last, found = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            found = node_hash(sibling, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node_hash(found, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and found == root


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that the tree of `new` leaves continues the tree of `old` leaves.

    Total: whatever it is handed, it answers. Takes the steps of RFC 9162, section 2.1.4.2; the empty tree is continued
    by every tree, with an empty proof.
    """
    if not 0 <= old <= new or not _are_hashes(proof):
        return False
    if old == new:
        return not proof and old_root == new_root
    if old == 0:
        return not proof and old_root == EMPTY_ROOT
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        return False
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    was = now = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            was, now = node_hash(sibling, was), node_hash(sibling, now)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            now = node_hash(now, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and was == old_root and now == new_root


def _root_within(start: int, end: int, node: NodeReader) -> bytes:
    """The root over leaves `start` up to `end`, which must be a part that the tree's splits lead to."""
    return _folded([node(level, index) for level, index in complete_parts(start, end)])


def _folded(hashes: Sequence[bytes]) -> bytes:
    if not hashes:
        return EMPTY_ROOT
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root


def _largest_power_below(count: int) -> int:
    return 1 << ((count - 1).bit_length() - 1)


def _are_hashes(proof: Sequence[bytes]) -> bool:
    return len(proof) <= PROOF_HASHES_MAX and all(len(each) == HASH_BYTES for each in proof)
