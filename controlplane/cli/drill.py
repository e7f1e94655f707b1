"""`cpctl drill ...`: break a running region on purpose, watch it hold, and keep the proof."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Group as Stack
from rich.console import RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from controlplane import sdk
from controlplane.cli.command import (
    EXIT_CODES,
    EXIT_FAILED_DRILL,
    Cpctl,
    Group,
    card,
    confirm,
    console,
    finish,
    not_installed,
    pass_cpctl,
    table,
)
from controlplane.cli.files import check_folder, usable, written
from controlplane.cli.settings import Settings, config_file, load
from controlplane.cli.shapes import Shape
from controlplane.drills import picture, record, runner, scenarios
from controlplane.drills.faults import Kind
from controlplane.drills.load import Connect
from controlplane.drills.nodes import Look, Nodes
from controlplane.drills.record import Chosen
from controlplane.drills.runner import Course, Runner, There
from controlplane.drills.scenarios import Options, Plan
from controlplane.sdk.session import credentials

_REFRESH_S: Final = 0.25
_HEAL_TIMEOUT_S: Final = 150.0
_GONE_S: Final = 3.0
_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group("drill", cls=Group)
def drill() -> None:
    """Break a running region on purpose, for a bounded time, and keep the proof that it held.

    Needs nodes that were started with `controlplane serve --drills`, and an operator of prod.
    """


# -- what there is


@drill.command("list")
@pass_cpctl
def list_(cpctl: Cpctl) -> None:
    """All drills."""
    rows = [{"name": each.name, "title": each.title, "down_s": each.down_s} for each in scenarios.SCENARIOS.values()]
    cpctl.show(
        {"drills": rows, "version": scenarios.VERSION},
        lambda document: table(
            document["drills"],
            drill=lambda row: row["name"],
            what_it_does=lambda row: row["title"],
            fault_lasts=lambda row: f"{row['down_s']:g} s",
        ),
    )


def _planned(body: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the drill's name and what can be chosen of it; they arrive as `name` and `options`."""

    @wraps(body)
    def wrapped(
        *args: Any,
        down: float | None,
        calm: float,
        past_compaction: bool,
        kill_switch: bool,
        peer: tuple[str, ...],
        copied: str,
        pause_there: bool,
        moved: str,
        **kwargs: Any,
    ) -> Any:
        options = Options(down, calm, past_compaction, kill_switch, peer, copied, pause_there, moved)
        return body(*args, options=options, **kwargs)

    for parameter in (
        click.option(
            "--there",
            multiple=True,
            metavar="CONTEXT",
            help="kill-under-partition, region-loss, move-home: act and look in this region too; see cpctl context.",
        ),
        click.option(
            "--copy",
            "copied",
            default="",
            metavar="PARTITION",
            help="region-loss: a partition at home in the lost region that is shared with this one.",
        ),
        click.option(
            "--move",
            "moved",
            default="",
            metavar="PARTITION",
            help="move-home: a partition at home here, to be moved to the region of --there (or --peer), and back.",
        ),
        click.option("--pause-there", is_flag=True, help="region-loss: pause the nodes of the lost region; --there."),
        click.option("--with-kill-switch", "kill_switch", is_flag=True, help="Throw a kill switch meanwhile."),
        click.option("--peer", multiple=True, metavar="REGION", help="Cut off from, lose, or move to.  [default: all]"),
        click.option("--past-compaction", is_flag=True, help="divergent-rejoin: past what is kept of the log."),
        click.option(
            "--calm",
            type=click.FloatRange(0.1, 60),
            default=scenarios.CALM_S,
            show_default=True,
            metavar="SECONDS",
            help="How long clients work undisturbed before and after.",
        ),
        click.option(
            "--down",
            type=click.FloatRange(0.5, 120),
            metavar="SECONDS",
            help="How long each fault lasts, or writes may pause.",
        ),
        click.argument("name"),
    ):
        wrapped = parameter(wrapped)
    return wrapped


@drill.command("plan")
@_planned
@pass_cpctl
def plan(cpctl: Cpctl, *, name: str, options: Options, there: tuple[str, ...]) -> None:
    """What a drill would do here and now, step by step, without doing it. Exit code 5 if it would be refused."""
    finish(cpctl, _plan(cpctl, name, options, _others(there)))


async def _plan(cpctl: Cpctl, name: str, options: Options, others: Sequence[Settings]) -> None:
    async with _nodes(cpctl.settings()) as nodes, _there(others) as there:
        made, problems, _ = await runner.prepare(nodes, name, options, there)
    cpctl.show(_plan_shape(made, problems), _plan_page)
    if problems:
        sys.exit(EXIT_CODES[sdk.Refused])


