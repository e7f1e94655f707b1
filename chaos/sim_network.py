"""The network of the simulation: one ordered stream per directed link, as TCP gives it, and ways to break it.

A blocked link delays (nothing is lost while the connection lives) and resumes late, as TCP does after a back-off. A
connection dies when one side sees it closed or hears nothing for too long; then what was under way is gone. Every
connection has a generation, and messages of an older one are dropped. With `disorder` messages also overtake each
other, come twice, get lost, and reach across generations, which is worse than the real transport allows. A link that is
*occupied* carries one large message in parts: what is sent after it waits for its end.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, NamedTuple, Protocol

from chaos.schedule import Conditions

Link = tuple[str, str]


class Part(NamedTuple):
    """A part of a message that was sent in `term`."""

    term: int


_PART_S = 0.01
_CLOSED = None
_ALIVE = "alive"


class Ends(Protocol):
    """The nodes, as the network sees them."""

    def running(self, name: str) -> int:
        """Number of the process that runs at `name`, 0 if none does."""

    def life(self, name: str) -> int:
        """Which disk is in `name`: the handshake fences off what was meant for an earlier one."""

    def paused_until(self, name: str) -> float:
        """When `name` will run again; the past if it runs."""

    def deliver(self, name: str, messages: Sequence[tuple[str, Any]]) -> None:
        """Hand messages, with their senders, to `name`."""

    def link_changed(self, name: str, peer: str, up: bool) -> None:
        """Tell `name` that its link to `peer` came up or broke."""


class _Stream:
    """One directed link: what is under way on it, and its source's end of the connection."""

    __slots__ = ("back", "blocks", "generation", "heard_at", "last_at", "link", "queue", "source", "target", "up")

    def __init__(self, link: Link) -> None:
        self.link = link
        self.source, self.target = link
        self.up = False  # The source holds the connection for open.
        self.blocks = 0  # How many cuts hold it up.
        self.generation = 0
        self.last_at = 0.0  # When the last message put on it arrives: none arrives earlier.
        self.heard_at = 0.0  # When the target last heard the source.
        self.queue: deque[tuple[float, object, Any]] = deque()
        self.back: _Stream  # The link the other way.


