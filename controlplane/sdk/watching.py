"""Watches over a channel: one for users, one that feeds the mirror.

Both know the revision up to which they have everything, and ask for what follows it whenever the stream breaks. A
message is a whole transaction; one that was seen already is skipped. So order, atomicity and completeness hold across
any number of reconnects.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from controlplane.errors import Compacted, ControlPlaneError, Unavailable
from controlplane.sdk.channel import Channel, check_size
from controlplane.sdk.mirror import KINDS, Mirror
from controlplane.v1 import api_pb2 as api

READY_MAX = 256
"""Messages that wait for a slow reader. Beyond it the stream is stopped, and asked for again when they were read."""
WATCH_AGAIN_S = 0.5

KillListener = Callable[[api.SwitchView], None]
"""Gets what `Mirror.feed` returns."""


class Watch:
    """A user's watch: `async with Watch(channel, request) as watch: async for reply in watch`."""

    def __init__(self, channel: Channel, request: api.WatchRequest) -> None:
        self._channel = channel
        self._request = request
        self._listing: list[api.WatchReply] = []
        self._ready: deque[api.WatchReply] = deque()
        self._arrived = asyncio.Event()
        self._error: ControlPlaneError | None = None
        self._paused = False

    async def __aenter__(self) -> Self:
        check_size("Watch", self._request.ByteSize())
        self._channel.start(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._channel.stop(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> api.WatchReply:
        while not self._ready:
            if self._error is not None:
                raise self._error
            if self._paused:
                self._paused = False
                self._channel.start(self)
            self._arrived.clear()
            await self._arrived.wait()
        return self._ready.popleft()

    # What the channel drives

    def request(self) -> bytes:
        """Ask for what has not been received yet."""
        self._listing.clear()
        return self._request.SerializeToString()

    def receive(self, reply: bytes) -> None:
        """Keep a message for the reader; a listing only when it is complete."""
        message = api.WatchReply.FromString(reply)
        if message.kind == api.WatchReply.SNAPSHOT:
            self._listing.append(message)
            return
        if message.kind == api.WatchReply.SYNCED:
            self._ready.extend(self._listing)
            self._listing.clear()
            self._request.snapshot = False
        elif self._request.snapshot or self._seen(message):
            return
        self._request.after_revision = message.revision
        # From here on any node that has it will do.
        self._request.header.consistency = api.LOCAL
        self._ready.append(message)
        self._arrived.set()
        if len(self._ready) >= READY_MAX and not self._paused:
            self._paused = True
            self._channel.stop(self)

    def ended(self, error: ControlPlaneError) -> None:
        """Raise `error` to the reader after what is ready."""
        self._error = error
        self._arrived.set()

    def _seen(self, message: api.WatchReply) -> bool:
        if not self._request.HasField("after_revision"):
            return False
        newer = message.revision - self._request.after_revision
        return newer < 0 or (newer == 0 and message.kind == api.WatchReply.CHANGES)


class MirrorFeed:
    """Keeps a mirror supplied: with watches, one for each of its parts, and with marks of the channel's questions."""

    def __init__(self, mirror: Mirror, channel: Channel) -> None:
        self._mirror = mirror
        self._channel = channel
        self._watches: dict[tuple[str, ...], _PartWatch] = {}
        self._listeners: dict[object, KillListener] = {}
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []

    def start(self) -> None:
        """Begin to feed; ends with the channel."""
        self._channel.on_mark = self._mark
        self._channel.on_started_over.append(self._mirror.start_over)
        self._watch(self._mirror.parts)
        self._channel.probe()

    def listen(self, listener: KillListener) -> Callable[[], None]:
        """Have `listener` called for every changed switch or stop until the returned function is called."""
        token = object()
        self._listeners[token] = listener
        return lambda: _drop(self._listeners, token)

    async def synced(self, revision: int, timeout_s: float) -> None:
        """Wait until the mirror is fresh and at `revision`."""
        if self._is_at(revision):
            return
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = (revision, arrived)
        self._waiters.append(waiter)
        self._nudge(revision)
        self._channel.probe()
        try:
            async with asyncio.timeout(timeout_s):
                await arrived
        except TimeoutError:
            raise Unavailable(
                f"the mirror is at revision {self._mirror.revision}, not fresh or not at {revision}",
                reason="MIRROR_BEHIND",
            ) from None
        finally:
            self._waiters.remove(waiter)

    # What its watches tell

    def received(self, kinds: tuple[str, ...], message: api.WatchReply) -> None:
        """Feed one message, then tell those who wait for it."""
        loop = asyncio.get_running_loop()
        self._mirror.of_fleet(self._channel.region.fleet)
        for view in self._mirror.feed(kinds, message):
            for listener in list(self._listeners.values()):
                loop.call_soon(listener, view)
        self._tell()

    def ended(self, watch: _PartWatch, error: ControlPlaneError) -> None:
        """Watch again: by parts if the region keeps them apart, otherwise a little later. The mirror ages meanwhile."""
        if error.reason == "CLIENT_CLOSED":
            return
        if error.reason == "PARTITION_AMBIGUOUS" and watch.kinds == KINDS:
            del self._watches[KINDS]
            self._watch(self._mirror.split())
            return
        for _, arrived in self._waiters:
            if not arrived.done():
                arrived.set_exception(error)
        self._channel.later(WATCH_AGAIN_S, watch.start)

    def _watch(self, parts: Iterable[tuple[str, ...]]) -> None:
        for kinds in parts:
            watch = self._watches[kinds] = _PartWatch(self, self._mirror, self._channel, kinds)
            watch.start()

    def _nudge(self, revision: int) -> None:
        """Have parts that hear of nothing say up to where: by themselves they do so once a second."""
        for kinds, watch in self._watches.items():
            place = self._mirror.resume_at(kinds)
            if place is not None and place < revision:
                watch.start_again()

    def _mark(self, asked_s: float, revision: int, age_ms: int) -> None:
        self._mirror.mark(asked_s, revision, age_ms)
        if self._waiters:
            self._tell()

    def _tell(self) -> None:
        for revision, arrived in self._waiters:
            if self._is_at(revision) and not arrived.done():
                arrived.set_result(None)

    def _is_at(self, revision: int) -> bool:
        mirror = self._mirror
        return mirror.synced and mirror.revision >= revision and mirror.age_s(self._channel.clock()) <= mirror.age_max_s


class _PartWatch:
    """The watch of one part of a mirror."""

    def __init__(self, feed: MirrorFeed, mirror: Mirror, channel: Channel, kinds: tuple[str, ...]) -> None:
        self.kinds = kinds
        self._feed = feed
        self._mirror = mirror
        self._channel = channel
        self._relist = False
        self._running = False

    def start(self) -> None:
        """Begin to watch."""
        self._running = True
        self._channel.start(self)

    def start_again(self) -> None:
        """Break off and ask for what follows, if the watch is under way."""
        if self._running and not self._relist:
            self._channel.stop(self)
            self._channel.start(self)

    def request(self) -> bytes:
        """Ask for a listing if there is none, else for what follows it."""
        resume_at = None if self._relist else self._mirror.resume_at(self.kinds)
        self._mirror.restart(self.kinds, listing=resume_at is None)
        # Any node's state will do: the marks tell how old it is.
        header = api.RequestHeader(consistency=api.LOCAL)
        request = api.WatchRequest(header=header, kinds=self.kinds, snapshot=resume_at is None)
        if resume_at is not None:
            request.after_revision = resume_at
        return request.SerializeToString()

    def receive(self, reply: bytes) -> None:
        """Pass a message on."""
        message = api.WatchReply.FromString(reply)
        if message.kind == api.WatchReply.SYNCED:
            self._relist = False
        self._feed.received(self.kinds, message)

    def ended(self, error: ControlPlaneError) -> None:
        """List again at once if what follows is gone."""
        if isinstance(error, Compacted):
            self._relist = True
            self._channel.start(self)
        else:
            self._running = False
            self._feed.ended(self, error)


def _drop(listeners: dict[object, KillListener], token: object) -> None:
    listeners.pop(token, None)
