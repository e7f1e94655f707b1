"""What the leader does on its own account: partitions of the region file, leases, what is past keeping, news of kills.

All of it goes through the log as ordinary transactions, guarded by what was seen, so it is harmless if two nodes
believe that they lead, or if one does it twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from controlplane import limits
from controlplane.errors import ControlPlaneError
from controlplane.features import leases, moves, partitions, switches
from controlplane.kernel import keys
from controlplane.kernel.machine import Applied
from controlplane.kernel.transaction import Reader, Tx, scope_of
from controlplane.node import Node
from controlplane.v1.api_pb2 import RequestHeader
from controlplane.v1.records_pb2 import Election, Partition, Retention
from controlplane.v1.state_pb2 import Event

_LOG = logging.getLogger(__name__)

TICK_S = 0.05
STALL_S = 0.5
"""A pause of the loop longer than this says nothing about holders: every lease starts again at full length."""
_TIMEOUT_S = 5.0
_NAMES_MAX = 64
"""Switches that one transaction announces."""


class Reaper:
    """Knows how long each lease has stood still, on this node's clock. Pure: times and changes are inputs."""

    def __init__(self) -> None:
        self._due: dict[bytes, tuple[int, float, float]] = {}
        self._last_tick: float | None = None

    def arm(self, key: bytes, revision: int, ttl_s: float, now: float) -> None:
        """The lease stands at `revision` since now."""
        self._due[key] = (revision, now + ttl_s, ttl_s)

    def forget(self, key: bytes) -> None:
        """The lease is gone."""
        self._due.pop(key, None)

    def clear(self) -> None:
        """Forget all leases."""
        self._due.clear()
        self._last_tick = None

    def expired(self, now: float) -> list[tuple[bytes, int]]:
        """Leases that stood still for their whole time, with the revision they stand at."""
        stalled = self._last_tick is not None and now - self._last_tick > STALL_S
        self._last_tick = now
        if stalled:
            self._due = {key: (revision, now + ttl_s, ttl_s) for key, (revision, _, ttl_s) in self._due.items()}
        return [(key, revision) for key, (revision, due, _) in self._due.items() if due <= now]


