"""Moves of homes as the two logs see them: whatever order the steps come in, and wherever they stop for a while."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import limits
from controlplane.errors import ControlPlaneError, Invalid, Refused, Unavailable
from controlplane.features import audit, federation, moves, partitions
from controlplane.features.workflows import WORKFLOW
from controlplane.kernel import keys, machine
from controlplane.kernel.store import MemoryStore
from controlplane.kernel.transaction import Reader, Tx, scope_of
from controlplane.v1.api_pb2 import RequestHeader
from controlplane.v1.federation_pb2 import SharedPage
from controlplane.v1.records_pb2 import GLOBAL, HOME_ONLY, Former, Move, Partition, Workflow
from controlplane.v1.state_pb2 import Event, Outcome
from tests.features.test_federation import transact

P = Partition(id="a.shared", home="a", epoch=1, reach=GLOBAL, environment="prod")
NAMES = ("a", "b", "stop")
REGIONS = ("a", "b", "c")


class Region:
    """One region's log and store; others are followed as the follower does, without its streams."""

    def __init__(self, name: str) -> None:
        self.name, self.store = name, MemoryStore()
        self.system = partitions.system(name)
        self.do(lambda tx: RequestHeader() if name == P.home and partitions.declare(tx, P) else None)

    def do(self, feature: Callable[[Tx], Message | None], partition: Partition | None = None) -> Outcome | None:
        return transact(self.store, partition or self.system, feature)

    @property
    def revision(self) -> int:
        return machine.state_of(self.store).revision

    @property
    def move(self) -> Move | None:
        return moves.move_at(self.store, self.name, P.id)

    @property
    def place(self) -> Partition | None:
        """Where the node would take the partition to be: see `places`."""
        own = moves.placed(self.move) if self.move else P if self.name == P.home else None
        told = self.told
        if own is None or told is None:
            return own or told
        return own if moves.newer(own, told) else told

    @property
    def told(self) -> Partition | None:
        """Where another region said that the partition is."""
        row = Reader(self.store, self.system, self.revision).get(federation.FOREIGN, P.id)
        return row.value if row else None

    def write(self, name: str, value: bytes) -> bool:
        """Whether the write was acknowledged."""
        place = self.place
        if place is None or place.home != self.name:
            return False

        def feature(tx: Tx) -> Message:
            moves.check_open(tx, self.name, place)
            tx.put(WORKFLOW, name, Workflow(id=name, state=value))
            return RequestHeader()

        try:
            self.do(feature, place)
        except Unavailable:
            return False
        return True

    def rows(self) -> dict[str, tuple[int, bytes]]:
        assert self.place is not None
        reader = Reader(self.store, self.place, self.revision)
        return {row.name: (row.version, row.value.state) for row in reader.list(WORKFLOW)}

    def shown(self) -> list[Partition]:
        """What the exporter shows."""
        found = [self.place] if self.place is not None and self.place.home == self.name else []
        if self.move is not None and self.move.to == self.name and self.move.phase in (Move.ADOPTING, Move.CANCELLED):
            found.append(moves.adopted(self.move))
        return found

    def transactions(self, after: int) -> Iterator[tuple[int, list[Event]]]:
        events = machine.events(self.store, keys.domain(self.name, "GLOBAL"), after, self.revision)
        scopes = tuple(map(scope_of, self.shown()))
        return groupby((each for each in events if each.key.startswith(scopes)), key=lambda event: event.revision)

    def follow(self, home: Region, most: int = 1 << 30) -> None:
        """Copy at most so many transactions of another region, and learn what it shows."""
        by_epoch = {each.epoch: each for each in home.shown()}
        cursor = federation.cursor_at(self.store, self.name, home.name, GLOBAL)
        known, now = self.told, home.place
        if known is not None and known.withdrawn and now is not None and known.home == home.name:
            again = (now.home, now.epoch) == (known.home, known.epoch)
            if again:
                self.do(
                    lambda tx, c=cursor: federation.begin_listing(tx, self.name, c, max(1, home.revision)),  # type: ignore[misc]
                    federation.carrier(home.name, GLOBAL),
                )
        shared = {P.id} if now is not None and now.home == home.name else set()
        self.do(lambda tx: federation.withdraw(tx, home.name, GLOBAL, shared))
        cursor = federation.cursor_at(self.store, self.name, home.name, GLOBAL)
        if cursor.listing:
            self.list(home, cursor.listed)
            cursor = federation.cursor_at(self.store, self.name, home.name, GLOBAL)
        for n, (revision, events) in enumerate([(r, list(e)) for r, e in home.transactions(cursor.revision)]):
            if n == most:
                break
            records = federation.shared(events)
            of = by_epoch[keys.decode(records[0].key).epoch]
            self.do(lambda tx, r=revision, s=records: federation.take_transaction(tx, self.name, r, s), of)  # type: ignore[misc]
        else:
            carrier, seen = federation.carrier(home.name, GLOBAL), home.revision
            self.do(lambda tx: federation.note_progress(tx, self.name, seen, 0), carrier)  # noqa: B023
        found = [each for each in home.shown() if each == home.place]
        self.do(lambda tx: federation.learn(tx, home.name, GLOBAL, found))

    def list(self, home: Region, after: bytes) -> None:
        """Copy everything that another region shows, a page for each partition."""
        shown = sorted(home.shown(), key=scope_of)
        for each in shown:
            start, end = scope_of(each), scope_of(each) + b"\xff"
            if end > after:
                rows = home.store.scan(keys.RECORD + max(start, after + b"\0"), keys.RECORD + end)
                records = federation.shared(Event.FromString(packed) for _, packed in rows)
                page = SharedPage(partition=each.id, epoch=each.epoch, after=after, upto=end, records=records)
                while self.do(lambda tx, p=page: federation.take_page(tx, self.name, p), each):  # type: ignore[misc]
                    pass
                after = end
        last, carrier = SharedPage(after=after, upto=b"\xff", last=True), federation.carrier(home.name, GLOBAL)
        self.do(lambda tx: federation.take_page(tx, self.name, last), carrier)

    def cursor(self, home: str) -> int:
        return federation.cursor_at(self.store, self.name, home, GLOBAL).revision


