"""Two models' output embeddings in one space, laid over each other by what both have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eva_local.alignment.csls import Neighbours, nearest
from eva_local.alignment.mapping import Progress, twins
from eva_local.alignment.vecmap import Ids, Matrix, normalise, supervised
from eva_local.alignment.weights import OutputLayer
from eva_local.errors import MappingError
from eva_local.llama.vocab import Vocabulary


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """Tokens of a member and symbols of the pivot in one space.

    `x: (n, r)` are the embeddings of `tokens: (n,)` and `z: (m, r)` those of `symbols: (m,)`,
    of unit length; the ids ascend. `near: (m,)` is the cosine of each symbol with the token that
    is its anchor, -1 where it has none.
    """

    tokens: Ids
    symbols: Ids
    x: Matrix
    z: Matrix
    near: Matrix

    def nearest(
        self, rows: Ids, count: int, floor: float, progress: Progress | None = None
    ) -> Neighbours:
        """Return the best symbols by CSLS of some rows of `x`; see `csls.nearest`."""
        return nearest(self.x, self.z, rows, count, floor, self.near, progress)


def anchors_by_bytes(member: Vocabulary, pivot: Vocabulary) -> tuple[Ids, Ids]:
    """Return the tokens that have a twin, and their twins.

    Of several tokens with equal bytes only the one that a tokeniser writes: the others were
    hardly trained.
    """
    twin = twins(member, pivot)
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
    ids = vocabulary.pieces_to_ids().values()
    return np.sort(np.fromiter(ids, dtype=np.int64, count=len(ids)))


def overlay(
    member: OutputLayer,
    pivot: OutputLayer,
    tokens: Ids,
    symbols: Ids,
    anchors: tuple[Ids, Ids],
    directions: int | None = None,
) -> Overlay:
    """Lay `tokens` of the member and `symbols` of the pivot (ascending) over each other.

    `anchors` are some of the tokens, and for each the symbol that means the same. `directions`
    limits the width of the common space.
    Raises MappingError where there are none.
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
    return Overlay(tokens, symbols, x, z, near)
