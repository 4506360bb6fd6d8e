"""A bench as one HTML page with plots that needs nothing else: no network, no script."""

from collections.abc import Iterator

from eva_local.bench.pace import Spread
from eva_local.bench.trial import Answers, Benchmark, Trial
from eva_local.pages.frame import Line, member_class, report


def report_page(benchmark: Benchmark) -> str:
    """Return the page, as HTML."""
    named = [(_name(trial), trial.writing) for trial in benchmark.trials]
    return report(
        "bench/report.html",
        title=f"{benchmark.ensemble}: what it costs",
        benchmark=benchmark,
        answers=[x for one in benchmark.answers for x in _line(_how(one), one.over_sum, "{:.2f}")],
        sums=[x for name, pace in named for x in _line(name, pace.over_sum, "{:.3f}")],
        slowest=[x for name, pace in named for x in _line(name, pace.over_slowest, "{:.3f}")],
        shares=[x for name, pace in named for x in _line(name, pace.bookkeeping, "{:.1f}%", 100)],
        trials=[(_name(trial), trial, list(_steps(trial))) for trial in benchmark.trials],
    )


def _how(one: Answers) -> str:
    return f"{one.drafter}, temperature {one.temperature:g}"


def _name(trial: Trial) -> str:
    texts = "one text" if trial.texts == 1 else f"{trial.texts} texts"
    return f"{trial.context:,} tokens, {texts}"


def _steps(trial: Trial) -> Iterator[Line]:
    for number, one in enumerate(trial.writing.members):
        yield from _line(one.name, one.alone, "{:.1f} ms", 1000, member_class(number))
    yield from _line("ensemble", trial.writing.step, "{:.1f} ms", 1000)


def _line(
    label: str, spread: Spread | None, form: str, factor: float = 1, css: str = "main"
) -> Iterator[Line]:
    if spread is not None:
        median, low, high = (factor * x for x in (spread.median, spread.low, spread.high))
        yield Line(label, css, median, low, high, form.format(median))
