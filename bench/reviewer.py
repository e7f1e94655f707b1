"""A large bundle, made and then verified as a reviewer does it: `python -m bench.reviewer FOLDER LEAVES` makes one.

The ledger of a region that shares with one peer: of ten leaves six say what left, three what came and one that a
switch was thrown; one audited record each.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bench.load import NotMeasured
from controlplane.ledger import bundle, checkpoint, leaves, merkle, scan, verify
from controlplane.ledger.checkpoint import Checkpoint, Witness
from controlplane.ledger.leaves import Content, Leaf, Transfer
from controlplane.ledger.notes import COSIGNATURE, NOTE, Signer
from controlplane.ledger.scan import Scan
from controlplane.loopback import Program, ending

_FLEET, _REGION, _PEER, _NODE = "bench", "eu-west", "us-east", "n1"
_ORIGIN = checkpoint.origin_of(_FLEET, _REGION)
_BEGIN_MS, _STEP_MS = 1_700_000_000_000, 1_000
_POLL_S = 0.02
_CHUNK = 10_000
_MAKING_TIMEOUT_S = 150.0
_VERIFYING_TIMEOUT_S = 120.0
_PROVEN = {"FILES", "CHECKPOINT", "GROWTH", "LEAVES", "RANGE", "RECORDS", "REACH", "SAMPLES"}
"""What has to be PASS, or else something other than a good bundle was measured."""


class Verified(NamedTuple):
    """How long a verifier ran, and how much memory it had at most (units of 2**20 bytes)."""

    seconds: float
    peak_mb: float


class Tree:
    """The stored nodes of a tree, in little memory."""

    def __init__(self) -> None:
        self._levels: list[bytearray] = []
        self.frontier = merkle.Frontier()

    def append(self, leaf: bytes) -> None:
        """Add an encoded leaf."""
        for level, _, value in self.frontier.append(merkle.leaf_hash(leaf)):
            if level == len(self._levels):
                self._levels.append(bytearray())
            self._levels[level] += value

    def node(self, level: int, at: int) -> bytes:
        """See `merkle.NodeReader`."""
        begin = at * merkle.HASH_BYTES
        return bytes(self._levels[level][begin : begin + merkle.HASH_BYTES])


def make(folder: Path, count: int) -> None:
    """Write `bundle.tar`, of so many leaves, and the `trust.toml` that it is to be verified with, to `folder`."""
    log, witness = _signer(_ORIGIN), _signer(f"{_FLEET}/{_PEER}/witness", COSIGNATURE)
    node = _signer(f"{_ORIGIN}/{_NODE}")
    with ProcessPoolExecutor() as pool:
        encoded = list(pool.map(_leaf, range(count), chunksize=_CHUNK))
    tree, first = Tree(), b""
    for leaf in encoded:
        tree.append(leaf)
        first = first or checkpoint.sign(_head(tree), log)
    last = checkpoint.sign(_head(tree), log)
    end_ms = _at_ms(count - 1)
    cosigned = Witness(log.verifier, witness).cosign(None, last, [], end_ms // 1000)[1]
    searched = scan.sign(Scan(_FLEET, _REGION, _NODE, end_ms, count, {"records": 1}, 0), node)
    report = bundle.Report(
        fleet=_FLEET,
        region=_REGION,
        jurisdiction="eu",
        from_ms=_BEGIN_MS + 1,
        to_ms=end_ms - 1,
        partitions=[bundle.Partition(f"{_REGION}.prod.config", _REGION, "global", "prod", 1)],
        first=first,
        last=checkpoint.with_cosignatures(last, cosigned),
        start=0,
        leaves=encoded,
        records=_records(count),
        node=tree.node,
        scans={_NODE: searched},
    )
    bundle.write(report, folder / "bundle.tar")
    (folder / "trust.toml").write_text(
        f'format = 1\nfleet = "{_FLEET}"\n'
        f'[regions.{_REGION}]\njurisdiction = "eu"\ncheckpoint_key = "{log.verifier}"\n'
        f'[regions.{_REGION}.nodes]\n{_NODE} = "{node.verifier}"\n'
        f'[regions.{_PEER}]\njurisdiction = "us"\ncosign_key = "{witness.verifier}"\n'
    )


async def made(folder: Path, count: int) -> None:
    """Do what `make` does, in a process of its own. Raises `NotMeasured` and `TimeoutError`."""
    making = Program([sys.executable, "-m", "bench.reviewer", str(folder), str(count)], folder / "making.log")
    with ending([making]):
        making.start()
        if await making.ended(timeout_s=_MAKING_TIMEOUT_S) != 0:
            raise NotMeasured(f"the bundle could not be made: {making.tail(1)}")


async def verified(folder: Path) -> Verified:
    """Verify what `made` made. Raises `NotMeasured` unless the verifier finds it good, and `TimeoutError`."""
    arguments = [str(folder / "bundle.tar"), "--trust", str(folder / "trust.toml"), "--seed", "benchmark", "--json"]
    verifying = Program([sys.executable, verify.__file__, *arguments], folder / "verified.json")
    with ending([verifying]):
        began = time.perf_counter()
        verifying.start()
        async with asyncio.timeout(_VERIFYING_TIMEOUT_S):
            peak_mb = await _peak_mb(verifying)
        seconds = time.perf_counter() - began
        status = await verifying.ended(timeout_s=1)
    if status not in (0, 1):
        raise NotMeasured(f"the bundle could not be verified: {verifying.tail(1)}")
    claims = {each["name"]: each["status"] for each in json.loads((folder / "verified.json").read_text())["claims"]}
    if unproven := [name for name in sorted(_PROVEN) if claims.get(name) != "PASS"]:
        raise NotMeasured(f"the bundle was not proven: {', '.join(unproven)}")
    return Verified(seconds, peak_mb)


async def _peak_mb(program: Program) -> float:
    """Wait for its end; the most memory it was seen to have had. What it takes in its last moment is not seen."""
    status, peak_kb = Path(f"/proc/{program.pid}/status"), 0
    while program.running:
        peak_kb = max(peak_kb, _high_water_kb(status))
        await asyncio.sleep(_POLL_S)
    return peak_kb / 1024


def _high_water_kb(status: Path) -> int:
    return sum(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:"))


def _at_ms(index: int) -> int:
    return _BEGIN_MS + index * _STEP_MS


def _signer(name: str, kind: int = NOTE) -> Signer:
    return Signer(name, Ed25519PrivateKey.generate(), kind)


def _digest(word: str, index: int) -> bytes:
    return hashlib.sha256(f"{word} {index}".encode()).digest()


def _salt(index: int) -> bytes:
    return _digest("salt", index)[:16]


def _written(index: int) -> tuple[str, Content]:
    """Class and content of the audited record of a leaf."""
    if index == 0:
        return "grant", {"peer": _PEER, "jurisdiction": "us", "reach": "global", "open": True}
    if index % 10 == 9:
        return "switch", {"switch": _digest("switch", index).hex(), "engaged": bool(index % 20 == 9), "revision": index}
    name = "egress" if index % 10 < 6 else "ingress"
    carried = _digest(name, index)
    return name, Transfer(_PEER, "federation", "global", 1, 2 * index, 2 * index + 1, 2, carried).content()


def _leaf(index: int) -> bytes:
    name, content = _written(index)
    salt = _salt(index)
    opened = ((name, leaves.commitment(salt, 0, leaves.canonical(content))),)
    entry = leaves.entry_commitment(salt, b"entry")
    return leaves.encode(Leaf(index, _revision(index), _at_ms(index), _digest("hash", index), entry, opened))


def _revision(index: int) -> int:
    return 2 * index + 1


def _records(count: int) -> Iterator[bundle.Record]:
    for index in range(count):
        name, content = _written(index)
        yield bundle.Record(index, 0, name, leaves.record_key(_salt(index), 0), content)


def _head(tree: Tree) -> Checkpoint:
    index = tree.frontier.size - 1
    return Checkpoint(_ORIGIN, index + 1, tree.frontier.root(), _revision(index), _digest("hash", index))


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
