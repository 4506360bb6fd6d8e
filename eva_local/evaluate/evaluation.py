"""What an evaluation came to, for tables, JSON and the page, and what follows for a user."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from eva_local.config.catalogue import free_name
from eva_local.config.specs import EnsembleSpec
from eva_local.evaluate.contest import Contest, each_alone
from eva_local.evaluate.forms import Conditions
from eva_local.evaluate.rows import Task
from eva_local.evaluate.summary import Estimate, Standing, TaskSummary, mean_of, summarize
from eva_local.evaluate.tune import block, halves, tune
from eva_local.pages.frame import Line, lines_of, member_class, report

_INTERVAL = "95% interval"
# Rows that are shown of each task.
_SHOWN_ROWS = 24


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
        """The names of the ensembles, the one that was asked for first."""
        return tuple(standing.name for standing in self.tasks[0].ensembles)

    def overall(self, name: str) -> Estimate | None:
        """Return the mean of an ensemble's differences to the best member of each task.

        Tasks in points only; None where there are fewer than two. A best member is 0 ahead.
        """
        counted = [summary for summary in self.tasks if not summary.scale.in_bits]
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
            "contestants": [
                {
                    "name": one.name,
                    "members": [member.name for member in one.spec.members],
                    "pivot": one.spec.pivot,
                    "settings": None if one.alone else asdict(one.spec.fusion),
                }
                for one in self.tasks[0].standings
            ],
            "tasks": [
                _task(summary) | {"examples": self.conditions.shots_of(summary.task)}
                for summary in self.tasks
            ],
            "overall": {name: _estimate(self.overall(name)) for name in self.ensembles},
            "tuned": self.tuned or None,
        }


def hold(
    contest: Contest,
    specs: Sequence[EnsembleSpec],
    tasks: Sequence[Task],
    n_samples: int | None = None,
    *,
    members: bool = True,
    tuned: bool = False,
) -> Evaluation:
    """Let the first of `specs`, its `members` and the others do all tasks.

    With `tuned`, settings of it are fitted on half of the rows, and do the rest with the others;
    the vote of `n_samples` answers of the best member does all that is not scored.
    """
    spec, *_ = specs
    tuned_block = ""
    if tuned:
        fit, tasks = halves(tasks)
        best = tune(contest, fit, spec)
        tuned_block = block(best, fit)
        if best.fusion != spec.fusion:
            specs = [*specs, best]
    contestants = each_alone(spec) if members else []
    n_members = len(contestants)
    if len(spec.members) > 1:
        names: list[str] = []
        for one in specs:
            # With a number where one was there before.
            names.append(free_name(one.name, names, "{} ({})"))
            contestants.append(replace(one, name=names[-1]))
    entries = contest.run(tasks, contestants)
    summaries = []
    for seed, task in enumerate(tasks):
        found = [entry for entry in entries if entry.task is task]
        summary = summarize(found, seed, n_members)
        if n_samples and summary.best and not task.scored:
            best = summary.standing(summary.best).spec
            drawn = replace(best, name=f"{best.name}, vote of {n_samples}")
            found += contest.run([task], [drawn], n_samples)
            summary = summarize(found, seed, n_members)
        summaries.append(summary)
    return Evaluation(spec.name, spec.pivot, contest.conditions, tuple(summaries), tuned_block)


def figures(
    summary: TaskSummary, standing: Standing, style: Callable[[str], str] = str
) -> list[tuple[str, str]]:
    """Return a contestant's figures, each under its heading; names of ensembles have no style."""
    form, unit = summary.scale.form, "%" if summary.scale.in_bits else ""

    def difference(name: str, found: Estimate | None) -> list[tuple[str, str]]:
        told = ("", "") if found is None else (f"{found.value:+.1f}{unit}", found.interval())
        return [(name, told[0]), (style(_INTERVAL), told[1])]

    dropped = "" if standing.filtered is None else f"{standing.filtered:.0%}"
    against = f"{style('against')} {summary.base}"
    return [
        (style("score"), format(standing.score.value, form)),
        (style(_INTERVAL), standing.score.interval(form)),
        *difference(style("ahead"), standing.ahead),
        *(difference(against, standing.change) if summary.base else ()),
        (style("filtered"), dropped),
        (style("s/row"), f"{standing.seconds:.2f}"),
        *((style(name), f"{value:.1f}") for name, value in standing.more.items()),
    ]


