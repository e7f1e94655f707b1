"""The library between a node and its disk and clock (`shim.c`): built here, ordered about here, asked here.

One file for each node, mapped by both sides, holds orders, counts and what is durable of every file, so that it
outlives the node's process as a disk does.
"""

from __future__ import annotations

import errno
import mmap
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, NamedTuple

from chaos.real import Unsupported

_MAGIC: Final = 0x31307368696D6350
_COUNTS_AT: Final = 16
_PATH_AT: Final = 32
_TABLE_AT: Final = 96
_FILES_MAX: Final = 16384
_CELL: Final = struct.Struct("=q")
_ROW: Final = struct.Struct("=qqq")
_BYTES: Final = _TABLE_AT * _CELL.size + _FILES_MAX * _ROW.size
_PATH_BYTES_MAX: Final = (_TABLE_AT - _PATH_AT) * _CELL.size - 1
_BUILD_TIMEOUT_S: Final = 60.0


class Durable(NamedTuple):
    """What would outlive a loss of power of one file: so many bytes, and whether anything bears its name."""

    length: int
    named: bool


@dataclass(frozen=True, slots=True)
class Orders:
    """What the library is to do; the fields in the order of the cells. The defaults: nothing."""

    clock_offset_ns: int = 0
    sync_errno: int = 0
    sync_lies: int = 0
    sync_delay_ms: int = 0
    write_errno: int = 0
    tear_after_bytes: int = -1
    free_bytes: int = -1
    sync_kills: int = 0
    skip_calls: int = 0
    hit_calls: int = -1


@dataclass(frozen=True, slots=True)
class Counts:
    """What the library has done, in this process and all before it; the fields in the order of the cells."""

    syncs: int
    syncs_failed: int
    syncs_lied: int
    syncs_delayed: int
    writes_seen: int
    writes_failed: int
    writes_torn: int
    clock_shifted: int
    waits_shifted: int
    room_shifted: int
    table_full: int


def build(folder: Path) -> Path:
    """Compile the library into `folder`; return its path. Raises `Unsupported` without a C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise Unsupported("no C compiler: disk and clock faults need gcc")
    library = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    argv = [compiler, "-O2", "-shared", "-fPIC", "-pthread", "-o", str(library), str(source), "-ldl"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False)  # noqa: S603
    if done.returncode:
        raise Unsupported(f"the C compiler refuses {source.name}: {done.stderr.strip()[:500]}")
    return library


class Shim:
    """Orders to, and counts of, the library in one node's processes, through `file`, which is created."""

    def __init__(self, library: Path, file: Path) -> None:
        self._library, self._file = library, file
        file.write_bytes(_CELL.pack(_MAGIC) + bytes(_BYTES - _CELL.size))
        with file.open("r+b") as opened:
            self._cells = mmap.mmap(opened.fileno(), _BYTES)
        self.order(Orders())

    @property
    def command(self) -> list[str]:
        """What to put before a command, so that it runs with the library."""
        return ["env", f"LD_PRELOAD={self._library}", f"CHAOS_SHIM={self._file}"]

    def order(self, orders: Orders, below: Path | None = None) -> None:
        """Give new orders, in place of all earlier ones. Those about writes hold for files below a folder."""
        # The path first when something begins, last when it ends: no write is judged by half of an order.
        path = f"{below}/".encode() if below else b""
        if len(path) > _PATH_BYTES_MAX:
            raise Unsupported(f"paths of more than {_PATH_BYTES_MAX} bytes are too long for the shim")
        if path:
            self._put_path(path)
        for number, field in enumerate(fields(orders), start=1):
            _CELL.pack_into(self._cells, number * _CELL.size, getattr(orders, field.name))
        if not path:
            self._put_path(path)

    def counts(self) -> Counts:
        """What happened so far."""
        return Counts(*(self._cell(_COUNTS_AT + number) for number in range(len(fields(Counts)))))

    def durable(self) -> dict[int, Durable]:
        """What is durable of each file that a sync of it or of its folder has covered, by inode.

        Raises `OverflowError` if there were more than there is room for.
        """
        if self.counts().table_full:
            raise OverflowError(f"more than {_FILES_MAX} files were synced: what is durable is not known")
        return {inode: Durable(length, named=bool(named)) for inode, length, named in self._rows() if inode}

    def forget_files(self) -> None:
        """Forget what is durable: an inode that somebody else removed is soon another file's."""
        start = _TABLE_AT * _CELL.size
        self._cells[start:_BYTES] = bytes(_BYTES - start)

    def close(self) -> None:
        """Let go of the file."""
        self._cells.close()

    def _rows(self) -> Iterator[tuple[int, int, int]]:
        for number in range(_FILES_MAX):
            inode, length, named = _ROW.unpack_from(self._cells, _TABLE_AT * _CELL.size + number * _ROW.size)
            yield inode, length, named

    def _put_path(self, path: bytes) -> None:
        start = _PATH_AT * _CELL.size
        self._cells[start : start + _PATH_BYTES_MAX + 1] = path.ljust(_PATH_BYTES_MAX + 1, b"\0")

    def _cell(self, number: int) -> int:
        value: int = _CELL.unpack_from(self._cells, number * _CELL.size)[0]
        return value


FAILING: Final = Orders(sync_errno=errno.EIO)
FULL: Final = Orders(write_errno=errno.ENOSPC, free_bytes=0)
LYING: Final = Orders(sync_lies=1)
