"""Watching: cursors over the events, never queues.

A watcher is a revision. It reads what came after from the tail (recent transactions kept in memory, encoded once for
all watchers of the same filter) or, if it has fallen behind the tail, from the store; it is woken when something that
its filter matches was applied. A slow watcher reads later: nothing is queued for it and nothing is dropped, and when
its place is no longer kept it is told `Compacted`.

1. One message holds one whole transaction. Revisions only grow, and each is sent once.
2. The first message says where the watch stands. While nothing changes, progress messages say how far it has seen.
3. Quiet changes (lease renewals) are no events.
4. A listing and its revision are one moment: what comes after the listing was not in it. A message of copies says
   the epoch that their partition has at home.
5. A watcher holds one page at most, in rows and in bytes; messages that are encoded for many count as part of the
   tail. Few are shown a long listing at the same time.
6. What is read from the store is read page by page, among the reads of the node.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from heapq import heapify, heappop, heappush, merge
from itertools import groupby

from controlplane import features, limits
from controlplane.errors import Compacted, ControlPlaneError, Unavailable
from controlplane.features import checks, partitions
from controlplane.kernel import keys, machine
from controlplane.kernel.machine import Applied, Changed
from controlplane.kernel.store import Store, View
from controlplane.kernel.transaction import scope_of
from controlplane.turns import Turns
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Partition, Retention
from controlplane.v1.state_pb2 import Event

_TAIL_TXNS_MAX = 4096
_TAIL_BYTES_MAX = 16 * 1024 * 1024
_PAGE = 256
_WOKEN_AT_ONCE = 128
_PAGE_BYTES = 1024 * 1024

Age = Callable[[], int]
"""Upper bound on the age of what is served, in milliseconds."""


@dataclass(frozen=True)
class Filter:
    """What a watcher wants to see: the keys that start with one of `prefixes`, which lie in `domains`."""

    domains: tuple[bytes, ...]
    prefixes: tuple[bytes, ...]
    chosen: bytes = b""
    """A key that starts with this says which partitions are looked at: once one changed, the watcher lists again."""

    def matches(self, key: bytes) -> bool:
        """Whether a change of `key` is for this watcher."""
        return key.startswith(self.prefixes)


@dataclass(slots=True)
class _Recent:
    """One transaction's events, and its message for each filter that matched and was asked for."""

    revision: int
    events: list[Event]
    size: int
    encoded: dict[Filter, bytes] = field(default_factory=dict)


class Tail:
    """The newest transactions, bounded by count and bytes. Complete for every revision above `floor`."""

    def __init__(self, floor: int) -> None:
        self.floor = floor
        self._recent: deque[_Recent] = deque()
        self._bytes = 0

    def add(self, recent: _Recent) -> None:
        """Append a transaction; the oldest make room."""
        self._recent.append(recent)
        self._bytes += recent.size
        self._make_room()

    def page(self, wanted: Filter, after: int) -> tuple[list[tuple[int, bytes]], bool]:
        """What matches above `after` (not below `floor`): revisions and messages, oldest first; and if that is all."""
        newer = self._after(after)
        page: list[tuple[int, bytes]] = []
        size = 0
        complete = True
        for recent in newer:
            message = self._message(recent, wanted)
            if message is not None:
                page.append((recent.revision, message))
                size += len(message)
            if len(page) == _PAGE or size > _PAGE_BYTES:
                complete = recent is newer[-1]
                break
        self._make_room()
        return page, complete

    def _after(self, revision: int) -> list[_Recent]:
        newer: list[_Recent] = []
        for recent in reversed(self._recent):
            if recent.revision <= revision:
                break
            newer.append(recent)
        newer.reverse()
        return newer

    def _message(self, recent: _Recent, wanted: Filter) -> bytes | None:
        message = recent.encoded.get(wanted)
        if message is None:
            message = _encode(recent.revision, [event for event in recent.events if wanted.matches(event.key)])
            if message is not None:
                recent.encoded[wanted] = message
                recent.size += len(message)
                self._bytes += len(message)
        return message

    def _make_room(self) -> None:
        while len(self._recent) > _TAIL_TXNS_MAX or self._bytes > _TAIL_BYTES_MAX:
            oldest = self._recent.popleft()
            self._bytes -= oldest.size
            self.floor = oldest.revision


