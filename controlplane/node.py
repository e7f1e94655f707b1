"""A replica: joins a log, a store, and the calls waiting on them. Hides planning, batching, waiting and barriers.

Theory of operation. The leader *plans*: it drains the calls that wait, runs the feature of each over one
`machine.Working` (so that they see each other), packs the transactions into one entry and appends it. When the entry
comes back through `apply`, its outcomes answer the calls. One entry is in flight; calls that arrive meanwhile make the
next batch.

1. A call is answered only from what was applied, that is from what a majority has on disk.
2. What was planned may be applied as it stands only if the store is where it was when planning began; anything else
   runs through `machine.apply`, as on every other replica, and what conflicts is planned again, at most
   `PLAN_ATTEMPTS_MAX` times.
3. A refusal (`Refused`, `NotFound`) is an answer: it is replicated. What is wrong whatever the state (`Invalid`,
   `Denied`) and what has no room (`STORE_FULL`) is answered at once and leaves no trace.
4. A linearizable read waits for a barrier that began after it arrived. All reads that wait share one; they are
   answered over several turns of the loop, each from the state of its turn, which is newer or the same.
5. Time is `clock` (seconds, monotonic) for deadlines and `wall_ms` for the record; neither decides what is applied.
6. A batch waits a few milliseconds for the callers of the one before, unless a kill switch, a renewal or a call of the
   region's own is in it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, inf
from typing import Any, NamedTuple, NoReturn, TypeVar

from google.protobuf.message import DecodeError, Message

from controlplane import errors, features, limits
from controlplane.abroad import Abroad
from controlplane.errors import (
    Contended,
    ControlPlaneError,
    Denied,
    Fatal,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from controlplane.features import audit, checks, federation, leases, moves, switches
from controlplane.geography import Atlas, check_glass, check_read
from controlplane.identity import EVERY_ENVIRONMENT, Identity
from controlplane.kernel import keys, machine
from controlplane.kernel.machine import Applied, Working
from controlplane.kernel.store import Store
from controlplane.kernel.transaction import Reader, Tx, scope_of
from controlplane.places import Places
from controlplane.replication import Log, LogStatus
from controlplane.turns import Turns
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Cursor, Move, Partition, Reach
from controlplane.v1.state_pb2 import Entry, Outcome, Refusal, RequestId, State, Txn
from controlplane.waiting import Asked, Feature, Queue, Sort, Waiting, fail, fail_all, joins_twin, overloaded, reused
from controlplane.watch import Following, Tail, Watches, filter_of

AGE_UNKNOWN_MS = federation.AGE_UNKNOWN_MS
"""Age of a state that was never proven current."""

_DUE = frozenset({"Resign", "Renew", "EraseRecord"})
_MARKS_KEPT = 512


MessageT = TypeVar("MessageT", bound=Message)


class Call(NamedTuple):
    """One authorized request, ready to run.

    `request` is the encoded message exactly as it arrived: its digest names the request. `deadline` is on the node's
    clock, in seconds.
    """

    method: str
    request: bytes
    actor: str
    environment: str
    deadline: float
    region: str = ""
    """The caller's, if it is not this one: that of the forwarding region's certificate."""
    glass: bool = False
    """It is a read of what is pinned here, which this region's operators let such a caller make in an emergency."""

    def read(self, message: type[MessageT]) -> MessageT:
        """The request as a message of this type. Raises `Invalid`."""
        try:
            return message.FromString(self.request)
        except DecodeError:
            raise Invalid("the request is not a valid message of its type", reason="REQUEST_MALFORMED") from None


