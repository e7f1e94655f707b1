"""The `controlplane` program: serve a node, try it out, make certificates. The only reader of argv and environment.

Exit codes: 0 done, or stopped as asked; 1 the node may not go on, the message says what to do next; 2 the command line
or a file it names is wrong; 130 interrupted before it began.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NoReturn

# gRPC would write lines of its own between ours, also those of JSON. Only its first import asks.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

try:
    import click

    from controlplane import certs, config, process, restore
    from controlplane.datadir import Start
    from controlplane.drills import supervisor
    from controlplane.errors import Fatal, Invalid
    from controlplane.identity import Identity
    from controlplane.telemetry import configure_logs
except ModuleNotFoundError as missing:
    sys.exit(
        f"controlplane: {missing.name} is not installed: "
        "pip install 'controlplane[server]', or in a clone of it pip install '.[server]'"
    )
except KeyboardInterrupt:
    sys.exit(130)


class _Folder(click.Path):
    """A folder with a name: an empty one, as of a variable that is not set, would be the one at hand."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("name a folder; the one at hand is '.'", param, ctx)
        return super().convert(value, param, ctx)


_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = _Folder()
_region_file = click.argument("region_file", type=_FILE)
_region_files = click.argument("region_files", type=_FILE, nargs=-1, required=True)
_force = click.option("--force", is_flag=True, help="Replace what exists.")


class _Commands(click.Group):
    """Commands that live elsewhere, imported only when they are asked for."""

    elsewhere: ClassVar = {"demo": "controlplane.demo"}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.elsewhere])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.elsewhere:
            command: click.Command = import_module(self.elsewhere[cmd_name]).command
            return command
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="controlplane")
def program() -> None:
    """A control plane for fleets of AI agents: serve it, try it out, make certificates for it."""


# -- serving


def _log_options(command: Any) -> Any:
    level = click.Choice(["debug", "info", "warning", "error"])
    command = click.option("--log-level", type=level, default="info", show_default=True)(command)
    return click.option("--log-format", type=click.Choice(["json", "text"]), default="text", show_default=True)(command)


@program.command()
@click.option("--region", "region_file", type=_FILE, required=True, help="The region file; see regions/README.md.")
@click.option("--node", "name", required=True, help="Which of the region's nodes this is.")
@click.option("--data", type=_FOLDER, required=True, help="This node's data folder.")
@click.option("--bootstrap", is_flag=True, help="The whole region is new: every node's data folder is empty.")
@click.option("--replace", is_flag=True, help="This disk was lost: fetch the data from the other nodes.")
@click.option("--ca", type=_FILE, help="The authority's certificate, instead of the region file's.")
@click.option("--cert", type=_FILE, help="This node's certificate, instead of the region file's.")
@click.option("--key", type=_FILE, help="This node's key, instead of the region file's.")
@click.option("--drills", is_flag=True, help="Let operators break this node on purpose; see docs/drills.md.")
@click.option(supervisor.LINE_OPTION, "drills_line", type=int, hidden=True)
@_log_options
def serve(  # noqa: PLR0913, PLR0917 - one parameter for each option.
    region_file: Path,
    name: str,
    data: Path,
    bootstrap: bool,
    replace: bool,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    drills: bool,
    drills_line: int | None,
    log_format: str,
    log_level: str,
) -> None:
    """Run one node of a region until SIGTERM or SIGINT."""
    if bootstrap and replace:
        raise click.UsageError("--bootstrap and --replace exclude each other: is the region new, or this disk?")
    start = Start.BOOTSTRAP if bootstrap else Start.REPLACE if replace else Start.NORMAL
    with _reported():
        region = config.overridden(config.load(region_file), name, ca, cert, key)
    if drills and drills_line is None:
        if sys.platform != "linux":
            raise click.UsageError("--drills needs Linux, whose kernel undoes a fault when nobody else can")
        supervisor.become(sys.argv[1:], data)
    line = None if drills_line is None else socket.socket(fileno=drills_line)
    configure_logs(log_format, log_level, region=region.name, node=name)
    _run(lambda stopping: process.serve(region, name, data, start, stopping, line))


@program.command()
@click.option("--port", type=click.IntRange(0, 65535), default=7000, show_default=True)
@click.option("--data", type=_FOLDER, help="Where data is kept; below XDG_STATE_HOME unless said otherwise.")
@_log_options
def dev(port: int, data: Path | None, log_format: str, log_level: str) -> None:
    """Run a region of one node for development: no certificates, loopback only, data kept."""
    configure_logs(log_format, log_level)
    folder = data or _state_home() / "controlplane" / "dev"
    _run(lambda stopping: process.dev(port, folder, stopping, click.echo))


