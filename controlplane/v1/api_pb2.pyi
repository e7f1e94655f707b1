from controlplane.v1 import records_pb2 as _records_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Consistency(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LINEARIZABLE: _ClassVar[Consistency]
    AT_LEAST: _ClassVar[Consistency]
    LOCAL: _ClassVar[Consistency]

class ConfigReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONFIG_REASON_UNSPECIFIED: _ClassVar[ConfigReason]
    STATIC: _ClassVar[ConfigReason]
    TARGETING_MATCH: _ClassVar[ConfigReason]
    DEFAULT: _ClassVar[ConfigReason]
    DISABLED: _ClassVar[ConfigReason]
    ERROR: _ClassVar[ConfigReason]
LINEARIZABLE: Consistency
AT_LEAST: Consistency
LOCAL: Consistency
CONFIG_REASON_UNSPECIFIED: ConfigReason
STATIC: ConfigReason
TARGETING_MATCH: ConfigReason
DEFAULT: ConfigReason
DISABLED: ConfigReason
ERROR: ConfigReason

class Fence(_message.Message):
    __slots__ = ("election", "epoch", "revision")
    ELECTION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    election: str
    epoch: int
    revision: int
    def __init__(self, election: _Optional[str] = ..., epoch: _Optional[int] = ..., revision: _Optional[int] = ...) -> None: ...

class RequestHeader(_message.Message):
    __slots__ = ("partition", "consistency", "revision", "request_id", "since", "epoch", "fence", "reason", "break_glass")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BREAK_GLASS_FIELD_NUMBER: _ClassVar[int]
    partition: str
    consistency: Consistency
    revision: int
    request_id: bytes
    since: int
    epoch: int
    fence: Fence
    reason: str
    break_glass: str
    def __init__(self, partition: _Optional[str] = ..., consistency: _Optional[_Union[Consistency, str]] = ..., revision: _Optional[int] = ..., request_id: _Optional[bytes] = ..., since: _Optional[int] = ..., epoch: _Optional[int] = ..., fence: _Optional[_Union[Fence, _Mapping]] = ..., reason: _Optional[str] = ..., break_glass: _Optional[str] = ...) -> None: ...

class ReplyHeader(_message.Message):
    __slots__ = ("revision", "region", "age_ms", "epoch", "node", "break_glass")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    BREAK_GLASS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    region: str
    age_ms: int
    epoch: int
    node: str
    break_glass: _records_pb2.Reach
    def __init__(self, revision: _Optional[int] = ..., region: _Optional[str] = ..., age_ms: _Optional[int] = ..., epoch: _Optional[int] = ..., node: _Optional[str] = ..., break_glass: _Optional[_Union[_records_pb2.Reach, str]] = ...) -> None: ...

class Meta(_message.Message):
    __slots__ = ("revision", "created", "version", "actor", "action", "reason", "at_ms")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    revision: int
    created: int
    version: int
    actor: str
    action: str
    reason: str
    at_ms: int
    def __init__(self, revision: _Optional[int] = ..., created: _Optional[int] = ..., version: _Optional[int] = ..., actor: _Optional[str] = ..., action: _Optional[str] = ..., reason: _Optional[str] = ..., at_ms: _Optional[int] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("name", "address", "connected", "match", "heard_ms", "state")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    MATCH_FIELD_NUMBER: _ClassVar[int]
    HEARD_MS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    address: str
    connected: bool
    match: int
    heard_ms: int
    state: str
    def __init__(self, name: _Optional[str] = ..., address: _Optional[str] = ..., connected: _Optional[bool] = ..., match: _Optional[int] = ..., heard_ms: _Optional[int] = ..., state: _Optional[str] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("fleet", "name", "jurisdiction", "leader", "leader_address", "term", "leader_age_ms")
    FLEET_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    JURISDICTION_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    LEADER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    LEADER_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    fleet: str
    name: str
    jurisdiction: str
    leader: str
    leader_address: str
    term: int
    leader_age_ms: int
    def __init__(self, fleet: _Optional[str] = ..., name: _Optional[str] = ..., jurisdiction: _Optional[str] = ..., leader: _Optional[str] = ..., leader_address: _Optional[str] = ..., term: _Optional[int] = ..., leader_age_ms: _Optional[int] = ...) -> None: ...

class GetRegionRequest(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ...) -> None: ...

class GetRegionReply(_message.Message):
    __slots__ = ("header", "region")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    region: Region
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., region: _Optional[_Union[Region, _Mapping]] = ...) -> None: ...

class WatchRegionRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchRegionReply(_message.Message):
    __slots__ = ("header", "region")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    region: Region
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., region: _Optional[_Union[Region, _Mapping]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ...) -> None: ...

class GetStatusReply(_message.Message):
    __slots__ = ("header", "region", "node", "role", "commit", "applied", "last", "hash", "members", "records", "live_bytes", "quota_bytes", "watchers", "uptime_ms", "version", "disk_free_bytes", "links", "erasures")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    LIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    WATCHERS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_MS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    ERASURES_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    region: Region
    node: str
    role: str
    commit: int
    applied: int
    last: int
    hash: str
    members: _containers.RepeatedCompositeFieldContainer[Member]
    records: int
    live_bytes: int
    quota_bytes: int
    watchers: int
    uptime_ms: int
    version: str
    disk_free_bytes: int
    links: _containers.RepeatedCompositeFieldContainer[Link]
    erasures: Erasures
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., region: _Optional[_Union[Region, _Mapping]] = ..., node: _Optional[str] = ..., role: _Optional[str] = ..., commit: _Optional[int] = ..., applied: _Optional[int] = ..., last: _Optional[int] = ..., hash: _Optional[str] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., records: _Optional[int] = ..., live_bytes: _Optional[int] = ..., quota_bytes: _Optional[int] = ..., watchers: _Optional[int] = ..., uptime_ms: _Optional[int] = ..., version: _Optional[str] = ..., disk_free_bytes: _Optional[int] = ..., links: _Optional[_Iterable[_Union[Link, _Mapping]]] = ..., erasures: _Optional[_Union[Erasures, _Mapping]] = ...) -> None: ...

class Erasures(_message.Message):
    __slots__ = ("pending", "due", "scrubbed")
    PENDING_FIELD_NUMBER: _ClassVar[int]
    DUE_FIELD_NUMBER: _ClassVar[int]
    SCRUBBED_FIELD_NUMBER: _ClassVar[int]
    pending: int
    due: int
    scrubbed: int
    def __init__(self, pending: _Optional[int] = ..., due: _Optional[int] = ..., scrubbed: _Optional[int] = ...) -> None: ...

class Link(_message.Message):
    __slots__ = ("region", "jurisdiction", "state", "reason", "views", "exported")
    REGION_FIELD_NUMBER: _ClassVar[int]
    JURISDICTION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VIEWS_FIELD_NUMBER: _ClassVar[int]
    EXPORTED_FIELD_NUMBER: _ClassVar[int]
    region: str
    jurisdiction: str
    state: str
    reason: str
    views: _containers.RepeatedCompositeFieldContainer[View]
    exported: _containers.RepeatedScalarFieldContainer[_records_pb2.Reach]
    def __init__(self, region: _Optional[str] = ..., jurisdiction: _Optional[str] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., views: _Optional[_Iterable[_Union[View, _Mapping]]] = ..., exported: _Optional[_Iterable[_Union[_records_pb2.Reach, str]]] = ...) -> None: ...

class View(_message.Message):
    __slots__ = ("reach", "revision", "age_ms", "listing")
    REACH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    LISTING_FIELD_NUMBER: _ClassVar[int]
    reach: _records_pb2.Reach
    revision: int
    age_ms: int
    listing: bool
    def __init__(self, reach: _Optional[_Union[_records_pb2.Reach, str]] = ..., revision: _Optional[int] = ..., age_ms: _Optional[int] = ..., listing: _Optional[bool] = ...) -> None: ...

class GetOutlineRequest(_message.Message):
    __slots__ = ("header", "region")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    region: str
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., region: _Optional[str] = ...) -> None: ...

