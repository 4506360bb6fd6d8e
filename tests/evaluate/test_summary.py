"""From results to scores, differences, and what follows from them in plain sentences."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
from evaluations import contestants, entry, outcome, task

from eva_local.evaluate.evaluation import advice, comparison, warning
from eva_local.evaluate.rows import Result, TaskRow, votes_filtered
from eva_local.evaluate.summary import choice, mark, summarize


def test_marks_by_hand() -> None:
    shared = {"steps": 3, "filtered": (1, 2), "seconds": 0.1}
    long = Result(**shared, log_likelihoods=(-4.0, -6.0), n_bytes=(2, 6))
    assert (choice(long, per_byte=False), choice(long, per_byte=True)) == (0, 1)
    row = TaskRow("r", prompt="p", choices=("a", "bc"), label=1, answers=("Poison", "2"))
    assert mark(row, long, "choice").value == 100
    text = Result(**shared, log_likelihoods=(-8 * math.log(2),), n_bytes=(4,))
    assert mark(row, text, "bits").value == pytest.approx(2)
    assert mark(row, text, "bits").weight == 4
    assert mark(row, Result(**shared, text=" the poison.\nmore"), "exact").value == 100
    assert mark(row, Result(**shared, text="the answer is 2."), "number").value == 100
    assert mark(row, Result(**shared, text="Poison"), "chrF").value == pytest.approx(100)
    assert votes_filtered([long, text]) == pytest.approx(6 / 12)
    assert votes_filtered([Result(3, (0,), 0.1)]) is None


def hand_made(*right: tuple[bool, ...]) -> list:
    """Entries on one task: for each contestant, in which rows it chose right."""
    of = task("choice", len(right[0]))
    them = contestants(("a", "b"), ("other", "third")[: len(right) - 3])

    def result(won: bool, size: int) -> Result:
        nats = (-1.0, -5.0, -6.0) if won else (-6.0, -1.0, -5.0)
        return Result(2, (0,) * size, 0.1 * size, log_likelihoods=nats, n_bytes=(1, 1, 1))

    return [
        replace(entry(of, one, 1, 1), results=tuple(result(won, len(one.members)) for won in mine))
        for one, mine in zip(them, right, strict=True)
    ]


def test_oracle_agreement_and_gap_by_hand() -> None:
    yes, no = True, False
    found = summarize(hand_made((yes, yes, no, no), (yes, no, no, yes), (yes, yes, no, yes)))
    assert [one.score.value for one in found.standings] == [50, 50, 75]
    assert found.oracle == 75
    assert found.agreement == 0.5
    assert found.best == "a"
    assert found.gap == 0
    assert found.standing("trio").ahead.value == 25
    assert found.standing("a").ahead is None
    assert found.standings[2].more["% right, raw"] == 75


def test_bits_are_weighed_by_bytes_and_less_is_better() -> None:
    found = outcome(("bpb",), 30).tasks[0]
    bits = [mark.value * mark.weight for mark in found.standing("trio").marks]
    weights = [mark.weight for mark in found.standing("trio").marks]
    assert found.standing("trio").score.value == pytest.approx(sum(bits) / sum(weights))
    best = min(found.members, key=lambda one: one.score.value)
    assert found.best == best.name
    ahead = 100 * (1 - found.standing("trio").score.value / best.score.value)
    assert found.standing("trio").ahead.value == pytest.approx(ahead)
    assert found.gap > 0
    assert found.agreement is None


def test_the_mean_over_tasks_counts_points_only() -> None:
    whole = outcome()
    points = [one for one in whole.tasks if one.metric != "bits"]
    expected = sum(one.standing("trio").ahead.value for one in points) / 3
    assert whole.overall("trio").value == pytest.approx(expected)
    assert replace(whole, tasks=whole.tasks[:1]).overall("trio") is None


ROWS = 60


@pytest.mark.parametrize(
    ("first", "second", "both", "said"),
    [
        (20, 18, 50, "Use trio: it is 50.0 points better than a alone"),
        (50, 45, 20, "Use a alone: trio is 50.0 points worse"),
        (30, 29, 30, "60 rows cannot tell trio from a alone .* use a alone, which is 2.0 times"),
        (29, 30, 30, "60 rows cannot tell trio from b alone .* use b alone, which is 2.0 times"),
    ],
)
def test_advice_in_a_plain_sentence(first, second, both, said) -> None:
    made = hand_made(*[tuple(i < count for i in range(ROWS)) for count in (first, second, both)])
    found = summarize(made)
    assert re.match(said, advice(found, found.standing("trio")))
    assert advice(found, found.members[0]) == "" or found.best != found.members[0].name


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((), ""),
        ((30, 20), r"None of the settings compared with trio does better\."),
        ((33, 20), r"Of .* other does best, but 60 rows cannot tell it from trio \(\+5.0 .*"),
        ((60,), r"Of .* other does best \(\+50.0 points against trio, 95% interval [^;]*\)\."),
        ((40, 60), r"Of .* third does best .*; the best of many owes some of it to luck\)\."),
    ],
)
def test_settings_are_compared_with_the_first(counts, said) -> None:
    rows = [tuple(i * 7 % ROWS < n for i in range(ROWS)) for n in (30, 30, 30, *counts)]
    found = summarize(hand_made(*rows))
    assert re.fullmatch(said, comparison(found))
    assert found.base == ("trio" if counts else "")
    assert [one.change and round(one.change.value, 6) for one in found.standings] == [
        *(None, None, None),
        *(round(100 * (n - 30) / ROWS, 6) for n in counts),
    ]


def test_one_row_says_nothing_of_others() -> None:
    found = summarize(hand_made((True,), (False,), (False,)))
    said = "One row cannot tell trio from a alone (-100.0 points)."
    assert advice(found, found.standing("trio")) == said


def test_members_that_are_far_apart_are_warned_of() -> None:
    near = summarize(hand_made(*[tuple(i < n for i in range(ROWS)) for n in (30, 25, 30)]))
    far = summarize(hand_made(*[tuple(i < n for i in range(ROWS)) for n in (30, 20, 30)]))
    assert warning(near) == ""
    assert "differ by 16.7 points, more than 10: an equal vote for b" in warning(far)
