"""The story of a fleet: three regions at work, one of them cut off, a kill switch that crosses borders, and reports.

The residency reports are verified as a reviewer would do it: offline, by a program that shares no code with the rest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from controlplane import sdk
from controlplane.demo.agents import AGENT_TYPE, Agent, orchestrate
from controlplane.demo.record import Record, quantile_ms, rounded
from controlplane.demo.story import READY_TIMEOUT_S, Say, Story, connected, tasks_of
from controlplane.loopback import PINNED, LoopbackFleet, ending, residency_claims

JURISDICTIONS = {"eu": ("eu-west", "eu-central"), "us": ("us-east",)}
CANARY = "canary-of-pinned-data-7f3d"
"""Stands in a pinned record of the first region; it must turn up nowhere else."""

_HOME, _NEIGHBOUR, _ABROAD = "eu-west", "eu-central", "us-east"
_BY_OTHERS = ("COSIGNED", "MATCHED", "SCAN")
"""Claims about each peer and each node: in a fleet that is all here, none of them may stay unchecked."""
_CANDIDATES = 3
_SHARED_FLAGS = 40
_CROSS_KILLS = 10
_ISOLATED_S = 3.0
_COSIGNED_S = 30.0
_READY_TIMEOUT_S = 90.0
"""Nine nodes start at once on a machine that may have two cores."""


@dataclass(slots=True)
class FleetRecord(Record):
    """What a run of the fleet's story adds."""

    regions: int = 0
    pinned_bytes_leaked: int | None = None
    pinned_read_denied: bool | None = None
    isolated_writes: int = 0
    caught_up: bool = False
    lag_s: list[float] = field(default_factory=list)
    """From the acknowledgement of a shared record at home to its arrival in each other region."""
    kill_abroad_s: list[float] = field(default_factory=list)
    """From before a switch was thrown to the news of it at each agent of another region."""
    claims: dict[str, dict[str, str]] = field(default_factory=dict)
    """By region whose report it is: claim and what became of it."""

    @property
    def report_verified(self) -> bool:
        """Whether every report was verified: no claim failed, and those that need no other evidence passed."""
        return len(self.claims) == self.regions and all(
            "FAIL" not in found.values()
            and all(found.get(claim) == "PASS" for claim in ("LEAVES", "RECORDS", "REACH"))
            and all(status == "PASS" for claim, status in found.items() if claim.startswith(_BY_OTHERS))
            for found in self.claims.values()
        )

    def problems(self) -> list[str]:
        """See `Record`."""
        rules = {
            f"{self.pinned_bytes_leaked} bytes of pinned data left their region": self.pinned_bytes_leaked != 0,
            "a read of pinned data from outside was not denied": self.pinned_read_denied is not True,
            "the region that was cut off did not go on": self.isolated_writes == 0,
            "the region that was cut off did not catch up": not self.caught_up,
            "a report was not verified": not self.report_verified,
            "no shared record was seen to arrive": not self.lag_s,
            "no kill switch was seen to cross a border": not self.kill_abroad_s,
        }
        return Record.problems(self) + [text for text, broken in rules.items() if broken]

    def report(self, duration_s: float) -> dict[str, Any]:
        """See `Record`."""
        return {
            **Record.report(self, duration_s),
            "regions": self.regions,
            "pinned_bytes_leaked": self.pinned_bytes_leaked,
            "pinned_read_denied": self.pinned_read_denied,
            "isolated_writes": self.isolated_writes,
            "federation_lag_ms_p50": quantile_ms(self.lag_s, 0.50),
            "federation_lag_ms_p99": quantile_ms(self.lag_s, 0.99),
            "kill_cross_region_ms_p50": quantile_ms(self.kill_abroad_s, 0.50),
            "kill_cross_region_ms_p99": quantile_ms(self.kill_abroad_s, 0.99),
            "kill_cross_region_ms_max": rounded(1e3 * max(self.kill_abroad_s)) if self.kill_abroad_s else None,
            "report_verified": self.report_verified,
            "report_claims": self.claims,
        }


