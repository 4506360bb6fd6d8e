"""A bench as one HTML page with plots that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Iterator

from eva_local.bench.benchmark import Benchmark, Trial
from eva_local.bench.pace import Spread
from eva_local.pages.frame import member_class, report
from eva_local.pages.plots import Line, intervals


def report_page(benchmark: Benchmark) -> str:
    """Return the page, as HTML."""
    named = [(_name(trial), trial.writing) for trial in benchmark.trials]
    return report(
        "bench/report.html",
        title=f"{benchmark.ensemble}: what it costs",
        benchmark=benchmark,
        sums=[x for name, pace in named for x in _line(name, pace.over_sum, "{:.3f}")],
        slowest=[x for name, pace in named for x in _line(name, pace.over_slowest, "{:.3f}")],
        shares=[x for name, pace in named for x in _line(name, pace.bookkeeping, "{:.1f}%", 100)],
        trials=[(_name(trial), trial, list(_steps(trial))) for trial in benchmark.trials],
        intervals=intervals,
    )


def _name(trial: Trial) -> str:
    texts = "one text" if trial.texts == 1 else f"{trial.texts} texts"
    return f"{trial.context:,} tokens, {texts}"


def _steps(trial: Trial) -> Iterator[Line]:
    """Yield a line for each member, decoding alone, and one for the ensemble's step."""
    for number, one in enumerate(trial.writing.members):
        yield from _line(one.name, one.alone, "{:.1f} ms", 1000, member_class(number))
    yield from _line("ensemble", trial.writing.step, "{:.1f} ms", 1000)


def _line(
    label: str, spread: Spread | None, form: str, factor: float = 1, css: str = "main"
) -> Iterator[Line]:
    """Yield a line for what was measured."""
    if spread is not None:
        median, low, high = (factor * x for x in (spread.median, spread.low, spread.high))
        yield Line(label, css, median, low, high, form.format(median))
