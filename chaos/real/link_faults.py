"""Links that carry nothing, or something late, or break."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from random import Random
from typing import Final

from chaos.real.cluster import Cluster
from chaos.real.links import Pace, Pair, Shape, all_pairs, isolated
from chaos.real.victims import grown, leader, leader_or_anyone

_FLAP_S: Final = (0.05, 0.5)
_SWIZZLE_S: Final = 0.1
_SLOW_MS: Final = (3.0, 10.0, 35.0)
_SLOW_BYTES_S: Final = (0.0, 0.0, 256_000.0)


class Partitioned:
    """Some ways between nodes carry nothing."""

    def __init__(self, name: str, shape: Shape) -> None:
        self.name, self._shape = name, shape

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._links = cluster.links
        self._before = await self._links.dropped()
        (led,) = await leader(cluster, random)
        pairs = self._shape(cluster.names, led, random)
        await self._links.cut(pairs)
        return f"cut {' '.join(sorted(f'{a}>{b}' for a, b in pairs))} while {led} led"

    async def observed(self) -> bool:
        """See `Fault`: something did not get through."""
        return await grown(self._links.dropped, self._before)

    async def heal(self) -> None:
        """See `Fault`."""
        await self._links.cut(())


class _Moving:
    """Links that change all the time, by a task that ends when the fault is healed."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._links, (self._victim,) = cluster.links, await leader_or_anyone(cluster, random)
        self._before = await self._links.dropped()
        self._moving = cluster.spawn(self._move(cluster.names, random))
        return f"{self.name} of {self._victim}"

    async def observed(self) -> bool:
        """See `Fault`: something did not get through."""
        return await grown(self._links.dropped, self._before)

    async def heal(self) -> None:
        """See `Fault`. What the task failed of is raised."""
        self._moving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._moving
        await self._links.cut(())

    async def _move(self, names: Sequence[str], random: Random) -> None:
        raise NotImplementedError


class Flapping(_Moving):
    """A node is cut off and back again, many times."""

    async def _move(self, names: Sequence[str], random: Random) -> None:
        while True:
            for pairs in (isolated(names, self._victim), ()):
                await self._links.cut(pairs)
                await asyncio.sleep(random.uniform(*_FLAP_S))


class Swizzled(_Moving):
    """The ways to and from a node are cut one by one, and come back in another order."""

    async def _move(self, names: Sequence[str], random: Random) -> None:
        ways, cut = sorted(isolated(names, self._victim)), set[Pair]()
        while True:
            for change in (cut.add, cut.discard):
                for way in random.sample(ways, len(ways)):
                    change(way)
                    await self._links.cut(cut)
                    await asyncio.sleep(_SWIZZLE_S)


class Slowed:
    """Links carry everything, late: all of them, or those of one node."""

    name = "slow-links"

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._links = cluster.links
        self._before = await self._links.delayed()
        delay_ms = random.choice(_SLOW_MS)
        pace = Pace(delay_ms, delay_ms / 2, random.choice(_SLOW_BYTES_S))
        victim = random.choice((None, *cluster.names))
        pairs = all_pairs(cluster.names) if victim is None else isolated(cluster.names, victim)
        await self._links.slow(dict.fromkeys(pairs, pace))
        return f"{delay_ms:g} ms and more one way, {victim or 'everywhere'}"

    async def observed(self) -> bool:
        """See `Fault`: something was held up."""
        return await grown(self._links.delayed, self._before)

    async def heal(self) -> None:
        """See `Fault`."""
        await self._links.slow({})


class Reset:
    """All connections between nodes break at once (RST)."""

    name = "reset-links"
    _broken = 0

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._broken = await cluster.links.reset(all_pairs(cluster.names))
        return f"{self._broken} connections reset"

    async def observed(self) -> bool:
        """See `Fault`: there were some."""
        return self._broken > 0

    async def heal(self) -> None:
        """See `Fault`: nodes dial again."""
