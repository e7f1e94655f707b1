"""What a drill does and looks at in several regions at once, beside the clients that work in its own.

An errand has its say before the first fault, while faults last and after they have healed, and undoes in the end what
it did, whatever happened. Everything that it was told is in the history, for `abroad` to judge.

A *side* is a region in which the operator has a certificate: the drill's own, and others that were named.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from controlplane import sdk
from controlplane.drills import abroad
from controlplane.drills.abroad import AWAY, BACK, BEFORE, BOTH, DURING, HOME, STALE, named
from controlplane.drills.load import CALL_TIMEOUT_S, Connect, Scribe, engaged_in
from controlplane.drills.nodes import Nodes
from controlplane.errors import Compacted, ControlPlaneError, NotFound, OutcomeUnknown, Refused, Unavailable
from controlplane.limits import REQUEST_ID_BYTES
from controlplane.v1 import api_pb2 as api

LOOK_S: Final = 0.05
ASK_S: Final = 0.2
WRITE_S: Final = 0.1
KEYS: Final = ("w0", "w1", "w2", "w3")
_DEADLINE_S: Final = 30.0
_PLAIN_TIMEOUT_S: Final = 3.0
_POLL_S: Final = 0.05
_DOUBT_S: Final = 7.0
"""A move that was asked for, and of which nobody heard, has begun by then or never will."""
_FEW: Final = 3
"""Writes of each client before a home is moved, and after."""
_AGAIN_S: Final = 0.1
_AGENTS: Final = "/controlplane.v1.Agents/"
_OPERATORS: Final = "/controlplane.v1.Operators/"
_ANSWERS: Final = frozenset({"VERSION_MISMATCH", "WORKFLOW_NOT_FOUND"})
"""What a home says to a write of a workflow that is not there: whoever hears it was answered."""
_State = tuple[tuple[str, int, str], ...]
"""Of each key: its version, and what it holds."""


class ErrandFailed(Exception):
    """What has to be so did not come about; the text says what."""


@dataclass(frozen=True, slots=True)
class Side:
    """A region in which the drill can look and act: its nodes, whose names are known, and how clients connect there."""

    region: str
    nodes: Nodes
    connect: Connect


class Errand:
    """See the module. `sides` begin with the drill's own region."""

    def __init__(self, sides: Sequence[Side], scribe: Scribe, prefix: str, reason: str) -> None:
        self._sides, self._scribe, self._prefix, self._reason = tuple(sides), scribe, prefix, reason
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self.left: list[str] = []
        """What could not be undone, each with what ends it."""

    @property
    def wrong(self) -> str:
        """Why the drill has to be stopped; empty while it may go on."""
        return ""

    @property
    def home(self) -> Side:
        """The drill's own region."""
        return self._sides[0]

    @property
    def watched(self) -> Mapping[str, list[str]]:
        """Region → the nodes at which this errand looks."""
        return {side.region: list(side.nodes.addresses) for side in self._sides}

    @property
    def failure(self) -> BaseException | None:
        """Why something ended that should not have; None while all is at work."""
        return next((task.exception() for task in self._tasks if task.done() and not task.cancelled()), None)

    async def open(self) -> None:
        """Connect and begin to look. Raises the eight errors, and `ErrandFailed`."""

    async def before(self) -> None:
        """Do what has to be done before the first fault. Raises `ErrandFailed` and the eight errors."""

    async def during(self) -> None:
        """Do what is done while faults last; they have all struck. Raises like `before`."""

    async def after(self) -> None:
        """Do what is done once everything is healed. Raises like `before`."""

    async def undo(self) -> None:
        """Undo what it did; what could not be is in `left`."""

    async def close(self) -> None:
        """End all looking, and disconnect."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await self._stack.aclose()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def _enter(self, side: Side, addresses: Sequence[str] = (), *, mirror: bool) -> sdk.ControlPlane:
        return await self._stack.enter_async_context(side.connect(addresses, mirror))

    async def _until(self, holds: Callable[[], bool], what: str, deadline_s: float = _DEADLINE_S) -> None:
        """Wait for what agents see. Raises `ErrandFailed`."""
        async with _in_time(what, deadline_s):
            while not holds():  # noqa: ASYNC110 - mirrors are looked at.
                await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def _in_time(what: str, deadline_s: float = _DEADLINE_S) -> AsyncIterator[None]:
    """Bound what is done inside. Raises `ErrandFailed` if it takes longer."""
    try:
        async with asyncio.timeout(deadline_s):
            yield
    except TimeoutError:
        raise ErrandFailed(f"{what} did not come about within {deadline_s:g} s") from None


class Stopping(Errand):
    """Throws kill switches on every side of a cut, and has agents at every node say which of them they heed."""

    def __init__(self, sides: Sequence[Side], scribe: Scribe, prefix: str, reason: str) -> None:
        super().__init__(sides, scribe, prefix, reason)
        self._planes: dict[str, sdk.ControlPlane] = {}
        self._seen: dict[str, frozenset[str]] = {}
        """By agent: what it found last; `STALE` if it could not know."""
        self._thrown: set[tuple[str, str]] = set()
        self._words = {word: f"{prefix.replace('/', '-')}-{word}" for word in (BEFORE, DURING, BOTH)}

    async def open(self) -> None:
        """See `Errand`."""
        for side in self._sides:
            plane = self._planes[side.region] = await self._enter(side, mirror=False)
            if engaged := len(await engaged_in(plane)):
                raise ErrandFailed(f"{engaged} kill switches are engaged in {side.region}: release them, or wait")
        for side in self._sides:
            for node, address in side.nodes.addresses.items():
                agent = named(side.region, node)
                self._seen[agent] = frozenset({STALE})
                process = self._scribe.join(f"looks {agent}")
                self._run(self._look_on(process, side.region, agent, await self._enter(side, [address], mirror=True)))

    async def before(self) -> None:
        """Throw one switch in each region, and wait until all regions heed all of them."""
        await self._everywhere(BEFORE)
        wanted = {f"{BEFORE}@{side.region}" for side in self._sides}
        await self._until(lambda: all(wanted <= seen for seen in self._seen.values()), "a stop of every region in all")

    async def during(self) -> None:
        """Throw more in each region; release what was thrown before, which nobody on the other side can be told."""
        await asyncio.gather(self._everywhere(DURING), self._everywhere(BOTH))
        await asyncio.gather(*(self._throw(BEFORE, side.region, engage=False) for side in self._sides))

    async def after(self) -> None:
        """Wait until all is heard of everywhere; release in one region what others still hold, then all of it."""
        home, regions = self.home.region, [side.region for side in self._sides]
        held = {f"{word}@{region}" for word in (DURING, BOTH) for region in regions}
        await self._until(lambda: all(seen == held for seen in self._seen.values()), "what was thrown, and no more,")
        await self._throw(BOTH, home, engage=False)
        held.discard(f"{BOTH}@{home}")
        await self._until(lambda: all(seen == held for seen in self._seen.values()), "a release of one region")
        await self._release_all()
        await self._until(lambda: not any(self._seen.values()), "freedom everywhere")

    async def undo(self) -> None:
        """Release whatever is engaged still."""
        await self._release_all()
        for word, region in sorted(self._thrown):
            self.left.append(
                f"a kill switch of the drill could not be released in {region}: "
                f"cpctl kill release tenant:{self._words[word]}"
            )

    async def _everywhere(self, word: str) -> None:
        done = await asyncio.gather(*(self._throw(word, side.region, engage=True) for side in self._sides))
        if not all(done):
            raise ErrandFailed(f"a kill switch was not confirmed within {_DEADLINE_S:g} s")

    async def _release_all(self) -> None:
        await asyncio.gather(*(self._throw(*each, engage=False) for each in sorted(self._thrown)))

    async def _throw(self, word: str, region: str, *, engage: bool) -> bool:
        """Engage or release, asking until it is confirmed; False: not within half a minute."""
        process = self._scribe.join(f"{'throws' if engage else 'frees'} {word} {region}")
        scope = sdk.Scope(kind=sdk.SCOPE_TENANT, name=self._words[word])
        options: sdk.WriteOptions = {"reason": self._reason, "timeout_s": CALL_TIMEOUT_S}
        plane, kind = self._planes[region], "throws" if engage else "frees"
        if engage:
            # From now on, whatever is answered.
            self._thrown.add((word, region))
        try:
            async with asyncio.timeout(_DEADLINE_S):
                while True:
                    work: Awaitable[Any] = plane.engage(scope, **options) if engage else plane.release(scope, **options)
                    reply = await self._scribe.ask(process, word, kind, region, work, lambda _: True)
                    gone = isinstance(reply, NotFound) and not engage
                    if gone or not isinstance(reply, ControlPlaneError):
                        break
                    await asyncio.sleep(_AGAIN_S)
        except TimeoutError:
            return False
        if not engage:
            self._thrown.discard((word, region))
        return True

    async def _look_on(self, process: int, region: str, agent: str, plane: sdk.ControlPlane) -> None:
        while True:
            found = self._seen[agent] = self._stops_of(plane, region)
            self._scribe.note(process, agent, "looks", tuple(sorted(found)))
            await asyncio.sleep(LOOK_S)

    def _stops_of(self, plane: sdk.ControlPlane, region: str) -> frozenset[str]:
        try:
            return frozenset(
                f"{word}@{view.region or region}"
                for word, tenant in self._words.items()
                for view in plane.stopped(tenant=tenant)
            )
        except sdk.MirrorStale:
            return frozenset({STALE})


class Losing(Errand):
    """Works with what a lost region shares: calls to it, the copy of what it has, configuration; and what it missed."""

    def __init__(
        self, sides: Sequence[Side], scribe: Scribe, prefix: str, reason: str, lost: str, copied: str, *, paused: bool
    ) -> None:
        """`copied`: a partition at home in `lost`, or empty. `paused`: nobody writes there while it is lost."""
        super().__init__(sides, scribe, prefix, reason)
        self._lost, self._copied, self._paused = lost, copied, paused
        self._versions: dict[str, int] = {}
        self._told: dict[str, int] = {}
        """By key: the revision of its last acknowledged write at home."""
        self._came: dict[str, int] = {}
        self._watches = False
        self._answered: set[str] = set()
        """Nodes through which the other region answered."""
        self._writing: asyncio.Task[None] | None = None
        self._there: sdk.ControlPlane

    async def open(self) -> None:
        """See `Errand`."""
        for node, address in self.home.nodes.addresses.items():
            plane = await self._enter(self.home, [address], mirror=True)
            self._run(self._configured(self._scribe.join(f"configures {node}"), node, plane))
        there = next((side for side in self._sides if side.region == self._lost), self.home)
        self._there = await self._enter(there, mirror=False)
        if self._copied:
            self._run(self._watch(self._scribe.join("copied"), await self._enter(self.home, mirror=False)))

    async def before(self) -> None:
        """Write at the region that is to be lost, and wait for the copy; from then on ask for it at every node."""
        if not self._copied:
            return
        await self._until(lambda: self._watches, f"a watch of what {self._lost} shares")
        process = self._scribe.join("writes")
        for key in KEYS:
            work = self._there.create_workflow(self._id(key), b"drill", partition=self._copied, reason=self._reason)
            reply = await self._scribe.ask(process, key, "writes", None, work, _revision)
            if isinstance(reply, ControlPlaneError):
                raise reply
            self._versions[key], self._told[key] = int(reply.version), _revision(reply)
        await self._until(self._all_came, f"a copy of what {self._lost} shares")
        for node, address in self.home.nodes.addresses.items():
            self._run(self._call(self._scribe.join(f"calls {node}"), node, address))
            self._run(self._read(self._scribe.join(f"copies {node}"), node, address))
        every = set(self.home.nodes.addresses)
        await self._until(lambda: self._answered == every, f"an answer of {self._lost} through every node")
        if len(self._sides) > 1 and not self._paused:
            self._writing = asyncio.create_task(self._write(process))
            self._tasks.append(self._writing)

    async def after(self) -> None:
        """Write once more there, wait until all of it is here, and compare both."""
        if not self._copied:
            return
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
            self._tasks.remove(self._writing)
        process = self._scribe.join("writes")
        async with _in_time(f"a write in {self._lost}"):
            for key in KEYS:
                while not await self._swap(process, key):  # noqa: ASYNC110 - it is asked again.
                    await asyncio.sleep(_AGAIN_S)
        await self._until(self._all_came, f"everything that was written in {self._lost}")
        process = self._scribe.join("final")
        await self._scribe.ask(process, self._lost, "final", None, self._state_at_home(), lambda found: found)
        for node, address in self.home.nodes.addresses.items():
            await self._until_equal(address)
            await self._scribe.ask(process, node, "final", None, self._state_at(address), lambda found: found)

    def _id(self, key: str) -> str:
        return f"{self._prefix}/{key}"

    def _all_came(self) -> bool:
        return all(self._came.get(key, 0) >= revision for key, revision in self._told.items())

    # At the lost region

    async def _write(self, process: int) -> None:
        while True:
            for key in KEYS:
                await self._swap(process, key)
                await asyncio.sleep(WRITE_S)

    async def _swap(self, process: int, key: str) -> bool:
        """Write the next version of a key; False if that was not acknowledged."""
        work = self._there.compare_and_swap(
            self._id(key), self._versions[key], b"drill", partition=self._copied, timeout_s=CALL_TIMEOUT_S
        )
        reply = await self._scribe.ask(process, key, "writes", None, work, _revision)
        if not isinstance(reply, ControlPlaneError):
            self._versions[key], self._told[key] = int(reply.version), _revision(reply)
            return True
        try:
            found = await self._there.get_workflow(self._id(key), partition=self._copied, timeout_s=CALL_TIMEOUT_S)
        except (Unavailable, OutcomeUnknown):
            return False
        # An outcome that was not heard of: it counts as not told, and its copy as none too many.
        self._versions[key] = int(found.workflow.version)
        return False

    # Here

    async def _configured(self, process: int, node: str, plane: sdk.ControlPlane) -> None:
        while True:
            self._scribe.note(process, node, "configures", _configuration(plane))
            await asyncio.sleep(LOOK_S)

    async def _call(self, process: int, node: str, address: str) -> None:
        """Ask this node what only the lost region can answer: reads, and writes that would be refused there."""
        nodes, number = self.home.nodes, 0
        read = api.GetWorkflowRequest(header=api.RequestHeader(partition=self._copied), id=self._id(KEYS[0]))
        while True:
            number += 1
            write = api.CompareAndSwapWorkflowRequest(
                header=api.RequestHeader(
                    partition=self._copied, request_id=secrets.token_bytes(REQUEST_ID_BYTES), reason=self._reason
                ),
                id=self._id("none"),
                version=1,
            )
            work: Awaitable[object] = (
                nodes.ask(address, _AGENTS + "GetWorkflow", read, api.GetWorkflowReply, _PLAIN_TIMEOUT_S)
                if number % 2
                else nodes.ask(
                    address,
                    _AGENTS + "CompareAndSwapWorkflow",
                    write,
                    api.CompareAndSwapWorkflowReply,
                    _PLAIN_TIMEOUT_S,
                )
            )
            reply = await self._scribe.ask(
                process, node, "calls", None, work, lambda _: True, refusals=_ANSWERS, refused=True
            )
            if not isinstance(reply, ControlPlaneError):
                self._answered.add(node)
            await asyncio.sleep(ASK_S)

    async def _read(self, process: int, node: str, address: str) -> None:
        """Read the copy at this node."""
        while True:
            await self._scribe.ask(process, node, "copies", None, self._copy_at(address, KEYS[0]), _aged)
            await asyncio.sleep(ASK_S)

    async def _watch(self, process: int, plane: sdk.ControlPlane) -> None:
        """Write down every change of the copy, in the order it comes in."""
        anew = False
        while True:
            try:
                async with aclosing(self._changes(plane, anew=anew)) as changes:
                    async for listed, change in changes:
                        key = change.name.rpartition("/")[2]
                        self._came[key] = max(change.meta.revision, self._came.get(key, 0))
                        self._scribe.note(process, key, "listed" if listed else "copied", change.meta.revision)
            except Compacted:
                anew = True
            except (Unavailable, OutcomeUnknown):
                await asyncio.sleep(_AGAIN_S)

    async def _changes(self, plane: sdk.ControlPlane, *, anew: bool) -> AsyncGenerator[tuple[bool, api.Change]]:
        stream: Any = plane.watch_transactions(
            kinds=["workflow"], prefix=f"{self._prefix}/", partition=self._copied, snapshot=anew, progress=True
        )
        async with aclosing(stream):
            async for reply in stream:
                self._watches = True
                for change in reply.changes:
                    yield reply.kind == api.WatchReply.SNAPSHOT, change

    async def _copy_at(self, address: str, key: str) -> api.GetWorkflowReply:
        header = api.RequestHeader(partition=self._copied, consistency=api.LOCAL)
        request = api.GetWorkflowRequest(header=header, id=self._id(key))
        return await self.home.nodes.ask(
            address, _AGENTS + "GetWorkflow", request, api.GetWorkflowReply, _PLAIN_TIMEOUT_S
        )

    async def _state_at(self, address: str) -> tuple[tuple[str, int, int], ...]:
        found = [await self._copy_at(address, key) for key in KEYS]
        return tuple(_state(key, reply) for key, reply in zip(KEYS, found, strict=True))

    async def _state_at_home(self) -> tuple[tuple[str, int, int], ...]:
        found = [await self._there.get_workflow(self._id(key), partition=self._copied) for key in KEYS]
        return tuple(_state(key, reply) for key, reply in zip(KEYS, found, strict=True))

    async def _until_equal(self, address: str) -> None:
        """Wait until a node has what was told; others of the region may be a moment ahead of it."""
        async with _in_time("the copy at every node"):
            while any(at < self._told[key] for key, at, _ in await self._state_at(address)):  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)


class Moving(Errand):
    """Moves a partition's home to another region and back, while clients of every side write to it and read it.

    However it ends, the partition has one home. `undo` goes on until that is the one it had, or says in `left` what
    would bring it back.
    """

    def __init__(  # noqa: PLR0917 - all of it is the drill's.
        self,
        sides: Sequence[Side],
        scribe: Scribe,
        prefix: str,
        reason: str,
        moved: str,
        to: str,
        pause_ms_max: int,
        usual: str,
    ) -> None:
        """`usual` is the partition in which the drill's usual clients write; empty: the environment's."""
        super().__init__(sides, scribe, prefix, reason)
        self._moved, self._usual = moved, usual
        self._pause_s = pause_ms_max / 1000
        self._target = next(side for side in sides if side.region == to)
        self._planes: dict[str, sdk.ControlPlane] = {}
        self._writing: list[asyncio.Task[None]] = []
        self._reading: list[asyncio.Task[None]] = []
        self._writes_on = self._reads_on = True
        self._told: dict[str, tuple[int, int, float]] = {}
        """By side: how many writes of its client were acknowledged, under which epoch, and when, for the last."""
        self._asking: asyncio.Task[Any] | None = None
        self._moves_since_s: float | None = None
        self._in_doubt = False

    @property
    def wrong(self) -> str:
        """See `Errand`."""
        if self._moves_since_s is None:
            return ""
        now_s = asyncio.get_running_loop().time()
        for side, (_, _, at_s) in self._told.items():
            if now_s - max(at_s, self._moves_since_s) > self._pause_s:
                return f"no write of {side} to {self._moved} was acknowledged for {self._pause_s:g} s"
        return ""

    async def open(self) -> None:
        """See `Errand`."""
        for side in self._sides:
            self._planes[side.region] = await self._enter(side, mirror=False)
        partition = (await self._place(self.home)).partition
        own = not self._usual and self._moved.startswith(f"{self.home.region}.")
        if self._usual == self._moved or (own and {"workflow", "election"} & {*partition.default_for}):
            raise ErrandFailed(
                f"the drill's usual clients would write to {self._moved}: name another place for them, --partition"
            )

    async def before(self) -> None:
        """Write on every side and read at every node, and wait until all of them were answered."""
        await self._note_places()
        process = self._scribe.join("creates")
        for key in KEYS:
            value = f"{process}.{key}"
            work = self._planes[self.home.region].create_workflow(
                self._id(key), value.encode(), partition=self._moved, reason=self._reason
            )
            reply = await self._scribe.ask(process, key, "writes", (self.home.region, 0, value), work, _written)
            if isinstance(reply, ControlPlaneError):
                raise reply
        for side in self._sides:
            for node, address in side.nodes.addresses.items():
                async with _in_time(f"a copy at {node} of {side.region}"):
                    while not await self._shows_all(side, address):  # noqa: ASYNC110 - it is asked again.
                        await asyncio.sleep(_POLL_S)
                agent = named(side.region, node)
                process = self._scribe.join(f"reads {agent}")
                self._reading.append(asyncio.create_task(self._read(process, agent, side, address)))
        self._tasks += self._reading
        for side in self._sides:
            self._told[side.region] = (0, 0, 0.0)
            self._writing.append(asyncio.create_task(self._write(self._scribe.join(f"writes {side.region}"), side)))
        self._tasks += self._writing
        await self._until(lambda: all(count >= _FEW for count, _, _ in self._told.values()), "writes on every side")

    async def move(self, way: str) -> None:
        """Move the home, `AWAY` or `BACK`, and wait until every side has written under the new one.

        Raises `ErrandFailed` and the eight errors.
        """
        ways = {AWAY: (self.home, self._target), BACK: (self._target, self.home)}
        at, to = ways[way]
        self._moves_since_s = asyncio.get_running_loop().time()
        process = self._scribe.join(f"moves {way}")
        reply = await self._scribe.ask(
            process, way, "moves", to.region, self._move(at, to), lambda found: (to.region, found)
        )
        if isinstance(reply, ControlPlaneError):
            raise reply
        began = {region: count for region, (count, _, _) in self._told.items()}
        await self._until(
            lambda: all(
                epoch == reply and count >= began[region] + _FEW for region, (count, epoch, _) in self._told.items()
            ),
            f"writes of every side at home in {to.region}",
            self._patience_s,
        )

    async def after(self) -> None:
        """Let nobody write any more, and compare every copy with what is at home."""
        self._moves_since_s = None
        await self._end_writing()
        process, plane = self._scribe.join("final"), self._planes[self.home.region]

        async def at_home() -> _State:
            found = [await plane.get_workflow(self._id(key), partition=self._moved) for key in KEYS]
            return tuple((key, *_shown(reply)) for key, reply in zip(KEYS, found, strict=True))

        await self._settle(at_home)
        await self._scribe.ask(process, HOME, "final", None, at_home(), lambda found: found)
        for side in self._sides:
            for node, address in side.nodes.addresses.items():
                work = self._state_at(side, address)
                await self._scribe.ask(process, named(side.region, node), "final", None, work, lambda found: found)

    async def _settle(self, at_home: Callable[[], Awaitable[_State]]) -> None:
        """Wait until every node has what is at home. A write of which nobody heard may be made only now."""
        waits_for = "home"
        try:
            async with asyncio.timeout(_DEADLINE_S):
                while waits_for:
                    with suppress(Unavailable, OutcomeUnknown):
                        waits_for = await self._unequal(await at_home())
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise ErrandFailed(f"an equal copy at {waits_for} did not come about within {_DEADLINE_S:g} s") from None

    async def _unequal(self, last: _State) -> str:
        """A node that has something else, or an empty text."""
        for side in self._sides:
            for node, address in side.nodes.addresses.items():
                if await self._state_at(side, address) != last:
                    return f"{node} of {side.region}"
        return ""

    async def _end_writing(self) -> None:
        """Have every client end with the write that it is at: one given up would be made all the same, later."""
        self._writes_on = False
        if self._writing:
            # Each is at a read or at a write, and at the other one before it looks whether to go on.
            await asyncio.wait(self._writing, timeout=3 * CALL_TIMEOUT_S)
        for task in self._writing:
            task.cancel()
        await asyncio.gather(*self._writing, return_exceptions=True)
        self._tasks = [task for task in self._tasks if task not in self._writing]

    async def undo(self) -> None:
        """Call off the move that is under way, or let it end, and move the home back if it is not where it was."""
        if self._asking is None:
            return
        self._moves_since_s = None
        await asyncio.gather(self._asking, return_exceptions=True)
        in_doubt = self._in_doubt and self._asking.exception() is not None
        process = self._scribe.join("undoes")
        try:
            async with asyncio.timeout(self._patience_s + _DOUBT_S):
                await self._bring_home(process)
                if in_doubt:
                    # Nobody heard whether the last move was begun: it may be, still.
                    await asyncio.sleep(_DOUBT_S)
                    await self._bring_home(process)
        except (TimeoutError, ErrandFailed, ControlPlaneError):
            home = self.home.region
            self.left.append(
                f"the home of {self._moved} could not be brought back to {home}: look with cpctl partition show "
                f"{self._moved} in both regions, then in {self._target.region}: "
                f"cpctl partition move {self._moved} --to {home}, or in {home}: with --cancel"
            )
        with suppress(ControlPlaneError):
            await self._note_places()

    async def close(self) -> None:
        """See `Errand`. A read that is under way is waited for: given up, it would count as one that failed."""
        self._reads_on = False
        if self._reading:
            await asyncio.wait(self._reading, timeout=_PLAIN_TIMEOUT_S + 1)
        await super().close()

    @property
    def _patience_s(self) -> float:
        return self._pause_s + _DEADLINE_S

    def _id(self, key: str) -> str:
        return f"{self._prefix}/{key}"

    async def _place(self, side: Side) -> api.PartitionView:
        found = await self._planes[side.region].list_partitions(self._moved, timeout_s=CALL_TIMEOUT_S)
        return found.partitions[0]

    async def _note_places(self) -> None:
        for side in self._sides:
            found = await self._place(side)
            process, now = self._scribe.join(f"places {side.region}"), found.partition
            highest = max(now.epoch, found.move.epoch)
            told = (now.home, int(now.epoch), found.state, int(highest), int(found.quarantined))
            self._scribe.note(process, side.region, "places", told)

    # Moving

    async def _move(self, at: Side, to: Side) -> int:
        """Ask for a move until that was heard of, and wait for its end; return the new epoch."""
        async with _in_time(f"a move from {at.region} to {to.region}", self._patience_s):
            while not await self._ask(at, to):  # noqa: ASYNC110 - it is asked again.
                await asyncio.sleep(_AGAIN_S)
            while True:
                with suppress(Unavailable, OutcomeUnknown):
                    found = await self._place(to)
                    if found.state == "home":
                        return int(found.partition.epoch)
                await asyncio.sleep(_POLL_S)

    async def _ask(self, at: Side, to: Side) -> bool:
        """Ask for a move once; False: nobody heard whether it was begun. It is not given up halfway."""
        options: sdk.WriteOptions = {"reason": self._reason, "timeout_s": CALL_TIMEOUT_S}
        in_doubt, self._in_doubt = self._in_doubt, True
        self._asking = asyncio.ensure_future(self._planes[at.region].move_partition(self._moved, to.region, **options))
        try:
            await asyncio.shield(self._asking)
        except (Unavailable, OutcomeUnknown):
            return False
        except Refused as refusal:
            self._in_doubt = False
            if in_doubt and refusal.reason == "NOT_AT_HOME":
                # It was begun when it was asked for before, and is over.
                return True
            raise
        self._in_doubt = False
        return True

    async def _bring_home(self, process: int) -> None:
        while not await self._is_home_again(process):  # noqa: ASYNC110 - regions are asked.
            await asyncio.sleep(_AGAIN_S)

    async def _is_home_again(self, process: int) -> bool:
        """Do the next thing that brings the home back; True if every side says that it is."""
        with suppress(Unavailable, OutcomeUnknown, Refused):
            # What is refused was overtaken: it is looked at again.
            here, there = await self._place(self.home), await self._place(self._target)
            if here.state == "sealed":
                await self._planes[self.home.region].move_partition(
                    self._moved, cancel=True, reason=self._reason, timeout_s=CALL_TIMEOUT_S
                )
            elif there.state == "home":
                await self._scribe.ask(
                    process,
                    BACK,
                    "moves",
                    self.home.region,
                    self._move(self._target, self.home),
                    lambda found: (self.home.region, found),
                )
            same = (here.partition.home, here.partition.epoch) == (there.partition.home, there.partition.epoch)
            return here.state == "home" and there.state == "copy" and same
        return False

    # Clients

    async def _write(self, process: int, side: Side) -> None:
        """Read and swap, one workflow after the other; others do so too."""
        plane, versions, number = self._planes[side.region], dict.fromkeys(KEYS, 1), 0
        keys = itertools.cycle(KEYS)
        while self._writes_on:
            key = next(keys)
            with suppress(Unavailable, OutcomeUnknown):
                found = await plane.get_workflow(self._id(key), partition=self._moved, timeout_s=CALL_TIMEOUT_S)
                versions[key] = int(found.workflow.version)
            number += 1
            value = f"{process}.{number}"
            work = plane.compare_and_swap(
                self._id(key), versions[key], value.encode(), partition=self._moved, timeout_s=CALL_TIMEOUT_S
            )
            asked = (side.region, versions[key], value)
            reply = await self._scribe.ask(process, key, "writes", asked, work, _written)
            if not isinstance(reply, ControlPlaneError):
                count, now_s = self._told[side.region][0] + 1, asyncio.get_running_loop().time()
                self._told[side.region] = (count, int(reply.header.epoch), now_s)
            await asyncio.sleep(WRITE_S / len(KEYS))

    async def _read(self, process: int, agent: str, side: Side, address: str) -> None:
        """Read what this node has, one workflow after the other."""
        keys = itertools.cycle(KEYS)
        while self._reads_on:
            key = next(keys)
            await self._scribe.ask(process, agent, "reads", key, self._local(side, address, key), _shown)
            await asyncio.sleep(LOOK_S)

    async def _local(self, side: Side, address: str, key: str) -> api.GetWorkflowReply:
        header = api.RequestHeader(partition=self._moved, consistency=api.LOCAL)
        request = api.GetWorkflowRequest(header=header, id=self._id(key))
        return await side.nodes.ask(address, _AGENTS + "GetWorkflow", request, api.GetWorkflowReply, _PLAIN_TIMEOUT_S)

    async def _shows_all(self, side: Side, address: str) -> bool:
        try:
            await self._state_at(side, address)
        except NotFound:
            return False
        return True

    async def _state_at(self, side: Side, address: str) -> _State:
        found = [await self._local(side, address, key) for key in KEYS]
        return tuple((key, *_shown(reply)) for key, reply in zip(KEYS, found, strict=True))


async def place_at(nodes: Nodes, partition: str) -> api.PartitionView:
    """What the first node of a region that answers says of a partition. Raises the eight errors."""
    failed: ControlPlaneError = Unavailable("no node answered", reason="UNREACHABLE")
    request = api.ListPartitionsRequest(partition=partition)
    for address in nodes.addresses.values():
        try:
            reply = await nodes.ask(
                address, _OPERATORS + "ListPartitions", request, api.ListPartitionsReply, _PLAIN_TIMEOUT_S
            )
        except (Unavailable, OutcomeUnknown) as error:
            failed = error
        else:
            return reply.partitions[0]
    raise failed


def errand_of(  # noqa: PLR0917 - all of it is the drill's.
    about: str, sides: Sequence[Side], scribe: Scribe, prefix: str, reason: str, lost: str, copied: str, *, paused: bool
) -> Errand | None:
    """What a drill about this has to do in several regions, if anything."""
    if about == abroad.STOPS:
        return Stopping(sides, scribe, prefix, reason)
    if about == abroad.LOSS:
        return Losing(sides, scribe, prefix, reason, lost, copied, paused=paused)
    return None


def _revision(reply: api.CreateWorkflowReply | api.CompareAndSwapWorkflowReply) -> int:
    return int(reply.header.revision)


def _written(reply: api.CreateWorkflowReply | api.CompareAndSwapWorkflowReply) -> tuple[int, str, int]:
    return int(reply.version), reply.header.region, int(reply.header.epoch)


def _shown(reply: api.GetWorkflowReply) -> tuple[int, str]:
    return int(reply.workflow.version), reply.workflow.workflow.state.decode(errors="replace")


def _aged(reply: api.GetWorkflowReply) -> tuple[int, int]:
    return int(reply.workflow.meta.revision), int(reply.header.age_ms)


def _state(key: str, reply: api.GetWorkflowReply) -> tuple[str, int, int]:
    return key, int(reply.workflow.meta.revision), int(reply.workflow.version)


def _configuration(plane: sdk.ControlPlane) -> tuple[int, str] | str:
    """The newest flag that an agent's configuration came from, and a digest of all it says; a text if there is none."""
    try:
        config = plane.config(user="drill", tenant="drill")
    except sdk.MirrorStale:
        return "missing"
    told = (config.prompt_version, config.model, config.tools_enabled, config.max_iterations, config.guardrails)
    newest = max((int(each.revision) for each in config.fields.values()), default=0)
    return newest, hashlib.sha256(repr(told).encode()).hexdigest()[:16]
