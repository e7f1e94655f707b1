"""Watchers of the simulated region: they follow a partition, and compare what they are told with the chronicle.

A watcher resumes at one node after the other from the last revision it knows. Now and then it stays away for so long
that its place may be gone; to be told so any earlier is a violation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

from google.protobuf.message import Message

from chaos.plane_chronicle import Written
from chaos.plane_clients import Client, Question, World
from chaos.plane_node import Broken, NotReached
from chaos.sim_oracle import Violation
from controlplane import features
from controlplane.errors import Compacted, ControlPlaneError
from controlplane.kernel import keys
from controlplane.kernel.transaction import scope_of
from controlplane.sdk.exceptions import MirrorStale
from controlplane.sdk.mirror import KINDS
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Partition

# A watcher that hears nothing for this long looks for another node; progress comes every second.
_SILENCE_S = 3.5
_AWAY_S = (5.0, 30.0)
_PROMPT = 0.9
_PROBE_S = 0.4
_AGES_MAX_S = (1.0, 2.0, 5.0)


class Watcher(Client):
    """Follows a partition, at one node after the other, and compares with the chronicle."""

    def __init__(self, world: World, number: int, partition: Partition, kinds: Sequence[str]) -> None:
        super().__init__(world, number, partition.environment)
        self._partition, self._kinds = partition, list(kinds)
        scope = scope_of(partition)
        self.prefixes = tuple(scope + keys.text(kind) for kind in kinds)
        self.cursor: int | None = None

    def strands(self) -> list[Coroutine[Any, Any, None]]:
        """Everything that this watcher does at once."""
        return [self.run()]

    async def run(self) -> None:
        """Watch until the world ends."""
        while True:
            self._node = self.random.choice(self.world.names)
            try:
                await self._follow()
            except Compacted:
                self.world.chronicle.compacted(self.cursor or 0)
                self.cursor = None
            except (TimeoutError, Broken, NotReached, ControlPlaneError):
                self.world.done["watches broken"] += 1
            await self._stay_away()

    async def _stay_away(self) -> None:
        until = self.world.now() + (0.1 if self.random.random() < _PROMPT else self.random.uniform(*_AWAY_S))
        while self.world.now() < until and not self.world.stopping:
            await self.pause(0.1)
        await self.pause(0.1)

    async def _follow(self) -> None:
        consistency = api.LINEARIZABLE if self.cursor is None else api.LOCAL
        header = api.RequestHeader(partition=self._partition.id, consistency=consistency)
        request = api.WatchRequest(header=header, kinds=self._kinds, snapshot=self.cursor is None)
        if self.cursor is not None:
            request.after_revision = self.cursor
        question = Question("Watch", request.SerializeToString(), self.actor, self.environment, api.LOCAL)
        stream = self.world.watch(self._node, question)
        self.begins(listing=request.snapshot)
        until = self.world.now() + self.random.choice((1.0, 5.0, 20.0))
        listing: dict[bytes, bytes] = {}
        try:
            while self.world.stopping or self.world.now() < until:
                async with asyncio.timeout(_SILENCE_S):
                    packed = await stream.next()
                self._take(api.WatchReply.FromString(packed), listing)
        finally:
            stream.close()

    def begins(self, *, listing: bool) -> None:
        """A watch begins, with a listing or where the last one ended."""

    def takes(self, message: api.WatchReply) -> None:
        """A message came that is what it should be."""

    def _take(self, message: api.WatchReply, listing: dict[bytes, bytes]) -> None:
        self.world.done[f"watch {api.WatchReply.Kind.Name(message.kind).lower()}"] += 1
        match message.kind:
            case api.WatchReply.STARTED:
                self._started(message.revision)
            case api.WatchReply.SNAPSHOT:
                listing.update(told(self._partition, message.changes))
            case api.WatchReply.SYNCED:
                self._listed(message.revision, listing)
            case api.WatchReply.CHANGES:
                self._changed(message)
            case api.WatchReply.PROGRESS:
                self._progressed(message.revision)
            case _:
                raise Violation(f"WATCH a message of kind {message.kind}")
        self.takes(message)

    def _started(self, revision: int) -> None:
        if self.cursor is not None and revision != self.cursor:
            raise Violation(f"WATCH resumed at {revision} instead of {self.cursor}")

    def _listed(self, revision: int, listing: dict[bytes, bytes]) -> None:
        expected = dict(written(self.world.chronicle.records(revision, self.prefixes).values()))
        if listing != expected:
            raise Violation(
                f"WATCH the listing as of {revision} differs in {sorted(listing.items() ^ expected.items())}"
            )
        self.cursor = revision

    def _changed(self, message: api.WatchReply) -> None:
        cursor, revision = self.cursor or 0, message.revision
        if revision <= cursor:
            raise Violation(f"WATCH revision {revision} came after {cursor}")
        expected = list(self.world.chronicle.between(cursor, revision, self.prefixes))
        if [found for found, _ in expected] != [revision]:
            raise Violation(f"WATCH revision {revision} after {cursor}: the revisions {expected} were to be told")
        if told(self._partition, message.changes) != written(expected[0][1]):
            raise Violation(f"WATCH the changes of revision {revision} are not those that were written")
        self.cursor = revision

    def _progressed(self, revision: int) -> None:
        cursor = self.cursor or 0
        missed = [found for found, _ in self.world.chronicle.between(cursor, revision, self.prefixes)]
        if revision < cursor or missed:
            raise Violation(f"WATCH progress from {cursor} to {revision}, without {missed}")
        self.cursor = revision

    def is_level(self) -> bool:
        """Whether everything was told."""
        chronicle = self.world.chronicle
        return self.cursor is not None and not any(chronicle.between(self.cursor, chronicle.revision, self.prefixes))


class MirrorAgent(Watcher):
    """An agent with the SDK's mirror of flags and switches, which it asks before every act."""

    def __init__(self, world: World, number: int, partition: Partition, tenants: Sequence[str]) -> None:
        super().__init__(world, number, partition, KINDS)
        self._mirror = world.parts.mirror(world.random.choice(_AGES_MAX_S))
        self._tenants = tenants

    def strands(self) -> list[Coroutine[Any, Any, None]]:
        """See `Watcher`."""
        return [self.run(), self._mark(), self._ask()]

    def begins(self, *, listing: bool) -> None:
        """See `Watcher`."""
        self._mirror.restart(KINDS, listing=listing)

    def takes(self, message: api.WatchReply) -> None:
        """See `Watcher`."""
        self._mirror.feed(KINDS, message)

    async def _mark(self) -> None:
        while True:
            asked_s = self.world.now()
            try:
                async with asyncio.timeout(_PROBE_S):
                    revision, age_ms = await self.world.probe(self._node)
            except TimeoutError:
                continue
            self._mirror.mark(asked_s, revision, age_ms)
            await self.pause(_PROBE_S / 2)

    async def _ask(self) -> None:
        while True:
            await self.pause(0.1)
            tenant, now = self.random.choice(self._tenants), self.world.now()
            try:
                engaged = bool(self._mirror.stopped(now, tenant))
            except MirrorStale:
                self.world.done["mirrors stale"] += 1
                continue
            key = keys.within(scope_of(self._partition), "switch", f"tenant:{tenant}")
            self.world.chronicle.judges(key, engaged, now, self._mirror.age_max_s)


def told(partition: Partition, changes: Iterable[api.Change]) -> list[tuple[bytes, bytes]]:
    """Changes as a caller was told of them, in a form that can be compared with `written`."""
    scope = scope_of(partition)
    return [(keys.within(scope, change.kind, change.name), _value_of(change)) for change in changes]


def written(changes: Iterable[Written]) -> list[tuple[bytes, bytes]]:
    """Changes as the chronicle has them; a record that is gone has no value."""
    return [(each.key, _plain(each)) for each in changes]


def _plain(each: Written) -> bytes:
    if each.value is None:
        return b""
    kind = features.KINDS[keys.decode(each.key).kind]
    value: Message = kind.message.FromString(each.value)
    return b"+" + value.SerializeToString(deterministic=True)


def _value_of(change: api.Change) -> bytes:
    which = change.WhichOneof("value")
    if which is None:
        return b""
    value: Message = getattr(change, which)
    return b"+" + value.SerializeToString(deterministic=True)
