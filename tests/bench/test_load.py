"""The harness itself: what is counted, and what ends a failover."""

from __future__ import annotations

import asyncio
import math
import time

import pytest

from bench import load


async def test_a_closed_loop_counts_what_ends_in_its_time() -> None:
    under_way = most = 0

    async def write(_: int) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1

    done = await load.closed_loop(write, workers=4, seconds=0.4, warm_s=0.1)
    assert most == 4
    assert done.p50_ms >= 10
    assert done.rate == pytest.approx(done.writes / 0.4)
    # Four workers cannot end more than one write each in 10 ms.
    assert 0 < done.rate <= 400


async def test_a_closed_loop_in_which_nothing_ended_has_a_rate_of_zero() -> None:
    done = await load.closed_loop(lambda _: asyncio.sleep(0.3), workers=2, seconds=0.1, warm_s=0.0)
    assert (done.rate, done.writes, done.p99_ms) == (0.0, 0, math.inf)


async def test_the_first_success_ends_a_failover_and_failures_do_not() -> None:
    began = time.perf_counter()

    async def attempt() -> None:
        if time.perf_counter() - began < 0.1:
            raise TimeoutError
        await asyncio.sleep(0.02)

    ended = await load.first_of(lambda: (attempt(), attempt()))
    assert ended - began >= 0.12


async def test_what_never_succeeds_ends_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "FAILOVER_TIMEOUT_S", 0.1)

    async def attempt() -> None:
        await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await load.first_of(lambda: (attempt(),))
