"""Orchestrators that campaign, renew, write under their fence, resign, vanish, or sleep through their own expiry.

Two kinds. The first makes the plain calls and knows no mercy: some stop renewing, wait until somebody else is elected,
and write then, which has to be refused. The second campaigns through the SDK and writes under the fence of its lease,
also when its office is over; and whenever its lease says "valid" that is written down: no two of them may ever be sure
at the same time.

What was accepted is judged by the event log, whether or not anybody was told: under which fence each write was asked
for is noted before it is sent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from chaos.real.callers import Callers, Region, calling
from chaos.real.recording import Question, Worker, now_ns
from chaos.real.workloads.base import OBSERVER, OPERATIONS_PER_KEY, Workload, events
from controlplane import sdk
from controlplane.checking.histories import History, Operation, Value
from controlplane.checking.invariants import Act, Tenure, fences, tenures
from controlplane.checking.models import Lease
from controlplane.errors import ControlPlaneError, NotFound, Refused
from controlplane.sdk import Fence, LeaseLost, NotElected
from controlplane.sdk.calls import Calls
from controlplane.sdk.nonce import nonce
from controlplane.v1 import api_pb2 as api

TTL_MS = 1000
SLEEP_S_MAX = 6.0
"""How long a sleeping holder waits for somebody else to be elected; longer than a lease that a new leader prolongs."""
_PLAIN, _SDK = 6, 3
"""How many orchestrators of each kind."""
_PLAIN_ELECTIONS = 2
_CREWS = 3
_CAMPAIGN_S = 3.0
_GUARDED = "guarded/"
_LOOK_S = 0.02
_LATE_SHARE = 0.3
_FENCED = "write under a fence"
"""A kind of its own: the SDK names its campaigns itself, so the model of a lease could not know who that is."""


@dataclass(frozen=True, slots=True)
class Office:
    """One holder's time in office."""

    worker: Worker
    crew: Callers
    election: str
    process: bytes
    fence: Fence

    @property
    def named(self) -> tuple[str, int]:
        """Holder and fence, as the history has them."""
        return self.process.hex(), self.fence.revision

    @property
    def caller(self) -> Calls:
        """Whom to ask for a write: the SDK, or nodes directly."""
        return self.worker.random.choice((self.crew.sdk, self.crew.anywhere))