class GetOutlineReply(_message.Message):
    __slots__ = ("header", "outline", "link", "unreachable")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    OUTLINE_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    UNREACHABLE_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    outline: Outline
    link: Link
    unreachable: str
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., outline: _Optional[_Union[Outline, _Mapping]] = ..., link: _Optional[_Union[Link, _Mapping]] = ..., unreachable: _Optional[str] = ...) -> None: ...

class Outline(_message.Message):
    __slots__ = ("region", "jurisdiction", "leader", "leader_age_ms", "revision", "age_ms", "nodes", "quorum", "links", "isolated", "stops_told", "switches_engaged", "stop_ids")
    REGION_FIELD_NUMBER: _ClassVar[int]
    JURISDICTION_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    LEADER_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    QUORUM_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    ISOLATED_FIELD_NUMBER: _ClassVar[int]
    STOPS_TOLD_FIELD_NUMBER: _ClassVar[int]
    SWITCHES_ENGAGED_FIELD_NUMBER: _ClassVar[int]
    STOP_IDS_FIELD_NUMBER: _ClassVar[int]
    region: str
    jurisdiction: str
    leader: str
    leader_age_ms: int
    revision: int
    age_ms: int
    nodes: _containers.RepeatedCompositeFieldContainer[OutlineNode]
    quorum: bool
    links: _containers.RepeatedCompositeFieldContainer[OutlineLink]
    isolated: bool
    stops_told: bool
    switches_engaged: int
    stop_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, region: _Optional[str] = ..., jurisdiction: _Optional[str] = ..., leader: _Optional[str] = ..., leader_age_ms: _Optional[int] = ..., revision: _Optional[int] = ..., age_ms: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[OutlineNode, _Mapping]]] = ..., quorum: _Optional[bool] = ..., links: _Optional[_Iterable[_Union[OutlineLink, _Mapping]]] = ..., isolated: _Optional[bool] = ..., stops_told: _Optional[bool] = ..., switches_engaged: _Optional[int] = ..., stop_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class OutlineNode(_message.Message):
    __slots__ = ("name", "up", "behind")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    BEHIND_FIELD_NUMBER: _ClassVar[int]
    name: str
    up: bool
    behind: int
    def __init__(self, name: _Optional[str] = ..., up: _Optional[bool] = ..., behind: _Optional[int] = ...) -> None: ...

