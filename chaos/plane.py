"""Deterministic simulation of a whole region: kernel, features, node, controllers and router over real consensus code.

Theory of operation. `Simulation` gives virtual time, network, disks, faults and the oracle of consensus. Here every
process is a `Replica`: the product's node on an event loop with virtual time. Agents and operators (`plane_clients`)
use it through whatever the schedule does to it. Three things judge: the oracle sees logs and disks, the chronicle sees
what was applied and what was answered, and the history of what clients were told is checked for linearizability by
models that know nothing of the product. One seed decides everything.

1. Retention is short here, so that outcomes, events and logs are forgotten while somebody still asks for them.
2. In some runs the log loses patience early: its caller is told "unknown" while the entry is still under way.
3. Clients stop before the end. Then everything has to be level: applied index, hash, every byte, every watcher.

Not here: gRPC and the SDK's channel (clients insist in their own way; only the mirror is the SDK's), cuts between
clients and nodes, a node that is stopped politely, full quotas. `RaftLog` has a stand-in (`SimLog`), because it is made
of threads and sockets.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import combinations
from random import Random
from typing import Any

from chaos import sim_node
from chaos.plane_agents import Repeater, population
from chaos.plane_chronicle import Chronicle
from chaos.plane_clients import DEV, PARTITIONS, STATE, TIMEOUTS_S, Client, Question
from chaos.plane_disk import RegionDisk
from chaos.plane_loop import ProcessLoop
from chaos.plane_node import REGION, NotReached, Parts, Replica
from chaos.plane_watchers import Watcher
from chaos.schedule import Conditions, Fault, Schedule
from chaos.sim_node import Clock
from chaos.sim_oracle import Violation
from chaos.simulation import Result, Simulation
from controlplane import limits
from controlplane.checking.histories import Operation, Recorder
from controlplane.checking.linearizability import Model, check
from controlplane.checking.models import Lease, Register, Switch
from controlplane.geography import Atlas
from controlplane.node import Call
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Partition

SPAN = 256
"""Revisions per generation of kept outcomes."""
EVENTS_KEPT = 300
TRIM_REVISIONS = 32
PATIENCE_S = (5.0, 5.0, 0.5, 0.1)

# Clients ask nothing new this long before the end; what they wait for then comes quickly, because nothing is broken.
_STOP_S = 15.0
_LIVE_S = 16.0
# What a client may still have to do then, one after the other: the call it is at, and its last looks at everything.
_CALLS_LEFT_MAX = 6
_HOP_S = 0.005
_CHUNK_BYTES_MIN = 16_384

_MODELS: dict[str, Model[Any]] = {"w": Register(), "j": Register(), "f": Register(), "e": Lease(), "t": Switch()}
"""By the first letter of a key's name."""


