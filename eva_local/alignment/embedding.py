"""Output embeddings of two models laid over each other by VecMap, and neighbours by CSLS.

Artetxe, Labaka and Agirre: "Generalizing and improving bilingual word embedding mappings with a
multi-step framework of linear transformations" (AAAI 2018), of which EVA (Xu et al. 2024) takes
the supervised setting: normalise, whiten, rotate, re-weight, undo the whitening.

Cross-domain similarity local scaling, Conneau, Lample, Ranzato, Denoyer and Jégou: "Word
translation without parallel data" (ICLR 2018, equation 4): cosines, less the nearness of symbols
that are near to everything. EVA's form has a neighbourhood of one, and only the symbols' side of
it, which alone changes the order in a row:

    score(i, j) = 2 cos(i, j) - max over i' of cos(i', j)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eva_local.alignment.mapping import twins
from eva_local.config.specs import part_names
from eva_local.errors import MappingError
from eva_local.llama.model import Model
from eva_local.llama.vocab import Vocabulary

Matrix = NDArray[np.float32]
Square = NDArray[np.float64]
Ids = NDArray[np.int64]

_TOKENS = "tokenizer.ggml.tokens"
# Rows that are worked on together.
_ROWS = 8192
# An eigenvalue below this share of the largest is a direction in which no anchor lies.
_NOTHING = 1e-9
# Cells of one block of cosines: 64 MiB of float32.
_CELLS = 1 << 24
# Nearly all cells of the first block pass, and their ids take many times its memory: it is small.
_FIRST = 16
# Scores are rounded, so that the last bits of a sum (the number of threads decides them) matter
# neither for the choice nor for the file.
_DECIMALS = 4


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


def normalise(x: Matrix) -> None:
    """Make rows unit length, subtract their mean, make them unit length again, in place.

    `x: (n, width)`. A row of zeros only (a token that was never trained) stays one.
    """
    _unit(x)
    empty = ~x.any(axis=1)
    x -= x.mean(axis=0, dtype=np.float64).astype(np.float32)
    x[empty] = 0
    _unit(x)


def supervised(
    x: Matrix, z: Matrix, x_anchors: Ids, z_anchors: Ids, directions: int | None = None
) -> tuple[Matrix, Matrix]:
    """Map both spaces into a common one; the memory of `x` and `z` is used for the result.

    `x: (n, d)` and `z: (m, e)` are normalised; row `x_anchors[i]` of `x` means the same as row
    `z_anchors[i]` of `z`. Returns views (n, r) and (m, r) with rows of unit length, so that
    their products are cosines: r = min(d, e), or fewer `directions`, namely those in which the
    anchors agree best.
    """
    x_map, z_map = transforms(
        _products(x, x, x_anchors, x_anchors),
        _products(z, z, z_anchors, z_anchors),
        _products(x, z, x_anchors, z_anchors),
    )
    return _apply(x, x_map[:, :directions]), _apply(z, z_map[:, :directions])


def transforms(x_gram: Square, z_gram: Square, cross: Square) -> tuple[Square, Square]:
    """Return the matrices (d, r) and (e, r) that carry both spaces into the common one.

    `x_gram = X'X: (d, d)`, `z_gram = Z'Z: (e, e)` and `cross = X'Z: (d, e)` of the anchors'
    rows X and Z. The steps of Artetxe et al. 2018, section 3: whitening by (X'X)^-1/2; from the
    singular value decomposition U S V' of the whitened cross-covariance the rotations U and V;
    re-weighting by S^1/2 on each side; de-whitening, each space by its own (X'X)^1/2 rotated.
    """
    x_white, x_colour = _whitening(x_gram)
    z_white, z_colour = _whitening(z_gram)
    u, s, v = np.linalg.svd(x_white @ cross @ z_white, full_matrices=False)
    v = v.T
    weight = np.sqrt(s)
    return (
        (x_white @ u * weight) @ (u.T @ x_colour @ u),
        (z_white @ v * weight) @ (v.T @ z_colour @ v),
    )


def _whitening(gram: Square) -> tuple[Square, Square]:
    values, vectors = np.linalg.eigh(gram)
    # Directions without anchors stay as they are.
    values = np.where(values > _NOTHING * values.max(), values, 1.0)
    roots = np.sqrt(values)
    return (vectors / roots) @ vectors.T, (vectors * roots) @ vectors.T


def _products(x: Matrix, z: Matrix, x_rows: Ids, z_rows: Ids) -> Square:
    """Return X'Z of the chosen rows, summed block by block in float64."""
    total = np.zeros((x.shape[1], z.shape[1]))
    for start in range(0, len(x_rows), _ROWS):
        part = slice(start, start + _ROWS)
        total += x[x_rows[part]].T @ z[z_rows[part]]
    return total


def _apply(x: Matrix, transform: Square) -> Matrix:
    matrix = transform.astype(np.float32)
    width = matrix.shape[1]
    for start in range(0, len(x), _ROWS):
        x[start : start + _ROWS, :width] = x[start : start + _ROWS] @ matrix
    mapped = x[:, :width]
    _unit(mapped)
    return mapped


def _unit(x: Matrix) -> None:
    length = np.sqrt(np.einsum("ij,ij->i", x, x))
    x /= np.where(length > 0, length, 1)[:, None]


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
