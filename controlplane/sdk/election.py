"""Being the one: campaign for a name, hold its lease while it is sure, and never a moment longer.

1. A lease of `ttl` is counted by the server from when it *applied* a campaign or a renewal; by the holder from
   *before it asked*. The holder also stops a margin early. So it gives up before anyone else can be elected, however
   slow the network is and without comparing clocks (they only have to run at about the same rate).
2. Being sure is a question of time, not of messages: `lease.valid` compares with the clock each time it is asked, so
   a process that was paused knows at once that it may have lost the lease.
3. What a holder writes should carry `fence=lease.fence`: the server refuses it once someone else was elected, even
   if the holder was paused between looking at the clock and writing.
4. Renewal starts a third of the way through. One that gets no answer is asked again, counted anew; one that is
   refused ends the lease at once, and so does a client that was closed.
5. A question may fail without having left, and without a turn of the event loop. So between one that failed and the
   next there is always a rest.
6. Who stops waiting for an answer may have been elected by the question. What it won is given up then, if the region
   can be asked within a second; otherwise the name is nobody's until that lease is over.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from controlplane.errors import ControlPlaneError, OutcomeUnknown, Unavailable
from controlplane.sdk.clock import Clock
from controlplane.sdk.exceptions import LeaseLost, NotElected
from controlplane.sdk.nonce import nonce
from controlplane.v1 import api_pb2 as api

if TYPE_CHECKING:
    from controlplane.sdk.client import ControlPlane

MARGIN_SHARE = 0.1
"""The part of its time-to-live by which a holder stops early."""
RESIGN_TIMEOUT_S = 1.0
ASK_FOR_S_MIN = 0.05
"""No question is given less time than this."""
REST_S = 0.1
"""The longest rest between a question that failed and the next."""
CLIENT_CLOSED = "CLIENT_CLOSED"
ASK_AGAIN_S = 1.0
"""A candidate that waits asks again after this long at most, even if the watch shows no change."""


@dataclass(slots=True)
class Term:
    """PURE. How long a holder may be sure; all times on one monotonic clock."""

    ttl_s: float
    asked_s: float

    @property
    def ends_s(self) -> float:
        """From here on the holder is no longer sure."""
        return self.asked_s + self.ttl_s * (1 - MARGIN_SHARE)

    @property
    def renew_s(self) -> float:
        """When to ask for more."""
        return self.asked_s + self.ttl_s / 3

    def renewed(self, asked_s: float) -> None:
        """Count from a renewal that was granted, asked at `asked_s`."""
        self.asked_s = max(self.asked_s, asked_s)


class Lease:
    """The right to act for a name, while `valid`."""

    def __init__(self, election: str, fence: api.Fence, term: Term, clock: Clock) -> None:
        self.election = election
        self._clock = clock
        self.fence = fence
        self.lost = asyncio.Event()
        self.refusal: ControlPlaneError | None = None
        """Why a renewal was refused, or could not be asked for; None if the lease was lost for want of answers."""
        self._term = term
        self._over = False

    @property
    def valid(self) -> bool:
        """Whether the lease can be relied on now."""
        return not self._over and self._clock() < self._term.ends_s

    @property
    def remaining_s(self) -> float:
        """How long it can be relied on without another renewal; 0 when lost."""
        return 0.0 if self._over else max(0.0, self._term.ends_s - self._clock())

    def ensure(self) -> None:
        """Raise LeaseLost unless the lease is valid."""
        if not self.valid:
            raise LeaseLost(self.election) from self.refusal

    def _end(self) -> None:
        self._over = True
        self.lost.set()


class Election:
    """One name of which there is at most one holder. Made by `ControlPlane.election`."""

    def __init__(self, plane: ControlPlane, name: str, ttl_s: float, value: bytes, partition: str) -> None:
        self._plane = plane
        self._name = name
        self._ttl_ms = round(ttl_s * 1000)
        self._value = value
        self._partition = partition

    @asynccontextmanager
    async def campaign(self, *, timeout_s: float | None = None) -> AsyncIterator[Lease]:
        """Wait to be elected, hold the lease for the body, renew it meanwhile and resign afterwards.

        When the lease is lost the body is cancelled and LeaseLost raised in its place. Raises NotElected if the
        campaign is not won within `timeout_s` (absent: waits for as long as it takes), Unavailable or OutcomeUnknown
        (CLIENT_CLOSED) if the client is closed. If the last question was not answered, it ends up to a second later,
        to give up what that may have won.
        """
        process = nonce()
        lease = await self._win(process, timeout_s)
        term = lease._term
        timeout = asyncio.timeout_at(self._on_loop(term.ends_s))
        try:
            async with timeout:
                renewal = asyncio.create_task(self._keep(lease, term, process, timeout))
                try:
                    yield lease
                finally:
                    renewal.cancel()
                    await asyncio.gather(renewal, return_exceptions=True)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise LeaseLost(self._name) from lease.refusal
        finally:
            lease._end()
            await self._resign(lease.fence, process)

    async def holder(self) -> api.ElectionView | None:
        """Return who holds the name, by a linearizable read."""
        reply = await self._plane.get_election(self._name, partition=self._partition)
        return reply.holder if reply.HasField("holder") else None

    async def observe(self) -> AsyncGenerator[api.ElectionView | None, None]:
        """Yield the holder now and after every change; None: nobody."""
        reply = await self._plane.get_election(self._name, partition=self._partition)
        yield reply.holder if reply.HasField("holder") else None
        async for change in self._changes(reply.header.revision):
            yield _view(change, reply.header.epoch)

    async def _changes(self, after_revision: int) -> AsyncGenerator[api.Change, None]:
        changes = self._plane.watch(
            kinds=("election",), prefix=self._name, after_revision=after_revision, partition=self._partition
        )
        async for change in changes:
            if change.name == self._name:
                yield change

    async def _win(self, process: bytes, timeout_s: float | None) -> Lease:
        give_up = None if timeout_s is None else self._plane.clock() + timeout_s
        answered = True
        try:
            while True:
                asked_s, answered = self._plane.clock(), False
                reply = await self._ask(process, give_up)
                answered = reply is not None
                if reply is not None and reply.elected:
                    # Campaigning again under the same process name renews, so the time counts from this question.
                    lease = Lease(self._name, reply.holder.fence, Term(self._ttl_ms / 1000, asked_s), self._plane.clock)
                    if lease.valid:
                        return lease
                elif give_up is not None and self._plane.clock() >= give_up:
                    raise NotElected(self._name, timeout_s or 0.0)
                elif reply is not None:
                    await self._vacancy(reply.header.revision, give_up)
                else:
                    await self._rest(give_up)
        finally:
            if not answered:
                await self._withdraw(process)

    async def _withdraw(self, process: bytes) -> None:
        """Give up what a question won whose answer was not heard: until that ends nobody else can be elected."""
        with suppress(ControlPlaneError, TimeoutError):
            async with asyncio.timeout(RESIGN_TIMEOUT_S):
                holder = await self.holder()
                if holder is not None and holder.election.process == process:
                    await self._resign(holder.fence, process)

    async def _ask(self, process: bytes, give_up: float | None) -> api.CampaignReply | None:
        """Campaign once; None: no answer, ask again under the same process name."""
        patience_s = self._ttl_ms / 1000
        if give_up is not None:
            patience_s = max(ASK_FOR_S_MIN, min(patience_s, give_up - self._plane.clock()))
        try:
            return await self._plane.campaign(
                self._name,
                process,
                self._ttl_ms,
                self._value,
                partition=self._partition,
                timeout_s=patience_s,
            )
        except (Unavailable, OutcomeUnknown) as error:
            if error.reason == CLIENT_CLOSED:
                raise
            return None

    async def _rest(self, until_s: float | None) -> None:
        """Let others run before asking again (rule 5), until `until_s` at most."""
        rest_s = random.uniform(REST_S / 2, REST_S)  # noqa: S311 - only spreads load.
        await asyncio.sleep(rest_s if until_s is None else max(0.0, min(rest_s, until_s - self._plane.clock())))

    async def _vacancy(self, after_revision: int, give_up: float | None) -> None:
        """Wait until the name's record changes, or it is time to ask again anyway."""
        patience = ASK_AGAIN_S if give_up is None else min(ASK_AGAIN_S, max(0.0, give_up - self._plane.clock()))
        changes = self._changes(after_revision)
        try:
            async with asyncio.timeout(patience):
                async for change in changes:
                    if not change.HasField("election"):
                        return
        except TimeoutError:
            return
        finally:
            await changes.aclose()

    async def _keep(self, lease: Lease, term: Term, process: bytes, body: asyncio.Timeout) -> None:
        while True:
            await asyncio.sleep(max(0.0, term.renew_s - self._plane.clock()))
            asked_s = self._plane.clock()
            if not await self._renew(lease, term, process, asked_s):
                lease._end()
                body.reschedule(asyncio.get_running_loop().time())
                return
            body.reschedule(self._on_loop(term.ends_s))
            if term.asked_s < asked_s:
                await self._rest(term.ends_s)

    async def _renew(self, lease: Lease, term: Term, process: bytes, asked_s: float) -> bool:
        """Renew once; False: the lease is lost. It is too when the answer comes after its end: lost stays lost."""
        ends_s = term.ends_s
        try:
            await self._plane.renew(
                self._name,
                process,
                lease.fence,
                partition=self._partition,
                timeout_s=max(ASK_FOR_S_MIN, min(term.ttl_s / 3, ends_s - asked_s)),
            )
        except (Unavailable, OutcomeUnknown) as error:
            if error.reason == CLIENT_CLOSED:
                lease.refusal = error
                return False
            return self._plane.clock() < ends_s
        except ControlPlaneError as error:
            lease.refusal = error
            return False
        term.renewed(asked_s)
        return self._plane.clock() < ends_s

    def _on_loop(self, when_s: float) -> float:
        return asyncio.get_running_loop().time() + when_s - self._plane.clock()

    async def _resign(self, fence: api.Fence, process: bytes) -> None:
        """Give the lease up early, as a courtesy: without it the next holder waits for the time-to-live."""
        try:
            await self._plane.resign(self._name, process, fence, partition=self._partition, timeout_s=RESIGN_TIMEOUT_S)
        except ControlPlaneError:
            return


def _view(change: api.Change, epoch: int) -> api.ElectionView | None:
    if not change.HasField("election"):
        return None
    fence = api.Fence(election=change.name, epoch=epoch, revision=change.meta.created)
    return api.ElectionView(election=change.election, fence=fence, meta=change.meta)
