"""A node's search of its own disk for records that must not be there.

What is pinned elsewhere is told by where a key stands: every key of a record, an event or a history begins with home
and reach. So a row is *foreign* if its home is another region and its reach does not let it be here: `HOME_ONLY` of any
other region, `JURISDICTION` of a region of another jurisdiction (or of one that the map does not name).

Two searches, because each sees what the other cannot. Walking every live row of the store decodes each key. Reading the
raw files (write-ahead logs, the journal of the log, snapshots) looks for the beginnings of foreign keys as bytes, in
what was deleted but is not overwritten yet as well. Tables on disk are compressed: in those, the raw search
sees only what compression left readable, and what was deleted there but not compacted away may escape both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from controlplane.geography import Atlas, lawful
from controlplane.kernel import keys
from controlplane.kernel.store import View
from controlplane.v1.records_pb2 import Reach

FINDINGS_MAX = 20
"""Findings that are described; all are counted."""

_KEYED = {keys.RECORD: "records", keys.EVENT: "events", keys.HISTORY: "history"}
_REACHES = {Reach.Name(reach): reach for reach in (Reach.HOME_ONLY, Reach.JURISDICTION, Reach.GLOBAL)}
_CHUNK_BYTES = 1 << 20
_ROWS_BETWEEN_PAUSES = 1000


@dataclass(slots=True)
class Findings:
    """How much was searched, by what it was, and what was found."""

    searched: dict[str, int] = field(default_factory=dict)
    foreign: int = 0
    described: list[str] = field(default_factory=list)

    def count(self, what: str, number: int = 1) -> None:
        """So much more was searched."""
        self.searched[what] = self.searched.get(what, 0) + number

    def found(self, what: str, number: int = 1) -> None:
        """Something foreign; `what` says where, and nothing of its content."""
        self.foreign += number
        if len(self.described) < FINDINGS_MAX:
            self.described.append(what)


def search(view: View, files: Iterable[Path], atlas: Atlas, pause: Callable[[], None]) -> Findings:
    """Walk all rows of `view`, then read `files`. Blocks; calls `pause` often. Raises OSError as it comes."""
    findings = Findings()
    allowed: dict[tuple[str, str], bool] = {}
    for n, (key, _) in enumerate(view.scan(b"", b"\xff" * 8)):
        kind = _KEYED.get(key[:1])
        findings.count(kind or "other rows")
        if kind is not None and not _belongs(key[1:], atlas, allowed):
            findings.found(f"a row of {kind}")
        if n % _ROWS_BETWEEN_PAUSES == 0:
            pause()
    marks = foreign_marks(atlas)
    for file in files:
        _search_file(file, marks, findings, pause)
    return findings


def foreign_marks(atlas: Atlas) -> list[bytes]:
    """The first bytes of all keys that have no place here, for every region of the map."""
    return [
        keys.domain(region, Reach.Name(reach))
        for region in sorted(atlas.jurisdictions)
        for reach in (Reach.HOME_ONLY, Reach.JURISDICTION)
        if not lawful(atlas, region, reach, atlas.region)
    ]


def files_below(folder: Path) -> Iterator[Path]:
    """Every file of a data folder."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())


def _belongs(key: bytes, atlas: Atlas, allowed: dict[tuple[str, str], bool]) -> bool:
    try:
        place = keys.home_and_reach(key)
    except ValueError:
        return False
    if place not in allowed:
        home, reach = place
        allowed[place] = reach in _REACHES and lawful(atlas, home, _REACHES[reach], atlas.region)
    return allowed[place]


def _search_file(file: Path, marks: list[bytes], findings: Findings, pause: Callable[[], None]) -> None:
    """Look for `marks` in a file, also where they lie across two chunks. A file that is gone is not there."""
    overlap = max(map(len, marks), default=1) - 1
    what = "log bytes" if file.suffix == ".log" else "table bytes" if file.suffix == ".sst" else "other bytes"
    tail = b""
    try:
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                findings.count(what, len(chunk))
                window = tail + chunk
                for mark in marks:
                    hits = window.count(mark)
                    # What lies in the tail alone was counted with the chunk before.
                    hits -= tail.count(mark)
                    if hits > 0:
                        findings.found(f"{file.name}: {hits} times the beginning of a foreign key", hits)
                tail = window[-overlap:] if overlap else b""
                pause()
    except FileNotFoundError:
        return
