from array import array
from collections.abc import Sequence

import numpy as np
import pytest
from fakes import WORDS_A, WORDS_B, FakeModel
from hypothesis import given
from hypothesis import strategies as st
from strategies import cut

from eva_local.cache.context import Context, as_row, common


def decode(model: FakeModel, context: Context) -> np.ndarray:
    """Decode what is pending and return the logits."""
    while True:
        run = context.pending(model.n_batch)
        (row,) = model.decode([run])
        context.decoded(run)
        if row is not None:
            return row


@pytest.mark.parametrize("words", [WORDS_A, WORDS_B])
@pytest.mark.parametrize("snapshots", [None, 0, 3])
@given(pieces=cut())
def test_law_1_tokens_join_to_the_text_after_every_commit(words, snapshots, pieces) -> None:
    model = FakeModel(words, can_roll_back=snapshots is None, snapshots=snapshots or 0)
    context = Context(model)
    context.start([1, 7])
    text = b""
    for piece in pieces:
        context.append(piece)
        text += piece
        assert context.text == text
        assert model.vocabulary.join(context.tokens[context._n_prompt :]) == text
        assert list(context.tokens[:2]) == [1, 7]
        decode(model, context)
        assert model.cache[0] == list(context.tokens)


@given(first=cut(), second=cut())
def test_law_7_logits_after_rollback_are_those_of_a_fresh_context(first, second) -> None:
    model = FakeModel()
    context = Context(model)
    context.start([1])
    for piece in first:
        context.append(piece)
        decode(model, context)
    prompt = [1, *model.tokenizer.encode(b"".join(second))]
    context.start(prompt)
    fresh = FakeModel()
    other = Context(fresh)
    other.start(prompt)
    assert np.array_equal(decode(model, context), decode(fresh, other))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=30))
def test_own_tokens_are_appended_as_they_are(numbers) -> None:
    model = FakeModel()
    words = [i for i in range(len(model.vocabulary)) if model.vocabulary.speakable[i]]
    chosen = [words[number] for number in numbers]
    context = Context(model)
    context.start([1])
    for token_id in chosen:
        context.append_token(token_id)
    assert list(context.tokens[context._n_prompt :]) == chosen


def test_a_word_is_read_whole_once_it_is_complete() -> None:
    model = FakeModel()
    context = Context(model)
    context.start([1])
    for piece in (b" the", b" unb", b"elie", b"va", b"ble"):
        context.append(piece)
    pieces = [model.vocabulary.pieces[i] for i in context.tokens[context._n_prompt :]]
    assert pieces == [b" the", b" unb", b"elie", b"vable"]


def test_only_new_tokens_are_decoded() -> None:
    model = FakeModel()
    context = Context(model)
    context.start([1, *model.tokenizer.encode(b"the the the")])
    decode(model, context)
    before = model.decoded
    context.append(b" a")
    decode(model, context)
    assert model.decoded == before + 2
    # The next turn begins with what was said; only what follows is new.
    prompt = [*context.tokens, 9, 10]
    context.start(prompt)
    assert context.n_cached == len(prompt) - 2
    decode(model, context)
    assert model.decoded == before + 4


def test_a_prompt_that_is_wholly_cached_decodes_its_last_token_again() -> None:
    model = FakeModel()
    context = Context(model)
    context.start([1, 8, 9])
    first = decode(model, context)
    context.start([1, 8, 9])
    run = context.pending()
    assert (run.start, list(run.tokens)) == (2, [9])
    assert np.array_equal(model.decode([run])[0], first)


def test_a_model_with_snapshots_goes_back_to_them() -> None:
    model = FakeModel(can_roll_back=False, snapshots=4)
    context = Context(model)
    end = model.vocabulary.eos_id
    prompt = [1, 8, 9, end, 10, 11, 12]
    context.start(prompt)
    decode(model, context)
    context.append(b" the un")
    decode(model, context)
    # An answer is written again, and a turn goes on otherwise than its answer began.
    assert context.holds(prompt) == len(prompt)
    assert context.holds([1, 8, 9, end, 10, 13]) == 4
    assert context.holds([1, 8, 13]) == 0
    before = model.decoded
    context.start([1, 8, 9, end, 10, 13])
    decode(model, context)
    assert model.cache[0] == [1, 8, 9, end, 10, 13]
    assert model.decoded == before + 2
    # Others will begin with two tokens.
    context.start([1, 8, 14, 15], shared=2)
    decode(model, context)
    assert context.holds([1, 8, 16]) == 2


def test_a_word_is_read_whole_also_where_tokens_cannot_be_taken_back() -> None:
    model = FakeModel(can_roll_back=False, snapshots=2)
    context = Context(model)
    context.start([1, 7])
    decode(model, context)
    before = model.decoded
    for piece in (b" the", b" un", b"belie", b"va", b"ble"):
        context.append(piece)
        decode(model, context)
    pieces = [model.vocabulary.pieces[i] for i in context.tokens[context._n_prompt :]]
    assert pieces == [b" the", b" unb", b"elie", b"vable"]
    assert model.cache[0] == list(context.tokens)
    assert model.decoded - before < 20


def test_a_model_without_rollback_begins_anew() -> None:
    model = FakeModel(can_roll_back=False)
    context = Context(model)
    context.start([1, 8, 9])
    decode(model, context)
    context.start([1, 8, 10])
    decode(model, context)
    assert model.cache[0] == [1, 8, 10]


def test_an_interrupted_decode_is_forgotten() -> None:
    model = FakeModel()
    context = Context(model)
    context.start([1, 8, 9])
    model.decode([context.pending()])  # and no word of it to the context: Ctrl-C
    context.start([1, 8, 9, 10])
    decode(model, context)
    assert model.cache[0] == [1, 8, 9, 10]


@pytest.mark.parametrize("text", [b" the", "中".encode(), b"  ", b"a", b"\xff"])
def test_law_10_re_tokenising_does_not_reach_far_back(text) -> None:
    model = FakeModel()
    seen: list[int] = []
    encode = model.tokenizer.encode
    model.tokenizer.encode = lambda data: seen.append(len(data)) or encode(data)  # type: ignore[method-assign]
    context = Context(model)
    context.start([1])
    for _ in range(400):
        context.append(text)
    assert max(seen[200:]) <= 64


def naive(old: Sequence[int], new: Sequence[int]) -> int:
    count = 0
    for left, right in zip(old, new, strict=False):
        if left != right:
            break
        count += 1
    return count


rows = st.lists(st.sampled_from([0, 1, 2, 128, 255, 256, 65536, 2**31 - 1]), max_size=70)


@given(rows, rows, rows, st.booleans(), st.booleans())
def test_the_common_beginning_is_that_of_comparing_token_by_token(
    head, left, right, old_is_row, new_is_row
) -> None:
    old, new = [*head, *left], [*head, *right]
    found = common(as_row(old) if old_is_row else old, as_row(new) if new_is_row else new)
    assert found == naive(old, new)


def test_rows_are_compared_without_looking_at_each_token() -> None:
    class Row(array):
        def __iter__(self):
            raise AssertionError

        def __getitem__(self, place):
            raise AssertionError

    old, new = Row("i", range(30_000)), Row("i", range(30_000))
    assert common(old, new) == 30_000
    new[29_999] = 7
    assert common(old, new) == 29_999
    assert common(old, as_row(())) == 0
