"""What breaks between regions: ways that are cut, ways on which one direction is lost, regions that are gone.

A fault says from when to when nothing had to pass between two regions, or a region did not serve, and whether it was
seen to do anything: by what nodes say of their links, and by how processes ended. Every fault heals what it broke.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from random import Random
from typing import ClassVar, Final, Protocol

from chaos.fleet_load import OwnStops
from chaos.real.workloads.flags import flag
from controlplane.demo.fleet import JURISDICTIONS
from controlplane.errors import Compacted
from controlplane.limits import LEASE_TTL_MS_MAX, PROCESS_BYTES
from controlplane.loopback import PINNED, LoopbackFleet, LoopbackRegion, Program, Relay, free_ports
from controlplane.sdk import LOCAL, ControlPlane, ControlPlaneError
from controlplane.v1 import api_pb2 as api

HOLD_S = (2.0, 4.0)
SILENT_HOLD_S = (5.0, 7.0)
"""Lost messages are noticed by silence only, which takes longer than a reset."""
SEEN_TIMEOUT_S = 10.0
AGED_MS = 3_000
"""A copy as old as this has not heard of its home: while all is well, homes say something every second."""
SERVE_TIMEOUT_S = 60.0
END_TIMEOUT_S = 30.0
BOUND_S = 8.0
"""So long after healing, or after it was acknowledged, a stop is effective everywhere; machines with two cores too."""
EVENTS_KEPT = 3_000
"""Revisions for which forgetful nodes keep events: a minute of the load, and some seconds of writing at full speed."""
TRIM_REVISIONS = 100
FORGET_TIMEOUT_S = 90.0
_AT_ONCE = 64
_HOLDER = b"h" * PROCESS_BYTES
_REACHES = 2
_FLAP_S = (0.2, 0.8)
_LOOK_S = 0.1

Way = tuple[str, str]
"""From the region that says something to the one that hears it."""


class LossyRelay(Relay):
    """A relay that can also keep back what one end says, and deliver it late."""

    def __init__(self, port: int, target: str, delay_s: float = 0.0) -> None:
        super().__init__(port, target, delay_s)
        self._passes = {True: asyncio.Event(), False: asyncio.Event()}
        for each in self._passes.values():
            each.set()
        self._ends: set[asyncio.StreamReader] = set()

    def keep_back(self, *, upstream: bool) -> None:
        """Deliver nothing more to the target (`upstream`), or nothing of what it says."""
        self._passes[upstream].clear()

    def pass_on(self) -> None:
        """Deliver everything, first what was kept back."""
        for each in self._passes.values():
            each.set()

    async def cut(self) -> None:
        """See `Relay`."""
        self.pass_on()
        await super().cut()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.add(reader)
        try:
            await super()._carry(reader, writer)
        finally:
            self._ends.discard(reader)

    def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Awaitable[None]:
        return self._late(reader, writer, self._passes[reader in self._ends])

    async def _late(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: asyncio.Event) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(1 << 16):
                await passes.wait()
                writer.write(chunk)
                await writer.drain()
            writer.close()


class BreakableFleet(LoopbackFleet):
    """A fleet whose ways between regions can be broken one by one."""

    def __init__(self, folder: Path, *, size: int, forgetful: bool = False) -> None:
        super().__init__(folder, JURISDICTIONS, size=size)
        if forgetful:
            for node in self.nodes:
                module = node.argv.index("controlplane")
                node.argv[module : module + 1] = ["chaos.forgetful", str(EVENTS_KEPT), str(TRIM_REVISIONS)]

    async def cut_between(self, one: str, other: str) -> None:
        """Cut both regions off from each other."""
        await asyncio.gather(*(relay.cut() for relay in self._between(one, other)))

    async def heal_between(self, one: str, other: str) -> None:
        """Open the way again."""
        await asyncio.gather(*(relay.heal() for relay in self._between(one, other)))

    def lose(self, says: str, hears: str) -> None:
        """Deliver nothing that one region says to the other, whoever opened the connection."""
        for relay in self._lossy[says, hears]:
            relay.keep_back(upstream=True)
        for relay in self._lossy[hears, says]:
            relay.keep_back(upstream=False)

    def find(self) -> None:
        """Deliver everything again."""
        for relays in self._lossy.values():
            for relay in relays:
                relay.pass_on()

    def _between(self, one: str, other: str) -> list[LossyRelay]:
        return [*self._lossy[one, other], *self._lossy[other, one]]

    def _connected(self) -> dict[Way, list[Relay]]:
        pairs = list(permutations(self.regions, 2))
        ports = iter(free_ports(sum(len(self.regions[other].addresses) for _, other in pairs)))
        self._lossy = {
            (one, other): [LossyRelay(next(ports), address) for address in self.regions[other].addresses]
            for one, other in pairs
        }
        return {ends: [*relays] for ends, relays in self._lossy.items()}


@dataclass(slots=True)
class Disturbance:
    """One fault, in nanoseconds of the history's clock. `ended_ns` is when it was healed."""

    began_ns: int
    ways: frozenset[Way]
    """What one says the other does not hear."""
    down: frozenset[str] = frozenset()
    """Regions that do not serve."""
    ended_ns: int | None = None


