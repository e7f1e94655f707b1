"""Who calls the region while it is broken: the SDK, and plain calls to each single node that nobody retries.

A plain caller has every method that the SDK has (`Calls`), over a channel that makes one unary call per question. So a
read can be asked of a follower, of a node that was cut off or of a leader that was deposed, and a write can be repeated
byte for byte, through another node, under the same request id.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol, cast

import grpc

from controlplane import status
from controlplane.errors import Contended, ControlPlaneError, Denied, NotFound, OutcomeUnknown, Refused, Unavailable
from controlplane.limits import CALL_TIMEOUT_MAX_S
from controlplane.loopback import Certificate
from controlplane.roles import AGENTS
from controlplane.sdk import ControlPlane
from controlplane.sdk import clock as clocks
from controlplane.sdk.calls import Calls
from controlplane.sdk.channel import Channel
from controlplane.v1 import api_pb2 as api

PLAIN_TIMEOUT_S = 1.0
"""How long one plain call may take."""
ATTEMPT_S = 0.7
"""How long one attempt of a repeated write may take."""
REST_S = (0.005, 0.08)
REPEAT_SHARE = 0.2
"""Which part of the acknowledged plain writes is asked again, to hear the same answer."""
KEPT = ("OUTCOME_FORGOTTEN", "EPOCH_CHANGED", "SINCE_TOO_OLD")
"""Reasons that no other node can cure."""
_CLOSE_S = 0.2
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.min_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]


class Region(Protocol):
    """Where there are nodes to call, and certificates to call them with."""

    @property
    def names(self) -> Sequence[str]:
        """The nodes."""

    @property
    def addresses(self) -> Sequence[str]:
        """Where each answers clients, in the order of `names`."""

    def identity(self, role: str, name: str) -> Certificate:
        """A certificate for a caller."""


class NodeChannel:
    """Unary calls to one node, as `Calls` makes them; one attempt each."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials) -> None:
        self.address = address
        self.region = api.Region()
        self.revision = 0
        self.on_started_over: list[Callable[[], None]] = []
        self.clock = clocks.now
        self._channel = grpc.aio.secure_channel(address, credentials, options=_OPTIONS)

    async def call(self, method: str, request: bytes, deadline: float, *, writes: bool) -> bytes:
        """Ask once. Raises one of the eight errors; what gRPC itself reports is OutcomeUnknown."""
        del writes
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(path(method))
        left_s = min(CALL_TIMEOUT_MAX_S, deadline - self.clock())
        try:
            answer: bytes = await ask(request, timeout=max(0.001, left_s))
        except grpc.aio.AioRpcError as error:
            trailers = [(name, value) for name, value in error.trailing_metadata() or ()]
            raise status.from_call(error.code(), error.details(), trailers) from None
        return answer

    def stream(self, method: str, request: bytes) -> grpc.aio.UnaryStreamCall[bytes, bytes]:
        """Ask for a stream of encoded replies."""
        ask: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(path(method))
        return ask(request)

    async def close(self) -> None:
        """End it, and every call on it."""
        await self._channel.close(_CLOSE_S)


@dataclass(slots=True)
class Repeats:
    """What came of asking again."""

    same: int = 0
    differing: list[str] = field(default_factory=list)


