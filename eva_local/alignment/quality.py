"""How well a member's space lies over the pivot's, measured on twins that it was not told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eva_local.alignment.csls import nearest
from eva_local.alignment.overlay import Embedded, anchors_by_bytes, overlay, written
from eva_local.alignment.surface import Progress

Matrix = NDArray[np.float32]
Ids = NDArray[np.int64]

# Rows of cosines that are ranked together.
_ROWS = 256


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """How many of the `held_out` of all `anchors` find their twin again.

    `cosine_1` and `cosine_10` are the shares whose twin is the nearest symbol, or one of the ten
    nearest, by cosine; `csls_1` and `csls_10` the same by CSLS.
    """

    anchors: int
    held_out: int
    cosine_1: float
    cosine_10: float
    csls_1: float
    csls_10: float


def held_out(
    member: Embedded,
    pivot: Embedded,
    *,
    directions: int | None = None,
    share: float = 0.1,
    seed: int = 0,
    progress: Progress | None = None,
) -> HeldOut:
    """Learn from all anchors but a `share` of them, chosen by `seed`, and look for those.

    `directions` limits the width of the common space, as in `overlay`.
    Raises MappingError where there are no anchors.
    """
    tokens, symbols = anchors_by_bytes(member.vocabulary, pivot.vocabulary)
    hidden = np.random.default_rng(seed).permutation(len(tokens)) < share * len(tokens)
    told = tokens[~hidden], symbols[~hidden]
    sides = written(member.vocabulary), written(pivot.vocabulary)
    space = overlay(member, pivot, *sides, told, directions)
    rows = np.searchsorted(space.tokens, tokens[hidden])
    wanted = np.searchsorted(space.symbols, symbols[hidden])
    ranks = _ranks(space.x[rows], space.z, wanted)
    found = nearest(
        space.x, space.z, rows, count=10, floor=-np.inf, near=space.near, progress=progress
    )
    right = found.symbols == wanted[:, None]
    return HeldOut(
        anchors=len(tokens),
        held_out=len(rows),
        cosine_1=float(np.mean(ranks < 1)),
        cosine_10=float(np.mean(ranks < 10)),
        csls_1=float(np.mean(right[:, 0])),
        csls_10=float(np.mean(right.any(axis=1))),
    )


def _ranks(x: Matrix, z: Matrix, wanted: Ids) -> Ids:
    """Return for each row of `x` how many rows of `z` are nearer to it than the wanted one."""
    ranks = np.empty(len(x), dtype=np.int64)
    for start in range(0, len(x), _ROWS):
        part = slice(start, start + _ROWS)
        cosines = x[part] @ z.T
        right = np.take_along_axis(cosines, wanted[part, None], axis=1)
        ranks[part] = np.count_nonzero(cosines > right, axis=1)
    return ranks
