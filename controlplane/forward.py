"""Handing calls on to the leader, and waiting with them while there is none.

A caller talks to any node; only the leader plans. So a call that arrives elsewhere is forwarded, once, over a session
that this node keeps open to every other node of its region, and while no leader is known it waits. A caller does not
notice a failover unless its deadline is shorter than one.

1. A request waits in one queue, in order of arrival, and leaves it when this node leads or the leader can be reached.
   What wakes the queue is a change of leader or of a session, not the passing of time.
2. A forwarded request is never forwarded again: the node it reaches answers, or says NOT_LEADER, and then the first
   node routes it anew.
3. A request whose forward broke off, or whose leader fell, may have happened. It is sent again as it stands, which is
   safe because its request id names the request and not the attempt, whatever says meanwhile that nobody can be asked
   now. If its deadline passes first, the caller gets `OutcomeUnknown` (FORWARD_BROKEN), never `Unavailable`.
4. A request that was never sent stays definite: it ends as `Unavailable` (NO_LEADER).
5. What waits is bounded in number and in bytes, and a new leader takes it up in parts: it has more to do than that.
   Kill switches have room, in either, that nothing else takes.
6. When another node leads, requests still unanswered at the old one are routed anew: a leader that fell silent answers
   nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from controlplane import features, limits, status
from controlplane.credentials import Credentials
from controlplane.errors import Invalid, OutcomeUnknown, Unavailable
from controlplane.node import Call
from controlplane.replication import Log, LogStatus, Role
from controlplane.v1 import api_pb2 as api

SESSION: Final = "/controlplane.v1.Agents/Session"

ROUTED_ANEW: Final = frozenset(
    {"NOT_LEADER", "NOT_LEADING", "NO_LEADER", "ENTRY_DISCARDED", "LOG_NOT_RUNNING", "STOPPING"}
)
"""Reasons of `Unavailable` that another attempt, perhaps elsewhere, can cure within the caller's deadline.

