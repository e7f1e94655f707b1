"""The table of errors, both ways, against an expectation written out by hand."""

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from controlplane import errors, status

CODES = {
    "Invalid": "INVALID_ARGUMENT",
    "Denied": "PERMISSION_DENIED",
    "NotFound": "NOT_FOUND",
    "Refused": "FAILED_PRECONDITION",
    "Contended": "ABORTED",
    "Compacted": "OUT_OF_RANGE",
    "Unavailable": "UNAVAILABLE",
    "OutcomeUnknown": "DEADLINE_EXCEEDED",
}


@pytest.mark.parametrize("name", CODES)
def test_each_error_survives_the_wire(name):
    error = getattr(errors, name)("what happened", reason="SOME_REASON", hint="do this", oldest=7)
    assert status.code_of(error).name == CODES[name]
    back = status.decode(status.encode(error))
    assert type(back) is type(error)
    assert (str(back), back.reason, back.hint) == ("what happened", "SOME_REASON", "do this")
    assert back.details == {"oldest": "7"}


def test_every_error_has_a_row():
    assert {error.__name__ for error in errors.ControlPlaneError.__subclasses__()} == set(CODES)
    assert len(set(CODES.values())) == len(CODES)


@pytest.mark.parametrize("reason", ["IDENTITY_MISSING", "IDENTITY_MALFORMED"])
def test_callers_without_identity_are_unauthenticated(reason):
    error = errors.Denied("who are you", reason=reason)
    assert status.code_of(error) is grpc.StatusCode.UNAUTHENTICATED
    assert status.decode(status.encode(error)).reason == reason


def test_a_defect_leaves_without_its_text():
    encoded = status.encode(KeyError("a secret value"))
    assert status_pb2.Status.FromString(encoded).code == grpc.StatusCode.INTERNAL.value[0]
    assert b"secret" not in encoded
    assert isinstance(status.decode(encoded), errors.OutcomeUnknown)
    assert status.decode(encoded).reason == "INTERNAL"


def test_details_may_have_the_names_of_parameters():
    error = status.rebuild(errors.Refused, "text", "R", "", {"reason": "x", "self": "y", "message": "z"})
    assert status.decode(status.encode(error)).details == {"reason": "x", "self": "y", "message": "z"}


@pytest.mark.parametrize("code", ["CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "INTERNAL", "UNKNOWN"])
def test_a_call_that_broke_off_may_have_happened(code):
    assert isinstance(status.from_call(grpc.StatusCode[code], "broke", None), errors.OutcomeUnknown)


def test_our_status_in_the_trailers_wins():
    error = errors.Unavailable("no leader", reason="NO_LEADER")
    trailers = (("other", "x"), (status.TRAILER, status.encode(error)))
    back = status.from_call(grpc.StatusCode.UNAVAILABLE, "no leader", trailers)
    assert isinstance(back, errors.Unavailable)
    assert back.reason == "NO_LEADER"


@pytest.mark.parametrize("encoded", [b"\xff\xff\xff", b"", b"\x08\x05"])
def test_what_cannot_be_read_is_indefinite(encoded):
    assert isinstance(status.decode(encoded), errors.OutcomeUnknown)


def test_details_of_other_domains_and_damaged_ones_are_passed_over():
    foreign = status_pb2.Status(code=9, message="text")
    foreign.details.add().Pack(error_details_pb2.ErrorInfo(reason="OTHER", domain="example.com"))
    url = "type.googleapis.com/google.rpc.ErrorInfo"
    foreign.details.append(any_pb2.Any(type_url=url, value=b"\xff\xff"))
    assert status.decode(foreign.SerializeToString()).reason == "INTERNAL"
