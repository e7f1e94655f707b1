"""`python -m chaos fleet`: three regions of real processes, at work, with what lies between them broken and healed.

1. Every region works for itself from beginning to end: workflows, flags, kill switches. What it told its own clients
   is held against the same models as for a region alone, and it has to have done enough, cut off or not.
2. Faults come from a seeded plan, one after the other. Each is seen to have happened, in what nodes say of their links
   or how processes ended; after each the copies have to be up to date again within a stated time.
3. In the end what everybody saw of the others is compared with what happened at home, copies with records, digests of
   both sides with each other, and each region's report is verified by the reviewer's own program.
4. Nothing is tried twice. A red run keeps its folder and prints the command that repeats its plan.
"""

from __future__ import annotations

import asyncio
import json
import time
import traceback
import urllib.request
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from itertools import count, permutations, product
from pathlib import Path
from random import Random
from shutil import rmtree
from typing import Any

import click
from google.protobuf.message import Message
from rich.console import Console

from chaos import fleet_checks
from chaos.fleet_checks import Broken
from chaos.fleet_faults import (
    BOUND_S,
    END_TIMEOUT_S,
    FAULTS,
    BreakableFleet,
    Disturbance,
    Fault,
    Way,
)
from chaos.fleet_load import Chronicle, OwnFlags, OwnStops, OwnWorkflows, Watcher, record_of, stop_of
from chaos.real.recording import now_ns
from chaos.real.report import UNKNOWN_SHARE_MAX, Finding
from chaos.real.workloads.base import Workload
from controlplane.demo.story import connected
from controlplane.features.switches import opaque, record_name
from controlplane.loopback import ending, residency_claims
from controlplane.sdk import LINEARIZABLE, LOCAL, SCOPE_TOOL, ControlPlane, ControlPlaneError, Scope
from controlplane.v1.records_pb2 import Reach

MIXED = "mixed"
SCENARIOS = (*FAULTS, MIXED)
ROOT = Path("build/chaos")
READY_S = 90.0
CALM_S = 3.0
LAST_CALM_S = BOUND_S + 2.0
"""The end is quiet for longer than the bound on stops, so that every run says something about it."""
REST_S = (0.5, 1.5)
CATCH_UP_S = 15.0
"""So soon after healing the copies have to be what their homes were at that moment."""
EQUAL_S = 15.0
"""So soon after the load ended copies and records are equal."""
FLOOR = 10.0
"""Answers per second of each region, while it is well and while others cannot reach it."""
LOOKS_MIN = 50
"""Looks of each region at each other one's stops."""
_COSIGNED_S = 45.0
_LOOK_S = 0.1
_DIFFERENCES = "controlplane_federation_differences_total"
_PROVEN = ("LEAVES", "RECORDS", "REACH")
_SHARED = (("flag", "config", Reach.GLOBAL), ("workflow", "state", Reach.JURISDICTION), ("stop", "stops", Reach.GLOBAL))

_TOLD = {**{kind: word for kind, word, _ in _SHARED}, "switch": "switches"}
"""Kinds of records of which everything that happens at home is taken down, and the partitions they are in."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run."""

    scenario: str
    seconds: float
    seed: int
    size: int = 1

    @property
    def command(self) -> str:
        """The command that repeats it."""
        asked = f"python -m chaos fleet --scenario {self.scenario} --seconds {self.seconds:g} --seed {self.seed}"
        return asked if self.size == 1 else f"{asked} --size {self.size}"


@dataclass(slots=True)
class Strike:
    """One fault, in seconds since the load began; `caught_up_s` is counted from healing."""

    fault: str
    detail: str
    began_s: float
    healed_s: float = 0.0
    observed: bool = False
    caught_up_s: float | None = None


@dataclass(slots=True)
class Report:
    """One run. `again` is the command that repeats it."""

    scenario: str
    seed: int
    size: int
    again: str
    folder: str
    strikes: list[Strike] = field(default_factory=list)
    load: dict[str, dict[str, float]] = field(default_factory=dict)
    """By region: operations, writes, unknown outcomes, answers per second: all in all, and at worst during a fault."""
    checked: dict[str, int] = field(default_factory=dict)
    equal_s: float | None = None
    findings: list[Finding] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """Passed or FAILED."""
        return "FAILED" if self.findings else "passed"

    def found(self, kind: str, text: str) -> None:
        """Make the run red."""
        self.findings.append(Finding(kind, text))

    def count(self, what: str, by: int) -> None:
        """Say how much was checked."""
        self.checked[what] = self.checked.get(what, 0) + by

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        return {"verdict": self.verdict, **asdict(self)}


