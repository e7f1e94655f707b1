"""The rules of the product: functions of a transaction or a view, and nothing else.

A writing function takes a `Tx`, a reading one a `Reader`; both take the request message and return the reply message
without its header. They check the request's content (`checks`), raise the eight errors, and do no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from controlplane.features import (
    erasure,
    federation,
    flags,
    glass,
    leases,
    moves,
    partitions,
    restorations,
    switches,
    workflows,
)
from controlplane.kernel.transaction import Kind
from controlplane.v1 import api_pb2 as api


@dataclass(frozen=True, slots=True)
class Method:
    """A call: the message that asks, the function that answers, and the kind whose default partition it means.

    `run` is `fn(tx, request) -> reply` for writes and `fn(reader, request) -> reply` for reads. `Any` because the
    table holds functions of many request types; `request` says which.
    """

    request: type[Message]
    run: Callable[[Any, Any], Message]
    kind: Kind[Any]


WRITES: Mapping[str, Method] = {
    "Campaign": Method(api.CampaignRequest, leases.campaign, leases.ELECTION),
    "Renew": Method(api.RenewRequest, leases.renew, leases.ELECTION),
    "Resign": Method(api.ResignRequest, leases.resign, leases.ELECTION),
    "CreateWorkflow": Method(api.CreateWorkflowRequest, workflows.create, workflows.WORKFLOW),
    "CompareAndSwapWorkflow": Method(api.CompareAndSwapWorkflowRequest, workflows.compare_and_swap, workflows.WORKFLOW),
    "SetFlag": Method(api.SetFlagRequest, flags.set_flag, flags.FLAG),
    "RestoreFlag": Method(api.RestoreFlagRequest, flags.restore, flags.FLAG),
    "EngageSwitch": Method(api.EngageSwitchRequest, switches.engage, switches.SWITCH),
    "ReleaseSwitch": Method(api.ReleaseSwitchRequest, switches.release, switches.SWITCH),
    "ExceptSwitch": Method(api.ExceptSwitchRequest, switches.make_exception, switches.SWITCH),
    "EraseRecord": Method(api.EraseRecordRequest, erasure.erase, workflows.WORKFLOW),
}

READS: Mapping[str, Method] = {
    "GetElection": Method(api.GetElectionRequest, leases.get, leases.ELECTION),
    "ListElections": Method(api.ListElectionsRequest, leases.list_elections, leases.ELECTION),
    "GetWorkflow": Method(api.GetWorkflowRequest, workflows.get, workflows.WORKFLOW),
    "ListWorkflows": Method(api.ListWorkflowsRequest, workflows.list_workflows, workflows.WORKFLOW),
    "GetWorkflowHistory": Method(api.GetWorkflowHistoryRequest, workflows.history, workflows.WORKFLOW),
    "GetFlag": Method(api.GetFlagRequest, flags.get, flags.FLAG),
    "ListFlags": Method(api.ListFlagsRequest, flags.list_flags, flags.FLAG),
    "GetFlagHistory": Method(api.GetFlagHistoryRequest, flags.history, flags.FLAG),
    "GetAgentConfig": Method(api.GetAgentConfigRequest, flags.get_agent_config, flags.FLAG),
    "ListSwitches": Method(api.ListSwitchesRequest, switches.list_switches, switches.SWITCH),
    "CheckSwitches": Method(api.CheckSwitchesRequest, switches.check, switches.SWITCH),
}

KINDS: Mapping[str, Kind[Any]] = {
    kind.name: kind
    for kind in (
        flags.FLAG,
        switches.SWITCH,
        switches.STOP,
        switches.EXCEPTION,
        workflows.WORKFLOW,
        leases.ELECTION,
        partitions.PARTITION,
        partitions.RETENTION,
        restorations.RESTORATION,
        moves.MOVE,
        federation.CURSOR,
        federation.FOREIGN,
        federation.GRANT,
        federation.PASSAGE,
        glass.GLASS,
        erasure.ERASURE,
        erasure.ERASED,
    )
}
