"""Bad files: journals, snapshots and region files, spoiled and opened.

Each target knows what it may be told: a damaged journal opens to what was written, up to a tear, or says `Fatal` and
its name; a snapshot is read as it was written or is `Fatal`; a region file is a region or a `ConfigError`.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from rocksdict import DBRecoveryMode, Rdict

from chaos.fuzz import Wrong
from chaos.mutations import NUMBERS, TEXTS, drawn, spoiled
from controlplane import config
from controlplane.errors import Fatal
from controlplane.kernel.store import MemoryStore, Overlay
from controlplane.replication.journal import Journal
from controlplane.replication.snapshot_files import header_of
from controlplane.replication.tail import Entry, Op, Recovered, Tail
from controlplane.storage import Tuning, read_snapshot, rocks_options, write_snapshot
from controlplane.v1.peer_pb2 import SnapshotHeader

REGION_FILE = Path(__file__).parent.parent / "regions" / "eu-west.toml"
_PREFIX: Final = struct.Struct(">BI")


@dataclass
class _Written:
    """A journal on disk, and what it held after each batch that was reported as durable."""

    files: dict[str, bytes]
    states: list[Recovered]

    def put(self, folder: Path) -> None:
        """Put the journal there, and nothing else."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def _files(folder: Path) -> dict[str, bytes]:
    """What may be damaged, by name; RocksDB's own log is not read."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name not in ("LOG", "LOCK")}


class JournalFiles:
    """Real journals, of which one file or one row is not what it was.

    An input names a sample and a file (or a row), and holds what stands there instead.

    Known gap: a write-ahead log or a manifest that became shorter, or in which the header of a record became zero,
    looks as if a crash had cut it off there, and what follows is dropped. That is counted ("tail lost") and not a
    failure, but only for these two files and only if what is left was the journal once.
    """

    def __init__(self, folder: Path) -> None:
        self._victim = folder / "victim"
        logs, closed, mixed, long = (folder / name for name in ("logs", "closed", "mixed", "long"))
        states = _fill(closed, batches=20, entry_bytes=20, copy_to=logs)
        shutil.copytree(closed, folder / "again")
        more = _fill(folder / "again", batches=10, entry_bytes=20, copy_to=mixed)
        # More than one block of 32 KiB, at which records are split.
        many = _fill(folder / "closed long", batches=40, entry_bytes=2000, copy_to=long)
        self._samples = [
            _Written(_files(logs), states),
            _Written(_files(closed), [states[-1]]),
            _Written(_files(mixed), [states[-1], *more]),
            _Written(_files(long), many),
        ]
        self._rows = [_rows_of(sample, self._victim) for sample in self._samples]

    def make(self, random: Random) -> bytes:
        """See `Target`."""
        number = random.choice((0, 0, 1, 2, 2, 3))
        if random.random() < 0.3:
            return self._make_row(random, number)
        files = self._samples[number].files
        name = random.choice([name for name in files if name.endswith((".log", ".sst"))] * 3 + list(files))
        return f"{number} file {name}\n".encode() + spoiled(random, files[name], list(files.values()))

    def _make_row(self, random: Random, number: int) -> bytes:
        """A row that was changed, moved, lost; or one with a checksum that is right over nonsense."""
        rows = self._rows[number]
        key, value = random.choice(list(rows.items()))
        how = random.choice(("row", "row", "gone", "moved", "sealed", "sealed"))
        if how == "row":
            value = spoiled(random, value, list(rows.values()))
        elif how == "moved":
            value = random.choice(list(rows.values()))
        elif how == "sealed":
            value = _sealed(key, spoiled(random, value[_PREFIX.size :], [row[_PREFIX.size :] for row in rows.values()]))
        return f"{number} {how} {key.hex()}\n".encode() + value

    def feed(self, given: bytes) -> str:
        """See `Target`."""
        first, _, content = given.partition(b"\n")
        number, how, name = first.decode().split(" ", 2)
        sample = self._samples[int(number)]
        sample.put(self._victim)
        if how == "file":
            (self._victim / name).write_bytes(content)
        else:
            _replace_row(self._victim, bytes.fromhex(name), None if how == "gone" else content)
        try:
            found = _opened(self._victim)
        except Fatal as error:
            if str(self._victim) not in str(error):
                raise Wrong(f"the error does not name the journal: {error}") from error
            return "refused"
        if found == sample.states[-1]:
            return "whole"
        if how == "sealed":
            return _consistent(found)
        if how == "file" and name.endswith(".log") and _torn(sample.files[name], content):
            wanted = "up to the tear"
        elif how == "file" and name.startswith(("0", "MANIFEST-")) and not name.endswith(".sst"):
            wanted = "tail lost"
        else:
            wanted = ""
        if wanted and found in (Recovered(), *sample.states):
            return wanted
        raise Wrong(f"{how} {name}: {_shape(found)} was read, {_shape(sample.states[-1])} was written")

    def close(self) -> None:
        """See `Target`."""


def _torn(written: bytes, content: bytes) -> bool:
    """Whether what follows some point is missing, or zero, as a crash leaves it."""
    differs = next((at for at, (a, b) in enumerate(zip(written, content, strict=False)) if a != b), len(content))
    return not any(content[differs:])


def _consistent(found: Recovered) -> str:
    """What a right checksum says is believed, if it can be a log at all."""
    tail = Tail(found, lambda *_: None)
    if not tail.boundary_index <= tail.commit <= tail.last_index:
        raise Wrong(f"{_shape(found)} is no log")
    return "believed"


def _shape(found: Recovered) -> str:
    last = found.boundary_index + len(found.entries)
    return f"{found.boundary_index + 1}..{last} (term {found.term}, commit {found.commit})"


def _fill(folder: Path, *, batches: int, entry_bytes: int, copy_to: Path) -> list[Recovered]:
    """Write batches to the journal in `folder`, as a guard would; `copy_to` gets it as a crash would leave it."""
    journal = Journal(folder)
    ops: list[Op] = []
    tail = Tail(journal.recover(), lambda _, op: ops.append(op))
    states = [journal.recover()]
    for batch in range(batches):
        if batch % 5 == 0:
            tail.set_term(tail.term + 1, f"n{batch % 3}")
        tail.add(Entry(tail.last_index + 1, tail.term, b"%06d" % tail.last_index * (entry_bytes // 6)))
        if batch % 4 == 3:
            tail.set_commit(tail.last_index - 1)
        if batch == batches // 2:
            tail.trim(tail.boundary_index + 2)
        journal.write(ops)
        ops.clear()
        states.append(journal.recover())
    shutil.copytree(folder, copy_to)
    journal.close()
    return states


def _opened(folder: Path) -> Recovered:
    journal = Journal(folder)
    try:
        return journal.recover()
    finally:
        journal.close()


def _raw(folder: Path) -> Rdict:
    return Rdict(str(folder), rocks_options(Tuning(), DBRecoveryMode.tolerate_corrupted_tail_records()))


def _rows_of(sample: _Written, scratch: Path) -> dict[bytes, bytes]:
    sample.put(scratch)
    database = _raw(scratch)
    try:
        rows: dict[Any, Any] = dict(database.items())
        return rows
    finally:
        database.close()


def _replace_row(folder: Path, key: bytes, value: bytes | None) -> None:
    database = _raw(folder)
    if value is None:
        del database[key]
    else:
        database[key] = value
    database.close()


def _sealed(key: bytes, body: bytes) -> bytes:
    return _PREFIX.pack(1, zlib.crc32(body, zlib.crc32(b"\x01" + key))) + body


class SnapshotFile:
    """A snapshot file; half of the time with checksums that are right over what was spoiled."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "snapshot"
        self._header = header_of("fleet", "eu", 7, 3)
        changes = Overlay(store := MemoryStore())
        for number in range(400):
            changes.put(b"key %06d" % number, b"%d" % number * (number % 90))
        store.commit(changes.take())
        write_snapshot(store.snapshot(), self._path, self._header)
        self._sample = self._path.read_bytes()

    def make(self, random: Random) -> bytes:
        """See `Target`."""
        if random.random() < 0.5:
            return spoiled(random, self._sample)
        begin, header, blocks, end = _parts(self._sample)
        if random.random() < 0.2:
            header = spoiled(random, drawn(random, SnapshotHeader).SerializeToString())
        chosen = random.randrange(len(blocks))
        blocks[chosen] = spoiled(random, blocks[chosen], blocks)
        if random.random() < 0.1:
            random.shuffle(blocks)
        rows = struct.unpack(">Q", end[:8])[0] if random.random() < 0.5 else random.choice(NUMBERS)
        return _resealed(begin, header, blocks, rows)

    def feed(self, given: bytes) -> str:
        """See `Target`."""
        self._path.write_bytes(given)
        try:
            blocks = list(read_snapshot(self._path, self._header))
        except Fatal as error:
            if str(self._path) not in str(error):
                raise Wrong(f"the error does not name the file: {error}") from error
            return "refused"
        if given == self._sample:
            return "whole"
        keys = [key for rows in blocks for key, _ in rows]
        if keys != sorted(set(keys)):
            raise Wrong("rows are out of order, or twice")
        packed = [b"".join(struct.pack(">II", len(k), len(v)) + k + v for k, v in rows) for rows in blocks]
        begin, header, _, _ = _parts(given)
        if _resealed(begin, header, packed, len(keys)) != given:
            raise Wrong("what was read is not what the file says")
        return "believed"

    def close(self) -> None:
        """See `Target`."""


