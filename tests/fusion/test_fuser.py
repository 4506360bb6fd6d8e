import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from votes import as_dict, vote, votes

from eva_local.config.specs import FusionSettings
from eva_local.fusion.votes import NOBODY, Fuser, Vote, combine, follow, softmax


def judge(n_members: int, **settings) -> Fuser:
    return Fuser(FusionSettings(**({"filter": "off"} | settings)), n_members)


def test_softmax_by_hand() -> None:
    weights = softmax(np.array([-1.0, -1.5]), 0.5)
    assert weights == pytest.approx([math.e / (1 + math.e), 1 / (1 + math.e)])
    assert softmax(np.array([-1.0, -1.0, -1.0]), 0.1) == pytest.approx([1 / 3] * 3)


def test_follow_by_hand() -> None:
    # A piece of 2 bytes and -4 nats, twice -2 nats a byte; decay one half.
    evidence = follow(np.array([0.0]), np.array([-4.0]), 2, 0.5)
    one_by_one = follow(follow(np.array([0.0]), np.array([-2.0]), 1, 0.5), np.array([-2.0]), 1, 0.5)
    assert evidence == pytest.approx([-1.5])
    assert evidence == pytest.approx(one_by_one)


def test_running_weights_by_hand() -> None:
    deciding = judge(2, weights="running", weight_decay=0.5, weight_temperature=0.5)
    ballots = [vote(a=0.5, b=0.5), vote(a=0.9, b=0.1)]
    first = deciding.decide(ballots)
    assert first.weights == (0.5, 0.5)
    deciding.learn(first, 1, 1)
    assert deciding.evidence == pytest.approx([0.5 * math.log(0.5), 0.5 * math.log(0.1)])
    second = deciding.decide(ballots)
    ratio = math.exp((0.5 * math.log(0.5) - 0.5 * math.log(0.1)) / 0.5)
    assert second.weights == pytest.approx((ratio / (1 + ratio), 1 / (1 + ratio)))
    assert as_dict(second.fused) == as_dict(combine(ballots, second.weights))


def test_a_symbol_that_a_vote_cut_off_counts_with_its_smallest_probability() -> None:
    deciding = judge(2, weights="running", weight_decay=0.5)
    decision = deciding.decide([vote(a=0.8, b=0.2), vote(c=1.0)])
    deciding.learn(decision, 2, 1)
    assert deciding.evidence == pytest.approx([0.5 * math.log(0.2), 0.0])


def test_fixed_numbers() -> None:
    decision = judge(2, weights=(3.0, 1.0)).decide([vote(a=1), vote(b=1)])
    assert decision.weights == (0.75, 0.25)
    assert as_dict(decision.fused) == {"a": 0.75, "b": 0.25}


def test_a_filtered_vote_has_no_weight_and_a_reason() -> None:
    deciding = judge(3, filter="top-n", filter_n=1)
    decision = deciding.decide([vote(a=0.9, b=0.1), vote(a=0.8, c=0.2), vote(d=1)])
    assert decision.stayed == (True, True, False)
    assert decision.weights == (0.5, 0.5, 0.0)
    assert decision.reasons == ("", "", "its first choice is in no other member's top 1")


def test_members_are_filtered_by_what_they_say_of_the_allowed() -> None:
    deciding = judge(3, filter="top-n", filter_n=1)
    votes = [vote(a=0.9, c=0.1), vote(b=0.9, c=0.1), vote(a=0.9, d=0.1)]
    assert deciding.decide(votes).stayed == (True, False, True)
    decision = deciding.decide(votes, np.array([0, 0, 1, 1], dtype=bool))
    assert decision.stayed == (True, True, False)
    assert as_dict(decision.fused) == {"a": 0.45, "b": 0.45, "c": 0.1}
    # Who has nothing that is allowed has no say, even where nobody is filtered.
    decision = judge(2).decide([vote(a=1), vote(b=1)], np.array([0, 1], dtype=bool))
    assert decision.stayed == (False, True)
    assert decision.reasons[0].startswith("proposes nothing")


