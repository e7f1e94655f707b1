"""What the ledger of a region says of its log, and that every replica says the same."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.features import audit, federation, switches
from controlplane.features.partitions import system
from controlplane.kernel import keys, machine
from controlplane.kernel.store import Batch, MemoryStore, Store
from controlplane.kernel.transaction import Tx, scope_of
from controlplane.ledger import leaves, merkle
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import GLOBAL, SCOPE_TENANT, Grant, Partition, Passage, Reach, Scope
from controlplane.v1.state_pb2 import Entry, Txn, Write
from tests.kernel.material import rows

EU = system("eu")
SWITCHES = Partition(id="eu.prod.switches", home="eu", epoch=1, reach=Reach.HOME_ONLY, environment="prod")


def entry_of(store: Store, partition: Partition, feature: Callable[[Tx], Message | None], at_ms: int) -> bytes:
    revision = machine.state_of(store).revision
    view = machine.Records(store)
    tx = Tx(view, partition, revision + 1, actor="someone@example.org", action="Do", reason="tenant acme", at_ms=at_ms)
    reply = feature(tx)
    txn = tx.seal(None, reply.SerializeToString() if reply else b"")
    return machine.pack(Entry(base=revision, at_ms=at_ms, salt=at_ms.to_bytes(16, "big"), txns=[txn]))


class Replica:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.ledger = audit.Ledger(self.store)
        self.entries: list[bytes] = []

    def apply(self, entry: bytes) -> None:
        self.entries.append(entry)
        index = machine.state_of(self.store).index + 1
        machine.apply(self.store, index, 1, entry, annex=self.ledger)

    def run(self, partition: Partition, feature: Callable[[Tx], Message | None], at_ms: int = 5) -> None:
        self.apply(entry_of(self.store, partition, feature, at_ms))


def passage(upto: int, sort: str = "copy") -> Passage:
    return Passage(
        direction=Passage.EGRESS,
        counterparty="us",
        reach=GLOBAL,
        epoch=1,
        after=upto - 1,
        upto=upto,
        records=3,
        sort=sort,
    )


def throw(tx: Tx) -> Message:
    return switches.engage(tx, api.EngageSwitchRequest(scope=Scope(kind=SCOPE_TENANT, name="acme")))


def test_what_passed_is_a_leaf_that_can_be_opened_and_proven() -> None:
    replica = Replica()
    for n in range(1, 8):
        replica.run(EU, lambda tx, n=n: federation.record_passage(tx, passage(n)), at_ms=n * 10)  # type: ignore[misc]
    store, size = replica.store, replica.ledger.size
    assert size == 7
    node = audit.node_reader(store)
    for index in range(size):
        packed = audit.leaf_at(store, index)
        assert packed is not None
        proof = merkle.inclusion_proof(index, size, node)
        assert merkle.verify_inclusion(merkle.leaf_hash(packed), index, size, proof, replica.ledger.root())
        leaf = leaves.decode(packed)
        [(n, name, key, content)] = audit.opened(store, index)
        assert key is not None
        assert (name, leaves.committed(key, content)) == leaf.open[n]
        assert b'"last":%d' % (index + 1) in content
    assert [audit.first_leaf_from(store, at, size) for at in (0, 10, 11, 70, 71)] == [0, 0, 1, 6, 7]


def test_nothing_personal_is_in_it() -> None:
    replica = Replica()
    replica.run(SWITCHES, throw)
    rows_of_ledger = b"".join(value for key, value in rows(replica.store) if key.startswith(keys.LEDGER))
    assert replica.ledger.size == 1
    for secret in (b"acme", b"someone", b"tenant"):
        assert secret not in rows_of_ledger


def test_what_is_not_audited_is_no_leaf_and_changes_no_hash() -> None:
    with_ledger, without = Replica(), MemoryStore()
    with_ledger.run(EU, lambda tx: federation.grant(tx, Grant(peer="us", reach=GLOBAL, open=True)))
    with_ledger.run(SWITCHES, throw)
    with_ledger.run(EU, lambda tx: federation.learn(tx, "us", GLOBAL, [Partition(id="us.a", home="us", reach=GLOBAL)]))
    for index, entry in enumerate(with_ledger.entries, 1):
        machine.apply(without, index, 1, entry)
    assert with_ledger.ledger.size == 2
    assert machine.state_of(without) == machine.state_of(with_ledger.store)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("passage"), st.integers(1, 5)),
        st.tuples(st.just("denial"), st.integers(1, 5)),
        st.tuples(st.just("switch"), st.integers(0, 1)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=20,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_replicas_that_restart_grow_the_same_tree(steps: list[tuple[str, int]]) -> None:
    one, other = Replica(), Replica()
    for kind, n in steps:
        if kind == "restart":
            other.ledger = audit.Ledger(other.store)
            continue
        if kind == "switch":
            request = api.EngageSwitchRequest(scope=Scope(kind=SCOPE_TENANT, name=f"t{n}"))
            one.run(SWITCHES, lambda tx, r=request: switches.engage(tx, r))  # type: ignore[misc]
        else:
            sort = "copy" if kind == "passage" else "denial"
            one.run(EU, lambda tx, n=n, s=sort: federation.record_passage(tx, passage(n, s)))  # type: ignore[misc]
        other.apply(one.entries[-1])
    assert rows(one.store) == rows(other.store)
    hashes = [merkle.leaf_hash(audit.leaf_at(one.store, n) or b"") for n in range(one.ledger.size)]
    assert merkle.root_of(hashes) == one.ledger.root()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["passage", "switch", "grant", "exception"]), st.binary(max_size=40), st.integers(0, 2**64 - 1))
def test_whatever_a_leader_wrote_does_not_stop_a_replica(kind: str, value: bytes, at_ms: int) -> None:
    replica = Replica()
    scope = scope_of(EU)
    write = Write(key=keys.within(scope, kind, "n"), value=value)
    entry = Entry(at_ms=at_ms, salt=b"short", txns=[Txn(scope=scope, writes=[write])])
    replica.apply(machine.pack(entry))
    assert machine.state_of(replica.store).revision == 1
    assert replica.ledger.size <= 1


def test_what_was_erased_cannot_be_opened_and_the_tree_stays() -> None:
    replica = Replica()
    replica.run(EU, lambda tx: federation.record_passage(tx, passage(1)))
    root = replica.ledger.root()
    salt = next(key for key, _ in rows(replica.store) if key.startswith(keys.LEDGER + b"s"))
    replica.store.commit(Batch(deletes={salt}))
    assert [key for _, _, key, _ in audit.opened(replica.store, 0)] == [None]
    assert audit.Ledger(replica.store).root() == root