class Network:
    """All links between `names`. `at(delay, function, *args)` schedules; `clock()` is the present time."""

    def __init__(
        self,
        names: Sequence[str],
        ends: Ends,
        conditions: Conditions,
        random: Random,
        at: Callable[..., None],
        clock: Callable[[], float],
    ) -> None:
        self.links: list[Link] = [(a, b) for a in names for b in names if a != b]
        self.slow: dict[Link, float] = dict.fromkeys(self.links, 0.0)
        self.counts: Counter[str] = Counter()
        self._ends, self._conditions, self._random = ends, conditions, random
        self._at, self._clock = at, clock
        self._delay_s, self._disorder = conditions.delay_s, conditions.disorder
        self._streams = {link: _Stream(link) for link in self.links}
        for (a, b), stream in self._streams.items():
            stream.back = self._streams[b, a]
        self._from = {name: [x for x in self._streams.values() if x.source == name] for name in names}
        self._to = {name: {x.target: x for x in streams} for name, streams in self._from.items()}
        self._deaf_since: dict[str, float] = {}
        for link in self.links:
            if link[0] < link[1]:
                at(0.01, self._connect, self._streams[link])
        at(0.3, self._keep_alive)

    # What the nodes do.

    def send(self, source: str, target: str, message: Any) -> None:
        """Send; lost if the connection is down or goes down before it arrives."""
        stream = self._to[source][target]
        if not stream.up:
            return
        now = self._clock()
        if now - stream.back.heard_at > self._conditions.link_dead_s:
            self._at(0.0, self._close, stream)
        else:
            self._put(stream, message, now)

    def occupy(self, link: Link, term: int, for_s: float) -> None:
        """Have a message of `term` leave on `link` that is so large that it takes `for_s`: its parts, and no more."""
        stream, now = self._streams[link], self._clock()
        if not stream.up:
            return
        begin = max(now + self._delay_s, stream.last_at)
        stream.last_at = begin + for_s
        for number in range(1, round(for_s / _PART_S) + 1):
            at = begin + number * _PART_S
            if self._disorder:
                self._at(at - now, self._put_disordered, stream, Part(term))
            else:
                stream.queue.append((at, stream.generation, Part(term)))
                self._at(at - now, self._pump, stream)
            self.counts["parts"] += 1

    def process_died(self, name: str, *, silent: bool) -> None:
        """Close every connection of `name`; with `silent` nobody is told (the host vanished)."""
        now = self._clock()
        for stream in self._from[name]:
            if stream.up:
                stream.up = False
                stream.back.queue.clear()
                if not silent:
                    self._put(stream, _CLOSED, now)

    def process_started(self, name: str) -> None:
        """A new process answers packets of old connections with a reset."""
        for stream in self._from[name]:
            if stream.back.up:
                self._at(self._random.uniform(0, 3), self._reset, stream.back, stream.back.generation)

    def _reset(self, stream: _Stream, generation: int) -> None:
        if generation == stream.generation:
            self._close(stream)

    # What breaks it.

    def cut(self, links: Iterable[Link], for_s: float) -> None:
        """Block `links` for a while."""
        chosen = [self._streams[link] for link in links]
        for stream in chosen:
            stream.blocks += 1
        for name in {stream.target: 0 for stream in chosen}:
            if name not in self._deaf_since and all(stream.back.blocks for stream in self._from[name]):
                self._deaf_since[name] = self._clock()
        self._at(for_s, self._heal, chosen)

    def _heal(self, streams: list[_Stream]) -> None:
        for stream in streams:
            stream.blocks -= 1
            if not stream.blocks:
                self._deaf_since.pop(stream.target, None)
                self._at(self._random.choice((0.001, 0.2, 0.6)), self._pump, stream)

    def deaf_s(self, name: str) -> float:
        """For how long nothing could reach `name`."""
        return self._clock() - self._deaf_since.get(name, self._clock())

    # Packets.

    def _stamp(self, stream: _Stream) -> object:
        # A replaced disk always meets its peers over a new connection.
        if self._disorder:
            return self._ends.life(stream.source), self._ends.life(stream.target)
        return stream.generation

    def _put(self, stream: _Stream, message: Any, now: float) -> None:
        if self._disorder and message is not _CLOSED:
            self._put_disordered(stream, message)
            return
        at = now + self._delay_s * (0.5 + 1.5 * self._random.random()) + self.slow[stream.link]
        at = max(at, stream.last_at)
        stream.last_at = at
        stamp = self._stamp(stream) if self._disorder else stream.generation
        stream.queue.append((at, stamp, message))
        self._at(at - now, self._pump, stream)

    def _put_disordered(self, stream: _Stream, message: Any) -> None:
        # A steady delay: a sender that goes back cannot carry any load if every message is overtaken.
        random, base = self._random, self._delay_s
        delay, stamp = base + self.slow[stream.link], self._stamp(stream)
        if random.random() < 0.1:
            delay += random.uniform(0, 20) * base
            self.counts["overtaken"] += 1
        if random.random() < self._conditions.duplicated:
            self.counts["duplicated"] += 1
            self._at(delay + random.uniform(0, 40) * base, self._arrive, stream, stamp, message)
        if random.random() < 0.01:
            self.counts["lost"] += 1
        else:
            self._at(delay, self._arrive, stream, stamp, message)

    def _arrive(self, stream: _Stream, stamp: object, message: Any) -> None:
        stream.queue.append((self._clock(), stamp, message))
        self._pump(stream)

    def _pump(self, stream: _Stream) -> None:
        if stream.blocks or not stream.queue:
            return
        now = self._clock()
        paused = self._ends.paused_until(stream.target) - now
        if paused > 0:
            self._at(paused + 1e-6, self._pump, stream)
            return
        messages = self._take(stream, now)
        if messages:
            self.counts["messages"] += len(messages)
            self._ends.deliver(stream.target, messages)

    def _take(self, stream: _Stream, now: float) -> list[tuple[str, Any]]:
        """Take what is due on `stream`, each with its sender."""
        queue, source, back = stream.queue, stream.source, stream.back
        messages: list[tuple[str, Any]] = []
        due = now + 1e-9
        if queue[0][0] > due:
            return messages
        running, dead_s = self._ends.running(stream.target), self._conditions.link_dead_s
        stamp_now = self._stamp(stream) if self._disorder else stream.generation
        while queue and queue[0][0] <= due:
            _, stamp, message = queue.popleft()
            if not back.up or not running or stamp != stamp_now:
                continue
            if message is _CLOSED or now - stream.heard_at > dead_s:
                self._close(back)
                continue
            stream.heard_at = now
            if message is not _ALIVE:
                messages.append((source, message))
        return messages

    # Connections.

    def _keep_alive(self) -> None:
        now = self._clock()
        for source, target in self.links:
            if self._ends.running(source) and self._ends.paused_until(source) <= now:
                self.send(source, target, _ALIVE)
        self._at(0.5, self._keep_alive)

    def _close(self, stream: _Stream) -> None:
        """End the connection at the stream's source, which tells the other side."""
        if not stream.up:
            return
        stream.up = False
        stream.back.queue.clear()
        self._put(stream, _CLOSED, self._clock())
        self.counts["closed"] += 1
        if self._ends.running(stream.source):
            self._ends.link_changed(stream.source, stream.target, False)

    def _connect(self, stream: _Stream) -> None:
        self._at(self._conditions.retry_s * self._random.uniform(0.9, 1.1), self._connect, stream)
        if not self._can_connect(stream):
            return
        both = (stream, stream.back)
        for one in both:
            one.generation += 1
            if one.up:
                self._ends.link_changed(*one.link, False)
            one.queue.clear()
            one.up = True
            one.last_at = one.heard_at = self._clock()
        for one in both:
            self._ends.link_changed(*one.link, True)

    def _can_connect(self, stream: _Stream) -> bool:
        ends, now, back = self._ends, self._clock(), stream.back
        able = all(ends.running(name) and ends.paused_until(name) <= now for name in stream.link)
        return able and not stream.blocks and not back.blocks and not (stream.up and back.up)
