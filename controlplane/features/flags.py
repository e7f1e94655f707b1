"""Flags: typed variants under a name, and the agent configuration that five of them make.

The record holds flagd's definition whole. Targeting rules are stored by no one yet: a definition that carries some is
refused, because serving it without them would be a wrong answer that looks right.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from controlplane import limits
from controlplane.errors import Invalid, NotFound, Refused
from controlplane.features import checks
from controlplane.kernel.transaction import Kind, Reader, Row, Tx
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Flag, FlagType, FlagValue

FLAG = Kind("flag", Flag, history_kept=None)

BUCKETING = 3
"""Generation of the bucketing algorithm recorded with every flag written now."""

_FIELD_OF_TYPE = {
    FlagType.BOOL: "bool_value",
    FlagType.STRING: "string_value",
    FlagType.INT: "int_value",
    FlagType.NUMBER: "number_value",
    FlagType.JSON: "json_value",
}
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,307})(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class ConfigSpec:
    """A field of the agent configuration: the flag that decides it, the type it needs, and the built-in default."""

    field: str
    flag: str
    type: FlagType
    default: Any


AGENT_CONFIG = (
    ConfigSpec("prompt_version", "agent_prompt", FlagType.STRING, "v3"),
    ConfigSpec("model", "agent_model", FlagType.STRING, "gpt-4o-2024-08"),
    ConfigSpec("tools_enabled", "tools", FlagType.JSON, ("search", "calc")),
    ConfigSpec("max_iterations", "max_iter", FlagType.INT, 10),
    ConfigSpec("guardrails", "guardrails", FlagType.JSON, ("intent", "output", "approval")),
)

Lookup = Callable[[str], Row[Flag] | None]


def set_flag(tx: Tx, request: api.SetFlagRequest) -> api.SetFlagReply:
    """Write a flag whole. Refused if it does not stand where the caller expects it."""
    flag = _checked(request.flag)
    row = tx.get(FLAG, flag.name)
    if request.must_not_exist and row is not None:
        raise Refused("there is such a flag already", reason="FLAG_EXISTS", revision=row.revision)
    if request.expected_revision and (row.revision if row else 0) != request.expected_revision:
        raise Refused(
            "the flag was changed meanwhile",
            reason="REVISION_MISMATCH",
            hint="read it again, and decide again",
            revision=row.revision if row else 0,
        )
    return api.SetFlagReply(meta=checks.meta(tx.put(FLAG, flag.name, flag)))


def restore(tx: Tx, request: api.RestoreFlagRequest) -> api.RestoreFlagReply:
    """Write a flag as it stood at a revision, as a new revision."""
    name = checks.name(request.name, "name")
    tx.get(FLAG, name)
    row = tx.put(FLAG, name, tx.at(FLAG, name, request.revision).value)
    return api.RestoreFlagReply(flag=_view(row))


def get(reader: Reader, request: api.GetFlagRequest) -> api.GetFlagReply:
    """The flag now, or as it stood at a revision."""
    name = checks.name(request.name, "name")
    row = reader.at(FLAG, name, request.at_revision) if request.at_revision else reader.get(FLAG, name)
    if row is None:
        raise _missing()
    return api.GetFlagReply(flag=_view(row))


def list_flags(reader: Reader, request: api.ListFlagsRequest) -> api.ListFlagsReply:
    """Flags by name."""
    rows, more = checks.page(reader.list(FLAG, checks.prefix(request.prefix), request.after), request.limit)
    return api.ListFlagsReply(flags=[_view(row) for row in rows], more=more)


def history(reader: Reader, request: api.GetFlagHistoryRequest) -> api.GetFlagHistoryReply:
    """All versions, newest first: what ran, since when, set by whom, and why."""
    name = checks.name(request.name, "name")
    versions = (row for row in reader.history(FLAG, name, request.before_revision) if row is not None)
    rows, more = checks.page(versions, request.limit)
    if not rows and reader.get(FLAG, name) is None:
        raise _missing()
    return api.GetFlagHistoryReply(versions=[_view(row) for row in rows], more=more)


def get_agent_config(reader: Reader, request: api.GetAgentConfigRequest) -> api.GetAgentConfigReply:
    """The configuration for a user of a tenant, with revision and reason per field."""
    config, fields = agent_config(lambda name: reader.get(FLAG, name), request.user, request.tenant)
    return api.GetAgentConfigReply(config=config, fields=fields)


def agent_config(lookup: Lookup, user: str, tenant: str) -> tuple[api.AgentConfig, list[api.ConfigField]]:
    """Evaluate the configuration from flags as `lookup` shows them; the same function on server and in the SDK.

    `user` and `tenant` choose nothing until flags carry targeting rules; they are part of the signature so that
    callers pass them from the start.
    """
    del user, tenant
    values: dict[str, Any] = {}
    fields = []
    for spec in AGENT_CONFIG:
        values[spec.field], field = _evaluate(spec, lookup(spec.flag))
        fields.append(field)
    return api.AgentConfig(**values), fields


def value_of(value: FlagValue) -> Any:
    """A flag's value as Python has it; numbers stay exact text, JSON is parsed."""
    which = value.WhichOneof("value")
    if which == "json_value":
        return json.loads(value.json_value)
    return getattr(value, which) if which else None


