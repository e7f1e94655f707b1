"""The side that is followed: shows a peer what it may hold a copy of, and nothing else.

Theory of operation. The peer's leader opens a stream for each reach and says where its cursor stands. From there on it
is sent what lies in one range of keys, the domain of this region and that reach: first a listing in the order of keys,
if it is new or too far behind, then one message for each transaction, whole and in order. Nothing is queued: a stream
is a cursor over the events, and a slow reader reads later.

1. Only the leader serves, and only after the grant is in the log.
2. Before anything leaves, both sides' terms are compared; as soon as a later hello disagrees, every stream of that peer
   ends. So does each when leadership or the grant is lost.
3. What is read is the key range of the home and the reach, from the key itself: there is no filter that could be
   forgotten. Each key is looked at once more on its way out. Who wrote a record, and why, is stripped
   (`features.federation.shared`).
4. The follower acknowledges what it has on its disks, with a digest over what it saw. The exporter compares it with its
   own, and only then writes down that it passed. What was sent and never acknowledged is written down as unconfirmed.
5. What waits for an acknowledgement is bounded; beyond it nothing is sent.
6. Of the range only partitions are shown that are at home here, or are about to be. When that changes, every stream
   ends and begins anew, and says so first. So what a former home wrote after it was one does not leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, Final, NamedTuple, Protocol, Self

from google.protobuf.message import DecodeError

from controlplane.errors import (
    Compacted,
    ControlPlaneError,
    Denied,
    Fatal,
    Invalid,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from controlplane.features import erasure, federation, moves, partitions, restorations
from controlplane.federation.links import EGRESS, PARTITIONS_CHANGED, Link, Links, leads, packed
from controlplane.federation.passages import COPY, LISTING, PAGE_RECORDS, UNCONFIRMED, Counted, Side, counted
from controlplane.geography import SHARED, exported
from controlplane.kernel import keys, machine
from controlplane.kernel.machine import Applied
from controlplane.kernel.transaction import scope_of
from controlplane.node import AGE_UNKNOWN_MS, Node
from controlplane.v1 import federation_pb2 as wire
from controlplane.v1.records_pb2 import Grant, Partition, Passage, Reach, Retention
from controlplane.v1.state_pb2 import Event

_LOG = logging.getLogger(__name__)

PAGE_BYTES: Final = 512 * 1024
UNCONFIRMED_MAX: Final = 4096
"""Messages that were sent and are not acknowledged."""
PROGRESS_S: Final = 1.0

_READ_RECORDS = 256
_HELLO_S = 5.0
_TIMEOUT_S = 5.0
_RETRY_S = 0.25
_END = b"\xff"


class Stream(Protocol):
    """The part of a gRPC servicer context that carries encoded messages."""

    async def read(self) -> Any:
        """The next message, or `grpc.aio.EOF`."""

    async def write(self, message: bytes) -> None:
        """Send one; returns when there is room for the next."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a follower stands when its stream begins."""

    link: Link
    reach: Reach
    epoch: int
    revision: int
    listing: bool
    listed: bytes
    began: int