class Controllers:
    """The leader-only loops of one node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._reaper = Reaper()
        self._term: int | None = None
        self._home = node.partitions
        self._partitions_of: dict[bytes, Partition] = {}
        self._elections: tuple[bytes, ...] = ()
        self._find_partitions()
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._retention = Retention()
        self._heralds = _heralds(node)
        self._news = asyncio.Event()

    def start(self) -> None:
        """Begin; idle unless this node leads."""
        self._node.on_applied(self._took)
        work = (self._run(), self._announce_forever(), self._trim_forever())
        self._tasks = tuple(self._node.needs(asyncio.create_task(each)) for each in work)

    async def stop(self) -> None:
        """Stop at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            status = self._node.log.status()
            if not status.ready:
                self._term = None
                for herald in self._heralds:
                    # Whoever leads next compares all of them.
                    herald.names.clear()
            elif self._term != status.term:
                await self._begin(status.term)
            else:
                # Together: one after the other would take so long that the rest look like a stall of this loop.
                await asyncio.gather(*(self._expire(*due) for due in self._reaper.expired(self._node.clock())))
            await asyncio.sleep(TICK_S)

    async def _begin(self, term: int) -> None:
        """Take over: every lease starts again at full length, and every switch is compared with what was told."""
        self._arm_all()
        if await self._attempt("DeclarePartitions", partitions.system(self._node.region), self._declare):
            self._term = term
            await self._look_for_news()

    def _find_partitions(self) -> None:
        self._partitions_of = {scope_of(p): p for p in self._home.values()}
        self._elections = tuple(scope + keys.text(leases.ELECTION.name) for scope in self._partitions_of)

    def _arm_all(self) -> None:
        self._reaper.clear()
        now = self._node.clock()
        for prefix in self._elections:
            start, end = keys.children(keys.RECORD + prefix)
            for row_key, packed in self._node.store.scan(start, end):
                self._arm(row_key[len(keys.RECORD) :], packed, now)

    def _arm(self, key: bytes, packed: bytes, now: float) -> None:
        event = Event.FromString(packed)
        self._reaper.arm(key, event.revision, Election.FromString(event.value).ttl_ms / 1000, now)

    def _declare(self, tx: Tx) -> RequestHeader | None:
        declared = [partitions.declare(tx, partition) for partition in self._node.places.declared.values()]
        return RequestHeader() if any(declared) else None

    async def _look_for_news(self) -> None:
        """Compare all switches with what was told of them, in parts: who leads must not be silent for long."""
        node = self._node
        for herald in self._heralds:
            after = ""
            while True:
                thrown, told = (Reader(node.store, p, node.revision) for p in (herald.thrown, herald.told))
                news, after = switches.unannounced(node.fleet, thrown, told, after)
                herald.names.update(news)
                self._news.set()
                if not after:
                    break
                await asyncio.sleep(0)

    async def _announce_forever(self) -> None:
        """Tell of switches as soon as they are thrown: a kill does not wait for a tick."""
        while True:
            await self._news.wait()
            self._news.clear()
            while any(herald.names for herald in self._heralds) and self._node.log.status().ready:
                done = await asyncio.gather(*(self._announce(herald) for herald in self._heralds if herald.names))
                if not all(done):
                    await asyncio.sleep(TICK_S)

    async def _announce(self, herald: _Herald) -> bool:
        # What is thrown again meanwhile is added again.
        names = {herald.names.pop() for _ in range(min(_NAMES_MAX, len(herald.names)))}

        def announce(tx: Tx) -> RequestHeader | None:
            return switches.announce(tx, self._node.fleet, herald.thrown, sorted(names))

        if await self._attempt("AnnounceStops", herald.told, announce):
            return True
        herald.names |= names
        return False

    async def _trim_forever(self) -> None:
        """Trim apart from the leases, to which a round that takes long would look like a stall."""
        while True:
            if self._term is not None:
                await self._drop_old()
            await asyncio.sleep(TICK_S)

    async def _drop_old(self) -> None:
        """Drop what is past keeping, step by step, until nothing is or the round is over."""
        system = partitions.system(self._node.region)
        for _ in range(limits.TRIM_STEPS_MAX):
            if self._due(self._retention, self._node.revision) == self._retention:
                return
            if not await self._attempt("Trim", system, self._trim):
                return

    async def _expire(self, key: bytes, revision: int) -> None:
        partition = next((p for scope, p in self._partitions_of.items() if key.startswith(scope)), None)
        name = keys.decode(key).name
        if partition is None:
            self._reaper.forget(key)
            return
        if self._node.places.sealed(partition.id) is not None:
            return

        term = self._term

        def expire(tx: Tx) -> RequestHeader | None:
            # A plan that conflicted may be made again after another leader came and went: then it counts anew.
            if self._node.log.status().term != term:
                return None
            moves.check_open(tx, self._node.region, partition)
            return RequestHeader() if leases.expire(tx, name, revision) else None

        if await self._attempt("ExpireElection", partition, expire) and self._node.store.get(keys.RECORD + key) is None:
            self._reaper.forget(key)

    def _trim(self, tx: Tx) -> RequestHeader | None:
        row = tx.get(partitions.RETENTION, partitions.RETENTION_NAME)
        kept = row.value if row else Retention()
        self._retention = self._due(kept, tx.revision)
        if self._retention == kept:
            return None
        tx.put(partitions.RETENTION, partitions.RETENTION_NAME, self._retention, quiet=True)
        if self._retention.event_floor > kept.event_floor:
            for domain in sorted({keys.domain_of(scope_of(p)) for p in self._all_partitions()}):
                tx.trim(*keys.events(domain, kept.event_floor + 1, self._retention.event_floor))
        if self._retention.outcome_slice > kept.outcome_slice:
            tx.trim(*keys.outcome_slices(kept.outcome_slice, self._retention.outcome_slice))
        return RequestHeader()

    def _due(self, kept: Retention, revision: int) -> Retention:
        return _past_keeping(kept, revision, self._node.state.outcome_span)

    def _all_partitions(self) -> list[Partition]:
        node = self._node
        own = [partitions.system(node.region), *node.places.declared.values(), *node.partitions.values()]
        return [*own, *node.abroad.partitions.values()]

    async def _attempt(self, action: str, partition: Partition, feature: Callable[[Tx], RequestHeader | None]) -> bool:
        try:
            await self._node.transact(partition, action, feature, timeout_s=_TIMEOUT_S)
        except ControlPlaneError as error:
            _LOG.warning("%s failed, and will be tried again: %s", action, error)
            return False
        return True

    def _took(self, applied: Applied) -> None:
        # On every node: between a new leader's listing and its first tick nothing may be missed.
        now = self._node.clock()
        if self._home is not self._node.partitions:
            # Leases came along, or went: whoever holds one has its full length again.
            self._home = self._node.partitions
            self._find_partitions()
            self._arm_all()
        for changed in applied.changed:
            for herald in self._heralds:
                if changed.key.startswith(herald.keys):
                    herald.names.add(keys.decode(changed.key).name)
                    self._news.set()
            if not changed.key.startswith(self._elections):
                continue
            if changed.event.HasField("value"):
                self._arm(changed.key, changed.encoded, now)
            else:
                self._reaper.forget(changed.key)


class _Herald:
    """What there is to tell of the switches of one environment: thrown here, told there."""

    def __init__(self, thrown: Partition, told: Partition) -> None:
        self.thrown, self.told = thrown, told
        self.keys = scope_of(thrown) + keys.text(switches.SWITCH.name)
        self.names: set[str] = set()


def _heralds(node: Node) -> tuple[_Herald, ...]:
    """One for each environment whose switches may be told of."""
    of = {(p.environment, kind): p for p in node.places.declared.values() for kind in p.default_for}
    return tuple(
        _Herald(thrown, of[environment, switches.STOP.name])
        for (environment, kind), thrown in of.items()
        if kind == switches.SWITCH.name and (environment, switches.STOP.name) in of
    )


def _past_keeping(kept: Retention, revision: int, span: int) -> Retention:
    """How far the next step of trimming goes; `kept` itself if nothing is due."""
    floor, cut = kept.event_floor, kept.outcome_slice
    if revision - limits.EVENTS_KEPT - floor >= limits.TRIM_REVISIONS:
        floor += limits.TRIM_REVISIONS
    # Only the present generation of outcomes and the one before are ever asked for.
    last = max(0, revision // span - 1) << 8
    slices = max(1, 2 * limits.TRIM_REVISIONS * 256 // span)
    return Retention(event_floor=floor, outcome_slice=min(last, cut + slices))
