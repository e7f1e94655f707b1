"""A partition whose home moves about a simulated fleet: who works in it, who moves it, and what must hold of it.

It belongs to no region for long, so nothing that judges a region knows of it. Workers of every region compare and swap
the same workflows in it, each by way of its own region; operators of every region have it moved, and call that off,
or take it over by force while its home cannot be heard, and everything breaks.

1. The home that everybody knows at the end says which homes came before it, and up to where they count. All that was
   told of that, anywhere, is one history, and has to have one order that explains it: an acknowledged write that a move
   lost, or two homes that both write, leave none.
2. Whatever else was written was given up: by a forced move, and by none that was planned. It lies where it was written,
   each record as it was written last, is listed there, and is nowhere else.
3. A region writes only as the home that its own log says it is; of one epoch there are two homes only by force.
4. At the end everybody knows of one home, has what is there, and nothing of any other.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from chaos.plane_agents import Worker
from chaos.plane_clients import Client, Question, World
from chaos.plane_node import Broken, NotReached
from chaos.sim_oracle import Violation
from chaos.world_clients import Visit
from controlplane.checking.histories import Operation, Recorder, Value
from controlplane.checking.linearizability import check
from controlplane.checking.models import Register
from controlplane.errors import Contended, ControlPlaneError, OutcomeUnknown, Unavailable
from controlplane.features import moves
from controlplane.kernel import keys
from controlplane.kernel.machine import Applied, Changed
from controlplane.kernel.store import View
from controlplane.kernel.transaction import scope_of
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Move, Partition, Workflow
from controlplane.v1.state_pb2 import Event

if TYPE_CHECKING:
    from chaos.world_region import Home

PART = "roam"
_T = TypeVar("_T")
_ASKS_S = (1.0, 3.0, 6.0)
_BACKOFF_S = 0.1
_NEVER_AGAIN = ("EPOCH_CHANGED", "OUTCOME_FORGOTTEN")
_MOVES_S = 3.0
_FORCES_S, _FORCED = 1.0, 0.15
_CALLED_OFF, _CALLED_OFF_S = 0.5, 0.3
_NO_MORE_S = 28.0
"""So long before the end nobody begins to move it any more."""


class Place(NamedTuple):
    """Where something was written, or read."""

    home: str
    epoch: int
    revision: int


class Roaming:
    """What is known of the partition from outside."""

    def __init__(self, creator: str) -> None:
        self.id = f"{creator}.prod.{PART}"
        self.history = Recorder()
        self.counts: Counter[str] = Counter()
        self.read_at: dict[tuple[int, int], Place] = {}
        """Where what was answered, by the operation's process and the moment of its call."""
        self._written: dict[Value, Place] = {}
        """Where each state was written; no two are the same."""
        self._home: dict[str, tuple[int, bool]] = {creator: (1, True)}
        """By region: the epoch in which it is the home, as its own log says, and whether it may write."""
        self._begun: dict[int, dict[str, bool]] = {1: {creator: False}}
        """By epoch: who began it, and whether by force."""
        self._own: dict[tuple[str, int], dict[bytes, Event]] = {}
        """What was written last under each home and epoch, in that region."""
        self._left: dict[tuple[str, int], int] = {}
        """Up to where the next home, of whatever line, has what this one had written."""

    def applied(self, region: str, applied: Applied) -> None:
        """A region has applied an entry. Raises `Violation`."""
        for each in applied.changed:
            key = keys.decode(each.key)
            if key.kind == "move" and key.name == self.id and key.home == region:
                self._moves(region, Move.FromString(each.event.value))
            elif key.partition == self.id and key.home == region:
                self._writes(region, key, each)

    def _moves(self, region: str, move: Move) -> None:
        self.counts[f"moves {Move.Phase.Name(move.phase).lower()}{' by force' if move.forced else ''}"] += 1
        if move.phase == Move.ADOPTED:
            self._home[region] = move.epoch, True
            self._left_for_another(move)
            self._begun.setdefault(move.epoch, {})[region] = move.forced
            if len(self._begun[move.epoch]) > 1 and not any(self._begun[move.epoch].values()):
                raise Violation(f"TWO_HOMES {sorted(self._begun[move.epoch])} of epoch {move.epoch}, none by force")
        elif move.partition.home == region:
            self._home[region] = move.partition.epoch, move.phase == Move.CANCELLED
            if move.phase == Move.LEFT:
                self._left_for_another(move)

    def _left_for_another(self, move: Move) -> None:
        was = move.partition.home, move.partition.epoch
        self._left[was] = max(move.upto, self._left.get(was, 0))

    def _writes(self, region: str, key: keys.Key, changed: Changed) -> None:
        event = changed.event
        if event.action == "SweepPartition":
            return
        self._own.setdefault((region, key.epoch), {})[changed.key] = event
        if event.action == "TakeOver":
            return
        if self._home.get(region) != (key.epoch, True):
            raise Violation(f"WROTE_LATE {region} did {event.action} in epoch {key.epoch}: {self._home.get(region)}")
        if key.kind == "workflow" and event.HasField("value"):
            self._written[Workflow.FromString(event.value).state.decode()] = Place(region, key.epoch, event.revision)

    def conclude(self, regions: Mapping[str, Home]) -> None:
        """Check everything that must hold when all is quiet. Raises `Violation`."""
        placed = {name: self._placed(home) for name, home in regions.items()}
        if len({(p.home, p.epoch) for p in placed.values()}) > 1:
            raise Violation(f"HOMES { ({name: (p.home, p.epoch) for name, p in placed.items()}) }")
        now = next(iter(placed.values()))
        stores = {name: region.replicas()[0].store for name, region in regions.items()}
        there = _records(stores[now.home], now)
        for name, store in stores.items():
            here = _records(store, placed[name])
            if here != there:
                raise Violation(f"HOME_COPY {name} has {here}, and {now.home}, the home, {there}")
        counts_upto: dict[tuple[str, int], float] = {(each.home, each.epoch): each.upto for each in now.former}
        counts_upto[now.home, now.epoch] = inf
        self._given_up(counts_upto, placed, stores)
        operations = [*self._counted(counts_upto)]
        self.counts["operations on a moving partition"] += len(operations)
        self.counts["homes that a partition had"] += len(now.former) + 1
        result = check(operations, Register())
        if not result.ok:
            raise Violation(f"LINEARIZABILITY of a moving partition: {'; '.join(map(str, result.failures))}")

    def _given_up(
        self, counts_upto: Mapping[tuple[str, int], float], placed: Mapping[str, Partition], stores: Mapping[str, View]
    ) -> None:
        """What does not count is listed where it was written, once, as it was written last, and is nowhere else."""
        wanted: dict[str, set[tuple[bytes, int]]] = {name: set() for name in stores}
        twice: dict[str, set[tuple[bytes, int]]] = {name: set() for name in stores}
        for (region, epoch), lies in self._own.items():
            # What was taken over for nothing is not kept.
            if region not in self._begun.get(epoch, {}):
                continue
            counts, left = counts_upto.get((region, epoch), 0), self._left.get((region, epoch), 0)
            for key, event in lies.items():
                # What another home has that lost as well is in its quarantine; if that was heard in time, here too.
                if event.revision > counts:
                    (wanted if event.revision > left else twice)[region].add((key, event.revision))
        for name, store in stores.items():
            listed = [(each.key, each.revision) for each in moves.quarantined(store, name, placed[name])]
            once = len(set(listed)) == len(listed)
            if not once or not wanted[name] <= set(listed) <= wanted[name] | twice[name]:
                raise Violation(f"QUARANTINE {name} lists {_said(listed)} of what was given up, {_said(wanted[name])}")
            self.counts["records quarantined"] += len(listed)
            now = scope_of(placed[name])
            for key in self._everything(store):
                if not key.startswith(now) and key not in {each for each, _ in listed}:
                    raise Violation(f"LEFT_BEHIND {name} still has {_said([(key, 0)])}")

    def _everything(self, store: View) -> Iterator[bytes]:
        """The keys of all records of the partition that a region has, of whatever home and epoch."""
        for row, _ in store.scan(*keys.children(keys.RECORD)):
            key = row[len(keys.RECORD) :]
            if keys.decode(key).partition == self.id:
                yield key

    def _counted(self, counts_upto: Mapping[tuple[str, int], float]) -> Iterator[Operation]:
        """The operations on what was not given up."""
        forced = any(any(each.values()) for each in self._begun.values())
        for each in self.history.history().operations:
            if each.kind == "read":
                at = self.read_at.get((each.process, each.called))
                # A former home may have shown what it had for a while after it was one no longer; and who has no such
                # record does not say where it has none.
                if not forced or (at is not None and at.revision < counts_upto.get((at.home, at.epoch), 0)):
                    yield each
                continue
            argument = each.argument
            at = self._written.get(argument[1] if isinstance(argument, tuple) else argument)
            if at is None and not each.unknown and each.result is not None:
                raise Violation(f"ACKNOWLEDGED_LOST {each} was never applied anywhere")
            if at is not None and at.revision > counts_upto.get((at.home, at.epoch), 0):
                self.counts["writes given up"] += 1
            elif at is not None or not forced:
                yield each

    def _placed(self, home: Home) -> Partition:
        places = home.replicas()[0].plane.places
        move, found = places.moves.get(self.id), places.routed(self.id)
        if found is None or (move is not None and move.phase in (Move.SEALED, Move.ADOPTING)):
            raise Violation(f"MOVE_UNFINISHED {home.region} knows {found} and {move}")
        return found