class OutlineLink(_message.Message):
    __slots__ = ("region", "state", "copies")
    REGION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    region: str
    state: str
    copies: _containers.RepeatedCompositeFieldContainer[OutlineCopy]
    def __init__(self, region: _Optional[str] = ..., state: _Optional[str] = ..., copies: _Optional[_Iterable[_Union[OutlineCopy, _Mapping]]] = ...) -> None: ...

class OutlineCopy(_message.Message):
    __slots__ = ("reach", "age_ms", "listing")
    REACH_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    LISTING_FIELD_NUMBER: _ClassVar[int]
    reach: _records_pb2.Reach
    age_ms: int
    listing: bool
    def __init__(self, reach: _Optional[_Union[_records_pb2.Reach, str]] = ..., age_ms: _Optional[int] = ..., listing: _Optional[bool] = ...) -> None: ...

class ListBreakGlassRequest(_message.Message):
    __slots__ = ("header", "after_revision", "limit")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    AFTER_REVISION_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    after_revision: int
    limit: int
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., after_revision: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class BreakGlassView(_message.Message):
    __slots__ = ("read", "meta")
    READ_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    read: _records_pb2.BreakGlass
    meta: Meta
    def __init__(self, read: _Optional[_Union[_records_pb2.BreakGlass, _Mapping]] = ..., meta: _Optional[_Union[Meta, _Mapping]] = ...) -> None: ...

class ListBreakGlassReply(_message.Message):
    __slots__ = ("header", "reads", "more")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    READS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    reads: _containers.RepeatedCompositeFieldContainer[BreakGlassView]
    more: bool
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., reads: _Optional[_Iterable[_Union[BreakGlassView, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class TransferRegionRequest(_message.Message):
    __slots__ = ("header", "target")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    target: str
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., target: _Optional[str] = ...) -> None: ...

class TransferRegionReply(_message.Message):
    __slots__ = ("header", "leader", "term")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    leader: str
    term: int
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., leader: _Optional[str] = ..., term: _Optional[int] = ...) -> None: ...

class ElectionView(_message.Message):
    __slots__ = ("election", "fence", "meta")
    ELECTION_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    election: _records_pb2.Election
    fence: Fence
    meta: Meta
    def __init__(self, election: _Optional[_Union[_records_pb2.Election, _Mapping]] = ..., fence: _Optional[_Union[Fence, _Mapping]] = ..., meta: _Optional[_Union[Meta, _Mapping]] = ...) -> None: ...

class CampaignRequest(_message.Message):
    __slots__ = ("header", "name", "process", "ttl_ms", "value")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    name: str
    process: bytes
    ttl_ms: int
    value: bytes
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., name: _Optional[str] = ..., process: _Optional[bytes] = ..., ttl_ms: _Optional[int] = ..., value: _Optional[bytes] = ...) -> None: ...

class CampaignReply(_message.Message):
    __slots__ = ("header", "holder", "elected")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    ELECTED_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    holder: ElectionView
    elected: bool
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., holder: _Optional[_Union[ElectionView, _Mapping]] = ..., elected: _Optional[bool] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ("header", "name", "process", "fence")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    name: str
    process: bytes
    fence: Fence
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., name: _Optional[str] = ..., process: _Optional[bytes] = ..., fence: _Optional[_Union[Fence, _Mapping]] = ...) -> None: ...

