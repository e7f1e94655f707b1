from controlplane.v1 import records_pb2 as _records_pb2
from controlplane.v1 import state_pb2 as _state_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Terms(_message.Message):
    __slots__ = ("fleet", "region", "jurisdiction", "peer", "peer_jurisdiction", "may_leave", "map_digest")
    FLEET_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    JURISDICTION_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    PEER_JURISDICTION_FIELD_NUMBER: _ClassVar[int]
    MAY_LEAVE_FIELD_NUMBER: _ClassVar[int]
    MAP_DIGEST_FIELD_NUMBER: _ClassVar[int]
    fleet: str
    region: str
    jurisdiction: str
    peer: str
    peer_jurisdiction: str
    may_leave: _containers.RepeatedScalarFieldContainer[_records_pb2.Reach]
    map_digest: bytes
    def __init__(self, fleet: _Optional[str] = ..., region: _Optional[str] = ..., jurisdiction: _Optional[str] = ..., peer: _Optional[str] = ..., peer_jurisdiction: _Optional[str] = ..., may_leave: _Optional[_Iterable[_Union[_records_pb2.Reach, str]]] = ..., map_digest: _Optional[bytes] = ...) -> None: ...

class FollowHello(_message.Message):
    __slots__ = ("terms", "reach", "epoch", "revision", "listing", "listed", "began")
    TERMS_FIELD_NUMBER: _ClassVar[int]
    REACH_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    LISTING_FIELD_NUMBER: _ClassVar[int]
    LISTED_FIELD_NUMBER: _ClassVar[int]
    BEGAN_FIELD_NUMBER: _ClassVar[int]
    terms: Terms
    reach: _records_pb2.Reach
    epoch: int
    revision: int
    listing: bool
    listed: bytes
    began: int
    def __init__(self, terms: _Optional[_Union[Terms, _Mapping]] = ..., reach: _Optional[_Union[_records_pb2.Reach, str]] = ..., epoch: _Optional[int] = ..., revision: _Optional[int] = ..., listing: _Optional[bool] = ..., listed: _Optional[bytes] = ..., began: _Optional[int] = ...) -> None: ...

