"""The clients of a drill: they work while things break, and write down what they were told.

All of it goes to keys of the drill's own (`drill/<id>/...`), so that nothing of the region's is touched:

- *register* clients read and compare-and-swap a few workflows, one client fixed to each node and some that go wherever
  the SDK takes them, as agents do;
- *holders* campaign for one election, one of them fixed to the leader that is to be struck, and act on one workflow
  under their fence; whoever lost its lease tries its old fence once more, which must be refused;
- *obedient* clients ask their mirrors whether a kill switch stops them before every act.

Every operation is one line of the history (`controlplane.checking.histories`). Only `OutcomeUnknown` is recorded as
unknown; all other errors are definite.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from random import Random
from typing import Final, TypeVar

from controlplane import sdk
from controlplane.checking.histories import Recorder, Value
from controlplane.errors import ControlPlaneError, OutcomeUnknown
from controlplane.limits import PROCESS_BYTES
from controlplane.v1 import api_pb2 as api

PACE_S: Final = 0.03
KEYS: Final = ("k0", "k1", "k2", "k3")
ROAMING: Final = 2
CALL_TIMEOUT_S: Final = 2.0
LEASE_TTL_MS: Final = 3_000
BULK_PIECE_BYTES: Final = 256 * 1024
READ_SHARE: Final = 0.4

_DEADLINE_S: Final = 30.0
_HOLDERS_PACE_S: Final = 0.25
_HEAD_START_S: Final = 1.0

Connect = Callable[[Sequence[str], bool], AbstractAsyncContextManager[sdk.ControlPlane]]
"""Makes a client of these nodes only, or of the whole region for no addresses; with a mirror or without."""

_T = TypeVar("_T")
_Switched = api.EngageSwitchReply | api.ReleaseSwitchReply


class Scribe:
    """Writes each operation of each process into the history."""

    def __init__(self, recorder: Recorder, clock_ns: Callable[[], int]) -> None:
        self.recorder, self._clock_ns = recorder, clock_ns
        self.processes: list[str] = []

    def join(self, name: str) -> int:
        """Take part under a name; return the number of the process."""
        self.processes.append(name)
        return len(self.processes) - 1

    async def ask(
        self,
        process: int,
        key: str,
        kind: str,
        argument: Value,
        work: Awaitable[_T],
        answer: Callable[[_T], Value],
        *,
        refusals: Collection[str] = (),
        refused: Value = None,
    ) -> _T | ControlPlaneError:
        """Do `work` as one operation; return what came of it. A refusal named in `refusals` is the answer `refused`."""
        self.recorder.invoke(process, key, kind, argument, self._clock_ns())
        try:
            reply = await work
        except ControlPlaneError as error:
            self._failed(process, error, refusals, refused)
            return error
        self.recorder.ok(process, answer(reply), self._clock_ns())
        return reply

    def note(self, process: int, key: str, kind: str, result: Value) -> None:
        """Write down something that was known at once."""
        self.recorder.invoke(process, key, kind, None, self._clock_ns())
        self.recorder.ok(process, result, self._clock_ns())

    def _failed(self, process: int, error: ControlPlaneError, refusals: Collection[str], refused: Value) -> None:
        now = self._clock_ns()
        if isinstance(error, OutcomeUnknown):
            self.recorder.info(process, error.reason, now)
        elif error.reason in refusals:
            self.recorder.ok(process, refused, now)
        else:
            self.recorder.fail(process, error.reason, now)


class Load:
    """All clients of one drill: `open`, then `start`; `stop` ends their work and `close` their connections."""

    def __init__(self, connect: Connect, scribe: Scribe, prefix: str, partition: str, random: Random) -> None:
        self._connect, self._scribe, self._random = connect, scribe, random
        self._prefix, self._partition = prefix, partition
        self._stack = AsyncExitStack()
        self._addresses: Mapping[str, str] = {}
        self._fixed: dict[str, sdk.ControlPlane] = {}
        self._roaming: list[sdk.ControlPlane] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._bulk_pieces = 0
        self.tenant = prefix.replace("/", "-")
        """Whom the drill's kill switch stops."""

    async def open(self, addresses: Mapping[str, str]) -> None:
        """Connect to every node (name → address) by itself, and to the region. Raises the eight errors."""
        self._addresses = addresses
        for name, address in addresses.items():
            self._fixed[name] = await self._stack.enter_async_context(self._connect([address], False))
        for _ in range(ROAMING):
            self._roaming.append(await self._stack.enter_async_context(self._connect([], False)))
        maker = self._scribe.join("maker")
        for key in (*KEYS, "bulk", "guarded"):
            await self._create(maker, key)

    def start(self, holder_at: str, *, obedient: bool) -> None:
        """Let the clients work, with a holder fixed to the node `holder_at`."""
        roaming = [(f"roaming-{number}", plane) for number, plane in enumerate(self._roaming)]
        for name, plane in (*self._fixed.items(), *roaming):
            self._run(self._register(self._scribe.join(f"register {name}"), plane))
        self._run(self._hold(self._scribe.join(f"holder {holder_at}"), self._fixed[holder_at], 0.0))
        self._run(self._hold(self._scribe.join("holder roaming-0"), self._roaming[0], _HEAD_START_S))
        if obedient:
            for name, address in (("roaming", []), *((name, [each]) for name, each in self._addresses.items())):
                self._run(self._obey(self._scribe.join(f"obedient {name}"), address))

    @property
    def failure(self) -> BaseException | None:
        """Why a client ended that should not have; None while all are at work."""
        return next((task.exception() for task in self._tasks if task.done() and not task.cancelled()), None)

    async def stop(self) -> None:
        """End all work; what was being asked has an unknown outcome."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """End all work and disconnect."""
        await self.stop()
        await self._stack.aclose()

    async def bulk(self, size_bytes: int, node: str) -> int:
        """Write so many bytes to one workflow through `node`; return how many were acknowledged in half a minute."""
        process, plane, done = self._scribe.join("bulk"), self._fixed[node], 0
        version = 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DEADLINE_S):
                while done < size_bytes:
                    self._bulk_pieces += 1
                    value, piece_bytes = f"b{self._bulk_pieces}", min(BULK_PIECE_BYTES, size_bytes)
                    new = await self._swap(process, plane, "bulk", version, value, piece_bytes)
                    if new is None:
                        found = await self._read(process, plane, "bulk")
                        version = found[0] if found else version
                    else:
                        version, done = new, done + piece_bytes
        return done

    async def final_reads(self) -> None:
        """Read every key through every node, once all is well."""
        for name, plane in self._fixed.items():
            process = self._scribe.join(f"final {name}")
            for key in (*KEYS, "bulk"):
                await self._read(process, plane, key, timeout_s=_DEADLINE_S / 3)

    async def engaged(self) -> list[api.SwitchView]:
        """Read which kill switches are engaged in the drill's environment already."""
        return await engaged_in(self._roaming[0], self._partition)

    async def stops(self) -> set[tuple[str, str, int]]:
        """Read which stops of other regions are in force: region, id and revision. Raises the eight errors."""
        reply = await self._roaming[0].list_switches(engaged_only=True, partition=self._partition)
        return {(stop.region, stop.id, stop.revision) for stop in reply.stops if stop.engaged}

    def _run(self, work: Coroutine[None, None, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    def _id(self, key: str) -> str:
        return f"{self._prefix}/{key}"

    # The kill switch.

    async def throw(self, reason: str, *, engage: bool) -> bool:
        """Engage or release the drill's switch, asking until it is confirmed; False: not within half a minute."""
        process = self._scribe.join("engage" if engage else "release")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DEADLINE_S):
                while True:
                    if await self._throw_once(process, reason, engage=engage):
                        return True
                    await asyncio.sleep(PACE_S)
        return False

    async def _throw_once(self, process: int, reason: str, *, engage: bool) -> bool:
        scope = sdk.Scope(kind=sdk.SCOPE_TENANT, name=self.tenant)
        options: sdk.WriteOptions = {"reason": reason, "partition": self._partition, "timeout_s": CALL_TIMEOUT_S}
        plane, kind = self._roaming[0], "engage" if engage else "release"
        work: Awaitable[_Switched] = plane.engage(scope, **options) if engage else plane.release(scope, **options)
        reply = await self._scribe.ask(process, "switch", kind, None, work, lambda said: said.changed)
        return not isinstance(reply, ControlPlaneError)

    async def _obey(self, process: int, addresses: Sequence[str]) -> None:
        async with self._connect(addresses, True) as plane:
            while True:
                await asyncio.sleep(PACE_S)
                try:
                    stopped = bool(plane.stopped(tenant=self.tenant))
                except sdk.MirrorStale:
                    # Who cannot know does not act.
                    stopped = True
                self._scribe.note(process, "permission", "permitted", not stopped)

    # Registers.

    async def _register(self, process: int, plane: sdk.ControlPlane) -> None:
        known: dict[str, int] = {}
        number = 0
        while True:
            key = self._random.choice(KEYS)
            if key not in known or self._random.random() < READ_SHARE:
                found = await self._read(process, plane, key)
                if found is not None:
                    known[key] = found[0]
            else:
                number += 1
                version = await self._swap(process, plane, key, known.pop(key), f"{process}.{number}")
                if version is not None:
                    known[key] = version
            await asyncio.sleep(PACE_S * self._random.uniform(0.5, 1.5))

    async def _create(self, process: int, key: str) -> None:
        work = self._roaming[0].create_workflow(self._id(key), b"made", partition=self._partition)
        reply = await self._scribe.ask(process, key, "create", "made", work, lambda said: int(said.version))
        if isinstance(reply, ControlPlaneError):
            raise reply

    async def _read(
        self, process: int, plane: sdk.ControlPlane, key: str, timeout_s: float = CALL_TIMEOUT_S
    ) -> tuple[int, str] | None:
        work = plane.get_workflow(self._id(key), partition=self._partition, timeout_s=timeout_s)
        reply = await self._scribe.ask(process, key, "read", None, work, _versioned)
        return None if isinstance(reply, ControlPlaneError) else _versioned(reply)

    async def _swap(
        self, process: int, plane: sdk.ControlPlane, key: str, version: int, value: str, size_bytes: int = 0
    ) -> int | None:
        state = value.encode() + b"|" + bytes(max(0, size_bytes - len(value) - 1))
        work = plane.compare_and_swap(
            self._id(key), version, state, partition=self._partition, timeout_s=CALL_TIMEOUT_S
        )
        reply = await self._scribe.ask(
            process, key, "cas", (version, value), work, lambda said: int(said.version), refusals={"VERSION_MISMATCH"}
        )
        return None if isinstance(reply, ControlPlaneError) else int(reply.version)

    # Holders.

    async def _hold(self, process: int, plane: sdk.ControlPlane, after_s: float) -> None:
        await asyncio.sleep(after_s)
        while True:
            tenure = self._random.randbytes(PROCESS_BYTES)
            fence = await self._win(process, plane, tenure)
            version = 0
            while fence is not None:
                held = await self._renew(process, plane, tenure, fence)
                # Tried with a lost lease too, on purpose: that is what a fence is for.
                version = await self._act(process, plane, fence, version)
                fence = fence if held else None
                await asyncio.sleep(_HOLDERS_PACE_S)
            await asyncio.sleep(_HOLDERS_PACE_S)

    async def _win(self, process: int, plane: sdk.ControlPlane, tenure: bytes) -> api.Fence | None:
        work = plane.campaign(
            self._id("lease"), tenure, LEASE_TTL_MS, partition=self._partition, timeout_s=CALL_TIMEOUT_S
        )
        reply = await self._scribe.ask(process, "lease", "campaign", tenure.hex(), work, _tenure)
        return reply.holder.fence if isinstance(reply, api.CampaignReply) and reply.elected else None

    async def _renew(self, process: int, plane: sdk.ControlPlane, tenure: bytes, fence: api.Fence) -> bool:
        """Ask for more; False only if it was refused."""
        work = plane.renew(self._id("lease"), tenure, fence, partition=self._partition, timeout_s=CALL_TIMEOUT_S)
        argument = (tenure.hex(), fence.revision)
        reply = await self._scribe.ask(
            process, "lease", "renew", argument, work, lambda _: True, refusals={"LEASE_LOST"}, refused=False
        )
        return not (isinstance(reply, ControlPlaneError) and reply.reason == "LEASE_LOST")

    async def _act(self, process: int, plane: sdk.ControlPlane, fence: api.Fence, version: int) -> int:
        """Write to the guarded workflow under a fence; return its version as far as known."""
        work = plane.compare_and_swap(
            self._id("guarded"), version, b"act", partition=self._partition, fence=fence, timeout_s=CALL_TIMEOUT_S
        )
        reply = await self._scribe.ask(
            process, "guarded", "act", fence.revision, work, lambda _: True, refusals={"FENCE_STALE"}, refused=False
        )
        if isinstance(reply, api.CompareAndSwapWorkflowReply):
            return int(reply.version)
        with contextlib.suppress(ControlPlaneError):
            found = await plane.get_workflow(self._id("guarded"), partition=self._partition, timeout_s=CALL_TIMEOUT_S)
            return int(found.workflow.version)
        return version


def _versioned(reply: api.GetWorkflowReply) -> tuple[int, str]:
    view = reply.workflow
    return int(view.version), view.workflow.state.partition(b"|")[0].decode(errors="replace")


def _tenure(reply: api.CampaignReply) -> tuple[str, int]:
    return reply.holder.election.process.hex(), int(reply.holder.fence.revision)


async def engaged_in(plane: sdk.ControlPlane, partition: str = "") -> list[api.SwitchView]:
    """Read all engaged kill switches of the plane's own region; a page may be empty and not the last."""
    found: list[api.SwitchView] = []
    reply = await plane.list_switches(engaged_only=True, partition=partition)
    found.extend(reply.switches)
    while reply.more:
        reply = await plane.list_switches(engaged_only=True, after=reply.next, partition=partition)
        found.extend(reply.switches)
    return found
