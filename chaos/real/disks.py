"""What a loss of power leaves of a folder: all that was synced, and of the rest as much as chance wants.

A file keeps the bytes that a sync has covered, and a random part, often none, of those appended since. One whose folder
was not synced since it was made may be gone altogether. Renames and removals are taken as done. Whatever survives this
has survived one of the things that a power cut can do, not all of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Final

from chaos.real.shim import Durable

_NOTHING: Final = Durable(0, named=False)


def drop_unsynced(folder: Path, durable: Mapping[int, Durable], random: Random) -> int:
    """Remove or cut the files below `folder` to what is durable, or tear what is not; return how many bytes are gone.

    No process may have them open. `durable` is that of the node's `Shim`.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(_drop(file, durable.get(file.stat().st_ino, _NOTHING), random) for file in files)


def _drop(file: Path, durable: Durable, random: Random) -> int:
    size = file.stat().st_size
    if not durable.named and random.random() < 0.5:
        file.unlink()
        return size
    unsynced_bytes = size - min(size, durable.length)
    kept_bytes = random.choice((0, 0, random.randint(0, unsynced_bytes)))
    if unsynced_bytes > kept_bytes:
        os.truncate(file, size - unsynced_bytes + kept_bytes)
    return unsynced_bytes - kept_bytes
