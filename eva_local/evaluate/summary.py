"""From results to the numbers of a report: scores, differences, oracle, agreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eva_local.evaluate.contest import Contestant, Entry
from eva_local.evaluate.metrics import (
    UNITS,
    chrf,
    corpus_scores,
    exact_match,
    first_lines,
    lower_is_better,
    metric_of,
    normalised,
    number_in,
    numeric_match,
)
from eva_local.evaluate.results import Result, votes_filtered
from eva_local.evaluate.rows import Metric, Row, Task
from eva_local.evaluate.significance import Estimate, estimate, mean_of

_BITS_PER_NAT = 1.4426950408889634
# Metrics by which an answer is right or wrong.
_ANSWERS: tuple[Metric, ...] = ("exact", "number", "choice")
# Members further apart than this hurt an ensemble in which they have equal votes (UniTE).
FAR_APART = 10.0


@dataclass(frozen=True, slots=True)
class Mark:
    """What a result is worth: points out of 100 or bits per byte, and how much it counts.

    `answer` is what members agree or disagree about, and `said` what a person can read of it.
    """

    value: float
    weight: float
    answer: str
    said: str


@dataclass(frozen=True, slots=True)
class Standing:
    """How one contestant did on one task.

    `ahead` is its difference to the best member, positive where it is better, and None for the
    best member itself. `change` is that of an ensemble to the one that was asked for, which
    itself has None, like members. `more` are further figures of the task, `filtered` is the
    share of votes that were dropped, `seconds` the time that a row took.
    """

    contestant: Contestant
    score: Estimate
    ahead: Estimate | None
    change: Estimate | None
    marks: tuple[Mark, ...]
    more: dict[str, float]
    filtered: float | None
    seconds: float

    @property
    def name(self) -> str:
        """Return the contestant's name."""
        return self.contestant.name


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """All contestants on one task, members first.

    `best` is the best member's name and `gap` how far behind it the worst member is, in the
    unit of `ahead`. `oracle` is the score of picking the best member for every row, `agreement`
    the share of rows to which all members gave the same answer, where answers can be the same;
    both are None without two members. `gap` and `ahead` are in points, for bits per byte in
    percent of the best member.
    """

    task: Task
    metric: Metric
    standings: tuple[Standing, ...]
    best: str
    gap: float
    oracle: float | None
    agreement: float | None

    @property
    def members(self) -> tuple[Standing, ...]:
        """Return the members' standings."""
        return tuple(standing for standing in self.standings if standing.contestant.alone)

    @property
    def ensembles(self) -> tuple[Standing, ...]:
        """Return the ensembles' standings, the one that was asked for first."""
        return tuple(standing for standing in self.standings if not standing.contestant.alone)

    @property
    def base(self) -> str:
        """Return the name of the ensemble that others are compared with; "" without others."""
        return self.ensembles[0].name if len(self.ensembles) > 1 else ""

    @property
    def unit(self) -> str:
        """Return what scores are in."""
        return UNITS[self.metric]

    @property
    def form(self) -> str:
        """Return how scores are written, as a format."""
        return ".4f" if self.metric == "bits" else ".1f"

    @property
    def step(self) -> str:
        """Return what differences are in."""
        return "%" if lower_is_better(self.metric) else "points"

    def standing(self, name: str) -> Standing:
        """Return the standing of a contestant."""
        return next(standing for standing in self.standings if standing.name == name)


def summarize(entries: Sequence[Entry], seed: int = 0) -> TaskSummary:
    """Return the numbers of one task; `entries` are all contestants' on it."""
    task = entries[0].task
    metric = metric_of(task)
    marks = {entry.contestant.name: _marks(entry, metric) for entry in entries}
    alone = [entry.contestant.name for entry in entries if entry.contestant.alone]
    scores = {
        name: estimate([mark.value for mark in each], [mark.weight for mark in each], seed)
        for name, each in marks.items()
    }
    first = next((e.contestant.name for e in entries if not e.contestant.alone), "")
    less = lower_is_better(metric)
    ranked = sorted(alone, key=lambda name: scores[name].value, reverse=not less)
    best = ranked[0] if ranked else ""
    aheads = {
        name: _ahead(each, marks[best], metric, seed) if best and name != best else None
        for name, each in marks.items()
    }
    changes = {
        name: _ahead(each, marks[first], metric, seed)
        for name, each in marks.items()
        if name not in (first, *alone)
    }
    last = aheads[ranked[-1]] if ranked else None
    together = [marks[name] for name in alone]
    return TaskSummary(
        task=task,
        metric=metric,
        standings=tuple(
            Standing(
                contestant=entry.contestant,
                score=scores[entry.contestant.name],
                ahead=aheads[entry.contestant.name],
                change=changes.get(entry.contestant.name),
                marks=marks[entry.contestant.name],
                more=_more(entry, metric),
                filtered=votes_filtered(entry.results),
                seconds=sum(result.seconds for result in entry.results) / len(entry.results),
            )
            for entry in entries
        ),
        best=best,
        gap=0.0 if last is None else -last.value,
        oracle=_oracle(together, less) if len(alone) > 1 else None,
        agreement=_agreement(together) if len(alone) > 1 and metric in _ANSWERS else None,
    )


