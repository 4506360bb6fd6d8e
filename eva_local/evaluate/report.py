"""An evaluation as one HTML page that needs nothing else: no network, no script, no other file."""

from collections.abc import Iterator
from dataclasses import asdict

from eva_local.evaluate import evaluation as words
from eva_local.evaluate.evaluation import Evaluation
from eva_local.evaluate.summary import Estimate, TaskSummary
from eva_local.pages.frame import Line, member_class, report

# Rows that are shown of each task.
_SHOWN_ROWS = 24


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
            (one, _scores(one, css), _gains(one), _patterns(one, css)) for one in evaluation.tasks
        ],
        n_shown=_SHOWN_ROWS,
        furthest=_furthest,
        asdict=asdict,
        words=words,
    )


def _colours(evaluation: Evaluation) -> dict[str, str]:
    names = [standing.name for standing in evaluation.tasks[0].standings]
    others = [name for name in names if name != evaluation.ensemble]
    return {name: member_class(n) for n, name in enumerate(others)} | {evaluation.ensemble: "main"}


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


def _scores(summary: TaskSummary, css: dict[str, str]) -> list[Line]:
    found = [(one.name, css[one.name], one.score) for one in summary.standings]
    return [_line(*each, summary.scale.form) for each in found]


def _gains(summary: TaskSummary) -> list[float]:
    if not summary.best or not summary.ensembles:
        return []
    sign = -1 if summary.scale.in_bits else 1
    pairs = zip(summary.ensembles[0].marks, summary.standing(summary.best).marks, strict=True)
    return [sign * (mine.value - theirs.value) for mine, theirs in pairs]


def _furthest(summary: TaskSummary, gains: list[float]) -> list[int]:
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
