"""Mappings from bytes alone: no embeddings, seconds to build.

`surface`: a token goes to its twin, the symbol with equal bytes; without one to the first
symbol of the pivot's own tokenisation of its bytes. `surface-refined`: where a token is the
first of the member's own tokenisation of several symbols, its mass is split among those, in
proportion to the pivot's own probabilities of them at that step.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from eva_local.alignment.mapping import Mapping, from_entries, twins
from eva_local.llama.tokenizer import Tokenizer

# Told the share that is done, from 0 to 1.
Progress = Callable[[float], None]
# Tokens between two calls of a progress function.
_STRIDE = 2048


def surface(member: Tokenizer, pivot: Tokenizer, progress: Progress | None = None) -> Mapping:
    """Map each token to its twin, else to the first symbol of its bytes."""
    symbols = _nearest_symbols(member, pivot, progress)
    rows = np.flatnonzero(symbols >= 0)
    return from_entries(
        "surface", member.vocabulary, pivot.vocabulary, rows, symbols[rows], np.ones(len(rows))
    )


def surface_refined(
    member: Tokenizer, pivot: Tokenizer, progress: Progress | None = None
) -> Mapping:
    """Map as `surface` does, and record which token each symbol begins with."""
    symbols = _nearest_symbols(member, pivot, progress)
    rows = np.flatnonzero(symbols >= 0)
    return from_entries(
        "surface-refined",
        member.vocabulary,
        pivot.vocabulary,
        rows,
        symbols[rows],
        np.ones(len(rows)),
        first=_first_tokens(member, pivot, progress),
    )


def _nearest_symbols(
    member: Tokenizer, pivot: Tokenizer, progress: Progress | None
) -> NDArray[np.int64]:
    """Return (member tokens,): the twin, else the first symbol of the bytes, else -1."""
    symbols = twins(member.vocabulary, pivot.vocabulary)
    alone = np.flatnonzero(member.vocabulary.speakable & (symbols < 0)).tolist()
    symbols[alone] = _first_ids(pivot, member.vocabulary.pieces, alone, progress)
    return symbols


def _first_tokens(
    member: Tokenizer, pivot: Tokenizer, progress: Progress | None
) -> NDArray[np.int32]:
    """Return (symbols,): the member's token that each symbol begins with, -1 for none."""
    first = np.full(len(pivot.vocabulary) + 1, -1, dtype=np.int32)
    spoken = np.flatnonzero(pivot.vocabulary.speakable).tolist()
    if member.vocabulary.fingerprint == pivot.vocabulary.fingerprint:
        first[spoken] = spoken
    else:
        first[spoken] = _first_ids(member, pivot.vocabulary.pieces, spoken, progress)
    return first


def _first_ids(
    tokenizer: Tokenizer, pieces: tuple[bytes, ...], chosen: list[int], progress: Progress | None
) -> list[int]:
    ids = []
    for position, token_id in enumerate(chosen):
        if progress is not None and position % _STRIDE == 0:
            progress(position / len(chosen))
        ids.append(_first_id(tokenizer, pieces[token_id]))
    return ids


def _first_id(tokenizer: Tokenizer, piece: bytes) -> int:
    """Return the first token of some bytes, or -1 where the vocabulary cannot spell them."""
    if not tokenizer.missing_bytes.isdisjoint(piece):
        return -1
    return tokenizer.encode(piece)[0]
