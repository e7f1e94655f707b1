from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane import limits
from controlplane.cli import shapes, values
from controlplane.v1 import records_pb2 as records


@pytest.mark.parametrize(
    ("text", "looks"),
    [
        ("true", "bool"),
        ("-12", "int"),
        ("0.5", "number"),
        ("1e9", "number"),
        ('["a"]', "json"),
        ('{"a": 1}', "json"),
        ("gpt", "string"),
        ("", "string"),
        ("null", "string"),
    ],
)
def test_looks_decide_the_type(text: str, looks: str) -> None:
    assert values.flag_type_of(text) == looks


@pytest.mark.parametrize(
    ("text", "word"), [("yes", "bool"), ("1.5", "int"), (str(1 << 63), "int"), ("x", "number"), ("3", "json")]
)
def test_a_value_of_another_type_is_a_mistake(text: str, word: str) -> None:
    with pytest.raises(click.BadParameter, match=word):
        values.flag_value(text, word)


@given(st.one_of(st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), st.lists(st.text(), max_size=3)))
def test_a_value_comes_back_as_it_was_typed(value: object) -> None:
    text = json.dumps(value)
    typed = values.flag_value(text, values.flag_type_of(text))
    assert shapes.flag_value(typed) == value


@pytest.mark.parametrize("text", ["region", "environment", "tenant:acme", "agent_type:a:b", "tool:x", "workflow:w"])
def test_scopes_are_typed_as_they_are_shown(text: str) -> None:
    assert shapes.scope(values.scope(text)) == text


def test_a_hyphen_will_do() -> None:
    assert values.scope("agent-type:a") == records.Scope(kind=records.SCOPE_AGENT_TYPE, name="a")


@pytest.mark.parametrize("text", ["", "region:x", "tenant", "tenant:", "planet:earth"])
def test_no_scope(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no scope"):
        values.scope(text)


def test_fences_are_typed_as_they_are_shown() -> None:
    fence = values.fence("team:lead:2:17")
    assert (fence.election, fence.epoch, fence.revision) == ("team:lead", 2, 17)
    assert shapes.fence(fence)["text"] == "team:lead:2:17"


@pytest.mark.parametrize("text", ["", "a:1", ":1:2", "a:b:2", "a:1:-2"])
def test_no_fence(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no fence"):
        values.fence(text)


@pytest.mark.parametrize("text", ["", "xyz", "00" * 15, "00" * 17])
def test_no_request_id(text: str) -> None:
    with pytest.raises(click.BadParameter, match="32 hexadecimal"):
        values.request_id(text)


def test_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "value"
    file.write_bytes(b"\xff\n")
    assert values.content(f"@{file}") == b"\xff\n"
    with pytest.raises(click.BadParameter, match="not UTF-8"):
        values.text_content(f"@{file}")
    file.write_text("text\n")
    assert values.text_content(f"@{file}") == "text"


def test_what_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    file = tmp_path / "value"
    file.write_bytes(bytes(limits.VALUE_BYTES_MAX + 1))
    with pytest.raises(click.BadParameter, match="more than"):
        values.content(f"@{file}")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(click.BadParameter, match="/nowhere: No such file"):
        values.content("@/nowhere")


@pytest.mark.parametrize("pairs", [("a",), ("=1",), ("a=1", "a=2")])
def test_variants_have_names_of_their_own(pairs: tuple[str, ...]) -> None:
    with pytest.raises(click.BadParameter, match="NAME=VALUE"):
        values.variants(pairs)


def test_the_default_is_one_of_the_variants() -> None:
    with pytest.raises(click.BadParameter, match="none of the variants"):
        values.flag("f", {"a": "1"}, "b", type_word=None, enabled=True, description="")
