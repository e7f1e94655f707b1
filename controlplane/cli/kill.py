"""`cpctl kill ...`: stop agents, and let them go on."""

from __future__ import annotations

import sys

import click
from rich.console import RenderableType
from rich.text import Text

from controlplane import sdk
from controlplane.cli import shapes, values
from controlplane.cli.command import (
    EXIT_STOPPED,
    Cpctl,
    Group,
    justified_writes,
    paged,
    pages,
    parsed,
    reads,
    run,
    table,
)
from controlplane.cli.shapes import Shape


@click.group("kill", cls=Group)
def kill() -> None:
    """Kill switches. SCOPE is region, environment, tenant:NAME, agent_type:NAME, tool:NAME or workflow:NAME."""


@kill.command("engage")
@click.argument("scope", callback=parsed(values.scope))
@justified_writes
@run
async def engage(cpctl: Cpctl, plane: sdk.ControlPlane, /, *, scope: sdk.Scope, options: sdk.WriteOptions) -> None:
    """Stop everything in SCOPE, at once. A --reason is required."""
    reply = await plane.engage(scope, **options)
    document = {**shapes.switch_view(reply.switch), "changed": reply.changed}
    said = "is engaged" if reply.changed else "was engaged already"
    cpctl.done(document, f"{document['scope']} {said}, revision {reply.switch.meta.revision}")


@kill.command("release")
@click.argument("scope", callback=parsed(values.scope))
@justified_writes
@run
async def release(cpctl: Cpctl, plane: sdk.ControlPlane, /, *, scope: sdk.Scope, options: sdk.WriteOptions) -> None:
    """Let SCOPE go on, as far as this switch is concerned. A --reason is required."""
    reply = await plane.release(scope, **options)
    document = {**shapes.switch_view(reply.switch), "changed": reply.changed}
    said = "is released" if reply.changed else "was not engaged"
    cpctl.done(document, f"{document['scope']} {said}, revision {reply.switch.meta.revision}")


@kill.command("list")
@click.option("--engaged", "engaged_only", is_flag=True, help="Only those that stop something now.")
@paged
@reads
@run
async def list_(
    cpctl: Cpctl, plane: sdk.ControlPlane, /, *, engaged_only: bool, limit: int, options: sdk.ReadOptions
) -> None:
    """All switches that were ever thrown."""

    async def page(after: str, count: int) -> tuple[list[Shape], str, bool]:
        reply = await plane.list_switches(engaged_only=engaged_only, after=after, limit=count, **options)
        return [shapes.switch_view(each) for each in reply.switches], reply.next, reply.more

    cpctl.show({"switches": await pages(limit, page, "")}, lambda document: _table(document["switches"]))


@kill.command("check")
@click.option("--tenant", default="")
@click.option("--agent-type", default="")
@click.option("--workflow", default="")
@click.option("--tool", "tools", multiple=True)
@reads
@run
async def check(
    cpctl: Cpctl,
    plane: sdk.ControlPlane,
    /,
    *,
    tenant: str,
    agent_type: str,
    workflow: str,
    tools: tuple[str, ...],
    options: sdk.ReadOptions,
) -> None:
    """May such an agent act? Exit code 0 if it may, 10 if switches stop it."""
    subject = sdk.Subject(tenant=tenant, agent_type=agent_type, workflow=workflow, tools=tools)
    reply = await plane.check_switches(subject, **options)
    stopped_by = [shapes.switch_view(each) for each in reply.stopped_by]
    document = {"stopped": bool(stopped_by), "stopped_by": stopped_by, "served": shapes.served(reply.header)}
    cpctl.show(document, _verdict)
    if stopped_by and cpctl.watch_every_s is None:
        sys.exit(EXIT_STOPPED)


def _verdict(document: Shape) -> RenderableType:
    return _table(document["stopped_by"]) if document["stopped"] else Text("may act", style="green")


def _table(rows: list[Shape]) -> RenderableType:
    return table(
        rows,
        scope=lambda row: row["scope"],
        state=lambda row: Text("ENGAGED", style="bold red") if row["engaged"] else Text("released", style="dim"),
        engaged_by=lambda row: row["engaged_by"],
        reason=lambda row: row["engaged_reason"],
        last_by=lambda row: row["meta"]["actor"],
        revision=lambda row: row["meta"]["revision"],
    )
