"""Signed notes: a text, a blank line, and signature lines (c2sp.org/signed-note), with Ed25519 alone.

A signature line is an em dash, a space, the key's name, a space, and base64 of a four-byte key id and the signature. A
key has one of two types: `NOTE` signs the text as it is; `COSIGNATURE` (c2sp.org/tlog-cosignature, "cosignature/v1")
signs it with the time of signing before it, and its signature begins with that time. The id is made of name, type and
key, so that a line made by the one type never counts as the other.

Whoever opens a note says which keys they trust. Lines by other keys are ignored; a wrong line by a trusted key spoils
the whole note, and a note without a line by a trusted key is not read at all.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

NOTE = 0x01
COSIGNATURE = 0x04
NOTE_BYTES_MAX = 64 * 1024
SIGNATURES_MAX = 64
NAME_BYTES_MAX = 512
TIME_S_MAX = (1 << 63) - 1

_KEY_BYTES = 32
_ID_BYTES = 4
_TIME_BYTES = 8
_SIGNATURE_BYTES = 64
_DASH = "\u2014 "


class NoteInvalid(ValueError):
    """Not a note, or not signed by a key that is trusted; the text says which."""


class Signature(NamedTuple):
    """A signature line, taken apart."""

    name: str
    id: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """The public half of a key: what a trust file holds, as name+id+base64."""

    name: str
    type: int
    public: bytes

    @property
    def id(self) -> bytes:
        """Four bytes that tell keys of one name apart. They prove nothing."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.type]) + self.public).digest()[:_ID_BYTES]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{_base64(bytes([self.type]) + self.public)}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Raises ValueError for anything but an Ed25519 key of one of the two types whose id is right."""
        name, _, rest = text.partition("+")
        id_text, _, packed = rest.partition("+")
        content = _unbase64(packed)
        if not is_name(name) or len(content) != 1 + _KEY_BYTES or content[0] not in (NOTE, COSIGNATURE):
            raise ValueError("not an Ed25519 verifier key: write name+id+base64")
        key = cls(name, content[0], content[1:])
        if key.id.hex() != id_text:
            raise ValueError("the id of a verifier key is not that of its name and key")
        return key

    def time_signed(self, text: str, value: bytes) -> int | None:
        """Check a signature of `text`; return when it was made (Unix seconds), None for a type that does not say.

        Raises `NoteInvalid` if it is wrong.
        """
        at_s = None
        message = text.encode()
        if self.type == COSIGNATURE:
            at_s, value = int.from_bytes(value[:_TIME_BYTES], "big"), value[_TIME_BYTES:]
            message = _cosigned(text, at_s)
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(value, message)
        except (InvalidSignature, ValueError) as error:
            raise NoteInvalid(f"a signature by {self.name} is wrong") from error
        return at_s


class Signer:
    """A key that signs notes under a name."""

    def __init__(self, name: str, key: Ed25519PrivateKey, kind: int = NOTE) -> None:
        if not is_name(name) or kind not in (NOTE, COSIGNATURE):
            raise ValueError("not the name or the type of a key that signs notes")
        self._key = key
        self.verifier = VerifierKey(name, kind, key.public_key().public_bytes_raw())

    def line(self, text: str, at_s: int | None = None) -> str:
        """The signature line for a note of this text; a cosignature says when (Unix seconds), others must not."""
        if (self.verifier.type == COSIGNATURE) != (at_s is not None):
            raise ValueError("cosignatures say when they were made, other signatures do not")
        if at_s is None:
            value = self._key.sign(text.encode())
        else:
            value = at_s.to_bytes(_TIME_BYTES, "big") + self._key.sign(_cosigned(text, at_s))
        return f"{_DASH}{self.verifier.name} {_base64(self.verifier.id + value)}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A note whose signatures nobody has checked yet."""

    text: str
    signatures: tuple[Signature, ...]

    def opened(self, trusted: Collection[VerifierKey]) -> Mapping[VerifierKey, int | None]:
        """The trusted keys that signed, and when (see `VerifierKey.time_signed`).

        Raises `NoteInvalid` if there are none, or if a signature that claims to be by one of them is wrong.
        """
        known = {(key.name, key.id): key for key in trusted}
        found: dict[VerifierKey, int | None] = {}
        for signature in self.signatures:
            key = known.get((signature.name, signature.id))
            if key is not None:
                found[key] = key.time_signed(self.text, signature.value)
        if not found:
            raise NoteInvalid("not signed by a trusted key")
        return found


def write(text: str, *lines: str) -> bytes:
    """A note from its text and its signature lines. Raises ValueError for a text that no note can have."""
    if not text.endswith("\n") or any(_is_control(character) for character in text):
        raise ValueError("the text of a note ends with a newline, and has no other control characters")
    return f"{text}\n{''.join(lines)}".encode()


def parse(content: bytes) -> Note:
    """Take a note apart. Raises `NoteInvalid`. Nothing is allocated for more than `NOTE_BYTES_MAX`."""
    if len(content) > NOTE_BYTES_MAX:
        raise NoteInvalid("too long for a note")
    try:
        whole = content.decode()
    except UnicodeDecodeError as error:
        raise NoteInvalid("a note is UTF-8") from error
    text, blank, lines = whole.rpartition("\n\n")
    if not blank or not lines.endswith("\n") or any(_is_control(character) for character in whole):
        raise NoteInvalid("a note is a text, an empty line and signature lines, without control characters")
    if lines.count("\n") > SIGNATURES_MAX:
        raise NoteInvalid("too many signatures")
    return Note(text + "\n", tuple(_signature(line) for line in lines[:-1].split("\n")))


def is_name(text: str) -> bool:
    """Whether `text` may name a key."""
    return (
        0 < len(text.encode(errors="replace")) <= NAME_BYTES_MAX
        and text.isprintable()
        and not any(character.isspace() or character == "+" for character in text)
    )


def _signature(line: str) -> Signature:
    name, _, packed = line.removeprefix(_DASH).partition(" ")
    try:
        content = _unbase64(packed)
    except ValueError as error:
        raise NoteInvalid("a signature line is not base64") from error
    if not line.startswith(_DASH) or not is_name(name) or len(content) <= _ID_BYTES:
        raise NoteInvalid("a signature line is a dash, a name and base64")
    return Signature(name, content[:_ID_BYTES], content[_ID_BYTES:])


def _cosigned(text: str, at_s: int) -> bytes:
    if not 0 <= at_s <= TIME_S_MAX:
        raise NoteInvalid("the time of a cosignature is out of range")
    return f"cosignature/v1\ntime {at_s}\n{text}".encode()


def _is_control(character: str) -> bool:
    return character < " " and character != "\n"


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _unbase64(text: str) -> bytes:
    """Raises ValueError for anything but the one encoding of some bytes."""
    try:
        content = base64.b64decode(text.encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError("not base64") from error
    if _base64(content) != text:
        raise ValueError("not the one base64 encoding")
    return content
