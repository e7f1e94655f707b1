"""Orchestrators that campaign, renew, write under their fence, resign, vanish, or sleep through their own expiry.

Two kinds. The first makes the plain calls and knows no mercy: some stop renewing, wait until somebody else is elected,
and write then, which has to be refused. The second campaigns through the SDK, and whenever its lease says "valid" that
is written down: no two of them may ever be sure at the same time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from chaos.real.callers import Callers, Region
from chaos.real.recording import Question, Worker, now_ns
from chaos.real.workloads.base import OBSERVER, OPERATIONS_PER_KEY, Workload
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
        self._acts: list[Act] = []
        self._tenures: list[Tenure] = []
        self._uses: dict[str, int] = {}
        self._names: dict[str, str] = {}

    async def prepare(self) -> None:
        """Connect every orchestrator's identity."""
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
        """Who holds what."""
        reader = self.worker(OBSERVER)
        for caller in self.callers.everyone():
            for election in self._uses:
                await self._observe(reader, caller, election)

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
        refused = self.book.counts.get("fences refused", 0)
        self.checked["fences"] = f"{len(self._acts)} acts accepted, {refused} refused"
        if not self.book.counts.get("slept through an expiry"):
            self.found("load", "no holder slept until another one was elected: nothing was shown about its fence")

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

    async def _act(self, office: Office) -> bool:
        """Swap what the lease guards, under its fence; whether that was accepted."""
        resource = f"guarded/{office.election}"
        version = self._versions.get(resource, 0)
        state = office.worker.unique().encode()

        async def write() -> int:
            if version:
                swapped = await office.caller.compare_and_swap(resource, version, state, fence=office.fence)
                return self._wrote(resource, swapped.version, swapped.header.revision, office)
            created = await office.caller.create_workflow(resource, state, fence=office.fence)
            return self._wrote(resource, created.version, created.header.revision, office)

        question = Question(office.election, "act", office.named, writes=True)
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
                    await self._rule(worker, lease, over)
            except LeaseLost:
                self.book.count("leases lost")
            except NotElected:
                continue

    async def _rule(self, worker: Worker, lease: sdk.Lease, over: asyncio.Event) -> None:
        """Hold the office for a while; note from when until when the lease said that it could be relied on."""
        since_ns = now_ns()
        place = len(self._tenures)
        self._tenures.append(Tenure(lease.election, str(worker.process), lease.fence.revision, since_ns, since_ns))
        until = time.monotonic() + worker.random.uniform(0.3, 2.5)
        while time.monotonic() < until and not over.is_set():
            at_ns = now_ns()
            if lease.valid:
                self._tenures[place] = self._tenures[place]._replace(until=at_ns)
            await asyncio.sleep(worker.random.uniform(0.005, 0.05))

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
        if each.kind != "act":
            yield each
        elif not each.unknown and each.result is not None:
            yield each._replace(kind="renew")


def _holder(view: api.ElectionView) -> Value:
    return view.election.process.hex(), view.fence.revision


def _false(_: ControlPlaneError) -> Value:
    """The rules said no."""
    return False
