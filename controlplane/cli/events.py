"""`cpctl watch`, `cpctl log`, `cpctl outcome`: what changes, what changed, and what became of a request."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime

import click
from rich.console import RenderableType

from controlplane import sdk
from controlplane.cli import shapes, values
from controlplane.cli.command import EXIT_CODES, Command, Cpctl, card, listing, paged, parsed, reads, run, table
from controlplane.cli.shapes import Shape
from controlplane.v1 import api_pb2 as api

_VALUE_SHOWN = 60

_kinds = click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(["flag", "switch", "exception", "stop", "workflow", "election"]),
    help="Only these kinds.",
)


@click.command("watch", cls=Command)
@_kinds
@click.option("--prefix", default="", help="Only names that begin so.")
@click.option("--after", type=click.IntRange(0), metavar="REVISION", help="From after a revision; else from now.")
@click.option("--snapshot", is_flag=True, help="Begin with what there is.")
@click.option("--partition", default="")
@run
async def watch(
    cpctl: Cpctl,
    plane: sdk.ControlPlane,
    /,
    *,
    kinds: tuple[str, ...],
    prefix: str,
    after: int | None,
    snapshot: bool,
    partition: str,
) -> None:
    """Every change as it happens, until interrupted; with --json one line each."""
    changes = plane.watch(kinds=kinds, prefix=prefix, after_revision=after, snapshot=snapshot, partition=partition)
    async for change in changes:
        cpctl.show(shapes.change(change), _line)


@click.command("log", cls=Command)
@_kinds
@click.option("--after", type=click.IntRange(0), default=0, metavar="REVISION", help="Only newer events.")
@paged
@reads
@run
async def log(
    cpctl: Cpctl,
    plane: sdk.ControlPlane,
    /,
    *,
    kinds: tuple[str, ...],
    after: int,
    limit: int,
    options: sdk.ReadOptions,
) -> None:
    """The events that are kept, oldest first: who changed what, when and why."""

    async def page(after: int, count: int) -> tuple[list[Shape], int, bool]:
        reply = await plane.list_events(after_revision=after, kinds=kinds, limit=count, **options)
        return [shapes.change(each) for each in reply.changes], reply.seen, reply.more

    cpctl.show(await listing("events", limit, page, after), lambda document: _table(document["events"]))


@click.command("outcome", cls=Command)
@click.argument("request_id", callback=parsed(values.request_id))
@click.option("--since", type=click.IntRange(0), help="A revision seen before the request was first made.")
@reads
@run
async def outcome(
    cpctl: Cpctl,
    plane: sdk.ControlPlane,
    /,
    *,
    request_id: bytes,
    since: int | None,
    options: sdk.ReadOptions,
) -> None:
    """What became of a request of one's own. Exit code 0: committed, 5: refused, 4: not applied, 9: not known."""
    reply = await plane.get_outcome(request_id, since=since, **options)
    known = api.GetOutcomeReply.Known.Name(reply.known).lower()
    document = {
        "request_id": request_id.hex(),
        "outcome": known,
        "revision": reply.revision,
        "reason": reply.reason or None,
        "served": shapes.served(reply.header),
    }
    cpctl.show(document, _outcome)
    sys.exit(_OUTCOME_CODES.get(reply.known, EXIT_CODES[sdk.OutcomeUnknown]))


_OUTCOME_CODES = {
    api.GetOutcomeReply.COMMITTED: 0,
    api.GetOutcomeReply.REFUSED: EXIT_CODES[sdk.Refused],
    api.GetOutcomeReply.NOT_APPLIED: EXIT_CODES[sdk.NotFound],
}


def _outcome(document: Shape) -> RenderableType:
    return card(outcome=document["outcome"], revision=document["revision"] or None, reason=document["reason"])


def _when(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S") if at_ms else ""


def _what(row: Shape) -> str:
    value = row["value"]
    if value is None:
        return "deleted"
    match row["kind"]:
        case "flag":
            return f"{'on' if value['enabled'] else 'off'}, {_default(value)}"
        case "switch":
            return "ENGAGED" if value["engaged"] else "released"
        case "workflow":
            return f"version {row['meta']['version']}, {len(value['state'])} characters"
        case "election":
            return f"held by {value['holder']}"
    return ""


def _default(flag: Shape) -> str:
    """The variant in force, and its value: a flag that was set to one value has a variant of one name for ever."""
    if not flag["default"]:
        return "no default"
    value = json.dumps(flag["variants"].get(flag["default"]), ensure_ascii=False)
    return f"{flag['default']}: {value if len(value) <= _VALUE_SHOWN else value[:_VALUE_SHOWN] + '…'}"


def _line(row: Shape) -> str:
    meta = row["meta"]
    return f"{meta['revision']:>8}  {row['kind']:<8}  {row['name']}  {_what(row)}  ({meta['actor']})"


def _table(rows: list[Shape]) -> RenderableType:
    return table(
        rows,
        revision=lambda row: row["meta"]["revision"],
        when=lambda row: _when(row["meta"]["at_ms"]),
        kind=lambda row: row["kind"],
        name=lambda row: row["name"],
        what=_what,
        action=lambda row: row["meta"]["action"],
        by=lambda row: row["meta"]["actor"],
        reason=lambda row: row["meta"]["reason"],
    )
