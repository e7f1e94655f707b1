"""`cpctl election ...`: who holds which name."""

from __future__ import annotations

import click
from rich.console import RenderableType

from controlplane import sdk
from controlplane.cli import shapes
from controlplane.cli.command import Cpctl, Group, card, listing, paged, reads, run, table
from controlplane.cli.shapes import Shape


@click.group("election", cls=Group)
def election() -> None:
    """Elections of orchestrators, by name."""


@election.command("list")
@click.option("--prefix", default="", help="Only names that begin so.")
@paged
@reads
@run
async def list_(cpctl: Cpctl, plane: sdk.ControlPlane, /, *, prefix: str, limit: int, options: sdk.ReadOptions) -> None:
    """All names that are held."""

    async def page(after: str, count: int) -> tuple[list[Shape], str, bool]:
        reply = await plane.list_elections(prefix=prefix, after=after, limit=count, **options)
        rows = [shapes.election_view(each) for each in reply.elections]
        return rows, rows[-1]["name"] if rows else after, reply.more

    cpctl.show(await listing("elections", limit, page, ""), lambda document: _table(document["elections"]))


@election.command("get")
@click.argument("name")
@reads
@run
async def get(cpctl: Cpctl, plane: sdk.ControlPlane, /, *, name: str, options: sdk.ReadOptions) -> None:
    """Who holds a name, under which fence."""
    reply = await plane.get_election(name, **options)
    holder = shapes.election_view(reply.holder) if reply.HasField("holder") else None
    cpctl.show({"name": name, "holder": holder, "served": shapes.served(reply.header)}, _card)


@election.command("watch")
@click.argument("name")
@run
async def watch(cpctl: Cpctl, plane: sdk.ControlPlane, /, *, name: str) -> None:
    """The holder now, and after every change."""
    async for view in plane.election(name).observe():
        holder = shapes.election_view(view) if view is not None else None
        cpctl.show({"name": name, "holder": holder}, _line)


def _line(document: Shape) -> str:
    holder = document["holder"]
    said = f"{holder['holder']}  fence {holder['fence']['text']}" if holder else "nobody"
    return f"{document['name']}  {said}"


def _card(document: Shape) -> RenderableType:
    holder = document["holder"]
    if holder is None:
        return card(name=document["name"], holder="nobody")
    return card(
        name=holder["name"],
        holder=holder["holder"],
        fence=holder["fence"]["text"],
        ttl_ms=holder["ttl_ms"],
        value=holder["value"],
        process=holder["process"],
        revision=holder["meta"]["revision"],
    )


def _table(rows: list[Shape]) -> RenderableType:
    return table(
        rows,
        name=lambda row: row["name"],
        holder=lambda row: row["holder"],
        fence=lambda row: row["fence"]["text"],
        ttl_ms=lambda row: row["ttl_ms"],
    )
