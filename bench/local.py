"""What is measured in the benchmark's own process: checks of a mirror, and a loop beside which a snapshot is made."""

from __future__ import annotations

import asyncio
import time
import timeit
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

from controlplane import sdk
from controlplane.replication.snapshot_files import header_of, produce
from controlplane.storage import RocksStore

_CALLS = 20_000
_REPEATS = 5
_SUBJECTS = 64
_TICK_S = 0.001
_QUIET_S = 2.0


def mirror_us(plane: sdk.ControlPlane) -> tuple[list[float], list[float]]:
    """Microseconds of one kill check and of one configuration, for many subjects in turn."""
    subjects = cycle([(f"tenant-{number}", f"order-{number}") for number in range(_SUBJECTS)])

    def check() -> None:
        tenant, workflow = next(subjects)
        plane.stopped(tenant=tenant, agent_type="worker", workflow=workflow, tools=("search", "calc"))

    def config() -> None:
        tenant, user = next(subjects)
        plane.config(user, tenant)

    return _timed_us(check), _timed_us(config)


def _timed_us(body: Callable[[], None]) -> list[float]:
    return [1e6 * each / _CALLS for each in timeit.repeat(body, number=_CALLS, repeat=_REPEATS)]


async def snapshot_stalls_ms(store_folder: Path, scratch: Path, snapshots: int) -> tuple[list[float], list[float]]:
    """Longest stall of a loop with nothing else to do, and the longest while each snapshot of that store is made.

    The snapshot is made as a node makes it: by the same function, in a thread of the same process.
    """
    store = RocksStore(store_folder)
    pool = ThreadPoolExecutor(1)
    loop = asyncio.get_running_loop()
    try:
        quiet = await _longest_gap_ms(asyncio.sleep(_QUIET_S))
        header = header_of("bench", "eu-west", 1, 1)

        async def make(number: int) -> None:
            await loop.run_in_executor(pool, produce, store.snapshot(), scratch, header, number)

        return [quiet], [await _longest_gap_ms(make(number)) for number in range(snapshots)]
    finally:
        pool.shutdown()
        store.close()


async def _longest_gap_ms(work: Coroutine[Any, Any, None]) -> float:
    """How late the loop came at most, while `work` ran, to something due every millisecond."""
    task = asyncio.create_task(work)
    longest, before = 0.0, time.perf_counter()
    while not task.done():
        await asyncio.sleep(_TICK_S)
        now = time.perf_counter()
        longest, before = max(longest, now - before - _TICK_S), now
    await task
    return 1e3 * longest
