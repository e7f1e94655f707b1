"""`cpctl context ...`: regions by name, in the configuration file."""

from __future__ import annotations

import os
from dataclasses import replace

import click
from rich.console import RenderableType

from controlplane.cli.command import Cpctl, Group, pass_cpctl, table
from controlplane.cli.settings import Contexts, Settings, config_file, load, save
from controlplane.cli.shapes import Shape

# Kept whole, so that it does not matter from where cpctl is called.
_FILE = click.Path(dir_okay=False, resolve_path=True)


@click.group("context", cls=Group)
def context() -> None:
    """Regions by name, so that nothing has to be typed twice."""


@context.command("list")
@pass_cpctl
def list_(cpctl: Cpctl) -> None:
    """All contexts."""
    contexts = load(config_file(os.environ))
    rows = [
        {
            "name": name,
            "current": name == contexts.current,
            "addresses": list(settings.addresses),
            "authority": settings.authority or None,
            "certificate": settings.certificate or None,
            "key": settings.key or None,
            "insecure": settings.insecure,
        }
        for name, settings in contexts.table.items()
    ]
    cpctl.show({"contexts": rows}, lambda document: _table(document["contexts"]))


@context.command("set")
@click.argument("name")
@click.option("--address", "addresses", multiple=True, help="host:port, as often as there are nodes.")
@click.option("--authority", type=_FILE)
@click.option("--certificate", type=_FILE)
@click.option("--key", type=_FILE)
@click.option("--insecure", is_flag=True, help="For `controlplane dev` only.")
@pass_cpctl
def set_(
    cpctl: Cpctl,
    *,
    name: str,
    addresses: tuple[str, ...],
    authority: str | None,
    certificate: str | None,
    key: str | None,
    insecure: bool,
) -> None:
    """Add or change a context; the first one becomes current."""
    file = config_file(os.environ)
    contexts = load(file)
    given = Settings(addresses, authority or "", certificate or "", key or "", insecure)
    settings = given.or_else(contexts.table.get(name, Settings())).checked()
    save(file, Contexts(contexts.current or name, {**contexts.table, name: settings}))
    cpctl.done({"name": name, "file": str(file)}, f"{name} is kept in {file}")


@context.command("use")
@click.argument("name")
@pass_cpctl
def use(cpctl: Cpctl, name: str) -> None:
    """Make a context the current one."""
    file = config_file(os.environ)
    contexts = load(file)
    contexts.named(name)
    save(file, replace(contexts, current=name))
    cpctl.done({"name": name}, f"{name} is current")


def _table(rows: list[Shape]) -> RenderableType:
    return table(
        rows,
        name=lambda row: row["name"],
        current=lambda row: row["current"],
        addresses=lambda row: ", ".join(row["addresses"]),
        certificate=lambda row: row["certificate"] or ("insecure" if row["insecure"] else ""),
    )
