"""The side that follows: copies what a peer shares into this region's own log.

Theory of operation. While this node leads it keeps one stream for each peer and reach. What arrives becomes
transactions of the system's own that write the copies and move the cursor together, several under way at once, each of
which holds only if all before it did. So whatever goes wrong, the stream is dropped and another begins where the
durable cursor stands.

1. Nothing is remembered between streams but what is in the log.
2. What arrives is checked before it is planned: sizes, order, that it can be read, and that it lies in a partition of
   that peer and reach. That peers write only their own records is checked again by the transaction
   (`features.federation`).
3. A copy is acknowledged when it is in this region's log, and then with a digest that is written down here first.
4. An unreachable peer costs one attempt at a time, with growing pauses, and holds up nothing else.
5. The age of a copy is counted from when the question left here whose answer said that there is nothing more.
6. Copies take at most half of the room that is kept for kill switches.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Final

from google.protobuf.message import DecodeError

from controlplane import features, limits
from controlplane.errors import ControlPlaneError, Denied, Invalid, OutcomeUnknown, Refused, Unavailable
from controlplane.features import federation, moves, partitions
from controlplane.federation.links import FOLLOW, INGRESS, PARTITIONS_CHANGED, Link, leads, packed
from controlplane.federation.passages import COPY, LISTING, PAGE_RECORDS, PROGRESS, Counted, Side, counted
from controlplane.federation.ways import Stream
from controlplane.geography import lawful
from controlplane.kernel import keys
from controlplane.kernel.transaction import Tx, scope_of
from controlplane.node import AGE_UNKNOWN_MS, Node
from controlplane.v1 import federation_pb2 as wire
from controlplane.v1.api_pb2 import RequestHeader
from controlplane.v1.records_pb2 import Cursor, Partition, Passage, Reach

_LOG = logging.getLogger(__name__)

IN_FLIGHT_MAX: Final = 64
IN_FLIGHT_BYTES: Final = 4 * 1024 * 1024
ACK_S: Final = 1.0
ACK_MESSAGES: Final = 1000

_PAUSE_MIN_S, _PAUSE_MAX_S, _PAUSE_DENIED_S = 0.05, 1.0, 60.0
_SILENCE_S = 5.0
_TIMEOUT_S = 5.0
_PARTITIONS_MAX = 256
_KEY_BYTES_MAX = 4096


_DOOR = "door"
_LAST = b"\xff\xff"
"""Stands for the end of the last page: no key is as high."""


class _Dropped(Exception):
    """This stream is of no further use, and nothing is wrong."""


@dataclass(slots=True)
class _Taken:
    """One message on its way into the log."""

    counted: Counted
    size: int
    again: Callable[[], asyncio.Future[bytes]]
    done: asyncio.Future[bytes]
    upto: bytes = b""


class Follower:
    """Keeps the copy of one reach of one peer up to date, while this node leads."""

    def __init__(self, node: Node, link: Link, reach: Reach, random: Random) -> None:
        """`random` spreads the pauses between attempts."""
        self._node, self._link, self._reach = node, link, reach
        self._random = random
        self._turn = 0
        self._change = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; idle unless this node leads."""
        self._node.log.on_change(self._change.set)
        self._link.on_severed(self._change.set)
        self._link.on_agreement(self._change.set)
        name = f"follow {self._link.region} {Reach.Name(self._reach)}"
        self._task = self._node.needs(asyncio.create_task(self._run(), name=name))

    async def stop(self) -> None:
        """End, after writing down what was taken."""
        self._stopping = True
        self._change.set()
        if self._task is not None:
            _, late = await asyncio.wait({self._task}, timeout=_TIMEOUT_S)
            for task in late:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _goes_on(self) -> bool:
        return not self._stopping and not self._link.severed and leads(self._node)

    async def _run(self) -> None:
        pause_s = _PAUSE_MIN_S
        while not self._stopping:
            self._change.clear()
            if not self._goes_on():
                await self._change.wait()
                continue
            began = self._node.clock()
            least_s = await self._attempt()
            if self._node.clock() - began > _PAUSE_MAX_S:
                pause_s = _PAUSE_MIN_S
            await self._pause(max(least_s, pause_s * self._random.uniform(0.5, 1.0)))
            pause_s = min(2 * pause_s, _PAUSE_MAX_S) if least_s >= 0 else _PAUSE_MIN_S

    async def _pause(self, pause_s: float) -> None:
        """Wait, but not while what the peer did not share is shared now."""
        shared = self._reach in self._link.receives
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                while self._goes_on() and (shared or self._reach not in self._link.receives):
                    self._change.clear()
                    await self._change.wait()

    async def _attempt(self) -> float:
        """Run one stream to its end. Returns for how long at least to wait: below 0 if nothing is wrong."""
        link, reach = self._link, self._reach
        ahead = f"ahead in {Reach.Name(reach)}"
        endpoint = link.peer.endpoints[self._turn % len(link.peer.endpoints)]

        agreed = False

        def welcomed() -> None:
            nonlocal agreed
            agreed = True
            link.resume(ahead)
            link.resume(_DOOR)
            link.prefer(endpoint)

        session = _Session(self._node, link, reach, endpoint, welcomed)
        try:
            await self._while_leading(session)
        except _Dropped:
            return -1.0
        except Denied as error:
            self._denied(error)
            return _PAUSE_DENIED_S
        except Refused as error:
            # Only as the answer to a hello: if both sides took the end of a stream for a dispute, it would never end.
            if error.reason == "LINK_PAUSED" and not agreed:
                link.dispute(str(error))
            elif error.reason == "CURSOR_AHEAD":
                link.pause(ahead, str(error))
                self._turn += 1
            self._heard(error, alive=False)
        except ControlPlaneError as error:
            self._turn += 1
            self._heard(error, alive=False)
        except Exception:
            # A defect in the handling of what a peer sent must not become this region's: say so, and try again.
            _LOG.exception("following %s failed", link.region)
            link.closed(INGRESS, reach, "a defect: see the log of the leader")
        else:
            link.closed(INGRESS, reach, "this node stopped following")
        return 0.0

    def _denied(self, error: Denied) -> None:
        """Somebody is there, and shares nothing of this reach, or does not let this region in at all."""
        link, shares_nothing = self._link, error.reason == "MAY_NOT_LEAVE"
        link.receives -= {self._reach}
        if not shares_nothing:
            self._turn += 1
            link.pause(_DOOR, f"{link.region} does not let this region in: {error}")
        self._heard(error, alive=shares_nothing)

    def _heard(self, error: ControlPlaneError, *, alive: bool) -> None:
        if alive:
            self._link.opened(INGRESS, self._reach)
        else:
            self._link.closed(INGRESS, self._reach, f"{error.reason}: {error}")

    async def _while_leading(self, session: _Session) -> None:
        running = asyncio.create_task(session.run())
        ended = asyncio.create_task(self._until_ended())
        try:
            await asyncio.wait({running, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            if not running.done():
                running.cancel()
            await asyncio.gather(running, ended, return_exceptions=True)
            await session.close()
        if not running.cancelled():
            running.result()

    async def _until_ended(self) -> None:
        while self._goes_on():
            self._change.clear()
            await self._change.wait()


class _Session:
    """One stream."""

    def __init__(self, node: Node, link: Link, reach: Reach, endpoint: str, on_welcome: Callable[[], None]) -> None:
        self._node, self._link, self._reach, self._endpoint = node, link, reach, endpoint
        self._on_welcome = on_welcome
        self._system = partitions.system(node.region)
        self._carrier = federation.carrier(link.region, reach)
        self._stream: Stream | None = None
        self._partitions: dict[tuple[str, int], Partition] = {}
        self._late: list[Partition] = []
        self._cursor = self._durable()
        self._side = Side(Passage.INGRESS, link.region, reach, self._cursor.epoch)
        self._acknowledged = self._expected = self._cursor.revision
        self._listed = self._cursor.listed
        self._taking: deque[_Taken] = deque()
        self._taken: deque[Counted] = deque()
        self._settled = asyncio.Event()
        self._full = asyncio.Event()
        self._sending = asyncio.Lock()

    async def run(self) -> None:
        """Follow until the stream ends. Raises why."""
        cursor, link = self._cursor, self._link
        self._stream = link.ways.stream(self._endpoint, FOLLOW)
        hello = wire.FollowHello(
            terms=packed(link.terms),
            reach=self._reach,
            epoch=cursor.epoch,
            revision=cursor.revision,
            listing=cursor.listing,
            listed=cursor.listed,
            began=cursor.began,
        )
        await self._send(wire.FollowRequest(hello=hello))
        await self._welcomed(await self._read())
        work = [
            asyncio.create_task(each) for each in (self._receive(), self._settle(), self._acknowledge(), self._ask())
        ]
        try:
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in work:
                if task.done():
                    task.result()
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    async def close(self) -> None:
        """Hang up, wait for what is on its way into the log, and write down what came."""
        if self._stream is not None:
            self._stream.cancel()
        if self._taking:
            await asyncio.wait([each.done for each in self._taking], timeout=_TIMEOUT_S)
        while self._taking and self._is_in(self._taking[0]):
            measure = self._taking.popleft().counted
            if measure.sort != PROGRESS:
                self._taken.append(measure)
        while self._taken and leads(self._node):
            try:
                await self._write_down(self._next_span())
            except ControlPlaneError as error:
                _LOG.error("it could not be written down what came from %s: %s", self._link.region, error)

    # -- the beginning

    def _durable(self) -> Cursor:
        return federation.cursor_at(self._node.store, self._node.region, self._link.region, self._reach)

    async def _welcomed(self, reply: wire.FollowReply) -> None:
        if not reply.HasField("welcome"):
            raise Invalid("the first answer is not a welcome", reason="WELCOME_MISSING")
        welcome, link, cursor = reply.welcome, self._link, self._cursor
        agreement = link.meet(welcome.terms)
        if agreement.paused:
            raise Refused("; ".join(agreement.pauses), reason="LINK_PAUSED")
        if self._reach not in agreement.receives:
            raise Denied(f"{link.region} shares nothing of this reach", reason="MAY_NOT_LEAVE")
        if cursor.revision > reply.revision:
            raise Refused(
                f"{self._node.region} has copied up to revision {cursor.revision} of {link.region}, which is at"
                f" {reply.revision}: was it restored from a backup?",
                reason="CURSOR_AHEAD",
            )
        self._on_welcome()
        if not cursor.listing and self._is_shown_again(welcome.partitions):
            await self._begin_listing(reply)
        await self._learn(list(welcome.partitions), list(welcome.arriving))
        await self._hear(welcome.elsewhere)
        if cursor.revision < welcome.oldest:
            await self._begin_listing(reply)
        link.opened(INGRESS, self._reach)

    def _is_shown_again(self, found: Iterable[Partition]) -> bool:
        """Whether one of these was shown no longer: what happened in it meanwhile the cursor has passed by."""
        known = self._node.abroad.partitions
        withdrawn = {(each.id, each.home, each.epoch) for each in known.values() if each.withdrawn}
        return any((each.id, each.home, each.epoch) in withdrawn for each in found)

    async def _learn(self, found: list[Partition], arriving: list[Partition]) -> None:
        if len(found) + len(arriving) > _PARTITIONS_MAX:
            raise Invalid("too many partitions", reason="WELCOME_MALFORMED")
        peer, reach = self._link.region, self._reach
        for partition in (*found, *arriving):
            if not federation.may_share(partition, peer, reach) or not self._is_lawful(partition):
                raise Invalid(f"{peer} does not share such a partition", reason="PARTITION_FOREIGN")
        self._partitions = {(each.id, each.epoch): each for each in (*found, *arriving)}
        self._late = found
        await self._learn_late()
        shared, known = frozenset(each.id for each in found), self._node.abroad.partitions
        if any(federation.is_gone(each, peer, reach, shared) for each in known.values()):
            await self._transact(
                self._system, "WithdrawPartitions", lambda tx: federation.withdraw(tx, peer, reach, shared)
            )

    async def _learn_late(self) -> None:
        """Remember the partitions that are not remembered yet: those that moved, when their copy is whole."""
        known, peer, reach = self._node.abroad.partitions, self._link.region, self._reach
        self._late = [each for each in self._late if not _is_known(known.get(each.id), each)]
        if self._late:
            found = self._late
            await self._transact(self._system, "LearnPartitions", lambda tx: federation.learn(tx, peer, reach, found))
            self._late = [each for each in self._late if not _is_known(known.get(each.id), each)]

    async def _hear(self, elsewhere: Iterable[Partition]) -> None:
        """Where a third region is the home by now of what this one takes itself to be the home of, stop at once.

        So it does with what it is taking over. Where this one itself is said to be the home: see `federation.hear`.
        """
        node = self._node
        own = {**node.partitions, **{each.id: each for each in node.places.arriving()}}
        found = []
        for each in elsewhere:
            known = own.get(each.id) if each.home != node.region else node.places.routed(each.id)
            if known is not None and moves.newer(each, known) and each.former and self._is_lawful(each):
                found.append(each)
        if found:
            await self._transact(self._system, "HearOfPartitions", lambda tx: federation.hear(tx, found))

    def _is_lawful(self, partition: Partition) -> bool:
        """Whether the region that created the partition may have it at the home that it is said to have."""
        return lawful(self._node.atlas, moves.creator(partition.id), partition.reach, partition.home)

    async def _begin_listing(self, reply: wire.FollowReply) -> None:
        cursor, region, revision, restored = self._cursor, self._node.region, reply.revision, reply.welcome.restored
        await self._transact(
            self._carrier,
            "BeginListing",
            lambda tx: federation.begin_listing(tx, region, cursor, max(1, revision), restored),
        )
        # The listing goes over a stream that says so.
        raise _Dropped

    # -- what comes

    async def _receive(self) -> None:
        while True:
            reply = await self._read()
            if reply.HasField("transaction"):
                await self._room()
                self._take_transaction(reply)
            elif reply.HasField("page"):
                await self._room()
                self._take_page(reply.page)
            elif reply.WhichOneof("reply") == "progress":
                self._take_progress(reply)
            else:
                raise Invalid("a message of no known sort", reason="REPLY_MALFORMED")

    async def _room(self) -> None:
        while len(self._taking) >= IN_FLIGHT_MAX or sum(each.size for each in self._taking) > IN_FLIGHT_BYTES:
            self._settled.clear()
            await self._settled.wait()
        held = self._node.status()
        if held.live_bytes > held.quota_bytes + limits.QUOTA_RESERVED_BYTES // 2:
            raise Unavailable("this region's store is full: nothing more is copied", reason="STORE_FULL")

    def _take_transaction(self, reply: wire.FollowReply) -> None:
        revision, records, after = reply.revision, list(reply.transaction.records), self._expected
        if revision <= after or not 0 < len(records) < limits.WRITES_PER_TXN_MAX:
            raise Invalid("transactions out of order, or too large", reason="TRANSACTION_MALFORMED")
        partition = self._partition_of(records[0].key)
        scope = scope_of(partition)
        for each in records:
            if each.origin.revision != revision or not each.key.startswith(scope):
                raise Invalid("a record that is not of its transaction", reason="TRANSACTION_MALFORMED")
            _check_readable(each)
        region = self._node.region
        self._expected = revision
        self._take(
            counted(COPY, revision, records),
            reply.ByteSize(),
            partition,
            lambda tx: federation.take_transaction(tx, region, revision, records, after=after),
        )

    def _take_page(self, page: wire.SharedPage) -> None:
        partition = self._partitions.get((page.partition, page.epoch or 1)) if page.partition else self._carrier
        if partition is None or page.after != self._listed or not page.after < page.upto:
            raise Invalid("pages out of order", reason="PAGE_MALFORMED")
        if len(page.records) > PAGE_RECORDS or len(page.upto) > _KEY_BYTES_MAX:
            raise Invalid("a page that is too large", reason="PAGE_MALFORMED")
        scope, former = scope_of(partition), page.after
        for each in page.records:
            if not (former < each.key <= page.upto and each.key.startswith(scope) and each.HasField("value")):
                raise Invalid("a record that is not of its page", reason="PAGE_MALFORMED")
            _check_readable(each)
            former = each.key
        region, revision = self._node.region, self._cursor.revision
        self._listed = page.upto
        self._take(
            counted(LISTING, revision, page.records),
            page.ByteSize(),
            partition,
            lambda tx: federation.take_page(tx, region, page),
            _LAST if page.last else page.upto,
        )

    def _take(
        self,
        measure: Counted,
        size: int,
        partition: Partition,
        feature: Callable[[Tx], RequestHeader | None],
        upto: bytes = b"",
    ) -> None:
        def again() -> asyncio.Future[bytes]:
            return self._node.transact(partition, f"Take{measure.sort.title()}", feature, timeout_s=_TIMEOUT_S)

        if measure.sort != PROGRESS:
            self._link.transactions[self._reach, INGRESS] += 1
        self._taking.append(_Taken(measure, size, again, again(), upto))
        self._settled.set()

    def _take_progress(self, reply: wire.FollowReply) -> None:
        """Note how fresh the copy is; about once a second, and only what is an answer to a question of this stream."""
        if not reply.asked or reply.revision < self._expected:
            return
        region, revision, after = self._node.region, reply.revision, self._expected
        self._expected = revision
        asked_s, node = reply.asked / 1000, self._node

        def note(tx: Tx) -> RequestHeader | None:
            age_ms = reply.age_ms + max(0, round((node.clock() - asked_s) * 1000))
            return federation.note_progress(tx, region, revision, min(age_ms, AGE_UNKNOWN_MS), after=after)

        self._take(counted(PROGRESS, revision, []), 0, self._carrier, note)

    def _partition_of(self, key: bytes) -> Partition:
        try:
            at = keys.decode(key) if len(key) <= _KEY_BYTES_MAX else None
            partition = self._partitions.get((at.partition, at.epoch)) if at is not None else None
        except (ValueError, UnicodeDecodeError):
            partition = None
        if partition is None:
            # It may be new: the next stream begins with all there are.
            raise Invalid("a record of a partition that was not announced", reason="PARTITION_UNKNOWN")
        return partition

    # -- what has come

    async def _settle(self) -> None:
        """Follow what is on its way into the log, in order. Raises if any of it fails."""
        while True:
            while not self._taking:
                self._settled.clear()
                await self._settled.wait()
            taken = self._taking[0]
            await asyncio.wait({taken.done})
            if taken.counted.sort == LISTING:
                await self._finish_page(taken)
            elif taken.done.result() == b"":
                raise _moved()
            self._taking.popleft()
            self._settled.set()
            if any(each.since <= self._durable().revision for each in self._late):
                await self._learn_late()
            if taken.counted.sort != PROGRESS:
                self._taken.append(taken.counted)
            if len(self._taken) >= ACK_MESSAGES or taken.upto == _LAST:
                self._full.set()

    async def _finish_page(self, taken: _Taken) -> None:
        """See a page to its end: what it deletes is not in it, and can take several transactions."""
        taken.done.result()
        while not self._is_in(taken):
            again = taken.again()
            await asyncio.wait({again})
            if again.result() == b"" and not self._is_in(taken):
                raise _moved()

    def _is_in(self, taken: _Taken) -> bool:
        """Whether the whole message is in the log."""
        if not taken.done.done() or taken.done.cancelled() or taken.done.exception() is not None:
            return False
        if taken.counted.sort != LISTING:
            return taken.done.result() != b""
        cursor = self._durable()
        return not cursor.listing or (taken.upto != _LAST and cursor.listed >= taken.upto)

    async def _acknowledge(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ACK_S):
                    await self._full.wait()
            self._full.clear()
            while self._taken:
                span = self._next_span()
                await self._write_down(span)
                passage = self._side.passage(self._acknowledged, span)
                if passage.sort == COPY:
                    self._acknowledged = passage.upto
                await self._send(wire.FollowRequest(ack=wire.FollowAck(passage=passage, messages=len(span))))

    def _next_span(self) -> list[Counted]:
        """What is acknowledged next: as much as is of one sort."""
        sort, span = self._taken[0].sort, []
        while self._taken and self._taken[0].sort == sort:
            span.append(self._taken.popleft())
        return span

    async def _write_down(self, span: list[Counted]) -> None:
        passage = self._side.passage(self._acknowledged, span)
        if passage.records:
            # What was begun here is not given up: the span would be missing from the record.
            await asyncio.shield(
                self._transact(self._system, "RecordPassage", lambda tx: federation.record_passage(tx, passage))
            )

    # -- the wire

    async def _ask(self) -> None:
        """Ask from time to time whether there is more."""
        while True:
            asked = max(1, int(self._node.clock() * 1000))
            await self._send(wire.FollowRequest(asked=asked))
            await asyncio.sleep(ACK_S)

    async def _transact(self, partition: Partition, action: str, feature: Callable[[Tx], RequestHeader | None]) -> None:
        await self._node.transact(partition, action, feature, timeout_s=_TIMEOUT_S)

    async def _send(self, request: wire.FollowRequest) -> None:
        assert self._stream is not None
        async with self._heard_of(), self._sending:
            await self._stream.write(request.SerializeToString())

    async def _read(self) -> wire.FollowReply:
        assert self._stream is not None
        async with self._heard_of():
            encoded = await self._stream.read()
        try:
            return wire.FollowReply.FromString(encoded)
        except DecodeError:
            raise Invalid("not a FollowReply", reason="REPLY_MALFORMED") from None

    @contextlib.asynccontextmanager
    async def _heard_of(self) -> AsyncIterator[None]:
        """The other side does its part in time, or this stream is of no use."""
        try:
            async with asyncio.timeout(_SILENCE_S):
                yield
        except TimeoutError:
            raise Unavailable(f"{self._link.region} says nothing", reason="SILENCE") from None
        except Unavailable as error:
            if error.reason == PARTITIONS_CHANGED:
                # The next stream says which they are.
                raise _Dropped from error
            raise


def _is_known(known: Partition | None, partition: Partition) -> bool:
    return known is not None and (known == partition or moves.newer(known, partition))


def _moved() -> OutcomeUnknown:
    return OutcomeUnknown("the cursor stands elsewhere: begin anew", reason="CURSOR_MOVED")


def _check_readable(record: wire.Shared) -> None:
    """Whoever reads a copy takes it apart, and what cannot be would end every node that tries."""
    try:
        kind = features.KINDS.get(keys.decode(record.key).kind)
        if kind is not None and record.HasField("value"):
            kind.message.FromString(record.value)
    except (ValueError, DecodeError):
        raise Invalid("a record that nobody can read", reason="RECORD_MALFORMED") from None
