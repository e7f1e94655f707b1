"""The way to nodes of other regions: encoded messages in, encoded messages out, over gRPC with mutual TLS.

What the rest of the federation relies on, whoever carries the messages:

1. A stream is ordered and whole up to where it breaks; nothing that was sent comes twice, or after its end.
2. A call that broke off may have happened. It is never repeated here.
3. Nothing is written down or remembered: a way that is closed and opened anew carries the same.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Protocol

import grpc
import grpc.aio

from controlplane import limits, status
from controlplane.credentials import Credentials, Pem
from controlplane.errors import ControlPlaneError, Unavailable

_OPTIONS: Final = [
    ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 250),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
]


class Stream(Protocol):
    """One call of many messages each way, as its caller has it."""

    async def write(self, message: bytes) -> None:
        """Send one; returns when there is room for the next. Raises why the stream ended."""

    async def read(self) -> bytes:
        """The next message. Raises why the stream ended: one of the eight errors, STREAM_ENDED if in good order."""

    def cancel(self) -> None:
        """Hang up."""


class Ways(Protocol):
    """The ways to the nodes of other regions, by endpoint."""

    def stream(self, endpoint: str, method: str) -> Stream:
        """Begin a stream. It fails by itself if nobody can be reached."""

    async def reached(self, endpoint: str, wait_s: float, *, patient: bool) -> bool:
        """Whether the connection stands, after a moment's wait. False: a call was certainly never sent.

        Who is not `patient` waits for no second attempt to connect.
        """

    async def ask(self, endpoint: str, method: str, request: bytes, timeout_s: float) -> bytes:
        """Make one call. Raises one of the eight errors; OutcomeUnknown (CONNECTION_LOST) if it broke off."""

    async def close(self) -> None:
        """Hang up everywhere."""


class Channels:
    """`Ways` over gRPC. A connection, once there is one, stays open."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._channels: dict[str, tuple[Pem, grpc.aio.Channel]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def stream(self, endpoint: str, method: str) -> _GrpcStream:
        """See `Ways`."""
        call: Any = self._channel(endpoint).stream_stream(method)()
        return _GrpcStream(call)

    async def reached(self, endpoint: str, wait_s: float, *, patient: bool) -> bool:
        """See `Ways`."""
        channel = self._channel(endpoint)
        try:
            async with asyncio.timeout(max(0.0, wait_s)):
                while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                    failed = state is grpc.ChannelConnectivity.TRANSIENT_FAILURE and not patient
                    if failed or state is grpc.ChannelConnectivity.SHUTDOWN:
                        return False
                    await channel.wait_for_state_change(state)
        except TimeoutError:
            return False
        return True

    async def ask(self, endpoint: str, method: str, request: bytes, timeout_s: float) -> bytes:
        """See `Ways`."""
        call: Any = self._channel(endpoint).unary_unary(method)
        try:
            encoded: bytes = await call(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            trailers = [(str(name), value) for name, value in error.trailing_metadata() or ()]
            raise status.from_call(error.code(), error.details(), trailers) from error
        return encoded

    async def close(self) -> None:
        """See `Ways`."""
        channels, self._channels = self._channels, {}
        await asyncio.gather(*self._closing, *(channel.close(0) for _, channel in channels.values()))

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        now = self._credentials.now()
        made, channel = self._channels.get(endpoint, (now, None))
        if channel is not None and made is not now and channel.get_state() is not grpc.ChannelConnectivity.READY:
            # It would try to connect again with what may be over.
            self._close(channel)
            channel = None
        if channel is None:
            channel = grpc.aio.secure_channel(endpoint, self._credentials.of_client(), _OPTIONS)
            self._channels[endpoint] = now, channel
        return channel

    def _close(self, channel: grpc.aio.Channel) -> None:
        closing = asyncio.create_task(channel.close(0))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


class _GrpcStream:
    """`Stream` over gRPC."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def write(self, message: bytes) -> None:
        """See `Stream`."""
        try:
            await self._call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            raise await self._end() from None

    async def read(self) -> bytes:
        """See `Stream`."""
        try:
            encoded = await self._call.read()
        except grpc.aio.AioRpcError:
            encoded = grpc.aio.EOF
        if isinstance(encoded, bytes):
            return encoded
        raise await self._end()

    def cancel(self) -> None:
        """See `Stream`."""
        self._call.cancel()

    async def _end(self) -> ControlPlaneError:
        """Why it ended."""
        code = await self._call.code()
        text, trailers = await self._call.details(), await self._call.trailing_metadata()
        if code is grpc.StatusCode.OK:
            return Unavailable("the other side ended the stream", reason="STREAM_ENDED")
        return status.from_call(code, text, [(str(name), value) for name, value in trailers or ()])
