"""Plots as plain SVG: intervals on a line.

Colours are classes of the page's style, so that light and dark need no second plot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH = 760
_LEFT, _RIGHT = 210, 100
_ROW = 28
_AXIS = 34
_LONGEST = 24


@dataclass(frozen=True, slots=True)
class Line:
    """A value with its interval, drawn in the colour of the class `css`, and said as `text`."""

    label: str
    css: str
    value: float
    low: float
    high: float
    text: str


def intervals(
    lines: Sequence[Line], title: str, unit: str, mark: tuple[float, str] | None = None
) -> str:
    """Plot values as dots on their intervals; `mark` is a value that is drawn through all."""
    ends = [end for line in lines for end in (line.low, line.high, line.value)]
    scale = _Scale.over([*ends, *([mark[0]] if mark else [])])
    bottom = _ROW * len(lines) + 12
    parts = [_axis(scale, bottom, unit)]
    if mark:
        x = scale.x(mark[0])
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 30, mark[1], "quiet", "middle"))
    for number, line in enumerate(lines):
        y = 12 + _ROW * number + _ROW / 2
        low, at, high = (scale.x(value) for value in (line.low, line.value, line.high))
        parts += [
            _text(_LEFT - 14, y + 4, line.label, "", "end"),
            f'<g class="{line.css}">',
            f'<line class="whisker" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>',
            f'<circle class="dot" cx="{at:.1f}" cy="{y}" r="5"/></g>',
            _text(_WIDTH - _RIGHT + 14, y + 4, line.text, "figure"),
        ]
    return _svg(bottom + _AXIS, title, parts)


@dataclass(frozen=True, slots=True)
class _Scale:
    """An axis from `low` to `high` with a tick at every `step`."""

    low: float
    high: float
    step: float

    @classmethod
    def over(cls, values: Sequence[float]) -> _Scale:
        low, high = min(values), max(values)
        if high - low < 1e-9:
            low, high = low - 1, high + 1
        rough = (high - low) / 5
        size = 10 ** math.floor(math.log10(rough))
        step = next(size * times for times in (1, 2, 5, 10) if size * times >= rough)
        return cls(math.floor(low / step) * step, math.ceil(high / step) * step, step)

    def x(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def ticks(self) -> list[float]:
        count = round((self.high - self.low) / self.step)
        return [self.low + number * self.step for number in range(count + 1)]


def _axis(scale: _Scale, bottom: float, unit: str) -> str:
    parts = []
    for tick in scale.ticks():
        x = scale.x(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 15, _number(tick), "tick", "middle"))
    parts.append(_text(_LEFT - 14, bottom + 15, unit, "quiet", "end"))
    return "".join(parts)


def _number(value: float) -> str:
    return f"{0.0 if abs(value) < 1e-9 else value:.4g}"


def _text(x: float, y: float, text: str, css: str = "", anchor: str = "start") -> str:
    # Settings that are compared begin alike, and often end alike.
    half = _LONGEST // 2
    shown = text if len(text) <= _LONGEST else f"{text[: half - 1]}…{text[-half:]}"
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
