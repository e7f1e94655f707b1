"""The SDK: what an agent imports.

`ControlPlane` is the asyncio client, `controlplane.sdk.sync.ControlPlane` the same for threads, notebooks and forked
workers. Requests fail with one of the eight errors; the SDK itself adds ConflictError, MirrorStale, Stopped,
NotElected and LeaseLost.
"""

from controlplane.errors import (
    Compacted,
    Contended,
    ControlPlaneError,
    Denied,
    Invalid,
    NotFound,
    OutcomeUnknown,
    Refused,
    Unavailable,
)
from controlplane.sdk.calls import LINEARIZABLE, LOCAL, Consistency, ReadOptions, WriteOptions, at_least
from controlplane.sdk.client import ControlPlane
from controlplane.sdk.codec import JSON, RAW, Codec
from controlplane.sdk.election import Election, Lease
from controlplane.sdk.exceptions import (
    ConflictError,
    LeaseLost,
    MirrorStale,
    NotElected,
    SdkError,
    Stopped,
)
from controlplane.sdk.mirror import AgentConfig, Mirror
from controlplane.v1.api_pb2 import Change, ElectionView, Fence, Region, Subject, SwitchView
from controlplane.v1.records_pb2 import (
    SCOPE_AGENT_TYPE,
    SCOPE_ENVIRONMENT,
    SCOPE_REGION,
    SCOPE_TENANT,
    SCOPE_TOOL,
    SCOPE_WORKFLOW,
    Flag,
    FlagType,
    FlagValue,
    Scope,
    Variant,
)

__all__ = [
    "JSON",
    "LINEARIZABLE",
    "LOCAL",
    "RAW",
    "SCOPE_AGENT_TYPE",
    "SCOPE_ENVIRONMENT",
    "SCOPE_REGION",
    "SCOPE_TENANT",
    "SCOPE_TOOL",
    "SCOPE_WORKFLOW",
    "AgentConfig",
    "Change",
    "Codec",
    "Compacted",
    "ConflictError",
    "Consistency",
    "Contended",
    "ControlPlane",
    "ControlPlaneError",
    "Denied",
    "Election",
    "ElectionView",
    "Fence",
    "Flag",
    "FlagType",
    "FlagValue",
    "Invalid",
    "Lease",
    "LeaseLost",
    "Mirror",
    "MirrorStale",
    "NotElected",
    "NotFound",
    "OutcomeUnknown",
    "ReadOptions",
    "Refused",
    "Region",
    "Scope",
    "SdkError",
    "Stopped",
    "Subject",
    "SwitchView",
    "Unavailable",
    "Variant",
    "WriteOptions",
    "at_least",
]