class Exporter:
    """Serves the followers of other regions."""

    def __init__(self, node: Node, links: Links) -> None:
        self._node, self._links = node, links
        self._system = partitions.system(node.region)
        own = scope_of(self._system)
        self._grants = own + keys.text(federation.GRANT.name)
        self._placing = (own + keys.text(moves.MOVE.name), own + keys.text(federation.FOREIGN.name))
        self._streams: dict[tuple[str, Reach], _Export] = {}
        self._granted_in: int | None = None
        self._change = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._writing: set[asyncio.Task[None]] = set()
        self._stopping = False

    def start(self) -> None:
        """Begin to serve; idle unless this node leads."""
        self._node.on_applied(self._took)
        self._node.log.on_change(self._role_changed)
        for link in self._links:
            link.on_dispute(self._end_disputed)
            link.on_severed(self._end_where_it_may_not)
        self._task = self._node.needs(asyncio.create_task(self._grant_forever(), name="grants"))

    def drain(self) -> None:
        """End every stream, and open no more."""
        self._stopping = True
        for stream in tuple(self._streams.values()):
            stream.end(Unavailable("this node is stopping", reason="STOPPING"))

    async def stop(self) -> None:
        """End, and write down what was sent."""
        self.drain()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._writing:
            await asyncio.wait(self._writing, timeout=_TIMEOUT_S)

    async def serve(self, region: str, stream: Stream) -> None:
        """Serve one stream of a node of `region`, whose certificate was checked, to its end.

        Raises `Refused` (LINK_PAUSED, CURSOR_AHEAD, PASSAGE_DIFFERS), `Denied` (MAY_NOT_LEAVE, TERMS_OF_ANOTHER),
        `Compacted` (the follower lists anew), `Unavailable` (not here, or not now) or `Invalid`.
        """
        link = self._links.get(region)
        if link is None:
            raise Denied("the caller's region is no peer of this one", reason="PEER_UNKNOWN")
        place = await self._placed(link, await self._hello(stream))
        export = _Export(self, self._node, place, stream)
        former = self._streams.get((region, place.reach))
        if former is not None:
            former.end(Unavailable("a newer stream of this region is open", reason="STREAM_REPLACED"))
        self._streams[region, place.reach] = export
        link.opened(EGRESS, place.reach)
        try:
            await export.run()
        finally:
            if self._streams.get((region, place.reach)) is export:
                del self._streams[region, place.reach]
                link.closed(EGRESS, place.reach, f"{region} follows no more")
            self._own(export.write_down_the_rest())

    def check(self, link: Link, reach: Reach) -> None:
        """Return if `reach` may leave by `link` at this moment. Raises `Unavailable` or `Refused`."""
        if self._stopping:
            raise Unavailable("this node is stopping", reason="STOPPING")
        if not leads(self._node):
            leader = self._node.log.status().leader or ""
            raise Unavailable("this node does not lead the region", reason="NOT_LEADER", leader=leader)
        self._links.admit(link.region)
        if link.disputed:
            raise Refused(link.state[1], reason="LINK_PAUSED", hint="make the region files of both sides agree")
        if not federation.granted(self._node.store, self._node.region, link.region, reach):
            raise Unavailable("no grant for this is written down", reason="GRANT_MISSING")

    def oldest(self) -> int:
        """The revision after which all events are kept; never 0, so that who has copied nothing lists."""
        scope = scope_of(self._system)
        key = keys.within(scope, partitions.RETENTION.name, partitions.RETENTION_NAME)
        event = machine.event_at(self._node.store, key)
        return max(1, Retention.FromString(event.value).event_floor if event else 0)

    async def write_down(self, passage: Passage) -> None:
        """Have it in the log that something passed."""
        await self._node.transact(
            self._system,
            "RecordPassage",
            lambda tx: federation.record_passage(tx, passage),
            timeout_s=_TIMEOUT_S,
        )

    # -- the beginning of a stream

    async def _hello(self, stream: Stream) -> wire.FollowHello:
        try:
            async with asyncio.timeout(_HELLO_S):
                request = parse(await stream.read())
        except TimeoutError:
            raise Invalid("no hello arrived", reason="HELLO_MISSING") from None
        if request is None or not request.HasField("hello"):
            raise Invalid("the first message is not a hello", reason="HELLO_MISSING")
        return request.hello

    async def _placed(self, link: Link, hello: wire.FollowHello) -> _Place:
        if not leads(self._node):
            self.check(link, hello.reach)
        if hello.began > hello.revision:
            raise Invalid("a copy that began after what it has", reason="HELLO_MALFORMED")
        if hello.terms.region != link.region:
            raise Denied("the terms are not those of the caller's region", reason="TERMS_OF_ANOTHER")
        agreement = link.meet(hello.terms)
        if agreement.paused:
            raise Refused(
                "; ".join(agreement.pauses), reason="LINK_PAUSED", hint="make the region files of both sides agree"
            )
        if hello.reach not in agreement.sends:
            raise Denied(
                f"{self._node.region} lets nothing of this reach leave for {link.region}",
                reason="MAY_NOT_LEAVE",
                hint="`may_leave` of the peer in the region file says what may",
            )
        self.check(link, hello.reach)
        source = f"{link.region} is ahead in {Reach.Name(hello.reach)}"
        if hello.revision > self._node.revision:
            # A leader that is about to learn that another one leads has not seen everything.
            await self._node.log.barrier(timeout_s=_TIMEOUT_S)
        if hello.revision > self._node.revision:
            why = (
                f"{link.region} has copied up to revision {hello.revision} of {self._node.region}, which is at"
                f" {self._node.revision}: was it restored from a backup?"
            )
            link.pause(source, why)
            raise Refused(why, reason="CURSOR_AHEAD")
        link.resume(source)
        return _Place(link, hello.reach, hello.epoch, hello.revision, hello.listing, hello.listed, hello.began)

    # -- what ends streams

    def _took(self, applied: Applied) -> None:
        for changed in applied.changed:
            for stream in self._streams.values():
                if changed.key.startswith(stream.domain):
                    stream.wake.set()
            if changed.key.startswith(self._grants):
                self._end_where_it_may_not()
            if changed.key.startswith(self._placing):
                self._end_outdated()

    def _end_outdated(self) -> None:
        for stream in tuple(self._streams.values()):
            if stream.shown != Shown.by(self._node, stream.place.reach):
                stream.end(Unavailable("there are other partitions to share now", reason=PARTITIONS_CHANGED))

    def _role_changed(self) -> None:
        self._change.set()
        if not leads(self._node):
            self._end_where_it_may_not()

    def _end_disputed(self) -> None:
        self._end_where_it_may_not()

    def _end_where_it_may_not(self) -> None:
        for stream in tuple(self._streams.values()):
            try:
                self.check(stream.place.link, stream.place.reach)
            except ControlPlaneError as error:
                stream.end(error)

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    # -- grants

    async def _grant_forever(self) -> None:
        """After each takeover, have the log say what may leave, as the map of this node says."""
        while True:
            self._change.clear()
            term = self._node.log.status().term if leads(self._node) else None
            if term is not None and term != self._granted_in:
                if not await self._write_grants():
                    await asyncio.sleep(_RETRY_S)
                    continue
                self._granted_in = term
            await self._change.wait()

    async def _write_grants(self) -> bool:
        try:
            for wanted in self._wanted_grants():
                await self._node.transact(
                    self._system,
                    "Grant",
                    lambda tx, wanted=wanted: federation.grant(tx, wanted),  # type: ignore[misc]
                    timeout_s=_TIMEOUT_S,
                )
        except ControlPlaneError as error:
            _LOG.warning("grants could not be written, and will be tried again: %s", error)
            return False
        return True

    def _wanted_grants(self) -> list[Grant]:
        atlas = self._node.atlas
        wanted = {
            (link.region, reach): Grant(
                peer=link.region,
                jurisdiction=link.jurisdiction,
                reach=reach,
                open=reach in exported(atlas, link.region),
            )
            for link in self._links
            for reach in SHARED
        }
        start, end = keys.children(keys.RECORD + self._grants)
        for _, encoded in self._node.store.scan(start, end):
            kept = Grant.FromString(Event.FromString(encoded).value)
            if (kept.peer, kept.reach) not in wanted:
                kept.open = False
                wanted[kept.peer, kept.reach] = kept
        # What closes comes first.
        return sorted(wanted.values(), key=lambda grant: grant.open)


