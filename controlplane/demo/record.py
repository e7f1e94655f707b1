"""What happened in the demonstration, and whether it may have. Pure: times are inputs, in seconds on one clock.

The rules that make a run red:

1. A write that was acknowledged is missing, or counted twice, when everything is read back.
2. A call of an agent failed, the killed leader's included: nobody may notice a change of leader.
3. An agent acted after it had learned that it is stopped.
4. Replicas at the same revision differ, or did not come level.
5. A fence did not grow from one holder to the next, or a stale one was accepted.
6. What was to be shown did not happen: no change of leader, no kill, too few writes, or no end.
"""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

WRITES_MIN = 200


@dataclass(slots=True)
class Record:
    """Notes taken while the demonstration runs."""

    agents: int
    counted: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Acknowledged increments, by workflow and agent."""
    created: set[str] = field(default_factory=set)
    """Acknowledged creations."""
    calls: int = 0
    failures: list[str] = field(default_factory=list)
    acts_while_stopped: int = 0
    stops: int = 0
    fences: list[tuple[int, int]] = field(default_factory=list)
    stale_fence_refused: bool | None = None
    leaders: list[str] = field(default_factory=list)
    killed_s: float | None = None
    first_write_s: float | None = None
    stalls_s: list[float] = field(default_factory=list)
    """How long each write took that was under way, or began, while there was no leader."""
    kill_seen_s: list[float] = field(default_factory=list)
    lost: int | None = None
    doubled: int | None = None
    replicas: dict[str, tuple[int, str]] = field(default_factory=dict)
    broken_off: str | None = None
    """Why the story did not come to its end."""

    @property
    def acknowledged(self) -> int:
        """Writes of agents that the region confirmed."""
        return self.counted.total() + len(self.created)

    def wrote(self, began_s: float, ended_s: float) -> None:
        """Note when an acknowledged write began and ended, for the failover's figures."""
        if self.killed_s is None or ended_s < self.killed_s:
            return
        self.stalls_s.append(ended_s - began_s)
        if began_s >= self.killed_s and (self.first_write_s is None or ended_s < self.first_write_s):
            self.first_write_s = ended_s

    def led_by(self, leader: str) -> None:
        """Note who leads; nobody, while there is none, does not count."""
        if leader and (not self.leaders or self.leaders[-1] != leader):
            self.leaders.append(leader)

    def read_back(self, counts: dict[str, dict[str, int]], present: set[str]) -> None:
        """Compare what is there with what was acknowledged."""
        differences = [
            counts.get(workflow, {}).get(agent, 0) - acknowledged
            for (workflow, agent), acknowledged in self.counted.items()
        ]
        self.lost = sum(-each for each in differences if each < 0) + len(self.created - present)
        self.doubled = sum(each for each in differences if each > 0)

    @property
    def replicas_equal(self) -> bool:
        """Whether all replicas that were asked stand at one revision with one hash."""
        return len(self.replicas) > 1 and len(set(self.replicas.values())) == 1

    @property
    def fences_grow(self) -> bool:
        """Whether each holder's fence was higher than the one before."""
        return len(self.fences) > 1 and all(a < b for a, b in zip(self.fences, self.fences[1:], strict=False))

    @property
    def failover_ms(self) -> float | None:
        """From the kill to the first write that began after it and was acknowledged."""
        if self.killed_s is None or self.first_write_s is None:
            return None
        return 1e3 * (self.first_write_s - self.killed_s)

    def problems(self) -> list[str]:
        """Why this run is red; nothing if it is green."""
        rules = {
            f"broken off: {self.broken_off}": self.broken_off is not None,
            f"{self.lost} acknowledged writes are lost": self.lost != 0,
            f"{self.doubled} writes were applied twice": self.doubled != 0,
            f"{len(self.failures)} calls failed, the first one with {self.failures[:1]}": bool(self.failures),
            f"{self.acts_while_stopped} acts of stopped agents": self.acts_while_stopped > 0,
            "replicas differ": not self.replicas_equal,
            f"fences did not grow: {self.fences}": not self.fences_grow,
            "a stale fence was not refused": self.stale_fence_refused is not True,
            "no write was acknowledged after the leader was killed": self.first_write_s is None,
            "the leader did not change": len(self.leaders) < 2,
            "no agent was stopped by the kill switch": self.stops < self.agents,
            f"only {self.acknowledged} writes, fewer than {WRITES_MIN}": self.acknowledged < WRITES_MIN,
        }
        return [text for text, broken in rules.items() if broken]

    def report(self, duration_s: float) -> dict[str, Any]:
        """The figures, for the file and the table."""
        problems = self.problems()
        return {
            "ok": not problems,
            "problems": problems,
            "agents": self.agents,
            "writes_acknowledged": self.acknowledged,
            "writes_lost": self.lost,
            "writes_applied_twice": self.doubled,
            "agent_calls": self.calls,
            "agent_calls_failed": len(self.failures),
            "failover_ms": rounded(self.failover_ms),
            "agent_stall_ms_max": rounded(1e3 * max(self.stalls_s)) if self.stalls_s else None,
            "leader_changes": max(0, len(self.leaders) - 1),
            "leaders": self.leaders,
            "kill_propagation_ms_p50": quantile_ms(self.kill_seen_s, 0.50),
            "kill_propagation_ms_p99": quantile_ms(self.kill_seen_s, 0.99),
            "kill_propagation_samples": len(self.kill_seen_s),
            "acts_while_stopped": self.acts_while_stopped,
            "elections_won": len(self.fences),
            "elections_fence_monotonic": self.fences_grow,
            "stale_fence_refused": self.stale_fence_refused,
            "replicas_equal": self.replicas_equal,
            "replicas": {node: {"revision": at, "hash": seen} for node, (at, seen) in self.replicas.items()},
            "duration_s": rounded(duration_s),
        }


def quantile_ms(values_s: list[float], q: float) -> float | None:
    """A quantile of times in seconds, in milliseconds; None for fewer than two."""
    if len(values_s) < 2:
        return None
    return rounded(1e3 * statistics.quantiles(values_s, n=100, method="inclusive")[round(100 * q) - 1])


def rounded(value: float | None) -> float | None:
    """To one decimal place."""
    return None if value is None else round(value, 1)
