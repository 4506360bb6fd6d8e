"""Votes by the names of their symbols."""

import numpy as np
from hypothesis import strategies as st

from eva_local.fusion.votes import Vote, normalised


def vote(**masses: float) -> Vote:
    """A vote from masses named a, b, c … for symbols 0, 1, 2 …."""
    symbols = np.array([ord(name) - 97 for name in masses])
    return normalised(symbols, np.array(list(masses.values()), dtype=float))


def as_dict(vote: Vote) -> dict[str, float]:
    return {chr(97 + s): round(p, 6) for s, p in zip(vote.symbols, vote.probabilities, strict=True)}


votes = st.lists(
    st.dictionaries(st.integers(0, 40), st.floats(1e-6, 1), min_size=1, max_size=12).map(
        lambda d: normalised(np.array(list(d)), np.array(list(d.values())))
    ),
    min_size=1,
    max_size=4,
)
