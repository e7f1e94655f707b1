"""Load and its figures: closed loops of workers, failovers, fan-out. The same code for both sides."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from math import inf

import grpc

from bench.side import Side, Write
from controlplane.errors import ControlPlaneError

PROBE_EVERY_S = 0.005
FAILOVER_TIMEOUT_S = 15.0
# Probes of one failover that may be under way at once.
_PROBES_MAX = 4096


class NotMeasured(Exception):
    """What was to be measured did not come about; the text says what did."""


# What a call raises when the system could not do it, as opposed to a defect of the benchmark.
FAILURES = (grpc.RpcError, ControlPlaneError, TimeoutError, NotMeasured)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a closed loop did: writes per second, and latencies in milliseconds (infinite if no write ended)."""

    rate: float
    p50_ms: float
    p99_ms: float
    writes: int


async def closed_loop(write: Write, *, workers: int, seconds: float, warm_s: float = 0.5) -> Loaded:
    """Keep `workers` writes in flight; count those that end in the `seconds` after the warm-up."""
    begin = time.perf_counter() + warm_s
    end = begin + seconds
    taken: list[float] = []

    async def work(worker: int) -> None:
        while (started := time.perf_counter()) < end:
            await write(worker)
            if begin <= (now := time.perf_counter()) <= end:
                taken.append(now - started)

    async with asyncio.timeout(warm_s + seconds + 15), asyncio.TaskGroup() as group:
        for worker in range(workers):
            group.create_task(work(worker))
    taken.sort()
    return Loaded(len(taken) / seconds, 1e3 * _quantile(taken, 0.5), 1e3 * _quantile(taken, 0.99), len(taken))


async def costed(
    write: Write, cpu_s: Callable[[], float], *, workers: int, seconds: float, warm_s: float
) -> tuple[float, float]:
    """Do what `closed_loop` does; writes per second, and per second of the processor that `cpu_s` counts.

    The latter does not depend on what else the machine does. Raises `NotMeasured` if no write ended.
    """
    ended = 0

    async def counted(worker: int) -> None:
        nonlocal ended
        await write(worker)
        ended += 1

    began = cpu_s()
    done = await closed_loop(counted, workers=workers, seconds=seconds, warm_s=warm_s)
    spent = cpu_s() - began
    if not done.writes or not spent:
        raise NotMeasured("no write ended")
    return done.rate, ended / spent


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else inf


Client = AbstractAsyncContextManager[Sequence[Write]]
"""Something that writes, for as long as it is entered."""


async def failover_ms(side: Side, leader: int, number: signal.Signals, client: Client | None = None) -> float:
    """Take the leader away by a signal; the time to the first write that is committed afterwards.

    Without a `client`, plain calls to each survivor; they are retried by nobody.
    """
    survivors = [node for node in range(len(side.nodes)) if node != leader]
    async with client or side.probe(survivors) as writes:
        # Connections are up and warm before the fault.
        for write in writes:
            await asyncio.wait_for(write(0), 5)
        began = time.perf_counter()
        side.nodes[leader].send(number)
        return 1e3 * (await first_of(lambda: (write(0) for write in writes)) - began)


async def first_of(attempts: Callable[[], Iterable[Awaitable[object]]]) -> float:
    """Start fresh attempts every few milliseconds; return when the first of all succeeded."""
    success: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def attempt(write: Awaitable[object]) -> None:
        try:
            await write
        except FAILURES:
            return
        if not success.done():
            success.set_result(time.perf_counter())

    under_way: set[asyncio.Task[None]] = set()
    try:
        async with asyncio.timeout(FAILOVER_TIMEOUT_S):
            while not success.done():
                if len(under_way) < _PROBES_MAX:
                    for each in attempts():
                        task = asyncio.create_task(attempt(each))
                        under_way.add(task)
                        task.add_done_callback(under_way.discard)
                await asyncio.wait([success], timeout=PROBE_EVERY_S)
            return success.result()
    finally:
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)


async def fan_out_ms(side: Side, watchers: int, events: int) -> list[float]:
    """From the start of a write until the last of `watchers` has seen it, for each of `events` writes."""
    taken: list[float] = []
    async with side.watchers(watchers) as (streams, write):
        for _ in range(events):
            await asyncio.sleep(0.1)
            seen = [asyncio.ensure_future(anext(stream)) for stream in streams]
            await asyncio.sleep(0)
            began = time.perf_counter()
            await write(0)
            async with asyncio.timeout(20):
                await asyncio.gather(*seen)
            taken.append(1e3 * (time.perf_counter() - began))
    return taken
