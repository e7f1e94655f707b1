"""Sequences that chance hardly finds, each for one rule of the guard, and what a region owes while nothing is wrong.

Each is a strike as in `sim_faults`, drawn again and again by a family of schedules (`schedule.FAMILIES`). They use
what an operator or the network could do, and nothing else: links, crashes, load, transfer of leadership. The oracle
judges them as it judges every run. Only the family "steady" adds judgements of its own, on availability:

- NEEDLESS_ELECTION: a follower that was cut off and comes back does not cost the region its leader.
- SLOW_FAILOVER: when a leader's process dies, another leads before any timer could have run out, and when it falls
  silent soon after.
- SLOW_WRITE: an entry leaves when it is proposed.

And the family "long-entries": a large entry on slow links costs no election, unless it takes longer than a leader leads
without an answer; then another leads soon (NEEDLESS_ELECTION, SLOW_FAILOVER).
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from chaos.schedule import Fault
from chaos.sim_faults import Strike, between, touching
from chaos.sim_oracle import Violation
from controlplane.replication import Role

if TYPE_CHECKING:
    from chaos.sim_node import Node
    from chaos.simulation import Simulation

_LOOK_S = 0.01
# From a strike of "steady" on, until this long after it ended, nothing is expected of writes.
_SETTLED_S = 1.5
SLOW_WRITE_S = 0.020


def _when(
    s: Simulation, condition: Callable[[], object], then: Callable[[], None], until: float, step_s: float = _LOOK_S
) -> None:
    """Call `then` as soon as `condition` holds; give up at `until`."""
    if condition():
        then()
    elif s.now() < until:
        s.at(step_s, _when, s, condition, then, until, step_s)


def _leads(s: Simulation, name: str) -> bool:
    node = s.nodes[name]
    return node is not None and node.role is Role.LEADER


def _leader_but(s: Simulation, *names: str) -> Node | None:
    return next((n for n in s.running_nodes() if n.role is Role.LEADER and n.name not in names), None)


# Safety.


def _stale_acks(s: Simulation, fault: Fault, random: Random) -> bool:
    """An ack of a leader's earlier term reaches it in a later one, for entries that were replaced meanwhile (B2)."""
    leader = s.leader()
    if not _leads(s, leader):
        return False
    follower, helper, *others = random.sample([name for name in s.names if name != leader], len(s.names) - 1)
    end = s.now() + random.uniform(2.0, 3.5)
    # Only the follower gets these entries, and what it says to them travels until `end`.
    s.network.cut(between(s, [leader], [helper, *others]), random.uniform(0.6, 0.9))
    s.slow_link((follower, leader), end - s.now(), 0.3)
    s.at(0.05, s.burst, leader, random.randint(30, 60))

    def replaced() -> bool:
        old, new = s.nodes[leader], _leader_but(s, leader)
        return bool(old and new and new.guard.ready and old.role is Role.FOLLOWER and old.tail.holds(*_last(new)))

    def write_to_one() -> None:
        # What it writes now reaches the helper alone.
        s.network.cut([(leader, name) for name in (follower, *others)], 0.5)
        s.burst(leader, 3)

    def hand_back() -> None:
        s.transfer(leader)
        s.at(max(0.0, end - s.now() - random.uniform(0.02, 0.2)), write_to_one)

    s.at(0.5, _when, s, replaced, hand_back, end)
    return True


def _last(node: Node) -> tuple[int, int]:
    return node.tail.last_index, node.tail.last_term


def _left_behind(s: Simulation, fault: Fault, random: Random) -> bool:
    """A follower falls behind what the others still have in their logs, so that a snapshot is sent (B5)."""
    leader = s.leader()
    if not _leads(s, leader):
        return False
    away = random.choice([name for name in s.names if name != leader])
    s.network.cut(touching(s, away), fault.for_s / 4 + 0.5)
    for k in range(8):
        s.at(k * 0.05, s.burst, leader, 6)
        s.at(fault.for_s / 4 + 0.5 + k * 0.2, s.burst, leader, 3)
    return True


