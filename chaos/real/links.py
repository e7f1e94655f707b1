"""What lies between the nodes, as faults see it: directed links that lose what is sent, or carry it late. Pure.

A `Pair` (a, b) is the way from a to b. A partition is a set of pairs that carry nothing; `SHAPES` draws the usual
ones. Both implementations (`proxies`, `namespaces`) take the same sets, so that a schedule runs on either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from random import Random
from typing import Final, Protocol

Pair = tuple[str, str]
Shape = Callable[[Sequence[str], str, Random], frozenset[Pair]]


@dataclass(frozen=True, slots=True)
class Pace:
    """How slowly a link carries: a delay, evenly spread above it a jitter, and bytes per second (0: any)."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    rate_bytes_s: float = 0.0


class Links(Protocol):
    """Every way between two nodes."""

    async def cut(self, pairs: Iterable[Pair]) -> None:
        """Let exactly `pairs` carry nothing from now on, silently, and everything else again."""

    async def dropped(self) -> int:
        """Return how often a cut has kept something from going through; only ever grows."""

    async def slow(self, paces: Mapping[Pair, Pace]) -> None:
        """Let links carry at these paces, all others at once. Raises `Unsupported` where that cannot be had."""

    async def delayed(self) -> int:
        """Return how often a pace has held something up; only ever grows."""

    async def reset(self, pairs: Iterable[Pair]) -> int:
        """Break the connections of `pairs` (RST); return how many. Raises `Unsupported` where that cannot be had."""


def all_pairs(names: Sequence[str]) -> frozenset[Pair]:
    """Every way between two of `names`."""
    return frozenset(permutations(names, 2))


def between(some: Iterable[str], others: Iterable[str]) -> frozenset[Pair]:
    """Both ways between the two sides."""
    others = tuple(others)
    return frozenset(pair for a in some for b in others for pair in ((a, b), (b, a)))


def isolated(names: Sequence[str], victim: str) -> frozenset[Pair]:
    """Cut `victim` off from everybody."""
    return between([victim], [name for name in names if name != victim])


def _isolate_leader(names: Sequence[str], leader: str, _: Random) -> frozenset[Pair]:
    return isolated(names, leader)


def _isolate_any(names: Sequence[str], _: str, random: Random) -> frozenset[Pair]:
    return isolated(names, random.choice(names))


def _one_way_in(names: Sequence[str], leader: str, random: Random) -> frozenset[Pair]:
    """One node, more often than not the leader, hears nobody, and is heard."""
    victim = random.choice([leader, *names])
    return frozenset((other, victim) for other in names if other != victim)


def _one_way_out(names: Sequence[str], leader: str, random: Random) -> frozenset[Pair]:
    """One node, more often than not the leader, is heard by nobody, and hears."""
    victim = random.choice([leader, *names])
    return frozenset((victim, other) for other in names if other != victim)


def _halves(names: Sequence[str], _: str, random: Random) -> frozenset[Pair]:
    """Two sides of which one has a majority, drawn without regard to the leader."""
    order = random.sample(names, len(names))
    return between(order[: len(names) // 2], order[len(names) // 2 :])


def _minority(names: Sequence[str], leader: str, random: Random) -> frozenset[Pair]:
    """The leader with as many as do not make a majority, against the rest."""
    others = random.sample([name for name in names if name != leader], len(names) - 1)
    size = (len(names) - 1) // 2
    return between([leader, *others[: size - 1]], others[size - 1 :])


def _bridge(names: Sequence[str], _: str, random: Random) -> frozenset[Pair]:
    """Two sides that only one node in the middle can reach."""
    order = random.sample(names, len(names))
    middle = (len(names) - 1) // 2
    return between(order[:middle], order[middle + 1 :])


def _ring(names: Sequence[str], _: str, random: Random) -> frozenset[Pair]:
    """Everybody reaches two neighbours, so that no two majorities are the same; of three, hears one, is heard by one.

    A ring of three would be whole, so that there each way round is open in one direction only.
    """
    order = random.sample(names, len(names))
    kept = {(order[number - 1], order[number]) for number in range(len(order))}
    if len(names) > 3:
        kept |= {(b, a) for a, b in kept}
    return all_pairs(names) - kept


SHAPES: Final[Mapping[str, Shape]] = {
    "isolate-leader": _isolate_leader,
    "isolate-any": _isolate_any,
    "one-way-in": _one_way_in,
    "one-way-out": _one_way_out,
    "halves": _halves,
    "minority": _minority,
    "bridge": _bridge,
    "ring": _ring,
}
"""The eight kinds of partition: a function of the nodes, the leader and chance."""