class Shown(NamedTuple):
    """What a stream says of partitions when it begins."""

    home: list[Partition]
    arriving: list[Partition]
    elsewhere: list[Partition]

    @classmethod
    def by(cls, node: Node, reach: Reach) -> Self:
        """What is to be said now of those of this reach."""
        places = node.places
        every = (node.partitions.values(), places.arriving(), places.elsewhere())
        return cls(*(sorted((p for p in each if p.reach == reach), key=scope_of) for each in every))


class _Export:
    """One stream."""

    def __init__(self, exporter: Exporter, node: Node, place: _Place, stream: Stream) -> None:
        self.place = place
        self.domain = keys.domain(node.region, Reach.Name(place.reach))
        self.wake = asyncio.Event()
        self._exporter, self._node, self._stream = exporter, node, stream
        self.shown = Shown.by(node, place.reach)
        self._partitions = sorted([*self.shown.home, *self.shown.arriving], key=scope_of)
        self._scopes = tuple(map(scope_of, self._partitions))
        self._side = Side(Passage.EGRESS, place.link.region, place.reach, place.epoch)
        self._sent: deque[Counted] = deque()
        self._confirmed = place.revision
        self._room = asyncio.Event()
        self._asked = 0
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self, error: ControlPlaneError) -> None:
        """Send nothing more."""
        if not self._ended.done():
            self._ended.set_exception(error)

    async def run(self) -> None:
        """Send and hear acknowledgements until one side ends it. Raises why, if it was this one."""
        work = [asyncio.create_task(self._send()), asyncio.create_task(self._hear())]
        try:
            await asyncio.wait({*work, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            for done in (self._ended, *work):
                if done.done():
                    done.result()
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            self._ended.cancel()
            if not self._ended.cancelled():
                self._ended.exception()

    # -- sending

    async def _send(self) -> None:
        place, node = self.place, self._node
        # Before it hears anything: it may begin a listing then, and what it has had until now would never be told.
        await self._make_up()
        welcome = wire.FollowWelcome(
            terms=packed(place.link.terms),
            oldest=self._exporter.oldest(),
            partitions=self.shown.home,
            arriving=self.shown.arriving,
            elsewhere=self.shown.elsewhere,
            restored=restorations.newest(node.store, node.region).revision,
        )
        await self._write(wire.FollowReply(revision=node.revision, welcome=welcome))
        if place.revision < welcome.oldest:
            # It begins a listing, and says so in its next hello: what would be sent now it could not use.
            raise _compacted(welcome.oldest)
        if place.listing:
            await self._list()
        cursor, due = place.revision, 0.0
        while True:
            self.wake.clear()
            asked, age_ms = self._asked, node.fresh_ms()
            found, reached, whole = self._read(cursor)
            for revision, records in found:
                reply = wire.FollowReply(revision=revision, age_ms=AGE_UNKNOWN_MS)
                reply.transaction.records.extend(records)
                await self._write_counted(reply, counted(COPY, revision, records))
            cursor = reached
            if whole and (asked or node.clock() >= due):
                due = node.clock() + PROGRESS_S
                self._asked = 0 if self._asked == asked else self._asked
                await self._write(wire.FollowReply(revision=cursor, age_ms=age_ms, progress=True, asked=asked))
            if whole:
                await self._until_woken(due - node.clock())

    async def _make_up(self) -> None:
        """Write down what an earlier leader sent and fell before it could: the follower has it, so it has left."""
        place = self.place
        recorded = self._recorded()
        if place.listing and not place.listed:
            return
        # A listing holds what was there long before; and all that is written down of one ends where it began.
        after = 0 if place.listing or place.began >= recorded else recorded
        if place.revision <= after:
            return
        sent = machine.events(self._node.store, self.domain, after, place.revision)
        known = after >= self._exporter.oldest() and next(sent, None) is None
        # What was sent may have been erased since: nothing else tells of it then.
        if known and not erasure.erased_since(self._node.store, self._partitions, after):
            return
        await self._exporter.write_down(
            Passage(
                direction=Passage.EGRESS,
                counterparty=place.link.region,
                reach=place.reach,
                epoch=place.epoch,
                after=after,
                upto=place.revision,
                sort=UNCONFIRMED,
            )
        )

    def _recorded(self) -> int:
        """The home's revision up to which the log says what left over this link."""
        name = federation.passages_of(Passage.EGRESS, self.place.link.region, self.place.reach, self.place.epoch)
        key = scope_of(partitions.system(self._node.region)) + keys.text(federation.PASSAGE.name) + name.encode()
        start, end = keys.children(keys.RECORD + key)
        newest = next(iter(self._node.store.scan(start, end, reverse=True)), None)
        return 0 if newest is None else Passage.FromString(Event.FromString(newest[1]).value).upto

    async def _list(self) -> None:
        """Send all records in the order of their keys, page by page; each is read when there is room for it."""
        place, after = self.place, self.place.listed
        while True:
            page = self._page(after)
            sent = counted(LISTING, place.revision, page.records)
            await self._write_counted(wire.FollowReply(revision=self._node.revision, page=page), sent)
            if page.last:
                return
            after = page.upto

    def _page(self, after: bytes) -> wire.SharedPage:
        for n, partition in enumerate(self._partitions):
            end = scope_of(partition) + _END
            if end > after:
                return self._page_of(partition, after, final=n + 1 == len(self._partitions))
        return wire.SharedPage(after=after, upto=_END, last=True)

    def _page_of(self, partition: Partition, after: bytes, *, final: bool) -> wire.SharedPage:
        scope = scope_of(partition)
        end = scope + _END
        first_row, end_row = keys.RECORD + max(scope, after + b"\0"), keys.RECORD + end
        events: list[Event] = []
        size = 0
        for _, encoded in self._node.store.scan(first_row, end_row):
            if events and (len(events) == PAGE_RECORDS or size + len(encoded) > PAGE_BYTES):
                end = events[-1].key
                break
            events.append(Event.FromString(encoded))
            size += len(encoded)
        return wire.SharedPage(
            partition=partition.id,
            epoch=partition.epoch,
            after=after,
            upto=end,
            records=federation.shared(events),
            last=final and end == scope + _END,
        )

    def _read(self, after: int) -> tuple[list[tuple[int, list[wire.Shared]]], int, bool]:
        """Some whole transactions after a revision, the revision up to which that is all, and if it is the newest."""
        if after < self._exporter.oldest():
            raise _compacted(self._exporter.oldest())
        last = self._node.revision
        found: list[tuple[int, list[wire.Shared]]] = []
        count = size = 0
        events = machine.events(self._node.store, self.domain, after, last)
        for revision, together in groupby(events, key=lambda event: event.revision):
            records = federation.shared(event for event in together if event.key.startswith(self._scopes))
            if not records:
                # Nothing in it leaves: to the follower this revision is one of those that change nothing.
                continue
            found.append((revision, records))
            count, size = count + len(records), size + sum(len(each.value) for each in records)
            if count >= _READ_RECORDS or size >= PAGE_BYTES:
                return found, revision, revision == last
        return found, last, True

    async def _write_counted(self, reply: wire.FollowReply, sent: Counted) -> None:
        while len(self._sent) >= UNCONFIRMED_MAX:
            self._room.clear()
            await self._room.wait()
        self._exporter.check(self.place.link, self.place.reach)
        self._check_domain(reply)
        # Before, not after: what may have left has to be accounted for.
        self._sent.append(sent)
        self.place.link.transactions[self.place.reach, EGRESS] += 1
        await self._write(reply)

    def _check_domain(self, reply: wire.FollowReply) -> None:
        """Whatever went wrong below, nothing of another home or reach leaves. Raises `Fatal`."""
        records = reply.page.records if reply.HasField("page") else reply.transaction.records
        if not all(each.key.startswith(self.domain) and each.key.startswith(self._scopes) for each in records):
            raise Fatal(f"a record that may not leave for {self.place.link.region} was about to: nothing was sent")

    async def _write(self, reply: wire.FollowReply) -> None:
        await self._stream.write(reply.SerializeToString())

    async def _until_woken(self, timeout_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self.wake.wait()

    # -- hearing

    async def _hear(self) -> None:
        while (request := parse(await self._stream.read())) is not None:
            if request.HasField("ack"):
                await self._acknowledged(request.ack)
            elif request.WhichOneof("request") == "asked":
                self._asked = request.asked
                self.wake.set()
            else:
                raise Invalid("a second hello", reason="HELLO_TWICE")

    async def _acknowledged(self, ack: wire.FollowAck) -> None:
        if not 0 < ack.messages <= len(self._sent):
            raise Invalid("an ack of what was not sent", reason="ACK_MALFORMED")
        span = list(islice(self._sent, ack.messages))
        ours = self._side.passage(self._confirmed, span)
        theirs = Passage()
        theirs.CopyFrom(ack.passage)
        theirs.direction, theirs.counterparty = ours.direction, ours.counterparty
        if theirs != ours:
            self.place.link.differs(self.place.reach)
            raise Refused(
                f"what {self.place.link.region} says it received is not what was sent", reason="PASSAGE_DIFFERS"
            )
        if ours.records:
            # Until it is in the log it is one of those that are written down when the stream ends: that may be now.
            await self._exporter.write_down(ours)
        if ours.sort == COPY:
            self._confirmed = ours.upto
        for _ in span:
            self._sent.popleft()
        self._room.set()

    async def write_down_the_rest(self) -> None:
        """Record what was sent and not acknowledged, in order. It may have arrived, or not.

        What is recorded tells the next stream up to where all is: behind what could not be written nothing may be.
        """
        for sort, together in groupby(self._sent, key=lambda sent: sent.sort):
            passage = self._side.passage(self._confirmed, list(together))
            passage.sort = UNCONFIRMED
            if not passage.records or not leads(self._node):
                continue
            try:
                await self._exporter.write_down(passage)
            except (Unavailable, OutcomeUnknown, Refused) as error:
                _LOG.error("it could not be written down what left for %s (%s): %s", passage.counterparty, sort, error)
                return


def _compacted(oldest: int) -> Compacted:
    return Compacted(
        "what comes next is no longer kept, or was never sent",
        reason="EVENTS_COMPACTED",
        hint="list anew",
        oldest=oldest + 1,
    )


def parse(encoded: Any) -> wire.FollowRequest | None:
    """A message that arrived; None if no more will. Raises `Invalid`."""
    if not isinstance(encoded, bytes):
        return None
    try:
        return wire.FollowRequest.FromString(encoded)
    except DecodeError:
        raise Invalid("not a FollowRequest", reason="REQUEST_MALFORMED") from None
