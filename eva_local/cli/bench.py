"""The command `bench`: what an ensemble costs against its members."""

from __future__ import annotations

from pathlib import Path

import click

from eva_local.cli.outputs import output_options, refuse_outputs, write_outputs
from eva_local.cli.session import Session, pass_session, setting_options


@click.command("bench")
@click.option(
    "--context",
    "contexts",
    type=click.IntRange(1),
    multiple=True,
    default=(100, 3000),
    show_default=True,
    help="Tokens of text before what is measured, as the pivot counts them. Repeatable.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Measure one text, and so many side by side.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Steps that are measured of each.",
)
@output_options
@setting_options(
    *("ensemble", "n_ctx", "threads", "n_gpu_layers", "main_gpu", "tensor_split", "n_batch"),
    *("flash_attention", "kv_type", "swa_full", "batch_invariant"),
    *("space", "mapping", "combine", "filter", "candidates", "weights", "prompt_evidence", "gate"),
)
@pass_session
def bench(
    session: Session,
    /,
    overrides: dict[str, object],
    contexts: tuple[int, ...],
    parallel: int,
    rounds: int,
    json_out: Path | None,
    html_out: Path | None,
) -> None:
    """Measure what an ensemble costs against its members.

    A step of the ensemble and each member's raw decoding of the same tokens take turns, so that
    what else the machine does counts for both. Shown are medians and, in brackets, quartiles.
    """
    from eva_local.bench.report import report_page
    from eva_local.bench.trial import Plan, measure
    from eva_local.cli.progress import progress_shown
    from eva_local.cli.speeds import show

    refuse_outputs({"--json": json_out, "--html": html_out})
    spec = session.load(overrides).ensemble()
    plan = Plan(tuple(sorted(set(contexts))), parallel, rounds)
    with progress_shown() as progress:
        outcome = measure(spec, plan, progress)
    write_outputs(outcome, show, report_page, json_out, html_out)
