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
    from eva_local.evaluate.advice import advice, warning

    task = summary.task
    shots = f", {len(task.shots)} examples before each" if task.shots else ""
    click.echo(f"{task.name}: {summary.unit}, {len(task.rows)} rows{shots}")
    more = list(summary.standings[0].more)
    head = ("", "SCORE", "95% INTERVAL", "AHEAD", "95% INTERVAL", "FILTERED", "S/ROW")
    rows = [_line(summary, standing) for standing in summary.standings]
    if summary.oracle is not None:
        oracle = ("best of members", format(summary.oracle, _form(summary)), *[""] * 5)
        rows.append((*oracle, *[""] * len(more)))
    print_table((*head, *(name.upper() for name in more)), rows)
    if summary.agreement is not None:
        click.echo(f"all members give the same answer to {summary.agreement:.0%} of the rows")
    if text := warning(summary):
        click.echo(f"warning: {text}")
    for standing in summary.ensembles:
        if text := advice(summary, standing):
            click.echo(text)


def _line(summary: TaskSummary, standing: Standing) -> tuple[str, ...]:
    form, ahead = _form(summary), standing.ahead
    unit = "%" if summary.step == "%" else ""
    return (
        standing.name,
        format(standing.score.value, form),
        _interval(standing.score, form),
        "" if ahead is None else f"{ahead.value:+.1f}{unit}",
        "" if ahead is None else _interval(ahead, "+.1f"),
        "" if standing.filtered is None else f"{standing.filtered:.0%}",
        f"{standing.seconds:.2f}",
        *(f"{value:.1f}" for value in standing.more.values()),
    )


def _form(summary: TaskSummary) -> str:
    return ".4f" if summary.metric == "bits" else ".1f"


def _interval(found: Estimate, form: str) -> str:
    return f"{found.low:{form}} to {found.high:{form}}"