SINCE_IN_FUTURE is none of them. It passes as soon as the leader has caught up; or never, if the caller made it up or
the region was started over, and who waited here for that would keep others waiting.
"""
SETTLED_DOUBTS: Final = frozenset({"OUTCOME_FORGOTTEN", "EPOCH_CHANGED", "INTERNAL"})
"""Reasons of `OutcomeUnknown` that asking again cannot cure."""

_TICK_S = 0.05
_BACKOFF_MIN_S = 0.02
_BACKOFF_MAX_S = 0.5
# What the envelope around an operation may add to its request.
_ENVELOPE_BYTES = 1024
_ROUTED_AT_ONCE = 128


class Request(ABC):
    """One call on its way to whoever answers it. Exactly one of `answered` and `failed` is called, once."""

    __slots__ = ("call", "doubt", "final")

    def __init__(self, call: Call, *, final: bool = False) -> None:
        self.call = call
        self.final = final
        """It was forwarded to this node, which must not forward it again."""
        self.doubt: OutcomeUnknown | None = None
        """Set once an attempt was made whose outcome is not known."""

    @abstractmethod
    def answered(self, reply: bytes) -> None:
        """Take the encoded reply message."""

    @abstractmethod
    def failed(self, error: BaseException) -> None:
        """Take one of the eight errors, or a defect."""


class Forwarder:
    """A session with one other node, kept open for as long as this node runs."""

    def __init__(
        self,
        address: str,
        credentials: Credentials | None,
        clock: Callable[[], float],
        on_change: Callable[[], None],
        on_error: Callable[[Request, BaseException], None],
    ) -> None:
        self._address = address
        self._credentials = credentials
        self._clock = clock
        self._on_change = on_change
        self._on_error = on_error
        self._task: asyncio.Task[None] | None = None
        self._unsent: deque[Request] = deque()
        self._sent: dict[int, Request] = {}
        self._bytes = 0
        self._next_id = 1
        self._wake = asyncio.Event()
        self._stopping = False
        self.up = False

    @property
    def waiting(self) -> int:
        """Requests handed over and not answered yet."""
        return len(self._unsent) + len(self._sent)

    @property
    def waiting_bytes(self) -> int:
        """The bytes of these requests."""
        return self._bytes

    def send(self, request: Request) -> None:
        """Forward `request`. It comes back through `on_error` if this session breaks."""
        self._unsent.append(request)
        self._bytes += _size(request)
        self._wake.set()

    def recall(self) -> list[Request]:
        """Take back, oldest first, what may be sent again; what may have happened already says so."""
        sent = {key: each for key, each in self._sent.items() if _is_repeatable(each)}
        for key, request in sent.items():
            del self._sent[key]
            request.doubt = _broken()
        recalled = [*sent.values(), *self._unsent]
        self._unsent.clear()
        self._bytes = _sizes(self._sent.values())
        return recalled

    def expire(self) -> None:
        """Fail what has passed its deadline without an answer."""
        now = self._clock()
        for identifier in [key for key, each in self._sent.items() if each.call.deadline <= now]:
            self._sent.pop(identifier).failed(_broken())
        late = [request for request in self._unsent if request.call.deadline <= now]
        if late:
            self._unsent = deque(request for request in self._unsent if request.call.deadline > now)
        self._bytes = _sizes(self._sent.values()) + _sizes(self._unsent)
        for request in late:
            request.failed(request.doubt or _no_leader())

    def start(self) -> asyncio.Task[None]:
        """Open the session, and open it again whenever it ends. Only a defect ends the task before `stop`."""
        self._task = asyncio.create_task(self._run())
        return self._task

    async def stop(self) -> None:
        """Close the session for good."""
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        backoff_s = _BACKOFF_MIN_S
        # A session that is cancelled may end with an error of gRPC's instead: then nobody would cancel this again.
        while True:
            began = self._clock()
            with contextlib.suppress(grpc.RpcError, DecodeError):
                await self._session()
            if self._stopping:
                return
            if self._clock() - began > _BACKOFF_MAX_S:
                backoff_s = _BACKOFF_MIN_S
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
            backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)

    async def _session(self) -> None:
        async with self._channel() as channel:
            stream: grpc.aio.StreamStreamCall[Any, Any] = channel.stream_stream(SESSION)()
            writer: asyncio.Task[None] | None = None
            try:
                async for encoded in stream:
                    if writer is None:
                        writer = asyncio.create_task(self._write(stream))
                        self._set_up(True)
                    self._take(encoded)
            finally:
                stream.cancel()
                if writer is not None:
                    writer.cancel()
                    await asyncio.gather(writer, return_exceptions=True)
                self._set_up(False)

    def _channel(self) -> grpc.aio.Channel:
        options = [
            ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX),
            ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
            ("grpc.keepalive_time_ms", 2_000),
            ("grpc.keepalive_timeout_ms", 2_000),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
        ]
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._address, options)
        return grpc.aio.secure_channel(self._address, self._credentials.of_client(), options)

    def _set_up(self, up: bool) -> None:
        self.up = up
        if not up:
            for request in self.recall():
                self._on_error(request, request.doubt or _no_leader())
            for identifier in tuple(self._sent):
                self._sent.pop(identifier).failed(_broken())
            self._bytes = _sizes(self._unsent)
        self._on_change()

    async def _write(self, stream: grpc.aio.StreamStreamCall[Any, Any]) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._unsent:
                await stream.write(self._envelope().SerializeToString())

    def _envelope(self) -> api.SessionRequest:
        message, room, now = api.SessionRequest(), limits.MESSAGE_BYTES_MAX, self._clock()
        while self._unsent:
            call = self._unsent[0].call
            room -= len(call.request) + _ENVELOPE_BYTES
            if room < 0 and message.operations:
                break
            message.operations.add(
                id=self._next_id,
                method=call.method,
                request=call.request,
                timeout_ms=max(1, int((call.deadline - now) * 1000)),
                on_behalf_of=call.actor,
            )
            self._sent[self._next_id] = self._unsent.popleft()
            self._next_id += 1
        return message

    def _take(self, encoded: bytes) -> None:
        for reply in api.SessionReply.FromString(encoded).replies:
            request = self._sent.pop(reply.id, None)
            if request is None:
                continue
            self._bytes -= _size(request)
            if reply.status:
                self._on_error(request, status.decode(reply.status))
            else:
                request.answered(reply.reply)


class Router:
    """Brings every call that only the leader may answer to the leader, here or elsewhere; see the rules above."""

    def __init__(
        self,
        name: str,
        plan: Callable[[Call], asyncio.Future[bytes]],
        log: Log,
        peers: Mapping[str, str],
        credentials: Credentials | None,
        clock: Callable[[], float],
    ) -> None:
        """`plan` answers a call while this node leads; `peers` are the other nodes' client addresses by name."""
        self._name, self._plan, self._log, self._clock = name, plan, log, clock
        self._forwarders = {
            peer: Forwarder(address, credentials, clock, self._flush, self.failed) for peer, address in peers.items()
        }
        self._waiting: deque[Request] = deque()
        self._waiting_bytes = 0
        self._flushing: asyncio.Handle | None = None
        self._leads = self._elected = self._stopped = False
        self._leader = ""
        self._task: asyncio.Task[None] | None = None
        self.forwarded = 0

    @property
    def waiting(self) -> int:
        """Requests that wait for a leader, or for its answer."""
        return len(self._waiting) + sum(each.waiting for each in self._forwarders.values())

    def start(self) -> list[asyncio.Task[None]]:
        """Follow the log, and open the sessions to the other nodes. Before `stop`, only defects end these tasks."""
        self._log.on_change(self._changed)
        self._changed()
        self._task = asyncio.create_task(self._tick_forever())
        return [self._task, *(forwarder.start() for forwarder in self._forwarders.values())]

    async def stop(self) -> None:
        """Close the sessions; whatever still waits ends now."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._leads, self._leader = False, ""
        await asyncio.gather(*(forwarder.stop() for forwarder in self._forwarders.values()))
        self._stopped = True
        if self._flushing is not None:
            self._flushing.cancel()
        while self._waiting:
            request = self._waiting.popleft()
            request.failed(request.doubt or _stopping())

    def submit(self, request: Request) -> None:
        """Have `request` answered. Those submitted in one turn of the loop reach the leader in that order."""
        if _size(request) > limits.REQUEST_BYTES_MAX:
            request.failed(_too_large(request))
            return
        # Nobody overtakes those who came earlier and still wait.
        if self._waiting or not self._route(request):
            self._wait(request)

    def failed(self, request: Request, error: BaseException) -> None:
        """Route `request` anew if that can cure `error`, which ended an attempt; else hand the error on."""
        if isinstance(error, OutcomeUnknown):
            request.doubt = error
        if not request.final and _is_curable(request, error):
            self._wait(request)
        else:
            request.failed(error)

    def _route(self, request: Request) -> bool:
        """Send `request` on its way; False if it has to wait."""
        if self._leads:
            self._plan(request.call).add_done_callback(partial(self._planned, request))
            return True
        if request.final and not self._elected:
            request.failed(_not_leader(self._leader))
            return True
        forwarder = self._forwarders.get(self._leader)
        if forwarder is None or not forwarder.up:
            return False
        if not _has_room(request, forwarder.waiting, forwarder.waiting_bytes):
            request.failed(request.doubt or _overloaded())
            return True
        self.forwarded += 1
        forwarder.send(request)
        return True

    def _planned(self, request: Request, answer: asyncio.Future[bytes]) -> None:
        if answer.cancelled():
            self.failed(request, _stopping())
            return
        error = answer.exception()
        if error is None:
            request.answered(answer.result())
        else:
            self.failed(request, error)

    def _wait(self, request: Request) -> None:
        if self._stopped:
            request.failed(request.doubt or _stopping())
        elif _has_room(request, len(self._waiting), self._waiting_bytes):
            self._waiting.append(request)
            self._waiting_bytes += _size(request)
        else:
            request.failed(request.doubt or _overloaded())

    def _changed(self) -> None:
        """The log has another leader, term or readiness."""
        found = _status_of(self._log)
        self._leads = found is not None and found.ready
        self._elected = found is not None and found.role is Role.LEADER
        leader = (found.leader or "") if found is not None else ""
        if leader and leader != self._leader:
            self._recall(leader)
        self._leader = leader
        self._flush()

    def _recall(self, leader: str) -> None:
        """Route anew what waits for answers of nodes that lead no more (rule 6)."""
        for name, forwarder in self._forwarders.items():
            if name != leader:
                for request in forwarder.recall():
                    self.failed(request, request.doubt or _no_leader())

    def _flush(self) -> None:
        """Route what waits: some now, the others in the next turns of the loop."""
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        waiting, self._waiting = self._waiting, deque()
        kept, routed = deque[Request](), 0
        while waiting and routed < _ROUTED_AT_ONCE:
            request = waiting.popleft()
            if self._route(request):
                routed += 1
                self._waiting_bytes -= _size(request)
            else:
                kept.append(request)
        if waiting:
            self._flushing = asyncio.get_running_loop().call_soon(self._flush)
        # All that is left may be much, and is not gone through again in every turn.
        waiting.extendleft(reversed(kept))
        waiting.extend(self._waiting)
        self._waiting = waiting

    def _expire(self, requests: Iterable[Request]) -> deque[Request]:
        now, kept = self._clock(), deque[Request]()
        for request in requests:
            if request.call.deadline > now:
                kept.append(request)
            else:
                request.failed(request.doubt or _no_leader())
        return kept

    async def _tick_forever(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._waiting = self._expire(self._waiting)
            self._waiting_bytes = _sizes(self._waiting)
            for forwarder in self._forwarders.values():
                forwarder.expire()
            self._flush()


def _is_curable(request: Request, error: BaseException) -> bool:
    if isinstance(error, Unavailable):
        # In doubt it says that this attempt never happened; an earlier one may have.
        return error.reason in ROUTED_ANEW or request.doubt is not None
    if isinstance(error, OutcomeUnknown):
        return _is_repeatable(request) and error.reason not in SETTLED_DOUBTS
    return False


def _is_repeatable(request: Request) -> bool:
    """Whether `request` may be sent twice: only what carries a request id."""
    return request.call.method in features.WRITES


def _has_room(request: Request, waiting: int, waiting_bytes: int) -> bool:
    """Whether one more may wait beside so many of so many bytes: kill switches have room that nobody else takes."""
    method = features.WRITES.get(request.call.method)
    share = 2 if method is not None and method.kind.reserved else 1
    room = waiting_bytes + _size(request) <= share * limits.QUEUE_BYTES_MAX
    return room and waiting < share * limits.QUEUE_CALLS_MAX


def _size(request: Request) -> int:
    return len(request.call.request)


def _sizes(requests: Iterable[Request]) -> int:
    return sum(map(_size, requests))


def _status_of(log: Log) -> LogStatus | None:
    try:
        return log.status()
    except Unavailable:
        return None


def _broken() -> OutcomeUnknown:
    return OutcomeUnknown(
        "the leader was asked and did not answer in time",
        reason="FORWARD_BROKEN",
        hint="ask again with the same request id",
    )


def _no_leader() -> Unavailable:
    return Unavailable("no leader could be reached in time", reason="NO_LEADER", hint="cpctl status shows the region")


def _too_large(request: Request) -> Invalid:
    return Invalid(
        f"the request takes {_size(request)} bytes; {limits.REQUEST_BYTES_MAX} are allowed", reason="REQUEST_TOO_LARGE"
    )


def _overloaded() -> Unavailable:
    return Unavailable("too many calls wait for a leader", reason="OVERLOADED", hint="back off, then ask again")


def _stopping() -> Unavailable:
    return Unavailable("this node is stopping", reason="STOPPING")


def _not_leader(leader: str) -> Unavailable:
    reason = "NOT_LEADER" if leader else "NO_LEADER"
    return Unavailable("this node does not lead the region", reason=reason, leader=leader)
