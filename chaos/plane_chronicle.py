"""What the simulated region agreed on, and what that forbids: the chronicle sees every applied entry, and every answer.

The first replica that applies an entry writes it down; every other one must arrive at the same. Answers to clients are
compared with it, so that a wrong answer is found when it is given, by whoever gives it. It knows of the product only
what entries, events and messages look like; its rules are its own.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from chaos.sim_node import Clock
from chaos.sim_oracle import Violation
from controlplane import limits
from controlplane.features.leases import ELECTION
from controlplane.features.switches import SWITCH
from controlplane.kernel import keys
from controlplane.kernel.machine import Applied, Changed
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Election, Switch
from controlplane.v1.state_pb2 import Entry, Outcome, Txn

RequestKey = tuple[str, bytes]
"""Identity and request id."""

# An age is sent in whole milliseconds, rounded down, and read on a clock that may run slowly.
_AGE_SLACK_MS = 1.0
SLOWEST_CLOCK, _FASTEST_CLOCK = 0.7, 1.4
_INSTANT_S = 1e-6
_EXPIRES = "ExpireElection"


class Effect(NamedTuple):
    """What one request did: its revision and verdict."""

    revision: int
    verdict: int


class Written(NamedTuple):
    """One change that watchers may see."""

    key: bytes
    value: bytes | None
    created: int
    version: int


@dataclass(slots=True)
class _Lease:
    created: int
    ttl_s: float
    renewed_at: float


class Chronicle:
    """Everything that was applied, by revision."""

    def __init__(self, *, span: int, events_kept: int) -> None:
        """For how many revisions at least an outcome, and an event, has to be kept."""
        self.span, self.events_kept = span, events_kept
        self.counts: Counter[str] = Counter()
        self.revision = 0
        self.clocks_changed = False
        self.effects: dict[RequestKey, Effect] = {}
        self._at: list[float] = [0.0]  # When each revision was first applied anywhere.
        self._hashes: dict[int, bytes] = {}
        self._changes: dict[int, list[Written]] = {}
        self._changed_revisions: list[int] = []
        self._leases: dict[bytes, _Lease] = {}
        self._fences: dict[RequestKey, tuple[bytes, int, str]] = {}
        self._accepted: dict[str, int] = {}
        self._led_index, self._led_since = 0, 0.0
        self._retried: set[bytes] = set()
        self._switches: dict[bytes, list[tuple[float, bool]]] = {}
        self._results: dict[RequestKey, bytes] = {}
        self._failed: list[RequestKey] = []
        self._seen = 0  # The newest revision that any client was told of.

    # Entries.

    def applied(self, name: str, entry: bytes, applied: Applied, now: float, clock: Clock) -> None:
        """Take what replica `name` made of an entry."""
        state = applied.state
        if not entry and state.index > self._led_index:
            self._led_index, self._led_since = state.index, now
        known = self._hashes.get(state.revision)
        if known is not None:
            if known != state.hash:
                raise Violation(f"REPLICA_DIVERGENCE {name} has another hash at revision {state.revision}")
            return
        if state.revision < self.revision:
            raise Violation(f"REPLICA_DIVERGENCE {name} is at revision {state.revision}, where no entry ended")
        self._hashes[state.revision] = state.hash
        if not entry:
            return
        self._at += [now] * (state.revision - self.revision)
        first, self.revision = self.revision + 1, state.revision
        actions = self._take_txns(first, entry, applied.outcomes)
        for revision, changed in groupby(applied.changed, key=lambda each: each.event.revision):
            self._take_changes(revision, list(changed), actions.get(revision, ""), now)

    def _take_txns(self, first: int, entry: bytes, outcomes: Sequence[Outcome]) -> dict[int, str]:
        txns = Entry.FromString(entry[1:]).txns
        actions = {}
        for revision, (txn, outcome) in enumerate(zip(txns, outcomes, strict=True), first):
            actions[revision] = txn.action
            self.counts[f"outcome {Outcome.Verdict.Name(outcome.verdict).lower()}"] += 1
            if txn.HasField("request") and outcome.revision == revision:
                self._take_effect(txn, outcome)
            elif txn.action == _EXPIRES and outcome.verdict == Outcome.CONFLICT:
                self._retried.update(write.key for write in txn.writes)
        return actions

    def _take_effect(self, txn: Txn, outcome: Outcome) -> None:
        if outcome.verdict not in (Outcome.COMMITTED, Outcome.REFUSED):
            return
        key = (txn.request.identity, txn.request.nonce)
        if key in self.effects:
            raise Violation(
                f"DOUBLE_EFFECT {txn.action} happened at {self.effects[key].revision} and {outcome.revision}"
            )
        self.effects[key] = Effect(outcome.revision, outcome.verdict)
        fence = self._fences.pop(key, None)
        if fence is not None and outcome.verdict == Outcome.COMMITTED:
            self._accept(*fence)

    def _accept(self, election: bytes, fence: int, resource: str) -> None:
        lease = self._leases.get(election)
        if lease is None or lease.created != fence:
            raise Violation(
                f"FENCE_STALE an act on {resource} under fence {fence} was accepted after the lease was lost"
            )
        if self._accepted.get(resource, 0) > fence:
            raise Violation(f"FENCE_ORDER an act on {resource} under fence {fence} after {self._accepted[resource]}")
        self._accepted[resource] = fence
        self.counts["fenced acts accepted"] += 1

    def _take_changes(self, revision: int, changed: list[Changed], action: str, now: float) -> None:
        for each in changed:
            if keys.decode(each.key).kind == ELECTION.name:
                self._take_lease(each, action, now)
            elif keys.decode(each.key).kind == SWITCH.name:
                engaged = Switch.FromString(each.event.value).engaged
                self._switches.setdefault(each.key, []).append((now, engaged))
        loud = [each for each in changed if not each.quiet]
        if loud:
            self._changes[revision] = [_written(each) for each in loud]
            self._changed_revisions.append(revision)

    def _take_lease(self, changed: Changed, action: str, now: float) -> None:
        event = changed.event
        if event.HasField("value"):
            ttl_s = Election.FromString(event.value).ttl_ms / 1000
            self._leases[changed.key] = _Lease(event.created, ttl_s, now)
            return
        lease = self._leases.pop(changed.key)
        if action == _EXPIRES:
            self.counts["leases expired"] += 1
            # A change of leader gives every lease its full time again. But an expiry that conflicted is planned again,
            # also by a leader that lost its office meanwhile and got it back: a known defect that endangers nobody.
            begun = lease.renewed_at if changed.key in self._retried else max(lease.renewed_at, self._led_since)
            self._retried.discard(changed.key)
            stood_s = now - begun
            if stood_s * (_FASTEST_CLOCK if self.clocks_changed else 1.0) < lease.ttl_s - _INSTANT_S:
                raise Violation(f"LEASE_EARLY a lease of {lease.ttl_s} s was ended after {stood_s:.3f} s")

    # Requests.

    def fenced(self, request: RequestKey, election: bytes, fence: int, resource: str) -> None:
        """`request` will act on `resource` under `fence` of `election`."""
        self._fences[request] = (election, fence, resource)

    def answered(self, request: RequestKey, result: bytes, revision: int) -> None:
        """A client was given `result` as the outcome of `request`, which took `revision`: as everybody before it."""
        effect = self.effects.get(request)
        if effect is None or effect.revision != revision:
            raise Violation(f"ACKNOWLEDGED_LOST revision {revision} was acknowledged; the request has {effect}")
        if self._results.setdefault(request, result) != result:
            raise Violation(f"ANSWER_CHANGED the request of revision {revision} was given two answers")

    def forgotten(self, request: RequestKey) -> None:
        """A client was told that the outcome of `request` is no longer kept."""
        effect = self.effects.get(request)
        if effect is not None and self.revision - effect.revision <= self.span:
            raise Violation(f"FORGOTTEN_EARLY the outcome of revision {effect.revision} at revision {self.revision}")
        self.counts["outcomes forgotten"] += 1

    def looked_up(self, request: RequestKey, reply: api.GetOutcomeReply) -> None:
        """A client was told what became of `request`."""
        effect, known = self.effects.get(request), reply.known
        name = api.GetOutcomeReply.Known.Name(known)
        self.counts[f"looked up {name.lower()}"] += 1
        if known == api.GetOutcomeReply.FORGOTTEN:
            self.forgotten(request)
        elif known == api.GetOutcomeReply.NOT_APPLIED:
            if effect is not None and effect.revision <= reply.header.revision:
                raise Violation(f"OUTCOME {name} of a request that took revision {effect.revision}")
        elif effect is None or (effect.revision, Outcome.Verdict.Name(effect.verdict)) != (reply.revision, name):
            raise Violation(f"OUTCOME {name} at {reply.revision} of a request that has {effect}")

    def compacted(self, after: int) -> None:
        """A client was told that events after `after` are no longer kept."""
        if self.revision - after <= self.events_kept:
            raise Violation(f"COMPACTED_EARLY events after {after} at revision {self.revision}")
        self.counts["events compacted"] += 1

    def failed(self, request: RequestKey) -> None:
        """A client was told that `request` certainly did not happen, and will not ask again."""
        self._failed.append(request)

    def conclude(self) -> None:
        """What was reported as certainly not done was not done."""
        for request in self._failed:
            if request in self.effects:
                raise Violation(f"FALSE_FAILURE a request that failed took revision {self.effects[request].revision}")

    # Answers.

    @property
    def seen(self) -> int:
        """The newest revision that any client was told of."""
        return self._seen

    def tell(self, revision: int) -> None:
        """A client was told of `revision`."""
        self._seen = max(self._seen, revision)

    def serves(
        self, name: str, header: api.ReplyHeader, clock: Clock, now: float, floor: int, consistency: int
    ) -> None:
        """Check the header of a read that `name` answers now; `floor` is what any client had seen when it arrived."""
        revision = header.revision
        if revision > self.revision:
            raise Violation(f"HEADER {name} serves revision {revision}, which nobody has applied")
        if consistency == api.LINEARIZABLE and revision < floor:
            raise Violation(f"STALE_READ {name} serves revision {revision}, but {floor} was seen before")
        if consistency == api.LINEARIZABLE or header.age_ms >= limits.CALL_TIMEOUT_MAX_S * 1000:
            return
        self.counts["ages checked"] += 1
        age_ms = self.age_s(revision, now) * 1000 * (SLOWEST_CLOCK if _was_changed(clock, now) else 1.0)
        if header.age_ms + _AGE_SLACK_MS < age_ms:
            raise Violation(f"AGE {name} says {header.age_ms} ms of a state that is {age_ms:.1f} ms old")

    def applied_at(self, revision: int) -> float:
        """When `revision` was first applied anywhere."""
        return self._at[revision]

    def age_s(self, revision: int, now: float) -> float:
        """For how long `revision` has not been the newest."""
        return now - self._at[revision + 1] if revision < self.revision else 0.0

    def judges(self, key: bytes, engaged: bool, now: float, age_max_s: float) -> None:
        """Check what a mirror that is at most `age_max_s` old says of a switch: it was so at some moment since then."""
        since = now - age_max_s / (SLOWEST_CLOCK if self.clocks_changed else 1.0) - _AGE_SLACK_MS / 1000
        changes = self._switches.get(key, [])
        first = bisect.bisect_right(changes, since, key=lambda change: change[0])
        states = {changes[first - 1][1] if first else False, *(state for _, state in changes[first:])}
        self.counts["mirrors asked"] += 1
        if engaged not in states:
            raise Violation(f"KILL_BOUND a mirror bound to {age_max_s} s says engaged={engaged}, which is no longer so")

    # Watches.

    def between(self, after: int, last: int, prefixes: tuple[bytes, ...]) -> Iterator[tuple[int, list[Written]]]:
        """What a watcher of keys that start with one of `prefixes` must be told of revisions after + 1 … last."""
        start = bisect.bisect_right(self._changed_revisions, after)
        for revision in self._changed_revisions[start : bisect.bisect_right(self._changed_revisions, last)]:
            wanted = [each for each in self._changes[revision] if each.key.startswith(prefixes)]
            if wanted:
                yield revision, wanted

    def records(self, revision: int, prefixes: tuple[bytes, ...]) -> dict[bytes, Written]:
        """What a listing as of `revision` must show, renewals aside: they are no events."""
        found: dict[bytes, Written] = {}
        for _, changes in self.between(0, revision, prefixes):
            for each in changes:
                if each.value is None:
                    found.pop(each.key, None)
                else:
                    found[each.key] = each
        return found


def _written(changed: Changed) -> Written:
    event = changed.event
    return Written(changed.key, event.value if event.HasField("value") else None, event.created, event.version)


def _was_changed(clock: Clock, now: float) -> bool:
    """Whether `clock` ever ran at another rate than 1."""
    return abs(clock.now() - now - CLOCK_BASE_S) > _INSTANT_S


CLOCK_BASE_S = Clock(lambda: 0.0).now()
