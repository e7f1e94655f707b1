"""What both sides of a link write down about what passed between them, each from what it saw itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from controlplane.features import federation
from controlplane.v1.federation_pb2 import Shared
from controlplane.v1.records_pb2 import Passage, Reach

PAGE_RECORDS: Final = 64
"""Records of one page of a listing."""

COPY: Final = "copy"
LISTING: Final = "listing"
PROGRESS: Final = "progress"
"""Moves nothing but the cursor: never part of a passage."""
UNCONFIRMED: Final = "unconfirmed"


class Counted(NamedTuple):
    """What is kept of a message until it is acknowledged."""

    sort: str
    revision: int
    records: int
    fingerprint: bytes


def counted(sort: str, revision: int, records: Sequence[Shared]) -> Counted:
    """Take the measure of a message."""
    return Counted(sort, revision, len(records), federation.fingerprint(revision, records))


class Side(NamedTuple):
    """One side's view of one stream."""

    direction: Passage.Direction
    counterparty: str
    reach: Reach
    epoch: int

    def passage(self, after: int, span: Sequence[Counted]) -> Passage:
        """What passed: messages of one sort. Transactions begin `after` a revision; a listing begins with nothing."""
        digest = bytes(32)
        for each in span:
            digest = federation.extended(digest, each.fingerprint)
        return Passage(
            direction=self.direction,
            counterparty=self.counterparty,
            reach=self.reach,
            epoch=self.epoch,
            after=after if span[0].sort == COPY else 0,
            upto=span[-1].revision,
            records=sum(each.records for each in span),
            digest=digest,
            sort=span[0].sort,
        )
