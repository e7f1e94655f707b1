"""Deterministic simulation of one region's consensus: the real guard, engine and tail; virtual time, network and disks.

Theory of operation. One process, one thread, one heap of events in virtual time. A `Schedule` (one seed) decides the
conditions and the faults; one `Random` decides everything else, so a run can be repeated exactly, whatever the hash
seed. An oracle watches every commit, apply, election and answer; the first violation ends the run. After the last
fault a quiet time shows that everything converges and serves again.
"""

from __future__ import annotations

import heapq
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from chaos.schedule import FAULTS, Fault, Schedule, make_schedule
from chaos.sim_disk import Disk
from chaos.sim_network import Link, Network
from chaos.sim_node import PUT, SWAP, Clock, Node, write
from chaos.sim_oracle import Oracle, Violation
from controlplane.replication import Role
from controlplane.replication.engine import Core, SyncObjCore
from controlplane.replication.guard import Outcome

TRACE_LINES = 400
_NEXT_OPERATION_S = (0.005, 0.02, 0.05, 0.2)


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


class Simulation:
    """One run of one schedule. `off` plants defects (see guard.py); `core` chooses the consensus core."""

    def __init__(
        self, schedule: Schedule, *, off: frozenset[str] = frozenset(), core: Callable[..., Core] = SyncObjCore
    ) -> None:
        self.schedule, self.conditions, self.off, self.core = schedule, schedule.conditions, off, core
        self.random = Random(f"run/{schedule.seed}/{schedule.nodes}/{schedule.profile}")
        self.names = [f"n{k}" for k in range(schedule.nodes)]
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.trace: deque[str] = deque(maxlen=TRACE_LINES)
        self.fingerprint = 0
        self._now, self._seq = 0.0, 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.disks = {name: Disk() for name in self.names}
        self.clocks = {name: Clock(self.now) for name in self.names}
        self.nodes: dict[str, Node | None] = dict.fromkeys(self.names)
        self._processes = dict.fromkeys(self.names, 0)
        self._paused_until = dict.fromkeys(self.names, 0.0)
        self._slow_disk = dict.fromkeys(self.names, 0.0)
        self.oracle = Oracle(self.disks)
        self.network = Network(self.names, self, self.conditions, self.random, self.at, self.now)
        self._numbers = 0
        self._definite_failures: list[int] = []
        self._last_success = 0.0
        for name in self.names:
            self.start(name)
        for fault in schedule.faults:
            self.at(fault.at_s, self._strike, fault)
        self.at(1.0, self._client)
        self.at(0.5, self._inspect)

    # Time.

    def now(self) -> float:
        """True time, in seconds since the beginning."""
        return self._now

    def at(self, delay: float, function: Callable[..., None], *args: Any) -> None:
        """Call `function` after `delay` seconds."""
        self._seq += 1
        heapq.heappush(self._heap, (self._now + delay, self._seq, function, args))

    def log(self, *words: object) -> None:
        """Write a line of the trace."""
        line = f"{self._now:9.4f} " + " ".join(map(str, words))
        self.fingerprint = zlib.crc32(line.encode(), self.fingerprint)
        self.trace.append(line)

    def run(self) -> Result:
        """Run to the end, or to the first violation."""
        violation = None
        try:
            self.run_until(self.schedule.seconds)
            self._conclude()
        except Violation as found:
            violation = f"{found} (at {self._now:.3f} s)"
        counts = self.counts + self.oracle.counts + self.network.counts
        return Result(self.schedule.seed, violation, self._now, counts, self.faults, self.fingerprint, list(self.trace))

    def run_until(self, seconds: float) -> None:
        """Run every event before `seconds`; raises `Violation`."""
        while self._heap and self._heap[0][0] < seconds:
            self._now, _, function, args = heapq.heappop(self._heap)
            self.counts["events"] += 1
            function(*args)
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
            node.receive(list(messages))

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
        """Start a process on what its disk holds, unless one runs."""
        if self.nodes[name]:
            return
        self._processes[name] += 1
        peers = [other for other in self.names if other != name]
        try:
            node = self.make_node(name, peers)
        except Exception as error:
            raise Violation(f"START at {name}: {error}") from error
        self.nodes[name] = node
        self.network.process_started(name)
        self.log("start", name, "log", node.tail.boundary_index, node.tail.last_index, "term", node.tail.term)

    def make_node(self, name: str, peers: list[str]) -> Node:
        """Return the process that starts at `name`; whoever simulates more than consensus makes more of it."""
        return Node(self, name, peers, self.disks[name], self.clocks[name], self._processes[name])

    def crash(self, name: str, *, silent: bool = False, power: bool = False) -> None:
        """End the process at once; the disk loses what it may lose."""
        node = self.nodes[name]
        if not node:
            return
        lost = self.disks[name].crash(self.random, node.syncing, power=power)
        self.counts["crashes"] += 1
        self.counts["operations lost in crashes"] += lost
        self.nodes[name] = None
        self.log("crash", name, "lost", lost)
        self.network.process_died(name, silent=silent)

    def leader(self) -> str:
        """Who leads, for whoever wants to hurt it; anyone if nobody does."""
        leading = [node for node in self.running_nodes() if node.role is Role.LEADER]
        if not leading:
            return self.random.choice(self.names)
        return max(leading, key=lambda node: node.tail.term).name

    # Faults.

    def _strike(self, fault: Fault) -> None:
        random = Random(fault.salt)
        happened = _STRIKES[fault.kind](self, fault, random)
        if happened is not False:
            self.faults[fault.kind] += 1
            self.log("fault", fault.kind, f"{fault.for_s:.2f}")

    def _cut(self, fault: Fault, links: Iterable[Link]) -> None:
        self.network.cut(links, fault.for_s)

    def touching(self, *names: str) -> list[Link]:
        """Every link with an end in `names`."""
        return [link for link in self.network.links if set(link) & set(names)]

    def _cut_between(self, fault: Fault, side: set[str]) -> None:
        self._cut(fault, [link for link in self.network.links if (link[0] in side) != (link[1] in side)])

    def _bridge(self, fault: Fault, random: Random) -> None:
        a, b = random.sample(self.names, 2)
        self._cut(fault, [(a, b), (b, a)])

    def _ring(self, fault: Fault, random: Random) -> None:
        order = random.sample(self.names, len(self.names))
        kept = [frozenset(pair) for pair in zip(order, order[1:] + order[:1], strict=True)]
        if len(order) == 3:
            kept.pop()  # A ring of three is whole: leave a line.
        self._cut(fault, [link for link in self.network.links if frozenset(link) not in kept])

    def _flap(self, fault: Fault, random: Random) -> None:
        links = self.touching(random.choice(self.names))
        for k in range(6):
            self.at(k * fault.for_s / 6, self.network.cut, links, fault.for_s / 14)

    def _swizzle(self, fault: Fault, random: Random) -> None:
        for name in random.sample(self.names, len(self.names) - 1):
            begin = random.uniform(0, fault.for_s / 2)
            self.at(begin, self.network.cut, self.touching(name), random.uniform(0.1, 1) * fault.for_s)

    def _crash_some(self, names: list[str], fault: Fault, random: Random, **how: bool) -> None:
        for name in names:
            self.crash(name, **how)
            self.at(random.uniform(0.05, min(fault.for_s, 3.0)), self.start, name)

    def _victim(self, random: Random) -> str:
        return random.choice((self.leader(), random.choice(self.names)))

    def _pause(self, fault: Fault, random: Random) -> None:
        self._paused_until[self._victim(random)] = self._now + fault.for_s

    def _slow_links(self, fault: Fault, random: Random) -> None:
        for link in random.sample(self.network.links, random.randint(1, 2)):
            self.network.slow[link] = random.uniform(0.3, 3)
            self.at(fault.for_s, self.network.slow.__setitem__, link, 0.0)

    def _slow_one_disk(self, fault: Fault, random: Random) -> None:
        name = random.choice(self.names)
        self._slow_disk[name] = random.uniform(0.05, 1)
        self.at(fault.for_s, self._slow_disk.__setitem__, name, 0.0)

    def _transfer(self, fault: Fault, random: Random) -> bool:
        node = self.nodes[self.leader()]
        target = random.choice((None, random.choice(self.names)))
        if node is None:
            return False
        begun = node.call(node.guard.transfer, target, node.clock.now())
        node.pump()
        return begun is not None

    def _replace(self, fault: Fault, random: Random) -> bool:
        # An operator replaces one disk at a time: with two gone, what a majority held may be gone.
        if any(disk.learner for disk in self.disks.values()):
            return False
        name = self._victim(random)
        self.crash(name, silent=random.random() < 0.5)
        self.disks[name] = Disk(self.disks[name].life + 1)
        self.log("replace", name)
        self.at(random.uniform(0.05, fault.for_s), self.start, name)
        return True

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

    def _read(self, node: Node) -> None:
        floor, process = self.oracle.observed, node

        def done(proven: bool) -> None:
            self.counts["reads proven" if proven else "reads refused"] += 1
            if proven:
                self.oracle.read(process.name, process.applied[0], floor)
                self._last_success = self._now

        node.call(node.guard.read, done, node.clock.now())

    def _write(self, node: Node) -> None:
        self._numbers += 1
        number, floor = self._numbers, self.oracle.observed
        kind, expected = self.random.choice(((PUT, 0), (SWAP, self.random.randint(1, number))))
        padding = self.random.choice(self.conditions.payload_bytes)
        payload = write(number, self.random.randrange(8), kind, number, expected, padding)

        def done(outcome: Outcome, index: int) -> None:
            self.counts[f"writes {outcome.value}"] += 1
            if outcome is Outcome.APPLIED:
                self.oracle.acknowledged(number, index, floor)
                self._last_success = self._now
            elif outcome is not Outcome.UNKNOWN:
                self._definite_failures.append(number)

        self.counts["writes asked"] += 1
        node.call(node.guard.propose, payload, done)

    # Looking.

    def _inspect(self) -> None:
        self.oracle.logs_match(self.running_nodes())
        self.oracle.still_durable()
        self.at(0.5, self._inspect)

    def _conclude(self) -> None:
        self.oracle.logs_match(self.running_nodes())
        self.oracle.definite_failures(self._definite_failures)
        if self._last_success < self.schedule.seconds - 10:
            raise Violation(f"NO_LIVENESS nothing succeeded after {self._last_success:.1f} s")
        self._converged()

    def _converged(self) -> None:
        nodes = self.running_nodes()
        states = {(node.applied, node.mark(), tuple(sorted(node.records.items()))) for node in nodes}
        if len(nodes) < len(self.names) or len(states) > 1 or any(disk.learner for disk in self.disks.values()):
            raise Violation(f"NO_CONVERGENCE {'; '.join(self._describe(name) for name in self.names)}")

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