class Region(Simulation):
    """One run of one schedule. `parts` plants defects."""

    region = REGION
    atlas: Atlas | None = None
    partitions: Sequence[Partition] = PARTITIONS
    span = SPAN

    def __init__(self, schedule: Schedule, *, parts: Parts = Parts(), whole_trace: bool = False) -> None:  # noqa: B008
        draw = Random(f"region/{schedule.seed}/{schedule.nodes}/{schedule.profile}")
        self.parts = parts
        self.patience_s = max(draw.choice(PATIENCE_S), _round_s(schedule.conditions))
        self.chronicle, self.history = Chronicle(span=self.span, events_kept=EVENTS_KEPT), Recorder()
        self.done: Counter[str] = Counter()
        self.stopping = False
        self._loops: list[ProcessLoop] = []
        self._working: list[asyncio.Task[None]] = []
        super().__init__(_roomy(schedule), whole_trace=whole_trace)
        self.clients = ProcessLoop(self, "clients", Clock(self.now), lambda: 0.0)  # type: ignore[abstract]  # See its rule 4.
        self._population, self._watchers = self.populate()
        self._repeaters = [client for client in self._population if isinstance(client, Repeater)]

    def run(self) -> Result:
        """See `Simulation`."""
        with short_retention():
            result = super().run()
            result.counts += self.chronicle.counts + self.done
            result.counts["operations checked"] = len(self.history.events) // 2
            for loop in (*self._loops, self.clients):
                loop.bury()
        return result

    # Processes.

    def make_node(self, name: str, peers: list[str]) -> sim_node.Node:
        """See `Simulation`."""
        disk = self.disks[name]
        if not isinstance(disk, RegionDisk):
            disk = self.disks[name] = self.parts.disk(disk.life, span=self.span, off=self.off)
        replica = self.make_replica(name, peers, disk)
        self._loops.append(replica.loop)
        return replica

    def make_replica(self, name: str, peers: list[str], disk: RegionDisk) -> Replica:
        """Return the process that starts at `name`; whoever simulates more than a region makes more of it."""
        return Replica(self, name, peers, disk, self.clocks[name], self._processes[name])

    def crash(self, name: str, *, silent: bool = False, power: bool = False) -> None:
        """See `Simulation`."""
        node = self.nodes[name]
        super().crash(name, silent=silent, power=power)
        if isinstance(node, Replica):
            node.died(silent=silent)

    def link_changed(self, name: str, peer: str, up: bool) -> None:
        """See `Simulation`; sessions between nodes share the links."""
        super().link_changed(name, peer, up)
        node = self.nodes[name]
        if isinstance(node, Replica):
            node.linked(peer, up)

    def replicas(self) -> list[Replica]:
        """Every running process."""
        return [node for node in self.running_nodes() if isinstance(node, Replica)]

    def _strike(self, fault: Fault) -> None:
        super()._strike(fault)
        self.chronicle.clocks_changed = self.faults["clock-rate"] > 0

    # What clients do.

    def populate(self) -> tuple[list[Client], list[Watcher]]:
        """Return everybody who takes part."""
        return population(self)

    def elections(self, environment: str) -> Partition:
        """See `plane_clients.World`."""
        return STATE if environment == "prod" else DEV

    def _client(self) -> None:
        self._working = [self.clients.spawn(client.run()) for client in self._population]
        for watcher in self._watchers:
            for strand in watcher.strands():
                self.clients.spawn(strand)
        self.at(self.schedule.seconds - _STOP_S - self.now(), self._stop_clients)

    def _stop_clients(self) -> None:
        self.stopping = True

    def remember(self, question: Question) -> None:
        """See `plane_clients.World`."""
        for repeater in self._repeaters:
            repeater.remember(question)

    def ask(self, name: str, question: Question, timeout_s: float) -> asyncio.Future[bytes]:
        """See `plane_clients.World`."""
        done: asyncio.Future[bytes] = self.clients.create_future()
        self.at(self._hop(), self._arrive, name, question, timeout_s, self.chronicle.seen, done)
        return done

    def _hop(self) -> float:
        return min(self.conditions.delay_s, _HOP_S) * self.random.uniform(0.5, 2)

    def _arrive(self, name: str, question: Question, timeout_s: float, floor: int, done: asyncio.Future[bytes]) -> None:
        node = self.nodes[name]
        if isinstance(node, Replica):
            call = partial(_call, node, question, timeout_s)
            node.ask(call, timeout_s, partial(self._answered, node, question, floor, done))
        else:
            self.at(self._hop(), _settle, done, NotReached())

    def _answered(
        self, node: Replica, question: Question, floor: int, done: asyncio.Future[bytes], result: bytes | BaseException
    ) -> None:
        if isinstance(result, bytes):
            header: api.ReplyHeader = getattr(api, f"{question.method}Reply").FromString(result).header
            self.log(question.method, "at", node.name, "revision", header.revision)
            if question.request is None:
                self._served(node, header, floor, question.consistency)
            self._last_success = self.now()
        else:
            self.log(question.method, "at", node.name, getattr(result, "reason", type(result).__name__))
        self.at(self._hop(), _settle, done, result)

    def _served(self, node: Replica, header: api.ReplyHeader, floor: int, consistency: int) -> None:
        self.chronicle.serves(node.name, header, node.clock, self.now(), floor, consistency)

    def probe(self, name: str) -> asyncio.Future[tuple[int, int]]:
        """See `plane_clients.World`."""
        done: asyncio.Future[tuple[int, int]] = self.clients.create_future()
        self.at(self._hop(), self._probed, name, done)
        return done

    def _probed(self, name: str, done: asyncio.Future[tuple[int, int]]) -> None:
        node = self.nodes[name]
        if isinstance(node, Replica):
            node.loop.call_soon(self._say_age, node, done)

    def _say_age(self, node: Replica, done: asyncio.Future[tuple[int, int]]) -> None:
        self.at(self._hop(), _settle, done, (node.plane.revision, node.plane.fresh_ms()))

    def watch(self, name: str, question: Question) -> Watching:
        """See `plane_clients.World`."""
        return Watching(self, name, question)

    def told(self, node: Replica, packed: bytes) -> None:
        """Check the age that a watch's message names."""
        message = api.WatchReply.FromString(packed)
        if message.kind not in (api.WatchReply.CHANGES, api.WatchReply.SNAPSHOT):
            header = api.ReplyHeader(revision=node.plane.revision, age_ms=message.age_ms)
            self._served(node, header, 0, api.LOCAL)

    # Looking.

    def _inspect(self) -> None:
        super()._inspect()
        for node in self.replicas():
            late = node.overdue() if self.paused_until(node.name) <= self.now() else ""
            if late:
                raise Violation(f"OVERDUE {node.name} has not answered {late}")
            node.check()
        self._same_bytes()

    def _same_bytes(self) -> None:
        for a, b in combinations(self.replicas(), 2):
            if a.applied == b.applied and a.store.rows() != b.store.rows():
                differing = sorted(key for key, _ in a.store.rows().items() ^ b.store.rows().items())
                raise Violation(f"REPLICA_BYTES {a.name} and {b.name} differ at {a.applied[0]} in {differing[:3]}")

    def _conclude(self) -> None:
        self.oracle.logs_match(self.running_nodes())
        self._clients_ended()
        self._converged()
        self.chronicle.conclude()
        for watcher in self._watchers:
            if not watcher.is_level():
                raise Violation(f"WATCH_BEHIND {watcher.actor} stands at {watcher.cursor}")
        self._linearizable()

    def _is_settled(self) -> bool:
        level = self._is_level() and all(watcher.is_level() for watcher in self._watchers)
        return level and all(task.done() for task in self._working)

    def _settling_s(self) -> float:
        """See `Simulation`; and every call that a client may still have to make may take all of its time."""
        return max(super()._settling_s(), _CALLS_LEFT_MAX * (max(TIMEOUTS_S) + 1.0))

    def _clients_ended(self) -> None:
        waiting = [
            client.actor for client, task in zip(self._population, self._working, strict=True) if not task.done()
        ]
        if waiting or self._last_success < self.schedule.seconds - _LIVE_S:
            raise Violation(f"NO_LIVENESS {waiting} still wait; the last success was at {self._last_success:.1f} s")

    def contents(self, node: sim_node.Node) -> None:
        """See `Simulation`; bytes are compared apart."""

    def _converged(self) -> None:
        super()._converged()
        nodes = self.replicas()
        self._same_bytes()
        if nodes[0].plane.revision != self.chronicle.revision:
            raise Violation(
                f"COMMITTED_LOST the region stands at {nodes[0].plane.revision}, it was at {self.chronicle.revision}"
            )

    def _linearizable(self) -> None:
        operations = self.history.history().operations
        for letter, model in _MODELS.items():
            result = check([each for each in operations if _letter(each) == letter], model)
            if not result.ok:
                raise Violation(f"LINEARIZABILITY {'; '.join(map(str, result.failures))}")


