"""The figures for people: a table, and a plot for the README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table

from bench.figures import ETCD, OURS, TUNED, Samples

_COLOURS = {OURS: "#1f6feb", ETCD: "#9aa0a6", TUNED: "#d0d4d8"}


def table(figures: list[dict[str, Any]]) -> RenderableType:
    """All figures, below each other."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("figure", "ours", "(range)", "etcd", "(range)", "ours / etcd", "unit", "n"):
        made.add_column(heading, justify="left" if heading in ("figure", "unit") else "right")
    for figure in figures:
        made.add_row(
            figure["name"],
            _number(figure["ours"]),
            _span(figure["ours_range"]),
            _number(figure["peer"]),
            _span(figure["peer_range"]),
            _number(figure["ratio"]),
            figure["unit"],
            str(figure["n"]),
        )
    return made


def targets(figures: list[dict[str, Any]]) -> RenderableType:
    """Figures of fleet and ledger, with what each is to be."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("figure", "measured", "(range)", "target", "reached", "unit", "n", "how"):
        made.add_column(heading, justify="left" if heading in ("figure", "unit", "how") else "right")
    for figure in figures:
        made.add_row(
            figure["name"],
            _number(figure["ours"]),
            _span(figure["ours_range"]),
            f"{figure['target_is']} {_number(figure['target'])}" if figure["target_is"] else "",
            {True: "yes", False: "no", None: "-" if figure["target_is"] else ""}[figure["reached"]],
            figure["unit"],
            str(figure["n"]),
            figure["note"],
        )
    return made


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _span(values: list[float] | None) -> str:
    return f"{_number(values[0])} .. {_number(values[1])}" if values else ""


def plot(samples: Samples, file: Path) -> None:
    """Writes by load, failover and fan-out, as one picture."""
    # Imported here: it takes a second, and most runs draw nothing.
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    figure, (writes, failover, fanout) = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    _lines(
        writes,
        samples,
        {
            "ours, SDK stream": (OURS, "stream_{}", (1, 16, 64, 256)),
            "ours, unary": (OURS, "unary_{}", (1, 16, 64)),
            "etcd, coalesced by the client": (ETCD, "stream_{}", (1, 16, 64, 256)),
            "etcd, unary": (ETCD, "unary_{}", (1, 16, 64)),
        },
    )
    writes.set(title="Committed writes per second", xlabel="in flight", xscale="log", yscale="log")
    _bars(failover, samples)
    failover.set(title="Loss of the leader to the first write, ms", yscale="log")
    _lines(
        fanout,
        samples,
        {"ours": (OURS, "fanout_{}", (1, 100, 500, 1000)), "etcd": (ETCD, "fanout_{}", (1, 100, 500, 1000))},
    )
    fanout.set(title="One event to the last watcher, ms", xlabel="watchers", xscale="log", yscale="log")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _lines(axes: Any, samples: Samples, lines: dict[str, tuple[str, str, tuple[int, ...]]]) -> None:
    for label, (side, name, counts) in lines.items():
        points = [(count, samples.of(side, name.format(count))) for count in counts]
        known = [(count, sorted(values)[len(values) // 2]) for count, values in points if values]
        if known:
            style = "--" if "unary" in label else "-"
            axes.plot(*zip(*known, strict=True), style, marker="o", label=label, color=_COLOURS[side])
    _finish(axes)


def _bars(axes: Any, samples: Samples) -> None:
    for place, side in enumerate((OURS, TUNED, ETCD)):
        for group, name in enumerate(("kill", "silent")):
            if values := sorted(samples.of(side, name)):
                middle = values[len(values) // 2]
                spread = [[middle - values[0]], [values[-1] - middle]]
                axes.bar(
                    group + 0.27 * (place - 1),
                    middle,
                    0.25,
                    yerr=spread,
                    capsize=3,
                    color=_COLOURS[side],
                    label=side if not group else None,
                )
    axes.set_xticks([0, 1], ["SIGKILL", "silent (SIGSTOP)"])
    _finish(axes)


def _finish(axes: Any) -> None:
    axes.grid(visible=True, axis="y", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
