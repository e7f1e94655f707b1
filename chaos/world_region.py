"""A simulated region among others: `plane.Region` on the clock of its fleet, with processes that know other regions."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from chaos.plane import Region
from chaos.plane_clients import Client, Question
from chaos.plane_disk import RegionDisk
from chaos.plane_node import Replica
from chaos.plane_watchers import Watcher
from chaos.schedule import Fault, Schedule
from chaos.sim_faults import STRIKES
from chaos.sim_oracle import Oracle, Violation, Watched
from chaos.world_clients import CopyQuestion, population
from chaos.world_erasing import Clerk
from chaos.world_node import FleetParts, Member
from chaos.world_roaming import Remover, Rover, Usurper
from controlplane.config import RegionConfig
from controlplane.replication.tail import Entry, Tail
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Partition, Reach

if TYPE_CHECKING:
    from random import Random

    from chaos.world import World


class _OnDisk:
    """A tail as far as it is on its disk."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail
        self.commit, self.term, self.boundary_index = min(tail.commit, tail.durable), tail.term, tail.boundary_index

    def entry(self, index: int) -> Entry:
        return self._tail.entry(index)


class _Lone:
    """A node whose own disk is a majority."""

    def __init__(self, node: Watched) -> None:
        self.name, self.process, self.role = node.name, node.process, node.role
        self.tail = cast(Tail, _OnDisk(node.tail))


class _LoneOracle(Oracle):
    """Of a region of one node: it commits at once, and applies what is on its disk.

    It needs nobody else's vote, so it may lead the same term again after a crash, before that was on its disk.
    """

    def leads(self, node: Watched) -> None:
        """See `Oracle`."""
        self._leaders.pop(node.tail.term, None)
        super().leads(node)

    def looks(self, node: Watched) -> None:
        """See `Oracle`."""
        super().looks(_Lone(node))


SPAN = 4096
"""Revisions per generation of kept outcomes: requests from abroad have no date, so they are repeated for less."""


class Home(Region):
    """One region of a run."""

    span = SPAN

    def __init__(self, fleet: World, config: RegionConfig, schedule: Schedule, *, parts: FleetParts) -> None:
        self.fleet, self.config, self.makes_federation = fleet, config, parts.federation
        self.region, self.atlas, self.partitions = config.name, config.atlas, config.partitions
        self.abroad: Counter[str] = Counter()
        super().__init__(schedule, parts=parts)
        if schedule.nodes == 1:
            self.oracle = _LoneOracle(self.disks)
            for node in self.running_nodes():
                node._oracle = self.oracle

    # One time for all.

    @property
    def _now(self) -> float:
        return self.fleet.now()

    @_now.setter
    def _now(self, _: float) -> None:
        """The fleet's time passes by itself."""

    def now(self) -> float:
        """See `Simulation`."""
        return self.fleet.now()

    def at(self, delay: float, function: Callable[..., None], *args: Any) -> None:
        """See `Simulation`."""
        self.fleet.at_in(self, delay, function, *args)

    def log(self, *words: object) -> None:
        """See `Simulation`."""
        self.fleet.log(self.region, *words)

    def note(self, *words: object) -> None:
        """See `Simulation`."""
        self.fleet.note(self.region, *words)

    # Processes.

    def make_replica(self, name: str, peers: list[str], disk: RegionDisk) -> Replica:
        """See `Region`."""
        return Member(self, name, peers, disk, self.clocks[name], self._processes[name])

    def members(self) -> list[Member]:
        """Every running process."""
        return [node for node in self.nodes.values() if isinstance(node, Member)]

    def start(self, name: str) -> None:
        """See `Simulation`."""
        super().start(name)
        if self.nodes[name]:
            self.fleet.roads.process_started((self.region, name))

    def crash(self, name: str, *, silent: bool = False, power: bool = False) -> None:
        """See `Simulation`."""
        node = self.nodes[name]
        super().crash(name, silent=silent, power=power)
        if isinstance(node, Member):
            self.fleet.roads.process_died(node, silent=silent)

    def strike(self, fault: Fault, random: Random) -> bool:
        """Have a fault of a single region strike; whether it did."""
        struck = STRIKES[fault.kind](self, fault, random) is not False
        self.chronicle.clocks_changed |= fault.kind == "clock-rate"
        return struck

    def ended(self) -> None:
        """Nothing runs any more."""
        for loop in (*self._loops, self.clients):
            loop.bury()

    # What clients do.

    def populate(self) -> tuple[list[Client], list[Watcher]]:
        """See `Region`."""
        clients, watchers = population(self)
        first = clients[-1].number + len(watchers) + 1
        more = [make(self, first + n) for n, make in enumerate((Rover, Remover, Usurper, Clerk))]
        return [*clients, *more], watchers

    def elections(self, environment: str) -> Partition:
        """See `plane_clients.World`."""
        return next(p for p in self.partitions if p.environment == environment and "election" in p.default_for)

    def ask_with(self, name: str, question: Question, timeout_s: float, floor: int) -> asyncio.Future[bytes]:
        """Ask a node about another region, of which revision `floor` was seen already."""
        done: asyncio.Future[bytes] = self.clients.create_future()
        self.at(self._hop(), self._arrive, name, question, timeout_s, floor, done)
        return done

    def _answered(
        self, node: Replica, question: Question, floor: int, done: asyncio.Future[bytes], result: bytes | BaseException
    ) -> None:
        if isinstance(question, CopyQuestion) and isinstance(result, bytes):
            header = api.ListFlagsReply.FromString(result).header
            if header.region == self.region and not self.fleet.clocks_changed:
                pair = (question.of, Reach.GLOBAL)
                self.fleet.borders.served(self.region, pair, header.revision, header.age_ms, self.now())
        super()._answered(node, question, floor, done, result)

    def _served(self, node: Replica, header: api.ReplyHeader, floor: int, consistency: int) -> None:
        home = self.fleet.regions.get(header.region, self)
        # How old an answer from abroad was, it was when it was given.
        if home is self or consistency == api.LINEARIZABLE:
            home.chronicle.serves(node.name, header, node.clock, self.now(), floor, consistency)

    @property
    def answers(self) -> int:
        """How often its clients were answered about what is its own."""
        return self.done.total()

    # Looking.

    def _inspect(self) -> None:
        super()._inspect()
        for member in self.members():
            # What the product catches at its borders, so that it goes on, is a defect all the same.
            links = member.federation.links
            if member.server.counts.defects or any("a defect" in link.state[1] for link in links):
                raise Violation(f"DEFECT {self.region} {member.name} caught one: see its log")

    def conclude(self) -> None:
        """Check everything that must hold when all is quiet."""
        self._conclude()
        for node in self.replicas():
            self.fleet.borders.scan(self.region, node.store.rows())
        differences = sum(link.differences for member in self.members() for link in member.federation.links)
        if differences:
            raise Violation(f"PASSAGE_DIFFERS {self.region} saw {differences} times something else than was sent")


def partitions_of(partitions: Sequence[Partition]) -> Partition:
    """The partition of a region that all others have a copy of."""
    return next(p for p in partitions if p.reach == Reach.GLOBAL)
