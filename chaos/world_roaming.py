"""A partition whose home moves about a simulated fleet: who works in it, who moves it, and what must hold of it.

It belongs to no region for long, so nothing that judges a region knows of it. Workers of every region compare and swap
the same workflows in it, each by way of its own region; operators of every region have it moved, and call that off,
while everything breaks. All that was told, anywhere, is one history, and has to have one order that explains it: an
acknowledged write that a move lost, or two homes that both write, leave none. At the end everybody knows of one home,
and has what is there.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from chaos.plane_agents import Worker
from chaos.plane_clients import Client, Question, World
from chaos.plane_node import Broken, NotReached
from chaos.sim_oracle import Violation
from chaos.world_clients import Visit
from controlplane.checking.histories import Recorder
from controlplane.checking.linearizability import check
from controlplane.checking.models import Register
from controlplane.errors import Contended, ControlPlaneError, OutcomeUnknown, Unavailable
from controlplane.kernel import keys
from controlplane.kernel.store import View
from controlplane.kernel.transaction import scope_of
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Move, Partition
from controlplane.v1.state_pb2 import Event

if TYPE_CHECKING:
    from chaos.world_region import Home

PART = "roam"
_ASKS_S = (1.0, 3.0, 6.0)
_BACKOFF_S = 0.1
_MOVES_S = 3.0
_CALLED_OFF, _CALLED_OFF_S = 0.5, 0.3
_NO_MORE_S = 28.0
"""So long before the end nobody begins to move it any more."""


class Roaming:
    """What is known of the partition from outside."""

    def __init__(self, creator: str) -> None:
        self.id = f"{creator}.prod.{PART}"
        self.history = Recorder()
        self.counts: Counter[str] = Counter()

    def conclude(self, regions: Mapping[str, Home]) -> None:
        """Check everything that must hold when all is quiet. Raises `Violation`."""
        placed = {name: self._placed(home) for name, home in regions.items()}
        if len({(p.home, p.epoch) for p in placed.values()}) > 1:
            raise Violation(f"HOMES { ({name: (p.home, p.epoch) for name, p in placed.items()}) }")
        home = next(iter(placed.values())).home
        stores = {name: region.replicas()[0].store for name, region in regions.items()}
        there = _records(stores[home], placed[home])
        for name, store in stores.items():
            here = _records(store, placed[name])
            if here != there:
                raise Violation(f"HOME_COPY {name} has {here}, and {home}, the home, {there}")
        operations = self.history.history().operations
        self.counts["operations on a moving partition"] += len(operations)
        self.counts["homes that a partition had"] += placed[home].epoch
        result = check(operations, Register())
        if not result.ok:
            raise Violation(f"LINEARIZABILITY of a moving partition: {'; '.join(map(str, result.failures))}")

    def _placed(self, home: Home) -> Partition:
        places = home.replicas()[0].plane.places
        move, found = places.moves.get(self.id), places.routed(self.id)
        if found is None or (move is not None and move.phase in (Move.SEALED, Move.ADOPTING)):
            raise Violation(f"MOVE_UNFINISHED {home.region} knows {found} and {move}")
        return found


def _records(store: View, partition: Partition) -> dict[str, tuple[bytes, int]]:
    """What a region has of the partition as it is now: value and version by name."""
    found = {}
    for _, packed in store.scan(*keys.children(keys.RECORD + scope_of(partition) + keys.text("workflow"))):
        event = Event.FromString(packed)
        version = event.origin.version if event.HasField("origin") else event.version
        found[keys.decode(event.key).name] = (event.value, version)
    return found


class _Anywhere(Visit):
    """The world of those who work in it: histories and revisions of single regions say nothing here."""

    def __init__(self, here: Home) -> None:
        super().__init__(here, here.region)

    @property
    def history(self) -> Recorder:
        """What everybody was told of the partition."""
        return self._here.fleet.roaming.history

    def ask(self, name: str, question: Question, timeout_s: float) -> asyncio.Future[bytes]:
        """See `World`; nothing that was seen elsewhere is a floor."""
        return self._here.ask_with(name, question, timeout_s, 0)


class Rover(Worker):
    """Moves workflows on, wherever their home is; what may have happened it does not ask for again."""

    def __init__(self, home: Home, number: int) -> None:
        super().__init__(cast(World, _Anywhere(home)), number, "prod", ["w0", "w1"])
        self._partition = home.fleet.roaming.id

    async def write(self, method: str, request: Any, *, reason: str = "") -> Any:
        """See `Client`."""
        request_id = self.random.randbytes(16)
        request.header.request_id, request.header.partition = request_id, self._partition
        packed = request.SerializeToString()
        return await self._asked(
            Question(method, packed, self.actor, self.environment, request=(self.actor, request_id))
        )

    async def read(self, method: str, request: Any, consistency: int = api.LINEARIZABLE) -> Any:
        """See `Client`."""
        request.header.partition, request.header.consistency = self._partition, consistency
        try:
            packed = request.SerializeToString()
            return await self._asked(Question(method, packed, self.actor, self.environment, consistency))
        except OutcomeUnknown as unknown:
            raise Unavailable(str(unknown), reason=unknown.reason) from unknown

    async def _asked(self, question: Question) -> Any:
        deadline = self.world.now() + self.random.choice(_ASKS_S)
        error: ControlPlaneError = Unavailable("nobody answered", reason="NO_ANSWER")
        while (left_s := deadline - self.world.now()) > 0:
            self._node = self.random.choice(self.world.names)
            try:
                return await self._attempt(question, left_s)
            except (Unavailable, Contended) as failure:
                error = failure
            await self.pause(_BACKOFF_S)
        raise error

    def _told(self, question: Question, packed: bytes) -> Any:
        self.world.done[f"{question.method} of a moving partition"] += 1
        return getattr(api, f"{question.method}Reply").FromString(packed)

    def _refused(self, question: Question, refusal: ControlPlaneError) -> None:
        self.world.done[f"{question.method} of a moving partition refused"] += 1


class Remover(Client):
    """Has the partition moved elsewhere, if its home is here, or calls that off."""

    def __init__(self, home: Home, number: int) -> None:
        super().__init__(cast(World, _Anywhere(home)), number, "prod", "operator")
        self._home = home

    async def work(self) -> None:
        """See `Client`."""
        await self.pause(_MOVES_S)
        fleet = self._home.fleet
        if fleet.now() > fleet.schedule.seconds - _NO_MORE_S:
            return
        to = self.random.choice([name for name in fleet.names if name != self._home.region])
        if await self._wants(api.MovePartitionRequest(to=to), "moves begun") and self.random.random() < _CALLED_OFF:
            await self.pause(_CALLED_OFF_S)
            await self._wants(api.MovePartitionRequest(cancel=True), "moves called off")

    async def _wants(self, request: api.MovePartitionRequest, done: str) -> bool:
        request.partition, request.header.reason = self._home.fleet.roaming.id, "it is tried out"
        question = Question("MovePartition", request.SerializeToString(), self.actor, self.environment)
        try:
            async with asyncio.timeout(_ASKS_S[-1]):
                await self.world.ask(self.random.choice(self.world.names), question, _ASKS_S[-1])
        except (TimeoutError, Broken, NotReached, ControlPlaneError) as error:
            self.world.done[f"{done}, not: {getattr(error, 'reason', 'BROKEN')}"] += 1
            return False
        self.world.done[done] += 1
        return True
