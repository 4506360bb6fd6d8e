"""An evaluation as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from html import escape

from eva_local.evaluate.advice import verdict, warning
from eva_local.evaluate.evaluation import Evaluation
from eva_local.evaluate.figures import cells, headings, signed
from eva_local.evaluate.metrics import lower_is_better
from eva_local.evaluate.rows import Row
from eva_local.evaluate.significance import Estimate
from eva_local.evaluate.summary import Standing, TaskSummary
from eva_local.pages.frame import member_class, report
from eva_local.pages.plots import Bar, Line, bars, intervals, waterfall

# Rows that are shown of each task: those in which ensemble and best member differ most.
_SHOWN_ROWS = 24
_SHOWN_TEXT = 600


def report_page(evaluation: Evaluation) -> str:
    """Return the page, as HTML. Text of rows and models is data to it."""
    title = f"{evaluation.ensemble}: evaluation"
    css = _colours(evaluation)
    body = [
        _head(evaluation),
        _overview(evaluation, css),
        *(_task(summary, css) for summary in evaluation.tasks),
        _tuned(evaluation.tuned),
        _settings(evaluation),
    ]
    return report(title, "".join(body))


def _colours(evaluation: Evaluation) -> dict[str, str]:
    """Return each contestant's class: members and variants in colours, the ensemble in ink."""
    names = [standing.name for standing in evaluation.tasks[0].standings]
    others = [name for name in names if name != evaluation.ensemble]
    return {
        evaluation.ensemble: "main",
        **{name: member_class(number) for number, name in enumerate(others)},
    }


def _head(evaluation: Evaluation) -> str:
    rows = sum(len(summary.task.rows) for summary in evaluation.tasks)
    how = "chat templates" if evaluation.setting.chat else "plain prompts"
    facts = f"{len(evaluation.tasks)} tasks · {rows:,} rows · {how} · pivot {evaluation.pivot}"
    return (
        '<header><p class="eyebrow">eva-local eval</p>'
        f"<h1>{escape(evaluation.ensemble)} against its members</h1>"
        f'<p class="facts">{escape(facts.replace("1 tasks", "1 task"))}</p></header>'
    )


def _overview(evaluation: Evaluation, css: dict[str, str]) -> str:
    """Plot the difference of every ensemble to the best member of every task."""
    plots = []
    for bits in (False, True):
        chosen = [one for one in evaluation.tasks if lower_is_better(one.metric) == bits]
        lines = [line for summary in chosen for line in _aheads(summary, css)]
        means = [] if bits else list(_means(evaluation, css))
        if lines:
            unit = "% fewer bits" if bits else "points ahead"
            title = "differences to the best member of each task"
            plots.append(intervals([*lines, *means], title, unit, (0.0, "best member")))
    if not plots:
        return ""
    return (
        '<section><h2>Ahead of the best member?</h2><p class="facts">Dots are differences, lines '
        "95% intervals (paired bootstrap over the rows). Right of the line the ensemble is better; "
        f"an interval across it may be chance.</p>{_legend(evaluation, css)}"
        f"{''.join(plots)}</section>"
    )


def _aheads(summary: TaskSummary, css: dict[str, str]) -> Iterator[Line]:
    label = summary.task.name
    for standing in summary.ensembles:
        if standing.ahead is not None:
            text = signed(summary, standing.ahead)
            yield _line(label, css[standing.name], standing.ahead, text)
            label = ""


def _means(evaluation: Evaluation, css: dict[str, str]) -> Iterator[Line]:
    label = "mean of tasks"
    for name in evaluation.ensembles:
        if (mean := evaluation.overall(name)) is not None:
            yield _line(label, css[name], mean, f"{mean.value:+.1f}")
            label = ""


def _legend(evaluation: Evaluation, css: dict[str, str]) -> str:
    if len(evaluation.ensembles) < 2:
        return ""
    names = (
        f'<li><span class="swatch {css[name]}"></span>{escape(name)}</li>'
        for name in evaluation.ensembles
    )
    return f'<ul class="legend">{"".join(names)}</ul>'


def _task(summary: TaskSummary, css: dict[str, str]) -> str:
    task = summary.task
    shots = f" · {len(task.shots)} examples before each" if task.shots else ""
    warned = warning(summary)
    mark = (summary.oracle, "best of members") if summary.oracle is not None else None
    lines = [
        _line(one.name, css[one.name], one.score, f"{one.score.value:{summary.form}}")
        for one in summary.standings
    ]
    return (
        f'<section class="task"><h2>{escape(task.name)}</h2>'
        f'<p class="facts">{escape(summary.unit)} · {len(task.rows)} rows{shots}</p>'
        + "".join(f'<p class="advice">{escape(text)}</p>' for text in verdict(summary))
        + (f'<p class="note">{escape(warned[0].upper() + warned[1:])}.</p>' if warned else "")
        + intervals(lines, f"scores on {task.name}", summary.unit, mark)
        + _by_rows(summary, css)
        + _figures(summary, css)
        + _rows(summary)
        + "</section>"
    )