def _state_home() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")


def _run(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    with _reported():
        asyncio.run(_until_signalled(work))


async def _until_signalled(work: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await work(stopping)


@contextmanager
def _reported() -> Iterator[None]:
    """Turn what may stop the program into one message and an exit code."""
    try:
        yield
    except (config.ConfigError, Invalid) as error:
        _exit(error, 2)
    except (Fatal, certs.CertsError) as error:
        _exit(error, 1)


def _exit(error: Exception, code: int) -> NoReturn:
    click.echo(f"controlplane: {error}", err=True)
    sys.exit(code)


# -- the worst day


@program.command("restore")
@click.option("--region", "region_file", type=_FILE, required=True, help="The region file; see regions/README.md.")
@click.option("--from", "source", type=_FOLDER, required=True, help="A stopped node's data folder, or its backup.")
@click.option("--out", type=_FOLDER, required=True, help="Where to put a data folder for each node; a new folder.")
@click.option("--reason", required=True, help="Why; kept in the region's records.")
def restore_region(region_file: Path, source: Path, out: Path, reason: str) -> None:
    """Make the data folders of a whole region from one node's, when a majority is lost for good.

    The source is not changed. What only lost disks had is gone; the region goes on at a revision beyond all that it
    gave before, and every other disk of before is a stranger to it. See docs/operations.md.
    """
    with _reported():
        region = config.load(region_file)
        done = restore.restore(region, source, out, restore.Why(reason, process.wall_ms(), os.urandom(16)))
    when = datetime.fromtimestamp(done.after_ms / 1000, UTC).isoformat(timespec="seconds")
    click.echo(f"The source ends at revision {done.after}, planned on {when}. The region goes on at {done.revision}.")
    for node, folder in done.folders.items():
        click.echo(f"{node}: {folder}")
    click.echo(
        "Put each folder in the place of its node's data folder, start all nodes without --bootstrap or --replace, and"
        " go on as docs/operations.md says."
    )


# -- certificates


@program.group("certs")
def certificates() -> None:
    """Make certificates for development, from an authority whose key lies in a folder in the clear."""


@certificates.command("init")
@_region_files
@_force
def certs_init(region_files: tuple[Path, ...], force: bool) -> None:
    """Make the fleet's authority where the region files expect it."""
    with _reported():
        _say([certs.authority_for(*map(config.load, region_files), force=force).file])


@certificates.command("node")
@_region_files
@click.option("--node", "names", multiple=True, help="Only this node; may be repeated.")
@_force
def certs_node(region_files: tuple[Path, ...], names: tuple[str, ...], force: bool) -> None:
    """Make the certificates of the regions' nodes where the region files expect them."""
    with _reported():
        regions = [config.load(file) for file in region_files]
        certs.check_fleet(regions)
        for region in regions:
            _say(certs.nodes_for(region, names, force=force))


@certificates.command("client")
@_region_file
@click.option("--environment", required=True, help="dev, test, staging or prod.")
@click.option("--role", required=True, help="agent, operator, approver or reviewer.")
@click.option("--name", required=True, help="Who it is for.")
@click.option("--out", type=_FOLDER, help="Where to put it; beside the nodes' unless said otherwise.")
@_force
def certs_client(region_file: Path, environment: str, role: str, name: str, out: Path | None, force: bool) -> None:
    """Make a certificate for an agent or a person."""
    with _reported():
        region = config.load(region_file)
        caller = Identity(region.fleet, environment, region.name, role, name)
        _say(certs.callers_for(region, [caller], out, force=force))


@certificates.command("all")
@_region_files
@_force
def certs_all(region_files: tuple[Path, ...], force: bool) -> None:
    """Make everything that the region files of one fleet need.

    That is its authority, and for each region the nodes, an operator, an agent and a reviewer for each environment,
    the administrators, and the key that signs its ledger if its file names one. A ledger's key that exists stays, also
    with --force, because what it signed is evidence.
    """
    with _reported():
        _say(certs.all_for(*map(config.load, region_files), force=force))


@certificates.command("trust")
@_region_files
def certs_trust(region_files: tuple[Path, ...]) -> None:
    """Print the trust file of a fleet: what reviewers hand to verify.py, and get by another way than the evidence."""
    with _reported():
        click.echo(certs.trust_for(*map(config.load, region_files)), nl=False)


def _say(files: list[Path]) -> None:
    for file in files:
        click.echo(file)


def main() -> None:
    """Run the program."""
    program(prog_name="controlplane")


if __name__ == "__main__":
    main()
