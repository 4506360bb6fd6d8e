"""Bits per byte: how well a model, or an ensemble under each mapping, predicts a text.

Teacher-forced: every token of the pivot's own tokenisation of the text is scored under the
fused distribution before all members read it. Members alone are scored on their own tokens.
Lower is better; models with different vocabularies compare, since bytes are counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from collections.abc import Mapping as Table
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eva_local.alignment.library import identity
from eva_local.alignment.mapping import Mapping
from eva_local.context import Context
from eva_local.fusion import Floats
from eva_local.model import Model, Run
from eva_local.prompt import PromptWriter

COMBINES = ("mean", "geometric")


@dataclass(frozen=True, slots=True)
class Bits:
    """Bits per byte: of each member alone, and fused under each (mapping, combine)."""

    n_bytes: int
    alone: Table[str, float]
    fused: Table[tuple[str, str], float]


def bits_per_byte(
    texts: Sequence[bytes],
    members: Table[str, Model],
    pivot: str,
    mappings: Table[str, Table[str, Mapping]],
    progress: Callable[[str, float], None] = lambda _what, _share: None,
) -> Bits:
    """Measure `members` on `texts`, alone and with equal weights under each mapping.

    `mappings[method][member]` carries a member's tokens into the tokens of `pivot`. Whole
    distributions are fused: no candidates are cut off and no vote is filtered. Characters
    that some member has no token for are left out of the texts.
    """
    texts = [_spelled_by_all(text, members) for text in texts]
    n_bytes = sum(map(len, texts))
    alone = {}
    for name, model in members.items():
        bits, done = 0.0, 0
        for text in texts:
            progress(f"{name} alone", done / n_bytes)
            bits += _alone(model, text)
            done += len(text)
        alone[name] = bits / n_bytes
    fused = _fused(texts, members, pivot, mappings, progress) if len(members) > 1 else {}
    return Bits(n_bytes, alone, {key: bits / n_bytes for key, bits in fused.items()})


def _alone(model: Model, text: bytes) -> float:
    start = PromptWriter(model).tokens("")
    tokens = model.tokenizer.encode(text)
    bits, place = 0.0, 1 - len(start)
    for block in model.decode_every(Run(0, 0, [*start, *tokens[:-1]])):
        for logits in block:
            if place >= 0:
                bits -= _log2_probability(logits, tokens[place])
            place += 1
    model.remove(0, 0)
    return bits


def _fused(
    texts: Sequence[bytes],
    members: Table[str, Model],
    pivot: str,
    mappings: Table[str, Table[str, Mapping]],
    progress: Callable[[str, float], None],
) -> dict[tuple[str, str], float]:
    lead = _Projection(identity(members[pivot]))
    projections = {
        method: {name: _Projection(mapping) for name, mapping in table.items() if name != pivot}
        for method, table in mappings.items()
    }
    contexts = {name: Context(model) for name, model in members.items()}
    bits = {(method, combine): 0.0 for method in mappings for combine in COMBINES}
    done, n_bytes = 0, sum(map(len, texts))
    for text in texts:
        for name, model in members.items():
            contexts[name].start(PromptWriter(model).tokens(""))
        for token_id in members[pivot].tokenizer.encode(text):
            progress("fused", done / n_bytes)
            spread = {name: _next(members[name], context) for name, context in contexts.items()}
            own = lead.project(spread[pivot], None)
            for method, table in projections.items():
                votes = [own, *(table[name].project(spread[name], own) for name in table)]
                for combine in COMBINES:
                    bits[method, combine] -= math.log2(_fuse(votes, combine)[token_id])
            piece = members[pivot].vocabulary.pieces[token_id]
            done += len(piece)
            for name, context in contexts.items():
                if members[name].vocabulary.fingerprint == members[pivot].vocabulary.fingerprint:
                    context.append_token(token_id)
                else:
                    context.append(piece)
    return bits


class _Projection:
    """A mapping as it acts on whole distributions."""

    def __init__(self, mapping: Mapping) -> None:
        from scipy.sparse import csr_array

        shape = (len(mapping.indptr) - 1, mapping.n_symbols)
        matrix = csr_array((mapping.weights, mapping.indices, mapping.indptr), shape=shape)
        self._columns = matrix.T.tocsr().astype(np.float64)
        self._symbols = np.flatnonzero(mapping.first >= 0)
        self._first = mapping.first[self._symbols]

    def project(self, probabilities: Floats, lead: Floats | None) -> Floats:
        """Carry (n_tokens,) to (n_symbols,), summing to 1; `lead` is the pivot's vote."""
        vote = np.zeros(self._columns.shape[0])
        if lead is not None and len(self._first):
            shares = lead[self._symbols]
            totals = np.bincount(self._first, shares, minlength=len(probabilities))
            split = totals > 0
            each = np.divide(probabilities, totals, out=np.zeros(len(totals)), where=split)
            vote[self._symbols] = each[self._first] * shares
            probabilities = np.where(split, 0, probabilities)
        vote += np.asarray(self._columns @ probabilities)
        return _scaled(vote)


def _fuse(votes: Sequence[Floats], combine: str) -> Floats:
    """Fuse whole votes with equal weights; a symbol without mass counts as in `fusion.combine`."""
    if combine == "mean":
        mean: Floats = np.mean(votes, axis=0)
        return mean
    logs = np.zeros(len(votes[0]))
    for vote in votes:
        logs += np.log(np.where(vote > 0, vote, vote[vote > 0].min()))
    return _scaled(np.exp((logs - logs.max()) / len(votes)))


def _next(model: Model, context: Context) -> Floats:
    run = context.pending()
    (logits,) = model.decode([run])
    context.decoded(run)
    assert logits is not None
    return _scaled(np.exp((logits - logits.max()).astype(np.float64)))


def _scaled(masses: Floats) -> Floats:
    scaled: Floats = masses / masses.sum()
    return scaled


def _log2_probability(logits: NDArray[np.float32], token_id: int) -> float:
    shifted = logits.astype(np.float64) - logits.max()
    return float((shifted[token_id] - np.log(np.exp(shifted).sum())) / math.log(2))


def _spelled_by_all(text: bytes, members: Table[str, Model]) -> bytes:
    missing = frozenset[int]().union(*(m.tokenizer.missing_bytes for m in members.values()))
    if missing.isdisjoint(text):
        return text
    characters = (character.encode() for character in text.decode())
    return b"".join(data for data in characters if missing.isdisjoint(data))
