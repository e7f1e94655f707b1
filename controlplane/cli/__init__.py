"""`cpctl`: the region in the hands of the people who run it. It knows the SDK and nothing of the server."""

from __future__ import annotations

import os
import sys

# gRPC would write lines of its own between ours, one for each connection that fails. Only its first import asks.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

try:
    import click

    from controlplane.cli import command, review
    from controlplane.cli.contexts import context
    from controlplane.cli.drill import drill
    from controlplane.cli.elections import election
    from controlplane.cli.events import log, outcome, watch
    from controlplane.cli.flags import config, flag
    from controlplane.cli.kill import kill
    from controlplane.cli.partition import partition
    from controlplane.cli.region import member, region, status
    from controlplane.cli.settings import Settings, config_file, load
    from controlplane.cli.workflows import workflow
except ModuleNotFoundError as missing:
    sys.exit(
        f"cpctl: {missing.name} is not installed: "
        "pip install 'controlplane[cli]', or in a clone of it pip install '.[cli]'"
    )
except KeyboardInterrupt:
    sys.exit(130)

_CODES = (command.__doc__ or "").partition("Exit codes, for scripts:")[2].strip("\n")


@click.group(
    cls=command.Program,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=f"\b\nExit codes:\n{_CODES}",
)
@click.option("--context", "context_name", envvar="CONTROLPLANE_CONTEXT", help="A region of the configuration file.")
@click.option(
    "--address",
    "addresses",
    multiple=True,
    envvar="CONTROLPLANE_ADDRESSES",
    help="host:port of a node, as often as there are nodes.",
)
@click.option(
    "--authority", default="", envvar="CONTROLPLANE_AUTHORITY", help="The certificate authority's certificate."
)
@click.option("--certificate", default="", envvar="CONTROLPLANE_CERTIFICATE", help="Your certificate.")
@click.option("--key", default="", envvar="CONTROLPLANE_KEY", help="Its key.")
@click.option("--insecure", is_flag=True, envvar="CONTROLPLANE_INSECURE", help="No TLS; for `controlplane dev` only.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 60),
    default=10.0,
    envvar="CONTROLPLANE_TIMEOUT",
    show_default=True,
    help="Seconds.",
)
@click.option("--json", "as_json", is_flag=True, envvar=command.JSON_VARIABLE, help="Print JSON, for programs.")
@click.version_option(package_name="controlplane", prog_name="cpctl")
@click.pass_context
def main(  # noqa: PLR0913 - the options of the command
    click_context: click.Context,
    *,
    context_name: str | None,
    addresses: tuple[str, ...],
    authority: str,
    certificate: str,
    key: str,
    insecure: bool,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Look at a region and run it.

    Each of these options, and none of the commands' own, can be an environment variable: CONTROLPLANE_CONTEXT,
    _ADDRESSES (blanks or commas between), _AUTHORITY, _CERTIFICATE, _KEY, _INSECURE, _TIMEOUT, _JSON. Region and
    certificates can also stand in a context of the configuration file (cpctl context set).
    """

    def settings() -> Settings:
        each = tuple(part for text in addresses for part in text.split(",") if part)
        given = Settings(each, authority, certificate, key, insecure)
        return given.or_else(load(config_file(os.environ)).named(context_name)).checked()

    click_context.obj = command.Cpctl(settings, as_json=as_json, timeout_s=timeout_s)


for each in (
    status,
    region,
    member,
    partition,
    flag,
    config,
    workflow,
    election,
    kill,
    watch,
    log,
    outcome,
    drill,
    context,
):
    main.add_command(each)
for each in (review.report, review.checkpoint, review.scan):
    region.add_command(each)
