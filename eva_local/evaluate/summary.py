"""From results to the numbers of a report: scores, differences, oracle, agreement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

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
from eva_local.evaluate.rows import Metric, Task, TaskRow
from eva_local.evaluate.significance import Estimate, estimate

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

    `best` is the best member's name. `oracle` is the score of picking the best member for every
    row, `agreement` the share of rows to which all members gave the same answer, where answers can
    be the same; both are None without two members. Differences are in points, for bits per byte in
    percent of the best member.
    """

    task: Task
    metric: Metric
    standings: tuple[Standing, ...]
    best: str
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
    def gap(self) -> float:
        """Return how far behind the best member the worst one is."""
        return max((-one.ahead.value for one in self.members if one.ahead), default=0.0)

    @property
    def base(self) -> str:
        """Return the name of the ensemble that others are compared with; "" without others."""
        return self.ensembles[0].name if len(self.ensembles) > 1 else ""

    @property
    def right_or_wrong(self) -> bool:
        """Return whether an answer is one or the other, and nothing between."""
        return self.metric in _ANSWERS

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
    metric = metric_of(entries[0].task)
    found = [_standing(entry, metric, seed) for entry in entries]
    members = [one for one in found if one.contestant.alone]
    base = next((one for one in found if not one.contestant.alone), None)
    pick = min if lower_is_better(metric) else max
    best = pick(members, key=lambda one: one.score.value, default=None)
    standings = tuple(
        replace(
            one,
            ahead=_ahead(one, best, metric),
            change=None if one.contestant.alone else _ahead(one, base, metric),
        )
        for one in found
    )
    return TaskSummary(
        task=entries[0].task,
        metric=metric,
        standings=standings,
        best=best.name if best else "",
        oracle=_oracle(members, pick) if len(members) > 1 else None,
        agreement=_agreement(members) if len(members) > 1 and metric in _ANSWERS else None,
    )


def _standing(entry: Entry, metric: Metric, seed: int) -> Standing:
    """Return how a contestant did, held against nobody yet."""
    rows = zip(entry.task.rows, entry.results, strict=True)
    marks = tuple(mark(row, result, metric) for row, result in rows)
    return Standing(
        contestant=entry.contestant,
        score=estimate([mark.value for mark in marks], [mark.weight for mark in marks], seed),
        ahead=None,
        change=None,
        marks=marks,
        more=_more(entry, metric),
        filtered=votes_filtered(entry.results),
        seconds=sum(result.seconds for result in entry.results) / len(entry.results),
    )


def _ahead(mine: Standing, theirs: Standing | None, metric: Metric) -> Estimate | None:
    """Return how much better one is than another; None against oneself or nobody."""
    if theirs is None or mine is theirs:
        return None
    if not lower_is_better(metric):
        return mine.score - theirs.score
    less, base = theirs.score - mine.score, theirs.score
    return Estimate(100 * less.value / base.value, 100 * less.resamples / base.resamples)


def mark(row: TaskRow, result: Result, metric: Metric) -> Mark:
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
    sizes = np.maximum(result.n_bytes, 1) if per_byte else 1
    return int(np.argmax(np.array(result.log_likelihoods) / sizes))


def _more(entry: Entry, metric: Metric) -> dict[str, float]:
    rows = list(zip(entry.task.rows, entry.results, strict=True))
    if metric == "choice":
        right = [choice(result, per_byte=False) == row.label for row, result in rows]
        return {"% right, raw": 100 * sum(right) / len(right)}
    if metric == "chrF":
        texts = [first_lines(result.text, row.answers) for row, result in rows]
        return corpus_scores(texts, [row.answers for row, _ in rows], rows[0][0].language)
    return {}


def _oracle(members: Sequence[Standing], pick: Callable[[Iterable[float]], float]) -> float:
    rows = list(zip(*(one.marks for one in members), strict=True))
    weights = [row[0].weight for row in rows]
    picked = [pick(mark.value for mark in row) for row in rows]
    return float(np.average(picked, weights=weights))


def _agreement(members: Sequence[Standing]) -> float:
    rows = list(zip(*(one.marks for one in members), strict=True))
    return sum(len({mark.answer for mark in row}) == 1 for row in rows) / len(rows)