def _crash_two(s: Simulation, fault: Fault, random: Random) -> None:
    """Of five only three are left: every vote is needed (B12)."""
    leader = s.leader()
    for name in (leader, random.choice([name for name in s.names if name != leader])):
        s.crash(name)
        s.at(random.uniform(0.5, 2.0), s.start, name)


def _old_answers(s: Simulation, fault: Fault, random: Random) -> bool:
    """The leader's answer to a process reaches the next process of that node, which has asked as many times (nonce)."""
    leader = s.leader()
    if not _leads(s, leader):
        return False
    asker = random.choice([name for name in s.names if name != leader])
    back, asks = (leader, asker), random.randint(1, 3)
    late = random.uniform(1.1, 1.6)

    def ask() -> None:
        for k in range(asks):
            s.at(k * 0.002, s.read_at, asker)

    def ask_first() -> None:
        # The answers travel for `late`, and the one who asked is gone before they come.
        s.slow_link(back, late, 0.05)
        ask()
        s.at(0.06, s.crash, asker)
        s.at(0.12, s.start, asker)
        s.at(late - 0.25, s.slow_link, back, 1.0, 0.6)
        for k in range(20):
            s.at(0.2 + k * (late - 0.2) / 20, s.burst, leader, 1)
        s.at(late - 0.02, s.network.cut, [(asker, leader)], 0.4)
        s.at(late - random.uniform(0.001, 0.015), ask)

    s.crash(asker)
    s.at(0.05, s.start, asker)
    s.at(0.5, _when, s, lambda: _follows(s, asker, leader), ask_first, s.now() + 2)
    return True


def _read_at_once(s: Simulation, fault: Fault, random: Random) -> bool:
    """A leader dies right after it answered writes, and its successor is asked for reads at once (readterm)."""
    leader = s.leader()
    if not _leads(s, leader):
        return False
    s.burst(leader, 5)
    before = s.oracle.max_commit

    def die() -> None:
        s.crash(leader)
        s.at(1.0, s.start, leader)
        for k in range(100):
            for name in s.names:
                s.at(k * 0.005, s.read_at, name)

    _when(s, lambda: s.oracle.max_commit > before, die, s.now() + 1, step_s=0.0005)
    return True


def _follows(s: Simulation, name: str, leader: str) -> bool:
    node = s.nodes[name]
    return node is not None and node.guard.leader == leader and _leads(s, leader)


def _lost_disk(s: Simulation, fault: Fault, random: Random) -> bool:
    """A disk is replaced that the leader counts for entries which are not committed yet (recount)."""
    leader = s.leader()
    if not _leads(s, leader) or not s.may_lose_a_disk():
        return False
    lost, *others = random.sample([name for name in s.names if name != leader], len(s.names) - 1)
    for name in others:
        s.slow_one_disk(name, random.uniform(1.0, 2.0), 8.0)
    s.at(0.02, s.burst, leader, random.randint(80, 160))

    def counted() -> bool:
        # The leader's log is on that disk, and on no other; and no other disk was lost meanwhile.
        leading, losing = s.nodes[leader], s.nodes[lost]
        if not (leading and losing and s.may_lose_a_disk()):
            return False
        return losing.tail.durable == leading.tail.last_index > leading.tail.commit + 20

    def joined() -> bool:
        return not s.disks[lost].learner

    def lose() -> None:
        s.replace(lost, silent=False, after=0.05)
        _when(s, joined, lambda: s.network.cut(touching(s, lost), 3.0), s.now() + 6, step_s=0.001)

    _when(s, counted, lose, s.now() + 5)
    return True


# Availability: the family "steady".


def _settles(s: Simulation, after: float) -> None:
    s.unsettled_until = max(s.unsettled_until, s.now() + after)


