"""The network of the simulation: one ordered stream per directed link, as TCP gives it, and ways to break it.

A blocked link delays (nothing is lost while the connection lives) and resumes late, as TCP does after a back-off. A
connection dies when one side sees it closed or hears nothing for too long; then what was under way is gone. Every
connection has a generation, and messages of an older one are dropped. With `disorder` messages also overtake each
other, come twice, get lost, and reach across generations, which is worse than the real transport allows.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, Protocol

from chaos.schedule import Conditions

Link = tuple[str, str]
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
        self._pairs = [link for link in self.links if link[0] < link[1]]
        self._blocks = dict.fromkeys(self.links, 0)
        self._queues: dict[Link, deque[tuple[float, object, Any]]] = {link: deque() for link in self.links}
        self._last_at = dict.fromkeys(self.links, 0.0)
        self._heard_at = dict.fromkeys(self.links, 0.0)
        self._up = dict.fromkeys(self.links, False)
        self._generation = dict.fromkeys(self.links, 0)
        for pair in self._pairs:
            at(0.01, self._connect, pair)
        at(0.3, self._keep_alive)

    # What the nodes do.

    def send(self, source: str, target: str, message: Any) -> None:
        """Send; lost if the connection is down or goes down before it arrives."""
        link = (source, target)
        if not self._up[link]:
            return
        if self._dead((target, source)):
            self._at(0.0, self._close, source, target)
            return
        self._put(link, message)

    def deaf(self, name: str) -> bool:
        """Whether nothing can reach `name` now."""
        return all(self._blocks[link] for link in self.links if link[1] == name)

    def close(self, name: str, peer: str) -> None:
        """Close the connection, as `name` would that found it broken."""
        self._close(name, peer)

    def process_died(self, name: str, *, silent: bool) -> None:
        """Close every connection of `name`; with `silent` nobody is told (the host vanished)."""
        for a, b in self.links:
            if a == name and self._up[a, b]:
                self._up[a, b] = False
                self._queues[b, a].clear()
                if not silent:
                    self._put((a, b), _CLOSED)

    def process_started(self, name: str) -> None:
        """A new process answers packets of old connections with a reset."""
        for a, b in self.links:
            if b == name and self._up[a, b]:
                self._at(self._random.uniform(0, 3), self._reset, a, b, self._generation[a, b])

    def _reset(self, a: str, b: str, generation: int) -> None:
        if generation == self._generation[a, b]:
            self._close(a, b)

    # What breaks it.

    def cut(self, links: Iterable[Link], for_s: float) -> None:
        """Block `links` for a while."""
        chosen = list(links)
        for link in chosen:
            self._blocks[link] += 1
        self._at(for_s, self._heal, chosen)

    def _heal(self, links: list[Link]) -> None:
        for link in links:
            self._blocks[link] -= 1
            if not self._blocks[link]:
                self._at(self._random.choice((0.001, 0.2, 0.6)), self._pump, link)

    # Packets.

    def _stamp(self, link: Link) -> object:
        # A replaced disk always meets its peers over a new connection.
        if self._conditions.disorder:
            return self._ends.life(link[0]), self._ends.life(link[1])
        return self._generation[link]

    def _put(self, link: Link, message: Any) -> None:
        random, conditions = self._random, self._conditions
        stamp = self._stamp(link)
        if conditions.disorder and message is not _CLOSED:
            # A steady delay: a sender that goes back cannot carry any load if every message is overtaken.
            self._put_disordered(link, message, conditions.delay_s + self.slow[link], stamp)
            return
        now = self._clock()
        at = now + conditions.delay_s * (0.5 + 1.5 * random.random()) + self.slow[link]
        self._last_at[link] = at = max(self._last_at[link], at)
        self._queues[link].append((at, stamp, message))
        self._at(at - now, self._pump, link)

    def _put_disordered(self, link: Link, message: Any, delay: float, stamp: object) -> None:
        random, base = self._random, self._conditions.delay_s
        if random.random() < 0.1:
            delay += random.uniform(0, 20) * base
            self.counts["overtaken"] += 1
        if random.random() < self._conditions.duplicated:
            self.counts["duplicated"] += 1
            self._at(delay + random.uniform(0, 40) * base, self._arrive, link, stamp, message)
        if random.random() < 0.01:
            self.counts["lost"] += 1
        else:
            self._at(delay, self._arrive, link, stamp, message)

    def _arrive(self, link: Link, stamp: object, message: Any) -> None:
        self._queues[link].append((self._clock(), stamp, message))
        self._pump(link)

    def _pump(self, link: Link) -> None:
        if self._blocks[link] or not self._queues[link]:
            return
        target = link[1]
        paused = self._ends.paused_until(target) - self._clock()
        if paused > 0:
            self._at(paused + 1e-6, self._pump, link)
            return
        messages = self._take(link)
        if messages:
            self.counts["messages"] += len(messages)
            self._ends.deliver(target, messages)

    def _take(self, link: Link) -> list[tuple[str, Any]]:
        """Take what is due on `link`, each with its sender."""
        source, target = link
        queue, back = self._queues[link], (target, source)
        messages: list[tuple[str, Any]] = []
        now, running = self._clock(), self._ends.running(target)
        while queue and queue[0][0] <= now + 1e-9:
            _, stamp, message = queue.popleft()
            if not self._up[back] or not running or stamp != self._stamp(link):
                continue
            if message is _CLOSED or self._dead(link):
                self._close(target, source)
                continue
            self._heard_at[link] = now
            if message is not _ALIVE:
                messages.append((source, message))
        return messages

    # Connections.

    def _dead(self, link: Link) -> bool:
        return self._clock() - self._heard_at[link] > self._conditions.link_dead_s

    def _keep_alive(self) -> None:
        for source, target in self.links:
            if self._ends.running(source) and self._ends.paused_until(source) <= self._clock():
                self.send(source, target, _ALIVE)
        self._at(0.5, self._keep_alive)

    def _close(self, name: str, peer: str) -> None:
        if not self._up[name, peer]:
            return
        self._up[name, peer] = False
        self._queues[peer, name].clear()
        self._put((name, peer), _CLOSED)
        self.counts["closed"] += 1
        if self._ends.running(name):
            self._ends.link_changed(name, peer, False)

    def _connect(self, pair: Link) -> None:
        self._at(self._conditions.retry_s * self._random.uniform(0.9, 1.1), self._connect, pair)
        if not self._can_connect(*pair):
            return
        both = (pair, (pair[1], pair[0]))
        for link in both:
            self._generation[link] += 1
            if self._up[link]:
                self._ends.link_changed(*link, False)
            self._queues[link].clear()
            self._up[link] = True
            self._last_at[link] = self._heard_at[link] = self._clock()
        for link in both:
            self._ends.link_changed(*link, True)

    def _can_connect(self, a: str, b: str) -> bool:
        ends, now = self._ends, self._clock()
        able = all(ends.running(name) and ends.paused_until(name) <= now for name in (a, b))
        return able and not self._blocks[a, b] and not self._blocks[b, a] and not (self._up[a, b] and self._up[b, a])
