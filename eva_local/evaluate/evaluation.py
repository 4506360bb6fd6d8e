"""What an evaluation came to, as tables, the report and the JSON have it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

from eva_local.evaluate.advice import advice, comparison, warning
from eva_local.evaluate.contest import Contestant
from eva_local.evaluate.forms import Conditions
from eva_local.evaluate.metrics import lower_is_better
from eva_local.evaluate.significance import Estimate, mean_of
from eva_local.evaluate.summary import Standing, TaskSummary

_INTERVAL = "95% interval"


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The tasks of an evaluation, with the same contestants each.

    `ensemble` is the one that was asked for; `tuned` is the block for models.toml of what was
    fitted on other rows, and empty where nothing was.
    """

    ensemble: str
    pivot: str
    conditions: Conditions
    tasks: tuple[TaskSummary, ...]
    tuned: str = ""

    @property
    def ensembles(self) -> tuple[str, ...]:
        """Return the names of the ensembles, the one that was asked for first."""
        return tuple(standing.name for standing in self.tasks[0].ensembles)

    def overall(self, name: str) -> Estimate | None:
        """Return the mean of an ensemble's differences to the best member of each task.

        Tasks in points only; None where there are fewer than two. A best member is 0 ahead.
        """
        counted = [summary for summary in self.tasks if not lower_is_better(summary.metric)]
        if len(counted) < 2 or not all(summary.best for summary in counted):
            return None
        standings = [summary.standing(name) for summary in counted]
        return mean_of([one.ahead or one.score - one.score for one in standings])

    def as_json(self) -> dict[str, object]:
        """Return all figures, and every contestant's answer to every row."""
        return {
            "ensemble": self.ensemble,
            "pivot": self.pivot,
            "setting": asdict(self.conditions),
            "contestants": [_contestant(one.contestant) for one in self.tasks[0].standings],
            "tasks": [_task(summary) for summary in self.tasks],
            "overall": {name: _estimate(self.overall(name)) for name in self.ensembles},
            "tuned": self.tuned or None,
        }


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


def _difference(summary: TaskSummary, found: Estimate | None) -> tuple[str, str]:
    """Return a difference between contestants, in points or in percent, and its interval."""
    sign = "%" if summary.step == "%" else ""
    return ("", "") if found is None else (f"{found.value:+.1f}{sign}", found.interval())


def _contestant(contestant: Contestant) -> dict[str, object]:
    spec = contestant.spec
    return {
        "name": contestant.name,
        "members": [member.name for member in spec.members],
        "pivot": spec.pivot,
        "settings": None if contestant.alone else asdict(spec.fusion),
    }


def _task(summary: TaskSummary) -> dict[str, object]:
    task = summary.task
    return {
        "task": task.name,
        "kind": task.kind,
        "metric": summary.metric,
        "unit": summary.unit,
        "rows": len(task.rows),
        "examples": len(task.shots),
        "best": summary.best,
        "gap": summary.gap,
        "oracle": summary.oracle,
        "agreement": summary.agreement,
        "warning": warning(summary),
        "advice": {one.name: advice(summary, one) for one in summary.ensembles},
        "comparison": comparison(summary),
        "standings": [_standing(one) for one in summary.standings],
        "answers": [
            {
                "row": row.name,
                **{
                    one.name: {"value": one.marks[place].value, "said": one.marks[place].said}
                    for one in summary.standings
                },
            }
            for place, row in enumerate(task.rows)
        ],
    }


def _standing(standing: Standing) -> dict[str, object]:
    return {
        "name": standing.name,
        "score": _estimate(standing.score),
        "ahead": _estimate(standing.ahead),
        "change": _estimate(standing.change),
        **standing.more,
        "filtered": standing.filtered,
        "seconds_per_row": standing.seconds,
    }


def _estimate(found: Estimate | None) -> dict[str, float] | None:
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high}
