"""One simulated process: the real guard, engine and tail over a small key-value machine, a disk and a clock."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Protocol

from chaos.schedule import Conditions
from chaos.sim_disk import Applied, Disk, State
from chaos.sim_network import Network, Part
from chaos.sim_oracle import Oracle, Violation
from controlplane.errors import Fatal
from controlplane.replication import Role
from controlplane.replication.engine import Core
from controlplane.replication.guard import Guard, Malformed
from controlplane.replication.snapshots import SnapshotMeta
from controlplane.replication.tail import Entry, Tail

_WRITE = struct.Struct("<QHBQQ")
_RECORD = struct.Struct("<QQ")
_MARK = struct.Struct("<QI")
PUT, SWAP = 1, 2
# Timers fire a little late.
_WAKE_LATE_S = 0.0003
# A node that wants to be woken at once this often in a row does nothing else.
_AT_ONCE_MAX = 500


def write(number: int, key: int, kind: int, value: int, expected: int, padding: int) -> bytes:
    """One write as a payload: put `value`, or (SWAP) put it if the record holds `expected`."""
    return _WRITE.pack(number, key, kind, value, expected) + b"x" * padding


class Clock:
    """A node's clock: monotonic, at a rate of its own."""

    def __init__(self, true_now: Callable[[], float]) -> None:
        self._true_now = true_now
        self._since, self._base, self._rate = 0.0, 1000.0, 1.0

    def now(self) -> float:
        """Return this clock's time."""
        return self._base + (self._true_now() - self._since) * self._rate

    def set_rate(self, rate: float) -> None:
        """Run at `rate` from now on."""
        self._base, self._since, self._rate = self.now(), self._true_now(), rate

    def true_delay(self, until: float, now: float | None = None) -> float:
        """How long, in true seconds, until this clock shows `until`; `now` is what it shows, if that is known."""
        left = until - (self.now() if now is None else now)
        return left / self._rate if left > 0 else 0.0


class Stopped(Exception):
    """The process at `name` ends itself, as a real one does on `Fatal`: its disk takes nothing more."""

    def __init__(self, name: str, why: Fatal) -> None:
        super().__init__(str(why))
        self.name = name


class World(Protocol):
    """What a node needs of the simulation around it."""

    conditions: Conditions
    random: Random
    network: Network
    oracle: Oracle
    off: frozenset[str]
    core: Callable[..., Core]

    def at(self, delay: float, function: Callable[..., None], *args: Any) -> None:
        """Schedule."""

    def runs(self, node: Node) -> bool:
        """Whether `node` is the process that runs under its name now."""

    def paused_until(self, name: str) -> float:
        """When `name` will run again."""

    def now(self) -> float:
        """True time."""

    def log(self, *words: object) -> None:
        """Write a line of the trace."""

    def slow_disk(self, name: str) -> float:
        """Seconds that every sync takes longer."""


class _Image:
    """A snapshot in memory."""

    def __init__(self, state: State, padding: int) -> None:
        records = b"".join(_RECORD.pack(*item) for item in sorted(state.records.items()))
        self._data = _RECORD.pack(state.digest, len(state.records)) + records + b"p" * padding
        digest = hashlib.sha256(self._data).digest()
        self.meta = SnapshotMeta(state.index, state.term, len(self._data), digest)
        self.closed = False

    def read(self, offset: int, size: int) -> bytes:
        if self.closed:
            raise Violation("SNAPSHOT_USE read after close")
        return self._data[offset : offset + size]

    def close(self) -> None:
        if self.closed:
            raise Violation("SNAPSHOT_USE closed twice")
        self.closed = True


def _state_of(meta: SnapshotMeta, data: bytes) -> State | None:
    if hashlib.sha256(data).digest() != meta.digest:
        return None
    digest, count = _RECORD.unpack_from(data)
    records = dict(_RECORD.iter_unpack(data[_RECORD.size : _RECORD.size * (count + 1)]))
    return State(meta.index, meta.term, digest, records)


