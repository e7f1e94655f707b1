"""What a loss of power leaves of a folder: all that was synced, and of the rest as much as chance wants.

The rules are those of a file system that keeps names in order but writes contents when it likes: a file keeps the bytes
that a sync has covered, and a random part, often none, of those appended since. Renames and deletions are taken as
done. Whatever survives this has survived one of the things that a power cut can do, not all of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from random import Random


def drop_unsynced(folder: Path, durable_bytes: Mapping[int, int], random: Random) -> int:
    """Cut the files below `folder` to what is durable, or tear what is not; return how many bytes are gone.

    No process may have them open. `durable_bytes` maps inodes to lengths; a file that is not there was never synced.
    """
    gone_bytes = 0
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        found = file.stat()
        unsynced_bytes = found.st_size - min(found.st_size, durable_bytes.get(found.st_ino, 0))
        kept_bytes = random.choice((0, 0, random.randint(0, unsynced_bytes)))
        if unsynced_bytes > kept_bytes:
            os.truncate(file, found.st_size - unsynced_bytes + kept_bytes)
            gone_bytes += unsynced_bytes - kept_bytes
    return gone_bytes
