"""Find what usually follows the end of a token.

`python -m tools.boundary_prior FILE…` writes eva_local/spaces/bytes/boundary.npz, with which every
text in the space of bytes begins. Reads the beginning of each file with two of the small models,
decoding nearly every row of tokens (docs/bytes.md).
"""

from __future__ import annotations

import contextlib
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

import eva_local
from eva_local.config.config import load_config, shipped
from eva_local.llama.llama_model import LlamaModel
from eva_local.models.store import locate
from eva_local.spaces.bytes.row import END
from eva_local.spaces.bytes.space import BRANCHES, ByteSpace
from tools.byte_passes import forced

MODELS = ("smollm2-135m", "gemma3-270m")
THRESHOLD = 0.01
# A kind that was met less often is left to the mean of all.
LEAST = 5
BYTES = 2500


def main(files: list[Path]) -> None:
    """Read the beginning of each file with each model, and average what they found."""
    sums: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(END + 1))
    counts: dict[str, float] = defaultdict(float)
    for name in MODELS:
        spec = load_config(shipped("models.toml"), {}).models[name]
        with contextlib.closing(LlamaModel(locate(spec), spec.load, n_branches=BRANCHES)) as model:
            for file in files:
                for kind, (mean, count) in _found(model, file.read_bytes()[:BYTES]).items():
                    sums[kind] += count * mean
                    counts[kind] += count
    kinds = sorted(kind for kind, count in counts.items() if count >= LEAST)
    means = np.asarray([sums[kind] / sums[kind].sum() for kind in kinds], dtype=np.float32)
    path = Path(eva_local.__file__).parent / "spaces" / "bytes" / "boundary.npz"
    np.savez_compressed(path, kinds=np.asarray(kinds), means=means)
    print(f"{path.name}: {len(kinds)} kinds, {path.stat().st_size} bytes")


def _found(model: LlamaModel, text: bytes) -> dict[str, tuple[np.ndarray, int]]:
    (state,) = ByteSpace([model], THRESHOLD, before={}).states(0)
    for _ in forced(model, state, text):
        pass
    return state.beam.boundary_prior.means


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
