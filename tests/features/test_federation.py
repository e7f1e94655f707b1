"""Copies of another region's records: repeated, delayed, cut short or begun anew, they come to be the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import limits
from controlplane.errors import Refused
from controlplane.features import federation, switches
from controlplane.features.partitions import system
from controlplane.kernel import keys, machine
from controlplane.kernel.store import MemoryStore, Store
from controlplane.kernel.transaction import Kind, Tx, scope_of
from controlplane.v1.api_pb2 import EngageSwitchRequest
from controlplane.v1.federation_pb2 import Shared, SharedPage
from controlplane.v1.records_pb2 import GLOBAL, SCOPE_TENANT, Cursor, Grant, Partition, Passage, Scope, Workflow
from controlplane.v1.state_pb2 import Entry, Origin, Outcome

HOME, HERE = "eu", "us"
ONE = Partition(id="eu.one", home=HOME, epoch=1, reach=GLOBAL, environment="prod")
TWO = Partition(id="eu.two", home=HOME, epoch=1, reach=GLOBAL, environment="prod")
DOMAIN = keys.domain(HOME, "GLOBAL")
THING = Kind("thing", Workflow)
CARRIER = federation.carrier(HOME, GLOBAL)


def transact(store: Store, partition: Partition, feature: Callable[[Tx], Message | None]) -> Outcome | None:
    """Plan and apply one transaction, as a node does."""
    state = machine.state_of(store)
    view = machine.Records(store)
    tx = Tx(view, partition, state.revision + 1, actor="secret actor", action="Do", reason="secret reason", at_ms=7)
    reply = feature(tx)
    if reply is None:
        return None
    txn = tx.seal(None, reply.SerializeToString())
    assert machine.malformed(txn) == ""
    entry = machine.pack(Entry(base=state.revision, at_ms=7, salt=b"s" * 16, txns=[txn]))
    return machine.apply(store, state.index + 1, 1, entry).outcomes[0]


def write(store: Store, partition: Partition, changes: dict[str, bytes | None]) -> None:
    def feature(tx: Tx) -> Message:
        for name, value in changes.items():
            if value is None:
                tx.delete(THING, name)
            else:
                tx.put(THING, name, Workflow(id=name, state=value))
        return Workflow()

    transact(store, partition, feature)


def records(store: Store) -> dict[bytes, bytes]:
    """What is shared, by key, with the revision it has at home."""
    found = {}
    for row, packed in store.scan(*keys.children(keys.RECORD + DOMAIN)):
        event = machine.Event.FromString(packed)
        at = event.origin.revision if event.HasField("origin") else event.revision
        found[row] = keys.number(at) + event.value
    return found


def pages(store: Store, size: int, after: bytes = b"") -> list[SharedPage]:
    """A listing of everything, `size` records to a page."""
    found = []
    for n, partition in enumerate((ONE, TWO)):
        end = scope_of(partition) + b"\xff"
        if end <= after:
            continue
        rows = store.scan(keys.RECORD + scope_of(partition), keys.RECORD + end)
        events = [machine.Event.FromString(packed) for _, packed in rows]
        events = [event for event in events if event.key > after]
        while True:
            part, events = events[:size], events[size:]
            upto = part[-1].key if events else end
            shared = federation.shared(part)
            found.append(
                SharedPage(partition=partition.id, after=after, upto=upto, records=shared, last=not events and n == 1)
            )
            after = upto
            if not events:
                break
    return found


def take(store: Store, page: SharedPage) -> None:
    partition = ONE if page.partition == ONE.id else TWO
    while transact(store, partition, lambda tx: federation.take_page(tx, HERE, page)) is not None:
        pass


def cursor(store: Store) -> Cursor:
    return federation.cursor_at(store, HERE, HOME, GLOBAL)


def begin(store: Store, revision: int, restored: int = 0) -> None:
    found = cursor(store)
    transact(store, CARRIER, lambda tx: federation.begin_listing(tx, HERE, found, revision, restored))


def follow(home: Store, here: Store) -> None:
    """Bring `here` up to date with the events of the home."""
    for revision, found in transactions(home, cursor(here).revision):
        partition = ONE if found[0].key.startswith(scope_of(ONE)) else TWO
        transact(here, partition, lambda tx, r=revision, f=found: federation.take_transaction(tx, HERE, r, f))  # type: ignore[misc]


def transactions(home: Store, after: int) -> list[tuple[int, list[Shared]]]:
    by_revision: dict[int, list[Shared]] = {}
    for event in machine.events(home, DOMAIN, after, machine.state_of(home).revision):
        by_revision.setdefault(event.revision, []).extend(federation.shared([event]))
    return sorted(by_revision.items())


def test_a_listing_then_what_follows_makes_the_same() -> None:
    home, here = MemoryStore(), MemoryStore()
    for n in range(30):
        write(home, (ONE, TWO)[n % 2], {f"t{n}": b"%d" % n})
    begin(here, machine.state_of(home).revision)
    for page in pages(home, 4):
        take(here, page)
    assert records(here) == records(home)
    write(home, ONE, {"t0": None, "t2": b"new", "more": b"x"})
    follow(home, here)
    assert records(here) == records(home)
    assert not cursor(here).listing


@pytest.mark.parametrize("interrupted", [0, 1, 3])
def test_after_a_restoration_the_listing_counts_and_not_what_is_newer(interrupted: int) -> None:
    lost, home, here = MemoryStore(), MemoryStore(), MemoryStore()
    for store in (lost, home):
        for n in range(30):
            write(store, (ONE, TWO)[n % 2], {f"t{n}": b"%d" % n})
    begin(here, 30)
    for page in pages(lost, 4):
        take(here, page)
    write(lost, ONE, {"t0": b"lost", "t2": None, "more": b"lost"})
    write(lost, TWO, {"t1": None})
    write(lost, TWO, {"t1": b"again", "more": b"lost"})
    follow(lost, here)
    write(home, ONE, {"t4": b"x"})
    for _ in range(10):
        write(home, TWO, {"t3": b"new"})
    restored = 35
    for count in (interrupted, 100):
        begin(here, machine.state_of(home).revision, restored)
        for page in pages(home, 4)[:count]:
            take(here, page)
        write(home, TWO, {"t5": b"%d" % count})
    follow(home, here)
    assert records(here) == records(home)
    # From then on it is as it always was: what is older replaces nothing.
    begin(here, machine.state_of(home).revision, restored)
    assert not cursor(here).restored


def test_a_copy_says_where_it_was_written_and_not_by_whom() -> None:
    home, here = MemoryStore(), MemoryStore()
    write(home, ONE, {"a": b"1"})
    write(home, ONE, {"a": b"2"})
    begin(here, 0)
    for page in pages(home, 10):
        take(here, page)
        assert b"secret" not in page.SerializeToString()
    row = Tx(machine.Records(here), ONE, 9, actor="", action="", reason="", at_ms=0).get(THING, "a")
    assert row is not None
    assert (row.revision, row.created, row.version) == (2, 1, 2)


def test_a_new_listing_deletes_what_is_gone_at_home_however_much_that_is() -> None:
    home, here = MemoryStore(), MemoryStore()
    gone = 3 * limits.WRITES_PER_TXN_MAX
    for start in range(0, gone, 100):
        write(home, ONE, {f"t{n:04}": b"x" for n in range(start, min(start + 100, gone))})
    begin(here, machine.state_of(home).revision)
    for page in pages(home, 100):
        take(here, page)
    assert len(records(here)) == gone
    for start in range(0, gone, 100):
        write(home, ONE, {f"t{n:04}": None for n in range(start, min(start + 100, gone)) if n != 200})
    begin(here, machine.state_of(home).revision)
    for page in pages(home, 100):
        take(here, page)
    assert records(here) == records(home)
    assert len(records(here)) == 1


def test_what_comes_behind_one_that_failed_is_not_taken() -> None:
    home, here = MemoryStore(), MemoryStore()
    for n in range(3):
        write(home, ONE, {f"t{n}": b"x"})
    (first, one), (second, two), (third, three) = transactions(home, 0)

    def take_after(after: int, revision: int, found: list[Shared]) -> Outcome | None:
        return transact(here, ONE, lambda tx: federation.take_transaction(tx, HERE, revision, found, after=after))

    assert take_after(first, second, two) is None
    assert take_after(0, first, one) is not None
    assert take_after(second, third, three) is None
    assert transact(here, CARRIER, lambda tx: federation.note_progress(tx, HERE, third, 5, after=second)) is None
    assert cursor(here).revision == first
    assert take_after(first, second, two) is not None
    assert take_after(second, third, three) is not None
    assert records(here) == records(home)


NAMES = st.sampled_from(["a", "b", "c", "d", "e"])
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("write"), st.booleans(), st.dictionaries(NAMES, st.none() | st.binary(max_size=2), min_size=1)
        ),
        st.tuples(st.just("list"), st.integers(1, 3), st.integers(0, 8)),
        st.tuples(st.just("follow"), st.booleans(), st.none()),
        st.tuples(st.just("replay"), st.integers(0, 5), st.none()),
    ),
    min_size=8,
    max_size=25,
)


def list_partly(home: Store, here: Store, size: int, count: int) -> None:
    """A listing that is read while the home goes on, and that ends after `count` pages, each taken twice."""
    begin(here, machine.state_of(home).revision)
    for page in pages(home, size)[:count]:
        take(here, page)
        take(here, page)
        write(home, ONE, {"a": b"meanwhile"})


def replay(home: Store, here: Store, back: int) -> None:
    """What was taken comes again, and changes nothing."""
    before, seen = records(here), cursor(here).revision
    for revision, found in transactions(home, max(0, seen - back)):
        if revision <= seen:
            transact(here, ONE, lambda tx, r=revision, f=found: federation.take_transaction(tx, HERE, r, f))  # type: ignore[misc]
    assert records(here) == before


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_it_converges_whatever_happens_on_the_way(steps: list[tuple[str, int, Any]]) -> None:
    home, here = MemoryStore(), MemoryStore()
    for kind, number, more in steps:
        if kind == "write":
            write(home, TWO if number else ONE, more)
        elif kind == "list":
            list_partly(home, here, number, more)
        elif not cursor(here).listing:
            if kind == "follow":
                follow(home, here)
            else:
                replay(home, here, number)
    if cursor(here).listing:
        for page in pages(home, 2, cursor(here).listed):
            take(here, page)
    follow(home, here)
    assert records(here) == records(home)


@pytest.mark.parametrize(
    "shared",
    [
        Shared(key=keys.within(scope_of(TWO), "thing", "a"), value=b"x", origin=Origin(home=HOME, epoch=1, revision=5)),
        Shared(
            key=keys.within(keys.scope(HERE, "GLOBAL", "us.own", 1), "thing", "a"),
            value=b"x",
            origin=Origin(home=HOME, epoch=1, revision=5),
        ),
        Shared(key=keys.within(scope_of(ONE), "thing", "a"), value=b"x", origin=Origin(home=HERE, epoch=1, revision=5)),
    ],
)
def test_a_peer_can_write_nothing_but_its_own_records(shared: Shared) -> None:
    here = MemoryStore()
    with pytest.raises(Refused, match="outside of what its sender may share"):
        transact(here, ONE, lambda tx: federation.take_transaction(tx, HERE, 5, [shared]))


def test_only_a_cursor_may_be_written_beside_copies() -> None:
    home, here = MemoryStore(), MemoryStore()

    def flaw(name: str, kind: Kind[Cursor], region: str = HERE, beside: Partition = ONE, *, told: bool = False) -> str:
        tx = Tx(machine.Records(here), beside, 1, actor="", action="", reason="", at_ms=0)
        tx.put_cursor(scope_of(system(region)), kind, name, Cursor())
        txn = tx.seal(None)
        txn.writes[0].quiet = not told
        return machine.malformed(txn)

    assert flaw("eu/GLOBAL", federation.CURSOR) == ""
    assert flaw("eu/JURISDICTION", federation.CURSOR) != ""
    assert flaw("us/GLOBAL", federation.CURSOR) != ""
    assert flaw("eu/GLOBAL", Kind("grant", Cursor)) != ""
    assert flaw("eu/GLOBAL", federation.CURSOR, region=HOME) != ""
    assert flaw("eu/GLOBAL", federation.CURSOR, told=True) != ""
    own = Partition(id=f"{HERE}.own", home=HERE, epoch=1, reach=GLOBAL, environment="prod")
    assert flaw(f"{HERE}/GLOBAL", federation.CURSOR, beside=own) != ""
    assert records(home) == {}


def test_partitions_of_others_cannot_be_shared() -> None:
    store = MemoryStore()
    for partition in (
        Partition(id="us.own", home="us", reach=GLOBAL, epoch=1),
        Partition(id="us.own", home=HOME, reach=GLOBAL, epoch=1),
        Partition(id="eu.pinned", home=HOME, reach=1, epoch=1),
    ):
        with pytest.raises(Refused):
            transact(store, system(HERE), lambda tx, p=partition: federation.learn(tx, HOME, GLOBAL, [p]))  # type: ignore[misc]
    assert transact(store, system(HERE), lambda tx: federation.learn(tx, HOME, GLOBAL, [ONE])) is not None
    assert transact(store, system(HERE), lambda tx: federation.learn(tx, HOME, GLOBAL, [ONE])) is None


def test_a_grant_is_written_once_and_can_be_closed() -> None:
    store = MemoryStore()
    wanted = Grant(peer="us", jurisdiction="us", reach=GLOBAL, open=True)
    assert not federation.granted(store, HOME, "us", GLOBAL)
    assert transact(store, system(HOME), lambda tx: federation.grant(tx, wanted)) is not None
    assert transact(store, system(HOME), lambda tx: federation.grant(tx, wanted)) is None
    assert federation.granted(store, HOME, "us", GLOBAL)
    wanted.open = False
    assert transact(store, system(HOME), lambda tx: federation.grant(tx, wanted)) is not None
    assert not federation.granted(store, HOME, "us", GLOBAL)


def test_both_sides_of_a_passage_compute_one_digest() -> None:
    home = MemoryStore()
    for n in range(3):
        write(home, ONE, {f"t{n}": b"%d" % n, "x": None if n == 2 else b"x"})
    sent = transactions(home, 0)
    digest = bytes(32)
    for revision, found in sent:
        digest = federation.extended(digest, federation.fingerprint(revision, found))
    wire = [(r, [Shared.FromString(each.SerializeToString()) for each in found]) for r, found in sent]
    again = bytes(32)
    for revision, found in wire:
        again = federation.extended(again, federation.fingerprint(revision, found))
    assert again == digest
    wire[1][1][0].value += b"?"
    other = bytes(32)
    for revision, found in wire:
        other = federation.extended(other, federation.fingerprint(revision, found))
    assert other != digest
    passage = Passage(direction=Passage.EGRESS, counterparty="us", reach=GLOBAL, epoch=1, upto=3, digest=digest)
    assert transact(home, system(HOME), lambda tx: federation.record_passage(tx, passage)) is not None
    assert transact(home, system(HOME), lambda tx: federation.record_passage(tx, passage)) is None


def test_kill_switches_stay_at_home_wherever_they_lie_and_what_is_only_called_so_does_not() -> None:
    home = MemoryStore()
    scope = Scope(kind=SCOPE_TENANT, name="acme")

    def throw(tx: Tx) -> Message:
        tx.put(THING, "dark-switch", Workflow(id="dark-switch"))
        return switches.engage(tx, EngageSwitchRequest(scope=scope))

    transact(home, ONE, throw)
    events = list(machine.events(home, DOMAIN, 0, 1))
    assert len(events) == 2
    assert [keys.decode(each.key).name for each in federation.shared(events)] == ["dark-switch"]
