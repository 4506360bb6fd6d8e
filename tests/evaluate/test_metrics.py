"""What answers are worth, by hand-made cases and against sacrebleu and scipy."""

from __future__ import annotations

import sys
from dataclasses import replace
from decimal import Decimal

import numpy as np
import pytest
import sacrebleu
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from eva_local.errors import InputError
from eva_local.evaluate.metrics import (
    chrf,
    corpus_scores,
    exact_match,
    metric_of,
    normalised,
    number_in,
    numeric_match,
)
from eva_local.evaluate.rows import Task, TaskRow
from eva_local.evaluate.summary import estimate, mean_of

TEXTS = ["The cat sat on the mat.", "He ate a fish, quickly", "", "Nothing like it at all"]
ANSWERS = [
    ("The cat sat on a mat.", "A cat was sitting on the mat."),
    ("He quickly ate a fish.",),
    ("Something.", "Anything.", "Some other thing."),
    ("Rain fell in the night.",),
]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("It costs $1,234.50.", "1234.5"),
        ("5-3=2", "2"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("He has −7 left", "-7"),
        ("The answer is 18. The answer is 20 dollars and 3 cents", "20"),
        ("the ANSWER is: **72**\nQuestion 2: 9 and 9", "72"),
        ("The answer is unknown, perhaps 4", "4"),
        ("The answer is nothing.\nSo 12 it is", "12"),
        ("The answer is 76 - 25 = 51 dollars.", "51"),
        ("The answer is 20. Check: 3 + 4 = 7.", "20"),
        ("The answer is 3.5 apples", "3.5"),
        ("1,2,3", "3"),
        ("1,2345", "2345"),
        ("10%", "10"),
        ("half of it, .5", "0.5"),
        ("18.", "18"),
        ("18.00", "18"),
        ("#### 540", "540"),
        ("3x4=12", "12"),
        ("The answer is 30, since x = 5.", "30"),
        ("The answer is 12 (= 3 x 4).", "12"),
        ("The answer is 30 dollars - 5 dollars = 25 dollars.", "25"),
        ("The answer is (2 + 3) * 4 = 20 = 20.", "20"),
        ("The answer is 1,000 + 5 = 1,005.", "1005"),
        ("The answer is 1/2.", "0.5"),
        ("7 1/2 cups", "7.5"),
        ("-3/4", "-0.75"),
        ("5/0", "0"),
        ("on 5/12/2020", "2020"),
        ("The area is 50 cm^2.", "50"),
        ("The answer is –5", "-5"),
        ("5–10", "10"),
        ("-$ 5", "-5"),
        ("-US$5", "-5"),
        ("-¥500", "-500"),
        ("1e3", "1000"),
        ("_5_", "5"),
        ("v2", None),
        ("", None),
    ],
)
def test_the_number_that_a_text_comes_to(text, number) -> None:
    assert number_in(text) == (None if number is None else Decimal(number))


def test_numbers_match_by_value() -> None:
    assert numeric_match("The answer is 1,000.", ["1000"])
    assert numeric_match("So $3.50", ["3.5"])
    assert not numeric_match("The answer is 10.", ["1"])
    assert not numeric_match("I do not know", ["1"])


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("The  Beatles!", "beatles"),
        ("U.S.", "US"),
        ("A man a plan", "man plan"),
        ("theatre", "theatre"),
        ("“Élan”", "élan"),
        ("ＡＢＣ", "abc"),
        ("$5", "5"),
        ("中文。", "中文"),
        ("Another", "another"),
        ("A", "a"),
        ("+", "+"),
        (" - ", "-"),
    ],
)
def test_normalised_text(text, same) -> None:
    assert normalised(text) == same.casefold()


@given(st.text())
@example("C:\N{COMBINING CEDILLA}")
def test_normalising_again_changes_nothing_that_matters(text) -> None:
    once = normalised(text)
    assert normalised(once) == once or any(word in once.split() for word in ("a", "an", "the"))


def test_exact_match_reads_the_first_line_that_is_not_blank() -> None:
    assert exact_match("\n The Poison.\nQuestion: who", ["Poison"])
    assert exact_match("14 December 1972 UTC", ["december 1972", "14 December 1972 UTC"])
    assert not exact_match("It was Poison", ["Poison"])
    assert not exact_match("", ["Poison"])


def test_an_answer_of_several_lines_is_read_whole() -> None:
    assert exact_match("red\n\nblue\nQuestion: which", ["red\nblue"])
    assert not exact_match("red\ngreen", ["red\nblue"])


def test_saying_nothing_is_no_answer() -> None:
    assert not exact_match("", ["A"])
    assert not exact_match("the", ["A"])
    assert not exact_match("-", ["+"])
    assert exact_match("a", ["A"])


@pytest.mark.parametrize("place", range(4))
def test_chrf_is_sacrebleus(place) -> None:
    expected = sacrebleu.sentence_chrf(TEXTS[place], list(ANSWERS[place])).score
    assert chrf(TEXTS[place], ANSWERS[place]) == pytest.approx(expected)


