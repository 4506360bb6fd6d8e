"""Tasks on the command line: `eval FILE…`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from eva_local.cli.outputs import refuse_outputs, write_outputs
from eva_local.cli.progress import progress_shown
from eva_local.cli.scoreboard import show
from eva_local.cli.session import Session
from eva_local.config.settings import keys_of
from eva_local.config.specs import EnsembleSpec, FusionSettings
from eva_local.errors import InputError
from eva_local.reading import did_you_mean

if TYPE_CHECKING:
    from eva_local.evaluate.contest import Contest
    from eva_local.evaluate.evaluation import Evaluation
    from eva_local.evaluate.forms import Conditions
    from eva_local.evaluate.rows import Kind, Task


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The options of `eval` that are about tasks, as they were given."""

    files: tuple[Path, ...]
    kind: Kind | Literal["auto"]
    limit: int | None
    shot_files: tuple[Path, ...]
    n_shots: int
    conditions: Conditions
    members: bool
    compare: tuple[str, ...]
    parallel: int
    results: Path | None
    fresh: bool
    tune: bool
    json_out: Path | None
    html_out: Path | None


def evaluate_tasks(session: Session, overrides: Mapping[str, object], options: TaskOptions) -> None:
    """Let members and ensembles do tasks; print a table, and write what else was asked for."""
    from eva_local.evaluate.report import report_page
    from eva_local.evaluate.rows import read_tasks

    outputs = {"--json": options.json_out, "--html": options.html_out}
    refuse_outputs({**outputs, "--results": options.results}, (*options.files, *options.shot_files))
    kind = None if options.kind == "auto" else options.kind
    tasks = read_tasks(options.files, kind, options.limit, options.shot_files, options.n_shots)
    spec = session.load(overrides).ensemble()
    if len(spec.members) < 2:
        _refuse_for_one_model(spec, options)
    variants = [variant(session, overrides, spec, text) for text in options.compare]
    evaluation = _measured(spec, variants, tasks, options)
    shown, page = partial(show, evaluation), partial(report_page, evaluation)
    write_outputs(evaluation.as_json(), shown, page, options.json_out, options.html_out)


def _refuse_for_one_model(spec: EnsembleSpec, options: TaskOptions) -> None:
    given = {
        "--tune": options.tune,
        "--compare": options.compare,
        "--no-members": not options.members,
    }
    for option, there in given.items():
        if there:
            raise InputError(f"{option} needs an ensemble, and {spec.name} is one model")


def variant(
    session: Session, overrides: Mapping[str, object], spec: EnsembleSpec, text: str
) -> EnsembleSpec:
    """Return the ensemble under other settings: `KEY=VALUE,…`, or those of another ensemble.

    A part without `=` goes on with the value before it, so that weights can be listed. The
    other ensemble may have no members of its own.
    """
    if "=" not in text:
        other = session.load().ensemble(text)
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
    changed = session.load({**overrides, **given}).ensemble()
    return replace(changed, name=text, pivot=pivot)


def _measured(
    spec: EnsembleSpec,
    variants: Sequence[EnsembleSpec],
    tasks: Sequence[Task],
    options: TaskOptions,
) -> Evaluation:
    from eva_local.evaluate.contest import Contest
    from eva_local.evaluate.results import Results
    from eva_local.models.store import cache_folder
    from eva_local.opening import open_models

    path = options.results or cache_folder() / "evaluations.jsonl"
    with Results(path, fresh=options.fresh) as results, progress_shown() as progress:
        bytewise = any(one.fusion.space == "bytes" for one in (spec, *variants))
        opening = open_models(spec, progress, parallel=options.parallel, bytewise=bytewise)
        with opening as opened:
            names = [member.name for member in spec.members]
            models = dict(zip(names, opened, strict=True))
            contest = Contest(models, results, options.conditions, options.parallel, progress)
            try:
                return _held(contest, spec, variants, tasks, options)
            except KeyboardInterrupt:
                progress.close()
                click.echo(f"what is done is kept in {path}: the same command goes on", err=True)
                raise


def _held(
    contest: Contest,
    spec: EnsembleSpec,
    variants: Sequence[EnsembleSpec],
    tasks: Sequence[Task],
    options: TaskOptions,
) -> Evaluation:
    """Tune if that was asked for, let all contestants do the tasks, and sum up."""
    from eva_local.evaluate.contest import Contestant, alone
    from eva_local.evaluate.evaluation import Evaluation
    from eva_local.evaluate.summary import summarize
    from eva_local.evaluate.tune import halves, tune

    tasks = [contest.scorable(task) for task in tasks]
    specs = [spec, *variants]
    block = ""
    if options.tune:
        fit, tasks = halves(tasks)
        tuned = tune(contest, fit, spec)
        block = tuned.block()
        specs += [tuned.spec] if tuned.spec.fusion != spec.fusion else []
    contestants = [alone(member) for member in spec.members] if options.members else []
    if len(spec.members) > 1:
        contestants += [
            Contestant(name, one) for name, one in zip(_names(specs), specs, strict=True)
        ]
    entries = contest.run(tasks, contestants)
    summaries = tuple(
        summarize([entry for entry in entries if entry.task is task], seed)
        for seed, task in enumerate(tasks)
    )
    return Evaluation(spec.name, spec.pivot, options.conditions, summaries, block)


def _names(specs: Sequence[EnsembleSpec]) -> list[str]:
    """Return the ensembles' names, with a number where one was there before."""
    names: list[str] = []
    for spec in specs:
        others = (f"{spec.name} ({number})" for number in count(2))
        names.append(next(name for name in chain([spec.name], others) if name not in names))
    return names
