import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from votes import as_dict, vote, votes

from eva_local.alignment.mapping import Mapping
from eva_local.fusion import votes as fusion
from eva_local.fusion.votes import (
    NOBODY,
    combine,
    divergence,
    faithful,
    normalised,
    project,
    reaching,
    top_k,
)


def matrix(rows: list[dict[int, float]], n_symbols: int, first: list[int] | None = None) -> Mapping:
    return Mapping(
        method="test",
        member="m",
        pivot="p",
        n_symbols=n_symbols,
        indptr=np.cumsum([0, *(len(row) for row in rows)]),
        indices=np.array([s for row in rows for s in row], dtype=np.int32),
        weights=np.array([w for row in rows for w in row.values()], dtype=np.float32),
        first=np.array(first or [], dtype=np.int32),
    )


methods = st.sampled_from(["mean", "geometric"])


def test_top_k_is_the_softmax_over_the_best() -> None:
    logits = np.log(np.array([1, 6, 3, 1], dtype=np.float32))
    ids, probabilities = top_k(logits, 2)
    assert ids.tolist() == [1, 2]
    assert probabilities == pytest.approx([2 / 3, 1 / 3])
    ids, probabilities = top_k(logits, 0)
    assert probabilities == pytest.approx([1 / 11, 6 / 11, 3 / 11, 1 / 11])


@given(st.integers(1, 400), st.integers(1, 40), st.sampled_from([1, 3, 1000]), st.integers(0, 1000))
def test_top_k_takes_the_highest_of_many(size, count, levels, seed) -> None:
    # Few levels make ties, of which any may be taken.
    logits = np.random.default_rng(seed).integers(0, levels, size * 10).astype(np.float32)
    ids, probabilities = top_k(logits, count)
    assert (np.diff(ids) > 0).all()
    assert sorted(logits[ids]) == sorted(logits)[-count:]
    assert probabilities == pytest.approx(
        np.exp(logits[ids] - logits.max()) / np.exp(logits[ids] - logits.max()).sum()
    )


@given(st.integers(0, 1000), st.integers(1, 40), st.floats(0, 1))
def test_the_highest_of_the_marked_come_along_with_their_true_odds(seed, count, share) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 9, 300).astype(np.float32)
    marks = generator.random(300) < share
    ids, probabilities = top_k(logits, count, marks)
    best = np.argsort(-logits)
    assert set(ids) == {*best[:count], *best[marks[best]][:count]}
    assert (np.diff(ids) > 0).all()
    assert np.log(probabilities / probabilities.max()) == pytest.approx(
        logits[ids].astype(float) - logits.max(), abs=1e-4
    )


def test_tokens_reach_a_marked_symbol_by_their_row_or_as_its_beginning() -> None:
    rows: list[dict[int, float]] = [{0: 1.0}, {}, {1: 0.5, 2: 0.5}, {3: 1.0}]
    mapping = matrix(rows, 4)
    assert reaching(mapping, np.array([0, 0, 1, 0], dtype=bool)).tolist() == [0, 0, 1, 0]
    assert reaching(mapping, np.array([1, 0, 0, 1], dtype=bool)).tolist() == [1, 0, 0, 1]
    begins = matrix(rows, 4, first=[0, 1, -1, 3])
    assert reaching(begins, np.array([0, 1, 0, 0], dtype=bool)).tolist() == [0, 1, 1, 0]
    assert not reaching(matrix([{}], 2), np.ones(2, dtype=bool)).any()


def test_a_vote_within_some_symbols_keeps_its_probabilities() -> None:
    whole = vote(a=0.6, b=0.3, c=0.1)
    assert as_dict(whole.within(np.array([0, 1, 1], dtype=bool))) == {"b": 0.3, "c": 0.1}
    assert whole.within(np.ones(3, dtype=bool)) is whole


def test_logits_that_are_no_numbers_make_no_vote() -> None:
    ids, probabilities = top_k(np.full(5000, np.nan, dtype=np.float32), 7)
    assert len(ids) == 7
    assert len(normalised(ids, probabilities)) == 0


def test_top_k_survives_extreme_logits() -> None:
    _, probabilities = top_k(np.array([1e4, -1e4, -np.inf], dtype=np.float32), 0)
    assert probabilities.tolist() == [1, 0, 0]


