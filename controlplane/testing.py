"""A control plane for the tests of agents: the real server and the real rules, with time and trouble at command.

    pytest_plugins = ["controlplane.testing"]  # in conftest.py; needs controlplane[server,testing]

    def test_stops_when_killed(control_plane):
        with control_plane.connect_sync() as cp:
            cp.mirror_synced(control_plane.kill(Scope(kind=SCOPE_TOOL, name="search")))
            with pytest.raises(Stopped):
                cp.ensure_alive(tools=("search",))

One node over a memory store, on a free port of this machine, in a thread of its own: it works under any test runner,
with the asyncio client and with the synchronous one. What it can be told:

- `clock.advance(seconds)`: leases expire, mirrors grow old, deadlines pass. Clients made by the plane share its clock.
- `kill(scope)` and `revive(scope)`: a kill switch, and back; returns when it is committed.
- `kill_abroad(scope)` and `revive_abroad(scope)`: the same in another region, as this one hears of it.
- `conflict_next(n)`: before each of the next n compare-and-swaps somebody else writes the same workflow.
- `lose_leader()` and `regain_leader()`: meanwhile writes and linearizable reads wait, and `LOCAL` reads are answered.

Everything else is what production does, refusals and reasons included.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from controlplane.config import NodeConfig, RegionConfig, Timing
from controlplane.controllers import TICK_S, Controllers
from controlplane.errors import Invalid, Unavailable
from controlplane.features import federation, partitions, switches
from controlplane.features.workflows import WORKFLOW
from controlplane.identity import Identity
from controlplane.kernel import keys
from controlplane.kernel.store import MemoryStore
from controlplane.kernel.transaction import Tx, scope_of
from controlplane.limits import QUOTA_BYTES
from controlplane.node import Call, Node
from controlplane.replication import Log, LogStatus, Machine, Role
from controlplane.replication.local import LocalLog
from controlplane.sdk import ControlPlane, Flag, FlagType, FlagValue, Scope, Variant, sync
from controlplane.sdk import clock as clocks
from controlplane.server import Server
from controlplane.v1 import api_pb2 as api
from controlplane.v1.federation_pb2 import Shared
from controlplane.v1.records_pb2 import GLOBAL, HOME_ONLY, Partition, Stop
from controlplane.v1.state_pb2 import Origin

FLEET, REGION, NODE, ENVIRONMENT = "test", "test", "test-1", "test"
ADVANCE_STEP_S = 0.4
"""A clock that jumps further looks like a stall to the node, and a stall restarts every lease."""
ELSEWHERE = "elsewhere"
"""Another region, unless a test names one."""
EVERYBODY = Identity(FLEET, ENVIRONMENT, REGION, "operator", "tester")

T = TypeVar("T")


class Clock:
    """Real time, and what the test adds to it. May be called from any thread."""

    def __init__(self, settle: Callable[[], None]) -> None:
        self._ahead_s = 0.0
        self._settle = settle

    def __call__(self) -> float:
        """Return the time in seconds."""
        return clocks.now() + self._ahead_s

    def advance(self, seconds: float) -> None:
        """Let time pass, in steps, each long enough for the plane to act on; about an eighth of it is waited for."""
        end = self._ahead_s + seconds
        while self._ahead_s < end:
            self._ahead_s = min(end, self._ahead_s + ADVANCE_STEP_S)
            self._settle()


class _Leadership:
    """A log that can be told to have no leader. What is appended already is finished."""

    def __init__(self, log: Log, clock: Clock) -> None:
        self._log = log
        self._clock = clock
        self._lost_s = 0.0
        self._listeners: list[Callable[[], None]] = []
        self._lost = False

    async def start(self, machine: Machine) -> None:
        await self._log.start(machine)

    async def stop(self) -> None:
        await self._log.stop()

    async def append(self, entry: bytes, *, timeout_s: float) -> int:
        self._require()
        return await self._log.append(entry, timeout_s=timeout_s)

    async def barrier(self, *, timeout_s: float) -> None:
        self._require()
        await self._log.barrier(timeout_s=timeout_s)

    async def transfer(self, target: str | None, *, timeout_s: float) -> str:
        self._require()
        return await self._log.transfer(target, timeout_s=timeout_s)

    def status(self) -> LogStatus:
        found = self._log.status()
        if not self._lost:
            return found
        return LogStatus(
            role=Role.FOLLOWER,
            leader=None,
            term=found.term,
            commit=found.commit,
            applied=found.applied,
            last=found.last,
            ready=False,
            fresh_s=self._clock() - self._lost_s,
            peers=found.peers,
        )

    def on_change(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)
        self._log.on_change(listener)

    def lose(self, *, lost: bool) -> None:
        self._lost, self._lost_s = lost, self._clock()
        for listener in self._listeners:
            listener()

    def _require(self) -> None:
        if self._lost:
            raise Unavailable("the region has no leader", reason="NO_LEADER")


class _Node(Node):
    """A node with rivals."""

    conflicts = 0

    def submit(self, call: Call) -> asyncio.Future[bytes]:
        if call.method == "CompareAndSwapWorkflow" and self.conflicts:
            self.conflicts -= 1
            self._rival(call)
        return super().submit(call)

    def _rival(self, call: Call) -> None:
        request = api.CompareAndSwapWorkflowRequest.FromString(call.request)
        partition = self.partition(request.header, WORKFLOW.name, call)

        def write_the_same(tx: Tx) -> api.RequestHeader | None:
            row = tx.get(WORKFLOW, request.id)
            if row is None:
                return None
            tx.put(WORKFLOW, request.id, row.value)
            return api.RequestHeader()

        self.transact(partition, "Rival", write_the_same, timeout_s=5.0)


class Plane:
    """One running control plane. Every method may be called from any thread but the plane's own, and blocks."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="controlplane-test", daemon=True)
        self._thread.start()
        self.clock = Clock(self._settle)
        self._abroad: dict[tuple[str, str], Origin] = {}
        self._run(self._start())
        self._operator = self.connect_sync()

    @property
    def address(self) -> str:
        """Where clients connect, with `insecure=True`."""
        return self._server.address

    # Clients

    def connect(self, **options: Any) -> ControlPlane:
        """Return an asyncio client, to be entered; options as for `ControlPlane.connect`."""
        return ControlPlane.connect(self.address, insecure=True, clock=self.clock, **options)

    def connect_sync(self, **options: Any) -> sync.ControlPlane:
        """Return a synchronous client; options as for `ControlPlane.connect`."""
        return sync.ControlPlane(self.address, insecure=True, clock=self.clock, **options)

    # What operators do

    def kill(self, scope: Scope, reason: str = "a test says so") -> int:
        """Engage a kill switch; returns the revision, for `mirror_synced`."""
        return self._operator.engage(scope, reason=reason).header.revision

    def revive(self, scope: Scope, reason: str = "a test says so") -> int:
        """Release a kill switch; returns the revision."""
        return self._operator.release(scope, reason=reason).header.revision

    def kill_abroad(self, scope: Scope, region: str = ELSEWHERE) -> int:
        """Engage a kill switch in another region; returns the revision at which this one has heard of it.

        Its own epoch and revision, for an exception, are in `list_switches().stops`. Scope `region` does not travel.
        """
        return self._run(self._throw_abroad(scope, region, engaged=True))

    def revive_abroad(self, scope: Scope, region: str = ELSEWHERE) -> int:
        """Release it there; returns the revision at which this region has heard of it."""
        return self._run(self._throw_abroad(scope, region, engaged=False))

    def set_flag(self, name: str, value: Any) -> int:
        """Make a flag be `value` for everybody; returns the revision. Lists and objects become JSON flags."""
        kind, packed = _flag_value(value)
        flag = Flag(name=name, type=kind, enabled=True, default_variant="on")
        flag.variants.append(Variant(name="on", value=packed))
        return self._operator.set_flag(flag).header.revision

    # Trouble

    def conflict_next(self, times: int = 1) -> None:
        """Have somebody else write first, before each of the next compare-and-swaps."""
        self._run(self._set_conflicts(times))

    def lose_leader(self) -> None:
        """Leave the region without a leader."""
        self._run(self._lead(lost=True))

    def regain_leader(self) -> None:
        """Have a leader again: what waited goes on."""
        self._run(self._lead(lost=False))

    def stop(self) -> None:
        """End it. Idempotent."""
        if self._loop.is_closed():
            return
        self._operator.close()
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # Below: in the plane's own thread.

    async def _start(self) -> None:
        self._log = _Leadership(LocalLog(NODE), self.clock)
        config = _config()
        self._node = _Node(
            fleet=FLEET,
            region=REGION,
            name=NODE,
            partitions=config.partitions,
            store=MemoryStore(),
            log=self._log,
            clock=self.clock,
            wall_ms=lambda: time.time_ns() // 1_000_000,
            entropy=os.urandom,
        )
        await self._node.start()
        self._controllers = Controllers(self._node)
        self._controllers.start()
        self._server = Server(config, NODE, self._node, None, everybody=EVERYBODY)
        await self._server.start()

    async def _stop(self) -> None:
        await self._server.stop()
        await self._controllers.stop()
        await self._node.stop()

    async def _set_conflicts(self, times: int) -> None:
        self._node.conflicts = times

    async def _lead(self, *, lost: bool) -> None:
        self._log.lose(lost=lost)

    async def _throw_abroad(self, scope: Scope, region: str, *, engaged: bool) -> int:
        """Copy what the other region would share."""
        name = switches.record_name(scope)
        if not switches.travels(name) or region == REGION:
            raise Invalid("a switch of this scope and region is not told to this one", reason="SCOPE_STAYS")
        there = Partition(
            id=f"{region}.{ENVIRONMENT}.stops",
            home=region,
            epoch=1,
            reach=GLOBAL,
            environment=ENVIRONMENT,
            default_for=[switches.STOP.name],
        )
        before = self._abroad.get((region, name), Origin())
        revision = 1 + max((each.revision for (of, _), each in self._abroad.items() if of == region), default=0)
        origin = self._abroad[region, name] = Origin(
            home=region,
            epoch=there.epoch,
            revision=revision,
            created=before.created or revision,
            version=before.version + 1,
            at_ms=time.time_ns() // 1_000_000,
        )
        key = keys.within(scope_of(there), switches.STOP.name, switches.opaque(FLEET, ENVIRONMENT, name))
        copy = Shared(key=key, value=Stop(engaged=engaged).SerializeToString(), origin=origin)
        await self._node.transact(
            partitions.system(REGION), "Learn", lambda tx: federation.learn(tx, region, GLOBAL, [there]), timeout_s=5.0
        )
        reply = await self._node.transact(
            there, "Copy", lambda tx: federation.take_transaction(tx, REGION, revision, [copy]), timeout_s=5.0
        )
        return api.GetRegionReply.FromString(reply).header.revision

    def _settle(self) -> None:
        """Wait until the plane's loops have looked at the clock."""
        self._run(asyncio.sleep(TICK_S * 1.2))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


