"""The bench: its arithmetic on given figures, its meter and its rounds on fake models."""

from __future__ import annotations

import math

import numpy as np
import pytest
from batches import ensemble_of_models, fake_spec
from fakes import WORDS_A, WORDS_B, FakeModel
from hypothesis import given
from hypothesis import strategies as st
from shared import submit

from eva_local.bench.pace import MemberPart, Meter, Round, Spread, busy, pace, spread_of
from eva_local.bench.trial import Bench, measure, passage
from eva_local.config.config import load_config
from eva_local.config.specs import EnsembleSpec, MemberSpec
from eva_local.errors import ContextError
from eva_local.llama.model import ALL, Run, decode_every
from eva_local.types import Sampling


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Timed(FakeModel):
    """A fake model whose decoding takes a given time for each token."""

    def __init__(self, words, clock: Clock, seconds: float, **options) -> None:
        super().__init__(words, **options)
        self.clock, self.seconds = clock, seconds

    def decode(self, runs):
        self.clock.now += self.seconds * sum(len(run.tokens) for run in runs)
        return super().decode(runs)


def silent(_what: str, _share: float) -> None:
    pass


def test_a_spread_is_the_median_with_its_quartiles() -> None:
    assert spread_of(np.array([5, 1, np.nan, 3, 2, 4])) == Spread(3, 2, 4, 5)
    assert spread_of(np.array([7])) == Spread.of([7]) == Spread(7, 7, 7, 1)
    assert spread_of(np.array([np.nan])) is None


def test_the_ratios_of_a_round() -> None:
    parts = (MemberPart(3, 0.31, 0.3), MemberPart(2, 0.11, 0.1))
    found = pace(["a", "b"], [Round(0.5, 0.42, 2, parts)])
    assert found.over_sum == Spread(*[pytest.approx(0.5 / 0.4)] * 3, 1)
    assert found.over_slowest == Spread(*[pytest.approx(0.5 / 0.3)] * 3, 1)
    assert found.inside_over_alone == Spread(*[pytest.approx(0.42 / 0.4)] * 3, 1)
    assert found.bookkeeping == Spread(*[pytest.approx(0.16)] * 3, 1)


@pytest.mark.parametrize(
    "parts", [(MemberPart(1, 0.3, 0.3), MemberPart(1, 0.1)), (MemberPart(0, 0.0, 0.0),)]
)
def test_a_ratio_needs_what_every_member_took(parts) -> None:
    found = pace("ab"[: len(parts)], [Round(0.5, 0.4, 1, parts)])
    assert found.over_sum is found.over_slowest is found.inside_over_alone is None
    assert found.step == Spread(0.5, 0.5, 0.5, 1)


def test_the_pace_of_rounds_forms_ratios_within_each() -> None:
    # The machine is three times slower in the last round: the ratio stays.
    rounds = [
        Round(0.44 * slow, 0.42 * slow, 2, (MemberPart(4, 0.42 * slow, 0.4 * slow),))
        for slow in (1, 1, 3)
    ]
    found = pace(["m"], [*rounds, Round(0.44, 0.42, 2, (MemberPart(4, 0.42),))])
    assert found.over_sum == Spread(*[pytest.approx(1.1)] * 3, 3)
    assert found.step.median == pytest.approx(0.44)
    assert found.rate.median == pytest.approx(2 / 0.44)
    (member,) = found.members
    assert member.n_tokens == 4
    assert member.rate == pytest.approx(10)


def test_what_overlaps_is_busy_once() -> None:
    meters = [Meter(FakeModel()) for _ in range(2)]
    meters[0].decodings = [(0, 2, []), (5, 6, [])]
    meters[1].decodings = [(1, 3, []), (1.5, 2.5, [])]
    assert busy(meters) == 4
    assert meters[1].part().inside == 3


def test_a_meter_repeats_what_was_decoded_and_leaves_the_cache_as_it_was() -> None:
    clock = Clock()
    model = Timed(WORDS_A, clock, 0.5)
    meter = Meter(model, clock)
    meter.decode([Run(0, 0, [1, 9, 8]), Run(1, 0, [1])])
    assert meter.part() == MemberPart(4, 2.0, 2.0)
    assert meter.part().inside == 2.0
    assert model.cache == {0: [1, 9, 8], 1: [1]}
    meter.reset()
    meter.remove(0, 2)
    meter.decode([Run(0, 2, [7, 7])])
    assert meter.part() == MemberPart(2, 1.0, 1.0)
    assert model.cache == {0: [1, 9, 7, 7], 1: [1]}
    meter.copy(0, 1, 3)
    assert math.isnan(meter.part().alone)
    assert model.cache == {0: [1, 9, 7, 7], 1: [1, 9, 7]}
    meter.remove(ALL, 0)
    assert not model.cache


