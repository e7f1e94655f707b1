"""What callers of other regions were told, and refused, written down: answers leave, and denials were attempts.

All of it is counted up before it enters the log, so that nobody can flood it by asking: one record per node, region
and sort at the first occurrence, and then at most one per period. Of a denied request nothing is kept but that there
was one. Whoever reads metrics from another machine is unidentified, plain HTTP names nobody, and counts as outside.

Answers to callers of other regions are given by the leader alone, denials and metrics by any node. So what was counted
is handed to the leader like a call, and again until it is written. A node that is killed takes with it what it had not
handed over: at most one period of each sort.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from typing import Final, NamedTuple

from controlplane.addresses import is_loopback
from controlplane.errors import ControlPlaneError, Invalid
from controlplane.features import federation
from controlplane.features.partitions import system
from controlplane.identity import word_is_valid
from controlplane.node import Call, Node
from controlplane.v1.records_pb2 import Passage, Reach

_LOG = logging.getLogger(__name__)

ANSWER: Final = "answer"
OUTLINE: Final = "outline"
METRICS: Final = "metrics"
DENIAL: Final = "denial"
PERIODS_S: Final = {ANSWER: 1.0, OUTLINE: 1.0, METRICS: 600.0, DENIAL: 60.0}
UNIDENTIFIED: Final = "(unidentified)"
"""Stands for the region of whoever gave no name. No region can be called so."""

TIMEOUT_S: Final = 5.0
"""How long one attempt to have something written down may take."""

_RETRY_S = 1.0
_WAITING_MAX = 1024
_NONCE_BYTES = 8


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
    """Counts what leaves at this node, other than by federation, and has it written down from time to time."""

    def __init__(self, node: Node) -> None:
        self.hand_over: Callable[[bytes], Awaitable[None]] | None = None
        """Has the leader `take` an encoded passage; raises one of the eight errors. Set before `start`."""
        self._node = node
        self._tallies: dict[_Place, _Tally] = {}
        self._due: dict[_Place, float] = {}
        self._waiting: deque[Passage] = deque()
        self._stuck = False
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = self._node.needs(asyncio.create_task(self._run(), name="record of answers and denials"))

    async def stop(self) -> None:
        """Have what is left written down, if that is possible in a few seconds, and end."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._collect(inf)
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await self._write()
        except TimeoutError:
            pass
        for passage in self._waiting:
            _LOG.error("%d times %s for %s were not written down", passage.records, passage.sort, passage.counterparty)

    def answered(self, region: str, reach: Reach, reply: bytes, sort: str = ANSWER) -> None:
        """A caller of `region` was told `reply`, about a partition of this reach, or with an `OUTLINE`."""
        tally = self._tally(_Place(region, sort, reach))
        tally.digest = hashlib.sha256((tally.digest or bytes(32)) + hashlib.sha256(reply).digest()).digest()

    def denied(self, region: str) -> None:
        """A caller of `region` was denied something, or asked for a partition that is not here."""
        self._tally(_Place(region, DENIAL, Reach.REACH_UNSPECIFIED))

    def scraped(self, host: str, page: bytes) -> None:
        """Somebody at the address `host` read this node's metrics. This machine's own readers are inside."""
        if not is_loopback(host):
            self.answered(UNIDENTIFIED, Reach.GLOBAL, page, METRICS)

    async def take(self, call: Call) -> bytes:
        """On the leader: write down what passed at a node of this region. Raises the eight errors."""
        passage = call.read(Passage)
        # Not only regions that this node's map has: while maps change, another node's may have more.
        named = passage.counterparty == UNIDENTIFIED or word_is_valid(passage.counterparty)
        if (
            not named
            or passage.sort not in PERIODS_S
            or passage.direction != Passage.EGRESS
            or len(passage.nonce) != _NONCE_BYTES
        ):
            raise Invalid("not a passage that a node may count", reason="PASSAGE_MALFORMED")
        await self._node.transact(
            system(self._node.region),
            "RecordPassage",
            lambda tx: federation.record_passage(tx, passage),
            timeout_s=max(0.0, call.deadline - self._node.clock()),
        )
        return b""

    def _tally(self, place: _Place) -> _Tally:
        tally = self._tallies.setdefault(place, _Tally(self._node.revision))
        tally.count += 1
        self._work.set()
        return tally

    async def _run(self) -> None:
        while True:
            await self._until_due()
            self._collect(self._node.clock())
            if not await self._write():
                await asyncio.sleep(_RETRY_S)

    async def _until_due(self) -> None:
        while not self._waiting:
            now = self._node.clock()
            wait_s = min((self._due.get(place, now) - now for place in self._tallies), default=inf)
            if wait_s <= 0:
                return
            # A first occurrence elsewhere is not kept waiting by what is not due yet.
            self._work.clear()
            try:
                async with asyncio.timeout(None if wait_s == inf else wait_s):
                    await self._work.wait()
            except TimeoutError:
                pass

    def _collect(self, now: float) -> None:
        """Have what is due at `now` wait to be written down."""
        for place in [place for place in self._tallies if self._due.get(place, now) <= now]:
            self._due[place] = now + PERIODS_S[place.sort]
            tally = self._tallies.pop(place)
            passage = Passage(
                direction=Passage.EGRESS,
                counterparty=place.region,
                reach=place.reach,
                after=tally.after,
                upto=self._node.revision,
                records=tally.count,
                digest=tally.digest,
                sort=place.sort,
                nonce=self._node.entropy(_NONCE_BYTES),
            )
            if len(self._waiting) < _WAITING_MAX:
                self._waiting.append(passage)
            else:
                # Nobody has led for so long that each region was counted many times over.
                _LOG.error("%d times %s for %s were not written down", tally.count, place.sort, place.region)

    async def _write(self) -> bool:
        """Have everything that waits written down; whether that came to its end."""
        while self._waiting and self.hand_over is not None:
            passage = self._waiting[0]
            try:
                await self.hand_over(passage.SerializeToString())
            except ControlPlaneError as error:
                if not self._stuck:
                    self._stuck = True
                    _LOG.warning("%s for %s: not written down yet: %s", passage.sort, passage.counterparty, error)
                # Whatever is wrong with this one, the others are not kept waiting by it.
                self._waiting.rotate(-1)
                return False
            self._stuck = False
            self._waiting.popleft()
        return not self._waiting
