"""`python -m chaos simulate`, `sweep` and `plants`: run schedules, print what happened, fail on any violation."""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from chaos.schedule import FAMILIES, PROFILES
from chaos.sim_plants import PLANTS, RULES, Plant
from chaos.sim_runs import Report, Settings, run_one, simulate, sweep
from chaos.simulation import INSPECT_S, Result

# From this many schedules on, a kind of fault that never happened is a failure of the run.
_ALL_FAULTS_FROM = 200
_TIMELINE_LEGEND = (
    "L leads  f follows  c stands  r replaced, catching up  p paused  . down; one letter each half second"
)


@click.command("simulate")
@click.option("--nodes", type=click.Choice(["3", "5"]), help="[default: 3, or what the profile or plant needs]")
@click.option("--schedules", type=click.IntRange(1), default=100, show_default=True, help="How many, one per seed.")
@click.option("--seed", default=1, show_default=True, help="The first seed.")
@click.option("--seconds", default=60.0, show_default=True, help="Simulated seconds of each schedule.")
@click.option("--profile", type=click.Choice([*PROFILES, *FAMILIES]), help="[default: lan, or what suits the plant]")
@click.option("--plant", type=click.Choice(list(PLANTS)), help="Put a defect back, under schedules that suit it.")
@click.option("--off", multiple=True, type=click.Choice(RULES), help="Switch a single rule off, under any schedules.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@click.option("--wall", default=float("inf"), help="Stop after this many real seconds.")
@click.option("--stop-at", type=click.IntRange(1), help="Stop after this many violations.")
@click.option(
    "--trace",
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Write the history of the first violation (or of the only schedule) to FILE, or print it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def simulate_command(  # noqa: PLR0913 - one per option.
    *,
    nodes: str | None,
    schedules: int,
    seed: int,
    seconds: float,
    profile: str | None,
    plant: str | None,
    off: tuple[str, ...],
    jobs: int,
    wall: float,
    stop_at: int | None,
    trace: str | None,
    as_json: bool,
) -> None:
    """Simulate one region under faults, schedule by schedule; exit 1 on any violation."""
    settings = _settings(nodes, seconds, profile, plant, off)
    with _progress(schedules) as advance:
        report = simulate(
            range(seed, seed + schedules),
            settings,
            stop_at=stop_at,
            wall_s_max=wall,
            jobs=jobs,
            seen=lambda report: advance(bool(report.last.violation)),
        )
    missing = report.missing_faults(settings.profile) if report.runs >= _ALL_FAULTS_FROM else []
    if as_json:
        print(json.dumps(_as_json(report, settings), indent=1))
    else:
        _print(report, settings)
    if trace:
        _write_trace(trace, settings, report.violations[0].seed if report.violations else seed)
    for kind in missing:
        print(f"fault {kind} never happened: this run proves nothing about it", file=sys.stderr)
    sys.exit(1 if report.violations or missing else 0)


def _settings(
    nodes: str | None, seconds: float, profile: str | None, plant: str | None, off: tuple[str, ...]
) -> Settings:
    planted = PLANTS[plant].settings if plant else Settings()
    chosen = profile or planted.profile
    if nodes is None:
        fitting = FAMILIES[chosen].nodes if chosen in FAMILIES else 3 if profile else planted.nodes
    return Settings(int(nodes or fitting), seconds, chosen, planted.off | frozenset(off))


def _again(settings: Settings) -> str:
    again = f"python -m chaos simulate --nodes {settings.nodes} --seconds {settings.seconds:g}"
    again += f" --profile {settings.profile}"
    return again + "".join(f" --off {rule}" for rule in sorted(settings.off))


@contextmanager
def _progress(total: int) -> Iterator[Callable[[bool], None]]:
    """Show how far it is, on a terminal only."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("schedules", total=total)
        red = 0

        def advance(violated: bool) -> None:
            nonlocal red
            red += violated
            progress.update(task, advance=1, description=f"schedules, {red} violations" if red else "schedules")

        yield advance


def _as_json(report: Report, settings: Settings) -> dict[str, Any]:
    return {
        "profile": settings.profile,
        "nodes": settings.nodes,
        "schedules": report.runs,
        "simulated_hours": round(report.seconds / 3600, 2),
        "simulated_s_per_cpu_s": round(report.seconds / max(report.cpu_s, 1e-9), 1),
        "cpu_s": round(report.cpu_s, 1),
        "wall_s": round(report.wall_s, 1),
        "operations": report.counts["writes asked"] + report.counts["reads proven"] + report.counts["reads refused"],
        "faults": report.faults_of(settings.profile),
        "counts": dict(sorted(report.counts.items())),
        "violations": [{"seed": result.seed, "violation": result.violation} for result in report.violations],
    }


def _print(report: Report, settings: Settings) -> None:
    summary = _as_json(report, settings)
    _print_counts(summary["faults"], summary["counts"])
    _print_table([(settings, report)])
    _print_violations(settings, report)


def _print_counts(faults: Mapping[str, int], counts: Mapping[str, int]) -> None:
    for title, counted in (("faults", faults), ("counts", counts)):
        print(f"{title}: " + ", ".join(f"{name} {count}" for name, count in sorted(counted.items())))


def _print_table(rows: Sequence[tuple[Settings, Report]]) -> None:
    columns = (
        "profile",
        "nodes",
        "schedules",
        "hours",
        "operations",
        "faults",
        "violations",
        "CPU s",
        "sim. s / CPU s",
    )
    table = Table(*columns)
    for settings, report in rows:
        summary = _as_json(report, settings)
        shown = [summary[key] for key in ("profile", "nodes", "schedules", "simulated_hours", "operations")]
        shown += [sum(report.faults.values()), len(report.violations), summary["cpu_s"]]
        table.add_row(*map(str, shown), f"{summary['simulated_s_per_cpu_s']:.0f}")
    Console(width=110).print(table)


def _print_violations(settings: Settings, report: Report) -> None:
    for result in report.violations[:20]:
        print(f"seed {result.seed}: {result.violation}")
        print(f"    {_again(settings)} --seed {result.seed} --schedules 1 --trace")
    if report.violations:
        print("\n".join(["", *_timeline(report.violations[0])]))


def _write_trace(target: str, settings: Settings, seed: int) -> None:
    result, _ = run_one(settings, seed, whole_trace=True)
    text = "\n".join(_history(result)) + "\n"
    if target == "-":
        print(text, end="")
    else:
        Path(target).write_text(text)
        print(f"history of seed {seed}: {target}", file=sys.stderr)


def _history(result: Result) -> list[str]:
    """The whole run as lines: every event, then who did what when, then the fingerprint."""
    verdict = [f"violation: {result.violation or 'none'}", f"fingerprint {result.fingerprint:08x}"]
    return [*result.trace, "", *_timeline(result), *verdict]


def _timeline(result: Result) -> list[str]:
    """A picture of the run: a line per node, a letter per inspection."""
    length = max(map(len, result.timeline.values()), default=0)
    scale = "".join(f"{int(k * INSPECT_S):<10}" for k in range(0, length, 10)).rstrip()
    lines = [f"{name:>8} {letters}" for name, letters in result.timeline.items()]
    return [f"{'seconds':>8} {scale}", *lines, f"{'':>8} {_TIMELINE_LEGEND}"]


@click.command("sweep")
@click.option("--schedules", type=click.IntRange(1), default=2000, show_default=True, help="How many in all.")
@click.option("--seed", type=int, help="The first seed.  [default: a new one]")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@click.option("--wall", default=float("inf"), help="Stop after this many real seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def sweep_command(*, schedules: int, seed: int | None, jobs: int, wall: float, as_json: bool) -> None:
    """Simulate all profiles and families in turn; exit 1 on any violation."""
    first = secrets.randbelow(10**9) if seed is None else seed
    with _progress(schedules) as advance:
        reports = sweep(
            schedules,
            first,
            wall_s_max=wall,
            jobs=jobs,
            seen=lambda _, report: advance(bool(report.last.violation)),
        )
    missing = [
        f"{kind} ({settings.profile}, {settings.nodes} nodes)"
        for settings, report in reports.items()
        if report.runs >= _ALL_FAULTS_FROM
        for kind in report.missing_faults(settings.profile)
    ]
    if as_json:
        rows = [_as_json(report, settings) for settings, report in reports.items()]
        print(json.dumps({"seed": first, "sweep": rows}, indent=1))
    else:
        _print_sweep(reports, first)
    for kind in missing:
        print(f"fault {kind} never happened: this run proves nothing about it", file=sys.stderr)
    sys.exit(1 if missing or any(report.violations for report in reports.values()) else 0)


def _print_sweep(reports: dict[Settings, Report], first: int) -> None:
    faults: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for report in reports.values():
        faults += report.faults
        counts += report.counts
    _print_counts(faults, counts)
    print(f"from seed {first}")
    _print_table(list(reports.items()))
    for settings, report in reports.items():
        _print_violations(settings, report)


@click.command("plants")
@click.option("--only", multiple=True, type=click.Choice(list(PLANTS)), help="These plants.  [default: all]")
@click.option("--seed", type=int, help="The first seed.  [default: a new one]")
@click.option("--schedules", type=click.IntRange(1), default=2000, show_default=True, help="At most, for each.")
@click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def plants_command(*, only: tuple[str, ...], seed: int | None, schedules: int, jobs: int, as_json: bool) -> None:
    """Put every known defect back, one at a time, and search for it; exit 1 if one is not found."""
    first = secrets.randbelow(10**9) if seed is None else seed
    rows = []
    with _progress_of_plants(len(only or PLANTS)) as advance:
        for name in only or PLANTS:
            rows.append(_search(name, PLANTS[name], first, schedules, jobs))
            advance(name)
    if as_json:
        print(json.dumps({"seed": first, "plants": rows}, indent=1))
    else:
        _print_plants(rows, first)
    sys.exit(0 if all(row["violation"] for row in rows) else 1)


@contextmanager
def _progress_of_plants(total: int) -> Iterator[Callable[[str], None]]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("plants", total=total)
        yield lambda name: progress.update(task, advance=1, description=f"plants: {name} done")


def _search(name: str, plant: Plant, first: int, schedules: int, jobs: int) -> dict[str, Any]:
    began = time.monotonic()
    report = simulate(range(first, first + schedules), plant.settings, stop_at=1, jobs=jobs)
    return {
        "plant": name,
        "what": plant.what,
        "profile": plant.profile,
        "nodes": plant.nodes,
        "schedules": report.runs,
        "seconds": round(time.monotonic() - began, 1),
        "violation": report.violations[0].violation if report.violations else None,
    }


def _print_plants(rows: list[dict[str, Any]], first: int) -> None:
    table = Table("plant", "profile", "nodes", "schedules", "seconds", "caught as", title=f"from seed {first}")
    for row in rows:
        caught = (row["violation"] or "NOT CAUGHT").split(" ")[0] if row["violation"] else "NOT CAUGHT"
        cells = (row["plant"], row["profile"], row["nodes"], row["schedules"], row["seconds"], caught)
        table.add_row(*map(str, cells))
    Console(width=100).print(table)