class Node:
    """A process: `Host` and `Machine` of its guard."""

    def __init__(self, world: World, name: str, peers: list[str], disk: Disk, clock: Clock, process: int) -> None:
        self.world, self.name, self.disk, self.clock, self.process = world, name, disk, clock, process
        state = disk.state()
        self.records = dict(state.records)
        self._applied, self._digest = (state.index, state.term), state.digest
        self.tail = Tail(disk.recovered(), disk.sink, strict=not world.off)
        self.syncing = 0
        self._store_syncing = False
        self._wake_at = float("inf")
        self._at_once = 0
        self._incoming = b""
        self._was_leader = False
        self._oracle = world.oracle
        self.guard = Guard(
            name,
            peers,
            self.tail,
            self,
            self,
            now=clock.now(),
            random=world.random,
            timing=world.conditions.timing,
            bounds=world.conditions.bounds,
            learner=disk.learner,
            off=world.off,
            core=world.core,
        )
        disk.learner = self.guard.learner  # Always so, unless that rule is switched off.
        self._later(world.random.uniform(0, 0.02), self.pump)

    @property
    def role(self) -> Role:
        """The guard's role."""
        return self.guard.role

    # Events.

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call into the guard; what it cannot go on from is a violation."""
        try:
            return function(*args)
        except (Fatal, Malformed) as error:
            raise self._gave_up(error) from error

    def _gave_up(self, error: Exception) -> Violation:
        return Violation(f"{type(error).__name__.upper()} at {self.name}: {error}")

    def receive(self, messages: Sequence[tuple[str, Any]]) -> None:
        """Take messages, then do what is due."""
        now = self.clock.now()
        try:
            for peer, message in messages:
                if isinstance(message, Part):
                    self.guard.heard_part(peer, message.term, now)
                else:
                    self.guard.receive(peer, message, now)
        except (Fatal, Malformed) as error:
            raise self._gave_up(error) from error
        self.pump()

    def pump(self) -> None:
        """Tick, look, sync, trim, and arrange to be woken."""
        now, tail = self.clock.now(), self.tail
        try:
            self.guard.tick(now)
        except (Fatal, Malformed) as error:
            raise self._gave_up(error) from error
        if tail.commit > self._oracle.max_commit:
            self._oracle.looks(self)
        if not self.syncing and tail.seq > tail.synced_seq:
            self._begin_sync()
        if not self._store_syncing and len(tail) > self.world.conditions.trim_entries:
            self._begin_trim()
        self._arrange(now)

    def _arrange(self, now: float | None = None) -> None:
        delay = self.clock.true_delay(self.guard.deadline, now)
        if delay > 0:
            self._at_once = 0
        else:
            self._at_once += 1
            if self._at_once > _AT_ONCE_MAX:
                raise Violation(f"BUSY {self.name} never rests")
        at = self.world.now() + delay
        if at < self._wake_at - 1e-6:
            self._wake_at = at
            self.world.at(delay + _WAKE_LATE_S, self._wake, at)

    def _wake(self, at: float) -> None:
        if at != self._wake_at or not self.world.runs(self):
            return
        paused = self.world.paused_until(self.name) - self.world.now()
        if paused > 0:
            self.world.at(paused + 1e-6, self._wake, at)
            return
        self._wake_at = float("inf")
        if self.guard.deadline <= self.clock.now():
            self.pump()
        else:
            self._arrange()

    def _later(self, delay: float, function: Callable[..., None], *args: Any) -> None:
        """Run `function` after `delay` if this process still runs then (later if it is paused)."""
        self.world.at(delay, self._run, function, args)

    def _run(self, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        if not self.world.runs(self):
            return
        paused = self.world.paused_until(self.name) - self.world.now()
        if paused > 0:
            self.world.at(paused + 1e-6, self._run, function, args)
        else:
            function(*args)

    # The disk.

    def _disk_takes(self) -> None:
        try:
            self.disk.takes()
        except Fatal as error:
            raise Stopped(self.name, error) from error

    def _sync_time(self) -> float:
        return self.world.random.uniform(*self.world.conditions.sync_s) + self.world.slow_disk(self.name)

    def _begin_sync(self) -> None:
        self.syncing = self.tail.seq
        self._later(self._sync_time(), self._end_sync)

    def _end_sync(self) -> None:
        self._disk_takes()
        seq, self.syncing = self.syncing, 0
        self.disk.sync(seq)
        self.call(self.guard.synced, seq, self.clock.now())
        self.pump()

    def _begin_trim(self) -> None:
        self._store_syncing = True
        self._later(self._sync_time() + 0.05, self._end_trim, self.guard.applied)

    def _end_trim(self, index: int) -> None:
        self._disk_takes()
        self._store_syncing = False
        self.disk.store_synced(index)
        durable = self.disk.base.index
        self.call(self.guard.trim, durable, self.world.conditions.keep_entries, 1 << 30)
        self.pump()

    # Machine.

    @property
    def applied(self) -> tuple[int, int]:
        """See `controlplane.replication.Machine`."""
        return self._applied

    def apply(self, index: int, term: int, entry: bytes) -> None:
        """See `controlplane.replication.Machine`."""
        if index != self._applied[0] + 1:
            raise Violation(f"APPLY_ORDER {self.name} applied {index} after {self._applied[0]}")
        self._digest = zlib.crc32(_RECORD.pack(index, term) + entry, self._digest)
        number, put = self._effect(entry)
        if put:
            self.records[put[0]] = put[1]
        self._applied = (index, term)
        self.disk.unsynced.append(Applied(index, term, self._digest, put))
        self.world.oracle.applies(self.name, Entry(index, term, entry), self._digest, number)

    def _effect(self, entry: bytes) -> tuple[int | None, tuple[int, int] | None]:
        if not entry:
            return None, None
        number, key, kind, value, expected = _WRITE.unpack_from(entry)
        happens = kind == PUT or self.records.get(key, 0) == expected
        return number, (key, value) if happens else None

    # Host.

    def send(self, peer: str, message: Any) -> None:
        """See `guard.Host`."""
        self.world.network.send(self.name, peer, message)

    def changed(self) -> None:
        """See `guard.Host`."""
        leads = self.guard.role is Role.LEADER
        if leads and not self._was_leader:
            self.world.log("leads", self.name, "term", self.tail.term, "last", self.tail.last_index)
            self.world.oracle.leads(self)
        self._was_leader = leads

    def mark(self) -> bytes:
        """See `guard.Host`."""
        return _MARK.pack(self._applied[0], self._digest)

    def marked(self, peer: str, mark: bytes) -> None:
        """See `guard.Host`."""
        index, digest = _MARK.unpack(mark)
        self.world.oracle.compares(self.name, index, digest)

    def free_bytes(self) -> int:
        """See `guard.Host`."""
        return 1 << 30

    def snapshot_wanted(self) -> None:
        """See `guard.Host`."""
        state = State(*self._applied, self._digest, dict(self.records))
        self._later(self.world.random.uniform(*self.world.conditions.snapshot_s), self._snapshot_made, state)

    def _snapshot_made(self, state: State) -> None:
        now = self.clock.now()
        if self.world.random.random() < 0.05:
            self.call(self.guard.snapshot_unready, now)
        else:
            self.world.oracle.counts["snapshots made"] += 1
            self.call(self.guard.snapshot_ready, _Image(state, self.world.conditions.padding_bytes), now)
        self.pump()

    def snapshot_chunk(self, meta: SnapshotMeta, offset: int, data: bytes) -> None:
        """See `guard.Host`."""
        self._incoming = (self._incoming if offset else b"") + data
        if len(self._incoming) != offset + len(data):
            raise Violation(f"SNAPSHOT_ORDER {self.name} was handed offset {offset}")
        if self.world.random.random() < 0.5:
            self.guard.snapshot_written(meta, len(self._incoming))
        else:
            self._later(self._sync_time(), self._chunk_written, meta, len(self._incoming))
        if len(self._incoming) == meta.size:
            delay = self.world.random.uniform(*self.world.conditions.snapshot_s)
            self._later(delay, self._install, meta, self._incoming)

    def _chunk_written(self, meta: SnapshotMeta, offset: int) -> None:
        self.call(self.guard.snapshot_written, meta, offset)
        self.pump()

    def _install(self, meta: SnapshotMeta, data: bytes) -> None:
        state = _state_of(meta, data) if self.world.random.random() > 0.1 else None
        if state is None:
            self.world.oracle.counts["snapshots damaged"] += 1
            self.call(self.guard.snapshot_failed, meta, self.clock.now())
            self.pump()
            return
        if state.index < self._applied[0]:
            raise Violation(f"SNAPSHOT_REGRESSION {self.name} from {self._applied[0]} to {state.index}")
        self.world.oracle.compares(self.name, state.index, state.digest)
        self.disk.install(state)
        self._applied, self._digest, self.records = (state.index, state.term), state.digest, dict(state.records)
        self._later(self.world.random.uniform(0, 0.01), self._installed, meta)

    def _installed(self, meta: SnapshotMeta) -> None:
        self.world.oracle.counts["snapshots installed"] += 1
        self.world.log("installed", self.name, meta.index)
        self.call(self.guard.snapshot_installed, meta, self.clock.now())
        self.pump()

    def caught_up(self) -> None:
        """See `guard.Host`."""
        self._later(self._sync_time(), self._record_joined)

    def _record_joined(self) -> None:
        self.disk.learner = False
        self.world.oracle.counts["learners joined"] += 1
        self.world.log("joined", self.name, "at", self._applied[0])
        self.call(self.guard.joined, self.clock.now())
        self.pump()
