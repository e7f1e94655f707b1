"""What can be done to a running region, and how one knows that it really happened.

A fault is injected, holds until it is healed, and can say at any time in between or afterwards whether it was observed:
a process that was gone, a packet that was dropped, a sync that failed. A run without its fault proves nothing.
`NEMESES` lists them all with what each needs. One fault at a time; the same object can be used again.

What each must not do is the same for all: lose an acknowledged write, show a stale read, or leave a node that does not
come back. Some make a node end by itself, which is what is asked of it: `failing-disk`, `disk-full`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Final, Protocol

from chaos.real.cluster import Cluster, NodeEnded, Topology
from chaos.real.links import SHAPES, Pace, Pair, Shape, all_pairs, isolated
from chaos.real.shim import FAILING, FULL, LYING, Counts, Orders

OBSERVE_TIMEOUT_S: Final = 5.0
"""How long a fault may take to be felt once it is there."""
_POLL_S: Final = 0.02
_START_S: Final = 3.0
_CLOCK_JUMP_S: Final = 300
_TEAR_BYTES: Final = 400
_FLAP_S: Final = (0.05, 0.5)
_SWIZZLE_S: Final = 0.1
_SLOW_SYNC_MS: Final = (20, 60, 200)
_SLOW_LINK_MS: Final = (3.0, 10.0, 35.0)
_SLOW_LINK_BYTES_S: Final = (0.0, 0.0, 256_000.0)

Pick = Callable[[Cluster, Random], Awaitable[list[str]]]


class Fault(Protocol):
    """Something that is broken and mended. `name` is that of its nemesis (`mixed`: of the one that was drawn)."""

    name: str

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """Break it; return in a few words what was done to whom."""

    async def observed(self) -> bool:
        """Whether it was felt; waits for that up to `OBSERVE_TIMEOUT_S`."""

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


# Victims


async def _leader(cluster: Cluster, random: Random) -> list[str]:
    """The leader; anyone while there is none."""
    leader = await cluster.leader()
    return [leader.name if leader else random.choice(cluster.names)]


async def _any(cluster: Cluster, random: Random) -> list[str]:
    return [random.choice(cluster.names)]


async def _majority(cluster: Cluster, random: Random) -> list[str]:
    return random.sample(list(cluster.names), len(cluster.names) // 2 + 1)


async def _all(cluster: Cluster, _: Random) -> list[str]:
    return list(cluster.names)


async def _leader_or_any(cluster: Cluster, random: Random) -> list[str]:
    """The leader half of the time: most of what can go wrong goes wrong there."""
    return await random.choice((_leader, _any))(cluster, random)


# Processes


class Killed:
    """Processes end by SIGKILL, and are started again."""

    def __init__(self, name: str, pick: Pick) -> None:
        self.name, self._pick = name, pick
        self._ends: list[int] = []

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._cluster, self._victims = cluster, await self._pick(cluster, random)
        self._break(random)
        self._ends = [await cluster.program(victim).ended(timeout_s=1) for victim in self._victims]
        return f"SIGKILL of {', '.join(self._victims)}"

    async def observed(self) -> bool:
        """See `Fault`: the kernel says that a signal ended them."""
        return bool(self._ends) and all(code == -9 for code in self._ends)

    async def heal(self) -> None:
        """See `Fault`."""
        for victim in self._victims:
            self._cluster.start(victim)

    def _break(self, random: Random) -> None:
        self._cluster.kill(*self._victims)


class PowerLost(Killed):
    """Processes end, and what was not synced is gone or torn."""

    gone_bytes = 0

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        await super().inject(cluster, random)
        return f"loss of power at {', '.join(self._victims)}, {self.gone_bytes} unsynced bytes gone"

    async def observed(self) -> bool:
        """See `Fault`: there was something to lose."""
        return await super().observed() and self.gone_bytes > 0

    def _break(self, random: Random) -> None:
        self.gone_bytes = self._cluster.lose_power(self._victims, random)


class Paused:
    """A process stops in the middle of whatever it does, silently, and goes on later as if no time had passed."""

    def __init__(self, name: str, pick: Pick) -> None:
        self.name, self._pick = name, pick
        self._state = ""

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._cluster, (self._victim,) = cluster, await self._pick(cluster, random)
        cluster.pause(self._victim)
        await _until(lambda: self._looked() == "T")
        return f"SIGSTOP of {self._victim}"

    async def observed(self) -> bool:
        """See `Fault`: the kernel said that it was stopped."""
        return self._state == "T"

    async def heal(self) -> None:
        """See `Fault`."""
        self._cluster.resume(self._victim)

    def _looked(self) -> str:
        stat = Path(f"/proc/{self._cluster.program(self._victim).pid}/stat").read_text()
        self._state = stat.rpartition(")")[2].split()[0]
        return self._state


class Rolled:
    """Every node is stopped as an operator does it and started again, one after the other, while the others serve."""

    name = "rolling-restart"

    def __init__(self) -> None:
        self._codes: list[int] = []

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._codes = []
        for name in random.sample(list(cluster.names), len(cluster.names)):
            self._codes.append(await cluster.stop(name))
            cluster.start(name)
            await cluster.settled()
        return "SIGTERM of every node in turn"

    async def observed(self) -> bool:
        """See `Fault`: each one ended as it should."""
        return bool(self._codes) and not any(self._codes)

    async def heal(self) -> None:
        """See `Fault`: nothing is left to mend."""


class Transferred:
    """The leader hands its office over."""

    name = "transfer"

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._cluster = cluster
        before = await cluster.led()
        self._term = before.term
        target = random.choice([name for name in cluster.names if name != before.name])
        said = await cluster.transfer(target)
        return f"{before.name} hands over to {target}: {said}"

    async def observed(self) -> bool:
        """See `Fault`: somebody leads in a later term."""
        leader = await self._cluster.led()
        return leader.term > self._term

    async def heal(self) -> None:
        """See `Fault`: nothing is left to mend."""


class Replaced:
    """A node comes back with an empty disk, as one does whose disk was lost."""

    name = "replace-disk"

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._cluster, (self._victim,) = cluster, await _leader_or_any(cluster, random)
        self._before = self._identity()
        cluster.kill(self._victim)
        # Whoever replaces a disk sees to it that the others hold what was acknowledged: it may have been a majority.
        await _hold_all(cluster)
        cluster.replace(self._victim)
        return f"{self._victim} starts with an empty disk"

    async def observed(self) -> bool:
        """See `Fault`: the folder has another incarnation."""
        return await _until(lambda: self._identity() not in ("", self._before))

    async def heal(self) -> None:
        """See `Fault`: it mends itself."""

    def _identity(self) -> str:
        file = self._cluster.data(self._victim) / "IDENTITY"
        return file.read_text() if file.exists() else ""


# Links


class Partitioned:
    """Some ways between nodes carry nothing."""

    def __init__(self, name: str, shape: Shape) -> None:
        self.name, self._shape = name, shape

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._links = cluster.links
        self._before = await self._links.dropped()
        (leader,) = await _leader(cluster, random)
        pairs = self._shape(cluster.names, leader, random)
        await self._links.cut(pairs)
        return f"cut {' '.join(sorted(f'{a}>{b}' for a, b in pairs))} while {leader} led"

    async def observed(self) -> bool:
        """See `Fault`: something did not get through."""
        return await _grown(self._links.dropped, self._before)

    async def heal(self) -> None:
        """See `Fault`."""
        await self._links.cut(())


class _Moving:
    """Links that change all the time, by a task that ends when the fault is healed."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def inject(self, cluster: Cluster, random: Random) -> str:
        """See `Fault`."""
        self._links, (self._victim,) = cluster.links, await _leader_or_any(cluster, random)
        self._before = await self._links.dropped()
        self._moving = asyncio.create_task(self._move(cluster.names, random), name=self.name)
        return f"{self.name} of {self._victim}"

    async def observed(self) -> bool:
        """See `Fault`: something did not get through."""
        return await _grown(self._links.dropped, self._before)

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
        delay_ms = random.choice(_SLOW_LINK_MS)
        pace = Pace(delay_ms, delay_ms / 2, random.choice(_SLOW_LINK_BYTES_S))
        victim = random.choice((None, *cluster.names))
        pairs = all_pairs(cluster.names) if victim is None else isolated(cluster.names, victim)
        await self._links.slow(dict.fromkeys(pairs, pace))
        return f"{delay_ms:g} ms and more one way, {victim or 'everywhere'}"

    async def observed(self) -> bool:
        """See `Fault`: something was held up."""
        return await _grown(self._links.delayed, self._before)

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


