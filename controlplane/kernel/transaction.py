"""What a feature sees of the state: a view of one partition, and a transaction over it.

A feature is a function `fn(tx, request) -> reply`. It may run several times before its effects are agreed on, so it
does nothing but call `tx` and build its reply. What it reads becomes guards, what it writes becomes writes. Scans are
not guarded row by row: an entry holds only if it was planned over the very revision it is applied to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

from controlplane.errors import Compacted, ControlPlaneError, NotFound, Refused
from controlplane.kernel import keys, machine
from controlplane.kernel.store import View
from controlplane.v1.records_pb2 import Erasure, Partition, Reach
from controlplane.v1.state_pb2 import Detail, Event, Guard, Origin, Range, Refusal, RequestId, Txn, Write

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class Kind(Generic[M]):
    """A kind of record: its word, its message, and how long its past is kept.

    `history_kept`: at least that many versions of each record can be read back; None keeps all of them (audited
    kinds, which nothing may trim before it is archived); 0 keeps none. A `reserved` kind is admitted into the room
    above the quota. An `erasable` kind holds what people may have a right to have erased; versions of its records count
    on after that.
    """

    name: str
    message: type[M]
    history_kept: int | None = 0
    reserved: bool = False
    erasable: bool = False


class Row(NamedTuple, Generic[M]):
    """A record as it was read or written. `created` is the revision at which it came to be."""

    name: str
    value: M
    revision: int
    created: int
    version: int
    actor: str
    action: str
    reason: str
    at_ms: int


def scope_of(partition: Partition) -> bytes:
    """The key prefix of a partition's present epoch."""
    return _scope(partition.home, partition.reach, partition.id, partition.epoch)


@lru_cache(maxsize=1024)
def _scope(home: str, reach: Reach, partition: str, epoch: int) -> bytes:
    return keys.scope(home, Reach.Name(reach), partition, epoch)


class Reader:
    """A partition as one view of the store shows it."""

    def __init__(self, view: View, partition: Partition, revision: int) -> None:
        self.partition = partition
        self.revision = revision
        self._view = view
        self._scope = scope_of(partition)

    @property
    def view(self) -> View:
        """The store as it is seen here, beyond the partition."""
        return self._view

    def get(self, kind: Kind[M], name: str) -> Row[M] | None:
        """The record, or None."""
        event = machine.event_at(self._view, keys.within(self._scope, kind.name, name))
        return None if event is None else row(kind, name, event)

    def list(self, kind: Kind[M], prefix: str = "", after: str = "") -> Iterator[Row[M]]:
        """Records of a kind whose names start with `prefix` and sort behind `after`, by name."""
        base = self._scope + keys.text(kind.name)
        start, end = keys.children(keys.RECORD + base + prefix.encode())
        if after:
            start = max(start, keys.RECORD + base + keys.text(after) + b"\0")
        for _, packed in self._view.scan(start, end):
            event = Event.FromString(packed)
            yield row(kind, keys.decode(event.key).name, event)

    def count(self, kind: Kind[M]) -> int:
        """How many records there are of a kind; not guarded. While one plans, it costs a lookup."""
        return machine.count_of(self._view, self._scope + keys.text(kind.name))

    def history(self, kind: Kind[M], name: str, before: int = 0) -> Iterator[Row[M] | None]:
        """Versions of a record at revisions below `before` (0: all), newest first; None stands for a deletion."""
        key = keys.within(self._scope, kind.name, name)
        start, end = keys.HISTORY + key, keys.history(key, before or (1 << 63) - 1)
        for _, packed in self._view.scan(start, end, reverse=True):
            event = Event.FromString(packed)
            yield row(kind, name, event) if event.HasField("value") else None

    def at(self, kind: Kind[M], name: str, revision: int) -> Row[M]:
        """The record as it stood at `revision`.

        Raises `NotFound`, `Compacted` below what is kept, `Refused` above what was applied: the answer could change.
        """
        if revision > self.revision:
            raise Refused(
                f"this node is at revision {self.revision}",
                reason="REVISION_IN_FUTURE",
                hint="wait for that revision (AT_LEAST), or ask for an older one",
            )
        key = keys.within(self._scope, kind.name, name)
        newest = machine.event_at(self._view, key)
        if newest is not None:
            # What was there before the record last came to be is another's past.
            version = next(self.history(kind, name, revision + 1), None) if newest.created <= revision else None
            if version is not None:
                return version
            oldest = self._oldest(key, max(newest.created, revision + 1))
            if oldest is not None and oldest.version > 1:
                raise Compacted(
                    f"{kind.name} is kept from revision {oldest.revision} on",
                    reason="HISTORY_COMPACTED",
                    oldest=oldest.revision,
                )
        raise NotFound(f"no such {kind.name} at revision {revision}", reason=f"{kind.name.upper()}_NOT_FOUND")

    def _oldest(self, key: bytes, revision: int) -> Event | None:
        """The oldest kept version of a key at `revision` or later."""
        rows = self._view.scan(keys.history(key, revision), keys.history(key, (1 << 63) - 1))
        return next((Event.FromString(packed) for _, packed in rows), None)


