import io
import math
import zipfile

import numpy as np
import pytest
from fakes import WORDS_A, WORDS_B, FakeModel
from hypothesis import given
from hypothesis import strategies as st
from laws import check_law_3, check_twins, dense

from eva_local.alignment.library import METHODS, file_name, find_or_build, share_of_twins
from eva_local.alignment.mapping import Mapping, from_entries, surface, surface_refined
from eva_local.errors import MappingError

A, B = FakeModel(WORDS_A), FakeModel(WORDS_B)
PAIRS = [(A, B), (B, A), (A, A), (FakeModel(WORDS_B, missing=[4, 0x74]), A)]
SURFACE = {"surface": surface, "surface-refined": surface_refined}


@pytest.mark.parametrize("build", SURFACE.values(), ids=SURFACE)
@pytest.mark.parametrize(("member", "pivot"), PAIRS)
def test_law_3(build, member, pivot) -> None:
    check_twins(check_law_3(build(member.tokenizer, pivot.tokenizer), member, pivot), member, pivot)


def test_a_token_without_twin_goes_to_the_first_symbol_of_its_bytes() -> None:
    mapping = surface(B.tokenizer, A.tokenizer)
    there = B.vocabulary.ids.get(b"there")
    row = dense(mapping)[there]
    assert [A.vocabulary.pieces[s] for s in np.flatnonzero(row)] == [b"the"]
    assert row.max() == 1


def test_first_tokens_are_those_of_the_members_own_tokenisation() -> None:
    mapping = surface_refined(A.tokenizer, B.tokenizer)
    for symbol, first in enumerate(mapping.first[:-1]):
        if first >= 0:
            assert A.tokenizer.encode(B.vocabulary.pieces[symbol])[0] == first
    there = B.vocabulary.ids.get(b"there")
    assert A.vocabulary.pieces[mapping.first[there]] == b"the"
    assert mapping.first[-1] == -1


@given(
    entries=st.lists(
        st.tuples(
            st.integers(0, len(A.vocabulary) - 1),
            st.integers(0, len(B.vocabulary) - 1),
            st.floats(-1, 5),
        ),
        max_size=30,
    )
)
def test_any_entries_make_a_lawful_mapping(entries) -> None:
    rows, symbols, weights = (
        (np.array(column) for column in zip(*entries, strict=True))
        if entries
        else (np.empty(0, int), np.empty(0, int), np.empty(0))
    )
    mapping = from_entries("test", A.vocabulary, B.vocabulary, rows, symbols, weights)
    mapping.check()
    matrix = dense(mapping)
    sums = matrix.sum(axis=1)
    assert np.allclose(sums[sums > 0], 1, atol=1e-5)
    assert not matrix[:, :-1][:, ~B.vocabulary.speakable].any()


@pytest.mark.parametrize("build", SURFACE.values(), ids=SURFACE)
def test_a_file_gives_back_the_mapping_and_is_the_same_each_time(build, tmp_path) -> None:
    mapping = build(A.tokenizer, B.tokenizer)
    mapping.save(tmp_path / "one.npz")
    build(A.tokenizer, B.tokenizer).save(tmp_path / "two.npz")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    again = Mapping.load(tmp_path / "one.npz")
    assert np.array_equal(dense(again), dense(mapping))
    assert np.array_equal(again.first, mapping.first)
    assert (again.method, again.member, again.pivot) == (
        mapping.method,
        mapping.member,
        mapping.pivot,
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.npz", "two.npz"]


def damaged(mapping: Mapping, **changes) -> Mapping:
    fields = {name: getattr(mapping, name) for name in Mapping.__slots__}
    return Mapping(**{**fields, **changes})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: {"indices": m.indices + 10_000}, "out of range"),
        (lambda m: {"indices": -m.indices - 1}, "out of range"),
        (lambda m: {"weights": m.weights * np.float32(np.nan)}, "no probability"),
        (lambda m: {"weights": -m.weights}, "no probability"),
        (lambda m: {"weights": m.weights * np.float32(2)}, "sum to 1"),
        (lambda m: {"indptr": m.indptr[::-1].copy()}, "rows"),
        (lambda m: {"indptr": np.zeros((2, 2), dtype=np.int64)}, "shape"),
        (lambda m: {"indices": m.indices.astype(np.int64)}, "int64"),
        (lambda m: {"n_symbols": -1}, "out of range"),
        (lambda m: {"n_symbols": math.inf}, "cannot convert float infinity"),
        (lambda m: {"first": m.first[:5]}, "first"),
        (lambda m: {"first": m.first + np.int32(10**6)}, "out of range"),
        (lambda m: {"weights": np.array([None] * len(m.weights), dtype=object)}, "pickle"),
    ],
)
def test_a_damaged_file_is_refused_and_what_rebuilds_it_is_said(change, problem, tmp_path) -> None:
    mapping = surface_refined(A.tokenizer, B.tokenizer)
    damaged(mapping, **change(mapping)).save(tmp_path / "bad.npz")
    with pytest.raises(MappingError, match=rf"{problem}.*; remove it, and it is built again$"):
        Mapping.load(tmp_path / "bad.npz")


