"""Apply one entry of the log to one store: the only code that changes replicated state.

`Working` is an entry in the making. A leader plans with it (feature by feature, so that the requests of one batch see
each other) and every replica applies with it, so the two cannot disagree about what a transaction does.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.message import DecodeError

from controlplane import limits
from controlplane.errors import Fatal
from controlplane.kernel import keys
from controlplane.kernel.store import Overlay, Store, View
from controlplane.v1.state_pb2 import Entry, Event, Outcome, Range, RequestId, State, Txn, Write

_TRIMMABLE = (keys.EVENT, keys.HISTORY, keys.OUTCOME)
_VERSION_MAX = 1 << 62
_OUTCOME_KEY_BYTES = len(keys.generation(0)) + 16
_FORMAT = bytes([limits.ENTRY_FORMAT])


class Changed(NamedTuple):
    """One record as an entry left it: its key, the event, and its encoding; quiet changes have no event row."""

    key: bytes
    event: Event
    encoded: bytes
    quiet: bool


@dataclass(frozen=True, slots=True)
class Applied:
    """What applying an entry did. `outcomes` are in the order of its transactions."""

    state: State
    outcomes: list[Outcome]
    changed: list[Changed]


Annex = Callable[["Records", State, bytes, bytes, Sequence[Changed]], None]
"""Puts rows of its own beside what an entry changed, in the same batch: given the view, the state after the entry, the
entry's salt and bytes, and what it changed. The rows are neither hashed nor read by apply, and it must not raise."""


def state_of(view: View) -> State:
    """Where `view` stands; the state of an empty store if nothing was ever applied."""
    packed = view.get(keys.STATE)
    if packed is None:
        return State(format=limits.STATE_FORMAT, outcome_span=limits.OUTCOME_SPAN, hash=bytes(32))
    state = State.FromString(packed)
    if state.format != limits.STATE_FORMAT:
        raise Fatal(
            f"the store is of format {state.format}, this program knows {limits.STATE_FORMAT}:"
            " run the release that wrote it"
        )
    return state


def event_at(view: View, key: bytes) -> Event | None:
    """The newest event of a record's key, or None if there is no such record. Treat it as immutable."""
    if isinstance(view, Records):
        return view.event(key)
    packed = view.get(keys.RECORD + key)
    return None if packed is None else Event.FromString(packed)


def count_of(view: View, prefix: bytes) -> int:
    """How many records there are whose keys start with `prefix`."""
    return view.count(prefix) if isinstance(view, Records) else _count(view, prefix)


class RecentEvents:
    """The newest events of the records written last, bounded by count and bytes: what is written is soon read again.

    And how many records there are of what was counted once, so that nobody counts them again.
    Belongs to one store: whoever applies to it hands every `Applied` to `took`, and whoever replaces it calls `clear`.
    """

    def __init__(self, count_max: int = 4096, bytes_max: int = 8 * 1024 * 1024) -> None:
        self.events: OrderedDict[bytes, Event] = OrderedDict()
        self._counts: dict[bytes, int] = {}
        self._sizes: dict[bytes, int] = {}
        self._bytes = 0
        self._count_max, self._bytes_max = count_max, bytes_max

    def took(self, applied: Applied) -> None:
        """Remember what an entry wrote, and forget what it deleted."""
        for changed in applied.changed:
            key, event = changed.key, changed.event
            if self._counts:
                self._recount(key, event)
            self._bytes -= self._sizes.pop(key, 0)
            self.events.pop(key, None)
            if event.HasField("value"):
                self.events[key] = event
                self._sizes[key] = len(changed.encoded)
                self._bytes += len(changed.encoded)
        while len(self.events) > self._count_max or self._bytes > self._bytes_max:
            oldest, _ = self.events.popitem(last=False)
            self._bytes -= self._sizes.pop(oldest)

    def clear(self) -> None:
        """Forget everything."""
        self.events.clear()
        self._counts.clear()
        self._sizes.clear()
        self._bytes = 0

    def count(self, store: View, prefix: bytes) -> int:
        """How many records there are in `store` whose keys start with `prefix`; looked up once, then kept."""
        count = self._counts.get(prefix)
        if count is None:
            count = self._counts[prefix] = _count(store, prefix)
        return count

    def _recount(self, key: bytes, event: Event) -> None:
        # A deletion of what is not there is no change.
        more = (event.created == event.revision) if event.HasField("value") else -1
        if more:
            for prefix in self._counts:
                if key.startswith(prefix):
                    self._counts[prefix] += more


