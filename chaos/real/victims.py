"""Whom a fault hits, and how one waits until it is felt."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from random import Random
from typing import Final

from chaos.real.cluster import Cluster

OBSERVE_TIMEOUT_S: Final = 5.0
"""How long a fault may take to be felt once it is there."""
_POLL_S: Final = 0.02
_TRIES: Final = 10

Pick = Callable[[Cluster, Random], Awaitable[list[str]]]


async def leader(cluster: Cluster, random: Random) -> list[str]:
    """The leader; anyone while there is none."""
    found = await cluster.leader()
    return [found.name if found else random.choice(cluster.names)]


async def anyone(cluster: Cluster, random: Random) -> list[str]:
    """One node."""
    return [random.choice(cluster.names)]


async def majority(cluster: Cluster, random: Random) -> list[str]:
    """As few as make a majority."""
    return random.sample(list(cluster.names), len(cluster.names) // 2 + 1)


async def everyone(cluster: Cluster, _: Random) -> list[str]:
    """All nodes."""
    return list(cluster.names)


async def leader_or_anyone(cluster: Cluster, random: Random) -> list[str]:
    """The leader half of the time: most of what can go wrong goes wrong there."""
    return await random.choice((leader, anyone))(cluster, random)


async def until(condition: Callable[[], bool], timeout_s: float = OBSERVE_TIMEOUT_S) -> bool:
    """Wait until `condition` holds; tell whether it does."""
    end = time.monotonic() + timeout_s
    while not (done := condition()) and time.monotonic() < end:  # noqa: ASYNC110 - nothing announces it.
        await asyncio.sleep(_POLL_S)
    return done


async def grown(count: Callable[[], Awaitable[int]], before: int) -> bool:
    """Wait until `count` is above `before`; tell whether it is."""
    end = time.monotonic() + OBSERVE_TIMEOUT_S
    while not (more := await count() > before) and time.monotonic() < end:  # noqa: ASYNC110 - nothing announces it.
        await asyncio.sleep(_POLL_S)
    return more


async def hold_all(cluster: Cluster) -> None:
    """Return when every node that runs holds all that is committed by now. Raises `TimeoutError`."""
    await cluster.settled()
    for _ in range(_TRIES):
        status = await cluster.status((await cluster.led()).name)
        if status is not None:
            await cluster.applied(status.commit)
            return
    raise TimeoutError("no leader could be asked what is committed")
