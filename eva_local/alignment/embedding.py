"""Mappings learned from output embeddings: EVA as it was published, and EVA mended.

EVA (Xu, Lu and Zhang: "Bridging the Gap between Different Vocabularies for LLM Ensemble", NAACL
2024) lays the output embeddings of two models over each other by the tokens that both have, and
lets each token's probability flow to its nearest neighbours (`overlay.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eva_local.alignment.mapping import Mapping, Progress, from_entries, twins
from eva_local.alignment.overlay import Ids, Neighbours, nearest, normalise, supervised
from eva_local.config.specs import part_names
from eva_local.errors import MappingError
from eva_local.llama.model import Model
from eva_local.llama.vocab import Vocabulary

Weights = NDArray[np.float64]

_TOKENS = "tokenizer.ggml.tokens"
# Rows that are dequantised together.
_ROWS = 8192
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


@dataclass(frozen=True, slots=True, eq=False)
class OutputLayer:
    """What the next-token logits of a vocabulary's model are made of, still quantised.

    `data: (n_vocab, bytes)`, a row per token in ggml's quantisation `kind`, mapped from the
    file. `spellings` are the tokens as the vocabulary in the file writes them, where a space is
    "▁" or "Ġ" and a byte may be "<0x0A>".
    """

    vocabulary: Vocabulary
    data: NDArray[Any]
    kind: int
    spellings: tuple[bytes, ...]

    def embeddings(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return (len(token_ids), width); NotImplementedError where gguf cannot dequantise."""
        from gguf import GGMLQuantizationType, dequantize

        kind = GGMLQuantizationType(self.kind)
        rows = np.empty((len(token_ids), dequantize(self.data[:1], kind).shape[1]), np.float32)
        for start in range(0, len(token_ids), _ROWS):
            part = slice(start, start + _ROWS)
            rows[part] = dequantize(self.data[token_ids[part]], kind)
        return rows


def output_layer(model: Model) -> OutputLayer:
    """Find the output layer in the GGUF file of a model, whatever its quantisation.

    Rows beyond the vocabulary (some models round its size up) are left out.
    Raises MappingError where the file holds no such matrix or one that cannot be read.
    """
    from gguf import GGUFReader  # slow to import, and only a mapping that is built needs it

    path = model.path
    try:
        readers = [GGUFReader(path.with_name(name)) for name in part_names(path.name)]
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise MappingError(
            f"{path}: the gguf package cannot read it ({error}); use a file in another "
            "quantisation, or a surface mapping"
        ) from error
    tensors = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
    # Where a model keeps no output matrix of its own, it uses that of its input.
    tensor = tensors.get("output.weight", tensors.get("token_embd.weight"))
    tokens = readers[0].get_field(_TOKENS)
    if tensor is None or tokens is None:
        missing = "output.weight or token_embd.weight" if tensor is None else _TOKENS
        raise MappingError(f"{path}: has no {missing}; use a surface mapping")
    spellings = tuple(bytes(tokens.parts[index]) for index in tokens.data)
    if len(tensor.data) < len(spellings):
        raise MappingError(
            f"{path}: {tensor.name} has {len(tensor.data)} rows for {len(spellings)} tokens; "
            "convert the file again, or use a surface mapping"
        )
    data, kind = tensor.data[: len(spellings)], int(tensor.tensor_type)
    layer = OutputLayer(model.vocabulary, data, kind, spellings)
    try:
        layer.embeddings(np.arange(1))
    except NotImplementedError as error:
        raise MappingError(
            f"{path}: {tensor.name} is quantised as {tensor.tensor_type.name}, which the gguf "
            "package cannot read; use a file in another quantisation, or a surface mapping"
        ) from error
    return layer


def anchors_by_bytes(member: Vocabulary, pivot: Vocabulary) -> tuple[Ids, Ids]:
    """Return the tokens that have a twin, and their twins."""
    twin = twins(member, pivot)
    # Of several tokens with equal bytes those that no tokeniser writes were hardly trained.
    tokens = written(member)
    tokens = tokens[twin[tokens] >= 0]
    return tokens, twin[tokens]


def anchors_by_spelling(member: Sequence[bytes], pivot: Sequence[bytes]) -> tuple[Ids, Ids]:
    """Return the tokens that the other vocabulary file spells equally, and those."""
    # The first of several with one spelling, which well-made files do not have.
    ids = {spelling: token_id for token_id, spelling in reversed(list(enumerate(pivot)))}
    pairs = [(i, ids[spelling]) for i, spelling in enumerate(member) if spelling in ids]
    tokens, symbols = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return tokens, symbols


def written(vocabulary: Vocabulary) -> Ids:
    """Return, ascending, the one token for each piece that stands for it."""
    ids = vocabulary.ids.values()
    return np.sort(np.fromiter(ids, dtype=np.int64, count=len(ids)))


def overlay(
    member: OutputLayer,
    pivot: OutputLayer,
    tokens: Ids,
    symbols: Ids,
    anchors: tuple[Ids, Ids],
    directions: int | None = None,
) -> Callable[..., Neighbours]:
    """Lay `tokens` of the member and `symbols` of the pivot (ascending) over each other.

    `anchors` are some of the tokens, and for each the symbol that means the same. `directions`
    limits the width of the common space. Returns `nearest` for the places of these tokens.
    Raises MappingError where there are no anchors.
    """
    if not len(anchors[0]):
        raise MappingError(
            "the two vocabularies have no token in common to learn from; use a surface mapping"
        )
    rows = np.searchsorted(tokens, anchors[0])
    columns = np.searchsorted(symbols, anchors[1])
    x, z = member.embeddings(tokens), pivot.embeddings(symbols)
    normalise(x)
    normalise(z)
    x, z = supervised(x, z, rows, columns, directions)
    near = np.full(len(symbols), -1, dtype=np.float32)
    np.maximum.at(near, columns, np.einsum("ij,ij->i", x[rows], z[columns]))
    return partial(nearest, x, z, near=near)


def eva(member: OutputLayer, pivot: OutputLayer, progress: Progress | None = None) -> Mapping:
    """Map each token to its twin, and those without one to their nearest symbols by CSLS.

    EVA mended: twins are found by bytes and keep all of their mass, so that only tokens without
    a twin are looked up; tokens that stand for no text take no part at all.
    Raises MappingError where the vocabularies have no token in common.
    """
    sides = member.vocabulary, pivot.vocabulary
    twin, anchors = twins(*sides), anchors_by_bytes(*sides)
    tokens, symbols = np.flatnonzero(member.vocabulary.speakable), written(pivot.vocabulary)
    look_up = overlay(member, pivot, tokens, symbols, anchors, _DIRECTIONS)
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
    anchors = anchors_by_spelling(member.spellings, pivot.spellings)
    tokens, symbols = (np.arange(len(vocabulary)) for vocabulary in sides)
    look_up = overlay(member, pivot, tokens, symbols, anchors)
    found = look_up(tokens, _NEIGHBOURS, _FLOOR, progress=progress)
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
