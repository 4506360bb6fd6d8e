"""The command `bench`: what an ensemble costs against its members."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

import click

from eva_local.cli import outputs
from eva_local.cli.options import Load, declared, setting_options
from eva_local.config.settings import keys_of
from eva_local.config.specs import FusionSettings, LoadSettings


@click.command("bench")
@declared("bench", "outputs")
@setting_options("ensemble", *keys_of(LoadSettings, FusionSettings))
@click.pass_obj
def bench(
    load: Load,
    /,
    overrides: dict[str, object],
    contexts: tuple[int, ...],
    parallel: int,
    rounds: int,
    n_asked: int,
    json_out: Path | None,
    html_out: Path | None,
) -> None:
    """Measure what an ensemble costs against its members.

    A step of the ensemble and each member's raw decoding of the same tokens take turns, so that
    what else the machine does counts for both. Shown are medians and, in brackets, quartiles.
    Questions are answered without look-ahead and with it, in turns.
    """
    from eva_local.bench.trial import measure, report_page

    outputs.refuse_outputs({"--json": json_out, "--html": html_out})
    spec = load(overrides).ensemble()
    with closing(outputs.ProgressDisplay()) as progress:
        benchmark = measure(spec, contexts, parallel, rounds, n_asked, progress)
    show = partial(outputs.print_report, "bench/report.txt", benchmark=benchmark)
    page = partial(report_page, benchmark)
    outputs.write_outputs(asdict(benchmark), show, page, json_out, html_out)
