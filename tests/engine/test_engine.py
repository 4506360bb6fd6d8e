"""The step loop on fake models: every law that needs no real one."""

from __future__ import annotations

from concurrent.futures import Future, wait
from dataclasses import replace

import numpy as np
import pytest
from engines import CASTS, MEAN, begin, roles, run, text_of, ticket
from engines import pivot_engine as ensemble
from fakes import WORDS_A, WORDS_B, FakeModel
from hypothesis import given
from hypothesis import strategies as st
from waiting import Gate

from eva_local.alignment.mapping import surface, surface_refined
from eva_local.config.specs import FusionSettings
from eva_local.engine.engine import Engine, _await
from eva_local.errors import ContextError, ModelError
from eva_local.types import Sampling


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("build", [surface, surface_refined])
@given(seed=st.integers(0, 10**6), pivot=st.integers(0, 1), temperature=st.sampled_from([0, 1]))
def test_law_1_every_member_holds_the_shared_text(cast, build, seed, pivot, temperature) -> None:
    models, prefixes, fusion = cast()
    engine = ensemble(models, fusion, pivot=pivot, build=build)
    sampling = Sampling(
        max_tokens=25, temperature=temperature, top_k=0, top_p=1, min_p=0, seed=seed
    )
    sequence = begin(engine, models, b"the %d" % seed, sampling, prefixes=prefixes)
    shared = b""
    while not sequence.finished:
        (told,) = engine.step([sequence])
        shared += b"".join(step.piece for step in told)
        for model, state in zip(models, sequence.states, strict=True):
            assert state.cache.text == shared
            assert model.vocabulary.join(state.cache.tokens[state.cache._n_prompt :]) == shared


def greedy_alone(model: FakeModel, text: bytes, count: int) -> list[int]:
    """The plain loop: the likeliest token again and again."""
    tokens = [1, *model.tokenizer.encode(text)]
    made: list[int] = []
    while len(made) < count:
        best = int(np.argmax(np.where(allowed(model), model._hashed(tokens + made), -np.inf)))
        if best in model.vocabulary.end_ids:
            break
        made.append(best)
    return made


def allowed(model: FakeModel) -> np.ndarray:
    mask = model.vocabulary.speakable.copy()
    mask[list(model.vocabulary.end_ids)] = True
    return mask


@pytest.mark.parametrize("copies", [1, 2, 3])
@pytest.mark.parametrize("combine", ["mean", "geometric"])
@pytest.mark.parametrize("text", [b"", b"the", b" unbelievable \xf0\x9f"])
@pytest.mark.parametrize("is_shared", [False, True])
def test_law_2_copies_of_one_model_write_what_it_writes_alone(
    copies, combine, text, is_shared
) -> None:
    models = [FakeModel()] * copies if is_shared else [FakeModel() for _ in range(copies)]
    engine = ensemble(models, FusionSettings(combine=combine))
    sequence = begin(engine, models, text, Sampling(max_tokens=40))
    (steps,) = run(engine, sequence)
    expected = greedy_alone(FakeModel(), text, 40)
    # END has several ids here, whose probabilities add up; up to there the two agree.
    made = list(sequence.states[0].cache.tokens[sequence.states[0].cache._n_prompt :])
    assert made == expected[: len(made)]
    assert len(made) == len(expected) or steps[-1].finish_reason == "stop"
    for state in sequence.states:
        assert list(state.cache.tokens[state.cache._n_prompt :]) == made


@given(order=st.permutations(range(3)))
def test_law_4_the_order_of_members_does_not_matter(order) -> None:
    words = [WORDS_A, WORDS_B, WORDS_B[::-1]]
    fusion = FusionSettings(combine="geometric")
    texts = []
    for places in (range(3), order):
        chosen = [FakeModel(words[i]) for i in places]
        engine = ensemble(chosen, fusion, pivot=list(places).index(0))
        sequence = begin(engine, chosen, b"the", Sampling(max_tokens=20))
        texts.append(text_of(run(engine, sequence)[0]))
    assert texts[0] == texts[1]


