"""What an evaluation came to, as tables on standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from eva_local.cli.table import print_table

if TYPE_CHECKING:
    from eva_local.evaluate.outcome import Outcome
    from eva_local.evaluate.significance import Estimate
    from eva_local.evaluate.summary import Standing, TaskSummary


def show(outcome: Outcome) -> None:
    """Print a table for each task with what follows from it, and the mean of all tasks."""
    for summary in outcome.tasks:
        _show_task(summary)
        click.echo()
    means = [(name, outcome.overall(name)) for name in outcome.ensembles]
    known = [(name, mean) for name, mean in means if mean is not None]
    if known:
        click.echo("mean difference to the best member of each task, in points")
        print_table(
            ("", "AHEAD", "95% INTERVAL"),
            [(name, f"{mean.value:+.1f}", _interval(mean, "+.1f")) for name, mean in known],
        )
        click.echo()
    if outcome.tuned:
        click.echo(outcome.tuned)


def _show_task(summary: TaskSummary) -> None:
    from eva_local.evaluate.advice import advice, comparison, warning

    task = summary.task
    shots = f", {len(task.shots)} examples before each" if task.shots else ""
    click.echo(f"{task.name}: {summary.unit}, {len(task.rows)} rows{shots}")
    more = list(summary.standings[0].more)
    compared = (f"AGAINST {summary.base}", "95% INTERVAL") if summary.base else ()
    head = ("", "SCORE", "95% INTERVAL", "AHEAD", "95% INTERVAL", *compared, "FILTERED", "S/ROW")
    rows = [_line(summary, standing) for standing in summary.standings]
    if summary.oracle is not None:
        oracle = ("best of members", format(summary.oracle, _form(summary)))
        rows.append((*oracle, *[""] * (len(head) - len(oracle) + len(more))))
    print_table((*head, *(name.upper() for name in more)), rows)
    if summary.agreement is not None:
        click.echo(f"all members give the same answer to {summary.agreement:.0%} of the rows")
    if text := warning(summary):
        click.echo(f"warning: {text}")
    said = [advice(summary, standing) for standing in summary.ensembles[:1]]
    for text in filter(None, [*said, comparison(summary)]):
        click.echo(text)


def _line(summary: TaskSummary, standing: Standing) -> tuple[str, ...]:
    form = _form(summary)
    return (
        standing.name,
        format(standing.score.value, form),
        _interval(standing.score, form),
        *_difference(summary, standing.ahead),
        *(_difference(summary, standing.change) if summary.base else ()),
        "" if standing.filtered is None else f"{standing.filtered:.0%}",
        f"{standing.seconds:.2f}",
        *(f"{value:.1f}" for value in standing.more.values()),
    )


def _difference(summary: TaskSummary, found: Estimate | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    unit = "%" if summary.step == "%" else ""
    return f"{found.value:+.1f}{unit}", _interval(found, "+.1f")


def _form(summary: TaskSummary) -> str:
    return ".4f" if summary.metric == "bits" else ".1f"


def _interval(found: Estimate, form: str) -> str:
    return f"{found.low:{form}} to {found.high:{form}}"
