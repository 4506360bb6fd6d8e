from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from votes import as_dict, vote

from eva_local.engine.sampling import (
    Sampler,
    Samplers,
    choose,
    draw,
    heat,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalised,
)
from eva_local.errors import InputError
from eva_local.fusion.votes import NOBODY, Vote
from eva_local.spaces.base import Candidates
from eva_local.types import Sampling

FOUR = np.array([0.5, 0.25, 0.15, 0.1])


PIECES = [b"%c" % letter for letter in b"abcdefghijklmnopqrstuvwxyza"]
END = len(PIECES)


class Letters:
    """A shared space of the letters from a to z; A is the last of two symbols for a."""

    def may_offer(self, piece: bytes) -> bool:
        return piece in PIECES


LETTERS = Samplers(Letters())


class Only:
    """A grammar that allows some symbols at every step, and END where it says so."""

    complete = False

    def __init__(self, *symbols: int) -> None:
        self.allowed = np.isin(np.arange(END + 1), symbols)
        self.accepted: list[int] = []

    def accept(self, symbols):
        self.accepted += symbols


class Drawn:
    """A sampler that chooses among the letters."""

    def __init__(self, sampler: Sampler, grammar=None) -> None:
        self._sampler = sampler
        sampler.grammar = grammar
        letters = range(END)
        self.candidates = Candidates(
            votes=[],
            pieces=PIECES,
            end=END,
            allowed=None if grammar is None else grammar.allowed,
            tokens={piece: [i for i in letters if PIECES[i] == piece] for piece in PIECES},
        )

    def choose(self, fused: Vote) -> int:
        return self._sampler.choose(fused, self.candidates)

    def shaped(self, fused: Vote) -> Vote:
        return self._sampler._shaped(fused, self.candidates)

    def has_written(self, symbol: int) -> None:
        self._sampler._remember(PIECES[symbol])


def shaped(drawn: Drawn, fused) -> dict[str, float]:
    """The distribution that the cuts get to see."""
    return as_dict(drawn.shaped(fused))


def sampler(grammar=None, /, **settings) -> Drawn:
    return Drawn(LETTERS.prepare(Sampling(**settings))(), grammar)


def test_cuts_by_hand() -> None:
    assert keep_top_k(FOUR, 2) == pytest.approx([2 / 3, 1 / 3])
    assert keep_top_k(FOUR, 0) == pytest.approx(FOUR)
    assert keep_top_p(FOUR, 0.7) == pytest.approx([2 / 3, 1 / 3])
    assert keep_top_p(FOUR, 0.75) == pytest.approx([2 / 3, 1 / 3])
    assert keep_top_p(FOUR, 0.76) == pytest.approx(np.array([0.5, 0.25, 0.15]) / 0.9)
    assert keep_top_p(FOUR, 1) == pytest.approx(FOUR)
    assert keep_min_p(FOUR, 0.3) == pytest.approx(np.array([0.5, 0.25, 0.15]) / 0.9)
    assert keep_min_p(FOUR, 0) == pytest.approx(FOUR)


def test_temperature_by_hand() -> None:
    squares = FOUR**2
    assert heat(FOUR, 0.5) == pytest.approx(squares / squares.sum())
    assert heat(FOUR, 1) == pytest.approx(FOUR)


def test_the_coldest_temperature_there_is_leaves_the_likeliest() -> None:
    assert heat(FOUR, 5e-324).tolist() == [1, 0, 0, 0]


def test_greedy_takes_the_likeliest_and_the_lower_of_two_equals() -> None:
    generator = np.random.default_rng(0)
    assert choose(vote(a=0.2, b=0.5, c=0.3), Sampling(), generator) == 1
    assert choose(vote(b=0.4, c=0.4, d=0.2), Sampling(), generator) == 1


def test_values_of_pieces_by_hand() -> None:
    letters = sampler().candidates
    among = np.array([0, 2, 5, 26])
    assert letters.spread(among, {b"a": 1.5, b"f": -np.inf, b"h": 3, b"ab": 1}).tolist() == [
        *(1.5, 0, -np.inf, 1.5)
    ]
    # More values than candidates.
    values = {piece: float(i) for i, piece in enumerate(PIECES)}
    assert letters.spread(among, values).tolist() == [26, 2, 5, 26]
    assert letters.spread(among, {}).tolist() == [0, 0, 0, 0]
    assert letters.spread(among[:0], {b"a": 1}).tolist() == []
    assert letters.spread(np.array([END]), {b"a": 1}).tolist() == [0]


