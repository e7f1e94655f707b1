"""Defects to plant in a simulated fleet, to show that it can fail: each breaks one promise between regions.

They are put in from outside, by replacing one part of every process; the product itself has no switch for them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from chaos.world_node import FleetParts
from controlplane import abroad, features
from controlplane.controllers import Controllers
from controlplane.errors import ControlPlaneError, OutcomeUnknown, Refused
from controlplane.features import moves
from controlplane.federation import Federation
from controlplane.federation.exporter import Exporter, _Export
from controlplane.federation.links import Link, Links
from controlplane.federation.mover import Mover
from controlplane.federation.passages import COPY, UNCONFIRMED
from controlplane.kernel import keys
from controlplane.kernel.machine import Changed
from controlplane.kernel.store import View
from controlplane.kernel.transaction import Tx
from controlplane.node import Call, Node
from controlplane.v1 import federation_pb2 as wire
from controlplane.v1.api_pb2 import RequestHeader
from controlplane.v1.records_pb2 import Grant, Move, Partition, Passage, Reach

_EVERY = 40
_SILENT_MS = 5_000


class _Skipping(Node):
    """Now and then a cursor moves, and what it moves past is not copied."""

    _taken = 0

    def transact(self, partition: Partition, action: str, feature: Any, **options: Any) -> asyncio.Future[bytes]:
        if action == "TakeCopy":
            self._taken += 1
            if self._taken % _EVERY == 0:
                return super().transact(partition, action, _without(feature, "copy"), **options)
        return super().transact(partition, action, feature, **options)


class _Cursorless(Node):
    """Copies are written by one transaction, and their cursor is moved by the next."""

    def transact(self, partition: Partition, action: str, feature: Any, **options: Any) -> asyncio.Future[bytes]:
        if action == "TakeCopy":
            super().transact(partition, action, _without(feature, "put_cursor"), **options)
        return super().transact(partition, action, feature, **options)


def _without(feature: Callable[[Tx], RequestHeader | None], step: str) -> Callable[[Tx], RequestHeader | None]:
    def run(tx: Tx) -> RequestHeader | None:
        setattr(tx, step, lambda *_: None)
        return feature(tx)

    return run


class _Silenced(Node):
    """The stops of a region that has not been heard of for a while are heeded no more."""

    def _stop_partitions(self, environment: str) -> list[Partition]:
        now = self.clock()
        found = super()._stop_partitions(environment)
        return [p for p in found if p.home == self.region or self.abroad.age_ms(p, now) < _SILENT_MS]


class _AsIfPlannedNow(abroad.Abroad):
    """Counts ages from when an entry is applied, however old it is."""

    def took(self, view: View, changed: Iterable[Changed], current_at: Callable[[], float]) -> None:
        """See `Abroad`."""
        self._planned_after = max(self._planned_after, self.now())
        super().took(view, changed, current_at)

    now: Callable[[], float]


class _Ageless(Node):
    """Ages of copies begin anew with a process."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.abroad.__class__ = _AsIfPlannedNow
        self.abroad.now = self.clock  # type: ignore[attr-defined]


class _Deaf(Controllers):
    """What is thrown while another region is not heard of is not announced."""

    async def _announce(self, herald: Any) -> bool:
        if any(age_ms > _SILENT_MS for _, age_ms in self._node.views()):
            herald.names.clear()
            return True
        return await super()._announce(herald)


class _Retrying(Links):
    """A call whose outcome is not known is made again, under another request id."""

    async def forward(self, call: Call, home: str) -> bytes:
        """See `Links`."""
        try:
            return await super().forward(call, home)
        except OutcomeUnknown:
            if call.method not in features.WRITES:
                raise
            request: Any = features.WRITES[call.method].request.FromString(call.request)
            request.header.request_id = request.header.request_id[::-1]
            return await super().forward(call._replace(request=request.SerializeToString()), home)


class _Misled(dict[tuple[str, Reach], _Export]):
    """Streams that read what is for the jurisdiction, whatever they are for."""

    def __setitem__(self, place: tuple[str, Reach], stream: _Export) -> None:
        stream.domain = keys.domain(keys.home_and_reach(stream.domain)[0], "JURISDICTION")
        super().__setitem__(place, stream)


class _Neighbouring(Exporter):
    """Everybody is shown what is for the jurisdiction."""

    def start(self) -> None:
        """See `Exporter`."""
        self._streams = _Misled()
        super().start()


