"""From results to the numbers of a report: scores, differences, and how sure they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from eva_local.config.specs import EnsembleSpec
from eva_local.evaluate import metrics
from eva_local.evaluate.contest import Entry
from eva_local.evaluate.rows import Metric, Result, Task, TaskRow, votes_filtered

_BITS_PER_NAT = 1.4426950408889634
RESAMPLES = 10_000
CONFIDENCE = 0.95
# The middle 95% of a normal distribution ends at so many deviations.
_NORMAL = 1.96


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A weighted mean over rows, and what it came to in resamples of the rows.

    `low` and `high` bound the middle 95% of `resamples: (RESAMPLES,)`. A difference of two
    contestants on the same rows, drawn by the same seed, is the paired bootstrap. Where all of
    `n_alike` rows are right, or all wrong, resamples say nothing: there it is Wilson's (1927).
    """

    value: float
    resamples: NDArray[np.float64]
    n_alike: int = 0

    @property
    def low(self) -> float:
        """The lower end of the 95% interval."""
        if self.n_alike:
            return self.value * self.n_alike / (self.n_alike + _NORMAL**2)
        return float(np.quantile(self.resamples, (1 - CONFIDENCE) / 2))

    @property
    def high(self) -> float:
        """The upper end of the 95% interval."""
        if self.n_alike:
            return max(self.value, 100 * _NORMAL**2 / (self.n_alike + _NORMAL**2))
        return float(np.quantile(self.resamples, (1 + CONFIDENCE) / 2))

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value - other.value, self.resamples - other.resamples)

    def interval(self, form: str = "+.1f") -> str:
        """Return the 95% interval in words."""
        return f"{self.low:{form}} to {self.high:{form}}"


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

    spec: EnsembleSpec
    score: Estimate
    marks: tuple[Mark, ...]
    more: dict[str, float]
    filtered: float | None
    seconds: float
    ahead: Estimate | None = None
    change: Estimate | None = None

    @property
    def name(self) -> str:
        """The contestant's name."""
        return self.spec.name

    @property
    def alone(self) -> bool:
        """Whether the contestant is one model."""
        return len(self.spec.members) == 1


@dataclass(frozen=True, slots=True)
class TaskSummary:
    """All contestants on one task, members first.

    `best` is the best member's name. `oracle` is the score of picking the best member for every
    row, `agreement` the share of rows to which all members gave the same answer, where answers can
    be the same; both are None without two members. Differences are in points, for bits per byte in
    percent of the best member. Of those who are one model, the first `n_members` are members, and
    the others rivals: what the same time may buy otherwise.
    """

    task: Task
    metric: Metric
    standings: tuple[Standing, ...]
    best: str
    oracle: float | None
    agreement: float | None
    n_members: int | None

    @property
    def members(self) -> tuple[Standing, ...]:
        """The members' standings."""
        return tuple(one for one in self.standings[: self.n_members] if one.alone)

    @property
    def ensembles(self) -> tuple[Standing, ...]:
        """The ensembles' standings, the one that was asked for first."""
        return tuple(standing for standing in self.standings if not standing.alone)

    @property
    def gap(self) -> float:
        """How far behind the best member the worst one is."""
        return max((-one.ahead.value for one in self.members if one.ahead), default=0.0)

    @property
    def base(self) -> str:
        """The name of the ensemble that others are compared with; "" without others."""
        return self.ensembles[0].name if len(self.ensembles) > 1 else ""

    @property
    def scale(self) -> metrics.Scale:
        """What scores are in."""
        return metrics.SCALES[self.metric]

    def standing(self, name: str) -> Standing:
        """Return the standing of a contestant."""
        return next(standing for standing in self.standings if standing.name == name)


def summarize(entries: Sequence[Entry], seed: int = 0, n_members: int | None = None) -> TaskSummary:
    """Return the numbers of one task; `entries` are all contestants' on it, members' first."""
    task = entries[0].task
    metric = metrics.metric_of(task)
    pick = min if metric == "bits" else max
    found = [_standing(entry, metric, seed) for entry in entries]
    members = [one for one in found[:n_members] if one.alone]
    best = pick(members, key=lambda one: one.score.value, default=None)
    base = next((one for one in found if not one.alone), None)
    oracle, agreement = None, None
    if len(members) > 1:
        rows = list(zip(*(one.marks for one in members), strict=True))
        picked = [pick(mark.value for mark in row) for row in rows]
        oracle = float(np.average(picked, weights=[row[0].weight for row in rows]))
        if metrics.SCALES[metric].right_or_wrong:
            agreement = float(np.mean([len({mark.answer for mark in row}) == 1 for row in rows]))
    standings = []
    for one in found:
        change = None if one.alone else _ahead(one, base, metric)
        standings.append(replace(one, ahead=_ahead(one, best, metric), change=change))
    name = best.name if best else ""
    return TaskSummary(task, metric, tuple(standings), name, oracle, agreement, n_members)


