"""The oracle: each of its invariants says so when it is broken, and is silent when it is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from chaos.schedule import Fault, make_schedule
from chaos.sim_disk import Disk
from chaos.sim_faults import touching
from chaos.sim_oracle import Oracle, Violation
from chaos.simulation import Simulation
from controlplane.replication import Role
from controlplane.replication.tail import Entry, Recovered, Tail

NAMES = ("a", "b", "c")
Step = Callable[[], None]  # The last, which breaks the invariant; everything before it keeps to it.


class Peer:
    """A node as the oracle sees it, with a disk on which its log is."""

    def __init__(self, name: str) -> None:
        self.name, self.process, self.role = name, 1, Role.LEADER
        self.disk = Disk()
        self.tail = Tail(Recovered(), self.disk.sink)

    def holds(self, *terms: int) -> None:
        """Have an entry of each term, on disk."""
        for term in terms:
            self.tail.add(Entry(self.tail.last_index + 1, term, b"%d" % term))
        self.sync()

    def sync(self) -> None:
        self.disk.sync(self.tail.seq)
        self.tail.synced(self.tail.seq)

    def votes(self, term: int, name: str) -> None:
        self.tail.set_term(term, name)
        self.sync()


class Region:
    def __init__(self) -> None:
        self.a, self.b, self.c = (Peer(name) for name in NAMES)
        self.peers = (self.a, self.b, self.c)
        self.oracle = Oracle({peer.name: peer.disk for peer in self.peers})

    def elect(self, leader: Peer, term: int) -> None:
        for peer in self.peers:
            peer.votes(term, leader.name)
        self.oracle.leads(leader)

    def commit(self, leader: Peer, index: int) -> None:
        leader.tail.set_commit(index)
        self.oracle.looks(leader)


def two_leaders(region: Region) -> Step:
    region.elect(region.a, 1)
    for peer in region.peers:
        peer.disk.votes[1] = "b"
    return lambda: region.oracle.leads(region.b)


def leader_of_a_minority(region: Region) -> Step:
    region.a.votes(1, "a")
    region.b.votes(1, "c")
    return lambda: region.oracle.leads(region.a)


def leader_without_what_was_committed(region: Region) -> Step:
    for peer in (region.a, region.b):
        peer.holds(1)
    region.elect(region.a, 1)
    region.commit(region.a, 1)
    return lambda: region.elect(region.c, 2)


def commit_on_one_disk(region: Region) -> Step:
    region.a.holds(1)
    region.elect(region.a, 1)
    return lambda: region.commit(region.a, 1)


def committed_and_gone(region: Region) -> Step:
    for peer in (region.a, region.b):
        peer.holds(1)
    region.elect(region.a, 1)
    region.commit(region.a, 1)
    region.oracle.still_durable()
    region.b.tail.cut(1)
    region.b.sync()
    return region.oracle.still_durable


def durable_and_gone(region: Region) -> Step:
    region.a.holds(1, 1)
    region.oracle.survives("a", region.a.tail)
    del region.a.disk.entries[1:]
    return lambda: region.oracle.survives("a", region.a.tail)


def two_entries_at_one_index(region: Region) -> Step:
    region.oracle.applies("a", Entry(1, 1, b"x"), 7, None)
    region.oracle.applies("b", Entry(1, 1, b"x"), 7, None)
    return lambda: region.oracle.applies("b", Entry(1, 1, b"y"), 7, None)


def two_hashes_at_one_index(region: Region) -> Step:
    region.oracle.applies("a", Entry(1, 1, b"x"), 7, None)
    region.oracle.compares("b", 1, 7)
    return lambda: region.oracle.compares("b", 1, 8)


def logs_that_part_below_an_agreement(region: Region) -> Step:
    region.a.holds(1, 1, 3)
    region.b.holds(1, 2)
    region.oracle.logs_match(region.peers)
    region.b.holds(3)
    return lambda: region.oracle.logs_match(region.peers)


def acknowledged_but_never_applied(region: Region) -> Step:
    region.oracle.applies("a", Entry(4, 1, b"x"), 7, 11)
    region.oracle.acknowledged(11, 4, 0)
    return lambda: region.oracle.acknowledged(12, 5, 0)


def acknowledged_and_gone_at_the_end(region: Region) -> Step:
    region.oracle.applies("a", Entry(4, 1, b"x"), 7, 11)
    region.oracle.acknowledged(11, 4, 0)
    region.oracle.everything_acknowledged([4, 4, 4])
    return lambda: region.oracle.everything_acknowledged([4, 3, 4])


def acknowledged_in_the_past(region: Region) -> Step:
    region.oracle.applies("a", Entry(4, 1, b"x"), 7, 11)
    region.oracle.acknowledged(11, 4, 3)
    return lambda: region.oracle.acknowledged(11, 4, 4)


def read_of_the_past(region: Region) -> Step:
    region.oracle.read("a", 5, 5)
    return lambda: region.oracle.read("a", 5, 6)


def failed_and_applied(region: Region) -> Step:
    region.oracle.applies("a", Entry(4, 1, b"x"), 7, 11)
    region.oracle.definite_failures([12])
    return lambda: region.oracle.definite_failures([11])


BROKEN: dict[str, Callable[[Region], Step]] = {
    "ELECTION_SAFETY": two_leaders,
    "MINORITY_LEADER": leader_of_a_minority,
    "LEADER_COMPLETENESS": leader_without_what_was_committed,
    "COMMIT_WITHOUT_MAJORITY": commit_on_one_disk,
    "COMMITTED_LOST": committed_and_gone,
    "DURABLE_LOST": durable_and_gone,
    "STATE_MACHINE_SAFETY": two_entries_at_one_index,
    "REPLICA_DIVERGENCE": two_hashes_at_one_index,
    "LOG_MATCHING": logs_that_part_below_an_agreement,
    "ACKNOWLEDGED_LOST": acknowledged_but_never_applied,
    "ACKNOWLEDGED_LOST 4": acknowledged_and_gone_at_the_end,
    "REAL_TIME_ORDER": acknowledged_in_the_past,
    "STALE_READ": read_of_the_past,
    "FALSE_FAILURE": failed_and_applied,
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_invariant_is_named(name: str) -> None:
    last_step = BROKEN[name](Region())
    with pytest.raises(Violation, match=f"^{name}"):
        last_step()


def lasting(kind: str, strike: Callable[[Simulation], None]) -> str:
    """Run twenty seconds in which `strike` happens at ten and never heals; return the violation."""
    schedule = make_schedule(3, nodes=3, seconds=20, profile="steady")
    simulation = Simulation(replace(schedule, faults=()))
    simulation.at(10.0, strike, simulation)
    return simulation.run().violation or f"no {kind}"


def test_a_region_that_serves_nobody_is_noticed() -> None:
    found = lasting("NO_LIVENESS", lambda s: s.network.cut(s.network.links, 100.0))
    assert found.startswith(("NO_LIVENESS", "LINGERING_LEADER", "NO_CONVERGENCE"))


def test_a_node_that_stays_behind_is_noticed() -> None:
    def strike(s: Simulation) -> None:
        away = next(name for name in s.names if name != s.leader())
        s.network.cut(touching(s, away), 100.0)

    assert lasting("NO_CONVERGENCE", strike).startswith("NO_CONVERGENCE")


def test_a_slow_write_is_noticed_only_while_nothing_is_wrong() -> None:
    def slower(s: Simulation) -> None:
        for name in s.names:
            s.slow_one_disk(name, 0.05, 1.0)

    assert lasting("SLOW_WRITE", slower).startswith("SLOW_WRITE")

    def slower_and_known(s: Simulation) -> None:
        s.unsettled_until = s.now() + 2.0
        slower(s)

    assert lasting("violation", slower_and_known) == "no violation"


def test_a_follower_that_costs_the_leader_its_term_is_noticed() -> None:
    schedule = make_schedule(3, nodes=3, seconds=20, profile="steady")
    away = replace(schedule, faults=(Fault(5.0, "follower-away", 1.0, 1),))
    simulation = Simulation(away)
    assert simulation.run().violation is None
    simulation = Simulation(away)
    simulation.at(6.5, lambda: simulation.transfer(None))
    assert (simulation.run().violation or "").startswith("NEEDLESS_ELECTION")
