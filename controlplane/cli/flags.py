"""`cpctl flag ...`: typed flags, their history, and going back in it."""

from __future__ import annotations

import click
from rich.console import RenderableType

from controlplane import sdk
from controlplane.cli import shapes, values
from controlplane.cli.command import Command, Cpctl, Group, card, listing, paged, reads, run, table, writes
from controlplane.cli.shapes import Shape


@click.group("flag", cls=Group)
def flag() -> None:
    """Flags: typed, versioned, and never lost."""


@flag.command("set")
@click.argument("name")
@click.argument("value", required=False)
@click.option("--variant", "pairs", multiple=True, metavar="NAME=VALUE", help="Several values to choose from.")
@click.option("--default", "default", metavar="NAME", help="The variant in force; else the first.")
@click.option("--type", "type_word", type=click.Choice(values.TYPE_WORDS), help="Else the value's looks decide.")
@click.option("--off", is_flag=True, help="Switched off: agents use their built-in default.")
@click.option("--description", default="")
@click.option("--if-revision", type=click.IntRange(0), default=0, help="Only if the flag stands at this revision.")
@click.option("--if-absent", is_flag=True, help="Only if there is no such flag.")
@writes
def set_(  # noqa: PLR0913 - the options of the command
    *,
    name: str,
    value: str | None,
    pairs: tuple[str, ...],
    default: str | None,
    type_word: str | None,
    off: bool,
    description: str,
    if_revision: int,
    if_absent: bool,
    options: sdk.WriteOptions,
) -> None:
    """Write a flag whole: one VALUE, or several --variant. @FILE and - (standard input) are read."""
    if (value is None) == (not pairs):
        raise click.UsageError("give one VALUE, or --variant NAME=VALUE as often as needed")
    variants = values.variants(pairs) if value is None else {"value": value}
    made = values.flag(
        name,
        variants,
        default or next(iter(variants)),
        type_word=type_word,
        enabled=not off,
        description=description,
    )
    _set(made=made, if_revision=if_revision, if_absent=if_absent, options=options)


@run
async def _set(
    cpctl: Cpctl,
    plane: sdk.ControlPlane,
    /,
    *,
    made: sdk.Flag,
    if_revision: int,
    if_absent: bool,
    options: sdk.WriteOptions,
) -> None:
    reply = await plane.set_flag(made, expected_revision=if_revision, must_not_exist=if_absent, **options)
    cpctl.done(
        {"name": made.name, "meta": shapes.meta(reply.meta)}, f"{made.name} is set, revision {reply.meta.revision}"
    )


@flag.command("get")
@click.argument("name")
@click.option("--at", "at_revision", type=click.IntRange(0), default=0, help="As it stood at a revision.")
@reads
@run
async def get(
    cpctl: Cpctl, plane: sdk.ControlPlane, /, *, name: str, at_revision: int, options: sdk.ReadOptions
) -> None:
    """One flag."""
    reply = await plane.get_flag(name, at_revision=at_revision, **options)
    cpctl.show({**shapes.flag_view(reply.flag), "served": shapes.served(reply.header)}, _card)


@flag.command("list")
@click.option("--prefix", default="", help="Only names that begin so.")
@paged
@reads
@run
async def list_(cpctl: Cpctl, plane: sdk.ControlPlane, /, *, prefix: str, limit: int, options: sdk.ReadOptions) -> None:
    """All flags."""

    async def page(after: str, count: int) -> tuple[list[Shape], str, bool]:
        reply = await plane.list_flags(prefix=prefix, after=after, limit=count, **options)
        rows = [shapes.flag_view(each) for each in reply.flags]
        return rows, rows[-1]["name"] if rows else after, reply.more

    cpctl.show(await listing("flags", limit, page, ""), lambda document: _table(document["flags"]))


