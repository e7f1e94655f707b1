"""Runs one drill: looks, refuses or begins, strikes, watches, heals, and hands over what it saw.

1. Nothing is broken before the region was found steady and every node is kept for this drill.
2. Whatever ends the drill (its last step, a stop condition, an abort from elsewhere, Ctrl-C, a defect), every node is
   asked to heal, again and again until it answered or its own timers have ended.
3. A drill that ended early is judged and recorded like any other: it has not passed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random
from typing import Final

from controlplane import limits
from controlplane.checking.histories import Phase, Recorder
from controlplane.drills import abroad, scenarios, steadiness
from controlplane.drills.abroad import Setting
from controlplane.drills.errands import Errand, ErrandFailed, Moving, Side, errand_of, place_at
from controlplane.drills.evidence import Seen, Window
from controlplane.drills.faults import PROCESS_KINDS, Fault, Kind
from controlplane.drills.load import Connect, Load, Scribe
from controlplane.drills.nodes import Look, Nodes
from controlplane.drills.scenarios import Options, Plan, Step, Strike, Until
from controlplane.errors import ControlPlaneError, Denied, NotFound, OutcomeUnknown, Refused, Unavailable
from controlplane.v1 import drill_pb2

POLL_S: Final = 0.1
WELL_TIMEOUT_S: Final = 60.0
STOPS_BEFORE_HEALING_S: Final = 0.5
"""So long before other regions are healed it is looked which of their stops are in force."""
KILL_AFTER_S: Final = 0.05
"""How long after the first fault the kill switch is thrown."""
STRANGER_SILENT_S: Final = 8.0
"""Stop condition: a node that was not struck does not answer for so long."""

_RESERVED_MORE_S: Final = 240.0
_AGREE_S: Final = 10.0
_HEAL_ROUNDS: Final = 200
_MS: Final = 1_000_000


def not_steady(problems: list[str]) -> Refused:
    """The error that says why the region is not well enough to be broken on purpose."""
    return Refused(
        "the region is not steady: " + "; ".join(problems),
        reason="REGION_NOT_STEADY",
        hint="cpctl member health shows how the nodes are; cpctl drill plan shows what keeps a drill from running",
    )


STRIKES: Final = ("fault", "move")
"""What is done to a region, in a timeline: what a drill is about begins with the first of these."""


class Stopped(Exception):
    """A stop condition ended the drill early."""


@dataclass(frozen=True, slots=True)
class Happening:
    """One line of the timeline; `until_ns` is set for what lasts."""

    at_ns: int
    what: str
    """"step", "fault", "move", "healed", "leader", "silent", "answers", "switch", "isolated", "stopped" or "well"."""
    says: str
    node: str = ""
    until_ns: int = 0


@dataclass(slots=True)
class Course:
    """Everything that is known of a drill while it runs and after."""

    drill: str
    plan: Plan
    options: Options
    before: Mapping[str, Look]
    began_ms: int
    """The wall clock, in Unix milliseconds."""
    recorder: Recorder = field(default_factory=Recorder)
    timeline: list[Happening] = field(default_factory=list)
    processes: list[str] = field(default_factory=list)
    actor: str = ""
    """Who runs it, as the nodes know."""
    ended_early: str = ""
    end_ns: int = 0
    seen: Seen = field(default_factory=lambda: Seen("none", "unknown", None))
    after: Mapping[str, Look] = field(default_factory=dict)
    setting: Setting | None = None
    """Where what other regions have to do with it took place, if they have."""
    left: list[str] = field(default_factory=list)
    """What could not be undone, each with what ends it."""

    @property
    def window(self) -> Window:
        """From the first fault to the end of the load."""
        faults = [each.at_ns for each in self.timeline if each.what in STRIKES]
        return Window(min(faults, default=self.end_ns), self.end_ns)


@dataclass(frozen=True, slots=True)
class There:
    """Another region in which an operator takes part."""

    nodes: Nodes
    connect: Connect


async def prepare(
    nodes: Nodes, name: str, options: Options, there: Sequence[There] = ()
) -> tuple[Plan | None, list[str], dict[str, Look]]:
    """Look at the region and plan; what keeps the drill from running comes with it. Raises the eight errors."""
    await nodes.meet()
    looks = await nodes.look()
    found = steadiness.facts(looks)
    scenario = scenarios.SCENARIOS.get(name)
    problems = steadiness.problems(looks, nodes_min=3 if scenario is None else scenario.nodes_min)
    others = [(each, *(await _met(each))) for each in there]
    if found is None:
        return None, problems or ["no leader is known"], looks
    found = replace(found, there=tuple((region, tuple(each.nodes.addresses)) for each, region, _ in others))
    plan = scenarios.plan(name, found, options)
    for _, region, seen in others:
        problems += steadiness.problems_there(region, seen, harmed=region in plan.struck_there)
    if plan.to:
        problems += await _problems_of_move(nodes, looks, options.moved, plan.to, others)
    return plan, [*problems, *steadiness.problems_between(looks, plan.cut_off)], looks


async def _problems_of_move(
    nodes: Nodes,
    looks: Mapping[str, Look],
    moved: str,
    to: str,
    others: Sequence[tuple[There, str, Mapping[str, Look]]],
) -> list[str]:
    """What keeps a home from being moved, and back. Raises the eight errors, but `NotFound`."""
    here = next((look.status.region.name for look in looks.values() if look.status is not None), "")
    found = steadiness.problems_between(looks, [to])
    places = {}
    for region, of, seen in ((here, nodes, looks), *((region, each.nodes, seen) for each, region, seen in others)):
        if region != here:
            # Only who leads there knows how old its copies are.
            found += [f"in {region}: {each}" for each in steadiness.problems_between(seen, [here])]
        try:
            places[region] = await place_at(of, moved)
        except NotFound:
            found.append(f"{region} knows of no partition {moved}")
    return [*found, *steadiness.problems_of_move(places, here)]


async def _met(there: There) -> tuple[str, dict[str, Look]]:
    await there.nodes.meet()
    looks = await there.nodes.look()
    return next((look.status.region.name for look in looks.values() if look.status is not None), ""), looks


class Runner:
    """One drill."""

    def __init__(  # noqa: PLR0917 - all of it is the drill's.
        self,
        nodes: Nodes,
        connect: Connect,
        course: Course,
        reason: str,
        partition: str,
        seed: int | None = None,
        there: Sequence[There] = (),
    ) -> None:
        """`course.plan` was made by `prepare` a moment ago, from the same `nodes` and `there`."""
        self.course, self._nodes, self._reason, self._partition = course, nodes, reason, partition
        self._epoch_ns = time.monotonic_ns()
        self._scribe = Scribe(course.recorder, self.now_ns)
        self.load = Load(connect, self._scribe, self.prefix, partition, Random(seed))  # noqa: S311 - it spreads load.
        self.looks: dict[str, Look] = dict(course.before)
        self.step = ""
        planned_for = steadiness.facts(course.before)
        self._leader = planned_for.leader if planned_for is not None else ""
        self._there = {region: each for (region, _), each in zip(course.plan.there, there, strict=True)}
        self._errand = self._errand_of(connect)
        self._looks_there: dict[tuple[str, str], Look] = {}
        self._asked_ns: list[int] = []
        self._answered_ns: dict[str, int] = {}
        self._led: tuple[int, str] = (0, "")
        self._injected: list[tuple[Strike, str, int]] = []
        self._observed: set[str] = set()
        self._acked_seen, self._acked_ns = 0, 0
        self._votes, self._struck_at_commit = "", 0
        self._diverged, self._snapshot = 0, False
        self._replication_ms: int | None = None
        self._heal_begun_ns: int | None = None
        self._heal_asked_ns: int | None = None
        self._kill_engaged = self._moved = False
        self._down: set[str] = set()
        self._ages_ms: dict[str, int] = {}
        self._isolated = False
        self._stops_before: set[tuple[str, str, int]] = set()
        self._stops_lost = 0
        self._caught_up_ms: int | None = None

    @property
    def prefix(self) -> str:
        """What the names of the drill's workflows begin with."""
        return f"drill/{self.course.drill[:12]}"

    @property
    def silent_ms(self) -> int:
        """How long no write was acknowledged."""
        return (self.now_ns() - self._last_ack_ns()) // _MS

    def now_ns(self) -> int:
        """Nanoseconds since the drill began."""
        return time.monotonic_ns() - self._epoch_ns

    async def run(self) -> Course:
        """Run the drill to its end, whatever it is, and heal. Raises `Refused` before anything was broken."""
        course = self.course
        looking = [asyncio.create_task(self._look_at(name)) for name in self._nodes.addresses]
        looking += [
            asyncio.create_task(self._look_there(region, node))
            for region in course.plan.struck_there
            for node in self._there[region].nodes.addresses
        ]
        try:
            await self.load.open(self._nodes.addresses)
            await self._refuse_if_engaged()
            await self._open_errand()
            await self._reserve()
            await self._learn_actor()
            await self._guarded()
        finally:
            await self._end()
            for task in looking:
                task.cancel()
            await asyncio.gather(*looking, return_exceptions=True)
        return course

    async def _refuse_if_engaged(self) -> None:
        """A region in which something is stopped already is no place to show that stopping works."""
        engaged = await self.load.engaged()
        if engaged:
            raise not_steady([f"{len(engaged)} kill switches are engaged: release them, or wait"])

    async def _open_errand(self) -> None:
        if self._errand is not None:
            try:
                await self._errand.open()
            except ErrandFailed as error:
                raise not_steady([str(error)]) from error

    def _errand_of(self, connect: Connect) -> Errand | None:
        plan, options = self.course.plan, self.course.options
        status = next((look.status for look in self.course.before.values() if look.status is not None), None)
        own = Side(status.region.name if status is not None else "", self._nodes, connect)
        others = [Side(region, each.nodes, each.connect) for region, each in self._there.items()]
        if plan.about == abroad.MOVE:
            sides, usual = [own, *others], self._partition
            return Moving(
                sides, self._scribe, self.prefix, self._reason, options.moved, plan.to, plan.pause_ms_max, usual
            )
        return errand_of(
            plan.about,
            [own, *others],
            self._scribe,
            self.prefix,
            self._reason,
            plan.cut_off[0] if plan.cut_off else "",
            options.copied,
            paused=bool(plan.struck_there),
        )

    async def _guarded(self) -> None:
        """Run the steps under the stop conditions."""
        steps = asyncio.create_task(self._steps())
        watching = asyncio.create_task(self._until_stopped())
        try:
            await asyncio.wait({steps, watching}, return_when=asyncio.FIRST_COMPLETED)
            for task in (steps, watching):
                if task.done():
                    task.result()
        except (Stopped, ErrandFailed, ControlPlaneError) as stop:
            self._stop(str(stop))
        except asyncio.CancelledError:
            self._stop("interrupted by the operator")
            _go_on()
        finally:
            for task in (steps, watching):
                task.cancel()
            await asyncio.gather(steps, watching, return_exceptions=True)

    def _stop(self, why: str) -> None:
        self.course.ended_early = why
        self._note("stopped", why)

    # Steps.

    async def _steps(self) -> None:
        plan = self.course.plan
        self.load.start(self._leader, obedient=plan.kill_switch)
        self._acked_ns = self.now_ns()
        for number in range(len(plan.steps)):
            if plan.steps[number].strikes and not self._injected:
                await self._plan_anew()
            step = self.course.plan.steps[number]
            self.step = step.says
            self._note("step", step.says)
            await self._step(step)
        self.course.end_ns = self.now_ns()

    async def _step(self, step: Step) -> None:
        if step.move:
            await self._move(step)
            return
        if step.strikes and self._errand is not None:
            self.step = "preparing in every region that takes part"
            await self._errand.before()
            self.step = step.says
        if step.strikes:
            self._struck_at_commit = steadiness.commit(self.looks)
            self._stops_before = await self.load.stops() if self.course.plan.cut_off else set()
        await asyncio.gather(*(self._strike(strike) for strike in step.strikes))
        bulk = asyncio.create_task(self.load.bulk(step.bulk_bytes, self._unharmed())) if step.bulk_bytes else None
        try:
            await self._kill_and_wait(step)
            if bulk is not None and await bulk < step.bulk_bytes:
                raise Stopped("the others could not write enough to leave the node behind")
        finally:
            if bulk is not None:
                bulk.cancel()
        if step.until is Until.WELL:
            await self._well()
            await self._reunited()
            if self._errand is not None:
                self.step = "waiting for what every region has to have heard of"
                await self._errand.after()
                self._note("well", "every region has heard of everything")
            await self._reserve()
        await asyncio.sleep(step.more_s)

    async def _move(self, step: Step) -> None:
        """Move a home, away or back, and wait until every node has what was committed then."""
        errand = self._errand
        assert isinstance(errand, Moving)
        if not self._moved:
            self.step = "preparing in every region that takes part"
            await errand.before()
            self.step = step.says
        self._moved, begin_ns = True, self.now_ns()
        try:
            await errand.move(step.move)
        finally:
            self.course.timeline.append(Happening(begin_ns, "move", step.says, until_ns=self.now_ns()))
        await asyncio.sleep(step.load_s)
        await self._well()
        if step.move == abroad.BACK:
            self.step = "waiting for what every region has to have heard of"
            await errand.after()
            self._note("well", "every region has the home that was there before, and equal copies")
        await self._reserve()

    def _unharmed(self) -> str:
        return next(name for name in self._nodes.addresses if name not in self.course.plan.struck)

    async def _plan_anew(self) -> None:
        """Plan for who leads now, should that be somebody else than when the drill was planned. Raises `Stopped`."""
        course = self.course
        try:
            async with asyncio.timeout(_AGREE_S):
                while (found := steadiness.facts(self.looks)) is None:  # noqa: ASYNC110 - nodes are looked at.
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise Stopped("no leader is known before the first fault") from None
        found = replace(found, there=course.plan.there)
        if found.leader == self._leader:
            return
        if course.plan.fencing:
            raise Stopped("the leader changed before the first fault, away from the holder: run the drill again")
        course.plan = scenarios.plan(course.plan.scenario, found, course.options)
        self._note("step", f"{found.leader} leads meanwhile: planned anew")

    async def _kill_and_wait(self, step: Step) -> None:
        end = asyncio.get_running_loop().time() + step.load_s
        if step.strikes and self.course.plan.kill_switch and not self._kill_engaged:
            self._kill_engaged = True
            struck_ns = max(begin_ns for _, _, begin_ns in self._injected)
            await asyncio.sleep(max(0, struck_ns - self.now_ns()) / 1e9 + KILL_AFTER_S)
            if await self.load.throw(self._reason, engage=True):
                self._note("switch", "the kill switch is confirmed")
        if step.strikes and self._errand is not None:
            struck_ns = max(begin_ns for _, _, begin_ns in self._injected)
            await asyncio.sleep(max(0, struck_ns - self.now_ns()) / 1e9 + KILL_AFTER_S)
            await self._errand.during()
            if self.now_ns() > self._held_ns():
                raise Stopped("what was to be done while nothing passes took longer: give it more time with --down")
        left_s = end - asyncio.get_running_loop().time()
        if step.strikes and self.course.plan.cut_off:
            # Shortly before it heals: what was in force has to be, still.
            await asyncio.sleep(max(0.0, left_s - STOPS_BEFORE_HEALING_S))
            self._stops_lost = len(self._stops_before - await self.load.stops())
            left_s = end - asyncio.get_running_loop().time()
        await asyncio.sleep(max(0.0, left_s))

    async def _strike(self, strike: Strike) -> None:
        fault = self._fault(strike.kind, strike.duration_ms, strike.delay_ms, strike.regions)
        # In the timeline before it is asked for: whatever comes of it, comes after.
        begin_ns = self.now_ns()
        self._asked_ns.append(begin_ns)
        nodes = self._there[strike.at].nodes if strike.at else self._nodes
        try:
            reply = await nodes.inject(strike.node, fault.message())
            begin_ns = self.now_ns() + reply.strikes_in_ms * _MS
        except OutcomeUnknown:
            # The blow may have been faster than the answer; whether it was struck is seen by looking.
            pass
        except (Denied, Refused, Unavailable) as error:
            raise Stopped(f"{strike.node} did not take the fault: {error}") from error
        self._injected.append((strike, fault.id, begin_ns))
        self.course.timeline.append(
            Happening(begin_ns, "fault", strike.says, strike.node, begin_ns + strike.duration_ms * _MS)
        )

    def _fault(self, kind: Kind, duration_ms: int, delay_ms: int = 0, peers: tuple[str, ...] = ()) -> Fault:
        name = secrets.token_hex(16)
        return Fault(self.course.drill, name, kind, duration_ms, self._reason, peers=peers, delay_ms=delay_ms)

    async def _reserve(self) -> None:
        """Keep every node for this drill for as long as it may take. Raises `Refused` or `Stopped`."""
        keep_ms = min(limits.RESERVATION_MS_MAX, round((self.course.plan.seconds + _RESERVED_MORE_S) * 1000))
        for nodes in self._harmed():
            for node in nodes.addresses:
                try:
                    await nodes.inject(node, self._fault(Kind.RESERVE, keep_ms).message())
                except ControlPlaneError as error:
                    if self._injected or self._moved:
                        raise Stopped(f"{node} is not to be had any more: {error}") from error
                    raise not_steady([f"{node}: {error}"]) from error

    def _harmed(self) -> list[Nodes]:
        """The nodes of each region that takes faults."""
        return [self._nodes, *(self._there[region].nodes for region in sorted(self.course.plan.struck_there))]

    async def _learn_actor(self) -> None:
        for look in (await self._nodes.look()).values():
            for each in look.faults.faults if look.faults is not None else ():
                self.course.actor = each.actor

    async def _well(self) -> None:
        """Wait until every node has what was committed when the faults had ended. Raises `Stopped`."""
        healed_ns = self._healed_by_ns()
        newest = steadiness.commit(self.looks)
        self.step = "waiting until every node has caught up"
        try:
            async with asyncio.timeout(WELL_TIMEOUT_S):
                while self.now_ns() < healed_ns or steadiness.behind(self.looks, newest) or self._faulty():  # noqa: ASYNC110
                    # Nodes are looked at; nothing announces that all of them are well.
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise Stopped(f"not well within {WELL_TIMEOUT_S:g} s: {self._not_well(newest)}") from None
        took_ms = max(0, self.now_ns() - healed_ns) // _MS
        self._replication_ms = max(self._replication_ms or 0, took_ms)
        self._note("well", f"every node has caught up, {took_ms} ms after the faults had ended")

    async def _reunited(self) -> None:
        """Wait until what other regions share is here as it was after healing. Raises `Stopped`."""
        regions = self.course.plan.cut_off
        if not regions:
            return
        healed_ns = self._healed_by_ns()
        self.step = "waiting until the copies of other regions have caught up"
        try:
            async with asyncio.timeout(WELL_TIMEOUT_S):
                while not steadiness.caught_up(self.looks, regions, (self.now_ns() - healed_ns) // _MS):  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise Stopped(f"not all of {', '.join(regions)} was copied again within {WELL_TIMEOUT_S:g} s") from None
        self._caught_up_ms = (self.now_ns() - healed_ns) // _MS
        self._note("well", f"what {', '.join(regions)} shared meanwhile is here, {self._caught_up_ms} ms after healing")

    def _healed_by_ns(self) -> int:
        """When the last fault has ended: by its time, or because the nodes were asked to heal and could."""
        asked_ns = self._heal_asked_ns
        ends = []
        for strike, _, begin_ns in self._injected:
            end_ns = begin_ns + strike.duration_ms * _MS
            ends.append(end_ns if asked_ns is None or strike.kind in PROCESS_KINDS else min(end_ns, asked_ns))
        # A move that is over has nothing that would have to heal.
        return max(ends, default=self.now_ns())

    def _held_ns(self) -> int:
        """Until when every fault certainly lasts: nodes count from when they took it, which is later than asked."""
        durations_ms = [strike.duration_ms for strike, _, _ in self._injected]
        by_timer_ns = min(self._asked_ns, default=0) + min(durations_ms, default=0) * _MS
        return by_timer_ns if self._heal_begun_ns is None else min(by_timer_ns, self._heal_begun_ns)

    def _faulty(self) -> list[str]:
        """Nodes with faults of which their last answer told."""
        return [
            name
            for name, look in self.looks.items()
            if look.faults is None or any(each.fault.kind != Kind.RESERVE.value for each in look.faults.faults)
        ]

    def _not_well(self, newest: int) -> str:
        behind, faulty = steadiness.behind(self.looks, newest), self._faulty()
        return f"behind or silent: {', '.join(behind) or 'none'}; with faults: {', '.join(faulty) or 'none'}"

    # Looking.

    async def _look_at(self, name: str) -> None:
        """Ask one node again and again: a silent one must not blur the view of the others."""
        address = self._nodes.addresses[name]
        while True:
            look = await self._nodes.look_at(address)
            was, self.looks[name] = self.looks[name], look
            if look.status is not None:
                self._answered_ns[name] = self.now_ns()
                self._see_leader(look.status.region.term, look.status.region.leader)
            if (was.status is None) != (look.status is None):
                word = "silent" if look.status is None else "answers"
                self._note(word, f"{name} {'does not answer' if look.status is None else 'answers'}", name)
            self._observe(name, was, look)
            await asyncio.sleep(POLL_S)

    async def _look_there(self, region: str, node: str) -> None:
        """Ask a node of another region that takes faults, again and again."""
        nodes = self._there[region].nodes
        while True:
            look = await nodes.look_at(nodes.addresses[node])
            self._looks_there[region, node] = look
            for strike, fault, begin_ns in self._injected:
                if (strike.at, strike.node) == (region, node) and self.now_ns() >= begin_ns and look.status is None:
                    self._observed.add(fault)
            await asyncio.sleep(POLL_S)

    def _see_leader(self, term: int, leader: str) -> None:
        if leader and term > self._led[0]:
            self._led = (term, leader)
            self._note("leader", f"{leader} leads in term {term}", leader)

    def _observe(self, name: str, was: Look, look: Look) -> None:
        """Notice that faults are at work, and what a replaced node does before it has caught up."""
        restarted = was.status is not None and look.status is not None and look.status.uptime_ms < was.status.uptime_ms
        for strike, fault, begin_ns in self._injected:
            if strike.at or strike.node != name or self.now_ns() < begin_ns:
                continue
            if strike.kind in PROCESS_KINDS:
                if look.status is None or restarted:
                    self._observed.add(fault)
            elif look.faults is not None and any(each.fault.id == fault for each in look.faults.faults):
                self._observed.add(fault)
        self._see_rejoin(name, look)
        self._see_links(look)
        if name == self.course.plan.replaced and self._injected and look.faults is not None and look.status is not None:
            self._see_replaced(look.faults, look.status.uptime_ms)

    def _see_links(self, look: Look) -> None:
        """Notice that links are down, how old copies become, and that the region says that it is alone."""
        cut_off, status = self.course.plan.cut_off, look.status
        if not cut_off or not self._injected or status is None or status.role != "leader":
            return
        if all(link.state == "down" for link in status.links) and not self._isolated:
            self._isolated = True
            self._note("isolated", f"{status.node}: no other region can be reached", status.node)
        for link in status.links:
            if link.region in cut_off:
                oldest = max((view.age_ms for view in link.views), default=0)
                self._ages_ms[link.region] = max(oldest, self._ages_ms.get(link.region, 0))
                if link.state == "down":
                    self._down.add(link.region)

    def _see_rejoin(self, name: str, look: Look) -> None:
        """Notice entries that a cut off leader cannot commit, and a snapshot on its way to a node left behind."""
        rejoins, status = self.course.plan.rejoins, look.status
        if not rejoins or status is None or not self._injected:
            return
        if name != rejoins:
            is_sent = any(each.name == rejoins and each.state == "snapshot" for each in status.members)
            self._snapshot |= status.role == "leader" and is_sent
        elif status.role != "leader" and _is_cut(look):
            self._diverged = max(self._diverged, status.last - status.commit)

    def _see_replaced(self, faults: drill_pb2.ListFaultsReply, uptime_ms: int) -> None:
        """Once it is a member, it must hold what was committed when its disk was lost; before, it only follows.

        All of it comes from one answer: two would be of two moments.
        """
        # The process from before the fault may have been a replacement itself.
        is_new = self.now_ns() - uptime_ms * _MS > self._injected[0][2]
        if faults.started_as != "replacing" or self._votes or not is_new:
            return
        if faults.standing == "replacing" and faults.role != "follower":
            self._votes = f"stood as {faults.role} before catching up"
        elif faults.standing == "member":
            self._votes = "before catching up" if faults.applied < self._struck_at_commit else "after catching up"

    async def _until_stopped(self) -> None:
        """Return only by raising `Stopped`."""
        while True:
            await asyncio.sleep(POLL_S)
            if why := self._stop_condition():
                raise Stopped(why)

    def _stop_condition(self) -> str:
        now_ns, plan = self.now_ns(), self.course.plan
        failure = self.load.failure or (None if self._errand is None else self._errand.failure)
        if failure is not None:
            return f"a client of the drill failed: {failure!r}"
        told = "" if self._errand is None else self._errand.wrong
        if wrong := [*steadiness.contradictions(self.looks.values()), *filter(None, [told])]:
            return wrong[0]
        if aborted := self._aborted_at():
            return f"aborted at {aborted}"
        for name in self.looks:
            silent_s = (now_ns - self._answered_ns.get(name, 0)) / 1e9
            if name not in plan.struck and silent_s > STRANGER_SILENT_S:
                return f"{name}, which was not struck, does not answer for {STRANGER_SILENT_S:g} s"
        if self.silent_ms > plan.silence_ms_max:
            return f"no write was acknowledged for {plan.silence_ms_max / 1000:g} s"
        return ""

    def _aborted_at(self) -> str:
        there = {f"{node} of {region}": look for (region, node), look in self._looks_there.items()}
        for name, look in {**self.looks, **there}.items():
            if look.faults is not None and self.course.drill in look.faults.aborted:
                return name
        return ""

    def _last_ack_ns(self) -> int:
        events = self.course.recorder.events
        for event in events[self._acked_seen :]:
            if event.kind == "cas" and event.phase is Phase.OK and event.value is not None:
                self._acked_ns = event.at_ns
        self._acked_seen = len(events)
        return self._acked_ns

    def _note(self, what: str, says: str, node: str = "") -> None:
        self.course.timeline.append(Happening(self.now_ns(), what, says, node))

    # The end.

    async def _end(self) -> None:
        """Heal, wait, read everything once more, and let go of the region. Survives one interruption."""
        ending = asyncio.ensure_future(self._heal_and_read())
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            self.course.ended_early = self.course.ended_early or "interrupted by the operator"
            _go_on()
            await ending

    async def _heal_and_read(self) -> None:
        course = self.course
        self.step = "healing"
        early = bool(course.ended_early) or not course.end_ns
        await self._heal(abort=early)
        if self._kill_engaged:
            await self.load.throw(self._reason, engage=False)
        if self._errand is not None:
            await self._errand.undo()
            course.left = self._errand.left
        if self._injected or self._moved:
            if early:
                await self._settle()
            course.end_ns = course.end_ns or self.now_ns()
            await self.load.stop()
            self.step = "reading everything once more"
            await self.load.final_reads()
            await self._compare()
        if self._errand is not None:
            await self._errand.close()
            course.setting = self._setting(self._errand)
        await self.load.close()
        course.processes = self._scribe.processes
        course.after = dict(self.looks)
        course.timeline.sort(key=lambda each: each.at_ns)

    def _setting(self, errand: Errand) -> Setting:
        plan = self.course.plan
        struck = [each for each in self.course.timeline if each.what in STRIKES]
        return Setting(
            about=plan.about,
            home=errand.home.region,
            watched=errand.watched,
            cut_off=plan.cut_off,
            apart=plan.apart,
            lost=plan.cut_off[0] if plan.about == abroad.LOSS else "",
            copied=self.course.options.copied if plan.about == abroad.LOSS else "",
            cut_ns=max((each.at_ns for each in struck), default=0),
            held_ns=self._held_ns(),
            healed_ns=max((each.until_ns for each in struck), default=0),
            to=plan.to,
            moved=self.course.options.moved if plan.about == abroad.MOVE else "",
            pause_ms_max=plan.pause_ms_max,
            linked=tuple(link.region for link in steadiness.links(self.course.before)) if plan.to else (),
        )

    async def _heal(self, *, abort: bool) -> None:
        """Ask every node to heal until all have answered, or until their own timers must have ended."""
        self._heal_begun_ns = self.now_ns()
        last_ms = max((begin // _MS + strike.duration_ms for strike, _, begin in self._injected), default=0)
        for _ in range(_HEAL_ROUNDS):
            failed = [
                error
                for nodes in self._harmed()
                for error in (await nodes.heal_all(self.course.drill, self._reason, abort=abort)).values()
            ]
            if not failed or self.now_ns() / _MS > last_ms + STRANGER_SILENT_S * 1000:
                break
            await asyncio.sleep(POLL_S)
        self._heal_asked_ns = self.now_ns()
        self._note("healed", "every node was asked to heal")

    async def _settle(self) -> None:
        with suppress(Stopped):
            await self._well()

    async def _compare(self) -> None:
        """With nobody writing, every node must come to the same revision and the same hash."""
        replicas = "not comparable"
        with suppress(TimeoutError):
            async with asyncio.timeout(WELL_TIMEOUT_S / 2):
                while (replicas := self._replicas()) == "not comparable":  # noqa: ASYNC110 - nodes are looked at.
                    await asyncio.sleep(POLL_S)
        missed = sum(fault not in self._observed for _, fault, _ in self._injected)
        self.course.seen = Seen(
            faults_observed=f"{missed} of {len(self._injected)} not" if missed else "all",
            replicas=replicas,
            replication_ms=self._replication_ms,
            votes=self._votes or "not seen",
            diverged_entries=self._diverged,
            snapshot="yes" if self._snapshot else "no",
            links_down=", ".join(sorted(set(self.course.plan.cut_off) - self._down)) or "all",
            isolated="yes" if self._isolated else "no",
            view_age_ms=min((self._ages_ms.get(each, 0) for each in self.course.plan.cut_off), default=0),
            caught_up_ms=self._caught_up_ms,
            stops_lost=self._stops_lost,
        )

    def _replicas(self) -> str:
        if steadiness.contradictions(self.looks.values()):
            return "different"
        found = {
            (look.status.header.revision, look.status.hash) if look.status is not None else None
            for look in self.looks.values()
        }
        return "equal" if len(found) == 1 and None not in found else "not comparable"


def _is_cut(look: Look) -> bool:
    return look.faults is not None and any(each.fault.kind == Kind.CUT.value for each in look.faults.faults)


def _go_on() -> None:
    """Take the interruption as heard: what follows is the orderly end."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


def new_course(plan: Plan, options: Options, before: Mapping[str, Look], clock_ms: Callable[[], int]) -> Course:
    """A drill that is about to begin."""
    return Course(secrets.token_hex(16), plan, options, before, clock_ms())
