#!/usr/bin/env python3
"""Check a reviewer's bundle offline, against keys that the reviewer was given by somebody else.

    python verify.py BUNDLE --trust TRUST.toml [--peer-bundle OTHER ...] [--seed TEXT --samples 20] [--json]

This one file needs Python 3.11 and the package `cryptography`, and nothing of the program that wrote the bundle. It
opens no connection, writes no file and runs nothing that it reads. It prints one line per claim: PASS, FAIL, or NOT
CHECKED where the evidence or a trusted key is missing. Exit status: 0 if no claim is FAIL, 1 if one is, 2 if it could
not begin (wrong arguments, a trust file that cannot be used, or that has no key for this bundle).

What is believed. Nothing in a bundle but what follows from a signature by a key in the trust file: the signed root of
the last checkpoint fixes every leaf below it (RFC 6962), each leaf fixes the content of its audited records, and each
claim rests on others: where those do not hold, it is NOT CHECKED. The trust file is TOML:

    format = 1
    fleet = "acme"

    [regions.eu-west]                            # the region the bundle is about, and each of its peers
    jurisdiction = "eu"                          # required
    checkpoint_key = "acme/eu-west+1a2b3c4d+AR…" # C2SP verifier keys; type 1 (Ed25519)
    cosign_key = "acme/eu-west/witness+…+BA…"    # type 4 (cosignature/v1)
    known_checkpoint = '''…'''                   # a checkpoint of it that you kept from earlier
    [regions.eu-west.nodes]                      # every node it has: whose scan is missing is NOT CHECKED
    n1 = "acme/eu-west/n1+…+AR…"                 # type 1; "" if you were given no key

Claims. FILES: the bundle is well formed, and its files are those of its manifest. CHECKPOINT: the region signed both
checkpoints. GROWTH: the last continues the first. LEAVES: the leaves are those under the signed root; none is missing,
and revisions and times never go back. RANGE: they cover the time asked for, by the region's clock, and say nothing of
times to come, nor that the region forgot some of it. RECORDS: every audited record of those leaves is there once and is
what the leaf committed to, or is erased. REACH: no record says that pinned data left. HOMES: epochs of partitions only
grow, and nothing is claimed under one that is over, as this bundle or a peer's shows. COSIGNED per peer: it saw the
same ledger. MATCHED per peer: the copies that one sent are those that the other received, and break-glass reads that
the peer names are here. SCAN per node: it signed that it found nothing foreign. SAMPLES: leaves picked by your seed
lead to the root. IDENTITY: it is the ledger of which you kept a checkpoint.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import bisect
import hashlib
import hmac
import json
import re
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

PASS, FAIL, NOT_CHECKED = "PASS", "FAIL", "NOT CHECKED"

FILES_MAX = 1024
SMALL_FILE_BYTES_MAX = 1 << 20
BYTES_MAX = {"leaves.jsonl": 1 << 33, "records.jsonl": 1 << 33, "report.html": 1 << 25}
LEAF_BYTES_MAX = 4 << 20
RECORD_BYTES_MAX = 64 << 10
NAME_CHARS_MAX = 256
SIGNATURES_MAX = 64
TRANSFERS_KEPT_MAX = 1_000_000
WAYS_MAX = 100_000
"""Pairs of peer and partition."""
RECORDS_MAX = 20_000_000
RESTORED_MAX = 1000
SAMPLES_MAX = 10_000
SKEW_MS = 60_000
"""Clocks of two regions, or of a region and the reviewer, are taken to agree no better than this."""

CLASSES = (
    *("egress", "ingress", "grant", "denial", "break-glass", "switch", "exception", "move", "erase", "restore"),
    "unreadable",
)
NEVER_ERASED = ("egress", "ingress", "grant", "break-glass", "move", "erase", "restore")
"""Regions keep the keys of these, whatever else they erase: without them nobody could say what left."""
REACHES = ("home-only", "jurisdiction", "global")
PHASES = ("sealed", "cancelled", "adopting", "adopted", "left")
"""Of a move. The last two are where it has come to its end, at the new home and at the old one."""

_WORD = "[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NODE = "[A-Za-z0-9](?:[A-Za-z0-9._@-]{0,60}[A-Za-z0-9])?"
_FILE = re.compile(
    r"statement\.md|manifest\.json|report\.html|leaves\.jsonl|records\.jsonl|proofs/(frontier|consistency)\.json"
    rf"|checkpoints/(first|last|cosigned/{_WORD})\.note|scans/{_NODE}\.note"
)
_REQUIRED = {
    *("statement.md", "manifest.json", "leaves.jsonl", "records.jsonl", "proofs/frontier.json"),
    *("proofs/consistency.json", "checkpoints/first.note", "checkpoints/last.note"),
}
_NUMBER = "(0|[1-9][0-9]{0,18})"
_HEX = "([0-9a-f]{64})"
_LEAF = re.compile(
    rf'\{{"v":1,"index":{_NUMBER},"revision":{_NUMBER},"at_ms":{_NUMBER},"hash":"{_HEX}","entry":"{_HEX}",'
    r'"open":\[([^ ]*)\]\}'.encode()
)
_PAIR = re.compile(rf'\["({"|".join(CLASSES)})","{_HEX}"\]'.encode())
_CHECKPOINT = re.compile(rf"([!-~]{{1,512}})\n{_NUMBER}\n([A-Za-z0-9+/]{{43}}=)\nstate {_NUMBER} {_HEX}\n")


class Wrong(Exception):
    """Evidence contradicts the claim: FAIL."""


class Lacking(Exception):
    """There is nothing to judge the claim by: NOT CHECKED."""


class TrustInvalid(Exception):
    """The trust file cannot be used."""


class Claim(NamedTuple):
    """What became of one claim, with a sentence."""

    name: str
    status: str
    says: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as a program; return the exit status."""
    parser = argparse.ArgumentParser(description="Check a reviewer's bundle offline.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--trust", type=Path, required=True, metavar="FILE", help="the keys you trust (TOML)")
    parser.add_argument("--peer-bundle", type=Path, action="append", default=[], help="a peer region's bundle")
    parser.add_argument("--seed", help="a text of your own, to pick samples by")
    parser.add_argument("--samples", type=int, default=20, help=f"how many, up to {SAMPLES_MAX}")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(arguments)
    if not 1 <= options.samples <= SAMPLES_MAX:
        parser.error(f"--samples is 1 to {SAMPLES_MAX}")
    try:
        trust = Trust.load(options.trust)
        ledger, claims = check(options.bundle, trust, options.peer_bundle, options.seed, options.samples)
    except (TrustInvalid, OSError) as error:
        print(f"cannot begin: {plain(str(error))}", file=sys.stderr)  # noqa: T201
        return 2
    print(_as_json(ledger, claims) if options.json else _as_text(ledger, claims))  # noqa: T201
    if any(claim.status == FAIL for claim in claims):
        return 1
    return 0 if ledger.claims["CHECKPOINT"].status == PASS else 2


def check(
    bundle: Path, trust: Trust, peers: Sequence[Path] = (), seed: str | None = None, samples: int = 20
) -> tuple[Ledger, list[Claim]]:
    """Judge a bundle. Raises OSError if a file cannot be read; whatever is in one is a claim's matter."""
    ledger = Ledger(bundle, trust, Sampling(seed, samples) if seed is not None else None, matching=bool(peers))
    ledger.examine()
    others = [Ledger(path, trust, None, matching=True) for path in peers]
    for other in others:
        other.examine()
    ledger.claims["HOMES"] = ledger.judged("HOMES", partial(_homes, ledger, others))
    by_region: dict[str, list[Ledger]] = {}
    for other in others:
        by_region.setdefault(other.manifest.region if other.manifest else "", []).append(other)
    return ledger, [*ledger.claims.values(), *_about_peers(ledger, by_region), *_about_nodes(ledger), *_last(ledger)]


def plain(text: str) -> str:
    """Text for any terminal, whatever it came from; letters that only look like those of a name are told apart."""
    known = text[:2000].encode("ascii", "backslashreplace").decode()
    return "".join(each if each.isprintable() else "?" for each in known)


def _as_text(ledger: Ledger, claims: Sequence[Claim]) -> str:
    about = f"{ledger.manifest.fleet}/{ledger.manifest.region}" if ledger.manifest else "a bundle that cannot be read"
    width = max(len(claim.name) for claim in claims)
    lines = [f"{claim.status:<11}  {claim.name:<{width}}  {plain(claim.says)}" for claim in claims]
    counts = ", ".join(f"{sum(claim.status == each for claim in claims)} {each}" for each in (PASS, FAIL, NOT_CHECKED))
    return "\n".join([plain(about), *lines, counts])