def test_a_bias_is_for_exactly_these_bytes() -> None:
    logs = sampler(logit_bias={"a": 2, "c": -1}).shaped(Vote(np.array([0, 2, 3, 26]), FOUR))
    expected = FOUR * np.exp([2, -1, 0, 2])
    assert logs.probabilities == pytest.approx(expected / expected.sum())
    for text in ("ab", " a", "é"):
        with pytest.raises(InputError, match=f"logit_bias {text!r}"):
            sampler(logit_bias={text: 1})


def test_a_bias_changes_the_odds_by_its_power_of_e() -> None:
    fused = vote(a=0.5, b=0.3, c=0.2)
    assert shaped(sampler(logit_bias={"b": np.log(2)}), fused) == pytest.approx(
        {"a": 0.5 / 1.3, "b": 0.6 / 1.3, "c": 0.2 / 1.3}, abs=1e-6
    )
    assert sampler(logit_bias={"b": 1}).choose(fused) == 1


def test_a_forbidden_symbol_is_left_out() -> None:
    assert shaped(sampler(logit_bias={"a": False}), vote(a=0.6, b=0.3, c=0.1)) == {
        "b": 0.75,
        "c": 0.25,
    }


def test_penalties_by_hand() -> None:
    logs = np.array([-1.0, -2.0, 0.5, -3.0])
    counts = np.array([0, 1, 3, 2])
    sampling = Sampling(repeat_penalty=2, presence_penalty=0.25, frequency_penalty=0.5)
    assert penalised(logs, counts, sampling) == pytest.approx(
        [-1, 2 * -2.0 - 0.25 - 0.5, 0.5 / 2 - 0.25 - 1.5, 2 * -3.0 - 0.25 - 1.0]
    )
    assert penalised(logs, counts, Sampling()).tolist() == logs.tolist()


def test_a_repeat_penalty_is_a_power_of_the_probability() -> None:
    drawn = sampler(repeat_penalty=2)
    assert drawn.choose(vote(a=0.6, b=0.4)) == 0
    # 0.36 and 0.4 are left, of 0.76.
    assert shaped(drawn, vote(a=0.6, b=0.4)) == pytest.approx(
        {"a": 0.36 / 0.76, "b": 0.4 / 0.76}, abs=1e-6
    )
    assert drawn.choose(vote(a=0.6, b=0.4)) == 1


@pytest.mark.parametrize(("bias", "penalty"), [(9, 5e-324), (1e308, 0.001), (1e308, 100)])
def test_what_is_beyond_a_float_is_forbidden_or_as_likely_as_can_be(bias, penalty) -> None:
    drawn = sampler(logit_bias={"a": bias, "b": -bias}, repeat_penalty=penalty)
    assert [drawn.choose(vote(a=0.1, b=0.9)) for _ in range(3)] == [0, 0, 0]
    drawn.has_written(1)
    assert shaped(drawn, vote(a=0.1, b=0.9)) == {"a": 1}


