"""Pages that need nothing else: their style, what a browser may run of them, the axis of a plot."""

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jinja2 import Template

# The colours of palette.css, one a member.
_N_COLOURS = 8


def shipped(name: str) -> str:
    """Return a file of this package: `pages/palette.css` has the colours and fonts of all pages."""
    return files("eva_local").joinpath(name).read_text(encoding="utf-8")


def member_class(number: int) -> str:
    """Return the class that has a member's colours; `main` is the ensemble's, in ink."""
    return f"m{number % _N_COLOURS}"


@cache
def template(name: str) -> "Template":
    """Return a Jinja template of this package; one of HTML escapes text."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined, select_autoescape

    load, escapes = FunctionLoader(shipped), select_autoescape()
    environment = Environment(loader=load, autoescape=escapes, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    environment.globals |= {"axis": axis, "source_hash": source_hash}
    return environment.get_template(name)


def lines_of(name: str, macro: str, *about: object) -> list[str]:
    """Return the lines that a macro of a template says, but for empty ones."""
    return list(filter(None, getattr(template(name).module, macro)(*about).splitlines()))


def report(name: str, **values: object) -> str:
    """Return a page without script, made by a template."""
    style = shipped("pages/palette.css") + shipped("pages/report.css")
    return template(name).render(style=style, **values)


def source_hash(source: str) -> str:
    """Return what a content security policy calls this source, and no other, by."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


class Line(NamedTuple):
    """A value with its interval, drawn in the colour of the class `css`, and said as `text`."""

    label: str
    css: str
    value: float
    low: float
    high: float
    text: str


def axis(
    lines: Sequence[Line], mark: tuple[float, str] | None, start: float, end: float
) -> tuple[list[float], Callable[[float], float]]:
    """Return round numbers around all values, and what says where from `start` to `end` one is."""
    import numpy as np  # slow to import, and texts need none

    values = [mark[0]] if mark else []
    values += [end for line in lines for end in (line.low, line.high, line.value)]
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 1, high + 1
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * times for times in (1, 2, 5, 10) if size * times >= rough)
    ticks = [step * n for n in range(math.floor(low / step), math.ceil(high / step) + 1)]
    return ticks, partial(np.interp, xp=[ticks[0], ticks[-1]], fp=[start, end])
