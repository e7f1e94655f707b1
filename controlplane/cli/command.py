"""What all commands of cpctl share: connecting, options, output, errors, exit codes.

Exit codes, for scripts:

     0  done; or, for a check, it may act
     1  a defect of cpctl or of the region
     2  the command line, a file it names or the request is wrong, or was not confirmed (Invalid)
     3  not known, or not allowed (Denied)
     4  no such thing (NotFound)
     5  the rules said no (Refused)
     6  others kept writing; nothing was written (Contended)
     7  the history asked for is no longer kept (Compacted)
     8  the region could not be reached; nothing was written (Unavailable)
     9  it may or may not have happened: ask with `cpctl outcome` (OutcomeUnknown)
    10  a check found that kill switches stop the subject
    11  some members of the region, or regions of the fleet, are not healthy, or do not answer
    12  a drill, or a record of one, does not show what it should
    13  it is done, but the output, or a file, could not be written
   130  interrupted
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar

import click
from rich.console import Console, RenderableType
from rich.console import Group as Stack
from rich.live import Live
from rich.status import Status
from rich.table import Table
from rich.text import Text

from controlplane import limits, sdk
from controlplane.cli import files, shapes, tls, values
from controlplane.cli.settings import Settings
from controlplane.v1 import api_pb2 as api

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])

EXIT_DEFECT = 1
EXIT_STOPPED = 10
EXIT_UNHEALTHY = 11
EXIT_FAILED_DRILL = 12
EXIT_INTERRUPTED = 130
EXIT_CODES: dict[type[sdk.ControlPlaneError], int] = {
    sdk.Invalid: 2,
    sdk.Denied: 3,
    sdk.NotFound: 4,
    sdk.Refused: 5,
    sdk.Contended: 6,
    sdk.Compacted: 7,
    sdk.Unavailable: 8,
    sdk.OutcomeUnknown: 9,
}
_OF_DISKS = frozenset({errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC})
JSON_VARIABLE = "CONTROLPLANE_JSON"
_WIDTH_OF_PIPES = 200
_CONNECT_TIMEOUT_S = 5.0


@dataclass(slots=True)
class Cpctl:
    """One run of cpctl: where to connect and how to show what comes back."""

    settings: Callable[[], Settings]
    as_json: bool = False
    timeout_s: float = 10.0
    watch_every_s: float | None = None
    request_id: bytes | None = None
    live: Live | None = None
    waiting: Status | None = None

    @asynccontextmanager
    async def connect(self, addresses: Sequence[str] = ()) -> AsyncIterator[sdk.ControlPlane]:
        """A client of the region; with `addresses`, of these nodes and no others. Raises the eight errors."""
        settings = self.settings()
        plane = sdk.ControlPlane.connect(
            list(addresses or settings.addresses),
            ca=settings.authority or None,
            cert=settings.certificate or None,
            key=settings.key or None,
            insecure=settings.insecure,
            timeout_s=self.timeout_s,
            mirror=False,
            follow_leader=not addresses,
        )
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await plane.__aenter__()
        except TimeoutError:
            await plane.close()
            raise sdk.Unavailable(
                f"no node answered at {', '.join(addresses or settings.addresses)}",
                reason="UNREACHABLE",
                hint="are the addresses right, the nodes up, and the certificates of this fleet?",
            ) from None
        try:
            yield plane
        finally:
            await plane.close()

    async def explained(self) -> sdk.ControlPlaneError | None:
        """Why no node answers, if that is because of the certificates; None otherwise."""
        found = self.settings()
        if found.insecure:
            return None
        return await tls.explained(found.addresses, found.authority, found.certificate, found.key)

    def show(self, document: Any, people: Callable[[Any], RenderableType]) -> None:
        """Print a document: as one line of JSON for programs, as `people(document)` for people."""
        self.stop_waiting()
        if self.as_json:
            click.echo(json.dumps(document, ensure_ascii=False))
            return
        shown = people(document)
        if isinstance(document, dict) and document.get("more"):
            shown = Stack(shown, Text("there is more: --limit shows it", style="yellow"))
        if self.live is not None:
            self.live.update(shown, refresh=True)
        else:
            console().print(shown)

    def start_waiting(self) -> None:
        """Let people at a terminal see that something is going on; until the next output."""
        terminal = console(err=True)
        if terminal.is_terminal and not self.as_json and self.watch_every_s is None:
            self.waiting = terminal.status("asking the region ...")
            self.waiting.start()

    def stop_waiting(self) -> None:
        """The answer is there."""
        if self.waiting is not None:
            self.waiting.stop()
            self.waiting = None

    def done(self, document: Any, sentence: str) -> None:
        """Say that a write is done."""
        self.show(document, lambda _: Text(sentence, style="green"))


pass_cpctl = click.make_pass_decorator(Cpctl)


class Program(click.Group):
    """`cpctl` itself: whatever ends it becomes an exit code and, where there is something to say, one message."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line, those of the process by default, and leave with its exit code; see `click.Group.main`."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        given = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(given, prog_name, complete_var, standalone_mode=False, **extra)
        except click.ClickException as error:
            _say_what_is_wrong(error, as_json=_wants_json(given))
            code = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            code = EXIT_INTERRUPTED
        except OSError as error:
            if error.errno not in _OF_DISKS:
                raise
            # Python would try once more when it flushes at exit.
            sys.stdout = None
            unwritten = files.Unwritten(f"standard output: {error.strerror}")
            with contextlib.suppress(OSError):  # The same may hold for this.
                _say_what_is_wrong(unwritten, as_json=_wants_json(given))
            code = unwritten.exit_code
        sys.exit(code)

    def make_context(self, *given: Any, **more: Any) -> click.Context:
        """See `click.Command`; prints what --help asks for."""
        with _until_enough():
            return super().make_context(*given, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """See `click.Group`."""
        with _until_enough():
            return super().invoke(ctx)


@contextmanager
def _until_enough() -> Iterator[None]:
    """End with success when whoever reads the output has seen enough of it."""
    try:
        yield
    except BrokenPipeError:
        # Python would complain when it flushes at exit.
        sys.stdout = None
        raise click.exceptions.Exit(0) from None


def _wants_json(given: Sequence[str]) -> bool:
    """Whether errors are to be documents, also where the command line could not be read to its end."""
    with contextlib.suppress(click.BadParameter):
        return "--json" in given or bool(click.BOOL(os.environ.get(JSON_VARIABLE) or "no"))
    return False


def _say_what_is_wrong(error: click.ClickException, *, as_json: bool) -> None:
    if not as_json:
        error.show()
        return
    kind, reason, hint = "Invalid", "USAGE", ""
    if isinstance(error, files.FileUnusable):
        kind, reason = error.kind, error.reason
    elif isinstance(error, click.UsageError) and error.ctx is not None:
        hint = f"{error.ctx.command_path} --help"
    _print_error({**shapes.error(sdk.Invalid(error.format_message(), reason=reason, hint=hint)), "error": kind})


class Command(click.Command):
    """A command that takes --json behind its name too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--json"], is_flag=True, expose_value=False, callback=_json_wanted, help="Print JSON, for programs."
            )
        )


class Group(click.Group):
    """A group of such commands."""

    command_class = Command
    group_class = type


def _json_wanted(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        cpctl = context.find_object(Cpctl)
        assert cpctl is not None
        cpctl.as_json = True


def run(
    body: Callable[Concatenate[Cpctl, sdk.ControlPlane, P], Awaitable[None]],
) -> Callable[P, None]:
    """Make a command of a coroutine function that wants a connection; errors become exit codes."""

    @pass_cpctl
    @functools.wraps(body)
    def command(cpctl: Cpctl, /, *args: P.args, **kwargs: P.kwargs) -> None:
        async def once() -> None:
            async with cpctl.connect() as plane:
                await _repeat(cpctl, lambda: body(cpctl, plane, *args, **kwargs))

        finish(cpctl, once())

    return command


def finish(cpctl: Cpctl, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end; leave the process with the exit code of what it raised."""
    cpctl.start_waiting()
    try:
        asyncio.run(_told(cpctl, work))
    except sdk.ControlPlaneError as error:
        cpctl.stop_waiting()
        _complain(cpctl, error)
        sys.exit(EXIT_CODES.get(type(error), EXIT_DEFECT))
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    finally:
        cpctl.stop_waiting()


async def _told(cpctl: Cpctl, work: Coroutine[Any, Any, None]) -> None:
    """Do `work`; where nobody answered, raise what says that it is because of the certificates, if it is."""
    try:
        await work
    except sdk.Unavailable as error:
        if error.reason != "UNREACHABLE":
            raise
        raise await cpctl.explained() or error from error.__cause__


def confirm(cpctl: Cpctl, ask: Callable[[], bool], about: RenderableType | None = None) -> None:
    """Show people `about`, and return if they say yes to `ask`.

    Raises `Invalid` (NOT_CONFIRMED) if they do not, or nobody is there; `KeyboardInterrupt` at once at Ctrl-C.
    """
    if cpctl.as_json or not sys.stdin.isatty():
        raise sdk.Invalid("nobody is there to confirm", reason="NOT_CONFIRMED", hint="give --yes if you mean it")
    cpctl.stop_waiting()
    if about is not None:
        console(err=True).print(about)
    # The handler of the event loop only cancels the task, of which a prompt that waits would not hear.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        agreed = ask()
    except click.Abort:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)
    if not agreed:
        raise sdk.Invalid("not confirmed, so nothing was done", reason="NOT_CONFIRMED")


