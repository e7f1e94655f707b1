"""Notes and checkpoints: the published examples, every way to write them wrongly, and what a witness refuses."""

import base64
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from controlplane.errors import Invalid, Refused
from controlplane.ledger import checkpoint, merkle, notes
from controlplane.ledger.checkpoint import Checkpoint, Witness
from controlplane.ledger.notes import COSIGNATURE, NOTE, NoteInvalid, Signer, VerifierKey
from tests.ledger.test_merkle import TREE, naive_root

# The example of c2sp.org/signed-note.
PUBLISHED_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
PUBLISHED_NOTE = (
    "This is an example message.\n\n\u2014 example.com/foo"
    " Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()


def key(number):
    return Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)


LOG = Signer("acme/eu-west", key(1))
WITNESS = Signer("acme/us-east/witness", key(2), COSIGNATURE)


def head(size, **changes):
    made = Checkpoint("acme/eu-west", size, naive_root(TREE.leaves[:size]), size * 2, bytes([size]) * 32)
    return replace(made, **changes)


def test_the_published_note():
    trusted = VerifierKey.parse(PUBLISHED_KEY)
    assert str(trusted) == PUBLISHED_KEY
    note = notes.parse(PUBLISHED_NOTE)
    assert note.text == "This is an example message.\n"
    assert note.opened([trusted]) == {trusted: None}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"example message", b"example massage"),
        (b"Uw2QOkn8", b"Uw2QOkn9"),
        (b"Uw2QOk", b"Vw2QOk"),
        (b" example.com/foo ", b" example.com/bar "),
        (b" example.com/foo ", b" example.com/f+o "),
        (b" example.com/foo ", "\u00a0example.com/foo ".encode()),
        (b"\n\n", b"\n"),
        (b"\xe2\x80\x94", b"-"),
        (b"aQM=\n", b"aQM=\r\n"),
        (b"aQM=\n", b"aQM="),
        (b"aQM=\n", b"aQM\n"),
        (b"aQM=\n", b"aQN=\n"),
        (b"aQM=\n", b"aQM=\n\n"),
        (b"This", b"\x00This"),
        (b"This", b"\xffThis"),
    ],
)
def test_a_changed_note_is_not_opened(old, new):
    assert old in PUBLISHED_NOTE
    with pytest.raises(NoteInvalid):
        notes.parse(PUBLISHED_NOTE.replace(old, new)).opened([VerifierKey.parse(PUBLISHED_KEY)])


LINE = LOG.line("text\n")


@pytest.mark.parametrize(
    "content",
    [
        f"text\n{LINE}",
        f"text\n\n{LINE[:-1]}",
        f"text\n\n\t{LINE}",
        f"te\rxt\n\n{LINE}",
        f"text\n\n{LINE[1:]}",
        f"text\n\n{LINE}x\n",
        "text\n\n\u2014 name AAAA\n",
        "text\n\n\u2014 name AAAAAA==\n",
        "text\n\n\u2014 na+me AAAAAAA=\n",
        "text\n\n\u2014  AAAAAAA=\n",
    ],
)
def test_what_is_no_note_is_not_taken_apart(content):
    with pytest.raises(NoteInvalid):
        notes.parse(content.encode())


@pytest.mark.parametrize("text", ["text", "", "te\txt\n", "te\rxt\n", "\0\n"])
def test_texts_that_no_note_can_have(text):
    with pytest.raises(ValueError, match="newline"):
        notes.write(text, LINE)


def test_sizes_are_looked_at_first():
    with pytest.raises(NoteInvalid, match="too long"):
        notes.parse(b"x" * (notes.NOTE_BYTES_MAX + 1))
    line = LOG.line("text\n")
    assert notes.parse(notes.write("text\n", *[line] * notes.SIGNATURES_MAX)).opened([LOG.verifier])
    with pytest.raises(NoteInvalid, match="too many"):
        notes.parse(notes.write("text\n", *[line] * (notes.SIGNATURES_MAX + 1)))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_note_or_not(content):
    for each in (content, b"x\n\n\xe2\x80\x94 a " + content):
        try:
            notes.parse(each)
        except NoteInvalid:
            continue


@pytest.mark.parametrize(
    "text",
    [
        "",
        "example.com/foo",
        PUBLISHED_KEY.replace("530d903a", "530d903b"),
        PUBLISHED_KEY.replace("530d903a", "530D903A"),
        PUBLISHED_KEY.replace("example", "exemple"),
        PUBLISHED_KEY.replace("+Aeky", "+Aekz"),
        PUBLISHED_KEY.replace("+Aeky", "+Aeky="),
        PUBLISHED_KEY[:-4],
        f"a+{'0' * 8}+{base64.b64encode(bytes([7]) + bytes(32)).decode()}",
    ],
)
def test_only_keys_that_are_whole(text):
    with pytest.raises(ValueError, match=r"key|base64"):
        VerifierKey.parse(text)


def test_names_of_keys():
    for bad in ("", "a b", "a+b", "a\nb", "a\u2003b", "x" * 513):
        with pytest.raises(ValueError, match="name"):
            Signer(bad, key(1))


def test_one_key_has_two_ids():
    other = Signer("acme/eu-west", key(1), COSIGNATURE).verifier
    assert LOG.verifier.id != other.id
    # A line made by the one type is of an unknown key for the other.
    note = notes.parse(notes.write("text\n", LOG.line("text\n")))
    with pytest.raises(NoteInvalid, match="not signed"):
        note.opened([other])
    for signer, at_s in ((LOG, 1), (WITNESS, None)):
        with pytest.raises(ValueError, match="cosignatures say when"):
            signer.line("text\n", at_s)


