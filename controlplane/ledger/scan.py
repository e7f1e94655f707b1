"""What a node says after it has searched its own disk for records that must not be there: one signed line of JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from controlplane.ledger import notes
from controlplane.ledger.notes import Signer

FORMAT = "controlplane-scan/1"


@dataclass(frozen=True, slots=True)
class Scan:
    """`size` is the number of leaves of the node's tree when the search began, `at_ms` that time in Unix milliseconds.

    `searched` says what was walked and how much of each ("records", "events", "wal bytes", "snapshot bytes"…).
    `foreign` counts the records found that are pinned elsewhere; what they are is for the region's operators alone.
    """

    fleet: str
    region: str
    node: str
    at_ms: int
    size: int
    searched: Mapping[str, int]
    foreign: int

    def text(self) -> str:
        """What is signed."""
        told = {
            "format": FORMAT,
            "fleet": self.fleet,
            "region": self.region,
            "node": self.node,
            "at_ms": self.at_ms,
            "size": self.size,
            "searched": dict(self.searched),
            "foreign": self.foreign,
        }
        return json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=True) + "\n"


def sign(scan: Scan, signer: Signer) -> bytes:
    """The scan as a note signed by its node."""
    return notes.write(scan.text(), signer.line(scan.text()))
