"""The run: which side is loaded how, in which order."""

from __future__ import annotations

import asyncio
import shutil
import signal
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import fleet, load, reviewer
from bench.bare import Bare
from bench.figures import BARE, ETCD, LEAST, OURS, SECURE, TUNED, Samples
from bench.least import Least
from bench.ledger import alone, leaves_in
from bench.local import mirror_us, snapshot_stalls_ms
from bench.ours import Ours
from bench.peer import Etcd, installed
from bench.side import Side, pause, resume, settled
from controlplane.loopback import ending

_FILL_WORKERS = 256
_IDLE_S = 3.0
_SHARED_RECORDS = 10_000
_BACK_TIMEOUT_S = 60.0
# One size of fan-out is enough to say what TLS costs, and gRPC.
_SECURE_WATCHERS = 500
_FEWER_WAYS = {
    SECURE: (("unary", 1), ("unary", 64), ("stream", 64)),
    BARE: (("unary", 1), ("stream", 1), ("unary", 64), ("stream", 64), ("stream", 256)),
    LEAST: (("stream", 1), ("stream", 64), ("stream", 256)),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. `seconds` of each closed loop, in so many alternating `rounds`."""

    seconds: float
    rounds: int
    failovers: int
    events: int
    watchers: Sequence[int]
    records: Sequence[int]
    restarts: int
    snapshots: int
    shared: int
    isolations: int
    ledger_rounds: int
    leaves: int


FULL = Plan(
    seconds=2.0,
    rounds=3,
    failovers=7,
    events=10,
    watchers=(1, 100, 500, 1000),
    records=(1_000, 10_000, 100_000),
    restarts=3,
    snapshots=5,
    shared=200,
    isolations=5,
    ledger_rounds=4,
    leaves=1_000_000,
)
QUICK = Plan(
    seconds=0.7,
    rounds=2,
    failovers=2,
    events=3,
    watchers=(1, 500),
    records=(100_000,),
    restarts=1,
    snapshots=2,
    shared=60,
    isolations=1,
    ledger_rounds=2,
    leaves=50_000,
)

Say = Callable[[str], None]
Phase = Callable[[], Awaitable[None]]

SIDE_BY_SIDE = ("writes", "fanout", "failover", "mirror", "records", "snapshots")
"""Phases that are about one region."""
OF_FLEET = ("fleet", "ledger", "bundle")
"""Phases about federation and the ledger, after the others."""


class Run:
    """One run of the benchmark in `folder`. What a phase could not measure is absent from `samples`; see `trouble`."""

    def __init__(self, folder: Path, plan: Plan, say: Say) -> None:
        self.samples = Samples()
        self.trouble: list[str] = []
        self._folder = folder
        self._plan = plan
        self._say = say
        self._sides: list[Side] = []

    async def measure(self, only: Iterable[str]) -> None:
        """Run all phases, or those named."""
        wanted = set(only or (*SIDE_BY_SIDE, *OF_FLEET))
        if wanted.intersection(SIDE_BY_SIDE):
            await self._side_by_side(wanted)
        phases: dict[str, tuple[float, Phase]] = {
            "fleet": (150, self._fleet),
            "ledger": (150, self._ledger),
            "bundle": (280, self._bundle),
        }
        for name, (budget_s, phase) in phases.items():
            if name in wanted:
                await self._phase(name, budget_s, phase)

    async def _side_by_side(self, wanted: set[str]) -> None:
        self._ours = Ours(_made(self._folder / "ours"))
        self._sides += [self._ours, Bare(_made(self._folder / "bare")), Least(_made(self._folder / "least"))]
        if installed():
            self._sides.append(Etcd(_made(self._folder / "etcd")))
            self._sides.append(Etcd(_made(self._folder / "tuned"), heartbeat_ms=30, election_ms=150))
            self._sides.append(Etcd(_made(self._folder / "secure"), secure=True))
        phases: dict[str, tuple[float, Phase]] = {
            "writes": (240, self._writes),
            "fanout": (120, self._fan_out),
            "failover": (300, self._failovers),
            "mirror": (60, self._mirror),
            "records": (240, self._records),
            "snapshots": (90, self._snapshots),
        }
        with ending([node for side in self._sides for node in side.nodes]):
            await self._start()
            for name, (budget_s, phase) in phases.items():
                if name in wanted:
                    await self._phase(name, budget_s, phase)

    async def _phase(self, name: str, budget_s: float, phase: Phase) -> None:
        try:
            async with asyncio.timeout(budget_s):
                await phase()
        except (*load.FAILURES, LookupError, OSError, ExceptionGroup) as error:
            self.trouble.append(f"{name}: {_said(error)}")
            self._say(f"{name} was not measured whole: {self.trouble[-1]}")

    async def _start(self) -> None:
        for side in self._sides:
            self._say(f"starting {side.name}")
            await side.start()
            await asyncio.sleep(_IDLE_S)
            self.samples.add(side.name, "rss_idle", _rss(side))
            pause(side)

    @asynccontextmanager
    async def _alone(self, side: Side) -> AsyncIterator[None]:
        """Let one side run while all others are paused, which they are between turns."""
        await resume(side)
        try:
            yield
        finally:
            pause(side)

    @property
    def _pair(self) -> list[Side]:
        """We and etcd as it comes."""
        return self._named(OURS, ETCD)

    def _named(self, *names: str) -> list[Side]:
        return [side for side in self._sides if side.name in names]

    async def _writes(self) -> None:
        ways = [
            ("unary", 1),
            ("unary", 16),
            ("unary", 64),
            ("stream", 1),
            ("stream", 16),
            ("stream", 64),
            ("stream", 256),
        ]
        for number in range(self._plan.rounds):
            for side in self._pair:
                self._say(f"writes, round {number + 1} of {self._plan.rounds}: {side.name}")
                async with self._alone(side):
                    for way, workers in ways:
                        await self._closed_loop(side, way, workers, f"{way}_{workers}")
            for side in self._named(SECURE, BARE, LEAST):
                self._say(f"writes, round {number + 1} of {self._plan.rounds}: {side.name}")
                async with self._alone(side):
                    for way, workers in _FEWER_WAYS[side.name]:
                        await self._closed_loop(side, way, workers, f"{way}_{workers}")

    async def _closed_loop(self, side: Side, way: str, workers: int, name: str) -> None:
        async with side.writer(way) as write:
            done = await load.closed_loop(write, workers=workers, seconds=self._plan.seconds)
        self.samples.add(side.name, name, done.rate)
        if done.writes:
            self.samples.add(side.name, f"{name}_p50", done.p50_ms)
            self.samples.add(side.name, f"{name}_p99", done.p99_ms)

    async def _fan_out(self) -> None:
        for count in self._plan.watchers:
            for number in range(2):
                for side in self._named(OURS, ETCD, *([SECURE, BARE] if count == _SECURE_WATCHERS else [])):
                    self._say(f"one event to {count} watchers, round {number + 1} of 2: {side.name}")
                    async with self._alone(side):
                        taken = await load.fan_out_ms(side, count, self._plan.events)
                    self.samples.add(side.name, f"fanout_{count}", *taken)

    async def _failovers(self) -> None:
        for number in range(self._plan.failovers):
            for side in self._named(OURS, ETCD, TUNED):
                self._say(f"losing the leader, round {number + 1} of {self._plan.failovers}: {side.name}")
                async with self._alone(side):
                    await self._lose_leader(side, signal.SIGKILL, "kill")
                    await self._lose_leader(side, signal.SIGSTOP, "silent")
            async with self._alone(self._ours):
                await self._lose_leader(self._ours, signal.SIGKILL, "kill_sdk", self._ours.client())
                await self._lose_leader(self._ours, signal.SIGSTOP, "silent_sdk", self._ours.client())

    async def _lose_leader(
        self, side: Side, number: signal.Signals, name: str, client: load.Client | None = None
    ) -> None:
        leader = await side.leader()
        try:
            self.samples.add(side.name, name, await load.failover_ms(side, leader, number, client))
        finally:
            side.nodes[leader].kill()
            side.restart(leader)
        await settled(side)
        await _first_read_s(side, leader)

    async def _mirror(self) -> None:
        self._say("mirror: checks without a call")
        async with self._alone(self._ours), self._ours.mirrored() as plane:
            check, config = mirror_us(plane)
        self.samples.add(OURS, "mirror_check", *check)
        self.samples.add(OURS, "mirror_config", *config)

    async def _fleet(self) -> None:
        self._say("starting three regions of one node each")
        async with fleet.running(_made(self._folder / "fleet")) as regions:
            await self._phase("fresh region", 90, lambda: self._fresh(regions))
            await regions.join()
            await self._phase("shared records", 60, lambda: self._shared(regions))
            await self._phase("isolation", 120, lambda: self._isolation(regions))

    async def _fresh(self, regions: fleet.Fleet) -> None:
        self._say(f"{_SHARED_RECORDS} shared records, for regions that have none of them")
        revision = await regions.fill(_SHARED_RECORDS)
        for abroad in (True, False):
            found = await regions.fresh(abroad=abroad, revision=revision, count=_SHARED_RECORDS)
            self.samples.add(OURS, "fresh", found.seconds)
            self.samples.add(OURS, "fresh_copying", found.copying_s)

    async def _shared(self, regions: fleet.Fleet) -> None:
        self._say("shared records on their way to every region")
        await asyncio.sleep(_IDLE_S)
        found = await regions.shared(self._plan.shared)
        commits = [1e3 * (each.acknowledged - each.began) for each in found]
        self.samples.add(OURS, "shared", *(1e3 * (each.arrived - each.began) for each in found))
        self.samples.add(OURS, "shared_after_ack", *(1e3 * (each.arrived - each.acknowledged) for each in found))
        self.samples.add(OURS, "shared_commit", *commits)
        self.samples.add(OURS, "shared_bound", 1.5e3 * fleet.LINK_S + statistics.median(commits))

    async def _isolation(self, regions: fleet.Fleet) -> None:
        for number in range(self._plan.isolations):
            self._say(f"a region is cut off and healed, round {number + 1} of {self._plan.isolations}")
            found = await regions.isolated(self._plan.seconds)
            self.samples.add(OURS, "connected_rate", found.before)
            self.samples.add(OURS, "isolated_rate", found.during)
            self.samples.add(OURS, "isolated", _ratio(found.during, found.before))
            self.samples.add(OURS, "healed", _ratio(found.after, found.before))

    async def _ledger(self) -> None:
        plan = self._plan
        async with alone(_made(self._folder / "alone") / "store") as node:
            for number in range(plan.ledger_rounds):
                self._say(f"a node alone with and without ledger, round {number + 1} of {plan.ledger_rounds}")
                found = {each: await node.rates(ledger=each, seconds=plan.seconds / 2) for each in _turns(number)}
                self._compare("alone", found)
        regions = {each: Ours(_made(self._folder / f"ledger-{each}"), ledger=each) for each in (True, False)}
        with ending([node for region in regions.values() for node in region.nodes]):
            for region in regions.values():
                await region.start()
                pause(region)
            for number in range(plan.ledger_rounds):
                self._say(f"a region with and without ledger, round {number + 1} of {plan.ledger_rounds}")
                self._compare("ledger", {each: await self._rates(regions[each]) for each in _turns(number)})
        for each, region in regions.items():
            if (leaves_in(region.store_folder(0)) > 0) != each:
                raise load.NotMeasured("the region without a ledger has one, or the one with a ledger has none")

    def _compare(self, prefix: str, found: dict[bool, dict[str, float]]) -> None:
        for name, rate in found[True].items():
            self.samples.add(OURS, f"{prefix}_{name}", _ratio(rate, found[False][name]))

    async def _rates(self, region: Ours) -> dict[str, float]:
        rates = {}
        async with self._alone(region):
            for name, client in (("writes", region.writer("stream")), ("switches", region.switcher())):
                async with client as write:
                    rates[name], rates[f"{name}_cpu"] = await load.costed(
                        write, region.cpu_s, workers=64, seconds=self._plan.seconds, warm_s=0.5
                    )
        return rates

    async def _bundle(self) -> None:
        count = self._plan.leaves
        folder = _made(self._folder / "bundle")
        self._say(f"making a bundle of {count} leaves")
        await reviewer.made(folder, count)
        self._say("verifying it")
        seconds, peak_mb = await reviewer.verified(folder)
        self.samples.add(OURS, f"verify_{count}", seconds)
        self.samples.add(OURS, f"verify_{count}_peak", peak_mb)

    async def _snapshots(self) -> None:
        """Snapshots of what one of our nodes holds, in this process; on a copy of its store."""
        self._say("snapshots beside a running loop")
        copy, scratch = self._folder / "copy", _made(self._folder / "scratch")
        async with self._alone(self._ours):
            follower = await _follower(self._ours)
            self._ours.nodes[follower].kill()
            shutil.copytree(self._ours.store_folder(follower), copy)
            self._ours.restart(follower)
        pause(self._ours)
        quiet, stalls = await snapshot_stalls_ms(copy, scratch, self._plan.snapshots)
        self.samples.add(OURS, "quiet_stall", *quiet)
        self.samples.add(OURS, "snapshot_stall", *stalls)

    async def _records(self) -> None:
        filled = {side.name: 0 for side in self._pair}
        for count in self._plan.records:
            for side in self._pair:
                self._say(f"{count} records: {side.name}")
                async with self._alone(side):
                    await _fill(side, filled[side.name], count)
                    filled[side.name] = count
                    for _ in range(2):
                        await self._closed_loop(side, "stream", 64, f"stream_64_at_{count}")
        for side in self._pair:
            async with self._alone(side):
                await asyncio.sleep(_IDLE_S)
                self.samples.add(side.name, "rss_full", _rss(side))
        for number in range(self._plan.restarts):
            for side in self._pair:
                self._say(f"restart with {count} records, round {number + 1} of {self._plan.restarts}: {side.name}")
                async with self._alone(side):
                    self.samples.add(side.name, "restart", await _restart_s(side))


def _ratio(rate: float, compared: float) -> float:
    if not compared:
        raise load.NotMeasured("there was not one write to compare with")
    return rate / compared


def _turns(number: int) -> tuple[bool, bool]:
    """With and without, each first in every other round: what changes along a run is then in neither's favour."""
    return (True, False) if number % 2 else (False, True)


def _said(error: BaseException) -> str:
    """The first of the errors that came together, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no answer in time'}"


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _rss(side: Side) -> float:
    return statistics.median(node.rss_mb() for node in side.nodes)


async def _fill(side: Side, start: int, end: int) -> None:
    """Write the records of so many numbers once each."""
    numbers = iter(range(start, end))

    async def work() -> None:
        for number in numbers:
            await write(number)

    async with side.writer("stream") as write, asyncio.TaskGroup() as group:
        for _ in range(_FILL_WORKERS):
            group.create_task(work())


async def _restart_s(side: Side) -> float:
    """Kill a follower and start it again: until its first linearizable read is answered."""
    node = await _follower(side)
    side.nodes[node].kill()
    side.restart(node)
    return await _first_read_s(side, node)


async def _follower(side: Side) -> int:
    return (await side.leader() + 1) % len(side.nodes)


async def _first_read_s(side: Side, node: int) -> float:
    began = time.perf_counter()
    async with asyncio.timeout(_BACK_TIMEOUT_S), side.reader(node) as read:
        return await load.first_of(lambda: (read(0),)) - began
