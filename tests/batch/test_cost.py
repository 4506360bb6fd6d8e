"""What many rows cost beside the engine: the last as much work as the first, and no memory.

`python tests/test_batch_cost.py 100000` measures the time of so many rows.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from batches import Quick, ensemble_of_models, errand, fake_spec, texts

from eva_local.api import Ensemble
from eva_local.batch.job import Progress, carry_out

N_ROWS = 2000


def answer_rows(folder: Path, count: int, told: Callable[[Progress], None]) -> Ensemble:
    """Answer so many rows with a model that costs next to nothing, 16 at a time."""
    rows, out = folder / "in.jsonl", folder / "out.jsonl"
    rows.write_text("".join(row_of(number) for number in range(count)))
    spec = fake_spec(folder, "quick")
    ensemble = ensemble_of_models(spec, [Quick()], 16)
    carry_out(errand(rows, out, spec, wishes={"raw": True}), lambda _: ensemble, told=told)
    assert len(texts(out)) == count
    return ensemble


def row_of(number: int) -> str:
    return json.dumps({"id": f"row-{number:07}", "prompt": "ab" * (number % 4)}) + "\n"


def test_the_last_rows_take_as_many_calls_as_the_first(tmp_path) -> None:
    calls = 0
    at: dict[int, int] = {}

    def count(_frame: object, event: str, _function: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    def told(progress: Progress) -> None:
        at.setdefault(progress.n_done * 4 // N_ROWS, calls)

    sys.setprofile(count)
    try:
        answer_rows(tmp_path, N_ROWS, told)
    finally:
        sys.setprofile(None)
    quarters = [at[part + 1] - at[part] for part in range(4)]
    assert max(quarters[1:]) < 1.05 * quarters[0]


def test_nothing_is_kept_of_rows_that_are_written(tmp_path) -> None:
    held: dict[int, int] = {}

    def told(progress: Progress) -> None:
        if (quarter := progress.n_done * 4 // N_ROWS) not in held:
            # What only waits to be collected is not kept; when that is, depends on other tests.
            gc.collect()
            held[quarter] = tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        answer_rows(tmp_path, N_ROWS, told)
    finally:
        tracemalloc.stop()
    # Half of what an object takes at least, for each of the rows in between.
    assert held[3] - held[1] < 8 * N_ROWS


def measure(count: int) -> None:
    """Print how many rows a second there are, with the engine and without it."""
    deciding = 0.0

    def timed(step: Callable[..., object]) -> Callable[..., object]:
        def act(*arguments: object) -> object:
            nonlocal deciding
            began = time.perf_counter()
            try:
                return step(*arguments)
            finally:
                deciding += time.perf_counter() - began

        return act

    from eva_local.engine.engine import Engine

    Engine.step = timed(Engine.step)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        answer_rows(Path(folder), count, lambda _: None)
    whole = time.perf_counter() - began
    print(f"{count / whole:.0f} rows/s, {count / (whole - deciding):.0f} without the engine")


if __name__ == "__main__":
    measure(int(sys.argv[1]))
