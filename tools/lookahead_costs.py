"""What look-ahead would save where batches cost what they cost on a given machine.

`python -m tools.lookahead_costs [ENSEMBLE] [SPACE] [TOKENS] [TEMPERATURE] [MACHINE]` answers the
questions of `bench`, without look-ahead and with the drafts that `auto` makes at the costs of a
machine of `COSTS`. It counts the batches of both and prints what they would cost: with over
without, of all answers and by kind, and over each member decoding one token at a time. Nothing is
timed: a busy machine changes nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np

from eva_local.bench.trial import ASKED
from eva_local.config.config import load_config, shipped
from eva_local.config.specs import EnsembleSpec
from eva_local.engine.lookahead import DecodeTimes
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import Logits, Model, Run
from eva_local.opening import open_ensemble
from eva_local.types import Message, Sampling, Step

#: Milliseconds of a batch of 1, 2, 3, 4 and 8 tokens with logits after each: two cores, no GPU.
COSTS: dict[str, dict[str, tuple[float, ...]]] = {
    "A": {
        "gemma3-270m": (22, 26, 35, 35, 52),
        "smollm2-135m": (11, 14, 18, 21, 34),
        "qwen2.5-coder-0.5b": (41, 43, 61, 59, 95),
        "qwen2.5-coder-1.5b": (72, 106, 126, 128, 235),
    },
    "B": {"smollm2-135m": (7.2, 13, 17, 17.5, 26), "qwen2.5-coder-0.5b": (17.5, 43, 63, 54.5, 64)},
    "C": {"smollm2-135m": (12, 22, 33, 42, 70), "qwen2.5-coder-0.5b": (35, 67, 109, 106, 207)},
}
SIZES = (1, 2, 3, 4, 8)
# Larger batches are of prompts.
MOST = 24


def cost(model: Model, n_tokens: int, machine: str) -> float:
    """Return what a batch costs, in milliseconds."""
    known = next(costs for name, costs in COSTS[machine].items() if name in model.path.name)
    beyond = max(n_tokens - SIZES[-1], 0) * (known[-1] - known[-2]) / 4
    return float(np.interp(n_tokens, SIZES, known)) + beyond


@contextlib.contextmanager
def counted(machine: str) -> Iterator[dict[Model, float]]:
    """Plan by `COSTS`, and give what each member's batches cost, added up as they are decoded."""
    spent: dict[Model, float] = defaultdict(float)
    decode = LlamaModel.decode

    def spy(self: LlamaModel, runs: Sequence[Run]) -> list[Logits | None]:
        n_tokens = sum(len(run.tokens) for run in runs)
        if n_tokens <= MOST:
            spent[self] += cost(self, n_tokens, machine)
        return decode(self, runs)

    def planned(_self: DecodeTimes, model: Model, n_tokens: int) -> float:
        return cost(model, n_tokens, machine) / 1000

    with (
        patch.object(LlamaModel, "decode", spy),
        patch.object(DecodeTimes, "seconds", planned),
        patch.object(DecodeTimes, "note"),
    ):
        yield spent


def spec_of(name: str, space: str) -> EnsembleSpec:
    """Return an ensemble of the shipped models.toml, or of the one in EVA_LOCAL_CONFIG."""
    path = Path(os.environ.get("EVA_LOCAL_CONFIG") or shipped("models.toml"))
    spec = load_config(path, {}).ensemble(name)
    if not space:
        return spec
    return replace(
        spec, fusion=replace(spec.fusion, space="bytes" if space == "bytes" else "pivot")
    )


def main(
    name: str = "demo",
    space: str = "",
    n_tokens: str = "96",
    temperature: str = "0",
    machine: str = "A",
) -> None:
    """Print a row for each question, and what follows."""
    sampling = Sampling(max_tokens=int(n_tokens), temperature=float(temperature), seed=0)
    # By kind: what answers cost without and with look-ahead.
    kinds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    alone: dict[str, float] = defaultdict(float)
    n_steps = n_drafted = n_accepted = n_same = 0
    with counted(machine) as spent, open_ensemble(spec_of(name, space)) as ensemble:
        for kind, text in ASKED:
            found: list[tuple[list[bytes], float]] = []
            for ensemble.drafter in ("off", "auto"):
                steps: list[Step] = []
                for step in ensemble.stream([Message("user", text)], sampling):
                    if not steps:
                        # What came before is the reading of the prompt.
                        spent.clear()
                    steps.append(step)
                found.append(([step.piece for step in steps], sum(spent.values())))
                usage = steps[-1].usage
            assert usage is not None
            n_steps, n_drafted = n_steps + usage.steps, n_drafted + usage.drafted
            n_accepted, n_same = n_accepted + usage.accepted, n_same + (found[0][0] == found[1][0])
            kinds[kind][0] += found[0][1]
            kinds[kind][1] += found[1][1]
            for model in spent:
                alone[model.path.name.split("-", 1)[1]] += cost(model, 1, machine) * usage.steps
            print(
                f"{kind}: {found[1][1] / max(found[0][1], 1e-9):.2f}", file=sys.stderr, flush=True
            )
    without, with_it = (sum(each[i] for each in kinds.values()) for i in (0, 1))
    rows = {"all": with_it / without, **{kind: new / old for kind, (old, new) in kinds.items()}}
    print(" | ".join(f"{kind} {share:.2f}" for kind, share in rows.items()))
    print("over each alone: " + ", ".join(f"{n} {with_it / t:.2f}" for n, t in alone.items()))
    print(f"{n_accepted} of {n_drafted} as drafted, {n_steps} tokens, {n_same} answers the same")


if __name__ == "__main__":
    main(*sys.argv[1:])
