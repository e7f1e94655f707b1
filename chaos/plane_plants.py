"""Defects to plant in the simulated region, to show that it can fail: each breaks one promise of the product.

They are put in from outside, by replacing one part of every process; the product itself has no switch for them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

from chaos.plane_disk import RegionDisk
from chaos.plane_node import Parts, SimLog
from controlplane import features, limits
from controlplane.controllers import Controllers, Reaper
from controlplane.kernel import machine
from controlplane.kernel.machine import Working
from controlplane.kernel.store import Batch
from controlplane.node import Call, Node
from controlplane.sdk.mirror import Mirror
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Retention
from controlplane.v1.state_pb2 import Entry
from controlplane.waiting import Waiting
from controlplane.watch import Following


class _Baseless(Node):
    """What was planned over another revision is applied all the same."""

    def apply(self, index: int, term: int, entry: bytes) -> None:
        planned = self._planned
        if entry and Entry.FromString(entry[1:]).base != self.revision:
            rebased = _rebased(entry, self.revision)
            if planned is not None and planned.entry == entry:
                self._planned = replace(planned, entry=rebased)
            entry = rebased
        super().apply(index, term, entry)


def _rebased(packed: bytes, revision: int) -> bytes:
    entry = Entry.FromString(packed[1:])
    entry.base, entry.base_hash = revision, b""
    for txn in entry.txns:
        del txn.guards[:]
    return machine.pack(entry)


class _Unproven(SimLog):
    """Reads are answered without asking anybody."""

    async def barrier(self, *, timeout_s: float) -> None:
        """See `Log`."""


class _Forgetful(Node):
    """A new leader does not know what was asked before it led."""

    _led_from = 0

    def _role_changed(self) -> None:
        led = self._ready
        super()._role_changed()
        if self._ready and not led:
            self._led_from = self.revision

    def _told(self, working: Working, waiting: Waiting) -> bool:
        outcome = working.answer(waiting.request) if waiting.request is not None else None
        if outcome is not None and outcome.revision <= self._led_from:
            return False
        return super()._told(working, waiting)


class _Eager(Node):
    """Writes are answered when they are planned."""

    def _plan(self) -> tuple[list[Waiting], Working, Entry]:
        batch, working, entry = super()._plan()
        for waiting, outcome in zip(batch, working._outcomes, strict=True):
            self._answer(waiting, outcome)
        return batch, working, entry


class _Reviving(Node):
    """A restarted node takes no account of the kill switches that were engaged before."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self._started_at = self.revision

    def submit(self, call: Call) -> asyncio.Future[bytes]:
        found = super().submit(call)
        if call.method != "CheckSwitches" or not self._started_at:
            return found
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        found.add_done_callback(lambda _: self._revive(found, done))
        return done

    def _revive(self, found: asyncio.Future[bytes], done: asyncio.Future[bytes]) -> None:
        error = found.exception()
        if error is not None:
            done.set_exception(error)
            return
        reply = api.CheckSwitchesReply.FromString(found.result())
        newer = [each for each in reply.stopped_by if each.meta.revision > self._started_at]
        del reply.stopped_by[:]
        reply.stopped_by.extend(newer)
        done.set_result(reply.SerializeToString())


class _Gapped(Following):
    """A resumed watch loses the first change."""

    lost = False

    async def __anext__(self) -> bytes:
        message = await super().__anext__()
        if not self.lost and api.WatchReply.FromString(message).kind == api.WatchReply.CHANGES:
            self.lost = True
            return await super().__anext__()
        return message


class _Skipping(Node):
    """Hands out watches with a gap to those who resume."""

    async def watch(self, call: Call) -> Following:
        following = await super().watch(call)
        if not api.WatchRequest.FromString(call.request).snapshot:
            following.__class__ = _Gapped
        return following


class _Ageless(Node):
    """Everything is said to be new."""

    def fresh_ms(self) -> int:
        return 0


