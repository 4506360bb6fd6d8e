"""How good a mapping is: twins that it was not told found again, probability that it keeps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from eva_local.alignment.mapping import Mapping, Progress
from eva_local.alignment.overlay import anchors_by_bytes, overlay, written
from eva_local.alignment.weights import OutputLayer
from eva_local.llama.model import Model, Run

# Prose, numbers, code and another language: what members are asked to write.
SAMPLE = """The lighthouse keeper climbed 214 steps every evening, and wrote the weather into a
leather-bound book: "Wind from the north-west, clear; two ships before midnight." If she walked
three miles an hour, how long did the seven miles to the harbour take her?

def mean(values):
    return sum(values) / len(values)  # fails for an empty list

Der Leuchtturm steht noch heute, aber niemand zündet mehr das Licht an.
"""
# The share of the anchors that is held out.
_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class HeldOut:
    """How many anchors were held out, and the shares found again among the 1 or 10 nearest."""

    count: int
    csls_1: float
    csls_10: float


def held_out(
    member: OutputLayer,
    pivot: OutputLayer,
    directions: int | None = None,
    progress: Progress | None = None,
) -> HeldOut:
    """Learn from all anchors but a tenth of them, drawn at random, and look for those.

    `directions` limits the width of the common space, as in `overlay`.
    Raises MappingError where there are no anchors.
    """
    tokens, symbols = anchors_by_bytes(member.vocabulary, pivot.vocabulary)
    hidden = np.random.default_rng(0).permutation(len(tokens)) < _SHARE * len(tokens)
    told = tokens[~hidden], symbols[~hidden]
    sides = written(member.vocabulary), written(pivot.vocabulary)
    space = overlay(member, pivot, *sides, told, directions)
    rows = np.searchsorted(space.tokens, tokens[hidden])
    wanted = np.searchsorted(space.symbols, symbols[hidden])
    right = space.nearest(rows, 10, -np.inf, progress).symbols == wanted[:, None]
    return HeldOut(len(rows), float(np.mean(right[:, 0])), float(np.mean(right.any(axis=1))))


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
