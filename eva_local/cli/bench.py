"""The command `bench`: what an ensemble costs against its members."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eva_local.cli import outputs
from eva_local.cli.options import Load, declared, setting_options
from eva_local.config.settings import keys_of
from eva_local.config.specs import FusionSettings, LoadSettings

if TYPE_CHECKING:
    from eva_local.bench.pace import Spread
    from eva_local.bench.trial import Answers, Benchmark, Trial


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
    show, page = partial(_show, benchmark), partial(report_page, benchmark)
    outputs.write_outputs(asdict(benchmark), show, page, json_out, html_out)


def _show(benchmark: Benchmark) -> None:
    click.echo(
        f"{benchmark.ensemble}: pivot {benchmark.pivot}, space {benchmark.space}, "
        f"{benchmark.rounds} rounds, medians (quartiles); {benchmark.machine}, "
        f"{benchmark.cores} cores, llama-cpp-python {benchmark.llama_cpp_python}"
    )
    if benchmark.answers:
        click.echo()
        _show_answers(benchmark.members, benchmark.answers)
    for trial in benchmark.trials:
        click.echo()
        _show_trial(trial)


def _show_answers(members: Sequence[str], answers: Sequence[Answers]) -> None:
    kinds = map(str.upper, answers[0].by_kind)
    rows = []
    for one in answers:
        ratios = (f"{ratio:.2f}" for ratio in (one.total, *one.by_kind.values()))
        rows.append((_how(one), one.drafter, _ms(one.step), _spread(one.over_sum), *ratios))
    head = ("ANSWERS", "DRAFTER", "MS/TOKEN", "TIME / SUM OF MEMBERS", "ALL", *kinds)
    outputs.print_table(head, rows)
    for one in answers:
        if one.drafter == "off":
            continue
        alone, each = (
            ", ".join(f"{name} {value:.2f}" for name, value in zip(members, values, strict=True))
            for values in (one.over_each, one.passes)
        )
        click.echo(
            f"{_how(one)}: time / each member alone {alone}; passes a token {each}; "
            f"{one.accepted} of {one.drafted} tokens came as drafted; where four tokens in a batch "
            "cost 1, 1.5 or 2 times one, ALL would be "
            f"{', '.join(f'{x:.2f}' for x in one.elsewhere)} (computed)"
        )


def _how(one: Answers) -> str:
    return f"temperature {one.temperature:g}" if one.temperature else "greedy"


def _show_trial(trial: Trial) -> None:
    texts = "one text" if trial.texts == 1 else f"{trial.texts} texts"
    click.echo(f"{trial.context} tokens of context, {texts}")
    writing = trial.writing
    rows = [
        (one.name, _ms(one.alone), f"{one.n_tokens:.2f}", outputs.shown(one.rate, ".1f"))
        for one in writing.members
    ]
    whole = ("ensemble", _ms(writing.step), "", _spread(writing.rate, ".1f"))
    outputs.print_table(("WRITING", "MS/STEP", "TOKENS/STEP", "TOKENS/S"), [*rows, whole])
    ratios = {
        "step / sum of the members, same tokens": _spread(writing.over_sum),
        "step / slowest member, same tokens": _spread(writing.over_slowest),
        "decoding in the step / alone, same tokens": _spread(writing.inside_over_alone),
        "bookkeeping: share of the step without decoding": _spread(writing.bookkeeping, ".1%"),
    }
    outputs.print_table(("RATIO", "MEDIAN"), ratios.items())
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