@given(order=st.permutations(range(3)))
def test_law_4_nor_does_that_of_members_of_one_model(order) -> None:
    texts = []
    for places in (range(3), order):
        models, prefixes, fusion = roles()
        fusion = replace(fusion, weights=tuple(fusion.weights[i] for i in places))
        models, prefixes = ([each[i] for i in places] for each in (models, prefixes))
        engine = ensemble(models, fusion, pivot=list(places).index(0))
        sequence = begin(engine, models, b"the", Sampling(max_tokens=20), prefixes=prefixes)
        texts.append(text_of(run(engine, sequence)[0]))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("cast", CASTS)
@given(seed=st.integers(0, 10**6))
def test_law_5_streamed_text_is_the_whole_text(cast, seed) -> None:
    models, prefixes, fusion = cast()
    engine = ensemble(models, fusion)
    sampling = Sampling(max_tokens=30, temperature=1, seed=seed, stop=("th", "e "))
    (steps,) = run(engine, begin(engine, models, b"the", sampling, prefixes=prefixes))
    shown = "".join(step.text for step in steps)
    whole = text_of(steps).decode("utf-8", "replace")
    assert whole.startswith(shown.rstrip("\ufffd")[: len(shown)])
    assert not any(stop in shown for stop in sampling.stop)
    assert [step.finish_reason for step in steps[:-1]] == [None] * (len(steps) - 1)


@pytest.mark.parametrize("cast", CASTS)
def test_law_6_same_seed_same_text(cast) -> None:
    def write(seed: int | None) -> bytes:
        models, prefixes, fusion = cast()
        engine = ensemble(models, fusion)
        sampling = Sampling(max_tokens=30, temperature=1.5, top_p=1, min_p=0, top_k=0, seed=seed)
        return text_of(run(engine, begin(engine, models, b"the", sampling, prefixes=prefixes))[0])

    assert write(7) == write(7)
    assert len({write(seed) for seed in range(5)}) == 5


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("n_batch", [3, 64])
def test_many_texts_side_by_side_read_as_each_alone(cast, n_batch) -> None:
    starts = [b"the", b" a", b"Paris", b"un"]
    models, prefixes, fusion = cast()
    for model in models:
        model.n_batch = n_batch
    engine = ensemble(models, fusion)
    how, roles = Sampling(max_tokens=12), {"prefixes": prefixes}
    sequences = [begin(engine, models, s, how, slot, **roles) for slot, s in enumerate(starts)]
    together = [text_of(steps) for steps in run(engine, *sequences)]
    alone = []
    for start in starts:
        fresh = cast()[0]
        one = ensemble(fresh, fusion)
        alone.append(text_of(run(one, begin(one, fresh, start, how, **roles))[0]))
    assert together == alone


def test_law_10_members_of_one_model_read_no_more_late_than_early() -> None:
    models, prefixes, fusion = roles()
    for model in models:
        model._endless = True
    engine, counts = ensemble(models, fusion), []
    how = Sampling(max_tokens=300, temperature=1, seed=1)
    sequence = begin(engine, models, b"the", how, prefixes=prefixes)
    while not sequence.finished:
        before = models[0].decoded
        engine.step([sequence])
        counts.append(models[0].decoded - before)
    assert len(counts) == 300
    assert max(counts[200:]) <= max(counts[:100])
    assert sum(counts[200:]) <= 1.2 * sum(counts[:100])


def test_side_by_side_decoding_gives_the_same_text() -> None:
    texts = []
    for n_beside in range(3):
        models = [FakeModel(WORDS_A), FakeModel(WORDS_B)]
        plain, beside = ensemble(models), models[:n_beside]
        engine = Engine(plain.names, models, plain._all.space, MEAN, side_by_side=beside)
        texts.append(
            text_of(run(engine, begin(engine, models, b"the", Sampling(max_tokens=20)))[0])
        )
        engine.close()
    assert texts[0] == texts[1] == texts[2]