def overall(summaries: Sequence[TaskSummary], name: str) -> Estimate | None:
    """Return the mean of a contestant's differences to the best member of each task.

    Tasks in points only; None where there are fewer than two. A best member is 0 ahead.
    """
    counted = [summary for summary in summaries if not lower_is_better(summary.metric)]
    aheads = []
    for summary in counted:
        standing = summary.standing(name)
        aheads.append(standing.ahead or estimate([0.0] * len(standing.marks)))
    return mean_of(aheads) if len(aheads) > 1 and all(one.best for one in counted) else None


def _ahead(mine: Sequence[Mark], theirs: Sequence[Mark], metric: Metric, seed: int) -> Estimate:
    """Estimate the difference row by row: the paired bootstrap."""
    weights = [mark.weight for mark in theirs]
    if not lower_is_better(metric):
        gains = [mark.value - other.value for mark, other in zip(mine, theirs, strict=True)]
        return estimate(gains, weights, seed)
    gains = [other.value - mark.value for mark, other in zip(mine, theirs, strict=True)]
    base = estimate([mark.value for mark in theirs], weights, seed)
    gain = estimate(gains, weights, seed)
    # The same seed drew the same rows for both.
    return Estimate(100 * gain.value / base.value, 100 * gain.resamples / base.resamples)


def _marks(entry: Entry, metric: Metric) -> tuple[Mark, ...]:
    pairs = zip(entry.task.rows, entry.results, strict=True)
    return tuple(mark(row, result, metric) for row, result in pairs)


def mark(row: Row, result: Result, metric: Metric) -> Mark:
    """Return what a result is worth under a metric."""
    if metric == "bits":
        (nats,), (size,) = result.log_likelihoods, result.n_bytes
        return Mark(-nats * _BITS_PER_NAT / max(size, 1), size, "", "")
    if metric == "choice":
        chosen = choice(result, per_byte=True)
        return Mark(100.0 * (chosen == row.label), 1.0, str(chosen), row.choices[chosen])
    if metric == "number":
        right, number = numeric_match(result.text, row.answers), number_in(result.text)
        said = result.text.strip()
        return Mark(100.0 * right, 1.0, said if number is None else str(number.normalize()), said)
    text = first_lines(result.text, row.answers)
    if metric == "chrF":
        return Mark(chrf(text, row.answers), 1.0, text, text)
    return Mark(100.0 * exact_match(text, row.answers), 1.0, normalised(text), text)


def choice(result: Result, *, per_byte: bool) -> int:
    """Return the place of the likeliest choice, or of the likeliest per byte."""
    sizes = result.n_bytes if per_byte else (1,) * len(result.n_bytes)
    values = [nats / max(size, 1) for nats, size in zip(result.log_likelihoods, sizes, strict=True)]
    return values.index(max(values))


def _more(entry: Entry, metric: Metric) -> dict[str, float]:
    rows, results = entry.task.rows, entry.results
    if metric == "choice":
        right = [
            choice(result, per_byte=False) == row.label
            for row, result in zip(rows, results, strict=True)
        ]
        return {"% right, raw": 100 * sum(right) / len(right)}
    if metric == "chrF":
        pairs = zip(rows, results, strict=True)
        texts = [first_lines(result.text, row.answers) for row, result in pairs]
        return corpus_scores(texts, [row.answers for row in rows], rows[0].language)
    return {}


def _oracle(members: Sequence[Sequence[Mark]], less: bool) -> float:
    sign = -1 if less else 1
    picked: list[Mark] = [
        max(marks, key=lambda mark: sign * mark.value) for marks in zip(*members, strict=True)
    ]
    return sum(mark.value * mark.weight for mark in picked) / sum(mark.weight for mark in picked)


def _agreement(members: Sequence[Sequence[Mark]]) -> float:
    rows = [len({mark.answer for mark in marks}) == 1 for marks in zip(*members, strict=True)]
    return sum(rows) / len(rows)
