"""Moves of partitions' homes: what the leaders of two regions do about them, step by step.

Theory of operation. All that is known of a move is in the log, as a record on each side (`features.moves`). The leader
looks at the records that ask for something, and does the next step; whoever leads after it goes on from there. Each
step is a transaction that holds only where the log still says what it was planned for, so that doing one twice, or
after somebody called the move off, does nothing.

1. The old home asks the new one again and again until that has taken over; then it hears of it as everybody does, from
   what the new home shows, and leaves.
2. A planned move is called off by asking the new home, which alone can tell whether it is too late. As long as it
   cannot be asked, the partition stays sealed; only a forced move cuts that knot.
3. A forced move is refused while the old home is heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from controlplane import features, limits
from controlplane.errors import ControlPlaneError, Denied, Invalid, NotFound, Refused, Unavailable
from controlplane.features import checks, federation, moves, partitions
from controlplane.federation.links import Link, Links, leads, packed
from controlplane.geography import SHARED, exported, lawful
from controlplane.identity import ENVIRONMENTS
from controlplane.kernel import keys
from controlplane.kernel.machine import Applied
from controlplane.kernel.transaction import Reader, Tx, scope_of
from controlplane.node import AGE_UNKNOWN_MS, Node
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import federation_pb2 as wire
from controlplane.v1.api_pb2 import RequestHeader
from controlplane.v1.records_pb2 import HOME_ONLY, Cursor, Move, Partition, Reach

_LOG = logging.getLogger(__name__)

_TIMEOUT_S = 5.0
_PAUSE_S: Final = 0.1
_PAUSE_FAILED_S: Final = 1.0
_KINDS_WITH_HISTORY: Final = frozenset(kind.name for kind in features.KINDS.values() if kind.history_kept != 0)

Feature = Callable[[Tx], RequestHeader | None]


class _Said(NamedTuple):
    """How a step ended: what the move waits for now, if anything, and whether that is a failure."""

    waits_for: str = ""
    failed: bool = False


class Mover:
    """Does this region's part of every move, while this node leads."""

    def __init__(self, node: Node, links: Links) -> None:
        self._node, self._links = node, links
        self._system = partitions.system(node.region)
        own = scope_of(self._system)
        self._records = (own + keys.text(moves.MOVE.name), own + keys.text(federation.FOREIGN.name))
        self._change = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.waits_for: Mapping[str, str] = {}
        """What keeps moves from going on, by partition, as far as this node saw itself."""

    def start(self) -> None:
        """Begin; idle unless this node leads."""
        self._node.on_applied(self._took)
        self._node.log.on_change(self._change.set)
        self._task = self._node.needs(asyncio.create_task(self._run(), name="moves of homes"))

    async def stop(self) -> None:
        """End at once: what is left is done by whoever leads next."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    # -- what operators want

    async def move(self, actor: str, environment: str, request: api.MovePartitionRequest) -> None:
        """Begin a move, or call it off, as an operator asked of the leader. Raises the eight errors."""
        if not leads(self._node):
            leader = self._node.log.status().leader or ""
            raise Unavailable("this node does not lead the region", reason="NOT_LEADER", leader=leader)
        partition = self._known(request.partition, environment)
        who = (actor, request.header.reason)
        if not request.header.reason.strip():
            raise Invalid("a home is moved for a reason: say it", reason="REASON_MISSING", field="header.reason")
        if request.cancel:
            await self._cancel(partition, who)
        elif request.forced:
            await self._force(partition, request, who)
        else:
            await self._seal(partition, request.to, who)

    def _known(self, name: str, environment: str) -> Partition:
        partition = self._node.places.routed(name)
        if partition is None:
            hint = "cpctl partition list"
            if moves.creator(name) in self._node.atlas.may_leave:
                hint = "of a home-only partition there is no copy elsewhere: restore a backup"
            raise NotFound("no such partition is known here", reason="PARTITION_UNKNOWN", hint=hint)
        if partition.environment != environment:
            raise Denied("the partition belongs to another environment", reason="ENVIRONMENT_MISMATCH")
        return partition

    async def _seal(self, partition: Partition, to: str, who: tuple[str, str]) -> None:
        node = self._node
        if partition.home != node.region:
            raise Refused(
                f"the partition's home is {partition.home}: only there can a move be planned",
                reason="NOT_AT_HOME",
                hint=f"ask a node of {partition.home}; if it is gone for good, --forced in the region that takes over",
            )
        if to == node.region:
            raise Refused(f"the partition's home is {to} already", reason="AT_HOME_ALREADY")
        link = self._links.get(to)
        if link is None:
            raise Refused(f"{to} is no peer of this region", reason="PEER_UNKNOWN", hint="cpctl status lists them")
        if partition.reach != HOME_ONLY:
            self._check_allowed(partition, link)
        known = node.abroad.partitions.get(partition.id)
        await self._transact("MovePartition", lambda tx: moves.seal(tx, partition, to, known), who)

    def _check_allowed(self, partition: Partition, link: Link) -> None:
        """Return if the law and both regions' operators let the partition be at home there, and known here."""
        node, word = self._node, Reach.Name(partition.reach).lower()
        for home in (moves.creator(partition.id), node.region):
            if not lawful(node.atlas, home, partition.reach, link.region):
                raise Refused(f"the law lets nothing of reach {word} be in {link.region}", reason="TARGET_NOT_LAWFUL")
        if partition.reach not in exported(node.atlas, link.region):
            raise Refused(
                f"{node.region} lets nothing of reach {word} leave for {link.region}",
                reason="MAY_NOT_LEAVE",
                hint="`may_leave` of the peer in the region file says what may",
            )
        if partition.reach not in link.receives:
            raise Refused(
                f"{link.region} shares nothing of reach {word} with this region, which could not see it any more",
                reason="TARGET_DOES_NOT_SHARE",
                hint=f"`may_leave` in the region file of {link.region}, or the link is down: cpctl status",
            )

    async def _cancel(self, partition: Partition, who: tuple[str, str]) -> None:
        move = self._node.places.moves.get(partition.id)
        if move is not None and (move.phase, move.partition.home) == (Move.CANCELLED, self._node.region):
            return
        if move is None or move.phase != Move.SEALED:
            raise Refused("no planned move of this partition is under way here", reason="NOT_MOVING")
        reply = await self._ask(move, cancel=True)
        if reply.phase != Move.CANCELLED:
            raise Refused(
                f"{move.to} is the home already, by this move or another",
                reason="MOVED_ALREADY",
                hint=f"move it back from {move.to}",
            )
        await self._transact("CancelMove", lambda tx: moves.call_off(tx, partition.id, move.epoch), who)

    async def _force(self, partition: Partition, request: api.MovePartitionRequest, who: tuple[str, str]) -> None:
        node = self._node
        if request.to not in ("", node.region):
            raise Refused(
                f"a forced move is made by the region that takes over: ask {request.to}", reason="NOT_THE_TARGET"
            )
        own = partition.home == node.region
        if partition.withdrawn:
            raise Refused(
                f"{partition.home} is its home no longer, and this region is not told which one is",
                reason="HOME_UNKNOWN",
                hint="ask the operators of the new home",
            )
        move = node.places.moves.get(partition.id)
        other = move.to if own and move is not None else partition.home
        link = self._links.get(other)
        if link is not None and link.state[0] == "up":
            raise Refused(
                f"{other} is heard: it is not gone",
                reason="HOME_HEARD",
                hint="plan the move there, or call off the one under way: --cancel",
            )
        if not own and partition.reach != HOME_ONLY and not self._may_be_here(partition):
            raise Refused("the law does not let the partition be at home here", reason="TARGET_NOT_LAWFUL")
        age_ms = 0 if own else self.copy_of(partition)[1]

        def begin(tx: Tx) -> RequestHeader:
            at = None if own else federation.cursor_at(tx.view, node.region, partition.home, partition.reach)
            return moves.begin_forced(tx, partition, at, request.upto, age_ms, request.attestation)

        await self._transact("ForceMove", begin, who)

    def _may_be_here(self, partition: Partition) -> bool:
        atlas = self._node.atlas
        homes = (moves.creator(partition.id), partition.home)
        return all(lawful(atlas, home, partition.reach, atlas.region) for home in homes)

    def copy_of(self, partition: Partition) -> tuple[Cursor | None, int]:
        """How far the partition's home is copied here, and how old that is, in milliseconds."""
        for cursor, age_ms in self._node.views():
            if (cursor.peer, cursor.reach) == (partition.home, partition.reach):
                return cursor, age_ms
        return None, AGE_UNKNOWN_MS

    # -- what the old home wants of this region

    async def adopt(self, region: str, request: wire.AdoptRequest) -> wire.AdoptReply:
        """Take over what `region`, a peer, sealed, or promise not to. Raises the eight errors."""
        node, epoch, reach = self._node, request.epoch, request.partition.reach
        partition = self._offered(region, request)
        if request.cancel:
            # Who offers it is the home: if this region takes itself to be that still, it hears so first.
            await self._transact("HearOfPartitions", lambda tx: federation.hear(tx, [partition]))
            await self._transact("DeclinePartition", lambda tx: federation.decline(tx, partition, epoch))
            return self._replied(region, request)
        if not self._may_be_here(partition):
            raise Refused(f"the law does not let the partition be in {node.region}", reason="TARGET_NOT_LAWFUL")
        if reach not in exported(node.atlas, region):
            raise Refused(
                f"{node.region} lets nothing of this reach leave for {region}", reason="TARGET_DOES_NOT_SHARE"
            )

        def begin(tx: Tx) -> RequestHeader | None:
            cursor = federation.cursor_at(tx.view, node.region, region, reach)
            return moves.begin(tx, partition, epoch, request.sealed, cursor)

        await self._transact("AdoptPartition", begin)
        return self._replied(region, request)

    def _offered(self, region: str, request: wire.AdoptRequest) -> Partition:
        """The partition that `region` wants to be rid of, as this region knows it. Raises `Invalid` or `Unavailable`.

        What is not known here cannot be taken over; but it can be said that it never will be.
        """
        named, known = request.partition, self._node.abroad.partitions.get(request.partition.id)
        checks.name(named.id, "partition.id")
        known_words = named.reach in SHARED and named.environment in ENVIRONMENTS
        if named.home != region or request.epoch <= named.epoch or not known_words:
            raise Invalid("not a move of a partition of the sender's", reason="MOVE_MALFORMED")
        if known is not None and (known.home, known.epoch, known.reach) == (region, named.epoch, named.reach):
            return known
        if request.cancel:
            here = self._node.places.routed(named.id)
            same = here is None or (here.reach, here.environment) == (named.reach, named.environment)
            if not same or not lawful(self._node.atlas, moves.creator(named.id), named.reach, region):
                raise Invalid("not a partition that the sender may be the home of", reason="MOVE_MALFORMED")
            # From then on callers here are led by it to that region, until more is told of it.
            return Partition(
                id=named.id,
                home=region,
                epoch=named.epoch,
                reach=named.reach,
                environment=named.environment,
                former=named.former,
            )
        raise Unavailable("the partition is not copied here yet", reason="COPY_INCOMPLETE")

    def _replied(self, region: str, request: wire.AdoptRequest) -> wire.AdoptReply:
        node, name = self._node, request.partition.id
        move = node.places.moves.get(name)
        reply = wire.AdoptReply()
        reply.copied = federation.cursor_at(node.store, node.region, region, request.partition.reach).revision
        if move is not None and (move.partition.home, move.epoch) == (region, request.epoch):
            reply.phase = move.phase
        elif move is not None and moves.is_declined(move, node.region, request.epoch):
            reply.phase = Move.CANCELLED
        return reply

    # -- the steps

    def _took(self, applied: Applied) -> None:
        if any(changed.key.startswith(self._records) for changed in applied.changed):
            self._change.set()

    async def _run(self) -> None:
        while True:
            self._change.clear()
            pause_s = None
            if leads(self._node):
                pause_s = await self._round()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._change.wait()

    async def _round(self) -> float | None:
        """Do what is to be done now; returns when to look again, in seconds, if nothing changes."""
        region = self._node.region
        due = [
            move
            for move in self._node.places.moves.values()
            if move.phase == (Move.ADOPTING if move.to == region else Move.SEALED)
        ]
        *said, swept = await asyncio.gather(*(self._step(move) for move in due), self._sweep())
        self.waits_for = {move.partition.id: each.waits_for for move, each in zip(due, said, strict=True)}
        if swept.failed or any(each.failed for each in said):
            return _PAUSE_FAILED_S
        return _PAUSE_S if due else None

    async def _sweep(self) -> _Said:
        """Remove what is here of former homes, and of those that never came to be; but for what is quarantined."""
        node = self._node
        try:
            # In an order that does not differ from process to process.
            for name in dict.fromkeys((*node.places.moves, *node.abroad.partitions)):
                for partition, upto in self._remains(name):
                    await self._all(partition, "SweepPartition", lambda tx, upto=upto: moves.sweep(tx, upto))  # type: ignore[misc]
        except ControlPlaneError as error:
            _LOG.warning("what is left of former homes will be removed later: %s", error)
            return _Said(f"{error.reason}: {error}", failed=True)
        return _Said()

    def _remains(self, name: str) -> Iterator[tuple[Partition, int]]:
        """The partition as it was here before, and the revision of this region's up to which that is of no use."""
        node = self._node
        move, now = node.places.moves.get(name), node.places.shown(name)
        if move is not None and (move.phase, move.to) == (Move.CANCELLED, node.region):
            yield moves.adopted(move), moves.ALL
        # What is being taken over may be what a former home had.
        if now is not None and (move is None or move.phase != Move.ADOPTING):
            yield from moves.remains(node.store, node.region, now, sorted({node.region, *node.atlas.jurisdictions}))

    async def _step(self, move: Move) -> _Said:
        """Do the next step of a move."""
        try:
            if move.phase == Move.SEALED:
                return _Said(await self._press(move))
            after = moves.adopted(move)
            await self._all(after, "TakeOver", lambda tx: self._take_over(tx, move))
            await self._transact("AdoptPartition", lambda tx: moves.finish(tx, move))
        except ControlPlaneError as error:
            _LOG.warning("a step of a move will be tried again: %s", error)
            return _Said(f"{error.reason}: {error}", failed=True)
        return _Said()

    def _take_over(self, tx: Tx, move: Move) -> RequestHeader | None:
        held = self._node.status()
        if held.live_bytes > held.quota_bytes + limits.QUOTA_RESERVED_BYTES // 2:
            raise Unavailable("this region's store is full: nothing more is taken over", reason="STORE_FULL")
        return moves.take_over(tx, move, _KINDS_WITH_HISTORY)

    async def _press(self, move: Move) -> str:
        reply = await self._ask(move, cancel=False)
        if reply.phase == Move.CANCELLED:
            # Somebody called it off, and the word of it got lost.
            await self._transact("CancelMove", lambda tx: moves.call_off(tx, move.partition.id, move.epoch))
            return ""
        if reply.phase == Move.ADOPTED:
            return f"{move.to} is the home: this region copies what it has"
        if reply.phase == Move.ADOPTING:
            return f"{move.to} is taking over"
        return f"{move.to} has copied up to revision {reply.copied} of {move.upto}"

    async def _ask(self, move: Move, *, cancel: bool) -> wire.AdoptReply:
        link = self._links.get(move.to)
        if link is None:
            raise Unavailable(f"{move.to} is no peer of this region", reason="PEER_UNKNOWN")
        request = wire.AdoptRequest(
            terms=packed(link.terms), partition=move.partition, epoch=move.epoch, sealed=move.upto, cancel=cancel
        )
        return await link.adopt(request)

    async def _all(self, partition: Partition, action: str, feature: Feature) -> None:
        """Repeat a transaction of the partition until it has nothing to do."""
        step = b"-"
        while step:
            step = await self._node.transact(partition, action, feature, timeout_s=_TIMEOUT_S)

    async def _transact(self, action: str, feature: Feature, who: tuple[str, str] = ("", "")) -> None:
        await self._node.transact(self._system, action, feature, timeout_s=_TIMEOUT_S, actor=who[0], reason=who[1])


def moved_at(node: Node, partition: str) -> api.Meta:
    """Who ordered the newest step of a partition's move here, when and why."""
    row = Reader(node.store, partitions.system(node.region), node.revision).get(moves.MOVE, partition)
    return checks.meta(row) if row is not None else api.Meta()
