"""Pure functions that draw a symbol from a fused distribution."""

from __future__ import annotations

import numpy as np

from eva_local.fusion import Floats, Vote
from eva_local.records import Sampling


def choose(vote: Vote, sampling: Sampling, generator: np.random.Generator) -> int:
    """Return a symbol: the likeliest if greedy, else drawn after the cuts.

    The order is llama.cpp's: top-k, top-p, min-p, temperature. Ties go to the lower symbol.
    """
    if sampling.temperature == 0:
        return int(vote.symbols[np.argmax(vote.probabilities)])
    order = np.argsort(-vote.probabilities, kind="stable")
    probabilities = vote.probabilities[order]
    probabilities = keep_top_k(probabilities, sampling.top_k)
    probabilities = keep_top_p(probabilities, sampling.top_p)
    probabilities = keep_min_p(probabilities, sampling.min_p)
    probabilities = heat(probabilities, sampling.temperature)
    return int(vote.symbols[order[draw(probabilities, generator)]])


def keep_top_k(probabilities: Floats, count: int) -> Floats:
    """Keep the first `count` of descending probabilities (0: all), scaled to sum 1."""
    return _scaled(probabilities[:count] if count else probabilities)


def keep_top_p(probabilities: Floats, mass: float) -> Floats:
    """Keep the shortest beginning of descending probabilities that holds at least `mass`."""
    if mass >= 1:
        return probabilities
    enough = int(np.searchsorted(np.cumsum(probabilities), mass)) + 1
    return _scaled(probabilities[:enough])


def keep_min_p(probabilities: Floats, share: float) -> Floats:
    """Keep descending probabilities that are at least `share` of the highest."""
    return _scaled(probabilities[probabilities >= share * probabilities[0]])


def heat(probabilities: Floats, temperature: float) -> Floats:
    """Return p^(1/temperature), scaled to sum 1."""
    logs = np.log(probabilities) / temperature
    return _scaled(np.exp(logs - logs.max()))


def draw(probabilities: Floats, generator: np.random.Generator) -> int:
    """Draw an index in proportion to `probabilities`, with one number of the generator."""
    sums = np.cumsum(probabilities)
    drawn = int(np.searchsorted(sums, generator.random() * sums[-1], side="right"))
    return min(drawn, len(sums) - 1)


def _scaled(probabilities: Floats) -> Floats:
    scaled: Floats = probabilities / probabilities.sum()
    return scaled