class RenewReply(_message.Message):
    __slots__ = ("header", "ttl_ms")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    ttl_ms: int
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., ttl_ms: _Optional[int] = ...) -> None: ...

class ResignRequest(_message.Message):
    __slots__ = ("header", "name", "process", "fence")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    FENCE_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    name: str
    process: bytes
    fence: Fence
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., name: _Optional[str] = ..., process: _Optional[bytes] = ..., fence: _Optional[_Union[Fence, _Mapping]] = ...) -> None: ...

class ResignReply(_message.Message):
    __slots__ = ("header", "resigned")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    RESIGNED_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    resigned: bool
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., resigned: _Optional[bool] = ...) -> None: ...

class GetElectionRequest(_message.Message):
    __slots__ = ("header", "name")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    name: str
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., name: _Optional[str] = ...) -> None: ...

class GetElectionReply(_message.Message):
    __slots__ = ("header", "holder")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    holder: ElectionView
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., holder: _Optional[_Union[ElectionView, _Mapping]] = ...) -> None: ...

class ListElectionsRequest(_message.Message):
    __slots__ = ("header", "prefix", "limit", "after")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    prefix: str
    limit: int
    after: str
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., prefix: _Optional[str] = ..., limit: _Optional[int] = ..., after: _Optional[str] = ...) -> None: ...

class ListElectionsReply(_message.Message):
    __slots__ = ("header", "elections", "more")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ELECTIONS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    elections: _containers.RepeatedCompositeFieldContainer[ElectionView]
    more: bool
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., elections: _Optional[_Iterable[_Union[ElectionView, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class WorkflowView(_message.Message):
    __slots__ = ("workflow", "version", "meta")
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    workflow: _records_pb2.Workflow
    version: int
    meta: Meta
    def __init__(self, workflow: _Optional[_Union[_records_pb2.Workflow, _Mapping]] = ..., version: _Optional[int] = ..., meta: _Optional[_Union[Meta, _Mapping]] = ...) -> None: ...

class CreateWorkflowRequest(_message.Message):
    __slots__ = ("header", "id", "state", "schema_version", "code_version")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    CODE_VERSION_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    id: str
    state: bytes
    schema_version: int
    code_version: str
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., id: _Optional[str] = ..., state: _Optional[bytes] = ..., schema_version: _Optional[int] = ..., code_version: _Optional[str] = ...) -> None: ...

class CreateWorkflowReply(_message.Message):
    __slots__ = ("header", "version")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    version: int
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., version: _Optional[int] = ...) -> None: ...

class GetWorkflowRequest(_message.Message):
    __slots__ = ("header", "id", "at_revision", "schema_min", "schema_max")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    AT_REVISION_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_MIN_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_MAX_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    id: str
    at_revision: int
    schema_min: int
    schema_max: int
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., id: _Optional[str] = ..., at_revision: _Optional[int] = ..., schema_min: _Optional[int] = ..., schema_max: _Optional[int] = ...) -> None: ...

class GetWorkflowReply(_message.Message):
    __slots__ = ("header", "workflow")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    workflow: WorkflowView
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., workflow: _Optional[_Union[WorkflowView, _Mapping]] = ...) -> None: ...

class CompareAndSwapWorkflowRequest(_message.Message):
    __slots__ = ("header", "id", "version", "state", "schema_version", "code_version")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    CODE_VERSION_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    id: str
    version: int
    state: bytes
    schema_version: int
    code_version: str
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., id: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[bytes] = ..., schema_version: _Optional[int] = ..., code_version: _Optional[str] = ...) -> None: ...

class CompareAndSwapWorkflowReply(_message.Message):
    __slots__ = ("header", "version")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    version: int
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., version: _Optional[int] = ...) -> None: ...

class ListWorkflowsRequest(_message.Message):
    __slots__ = ("header", "prefix", "limit", "after")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    prefix: str
    limit: int
    after: str
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., prefix: _Optional[str] = ..., limit: _Optional[int] = ..., after: _Optional[str] = ...) -> None: ...

