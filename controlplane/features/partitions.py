"""Partitions, and what the region keeps about itself, in the region's system partition."""

from __future__ import annotations

from functools import lru_cache

from controlplane.errors import Fatal
from controlplane.kernel.transaction import Kind, Tx
from controlplane.v1.records_pb2 import Partition, Reach, Retention

PARTITION = Kind("partition", Partition, history_kept=None)
RETENTION = Kind("retention", Retention, reserved=True)

RETENTION_NAME = "events"


@lru_cache(maxsize=64)
def system(region: str) -> Partition:
    """The partition that holds the region's own records; it exists without being created. Treat it as immutable."""
    return Partition(id=f"{region}.system", home=region, epoch=1, reach=Reach.HOME_ONLY)


def declare(tx: Tx, partition: Partition) -> bool:
    """Create a partition of the region file, or check it against what was created; true if it was new.

    Home, reach and environment are fixed at creation: a region file that says otherwise raises `Fatal`, because
    serving under it could send pinned data where it may not go.
    """
    row = tx.get(PARTITION, partition.id)
    if row is None:
        tx.put(PARTITION, partition.id, partition)
        return True
    kept = row.value
    if (kept.home, kept.reach, kept.environment) != (partition.home, partition.reach, partition.environment):
        raise Fatal(
            f"partition {partition.id} was created with reach {Reach.Name(kept.reach)} in environment"
            f" {kept.environment!r}; the region file says {Reach.Name(partition.reach)} in {partition.environment!r}:"
            " restore the region file, or give the new partition another id"
        )
    return False