def test_nobody_is_asked_again_while_they_still_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()

    class Slow(FakeModel):
        at_work = 0

        def decode(self, runs):
            self.at_work += 1
            assert self.at_work == 1
            gate.pass_through()
            rows = super().decode(runs)
            self.at_work -= 1
            return rows

    def waits(asked: list[Future[None]]) -> None:
        # Only who waits for the slow one lets it go on.
        gate.let()
        wait(asked)

    monkeypatch.setattr("eva_local.engine.engine.wait", waits)
    models = [FakeModel(WORDS_A), Slow(WORDS_B)]
    plain = ensemble(models)
    engine = Engine(plain.names, models, plain._all.space, MEAN, side_by_side=models)
    sequence = begin(engine, models, b"the", Sampling(max_tokens=3))
    decode = models[0].decode

    def fail(runs):
        raise ModelError("no room left")

    models[0].decode = fail
    gate.let(0)
    assert engine.step([sequence]) == [[]]
    assert str(sequence.error) == "no room left"
    assert models[1].at_work == 0
    models[0].decode = decode
    run(engine, begin(engine, models, b"the", Sampling(max_tokens=3)))
    engine.close()


def test_no_text_is_left_at_logits_that_are_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    # Texts take their logits in several threads, and one of them fails.
    monkeypatch.setattr("eva_local.engine.engine.cores", lambda: 2)
    gate = Gate()
    gate.let(0)

    def awaits(asked: list[Future[None]]) -> None:
        # Only who waits for the slow one lets it go on.
        gate.let()
        _await(asked)

    monkeypatch.setattr("eva_local.engine.engine._await", awaits)
    models = [FakeModel(WORDS_A), FakeModel(WORDS_B)]
    engine = ensemble(models)
    sequences = [
        begin(engine, models, text, Sampling(max_tokens=3), slot)
        for slot, text in enumerate([b"the", b"un", b"able"])
    ]
    taken: list[bool] = []

    def fails(run, logits):
        raise ModelError("not this one")

    def is_slow(run, logits):
        gate.pass_through()
        taken.append(True)

    sequences[0].states[0].take = fails
    sequences[1].states[0].take = is_slow
    engine.step(sequences)
    assert taken == [True]
    assert [str(sequence.error) for sequence in sequences if sequence.error] == ["not this one"]
    engine.close()


def favour(*pieces: bytes):
    """Logits that want these pieces in turn, then END."""

    def logits_for(model: FakeModel):
        wanted = [model.vocabulary.ids.get(piece) for piece in pieces]

        def logits(tokens):
            row = np.full(len(model.vocabulary), -20, dtype=np.float32)
            said = model.vocabulary.join(tokens)
            count = next(
                (n for n in range(len(pieces), 0, -1) if said.endswith(b"".join(pieces[:n]))), 0
            )
            row[wanted[count] if count < len(wanted) else 2] = 10
            return row

        return logits

    return logits_for


def wanting(words: list[bytes], *pieces: bytes, **options) -> FakeModel:
    model = FakeModel(words, **options)
    model._logits = favour(*pieces)(model)
    return model


def test_end_of_every_member_is_one_end() -> None:
    models = [wanting(WORDS_A, b" the"), wanting(WORDS_B, b" the")]
    engine = ensemble(models)
    sequence = begin(engine, models, b"a", Sampling())
    (steps,) = run(engine, sequence)
    assert text_of(steps) == b" the"
    assert steps[-1].finish_reason == "stop"
    assert steps[-1].probability == pytest.approx(1, abs=1e-6)
    assert steps[-1].usage.steps == 1


def test_stop_strings_and_max_tokens() -> None:
    models = [wanting(WORDS_A, b" the", b"he", b" un")]
    engine = ensemble(models)
    (steps,) = run(engine, begin(engine, models, b"a", Sampling(stop=("eh",))))
    assert ("".join(s.text for s in steps), steps[-1].finish_reason) == (" th", "stop")
    (steps,) = run(engine, begin(engine, models, b"a", Sampling(max_tokens=2)))
    assert ("".join(s.text for s in steps), steps[-1].finish_reason) == (" thehe", "length")


def test_a_full_context_ends_the_answer() -> None:
    models = [FakeModel(WORDS_A, n_ctx=300), FakeModel(WORDS_B, n_ctx=20)]
    engine = ensemble(models)
    (steps,) = run(engine, begin(engine, models, b"the", Sampling(max_tokens=500)))
    assert steps[-1].finish_reason in ("length", "stop")
    assert len(models[1].cache[0]) <= 20


