"""The log of a region: the pure guard, driven by one event loop, a journal thread, timers and links.

Theory of operation. Everything that can happen (a message, a broken link, a batch on disk, a timer, a call)
is told to the guard, which is pure, and is followed at once by one *turn*: tick the guard, hand new
operations to the journal thread, set the timer to the guard's deadline. A turn costs tens of microseconds, so
there is no tick thread, no polling and no queue between arrival and answer.

1. **Persist, then send** is the guard's rule; the shell only reports what is on disk. A leader's appends
   leave while its own batch is being synced.
2. **One synced batch at a time.** While one is being written the next one collects: the disk sets the batch
   size. Operations that only move the commit index are folded into the next batch, they need no sync of their
   own.
3. **The loop does not wait for a slow disk.** On a fast disk two changes of thread take longer than the sync, so the
   loop writes small batches itself: a follower before it does anything else, a leader once its appends have left. One
   that takes longer than `_INLINE_S_MAX` sends what comes within `_INLINE_PAUSES` times as long to the journal thread:
   a disk that is slow now and then costs little, one that is always slow no more than that part of the loop's time.
   Besides, only the rare and tiny writes of the data folder's identity and of the switch to an installed snapshot are
   done on the loop. Snapshots are written, checked and installed by a thread.
4. **The store is synced before the log is trimmed**, to the index it had applied before that sync began.
5. **Anything unexpected stops the node**: `failed` is set, nothing more is sent, applied or acknowledged, and
   the entry point ends the process. An exception in a callback of the loop would otherwise be logged and
   forgotten.
6. Callers' deadlines are kept here: the guard knows no callers' clocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Protocol, TypeVar

from controlplane.credentials import Credentials
from controlplane.datadir import BALLAST_BYTES, DataFolder, Standing
from controlplane.errors import ControlPlaneError, Fatal, OutcomeUnknown, Refused, Unavailable
from controlplane.identity import EVERY_ENVIRONMENT, Identity
from controlplane.limits import DISK_FREE_BYTES_MIN, ENTRY_BYTES_MAX, MESSAGE_BYTES_MAX
from controlplane.replication import LogStatus, Machine, Role
from controlplane.replication.guard import Bounds, Guard, Malformed, Outcome, Timing
from controlplane.replication.host import applied_at
from controlplane.replication.journal import Journal, JournalThread
from controlplane.replication.roster import DISK_SET_BACK, INCARNATION_CHANGED, Roster
from controlplane.replication.snapshot_files import (
    Incoming,
    Outgoing,
    SnapshotStore,
    emptied,
    header_of,
    produce,
    stage,
)
from controlplane.replication.snapshots import SnapshotMeta
from controlplane.replication.tail import Add, Commit, Meta, Op, Tail
from controlplane.replication.transport import Disturbance, LinkBounds, LinkCounters, Transport
from controlplane.storage import Staged, folder_bytes
from controlplane.v1.peer_pb2 import PeerHello
from controlplane.v1.raft_pb2 import RaftMessage

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

_HOUSEKEEPING_S = 0.25
_FRESHNESS_S = 1.0
_RETRY_S = 0.02
_TRIM_S = 60.0
_TIMER_MIN_S = 0.0005
_WRITER_STOP_S = 10.0
# A batch that the loop writes itself: how large it may be, how long it may take, and for how many times as long as it
# took none is written there if that was longer.
_INLINE_BYTES_MAX = 128 << 10
_INLINE_S_MAX = 0.002
_INLINE_PAUSES = 50


class DurableMachine(Machine, Protocol):
    """A machine whose state can be copied whole and compared; what `RaftLog` drives. All on the loop."""

    @property
    def store(self) -> SnapshotStore:
        """Where the state lives, the applied index with it."""

    def reloaded(self) -> None:
        """The store now holds another, newer state: forget what was read from the old one."""

    def mark(self) -> bytes:
        """Return the applied (revision, running hash) in a form that `marked` of another node understands."""

    def marked(self, peer: str, mark: bytes) -> None:
        """Compare with the leader's mark; raise `Fatal` if the two states contradict each other."""


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """One node's part in its region's log.

    `peers` maps the name of every *other* node to its peer address; `listen` is this node's. Without
    `credentials` all of them must be loopback addresses. The journal keeps at least `keep_entries` and
    `keep_bytes` of applied entries, or whichever is less, for peers that were away, and is trimmed when it
    holds half as much again. Raises ValueError if a link could not hold what may be on its way to a follower.
    """

    fleet: str
    region: str
    node: str
    listen: str
    peers: Mapping[str, str]
    credentials: Credentials | None
    timing: Timing = field(default_factory=Timing)
    bounds: Bounds = field(default_factory=lambda: Bounds(entry_bytes_max=ENTRY_BYTES_MAX + 1024))
    links: LinkBounds = field(default_factory=lambda: LinkBounds(message_bytes_max=MESSAGE_BYTES_MAX))
    keep_entries: int = 20_000
    keep_bytes: int = 16 << 20
    ballast_bytes: int = BALLAST_BYTES
    join_timeout_s: float = 60.0
    handover_timeout_s: float = 1.0

    def __post_init__(self) -> None:
        needed, held = self.bounds.follower_bytes_max, self.links.waiting_bytes_max
        if needed > held:
            raise ValueError(f"{needed} bytes may be on their way to a follower, but a link holds {held}")