def _as_json(ledger: Ledger, claims: Sequence[Claim]) -> str:
    told = {
        "fleet": ledger.manifest.fleet if ledger.manifest else None,
        "region": ledger.manifest.region if ledger.manifest else None,
        "claims": [{"name": name, "status": status, "says": plain(says)} for name, status, says in claims],
        "samples": [{"leaf": index, "hash": leaf.hex()} for index, leaf in sorted(ledger.sampled.items())],
    }
    return json.dumps(told, indent=1)


# What the reviewer trusts.


class Key(NamedTuple):
    """An Ed25519 key from the trust file, with the name and the id under which it signs."""

    name: str
    kind: int
    public: bytes
    id: bytes


@dataclass(frozen=True)
class Region:
    """A region of the trust file."""

    name: str
    jurisdiction: str
    checkpoint: Key | None = None
    cosign: Key | None = None
    known: Head | None = None
    nodes: Mapping[str, Key | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Trust:
    """The trust file."""

    fleet: str
    regions: Mapping[str, Region]

    @classmethod
    def load(cls, file: Path) -> Trust:
        """Read it. Raises TrustInvalid, or OSError as it comes."""
        try:
            table = tomllib.loads(file.read_text("utf-8"))
            _only(table, {"format", "fleet", "regions"}, "the trust file")
            if table.get("format") != 1:
                raise TrustInvalid("the trust file must say format = 1")
            regions = {name: _region(table["fleet"], name, each) for name, each in table["regions"].items()}
            return cls(_text(table["fleet"]), regions)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TrustInvalid(f"{file}: {error!r}") from error


def _region(fleet: str, name: str, table: Mapping[str, Any]) -> Region:
    _only(table, {"jurisdiction", "checkpoint_key", "cosign_key", "known_checkpoint", "nodes"}, f"region {name}")
    known = None
    if table.get("known_checkpoint"):
        try:
            known = Head.read(Note.read(table["known_checkpoint"].encode()).text)
        except Wrong as error:
            raise TrustInvalid(f"the known checkpoint of {name}: {error}") from error
        if known.origin != f"{fleet}/{name}":
            raise TrustInvalid(f"the known checkpoint of {name} is of {known.origin}")
    return Region(
        name,
        _text(table["jurisdiction"]),
        _key(table.get("checkpoint_key", ""), 1),
        _key(table.get("cosign_key", ""), 4),
        known,
        {node: _key(text, 1) for node, text in table.get("nodes", {}).items()},
    )


def _key(text: str, kind: int) -> Key | None:
    if not text:
        return None
    name, _, rest = _text(text).partition("+")
    told, _, packed = rest.partition("+")
    content = base64.b64decode(packed, validate=True)
    if len(content) != 33 or content[0] != kind:
        raise TrustInvalid(f"{name}: not an Ed25519 key of type {kind}")
    key_id = hashlib.sha256(name.encode() + b"\n" + content).digest()[:4]
    if key_id.hex() != told:
        raise TrustInvalid(f"{name}: the id of the key is {key_id.hex()}, not {told}")
    return Key(name, kind, content[1:], key_id)


def _only(table: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := set(table) - known:
        raise TrustInvalid(f"{where} says {sorted(unknown)}, which is not known here")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


# What a bundle holds. Every size is looked at before anything is read, and nothing is written anywhere.


class Bundle:
    """The files in a bundle, by name. Nothing in it is believed."""

    def __init__(self, file: Path) -> None:
        """Find the files. Raises Wrong for anything but a tar of a bundle's files, OSError as it comes."""
        self._file = file
        self.places: dict[str, tuple[int, int]] = {}
        length = file.stat().st_size
        with file.open("rb") as tar:
            at = 0
            while (header := tar.read(512)) != bytes(512):
                name, size = _header(header)
                at += 512
                if size > BYTES_MAX.get(name, SMALL_FILE_BYTES_MAX):
                    raise Wrong(f"{name} is too large")
                if name in self.places or len(self.places) >= FILES_MAX:
                    raise Wrong(f"{name} is there twice, or there are too many files")
                self.places[name] = at, size
                at += (size + 511) // 512 * 512
                if at > length:
                    raise Wrong("the bundle is cut short")
                tar.seek(at)
            # An archive ends with two empty blocks, and zeros up to a record of twenty.
            rest = length - at
            if not 1024 <= rest <= 10240 + 512 or tar.read(rest).strip(b"\0"):
                raise Wrong("there is something after the end of the archive, or the end is missing")

    def content(self, name: str) -> bytes:
        """A file, whole; it is no larger than its name allows. Raises Wrong if there is none."""
        if name not in self.places:
            raise Wrong(f"{name} is missing")
        at, size = self.places[name]
        with self._file.open("rb") as tar:
            tar.seek(at)
            return tar.read(size)

    def lines(self, name: str, bytes_max: int) -> Iterator[bytes]:
        """The lines of a file, without their ends. Raises Wrong for one that is longer or not ended."""
        if name not in self.places:
            raise Wrong(f"{name} is missing")
        at, left = self.places[name]
        with self._file.open("rb", buffering=1 << 20) as tar:
            tar.seek(at)
            while left:
                line = tar.readline(min(left, bytes_max + 1))
                left -= len(line)
                if line[-1:] != b"\n":
                    raise Wrong(f"a line of {name} is too long, or not ended")
                yield line[:-1]

    def digest(self, name: str) -> str:
        """The SHA-256 of a file, in hexadecimal."""
        at, left = self.places[name]
        digest = hashlib.sha256()
        with self._file.open("rb") as tar:
            tar.seek(at)
            while left and (part := tar.read(min(left, 1 << 20))):
                digest.update(part)
                left -= len(part)
        return digest.hexdigest()


def _header(header: bytes) -> tuple[str, int]:
    """Name and size of a plain file in a ustar archive; anything else has no place in a bundle."""
    if len(header) < 512:
        raise Wrong("the bundle is cut short, or is not a tar archive")
    summed = sum(header[:148]) + sum(header[156:]) + 8 * 32
    name, _, after = header[:100].partition(b"\0")
    if (
        header[257:265] != b"ustar\x0000"
        or header[156:157] != b"0"
        or header[345:500].strip(b"\0")
        or after.strip(b"\0")
    ):
        raise Wrong("something other than a plain file is in the bundle, or it is not a tar archive")
    if _octal(header[148:156]) != summed:
        raise Wrong("the header of a file in the bundle is damaged")
    text = name.decode("latin-1")
    if not _FILE.fullmatch(text):
        raise Wrong(f"{text!r} has no place in a bundle")
    return text, _octal(header[124:136])


def _octal(text: bytes) -> int:
    digits = text.rstrip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,12}", digits):
        raise Wrong("a number in the header of a file is damaged")
    return int(digits, 8)


def _json(content: bytes, what: str) -> Any:
    """JSON of whole numbers that everybody reads alike. Raises Wrong, also for what is too deep."""
    try:
        return _JSON.decode(content.decode())
    except (ValueError, RecursionError) as error:
        raise Wrong(f"{what} is not JSON as it should be") from error


def _no_number(text: str) -> None:
    raise ValueError("only whole numbers are expected")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    told = dict(pairs)
    if len(told) != len(pairs):
        raise ValueError("a name is said twice")
    return told


# Made once: json.loads with options makes one for every text.
_JSON = json.JSONDecoder(parse_float=_no_number, parse_constant=_no_number, object_pairs_hook=_object)


class Manifest(NamedTuple):
    """What a bundle says that it is about."""

    fleet: str
    region: str
    jurisdiction: str
    from_ms: int
    to_ms: int
    start: int
    end: int
    reaches: Mapping[str, str]
    homes: Mapping[str, tuple[int, str]]
    """Partition → epoch and home, as the region says."""
    files: Mapping[str, str]

    @classmethod
    def read(cls, content: bytes) -> Manifest:
        """Raises Wrong if it does not say what a manifest says."""
        told = _json(content, "manifest.json")
        try:
            if told["format"] != "controlplane-bundle/1":
                raise Wrong("this is the manifest of another format: use the verifier that belongs to it")
            names = told["fleet"], told["region"], told["jurisdiction"]
            numbers = told["asked"]["from_ms"], told["asked"]["to_ms"], told["leaves"]["from"], told["leaves"]["to"]
            reaches = {each["id"]: each["reach"] for each in told["partitions"]}
            homes = {each["id"]: (each["epoch"], each["home"]) for each in told["partitions"]}
            files = {each["name"]: each["sha256"] for each in told["files"]}
        except (KeyError, TypeError) as error:
            raise Wrong("manifest.json does not say what a manifest says") from error
        if not all(isinstance(each, str) and re.fullmatch(_WORD, each) for each in names):
            raise Wrong("manifest.json names no fleet, region and jurisdiction")
        if not all(_is_number(each) for each in numbers) or numbers[0] > numbers[1] or numbers[2] >= numbers[3]:
            raise Wrong("manifest.json names no range")
        if not all(isinstance(each, str) for each in (*reaches, *files, *files.values())):
            raise Wrong("manifest.json does not say what a manifest says")
        if not all(_is_number(epoch) and isinstance(home, str) for epoch, home in homes.values()):
            raise Wrong("manifest.json names a partition without home and epoch")
        if len(reaches) != len(told["partitions"]) or len(files) != len(told["files"]):
            raise Wrong("manifest.json names a partition or a file twice")
        if not all(reach in REACHES for reach in reaches.values()):
            raise Wrong("manifest.json names a reach that does not exist")
        return cls(*names, *numbers, reaches, homes, files)


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_name(value: Any) -> bool:
    """Whether this is short enough to be kept, however many there are."""
    return isinstance(value, str) and len(value) <= NAME_CHARS_MAX


# Signed notes (c2sp.org/signed-note) and checkpoints (c2sp.org/tlog-checkpoint, c2sp.org/tlog-cosignature).


class Note(NamedTuple):
    """A text and its signature lines: name, key id, signature."""

    text: str
    signatures: Sequence[tuple[str, bytes, bytes]]

    @classmethod
    def read(cls, content: bytes) -> Note:
        """Raises Wrong for anything but a note."""
        try:
            whole = content.decode()
        except UnicodeDecodeError as error:
            raise Wrong("it is not UTF-8") from error
        text, blank, lines = whole.rpartition("\n\n")
        if (
            not blank
            or lines[-1:] != "\n"
            or lines.count("\n") > SIGNATURES_MAX
            or re.search("[\0-\x09\x0b-\x1f]", whole)
        ):
            raise Wrong("it is not a signed note")
        return cls(text + "\n", [_signature(line) for line in lines[:-1].split("\n")])

    def signed_by(self, key: Key) -> int | None:
        """When `key` signed, in Unix seconds, 0 for signatures without a time; None if it did not sign.

        Raises Wrong if a signature under its name and id does not verify.
        """
        found = None
        for name, key_id, value in self.signatures:
            if (name, key_id) != (key.name, key.id):
                continue
            found, message, signature = 0, self.text.encode(), value
            if key.kind == 4:
                found, signature = int.from_bytes(value[:8], "big"), value[8:]
                message = f"cosignature/v1\ntime {found}\n".encode() + message
            try:
                Ed25519PublicKey.from_public_bytes(key.public).verify(signature, message)
            except (InvalidSignature, ValueError) as error:
                raise Wrong(f"the signature by {name} is not one") from error
        return found


def _signature(line: str) -> tuple[str, bytes, bytes]:
    parts = line.split(" ")
    if len(parts) != 3 or parts[0] != "\u2014":
        raise Wrong("a signature line is malformed")
    try:
        content = base64.b64decode(parts[2].encode(), validate=True)
    except ValueError as error:  # binascii.Error is one, and so is text that is not ASCII.
        raise Wrong("a signature line is malformed") from error
    return parts[1], content[:4], content[4:]


class Head(NamedTuple):
    """What a checkpoint says: a tree at one size, and the region's state after its last leaf."""

    origin: str
    size: int
    root: bytes
    revision: int
    hash: bytes

    @classmethod
    def read(cls, text: str) -> Head:
        """Raises Wrong if it is not the text of a checkpoint."""
        parts = _CHECKPOINT.fullmatch(text)
        if parts is None:
            raise Wrong("it is not a checkpoint")
        origin, size, root, revision, running = parts.groups()
        try:
            return cls(origin, int(size), base64.b64decode(root, validate=True), int(revision), bytes.fromhex(running))
        except binascii.Error as error:
            raise Wrong("it is not a checkpoint") from error


# The tree (RFC 6962), written from its recursive definition.


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return hashlib.sha256(b"\1" + left + right).digest()


def split(size: int) -> int:
    """How many leaves are in the left part of a tree."""
    return 1 << (size - 1).bit_length() - 1


def root_by_path(leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes:
    """The root that an inclusion path leads to; `path` begins at the leaf. Raises Wrong for one of the wrong length."""
    if size == 1:
        if path:
            raise Wrong("a path is too long")
        return leaf
    if not path:
        raise Wrong("a path is too short")
    *lower, sibling = path
    left = split(size)
    if index < left:
        return node_hash(root_by_path(leaf, index, left, lower), sibling)
    return node_hash(sibling, root_by_path(leaf, index - left, size - left, lower))


def roots_by_growth(old: int, new: int, old_root: bytes, proof: Sequence[bytes]) -> tuple[bytes, bytes]:
    """The roots at both sizes (0 < old ≤ new) that a consistency proof leads to. Raises Wrong for a wrong length."""

    def parts(old: int, new: int, proof: Sequence[bytes], *, whole: bool) -> tuple[bytes, bytes]:
        if old == new:
            if len(proof) != (0 if whole else 1):
                raise Wrong("a proof of growth has the wrong length")
            same = old_root if whole else proof[0]
            return same, same
        if not proof:
            raise Wrong("a proof of growth is too short")
        *lower, sibling = proof
        left = split(new)
        if old <= left:
            was, now = parts(old, left, lower, whole=whole)
            return was, node_hash(now, sibling)
        was, now = parts(old - left, new - left, lower, whole=False)
        return node_hash(sibling, was), node_hash(sibling, now)

    return parts(old, new, proof, whole=True)


def fold(hashes: Sequence[bytes]) -> bytes:
    """The root over complete parts, from left to right."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    root = hashes[-1]
    for left in reversed(hashes[:-1]):
        root = node_hash(left, root)
    return root


def covering(start: int, end: int) -> Iterator[tuple[int, int]]:
    """The complete parts (level, index) of a part of the tree that covers leaves `start` up to `end`."""
    while start < end:
        level = (end - start).bit_length() - 1
        yield level, start >> level
        start += 1 << level


def siblings(index: int, size: int) -> list[tuple[int, int]]:
    """The parts (start, end) beside the way from a leaf to the root, the lowest first."""
    start, end, found = 0, size, []
    while end - start > 1:
        middle = start + split(end - start)
        found.append((middle, end) if index < middle else (start, middle))
        start, end = (start, middle) if index < middle else (middle, end)
    return found[::-1]


class Sampling:
    """Picks leaves by the reviewer's seed: the n-th is SHA-256(seed, a newline, n in decimal) modulo the range."""

    def __init__(self, seed: str, count: int) -> None:
        self.seed, self.count = seed, count

    def picks(self, start: int, end: int) -> set[int]:
        """At most `count` of the leaves `start` up to `end`."""
        drawn = (hashlib.sha256(f"{self.seed}\n{n}".encode(errors="replace")).digest() for n in range(self.count))
        return {start + int.from_bytes(each, "big") % (end - start) for each in drawn}


# One region's bundle.


class Transfer(NamedTuple):
    """What an egress or ingress record says that matters here."""

    peer: str
    door: str
    what: tuple[str, int, int, int, int, str]
    """Reach, epoch, first and last revision, count, digest: the same on both sides."""
    leaf: int
    at_ms: int


class Glass(NamedTuple):
    """What a record of a break-glass read says that matters here."""

    out: bool
    """It was shown to the peer; else the peer showed it."""
    peer: str
    what: tuple[int, int, str]
    """Epoch and revision of the home, digest of what was shown: the same on both sides."""
    leaf: int
    at_ms: int


_RESTS_ON = {
    "GROWTH": ("CHECKPOINT",),
    "LEAVES": ("CHECKPOINT",),
    "RANGE": ("LEAVES",),
    "RECORDS": ("LEAVES",),
    "REACH": ("RECORDS",),
    "HOMES": ("RECORDS",),
    "COSIGNED": ("CHECKPOINT",),
    "MATCHED": ("RECORDS",),
    "SAMPLES": ("LEAVES",),
    "IDENTITY": ("CHECKPOINT",),
}


class Ledger:
    """One bundle and what was found out about it. `claims` has the claims about the ledger itself."""

    def __init__(self, file: Path, trust: Trust, sampling: Sampling | None, *, matching: bool) -> None:
        """`matching`: it will be held against another one."""
        self.trust, self._file, self._sampling = trust, file, sampling
        self.bundle: Bundle | None = None
        self.manifest: Manifest | None = None
        self.claims: dict[str, Claim] = {}
        self.first: Head | None = None
        self.last: Head | None = None
        self.last_note: Note | None = None
        self.records = Records(matching=matching)
        self.sampled: dict[int, bytes] = {}
        self.begin: Stretch | None = None
        self.finish: Stretch | None = None
        self.states: dict[int, tuple[int, bytes]] = {}
        """Size → revision and running hash after the last leaf, at sizes that matter."""
        self._roots: dict[int, bytes] = {}
        self._nodes: dict[tuple[int, int], bytes] = {}

    @property
    def region(self) -> Region | None:
        """What the trust file says of the region."""
        return self.trust.regions.get(self.manifest.region) if self.manifest else None

    def examine(self) -> None:
        """Judge everything about the ledger itself."""
        steps: list[tuple[str, Callable[[], str]]] = [
            ("FILES", self._files),
            ("CHECKPOINT", self._checkpoint),
            ("GROWTH", self._growth),
            ("LEAVES", self._leaves),
            ("RANGE", self._range),
            ("RECORDS", self._records),
            ("REACH", self._reach),
            ("HOMES", self._homes),
        ]
        for name, step in steps:
            self.claims[name] = self.judged(name, step)

    def judged(self, name: str, step: Callable[[], str]) -> Claim:
        """Judge one claim, and let it stand only if what it rests on does."""
        try:
            claim = Claim(name, PASS, step())
        except Wrong as error:
            claim = Claim(name, FAIL, str(error))
        except Lacking as error:
            claim = Claim(name, NOT_CHECKED, str(error))
        for base in _RESTS_ON.get(name.partition(" ")[0], ()):
            if claim.status == PASS and self.claims[base].status != PASS:
                claim = Claim(name, NOT_CHECKED, f"it rests on {base}, which does not hold")
        return claim

    def read(self, name: str) -> bytes:
        """A small file of the bundle. Raises Lacking if the bundle is none."""
        if self.bundle is None or self.manifest is None:
            raise Lacking("the bundle cannot be read")
        return self.bundle.content(name)

    def about(self) -> Manifest:
        """The manifest. Raises Lacking if there is none that can be read."""
        if self.manifest is None:
            raise Lacking("the bundle cannot be read")
        return self.manifest

    def end(self) -> Head:
        """The last checkpoint. Raises Lacking if it is not one that the region signed."""
        if self.last is None:
            raise Lacking("there is no last checkpoint that the region signed")
        return self.last

    def continues(self, one: Head | tuple[int, bytes], other: Head | tuple[int, bytes]) -> None:
        """Check that the larger of two trees continues the smaller. Raises Wrong, or Lacking without a proof."""
        (old, old_root), (new, new_root) = sorted((_tree(one), _tree(other)))
        if old == new:
            if old_root != new_root:
                raise Wrong(f"there are two roots over the same {old} leaves: the ledger was replaced or forked")
            return
        if old == 0:
            if old_root != fold(()):
                raise Wrong("an empty tree has another root than a checkpoint of one says")
            return
        # The root that the leaves themselves lead to, which is under that of the last checkpoint: no proof is needed.
        if old in self._roots and self.last is not None and (new, new_root) == _tree(self.last):
            if self._roots[old] != old_root:
                raise Wrong(f"the ledger had another root at {old} leaves: it was replaced or forked")
            return
        proof = self._proof(old, new)
        if roots_by_growth(old, new, old_root, proof) != (old_root, new_root):
            raise Wrong(f"the tree of {new} leaves does not continue that of {old}: the ledger was replaced or forked")

    def _proof(self, old: int, new: int) -> list[bytes]:
        proofs = _json(self.read("proofs/consistency.json"), "proofs/consistency.json")
        for each in proofs if isinstance(proofs, list) else ():
            if isinstance(each, dict) and (each.get("old"), each.get("new")) == (old, new):
                return _hashes(each.get("hashes"))
        raise Lacking(f"the bundle has no proof from {old} leaves to {new}: ask for one")

    def ends(self) -> tuple[Stretch, Stretch]:
        """Where the first and the last leaf stand. Raises Lacking if there are none that can be read."""
        if self.begin is None or self.finish is None:
            raise Lacking("the leaves cannot be read")
        return self.begin, self.finish

    def _files(self) -> str:
        self.bundle = Bundle(self._file)
        self.manifest = Manifest.read(self.bundle.content("manifest.json"))
        if missing := sorted(_REQUIRED - set(self.bundle.places)):
            raise Wrong(f"{', '.join(missing)} missing")
        names = set(self.bundle.places) - {"manifest.json"}
        if names != set(self.manifest.files):
            raise Wrong(f"the manifest and the bundle differ in {sorted(names ^ set(self.manifest.files))[:5]}")
        changed = [name for name in sorted(names) if self.bundle.digest(name) != self.manifest.files[name]]
        if changed:
            raise Wrong(f"not what the manifest says: {', '.join(changed)}")
        return f"all {len(names)} files are those of the manifest"

    def _checkpoint(self) -> str:
        manifest, region = self.about(), self.region
        if region is None or region.checkpoint is None:
            raise Lacking(f"the trust file has no checkpoint key of {manifest.region}")
        origin = f"{self.trust.fleet}/{manifest.region}"
        if manifest.fleet != self.trust.fleet:
            raise Wrong(f"the bundle is of the fleet {manifest.fleet}, not of {self.trust.fleet}")
        for name in ("first", "last"):
            head, note = self._signed(f"checkpoints/{name}.note", region.checkpoint, origin)
            if name == "first":
                self.first = head
            else:
                self.last, self.last_note = head, note
        return f"{origin} signed the first checkpoint ({_size(self.first)}) and the last ({_size(self.last)})"

    def _signed(self, file: str, key: Key, origin: str) -> tuple[Head, Note]:
        try:
            note = Note.read(self.read(file))
            head = Head.read(note.text)
            if note.signed_by(key) is None:
                raise Wrong("it is not signed by the key that you trust")
        except Wrong as error:
            raise Wrong(f"{file}: {error}") from error
        if head.origin != origin:
            raise Wrong(f"{file} is a checkpoint of {head.origin}, not of {origin}")
        return head, note

    def cosigned(self, region: Region, peer: Region) -> Head | None:
        """The checkpoint in the note that a peer cosigned. Raises Wrong if the region itself did not sign it."""
        file = f"checkpoints/cosigned/{peer.name}.note"
        if self.bundle is None or file not in self.bundle.places or region.checkpoint is None or peer.cosign is None:
            return None
        return self._signed(file, region.checkpoint, f"{self.trust.fleet}/{region.name}")[0]

    def _growth(self) -> str:
        if self.first is None or self.last is None:
            raise Lacking("there are not two checkpoints that the region signed")
        if self.first.size > self.last.size:
            raise Wrong(f"the last checkpoint has fewer leaves ({self.last.size}) than the first ({self.first.size})")
        if self.first.revision > self.last.revision:
            raise Wrong("the revision went back from the first checkpoint to the last")
        try:
            self.continues(self.first, self.last)
        except Lacking as error:
            raise Wrong(str(error)) from error
        return f"the tree of {_size(self.last)} continues that of {_size(self.first)}"

    def _leaves(self) -> str:
        manifest, bundle = self.about(), self.bundle
        assert bundle is not None
        heads = [head for head in (self.first, self.last) if head is not None]
        keep = {manifest.start, manifest.end, *(head.size for head in heads)}
        for region in self.trust.regions.values():
            if region.name == manifest.region and region.known:
                keep.add(region.known.size)
        walk = _Walk(manifest, self._frontier(), keep, self._sampling)
        self.records.open(bundle)
        for line in bundle.lines("leaves.jsonl", LEAF_BYTES_MAX):
            leaf = walk.take(line)
            self.records.take(leaf)
        self.records.close()
        if walk.size != manifest.end:
            raise Wrong(f"the leaves end at {walk.size}, not at {manifest.end} as the manifest says")
        self._under_the_root(walk)
        self._states(walk, heads)
        self.begin, self.finish, self.sampled = walk.first, walk.last, walk.sampled
        return (
            f"leaves {manifest.start} to {manifest.end - 1}, from {_when(walk.first.at_ms)} to"
            f" {_when(walk.last.at_ms)}, are those under the signed root, and none is missing"
        )

    def _under_the_root(self, walk: _Walk) -> None:
        last = self.end()
        if walk.size > last.size:
            raise Wrong(f"there are leaves beyond the last checkpoint's {last.size}")
        try:
            self.continues((walk.size, walk.roots[walk.size]), last)
        except Wrong as error:
            raise Wrong("the leaves are not those under the signed root: some were changed, or exchanged") from error
        except Lacking as error:
            raise Wrong(str(error)) from error
        # From here on these roots are as good as signed.
        self._roots, self._nodes, self.states = walk.roots, walk.nodes, walk.states

    def _states(self, walk: _Walk, heads: Sequence[Head]) -> None:
        for head in heads:
            state = walk.states.get(head.size)
            if state is not None and state != _state(head):
                raise Wrong(
                    f"the checkpoint of {head.size} leaves names another revision or running hash than its leaf"
                )

    def _frontier(self) -> list[bytes]:
        told = _json(self.read("proofs/frontier.json"), "proofs/frontier.json")
        start = self.about().start
        if not isinstance(told, dict) or told.get("size") != start:
            raise Wrong("proofs/frontier.json is not of where the leaves begin")
        hashes = _hashes(told.get("hashes"))
        if len(hashes) != start.bit_count():
            raise Wrong("proofs/frontier.json has the wrong number of hashes")
        return hashes

    def _range(self) -> str:
        manifest, (first, last) = self.about(), self.ends()
        if manifest.start > 0 and first.at_ms >= manifest.from_ms:
            raise Wrong(f"leaves before {_when(first.at_ms)} may be missing: there is none from before the time asked")
        if last.at_ms > time.time() * 1000 + SKEW_MS:
            # Times never go back: what passed since that clock was wrong has the time of then, whenever it was.
            raise Wrong(
                f"leaf {manifest.end - 1} says that it is of {_when(last.at_ms)}, which is still to come: if this"
                " machine's clock is right, the region's was not, and nobody can say what passed in the time asked"
            )
        asked = f"{_when(manifest.from_ms)} to {_when(manifest.to_ms)}"
        if last.at_ms <= manifest.to_ms:
            if manifest.end < self.end().size:
                raise Wrong(f"leaves after {_when(last.at_ms)} are missing: the signed tree has more")
            raise Lacking(
                f"{asked} is covered up to {_when(last.at_ms)}, where the last checkpoint ends; what came after it is"
                " not in this bundle: ask for a later checkpoint"
            )
        for leaf, since_ms, until_ms in self.records.lost:
            if since_ms <= manifest.to_ms and manifest.from_ms <= until_ms:
                raise Lacking(
                    f"leaf {leaf} says that the region began again from a backup: of what it did from"
                    f" {_when(since_ms)} to {_when(until_ms)} this ledger knows nothing"
                )
        before = "a leaf before it" if manifest.start else "the first leaf of all"
        return f"the whole time from {asked} is covered, with {before} and a leaf after it"

    def _records(self) -> str:
        self.about()
        return self.records.judged()

    def _reach(self) -> str:
        manifest, region = self.about(), self.region
        if region is None:
            raise Lacking(f"the trust file does not say which jurisdiction {manifest.region} is in")
        if manifest.jurisdiction != region.jurisdiction:
            raise Wrong(f"the bundle says jurisdiction {manifest.jurisdiction}, the trust file {region.jurisdiction}")
        for name, transfer, partition in self.records.reached:
            problem = self._leak(region, transfer, "may go" if name == "grant" else "went")
            if problem is None and partition and manifest.reaches.get(partition, transfer[1]) != transfer[1]:
                problem = f"{partition} has reach {manifest.reaches[partition]} and was sent as {transfer[1]}"
            if problem:
                raise Wrong(f"the ledger has a record of class {name}: {problem}")
        glass = self.records.opened.get("break-glass", 0) + self.records.erased.get("break-glass", 0)
        ways = Counter(f"showed {each.peer} data of {manifest.region}" for each in self.records.glass if each.out)
        ways.update(f"showed {manifest.region} data of {each.peer}" for each in self.records.glass if not each.out)
        seen = (
            f"; but {glass} break-glass reads let people see pinned data: {_counted(ways)}; read them" if glass else ""
        )
        if unclear := self.records.unclear():
            raise Lacking(f"no egress or ingress record says that pinned data left, but {unclear}{seen}")
        return (
            f"none of {self.records.opened.get('egress', 0)} egress and {self.records.opened.get('ingress', 0)} ingress"
            f" records says that pinned data left {manifest.region} or the jurisdiction {region.jurisdiction}{seen}"
        )

    def _leak(self, region: Region, transfer: tuple[str, str], moves: str) -> str | None:
        peer, reach = transfer
        between = f"{moves} between {region.name} and {peer}"
        if reach == "home-only":
            return f"home-only data {between}"
        if reach == "jurisdiction":
            other = self.trust.regions.get(peer)
            if other is None:
                return f"data of one jurisdiction {between}, which you do not know"
            if other.jurisdiction != region.jurisdiction:
                return f"data of one jurisdiction {between}, which is in {other.jurisdiction}"
        return None

    def _homes(self) -> str:
        claimed = self.about().homes
        if problem := self.records.outdated:
            raise Wrong(problem)
        for partition, found in self.records.homes.items():
            if partition in claimed and claimed[partition] < found.place:
                raise Wrong(_outdated(partition, claimed[partition], found, "this ledger"))
        if unclear := {name: self.records.erased[name] for name in ("move",) if name in self.records.erased}:
            raise Lacking(f"no epoch that is over is claimed, but what {_counted(unclear)} records said was erased")
        return (
            f"{self.records.opened.get('move', 0)} records of moves, and nothing is claimed under an epoch that they"
            " show to be over"
        )

    def sample_paths(self) -> str:
        """Lead each sampled leaf to the root again, by a path of its own."""
        if self._sampling is None:
            raise Lacking("no seed was given: pick one of your own with --seed")
        end = self.about().end
        if end not in self._roots:
            raise Lacking("there is no root that the leaves could lead to")
        for index, leaf in self.sampled.items():
            path = [fold([self._nodes[part] for part in covering(start, stop)]) for start, stop in siblings(index, end)]
            if root_by_path(leaf, index, end, path) != self._roots[end]:
                raise Wrong(f"leaf {index} does not lead to the root")
        some = ", ".join(str(index) for index in sorted(self.sampled)[:5])
        more = ", ..." if len(self.sampled) > 5 else ""
        return f"{len(self.sampled)} leaves picked by your seed ({some}{more}) lead to the root, each by its own path"


def _tree(head: Head | tuple[int, bytes]) -> tuple[int, bytes]:
    return (head.size, head.root) if isinstance(head, Head) else head


def _state(head: Head) -> tuple[int, bytes]:
    return head.revision, head.hash.hex().encode()


def _hashes(told: Any) -> list[bytes]:
    if not isinstance(told, list) or len(told) > 128:
        raise Wrong("a proof is not a list of hashes")
    if not all(isinstance(each, str) and re.fullmatch(_HEX, each) for each in told):
        raise Wrong("a proof is not a list of hashes")
    return [bytes.fromhex(each) for each in told]


class Found(NamedTuple):
    """Where a partition is at home from a leaf on, by the record of a move that came to its end."""

    place: tuple[int, str]
    """Epoch and home. Of two of the same epoch, the home that sorts last is right."""
    leaf: int
    at_ms: int


def _outdated(partition: str, claimed: tuple[int, str], found: Found, where: str) -> str:
    return (
        f"{partition} is claimed to be at home in {claimed[1]} in epoch {claimed[0]}, which was over on"
        f" {_when(found.at_ms)}: leaf {found.leaf} of {where} has it in {found.place[1]} in epoch {found.place[0]}"
    )


class Stretch(NamedTuple):
    """Where a leaf stands."""

    revision: int
    at_ms: int


class Leaf(NamedTuple):
    """What of a leaf its records need."""

    at: int
    at_ms: int
    open: Sequence[tuple[bytes, bytes]]


class _Walk:
    """Goes over the leaves once: their form and order, the tree above them, and what is to be kept of it."""

    def __init__(self, manifest: Manifest, frontier: list[bytes], keep: set[int], sampling: Sampling | None) -> None:
        self.size, self._start, self._end = manifest.start, manifest.start, manifest.end
        self._stack = frontier
        self._keep = keep
        self._picks = sampling.picks(manifest.start, manifest.end) if sampling else set()
        self._wanted = {
            part
            for index in self._picks
            for start, stop in siblings(index, manifest.end)
            for part in covering(start, stop)
        }
        self.nodes = dict(zip(covering(0, self.size), frontier, strict=True))
        self.roots = {self.size: fold(frontier)}
        self.states: dict[int, tuple[int, bytes]] = {}
        self.sampled: dict[int, bytes] = {}
        self.first = self.last = Stretch(0, 0)

    def take(self, line: bytes) -> Leaf:
        parts = _LEAF.fullmatch(line)
        if parts is None:
            raise Wrong(f"the line for leaf {self.size} is not a leaf")
        number, revision, at_ms, running, _, pairs = parts.groups()
        index, stretch = self.size, Stretch(int(revision), int(at_ms))
        if int(number) != index or index >= self._end:
            raise Wrong(f"after leaf {index - 1} comes leaf {int(number)}: a leaf is missing, or out of order")
        if self.last.revision > stretch.revision or self.last.at_ms > stretch.at_ms:
            raise Wrong(f"revision or time goes back at leaf {index}")
        if index == self._start:
            self.first = stretch
        self.last = stretch
        self._grow(hashlib.sha256(b"\0" + line).digest())
        if self.size in self._keep:
            self.roots[self.size] = fold(self._stack)
            self.states[self.size] = stretch.revision, running
        return Leaf(index, stretch.at_ms, self._pairs(pairs) if pairs else ())

    def _pairs(self, pairs: bytes) -> Sequence[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = _PAIR.findall(pairs)
        if b",".join(b'["%b","%b"]' % pair for pair in found) != pairs:
            raise Wrong(f"leaf {self.size - 1} names audited records in a way that leaves do not")
        return found

    def _grow(self, top: bytes) -> None:
        at, level = self.size, 0
        if at in self._picks:
            self.sampled[at] = top
        self._note(level, at, top)
        while at & 1:
            top = node_hash(self._stack.pop(), top)
            at >>= 1
            level += 1
            self._note(level, at, top)
        self._stack.append(top)
        self.size += 1

    def _note(self, level: int, at: int, top: bytes) -> None:
        if (level, at) in self._wanted:
            self.nodes[level, at] = top


class Records:
    """Holds the audited records against the leaves that commit to them, as the leaves go by.

    What is wrong with a record does not stop the leaves: it is kept until `judged`.
    """

    def __init__(self, *, matching: bool) -> None:
        self._matching = matching
        self.opened: dict[str, int] = {}
        self.erased: dict[str, int] = {}
        self.transfers: dict[tuple[str, str], list[Transfer]] = {}
        """(class, peer) → the transfers; kept only to be held against a peer's: there may be very many."""
        self.reached: set[tuple[str, tuple[str, str], str]] = set()
        """(class, (peer, reach), partition or nothing) of every transfer."""
        self.glass: list[Glass] = []
        self.lost: list[tuple[int, int, int]] = []
        """(leaf, from, to) of each time of which the region forgot everything, because it began again from a backup."""
        self.homes: dict[str, Found] = {}
        """Partition → where the newest move took it."""
        self.outdated = ""
        """What was done under an epoch that was over, if anything was."""
        self.overflowed = False
        self._problems: list[str] = []
        self._more = 0
        self._read = False
        self._unexplained: set[int] = set()
        """Leaves with erased records that no erase record has named."""
        self._kept = self._count = self._unsaid = 0
        self._lines: Iterator[bytes] = iter(())
        self._next: dict[str, Any] | None = None

    def open(self, bundle: Bundle) -> None:
        """Begin with the first record."""
        self._lines = bundle.lines("records.jsonl", RECORD_BYTES_MAX)
        self._advance((-1, -1))

    def take(self, leaf: Leaf) -> None:
        """Hold the records of one leaf against it."""
        for n, (name, commitment) in enumerate(leaf.open):
            place = leaf.at, n
            while self._next is not None and self._place() < place:
                self._extra()
            if self._next is None or self._place() != place:
                self._problem(f"the {name.decode()} record {n} of leaf {leaf.at} is missing")
                continue
            self._hold(self._next, leaf, name.decode(), commitment)
            self._advance(place)

    def close(self) -> None:
        """After the last leaf."""
        while self._next is not None:
            self._extra()
        self._read = True

    def judged(self) -> str:
        """The sentence for RECORDS. Raises Wrong or Lacking."""
        if self._problems:
            more = f", and {self._more} more problems" if self._more else ""
            raise Wrong("; ".join(self._problems) + more)
        if not self._read:
            raise Lacking("the leaves could not be read to their end")
        if self._unexplained:
            raise Lacking(
                f"{_counted(self.erased)} records are marked erased; for leaf {min(self._unexplained)} and"
                f" {len(self._unexplained) - 1} others no erase record in this bundle says so"
            )
        erased = f"; {_counted(self.erased)} are ERASED, as erase records say" if self.erased else ""
        return f"every audited record is there once and is what its leaf commits to: {_counted(self.opened)}{erased}"

    def unclear(self) -> str:
        """Why the records do not tell all about what passed; empty if they do."""
        unreadable = self.opened.get("unreadable", 0) + self.erased.get("unreadable", 0)
        reasons = (
            f"{self._unsaid} egress and ingress records do not say of which reach it was" if self._unsaid else "",
            f"{unreadable} records are unreadable" if unreadable else "",
        )
        return "; ".join(filter(None, reasons))

    def _place(self) -> tuple[int, int]:
        assert self._next is not None
        return self._next["leaf"], self._next["n"]

    def _extra(self) -> None:
        place = self._place()
        self._problem(f"record {place[1]} of leaf {place[0]} is in no leaf, or is there twice")
        self._advance(place)

    def _advance(self, after: tuple[int, int]) -> None:
        """Go to the next record, which must come after the one at `after`."""
        self._next = None
        try:
            line = next(self._lines, None)
            if line is None:
                return
            self._count += 1
            if self._count > RECORDS_MAX:
                raise Wrong(f"there are more than {RECORDS_MAX} records: ask for bundles of less time")
            record = _json(line, "a line of records.jsonl")
            if not isinstance(record, dict) or not all(_is_number(record.get(name)) for name in ("leaf", "n")):
                raise Wrong("a line of records.jsonl names no record")
            if (record["leaf"], record["n"]) < after:
                raise Wrong("records.jsonl is not in the order of leaves")
            self._next = record
        except Wrong as error:
            self._problem(str(error))
            self._lines = iter(())

    def _hold(self, record: dict[str, Any], leaf: Leaf, name: str, commitment: bytes) -> None:
        where = f"record {record['n']} of leaf {leaf.at}"
        if record.get("class") != name:
            self._problem(f"{where} is of class {name} in its leaf, and of another in records.jsonl")
        elif record.get("erased") is True and "key" not in record and "content" not in record:
            if name in NEVER_ERASED:
                self._problem(f"{where} is of class {name}, which is never erased, and is not opened")
                return
            self.erased[name] = self.erased.get(name, 0) + 1
            self._unexplained.add(leaf.at)
        else:
            try:
                content = _opening(record, commitment)
                self._understand(name, content, leaf)
            except Wrong as error:
                self._problem(f"{where} ({name}): {error}")
            self.opened[name] = self.opened.get(name, 0) + 1

    def _understand(self, name: str, content: dict[str, Any], leaf: Leaf) -> None:
        if name == "erase":
            named = content.get("leaves", [])
            # Of leaves before this one: only those can be named.
            self._unexplained.difference_update(filter(_is_number, named if isinstance(named, list) else ()))
        if name == "grant" and content.get("open") is not False:
            peer, reach = content.get("peer"), content.get("reach")
            if not _is_name(peer) or reach not in REACHES:
                raise Wrong("it does not say who may hold what")
            self.reached.add((name, (str(peer), str(reach)), ""))
        if name == "break-glass":
            read = _glass(content, leaf)
            if self._has_room():
                self.glass.append(read)
        if step := {"move": self._follow, "restore": self._begin_again}.get(name):
            step(content, leaf)
        if name not in ("egress", "ingress"):
            return
        reach, partition, transfer = _transfer(content, leaf)
        self._unsaid += not reach
        self.reached.add((name, (transfer.peer, reach), partition))
        if self._matching and self._has_room():
            self.transfers.setdefault((name, transfer.peer), []).append(transfer)
        if len(self.reached) > WAYS_MAX:
            raise Wrong(f"things went more than {WAYS_MAX} ways: too many to look at")

    def _begin_again(self, content: dict[str, Any], leaf: Leaf) -> None:
        """Take in that the region began again from a backup. Raises Wrong for a record that does not say from when."""
        after_ms = content.get("after_ms")
        if not _is_number(after_ms) or not all(_is_number(content.get(part)) for part in ("after", "revision")):
            raise Wrong("it does not say from when on nothing is known")
        if len(self.lost) == RESTORED_MAX:
            raise Wrong(f"the region began again more than {RESTORED_MAX} times")
        self.lost.append((leaf.at, int(str(after_ms)), leaf.at_ms))

    def _has_room(self) -> bool:
        self._kept += 1
        self.overflowed = self.overflowed or self._kept > TRANSFERS_KEPT_MAX
        return not self.overflowed

    def _follow(self, content: dict[str, Any], leaf: Leaf) -> None:
        """Take in a move. Raises Wrong for one that says nothing."""
        partition, old, new, phase = (content.get(part) for part in ("partition", "from", "to", "phase"))
        former, epoch = content.get("former_epoch"), content.get("epoch")
        if not all(map(_is_name, (partition, old, new))) or phase not in PHASES:
            raise Wrong("it does not say what moved where")
        if not all(map(_is_number, (former, epoch))) or former >= epoch:  # type: ignore[operator]
            raise Wrong("it does not say which epoch follows which")
        found, place, before = self.homes.get(str(partition)), (int(str(epoch)), str(new)), (int(str(former)), str(old))
        begun = before if phase in ("sealed", "adopting") else place
        if found is not None and begun < found.place and phase != "cancelled":
            self.outdated = self.outdated or _outdated(str(partition), begun, found, "this ledger")
        if phase in ("adopted", "left") and (found is None or found.place < place):
            if found is None and len(self.homes) >= WAYS_MAX:
                raise Wrong(f"more than {WAYS_MAX} partitions moved: too many to look at")
            self.homes[str(partition)] = Found(place, leaf.at, leaf.at_ms)

    def _problem(self, says: str) -> None:
        if len(self._problems) < 3:
            self._problems.append(says)
        else:
            self._more += 1


def _transfer(content: Mapping[str, Any], leaf: Leaf) -> tuple[str, str, Transfer]:
    """Reach, partition (or nothing) and the rest of what an egress or ingress record says. Raises Wrong."""
    peer, door, reach, digest, partition = (
        content.get(part, "" if part == "partition" else None)
        for part in ("peer", "door", "reach", "digest", "partition")
    )
    epoch, first, last, count = (content.get(part) for part in ("epoch", "first", "last", "count"))
    if not all(map(_is_name, (peer, door, digest, partition))) or reach not in (*REACHES, ""):
        raise Wrong("it does not say what went where")
    if not all(_is_number(each) for each in (epoch, first, last, count)) or not re.fullmatch(_HEX, str(digest)):
        raise Wrong("it does not say what went where")
    what = reach, epoch, first, last, count, str(digest)
    return str(reach), str(partition), Transfer(str(peer), str(door), what, leaf.at, leaf.at_ms)  # type: ignore[arg-type]


def _glass(content: Mapping[str, Any], leaf: Leaf) -> Glass:
    """What the record of a break-glass read says. Raises Wrong."""
    way, peer, reach, digest = (content.get(part) for part in ("way", "peer", "reach", "digest"))
    epoch, revision = content.get("epoch"), content.get("revision")
    known = way in ("in", "out") and _is_name(peer) and reach in REACHES
    if not known or not all(map(_is_number, (epoch, revision))) or not re.fullmatch(_HEX, str(digest)):
        raise Wrong("it does not say who was shown what")
    return Glass(way == "out", str(peer), (epoch, revision, str(digest)), leaf.at, leaf.at_ms)  # type: ignore[arg-type]


def _opening(record: dict[str, Any], commitment: bytes) -> dict[str, Any]:
    """The content of a record, if its key opens the commitment to it. Raises Wrong."""
    key, content = record.get("key"), record.get("content")
    if not isinstance(key, str) or not re.fullmatch(_HEX, key) or not isinstance(content, dict):
        raise Wrong("it is neither opened nor erased")
    try:
        told = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise Wrong("it has no encoding") from error
    if hmac.digest(bytes.fromhex(key), told, "sha256").hex().encode() != commitment:
        raise Wrong("it is not what its leaf commits to: it was altered")
    return content


# Claims about peers, nodes, and what the reviewer brings.


def _about_peers(ledger: Ledger, bundles: Mapping[str, Sequence[Ledger]]) -> Iterator[Claim]:
    own = ledger.manifest.region if ledger.manifest else None
    peers = {name: region for name, region in ledger.trust.regions.items() if name != own}
    for name, peer in peers.items():
        yield ledger.judged(f"COSIGNED {name}", partial(_cosigned, ledger, peer))
    for name, peer in peers.items():
        yield ledger.judged(f"MATCHED {name}", partial(_matched, ledger, peer, bundles.get(name, ())))
    for name in set(bundles) - set(peers):
        problem = f"{name} is no peer of {own} in the trust file" if name else bundles[name][0].claims["FILES"].says
        yield Claim("MATCHED", FAIL, f"a bundle that was given as a peer's: {problem}")


def _about_nodes(ledger: Ledger) -> Iterator[Claim]:
    for node, key in ledger.region.nodes.items() if ledger.region else ():
        yield ledger.judged(f"SCAN {node}", partial(_scan, ledger, node, key))


def _last(ledger: Ledger) -> Iterator[Claim]:
    yield ledger.judged("SAMPLES", ledger.sample_paths)
    yield ledger.judged("IDENTITY", partial(_identity, ledger))


def _homes(ledger: Ledger, others: Sequence[Ledger]) -> str:
    """HOMES, held against what peers' bundles show as well."""
    status, says = ledger.claims["HOMES"][1:]
    if status != PASS:
        raise (Wrong if status == FAIL else Lacking)(says)
    claimed, (_, finish) = ledger.about().homes, ledger.ends()
    close = ""
    for other in others:
        if other.manifest is None or other.claims["RECORDS"].status != PASS:
            continue
        for partition, found in other.records.homes.items():
            if partition not in claimed or claimed[partition] >= found.place:
                continue
            if found.at_ms + SKEW_MS < finish.at_ms:
                raise Wrong(_outdated(partition, claimed[partition], found, other.manifest.region))
            if found.at_ms - SKEW_MS < finish.at_ms:
                close = f"{partition} moved to {found.place[1]} just when this bundle ends: ask for a later one"
    if close:
        raise Lacking(close)
    return says


def _cosigned(ledger: Ledger, peer: Region) -> str:
    region, last, note = ledger.region, ledger.end(), ledger.last_note
    if peer.cosign is None or region is None or note is None:
        raise Lacking(f"the trust file has no cosigning key of {peer.name}")
    at_s = note.signed_by(peer.cosign)
    head = ledger.cosigned(region, peer)
    earlier_s = None
    if head is not None:
        earlier_s = Note.read(ledger.read(f"checkpoints/cosigned/{peer.name}.note")).signed_by(peer.cosign)
        if earlier_s is None:
            raise Wrong(f"the note that {peer.name} is said to have cosigned does not bear its signature")
        try:
            ledger.continues(head, last)
        except Lacking as error:
            raise Wrong(f"{peer.name} saw the tree at {head.size} leaves: {error}") from error
    if at_s is not None:
        return f"{peer.name} cosigned the last checkpoint, of {last.size} leaves, on {_when(at_s * 1000)}"
    if head is None or earlier_s is None:
        raise Lacking(f"no cosignature of {peer.name} is in the bundle")
    start, end = ledger.about().start, ledger.about().end
    if head.size <= start:
        raise Lacking(f"{peer.name} cosigned only {head.size} leaves, before the first leaf of this bundle")
    saw = f"{peer.name} cosigned another checkpoint, of {head.size} leaves, on {_when(earlier_s * 1000)}"
    if head.size >= last.size:
        return f"{saw}, and it continues the last one here"
    covered = min(head.size, end) - start
    return f"{saw}, and the last one continues it; {covered} of the {end - start} leaves here were under it"


def _matched(ledger: Ledger, peer: Region, others: Sequence[Ledger]) -> str:
    if not others:
        raise Lacking(f"no bundle of {peer.name} was given")
    if len(others) > 1:
        raise Wrong(f"{len(others)} bundles of {peer.name} were given")
    other = others[0]
    for name in ("FILES", "CHECKPOINT", "LEAVES", "RECORDS"):
        status, says = other.claims[name][1:]
        if status != PASS:
            raise (Wrong if status == FAIL else Lacking)(f"the bundle of {peer.name}: {name} is {status}: {says}")
    if ledger.records.overflowed or other.records.overflowed:
        raise Lacking("there are too many transfers to match: ask for bundles of less time")
    (begin, finish), (since, until) = ledger.ends(), other.ends()
    if since.at_ms > finish.at_ms or begin.at_ms > until.at_ms:
        raise Lacking(
            f"the bundle of {peer.name} is of another time, {_when(since.at_ms)} to {_when(until.at_ms)}: ask for one"
            " of the same"
        )
    sent = _carried(ledger, "egress", peer.name, "federation")
    got = _carried(other, "ingress", ledger.about().region, "federation")
    unconfirmed = Spans(_carried(ledger, "egress", peer.name, "unconfirmed"))
    unreceived = _not_received(sent, got, other)
    unsent = _not_sent(sent, got, unconfirmed, ledger, peer)
    glass, unread = _shown(ledger, other, peer)
    unnamed: list[Transfer | Glass] = [*unsent, *unread]
    for each in unnamed:
        # A region writes down what it sent once the peer has said that it came, so hardly long before the peer did.
        if begin.at_ms + SKEW_MS <= each.at_ms <= finish.at_ms - SKEW_MS:
            raise Lacking(
                f"leaf {each.leaf} of {peer.name}, on {_when(each.at_ms)}, is about revisions of before this bundle,"
                " which has no record of that: ask for one that begins earlier"
            )
    outside = unreceived + len(unnamed)
    rest = f"; {outside} lie outside of the time that both bundles cover" if outside else ""
    seen = f"; so do {glass} break-glass reads" if glass else ""
    lost = (
        f"; {unconfirmed.count} more say that something was sent and perhaps not received" if unconfirmed.count else ""
    )
    agree = (
        f"{len(sent) - unreceived} records of copies that were sent to {peer.name} and {len(got) - len(unsent)} of"
        " copies that it received agree"
    )
    return f"{agree}{seen}{lost}{rest}"


def _not_received(sent: Sequence[Transfer], got: Sequence[Transfer], other: Ledger) -> int:
    """How many sent ones the other's bundle need not have. Raises Wrong for one that it should have and has not."""
    received = {each.what for each in got}
    begin, finish = other.ends()
    unmet = [each for each in sent if each.what not in received]
    for each in unmet:
        if begin.at_ms + SKEW_MS <= each.at_ms <= finish.at_ms - SKEW_MS:
            raise Wrong(
                f"what left in leaf {each.leaf}, on {_when(each.at_ms)}, was not received, or not as it was sent"
            )
    return len(unmet)


def _not_sent(
    sent: Sequence[Transfer], got: Sequence[Transfer], unconfirmed: Spans, ledger: Ledger, peer: Region
) -> list[Transfer]:
    """The received ones that this bundle need not have. Raises Wrong for one that it should have and has not."""
    whats = {each.what for each in sent}
    begin, finish = ledger.ends()
    unmet = [each for each in got if each.what not in whats and not unconfirmed.cover(each)]
    for each in unmet:
        # An egress record stands after the revisions that it is about, so behind the first leaf if those reach it.
        if each.what[3] >= begin.revision and each.at_ms <= finish.at_ms - SKEW_MS:
            raise Wrong(f"leaf {each.leaf} of {peer.name} says it received something that no egress record here names")
    return unmet


def _shown(ledger: Ledger, other: Ledger, peer: Region) -> tuple[int, list[Glass]]:
    """How many break-glass reads both name, and those that only the peer names and this bundle need not have.

    Raises Wrong for one that it should have and has not. One that the peer does not name was not heard to its end.
    """
    shown = Counter(each.what for each in ledger.records.glass if each.out and each.peer == peer.name)
    read = [each for each in other.records.glass if not each.out and each.peer == ledger.about().region]
    begin, finish = ledger.ends()
    unmet = []
    for each in read:
        if shown[each.what] > 0:
            shown[each.what] -= 1
            continue
        unmet.append(each)
        # It stands after the revision that was read, as an egress record does.
        if each.what[1] >= begin.revision and each.at_ms <= finish.at_ms - SKEW_MS:
            raise Wrong(
                f"leaf {each.leaf} of {peer.name} says that somebody there was shown pinned data, and no break-glass"
                " record here does"
            )
    return len(read) - len(unmet), unmet


class Spans:
    """Revisions that were sent without a word of whether they arrived: what was received of them counts as sent."""

    def __init__(self, transfers: Sequence[Transfer]) -> None:
        self.count = len(transfers)
        self._spans: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for reach, epoch, first, last, *_ in sorted(each.what for each in transfers):
            spans = self._spans.setdefault((reach, epoch), [])
            if spans and first <= spans[-1][1] + 1:
                spans[-1] = spans[-1][0], max(spans[-1][1], last)
            else:
                spans.append((first, last))

    def cover(self, transfer: Transfer) -> bool:
        """Whether all revisions of a transfer were sent so."""
        reach, epoch, first, last, *_ = transfer.what
        spans = self._spans.get((reach, epoch), [])
        at = bisect.bisect_right(spans, first, key=lambda span: span[0])
        return at > 0 and last <= spans[at - 1][1]


def _carried(ledger: Ledger, name: str, peer: str, door: str) -> list[Transfer]:
    return [each for each in ledger.records.transfers.get((name, peer), ()) if each.door == door]


def _scan(ledger: Ledger, node: str, key: Key | None) -> str:
    manifest, file = ledger.about(), f"scans/{node}.note"
    if key is None:
        raise Lacking(f"the trust file has no key of {node}")
    if ledger.bundle is None or file not in ledger.bundle.places:
        raise Lacking(f"no scan of {node} is in the bundle")
    note = Note.read(ledger.read(file))
    if note.signed_by(key) is None:
        raise Wrong("the scan is not signed by the key that you trust")
    told = _json(note.text.encode(), "the scan")
    if not isinstance(told, dict) or told.get("format") != "controlplane-scan/1":
        raise Wrong("the scan says nothing that is known here")
    if (told.get("fleet"), told.get("region"), told.get("node")) != (manifest.fleet, manifest.region, node):
        raise Wrong("the scan is of another node")
    if not all(_is_number(told.get(name)) for name in ("at_ms", "size", "foreign")):
        raise Wrong("the scan says nothing that is known here")
    if told["foreign"]:
        raise Wrong(f"{node} found {told['foreign']} foreign pinned records on its disk")
    if told["size"] <= manifest.start:
        raise Lacking(f"the scan is from {_when(told['at_ms'])}, before the first leaf of this bundle")
    searched = told.get("searched")
    if not isinstance(searched, dict) or not searched or not all(_is_number(each) for each in searched.values()):
        raise Wrong("the scan does not say what was searched")
    walked = _counted(searched)
    return f"{node} searched {walked} on {_when(told['at_ms'])}, at {told['size']} leaves, and found nothing foreign"


def _identity(ledger: Ledger) -> str:
    last, known = ledger.end(), ledger.region.known if ledger.region else None
    if known is None:
        raise Lacking("the trust file holds no checkpoint of this ledger from earlier: keep this bundle's last one")
    if known.size > last.size:
        try:
            ledger.continues(known, last)
        except Lacking as error:
            raise Wrong(
                f"the ledger has {last.size} leaves here, fewer than the {known.size} of the checkpoint that you kept"
            ) from error
        return f"the checkpoint of {known.size} leaves that you kept continues it, which is of an earlier time here"
    ledger.continues(known, last)
    states = {last.size: _state(last), **ledger.states}
    if states.get(known.size, _state(known)) != _state(known):
        raise Wrong(f"the checkpoint of {known.size} leaves that you kept names another revision or running hash")
    return f"it continues the checkpoint of {known.size} leaves that you kept"


def _size(head: Head | None) -> str:
    return f"{head.size} leaves" if head else "none"


def _counted(counts: Mapping[Any, Any]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=str)) or "none"


def _when(at_ms: int) -> str:
    try:
        return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms"


if __name__ == "__main__":
    sys.exit(main())
