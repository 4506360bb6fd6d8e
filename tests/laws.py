"""Laws that mappings keep."""

import numpy as np
from fakes import FakeModel

from eva_local.alignment.mapping import Mapping, twins


def check_law_3(mapping: Mapping, member: FakeModel, pivot: FakeModel) -> np.ndarray:
    """Check the rows of a mapping; return it as a dense matrix."""
    mapping.check()
    matrix = dense(mapping)
    sums = matrix.sum(axis=1)
    assert np.all(matrix >= 0)
    assert np.allclose(sums[sums > 0], 1)
    # Nothing from or to tokens that are no text; END to END alone.
    silent = ~member.vocabulary.speakable
    ends = sorted(member.vocabulary.end_ids)
    silent[ends] = False
    assert not matrix[silent].any()
    assert not matrix[:, :-1][:, ~pivot.vocabulary.speakable].any()
    assert np.array_equal(np.flatnonzero(matrix[:, -1]), ends)
    return matrix


def check_twins(matrix: np.ndarray, member: FakeModel, pivot: FakeModel) -> None:
    """Check that tokens of equal bytes map to each other, and to nothing else."""
    twin = twins(member.vocabulary, pivot.vocabulary)
    for token_id in np.flatnonzero(twin >= 0):
        assert matrix[token_id, twin[token_id]] == 1
        pieces = member.vocabulary.pieces[token_id], pivot.vocabulary.pieces[twin[token_id]]
        assert pieces[0] == pieces[1]


def dense(mapping: Mapping) -> np.ndarray:
    matrix = np.zeros((len(mapping.indptr) - 1, mapping.n_symbols))
    for row in range(len(matrix)):
        part = slice(mapping.indptr[row], mapping.indptr[row + 1])
        matrix[row, mapping.indices[part]] = mapping.weights[part]
    return matrix
