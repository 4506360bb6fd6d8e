"""What caches save: steps with them against steps that read the whole text again.

`python -m tools.naive_steps [ENSEMBLE] [TOKENS] [STEPS]` takes STEPS steps after TOKENS of text,
each with caches and then, as EVA's published code does, by an ensemble that knows nothing of the
text before. Both fuse the same votes of all members. It prints seconds, their ratio, and how far
the fused probabilities are apart: llama.cpp rounds differently in batches of another size.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from statistics import median

from eva_local.api import Ensemble
from eva_local.bench.trial import passage
from eva_local.config.config import load_config
from eva_local.opening import open_ensemble
from eva_local.types import Sampling, Step

# EVA's code asks all members at every step and counts them alike. Weights that follow the text
# would know something of it beforehand.
SETTINGS = {"space": "pivot", "weights": "equal", "prompt_evidence": 0, "gate": 1.0}


def main(name: str = "demo", n_tokens: str = "500", steps: str = "4") -> None:
    """Print a line for each step, and the medians."""
    ratios, differences, alike = [], [], 0
    spec = load_config(overrides=SETTINGS).ensemble(name)
    print("naive, s  cached, s  ratio  difference of probability")
    with open_ensemble(spec) as cached, open_ensemble(spec) as naive:
        for (theirs, again), (ours, step) in pairs(cached, naive, int(n_tokens), int(steps)):
            ratios.append(theirs / ours)
            alike += again.piece == step.piece
            differences.append(abs(again.probability - step.probability))
            print(f"{theirs:8.2f} {ours:10.3f} {ratios[-1]:6.0f}  {differences[-1]:.4f}")
    print(
        f"naive / cached: {median(ratios):.0f}; the same choice in {alike} of {len(ratios)} steps, "
        f"at most {max(differences):.4f} apart"
    )


def pairs(
    cached: Ensemble, naive: Ensemble, n_tokens: int, steps: int
) -> Iterator[tuple[tuple[float, Step], tuple[float, Step]]]:
    """Yield each step in both ways, the naive one first, with its seconds."""
    pivot = cached.spec.pivot_index
    text = passage(n_tokens, lambda text: cached.prompt_tokens(text)[pivot])
    written = cached.stream(text, Sampling(max_tokens=steps + 2))
    text += next(written).text
    for _ in range(steps):
        ours = timed(written)
        # Nothing is kept of one text that another does not begin with.
        naive.score("?", "!")
        theirs = timed(naive.stream(text, Sampling(max_tokens=1)))
        yield theirs, ours
        text += ours[1].text


def timed(steps: Iterator[Step]) -> tuple[float, Step]:
    """Return the seconds that the next step takes, and the step."""
    began = time.perf_counter()
    step = next(steps)
    return time.perf_counter() - began, step


if __name__ == "__main__":
    main(*sys.argv[1:])
