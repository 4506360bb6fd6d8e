"""The laws of the step loop in the space of bytes, on fake models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from engines import CASTS, RUNNING, Cast, pair, roles, run, text_of, ticket
from engines import bytes_engine as ensemble
from fakes import WORDS_A, WORDS_B, FakeModel
from hypothesis import given, settings
from hypothesis import strategies as st

from eva_local.config.specs import FusionSettings
from eva_local.engine.engine import Engine
from eva_local.engine.request import Ticket
from eva_local.engine.scheduler import Scheduler
from eva_local.engine.sequence import TextSequence
from eva_local.errors import EvaError, ModelError
from eva_local.llama.model import Logits, Run
from eva_local.types import Sampling, Step


def begin(
    engine: Engine,
    models: list[FakeModel],
    sampling: Sampling,
    text: bytes = b"the",
    slot: int = 0,
    prefixes: Sequence[bytes] = (),
) -> TextSequence:
    pairs = zip(models, prefixes or [b""] * len(models), strict=True)
    prompts = [[1, *model.tokenizer.encode(prefix + text)] for model, prefix in pairs]
    return engine.begin(ticket(engine, prompts, sampling, trace=True), slot)


def in_bytes(cast: Callable[[], Cast]) -> Cast:
    models, prefixes, fusion = cast()
    return models, prefixes, RUNNING if cast is pair else replace(fusion, space="bytes")


@pytest.mark.parametrize("cast", CASTS)
@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0, 1]))
def test_law_1_every_row_of_every_member_is_the_shared_text(
    cast: Callable[[], Cast], seed: int, temperature: float
) -> None:
    models, prefixes, fusion = in_bytes(cast)
    engine = ensemble(*models, fusion=fusion)
    how = Sampling(max_tokens=12, temperature=temperature, seed=seed)
    sequence = begin(engine, models, how, prefixes=prefixes)
    shared = b""
    while not sequence.finished:
        (told,) = engine.step([sequence])
        shared += b"".join(step.piece for step in told)
        for model, prefix, state in zip(models, prefixes, sequence.states, strict=True):
            assert state.beam.text.startswith(shared)
            assert shared.startswith(bytes(state.beam.text[: len(shared)]))
            prompt = len(model.tokenizer.encode(prefix + b"the")) + 1
            for row in state.rows():
                assert state.beam.text.startswith(model.vocabulary.join(row[prompt:]))


@settings(max_examples=10)
@given(order=st.permutations(range(3)))
def test_law_4_the_order_of_members_does_not_matter(order: list[int]) -> None:
    words = [WORDS_A, WORDS_B, WORDS_B[::-1]]
    texts = []
    for places in (range(3), order):
        models = [FakeModel(words[i]) for i in places]
        engine = ensemble(*models)
        texts.append(text_of(run(engine, begin(engine, models, Sampling(max_tokens=8)))[0]))
    shortest = min(map(len, texts))
    # The borders of steps depend on who leads; the bytes do not.
    assert texts[0][:shortest] == texts[1][:shortest]


@settings(max_examples=10)
@given(order=st.permutations(range(3)))
def test_law_4_nor_does_that_of_members_of_one_model(order: list[int]) -> None:
    texts = []
    for places in (range(3), order):
        models, prefixes, fusion = in_bytes(roles)
        fusion = replace(fusion, weights=tuple(fusion.weights[i] for i in places))
        models, prefixes = [models[i] for i in places], [prefixes[i] for i in places]
        engine = ensemble(*models, fusion=fusion)
        sequence = begin(engine, models, Sampling(max_tokens=8), prefixes=prefixes)
        texts.append(text_of(run(engine, sequence)[0]))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("weights", ["equal", "running"])
@pytest.mark.parametrize("grammar", [None, "root ::= [a-z ]+"])
def test_law_4_holds_for_members_of_one_vocabulary_too(weights: str, grammar: str | None) -> None:
    def twin(number: int) -> FakeModel:
        model = FakeModel(WORDS_A)
        model.path = Path(f"{number}.gguf")
        model._logits = lambda tokens: model._hashed([number, *tokens])
        return model

    fusion = FusionSettings(space="bytes", weights=weights)
    for first in range(0, 20, 2):
        texts = set()
        for order in ((first, first + 1), (first + 1, first)):
            models = [twin(number) for number in order]
            engine = ensemble(*models, fusion=fusion)
            sampling = Sampling(max_tokens=6, grammar=grammar)
            texts.add(text_of(run(engine, begin(engine, models, sampling))[0]))
        assert len(texts) == 1


@pytest.mark.parametrize("cast", CASTS)
@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_law_5_streamed_text_is_the_whole_text(cast: Callable[[], Cast], seed: int) -> None:
    models, prefixes, fusion = in_bytes(cast)
    engine = ensemble(*models, fusion=fusion)
    sampling = Sampling(max_tokens=20, temperature=1, seed=seed, stop=("th", "e "))
    (steps,) = run(engine, begin(engine, models, sampling, prefixes=prefixes))
    shown = "".join(step.text for step in steps)
    whole = text_of(steps).decode("utf-8", "replace")
    assert whole.startswith(shown.rstrip("\ufffd")[: len(shown)])
    assert not any(stop in shown for stop in sampling.stop)
    assert [step.finish_reason for step in steps[:-1]] == [None] * (len(steps) - 1)


@pytest.mark.parametrize("cast", CASTS)
def test_law_6_same_seed_same_text(cast: Callable[[], Cast]) -> None:
    def write(seed: int) -> bytes:
        models, prefixes, fusion = in_bytes(cast)
        engine = ensemble(*models, fusion=fusion)
        sampling = Sampling(max_tokens=12, temperature=1.5, top_p=1, min_p=0, top_k=0, seed=seed)
        return text_of(run(engine, begin(engine, models, sampling, prefixes=prefixes))[0])

    assert write(7) == write(7)
    assert len({write(seed) for seed in range(5)}) == 5


@pytest.mark.parametrize("cast", CASTS)
def test_texts_side_by_side_read_as_each_alone(cast: Callable[[], Cast]) -> None:
    starts = [b"the", b" a", b"Paris", b"un"]
    how = Sampling(max_tokens=8)
    models, prefixes, fusion = in_bytes(cast)
    for model in models:
        model.n_batch = 256
    engine = ensemble(*models, fusion=fusion)
    sequences = [
        begin(engine, models, how, start, slot, prefixes) for slot, start in enumerate(starts)
    ]
    together = [text_of(steps) for steps in run(engine, *sequences)]
    alone = []
    for start in starts:
        fresh = in_bytes(cast)[0]
        one = ensemble(*fresh, fusion=fusion)
        sequence = begin(one, fresh, how, start, prefixes=prefixes)
        alone.append(text_of(run(one, sequence)[0]))
    assert together == alone


def test_a_second_turn_decodes_only_what_is_new() -> None:
    models = [FakeModel(WORDS_A), FakeModel(WORDS_B)]
    engine = ensemble(*models)
    sequence = begin(engine, models, Sampling(max_tokens=4), b"the unbelievable Paris is")
    (steps,) = run(engine, sequence)
    again = begin(engine, models, Sampling(max_tokens=4), b"the unbelievable Paris is a")
    (more,) = run(engine, again)
    usage = more[-1].usage
    assert usage is not None
    assert all(
        cached >= len(model.tokenizer.encode(b"the unbelievable Paris"))
        for cached, model in zip(usage.cached_tokens, models, strict=True)
    )
    fresh = [FakeModel(WORDS_A), FakeModel(WORDS_B)]
    one = ensemble(*fresh)
    expected = run(one, begin(one, fresh, Sampling(max_tokens=4), b"the unbelievable Paris is a"))
    assert text_of(more) == text_of(expected[0])
    assert steps


@pytest.mark.parametrize("weights", ["equal", "running", (1.0, 0.0)])
@pytest.mark.parametrize("combine", ["mean", "geometric"])
def test_a_trace_tells_pieces_and_weights(weights: str, combine: str) -> None:
    models = [FakeModel(WORDS_A), FakeModel(WORDS_B)]
    fusion = FusionSettings(space="bytes", combine=combine, filter="off", weights=weights)
    engine = ensemble(*models, fusion=fusion)
    (steps,) = run(engine, begin(engine, models, Sampling(max_tokens=6)))
    for step in steps:
        assert step.trace is not None
        assert sum(ballot.weight for ballot in step.trace.ballots) == pytest.approx(1)
        assert 0 < step.probability <= 1
        for ballot in step.trace.ballots:
            assert 0 <= ballot.chosen <= 1
            assert sum(c.probability for c in ballot.top) <= 1 + 1e-9


def test_biases_and_penalties_speak_of_whole_pieces() -> None:
    models = [FakeModel(WORDS_A), FakeModel(WORDS_B)]
    engine = ensemble(*models)

    def written(**options: object) -> list[bytes]:
        (steps,) = run(engine, begin(engine, models, Sampling(max_tokens=12, **options)))
        return [step.piece for step in steps if step.piece]

    plain = written()
    forbidden = next(piece for piece in plain[1:] if piece.isascii())
    first = plain.index(forbidden)
    biased = written(logit_bias={forbidden.decode(): False})
    assert biased[:first] == plain[:first]
    assert forbidden not in biased
    assert written(repeat_penalty=1.0, logit_bias={"nothing like this": 5}) == plain


def test_biases_and_penalties_hold_under_a_grammar() -> None:
    def written(**settings) -> list[bytes]:
        models = [FakeModel(WORDS_A), FakeModel(WORDS_B)]
        rule = 'root ::= ("the" | "a" | "un"){9}'
        sampling = Sampling(max_tokens=6, grammar=rule, **settings)
        engine = ensemble(*models)
        (steps,) = run(engine, begin(engine, models, sampling))
        return [step.piece for step in steps]

    assert b"t" not in b"".join(written(logit_bias={"t": False, "th": False, "the": False}))
    assert written(logit_bias={"a": 99.0}) == [b"a"] * 6
    never_twice = written(logit_bias={"a": 9.0}, presence_penalty=99.0, repeat_last_n=1)
    assert never_twice[::2] != never_twice[1::2]
    assert all(one != other for one, other in pairwise(never_twice))


def test_what_a_grammar_leaves_no_choice_of_is_written_in_the_longest_pieces() -> None:
    for words in (WORDS_A, WORDS_B):
        models = [FakeModel(words)]
        engine = ensemble(*models)
        sampling = Sampling(grammar='root ::= "the unbelievable end" ("." | "!")')
        (steps,) = run(engine, begin(engine, models, sampling))
        pieces = [step.piece for step in steps]
        assert b"".join(pieces[:-1]) == b"the unbelievable end"
        known = [piece for piece in models[0].vocabulary.pieces if piece]
        left = b"the unbelievable end"
        while left:
            longest = max((each for each in known if left.startswith(each)), key=len)
            assert pieces.pop(0) == longest
            left = left[len(longest) :]


def test_a_way_that_is_one_token_is_not_the_only_way() -> None:
    words = [*(bytes([byte]) for byte in b" unz"), b" un"]
    model = FakeModel(words, logits=preferring(words, {b" ": 3, b"z": 5, b" un": 1}))
    engine = ensemble(model)
    sampling = Sampling(grammar='root ::= " " ("un" | "zz")')
    (steps,) = run(engine, begin(engine, [model], sampling, b"u"))
    assert text_of(steps) == b" zz"


def greedy_alone(model: FakeModel, text: bytes, count: int) -> bytes:
    """The plain loop: the likeliest piece again and again, where ids with one piece add up."""
    vocabulary = model.vocabulary
    tokens = [1, *model.tokenizer.encode(text)]
    made: list[int] = []
    while len(made) < count:
        masses = np.exp(model._hashed(tokens + made).astype(np.float64))
        by_piece: dict[bytes, list[int]] = {b"": sorted(vocabulary.end_ids)}
        for token_id in np.flatnonzero(vocabulary.speakable).tolist():
            by_piece.setdefault(vocabulary.pieces[token_id], []).append(token_id)
        ids = max(by_piece.values(), key=lambda ids: masses[ids].sum())
        if ids[0] in vocabulary.end_ids:
            break
        made.append(max(ids, key=masses.__getitem__))
    return vocabulary.join(made)


@settings(max_examples=20)
@given(text=st.sampled_from([b"the", b"un", b"Paris", b" a", b"!", b"e", b"ing", b"by"]))
def test_law_2_a_member_alone_writes_what_it_writes_by_tokens(text: bytes) -> None:
    model = FakeModel(WORDS_A)
    engine = ensemble(model)
    (steps,) = run(engine, begin(engine, [model], Sampling(max_tokens=10), text))
    expected = greedy_alone(FakeModel(WORDS_A), text, 10)
    assert text_of(steps) == expected


def test_a_long_word_is_read_again_whatever_a_batch_holds() -> None:
    words = [*(bytes([byte]) for byte in b" ab"), b"ab", b"ba", b" a"]
    likely = {b"a": 2, b"b": 2, b"ab": -3, b" ": 0}
    models = [FakeModel(words, logits=preferring(words, likely)) for _ in range(2)]
    engine = ensemble(*models)
    text = b"ab" * 200 + b" ab"
    prompts = [[1, *model.tokenizer.encode(b"a")] for model in models]
    sequence = engine.begin(ticket(engine, prompts, Sampling(), symbols=list(text)))
    # The word was written in odd tokens, and the space after it lets them be the tokeniser's own.
    ((score,),) = run(engine, sequence)
    assert score.n_symbols == len(text)
    assert sequence.states[0].beam.text == text


def preferring(
    words: Sequence[bytes], likely: dict[bytes, float]
) -> Callable[[Sequence[int]], Logits]:
    """Return logits that do not depend on the text."""
    vocabulary = FakeModel(words).vocabulary
    logits = np.full(len(vocabulary), -9, dtype=np.float32)
    for piece, value in likely.items():
        logits[vocabulary.ids.get(piece)] = value
    return lambda _tokens: logits


class Failing(FakeModel):
    """A model that fails once, when it is told to, after it has stored some tokens."""

    fails = False

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        if self.fails:
            self.fails = False
            cache = self.cache.setdefault(runs[0].seq_id, [])
            cache += runs[0].tokens[:1]
            raise ModelError("no room left")
        return super().decode(runs)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_what_was_not_decoded_is_not_taken_for_read(steps: int) -> None:
    models = [Failing(WORDS_A), Failing(WORDS_B)]
    scheduler = Scheduler(ensemble(*models), 2)
    expected = [piece_by_piece(scheduler, models, text) for text in (b"the un", b"z")]
    models = [Failing(WORDS_A), Failing(WORDS_B)]
    scheduler = Scheduler(ensemble(*models), 2)
    told: list[Step | EvaError] = []
    request = asked(scheduler, models, b"the unbelievable", told)
    for _ in range(steps):
        scheduler.step()
    models[1].fails = True
    finish(scheduler, request)
    assert isinstance(told[-1], ModelError)
    assert scheduler.n_running == 0
    assert not models[1].cache[0]
    assert [piece_by_piece(scheduler, models, text) for text in (b"the un", b"z")] == expected


def asked(scheduler: Scheduler, models: list[FakeModel], text: bytes, told: list) -> Ticket:
    prompts = [[1, *model.tokenizer.encode(text)] for model in models]
    return scheduler.submit(ticket(scheduler.engine, prompts, Sampling(max_tokens=3), told.append))


def finish(scheduler: Scheduler, request: Ticket) -> None:
    while not request.done:
        scheduler.step()


def piece_by_piece(scheduler: Scheduler, models: list[FakeModel], text: bytes) -> list[bytes]:
    told: list[Step] = []
    finish(scheduler, asked(scheduler, models, text, told))
    return [step.piece for step in told]


def test_the_gate_asks_whether_the_pivot_is_sure_of_a_whole_piece() -> None:
    words = [b" " + word for word in (b"cat", b"dog", b"owl", b"fox", b"hen")]
    # For both a space is certain; the first member hardly prefers a word, the second one does.
    tastes = [
        dict.fromkeys(words, 1.0) | favourite for favourite in ({b" cat": 1.1}, {b" fox": 6.0})
    ]
    fusion = FusionSettings(space="bytes", weights="equal", gate=0.9)
    alone = []
    for pivot in (0, 1):
        models = [FakeModel(words, logits=preferring(words, taste)) for taste in tastes]
        engine = ensemble(*models, fusion=fusion, pivot=pivot)
        (steps,) = run(engine, begin(engine, models, Sampling(max_tokens=4)))
        assert text_of(steps) == b" fox" * 4
        assert steps[-1].usage is not None
        alone.append(steps[-1].usage.steps_alone)
    # The first step asks all.
    assert alone == [0, 3]


@pytest.mark.parametrize("words", [(WORDS_A, WORDS_B), (WORDS_B, WORDS_A)])
@pytest.mark.parametrize("weights", [(0.0, 1.0), (1.0, 0.0)])
def test_a_pivot_that_counts_for_nothing_may_still_be_sure(
    weights: tuple[float, ...], words: tuple[list[bytes], ...]
) -> None:
    models = [FakeModel(each) for each in words]
    fusion = FusionSettings(space="bytes", weights=weights, gate=0.2)
    engine = ensemble(*models, fusion=fusion)
    for seed in range(6):
        sampling = Sampling(max_tokens=20, temperature=1, seed=seed)
        (steps,) = run(engine, begin(engine, models, sampling))
        assert steps[-1].usage is not None
        assert steps[-1].usage.steps_alone > 0


def test_a_member_alone_can_say_what_others_cannot() -> None:
    lacking = FakeModel(WORDS_B, missing=[0xC3])
    found = []
    for models in ([FakeModel(WORDS_A), lacking], [FakeModel(WORDS_A)]):
        engine = ensemble(*models)
        prompt = [1, *models[0].tokenizer.encode(b"the")]
        sequence = engine.begin(
            ticket(engine, [prompt], Sampling(), symbols=list("é".encode()), alone=0)
        )
        ((score,),) = run(engine, sequence)
        found.append(score.log_likelihood)
        assert score.unseen == 0
    assert found[0] == pytest.approx(found[1])
