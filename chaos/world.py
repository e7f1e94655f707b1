"""Deterministic simulation of a whole fleet: regions of real nodes, and federation between them, under faults.

Theory of operation. Each region is a `plane.Region`, with everything that judges one; all of them share one clock and
one heap of events. Between them lie simulated connections (`world_ways`) that break as gRPC's do. The borders
(`world_borders`) see what every region applies and what passes, and know what must hold between them. One seed decides
everything: how many regions, who may hold what, conditions, faults, what clients do.

1. Each region has its own `Random`, and the network between them another; they are drawn in the order of events, which
   is one for the whole fleet.
2. Every fault heals. After the last one copies have to come level within a bound, and stay it.
3. Clients stop before the end; then everything between regions is ended in good order, and both sides' books compared.

Not here: cosignatures of ledgers, drills, changes of region files, and what `plane` and `world_ways` leave out.
"""

from __future__ import annotations

import heapq
import logging
import zlib
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from chaos.plane import short_retention
from chaos.plane_node import FLEET
from chaos.schedule import Fault
from chaos.sim_network import Network
from chaos.sim_node import Stopped
from chaos.sim_oracle import Violation
from chaos.simulation import Result
from chaos.world_borders import Borders
from chaos.world_erasing import Erasing
from chaos.world_faults import BETWEEN, FleetSchedule
from chaos.world_node import FleetParts, Member
from chaos.world_region import Home, partitions_of
from chaos.world_roaming import PART as ROAMS
from chaos.world_roaming import Roaming
from chaos.world_ways import Address, Roads
from controlplane import config
from controlplane.v1.records_pb2 import Reach

TRACE_LINES = 400
INSPECT_S = 0.5
LEVEL_S = 12.0
"""So long after the last fault healed, copies are level,"""
BEHIND_S = 4.0
"""and nothing is missing in them that is older than this."""
TOLD_S = 2.0
"""A switch that was thrown longer ago than this, in a region that nothing is wrong with, is known to be told."""
_LEAVE_S = 7.0
_ISOLATED_S = 2.0


