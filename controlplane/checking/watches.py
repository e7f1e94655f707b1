"""Watches: was every message of a watcher what was committed, in order, whole, and without a gap.

A watcher watches several times: each `Session` begins where the caller asked, and ends with a break. What is compared
is what this watcher was to see: transactions and messages of the same kinds and names.

1. Ordered and unique: revisions of CHANGES only grow, also against what progress was reported (WATCH_ORDER).
2. Atomic: a message holds exactly the changes of one transaction, all at its revision (WATCH_ATOMIC), and that
   transaction was committed (WATCH_PHANTOM).
3. Reliable: no committed transaction between two messages is missing (WATCH_GAP).
4. Resumable: a session stands at the revision it asked for, and goes on from there (WATCH_RESUME).
5. Bookmarkable: reported progress never overtakes what was delivered (WATCH_BOOKMARK), and never goes back.
6. A listing is the state of one moment: the records as of its revision, no more and no less (WATCH_LISTING).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from controlplane.checking.histories import Value
from controlplane.checking.invariants import FINDINGS_MAX, Finding


class Kind(StrEnum):
    """Of a message; the names are those of the API."""

    STARTED = "started"
    SNAPSHOT = "snapshot"
    SYNCED = "synced"
    CHANGES = "changes"
    PROGRESS = "progress"


class Change(NamedTuple):
    """What happened to a record: `key` names its kind and it, `value` stands for its value, or None: deleted."""

    key: str
    revision: int
    value: Value


class Message(NamedTuple):
    """One message of a watch."""

    kind: Kind
    revision: int
    changes: tuple[Change, ...] = ()


class Session(NamedTuple):
    """One watch, from its request to its end."""

    messages: Sequence[Message]
    after: int | None = None
    """The revision that was asked for; None: from now, or a listing first."""
    listing: bool = False


class Committed(NamedTuple):
    """What was committed, as somebody else told it (ListEvents, or another replica's store)."""

    transactions: Mapping[int, tuple[Change, ...]]
    """By revision; only those with something the watcher was to see."""
    after: int
    """Every such transaction above this"""
    up_to: int
    """and up to this is listed. Messages beyond are not compared."""


def committed(changes: Iterable[Change], *, after: int = 0, up_to: int) -> Committed:
    """What was committed, from a list of changes: those of one revision are one transaction."""
    transactions: dict[int, tuple[Change, ...]] = {}
    for change in changes:
        transactions[change.revision] = (*transactions.get(change.revision, ()), change)
    return Committed(dict(sorted(transactions.items())), after, up_to)


def check(sessions: Iterable[Session], truth: Committed, *, reached: int = 0) -> list[Finding]:
    """What breaks a rule in the sessions of one watcher; the last one has to have come to `reached`."""
    findings: list[Finding] = []
    seen = 0
    for number, session in enumerate(sessions, 1):
        watcher = _Watcher(truth, session)
        findings += (Finding(promise, f"session {number}: {text}") for promise, text in watcher.run())
        seen = watcher.cursor
        if len(findings) >= FINDINGS_MAX:
            break
    if seen < reached:
        findings.append(Finding("WATCH_BEHIND", f"the last session came to {seen}, not to {reached}"))
    return findings[:FINDINGS_MAX]


def state_at(truth: Committed, revision: int) -> dict[str, Change]:
    """The newest change of every key up to `revision`, deletions included."""
    transactions = truth.transactions.items()
    return {change.key: change for at, changes in transactions if at <= revision for change in changes}


class _Watcher:
    """Follows one session. `cursor` is what it has seen everything up to."""

    def __init__(self, truth: Committed, session: Session) -> None:
        self.cursor = 0
        self._truth = truth
        self._session = session
        self._revisions = sorted(truth.transactions)
        self._listed: list[Change] = []
        self._rules = {
            Kind.STARTED: self._started,
            Kind.SNAPSHOT: self._snapshot,
            Kind.SYNCED: self._synced,
            Kind.CHANGES: self._changes,
            Kind.PROGRESS: self._progress,
        }

    def run(self) -> Iterator[Finding]:
        """What breaks a rule."""
        for number, message in enumerate(self._session.messages):
            if (number == 0) is not (message.kind is Kind.STARTED):
                yield Finding("WATCH_RESUME", f"message {number} is {message.kind}")
            yield from self._rules[message.kind](message)

    def _started(self, message: Message) -> Iterator[Finding]:
        asked = self._session.after
        if asked is not None and not self._session.listing and message.revision != asked:
            yield Finding("WATCH_RESUME", f"asked for what comes after {asked}, it stands at {message.revision}")
        self.cursor = message.revision if asked is None else asked

    def _snapshot(self, message: Message) -> Iterator[Finding]:
        self._listed += message.changes
        if not self._session.listing or message.revision != self.cursor:
            yield Finding("WATCH_LISTING", f"a part as of {message.revision} of a listing as of {self.cursor}")

    def _synced(self, message: Message) -> Iterator[Finding]:
        if not self._session.listing or message.revision != self.cursor:
            yield Finding("WATCH_LISTING", f"complete as of {message.revision}, begun as of {self.cursor}")
        if self._truth.after <= message.revision <= self._truth.up_to:
            yield from _listing(self._listed, self._truth, message.revision)

    def _changes(self, message: Message) -> Iterator[Finding]:
        if message.revision <= self.cursor:
            yield Finding("WATCH_ORDER", f"revision {message.revision} after {self.cursor}")
        yield from self._missing(message.revision - 1, "WATCH_GAP")
        if self._truth.after < message.revision <= self._truth.up_to:
            yield from _whole(message, self._truth.transactions.get(message.revision))
        self.cursor = max(self.cursor, message.revision)

    def _progress(self, message: Message) -> Iterator[Finding]:
        if message.revision < self.cursor:
            yield Finding("WATCH_BOOKMARK", f"progress goes back from {self.cursor} to {message.revision}")
        yield from self._missing(message.revision, "WATCH_BOOKMARK")
        self.cursor = max(self.cursor, message.revision)

    def _missing(self, up_to: int, promise: str) -> Iterator[Finding]:
        begin, end = bisect_right(self._revisions, self.cursor), bisect_right(self._revisions, up_to)
        if begin < end:
            missing = ", ".join(map(str, self._revisions[begin:end][:5]))
            yield Finding(promise, f"{end - begin} missing between {self.cursor} and {up_to}: {missing}")


def _whole(message: Message, transaction: tuple[Change, ...] | None) -> Iterator[Finding]:
    if transaction is None:
        yield Finding("WATCH_PHANTOM", f"nothing was committed at {message.revision}")
    elif sorted(message.changes, key=repr) != sorted(transaction, key=repr):
        told = f"{len(message.changes)} changes were told, {len(transaction)} committed"
        yield Finding("WATCH_ATOMIC", f"revision {message.revision} is not what was committed: {told}")


def _listing(listed: list[Change], truth: Committed, revision: int) -> Iterator[Finding]:
    told = {change.key: change for change in listed}
    if len(told) != len(listed):
        yield Finding("WATCH_LISTING", f"as of {revision}: {len(listed) - len(told)} records twice")
    newest = state_at(truth, revision)
    for key, change in newest.items():
        if told.get(key) != (change if change.value is not None else None):
            yield Finding("WATCH_LISTING", f"as of {revision}: {key} is told as {told.get(key)}, it was {change}")
    for key, change in told.items():
        if key not in newest and change.revision > truth.after:
            yield Finding("WATCH_LISTING", f"as of {revision}: {key} is told, but was not there")