class FleetRun:
    """One run in `folder`, which has to be empty."""

    def __init__(self, plan: Plan, folder: Path, say: Say, faults: Mapping[str, type[Fault]] = FAULTS) -> None:
        self.report = Report(plan.scenario, plan.seed, plan.size, plan.command, str(folder))
        self.random = Random(f"{plan.seed}/{plan.scenario}")
        self.operators: dict[str, ControlPlane] = {}
        self.stops: dict[str, OwnStops] = {}
        self._plan, self._folder, self._say = plan, folder, say
        chosen = (
            [name for name, of in faults.items() if not of.forgetful] if plan.scenario == MIXED else [plan.scenario]
        )
        self._faults = {name: faults[name] for name in chosen}
        self._chronicles: dict[tuple[str, str], Chronicle] = {}
        """By home and kind."""
        self._loads: dict[str, list[Workload]] = {}
        self._watchers: dict[tuple[str, str, str], Watcher] = {}
        """By home, observing region and kind."""
        self._disturbances: list[Disturbance] = []
        self._over = asyncio.Event()
        self._began_ns = self._ended_ns = 0

    async def go(self) -> Report:
        """Run it to its end. Whatever stops it is a finding; only cancelling comes through."""
        try:
            forgetful = any(each.forgetful for each in self._faults.values())
            self.fleet = BreakableFleet(self._folder, size=self._plan.size, forgetful=forgetful)
            with ending(self.fleet.nodes):
                await self._run()
        except Exception as error:
            # The one boundary: a run that breaks is red, and keeps its folder.
            self.report.found("broken", f"{type(error).__name__}: {error}")
            (self._folder / "broken.txt").write_text(traceback.format_exc())
        return self.report

    # What faults need

    def say(self, what: str) -> None:
        """See `Scene`."""
        self._say(what)

    def found(self, kind: str, text: str) -> None:
        """See `Scene`."""
        self.report.found(kind, text)

    def disturbs(self, ways: Sequence[Way], down: Sequence[str] = ()) -> Disturbance:
        """See `Scene`."""
        begun = Disturbance(now_ns(), frozenset(ways), frozenset(down))
        self._disturbances.append(begun)
        return begun

    def sweeps(self, home: str, seer: str, *, on: bool) -> None:
        """See `Scene`."""
        for (of, by, _), watcher in self._watchers.items():
            if (of, by) == (home, seer):
                watcher.sweep(on=on)

    # While it runs

    async def _run(self) -> None:
        self.say(f"starting three regions of {self._plan.size}")
        await self.fleet.join()
        for region in self.fleet.regions.values():
            region.start()
        try:
            async with AsyncExitStack() as stack:
                await self._enter(stack)
                await self._loaded()
                await self._judge()
            await self._verify()
            await self._stop()
        finally:
            await self.fleet.close()

    async def _enter(self, stack: AsyncExitStack) -> None:
        async with asyncio.timeout(READY_S):
            for name, region in self.fleet.regions.items():
                operator = await connected(region.addresses, region.identity("operator", "harness"))
                stack.push_async_callback(operator.close)
                self.operators[name] = operator
            await self._up_to_date(READY_S)
        for home, (kind, word) in product(self.fleet.regions, _TOLD.items()):
            self._chronicles[home, kind] = Chronicle(self.operators[home], kind, f"{home}.prod.{word}")
        for name, region in self.fleet.regions.items():
            stops = OwnStops(region, self._plan.seed, [other for other in self.fleet.regions if other != name])
            workflows = OwnWorkflows(region, self._plan.seed, self._chronicles[name, "workflow"])
            loads: list[Workload] = [workflows, OwnFlags(region, self._plan.seed), stops]
            for load in loads:
                await stack.enter_async_context(load)
            self._loads[name], self.stops[name] = loads, stops
        for home, seer in permutations(self.fleet.regions, 2):
            for kind, word, reach in _SHARED:
                if reach == Reach.JURISDICTION and not self._same_law(home, seer):
                    continue
                partition = "" if kind == "stop" else f"{home}.prod.{word}"
                random = Random(f"{self._plan.seed}/{home}/{seer}/{kind}")
                self._watchers[home, seer, kind] = Watcher(self.operators[seer], home, kind, partition, random)

    def _same_law(self, one: str, other: str) -> bool:
        return one.partition("-")[0] == other.partition("-")[0]

    async def _loaded(self) -> None:
        """Load, watchers and faults side by side."""
        self._began_ns = now_ns()
        watching = [asyncio.create_task(each.run()) for each in self._watchers.values()]
        watching += [asyncio.create_task(each.follow()) for each in self._chronicles.values()]
        working = [
            asyncio.create_task(work)
            for loads in self._loads.values()
            for load in loads
            for work in load.work(self._over)
        ]
        acting = asyncio.create_task(self._acts())
        try:
            pending = {acting, *watching, *working}
            while acting in pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            self._ended_ns = now_ns()
            self._over.set()
            await asyncio.wait_for(asyncio.gather(*working), END_TIMEOUT_S)
        finally:
            for task in (acting, *watching, *working):
                task.cancel()
            await asyncio.gather(acting, *watching, *working, return_exceptions=True)

    async def _acts(self) -> None:
        await asyncio.sleep(CALM_S)
        deck: list[str] = []
        while True:
            if not deck:
                deck = list(self._faults)
                self.random.shuffle(deck)
            await self._strike(self._faults[deck.pop()](self))
            self._check_nodes()
            rest_s = self.random.uniform(*REST_S)
            if self._now_s() + rest_s + LAST_CALM_S >= self._plan.seconds:
                break
            await asyncio.sleep(rest_s)
        await asyncio.sleep(max(LAST_CALM_S, self._plan.seconds - self._now_s()))

    async def _strike(self, fault: Fault) -> None:
        strike = Strike(fault.name, "", self._now_s())
        self.report.strikes.append(strike)
        try:
            await fault.inject()
            strike.detail = fault.detail
            self.say(f"{fault.name}: {fault.detail}")
            strike.observed = await fault.seen()
            strike.detail = fault.detail
            await asyncio.sleep(self.random.uniform(*fault.hold_s))
        finally:
            await fault.heal()
        healed = time.monotonic()
        strike.healed_s = self._now_s()
        fault.disturbance.ended_ns = now_ns()
        try:
            await self._up_to_date(CATCH_UP_S)
        except TimeoutError as error:
            self.report.found("catching up", f"{CATCH_UP_S:g} s after {fault.name} ({fault.detail}): {error}")
            return
        strike.caught_up_s = round(time.monotonic() - healed, 2)
        self.say(f"{fault.name} healed; every copy is up to date after {strike.caught_up_s} s")

    async def _up_to_date(self, timeout_s: float) -> None:
        """Return when every copy is what its home was at this moment. Raises `TimeoutError` saying which are not."""
        wanted = {name: (await operator.get_status()).header.revision for name, operator in self.operators.items()}
        behind: list[str] = []
        end = time.monotonic() + timeout_s
        while True:
            behind = [text for name in self.operators for text in await self._behind(name, wanted)]
            if not behind:
                return
            if time.monotonic() > end:
                raise TimeoutError("; ".join(behind))
            await asyncio.sleep(_LOOK_S)

    async def _behind(self, name: str, wanted: Mapping[str, int]) -> list[str]:
        try:
            links = (await self.operators[name].get_status(timeout_s=2.0)).links
        except ControlPlaneError as error:
            return [f"{name} does not answer: {error.reason}"]
        found = []
        for link in links:
            reaches = 2 if self._same_law(name, link.region) else 1
            views = [view for view in link.views if not view.listing and view.revision >= wanted[link.region]]
            if link.state != "up" or len(views) < reaches:
                at = ", ".join(f"{Reach.Name(view.reach)} {view.revision}" for view in link.views)
                why = f"link {link.state} {link.reason}".strip()
                found.append(
                    f"{name} has {at or 'nothing'} of {link.region}, which was at {wanted[link.region]}; {why}"
                )
        return found

    def _check_nodes(self) -> None:
        for region in self.fleet.regions.values():
            for name, node in zip(region.names, region.nodes, strict=True):
                if not node.running:
                    self.report.found("node ended", f"{name} of {region.name}, and nobody ended it:\n{node.tail()}")

    def _now_s(self) -> float:
        return round((now_ns() - self._began_ns) / 1e9, 3)

    # When it is over

    async def _judge(self) -> None:
        self.say("asking every node for everything")
        for name, loads in self._loads.items():
            for load in loads:
                try:
                    await load.read_back()
                except TimeoutError:
                    self.report.found("healing", f"{name}: not every node answered for everything in time")
        await self._equal()
        self.say("checking what everybody saw")
        for chronicle in self._chronicles.values():
            await chronicle.catch_up()
        await self._judge_copies()
        await self._judge_stops()
        for name, loads in self._loads.items():
            self._weigh(name, loads)
            for load in loads:
                load.book.recorder.write(self._folder / f"history-{name}-{load.name}.jsonl")
                await asyncio.to_thread(load.judge, load.book.recorder.history())
                self.report.findings += [
                    Finding(each.kind, f"{name}, {load.name}: {each.text}") for each in load.findings
                ]
                self.report.count(f"operations of {load.name}", load.book.operations)
        for strike in self.report.strikes:
            if not strike.observed:
                self.report.found("fault", f"{strike.fault} ({strike.detail}) was not seen to do anything")
        await self._judge_passages()

    async def _equal(self) -> None:
        """Wait until every copy equals its records at home, in key, value and revision."""
        began = time.monotonic()
        while differing := [text for of in self._watchers for text in await self._differing(*of)]:
            if time.monotonic() - began > EQUAL_S:
                for text in differing:
                    self.report.found("copies", f"{EQUAL_S:g} s after the load ended: {text}")
                return
            await asyncio.sleep(_LOOK_S)
        self.report.equal_s = round(time.monotonic() - began, 2)

    async def _differing(self, home: str, seer: str, kind: str) -> list[str]:
        if kind == "stop":
            # Of stops there is no listing but a watch's; what watchers saw in the end is compared with their home.
            return []
        here, there = [await self._listed(name, home, kind) for name in (seer, home)]
        names = sorted(name for name in {*here, *there} if here.get(name) != there.get(name))
        self.report.checked[f"copies of {kind}s equal"] = len(there)
        return [f"{len(names)} {kind}s of {home} differ in {seer}, such as {names[0]}"] if names else []

    async def _listed(self, name: str, home: str, kind: str) -> dict[str, tuple[int, bytes]]:
        operator = self.operators[name]
        # Of a copy, what is here: another consistency would have the home answer.
        consistency = LINEARIZABLE if name == home else LOCAL
        found: dict[str, tuple[int, bytes]] = {}
        more, after = True, ""
        while more:
            page: list[tuple[str, int, Message]]
            if kind == "flag":
                flags = await operator.list_flags(after=after, partition=f"{home}.prod.config", consistency=consistency)
                page = [(each.flag.name, each.meta.revision, each.flag) for each in flags.flags]
                more = flags.more
            else:
                workflows = await operator.list_workflows(
                    after=after, partition=f"{home}.prod.state", consistency=consistency
                )
                page = [(each.workflow.id, each.meta.revision, each.workflow) for each in workflows.workflows]
                more = workflows.more
            found |= {key: (revision, value.SerializeToString(deterministic=True)) for key, revision, value in page}
            after = page[-1][0] if page else ""
        return found

    async def _judge_copies(self) -> None:
        for (home, seer, kind), watcher in self._watchers.items():
            truth = fleet_checks.truth_of(map(record_of, self._chronicles[home, kind].changes))
            try:
                await watcher.finish(EQUAL_S)
            except TimeoutError:
                self.report.found("copies", f"a watcher in {seer} did not come to the end of what {home} shares")
            for each in (*fleet_checks.copies(truth, watcher.sessions), *fleet_checks.swept(truth, watcher.swept)):
                self.report.found(each.promise, f"{kind}s of {home} in {seer}: {each.text}")
            if watcher.swept:
                self.report.count("records seen while copies were made anew", len(watcher.swept))
            seen = sum(len(session.messages) for session in watcher.sessions)
            self.report.count(f"transactions of {kind}s that came", seen)
            self.report.count("sessions of watchers", len(watcher.sessions))
            if not truth or not seen:
                self.report.found("load", f"no {kind}s of {home} were seen in {seer}")

    async def _judge_stops(self) -> None:
        for home in self.fleet.regions:
            announced = [(each.name, stop_of(each)) for each in self._chronicles[home, "stop"].changes]
            thrown = self._chronicles[home, "switch"].changes
            for scope in self.stops[home].scopes:
                name = record_name(Scope(kind=SCOPE_TOOL, name=scope))
                switches = [(each.meta.revision, each.switch.engaged) for each in thrown if each.name == name]
                known = [
                    stop
                    for told_as, stop in announced
                    if told_as == opaque(self.fleet.regions[home].fleet, "prod", name)
                ]
                self._report_all(fleet_checks.untold(switches, known), f"{scope} of {home}")
                due = fleet_checks.due(self.stops[home].throws.get(scope, []), switches, known)
                self.report.count("stops told", len(known))
                for seer, mine in self.stops.items():
                    for (observer, of, about), looks in mine.looks.by.items():
                        if (of, about) != (home, scope):
                            continue
                        found = fleet_checks.stops(known, due, looks, self._broken(home, seer), int(BOUND_S * 1e9))
                        self._report_all(found, f"{scope} of {home}, asked in {seer} by {observer}")
                        self.report.count("looks at stops of others", len(looks))
        for seer, mine in self.stops.items():
            for home in self.fleet.regions:
                looked = sum(len(each) for (_, of, _), each in mine.looks.by.items() if of == home)
                if home != seer and looked < LOOKS_MIN:
                    self.report.found("load", f"{looked} looks in {seer} at stops of {home}; {LOOKS_MIN} are needed")

    def _broken(self, home: str, seer: str) -> list[Broken]:
        return [
            Broken(each.began_ns, each.ended_ns or self._ended_ns)
            for each in self._disturbances
            if (home, seer) in each.ways or each.down & {home, seer}
        ]

    def _report_all(self, findings: Sequence[Any], where: str) -> None:
        for each in findings:
            self.report.found(each.promise, f"{where}: {each.text}")

    async def _judge_passages(self) -> None:
        for name, region in self.fleet.regions.items():
            for address in region.metrics_addresses:
                text = await asyncio.to_thread(_scraped, address)
                lines = [line for line in text.splitlines() if line.startswith(_DIFFERENCES)]
                differences = sum(float(line.rpartition(" ")[2]) for line in lines)
                self.report.count("links whose digests were compared", len(lines))
                if not lines or differences:
                    self.report.found(
                        "passages", f"{name}: {differences:g} differences counted, over {len(lines)} links"
                    )

    def _weigh(self, name: str, loads: Sequence[Workload]) -> None:
        """Enough work of each region, all in all and while others cannot reach it; few unknown outcomes."""
        answered = sorted(at_ns for load in loads for at_ns in load.book.answered_ns)
        writes, unknown = (sum(getattr(load.book, of) for load in loads) for of in ("writes", "unknown"))
        down = [each for each in self._disturbances if name in each.down]
        cut = [each for each in self._disturbances if name not in each.down]
        rates = [_rate(answered, each.began_ns, each.ended_ns or self._ended_ns) for each in cut]
        seconds = (self._ended_ns - self._began_ns) / 1e9
        self.report.load[name] = {
            "operations": sum(load.book.operations for load in loads),
            "writes": writes,
            "unknown": unknown,
            "answers_per_s": round(_rate(answered, self._began_ns, self._ended_ns), 1),
            "answers_per_s_worst_fault": round(min(rates, default=_rate(answered, self._began_ns, self._ended_ns)), 1),
        }
        lost_s = sum(((each.ended_ns or self._ended_ns) - each.began_ns) / 1e9 for each in down)
        if len(answered) < FLOOR * max(0.0, seconds - lost_s):
            self.report.found("load", f"{name} answered {len(answered)} times in {seconds:.0f} s")
        for each, rate in zip(cut, rates, strict=True):
            if rate < FLOOR:
                at_s = (each.began_ns - self._began_ns) / 1e9
                self.report.found(
                    "load", f"{name} answered {rate:.1f} times per second during the fault at {at_s:.0f} s"
                )
        if unknown > UNKNOWN_SHARE_MAX * max(1, writes):
            self.report.found("unknown", f"{name}: {unknown} of {writes} writes have an unknown outcome")

    async def _verify(self) -> None:
        """Each region's report, verified as a reviewer does it."""
        self.say("writing the residency reports, and verifying them offline")
        try:
            every = await residency_claims(
                self.fleet.regions, self.fleet.trust(), self._folder, str(self._plan.seed), cosigned_s=_COSIGNED_S
            )
        except TimeoutError:
            self.report.found("residency report", "not every checkpoint was cosigned by both others, or a tool hung")
            return
        for name, claims in every.items():
            bad = {claim: status for claim, status in claims.items() if status == "FAIL"}
            bad |= {claim: claims.get(claim, "absent") for claim in _PROVEN if claims.get(claim) != "PASS"}
            for claim, status in bad.items():
                self.report.found("residency report", f"{name}: {claim} is {status}")
            self.report.count("claims of reports that pass", list(claims.values()).count("PASS"))

    async def _stop(self) -> None:
        self.say("stopping the nodes")
        self._check_nodes()
        running = [node for node in self.fleet.nodes if node.running]
        codes = await asyncio.gather(*(node.stop(timeout_s=END_TIMEOUT_S) for node in running))
        if any(codes):
            self.report.found("node ended", f"nodes that were asked to end did so with {codes}")


