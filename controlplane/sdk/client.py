"""The control plane as an agent sees it.

    async with ControlPlane.connect("127.0.0.1:7000", insecure=True) as cp:
        cp.ensure_alive(agent_type="planner", tools=("search",))
        config = cp.config(user="u-17", tenant="acme")
        await cp.update_state_with_retry("order-4711", lambda state: {**state, "step": "paid"})

What the caller may rely on:

1. A change of leader, a broken connection or a restarted node goes unnoticed while the region has a majority again
   before a call's deadline: calls are asked again, under the same request id, and apply once.
2. `config`, `stopped` and `ensure_alive` make no call. They ask the mirror (see `mirror`), which is complete as soon as
   the `async with` has been entered.
3. Watches are ordered, whole transactions, without gaps across reconnects; or they raise Compacted.
4. One client belongs to one event loop and one process. For threads, notebooks and forked workers there is
   `controlplane.sdk.sync`.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

from controlplane.errors import Invalid, Refused
from controlplane.limits import MIRROR_AGE_MAX_MS
from controlplane.sdk import clock as clocks
from controlplane.sdk.calls import Calls, ReadOptions, WriteOptions
from controlplane.sdk.channel import Channel
from controlplane.sdk.clock import Clock
from controlplane.sdk.codec import JSON, Codec
from controlplane.sdk.election import Election
from controlplane.sdk.exceptions import ConflictError, Stopped
from controlplane.sdk.mirror import AgentConfig, Mirror
from controlplane.sdk.session import Credentials, credentials
from controlplane.sdk.watching import MirrorFeed, Watch
from controlplane.v1 import api_pb2 as api

CALL_TIMEOUT_S = 10.0
"""How long a call may take if the caller did not say: long enough for a region to lose its leader and elect another."""
CONNECT_TIMEOUT_S = 10.0
COLLISION_REST_S = 0.004
COLLISION_REST_MAX_S = 0.1
VERSION_MISMATCH = "VERSION_MISMATCH"

S = TypeVar("S")


class ControlPlane(Calls):
    """A connection to one region. Made by `connect`, used with `async with`."""

    def __init__(self, channel: Channel, *, timeout_s: float, mirror_age_max_s: float, with_mirror: bool) -> None:
        super().__init__(channel, timeout_s)
        self._mirror = Mirror(mirror_age_max_s)
        self._feed = MirrorFeed(self._mirror, channel) if with_mirror else None

    @classmethod
    def connect(  # noqa: PLR0913 - each is a choice of the caller's.
        cls,
        addresses: str | Sequence[str],
        *,
        ca: Credentials | None = None,
        cert: Credentials | None = None,
        key: Credentials | None = None,
        insecure: bool = False,
        server_name: str | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
        mirror: bool = True,
        mirror_age_max_ms: int = MIRROR_AGE_MAX_MS,
        follow_leader: bool = True,
        clock: Clock = clocks.now,
    ) -> Self:
        """Prepare a client of the region whose nodes answer at `addresses` ("host:port", one or several).

        `ca`, `cert`, `key`: files (or their contents as bytes) of the fleet's authority and of this agent's own
        certificate, which says who the agent is and in which environment; files are read again for every new
        connection, so that they can be replaced while the agent runs. `insecure` is for `controlplane dev`.
        `server_name`: what the nodes' certificates are issued for, if not the host that is dialled. `mirror=False`
        spares a program that only calls the upkeep of the mirror. `follow_leader=False` keeps to `addresses`. `clock`
        is for tests.

        Entering raises Unavailable if no node answers, Denied if the region does not accept the certificate.
        """
        if mirror_age_max_ms <= 0:
            raise Invalid("mirror_age_max_ms must be positive", reason="MIRROR_AGE_BAD", field="mirror_age_max_ms")
        given = [addresses] if isinstance(addresses, str) else list(addresses)
        if not given:
            raise Invalid("no address to connect to", reason="ADDRESS_MISSING")
        channel = Channel(
            given,
            credentials(ca, cert, key, insecure=insecure),
            server_name=server_name,
            follow_leader=follow_leader,
            probe_s=mirror_age_max_ms / 4000 if mirror else None,
            clock=clock,
        )
        return cls(channel, timeout_s=timeout_s, mirror_age_max_s=mirror_age_max_ms / 1000, with_mirror=mirror)

    async def __aenter__(self) -> Self:
        try:
            await self._channel.open(timeout_s=CONNECT_TIMEOUT_S)
            if self._feed is not None:
                self._feed.start()
                await self.mirror_synced(timeout_s=CONNECT_TIMEOUT_S)
        except BaseException:
            await self._channel.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection: calls in flight fail as OutcomeUnknown or Unavailable, watches end. Idempotent."""
        await self._channel.close()

    # Configuration and permission, without a call

    def config(self, user: str = "", tenant: str = "") -> AgentConfig:
        """Return how to run for a user of a tenant: the last known good, marked `stale` beyond the mirror's bound.

        Raises MirrorStale only if there never was anything: the client was not entered, or has no mirror.
        """
        return self._mirror.config(self.clock(), user, tenant)

    def stopped(
        self, *, tenant: str = "", agent_type: str = "", workflow: str = "", tools: Collection[str] = ()
    ) -> tuple[api.SwitchView, ...]:
        """Return the engaged kill switches that cover the subject, of this and of other regions; empty: it may act.

        Those of other regions have `region` set, and neither who nor why. Raises MirrorStale when the mirror is older
        than `mirror_age_max_ms`: permission fails closed. The age is that of the own region's state: a region that is
        cut off from the others goes on with what it has heard of them.
        """
        return self._mirror.stopped(self.clock(), tenant, agent_type, workflow, tools)

    def check(self, subject: api.Subject) -> tuple[api.SwitchView, ...]:
        """Do the same as `stopped`, for a subject in one piece."""
        return self._mirror.stopped(
            self.clock(), subject.tenant, subject.agent_type, subject.workflow, tuple(subject.tools)
        )

    def ensure_alive(
        self, *, tenant: str = "", agent_type: str = "", workflow: str = "", tools: Collection[str] = ()
    ) -> None:
        """Raise Stopped if kill switches cover the subject, MirrorStale if that cannot be known."""
        stopped_by = self._mirror.stopped(self.clock(), tenant, agent_type, workflow, tools)
        if stopped_by:
            raise Stopped(stopped_by)

    @property
    def mirror(self) -> Mirror:
        """The mirror itself: `revision`, `flag(name)`, `engaged()`, `age_s(cp.clock())`."""
        return self._mirror

    async def mirror_synced(self, revision: int = 0, *, timeout_s: float | None = None) -> None:
        """Wait until the mirror is fresh and holds everything up to `revision`, such as that of a write's reply.

        Raises Unavailable (MIRROR_BEHIND) after the time allowed.
        """
        if self._feed is None:
            raise Invalid("this client has no mirror", reason="MIRROR_ABSENT", hint="connect with mirror=True")
        await self._feed.synced(revision, self._timeout_s if timeout_s is None else timeout_s)

    def on_kill_change(self, listener: Callable[[api.SwitchView], None]) -> Callable[[], None]:
        """Call `listener` in the event loop for every switch that was engaged or released; returns how to stop it.

        Stops of other regions are told too: `view.region` says whose it is, `view.switch.engaged` whether it is heeded
        here. What it stops is known only where this region has a switch or an exception for the same; else its scope
        has no kind, and its name is the id that the stop travels under.

        The listener must not block; what it raises goes to the loop's exception handler.
        """
        if self._feed is None:
            raise Invalid("this client has no mirror", reason="MIRROR_ABSENT", hint="connect with mirror=True")
        return self._feed.listen(listener)

    # Workflows

    async def update_state_with_retry(
        self,
        workflow_id: str,
        mutator: Callable[[S], S | Awaitable[S]],
        max_retries: int = 5,
        *,
        codec: Codec[S] = JSON,
        schema_range: tuple[int, int] = (0, 0),
        schema_version: int | None = None,
        code_version: str | None = None,
        **options: Unpack[WriteOptions],
    ) -> S:
        """Change a workflow's state by compare-and-swap; return the new state, once it is committed.

        `mutator` gets the present state and returns the new one. It runs in the event loop, may be a coroutine
        function, may run several times, and must have no other effect. The state is JSON unless `codec` says otherwise
        (`RAW`: bytes). Schema and code version stay what they were unless given.

        Raises ConflictError when others were first `max_retries` times, NotFound if there is no such workflow. Raises
        ValueError if the present state is not what the codec reads, what the codec raises if it cannot write the new
        one, and TypeError if that is None where there was a state: a `return` was forgotten. (None for None is fine;
        to empty a workflow on purpose, `compare_and_swap`.) After any of these nothing was written.
        """
        update = Update(workflow_id, mutator, max_retries, codec, schema_range, schema_version, code_version, options)
        return await update.apply(self.get_workflow, self.compare_and_swap, asyncio.sleep)

    # Elections and watches

    def election(self, name: str, *, ttl_s: float = 10.0, value: bytes = b"", partition: str = "") -> Election:
        """Return the election for `name`: `async with election.campaign() as lease`, `holder()`, `observe()`.

        `value`: what observers are to know of the holder, such as its address.
        """
        return Election(self, name, ttl_s, value, partition)

    async def watch(
        self,
        *,
        kinds: Sequence[str] = (),
        prefix: str = "",
        after_revision: int | None = None,
        snapshot: bool = False,
        partition: str = "",
    ) -> AsyncGenerator[api.Change, None]:
        """Yield every change of records of these kinds, in order.

        Kinds: "flag", "switch", "exception", "workflow", "election", those of one partition; or "stop" alone, for the
        stops of all regions, this one's included (its `home` is empty).

        Begins after `after_revision`, or now, or with `snapshot` at all present records. A change without a value is
        a deletion. Raises Compacted if what comes next is no longer kept: list again and watch from there.

        Who leaves the loop early closes it: `async with contextlib.aclosing(cp.watch()) as changes`.
        """
        transactions = self.watch_transactions(
            kinds=kinds, prefix=prefix, after_revision=after_revision, snapshot=snapshot, partition=partition
        )
        async for transaction in transactions:
            for change in transaction.changes:
                yield change

    async def watch_transactions(
        self,
        *,
        kinds: Sequence[str] = (),
        prefix: str = "",
        after_revision: int | None = None,
        snapshot: bool = False,
        partition: str = "",
        progress: bool = False,
    ) -> AsyncGenerator[api.WatchReply, None]:
        """Yield whole transactions, for callers that need the revision each message stands for.

        With `progress`, messages without changes come too: they say up to which revision nothing happened.
        """
        request = api.WatchRequest(
            header=api.RequestHeader(partition=partition), kinds=kinds, prefix=prefix, snapshot=snapshot
        )
        if after_revision is not None:
            request.after_revision = after_revision
        async with Watch(self._channel, request) as watch:
            async for reply in watch:
                if reply.changes or progress:
                    yield reply


