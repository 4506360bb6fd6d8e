"""VecMap's supervised mapping: two spaces of embeddings laid over each other.

Artetxe, Labaka and Agirre: "Generalizing and improving bilingual word embedding mappings with a
multi-step framework of linear transformations" (AAAI 2018), of which EVA (Xu et al. 2024) takes
the supervised setting: normalise, whiten, rotate, re-weight, undo the whitening.
"""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]
Square = NDArray[np.float64]
Ids = NDArray[np.int64]

# Rows that are worked on together.
_ROWS = 8192
# An eigenvalue below this share of the largest is a direction in which no anchor lies.
_NOTHING = 1e-9


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
