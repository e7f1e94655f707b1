"""The verifier as a program of its own, and what it computes by itself beside what the product computes."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane import limits
from controlplane.ledger import bundle, checkpoint, leaves, merkle, notes, verify
from tests.ledger.material import LAST, Desk, honest, signer, transfer, trust, witness_of
from tests.ledger.test_checkpoint import PUBLISHED_KEY, PUBLISHED_NOTE
from tests.ledger.test_merkle import SIZE_MAX, TREE, mutants, naive_root

PROGRAM = Path(verify.__file__)


def test_it_needs_the_standard_library_and_one_package():
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).partition(".")[0]
        for node in ast.walk(ast.parse(PROGRAM.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported <= sys.stdlib_module_names | {"cryptography"}
    assert not imported & {"os", "subprocess", "socket", "urllib", "http", "ssl", "pickle", "tarfile", "shutil"}


def run(desk, *arguments, encoding="utf-8"):
    """The file alone, as a reviewer has it, at a terminal of this encoding."""
    alone = desk.folder / "alone"
    alone.mkdir(exist_ok=True)
    (alone / "verify.py").write_bytes(PROGRAM.read_bytes())
    code = (
        f"import sys, runpy; sys.modules['controlplane'] = None; sys.stdout.reconfigure(encoding='{encoding}');"
        " sys.argv = sys.argv[1:];"
        " runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return subprocess.run(
        [sys.executable, "-I", "-c", code, str(alone / "verify.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.fixture(scope="module")
def trusted(desk):
    file = desk.folder / "program.toml"
    file.write_text(desk.trust)
    return file


def test_as_a_program(desk: Desk, trusted):
    before = sorted(path.name for path in desk.folder.iterdir())
    done = run(
        desk,
        *(desk.folder / "eu-west.tar", "--trust", trusted, "--seed", "mine", "--samples", "3"),
        *("--peer-bundle", desk.folder / "eu-central.tar", "--peer-bundle", desk.folder / "us-east.tar"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines, counts = done.stdout.splitlines()
    assert first == "acme/eu-west"
    assert all(line.startswith("PASS         ") for line in lines)
    assert counts == "17 PASS, 0 FAIL, 0 NOT CHECKED"
    assert set(before) | {"alone"} == {path.name for path in desk.folder.iterdir()}


def test_at_a_terminal_that_knows_few_letters(desk: Desk, trusted):
    """Whatever a region put into its records, and however alike letters look."""
    lookalike = "eu-c\N{CYRILLIC SMALL LETTER IE}ntral"
    leaking = honest("eu-west", extra={40: [("egress", transfer(lookalike, "jurisdiction", 50, door="agent"))]})
    done = run(
        desk, desk.written(leaking.report()), "--trust", trusted, "--seed", "mine", "--samples", "20", encoding="ascii"
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert r"eu-west and eu-c\u0435ntral" in done.stdout
    assert "PASS         SAMPLES" in done.stdout


def test_as_a_program_for_programs(desk: Desk, trusted):
    done = run(desk, desk.folder / "eu-west.tar", "--trust", trusted, "--seed", "mine", "--samples", "3", "--json")
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert (told["fleet"], told["region"]) == ("acme", "eu-west")
    assert {each["status"] for each in told["claims"]} == {"PASS", "NOT CHECKED"}
    for sample in told["samples"]:
        leaf = leaves.encode(desk.ledger.leaves[sample["leaf"]])
        assert merkle.leaf_hash(leaf).hex() == sample["hash"]
    assert 1 <= len(told["samples"]) <= 3


def test_exit_status(desk: Desk, trusted):
    tampered = desk.changed(lambda files: files.update({"records.jsonl": b""}))
    done = run(desk, tampered, "--trust", trusted)
    assert (done.returncode, done.stderr) == (1, "")
    assert "FAIL         RECORDS" in done.stdout
    for arguments in (
        [desk.folder / "eu-west.tar"],
        [desk.folder / "nothing.tar", "--trust", trusted],
        [desk.folder, "--trust", trusted],
        [desk.folder / "eu-west.tar", "--trust", desk.folder / "nothing.toml"],
        [desk.folder / "eu-west.tar", "--trust", trusted, "--samples", "0"],
        [desk.folder / "eu-west.tar", "--trust", trusted, "--seed", "1", "--samples", "10001"],
    ):
        done = run(desk, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr


def test_a_bundle_that_no_key_is_there_for(desk: Desk):
    """Whoever made it can write any region's name in it: programs must not take that for good."""
    file = desk.folder / "others.toml"
    file.write_text(trust().replace("[regions.eu-west", "[regions.eu-north"))
    done = run(desk, desk.folder / "eu-west.tar", "--trust", file)
    assert (done.returncode, done.stderr) == (2, "")
    assert "NOT CHECKED  CHECKPOINT" in done.stdout


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("format = 1", "format = 2"),
        ("format = 1", ""),
        ("format = 1", "format = 1\nkeys = 1"),
        ('fleet = "acme"', "fleet = 7"),
        ('jurisdiction = "eu"', ""),
        ('jurisdiction = "eu"', 'jurisdicton = "eu"'),
        ('jurisdiction = "eu"', "jurisdiction = 7"),
        ("cosign_key", "checkpoint_key"),
        ("checkpoint_key", "cosign_keys"),
        (str(signer("acme/eu-west").verifier), str(witness_of("eu-west").verifier)),
        (str(signer("acme/eu-west").verifier), str(signer("acme/eu-west").verifier)[:-8]),
        (str(signer("acme/eu-west").verifier), str(signer("acme/eu-west").verifier).replace("eu-west", "eu-best")),
        (str(signer("acme/eu-west").verifier), "nonsense"),
        ("[regions.eu-west.nodes]\n", "[regions.eu-west]\n"),
        ("acme/eu-west\n15\n", "acme/eu-west\n15.0\n"),
        ("acme/eu-west\n15\n", "acme/us-east\n15\n"),
        ("known_checkpoint = '''acme", "known_checkpoint = '''\n\n\nacme"),
    ],
)
def test_a_trust_file_that_cannot_be_used(desk: Desk, old, new):
    assert old in desk.trust
    file = desk.folder / "odd.toml"
    file.write_text(desk.trust.replace(old, new, 1))
    with pytest.raises(verify.TrustInvalid):
        verify.Trust.load(file)


