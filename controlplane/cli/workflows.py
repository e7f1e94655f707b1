"""`cpctl workflow ...`: workflow state by compare-and-swap."""

from __future__ import annotations

import click
from rich.console import RenderableType

from controlplane import sdk
from controlplane.cli import shapes, values
from controlplane.cli.command import Cpctl, Group, card, listing, paged, parsed, reads, run, table, writes
from controlplane.cli.shapes import Shape

_STATE_SHOWN = 60


@click.group("workflow", cls=Group)
def workflow() -> None:
    """Workflow state: created once, then changed by compare-and-swap."""


_schema = click.option("--schema-version", type=click.IntRange(0), default=1, show_default=True)
_code = click.option("--code-version", default="", help="The version of the workflow's code that writes this.")


@workflow.command("create")
@click.argument("workflow_id", metavar="ID")
@click.argument("state", callback=parsed(values.content))
@_schema
@_code
@writes
@run
async def create(
    cpctl: Cpctl,
    plane: sdk.ControlPlane,
    /,
    *,
    workflow_id: str,
    state: bytes,
    schema_version: int,
    code_version: str,
    options: sdk.WriteOptions,
) -> None:
    """Create a workflow at version 1. STATE, @FILE, or - for standard input."""
    reply = await plane.create_workflow(
        workflow_id,
        state,
        schema_version=schema_version,
        code_version=code_version,
        **options,
    )
    _written(cpctl, workflow_id, reply.version, reply.header.revision)


@workflow.command("cas")
@click.argument("workflow_id", metavar="ID")
@click.argument("version", type=click.IntRange(1))
@click.argument("state", callback=parsed(values.content))
@_schema
@_code
@writes
@run
async def cas(
    cpctl: Cpctl,
    plane: sdk.ControlPlane,
    /,
    *,
    workflow_id: str,
    version: int,
    state: bytes,
    schema_version: int,
    code_version: str,
    options: sdk.WriteOptions,
) -> None:
    """Replace the state if the workflow is still at VERSION; exit code 5 if it is not."""
    reply = await plane.compare_and_swap(
        workflow_id,
        version,
        state,
        schema_version=schema_version,
        code_version=code_version,
        **options,
    )
    _written(cpctl, workflow_id, reply.version, reply.header.revision)


def _written(cpctl: Cpctl, workflow_id: str, version: int, revision: int) -> None:
    document = {"id": workflow_id, "version": version, "revision": revision}
    cpctl.done(document, f"{workflow_id} is at version {version}, revision {revision}")


@workflow.command("get")
@click.argument("workflow_id", metavar="ID")
@click.option("--at", "at_revision", type=click.IntRange(0), default=0, help="As it stood at a revision.")
@reads
@run
async def get(
    cpctl: Cpctl, plane: sdk.ControlPlane, /, *, workflow_id: str, at_revision: int, options: sdk.ReadOptions
) -> None:
    """One workflow."""
    reply = await plane.get_workflow(workflow_id, at_revision=at_revision, **options)
    cpctl.show({**shapes.workflow_view(reply.workflow), "served": shapes.served(reply.header)}, _card)


@workflow.command("list")
@click.option("--prefix", default="", help="Only ids that begin so.")
@paged
@reads
@run
async def list_(cpctl: Cpctl, plane: sdk.ControlPlane, /, *, prefix: str, limit: int, options: sdk.ReadOptions) -> None:
    """All workflows."""

    async def page(after: str, count: int) -> tuple[list[Shape], str, bool]:
        reply = await plane.list_workflows(prefix=prefix, after=after, limit=count, **options)
        rows = [shapes.workflow_view(each) for each in reply.workflows]
        return rows, rows[-1]["id"] if rows else after, reply.more

    cpctl.show(await listing("workflows", limit, page, ""), lambda document: _table(document["workflows"]))


@workflow.command("history")
@click.argument("workflow_id", metavar="ID")
@paged
@reads
@run
async def history(
    cpctl: Cpctl, plane: sdk.ControlPlane, /, *, workflow_id: str, limit: int, options: sdk.ReadOptions
) -> None:
    """The versions that are kept, newest first."""

    async def page(before: int, count: int) -> tuple[list[Shape], int, bool]:
        reply = await plane.workflow_history(workflow_id, before_revision=before, limit=count, **options)
        rows = [shapes.workflow_view(each) for each in reply.versions]
        return rows, rows[-1]["meta"]["revision"] if rows else before, reply.more

    cpctl.show(await listing("versions", limit, page, 0), lambda document: _table(document["versions"]))


def _card(document: Shape) -> RenderableType:
    return card(
        id=document["id"],
        version=document["version"],
        state=document["state"],
        schema_version=document["schema_version"],
        code_version=document["code_version"],
        revision=document["meta"]["revision"],
        by=document["meta"]["actor"],
        reason=document["meta"]["reason"],
    )


def _short(state: str) -> str:
    return state if len(state) <= _STATE_SHOWN else state[:_STATE_SHOWN] + "…"


def _table(rows: list[Shape]) -> RenderableType:
    return table(
        rows,
        id=lambda row: row["id"],
        version=lambda row: row["version"],
        schema=lambda row: row["schema_version"],
        code=lambda row: row["code_version"],
        state=lambda row: _short(row["state"]),
        revision=lambda row: row["meta"]["revision"],
        by=lambda row: row["meta"]["actor"],
    )