def _standing(entry: Entry, metric: Metric, seed: int) -> Standing:
    samples = entry.samples or [(result,) for result in entry.results]
    rows = [
        (row, _voted(row, drawn, metric))
        for row, drawn in zip(entry.task.rows, samples, strict=True)
    ]
    marks = tuple(mark(row, result, metric) for row, result in rows)
    more = {}
    if metric == "choice":
        right = [choice(result, per_byte=False) == row.label for row, result in rows]
        more = {"% right, raw": 100 * sum(right) / len(right)}
    if metric == "chrF":
        texts = [metrics.first_lines(result.text, row.answers) for row, result in rows]
        more = metrics.corpus_scores(texts, [row.answers for row, _ in rows], rows[0][0].language)
    score = estimate([one.value for one in marks], [one.weight for one in marks], seed)
    if metrics.SCALES[metric].right_or_wrong and len({one.value for one in marks}) == 1:
        score = replace(score, n_alike=len(marks))
    seconds = sum(result.seconds for drawn in samples for result in drawn) / len(samples)
    return Standing(entry.spec, score, marks, more, votes_filtered(entry.results), seconds)


def _voted(row: TaskRow, samples: Sequence[Result], metric: Metric) -> Result:
    """Return the first sample with the answer that most samples have (Wang et al. 2023)."""
    if len(samples) == 1:
        return samples[0]
    answers = [mark(row, each, metric).answer for each in samples]
    return samples[max(range(len(answers)), key=lambda n: answers.count(answers[n]))]


def _ahead(mine: Standing, theirs: Standing | None, metric: Metric) -> Estimate | None:
    if theirs is None or mine is theirs:
        return None
    return lead(mine.score, theirs.score, metric)


def lead(mine: Estimate, theirs: Estimate, metric: Metric) -> Estimate:
    """Return how much better a score is than another: in points, or percent of the other's bits."""
    if metric != "bits":
        return mine - theirs
    less = theirs - mine
    return Estimate(100 * less.value / theirs.value, 100 * less.resamples / theirs.resamples)


def mark(row: TaskRow, result: Result, metric: Metric) -> Mark:
    """Return what a result is worth under a metric."""
    if metric == "bits":
        (nats,), (size,) = result.log_likelihoods, result.n_bytes
        return Mark(-nats * _BITS_PER_NAT / max(size, 1), size, "", "")
    if metric == "choice":
        chosen = choice(result, per_byte=True)
        return Mark(100.0 * (chosen == row.label), 1.0, str(chosen), row.choices[chosen])
    if metric == "number":
        right, said = metrics.numeric_match(result.text, row.answers), result.text.strip()
        number = metrics.number_in(said)
        return Mark(100.0 * right, 1.0, said if number is None else str(number.normalize()), said)
    text = metrics.first_lines(result.text, row.answers)
    if metric == "chrF":
        return Mark(metrics.chrf(text, row.answers), 1.0, text, text)
    return Mark(100.0 * metrics.exact_match(text, row.answers), 1.0, metrics.normalised(text), text)


def choice(result: Result, *, per_byte: bool) -> int:
    """Return the place of the likeliest choice, or of the likeliest per byte."""
    sizes = np.maximum(result.n_bytes, 1) if per_byte else 1
    return int(np.argmax(np.array(result.log_likelihoods) / sizes))


def estimate(
    values: Sequence[float], weights: Sequence[float] | None = None, seed: int = 0
) -> Estimate:
    """Estimate the weighted mean of `values: (rows,)`.

    Rows are resampled with replacement, each value together with its weight (Efron 1979). One
    row alone has no spread: its interval is the value. The same `seed` draws the same rows.
    """
    marks = np.asarray(values, dtype=np.float64)
    shares = np.ones(len(marks)) if weights is None else np.asarray(weights, dtype=np.float64)
    generator = np.random.default_rng(seed)
    draws = (generator.integers(len(marks), size=len(marks)) for _ in range(RESAMPLES))
    means = [np.average(marks[rows], weights=shares[rows]) for rows in draws]
    return Estimate(float(np.average(marks, weights=shares)), np.array(means))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Return the plain mean of estimates on different rows."""
    value = float(np.mean([each.value for each in estimates]))
    return Estimate(value, np.mean([each.resamples for each in estimates], axis=0))
