"""Workflow state: opaque bytes that change by compare-and-swap, each version with the shape and code that wrote it."""

from __future__ import annotations

from controlplane import limits
from controlplane.errors import NotFound, Refused
from controlplane.features import checks
from controlplane.kernel.transaction import Kind, Reader, Row, Tx
from controlplane.v1 import api_pb2 as api
from controlplane.v1.records_pb2 import Workflow

WORKFLOW = Kind("workflow", Workflow, history_kept=limits.WORKFLOW_HISTORY_KEPT, erasable=True)


def create(tx: Tx, request: api.CreateWorkflowRequest) -> api.CreateWorkflowReply:
    """Create a workflow at version 1. Refused if there is one."""
    row = tx.get(WORKFLOW, checks.name(request.id, "id"))
    if row is not None:
        raise Refused("there is such a workflow already", reason="WORKFLOW_EXISTS", version=row.version)
    return api.CreateWorkflowReply(version=tx.put(WORKFLOW, request.id, _workflow(request)).version)


def compare_and_swap(tx: Tx, request: api.CompareAndSwapWorkflowRequest) -> api.CompareAndSwapWorkflowReply:
    """Replace the state if it stands at `version`. Refused otherwise, naming the version that it has."""
    row = tx.get(WORKFLOW, checks.name(request.id, "id"))
    if row is None:
        raise _missing()
    if row.version != request.version:
        raise Refused(
            f"the workflow is at version {row.version}, not {request.version}",
            reason="VERSION_MISMATCH",
            hint="read it again, and decide again",
            version=row.version,
        )
    return api.CompareAndSwapWorkflowReply(version=tx.put(WORKFLOW, request.id, _workflow(request)).version)


def get(reader: Reader, request: api.GetWorkflowRequest) -> api.GetWorkflowReply:
    """The workflow now, or as it stood at a revision. Refused if the caller cannot read its schema version."""
    name = checks.name(request.id, "id")
    row = reader.at(WORKFLOW, name, request.at_revision) if request.at_revision else reader.get(WORKFLOW, name)
    if row is None:
        raise _missing()
    if request.schema_min or request.schema_max:
        _readable(row.value, request.schema_min, request.schema_max)
    return api.GetWorkflowReply(workflow=_view(row))


def list_workflows(reader: Reader, request: api.ListWorkflowsRequest) -> api.ListWorkflowsReply:
    """Workflows by id."""
    rows, more = checks.page(reader.list(WORKFLOW, checks.prefix(request.prefix), request.after), request.limit)
    return api.ListWorkflowsReply(workflows=[_view(row) for row in rows], more=more)


def history(reader: Reader, request: api.GetWorkflowHistoryRequest) -> api.GetWorkflowHistoryReply:
    """Kept versions, newest first."""
    name = checks.name(request.id, "id")
    versions = (row for row in reader.history(WORKFLOW, name, request.before_revision) if row is not None)
    rows, more = checks.page(versions, request.limit)
    if not rows and reader.get(WORKFLOW, name) is None:
        raise _missing()
    return api.GetWorkflowHistoryReply(versions=[_view(row) for row in rows], more=more)


def _workflow(request: api.CreateWorkflowRequest | api.CompareAndSwapWorkflowRequest) -> Workflow:
    checks.between(request.schema_version, 0, limits.SCHEMA_VERSION_MAX, "schema_version")
    if request.code_version:
        checks.name(request.code_version, "code_version")
    workflow = Workflow(
        id=request.id,
        state=request.state,
        schema_version=request.schema_version,
        code_version=request.code_version,
    )
    return checks.size(workflow, "state")


def _readable(workflow: Workflow, low: int, high: int) -> None:
    if not low <= workflow.schema_version <= high:
        raise Refused(
            f"the state has schema version {workflow.schema_version}; the caller reads {low} … {high}",
            reason="SCHEMA_UNREADABLE",
            hint="run a version of the code that reads it, or migrate the state",
            schema_version=workflow.schema_version,
            code_version=workflow.code_version,
        )


def _view(row: Row[Workflow]) -> api.WorkflowView:
    return api.WorkflowView(workflow=row.value, version=row.version, meta=checks.meta(row))


def _missing() -> NotFound:
    return NotFound("there is no such workflow", reason="WORKFLOW_NOT_FOUND")
