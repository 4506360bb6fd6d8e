"""Law 11: whoever drafts whatever, an answer is what it is without, and only comes sooner."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from engines import begin, bytes_engine, pivot_engine, run, text_of, ticket
from fakes import WORDS_A, WORDS_B, FakeModel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eva_local.cache.context import Context
from eva_local.config.specs import EnsembleSpec, FusionSettings, ModelSpec, PathSource
from eva_local.engine.engine import Engine
from eva_local.engine.lookahead import MOST, DecodeTimes, LookAhead
from eva_local.engine.scheduler import Scheduler
from eva_local.errors import InputError, ModelError, RoomError
from eva_local.llama.model import LOGIT_ROWS, Logits, Run
from eva_local.spaces.base import Beginning
from eva_local.spaces.bytes.space import ByteSpace
from eva_local.spaces.bytes.state import ByteState
from eva_local.types import Sampling, Step

SAID = b" the light and the other there is a big one. " * 2
HOSTILE = [b"\xff\xfe", b"\xf0\x9f", b"<|im_end|>", b"</s>", b"the the", b"\x00", "é".encode()[:1]]


def talker(words: list[bytes], seed: int, noise: float = 2.0, **how) -> FakeModel:
    """A model that mostly goes on as `SAID`, so that members often agree, and drafts are right."""
    model = FakeModel(words, **how)
    pieces = model.vocabulary.pieces
    likable = set(model.vocabulary.ids.values())

    def logits(tokens) -> np.ndarray:
        text = b"".join(pieces[token] for token in tokens)
        at = max(
            (SAID.find(text[-n:], 0, 60) + n for n in (6, 3, 1) if text[-n:] in SAID[:60]),
            default=0,
        )
        liked = [
            8.0 * len(piece) if token in likable and SAID.startswith(piece, at) else 0.0
            for token, piece in enumerate(pieces)
        ]
        return (noise / 4 * model._hashed([seed, *tokens]) + liked).astype(np.float32)

    model._logits = logits
    return model


def members(**how) -> list[FakeModel]:
    return [talker(WORDS_A, 1, **how), talker(WORDS_B, 2, **how), talker(WORDS_A, 3, **how)]


def engine_of(models: list[FakeModel], fusion: FusionSettings) -> Engine:
    if fusion.space == "bytes":
        return bytes_engine(*models, fusion=fusion)
    return pivot_engine(models, fusion)


def written(models: list[FakeModel], fusion: FusionSettings, sampling: Sampling, prompt=b"see:"):
    """What an engine writes: its steps without what only tells how soon they came."""
    engine = engine_of(models, fusion)
    (steps,) = run(engine, begin(engine, models, prompt, sampling))
    sequence = begin(engine, models, prompt + text_of(steps), sampling)
    (more,) = run(engine, sequence)
    found = [(s.piece, s.probability, s.stayed, s.finish_reason, s.top) for s in [*steps, *more]]
    return found, steps[-1].usage


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[random.Random]:
    """Drafts at random: rubbish, what was said, or what a member foresees, however long."""
    generator = random.Random(0)

    def plan(self: LookAhead) -> int:
        self.draft, self.foreseer = b"", None
        match generator.randrange(4):
            case 0:
                self.draft = generator.choice(HOSTILE)
            case 1:
                tail = bytes(self._text[-3:])
                at = SAID.find(tail) + 3 if tail in SAID else 0
                self.draft = SAID[at : at + 20] + generator.choice(HOSTILE)
            case 2 if self._members:
                self.foreseer = generator.choice(self._members)
        return generator.randrange(self.most + 1)

    monkeypatch.setattr(LookAhead, "plan", plan)
    return generator


RULES = {
    "mean": {},
    "geometric": {"combine": "geometric"},
    "filter": {"filter": "top-n", "filter_n": 1},
    "equal": {"weights": "equal"},
    "signed": {"combine": "geometric", "weights": (2.0, -0.5, 1.0)},
    "all": {"candidates": 0},
    "bytes": {"space": "bytes"},
    "bytes, geometric": {"space": "bytes", "combine": "geometric"},
}
WAYS = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 1.3, "seed": 3},
    "penalised": {"temperature": 0.8, "seed": 4, "repeat_penalty": 1.3, "frequency_penalty": 0.4},
    "biased": {"temperature": 0.7, "seed": 5, "logit_bias": {" the": 2.0, "s": False}},
    "grammar": {"temperature": 0.7, "seed": 6, "grammar": 'root ::= (" " [a-z]+ [.,]?){2,6} "!"'},
    "stop": {"temperature": 0, "stop": ["other"]},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", RULES)
def test_law_11_drafts_change_nothing_of_an_answer(rule: str, way: str, hostile) -> None:
    sampling = Sampling(max_tokens=40, **WAYS[way])
    settings = {"candidates": 24, **RULES[rule]}
    plain, usage = written(members(), FusionSettings(drafter="off", **settings), sampling)
    assert usage.drafted == 0
    for _ in range(3):
        drafted, usage = written(members(), FusionSettings(**settings), sampling)
        assert [one[:1] + one[2:4] for one in drafted] == [one[:1] + one[2:4] for one in plain]
        assert [one[1] for one in drafted] == pytest.approx([one[1] for one in plain])


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([0.5, 4.0]),
    drafter=st.integers(0, 2),
    space=st.sampled_from(["pivot", "bytes"]),
)
def test_law_11_with_any_member_as_the_drafter(
    seed: int, noise: float, drafter: int, space
) -> None:
    sampling = Sampling(max_tokens=25, temperature=0.5, seed=seed)
    prompt = b"%d see:" % seed
    fusion = FusionSettings(drafter="off", space=space)
    off = written(members(noise=noise), fusion, sampling, prompt)
    fusion = replace(fusion, drafter=f"m{drafter}")
    on = written(members(noise=noise), fusion, sampling, prompt)
    assert [one[0] for one in on[0]] == [one[0] for one in off[0]]


def slow(self: DecodeTimes, _model: object, n_tokens: int) -> float:
    """As where memory is the limit: more tokens cost hardly more."""
    return 1 + n_tokens / 20


@pytest.mark.parametrize("space", ["pivot", "bytes"])
def test_drafts_that_are_right_save_decoding(space, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecodeTimes, "seconds", slow)
    sampling = Sampling(max_tokens=40, temperature=0)
    for drafter, who in (("m0", 0), ("ngram", None)):
        fusion = FusionSettings(drafter=drafter, space=space)
        _, usage = written(members(noise=0.2), fusion, sampling, b"see:" + SAID)
        assert usage.accepted > 20
        assert usage.accepted >= 0.9 * usage.drafted
        fewer = [passes for index, passes in enumerate(usage.passes) if index != who]
        assert max(fewer) < usage.steps / 2


def test_drafts_that_are_wrong_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecodeTimes, "seconds", slow)
    monkeypatch.setattr(LookAhead, "_copied", lambda *_: b"quite another thing")
    models = members(noise=0.2)
    _, usage = written(
        models, FusionSettings(drafter="ngram"), Sampling(max_tokens=200, temperature=0)
    )
    assert usage.accepted < 5
    assert usage.drafted < usage.steps / 2


def test_who_cannot_take_tokens_back_decodes_one_by_one(hostile) -> None:
    sampling = Sampling(max_tokens=30, temperature=0)
    models = [*members()[:2], talker(WORDS_A, 3, can_roll_back=False, snapshots=4)]
    found, usage = written(models, FusionSettings(), sampling)
    models = [*members()[:2], talker(WORDS_A, 3, can_roll_back=False, snapshots=4)]
    assert written(models, FusionSettings(drafter="off"), sampling)[0] == found
    assert usage.accepted > 0
    assert usage.passes[2] >= usage.steps - 1


def test_several_texts_side_by_side_have_no_drafts(hostile) -> None:
    models = members()
    engine = pivot_engine(models, FusionSettings())
    sampling = Sampling(max_tokens=20, temperature=0)
    texts = [begin(engine, models, b"see%d" % n, sampling, slot=n) for n in range(2)]
    steps: list[list[Step]] = run(engine, *texts)
    both = [told[-1].usage for told in steps if len(told) == min(map(len, steps))]
    assert all(usage.drafted == 0 for usage in both)


def casts(kind: str, **how: int) -> list[FakeModel]:
    one, other = talker(WORDS_A, 1, 1.0, **how), talker(WORDS_B, 2, 1.0, **how)
    if kind == "shared":
        return [one, one, other, one]
    if kind == "recurrent":
        return [talker(WORDS_A, 3, 1.0, can_roll_back=False, snapshots=4, **how), other, one]
    # A byte that drafts have and one of the members lacks.
    return [one, talker(WORDS_B, 2, 1.0, missing=[0xF0], **how)]


def told(
    models: list[FakeModel], fusion: FusionSettings, n_slots: int, texts: list, *, gapless: bool
) -> list:
    """What texts that come and go are told; the scheduler makes so many steps before each."""
    engine = engine_of(models, fusion)
    scheduler = Scheduler(engine, n_slots)
    scheduler.gapless = gapless
    found = []
    for before, said, way, n, cut_after in texts:
        for _ in range(before):
            scheduler.step()
        prompts = [[1, *m.tokenizer.encode(b"see:" + SAID[: said * 7])] for m in models]
        steps: list = []
        sampling = Sampling(max_tokens=n, **WAYS[way])
        asked = scheduler.submit(ticket(engine, prompts, sampling, steps.append, scored_bytes=9))
        if cut_after is None:
            found.append((asked, steps))
        for _ in range(cut_after or 0):
            scheduler.step()
        if cut_after is not None:
            scheduler.cancel(asked)
    while not all(asked.done for asked, _ in found):
        scheduler.step()
    return [
        [
            (s.piece, s.text, s.stayed, s.finish_reason) if isinstance(s, Step) else str(s)
            for s in each
        ]
        for _, each in found
    ]


text = st.tuples(
    *(st.integers(0, 12), st.integers(0, 9), st.sampled_from([*WAYS]), st.integers(1, 30)),
    st.sampled_from([None, None, 0, 6]),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["shared", "recurrent", "missing"]),
    n_ctx=st.sampled_from([4096, 60]),
    n_batch=st.sampled_from([64, 8, 3]),
    n_slots=st.integers(1, 3),
    texts=st.lists(text, min_size=1, max_size=4),
    gapless=st.booleans(),
    space=st.sampled_from(["pivot", "bytes"]),
)
def test_law_11_with_texts_that_come_and_go(
    hostile, seed, kind, n_ctx, n_batch, n_slots, texts, gapless, space
) -> None:
    hostile.seed(seed)
    rules = [FusionSettings(drafter=who, candidates=24, space=space) for who in ("off", "auto")]
    plain, drafted = (
        told(casts(kind, n_ctx=n_ctx, n_batch=n_batch), rule, n_slots, texts, gapless=gapless)
        for rule in rules
    )
    assert drafted == plain


@pytest.mark.parametrize("error", [RoomError, ModelError])
@pytest.mark.parametrize("drafter", ["ngram", "m0"])
@pytest.mark.parametrize("space", ["pivot", "bytes"])
def test_what_cannot_be_decoded_ahead_is_decoded_without(
    space, drafter, error, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DecodeTimes, "seconds", slow)
    sampling = Sampling(max_tokens=40, temperature=0)
    off = FusionSettings(drafter="off", space=space)
    plain, _ = written(members(noise=0.2), off, sampling, b"see:" + SAID)
    models = members(noise=0.2)
    failed = [_fails_ahead(model, error, monkeypatch) for model in models]
    fusion = replace(off, drafter=drafter)
    drafted, usage = written(models, fusion, sampling, b"see:" + SAID)
    assert [one[0] for one in drafted] == [one[0] for one in plain]
    assert usage.accepted < 2
    assert any(failed)


def _fails_ahead(model: FakeModel, error: type[Exception], monkeypatch) -> list[Run]:
    """Let a model fail at what is drafted; return the runs."""
    decode = model.decode
    failed: list[Run] = []
    foresees = False

    def watch(kind: type) -> None:
        foresee, pending = kind.foresee, kind.pending

        def foreseen(self, *args):
            nonlocal foresees
            foresees |= self._model is model
            return foresee(self, *args)

        def due(self, limit: int | None = None):
            nonlocal foresees
            foresees &= self._model is not model
            return pending(self, limit)

        monkeypatch.setattr(kind, "foresee", foreseen)
        monkeypatch.setattr(kind, "pending", due)

    watch(Context)
    watch(ByteState)

    def failing(runs: Sequence[Run]) -> list[Logits | None]:
        if foresees or any(each.logits > 1 for each in runs):
            failed.extend(runs)
            raise error("it failed")
        return decode(runs)

    model.decode = failing
    return failed


def test_with_what_is_pending_a_batch_has_eight_tokens_at_most() -> None:
    context = Context(model := FakeModel(WORDS_B))
    context.start([1, *model.tokenizer.encode(b"see")])
    model.decode([run := context.pending()])
    context.decoded(run)
    context.append(b" some")
    context.propose(SAID, MOST)
    run = context.pending()
    assert (len(run.tokens), run.logits) == (
        1 + MOST,
        MOST + 2 - len(context.tokens[context._n_prompt :]),
    )


@pytest.mark.parametrize("count", [5, 40])
def test_rows_of_logits_are_no_more_than_a_model_has(count: int, hostile) -> None:
    model = talker(WORDS_A, 1)
    decode = model.decode

    def limited(runs: Sequence[Run]) -> list[Logits | None]:
        assert sum(each.logits for each in runs) <= max(LOGIT_ROWS, count)
        return decode(runs)

    model.decode = limited
    written([model] * count, FusionSettings(), Sampling(max_tokens=30, temperature=0))


def test_a_copy_is_looked_for_near_by(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecodeTimes, "seconds", slow)
    for between, length in ((100, MOST), (1 << 16, 0)):
        prompt = SAID + b"?" * between + SAID[:30]
        assert LookAhead("ngram", members(), DecodeTimes(), prompt).plan() == length


def test_only_what_is_drafted_now_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecodeTimes, "seconds", slow)
    ahead = LookAhead("ngram", members(), DecodeTimes(), SAID + SAID[:30])
    ahead.plan()
    ahead.chosen(SAID[30:33])
    monkeypatch.setattr(LookAhead, "_copied", lambda *_: b"")
    assert ahead.plan() == 0
    ahead.chosen(SAID[33:35])
    assert (ahead.drafted, ahead.accepted) == (1, 1)


def test_a_drafter_that_is_no_member_is_refused() -> None:
    model = ModelSpec("a", PathSource("a.gguf"))
    with pytest.raises(
        InputError, match="drafter b is no member of x; known are: a, auto, ngram, off"
    ):
        EnsembleSpec("x", (model,), "a", FusionSettings(drafter="b"))


def test_a_member_of_weight_0_may_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DecodeTimes, "seconds", slow)
    sampling = Sampling(max_tokens=40, temperature=0)
    for space in ("pivot", "bytes"):
        fusion = FusionSettings(weights=(1.0, 1.0, 0.0), space=space, drafter="m2")
        on, usage = written(members(noise=0.2), fusion, sampling)
        off, _ = written(members(noise=0.2), replace(fusion, drafter="off"), sampling)
        assert [one[0] for one in on] == [one[0] for one in off]
        assert usage.accepted > 20


def _begun() -> tuple[FakeModel, ByteState]:
    """A model that thinks a few tokens alike likely, and its state after the prompt."""
    model = FakeModel([b"a", b"b", b" b", b" "])
    row = np.full(len(model.vocabulary), -30, dtype=np.float32)
    ids = model.vocabulary.ids
    row[[ids[piece] for piece in (b"a", b"b", b" b", b" ")]] = 1
    model._logits = lambda _: row
    (state,) = ByteSpace([model], threshold=0.001).states(0)
    state.start(Beginning([1]))
    _decode(model, state)
    return model, state


def _decode(model: FakeModel, state: ByteState) -> list[Run]:
    runs = state.pending()
    for run_, logits in zip(runs, model.decode(runs), strict=True):
        state.take(run_, logits)
    return runs


def test_a_draft_for_other_text_is_not_kept_for_later() -> None:
    model, state = _begun()
    state.start(Beginning([1, 2]))
    state.propose(b"aaaa", MOST)
    _decode(model, state)
    assert state.ready
    state.commit(ord("b"))
    assert [len(each.tokens) for each in _decode(model, state)] == [1]


def test_a_draft_takes_no_room_from_rows_that_are_wanted() -> None:
    counts = []
    for draft in (b"", b"aaaaaaa"):
        _, state = _begun()
        for byte in b" b":
            # As one token, and as a space that a letter follows.
            state.commit(byte)
        state.propose(draft, MOST)
        counts.append(len(state.pending(4)))
    assert counts == [2, 2]
