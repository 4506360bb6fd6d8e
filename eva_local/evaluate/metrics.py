"""What an answer is worth: exact match, numeric match, choices, chrF and BLEU."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from statistics import median
from string import punctuation
from typing import TYPE_CHECKING, Literal

from eva_local.errors import InputError
from eva_local.evaluate.rows import Task

if TYPE_CHECKING:
    from types import ModuleType

Metric = Literal["exact", "number", "choice", "chrF", "bits"]

# What a task counts in, and whether more of it is better.
UNITS: dict[Metric, str] = {
    "exact": "% exact match",
    "number": "% right numbers",
    "choice": "% right choices",
    "chrF": "chrF",
    "bits": "bits per byte",
}
# Answers of more words than this are sentences: how close one comes is what counts.
_WORDS_OF_A_NAME = 5
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"(?<![\w.])-?[$€£]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_VERDICT = re.compile(r"answer\s+is\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)")
# Languages that BLEU must cut into characters, as their words are not set apart.
_TOKENISERS = {"zh": "zh", "ja": "char", "ko": "char", "th": "char"}


def metric_of(task: Task) -> Metric:
    """Return what fits a task: by its kind, and by what its right answers look like."""
    if task.kind in ("choice", "bpb"):
        return "choice" if task.kind == "choice" else "bits"
    if task.kind == "translate":
        return "chrF"
    if all(_is_number(answer) for row in task.rows for answer in row.answers):
        return "number"
    shortest = [min(len(answer.split()) for answer in row.answers) for row in task.rows]
    return "chrF" if median(shortest) > _WORDS_OF_A_NAME else "exact"


def lower_is_better(metric: Metric) -> bool:
    """Return whether less is better."""
    return metric == "bits"


def first_line(text: str) -> str:
    """Return the first line that is not blank; models begin with blank ones, or go on and on."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def normalised(text: str) -> str:
    """Return text as answers to questions are compared: as SQuAD does, for any script.

    Lower case, no punctuation, no English articles, single spaces (Rajpurkar et al. 2016).
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    text = "".join(c for c in text if c not in punctuation and unicodedata.category(c)[0] != "P")
    # Without what stood between them, a letter and its accent are one character.
    text = unicodedata.normalize("NFKC", text)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(text: str, answers: Sequence[str]) -> bool:
    """Return whether the first line of `text` is one of the answers, normalised."""
    return normalised(first_line(text)) in {normalised(answer) for answer in answers}


def number_in(text: str) -> Decimal | None:
    """Return the number that a text comes to: after the last "answer is", else the last one.

    A sentence that reckons ("the answer is 2 + 3 = 5") comes to what stands after its last "=".
    Thousands may have commas; currencies and units are left out.
    """
    for verdict in reversed(list(_VERDICT.finditer(text))):
        sentence = _SENTENCE_END.split(first_line(text[verdict.end() :]), maxsplit=1)[0]
        if after := _numbers(sentence.rpartition("=")[2]):
            return after[0]
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
    tokeniser = _TOKENISERS.get(language.split("-", maxsplit=1)[0].split("_", maxsplit=1)[0])
    bleu = sacrebleu.BLEU(tokenize=tokeniser, force=True)
    return {
        "BLEU": float(bleu.corpus_score(texts, references).score),
        "corpus chrF": float(sacrebleu.CHRF().corpus_score(texts, references).score),
    }


def _is_number(text: str) -> bool:
    return bool(re.fullmatch(r"-?[$€£]?[\d,]*\.?\d+\s*%?", text.strip()))


def _numbers(text: str) -> list[Decimal]:
    text = text.replace("\N{MINUS SIGN}", "-")
    return [Decimal(re.sub(r"[,$€£]", "", found[0])) for found in _NUMBER.finditer(text)]


def _sacrebleu() -> ModuleType:
    try:
        import sacrebleu
    except ImportError as error:
        raise InputError(
            "scoring translations and descriptions needs sacrebleu: pip install 'eva-local[eval]'"
        ) from error
    return sacrebleu
