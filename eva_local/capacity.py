"""How many texts are best written side by side: as many as fit, and as make it faster."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from pathlib import Path

from eva_local.api import Ensemble, Report
from eva_local.config.specs import EnsembleSpec, LoadSettings
from eva_local.engine.request import Request
from eva_local.errors import EvaError, ModelError
from eva_local.llama.backend import can_offload
from eva_local.llama.llama_model import MOST_SEQUENCES, SPARE_CELLS
from eva_local.models.header import read_header
from eva_local.models.store import locate, size
from eva_local.opening import open_ensemble
from eva_local.spaces.bytes.space import BRANCHES
from eva_local.types import Sampling

log = logging.getLogger("eva_local")

# More texts than this gain little on any machine, and wait for each other's prompts.
MOST = 32
# Memory that stays free for everything else, as a share of what is free now.
_LEFT_FREE = 0.25
# The cache's types: bytes for each number.
_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32, "q4_0": 18 / 32}
# Fewer texts are enough where they write this share of what the best number writes.
_NEARLY = 0.95
# Two texts may be slower than one, and four faster: this many numbers without gain end it.
_PATIENCE = 2
# Something to write, for the measurement: more symbols than it takes steps.
_WRITTEN = " one two three four five six seven eight"
_STEPS = 4


def open_widest(
    spec: EnsembleSpec,
    sampling: Sampling | None = None,
    report: Report | None = None,
    *,
    most: int = MOST,
) -> Ensemble:
    """Open an ensemble with the number of slots, at most `most`, that writes fastest here.

    Memory decides how many there can be, a measurement of a few seconds how many are used.
    Raises ModelError where not even one text fits.
    """
    slots = slots_that_fit(spec, most)
    while True:
        try:
            ensemble = open_ensemble(spec, sampling, report, parallel=slots)
            break
        except ModelError:
            # On a GPU only llama.cpp knows what is free.
            if slots == 1:
                raise
            slots //= 2
    try:
        ensemble.n_slots = fastest(ensemble, slots)
    except BaseException:
        ensemble.close()
        raise
    return ensemble


def slots_that_fit(spec: EnsembleSpec, most: int) -> int:
    """Return how many texts, at most `most`, fit into memory beside the weights."""
    on_cpu = [
        member for member in spec.members if not can_offload() or not member.load.n_gpu_layers
    ]
    bytewise = spec.fusion.space == "bytes"
    if bytewise:
        # One sequence may have to guard a window.
        most = min(most, (MOST_SEQUENCES - 1) // BRANCHES)
    free = free_memory()
    if not on_cpu or free is None:
        return most
    needed = sum(_bytes_of_text(locate(member), member.load, bytewise) for member in on_cpu)
    free -= sum(size(member) or 0 for member in on_cpu)
    return max(1, min(most, int(free * (1 - _LEFT_FREE) / max(needed, 1))))


def fastest(ensemble: Ensemble, most: int) -> int:
    """Measure 1, 2, 4 … texts side by side; return the smallest number that is nearly fastest."""
    rates: dict[int, float] = {}
    slots = 1
    while slots not in rates:
        rates[slots] = _measured(ensemble, slots)
        log.debug("%d texts side by side: %.1f tokens/s", slots, rates[slots])
        if max(rates.values()) > max(list(rates.values())[-_PATIENCE:]):
            break
        slots = min(2 * slots, most)
    enough = max(rates.values()) * _NEARLY
    return next(slots for slots, rate in rates.items() if rate >= enough)


def free_memory() -> int | None:
    """Return the bytes of memory that are free, or None where the system does not tell."""
    limits = [_free_in_system(), _free_in_group(Path("/sys/fs/cgroup"))]
    return min((limit for limit in limits if limit is not None), default=None)


def _measured(ensemble: Ensemble, slots: int) -> float:
    """Return the tokens per second of `slots` texts."""
    before, ensemble.n_slots = ensemble.n_slots, slots
    runner = ensemble.runner([Request("zero", continuation=_WRITTEN)] * slots)
    try:
        told = runner.step()
        while runner.reading:
            told += runner.step()
        began = time.perf_counter()
        for _ in range(_STEPS):
            told += runner.step()
        seconds = time.perf_counter() - began
    finally:
        runner.close()
        ensemble.n_slots = before
    # Where nothing fits into such a context, each row will be told.
    return 0.0 if any(isinstance(each, EvaError) for _, each in told) else slots * _STEPS / seconds


def _bytes_of_text(path: Path, settings: LoadSettings, bytewise: bool) -> int:
    header = read_header(path)
    n_rows, cells = 1, settings.context(header.n_ctx_train)
    if bytewise:
        n_rows, cells = BRANCHES, cells + SPARE_CELLS
    short = cells if settings.swa_full else min(cells, n_rows * header.window + settings.n_batch)
    numbers = ((header.n_cached or 0) - header.n_windowed) * cells + header.n_windowed * short
    return int(numbers * _BYTES[settings.kv_type]) + n_rows * header.state_bytes


def _free_in_system() -> int | None:
    with contextlib.suppress(OSError, ValueError):
        told = Path("/proc/meminfo").read_text(encoding="ascii")
        if found := re.search(r"^MemAvailable:\s*(\d+)", told, re.MULTILINE):
            return int(found[1]) * 1024
    with contextlib.suppress(OSError, ValueError):
        # What is free is not told here; half of all there is rarely is too much.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return None


def _free_in_group(folder: Path) -> int | None:
    """Return what a container may still use, or None outside of one."""
    try:
        limit, used = (
            int((folder / name).read_text(encoding="ascii"))
            for name in ("memory.max", "memory.current")
        )
    except (OSError, ValueError):
        return None
    return max(limit - used, 0)
