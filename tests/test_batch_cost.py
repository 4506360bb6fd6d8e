"""What many rows cost beside the engine, in time and memory."""

from __future__ import annotations

import json
import os
import resource
import time
from pathlib import Path

import numpy as np
from batches import Quick, ensemble_of_models, errand, fake_spec, texts

from eva_local.batch.errand import carry_out


def test_many_rows_cost_little_and_memory_stays_flat(tmp_path) -> None:
    """The whole measurement: EVA_LOCAL_TEST_ROWS=100000 pytest -s -k many_rows."""
    count = int(os.environ.get("EVA_LOCAL_TEST_ROWS", "10000"))
    rows, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows.write_text("".join(row_of(number) for number in range(count)))
    spec = fake_spec(tmp_path, "quick")
    ensemble = ensemble_of_models(spec, [Quick()], 16)
    deciding = clocked(ensemble._engine, "step")
    memory: list[int] = []
    # At each twentieth of the rows: when it was there, and what reading and writing as many
    # lines of JSON takes at that moment.
    reached: dict[int, float] = {}
    plain: list[float] = []

    def told(progress) -> None:
        if progress.n_done % (count // 20) < 16:
            memory.append(resident())
        part = progress.n_done * 20 // count
        if part not in reached:
            plain.append(time_of_plain_lines(count // 20))
            reached[part] = time.perf_counter() - sum(plain)

    began = time.perf_counter()
    carry_out(errand(rows, out, spec, wishes={"raw": True}), lambda _: ensemble, told=told)
    whole = time.perf_counter() - began - sum(plain)
    books = whole - deciding[0]
    times_plain = books / (20 * float(np.median(plain)))
    print(
        f"{count} rows in {whole:.1f} s = {count / whole:.0f} rows/s; without the engine "
        f"{books:.1f} s = {count / books:.0f} rows/s, {times_plain:.0f} times a line of JSON read "
        f"and written; memory {memory[0] >> 20} MB at first, "
        f"{max(memory) >> 20} MB at most"
    )
    assert len(texts(out)) == count
    # Between 38 and 58 were measured.
    assert times_plain < 80
    parts = np.diff([reached[part] for part in range(21)])
    assert np.median(parts[10:]) < 1.5 * np.median(parts[:10]), "rows cost more as they get many"
    assert max(memory[len(memory) // 4 :]) < memory[len(memory) // 4] + (8 << 20)


def row_of(number: int) -> str:
    return json.dumps({"id": f"row-{number}", "prompt": "ab" * (number % 4)}) + "\n"


def time_of_plain_lines(count: int) -> float:
    """Return the seconds that so many lines take that are written, read, and written."""
    began = time.perf_counter()
    for number in range(count):
        json.dumps(json.loads(row_of(number)))
    return time.perf_counter() - began


def clocked(engine, name: str) -> list[float]:
    """Return a list whose one number grows by the time that a method takes."""
    method, spent = getattr(engine, name), [0.0]

    def timed(*arguments, **options):
        began = time.perf_counter()
        try:
            return method(*arguments, **options)
        finally:
            spent[0] += time.perf_counter() - began

    setattr(engine, name, timed)
    return spent


def resident() -> int:
    """The memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
