"""The replicated state on disk: an ordered map in RocksDB, and its snapshots as portable files.

Theory of operation. The log is the truth; the store is what applying it has come to so far. Each commit is
one atomic write that carries the applied index with its effects, so whatever a crash leaves is a state that
once was, and the journal holds what is newer. Hence:

1. **Commits are written, not synced.** `sync` makes everything committed so far durable; the log calls it
   before it trims the journal, and never trims beyond what was synced.
2. **A folder holds generations.** `CURRENT` names the one in use; installing a snapshot builds the next
   generation beside it, syncs it, and only then renames `CURRENT`. A crash leaves the old state or the new,
   never a mixture; other generations are leftovers and are removed at open.
3. **A view is an iterator.** The iterators of rocksdict's own `Snapshot` show writes made after it (seen in
   0.3.29), while a plain iterator keeps the moment of its creation. `snapshot()` therefore holds one iterator
   and seeks with it.
4. **Open iterators keep a RocksDB open.** `close` closes the views; a scan that was not exhausted must be
   dropped by its owner, else the folder cannot be opened again in this process.
5. **Damage is never repaired here.** An unreadable block, row or snapshot raises `Fatal` with the file and
   the next step.
6. **Snapshot files** are a header and checksummed blocks of rows in key order, ended by a count and a digest
   of all: independent of RocksDB's format. They are written and read by a thread in slices so short that the
   event loop, which shares the interpreter lock with it, is not held up.

rocksdict reports every failure as a bare `Exception`; the places below that catch it are that boundary.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import struct
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError
from rocksdict import (
    BlockBasedOptions,
    BottommostLevelCompaction,
    Cache,
    CompactOptions,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    WriteBatch,
)

from controlplane import framing
from controlplane.datadir import sync_folder, write_durably
from controlplane.errors import Fatal
from controlplane.kernel.store import Batch, Row, StoreSnapshot
from controlplane.v1.peer_pb2 import SnapshotHeader

STORE_FORMAT = 1
SNAPSHOT_FORMAT = 1

_MAGIC = b"CPSNAP\r\n"
_BLOCK = struct.Struct(">II")  # Bytes of the block, CRC-32 of them.
_ROW = struct.Struct(">II")  # Bytes of the key, bytes of the value.
_END = struct.Struct(">Q32s")  # Rows in all, SHA-256 of everything before.
_HEADER_BYTES_MAX = 4096
_BLOCK_BYTES = 32 * 1024
_BLOCK_BYTES_MAX = 8 * 1024 * 1024
_REST_S = 0.001
_REWRITE_S = 1.0
"""How long files may outlive what was written in their place."""
_NO_SPACE = os.strerror(errno.ENOSPC)
_FREE = "Nothing is lost: free the disk, then start again."
_RESTORE = "Restore this node from its peers: move the data folder away and start with --replace."


@dataclass(frozen=True, slots=True)
class Tuning:
    """How much memory one RocksDB may take: a cache of blocks, and two write buffers."""

    cache_bytes: int = 16 << 20
    write_buffer_bytes: int = 8 << 20


def rocks_options(tuning: Tuning, recovery: DBRecoveryMode) -> Options:
    """Options common to the store and the journal: byte keys, no hidden growth of logs, checks always on."""
    blocks = BlockBasedOptions()
    blocks.set_block_cache(Cache(tuning.cache_bytes))
    blocks.set_cache_index_and_filter_blocks(True)
    blocks.set_bloom_filter(10, False)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_paranoid_checks(True)
    options.set_wal_recovery_mode(recovery)
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_size(tuning.write_buffer_bytes)
    options.set_max_write_buffer_number(2)
    options.set_max_total_wal_size(4 * tuning.write_buffer_bytes)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_max_background_jobs(2)
    options.set_max_open_files(256)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 << 20)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    return options


class WriteAheadLogs:
    """The files of an open RocksDB's write-ahead log, synced from outside. One thread at a time.

    rocksdict holds the interpreter lock while RocksDB syncs, which stops the event loop for as long as the disk takes.
    What was written is in the kernel once the write returned; here it is synced with the lock released. A file that
    RocksDB has removed meanwhile is in tables that RocksDB itself has synced.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, int] = {}

    def sync(self) -> None:
        """Make everything written before this call durable. Raises OSError."""
        names = {name for name in os.listdir(self._folder) if name.endswith(".log")}  # noqa: PTH208 - a hot path.
        for name in self._open.keys() - names:
            os.close(self._open.pop(name))
        for name in names - self._open.keys():
            with contextlib.suppress(FileNotFoundError):
                self._open[name] = os.open(self._folder / name, os.O_RDONLY)
                sync_folder(self._folder)
        # The oldest first: a power cut in between may cut off the end, but must not leave a hole before it, which
        # RocksDB does not notice where one file ends and the next begins.
        for name in sorted(self._open, key=_number):
            os.fdatasync(self._open[name])

    def close(self) -> None:
        """Let go of the files."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


def _number(name: str) -> int:
    return int(name.partition(".")[0])


def rewritten(database: Rdict, folder: Path) -> bool:
    """Have all files of an open RocksDB written anew, without what was deleted or overwritten. For a thread.

    RocksDB works with the interpreter lock released. False if an old file is still there a while later, as somebody
    reads it: ask again. Raises OSError, and what rocksdict raises.
    """
    before = _files_with_rows(folder)
    options = CompactOptions()
    # Without this the lowest files stay as they are.
    options.set_bottommost_level_compaction(BottommostLevelCompaction.force())
    database.flush()
    database.compact_range(None, None, options)
    end = time.monotonic() + _REWRITE_S
    while before & _files_with_rows(folder):
        if time.monotonic() > end:
            return False
        time.sleep(_REST_S)
    return True


def _files_with_rows(folder: Path) -> set[str]:
    """Names of tables and write-ahead logs that are not empty."""
    found = set()
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.suffix in (".sst", ".log") and path.stat().st_size:
                found.add(path.name)
    return found


class RocksStore:
    """A `Store` (see controlplane.kernel.store) kept in `folder`.

    One thread commits; others use `snapshot` views.
    """

    def __init__(self, folder: Path, tuning: Tuning | None = None) -> None:
        self._folder = folder
        self._tuning = tuning or Tuning()
        self._generation = _settle(folder)
        self._db = self._open(self._generation)
        self._views: weakref.WeakSet[RocksSnapshot] = weakref.WeakSet()
        self._retired: list[Rdict] = []
        # rocksdict does not close what another thread is still at work on.
        self._tidying = threading.Lock()
        self._closed = False

    def get(self, key: bytes) -> bytes | None:
        """The value under `key`, or None."""
        try:
            value: bytes | None = self._db.get(key)
        except Exception as error:
            raise _damaged(self._path, error) from error
        return value

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Row]:
        """Rows of [start, end) in order, or from the top down, as they are at this call."""
        if start >= end:
            return iter(())
        bounds = ReadOptions()
        bounds.set_iterate_upper_bound(end)
        cursor = self._db.iter(bounds)
        # An iterator of rocksdict 0.3.29 points into its bounds without owning them: they have to live as long.
        walk = _down if reverse else _up
        return walk(cursor, start, self._path, bounds)

    def commit(self, batch: Batch) -> None:
        """Write `batch` as one, in the order of effect that `Batch` says.

        It survives the process at once, and a power cut after the next `sync`.
        """
        writes = WriteBatch(raw_mode=True)
        for start, end in batch.ranges:
            # Row by row: RocksDB's own range deletes make every later lookup search them (a lookup of an absent key
            # went from 2 us to 40 us with a few thousand). Whoever trims does it in small steps.
            for key, _ in self.scan(start, end):
                writes.delete(key)
        for key in batch.deletes:
            writes.delete(key)
        for key, value in batch.puts.items():
            writes.put(key, value)
        try:
            self._db.write(writes)
        except Exception as error:
            raise Fatal(f"{self._path}: cannot write: {error}. Check the disk, then start again.") from error

    def snapshot(self) -> StoreSnapshot:
        """The store as it is now, for reading from any one thread at a time.

        Close it: it holds disk and memory.
        """
        view = RocksSnapshot(self._db.iter(), self._path)
        self._views.add(view)
        return view

    def sync(self) -> None:
        """Make everything committed before this call durable. Any thread; blocks for the disk, not for the loop."""
        path = self._path
        logs = WriteAheadLogs(path)
        try:
            logs.sync()
        except OSError as error:
            if self._path == path:
                raise Fatal(f"{path}: cannot sync: {error}. Check the disk, then start again.") from error
            # A snapshot was adopted meanwhile: it is durable, and what was here is gone.
        finally:
            logs.close()

    def scrub(self) -> bool:
        """Have nothing in any file that is not in the store by now; see `rewritten`. From a thread.

        False also if a snapshot was adopted meanwhile, or what one replaced earlier has not been swept.
        """
        with self._tidying:
            generation, database, path = self._generation, self._db, self._path
            try:
                done = rewritten(database, path)
            except Exception as error:
                if self._db is not database:
                    return False
                raise Fatal(f"{path}: cannot be written anew: {error}. Check the disk, then start again.") from error
            return done and self._db is database and not _older(self._folder, generation)

    def size_bytes(self) -> int:
        """Bytes the store takes on disk. Reads the folder: not for hot paths."""
        return folder_bytes(self._folder)

    def stage(self, snapshot: Path, expected: SnapshotHeader) -> Staged:
        """Build and sync the next generation from the file `snapshot`, checking all of it; nothing is in use yet.

        Runs in a thread and yields often. Raises `Fatal` if the file is damaged or is not what `expected`
        says.
        """
        generation = self._generation + 1
        folder = _generation_folder(self._folder, generation)
        shutil.rmtree(folder, ignore_errors=True)
        database = self._open(generation)
        try:
            _load(database, read_snapshot(snapshot, expected), folder)
            sync_folder(folder)
            sync_folder(self._folder)
        except BaseException:
            database.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return Staged(generation, database)

    def adopt(self, staged: Staged) -> None:
        """Switch to what `stage` built, durably, by two small syncs. Views taken before stay readable."""
        _write_current(self._folder, staged.generation)
        self._retired.append(self._db)
        self._db, self._generation = staged.database, staged.generation

    def sweep(self) -> None:
        """Close and remove what earlier adoptions left behind. From a thread: waits for a scrub."""
        with self._tidying:
            # Whatever is older than this is among the retired. What is newer is being staged.
            generation = self._generation
            while self._retired:
                self._retired.pop().close()
            for path in _older(self._folder, generation):
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Sync, and close with all views. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        for view in list(self._views):
            view.close()
        self.sync()
        while self._retired:
            self._retired.pop().close()
        self._db.close()

    @property
    def _path(self) -> Path:
        return _generation_folder(self._folder, self._generation)

    def _open(self, generation: int) -> Rdict:
        """Open; what follows a tear that a power cut left is dropped, and the log brings it again."""
        path = _generation_folder(self._folder, generation)
        if what := framing.damage(path, lengths=False):
            raise _damaged(path, what)
        try:
            return Rdict(str(path), rocks_options(self._tuning, DBRecoveryMode.point_in_time()))
        except Exception as error:
            raise _damaged(path, error) from error


@dataclass(frozen=True, slots=True)
class Staged:
    """A generation that is complete and durable, waiting to be adopted or discarded."""

    generation: int
    database: Rdict

    def discard(self) -> None:
        """Give it up; its folder is removed at the next open, or when another is staged."""
        self.database.close()


class RocksSnapshot:
    """One moment of a store. Its scans may interleave; they share one iterator, which moves under a lock."""

    def __init__(self, cursor: RdictIter, path: Path) -> None:
        self._cursor: RdictIter | None = cursor
        self._path = path
        self._lock = threading.Lock()
        self._holder: object = None

    def get(self, key: bytes) -> bytes | None:
        """The value under `key` at this moment, or None."""
        with self._lock:
            cursor, self._holder = self._live(), None
            cursor.seek(key)
            row = _row(cursor, self._path)
        return row[1] if row is not None and row[0] == key else None

    def scan(self, start: bytes, end: bytes, *, reverse: bool = False) -> Iterator[Row]:
        """Rows of [start, end) at this moment, in order or from the top down."""
        me, key, first = object(), end if reverse else start, True
        while rows := self._rows(me, key, first=first, reverse=reverse):
            for row in rows:
                if not start <= row[0] < end:
                    return
                yield row
            key, first = rows[-1][0], False

    def close(self) -> None:
        """Release what the view holds; using it afterwards is a defect."""
        with self._lock:
            self._cursor = None

    def _rows(self, me: object, key: bytes, *, first: bool, reverse: bool) -> list[Row]:
        """Take the next few rows of scan `me`, which has come to `key`; none at the end."""
        rows: list[Row] = []
        left_bytes = _BLOCK_BYTES
        with self._lock:
            cursor = self._live()
            if self._holder is not me:
                _place(cursor, key, first=first, reverse=reverse)
                self._holder = me
            step = cursor.prev if reverse else cursor.next
            while left_bytes > 0 and (row := _row(cursor, self._path)) is not None:
                rows.append(row)
                left_bytes -= len(row[0]) + len(row[1]) + _ROW.size
                step()
        return rows

    def _live(self) -> RdictIter:
        if self._cursor is None:
            raise Fatal("a closed view of the store was read")
        return self._cursor


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`; files that vanish meanwhile count nothing."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


def write_snapshot(view: StoreSnapshot, path: Path, header: SnapshotHeader) -> bytes:
    """Write all rows of `view` to `path`, synced; return the SHA-256 of the file. For a thread: it yields often."""
    with path.open("wb") as file:
        sink = _Digesting(file)
        _write_header(sink, header)
        rows = 0
        for block, count in _blocks(view):
            sink.write(_BLOCK.pack(len(block), zlib.crc32(block)) + block)
            rows += count
            time.sleep(_REST_S)
        sink.write(_BLOCK.pack(0, 0))
        sink.write(_END.pack(rows, sink.digest.digest()))
        file.flush()
        os.fsync(file.fileno())
    return sink.digest.digest()


def read_snapshot(path: Path, expected: SnapshotHeader) -> Iterator[list[Row]]:
    """The rows of the snapshot file at `path`, block by block, in key order.

    Raises `Fatal`, naming the file, at the first byte that is not as written; the last check is after the
    last row, so nothing read may be used before the iterator ends.
    """
    with path.open("rb") as file:
        source = _Checked(file, path)
        if source.header() != expected:
            raise source.damage("it is not the snapshot it should be (fleet, region, index or format differ)")
        rows, last = 0, None
        for block in source.blocks():
            last = _check_order(source, block, last)
            rows += len(block)
            yield block
        source.check_end(rows)


def _blocks(view: StoreSnapshot) -> Iterator[tuple[bytes, int]]:
    parts: list[bytes] = []
    size = count = 0
    for key, value in _everything(view):
        parts += (_ROW.pack(len(key), len(value)), key, value)
        size += _ROW.size + len(key) + len(value)
        count += 1
        if size >= _BLOCK_BYTES:
            yield b"".join(parts), count
            parts, size, count = [], 0, 0
    if parts:
        yield b"".join(parts), count


def _everything(view: StoreSnapshot) -> Iterator[Row]:
    """No key of the store is empty, and none begins with 64 bytes of 0xff."""
    return view.scan(b"", b"\xff" * 64)


class _Digesting:
    """A file that is written once, and the digest of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self._file = file

    def write(self, content: bytes) -> None:
        self.digest.update(content)
        self._file.write(content)


