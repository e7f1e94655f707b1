"""`cpctl partition erase`: what somebody has a right to have gone."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from functools import partial

import click
from rich.console import RenderableType
from rich.text import Text

from controlplane import limits, sdk
from controlplane.cli import shapes
from controlplane.cli.command import EXIT_UNHEALTHY, Command, Cpctl, confirm, run, table
from controlplane.cli.shapes import Shape

_MEMBER_TIMEOUT_S = 3.0
_POLL_S = 0.5


@click.command("erase", cls=Command)
@click.option("--partition", "name_of_partition", default="", metavar="ID", help="Where the record lies.")
@click.option("--kind", default="", help="workflow or election.")
@click.option("--key", default="", metavar="NAME", help="The record's name.")
@click.option("--reason", default="", help="Why, for the record. It is kept: name nobody in it.")
@click.option("--wait/--no-wait", default=True, help="Wait until no node has it on its disk any more.")
@click.option(
    "--deadline", "deadline_s", type=click.FloatRange(0, 86_400), default=120.0, show_default=True, help="Seconds."
)
@click.option("--status", "only_status", is_flag=True, help="Erase nothing: show which nodes are done.")
@click.option("--yes", is_flag=True, help="Do not ask again.")
@run
async def erase(  # noqa: PLR0913 - the options of the command
    cpctl: Cpctl,
    plane: sdk.ControlPlane,
    /,
    *,
    name_of_partition: str,
    kind: str,
    key: str,
    reason: str,
    wait: bool,
    deadline_s: float,
    only_status: bool,
    yes: bool,
) -> None:
    """Destroy a record with all it was, in this region and wherever it was copied. It cannot be undone.

    Exit code 11 if some node is not done, or does not answer: it does its part when it is back, and --status shows it.
    Backups made by hand, and what somebody has read, are out of reach.
    """
    erased: Shape = {}
    if not only_status:
        if not (name_of_partition and kind and key and reason):
            raise click.UsageError("say --partition, --kind, --key and --reason")
        if not yes:
            confirm(cpctl, partial(click.confirm, "Destroy this record and all it was, for good?", err=True))
        # Chosen here, so that it can be named if the outcome stays unknown.
        cpctl.request_id = secrets.token_bytes(limits.REQUEST_ID_BYTES)
        options: sdk.WriteOptions = {
            "partition": name_of_partition,
            "reason": reason,
            "request_id": cpctl.request_id,
        }
        reply = await plane.erase_record(kind, key, **options)
        erased = {"revision": reply.revision, "erasure": reply.erasure}
    rows = await _until_done(cpctl, plane, erased.get("revision", 0), deadline_s if wait and not only_status else 0.0)
    cpctl.show({**erased, "done": all(row["done"] for row in rows), "nodes": rows}, _progress)
    if (wait or only_status) and not all(row["done"] for row in rows):
        sys.exit(EXIT_UNHEALTHY)


async def _until_done(cpctl: Cpctl, plane: sdk.ControlPlane, revision: int, deadline_s: float) -> list[Shape]:
    """How far each node is: when all are done, or when time is up. People see it change."""
    end = time.monotonic() + deadline_s
    addresses = {each.name: each.address for each in (await plane.get_status(consistency=sdk.LOCAL)).members}
    said = ""
    while True:
        asked = (_ask(cpctl, name, address, revision) for name, address in addresses.items())
        rows = sorted(await asyncio.gather(*asked), key=lambda row: str(row["node"]))
        if all(row["done"] for row in rows) or time.monotonic() >= end:
            return rows
        now = ", ".join(f"{row['node']} {row['state']}" for row in rows)
        if now != said and not cpctl.as_json:
            cpctl.stop_waiting()
            click.echo(now, err=True)
        said = now
        await asyncio.sleep(_POLL_S)


async def _ask(cpctl: Cpctl, name: str, address: str, revision: int) -> Shape:
    row: Shape = {"node": name, "address": address, "pending": None, "due": None, "scrubbed": None}
    try:
        async with asyncio.timeout(_MEMBER_TIMEOUT_S), cpctl.connect([address]) as plane:
            status = shapes.status(await plane.get_status(consistency=sdk.LOCAL))
    except (TimeoutError, sdk.Unavailable, sdk.OutcomeUnknown):
        return {**row, "done": False, "state": "does not answer"}
    row |= status["erasures"]
    if status["served"]["revision"] < revision:
        state = "has not heard of it"
    elif row["pending"]:
        state = "sweeping"
    else:
        state = "done" if row["scrubbed"] >= row["due"] else "scrubbing"
    return {**row, "done": state == "done", "state": state}


def _progress(document: Shape) -> RenderableType:
    return table(
        document["nodes"],
        node=lambda row: row["node"],
        state=lambda row: Text(row["state"], style="green" if row["done"] else "yellow"),
        pending=lambda row: row["pending"],
        due=lambda row: row["due"],
        scrubbed=lambda row: row["scrubbed"],
    )
