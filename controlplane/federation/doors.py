"""What callers of other regions were told, and refused, written down: answers leave, and denials were attempts.

Both are aggregated before they enter the log, so that nobody can flood it by asking: one record per region and sort at
the first occurrence, and then at most one per period. Of a denied request nothing is kept but that there was one. Only
the leader can write, so only the leader answers callers of other regions.

What was not yet written when a leader fell is lost: at most one period.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass
from typing import Final, NamedTuple

from controlplane.errors import ControlPlaneError
from controlplane.features import federation
from controlplane.features.partitions import system
from controlplane.federation.links import leads
from controlplane.node import Node
from controlplane.v1.records_pb2 import Passage, Reach

_LOG = logging.getLogger(__name__)

ANSWER: Final = "answer"
OUTLINE: Final = "outline"
DENIAL: Final = "denial"
PERIODS_S: Final = {ANSWER: 1.0, OUTLINE: 1.0, DENIAL: 60.0}

_TIMEOUT_S = 5.0


class _Place(NamedTuple):
    """What is counted together."""

    region: str
    sort: str
    reach: Reach


@dataclass(slots=True)
class _Tally:
    after: int
    count: int = 0
    digest: bytes = b""


class Doors:
    """Counts what callers of other regions get, and writes it down from time to time."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._tallies: dict[_Place, _Tally] = {}
        self._due: dict[_Place, float] = {}
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = self._node.needs(asyncio.create_task(self._run(), name="record of answers and denials"))

    async def stop(self) -> None:
        """Write what is left, if this node still can, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            for place in list(self._tallies):
                await self._write(place)

    def answered(self, region: str, reach: Reach, reply: bytes, sort: str = ANSWER) -> None:
        """A caller of `region` was told `reply`, about a partition of this reach, or with an `OUTLINE`."""
        tally = self._tally(_Place(region, sort, reach))
        tally.digest = hashlib.sha256((tally.digest or bytes(32)) + hashlib.sha256(reply).digest()).digest()

    def denied(self, region: str) -> None:
        """A caller of `region` was denied something."""
        self._tally(_Place(region, DENIAL, Reach.REACH_UNSPECIFIED))

    def _tally(self, place: _Place) -> _Tally:
        tally = self._tallies.setdefault(place, _Tally(self._node.revision))
        tally.count += 1
        self._work.set()
        return tally

    async def _run(self) -> None:
        while True:
            if not self._tallies:
                self._work.clear()
                await self._work.wait()
            now = self._node.clock()
            waits_s = [self._due.get(place, now) - now for place in self._tallies]
            if min(waits_s) > 0:
                # A first occurrence elsewhere is not kept waiting by what is not due yet.
                self._work.clear()
                try:
                    async with asyncio.timeout(min(waits_s)):
                        await self._work.wait()
                except TimeoutError:
                    pass
            for place in list(self._tallies):
                if self._due.get(place, 0.0) <= self._node.clock():
                    self._due[place] = self._node.clock() + PERIODS_S[place.sort]
                    await self._write(place)

    async def _write(self, place: _Place) -> None:
        tally = self._tallies.pop(place, None)
        if tally is None or not leads(self._node):
            # Another node leads, and writes down what it answers itself.
            return
        region, sort, reach = place
        passage = Passage(
            direction=Passage.EGRESS,
            counterparty=region,
            reach=reach,
            after=tally.after,
            upto=self._node.revision,
            records=tally.count,
            digest=tally.digest,
            sort=sort,
        )
        try:
            await self._node.transact(
                system(self._node.region),
                "RecordPassage",
                lambda tx: federation.record_passage(tx, passage),
                timeout_s=_TIMEOUT_S,
            )
        except ControlPlaneError as error:
            _LOG.error("%d times %s for %s could not be written down: %s", tally.count, sort, region, error)
