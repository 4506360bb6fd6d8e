"""How sure a mean over rows is: percentile bootstrap intervals, by scipy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95
# Resamples that are held in memory at once.
_BATCH = 500


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A weighted mean over rows, and what it came to in resamples of the rows.

    `low` and `high` bound the middle 95% of `resamples: (RESAMPLES,)`.
    """

    value: float
    resamples: NDArray[np.float64]

    @property
    def low(self) -> float:
        """Return the lower end of the 95% interval."""
        return float(np.quantile(self.resamples, (1 - CONFIDENCE) / 2))

    @property
    def high(self) -> float:
        """Return the upper end of the 95% interval."""
        return float(np.quantile(self.resamples, (1 + CONFIDENCE) / 2))

    def __sub__(self, other: Estimate) -> Estimate:
        """Return the difference of two contestants on the same rows, drawn by the same seed.

        That is the paired bootstrap.
        """
        return Estimate(self.value - other.value, self.resamples - other.resamples)

    def interval(self, form: str = "+.1f") -> str:
        """Return the 95% interval in words."""
        return f"{self.low:{form}} to {self.high:{form}}"


def estimate(
    values: Sequence[float], weights: Sequence[float] | None = None, seed: int = 0
) -> Estimate:
    """Estimate the weighted mean of `values: (rows,)`.

    Rows are resampled with replacement, each value together with its weight (Efron 1979). One
    row alone has no spread: its interval is the value. The same `seed` draws the same rows.
    """
    from scipy.stats import bootstrap

    marks = np.asarray(values, dtype=np.float64)
    shares = np.ones(len(marks)) if weights is None else np.asarray(weights, dtype=np.float64)
    value = float((marks * shares).sum() / shares.sum())
    if len(marks) < 2:
        return Estimate(value, np.full(RESAMPLES, value))
    found = bootstrap(
        (marks * shares, shares),
        _ratio,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Estimate(value, np.asarray(found.bootstrap_distribution))


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """Return the plain mean of estimates on different rows."""
    return Estimate(
        float(np.mean([each.value for each in estimates])),
        np.mean([each.resamples for each in estimates], axis=0),
    )


def _ratio(masses: NDArray[Any], weights: NDArray[Any], axis: int) -> NDArray[Any]:
    ratio: NDArray[Any] = masses.sum(axis=axis) / weights.sum(axis=axis)
    return ratio
