"""VecMap, CSLS and the mappings that rest on them, on cases that can be worked out otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from fakes import WORDS_A, WORDS_B, FakeModel
from laws import check_law_3, check_twins

from eva_local.alignment.embedding import (
    Neighbours,
    anchors_by_bytes,
    anchors_by_spelling,
    nearest,
    normalise,
    overlay,
    supervised,
    transforms,
)
from eva_local.alignment.library import eva, eva_paper, trusted
from eva_local.errors import MappingError
from eva_local.llama.vocab import Vocabulary
from tools.mapping_quality import held_out

METHODS = {"eva": eva, "eva-paper": eva_paper}


@dataclass(frozen=True)
class FakeLayer:
    """Embeddings that a test made, in place of those of a file."""

    vocabulary: Vocabulary
    rows: np.ndarray
    spellings: tuple[bytes, ...]

    def embeddings(self, token_ids: np.ndarray) -> np.ndarray:
        return self.rows[token_ids].astype(np.float32)


def embedded(model: FakeModel, rows: np.ndarray) -> FakeLayer:
    names = dict(zip(model.vocabulary.markers.values(), model.vocabulary.markers, strict=True))
    spellings = tuple(
        names[i].encode()
        if i in names
        else piece + (b"#" if model.vocabulary.kinds[i] == 2 else b"")
        for i, piece in enumerate(model.vocabulary.pieces)
    )
    return FakeLayer(model.vocabulary, rows, spellings)


def random_rows(model: FakeModel, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(len(model.vocabulary), width))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_normalise_by_hand() -> None:
    x = np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]], dtype=np.float32)
    normalise(x)
    rows = np.array([[0.6, 0.8], [0.0, 1.0], [0.0, 0.0]])
    rows[:2] -= rows.mean(axis=0)
    assert x == pytest.approx(np.vstack([unit(rows[:2]), np.zeros(2)]), abs=1e-6)


@pytest.mark.parametrize("n_anchors", [60, 200])
def test_a_rotation_is_found_from_its_anchors(n_anchors) -> None:
    generator = np.random.default_rng(0)
    z = generator.normal(size=(200, 16)).astype(np.float32)
    normalise(z)
    rotation = np.linalg.qr(generator.normal(size=(16, 16)))[0].astype(np.float32)
    x = z @ rotation
    anchors = np.arange(n_anchors)
    mapped_x, mapped_z = supervised(x.copy(), z.copy(), anchors, anchors)
    # Both sides go through the same stretch, so equal rows stay equal, also those not told.
    assert mapped_x == pytest.approx(mapped_z, abs=1e-3)


def test_the_directions_that_are_kept_are_those_of_the_strongest_agreement() -> None:
    generator = np.random.default_rng(8)
    z = generator.normal(size=(300, 12)).astype(np.float32)
    x = z.copy()
    # In all but four directions the two sides have nothing to do with each other.
    x[:, 4:] = generator.normal(size=(300, 8))
    anchors = np.arange(200)
    mapped_x, mapped_z = supervised(x.copy(), z.copy(), anchors, anchors, 4)
    assert mapped_x.shape == mapped_z.shape == (300, 4)
    assert np.linalg.norm(mapped_x, axis=1) == pytest.approx(1, abs=1e-5)
    alike = np.einsum("ij,ij->i", mapped_x[200:], mapped_z[200:])
    whole_x, whole_z = supervised(x, z, anchors, anchors)
    assert alike.mean() > 0.9 > np.einsum("ij,ij->i", whole_x[200:], whole_z[200:]).mean()


def test_the_steps_are_those_of_the_paper() -> None:
    """Against the singular value decomposition of the anchors' own rows."""
    generator = np.random.default_rng(1)
    x, z = generator.normal(size=(50, 6)), generator.normal(size=(50, 9))
    x_map, z_map = transforms(x.T @ x, z.T @ z, x.T @ z)

    def whitening(m: np.ndarray) -> np.ndarray:
        _, s, vt = np.linalg.svd(m, full_matrices=False)
        return vt.T @ np.diag(1 / s) @ vt

    wx, wz = whitening(x), whitening(z)
    u, s, vt = np.linalg.svd((x @ wx).T @ (z @ wz), full_matrices=False)
    v = vt.T
    expected_x = wx @ u @ np.diag(s**0.5) @ u.T @ np.linalg.inv(wx) @ u
    expected_z = wz @ v @ np.diag(s**0.5) @ v.T @ np.linalg.inv(wz) @ v
    assert x_map.shape == (6, 6)
    assert z_map.shape == (9, 6)
    # A singular vector has no sign of its own, and the two sides share it: products are the same.
    assert (x @ x_map) @ (z @ z_map).T == pytest.approx((x @ expected_x) @ (z @ expected_z).T)


def test_whitening_is_undone() -> None:
    """Where both sides are equal the map is a rotation: lengths and angles stay."""
    generator = np.random.default_rng(2)
    x = generator.normal(size=(80, 8)) * np.linspace(0.2, 3, 8)
    x_map, z_map = transforms(x.T @ x, x.T @ x, x.T @ x)
    assert x_map @ x_map.T == pytest.approx(np.eye(8), abs=1e-8)
    assert x_map == pytest.approx(z_map, abs=1e-6)