class Scene(Protocol):
    """Where faults happen."""

    fleet: BreakableFleet
    operators: dict[str, ControlPlane]
    stops: dict[str, OwnStops]
    random: Random

    def say(self, what: str) -> None:
        """Tell people."""

    def found(self, kind: str, text: str) -> None:
        """Make the run red."""

    def disturbs(self, ways: Sequence[Way], down: Sequence[str] = ()) -> Disturbance:
        """Note that something begins to be broken."""

    def sweeps(self, home: str, seer: str, *, on: bool) -> None:
        """The copies that one region has of another are made anew from now on, or not any more."""


class Fault(ABC):
    """One fault. `inject`, then `seen`, then hold on, then `heal`; a new object each time."""

    name: ClassVar[str]
    hold_s: ClassVar[tuple[float, float]] = HOLD_S
    forgetful: ClassVar[bool] = False
    """It needs nodes that keep events for `EVENTS_KEPT` revisions only, and is not dealt with the others."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.fleet, self.random = scene, scene.fleet, scene.random
        self.detail = ""
        self.disturbance: Disturbance

    @abstractmethod
    async def inject(self) -> None:
        """Break it."""

    @abstractmethod
    async def seen(self) -> bool:
        """Wait until it is seen to have done something; False if it was not in time."""

    @abstractmethod
    async def heal(self) -> None:
        """Mend it, and return when every region serves."""

    def pick(self, count: int) -> list[str]:
        """Regions drawn at random."""
        return self.random.sample(list(self.fleet.regions), count)

    def around(self, region: str) -> list[Way]:
        """All ways from and to a region."""
        return [way for way in permutations(self.fleet.regions, 2) if region in way]

    async def until(self, holds: Callable[[], Awaitable[bool]], timeout_s: float = SEEN_TIMEOUT_S) -> bool:
        """Whether it held before the time was over."""
        end = time.monotonic() + timeout_s
        while not await holds():
            if time.monotonic() > end:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    async def link(self, region: str, other: str) -> api.Link | None:
        """What the leader of a region knows of another one; None if nobody says."""
        try:
            reply = await self.scene.operators[region].get_status(timeout_s=1.0)
        except ControlPlaneError:
            return None
        return next((link for link in reply.links if link.region == other), None)

    async def parted(self, one: str, other: str) -> bool:
        """Whether a region says that the way to another is down."""
        link = await self.link(one, other)
        return link is not None and link.state == "down"


class RegionCut(Fault):
    """A region is cut off from all others; it and they go on."""

    name = "region-cut"

    async def inject(self) -> None:
        """See `Fault`."""
        (self._region,) = self.pick(1)
        self.detail = f"{self._region} is cut off"
        self.disturbance = self.scene.disturbs(self.around(self._region))
        await self.fleet.cut_off(self._region)

    async def seen(self) -> bool:
        """All links of the region are down, seen from both ends."""
        return all([await self.until(lambda way=way: self.parted(*way)) for way in self.around(self._region)])  # type: ignore[misc]

    async def heal(self) -> None:
        """See `Fault`."""
        await self.fleet.heal(self._region)


class Flapping(Fault):
    """The ways between two regions come and go."""

    name = "flapping"
    hold_s = (3.0, 5.0)

    async def inject(self) -> None:
        """See `Fault`."""
        self._one, self._other = self.pick(2)
        self.detail = f"between {self._one} and {self._other}"
        self.disturbance = self.scene.disturbs([(self._one, self._other), (self._other, self._one)])
        await self.fleet.cut_between(self._one, self._other)
        self._flapping: asyncio.Task[None] | None = None

    async def seen(self) -> bool:
        """The link was down on both sides; from then on it flaps."""
        ends = [(self._one, self._other), (self._other, self._one)]
        seen = all([await self.until(lambda way=way: self.parted(*way)) for way in ends])  # type: ignore[misc]
        self._flapping = asyncio.create_task(self._flap())
        return seen

    async def heal(self) -> None:
        """See `Fault`."""
        if self._flapping is not None:
            self._flapping.cancel()
            await asyncio.gather(self._flapping, return_exceptions=True)
        await self.fleet.heal_between(self._one, self._other)

    async def _flap(self) -> None:
        while True:
            await self.fleet.heal_between(self._one, self._other)
            await asyncio.sleep(self.random.uniform(*_FLAP_S))
            await self.fleet.cut_between(self._one, self._other)
            await asyncio.sleep(self.random.uniform(*_FLAP_S))


class OneWay(Fault):
    """What one region says does not reach another; the other direction is whole. It arrives late, or never."""

    name = "one-way"
    hold_s = SILENT_HOLD_S

    async def inject(self) -> None:
        """See `Fault`."""
        self._says, self._hears = self.pick(2)
        self.detail = f"{self._hears} does not hear {self._says}"
        # A stream needs both directions: the copies of both may stand still.
        self.disturbance = self.scene.disturbs([(self._says, self._hears), (self._hears, self._says)])
        self.fleet.lose(self._says, self._hears)

    async def seen(self) -> bool:
        """The copy grows old at the end that hears nothing."""
        return await self.until(self._old)

    async def heal(self) -> None:
        """See `Fault`."""
        self.fleet.find()

    async def _old(self) -> bool:
        link = await self.link(self._hears, self._says)
        return link is not None and any(view.age_ms > AGED_MS for view in link.views)


class RegionLoss(Fault):
    """Every node of a region is killed at once, and started again later."""

    name = "region-loss"

    async def inject(self) -> None:
        """See `Fault`."""
        (self._lost,) = self.pick(1)
        self.detail = f"{self._lost} is lost"
        self._nodes = self.fleet.regions[self._lost].nodes
        self.disturbance = self.scene.disturbs(self.around(self._lost), [self._lost])
        for node in self._nodes:
            node.send(signal.SIGKILL)
        self._codes = [await node.ended(timeout_s=END_TIMEOUT_S) for node in self._nodes]

    async def seen(self) -> bool:
        """The processes were killed, and the others say that the region is gone."""
        others = [way for way in self.around(self._lost) if way[1] == self._lost]
        gone = [await self.until(lambda way=way: self.parted(*way)) for way in others]  # type: ignore[misc]
        return all(gone) and set(self._codes) == {-signal.SIGKILL}

    async def heal(self) -> None:
        """See `Fault`."""
        for node in self._nodes:
            node.start()
        await serving(self.scene, self._lost)


class RestartLeaders(Fault):
    """The leader of each region is asked to end, or killed, and started again, one region after the other."""

    name = "restart-leaders"
    hold_s = (0.0, 0.0)

    async def inject(self) -> None:
        """See `Fault`."""
        order = self.pick(len(self.fleet.regions))
        self.detail = ", ".join(order)
        self.disturbance = self.scene.disturbs(list(permutations(order, 2)), order)
        self._codes: list[bool] = []
        for region in order:
            number = self.random.choice((signal.SIGTERM, signal.SIGKILL))
            self._codes.append(await restarted(self.scene, region, number))

    async def seen(self) -> bool:
        """Each process ended as it was told to."""
        return all(self._codes)

    async def heal(self) -> None:
        """Nothing is broken any more."""


class KillUnderPartition(Fault):
    """Switches are thrown and released, and a leader is restarted, while a region is cut off.

    Every answer is written down as well, so that the checks of the whole run see it.
    """

    name = "kill-under-partition"

    async def inject(self) -> None:
        """Stop something in two regions, cut one of them off, and go on throwing on both sides."""
        self._home, self._far = self.pick(2)
        self.detail = f"{self._far} is cut off, switches of {self._home}"
        number = len(self.scene.stops[self._home].scopes)
        self._both, self._late, self._fars = (f"{word}-{number}" for word in ("both", "late", "far"))
        for stops in self.scene.stops.values():
            stops.scopes += [self._both, self._late, self._fars]
        self._workers = {region: stops.worker(500 + number) for region, stops in self.scene.stops.items()}
        await self._throw(self._home, self._both, engage=True)
        await self._throw(self._far, self._both, engage=True)
        await self._holds(self._far, self._both, self._home, "a switch is effective abroad")
        await self._holds(self._home, self._both, self._far, "a switch is effective abroad")
        self.disturbance = self.scene.disturbs(self.around(self._far), [self._far])
        await self.fleet.cut_off(self._far)

    async def seen(self) -> bool:
        """All links of the region are down; then throw, release and restart on both sides."""
        seen = all([await self.until(lambda way=way: self.parted(*way)) for way in self.around(self._far)])  # type: ignore[misc]
        await self._throw(self._home, self._late, engage=True)
        await self._throw(self._far, self._fars, engage=True)
        await self._throw(self._far, self._both, engage=False)
        await self._still("its own switch was released while it was cut off")
        seen &= await restarted(self.scene, self._far, signal.SIGKILL)
        await self._still("its leader was started again while it was cut off")
        await self._throw(self._home, self._both, engage=False)
        await self._still("the home released it, which nobody could tell")
        return seen

    async def heal(self) -> None:
        """Heal; what was thrown arrives on both sides, and what was released is free."""
        await self.fleet.heal(self._far)
        await self._holds(self._far, self._late, self._home, "a switch thrown while cut arrives after healing")
        await self._holds(self._home, self._fars, self._far, "a switch thrown by who was cut off arrives after healing")
        await self._holds(self._far, self._both, self._home, "a release arrives after healing", stopped=False)

    async def _throw(self, region: str, scope: str, *, engage: bool) -> None:
        stops = self.scene.stops[region]
        if not await stops.throw(self._workers[region], scope, engage=engage):
            self.scene.found("stops", f"{region} could not throw a switch of its own: {self.detail}")

    async def _stopped(self, region: str, scope: str, home: str) -> bool | None:
        stops = self.scene.stops[region]
        reply = await stops.ask(self._workers[region], stops.callers.sdk, scope)
        return None if reply is None else any(view.region == home for view in reply.stopped_by)

    async def _holds(self, region: str, scope: str, home: str, what: str, *, stopped: bool = True) -> None:
        async def so() -> bool:
            return await self._stopped(region, scope, home) is stopped

        began = time.monotonic()
        if not await self.until(so, BOUND_S):
            self.scene.found("stops", f"{what}: not from {home} in {region} within {BOUND_S:g} s")
        self.scene.say(f"{what}: {time.monotonic() - began:.2f} s")

    async def _still(self, why: str) -> None:
        answers: list[bool | None] = []

        async def answered() -> bool:
            answers.append(await self._stopped(self._far, self._both, self._home))
            return answers[-1] is not None

        if not await self.until(answered) or not answers[-1]:
            self.scene.found("stops", f"{self._far} no longer heeds what {self._home} stopped: {why}")


class ListedAnew(Fault):
    """A region is cut off for longer than its home keeps events: it has to list, and to drop what is gone by then."""

    name = "listed-anew"
    hold_s = (0.0, 0.0)
    forgetful = True

    async def inject(self) -> None:
        """Hold two leases at home that are copied, and cut the two regions off from each other."""
        # Of what is shared leases alone can go, and they are in what stays in the jurisdiction.
        law = next(regions for regions in JURISDICTIONS.values() if len(regions) > 1)
        self._home, self._far = self.random.sample(list(law), 2)
        self._partition = f"{self._home}.prod.state"
        self._names = [f"{word}-{self.random.randrange(1 << 30)}" for word in ("kept", "gone")]
        self.detail = f"{self._far} is cut off from {self._home}"
        self._held = {name: await self._campaign(name) for name in self._names}
        if not await self.until(lambda: self._copied({*self._names}), BOUND_S):
            self.scene.found("copies", f"leases of {self._home} did not come to {self._far} within {BOUND_S:g} s")
        self.disturbance = self.scene.disturbs([(self._home, self._far), (self._far, self._home)])
        await self.fleet.cut_between(self._home, self._far)

    async def seen(self) -> bool:
        """The link is down; then give one lease up, and write until what the far region has is not kept any more."""
        parted = [
            await self.until(lambda way=way: self.parted(*way))  # type: ignore[misc]
            for way in ((self._home, self._far), (self._far, self._home))
        ]
        operator, gone = self.scene.operators[self._home], self._names[1]
        await operator.resign(gone, _HOLDER, self._held[gone], partition=self._partition)
        link = await self.link(self._far, self._home)
        copied = 0 if link is None else max(view.revision for view in link.views)
        written, began = 0, time.monotonic()
        while not (forgotten := await self._forgotten(copied)) and time.monotonic() - began < FORGET_TIMEOUT_S:
            await asyncio.gather(*(self._write(number) for number in range(_AT_ONCE)))
            written += _AT_ONCE
        self.detail += f" while {written} transactions passed, {EVENTS_KEPT} are kept"
        self.scene.sweeps(self._home, self._far, on=True)
        return all(parted) and copied > 0 and forgotten

    async def heal(self) -> None:
        """Heal; the copy is whole again, with what is there and without what is gone."""
        wanted = (await self.scene.operators[self._home].get_status()).header.revision
        await self.fleet.heal_between(self._home, self._far)

        async def whole() -> bool:
            link = await self.link(self._far, self._home)
            views = [] if link is None else [view for view in link.views if view.revision >= wanted]
            return len(views) == _REACHES and not any(view.listing for view in views)

        if not await self.until(whole, SERVE_TIMEOUT_S):
            self.scene.found("copies", f"{self._far} did not copy {self._home} anew within {SERVE_TIMEOUT_S:g} s")
        if not await self.until(lambda: self._copied({self._names[0]}), BOUND_S):
            there = await self._leases()
            self.scene.found("copies", f"{self._far} has leases {sorted(there)} of {self._home}, not {self._names[0]}")
        self.scene.sweeps(self._home, self._far, on=False)
        kept = self._names[0]
        await self.scene.operators[self._home].resign(kept, _HOLDER, self._held[kept], partition=self._partition)

    async def _campaign(self, name: str) -> api.Fence:
        operator = self.scene.operators[self._home]
        reply = await operator.campaign(name, _HOLDER, LEASE_TTL_MS_MAX, partition=self._partition)
        return reply.holder.fence

    async def _leases(self) -> set[str]:
        """Those of this fault of which the far region has a copy."""
        reply = await self.scene.operators[self._far].list_elections(partition=self._partition, consistency=LOCAL)
        return {each.election.name for each in reply.elections} & {*self._names}

    async def _copied(self, wanted: set[str]) -> bool:
        return await self._leases() == wanted

    async def _write(self, number: int) -> None:
        """Something that no other region ever sees; it takes a revision of the home."""
        operator = self.scene.operators[self._home]
        await operator.set_flag(flag(f"passing-{number}", "on"), partition=f"{self._home}.prod.{PINNED}")

    async def _forgotten(self, revision: int) -> bool:
        try:
            await self.scene.operators[self._home].list_events(
                after_revision=revision, kinds=("flag",), limit=1, partition=self._partition
            )
        except Compacted:
            return True
        return False


async def restarted(scene: Scene, region: str, number: signal.Signals) -> bool:
    """End a region's leader by a signal and start it again; whether it ended as it was told to."""
    node = await leader_of(scene, region)
    node.send(number)
    code = await node.ended(timeout_s=END_TIMEOUT_S)
    node.start()
    await serving(scene, region)
    return code == (0 if number == signal.SIGTERM else -number)


async def leader_of(scene: Scene, region: str) -> Program:
    """The process that leads a region. Raises `TimeoutError`."""
    found: LoopbackRegion = scene.fleet.regions[region]
    async with asyncio.timeout(SERVE_TIMEOUT_S):
        while True:
            try:
                leader = (await scene.operators[region].get_region()).region.leader
            except ControlPlaneError:
                leader = ""
            if leader:
                return found.nodes[found.names.index(leader)]
            await asyncio.sleep(_LOOK_S)


async def serving(scene: Scene, region: str) -> None:
    """Return when every node of a region answers a linearizable read. Raises `TimeoutError`."""
    async with asyncio.timeout(SERVE_TIMEOUT_S):
        await scene.stops[region].answered()


FAULTS: Final[Mapping[str, type[Fault]]] = {
    each.name: each
    for each in (RegionCut, Flapping, OneWay, RegionLoss, KillUnderPartition, RestartLeaders, ListedAnew)
}
"""All faults, by the name of the scenario that has nothing but it."""
