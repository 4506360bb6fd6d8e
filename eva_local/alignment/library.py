"""Mappings of pairs of members: how they are learned, and where they are found or built and kept.

EVA (Xu, Lu and Zhang: "Bridging the Gap between Different Vocabularies for LLM Ensemble", NAACL
2024) lays the output embeddings of two models over each other by the tokens that both have, and
lets each token's probability flow to its nearest neighbours; here are it and EVA mended.
"""

import logging
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Table
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eva_local.alignment import embedding, mapping
from eva_local.alignment.embedding import Ids, OutputLayer
from eva_local.alignment.mapping import REMEDY, Mapping, Progress, from_entries, twins
from eva_local.config.config import shipped
from eva_local.errors import MappingError
from eva_local.llama.model import Model
from eva_local.models.store import cache_folder

log = logging.getLogger("eva_local")

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
PAPER_PARAMETERS = {"neighbours": _NEIGHBOURS, "floor": _FLOOR}
PAPER_PARAMETERS |= {"flat_count": _FLAT_COUNT, "flat": _FLAT}
PARAMETERS = {**PAPER_PARAMETERS, "directions": _DIRECTIONS}
# Under this share of pieces in common a pair of members hardly understands each other.
_FEW_TWINS = 0.05


def eva(member: OutputLayer, pivot: OutputLayer, progress: Progress | None = None) -> Mapping:
    """Map each token to its twin, and those without one to their nearest symbols by CSLS.

    EVA mended: twins are found by bytes and keep all of their mass, so that only tokens without
    a twin are looked up; tokens that stand for no text take no part at all.
    Raises MappingError where the vocabularies have no token in common.
    """
    sides = member.vocabulary, pivot.vocabulary
    twin, anchors = twins(*sides), embedding.anchors_by_bytes(*sides)
    tokens, symbols = (
        np.flatnonzero(member.vocabulary.speakable),
        embedding.written(pivot.vocabulary),
    )
    look_up = embedding.overlay(member, pivot, tokens, symbols, anchors, _DIRECTIONS)
    alone = np.flatnonzero(twin[tokens] < 0)
    rows, found, weights = trusted(look_up(alone, _NEIGHBOURS, _FLOOR, progress=progress))
    paired = np.flatnonzero(twin >= 0)
    rows = np.concatenate([paired, tokens[alone[rows]]])
    symbols = np.concatenate([twin[paired], symbols[found]])
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
    anchors = embedding.anchors_by_spelling(member.spellings, pivot.spellings)
    tokens, symbols = (np.arange(len(vocabulary)) for vocabulary in sides)
    look_up = embedding.overlay(member, pivot, tokens, symbols, anchors)
    found = look_up(tokens, _NEIGHBOURS, _FLOOR, progress=progress)
    found.scores[~pivot.vocabulary.speakable[found.symbols]] = -np.inf
    rows, symbols, weights = trusted(found)
    return from_entries("eva-paper", *sides, rows, symbols, weights, parameters=PAPER_PARAMETERS)


def trusted(found: embedding.Neighbours) -> tuple[Ids, Ids, NDArray[np.float64]]:
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


# From the tokenizers of a member and the pivot, or their output layers: see `BY_EMBEDDING`.
METHODS: Table[str, Callable[[Any, Any, Progress | None], Mapping]] = {
    "surface": mapping.surface,
    "surface-refined": mapping.surface_refined,
    "eva": eva,
    "eva-paper": eva_paper,
}
# Methods that rest on embeddings, whose overlay can be tested on anchors that are held out, and
# the parameters that they have now.
BY_EMBEDDING: Table[str, Table[str, Any]] = {"eva": PARAMETERS, "eva-paper": PAPER_PARAMETERS}


def mapping_folders() -> list[Path]:
    """Return where mappings are looked for; new ones go into the first."""
    return [cache_folder() / "mappings", shipped("mappings")]


def find_or_build(
    method: str,
    member: Model,
    pivot: Model,
    folders: Sequence[Path],
    progress: Progress | None = None,
) -> Mapping:
    """Return the mapping from `member` to `pivot`.

    Looks into `folders` in turn; builds it into the first one, with a message, where none holds
    it. Members with equal vocabularies need no file. Raises MappingError for a file that is
    damaged, stale, or for other vocabularies.
    """
    if member.vocabulary.fingerprint == pivot.vocabulary.fingerprint:
        return identity(pivot)
    path = find(method, member, pivot, folders)
    if path is None:
        path = folders[0] / file_name(method, member, pivot)
        log.info("building the mapping %s, once", path.name)
        sides: tuple[Any, Any] = member.tokenizer, pivot.tokenizer
        if method in BY_EMBEDDING:
            sides = embedding.output_layer(member), embedding.output_layer(pivot)
        METHODS[method](*sides, progress).save(path)
    found = Mapping.load(path)
    if (found.member, found.pivot) != (member.vocabulary.fingerprint, pivot.vocabulary.fingerprint):
        raise MappingError(f"{path}: made for other vocabularies; {REMEDY}")
    if found.parameters != BY_EMBEDDING.get(found.method, {}):
        raise MappingError(f"{path}: made with other parameters; {REMEDY}")
    return found


def find(method: str, member: Model, pivot: Model, folders: Sequence[Path]) -> Path | None:
    """Return the file of a mapping in the first folder that has it."""
    candidates = (folder / file_name(method, member, pivot) for folder in folders)
    return next((path for path in candidates if path.exists()), None)


def identity(model: Model) -> Mapping:
    """Return the mapping of a vocabulary onto itself."""
    vocabulary = model.vocabulary
    rows = np.flatnonzero(vocabulary.speakable)
    return from_entries("identity", vocabulary, vocabulary, rows, rows, np.ones(len(rows)))


def file_name(method: str, member: Model, pivot: Model) -> str:
    """Name the file that holds the mapping of a pair."""
    prints = (model.vocabulary.fingerprint[:12] for model in (member, pivot))
    return "-".join((method, *prints)) + ".npz"


def share_of_twins(member: Model, pivot: Model) -> float:
    """Return the share of the member's speakable tokens whose bytes the pivot has as a token."""
    speakable = member.vocabulary.speakable
    return float(np.mean(twins(member.vocabulary, pivot.vocabulary)[speakable] >= 0))


def warn_if_foreign(name: str, member: Model, pivot_name: str, pivot: Model) -> None:
    """Log a warning where the two vocabularies have almost nothing in common."""
    if (share := share_of_twins(member, pivot)) < _FEW_TWINS:
        log.warning(
            "only %.1f%% of the pieces of %s are pieces of %s: its vote will be mostly noise; "
            "choose members with vocabularies that are closer",
            *(100 * share, name, pivot_name),
        )
