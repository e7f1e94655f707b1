"""One open stream to one node, and how to open it.

Calls that gather while a message is being written leave together in the next one. A session never decides what
becomes of a call: it hands every answer, and its own end, to its owner.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from pathlib import Path
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from controlplane import status
from controlplane.addresses import is_loopback
from controlplane.errors import ControlPlaneError, Denied, Invalid, OutcomeUnknown, Unavailable
from controlplane.limits import CALL_TIMEOUT_MAX_S, MESSAGE_BYTES_MAX, OPERATIONS_PER_SESSION_MAX
from controlplane.sdk.clock import Clock
from controlplane.v1 import api_pb2 as api

Credentials = str | Path | bytes
"""A file, or its contents."""

SESSION: Final = "/controlplane.v1.Agents/Session"

WAITING_MAX: Final = 1 << 16
"""Calls that wait for room on the stream, or for a stream."""
WINDOW: Final = OPERATIONS_PER_SESSION_MAX // 2
"""Calls in flight on one stream; the other half is for watches and for what a server still holds of calls given up."""
PACK_BYTES_MAX: Final = MESSAGE_BYTES_MAX * 3 // 4
OPERATION_BYTES: Final = 64
"""More than an operation's envelope takes."""
DIAL_TIMEOUT_S: Final = 1.0

_OPTIONS: Final[list[tuple[str, int | str]]] = [
    # A pool of its own: a fresh dial must not inherit the back-off of one that failed.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Retries are made by the channel, which knows what is safe.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
]


class Owner(Protocol):
    """Who decides (`Channel`)."""

    def heard(self, session: Session, message: api.SessionReply) -> None:
        """Take in one message."""

    def lost(self, session: Session) -> None:
        """Learn that the session has ended."""


class Stream(Protocol):
    """A long answer, such as a watch. It knows its place, so that it can be asked for again where it broke off."""

    def request(self) -> bytes:
        """Return the request for what has not been received yet; called at each start."""

    def receive(self, reply: bytes) -> None:
        """Take one message; must not block or raise."""

    def ended(self, error: ControlPlaneError) -> None:
        """Learn that it is over for good. Breaks and Unavailable are not: they start it again."""


