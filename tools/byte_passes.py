"""What the space of bytes keeps and costs: each small model alone, by bytes against by tokens.

`python -m tools.byte_passes FILE…` forces the beginning of each file through each model in both
ways (tools/samples/ has texts with unusual characters). It prints bits per byte by the model's
own tokens, by bytes, the difference, and how many tokens were decoded for each of its own.
With `--recurrent` each model is treated as if it could take no tokens back.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eva_local.config.config import load_config, shipped
from eva_local.config.specs import LoadSettings
from eva_local.evaluate.rows import cut
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import ALL, Run, decode_every
from eva_local.llama.prompt import PromptWriter
from eva_local.llama.tokenizer import without
from eva_local.models.store import locate
from eva_local.spaces.base import Beginning
from eva_local.spaces.bytes.space import BRANCHES, THRESHOLD, ByteSpace
from eva_local.spaces.bytes.state import ByteState

MODELS = ("smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b")
BYTES = 3000


class Recurrent(LlamaModel):
    """A model whose sequences go on only from where they end, as if it were recurrent."""

    def __init__(self, path: Path, settings: LoadSettings, *, n_branches: int) -> None:
        super().__init__(path, settings, n_branches=n_branches + settings.snapshots)
        self.can_roll_back, self.n_snapshots = False, settings.snapshots

    def holds(self, seq_id: int, start: int) -> int:
        """Return `start` where the sequence ends there, else 0."""
        goes_on = super().holds(seq_id, start + 1)
        return 0 if goes_on else super().holds(seq_id, start)

    def remove(self, seq_id: int, start: int) -> int:
        """Forget all but what it `holds`; see `Model.remove`."""
        return super().remove(seq_id, start if seq_id == ALL else self.holds(seq_id, start))

    def copy(self, source: int, target: int, length: int = -1) -> int:
        """Let `target` begin as a copy of what `source` holds; see `Model.copy`."""
        return super().copy(source, target, length if length < 0 else self.holds(source, length))


def by_tokens(model: LlamaModel, text: bytes) -> tuple[float, int]:
    """Return the bits of a text by the model's own tokens of it, and how many these are."""
    model.remove(ALL, 0)
    prompt, tokens = PromptWriter(model).read("")[0], model.tokenizer.encode(text)
    rows = (
        row for block in decode_every(model, Run(0, 0, [*prompt, *tokens[:-1]])) for row in block
    )
    bits = 0.0
    for place, row in enumerate(rows, start=1 - len(prompt)):
        if place >= 0:
            logits = row.astype(np.float64)
            bits += float(np.logaddexp.reduce(logits) - logits[tokens[place]]) / np.log(2)
    return bits, len(tokens)


def forced(model: LlamaModel, state: ByteState, text: bytes) -> Iterator[tuple[int, int]]:
    """Force a text through a voice; yield each byte when the voice is ready to say how likely.

    With it goes how many tokens were decoded for it.
    """
    model.remove(ALL, 0)
    state.start(Beginning(PromptWriter(model).read("")[0]))
    for byte in text:
        decoded = 0
        while not state.ready:
            runs = state.pending(None)
            decoded += sum(len(run.tokens) for run in runs)
            for run, logits in zip(runs, model.decode(runs), strict=True):
                state.take(run, logits)
        yield byte, decoded
        state.commit(byte)


def by_bytes(model: LlamaModel, text: bytes, threshold: float) -> tuple[float, int]:
    """Return the bits of a text by its bytes, and how many tokens were decoded."""
    space = ByteSpace([model], threshold)
    states = space.states(0)
    (state,) = states
    bits, n_decoded = 0.0, 0
    for byte, decoded in forced(model, state, text):
        n_decoded += decoded
        (vote,) = space.symbols(states).votes
        assert vote is not None
        bits -= float(np.log2(vote.probability(byte)))
    return bits, n_decoded


def main(
    files: list[Path], threshold: float = THRESHOLD, kind: type[LlamaModel | Recurrent] = LlamaModel
) -> None:
    """Print a table row for each model and text."""
    texts = {file.name: cut(file.read_bytes(), BYTES)[0] for file in files}
    print(f"| text | member | by tokens | by bytes | | forward passes |\n|{' --- |' * 6}")
    for name in MODELS:
        spec = load_config(shipped("models.toml"), os.environ).models[name]
        with contextlib.closing(kind(locate(spec), spec.load, n_branches=BRANCHES)) as model:
            for label, whole in texts.items():
                text = without(whole, model.tokenizer.missing_bytes)
                old, n_tokens = by_tokens(model, text)
                new, n_decoded = by_bytes(model, text, threshold)
                figures = (
                    f"{old / len(text):.4f} | {new / len(text):.4f} | {new / old - 1:+.1%} | "
                    f"{n_decoded / n_tokens:.2f}"
                )
                print(f"| {label} | {name} | {figures} |", flush=True)


if __name__ == "__main__":
    names = [name for name in sys.argv[1:] if name != "--recurrent"]
    main([Path(name) for name in names], kind=Recurrent if names != sys.argv[1:] else LlamaModel)
