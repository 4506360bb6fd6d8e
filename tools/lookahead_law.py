"""Law 11 on real models: whatever is drafted, an answer is what it is without.

`python -m tools.lookahead_law [ENSEMBLE] [PROMPTS] [TOKENS] [SPACE]` answers PROMPTS (60) prompts,
greedy and seeded, in one space or both, by mean and geometric mean, with a grammar and with
penalties: once without look-ahead and once with drafts at random, of 1 to 7 tokens: copies,
rubbish, control text, and what each member foresees. It prints for each way how many answers are
the same to the token, how many tokens came as drafted, and where answers part, how far apart the
probabilities of the two choices are at most (of greedy answers a near-tie is near 0). Members must
be `batch_invariant`, as the shipped ones are.
"""

from __future__ import annotations

import os
import random
import sys
from dataclasses import replace
from itertools import product, zip_longest
from typing import Literal

from eva_local.api import Ensemble
from eva_local.bench.trial import ASKED
from eva_local.config.config import load_config, shipped
from eva_local.engine.lookahead import LookAhead
from eva_local.engine.request import AnyPrompt
from eva_local.opening import ensemble_of, open_models
from eva_local.types import Message, Sampling, Step

RUBBISH = (b"\xff\xfe", b"\xf0\x9f", b"<|im_end|>", b"</s>", b" the the", b"\x00", b"\n\n\n")
GRAMMAR = r'root ::= [A-Z] [a-z ,]{4,40} [.!?] "\n" [^\x00]*'
WAYS = {"greedy": {}, "seeded": {"temperature": 0.8, "seed": 7}}
RULES = {"grammar": {"grammar": GRAMMAR}, "penalties": {"repeat_penalty": 1.2}}
Combine = Literal["mean", "geometric"]
Space = Literal["pivot", "bytes"]
COMBINES: tuple[Combine, ...] = ("mean", "geometric")
SPACES: tuple[Space, ...] = ("pivot", "bytes")


class Hostile(LookAhead):
    """Plans a draft at random: copies, rubbish, control text, or what a member foresees."""

    chance = random.Random(0)

    def plan(self) -> int:
        """Return how many tokens are drafted."""
        self.draft, self.foreseer = b"", None
        length = self.chance.randrange(1, self.most + 1)
        match self.chance.randrange(4):
            case 0:
                self.draft = self.chance.choice(RUBBISH)
            case 1:
                self.draft = (self._copied(3) or b" a")[: 5 * length] + self.chance.choice(RUBBISH)
            case 2 | 3:
                self.foreseer = self.chance.choice(self._members)
        return length


def prompts(count: int) -> list[str]:
    """Return so many prompts: those of `bench`, asked in several ways."""
    asides = ("", "Be brief. ", "Answer in French. ", "Use a list. ", "Explain like a teacher. ")
    return [aside + text for aside in asides for _, text in ASKED][:count]


def written(ensemble: Ensemble, prompt: AnyPrompt, sampling: Sampling) -> tuple[list[Step], int]:
    """Return the steps of an answer, and how many of them came as drafted."""
    steps = list(ensemble.stream(prompt, sampling))
    usage = steps[-1].usage
    assert usage is not None
    return steps, usage.accepted


def apart(one: list[Step], other: list[Step]) -> float | None:
    """Return how far apart two choices are where answers part; None where they do not."""
    for mine, theirs in zip_longest(one, other):
        if mine is None or theirs is None:
            return 1.0
        if mine.piece != theirs.piece:
            return float(abs(mine.probability - theirs.probability))
    return None


def main(name: str = "demo", n_prompts: str = "60", n_tokens: str = "12", space: str = "") -> int:
    """Print a row for each way; return how many answers differ."""
    from eva_local.engine import engine

    vars(engine)["LookAhead"] = Hostile
    spec = load_config(shipped("models.toml"), os.environ).ensemble(name)
    differ = 0
    with open_models(spec, bytewise=True) as models:
        spaces = [each for each in SPACES if space in ("", each)]
        for each, combine in product(spaces, COMBINES):
            fusion = replace(spec.fusion, space=each, combine=combine)
            with ensemble_of(replace(spec, fusion=fusion), models) as ensemble:
                for way, rule in product(WAYS, RULES):
                    sampling = Sampling(max_tokens=int(n_tokens), **WAYS[way], **RULES[rule])  # type: ignore[arg-type]
                    gaps, n_accepted = [], 0
                    for text in prompts(int(n_prompts)):
                        asked, found = [Message("user", text)], []
                        # Both begin with what the caches hold: a prompt that is read whole is
                        # rounded otherwise than its last token alone.
                        written(ensemble, asked, replace(sampling, max_tokens=1))
                        for ensemble.drafter in ("off", "auto"):
                            found.append(written(ensemble, asked, sampling))
                        gaps.append(apart(found[0][0], found[1][0]))
                        n_accepted += found[1][1]
                    wide = [gap for gap in gaps if gap is not None]
                    differ += len(wide)
                    told = f"{len(gaps) - len(wide)} of {len(gaps)} the same"
                    told += f", {max(wide):.4f} apart at most" if wide else ""
                    how = f"{each}, {combine}, {way}, {rule}"
                    print(f"{how}: {told}, {n_accepted} tokens as drafted", flush=True)
    return differ


if __name__ == "__main__":
    sys.exit(min(main(*sys.argv[1:]), 1))
