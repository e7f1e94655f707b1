"""What each kind of fault does to a simulated region when it strikes.

A strike gets the simulation, the fault and a `Random` of the fault's own. It returns False when it could not happen
now; then it is not counted. Whatever it breaks it also heals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import TYPE_CHECKING

from chaos.schedule import Fault
from chaos.sim_network import Link

if TYPE_CHECKING:
    from chaos.simulation import Simulation

RATES = (0.7, 0.9, 1.1, 1.4, 1.0)
"""At which clocks may run."""

Strike = Callable[["Simulation", Fault, Random], bool | None]


def touching(s: Simulation, *names: str) -> list[Link]:
    """Every link with an end in `names`."""
    return [link for link in s.network.links if set(link) & set(names)]


def between(s: Simulation, side: Iterable[str], other: Iterable[str]) -> list[Link]:
    """Every link between the two sides, both ways."""
    one, two = set(side), set(other)
    return [(a, b) for a, b in s.network.links if (a in one and b in two) or (a in two and b in one)]


def _cut(s: Simulation, fault: Fault, links: Iterable[Link]) -> None:
    s.network.cut(links, fault.for_s)


def _cut_off(s: Simulation, fault: Fault, side: set[str]) -> None:
    _cut(s, fault, between(s, side, set(s.names) - side))


def _majority_minority(s: Simulation, fault: Fault, random: Random) -> None:
    _cut_off(s, fault, {s.leader(), *random.sample(s.names, len(s.names) // 2 - 1)})


def _bridge(s: Simulation, fault: Fault, random: Random) -> None:
    a, b = random.sample(s.names, 2)
    _cut(s, fault, [(a, b), (b, a)])


def _ring(s: Simulation, fault: Fault, random: Random) -> None:
    order = random.sample(s.names, len(s.names))
    kept = [frozenset(pair) for pair in zip(order, order[1:] + order[:1], strict=True)]
    if len(order) == 3:
        kept.pop()  # A ring of three is whole: leave a line.
    _cut(s, fault, [link for link in s.network.links if frozenset(link) not in kept])


def _flap(s: Simulation, fault: Fault, random: Random) -> None:
    links = touching(s, random.choice(s.names))
    for k in range(6):
        s.at(k * fault.for_s / 6, s.network.cut, links, fault.for_s / 14)


def _swizzle(s: Simulation, fault: Fault, random: Random) -> None:
    for name in random.sample(s.names, len(s.names) - 1):
        begin = random.uniform(0, fault.for_s / 2)
        s.at(begin, s.network.cut, touching(s, name), random.uniform(0.1, 1) * fault.for_s)


def _crash(s: Simulation, names: list[str], fault: Fault, random: Random, **how: bool) -> None:
    for name in names:
        s.crash(name, **how)
        s.at(random.uniform(0.05, min(fault.for_s, 3.0)), s.start, name)


def _majority(s: Simulation, random: Random) -> list[str]:
    return random.sample(s.names, len(s.names) // 2 + 1)


def _victim(s: Simulation, random: Random) -> str:
    return random.choice((s.leader(), random.choice(s.names)))


def _pause(s: Simulation, fault: Fault, random: Random) -> None:
    s.pause(_victim(s, random), fault.for_s)


def _slow_links(s: Simulation, fault: Fault, random: Random) -> None:
    for link in random.sample(s.network.links, random.randint(1, 2)):
        s.slow_link(link, random.uniform(0.3, 3), fault.for_s)


def _disk_full(s: Simulation, fault: Fault, random: Random) -> bool:
    # It counts when a node has stopped because of it.
    name = _victim(s, random)
    s.disks[name].full = True
    s.at(fault.for_s, s.make_room, name)
    return False


def _bit_flip(s: Simulation, fault: Fault, random: Random) -> bool:
    if not s.may_lose_a_disk():
        return False
    name = _victim(s, random)
    s.crash(name, silent=random.random() < 0.5)
    s.disks[name].flip(random)
    s.log("flip", name, s.disks[name].damaged)
    s.at(random.uniform(0.05, fault.for_s), s.start, name)
    return True


def _transfer(s: Simulation, fault: Fault, random: Random) -> bool:
    return s.transfer(random.choice((None, random.choice(s.names))))


def _replace(s: Simulation, fault: Fault, random: Random) -> bool:
    if not s.may_lose_a_disk():
        return False
    s.replace(_victim(s, random), silent=random.random() < 0.5, after=random.uniform(0.05, fault.for_s))
    return True


STRIKES: dict[str, Strike] = {
    "isolate-leader": lambda s, f, r: _cut(s, f, touching(s, s.leader())),
    "isolate-any": lambda s, f, r: _cut(s, f, touching(s, r.choice(s.names))),
    "halves": lambda s, f, r: _cut_off(s, f, set(r.sample(s.names, len(s.names) // 2))),
    "majority-minority": _majority_minority,
    "one-way-from": lambda s, f, r: _cut(s, f, [link for link in s.network.links if link[0] == s.leader()]),
    "one-way-to": lambda s, f, r: _cut(s, f, [link for link in s.network.links if link[1] == s.leader()]),
    "one-way-mixed": lambda s, f, r: _cut(s, f, r.sample(s.network.links, r.randint(1, len(s.names)))),
    "bridge": _bridge,
    "ring": _ring,
    "flap": _flap,
    "swizzle": _swizzle,
    "crash": lambda s, f, r: _crash(s, [_victim(s, r)], f, r),
    "crash-silent": lambda s, f, r: _crash(s, [_victim(s, r)], f, r, silent=True),
    "crash-majority": lambda s, f, r: _crash(s, _majority(s, r), f, r),
    "crash-all": lambda s, f, r: _crash(s, s.names, f, r),
    "power-loss": lambda s, f, r: _crash(s, [_victim(s, r)], f, r, silent=True, power=True),
    "power-loss-all": lambda s, f, r: _crash(s, s.names, f, r, silent=True, power=True),
    "pause": _pause,
    "slow-link": _slow_links,
    "slow-disk": lambda s, f, r: s.slow_one_disk(r.choice(s.names), r.uniform(0.05, 1), f.for_s),
    "disk-full": _disk_full,
    "bit-flip": _bit_flip,
    "clock-rate": lambda s, f, r: s.clocks[r.choice(s.names)].set_rate(r.choice(RATES)),
    "transfer": _transfer,
    "replace": _replace,
}
"""One for each of `schedule.FAULTS`."""
