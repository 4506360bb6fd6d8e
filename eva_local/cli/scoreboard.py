"""What an evaluation came to, as tables on standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from eva_local.cli.outputs import print_table

if TYPE_CHECKING:
    from eva_local.evaluate.evaluation import Evaluation
    from eva_local.evaluate.summary import TaskSummary


def show(evaluation: Evaluation) -> None:
    """Print a table for each task with what follows from it, and the mean of all tasks."""
    for summary in evaluation.tasks:
        _show_task(summary)
        click.echo()
    means = [(name, evaluation.overall(name)) for name in evaluation.ensembles]
    known = [(name, mean) for name, mean in means if mean is not None]
    if known:
        click.echo("mean difference to the best member of each task, in points")
        print_table(
            ("", "AHEAD", "95% INTERVAL"),
            [(name, f"{mean.value:+.1f}", mean.interval()) for name, mean in known],
        )
        click.echo()
    if evaluation.tuned:
        click.echo(evaluation.tuned)


def _show_task(summary: TaskSummary) -> None:
    from eva_local.evaluate.advice import verdict, warning
    from eva_local.evaluate.evaluation import cells, headings

    task = summary.task
    shots = f", {len(task.shots)} examples before each" if task.shots else ""
    click.echo(f"{task.name}: {summary.unit}, {len(task.rows)} rows{shots}")
    rows: list[tuple[str, ...]] = [
        (standing.name, *cells(summary, standing)) for standing in summary.standings
    ]
    if summary.oracle is not None:
        rows.append(("best of members", format(summary.oracle, summary.form)))
    print_table(headings(summary, str.upper), rows)
    if summary.agreement is not None:
        click.echo(f"all members give the same answer to {summary.agreement:.0%} of the rows")
    if text := warning(summary):
        click.echo(f"warning: {text}")
    for text in verdict(summary):
        click.echo(text)