def test_project_splits_and_adds_up() -> None:
    mapping = matrix([{0: 1}, {0: 0.25, 2: 0.75}, {}], 3)
    projected = project(np.array([0, 1, 2]), np.array([0.5, 0.2, 0.3]), mapping)
    # 0.5 + 0.2 * 0.25 = 0.55 and 0.2 * 0.75 = 0.15, of 0.7 that is not lost.
    assert as_dict(projected) == {"a": round(0.55 / 0.7, 6), "c": round(0.15 / 0.7, 6)}


def test_project_refined_follows_the_pivot() -> None:
    # Token 0 begins symbols a and b; token 1 begins c, which the pivot does not consider.
    mapping = matrix([{0: 1}, {2: 1}], 4, first=[0, 0, 1, -1])
    pivot = vote(a=0.2, b=0.6, d=0.2)
    projected = project(np.array([0, 1]), np.array([0.8, 0.2]), mapping, pivot)
    assert as_dict(projected) == {"a": 0.2, "b": 0.6, "c": 0.2}


def test_mass_on_tokens_that_stand_for_nothing_makes_an_abstention() -> None:
    assert len(project(np.array([0]), np.array([1.0]), matrix([{}], 2))) == 0


def test_the_filter_drops_who_stands_alone() -> None:
    one, other, odd = vote(a=0.6, b=0.4), vote(b=0.7, a=0.3), vote(c=0.8, d=0.2)
    assert faithful([one, other, odd], 2) == [True, True, False]
    assert faithful([one, other, odd], 1) == [True, True, True]  # none agrees: all stay
    assert faithful([odd, vote(d=0.9, e=0.1)], 2) == [False, True]
    assert faithful([one], 3) == [True]


def test_who_abstains_is_filtered() -> None:
    assert faithful([vote(a=1), NOBODY], 3) == [True, False]
    assert faithful([NOBODY], 3) == [False]


def test_mean_by_hand() -> None:
    fused = combine([vote(a=0.6, b=0.4), vote(b=0.9, c=0.1)], [3, 1])
    assert as_dict(fused) == {"a": 0.45, "b": 0.525, "c": 0.025}


def test_geometric_mean_by_hand() -> None:
    fused = combine([vote(a=0.5, b=0.5), vote(a=0.9, b=0.1)], [1, 1], "geometric")
    a, b = (0.5 * 0.9) ** 0.5, (0.5 * 0.1) ** 0.5
    assert as_dict(fused) == {"a": round(a / (a + b), 6), "b": round(b / (a + b), 6)}
    # To the power of 2 the mean of two is their product.
    fused = combine([vote(a=0.5, b=0.5), vote(a=0.9, b=0.1)], [1, 1], "geometric", 2.0)
    assert as_dict(fused) == pytest.approx({"a": 0.9, "b": 0.1})
    assert combine([vote(a=0.9, b=0.1)], [1], "geometric", 2.0).probability(0) == 0.9
    # A symbol that a vote does not hold counts with the vote's smallest probability.
    fused = combine([vote(a=0.8, b=0.2), vote(a=0.4, c=0.6)], [1, 1], "geometric")
    a, b, c = (0.8 * 0.4) ** 0.5, (0.2 * 0.4) ** 0.5, (0.2 * 0.6) ** 0.5
    total = a + b + c
    assert as_dict(fused) == {k: round(v / total, 6) for k, v in zip("abc", (a, b, c), strict=True)}


@given(votes=votes, method=methods, data=st.data())
def test_law_4_sums_to_1_and_order_does_not_matter(votes, method, data) -> None:
    weights = data.draw(st.lists(st.floats(0.01, 5), min_size=len(votes), max_size=len(votes)))
    fused = combine(votes, weights, method)
    assert fused.probabilities.sum() == pytest.approx(1)
    assert np.all(np.diff(fused.symbols) > 0)
    order = data.draw(st.permutations(range(len(votes))))
    other = combine([votes[i] for i in order], [weights[i] for i in order], method)
    assert np.array_equal(fused.symbols, other.symbols)
    assert np.allclose(fused.probabilities, other.probabilities, atol=1e-6)
    stay = faithful(votes, 2)
    assert faithful([votes[i] for i in order], 2) == [stay[i] for i in order]


