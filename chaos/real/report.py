"""What a run found: for people a table and a picture, for programs one JSON object. Pure, but for `keep`.

A run is green only if nothing was found. What makes it red is listed in words, each with what was expected.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

UNKNOWN_SHARE_MAX = 0.05
"""Unknown outcomes beyond this part of all writes make a run red: it would prove too little."""
KEPT_WHEN_GREEN = ("report.json", "timeline.svg")


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a run is red. `kind` is one word for tables; `text` says what was seen and what should have been."""

    kind: str
    text: str


@dataclass(slots=True)
class Strike:
    """One fault: when it was injected and healed, in seconds since the load began, and whether it was seen to work."""

    fault: str
    began_s: float
    healed_s: float | None = None
    served_s: float | None = None
    observed: bool = False
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Led:
    """From `at_s` on, as far as the harness heard, this node led."""

    at_s: float
    leader: str
    term: int


@dataclass(slots=True)
class Load:
    """What was asked. Writes and `unknown` count requests, not attempts; `calm_rate` is in answers per second."""

    operations: int = 0
    answered: int = 0
    failed: int = 0
    writes: int = 0
    unknown: int = 0
    calm_rate: float = 0.0
    floor: float = 0.0

    @property
    def unknown_share(self) -> float:
        """Unknown outcomes as a part of all writes."""
        return self.unknown / max(1, self.writes)


@dataclass(slots=True)
class Report:
    """One run. `again` is the command that repeats it; `skipped` says why it did not take place."""

    workload: str
    nemesis: str
    nodes: int
    topology: str
    seconds: float
    seed: int
    again: str
    folder: str = ""
    load: Load = field(default_factory=Load)
    strikes: list[Strike] = field(default_factory=list)
    leaders: list[Led] = field(default_factory=list)
    checked: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    skipped: str = ""

    @property
    def verdict(self) -> str:
        """Passed, FAILED or SKIPPED; a run that did not take place never passes."""
        if self.findings:
            return "FAILED"
        return "SKIPPED" if self.skipped else "passed"

    @property
    def recovery_s(self) -> list[float]:
        """For each healed fault, how long it took until every node served again."""
        return [each.served_s - each.healed_s for each in self.strikes if each.served_s and each.healed_s]

    def found(self, kind: str, text: str) -> None:
        """Make the run red."""
        self.findings.append(Finding(kind, text))

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs."""
        whole = asdict(self)
        load: dict[str, Any] = whole["load"]
        load["unknown_share"] = round(self.load.unknown_share, 4)
        return {"verdict": self.verdict, **whole}


def weigh(report: Report) -> None:
    """Judge what any run has to show, whatever its workload: enough load, seen faults, few unknown outcomes."""
    load = report.load
    if load.calm_rate < load.floor:
        report.found("load", f"{load.calm_rate:.1f} answers per second in the calm parts, {load.floor:g} are needed")
    if load.unknown_share > UNKNOWN_SHARE_MAX:
        report.found("unknown", f"{load.unknown} of {load.writes} writes have an unknown outcome: more than 5 %")
    if report.nemesis != "none" and not report.strikes:
        report.found("fault", f"{report.nemesis} was never injected")
    for each in report.strikes:
        which = f"{each.fault} at {each.began_s:.1f} s"
        if not each.observed:
            report.found("fault", f"{which} was not seen to do anything {each.detail}".strip())
        if each.healed_s is not None and each.served_s is None:
            report.found("healing", f"after {which} not every node served again in time")


def faults(report: Report) -> dict[str, int]:
    """How often each fault was injected and seen."""
    return dict(Counter(each.fault for each in report.strikes if each.observed))


def keep(report: Report, folder: Path, pictures: Mapping[str, str]) -> None:
    """Write report and pictures; a green run gives up its data, logs and history, a red one keeps them all."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report.as_json(), indent=1) + "\n")
    for name, text in pictures.items():
        (folder / name).write_text(text)
    if report.verdict == "FAILED":
        return
    for each in folder.iterdir():
        if each.name in KEPT_WHEN_GREEN:
            continue
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink()


def table(reports: Sequence[Report]) -> RenderableType:
    """One row for each run."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("workload", "nemesis", "topology", "verdict"):
        made.add_column(heading, no_wrap=True)
    for heading in ("faults", "operations", "calm /s", "failed", "unknown", "served again"):
        made.add_column(heading, justify="right", no_wrap=True)
    made.add_column("checked")
    for each in reports:
        made.add_row(*_row(each))
    return made


def _row(report: Report) -> list[str | Text]:
    colour = {"passed": "green", "FAILED": "bold red", "SKIPPED": "yellow"}[report.verdict]
    first: list[str | Text] = [report.workload, report.nemesis, report.topology, Text(report.verdict, style=colour)]
    if report.skipped:
        return [*first, *[""] * 6, report.skipped]
    load = report.load
    served = f"{max(report.recovery_s):.2f} s" if report.recovery_s else "-"
    return [
        *first,
        str(sum(faults(report).values())),
        f"{load.operations:,}",
        f"{load.calm_rate:.0f}",
        f"{load.failed:,}",
        f"{load.unknown} ({100 * load.unknown_share:.1f} %)",
        served,
        ", ".join(f"{name}: {what}" for name, what in report.checked.items()),
    ]


def said(reports: Sequence[Report]) -> RenderableType:
    """The table, and below it what was found and how to repeat it."""
    parts: list[RenderableType] = [table(reports)]
    for each in reports:
        if each.counts and len(reports) == 1:
            parts.append(Text(", ".join(f"{name} {count:,}" for name, count in sorted(each.counts.items()))))
        if each.findings:
            parts.append(_findings(each))
    verdicts = Counter(each.verdict for each in reports)
    parts.append(Text(", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())), style="bold"))
    if verdicts["SKIPPED"]:
        parts.append(Text("What was SKIPPED has not been tested here.", style="bold yellow"))
    return Group(*parts)


def _findings(report: Report) -> RenderableType:
    lines = [f"{report.workload} under {report.nemesis}: {len(report.findings)} findings"]
    lines += [f"  {each.kind}: {each.text}" for each in report.findings[:20]]
    if len(report.findings) > 20:
        lines.append(f"  and {len(report.findings) - 20} more in report.json")
    lines += [f"  kept in {report.folder}", f"  repeat with: {report.again}"]
    return Text("\n".join(lines), style="red")