def _plan_shape(made: Plan | None, problems: list[str]) -> Shape:
    shape: Shape = {"would_run": not problems, "problems": problems, "plan": None}
    if made is not None:
        shape["plan"] = {
            "drill": made.scenario,
            "title": made.title,
            "seconds": round(made.seconds),
            "blast_radius": list(made.blast),
            "rto_target_ms": made.rto_target_ms,
            "stops_after_silence_ms": made.silence_ms_max,
            "kill_switch": made.kill_switch,
            "steps": [
                {"says": step.says, "faults": [each.says for each in step.strikes], "then": step.until.value}
                for step in made.steps
            ],
        }
    return shape


def _plan_page(document: Shape) -> RenderableType:
    parts: list[RenderableType] = []
    if made := document["plan"]:
        parts += [
            Text(f"{made['drill']}: {made['title']}", style="bold"),
            card(
                takes=f"about {made['seconds']} s and what it takes to catch up",
                recovery=f"writes succeed again within {made['rto_target_ms']} ms",
                stops_early=f"after {made['stops_after_silence_ms'] / 1000:g} s without any acknowledged write; "
                "if another node falls silent; if two nodes contradict each other; on cpctl drill abort",
            ),
            Text("\nblast radius", style="bold"),
            *(Text(f"  - {line}") for line in made["blast_radius"]),
            Text("\nsteps", style="bold"),
            *_step_lines(made["steps"]),
            Text(),
        ]
    if document["problems"]:
        parts.append(Text("it would be refused:", style="bold red"))
        parts += [Text(f"  - {problem}", style="red") for problem in document["problems"]]
    else:
        parts.append(Text("the region is steady: it would run", style="green"))
    return Stack(*parts)


def _step_lines(steps: list[Shape]) -> list[Text]:
    lines = []
    for number, step in enumerate(steps, 1):
        lines.append(Text(f"  {number}. {step['says']}"))
        lines += [Text(f"     fault: {fault}", style="yellow") for fault in step["faults"]]
        if step["faults"]:
            lines.append(Text(f"     until {step['then']}", style="dim"))
    return lines


# -- running one


@drill.command("run")
@_planned
@click.option("--reason", required=True, help="Why, for the record.")
@click.option("--yes", is_flag=True, help="Do not ask again.")
@click.option("--partition", default="", help="Where the drill's clients write, if not the environment's own.")
@click.option("--out", type=_FOLDER, default=Path("drills"), show_default=True, help="Where the record goes.")
@click.option("--signing-key", type=_FILE, help="Your key; see cpctl drill key new.")
@click.option("--owner", default="", help="Who owns the findings; you, unless said otherwise.")
@click.option("--retest-days", type=click.IntRange(1, 3650), default=30, show_default=True)
@pass_cpctl
def run(  # noqa: PLR0913 - one parameter for each option.
    cpctl: Cpctl,
    *,
    name: str,
    options: Options,
    there: tuple[str, ...],
    reason: str,
    yes: bool,
    partition: str,
    out: Path,
    signing_key: Path | None,
    owner: str,
    retest_days: int,
) -> None:
    """Run a drill. Ctrl-C ends it and heals. Exit code 0 if everything was shown, 12 if not."""
    signer = _signer(signing_key or _usual_key())
    chosen = Chosen(reason, partition, owner, retest_days)
    finish(cpctl, _run(cpctl, name, options, chosen, others=_others(there), out=out, signer=signer, yes=yes))