@given(votes=votes, against=st.floats(0.01, 0.9), data=st.data())
def test_law_4_holds_with_a_member_of_negative_weight(votes, against, data) -> None:
    weights = [1.0 + number for number in range(len(votes))]
    if len(votes) > 1:
        weights[data.draw(st.integers(0, len(votes) - 1))] = -against
    fused = combine(votes, weights, "geometric")
    assert fused.probabilities.sum() == pytest.approx(1)
    assert np.all(np.diff(fused.symbols) > 0)
    order = data.draw(st.permutations(range(len(votes))))
    other = combine([votes[i] for i in order], [weights[i] for i in order], "geometric")
    assert np.array_equal(fused.symbols, other.symbols)
    assert np.allclose(fused.probabilities, other.probabilities, atol=1e-6)


@given(votes=votes, method=methods, scale=st.floats(0.1, 10))
def test_weights_of_0_and_1_are_absence_and_dictatorship(votes, method, scale) -> None:
    others = [0.0] * (len(votes) - 1)
    alone = combine(votes, [scale, *others], method)
    assert as_dict(alone) == as_dict(votes[0])
    if len(votes) > 1:
        without = combine(votes[1:], [1.0] * (len(votes) - 1), method)
        assert as_dict(combine(votes, [0.0, *[1.0] * (len(votes) - 1)], method)) == as_dict(without)


def test_no_vote_at_all_fuses_to_an_abstention() -> None:
    assert len(combine([vote(a=1)], [0])) == 0


def test_looking_into_a_vote() -> None:
    seen = vote(a=0.25, c=0.5, e=0.25)
    assert seen.top(2) == [(2, 0.5), (0, 0.25)]
    assert [seen.probability(symbol) for symbol in (2, 3, 9)] == [0.5, 0, 0]


@given(votes=votes, method=methods, count=st.integers(0, 12))
def test_many_symbols_are_fused_as_few_are(votes, method, count) -> None:
    """What is quick for whole votes gives exactly what is quick for short ones."""
    found = []
    for dense in (0, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fusion, "_DENSE", dense)
            fused = combine(votes, range(1, len(votes) + 1), method)
            summed = normalised(np.array([3, 1, 3]), np.array([0.1, 0.2, 0.3]))
        found.append([fused.symbols, fused.probabilities, summed.symbols, summed.probabilities])
    for short, whole in zip(*found, strict=True):
        assert np.array_equal(short, whole)
    order = np.argsort(-fused.probabilities, kind="stable")[:count]
    assert [symbol for symbol, _ in fused.top(count)] == fused.symbols[order].tolist()


@given(seed=st.integers(0, 1000))
def test_a_whole_member_is_projected_as_its_best_tokens_are(seed) -> None:
    generator = np.random.default_rng(seed)
    mapping = matrix([{0: 1.0}, {1: 1.0}, {}, {2: 0.5, 3: 0.5}], 5, first=[0, 1, 1, -1, 3])
    logits = generator.normal(size=4).astype(np.float32)
    pivot = normalised(np.arange(5), generator.random(5))
    whole = project(*top_k(logits, 0), mapping, pivot)
    # A token that has no chance makes no difference, but takes the other way.
    more = matrix([{0: 1.0}, {1: 1.0}, {}, {2: 0.5, 3: 0.5}, {4: 1.0}], 5, first=[0, 1, 1, -1, 3])
    some = project(*top_k(np.append(logits, np.float32(-200)), 4), more, pivot)
    assert as_dict(whole) == as_dict(some)


def test_divergence_by_hand() -> None:
    # The entropy of the mean, 0.55 and 0.45, less the mean of both entropies.
    one, other = vote(a=0.9, b=0.1), vote(a=0.2, b=0.8)
    assert divergence([one, other]) == pytest.approx(0.99277 - (0.46900 + 0.72193) / 2, abs=1e-4)
    assert divergence([one, one]) == 0
    apart = [vote(a=1), vote(b=1), vote(c=1)]
    assert divergence(apart[:2]) == pytest.approx(1)
    assert divergence(apart) == pytest.approx(np.log2(3))
    # What one names and another does not is a difference in part.
    wide = vote(a=0.25, b=0.25, c=0.5)
    assert divergence([wide, apart[2]]) == pytest.approx(1.06128 - 1.5 / 2, abs=1e-4)
