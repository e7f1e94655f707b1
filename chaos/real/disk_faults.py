"""Disks that fail, fill up, lie or are slow, and clocks that jump: what the shim does to one node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from random import Random
from typing import Final

from chaos.real.cluster import Cluster, NodeEnded
from chaos.real.shim import FAILING, FULL, LYING, Counts, Orders
from chaos.real.victims import hold_all, leader_or_anyone, until

_START_S: Final = 3.0
_CLOCK_JUMP_S: Final = 300
_TEAR_BYTES: Final = 400
_SLOW_SYNC_MS: Final = (20, 60, 200)


@dataclass(frozen=True, slots=True)
class End:
    """How a node that cannot go on must end: its exit code, and what it says last.

    `power` means that what was not synced is gone when it comes back.
    """

    code: int
    said: str = ""
    power: bool = False


class Shimmed:
    """One node's library has orders until the fault is healed.

    `count` picks what shows that it obeyed. With an `end` the node has to end by itself, and is started by healing.
    """

    def __init__(
        self,
        name: str,
        orders: Callable[[Random], Orders],
        count: Callable[[Counts], int],
        *,
        below: str = "",
        end: End | None = None,
    ) -> None:
        self.name = name
        self._orders, self._count, self._below, self._end = orders, count, below, end

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._cluster, self._random, self._ended = cluster, random, False
        (self._victim,) = await leader_or_anyone(cluster, random)
        self._shim = cluster.shim(self._victim)
        self._before = self._count(self._shim.counts())
        self._said_bytes = cluster.said_bytes(self._victim)
        if self._end is not None:
            cluster.may_end(self._victim)
        orders = self._orders(random)
        self._shim.order(orders, cluster.data(self._victim) / self._below)
        return f"{self._victim}: {_shown(orders)}"

    async def observed(self) -> bool:
        """See `Fault`: the library did it, and the node ended if it had to, as it had to."""
        felt = await until(lambda: self._count(self._shim.counts()) > self._before)
        return felt and (self._end is None or await self._ended_by(self._end))

    async def heal(self) -> None:
        """See `Fault`."""
        if self._end is None:
            self._shim.order(Orders())
            return
        await self.observed()
        if self._end.power:
            self._cluster.lose_power([self._victim], self._random)
        else:
            self._cluster.kill(self._victim)
        self._shim.order(Orders())
        self._cluster.start(self._victim)

    async def _ended_by(self, end: End) -> bool:
        program = self._cluster.program(self._victim)
        # Once it runs again, how it ended cannot be seen any more.
        if not self._ended and await until(lambda: not program.running):
            said = self._cluster.said(self._victim, self._said_bytes)
            self._ended = await program.ended(timeout_s=1) == end.code and end.said in said
        return self._ended


class Lied(Shimmed):
    """Syncs of one node do nothing, and then it loses its power: it has forgotten what others count on.

    No protocol of majorities survives that while the others do not hold everything either, so it comes back only when
    they do. If what its disk kept makes no sense, it must say so and refuse to start; then its disk is replaced.
    """

    def __init__(self) -> None:
        super().__init__("lying-fsync", lambda _: LYING, lambda counts: counts.syncs_lied)

    async def heal(self) -> None:
        """See `Fault`."""
        cluster, victim = self._cluster, self._victim
        cluster.lose_power([victim], self._random)
        self._shim.order(Orders())
        await hold_all(cluster)
        said_bytes = cluster.said_bytes(victim)
        cluster.start(victim)
        cluster.may_end(victim)
        if await until(lambda: not cluster.program(victim).running, _START_S):
            said = cluster.said(victim, said_bytes)
            if "with --replace" not in said:
                raise NodeEnded(f"{victim} did not say what to do:\n{said}")
            cluster.replace(victim)
        cluster.must_run(victim)


def slow_disk() -> Shimmed:
    """Each sync takes a while longer."""
    return Shimmed(
        "slow-disk",
        lambda random: Orders(sync_delay_ms=random.choice(_SLOW_SYNC_MS)),
        lambda counts: counts.syncs_delayed,
    )


def failing_disk() -> Shimmed:
    """Syncs fail (EIO), and what they did not cover is lost, as with a kernel that drops what it could not write."""
    end = End(1, "disk, then start again", power=True)
    return Shimmed("failing-disk", lambda _: FAILING, lambda counts: counts.syncs_failed, end=end)


def full_disk() -> Shimmed:
    """Writes fail (ENOSPC), and no byte is free."""
    end = End(1, "disk, then start again")
    return Shimmed("disk-full", lambda _: FULL, lambda counts: counts.writes_failed, end=end)


def torn_write() -> Shimmed:
    """The next record of the journal stops anywhere, and the process with it."""
    return Shimmed(
        "torn-write",
        lambda random: Orders(tear_after_bytes=random.randint(0, _TEAR_BYTES)),
        lambda counts: counts.writes_torn,
        below="journal",
        end=End(-9),
    )


def clock_jump() -> Shimmed:
    """The wall clock is up to minutes ahead or behind, at once, and later right again."""
    return Shimmed("clock-jump", _jump, lambda counts: counts.clock_shifted)


def _jump(random: Random) -> Orders:
    return Orders(clock_offset_ns=random.choice((-1, 1)) * random.randint(1, _CLOCK_JUMP_S) * 10**9)


def _shown(orders: Orders) -> str:
    usual = asdict(Orders())
    return ", ".join(f"{name} {value}" for name, value in asdict(orders).items() if value != usual[name])
