"""Ed25519 keys of operators and regions, and what they sign. Needs `cryptography`, unlike what agents run."""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


class KeyInvalid(ValueError):
    """The file holds no such key; the text names it."""


def new(file: Path) -> Path:
    """Make a key at `file`, readable by its owner only, and its public half beside it; return the latter's path.

    Raises `FileExistsError`: a key is never replaced. Any other `OSError` as it comes.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    if not file.parent.exists():  # Asked to make what is a file, the system would say that it exists.
        file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600, exist_ok=False)
    file.write_bytes(private)
    public_file = file.with_name(file.name + ".pub")
    public_file.write_bytes(public)
    return public_file


class Signer:
    """A key that signs."""

    def __init__(self, file: Path) -> None:
        """Read the key. Raises `KeyInvalid`, or `OSError` as it comes."""
        try:
            key = serialization.load_pem_private_key(file.read_bytes(), password=None)
        except (ValueError, TypeError) as error:
            raise KeyInvalid(f"{file} holds no private key: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyInvalid(f"{file} holds another kind of key than Ed25519")
        self._key = key
        self.public_key = key.public_key().public_bytes_raw().hex()

    @property
    def key(self) -> Ed25519PrivateKey:
        """The key itself, for formats of signatures that are made elsewhere."""
        return self._key

    def sign(self, content: bytes) -> str:
        """The signature of `content`, in hexadecimal."""
        return self._key.sign(content).hex()


def public_key(file: Path) -> str:
    """Read a public key; return its bytes in hexadecimal. Raises `KeyInvalid`, or `OSError` as it comes."""
    try:
        key = serialization.load_pem_public_key(file.read_bytes())
    except ValueError as error:
        raise KeyInvalid(f"{file} holds no public key: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise KeyInvalid(f"{file} holds another kind of key than Ed25519")
    return key.public_bytes_raw().hex()


def is_signed(content: bytes, signature: str, by: str) -> bool:
    """Whether `signature` is that of `content` under the public key `by`; False for anything that is neither."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(by)).verify(bytes.fromhex(signature), content)
    except (InvalidSignature, ValueError):
        return False
    return True