class RaftLog:
    """A `Log` (see controlplane.replication) of one region. Give it an open data folder; it closes it when it stops.

    `failed` is a future that ends with `Fatal` when this node must not go on; the entry point waits for it.
    """

    def __init__(self, config: RaftConfig, folder: DataFolder, *, random: Random | None = None) -> None:
        self.config = config
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failed.add_done_callback(_seen)
        self.free_bytes = folder.free_bytes()
        self._folder = folder
        self._random = random or Random(secrets.randbits(128))  # noqa: S311 - it spreads timers, it guards nothing.
        self._loop = asyncio.get_running_loop()
        self._roster = Roster(folder, frozenset(config.peers))
        me = Identity(config.fleet, EVERY_ENVIRONMENT, config.region, "peer", config.node)
        self._transport = Transport(
            me, config.peers, config.listen, config.credentials, _Links(self), random=self._random, bounds=config.links
        )
        self._listeners: list[Callable[[], None]] = []
        self._sync_listeners: list[Callable[[float], None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._answers: set[asyncio.Future[tuple[Outcome, int]]] = set()
        self._changes = asyncio.Event()
        self._met = asyncio.Event()
        self._refusals: dict[str, str] = {}
        self._changed = False
        self._ops: list[Op] = []
        self._seq = 0
        self._writing = False
        self._sending = False
        self._only_commits = True
        self._folded_seq = 0
        self._inline_from = 0.0
        self._serial = 0
        self._open = contextlib.ExitStack()
        self._writer: JournalThread | None = None
        self._loaded = False
        self._active = False
        self._turning = False
        self._poked = False
        self._timer: asyncio.TimerHandle | None = None
        self._disk = ThreadPoolExecutor(1, "disk")
        self._snapshots_out = ThreadPoolExecutor(1, "snapshots out")
        self._snapshots_in = ThreadPoolExecutor(1, "snapshots in")
        self._scrubs = ThreadPoolExecutor(1, "scrubs")

    @property
    def port(self) -> int:
        """The port that peers reach this node on."""
        return self._transport.port

    @property
    def counters(self) -> LinkCounters:
        """What happened on the links so far."""
        return self._transport.counters

    def disturb(self, disturbance: Disturbance) -> None:
        """Let a drill decide what gets through on the links."""
        self._transport.disturbance = disturbance

    def send_undisturbed(self, peer: str, message: RaftMessage) -> None:
        """Send what a drill held back."""
        self._transport.queue(peer, message)

    async def listen(self) -> None:
        """Open the peer port, as `start` does too: apart, so that `port` may be known before any node dials."""
        if not self._transport.port:
            await self._transport.start()

    async def start(self, machine: DurableMachine, *, peers: Mapping[str, str] | None = None) -> None:
        """See `Log`.

        Waits for every peer while this folder is joining. `peers` overrides configured addresses.
        """
        self._machine = machine
        self._journal = await self._on_disk(Journal, self._folder.journal)
        self._open.callback(self._journal.close)
        self._check_journal()
        recovered = await self._on_disk(self._journal.recover)
        emptied(self._folder.snapshots)
        self._tail = Tail(recovered, self._sink)
        self._incoming = Incoming(self._folder.snapshots / "in")
        self._open.callback(self._incoming.close)
        self._writer = JournalThread(self._journal, self._written_in_thread)
        self._loaded = True
        await self._on_disk(self._folder.lay_ballast, self.config.ballast_bytes)
        await self.listen()
        self._transport.dial(peers)
        await self._join()
        self._begin(machine)

    async def stop(self) -> None:
        """See `Log`. Leaves the folder open, for the process to end with, if the disk holds up the journal's thread."""
        if self._active and self._guard.role is Role.LEADER and self.config.peers:
            with contextlib.suppress(ControlPlaneError):
                await self.transfer(None, timeout_s=self.config.handover_timeout_s)
        self._deactivate()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._transport.stop()
        closed = await self._on_disk(self._close_disk)
        self._disk.shutdown()
        if closed:
            self._folder.close()

    async def append(self, entry: bytes, *, timeout_s: float) -> int:
        """See `Log`. Raises ValueError for an entry over the bound, which is the caller's defect."""
        self._require_active()
        answer: asyncio.Future[tuple[Outcome, int]] = self._loop.create_future()
        self._answers.add(answer)
        try:
            self._guard.propose(entry, partial(_answer, answer))
            self._turn()
            async with asyncio.timeout(timeout_s):
                return applied_at(*await answer)
        except TimeoutError:
            raise OutcomeUnknown("the log gave no answer in time", reason="LOG_TIMEOUT") from None
        finally:
            self._answers.discard(answer)

    async def barrier(self, *, timeout_s: float) -> None:
        """See `Log`. Asks again through changes of leader until `timeout_s` is over."""
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._round():  # noqa: ASYNC110 - nothing announces that a round may succeed now.
                    await asyncio.sleep(_RETRY_S)
        except TimeoutError:
            raise Unavailable("no majority confirmed this node's state in time", reason="NO_MAJORITY") from None

    async def transfer(self, target: str | None, *, timeout_s: float) -> str:
        """See `Log`.

        Raises `Unavailable` when this node does not lead, or the target did not take over in time.
        """
        self._require_active()
        chosen = self._guard.transfer(target, time.monotonic())
        if chosen is None:
            raise Unavailable("this node does not lead, or the target cannot be reached", reason="TRANSFER_IMPOSSIBLE")
        self._poke()
        try:
            async with asyncio.timeout(timeout_s):
                while self._guard.leader != chosen:
                    self._changes.clear()
                    await self._changes.wait()
        except TimeoutError:
            raise Unavailable(f"{chosen} did not take over in time", reason="TRANSFER_TIMEOUT") from None
        return chosen

    def status(self) -> LogStatus:
        """See `Log`."""
        self._require_active()
        return self._guard.status(time.monotonic())

    def on_change(self, listener: Callable[[], None]) -> None:
        """See `Log`."""
        self._listeners.append(listener)

    def on_sync(self, listener: Callable[[float], None]) -> None:
        """Call `listener` with the seconds that each batch took to reach the disk."""
        self._sync_listeners.append(listener)

    def peer_free_bytes(self) -> dict[str, int]:
        """Return what each peer last said of its free disk; known to the leader only."""
        self._require_active()
        return self._guard.peer_free_bytes()

    # What has to be gone.

    @property
    def scrubbed(self) -> int:
        """The last revision that `scrub` came to an end with, in this folder's whole life; 0: none."""
        return self._folder.scrubbed

    async def scrub(self, revision: int) -> None:
        """Leave nothing in this node's folder that is gone from its state by now, and record `revision` for it.

        The log is trimmed up to here, so whoever is further behind gets a snapshot; one that is under way is waited
        for, a minute at most. Then all files of journal and store are written anew, by a thread. Raises `Unavailable`
        if log or files are still in use, if there is no room to have them twice, or when the log stops: what was done
        is no harm, ask again.
        """
        index = self._machine.applied[0]
        await self._on_disk(self._machine.store.sync)
        try:
            async with asyncio.timeout(_TRIM_S):
                await self._trim(index)
        except TimeoutError:
            raise Unavailable("the log is still needed for a snapshot that is under way", reason="LOG_HELD") from None
        await self._loop.run_in_executor(self._snapshots_in, self._incoming.discard)
        await self._loop.run_in_executor(self._snapshots_in, self._machine.store.sweep)
        await self._loop.run_in_executor(self._scrubs, self._scrub_files)
        await self._on_disk(self._folder.note_scrubbed, revision)

    async def _trim(self, index: int) -> None:
        """Return when nothing up to `index` is in the journal any more, on disk as well."""
        while self._tail.boundary_index < index:
            self._require_active()
            self._tell(lambda guard, _: guard.trim(index, 0, 0))
            await asyncio.sleep(_RETRY_S)
        trimmed = self._tail.seq
        while self._tail.synced_seq < trimmed:
            self._require_active()
            await asyncio.sleep(_RETRY_S)

    def _scrub_files(self) -> None:
        folder = self._folder
        if folder.free_bytes() < folder_bytes(folder.store) + folder_bytes(folder.journal) + DISK_FREE_BYTES_MIN:
            raise Unavailable("there is no room on the disk to write all files anew", reason="DISK_FULL")
        if not (self._journal.scrub() and self._machine.store.scrub()):
            raise Unavailable("files of before are still being read", reason="FILES_IN_USE")

    # Starting and ending.

    def _check_journal(self) -> None:
        if self._folder.identity.standing is Standing.MEMBER and self._journal.empty:
            raise Fatal(
                f"journal {self._folder.journal} is empty, but this node is a member of its region. Restore it from "
                f"its peers: move the data folder away and start with --replace."
            )

    async def _join(self) -> None:
        """A joining folder waits until it has met every peer, and becomes a member, or a learner, durably."""
        standing = self._folder.identity.standing
        if standing is Standing.MEMBER:
            return
        if standing is Standing.REPLACING and not self.config.peers:
            raise Fatal(f"{self._folder.path}: a region of one node has no peers to replace a lost disk from.")
        await self._meet_all()
        if self.failed.done():
            self.failed.result()
        self._roster.join()
        if standing is Standing.BOOTSTRAPPING:
            await self._on_disk(self._journal.write, [Meta(self._tail.term, self._tail.voted_for)])
            self._folder.stand(Standing.MEMBER)

    async def _meet_all(self) -> None:
        try:
            async with asyncio.timeout(self.config.join_timeout_s):
                while self._roster.missing and not self.failed.done():
                    self._met.clear()
                    await self._met.wait()
        except TimeoutError:
            raise Fatal(
                f"{self._folder.path} is joining its region and must meet every other node once; not reached: "
                f"{', '.join(sorted(self._roster.missing))}. Start them, check their addresses, then start again."
            ) from None

    def _begin(self, machine: DurableMachine) -> None:
        now = time.monotonic()
        learner = self._folder.identity.standing is Standing.REPLACING
        self._guard = Guard(
            self.config.node,
            sorted(self.config.peers),
            self._tail,
            machine,
            _Host(self, machine),
            now=now,
            random=self._random,
            timing=self.config.timing,
            bounds=self.config.bounds,
            learner=learner,
        )
        self._active = True
        for peer in self.config.peers:
            if self._transport.is_up(peer):
                self._guard.connected(peer, now)
        self._tasks = [
            asyncio.create_task(self._keep_house(), name="log housekeeping"),
            asyncio.create_task(self._keep_fresh(), name="log freshness"),
        ]
        self._turn()

    def _close_disk(self) -> bool:
        """Write what collected and close; False, with everything left open, if the journal's thread does not end."""
        self._scrubs.shutdown()
        self._snapshots_out.shutdown()
        self._snapshots_in.shutdown()
        if self._writer is not None:
            if self._ops and not self.failed.done():
                self._writer.write(self._seq, self._ops)
            if not self._writer.stop(_WRITER_STOP_S):
                # It may be syncing a file whose number would be given to another, in a database that would be gone.
                _log.error("journal_left_open: its disk took no batch for %g s", _WRITER_STOP_S)
                return False
        self._open.close()
        return True

    def _deactivate(self) -> None:
        self._active = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for answer in self._answers:
            if not answer.done():
                answer.set_result((Outcome.UNKNOWN, 0))

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            fatal = error if isinstance(error, Fatal) else Fatal(f"defect in the log: {error!r}")
            fatal.__cause__ = None if error is fatal else error
            _log.critical("log_failed", exc_info=error)
            self.failed.set_exception(fatal)
            self._deactivate()
            self._met.set()

    def _require_active(self) -> None:
        if not self._active:
            raise Unavailable("this node's log is not running", reason="LOG_NOT_RUNNING")

    async def _on_disk(self, work: Callable[..., _T], *args: object) -> _T:
        return await self._loop.run_in_executor(self._disk, partial(work, *args))

    # The turn.

    def _tell(self, event: Callable[[Guard, float], object]) -> None:
        """Tell the guard what happened, and take a turn."""
        if not self._active:
            return
        try:
            event(self._guard, time.monotonic())
        except Exception as error:
            self._fail(error)
        self._turn()

    def _turn(self) -> None:
        """Let the guard do what is due, and pass on what came of it."""
        if not self._active:
            return
        if self._turning:
            self._poke()
            return
        self._turning, self._poked = True, False
        try:
            if self._flush():
                # Others wait for what is on this disk by now: that leaves first, the rest is done in the next turn.
                return
            self._guard.tick(time.monotonic())
            self._flush()
            self._arm()
            self._notify()
        except Exception as error:
            self._fail(error)
        finally:
            self._turning = False

    def _poke(self) -> None:
        """Take one turn after whatever else is about to run, so that calls of one moment share it."""
        if not self._poked:
            self._poked = True
            self._loop.call_soon(self._turn)

    def _arm(self) -> None:
        """Have a turn taken by the guard's deadline.

        A timer that is set earlier stays: it costs one idle turn.
        """
        due = max(self._guard.deadline, self._loop.time() + _TIMER_MIN_S)
        if self._timer is not None:
            if self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._timed)

    def _timed(self) -> None:
        self._timer = None
        self._turn()

    def _notify(self) -> None:
        """Tell listeners what changed since the last turn, outside of the guard."""
        if not self._changed:
            return
        self._changed = False
        self._changes.set()
        for listener in self._listeners:
            listener()

    # The journal.

    def _sink(self, seq: int, op: Op) -> None:
        self._seq = seq
        if isinstance(op, Commit):
            if self._ops and isinstance(self._ops[-1], Commit):
                self._ops.pop()
        else:
            self._only_commits = False
        self._ops.append(op)

    def _flush(self, *, sent: bool = False) -> bool:
        """Have written what collected, unless that is under way or nothing needs the disk; True if it is on disk now.

        `sent`: what this turn gave to the links has left.
        """
        if not self._ops or self._writing:
            return False
        if self._only_commits:
            if self._seq != self._folded_seq:
                self._folded_seq = self._seq
                self._guard.synced(self._seq, time.monotonic())
            return False
        if not self._may_write_here():
            assert self._writer is not None
            self._writing = True
            self._writer.write(self._seq, self._collected())
            return False
        if self._guard.role is Role.LEADER and self.config.peers and not sent:
            self._write_once_sent()
            return False
        self._write_here(self._collected())
        return True

    def _collected(self) -> list[Op]:
        ops, self._ops, self._only_commits = self._ops, [], True
        return ops

    def _may_write_here(self) -> bool:
        if time.monotonic() < self._inline_from:
            return False
        return sum(len(op.payload) for op in self._ops if isinstance(op, Add)) <= _INLINE_BYTES_MAX

    def _write_once_sent(self) -> None:
        """Let the links, which were woken before this, hand the entries to the followers' disks first."""
        if not self._sending:
            self._sending = True
            self._loop.call_soon(self._sent)

    def _sent(self) -> None:
        self._sending = False
        if not self._active:
            return
        try:
            self._flush(sent=True)
        except Exception as error:
            self._fail(error)

    def _write_here(self, ops: Sequence[Op]) -> None:
        began = time.monotonic()
        self._journal.write(ops)
        now = time.monotonic()
        if now - began > _INLINE_S_MAX:
            self._inline_from = now + _INLINE_PAUSES * (now - began)
        self._guard.synced(self._seq, now)
        for listener in self._sync_listeners:
            listener(now - began)
        self._poke()

    def _written_in_thread(self, seq: int, seconds: float, error: Fatal | None) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
            self._loop.call_soon_threadsafe(self._written, seq, seconds, error)

    def _written(self, seq: int, seconds: float, error: Fatal | None) -> None:
        self._writing = False
        if error is not None:
            self._fail(error)
            return
        self._tell(lambda guard, now: guard.synced(seq, now))
        for listener in self._sync_listeners:
            listener(seconds)

    # Reads.

    async def _round(self) -> bool:
        self._require_active()
        answer: asyncio.Future[bool] = self._loop.create_future()
        self._guard.read(partial(_settle, answer), time.monotonic())
        self._poke()
        return await answer

    async def _keep_fresh(self) -> None:
        """Prove now and then that a follower's state is current, so that its age means something."""
        while True:
            await asyncio.sleep(_FRESHNESS_S)
            if self._guard.role is not Role.LEADER:
                with contextlib.suppress(Unavailable):
                    await self.barrier(timeout_s=_FRESHNESS_S)

    # Room.

    async def _keep_house(self) -> None:
        try:
            while True:
                await self._trim_if_long()
                await self._look_at_the_disk()
                await asyncio.sleep(_HOUSEKEEPING_S)
        except Exception as error:
            self._fail(error)

    async def _trim_if_long(self) -> None:
        entries, size = self.config.keep_entries, self.config.keep_bytes
        if 2 * len(self._tail) <= 3 * entries and 2 * self._tail.memory_bytes <= 3 * size:
            return
        index = self._machine.applied[0]
        await self._on_disk(self._machine.store.sync)
        self._tell(lambda guard, _: guard.trim(index, entries, size))

    async def _look_at_the_disk(self) -> None:
        """Refresh the free bytes that ride on acks; give up the ballast when they run short, lay it again later."""
        ballast_bytes = self.config.ballast_bytes
        if await self._on_disk(self._folder.relieve):
            _log.warning("disk_nearly_full: ballast given up")
        self.free_bytes = await self._on_disk(self._folder.free_bytes)
        if self.free_bytes > 3 * ballast_bytes and self._folder.ballast_bytes < ballast_bytes:
            await self._on_disk(self._folder.lay_ballast, ballast_bytes)

    # Snapshots.

    def _make_snapshot(self) -> None:
        """Write the present state to a file, in a thread, from a view taken now."""
        index, term = self._machine.applied
        header = header_of(self.config.fleet, self.config.region, index, term)
        self._serial += 1
        view = self._machine.store.snapshot()
        work = self._loop.run_in_executor(
            self._snapshots_out, produce, view, self._folder.snapshots, header, self._serial
        )
        work.add_done_callback(self._made_snapshot)

    def _made_snapshot(self, work: asyncio.Future[Outgoing]) -> None:
        if work.cancelled() or work.exception() is not None:
            _log.warning("snapshot_not_made", exc_info=_reason(work))
            self._tell(lambda guard, now: guard.snapshot_unready(now))
        elif not self._active:
            work.result().close()
        else:
            self._tell(lambda guard, now: guard.snapshot_ready(work.result(), now))

    def _take_piece(self, meta: SnapshotMeta, offset: int, data: bytes) -> None:
        """Have a piece written by the thread that installs; pieces keep their order there."""
        work = self._loop.run_in_executor(self._snapshots_in, self._incoming.write, meta, offset, data)
        work.add_done_callback(partial(self._took_piece, meta, offset + len(data)))

    def _took_piece(self, meta: SnapshotMeta, end: int, work: asyncio.Future[None]) -> None:
        if work.cancelled() or work.exception() is not None:
            _log.warning("snapshot_piece_not_written", exc_info=_reason(work))
            self._tell(lambda guard, now: guard.snapshot_failed(meta, now))
            return
        self._tell(lambda guard, _: guard.snapshot_written(meta, end))
        if end == meta.size and self._active:
            fleet, region = self.config.fleet, self.config.region
            staging = self._loop.run_in_executor(
                self._snapshots_in, stage, self._incoming, meta, self._machine.store, fleet, region
            )
            staging.add_done_callback(partial(self._staged, meta))

    def _staged(self, meta: SnapshotMeta, work: asyncio.Future[Staged]) -> None:
        if work.cancelled() or work.exception() is not None:
            _log.warning("snapshot_refused index=%d", meta.index, exc_info=_reason(work))
            self._tell(lambda guard, now: guard.snapshot_failed(meta, now))
        elif not self._active:
            work.result().discard()
        else:
            self._tell(lambda guard, now: self._install(work.result(), meta, guard, now))

    def _install(self, staged: Staged, meta: SnapshotMeta, guard: Guard, now: float) -> None:
        self._machine.store.adopt(staged)
        self._machine.reloaded()
        if self._machine.applied != (meta.index, meta.term):
            raise Fatal(f"the snapshot of {meta.index} holds the state of {self._machine.applied[0]}")
        guard.snapshot_installed(meta, now)
        sweeping = self._loop.run_in_executor(self._snapshots_in, self._machine.store.sweep)
        sweeping.add_done_callback(_swept)

    # A replaced disk.

    def _caught_up(self) -> None:
        try:
            self._folder.stand(Standing.MEMBER)
        except Fatal as error:
            self._fail(error)
        self._tell(lambda guard, now: guard.joined(now))

    # Links.

    def _hello(self, peer: str) -> PeerHello:
        hello = self._roster.hello(peer)
        hello.log_empty = self._tail.last_index == 0
        hello.term, hello.last_index = self._tail.term, self._tail.durable
        return hello

    def _meet(self, peer: str, hello: PeerHello) -> None:
        if not self._loaded:
            raise Unavailable("this node has not read its log yet", reason="LOG_NOT_RUNNING")
        if self._active:
            self._roster.check_acknowledged(peer, hello, self._tail.term, self._guard.acknowledged(peer))
        try:
            self._roster.meet(peer, hello)
        except Fatal as error:
            self._fail(error)
            raise Refused("this node cannot join", reason="PEER_CANNOT_JOIN") from error
        self._met.set()

    def _refused(self, peer: str, error: ControlPlaneError) -> None:
        if self._refusals.get(peer) != error.reason:
            self._refusals[peer] = error.reason
            _log.warning("peer_refused_link peer=%s reason=%s: %s", peer, error.reason, error)
        strangers = sum(reason == INCARNATION_CHANGED for reason in self._refusals.values())
        # One that forgot what it had promised may promise nothing more, whoever says so. A stranger is who is one to so
        # many that the rest is no majority: a single peer may itself be on a disk of before.
        if error.reason == DISK_SET_BACK or strangers > len(self.config.peers) // 2:
            self._fail(
                Fatal(f"{self._folder.path} is not the disk that {peer} knows this node by: {error}. {error.hint}")
            )

    def _received(self, peer: str, messages: Sequence[RaftMessage]) -> None:
        if not self._active:
            return
        now = time.monotonic()
        try:
            for message in messages:
                self._guard.receive(peer, message, now)
        except Malformed as error:
            _log.warning("peer_malformed peer=%s: %s", peer, error)
            raise
        except Exception as error:
            self._fail(error)
        finally:
            self._turn()


class _Links:
    """`RaftLog` as the transport sees it."""

    def __init__(self, log: RaftLog) -> None:
        self.hello = log._hello
        self.meet = log._meet
        self.refused = log._refused
        self.defect = log._fail
        self.received = log._received
        self._log = log

    def up(self, peer: str) -> None:
        """See `transport.Owner`."""
        self._log._refusals.pop(peer, None)
        self._log._tell(lambda guard, now: guard.connected(peer, now))

    def down(self, peer: str) -> None:
        """See `transport.Owner`."""
        self._log._tell(lambda guard, now: guard.disconnected(peer, now))

    def heard(self, peer: str, term: int) -> None:
        """See `transport.Owner`."""
        self._log._tell(lambda guard, now: guard.heard_part(peer, term, now))


class _Host:
    """`RaftLog` as the guard sees it. Nothing here calls the guard back."""

    def __init__(self, log: RaftLog, machine: DurableMachine) -> None:
        self.send = log._transport.send
        self.mark = machine.mark
        self.marked = machine.marked
        self.snapshot_wanted = log._make_snapshot
        self.snapshot_chunk = log._take_piece
        self._log = log

    def changed(self) -> None:
        """See `guard.Host`."""
        self._log._changed = True

    def free_bytes(self) -> int:
        """See `guard.Host`."""
        return self._log.free_bytes

    def caught_up(self) -> None:
        """See `guard.Host`."""
        self._log._loop.call_soon(self._log._caught_up)


def _answer(answer: asyncio.Future[tuple[Outcome, int]], outcome: Outcome, index: int) -> None:
    if not answer.done():
        answer.set_result((outcome, index))


def _settle(answer: asyncio.Future[bool], proven: bool) -> None:
    if not answer.done():
        answer.set_result(proven)


def _reason(work: asyncio.Future[Any]) -> BaseException | None:
    return None if work.cancelled() else work.exception()


def _swept(work: asyncio.Future[None]) -> None:
    if error := _reason(work):
        _log.warning("leftovers_not_removed", exc_info=error)


def _seen(failed: asyncio.Future[None]) -> None:
    """Count the failure as noticed even if the entry point is gone already."""
    if not failed.cancelled():
        failed.exception()
