"""`cpctl kill ...`: stop agents, and let them go on; see what other regions stop, and answer for not heeding it."""

from __future__ import annotations

import sys
from functools import partial

import click
from rich.console import Group as Together
from rich.console import RenderableType
from rich.text import Text

from controlplane import sdk
from controlplane.cli import shapes, values
from controlplane.cli.command import (
    EXIT_STOPPED,
    Cpctl,
    Group,
    card,
    confirm,
    justified_writes,
    listing,
    paged,
    parsed,
    reads,
    run,
    table,
)
from controlplane.cli.shapes import Shape
from controlplane.features import switches
from controlplane.identity import ENVIRONMENTS


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
    """All switches that were ever thrown here, and what other regions stop.

    Of another region's stop only an id is known, unless a switch or an exception here is for the same scope.
    """
    stops: list[Shape] = []

    async def page(after: str, count: int) -> tuple[list[Shape], str, bool]:
        reply = await plane.list_switches(engaged_only=engaged_only, after=after, limit=count, **options)
        stops.extend(shapes.stop_view(each) for each in reply.stops)
        return [shapes.switch_view(each) for each in reply.switches], reply.next, reply.more

    cpctl.show({**await listing("switches", limit, page, ""), "stops": stops}, _list_page)


@kill.command("except")
@click.argument("scope", callback=parsed(values.scope))
@click.option("--region", required=True, help="Whose stop it is.")
@click.option("--epoch", type=click.IntRange(1), required=True, help="Of that stop, as `cpctl kill list` shows it.")
@click.option("--revision", type=click.IntRange(1), required=True, help="Of that stop.")
@click.option("--yes", is_flag=True, help="Do not ask again.")
@justified_writes
@run
async def except_(
    cpctl: Cpctl,
    plane: sdk.ControlPlane,
    /,
    *,
    scope: sdk.Scope,
    region: str,
    epoch: int,
    revision: int,
    yes: bool,
    options: sdk.WriteOptions,
) -> None:
    """Let SCOPE go on here although another region stops it. A --reason is required.

    For a region that cannot be asked to release its switch. It frees from exactly this stop of this region: the next
    one counts again, and so do those of other regions.
    """
    exception = {"scope": shapes.scope(scope), "region": region, "epoch": epoch, "revision": revision}
    await _look_for(plane, scope, exception, options.get("partition", ""))
    if not yes:
        ask = partial(click.confirm, "Let agents act although that region stops them?", err=True)
        confirm(cpctl, ask, card(**exception))
    reply = await plane.except_switch(scope, region, epoch, revision, **options)
    said = "is not heeded here" if reply.changed else "was not heeded already"
    cpctl.done(
        {**exception, "changed": reply.changed, "served": shapes.served(reply.header)},
        f"the stop of {exception['scope']} by {region} at {epoch}:{revision} {said}, revision {reply.header.revision}",
    )


async def _look_for(plane: sdk.ControlPlane, scope: sdk.Scope, exception: Shape, partition: str) -> None:
    """Return if there is such a stop of such a scope: an exception for anything else would free nobody."""
    fleet = (await plane.get_region()).region.fleet
    ids = {switches.opaque(fleet, environment, switches.record_name(scope)) for environment in ENVIRONMENTS}
    wanted = tuple(exception[part] for part in ("region", "epoch", "revision"))
    listed = await plane.list_switches(engaged_only=True, partition=partition)
    if not any((stop.region, stop.epoch, stop.revision) == wanted and stop.id in ids for stop in listed.stops):
        raise sdk.NotFound(
            f"{exception['region']} has no such stop of {exception['scope']} in force",
            reason="STOP_UNKNOWN",
            hint="cpctl kill list --engaged shows epoch and revision of each",
        )


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
    """May such an agent act? Exit code 0 if it may, 10 if switches of this or other regions stop it."""
    subject = sdk.Subject(tenant=tenant, agent_type=agent_type, workflow=workflow, tools=tools)
    reply = await plane.check_switches(subject, **options)
    stopped_by = [shapes.switch_view(each) for each in reply.stopped_by]
    document = {"stopped": bool(stopped_by), "stopped_by": stopped_by, "served": shapes.served(reply.header)}
    cpctl.show(document, _verdict)
    if stopped_by and cpctl.watch_every_s is None:
        sys.exit(EXIT_STOPPED)


def _verdict(document: Shape) -> RenderableType:
    return _table(document["stopped_by"]) if document["stopped"] else Text("may act", style="green")


def _list_page(document: Shape) -> RenderableType:
    if not document["stops"]:
        return _table(document["switches"])
    return Together(_table(document["switches"]), "", _stops(document["stops"]))


def _stops(rows: list[Shape]) -> RenderableType:
    return table(
        rows,
        region=lambda row: row["region"],
        stops=lambda row: row["scope"],
        state=_state_of_stop,
        epoch=lambda row: row["epoch"],
        revision=lambda row: row["revision"],
        id=lambda row: row["id"],
    )


def _state_of_stop(row: Shape) -> Text:
    if not row["engaged"]:
        return Text("released", style="dim")
    return Text("excepted", style="yellow") if row["excepted"] else Text("ENGAGED", style="bold red")


def _table(rows: list[Shape]) -> RenderableType:
    abroad = {"region": lambda row: row["region"]} if any(row["region"] for row in rows) else {}
    return table(
        rows,
        **abroad,
        scope=lambda row: row["scope"],
        state=lambda row: Text("ENGAGED", style="bold red") if row["engaged"] else Text("released", style="dim"),
        engaged_by=lambda row: row["engaged_by"],
        reason=lambda row: row["engaged_reason"],
        last_by=lambda row: row["meta"]["actor"],
        revision=lambda row: row["meta"]["revision"],
    )