class Elections(Workload):
    """Leases with fences, and what they guard."""

    name: ClassVar[str] = "election"
    role: ClassVar[str] = "agent"
    pause_s: ClassVar[float] = 0.06
    floor: ClassVar[float] = 15.0

    def __init__(self, region: Region, seed: int) -> None:
        super().__init__(region, seed)
        self._crews: list[Callers] = []
        self._versions: dict[str, int] = {}
        self._auditor: Callers
        self._asked: dict[str, Office] = {}
        self._changes: list[api.Change] | None = None
        self._acts: list[Act] = []
        self._tenures: list[Tenure] = []
        self._uses: dict[str, int] = {}
        self._names: dict[str, str] = {}

    async def prepare(self) -> None:
        """Connect every orchestrator's identity, and one that may read the event log."""
        self._auditor = await self._stack.enter_async_context(calling(self.region, "operator", "auditor", self.random))
        self._crews = [await self.enter(f"orchestrator-{number}") for number in range(_CREWS)]

    def work(self, over: asyncio.Event) -> list[Coroutine[Any, Any, None]]:
        """Orchestrators of both kinds."""
        plain = [self._steps(self.worker(number), over) for number in range(_PLAIN)]
        return plain + [self._through_sdk(self.worker(_PLAIN + number), over) for number in range(_SDK)]

    async def step(self, worker: Worker) -> None:
        """Campaign once; if elected, act for a while and end the office in one of three ways."""
        crew = self._crews[worker.process % _CREWS]
        office = await self._campaign(worker, crew, self._election(f"plain/{worker.process % _PLAIN_ELECTIONS}"))
        if office is None:
            await asyncio.sleep(worker.random.uniform(0, 0.2))
        elif await self._serve(office):
            # One of them always oversleeps, so that it happens in short runs too.
            ways = (self._resign, self._sleep, self._vanish) if worker.process else (self._sleep,)
            await worker.random.choice(ways)(office)

    async def ask_for_everything(self) -> None:
        """Who holds what, and what was ever written under a fence."""
        reader = self.worker(OBSERVER)
        for caller in self.callers.everyone():
            for election in self._uses:
                await self._observe(reader, caller, election)
        changes = await events(self._auditor.sdk, "workflow")
        self._changes = [change for change in changes if change.name.startswith(_GUARDED)]

    def judge(self, history: History) -> None:
        """Leases follow the model, fences of accepted acts never go back, and nobody's time is cut short."""
        self.linearizable("leases", _as_lease(history.operations), Lease())
        self._judge_acts()
        self.broken(tenures(self._tenures))
        for text in cut_short(history.operations, TTL_MS * 1_000_000):
            self.found("LEASE_CUT_SHORT", text)
        self.checked["tenures"] = f"{len(self._tenures)} never overlap"
        self.noticed()

    def _judge_acts(self) -> None:
        self.broken(fences(self._acts))
        counts = self.book.counts
        self.checked["fences"] = f"{len(self._acts)} acts accepted, {counts.get('fences refused', 0)} refused"
        if self._changes is not None:
            committed = list(self._committed(self._changes))
            self.broken(fences(committed))
            self.checked["fences"] += f", {len(committed)} in the event log"
        if counts.get("elected through the SDK") and not counts.get("written through the SDK"):
            self.found("load", "nobody who was elected through the SDK wrote anything under its fence")
        if not self.book.counts.get("slept through an expiry"):
            self.found("load", "no holder slept until another one was elected: nothing was shown about its fence")

    def _committed(self, changes: Iterable[api.Change]) -> Iterator[Act]:
        """What the event log says was accepted, with the fence under which it was asked for."""
        for change in changes:
            state = change.workflow.state.decode()
            office = self._asked.get(state)
            if office is None:
                self.found("PHANTOM", f"{change.name} had {state!r}, which nobody wrote")
            else:
                at = change.meta.revision
                yield Act(change.name, office.process.hex(), at, at, office.fence.revision)

    # The plain kind

    async def _campaign(self, worker: Worker, crew: Callers, election: str) -> Office | None:
        process = nonce()
        caller = worker.random.choice((crew.sdk, crew.anywhere))
        reply = await self.book.ask(
            worker,
            Question(election, "campaign", process.hex(), writes=True),
            lambda: caller.campaign(election, process, TTL_MS, timeout_s=_CAMPAIGN_S),
            lambda reply: _holder(reply.holder),
            _false,
        )
        if reply is None or not reply.elected:
            await self._observe(worker, worker.random.choice(crew.everyone()), election)
            return None
        return Office(worker, crew, election, process, reply.holder.fence)

    async def _serve(self, office: Office) -> bool:
        """Act and renew a few times; False when the lease is lost."""
        random = office.worker.random
        for _ in range(random.randint(1, 5)):
            await self._act(office)
            if not await self._renew(office):
                return False
            await asyncio.sleep(random.uniform(0.02, TTL_MS / 4000))
        return True

    async def _renew(self, office: Office) -> bool:
        reply = await self.book.ask(
            office.worker,
            Question(office.election, "renew", office.named, writes=True),
            lambda: office.caller.renew(office.election, office.process, office.fence, timeout_s=_CAMPAIGN_S),
            lambda _: True,
            _false,
        )
        return reply is not None

    async def _resign(self, office: Office) -> None:
        await self.book.ask(
            office.worker,
            Question(office.election, "resign", office.named, writes=True),
            lambda: office.caller.resign(office.election, office.process, office.fence, timeout_s=_CAMPAIGN_S),
            lambda reply: reply.resigned,
            _false,
        )

    async def _vanish(self, office: Office) -> None:
        """Say nothing any more: the lease has to expire."""
        self.book.count("vanished holders")
        await asyncio.sleep(office.worker.random.uniform(0, 0.5))

    async def _sleep(self, office: Office) -> None:
        """Stand still until another one is elected, then act as if nothing had happened."""
        end = time.monotonic() + SLEEP_S_MAX
        while time.monotonic() < end:
            await asyncio.sleep(0.1)
            seen = await self._observe(office.worker, office.crew.sdk, office.election)
            if seen is not None and seen.HasField("holder") and seen.holder.fence.revision != office.fence.revision:
                break
        else:
            return
        self.book.count("slept through an expiry")
        if await self._act(office):
            self.found(
                "fence accepted",
                f"{office.election}: fence {office.fence.revision} was accepted after {seen.holder.fence}",
            )

    async def _observe(self, worker: Worker, caller: Calls, election: str) -> api.GetElectionReply | None:
        return await self.book.ask(
            worker,
            Question(election, "observe"),
            lambda: caller.get_election(election),
            lambda reply: _holder(reply.holder) if reply.HasField("holder") else None,
            _false,
        )

    async def _act(self, office: Office, kind: str = "act") -> bool:
        """Swap what the lease guards, under its fence; whether that was accepted."""
        resource = _GUARDED + office.election
        version = self._versions.get(resource, 0)
        self._asked[value := office.worker.unique()] = office
        state = value.encode()

        async def write() -> int:
            if version:
                swapped = await office.caller.compare_and_swap(resource, version, state, fence=office.fence)
                return self._wrote(resource, swapped.version, swapped.header.revision, office)
            created = await office.caller.create_workflow(resource, state, fence=office.fence)
            return self._wrote(resource, created.version, created.header.revision, office)

        question = Question(office.election, kind, office.named, writes=True)
        accepted = await self.book.ask(
            office.worker, question, write, lambda _: True, lambda error: self._refused(resource, error)
        )
        return accepted is not None

    def _wrote(self, resource: str, version: int, revision: int, office: Office) -> int:
        self._versions[resource] = max(version, self._versions.get(resource, 0))
        self._acts.append(Act(resource, office.process.hex(), revision, revision, office.fence.revision))
        return revision

    def _refused(self, resource: str, error: ControlPlaneError) -> Value:
        """False: the fence was refused. None: the resource stood elsewhere, which says nothing about the fence."""
        if error.reason == "FENCE_STALE":
            self.book.count("fences refused")
            return False
        if isinstance(error, NotFound):
            self._versions.pop(resource, None)
        elif isinstance(error, Refused) and "version" in error.details:
            self._versions[resource] = int(error.details["version"])
        else:
            self.book.unexpected.append(f"an act on {resource}: {error.reason}: {error}")
        return None

    # The kind that uses the SDK

    async def _through_sdk(self, worker: Worker, over: asyncio.Event) -> None:
        crew = self._crews[worker.process % _CREWS]
        while not over.is_set():
            election = crew.sdk.election("sdk/0", ttl_s=TTL_MS / 1000)
            try:
                async with election.campaign(timeout_s=_CAMPAIGN_S) as lease:
                    self.book.count("elected through the SDK")
                    office = Office(worker, crew, lease.election, b"sdk %d" % worker.process, lease.fence)
                    await self._rule(office, lease, over)
            except LeaseLost:
                self.book.count("leases lost")
            except NotElected:
                continue
            # Whoever has not noticed yet that it is over writes once more: somebody else may be elected by now.
            if worker.random.random() < _LATE_SHARE:
                await asyncio.sleep(worker.random.uniform(0, TTL_MS / 2000))
                await self._act(office, _FENCED)

    async def _rule(self, office: Office, lease: sdk.Lease, over: asyncio.Event) -> None:
        """Hold the office for a while; note from when until when the lease said that it could be relied on."""
        since_ns = now_ns()
        place = len(self._tenures)
        holder = str(office.worker.process)
        self._tenures.append(Tenure(lease.election, holder, lease.fence.revision, since_ns, since_ns))
        async with asyncio.TaskGroup() as group:
            writing = group.create_task(self._write_for_a_while(office, over))
            while not writing.done():
                at_ns = now_ns()
                if lease.valid:
                    self._tenures[place] = self._tenures[place]._replace(until=at_ns)
                await asyncio.sleep(_LOOK_S)

    async def _write_for_a_while(self, office: Office, over: asyncio.Event) -> None:
        """Write under the fence, without asking whether the lease is still valid: the fence has to suffice."""
        random = office.worker.random
        until = time.monotonic() + random.uniform(0.3, 2.5)
        while time.monotonic() < until and not over.is_set():
            if await self._act(office, _FENCED):
                self.book.count("written through the SDK")
            await asyncio.sleep(random.uniform(0.02, 0.2))

    def _election(self, slot: str) -> str:
        """The election that is in use in this place; its history stays short enough to be checked."""
        name = self._names.setdefault(slot, f"{slot}.0")
        self._uses[name] = self._uses.get(name, 0) + 1
        # A office is about eight operations.
        if self._uses[name] * 8 > OPERATIONS_PER_KEY:
            self._names[slot] = f"{slot}.{int(name.rpartition('.')[2]) + 1}"
        return name