class FleetStory(Story):
    """One run of the fleet's demonstration in `folder`, with so many agents in all."""

    def __init__(self, folder: Path, agents: int, say: Say) -> None:
        self._fleet = LoopbackFleet(folder, JURISDICTIONS)
        self._folder = folder
        self.notes = FleetRecord(agents, regions=len(self._fleet.regions))
        self._begin(self.notes, self._fleet.regions[_HOME], say)
        self._programs = self._fleet.nodes
        self._operators: dict[str, sdk.ControlPlane] = {}

    async def tell(self) -> None:
        """See `Story`."""
        with ending(self._fleet.nodes):
            self._say("starting three regions of three nodes each")
            await self._fleet.join()
            for region in self._fleet.regions.values():
                region.start()
            try:
                async with AsyncExitStack() as planes:
                    await self._tell(planes)
                self._say("stopping all nodes, and searching every disk for what is pinned")
                await asyncio.gather(*(node.stop(timeout_s=20) for node in self._fleet.nodes))
                self.notes.pinned_bytes_leaked = await asyncio.to_thread(self._leaked)
            finally:
                await self._fleet.close()

    async def _tell(self, planes: AsyncExitStack) -> None:
        for name, region in self._fleet.regions.items():
            async with asyncio.timeout(_READY_TIMEOUT_S):
                self._operators[name] = await connected(region.addresses, region.identity("operator", "admin"))
            planes.push_async_callback(self._operators[name].close)
        home = self._operators[_HOME]
        await self._prepare_all()
        crew = await self._enter_all(planes)
        watching = asyncio.create_task(self._watch_leader(home))
        working = [asyncio.create_task(agent.work(self._over)) for agent in crew]
        campaigning = [
            asyncio.create_task(orchestrate(plane, self._turns, self.record, self._over))
            for plane in self._planes[:_CANDIDATES]
        ]
        try:
            await self._go_through(home, crew)
        finally:
            self._over.set()
            for task in [watching, *campaigning]:
                task.cancel()
            await asyncio.gather(watching, *campaigning, *working, return_exceptions=True)
        await self._verify_all()
        await self._report()

    async def _go_through(self, home: sdk.ControlPlane, crew: Sequence[Agent]) -> None:
        self._say(f"{len(crew)} agents at work in {len(self._fleet.regions)} regions")
        await self._until(lambda: len(self.record.fences) == 1 and self.record.acknowledged > len(crew))
        await self._pin()
        await self._share()
        await self._isolate()
        await self._kill_leader(home)
        await self._change_orchestrator()
        await self._stop_agents(home, crew)
        await self._kill_abroad(home)

    async def _prepare_all(self) -> None:
        for name, operator in self._operators.items():
            await self._prepare(operator) if name == _HOME else await self._prepare_other(name, operator)

    async def _prepare_other(self, name: str, operator: sdk.ControlPlane) -> None:
        for workflow in self._shared_of(name):
            await operator.create_workflow(workflow, b"{}")

    def _shared_of(self, name: str) -> list[str]:
        return self._shared() if name == _HOME else [f"{name}/{each}" for each in self._shared()]

    async def _enter_all(self, planes: AsyncExitStack) -> list[Agent]:
        self._planes: list[sdk.ControlPlane] = []
        self._abroad: list[sdk.ControlPlane] = []
        crew, names = [], list(self._fleet.regions)
        # Those of the home region first: candidates are taken from them.
        for number in range(self.record.agents):
            name = names[number * len(names) // self.record.agents]
            shared = self._shared_of(name)
            crew.append(
                await self._enter(
                    planes, self._fleet.regions[name], f"{name}-{number + 1:02}", shared[number % len(shared)]
                )
            )
            if name != _HOME:
                self._abroad.append(self._planes[-1])
        return crew

    async def _pin(self) -> None:
        self._say(f"writing a canary into pinned data of {_HOME}, and asking for it from {_ABROAD}")
        partition = f"{_HOME}.prod.{PINNED}"
        await self._operators[_HOME].create_workflow(CANARY, CANARY.encode(), partition=partition)
        refused = 0
        for name in (_NEIGHBOUR, _ABROAD):
            try:
                await self._operators[name].get_workflow(CANARY, partition=partition)
            except sdk.Denied:
                refused += 1
        self.notes.pinned_read_denied = refused == 2

    async def _share(self) -> None:
        self._say(f"{_SHARED_FLAGS} shared records, to measure how soon the other regions have them")
        arrived: dict[str, dict[str, float]] = {}
        watching = [
            asyncio.create_task(_note_arrivals(operator, f"{_HOME}.prod.config", arrived.setdefault(name, {})))
            for name, operator in self._operators.items()
            if name != _HOME
        ]
        try:
            for number in range(_SHARED_FLAGS):
                flag = f"shared-{number:03}"
                await self._operators[_HOME].set_flag(_flag(flag), reason="demonstration")
                acknowledged_s = time.monotonic()
                await self._until(
                    lambda name=flag: (  # type: ignore[misc]
                        all(name in seen for seen in arrived.values()) or any(task.done() for task in watching)
                    )
                )
                for ended in (task for task in watching if task.done()):
                    ended.result()
                self.notes.lag_s += [max(0.0, seen[flag] - acknowledged_s) for seen in arrived.values()]
        finally:
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)

    async def _isolate(self) -> None:
        self._say(f"cutting {_ABROAD} off")
        await self._fleet.cut_off(_ABROAD)
        before = self._written_in(_ABROAD)
        await asyncio.sleep(_ISOLATED_S / 2)
        await self._operators[_HOME].set_flag(_flag("while-cut-off"), reason="demonstration")
        await asyncio.sleep(_ISOLATED_S / 2)
        self.notes.isolated_writes = self._written_in(_ABROAD) - before
        self._say(f"{self.notes.isolated_writes} writes in isolation; healing")
        await self._fleet.heal(_ABROAD)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self.notes.caught_up and time.monotonic() < deadline:
            self.notes.caught_up = await _has_copy(self._operators[_ABROAD], f"{_HOME}.prod.config", "while-cut-off")
            await asyncio.sleep(0.05)

    def _written_in(self, region: str) -> int:
        counted = sum(number for (_, agent), number in self.record.counted.items() if agent.startswith(region))
        return counted + sum(task.startswith(f"task/{region}") for task in self.record.created)

    async def _kill_abroad(self, home: sdk.ControlPlane) -> None:
        self._say(f"{_CROSS_KILLS} more kill switches, to measure how soon agents of other regions learn of one")
        scope = sdk.Scope(kind=sdk.SCOPE_TOOL, name="unused")
        for _ in range(_CROSS_KILLS):
            for engage in (True, False):
                seen = await self._throw(home, scope, engage=engage)
                self.notes.kill_abroad_s += seen if engage else []

    async def _throw(self, home: sdk.ControlPlane, scope: sdk.Scope, *, engage: bool) -> list[float]:
        """Throw a switch at home; how long it took to reach each agent abroad. For those at home it is noted."""
        at_home = [plane for plane in self._planes if plane not in self._abroad]
        began_s = time.monotonic()
        seen: list[float] = []
        near: list[float] = []
        ends = [
            plane.on_kill_change(lambda view: seen.append(time.monotonic() - began_s) if view.region else None)
            for plane in self._abroad
        ]
        ends += [plane.on_kill_change(lambda _: near.append(time.monotonic() - began_s)) for plane in at_home]
        try:
            await (home.engage if engage else home.release)(scope, reason="demonstration")
            await self._until(lambda: len(seen) >= len(self._abroad) and len(near) >= len(at_home))
        finally:
            for end in ends:
                end()
        if engage:
            self.record.kill_seen_s += near
        return seen

    async def _stop_agents(self, operator: sdk.ControlPlane, crew: Sequence[Agent]) -> None:
        self._say(f"kill switch for all workers, thrown in {_HOME}")
        scope = sdk.Scope(kind=sdk.SCOPE_AGENT_TYPE, name=AGENT_TYPE)
        abroad = dict(zip(self._planes, crew, strict=True))
        ends = [plane.on_kill_change(abroad[plane].heard_from_abroad) for plane in self._abroad]
        try:
            self.notes.kill_abroad_s += await self._throw(operator, scope, engage=True)
            await self._until(lambda: all(agent.stopped for agent in crew))
            self._say("all agents of all regions stand still")
            await asyncio.sleep(1)
            for agent in crew:
                agent.stopped = False
            await self._throw(operator, scope, engage=False)
        finally:
            for end in ends:
                end()
        self._say("released: agents go on")

    async def _verify_all(self) -> None:
        self._say("reading everything back")
        counts, present = {}, set()
        for name, operator in self._operators.items():
            for workflow in self._shared_of(name):
                found = await operator.get_workflow(workflow)
                counts[workflow] = sdk.JSON.decode(found.workflow.workflow.state)
            present |= await tasks_of(operator)
        self.record.read_back(counts, present)
        self._say("comparing the replicas")
        await self._compare_replicas()

    async def _report(self) -> None:
        """Each region's residency report, verified as a reviewer would: by a program that shares no code with it."""
        self._say("writing the residency reports, and verifying them offline")
        self.notes.claims = await residency_claims(
            self._fleet.regions, self._fleet.trust(), self._folder, "demonstration", cosigned_s=_COSIGNED_S
        )

    def _leaked(self) -> int:
        """Bytes of the canary on disks of other regions: data, logs of the log, and what the nodes printed."""
        found = 0
        for name in self._fleet.regions:
            if name == _HOME:
                continue
            for file in (self._folder / name).rglob("*"):
                if file.is_file():
                    found += file.read_bytes().count(CANARY.encode()) * len(CANARY)
        return found


def _flag(name: str) -> sdk.Flag:
    return sdk.Flag(
        name=name,
        type=sdk.FlagType.BOOL,
        enabled=True,
        variants=[sdk.Variant(name="on", value=sdk.FlagValue(bool_value=True))],
        default_variant="on",
    )


async def _note_arrivals(operator: sdk.ControlPlane, partition: str, arrived: dict[str, float]) -> None:
    # From what is there on: the first record may have arrived before the watch begins.
    async for change in operator.watch(kinds=["flag"], partition=partition, snapshot=True):
        arrived.setdefault(change.name, time.monotonic())


async def _has_copy(operator: sdk.ControlPlane, partition: str, flag: str) -> bool:
    try:
        await operator.get_flag(flag, partition=partition, consistency=sdk.LOCAL)
    except sdk.NotFound:
        return False
    return True
