"""The nodes of a region, asked one by one: how they are, which faults they have, and to take or end some.

Calls here are made once, to the node that is meant: no retries, no way around.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar

import grpc
import grpc.aio

from controlplane import status
from controlplane.errors import ControlPlaneError, OutcomeUnknown, Unavailable
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import drill_pb2 as drill

LOOK_TIMEOUT_S: Final = 0.5
ASK_TIMEOUT_S: Final = 3.0

_DRILLS: Final = "/controlplane.v1.Drills/"
_OPERATORS: Final = "/controlplane.v1.Operators/"
_OPTIONS: Final = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]

_ReplyT = TypeVar("_ReplyT")


class _Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name.


@dataclass(frozen=True, slots=True)
class Look:
    """One node at one moment; None: it did not answer."""

    address: str
    status: api.GetStatusReply | None
    faults: drill.ListFaultsReply | None
    denied: str = ""


class Nodes:
    """Connections to every node of a region. Use with `async with`. `tls` are asked for at each connection."""

    def __init__(self, tls: Callable[[], grpc.ChannelCredentials] | None, addresses: Sequence[str]) -> None:
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._given = tuple(addresses)
        self.addresses: Mapping[str, str] = {}
        """Name → address of every node, known after `meet`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    async def meet(self) -> Mapping[str, str]:
        """Learn the names and addresses of all nodes from the first that answers. Raises the eight errors."""
        for address in self._given:
            try:
                found = await self.status(address, timeout_s=ASK_TIMEOUT_S)
            except (Unavailable, OutcomeUnknown):
                continue
            self.addresses = {member.name: member.address for member in found.members}
            return self.addresses
        raise Unavailable(
            f"no node answered at {', '.join(self._given)}",
            reason="UNREACHABLE",
            hint="are the addresses right, the nodes up, and the certificates of this fleet?",
        )

    async def look(self) -> dict[str, Look]:
        """Ask every node how it is, at the same time."""
        looks = await asyncio.gather(*(self.look_at(address) for address in self.addresses.values()))
        return dict(zip(self.addresses, looks, strict=True))

    async def status(self, address: str, *, timeout_s: float = LOOK_TIMEOUT_S) -> api.GetStatusReply:
        """Ask one node for its own view. Raises the eight errors."""
        return await self.ask(address, _OPERATORS + "GetStatus", api.GetStatusRequest(), api.GetStatusReply, timeout_s)

    async def faults(self, address: str, *, timeout_s: float = LOOK_TIMEOUT_S) -> drill.ListFaultsReply:
        """Ask one node which faults it has. Raises the eight errors."""
        return await self.ask(
            address, _DRILLS + "ListFaults", drill.ListFaultsRequest(), drill.ListFaultsReply, timeout_s
        )

    async def inject(self, node: str, fault: drill.Fault) -> drill.InjectFaultReply:
        """Have one node take a fault. Raises the eight errors."""
        request = drill.InjectFaultRequest(fault=fault)
        return await self.ask(
            self.addresses[node], _DRILLS + "InjectFault", request, drill.InjectFaultReply, ASK_TIMEOUT_S
        )

    async def heal(self, node: str, drill_id: str, reason: str, *, abort: bool = False) -> drill.HealFaultsReply:
        """Have one node end the faults of a drill (empty: of all). Raises the eight errors."""
        request = drill.HealFaultsRequest(drill=drill_id, reason=reason, abort=abort)
        return await self.ask(
            self.addresses[node], _DRILLS + "HealFaults", request, drill.HealFaultsReply, ASK_TIMEOUT_S
        )

    async def heal_all(self, drill_id: str, reason: str, *, abort: bool = False) -> dict[str, ControlPlaneError]:
        """Have every node end the faults of a drill; return why some could not be asked."""
        answers = await asyncio.gather(
            *(self.heal(node, drill_id, reason, abort=abort) for node in self.addresses), return_exceptions=True
        )
        failed: dict[str, ControlPlaneError] = {}
        for node, answer in zip(self.addresses, answers, strict=True):
            if isinstance(answer, ControlPlaneError):
                failed[node] = answer
            elif isinstance(answer, BaseException):
                raise answer
        return failed

    async def look_at(self, address: str) -> Look:
        """Ask one node how it is."""
        found = await asyncio.gather(self.status(address), self.faults(address), return_exceptions=True)
        problems = [error for error in found if isinstance(error, BaseException)]
        for error in problems:
            if not isinstance(error, ControlPlaneError):
                raise error
        denied = next((str(error) for error in problems if type(error).__name__ in ("Denied", "Invalid")), "")
        state, faults = (None if isinstance(each, BaseException) else each for each in found)
        return Look(address, state, faults, denied)  # type: ignore[arg-type]

    async def ask(
        self, address: str, method: str, request: _Message, reply_type: type[_ReplyT], timeout_s: float
    ) -> _ReplyT:
        """Make one call to one node; `method` begins with its service. Raises the eight errors."""
        call: Any = self._channel(address).unary_unary(method)
        try:
            reply: _ReplyT = reply_type.FromString(  # type: ignore[attr-defined]
                await call(request.SerializeToString(), timeout=timeout_s)
            )
        except grpc.aio.AioRpcError as error:
            trailers: Any = error.trailing_metadata() or ()
            pairs = [(str(key), value) for key, value in trailers]
            raise status.from_call(error.code(), error.details(), pairs) from None
        return reply

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = (
                grpc.aio.insecure_channel(address, options=_OPTIONS)
                if self._tls is None
                else grpc.aio.secure_channel(address, self._tls(), options=_OPTIONS)
            )
        return self._channels[address]
