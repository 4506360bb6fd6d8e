"""What a bench came to, as tables on standard output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from eva_local.cli.table import print_table

if TYPE_CHECKING:
    from eva_local.bench.naive import Comparison
    from eva_local.bench.outcome import Outcome, Trial
    from eva_local.bench.pace import MemberPace, Pace, Spread


def show(outcome: Outcome) -> None:
    """Print a table for each trial, and the steps without caches."""
    click.echo(
        f"{outcome.ensemble}: pivot {outcome.pivot}, space {outcome.space}, {outcome.rounds} "
        f"rounds, medians (quartiles); {outcome.machine}, {outcome.cores} cores, "
        f"llama-cpp-python {outcome.llama_cpp_python}"
    )
    for trial in outcome.trials:
        click.echo()
        _show_trial(trial)
    if outcome.naive is not None:
        click.echo()
        _show_naive(outcome.naive)


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


def _show_naive(naive: Comparison) -> None:
    tokens = ", ".join(map(str, naive.prompt_tokens))
    click.echo(f"against naive: {naive.steps} steps after {tokens} tokens")
    print_table(
        ("", "S/STEP"),
        [
            ("whole text read again by every member", _spread(naive.naive)),
            ("with caches", _spread(naive.ours)),
        ],
    )
    click.echo(f"naive / cached: {_spread(naive.times, '.0f')}")
    if naive.difference is None or naive.same_choice is None:
        click.echo("no step had the same tokens in both ways, so no distribution was compared")
    else:
        same = "the same" if naive.same_choice else "not always the same"
        click.echo(
            f"fused probabilities in {naive.n_compared} steps of the same tokens differ by at "
            f"most {naive.difference:.1e}; the likeliest symbol is {same}"
        )
    if naive.difference_alike is not None:
        click.echo(
            f"read in the same batches as with caches, they differ by {naive.difference_alike:.1e}"
        )


def _ms(spread: Spread | None) -> str | None:
    return _spread(spread, ".1f", 1000)


def _rate(rate: float | None) -> str | None:
    return None if rate is None else f"{rate:.1f}"


def _spread(spread: Spread | None, form: str = ".3f", times: float = 1) -> str | None:
    if spread is None:
        return None
    low, median, high = (times * value for value in (spread.low, spread.median, spread.high))
    return f"{median:{form}} ({low:{form}}-{high:{form}})"