def _said(records: Iterable[tuple[bytes, int]]) -> list[str]:
    """Records for people."""
    found = ((keys.decode(key), revision) for key, revision in sorted(records))
    return [f"{key.kind} {key.name} of {key.home} {key.epoch} at {revision}" for key, revision in found]


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
    """Moves workflows on, wherever their home is.

    What may have happened it asks for again if it had said of which epoch it is, as the SDK does.
    """

    def __init__(self, home: Home, number: int) -> None:
        super().__init__(cast(World, _Anywhere(home)), number, "prod", ["w0", "w1"])
        self._roaming = home.fleet.roaming
        self._partition = self._roaming.id
        self._epoch = self._called = 0

    async def recorded(
        self, key: str, kind: str, argument: Value, asking: Awaitable[_T], answer: Callable[[_T], Value]
    ) -> _T | None:
        """See `Client`; where the answer comes from is written down as well."""
        self._called = self._ns()
        return await super().recorded(key, kind, argument, asking, answer)

    async def write(self, method: str, request: Any, *, reason: str = "") -> Any:
        """See `Client`."""
        request_id = self.random.randbytes(16)
        request.header.request_id, request.header.partition = request_id, self._partition
        request.header.epoch = self._epoch
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
        doubt: OutcomeUnknown | None = None
        while (left_s := deadline - self.world.now()) > 0:
            self._node = self.random.choice(self.world.names)
            try:
                return await self._attempt(question, left_s)
            except OutcomeUnknown as unknown:
                if not self._epoch or unknown.reason in _NEVER_AGAIN:
                    raise
                doubt = unknown
            except (Unavailable, Contended) as failure:
                error = failure
            await self.pause(_BACKOFF_S)
        raise doubt or error

    def _told(self, question: Question, packed: bytes) -> Any:
        self.world.done[f"{question.method} of a moving partition"] += 1
        reply = getattr(api, f"{question.method}Reply").FromString(packed)
        header = reply.header
        self._roaming.read_at[self.number, self._called] = Place(header.region, header.epoch, header.revision)
        self._epoch = header.epoch
        return reply

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
        if self._is_over:
            return
        fleet = self._home.fleet
        to = self.random.choice([name for name in fleet.names if name != self._home.region])
        if await self._wants(api.MovePartitionRequest(to=to), "moves begun") and self.random.random() < _CALLED_OFF:
            await self.pause(_CALLED_OFF_S)
            await self._wants(api.MovePartitionRequest(cancel=True), "moves called off")

    @property
    def _is_over(self) -> bool:
        fleet = self._home.fleet
        return fleet.now() > fleet.schedule.seconds - _NO_MORE_S

    async def _wants(self, request: api.MovePartitionRequest, done: str) -> bool:
        request.partition, request.header.reason = self._home.fleet.roaming.id, "it is tried out"
        return await self._asks("MovePartition", request, done) is not None

    async def _asks(self, method: str, request: Any, done: str) -> bytes | None:
        question = Question(method, request.SerializeToString(), self.actor, self.environment)
        try:
            async with asyncio.timeout(_ASKS_S[-1]):
                packed = await self.world.ask(self.random.choice(self.world.names), question, _ASKS_S[-1])
        except (TimeoutError, Broken, NotReached, ControlPlaneError) as error:
            self.world.done[f"{done}, not: {getattr(error, 'reason', 'BROKEN')}"] += 1
            return None
        self.world.done[done] += 1
        return packed


class Usurper(Remover):
    """Takes the partition over by force where its home, or where it was to go, is not heard: whether it is gone or not.

    So it does what an operator does who is mistaken.
    """

    async def work(self) -> None:
        """See `Client`."""
        await self.pause(_FORCES_S)
        if self._is_over or self.random.random() > _FORCED:
            return
        shown = await self._asks("ListPartitions", self._listed(), "looks at a moving partition")
        if shown is not None:
            [view] = api.ListPartitionsReply.FromString(shown).partitions
            word = "I do not hear it"
            forced = api.MovePartitionRequest(forced=True, attestation=word, upto=view.copy.revision)
            await self._wants(forced, "moves forced")

    def _listed(self) -> api.ListPartitionsRequest:
        return api.ListPartitionsRequest(partition=self._home.fleet.roaming.id)