class ListWorkflowsReply(_message.Message):
    __slots__ = ("header", "workflows", "more")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    WORKFLOWS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    workflows: _containers.RepeatedCompositeFieldContainer[WorkflowView]
    more: bool
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., workflows: _Optional[_Iterable[_Union[WorkflowView, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class GetWorkflowHistoryRequest(_message.Message):
    __slots__ = ("header", "id", "limit", "before_revision")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_REVISION_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    id: str
    limit: int
    before_revision: int
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., id: _Optional[str] = ..., limit: _Optional[int] = ..., before_revision: _Optional[int] = ...) -> None: ...

class GetWorkflowHistoryReply(_message.Message):
    __slots__ = ("header", "versions", "more")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    versions: _containers.RepeatedCompositeFieldContainer[WorkflowView]
    more: bool
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., versions: _Optional[_Iterable[_Union[WorkflowView, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class FlagView(_message.Message):
    __slots__ = ("flag", "meta")
    FLAG_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    flag: _records_pb2.Flag
    meta: Meta
    def __init__(self, flag: _Optional[_Union[_records_pb2.Flag, _Mapping]] = ..., meta: _Optional[_Union[Meta, _Mapping]] = ...) -> None: ...

class SetFlagRequest(_message.Message):
    __slots__ = ("header", "flag", "expected_revision", "must_not_exist")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    MUST_NOT_EXIST_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    flag: _records_pb2.Flag
    expected_revision: int
    must_not_exist: bool
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., flag: _Optional[_Union[_records_pb2.Flag, _Mapping]] = ..., expected_revision: _Optional[int] = ..., must_not_exist: _Optional[bool] = ...) -> None: ...

class SetFlagReply(_message.Message):
    __slots__ = ("header", "meta")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    meta: Meta
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., meta: _Optional[_Union[Meta, _Mapping]] = ...) -> None: ...

class GetFlagRequest(_message.Message):
    __slots__ = ("header", "name", "at_revision")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    AT_REVISION_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    name: str
    at_revision: int
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., name: _Optional[str] = ..., at_revision: _Optional[int] = ...) -> None: ...

class GetFlagReply(_message.Message):
    __slots__ = ("header", "flag")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    flag: FlagView
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., flag: _Optional[_Union[FlagView, _Mapping]] = ...) -> None: ...

class ListFlagsRequest(_message.Message):
    __slots__ = ("header", "prefix", "limit", "after")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    prefix: str
    limit: int
    after: str
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., prefix: _Optional[str] = ..., limit: _Optional[int] = ..., after: _Optional[str] = ...) -> None: ...

class ListFlagsReply(_message.Message):
    __slots__ = ("header", "flags", "more")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    flags: _containers.RepeatedCompositeFieldContainer[FlagView]
    more: bool
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., flags: _Optional[_Iterable[_Union[FlagView, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class GetFlagHistoryRequest(_message.Message):
    __slots__ = ("header", "name", "limit", "before_revision")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_REVISION_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    name: str
    limit: int
    before_revision: int
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., name: _Optional[str] = ..., limit: _Optional[int] = ..., before_revision: _Optional[int] = ...) -> None: ...

class GetFlagHistoryReply(_message.Message):
    __slots__ = ("header", "versions", "more")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    versions: _containers.RepeatedCompositeFieldContainer[FlagView]
    more: bool
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., versions: _Optional[_Iterable[_Union[FlagView, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class RestoreFlagRequest(_message.Message):
    __slots__ = ("header", "name", "revision")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    name: str
    revision: int
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., name: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class RestoreFlagReply(_message.Message):
    __slots__ = ("header", "flag")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    flag: FlagView
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., flag: _Optional[_Union[FlagView, _Mapping]] = ...) -> None: ...

class ConfigField(_message.Message):
    __slots__ = ("name", "flag", "variant", "reason", "revision")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    flag: str
    variant: str
    reason: ConfigReason
    revision: int
    def __init__(self, name: _Optional[str] = ..., flag: _Optional[str] = ..., variant: _Optional[str] = ..., reason: _Optional[_Union[ConfigReason, str]] = ..., revision: _Optional[int] = ...) -> None: ...

class AgentConfig(_message.Message):
    __slots__ = ("prompt_version", "model", "tools_enabled", "max_iterations", "guardrails")
    PROMPT_VERSION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TOOLS_ENABLED_FIELD_NUMBER: _ClassVar[int]
    MAX_ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    GUARDRAILS_FIELD_NUMBER: _ClassVar[int]
    prompt_version: str
    model: str
    tools_enabled: _containers.RepeatedScalarFieldContainer[str]
    max_iterations: int
    guardrails: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, prompt_version: _Optional[str] = ..., model: _Optional[str] = ..., tools_enabled: _Optional[_Iterable[str]] = ..., max_iterations: _Optional[int] = ..., guardrails: _Optional[_Iterable[str]] = ...) -> None: ...

class GetAgentConfigRequest(_message.Message):
    __slots__ = ("header", "user", "tenant")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    USER_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    user: str
    tenant: str
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., user: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class GetAgentConfigReply(_message.Message):
    __slots__ = ("header", "config", "fields")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    config: AgentConfig
    fields: _containers.RepeatedCompositeFieldContainer[ConfigField]
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., config: _Optional[_Union[AgentConfig, _Mapping]] = ..., fields: _Optional[_Iterable[_Union[ConfigField, _Mapping]]] = ...) -> None: ...

class SwitchView(_message.Message):
    __slots__ = ("switch", "meta", "region")
    SWITCH_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    switch: _records_pb2.Switch
    meta: Meta
    region: str
    def __init__(self, switch: _Optional[_Union[_records_pb2.Switch, _Mapping]] = ..., meta: _Optional[_Union[Meta, _Mapping]] = ..., region: _Optional[str] = ...) -> None: ...

class StopView(_message.Message):
    __slots__ = ("region", "id", "engaged", "epoch", "revision", "excepted", "scope")
    REGION_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    ENGAGED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EXCEPTED_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    region: str
    id: str
    engaged: bool
    epoch: int
    revision: int
    excepted: bool
    scope: _records_pb2.Scope
    def __init__(self, region: _Optional[str] = ..., id: _Optional[str] = ..., engaged: _Optional[bool] = ..., epoch: _Optional[int] = ..., revision: _Optional[int] = ..., excepted: _Optional[bool] = ..., scope: _Optional[_Union[_records_pb2.Scope, _Mapping]] = ...) -> None: ...

class EngageSwitchRequest(_message.Message):
    __slots__ = ("header", "scope")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    scope: _records_pb2.Scope
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., scope: _Optional[_Union[_records_pb2.Scope, _Mapping]] = ...) -> None: ...

class EngageSwitchReply(_message.Message):
    __slots__ = ("header", "switch", "changed")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SWITCH_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    switch: SwitchView
    changed: bool
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., switch: _Optional[_Union[SwitchView, _Mapping]] = ..., changed: _Optional[bool] = ...) -> None: ...

