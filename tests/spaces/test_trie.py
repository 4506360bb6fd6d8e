"""Which pieces begin with given bytes, and their mass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from fakes import WORDS_A, WORDS_B, FakeModel
from hypothesis import given
from hypothesis import strategies as st

from eva_local.llama.vocab import Kind, Vocabulary
from eva_local.spaces.bytes.trie import ROOT, Trie

# An END without bytes, and a piece that two ids stand for.
PIECES = [b"", b"a", b"ab", b"abc", b"b", b"ab"]
# Nodes are numbered by depth, and within a depth by their bytes.
A, B, AB, ABC = 1, 2, 3, 4
NODES = (ROOT, A, B, AB, ABC)


@pytest.fixture
def trie() -> Trie:
    kinds = [Kind.CONTROL] + [Kind.NORMAL] * (len(PIECES) - 1)
    return Trie(Vocabulary(PIECES, kinds, [0]))


def test_the_ids_under_a_node_stand_together(trie: Trie) -> None:
    assert trie.token_ids.tolist() == [1, 2, 5, 3, 4]
    assert trie.ends.tolist() == [A, AB, AB, ABC, B]
    assert [trie.span(node) for node in NODES] == [(0, 5), (0, 4), (4, 5), (1, 4), (3, 4)]
    assert [trie.exactly(node) for node in NODES] == [(0, 0), (0, 1), (4, 5), (1, 3), (3, 4)]
    assert [trie.exactly(node) == trie.span(node) for node in NODES] == [
        False,
        False,
        True,
        False,
        True,
    ]


def test_a_byte_leads_from_a_node_to_its_child(trie: Trie) -> None:
    assert trie.child(ROOT, ord("a")) == A
    assert trie.child(ROOT, ord("b")) == B
    assert trie.child(A, ord("b")) == AB
    assert trie.child(AB, ord("c")) == ABC
    assert [trie.child(node, ord("a")) for node in (A, B, ABC)] == [-1, -1, -1]


def test_a_walk_remembers_the_longest_piece_on_its_way(trie: Trie) -> None:
    assert trie.walk(ROOT, b"") == (ROOT, -1)
    assert trie.walk(ROOT, b"abc") == (ABC, ABC)
    assert trie.walk(ROOT, b"abd") == (-1, AB)
    assert trie.walk(ROOT, b"x") == (-1, -1)
    assert trie.walk(A, b"b") == (AB, AB)
    assert trie.path(b"abd") == (-1, AB)


def test_masses_are_added_up_behind_each_byte(trie: Trie) -> None:
    masses = np.asarray([1, 2, 4, 8, 16], dtype=np.float32)
    for node, offset, labels, sums in (
        (ROOT, 0, b"ab", [15, 16]),
        (A, 0, b"b", [14]),
        (AB, 1, b"c", [8]),
        (ABC, 3, b"", []),
        (B, 4, b"", []),
    ):
        found, added = trie.going_on(node, masses[offset:], offset)
        assert found.tobytes() == labels
        assert added.tolist() == sums


@given(st.sampled_from([WORDS_A, WORDS_B]), st.data())
def test_a_trie_knows_what_begins_with_what(words: Sequence[bytes], data: st.DataObject) -> None:
    vocabulary = FakeModel(words).vocabulary
    trie = Trie(vocabulary)
    said = np.flatnonzero(vocabulary.speakable).tolist()
    text = data.draw(st.sampled_from([vocabulary.pieces[i] for i in said]))
    text = text[: data.draw(st.integers(0, len(text)))]
    node = ROOT
    for byte in text:
        node = trie.child(node, byte)
    under = set(trie.token_ids[trie.low[node] : trie.high[node]].tolist())
    assert under == {i for i in said if vocabulary.pieces[i].startswith(text)}
    exact = trie.token_ids[trie.low[node] : trie.low[node] + trie.exact[node]].tolist()
    assert set(exact) == {i for i in said if vocabulary.pieces[i] == text and text}
    ended = trie.token_ids[trie.ends == node].tolist()
    assert set(ended) == set(exact)
    masses = np.random.default_rng(0).random(len(trie.token_ids), dtype=np.float32)
    labels, sums = trie.going_on(node, masses, 0)
    for byte in range(256):
        longer = {i for i in said if vocabulary.pieces[i].startswith(text + bytes([byte]))}
        expected = sum(m for i, m in zip(trie.token_ids, masses, strict=True) if int(i) in longer)
        assert sums[labels == byte].sum() == pytest.approx(expected)


@given(st.sampled_from([WORDS_A, WORDS_B]), st.text(alphabet="theun s", max_size=8))
def test_a_trie_finds_the_longest_token_that_a_piece_begins_with(
    words: Sequence[bytes], text: str
) -> None:
    vocabulary = FakeModel(words).vocabulary
    trie = Trie(vocabulary)
    said = {vocabulary.pieces[i] for i in np.flatnonzero(vocabulary.speakable).tolist()}
    piece = text.encode()
    node, token = trie.walk(ROOT, piece)
    assert (node >= 0) == any(other.startswith(piece) for other in said)
    begins = [other for other in said if piece.startswith(other)]
    longest = vocabulary.pieces[trie.token_ids[trie.low[token]]] if token >= 0 else None
    assert longest == max(begins, key=len, default=None)
    assert trie.path(piece) == (node, token)