def cut_short(operations: Sequence[Operation], ttl_ns: int) -> Iterator[str]:
    """Elections of somebody else while a holder's time, counted from before it asked, was not over, in words."""
    granted = [each for each in operations if _granted(each)]
    resigned = {each.argument: each.called for each in operations if each.kind == "resign"}
    until: dict[tuple[str, Value], int] = {}
    for each in sorted(granted, key=lambda operation: operation.returned):
        tenure: Value = each.result if each.kind == "campaign" else each.argument
        for (election, other), end_ns in until.items():
            older = election == each.key and _fence(other) < _fence(tenure)
            if older and each.returned < min(end_ns, resigned.get(other, end_ns)):
                early_ms = (end_ns - each.returned) / 1e6
                yield f"{election}: {tenure} was elected {early_ms:.0f} ms before the time of {other} was over"
        until[each.key, tenure] = max(each.called + ttl_ns, until.get((each.key, tenure), 0))


def _granted(operation: Operation) -> bool:
    """Whether the asker was told that it holds the lease."""
    if operation.unknown:
        return False
    if operation.kind == "campaign":
        return isinstance(operation.result, tuple) and operation.result[0] == operation.argument
    return operation.kind == "renew" and operation.result is True


def _fence(tenure: Value) -> int:
    assert isinstance(tenure, tuple)
    fence = tenure[1]
    assert isinstance(fence, int)
    return fence


def _as_lease(operations: Iterable[Operation]) -> Iterator[Operation]:
    """What the model of a lease knows: whether a fence was accepted is what a renewal would have been told."""
    for each in operations:
        if each.kind == _FENCED:
            continue
        if each.kind != "act":
            yield each
        elif not each.unknown and each.result is not None:
            yield each._replace(kind="renew")


def _holder(view: api.ElectionView) -> Value:
    return view.election.process.hex(), view.fence.revision


def _false(_: ControlPlaneError) -> Value:
    """The rules said no."""
    return False
