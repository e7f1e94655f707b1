"""`cpctl partition ...`: where partitions are at home; move a home; look at what was given up; erase a record."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import click
from rich.console import Group as Together
from rich.console import RenderableType
from rich.text import Text

from controlplane import sdk
from controlplane.cli import shapes
from controlplane.cli.command import Cpctl, Group, card, confirm, console, listing, paged, run, table
from controlplane.cli.erase import erase
from controlplane.cli.shapes import Shape

_STYLES = {"home": "green", "copy": "", "sealed": "yellow", "adopting": "yellow", "left": "yellow"}
_LOOK_S = 0.25


@click.group("partition", cls=Group)
def partition() -> None:
    """Partitions, and the regions that are their homes."""


@partition.command("list")
@run
async def list_(cpctl: Cpctl, plane: sdk.ControlPlane, /) -> None:
    """All partitions of your environment that are known here, with the home that each has now."""
    reply = await plane.list_partitions()
    document = {"partitions": [shapes.partition_view(each) for each in reply.partitions]}
    cpctl.show(document, lambda shown: _table(shown["partitions"]))


@partition.command("show")
@click.argument("name", metavar="ID")
@run
async def show(cpctl: Cpctl, plane: sdk.ControlPlane, /, *, name: str) -> None:
    """One partition, and its newest move as this region has it."""
    cpctl.show(await _look(plane, name), _card)


@partition.command("move")
@click.argument("name", metavar="ID")
@click.option("--to", "to", default="", metavar="REGION", help="The region that is to be the home.")
@click.option("--reason", required=True, help="Why, for the record.")
@click.option("--cancel", is_flag=True, help="Call off a planned move that has not come to its end.")
@click.option("--forced", is_flag=True, help="Without the old home, asked of the region that takes over.")
@click.option("--attest", "attestation", default="", help="Forced: that the old home is down, and how you know.")
@click.option("--yes", is_flag=True, help="Forced: do not ask again.")
@click.option("--wait", "wait_s", type=click.FloatRange(0, 3600), default=30.0, show_default=True, help="Seconds.")
@run
async def move(  # noqa: PLR0913 - the options of the command
    cpctl: Cpctl,
    plane: sdk.ControlPlane,
    /,
    *,
    name: str,
    to: str,
    reason: str,
    cancel: bool,
    forced: bool,
    attestation: str,
    yes: bool,
    wait_s: float,
) -> None:
    """Make another region the home of partition ID.

    Planned, it is asked of the home: nothing acknowledged is lost, and nobody can write for a moment. Forced, it is for
    a home that is gone: what it wrote later than the copy here is given up, and is quarantined there if it comes back.
    """
    _check(to, cancel=cancel, forced=forced, attestation=attestation)
    upto = 0
    if forced:
        upto = await _state_the_loss(cpctl, plane, name, yes=yes)
    await plane.move_partition(
        name, to, cancel=cancel, forced=forced, attestation=attestation, upto=upto, reason=reason
    )
    document = await _until_settled(plane, name, wait_s)
    cpctl.done(document, _outcome(document))


def _check(to: str, *, cancel: bool, forced: bool, attestation: str) -> None:
    if cancel == bool(to):
        raise click.UsageError("say --to REGION, or --cancel")
    if cancel and forced:
        raise click.UsageError("a forced move cannot be called off: move the home back")
    if forced and not attestation.strip():
        raise click.UsageError("--forced needs --attest: say that the old home is down, and how you know")
    if attestation and not forced:
        raise click.UsageError("--attest belongs to --forced")


async def _look(plane: sdk.ControlPlane, name: str) -> Shape:
    return shapes.partition_view((await plane.list_partitions(name)).partitions[0])


async def _state_the_loss(cpctl: Cpctl, plane: sdk.ControlPlane, name: str, *, yes: bool) -> int:
    """Say what is given up, and have it confirmed; returns up to which revision of the old home it is not."""
    found = await _look(plane, name)
    copy = found["copy"]
    upto = copy["revision"] if copy else 0
    age = "not known" if copy is None or copy["age_ms"] is None else f"{copy['age_ms'] / 1000:.1f} s"
    loss = card(
        partition=name,
        home=f"{found['home']}, epoch {found['epoch']}",
        last_copied_revision=upto,
        age_of_the_copy=age,
        given_up=f"whatever {found['home']} wrote after revision {upto}",
    )
    if not yes:
        ask = partial(click.prompt, "Type the partition's id to give that up", default="", show_default=False, err=True)
        confirm(cpctl, lambda: ask() == name, loss)
    elif not cpctl.as_json:
        cpctl.stop_waiting()
        console(err=True).print(loss)
    return int(upto)


async def _until_settled(plane: sdk.ControlPlane, name: str, wait_s: float) -> Shape:
    until = time.monotonic() + wait_s
    while True:
        document = await _look(plane, name)
        if document["state"] not in ("sealed", "adopting") or time.monotonic() >= until:
            return document
        await asyncio.sleep(_LOOK_S)


def _outcome(document: Shape) -> str:
    home = f"{document['home']} is the home of {document['id']}, in epoch {document['epoch']}"
    if document["state"] in ("sealed", "adopting"):
        waits = f": {document['waits_for']}" if document["waits_for"] else ""
        return f"it is under way{waits}; cpctl partition show {document['id']} tells how far it is"
    return home


@partition.command("quarantine")
@click.argument("name", metavar="ID")
@paged
@run
async def quarantine(cpctl: Cpctl, plane: sdk.ControlPlane, /, *, name: str, limit: int) -> None:
    """What this region wrote to partition ID when it was its home no longer. None of it is live, or anywhere else."""

    async def page(after: bytes, count: int) -> tuple[list[Shape], bytes, bool]:
        reply = await plane.list_quarantine(name, after=after, limit=count)
        return [shapes.change(each) for each in reply.changes], reply.next, reply.more

    cpctl.show(await listing("quarantined", limit, page, b""), lambda shown: _quarantined(shown["quarantined"]))


def _quarantined(rows: list[Shape]) -> RenderableType:
    return table(
        rows,
        kind=lambda row: row["kind"],
        name=lambda row: row["name"],
        version=lambda row: row["meta"]["version"],
        revision=lambda row: row["meta"]["revision"],
        by=lambda row: row["meta"]["actor"],
        reason=lambda row: row["meta"]["reason"],
    )


def _table(rows: list[Shape]) -> RenderableType:
    return table(
        rows,
        id=lambda row: row["id"],
        home=lambda row: row["home"],
        epoch=lambda row: row["epoch"],
        reach=lambda row: row["reach"],
        state=_state,
        quarantined=lambda row: row["quarantined"] or "",
    )


def _state(row: Shape) -> Text:
    to = f" to {row['move']['to']}" if row["state"] == "sealed" else ""
    return Text(f"{row['state']}{to}", style=_STYLES.get(row["state"], ""))


def _card(document: Shape) -> RenderableType:
    about = card(
        partition=document["id"],
        home=f"{document['home']}, epoch {document['epoch']}",
        reach=document["reach"],
        environment=document["environment"],
        default_for=", ".join(document["default_for"]),
        state=_state(document),
        waits_for=document["waits_for"],
        quarantined=document["quarantined"],
        former=", ".join(f"{each['home']} (epoch {each['epoch']})" for each in document["former"]),
    )
    if document["move"] is None:
        return about
    told = document["move"]
    newest = card(
        move=f"{told['from']} to {told['to']}, epoch {told['epoch']}{', forced' if told['forced'] else ''}",
        phase=told["phase"],
        taken_over_up_to=told["upto"],
        attestation=told["attestation"],
        by=told["meta"]["actor"],
        reason=told["meta"]["reason"],
    )
    return Together(about, Text(), newest)


partition.add_command(erase)
