"""What an evaluation came to, for tables, JSON and the page, and what follows for a user."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

from eva_local.config.catalogue import free_name
from eva_local.config.specs import EnsembleSpec
from eva_local.evaluate.contest import Contest, each_alone
from eva_local.evaluate.forms import Conditions
from eva_local.evaluate.rows import Task
from eva_local.evaluate.summary import Estimate, Standing, TaskSummary, mean_of, summarize
from eva_local.evaluate.tune import block, halves, tune
from eva_local.pages.frame import Line, member_class, report

_INTERVAL = "95% interval"
# Members further apart than this hurt an ensemble in which they have equal votes (UniTE).
_FAR_APART = 10.0
# Where some member is right so much more often than the best, better weights may find it.
_WORTH_TUNING = 10.0
# Who takes up to this share of a time takes no longer: times differ by so much from run to run.
_AS_QUICK = 1.05
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
        pairs = zip(names_of(specs), specs, strict=True)
        contestants += [replace(one, name=name) for name, one in pairs]
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


def names_of(specs: Sequence[EnsembleSpec]) -> list[str]:
    """Return the ensembles' names, with a number where one was there before."""
    names: list[str] = []
    for spec in specs:
        names.append(free_name(spec.name, names, "{} ({})"))
    return names


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


def warning(summary: TaskSummary) -> str:
    """Say so where members are too far apart for equal votes; empty where they are not."""
    if summary.gap <= _FAR_APART:
        return ""
    worst = min(summary.members, key=lambda one: one.ahead.value if one.ahead else 0.0)
    return (
        f"the members differ by {_amount(summary.gap, summary)}, more than {_FAR_APART:g}: an "
        f"equal vote for {worst.name} may cost more than it brings"
    )


def advice(summary: TaskSummary, standing: Standing) -> str:
    """Say whether to use an ensemble or its best member. The interval decides."""
    ahead, best = standing.ahead, summary.best
    if ahead is None:
        return ""
    if len(standing.marks) < 2:
        amount = _amount(ahead.value, summary, "+")
        return f"One row cannot tell {standing.name} from {best} alone ({amount})."
    amount = _amount(abs(ahead.value), summary)
    interval = f"95% interval {ahead.interval()}"
    if ahead.low > 0:
        return f"Use {standing.name}: it is {amount} better than {best} alone ({interval})."
    if ahead.high < 0:
        worse = f"{standing.name} is {amount} worse ({interval})"
        return f"Use {best} alone: {worse}.{_way_out(summary)}"
    told = (
        f"{len(standing.marks)} rows cannot tell {standing.name} from {best} alone "
        f"({_amount(ahead.value, summary, '+')}, {interval})"
    )
    rest = "more rows may tell"
    if standing.seconds > (quick := summary.standing(best).seconds) > 0:
        rest = f"use {best} alone, which is {standing.seconds / quick:.1f} times as fast"
    return f"{told}: {rest}."


def comparison(summary: TaskSummary) -> str:
    """Say which of the settings that were compared did best; empty where there was one."""
    if not summary.base:
        return ""
    first, *others = summary.ensembles
    leader = max(others, key=lambda one: one.change.value if one.change else 0.0)
    change = leader.change
    if change is None or change.value <= 0:
        return f"None of the settings compared with {first.name} does better."
    best = f"Of the settings compared {leader.name} does best"
    amount = _amount(change.value, summary, "+")
    told = f"{amount} against {first.name}, 95% interval {change.interval()}"
    if change.low <= 0:
        return f"{best}, but {len(leader.marks)} rows cannot tell it from {first.name} ({told})."
    luck = "; the best of many owes some of it to luck" if len(others) > 1 else ""
    return f"{best} ({told}{luck})."


def bought(summary: TaskSummary) -> str:
    """Say what scores most of all that takes no more time than the ensemble that was asked for.

    Empty where nothing beside members and ensembles was measured.
    """
    n_known = len(summary.members) + len(summary.ensembles)
    if not summary.ensembles or n_known == len(summary.standings):
        return ""
    mine = summary.ensembles[0]
    sign = -1 if summary.scale.in_bits else 1
    as_quick = [one for one in summary.standings if one.seconds <= _AS_QUICK * mine.seconds]
    most = max(as_quick, key=lambda one: sign * one.score.value)
    if most is mine:
        return f"Nothing as quick as {mine.name} ({mine.seconds:.2f} s a row) does better."
    gain, form = most.score - mine.score, f"+{summary.scale.form}"
    return (
        f"In the time of {mine.name} ({mine.seconds:.2f} s a row) {most.name} scores most: "
        f"{gain.value:{form}}, 95% interval {gain.interval(form)}, in {most.seconds:.2f} s."
    )


def _amount(value: float, summary: TaskSummary, sign: str = "") -> str:
    return f"{value:{sign}.1f}{'%' if summary.scale.in_bits else ' points'}"


def _way_out(summary: TaskSummary) -> str:
    more = (summary.oracle or 0.0) - summary.standing(summary.best).score.value
    if summary.scale.in_bits or more <= _WORTH_TUNING:
        return ""
    return (
        f" Picking the best member row by row would score {more:.1f} points more than "
        f"{summary.best}: --tune looks for settings that come nearer."
    )


def report_page(evaluation: Evaluation, found: str = "") -> str:
    """Return the page, as HTML that needs nothing else; `found` is the verdict of `check`.

    Text of rows and models is data to it.
    """
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
        **{each.__name__: each for each in (verdict, warning, figures, asdict, furthest)},
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