class ReleaseSwitchRequest(_message.Message):
    __slots__ = ("header", "scope")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    scope: _records_pb2.Scope
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., scope: _Optional[_Union[_records_pb2.Scope, _Mapping]] = ...) -> None: ...

class ReleaseSwitchReply(_message.Message):
    __slots__ = ("header", "switch", "changed")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SWITCH_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    switch: SwitchView
    changed: bool
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., switch: _Optional[_Union[SwitchView, _Mapping]] = ..., changed: _Optional[bool] = ...) -> None: ...

class ListSwitchesRequest(_message.Message):
    __slots__ = ("header", "engaged_only", "limit", "after")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ENGAGED_ONLY_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    engaged_only: bool
    limit: int
    after: str
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., engaged_only: _Optional[bool] = ..., limit: _Optional[int] = ..., after: _Optional[str] = ...) -> None: ...

class ListSwitchesReply(_message.Message):
    __slots__ = ("header", "switches", "more", "next", "stops")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SWITCHES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    STOPS_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    switches: _containers.RepeatedCompositeFieldContainer[SwitchView]
    more: bool
    next: str
    stops: _containers.RepeatedCompositeFieldContainer[StopView]
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., switches: _Optional[_Iterable[_Union[SwitchView, _Mapping]]] = ..., more: _Optional[bool] = ..., next: _Optional[str] = ..., stops: _Optional[_Iterable[_Union[StopView, _Mapping]]] = ...) -> None: ...

class ExceptSwitchRequest(_message.Message):
    __slots__ = ("header", "scope", "region", "epoch", "revision")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    scope: _records_pb2.Scope
    region: str
    epoch: int
    revision: int
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., scope: _Optional[_Union[_records_pb2.Scope, _Mapping]] = ..., region: _Optional[str] = ..., epoch: _Optional[int] = ..., revision: _Optional[int] = ...) -> None: ...

class ExceptSwitchReply(_message.Message):
    __slots__ = ("header", "changed")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    changed: bool
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., changed: _Optional[bool] = ...) -> None: ...

class Subject(_message.Message):
    __slots__ = ("tenant", "agent_type", "workflow", "tools")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    AGENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    agent_type: str
    workflow: str
    tools: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, tenant: _Optional[str] = ..., agent_type: _Optional[str] = ..., workflow: _Optional[str] = ..., tools: _Optional[_Iterable[str]] = ...) -> None: ...

class CheckSwitchesRequest(_message.Message):
    __slots__ = ("header", "subject")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    subject: Subject
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., subject: _Optional[_Union[Subject, _Mapping]] = ...) -> None: ...

