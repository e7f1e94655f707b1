"""Pictures of what was found: data in, SVG text out.

`window` shows the operations around a failure, one lane per process; `timeline` shows a whole run: faults as bands
behind everything, leaders as a lane, rates as lines, and marks where something failed. Every text is escaped, numbers
are rounded, and equal data give equal pictures. Pictures bring their own white ground, so that they can be read on any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple
from xml.sax.saxutils import escape

from controlplane.checking.histories import Operation
from controlplane.checking.linearizability import Failure

_WIDTH = 1100
_LEFT = 110
_RIGHT = 20
_LANE = 30
_TOP = 68
_CURVE = 120
_LETTER = 6.2
_LABEL_MAX = 160
_TICKS_MAX = 12
_LABEL_ROWS = 2
_PLACED, _UNPLACED, _STUCK, _FAULT, _INK = "#9fc5e8", "#f4a6a0", "#ef5350", "#f9d9a8", "#1b1b1b"
_GOOD = "#2e7d32"
_LINES = ("#1f5fa8", "#c2410c", "#6a3d9a", "#00796b")
_PALETTE = ("#7ba6d6", "#f7a452", "#7fc77a", "#cf9fc9", "#bb9a8e", "#8ed1c9", "#ee8a86", "#cbbfbc")


class Span(NamedTuple):
    """Something that lasted, in seconds since the run began."""

    begin: float
    end: float
    label: str


class Mark(NamedTuple):
    """Something that happened at once."""

    at_s: float
    label: str
    bad: bool = True


def window(failure: Failure) -> str:
    """The operations around a failure: numbered in the order that explains them, red where none does."""
    shown = failure.window
    order = {operation: number for number, operation in enumerate(failure.placed, 1)}
    processes = {process: lane for lane, process in enumerate(sorted({operation.process for operation in shown}))}
    begin = min(operation.called for operation in shown)
    end = max(operation.called if operation.unknown else operation.returned for operation in shown)
    axis = _Axis(begin / 1e6, max(end, begin + 1) / 1e6)
    bottom = _TOP + _LANE * len(processes)
    parts = [_lane_name(f"process {process}", _TOP + _LANE * lane) for process, lane in processes.items()]
    for operation in shown:
        parts += _bar(operation, failure, order, axis, _TOP + _LANE * processes[operation.process])
    parts += axis.draw(bottom, "ms")
    legend = [(_PLACED, "#n: explained, as the nth"), (_UNPLACED, "no place left"), (_STUCK, "fits nowhere")]
    parts += _legend([(_patch(colour), words) for colour, words in legend], bottom + 42)
    parts.append(_text(_WIDTH - _RIGHT, bottom + 42, "dashed: its outcome is not known", anchor="end"))
    return _page(bottom + 56, f"{failure.key}: {failure.verdict.value}", str(failure), parts)


def timeline(
    title: str,
    seconds: float,
    *,
    faults: Iterable[Span] = (),
    lanes: Mapping[str, Sequence[Span]] | None = None,
    rates: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    marks: Sequence[Mark] = (),
) -> str:
    """A run of `seconds`: lanes by name (such as "leader", one span per term), rates as (second, value) by name."""
    lanes, rates = lanes or {}, rates or {}
    axis = _Axis(0.0, max(seconds, 1e-3))
    curve_top = _TOP + _LANE * len(lanes)
    marks_top = curve_top + (_CURVE if rates else 0)
    bottom = marks_top + (_LANE if marks else 0)
    faults = sorted(faults)
    parts = [_band(fault, axis, bottom) for fault in faults]
    parts += _fault_names(faults, axis)
    colours = _colours(span.label for spans in lanes.values() for span in spans)
    for number, (name, spans) in enumerate(lanes.items()):
        top = _TOP + _LANE * number
        parts.append(_lane_name(name, top))
        for span in spans:
            parts += _box(axis, span, top, colours[span.label], hint=span.label)
    parts += _curves(rates, axis, curve_top)
    if marks:
        parts.append(_lane_name("failures", marks_top))
        parts += (_mark(mark, axis, marks_top) for mark in marks)
    parts += axis.draw(bottom, "s")
    legend = [(_patch(_FAULT), "a fault, until it is healed")] if faults else []
    if any(mark.bad for mark in marks):
        legend.append((partial(_sign, True), "something failed"))
    if not all(mark.bad for mark in marks):
        legend.append((partial(_sign, False), "all is well again"))
    return _page(bottom + 40, title, "", [*parts, *_legend(legend, bottom + 42)])


class _Axis:
    """Maps times to places."""

    def __init__(self, begin: float, end: float) -> None:
        self._begin, self._end = begin, end

    def x(self, at: float) -> float:
        """The place of a time; what is outside stands at the edge."""
        inside = min(max(at, self._begin), self._end)
        return _LEFT + (inside - self._begin) / (self._end - self._begin) * (_WIDTH - _LEFT - _RIGHT)

    def draw(self, top: float, unit: str) -> list[str]:
        """A line with ticks at round times, counted from the beginning."""
        parts = [_line(_LEFT, top, _WIDTH - _RIGHT, top)]
        length = self._end - self._begin
        step = _round_step(length / _TICKS_MAX)
        for tick in range(int(length / step * (1 + 1e-9)) + 1):
            x = self.x(self._begin + tick * step)
            words = f"{tick * step:.6g} {unit}"
            # The last one must not reach over the edge.
            x_words = min(x, _WIDTH - 4 - len(words) * _LETTER / 2)
            parts += (_line(x, top, x, top + 5), _text(x_words, top + 18, words, anchor="middle"))
        return parts


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, … (or of a tenth of these, and so on) that is not less."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _bar(operation: Operation, failure: Failure, order: Mapping[Operation, int], axis: _Axis, top: float) -> list[str]:
    argument = "" if operation.argument is None else repr(operation.argument)
    answer = "?" if operation.unknown else repr(operation.result)
    number = f"#{order[operation]} " if operation in order else ""
    words = f"{number}{operation.kind}({argument}) → {answer}"
    colour = _STUCK if operation == failure.stuck else _UNPLACED if operation in failure.unplaced else _PLACED
    span = Span(operation.called / 1e6, operation.returned / 1e6, words)
    hint = f"{words}, {span.begin:.3f} … {'?' if operation.unknown else f'{span.end:.3f}'} ms"
    return _box(axis, span, top, colour, hint=hint, dashed=operation.unknown)


def _box(axis: _Axis, span: Span, top: float, colour: str, *, hint: str, dashed: bool = False) -> list[str]:
    x, width = axis.x(span.begin), max(axis.x(span.end) - axis.x(span.begin), 2.0)
    dash = ' stroke-dasharray="4 3"' if dashed else ""
    rectangle = f'<rect x="{x:.1f}" y="{top + 4:.1f}" width="{width:.1f}" height="{_LANE - 8}" rx="3" fill="{colour}"'
    box = f'{rectangle} stroke="{_INK}" stroke-width="0.6"{dash}><title>{_escaped(hint)}</title></rect>'
    return [box, _text(x + 4, top + _LANE / 2 + 4, _fitting(span.label, width - 6))] if width > 24 else [box]


def _band(fault: Span, axis: _Axis, bottom: float) -> str:
    x, width = axis.x(fault.begin), max(axis.x(fault.end) - axis.x(fault.begin), 2.0)
    area = f'<rect x="{x:.1f}" y="{_TOP - 4}" width="{width:.1f}" height="{bottom - _TOP + 4:.1f}" fill="{_FAULT}"'
    return f'{area} fill-opacity="0.6"><title>{_escaped(fault.label)}</title></rect>'


def _fault_names(faults: Sequence[Span], axis: _Axis) -> list[str]:
    """Names above the bands, in as many rows as there are; where no row has room, pointing at the band has to do."""
    names, ends = [], [0.0] * _LABEL_ROWS
    for fault in faults:
        x = axis.x(fault.begin)
        words = _fitting(fault.label, _WIDTH - x)
        for row, end in enumerate(ends):
            if x >= end:
                ends[row] = x + (len(words) + 1) * _LETTER
                names.append(_text(x, _TOP - 10 - 14 * row, words))
                break
    return names


def _fitting(words: str, width: float) -> str:
    """As much of it as there is room for."""
    room = int(width / _LETTER)
    return words if len(words) <= room else f"{words[: room - 1]}…" if room > 1 else ""


def _mark(mark: Mark, axis: _Axis, top: float) -> str:
    hint = f"<title>{_escaped(f'{mark.label} at {mark.at_s:.3f} s')}</title>"
    return _sign(mark.bad, axis.x(mark.at_s), top + (_LANE / 3 if mark.bad else 2 * _LANE / 3), hint)


def _sign(bad: bool, x: float, y: float, inside: str = "") -> str:
    """A cross for what failed, a disc for what works again: to be told apart without colours too."""
    if bad:
        cross = f"M{x - 3.5:.1f} {y - 3.5:.1f}l7 7m0 -7l-7 7"
        return f'<path d="{cross}" stroke="{_STUCK}" stroke-width="1.6" fill="none">{inside}</path>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{_GOOD}" stroke="white" stroke-width="1">{inside}</circle>'


def _legend(entries: Iterable[tuple[Callable[[float, float], str], str]], y: float) -> list[str]:
    """What the signs mean, in one row; an entry draws its sign around the place that it is given."""
    parts: list[str] = []
    x = float(_LEFT)
    for draw, words in entries:
        parts += (draw(x + 8, y - 4), _text(x + 20, y, words))
        x += 44 + len(words) * _LETTER
    return parts


def _patch(colour: str) -> Callable[[float, float], str]:
    return lambda x, y: f'<rect x="{x - 8:.1f}" y="{y - 5:.1f}" width="16" height="10" fill="{colour}"/>'


def _curves(rates: Mapping[str, Sequence[tuple[float, float]]], axis: _Axis, top: float) -> list[str]:
    highest = max((value for points in rates.values() for _, value in points), default=0.0) or 1.0
    ends = ((f"{highest:.4g}", top + 24), ("0", top + _CURVE))
    parts = [_text(_LEFT - 6, y, words, anchor="end") for words, y in ends] if rates else []
    for number, (name, points) in enumerate(rates.items()):
        colour = _LINES[number % len(_LINES)]
        places = (f"{axis.x(at):.1f},{top + _CURVE - 4 - value / highest * (_CURVE - 24):.1f}" for at, value in points)
        line = f'<polyline fill="none" stroke="{colour}" stroke-width="1.4" points="{" ".join(places)}"/>'
        parts += (line, _text(8, top + 40 + 16 * number, name, colour=colour))
    return parts


def _colours(labels: Iterable[str]) -> dict[str, str]:
    return {label: _PALETTE[number % len(_PALETTE)] for number, label in enumerate(dict.fromkeys(labels))}


def _lane_name(name: str, top: float) -> str:
    return _text(8, top + _LANE / 2 + 4, name)


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{_INK}" stroke-width="0.8"/>'


def _text(x: float, y: float, words: str, *, anchor: str = "start", colour: str = _INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{_escaped(words)}</text>'


def _escaped(words: str) -> str:
    """As text of XML: shortened, and without the control characters that XML forbids even escaped."""
    return escape("".join(letter if letter.isprintable() else "·" for letter in words[:_LABEL_MAX]))


def _page(height: float, title: str, footnote: str, parts: Iterable[str]) -> str:
    heading = f'<text x="8" y="20" font-size="15" fill="{_INK}">{_escaped(title)}</text>'
    size = f'width="{_WIDTH}" height="{height + 20:.0f}" viewBox="0 0 {_WIDTH} {height + 20:.0f}"'
    begin = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    ground = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join((begin, ground, heading, *parts, _text(8, height + 10, footnote), "</svg>", ""))
