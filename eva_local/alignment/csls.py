"""Nearest neighbours by CSLS: cosines, less the nearness of symbols that are near to everything.

Cross-domain similarity local scaling, Conneau, Lample, Ranzato, Denoyer and Jégou: "Word
translation without parallel data" (ICLR 2018, equation 4), in the form that EVA uses: a
neighbourhood of one, and only the symbols' side of it, which alone changes the order in a row:

    score(i, j) = 2 cos(i, j) - max over i' of cos(i', j)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from eva_local.alignment.vecmap import Ids, Matrix

# Cells of one block of cosines: 64 MiB of float32.
_CELLS = 1 << 24
# Scores are rounded, so that the last bits of a sum (the number of threads decides them) matter
# neither for the choice nor for the file.
_DECIMALS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The best symbols of some rows: `symbols, scores: (rows, count)`, best first.

    Where a row has fewer, the rest is symbol -1 with score -inf.
    """

    symbols: Ids
    scores: Matrix


def nearest(
    x: Matrix,
    z: Matrix,
    rows: Ids,
    *,
    count: int,
    floor: float,
    cells: int = _CELLS,
    progress: Callable[[float], None] | None = None,
) -> Neighbours:
    """Return the `count` best symbols of each of `rows` by CSLS that score at least `floor`.

    `x: (n, r)` tokens and `z: (m, r)` symbols, in one space, of unit length. `cells` bounds the
    memory: so many cosines are held at a time. Equal scores go to the lower symbol.
    """
    total = len(z) + len(rows)
    near = np.empty(len(z), dtype=np.float32)
    for part in _blocks(len(z), cells // len(x)):
        near[part] = (z[part] @ x.T).max(axis=1)
        if progress is not None:
            progress(part.stop / total)
    symbols = np.full((len(rows), count), -1, dtype=np.int64)
    scores = np.full((len(rows), count), -np.inf, dtype=np.float32)
    for part in _blocks(len(rows), cells // len(z)):
        found = 2 * (x[rows[part]] @ z.T)
        found -= near
        row, symbol = np.nonzero(found >= floor)
        score = np.round(found[row, symbol], _DECIMALS)
        order = np.lexsort((-score, row))
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        order, rank = order[rank < count], rank[rank < count]
        symbols[part][row[order], rank] = symbol[order]
        scores[part][row[order], rank] = score[order]
        if progress is not None:
            progress((len(z) + part.stop) / total)
    return Neighbours(symbols, scores)


def _blocks(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, max(size, 1)):
        yield slice(start, min(start + max(size, 1), length))
