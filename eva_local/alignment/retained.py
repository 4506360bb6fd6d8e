"""How much of a member's probability a mapping keeps on real text."""

from __future__ import annotations

import numpy as np

from eva_local.alignment.mapping import Mapping
from eva_local.llama.model import Model, Run

# Prose, numbers, code and another language: what members are asked to write.
SAMPLE = """The lighthouse keeper climbed 214 steps every evening, and wrote the weather into a
leather-bound book: "Wind from the north-west, clear; two ships before midnight." If she walked
three miles an hour, how long did the seven miles to the harbour take her?

def mean(values):
    return sum(values) / len(values)  # fails for an empty list

Der Leuchtturm steht noch heute, aber niemand zündet mehr das Licht an.
"""


def retained_mass(model: Model, mapping: Mapping) -> float:
    """Return the share of a member's probability that the mapping carries over.

    The mean over the next-token distributions (all tokens, no cut) along `SAMPLE`; what falls
    on tokens without a row is lost.
    """
    carried = np.diff(mapping.indptr) > 0
    tokens = model.tokenizer.encode(SAMPLE.encode())
    shares: list[float] = []
    for logits in model.decode_every(Run(0, 0, tokens)):
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares += (weights[:, carried].sum(axis=1) / weights.sum(axis=1)).tolist()
    model.remove(0, 0)
    return float(np.mean(shares))
