"""Kill switches: engaged or released, never deleted. An agent is stopped if any that covers it is engaged.

Engaging needs one person and is idempotent. Nothing about a switch depends on a clock, and a switch that was never
thrown has no record. `covering` is the same function on server, in the SDK and in checkers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from controlplane import limits
from controlplane.errors import Invalid
from controlplane.features import checks
from controlplane.kernel.transaction import Kind, Reader, Row, Tx
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Scope, ScopeKind, Switch

SWITCH = Kind("switch", Switch, history_kept=None, reserved=True)

_WORDS = {
    ScopeKind.SCOPE_REGION: "region",
    ScopeKind.SCOPE_ENVIRONMENT: "environment",
    ScopeKind.SCOPE_TENANT: "tenant",
    ScopeKind.SCOPE_AGENT_TYPE: "agent_type",
    ScopeKind.SCOPE_TOOL: "tool",
    ScopeKind.SCOPE_WORKFLOW: "workflow",
}
_NAMELESS = (ScopeKind.SCOPE_REGION, ScopeKind.SCOPE_ENVIRONMENT)


def record_name(scope: Scope) -> str:
    """The record's name for a scope, such as "tenant:acme". Raises `Invalid` for a scope that makes no sense."""
    word = _WORDS.get(scope.kind)
    if word is None:
        raise Invalid("unknown kind of scope", reason="SCOPE_UNKNOWN", field="scope.kind")
    if scope.kind in _NAMELESS:
        if scope.name:
            raise Invalid(
                f"scope {word} takes no name: it means the caller's own",
                reason="SCOPE_NAME_UNEXPECTED",
                field="scope.name",
            )
        return f"{word}:"
    return f"{word}:{checks.name(scope.name, 'scope.name')}"


def engage(tx: Tx, request: api.EngageSwitchRequest) -> api.EngageSwitchReply:
    """Stop everything in the scope. Engaging an engaged switch changes nothing and says so."""
    row, changed = _throw(tx, request.scope, engaged=True)
    return api.EngageSwitchReply(switch=_view(row), changed=changed)


def release(tx: Tx, request: api.ReleaseSwitchRequest) -> api.ReleaseSwitchReply:
    """Let the scope go on, as far as this switch is concerned. The record stays, and says who released it."""
    row, changed = _throw(tx, request.scope, engaged=False)
    return api.ReleaseSwitchReply(switch=_view(row), changed=changed)


def list_switches(reader: Reader, request: api.ListSwitchesRequest) -> api.ListSwitchesReply:
    """Switches by the name of their scope."""
    wanted = (row for row in reader.list(SWITCH, after=request.after) if row.value.engaged or not request.engaged_only)
    rows, more = checks.page(wanted, request.limit)
    return api.ListSwitchesReply(switches=[_view(row) for row in rows], more=more, next=rows[-1].name if more else "")


def check(reader: Reader, request: api.CheckSwitchesRequest) -> api.CheckSwitchesReply:
    """The engaged switches that cover a subject; none: it may act."""
    checks.between(len(request.subject.tools), 0, limits.SUBJECT_TOOLS_MAX, "number of tools")
    rows = (reader.get(SWITCH, name) for name in covering(request.subject))
    return api.CheckSwitchesReply(stopped_by=[_view(row) for row in rows if row and row.value.engaged])


def covering(subject: api.Subject) -> Iterator[str]:
    """Names of all records that could stop `subject`, the widest first."""
    yield "region:"
    yield "environment:"
    if subject.tenant:
        yield f"tenant:{subject.tenant}"
    if subject.agent_type:
        yield f"agent_type:{subject.agent_type}"
    if subject.workflow:
        yield f"workflow:{subject.workflow}"
    for tool in subject.tools:
        yield f"tool:{tool}"


def stopping(subject: api.Subject, engaged: Callable[[str], bool]) -> list[str]:
    """The names among `covering(subject)` that are engaged."""
    return [name for name in covering(subject) if engaged(name)]


def _throw(tx: Tx, scope: Scope, *, engaged: bool) -> tuple[Row[Switch], bool]:
    name = record_name(scope)
    if not checks.free_text(tx.reason, "reason").strip():
        raise Invalid(
            "a kill switch is thrown for a reason: say it in the header",
            reason="REASON_MISSING",
            field="header.reason",
        )
    row = tx.get(SWITCH, name)
    if row is not None and row.value.engaged == engaged:
        return row, False
    if row is None and not engaged:
        # It was never thrown: there is nothing to release, and no record to make of it.
        nobody = Switch(scope=scope)
        return Row(name, nobody, 0, 0, 0, "", "", "", 0), False
    by = (tx.actor, tx.reason) if engaged or row is None else (row.value.engaged_by, row.value.engaged_reason)
    switch = Switch(scope=scope, engaged=engaged, engaged_by=by[0], engaged_reason=by[1])
    return tx.put(SWITCH, name, switch), True


def _view(row: Row[Switch]) -> api.SwitchView:
    return api.SwitchView(switch=row.value, meta=checks.meta(row))
