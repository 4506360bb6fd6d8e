"""How good ensembles are, `eval`, what they cost, `bench`, and both in brief, `check`."""

import re
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from eva_local.api import Report
from eva_local.bench import trial
from eva_local.cli import outputs
from eva_local.cli.models import thinking_of
from eva_local.cli.options import Given, Load
from eva_local.cli.setup import Additions, append
from eva_local.config.catalogue import free_name
from eva_local.config.settings import keys_of, refuse_unknown
from eva_local.config.specs import EnsembleSpec, FusionSettings
from eva_local.errors import InputError
from eva_local.evaluate import check as checking
from eva_local.evaluate.contest import Contest
from eva_local.evaluate.evaluation import TOLD, hold, report_page
from eva_local.evaluate.forms import Conditions
from eva_local.evaluate.rows import BUILT_IN, Kind, Results, read_tasks
from eva_local.models.header import read_header
from eva_local.models.store import cache_folder
from eva_local.opening import open_models
from eva_local.types import THINKING_KEYS

# Questions that `check` answers to see how quick the members are.
_ASKED = 1
# Fewer rows say nothing of settings.
_TUNABLE = 20


def evaluate(
    load: Load,
    overrides: Given,
    files: tuple[Path, ...],
    kind: Kind | Literal["auto"],
    limit: int | None,
    shot_files: tuple[Path, ...],
    n_shots: int,
    own_shots: bool,
    members: bool,
    compare: tuple[str, ...],
    samples: int | None,
    tune: bool,
    parallel: int,
    results: Path | None,
    fresh: bool,
    json_out: Path | None,
    html_out: Path | None,
    **conditions: Any,
) -> None:
    """Measure an ensemble against its members."""
    if not files and any(path and path.exists() for path in (json_out, html_out)):
        raise InputError("there is no FILE of rows; name it before --json and --html")
    written = {"json_out": json_out, "html_out": html_out, "results": results}
    outputs.refuse_outputs(written, (*files, *shot_files))
    spec = load(overrides).ensemble()
    sharing = len(spec.members) if own_shots else 0
    n_shots *= sharing or 1
    chosen = None if kind == "auto" else kind
    tasks = read_tasks(files or BUILT_IN, chosen, limit, shot_files, n_shots)
    for option, given in (("--tune", tune), ("--compare", compare), ("--no-members", not members)):
        if given and len(spec.members) < 2:
            raise InputError(f"{option} needs an ensemble, and {spec.name} is one model")
    specs = [spec, *(variant(load, overrides, spec, text) for text in compare)]
    everyone = everybody(specs)
    path = results or cache_folder() / "evaluations.jsonl"
    bytewise = any(one.fusion.space == "bytes" for one in specs)
    with (
        Results(path, fresh=fresh) as kept,
        closing(outputs.ProgressDisplay()) as progress,
        open_models(everyone, progress, parallel=parallel, bytewise=bytewise) as opened,
    ):
        of = {each.opened: model for each, model in zip(everyone.members, opened, strict=True)}
        models = {one.name: of[one.opened] for each in specs for one in each.members}
        how = Conditions(**conditions, own_shots=sharing)
        contest = Contest(models, kept, how, parallel, progress)
        try:
            tasks = [contest.scorable(task) for task in tasks]
            if tune and sum(len(task.rows) for task in tasks) < _TUNABLE:
                told = f"--tune needs {_TUNABLE} rows, better 200, and there are fewer"
                click.echo(f"eva-local: {told}: nothing is tuned", err=True)
                tune = False
            evaluation = hold(contest, specs, tasks, samples, members=members, tuned=tune)
        except KeyboardInterrupt:
            progress.close()
            click.echo(f"what is done is kept in {path}: the same command goes on", err=True)
            raise
    show = partial(outputs.print_report, "evaluate/report.txt", evaluation=evaluation, **TOLD)
    page = partial(report_page, evaluation)
    outputs.write_outputs(evaluation.as_json(), show, page, json_out, html_out)


