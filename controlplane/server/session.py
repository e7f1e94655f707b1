"""One session: many calls over one stream, answered as they are ready.

1. Operations are begun in the order in which they arrive, so writes of one session are planned in that order. They
   end in any order.
2. Whatever is ready when the writer wakes leaves in one message. The first message, and each after a change of
   leader, says where the leader is.
3. A caller is not read from while too much of its is in flight or its replies wait to be read: what one caller can
   make a node hold is bounded, and the bound pushes back on that caller alone. What fails and what is cancelled counts.
   Operations are begun a few in each turn of the event loop, however many one message holds.
   A node refuses reads when replies that nobody reads have taken all that it has for them; never a write's answer.
4. A watch is asked for its next message only while there is room for it.
5. What is wrong with one operation, be it a defect of this program, is that operation's answer. Only what makes the
   stream unreadable (garbage, an identifier used twice, more operations than a message may have) ends the session.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from functools import partial

import grpc.aio
from google.protobuf.message import DecodeError

from controlplane import features, limits
from controlplane.errors import Denied, Invalid, Unavailable
from controlplane.forward import Request
from controlplane.identity import Identity
from controlplane.node import Call
from controlplane.server.desk import EFFECTS, SESSION, STREAMS, Desk, Principal
from controlplane.server.shares import Context, full
from controlplane.v1 import api_pb2 as api

# What an envelope around one reply may add to it, and what a message holds besides replies.
_REPLY_BYTES = 32
_MESSAGE_BYTES = 4096
# What part of what is expected of a read each smaller reply takes away.
_FORGET = 8


class _Operation(Request):
    """One operation in flight."""

    __slots__ = ("identifier", "session")

    def __init__(self, session: Session, identifier: int, call: Call, final: bool) -> None:
        super().__init__(call, final=final)
        self.session, self.identifier = session, identifier

    def answered(self, reply: bytes) -> None:
        self.session.answered(self.identifier, self.call.method, reply)

    def failed(self, error: BaseException) -> None:
        self.session.failed(self.identifier, self.call.method, error)


class Session:
    """Serves one stream; `serve` returns when the caller has no more to ask and everything is answered."""

    def __init__(self, desk: Desk, caller: Identity, context: Context) -> None:
        self._desk, self._caller, self._context = desk, caller, context
        self._final = caller.role == "peer"
        self._principals: dict[str, Principal] = {} if self._final else {"": Principal(caller)}
        self._running: dict[int, asyncio.Task[None] | None] = {}
        self._reads = self._watches = 0
        self._ready: deque[tuple[int, bytes, bytes, bool]] = deque()
        self._ready_bytes = self._held_bytes = 0  # What is being written is held, but not ready any more.
        # What is begun before anything is known of a caller's reads is taken to be as large as they get.
        self._expected_bytes = limits.PAGE_BYTES_MAX
        self._over = False
        self._region_is_news = True
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._writing = False
        self._draining = False
        self._work.set()

    async def serve(self) -> None:
        """Read, run and answer until the caller is done, or until `drain`. Raises one of the eight errors, or gRPC's.

        gRPC's says that the stream is over.
        """
        self._desk.region.subscribe(self._region_changed)
        writer = asyncio.create_task(self._write())
        self._reader = asyncio.create_task(self._read())
        try:
            done, _ = await asyncio.wait({self._reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled():
                    task.result()
            await self._finish(writer)
            if self._draining:
                raise Unavailable("this node is stopping", reason="STOPPING", hint="open a session at another node")
        finally:
            self._desk.region.unsubscribe(self._region_changed)
            await self._abandon(writer, self._reader)

    def drain(self) -> None:
        """Read no more; end when everything begun is answered."""
        self._draining = True
        if self._reader is not None:
            self._reader.cancel()

    # -- answers

    def answered(self, identifier: int, method: str, reply: bytes) -> None:
        """Hand over the one reply of an operation."""
        if len(reply) > limits.MESSAGE_BYTES_MAX - _MESSAGE_BYTES:
            self.failed(identifier, method, _too_large())
            return
        if reply and method not in EFFECTS and not self._has_room(len(reply)):
            self.failed(identifier, method, full())
            return
        if method not in features.WRITES:
            self._expected_bytes = max(len(reply), self._expected_bytes - self._expected_bytes // _FORGET)
        self._desk.counts.calls[method, "ok"] += 1
        self._ended(identifier, method)
        self._push(identifier, reply, b"", False)

    def failed(self, identifier: int, method: str, error: BaseException) -> None:
        """Hand over why an operation failed."""
        self._ended(identifier, method)
        self._push(identifier, b"", self._desk.failure(method, error), False)

    def _ended(self, identifier: int, method: str) -> None:
        self._running.pop(identifier, None)
        if method not in features.WRITES:
            if method in STREAMS:
                self._watches -= 1
            else:
                self._reads -= 1
        self._room.set()

    def _push(self, identifier: int, reply: bytes, failure: bytes, more: bool) -> None:
        if self._over:
            return
        size = len(reply) + len(failure) + _REPLY_BYTES
        self._ready.append((identifier, reply, failure, more))
        self._ready_bytes += size
        self._held_bytes += size
        self._desk.outbox.hold(self._caller.uri, size)
        self._work.set()

    def _has_room(self, size: int = 1) -> bool:
        return self._desk.outbox.has_room(self._caller.uri, size)

    def _region_changed(self) -> None:
        self._region_is_news = True
        self._work.set()

    # -- reading

    async def _read(self) -> None:
        while True:
            encoded = await self._context.read()
            if encoded is grpc.aio.EOF:
                return
            for operation in _decoded(encoded).operations:
                await self._desk.intake.take()
                while self._is_full():
                    self._room.clear()
                    await self._room.wait()
                self._begin(operation)

    def _is_full(self) -> bool:
        return (
            len(self._running) + len(self._ready) >= limits.OPERATIONS_PER_SESSION_MAX
            or self._reads >= limits.READS_PER_SESSION_MAX
            or self._held_bytes + self._reads * self._expected_bytes >= limits.SESSION_REPLIES_BYTES_MAX
            # What this caller has to read yet makes room; without any the next read is refused instead.
            or (self._held_bytes > 0 and not self._has_room())
        )

    def _is_behind(self) -> bool:
        """Whether the caller has as much to read as may wait."""
        return (
            self._held_bytes >= limits.SESSION_REPLIES_BYTES_MAX
            or len(self._ready) >= limits.OPERATIONS_PER_SESSION_MAX
        )

    def _begin(self, operation: api.Operation) -> None:
        identifier, method = operation.id, operation.method
        if operation.cancel:
            self._cancel(identifier)
            return
        if identifier in self._running:
            raise Invalid("the identifier of an operation in flight was used again", reason="OPERATION_ID_REUSED")
        try:
            call = self._call(operation, method)
        except Exception as error:
            self._push(identifier, b"", self._desk.failure(method, error), False)
            return
        if method in STREAMS:
            self._follow(identifier, call)
            return
        if method not in EFFECTS and not self._has_room():
            self._push(identifier, b"", self._desk.failure(method, full()), False)
            return
        self._running[identifier] = None
        if method not in features.WRITES:
            self._reads += 1
        try:
            self._desk.run(_Operation(self, identifier, call, self._final))
        except Exception as error:
            # A defect in one operation. If it was answered before that showed, then that is its answer.
            if identifier in self._running:
                self.failed(identifier, method, error)

    def _call(self, operation: api.Operation, method: str) -> Call:
        principal = self._principals.get(operation.on_behalf_of) or self._meet(operation.on_behalf_of)
        if method not in principal.admitted:
            self._admit(principal, method)
        timeout_ms = operation.timeout_ms
        deadline = self._desk.deadline(timeout_ms / 1000 if timeout_ms else None)
        identity = principal.identity
        region = self._desk.foreign_region(identity)
        return Call(method, operation.request, principal.uri, identity.environment, deadline, region)

    def _meet(self, on_behalf_of: str) -> Principal:
        principal = Principal(self._desk.principal(self._caller, on_behalf_of))
        if len(self._principals) >= limits.OPERATIONS_PER_SESSION_MAX:
            self._principals.clear()
        self._principals[on_behalf_of] = principal
        return principal

    def _admit(self, principal: Principal, method: str) -> None:
        if method == SESSION:
            raise Invalid("a session holds no sessions", reason="METHOD_UNKNOWN")
        try:
            self._desk.admit(principal.identity, method)
        except Denied:
            self._desk.note_denial(principal.identity.region)
            raise
        principal.admitted.add(method)

    # -- streams

    def _follow(self, identifier: int, call: Call) -> None:
        if self._watches >= limits.WATCHES_PER_SESSION_MAX:
            refused = Unavailable("too many watches on this session", reason="WATCHES_FULL", hint="end some of them")
            self._push(identifier, b"", self._desk.failure(call.method, refused), False)
            return
        self._watches += 1
        task = asyncio.create_task(self._pump(identifier, call), name=call.method)
        self._running[identifier] = task
        task.add_done_callback(partial(self._followed, identifier, call.method))

    async def _pump(self, identifier: int, call: Call) -> None:
        async with contextlib.aclosing(await self._desk.stream(call)) as replies:
            async for reply in replies:
                if not self._has_room(len(reply)):
                    raise full()
                self._push(identifier, reply, b"", True)
                while self._is_behind():
                    self._room.clear()
                    await self._room.wait()

    def _followed(self, identifier: int, method: str, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if self._running.get(identifier) is not task:
            # It was cancelled when it had ended by itself: that was its end.
            return
        if error is None:
            self.answered(identifier, method, b"")
        else:
            self.failed(identifier, method, error)

    def _cancel(self, identifier: int) -> None:
        """End a stream; anything else goes on to its answer, and what has ended already is left alone."""
        stream = self._running.get(identifier)
        if stream is not None:
            stream.cancel()
            self.answered(identifier, stream.get_name(), b"")

    # -- writing

    async def _write(self) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while self._ready or self._region_is_news:
                self._writing = True
                message = self._message()
                leaving = self._held_bytes - self._ready_bytes
                await self._desk.outbox.write(self._context, message)
                self._writing = False
                self._release(leaving)
                self._room.set()

    def _release(self, size: int) -> None:
        self._held_bytes -= size
        self._desk.outbox.release(self._caller.uri, size)

    def _message(self) -> bytes:
        revision, age_ms = self._desk.revision_and_age()
        message = api.SessionReply(revision=revision, age_ms=age_ms)
        if self._region_is_news:
            self._region_is_news = False
            message.region.CopyFrom(self._desk.region.region())
        ready, room, add = self._ready, limits.MESSAGE_BYTES_MAX - _MESSAGE_BYTES, message.replies.add
        while ready:
            identifier, reply, failure, more = ready[0]
            size = len(reply) + len(failure) + _REPLY_BYTES
            if (size > room and message.replies) or len(message.replies) >= limits.OPERATIONS_PER_SESSION_MAX:
                break
            ready.popleft()
            room -= size
            self._ready_bytes -= size
            if failure:
                add(id=identifier, status=failure)
            else:
                add(id=identifier, reply=reply, more=more)
        return message.SerializeToString()

    # -- ending

    async def _finish(self, writer: asyncio.Task[None]) -> None:
        """Wait until what was begun is answered and the answers have left; streams just end."""
        for identifier, stream in list(self._running.items()):
            if stream is not None:
                stream.cancel()
                del self._running[identifier]
        settled = asyncio.create_task(self._settle())
        most_s = limits.CALL_TIMEOUT_MAX_S
        try:
            await asyncio.wait({writer, settled}, timeout=most_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Also when the caller goes away meanwhile, which cancels this.
            settled.cancel()
            await asyncio.gather(settled, return_exceptions=True)
        if writer.done():
            writer.result()

    async def _settle(self) -> None:
        while self._running or self._ready or self._writing:
            self._room.clear()
            await self._room.wait()

    async def _abandon(self, *tasks: asyncio.Task[None]) -> None:
        # What ends later has nobody to be told to.
        self._over = True
        self._release(self._held_bytes)
        streams = [task for task in self._running.values() if task is not None]
        for task in (*tasks, *streams):
            task.cancel()
        await asyncio.gather(*tasks, *streams, return_exceptions=True)


def _decoded(encoded: bytes) -> api.SessionRequest:
    most = limits.OPERATIONS_PER_SESSION_MAX
    try:
        # To take very many operations apart holds the event loop up for longer than to count them, and takes far more.
        if len(api.UnreadOperations.FromString(encoded).operations) > most:
            raise Invalid(f"a message holds at most {most} operations", reason="TOO_MANY_OPERATIONS")
        return api.SessionRequest.FromString(encoded)
    except DecodeError:
        raise Invalid("not a SessionRequest", reason="REQUEST_MALFORMED") from None


def _too_large() -> Invalid:
    return Invalid(
        f"the reply is larger than {limits.MESSAGE_BYTES_MAX} bytes",
        reason="REPLY_TOO_LARGE",
        hint="ask for fewer records at a time: set a smaller limit",
    )