class Fleet:
    """Regions, and what their clients were told."""

    def __init__(self) -> None:
        self.regions = {name: Region(name) for name in REGIONS}
        self.acknowledged: Counter[str] = Counter()
        self.last: dict[str, bytes] = {}
        self.writes = 0

    def __getitem__(self, name: str) -> Region:
        return self.regions[name]

    def write(self, region: str, name: str) -> None:
        self.writes += 1
        value = str(self.writes).encode()
        if self[region].write(name, value):
            self.acknowledged[name] += 1
            self.last[name] = value

    def seal(self, region: str, to: str) -> None:
        place = self[region].place
        if place is None or place.home != region or to == region:
            return
        try:
            self[region].do(lambda tx: moves.seal(tx, place, to, None))
        except Refused as error:
            assert error.reason == "PARTITION_MOVING"  # noqa: PT017 - any other is a defect.

    def press(self, region: str, *, cancel: bool = False, heard: bool = True) -> None:
        """The old home asks; `heard`: the answer arrives."""
        old = self[region]
        move = old.move
        if move is None or move.phase != Move.SEALED or move.partition.home != region:
            return
        new, of = self[move.to], move.partition
        if cancel:
            new.do(lambda tx: federation.hear(tx, [of]))
            new.do(lambda tx: federation.decline(tx, of, move.epoch))
        else:
            cursor = federation.cursor_at(new.store, new.name, region, GLOBAL)
            new.do(lambda tx: moves.begin(tx, of, move.epoch, move.upto, cursor))
        known = new.move
        if heard and known is not None and (known.epoch, known.phase) == (move.epoch, Move.CANCELLED):
            old.do(lambda tx: moves.call_off(tx, P.id, move.epoch))

    def adopt(self, region: str, steps: int) -> None:
        """The new home takes over, so many steps of it."""
        new = self[region]
        move = new.move
        for _ in range(steps):
            if move is None or move.to != region or move.phase != Move.ADOPTING:
                return
            if new.do(lambda tx: moves.take_over(tx, move, frozenset()), moves.adopted(move)) is None:
                new.do(lambda tx: moves.finish(tx, move))
                return

    def take(self, what: str, where: str, more: object) -> None:
        """One step of a test."""
        match what, more:
            case "write", str(of):
                self.write(where, of)
            case "seal", str(to):
                self.seal(where, to)
            case "press", _:
                self.press(where)
            case "cancel", bool(heard):
                self.press(where, cancel=True, heard=heard)
            case "adopt", int(count):
                self.adopt(where, count)
            case "follow", (str(other), int(most)) if other != where:
                self[where].follow(self[other], most)
                self.hear(where, other)
            case "hear", str(other) if other != where:
                self.hear(where, other)

    def take_by_force(self, what: str, where: str, more: object) -> None:
        """One step of a test in which moves are forced as well."""
        match what:
            case "create":
                self.write(where, f"w{self.writes}")
            case "force":
                self.force(where)
            case "sweep":
                self.sweep(where)
            case _:
                self.take(what, where, more)

    def sweep(self, region: str) -> None:
        """See `Mover`."""
        here, move, place = self[region], self[region].move, self[region].place
        if move is not None and (move.phase, move.to) == (Move.CANCELLED, region):
            while here.do(lambda tx: moves.sweep(tx, moves.ALL), moves.adopted(move)):
                pass
        shown = place is not None and (place.home == region or place == here.told)
        if shown and (move is None or move.phase != Move.ADOPTING):
            sweep(here)

    def hear(self, region: str, other: str) -> None:
        """See `Follower`: what another region knows of homes elsewhere."""
        here, told = self[region], self[other].place
        move, own = here.move, here.place
        if move is not None and move.to == region and move.phase in (Move.ADOPTING, Move.CANCELLED):
            own = moves.adopted(move)
        news = own is not None and own.home == region and told is not None and moves.newer(told, own)
        if news and told is not None and told.home != other and told.former:
            here.do(lambda tx: federation.hear(tx, [told]))

    def force(self, region: str) -> None:
        """As an operator does who does not hear the home."""
        here, place = self[region], self[region].place
        if place is None or place.withdrawn:
            return
        cursor = None if place.home == region else federation.cursor_at(here.store, region, place.home, GLOBAL)
        upto = cursor.revision if cursor else 0
        try:
            here.do(lambda tx: moves.begin_forced(tx, place, cursor, upto, 0, "gone"))
        except Refused as error:
            assert error.reason in ("AT_HOME_ALREADY", "COPY_INCOMPLETE", "PARTITION_MOVING", "NOT_AT_HOME")  # noqa: PT017

    def settle(self, rounds: int = 6) -> None:
        for _ in range(rounds):
            for region in REGIONS:
                self.press(region)
                self.adopt(region, 10)
                for other in REGIONS:
                    if other != region:
                        self[region].follow(self[other])
                        self.hear(region, other)

    def homes(self) -> list[str]:
        return [name for name in REGIONS if (place := self[name].place) is not None and place.home == name]


