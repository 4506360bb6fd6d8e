"""An evaluation as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict

from eva_local.evaluate.advice import verdict, warning
from eva_local.evaluate.evaluation import Evaluation, cells, headings
from eva_local.evaluate.metrics import lower_is_better
from eva_local.evaluate.significance import Estimate
from eva_local.evaluate.summary import Standing, TaskSummary
from eva_local.pages.frame import member_class, report
from eva_local.pages.plots import Bar, Line, bars, intervals, waterfall

# Rows that are shown of each task: those in which ensemble and best member differ most.
_SHOWN_ROWS = 24
_SHOWN_TEXT = 600


def report_page(evaluation: Evaluation) -> str:
    """Return the page, as HTML. Text of rows and models is data to it."""
    css = _colours(evaluation)
    return report(
        "evaluate/report.html",
        title=f"{evaluation.ensemble}: evaluation",
        evaluation=evaluation,
        css=css,
        overview=list(_overview(evaluation, css)),
        tasks=[
            (summary, _scores(summary, css), _gains(summary), _patterns(summary, css))
            for summary in evaluation.tasks
        ],
        n_shown=_SHOWN_ROWS,
        furthest=_furthest,
        short=_short,
        settings=_settings,
        verdict=verdict,
        warning=warning,
        headings=headings,
        cells=cells,
        intervals=intervals,
        bars=bars,
        waterfall=waterfall,
    )


def _colours(evaluation: Evaluation) -> dict[str, str]:
    """Return each contestant's class: members and variants in colours, the ensemble in ink."""
    names = [standing.name for standing in evaluation.tasks[0].standings]
    others = [name for name in names if name != evaluation.ensemble]
    return {
        evaluation.ensemble: "main",
        **{name: member_class(number) for number, name in enumerate(others)},
    }


def _overview(evaluation: Evaluation, css: dict[str, str]) -> Iterator[tuple[str, list[Line]]]:
    """Yield units, and the differences of every ensemble to the best member of every task."""
    for bits, unit in ((False, "points ahead"), (True, "% fewer bits")):
        lines: list[Line] = []
        for summary in evaluation.tasks:
            if lower_is_better(summary.metric) == bits:
                aheads = [(one.name, one.ahead) for one in summary.ensembles]
                form = "{:+.1f}%" if bits else "{:+.1f}"
                lines += _differences(summary.task.name, aheads, form, css)
        if lines and not bits:
            means = [(name, evaluation.overall(name)) for name in evaluation.ensembles]
            lines += _differences("mean of tasks", means, "{:+.1f}", css)
        if lines:
            yield unit, lines


def _differences(
    label: str, found: Iterable[tuple[str, Estimate | None]], form: str, css: dict[str, str]
) -> Iterator[Line]:
    """Yield a line for each ensemble, of which the first has the label."""
    for name, difference in found:
        if difference is not None:
            yield _line(label, css[name], difference, form)
            label = ""


def _scores(summary: TaskSummary, css: dict[str, str]) -> list[Line]:
    form = f"{{:{summary.form}}}"
    return [_line(one.name, css[one.name], one.score, form) for one in summary.standings]


def _gains(summary: TaskSummary) -> list[float]:
    """Return how much better the ensemble is than the best member, row by row."""
    if not summary.best or not summary.ensembles:
        return []
    sign = -1 if lower_is_better(summary.metric) else 1
    pairs = zip(summary.ensembles[0].marks, summary.standing(summary.best).marks, strict=True)
    return [sign * (mine.value - theirs.value) for mine, theirs in pairs]


def _furthest(gains: list[float]) -> list[int]:
    """Return the rows in which ensemble and best member differ, those that differ most first."""
    apart = [row for row, gain in enumerate(gains) if gain]
    return sorted(apart, key=lambda row: -abs(gains[row]))


def _patterns(summary: TaskSummary, css: dict[str, str]) -> list[Bar]:
    """Sort the rows by which members were right; count in how many the ensemble was."""
    names = [member.name for member in summary.members]
    classes = {
        "all members": "main",
        **{f"only {name}": css[name] for name in names},
        "some members": "main",
        "no member": "main",
    }
    found: dict[str, list[bool]] = {}
    for place, mark in enumerate(summary.ensembles[0].marks if summary.ensembles else ()):
        right = [one.name for one in summary.members if one.marks[place].value > 0]
        if len(right) == len(names):
            sort = "all members"
        elif len(right) == 1:
            sort = f"only {right[0]}"
        else:
            sort = "some members" if right else "no member"
        found.setdefault(sort, []).append(mark.value > 0)
    return [
        Bar(label, css_class, len(found[label]), sum(found[label]))
        for label, css_class in classes.items()
        if label in found
    ]


def _settings(standing: Standing) -> str:
    fusion = asdict(standing.contestant.spec.fusion)
    return ", ".join(f"{name} {value}" for name, value in fusion.items())


def _line(label: str, css: str, found: Estimate, form: str) -> Line:
    return Line(label, css, found.value, found.low, found.high, form.format(found.value))


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN_TEXT else f"{text[:_SHOWN_TEXT]}…"
