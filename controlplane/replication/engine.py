"""The consensus core: who may vote, who leads, in which order entries stand, what is committed. Nothing else.

`Core` is the port. `SyncObjCore` is PySyncObj 0.3.17 behind it: this is the only file that imports the library, and
everything one must know of it is here. `ModelCore` is a small core of our own with the same behaviour: the oracle of
the contract test, and the way out if the library ever fails.

Theory of operation. The library's election rules and its counting of commits are sound; its replication, persistence,
snapshots, clock and network are not. So it is used, unmodified and through public names only, as a machine that
decides, and is kept from doing anything:

1. It is told that no peer is connected. Then it sends no appends and no snapshots, and starts no election. `campaign`
   opens that gate for exactly one tick.
2. Its journal is the guard's `Tail`. It reads terms and indexes there and adds or cuts entries, and it writes there
   the term, the vote and the commit index as it decides them; so the tail is where they are read.
3. It never sees a payload. Payloads pass through it sealed, and what it reads back is always a no-op: nothing that
   came from a client or a peer can reach its unpickler (B11), its apply (B9) or its membership code (B20).
4. Its clock is the guard's (B19). `campaign` sets it ahead a little, so that its own timeouts never decide anything.
5. Most turns of a leader bring it nothing: no proposal, no ack of more, no time to give up. Then it is not asked.
6. It owns no thread, socket, file, fork or notify pipe (B11, B17, B18, B19).

What this rests on beyond the documented API: the module names `createJournal`, `createPoller` and `monotonicTime`,
seven message formats, the no-op byte, and "no election while unconnected". Hence the pinned version and the hashes
below. Rebinding those names is process-wide: nothing else in the process may use PySyncObj.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pysyncobj import SyncObj, SyncObjConf, syncobj
from pysyncobj.journal import Journal
from pysyncobj.node import Node
from pysyncobj.transport import Transport

from controlplane.errors import Fatal
from controlplane.replication import Role
from controlplane.replication.tail import Entry, Tail

ENGINE_VERSION = "0.3.17"
ENGINE_SHA256 = {
    "__init__.py": "4966a9dd893542b1b0e0fcef3d2ea44f2f40919d66b684992e5511be7503c036",
    "atomic_replace.py": "43a5252a241939b7f457cbbf39480260c91f0d2035a62b170bf1e1d20d0f9c1d",
    "config.py": "fbbc7ff9f18e4d15a7fd563376e42f5bd192956879d4b810b056d5248b955698",
    "dns_resolver.py": "4b88da2b45e20fbb299fb7a21f2595369b6314700b687fb8858891999bce14e0",
    "encryptor.py": "db20725465efdfc6d7a3b5b2112f53bc5426d36c56312ebdf5fbcf05423a7c19",
    "fast_queue.py": "8477fe5fdf36d9766df933310d3d66ee953d1afc195b1e6482b3a1498fc517bd",
    "journal.py": "9cf1eaf6acc704581a4cf7d3de330a404403913107adc91c929778b7e3f35edf",
    "monotonic.py": "d116df70e1f81bcab1fb89191fe2fe18486bc25187401d73fd6101cfe686e0a3",
    "node.py": "e4a3f027cd8291f558334bb9c977e952f6b6989e7e1fa1588d3005ef0b990e2c",
    "pickle.py": "e9327780738065cec5d600484b936c91e7c13875206cb584d5ff7f5d0dc9c474",
    "pipe_notifier.py": "587d964bfa5d62320f3541cbb283ff3e282cb2db95e1b8cfd888dc3d53af82aa",
    "poller.py": "f69ac749fb410670282fd9520c5805ffc684c8a5f762a927127753d9be8551e6",
    "serializer.py": "4d39fde2f15000ad8f507ec229ebd4f6a86371b6f84d4dc1439a9cccd52857ee",
    "syncobj.py": "e8bdf06797085d734df86e24ab4802fe87893dff77268565ec036f7ad4a1cfe4",
    "tcp_connection.py": "7784ed8da031369fe36f805cb186a2e94a3bd6f10fed2dd59c8cc3713fd6331c",
    "tcp_server.py": "bde2f216c1a585029188d0438b44762e2e797dfc53bbce387839daaa46b9a60d",
    "transport.py": "0c9d89f9c4781ec9772df8011d7975a1a4a1a5f541357e12eae85a813e92b50b",
    "utility.py": "1aa0c49d3558c5df6489235b94ae44357b382f9f0792b9d72ae6e5ae0c0039ea",
    "version.py": "0b8426a8b52ecf874193897d26c4214acbd85335145ea9ff17e27a22b1132943",
    "win_inet_pton.py": "75315fdf68bfa4219c2952b21077387be45a02c4f01db45c7355cdc883c8e9cc",
}
"""SHA-256 of every file of the library that is executed."""


class CoreEvents(Protocol):
    """What a core says while it runs. It must not be called back from any of these."""

    def role_changed(self, role: Role) -> None:
        """The role is now `role`; never called without a change."""

    def campaigned(self) -> None:
        """The core is a candidate in the tail's present term and wants every peer's vote."""

    def vote_given(self, peer: str, term: int) -> None:
        """The core voted for `peer`; the vote stands in the tail and is not synced yet."""

    def proposed(self, number: int, index: int, term: int) -> None:
        """Proposal `number` was added to the tail."""

    def refused(self, number: int) -> None:
        """Proposal `number` was not, and never will be."""


class Core(Protocol):
    """Decides votes, leadership, order and commit, and writes all four into the tail it was given.

    Deterministic: time is an input, chance plays no part. `now` is in seconds and never goes back.
    """

    def tick(self, now: float) -> None:
        """Leader: count commits, step down without a majority for the fallback time, then take in proposals."""

    def campaign(self, now: float) -> None:
        """Start an election now, in the next term. Without peers this node leads at once."""

    def vote_asked(self, peer: str, term: int, last_index: int, last_term: int, now: float) -> None:
        """`peer` asks for a vote in `term` with a log that ends at (last_index, last_term)."""

    def vote_won(self, peer: str, term: int, now: float) -> None:
        """`peer` voted for this node in `term`. The caller sees to it that no vote is told twice (B12)."""

    def take_term(self, term: int, now: float) -> None:
        """Move up to `term` without voting in it; a leader or candidate becomes a follower."""

    def burn_vote(self, term: int, now: float) -> None:
        """Move up to `term` and never vote for anyone in it."""

    def follow(
        self, leader: str, term: int, prev: tuple[int, int], commit: int, entries: Sequence[Entry], now: float
    ) -> None:
        """Cut what follows `prev`, add `entries`, commit up to min(commit, last index): `leader` leads `term`.

        `prev` is (index, term) of an entry in the tail. An older term changes nothing.
        """

    def matched(self, peer: str, index: int, heard: float) -> None:
        """Count the log up to `index` as on `peer`'s disk, and `peer` as alive at `heard`, when it was last heard.

        A lower index changes nothing.
        """

    def propose(self, number: int, payload: bytes) -> None:
        """Queue a proposal for the next tick; the caller bounds how many."""


def major(count: int, nodes: int) -> bool:
    """Whether `count` of `nodes` is a majority."""
    return 2 * count > nodes


@cache
def verify_engine() -> None:
    """Check that the installed library is the one everything here was proven against; `Fatal` names what differs."""
    hint = f"; reinstall it: pip install --force-reinstall pysyncobj=={ENGINE_VERSION}"
    try:
        installed = version("pysyncobj")
    except PackageNotFoundError:
        raise Fatal("the consensus engine pysyncobj is not installed" + hint) from None
    if installed != ENGINE_VERSION:
        raise Fatal(f"pysyncobj {installed} is installed, but only {ENGINE_VERSION} is proven" + hint)
    spec = find_spec("pysyncobj")
    folder = Path(spec.origin).parent if spec and spec.origin else Path()
    for problem in engine_problems(folder):
        raise Fatal(problem + hint)


def engine_problems(folder: Path) -> list[str]:
    """What in `folder` differs from the pinned files, as texts."""
    problems = []
    for name, expected in ENGINE_SHA256.items():
        path = folder / name
        if not path.is_file():
            problems.append(f"{path} is missing")
        elif (found := hashlib.sha256(path.read_bytes()).hexdigest()) != expected:
            problems.append(f"{path} was changed: sha256 {found}, expected {expected}")
    return problems


# ---------------------------------------------------------------------------------------------- PySyncObj behind it

_NO_OP = b"\x01"
# How far `campaign` sets the core's clock ahead: more than its longest election timeout.
_RAISE_S = 0.05
# So long before a leader might give up it is asked in every turn: only the library says when.
_MARGIN_S = 0.001
_ROLES = (Role.FOLLOWER, Role.CANDIDATE, Role.LEADER)
_NEVER = 1 << 62
# It takes entry 1 for applied and complains when that is cut; and it applies nothing here.
logging.getLogger(syncobj.__name__).setLevel(logging.CRITICAL + 1)


class _Sealed(NamedTuple):
    payload: bytes


class _Clock:
    """The one clock of every core in the process; set on each entry into one."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