async def _repeat(cpctl: Cpctl, once: Callable[[], Awaitable[None]]) -> None:
    if cpctl.watch_every_s is None:
        await once()
        return
    with Live(console=console(), auto_refresh=False) as live:
        cpctl.live = live
        while True:
            await once()
            await asyncio.sleep(cpctl.watch_every_s)


def _complain(cpctl: Cpctl, error: sdk.ControlPlaneError) -> None:
    if isinstance(error, sdk.OutcomeUnknown) and cpctl.request_id is not None:
        error.hint = f"cpctl outcome {cpctl.request_id.hex()}"
    error.hint = _own_hint(error) or error.hint
    if cpctl.as_json:
        _print_error(shapes.error(error))
        return
    say = console(err=True)
    say.print(Text.assemble(("error: ", "bold red"), str(error), (f"  {error.reason}", "dim")))
    if hint := error.hint or _next_step(error):
        say.print(Text.assemble(("next:  ", "bold"), hint))


def _print_error(document: shapes.Shape) -> None:
    click.echo(json.dumps(document, ensure_ascii=False), err=True)


_IN_AN_EMERGENCY = (
    "ask in a region that may see it; in an emergency: --break-glass REASON, on the record of both regions"
)
_LIST_ANEW = "begin with what there is: --snapshot"
# By reason, what to do in the words of an option, and which one the command has to have for it.
_OWN_HINTS = {
    "EVENTS_COMPACTED": ("snapshot", _LIST_ANEW),
    "HOME_UNREACHABLE": ("local", "read the copy that is here: --local; cpctl status shows how old it is"),
    "JURISDICTION_MISMATCH": ("break_glass", _IN_AN_EMERGENCY),
    "PARTITION_AMBIGUOUS": ("kinds", "ask for kinds of one of them with --kind, or name it with --partition"),
    "PARTITION_MISSING": ("partition", "name one with --partition; cpctl partition list shows them"),
    "PARTITION_PINNED": ("break_glass", _IN_AN_EMERGENCY),
    "PARTITIONS_CHANGED": ("snapshot", _LIST_ANEW),
    "REASON_MISSING": ("reason", "say why: --reason"),
    "REVISION_IN_FUTURE": ("at_least", "wait for that revision: --at-least REVISION"),
}