@dataclass(frozen=True, slots=True)
class Update(Generic[S]):
    """One `update_state_with_retry`, for the asyncio and the synchronous client: all of it but how calls are made."""

    workflow_id: str
    mutator: Callable[[S], S | Awaitable[S]]
    max_retries: int
    codec: Codec[S]
    schema_range: tuple[int, int]
    schema_version: int | None
    code_version: str | None
    options: WriteOptions

    async def apply(
        self,
        get: Callable[..., Awaitable[api.GetWorkflowReply]],
        swap: Callable[..., Awaitable[api.CompareAndSwapWorkflowReply]],
        rest: Callable[[float], Awaitable[None]],
    ) -> S:
        """Return the state as it was stored. `get` and `swap` are a client's calls. Waits for nothing but the three.

        The mutator runs here, in the thread of whoever drives this.
        """
        if "request_id" in self.options:
            raise Invalid("one request id cannot name several attempts", reason="REQUEST_ID_SHARED")
        for tries in range(self.max_retries):
            found = (await get(self.workflow_id, schema_range=self.schema_range, **self._reading())).workflow
            old = found.workflow
            new = await self._changed(old.state)
            stored = self._encoded(new)
            # What others will read is what the caller gets: JSON knows no tuples, for one.
            seen = self._decoded(stored)
            try:
                await swap(
                    self.workflow_id,
                    found.version,
                    stored,
                    schema_version=old.schema_version if self.schema_version is None else self.schema_version,
                    code_version=old.code_version if self.code_version is None else self.code_version,
                    **self.options,
                )
            except Refused as error:
                if error.reason != VERSION_MISMATCH:
                    raise
            else:
                return seen
            # Those who collided would collide again.
            await rest(random.uniform(0, min(COLLISION_REST_MAX_S, COLLISION_REST_S * 2**tries)))  # noqa: S311
        raise ConflictError(self.workflow_id, self.max_retries)

    def _reading(self) -> ReadOptions:
        reading = ReadOptions()
        if "partition" in self.options:
            reading["partition"] = self.options["partition"]
        if "timeout_s" in self.options:
            reading["timeout_s"] = self.options["timeout_s"]
        return reading

    async def _changed(self, stored: bytes) -> S:
        state = self._decoded(stored)
        # Asked before: the mutator may change the state in place.
        was_none = state is None
        changed: Any = self.mutator(state)
        new: S = await changed if inspect.isawaitable(changed) else changed
        if new is None and not was_none:
            raise TypeError(
                f"the mutator for workflow {self.workflow_id} returned None; it has to return the new state"
            )
        return new

    def _decoded(self, stored: bytes) -> S:
        try:
            return self.codec.decode(stored)
        except ValueError as error:
            raise ValueError(
                f"the codec cannot read the state of workflow {self.workflow_id}; is it JSON, or has it another codec?"
            ) from error

    def _encoded(self, state: S) -> bytes:
        try:
            return self.codec.encode(state)
        except (TypeError, ValueError) as error:
            error.add_note(f"the codec cannot write the new state of workflow {self.workflow_id}")
            raise
