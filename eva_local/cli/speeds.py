"""What a bench came to, as tables on standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from eva_local.cli.table import print_table

if TYPE_CHECKING:
    from eva_local.bench.outcome import Outcome, Trial
    from eva_local.bench.pace import MemberPace, Pace, Spread


def show(outcome: Outcome) -> None:
    """Print a table for each trial."""
    click.echo(
        f"{outcome.ensemble}: pivot {outcome.pivot}, space {outcome.space}, {outcome.rounds} "
        f"rounds, medians (quartiles); {outcome.machine}, {outcome.cores} cores, "
        f"llama-cpp-python {outcome.llama_cpp_python}"
    )
    for trial in outcome.trials:
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
            [*members, ("ensemble", "", "", _spread(trial.reading.over_sum))],
        )
    writing = trial.writing
    print_table(
        ("WRITING", "MS/STEP", "TOKENS/STEP", "TOKENS/S", "ONE TOKEN, MS", "ONE TOKEN, /S"),
        [
            *(_member(one) for one in writing.members),
            ("ensemble", _ms(writing.step), "", _spread(writing.rate, ".1f"), "", ""),
        ],
    )
    print_table(("RATIO", "MEDIAN"), [*_ratios(writing)])
    first = "" if trial.first_seconds is None else f"{trial.first_seconds:.2f} s, "
    click.echo(
        f"first token: {first}{trial.cached_first_seconds:.2f} s after a cached prompt; "
        f"peak memory {trial.peak_memory / 1e9:.2f} GB"
    )


def _member(one: MemberPace) -> tuple[object, ...]:
    return (
        one.name,
        _ms(one.alone),
        f"{one.n_tokens:.2f}",
        _rate(one.rate),
        _ms(one.single),
        _rate(one.single_rate),
    )


def _ratios(writing: Pace) -> list[tuple[str, str | None]]:
    return [
        ("step / sum of the members, same tokens", _spread(writing.over_sum)),
        ("step / slowest member, same tokens", _spread(writing.over_slowest)),
        ("step / sum of the members, one token each", _spread(writing.over_single)),
        ("decoding in the step / alone, same tokens", _spread(writing.inside_over_alone)),
        ("bookkeeping: share of the step without decoding", _spread(writing.bookkeeping, ".1%")),
    ]


def _ms(spread: Spread | None) -> str | None:
    return _spread(spread, ".1f", 1000)


def _rate(rate: float | None) -> str | None:
    return None if rate is None else f"{rate:.1f}"


def _spread(spread: Spread | None, form: str = ".3f", times: float = 1) -> str | None:
    if spread is None:
        return None
    low, median, high = (times * value for value in (spread.low, spread.median, spread.high))
    return f"{median:{form}} ({low:{form}}-{high:{form}})"
