"""Deterministic simulation of one region's consensus: the real guard, engine and tail; virtual time, network and disks.

Theory of operation. One process, one thread, one heap of events in virtual time. A `Schedule` (one seed) decides the
conditions and the faults; one `Random` decides everything else, so a run can be repeated exactly, whatever the hash
seed. An oracle watches every commit, apply, election and answer; the first violation ends the run. After the last
fault a quiet time shows that everything converges and serves again. Where disks are slow and appends small, a backlog
outlasts it; then the run goes on until everything is level, for as long as that backlog may take and no longer.
"""

from __future__ import annotations

import heapq
import zlib
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from chaos.schedule import Fault, Schedule
from chaos.sim_disk import Disk
from chaos.sim_families import FAMILY_STRIKES, SLOW_WRITE_S, judge_steady
from chaos.sim_faults import STRIKES
from chaos.sim_network import Link, Network
from chaos.sim_node import PUT, SWAP, Clock, Node, Stopped, write
from chaos.sim_oracle import Oracle, Violation
from chaos.sim_settling import settling_s
from controlplane.errors import Fatal
from controlplane.replication import Role
from controlplane.replication.engine import Core, SyncObjCore
from controlplane.replication.guard import Outcome

TRACE_LINES = 400
INSPECT_S = 0.5
_NEXT_OPERATION_S = (0.005, 0.02, 0.05, 0.2)
_STRIKES = STRIKES | FAMILY_STRIKES
_ROLE_LETTERS = {Role.LEADER: "L", Role.CANDIDATE: "c", Role.FOLLOWER: "f"}


@dataclass(slots=True)
class Result:
    """What one run showed."""

    seed: int
    violation: str | None
    seconds: float
    counts: Counter[str]
    faults: Counter[str]
    fingerprint: int
    trace: list[str] = field(default_factory=list)
    timeline: dict[str, str] = field(default_factory=dict)