region, name = st.sampled_from(REGIONS), st.sampled_from(NAMES)
STEP = st.one_of(
    st.tuples(st.just("write"), region, name),
    st.tuples(st.just("write"), region, name),
    st.tuples(st.just("seal"), region, region),
    st.tuples(st.just("press"), region, st.just("")),
    st.tuples(st.just("cancel"), region, st.booleans()),
    st.tuples(st.just("adopt"), region, st.integers(1, 3)),
    st.tuples(st.just("follow"), region, st.tuples(region, st.integers(0, 3))),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(STEP, min_size=15, max_size=60))
def test_planned_moves_lose_nothing_in_whatever_order_their_steps_come(steps: list[tuple[str, str, object]]) -> None:
    fleet = Fleet()
    named: dict[str, set[str]] = {each: set() for each in REGIONS}
    for step in steps:
        fleet.take(*step)
        # What is shown never becomes less: a copy that is not whole is not shown.
        for each in REGIONS:
            rows = set(fleet[each].rows()) if fleet[each].place is not None else set()
            assert named[each] <= rows
            named[each] = rows
        # At no time do two write, and nothing that was said is ever missing where it is written on.
        writers = [each for each in REGIONS if is_open(fleet[each])]
        assert len(writers) <= 1
        for writer in writers:
            assert told(fleet, writer)
    fleet.settle()
    [home] = fleet.homes()
    assert is_open(fleet[home])
    assert told(fleet, home)
    places = [fleet[each].place for each in REGIONS]
    assert {(place.home, place.epoch) for place in places if place is not None} == {
        (home, fleet[home].place.epoch)  # type: ignore[union-attr]
    }
    for other in REGIONS:
        if other != home:
            assert fleet[other].rows() == fleet[home].rows()


FORCED = st.one_of(
    STEP,
    st.tuples(st.just("create"), region, st.just("")),
    st.tuples(st.just("create"), region, st.just("")),
    st.tuples(st.just("force"), region, st.just("")),
    st.tuples(st.just("hear"), region, region),
    st.tuples(st.just("sweep"), region, st.just("")),
)


