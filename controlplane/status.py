"""The eight errors on the wire and back: one table, used by the server and by the SDK.

An error travels as a `google.rpc.Status` with one `ErrorInfo` (domain "controlplane", the error's reason;
hint and details in its metadata): in the trailing metadata of a call, or as bytes inside a session's reply.

What gRPC itself reports carries no `ErrorInfo`. It is read with the request in mind: a call that broke off or
ran out of time may have happened, so it decodes to `OutcomeUnknown`, never to `Unavailable`.

`OutcomeUnknown` shares DEADLINE_EXCEEDED with calls that gRPC timed out, because to the caller both mean the
same: it may have happened, ask again with the same request id. The reason tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

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

DOMAIN: Final = "controlplane"
TRAILER: Final = "grpc-status-details-bin"
UNAUTHENTICATED_REASONS: Final = frozenset({"IDENTITY_MISSING", "IDENTITY_MALFORMED"})
"""Denials that say "who are you" and not "you may not": they leave as UNAUTHENTICATED."""

_HINT = "hint"

_CODES: Final[dict[type[ControlPlaneError], grpc.StatusCode]] = {
    Invalid: grpc.StatusCode.INVALID_ARGUMENT,
    Denied: grpc.StatusCode.PERMISSION_DENIED,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Refused: grpc.StatusCode.FAILED_PRECONDITION,
    Contended: grpc.StatusCode.ABORTED,
    Compacted: grpc.StatusCode.OUT_OF_RANGE,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    OutcomeUnknown: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_ERRORS: Final = {code: error for error, code in _CODES.items()} | {grpc.StatusCode.UNAUTHENTICATED: Denied}
_BY_NUMBER: Final = {code.value[0]: code for code in grpc.StatusCode}

_BARE: Final[dict[grpc.StatusCode, tuple[type[ControlPlaneError], str]]] = {
    grpc.StatusCode.CANCELLED: (OutcomeUnknown, "CALL_CANCELLED"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (OutcomeUnknown, "DEADLINE"),
    grpc.StatusCode.UNAVAILABLE: (OutcomeUnknown, "CONNECTION_LOST"),
    grpc.StatusCode.UNIMPLEMENTED: (Invalid, "METHOD_UNKNOWN"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (Invalid, "MESSAGE_TOO_LARGE"),
    grpc.StatusCode.INVALID_ARGUMENT: (Invalid, "INVALID"),
    grpc.StatusCode.PERMISSION_DENIED: (Denied, "DENIED"),
    grpc.StatusCode.UNAUTHENTICATED: (Denied, "IDENTITY_MISSING"),
}
"""What a status without our `ErrorInfo` means; the rest is OutcomeUnknown with reason INTERNAL."""


def code_of(error: BaseException) -> grpc.StatusCode:
    """Return the code `error` leaves with; INTERNAL for anything but the eight errors."""
    if isinstance(error, Denied) and error.reason in UNAUTHENTICATED_REASONS:
        return grpc.StatusCode.UNAUTHENTICATED
    return _CODES.get(type(error), grpc.StatusCode.INTERNAL)  # type: ignore[arg-type]


def text_of(error: BaseException) -> str:
    """Return the text `error` leaves with; that of a defect stays here."""
    return str(error) if isinstance(error, ControlPlaneError) else "internal error"


def encode(error: BaseException) -> bytes:
    """Return `error` as an encoded google.rpc.Status. Defects become INTERNAL and lose their text."""
    status = status_pb2.Status(code=code_of(error).value[0], message=text_of(error))
    if isinstance(error, ControlPlaneError):
        metadata = {**error.details, _HINT: error.hint} if error.hint else error.details
        info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
        # The same bytes for the same error: what callers of other regions are told is kept by its digest.
        status.details.add().Pack(info, deterministic=True)
    encoded: bytes = status.SerializeToString(deterministic=True)
    return encoded


def decode(encoded: bytes) -> ControlPlaneError:
    """Return the error that `encode` was given; what cannot be read is OutcomeUnknown (INTERNAL)."""
    try:
        status = status_pb2.Status.FromString(encoded)
    except DecodeError:
        return _bare(grpc.StatusCode.INTERNAL, "the server's status cannot be read")
    code = _BY_NUMBER.get(status.code, grpc.StatusCode.UNKNOWN)
    info = _info(status)
    if info is None or code not in _ERRORS:
        return _bare(code, status.message)
    details = dict(info.metadata)
    hint = details.pop(_HINT, "")
    return rebuild(_ERRORS[code], status.message, info.reason, hint, details)


def rebuild(
    kind: type[ControlPlaneError], message: str, reason: str, hint: str, details: dict[str, str]
) -> ControlPlaneError:
    """Return an error of `kind` with details of any names, such as those that arrived from elsewhere."""
    error = kind(message, reason=reason, hint=hint)
    error.details = details
    return error


def from_call(
    code: grpc.StatusCode, text: str | None, trailers: Iterable[tuple[str, str | bytes]] | None
) -> ControlPlaneError:
    """Return the error of a gRPC call that ended with `code`."""
    for name, value in trailers or ():
        if name == TRAILER and isinstance(value, bytes):
            return decode(value)
    return _bare(code, text or "")


def _info(status: status_pb2.Status) -> error_details_pb2.ErrorInfo | None:
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        try:
            if detail.Unpack(info) and info.domain == DOMAIN:
                return info
        except DecodeError:
            continue
    return None


def _bare(code: grpc.StatusCode, text: str) -> ControlPlaneError:
    kind, reason = _BARE.get(code, (OutcomeUnknown, "INTERNAL"))
    return kind(text or code.value[1], reason=reason)
