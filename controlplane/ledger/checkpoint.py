"""Checkpoints: the signed root of a region's tree at one size (c2sp.org/tlog-checkpoint), and when to cosign one.

The text of a checkpoint is four lines: the origin, `fleet/region`, which is also the name of the key that signs it; the
number of leaves; the root in base64; and one extension line that binds the state of the region after the last of those
leaves, so that a signature covers what has no commitment of its own in a leaf:

    state <revision> <running hash in hexadecimal>

A region must never sign two checkpoints that do not continue each other. Peers make sure of it: each remembers the
newest checkpoint that it cosigned and refuses what does not continue that one (`Witness`).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass

from controlplane.errors import Invalid, Refused
from controlplane.ledger import merkle, notes
from controlplane.ledger.notes import NoteInvalid, Signer, VerifierKey

_FORM = re.compile(
    r"(?P<origin>[!-~]{1,512})\n"
    r"(?P<size>0|[1-9][0-9]{0,18})\n"
    r"(?P<root>[A-Za-z0-9+/]{43}=)\n"
    r"state (?P<revision>0|[1-9][0-9]{0,18}) (?P<hash>[0-9a-f]{64})\n"
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree at one size, and the region's state after its last leaf."""

    origin: str
    size: int
    root: bytes
    revision: int
    hash: bytes

    def text(self) -> str:
        """What is signed."""
        root = base64.b64encode(self.root).decode()
        return f"{self.origin}\n{self.size}\n{root}\nstate {self.revision} {self.hash.hex()}\n"


def origin_of(fleet: str, region: str) -> str:
    """The origin of a region's checkpoints, which is also the name of the key that signs them."""
    return f"{fleet}/{region}"


def sign(checkpoint: Checkpoint, signer: Signer) -> bytes:
    """The checkpoint as a note signed by its region."""
    return notes.write(checkpoint.text(), signer.line(checkpoint.text()))


def with_cosignatures(note: bytes, *lines: str) -> bytes:
    """The note with more signature lines."""
    return note + "".join(lines).encode()


def read(note: bytes) -> Checkpoint:
    """What a note says, whoever signed it. Raises `NoteInvalid` if it is not exactly the text of a checkpoint."""
    return _of_text(notes.parse(note).text)


def opened(note: bytes, log: VerifierKey) -> Checkpoint:
    """The checkpoint in a note that the region of key `log` signed. Raises `NoteInvalid`."""
    parsed = notes.parse(note)
    parsed.opened([log])
    checkpoint = _of_text(parsed.text)
    if checkpoint.origin != log.name:
        raise NoteInvalid("the checkpoint of another log")
    return checkpoint


@dataclass(frozen=True, slots=True)
class Witness:
    """Cosigns the checkpoints of one log: never a smaller tree, never another one of the same size.

    Pure: whoever runs it keeps the newest `Checkpoint` that it answered with, durably, before the cosignature leaves.
    The first checkpoint of a log is believed (there is nothing that it could contradict).
    """

    log: VerifierKey
    signer: Signer

    def cosign(self, seen: Checkpoint | None, note: bytes, proof: Sequence[bytes], at_s: int) -> tuple[Checkpoint, str]:
        """Check that `note` continues `seen` by the consistency proof; return it and the cosignature line to add.

        Raises Invalid for what is not a checkpoint signed by the log, Refused with reason SMALLER_TREE, OTHER_ROOT,
        OTHER_STATE or BAD_PROOF for one that must not be cosigned. All but BAD_PROOF are evidence against the log: keep
        the note.
        """
        try:
            new = opened(note, self.log)
        except NoteInvalid as error:
            raise Invalid(f"not a checkpoint of {self.log.name}: {error}", reason="NOT_A_CHECKPOINT") from error
        if seen is not None:
            _continues(seen, new, proof)
        return new, self.signer.line(new.text(), at_s)


def _continues(seen: Checkpoint, new: Checkpoint, proof: Sequence[bytes]) -> None:
    if new.size < seen.size:
        raise Refused(f"{new.size} leaves after {seen.size}", reason="SMALLER_TREE")
    if new.size == seen.size and new.root != seen.root:
        raise Refused(f"another root over the same {new.size} leaves", reason="OTHER_ROOT")
    if new.revision < seen.revision or (new.size == seen.size and new != seen):
        raise Refused("another state after the same leaves, or an older one after more", reason="OTHER_STATE")
    if not merkle.verify_consistency(seen.size, seen.root, new.size, new.root, proof):
        raise Refused(
            f"the proof does not show that {new.size} leaves continue {seen.size}",
            reason="BAD_PROOF",
            hint=f"send a consistency proof from {seen.size}",
        )


def _of_text(text: str) -> Checkpoint:
    parts = _FORM.fullmatch(text)
    if parts is None:
        raise NoteInvalid("not the text of a checkpoint")
    try:
        root = base64.b64decode(parts["root"], validate=True)
    except binascii.Error as error:
        raise NoteInvalid("the root of a checkpoint is not base64") from error
    checkpoint = Checkpoint(
        parts["origin"], int(parts["size"]), root, int(parts["revision"]), bytes.fromhex(parts["hash"])
    )
    if checkpoint.text() != text:
        raise NoteInvalid("not the one encoding of a checkpoint")
    return checkpoint