@settings(deadline=None, max_examples=150)
@given(st.lists(FORCED, min_size=15, max_size=60))
def test_forced_moves_give_up_nothing_that_is_not_in_a_quarantine(steps: list[tuple[str, str, object]]) -> None:
    fleet = Fleet()
    for step in steps:
        with contextlib.suppress(Refused):
            fleet.take_by_force(*step)
    fleet.settle(10)
    [home] = fleet.homes()
    assert is_open(fleet[home])
    for each in REGIONS:
        fleet.sweep(each)
    fleet.settle(2)
    given_up = {keys.decode(record.key).name for each in REGIONS for record in quarantined(fleet[each])}
    assert set(fleet.acknowledged) <= {*fleet[home].rows(), *given_up}
    for other in REGIONS:
        assert fleet[other].rows() == fleet[home].rows()


def is_open(region: Region) -> bool:
    place = region.place
    if place is None or place.home != region.name:
        return False
    return region.move is None or not moves.is_sealed(region.move, region.name)


def told(fleet: Fleet, home: str) -> bool:
    return fleet[home].rows() == {each: (fleet.acknowledged[each], fleet.last[each]) for each in fleet.acknowledged}


@settings(deadline=None, max_examples=100)
@given(
    before=st.lists(name, max_size=6),
    late=st.lists(name, max_size=6),
    after=st.lists(name, max_size=4),
    sealed=st.booleans(),
    early=st.booleans(),
)
def test_a_forced_move_gives_up_exactly_what_was_not_copied(before, late, after, sealed, early) -> None:  # type: ignore[no-untyped-def]
    fleet = Fleet()
    for of in before:
        fleet.write("a", of)
    for other in ("b", "c"):
        fleet[other].follow(fleet["a"])
    upto = fleet["b"].cursor("a")
    for of in late:
        fleet.write("a", of)
    if sealed:
        fleet.seal("a", "b")
    cursor = federation.cursor_at(fleet["b"].store, "b", "a", GLOBAL)
    fleet["b"].do(lambda tx: moves.begin_forced(tx, fleet["b"].place, cursor, upto, 5000, "it is gone"))  # type: ignore[arg-type]
    if early:
        # It comes back while its records are being taken over.
        fleet["b"].follow(fleet["a"])
    fleet.adopt("b", 10)
    assert fleet["b"].rows() == {
        each: (before.count(each), Counter(before) and value_of(before, each)) for each in set(before)
    }
    for of in after:
        fleet.write("b", of)
    expected = fleet["b"].rows()
    # Somebody hears of it before the old home does, and of the old home after that.
    fleet["c"].follow(fleet["b"])
    fleet["c"].follow(fleet["a"])
    fleet.settle()
    assert fleet.homes() == ["b"]
    for other in REGIONS:
        assert fleet[other].rows() == expected
    now = fleet["a"].place
    assert now is not None
    kept = {keys.decode(each.key).name: each for each in moves.quarantined(fleet["a"].store, "a", now)}
    assert set(kept) == set(late)
    assert all(each.revision > upto and each.version == (before + late).count(of) for of, each in kept.items())
    for other in ("b", "c"):
        assert not [*moves.quarantined(fleet[other].store, other, now)]
        marks = [str(len(before) + 1 + n).encode() for n in range(len(late))]
        scope = keys.RECORD + scope_of(P)
        rows = [Event.FromString(row).value for _, row in fleet[other].store.scan(scope, scope + b"\xff")]
        assert not [row for row in rows if Workflow.FromString(row).state in marks]
    assert fleet["a"].move.phase == Move.LEFT  # type: ignore[union-attr]
    # Swept, the quarantine is what is left.
    while fleet["a"].do(lambda tx: moves.sweep(tx, upto), P):
        pass
    assert {keys.decode(each.key).name for each in moves.quarantined(fleet["a"].store, "a", now)} == set(late)


def value_of(before: list[str], of: str) -> bytes:
    return str(max(n for n, each in enumerate(before, 1) if each == of)).encode()


def test_two_forced_on_two_sides_of_a_cut_end_as_one() -> None:
    fleet = Fleet()
    fleet.write("a", "a")
    for other in ("b", "c"):
        fleet[other].follow(fleet["a"])
    for other in ("b", "c"):
        cursor = federation.cursor_at(fleet[other].store, other, "a", GLOBAL)
        fleet[other].do(
            lambda tx, c=cursor, p=fleet[other].place: moves.begin_forced(tx, p, c, c.revision, 0, "gone")  # type: ignore[misc]
        )
        fleet.adopt(other, 5)
        fleet.write(other, other)
    assert fleet.homes() == ["a", "b", "c"]
    fleet.settle()
    assert fleet.homes() == ["c"]
    now = fleet["b"].place
    assert now is not None
    # What was taken over counts as too late as well: the later home knows nothing of this one.
    late = [keys.decode(each.key).name for each in moves.quarantined(fleet["b"].store, "b", now)]
    assert late == ["a", "b"]
    fleet.seal("c", "b")
    fleet.settle()
    assert fleet.homes() == ["b"]
    assert late == [keys.decode(each.key).name for each in moves.quarantined(fleet["b"].store, "b", now)]
    assert fleet["b"].rows() == fleet["c"].rows()


