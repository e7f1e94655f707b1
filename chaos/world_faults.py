"""What a seed decides of a fleet's run, and what each kind of fault between regions does when it strikes.

A strike gets the world, the fault and a `Random` of the fault's own, and returns the regions that it touched; none, if
it could not happen now. Whatever it breaks it also heals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from random import Random
from typing import TYPE_CHECKING

from chaos.schedule import Conditions, Fault, Schedule, make_schedule

if TYPE_CHECKING:
    from chaos.world import World
    from chaos.world_ways import Way

Strike = Callable[["World", Fault, Random], list[str]]

QUIET_S = 34.0
"""Faults stop this long before the end."""
WITHIN = ("crash", "crash-silent", "crash-all", "power-loss", "power-loss-all", "pause", "slow-disk", "clock-rate")
"""Faults of one region that strike one of any size,"""
WITHIN_THREE = ("isolate-leader", "isolate-any", "transfer", "replace", "slow-link", "crash-majority")
"""and of one that has nodes to spare."""
_SIZES = {2: {"west": "eu", "east": "us"}, 3: {"west": "eu", "central": "eu", "east": "us"}}


@dataclass(frozen=True, slots=True)
class FleetSchedule:
    """Everything that decides a run."""

    seed: int
    nodes: int
    seconds: float
    jurisdictions: Mapping[str, str]
    conditions: Conditions
    delay_s: float
    """One way, between regions."""
    faults: tuple[Fault, ...]

    def region(self, name: str) -> Schedule:
        """What decides one region: no faults of its own, as the fleet strikes."""
        seed = self.seed * len(self.jurisdictions) + list(self.jurisdictions).index(name)
        return Schedule(seed, self.nodes, self.seconds, "fleet", self.conditions, ())


def make_fleet_schedule(seed: int, *, nodes: int, seconds: float) -> FleetSchedule:
    """Draw a schedule; the same arguments give the same one anywhere."""
    random = Random(f"fleet/{seed}/{nodes}/{seconds}")
    jurisdictions = _SIZES[random.choice((2, 3, 3))]
    conditions = make_schedule(seed, nodes=nodes, profile="lan").conditions
    # A disk that takes a third of a second for each entry is a load of its own.
    conditions = replace(conditions, sync_s=random.choice(((0.0, 0.0005), (0.001, 0.01), (0.005, 0.03))))
    faults = tuple(_faults(random, kinds_of(nodes), seconds))
    return FleetSchedule(seed, nodes, seconds, jurisdictions, conditions, random.choice((0.002, 0.02, 0.08)), faults)


def kinds_of(nodes: int) -> tuple[str, ...]:
    """Every kind of fault that strikes fleets of regions of so many nodes."""
    return (*BETWEEN, *WITHIN, *(WITHIN_THREE if nodes > 1 else ()))


def _faults(random: Random, kinds: tuple[str, ...], seconds: float) -> list[Fault]:
    faults = []
    at_s = random.uniform(1, 4)
    between = tuple(BETWEEN)
    while at_s < seconds - QUIET_S:
        for_s = random.choice((random.uniform(0.3, 2.5), random.uniform(2, 6), random.uniform(5, 12)))
        kind = random.choice(between if random.random() < 0.5 else kinds)
        faults.append(Fault(at_s, kind, for_s, random.getrandbits(32)))
        at_s += random.choice((random.uniform(0.1, 1), random.uniform(1, 5)))
    return faults


def _touching(world: World, region: str) -> list[Way]:
    return [way for way in permutations(world.names, 2) if region in way]


def _region_cut(world: World, fault: Fault, random: Random) -> list[str]:
    region = random.choice(world.names)
    world.isolates(region, fault.for_s)
    world.roads.cut(_touching(world, region), fault.for_s)
    return [region]


def _all_cut(world: World, fault: Fault, random: Random) -> list[str]:
    for region in world.names:
        world.isolates(region, fault.for_s)
    world.roads.cut(permutations(world.names, 2), fault.for_s)
    return world.names


def _pair_cut(world: World, fault: Fault, random: Random) -> list[str]:
    one, other = random.sample(world.names, 2)
    world.roads.cut([(one, other), (other, one)], fault.for_s)
    return [one, other]


def _one_way(world: World, fault: Fault, random: Random) -> list[str]:
    one, other = random.sample(world.names, 2)
    world.roads.cut([(one, other)], fault.for_s)
    return [one, other]


def _flapping(world: World, fault: Fault, random: Random) -> list[str]:
    one, other = random.sample(world.names, 2)
    ways = [(one, other), (other, one)]
    for n in range(8):
        world.at(n * fault.for_s / 8, world.roads.cut, random.choice((ways, ways[:1], ways[1:])), fault.for_s / 17)
    return [one, other]


def _reset(world: World, fault: Fault, random: Random) -> list[str]:
    one, other = random.sample(world.names, 2)
    world.roads.reset(one, other)
    return [one, other]


def _slow_way(world: World, fault: Fault, random: Random) -> list[str]:
    one, other = random.sample(world.names, 2)
    way = one, other
    world.roads.slow[way] = random.uniform(0.1, 1.5)
    world.at(fault.for_s, world.roads.slow.__setitem__, way, 0.0)
    return list(way)


def _lost(world: World, fault: Fault, region: str, random: Random, *, power: bool) -> None:
    home = world.regions[region]
    for name in home.names:
        home.crash(name, silent=power, power=power)
        home.at(fault.for_s * random.uniform(0.8, 1.0), home.start, name)
    world.hurts([region], fault.for_s)


def _region_loss(world: World, fault: Fault, random: Random) -> list[str]:
    region = random.choice(world.names)
    _lost(world, fault, region, random, power=True)
    return [region]


def _cut_and_lost(world: World, fault: Fault, random: Random) -> list[str]:
    """What it wrote and nobody copied is there again when it is back."""
    region = random.choice(world.names)
    world.roads.cut(_touching(world, region), fault.for_s)
    world.at(fault.for_s / 2, _lose_half, world, fault, region, random)
    return [region]


def _lose_half(world: World, fault: Fault, region: str, random: Random) -> None:
    _lost(world, fault._replace(for_s=fault.for_s / 2), region, random, power=random.random() < 0.5)


def _leader_dies_cut(world: World, fault: Fault, random: Random) -> list[str]:
    """The leader of one side falls while messages are under way, and the way is broken when another one leads."""
    one, other = random.sample(world.names, 2)
    home = world.regions[one]
    name = home.leader()
    home.crash(name, silent=random.random() < 0.5)
    home.at(min(fault.for_s, 3.0), home.start, name)
    world.at(random.uniform(0, 0.3), world.roads.cut, [(one, other), (other, one)], fault.for_s)
    world.hurts([one], fault.for_s)
    return [one, other]


BETWEEN: Mapping[str, Strike] = {
    "region-cut": _region_cut,
    "all-cut": _all_cut,
    "pair-cut": _pair_cut,
    "one-way": _one_way,
    "flapping": _flapping,
    "reset": _reset,
    "slow-way": _slow_way,
    "region-loss": _region_loss,
    "cut-and-lost": _cut_and_lost,
    "leader-dies-cut": _leader_dies_cut,
}
"""Faults between regions."""