def _rate(answered_ns: Sequence[int], began_ns: int, ended_ns: int) -> float:
    count = bisect_right(answered_ns, ended_ns) - bisect_left(answered_ns, began_ns)
    return count / max(1e-9, (ended_ns - began_ns) / 1e9)


def _scraped(address: str) -> str:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        text: str = reply.read().decode()
        return text


@click.command("fleet")
@click.option("--scenario", type=click.Choice(SCENARIOS), default=MIXED, show_default=True)
@click.option("--seconds", type=click.FloatRange(15.0, 86_400.0), default=30.0, show_default=True, help="Of load.")
@click.option("--seed", default=1, show_default=True, help="What faults and load are drawn from.")
@click.option("--size", type=click.Choice(["1", "3"]), default="1", show_default=True, help="Nodes of each region.")
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False), help="Empty; else one below build/chaos.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def fleet_command(*, scenario: str, seconds: float, seed: int, size: str, folder: Path | None, as_json: bool) -> None:
    """Break what lies between three regions of real processes, and check what each was told of the others.

    Exit code 0: passed. 1: something was found; the folder named has histories, logs and data.
    """
    plan = Plan(scenario, seconds, seed, int(size))
    wanted = ROOT / f"fleet-{scenario}-{seed}"
    place = folder or next(path for n in count(1) if not (path := wanted.with_name(f"{wanted.name}.{n}")).exists())
    if place.exists() and any(place.iterdir()):
        raise click.UsageError(f"{place} is not empty")
    place.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True, highlight=False)
    began = time.monotonic()
    run = FleetRun(plan, place.resolve(), lambda what: console.print(f"{time.monotonic() - began:7.1f} s  {what}"))
    report = asyncio.run(run.go())
    (place / "report.json").write_text(json.dumps(report.as_json(), indent=1) + "\n")
    if report.verdict == "passed":
        _give_up(place)
    print(json.dumps(report.as_json(), indent=1) if as_json else said(report))
    raise SystemExit(report.verdict != "passed")


def _give_up(folder: Path) -> None:
    """A green run keeps its report alone."""
    for each in folder.iterdir():
        if each.is_dir():
            rmtree(each)
        elif each.name != "report.json":
            each.unlink()


def said(report: Report) -> str:
    """What people read."""
    lines = [f"fleet under {report.scenario}, seed {report.seed}: {report.verdict}"]
    for each in report.strikes:
        caught_up = "never" if each.caught_up_s is None else f"{each.caught_up_s} s later"
        lines.append(f"  {each.began_s:6.1f} s  {each.fault}: {each.detail}; copies up to date {caught_up}")
    lines += [
        f"  {name}: " + ", ".join(f"{what} {n:g}" for what, n in load.items()) for name, load in report.load.items()
    ]
    lines.append("  checked: " + ", ".join(f"{what} {number:,}" for what, number in report.checked.items()))
    if report.findings:
        lines += [f"  {each.kind}: {each.text}" for each in report.findings[:20]]
        if len(report.findings) > 20:
            lines.append(f"  and {len(report.findings) - 20} more in report.json")
        lines += [f"  kept in {report.folder}", f"  repeat with: {report.again}"]
    return "\n".join(lines)
