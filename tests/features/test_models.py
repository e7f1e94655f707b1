"""The rules of the product against small models of them, written from their description and not from the code.

Hypothesis plays any sequence of calls on a whole node; after each, node and model must have said the same. The models
know nothing of revisions but that they grow: fences and revisions are remembered as the node told them.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from controlplane.errors import ControlPlaneError
from controlplane.features.leases import expire
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Flag, FlagType, FlagValue, Scope, ScopeKind, Variant
from tests.node.harness import STATE, Region, within

NAMES = st.sampled_from(["a", "ab"])
AGENTS = st.sampled_from([f"controlplane://fleet/prod/eu/agent/a{n}" for n in range(2)])
PROCESSES = st.sampled_from([b"1" * 16, b"2" * 16])


class Register:
    """A value that changes only for who knows its version."""

    def __init__(self) -> None:
        self.versions: list[bytes] = []

    def create(self, value: bytes) -> str | int:
        return "WORKFLOW_EXISTS" if self.versions else self._write(value)

    def swap(self, version: int, value: bytes) -> str | int:
        if not self.versions:
            return "WORKFLOW_NOT_FOUND"
        return self._write(value) if version == len(self.versions) else "VERSION_MISMATCH"

    def _write(self, value: bytes) -> int:
        self.versions.append(value)
        return len(self.versions)


@dataclass
class Lease:
    """At most one holder, a person and a process; a new tenure has a fence beyond all earlier ones."""

    holder: tuple[str, bytes] | None = None
    fence: int = 0
    greatest: int = 0

    def campaign(self, who: tuple[str, bytes]) -> str:
        if self.holder is None:
            self.holder = who
            return "new"
        return "mine" if self.holder == who else "lost"

    def holds(self, who: tuple[str, bytes], fence: int) -> bool:
        return self.holder == who and fence == self.fence

    def leave(self) -> None:
        self.holder = None


@dataclass
class Switch:
    """Engaged or not; who engaged it last is remembered through the release."""

    engaged: bool = False
    by: tuple[str, str] = ("", "")

    def throw(self, engaged: bool, by: tuple[str, str]) -> bool:
        if self.engaged == engaged:
            return False
        self.engaged, self.by = engaged, by if engaged else self.by
        return True


@dataclass
class Setting:
    """A flag: every version ever written, with the revision that it got."""

    versions: list[tuple[int, str]] = field(default_factory=list)

    def at(self, revision: int) -> str | None:
        return next((value for written, value in reversed(self.versions) if written <= revision), None)


class Plane(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.registers: dict[str, Register] = {}
        self.leases: dict[str, Lease] = {}
        self.switches: dict[str, Switch] = {}
        self.flags: dict[str, Setting] = {}
        self.revision = 0

    @initialize()
    def begin(self) -> None:
        self.region = self.runner.run(self._new())

    async def _new(self) -> Region:
        return await Region().__aenter__()

    def teardown(self) -> None:
        self.runner.run(self.region.__aexit__(None, None, None))
        self.runner.close()

    def ask(self, method: str, request: Message, actor: str = "controlplane://fleet/prod/eu/agent/a0") -> Any:
        """The reply, or the reason of the refusal."""
        try:
            return self.runner.run(self._ask(method, request, actor))
        except ControlPlaneError as error:
            return error.reason

    async def _ask(self, method: str, request: Message, actor: str) -> Any:
        return await self.region.call(method, request, actor=actor)

    @invariant()
    def revisions_only_grow(self) -> None:
        if hasattr(self, "region"):
            assert self.region.node.revision >= self.revision
            self.revision = self.region.node.revision

    # Workflows

    @rule(name=NAMES, value=st.binary(max_size=3))
    def create(self, name: str, value: bytes) -> None:
        told = self.ask("CreateWorkflow", api.CreateWorkflowRequest(id=name, state=value))
        said = self.registers.setdefault(name, Register()).create(value)
        assert getattr(told, "version", told) == said

    @rule(name=NAMES, value=st.binary(max_size=3), version=st.integers(0, 4))
    def swap(self, name: str, value: bytes, version: int) -> None:
        request = api.CompareAndSwapWorkflowRequest(id=name, version=version, state=value)
        told = self.ask("CompareAndSwapWorkflow", request)
        said = self.registers.setdefault(name, Register()).swap(version, value)
        assert getattr(told, "version", told) == said

    @rule(name=NAMES)
    def history(self, name: str) -> None:
        told = self.ask("GetWorkflowHistory", api.GetWorkflowHistoryRequest(id=name))
        versions = self.registers.setdefault(name, Register()).versions
        if not versions:
            assert told == "WORKFLOW_NOT_FOUND"
            return
        assert [view.workflow.state for view in told.versions] == versions[::-1]
        for view in told.versions:
            past = self.ask("GetWorkflow", api.GetWorkflowRequest(id=name, at_revision=view.meta.revision))
            assert past.workflow == view

    @rule()
    def list_workflows(self) -> None:
        told = self.ask("ListWorkflows", api.ListWorkflowsRequest(prefix="a"))
        there = {name: register.versions[-1] for name, register in self.registers.items() if register.versions}
        said = sorted((name, state) for name, state in there.items() if name.startswith("a"))
        assert [(view.workflow.id, view.workflow.state) for view in told.workflows] == said

    # Elections

    def lease(self, name: str) -> Lease:
        return self.leases.setdefault(name, Lease())

    @rule(name=NAMES, agent=AGENTS, process=PROCESSES)
    def campaign(self, name: str, agent: str, process: bytes) -> None:
        told = self.ask("Campaign", api.CampaignRequest(name=name, process=process, ttl_ms=1000), agent)
        lease = self.lease(name)
        outcome = lease.campaign((agent, process))
        assert told.elected == (outcome != "lost")
        if outcome == "new":
            assert told.holder.fence.revision > lease.greatest
            lease.fence = lease.greatest = told.holder.fence.revision
        assert told.holder.fence.revision == lease.fence
        assert (told.holder.election.holder, told.holder.election.process) == lease.holder

    @rule(name=NAMES, agent=AGENTS, process=PROCESSES, off=st.sampled_from([0, 0, 0, 1]))
    def renew(self, name: str, agent: str, process: bytes, off: int) -> None:
        lease = self.lease(name)
        fence = api.Fence(election=name, epoch=1, revision=lease.fence + off)
        told = self.ask("Renew", api.RenewRequest(name=name, process=process, fence=fence), agent)
        said = 1000 if lease.holds((agent, process), lease.fence + off) else "LEASE_LOST"
        assert getattr(told, "ttl_ms", told) == said

    @rule(name=NAMES, agent=AGENTS, process=PROCESSES, off=st.sampled_from([0, 0, 0, 1]))
    def resign(self, name: str, agent: str, process: bytes, off: int) -> None:
        lease = self.lease(name)
        fence = api.Fence(election=name, epoch=1, revision=lease.fence + off)
        told = self.ask("Resign", api.ResignRequest(name=name, process=process, fence=fence), agent)
        assert told.resigned == lease.holds((agent, process), lease.fence + off)
        if told.resigned:
            lease.leave()

    @rule(name=NAMES, seen_late=st.booleans())
    def reap(self, name: str, seen_late: bool) -> None:
        self.runner.run(self._reap(name, seen_late))
        if not seen_late:
            self.lease(name).leave()

    async def _reap(self, name: str, seen_late: bool) -> None:
        held = await self.region.call("GetElection", api.GetElectionRequest(name=name))
        revision = held.holder.meta.revision + seen_late
        proposal = self.region.node.transact(
            STATE,
            "ExpireElection",
            lambda tx: api.RequestHeader() if expire(tx, name, revision) else None,
            timeout_s=5.0,
        )
        await within(proposal)

    @rule(name=NAMES, agent=AGENTS, off=st.sampled_from([0, 0, 1]), epoch=st.sampled_from([1, 1, 1, 2]))
    def write_with_a_fence(self, name: str, agent: str, off: int, epoch: int) -> None:
        lease = self.lease(name)
        fence = api.Fence(election=name, epoch=epoch, revision=lease.fence + off)
        request = api.CreateWorkflowRequest(id="fenced", header={"fence": fence})
        self.registers.setdefault("fenced", Register())
        told = self.ask("CreateWorkflow", request, agent)
        if lease.holder is None or off or epoch != 1:
            assert told == "FENCE_STALE"
        elif lease.holder[0] != agent:
            assert told == "FENCE_NOT_YOURS"
        else:
            assert getattr(told, "version", told) == self.registers["fenced"].create(b"")

    @rule()
    def list_elections(self) -> None:
        told = self.ask("ListElections", api.ListElectionsRequest())
        said = sorted((name, lease.holder[0]) for name, lease in self.leases.items() if lease.holder)
        assert [(view.election.name, view.election.holder) for view in told.elections] == said
        for view in told.elections:
            assert view.fence.revision == self.leases[view.election.name].fence

    # Switches

    @rule(name=NAMES, agent=AGENTS, engaged=st.booleans(), reason=st.sampled_from(["x", "y"]))
    def throw(self, name: str, agent: str, engaged: bool, reason: str) -> None:
        scope = Scope(kind=ScopeKind.SCOPE_TENANT, name=name)
        kind = api.EngageSwitchRequest if engaged else api.ReleaseSwitchRequest
        method = "EngageSwitch" if engaged else "ReleaseSwitch"
        told = self.ask(method, kind(scope=scope, header={"reason": reason}), agent)
        switch = self.switches.setdefault(name, Switch())
        assert told.changed == switch.throw(engaged, (agent, reason))
        assert told.switch.switch.engaged == switch.engaged
        assert (told.switch.switch.engaged_by, told.switch.switch.engaged_reason) == switch.by

    @rule(name=NAMES)
    def check(self, name: str) -> None:
        told = self.ask("CheckSwitches", api.CheckSwitchesRequest(subject={"tenant": name, "tools": [name]}))
        stopped = self.switches.get(name, Switch()).engaged
        assert [view.switch.scope.name for view in told.stopped_by] == [name] * stopped

    @rule()
    def list_switches(self) -> None:
        told = self.ask("ListSwitches", api.ListSwitchesRequest(engaged_only=True))
        said = sorted(name for name, switch in self.switches.items() if switch.engaged)
        assert [view.switch.scope.name for view in told.switches] == said

    # Flags

    @rule(name=NAMES, value=st.sampled_from(["x", "y", "z"]), only=st.sampled_from(["", "new", "here", "elsewhere"]))
    def set_flag(self, name: str, value: str, only: str) -> None:
        setting = self.flags.setdefault(name, Setting())
        newest = setting.versions[-1][0] if setting.versions else 0
        variant = Variant(name="v", value=FlagValue(string_value=value))
        request = api.SetFlagRequest(
            flag=Flag(name=name, type=FlagType.STRING, variants=[variant]),
            must_not_exist=only == "new",
            expected_revision={"here": newest, "elsewhere": newest + 1}.get(only, 0),
        )
        told = self.ask("SetFlag", request)
        if only == "new" and newest:
            assert told == "FLAG_EXISTS"
        elif only == "elsewhere":
            assert told == "REVISION_MISMATCH"
        else:
            setting.versions.append((told.meta.revision, value))
            assert told.meta.version == len(setting.versions)

    @rule(name=NAMES, back=st.integers(0, 12))
    def restore(self, name: str, back: int) -> None:
        setting = self.flags.setdefault(name, Setting())
        revision = max(0, self.region.node.revision - back)
        told = self.ask("RestoreFlag", api.RestoreFlagRequest(name=name, revision=revision))
        said = setting.at(revision)
        if said is None:
            assert told == "FLAG_NOT_FOUND"
        else:
            setting.versions.append((told.flag.meta.revision, said))
            assert told.flag.flag.variants[0].value.string_value == said

    @rule(name=NAMES, back=st.integers(0, 12))
    def look_back(self, name: str, back: int) -> None:
        revision = max(1, self.region.node.revision - back)
        told = self.ask("GetFlag", api.GetFlagRequest(name=name, at_revision=revision))
        if self.region.node.revision == 0:
            assert told == "REVISION_IN_FUTURE"
            return
        said = self.flags.get(name, Setting()).at(revision)
        assert (told if isinstance(told, str) else told.flag.flag.variants[0].value.string_value) == (
            "FLAG_NOT_FOUND" if said is None else said
        )

    @rule(name=NAMES)
    def flag_history(self, name: str) -> None:
        told = self.ask("GetFlagHistory", api.GetFlagHistoryRequest(name=name))
        versions = self.flags.get(name, Setting()).versions
        if not versions:
            assert told == "FLAG_NOT_FOUND"
            return
        kept = [(view.meta.revision, view.flag.variants[0].value.string_value) for view in told.versions]
        assert kept == versions[::-1]


Plane.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPlane = Plane.TestCase
