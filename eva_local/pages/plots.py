"""Plots as plain SVG: intervals on a line, bars of rows, differences row by row.

Colours are classes of the page's style, so that light and dark need no second plot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 760
_LEFT, _RIGHT = 210, 100
_ROW = 28
_AXIS = 34
_LONGEST = 24
_WATERFALL = 150


@dataclass(frozen=True, slots=True)
class Line:
    """A value with its interval, drawn in the colour of the class `css`, and said as `text`."""

    label: str
    css: str
    value: float
    low: float
    high: float
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """Rows of one sort, and how many of them were right."""

    label: str
    css: str
    rows: int
    right: int


def intervals(
    lines: Sequence[Line], title: str, unit: str, mark: tuple[float, str] | None = None
) -> str:
    """Plot values as dots on their intervals; `mark` is a value that is drawn through all."""
    ends = [end for line in lines for end in (line.low, line.high, line.value)]
    bottom = _ROW * len(lines) + 12
    axis, at = _axis([*ends, *([mark[0]] if mark else [])], bottom, unit)
    parts = [axis]
    if mark:
        x = at(mark[0])
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 30, mark[1], "quiet", "middle"))
    for number, line in enumerate(lines):
        y = 12 + _ROW * number + _ROW / 2
        low, dot, high = (at(value) for value in (line.low, line.value, line.high))
        parts += [
            _text(_LEFT - 14, y + 4, line.label, "", "end"),
            f'<g class="{line.css}">',
            f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>',
            f'<circle class="dot" cx="{dot:.1f}" cy="{y}" r="5"/></g>',
            _text(_WIDTH - _RIGHT + 14, y + 4, line.text, "figure"),
        ]
    return _svg(bottom + _AXIS, title, parts)


def bars(groups: Sequence[Bar], title: str) -> str:
    """Plot how many rows there are of each sort; what was right of them is filled."""
    most = max((group.rows for group in groups), default=0) or 1
    width = (_WIDTH - _LEFT - _RIGHT) / most
    parts = []
    for number, group in enumerate(groups):
        y = 6 + _ROW * number
        parts += [
            _text(_LEFT - 14, y + 18, group.label, "", "end"),
            f'<g class="{group.css}">',
            _box("hollow", y + 4, group.rows * width),
            _box("filled", y + 4, group.right * width),
            "</g>",
            _text(
                _LEFT + group.rows * width + 10,
                y + 18,
                f"{group.right} of {group.rows}",
                "figure",
            ),
        ]
    return _svg(12 + _ROW * len(groups), title, parts)


def waterfall(differences: Sequence[float], title: str, unit: str) -> str:
    """Plot the difference of each row, the best first: above the line is better."""
    ordered = sorted(differences, reverse=True)
    highest = max(map(abs, ordered), default=0) or 1
    width = (_WIDTH - 70) / max(len(ordered), 1)
    middle = _WATERFALL / 2 + 8
    parts = []
    for number, value in enumerate(ordered):
        height = max(abs(value) / highest * _WATERFALL / 2, 0.5)
        x, y = 60 + number * width, middle - height if value > 0 else middle
        css = "better" if value > 0 else "worse" if value < 0 else "same"
        parts.append(
            f'<rect class="{css}" x="{x:.2f}" y="{y:.2f}" width="{max(width - 0.4, 0.4):.2f}" '
            f'height="{height:.2f}"/>'
        )
    parts.append(f'<line class="mark" x1="60" x2="{_WIDTH - 10}" y1="{middle}" y2="{middle}"/>')
    for share, y in ((1, 8.0), (0, middle), (-1, _WATERFALL + 8.0)):
        parts.append(_text(54, y + 4, _number(share * highest, signed=True), "tick", "end"))
    parts.append(_text(60, _WATERFALL + 30, unit, "quiet", longest=len(unit)))
    return _svg(_WATERFALL + 38, title, parts)


def _box(css: str, y: float, width: float) -> str:
    return f'<rect class="{css}" x="{_LEFT}" y="{y}" width="{width:.1f}" height="18"/>'


def _axis(
    values: Sequence[float], bottom: float, unit: str
) -> tuple[str, Callable[[float], float]]:
    """Return an axis that holds `values`, and what says where on it a value is."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 1, high + 1
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * times for times in (1, 2, 5, 10) if size * times >= rough)
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step

    def at(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    parts = []
    for number in range(round((high - low) / step) + 1):
        x = at(low + number * step)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 15, _number(low + number * step), "tick", "middle"))
    parts.append(_text(_LEFT - 14, bottom + 15, unit, "quiet", "end"))
    return "".join(parts), at


def _number(value: float, *, signed: bool = False) -> str:
    value = 0.0 if abs(value) < 1e-9 else value
    return f"{value:+.3g}" if signed and value else f"{value:.4g}"


def _text(
    x: float,
    y: float,
    text: str,
    css: str = "",
    anchor: str = "start",
    longest: int = _LONGEST,
) -> str:
    # Settings that are compared begin alike, and often end alike.
    half = longest // 2
    shown = text if len(text) <= longest else f"{text[: longest - half - 1]}…{text[-half:]}"
    full = "" if shown == text else f"<title>{escape(text)}</title>"
    kind = f' class="{css}"' if css else ""
    return (
        f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{full}{escape(shown)}</text>'
    )


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
