"""The command `eval`: how good an ensemble is against its members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from eva_local.cli.options import Load, count_option, setting_options
from eva_local.cli.outputs import output_options, print_table, refuse_outputs, write_outputs
from eva_local.cli.progress import ProgressDisplay
from eva_local.config.settings import keys_of
from eva_local.config.specs import EnsembleSpec, FusionSettings
from eva_local.errors import InputError
from eva_local.reading import did_you_mean

if TYPE_CHECKING:
    from eva_local.evaluate.contest import Contest
    from eva_local.evaluate.evaluation import Evaluation
    from eva_local.evaluate.rows import Kind, Task
    from eva_local.evaluate.summary import TaskSummary

_PATH = click.Path(path_type=Path)


@click.command("eval")
@click.argument("files", metavar="FILE...", nargs=-1, type=_PATH)
@click.option(
    "--task",
    "kind",
    type=click.Choice(["auto", "generate", "choice", "bpb", "translate"]),
    default="auto",
    show_default=True,
    help="What the rows are; auto looks at their fields.",
)
@click.option("--limit", type=click.IntRange(1), help="Take the first rows of each FILE.")
@click.option(
    "--few-shot",
    "shot_files",
    multiple=True,
    metavar="FILE",
    type=_PATH,
    help="Put solved rows before each prompt; repeat it for several tasks.",
)
@count_option("--shots", "n_shots", default=4, least=0, text="How many of them.")
@click.option("--chat", is_flag=True, help="Use the members' chat templates, not plain text.")
@click.option("--max-tokens", type=click.IntRange(1), help="Length of answers; else as tasks need.")
@click.option("--text-bytes", type=click.IntRange(1), help="Take so much of each text at most.")
@click.option(
    "--prompt-bytes",
    type=click.IntRange(0),
    default=0,
    help="Read so much of each text as a prompt, and do not score it.",
)
@click.option("--members/--no-members", default=True, help="Measure each member alone too.")
@click.option(
    "--compare",
    multiple=True,
    metavar="SETTINGS",
    help="Also measure other settings: KEY=VALUE,... or an ensemble's name; may be repeated.",
)
@click.option("--tune", is_flag=True, help="Fit settings on half of the rows, report on the rest.")
@count_option("--parallel", default=4, text="Do so many rows side by side.")
@click.option(
    "--results",
    type=_PATH,
    metavar="FILE",
    help="Keep each answer there, so that the same command goes on.",
)
@click.option("--fresh", is_flag=True, help="Do again what is kept already.")
@output_options
@setting_options(
    *("ensemble", "n_ctx", "threads", "n_gpu_layers", "space", "mapping", "combine"),
    *("sharpness", "filter", "filter_n", "candidates", "weights", "weight_temperature"),
    *("weight_decay", "prompt_evidence", "gate"),
)
@click.pass_obj
def evaluate(
    load: Load,
    /,
    overrides: dict[str, object],
    files: tuple[Path, ...],
    kind: Kind | Literal["auto"],
    limit: int | None,
    shot_files: tuple[Path, ...],
    n_shots: int,
    members: bool,
    compare: tuple[str, ...],
    tune: bool,
    parallel: int,
    results: Path | None,
    fresh: bool,
    json_out: Path | None,
    html_out: Path | None,
    **conditions: Any,
) -> None:
    """Measure an ensemble against its members.

    FILE has rows as JSON lines: `prompt` and `answers`, or `prompt`, `choices` and `label`, or
    `text`. Each member and the ensemble do all rows; what is done is kept, and not done again.

    With --task bpb, FILE is plain text, or JSON lines with a field `text`, `question` or
    `prompt`, and bits per byte are measured: lower is better. The weights prompt-perplexity need
    --prompt-bytes there.
    """
    from eva_local.evaluate.contest import Contest
    from eva_local.evaluate.forms import Conditions
    from eva_local.evaluate.report import report_page
    from eva_local.evaluate.results import Results
    from eva_local.evaluate.rows import read_tasks
    from eva_local.models.store import cache_folder
    from eva_local.opening import open_models

    if not files:
        raise InputError("there are no rows: give a FILE of them")
    outputs = {"--json": json_out, "--html": html_out, "--results": results}
    refuse_outputs(outputs, (*files, *shot_files))
    tasks = read_tasks(files, None if kind == "auto" else kind, limit, shot_files, n_shots)
    spec = load(overrides).ensemble()
    for option, given in (("--tune", tune), ("--compare", compare), ("--no-members", not members)):
        if given and len(spec.members) < 2:
            raise InputError(f"{option} needs an ensemble, and {spec.name} is one model")
    specs = [spec, *(variant(load, overrides, spec, text) for text in compare)]
    path = results or cache_folder() / "evaluations.jsonl"
    bytewise = any(one.fusion.space == "bytes" for one in specs)
    with (
        Results(path, fresh=fresh) as kept,
        closing(ProgressDisplay()) as progress,
        open_models(spec, progress, parallel=parallel, bytewise=bytewise) as opened,
    ):
        models = {one.name: model for one, model in zip(spec.members, opened, strict=True)}
        contest = Contest(models, kept, Conditions(**conditions), parallel, progress)
        try:
            evaluation = _held(contest, specs, tasks, members=members, tuned=tune)
        except KeyboardInterrupt:
            progress.close()
            click.echo(f"what is done is kept in {path}: the same command goes on", err=True)
            raise
    shown, page = partial(_show, evaluation), partial(report_page, evaluation)
    write_outputs(evaluation.as_json(), shown, page, json_out, html_out)


def _held(
    contest: Contest,
    specs: list[EnsembleSpec],
    tasks: Sequence[Task],
    *,
    members: bool,
    tuned: bool,
) -> Evaluation:
    """Tune if that was asked for, let all contestants do the tasks, and sum up."""
    from eva_local.evaluate.contest import Contestant, alone
    from eva_local.evaluate.evaluation import Evaluation
    from eva_local.evaluate.summary import summarize
    from eva_local.evaluate.tune import block, halves, tune

    spec, tuned_block = specs[0], ""
    tasks = [contest.scorable(task) for task in tasks]
    if tuned:
        fit, tasks = halves(tasks)
        best = tune(contest, fit, spec)
        tuned_block = block(best, fit)
        specs = [*specs, *([best] if best.fusion != spec.fusion else [])]
    contestants = [alone(member) for member in spec.members] if members else []
    if len(spec.members) > 1:
        contestants += map(Contestant, names_of(specs), specs)
    entries = contest.run(tasks, contestants)
    summaries = tuple(
        summarize([entry for entry in entries if entry.task is task], seed)
        for seed, task in enumerate(tasks)
    )
    return Evaluation(spec.name, spec.pivot, contest.conditions, summaries, tuned_block)


def variant(
    load: Load, overrides: Mapping[str, object], spec: EnsembleSpec, text: str
) -> EnsembleSpec:
    """Return the ensemble under other settings: `KEY=VALUE,…`, or those of another ensemble.

    A part without `=` goes on with the value before it, so that weights can be listed. The
    other ensemble may have no members of its own.
    """
    if "=" not in text:
        other = load().ensemble(text)
        if not {member.name for member in other.members} <= {one.name for one in spec.members}:
            raise InputError(f"--compare {text}: has members that {spec.name} has not")
        if len(other.members) < 2:
            raise InputError(f"--compare {text}: is one model; members are measured alone anyway")
        return replace(other, name=text)
    given: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if equals:
            given[key.strip().replace("-", "_")] = value.strip()
        elif given:
            given[next(reversed(given))] += f",{part.strip()}"
    known = ("pivot", *keys_of(FusionSettings))
    for key in given:
        if key not in known:
            raise InputError(f"--compare {text}: {key}: {did_you_mean(key, known)}")
    pivot = given.pop("pivot", spec.pivot)
    names = [member.name for member in spec.members]
    if pivot not in names:
        raise InputError(f"--compare {text}: {pivot} is no member; {did_you_mean(pivot, names)}")
    changed = load({**overrides, **given}).ensemble()
    return replace(changed, name=text, pivot=pivot)


def names_of(specs: Sequence[EnsembleSpec]) -> list[str]:
    """Return the ensembles' names, with a number where one was there before."""
    names: list[str] = []
    for spec in specs:
        others = (f"{spec.name} ({number})" for number in count(2))
        names.append(next(name for name in chain([spec.name], others) if name not in names))
    return names


def _show(evaluation: Evaluation) -> None:
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
