"""That the bare stack does what it is compared for: replicates, syncs and tells."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bench.bare import Bare
from bench.side import VALUE
from controlplane.loopback import ending


def logged(folder: Path) -> list[bytes]:
    return [(folder / f"log-{number}").read_bytes() for number in range(3)]


async def test_what_is_answered_is_on_two_disks_and_soon_on_three(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    with ending(bare.nodes):
        await bare.start()
        before = logged(tmp_path)[0].count(VALUE)
        for written, way in enumerate(("unary", "stream"), 1):
            async with bare.writer(way) as write:
                await asyncio.gather(*(write(worker) for worker in range(20)))
            counts = sorted(log.count(VALUE) for log in logged(tmp_path))
            assert counts[1:] == [before + 20 * written] * 2
        async with asyncio.timeout(10):
            while len(set(logged(tmp_path))) > 1:  # noqa: ASYNC110 - the slower follower has no event here.
                await asyncio.sleep(0.01)


async def test_watchers_of_every_node_are_told(tmp_path: Path) -> None:
    bare = Bare(tmp_path)
    with ending(bare.nodes):
        await bare.start()
        async with bare.watchers(12) as (streams, write):
            await write(0)
            async with asyncio.timeout(10):
                told = await asyncio.gather(*(anext(stream) for stream in streams))
        assert all(isinstance(each, bytes) and each.endswith(VALUE) for each in told)
