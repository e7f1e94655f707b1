from controlplane.v1 import raft_pb2 as _raft_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Standing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STANDING_UNSPECIFIED: _ClassVar[Standing]
    STANDING_MEMBER: _ClassVar[Standing]
    STANDING_BOOTSTRAPPING: _ClassVar[Standing]
    STANDING_REPLACING: _ClassVar[Standing]
STANDING_UNSPECIFIED: Standing
STANDING_MEMBER: Standing
STANDING_BOOTSTRAPPING: Standing
STANDING_REPLACING: Standing

class PeerFrame(_message.Message):
    __slots__ = ("hello", "batch", "goodbye", "part")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    hello: PeerHello
    batch: RaftBatch
    goodbye: Goodbye
    part: RaftPart
    def __init__(self, hello: _Optional[_Union[PeerHello, _Mapping]] = ..., batch: _Optional[_Union[RaftBatch, _Mapping]] = ..., goodbye: _Optional[_Union[Goodbye, _Mapping]] = ..., part: _Optional[_Union[RaftPart, _Mapping]] = ...) -> None: ...

class PeerHello(_message.Message):
    __slots__ = ("wire", "fleet", "region", "node", "to", "process", "generation", "incarnation", "known", "standing", "log_empty", "term", "last_index")
    WIRE_FIELD_NUMBER: _ClassVar[int]
    FLEET_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    LOG_EMPTY_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    LAST_INDEX_FIELD_NUMBER: _ClassVar[int]
    wire: int
    fleet: str
    region: str
    node: str
    to: str
    process: bytes
    generation: int
    incarnation: str
    known: str
    standing: Standing
    log_empty: bool
    term: int
    last_index: int
    def __init__(self, wire: _Optional[int] = ..., fleet: _Optional[str] = ..., region: _Optional[str] = ..., node: _Optional[str] = ..., to: _Optional[str] = ..., process: _Optional[bytes] = ..., generation: _Optional[int] = ..., incarnation: _Optional[str] = ..., known: _Optional[str] = ..., standing: _Optional[_Union[Standing, str]] = ..., log_empty: _Optional[bool] = ..., term: _Optional[int] = ..., last_index: _Optional[int] = ...) -> None: ...

class RaftBatch(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[_raft_pb2.RaftMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[_raft_pb2.RaftMessage, _Mapping]]] = ...) -> None: ...

class RaftPart(_message.Message):
    __slots__ = ("term", "size", "offset", "data")
    TERM_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    term: int
    size: int
    offset: int
    data: bytes
    def __init__(self, term: _Optional[int] = ..., size: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Goodbye(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SnapshotHeader(_message.Message):
    __slots__ = ("format", "fleet", "region", "index", "term")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    FLEET_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    format: int
    fleet: str
    region: str
    index: int
    term: int
    def __init__(self, format: _Optional[int] = ..., fleet: _Optional[str] = ..., region: _Optional[str] = ..., index: _Optional[int] = ..., term: _Optional[int] = ...) -> None: ...
