"""The space of bytes against a brute-force sum over all tokenisations."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest
from fakes import WORDS_A, WORDS_B, FakeModel
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eva_local.fusion.votes import Floats
from eva_local.llama.model import Logits, Model, Run
from eva_local.spaces.bytes.boundary import END
from eva_local.spaces.bytes.space import BRANCHES, ByteSpace, ByteState
from eva_local.spaces.bytes.trie import ROOT, Trie

# Nested, overlapping and duplicate pieces, halves of characters, and a byte that is a word too.
WORDS = [b"a", b"ab", b"abc", b"b", b"bc", b"c", b"ab", b"\xc3", b"\xc3\xa9", b" a", b" "]
TEXTS = st.text(alphabet="abcé ", max_size=5).map(str.encode)


def brute(model: FakeModel, row: tuple[int, ...], rest: bytes) -> Floats:
    """Return (257,): the mass of each byte after `rest`, over every way to tokenise `rest`.

    The definition itself: whatever begins with `rest` and goes on gives its mass to the byte
    that it goes on with; whatever `rest` begins with is a token, and the sum goes on behind it.
    """
    vocabulary = model.vocabulary
    model.remove(0, 0)
    (logits,) = model.decode([Run(0, 0, row)])
    assert logits is not None
    ends = sorted(vocabulary.end_ids)
    weights = np.exp(logits.astype(np.float64) - logits.max())
    weights /= weights[vocabulary.speakable].sum() + weights[ends].sum()
    masses = np.zeros(END + 1)
    if not rest:
        masses[END] = weights[ends].sum()
    for token_id in np.flatnonzero(vocabulary.speakable).tolist():
        piece = vocabulary.pieces[token_id]
        if len(piece) > len(rest):
            if piece.startswith(rest):
                masses[piece[len(rest)]] += weights[token_id]
        elif rest.startswith(piece):
            behind = brute(model, (*row, token_id), rest[len(piece) :])
            masses += weights[token_id] * behind
    return masses


SYMBOLS = np.arange(END + 1)


def read(model: Model, state: ByteState) -> None:
    while not state.ready:
        runs = state.pending(None)
        for run, logits in zip(runs, model.decode(runs), strict=True):
            state.take(run, logits)


def unlimited(model: FakeModel) -> ByteState:
    return ByteState(model, range(4096), Trie(model.vocabulary), threshold=0)


@settings(max_examples=30)
@given(TEXTS)
def test_the_next_byte_is_the_sum_over_all_tokenisations(text: bytes) -> None:
    model, other = FakeModel(WORDS, logits=by_bytes), FakeModel(WORDS, logits=by_bytes)
    state = unlimited(model)
    state.start([1])
    for count in range(len(text) + 1):
        read(model, state)
        found = state.next_bytes()
        expected = brute(other, (1,), text[:count])
        # Shares are in single precision, as logits are.
        np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-5, atol=1e-9)
        assert found.sum() == pytest.approx(1)
        if count < len(text):
            state.commit(text[count])


@functools.cache
def twins() -> dict[int, int]:
    """Return for each token the first one with the same piece."""
    pieces = FakeModel(WORDS).vocabulary.pieces
    firsts = {piece: token_id for token_id, piece in reversed(list(enumerate(pieces)))}
    return {i: firsts[piece] if piece else i for i, piece in enumerate(pieces)}


def by_bytes(tokens: Sequence[int]) -> Logits:
    """Return logits that depend on the pieces of the past, not on which id stood for them.

    A member follows the likelier of two ids with the same piece, for the mass of both: that is
    exact where what follows does not depend on the id.
    """
    return FakeModel(WORDS)._hashed([twins()[token_id] for token_id in tokens])


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


@settings(max_examples=25)
@given(st.text(max_size=12).map(str.encode))
def test_a_member_with_few_rows_follows_any_text(text: bytes) -> None:
    model = FakeModel(WORDS_A)
    (state,) = ByteSpace([model]).states(0)
    state.start([1])
    for byte in text:
        read(model, state)
        vote = state.vote(SYMBOLS)
        assert vote.probabilities.sum() == pytest.approx(1)
        assert vote.probabilities.min() > 0
        assert len(model.cache) <= BRANCHES
        state.commit(byte)
    read(model, state)


@settings(max_examples=25)
@given(st.text(max_size=12).map(str.encode))
def test_a_member_that_cannot_roll_back_follows_any_text(text: bytes) -> None:
    model = FakeModel(WORDS_A, can_roll_back=False)
    (state,) = ByteSpace([model]).states(0)
    state.start([1])
    for byte in text:
        read(model, state)
        assert state.vote(SYMBOLS).probabilities.sum() == pytest.approx(1)
        state.commit(byte)
    read(model, state)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(alphabet="theunbliav Pars.?;c", max_size=24).map(str.encode),
    words=st.sampled_from([WORDS, WORDS_A, WORDS_B]),
    seed=st.integers(0, 9999),
    threshold=st.sampled_from([0.04, 0.3, 0.5]),
    settles=st.booleans(),
)
# The last row that waits is decoded, and turns out not to go on as the text did.
@example(text=b"ceb av", words=WORDS, seed=910, threshold=0.5, settles=False)
def test_whatever_is_given_up_some_row_is_there_to_vote(
    text: bytes, words: list[bytes], seed: int, threshold: float, settles: bool
) -> None:
    model = FakeModel(words)
    model._logits = lambda tokens: model._hashed([seed, *tokens]) * 1.5
    state = ByteState(model, range(BRANCHES), Trie(model.vocabulary), threshold=threshold)
    state.start([1])
    for byte in [*text, 0x20]:
        read(model, state)
        pieces, shares, ends = state.pieces(8)
        assert pieces
        assert len(pieces) == len(shares) == len(ends)
        assert state.next_bytes().sum() == pytest.approx(1)
        state.commit(byte)
        if settles:
            state.settle()