class _Group:
    """All watchers of one filter: they wake together. Nothing that they want happened after `touched`."""

    def __init__(self, touched: int) -> None:
        self.watchers = 0
        self.touched = touched
        self.wakes = 0
        self.outdated = False
        self.loop: asyncio.AbstractEventLoop | None = None
        """Of those who wait."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._due = 0

    def wake(self) -> bool:
        """Everyone who waits now is due; who comes later waits for the next time. True if somebody is."""
        self.wakes += 1
        self._due = len(self._waiting)
        return self._due > 0

    def let_go(self, most: int) -> int:
        """Wake some of those who are due, and return how many."""
        count = min(most, self._due)
        self._due -= count
        for _ in range(count):
            done = self._waiting.popleft()
            if not done.done():
                done.set_result(None)
        return count

    @property
    def due(self) -> bool:
        """Whether somebody still has to be woken."""
        return self._due > 0

    def woken(self) -> asyncio.Future[None]:
        """What ends with the next wake."""
        self.loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = self.loop.create_future()
        self._waiting.append(done)
        return done


class _Wakes:
    """Wakes some watchers now and the others in the next turns of the loop, which has more to do than to write to them.

    Those who have something to see go before those who are told of progress only.
    """

    def __init__(self) -> None:
        self._changed: dict[_Group, None] = {}
        self._idle: dict[_Group, None] = {}
        self._left = _WOKEN_AT_ONCE
        self._next_due = False

    def add(self, group: _Group, *, changed: bool) -> None:
        """Wake a group."""
        if not group.wake():
            return
        if changed:
            self._idle.pop(group, None)
            self._changed[group] = None
        elif group not in self._changed:
            self._idle[group] = None
        assert group.loop is not None
        self._let_go(group.loop)

    def _let_go(self, loop: asyncio.AbstractEventLoop) -> None:
        for line in (self._changed, self._idle):
            while line and self._left:
                group = next(iter(line))
                self._left -= group.let_go(self._left)
                if not group.due:
                    del line[group]
        if not self._next_due:
            self._next_due = True
            loop.call_soon(self._next, loop)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._left, self._next_due = _WOKEN_AT_ONCE, False
        if self._changed or self._idle:
            self._let_go(loop)


class _Index:
    """Finds the filters that a key is for by the key's beginnings, however many filters there are."""

    def __init__(self) -> None:
        self._of: dict[bytes, dict[Filter, None]] = {}
        self._lengths: Counter[int] = Counter()

    def add(self, prefix: bytes, wanted: Filter) -> None:
        """`wanted` is for keys that start with `prefix`."""
        if prefix not in self._of:
            self._lengths[len(prefix)] += 1
        self._of.setdefault(prefix, {})[wanted] = None

    def remove(self, prefix: bytes, wanted: Filter) -> None:
        """Undo `add`."""
        filters = self._of[prefix]
        del filters[wanted]
        if not filters:
            del self._of[prefix]
            self._lengths[len(prefix)] -= 1
            self._lengths += Counter()  # Without those that count nothing.

    def find(self, keys_changed: Iterable[bytes]) -> dict[Filter, None]:
        """All filters that any of these keys is for."""
        found: dict[Filter, None] = {}
        for key in keys_changed:
            for length in self._lengths:
                found.update(self._of.get(key[:length], {}))
        return found