@contextmanager
def plane() -> Iterator[Plane]:
    """Run a control plane for the body, for test runners other than pytest."""
    running = Plane()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def control_plane() -> Iterator[Plane]:
    """A control plane of the test's own."""
    with plane() as running:
        yield running


def _config() -> RegionConfig:
    address = f"127.0.0.1:{_free_port()}"
    nowhere = Path(os.devnull)
    return RegionConfig(
        file=nowhere,
        fleet=FLEET,
        name=REGION,
        jurisdiction="test",
        authority=nowhere,
        nodes=(NodeConfig(NODE, address, address, address, nowhere, nowhere),),
        partitions=(
            Partition(
                id=f"{REGION}.{ENVIRONMENT}",
                home=REGION,
                epoch=1,
                reach=HOME_ONLY,
                environment=ENVIRONMENT,
                default_for=["flag", "switch", "workflow", "election"],
            ),
        ),
        administrators=(EVERYBODY,),
        timing=Timing(),
        quota_bytes=QUOTA_BYTES,
        ballast_bytes=0,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _flag_value(value: Any) -> tuple[FlagType, FlagValue]:
    if isinstance(value, bool):
        return FlagType.BOOL, FlagValue(bool_value=value)
    if isinstance(value, int):
        return FlagType.INT, FlagValue(int_value=value)
    if isinstance(value, str):
        return FlagType.STRING, FlagValue(string_value=value)
    if isinstance(value, float):
        return FlagType.NUMBER, FlagValue(number_value=repr(value))
    return FlagType.JSON, FlagValue(json_value=json.dumps(value))