class Records(Overlay):
    """An overlay that takes each record apart once: planning and applying read the same few again and again."""

    def __init__(self, base: View, recent: RecentEvents | None = None) -> None:
        super().__init__(base)
        self._events: dict[bytes, Event | None] = {}
        self._recent = recent if recent is not None else RecentEvents()
        self._counts: dict[bytes, int] = {}

    def event(self, key: bytes) -> Event | None:
        """See `event_at`."""
        event = self._events.get(key)
        if event is not None or key in self._events:
            return event
        event = self._recent.events.get(key)
        if event is None:
            packed = self.get(keys.RECORD + key)
            event = None if packed is None else Event.FromString(packed)
        self._events[key] = event
        return event

    def count(self, prefix: bytes) -> int:
        """How many records there are whose keys start with `prefix`, what was written here included."""
        count = self._counts.get(prefix)
        if count is None:
            count = self._counts[prefix] = self._recent.count(self._base, prefix) + self._added(prefix)
        return count

    def write(self, key: bytes, event: Event, encoded: bytes) -> None:
        """Set a record."""
        if self._counts:
            self._recount(key, present=True)
        self._events[key] = event
        self.put(keys.RECORD + key, encoded)

    def erase(self, key: bytes) -> None:
        """Delete a record."""
        if self._counts:
            self._recount(key, present=False)
        self._events[key] = None
        self.delete(keys.RECORD + key)

    def _recount(self, key: bytes, *, present: bool) -> None:
        more = present - (self.event(key) is not None)
        if more:
            for prefix in self._counts:
                if key.startswith(prefix):
                    self._counts[prefix] += more

    def _added(self, prefix: bytes) -> int:
        start = keys.RECORD + prefix
        mine = ((key, value) for key, value in self.changes().items() if key.startswith(start))
        return sum((value is not None) - (self._base.get(key) is not None) for key, value in mine)


def _count(view: View, prefix: bytes) -> int:
    return sum(1 for _ in view.scan(*keys.children(keys.RECORD + prefix)))


def outcome_of(view: View, request: RequestId, revision: int, span: int) -> Outcome | None:
    """The kept outcome of a request, looked up in the generation of `revision` and the one before."""
    where = outcome_key(request)
    newest = revision // span
    for generation in range(newest, max(newest - 2, -1), -1):
        packed = view.get(keys.generation(generation) + where)
        if packed is not None:
            return Outcome.FromString(packed)
    return None


def outcome_key(request: RequestId) -> bytes:
    """Where a request's outcome stands within its generation."""
    # A digest spreads evenly whatever nonces callers choose, so that a generation can be dropped in equal parts.
    return hashlib.sha256(request.nonce + request.identity.encode()).digest()[:16]


