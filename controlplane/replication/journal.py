"""The log's disk: entries above the boundary, term and vote, in a RocksDB of their own.

Theory of operation. `Tail` holds the log in memory and emits every change as an operation; `Journal.write`
puts a run of operations on disk as one synced batch. It is read once, at the start. What an acknowledgement
rests on is here and nowhere else, so damage must be noticed, never repaired:

1. **One batch, one sync.** After a crash a batch is there whole or not at all, and batches end in the order
   written.
2. **Every row carries its format and a checksum** over its kind, its place and its content: a row that was
   changed, moved or copied is noticed.
3. **One state row** holds term, vote, boundary, commit and *last* index and is rewritten with every batch.
   Entries must be exactly boundary + 1 .. last: a missing row is noticed at either end too.
4. **A tear is not damage.** A batch cut off by a crash was never reported as synced and is dropped. A record of the
   write-ahead log that is whole but wrong, anywhere, is damage; `framing` finds what RocksDB does not.
5. **Trimming deletes rows, never rewrites them**; RocksDB gives the space back as it compacts, or when `scrub` has it
   compact all.
6. **The commit index is advisory**: a run of nothing else is written without a sync.
7. **The sync does not hold the interpreter lock**: a batch is written unsynced, then `WriteAheadLogs` syncs what it was
   written to.

One thread writes at a time: the journal thread, or the loop of a follower while that thread has nothing to do.
rocksdict reports every failure as a bare `Exception`; the places that catch it are that boundary.
"""

from __future__ import annotations

import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from rocksdict import DBRecoveryMode, Rdict, ReadOptions, WriteBatch, WriteOptions

from controlplane import framing
from controlplane.errors import Fatal
from controlplane.replication.tail import Add, Commit, Cut, Entry, Meta, Op, Recovered, Reset, Trim
from controlplane.storage import Tuning, WriteAheadLogs, folder_bytes, rewritten, rocks_options

JOURNAL_FORMAT = 1

_STATE_KEY = b"s"
_ENTRY_KEY = struct.Struct(">cQ")
_ENTRIES_END = b"f"
_PREFIX = struct.Struct(">BI")  # Format, CRC-32 of key and body.
_TERM = struct.Struct(">Q")
_STATE = struct.Struct(">QQQQQQ?")  # State's fields in order; then whether a vote follows.
_TUNING = Tuning(cache_bytes=1 << 20, write_buffer_bytes=8 << 20)


@dataclass(slots=True)
class _State:
    """The state row."""

    term: int = 0
    boundary_index: int = 0
    boundary_term: int = 0
    last: int = 0
    commit: int = 0
    writes: int = 0
    voted_for: str | None = None

    def packed(self) -> bytes:
        voted = self.voted_for is not None
        fixed = _STATE.pack(
            self.term, self.boundary_index, self.boundary_term, self.last, self.commit, self.writes, voted
        )
        return fixed + (self.voted_for or "").encode()

    @classmethod
    def unpacked(cls, body: bytes) -> _State:
        *numbers, voted = _STATE.unpack_from(body)
        state = cls(*numbers)
        state.voted_for = body[_STATE.size :].decode() if voted else None
        return state


