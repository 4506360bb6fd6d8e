"""Mappings learned from output embeddings: EVA as it was published, and EVA mended.

EVA (Xu, Lu and Zhang: "Bridging the Gap between Different Vocabularies for LLM Ensemble", NAACL
2024) lays the output embeddings of two models over each other by the tokens that both have
(`overlay`), and lets each token's probability flow to its nearest neighbours (`csls`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eva_local.alignment.csls import Neighbours
from eva_local.alignment.mapping import Mapping, Progress, from_entries, twins
from eva_local.alignment.overlay import anchors_by_bytes, anchors_by_spelling, overlay, written
from eva_local.alignment.vecmap import Ids
from eva_local.alignment.weights import OutputLayer

Weights = NDArray[np.float64]

# EVA's filters against noise (Xu et al. 2024, section 3.1; the values are those of its code): of
# so many neighbours those that score so much, and none where more than five score alike.
_NEIGHBOURS = 10
_FLOOR = 0.1
_FLAT_COUNT = 5
_FLAT = 0.01
# `eva` keeps the directions in which the anchors agree best: the others cost time and are noise.
# Held-out anchors at rank 1 with 256, 384 and all 576: 95.5, 95.8, 95.6% (SmolLM2 to Gemma).
_DIRECTIONS = 384
# What the files of the two methods record: with other values they are stale.
PAPER_PARAMETERS = {
    "neighbours": _NEIGHBOURS,
    "floor": _FLOOR,
    "flat_count": _FLAT_COUNT,
    "flat": _FLAT,
}
PARAMETERS = {**PAPER_PARAMETERS, "directions": _DIRECTIONS}


def eva(member: OutputLayer, pivot: OutputLayer, progress: Progress | None = None) -> Mapping:
    """Map each token to its twin, and those without one to their nearest symbols by CSLS.

    EVA mended: twins are found by bytes and keep all of their mass, so that only tokens without
    a twin are looked up; tokens that stand for no text take no part at all.
    Raises MappingError where the vocabularies have no token in common.
    """
    sides = member.vocabulary, pivot.vocabulary
    twin, anchors = twins(*sides), anchors_by_bytes(*sides)
    tokens, symbols = np.flatnonzero(member.vocabulary.speakable), written(pivot.vocabulary)
    space = overlay(member, pivot, tokens, symbols, anchors, _DIRECTIONS)
    alone = np.flatnonzero(twin[space.tokens] < 0)
    rows, symbols, weights = trusted(space.nearest(alone, _NEIGHBOURS, _FLOOR, progress))
    paired = np.flatnonzero(twin >= 0)
    rows = np.concatenate([paired, space.tokens[alone[rows]]])
    symbols = np.concatenate([twin[paired], space.symbols[symbols]])
    weights = np.concatenate([np.ones(len(paired)), weights])
    return from_entries("eva", *sides, rows, symbols, weights, parameters=PARAMETERS)


def eva_paper(member: OutputLayer, pivot: OutputLayer, progress: Progress | None = None) -> Mapping:
    """Map each token to its nearest symbols by CSLS, as EVA was published.

    Anchors are tokens that the two vocabulary files spell equally, whatever bytes they stand
    for: between a SentencePiece and a byte-level vocabulary no word with a space in front is
    one. They are looked up like all others, among all rows of the pivot's matrix.

    The published code differs in two things. It maps ids 0 to 2 onto themselves, taking those
    for the special tokens; here special tokens are known by their attributes, and get nothing.
    Its matrix holds the scores as they are, and the projected distribution is not scaled again,
    so that a token with many good neighbours counts for more; here a row sums to 1.

    Raises MappingError where no token is spelled alike.
    """
    sides = member.vocabulary, pivot.vocabulary
    anchors = anchors_by_spelling(member.spellings, pivot.spellings)
    tokens, symbols = (np.arange(len(vocabulary)) for vocabulary in sides)
    space = overlay(member, pivot, tokens, symbols, anchors)
    found = space.nearest(space.tokens, _NEIGHBOURS, _FLOOR, progress)
    found.scores[~pivot.vocabulary.speakable[found.symbols]] = -np.inf
    rows, symbols, weights = trusted(found)
    return from_entries("eva-paper", *sides, rows, symbols, weights, parameters=PAPER_PARAMETERS)


def trusted(found: Neighbours) -> tuple[Ids, Ids, Weights]:
    """Return (row, symbol, score) of the neighbours that pass EVA's filters.

    Scores under 0.1 are dropped. A row of which more than 5 are left is dropped where their
    standard deviation is at most 0.01: who is equally near to many means nothing.
    """
    scores = found.scores.astype(np.float64)
    good = scores >= _FLOOR
    deviation = np.ma.masked_array(scores, ~good).std(axis=1).filled(0)
    good &= ~((good.sum(axis=1) > _FLAT_COUNT) & (deviation <= _FLAT))[:, None]
    rows, columns = np.nonzero(good)
    return rows, found.symbols[rows, columns], scores[rows, columns]