class Simulation:
    """One run of one schedule. `off` plants defects (guard.py, sim_disk.py); `core` chooses the consensus core.

    The trace keeps its last lines, or with `whole_trace` all of them.
    """

    def __init__(
        self,
        schedule: Schedule,
        *,
        off: frozenset[str] = frozenset(),
        core: Callable[..., Core] = SyncObjCore,
        whole_trace: bool = False,
    ) -> None:
        self.schedule, self.conditions, self.off, self.core = schedule, schedule.conditions, off, core
        self.random = Random(f"run/{schedule.seed}/{schedule.nodes}/{schedule.profile}")
        self.names: list[str] = [f"n{k}" for k in range(schedule.nodes)]
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self._whole_trace = whole_trace
        self.trace: deque[str] = deque(maxlen=None if whole_trace else TRACE_LINES)
        self.timeline: dict[str, list[str]] = {name: [] for name in self.names}
        self.unsettled_until = 0.0  # In the family "steady": until when a fault may slow what is asked.
        self.failovers: list[bool] = []  # In the family "steady": whether a leader that died was replaced at once.
        self.fingerprint = 0
        self._now, self._seq = 0.0, 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.disks: dict[str, Disk] = {name: self.make_disk() for name in self.names}
        self.clocks: dict[str, Clock] = {name: Clock(self.now) for name in self.names}
        self.nodes: dict[str, Node | None] = dict.fromkeys(self.names)
        self._processes = dict.fromkeys(self.names, 0)
        self._paused_until = dict.fromkeys(self.names, 0.0)
        self._slow_disk = dict.fromkeys(self.names, 0.0)
        self._led_since = dict.fromkeys(self.names, 0.0)
        self.oracle = Oracle(self.disks)
        self.network: Network = Network(self.names, self, self.conditions, self.random, self.at, self.now)
        self._numbers = 0
        self._definite_failures: list[int] = []
        self._last_success = 0.0
        for name in self.names:
            self.start(name)
        for fault in schedule.faults:
            self.at(fault.at_s, self._strike, fault)
        self.at(1.0, self._client)
        self.at(INSPECT_S, self._inspect)

    # Time.

    def now(self) -> float:
        """True time, in seconds since the beginning."""
        return self._now

    def at(self, delay: float, function: Callable[..., None], *args: Any) -> None:
        """Call `function` after `delay` seconds."""
        self._seq += 1
        heapq.heappush(self._heap, (self._now + delay, self._seq, function, args))

    def log(self, *words: object) -> None:
        """Write a line of the trace, which counts for the fingerprint."""
        line = self._line(words)
        self.fingerprint = zlib.crc32(line.encode(), self.fingerprint)
        self.trace.append(line)

    def note(self, *words: object) -> None:
        """Write a line that only a whole trace needs."""
        if self._whole_trace:
            self.trace.append(self._line(words))

    def _line(self, words: tuple[object, ...]) -> str:
        return f"{self._now:9.4f} " + " ".join(map(str, words))

    def run(self) -> Result:
        """Run to the end, or to the first violation."""
        violation = None
        try:
            self.run_until(self.schedule.seconds)
            self._settle()
            self._conclude()
        except Violation as found:
            violation = f"{found} (at {self._now:.3f} s)"
            self.log("violation", violation)
        return Result(
            self.schedule.seed,
            violation,
            self._now,
            self.counts + self.oracle.counts + self.network.counts,
            self.faults,
            self.fingerprint,
            list(self.trace),
            {name: "".join(letters) for name, letters in self.timeline.items()},
        )

    def run_until(self, seconds: float) -> None:
        """Run every event before `seconds`; raises `Violation`."""
        heap, pop = self._heap, heapq.heappop
        events = 0
        while heap and heap[0][0] < seconds:
            self._now, _, function, args = pop(heap)
            events += 1
            try:
                function(*args)
            except Stopped as stopped:
                self._stopped(stopped)
        self.counts["events"] += events
        self._now = seconds

    # Ends of the network.

    def running(self, name: str) -> int:
        """See `sim_network.Ends`."""
        return self._processes[name] if self.nodes[name] else 0

    def life(self, name: str) -> int:
        """See `sim_network.Ends`."""
        return self.disks[name].life

    def paused_until(self, name: str) -> float:
        """See `sim_network.Ends`."""
        return self._paused_until[name]

    def deliver(self, name: str, messages: Sequence[tuple[str, Any]]) -> None:
        """See `sim_network.Ends`."""
        node = self.nodes[name]
        if node:
            node.receive(messages)

    def link_changed(self, name: str, peer: str, up: bool) -> None:
        """See `sim_network.Ends`."""
        node = self.nodes[name]
        if node:
            node.call(node.guard.connected if up else node.guard.disconnected, peer, node.clock.now())
            node.pump()

    # Processes.

    def runs(self, node: Node) -> bool:
        """See `sim_node.World`."""
        return self.nodes[node.name] is node

    def slow_disk(self, name: str) -> float:
        """See `sim_node.World`."""
        return self._slow_disk[name]

    def running_nodes(self) -> list[Node]:
        """Every running process, in the order of names."""
        return [node for node in self.nodes.values() if node]

    def start(self, name: str) -> None:
        """Start a process on what its disk holds, unless one runs or the disk is full."""
        if self.nodes[name] or self.disks[name].full:
            return
        self._processes[name] += 1
        node = self._started(name)
        if node is None:
            return
        self.nodes[name] = node
        self.network.process_started(name)
        self.log("start", name, "log", node.tail.boundary_index, node.tail.last_index, "term", node.tail.term)

    def _started(self, name: str) -> Node | None:
        disk, peers = self.disks[name], [other for other in self.names if other != name]
        try:
            node = self.make_node(name, peers)
        except Fatal as error:
            if not disk.damaged:
                raise Violation(f"START at {name}: {error}") from error
            self._refused(name, str(error))
            return None
        if disk.damaged:
            raise Violation(f"WRONG_LOG {name} runs on a log in which {disk.damaged} is damaged")
        return node

    def make_disk(self) -> Disk:
        """Return an empty disk."""
        return Disk(off=self.off)

    def make_node(self, name: str, peers: list[str]) -> Node:
        """Return the process that starts at `name`; whoever simulates more than consensus makes more of it."""
        return Node(self, name, peers, self.disks[name], self.clocks[name], self._processes[name])

    def _refused(self, name: str, why: str) -> None:
        """A node refuses to start over damage: its operator gives it an empty disk and --replace."""
        if self.disks[name].damaged not in why:
            raise Violation(f"START at {name}: damage is not named: {why}")
        self.counts["starts refused for damage"] += 1
        self.log("refuses", name, why)
        self.disks[name] = self.disks[name].successor()
        self.at(0.5, self.start, name)

    def crash(self, name: str, *, silent: bool = False, power: bool = False) -> None:
        """End the process at once; the disk loses what it may lose."""
        node = self.nodes[name]
        if not node:
            return
        lost = self.disks[name].crash(self.random, node.syncing, power=power)
        self.oracle.survives(name, node.tail)
        self.counts["crashes"] += 1
        self.counts["operations lost in crashes"] += lost
        self.nodes[name] = None
        self.log("crash", name, "lost", lost)
        self.network.process_died(name, silent=silent)

    def _stopped(self, stopped: Stopped) -> None:
        if self.nodes[stopped.name]:
            self.faults["disk-full"] += 1
            self.log("stops", stopped.name, stopped)
            self.crash(stopped.name)

    def leader(self) -> str:
        """Who leads, for whoever wants to hurt it; anyone if nobody does."""
        leading = [node for node in self.running_nodes() if node.role is Role.LEADER]
        if not leading:
            return self.random.choice(self.names)
        return max(leading, key=lambda node: node.tail.term).name

    # Faults.

    def _strike(self, fault: Fault) -> None:
        if _STRIKES[fault.kind](self, fault, Random(fault.salt)) is not False:
            self.faults[fault.kind] += 1
            self.log("fault", fault.kind, f"{fault.for_s:.2f}")

    def pause(self, name: str, for_s: float) -> None:
        """Stop the process at `name` for a while, as SIGSTOP does; of two pauses that overlap the later end counts.

        What waits for the end of a pause looks at it once: it must not come sooner afterwards.
        """
        self._paused_until[name] = max(self._paused_until[name], self._now + for_s)

    def slow_link(self, link: Link, extra_s: float, for_s: float) -> None:
        """Make everything sent on `link` take `extra_s` longer, for a while."""
        self.network.slow[link] = extra_s
        self.at(for_s, self.network.slow.__setitem__, link, 0.0)

    def slow_one_disk(self, name: str, extra_s: float, for_s: float) -> None:
        """Make every sync at `name` take `extra_s` longer, for a while."""
        self._slow_disk[name] = extra_s
        self.at(for_s, self._slow_disk.__setitem__, name, 0.0)

    def make_room(self, name: str) -> None:
        """Let a full disk take more, and start the node that stopped because of it."""
        self.disks[name].full = False
        self.start(name)

    def may_lose_a_disk(self) -> bool:
        """An operator replaces one disk at a time: with two gone, what a majority held may be gone."""
        return not any(disk.learner or disk.damaged for disk in self.disks.values())

    def replace(self, name: str, *, silent: bool, after: float) -> None:
        """Crash `name` and start it on an empty disk."""
        self.crash(name, silent=silent)
        self.disks[name] = self.disks[name].successor()
        self.log("replace", name)
        self.at(after, self.start, name)

    def transfer(self, target: str | None) -> bool:
        """Ask the leader to hand over, to `target` or whom it likes; False if that did not begin."""
        node = self.nodes[self.leader()]
        if node is None:
            return False
        begun = node.call(node.guard.transfer, target, node.clock.now())
        node.pump()
        return begun is not None

    # Clients.

    def _client(self) -> None:
        nodes = [node for node in self.running_nodes() if self._paused_until[node.name] <= self._now]
        if nodes and self._now < self.schedule.seconds - 6:
            leader = self.nodes[self.leader()]
            node = leader if leader in nodes and self.random.random() < 0.6 else self.random.choice(nodes)
            if node:
                self._operate(node)
                node.pump()
        self.at(self.random.choice(_NEXT_OPERATION_S), self._client)

    def _operate(self, node: Node) -> None:
        if self.random.random() < 0.4:
            self._read(node)
        else:
            self._write(node)

    def burst(self, name: str, count: int) -> None:
        """Ask the process at `name`, if one runs, for `count` writes at once."""
        node = self.nodes[name]
        if node:
            for _ in range(count):
                self._write(node)
            node.pump()

    def read_at(self, name: str) -> None:
        """Ask the process at `name`, if one runs, for a read."""
        node = self.nodes[name]
        if node:
            self._read(node)
            node.pump()

    def _read(self, node: Node) -> None:
        self._numbers += 1
        number, floor = self._numbers, self.oracle.observed
        self.note("read", number, "at", node.name, "floor", floor)

        def done(proven: bool) -> None:
            self.counts["reads proven" if proven else "reads refused"] += 1
            self.log("answer", number, f"applied {node.applied[0]}" if proven else "refused")
            if proven:
                self.oracle.read(node.name, node.applied[0], floor)
                self._last_success = self._now

        node.call(node.guard.read, done, node.clock.now())

    def _write(self, node: Node) -> None:
        self._numbers += 1
        number, floor, began = self._numbers, self.oracle.observed, self._now
        payload = self._payload(number)
        prompt = node.guard.ready and self._settled
        self.note("write", number, "at", node.name, "floor", floor)

        def done(outcome: Outcome, index: int) -> None:
            self.counts[f"writes {outcome.value}"] += 1
            self.log("answer", number, outcome.value, index)
            if outcome is Outcome.APPLIED:
                self.oracle.acknowledged(number, index, floor)
                self._last_success = self._now
                self._judge_write(number, self._now - began if prompt else 0.0)
            elif outcome is not Outcome.UNKNOWN:
                self._definite_failures.append(number)

        self.counts["writes asked"] += 1
        self._propose(node, payload, done)

    def _payload(self, number: int) -> bytes:
        kind, expected = self.random.choice(((PUT, 0), (SWAP, self.random.randint(1, number))))
        bounds = self.conditions.bounds
        padding = self.random.choice(self.conditions.payload_bytes)
        if self.random.random() < 0.005:
            padding = bounds.entry_bytes_max
        return write(number, self.random.randrange(8), kind, number, expected, padding)

    def _propose(self, node: Node, payload: bytes, done: Callable[[Outcome, int], None]) -> None:
        try:
            node.call(node.guard.propose, payload, done)
        except ValueError as error:
            if len(payload) <= self.conditions.bounds.entry_bytes_max:
                raise Violation(f"REFUSED_SMALL {node.name}: {error}") from error
            self.counts["writes too large"] += 1

    @property
    def _settled(self) -> bool:
        """Whether whoever asks now may expect an answer at once."""
        return self.schedule.profile == "steady" and self._now > self.unsettled_until

    def _judge_write(self, number: int, took_s: float) -> None:
        if took_s > SLOW_WRITE_S and self._settled:
            raise Violation(f"SLOW_WRITE {number} took {took_s * 1000:.1f} ms while nothing was wrong")

    # Looking.

    def _inspect(self) -> None:
        nodes = self.running_nodes()
        self.oracle.logs_match(nodes)
        self.oracle.still_durable()
        for name in self.names:
            self.timeline[name].append(self._letter(name))
            self._look_for_lingering(name)
        self.at(INSPECT_S, self._inspect)

    def _letter(self, name: str) -> str:
        node = self.nodes[name]
        if node is None:
            return "."
        if self._paused_until[name] > self._now:
            return "p"
        return "r" if self.disks[name].learner else _ROLE_LETTERS[node.role]

    def _look_for_lingering(self, name: str) -> None:
        """A leader that nothing can reach has given up after its fallback time, by the slowest clock there is."""
        node = self.nodes[name]
        if node is None or node.role is not Role.LEADER or self._paused_until[name] > self._now:
            self._led_since[name] = self._now
        deaf_s = min(self.network.deaf_s(name), self._now - self._led_since[name])
        if deaf_s > 1.5 * self.conditions.timing.fallback_s + 1.0:
            raise Violation(f"LINGERING_LEADER {name} could not be reached for {deaf_s:.1f} s and still leads")

    def _settle(self) -> None:
        """Go on until all is level, or until it has to be."""
        until = self._now + self._settling_s()
        while not self._is_settled() and self._now < until:
            self.run_until(min(until, self._now + INSPECT_S))

    def _settling_s(self) -> float:
        """How long it may take from now on until all is level."""
        nodes = self.running_nodes()
        if not nodes:
            return 0.0
        leading = max(nodes, key=lambda node: (node.tail.last_term, node.tail.last_index)).tail
        applied = min(node.applied[0] for node in nodes)
        return settling_s(self.conditions, leading, self.oracle.max_commit, applied)

    def _is_settled(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self._is_level()

    def _conclude(self) -> None:
        nodes = self.running_nodes()
        self.oracle.logs_match(nodes)
        self.oracle.still_durable()
        self.oracle.definite_failures(self._definite_failures)
        if self._last_success < self.schedule.seconds - 10:
            raise Violation(f"NO_LIVENESS nothing succeeded after {self._last_success:.1f} s")
        self._converged()
        self.oracle.everything_acknowledged([node.applied[0] for node in nodes])
        judge_steady(self)

    def _converged(self) -> None:
        if not self._is_level():
            raise Violation(f"NO_CONVERGENCE {'; '.join(self._describe(name) for name in self.names)}")

    def _is_level(self) -> bool:
        """Whether every node runs, counts, and holds the same."""
        nodes = self.running_nodes()
        states = {(node.applied, node.mark(), self.contents(node)) for node in nodes}
        return len(nodes) == len(self.names) and len(states) == 1 and not any(d.learner for d in self.disks.values())

    def contents(self, node: Node) -> Hashable:
        """What `node` holds, to be compared."""
        return tuple(sorted(node.records.items()))

    def _describe(self, name: str) -> str:
        node = self.nodes[name]
        if node is None:
            return f"{name} is down"
        status = node.guard.status(node.clock.now())
        states = {peer: one.state for peer, one in status.peers.items()}
        return (
            f"{name} {status.role.value} term {status.term} commit {status.commit} applied {status.applied} "
            f"last {status.last} learner {node.guard.learner} {states}"
        )