_Strike = Callable[[Simulation, Fault, Random], bool | None]

_STRIKES: dict[str, _Strike] = {
    "isolate-leader": lambda s, f, r: s._cut(f, s.touching(s.leader())),
    "isolate-any": lambda s, f, r: s._cut(f, s.touching(r.choice(s.names))),
    "halves": lambda s, f, r: s._cut_between(f, set(r.sample(s.names, len(s.names) // 2))),
    "majority-minority": lambda s, f, r: s._cut_between(f, {s.leader(), *r.sample(s.names, len(s.names) // 2 - 1)}),
    "one-way-from": lambda s, f, r: s._cut(f, [link for link in s.network.links if link[0] == s.leader()]),
    "one-way-to": lambda s, f, r: s._cut(f, [link for link in s.network.links if link[1] == s.leader()]),
    "one-way-mixed": lambda s, f, r: s._cut(f, r.sample(s.network.links, r.randint(1, len(s.names)))),
    "bridge": lambda s, f, r: s._bridge(f, r),
    "ring": lambda s, f, r: s._ring(f, r),
    "flap": lambda s, f, r: s._flap(f, r),
    "swizzle": lambda s, f, r: s._swizzle(f, r),
    "crash": lambda s, f, r: s._crash_some([s._victim(r)], f, r),
    "crash-silent": lambda s, f, r: s._crash_some([s._victim(r)], f, r, silent=True),
    "crash-majority": lambda s, f, r: s._crash_some(r.sample(s.names, len(s.names) // 2 + 1), f, r),
    "crash-all": lambda s, f, r: s._crash_some(s.names, f, r),
    "power-loss": lambda s, f, r: s._crash_some([s._victim(r)], f, r, silent=True, power=True),
    "power-loss-all": lambda s, f, r: s._crash_some(s.names, f, r, silent=True, power=True),
    "pause": lambda s, f, r: s._pause(f, r),
    "slow-link": lambda s, f, r: s._slow_links(f, r),
    "slow-disk": lambda s, f, r: s._slow_one_disk(f, r),
    "clock-rate": lambda s, f, r: s.clocks[r.choice(s.names)].set_rate(r.choice((0.7, 0.9, 1.1, 1.4, 1.0))),
    "transfer": lambda s, f, r: s._transfer(f, r),
    "replace": lambda s, f, r: s._replace(f, r),
}


@dataclass(slots=True)
class Report:
    """What many runs showed."""

    runs: int = 0
    seconds: float = 0.0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    violations: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Count one run in."""
        self.runs += 1
        self.seconds += result.seconds
        self.counts += result.counts
        self.faults += result.faults
        if result.violation:
            self.violations.append(result)

    def missing_faults(self) -> list[str]:
        """Kinds of fault that never happened."""
        return [kind for kind in FAULTS if not self.faults[kind]]


def simulate(
    seeds: Iterable[int],
    *,
    nodes: int = 3,
    seconds: float = 60.0,
    profile: str = "lan",
    off: frozenset[str] = frozenset(),
    stop_at: int | None = None,
    wall_s_max: float = float("inf"),
) -> Report:
    """Run one schedule per seed; stop after `stop_at` violations or `wall_s_max` seconds."""
    report, begun, cpu_begun = Report(), time.monotonic(), time.process_time()
    for seed in seeds:
        schedule = make_schedule(seed, nodes=nodes, seconds=seconds, profile=profile)
        report.add(Simulation(schedule, off=off).run())
        report.wall_s, report.cpu_s = time.monotonic() - begun, time.process_time() - cpu_begun
        if report.wall_s > wall_s_max or (stop_at is not None and len(report.violations) >= stop_at):
            break
    return report
