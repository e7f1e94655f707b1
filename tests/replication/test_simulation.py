"""Directed schedules: what a region does, step by step, with a rule and without it."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from chaos.schedule import make_schedule
from chaos.sim_disk import Disk
from chaos.sim_faults import touching
from chaos.sim_node import PUT, Node, write
from chaos.sim_oracle import Violation
from chaos.simulation import Simulation
from controlplane.replication import Role
from controlplane.replication.guard import Outcome, Timing
from controlplane.replication.tail import Add, Cut, Entry, Meta, Reset, Trim

LAN = Timing(0.15, 0.3, 0.03)


def calm(
    nodes: int = 3, *, off: frozenset[str] = frozenset(), timing: Timing = LAN, **conditions: object
) -> Simulation:
    """A region with fast links and disks, without faults and without load."""
    schedule = make_schedule(7, nodes=nodes, profile="calm")
    calmer = replace(
        schedule.conditions,
        timing=timing,
        delay_s=0.001,
        sync_s=(0.0002, 0.0005),
        retry_s=0.2,
        link_dead_s=100.0,
        trim_entries=10**9,
    )
    calmer = replace(calmer, **conditions)  # type: ignore[arg-type]
    simulation = Simulation(replace(schedule, conditions=calmer, seconds=6.0), off=off)
    simulation.schedule = replace(simulation.schedule, seconds=-100.0)  # No client of its own.
    return simulation


def node(simulation: Simulation, name: str) -> Node:
    running = simulation.nodes[name]
    assert running is not None
    return running


def elect(simulation: Simulation, name: str) -> None:
    one = node(simulation, name)
    one.guard._now = one.clock.now()
    one.call(lambda: one.guard._campaign(forced=True))
    one.pump()


def propose(simulation: Simulation, name: str, count: int, answers: list[Outcome]) -> None:
    one = node(simulation, name)
    for _ in range(count):
        simulation._numbers += 1
        payload = write(simulation._numbers, 1, PUT, simulation._numbers, 0, 0)
        one.call(one.guard.propose, payload, lambda outcome, _: answers.append(outcome))
    one.pump()


def stale_acks(off: frozenset[str]) -> list[Outcome]:
    """Five nodes: an ack of the leader's first term arrives in its second, for entries that were replaced since."""
    simulation = calm(5, off=off, timing=Timing(100.0, 200.0, 0.05))
    leader, follower, rival, helper, other = simulation.names
    answers: list[Outcome] = []
    between = [link for link in simulation.network.links if leader in link and set(link) & {rival, helper, other}]
    simulation.at(0.8, elect, simulation, leader)
    # Only `follower` gets eight entries, and its acks travel for 1.6 s.
    simulation.at(1.5, simulation.network.cut, between, 0.75)
    simulation.at(1.5, simulation.network.slow.__setitem__, (follower, leader), 1.6)
    simulation.at(1.55, propose, simulation, leader, 8, [])
    simulation.at(1.7, simulation.network.slow.__setitem__, (follower, leader), 0.0)
    # The rival leads meanwhile and replaces them everywhere; then the first leader is elected again.
    simulation.at(1.95, elect, simulation, rival)
    simulation.at(2.1, propose, simulation, rival, 1, [])
    simulation.at(2.5, simulation.network.cut, touching(simulation, rival), 1.5)
    simulation.at(2.95, elect, simulation, leader)
    # What it writes now reaches `helper` alone: two disks of five.
    simulation.at(3.0, simulation.network.cut, [(leader, follower), (leader, other)], 2.0)
    simulation.at(3.02, propose, simulation, leader, 3, answers)
    simulation.run_until(3.6)
    assert node(simulation, leader).role is Role.LEADER
    return answers


def test_b2_an_ack_of_an_earlier_term_does_not_commit() -> None:
    assert stale_acks(frozenset()) == []
    with pytest.raises(Violation, match="COMMIT_WITHOUT_MAJORITY"):
        stale_acks(frozenset({"B2"}))


def divergent_rejoin(off: frozenset[str]) -> tuple[int, int]:
    """A leader is cut off with many entries of its own; return commits of the region and of that node after healing."""
    bounds = replace(make_schedule(7, nodes=3).conditions.bounds, append_bytes_max=1500, appends_in_flight_max=16)
    simulation = calm(off=off, bounds=bounds, link_dead_s=0.5)
    simulation.run_until(1.5)
    old = simulation.leader()
    simulation.network.cut(touching(simulation, old), 2.0)
    propose(simulation, old, 300, [])
    simulation.run_until(2.2)
    new = next(n.name for n in simulation.running_nodes() if n.role is Role.LEADER and n.name != old)
    propose(simulation, new, 300, [])
    simulation.run_until(5.5)
    return node(simulation, new).guard.commit, node(simulation, old).guard.commit


def test_b4_a_node_with_a_long_divergent_tail_catches_up() -> None:
    region, rejoined = divergent_rejoin(frozenset())
    assert region == rejoined > 300
    region, rejoined = divergent_rejoin(frozenset({"B4"}))
    assert rejoined < 10
    assert region > 300


def failover_s(kind: str, off: frozenset[str], trials: int) -> list[float]:
    times = []
    for trial in range(trials):
        simulation = calm(off=off)
        simulation.random.seed(trial)
        simulation.run_until(1.5 + trial / 50)
        old = simulation.leader()
        simulation.crash(old, silent=kind == "silent")
        died = simulation.now()
        while all(n.role is not Role.LEADER for n in simulation.running_nodes()):
            simulation.run_until(simulation.now() + 0.002)
            assert simulation.now() < died + 5
        times.append(simulation.now() - died)
    return sorted(times)