@pytest.mark.parametrize("cancel", [True, False])
@pytest.mark.parametrize("steps", [0, 5])
def test_the_right_one_of_two_homes_stays_it_whatever_the_other_asks_of_it(cancel: bool, steps: int) -> None:
    # Fleets, one node, seed 7420: both were forced; the one that was wrong had a move to the right one called off.
    fleet = Fleet()
    fleet.write("a", "a")
    for other in ("b", "c"):
        fleet[other].follow(fleet["a"])
        cursor = federation.cursor_at(fleet[other].store, other, "a", GLOBAL)
        fleet[other].do(
            lambda tx, c=cursor, p=fleet[other].place: moves.begin_forced(tx, p, c, c.revision, 0, "gone")  # type: ignore[misc]
        )
    fleet.adopt("b", 5)
    fleet.adopt("c", steps)
    fleet.write("c", "b")
    fleet.seal("b", "c")
    fleet["c"].follow(fleet["b"])
    fleet.press("b", cancel=cancel)
    assert fleet["c"].move is not None
    assert fleet["c"].move.epoch == 2
    fleet.settle()
    assert fleet.homes() == ["c"]
    now = fleet["c"].place
    assert now is not None
    assert (now.home, now.epoch) == ("c", 2)
    assert fleet["c"].rows().get("b") == ((1, fleet.last["b"]) if steps else None)


def test_a_sealed_home_keeps_what_it_wrote_from_a_rival_of_the_epoch_it_moves_to() -> None:
    # Fleets, one node, seeds 8325, 8340: the other had forced a move to itself, of the epoch that was to be its next.
    fleet = Fleet()
    fleet.write("a", "a")
    fleet["b"].follow(fleet["a"])
    fleet.seal("a", "b")
    fleet["b"].follow(fleet["a"])
    fleet.press("a")
    fleet.adopt("b", 5)
    fleet.write("b", "b")
    fleet.seal("b", "a")
    fleet["a"].do(lambda tx: moves.begin_forced(tx, P, None, 0, 0, "gone"))
    fleet.adopt("a", 5)
    fleet.seal("a", "b")
    fleet.press("a", cancel=True)
    fleet.settle()
    assert fleet.homes() == ["a"]
    now = fleet["a"].place
    assert now is not None
    late = [keys.decode(each.key).name for each in moves.quarantined(fleet["b"].store, "b", now)]
    assert "b" in late
    sweep(fleet["b"])
    assert late == [keys.decode(each.key).name for each in moves.quarantined(fleet["b"].store, "b", now)]


def test_what_was_given_up_stays_in_quarantine_when_a_home_of_another_line_turns_up() -> None:
    # Fleets, one node, seed 8730: who took over from a home that was forced lost against one that knew of neither.
    fleet = Fleet()
    fleet.write("a", "a")
    for home, other in (("a", "b"), ("b", "c")):
        fleet[other].follow(fleet[home])
        fleet.write(home, home)
        place, cursor = fleet[other].place, federation.cursor_at(fleet[other].store, other, home, GLOBAL)
        assert place is not None
        fleet[other].do(lambda tx, p=place, c=cursor: moves.begin_forced(tx, p, c, c.revision, 0, "gone"))  # type: ignore[misc]
        fleet.adopt(other, 5)
    fleet["b"].follow(fleet["c"])
    late = [keys.decode(each.key).name for each in quarantined(fleet["b"])]
    assert late == ["b"]
    for _ in range(2):
        fleet.seal("a", "c")
        fleet["a"].do(lambda tx: moves.begin_forced(tx, fleet["a"].place, None, 0, 0, "gone"))  # type: ignore[arg-type]
        fleet.adopt("a", 5)
    fleet.settle()
    assert fleet.homes() == ["a"]
    for _ in range(2):
        assert [keys.decode(each.key).name for each in quarantined(fleet["b"])] == late
        sweep(fleet["b"])


