"""What all callers of one node share, and how none of them takes it all: turns of its event loop, room for replies."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections import Counter
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import grpc.aio
import structlog

from controlplane import limits
from controlplane.errors import Unavailable
from controlplane.telemetry import LINES_LOGGED, LINES_PERIOD_S, Counts, RateLimit

Context = grpc.aio.ServicerContext[Any, Any]
End = tuple[str, int]
"""Address and port of one end of a connection."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_LOOK_S: Final = 1.0
# What kind of descriptor it is turns out when it is asked for its ends.
_ANY: Final = socket.AF_INET6


class Intake:
    """Lets a bounded number of operations be begun in one turn of the event loop, whoever sent them.

    A leader that is silent for a few beats is a leader no more, and beats leave between turns.
    """

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(limits.OPERATIONS_PER_TURN_MAX)
        self._taken = 0

    async def take(self) -> None:
        """Return when one more operation may be begun: now, or in a later turn. Who asks first goes first."""
        await self._room.acquire()
        if not self._taken:
            asyncio.get_running_loop().call_soon(self._over)
        self._taken += 1

    def _over(self) -> None:
        taken, self._taken = self._taken, 0
        for _ in range(taken):
            self._room.release()


class Outbox:
    """The replies of one node that have not left: so many bytes of all callers, so many of each, each for so long.

    A reply counts from when it is ready until gRPC has handed all of it to the connection, which it does as far as the
    caller reads. A caller that does not is cut off, because it holds what others need.
    """

    def __init__(self, counts: Counts, clock: Callable[[], float]) -> None:
        self._counts, self._clock = counts, clock
        self._held: Counter[str] = Counter()
        self._writes: dict[object, tuple[float, Context]] = {}
        self._logged = RateLimit(LINES_LOGGED, LINES_PERIOD_S, clock)

    def has_room(self, caller: str, size: int = 1) -> bool:
        """Whether a reply of `size` bytes to `caller` may wait, too."""
        return (
            self._counts.unread_bytes + size <= limits.REPLIES_PER_NODE_BYTES_MAX
            and self._held[caller] + size <= limits.REPLIES_PER_CALLER_BYTES_MAX
        )

    def hold(self, caller: str, size: int) -> None:
        """Count a reply, whether there is room or not."""
        self._held[caller] += size
        self._counts.unread_bytes += size

    def release(self, caller: str, size: int) -> None:
        """Count what was held no more."""
        self._held[caller] -= size
        self._counts.unread_bytes -= size
        if not self._held[caller]:
            del self._held[caller]

    def hand_over(self, context: Context, caller: str, size: int) -> None:
        """Count the only reply of a call from now, when its handler is about to return it, until it has left."""
        written = object()

        def left(_: object) -> None:
            del self._writes[written]
            self.release(caller, size)

        self.hold(caller, size)
        self._begin(written, context)
        # The stubs want an instance of a class of theirs.
        context.add_done_callback(left)  # type: ignore[arg-type]

    async def send(self, context: Context, caller: str, reply: bytes) -> None:
        """Write one of many replies. Raises `Unavailable` if it may not wait, and gRPC's error if the call is over."""
        if not self.has_room(caller, len(reply)):
            raise full()
        self.hold(caller, len(reply))
        try:
            await self.write(context, reply)
        finally:
            self.release(caller, len(reply))

    async def write(self, context: Context, message: bytes) -> None:
        """Write what is counted already. Raises gRPC's error if the call is over."""
        written = object()
        self._begin(written, context)
        try:
            await context.write(message)
        finally:
            del self._writes[written]

    def _begin(self, written: object, context: Context) -> None:
        self._writes[written] = (self._clock() + limits.REPLY_TIMEOUT_S, context)

    async def watch(self, port: int) -> None:
        """Cut off, until cancelled, whoever does not read; `port` is where this node is called."""
        while True:
            await asyncio.sleep(_LOOK_S)
            if ends := self._overdue():
                await self._cut_off(ends, port)

    async def _cut_off(self, ends: Set[End], port: int) -> None:
        closed, problem = 0, ""
        try:
            # gRPC's servers in Python can end a call only by sending something, which would wait with the rest.
            closed = await asyncio.to_thread(hang_up, ends, port)
        except OSError as error:
            # It takes a descriptor, of which there may be none. They are overdue the next time too.
            problem = str(error)
        self._counts.cut_off += closed
        if (closed or problem) and self._logged.allows():
            suppressed = self._logged.suppressed
            _log.warning("callers_do_not_read", cut_off=closed, problem=problem, suppressed=suppressed)

    def _overdue(self) -> set[End]:
        now, ends = self._clock(), set()
        for until, context in self._writes.values():
            # All may take equally long, so those that began first are due first.
            if until > now:
                break
            with contextlib.suppress(ValueError):
                ends.add(_end(context.peer()))
        return ends


def full() -> Unavailable:
    """What a caller hears for whose reply there is no room."""
    return Unavailable("too many replies wait to be read", reason="OVERLOADED", hint="read them, then ask again")


def hang_up(ends: Set[End], port: int) -> int:
    """Shut this process's connections from `ends` to its own `port`, and return how many there were. Raises OSError."""
    found = 0
    for descriptor in Path("/dev/fd").iterdir():
        # A copy, because the original may be closed meanwhile, and be another file when it is used.
        with contextlib.suppress(OSError), socket.fromfd(int(descriptor.name), _ANY, socket.SOCK_STREAM) as copy:
            if copy.getsockname()[1:2] == (port,) and _plain(*copy.getpeername()[:2]) in ends:
                copy.shutdown(socket.SHUT_RDWR)
                found += 1
    return found


def _end(peer: str) -> End:
    """Read what gRPC calls the other end: ipv4:127.0.0.1:1 or ipv6:%5B::1%5D:1. Raises `ValueError`."""
    host, _, port = unquote(peer).partition(":")[2].rpartition(":")
    return _plain(host.strip("[]"), int(port))


def _plain(host: str, port: int) -> End:
    address = ipaddress.ip_address(host)
    return str(getattr(address, "ipv4_mapped", None) or address), port