class Tx(Reader):
    """One attempt at a transaction. `revision` is the one it will have if it is applied as planned."""

    def __init__(
        self,
        view: View,
        partition: Partition,
        revision: int,
        *,
        actor: str,
        action: str,
        reason: str,
        at_ms: int,
    ):
        super().__init__(view, partition, revision)
        self.actor, self.action, self.reason, self.at_ms = actor, action, reason, at_ms
        self._guards: dict[bytes, int] = {}
        self._writes: dict[bytes, Write] = {}
        self._trims: list[Range] = []
        self._erases: list[bytes] = []

    def get(self, kind: Kind[M], name: str) -> Row[M] | None:
        """The record, or None; guarded: what is read here must still stand when the transaction is applied."""
        return self.read_in(self._scope, kind, name)

    def read_in(self, scope: bytes, kind: Kind[M], name: str) -> Row[M] | None:
        """`get` in another partition of this region. Reading across partitions is possible, writing is not."""
        key = keys.within(scope, kind.name, name)
        event = machine.event_at(self._view, key)
        self._guards[key] = event.revision if event else 0
        return None if event is None else row(kind, name, event)

    def put(self, kind: Kind[M], name: str, value: M, *, quiet: bool = False) -> Row[M]:
        """Write the record whole, and return it as it will stand."""
        key = keys.within(self._scope, kind.name, name)
        old = machine.event_at(self._view, key)
        packed = value.SerializeToString(deterministic=True)
        keeps = kind.history_kept != 0
        after = self._erased_version(key) if kind.erasable and old is None else 0
        self._writes[key] = Write(key=key, value=packed, quiet=quiet, history=keeps, after_version=after)
        version = (old.version if old else after) + 1
        if kind.history_kept and version % kind.history_kept == 0:
            self._trim_history(key, kind.history_kept)
        created = old.created if old else self.revision
        return Row(name, value, self.revision, created, version, self.actor, self.action, self.reason, self.at_ms)

    def delete(self, kind: Kind[M], name: str) -> None:
        """Remove the record."""
        key = keys.within(self._scope, kind.name, name)
        self._writes[key] = Write(key=key, history=kind.history_kept != 0)

    def copy(self, key: bytes, value: bytes | None, origin: Origin) -> None:
        """Have in this partition, which is another region's, what its home has: `value`, or None if it was deleted."""
        write = Write(key=key, origin=origin)
        if value is not None:
            write.value = value
        self._writes[key] = write

    def adopt(self, kind: str, name: str, value: bytes, version: int, *, history: bool) -> None:
        """Have a record of another home or epoch of this partition, as the version that it is."""
        key = keys.within(self._scope, kind, name)
        self._writes[key] = Write(key=key, value=value, history=history, after_version=version - 1)

    def drop(self, key: bytes) -> None:
        """Remove a record of this partition by its key, without a trace in its history."""
        self._writes[key] = Write(key=key)

    def put_cursor(self, scope: bytes, kind: Kind[M], name: str, value: M) -> None:
        """Note how far the copying has come, in the region's own partition; see `state.proto`, `Txn`."""
        key = keys.within(scope, kind.name, name)
        self._writes[key] = Write(key=key, value=value.SerializeToString(deterministic=True), quiet=True)

    def newest(self, key: bytes) -> Event | None:
        """The newest event of a key; not guarded."""
        return machine.event_at(self._view, key)

    def copies(self, start: bytes, end: bytes) -> Iterator[Event]:
        """The newest events of all records whose keys lie in start ≤ key < end; not guarded."""
        for _, packed in self._view.scan(keys.RECORD + start, keys.RECORD + end):
            yield Event.FromString(packed)

    def trim(self, start: bytes, end: bytes) -> None:
        """Drop rows past their retention: store keys of events, history or outcomes."""
        self._trims.append(Range(start=start, end=end))

    def erase(self, rows: Iterable[bytes]) -> None:
        """Remove rows of events and history, and have outcomes forget their answer: their store keys."""
        self._erases.extend(rows)

    def seal(self, request: RequestId | None, reply: bytes = b"", refusal: ControlPlaneError | None = None) -> Txn:
        """The transaction as it goes into the log. A refusal keeps the guards it rests on, and writes nothing."""
        txn = Txn(
            request=request,
            actor=self.actor,
            action=self.action,
            reason=self.reason,
            scope=self._scope,
            guards=[Guard(key=key, revision=revision) for key, revision in self._guards.items()],
        )
        if refusal is not None:
            txn.refusal.CopyFrom(pack_refusal(refusal))
            return txn
        txn.reply = reply
        txn.writes.extend(self._writes.values())
        txn.trims.extend(self._trims)
        txn.erases.extend(self._erases)
        return txn

    def _erased_version(self, key: bytes) -> int:
        """The version that an erased record had, so that none is used twice; 0 if there was none."""
        erasure = keys.within(self._scope, keys.ERASURE_KIND, keys.erasure_name(key))
        event = machine.event_at(self._view, erasure)
        return Erasure.FromString(event.value).version if event else 0

    def _trim_history(self, key: bytes, kept: int) -> None:
        start, end = keys.HISTORY + key, keys.history(key, (1 << 63) - 1)
        for n, (row_key, _) in enumerate(self._view.scan(start, end, reverse=True), 1):
            if n > kept:
                self.trim(start, row_key + b"\0")
                return


def row(kind: Kind[M], name: str, event: Event) -> Row[M]:
    """An event with a value, as the record it made. A copy stands where it stands at home."""
    at = event.origin if event.HasField("origin") else event
    return Row(
        name,
        kind.message.FromString(event.value),
        at.revision,
        at.created,
        at.version,
        event.actor,
        event.action,
        event.reason,
        at.at_ms,
    )


def pack_refusal(error: ControlPlaneError) -> Refusal:
    """An error as it is replicated."""
    return Refusal(
        error=type(error).__name__,
        reason=error.reason,
        message=str(error),
        hint=error.hint,
        details=[Detail(name=name, value=value) for name, value in sorted(error.details.items())],
    )
