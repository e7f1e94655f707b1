from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Reach(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REACH_UNSPECIFIED: _ClassVar[Reach]
    HOME_ONLY: _ClassVar[Reach]
    JURISDICTION: _ClassVar[Reach]
    GLOBAL: _ClassVar[Reach]

class FlagType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FLAG_TYPE_UNSPECIFIED: _ClassVar[FlagType]
    BOOL: _ClassVar[FlagType]
    STRING: _ClassVar[FlagType]
    INT: _ClassVar[FlagType]
    NUMBER: _ClassVar[FlagType]
    JSON: _ClassVar[FlagType]

class ScopeKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCOPE_KIND_UNSPECIFIED: _ClassVar[ScopeKind]
    SCOPE_REGION: _ClassVar[ScopeKind]
    SCOPE_ENVIRONMENT: _ClassVar[ScopeKind]
    SCOPE_TENANT: _ClassVar[ScopeKind]
    SCOPE_AGENT_TYPE: _ClassVar[ScopeKind]
    SCOPE_TOOL: _ClassVar[ScopeKind]
    SCOPE_WORKFLOW: _ClassVar[ScopeKind]
REACH_UNSPECIFIED: Reach
HOME_ONLY: Reach
JURISDICTION: Reach
GLOBAL: Reach
FLAG_TYPE_UNSPECIFIED: FlagType
BOOL: FlagType
STRING: FlagType
INT: FlagType
NUMBER: FlagType
JSON: FlagType
SCOPE_KIND_UNSPECIFIED: ScopeKind
SCOPE_REGION: ScopeKind
SCOPE_ENVIRONMENT: ScopeKind
SCOPE_TENANT: ScopeKind
SCOPE_AGENT_TYPE: ScopeKind
SCOPE_TOOL: ScopeKind
SCOPE_WORKFLOW: ScopeKind

class Partition(_message.Message):
    __slots__ = ("id", "home", "epoch", "reach", "environment", "default_for", "since", "former", "withdrawn")
    ID_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REACH_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_FOR_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    FORMER_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    id: str
    home: str
    epoch: int
    reach: Reach
    environment: str
    default_for: _containers.RepeatedScalarFieldContainer[str]
    since: int
    former: _containers.RepeatedCompositeFieldContainer[Former]
    withdrawn: bool
    def __init__(self, id: _Optional[str] = ..., home: _Optional[str] = ..., epoch: _Optional[int] = ..., reach: _Optional[_Union[Reach, str]] = ..., environment: _Optional[str] = ..., default_for: _Optional[_Iterable[str]] = ..., since: _Optional[int] = ..., former: _Optional[_Iterable[_Union[Former, _Mapping]]] = ..., withdrawn: _Optional[bool] = ...) -> None: ...

class Former(_message.Message):
    __slots__ = ("home", "epoch", "upto")
    HOME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    UPTO_FIELD_NUMBER: _ClassVar[int]
    home: str
    epoch: int
    upto: int
    def __init__(self, home: _Optional[str] = ..., epoch: _Optional[int] = ..., upto: _Optional[int] = ...) -> None: ...

class Retention(_message.Message):
    __slots__ = ("event_floor", "outcome_slice")
    EVENT_FLOOR_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_SLICE_FIELD_NUMBER: _ClassVar[int]
    event_floor: int
    outcome_slice: int
    def __init__(self, event_floor: _Optional[int] = ..., outcome_slice: _Optional[int] = ...) -> None: ...

class Restoration(_message.Message):
    __slots__ = ("after", "after_ms", "revision")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    after: int
    after_ms: int
    revision: int
    def __init__(self, after: _Optional[int] = ..., after_ms: _Optional[int] = ..., revision: _Optional[int] = ...) -> None: ...

class FlagValue(_message.Message):
    __slots__ = ("bool_value", "string_value", "int_value", "number_value", "json_value")
    BOOL_VALUE_FIELD_NUMBER: _ClassVar[int]
    STRING_VALUE_FIELD_NUMBER: _ClassVar[int]
    INT_VALUE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_VALUE_FIELD_NUMBER: _ClassVar[int]
    JSON_VALUE_FIELD_NUMBER: _ClassVar[int]
    bool_value: bool
    string_value: str
    int_value: int
    number_value: str
    json_value: str
    def __init__(self, bool_value: _Optional[bool] = ..., string_value: _Optional[str] = ..., int_value: _Optional[int] = ..., number_value: _Optional[str] = ..., json_value: _Optional[str] = ...) -> None: ...

class Variant(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: FlagValue
    def __init__(self, name: _Optional[str] = ..., value: _Optional[_Union[FlagValue, _Mapping]] = ...) -> None: ...

class Flag(_message.Message):
    __slots__ = ("name", "type", "enabled", "variants", "default_variant", "targeting", "metadata", "bucketing", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    VARIANTS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_VARIANT_FIELD_NUMBER: _ClassVar[int]
    TARGETING_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    BUCKETING_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    type: FlagType
    enabled: bool
    variants: _containers.RepeatedCompositeFieldContainer[Variant]
    default_variant: str
    targeting: str
    metadata: str
    bucketing: int
    description: str
    def __init__(self, name: _Optional[str] = ..., type: _Optional[_Union[FlagType, str]] = ..., enabled: _Optional[bool] = ..., variants: _Optional[_Iterable[_Union[Variant, _Mapping]]] = ..., default_variant: _Optional[str] = ..., targeting: _Optional[str] = ..., metadata: _Optional[str] = ..., bucketing: _Optional[int] = ..., description: _Optional[str] = ...) -> None: ...

class Workflow(_message.Message):
    __slots__ = ("id", "state", "schema_version", "code_version")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_VERSION_FIELD_NUMBER: _ClassVar[int]
    CODE_VERSION_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: bytes
    schema_version: int
    code_version: str
    def __init__(self, id: _Optional[str] = ..., state: _Optional[bytes] = ..., schema_version: _Optional[int] = ..., code_version: _Optional[str] = ...) -> None: ...

class Scope(_message.Message):
    __slots__ = ("kind", "name")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    kind: ScopeKind
    name: str
    def __init__(self, kind: _Optional[_Union[ScopeKind, str]] = ..., name: _Optional[str] = ...) -> None: ...

class Switch(_message.Message):
    __slots__ = ("scope", "engaged", "engaged_by", "engaged_reason")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    ENGAGED_FIELD_NUMBER: _ClassVar[int]
    ENGAGED_BY_FIELD_NUMBER: _ClassVar[int]
    ENGAGED_REASON_FIELD_NUMBER: _ClassVar[int]
    scope: Scope
    engaged: bool
    engaged_by: str
    engaged_reason: str
    def __init__(self, scope: _Optional[_Union[Scope, _Mapping]] = ..., engaged: _Optional[bool] = ..., engaged_by: _Optional[str] = ..., engaged_reason: _Optional[str] = ...) -> None: ...

class Election(_message.Message):
    __slots__ = ("name", "holder", "process", "ttl_ms", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    holder: str
    process: bytes
    ttl_ms: int
    value: bytes
    def __init__(self, name: _Optional[str] = ..., holder: _Optional[str] = ..., process: _Optional[bytes] = ..., ttl_ms: _Optional[int] = ..., value: _Optional[bytes] = ...) -> None: ...

class Stop(_message.Message):
    __slots__ = ("engaged",)
    ENGAGED_FIELD_NUMBER: _ClassVar[int]
    engaged: bool
    def __init__(self, engaged: _Optional[bool] = ...) -> None: ...

class StopException(_message.Message):
    __slots__ = ("region", "epoch", "revision")
    REGION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    region: str
    epoch: int
    revision: int
    def __init__(self, region: _Optional[str] = ..., epoch: _Optional[int] = ..., revision: _Optional[int] = ...) -> None: ...

class Cursor(_message.Message):
    __slots__ = ("peer", "reach", "epoch", "revision", "listing", "listed", "age_ms", "began", "restored")
    PEER_FIELD_NUMBER: _ClassVar[int]
    REACH_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    LISTING_FIELD_NUMBER: _ClassVar[int]
    LISTED_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    BEGAN_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FIELD_NUMBER: _ClassVar[int]
    peer: str
    reach: Reach
    epoch: int
    revision: int
    listing: bool
    listed: bytes
    age_ms: int
    began: int
    restored: int
    def __init__(self, peer: _Optional[str] = ..., reach: _Optional[_Union[Reach, str]] = ..., epoch: _Optional[int] = ..., revision: _Optional[int] = ..., listing: _Optional[bool] = ..., listed: _Optional[bytes] = ..., age_ms: _Optional[int] = ..., began: _Optional[int] = ..., restored: _Optional[int] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("peer", "jurisdiction", "reach", "open")
    PEER_FIELD_NUMBER: _ClassVar[int]
    JURISDICTION_FIELD_NUMBER: _ClassVar[int]
    REACH_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    peer: str
    jurisdiction: str
    reach: Reach
    open: bool
    def __init__(self, peer: _Optional[str] = ..., jurisdiction: _Optional[str] = ..., reach: _Optional[_Union[Reach, str]] = ..., open: _Optional[bool] = ...) -> None: ...

class Passage(_message.Message):
    __slots__ = ("direction", "counterparty", "reach", "epoch", "after", "upto", "records", "digest", "sort", "nonce")
    class Direction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DIRECTION_UNSPECIFIED: _ClassVar[Passage.Direction]
        EGRESS: _ClassVar[Passage.Direction]
        INGRESS: _ClassVar[Passage.Direction]
    DIRECTION_UNSPECIFIED: Passage.Direction
    EGRESS: Passage.Direction
    INGRESS: Passage.Direction
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    COUNTERPARTY_FIELD_NUMBER: _ClassVar[int]
    REACH_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    UPTO_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SORT_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    direction: Passage.Direction
    counterparty: str
    reach: Reach
    epoch: int
    after: int
    upto: int
    records: int
    digest: bytes
    sort: str
    nonce: bytes
    def __init__(self, direction: _Optional[_Union[Passage.Direction, str]] = ..., counterparty: _Optional[str] = ..., reach: _Optional[_Union[Reach, str]] = ..., epoch: _Optional[int] = ..., after: _Optional[int] = ..., upto: _Optional[int] = ..., records: _Optional[int] = ..., digest: _Optional[bytes] = ..., sort: _Optional[str] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class Witnessed(_message.Message):
    __slots__ = ("region", "note")
    REGION_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    region: str
    note: bytes
    def __init__(self, region: _Optional[str] = ..., note: _Optional[bytes] = ...) -> None: ...

class Cosigned(_message.Message):
    __slots__ = ("region", "size", "note")
    REGION_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    region: str
    size: int
    note: bytes
    def __init__(self, region: _Optional[str] = ..., size: _Optional[int] = ..., note: _Optional[bytes] = ...) -> None: ...

class BreakGlass(_message.Message):
    __slots__ = ("direction", "counterparty", "actor", "reason", "method", "partition", "reach", "environment", "epoch", "revision", "digest")
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    COUNTERPARTY_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    REACH_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    direction: Passage.Direction
    counterparty: str
    actor: str
    reason: str
    method: str
    partition: str
    reach: Reach
    environment: str
    epoch: int
    revision: int
    digest: bytes
    def __init__(self, direction: _Optional[_Union[Passage.Direction, str]] = ..., counterparty: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., method: _Optional[str] = ..., partition: _Optional[str] = ..., reach: _Optional[_Union[Reach, str]] = ..., environment: _Optional[str] = ..., epoch: _Optional[int] = ..., revision: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Erasure(_message.Message):
    __slots__ = ("kind", "version")
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    kind: str
    version: int
    def __init__(self, kind: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class Erased(_message.Message):
    __slots__ = ("revision", "leaves")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    revision: int
    leaves: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, revision: _Optional[int] = ..., leaves: _Optional[_Iterable[int]] = ...) -> None: ...

class Move(_message.Message):
    __slots__ = ("partition", "to", "epoch", "phase", "forced", "attestation", "upto", "age_ms", "since", "disowned")
    class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PHASE_UNSPECIFIED: _ClassVar[Move.Phase]
        SEALED: _ClassVar[Move.Phase]
        CANCELLED: _ClassVar[Move.Phase]
        ADOPTING: _ClassVar[Move.Phase]
        ADOPTED: _ClassVar[Move.Phase]
        LEFT: _ClassVar[Move.Phase]
    PHASE_UNSPECIFIED: Move.Phase
    SEALED: Move.Phase
    CANCELLED: Move.Phase
    ADOPTING: Move.Phase
    ADOPTED: Move.Phase
    LEFT: Move.Phase
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    FORCED_FIELD_NUMBER: _ClassVar[int]
    ATTESTATION_FIELD_NUMBER: _ClassVar[int]
    UPTO_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    DISOWNED_FIELD_NUMBER: _ClassVar[int]
    partition: Partition
    to: str
    epoch: int
    phase: Move.Phase
    forced: bool
    attestation: str
    upto: int
    age_ms: int
    since: int
    disowned: _containers.RepeatedCompositeFieldContainer[Former]
    def __init__(self, partition: _Optional[_Union[Partition, _Mapping]] = ..., to: _Optional[str] = ..., epoch: _Optional[int] = ..., phase: _Optional[_Union[Move.Phase, str]] = ..., forced: _Optional[bool] = ..., attestation: _Optional[str] = ..., upto: _Optional[int] = ..., age_ms: _Optional[int] = ..., since: _Optional[int] = ..., disowned: _Optional[_Iterable[_Union[Former, _Mapping]]] = ...) -> None: ...
