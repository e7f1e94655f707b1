"""How old a copy is said to be, whenever its cursor's entries are applied."""

from __future__ import annotations

from math import inf

from controlplane.abroad import Abroad
from controlplane.features import federation
from controlplane.features.partitions import system
from controlplane.kernel import keys
from controlplane.kernel.machine import Changed
from controlplane.kernel.store import MemoryStore
from controlplane.kernel.transaction import scope_of
from controlplane.v1.records_pb2 import GLOBAL, Cursor
from controlplane.v1.state_pb2 import Event

NAME = federation.cursor_name("west", GLOBAL)
KEY = keys.within(scope_of(system("east")), "cursor", NAME)


class Follower:
    """A node of east that applies what its leader noted of west."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.abroad = Abroad("east")
        self.abroad.look(self.store, 0.0)

    def applies(self, revision: int, age_ms: int, current_at: float) -> None:
        cursor = Cursor(peer="west", reach=GLOBAL, epoch=1, revision=revision, age_ms=age_ms)
        event = Event(revision=revision, key=KEY, value=cursor.SerializeToString())
        self.abroad.took(self.store, [Changed(KEY, event, event.SerializeToString(), quiet=True)], lambda: current_at)

    def age_ms(self, now: float) -> int:
        ((_, age_ms),) = self.abroad.views(now)
        return age_ms


def test_entries_that_are_applied_again_after_a_restart_are_as_old_as_they_are():
    node = Follower()
    for revision in range(1, 20):
        # All of them at once, and nothing is known of when they were planned.
        node.applies(revision, 10, -inf)
    assert node.age_ms(1000.0) == federation.AGE_UNKNOWN_MS


def test_an_entry_is_no_older_than_the_proof_before_the_one_before():
    node = Follower()
    node.applies(1, 10, current_at=100.0)
    assert node.age_ms(100.1) == federation.AGE_UNKNOWN_MS
    # It was planned over the first, which was committed after 100.
    node.applies(2, 10, current_at=101.0)
    assert node.age_ms(101.5) == 1510
    node.applies(3, 10, current_at=102.0)
    assert node.age_ms(102.5) == 1510


def test_a_node_that_stood_still_does_not_take_what_it_missed_for_new():
    node = Follower()
    node.applies(1, 10, current_at=100.0)
    node.applies(2, 10, current_at=101.0)
    for revision in range(3, 10):
        # Twenty seconds later, in one go; the last proof is from before.
        node.applies(revision, 10, current_at=101.0)
    assert node.age_ms(121.0) == 20_010


def test_what_brings_a_copy_nearer_makes_it_no_older():
    node = Follower()
    node.applies(1, 10, current_at=100.0)
    node.applies(2, 10, current_at=101.0)
    node.applies(3, federation.AGE_UNKNOWN_MS, current_at=102.0)
    assert node.age_ms(102.0) == 2010
