from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Entry(_message.Message):
    __slots__ = ("base", "at_ms", "salt", "txns", "base_hash")
    BASE_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    TXNS_FIELD_NUMBER: _ClassVar[int]
    BASE_HASH_FIELD_NUMBER: _ClassVar[int]
    base: int
    at_ms: int
    salt: bytes
    txns: _containers.RepeatedCompositeFieldContainer[Txn]
    base_hash: bytes
    def __init__(self, base: _Optional[int] = ..., at_ms: _Optional[int] = ..., salt: _Optional[bytes] = ..., txns: _Optional[_Iterable[_Union[Txn, _Mapping]]] = ..., base_hash: _Optional[bytes] = ...) -> None: ...

class Txn(_message.Message):
    __slots__ = ("request", "actor", "action", "reason", "scope", "guards", "writes", "reply", "refusal", "trims", "erases")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    GUARDS_FIELD_NUMBER: _ClassVar[int]
    WRITES_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    TRIMS_FIELD_NUMBER: _ClassVar[int]
    ERASES_FIELD_NUMBER: _ClassVar[int]
    request: RequestId
    actor: str
    action: str
    reason: str
    scope: bytes
    guards: _containers.RepeatedCompositeFieldContainer[Guard]
    writes: _containers.RepeatedCompositeFieldContainer[Write]
    reply: bytes
    refusal: Refusal
    trims: _containers.RepeatedCompositeFieldContainer[Range]
    erases: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, request: _Optional[_Union[RequestId, _Mapping]] = ..., actor: _Optional[str] = ..., action: _Optional[str] = ..., reason: _Optional[str] = ..., scope: _Optional[bytes] = ..., guards: _Optional[_Iterable[_Union[Guard, _Mapping]]] = ..., writes: _Optional[_Iterable[_Union[Write, _Mapping]]] = ..., reply: _Optional[bytes] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., trims: _Optional[_Iterable[_Union[Range, _Mapping]]] = ..., erases: _Optional[_Iterable[bytes]] = ...) -> None: ...

class RequestId(_message.Message):
    __slots__ = ("identity", "nonce", "epoch", "since", "digest")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    identity: str
    nonce: bytes
    epoch: int
    since: int
    digest: bytes
    def __init__(self, identity: _Optional[str] = ..., nonce: _Optional[bytes] = ..., epoch: _Optional[int] = ..., since: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Guard(_message.Message):
    __slots__ = ("key", "revision")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    revision: int
    def __init__(self, key: _Optional[bytes] = ..., revision: _Optional[int] = ...) -> None: ...

class Write(_message.Message):
    __slots__ = ("key", "value", "quiet", "history", "origin", "after_version")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    QUIET_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    AFTER_VERSION_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    value: bytes
    quiet: bool
    history: bool
    origin: Origin
    after_version: int
    def __init__(self, key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., quiet: _Optional[bool] = ..., history: _Optional[bool] = ..., origin: _Optional[_Union[Origin, _Mapping]] = ..., after_version: _Optional[int] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: bytes
    end: bytes
    def __init__(self, start: _Optional[bytes] = ..., end: _Optional[bytes] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("revision", "key", "value", "created", "version", "actor", "action", "reason", "at_ms", "origin")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    revision: int
    key: bytes
    value: bytes
    created: int
    version: int
    actor: str
    action: str
    reason: str
    at_ms: int
    origin: Origin
    def __init__(self, revision: _Optional[int] = ..., key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., created: _Optional[int] = ..., version: _Optional[int] = ..., actor: _Optional[str] = ..., action: _Optional[str] = ..., reason: _Optional[str] = ..., at_ms: _Optional[int] = ..., origin: _Optional[_Union[Origin, _Mapping]] = ...) -> None: ...

class Origin(_message.Message):
    __slots__ = ("home", "epoch", "revision", "created", "version", "at_ms")
    HOME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    home: str
    epoch: int
    revision: int
    created: int
    version: int
    at_ms: int
    def __init__(self, home: _Optional[str] = ..., epoch: _Optional[int] = ..., revision: _Optional[int] = ..., created: _Optional[int] = ..., version: _Optional[int] = ..., at_ms: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("error", "reason", "message", "hint", "details")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    error: str
    reason: str
    message: str
    hint: str
    details: _containers.RepeatedCompositeFieldContainer[Detail]
    def __init__(self, error: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., hint: _Optional[str] = ..., details: _Optional[_Iterable[_Union[Detail, _Mapping]]] = ...) -> None: ...

class Detail(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("verdict", "revision", "reply", "refusal", "digest", "detail")
    class Verdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        VERDICT_UNSPECIFIED: _ClassVar[Outcome.Verdict]
        COMMITTED: _ClassVar[Outcome.Verdict]
        REFUSED: _ClassVar[Outcome.Verdict]
        CONFLICT: _ClassVar[Outcome.Verdict]
        FORGOTTEN: _ClassVar[Outcome.Verdict]
        MALFORMED: _ClassVar[Outcome.Verdict]
        REUSED: _ClassVar[Outcome.Verdict]
    VERDICT_UNSPECIFIED: Outcome.Verdict
    COMMITTED: Outcome.Verdict
    REFUSED: Outcome.Verdict
    CONFLICT: Outcome.Verdict
    FORGOTTEN: Outcome.Verdict
    MALFORMED: Outcome.Verdict
    REUSED: Outcome.Verdict
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    verdict: Outcome.Verdict
    revision: int
    reply: bytes
    refusal: Refusal
    digest: bytes
    detail: str
    def __init__(self, verdict: _Optional[_Union[Outcome.Verdict, str]] = ..., revision: _Optional[int] = ..., reply: _Optional[bytes] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., digest: _Optional[bytes] = ..., detail: _Optional[str] = ...) -> None: ...

class State(_message.Message):
    __slots__ = ("index", "term", "revision", "hash", "at_ms", "records", "live_bytes", "outcome_span", "format")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    AT_MS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    LIVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_SPAN_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    index: int
    term: int
    revision: int
    hash: bytes
    at_ms: int
    records: int
    live_bytes: int
    outcome_span: int
    format: int
    def __init__(self, index: _Optional[int] = ..., term: _Optional[int] = ..., revision: _Optional[int] = ..., hash: _Optional[bytes] = ..., at_ms: _Optional[int] = ..., records: _Optional[int] = ..., live_bytes: _Optional[int] = ..., outcome_span: _Optional[int] = ..., format: _Optional[int] = ...) -> None: ...