class Watching:
    """One watch: the messages of a node, in order, as they arrive at a client."""

    def __init__(self, world: Region, name: str, question: Question) -> None:
        self._world, self._name, self._question = world, name, question
        self._ready: deque[bytes | BaseException] = deque()
        self._arrived = asyncio.Event()
        self._last_at = 0.0
        self._node: Replica | None = None
        self._closed = False
        world.at(world._hop(), self._begin)

    async def next(self) -> bytes:
        """See `plane_clients.Stream`."""
        while not self._ready:
            self._arrived.clear()
            await self._arrived.wait()
        message = self._ready.popleft()
        if isinstance(message, BaseException):
            raise message
        return message

    def close(self) -> None:
        """See `plane_clients.Stream`."""
        self._closed = True
        self._world.at(self._world._hop(), self._end)

    def _begin(self) -> None:
        node = self._world.nodes[self._name]
        if isinstance(node, Replica):
            self._node = node
            node.watch(self, partial(_call, node, self._question, limits.CALL_TIMEOUT_S), self._tell)
        else:
            self._tell(NotReached())

    def _tell(self, message: bytes | BaseException) -> None:
        if self._node is not None and isinstance(message, bytes) and not self._closed:
            self._world.told(self._node, message)
        self._last_at = max(self._last_at, self._world.now() + self._world._hop())
        self._world.at(self._last_at - self._world.now(), self._arrive, message)

    def _arrive(self, message: bytes | BaseException) -> None:
        self._ready.append(message)
        self._arrived.set()

    def _end(self) -> None:
        if self._node is not None:
            self._node.unwatch(self)


def _call(node: Replica, question: Question, timeout_s: float) -> Call:
    """The question as the node's server takes it: the deadline is on the node's clock, from arrival on."""
    deadline = node.clock.now() + timeout_s
    return Call(question.method, question.packed, question.actor, question.environment, deadline)


def _settle(done: asyncio.Future[Any], result: object) -> None:
    if done.done():
        return
    if isinstance(result, BaseException):
        done.set_exception(result)
    else:
        done.set_result(result)


def _round_s(conditions: Conditions) -> float:
    """How long an entry takes at most while nothing is wrong: with less patience nothing would ever be answered."""
    return 8 * conditions.delay_s + 4 * conditions.sync_s[1]


def _letter(operation: Operation) -> str:
    return operation.key.partition("/")[2][0]


def _roomy(schedule: Schedule) -> Schedule:
    """The schedule with bounds that suit entries and snapshots of real size."""
    bounds = schedule.conditions.bounds
    chunk_bytes = max(bounds.chunk_bytes, _CHUNK_BYTES_MIN)
    wider = replace(bounds, chunk_bytes=chunk_bytes, entry_bytes_max=limits.ENTRY_BYTES_MAX)
    return replace(schedule, conditions=replace(schedule.conditions, bounds=wider))


@contextmanager
def short_retention() -> Iterator[None]:
    """Have regions forget soon."""
    before = limits.EVENTS_KEPT, limits.TRIM_REVISIONS
    limits.EVENTS_KEPT, limits.TRIM_REVISIONS = EVENTS_KEPT, TRIM_REVISIONS
    try:
        yield
    finally:
        limits.EVENTS_KEPT, limits.TRIM_REVISIONS = before


# What controllers warn of is what the schedule does to them.
logging.getLogger("controlplane.controllers").addHandler(logging.NullHandler())