class World:
    """One run of one schedule. `parts` plants defects."""

    def __init__(
        self,
        schedule: FleetSchedule,
        *,
        parts: FleetParts = FleetParts(),  # noqa: B008 - immutable.
        whole_trace: bool = False,
    ) -> None:
        self.schedule, self.names = schedule, list(schedule.jurisdictions)
        self.random = Random(f"world/{schedule.seed}/{schedule.nodes}")
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.fingerprint = 0
        self.clocks_changed = False
        self._found: Violation | None = None
        self._whole_trace = whole_trace
        self.trace: deque[str] = deque(maxlen=None if whole_trace else TRACE_LINES)
        self._now, self._seq = 0.0, 0
        self._heap: list[tuple[float, int, Home | None, Callable[..., None], tuple[Any, ...]]] = []
        self._hurt_until: dict[str, float] = dict.fromkeys(self.names, 0.0)
        self._level_at = 0.0
        self.endpoints: dict[str, Address] = {
            endpoint_of(region, n): (region, f"n{n}") for region in self.names for n in range(schedule.nodes)
        }
        configs = {name: config.parse(_file(schedule, name), Path(f"{name}.toml")) for name in self.names}
        self.shared = {name: partitions_of(configs[name].partitions) for name in self.names}
        self.roaming = Roaming(self.names[0])
        lawful = [p for name in self.names for p in configs[name].partitions if p.reach == Reach.JURISDICTION]
        self.erasing = Erasing(lawful)
        self.roads = Roads(self, [(a, b) for a in self.names for b in self.names if a != b], schedule.delay_s)
        self.regions: dict[str, Home] = {}
        self.borders = Borders(self.regions, schedule.jurisdictions, FLEET, roaming=self.roaming.id)
        for name in self.names:
            self.regions[name] = Home(self, configs[name], schedule.region(name), parts=parts)
        for fault in schedule.faults:
            self.at(fault.at_s, self._strike, fault)
        self.at(INSPECT_S, self._inspect)

    # Time.

    def now(self) -> float:
        """True time, in seconds since the beginning."""
        return self._now

    def at(self, delay: float, function: Callable[..., None], *args: Any) -> None:
        """Call `function` after `delay` seconds."""
        self._seq += 1
        heapq.heappush(self._heap, (self._now + delay, self._seq, None, function, args))

    def at_in(self, region: Home, delay: float, function: Callable[..., None], *args: Any) -> None:
        """The same, for something that happens in one region."""
        self._seq += 1
        heapq.heappush(self._heap, (self._now + delay, self._seq, region, function, args))

    def log(self, *words: object) -> None:
        """Write a line of the trace, which counts for the fingerprint."""
        line = self._line(words)
        self.fingerprint = zlib.crc32(line.encode(), self.fingerprint)
        self.trace.append(line)

    def note(self, *words: object) -> None:
        """Write a line that only a whole trace needs."""
        if self._whole_trace:
            self.trace.append(self._line(words))

    def _line(self, words: tuple[object, ...]) -> str:
        return f"{self._now:9.4f} " + " ".join(map(str, words))

    def run(self) -> Result:
        """Run to the end, or to the first violation."""
        violation = None
        with short_retention():
            try:
                self._run()
                self._conclude()
            except Violation as found:
                violation = f"{found} (at {self._now:.3f} s)"
                self.log("violation", violation)
            for region in self.regions.values():
                region.ended()
        self.counts += self.borders.counts + self.roads.counts + self.roaming.counts + self.erasing.counts
        for region in self.regions.values():
            network: Network = region.network
            self.counts += region.counts + region.oracle.counts + network.counts
            self.counts += region.chronicle.counts + region.done + region.abroad
            self.counts["operations checked"] += len(region.history.events) // 2
        return Result(
            self.schedule.seed, violation, self._now, self.counts, self.faults, self.fingerprint, list(self.trace)
        )

    def _run(self) -> None:
        heap, pop = self._heap, heapq.heappop
        while heap and heap[0][0] < self.schedule.seconds:
            self._now, _, region, function, args = pop(heap)
            self.counts["events"] += 1
            try:
                function(*args)
            except Stopped as stopped:
                assert region is not None
                region._stopped(stopped)
            if self._found is not None:
                raise self._found
        self._now = self.schedule.seconds

    # What connections need.

    def member(self, address: Address) -> Member | None:
        """See `world_ways.World`."""
        node = self.regions[address[0]].nodes[address[1]]
        return node if isinstance(node, Member) and node.serves else None

    def paused(self, address: Address) -> bool:
        """See `world_ways.World`."""
        return self.regions[address[0]].paused_until(address[1]) > self._now

    def passes(self, source: str, target: str, message: bytes, *, copies: bool) -> None:
        """See `world_ways.World`. What is wrong is raised later: here a server would take it for a call that failed."""
        try:
            self.borders.leaves(source, target, message, copies=copies)
        except Violation as violation:
            # After the end coroutines are closed, and may still say things.
            self._found = self._found or violation

    # Faults.

    def _strike(self, fault: Fault) -> None:
        random = Random(fault.salt)
        if fault.kind in BETWEEN:
            touched = BETWEEN[fault.kind](self, fault, random)
        else:
            name = random.choice(self.names)
            touched = [name] if self.regions[name].strike(fault, random) else []
            self.clocks_changed |= fault.kind == "clock-rate"
            self.hurts(touched, fault.for_s)
        if touched:
            self.faults[fault.kind] += 1
            self._level_at = max(self._level_at, self._now + fault.for_s + LEVEL_S)
            self.log("fault", fault.kind, *touched, f"{fault.for_s:.2f}")

    def hurts(self, regions: list[str], for_s: float) -> None:
        """Something breaks these regions themselves; they may take a while to recover."""
        for name in regions:
            self._hurt_until[name] = max(self._hurt_until[name], self._now + for_s + LEVEL_S)

    def isolates(self, region: str, for_s: float) -> None:
        """Look whether a region that is cut off goes on with its own work."""
        if for_s >= _ISOLATED_S and self._hurt_until[region] <= self._now:
            self.at(for_s, self._was_isolated, region, self.regions[region].answers, self._now)

    def _was_isolated(self, region: str, before: int, since: float) -> None:
        if self._hurt_until[region] > since or self.regions[region].stopping:
            return
        answers = self.regions[region].answers - before
        self.counts["isolations judged"] += 1
        self.counts["answers while isolated"] += answers
        if not answers:
            raise Violation(f"ISOLATED {region} answered nobody while it was cut off since {since:.1f} s")

    # Looking.

    def _inspect(self) -> None:
        for name in self.names:
            if self._hurt_until[name] <= self._now and (untold := self.borders.untold(name, self._now, TOLD_S)):
                raise Violation(f"STOP_UNTOLD {untold}")
        if self._level_at <= self._now <= self.schedule.seconds - _LEAVE_S:
            for region, pair in self.borders.pairs():
                if behind := self.borders.behind(region, pair, self._now, BEHIND_S):
                    raise Violation(f"COPY_LATE {behind}")
            self.counts["times all copies were level"] += 1
        if self.schedule.seconds - _LEAVE_S <= self._now < self.schedule.seconds - _LEAVE_S + INSPECT_S:
            self._leave()
        self.at(INSPECT_S, self._inspect)

    def _leave(self) -> None:
        """Clients have ended: so does everything between regions."""
        for region in self.regions.values():
            for member in region.members():
                member.leave()

    def _conclude(self) -> None:
        for region in self.regions.values():
            region.conclude()
        for name, pair in self.borders.pairs():
            self.borders.copied(name, pair)
            here, there = self.regions[name].replicas()[0].store, self.regions[pair[0]].replicas()[0].store
            self.borders.passages(name, pair, here, there)
        self.roaming.conclude(self.regions)
        self.erasing.conclude(self.regions, self.borders.holders(Reach.JURISDICTION))


