"""What an answer is worth: exact match, numeric match, choices, chrF and BLEU."""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from statistics import median
from string import punctuation
from types import ModuleType
from typing import NamedTuple

from eva_local.errors import InputError
from eva_local.evaluate.rows import Kind, Metric, Task


class Scale(NamedTuple):
    """What a task counts in; of bits less is better, and their differences are in percent.

    `form` is the format of a score. An answer may be right or wrong, and nothing between.
    """

    unit: str
    form: str = ".1f"
    in_bits: bool = False
    right_or_wrong: bool = True


SCALES: dict[Metric, Scale] = {
    "exact": Scale("% exact match"),
    "number": Scale("% right numbers"),
    "choice": Scale("% right choices"),
    "chrF": Scale("chrF", right_or_wrong=False),
    "bits": Scale("bits per byte", ".4f", in_bits=True, right_or_wrong=False),
}
_METRICS: dict[Kind, Metric] = {"choice": "choice", "bpb": "bits", "translate": "chrF"}
# Answers of more words than this are sentences: how close one comes is what counts.
_WORDS_OF_A_NAME = 5
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# Where nearly all right answers are numbers, the odd one that is "unknown" changes nothing.
_MOST = 0.9
# Neither inside a word or another number nor an exponent; a fraction, whole before it, or not.
_NUMBER = re.compile(
    r"(?<![^\W_])(?<![.^])(?P<sign>-?)(?:[A-Z]{0,3}[$€£¥₹₩₽₺₪₫฿₱]\s?)?"
    r"(?:(?<!/)(?:(?P<whole>\d+) )?(?P<over>\d+)/(?P<under>0*[1-9]\d*)(?![\d/])"
    r"|(?P<plain>(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+(?!\w))?))"
)
_VERDICT = re.compile(r"answer\s+is\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)")
# What is reckoned, with units or without: "3 apples + 2 = ", and not "3, since x = ".
_RECKONED = re.compile(r"\d(?:(?![,;:(]\s*[^\W\d]).)*[\d)%]\s*(?:[^\W\d]{2,}\s*)?=")
# Languages that BLEU must cut into characters, as their words are not set apart.
_TOKENISERS = {
    **dict.fromkeys(("zh", "zho", "yue", "cmn", "lzh"), "zh"),
    **dict.fromkeys(("ja", "jpn", "ko", "kor", "th", "tha", "lo", "lao", "km", "khm"), "char"),
    **dict.fromkeys(("my", "mya"), "char"),
}


def metric_of(task: Task) -> Metric:
    """Return what a task counts in: by its kind, and by what its right answers look like."""
    if known := task.metric or _METRICS.get(task.kind):
        return known
    numbers = [all(map(_is_number, row.answers)) for row in task.rows]
    if sum(numbers) >= _MOST * len(numbers):
        return "number"
    shortest = [min(len(answer.split()) for answer in row.answers) for row in task.rows]
    return "chrF" if median(shortest) > _WORDS_OF_A_NAME else "exact"


def first_lines(text: str, answers: Sequence[str] = ("",)) -> str:
    """Return as many lines as the longest answer has, one at least; blank ones do not count."""
    count = max(len(_lines(answer)) for answer in answers)
    return "\n".join(_lines(text)[: max(count, 1)])


def normalised(text: str) -> str:
    """Return text as answers to questions are compared: as SQuAD does, for any script.

    Lower case, no punctuation, no English articles, single spaces (Rajpurkar et al. 2016). Where
    nothing is left ("A", "+"), that is the answer, and it stays.
    """
    whole = text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(c for c in text if c not in punctuation and unicodedata.category(c)[0] != "P")
    # Without what stood between them, a letter and its accent are one character.
    text = unicodedata.normalize("NFKC", text)
    return " ".join(_ARTICLES.sub(" ", text).split()) or " ".join(whole.split())


def exact_match(text: str, answers: Sequence[str]) -> bool:
    """Return whether `text` begins with one of the answers, on lines of its own, normalised."""
    said = normalised(first_lines(text, answers))
    return said in {normalised(answer) for answer in answers}


def number_in(text: str) -> Decimal | None:
    """Return the number that a text comes to: after the last "answer is", else the last one.

    A sentence that reckons ("the answer is 2 + 3 = 5") comes to what stands after its last "=".
    Thousands may have commas, fractions may be written out (1/2, 3 1/2); currencies, units and
    exponents are left out.
    """
    for verdict in reversed(list(_VERDICT.finditer(text))):
        sentence = _SENTENCE_END.split(first_lines(text[verdict.end() :]), maxsplit=1)[0]
        reckoned = _RECKONED.search(sentence)
        result = sentence[reckoned.end() :] if reckoned else ""
        if found := _numbers(result) or _numbers(sentence):
            return found[0]
    return next(reversed(_numbers(text)), None)


def numeric_match(text: str, answers: Sequence[str]) -> bool:
    """Return whether `text` comes to the number of one of the answers."""
    found = number_in(text)
    return found is not None and found in [number_in(answer) for answer in answers]


def chrf(text: str, answers: Sequence[str]) -> float:
    """Return sacrebleu's chrF of one text, 0 to 100, against the nearest of the answers."""
    return float(_sacrebleu().sentence_chrf(text, list(answers)).score)


def corpus_scores(
    texts: Sequence[str], answers: Sequence[Sequence[str]], language: str = ""
) -> dict[str, float]:
    """Return sacrebleu's BLEU and chrF of all texts of a task together."""
    sacrebleu = _sacrebleu()
    most = max(map(len, answers))
    references = [[given[i] if i < len(given) else None for given in answers] for i in range(most)]
    tokeniser = _TOKENISERS.get(re.split("[-_]", language.casefold(), maxsplit=1)[0])
    bleu = sacrebleu.BLEU(tokenize=tokeniser, force=True)
    return {
        "BLEU": float(bleu.corpus_score(texts, references).score),
        "corpus chrF": float(sacrebleu.CHRF().corpus_score(texts, references).score),
    }


def _is_number(text: str) -> bool:
    return bool(_NUMBER.fullmatch(_signed(text.strip()).lstrip("+$").rstrip("%. ")))


def _numbers(text: str) -> list[Decimal]:
    numbers = []
    for found in _NUMBER.finditer(_signed(text)):
        if plain := found["plain"]:
            value = Decimal(plain.replace(",", ""))
        else:
            value = Decimal(found["whole"] or 0) + Decimal(found["over"]) / Decimal(found["under"])
        numbers.append(-value if found["sign"] else value)
    return numbers


def _signed(text: str) -> str:
    return text.replace("\N{MINUS SIGN}", "-").replace("\N{EN DASH}", "-")


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _sacrebleu() -> ModuleType:
    try:
        import sacrebleu
    except ImportError as error:
        raise InputError(
            "scoring translations and descriptions needs sacrebleu: pip install 'eva-local[eval]'"
        ) from error
    return sacrebleu
