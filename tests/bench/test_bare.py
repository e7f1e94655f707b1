"""That the bare stack does what it is compared for: replicates, syncs and tells."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from rocksdict import AccessType, Options, Rdict

from bench.bare import Bare
from bench.least import Least
from bench.side import VALUE
from controlplane.loopback import ending
from controlplane.v1.state_pb2 import Event


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


def rows(folder: Path) -> list[dict[bytes, bytes]]:
    """What the stores of all nodes hold, which may be running."""
    found = []
    for number in range(3):
        store = Rdict(str(folder / f"store-{number}"), Options(raw_mode=True), access_type=AccessType.read_only())
        found.append({bytes(key): bytes(value) for key, value in store.items()})  # type: ignore[arg-type]
        store.close()
    return found


async def test_the_least_state_machine_has_every_row_of_every_write_on_every_node(tmp_path: Path) -> None:
    least = Least(tmp_path)
    with ending(least.nodes):
        await least.start()
        before = len([key for key in rows(tmp_path)[0] if key.startswith(b"e")])
        async with least.writer("stream") as write:
            for _ in range(3):
                await asyncio.gather(*(write(worker) for worker in range(20)))
        async with asyncio.timeout(10):
            while not (found := rows(tmp_path))[0] == found[1] == found[2]:  # noqa: ASYNC110 - stores tell nobody.
                await asyncio.sleep(0.01)
    counts = Counter(key[:1] for key in found[0])
    assert counts == {b"r": 20, b"e": before + 60, b"h": before + 60, b"o": before + 60, b"s": 1}
    newest = [Event.FromString(value) for key, value in found[0].items() if key.startswith(b"r")]
    assert {event.version for event in newest} >= {3}
    assert all(event.value.endswith(VALUE) for event in newest)