def test_only_the_last_n_symbols_count() -> None:
    drawn = sampler(presence_penalty=5, repeat_last_n=2)
    # Of equal symbols the first that was not among the last two.
    assert [drawn.choose(vote(a=1, b=1, c=1)) for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    drawn = sampler(presence_penalty=5, repeat_last_n=0)
    assert [drawn.choose(vote(a=1, b=1)) for _ in range(3)] == [0, 0, 0]
    drawn = sampler(frequency_penalty=0.001, repeat_last_n=-1)
    chosen = [drawn.choose(vote(a=1, b=1, c=1)) for _ in range(300)]
    assert Counter(chosen) == {0: 100, 1: 100, 2: 100}


def test_the_order_is_bias_penalty_grammar_cuts_temperature() -> None:
    # Bias first: log 0.2 + 2 is positive, so the penalty divides it, to 0.195.
    drawn = sampler(logit_bias={"b": 2}, repeat_penalty=2)
    drawn.has_written(1)
    lifted = np.exp((np.log(0.2) + 2) / 2)
    assert shaped(drawn, vote(a=0.8, b=0.2)) == pytest.approx(
        {"a": 0.8 / (0.8 + lifted), "b": lifted / (0.8 + lifted)}, abs=1e-6
    )
    # Bias and penalties before the cuts: what they lower falls out of the top k.
    for settings in ({"logit_bias": {"a": -9}}, {"presence_penalty": 9}):
        drawn = sampler(temperature=1, top_k=1, **settings)
        drawn.has_written(0)
        assert drawn.choose(vote(a=0.6, b=0.4)) == 1
    # The grammar before the cuts: the likeliest of what it allows is never cut.
    assert sampler(Only(2), temperature=1, top_k=1).choose(vote(a=0.6, b=0.3, c=0.1)) == 2
    # The cuts before the temperature: however hot, what they left out stays out.
    drawn = sampler(temperature=99, top_k=2, top_p=1, min_p=0)
    assert {drawn.choose(vote(a=0.6, b=0.3, c=0.1)) for _ in range(100)} == {0, 1}
    # Top-k before top-p: 0.5 of 0.75 is left after top-k and is not yet 0.7 of it.
    drawn = sampler(temperature=9, top_k=2, top_p=0.7, min_p=0)
    assert {drawn.choose(vote(a=0.5, b=0.25, c=0.25)) for _ in range(100)} == {0, 1}


def test_greedy_obeys_bias_penalties_and_grammar() -> None:
    fused = vote(a=0.5, b=0.3, c=0.2)
    assert sampler(logit_bias={"a": float("-inf")}).choose(fused) == 1
    drawn = sampler(presence_penalty=2)
    assert [drawn.choose(fused) for _ in range(3)] == [0, 1, 2]
    grammar = Only(1, 2)
    assert sampler(grammar).choose(fused) == 1
    assert grammar.accepted == [1]


def test_where_no_candidate_is_left_there_is_another_way_or_the_end() -> None:
    end = END
    fused = vote(a=0.5, b=0.5)
    assert sampler().choose(NOBODY) == end
    assert sampler(logit_bias={"a": False, "b": False}).choose(fused) == end
    assert sampler(Only(7, 8)).choose(fused) == 7
    assert sampler(Only(7, 8)).choose(NOBODY) == 7
    assert sampler(Only(7, 8), logit_bias={"h": False}).choose(fused) == 8
    # What the grammar demands wins over the bias.
    assert sampler(Only(7), logit_bias={"h": False}).choose(fused) == 7
    assert sampler(Only(7, end)).choose(fused) == end
    # Where biases forbid all that is allowed, it is the likeliest of it.
    assert sampler(Only(0, 1), logit_bias={"a": False, "b": False}).choose(vote(a=0.4, b=0.6)) == 1


masses = st.lists(st.floats(1e-6, 1), min_size=1, max_size=20)


@given(masses=masses, seen=st.lists(st.integers(0, 19), max_size=9), seed=st.integers(0, 99))
def test_penalties_that_are_off_and_no_bias_change_nothing(masses, seen, seed) -> None:
    fused = vote(**{chr(97 + i): mass for i, mass in enumerate(masses)})
    off = Sampling(temperature=1, seed=seed, repeat_penalty=1, logit_bias={})
    neutral = replace(off, logit_bias={"a": 0})
    drawn, same = (Drawn(LETTERS.prepare(sampling)()) for sampling in (off, neutral))
    for symbol in seen:
        drawn.has_written(symbol)
    assert drawn.shaped(fused) is fused
    assert same.shaped(fused).probabilities == pytest.approx(fused.probabilities)
    assert drawn.choose(fused) == choose(fused, off, np.random.default_rng(seed))


@given(
    masses=masses,
    forbidden=st.sets(st.integers(0, 19), min_size=1),
    temperature=st.sampled_from([0, 1]),
    seed=st.integers(0, 99),
)
def test_the_forbidden_is_never_chosen(masses, forbidden, temperature, seed) -> None:
    fused = vote(**{chr(97 + i): mass for i, mass in enumerate(masses)})
    biases = {chr(97 + symbol): float("-inf") for symbol in forbidden}
    drawn = sampler(logit_bias=biases, temperature=temperature, seed=seed, top_k=0, min_p=0)
    assert drawn.choose(fused) not in forbidden


@given(masses=masses, bias=st.floats(0, 5), penalty=st.floats(1, 3), times=st.integers(1, 5))
def test_a_bias_never_lowers_and_a_penalty_never_raises(masses, bias, penalty, times) -> None:
    assume(len(masses) > 1)
    fused = vote(**{chr(97 + i): mass for i, mass in enumerate(masses)})
    before = fused.probability(0)
    assert sampler(logit_bias={"a": bias}).shaped(fused).probability(0) >= before - 1e-9
    drawn = sampler(repeat_penalty=penalty, frequency_penalty=penalty - 1)
    for _ in range(times):
        drawn.has_written(0)
    assert drawn.shaped(fused).probability(0) <= before + 1e-9


def test_biases_are_kept_as_pairs() -> None:
    sampling = Sampling(logit_bias={"a": 1, "b": False})
    assert sampling.logit_bias == (("a", 1.0), ("b", float("-inf")))
    assert hash(sampling) == hash(replace(sampling))
    assert replace(sampling, top_k=1).logit_bias == sampling.logit_bias


def test_one_text_is_one_stop_string() -> None:
    assert Sampling(stop="abc").stop == ("abc",)
    assert Sampling(stop=["abc", "d"]).stop == ("abc", "d")
    assert replace(Sampling(stop="abc"), top_k=1).stop == ("abc",)


def test_draws_follow_the_distribution() -> None:
    generator = np.random.default_rng(1)
    counts = np.bincount([draw(FOUR, generator) for _ in range(20_000)], minlength=4) / 20_000
    assert counts == pytest.approx(FOUR, abs=0.015)


@given(
    masses=st.lists(st.floats(1e-9, 1), min_size=1, max_size=30),
    seed=st.integers(0, 2**32),
    temperature=st.floats(0.01, 5),
    top_k=st.integers(0, 10),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 0.9),
)
def test_law_6_equal_seeds_choose_alike_and_always_a_symbol(
    masses, seed, temperature, top_k, top_p, min_p
) -> None:
    fused = vote(**{chr(97 + i): mass for i, mass in enumerate(masses)})
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    first, second = (
        [choose(fused, sampling, generator) for _ in range(3)]
        for generator in (np.random.default_rng(seed), np.random.default_rng(seed))
    )
    assert first == second
    assert set(first) <= set(fused.symbols.tolist())


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"min_p": 1},
        {"seed": -2},
        {"stop": ("",)},
        {"stop": ""},
        {"stop": 5},
        {"stop": None},
        {"stop": ["a", 5]},
        {"stop": b"abc"},
        {"logit_bias": "ab"},
        {"logit_bias": ["ab"]},
        {"logit_bias": [("ab", 1, 2)]},
        {"logit_bias": {5: 1}},
        {"logit_bias": {"a": "1"}},
        {"logit_bias": 5},
        {"repeat_penalty": 0},
        {"repeat_penalty": float("nan")},
        {"repeat_last_n": -2},
        {"presence_penalty": float("inf")},
        {"frequency_penalty": float("nan")},
        {"logit_bias": {"": 1}},
        {"logit_bias": {"a": float("nan")}},
        {"logit_bias": {"a": float("inf")}},
        {"logit_bias": {"a": True}},
        {"logit_bias": {"a": 10**400}},
        {"logit_bias": {"a": -(10**400)}},
        {"logit_bias": {"a\ud800": 1}},
        {"grammar": " "},
        {"json_schema": ""},
        {"grammar": 'root ::= "a"', "json_schema": "{}"},
    ],
)
def test_values_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(InputError, match=next(iter(wrong)).split("_")[0]):
        Sampling(**wrong)


