from __future__ import annotations

import json

import pytest

from controlplane import errors, sdk
from controlplane.cli import shapes
from controlplane.cli.command import EXIT_CODES
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import records_pb2 as records


def test_every_error_has_an_exit_code_of_its_own() -> None:
    eight = set(errors.ControlPlaneError.__subclasses__())
    assert set(EXIT_CODES) == eight
    assert sorted(EXIT_CODES.values()) == list(range(2, 10))


@pytest.mark.parametrize(
    "shape",
    [
        shapes.status(api.GetStatusReply()),
        shapes.outline(api.GetOutlineReply(outline=api.Outline(), link=api.Link()), "us"),
        shapes.outline(api.GetOutlineReply(), "us"),
        shapes.break_glass(api.BreakGlassView()),
        shapes.no_outline("us", sdk.Denied("text", reason="R")),
        shapes.region(api.Region()),
        shapes.flag_view(api.FlagView()),
        shapes.workflow_view(api.WorkflowView()),
        shapes.election_view(api.ElectionView()),
        shapes.switch_view(api.SwitchView()),
        shapes.stop_view(api.StopView()),
        shapes.change(api.Change()),
        shapes.agent_config(api.GetAgentConfigReply()),
        shapes.error(sdk.Invalid("text", reason="R")),
    ],
)
def test_empty_messages_have_whole_shapes(shape: shapes.Shape) -> None:
    assert json.loads(json.dumps(shape)) == shape
    assert all(key.islower() for key in shape)


def test_what_is_not_known_is_null() -> None:
    unknown = (1 << 32) - 1
    assert shapes.member(api.Member(heard_ms=unknown))["heard_ms"] is None
    assert shapes.member(api.Member(heard_ms=7))["heard_ms"] == 7


def test_bytes_that_are_no_text_are_base64() -> None:
    assert shapes.content("state", b"a") == {"state": "a", "state_encoding": "utf-8"}
    assert shapes.content("state", b"\xff") == {"state": "/w==", "state_encoding": "base64"}


def test_every_kind_of_change_has_a_value() -> None:
    for kind, value in {
        "flag": records.Flag(name="f"),
        "switch": records.Switch(),
        "workflow": records.Workflow(id="w"),
        "election": records.Election(name="e"),
        "stop": records.Stop(engaged=True),
        "exception": records.StopException(region="r"),
    }.items():
        assert shapes.change(api.Change(kind=kind, **{kind: value}))["value"] is not None
    assert shapes.change(api.Change(kind="flag", name="f"))["value"] is None