def test_a_model_that_cannot_take_tokens_back_repeats_nothing() -> None:
    meter = Meter(FakeModel(can_roll_back=False))
    meter.decode([Run(0, 0, [1, 2])])
    part = meter.part()
    assert math.isnan(part.alone)
    assert part.inside > 0


def test_a_prompt_that_is_judged_is_timed_and_repeated() -> None:
    clock = Clock()
    model = Timed(WORDS_A, clock, 0.5)
    meter = Meter(model, clock)
    assert len(list(decode_every(meter, Run(0, 0, [1, 2, 3])))) == 1
    assert meter.part() == MemberPart(3, 1.5, 1.5)
    assert model.cache == {0: [1, 2, 3]}


@given(st.integers(1, 300), st.integers(0, 3))
def test_a_passage_has_as_many_tokens_as_fit(n_tokens: int, seed: int) -> None:
    text = passage(n_tokens, lambda text: len(text.split()), seed)
    assert len(text.split()) == n_tokens
    assert passage(n_tokens + 50, lambda text: len(text.split()), seed).startswith(text)


def metered(folder, clock: Clock, n_slots: int, **options):
    """An ensemble of two fake models of 10 and 20 ms a token, whose steps take 5 ms beside."""
    models = [Timed(WORDS_A, clock, 0.01, **options), Timed(WORDS_B, clock, 0.02, **options)]
    meters = [Meter(model, clock) for model in models]
    ensemble = ensemble_of_models(fake_spec(folder), meters, n_slots)
    step = ensemble.scheduler.step

    def stepping(unless=lambda: False) -> None:
        clock.now += 0.005
        step(unless)

    ensemble.scheduler.step = stepping
    return ensemble, meters


def test_rounds_on_fake_models_by_a_made_clock(tmp_path) -> None:
    clock = Clock()
    ensemble, meters = metered(tmp_path, clock, 3, n_batch=16)
    bench = Bench(ensemble, dict(zip(ensemble.members, meters, strict=True)), 6, silent, clock)
    one, three = bench.run(40, ["the other day ", "a keeper and the sea "], (1, 3))
    counts = ensemble.prompt_tokens("a keeper and the sea ")
    assert one.prompt_tokens == three.prompt_tokens == counts
    read = 0.01 * counts[0] + 0.02 * counts[1]
    steps = -(-max(counts) // 16)
    assert one.first_seconds == pytest.approx(read + 0.005 * steps, rel=0.3)
    assert three.first_seconds is None
    # The caches hold the prompt: only its last token is decoded again.
    assert one.cached_first_seconds == pytest.approx(0.035)
    for trial in (one, three):
        n_tokens = [member.n_tokens for member in trial.writing.members]
        assert all(count >= trial.texts for count in n_tokens)
        assert [m.rate for m in trial.writing.members] == [pytest.approx(100), pytest.approx(50)]
        assert trial.writing.inside_over_alone == Spread(*[pytest.approx(1)] * 3, 6)
        assert trial.writing.bookkeeping.median == pytest.approx(
            0.005 / trial.writing.step.median, rel=1e-6
        )
        assert trial.writing.over_sum is not None
        assert trial.writing.over_sum.median == pytest.approx(
            1 / (1 - trial.writing.bookkeeping.median), rel=1e-6
        )
        assert trial.peak_memory > 1e6


def test_decoding_again_changes_no_text(tmp_path) -> None:
    ensemble, meters = metered(tmp_path, Clock(), 1)
    plain, _ = metered(tmp_path, Clock(), 1)
    # Each step is to decode something.
    ensemble.drafter = plain.drafter = "off"
    pieces: list[list[bytes]] = [[], []]
    sampling = Sampling(max_tokens=30, temperature=1.0, seed=5)
    for each, told in zip((ensemble, plain), pieces, strict=True):
        request = submit(each, "the light", sampling, lambda step, t=told: t.append(step.piece))
        while not request.done:
            for meter in meters:
                meter.reset()
            each.scheduler.step()
            for meter in meters if each is ensemble else ():
                part = meter.part()
                assert part.alone > 0
    assert pieces[0] == pieces[1]


def test_members_of_one_model_are_measured_as_the_batch_that_they_are(models) -> None:
    model = load_config(models / "models.toml", {}).ensemble("one").members[0]
    twins = tuple(MemberSpec.of(model, name=name, prefix=name) for name in "ab")
    spec = EnsembleSpec("twins", twins, "a")
    (trial,) = measure(spec, [20], 1, 3, 1, silent).trials
    (both,) = trial.writing.members
    assert both.name == "a and 1 more"
    assert both.n_tokens >= 2
    assert trial.writing.over_sum is not None


def test_an_error_of_a_text_is_raised_by_the_bench(tmp_path) -> None:
    ensemble, meters = metered(tmp_path, Clock(), 1, n_ctx=8)
    with pytest.raises(ContextError, match="does not fit"):
        list(
            Bench(ensemble, dict(enumerate(meters)), 2, silent).run(
                9, ["the other day and so on"], (1,)
            )
        )
