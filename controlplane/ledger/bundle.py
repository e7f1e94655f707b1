"""Write what a reviewer is handed: one uncompressed tar, the same bytes for the same evidence.

Theory of operation. The files, in this order:

    statement.md                 what is proven and what is not, in words
    manifest.json                what the bundle is about, and the SHA-256 of every other file
    report.html                  the statement and tables, for a browser without a network
    checkpoints/first.note       the first checkpoint (signed by the region) and the last one before or at the end;
    checkpoints/last.note        all evidence leads to the last
    checkpoints/cosigned/R.note  the newest checkpoint that peer region R cosigned
    proofs/frontier.json         the complete parts of the tree before the first leaf
    proofs/consistency.json      that sizes which matter continue each other
    leaves.jsonl                 the leaves of the range, each as it was hashed, and a newline
    records.jsonl                the audited records of those leaves, opened or marked as erased, in the order of leaves
    scans/N.note                 what node N says it found on its disk

So that a reviewer can see that nothing at either end of the time asked for was left out, the range begins with the last
leaf before that time (or leaf 0) and ends with the first leaf after it (or the last leaf of the tree).

Leaves and records stream: they are spooled beside the bundle, because a tar says how long a file is before the file.
Nothing here is checked against the region's keys; a bundle that would not verify is written all the same.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from controlplane.ledger import checkpoint, leaves, merkle, statement
from controlplane.ledger.merkle import NodeReader
from controlplane.ledger.statement import Summary

FORMAT = "controlplane-bundle/1"
FILES_MAX = 1024
"""Files of one bundle."""

_NAME_BYTES_MAX = 100


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition as the region declared it; `reach` as region files write it."""

    id: str
    home: str
    reach: str
    environment: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Record:
    """Audited record `n` of leaf `leaf`, opened by its key; or erased, if there is no key."""

    leaf: int
    n: int
    name: str
    key: bytes | None
    content: leaves.Content = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Report:
    """What a bundle is made of.

    Times are Unix milliseconds. `start` is the index of the first of `leaves`, which are encoded and follow each other;
    `records` are sorted by leaf and number. `node` reads the stored nodes of the tree, at least up to the size of the
    last checkpoint. `known` are sizes of checkpoints that the reviewer has kept: growth from each will be proven.
    """

    fleet: str
    region: str
    jurisdiction: str
    from_ms: int
    to_ms: int
    partitions: Sequence[Partition]
    first: bytes
    last: bytes
    start: int
    leaves: Iterable[bytes]
    records: Iterable[Record]
    node: NodeReader
    cosigned: Mapping[str, bytes] = field(default_factory=dict)
    scans: Mapping[str, bytes] = field(default_factory=dict)
    known: Sequence[int] = ()


def write(report: Report, out: Path) -> dict[str, Any]:
    """Write the bundle to `out`, which appears whole or not at all; return the manifest.

    Raises ValueError for evidence that has no place in a bundle: leaves that are none, records out of order, names that
    are too long; OSError as it comes.
    """
    with ExitStack() as stack:
        spool = stack.enter_context(tempfile.TemporaryFile(dir=out.parent))
        opened = stack.enter_context(tempfile.TemporaryFile(dir=out.parent))
        summary = Summary()
        count = _spool(spool, (_whole(line) for line in report.leaves))
        records = _spool(opened, _record_lines(report.records, summary))
        notes = _notes(report)
        files: dict[str, IO[bytes]] = {name: BytesIO(content) for name, content in notes.items()}
        files |= {name: BytesIO(content) for name, content in _proofs(report, report.start + count).items()}
        files |= {"leaves.jsonl": spool, "records.jsonl": opened}
        manifest = _manifest(report, count, records, summary)
        told = statement.sections(manifest, summary)
        files["statement.md"] = BytesIO(statement.markdown(told).encode())
        files["report.html"] = BytesIO(statement.page(told, statement.tables(manifest, summary, notes)).encode())
        manifest["files"] = [{"name": name, "sha256": _digest(file)} for name, file in sorted(files.items())]
        files["manifest.json"] = BytesIO(_json(manifest))
        _pack(files, out)
    return manifest


_FIRST = ("statement.md", "manifest.json", "report.html")


