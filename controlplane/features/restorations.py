"""A region that begins again from a backup: where it goes on, and what follows from that.

1. It goes on at a revision that it cannot have reached before, so no fence and no revision is given twice.
2. What happened since the backup, nobody here knows. Whoever stands at a revision of then (watchers, regions that copy)
   is too far behind, and lists anew. Who says that a request was first made then is told that its outcome is forgotten.
3. Who lists anew believes the listing, and not what is newer in its copy; but for stops, which nothing releases.
4. Homes that moved since: others tell. A later home elsewhere counts. Where this region itself is said to be the home,
   it goes on from what it has, in an epoch after that.
"""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.features import partitions
from controlplane.kernel import keys
from controlplane.kernel.store import View
from controlplane.kernel.transaction import Kind, Tx, scope_of
from controlplane.v1.api_pb2 import RequestHeader
from controlplane.v1.records_pb2 import Restoration, Retention
from controlplane.v1.state_pb2 import Event

RESTORATION = Kind("restoration", Restoration, history_kept=None, reserved=True)

_REVISIONS_PER_S = 1 << 20
"""More than a region can write."""


def revision_at(at_ms: int) -> int:
    """The revision with which a region begins again at this moment (Unix milliseconds).

    Beyond any that it can have given before, from whichever backup it begins: as long as the clock is right.
    """
    return at_ms // 1000 * _REVISIONS_PER_S


def restore(tx: Tx, after: int, after_ms: int, span: int) -> RequestHeader:
    """In the system partition, in the first transaction: the backup ends at revision `after`, of `after_ms`.

    `span` is that of the state's outcomes.
    """
    tx.put(RESTORATION, f"{tx.revision:020d}", Restoration(after=after, after_ms=after_ms, revision=tx.revision))
    row = tx.get(partitions.RETENTION, partitions.RETENTION_NAME)
    kept = row.value if row else Retention()
    # The floor is the revision after which all events are kept: this transaction's are the first.
    now = Retention(event_floor=tx.revision - 1, outcome_slice=max(0, tx.revision // span - 1) << 8)
    tx.put(partitions.RETENTION, partitions.RETENTION_NAME, now, quiet=True)
    for domain in [*_domains(tx.view)]:
        tx.trim(*keys.events(domain, kept.event_floor + 1, now.event_floor))
    tx.trim(*keys.outcome_slices(kept.outcome_slice, now.outcome_slice))
    return RequestHeader()


def _domains(view: View) -> Iterator[bytes]:
    """All domains in which something happened that is kept; each costs a lookup."""
    at, end = keys.children(keys.EVENT)
    while (first := next(iter(view.scan(at, end)), None)) is not None:
        domain = keys.domain_of(first[0][len(keys.EVENT) :])
        yield domain
        at = keys.children(keys.EVENT + domain)[1]


def newest(view: View, region: str) -> Restoration:
    """The last time that `region` began again; one of revision 0 if it never did."""
    start, end = keys.children(keys.RECORD + scope_of(partitions.system(region)) + keys.text(RESTORATION.name))
    found = next(iter(view.scan(start, end, reverse=True)), None)
    return Restoration() if found is None else Restoration.FromString(Event.FromString(found[1]).value)
