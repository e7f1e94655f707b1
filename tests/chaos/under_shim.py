"""What runs with the shim under it, for `test_real_faults`: does one thing for each line, and says how it went."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from controlplane import datadir
from controlplane.errors import Fatal
from controlplane.kernel.store import Batch
from controlplane.replication.journal import Journal
from controlplane.replication.tail import Add, Meta
from controlplane.storage import RocksStore


def sync(folder: Path) -> Any:
    """Write four bytes and sync them, both ways; say which error each way gave."""
    found = []
    for call in (os.fsync, os.fdatasync):
        with (folder / call.__name__).open("wb") as file:
            file.write(b"1234")
            file.flush()
            found.append(_error(lambda call=call, file=file: call(file.fileno())))
    return found


def sync_folder(folder: Path) -> Any:
    """Sync the folder itself; say which error that gave."""
    return _error(lambda: datadir.sync_folder(folder))


def replace(folder: Path) -> Any:
    """Put a synced file over one that is there, and another one where none is."""
    for name in ("fsync", "new"):
        fresh = folder / f"{name}.fresh"
        with fresh.open("wb") as file:
            file.write(b"123456")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(folder / name)


def write(folder: Path) -> Any:
    """Write below the folder and beside it; say which error each gave."""
    return [_error(lambda path=path: path.write_bytes(b"1234")) for path in (folder / "in", folder.with_suffix(".out"))]


class Store:
    """A real store, which stays open."""

    def open(self, folder: Path) -> Any:
        """Make it."""
        self.store = RocksStore(folder / "store")
        return self.commit(folder)

    def commit(self, _: Path) -> Any:
        """Commit to it and sync it; say what it complained of."""
        try:
            self.store.commit(Batch(puts={b"key": os.urandom(1000)}))
            self.store.sync()
        except Fatal as error:
            return str(error)
        return ""


def clock(_: Path) -> Any:
    """Wall clock, monotonic clock, and how long waits of 50 ms take that are bound to either."""
    began = time.monotonic()
    threading.Event().wait(0.05)
    asyncio.run(asyncio.sleep(0.05))
    return [time.time(), time.monotonic(), time.monotonic() - began, _waited_for_the_wall_clock()]


def _waited_for_the_wall_clock() -> float:
    """Wait for a semaphore that nobody posts until the wall clock is 50 ms further, as C programs do."""
    library, semaphore = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    assert library.sem_init(semaphore, 0, 0) == 0
    seconds, nanoseconds = divmod(time.time_ns() + 50_000_000, 10**9)
    began = time.monotonic()
    assert library.sem_timedwait(semaphore, (ctypes.c_long * 2)(seconds, nanoseconds)) == -1
    return time.monotonic() - began


def room(folder: Path) -> Any:
    """Free bytes."""
    return shutil.disk_usage(folder).free


def tear(folder: Path) -> Any:
    """In a process of its own: write a journal, move it to where writes tear, and write to it once more."""
    child = os.fork()
    if child == 0:
        journal = Journal(folder / "new")
        journal.write([Meta(3, "n1"), Add(1, 3, b"first")])
        journal.close()
        (folder / "new").rename(folder / "armed" / "journal")
        Journal(folder / "armed" / "journal").write([Add(2, 3, b"second"), Meta(4, "n2")])
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _error(work: Callable[[], object]) -> str:
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


STORE = Store()
ACTS = {act.__name__: act for act in (sync, sync_folder, replace, write, STORE.open, STORE.commit, clock, room, tear)}

if __name__ == "__main__":
    for line in sys.stdin:
        name, place = line.split()
        sys.stdout.write(json.dumps(ACTS[name](Path(place))) + "\n")
        sys.stdout.flush()