# Disks and clocks


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
        (self._victim,) = await _leader_or_any(cluster, random)
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
        felt = await _until(lambda: self._count(self._shim.counts()) > self._before)
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
        if not self._ended and await _until(lambda: not program.running):
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
        await _hold_all(cluster)
        said_bytes = cluster.said_bytes(victim)
        cluster.start(victim)
        cluster.may_end(victim)
        if await _until(lambda: not cluster.program(victim).running, _START_S):
            said = cluster.said(victim, said_bytes)
            if "start with --replace" not in said:
                raise NodeEnded(f"{victim} did not say what to do:\n{said}")
            cluster.replace(victim)
        cluster.must_run(victim)


# All of them


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


async def _until(condition: Callable[[], bool], timeout_s: float = OBSERVE_TIMEOUT_S) -> bool:
    """Wait until `condition` holds; tell whether it does."""
    end = time.monotonic() + timeout_s
    while not (done := condition()) and time.monotonic() < end:  # noqa: ASYNC110 - nothing announces it.
        await asyncio.sleep(_POLL_S)
    return done


async def _grown(count: Callable[[], Awaitable[int]], before: int) -> bool:
    end = time.monotonic() + OBSERVE_TIMEOUT_S
    while not (grown := await count() > before) and time.monotonic() < end:  # noqa: ASYNC110 - nothing announces it.
        await asyncio.sleep(_POLL_S)
    return grown