def brute_force(x: np.ndarray, z: np.ndarray, i: int, j: int) -> float:
    best = max(float(x[k] @ z[j]) for k in range(len(x)))
    return 2 * float(x[i] @ z[j]) - best


@pytest.mark.parametrize("cells", [4, 40, 300, 10**6])
@pytest.mark.parametrize("told", [False, True])
def test_csls_against_a_double_loop(cells, told) -> None:
    generator = np.random.default_rng(3)
    x = unit(generator.normal(size=(40, 5))).astype(np.float32)
    z = unit(generator.normal(size=(30, 5))).astype(np.float32)
    rows = np.array([0, 3, 7, 22, 39])
    near = (x[:10] @ z.T).max(axis=0) if told else None
    found = nearest(x, z, rows, count=6, floor=-0.5, near=near, cells=cells)
    for place, i in enumerate(rows):
        scores = [brute_force(x, z, i, j) for j in range(len(z))]
        order = [j for j in np.argsort(scores)[::-1][:6] if scores[j] >= -0.5]
        kept = found.symbols[place] >= 0
        assert found.symbols[place][kept].tolist() == order
        assert found.scores[place][kept] == pytest.approx([scores[j] for j in order], abs=2e-4)


def test_which_neighbours_are_trusted() -> None:
    none = -np.inf
    scores = np.array(
        [
            [0.5, 0.09, none, none, none, none],  # one is too weak
            [0.30, 0.30, 0.30, 0.30, 0.30, 0.30],  # six alike say nothing
            [0.30, 0.30, 0.30, 0.30, 0.30, 0.05],  # five alike may
            [0.60, 0.30, 0.30, 0.30, 0.30, 0.30],  # six, but not alike
        ],
        dtype=np.float32,
    )
    rows, symbols, weights = trusted(Neighbours(np.tile(np.arange(6), (4, 1)), scores))
    assert rows.tolist() == [0, *[2] * 5, *[3] * 6]
    assert symbols.tolist() == [0, *range(5), *range(6)]
    assert weights[:1] == pytest.approx([0.5])


@pytest.mark.parametrize("learn", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(("one", "other"), [(WORDS_A, WORDS_B), (WORDS_B, WORDS_A)])
@pytest.mark.parametrize("widths", [(8, 8), (6, 12), (12, 6)])
def test_law_3(learn, one, other, widths) -> None:
    member, pivot = FakeModel(one), FakeModel(other)
    sides = [
        embedded(model, random_rows(model, width, seed))
        for seed, (model, width) in enumerate(zip((member, pivot), widths, strict=True))
    ]
    shares: list[float] = []
    matrix = check_law_3(learn(*sides, shares.append), member, pivot)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    if learn is eva:
        check_twins(matrix, member, pivot)


def rotated(member: FakeModel, pivot: FakeModel) -> list[FakeLayer]:
    """Two sides whose twins have equal embeddings, but for a rotation and a little noise."""
    generator = np.random.default_rng(4)
    z = random_rows(pivot, 12, 5)
    x = random_rows(member, 12, 6)
    tokens, symbols = anchors_by_bytes(member.vocabulary, pivot.vocabulary)
    x[tokens] = z[symbols] + 0.05 * generator.normal(size=(len(tokens), 12))
    return [
        embedded(member, x @ np.linalg.qr(generator.normal(size=(12, 12)))[0]),
        embedded(pivot, z),
    ]


def test_anchors_that_were_held_out_are_found_again() -> None:
    member, pivot = FakeModel(WORDS_A), FakeModel(WORDS_B)
    found = held_out(*rotated(member, pivot))
    anchors, _ = anchors_by_bytes(member.vocabulary, pivot.vocabulary)
    assert found.count == pytest.approx(0.1 * len(anchors), abs=1)
    assert found.csls_1 > 0.9
    assert found.csls_10 == 1
    noise = [
        embedded(m, random_rows(m, 12, 7 + i))
        for i, m in enumerate((FakeModel(WORDS_A), FakeModel(WORDS_B)))
    ]
    assert held_out(*noise).csls_1 < 0.3


def test_equal_inputs_give_equal_files(tmp_path) -> None:
    for name in ("one.npz", "two.npz"):
        eva(*rotated(FakeModel(WORDS_A), FakeModel(WORDS_B))).save(tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_anchors() -> None:
    member, pivot = FakeModel(WORDS_A).vocabulary, FakeModel(WORDS_B).vocabulary
    tokens, symbols = anchors_by_bytes(member, pivot)
    assert [member.pieces[i] for i in tokens] == [pivot.pieces[i] for i in symbols]
    assert len(set(symbols.tolist())) == len(symbols)
    found = anchors_by_spelling([b"a", b"b", b"<s>"], [b"<s>", b"c", b"a", b"a"])
    assert [part.tolist() for part in found] == [[0, 2], [2, 0]]


def test_vocabularies_without_a_common_token_are_refused() -> None:
    one, other = FakeModel([b"a"]), FakeModel([b"b"])
    sides = [embedded(model, random_rows(model, 4, 0)) for model in (one, other)]
    nothing = np.empty(0, dtype=np.int64)
    with pytest.raises(MappingError, match="no token in common"):
        overlay(*sides, np.arange(3), np.arange(3), (nothing, nothing))
