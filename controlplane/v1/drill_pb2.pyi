from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FaultKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAULT_KIND_UNSPECIFIED: _ClassVar[FaultKind]
    FAULT_RESERVE: _ClassVar[FaultKind]
    FAULT_KILL: _ClassVar[FaultKind]
    FAULT_RESTART: _ClassVar[FaultKind]
    FAULT_PAUSE: _ClassVar[FaultKind]
    FAULT_REPLACE: _ClassVar[FaultKind]
    FAULT_CUT_OUT: _ClassVar[FaultKind]
    FAULT_CUT_IN: _ClassVar[FaultKind]
    FAULT_CUT: _ClassVar[FaultKind]
    FAULT_DELAY: _ClassVar[FaultKind]
    FAULT_CUT_REGION: _ClassVar[FaultKind]
FAULT_KIND_UNSPECIFIED: FaultKind
FAULT_RESERVE: FaultKind
FAULT_KILL: FaultKind
FAULT_RESTART: FaultKind
FAULT_PAUSE: FaultKind
FAULT_REPLACE: FaultKind
FAULT_CUT_OUT: FaultKind
FAULT_CUT_IN: FaultKind
FAULT_CUT: FaultKind
FAULT_DELAY: FaultKind
FAULT_CUT_REGION: FaultKind

class Fault(_message.Message):
    __slots__ = ("drill", "id", "kind", "duration_ms", "peers", "delay_ms", "reason")
    DRILL_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    DELAY_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    drill: str
    id: str
    kind: FaultKind
    duration_ms: int
    peers: _containers.RepeatedScalarFieldContainer[str]
    delay_ms: int
    reason: str
    def __init__(self, drill: _Optional[str] = ..., id: _Optional[str] = ..., kind: _Optional[_Union[FaultKind, str]] = ..., duration_ms: _Optional[int] = ..., peers: _Optional[_Iterable[str]] = ..., delay_ms: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ActiveFault(_message.Message):
    __slots__ = ("fault", "actor", "remaining_ms")
    FAULT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REMAINING_MS_FIELD_NUMBER: _ClassVar[int]
    fault: Fault
    actor: str
    remaining_ms: int
    def __init__(self, fault: _Optional[_Union[Fault, _Mapping]] = ..., actor: _Optional[str] = ..., remaining_ms: _Optional[int] = ...) -> None: ...

class InjectFaultRequest(_message.Message):
    __slots__ = ("fault",)
    FAULT_FIELD_NUMBER: _ClassVar[int]
    fault: Fault
    def __init__(self, fault: _Optional[_Union[Fault, _Mapping]] = ...) -> None: ...

class InjectFaultReply(_message.Message):
    __slots__ = ("node", "repeated", "strikes_in_ms")
    NODE_FIELD_NUMBER: _ClassVar[int]
    REPEATED_FIELD_NUMBER: _ClassVar[int]
    STRIKES_IN_MS_FIELD_NUMBER: _ClassVar[int]
    node: str
    repeated: bool
    strikes_in_ms: int
    def __init__(self, node: _Optional[str] = ..., repeated: _Optional[bool] = ..., strikes_in_ms: _Optional[int] = ...) -> None: ...

class HealFaultsRequest(_message.Message):
    __slots__ = ("drill", "reason", "abort")
    DRILL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    drill: str
    reason: str
    abort: bool
    def __init__(self, drill: _Optional[str] = ..., reason: _Optional[str] = ..., abort: _Optional[bool] = ...) -> None: ...

class HealFaultsReply(_message.Message):
    __slots__ = ("node", "healed")
    NODE_FIELD_NUMBER: _ClassVar[int]
    HEALED_FIELD_NUMBER: _ClassVar[int]
    node: str
    healed: _containers.RepeatedCompositeFieldContainer[ActiveFault]
    def __init__(self, node: _Optional[str] = ..., healed: _Optional[_Iterable[_Union[ActiveFault, _Mapping]]] = ...) -> None: ...

class ListFaultsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListFaultsReply(_message.Message):
    __slots__ = ("node", "enabled", "faults", "aborted", "standing", "config_hash", "duration_ms_max", "started_as", "role", "applied")
    NODE_FIELD_NUMBER: _ClassVar[int]
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    ABORTED_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    CONFIG_HASH_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_MAX_FIELD_NUMBER: _ClassVar[int]
    STARTED_AS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    node: str
    enabled: bool
    faults: _containers.RepeatedCompositeFieldContainer[ActiveFault]
    aborted: _containers.RepeatedScalarFieldContainer[str]
    standing: str
    config_hash: str
    duration_ms_max: int
    started_as: str
    role: str
    applied: int
    def __init__(self, node: _Optional[str] = ..., enabled: _Optional[bool] = ..., faults: _Optional[_Iterable[_Union[ActiveFault, _Mapping]]] = ..., aborted: _Optional[_Iterable[str]] = ..., standing: _Optional[str] = ..., config_hash: _Optional[str] = ..., duration_ms_max: _Optional[int] = ..., started_as: _Optional[str] = ..., role: _Optional[str] = ..., applied: _Optional[int] = ...) -> None: ...
