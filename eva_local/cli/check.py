"""The command `check`: whether an ensemble of some models is worth it."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eva_local.cli import outputs
from eva_local.cli.evaluate import show_task
from eva_local.cli.models import thinking_of
from eva_local.cli.options import Load, setting_options

if TYPE_CHECKING:
    from eva_local.api import Report
    from eva_local.config.specs import EnsembleSpec
    from eva_local.evaluate.check import Check, Pace

# Questions that are answered to see how quick the members are.
_ASKED = 1


@click.command()
@click.option("--fresh", is_flag=True, help="Do again what is kept of an earlier check.")
@outputs.output_options
@setting_options("ensemble", "n_ctx", "threads", "n_gpu_layers", "mapping", "combine", "weights")
@click.pass_obj
def check(
    load: Load,
    overrides: dict[str, object],
    fresh: bool,
    json_out: Path | None,
    html_out: Path | None,
) -> None:
    """Find out whether an ensemble is worth it.

    The members' files, vocabularies, templates and memory are looked at, their speed is measured,
    and they, and the ensemble in both spaces, do a short test of texts that come with eva-local.
    `eval` with rows of your own tells more.
    """
    from eva_local.evaluate import check as checking
    from eva_local.evaluate.evaluation import report_page
    from eva_local.evaluate.results import Results
    from eva_local.models.store import cache_folder

    outputs.refuse_outputs({"--json": json_out, "--html": html_out})
    spec = load(overrides).ensemble()
    checking.refuse_too_large(spec)
    path = cache_folder() / "evaluations.jsonl"
    with Results(path, fresh=fresh) as kept, closing(outputs.ProgressDisplay()) as progress:
        found = checking.check(spec, kept, progress, _pace(spec, progress))
    show, page = partial(_show, found), partial(report_page, found.evaluation)
    outputs.write_outputs(found.as_json(), show, page, json_out, html_out)


def _pace(spec: EnsembleSpec, report: Report) -> Pace | None:
    from eva_local.bench.trial import measure
    from eva_local.evaluate.check import Pace

    if len(spec.members) == 1:
        return None
    greedy = replace(spec, sampling=replace(spec.sampling, thinking="off"))
    off, *others = measure(greedy, (), 1, 0, _ASKED, report).answers
    each = (off.step.median / share for share in off.over_each)
    return Pace(tuple(each), off.step.median, min(one.step.median for one in (off, *others[:1])))


def _show(check: Check) -> None:
    from eva_local.evaluate.check import needed
    from eva_local.models.header import read_header

    rows = [
        (
            *(fact.name, fact.architecture, fact.quantisation or "?", f"{fact.n_vocab:,}"),
            *(f"{fact.shared:.0%}", fact.has_chat_template),
            thinking_of(fact.name, read_header(fact.path).chat_template or "") is not None,
            *(fact.takes_back, f"{(fact.weights + fact.cache) / 1e9:.2f} GB"),
        )
        for fact in check.facts
    ]
    head = ("MEMBER", "FAMILY", "FORM", "VOCABULARY", "OF THE PIVOT'S", "CHATS", "THINKS")
    outputs.print_table((*head, "TAKES BACK", "MEMORY"), rows)
    free = "" if check.free is None else f" of {check.free / 1e9:.1f} GB that are free"
    click.echo(f"pivot: {check.spec.pivot}; memory: {needed(check.facts) / 1e9:.1f} GB{free}")
    if check.pace is not None:
        each = zip(check.facts, check.pace.alone, strict=True)
        told = [f"{fact.name} {1000 * seconds:.0f}" for fact, seconds in each]
        click.echo(
            f"ms a token: {', '.join(told)}; together {1000 * check.pace.together:.0f}, with "
            f"look-ahead {1000 * check.pace.ahead:.0f}"
        )
    click.echo()
    for summary in check.evaluation.tasks:
        show_task(summary, 0)
        click.echo()
    click.echo(f"VERDICT: {check.verdict}")
