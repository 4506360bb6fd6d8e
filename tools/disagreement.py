"""Tell right answers from wrong ones by how far votes are apart, or by how sure they are together.

`python -m tools.disagreement ROWS OUT ENSEMBLE [LIMIT]` lets an ensemble answer the rows of an
evaluation, and keeps in OUT what each answer was like, so that the same command goes on. Rows with
`choices` are scored, and the likeliest by byte is the answer; others are put as messages. Then it
prints the area under the ROC curve of four signs of a wrong answer, with 95% intervals (bootstrap
over the rows): 50 tells nothing, 100 all.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import rankdata

import eva_local
from eva_local.evaluate.metrics import exact_match, numeric_match
from eva_local.evaluate.rows import TaskRow, read_rows
from eva_local.fusion.votes import Decision
from eva_local.types import Message

RESAMPLES = 10_000
# The signs, larger where the answer is less sure, in bits.
SIGNS = ("mean disagreement", "largest disagreement", "mean surprise", "largest surprise")


def signs_of(pairs: Sequence[tuple[float | None, float]]) -> dict[str, float]:
    """Return the signs of an answer, by disagreement and fused probability of each symbol."""
    apart = [bits or 0.0 for bits, _ in pairs]
    surprise = [-math.log2(max(probability, 1e-12)) for _, probability in pairs]
    signs = (fmean(apart), max(apart), fmean(surprise), max(surprise))
    return dict(zip(SIGNS, signs, strict=True))


def area(signs: np.ndarray, wrong: np.ndarray) -> float:
    """Return the chance that a wrong answer has the larger sign than a right one; ties are half."""
    ranks, n = rankdata(signs), int(wrong.sum())
    return float((ranks[wrong].sum() - n * (n + 1) / 2) / (n * (len(wrong) - n)))


def answered(ensemble: eva_local.Ensemble, row: TaskRow) -> dict[str, Any]:
    """Return what the answer to a row was like."""
    if row.choices:
        return chosen(ensemble, row)
    prompt, answers = row.prompt, row.answers
    steps = list(ensemble.stream([Message("user", prompt)], max_tokens=200, temperature=0))
    text = "".join(step.text for step in steps)
    is_number = all(each.replace(".", "").isdigit() for each in answers)
    right = (numeric_match if is_number else exact_match)(text, answers)
    pairs = [(step.disagreement, step.probability) for step in steps]
    return {"id": row.name, "text": text, "wrong": not right, **signs_of(pairs)}


def chosen(ensemble: eva_local.Ensemble, row: TaskRow) -> dict[str, Any]:
    """Return what the likeliest choice of a row was like."""
    found = []
    for number, choice in enumerate(row.choices):
        heard: list[tuple[float | None, float]] = []

        def hear(
            decision: Decision, symbol: int, _: int, heard: list[tuple[float | None, float]] = heard
        ) -> None:
            heard.append((decision.disagreement, decision.fused.probability(symbol)))

        score = ensemble.score(row.prompt, f" {choice}", observe=hear)
        found.append((score.per_byte, number, heard))
    _, number, heard = max(found)
    wrong = number != row.label
    return {"id": row.name, "text": row.choices[number], "wrong": wrong, **signs_of(heard)}


def report(results: Sequence[Mapping[str, Any]]) -> None:
    """Print the areas, and how much more the first sign tells than the third."""
    wrong = np.array([each["wrong"] for each in results])
    signs = {name: np.array([each[name] for each in results]) for name in SIGNS}
    print(f"{len(wrong)} answers, {int(wrong.sum())} wrong")
    draws = np.random.default_rng(0).integers(len(wrong), size=(RESAMPLES, len(wrong)))
    draws = draws[[0 < wrong[draw].sum() < len(wrong) for draw in draws]]
    areas = {
        name: np.array([area(sign[d], wrong[d]) for d in draws]) for name, sign in signs.items()
    }
    differences = {
        f"{apart} against {surprise}": (
            area(signs[apart], wrong) - area(signs[surprise], wrong),
            areas[apart] - areas[surprise],
        )
        for apart, surprise in zip(SIGNS[:2], SIGNS[2:], strict=True)
    }
    rows = {name: (area(sign, wrong), areas[name]) for name, sign in signs.items()} | differences
    for name, (value, drawn) in rows.items():
        low, high = np.percentile(drawn, (2.5, 97.5))
        print(f"{name}: {100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f})")


def main(source: str, target: str, name: str, limit: str = "200") -> None:
    """Answer the rows that are not in the target yet, and report."""
    rows, kept = read_rows(Path(source))[: int(limit)], Path(target)
    lines = kept.read_text().splitlines() if kept.exists() else []
    results = {each["id"]: each for each in map(json.loads, lines)}
    if left := [row for row in rows if row.name not in results]:
        with eva_local.load(name) as ensemble, kept.open("a") as file:
            for number, row in enumerate(left, 1):
                results[row.name] = answered(ensemble, row)
                print(json.dumps(results[row.name]), file=file, flush=True)
                print(f"\r{number} of {len(left)}", end="", file=sys.stderr)
    report([results[row.name] for row in rows])


if __name__ == "__main__":
    main(*sys.argv[1:])