class FollowAck(_message.Message):
    __slots__ = ("passage", "messages")
    PASSAGE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    passage: _records_pb2.Passage
    messages: int
    def __init__(self, passage: _Optional[_Union[_records_pb2.Passage, _Mapping]] = ..., messages: _Optional[int] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("hello", "ack", "asked")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    hello: FollowHello
    ack: FollowAck
    asked: int
    def __init__(self, hello: _Optional[_Union[FollowHello, _Mapping]] = ..., ack: _Optional[_Union[FollowAck, _Mapping]] = ..., asked: _Optional[int] = ...) -> None: ...

class FollowWelcome(_message.Message):
    __slots__ = ("terms", "oldest", "partitions", "arriving", "elsewhere", "restored")
    TERMS_FIELD_NUMBER: _ClassVar[int]
    OLDEST_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    ARRIVING_FIELD_NUMBER: _ClassVar[int]
    ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FIELD_NUMBER: _ClassVar[int]
    terms: Terms
    oldest: int
    partitions: _containers.RepeatedCompositeFieldContainer[_records_pb2.Partition]
    arriving: _containers.RepeatedCompositeFieldContainer[_records_pb2.Partition]
    elsewhere: _containers.RepeatedCompositeFieldContainer[_records_pb2.Partition]
    restored: int
    def __init__(self, terms: _Optional[_Union[Terms, _Mapping]] = ..., oldest: _Optional[int] = ..., partitions: _Optional[_Iterable[_Union[_records_pb2.Partition, _Mapping]]] = ..., arriving: _Optional[_Iterable[_Union[_records_pb2.Partition, _Mapping]]] = ..., elsewhere: _Optional[_Iterable[_Union[_records_pb2.Partition, _Mapping]]] = ..., restored: _Optional[int] = ...) -> None: ...

class Shared(_message.Message):
    __slots__ = ("key", "value", "origin")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    value: bytes
    origin: _state_pb2.Origin
    def __init__(self, key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., origin: _Optional[_Union[_state_pb2.Origin, _Mapping]] = ...) -> None: ...

class SharedTransaction(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[Shared]
    def __init__(self, records: _Optional[_Iterable[_Union[Shared, _Mapping]]] = ...) -> None: ...

class SharedPage(_message.Message):
    __slots__ = ("partition", "after", "upto", "records", "last", "epoch")
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    UPTO_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    partition: str
    after: bytes
    upto: bytes
    records: _containers.RepeatedCompositeFieldContainer[Shared]
    last: bool
    epoch: int
    def __init__(self, partition: _Optional[str] = ..., after: _Optional[bytes] = ..., upto: _Optional[bytes] = ..., records: _Optional[_Iterable[_Union[Shared, _Mapping]]] = ..., last: _Optional[bool] = ..., epoch: _Optional[int] = ...) -> None: ...

class FollowReply(_message.Message):
    __slots__ = ("revision", "age_ms", "welcome", "transaction", "page", "progress", "asked")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    AGE_MS_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    TRANSACTION_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    revision: int
    age_ms: int
    welcome: FollowWelcome
    transaction: SharedTransaction
    page: SharedPage
    progress: bool
    asked: int
    def __init__(self, revision: _Optional[int] = ..., age_ms: _Optional[int] = ..., welcome: _Optional[_Union[FollowWelcome, _Mapping]] = ..., transaction: _Optional[_Union[SharedTransaction, _Mapping]] = ..., page: _Optional[_Union[SharedPage, _Mapping]] = ..., progress: _Optional[bool] = ..., asked: _Optional[int] = ...) -> None: ...

class ForwardRequest(_message.Message):
    __slots__ = ("method", "request", "on_behalf_of", "timeout_ms", "terms")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ON_BEHALF_OF_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    method: str
    request: bytes
    on_behalf_of: str
    timeout_ms: int
    terms: Terms
    def __init__(self, method: _Optional[str] = ..., request: _Optional[bytes] = ..., on_behalf_of: _Optional[str] = ..., timeout_ms: _Optional[int] = ..., terms: _Optional[_Union[Terms, _Mapping]] = ...) -> None: ...

class ForwardReply(_message.Message):
    __slots__ = ("reply",)
    REPLY_FIELD_NUMBER: _ClassVar[int]
    reply: bytes
    def __init__(self, reply: _Optional[bytes] = ...) -> None: ...

class CosignRequest(_message.Message):
    __slots__ = ("note", "old", "proof")
    NOTE_FIELD_NUMBER: _ClassVar[int]
    OLD_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    note: bytes
    old: int
    proof: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, note: _Optional[bytes] = ..., old: _Optional[int] = ..., proof: _Optional[_Iterable[bytes]] = ...) -> None: ...

class CosignReply(_message.Message):
    __slots__ = ("line", "seen")
    LINE_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    line: str
    seen: int
    def __init__(self, line: _Optional[str] = ..., seen: _Optional[int] = ...) -> None: ...

class AdoptRequest(_message.Message):
    __slots__ = ("terms", "partition", "epoch", "sealed", "cancel")
    TERMS_FIELD_NUMBER: _ClassVar[int]
    PARTITION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEALED_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    terms: Terms
    partition: _records_pb2.Partition
    epoch: int
    sealed: int
    cancel: bool
    def __init__(self, terms: _Optional[_Union[Terms, _Mapping]] = ..., partition: _Optional[_Union[_records_pb2.Partition, _Mapping]] = ..., epoch: _Optional[int] = ..., sealed: _Optional[int] = ..., cancel: _Optional[bool] = ...) -> None: ...

class AdoptReply(_message.Message):
    __slots__ = ("phase", "copied")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    COPIED_FIELD_NUMBER: _ClassVar[int]
    phase: _records_pb2.Move.Phase
    copied: int
    def __init__(self, phase: _Optional[_Union[_records_pb2.Move.Phase, str]] = ..., copied: _Optional[int] = ...) -> None: ...