def test_a_note_with_strangers_and_one_wrong_line():
    stranger = Signer("acme/eu-west", key(9))
    text = head(5).text()
    note = checkpoint.with_cosignatures(checkpoint.sign(head(5), stranger), LOG.line(text))
    assert checkpoint.opened(note, LOG.verifier) == head(5)
    wrong = checkpoint.with_cosignatures(checkpoint.sign(head(5), LOG), LOG.line(head(6).text()))
    with pytest.raises(NoteInvalid, match="wrong"):
        checkpoint.opened(wrong, LOG.verifier)
    with pytest.raises(NoteInvalid, match="not signed"):
        checkpoint.opened(checkpoint.sign(head(5), stranger), LOG.verifier)


def test_a_checkpoint_is_four_lines():
    note = checkpoint.sign(head(3), LOG)
    assert checkpoint.opened(note, LOG.verifier) == checkpoint.read(note) == head(3)
    origin, size, root, state, blank, *_ = note.decode().split("\n")
    assert (origin, size, blank) == ("acme/eu-west", "3", "")
    assert base64.b64decode(root) == naive_root(TREE.leaves[:3])
    assert state == "state 6 " + "03" * 32


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n3\n", "\n03\n"),
        ("\n3\n", "\n-3\n"),
        ("\n3\n", "\n3.0\n"),
        ("\n3\n", "\n" + "3" * 20 + "\n"),
        ("\n3\n", "\n\u0663\n"),
        ("=\nstate", "\nstate"),
        ("=\nstate", "=\n"),
        ("state 6", "state 06"),
        ("state 6 ", "state 6  "),
        ("state 6 0", "state 6 A"),
        ("acme/eu-west\n3", "acme/eu west\n3"),
        ("acme/eu-west\n3", "\n3"),
        ("acme/eu-west\n3", "acme/eu-east\n3"),
    ],
)
def test_a_signed_text_that_is_not_exactly_one_is_refused(old, new):
    text = head(3).text()
    assert old in text
    changed = text.replace(old, new, 1)
    with pytest.raises(NoteInvalid):
        checkpoint.opened(notes.write(changed, LOG.line(changed)), LOG.verifier)


def test_a_root_has_one_encoding():
    text = head(3).text()
    root = text.split("\n")[2]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = root[:-2] + alphabet[alphabet.index(root[-2]) ^ 1] + "="
    assert base64.b64decode(other) == base64.b64decode(root)
    changed = text.replace(root, other)
    with pytest.raises(NoteInvalid, match="one encoding"):
        checkpoint.opened(notes.write(changed, LOG.line(changed)), LOG.verifier)


def test_a_witness_says_when_it_saw_what():
    witness = Witness(LOG.verifier, WITNESS)
    note = checkpoint.sign(head(5), LOG)
    seen, line = witness.cosign(None, note, [], 1_700_000_000)
    assert seen == head(5)
    signed = notes.parse(checkpoint.with_cosignatures(note, line)).opened([LOG.verifier, WITNESS.verifier])
    assert signed == {LOG.verifier: None, WITNESS.verifier: 1_700_000_000}
    # The time is signed, too.
    value = bytearray(notes.parse(notes.write("x\n", line)).signatures[0].value)
    value[7] ^= 1
    with pytest.raises(NoteInvalid, match="wrong"):
        WITNESS.verifier.time_signed(head(5).text(), bytes(value))
    value[0] = 0xFF
    with pytest.raises(NoteInvalid, match="range"):
        WITNESS.verifier.time_signed(head(5).text(), bytes(value))


@given(st.integers(0, 64), st.integers(0, 64))
def test_a_witness_cosigns_what_grew(one, two):
    old, new = sorted((one, two))
    proof = merkle.consistency_proof(old, new, TREE.node)
    seen, _ = Witness(LOG.verifier, WITNESS).cosign(head(old), checkpoint.sign(head(new), LOG), proof, 1)
    assert seen == head(new)


@pytest.mark.parametrize(
    ("new", "proof_to", "reason"),
    [
        (head(4), 5, "SMALLER_TREE"),
        (head(0), 5, "SMALLER_TREE"),
        (head(5, root=b"r" * 32), 5, "OTHER_ROOT"),
        (head(5, hash=b"h" * 32), 5, "OTHER_STATE"),
        (head(5, revision=11), 5, "OTHER_STATE"),
        (head(9, revision=9), 9, "OTHER_STATE"),
        (head(9), 8, "BAD_PROOF"),
        (head(9), 5, "BAD_PROOF"),
        (head(9, root=b"r" * 32), 9, "BAD_PROOF"),
    ],
)
def test_a_witness_refuses(new, proof_to, reason):
    proof = merkle.consistency_proof(5, proof_to, TREE.node)
    with pytest.raises(Refused) as refused:
        Witness(LOG.verifier, WITNESS).cosign(head(5), checkpoint.sign(new, LOG), proof, 1)
    assert refused.value.reason == reason


def test_a_witness_knows_its_log():
    witness = Witness(LOG.verifier, WITNESS)
    other = head(5, origin="acme/eu-central")
    for note in (checkpoint.sign(head(5), Signer("acme/eu-west", key(9))), checkpoint.sign(other, LOG), b"", b"\n\n"):
        with pytest.raises(Invalid) as invalid:
            witness.cosign(None, note, [], 1)
        assert invalid.value.reason == "NOT_A_CHECKPOINT"
    assert LOG.verifier.type == NOTE
