"""Nearest neighbours by CSLS: cosines, less the nearness of symbols that are near to everything.

Cross-domain similarity local scaling, Conneau, Lample, Ranzato, Denoyer and Jégou: "Word
translation without parallel data" (ICLR 2018, equation 4), in the form that EVA uses: a
neighbourhood of one, and only the symbols' side of it, which alone changes the order in a row:

    score(i, j) = 2 cos(i, j) - max over i' of cos(i', j)
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from eva_local.alignment.vecmap import Ids, Matrix

# Cells of one block of cosines: 64 MiB of float32.
_CELLS = 1 << 24
# Nearly all cells of the first block pass, and their ids take many times its memory: it is small.
_FIRST = 16
# Rows of one matrix product with the tokens that are not looked up.
_ROWS = 8192
# Scores are rounded, so that the last bits of a sum (the number of threads decides them) matter
# neither for the choice nor for the file.
_DECIMALS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The best symbols of some rows: `symbols, scores: (rows, count)`, best first.

    Equal scores go to the lower symbol. Where a row has fewer, the rest is symbol -1 with
    score -inf.
    """

    symbols: Ids
    scores: Matrix

    def add(self, rows: Ids, symbols: Ids, scores: Matrix) -> None:
        """Take in more (row, symbol, score) cells, in place."""
        count = self.scores.shape[1]
        touched, index = np.unique(rows, return_inverse=True)
        index = np.concatenate([index, np.repeat(np.arange(len(touched)), count)])
        symbols = np.concatenate([symbols, self.symbols[touched].ravel()])
        scores = np.concatenate([np.round(scores, _DECIMALS), self.scores[touched].ravel()])
        order = np.lexsort((symbols, -scores, index))
        # How many cells of the same row stand before each.
        starts = np.flatnonzero(np.diff(index[order], prepend=-1))
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        order, rank = order[rank < count], rank[rank < count]
        self.symbols[touched[index[order]], rank] = symbols[order]
        self.scores[touched[index[order]], rank] = scores[order]


def nearest(
    x: Matrix,
    z: Matrix,
    rows: Ids,
    count: int,
    floor: float,
    near: Matrix | None = None,
    progress: Callable[[float], None] | None = None,
    cells: int = _CELLS,
) -> Neighbours:
    """Return the `count` best symbols of each of `rows` by CSLS that score at least `floor`.

    `x: (n, r)` tokens and `z: (m, r)` symbols, in one space, of unit length. `near: (m,)` may
    give cosines that some token is known to have with each symbol: a lower bound of its
    nearness, which saves work and changes nothing. `cells` bounds the memory: so many cosines
    are held at a time. Exact: the nearness of a symbol, from its cosines with all tokens, is
    found wherever the bound that `rows` and `near` give leaves it among the best of some row.
    """
    others = np.setdiff1d(np.arange(len(x)), rows)
    asked = x[rows]
    shape = len(rows), count
    best = Neighbours(np.full(shape, -1), np.full(shape, -np.inf, dtype=np.float32))
    done = 0
    for symbols in _blocks(len(z), max(1, -(-len(z) * len(rows) // cells))):
        part = z[symbols]
        halves = part @ asked.T
        bound = halves.max(axis=1, initial=-1.0)
        if near is not None:
            np.maximum(bound, near[symbols], out=bound)
        halves -= (bound / 2)[:, None]
        # What a score must reach to get in: (rows,).
        worst = np.maximum(best.scores[:, -1], np.float32(floor))
        cell = np.flatnonzero(halves >= worst / 2)
        column, row = np.divmod(cell, len(rows))
        scores = 2 * halves.ravel()[cell]
        for start in range(0, len(others), _ROWS):
            left = np.unique(column)
            nearest_other = (part[left] @ x[others[start : start + _ROWS]].T).max(axis=1)
            rise = np.zeros(len(symbols), dtype=np.float32)
            rise[left] = np.maximum(nearest_other - bound[left], 0)
            bound += rise
            scores -= rise[column]
            kept = scores >= worst[row]
            column, row, scores = column[kept], row[kept], scores[kept]
        best.add(row, symbols[column], scores)
        done += len(symbols)
        if progress is not None:
            progress(done / len(z))
    return best


def _blocks(n_symbols: int, count: int) -> list[Ids]:
    # Each has every so manieth symbol: being like the whole, it finds early what must be beaten.
    first = np.arange(0, n_symbols, count)
    small = np.arange(len(first)) % _FIRST == 0
    others = (np.arange(block, n_symbols, count) for block in range(1, count))
    return [first[small], first[~small], *others]