def quarantined(region: Region) -> list[Event]:
    assert region.place is not None
    return [*moves.quarantined(region.store, region.name, region.place)]


def test_a_copy_is_listed_anew_once_it_is_not_taken_over_after_all() -> None:
    # What happens at home while a region takes over by force it does not copy; then the move was called off.
    fleet = Fleet()
    fleet["b"].follow(fleet["a"])
    place, cursor = fleet["b"].place, federation.cursor_at(fleet["b"].store, "b", "a", GLOBAL)
    assert place is not None
    fleet["b"].do(lambda tx: moves.begin_forced(tx, place, cursor, cursor.revision, 0, "gone"))
    fleet.write("a", "a")
    fleet["b"].follow(fleet["a"])
    fleet.seal("a", "b")
    fleet.press("a", cancel=True)
    assert federation.cursor_at(fleet["b"].store, "b", "a", GLOBAL).listing
    fleet.seal("a", "b")
    fleet.press("a")
    assert fleet["b"].move is not None
    assert fleet["b"].move.phase == Move.CANCELLED


def test_a_home_that_called_a_move_off_copies_nothing_of_a_home_that_is_wrong() -> None:
    # Fleets, three nodes, seed 9603: it was swept, and came back.
    fleet = Fleet()
    fleet.write("a", "a")
    for other in ("b", "c"):
        fleet[other].follow(fleet["a"])
        fleet.force(other)
        fleet.adopt(other, 5)
    fleet.seal("c", "a")
    fleet.press("c", cancel=True)
    fleet.write("b", "b")
    fleet["c"].follow(fleet["b"])
    assert not [key for key, _ in fleet["c"].store.scan(*keys.children(keys.RECORD + keys.domain("b", "GLOBAL")))]


def test_nor_is_the_copy_of_another_home_that_turned_up_meanwhile_taken_for_whole() -> None:
    fleet = Fleet()
    fleet["b"].follow(fleet["a"])
    fleet.write("a", "a")
    fleet["c"].follow(fleet["a"])
    for other in ("b", "c"):
        place, cursor = fleet[other].place, federation.cursor_at(fleet[other].store, other, "a", GLOBAL)
        assert place is not None
        fleet[other].do(lambda tx, p=place, c=cursor: moves.begin_forced(tx, p, c, c.revision, 0, "gone"))  # type: ignore[misc]
    fleet.adopt("b", 5)
    fleet.write("b", "b")
    fleet["c"].follow(fleet["b"])
    fleet.seal("a", "c")
    fleet.press("a", cancel=True)
    fleet.settle()
    assert fleet.homes() == ["b"]
    assert fleet["c"].rows() == fleet["b"].rows()


def test_what_was_taken_over_in_vain_is_not_taken_for_what_a_later_move_brings() -> None:
    # Fleets, three nodes, seed 3: a home that took over from itself heard of another one, which then moved to it.
    fleet = Fleet()
    fleet.write("a", "a")
    fleet["b"].follow(fleet["a"])
    fleet.seal("a", "c")
    place, cursor = fleet["b"].place, federation.cursor_at(fleet["b"].store, "b", "a", GLOBAL)
    assert place is not None
    fleet["b"].do(lambda tx: moves.begin_forced(tx, place, cursor, cursor.revision, 0, "gone"))
    fleet.adopt("b", 5)
    fleet.write("b", "a")
    fleet["a"].do(lambda tx: moves.begin_forced(tx, P, None, 0, 0, "gone"))
    fleet.adopt("a", 1)
    fleet["a"].follow(fleet["b"])
    fleet.seal("b", "a")
    fleet.settle()
    assert fleet.homes() == ["a"]
    now = fleet["a"].place
    assert now is not None
    late = [(each.key, Workflow.FromString(each.value).state) for each in moves.quarantined(fleet["b"].store, "b", now)]
    assert fleet["a"].rows()["a"][1] == fleet.last["a"] or fleet.last["a"] in [state for _, state in late]


