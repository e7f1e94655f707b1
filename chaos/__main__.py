"""`python -m chaos simulate`: run schedules, print what happened, fail on any violation."""

from __future__ import annotations

import json
import sys

import click

from chaos.schedule import PROFILES, make_schedule
from chaos.simulation import Report, Result, Simulation, simulate

# From this many schedules on, a kind of fault that never happened is a failure of the run.
_ALL_FAULTS_FROM = 200


@click.group()
def main() -> None:
    """Break the control plane and see whether it holds."""


@main.command("simulate")
@click.option("--nodes", type=click.Choice(["1", "3", "5"]), default="3", show_default=True)
@click.option("--schedules", type=click.IntRange(1), default=100, show_default=True, help="How many, one per seed.")
@click.option("--seed", default=1, show_default=True, help="The first seed.")
@click.option("--seconds", default=60.0, show_default=True, help="Simulated seconds of each schedule.")
@click.option("--profile", type=click.Choice(PROFILES), default="lan", show_default=True)
@click.option("--off", "--plant", "off", multiple=True, help="Switch a rule of the guard off (B1, barrier, ...).")
@click.option("--wall", default=float("inf"), help="Stop after this many real seconds.")
@click.option("--stop-at", type=int, help="Stop after this many violations.")
@click.option("--trace", is_flag=True, help="Print the trace of the first violation (or of the only schedule).")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def simulate_command(  # noqa: PLR0913 - one per option.
    *,
    nodes: str,
    schedules: int,
    seed: int,
    seconds: float,
    profile: str,
    off: tuple[str, ...],
    wall: float,
    stop_at: int | None,
    trace: bool,
    as_json: bool,
) -> None:
    """Simulate one region under faults, schedule by schedule."""
    report = simulate(
        range(seed, seed + schedules),
        nodes=int(nodes),
        seconds=seconds,
        profile=profile,
        off=frozenset(off),
        stop_at=stop_at,
        wall_s_max=wall,
    )
    again = f"python -m chaos simulate --nodes {nodes} --seconds {seconds:g} --profile {profile}"
    again += "".join(f" --off {rule}" for rule in off)
    if as_json:
        print(json.dumps(_as_json(report), indent=1))
    else:
        _print(report, again)
    if trace:
        only = Simulation(make_schedule(seed, nodes=int(nodes), seconds=seconds, profile=profile), off=frozenset(off))
        _print_trace(report.violations[0] if report.violations else only.run())
    missing = report.missing_faults() if profile != "calm" and report.runs >= _ALL_FAULTS_FROM else []
    for kind in missing:
        print(f"fault {kind} never happened: this run proves nothing about it", file=sys.stderr)
    sys.exit(1 if report.violations or missing else 0)


def _as_json(report: Report) -> dict[str, object]:
    return {
        "schedules": report.runs,
        "simulated_hours": round(report.seconds / 3600, 2),
        "simulated_s_per_cpu_s": round(report.seconds / max(report.cpu_s, 1e-9), 1),
        "cpu_s": round(report.cpu_s, 1),
        "wall_s": round(report.wall_s, 1),
        "faults": dict(sorted(report.faults.items())),
        "counts": dict(sorted(report.counts.items())),
        "violations": [{"seed": result.seed, "violation": result.violation} for result in report.violations],
    }


def _print(report: Report, again: str) -> None:
    summary = _as_json(report)
    print(f"schedules {summary['schedules']}, simulated {summary['simulated_hours']} h, ", end="")
    print(f"{summary['simulated_s_per_cpu_s']} simulated s per s of CPU")
    for title, counts in (("faults", report.faults), ("counts", report.counts)):
        print(f"{title}: " + ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    print(f"violations: {len(report.violations)}")
    for result in report.violations[:20]:
        print(f"  seed {result.seed}: {result.violation}")
        print(f"    {again} --seed {result.seed} --schedules 1 --trace")


def _print_trace(result: Result) -> None:
    print("\n".join(result.trace))
    print(f"fingerprint {result.fingerprint:08x}")


if __name__ == "__main__":
    main()
