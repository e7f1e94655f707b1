"""The agents of the demonstration: ordinary users of the SDK that note what was acknowledged to them."""

from __future__ import annotations

import asyncio
import random
import time

from controlplane import sdk
from controlplane.demo.record import Record
from controlplane.v1 import api_pb2 as api

AGENT_TYPE = "worker"
ELECTION = "orchestrator"
PLAN = "plan"
TOOLS = ("search", "calc")
THINK_S = (0.02, 0.08)
# One in so many writes creates a workflow of its own; the rest change a shared one.
_CREATE_EVERY = 5
_STOPPED_POLL_S = 0.02
# Losing so many races in a row means that something is wrong, not that the others are quick.
_RACES_MAX = 30
_TTL_S = 3.0


class Agent:
    """One agent: asks whether it may act, how, and does a piece of work; over and over."""

    def __init__(self, name: str, plane: sdk.ControlPlane, shared: str, record: Record) -> None:
        self._name = name
        self._plane = plane
        self._shared = shared
        self._record = record
        self._done = 0
        self.stopped = False
        plane.on_kill_change(self._learn)

    def _learn(self, view: api.SwitchView) -> None:
        # From here until somebody asks for the release the agent has to stand still.
        if view.switch.scope.kind == sdk.SCOPE_AGENT_TYPE and view.switch.engaged:
            self.stopped = True
            self._record.stops += 1

    def heard_from_abroad(self, view: api.SwitchView) -> None:
        """Another region stopped something that covers this agent: from here on it has to stand still."""
        if view.region and view.switch.engaged:
            self.stopped = True
            self._record.stops += 1

    async def work(self, until: asyncio.Event) -> None:
        """Work until told to end. What the SDK raises is a failed call; the agent goes on."""
        while not until.is_set():
            try:
                self._plane.ensure_alive(agent_type=AGENT_TYPE, tools=TOOLS)
                config = self._plane.config(user=self._name, tenant="acme")
                assert config.max_iterations > 0
                await self._piece_of_work()
            except sdk.Stopped:
                await asyncio.sleep(_STOPPED_POLL_S)
            except (sdk.ControlPlaneError, sdk.SdkError) as error:
                self._record.failures.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(random.uniform(*THINK_S))  # noqa: S311 - think time

    async def _piece_of_work(self) -> None:
        self._done += 1
        self._record.acts_while_stopped += self.stopped
        self._record.calls += 1
        began_s = time.monotonic()
        if self._done % _CREATE_EVERY:
            await self._plane.update_state_with_retry(self._shared, self._count_one, max_retries=_RACES_MAX)
            self._record.counted[self._shared, self._name] += 1
        else:
            task = f"task/{self._name}/{self._done:06}"
            await self._plane.create_workflow(task, b"{}")
            self._record.created.add(task)
        self._record.wrote(began_s, time.monotonic())

    def _count_one(self, state: dict[str, int]) -> dict[str, int]:
        return {**state, self._name: state.get(self._name, 0) + 1}


async def orchestrate(plane: sdk.ControlPlane, terms: asyncio.Semaphore, record: Record, until: asyncio.Event) -> None:
    """Campaign, write under the fence while elected, step down when told to; again until the end.

    `terms` hands out one turn each time the story wants another orchestrator.
    """
    try:
        while not until.is_set():
            async with plane.election(ELECTION, ttl_s=_TTL_S).campaign() as lease:
                await _hold(plane, lease, terms, record)
            await _try_stale(plane, lease.fence, record)
    except sdk.LeaseLost as error:
        record.failures.append(f"LeaseLost: {error}")


async def _hold(plane: sdk.ControlPlane, lease: sdk.Lease, terms: asyncio.Semaphore, record: Record) -> None:
    record.fences.append((lease.fence.epoch, lease.fence.revision))
    while terms.locked():
        record.calls += 1
        try:
            await plane.update_state_with_retry(PLAN, _next_step, fence=lease.fence)
        except (sdk.ControlPlaneError, sdk.ConflictError) as error:
            record.failures.append(f"orchestrator: {type(error).__name__}: {error}")
        await asyncio.sleep(0.05)
    await terms.acquire()


def _next_step(state: dict[str, int]) -> dict[str, int]:
    return {"step": state.get("step", 0) + 1}


async def _try_stale(plane: sdk.ControlPlane, fence: sdk.Fence, record: Record) -> None:
    """Act under a fence that was given up: it has to be refused."""
    try:
        await plane.update_state_with_retry(PLAN, _next_step, fence=fence)
    except sdk.Refused:
        record.stale_fence_refused = record.stale_fence_refused is not False
    else:
        record.stale_fence_refused = False
