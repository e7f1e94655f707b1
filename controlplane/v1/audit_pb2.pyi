from controlplane.v1 import api_pb2 as _api_pb2
from controlplane.v1 import records_pb2 as _records_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetCheckpointRequest(_message.Message):
    __slots__ = ("header", "size")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    header: _api_pb2.RequestHeader
    size: int
    def __init__(self, header: _Optional[_Union[_api_pb2.RequestHeader, _Mapping]] = ..., size: _Optional[int] = ...) -> None: ...

class CosignedCheckpoint(_message.Message):
    __slots__ = ("region", "note")
    REGION_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    region: str
    note: bytes
    def __init__(self, region: _Optional[str] = ..., note: _Optional[bytes] = ...) -> None: ...

class GetCheckpointReply(_message.Message):
    __slots__ = ("header", "region", "size", "note", "cosigned", "partitions")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    COSIGNED_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    header: _api_pb2.ReplyHeader
    region: _api_pb2.Region
    size: int
    note: bytes
    cosigned: _containers.RepeatedCompositeFieldContainer[CosignedCheckpoint]
    partitions: _containers.RepeatedCompositeFieldContainer[_records_pb2.Partition]
    def __init__(self, header: _Optional[_Union[_api_pb2.ReplyHeader, _Mapping]] = ..., region: _Optional[_Union[_api_pb2.Region, _Mapping]] = ..., size: _Optional[int] = ..., note: _Optional[bytes] = ..., cosigned: _Optional[_Iterable[_Union[CosignedCheckpoint, _Mapping]]] = ..., partitions: _Optional[_Iterable[_Union[_records_pb2.Partition, _Mapping]]] = ...) -> None: ...

class ReadLedgerRequest(_message.Message):
    __slots__ = ("header", "from_ms", "to_ms", "size")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FROM_MS_FIELD_NUMBER: _ClassVar[int]
    TO_MS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    header: _api_pb2.RequestHeader
    from_ms: int
    to_ms: int
    size: int
    def __init__(self, header: _Optional[_Union[_api_pb2.RequestHeader, _Mapping]] = ..., from_ms: _Optional[int] = ..., to_ms: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class OpenedRecord(_message.Message):
    __slots__ = ("leaf", "n", "name", "key", "content")
    LEAF_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    leaf: int
    n: int
    name: str
    key: bytes
    content: bytes
    def __init__(self, leaf: _Optional[int] = ..., n: _Optional[int] = ..., name: _Optional[str] = ..., key: _Optional[bytes] = ..., content: _Optional[bytes] = ...) -> None: ...

class ReadLedgerReply(_message.Message):
    __slots__ = ("start", "leaves", "records")
    START_FIELD_NUMBER: _ClassVar[int]
    LEAVES_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    start: int
    leaves: _containers.RepeatedScalarFieldContainer[bytes]
    records: _containers.RepeatedCompositeFieldContainer[OpenedRecord]
    def __init__(self, start: _Optional[int] = ..., leaves: _Optional[_Iterable[bytes]] = ..., records: _Optional[_Iterable[_Union[OpenedRecord, _Mapping]]] = ...) -> None: ...

class NodeAt(_message.Message):
    __slots__ = ("level", "at")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    level: int
    at: int
    def __init__(self, level: _Optional[int] = ..., at: _Optional[int] = ...) -> None: ...

class ReadNodesRequest(_message.Message):
    __slots__ = ("header", "nodes")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    header: _api_pb2.RequestHeader
    nodes: _containers.RepeatedCompositeFieldContainer[NodeAt]
    def __init__(self, header: _Optional[_Union[_api_pb2.RequestHeader, _Mapping]] = ..., nodes: _Optional[_Iterable[_Union[NodeAt, _Mapping]]] = ...) -> None: ...

class ReadNodesReply(_message.Message):
    __slots__ = ("header", "hashes")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    header: _api_pb2.ReplyHeader
    hashes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, header: _Optional[_Union[_api_pb2.ReplyHeader, _Mapping]] = ..., hashes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ScanDiskRequest(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: _api_pb2.RequestHeader
    def __init__(self, header: _Optional[_Union[_api_pb2.RequestHeader, _Mapping]] = ...) -> None: ...

class ScanDiskReply(_message.Message):
    __slots__ = ("header", "node", "note", "foreign", "findings")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    header: _api_pb2.ReplyHeader
    node: str
    note: bytes
    foreign: int
    findings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, header: _Optional[_Union[_api_pb2.ReplyHeader, _Mapping]] = ..., node: _Optional[str] = ..., note: _Optional[bytes] = ..., foreign: _Optional[int] = ..., findings: _Optional[_Iterable[str]] = ...) -> None: ...