@flag.command("history")
@click.argument("name")
@paged
@reads
@run
async def history(cpctl: Cpctl, plane: sdk.ControlPlane, /, *, name: str, limit: int, options: sdk.ReadOptions) -> None:
    """What a flag was, newest first: since when, by whom, and why."""

    async def page(before: int, count: int) -> tuple[list[Shape], int, bool]:
        reply = await plane.flag_history(name, before_revision=before, limit=count, **options)
        rows = [shapes.flag_view(each) for each in reply.versions]
        return rows, rows[-1]["meta"]["revision"] if rows else before, reply.more

    cpctl.show(await listing("versions", limit, page, 0), lambda document: _table(document["versions"]))


@flag.command("restore")
@click.argument("name")
@click.argument("revision", type=click.IntRange(1))
@writes
@run
async def restore(
    cpctl: Cpctl, plane: sdk.ControlPlane, /, *, name: str, revision: int, options: sdk.WriteOptions
) -> None:
    """Make a flag what it was at REVISION, as a new write."""
    view = shapes.flag_view((await plane.restore_flag(name, revision, **options)).flag)
    cpctl.done(view, f"{name} is what it was at {revision}, now revision {view['meta']['revision']}")


@flag.command("on")
@click.argument("name")
@writes
@run
async def on(cpctl: Cpctl, plane: sdk.ControlPlane, /, *, name: str, options: sdk.WriteOptions) -> None:
    """Switch a flag on; its definition stays."""
    await _switch(cpctl, plane, name, options, enabled=True)


@flag.command("off")
@click.argument("name")
@writes
@run
async def off(cpctl: Cpctl, plane: sdk.ControlPlane, /, *, name: str, options: sdk.WriteOptions) -> None:
    """Switch a flag off: agents use their built-in default."""
    await _switch(cpctl, plane, name, options, enabled=False)


async def _switch(
    cpctl: Cpctl, plane: sdk.ControlPlane, name: str, options: sdk.WriteOptions, *, enabled: bool
) -> None:
    view = (await plane.get_flag(name, partition=options.get("partition", ""))).flag
    word = "on" if enabled else "off"
    if view.flag.enabled == enabled:
        cpctl.done({"name": name, "meta": shapes.meta(view.meta)}, f"{name} is {word} already")
        return
    view.flag.enabled = enabled
    # Only what was read is changed: a definition written in between is not lost.
    reply = await plane.set_flag(view.flag, expected_revision=view.meta.revision, **options)
    cpctl.done({"name": name, "meta": shapes.meta(reply.meta)}, f"{name} is {word}, revision {reply.meta.revision}")


@click.command("config", cls=Command)
@click.option("--user", default="")
@click.option("--tenant", default="")
@reads
@run
async def config(cpctl: Cpctl, plane: sdk.ControlPlane, /, *, user: str, tenant: str, options: sdk.ReadOptions) -> None:
    """What an agent is told to run with, and which flag said so."""
    reply = await plane.get_agent_config(user, tenant, **options)
    document = shapes.agent_config(reply)
    cpctl.show(document, _config_table)


def _config_table(document: Shape) -> RenderableType:
    return table(
        document["fields"],
        field=lambda row: row["name"],
        value=lambda row: row["value"],
        flag=lambda row: row["flag"],
        variant=lambda row: row["variant"],
        why=lambda row: row["reason"],
        revision=lambda row: row["revision"] or "",
    )


def _value(row: Shape) -> object:
    return row["variants"].get(row["default"])


def _card(document: Shape) -> RenderableType:
    meta = document["meta"]
    return card(
        name=document["name"],
        type=document["type"],
        on=document["enabled"],
        value=_value(document),
        variants=", ".join(document["variants"]),
        description=document["description"],
        revision=meta["revision"],
        version=meta["version"],
        by=meta["actor"],
        reason=meta["reason"],
    )


def _table(rows: list[Shape]) -> RenderableType:
    return table(
        rows,
        name=lambda row: row["name"],
        type=lambda row: row["type"],
        on=lambda row: row["enabled"],
        value=_value,
        revision=lambda row: row["meta"]["revision"],
        by=lambda row: row["meta"]["actor"],
        reason=lambda row: row["meta"]["reason"],
    )