def test_a_trust_file_that_says_little(desk: Desk):
    file = desk.folder / "little.toml"
    file.write_text('format = 1\nfleet = "acme"\n[regions.eu-west]\njurisdiction = "eu"\n')
    (region,) = verify.Trust.load(file).regions.values()
    assert region == verify.Region("eu-west", "eu")
    file.write_bytes(b"\xff")
    with pytest.raises(verify.TrustInvalid):
        verify.Trust.load(file)


@pytest.mark.parametrize("size", range(1, SIZE_MAX + 1))
def test_both_trees_agree(size):
    root = naive_root(TREE.leaves[:size])
    for index in range(size):
        proof = merkle.inclusion_proof(index, size, TREE.node)
        assert verify.root_by_path(TREE.leaves[index], index, size, proof) == root
        for changed in mutants(proof):
            try:
                assert verify.root_by_path(TREE.leaves[index], index, size, changed) != root
            except verify.Wrong:
                continue
        parts = [list(verify.covering(*part)) for part in verify.siblings(index, size)]
        assert [verify.fold([TREE.node(*each) for each in part]) for part in parts] == proof
    for old in range(1, size + 1):
        old_root = naive_root(TREE.leaves[:old])
        proof = merkle.consistency_proof(old, size, TREE.node)
        assert verify.roots_by_growth(old, size, old_root, proof) == (old_root, root)
        for changed in mutants(proof):
            accepted = merkle.verify_consistency(old, old_root, size, root, changed)
            assert not accepted
            try:
                assert verify.roots_by_growth(old, size, old_root, changed) != (old_root, root)
            except verify.Wrong:
                continue


def test_both_know_the_same_classes_and_bounds():
    assert verify.CLASSES == leaves.CLASSES
    assert verify.LEAF_BYTES_MAX >= leaves.LEAF_BYTES_MAX
    assert verify.RECORD_BYTES_MAX >= 2 * leaves.CONTENT_BYTES_MAX
    assert verify.SMALL_FILE_BYTES_MAX >= notes.NOTE_BYTES_MAX
    assert verify.SIGNATURES_MAX >= notes.SIGNATURES_MAX
    assert verify.FILES_MAX >= bundle.FILES_MAX
    assert verify.NAME_CHARS_MAX >= limits.NAME_BYTES_MAX


def test_both_read_the_same_notes():
    key = verify._key(PUBLISHED_KEY, 1)
    note = verify.Note.read(PUBLISHED_NOTE)
    assert note.signed_by(key) == 0
    with pytest.raises(verify.Wrong):
        verify.Note.read(PUBLISHED_NOTE.replace(b"example m", b"example n")).signed_by(key)
    for made in (signer("acme/eu-west"), witness_of("us-east")):
        assert verify._key(str(made.verifier), made.verifier.type)[3] == made.verifier.id


@given(st.binary(max_size=300))
def test_what_one_reads_the_other_reads(content):
    """Any text that the product takes for a checkpoint, the verifier takes for the same one; and no more than notes."""
    for each in (content, b"x\n\n\xe2\x80\x94 a " + content):
        try:
            note = notes.parse(each)
        except notes.NoteInvalid:
            continue
        assert verify.Note.read(each).text == note.text


def test_both_read_the_same_checkpoint(desk: Desk):
    head = desk.ledger.head(LAST)
    read = verify.Head.read(head.text())
    assert tuple(read) == (head.origin, head.size, head.root, head.revision, head.hash)
    assert checkpoint.read(desk.ledger.signed(LAST)) == head


@given(st.text(max_size=20), st.integers(1, 200), st.integers(0, 1 << 40), st.integers(1, 1 << 40))
def test_samples_follow_from_the_seed_alone(seed, count, start, length):
    picks = verify.Sampling(seed, count).picks(start, start + length)
    assert picks == verify.Sampling(seed, count).picks(start, start + length)
    assert 1 <= len(picks) <= count
    assert all(start <= each < start + length for each in picks)


def test_samples_are_those_that_the_reviewer_can_compute():
    # SHA-256("seed\n0") … modulo 1000, as the head of the class says.
    assert verify.Sampling("seed", 3).picks(0, 1000) == {77, 448, 985}


def test_the_trust_file_of_the_docstring_is_one():
    told = trust()
    for word in ("checkpoint_key", "cosign_key", "jurisdiction", ".nodes]"):
        assert word in told
        assert word in verify.__doc__
