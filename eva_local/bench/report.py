"""A bench as one HTML page with plots that needs nothing else: no network, no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from eva_local.bench.benchmark import Benchmark, Trial
from eva_local.bench.pace import Spread
from eva_local.pages.frame import member_class, report
from eva_local.pages.plots import Line, intervals


def report_page(benchmark: Benchmark) -> str:
    """Return the page, as HTML."""
    title = f"{benchmark.ensemble}: what it costs"
    body = [_head(benchmark), _ratios(benchmark), *map(_trial, benchmark.trials)]
    return report(title, "".join(body))


def _head(benchmark: Benchmark) -> str:
    facts = (
        f"pivot {benchmark.pivot} · space {benchmark.space} · {benchmark.rounds} rounds · "
        f"{benchmark.machine}, {benchmark.cores} cores · "
        f"llama-cpp-python {benchmark.llama_cpp_python}"
    )
    return (
        '<header><p class="eyebrow">eva-local bench</p>'
        f"<h1>What {escape(benchmark.ensemble)} costs against its members</h1>"
        f'<p class="facts">{escape(facts)}</p></header>'
    )


def _ratios(benchmark: Benchmark) -> str:
    """Plot what a step takes against the members' raw decoding, and the share beside it."""
    sums = [_line(_name(t), t.writing.over_sum, ".3f") for t in benchmark.trials]
    slowest = [_line(_name(t), t.writing.over_slowest, ".3f") for t in benchmark.trials]
    shares = [
        _line(_name(t), _times(t.writing.bookkeeping, 100), ".1f", "%") for t in benchmark.trials
    ]
    plots = [
        _plot("A step over the sum of its members", sums, "ratio", (1.0, "one after the other")),
        _plot("A step over its slowest member", slowest, "ratio", (1.0, "all at once")),
        _plot("Bookkeeping, beside decoding", shares, "% of a step", (0.0, "")),
    ]
    return (
        '<section><p class="facts">Dots are medians, lines quartiles. A step and the same '
        "decoding by each member alone took turns; a ratio is formed within each turn.</p>"
        f"{''.join(plots)}</section>"
    )


def _trial(trial: Trial) -> str:
    members = [
        _line(one.name, _times(one.alone, 1000), ".1f", " ms", member_class(number))
        for number, one in enumerate(trial.writing.members)
    ]
    lines = [*members, _line("ensemble", _times(trial.writing.step, 1000), ".1f", " ms")]
    title = "A step, and each member decoding the same alone"
    first = "" if trial.first_seconds is None else f"{trial.first_seconds:.2f} s, "
    facts = [
        f"{trial.writing.rate.median:.1f} tokens/s",
        f"first token {first}{trial.cached_first_seconds:.2f} s after a cached prompt",
        f"peak memory {trial.peak_memory / 1e9:.2f} GB",
    ]
    return (
        f'<section class="task"><h2>{escape(_name(trial))}</h2>'
        f'<p class="facts">{escape(" · ".join(facts))}</p>'
        f"{_plot(title, lines, 'ms', (0.0, ''))}</section>"
    )


def _plot(
    title: str, lines: Sequence[Line | None], unit: str, mark: tuple[float, str] | None = None
) -> str:
    known = [line for line in lines if line is not None]
    if not known:
        return ""
    return f"<h3>{escape(title)}</h3>{intervals(known, title, unit, mark)}"


def _line(
    label: str, spread: Spread | None, form: str, unit: str = "", css: str = "main"
) -> Line | None:
    if spread is None:
        return None
    text = f"{spread.median:{form}}{unit}"
    return Line(label, css, spread.median, spread.low, spread.high, text)


def _times(spread: Spread | None, factor: float) -> Spread | None:
    if spread is None:
        return None
    return Spread(factor * spread.median, factor * spread.low, factor * spread.high, spread.count)


def _name(trial: Trial) -> str:
    texts = "one text" if trial.texts == 1 else f"{trial.texts} texts"
    return f"{trial.context:,} tokens, {texts}"
