"""The tree against published vectors, and against its definition written as the RFC writes it."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.ledger import merkle
from controlplane.ledger.merkle import Frontier

# The leaves and roots that certificate-transparency implementations publish for RFC 6962.
PUBLISHED = [
    ("", "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"),
    ("00", "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"),
    ("10", "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"),
    ("2021", "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"),
    ("3031", "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4"),
    ("40414243", "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef"),
    ("5051525354555657", "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c"),
    ("606162636465666768696a6b6c6d6e6f", "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"),
]
PUBLISHED_LEAVES = [merkle.leaf_hash(bytes.fromhex(leaf)) for leaf, _ in PUBLISHED]
SIZE_MAX = 65


def naive_root(leaves):
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    split = naive_split(len(leaves))
    return hashlib.sha256(b"\1" + naive_root(leaves[:split]) + naive_root(leaves[split:])).digest()


def naive_split(count):
    split = 1
    while split * 2 < count:
        split *= 2
    return split


def naive_path(index, leaves):
    if len(leaves) == 1:
        return []
    split = naive_split(len(leaves))
    if index < split:
        return [*naive_path(index, leaves[:split]), naive_root(leaves[split:])]
    return [*naive_path(index - split, leaves[split:]), naive_root(leaves[:split])]


def naive_consistency(old, leaves, whole=True):
    if old == len(leaves):
        return [] if whole else [naive_root(leaves)]
    split = naive_split(len(leaves))
    if old <= split:
        return [*naive_consistency(old, leaves[:split], whole), naive_root(leaves[split:])]
    return [*naive_consistency(old - split, leaves[split:], False), naive_root(leaves[:split])]


class Tree:
    """A tree whose complete nodes are stored; reading one that is not complete is a KeyError."""

    def __init__(self, leaves):
        self.leaves, self.nodes, self.frontier = leaves, {}, Frontier()
        for leaf in leaves:
            for level, index, value in self.frontier.append(leaf):
                assert (level, index) not in self.nodes
                self.nodes[level, index] = value

    def node(self, level, index):
        return self.nodes[level, index]


def hashes(count, salt=0):
    return [merkle.leaf_hash(b"%d of %d" % (number, salt)) for number in range(count)]


TREE = Tree(hashes(SIZE_MAX))


def test_published_roots():
    frontier = Frontier()
    assert frontier.root() == bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    for leaf, (_, root) in zip(PUBLISHED_LEAVES, PUBLISHED, strict=True):
        frontier.append(leaf)
        assert frontier.root().hex() == root
    assert merkle.root_of(PUBLISHED_LEAVES).hex() == PUBLISHED[-1][1]


def test_published_proofs():
    node = Tree(PUBLISHED_LEAVES).node
    assert [each.hex() for each in merkle.inclusion_proof(5, 8, node)] == [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert [each.hex() for each in merkle.consistency_proof(2, 5, node)] == [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ]


@pytest.mark.parametrize("size", range(SIZE_MAX + 1))
def test_every_leaf_of_every_size(size):
    leaves = TREE.leaves[:size]
    root = naive_root(leaves)
    assert merkle.root_of(leaves) == root
    frontier = Frontier.read(size, TREE.node)
    assert (frontier.root(), frontier.size) == (root, size)
    for index in range(size):
        proof = merkle.inclusion_proof(index, size, TREE.node)
        assert proof == naive_path(index, leaves)
        assert merkle.verify_inclusion(leaves[index], index, size, proof, root)
    for old in range(size + 1):
        proof = merkle.consistency_proof(old, size, TREE.node)
        assert proof == (naive_consistency(old, leaves) if old else [])
        assert merkle.verify_consistency(old, naive_root(leaves[:old]), size, root, proof)


@pytest.mark.parametrize("size", range(1, SIZE_MAX + 1))
def test_no_proof_serves_another_leaf_size_or_root(size):
    root = naive_root(TREE.leaves[:size])
    for index in range(size):
        leaf, proof = TREE.leaves[index], merkle.inclusion_proof(index, size, TREE.node)
        for changed in mutants(proof):
            assert not merkle.verify_inclusion(leaf, index, size, changed, root)
        assert not merkle.verify_inclusion(merkle.leaf_hash(b"another"), index, size, proof, root)
        assert not merkle.verify_inclusion(leaf, index, size, proof, merkle.EMPTY_ROOT)
        for other in {index - 1, index + 1, size, -1} - {index}:
            assert not merkle.verify_inclusion(leaf, other, size, proof, root)
    for old in range(1, size):
        old_root, proof = naive_root(TREE.leaves[:old]), merkle.consistency_proof(old, size, TREE.node)
        for changed in mutants(proof):
            assert not merkle.verify_consistency(old, old_root, size, root, changed)
        assert not merkle.verify_consistency(old, merkle.leaf_hash(b"another"), size, root, proof)
        assert not merkle.verify_consistency(old, old_root, size, merkle.leaf_hash(b"another"), proof)
        assert not merkle.verify_consistency(size, root, old, old_root, proof)


def mutants(proof):
    """The proof with a hash changed, dropped, doubled, cut short, or exchanged, and with one too many."""
    for at, each in enumerate(proof):
        yield [*proof[:at], bytes([each[0] ^ 1]) + each[1:], *proof[at + 1 :]]
        yield proof[:at] + proof[at + 1 :]
        yield [*proof[:at], each, each, *proof[at + 1 :]]
        yield [*proof[:at], each[:-1], *proof[at + 1 :]]
    if len(proof) > 1:
        yield [*proof[1:], proof[0]]
    yield [*proof, merkle.EMPTY_ROOT]
    yield proof * 70 + [merkle.EMPTY_ROOT] * 200


@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 3))
def test_other_histories_do_not_continue(one, two, salt):
    old, new = sorted((one, two))
    tree = Tree(hashes(new, salt + 1))
    proof = merkle.consistency_proof(old, new, tree.node)
    old_root = merkle.root_of(tree.leaves[:old])
    assert merkle.verify_consistency(old, old_root, new, tree.frontier.root(), proof)
    if old:
        assert not merkle.verify_consistency(old, merkle.root_of(hashes(old)), new, tree.frontier.root(), proof)
        changed = Tree([merkle.leaf_hash(b"rewritten"), *tree.leaves[1:]])
        proof = merkle.consistency_proof(old, new, changed.node)
        assert not merkle.verify_consistency(old, old_root, new, changed.frontier.root(), proof)


def test_the_empty_tree_is_continued_by_any_and_only_without_a_proof():
    root = TREE.frontier.root()
    assert merkle.verify_consistency(0, merkle.EMPTY_ROOT, SIZE_MAX, root, [])
    assert not merkle.verify_consistency(0, root, SIZE_MAX, root, [])
    assert not merkle.verify_consistency(0, merkle.EMPTY_ROOT, SIZE_MAX, root, [root])
    assert not merkle.verify_consistency(SIZE_MAX, root, SIZE_MAX, root, [root])
    assert not merkle.verify_inclusion(root, 0, 0, [], root)


@given(st.integers(0, 300))
def test_a_stored_frontier_goes_on(size):
    tree = Tree(hashes(size))
    again = Frontier.unpack(tree.frontier.pack())
    assert len(tree.frontier.pack()) == 8 + 32 * size.bit_count()
    completed = again.append(merkle.leaf_hash(b"next"))
    assert again.root() == merkle.root_of([*tree.leaves, merkle.leaf_hash(b"next")])
    assert completed[0] == (0, size, merkle.leaf_hash(b"next"))
    assert len(completed) == 1 + ((size + 1) & -(size + 1)).bit_length() - 1


@given(st.binary(max_size=200))
def test_only_a_packed_frontier_unpacks(packed):
    try:
        frontier = Frontier.unpack(packed)
    except ValueError:
        return
    assert frontier.pack() == packed


@pytest.mark.parametrize(("size", "count"), [(1, 0), (0, 1), (3, 1), (-1, 0), (1 << 64, 1)])
def test_a_frontier_has_a_hash_per_bit_of_its_size(size, count):
    with pytest.raises(ValueError, match="hashes"):
        Frontier(size, hashes(count))
    with pytest.raises(ValueError, match="length"):
        Frontier(1, [b"short"])


def test_proofs_about_what_is_not_there_cannot_be_made():
    for index, size in ((0, 0), (3, 3), (-1, 3)):
        with pytest.raises(ValueError, match="no such leaf"):
            merkle.inclusion_proof(index, size, TREE.node)
    with pytest.raises(ValueError, match="shrink"):
        merkle.consistency_proof(4, 3, TREE.node)


def test_costs_grow_with_the_logarithm():
    size = 1 << 12
    tree = Tree(hashes(size - 1))
    read = []

    def counted(level, index):
        read.append((level, index))
        return tree.node(level, index)

    for index in range(0, size - 1, 97):
        read.clear()
        assert len(merkle.inclusion_proof(index, size - 1, counted)) <= 12
        assert len(read) <= 2 * 12
    assert len(tree.nodes) < 2 * size
