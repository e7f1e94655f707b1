from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LogEntry(_message.Message):
    __slots__ = ("index", "term", "payload")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    index: int
    term: int
    payload: bytes
    def __init__(self, index: _Optional[int] = ..., term: _Optional[int] = ..., payload: _Optional[bytes] = ...) -> None: ...

class RaftMessage(_message.Message):
    __slots__ = ("version", "term", "append", "append_ack", "pre_vote", "pre_vote_reply", "vote", "vote_reply", "timeout_now", "snapshot_chunk", "snapshot_ack", "read", "read_reply")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    APPEND_FIELD_NUMBER: _ClassVar[int]
    APPEND_ACK_FIELD_NUMBER: _ClassVar[int]
    PRE_VOTE_FIELD_NUMBER: _ClassVar[int]
    PRE_VOTE_REPLY_FIELD_NUMBER: _ClassVar[int]
    VOTE_FIELD_NUMBER: _ClassVar[int]
    VOTE_REPLY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_NOW_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_CHUNK_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ACK_FIELD_NUMBER: _ClassVar[int]
    READ_FIELD_NUMBER: _ClassVar[int]
    READ_REPLY_FIELD_NUMBER: _ClassVar[int]
    version: int
    term: int
    append: Append
    append_ack: AppendAck
    pre_vote: PreVote
    pre_vote_reply: PreVoteReply
    vote: Vote
    vote_reply: VoteReply
    timeout_now: TimeoutNow
    snapshot_chunk: SnapshotChunk
    snapshot_ack: SnapshotAck
    read: Read
    read_reply: ReadReply
    def __init__(self, version: _Optional[int] = ..., term: _Optional[int] = ..., append: _Optional[_Union[Append, _Mapping]] = ..., append_ack: _Optional[_Union[AppendAck, _Mapping]] = ..., pre_vote: _Optional[_Union[PreVote, _Mapping]] = ..., pre_vote_reply: _Optional[_Union[PreVoteReply, _Mapping]] = ..., vote: _Optional[_Union[Vote, _Mapping]] = ..., vote_reply: _Optional[_Union[VoteReply, _Mapping]] = ..., timeout_now: _Optional[_Union[TimeoutNow, _Mapping]] = ..., snapshot_chunk: _Optional[_Union[SnapshotChunk, _Mapping]] = ..., snapshot_ack: _Optional[_Union[SnapshotAck, _Mapping]] = ..., read: _Optional[_Union[Read, _Mapping]] = ..., read_reply: _Optional[_Union[ReadReply, _Mapping]] = ...) -> None: ...

class Append(_message.Message):
    __slots__ = ("prev_index", "prev_term", "entries", "commit", "round", "stream", "unanchored", "mark", "notice")
    PREV_INDEX_FIELD_NUMBER: _ClassVar[int]
    PREV_TERM_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    UNANCHORED_FIELD_NUMBER: _ClassVar[int]
    MARK_FIELD_NUMBER: _ClassVar[int]
    NOTICE_FIELD_NUMBER: _ClassVar[int]
    prev_index: int
    prev_term: int
    entries: _containers.RepeatedCompositeFieldContainer[LogEntry]
    commit: int
    round: int
    stream: int
    unanchored: bool
    mark: bytes
    notice: bool
    def __init__(self, prev_index: _Optional[int] = ..., prev_term: _Optional[int] = ..., entries: _Optional[_Iterable[_Union[LogEntry, _Mapping]]] = ..., commit: _Optional[int] = ..., round: _Optional[int] = ..., stream: _Optional[int] = ..., unanchored: _Optional[bool] = ..., mark: _Optional[bytes] = ..., notice: _Optional[bool] = ...) -> None: ...

class AppendAck(_message.Message):
    __slots__ = ("result", "round", "stream", "match", "prev_index", "hint", "learner", "free_bytes")
    class Result(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        RESULT_UNSPECIFIED: _ClassVar[AppendAck.Result]
        RESULT_HEARD: _ClassVar[AppendAck.Result]
        RESULT_MATCHED: _ClassVar[AppendAck.Result]
        RESULT_CONFLICT: _ClassVar[AppendAck.Result]
    RESULT_UNSPECIFIED: AppendAck.Result
    RESULT_HEARD: AppendAck.Result
    RESULT_MATCHED: AppendAck.Result
    RESULT_CONFLICT: AppendAck.Result
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    MATCH_FIELD_NUMBER: _ClassVar[int]
    PREV_INDEX_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    LEARNER_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    result: AppendAck.Result
    round: int
    stream: int
    match: int
    prev_index: int
    hint: int
    learner: bool
    free_bytes: int
    def __init__(self, result: _Optional[_Union[AppendAck.Result, str]] = ..., round: _Optional[int] = ..., stream: _Optional[int] = ..., match: _Optional[int] = ..., prev_index: _Optional[int] = ..., hint: _Optional[int] = ..., learner: _Optional[bool] = ..., free_bytes: _Optional[int] = ...) -> None: ...

class PreVote(_message.Message):
    __slots__ = ("next_term", "last_index", "last_term", "nonce")
    NEXT_TERM_FIELD_NUMBER: _ClassVar[int]
    LAST_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAST_TERM_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    next_term: int
    last_index: int
    last_term: int
    nonce: int
    def __init__(self, next_term: _Optional[int] = ..., last_index: _Optional[int] = ..., last_term: _Optional[int] = ..., nonce: _Optional[int] = ...) -> None: ...

class PreVoteReply(_message.Message):
    __slots__ = ("next_term", "granted", "nonce")
    NEXT_TERM_FIELD_NUMBER: _ClassVar[int]
    GRANTED_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    next_term: int
    granted: bool
    nonce: int
    def __init__(self, next_term: _Optional[int] = ..., granted: _Optional[bool] = ..., nonce: _Optional[int] = ...) -> None: ...

class Vote(_message.Message):
    __slots__ = ("last_index", "last_term", "forced")
    LAST_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAST_TERM_FIELD_NUMBER: _ClassVar[int]
    FORCED_FIELD_NUMBER: _ClassVar[int]
    last_index: int
    last_term: int
    forced: bool
    def __init__(self, last_index: _Optional[int] = ..., last_term: _Optional[int] = ..., forced: _Optional[bool] = ...) -> None: ...

class VoteReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TimeoutNow(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SnapshotChunk(_message.Message):
    __slots__ = ("index", "index_term", "size", "digest", "offset", "data", "commit")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    INDEX_TERM_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    index: int
    index_term: int
    size: int
    digest: bytes
    offset: int
    data: bytes
    commit: int
    def __init__(self, index: _Optional[int] = ..., index_term: _Optional[int] = ..., size: _Optional[int] = ..., digest: _Optional[bytes] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ..., commit: _Optional[int] = ...) -> None: ...

class SnapshotAck(_message.Message):
    __slots__ = ("index", "offset")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    index: int
    offset: int
    def __init__(self, index: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class Read(_message.Message):
    __slots__ = ("nonce", "number", "learner")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    LEARNER_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    number: int
    learner: bool
    def __init__(self, nonce: _Optional[int] = ..., number: _Optional[int] = ..., learner: _Optional[bool] = ...) -> None: ...

class ReadReply(_message.Message):
    __slots__ = ("nonce", "number", "known", "index")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    number: int
    known: bool
    index: int
    def __init__(self, nonce: _Optional[int] = ..., number: _Optional[int] = ..., known: _Optional[bool] = ..., index: _Optional[int] = ...) -> None: ...