async def _hold_all(cluster: Cluster) -> None:
    """Return when every node that runs holds all that is committed by now. Raises `TimeoutError`."""
    await cluster.settled()
    leader = await cluster.led()
    status = await cluster.status(leader.name)
    await cluster.applied(status.commit if status else 0)


def _shown(orders: Orders) -> str:
    usual = asdict(Orders())
    return ", ".join(f"{name} {value}" for name, value in asdict(orders).items() if value != usual[name])


def _jump(random: Random) -> Orders:
    return Orders(clock_offset_ns=random.choice((-1, 1)) * random.randint(1, _CLOCK_JUMP_S) * 10**9)


_ANYWHERE: Final[tuple[Topology, ...]] = ("direct", "proxied", "namespaces")
_APART: Final[tuple[Topology, ...]] = ("proxied", "namespaces")

_ALL: Final = [
    Nemesis("kill-leader", lambda: Killed("kill-leader", _leader), _ANYWHERE),
    Nemesis("kill-any", lambda: Killed("kill-any", _any), _ANYWHERE),
    Nemesis("kill-majority", lambda: Killed("kill-majority", _majority), _ANYWHERE),
    Nemesis("restart-all", lambda: Killed("restart-all", _all), _ANYWHERE),
    Nemesis("rolling-restart", Rolled, _ANYWHERE),
    Nemesis("pause-leader", lambda: Paused("pause-leader", _leader), _ANYWHERE),
    Nemesis("pause-any", lambda: Paused("pause-any", _any), _ANYWHERE),
    Nemesis("transfer", Transferred, _ANYWHERE),
    Nemesis("replace-disk", Replaced, _ANYWHERE),
    *(Nemesis(name, partial(Partitioned, name, shape), _APART) for name, shape in SHAPES.items()),
    Nemesis("flapping", lambda: Flapping("flapping"), _APART),
    Nemesis("swizzle", lambda: Swizzled("swizzle"), _APART),
    Nemesis("slow-links", Slowed, ("proxied",)),
    Nemesis("reset-links", Reset, ("proxied",)),
    Nemesis(
        "slow-disk",
        lambda: Shimmed(
            "slow-disk",
            lambda random: Orders(sync_delay_ms=random.choice(_SLOW_SYNC_MS)),
            lambda counts: counts.syncs_delayed,
        ),
        _ANYWHERE,
        shim=True,
    ),
    Nemesis(
        "failing-disk",
        lambda: Shimmed(
            "failing-disk",
            lambda _: FAILING,
            lambda counts: counts.syncs_failed,
            end=End(1, "disk, then start again", power=True),
        ),
        _ANYWHERE,
        shim=True,
    ),
    Nemesis(
        "disk-full",
        lambda: Shimmed(
            "disk-full", lambda _: FULL, lambda counts: counts.writes_failed, end=End(1, "disk, then start again")
        ),
        _ANYWHERE,
        shim=True,
    ),
    Nemesis(
        "torn-write",
        lambda: Shimmed(
            "torn-write",
            lambda random: Orders(tear_after_bytes=random.randint(0, _TEAR_BYTES)),
            lambda counts: counts.writes_torn,
            below="journal",
            end=End(-9),
        ),
        _ANYWHERE,
        shim=True,
    ),
    Nemesis("lying-fsync", Lied, _ANYWHERE, shim=True),
    Nemesis("power-loss", lambda: PowerLost("power-loss", _leader_or_any), _ANYWHERE, shim=True),
    Nemesis("power-loss-all", lambda: PowerLost("power-loss-all", _all), _ANYWHERE, shim=True),
    Nemesis(
        "clock-jump", lambda: Shimmed("clock-jump", _jump, lambda counts: counts.clock_shifted), _ANYWHERE, shim=True
    ),
    Nemesis("mixed", Mixed, ("proxied", "namespaces", "direct")),
]
NEMESES: Final[Mapping[str, Nemesis]] = {nemesis.name: nemesis for nemesis in _ALL}
"""Every kind of fault by its name."""