def test_b15_a_dead_leader_is_replaced_at_once() -> None:
    with_rule = failover_s("dead", frozenset(), 9)
    without = failover_s("dead", frozenset({"B15"}), 9)
    assert with_rule[4] < 0.06
    assert without[4] > 0.12


def test_b15_a_silent_leader_is_replaced_after_the_election_timeout() -> None:
    assert failover_s("silent", frozenset(), 9)[4] < 0.3


def test_b13_a_returning_node_does_not_depose_the_leader() -> None:
    def elections(off: frozenset[str]) -> int:
        simulation = calm(off=off)
        simulation.run_until(1.5)
        away = next(name for name in simulation.names if name != simulation.leader())
        before = simulation.oracle.counts["elections"]
        simulation.network.cut(touching(simulation, away), 5.0)
        simulation.run_until(9.0)
        return simulation.oracle.counts["elections"] - before

    assert elections(frozenset()) == 0
    assert elections(frozenset({"B13"})) > 0


def test_b14_a_cut_off_leader_answers_no_read() -> None:
    simulation = calm()
    simulation.run_until(1.5)
    old = node(simulation, simulation.leader())
    simulation.network.cut(touching(simulation, old.name), 5.0)
    answers: list[bool] = []
    old.call(old.guard.read, answers.append, old.clock.now())
    old.pump()
    simulation.run_until(3.0)
    assert answers == [False]
    assert old.role is not Role.LEADER
    assert old.guard.status(old.clock.now()).fresh_s > 1.0


def test_b17_a_snapshot_that_takes_long_does_not_depose_the_leader() -> None:
    simulation = calm(snapshot_s=(2.0, 2.5))
    simulation.conditions = replace(simulation.conditions, trim_entries=20, keep_entries=0)
    simulation.run_until(1.5)
    leader = simulation.leader()
    away = next(name for name in simulation.names if name != leader)
    simulation.crash(away)
    for _ in range(10):
        propose(simulation, leader, 10, [])
        simulation.run_until(simulation.now() + 0.2)
    elections = simulation.oracle.counts["elections"]
    simulation.start(away)
    simulation.run_until(simulation.now() + 8)
    assert simulation.oracle.counts["snapshots installed"] == 1
    assert simulation.oracle.counts["elections"] == elections
    assert node(simulation, away).guard.applied == node(simulation, leader).guard.applied


def test_transfer_moves_leadership_within_a_few_beats() -> None:
    for target_of in (lambda names: names[0], lambda _: None):
        simulation = calm()
        simulation.run_until(1.5)
        old = node(simulation, simulation.leader())
        others = [name for name in simulation.names if name != old.name]
        chosen = old.guard.transfer(target_of(others), old.clock.now())
        old.pump()
        simulation.run_until(simulation.now() + 0.1)
        assert chosen in others
        assert simulation.leader() == chosen


def test_a_replaced_disk_joins_and_then_carries_a_majority() -> None:
    simulation = calm()
    simulation.run_until(1.5)
    leader = simulation.leader()
    lost = next(name for name in simulation.names if name != leader)
    answers: list[Outcome] = []
    propose(simulation, leader, 20, answers)
    simulation.run_until(2.0)
    simulation.crash(lost)
    simulation.disks[lost] = Disk(1)
    simulation.start(lost)
    simulation.run_until(4.0)
    assert simulation.oracle.counts["learners joined"] == 1
    # The leader had counted the lost disk, so another may lead now; what is left needs the new disk's vote and acks.
    simulation.crash(next(name for name in simulation.names if name not in (lost, simulation.leader())))
    propose(simulation, simulation.leader(), 5, answers)
    simulation.run_until(5.0)
    assert answers == [Outcome.APPLIED] * 25


def test_a_learner_alone_with_one_voter_forms_no_majority() -> None:
    simulation = calm()
    simulation.run_until(1.5)
    leader = simulation.leader()
    lost, kept = (name for name in simulation.names if name != leader)
    simulation.crash(kept)
    simulation.crash(lost)
    simulation.disks[lost] = Disk(1)
    simulation.start(lost)
    simulation.run_until(3.0)
    answers: list[Outcome] = []
    for one in simulation.running_nodes():
        propose(simulation, one.name, 1, answers)
    simulation.run_until(6.0)
    assert Outcome.APPLIED not in answers
    assert simulation.disks[lost].learner


def test_a_crash_keeps_a_prefix_of_the_journal() -> None:
    for seed in range(40):
        disk = Disk()
        ops = [Meta(1, "a"), *(Add(k, 1, b"") for k in range(1, 6)), Cut(4), Add(4, 2, b""), Trim(2, 1)]
        for seq, op in enumerate(ops, 1):
            disk.sink(seq, op)
        disk.sync(3)
        disk.crash(Random(seed), 6, power=True)
        kept = disk.recovered()
        indexes = [entry.index for entry in kept.entries]
        assert indexes == list(range(kept.boundary_index + 1, kept.boundary_index + 1 + len(indexes)))
        assert (kept.term, kept.boundary_index + len(indexes) >= 2) == (1, True)
    disk.sink(99, Reset(9, 3))
    disk.sync(99)
    assert disk.recovered().entries == ()
    assert disk.holds(Entry(9, 3, b""))