class Watches:
    """All watchers of a node."""

    def __init__(self, region: str, tail: Tail, turns: Turns, broken: Callable[[Exception], Exception]) -> None:
        """`turns` are those of all reading from the store; `broken` is told what is none of the eight errors."""
        self.turns, self.broken = turns, broken
        self._region = region
        self._tail = tail
        self._listings = 0
        self._groups: dict[Filter, _Group] = {}
        self._matching, self._choosing = _Index(), _Index()
        self._wakes = _Wakes()
        self._watchers = 0
        self._revision = tail.floor
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals, self._given_up = 0, 0
        self._next_progress = 0.0
        self._closed = False

    @property
    def revision(self) -> int:
        """The newest revision applied here."""
        return self._revision

    @property
    def count(self) -> int:
        """Watchers now."""
        return self._watchers

    def took(self, applied: Applied) -> None:
        """Take in what an entry changed."""
        touched: list[Event] = []
        for revision, changes in groupby(applied.changed, key=_revision_of):
            taken = [changed for changed in changes if not changed.quiet]
            if taken:
                events = [changed.event for changed in taken]
                self._tail.add(_Recent(revision, events, sum(len(changed.encoded) for changed in taken)))
                touched += events
        self._reach(applied.state.revision)
        changed = dict.fromkeys(event.key for event in touched)
        for wanted in self._choosing.find(changed):
            self._outdate(wanted)
        for wanted in self._matching.find(changed):
            group = self._groups[wanted]
            group.touched = applied.state.revision
            self._wakes.add(group, changed=True)

    def outdate(self, scope: bytes) -> None:
        """End the watches of a partition whose records are shown elsewhere from now on; they raise `Compacted`."""
        for wanted in tuple(self._groups):
            if any(prefix.startswith(scope) for prefix in wanted.prefixes) and not wanted.chosen:
                self._outdate(wanted)

    def reset(self, revision: int) -> None:
        """The store was replaced: start the tail anew and let everyone look again."""
        self._tail = Tail(revision)
        self._reach(revision)
        for wanted, group in tuple(self._groups.items()):
            group.touched = revision
            if wanted.chosen:
                # Which partitions it would look at now is not known here.
                self._outdate(wanted)
        self._wake_all()

    def forget(self) -> None:
        """Read from the store from now on what happened up to here: some of it was erased there."""
        self._tail = Tail(self._revision)

    def tick(self, now: float) -> None:
        """Let idle watchers report progress when it is time."""
        if now >= self._next_progress:
            self._next_progress = now + limits.PROGRESS_MS / 1000
            self._wake_all()

    def close(self) -> None:
        """End all watches; they raise `Unavailable`."""
        self._closed = True
        self._wake_all()

    def reached(self, revision: int) -> asyncio.Future[None]:
        """What ends once `revision`, which is above the present one, is applied here. Give it up with `give_up`."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._arrivals += 1
        heappush(self._waiting, (revision, self._arrivals, done))
        return done

    def give_up(self, reached: asyncio.Future[None]) -> None:
        """Wait no more for what `reached` returned."""
        if reached.done() and not reached.cancelled():
            return
        reached.cancel()
        # It stays where it is: to take out each by itself would be as many searches as there are that wait.
        self._given_up += 1
        if 2 * self._given_up > len(self._waiting):
            self._waiting = [each for each in self._waiting if not each[-1].done()]
            heapify(self._waiting)
            self._given_up = 0

    def list_events(
        self, store: Store, partition: Partition, request: api.ListEventsRequest, last: int
    ) -> api.ListEventsReply:
        """Events of a partition after a revision, oldest first, whole transactions only. Raises `Compacted`."""
        checks.between(request.limit, 0, limits.PAGE_MAX, "limit")
        wanted, after = filter_of([partition], request.kinds, ""), request.after_revision
        _check_floor(store, self._region, after)
        reply = api.ListEventsReply(seen=max(after, last))
        count, room = request.limit or limits.PAGE_DEFAULT, limits.PAGE_BYTES_MAX
        scanned, seen = 0, after
        for revision, events in groupby(_events(store, wanted, after, last), key=_revision_of_event):
            if scanned >= limits.EVENTS_SCANNED_MAX:
                reply.more, reply.seen = True, seen
                break
            transaction = list(events)
            part = [change_of(event) for event in transaction if wanted.matches(event.key)]
            room -= sum(change.ByteSize() for change in part)
            if part and reply.changes and (room < 0 or len(reply.changes) + len(part) > count):
                reply.more, reply.seen = True, seen
                break
            reply.changes.extend(part)
            scanned, seen = scanned + len(transaction), revision
        return reply

    def follow(
        self, store: Store, wanted: Filter, epoch: int, request: api.WatchRequest, age: Age, *, since: int = 0
    ) -> Following:
        """The messages of one watch; see `Node.watch`. Raises what that raises before its first message.

        Before `since` other partitions were looked at than those of `wanted`: nobody can go on from there.
        """
        if self.count >= limits.WATCHES_PER_NODE_MAX:
            raise Unavailable("too many watchers", reason="WATCHES_FULL", hint="watch at another node")
        cursor = request.after_revision if request.HasField("after_revision") else self._revision
        if not request.snapshot:
            if cursor < since:
                raise _partitions_changed(self._revision)
            _check_floor(store, self._region, cursor)
        stamp = Stamp(self._region, epoch, age)
        return Following(self, store, wanted, cursor, snapshot=request.snapshot, stamp=stamp)

    def join(self, wanted: Filter) -> _Group:
        """Count one more watcher of `wanted`."""
        group = self._groups.get(wanted)
        if group is None:
            group = self._groups[wanted] = _Group(self._revision)
            for prefix in set(wanted.prefixes):
                self._matching.add(prefix, wanted)
            if wanted.chosen:
                self._choosing.add(wanted.chosen, wanted)
        group.watchers += 1
        self._watchers += 1
        return group

    def leave(self, wanted: Filter, group: _Group) -> None:
        """Count one watcher less."""
        group.watchers -= 1
        self._watchers -= 1
        if not group.watchers and self._groups.get(wanted) is group:
            self._remove(wanted)

    def _remove(self, wanted: Filter) -> _Group:
        for prefix in set(wanted.prefixes):
            self._matching.remove(prefix, wanted)
        if wanted.chosen:
            self._choosing.remove(wanted.chosen, wanted)
        return self._groups.pop(wanted)

    def _outdate(self, wanted: Filter) -> None:
        group = self._remove(wanted)
        group.outdated = True
        self._wakes.add(group, changed=True)

    def remembers(self, group: _Group, cursor: int) -> bool:
        """Whether `read` finds what it needs in memory."""
        return cursor >= group.touched or cursor >= self._tail.floor

    @contextmanager
    def listing(self) -> Iterator[None]:
        """Count one more that is being shown a long listing. Raises `Unavailable`."""
        if self._listings >= limits.LISTINGS_PER_NODE_MAX:
            raise Unavailable(
                "too many watchers are being shown what there is", reason="WATCHES_FULL", hint="watch at another node"
            )
        self._listings += 1
        try:
            yield
        finally:
            self._listings -= 1

    def read(
        self, store: Store, wanted: Filter, group: _Group, cursor: int
    ) -> tuple[list[tuple[int, bytes]], int, bool]:
        """What `wanted` matches above `cursor`: a page of messages, how far was seen, and whether that is all.

        Raises `Unavailable` when the watches are closed, `Compacted` when the place is no longer kept.
        """
        if self._closed:
            raise Unavailable("the node is stopping", reason="STOPPING", hint="watch at another node")
        if group.outdated:
            raise _partitions_changed(self._revision)
        if cursor >= group.touched:
            return [], self._revision, True
        if cursor >= self._tail.floor:
            page, complete = self._tail.page(wanted, cursor)
            return page, self._revision if complete else page[-1][0], complete
        _check_floor(store, self._region, cursor)
        page, seen = _stored(store, wanted, cursor, self._revision)
        return page, seen, False

    def _reach(self, revision: int) -> None:
        self._revision = revision
        while self._waiting and self._waiting[0][0] <= revision:
            _, _, done = heappop(self._waiting)
            if done.done():
                self._given_up -= 1
            else:
                done.set_result(None)

    def _wake_all(self) -> None:
        for group in self._groups.values():
            self._wakes.add(group, changed=False)


class Following:
    """One watcher: an iterator over encoded messages that only one task reads; `aclose` ends it.

    A hand-written iterator: for hundreds of watchers of one event, layers of generators were an eighth of the work.
    """

    def __init__(
        self,
        watches: Watches,
        store: Store,
        wanted: Filter,
        cursor: int,
        *,
        snapshot: bool,
        stamp: Stamp,
    ) -> None:
        self._watches, self._store, self._wanted = watches, store, wanted
        self._cursor = cursor
        self._stamp = stamp
        self._group = watches.join(wanted)
        self._joined = True
        self._ready: deque[bytes] = deque()
        self._complete, self._wakes = True, self._group.wakes - 1
        self._beginning: Generator[bytes, None, None] | None = self._begin(snapshot=snapshot)
        self._synced = False
        self._pause: asyncio.TimerHandle | None = None

    def __aiter__(self) -> Following:
        return self

    async def __anext__(self) -> bytes:
        try:
            if self._beginning is not None:
                first = await self._first(self._beginning)
                if first is not None:
                    return first
                self._beginning = None
            while not self._ready:
                await self._read()
        except ControlPlaneError:
            raise
        except Exception as error:
            raise self._watches.broken(error) from error
        return self._ready.popleft()

    async def aclose(self) -> None:
        """Count no more. A second call does nothing."""
        self._end_beginning()
        if self._joined:
            self._joined = False
            self._watches.leave(self._wanted, self._group)

    async def _first(self, beginning: Generator[bytes, None, None]) -> bytes | None:
        """The next message of the beginning, or None. Whoever does not take it in time has to begin again."""
        if self._pause is not None:
            self._pause.cancel()
        message: bytes | None = await self._watches.turns.call(partial(next, beginning, None))
        if message is not None:
            loop = asyncio.get_running_loop()
            self._pause = loop.call_later(limits.LISTING_PAUSE_S_MAX, self._end_beginning)
        elif not self._synced:
            raise Compacted(
                "the listing was not read for too long",
                reason="LISTING_ENDED",
                hint="list the present records again (snapshot), and read faster",
                oldest=self._watches.revision + 1,
            )
        return message

    def _end_beginning(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        if self._beginning is not None:
            self._beginning.close()

    def _begin(self, *, snapshot: bool) -> Generator[bytes, None, None]:
        stamp, reply = self._stamp, api.WatchReply
        if not snapshot:
            self._synced = True
            yield stamp(reply(kind=reply.STARTED, revision=self._cursor))
            return
        if self._group.outdated:
            # A listing of the partitions of before must not pass for one of now.
            raise _partitions_changed(self._watches.revision)
        cursor = self._cursor = self._watches.revision
        first = deque([reply(kind=reply.STARTED, revision=cursor)])
        with closing(self._store.snapshot()) as view:
            pages = _listing(view, self._wanted, cursor)
            for page in pages:
                first.append(page)
                if sum(map(api.WatchReply.ByteSize, first)) > _PAGE_BYTES // 2:
                    with self._watches.listing():
                        yield from map(stamp, _taken(first))
                        yield from map(stamp, pages)
        # What is as short as most are needs no view of the store while it is sent.
        yield from map(stamp, _taken(first))
        self._synced = True
        yield stamp(reply(kind=reply.SYNCED, revision=cursor))

    async def _read(self) -> None:
        """Wait for something to read, and read it."""
        group = self._group
        if not self._complete:
            await asyncio.sleep(0)  # Many pages behind: others come first.
        elif self._wakes == group.wakes:
            await group.woken()
        self._wakes = group.wakes
        watches = self._watches
        if watches.remembers(group, self._cursor):
            page, seen, self._complete = watches.read(self._store, self._wanted, group, self._cursor)
        else:
            read = partial(watches.read, self._store, self._wanted, group, self._cursor)
            page, seen, self._complete = await watches.turns.call(read)
        self._cursor = max(self._cursor, seen)
        if page:
            self._ready.extend(message for _, message in page)
        else:
            self._ready.append(self._stamp(api.WatchReply(kind=api.WatchReply.PROGRESS, revision=self._cursor)))


class Stamp:
    """Adds to a message where and how fresh it is, and encodes it."""

    def __init__(self, region: str, epoch: int, age: Age) -> None:
        self._region, self._epoch, self._age = region, epoch, age

    def __call__(self, reply: api.WatchReply) -> bytes:
        """The encoded message."""
        reply.age_ms = self._age()
        reply.region, reply.epoch = self._region, reply.epoch or self._epoch
        return reply.SerializeToString()


def filter_of(among: Sequence[Partition], kinds: Sequence[str], prefix: str, chosen: bytes = b"") -> Filter:
    """The records of these kinds (none: all) in partitions of this node, whose names start with `prefix`."""
    scopes = sorted(map(scope_of, among))
    names = sorted(set(kinds)) or sorted(features.KINDS)
    start = checks.prefix(prefix).encode()
    prefixes = tuple(scope + keys.text(kind) + start for scope in scopes for kind in names)
    return Filter(tuple(dict.fromkeys(map(keys.domain_of, scopes))), prefixes, chosen)


def _partitions_changed(revision: int) -> Compacted:
    return Compacted(
        "there are other partitions to watch now",
        reason="PARTITIONS_CHANGED",
        hint="list the present records (snapshot), then watch from there",
        oldest=revision + 1,
    )


def _check_floor(view: View, region: str, cursor: int) -> None:
    system = scope_of(partitions.system(region))
    event = machine.event_at(view, keys.within(system, partitions.RETENTION.name, partitions.RETENTION_NAME))
    floor = Retention.FromString(event.value).event_floor if event else 0
    if cursor < floor:
        raise Compacted(
            f"events up to revision {floor} are no longer kept",
            reason="EVENTS_COMPACTED",
            hint="list the present records (snapshot), then watch from there",
            oldest=floor + 1,
        )


def _listing(view: View, wanted: Filter, revision: int) -> Iterator[api.WatchReply]:
    """All records that match, in messages of bounded size; no more is taken apart than makes the next message."""
    for prefix in wanted.prefixes:
        page, size = api.WatchReply(), 0
        for _, packed in view.scan(*keys.children(keys.RECORD + prefix)):
            if page.changes and (len(page.changes) == _PAGE or size + len(packed) > _PAGE_BYTES):
                yield page
                page, size = api.WatchReply(), 0
            event = Event.FromString(packed)
            if not page.changes:
                page.kind, page.revision, page.epoch = api.WatchReply.SNAPSHOT, revision, event.origin.epoch
            page.changes.append(change_of(event))
            size += len(packed)
        if page.changes:
            yield page


def _taken(replies: deque[api.WatchReply]) -> Iterator[api.WatchReply]:
    """All of `replies`, none of which is held on to."""
    while replies:
        yield replies.popleft()


def _stored(store: Store, wanted: Filter, after: int, last: int) -> tuple[list[tuple[int, bytes]], int]:
    """A page of transactions from the store, as revisions and messages, and how far was read."""
    events: list[Event] = []
    size = 0
    for event in _events(store, wanted, after, last):
        events.append(event)
        size += len(event.value)
        if len(events) == _PAGE or size > _PAGE_BYTES:
            events = _whole(store, wanted, events)
            last = events[-1].revision
            break
    messages = (
        (revision, _encode(revision, [event for event in group if wanted.matches(event.key)]))
        for revision, group in groupby(events, key=_revision_of_event)
    )
    return [(revision, message) for revision, message in messages if message is not None], last


def _whole(store: Store, wanted: Filter, events: list[Event]) -> list[Event]:
    """A full page without its last transaction, which may be cut; if that is all there is, the whole of it."""
    cut = events[-1].revision
    before = [event for event in events if event.revision != cut]
    return before or list(_events(store, wanted, cut - 1, cut))


def _events(view: View, wanted: Filter, after: int, last: int) -> Iterator[Event]:
    """Events at revisions `after` + 1 … `last` in all domains that `wanted` looks at, in order."""
    of_each = [machine.events(view, domain, after, last) for domain in wanted.domains]
    return of_each[0] if len(of_each) == 1 else merge(*of_each, key=_revision_of_event)


def _encode(revision: int, events: list[Event]) -> bytes | None:
    if not events:
        return None
    changes = [change_of(event) for event in events]
    # A transaction touches one partition, so copies that come together are of one epoch of their home's.
    epoch = events[0].origin.epoch
    return api.WatchReply(
        kind=api.WatchReply.CHANGES, revision=revision, changes=changes, epoch=epoch
    ).SerializeToString()


def change_of(event: Event) -> api.Change:
    """An event as callers see it."""
    key = keys.decode(event.key)
    at = event.origin if event.HasField("origin") else event
    change = api.Change(
        kind=key.kind,
        name=key.name,
        home=event.origin.home,
        meta=api.Meta(
            revision=at.revision,
            created=at.created,
            version=at.version,
            actor=event.actor,
            action=event.action,
            reason=event.reason,
            at_ms=at.at_ms,
        ),
    )
    if event.HasField("value") and key.kind in _SHOWN:
        getattr(change, key.kind).MergeFromString(event.value)
    return change


def _revision_of(changed: Changed) -> int:
    return changed.event.revision


def _revision_of_event(event: Event) -> int:
    return event.revision


_SHOWN = frozenset({"flag", "switch", "workflow", "election", "stop", "exception"})