class HomedElsewhere(Exception):
    """The call is for a partition of region `home`, which alone can answer it."""

    def __init__(self, home: str, request: bytes = b"") -> None:
        """`request`: how to ask there, where it has to be said which partition is meant."""
        super().__init__(home)
        self.home, self.request = home, request


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A node as it sees itself."""

    log: LogStatus
    revision: int
    hash: bytes
    records: int
    live_bytes: int
    quota_bytes: int
    queued: int
    watchers: int
    conflicts: int


@dataclass(slots=True)
class _Read:
    """A read on its way: `run` answers it, given the age of the state; `late` does once its deadline has passed."""

    deadline: float
    run: Callable[[int], bytes]
    done: asyncio.Future[bytes]
    late: Callable[[], ControlPlaneError]


@dataclass(slots=True)
class _Planned:
    entry: bytes
    working: Working
    batch: list[Waiting]
    again: list[Waiting] | None = None
    """Once it is applied: those who have to be planned again."""


class Node:
    """One node's replicated state, and the way to it. Every method runs on the event loop's thread."""

    def __init__(  # noqa: PLR0913 - the root of the object graph of one node.
        self,
        *,
        fleet: str,
        region: str,
        name: str,
        partitions: Sequence[Partition],
        store: Store,
        log: Log,
        clock: Callable[[], float],
        wall_ms: Callable[[], int],
        entropy: Callable[[int], bytes],
        quota_bytes: int = limits.QUOTA_BYTES,
        free_bytes: Callable[[], int] | None = None,
        atlas: Atlas | None = None,
    ) -> None:
        """`free_bytes` says how much room is left on the disks that a write needs (None: not watched).

        `atlas` is the map of regions (None: this one knows no other).
        """
        self.atlas = atlas or Atlas(fleet, region, {region: region}, {})
        self.fleet, self.region, self.name = fleet, region, name
        self.store, self.log = store, log
        self.identity = Identity(fleet, EVERY_ENVIRONMENT, region, "peer", name)
        self.actor = self.identity.uri
        self.clock, self._wall_ms, self.entropy = clock, wall_ms, entropy
        self._defaults = {(p.environment, kind): p.id for p in partitions for kind in p.default_for}
        self._quota_bytes, self._free_bytes = quota_bytes, free_bytes
        self._state = machine.state_of(store)
        self.ledger = audit.Ledger(store)
        self._marks: OrderedDict[int, bytes] = OrderedDict()
        self._queue = Queue()
        self._reads: list[_Read] = []
        self._readers: set[asyncio.Future[bytes]] = set()
        self._ahead: set[asyncio.Future[bytes]] = set()
        self._turns = Turns(clock)
        self._work, self._read_work = asyncio.Event(), asyncio.Event()
        self._ready = False
        self._recent = machine.RecentEvents()
        self._asked = Asked(self._state.revision)
        self._planned: _Planned | None = None
        self._expected = 0
        self._applied_listeners: list[Callable[[Applied], None]] = []
        self._reloaded_listeners: list[Callable[[], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._conflicts = 0
        self._header_tails: dict[int, bytes] = {}
        self._watches = Watches(region, Tail(self._state.revision), self._turns, self.broken)
        self.abroad = Abroad(region)
        """What is known of other regions."""
        self.abroad.look(store, clock())
        self.places = Places(region, partitions, self.abroad)
        """Where partitions are at home."""
        self.places.look(store)
        self.engaged = switches.Engaged()
        """The kill switches that are engaged."""
        self.engaged.look(store)
        self.failed: asyncio.Future[None] = asyncio.get_event_loop().create_future()
        self.failed.add_done_callback(_seen)

    # -- life

    async def start(self) -> None:
        """Bring up the log and begin to answer. Raises `Fatal`."""
        self.log.on_change(self._role_changed)
        await self.log.start(self)
        self._role_changed()
        for work in (self._plan_forever(), self._read_forever(), self._tick_forever()):
            self._own(work)

    async def stop(self) -> None:
        """Answer what waits with `Unavailable`, hand leadership over, and close the log.

        What is in the log already, or on its way, is `OutcomeUnknown`.
        """
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        error = Unavailable("the node is stopping", reason="STOPPING", hint="ask another node")
        self._fail_waiting(error)
        for done in (*self._readers, *self._ahead):
            fail(done, error)
        self._watches.close()
        await self.log.stop()

    def needs(self, task: asyncio.Task[None]) -> asyncio.Task[None]:
        """Fail as a whole if `task`, which somebody else cancels, ends with an error; return it."""
        task.add_done_callback(self._finished)
        return task

    def on_applied(self, listener: Callable[[Applied], None]) -> None:
        """Call `listener` (which must not raise or block) after each applied entry."""
        self._applied_listeners.append(listener)

    def on_reloaded(self, listener: Callable[[], None]) -> None:
        """Call `listener` (which must not raise or block) when the store was replaced by a snapshot."""
        self._reloaded_listeners.append(listener)

    def forget_past(self) -> None:
        """Keep in memory nothing of what happened up to here: some of it was erased from the store."""
        self._watches.forget()

    # -- the log's machine

    @property
    def applied(self) -> tuple[int, int]:
        """Index and term of the last applied entry."""
        return self._state.index, self._state.term

    def apply(self, index: int, term: int, entry: bytes) -> None:
        """See `replication.Machine`."""
        planned = self._planned
        mine = planned is not None and planned.entry == entry
        if planned and mine and planned.working.base == self._state.revision:
            applied = planned.working.finish(self.store, index, term, entry, self.ledger)
        else:
            applied = machine.apply(
                self.store, index, term, entry, recent=self._recent, annex=self.ledger, state=self._state
            )
        if planned and mine:
            self._planned = None
            self._asked.add([w.request for w in planned.batch if w.request is not None], applied.state.revision)
        elif entry:
            self._asked.forget(applied.state.revision)
        self._took(applied)
        if planned and mine:
            answered = zip(planned.batch, applied.outcomes, strict=True)
            planned.again = [waiting for waiting, outcome in answered if not self._answer(waiting, outcome)]

    def mark(self) -> bytes:
        """Revision and running hash, for peers to compare with theirs."""
        return keys.number(self._state.revision) + self._state.hash

    def marked(self, peer: str, mark: bytes) -> None:
        """Compare a peer's mark with what this node had at the same revision. Raises `Fatal` if they differ."""
        revision, theirs = int.from_bytes(mark[:8], "big"), mark[8:]
        ours = self._state.hash if revision == self._state.revision else self._marks.get(revision)
        if ours is not None and ours != theirs:
            raise Fatal(
                f"this node and {peer} differ at revision {revision}: stop both, keep their data folders,"
                " and compare; then restart the odd one out with --replace and an empty folder"
            )

    def reloaded(self) -> None:
        """The store was replaced by a snapshot: forget everything derived from the old one."""
        self._state = machine.state_of(self.store)
        self._recent.clear()
        self.ledger.reload(self.store)
        self._asked.forget(self._state.revision)
        self._marks.clear()
        self._watches.reset(self._state.revision)
        self.abroad.look(self.store, self.clock())
        shown = self.places.look(self.store)
        self.engaged.look(self.store)
        for before in shown:
            self._watches.outdate(scope_of(before))
        for listener in self._reloaded_listeners:
            listener()

    # -- what callers want

    @property
    def partitions(self) -> Mapping[str, Partition]:
        """The partitions whose home is here, by id; another object after each change."""
        return self.places.home

    @property
    def revision(self) -> int:
        """The newest revision applied here."""
        return self._state.revision

    @property
    def state(self) -> State:
        """Where this replica stands; treat it as immutable."""
        return self._state

    def fresh_ms(self) -> int:
        """Upper bound on the age of this node's state."""
        fresh_s = self.log.status().fresh_s
        return min(ceil(fresh_s * 1000), AGE_UNKNOWN_MS) if fresh_s != inf else AGE_UNKNOWN_MS

    def ahead_ms(self) -> int:
        """By how much the newest recorded time is ahead of this node's clock: recorded times never go back."""
        return max(0, self._state.at_ms - self._wall_ms())

    def _current_at(self) -> float:
        """When this node's state was last known to be current, on its clock; minus infinity if it never was."""
        try:
            return self.clock() - self.log.status().fresh_s
        except Unavailable:
            return -inf

    def status(self) -> NodeStatus:
        """The present moment."""
        state = self._state
        return NodeStatus(
            log=self.log.status(),
            revision=state.revision,
            hash=state.hash,
            records=state.records,
            live_bytes=state.live_bytes,
            quota_bytes=self._quota_bytes,
            queued=len(self._queue),
            watchers=self._watches.count,
            conflicts=self._conflicts,
        )

    def submit(self, call: Call) -> asyncio.Future[bytes]:
        """Start a writing or reading method; the future holds the encoded reply, header in place, or one of the errors.

        It holds `HomedElsewhere` for what only another region can answer. A copy of another region's records is read
        with `LOCAL` or `AT_LEAST`, and says how old it is.
        Writes are for the leader (`Unavailable` with reason NOT_LEADER elsewhere), reads for any node. Writes handed in
        one after the other are planned in that order, except that kill switches (and exceptions from them) go before
        everything, then the region's own calls, then renewals, resignations and erasures. Each of these finds room
        however many of the others wait.
        """
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        try:
            if call.method in features.WRITES:
                self._submit_write(call, done)
            else:
                self._submit_read(call, done)
        except (ControlPlaneError, HomedElsewhere) as error:
            done.set_exception(error)
        except Exception as error:
            done.set_exception(self.broken(error))
        return done

    def broken(self, error: Exception) -> Exception:
        """Fail as a whole because of `error`, which is none of the eight; what to tell whoever met it."""
        if not self.failed.done():
            self.failed.set_exception(error)
        if isinstance(error, Fatal):
            # What is wrong with this node's disk is not wrong with the others.
            return Unavailable("this node cannot go on", reason="NODE_FAILED", hint="ask another node")
        return error

    def transact(
        self,
        partition: Partition,
        action: str,
        feature: Feature,
        *,
        timeout_s: float,
        actor: str = "",
        reason: str = "",
    ) -> asyncio.Future[bytes]:
        """Run `feature` on the region's own account: no request id, so it must be safe to run twice.

        `actor` and `reason`: who had it done, and why, if that was somebody.
        """
        done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        actor, until = actor or self.actor, self.clock() + timeout_s
        waiting = Waiting(feature, partition, actor, action, reason, None, until, 0, Sort.OWN, done)
        try:
            self._enqueue(waiting)
        except ControlPlaneError as error:
            done.set_exception(error)
        return done

    async def watch(self, call: Call) -> Following:
        """Follow changes of one partition: encoded `WatchReply` messages, one whole transaction each, in order.

        Of kind "stop" alone, and without a partition in the header: those of all regions, in this environment.
        Raises `Invalid`, `Denied`, `NotFound`, `Compacted` or `Unavailable`; what it returns raises `Compacted` if the
        caller reads so slowly that its place is no longer kept, and `Unavailable` when the node stops, or has to
        because its store cannot be read. Close it.
        """
        try:
            return await self._watch(call)
        except (ControlPlaneError, HomedElsewhere):
            raise
        except Exception as error:
            raise self.broken(error) from error

    async def _watch(self, call: Call) -> Following:
        request = call.read(api.WatchRequest)
        _check_consistency(request.header)
        everywhere = not request.header.partition and [*request.kinds] == [switches.STOP.name]
        if everywhere and call.region in ("", self.region):
            await self.consistent(request.header, call.deadline)
            # Only now: what was learned while this waited is to be seen too.
            among = self._stop_partitions(call.environment)
            wanted = filter_of(among, request.kinds, request.prefix, self.abroad.learned)
            return self._watches.follow(self.store, wanted, 0, request, self.fresh_ms, since=self.abroad.since)
        self._partition_of_kinds(request.header, request.kinds, call)
        await self.consistent(request.header, call.deadline)
        # Where it is shown by now.
        partition = self._shown(self._partition_of_kinds(request.header, request.kinds, call))
        wanted, since = filter_of([partition], request.kinds, request.prefix), self.places.since(partition.id)
        return self._watches.follow(self.store, wanted, partition.epoch, request, self.fresh_ms, since=since)

    def views(self) -> list[tuple[Cursor, int]]:
        """How far, and how freshly, this region has copied what each other one shares; ages in milliseconds."""
        own_ms = self.fresh_ms()
        return [(cursor, min(age_ms + own_ms, AGE_UNKNOWN_MS)) for cursor, age_ms in self.abroad.views(self.clock())]

    def partition(self, header: api.RequestHeader, kind: str, call: Call, *, glass: bool = False) -> Partition:
        """The partition that a request means, which may be a copy of another region's.

        With `glass`, which only what reads one record or page may say, also what is pinned here.

        Raises `NotFound`, `Denied`, `Invalid` or `HomedElsewhere`.
        """
        environment = call.environment
        if not header.partition:
            usual = self._defaults.get((environment, kind))
            found = self.places.routed(usual) if usual is not None else None
            if found is None:
                raise Invalid(
                    f"environment {environment} has no default partition for {kind}",
                    reason="PARTITION_MISSING",
                    hint="name a partition",
                )
        else:
            found = self._named(header.partition, call)
            if found.environment != environment:
                raise Denied("the partition belongs to another environment", reason="ENVIRONMENT_MISMATCH")
        if call.region and call.region != self.region:
            if found.home != self.region and found.id in self.places.moves:
                # It was here, and the caller's region has yet to hear that it is not.
                raise moves.moved(found)
            (check_glass if glass else check_read)(self.atlas, found, call.region, environment)
        return found

    def reach_of(self, call: Call) -> Reach:
        """The reach of the partition that a call is about; REACH_UNSPECIFIED if it is about none that is known here."""
        method = features.WRITES.get(call.method) or features.READS.get(call.method)
        # How far it goes is the same for everybody, also when it is elsewhere by now.
        call = call._replace(region="")
        try:
            if method is not None:
                request: Any = call.read(method.request)
                return self.partition(request.header, method.kind.name, call).reach
            listed = call.read(api.ListEventsRequest)
            return self._partition_of_kinds(listed.header, listed.kinds, call).reach
        except (ControlPlaneError, HomedElsewhere):
            return Reach.REACH_UNSPECIFIED

    def _named(self, name: str, call: Call) -> Partition:
        checks.name(name, "header.partition")
        found = self.places.routed(name)
        if found is not None:
            return found
        home = moves.creator(name)
        if home in self.atlas.may_leave and not call.region:
            # Whether there is such a partition, and whether it may be seen from here, is for its home to say.
            raise HomedElsewhere(home)
        raise NotFound("there is no such partition", reason="PARTITION_UNKNOWN")

    def _home_only(self, partition: Partition, call: Call, request: Any) -> None:
        """Return if this region may answer for `partition`; raises `HomedElsewhere`, or `Denied` after one hop."""
        if partition.home == self.region:
            return
        if call.region:
            raise Denied("this region is not the partition's home", reason="NOT_AT_HOME")
        if request.header.partition:
            raise HomedElsewhere(partition.home)
        # There, another partition is the one that is meant by none.
        named = type(request)()
        named.CopyFrom(request)
        named.header.partition = partition.id
        raise HomedElsewhere(partition.home, named.SerializeToString(deterministic=True))

    def _shown(self, partition: Partition) -> Partition:
        """The partition where its records are read here. Raises `Unavailable` as long as they are not here whole."""
        shown = self.places.shown(partition.id)
        if shown is None:
            raise Unavailable(
                f"the partition's home is {partition.home} now, and it is not copied from there yet",
                reason="COPY_INCOMPLETE",
                hint="cpctl status shows how far the copy is",
            )
        return shown

    def _check_still_home(self, partition: Partition) -> None:
        """Return if what is here of `partition` is all there is, as the log stands now. Raises `Unavailable`."""
        move = self.places.sealed(partition.id)
        if move is not None:
            raise moves.moving(move)
        now = self.places.routed(partition.id)
        if now is not None and (now.home, now.epoch) != (partition.home, partition.epoch):
            raise moves.moved(now)

    def _stop_partitions(self, environment: str) -> list[Partition]:
        """Where stops of all regions are told in an environment, this region's own first."""
        every = [*self.places.declared.values(), *self.abroad.everywhere()]
        return [p for p in every if p.environment == environment and switches.STOP.name in p.default_for]

    def _stopped_elsewhere(self, reader: Reader, environment: str) -> switches.Abroad:
        own = self.region
        there = [p for p in self._stop_partitions(environment) if p.home != own]
        readers = [Reader(self.store, partition, self._state.revision) for partition in there]
        return switches.Abroad(self.fleet, environment, reader, readers)

    def _partition_of_kinds(self, header: api.RequestHeader, kinds: Sequence[str], call: Call) -> Partition:
        """The one partition that holds all `kinds`: a watcher must not believe that it sees what lies in another."""
        named = sorted(set(kinds))
        for kind in named:
            if kind not in features.KINDS:
                raise Invalid(f"unknown kind {kind[:64]!r}", reason="KIND_UNKNOWN", field="kinds")
        wanted = named or [kind for of, kind in self._defaults if of == call.environment] or ["workflow"]
        # Exceptions lie where the switches do.
        places = {switches.SWITCH.name if kind == switches.EXCEPTION.name else kind for kind in wanted}
        found = {p.id: p for p in (self.partition(header, kind, call) for kind in sorted(places))}
        if len(found) > 1:
            raise Invalid(
                f"these kinds lie in several partitions: {', '.join(sorted(found))}",
                reason="PARTITION_AMBIGUOUS",
                hint="name one of them, or ask for kinds of one partition",
            )
        return next(iter(found.values()))

    # -- writes

    def _submit_write(self, call: Call, done: asyncio.Future[bytes]) -> None:
        method = features.WRITES[call.method]
        request: Any = call.read(method.request)
        header: api.RequestHeader = request.header
        if self._told_before_the_move(call, request, method.kind.name, done):
            return
        partition = self.partition(header, method.kind.name, call)
        self._home_only(partition, call, request)
        checks.free_text(header.reason, "header.reason")
        rid = self._request_id(call, header, partition, _digest(call.method, request))
        fence = header.fence if header.HasField("fence") else None
        elections = self._elections_for(partition) if fence is not None else None
        if fence is not None and elections is not None and call.region not in ("", self.region):
            # Whether a fence is refused tells whether, and since when, somebody holds it.
            check_read(self.atlas, elections, call.region, call.environment)

        def feature(tx: Tx) -> Message:
            moves.check_open(tx, self.region, partition)
            if fence is not None:
                _require(tx, self.region, elections, fence)
            return method.run(tx, request)

        self._enqueue(
            Waiting(
                feature,
                partition,
                call.actor,
                call.method,
                header.reason,
                rid,
                call.deadline,
                len(call.request),
                _sort(call.method),
                done,
                dated=header.HasField("since") and not call.region,
            )
        )

    def _told_before_the_move(self, call: Call, request: Any, kind: str, done: asyncio.Future[bytes]) -> bool:
        """Answer a request that was first made while the partition was at home here, if it has an outcome; true then.

        Whoever knows that the partition has left has applied everything that was ever written to it here.
        """
        header: api.RequestHeader = request.header
        name = header.partition or self._defaults.get((call.environment, kind), "")
        move = self.places.moves.get(name)
        if move is None or move.phase != Move.LEFT or len(header.request_id) != limits.REQUEST_ID_BYTES:
            return False
        revision, span = self._state.revision, self._state.outcome_span
        digest = _digest(call.method, request)
        asked = RequestId(identity=call.actor, nonce=header.request_id, digest=digest)
        kept = machine.outcome_of(self.store, asked, revision, span)
        if kept is not None and kept.digest == digest and not moves.is_given_up(move, move.partition, kept.revision):
            _settle(done, kept, move.partition, self)
            return True
        if kept is not None:
            raise _epoch_changed() if kept.digest == digest else reused()
        if header.HasField("since") and not call.region and header.since < machine.outcome_floor(revision, span):
            raise _forgotten()
        return False

    def _elections_for(self, partition: Partition) -> Partition | None:
        """Where the leases are by which writes to `partition` are fenced: with the region that created both."""
        own, environment = moves.creator(partition.id), partition.environment
        if own == self.region:
            usual = self._defaults.get((environment, leases.ELECTION.name))
            return self.places.routed(usual) if usual is not None else None
        among = (each for each in self.partitions.values() if leases.ELECTION.name in each.default_for)
        return next((e for e in among if moves.creator(e.id) == own and e.environment == environment), None)

    def _request_id(
        self, call: Call, header: api.RequestHeader, partition: Partition, digest: bytes = b""
    ) -> RequestId:
        if len(header.request_id) != limits.REQUEST_ID_BYTES:
            raise Invalid(
                f"header.request_id must be {limits.REQUEST_ID_BYTES} random bytes, the same for every attempt",
                reason="REQUEST_ID_BAD",
                field="header.request_id",
            )
        # Callers of other regions count in the revisions of their own.
        dated = header.HasField("since") and not call.region
        since = header.since if dated else self._state.revision
        if header.epoch not in (0, partition.epoch):
            raise _epoch_changed()
        return RequestId(
            identity=call.actor,
            nonce=header.request_id,
            epoch=partition.epoch,
            since=since,
            digest=digest,
        )

    def _enqueue(self, waiting: Waiting) -> None:
        if not self._ready:
            raise _not_leader(self.log.status())
        if waiting.request and waiting.request.since > self._state.revision:
            # A follower may have applied what this leader has not yet: the caller saw it there.
            raise Unavailable(
                f"header.since is {waiting.request.since}; this node is at revision {self._state.revision}",
                reason="SINCE_IN_FUTURE",
                field="header.since",
            )
        self._queue.push(waiting)
        self._work.set()

    async def _plan_forever(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._queue:
                await self._gather()
                await self._plan_round()
                # A round may have waited for nothing: everybody else has a turn before the next.
                await asyncio.sleep(0)

    async def _gather(self) -> None:
        """Let a batch become as large as the callers of the last one make it: an entry costs more than a call does.

        Callers that were answered together ask again one after the other. Nobody waits who is alone, nobody for long,
        and nothing that goes first (rule 6).
        """
        end, seen = self.clock() + limits.GATHER_S_MAX, 0
        while seen < len(self._queue) < self._expected and not self._queue.urgent and self.clock() < end:
            seen = len(self._queue)
            await asyncio.sleep(limits.GATHER_PAUSE_S)

    async def _plan_round(self) -> None:
        batch, working, entry = self._plan()
        self._expected = len(batch)
        if not batch:
            return
        packed = machine.pack(entry)
        planned = self._planned = _Planned(packed, working, batch)
        try:
            await self.log.append(packed, timeout_s=limits.CALL_TIMEOUT_S)
        except ControlPlaneError as error:
            fail_all(batch, error)
            return
        except asyncio.CancelledError:
            fail_all(batch, OutcomeUnknown("the node stopped before the outcome was known", reason="STOPPING"))
            raise
        except Exception:
            fail_all(batch, OutcomeUnknown("the node failed before the outcome was known", reason="NODE_FAILED"))
            raise
        finally:
            self._planned = None
        if planned.again is None:
            raise Fatal("the log took an entry that was never applied here")
        self._expected += len(self._queue)
        self._queue.put_back(planned.again)

    def _plan(self) -> tuple[list[Waiting], Working, Entry]:
        """Turn what waits into one entry; what needs no entry is answered on the way."""
        working = Working(self.store, self._recent, self._state)
        working.at_ms = max(working.at_ms, self._wall_ms())
        entry = Entry(base=working.base, at_ms=working.at_ms, salt=self.entropy(16))
        working.salt = entry.salt
        entry.base_hash = working.base_hash
        batch: list[Waiting] = []
        txns: list[Txn] = []
        size, now = 0, self.clock()
        asked: dict[tuple[str, bytes], Waiting] = {}
        # A transaction can be twice as large as a value (the reply may repeat it), so the last one still fits.
        for waiting in self._next(until=now + limits.PLAN_S_MAX):
            if waiting.done.done() or joins_twin(waiting, asked) or self._told(working, waiting):
                continue
            txn = self._plan_one(working, waiting, now)
            if txn is None:
                continue
            working.run(txn, proven=True)
            size += txn.ByteSize()
            txns.append(txn)
            batch.append(waiting)
            if waiting.request is not None:
                asked[waiting.request.identity, waiting.request.nonce] = waiting
            if len(batch) >= limits.BATCH_TXNS_MAX or size >= limits.ENTRY_BYTES_MAX // 4:
                break
        entry.txns.extend(txns)
        return batch, working, entry

    def _next(self, until: float) -> Iterator[Waiting]:
        """What is to be planned, one at least, as long as there is time."""
        while self._queue:
            yield self._queue.pop()
            if self.clock() >= until:
                return

    def _told(self, working: Working, waiting: Waiting) -> bool:
        """Answer a request that has an outcome already, or none any more; true if that was all."""
        request = waiting.request
        if request is None or (waiting.dated and self._asked.is_new(request)):
            return False
        outcome = working.answer(request)
        if outcome is None:
            return False
        if self._is_given_up(waiting.partition, outcome):
            fail(waiting.done, _epoch_changed())
        else:
            _settle(waiting.done, outcome, waiting.partition, self)
        return True

    def _is_given_up(self, partition: Partition, outcome: Outcome) -> bool:
        """Whether an outcome of the partition's home is from a time before, of which the homes since know nothing."""
        move = self.places.moves.get(partition.id)
        return move is not None and moves.is_given_up(move, partition, outcome.revision)

    def _plan_one(self, working: Working, waiting: Waiting, now: float) -> Txn | None:
        """The transaction of one call; None if it was answered without one."""
        try:
            txn = self._attempt(working, waiting, now)
        except ControlPlaneError as error:
            fail(waiting.done, error)
            return None
        if txn is None:
            waiting.done.set_result(b"")
        return txn

    def _attempt(self, working: Working, waiting: Waiting, now: float) -> Txn | None:
        if now >= waiting.deadline:
            raise Unavailable("the deadline passed before the call was planned", reason="DEADLINE")
        self._room(working, waiting)
        tx = Tx(
            working.view,
            waiting.partition,
            working.revision + 1,
            actor=waiting.actor,
            action=waiting.action,
            reason=waiting.reason,
            at_ms=working.at_ms,
        )
        try:
            reply = waiting.feature(tx)
        except (Refused, NotFound, errors.Compacted) as refusal:
            return tx.seal(waiting.request, refusal=refusal)
        if reply is None:
            return None
        txn = tx.seal(waiting.request, reply.SerializeToString(deterministic=True))
        flaw = machine.malformed(txn)
        if flaw:
            raise Invalid(f"the transaction is malformed: {flaw}", reason="TRANSACTION_MALFORMED")
        return txn

    def _room(self, working: Working, waiting: Waiting) -> None:
        """Ordinary writes stop while there is still room to stop agents. Raises `Refused`, which is not replicated."""
        room = self._quota_bytes + (limits.QUOTA_RESERVED_BYTES if waiting.reserved else 0)
        if working.live_bytes > room:
            raise Refused(
                f"the region holds {working.live_bytes} bytes, its quota is {self._quota_bytes}",
                reason="STORE_FULL",
                hint="raise quota_bytes in the region file, or erase workflows for good; kill switches still work",
            )
        if self._free_bytes is not None and not waiting.reserved and self._free_bytes() < limits.DISK_FREE_BYTES_MIN:
            raise Refused(
                "the disks of this region are nearly full",
                reason="DISK_FULL",
                hint="make room on the nodes' disks; kill switches still work",
            )

    def _answer(self, waiting: Waiting, outcome: Outcome) -> bool:
        """Tell a call what became of it; false if it is to be planned again."""
        if outcome.verdict == Outcome.CONFLICT:
            self._conflicts += 1
            waiting.attempts += 1
            if waiting.attempts < limits.PLAN_ATTEMPTS_MAX:
                return False
        _settle(waiting.done, outcome, waiting.partition, self)
        return True

    def _took(self, applied: Applied) -> None:
        self._state = applied.state
        self._recent.took(applied)
        self._marks[applied.state.revision] = applied.state.hash
        if len(self._marks) > _MARKS_KEPT:
            self._marks.popitem(last=False)
        self.abroad.took(self.store, applied.changed, self._current_at)
        outdated = self.places.took(applied.changed)
        self.engaged.took(applied.changed)
        # Also when nothing changed: a refusal has a revision too, and watchers and readers wait for it.
        self._watches.took(applied)
        for before in outdated:
            self._watches.outdate(scope_of(before))
        for listener in self._applied_listeners:
            listener(applied)

    # -- reads

    def _submit_read(self, call: Call, done: asyncio.Future[bytes]) -> None:
        run, header = self._reading(call)
        _check_consistency(header)
        read = _Read(call.deadline, run, done, _no_turn)
        if header.consistency == api.LINEARIZABLE:
            read.late = _no_majority
            self._await(read, self._readers, limits.QUEUE_CALLS_MAX)
            self._reads.append(read)
            self._read_work.set()
        elif header.consistency == api.AT_LEAST and header.revision > self._state.revision:
            read.late = partial(_not_reached, header.revision)
            self._await(read, self._ahead, limits.READS_AHEAD_MAX)
            self._read_later(header.revision, read)
        else:
            if not self._turns.room:
                self._await(read, self._readers, limits.QUEUE_CALLS_MAX)
            self._turns.run(partial(self._answer_read, read, self.fresh_ms))

    def _await(self, read: _Read, among: set[asyncio.Future[bytes]], most: int) -> None:
        """Let a read wait, one of `most`, until its own deadline. Raises `Unavailable` if there is no room."""
        if len(among) >= most:
            raise overloaded()
        among.add(read.done)
        left = max(0.0, read.deadline - self.clock())
        timer = asyncio.get_running_loop().call_later(left, self._turns.run, partial(_give_up, read))

        def ended(done: asyncio.Future[bytes]) -> None:
            timer.cancel()
            among.discard(done)

        read.done.add_done_callback(ended)

    def _reading(self, call: Call) -> tuple[Callable[[int], bytes], api.RequestHeader]:
        """What answers a read, given the age of the state it reads."""
        method = features.READS.get(call.method)
        if method is None:
            return self._reading_of_node(call)
        request: Any = call.read(method.request)
        place = self._reading_at(
            lambda: self.partition(request.header, method.kind.name, call, glass=call.glass), call, request
        )

        def run(age_ms: int) -> bytes:
            partition = place()
            reader = Reader(self.store, partition, self._state.revision)
            reply = method.run(reader, request)
            age_ms = self._age_of(partition, age_ms)
            # What other regions stop is told to this region's callers: it is not this one's to show to others.
            if partition.home == self.region and call.region in ("", self.region):
                if isinstance(reply, api.CheckSwitchesReply):
                    reply.stopped_by.extend(self._stopped_elsewhere(reader, call.environment).stopping(request.subject))
                elif isinstance(reply, api.ListSwitchesReply) and not request.after:
                    reply.stops.extend(self._stopped_elsewhere(reader, call.environment).stops(request.engaged_only))
            return self.header(self._state.revision, partition.epoch, age_ms) + reply.SerializeToString()

        return run, request.header

    def _reading_at(self, meant: Callable[[], Partition], call: Call, request: Any) -> Callable[[], Partition]:
        """Where a read finds the partition that it means, to be asked when it is run; raises now if nowhere.

        The home may move while a read waits, and what it left behind is removed.
        """
        asked = meant()
        if request.header.consistency != api.LINEARIZABLE:
            self._shown(asked)
            return lambda: self._shown(meant())
        self._home_only(asked, call, request)

        def still_home() -> Partition:
            self._check_still_home(asked)
            return asked

        return still_home

    def _age_of(self, partition: Partition, own_ms: int) -> int:
        """How old what is here of a partition is, given the age of this node's state."""
        if partition.home == self.region:
            return own_ms
        return min(own_ms + self.abroad.age_ms(partition, self.clock()), AGE_UNKNOWN_MS)

    def _reading_of_node(self, call: Call) -> tuple[Callable[[int], bytes], api.RequestHeader]:
        request: Any
        if call.method == "GetOutcome":
            request = call.read(api.GetOutcomeRequest)
            before = self._outcome_before_the_move(call, request)
            if before is not None:
                return before, request.header
            partition = self.partition(request.header, "workflow", call)
            self._home_only(partition, call, request)
            return lambda age_ms: self._get_outcome(call, request.header, partition, age_ms), request.header
        if call.method == "ListEvents":
            request = call.read(api.ListEventsRequest)
            place = self._reading_at(
                lambda: self._partition_of_kinds(request.header, request.kinds, call), call, request
            )

            def run(age_ms: int) -> bytes:
                partition = place()
                age_ms = self._age_of(partition, age_ms)
                reply = self._watches.list_events(self.store, partition, request, self._state.revision)
                return self.header(self._state.revision, partition.epoch, age_ms) + reply.SerializeToString()

            return run, request.header
        raise Invalid(f"unknown method {call.method[:64]!r}", reason="METHOD_UNKNOWN")

    def _outcome_before_the_move(self, call: Call, request: api.GetOutcomeRequest) -> Callable[[int], bytes] | None:
        """What tells of a request that was made while the partition was at home here, if it has an outcome here."""
        name = request.header.partition or self._defaults.get((call.environment, "workflow"), "")
        move = self.places.moves.get(name)
        if move is None or move.phase != Move.LEFT:
            return None
        rid = RequestId(identity=call.actor, nonce=request.header.request_id)
        kept = machine.outcome_of(self.store, rid, self._state.revision, self._state.outcome_span)
        if kept is None:
            return None
        if moves.is_given_up(move, move.partition, kept.revision):
            raise _epoch_changed()
        return lambda age_ms: self._told_outcome(kept, self._state.revision, move.partition, age_ms)

    def _told_outcome(self, kept: Outcome, revision: int, partition: Partition, age_ms: int) -> bytes:
        known = api.GetOutcomeReply.COMMITTED if kept.verdict == Outcome.COMMITTED else api.GetOutcomeReply.REFUSED
        if kept.verdict == Outcome.FORGOTTEN:
            # What it said was erased.
            known = api.GetOutcomeReply.FORGOTTEN
        reply = api.GetOutcomeReply(known=known, revision=kept.revision, reason=kept.refusal.reason)
        return self.header(revision, partition.epoch, age_ms) + reply.SerializeToString()

    def _get_outcome(self, call: Call, header: api.RequestHeader, partition: Partition, age_ms: int) -> bytes:
        rid = self._request_id(call, header, partition)
        revision, span = self._state.revision, self._state.outcome_span
        kept = machine.outcome_of(self.store, rid, revision, span)
        if kept is not None:
            if self._is_given_up(partition, kept):
                raise _epoch_changed()
            return self._told_outcome(kept, revision, partition, age_ms)
        # What is not known here may be, where the home is now.
        self._check_still_home(partition)
        if rid.since < machine.outcome_floor(revision, span):
            reply = api.GetOutcomeReply(known=api.GetOutcomeReply.FORGOTTEN)
        else:
            reply = api.GetOutcomeReply(known=api.GetOutcomeReply.NOT_APPLIED)
        return self.header(revision, partition.epoch, age_ms) + reply.SerializeToString()

    def _read_later(self, revision: int, read: _Read) -> None:
        reached = self._watches.reached(revision)

        def ended(_: asyncio.Future[bytes]) -> None:
            self._watches.give_up(reached)

        def begin(_: asyncio.Future[None]) -> None:
            if not reached.cancelled():
                read.late = _no_turn
                self._turns.run(partial(self._answer_read, read, self.fresh_ms))

        read.done.add_done_callback(ended)
        reached.add_done_callback(begin)

    async def consistent(self, header: api.RequestHeader, deadline: float) -> None:
        """Wait until this node's state is as new as `header` asks for, or raise `Unavailable` at the deadline."""
        if header.consistency == api.LINEARIZABLE:
            await self.log.barrier(timeout_s=max(0.0, deadline - self.clock()))
        elif header.consistency == api.AT_LEAST and header.revision > self._state.revision:
            reached = self._watches.reached(header.revision)
            try:
                async with asyncio.timeout(max(0.0, deadline - self.clock())):
                    await reached
            except TimeoutError:
                raise _not_reached(header.revision) from None
            finally:
                self._watches.give_up(reached)

    async def _read_forever(self) -> None:
        while True:
            await self._read_work.wait()
            self._read_work.clear()
            waiting, self._reads = self._reads, []
            self._own(self._read_round(waiting))
            # The next round starts when this turn of the loop is over: reads that arrive together share one.
            await asyncio.sleep(0)

    async def _read_round(self, waiting: list[_Read]) -> None:
        began = self.clock()
        try:
            await self.log.barrier(timeout_s=max(0.0, max(read.deadline for read in waiting) - began))
        except ControlPlaneError as error:
            for read in waiting:
                self._turns.run(partial(fail, read.done, error))
            return
        for read in waiting:
            read.late = _no_turn
            self._turns.run(partial(self._answer_read, read, lambda: ceil(1000 * (self.clock() - began))))

    def _answer_read(self, read: _Read, age_ms: Callable[[], int]) -> None:
        if read.done.done():
            return
        try:
            read.done.set_result(read.run(age_ms()))
        except ControlPlaneError as error:
            read.done.set_exception(error)
        except Exception as error:
            read.done.set_exception(self.broken(error))

    # -- odds and ends

    def header(self, revision: int, epoch: int, age_ms: int) -> bytes:
        """An encoded reply with nothing but its header; what follows it on the wire merges into the same message."""
        tail = self._header_tails.get(epoch)
        if tail is None:
            rest = api.ReplyHeader(region=self.region, epoch=epoch, node=self.name)
            tail = self._header_tails[epoch] = rest.SerializeToString()
        # The numbers differ from reply to reply, the rest does not: fields 1 and 3 of ReplyHeader by hand.
        packed = b"\x08" + _varint(revision) + (b"\x18" + _varint(age_ms) if age_ms else b"") + tail
        return b"\x0a" + _varint(len(packed)) + packed

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(limits.PROGRESS_MS_MIN / 1000)
            self._watches.tick(self.clock())

    def _role_changed(self) -> None:
        status = self.log.status()
        self._ready = status.ready
        if not status.ready and self._queue:
            self._fail_waiting(_not_leader(status))

    def _fail_waiting(self, error: ControlPlaneError) -> None:
        fail_all(self._queue.clear(), error)

    def _own(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        return self.needs(task)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.failed.done():
            # Nothing below may raise but the eight errors, and those were answered: an invariant is broken.
            self.failed.set_exception(error)


def _seen(failed: asyncio.Future[None]) -> None:
    """Count the failure as noticed: whoever ends the process may have another reason already."""
    if not failed.cancelled():
        failed.exception()


def _require(tx: Tx, region: str, elections: Partition | None, fence: api.Fence) -> None:
    if elections is None:
        raise Invalid("the environment has no partition for elections", reason="PARTITION_MISSING")
    if elections.home != region:
        raise Refused(
            "the elections of this environment are at home in another region than what is written",
            reason="FENCE_ELSEWHERE",
            hint="move the partition of the elections too: cpctl partition list",
            home=elections.home,
        )
    moves.check_open(tx, region, elections)
    leases.require(tx, scope_of(elections), elections.epoch, fence)


def _give_up(read: _Read) -> None:
    fail(read.done, read.late())


def _sort(method: str) -> Sort:
    if features.WRITES[method].kind.reserved:
        return Sort.STOP
    return Sort.DUE if method in _DUE else Sort.ORDINARY


def _settle(done: asyncio.Future[bytes], outcome: Outcome, partition: Partition, node: Node) -> None:
    if done.done():
        return
    if outcome.verdict == Outcome.COMMITTED:
        done.set_result(node.header(outcome.revision, partition.epoch, 0) + outcome.reply)
        return
    try:
        _raise(outcome)
    except ControlPlaneError as error:
        done.set_exception(error)


def _raise(outcome: Outcome) -> NoReturn:
    if outcome.verdict == Outcome.REFUSED:
        raise unpack_refusal(outcome.refusal, outcome.revision)
    if outcome.verdict == Outcome.FORGOTTEN:
        raise _forgotten()
    if outcome.verdict == Outcome.REUSED:
        raise reused()
    if outcome.verdict == Outcome.MALFORMED:
        raise Invalid(f"the transaction is malformed: {outcome.detail}", reason="TRANSACTION_MALFORMED")
    raise Contended("others kept writing what this request read", reason="CONTENDED", hint="ask again")


def _forgotten() -> OutcomeUnknown:
    return OutcomeUnknown(
        "the outcome of this request is no longer kept",
        reason="OUTCOME_FORGOTTEN",
        hint="read the present state, and decide again; do not repeat the request",
    )


def _epoch_changed() -> OutcomeUnknown:
    return OutcomeUnknown(
        "the partition has begun a new epoch since this request was first made",
        reason="EPOCH_CHANGED",
        hint="read the present state, and decide again",
    )


def unpack_refusal(refusal: Refusal, revision: int) -> ControlPlaneError:
    """A replicated refusal as the error it was, as of a revision."""
    kinds = {kind.__name__: kind for kind in (Refused, NotFound, errors.Compacted)}
    details: dict[str, str | int] = {detail.name: detail.value for detail in refusal.details}
    details["as_of"] = revision
    return kinds.get(refusal.error, Refused)(refusal.message, reason=refusal.reason, hint=refusal.hint, **details)


def _not_leader(status: LogStatus) -> Unavailable:
    return Unavailable(
        "this node does not lead the region",
        reason="NOT_LEADER" if status.leader else "NO_LEADER",
        leader=status.leader or "",
    )


def _digest(method: str, request: Any) -> bytes:
    """Names what a request asks for: the same for every attempt, whatever its caller has seen between them."""
    header: api.RequestHeader = request.header
    since, epoch = header.since if header.HasField("since") else None, header.epoch
    header.ClearField("since")
    header.ClearField("epoch")
    asked: bytes = request.SerializeToString(deterministic=True)
    header.epoch = epoch
    if since is not None:
        header.since = since
    return hashlib.sha256(method.encode() + b"\0" + asked).digest()[:16]


def _no_majority() -> Unavailable:
    return Unavailable("no majority confirmed this node's state in time", reason="NO_MAJORITY")


def _no_turn() -> Unavailable:
    return Unavailable(
        "this node had too much else to read in time", reason="OVERLOADED", hint="back off, then ask again"
    )


def _not_reached(revision: int) -> Unavailable:
    return Unavailable(f"this node has not reached revision {revision}", reason="REVISION_NOT_REACHED")


def _check_consistency(header: api.RequestHeader) -> None:
    if header.consistency not in api.Consistency.values():
        raise Invalid("unknown consistency", reason="CONSISTENCY_UNKNOWN", field="header.consistency")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