def _write_header(sink: _Digesting, header: SnapshotHeader) -> None:
    body = header.SerializeToString(deterministic=True)
    sink.write(_MAGIC + _BLOCK.pack(len(body), zlib.crc32(body)) + body)


class _Checked:
    """A snapshot file being read, every byte of it through the digest."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._digest = hashlib.sha256()

    def header(self) -> SnapshotHeader:
        if self._take(len(_MAGIC)) != _MAGIC:
            raise self.damage("it is not a snapshot file")
        body = self._block(_HEADER_BYTES_MAX)
        try:
            return SnapshotHeader.FromString(body)
        except DecodeError as error:
            raise self.damage("its header cannot be read") from error

    def blocks(self) -> Iterator[list[Row]]:
        while block := self._block(_BLOCK_BYTES_MAX):
            yield self._rows(block)

    def check_end(self, rows: int) -> None:
        digest = self._digest.digest()
        if _END.unpack(self._take(_END.size)) != (rows, digest) or self._file.read(1):
            raise self.damage("its end does not match its content")

    def damage(self, what: str) -> Fatal:
        return Fatal(f"snapshot {self._path}: {what}. Remove the file; it is made or fetched again.")

    def _block(self, bytes_max: int) -> bytes:
        size, checksum = _BLOCK.unpack(self._take(_BLOCK.size))
        if size > bytes_max:
            raise self.damage("a block is larger than any that is written")
        block = self._take(size)
        if zlib.crc32(block) != checksum:
            raise self.damage("a checksum does not match")
        return block

    def _take(self, size: int) -> bytes:
        content = self._file.read(size)
        if len(content) != size:
            raise self.damage("it ends too early")
        self._digest.update(content)
        return content

    def _rows(self, block: bytes) -> list[Row]:
        rows, at = [], 0
        while at < len(block):
            if at + _ROW.size > len(block):
                raise self.damage("a row is cut short")
            key_bytes, value_bytes = _ROW.unpack_from(block, at)
            middle = at + _ROW.size + key_bytes
            at = middle + value_bytes
            if at > len(block):
                raise self.damage("a row is cut short")
            rows.append((block[middle - key_bytes : middle], block[middle:at]))
        return rows


def _check_order(source: _Checked, block: list[Row], last: bytes | None) -> bytes | None:
    for key, _ in block:
        if last is not None and key <= last:
            raise source.damage("its rows are out of order")
        last = key
    return last


def _load(database: Rdict, blocks: Iterator[list[Row]], folder: Path) -> None:
    """Write and sync all rows. Through the write-ahead log, as a flush of RocksDB's would hold up the event loop."""
    logs = WriteAheadLogs(folder)
    try:
        for block in blocks:
            writes = WriteBatch(raw_mode=True)
            for key, value in block:
                writes.put(key, value)
            database.write(writes)
            time.sleep(_REST_S)
        logs.sync()
    except Fatal:
        raise
    except Exception as error:
        raise Fatal(f"{folder}: cannot install the snapshot: {error}. Check the disk, then start again.") from error
    finally:
        logs.close()


