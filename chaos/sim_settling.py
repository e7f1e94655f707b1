"""How long a region may take to become level once nothing breaks any more: from its backlog, its links and its disks.

A constant would be wrong in both ways. A region whose disk takes 0.3 s for a sync and whose appends hold two entries
works off a hundred entries in ten seconds, and nothing is the matter; a fast one that needs ten seconds is broken.

1. First what the leader's log holds is committed, then whoever is far behind gets a snapshot, then it streams the rest.
2. A window of appends travels, waits for the sync that is under way and for its own, and is acknowledged: one round.
   Where messages overtake each other, most windows have a gap, and a second round fills it.
3. A snapshot may be damaged, or not be made, a few times in a row.
"""

from __future__ import annotations

from math import ceil

from chaos.schedule import Conditions
from chaos.sim_faults import RATES
from controlplane.replication.tail import Tail

# A message takes at most so many times the delay of its link; the last one may be overtaken (`sim_network`).
_LATE, _OVERTAKEN = 2, 21
_SNAPSHOTS_MAX = 4


def settling_s(conditions: Conditions, leading: Tail, commit: int, applied: int) -> float:
    """Seconds from now on. `leading` is the log to be reached, `applied` what the last of the nodes has applied."""
    bounds, timing = conditions.bounds, conditions.timing
    # Timers run by the slowest clock.
    slowest = min(RATES)
    travel_s = 2 * _LATE * conditions.delay_s * (2 if conditions.disorder else 1)
    round_s = travel_s + 2 * conditions.sync_s[1] + timing.beat_s / slowest
    appends = [_appends(leading, after, bounds.append_bytes_max) for after in (commit, applied)]
    rounds = sum(1 + ceil(count / bounds.appends_in_flight_max) for count in appends)
    snapshot_s = 0.0
    if commit < leading.last_index or applied < leading.boundary_index:  # The log may yet be trimmed, or was.
        snapshot_s = _SNAPSHOTS_MAX * (timing.election_max_s / slowest + 2 * conditions.snapshot_s[1] + 2 * round_s)
    last_s = 2 * _OVERTAKEN * conditions.delay_s if conditions.disorder else 0.0
    return timing.fallback_s / slowest + rounds * round_s + snapshot_s + last_s


def _appends(log: Tail, after: int, bytes_max: int) -> int:
    """How many appends bring what follows `after`, as far as it is still in the log."""
    count, index = 0, max(after, log.boundary_index)
    while index < log.last_index:
        index += len(log.batch(index + 1, bytes_max))
        count += 1
    return count
