import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_fusion import vote

from eva_local.errors import InputError
from eva_local.records import Sampling
from eva_local.sampling import choose, draw, heat, keep_min_p, keep_top_k, keep_top_p

FOUR = np.array([0.5, 0.25, 0.15, 0.1])


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


def test_greedy_takes_the_likeliest_and_the_lower_of_two_equals() -> None:
    generator = np.random.default_rng(0)
    assert choose(vote(a=0.2, b=0.5, c=0.3), Sampling(), generator) == 1
    assert choose(vote(b=0.4, c=0.4, d=0.2), Sampling(), generator) == 1


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
        {"seed": -1},
        {"stop": ("",)},
    ],
)
def test_values_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(InputError, match=next(iter(wrong)).split("_")[0]):
        Sampling(**wrong)
