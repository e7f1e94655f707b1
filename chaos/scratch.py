"""Where files are made that nobody keeps."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_MEMORY = Path("/dev/shm")  # noqa: S108 - everything below it gets a new folder of its own.
_ROOM_BYTES_MIN = 4 << 30


def scratch() -> str | None:
    """A folder in memory if there is one with room, from which libraries can be loaded too; else None."""
    if not _MEMORY.is_dir() or os.statvfs(_MEMORY).f_flag & os.ST_NOEXEC:
        return None
    return str(_MEMORY) if shutil.disk_usage(_MEMORY).free >= _ROOM_BYTES_MIN else None
