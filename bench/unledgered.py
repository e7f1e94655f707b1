"""`python -m bench.unledgered serve ...`: a node as `controlplane serve` runs it, but without its ledger.

What the benchmark compares with to say what the ledger costs. The product has no such switch. Rows of the ledger are
neither hashed nor read by what applies entries, so leaving them out changes nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.__main__ import main
from controlplane.features import audit
from controlplane.kernel.machine import Changed
from controlplane.kernel.store import Overlay
from controlplane.v1.state_pb2 import State


class NoLedger(audit.Ledger):
    """Stays as it is, whatever is applied."""

    def __call__(self, view: Overlay, state: State, salt: bytes, entry: bytes, changed: Sequence[Changed]) -> None:
        """See `machine.Annex`."""


if __name__ == "__main__":
    audit.Ledger = NoLedger  # type: ignore[misc]
    main()
