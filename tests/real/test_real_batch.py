"""Batch jobs on the real demo models: many rows at once write what each writes alone.

The whole measurement is `EVA_LOCAL_TEST_ROWS=FILE.jsonl pytest -s --timeout 0 -k near_ties`: 64
rows of the file, 64 tokens each.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eva_local.api import Ensemble
from eva_local.batch.forms import Wishes
from eva_local.batch.job import Errand, carry_out
from eva_local.config.config import load_config, shipped
from eva_local.opening import open_ensemble

pytestmark = pytest.mark.real

# Where the two likeliest tokens are nearer than this, rounding may choose the other one.
NEAR = 0.05


def job(rows: list[dict[str, Any]], folder: Path, parallel: int, **wishes: Any) -> dict[Any, Any]:
    """Answer rows with some places; return the rows of output by their ids."""
    source, target = folder / "in.jsonl", folder / f"out-{parallel}.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = load_config(shipped("models.toml"), {}).ensemble("demo")
    sampling = replace(spec.sampling, temperature=0.0)
    errand = Errand(str(source), str(target), spec, Wishes(sampling, n_top=2, **wishes))

    def opener(_count: int) -> Ensemble:
        return open_ensemble(spec, parallel=parallel)

    assert carry_out(errand, opener).n_failed == 0
    found = [json.loads(line) for line in target.read_text().splitlines()]
    return {row["id"]: row for row in found}


def questions() -> list[dict[str, Any]]:
    """Some sums in words, or the first rows of a file that the environment names."""
    file = os.environ.get("EVA_LOCAL_TEST_ROWS", "")
    if not file.endswith(".jsonl"):
        things = ("apples", "red pens", "old coins", "cats")
        return [
            {
                "id": n,
                "max_tokens": 12,
                "prompt": f"Tom has {7 + 3 * n} {things[n % 4]} and {'buys' if n % 3 else 'finds'} "
                f"{n + 2} more. How many {things[n % 4]} does he have?",
            }
            for n in range(12)
        ]
    lines = Path(file).read_text().splitlines()[:64]
    return [{"prompt": json.loads(line)["prompt"], "max_tokens": 64, "id": line} for line in lines]


def difference(one: dict[str, Any], many: dict[str, Any]) -> float | None:
    """Return how near the two likeliest tokens were where two rows part, None where they do not."""
    left, right = one["logprobs"], many["logprobs"]
    for place in range(max(len(left), len(right))):
        if place >= min(len(left), len(right)) or left[place]["token"] != right[place]["token"]:
            # Where one of them ended, END was its choice, and is among the two likeliest.
            there = left[place] if place < len(left) else right[place]
            first, second = (top["logprob"] for top in there["top_logprobs"])
            return first - second
    return None


def test_rows_side_by_side_write_what_they_write_alone_up_to_near_ties(tmp_path) -> None:
    rows = questions()
    alone, together = (job(rows, tmp_path, parallel) for parallel in (1, 16))
    gaps = [
        gap
        for row in rows
        if (gap := difference(alone[row["id"]], together[row["id"]])) is not None
    ]
    same = sum(alone[row["id"]]["text"] == together[row["id"]]["text"] for row in rows)
    print(f"{same} of {len(rows)} rows are the same; the others part at {gaps}")
    assert all(gap < NEAR for gap in gaps)
    # Of few rows, one may happen to meet a near-tie.
    assert same >= min(0.95 * len(rows), len(rows) - 1)


def test_a_common_beginning_is_read_once(tmp_path) -> None:
    examples = "".join(
        f"Question: A box holds {n + 3} pens, and there are {n} boxes. How many pens are there?\n"
        f"Answer: {n} boxes of {n + 3} pens are {n * (n + 3)} pens.\n\n"
        for n in range(2, 24)
    )
    ends = ("Tom has 3 bags of 5 nuts.", "A week has 7 days, and Ada stays 2 weeks.")
    rows = [
        {
            "id": n,
            "prompt": f"{examples}Question: {end} How many is that?\nAnswer:",
            "max_tokens": 4,
        }
        for n, end in enumerate(ends)
    ]
    found = job(rows, tmp_path, 2, raw=True)
    usage = [found[n]["usage"] for n in range(2)]
    assert min(usage[0]["prompt_tokens"]) > 900
    for cached, read in zip(usage[1]["cached_tokens"], usage[1]["prompt_tokens"], strict=True):
        assert read - cached < 50