def test_an_absurd_shape_is_refused(tmp_path) -> None:
    path = tmp_path / "bad.npz"
    surface(A.tokenizer, B.tokenizer).save(path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (10**13,)}
    )
    parts["weights.npy"] = header.getvalue() + b"\0" * 64
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(MappingError, match="not a usable mapping"):
        Mapping.load(path)


def test_another_format_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("eva_local.alignment.mapping.FORMAT", 99)
    surface(A.tokenizer, B.tokenizer).save(tmp_path / "new.npz")
    monkeypatch.undo()
    with pytest.raises(MappingError, match="format 99"):
        Mapping.load(tmp_path / "new.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no zip", b"\x80\x04K\x01."])
def test_a_file_that_is_no_mapping_is_refused(content, tmp_path) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(MappingError, match="not a usable mapping"):
        Mapping.load(tmp_path / "bad.npz")


def test_the_library_builds_once_and_finds_again(tmp_path, monkeypatch) -> None:
    shipped, cache = tmp_path / "shipped", tmp_path / "cache"
    first = find_or_build("surface", A, B, [cache, shipped])
    assert (cache / file_name("surface", A, B)).exists()
    monkeypatch.setitem(METHODS, "surface", None)  # building again would fail
    again = find_or_build("surface", A, B, [cache, shipped])
    assert np.array_equal(dense(first), dense(again))


def test_members_that_share_a_vocabulary_need_no_file(tmp_path) -> None:
    mapping = find_or_build("surface", A, FakeModel(WORDS_A), [tmp_path])
    assert list(tmp_path.iterdir()) == []
    for token_id in np.flatnonzero(A.vocabulary.speakable):
        assert np.flatnonzero(dense(mapping)[token_id]).tolist() == [token_id]


def test_a_mapping_for_other_vocabularies_is_refused(tmp_path) -> None:
    surface(B.tokenizer, A.tokenizer).save(tmp_path / file_name("surface", A, B))
    with pytest.raises(MappingError, match="other vocabularies"):
        find_or_build("surface", A, B, [tmp_path])


def test_a_mapping_made_with_other_parameters_is_refused(tmp_path) -> None:
    path = tmp_path / file_name("surface", A, B)
    damaged(surface(A.tokenizer, B.tokenizer), parameters={"directions": 576}).save(path)
    with pytest.raises(MappingError, match=r"other parameters; remove it, and it is built"):
        find_or_build("surface", A, B, [tmp_path])


def test_share_of_twins() -> None:
    assert share_of_twins(A, A) == 1
    pieces = {B.vocabulary.pieces[i] for i in range(len(B.vocabulary)) if B.vocabulary.speakable[i]}
    mine = [A.vocabulary.pieces[i] for i in range(len(A.vocabulary)) if A.vocabulary.speakable[i]]
    assert share_of_twins(A, B) == pytest.approx(sum(p in pieces for p in mine) / len(mine))