def test_more_records_than_one_transaction_can_hold_keep_their_versions() -> None:
    fleet = Fleet()
    count = 2 * limits.WRITES_PER_TXN_MAX + 5
    for n in range(count):
        for _ in range(1 + n % 3):
            fleet.write("a", f"w{n:04d}")
    fleet["b"].follow(fleet["a"])
    fleet.seal("a", "b")
    fleet["b"].follow(fleet["a"])
    fleet.press("a")
    fleet.adopt("b", 1)
    assert fleet.homes() == ["a"]
    fleet.adopt("b", 10)
    assert told(fleet, "b")
    events = machine.events(fleet["b"].store, keys.domain("b", "GLOBAL"), 0, 1 << 40)
    assert max(Counter(event.revision for event in events).values()) < limits.WRITES_PER_TXN_MAX


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"reach": HOME_ONLY}, "PARTITION_PINNED"),
        ({"default_for": ["flag", "stop"]}, "PARTITION_HOLDS_STOPS"),
        ({"former": [Former(home="b", epoch=1)] * limits.HOMES_MAX}, "MOVED_TOO_OFTEN"),
        ({"epoch": 7}, "NOT_AT_HOME"),
    ],
)
def test_what_cannot_be_moved(change: dict[str, object], reason: str) -> None:
    other = Partition(**{"id": P.id, "home": "a", "epoch": 1, "reach": GLOBAL, **change})  # type: ignore[arg-type]
    with pytest.raises(Refused) as raised:
        Region("a").do(lambda tx: moves.seal(tx, other, "b", None))
    assert raised.value.reason == reason


def test_nothing_is_forced_without_a_word() -> None:
    fleet = Fleet()
    fleet["b"].follow(fleet["a"])
    cursor = federation.cursor_at(fleet["b"].store, "b", "a", GLOBAL)
    for attestation, upto, listing, error in (
        ("", cursor.revision, False, Invalid),
        ("  ", cursor.revision, False, Invalid),
        ("gone", cursor.revision - 1, False, Refused),
        ("gone", cursor.revision, True, Refused),
    ):
        cursor.listing = listing
        with pytest.raises(ControlPlaneError) as raised:
            fleet["b"].do(lambda tx: moves.begin_forced(tx, P, cursor, upto, 0, attestation))  # noqa: B023
        assert isinstance(raised.value, error)


def test_the_ledger_hears_of_every_step_and_of_no_words() -> None:
    fleet = Fleet()
    fleet["b"].follow(fleet["a"])
    cursor = federation.cursor_at(fleet["b"].store, "b", "a", GLOBAL)
    fleet["b"].do(lambda tx: moves.begin_forced(tx, P, cursor, cursor.revision, 7, "kanarienvogel saw it burn"))
    fleet.adopt("b", 2)
    events = machine.events(fleet["b"].store, keys.domain("b", "HOME_ONLY"), 0, 1 << 40)
    said = [told for event in events if (told := audit.audited_in(event)) is not None]
    assert [name for name, _ in said] == ["move", "move"]
    assert all(b"kanarienvogel" not in content for _, content in said)
    assert b'"phase":"adopted"' in said[1][1]
    assert b'"age_ms":7' in said[0][1]


def test_what_was_called_off_goes_no_further() -> None:
    fleet = Fleet()
    fleet.write("a", "a")
    fleet.seal("a", "b")
    fleet["b"].follow(fleet["a"])
    fleet.press("a")
    planned = fleet["b"].move
    assert planned is not None
    fleet.press("a", cancel=True)
    # Planned before, and in the log after it.
    assert fleet["b"].do(lambda tx: moves.take_over(tx, planned, frozenset()), moves.adopted(planned)) is None
    assert fleet["b"].do(lambda tx: moves.finish(tx, planned)) is None
    assert fleet["b"].move.phase == Move.CANCELLED  # type: ignore[union-attr]
    fleet.write("a", "a")
    assert told(fleet, "a")


def test_a_copy_is_shown_once_it_is_whole() -> None:
    fleet = Fleet()
    fleet.write("a", "a")
    for other in ("b", "c"):
        fleet[other].follow(fleet["a"])
    fleet.seal("a", "b")
    fleet["b"].follow(fleet["a"])
    fleet.press("a")
    fleet.adopt("b", 5)
    fleet.write("b", "a")
    for other in ("a", "c"):
        fleet[other].follow(fleet["b"], 0)
        assert fleet[other].rows() == {"a": (1, b"1")}
        fleet[other].follow(fleet["b"])
        assert fleet[other].rows() == {"a": (2, b"2")}
    assert fleet["a"].move.phase == Move.LEFT  # type: ignore[union-attr]
    assert not fleet["a"].move.forced  # type: ignore[union-attr]


