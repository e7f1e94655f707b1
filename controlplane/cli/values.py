"""What people type, as messages: values of flags, scopes, fences, contents of files. Pure but for files.

Every mistake is a `click.BadParameter` that says what to type instead.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from controlplane import limits
from controlplane.cli.shapes import FLAG_TYPES, SCOPE_KINDS
from controlplane.v1 import api_pb2 as api
from controlplane.v1 import records_pb2 as records

_TYPES = {word: number for number, word in FLAG_TYPES.items()}
_KINDS = {word: number for number, word in SCOPE_KINDS.items()}
_NAMELESS = ("region", "environment")
_INT = re.compile(r"-?[0-9]{1,19}")
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
TYPE_WORDS = tuple(_TYPES)


def content(text: str) -> bytes:
    """The bytes meant by `text`: itself, or with `@file` a file's, or with `-` those of standard input."""
    if text == "-":
        read = sys.stdin.buffer.read(limits.VALUE_BYTES_MAX + 1)
    elif text.startswith("@"):
        read = _file(Path(text[1:]))
    else:
        read = text.encode()
    if len(read) > limits.VALUE_BYTES_MAX:
        raise click.BadParameter(f"more than {limits.VALUE_BYTES_MAX} bytes; a value may not be larger")
    return read


def text_content(text: str) -> str:
    """The same, for what has to be text; one newline at the end of a file is not part of it."""
    try:
        decoded = content(text).decode()
    except UnicodeDecodeError:
        raise click.BadParameter("not UTF-8 text") from None
    return decoded.removesuffix("\n") if text == "-" or text.startswith("@") else decoded


def _file(path: Path) -> bytes:
    try:
        with path.open("rb") as opened:
            return opened.read(limits.VALUE_BYTES_MAX + 1)
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}") from None


def scope(text: str) -> records.Scope:
    """`tenant:acme`, `tool:search`, `region`, ... as a scope."""
    word, _, name = text.partition(":")
    kind = _KINDS.get(word.replace("-", "_"))
    if kind is None or bool(name) == (word in _NAMELESS):
        raise click.BadParameter(
            f"{text!r} is no scope: type region, environment, tenant:NAME, agent_type:NAME, tool:NAME or workflow:NAME"
        )
    return records.Scope(kind=kind, name=name)


def fence(text: str) -> api.Fence:
    """`election:epoch:revision` as a fence."""
    match text.rsplit(":", 2):
        case [name, epoch, revision] if name and epoch.isdecimal() and revision.isdecimal():
            return api.Fence(election=name, epoch=int(epoch), revision=int(revision))
    raise click.BadParameter(f"{text!r} is no fence: type ELECTION:EPOCH:REVISION, as `cpctl election get` shows it")


def request_id(text: str) -> bytes:
    """32 hexadecimal digits as a request id."""
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != limits.REQUEST_ID_BYTES:
        raise click.BadParameter(
            f"{text!r} is no request id: type its {2 * limits.REQUEST_ID_BYTES} hexadecimal digits"
        )
    return value


def flag_type_of(text: str) -> str:
    """The type that a value looks like: true, 3, 0.5, {"a": 1}, or else a string."""
    if text in ("true", "false"):
        return "bool"
    if _INT.fullmatch(text):
        return "int"
    if _NUMBER.fullmatch(text):
        return "number"
    return "json" if isinstance(_json(text), dict | list) else "string"


def flag_value(text: str, type_word: str) -> records.FlagValue:
    """`text` as a value of that type."""
    match type_word:
        case "bool" if text in ("true", "false"):
            return records.FlagValue(bool_value=text == "true")
        case "int" if _INT.fullmatch(text) and -(1 << 63) <= int(text) < 1 << 63:
            return records.FlagValue(int_value=int(text))
        case "number" if _NUMBER.fullmatch(text):
            return records.FlagValue(number_value=text)
        case "json" if isinstance(_json(text), dict | list):
            return records.FlagValue(json_value=text)
        case "string":
            return records.FlagValue(string_value=text)
    raise click.BadParameter(f"{text!r} is not of type {type_word}; name another one with --type")


def flag(
    name: str,
    variants: dict[str, str],
    default: str,
    *,
    type_word: str | None,
    enabled: bool,
    description: str,
) -> records.Flag:
    """A definition from what was typed; without a type, the first variant's looks decide."""
    texts = {each: text_content(text) for each, text in variants.items()}
    word = type_word or flag_type_of(next(iter(texts.values())))
    if default not in texts:
        raise click.BadParameter(f"{default!r} is none of the variants {', '.join(texts)}; name one with --default")
    return records.Flag(
        name=name,
        type=_TYPES[word],
        enabled=enabled,
        variants=[records.Variant(name=each, value=flag_value(text, word)) for each, text in texts.items()],
        default_variant=default,
        description=description,
    )


def variants(pairs: tuple[str, ...]) -> dict[str, str]:
    """`name=value` pairs as a table."""
    table: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals or name in table:
            raise click.BadParameter(f"{pair!r}: type NAME=VALUE, each name once", param_hint="--variant")
        table[name] = value
    return table


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