def _settle(folder: Path) -> int:
    """The generation in use, after leftovers of a crash are gone.

    Generation 0 is one whose creation was not finished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pointer = folder / "CURRENT"
    if not pointer.exists():
        if any(folder.glob("[0-9]*")):
            raise Fatal(f"{pointer} is missing. {_RESTORE}")
        _write_current(folder, 0)
    generation = _read_current(pointer)
    _sweep(folder, generation)
    if generation == 0:
        _generation_folder(folder, 1).mkdir()
        _write_current(folder, 1)
        return 1
    if not _generation_folder(folder, generation).is_dir():
        raise Fatal(f"{_generation_folder(folder, generation)} is missing. {_RESTORE}")
    return generation


def _read_current(pointer: Path) -> int:
    words = pointer.read_text("utf-8", "replace").split()
    if len(words) != 4 or words[0] != "store" or words[3] != _pointer_checksum(words[1], words[2]):
        raise Fatal(f"{pointer} is damaged. {_RESTORE}")
    if words[1] != str(STORE_FORMAT):
        raise Fatal(
            f"{pointer}: store format {words[1]} is not known to this version. Start the version that wrote it."
        )
    return int(words[2])


def _write_current(folder: Path, generation: int) -> None:
    form, number = str(STORE_FORMAT), str(generation)
    write_durably(folder / "CURRENT", f"store {form} {number} {_pointer_checksum(form, number)}\n".encode())


def _pointer_checksum(form: str, generation: str) -> str:
    return f"{zlib.crc32(f'store {form} {generation}'.encode()):08x}"


def _sweep(folder: Path, generation: int) -> None:
    """Remove every other generation, and a half-written pointer."""
    for path in folder.glob("[0-9]*"):
        if path != _generation_folder(folder, generation):
            shutil.rmtree(path, ignore_errors=True)
    (folder / "CURRENT.new").unlink(missing_ok=True)


def _older(folder: Path, generation: int) -> list[Path]:
    """The generations before one."""
    return [path for path in folder.glob("[0-9]*") if path < _generation_folder(folder, generation)]


def _generation_folder(folder: Path, generation: int) -> Path:
    return folder / f"{generation:06d}"


def _place(cursor: RdictIter, key: bytes, *, first: bool, reverse: bool) -> None:
    """Go to the row after `key` in the scan's direction; going up for the first time, `key` itself counts."""
    if reverse:
        cursor.seek_for_prev(key)
    else:
        cursor.seek(key)
    if (reverse or not first) and cursor.valid() and cursor.key() == key:
        (cursor.prev if reverse else cursor.next)()