class _Unfenced(Node):
    """Fences are not looked at."""

    def submit(self, call: Call) -> asyncio.Future[bytes]:
        if call.method in features.WRITES:
            request: Any = features.WRITES[call.method].request.FromString(call.request)
            request.header.ClearField("fence")
            call = call._replace(request=request.SerializeToString())
        return super().submit(call)


class _Mute(Node):
    """Now and then a call is never answered."""

    _asked_count = 0

    def submit(self, call: Call) -> asyncio.Future[bytes]:
        self._asked_count += 1
        if self._asked_count % 100:
            return super().submit(call)
        return asyncio.get_running_loop().create_future()


class _Rotting(Node):
    """One replica's store changes by itself."""

    def apply(self, index: int, term: int, entry: bytes) -> None:
        super().apply(index, term, entry)
        if self.name == "n1" and index % 100 == 0:
            self.store.commit(Batch(puts={b"h/rot": b"%d" % index}))


class _HastyReaper(Reaper):
    """Counts half of a lease's time."""

    def arm(self, key: bytes, revision: int, ttl_s: float, now: float) -> None:
        """See `Reaper`."""
        super().arm(key, revision, ttl_s / 2, now)


class _Hasty(Controllers):
    """Ends leases too early."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._reaper = _HastyReaper()


class _StaleReaper(Reaper):
    """Goes on with what it counted as a follower."""

    def clear(self) -> None:
        """Forget nothing."""

    def arm(self, key: bytes, revision: int, ttl_s: float, now: float) -> None:
        """Count on from when this revision was seen first."""
        known = self._due.get(key)
        if known is None or known[0] != revision:
            super().arm(key, revision, ttl_s, now)


class _OnFollowersClock(Controllers):
    """A new leader does not give leases their full time."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._reaper = _StaleReaper()


class _EarlyTrim(Controllers):
    """Outcomes are dropped while they are still promised."""

    def _due(self, kept: Retention, revision: int) -> Retention:
        due = super()._due(kept, revision)
        span = self._node.state.outcome_span
        newest = max(kept.outcome_slice, ((revision - limits.TRIM_REVISIONS) // span) << 8)
        return Retention(event_floor=due.event_floor, outcome_slice=newest)


class _Torn(RegionDisk):
    """A loss of power leaves half a batch in the store."""

    def crash(self, random: Random, syncing_seq: int, *, power: bool) -> int:
        """See `Disk`."""
        pending = list(self._batches)
        lost = super().crash(random, syncing_seq, power=power)
        torn = next((batches[0] for index, batches in pending if index > self.base.index), None)
        if power and torn is not None:
            self._image.commit(Batch(puts=dict(list(torn.puts.items())[:-1])))
        return lost


class _Credulous(Mirror):
    """Takes every mark for its own age, whatever it holds."""

    def mark(self, sent_s: float, revision: int, age_ms: int) -> None:
        """See `Mirror`."""
        self._fresh_s = max(self._fresh_s, sent_s - age_ms / 1000)


PLANTS: Mapping[str, Parts] = {
    "base": Parts(node=_Baseless),
    "barrier": Parts(log=_Unproven),
    "request-ids": Parts(node=_Forgetful),
    "early-answer": Parts(node=_Eager),
    "revival": Parts(node=_Reviving),
    "watch-gap": Parts(node=_Skipping),
    "age": Parts(node=_Ageless),
    "fence": Parts(node=_Unfenced),
    "mute": Parts(node=_Mute),
    "rot": Parts(node=_Rotting),
    "early-expiry": Parts(controllers=_Hasty),
    "follower-clock": Parts(controllers=_OnFollowersClock),
    "early-trim": Parts(controllers=_EarlyTrim),
    "torn-batch": Parts(disk=_Torn),
    "mirror": Parts(mirror=_Credulous),
}
"""Every defect that can be planted, by name; each class says what it breaks."""
