"""Everything that reads what it did not write, by kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from chaos.fuzz import Target
from chaos.fuzz_calls import Rpc, Wire
from chaos.fuzz_files import JournalFiles, RegionFile, SnapshotFile

TARGETS: Final[Mapping[str, Callable[[Path], Target]]] = {
    "journal": JournalFiles,
    "wire": Wire,
    "snapshot": SnapshotFile,
    "region": RegionFile,
    "rpc": Rpc,
}
"""Each is given a folder of its own."""