def bench(
    load: Load, overrides: Given, json_out: Path | None, html_out: Path | None, **what: Any
) -> None:
    """Measure what an ensemble costs against its members."""
    outputs.refuse_outputs({"json_out": json_out, "html_out": html_out})
    spec = load(overrides).ensemble()
    with closing(outputs.ProgressDisplay()) as progress:
        benchmark = trial.measure(spec, **what, report=progress)
    show = partial(outputs.print_report, "bench/report.txt", benchmark=benchmark)
    page = partial(trial.report_page, benchmark)
    outputs.write_outputs(asdict(benchmark), show, page, json_out, html_out)


def variant(
    load: Load, overrides: Mapping[str, object], spec: EnsembleSpec, text: str
) -> EnsembleSpec:
    """Return the ensemble under other settings, `KEY=VALUE,…`, or another ensemble or model."""
    if "=" not in text:
        other = load().ensemble(text)
        if len(other.members) == 1 and any(other.members[0].is_of(one) for one in spec.members):
            raise InputError(f"--compare {text}: is one model; members are measured alone anyway")
        return replace(other, name=text)
    # A comma before what has no `=` is part of the value, so that weights can be listed.
    pairs = [part.partition("=") for part in re.split(",(?=[^,]*=)", text)]
    given = {key.strip().replace("-", "_"): value.strip() for key, _, value in pairs}
    refuse_unknown(
        given, ("pivot", *keys_of(FusionSettings), *THINKING_KEYS), f"--compare {text}: "
    )
    pivot = given.pop("pivot", spec.pivot)
    return replace(load({**overrides, **given}).ensemble(), name=text, pivot=pivot)


def everybody(specs: Sequence[EnsembleSpec]) -> EnsembleSpec:
    """Return an ensemble of all who must be open: each model as often as it has members in one."""
    found = list(specs[0].members)
    for spec in specs[1:]:
        for number, member in enumerate(spec.members):
            if any(member.name == one.name and not member.is_of(one) for one in found):
                raise InputError(f"--compare {spec.name}: another member is called {member.name}")
            needed = sum(member.is_of(one) for one in spec.members[: number + 1])
            if sum(member.is_of(one) for one in found) < needed:
                name = free_name(member.name, [one.name for one in found])
                found.append(replace(member, name=name))
    return EnsembleSpec(specs[0].name, tuple(found), found[0].name, sampling=specs[0].sampling)


def check(
    context: click.Context, overrides: Given, fresh: bool, save: str | None, **out: Path | None
) -> None:
    """Find out whether an ensemble is worth it."""
    outputs.refuse_outputs(out)
    spec = context.obj(overrides).ensemble()
    new = Additions(context, save, "--save")
    if save:
        # What cannot be written is told before the test.
        new.ensemble(spec)
        append(new.path, {})
    checking.refuse_too_large(spec)
    path = cache_folder() / "evaluations.jsonl"
    with Results(path, fresh=fresh) as kept, closing(outputs.ProgressDisplay()) as progress:
        found = checking.check(spec, kept, progress, _pace(spec, progress))

    def thinks(fact: checking.Fact) -> bool:
        template = read_header(fact.path).chat_template or ""
        return thinking_of(fact.name, template) is not None

    known: dict[str, Any] = {"check": found, "thinks": thinks, **TOLD}
    show = partial(outputs.print_report, "evaluate/check.txt", **known)
    page = partial(report_page, found.evaluation, found.verdict)
    outputs.write_outputs(found.as_json(), show, page, **out)
    if save:
        new.tables["ensembles", save] = new.ensemble(found.winner)
        click.echo(f"saved in {new.write(save)}", err=out["json_out"] == outputs.STDOUT)


def _pace(spec: EnsembleSpec, report: Report) -> checking.Speed | None:
    if len(spec.members) == 1:
        return None
    greedy = replace(spec, sampling=replace(spec.sampling, thinking="off"))
    off, *others = trial.measure(greedy, (), 1, 0, _ASKED, report).answers
    each = (off.step.median / share for share in off.over_each)
    return checking.Speed(
        tuple(each), off.step.median, min(one.step.median for one in (off, *others[:1]))
    )