def test_corpus_scores_are_sacrebleus_with_uneven_numbers_of_answers() -> None:
    found = corpus_scores(TEXTS, ANSWERS)
    # sacrebleu's own way to have fewer references for some rows: an empty one.
    references = [[given[i] if i < len(given) else "" for given in ANSWERS] for i in range(3)]
    assert found["BLEU"] == pytest.approx(sacrebleu.corpus_bleu(TEXTS, references).score)
    assert found["corpus chrF"] == pytest.approx(sacrebleu.corpus_chrf(TEXTS, references).score)
    one = [given[0] for given in ANSWERS]
    single = corpus_scores(TEXTS, [(text,) for text in one])
    assert single["BLEU"] == pytest.approx(sacrebleu.corpus_bleu(TEXTS, [one]).score)


def test_bleu_cuts_chinese_into_characters() -> None:
    hypothesis, reference = "他昨天去了学校。", "他昨天去学校了。"
    found = corpus_scores([hypothesis], [(reference,)], "zh")
    expected = sacrebleu.corpus_bleu([hypothesis], [[reference]], tokenize="zh").score
    assert found["BLEU"] == pytest.approx(expected)
    for name in ("zho_Hans", "ZH", "zh-TW", "yue_Hant"):
        assert corpus_scores([hypothesis], [(reference,)], name) == found
    assert corpus_scores([hypothesis], [(reference,)], "en")["BLEU"] < expected


def task(*rows: TaskRow, kind: str = "generate") -> Task:
    return Task("t", kind, rows)


def test_the_metric_follows_the_answers() -> None:
    numbers = [
        TaskRow("1", prompt="p", answers=("72",)),
        TaskRow("2", prompt="p", answers=("-1,000.5",)),
    ]
    names = [TaskRow("1", prompt="p", answers=("Poison", "the band that is called Poison"))]
    sentences = [TaskRow("1", prompt="p", answers=("A coffee shop in the city centre area.",))]
    assert metric_of(task(*numbers)) == "number"
    assert metric_of(task(*numbers, *names)) == "exact"
    assert metric_of(task(*(numbers * 5), *names)) == "number"
    assert metric_of(replace(task(*names), metric="number")) == "number"
    for answer in ("+5", "5.", "1/2", "−5", "–5", "$-5", "-$5", "20%", "1e3"):
        assert metric_of(task(TaskRow("1", prompt="p", answers=(answer,)))) == "number", answer
    for answer in ("5 apples", "5-3", "", "1/2/3"):
        assert metric_of(task(TaskRow("1", prompt="p", answers=(answer,)))) == "exact", answer
    assert metric_of(task(*sentences)) == "chrF"
    assert metric_of(task(*names, kind="translate")) == "chrF"
    assert metric_of(task(TaskRow("1", text="t"), kind="bpb")) == "bits"
    assert metric_of(task(TaskRow("1", choices=("a",)), kind="choice")) == "choice"


def test_the_paired_bootstrap_is_scipys() -> None:
    generator = np.random.default_rng(7)
    best = generator.integers(0, 2, 150) * 100.0
    mine = np.where(generator.random(150) < 0.2, 100.0, best)
    found = estimate(mine.tolist()) - estimate(best.tolist())
    expected = stats.bootstrap(
        (mine, best),
        lambda a, b, axis: a.mean(axis=axis) - b.mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert found.value == pytest.approx(mine.mean() - best.mean())
    assert found.low == pytest.approx(expected.low, abs=0.7)
    assert found.high == pytest.approx(expected.high, abs=0.7)
    # And the interval is what the normal approximation says.
    error = (mine - best).std() / np.sqrt(150)
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.7)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.7)


def test_weights_count_and_go_along_with_their_rows() -> None:
    generator = np.random.default_rng(3)
    values, weights = generator.random(60), generator.integers(1, 1000, 60)
    found = estimate(values.tolist(), weights.tolist())
    assert found.value == pytest.approx(np.average(values, weights=weights))
    places = np.random.default_rng(5).integers(0, 60, (10_000, 60))
    drawn = (values * weights)[places].sum(1) / weights[places].sum(1)
    assert found.low == pytest.approx(np.quantile(drawn, 0.025), abs=0.01)
    assert found.high == pytest.approx(np.quantile(drawn, 0.975), abs=0.01)


def test_estimates_of_few_rows_and_of_several_tasks() -> None:
    one = estimate([40.0])
    assert (one.value, one.low, one.high) == (40, 40, 40)
    same = estimate([3.0] * 10)
    assert (same.low, same.high) == (3, 3)
    both = mean_of([one, same])
    assert (both.value, both.low) == (21.5, 21.5)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=30))
def test_an_interval_holds_its_value_or_nearly(values) -> None:
    found = estimate(values)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_a_missing_sacrebleu_is_a_clear_error(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(InputError, match=r"eva-local\[eval\]"):
        chrf("a", ["a"])
