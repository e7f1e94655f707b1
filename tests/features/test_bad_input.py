"""Whatever a caller sends, every method answers with a reply or one of the eight errors, and the node lives on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane import features, limits
from controlplane.errors import ControlPlaneError, Invalid
from controlplane.features import flags
from controlplane.node import Call
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Flag, FlagType, FlagValue, Scope, ScopeKind, Variant
from tests.node.harness import AGENT, PROCESS, Region, within

REQUESTS: dict[str, type[Message]] = {
    **{name: method.request for name, method in {**features.WRITES, **features.READS}.items()},
    "GetOutcome": api.GetOutcomeRequest,
    "ListEvents": api.ListEventsRequest,
}
TEXTS = st.sampled_from(["", "w", "e", "f", "a", "tools", "a\0b", " a", "a\n", "é" * 200, "x" * 257, "x" * 256])
TEXTS |= st.sampled_from(['["a"]', '["\\ud800"]', "[NaN]", "[1e999]", "{}", "[" * 70 + "]" * 70, "1e3", "NaN"])
TEXTS |= st.text(max_size=4)
NUMBERS = st.sampled_from([0, 1, 2, 3, 5, 500, 1000, 1001, (1 << 31) - 1])
WIDE = NUMBERS | st.sampled_from([(1 << 32) - 1])
WIDEST = WIDE | st.sampled_from([(1 << 63) - 1, 1 << 63, (1 << 64) - 1])
BYTES = st.sampled_from([b"", b"p" * 16, b"short", b"x" * 17, b"\xff" * 16]) | st.binary(max_size=3)
OF_TYPE = {
    FieldDescriptor.TYPE_STRING: TEXTS,
    FieldDescriptor.TYPE_BYTES: BYTES,
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_UINT32: WIDE,
    FieldDescriptor.TYPE_UINT64: WIDEST,
    FieldDescriptor.TYPE_INT64: st.integers(-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.TYPE_ENUM: st.integers(-2, 9),
}


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return messages(field.message_type._concrete_class, depth - 1)
    return OF_TYPE[field.type]


@st.composite
def messages(draw: st.DrawFn, kind: type[Message], depth: int = 4) -> Message:
    """Any message of a kind, with values that mean something often enough to get past the first check."""
    message = kind()
    for field in kind.DESCRIPTOR.fields:
        if field.name == "header" and draw(st.integers(0, 3)):
            message.header.reason = "why"  # type: ignore[attr-defined]
            continue
        if not draw(st.integers(0, 3)) or depth == 0:
            continue
        one = values(field, depth)
        drawn = draw(st.lists(one, max_size=2) if field.is_repeated else one)
        if field.is_repeated:
            getattr(message, field.name).extend(drawn)
        elif isinstance(drawn, Message):
            getattr(message, field.name).CopyFrom(drawn)
        else:
            setattr(message, field.name, drawn)
    return message


CALLS = st.sampled_from(sorted(REQUESTS)).flatmap(
    lambda name: st.tuples(st.just(name), messages(REQUESTS[name]), st.booleans())
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(CALLS, min_size=1, max_size=8))
def test_any_calls_are_answered_and_leave_the_node_alive(calls: list[tuple[str, Message, bool]]) -> None:
    asyncio.run(survive(calls))


async def survive(calls: list[tuple[str, Message, bool]]) -> None:
    async with Region() as region:
        await region.create("w")
        await region.call("Campaign", api.CampaignRequest(name="e", process=PROCESS, ttl_ms=1000))
        for method, request, proper in calls:
            if proper:
                request.header.request_id = region.entropy(16)  # type: ignore[attr-defined]
                request.header.ClearField("since")  # type: ignore[attr-defined]
                request.header.consistency = api.LOCAL  # type: ignore[attr-defined]
            call = Call(method, request.SerializeToString(), AGENT, "prod", region.now_s + 0.02)
            try:
                await within(region.node.submit(call))
            except ControlPlaneError as error:
                check_error(error)
        assert (await region.call("GetAgentConfig", api.GetAgentConfigRequest())).config.model
        assert not region.node.failed.done()


def check_error(error: ControlPlaneError) -> None:
    assert type(error).__mro__[1] is ControlPlaneError
    assert error.reason == error.reason.upper()
    assert len(str(error)) < 500
    assert AGENT not in str(error)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(REQUESTS)), st.binary(max_size=60))
def test_any_bytes_are_answered(method: str, garbage: bytes) -> None:
    async def answer() -> None:
        async with Region() as region:
            try:
                await within(region.node.submit(Call(method, garbage, AGENT, "prod", region.now_s + 0.02)))
            except ControlPlaneError as error:
                check_error(error)
            assert not region.node.failed.done()

    asyncio.run(answer())


# One by one: what is refused, and under which reason


def variant(name: str = "on", **value: Any) -> Variant:
    return Variant(name=name, value=FlagValue(**value))


def flag(type_: FlagType = FlagType.BOOL, **fields: Any) -> Flag:
    return Flag(**{"name": "f", "type": type_, "variants": [variant(bool_value=True)], **fields})


def set_flag(type_: FlagType = FlagType.BOOL, **fields: Any) -> api.SetFlagRequest:
    return api.SetFlagRequest(flag=flag(type_, **fields))


def json_flag(text: str) -> api.SetFlagRequest:
    return set_flag(FlagType.JSON, variants=[variant(json_value=text)])


def number_flag(text: str) -> api.SetFlagRequest:
    return set_flag(FlagType.NUMBER, variants=[variant(number_value=text)])


def campaign(**fields: Any) -> api.CampaignRequest:
    return api.CampaignRequest(**{"name": "e", "process": PROCESS, "ttl_ms": 1000, **fields})


def engage(kind: int = ScopeKind.SCOPE_TENANT, name: str = "acme", reason: str = "why") -> api.EngageSwitchRequest:
    return api.EngageSwitchRequest(scope=Scope(kind=kind, name=name), header={"reason": reason})


LARGE = limits.VALUE_BYTES_MAX
BAD_NAMES = {
    "": "NAME_EMPTY",
    "x" * 257: "NAME_TOO_LONG",
    "é" * 129: "NAME_TOO_LONG",
    "a\0b": "NAME_BAD_CHARACTERS",
    "a\nb": "NAME_BAD_CHARACTERS",
    "a\x7f": "NAME_BAD_CHARACTERS",
    "a\x85b": "NAME_BAD_CHARACTERS",
    "a\u2028b": "NAME_BAD_CHARACTERS",
    " secret": "NAME_BAD_CHARACTERS",
    "secret\u3000": "NAME_BAD_CHARACTERS",
}
NAMED = {
    "CreateWorkflow": lambda name: api.CreateWorkflowRequest(id=name),
    "CompareAndSwapWorkflow": lambda name: api.CompareAndSwapWorkflowRequest(id=name, version=1),
    "GetWorkflow": lambda name: api.GetWorkflowRequest(id=name),
    "GetWorkflowHistory": lambda name: api.GetWorkflowHistoryRequest(id=name),
    "Campaign": lambda name: campaign(name=name),
    "Renew": lambda name: api.RenewRequest(name=name, process=PROCESS),
    "Resign": lambda name: api.ResignRequest(name=name, process=PROCESS),
    "GetElection": lambda name: api.GetElectionRequest(name=name),
    "SetFlag": lambda name: set_flag(name=name),
    "RestoreFlag": lambda name: api.RestoreFlagRequest(name=name, revision=1),
    "GetFlag": lambda name: api.GetFlagRequest(name=name),
    "GetFlagHistory": lambda name: api.GetFlagHistoryRequest(name=name),
    "EngageSwitch": lambda name: engage(name=name),
    "ReleaseSwitch": lambda name: api.ReleaseSwitchRequest(scope=engage(name=name).scope, header={"reason": "why"}),
}
INVALID = [
    ("CreateWorkflow", api.CreateWorkflowRequest(id="w", state=b"x" * (LARGE + 1)), "VALUE_TOO_LARGE"),
    ("CreateWorkflow", api.CreateWorkflowRequest(id="w", state=b"x" * LARGE), "VALUE_TOO_LARGE"),
    ("CreateWorkflow", api.CreateWorkflowRequest(id="w", schema_version=1 << 31), "OUT_OF_RANGE"),
    ("CreateWorkflow", api.CreateWorkflowRequest(id="w", code_version="a\tb"), "NAME_BAD_CHARACTERS"),
    ("CreateWorkflow", api.CreateWorkflowRequest(id="w", code_version="x" * 300), "NAME_TOO_LONG"),
    ("CreateWorkflow", api.CreateWorkflowRequest(id="w", header={"reason": "x" * 1025}), "TEXT_TOO_LONG"),
    ("CreateWorkflow", api.CreateWorkflowRequest(id="w", header={"reason": "a\nb"}), "TEXT_BAD_CHARACTERS"),
    ("Campaign", campaign(ttl_ms=0), "OUT_OF_RANGE"),
    ("Campaign", campaign(ttl_ms=limits.LEASE_TTL_MS_MIN - 1), "OUT_OF_RANGE"),
    ("Campaign", campaign(ttl_ms=limits.LEASE_TTL_MS_MAX + 1), "OUT_OF_RANGE"),
    ("Campaign", campaign(process=b""), "PROCESS_BAD"),
    ("Campaign", campaign(process=b"x" * 17), "PROCESS_BAD"),
    ("Campaign", campaign(value=b"x" * LARGE), "VALUE_TOO_LARGE"),
    ("Renew", api.RenewRequest(name="e", process=b"x"), "PROCESS_BAD"),
    ("Resign", api.ResignRequest(name="e", process=b"x"), "PROCESS_BAD"),
    ("SetFlag", api.SetFlagRequest(), "NAME_EMPTY"),
    ("SetFlag", set_flag(FlagType.FLAG_TYPE_UNSPECIFIED), "FLAG_TYPE_UNKNOWN"),
    ("SetFlag", set_flag(77), "FLAG_TYPE_UNKNOWN"),
    ("SetFlag", set_flag(targeting="{}"), "TARGETING_UNSUPPORTED"),
    ("SetFlag", set_flag(description="x" * 1025), "TEXT_TOO_LONG"),
    ("SetFlag", set_flag(description="a\0"), "TEXT_BAD_CHARACTERS"),
    ("SetFlag", set_flag(metadata="[1]"), "METADATA_BAD"),
    ("SetFlag", set_flag(metadata="{"), "JSON_BAD"),
    ("SetFlag", set_flag(variants=[]), "OUT_OF_RANGE"),
    ("SetFlag", set_flag(variants=[variant(f"v{n}", bool_value=True) for n in range(65)]), "OUT_OF_RANGE"),
    ("SetFlag", set_flag(variants=[variant(bool_value=True)] * 2), "VARIANT_TWICE"),
    ("SetFlag", set_flag(variants=[variant("", bool_value=True)]), "NAME_EMPTY"),
    ("SetFlag", set_flag(variants=[Variant(name="on")]), "VARIANT_TYPE"),
    ("SetFlag", set_flag(variants=[variant(string_value="true")]), "VARIANT_TYPE"),
    ("SetFlag", set_flag(FlagType.INT), "VARIANT_TYPE"),
    ("SetFlag", set_flag(FlagType.JSON, variants=[variant(string_value="[]")]), "VARIANT_TYPE"),
    ("SetFlag", set_flag(default_variant="off"), "VARIANT_UNKNOWN"),
    ("SetFlag", set_flag(default_variant=""), "VARIANT_UNKNOWN"),
    *[
        ("SetFlag", number_flag(text), "VARIANT_NUMBER")
        for text in (
            *("", "NaN", "nan", "Infinity", "-inf", "1e999", "0x1", "01", "1.", ".5", " 1", "1\n", "1_0", "\u0661"),
            *("9" * 400, "1e9999", "--1", "+1"),
        )
    ],
    *[
        ("SetFlag", json_flag(text), "JSON_BAD")
        for text in (
            *("", "{", "[NaN]", "[Infinity]", "[-Infinity]", "[1e999]", '["\\ud800"]', '{"\\udfff": 1}', "[1] x"),
            *("[" * 100_000, '{"a":' * 5000, "['a']", "[" + "1" * 5000 + "]"),
        )
    ],
    *[("SetFlag", json_flag(text), "VARIANT_JSON") for text in ("1", '"text"', "null", "true")],
    ("SetFlag", json_flag("[" * 66 + "]" * 66), "JSON_TOO_DEEP"),
    ("SetFlag", json_flag('{"a":' * 66 + "1" + "}" * 66), "JSON_TOO_DEEP"),
    ("SetFlag", json_flag('["' + "x" * LARGE + '"]'), "VALUE_TOO_LARGE"),
    ("EngageSwitch", engage(reason=""), "REASON_MISSING"),
    ("EngageSwitch", engage(reason="  "), "REASON_MISSING"),
    ("EngageSwitch", engage(ScopeKind.SCOPE_KIND_UNSPECIFIED), "SCOPE_UNKNOWN"),
    ("EngageSwitch", engage(77), "SCOPE_UNKNOWN"),
    ("EngageSwitch", engage(ScopeKind.SCOPE_REGION, "eu"), "SCOPE_NAME_UNEXPECTED"),
    ("EngageSwitch", engage(ScopeKind.SCOPE_ENVIRONMENT, "prod"), "SCOPE_NAME_UNEXPECTED"),
    ("ReleaseSwitch", api.ReleaseSwitchRequest(scope=engage().scope), "REASON_MISSING"),
    ("CheckSwitches", api.CheckSwitchesRequest(subject={"tools": ["t"] * 257}), "OUT_OF_RANGE"),
    *[
        (method, kind(limit=limits.PAGE_MAX + 1, **more), "OUT_OF_RANGE")
        for method, kind, more in (
            ("ListWorkflows", api.ListWorkflowsRequest, {}),
            ("ListElections", api.ListElectionsRequest, {}),
            ("ListFlags", api.ListFlagsRequest, {}),
            ("ListSwitches", api.ListSwitchesRequest, {}),
            ("GetWorkflowHistory", api.GetWorkflowHistoryRequest, {"id": "w"}),
            ("GetFlagHistory", api.GetFlagHistoryRequest, {"name": "f"}),
            ("ListEvents", api.ListEventsRequest, {"kinds": ["flag"]}),
        )
    ],
    *[
        (method, kind(prefix=prefix), "PREFIX_BAD")
        for method, kind in (
            ("ListWorkflows", api.ListWorkflowsRequest),
            ("ListElections", api.ListElectionsRequest),
            ("ListFlags", api.ListFlagsRequest),
        )
        for prefix in ("a\0", "\n", "x" * 257)
    ],
    ("ListEvents", api.ListEventsRequest(kinds=["nothing"]), "KIND_UNKNOWN"),
    ("ListEvents", api.ListEventsRequest(), "PARTITION_AMBIGUOUS"),
    ("GetOutcome", api.GetOutcomeRequest(), "REQUEST_ID_BAD"),
]


@pytest.mark.parametrize("method", NAMED)
async def test_every_name_is_checked(method: str) -> None:
    async with Region() as region:
        for name, reason in BAD_NAMES.items():
            with pytest.raises(Invalid) as caught:
                await region.call(method, NAMED[method](name))
            assert caught.value.reason == reason
            assert caught.value.details["field"]
            assert "secret" not in str(caught.value)
        assert region.node.revision == 0


@pytest.mark.parametrize(
    ("method", "request_", "reason"), INVALID, ids=[f"{n}-{m}-{r}" for n, (m, _, r) in enumerate(INVALID)]
)
async def test_bad_content_is_invalid_and_leaves_no_trace(method: str, request_: Message, reason: str) -> None:
    async with Region() as region:
        copy = type(request_).FromString(request_.SerializeToString())
        with pytest.raises(Invalid) as caught:
            await region.call(method, copy)
        assert caught.value.reason == reason
        assert region.node.revision == 0


@pytest.mark.parametrize("size", [limits.VALUE_BYTES_MAX - 600, limits.VALUE_BYTES_MAX - 40])
async def test_values_up_to_the_bound_are_taken(size: int) -> None:
    async with Region() as region:
        large = b"x" * size
        assert (await region.create("w", large)).version == 1
        assert (await region.workflow("w")).workflow.workflow.state == large
        if size < limits.VALUE_BYTES_MAX - 100:
            assert (await region.call("Campaign", campaign(value=large))).elected
        text = large.decode()
        big = set_flag(FlagType.STRING, variants=[variant(string_value=text)])
        await region.call("SetFlag", big)
        got = await region.call("GetFlag", api.GetFlagRequest(name="f"))
        assert got.flag.flag.variants[0].value.string_value == text


async def test_names_at_the_bound_are_taken() -> None:
    async with Region() as region:
        for name in ("x" * 256, "é" * 128, "a b", "a:b/c", "\U0001f600"):
            assert (await region.create(name)).version == 1
            assert (await region.workflow(name)).workflow.workflow.id == name


@pytest.mark.parametrize("text", ["0", "-0", "1.5", "-12.25e-3", "1E+308", "9" * 308])
async def test_decimal_text_is_a_number_and_stays_as_it_was_written(text: str) -> None:
    async with Region() as region:
        await region.call("SetFlag", number_flag(text))
        got = (await region.call("GetFlag", api.GetFlagRequest(name="f"))).flag.flag
        assert flags.value_of(got.variants[0].value) == text