def _task(summary: TaskSummary) -> dict[str, object]:
    task = summary.task
    said = {
        one.name: [{"value": mark.value, "said": mark.said} for mark in one.marks]
        for one in summary.standings
    }
    return {
        "task": task.name,
        "kind": task.kind,
        "metric": summary.metric,
        "unit": summary.scale.unit,
        "rows": len(task.rows),
        **{key: getattr(summary, key) for key in ("best", "gap", "oracle", "agreement")},
        "warning": warning(summary),
        "advice": {one.name: advice(summary, one) for one in summary.ensembles},
        "comparison": comparison(summary),
        "bought": bought(summary),
        "standings": [
            {
                "name": one.name,
                **{key: _estimate(getattr(one, key)) for key in ("score", "ahead", "change")},
                **one.more,
                "filtered": one.filtered,
                "seconds_per_row": one.seconds,
            }
            for one in summary.standings
        ],
        "answers": [
            {"row": row.name, **{name: marks[place] for name, marks in said.items()}}
            for place, row in enumerate(task.rows)
        ],
    }


def _estimate(found: Estimate | None) -> dict[str, float] | None:
    return None if found is None else {"value": found.value, "low": found.low, "high": found.high}


def verdict(summary: TaskSummary) -> list[str]:
    """Return what follows for the ensemble that was asked for, and from other settings of it."""
    first = [advice(summary, standing) for standing in summary.ensembles[:1]]
    return [said for said in (*first, comparison(summary), bought(summary)) if said]


def in_words(name: str, *about: object) -> str:
    """Return what a macro of words.txt says, in one line; empty where nothing follows."""
    return " ".join(" ".join(lines_of("evaluate/words.txt", name, *about)).split())


warning, advice, comparison, bought = (
    partial(in_words, name) for name in ("warning", "advice", "comparison", "bought")
)
#: What templates of reports call, by name: of the text, and of the page.
TOLD: dict[str, Any] = {"warning": warning, "verdict": verdict, "figures": figures}
TOLD["upper"] = str.upper


def report_page(evaluation: Evaluation, found: str = "") -> str:
    """Return the page, as HTML: all text is data to it. That of `check` begins with `found`."""
    names = [one.name for one in evaluation.tasks[0].standings if one.name != evaluation.ensemble]
    css = {name: member_class(number) for number, name in enumerate(names)}
    css[evaluation.ensemble] = "main"
    tasks = []
    for one in evaluation.tasks:
        scores = [_line(x.name, css[x.name], x.score, one.scale.form) for x in one.standings]
        tasks.append((one, scores, _gains(one), _patterns(one, css)))
    return report(
        "evaluate/report.html",
        title=f"{evaluation.ensemble}: evaluation",
        evaluation=evaluation,
        found=found,
        css=css,
        overview=list(_overview(evaluation, css)),
        tasks=tasks,
        n_shown=_SHOWN_ROWS,
        **{each.__name__: each for each in (asdict, furthest)},
        **TOLD,
    )


def _overview(evaluation: Evaluation, css: dict[str, str]) -> Iterator[tuple[str, list[Line]]]:
    names = evaluation.ensembles
    for bits, unit in ((False, "points ahead"), (True, "% fewer bits")):
        tasks = [summary for summary in evaluation.tasks if summary.scale.in_bits == bits]
        found = {each.task.name: [each.standing(name).ahead for name in names] for each in tasks}
        if not bits:
            found["mean of tasks"] = [evaluation.overall(name) for name in names]
        lines = []
        for label, differences in found.items():
            known = [(css[n], each) for n, each in zip(names, differences, strict=True) if each]
            form, sign = "+.1f", "%" if bits else ""
            # Of a task's lines the first has the label.
            lines += [_line("" if n else label, *each, form, sign) for n, each in enumerate(known)]
        if lines:
            yield unit, lines


def _gains(summary: TaskSummary) -> list[float]:
    if not summary.best or not summary.ensembles:
        return []
    sign = -1 if summary.scale.in_bits else 1
    pairs = zip(summary.ensembles[0].marks, summary.standing(summary.best).marks, strict=True)
    return [sign * (mine.value - theirs.value) for mine, theirs in pairs]


def furthest(summary: TaskSummary, gains: list[float]) -> list[int]:
    """Return all rows, those first in which the ensemble and its best member differ most."""
    rows = range(len(summary.task.rows))
    return sorted(rows, key=lambda row: -abs(gains[row]) if gains else 0)


def _patterns(summary: TaskSummary, css: dict[str, str]) -> list[tuple[str, str, int, int]]:
    names = [member.name for member in summary.members]
    alone = {f"only {name}": css[name] for name in names}
    labels = ("all members", *alone, "some members", "no member")
    found: dict[str, list[bool]] = {label: [] for label in labels}
    for place, mark in enumerate(summary.ensembles[0].marks if summary.ensembles else ()):
        right = [one.name for one in summary.members if one.marks[place].value > 0]
        known = {0: "no member", 1: f"only {''.join(right)}", len(names): "all members"}
        found[known.get(len(right), "some members")].append(mark.value > 0)
    return [
        (label, alone.get(label, "main"), len(rows), sum(rows))
        for label, rows in found.items()
        if rows
    ]


def _line(label: str, css: str, found: Estimate, form: str, unit: str = "") -> Line:
    said = f"{found.value:{form}}{unit}"
    return Line(label, css, found.value, found.low, found.high, said)