async def _run(
    cpctl: Cpctl,
    name: str,
    options: Options,
    chosen: Chosen,
    *,
    others: Sequence[Settings],
    out: Path,
    signer: Any,
    yes: bool,
) -> None:
    cpctl.stop_waiting()
    settings = cpctl.settings()
    async with _nodes(settings) as nodes, _there(others) as there:
        made, problems, looks = await runner.prepare(nodes, name, options, there)
        if problems or made is None:
            raise _not_steady(problems, looks)
        check_folder(out, make=True)
        if not yes:
            confirm(cpctl, partial(click.confirm, "Run this drill now?", err=True), _plan_page(_plan_shape(made, [])))
        course = runner.new_course(made, options, looks, lambda: time.time_ns() // 1_000_000)
        running = Runner(nodes, _connect(settings, nodes), course, chosen.reason, chosen.partition, there=there)
        async with _shown(cpctl, running):
            with _interruptible():
                await running.run()
    with written(out):
        document = _write(course, chosen, out, signer)
    cpctl.show(document, _result_page)
    if document["record"]["verdict"] != "passed":
        sys.exit(EXIT_FAILED_DRILL)


def _not_steady(problems: list[str], looks: Mapping[str, Look]) -> sdk.Refused:
    refused = runner.not_steady(problems)
    if _drills_in(looks):
        # What it holds is held until its timers end, also if whoever ran it is gone.
        refused.hint = "cpctl drill watch follows the drill that is under way; cpctl drill abort ends it"
    return refused


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let every polite way of ending this process end the drill, which heals; also where a shell had SIGINT ignored."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # Not started to outlive its terminal.
        numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _connect(settings: Settings, nodes: Nodes) -> Connect:
    def connect(addresses: Sequence[str], mirror: bool) -> sdk.ControlPlane:
        return sdk.ControlPlane.connect(
            list(addresses or nodes.addresses.values()),
            ca=settings.authority or None,
            cert=settings.certificate or None,
            key=settings.key or None,
            insecure=settings.insecure,
            mirror=mirror,
            follow_leader=not addresses,
        )

    return connect


def _write(course: Course, chosen: Chosen, out: Path, signer: Any) -> Shape:
    """Write the history, the picture, the record and its page; return what is shown."""
    out.mkdir(parents=True, exist_ok=True)
    began = time.strftime("%Y%m%d-%H%M%S", time.gmtime(course.began_ms / 1000))
    base = out / f"{began}-{course.plan.scenario}-{course.drill[:8]}"
    history = base.with_suffix(".history.jsonl")
    course.recorder.write(history)
    base.with_suffix(".svg").write_text(picture.draw(course), encoding="utf-8")
    made = record.compose(course, chosen, history.read_bytes(), history.name)
    file = base.with_suffix(".json")
    file.write_bytes(record.sealed(made, signer.public_key, signer.sign(record.canonical(made))))
    base.with_suffix(".md").write_text(record.markdown(made), encoding="utf-8")
    return {"file": str(file), "record": made}


def _result_page(document: Shape) -> RenderableType:
    made = document["record"]
    claims = table(
        made["claims"],
        claim=lambda row: row["name"].replace("_", " "),
        wanted=lambda row: f"{'' if row['rule'] == 'is' else row['rule'] + ' '}{row['target']}",
        actual=lambda row: row["actual"],
        result=lambda row: _result(row["passed"]),
    )
    passed = made["verdict"] == "passed"
    early = f"; it ended early: {made['ended_early']}" if made["ended_early"] else ""
    return Stack(
        claims,
        Text(f"\n{made['drill']['name']}: {made['verdict']}{early}", style="green" if passed else "bold red"),
        Text(f"record: {document['file']} (verify it with cpctl drill verify)"),
    )


def _result(passed: bool | None) -> Text:
    styles: dict[bool | None, str] = {True: "green", False: "bold red", None: "yellow"}
    return Text(record.result(passed), style=styles[passed])


# -- watching


@asynccontextmanager
async def _shown(cpctl: Cpctl, running: Runner) -> AsyncIterator[None]:
    """Show a drill while it runs: live at a terminal, line by line elsewhere, not at all for programs."""
    if cpctl.as_json:
        yield
        return
    terminal = console(err=True)
    showing = asyncio.create_task(_show_live(running) if terminal.is_terminal else _show_lines(running))
    try:
        yield
    finally:
        showing.cancel()
        await asyncio.gather(showing, return_exceptions=True)


async def _show_live(running: Runner) -> None:
    with Live(console=console(err=True), auto_refresh=False) as live:
        while True:
            live.update(_running_page(running), refresh=True)
            await asyncio.sleep(_REFRESH_S)


async def _show_lines(running: Runner) -> None:
    said, terminal = 0, console(err=True)
    while True:
        for each in running.course.timeline[said:]:
            said += 1
            terminal.print(f"{each.at_ns / 1e9:8.3f} s  {each.what:8}  {each.says}")
        await asyncio.sleep(_REFRESH_S)


def _running_page(running: Runner) -> RenderableType:
    course = running.course
    recent = course.timeline[-8:]
    lines = [Text(f"  {each.at_ns / 1e9:8.3f} s  {each.what:8}  {each.says}") for each in recent]
    return Stack(
        Text(f"drill {course.plan.scenario}  {course.drill[:8]}  {running.now_ns() / 1e9:.1f} s", style="bold"),
        Text(f"now: {running.step}", style="cyan"),
        _nodes_table(running.looks),
        card(
            operations=len(course.recorder.events) // 2,
            last_acknowledged=f"{running.silent_ms} ms ago",
        ),
        *lines,
    )


def _nodes_table(looks: Mapping[str, Look]) -> RenderableType:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("NODE", "ROLE", "LEADER", "TERM", "APPLIED", "STANDING", "FAULTS"):
        made.add_column(heading)
    for name, look in looks.items():
        row = _node_row(name, look)
        made.add_row(*(str(value) for value in row.values()), style="" if look.status else "red")
    return made


def _node_row(name: str, look: Look) -> Shape:
    status, faults = look.status, look.faults
    active = [
        f"{Kind(each.fault.kind).word} ({each.remaining_ms / 1000:.1f} s)" for each in (faults.faults if faults else ())
    ]
    return {
        "node": name,
        "role": status.role if status else "silent",
        "leader": status.region.leader if status else "",
        "term": status.region.term if status else "",
        "applied": status.applied if status else "",
        "standing": faults.standing if faults else "",
        "faults": ", ".join(active),
    }


@drill.command("watch")
@click.option("--once", is_flag=True, help="Show it once.")
@pass_cpctl
def watch(cpctl: Cpctl, once: bool) -> None:
    """Follow a drill that somebody else runs, until it is over."""
    finish(cpctl, _watch(cpctl, once=once))


async def _watch(cpctl: Cpctl, *, once: bool) -> None:
    async with _nodes(cpctl.settings()) as nodes:
        await nodes.meet()
        looks = await nodes.look()
        if not _drills_in(looks):
            raise sdk.NotFound("no drill is under way", reason="NO_DRILL", hint="cpctl drill list shows what there is")
        gone_at = float("inf")
        with Live(console=console(), auto_refresh=False) if _live(cpctl, once=once) else nullcontext() as live:
            cpctl.live = live
            while time.monotonic() < gone_at:
                cpctl.show(_watch_shape(looks), partial(_watch_page, looks))
                if once:
                    return
                await asyncio.sleep(_REFRESH_S if live else 1.0)
                looks = await nodes.look()
                gone_at = float("inf") if _drills_in(looks) else min(gone_at, time.monotonic() + _GONE_S)


def _live(cpctl: Cpctl, *, once: bool) -> bool:
    return not once and not cpctl.as_json and console().is_terminal


def _drills_in(looks: Mapping[str, Look]) -> set[str]:
    return {each.fault.drill for look in looks.values() if look.faults for each in look.faults.faults}


def _watch_shape(looks: Mapping[str, Look]) -> Shape:
    actors = {each.actor for look in looks.values() if look.faults for each in look.faults.faults}
    reasons = {each.fault.reason for look in looks.values() if look.faults for each in look.faults.faults}
    return {
        "drills": sorted(_drills_in(looks)),
        "actors": sorted(actors),
        "reasons": sorted(reasons),
        "nodes": [_node_row(name, look) for name, look in looks.items()],
    }


def _watch_page(looks: Mapping[str, Look], document: Shape) -> RenderableType:
    about = card(
        drill=", ".join(document["drills"]), by=", ".join(document["actors"]), because=", ".join(document["reasons"])
    )
    return Stack(about, _nodes_table(looks))


# -- ending one


@drill.command("abort")
@click.argument("drill_id", default="")
@click.option("--reason", default="aborted by an operator", show_default=True, help="Why, for the log.")
@pass_cpctl
def abort(cpctl: Cpctl, drill_id: str, reason: str) -> None:
    """End a drill (or whatever drill there is) and heal every node; wait until that is done.

    A node that is killed or paused cannot be asked: it heals by its own timer, which is waited for.
    """
    finish(cpctl, _abort(cpctl, drill_id, reason))


async def _abort(cpctl: Cpctl, drill_id: str, reason: str) -> None:
    async with _nodes(cpctl.settings()) as nodes:
        await nodes.meet()
        end = time.monotonic() + _HEAL_TIMEOUT_S
        while failed := await nodes.heal_all(drill_id, reason, abort=True):
            for node, error in failed.items():
                if isinstance(error, sdk.Denied | sdk.Invalid):
                    raise error
                console(err=True).print(f"{node} cannot be asked yet; its own timer heals it")
            if time.monotonic() > end:
                raise sdk.Unavailable(
                    f"{', '.join(failed)} did not answer; their faults have ended by their own timers",
                    reason="NODES_SILENT",
                    hint="cpctl member health shows how they are",
                )
            await asyncio.sleep(1.0)
        cpctl.done({"healed": sorted(nodes.addresses)}, f"{', '.join(nodes.addresses)} have healed")


# -- records


@drill.command("report")
@click.argument("file", type=_FILE)
@pass_cpctl
def report(cpctl: Cpctl, file: Path) -> None:
    """Print a record as Markdown, or with --json as it is."""
    made, _ = _opened(file)
    if cpctl.as_json:
        cpctl.show(made, Text)
    else:
        click.echo(record.markdown(made))


@drill.command("verify")
@click.argument("file", type=_FILE)
@click.option("--trust", type=_FILE, required=True, help="The public key of who should have signed it.")
@pass_cpctl
def verify(cpctl: Cpctl, file: Path, trust: Path) -> None:
    """Check a record without the region: who signed it, and everything that can be computed again.

    The history must lie beside it. Exit code 0 if everything is as it says and the drill passed, 12 if not.
    """
    checks = _verified(file, trust)
    good = all(check.passed for check in checks)
    cpctl.show({"passed": good, "checks": [asdict(check) for check in checks]}, _checks_page)
    if not good:
        sys.exit(EXIT_FAILED_DRILL)


def _verified(file: Path, trust: Path) -> list[record.Check]:
    signing = _signing()
    made, signature = _opened(file)
    try:
        trusted = signing.public_key(trust)
    except (signing.KeyInvalid, OSError) as error:
        raise click.BadParameter(str(error), param_hint="--trust") from None
    genuine = signing.is_signed(record.canonical(made), str(signature.get("value")), trusted)
    says = "is by the trusted key" if genuine else "is NOT by the trusted key, or the record was changed after it"
    checks = [record.Check("signature", genuine, says)]
    try:
        return [*checks, *record.recheck(made, file.parent)]
    except record.RecordInvalid as error:
        return [*checks, record.Check("record", False, str(error))]


def _checks_page(document: Shape) -> RenderableType:
    return table(
        document["checks"],
        check=lambda row: row["name"].replace("_", " "),
        result=lambda row: _result(row["passed"] if row["checked"] else None),
        says=lambda row: row["says"],
    )


def _opened(file: Path) -> tuple[Shape, Shape]:
    try:
        if file.stat().st_size > record.FILE_BYTES_MAX:
            raise record.RecordInvalid(f"larger than {record.FILE_BYTES_MAX} bytes")
        return record.opened(file.read_bytes())
    except OSError as error:
        raise click.BadParameter(f"{file}: {error.strerror}", param_hint="FILE") from None
    except record.RecordInvalid as error:
        raise click.BadParameter(f"{file}: {error}", param_hint="FILE") from None


# -- keys


@drill.group("key", cls=Group)
def key() -> None:
    """The key that signs records."""


@key.command("new")
@click.argument("file", type=_FILE, required=False)
@pass_cpctl
def new(cpctl: Cpctl, file: Path | None) -> None:
    """Make a signing key, at FILE or where `drill run` looks for it. Give the .pub file to whoever verifies."""
    chosen = file or _usual_key()
    with usable(chosen):
        try:
            public = _signing().new(chosen)
        except FileExistsError:
            raise click.BadParameter(f"{chosen} exists; a key is never replaced", param_hint="FILE") from None
    cpctl.done({"key": str(chosen), "public_key": str(public)}, f"{chosen} signs, {public} verifies")


def _usual_key() -> Path:
    return config_file(os.environ).parent / "drill.key"


def _signer(file: Path) -> Any:
    signing = _signing()
    try:
        return signing.Signer(file)
    except FileNotFoundError:
        raise click.UsageError(f"there is no signing key at {file}: make one with cpctl drill key new {file}") from None
    except (signing.KeyInvalid, OSError) as error:
        raise click.UsageError(str(error)) from None


def _signing() -> Any:
    """The module that needs `cryptography`: only those who sign or verify have to have it."""
    try:
        from controlplane import signing  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise not_installed(missing) from None
    return signing


@asynccontextmanager
async def _nodes(settings: Settings) -> AsyncIterator[Nodes]:
    tls = credentials(
        settings.authority or None, settings.certificate or None, settings.key or None, insecure=settings.insecure
    )
    async with Nodes(tls, settings.addresses) as nodes:
        yield nodes


def _others(names: Sequence[str]) -> list[Settings]:
    """Contexts of other regions, by name."""
    contexts = load(config_file(os.environ))
    return [contexts.named(name).checked() for name in names]


@asynccontextmanager
async def _there(others: Sequence[Settings]) -> AsyncIterator[list[There]]:
    """Regions that take part in the drill of another one."""
    async with AsyncExitStack() as stack:
        made = [(settings, await stack.enter_async_context(_nodes(settings))) for settings in others]
        yield [There(nodes, _connect(settings, nodes)) for settings, nodes in made]
