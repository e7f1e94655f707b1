"""What clients do to a region while it is broken, and what must hold for everything they saw.

| workload | asks | holds the answers against |
|---|---|---|
| `cas` | workflows: create, compare and swap, read, also AT_LEAST and LOCAL | one register per workflow |
| `election` | campaign, renew, resign, act under a fence, oversleep | a lease; fences that never go back |
| `flags` | set, set on condition, restore, read, evaluate, look at mirrors | a register per flag; a mirror's bound |
| `kill` | engage, release, check at every node, ask mirrors all the time | a switch per scope; a mirror's bound |
| `watch` | watches at every node that break and resume | the event log; what was acknowledged |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from chaos.real.workloads.base import Workload
from chaos.real.workloads.cas import Cas
from chaos.real.workloads.election import Elections
from chaos.real.workloads.flags import Flags
from chaos.real.workloads.kill import Kills
from chaos.real.workloads.watch import Watches

WORKLOADS: Final[Mapping[str, type[Workload]]] = {each.name: each for each in (Cas, Elections, Flags, Kills, Watches)}
"""Every workload by its name."""

__all__ = ["WORKLOADS", "Workload"]