def endpoint_of(region: str, n: int) -> str:
    """Where others reach a node."""
    return f"n{n}.{region}:7443"


def _file(schedule: FleetSchedule, name: str) -> str:
    """The region file of one region."""
    own = schedule.jurisdictions[name]
    laws: dict[str, list[str]] = {}
    for region, law in schedule.jurisdictions.items():
        laws.setdefault(law, []).append(region)
    lines = [
        f'format = 1\nfleet = "{FLEET}"\nregion = "{name}"\njurisdiction = "{own}"\nauthority = "authority.crt"',
        "[jurisdictions]",
        *(f"{law} = {regions!r}" for law, regions in laws.items()),
    ]
    lines += [
        f'[[node]]\nname = "n{n}"\naddress = "{endpoint_of(name, n)}"\npeer_address = "n{n}.{name}:7444"\n'
        f'certificate = "n{n}.crt"\nkey = "n{n}.key"'
        for n in range(schedule.nodes)
    ]
    lines += [
        f'[[partition]]\nid = "{name}.{environment}.{part}"\nenvironment = "{environment}"\nreach = "{reach}"\n'
        f"default_for = {kinds!r}"
        for part, (environment, reach, kinds) in PARTITIONS.items()
    ]
    if name == next(iter(schedule.jurisdictions)):
        lines.append(f'[[partition]]\nid = "{name}.prod.{ROAMS}"\nenvironment = "prod"\nreach = "global"')
    lines += [
        f'[[peer]]\nregion = "{other}"\nendpoints = {[endpoint_of(other, n) for n in range(schedule.nodes)]}\n'
        f"certificate_names = {[f'n{n}' for n in range(schedule.nodes)]}\n"
        f"may_leave = {['jurisdiction', 'global'] if law == own else ['global']}"
        for other, law in schedule.jurisdictions.items()
        if other != name
    ]
    return "\n".join(lines)


PARTITIONS = {
    "shared": ("prod", "global", ["flag", "stop"]),
    "law": ("prod", "jurisdiction", ["workflow"]),
    "own": ("prod", "home-only", ["election", "switch"]),
    "all": ("dev", "home-only", ["flag", "switch", "workflow", "election"]),
}
"""Of each region: environment, reach, and what lies there unless told otherwise."""

# What federation warns of is what the schedule does to it.
for _name in ("links", "follower", "exporter", "doors", "mover"):
    logging.getLogger(f"controlplane.federation.{_name}").addHandler(logging.NullHandler())
logging.getLogger("controlplane.eraser").addHandler(logging.NullHandler())
