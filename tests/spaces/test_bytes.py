"""Members in the space of bytes follow any text."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import NESTED, WORDS_A, WORDS_B, FakeModel
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eva_local.llama.model import Model
from eva_local.spaces.base import Beginning
from eva_local.spaces.bytes.row import END
from eva_local.spaces.bytes.space import BRANCHES, ByteSpace
from eva_local.spaces.bytes.state import ByteState
from eva_local.spaces.bytes.trie import Trie

SYMBOLS = np.arange(END + 1)


def read(model: Model, state: ByteState) -> None:
    while not state.ready:
        runs = state.pending(None)
        for run, logits in zip(runs, model.decode(runs), strict=True):
            state.take(run, logits)


@settings(max_examples=25)
@given(st.text(max_size=12).map(str.encode))
def test_a_member_with_few_rows_follows_any_text(text: bytes) -> None:
    model = FakeModel(WORDS_A)
    (state,) = ByteSpace([model]).states(0)
    state.start(Beginning([1]))
    for byte in text:
        read(model, state)
        vote = state.vote(SYMBOLS)
        assert vote.probabilities.sum() == pytest.approx(1)
        assert vote.probabilities.min() > 0
        assert len(model.cache) <= BRANCHES
        state.commit(byte)
    read(model, state)


@settings(max_examples=25)
@given(st.text(max_size=12).map(str.encode), st.sampled_from([0, 1, 4]))
def test_a_member_that_cannot_roll_back_follows_any_text(text: bytes, snapshots: int) -> None:
    model = FakeModel(WORDS_A, can_roll_back=False, snapshots=snapshots)
    (state,) = ByteSpace([model]).states(0)
    state.start(Beginning([1]))
    for byte in text:
        read(model, state)
        assert state.vote(SYMBOLS).probabilities.sum() == pytest.approx(1)
        state.commit(byte)
    read(model, state)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(alphabet="theunbliav Pars.?;c", max_size=24).map(str.encode),
    words=st.sampled_from([NESTED, WORDS_A, WORDS_B]),
    seed=st.integers(0, 9999),
    threshold=st.sampled_from([0.04, 0.3, 0.5]),
    settles=st.booleans(),
)
# The last row that waits is decoded, and turns out not to go on as the text did.
@example(text=b"ceb av", words=NESTED, seed=910, threshold=0.5, settles=False)
def test_whatever_is_given_up_some_row_is_there_to_vote(
    text: bytes, words: list[bytes], seed: int, threshold: float, settles: bool
) -> None:
    model = FakeModel(words)
    model._logits = lambda tokens: model._hashed([seed, *tokens]) * 1.5
    state = ByteState(model, range(BRANCHES), Trie(model.vocabulary), threshold=threshold)
    state.start(Beginning([1]))
    for byte in [*text, 0x20]:
        read(model, state)
        pieces, shares, ends = state.beam.pieces(8)
        assert pieces
        assert len(pieces) == len(shares) == len(ends)
        assert state.beam.next().sum() == pytest.approx(1)
        state.commit(byte)
        if settles:
            state.settle()