def _up(cursor: RdictIter, start: bytes, path: Path, bounds: ReadOptions) -> Iterator[Row]:
    cursor.seek(start)
    return _walk(cursor, cursor.next, path, bounds)


def _down(cursor: RdictIter, start: bytes, path: Path, bounds: ReadOptions) -> Iterator[Row]:
    """From the upper bound to `start`, which is not set as a bound: rocksdict 0.3.29 takes a lower for an upper one."""
    cursor.seek_to_last()
    return takewhile(lambda row: row[0] >= start, _walk(cursor, cursor.prev, path, bounds))


def _walk(cursor: RdictIter, step: Callable[[], None], path: Path, _bounds: ReadOptions) -> Iterator[Row]:
    """Rows from where `cursor` stands; `_bounds` lives as long as it does."""
    while (row := _row(cursor, path)) is not None:
        yield row
        step()


def _row(cursor: RdictIter, path: Path) -> Row | None:
    if cursor.valid():
        return cursor.key(), cursor.value()
    try:
        cursor.status()
    except Exception as error:
        raise _damaged(path, error) from error
    return None


def _damaged(path: Path, error: Exception | str) -> Fatal:
    # RocksDB writes while it opens. A full disk is no damage, and no reason to give up what is on it.
    step = _FREE if _NO_SPACE in str(error) else _RESTORE
    return Fatal(f"store {path} cannot be read: {error}. {step}")
