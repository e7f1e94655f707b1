"""`python -m chaos.forgetful KEPT STEP serve …`: a node like any other, but for how long it keeps events.

How long that is has no setting: who cannot wait until 131,072 revisions have passed puts another number in its place.
It is no part of the format of the state (`limits`), so all else is what it always is.
"""

from __future__ import annotations

import sys

from controlplane import limits
from controlplane.__main__ import main


def forget(kept: int, step: int) -> None:
    """Keep the events of so many revisions in this process, and drop older ones in steps of so many."""
    limits.EVENTS_KEPT, limits.TRIM_REVISIONS = kept, step


if __name__ == "__main__":
    forget(int(sys.argv[1]), int(sys.argv[2]))
    sys.argv[1:] = sys.argv[3:]
    main()