class CheckSwitchesReply(_message.Message):
    __slots__ = ("header", "stopped_by")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    STOPPED_BY_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    stopped_by: _containers.RepeatedCompositeFieldContainer[SwitchView]
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., stopped_by: _Optional[_Iterable[_Union[SwitchView, _Mapping]]] = ...) -> None: ...

class EraseRecordRequest(_message.Message):
    __slots__ = ("header", "kind", "name")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    kind: str
    name: str
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., kind: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class EraseRecordReply(_message.Message):
    __slots__ = ("header", "revision", "erasure")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ERASURE_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    revision: int
    erasure: str
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., revision: _Optional[int] = ..., erasure: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("header", "kinds", "prefix", "after_revision", "snapshot")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    AFTER_REVISION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    kinds: _containers.RepeatedScalarFieldContainer[str]
    prefix: str
    after_revision: int
    snapshot: bool
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., kinds: _Optional[_Iterable[str]] = ..., prefix: _Optional[str] = ..., after_revision: _Optional[int] = ..., snapshot: _Optional[bool] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("kind", "name", "meta", "flag", "switch", "workflow", "election", "stop", "exception", "home")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    META_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    SWITCH_FIELD_NUMBER: _ClassVar[int]
    WORKFLOW_FIELD_NUMBER: _ClassVar[int]
    ELECTION_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    EXCEPTION_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    meta: Meta
    flag: _records_pb2.Flag
    switch: _records_pb2.Switch
    workflow: _records_pb2.Workflow
    election: _records_pb2.Election
    stop: _records_pb2.Stop
    exception: _records_pb2.StopException
    home: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., meta: _Optional[_Union[Meta, _Mapping]] = ..., flag: _Optional[_Union[_records_pb2.Flag, _Mapping]] = ..., switch: _Optional[_Union[_records_pb2.Switch, _Mapping]] = ..., workflow: _Optional[_Union[_records_pb2.Workflow, _Mapping]] = ..., election: _Optional[_Union[_records_pb2.Election, _Mapping]] = ..., stop: _Optional[_Union[_records_pb2.Stop, _Mapping]] = ..., exception: _Optional[_Union[_records_pb2.StopException, _Mapping]] = ..., home: _Optional[str] = ...) -> None: ...

class WatchReply(_message.Message):
    __slots__ = ("revision", "changes", "age_ms", "kind", "region", "epoch")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[WatchReply.Kind]
        STARTED: _ClassVar[WatchReply.Kind]
        SNAPSHOT: _ClassVar[WatchReply.Kind]
        SYNCED: _ClassVar[WatchReply.Kind]
        CHANGES: _ClassVar[WatchReply.Kind]
        PROGRESS: _ClassVar[WatchReply.Kind]
    KIND_UNSPECIFIED: WatchReply.Kind
    STARTED: WatchReply.Kind
    SNAPSHOT: WatchReply.Kind
    SYNCED: WatchReply.Kind
    CHANGES: WatchReply.Kind
    PROGRESS: WatchReply.Kind
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    revision: int
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    age_ms: int
    kind: WatchReply.Kind
    region: str
    epoch: int
    def __init__(self, revision: _Optional[int] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., age_ms: _Optional[int] = ..., kind: _Optional[_Union[WatchReply.Kind, str]] = ..., region: _Optional[str] = ..., epoch: _Optional[int] = ...) -> None: ...

class GetOutcomeRequest(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ...) -> None: ...

class GetOutcomeReply(_message.Message):
    __slots__ = ("header", "known", "revision", "reason")
    class Known(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KNOWN_UNSPECIFIED: _ClassVar[GetOutcomeReply.Known]
        COMMITTED: _ClassVar[GetOutcomeReply.Known]
        REFUSED: _ClassVar[GetOutcomeReply.Known]
        NOT_APPLIED: _ClassVar[GetOutcomeReply.Known]
        FORGOTTEN: _ClassVar[GetOutcomeReply.Known]
    KNOWN_UNSPECIFIED: GetOutcomeReply.Known
    COMMITTED: GetOutcomeReply.Known
    REFUSED: GetOutcomeReply.Known
    NOT_APPLIED: GetOutcomeReply.Known
    FORGOTTEN: GetOutcomeReply.Known
    HEADER_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    known: GetOutcomeReply.Known
    revision: int
    reason: str
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., known: _Optional[_Union[GetOutcomeReply.Known, str]] = ..., revision: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ListEventsRequest(_message.Message):
    __slots__ = ("header", "after_revision", "limit", "kinds")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    AFTER_REVISION_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    after_revision: int
    limit: int
    kinds: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., after_revision: _Optional[int] = ..., limit: _Optional[int] = ..., kinds: _Optional[_Iterable[str]] = ...) -> None: ...

