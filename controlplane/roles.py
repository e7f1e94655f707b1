"""Who may call what: one table, call by role by environment. What it does not allow is denied.

The table speaks of the caller's own environment. That a caller only reaches partitions *of* that environment is
checked where the partition is looked up, in the node.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from controlplane.identity import ENVIRONMENTS, EVERY_ENVIRONMENT

Cells = Mapping[str, frozenset[str]]
"""For one call: role → environments in which it may be made."""

_EVERYWHERE = frozenset(ENVIRONMENTS)

_OPEN: Cells = dict.fromkeys(("agent", "operator", "approver", "reviewer"), _EVERYWHERE)
_WORK: Cells = dict.fromkeys(("agent", "operator"), _EVERYWHERE)
_AUDIT: Cells = dict.fromkeys(("operator", "approver", "reviewer"), _EVERYWHERE)
_RULE: Cells = {"operator": _EVERYWHERE}
# Touches every environment of the region, so it takes more than an operator of a lesser one.
_REGION_WIDE: Cells = {"operator": frozenset({"prod"})}
# Cannot be undone, so in production it is not for those who run what is erased.
_ERASE: Cells = {"operator": _EVERYWHERE - {"prod"}, "approver": _EVERYWHERE}
# An envelope: each operation in it is authorized by itself. Peers open it to hand on what others asked of them.
_ENVELOPE: Cells = {**_OPEN, "peer": frozenset({EVERY_ENVIRONMENT, *ENVIRONMENTS})}

AGENTS: Final[Mapping[str, Cells]] = {
    "GetRegion": _OPEN,
    "WatchRegion": _OPEN,
    "Campaign": _WORK,
    "Renew": _WORK,
    "Resign": _WORK,
    "GetElection": _OPEN,
    "ListElections": _OPEN,
    "CreateWorkflow": _WORK,
    "GetWorkflow": _OPEN,
    "CompareAndSwapWorkflow": _WORK,
    "ListWorkflows": _OPEN,
    "GetWorkflowHistory": _OPEN,
    "GetAgentConfig": _OPEN,
    "GetFlag": _OPEN,
    "ListFlags": _OPEN,
    "ListSwitches": _OPEN,
    "CheckSwitches": _OPEN,
    "Watch": _OPEN,
    "GetOutcome": _OPEN,
    "Session": _ENVELOPE,
}
"""The service for agents."""

OPERATORS: Final[Mapping[str, Cells]] = {
    "SetFlag": _RULE,
    "RestoreFlag": _RULE,
    "GetFlagHistory": _AUDIT,
    "EngageSwitch": _RULE,
    "ReleaseSwitch": _RULE,
    "ExceptSwitch": _RULE,
    "GetStatus": _AUDIT,
    "TransferRegion": _REGION_WIDE,
    "ListEvents": _AUDIT,
    "GetOutline": _AUDIT,
    "ListBreakGlass": _AUDIT,
    "EraseRecord": _ERASE,
    "ListPartitions": _AUDIT,
    "MovePartition": _RULE,
    "ListQuarantine": _AUDIT,
}
"""The service for the people who run the region."""

DRILLS: Final[Mapping[str, Cells]] = {
    "InjectFault": _REGION_WIDE,
    "HealFaults": _REGION_WIDE,
    "ListFaults": _RULE,
}
"""The service for drills."""

REVIEWERS: Final[Mapping[str, Cells]] = {
    "GetCheckpoint": _AUDIT,
    "ReadLedger": _AUDIT,
    "ReadNodes": _AUDIT,
    "ScanDisk": _AUDIT,
}
"""The service for reviewers. What it shows names nobody, and covers all environments of the region."""

NODES: Final[Mapping[str, Cells]] = {"NotePassage": {"peer": frozenset({EVERY_ENVIRONMENT})}}
"""What a node asks of its leader on its own account, inside a session and nowhere else."""

TABLE: Final[Mapping[str, Cells]] = {**AGENTS, **OPERATORS, **DRILLS, **REVIEWERS, **NODES}

REGION_WIDE: Final = frozenset({"TransferRegion", "InjectFault", "HealFaults"})
"""Calls that a region's administrators, named in its file, may make from any environment."""


def allowed(method: str, role: str, environment: str) -> bool:
    """Whether a caller with `role` may call `method` from `environment`; False for anything unknown."""
    return environment in TABLE.get(method, {}).get(role, ())