def test_pieces_that_are_put_forward_are_biased_and_penalised_by_hand() -> None:
    fused = Vote(np.arange(3), np.array([0.5, 0.3, 0.2]))

    def among(*pieces: bytes) -> Candidates:
        return Candidates([], pieces, end=-1 if pieces[-1] else len(pieces) - 1)

    ended = among(b"a", b"b", b"")
    assert Sampler(Sampling(logit_bias={"b": 1.0})).choose(fused, ended) == 1
    assert Sampler(Sampling(logit_bias={"a": False})).choose(fused, ended) == 1
    drawn = Sampler(Sampling(presence_penalty=1.0, repeat_last_n=1))
    # log 0.5 - 1 is under log 0.3; the window then holds "b" alone.
    found = [drawn.choose(fused, ended) for _ in range(3)]
    assert [ended.piece(each) for each in found] == [b"a", b"b", b"a"]
    # The numbers of pieces change from step to step.
    drawn = Sampler(Sampling(presence_penalty=1.0))
    assert drawn.choose(fused, ended) == 0
    assert drawn.choose(fused, among(b"c", b"a", b"")) == 0
    # Where a bias forbids all that was put forward, the text ends, if it can end there.
    forbidden = Sampling(logit_bias={"a": False, "b": False})
    two = Vote(np.arange(2), np.array([0.4, 0.6]))
    assert Sampler(forbidden).choose(two, ended) == 2
    assert Sampler(forbidden).choose(two, among(b"a", b"b")) == 1
