"""Apply: deterministic, total, exact, and the same thing as what a leader planned."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controlplane import limits
from controlplane.errors import Fatal
from controlplane.kernel import keys, machine
from controlplane.kernel.machine import RecentEvents, Working
from controlplane.kernel.store import MemoryStore, Store, View
from controlplane.storage import RocksStore
from controlplane.v1.state_pb2 import Entry, Event, Guard, Outcome, Range, Refusal, RequestId, Txn, Write
from tests.kernel import material
from tests.kernel.material import CONFIG, HISTORIES, SPAN, STATE, TXNS, Planned, apply, fresh, outcomes, put, rows, txn

COMMITTED, REFUSED, CONFLICT = Outcome.COMMITTED, Outcome.REFUSED, Outcome.CONFLICT
FORGOTTEN, MALFORMED, REUSED = Outcome.FORGOTTEN, Outcome.MALFORMED, Outcome.REUSED


def replayed(store: Store, packed: list[bytes], first: int = 1) -> list[machine.Applied]:
    return [machine.apply(store, index, 1, entry) for index, entry in enumerate(packed, first)]


def recorded(history: list[Planned]) -> list[bytes]:
    """The entries that come of planning each over what the ones before made."""
    store, packed = fresh(), []
    for index, planned in enumerate(history, 1):
        packed.append(planned.packed(store))
        machine.apply(store, index, 1, packed[-1])
    return packed


# Determinism


@settings(max_examples=30, deadline=None)
@given(HISTORIES)
def test_every_store_comes_to_the_same_bytes(history: list[Planned]) -> None:
    packed, memory = recorded(history), fresh()
    with tempfile.TemporaryDirectory() as folder:
        rocks = RocksStore(Path(folder))
        material.seeded(rocks)
        for index, entry in enumerate(packed, 1):
            one, other = machine.apply(memory, index, 1, entry), machine.apply(rocks, index, 1, entry)
            assert one == other
        assert rows(memory) == rows(rocks)
        rocks.close()


@given(HISTORIES, st.data())
def test_a_crash_at_any_entry_and_a_replay_from_anywhere_change_nothing(history: list[Planned], data) -> None:
    packed, store = recorded(history), fresh()
    crash = data.draw(st.integers(0, len(packed)), "applied before the crash")
    again = data.draw(st.integers(0, crash), "first entry handed in again")
    replayed(store, packed[:crash])
    after = rows(store)
    for applied in replayed(store, packed[again:crash], again + 1):
        assert not applied.outcomes
        assert not applied.changed
    assert rows(store) == after
    replayed(store, packed[again:], again + 1)
    whole = fresh()
    replayed(whole, packed)
    assert rows(store) == rows(whole)


@given(HISTORIES, st.lists(TXNS, min_size=1, max_size=5), st.integers(0, 9))
def test_what_was_planned_is_what_is_applied(history: list[Planned], txns: list[Txn], at_ms: int) -> None:
    leader = fresh()
    replayed(leader, recorded(history))
    follower = leader.snapshot()
    working = Working(leader)
    working.at_ms = max(working.at_ms, at_ms)
    entry = Entry(base=working.base, at_ms=working.at_ms, salt=b"s" * 16, txns=txns)
    planned = [working.run(each) for each in txns]
    packed, index = machine.pack(entry), working.index + 1
    finished, applied = working.finish(leader, index, 7, packed), machine.apply(follower, index, 7, packed)
    assert finished == applied
    assert applied.outcomes == planned
    assert rows(leader) == rows(follower)


@given(HISTORIES, st.lists(TXNS, min_size=1, max_size=5), st.integers(0, 4))
def test_what_was_counted_once_is_counted_on(history: list[Planned], txns: list[Txn], early: int) -> None:
    """A count that is kept from entry to entry, and within one, is the number of rows."""
    store, recent = fresh(), RecentEvents()
    prefixes = [scope + keys.text("thing") for scope in (STATE, CONFIG)]

    def counted(view: View) -> bool:
        return [machine.count_of(view, prefix) for prefix in prefixes] == [
            sum(1 for _ in view.scan(*keys.children(keys.RECORD + prefix))) for prefix in prefixes
        ]

    for n, plan in enumerate(history):
        if n == early:
            assert counted(Working(store, recent).view)
        recent.took(machine.apply(store, n + 1, 1, plan.packed(store), recent=recent))
    assert counted(Working(store, recent).view)
    working = Working(store, recent)
    for n, each in enumerate(txns):
        if n >= early:
            assert counted(working.view)
        working.run(each)
    assert counted(working.view)
    recent.clear()
    assert counted(working.view)


def test_what_is_remembered_is_bounded_and_goes_with_its_store() -> None:
    store, recent = fresh(), RecentEvents(count_max=8, bytes_max=1000)

    def remembered(count: int, size: int) -> list[str]:
        for n in range(count):
            entry = Planned([txn(put(f"n{n}", bytes(size)))]).packed(store)
            recent.took(machine.apply(store, machine.state_of(store).index + 1, 1, entry, recent=recent))
        return [keys.decode(key).name for key in recent.events]

    assert remembered(12, 1) == [f"n{n}" for n in range(4, 12)]
    large = remembered(12, 200)
    assert 1 <= len(large) <= 4
    assert large[-1] == "n11"
    # What is small again has as much room as before.
    assert len(remembered(12, 1)) == 8
    assert machine.count_of(Working(store, recent).view, STATE) == 12
    recent.clear()
    assert machine.count_of(Working(fresh(), recent).view, STATE) == 0
    assert machine.event_at(Working(fresh(), recent).view, material.key("n11")) is None
    remembered(12, 200)
    recent.clear()
    assert len(remembered(12, 1)) == 8


def sound(working: Working, each: Txn) -> bool:
    """What a leader makes sure of before it plans a transaction."""
    if machine.malformed(each) or (each.HasField("request") and working.answer(each.request)):
        return False
    found = [machine.event_at(working.view, guard.key) for guard in each.guards]
    return [event.revision if event else 0 for event in found] == [guard.revision for guard in each.guards]


@given(HISTORIES, st.lists(TXNS, min_size=1, max_size=6))
def test_what_was_proven_sound_comes_out_as_if_it_were_checked_again(history: list[Planned], txns: list[Txn]) -> None:
    leader = fresh()
    replayed(leader, recorded(history))
    follower, doubter = leader.snapshot(), leader.snapshot()
    working = Working(leader)
    entry = Entry(base=working.base, salt=b"s" * 16)
    for each in txns:
        if sound(working, each):
            working.run(each, proven=True)
            entry.txns.append(each)
    if not entry.txns:
        return
    index = working.index + 1
    checked = machine.apply(doubter, index, 1, machine.pack(entry))
    entry.base_hash = working.base_hash
    packed = machine.pack(entry)
    finished, applied = working.finish(leader, index, 1, packed), machine.apply(follower, index, 1, packed)
    assert finished == applied
    assert rows(leader) == rows(follower)
    assert applied.outcomes == checked.outcomes
    assert [row for row in rows(follower) if row[0] != keys.STATE] == [
        row for row in rows(doubter) if row[0] != keys.STATE
    ]


def test_an_entry_planned_over_another_past_stops_the_node_and_changes_nothing() -> None:
    store = fresh()
    apply(store, txn(put("a")))
    before = rows(store)
    other = machine.pack(Entry(base=1, base_hash=b"x" * 32, txns=[txn(put("b"))]))
    with pytest.raises(Fatal, match="--replace"):
        machine.apply(store, 2, 1, other)
    assert rows(store) == before


def test_an_entry_planned_earlier_in_another_past_is_a_conflict_like_any_stale_one() -> None:
    store = fresh()
    apply(store, txn(put("a")))
    stale = machine.pack(Entry(base=0, base_hash=b"x" * 32, txns=[txn(put("b"))]))
    assert machine.apply(store, 2, 1, stale).outcomes[0].verdict == CONFLICT


# Totality


@given(st.binary(max_size=200))
@example(b"")
@example(bytes([limits.ENTRY_FORMAT]))
def test_garbage_changes_no_record(garbage: bytes) -> None:
    store = fresh()
    apply(store, txn(put("a")))
    before = rows(store)
    applied = machine.apply(store, 2, 1, bytes([limits.ENTRY_FORMAT]) + garbage)
    assert not applied.changed
    assert [row for row in rows(store) if row[0] != keys.STATE] == [row for row in before if row[0] != keys.STATE]
    assert applied.state.index == 2
    assert outcomes(store, txn(put("b"))) == [COMMITTED]


@given(HISTORIES)
def test_whatever_happens_every_row_can_be_read(history: list[Planned]) -> None:
    store, revision = fresh(), 0
    for index, entry in enumerate(recorded(history), 1):
        applied = machine.apply(store, index, 1, entry)
        count = len(Entry.FromString(entry[1:]).txns)
        assert applied.state.revision == revision + max(1, count)
        assert len(applied.outcomes) == count
        revision = applied.state.revision
        assert (applied.state.records, applied.state.live_bytes) == material.recounted(store)
    for row, packed in rows(store):
        if row.startswith((keys.RECORD, keys.EVENT, keys.HISTORY)):
            event = Event.FromString(packed)
            assert keys.decode(event.key).kind == "thing"
            assert event.key.startswith(material.SCOPES)
            assert 0 < event.created <= event.revision <= revision
        if row.startswith(keys.RECORD):
            assert row == keys.RECORD + event.key


@pytest.mark.parametrize("format_byte", [b"\0", b"\1", bytes([limits.ENTRY_FORMAT + 1]), b"\xff"])
def test_an_entry_of_another_format_stops_the_node_and_changes_nothing(format_byte: bytes) -> None:
    store = fresh()
    before = rows(store)
    with pytest.raises(Fatal, match="upgrade this node"):
        machine.apply(store, 1, 1, format_byte + Entry().SerializeToString())
    assert rows(store) == before


def test_a_store_of_another_format_stops_the_node() -> None:
    store = fresh()
    state = machine.state_of(store)
    state.format = limits.STATE_FORMAT + 1
    store.commit(material.Batch(puts={keys.STATE: state.SerializeToString()}))
    with pytest.raises(Fatal, match="run the release that wrote it"):
        apply(store, txn(put("a")))


BAD_TXNS = {
    "a key outside of its scope": txn(put("a"), put("b", scope=CONFIG)),
    "a key of no kind": txn(Write(key=STATE + b"loose", value=b"v")),
    "a key with something behind its name": txn(Write(key=material.key("a") + b"x", value=b"v")),
    "a key that is the scope": txn(Write(key=STATE, value=b"v")),
    "a key that is not text": txn(Write(key=STATE + b"kind\0\xc3\0", value=b"v")),
    "a key that goes on in the partition below": txn(put("a"), scope=keys.domain("eu", "HOME_ONLY")),
    "no scope": txn(put("a"), scope=b""),
    "a scope without an end": txn(Write(key=b"eu", value=b"v"), scope=b"eu"),
    "a scope that is not text": txn(Write(key=b"\xff\0x\0k\0n\0", value=b"v"), scope=b"\xff\0x\0"),
    "one key twice": txn(put("a", b"1"), put("a", b"2")),
    "a value that is too large": txn(put("a", b"x" * (limits.VALUE_BYTES_MAX + 1))),
    "a version that cannot be counted on": txn(Write(key=material.key("a"), value=b"v", after_version=(1 << 64) - 1)),
    "too many writes": txn(*[put(f"n{n}") for n in range(limits.WRITES_PER_TXN_MAX + 1)]),
    "a trim of records": txn(put("a"), trims=[Range(start=b"r", end=b"r\xff")]),
    "a trim of the state": txn(put("a"), trims=[Range(start=b"m", end=b"m\xff")]),
    "a trim from events into everything": txn(put("a"), trims=[Range(start=b"e", end=b"z")]),
    "a trim that ends before it starts": txn(put("a"), trims=[Range(start=b"e\2", end=b"e\1")]),
    "a trim of everything": txn(put("a"), trims=[Range()]),
    "a request id that is too short": txn(put("a"), request=RequestId(identity="me", nonce=b"short")),
}


@pytest.mark.parametrize("bad", BAD_TXNS.values(), ids=BAD_TXNS)
def test_a_malformed_transaction_changes_nothing_and_is_not_kept(bad: Txn) -> None:
    store = fresh()
    apply(store, txn(put("seen")))
    before = [row for row in rows(store) if row[0] != keys.STATE]
    if not bad.HasField("request"):
        bad = Txn.FromString(bad.SerializeToString())
        bad.request.CopyFrom(material.request(1))
    assert outcomes(store, bad) == [MALFORMED]
    assert [row for row in rows(store) if row[0] != keys.STATE] == before
    assert machine.state_of(store).revision == 2


def test_the_largest_transaction_is_applied() -> None:
    store = fresh()
    assert outcomes(store, txn(put("a", b"x" * limits.VALUE_BYTES_MAX))) == [COMMITTED]
    assert outcomes(store, txn(*[put(f"n{n}") for n in range(limits.WRITES_PER_TXN_MAX)])) == [COMMITTED]


# Guards and revisions


def test_each_transaction_takes_a_revision_whatever_becomes_of_it() -> None:
    store = fresh()
    apply(store, txn(put("a")))
    applied = apply(
        store,
        txn(put("b"), guards=[Guard(key=material.key("a"), revision=9)]),
        txn(refusal=Refusal(error="Refused", reason="NO")),
        txn(put("b", scope=CONFIG)),
        txn(put("b"), guards=[Guard(key=material.key("a"), revision=1)]),
    )
    assert [outcome.verdict for outcome in applied.outcomes] == [CONFLICT, REFUSED, MALFORMED, COMMITTED]
    assert [outcome.revision for outcome in applied.outcomes] == [2, 3, 4, 5]
    assert material.record(store, "b").revision == 5


def test_a_guard_of_zero_means_absent() -> None:
    store = fresh()
    absent = [Guard(key=material.key("a"), revision=0)]
    assert outcomes(store, txn(put("a"), guards=absent), txn(put("a"), guards=absent)) == [COMMITTED, CONFLICT]


def test_an_entry_planned_over_another_revision_conflicts_whole() -> None:
    store = fresh()
    apply(store, txn(put("a")))
    stale = Planned([txn(put("a", b"no")), txn(put("b"), request=material.request(1))], stale=1).packed(store)
    applied = machine.apply(store, 2, 1, stale)
    assert [outcome.verdict for outcome in applied.outcomes] == [CONFLICT, CONFLICT]
    assert applied.state.revision == 3
    assert not applied.changed
    assert material.record(store, "a").value == b"v"
    assert outcomes(store, txn(put("b"), request=material.request(1))) == [COMMITTED]


def test_a_refusal_writes_nothing_and_trims_nothing() -> None:
    store = fresh()
    apply(store, txn(put("a", history=True)))
    refused = txn(
        put("a", b"no"),
        refusal=Refusal(error="Refused", reason="NO"),
        trims=[Range(start=b"h", end=b"h\xff")],
        request=material.request(1),
    )
    applied = apply(store, refused)
    assert applied.outcomes[0].refusal.reason == "NO"
    assert not applied.changed
    assert material.record(store, "a").value == b"v"
    assert list(store.scan(*keys.children(keys.HISTORY)))


def test_recorded_time_never_goes_back_and_decides_nothing() -> None:
    store = fresh()
    apply(store, txn(put("a")), at_ms=50)
    apply(store, txn(put("a")), at_ms=20)
    assert material.record(store, "a").at_ms == 50


# Records


def test_a_record_keeps_its_creation_until_it_is_deleted() -> None:
    store = fresh()
    apply(store, txn(put("a")), txn(put("a", b"w")))
    assert (material.record(store, "a").created, material.record(store, "a").version) == (1, 2)
    apply(store, txn(material.delete("a")))
    assert material.record(store, "a") is None
    apply(store, txn(put("a")))
    assert (material.record(store, "a").created, material.record(store, "a").version) == (4, 1)


@given(HISTORIES)
def test_fences_only_grow(history: list[Planned]) -> None:
    """Whenever a record comes to be again, its creation is a revision beyond any that was ever seen for its key."""
    store, created = fresh(), {}
    for index, entry in enumerate(recorded(history), 1):
        before = {key: event for key in created if (event := machine.event_at(store, key))}
        for changed in machine.apply(store, index, 1, entry).changed:
            event = changed.event
            if changed.key not in before or not event.HasField("value"):
                assert event.created >= created.get(changed.key, 0)
            if event.HasField("value") and event.version == 1:
                assert event.created == event.revision > created.get(changed.key, 0)
                created[changed.key] = event.created
            assert event.created == created[changed.key]


def test_deleting_what_is_not_there_leaves_no_trace() -> None:
    store = fresh()
    assert not apply(store, txn(material.delete("a"))).changed
    assert not list(store.scan(*keys.children(keys.EVENT)))


def test_quiet_writes_leave_no_event_and_no_history() -> None:
    store = fresh()
    applied = apply(store, txn(put("a", b"1", history=True)), txn(put("a", b"2", quiet=True, history=True)))
    assert [changed.quiet for changed in applied.changed] == [False, True]
    for rows_kept in (keys.EVENT, keys.HISTORY):
        assert [Event.FromString(packed).value for _, packed in store.scan(*keys.children(rows_kept))] == [b"1"]
    assert material.record(store, "a").value == b"2"


def test_events_are_kept_apart_by_domain_in_order_of_revision() -> None:
    store = fresh()
    apply(store, txn(put("a"), put("b")), txn(put("c", scope=CONFIG), scope=CONFIG), txn(material.delete("a")))
    home, everywhere = keys.domain_of(STATE), keys.domain_of(CONFIG)
    names = [(event.revision, keys.decode(event.key).name) for event in machine.events(store, home, 0, 9)]
    assert names == [(1, "a"), (1, "b"), (3, "a")]
    assert [event.revision for event in machine.events(store, everywhere, 0, 9)] == [2]
    assert [event.revision for event in machine.events(store, home, 1, 9)] == [3]
    assert not list(machine.events(store, home, 3, 3))
    assert not list(machine.events(store, home, (1 << 64) - 1, 3))


# Request ids


def test_a_request_is_answered_once_and_the_same_within_an_entry_and_across_generations() -> None:
    store = fresh()
    first = txn(put("a", b"1"), request=material.request(1), reply=b"first")
    again = txn(put("a", b"2"), request=material.request(1), reply=b"again")
    applied = apply(store, first, again)
    assert [outcome.reply for outcome in applied.outcomes] == [b"first", b"first"]
    for _ in range(2 * SPAN - 4):
        apply(store, txn(put("b")))
        (outcome,) = apply(store.snapshot(), again).outcomes
        assert (outcome.verdict, outcome.reply, outcome.revision) == (COMMITTED, b"first", 1)
    assert machine.state_of(store).revision // SPAN == 1
    assert material.record(store, "a").value == b"1"


def test_an_outcome_that_is_no_longer_kept_is_forgotten_and_the_request_never_runs_twice() -> None:
    store = fresh()
    old = txn(put("a", b"1"), request=material.request(1, since=0))
    apply(store, old)
    while machine.state_of(store).revision < 2 * SPAN - 1:
        assert outcomes(store.snapshot(), old) == [COMMITTED]
        apply(store, txn(put("b")))
    assert outcomes(store, old) == [FORGOTTEN]
    assert material.record(store, "a").revision == 1


def test_a_request_at_the_floor_runs_and_one_below_it_is_forgotten() -> None:
    store = fresh()
    while machine.state_of(store).revision < 2 * SPAN:
        apply(store, txn(put("b")))
    floor = machine.outcome_floor(2 * SPAN, SPAN)
    assert floor == SPAN
    assert outcomes(store, txn(request=material.request(1, since=floor - 1))) == [FORGOTTEN]
    assert outcomes(store, txn(request=material.request(2, since=floor))) == [COMMITTED]


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 9))
def test_whatever_is_not_forgotten_is_still_found(made: int, later: int, span: int) -> None:
    """A request first seen at `since` ran at some later revision: asked again, it is found or forgotten, never new."""
    store = fresh(span)
    while machine.state_of(store).revision < made:
        apply(store, txn())
    request = txn(put("a"), request=material.request(1, since=made))
    assert outcomes(store, request) == [COMMITTED]
    for _ in range(later):
        apply(store, txn())
    assert outcomes(store, request)[0] in (COMMITTED, FORGOTTEN)
    assert material.record(store, "a").version == 1


def test_one_request_id_means_one_request() -> None:
    store = fresh()
    assert outcomes(store, txn(put("a"), request=material.request(1))) == [COMMITTED]
    assert outcomes(store, txn(put("b"), request=material.request(1, digest=b"e"))) == [REUSED]
    assert material.record(store, "b") is None
    assert outcomes(store, txn(put("b"), request=material.request(1, identity="you"))) == [COMMITTED]


def test_a_refusal_is_kept_like_any_answer_and_a_conflict_is_not() -> None:
    store = fresh()
    refusal = Refusal(error="Refused", reason="NO")
    conflicting = txn(put("a"), request=material.request(2), guards=[Guard(key=material.key("a"), revision=5)])
    assert outcomes(store, txn(refusal=refusal, request=material.request(1)), conflicting) == [REFUSED, CONFLICT]
    (outcome,) = apply(store, txn(put("a"), request=material.request(1))).outcomes
    assert (outcome.verdict, outcome.refusal, outcome.revision) == (REFUSED, refusal, 1)
    assert outcomes(store, txn(put("a"), request=material.request(2))) == [COMMITTED]


# The running hash


def test_the_log_s_own_entries_move_the_index_and_nothing_else() -> None:
    store = fresh()
    apply(store, txn(put("a")))
    before = machine.state_of(store)
    after = machine.apply(store, 2, 5, b"").state
    assert (after.index, after.term) == (2, 5)
    after.index, after.term = before.index, before.term
    assert after == before


def test_an_entry_that_says_nothing_takes_a_revision_so_that_equal_revisions_have_equal_hashes() -> None:
    store = fresh()
    for nothing in (machine.pack(Entry()), machine.pack(Entry()) + b"\xff"):
        before = machine.state_of(store)
        after = machine.apply(store, before.index + 1, 1, nothing).state
        assert after.revision == before.revision + 1
        assert after.hash != before.hash


VARIANTS = {
    "value": txn(put("a", b"w"), reply=b"r", request=material.request(1)),
    "name": txn(put("b"), reply=b"r", request=material.request(1)),
    "reply": txn(put("a"), reply=b"s", request=material.request(1)),
    "actor": txn(put("a"), reply=b"r", request=material.request(1), actor="you"),
    "action": txn(put("a"), reply=b"r", request=material.request(1), action="Undo"),
    "reason": txn(put("a"), reply=b"r", request=material.request(1), reason="because"),
    "quiet": txn(put("a", quiet=True), reply=b"r", request=material.request(1)),
    "history": txn(put("a", history=True), reply=b"r", request=material.request(1)),
    "request": txn(put("a"), reply=b"r", request=material.request(2)),
    "digest": txn(put("a"), reply=b"r", request=material.request(1, digest=b"e")),
    "refusal": txn(put("a"), reply=b"r", request=material.request(1), refusal=Refusal(reason="NO")),
    "trim": txn(put("a"), reply=b"r", request=material.request(1), trims=[Range(start=b"e", end=b"e\1")]),
    "nothing": txn(put("a"), reply=b"r", request=material.request(1)),
}


def test_the_hash_tells_any_two_pasts_apart() -> None:
    hashes = {}
    for name, variant in VARIANTS.items():
        store = fresh()
        apply(store, txn(put("z")))
        apply(store, variant)
        apply(store, txn(put("z")))
        hashes[name] = machine.state_of(store).hash
    assert len(set(hashes.values())) == len(VARIANTS)


def test_the_hash_is_what_it_was() -> None:
    """Nodes of two releases compare theirs: where this changes, `STATE_FORMAT` has to."""
    store = fresh()
    apply(store, *VARIANTS.values(), at_ms=5)
    apply(store, txn(material.delete("a"), put("b", b"", history=True), request=material.request(3)))
    apply(store, txn(trims=[Range(start=b"e\1", end=b"e\2")], erases=[keys.history(material.key("b"), 15)]))
    apply(store, txn(put("b"), guards=[Guard(key=material.key("b"), revision=1)]))
    assert machine.state_of(store).hash.hex() == "25ccc3cd19e72cb19467c864d23059d8c26d70f77e48fa33734c4e2c89e0a82c"


def test_the_hash_covers_what_was_applied_to_and_not_only_the_entries() -> None:
    """Two stores that differ in one bit of one record come apart at the next entry that touches it."""
    one, other = fresh(), fresh()
    for store in (one, other):
        apply(store, txn(put("a")))
    flipped = material.record(other, "a")
    flipped.created = 0
    other.commit(material.Batch(puts={keys.RECORD + flipped.key: flipped.SerializeToString(deterministic=True)}))
    assert machine.state_of(one).hash == machine.state_of(other).hash
    for store in (one, other):
        apply(store, txn(put("a", b"w")))
    assert machine.state_of(one).hash != machine.state_of(other).hash


@given(HISTORIES, st.data())
def test_one_flipped_bit_of_an_entry_changes_the_hash_or_stops_the_node(history: list[Planned], data) -> None:
    packed = [entry for entry in recorded(history) if len(entry) > 1]
    if not packed:
        return
    store = fresh()
    replayed(store, packed[:-1])
    other = store.snapshot()
    bit = data.draw(st.integers(8, 8 * len(packed[-1]) - 1), "bit")
    flipped = bytearray(packed[-1])
    flipped[bit // 8] ^= 1 << bit % 8
    index = len(packed)
    one = machine.apply(store, index, 1, packed[-1]).state.hash
    # One bit makes a transaction the hash of a state, which is not this one.
    with contextlib.suppress(Fatal):
        assert one != machine.apply(other, index, 1, bytes(flipped)).state.hash


def test_an_empty_store_stands_at_nothing() -> None:
    state = machine.state_of(MemoryStore())
    assert (state.revision, state.index, state.hash, state.outcome_span) == (0, 0, bytes(32), limits.OUTCOME_SPAN)


# Records that go on


def test_a_record_begins_with_the_version_after_its_predecessors() -> None:
    store = fresh()
    taken = material.Write(key=material.key("a"), value=b"v", after_version=6)
    apply(store, txn(taken))
    assert event_of(store, "a").version == 7
    # It decides how a record begins, and nothing about one that is there.
    apply(store, txn(taken))
    assert event_of(store, "a").version == 8
    apply(store, txn(put("a")))
    assert event_of(store, "a").version == 9


def event_of(store: material.Store, name: str) -> Event:
    event = machine.event_at(store, material.key(name))
    assert event is not None
    return event
