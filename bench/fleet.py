"""Regions that federate: how soon they have what one shares, and how one goes on that is cut off.

Three regions of one node each, because a machine with two cores is to be left with room for what is measured. Links
between them are relays in this process, which take their time in each direction. All times are of this process' clock.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bench import load
from bench.ours import stream_writer
from bench.side import SETTLE_TIMEOUT_S
from controlplane import sdk
from controlplane.loopback import Certificate, LoopbackFleet, ending
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Reach

LINK_S = 0.040
"""One way."""
_HOME, _NEIGHBOUR, _ABROAD = "eu-west", "eu-central", "us-east"
_JURISDICTIONS = {"eu": (_HOME, _NEIGHBOUR), "us": (_ABROAD,)}
_OTHERS = (_NEIGHBOUR, _ABROAD)
_CONFIG = f"{_HOME}.prod.config"
_PROBE = "probe/"
_POLL_S = 0.02
_WORKERS = 64
_FILL_WORKERS = 256
_EVERY_S = 0.05
_WHOLE_TIMEOUT_S = 45.0
_ARRIVAL_TIMEOUT_S = 15.0
# A fresh region lists 10,000 of these; with its name, variants and revision such a record has about 100 bytes.
_TEXT = "x" * 56


class Fresh(NamedTuple):
    """How long a region took to have a whole copy: since its links were opened, and since it had the first of it."""

    seconds: float
    copying_s: float


@dataclass(frozen=True, slots=True)
class Shared:
    """One shared record: when its write was begun and acknowledged at home, and seen in the last of other regions."""

    began: float
    acknowledged: float
    arrived: float


class Isolation(NamedTuple):
    """Writes per second of a region on its own account, before it was cut off, from then on, and after it healed."""

    before: float
    during: float
    after: float


class Fleet:
    """The regions, started, and a client of each. See `running`."""

    def __init__(self, fleet: LoopbackFleet, planes: dict[str, sdk.ControlPlane]) -> None:
        self._fleet = fleet
        self._planes = planes
        self._home = planes[_HOME]
        self._versions: dict[int, int] = {}
        self._probes = 0

    async def fill(self, count: int) -> int:
        """Write so many shared records at home; return the revision that a whole copy has."""
        numbers, newest = iter(range(count)), 0

        async def work() -> None:
            nonlocal newest
            for number in numbers:
                reply = await self._home.set_flag(_flag(f"shared/{number:06}"), reason="benchmark")
                newest = max(newest, reply.header.revision)

        async with asyncio.TaskGroup() as group:
            for _ in range(_FILL_WORKERS):
                group.create_task(work())
        return newest

    async def fresh(self, *, abroad: bool, revision: int, count: int) -> Fresh:
        """Open the links of a region that has no copy yet, and wait until all `count` records are there.

        Raises `TimeoutError`, and `NotMeasured` if the copy says that it is whole and is not.
        """
        name = _ABROAD if abroad else _NEIGHBOUR
        began, first = time.perf_counter(), 0.0
        # Opens those of third regions with this one too; they are idle.
        await self._fleet.heal(name)
        async with asyncio.timeout(_WHOLE_TIMEOUT_S):
            while not _is_whole(view := await self._view(name), revision):
                if view is not None and not first:
                    first = time.perf_counter()
                await asyncio.sleep(_POLL_S)
        ended = time.perf_counter()
        if (found := await self._count(name)) != count:
            raise load.NotMeasured(f"{name} says its copy is whole, and has {found} of {count} records")
        return Fresh(ended - began, ended - (first or began))

    async def shared(self, count: int) -> list[Shared]:
        """Write so many shared records at an even pace, and note when watchers in the other regions see each.

        Raises `TimeoutError` if one does not arrive.
        """
        arrivals: dict[str, dict[str, float]] = {name: {} for name in _OTHERS}
        watching = [asyncio.create_task(self._note(name, arrivals[name])) for name in _OTHERS]
        try:
            async with asyncio.timeout(_ARRIVAL_TIMEOUT_S):
                while not all(arrivals.values()):
                    await self._probe()
            next_s, writing = time.perf_counter(), []
            for _ in range(count):
                next_s += _EVERY_S
                await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
                writing.append(asyncio.create_task(self._probe()))
            written = await asyncio.gather(*writing)

            async def arrived() -> bool:
                return all(name in seen for name, _, _ in written for seen in arrivals.values())

            await _until(arrived, _ARRIVAL_TIMEOUT_S)
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
        return [Shared(began, end, max(seen[name] for seen in arrivals.values())) for name, began, end in written]

    async def isolated(self, seconds: float) -> Isolation:
        """Load one region with writes of its own, cut it off under way, and heal it."""
        rates = [await self._load(seconds, warm_s=0.5)]
        await self._fleet.cut_off(_ABROAD)
        try:
            rates.append(await self._load(seconds, warm_s=0.0))
        finally:
            await self._fleet.heal(_ABROAD)
        await self._linked()
        rates.append(await self._load(seconds, warm_s=0.5))
        return Isolation(*rates)

    async def join(self) -> None:
        """Open all links, and return when everybody has what home shares. Raises `TimeoutError`."""
        await self._fleet.join()
        revision = (await self._home.get_status()).header.revision
        # Something has to be written after that revision for it to be reached.
        await self._probe()

        async def whole() -> bool:
            return all([_is_whole(await self._view(name), revision) for name in _OTHERS])

        await _until(whole, _WHOLE_TIMEOUT_S)

    async def _load(self, seconds: float, *, warm_s: float) -> float:
        write = stream_writer(self._planes[_ABROAD], self._versions)
        return (await load.closed_loop(write, workers=_WORKERS, seconds=seconds, warm_s=warm_s)).rate

    async def _linked(self) -> None:
        """Wait until the region that was cut off says that all its links are up."""

        async def up() -> bool:
            return all(link.state == "up" for link in (await self._status(_ABROAD)).links)

        await _until(up, SETTLE_TIMEOUT_S)

    async def _probe(self) -> tuple[str, float, float]:
        """Write one shared record; its name, and when the write began and ended."""
        self._probes += 1
        name = f"{_PROBE}{self._probes:06}"
        began = time.perf_counter()
        await self._home.set_flag(_flag(name), reason="benchmark")
        return name, began, time.perf_counter()

    async def _note(self, region: str, arrived: dict[str, float]) -> None:
        async for change in self._planes[region].watch(kinds=["flag"], prefix=_PROBE, partition=_CONFIG):
            arrived.setdefault(change.name, time.perf_counter())

    async def _status(self, name: str) -> api.GetStatusReply:
        return await self._planes[name].get_status(consistency=sdk.LOCAL)

    async def _view(self, name: str) -> api.View | None:
        """What a region says of its copy of what home shares with everybody."""
        for link in (await self._status(name)).links:
            for view in link.views:
                if link.region == _HOME and view.reach == Reach.GLOBAL:
                    return view
        return None

    async def _count(self, name: str) -> int:
        found, after, more = 0, "", True
        while more:
            page = await self._planes[name].list_flags(
                prefix="shared/", after=after, limit=1000, partition=_CONFIG, consistency=sdk.LOCAL
            )
            found += len(page.flags)
            after, more = max((view.flag.name for view in page.flags), default=""), page.more
        return found


@asynccontextmanager
async def running(folder: Path, *, link_s: float = LINK_S) -> AsyncIterator[Fleet]:
    """A fleet that lives in `folder`, with all links cut."""
    fleet = LoopbackFleet(folder, _JURISDICTIONS, size=1, delay_s=link_s)
    with ending(fleet.nodes):
        for region in fleet.regions.values():
            region.start()
        try:
            async with AsyncExitStack() as stack:
                planes: dict[str, sdk.ControlPlane] = {}
                for name, region in fleet.regions.items():
                    identity = region.identity("operator", "bench")
                    planes[name] = await stack.enter_async_context(_connected(region.addresses, identity))
                yield Fleet(fleet, planes)
        finally:
            await fleet.close()


@asynccontextmanager
async def _connected(addresses: Iterable[str], identity: Certificate) -> AsyncIterator[sdk.ControlPlane]:
    """A client of a region, as soon as it commits writes. Raises `TimeoutError`."""
    plane = sdk.ControlPlane.connect(list(addresses), mirror=False, **identity)
    async with asyncio.timeout(SETTLE_TIMEOUT_S):
        while True:
            try:
                await plane.__aenter__()
                # A name of its own for each attempt: an earlier one may have been committed after all.
                await plane.create_workflow(f"bench/ready-{os.urandom(4).hex()}", b"{}")
                break
            except (sdk.Unavailable, sdk.OutcomeUnknown):
                await plane.close()
                plane = sdk.ControlPlane.connect(list(addresses), mirror=False, **identity)
                await asyncio.sleep(_POLL_S)
    try:
        yield plane
    finally:
        await plane.close()


async def _until(found: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
    """Wait until it is so. Raises `TimeoutError`."""
    async with asyncio.timeout(timeout_s):
        while True:
            if await found():
                return
            await asyncio.sleep(_POLL_S)


def _is_whole(view: api.View | None, revision: int) -> bool:
    return view is not None and not view.listing and view.revision >= revision


def _flag(name: str) -> sdk.Flag:
    return sdk.Flag(
        name=name,
        type=sdk.FlagType.STRING,
        enabled=True,
        variants=[sdk.Variant(name="on", value=sdk.FlagValue(string_value=_TEXT))],
        default_variant="on",
    )