class Call:
    """One call through all its attempts."""

    __slots__ = ("answer", "deadline", "doubt", "error", "method", "request", "sent_s", "tries", "writes")

    def __init__(
        self, method: str, request: bytes, deadline: float, answer: asyncio.Future[bytes], *, writes: bool
    ) -> None:
        self.method = method
        self.request = request
        self.deadline = deadline
        self.answer = answer
        self.writes = writes
        self.doubt = False
        self.tries = 0
        self.sent_s = 0.0
        self.error: ControlPlaneError | None = None

    def fail(self, error: ControlPlaneError) -> None:
        """End with `error`, unless it ended already."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def give_up(self, why: str, reason: str) -> None:
        """End without an answer (rule 3)."""
        kind = OutcomeUnknown if self.doubt else Unavailable
        last = f"; last answer: {self.error.reason}" if self.error else ""
        error = kind(f"{self.method}: {why}{last}", reason=reason)
        error.__cause__ = self.error
        self.fail(error)


class Session:
    """One open stream to one node."""

    def __init__(
        self, address: str, channel: grpc.aio.Channel, stream: Any, first: api.SessionReply, clock: Clock
    ) -> None:
        self.address = address
        self.region = first.region
        self.revision = first.revision
        self.in_flight: dict[int, Call] = {}
        self.streams: dict[int, Stream] = {}
        self._clock = clock
        self.opened_s = self.sent_s = self.heard_s = clock()
        self.probed = False
        self._channel = channel
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._outbox: deque[Call] = deque()
        self._controls: deque[api.Operation] = deque()
        self._wanted: asyncio.Future[None] | None = None
        self._last = 0
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def busy(self) -> bool:
        """Whether calls wait here for room or for an answer."""
        return bool(self.in_flight or self._outbox)

    def run(self, owner: Owner) -> None:
        """Begin to send and to hear, on behalf of `owner`."""
        self._tasks = [self._loop.create_task(self._read(owner)), self._loop.create_task(self._write(owner))]

    async def close(self) -> None:
        """End the stream and the connection; what is unanswered stays to be taken."""
        self._stream.cancel()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._channel.close()
        # gRPC keeps the connection until the last of its objects goes.
        del self._stream

    # Sending

    @property
    def unsent(self) -> int:
        """How many calls wait here to be sent."""
        return len(self._outbox)

    def send(self, call: Call) -> None:
        """Queue a call."""
        self._outbox.append(call)
        self._wake()

    def begin(self, stream: Stream) -> int:
        """Ask for a stream; returns its number here."""
        self._last += 1
        self.streams[self._last] = stream
        self._controls.append(api.Operation(id=self._last, method="Watch", request=stream.request()))
        self._wake()
        return self._last

    def cancel(self, number: int) -> None:
        """Tell the node that a stream is no longer wanted."""
        if self.streams.pop(number, None) is not None:
            self._controls.append(api.Operation(id=number, cancel=True))
            self._wake()

    def take_unanswered(self) -> list[Call]:
        """Return, and forget, what was sent and not answered, in the order it was sent."""
        calls, self.in_flight = list(self.in_flight.values()), {}
        return calls

    def take_unsent(self) -> list[Call]:
        """Return, and forget, what was never sent, in order."""
        calls = [call for call in self._outbox if not call.answer.done()]
        self._outbox.clear()
        return calls

    def _wake(self) -> None:
        wanted = self._wanted
        if wanted is not None:
            self._wanted = None
            if not wanted.done():
                wanted.set_result(None)

    async def _write(self, owner: Owner) -> None:
        """Send what has gathered, one message at a time. A write fails when the stream has ended."""
        try:
            while True:
                message = self._pack()
                if message is None:
                    self._wanted = self._loop.create_future()
                    await self._wanted
                else:
                    await self._stream.write(message)
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError):
            return
        finally:
            owner.lost(self)

    def _pack(self) -> api.SessionRequest | None:
        """Return the next message: streams first, then calls in order, as far as window and size allow."""
        room = WINDOW - len(self.in_flight)
        if not self._controls and (not self._outbox or room <= 0):
            return None
        now = self._clock()
        message = api.SessionRequest(operations=self._controls)
        self._controls.clear()
        size = message.ByteSize()
        add, outbox, in_flight = message.operations.add, self._outbox, self.in_flight
        while outbox and room > 0:
            call = outbox[0]
            size += len(call.request) + OPERATION_BYTES
            if size > PACK_BYTES_MAX and message.operations:
                break
            outbox.popleft()
            left_s = call.deadline - now
            if left_s <= 0 or call.answer.done():
                expire(call, now)
                continue
            self._last += 1
            timeout_ms = int(1000 * (left_s if left_s < CALL_TIMEOUT_MAX_S else CALL_TIMEOUT_MAX_S)) or 1
            add(id=self._last, method=call.method, request=call.request, timeout_ms=timeout_ms)
            call.sent_s = now
            in_flight[self._last] = call
            room -= 1
        self.sent_s = now
        return message

    # Hearing

    async def _read(self, owner: Owner) -> None:
        try:
            while (message := await self._stream.read()) is not grpc.aio.EOF:
                self.heard_s = self._clock()
                self.probed = False
                owner.heard(self, message)
                if self._outbox:
                    self._wake()
        except grpc.aio.AioRpcError:
            return
        finally:
            owner.lost(self)

    def silence_s(self, now: float) -> float:
        """How long something has been due without a word."""
        return now - max(self.heard_s, min(call.sent_s for call in self.in_flight.values()))

    @property
    def bytes_in_flight(self) -> int:
        """The size of what was sent and not answered."""
        return sum(len(call.request) for call in self.in_flight.values())

    def forgive(self, now: float) -> None:
        """Count silence from now on."""
        self.heard_s = now
        self.probed = False

    def expire(self, now: float) -> None:
        """End calls whose deadline has passed."""
        for number, call in list(self.in_flight.items()):
            if call.deadline <= now:
                # Its attempt is still out there.
                call.doubt |= call.writes
                expire(call, now)
                del self.in_flight[number]
        for call in self._outbox:
            expire(call, now)


class Dialer:
    """Opens sessions."""

    def __init__(self, tls: Tls | None, server_name: str | None, clock: Clock) -> None:
        self.tls = tls
        self._clock = clock
        self._options = list(_OPTIONS)
        if server_name is not None:
            self._options.append(("grpc.ssl_target_name_override", server_name))

    async def dial(self, address: str) -> Session:
        """Open a session and wait for the node's first word. Raises Unavailable, or Denied."""
        channel = (
            grpc.aio.insecure_channel(address, options=self._options)
            if self.tls is None
            else grpc.aio.secure_channel(address, self.tls(), options=self._options)
        )
        stream: Any = None
        try:
            stream = channel.stream_stream(
                SESSION,
                request_serializer=api.SessionRequest.SerializeToString,
                response_deserializer=api.SessionReply.FromString,
            )()
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                first: Any = await stream.read()
            if first is grpc.aio.EOF:
                raise Unavailable(f"{address} closed the session", reason="SESSION_REFUSED")
        except BaseException as error:
            await channel.close()
            # A closed channel dials on until the last of its objects goes, and connects when the node is back. What is
            # raised is kept for callers, so nothing of it may lead here but words.
            del channel
            stream = None
            _forget_frames(error)
            raise _dial_error(address, error) from error
        return Session(address, channel, stream, first, self._clock)