def _own_hint(error: sdk.ControlPlaneError) -> str:
    """The next step in the words of the command line, where the API speaks of fields."""
    context = click.get_current_context(silent=True)
    option, hint = _OWN_HINTS.get(error.reason, ("", ""))
    return hint if context is not None and any(each.name == option for each in context.command.params) else ""


def _next_step(error: sdk.ControlPlaneError) -> str:
    match error:
        case sdk.Unavailable():
            return "see which nodes answer: cpctl member health; for a region of your own: controlplane dev"
        case sdk.Denied():
            return "see who you are to the region in your certificate; choose another with --certificate and --key"
        case sdk.Compacted():
            return f"ask for revision {error.details['oldest']} or newer" if "oldest" in error.details else ""
    return ""


class _Console(Console):
    """One that leaves it to `Program` what becomes of a reader that went away."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console(*, err: bool = False) -> Console:
    """A terminal; a pipe or a file gets wide lines without colour."""
    plain = _Console(stderr=err, highlight=False)
    return plain if plain.is_terminal else _Console(stderr=err, highlight=False, width=_WIDTH_OF_PIPES)


def not_installed(missing: ModuleNotFoundError) -> click.UsageError:
    """What to say where a command needs more than all the others do."""
    extra = "pip install 'controlplane[drills]', or in a clone of it pip install '.[drills]'"
    return click.UsageError(f"{missing.name} is not installed: {extra}")


def table(rows: Sequence[dict[str, Any]], **columns: Callable[[dict[str, Any]], Any]) -> RenderableType:
    """Rows under headings; each column is a function of a row."""
    if not rows:
        return Text("none", style="dim")
    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in columns:
        made.add_column(heading.replace("_", " ").upper(), overflow="fold")
    for row in rows:
        made.add_row(*(_cell(column(row)) for column in columns.values()))
    return made


def card(**lines: Any) -> RenderableType:
    """One thing: names and values below each other."""
    made = Table.grid(padding=(0, 2))
    for name, value in lines.items():
        made.add_row(Text(name.replace("_", " "), style="bold"), _cell(value))
    return made


def _cell(value: Any) -> Text:
    match value:
        case Text():
            return value
        case None | "":
            return Text("-", style="dim")
        case bool():
            return Text("yes" if value else "no")
        case dict() | list():
            return Text(json.dumps(value, ensure_ascii=False))
    return Text(str(value))


def reads(body: F) -> F:
    """Give a reading command --local, --at-least, --partition, --break-glass and --watch; they arrive as `options`."""

    @functools.wraps(body)
    def wrapped(
        *args: Any,
        local: bool,
        at_least: int | None,
        partition: str,
        break_glass: str | None,
        watch: float | None,
        **kwargs: Any,
    ) -> Any:
        if local and at_least is not None:
            raise click.UsageError("--local and --at-least exclude each other")
        if break_glass is not None and (watch is not None or not break_glass.strip()):
            raise click.UsageError("--break-glass wants a reason, and is for one read at a time")
        cpctl = click.get_current_context().find_object(Cpctl)
        assert cpctl is not None
        cpctl.watch_every_s = watch
        options: sdk.ReadOptions = {"partition": partition}
        if break_glass is not None:
            options["break_glass"] = break_glass
        if local or at_least is not None:
            options["consistency"] = sdk.LOCAL if at_least is None else sdk.at_least(at_least)
        return body(*args, options=options, **kwargs)

    for option in (
        click.option("--local", is_flag=True, help="Whatever the node at hand has, without asking the others."),
        click.option("--at-least", type=click.IntRange(0), metavar="REVISION", help="Everything up to a revision."),
        click.option("--partition", default="", help="Another partition than the environment's own."),
        click.option(
            "--break-glass",
            metavar="REASON",
            help="An emergency: read what is pinned to another region, on the record of both.",
        ),
        click.option(
            "--watch",
            is_flag=False,
            flag_value=1.0,
            type=click.FloatRange(0.1, 3600),
            metavar="SECONDS",
            help="Show it again every so often (every second if nothing is said).",
        ),
    ):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]


def writes(body: F) -> F:
    """Give a writing command --reason, --fence and --partition; they arrive as `options`."""
    return _writes(body, reason_required=False)


def justified_writes(body: F) -> F:
    """The same for what nobody may do without saying why."""
    return _writes(body, reason_required=True)


def _writes(body: F, *, reason_required: bool) -> F:
    @functools.wraps(body)
    def wrapped(*args: Any, reason: str, fence: api.Fence | None, partition: str, **kwargs: Any) -> Any:
        cpctl = click.get_current_context().find_object(Cpctl)
        assert cpctl is not None
        # Chosen here, so that it can be named if the outcome stays unknown.
        cpctl.request_id = secrets.token_bytes(limits.REQUEST_ID_BYTES)
        options: sdk.WriteOptions = {"partition": partition, "reason": reason, "request_id": cpctl.request_id}
        if fence is not None:
            options["fence"] = fence
        return body(*args, options=options, **kwargs)

    for option in (
        _reason(required=reason_required),
        click.option(
            "--fence",
            metavar="ELECTION:EPOCH:REVISION",
            callback=parsed(values.fence),
            help="Only while this lease is the live one.",
        ),
        click.option("--partition", default="", help="Another partition than the environment's own."),
    ):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[return-value]


def _reason(*, required: bool) -> Callable[[F], F]:
    if required:
        return click.option("--reason", required=True, help="Why, for the record.")
    return click.option("--reason", default="", help="Why, for the record.")


def parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """A callback that turns what was typed into what is meant, before anything is asked of the region."""
    return lambda _context, _parameter, text: None if text is None else parse(text)


def paged(body: F) -> F:
    """Give a listing command --limit and --all."""
    return click.option(
        "--limit", type=click.IntRange(1, 1_000_000), default=1000, show_default=True, help="Rows at most."
    )(body)


async def listing(
    name: str, limit: int, page: Callable[[Any, int], Awaitable[tuple[Sequence[Any], Any, bool]]], start: Any
) -> shapes.Shape:
    """A document with at most `limit` rows under `name`, from as many pages as it takes; `more`: there are others.

    `page(cursor, count)` returns rows, the cursor of the next page, and whether there is one.
    """
    rows: list[Any] = []
    cursor, more = start, True
    while more and len(rows) < limit:
        got, cursor, more = await page(cursor, min(limits.PAGE_MAX, limit - len(rows)))
        rows += got
    return {name: rows, "more": more}