class _Forgetting(_Export):
    """What was acknowledged is forgotten before it is written down."""

    async def _acknowledged(self, ack: wire.FollowAck) -> None:
        held = self._sent
        self._sent = deque(list(held)[ack.messages :])
        spared = list(held)[: ack.messages]
        confirmed = self._confirmed
        self._confirmed = max([confirmed, *(each.revision for each in spared if each.sort == COPY)])
        passage = self._side.passage(confirmed, spared)
        self._room.set()
        if passage.records:
            await self._exporter.write_down(passage)


class _Forgetful(dict[tuple[str, Reach], _Export]):
    """Streams that do so."""

    def __setitem__(self, place: tuple[str, Reach], stream: _Export) -> None:
        stream.__class__ = _Forgetting
        super().__setitem__(place, stream)


class _Hasty(Exporter):
    """Serves such streams."""

    def start(self) -> None:
        """See `Exporter`."""
        self._streams = _Forgetful()
        super().start()


class _Ungranted(Exporter):
    """Nothing is written down before it leaves."""

    def _wanted_grants(self) -> list[Grant]:
        return []

    def check(self, link: Link, reach: Reach) -> None:
        """See `Exporter`."""
        try:
            super().check(link, reach)
        except ControlPlaneError as error:
            if error.reason != "GRANT_MISSING":
                raise


class _Unconfirmed(Exporter):
    """What nobody confirmed is not written down."""

    async def write_down(self, passage: Passage) -> None:
        """See `Exporter`."""
        if passage.sort != UNCONFIRMED:
            await super().write_down(passage)


class _Impatient(Mover):
    """Takes over a partition before all that its old home wrote has come."""

    async def adopt(self, region: str, request: wire.AdoptRequest) -> wire.AdoptReply:
        """See `Mover`."""
        hasty = wire.AdoptRequest()
        hasty.CopyFrom(request)
        hasty.sealed = 0
        return await super().adopt(region, hasty)


class _Headstrong(Mover):
    """Calls a move off without asking the region that may have taken over."""

    async def _cancel(self, partition: Partition, who: tuple[str, str]) -> None:
        move = self._node.places.moves.get(partition.id)
        if move is None or move.phase != Move.SEALED:
            raise Refused("no planned move of this partition is under way here", reason="NOT_MOVING")
        await self._transact("CancelMove", lambda tx: moves.call_off(tx, partition.id, move.epoch), who)


class _Greedy(Mover):
    """Sweeps what is quarantined with the rest."""

    def _remains(self, name: str) -> Iterator[tuple[Partition, int]]:
        for partition, _ in super()._remains(name):
            yield partition, moves.ALL


class _Sparing(Node):
    """Notes that an erasure is swept, and erases nothing."""

    def transact(self, partition: Partition, action: str, feature: Any, **options: Any) -> asyncio.Future[bytes]:
        if action == "Erase":
            feature = _without(feature, "erase")
        return super().transact(partition, action, feature, **options)


def _with(
    links: type[Links] | None = None, exporter: type[Exporter] | None = None, mover: type[Mover] | None = None
) -> Callable[..., Federation]:
    def make(*parts: Any) -> Federation:
        federation = Federation(*parts)
        federation.mover.__class__ = mover or Mover
        federation.links.__class__ = links or Links
        federation.exporter.__class__ = exporter or Exporter
        return federation

    return make


PLANTS: Mapping[str, FleetParts] = {
    "skip": FleetParts(node=_Skipping),
    "cursor": FleetParts(node=_Cursorless),
    "silence": FleetParts(node=_Silenced),
    "age": FleetParts(node=_Ageless),
    "deaf": FleetParts(controllers=_Deaf),
    "retry": FleetParts(federation=_with(links=_Retrying)),
    "range": FleetParts(federation=_with(exporter=_Neighbouring)),
    "grant": FleetParts(federation=_with(exporter=_Ungranted)),
    "hasty": FleetParts(federation=_with(exporter=_Hasty)),
    "unconfirmed": FleetParts(federation=_with(exporter=_Unconfirmed)),
    "impatient": FleetParts(federation=_with(mover=_Impatient)),
    "headstrong": FleetParts(federation=_with(mover=_Headstrong)),
    "greedy": FleetParts(federation=_with(mover=_Greedy)),
    "sparing": FleetParts(node=_Sparing),
}
"""Every defect that can be planted, by name; each class says what it breaks."""