class ListEventsReply(_message.Message):
    __slots__ = ("header", "changes", "more", "seen")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    more: bool
    seen: int
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., more: _Optional[bool] = ..., seen: _Optional[int] = ...) -> None: ...

class PartitionView(_message.Message):
    __slots__ = ("partition", "state", "move", "moved", "copy", "quarantined", "waits_for")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    COPY_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    partition: _records_pb2.Partition
    state: str
    move: _records_pb2.Move
    moved: Meta
    copy: View
    quarantined: int
    waits_for: str
    def __init__(self, partition: _Optional[_Union[_records_pb2.Partition, _Mapping]] = ..., state: _Optional[str] = ..., move: _Optional[_Union[_records_pb2.Move, _Mapping]] = ..., moved: _Optional[_Union[Meta, _Mapping]] = ..., copy: _Optional[_Union[View, _Mapping]] = ..., quarantined: _Optional[int] = ..., waits_for: _Optional[str] = ...) -> None: ...

class ListPartitionsRequest(_message.Message):
    __slots__ = ("header", "partition")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    partition: str
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., partition: _Optional[str] = ...) -> None: ...

class ListPartitionsReply(_message.Message):
    __slots__ = ("header", "partitions")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionView]
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., partitions: _Optional[_Iterable[_Union[PartitionView, _Mapping]]] = ...) -> None: ...

class MovePartitionRequest(_message.Message):
    __slots__ = ("header", "partition", "to", "cancel", "forced", "attestation", "upto")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    FORCED_FIELD_NUMBER: _ClassVar[int]
    ATTESTATION_FIELD_NUMBER: _ClassVar[int]
    UPTO_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    partition: str
    to: str
    cancel: bool
    forced: bool
    attestation: str
    upto: int
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., partition: _Optional[str] = ..., to: _Optional[str] = ..., cancel: _Optional[bool] = ..., forced: _Optional[bool] = ..., attestation: _Optional[str] = ..., upto: _Optional[int] = ...) -> None: ...

class MovePartitionReply(_message.Message):
    __slots__ = ("header", "partition")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    partition: PartitionView
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., partition: _Optional[_Union[PartitionView, _Mapping]] = ...) -> None: ...

class ListQuarantineRequest(_message.Message):
    __slots__ = ("header", "partition", "limit", "after")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    header: RequestHeader
    partition: str
    limit: int
    after: bytes
    def __init__(self, header: _Optional[_Union[RequestHeader, _Mapping]] = ..., partition: _Optional[str] = ..., limit: _Optional[int] = ..., after: _Optional[bytes] = ...) -> None: ...

class ListQuarantineReply(_message.Message):
    __slots__ = ("header", "changes", "more", "next")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    header: ReplyHeader
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    more: bool
    next: bytes
    def __init__(self, header: _Optional[_Union[ReplyHeader, _Mapping]] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., more: _Optional[bool] = ..., next: _Optional[bytes] = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("id", "method", "request", "timeout_ms", "on_behalf_of", "cancel")
    ID_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    ON_BEHALF_OF_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    id: int
    method: str
    request: bytes
    timeout_ms: int
    on_behalf_of: str
    cancel: bool
    def __init__(self, id: _Optional[int] = ..., method: _Optional[str] = ..., request: _Optional[bytes] = ..., timeout_ms: _Optional[int] = ..., on_behalf_of: _Optional[str] = ..., cancel: _Optional[bool] = ...) -> None: ...

class OperationReply(_message.Message):
    __slots__ = ("id", "reply", "status", "more")
    ID_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    id: int
    reply: bytes
    status: bytes
    more: bool
    def __init__(self, id: _Optional[int] = ..., reply: _Optional[bytes] = ..., status: _Optional[bytes] = ..., more: _Optional[bool] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("operations",)
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    operations: _containers.RepeatedCompositeFieldContainer[Operation]
    def __init__(self, operations: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ...) -> None: ...

class UnreadOperations(_message.Message):
    __slots__ = ("operations",)
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    operations: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, operations: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SessionReply(_message.Message):
    __slots__ = ("replies", "region", "revision", "age_ms")
    REPLIES_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    replies: _containers.RepeatedCompositeFieldContainer[OperationReply]
    region: Region
    revision: int
    age_ms: int
    def __init__(self, replies: _Optional[_Iterable[_Union[OperationReply, _Mapping]]] = ..., region: _Optional[_Union[Region, _Mapping]] = ..., revision: _Optional[int] = ..., age_ms: _Optional[int] = ...) -> None: ...
