"""Honest ledgers of a fleet of three regions, in memory; their bundles; and bundles taken apart and put together again.

Times begin at `BEGIN_MS` and go on by a minute per entry. The bundle of a region covers `ASKED`, and so leaves 20 to 79
of its 90.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from controlplane.ledger import bundle, checkpoint, leaves, merkle, scan, verify
from controlplane.ledger.bundle import Partition, Record, Report
from controlplane.ledger.checkpoint import Checkpoint, Witness
from controlplane.ledger.leaves import Content, Leaf, Transfer
from controlplane.ledger.notes import COSIGNATURE, Signer
from controlplane.ledger.scan import Scan

FLEET = "acme"
JURISDICTIONS = {"eu-west": "eu", "eu-central": "eu", "us-east": "us"}
NODES = ("n1", "n2", "n3")
BEGIN_MS = 1_700_000_000_000
MINUTE_MS = 60_000
ENTRIES = 90
FIRST, KNOWN, SEEN, LAST = 10, 15, 70, 85
"""Sizes: of the first checkpoint, the one the reviewer kept, the one us-east cosigned, the last."""
ASKED = (BEGIN_MS + 20 * MINUTE_MS + 1, BEGIN_MS + 79 * MINUTE_MS - 1)

Files = dict[str, bytes]


def at_ms(entry: int) -> int:
    return BEGIN_MS + entry * MINUTE_MS


def secret(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def signer(name: str, kind: int = 1) -> Signer:
    return Signer(name, Ed25519PrivateKey.from_private_bytes(secret("key", name, kind)), kind)


@dataclass
class Ledger:
    """The ledger of one region. `history` makes its salts, so that two histories differ in every leaf."""

    region: str
    history: str = ""
    clock: Callable[[int], int] = at_ms
    """What the region's clock said at each entry."""
    leaves: list[Leaf] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    nodes: dict[tuple[int, int], bytes] = field(default_factory=dict)
    frontier: merkle.Frontier = field(default_factory=merkle.Frontier)

    @property
    def origin(self) -> str:
        return checkpoint.origin_of(FLEET, self.region)

    def append(self, written: list[tuple[str, Content]]) -> None:
        index = len(self.leaves)
        salt = secret("salt", self.region, self.history, index)[:16]
        commitments = []
        for n, (name, content) in enumerate(written):
            commitments.append((name, leaves.commitment(salt, n, leaves.canonical(content))))
            self.records.append(Record(index, n, name, leaves.record_key(salt, n), content))
        running, entry = secret("hash", self.history, index), leaves.entry_commitment(salt, b"entry %d" % index)
        self.leaves.append(Leaf(index, 2 * index + 1, self.clock(index), running, entry, tuple(commitments)))
        for level, at, value in self.frontier.append(merkle.leaf_hash(leaves.encode(self.leaves[-1]))):
            self.nodes[level, at] = value

    def node(self, level: int, index: int) -> bytes:
        return self.nodes[level, index]

    def head(self, size: int) -> Checkpoint:
        last = self.leaves[size - 1]
        root = merkle.Frontier.read(size, self.node).root()
        return Checkpoint(self.origin, size, root, last.revision, last.hash)

    def signed(self, size: int) -> bytes:
        return checkpoint.sign(self.head(size), signer(self.origin))

    def cosigned(self, size: int, *peers: str) -> bytes:
        note = self.signed(size)
        witnesses = [Witness(signer(self.origin).verifier, witness_of(peer)) for peer in peers]
        lines = [each.cosign(None, note, [], at_ms(size) // 1000)[1] for each in witnesses]
        return checkpoint.with_cosignatures(note, *lines)

    def scanned(self, node: str, **changes: int) -> bytes:
        found = Scan(FLEET, self.region, node, at_ms(LAST), LAST, {"records": 1200, "wal bytes": 40_960}, 0)
        return scan.sign(replace(found, **changes), signer(f"{self.origin}/{node}"))

    def report(self) -> Report:
        first, second = (each for each in JURISDICTIONS if each != self.region)
        return Report(
            fleet=FLEET,
            region=self.region,
            jurisdiction=JURISDICTIONS[self.region],
            from_ms=ASKED[0],
            to_ms=ASKED[1],
            partitions=[
                Partition(f"{self.region}.prod.{reach}", self.region, reach, "prod", 1)
                for reach in ("home-only", "jurisdiction", "global")
            ],
            first=self.signed(FIRST),
            last=self.cosigned(LAST, first),
            start=20,
            leaves=[leaves.encode(leaf) for leaf in self.leaves[20:80]],
            records=[record for record in self.records if 20 <= record.leaf < 80],
            node=self.node,
            cosigned={second: self.cosigned(SEEN, second)},
            scans={node: self.scanned(node) for node in NODES},
            known=[KNOWN],
        )


def witness_of(region: str) -> Signer:
    return signer(f"{FLEET}/{region}/witness", COSIGNATURE)


def transfer(peer: str, reach: str, first: int, **changes: str) -> Content:
    digest = secret("digest", reach, first)
    return {**Transfer(peer, "federation", reach, 1, first, first + 5, 3, digest).content(), **changes}


def honest(
    region: str,
    history: str = "",
    extra: Mapping[int, list[tuple[str, Content]]] | None = None,
    clock: Callable[[int], int] = at_ms,
) -> Ledger:
    """A region that sends what it may, every ten minutes, and receives what the others send, a minute later."""
    made = Ledger(region, history, clock)
    for index in range(ENTRIES):
        made.append(written(region, index) + (extra or {}).get(index, []))
    return made


def written(region: str, index: int) -> list[tuple[str, Content]]:
    """The audited records of an entry."""
    found: list[tuple[str, Content]] = []
    for peer, jurisdiction in JURISDICTIONS.items():
        reaches = ["global"] + ["jurisdiction"] * (jurisdiction == JURISDICTIONS[region])
        if peer != region and index % 10 == 5:
            found += [("egress", transfer(peer, reach, 2 * index - 6)) for reach in reaches]
        if peer != region and index % 10 == 6:
            found += [("ingress", transfer(peer, reach, 2 * (index - 1) - 6)) for reach in reaches]
    if index % 30 == 7:
        found.append(("denial", {"door": "agent", "peer": "us-east", "count": 4}))
    if index == 48:
        found.append(("switch", {"scope": "ab12", "engaged": True}))
    return found


def trust(**known: bytes) -> str:
    """The trust file of a reviewer who was given every key, and kept the given checkpoints."""
    lines = ["format = 1", f'fleet = "{FLEET}"']
    for region, jurisdiction in JURISDICTIONS.items():
        origin = checkpoint.origin_of(FLEET, region)
        lines += [
            f"[regions.{region}]",
            f'jurisdiction = "{jurisdiction}"',
            f'checkpoint_key = "{signer(origin).verifier}"',
            f'cosign_key = "{witness_of(region).verifier}"',
        ]
        if region in known:
            lines += [f"known_checkpoint = '''{known[region].decode()}'''"]
        lines += [f"[regions.{region}.nodes]"]
        lines += [f'{node} = "{signer(f"{origin}/{node}").verifier}"' for node in NODES]
    return "\n".join(lines)


def unpacked(file: Path) -> Files:
    with tarfile.open(file) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def packed(files: Mapping[str, bytes], file: Path) -> Path:
    """Put a bundle together again, as whoever tampers with it would: with a manifest that fits."""
    manifest = json.loads(files["manifest.json"])
    manifest["files"] = [
        {"name": name, "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in files.items()
        if name != "manifest.json"
    ]
    return archived({**files, "manifest.json": json.dumps(manifest).encode()}, file)


def archived(files: Mapping[str, bytes], file: Path) -> Path:
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


class Desk:
    """A reviewer's: the honest bundles of all regions, a trust file, and what the verifier says of a bundle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledgers = {region: honest(region) for region in JURISDICTIONS}
        for region, ledger in self.ledgers.items():
            bundle.write(ledger.report(), folder / f"{region}.tar")
        self.trust = trust(**{"eu-west": self.ledgers["eu-west"].signed(KNOWN)})
        self.files = unpacked(folder / "eu-west.tar")

    @property
    def ledger(self) -> Ledger:
        return self.ledgers["eu-west"]

    def says(
        self,
        file: Path | None = None,
        *,
        trust: str | None = None,
        peers: list[Path] | None = None,
        seed: str | None = "7",
    ) -> dict[str, tuple[str, str]]:
        """Claim → status and sentence."""
        trusted = self.folder / "trust.toml"
        trusted.write_text(self.trust if trust is None else trust)
        if peers is None:
            peers = [self.folder / "eu-central.tar", self.folder / "us-east.tar"]
        if file is None:
            file = self.folder / "eu-west.tar"
        _, claims = verify.check(file, verify.Trust.load(trusted), peers, seed)
        assert len({claim.name for claim in claims}) == len(claims)
        return {claim.name: (claim.status, claim.says) for claim in claims}

    def changed(self, change: Callable[[Files], object]) -> Path:
        """The bundle of eu-west with files changed in place."""
        files = dict(self.files)
        change(files)
        return packed(files, self.folder / "changed.tar")

    def written(self, report: Report) -> Path:
        bundle.write(report, self.folder / "written.tar")
        return self.folder / "written.tar"
