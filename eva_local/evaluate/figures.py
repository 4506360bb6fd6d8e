"""The figures of a task as the cells of a table, in a terminal or on a page."""

from __future__ import annotations

from collections.abc import Callable

from eva_local.evaluate.significance import Estimate
from eva_local.evaluate.summary import Standing, TaskSummary

_INTERVAL = "95% interval"


def headings(summary: TaskSummary, style: Callable[[str], str] = str) -> tuple[str, ...]:
    """Return what stands over the names and the cells; names of ensembles have no style."""
    compared = (f"{style('against')} {summary.base}", style(_INTERVAL)) if summary.base else ()
    return (
        *map(style, ("", "score", _INTERVAL, "ahead", _INTERVAL)),
        *compared,
        *map(style, ("filtered", "s/row", *summary.standings[0].more)),
    )


def cells(summary: TaskSummary, standing: Standing) -> tuple[str, ...]:
    """Return a contestant's figures, in the order of the headings after the first."""
    return (
        format(standing.score.value, summary.form),
        standing.score.interval(summary.form),
        *_difference(summary, standing.ahead),
        *(_difference(summary, standing.change) if summary.base else ()),
        "" if standing.filtered is None else f"{standing.filtered:.0%}",
        f"{standing.seconds:.2f}",
        *(f"{value:.1f}" for value in standing.more.values()),
    )


def signed(summary: TaskSummary, difference: Estimate) -> str:
    """Return a difference between contestants, in points or in percent."""
    return f"{difference.value:+.1f}{'%' if summary.step == '%' else ''}"


def _difference(summary: TaskSummary, found: Estimate | None) -> tuple[str, str]:
    return ("", "") if found is None else (signed(summary, found), found.interval())