def _by_rows(summary: TaskSummary, css: dict[str, str]) -> str:
    """Plot where an ensemble's points come from: which members were right, or row by row."""
    if not summary.best or not summary.ensembles:
        return ""
    main = summary.ensembles[0]
    best = summary.standing(summary.best)
    if summary.metric in ("chrF", "bits"):
        sign = -1 if lower_is_better(summary.metric) else 1
        gains = [
            sign * (mine.value - theirs.value)
            for mine, theirs in zip(main.marks, best.marks, strict=True)
        ]
        better, worse = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
        text = f"{main.name} is better than {best.name} in {better} rows and worse in {worse}."
        unit = f"each row, {summary.unit}: up is better"
        return f"<h3>{escape(text)}</h3>{waterfall(gains, text, unit)}"
    text = f"Who was right, and in how many of these rows {main.name} was (filled)"
    return f"<h3>{escape(text)}</h3>{bars(_patterns(summary, main, css), text)}"


def _patterns(summary: TaskSummary, main: Standing, css: dict[str, str]) -> list[Bar]:
    """Sort the rows by which members were right."""
    names = [member.name for member in summary.members]
    sorts: list[tuple[str, str, Callable[[list[str]], bool]]] = [
        ("all members", "main", lambda right: len(right) == len(names)),
        *(
            (f"only {name}", css[name], lambda right, name=name: right == [name])
            for name in names
            if len(names) > 1
        ),
        ("some members", "main", lambda right: 1 < len(right) < len(names)),
        ("no member", "main", lambda right: not right),
    ]
    rows = [
        ([one.name for one in summary.members if one.marks[place].value > 0], mark.value > 0)
        for place, mark in enumerate(main.marks)
    ]
    found = []
    for label, colour, belongs in sorts:
        mine = [won for right, won in rows if belongs(right)]
        if mine:
            found.append(Bar(label, colour, len(mine), sum(mine)))
    return found


def _figures(summary: TaskSummary, css: dict[str, str]) -> str:
    lines = "".join(
        f'<tr><th scope="row"><span class="swatch {css[one.name]}"></span>{escape(one.name)}</th>'
        + "".join(f'<td class="figure">{escape(cell)}</td>' for cell in cells(summary, one))
        + "</tr>"
        for one in summary.standings
    )
    extra = [f"best of members, row by row: {summary.oracle:{summary.form}}"] * (
        summary.oracle is not None
    )
    if summary.agreement is not None:
        extra.append(f"members give the same answer to {summary.agreement:.0%} of the rows")
    return (
        '<div class="scroll"><table><thead><tr>'
        + "".join(f'<th class="figure">{escape(name)}</th>' for name in headings(summary))
        + f"</tr></thead><tbody>{lines}</tbody></table></div>"
        + (f'<p class="facts">{escape("; ".join(extra).capitalize())}.</p>' if extra else "")
    )


def _rows(summary: TaskSummary) -> str:
    """Show the rows in which the ensemble and the best member differ most."""
    if not summary.best or not summary.ensembles:
        return ""
    main, best = summary.ensembles[0], summary.standing(summary.best)
    apart = [
        (abs(mine.value - theirs.value), place)
        for place, (mine, theirs) in enumerate(zip(main.marks, best.marks, strict=True))
        if mine.value != theirs.value
    ]
    chosen = [place for _, place in sorted(apart, key=lambda one: (-one[0], one[1]))[:_SHOWN_ROWS]]
    if not chosen:
        return ""
    shown = "".join(_row(summary, place) for place in chosen)
    title = f"{len(chosen)} of {len(apart)} rows in which {main.name} and {best.name} differ"
    return f"<details><summary>{escape(title)}</summary>{shown}</details>"


def _row(summary: TaskSummary, place: int) -> str:
    row = summary.task.rows[place]
    said = "".join(
        f"<dt>{escape(one.name)}</dt>"
        f'<dd><span class="worth">{_worth(summary, one, place)}</span> '
        f"{escape(_short(one.marks[place].said))}</dd>"
        for one in summary.standings
    )
    right = escape(_short(_right(row)))
    expected = f"<dt>right</dt><dd>{right}</dd>" if right else ""
    question = escape(_short(row.prompt or row.text))
    return f'<article><p class="prompt">{question}</p><dl>{expected}{said}</dl></article>'


def _right(row: Row) -> str:
    return row.choices[row.label] if row.choices else " | ".join(row.answers)


def _worth(summary: TaskSummary, one: Standing, place: int) -> str:
    value = one.marks[place].value
    if summary.metric in ("chrF", "bits"):
        return f"{value:{summary.form}}"
    return '<b class="yes">✓</b>' if value > 0 else '<b class="no">✗</b>'


def _tuned(block: str) -> str:
    if not block:
        return ""
    return (
        "<section><h2>Tuned settings</h2><p>For models.toml; they were fitted on other rows than "
        f"those of this page.</p><pre>{escape(block)}</pre></section>"
    )


def _settings(evaluation: Evaluation) -> str:
    lines = []
    for standing in evaluation.tasks[0].ensembles:
        spec = standing.contestant.spec
        fusion = ", ".join(
            f"{name} {getattr(spec.fusion, name)}" for name in spec.fusion.__dataclass_fields__
        )
        lines.append(f"<dt>{escape(standing.name)}</dt><dd>{escape(fusion)}</dd>")
    if not lines:
        return ""
    return (
        f"<footer><details><summary>Settings</summary><dl>{''.join(lines)}</dl></details></footer>"
    )


def _line(label: str, css: str, found: Estimate, text: str) -> Line:
    return Line(label, css, found.value, found.low, found.high, text)


def _short(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN_TEXT else f"{text[:_SHOWN_TEXT]}…"