def credentials(
    ca: Credentials | None, cert: Credentials | None, key: Credentials | None, *, insecure: bool
) -> Tls | None:
    """Return TLS credentials, or None for an insecure connection that was asked for by name.

    Raises Invalid if one is missing, or a file cannot be read.
    """
    if insecure:
        return None
    if ca is None or cert is None or key is None:
        raise Invalid(
            "ca, cert and key are needed: the region knows agents by their certificates",
            reason="CREDENTIALS_MISSING",
            hint="`controlplane certs client` makes them; for `controlplane dev` say insecure=True",
        )
    return Tls(ca, cert, key)


class Tls:
    """TLS credentials for each new connection. Files are read again for it: certificates are replaced while agents run.

    As long as one of them cannot be read, what they held before is used.
    """

    def __init__(self, ca: Credentials, cert: Credentials, key: Credentials) -> None:
        """Raises Invalid if a file cannot be read."""
        self._given = (ca, key, cert)
        self._read = self._contents()

    def __call__(self) -> grpc.ChannelCredentials:
        """The credentials of now."""
        with contextlib.suppress(Invalid):
            self._read = self._contents()
        return grpc.ssl_channel_credentials(*self._read)

    def _contents(self) -> list[bytes]:
        return list(map(_content, self._given))


def _content(given: Credentials) -> bytes:
    if isinstance(given, bytes):
        return given
    try:
        return Path(given).read_bytes()
    except OSError as error:
        raise Invalid(f"cannot read {given}: {error.strerror}", reason="CREDENTIALS_UNREADABLE") from error


def checked(address: str, tls: Tls | None) -> str:
    """Return a "host:port"; without TLS only of this machine."""
    if "://" in address:
        raise Invalid(f"{address!r} is a URL: say host:port alone", reason="ADDRESS_MALFORMED")
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise Invalid(f"{address!r} is not host:port", reason="ADDRESS_MALFORMED")
    if tls is None and not is_loopback(host):
        raise Invalid(f"insecure connections stay on this machine; {host} is not", reason="INSECURE_REMOTE")
    return address


def _forget_frames(error: BaseException) -> None:
    """Let go of what the frames hold that an error, and whatever led to it, came through."""
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__context__


def _dial_error(address: str, error: BaseException) -> BaseException:
    if isinstance(error, grpc.aio.AioRpcError):
        trailers = error.trailing_metadata() or ()
        decoded = status.from_call(error.code(), error.details(), [(name, value) for name, value in trailers])
        if isinstance(decoded, Denied):
            return decoded
        return Unavailable(f"{address}: {error.details()}", reason="UNREACHABLE")
    if isinstance(error, TimeoutError):
        return Unavailable(f"{address} did not answer in {DIAL_TIMEOUT_S} s", reason="UNREACHABLE")
    return error


def expire(call: Call, now: float) -> None:
    """End `call` if its deadline has passed."""
    if call.deadline <= now:
        call.give_up("no answer before its deadline", "DEADLINE")
