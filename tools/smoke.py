"""Check that the installed llama.cpp computes on this machine, in a process that may die of it."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

CHILD = (sys.executable, "-m", "tools.smoke")
_PROMPT = b"the light and the lighter thing of the night and the other thing of the end"
_N_PROMPT = 32
_N_SINGLE = 4
# AMX that the system does not grant showed as both.
_REFUSALS = (signal.SIGILL, signal.SIGSEGV)


def problem(child: Sequence[str] = CHILD) -> str | None:
    """Run the check; return None, or what is wrong and what to do about it."""
    result = subprocess.run(child, capture_output=True, text=True, errors="replace", check=False)
    if result.returncode == 0:
        return None
    if result.returncode > 0:
        return f"{result.stderr.rstrip()}\nllama.cpp was installed but does not work; see above."
    name = signal.Signals(-result.returncode).name
    if -result.returncode not in _REFUSALS:
        return f"llama.cpp was stopped by {name}. Try another build: make setup BACKEND=cpu"
    # Who chose arguments should first try ours.
    arguments = "" if os.environ.get("CMAKE_ARGS") else plainest_arguments()
    return (
        f"llama.cpp was stopped by {name}: this build does not run on this CPU. "
        f'Rebuild it with: make setup BACKEND=cpu CMAKE_ARGS="{arguments}"'
    )


def plainest_arguments() -> str:
    """Return the cmake arguments of a build that asks least of the CPU."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "-DGGML_NATIVE=OFF"
    parts = ("NATIVE", "AVX2", "FMA", "F16C", "BMI2")
    return " ".join(f"-DGGML_{part}=OFF" for part in parts)


def compute() -> None:
    """Decode a few tokens with random models of both common quantisations.

    Raises RuntimeError where a logit is not finite. Prompts and single tokens, Q4_0 and Q8_0
    take different ways through llama.cpp's matrix products.
    """
    from llama_cpp import _logger

    from tools.tiny_gguf import write_tiny_gguf

    _logger.set_verbose(False)
    with tempfile.TemporaryDirectory() as folder:
        for quantisation in ("Q4_0", "Q8_0"):
            path = Path(folder, f"{quantisation}.gguf")
            write_tiny_gguf(path, width=256, quantisation=quantisation)
            for n_gpu_layers in (0, -1):
                _decode(path, n_gpu_layers)


def _decode(path: Path, n_gpu_layers: int) -> None:
    import numpy as np
    from llama_cpp import Llama

    llama = Llama(str(path), n_ctx=64, n_gpu_layers=n_gpu_layers, logits_all=True, verbose=False)
    tokens = llama.tokenize(_PROMPT)[:_N_PROMPT]
    llama.eval(tokens)
    for token in tokens[:_N_SINGLE]:
        llama.eval([token])
    n_decoded = len(tokens) + _N_SINGLE
    finite = np.isfinite(llama.scores[:n_decoded]).all()
    llama.close()
    if not finite:
        raise RuntimeError(f"llama.cpp gave logits that are not finite ({path.name})")


if __name__ == "__main__":
    compute()
