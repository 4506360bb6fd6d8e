"""How good a mapping is: twins that it was not told found again, probability that it keeps.

`python -m tools.mapping_quality [ENSEMBLE [METHOD]]` prints for each member its anchors (tokens
with equal bytes), the share of its vocabulary that is mapped, what the mapping keeps of the
member's probability on a sample of text, and of a method with embeddings, how many anchors that
were held out are found again at rank 1 and 10. A mapping that is missing is built.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from eva_local.alignment.embedding import (
    OutputLayer,
    anchors_by_bytes,
    output_layer,
    overlay,
    written,
)
from eva_local.alignment.library import BY_EMBEDDING, find_or_build, mapping_folders
from eva_local.alignment.mapping import Mapping, twins
from eva_local.config.config import load_config
from eva_local.llama.model import Model, Run, decode_every
from eva_local.opening import open_models

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


def held_out(member: OutputLayer, pivot: OutputLayer, directions: int | None = None) -> HeldOut:
    """Learn from all anchors but a tenth of them, drawn at random, and look for those.

    `directions` limits the width of the common space, as in `overlay`.
    Raises MappingError where there are no anchors.
    """
    tokens, symbols = anchors_by_bytes(member.vocabulary, pivot.vocabulary)
    hidden = np.random.default_rng(0).permutation(len(tokens)) < _SHARE * len(tokens)
    told = tokens[~hidden], symbols[~hidden]
    sides = written(member.vocabulary), written(pivot.vocabulary)
    look_up = overlay(member, pivot, *sides, told, directions)
    rows = np.searchsorted(sides[0], tokens[hidden])
    wanted = np.searchsorted(sides[1], symbols[hidden])
    right = look_up(rows, 10, -np.inf).symbols == wanted[:, None]
    return HeldOut(len(rows), float(np.mean(right[:, 0])), float(np.mean(right.any(axis=1))))


def retained_mass(model: Model, mapping: Mapping) -> float:
    """Return the share of a member's probability that the mapping carries over.

    The mean over the next-token distributions (all tokens, no cut) along `SAMPLE`; what falls
    on tokens without a row is lost.
    """
    carried = np.diff(mapping.indptr) > 0
    tokens = model.tokenizer.encode(SAMPLE.encode())
    shares: list[float] = []
    for logits in decode_every(model, Run(0, 0, tokens)):
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares += (weights[:, carried].sum(axis=1) / weights.sum(axis=1)).tolist()
    model.remove(0, 0)
    return float(np.mean(shares))


def main(name: str | None = None, method: str = "surface-refined") -> None:
    """Print a line for each member that needs a mapping."""
    spec = load_config().ensemble(name)
    with open_models(spec) as models:
        pivot = models[spec.pivot_index]
        for member, model in zip(spec.members, models, strict=True):
            if model.vocabulary.fingerprint == pivot.vocabulary.fingerprint:
                continue
            mapping = find_or_build(method, model, pivot, mapping_folders())
            kept = retained_mass(model, mapping)
            anchors = int((twins(model.vocabulary, pivot.vocabulary) >= 0).sum())
            mapped = np.mean(np.diff(mapping.indptr) > 0)
            print(f"{member.name} to {spec.pivot}, {method}:")
            print(f"  {anchors} anchors, {mapped:.1%} mapped, mass kept {kept:.2%}")
            if method in BY_EMBEDDING:
                sides = output_layer(model), output_layer(pivot)
                found = held_out(*sides, BY_EMBEDDING[method].get("directions"))
                ranks = f"rank 1 {found.csls_1:.1%}, rank 10 {found.csls_10:.1%}"
                print(f"  {found.count} anchors held out: {ranks}")


if __name__ == "__main__":
    main(*sys.argv[1:])
