"""Measure what fusing and bookkeeping add to decoding, at short and at long texts.

    .venv/bin/python -m tools.step_cost [ENSEMBLE]

One run, one load of the models: at 100 and at 3,000 tokens of text, steps are taken in turns,
and the share of each step that is not llama.cpp's decoding is printed as a median.
"""

from __future__ import annotations

import statistics
import sys
import time

from eva_local.api import open_ensemble
from eva_local.config import load_config
from eva_local.records import Sampling

LENGTHS = (100, 3000)
STEPS = 60


def main(name: str) -> None:
    """Print a line for each length."""
    spec = load_config().ensemble(name)
    with open_ensemble(spec) as ensemble:
        filler = "The keeper of the lighthouse wrote down the weather every day. "
        for length in LENGTHS:
            text = filler * (length // len(ensemble._writers[0].tokens(filler)))
            steps, decoding, whole = 0, [], []
            sampling = Sampling(max_tokens=STEPS + 1, temperature=1.0, seed=1)
            prompts = [writer.tokens(text) for writer in ensemble._writers]
            draft = ensemble._engine.begin(prompts, sampling)
            while not draft.finished:
                before = draft.decode_seconds.sum()
                began = time.perf_counter()
                (step,) = ensemble._engine.step([draft])
                if step is not None and steps > 0:
                    whole.append(time.perf_counter() - began)
                    decoding.append(draft.decode_seconds.sum() - before)
                steps += step is not None
            pairs = list(zip(whole, decoding, strict=True))
            beside = 1000 * statistics.median(w - d for w, d in pairs)
            share = 100 * statistics.median(1 - d / w for w, d in pairs)
            print(
                f"{name}, {len(prompts[0])} tokens of text: step "
                f"{1000 * statistics.median(whole):.1f} ms, beside decoding {beside:.2f} ms "
                f"= {share:.1f}% ({len(whole)} steps)"
            )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "demo")