def _evaluate(spec: ConfigSpec, row: Row[Flag] | None) -> tuple[Any, api.ConfigField]:
    field = api.ConfigField(name=spec.field, flag=spec.flag, reason=api.ConfigReason.DEFAULT)
    if row is None:
        return spec.default, field
    field.revision = row.revision
    flag = row.value
    if not flag.enabled:
        field.reason = api.ConfigReason.DISABLED
        return spec.default, field
    if not flag.HasField("default_variant"):
        return spec.default, field
    value = _usable(spec, flag)
    if value is None:
        field.reason = api.ConfigReason.ERROR
        return spec.default, field
    field.reason, field.variant = api.ConfigReason.STATIC, flag.default_variant
    return value, field


def _usable(spec: ConfigSpec, flag: Flag) -> Any:
    """The value of the default variant, or None if it is none for this field. A copy was checked by its home alone."""
    found = next((each.value for each in flag.variants if each.name == flag.default_variant), FlagValue())
    try:
        _check_value(found, spec.type)
    except Invalid:
        return None
    value = value_of(found)
    return value if flag.type == spec.type and _fits(spec, value) else None


def _fits(spec: ConfigSpec, value: Any) -> bool:
    if spec.type == FlagType.JSON:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return spec.type != FlagType.INT or 0 <= value < 1 << 32


def _checked(flag: Flag) -> Flag:
    """The flag as it will be stored. Raises `Invalid` where its parts do not fit together."""
    checks.name(flag.name, "flag.name")
    checks.free_text(flag.description, "flag.description")
    if flag.type not in _FIELD_OF_TYPE:
        raise Invalid("unknown type of flag", reason="FLAG_TYPE_UNKNOWN", field="flag.type")
    if flag.targeting:
        raise Invalid("targeting rules are not supported yet", reason="TARGETING_UNSUPPORTED", field="flag.targeting")
    _check_variants(flag)
    _check_metadata(flag.metadata)
    stored = Flag()
    stored.CopyFrom(flag)
    stored.bucketing = BUCKETING
    return checks.size(stored, "flag")


def _check_variants(flag: Flag) -> None:
    names = [checks.name(variant.name, "variant.name") for variant in flag.variants]
    checks.between(len(names), 1, limits.VARIANTS_MAX, "number of variants")
    if len(set(names)) != len(names):
        raise Invalid("two variants share a name", reason="VARIANT_TWICE", field="flag.variants")
    if flag.HasField("default_variant") and flag.default_variant not in names:
        raise Invalid(
            "the default variant is not among the variants",
            reason="VARIANT_UNKNOWN",
            field="flag.default_variant",
        )
    for variant in flag.variants:
        _check_value(variant.value, flag.type)


def _check_value(value: FlagValue, flag_type: FlagType) -> None:
    if value.WhichOneof("value") != _FIELD_OF_TYPE[flag_type]:
        raise Invalid("a variant's value is not of the flag's type", reason="VARIANT_TYPE", field="flag.variants")
    if flag_type == FlagType.NUMBER and not _is_number(value.number_value):
        raise Invalid("a number is not decimal text", reason="VARIANT_NUMBER", field="flag.variants")
    if flag_type == FlagType.JSON and not isinstance(_json(value.json_value, "flag.variants"), dict | list):
        raise Invalid("JSON must be an object or a list", reason="VARIANT_JSON", field="flag.variants")


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and math.isfinite(float(text))


def _check_metadata(metadata: str) -> None:
    if metadata and not isinstance(_json(metadata, "flag.metadata"), dict):
        raise Invalid("metadata must be a JSON object", reason="METADATA_BAD", field="flag.metadata")


def _json(value: str, field: str) -> Any:
    """What the text says, if every reader can say the same: no NaN, no half characters, nothing bottomless."""
    try:
        parsed = json.loads(value, parse_constant=_refuse_constant)
        json.dumps(parsed, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise Invalid("not JSON", reason="JSON_BAD", field=field) from None
    if _deeper_than(parsed, limits.JSON_DEPTH_MAX):
        raise Invalid(f"JSON is nested deeper than {limits.JSON_DEPTH_MAX} levels", reason="JSON_TOO_DEEP", field=field)
    return parsed


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _deeper_than(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper_than(each, levels - 1) for each in inner)


def _view(row: Row[Flag]) -> api.FlagView:
    return api.FlagView(flag=row.value, meta=checks.meta(row))


def _missing() -> NotFound:
    return NotFound("there is no such flag", reason="FLAG_NOT_FOUND")