def _parts(snapshot: bytes) -> tuple[bytes, bytes, list[bytes], bytes]:
    """Magic, header, blocks, and the end."""
    at = 8
    blocks = []
    while True:
        size, _ = struct.unpack_from(">II", snapshot, at)
        blocks.append(snapshot[at + 8 : at + 8 + size])
        at += 8 + size
        if not size:
            return snapshot[:8], blocks[0], blocks[1:-1], snapshot[at:]


def _resealed(begin: bytes, header: bytes, blocks: list[bytes], rows: int) -> bytes:
    sealed = b"".join(struct.pack(">II", len(part), zlib.crc32(part)) + part for part in (header, *blocks, b""))
    whole = begin + sealed + struct.pack(">Q", rows)
    return whole + hashlib.sha256(begin + sealed).digest()


class RegionFile:
    """A region file, of which lines and values are others."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "region.toml"
        self._sample = REGION_FILE.read_bytes()

    def make(self, random: Random) -> bytes:
        """See `Target`."""
        if random.random() < 0.3:
            return spoiled(random, self._sample)
        lines = self._sample.decode().splitlines()
        for _ in range(random.choice((1, 1, 2, 5))):
            random.choice(_LINE_CHANGES)(random, lines)
        return "\n".join(lines).encode("utf-8", "surrogatepass")

    def feed(self, given: bytes) -> str:
        """See `Target`."""
        self._path.write_bytes(given)
        try:
            region = config.load(self._path)
        except config.ConfigError as error:
            if not error.problems or not all(problem.startswith(str(self._path)) for problem in error.problems):
                raise Wrong(f"the error does not name the file: {error}") from error
            return "refused"
        names = {node.name for node in region.nodes}
        if len(region.nodes) not in (1, 3, 5) or len(names) != len(region.nodes) or not region.partitions:
            raise Wrong(f"{region} is no region")
        return "taken"

    def close(self) -> None:
        """See `Target`."""


def _value_changed(random: Random, lines: list[str]) -> None:
    at = random.randrange(len(lines))
    key, equals, _ = lines[at].partition("=")
    lines[at] = f"{key}= {_toml(random)}" if equals else f"{random.choice(TEXTS)} = {_toml(random)}"


def _toml(random: Random) -> str:
    deep = random.choice((3, 3, 100, 100, 400, 3000))
    return random.choice(
        (
            *(str(random.choice(NUMBERS)), "-1", "1e400", "nan", "inf", "0x" + "f" * 5000, "9" * 5000, "0o7", "true"),
            *(f'"{random.choice(TEXTS)}"', '"\\u0000"', "'''\n'''", '"127.0.0.1:99999"', '"[::1]:1"', '"n1"', '""'),
            *("[" * deep + "]" * deep, "{a=" * deep + "1" + "}" * deep, "[]", "{}", "[1, 'a', {}]", "[[]]", "[nan]"),
            *("1979-05-27T07:32:00Z", "9999-99-99", "07:32:00", "1979-05-27", "[" * deep, "{" + "a.b" * deep + "=1}"),
        )
    )


def _line_twice(random: Random, lines: list[str]) -> None:
    lines.insert(random.randrange(len(lines)), random.choice(lines))


def _line_gone(random: Random, lines: list[str]) -> None:
    if len(lines) > 1:
        del lines[random.randrange(len(lines))]


def _key_of_depth(random: Random, lines: list[str]) -> None:
    lines.append(f"[{'.'.join('a' * random.choice((2, 100, 1000)))}]")


_LINE_CHANGES: tuple[Callable[[Random, list[str]], None], ...] = (
    *(_value_changed, _value_changed, _value_changed, _value_changed),
    *(_line_twice, _line_gone, _key_of_depth),
)
