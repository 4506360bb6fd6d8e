"""What a bench came to, as tables on standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from eva_local.cli.table import print_table

if TYPE_CHECKING:
    from eva_local.bench.benchmark import Benchmark, Trial
    from eva_local.bench.pace import MemberPace, Pace, Spread

_UNKNOWN = "-"


def show(benchmark: Benchmark) -> None:
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
            (one.name, str(count), _rate(one.rate), "")
            for one, count in zip(trial.reading.members, trial.prompt_tokens, strict=True)
        ]
        print_table(
            ("READING", "TOKENS", "TOKENS/S", "STEP / SUM"),
            [*members, ("ensemble", "", "", _ratio(trial.reading.over_sum))],
        )
    writing = trial.writing
    print_table(
        ("WRITING", "MS/STEP", "TOKENS/STEP", "TOKENS/S", "ONE TOKEN, MS", "ONE TOKEN, /S"),
        [
            *(_member(one) for one in writing.members),
            ("ensemble", _ms(writing.step), "", _rates(writing.rate), "", ""),
        ],
    )
    print_table(("RATIO", "MEDIAN"), [*_ratios(writing)])
    first = "" if trial.first_seconds is None else f"{trial.first_seconds:.2f} s, "
    click.echo(
        f"first token: {first}{trial.cached_first_seconds:.2f} s after a cached prompt; "
        f"peak memory {trial.peak_memory / 1e9:.2f} GB"
    )


def _member(one: MemberPace) -> tuple[str, ...]:
    return (
        one.name,
        _ms(one.alone),
        f"{one.n_tokens:.2f}",
        _rate(one.rate),
        _ms(one.single),
        _rate(one.single_rate),
    )


def _ratios(writing: Pace) -> list[tuple[str, str]]:
    return [
        ("step / sum of the members, same tokens", _ratio(writing.over_sum)),
        ("step / slowest member, same tokens", _ratio(writing.over_slowest)),
        ("step / sum of the members, one token each", _ratio(writing.over_single)),
        ("decoding in the step / alone, same tokens", _ratio(writing.inside_over_alone)),
        ("bookkeeping: share of the step without decoding", _share(writing.bookkeeping)),
    ]


def _ms(spread: Spread | None) -> str:
    if spread is None:
        return _UNKNOWN
    return f"{1000 * spread.median:.1f} ({1000 * spread.low:.1f}-{1000 * spread.high:.1f})"


def _ratio(spread: Spread | None) -> str:
    return _UNKNOWN if spread is None else f"{spread.median:.3f} ({_range(spread, '.3f')})"


def _rates(spread: Spread) -> str:
    return f"{spread.median:.1f} ({_range(spread, '.1f')})"


def _rate(rate: float | None) -> str:
    return _UNKNOWN if rate is None else f"{rate:.1f}"


def _share(spread: Spread) -> str:
    return f"{spread.median:.1%} ({_range(spread, '.1%')})"


def _range(spread: Spread, form: str) -> str:
    return f"{spread.low:{form}}-{spread.high:{form}}"
