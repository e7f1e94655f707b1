"""What is left of an erased record in a store: nothing that it held, and enough that nothing of it comes back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane import features, limits
from controlplane.errors import ControlPlaneError, Refused
from controlplane.features import audit, erasure, federation, leases, moves, switches, workflows
from controlplane.features.partitions import system
from controlplane.kernel import keys, machine
from controlplane.kernel.store import MemoryStore, Store, View
from controlplane.kernel.transaction import Tx, scope_of
from controlplane.ledger import leaves
from controlplane.storage import RocksStore
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import SCOPE_TENANT, Erasure, Partition, Reach, Scope
from controlplane.v1.state_pb2 import Entry, Origin, Outcome, RequestId, Txn
from tests.features.test_audit import passage
from tests.kernel.material import apply, fresh, rows, txn

EU = system("eu")
STATE = Partition(id="eu.prod.state", home="eu", epoch=1, reach=Reach.HOME_ONLY, environment="prod")
NAMES = ("a", "ü")
OPERATIONS = ("create", "swap", "campaign", "other campaigns", "resign", "erase workflow", "erase election", "sweep")


def pending(unswept: erasure.Unswept) -> list[erasure.Wanted]:
    return sorted(unswept.wanted("eu", [STATE], lambda partition: moves.ALL), key=lambda wanted: wanted.name)


class Region:
    """A planner over memory, and a replica on disk that gets nothing but the entries."""

    def __init__(self, folder: Path) -> None:
        self.stores: list[Store] = [MemoryStore(), RocksStore(folder)]
        self.ledgers = [audit.Ledger(store) for store in self.stores]
        self.unswept = erasure.Unswept(self.view, "eu")
        self.asked: list[RequestId] = []

    @property
    def view(self) -> Store:
        return self.stores[0]

    def run(self, partition: Partition, *features: Callable[[Tx], Message | None]) -> list[Message | None]:
        """One entry; what came of each."""
        state = machine.state_of(self.view)
        working = machine.Working(self.view)
        entry = Entry(base=state.revision, base_hash=state.hash, at_ms=state.index, salt=keys.number(state.index) * 2)
        replies: list[Message | None] = []
        for feature in features:
            number = len(self.asked)
            request = RequestId(identity="me", nonce=number.to_bytes(16, "big"), digest=b"d")
            tx = Tx(working.view, partition, working.revision + 1, actor="me", action="Do", reason="r", at_ms=0)
            try:
                replies.append(feature(tx))
                planned = tx.seal(request, replies[-1].SerializeToString() if replies[-1] else b"")
            except ControlPlaneError as refusal:
                replies.append(None)
                planned = tx.seal(request, refusal=refusal)
            assert machine.malformed(planned) == ""
            working.run(planned, proven=True)
            entry.txns.append(planned)
            self.asked.append(request)
        packed = machine.pack(entry)
        for store, ledger in zip(self.stores, self.ledgers, strict=True):
            applied = machine.apply(store, state.index + 1, 1, packed, annex=ledger)
        self.unswept.took(self.view, erasure.about_erasures(applied.changed))
        assert (self.unswept.due, pending(self.unswept)) == (
            (anew := erasure.Unswept(self.view, "eu")).due,
            pending(anew),
        )
        return replies

    def sweep(self) -> None:
        wanted = pending(self.unswept)
        found = erasure.traces(self.view, wanted, lambda: None)
        notes = (step for each, left in zip(wanted, found, strict=True) for step in erasure.noting(left, each))
        for step in (*erasure.sweeping(found), *notes):
            self.run(EU, step)
        assert not pending(self.unswept)

    def close(self) -> None:
        assert isinstance(self.stores[1], RocksStore)
        self.stores[1].close()


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Region]:
    made = Region(tmp_path / "store")
    yield made
    made.close()


def create(name: str, value: bytes) -> Callable[[Tx], Message]:
    return lambda tx: workflows.create(tx, api.CreateWorkflowRequest(id=name, state=value))


def swap(name: str, version: int, value: bytes) -> Callable[[Tx], Message]:
    request = api.CompareAndSwapWorkflowRequest(id=name, version=version, state=value)
    return lambda tx: workflows.compare_and_swap(tx, request)


def campaign(name: str, value: bytes, process: bytes = b"p" * 16) -> Callable[[Tx], Message]:
    return lambda tx: leases.campaign(tx, api.CampaignRequest(name=name, process=process, ttl_ms=5000, value=value))


def resign(name: str, fence: api.Fence) -> Callable[[Tx], Message]:
    return lambda tx: leases.resign(tx, api.ResignRequest(name=name, process=b"p" * 16, fence=fence))


def erase(kind: str, name: str) -> Callable[[Tx], Message]:
    header = api.RequestHeader(partition=STATE.id, reason="asked to")
    return lambda tx: erasure.erase(tx, api.EraseRecordRequest(header=header, kind=kind, name=name))


def throw(tx: Tx) -> Message:
    return switches.engage(tx, api.EngageSwitchRequest(scope=Scope(kind=SCOPE_TENANT, name="acme")))


def release(tx: Tx) -> Message:
    return switches.release(tx, api.ReleaseSwitchRequest(scope=Scope(kind=SCOPE_TENANT, name="acme")))


def held(view: View, value: bytes) -> list[bytes]:
    return [key for key, row in rows(view) if value in row]


class Model:
    """Which values may be in the store, and which may not, as a reader of the rules would say it."""

    def __init__(self, region: Region) -> None:
        self.region, self.made = region, 0
        self.there: dict[tuple[str, str], list[bytes]] = {}
        self.gone: list[bytes] = []
        self.versions: dict[str, int] = {}
        self.fences: dict[str, api.Fence] = {}

    def do(self, operation: str, name: str) -> None:
        self.made += 1
        value = b"<%06d>" % self.made
        kind = "workflow" if operation in ("create", "swap", "erase workflow") else "election"
        if operation == "sweep":
            self.region.sweep()
        elif operation == "create":
            self._wrote(name, value, create(name, value))
        elif operation == "swap":
            self._wrote(name, value, swap(name, self.versions.get(name, 0), value))
        elif operation in ("campaign", "other campaigns"):
            process = b"p" if operation == "campaign" else b"q"
            [reply] = self.region.run(STATE, campaign(name, value, process * 16))
            assert isinstance(reply, api.CampaignReply)
            if reply.elected:
                self.there.setdefault((kind, name), []).append(value)
                self.fences[name] = reply.holder.fence
        elif operation == "resign":
            self.region.run(STATE, resign(name, self.fences.get(name, api.Fence())))
        else:
            [reply] = self.region.run(STATE, erase(kind, name))
            if reply is not None:
                self.gone += self.there.pop((kind, name), [])

    def _wrote(self, name: str, value: bytes, feature: Callable[[Tx], Message]) -> None:
        [reply] = self.region.run(STATE, feature)
        if isinstance(reply, api.CreateWorkflowReply | api.CompareAndSwapWorkflowReply):
            # None is used twice.
            assert reply.version > self.versions.get(name, 0)
            self.versions[name] = reply.version
            self.there.setdefault(("workflow", name), []).append(value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(OPERATIONS), st.sampled_from(NAMES)), min_size=12, max_size=30))
def test_an_erased_value_is_in_no_row_of_any_replica(tmp_path: Path, operations: list[tuple[str, str]]) -> None:
    shutil.rmtree(tmp_path / "store", ignore_errors=True)
    region = Region(tmp_path / "store")
    try:
        model = Model(region)
        for operation, name in operations:
            model.do(operation, name)
        region.sweep()
        assert rows(region.stores[0]) == rows(region.stores[1])
        assert len({ledger.root() for ledger in region.ledgers}) == 1
        for value in model.gone:
            assert held(region.view, value) == []
        for (kind, _), values in model.there.items():
            # Of elections nothing is kept but the newest, and what was told.
            assert all(held(region.view, value) for value in values) or kind == "election"
        state = machine.state_of(region.view)
        for request in region.asked:
            kept = machine.outcome_of(region.view, request, state.revision, state.outcome_span)
            assert kept is not None
            assert kept.verdict in (Outcome.COMMITTED, Outcome.REFUSED, Outcome.FORGOTTEN)
    finally:
        region.close()


def test_an_old_request_does_not_write_it_again(region: Region) -> None:
    region.run(STATE, create("a", b"secret"))
    [asked] = region.asked
    region.run(STATE, erase("workflow", "a"))
    region.sweep()
    told = machine.Working(region.view).answer(asked)
    assert told is not None
    assert (told.verdict, told.reply) == (Outcome.FORGOTTEN, b"")
    again = apply(region.view, Txn(request=asked, scope=scope_of(STATE), reply=b"secret"))
    assert [outcome.verdict for outcome in again.outcomes] == [Outcome.FORGOTTEN]
    assert held(region.view, b"secret") == []


def test_what_is_written_after_it_stays_and_counts_on(region: Region) -> None:
    region.run(STATE, create("a", b"secret"))
    region.run(STATE, erase("workflow", "a"))
    [reply] = region.run(STATE, create("a", b"later"))
    assert isinstance(reply, api.CreateWorkflowReply)
    assert reply.version == 3
    region.sweep()
    assert held(region.view, b"secret") == []
    # The record, its event and its history.
    assert len(held(region.view, b"later")) == 3


def test_what_somebody_else_was_told_of_a_holder_goes_too(region: Region) -> None:
    [reply] = region.run(STATE, campaign("seat", b"secret"))
    assert isinstance(reply, api.CampaignReply)
    region.run(STATE, campaign("seat", b"other", b"q" * 16))
    region.run(STATE, campaign("seats", b"kept"))
    region.run(STATE, resign("seat", reply.holder.fence))
    region.run(STATE, erase("election", "seat"))
    assert len(held(region.view, b"secret")) == 3
    region.sweep()
    assert held(region.view, b"secret") == []
    # The record, its event and what its holder was told.
    assert len(held(region.view, b"kept")) == 3


def test_erasing_twice_changes_nothing(region: Region) -> None:
    region.run(STATE, create("a", b"secret"))
    [first] = region.run(STATE, erase("workflow", "a"))
    region.sweep()
    [second] = region.run(STATE, erase("workflow", "a"))
    assert isinstance(second, api.EraseRecordReply)
    assert first == second
    assert not pending(region.unswept)


def test_many_are_looked_for_in_one_go_and_each_finds_its_own(region: Region) -> None:
    for name in ("a", "b", "c"):
        region.run(STATE, create(name, b"secret"))
    region.run(STATE, campaign("seat", b"secret"), create("stays", b"kept"))
    [reply] = region.run(STATE, campaign("seat", b"secret"))
    assert isinstance(reply, api.CampaignReply)
    region.run(STATE, resign("seat", reply.holder.fence))
    for kind, name in (("workflow", "a"), ("workflow", "b"), ("election", "seat")):
        region.run(STATE, erase(kind, name))
    wanted = pending(region.unswept)
    assert len(wanted) == 3
    together = erasure.traces(region.view, wanted, lambda: None)
    assert together == [each for one in wanted for each in erasure.traces(region.view, [one], lambda: None)]
    assert all(found.rows for found in together)
    region.sweep()
    # Of the one that was not erased: the record, its event and its history.
    assert len(held(region.view, b"secret")) == len(held(region.view, b"kept")) == 3


@pytest.mark.parametrize("left", [lambda at: at - 1, lambda at: at])
def test_what_was_not_copied_up_to_its_erasure_is_not_swept_yet(region: Region, left: Callable[[int], int]) -> None:
    region.run(STATE, create("a", b"secret"))
    region.run(STATE, erase("workflow", "a"))
    at = region.unswept.due or machine.state_of(region.view).revision
    found = [*region.unswept.wanted("eu", [STATE], lambda partition: left(at))]
    assert len(found) == (left(at) == at)
    assert region.unswept.count([STATE]) == 1
    assert region.unswept.count([EU]) == 0


def test_the_same_erasure_as_a_copy_and_as_it_was_taken_over_is_swept_for_good(region: Region) -> None:
    there = Partition(id=STATE.id, home="us", epoch=1, reach=Reach.JURISDICTION, environment="prod")
    here = Partition(id=STATE.id, home="eu", epoch=2, reach=Reach.JURISDICTION, environment="prod")
    name = keys.erasure_name(keys.within(scope_of(there), "workflow", "a"))
    value = Erasure(kind="workflow", version=2).SerializeToString()
    origin = Origin(home="us", epoch=1, revision=1, created=1, version=1)
    region.run(here, lambda tx: tx.adopt("erasure", name, value, 1, history=False))
    region.run(there, lambda tx: tx.copy(keys.within(scope_of(there), "erasure", name), value, origin))
    everything = [here, there]
    assert region.unswept.count(everything) == 2
    wanted = [*region.unswept.wanted("eu", everything, lambda partition: moves.ALL)]
    for each in wanted:
        for step in erasure.noting(erasure.Traces(), each):
            region.run(EU, step)
    for unswept in (region.unswept, erasure.Unswept(region.view, "eu")):
        assert not unswept
        assert unswept.count(everything) == 0


def test_a_held_election_is_not_ended(region: Region) -> None:
    region.run(STATE, campaign("seat", b"secret"))
    tx = Tx(machine.Records(region.view), STATE, 9, actor="me", action="Do", reason="r", at_ms=0)
    with pytest.raises(Refused) as raised:
        erase("election", "seat")(tx)
    assert raised.value.reason == "ELECTION_HELD"


def test_the_ledger_names_the_leaves_and_stays(region: Region) -> None:
    # The switch and the workflow share an entry, and so a salt.
    region.run(STATE, throw, create("a", b"secret"))
    region.run(STATE, throw)
    region.run(STATE, release)
    former = region.ledgers[0].root()
    assert [key is None for _, _, key, _ in audit.opened(region.view, 0)] == [False]
    region.run(STATE, erase("workflow", "a"))
    region.sweep()
    assert [(name, key) for _, name, key, _ in audit.opened(region.view, 0)] == [("switch", None)]
    assert [key is None for _, _, key, _ in audit.opened(region.view, 1)] == [False]
    [(_, name, key, content)] = audit.opened(region.view, 2)
    assert (name, content) == ("erase", leaves.canonical({"leaves": [0]}))
    assert key is not None
    assert region.ledgers[0].root() != former
    assert audit.Ledger(region.view).root() == region.ledgers[1].root()
    assert region.view.get(keys.LEDGER + b"s" + keys.number(0)) is None


def test_a_record_that_is_only_called_so_destroys_nothing(region: Region) -> None:
    region.run(STATE, throw)
    # A workflow's state stands where an erasure names leaves.
    region.run(STATE, create("erased", b"\0"), release)
    assert region.ledgers[0].size == 2
    assert region.view.get(keys.LEDGER + b"s" + keys.number(0)) is not None


def test_all_kinds_that_count_on_can_be_erased() -> None:
    assert {kind.name for kind in features.KINDS.values() if kind.erasable} == {"workflow", "election"}


def test_what_left_can_still_be_shown(region: Region) -> None:
    region.run(EU, lambda tx: federation.record_passage(tx, passage(7)), create("a", b"secret"))
    before = list(audit.opened(region.view, 0))
    wanted = erasure.Wanted(
        scope_of(EU),
        keys.erasure_name(keys.within(scope_of(EU), "workflow", "a")),
        "workflow",
        9,
        at_home=True,
        answered=9,
    )
    [found] = erasure.traces(region.view, [wanted], lambda: None)
    assert found.leaves == {0}
    for step in (*erasure.sweeping([found]), *erasure.noting(found, wanted)):
        region.run(EU, step)
    assert list(audit.opened(region.view, 0)) == before


@pytest.mark.parametrize(
    "rows_to_erase",
    [
        [keys.RECORD + b"x"],
        [keys.STATE],
        [keys.LEDGER + b"s"],
        [keys.OUTCOME + b"short"],
        [b""],
        [keys.EVENT + b"x"] * (limits.ERASES_PER_TXN_MAX + 1),
    ],
)
def test_only_what_is_past_can_be_erased(rows_to_erase: list[bytes]) -> None:
    store = fresh()
    assert [outcome.verdict for outcome in apply(store, txn(erases=rows_to_erase)).outcomes] == [Outcome.MALFORMED]


def test_rows_that_are_not_there_are_no_matter() -> None:
    store = fresh()
    missing = [keys.EVENT + b"x", keys.HISTORY + b"x", keys.generation(0) + bytes(16)]
    assert [outcome.verdict for outcome in apply(store, txn(erases=missing)).outcomes] == [Outcome.COMMITTED]
    assert [key for key, _ in rows(store)] == [keys.STATE]


def test_many_rows_and_leaves_take_several_steps() -> None:
    wanted = erasure.Wanted(scope_of(STATE), "d", "workflow", 9, at_home=True, answered=9)
    found = erasure.Traces(rows=[keys.EVENT + keys.number(n) for n in range(1030)], leaves=set(range(1030)))
    store = MemoryStore()
    planned = []
    for step in (*erasure.sweeping([found]), *erasure.noting(found, wanted)):
        tx = Tx(machine.Records(store), EU, 1, actor="me", action="Do", reason="r", at_ms=0)
        step(tx)
        planned.append(tx.seal(None))
    assert [machine.malformed(each) for each in planned] == [""] * 6
    assert sum(len(each.erases) for each in planned) == 1030
    written = [write for each in planned for write in each.writes]
    assert [keys.decode(write.key).name for write in written] == ["d.0", "d.1", "d"]