def _follower_away(s: Simulation, fault: Fault, random: Random) -> bool:
    leader = s.nodes[s.leader()]
    if leader is None or leader.role is not Role.LEADER:
        return False
    term = leader.tail.term
    away = random.choice([name for name in s.names if name != leader.name])
    s.network.cut(touching(s, away), fault.for_s)
    _settles(s, fault.for_s + _SETTLED_S)

    def still_leads() -> None:
        if not s.runs(leader) or leader.role is not Role.LEADER or leader.tail.term != term:
            raise Violation(f"NEEDLESS_ELECTION {away} came back, and {leader.name} no longer leads term {term}")

    s.at(fault.for_s + _SETTLED_S, still_leads)
    return True


def _leader_dies(s: Simulation, fault: Fault, random: Random) -> bool:
    leader = s.leader()
    if not _leads(s, leader):
        return False
    s.crash(leader)
    s.at(random.uniform(1.0, 2.0), s.start, leader)
    _settles(s, 2.0 + _SETTLED_S)
    # Two followers may stand at the same moment; then one of a few failovers waits for a timer.
    s.at(0.75 * s.conditions.timing.election_min_s, lambda: s.failovers.append(_leader_but(s) is not None))
    return True


def _leader_away(s: Simulation, fault: Fault, random: Random) -> bool:
    leader = s.leader()
    if not _leads(s, leader):
        return False
    s.network.cut(touching(s, leader), fault.for_s)
    _settles(s, fault.for_s + _SETTLED_S)

    def replaced() -> None:
        if fault.for_s > 1.5 and _leader_but(s, leader) is None:
            raise Violation(f"SLOW_FAILOVER {leader} was cut off 1.5 s ago, and nobody else leads")

    s.at(1.5, replaced)
    return True


# Availability: the family "long-entries".


def _long_entry(s: Simulation, fault: Fault, random: Random) -> bool:
    """An entry is on its way to every follower for longer than they wait for a silent leader (parts)."""
    leader = s.nodes[s.leader()]
    if leader is None or leader.role is not Role.LEADER:
        return False
    term, for_s = leader.tail.term, random.uniform(0.5, 0.8) * s.conditions.timing.fallback_s
    _occupy(s, leader, for_s)

    def still_leads() -> None:
        if leader.role is not Role.LEADER or leader.tail.term != term:
            raise Violation(f"NEEDLESS_ELECTION a large entry took {for_s:.2f} s, and {leader.name} leads no longer")

    if s.schedule.profile == "long-entries":
        s.at(for_s + 2 * s.conditions.timing.election_max_s, still_leads)
    return True


def _endless_entry(s: Simulation, fault: Fault, random: Random) -> bool:
    """An entry is on its way for so long that its leader gives up: nobody waits for the rest (patience)."""
    leader, timing = s.nodes[s.leader()], s.conditions.timing
    if leader is None or leader.role is not Role.LEADER:
        return False
    _occupy(s, leader, 4 * timing.fallback_s)

    def replaced() -> None:
        if _leader_but(s, leader.name) is None:
            raise Violation(f"SLOW_FAILOVER {leader.name} was not answered for long, and nobody else leads")

    if s.schedule.profile == "long-entries":
        s.at(timing.fallback_s + 3 * timing.election_max_s, replaced)
    return True


def _occupy(s: Simulation, leader: Node, for_s: float) -> None:
    for name in s.names:
        if name != leader.name:
            s.network.occupy((leader.name, name), leader.tail.term, for_s)


def judge_steady(s: Simulation) -> None:
    """Judge what can only be judged at the end."""
    if len(s.failovers) >= 3 and not any(s.failovers):
        raise Violation(f"SLOW_FAILOVER of {len(s.failovers)} leaders that died none was replaced at once")


FAMILY_STRIKES: dict[str, Strike] = {
    "stale-acks": _stale_acks,
    "left-behind": _left_behind,
    "crash-two": _crash_two,
    "old-answers": _old_answers,
    "read-at-once": _read_at_once,
    "lost-disk": _lost_disk,
    "follower-away": _follower_away,
    "leader-dies": _leader_dies,
    "leader-away": _leader_away,
    "long-entry": _long_entry,
    "endless-entry": _endless_entry,
}
"""One for each kind that `schedule.FAMILIES` names and `schedule.FAULTS` does not."""