def _pack(files: Mapping[str, IO[bytes]], out: Path) -> None:
    if len(files) > FILES_MAX or any(len(name.encode()) > _NAME_BYTES_MAX for name in files):
        raise ValueError("too many files for a bundle, or a name that is too long")
    unfinished = out.with_name(out.name + ".unfinished")
    try:
        with tarfile.open(unfinished, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name in [*_FIRST, *sorted(set(files) - set(_FIRST))]:
                info = tarfile.TarInfo(name)
                info.size = files[name].seek(0, 2)
                files[name].seek(0)
                tar.addfile(info, files[name])
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)


def _manifest(report: Report, count: int, records: int, summary: Summary) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "fleet": report.fleet,
        "region": report.region,
        "jurisdiction": report.jurisdiction,
        "asked": {"from_ms": report.from_ms, "to_ms": report.to_ms},
        "leaves": {"from": report.start, "to": report.start + count},
        "partitions": [
            {
                "id": each.id,
                "home": each.home,
                "reach": each.reach,
                "environment": each.environment,
                "epoch": each.epoch,
            }
            for each in report.partitions
        ],
        "counts": {"leaves": count, "records": records, "classes": summary.by_class, "erased": summary.erased},
    }


def _notes(report: Report) -> dict[str, bytes]:
    return {
        "checkpoints/first.note": report.first,
        "checkpoints/last.note": report.last,
        **{f"checkpoints/cosigned/{region}.note": note for region, note in report.cosigned.items()},
        **{f"scans/{node}.note": note for node, note in report.scans.items()},
    }


def _proofs(report: Report, end: int) -> dict[str, bytes]:
    last = checkpoint.read(report.last).size
    sizes = {checkpoint.read(report.first).size, end, *report.known}
    sizes |= {checkpoint.read(note).size for note in report.cosigned.values()}
    pairs = sorted({(min(size, last), max(size, last)) for size in sizes if size not in (0, last)})
    frontier = merkle.Frontier.read(report.start, report.node)
    return {
        "proofs/frontier.json": _json({"size": frontier.size, "hashes": _hexes(frontier.hashes)}),
        "proofs/consistency.json": _json(
            [
                {"old": old, "new": new, "hashes": _hexes(merkle.consistency_proof(old, new, report.node))}
                for old, new in pairs
            ]
        ),
    }


def _record_lines(records: Iterable[Record], summary: Summary) -> Iterator[bytes]:
    before = (-1, -1)
    for record in records:
        if (record.leaf, record.n) <= before:
            raise ValueError("records come in the order of leaves, each once")
        before = (record.leaf, record.n)
        told: dict[str, Any] = {"leaf": record.leaf, "n": record.n, "class": record.name}
        if record.key is None:
            told["erased"] = True
            content = "erased"
        else:
            content = leaves.canonical(record.content).decode()
            told |= {"key": record.key.hex(), "content": dict(record.content)}
        _count(summary, record, content)
        yield json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()


def _count(summary: Summary, record: Record, content: str) -> None:
    summary.by_class[record.name] = summary.by_class.get(record.name, 0) + 1
    summary.erased += record.key is None
    if len(summary.shown) < statement.RECORDS_SHOWN_MAX:
        summary.shown.append((record.leaf, record.n, record.name, content))
    if record.name == "break-glass":
        read = tuple(str(record.content.get(part, "")) for part in ("way", "peer", "role", "reach"))
        summary.glass[read] = summary.glass.get(read, 0) + 1
    if record.name == "move" and record.key is not None and len(summary.moves) < statement.MOVES_SAID_MAX:
        summary.moves.append(statement.move(record.content))
    if record.name == "restore" and record.key is not None and len(summary.restored) < statement.MOVES_SAID_MAX:
        summary.restored.append(statement.restored(record.content))
    carried = record.content.get("count")
    if record.name in ("egress", "ingress") and isinstance(carried, int):
        to = (record.name, str(record.content.get("peer", "")), str(record.content.get("reach", "")))
        entries, total = summary.transfers.get(to, (0, 0))
        summary.transfers[to] = entries + 1, total + carried


def _whole(line: bytes) -> bytes:
    leaves.decode(line)
    return line


def _spool(file: IO[bytes], lines: Iterable[bytes]) -> int:
    count = 0
    for line in lines:
        file.write(line + b"\n")
        count += 1
    return count


def _digest(file: IO[bytes]) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _hexes(hashes: Iterable[bytes]) -> list[str]:
    return [each.hex() for each in hashes]


def _json(told: Any) -> bytes:
    return json.dumps(told, indent=1, sort_keys=True, ensure_ascii=False).encode() + b"\n"
