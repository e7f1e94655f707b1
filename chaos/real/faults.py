"""What can be done to a running region, and how one knows that it really happened.

A fault is injected, holds until it is healed, and can say at any time in between or afterwards whether it was observed:
a process that was gone, a packet that was dropped, a sync that failed. A run without its fault proves nothing.
`NEMESES` lists them all with what each needs. One fault at a time; the same object can be used again.

What each must not do is the same for all: lose an acknowledged write, show a stale read, or leave a node that does not
come back. Some make a node end by itself, which is what is asked of it: `failing-disk`, `disk-full`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Final, Protocol

from chaos.real import victims
from chaos.real.cluster import Cluster, Topology
from chaos.real.disk_faults import Lied, clock_jump, failing_disk, full_disk, slow_disk, torn_write
from chaos.real.link_faults import Flapping, Partitioned, Reset, Slowed, Swizzled
from chaos.real.links import SHAPES
from chaos.real.process_faults import Killed, Paused, PowerLost, Replaced, Rolled, Transferred


class Fault(Protocol):
    """Something that is broken and mended. `name` is that of its nemesis (`mixed`: of the one that was drawn)."""

    name: str

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """Break it; return in a few words what was done to whom."""

    async def observed(self) -> bool:
        """Whether it was felt; waits for that up to `victims.OBSERVE_TIMEOUT_S`."""

    async def heal(self) -> None:
        """Mend it. What was down is started; that it serves again is for `Cluster.settled` to say."""


@dataclass(frozen=True, slots=True)
class Nemesis:
    """A kind of fault: how to make one, the topologies it can be had in (the first is the usual one), and the shim."""

    name: str
    make: Callable[[], Fault]
    topologies: tuple[Topology, ...]
    shim: bool = False

    def possible(self, cluster: Cluster) -> bool:
        """Whether this cluster has what it needs."""
        return cluster.topology in self.topologies and (cluster.has_shim or not self.shim)


class Mixed:
    """Any of the others that the cluster can have, one at a time; none comes again before all have come."""

    def __init__(self) -> None:
        self.name = "mixed"
        self._bag: list[Nemesis] = []

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        if not self._bag:
            possible = [
                nemesis for nemesis in NEMESES.values() if nemesis.possible(cluster) and nemesis.name != "mixed"
            ]
            self._bag = random.sample(possible, len(possible))
        self._drawn = self._bag.pop().make()
        self.name = self._drawn.name
        return await self._drawn.inject(cluster, random)

    async def observed(self) -> bool:
        """See `Fault`."""
        return await self._drawn.observed()

    async def heal(self) -> None:
        """See `Fault`."""
        await self._drawn.heal()


_ANYWHERE: Final[tuple[Topology, ...]] = ("direct", "proxied", "namespaces")
_APART: Final[tuple[Topology, ...]] = ("proxied", "namespaces")

_ALL: Final = [
    Nemesis("kill-leader", partial(Killed, "kill-leader", victims.leader), _ANYWHERE),
    Nemesis("kill-any", partial(Killed, "kill-any", victims.anyone), _ANYWHERE),
    Nemesis("kill-majority", partial(Killed, "kill-majority", victims.majority), _ANYWHERE),
    Nemesis("restart-all", partial(Killed, "restart-all", victims.everyone), _ANYWHERE),
    Nemesis("rolling-restart", Rolled, _ANYWHERE),
    Nemesis("pause-leader", partial(Paused, "pause-leader", victims.leader), _ANYWHERE),
    Nemesis("pause-any", partial(Paused, "pause-any", victims.anyone), _ANYWHERE),
    Nemesis("transfer", Transferred, _ANYWHERE),
    Nemesis("replace-disk", Replaced, _ANYWHERE),
    *(Nemesis(name, partial(Partitioned, name, shape), _APART) for name, shape in SHAPES.items()),
    Nemesis("flapping", partial(Flapping, "flapping"), _APART),
    Nemesis("swizzle", partial(Swizzled, "swizzle"), _APART),
    Nemesis("slow-links", Slowed, ("proxied",)),
    Nemesis("reset-links", Reset, ("proxied",)),
    Nemesis("slow-disk", slow_disk, _ANYWHERE, shim=True),
    Nemesis("failing-disk", failing_disk, _ANYWHERE, shim=True),
    Nemesis("disk-full", full_disk, _ANYWHERE, shim=True),
    Nemesis("torn-write", torn_write, _ANYWHERE, shim=True),
    Nemesis("lying-fsync", Lied, _ANYWHERE, shim=True),
    Nemesis("power-loss", partial(PowerLost, "power-loss", victims.leader_or_anyone), _ANYWHERE, shim=True),
    Nemesis("power-loss-all", partial(PowerLost, "power-loss-all", victims.everyone), _ANYWHERE, shim=True),
    Nemesis("clock-jump", clock_jump, _ANYWHERE, shim=True),
    Nemesis("mixed", Mixed, ("proxied", "namespaces", "direct")),
]
NEMESES: Final[Mapping[str, Nemesis]] = {nemesis.name: nemesis for nemesis in _ALL}
"""Every kind of fault by its name."""