def test_nothing_is_forced_from_a_copy_that_was_never_whole() -> None:
    fleet = Fleet()
    fleet.write("a", "a")
    never = federation.cursor_at(fleet["c"].store, "c", "a", GLOBAL)
    with pytest.raises(Refused) as raised:
        fleet["c"].do(lambda tx: moves.begin_forced(tx, P, never, never.revision, 0, "gone"))
    assert raised.value.reason == "COPY_INCOMPLETE"
    for other in ("b", "c"):
        fleet[other].follow(fleet["a"])
    fleet.seal("a", "b")
    fleet["b"].follow(fleet["a"])
    fleet.press("a")
    fleet.adopt("b", 5)
    fleet.write("b", "a")
    now = fleet["b"].place
    assert now is not None
    # Somebody else told who the home is: of what it has, nothing was copied here yet.
    cursor = federation.cursor_at(fleet["c"].store, "c", "b", GLOBAL)
    with pytest.raises(Refused) as raised:
        fleet["c"].do(lambda tx: moves.begin_forced(tx, now, cursor, cursor.revision, 0, "gone"))
    assert raised.value.reason == "COPY_INCOMPLETE"
    fleet["c"].follow(fleet["b"])
    cursor = federation.cursor_at(fleet["c"].store, "c", "b", GLOBAL)
    fleet["c"].do(lambda tx: moves.begin_forced(tx, now, cursor, cursor.revision, 0, "gone"))
    fleet.adopt("c", 5)
    assert told(fleet, "c")


def remaining(region: Region) -> list[tuple[str, int]]:
    """Where a region has records of the partition, its present home aside."""
    assert region.place is not None
    now = scope_of(region.place)
    rows = region.store.scan(*keys.children(keys.RECORD))
    found = [keys.decode(key[len(keys.RECORD) :]) for key, _ in rows if not key[len(keys.RECORD) :].startswith(now)]
    return sorted({(each.home, each.epoch) for each in found if each.partition == P.id})


def sweep(region: Region) -> None:
    place = region.place
    assert place is not None
    for was, upto in moves.remains(region.store, region.name, place, REGIONS):
        while region.do(lambda tx, upto=upto: moves.sweep(tx, upto), was):  # type: ignore[misc]
            pass


def test_of_homes_that_lost_or_never_came_to_be_nothing_is_left_but_the_quarantine() -> None:
    fleet = Fleet()
    fleet.write("a", "a")
    for other in ("b", "c"):
        fleet[other].follow(fleet["a"])
    # Taken over for nothing, and copied before it was called off; nobody looks at it when it is deleted.
    fleet.seal("a", "b")
    fleet["b"].follow(fleet["a"])
    fleet.press("a")
    planned = fleet["b"].move
    assert planned is not None
    fleet["b"].do(lambda tx: moves.take_over(tx, planned, frozenset()), moves.adopted(planned))
    fleet["c"].follow(fleet["b"])
    fleet.press("a", cancel=True)
    # Forced on two sides of a cut; the third region hears of both.
    for other, named in (("b", "late"), ("c", "c")):
        cursor = federation.cursor_at(fleet[other].store, other, "a", GLOBAL)
        fleet[other].do(
            lambda tx, c=cursor, p=fleet[other].place: moves.begin_forced(tx, p, c, c.revision, 0, "gone")  # type: ignore[misc]
        )
        fleet.adopt(other, 5)
        fleet.write(other, named)
    fleet["a"].follow(fleet["c"])
    fleet.settle()
    [home] = fleet.homes()
    assert ("b", 2) in remaining(fleet["c"])
    for each in REGIONS:
        sweep(fleet[each])
    loser = next(each for each in ("b", "c") if each != home)
    assert {each: remaining(fleet[each]) for each in REGIONS} == {
        "a": [],
        home: [],
        loser: [(loser, fleet[loser].move.disowned[0].epoch)],
    }  # type: ignore[union-attr]
    assert {len(fleet[each].rows()) for each in REGIONS} == {2}


@pytest.mark.parametrize("change", [{"reach": HOME_ONLY}, {"environment": "dev"}])
def test_nobody_leaves_for_a_later_home_of_another_reach_or_environment(change: dict[str, object]) -> None:
    """Where it may be is decided by its own: whoever names another means to have what it may not."""
    region = Region("a")
    later = Partition(id=P.id, home="b", epoch=2, reach=P.reach, environment=P.environment)
    later.former.add(home="a", epoch=1, upto=1)
    lie = Partition()
    lie.CopyFrom(later)
    for field, value in change.items():
        setattr(lie, field, value)
    region.do(lambda tx: federation.hear(tx, [lie]))
    assert region.place == P
    region.do(lambda tx: federation.hear(tx, [later]))
    assert region.place is not None
    assert region.place.home == "b"
