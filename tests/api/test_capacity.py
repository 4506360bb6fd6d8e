"""How many texts fit into memory, and how many of them write fastest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from headers import HEADS, ONE_STATE, PLAIN, STATE, WINDOW, write_header

from eva_local import capacity
from eva_local.capacity import fastest, free_memory, open_widest, slots_that_fit
from eva_local.config.config import load_config
from eva_local.config.specs import EnsembleSpec, FusionSettings, LoadSettings, ModelSpec, PathSource
from eva_local.errors import ModelError
from eva_local.llama.llama_model import SPARE_CELLS
from eva_local.models.header import read_header


def spec(path: Path, space: str = "pivot", **load: object) -> EnsembleSpec:
    member = ModelSpec("m", PathSource(path), load=LoadSettings(n_ctx=512, **load))
    return EnsembleSpec("m", (member,), "m", FusionSettings(space=space))


def test_auto_takes_what_fits_and_is_fastest(models, monkeypatch) -> None:
    spec = load_config(models / "models.toml", {}).ensemble("pair")
    with open_widest(spec, most=8) as ensemble:
        assert 1 <= ensemble.scheduler.n_slots <= 8
        assert ensemble.complete("the").text is not None
        assert 1 <= fastest(ensemble, 3) <= 3
        assert ensemble.scheduler.n_waiting == ensemble.scheduler.n_running == 0


def test_members_share_the_memory(models, monkeypatch) -> None:
    spec = load_config(models / "models.toml", {}).ensemble("pair")
    one, two = (read_header(models / f"{name}.gguf") for name in ("one", "two"))
    # A layer of keys and values as wide as the model.
    assert one.n_cached == two.n_cached == 2 * 64
    files = sum((models / f"{name}.gguf").stat().st_size for name in ("one", "two"))
    each = 2 * 128 * 2 * 64 * 2
    for n_fit in (1, 5, 20):
        free = files + n_fit * each / 0.75 + 1
        monkeypatch.setattr("eva_local.capacity.free_memory", lambda free=free: free)
        assert slots_that_fit(spec, 16) == min(n_fit, 16)
    monkeypatch.setattr("eva_local.capacity.free_memory", lambda: 0)
    assert slots_that_fit(spec, 16) == 1


@pytest.mark.parametrize(
    ("settings", "each"),
    [
        ({}, 512 * 4 * 4 * 32 * 2 + 36 * ONE_STATE),
        ({"kv_type": "f32"}, 512 * 4 * 4 * 32 * 4 + 36 * ONE_STATE),
        ({"space": "bytes"}, (512 + SPARE_CELLS) * 4 * 4 * 32 * 2 + 8 * 36 * ONE_STATE),
    ],
)
def test_places_are_counted_by_what_a_text_takes(tmp_path, monkeypatch, settings, each) -> None:
    heads = {"attention.head_count_kv": ([0] * 9 + [4]) * 4}
    values = {**HEADS, **STATE, "block_count": 40, **heads}
    path = write_header(tmp_path / "m.gguf", "granitehybrid", values)
    for n_fit in (1, 5, 20):
        free = path.stat().st_size + n_fit * each / 0.75 + 1
        monkeypatch.setattr("eva_local.capacity.free_memory", lambda free=free: free)
        assert slots_that_fit(spec(path, **settings), 32) == n_fit


def test_a_window_that_is_not_kept_whole_takes_less(tmp_path, monkeypatch) -> None:
    path = write_header(tmp_path / "m.gguf", "gpt-oss", WINDOW)
    each = 2 * 64 * (512 + 8 + 32) * 2
    monkeypatch.setattr(
        "eva_local.capacity.free_memory", lambda: path.stat().st_size + 7 * each / 0.75 + 1
    )
    assert slots_that_fit(spec(path, swa_full=False, n_batch=32), 32) == 7


def test_what_is_not_on_the_cpu_is_not_counted(tmp_path, monkeypatch) -> None:
    path = write_header(tmp_path / "m.gguf", "llama", PLAIN)
    monkeypatch.setattr(capacity, "free_memory", lambda: 1)
    monkeypatch.setattr(capacity, "can_offload", lambda: True)
    assert slots_that_fit(spec(path), 32) == 32
    # llama.cpp has 256 sequences: 8 for a text, and one to guard a window.
    assert slots_that_fit(spec(path, space="bytes"), 32) == 31
    assert slots_that_fit(spec(path, n_gpu_layers=0), 32) == 1


def test_nothing_is_counted_where_the_system_does_not_tell(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(capacity, "free_memory", lambda: None)
    path = write_header(tmp_path / "m.gguf", "llama", PLAIN)
    assert slots_that_fit(spec(path), 5) == 5


@pytest.mark.parametrize(
    ("rates", "most", "asked", "best"),
    [
        # Twice as fast each time, up to the most there can be.
        ({1: 10, 2: 20, 4: 40, 6: 50}, 6, [1, 2, 4, 6], 6),
        # A number is enough that writes 95% of what the best one writes.
        ({1: 10, 2: 19, 4: 20}, 4, [1, 2, 4], 2),
        ({1: 10, 2: 18, 4: 20}, 4, [1, 2, 4], 4),
        # Two numbers without gain end it, one does not.
        ({1: 10, 2: 8, 4: 9}, 32, [1, 2, 4], 1),
        ({1: 10, 2: 8, 4: 30, 8: 20, 16: 20}, 32, [1, 2, 4, 8, 16], 4),
        ({1: 10}, 1, [1], 1),
        # Nothing fits.
        ({1: 0, 2: 0}, 2, [1, 2], 1),
    ],
)
def test_the_smallest_number_that_is_nearly_fastest(monkeypatch, rates, most, asked, best) -> None:
    measured = []

    def measure(_ensemble: object, places: int) -> float:
        measured.append(places)
        return rates[places]

    monkeypatch.setattr(capacity, "_measured", measure)
    assert fastest(None, most) == best
    assert measured == asked


def test_half_as_many_are_tried_where_llama_cpp_has_no_room(models, monkeypatch) -> None:
    tried = []

    def open_some(*_: object, parallel: int) -> None:
        tried.append(parallel)
        raise ModelError("no room")

    monkeypatch.setattr(capacity, "open_ensemble", open_some)
    monkeypatch.setattr(capacity, "free_memory", lambda: None)
    spec = load_config(models / "models.toml", {}).ensemble("pair")
    with pytest.raises(ModelError, match="no room"):
        open_widest(spec, most=12)
    assert tried == [12, 6, 3, 1]


def test_free_memory_is_less_than_there_is() -> None:
    free = free_memory()
    assert free is None or 0 < free <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [("1000", "400", 600), ("1000", "1200", 0), ("max", "400", None), (None, None, None)],
)
def test_a_container_has_less(tmp_path, limit, used, free) -> None:
    for name, value in (("memory.max", limit), ("memory.current", used)):
        if value is not None:
            (tmp_path / name).write_text(f"{value}\n")
    assert capacity._free_in_group(tmp_path) == free