def test_a_prompt_that_does_not_fit_says_what_each_member_needs() -> None:
    models = [FakeModel(WORDS_A, n_ctx=300), FakeModel(WORDS_B, n_ctx=5)]
    engine = ensemble(models)
    with pytest.raises(ContextError, match=r"m0 needs 12 tokens of 300, m1 needs 12 tokens of 5"):
        begin(engine, models, b"zzzzzzzzzz", Sampling())


def test_the_filter_drops_the_odd_member_and_counts_it() -> None:
    pieces = [(b" the", b" un"), (b" the", b" un"), (b" Paris", b"ing")]
    models = [wanting(WORDS_A, *wish) for wish in pieces]
    engine = ensemble(models, FusionSettings(filter="top-n", filter_n=1))
    (steps,) = run(engine, begin(engine, models, b"a", Sampling()))
    assert text_of(steps) == b" the un"
    assert steps[0].stayed == (True, True, False)
    assert steps[-1].usage.filtered[2] >= 2
    assert steps[-1].usage.filtered[:2] == (0, 0)


def test_weights_decide() -> None:
    for weights, expected in (((1.0, 0.0), b" the"), ((0.0, 1.0), b"th")):
        models = [wanting(WORDS_A, b" the"), wanting(WORDS_A, b"th")]
        engine = ensemble(models, replace(MEAN, weights=weights))
        assert text_of(run(engine, begin(engine, models, b"a", Sampling()))[0]) == expected


def test_a_symbol_that_a_member_cannot_spell_is_never_chosen() -> None:
    models = [wanting(WORDS_A, b"\xc3"), FakeModel(WORDS_B, missing=[0xC3])]
    engine = ensemble(models, replace(MEAN, weights=(1.0, 0.0)))
    (steps,) = run(engine, begin(engine, models, b"a", Sampling(max_tokens=5)))
    assert b"\xc3" not in text_of(steps)


def test_the_next_answer_reads_only_what_is_new() -> None:
    models = [FakeModel(WORDS_A), FakeModel(WORDS_B)]
    engine = ensemble(models)
    prompt = b"the unbelievable Paris is the end"
    run(engine, begin(engine, models, prompt, Sampling(max_tokens=3)))
    before = [model.decoded for model in models]
    (steps,) = run(engine, begin(engine, models, prompt + b"ing", Sampling(max_tokens=1)))
    for model, count, read in zip(models, before, steps[-1].usage.prompt_tokens, strict=True):
        assert model.decoded - count < read / 2
    assert all(steps[-1].usage.cached_tokens)


def test_a_sure_pivot_decides_alone_and_the_others_catch_up() -> None:
    pieces = (b" the", b"he", b" un", b"ing")
    models = [wanting(WORDS_A, *pieces), FakeModel(WORDS_B)]
    engine = ensemble(models, replace(MEAN, gate=0.9))
    (steps,) = run(engine, begin(engine, models, b"a", Sampling()))
    usage = steps[-1].usage
    assert text_of(steps) == b"".join(pieces)
    # All but the first step: by then every member has read the prompt.
    assert usage.steps_alone == 4
    assert steps[1].stayed == (True, False)
    assert usage.filtered == (0, 0)
    assert models[1].decoded == 2  # BOS and "a"


def test_after_sure_steps_an_asked_member_holds_the_whole_text() -> None:
    models = [FakeModel(WORDS_A), FakeModel(WORDS_B)]
    engine = ensemble(models, replace(MEAN, gate=0.4))
    sequence = begin(engine, models, b"the", Sampling(max_tokens=40))
    (steps,) = run(engine, sequence)
    assert 0 < steps[-1].usage.steps_alone < steps[-1].usage.steps
    assert models[1].vocabulary.join(
        sequence.states[1].cache.tokens[sequence.states[1].cache._n_prompt :]
    ) == text_of(steps)


def test_a_gate_that_never_opens_changes_nothing() -> None:
    texts = []
    for gate in (1.0, 0.9999999):
        models = [FakeModel(WORDS_A), FakeModel(WORDS_B)]
        engine = ensemble(models, replace(MEAN, gate=gate))
        texts.append(text_of(run(engine, begin(engine, models, b"a", Sampling(max_tokens=20)))[0]))
    assert texts[0] == texts[1]


