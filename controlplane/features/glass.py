"""Break-glass reads, written down: that somebody outside was shown what is pinned to its home, by home and asker alike.

A record is added for each and never changed. What was shown is in none of them, only its digest; who asked and why, and
for what, is in the home's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from controlplane.kernel.transaction import Kind, Reader, Row, Tx
from controlplane.v1.api_pb2 import RequestHeader
from controlplane.v1.records_pb2 import BreakGlass

GLASS = Kind("glass", BreakGlass, reserved=True)


def record(tx: Tx, read: BreakGlass) -> RequestHeader:
    """Write down a read. In the system partition; a second run is a second record, which says too much, never less."""
    tx.put(GLASS, _name(read.environment, tx.revision), read)
    return RequestHeader()


def reads(reader: Reader, environment: str, after_revision: int) -> Iterator[Row[BreakGlass]]:
    """What was written down of an environment after a revision, oldest first. `reader` is of the system partition."""
    return reader.list(GLASS, f"{environment}/", _name(environment, after_revision))


def who_and_why(read: BreakGlass) -> str:
    """What stands in the ledger for who asked and why: whoever is told both can check that it is what was said."""
    told = f"controlplane break-glass v1\0{read.actor}\0{read.reason}"
    return hashlib.sha256(told.encode()).hexdigest()


def _name(environment: str, revision: int) -> str:
    return f"{environment}/{revision:020d}"