class Journal:
    """The journal in `folder`, open. Raises `Fatal` if it is damaged, of an unknown format, or missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._db = self._open()
        self._unsynced = WriteOptions()
        self._logs = WriteAheadLogs(self._folder)
        self._state = self._recover_state()

    @property
    def empty(self) -> bool:
        """Whether nothing was ever written: no entry, no term, no vote."""
        return self._state.writes == 0

    def recover(self) -> Recovered:
        """Read and check everything. Memory: all entries at once; the host's trimming bounds them."""
        state = self._state
        entries = tuple(self._entries())
        if state.boundary_index + len(entries) != state.last:
            raise self._damage(f"entry {state.boundary_index + len(entries) + 1} of {state.last} is missing")
        if not state.boundary_index <= state.commit <= state.last:
            raise self._damage(f"commit index {state.commit} lies outside the log")
        return Recovered(state.boundary_index, state.boundary_term, entries, state.term, state.voted_for, state.commit)

    def write(self, ops: Iterable[Op]) -> None:
        """Put `ops` on disk, in order, as one batch; when it returns they are durable (commit indexes alone: written).

        Raises `Fatal` when the disk refuses: what the batch holds is then unknown, and only a new start can
        tell.
        """
        batch = WriteBatch(raw_mode=True)
        sync = False
        for op in ops:
            self._put(batch, op)
            sync = sync or not isinstance(op, Commit)
        self._state.writes += 1
        batch.put(_STATE_KEY, _sealed(_STATE_KEY, self._state.packed()))
        try:
            self._db.write(batch, self._unsynced)
            if sync:
                self._logs.sync()
        except Exception as error:
            raise self._unwritable(error) from error

    def scrub(self) -> bool:
        """Have nothing in any file that was trimmed before; see `storage.rewritten`.

        From a thread of its own: the one that writes goes on.
        """
        try:
            return rewritten(self._db, self._folder)
        except Exception as error:
            raise self._unwritable(error) from error

    def size_bytes(self) -> int:
        """Bytes the journal takes on disk. Reads the folder: not for hot paths."""
        return folder_bytes(self._folder)

    def close(self) -> None:
        """Close; everything reported as written is durable already. Raises `Fatal` if RocksDB cannot write its rest."""
        self._logs.close()
        try:
            self._db.close()
        except Exception as error:
            raise self._unwritable(error) from error

    def _put(self, batch: WriteBatch, op: Op) -> None:
        state = self._state
        match op:
            case Add(index, term, payload):
                key = _entry_key(index)
                batch.put(key, _sealed(key, _TERM.pack(term) + payload))
                state.last = index
            case Cut(from_index):
                batch.delete_range(_entry_key(from_index), _ENTRIES_END)
                state.last = from_index - 1
            case Meta(term, voted_for):
                state.term, state.voted_for = term, voted_for
            case Commit(index):
                state.commit = index
            case Trim(index, term):
                batch.delete_range(_entry_key(0), _entry_key(index + 1))
                state.boundary_index, state.boundary_term = index, term
            case Reset(index, term):
                batch.delete_range(_entry_key(0), _ENTRIES_END)
                state.boundary_index, state.boundary_term = index, term
                state.last, state.commit = index, max(index, min(state.commit, index))

    def _open(self) -> Rdict:
        """Open so that only a tear at the very end is forgiven, and lost files are not taken for a new journal."""
        self._folder.mkdir(parents=True, exist_ok=True)
        options = rocks_options(_TUNING, DBRecoveryMode.tolerate_corrupted_tail_records())
        fresh = not any(self._folder.iterdir())
        if what := framing.damage(self._folder):
            raise self._damage(what)
        options.create_if_missing(fresh)
        try:
            return Rdict(str(self._folder), options)
        except Exception as error:
            raise self._damage(str(error)) from error

    def _recover_state(self) -> _State:
        row = self._read(_STATE_KEY)
        if row is None:
            if next(self._rows(), None) is not None:
                raise self._damage("its state row (term, vote, boundary) is missing")
            return _State()
        body = self._unsealed(_STATE_KEY, row, "state row")
        try:
            return _State.unpacked(body)
        except (struct.error, UnicodeDecodeError) as error:
            raise self._damage("its state row cannot be read") from error

    def _entries(self) -> Iterator[Entry]:
        for index, (key, row) in enumerate(self._rows(), self._state.boundary_index + 1):
            if key != _entry_key(index):
                raise self._damage(f"entry {index} is missing or out of place")
            body = self._unsealed(key, row, f"entry {index}")
            yield Entry(index, _TERM.unpack_from(body)[0], body[_TERM.size :])

    def _rows(self) -> Iterator[tuple[bytes, bytes]]:
        bounds = ReadOptions()
        bounds.set_iterate_upper_bound(_ENTRIES_END)
        bounds.set_verify_checksums(True)
        cursor = self._db.iter(bounds)
        cursor.seek(_entry_key(0))
        while cursor.valid():
            yield cursor.key(), cursor.value()
            cursor.next()
        try:
            cursor.status()
        except Exception as error:
            raise self._damage(str(error)) from error

    def _read(self, key: bytes) -> bytes | None:
        try:
            row: bytes | None = self._db.get(key)
        except Exception as error:
            raise self._damage(str(error)) from error
        return row

    def _unsealed(self, key: bytes, row: bytes, what: str) -> bytes:
        if len(row) < _PREFIX.size + _TERM.size:
            raise self._damage(f"{what} is cut short")
        form, checksum = _PREFIX.unpack_from(row)
        body = row[_PREFIX.size :]
        if checksum != zlib.crc32(body, zlib.crc32(bytes((form,)) + key)):
            raise self._damage(f"the checksum of {what} does not match")
        if form != JOURNAL_FORMAT:
            raise Fatal(
                f"journal {self._folder}: {what} has format {form}, which this version does not know. "
                f"Start the version that wrote it."
            )
        return body

    def _unwritable(self, error: Exception) -> Fatal:
        return Fatal(f"journal {self._folder}: cannot write: {error}. Free or replace the disk, then start again.")

    def _damage(self, what: str) -> Fatal:
        return Fatal(
            f"journal {self._folder} is damaged: {what}. Restore this node from its peers: move the data "
            f"folder away and start with --replace."
        )


class JournalThread:
    """The one thread that writes a journal: batches in the order given, each reported when it is durable.

    It never ends unnoticed: whatever goes wrong in it, expected or not, is reported as `Fatal`.
    """

    def __init__(self, journal: Journal, done: Callable[[int, float, Fatal | None], None]) -> None:
        """`done(seq, seconds, error)` is called from the thread after each batch, the last time after an error."""
        self._journal = journal
        self._done = done
        self._batches: SimpleQueue[tuple[int, list[Op]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def write(self, seq: int, ops: list[Op]) -> None:
        """Have `ops` written, of which the last has number `seq`.

        The caller waits for `done` before the next.
        """
        self._batches.put((seq, ops))

    def stop(self, timeout_s: float) -> bool:
        """End the thread after what was given to it; blocks for that long at most.

        False if it still writes: then the journal must not be closed.
        """
        self._batches.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (batch := self._batches.get()) is not None:
            seq, ops = batch
            began = time.perf_counter()
            error = self._written(ops)
            self._done(seq, time.perf_counter() - began, error)
            if error is not None:
                return

    def _written(self, ops: list[Op]) -> Fatal | None:
        try:
            self._journal.write(ops)
        except Fatal as error:
            return error
        except BaseException as error:  # A panic of RocksDB's binding is no Exception.
            fatal = Fatal(f"defect in the journal's thread: {error!r}")
            fatal.__cause__ = error
            return fatal
        return None


def _entry_key(index: int) -> bytes:
    return _ENTRY_KEY.pack(b"e", index)


def _sealed(key: bytes, body: bytes) -> bytes:
    checksum = zlib.crc32(body, zlib.crc32(bytes((JOURNAL_FORMAT,)) + key))
    return _PREFIX.pack(JOURNAL_FORMAT, checksum) + body