class AnyNodeChannel:
    """Writes that go from node to node, the same bytes each time, until one answers; and sometimes once more.

    It follows the rules that a caller without the SDK has to follow: after an attempt that got no definite answer only
    a kept answer is final.
    """

    def __init__(self, nodes: Sequence[NodeChannel], random: Random, repeats: Repeats) -> None:
        self.region = api.Region()
        self.revision = 0
        self.on_started_over: list[Callable[[], None]] = []
        self.clock = clocks.now
        self._nodes = nodes
        self._random = random
        self._repeats = repeats

    async def call(self, method: str, request: bytes, deadline: float, *, writes: bool) -> bytes:
        """Ask until the deadline. Raises Unavailable then, or OutcomeUnknown if an attempt may have happened."""
        doubt = False
        while self.clock() < deadline:
            node = self._random.choice(self._nodes)
            until = min(deadline, self.clock() + ATTEMPT_S)
            try:
                answer = await node.call(method, request, until, writes=writes)
            except (OutcomeUnknown, Unavailable) as error:
                if error.reason in KEPT:
                    raise
                doubt |= writes and isinstance(error, OutcomeUnknown)
            except (Denied, Contended):
                if not doubt:
                    raise
            else:
                await self._again(method, request, answer, writes=writes)
                return answer
            await asyncio.sleep(self._random.uniform(*REST_S))
        kind = OutcomeUnknown if doubt else Unavailable
        raise kind(f"{method}: no node answered in time", reason="DEADLINE")

    async def _again(self, method: str, request: bytes, answer: bytes, *, writes: bool) -> None:
        """Repeat an acknowledged write: its outcome is kept, so every node has to say the same."""
        if not writes or self._random.random() >= REPEAT_SHARE:
            return
        node = self._random.choice(self._nodes)
        try:
            second = await node.call(method, request, self.clock() + ATTEMPT_S, writes=True)
        except (OutcomeUnknown, Unavailable):
            return
        except ControlPlaneError as error:
            self._repeats.differing.append(f"{method} was acknowledged, and then {error.reason} at {node.address}")
            return
        if _content(method, second) == _content(method, answer):
            self._repeats.same += 1
        else:
            self._repeats.differing.append(f"{method} was answered in two ways, the second time at {node.address}")


def path(method: str) -> str:
    """The full name of a call."""
    service = "Agents" if method in AGENTS else "Operators"
    return f"/controlplane.v1.{service}/{method}"


def _content(method: str, answer: bytes) -> bytes:
    """What two answers to one request have in common: all but who served it, and when."""
    reply = getattr(api, f"{method}Reply").FromString(answer)
    reply.header.node, reply.header.age_ms = "", 0
    content: bytes = reply.SerializeToString(deterministic=True)
    return content


@dataclass(slots=True)
class Callers:
    """All clients of one identity: `sdk` follows the leader, `at` one node each, `anywhere` whoever answers."""

    sdk: ControlPlane
    at: Mapping[str, Calls]
    anywhere: Calls
    channels: Mapping[str, NodeChannel]
    repeats: Repeats

    def everyone(self) -> list[Calls]:
        """The SDK and each single node."""
        return [self.sdk, *self.at.values()]


@asynccontextmanager
async def calling(region: Region, role: str, name: str, random: Random, **options: object) -> AsyncIterator[Callers]:
    """Connect as `name`; `options` go to the SDK's `connect`. Raises what entering the SDK's client raises."""
    identity = region.identity(role, name)
    contents = [identity[part].read_bytes() for part in ("ca", "key", "cert")]
    credentials = grpc.ssl_channel_credentials(*contents)
    repeats = Repeats()
    async with AsyncExitStack() as stack:
        channels = {}
        for node, address in zip(region.names, region.addresses, strict=True):
            channels[node] = NodeChannel(address, credentials)
            stack.push_async_callback(channels[node].close)
        choices: dict[str, Any] = {"addresses": region.addresses, "mirror": False, **identity, **options}
        connected = ControlPlane.connect(**choices)
        yield Callers(
            sdk=await stack.enter_async_context(connected),
            at={node: plain(channel) for node, channel in channels.items()},
            anywhere=plain(AnyNodeChannel(list(channels.values()), random, repeats), timeout_s=10.0),
            channels=channels,
            repeats=repeats,
        )


def plain(channel: NodeChannel | AnyNodeChannel, *, timeout_s: float = PLAIN_TIMEOUT_S) -> Calls:
    """The SDK's methods over a channel of ours, which has all that they use of the SDK's."""
    return Calls(cast(Channel, channel), timeout_s)


Answer = (Refused, NotFound)
"""Errors that are answers: they say how things stood at some moment of the call."""
