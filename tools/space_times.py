"""How long an answer takes in the space of bytes, against the pivot's.

`python -m tools.space_times [ENSEMBLE]` lets an ensemble answer a few prompts in both spaces, in
turns, with the same models. It prints milliseconds a byte, their ratio, and the share of the time
that is spent beside decoding.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from statistics import median
from typing import Literal

from eva_local.config.config import load_config, shipped
from eva_local.opening import ensemble_of, open_models
from eva_local.types import Completion, Message, Sampling

PROMPTS = (
    "Why is the sea salty?",
    "Write a short letter to a friend who moved to another town.",
    "How do I boil an egg?",
    "What is the difference between a lake and a river?",
    "Tom has 3 apples and buys 4 more. He gives 2 to Mia. How many has he now? Explain.",
    "Write a Python function that reverses a list.",
)
STEPS = 48
Space = Literal["pivot", "bytes"]


def times(done: Completion) -> tuple[float, float]:
    """Return milliseconds for each byte of an answer, and the share of them beside decoding."""
    usage = done.usage
    seconds = usage.seconds - usage.first_seconds
    decoding = sum(usage.decode_seconds) - sum(usage.prompt_seconds)
    return 1000 * seconds / len(done.text.encode()), 1 - decoding / seconds


def main(name: str = "demo") -> None:
    """Print a row for each prompt, and the medians."""
    spec = load_config(shipped("models.toml"), {}).ensemble(name)
    sampling = Sampling(max_tokens=STEPS)
    ratios, shares = [], []
    print("pivot, ms/byte  bytes, ms/byte  ratio  beside decoding: pivot, bytes")
    with open_models(spec, bytewise=True) as models:
        for prompt in PROMPTS:
            found: dict[Space, tuple[float, float]] = {}
            for space in ("pivot", "bytes"):
                fusion = replace(spec.fusion, space=space)
                with ensemble_of(replace(spec, fusion=fusion), models) as ensemble:
                    done = ensemble.complete([Message("user", prompt)], sampling)
                found[space] = times(done)
            (ours, other), (mine, beside) = found["pivot"], found["bytes"]
            ratios.append(mine / ours)
            shares.append(beside)
            print(f"{ours:14.1f} {mine:15.1f} {mine / ours:6.2f} {other:22.1%} {beside:6.1%}")
    print(f"medians: ratio {median(ratios):.2f}, beside decoding in bytes {median(shares):.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