def likelihood(model: FakeModel, tokens: list[int], first: int) -> float:
    """Return the log-likelihood of the tokens from `first` on, in nats."""
    nats = 0.0
    for place in range(first, len(tokens)):
        row = model._logits(tokens[:place]).astype(float)
        nats += row[tokens[place]] - np.log(np.exp(row - row.max()).sum()) - row.max()
    return nats


@pytest.mark.parametrize(("scored", "n_tokens"), [(1, 1), (4, 1), (5, 2), (11, 99), (999, 99)])
def test_members_are_judged_by_the_end_of_the_prompt(
    scored: int, n_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eva_local.cache.context._STRIDE", 1)
    text = b" the un the"
    models = [wanting(WORDS_A, b" the", b" un"), FakeModel(WORDS_A, n_batch=3)]
    engine = ensemble(models, replace(MEAN, weights="prompt-perplexity"))
    sequence = begin(engine, models, text, Sampling(max_tokens=2), scored=scored)
    while not sequence.steps:
        engine.step([sequence])
    for model, found in zip(models, sequence.fuser.evidence, strict=True):
        tokens = [1, *model.tokenizer.encode(text)]
        first = max(len(tokens) - n_tokens, 1)
        n_bytes = len(model.vocabulary.join(tokens[first:]))
        assert found == pytest.approx(likelihood(model, tokens, first) / n_bytes, rel=1e-4)


@given(st.integers(0, 40), st.lists(st.sampled_from([b" the", b"un", b"?"]), max_size=12))
def test_what_the_caches_hold_of_a_prompt_does_not_change_its_evidence(scored, words) -> None:
    found = []
    for known in (True, False):
        models = [FakeModel(WORDS_A), FakeModel(WORDS_B)]
        engine = ensemble(models, replace(MEAN, weights="running"))
        start = b" the unbelievable"
        if known:
            run(engine, begin(engine, models, start, Sampling(max_tokens=5), scored=3))
        sequence = begin(engine, models, start + b"".join(words), Sampling(), scored=scored)
        while not sequence.ready:
            engine._decode([sequence])
        found.append([state.cache.likelihood.per_byte() for state in sequence.states])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert all(found[0]) == (scored > 0)


def test_a_prompt_whose_evidence_is_known_is_not_read_again() -> None:
    models = [FakeModel(WORDS_A), FakeModel(WORDS_B)]
    engine = ensemble(models)
    for _ in range(2):
        before = [model.decoded for model in models]
        run(engine, begin(engine, models, b" the unbelievable", Sampling(max_tokens=1), scored=9))
    # The last token is decoded again, for its logits.
    assert [model.decoded for model in models] == [count + 1 for count in before]


def test_a_trace_says_who_voted_for_what() -> None:
    models = [wanting(WORDS_A, b" the"), wanting(WORDS_A, b" the"), wanting(WORDS_A, b"ing")]
    engine = ensemble(models, FusionSettings(filter="top-n", filter_n=1))
    prompts = [[1, 7] for _ in models]
    (steps,) = run(engine, engine.begin(ticket(engine, prompts, Sampling(), trace=True)))
    trace = steps[0].trace
    assert trace is not None
    assert trace.top[0].piece == b" the"
    assert [ballot.stayed for ballot in trace.ballots] == [True, True, False]
    assert [ballot.weight for ballot in trace.ballots] == [0.5, 0.5, 0.0]
    assert trace.ballots[2].top[0].piece == b"ing"
    assert "top 1" in trace.ballots[2].reason
    assert trace.carrier in ("m0", "m1")
    assert all(ballot.seconds > 0 for ballot in trace.ballots)
    assert steps[-1].trace.top[0].piece == b""
    (plain,) = run(engine, engine.begin(ticket(engine, prompts, Sampling())))
    assert plain[0].trace is None


def test_a_long_prompt_is_read_in_parts_and_says_how_far_it_is() -> None:
    models = [FakeModel(WORDS_A, n_batch=16), FakeModel(WORDS_B, n_batch=16)]
    engine = ensemble(models)
    sequence = begin(engine, models, b"the unbelievable end " * 10, Sampling(max_tokens=1))
    shares = []
    while not sequence.finished:
        engine.step([sequence])
        shares.append(sequence.share_read)
    assert len(shares) > 3
    assert shares == sorted(shares)
    assert shares[-1] == 1
