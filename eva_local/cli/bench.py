"""The command `bench`: what an ensemble costs against its members."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eva_local.cli.options import Load, count_option, setting_options
from eva_local.cli.outputs import (
    output_options,
    print_table,
    refuse_outputs,
    shown,
    write_outputs,
)
from eva_local.cli.progress import ProgressDisplay

if TYPE_CHECKING:
    from eva_local.bench.benchmark import Benchmark, Trial
    from eva_local.bench.pace import Spread


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
@count_option("--parallel", default=8, text="Measure one text, and so many side by side.")
@count_option("--rounds", default=20, text="Steps that are measured of each.")
@output_options
@setting_options(
    *("ensemble", "n_ctx", "threads", "n_gpu_layers", "main_gpu", "tensor_split", "n_batch"),
    *("flash_attention", "kv_type", "swa_full", "batch_invariant"),
    *("space", "mapping", "combine", "filter", "candidates", "weights", "prompt_evidence", "gate"),
)
@click.pass_obj
def bench(
    load: Load,
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
    from eva_local.bench.trial import measure

    refuse_outputs({"--json": json_out, "--html": html_out})
    spec = load(overrides).ensemble()
    with closing(ProgressDisplay()) as progress:
        benchmark = measure(spec, contexts, parallel, rounds, progress)
    show, page = partial(_show, benchmark), partial(report_page, benchmark)
    write_outputs(benchmark.as_json(), show, page, json_out, html_out)


def _show(benchmark: Benchmark) -> None:
    """Print a table for each trial."""
    click.echo(
        f"{benchmark.ensemble}: pivot {benchmark.pivot}, space {benchmark.space}, "
        f"{benchmark.rounds} rounds, medians (quartiles); {benchmark.machine}, "
        f"{benchmark.cores} cores, llama-cpp-python {benchmark.llama_cpp_python}"
    )
    for trial in benchmark.trials:
        click.echo()
        _show_trial(trial)


def _show_trial(trial: Trial) -> None:
    texts = "one text" if trial.texts == 1 else f"{trial.texts} texts"
    click.echo(f"{trial.context} tokens of context, {texts}")
    if trial.reading is not None:
        members = [
            (one.name, count, shown(one.rate, ".1f"))
            for one, count in zip(trial.reading.members, trial.prompt_tokens, strict=True)
        ]
        print_table(
            ("READING", "TOKENS", "TOKENS/S", "STEP / SUM"),
            [*members, ("ensemble", "", "", _spread(trial.reading.over_sum))],
        )
    writing = trial.writing
    print_table(
        ("WRITING", "MS/STEP", "TOKENS/STEP", "TOKENS/S", "ONE TOKEN, MS", "ONE TOKEN, /S"),
        [
            *(
                (
                    *(one.name, _ms(one.alone), shown(one.n_tokens, ".2f"), shown(one.rate, ".1f")),
                    *(_ms(one.single), shown(one.single_rate, ".1f")),
                )
                for one in writing.members
            ),
            ("ensemble", _ms(writing.step), "", _spread(writing.rate, ".1f")),
        ],
    )
    bookkeeping = _spread(writing.bookkeeping, ".1%")
    print_table(
        ("RATIO", "MEDIAN"),
        [
            ("step / sum of the members, same tokens", _spread(writing.over_sum)),
            ("step / slowest member, same tokens", _spread(writing.over_slowest)),
            ("step / sum of the members, one token each", _spread(writing.over_single)),
            ("decoding in the step / alone, same tokens", _spread(writing.inside_over_alone)),
            ("bookkeeping: share of the step without decoding", bookkeeping),
        ],
    )
    first = "" if trial.first_seconds is None else f"{trial.first_seconds:.2f} s, "
    click.echo(
        f"first token: {first}{trial.cached_first_seconds:.2f} s after a cached prompt; "
        f"peak memory {trial.peak_memory / 1e9:.2f} GB"
    )


def _ms(spread: Spread | None) -> str | None:
    return _spread(spread, ".1f", 1000)


def _spread(spread: Spread | None, form: str = ".3f", times: float = 1) -> str | None:
    if spread is None:
        return None
    low, median, high = (times * value for value in (spread.low, spread.median, spread.high))
    return f"{median:{form}} ({low:{form}}-{high:{form}})"
