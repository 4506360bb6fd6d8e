"""Mappings from bytes alone: no embeddings, seconds to build.

`surface`: a token goes to its twin, the symbol with equal bytes; without one to the first
symbol of the pivot's own tokenisation of its bytes. `surface-refined`: where a token is the
first of the member's own tokenisation of several symbols, its mass is split among those, in
proportion to the pivot's own probabilities of them at that step.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eva_local.alignment.mapping import Mapping, Progress, from_entries, twins
from eva_local.llama.tokenizer import Tokenizer

# Tokens between two calls of a progress function.
_STRIDE = 2048


def surface(member: Tokenizer, pivot: Tokenizer, progress: Progress | None = None) -> Mapping:
    """Map each token to its twin, else to the first symbol of its bytes."""
    vocabulary = member.vocabulary
    symbols = twins(vocabulary, pivot.vocabulary)
    alone = np.flatnonzero(vocabulary.speakable & (symbols < 0)).tolist()
    symbols[alone] = _first_ids(pivot, vocabulary.pieces, alone, progress)
    rows = np.flatnonzero(symbols >= 0)
    return from_entries(
        "surface", vocabulary, pivot.vocabulary, rows, symbols[rows], np.ones(len(rows))
    )


def surface_refined(
    member: Tokenizer, pivot: Tokenizer, progress: Progress | None = None
) -> Mapping:
    """Map as `surface` does, and record which token each symbol begins with."""
    mapping = surface(member, pivot, progress)
    first = np.full(mapping.n_symbols, -1, dtype=np.int32)
    spoken = np.flatnonzero(pivot.vocabulary.speakable).tolist()
    same = mapping.member == mapping.pivot
    pieces = pivot.vocabulary.pieces
    first[spoken] = spoken if same else _first_ids(member, pieces, spoken, progress)
    return replace(mapping, method="surface-refined", first=first)


def _first_ids(
    tokenizer: Tokenizer, pieces: Sequence[bytes], chosen: list[int], progress: Progress | None
) -> list[int]:
    """Return the first token of each chosen piece, -1 where the vocabulary cannot spell it."""
    ids = []
    for position, token_id in enumerate(chosen):
        if progress is not None and position % _STRIDE == 0:
            progress(position / len(chosen))
        piece = pieces[token_id]
        ids.append(tokenizer.encode(piece)[0] if tokenizer.missing_bytes.isdisjoint(piece) else -1)
    return ids
