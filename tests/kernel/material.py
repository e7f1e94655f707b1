"""What kernel tests are made of: scopes, transactions, entries, and a recount of a store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from hypothesis import strategies as st

from controlplane import limits
from controlplane.kernel import keys, machine
from controlplane.kernel.machine import Applied
from controlplane.kernel.store import Batch, MemoryStore, Row, Store, View
from controlplane.v1.state_pb2 import Entry, Event, Guard, Outcome, Range, Refusal, RequestId, State, Txn, Write

EVERYTHING = (b"", b"\xff" * 8)
STATE = keys.scope("eu", "HOME_ONLY", "eu.state", 1)
CONFIG = keys.scope("eu", "GLOBAL", "eu.config", 1)
SCOPES = (STATE, CONFIG)
NAMES = ("a", "b", "ab", "a\0b", "ÿ")
SPAN = 8
"""Revisions per generation of outcomes in these tests: small enough to grow out of."""

T = TypeVar("T")


def rows(view: View) -> list[Row]:
    return list(view.scan(*EVERYTHING))


def key(name: str, scope: bytes = STATE, kind: str = "thing") -> bytes:
    return keys.within(scope, kind, name)


def fresh(span: int = SPAN) -> MemoryStore:
    """An empty store whose state says that outcomes are kept for `span` revisions per generation."""
    return seeded(MemoryStore(), span)


def seeded(store: Store, span: int = SPAN) -> Store:
    state = State(format=limits.STATE_FORMAT, outcome_span=span, hash=bytes(32))
    store.commit(Batch(puts={keys.STATE: state.SerializeToString(deterministic=True)}))
    return store


def request(nonce: int, since: int = 0, digest: bytes = b"d", identity: str = "me") -> RequestId:
    return RequestId(identity=identity, nonce=bytes([nonce]) * 16, since=since, digest=digest)


def put(name: str, value: bytes = b"v", scope: bytes = STATE, **more: object) -> Write:
    return Write(key=key(name, scope), value=value, history=bool(more.get("history")), quiet=bool(more.get("quiet")))


def delete(name: str, scope: bytes = STATE) -> Write:
    return Write(key=key(name, scope))


def txn(*writes: Write, scope: bytes = STATE, **fields: object) -> Txn:
    return Txn(scope=scope, writes=writes, **{"actor": "me", "action": "Do", **fields})


@dataclass
class Planned:
    """Transactions over the present revision, or one that is `stale` revisions behind it."""

    txns: list[Txn] = field(default_factory=list)
    stale: int = 0
    at_ms: int = 0

    def packed(self, store: View) -> bytes:
        base = max(0, machine.state_of(store).revision - self.stale)
        return machine.pack(Entry(base=base, at_ms=self.at_ms, salt=b"s" * 16, txns=self.txns))


def apply(store: Store, *txns: Txn, at_ms: int = 0) -> Applied:
    """Apply one entry with `txns`, planned over the store as it is."""
    index = machine.state_of(store).index + 1
    return machine.apply(store, index, 1, Planned(list(txns), at_ms=at_ms).packed(store))


def outcomes(store: Store, *txns: Txn) -> list[Outcome.Verdict]:
    return [outcome.verdict for outcome in apply(store, *txns).outcomes]


def recounted(view: View) -> tuple[int, int]:
    """How many records there are, and the bytes of their keys and values."""
    records = list(view.scan(*keys.children(keys.RECORD)))
    return len(records), sum(len(row_key) - len(keys.RECORD) + len(value) for row_key, value in records)


def record(view: View, name: str, scope: bytes = STATE) -> Event | None:
    return machine.event_at(view, key(name, scope))


def _one_of(*strategies: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    """As `st.one_of`, but what is named twice is drawn twice as often."""
    return st.sampled_from(strategies).flatmap(lambda chosen: chosen)


def _mostly(usual: st.SearchStrategy[T], rare: st.SearchStrategy[T]) -> st.SearchStrategy[T]:
    return _one_of(*[usual] * 5, rare)


def _transactions(
    scope: bytes, written: list[bytes], trims: st.SearchStrategy[Range], erases: st.SearchStrategy[bytes]
) -> st.SearchStrategy[Txn]:
    writes = st.builds(
        Write,
        key=st.sampled_from(written),
        value=_mostly(st.binary(max_size=6), st.none()),
        quiet=st.booleans(),
        history=st.booleans(),
    )
    return st.builds(
        Txn,
        request=st.none() | REQUESTS,
        actor=st.sampled_from(["me", "you"]),
        action=st.just("Do"),
        reason=st.text(max_size=3),
        scope=st.just(scope),
        guards=_mostly(st.just([]), st.lists(GUARDS, max_size=1)),
        writes=st.lists(writes, max_size=3, unique_by=lambda write: write.key),
        reply=st.binary(max_size=3),
        refusal=_mostly(st.none(), st.builds(Refusal, error=st.just("Refused"), reason=st.text(max_size=3))),
        trims=_mostly(st.just([]), st.lists(trims, max_size=1)),
        erases=_mostly(st.just([]), st.lists(erases, max_size=2)),
    )


GUARDS = st.builds(Guard, key=st.sampled_from([key(name) for name in NAMES]), revision=st.integers(0, 6))
REQUESTS = st.builds(request, st.integers(0, 3), st.integers(0, 30), st.sampled_from([b"d", b"e"]))
_PAST = (
    *(keys.event(keys.domain_of(STATE), revision, 0) for revision in range(1, 6)),
    *(keys.history(key(name), revision) for name in NAMES[:2] for revision in (1, 2, 3)),
    *(keys.generation(0) + machine.outcome_key(request(nonce)) for nonce in range(4)),
)
_TRIMS = st.sampled_from([Range(start=kind, end=kind + b"\xff") for kind in (keys.EVENT, keys.HISTORY, keys.OUTCOME)])
_BAD_TRIMS = st.builds(
    Range,
    start=st.sampled_from([keys.EVENT, keys.HISTORY, keys.OUTCOME, keys.RECORD, keys.STATE, b"", b"z"]),
    end=st.sampled_from([b"e\xff", b"h\xff", b"o\xff", b"r\xff", b"m\xff", b"", b"e", b"\xff"]),
)
SOUND = [_transactions(scope, [key(name, scope) for name in NAMES], _TRIMS, st.sampled_from(_PAST)) for scope in SCOPES]
WILD = [
    _transactions(
        scope,
        [key(name, scope) for name in NAMES for scope in SCOPES],
        _BAD_TRIMS,
        st.sampled_from([*_PAST, keys.RECORD + key("a")]),
    )
    for scope in (*SCOPES, b"", b"eu\0", b"\xff\0x\0")
]
# Most may be applied: what is malformed changes nothing, and a history of that alone shows nothing.
TXNS = _mostly(_one_of(*SOUND), _one_of(*WILD))
PLANS = st.builds(
    Planned,
    txns=st.lists(TXNS, max_size=5),
    stale=_mostly(st.just(0), st.just(1)),
    at_ms=st.integers(0, 9),
)
HISTORIES = st.lists(PLANS, max_size=8)