_CLOCK = _Clock()


class _NullPoller:
    def poll(self, timeout: float) -> None: ...


class _SyncObjJournal(Journal):  # type: ignore[misc]
    """The tail as the library wants to see a journal: position 0 is the boundary, every command a no-op."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail

    def __len__(self) -> int:
        return len(self._tail) + 1

    def __getitem__(self, key: int | slice) -> Any:
        tail = self._tail
        if isinstance(key, slice):
            return [self._at(k) for k in range(*key.indices(len(tail) + 1))]
        return (_NO_OP, tail.last_index, tail.last_term) if key == -1 else self._at(key)

    def _at(self, position: int) -> tuple[bytes, int, int]:
        index = self._tail.boundary_index + position
        return _NO_OP, index, self._tail.term_at(index)

    def add(self, command: object, idx: int, term: int) -> None:
        self._tail.add(Entry(idx, term, command.payload if isinstance(command, _Sealed) else b""))

    def deleteEntriesFrom(self, entryFrom: int) -> None:  # noqa: N802, N803 - the library's names.
        self._tail.cut(self._tail.boundary_index + entryFrom)

    def deleteEntriesTo(self, entryTo: int) -> None:  # noqa: N802, N803
        raise Fatal("the core tried to compact the journal")

    def clear(self) -> None:
        raise Fatal("the core tried to clear the journal")

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:  # noqa: N802, N803
        self._tail.set_commit(raftCommitIndex)

    def getRaftCommitIndex(self) -> int:  # noqa: N802
        return self._tail.commit

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:  # noqa: N802, N803
        self._tail.set_term(term, votedForNodeId)

    def getCurrentTerm(self) -> int:  # noqa: N802
        return self._tail.term

    def getVotedForNodeId(self) -> str | None:  # noqa: N802
        return self._tail.voted_for

    def _destroy(self) -> None: ...


class _SyncObjTransport(Transport):  # type: ignore[misc]
    """Where the library sends; most of it is dropped, because the guard replicates by itself."""

    ready = True

    def __init__(self, events: CoreEvents) -> None:
        super().__init__(None, None, None)
        self._events = events
        self.told_of_campaign = False

    def send(self, node: Node, message: dict[str, Any]) -> bool:
        kind = message["type"]
        if kind == "request_vote":
            self._campaigned()
        elif kind == "response_vote" and node is not _NOBODY:
            self._events.vote_given(node.id, message["term"])
        elif kind == "apply_command_response":
            self._answered(message)
        return True

    def _campaigned(self) -> None:
        # The library asks each peer in the order of a set, which differs from run to run: one event for all of them.
        if not self.told_of_campaign:
            self.told_of_campaign = True
            self._events.campaigned()

    def _answered(self, message: dict[str, Any]) -> None:
        number = message["request_id"]
        if "error" in message:
            self._events.refused(number)
        else:
            self._events.proposed(number, message["log_idx"], message["log_term"])

    def destroy(self) -> None: ...

    # The inherited names begin with an underscore, but a transport is the documented place to call them from.
    def deliver(self, node: Node, message: dict[str, Any]) -> None:
        self._onMessageReceived(node, message)

    def open_gate(self, node: Node) -> None:
        self._onNodeConnected(node)

    def close_gate(self, node: Node) -> None:
        self._onNodeDisconnected(node)


# Asks for votes that must not be given to anyone.
_NOBODY = Node(":nobody")
# Hands in proposals.
_CLIENT = Node(":client")


class SyncObjCore:
    """PySyncObj as a `Core`. `fallback_s` is how long a leader stays one without hearing from a majority (B14)."""

    def __init__(
        self, me: str, peers: Sequence[str], tail: Tail, events: CoreEvents, fallback_s: float, now: float
    ) -> None:
        verify_engine()
        self._nodes = {peer: Node(peer) for peer in peers}
        self._gate = self._nodes[peers[0]] if peers else None
        self._transport = _SyncObjTransport(events)
        self._events = events
        self._role = Role.FOLLOWER
        self._ahead_s = 0.0
        self._fallback_s = fallback_s
        self._news = True  # Something was said since the last tick that may change a leader's mind.
        self._told: dict[str, int] = {}  # What a leader was told of each peer,
        self._heard = dict.fromkeys(peers, now)  # and when.
        self._sure_until = now
        self._enter(now)
        self._syncobj = self._create(Node(me), _SyncObjJournal(tail), self._conf(fallback_s))

    def _conf(self, fallback_s: float) -> SyncObjConf:
        return SyncObjConf(
            autoTick=False,
            appendEntriesPeriod=0.01,
            raftMinTimeout=0.031,
            raftMaxTimeout=0.032,
            leaderFallbackTimeout=fallback_s,
            appendEntriesUseBatch=True,  # False would make a notify pipe; with no peer connected it sends nothing.
            commandsQueueSize=0,  # Unbounded here; the guard bounds proposals.
            commandsWaitLeader=False,
            dynamicMembershipChange=False,
            useFork=False,
            journalFile=None,
            fullDumpFile=None,
            logCompactionMinEntries=_NEVER,
            logCompactionMinTime=_NEVER,
            onStateChanged=lambda _, new: self._changed(_ROLES[new]),
        )

    def _changed(self, role: Role) -> None:
        self._role = role
        self._news, self._told = True, {}
        self._heard = dict.fromkeys(self._heard, _CLOCK.now - self._ahead_s)
        self._sure_until = -inf
        self._events.role_changed(role)

    def _create(self, me: Node, journal: Journal, conf: SyncObjConf) -> SyncObj:
        before = syncobj.createJournal, syncobj.createPoller
        syncobj.monotonicTime = _CLOCK
        try:
            syncobj.createJournal, syncobj.createPoller = (lambda _: journal), (lambda _: _NullPoller())
            return SyncObj(me, list(self._nodes.values()), conf, transport=self._transport)
        finally:
            syncobj.createJournal, syncobj.createPoller = before

    def _enter(self, now: float) -> None:
        _CLOCK.now = now + self._ahead_s

    def _deliver(self, node: Node, message: dict[str, Any], now: float) -> None:
        self._enter(now)
        self._transport.deliver(node, message)

    def tick(self, now: float) -> None:
        """See `Core`."""
        # Alone, a leader counts in one turn what it took in the one before.
        if self._role is not Role.LEADER or self._news or now > self._sure_until or self._gate is None:
            self._tick(now)

    def _tick(self, now: float) -> None:
        self._news = False
        self._enter(now)
        self._syncobj.doTick()
        self._sure_until = self._gives_up_at() - _MARGIN_S

    def _gives_up_at(self) -> float:
        """When a leader with peers that hears nothing more is one no longer: half of them and itself are a majority."""
        needed = (len(self._heard) + 1) // 2
        heard = sorted(self._heard.values(), reverse=True)
        return heard[needed - 1] + self._fallback_s if heard else inf

    def campaign(self, now: float) -> None:
        """See `Core`."""
        if self._role is not Role.LEADER:  # A leader's clock must not jump: it would give up too soon.
            self._ahead_s += _RAISE_S
        self._transport.told_of_campaign = False
        if self._gate is None:
            return self._tick(now)
        self._transport.open_gate(self._gate)
        self._tick(now)
        return self._transport.close_gate(self._gate)

    def vote_asked(self, peer: str, term: int, last_index: int, last_term: int, now: float) -> None:
        """See `Core`."""
        self._ask_vote(self._nodes[peer], term, last_index, last_term, now)

    def _ask_vote(self, node: Node, term: int, last_index: int, last_term: int, now: float) -> None:
        message = {"type": "request_vote", "term": term, "last_log_index": last_index, "last_log_term": last_term}
        self._deliver(node, message, now)

    def vote_won(self, peer: str, term: int, now: float) -> None:
        """See `Core`."""
        self._deliver(self._nodes[peer], {"type": "response_vote", "term": term}, now)

    def take_term(self, term: int, now: float) -> None:
        """See `Core`. A request for a vote that no log can satisfy."""
        self._ask_vote(_NOBODY, term, 0, -1, now)

    def burn_vote(self, term: int, now: float) -> None:
        """See `Core`. A request for a vote that every log satisfies, from nobody."""
        self._ask_vote(_NOBODY, term, _NEVER, _NEVER, now)

    def follow(
        self, leader: str, term: int, prev: tuple[int, int], commit: int, entries: Sequence[Entry], now: float
    ) -> None:
        """See `Core`."""
        message = {
            "type": "append_entries",
            "term": term,
            "commit_index": commit,
            "prevLogIdx": prev[0],
            "prevLogTerm": prev[1],
            "entries": [(_Sealed(entry.payload), entry.index, entry.term) for entry in entries],
        }
        self._deliver(self._nodes[leader], message, now)

    def matched(self, peer: str, index: int, heard: float) -> None:
        """See `Core`."""
        self._heard[peer] = heard
        if self._told.get(peer, 0) < index:
            self._told[peer], self._news = index, True
        message = {"type": "next_node_idx", "next_node_idx": index + 1, "reset": False, "success": True}
        self._deliver(self._nodes[peer], message, heard)

    def propose(self, number: int, payload: bytes) -> None:
        """See `Core`."""
        self._news = True
        message = {"type": "apply_command", "command": _Sealed(payload), "request_id": number}
        self._transport.deliver(_CLIENT, message)


# ------------------------------------------------------------------------------------------------------- our own


class ModelCore:
    """What the guard uses of the library, written anew: same port, same decisions in the same order."""

    def __init__(
        self, me: str, peers: Sequence[str], tail: Tail, events: CoreEvents, fallback_s: float, now: float
    ) -> None:
        self._me = me
        self._peers = tuple(peers)
        self._tail = tail
        self._events = events
        self._fallback_s = fallback_s
        self._role = Role.FOLLOWER
        self._votes = 0
        self._match: dict[str, int] = {}
        self._heard: dict[str, float] = {}
        self._queue: list[tuple[int, bytes]] = []

    def _become(self, role: Role) -> None:
        if role is not self._role:
            self._role = role
            self._events.role_changed(role)

    def _lead(self, now: float) -> None:
        self._become(Role.LEADER)
        self._match = dict.fromkeys(self._peers, 0)
        self._heard = dict.fromkeys(self._peers, now)
        self._add(b"")

    def _add(self, payload: bytes) -> Entry:
        entry = Entry(self._tail.last_index + 1, self._tail.term, payload)
        self._tail.add(entry)
        return entry

    def tick(self, now: float) -> None:
        """See `Core`."""
        if self._role is Role.LEADER:
            self._count_commits()
            heard = sum(at > now - self._fallback_s for at in self._heard.values())
            if not major(1 + heard, len(self._peers) + 1):
                self._become(Role.FOLLOWER)
        queue, self._queue = self._queue, []
        for number, payload in queue:
            self._take(number, payload)

    def _count_commits(self) -> None:
        held = sorted([self._tail.last_index, *self._match.values()])
        index = held[len(self._peers) // 2]
        if index > self._tail.commit and self._tail.term_at(index) == self._tail.term:
            self._tail.set_commit(index)

    def _take(self, number: int, payload: bytes) -> None:
        if self._role is Role.LEADER:
            entry = self._add(payload)
            self._events.proposed(number, entry.index, entry.term)
        else:
            self._events.refused(number)

    def campaign(self, now: float) -> None:
        """See `Core`."""
        if self._role is not Role.LEADER:
            self._become(Role.CANDIDATE)
            self._tail.set_term(self._tail.term + 1, self._me)
            self._votes = 1
            if self._peers:
                self._events.campaigned()
            else:
                self._lead(now)
        self.tick(now)

    def vote_asked(self, peer: str, term: int, last_index: int, last_term: int, now: float) -> None:
        """See `Core`."""
        if self._would_vote(term, last_index, last_term):
            self._tail.set_term(term, peer)
            self._events.vote_given(peer, term)

    def _would_vote(self, term: int, last_index: int, last_term: int) -> bool:
        self.take_term(term, 0.0)
        tail = self._tail
        ahead = (last_term, last_index) >= (tail.last_term, tail.last_index)
        return term == tail.term and self._role is not Role.LEADER and ahead and tail.voted_for is None

    def take_term(self, term: int, now: float) -> None:
        """See `Core`."""
        if term > self._tail.term:
            self._tail.set_term(term, None)
            self._become(Role.FOLLOWER)

    def burn_vote(self, term: int, now: float) -> None:
        """See `Core`."""
        if self._would_vote(term, _NEVER, _NEVER):
            self._tail.set_term(term, _NOBODY.id)

    def vote_won(self, peer: str, term: int, now: float) -> None:
        """See `Core`."""
        if self._role is Role.CANDIDATE and term == self._tail.term:
            self._votes += 1
            if major(self._votes, len(self._peers) + 1):
                self._lead(now)

    def follow(
        self, leader: str, term: int, prev: tuple[int, int], commit: int, entries: Sequence[Entry], now: float
    ) -> None:
        """See `Core`."""
        if term < self._tail.term:
            return
        if term > self._tail.term:
            self._tail.set_term(term, None)
        self._become(Role.FOLLOWER)
        if self._tail.last_index > prev[0]:
            self._tail.cut(prev[0] + 1)
        for entry in entries:
            self._tail.add(entry)
        self._tail.set_commit(min(commit, self._tail.last_index))

    def matched(self, peer: str, index: int, heard: float) -> None:
        """See `Core`."""
        if self._role is Role.LEADER:
            self._match[peer] = max(self._match[peer], index)
            self._heard[peer] = heard

    def propose(self, number: int, payload: bytes) -> None:
        """See `Core`."""
        self._queue.append((number, payload))
