"""Log-likelihood of a given text, forced through the engine."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from evaluations import WHOLE, by_hand, ensemble
from fakes import WORDS_A, WORDS_B, FakeModel
from hypothesis import given
from hypothesis import strategies as st

from eva_local.config.specs import FusionSettings
from eva_local.engine.sequence import ScoredSequence, TextSequence
from eva_local.errors import ContextError, InputError
from eva_local.types import Sampling, Score


@pytest.mark.parametrize("text", ["e", " unbelievable Paris", "é中\n"])
def test_one_member_scores_its_own_tokens(text) -> None:
    found = ensemble([FakeModel()]).score("the", text)
    assert found.log_likelihood == pytest.approx(by_hand(FakeModel(), "the", text))
    assert found.n_bytes == len(text.encode())
    assert found.n_symbols == len(FakeModel().tokenizer.encode(text.encode()))
    assert found.per_byte == pytest.approx(found.log_likelihood / found.n_bytes)
    assert (found.filtered, found.unseen) == ((0,), 0)


@given(text=st.text("the unbelivaPrs.,", min_size=1, max_size=20))
def test_copies_score_as_one_does(text) -> None:
    one = ensemble([FakeModel()]).score("the", text)
    two = ensemble([FakeModel(), FakeModel()], FusionSettings(candidates=0)).score("the", text)
    assert two.log_likelihood == pytest.approx(one.log_likelihood)


def wordy(words: list[bytes]) -> FakeModel:
    """A model that writes whole words, each of which only one token spells."""
    model = FakeModel(words)
    pieces = model.vocabulary.pieces
    liked = [len(p) > 1 and p.isalpha() and pieces.count(p) == 1 for p in pieces]
    model._logits = lambda tokens: (model._hashed(tokens) + np.where(liked, 20, 0)).astype(
        np.float32
    )
    return model


def test_a_score_is_the_product_of_what_the_steps_of_an_answer_gave() -> None:
    fusion = FusionSettings(candidates=0, weights="running", combine="geometric")
    compared = 0
    for number in range(40):
        models = [wordy(WORDS_A), wordy(WORDS_B)]
        steps = list(ensemble(models, fusion).stream(f"the {number}", Sampling(max_tokens=4)))
        written = [step.piece for step in steps]
        tokens = models[0].tokenizer.encode(b"".join(written))
        # The answer may be spelled in other symbols than those that were drawn.
        if [models[0].vocabulary.pieces[token_id] for token_id in tokens] != written:
            continue
        fresh = ensemble([wordy(WORDS_A), wordy(WORDS_B)], fusion)
        found = fresh.score(f"the {number}", b"".join(written).decode())
        expected = sum(math.log(step.probability) for step in steps)
        assert found.log_likelihood == pytest.approx(expected)
        compared += 1
    assert compared > 5


@pytest.mark.parametrize("can_roll_back", [True, False])
def test_a_text_is_decoded_in_long_runs_and_scored_as_step_by_step(
    monkeypatch, can_roll_back
) -> None:
    def scored() -> tuple[Score, list[int]]:
        members = [FakeModel(words, can_roll_back=can_roll_back) for words in (WORDS_A, WORDS_B)]
        calls = [0, 0]
        for number, member in enumerate(members):

            def counted(runs, number=number, decode=member.decode):
                calls[number] += 1
                return decode(runs)

            member.decode = counted
        fusion = FusionSettings(candidates=0, weights="running", combine="geometric")
        return ensemble(members, fusion).score("the", " unbelievable Paris there" * 10), calls

    in_runs, calls = scored()
    monkeypatch.setattr(ScoredSequence, "foretell", TextSequence.foretell)
    by_step, calls_by_step = scored()
    assert in_runs == by_step
    assert min(calls_by_step) >= in_runs.n_symbols
    if can_roll_back:
        # Of the pivot's own tokens, up to 32 at once; the other's differ inside words.
        assert calls[0] < calls_by_step[0] / 5
        assert calls[1] < calls_by_step[1]
    else:
        assert calls == calls_by_step


def test_choices_share_the_prompt() -> None:
    models = [FakeModel(WORDS_A), FakeModel(WORDS_B)]
    scorer = ensemble(models)
    prompt = "the unbelievable end " * 10
    first = scorer.score(prompt, " Paris")
    before = [model.decoded for model in models]
    second = scorer.score(prompt, " there")
    # The last token of the prompt is decoded again, then what comes before the last symbol.
    assert all(
        model.decoded - start <= 2 + len(" there")
        for model, start in zip(models, before, strict=True)
    )
    assert min(before) > 30
    assert scorer.score(prompt, " Paris") == first
    assert ensemble([FakeModel(WORDS_A), FakeModel(WORDS_B)]).score(prompt, " there") == second


def test_what_is_no_candidate_counts_as_the_least_of_them() -> None:
    few = FusionSettings(candidates=2, filter="off")
    model = FakeModel()
    found = ensemble([model], few).score("the", "x")
    logits = np.sort(model._hashed([1, *model.tokenizer.encode(b"the")]).astype(float))[-2:]
    least = 1 / (1 + math.exp(logits[1] - logits[0]))
    assert found.unseen == 1
    assert found.log_likelihood == pytest.approx(math.log(least))


def test_the_share_of_dropped_votes_is_counted() -> None:
    fusion = FusionSettings(candidates=0, filter="top-n", filter_n=1)
    found = ensemble([FakeModel(WORDS_A), FakeModel(WORDS_B), FakeModel(WORDS_A)], fusion).score(
        "the", " unbelievable"
    )
    assert found.filtered[1] == found.n_symbols
    assert found.filtered[0] == 0


def test_an_observer_hears_of_every_decision() -> None:
    heard = []
    scorer = ensemble([FakeModel(WORDS_A), FakeModel(WORDS_B)])
    found = scorer.score("the", " Paris is", observe=lambda *told: heard.append(told))
    assert [symbol for _, symbol, _ in heard] == FakeModel().tokenizer.encode(b" Paris is")
    assert sum(n_bytes for _, _, n_bytes in heard) == len(" Paris is")
    fused = sum(math.log(decision.fused.probability(symbol)) for decision, symbol, _ in heard)
    assert fused == pytest.approx(found.log_likelihood)


def test_what_cannot_be_scored_is_a_clear_error() -> None:
    with pytest.raises(InputError, match="no text"):
        ensemble([FakeModel()]).score("the", "")
    with pytest.raises(InputError, match="no token for a character"):
        ensemble([FakeModel(missing=[0xC3])]).score("the", "é")
    with pytest.raises(ContextError, match="does not fit"):
        ensemble([FakeModel(n_ctx=12)]).score("the", "the end is the end is the end is the end")


@given(text=st.text("the unbelivaPrs.,", min_size=1, max_size=20))
def test_each_member_scores_the_same_symbols_by_its_own_vote(text) -> None:
    equal = replace(WHOLE, weights="equal")
    pair = ensemble([FakeModel(WORDS_A), FakeModel(WORDS_B)], equal)
    found = pair.score("the", text)
    one, other = found.members
    assert one == pytest.approx(by_hand(FakeModel(WORDS_A), "the", text))
    assert one == pytest.approx(pair.score("the", text, alone="m0").log_likelihood)
    assert other < 0
    # The mean of two votes is at least half of each.
    assert found.log_likelihood >= max(one, other) - found.n_symbols * math.log(2) - 1e-9
    assert pair.score("the", text, alone="m1").members == pytest.approx(
        [by_hand(FakeModel(WORDS_B), "the", text)]
    )


def test_a_member_that_was_not_asked_each_time_has_no_score() -> None:
    fusion = FusionSettings(candidates=0, filter="off", gate=0.01)
    found = ensemble([FakeModel(WORDS_A), FakeModel(WORDS_B)], fusion).score("the", " Paris is")
    assert found.members[0] < 0
    assert found.members[1] is None


def test_weights_that_are_given_do_not_change_what_members_think() -> None:
    scorer = ensemble([FakeModel(WORDS_A), FakeModel(WORDS_B)])
    expected = scorer.score("the", " Paris is")
    found = scorer.score("the", " Paris is", weights=(1.0, 0.0))
    assert found.members == pytest.approx(expected.members)
    assert found.log_likelihood == pytest.approx(expected.members[0])


@given(text=st.text(min_size=1, max_size=20), n_top=st.integers(0, 5))
def test_symbols_are_told_on_request(text, n_top) -> None:
    scorer = ensemble([FakeModel(WORDS_A), FakeModel(WORDS_B)])
    found = scorer.score("the", text, symbols=True, n_top=n_top)
    assert b"".join(symbol.piece for symbol in found.symbols) == text.encode("utf-8", "replace")
    assert sum(symbol.log_probability for symbol in found.symbols) == pytest.approx(
        found.log_likelihood
    )
    for symbol in found.symbols:
        assert len(symbol.top) == n_top
        shares = [each.probability for each in symbol.top]
        assert shares == sorted(shares, reverse=True)
    assert scorer.score("the", text).symbols == ()


@given(text=st.text(max_size=20))
def test_symbols_are_as_good_as_their_text(text) -> None:
    scorer = ensemble([FakeModel(WORDS_A), FakeModel(WORDS_B)])
    data = text.encode("utf-8", "replace")
    prompt = scorer.tokenize("the" + text)
    assert scorer.detokenize(prompt) == b"the" + data
    expected = scorer.score("the" + text, " Paris")
    assert scorer.score(prompt, " Paris") == expected
    assert scorer.score(prompt, scorer.tokenize(" Paris")) == expected
    few = Sampling(max_tokens=3)
    assert scorer.complete(prompt, few).text == scorer.complete("the" + text, few).text


def test_symbols_are_scored_as_they_are_given() -> None:
    scorer = ensemble([FakeModel(WORDS_A), FakeModel(WORDS_B)])
    letters = [scorer.tokenize(letter)[0] for letter in "the"]
    found = scorer.score("a", letters, symbols=True)
    assert [symbol.piece for symbol in found.symbols] == [b"t", b"h", b"e"]
    assert found.n_symbols == 3 > scorer.score("a", "the").n_symbols


def test_half_a_character_can_be_a_prompt() -> None:
    scorer = ensemble([FakeModel(WORDS_A), FakeModel(WORDS_B, missing=[0xC3])])
    halves = [3 + 1 + byte for byte in b"the \xe4\xb8"]
    assert scorer.detokenize(halves) == b"the \xe4\xb8"
    assert scorer.score(halves, " a").log_likelihood < 0


def test_control_tokens_never_come_from_symbols() -> None:
    scorer = ensemble([FakeModel(WORDS_A), FakeModel(WORDS_B)])
    vocabulary = FakeModel(WORDS_A).vocabulary
    pad = vocabulary.pieces.index(b"[PAD]")
    for symbol in (0, 1, 2, 3, pad, scorer.n_symbols - 1, scorer.n_symbols, -1):
        with pytest.raises(InputError, match="no text here"):
            scorer.detokenize([symbol])
        with pytest.raises(InputError, match="no text here"):
            scorer.score([*scorer.tokenize("the"), symbol], " a")
        with pytest.raises(InputError, match="no text here"):
            scorer.score("the", [symbol])
        with pytest.raises(InputError, match="no text here"):
            scorer.complete([symbol])
    assert 3 not in scorer.tokenize("<|im_end|>")
    with pytest.raises(InputError, match=r"messages\[0\].role"):
        scorer.complete([{"role": "nobody", "content": "the"}])
    with pytest.raises(InputError, match="no text"):
        scorer.score("the", [])
