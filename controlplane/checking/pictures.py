"""Pictures of what was found: data in, SVG text out.

`window` shows the operations around a failure, one lane per process; `timeline` shows a whole run: faults as bands
behind everything, leaders as a lane, rates as lines, and marks where something failed. Every text is escaped, numbers
are rounded, and equal data give equal pictures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

from controlplane.checking.histories import Operation
from controlplane.checking.linearizability import Failure

_WIDTH = 1100
_LEFT = 110
_RIGHT = 20
_LANE = 30
_TOP = 56
_CURVE = 120
_LETTER = 6.2
_LABEL_MAX = 160
_PLACED, _UNPLACED, _STUCK, _FAULT, _INK = "#9fc5e8", "#f4a6a0", "#ef5350", "#f9d9a8", "#333333"
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
    return _page(bottom + 40, f"{failure.key}: {failure.verdict.value}", str(failure), parts)


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
    parts = [part for fault in faults for part in _band(fault, axis, bottom)]
    colours = _colours(span.label for spans in lanes.values() for span in spans)
    for number, (name, spans) in enumerate(lanes.items()):
        top = _TOP + _LANE * number
        parts.append(_lane_name(name, top))
        for span in spans:
            parts += _box(axis, span, top, colours[span.label], hint=span.label)
    parts += _curves(rates, axis, curve_top)
    if marks:
        parts.append(_lane_name("failures", marks_top))
        parts += (part for mark in marks for part in _mark(mark, axis, marks_top))
    parts += axis.draw(bottom, "s")
    return _page(bottom + 40, title, "", parts)


class _Axis:
    """Maps times to places."""

    def __init__(self, begin: float, end: float) -> None:
        self._begin, self._end = begin, end

    def x(self, at: float) -> float:
        """The place of a time; what is outside stands at the edge."""
        inside = min(max(at, self._begin), self._end)
        return _LEFT + (inside - self._begin) / (self._end - self._begin) * (_WIDTH - _LEFT - _RIGHT)

    def draw(self, top: float, unit: str) -> list[str]:
        """A line with six numbered ticks, counted from the beginning."""
        parts = [_line(_LEFT, top, _WIDTH - _RIGHT, top)]
        for tick in range(6):
            at = (self._end - self._begin) * tick / 5
            x = self.x(self._begin + at)
            parts += (_line(x, top, x, top + 5), _text(x, top + 18, f"{at:.4g} {unit}", anchor="middle"))
        return parts


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
    return [box, _text(x + 4, top + _LANE / 2 + 4, span.label[: int((width - 6) / _LETTER)])] if width > 24 else [box]


def _band(fault: Span, axis: _Axis, bottom: float) -> list[str]:
    x, width = axis.x(fault.begin), max(axis.x(fault.end) - axis.x(fault.begin), 2.0)
    area = f'<rect x="{x:.1f}" y="{_TOP - 14}" width="{width:.1f}" height="{bottom - _TOP + 14:.1f}" fill="{_FAULT}"'
    shade = f'{area} fill-opacity="0.6"><title>{_escaped(fault.label)}</title></rect>'
    return [shade, _text(x + 2, _TOP - 4, fault.label)]


def _mark(mark: Mark, axis: _Axis, top: float) -> list[str]:
    x, y = axis.x(mark.at_s), top + _LANE / 2
    colour = _STUCK if mark.bad else _PALETTE[2]
    cross = f'<path d="M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8" stroke="{colour}" stroke-width="2" fill="none">'
    return [f"{cross}<title>{_escaped(f'{mark.label} at {mark.at_s:.3f} s')}</title></path>"]


def _curves(rates: Mapping[str, Sequence[tuple[float, float]]], axis: _Axis, top: float) -> list[str]:
    highest = max((value for points in rates.values() for _, value in points), default=0.0) or 1.0
    parts = [_text(_LEFT - 6, top + 20, f"{highest:.4g}", anchor="end")] if rates else []
    for number, (name, points) in enumerate(rates.items()):
        colour = _PALETTE[number % len(_PALETTE)]
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