def test_who_was_not_asked_or_has_nothing_to_say() -> None:
    decision = judge(3).decide([vote(a=1), None, NOBODY])
    assert decision.stayed == (True, False, False)
    assert decision.reasons[1].startswith("not asked")
    assert decision.reasons[2].startswith("proposes nothing")
    assert as_dict(decision.fused) == {"a": 1.0}


def test_where_only_members_without_weight_stay_they_decide() -> None:
    decision = judge(2, weights=(0.0, 1.0)).decide([vote(a=1), NOBODY])
    assert as_dict(decision.fused) == {"a": 1.0}


def test_evidence_comes_only_from_steps_in_which_all_spoke() -> None:
    deciding = judge(2, weights="running")
    deciding.learn(deciding.decide([vote(a=1), None]), 0, 1)
    deciding.learn(deciding.decide([vote(a=1), vote(b=1)]), 0, 0)
    assert deciding.evidence.tolist() == [0, 0]


@given(
    votes=votes,
    filtering=st.sampled_from(["top-n", "off"]),
    weights=st.sampled_from(["equal", "running"]),
)
def test_a_filtered_member_has_no_influence(votes, filtering, weights) -> None:
    deciding = judge(len(votes), filter=filtering, filter_n=2, weights=weights)
    decision = deciding.decide(votes)
    assert sum(decision.weights) == pytest.approx(1)
    assert decision.fused.probabilities.sum() == pytest.approx(1)
    stayed = [v for v, stays in zip(votes, decision.stayed, strict=True) if stays]
    without = judge(len(stayed), weights=weights).decide(stayed)
    assert as_dict(without.fused) == as_dict(decision.fused)


@given(votes=votes, n_bytes=st.integers(1, 8), steps=st.integers(1, 5))
def test_running_weights_favour_who_predicts_best(votes, n_bytes, steps) -> None:
    deciding = judge(len(votes), weights="running")
    for _ in range(steps):
        decision = deciding.decide(votes)
        deciding.learn(decision, int(votes[0].symbols[0]), n_bytes)
    likelihood = [v.at_least(int(votes[0].symbols[0])) for v in votes]
    final = deciding.decide(votes).weights
    best = int(np.argmax(likelihood))
    assert final[best] == pytest.approx(max(final))


def test_rules_that_share_what_is_known_of_the_votes_decide_as_each_alone() -> None:
    votes = [vote(a=0.6, b=0.4), vote(a=0.1, c=0.9), vote(b=1)]
    settings = [
        {},
        {"weights": (1.0, 1.0, 1.0)},
        {"weights": (1.0, 2.0, 0.0)},
        {"combine": "geometric"},
        {"combine": "geometric", "sharpness": 2.0},
        {"filter": "top-n", "filter_n": 1},
    ]
    known: dict[object, Vote] = {}
    for rule in settings:
        shared = judge(3, **rule).decide(votes, known=known)
        alone = judge(3, **rule).decide(votes)
        assert as_dict(shared.fused) == as_dict(alone.fused)
        assert (shared.stayed, shared.weights) == (alone.stayed, alone.weights)
    # Equal weights are one rule, however they are given, and so is a filter that all pass.
    assert len(known) == 4


def test_members_of_negative_weight_neither_filter_nor_decide() -> None:
    deciding = judge(2, combine="geometric", weights=(2.0, -1.0), filter="top-n", filter_n=1)
    expert, amateur = vote(a=0.6, b=0.4), vote(b=0.6, c=0.4)
    decision = deciding.decide([expert, amateur])
    assert decision.stayed == (True, True)
    assert as_dict(decision.fused) == as_dict(
        combine([expert, amateur], [2.0, -1.0], "geometric", 1.05)
    )
    # With nobody whom it could be held against, nothing is left: not what is unwanted.
    left = deciding.decide([NOBODY, amateur])
    assert (left.weights, len(left.fused)) == ((0.0, 0.0), 0)