def outcome_floor(revision: int, span: int) -> int:
    """Requests first made at or above this revision have their outcome kept, if they have one."""
    return max(0, revision // span - 1) * span


def pack(entry: Entry) -> bytes:
    """The bytes of an entry, as they go into the log."""
    return _FORMAT + entry.SerializeToString(deterministic=True)


def apply(
    store: Store,
    index: int,
    term: int,
    entry: bytes,
    *,
    recent: RecentEvents | None = None,
    annex: Annex | None = None,
    state: State | None = None,
) -> Applied:
    """Apply the entry at `index`; once, however often it is handed in.

    `recent` and `state`, which must be where `store` stands, spare lookups and decide nothing. Total: bad content is an
    outcome. Raises `Fatal` only for an entry of a format this program does not know, and for one that was planned over
    another state than this at the same revision.
    """
    working = Working(store, recent, state)
    if index <= working.index:
        return Applied(state_of(store), [], [])
    if entry:
        working.replay(entry)
    return working.finish(store, index, term, entry, annex)


class Working:
    """A store with an entry on top that is not finished yet."""

    def __init__(self, base: View, recent: RecentEvents | None = None, state: State | None = None) -> None:
        """`state`: where `base` stands, if that is known."""
        state = state or state_of(base)
        self.view = Records(base, recent)
        self.index, self.revision, self.span = state.index, state.revision, state.outcome_span
        self.base = state.revision
        self.at_ms = state.at_ms
        self.salt = b""
        self.live_bytes, self.records = state.live_bytes, state.records
        self._hash = state.hash
        self._outcomes: list[Outcome] = []
        self._changed: list[Changed] = []

    def replay(self, entry: bytes) -> None:
        """Run the transactions of a packed entry."""
        if entry[:1] != _FORMAT:
            raise Fatal(f"entry of format {entry[0]}, this program knows {limits.ENTRY_FORMAT}: upgrade this node")
        try:
            message = Entry.FromString(entry[1:])
        except DecodeError:
            message = Entry(base=self.base)  # Every replica sees the same bytes, so every replica skips them.
        if not message.txns:
            self.revision += 1  # The hash moves on, so the revision has to.
        stale = message.base != self.base
        self.at_ms = max(self.at_ms, message.at_ms)
        self.salt = message.salt
        proven = not stale and bool(message.base_hash)
        if proven and message.base_hash != self._hash:
            raise Fatal(
                f"the leader's state and this node's differ at revision {self.base}: keep both data folders, and"
                " restart the odd one out with --replace and an empty folder"
            )
        for txn in message.txns:
            if stale:
                self._conflict(f"planned over revision {message.base}")
            else:
                self.run(txn, proven=proven)

    def skip(self, revision: int) -> None:
        """Give the next transaction a revision beyond this one."""
        self.revision = max(self.revision, revision)

    def run(self, txn: Txn, *, proven: bool = False) -> Outcome:
        """Run one transaction and return what becomes of it. `proven`: it was planned over this very state."""
        self.revision += 1
        outcome = (None if proven else self._objection(txn)) or self._effect(txn)
        self._outcomes.append(outcome)
        return outcome

    def answer(self, request: RequestId) -> Outcome | None:
        """What the next transaction would be told if it carried this request and had nothing to do but ask."""
        return self._known(request, self.revision + 1)

    @property
    def base_hash(self) -> bytes:
        """The running hash of what this was begun over."""
        return self._hash

    def finish(self, store: Store, index: int, term: int, entry: bytes, annex: Annex | None = None) -> Applied:
        """Write everything to `store` as one batch. `store` must be what this was begun over, unchanged since."""
        if entry:
            self._hash = self._digest(entry)
        state = State(
            index=index,
            term=term,
            revision=self.revision,
            hash=self._hash,
            at_ms=self.at_ms,
            records=self.records,
            live_bytes=self.live_bytes,
            outcome_span=self.span,
            format=limits.STATE_FORMAT,
        )
        self.view.put(keys.STATE, state.SerializeToString(deterministic=True))
        if annex is not None and self._changed:
            annex(self.view, state, self.salt, entry, self._changed)
        store.commit(self.view.take())
        return Applied(state, self._outcomes, self._changed)

    def _conflict(self, detail: str) -> Outcome:
        self.revision += 1
        outcome = Outcome(verdict=Outcome.CONFLICT, revision=self.revision, detail=detail)
        self._outcomes.append(outcome)
        return outcome

    def _known(self, request: RequestId, revision: int) -> Outcome | None:
        """The answer to a request that was answered before, or whose answer is no longer kept."""
        kept = outcome_of(self.view, request, revision, self.span)
        if kept is None:
            if request.since >= outcome_floor(revision, self.span):
                return None
            return Outcome(verdict=Outcome.FORGOTTEN, revision=revision)
        if kept.digest != request.digest:
            return Outcome(verdict=Outcome.REUSED, revision=revision)
        return kept

    def _objection(self, txn: Txn) -> Outcome | None:
        known = self._known(txn.request, self.revision) if txn.HasField("request") else None
        return known or self._flaw(txn)

    def _flaw(self, txn: Txn) -> Outcome | None:
        flaw = malformed(txn)
        if flaw:
            return Outcome(verdict=Outcome.MALFORMED, revision=self.revision, detail=flaw)
        for guard in txn.guards:
            found = event_at(self.view, guard.key)
            if (found.revision if found else 0) != guard.revision:
                return Outcome(verdict=Outcome.CONFLICT, revision=self.revision, detail="guard")
        return None

    def _effect(self, txn: Txn) -> Outcome:
        outcome = Outcome(verdict=Outcome.COMMITTED, revision=self.revision, reply=txn.reply)
        if txn.HasField("refusal"):
            outcome.verdict = Outcome.REFUSED
            outcome.refusal.CopyFrom(txn.refusal)
        else:
            for n, write in enumerate(txn.writes):
                self._write(txn, n, write)
            for trim in txn.trims:
                self.view.drop(trim.start, trim.end)
            for row in txn.erases:
                self._erase(row)
        if txn.HasField("request"):
            outcome.digest = txn.request.digest
            where = keys.generation(self.revision // self.span) + outcome_key(txn.request)
            self.view.put(where, outcome.SerializeToString(deterministic=True))
        return outcome

    def _erase(self, row: bytes) -> None:
        """Remove a row; an outcome stays, and says from now on that it is no longer known.

        Were it gone, the same request would be taken for a new one, and write again what was erased.
        """
        if not row.startswith(keys.OUTCOME):
            self.view.delete(row)
            return
        packed = self.view.get(row)
        if packed is not None:
            kept = Outcome.FromString(packed)
            blank = Outcome(verdict=Outcome.FORGOTTEN, revision=kept.revision, digest=kept.digest)
            self.view.put(row, blank.SerializeToString(deterministic=True))

    def _write(self, txn: Txn, n: int, write: Write) -> None:
        view, key = self.view, write.key
        old = view.event(key)
        event = Event(
            revision=self.revision,
            key=key,
            created=old.created if old else self.revision,
            version=(old.version if old else write.after_version) + 1,
            actor=txn.actor,
            action=txn.action,
            reason=txn.reason,
            at_ms=self.at_ms,
        )
        if write.HasField("value"):
            event.value = write.value
        elif old is None:
            return
        if write.HasField("origin"):
            event.origin.CopyFrom(write.origin)
        encoded = event.SerializeToString(deterministic=True)
        self._replace(key, old, event, encoded)
        self._changed.append(Changed(key, event, encoded, write.quiet))
        if write.quiet:
            return
        view.put(keys.event(keys.domain_of(txn.scope), self.revision, n), encoded)
        if write.history:
            view.put(keys.history(key, self.revision), encoded)

    def _replace(self, key: bytes, old: Event | None, event: Event, encoded: bytes) -> None:
        if old is not None:
            self.records -= 1
            self.live_bytes -= len(key) + old.ByteSize()
        if not event.HasField("value"):
            self.view.erase(key)
            return
        self.records += 1
        self.live_bytes += len(key) + len(encoded)
        self.view.write(key, event, encoded)

    def _digest(self, entry: bytes) -> bytes:
        parts = [self._hash, entry]
        parts += [outcome.SerializeToString(deterministic=True) for outcome in self._outcomes]
        for key, value in self.view.changes().items():
            parts += (key, b"\1" + value) if value is not None else (key, b"\0")
        for start, end in self.view.ranges():
            parts += (start, end)
        sizes = struct.pack(f">{len(parts)}I", *map(len, parts))
        return hashlib.sha256(sizes + b"".join(parts)).digest()


def malformed(txn: Txn) -> str:
    """Why `txn` may not be applied, or an empty text."""
    if txn.HasField("request") and len(txn.request.nonce) != limits.REQUEST_ID_BYTES:
        return "request id"
    flaw = _bad_writes(txn.writes, txn.scope) if txn.writes else ""
    if flaw or not (txn.trims or txn.erases):
        return flaw
    if len(txn.erases) > limits.ERASES_PER_TXN_MAX or not all(map(_is_erasable, txn.erases)):
        return "too many rows to erase, or rows that cannot be"
    return next((flaw for trim in txn.trims if (flaw := _bad_trim(trim))), "")


def _bad_writes(writes: Sequence[Write], scope: bytes) -> str:
    if len(writes) > limits.WRITES_PER_TXN_MAX:
        return "too many writes"
    if not _is_scope(scope):
        return "scope"
    for write in writes:
        inside = write.key.startswith(scope) and _is_key(write.key, len(scope))
        if not inside and not _moves_cursor(write, scope):
            return "key outside of the scope"
        if len(write.value) > limits.VALUE_BYTES_MAX:
            return "value too large"
        if write.after_version > _VERSION_MAX:
            return "version"
    return "key written twice" if len(writes) > 1 and len({write.key for write in writes}) < len(writes) else ""


def _moves_cursor(write: Write, scope: bytes) -> bool:
    """Whether this is what a copy of another region's transaction writes beside it: how far the copying has come."""
    try:
        cursor, (home, reach) = keys.decode(write.key), keys.home_and_reach(scope)
    except ValueError:
        return False
    if not write.quiet or cursor.home == home or (cursor.reach, cursor.partition) != keys.own_place(cursor.home):
        return False
    return (cursor.kind, cursor.name) == (keys.CURSOR_KIND, keys.cursor_name(home, reach))


@lru_cache(maxsize=1024)
def _is_scope(scope: bytes) -> bool:
    try:
        return keys.decode(keys.within(scope, "kind", "name"))[-2:] == ("kind", "name")
    except ValueError:
        return False


def _is_key(key: bytes, scope_bytes: int) -> bool:
    """Whether kind and name follow the scope, and nothing else: whoever reads events takes their keys apart."""
    rest = key[scope_bytes:]
    if rest.isascii():
        return rest.count(b"\0") == 2 and rest.endswith(b"\0")
    try:
        keys.decode(key)
    except ValueError:
        return False
    return True


def _bad_trim(trim: Range) -> str:
    # A trim may remove what is past its retention, and never a record or the state itself.
    good = trim.start < trim.end and trim.start[:1] == trim.end[:1] and trim.start.startswith(_TRIMMABLE)
    return "" if good else "trim outside of events, history and outcomes"


def _is_erasable(row: bytes) -> bool:
    # As with trims: never a record or the state itself.
    if row.startswith(keys.OUTCOME):
        return len(row) == _OUTCOME_KEY_BYTES
    return row.startswith((keys.EVENT, keys.HISTORY))


def scopes(view: View) -> Iterator[bytes]:
    """All scopes in which there are records; each costs a lookup."""
    at, end = keys.children(keys.RECORD)
    while (first := next(iter(view.scan(at, end)), None)) is not None:
        scope = keys.scope_of(first[0][len(keys.RECORD) :])
        yield scope
        at = keys.children(keys.RECORD + scope)[1]


def events(view: View, domain: bytes, after: int, last: int) -> Iterator[Event]:
    """Events of a domain at revisions `after` + 1 … `last`, in order."""
    if after >= last:
        return
    start, end = keys.events(domain, after + 1, last)
    for _, packed in view.scan(start, end):
        yield Event.FromString(packed)
