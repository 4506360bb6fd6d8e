"""How many texts fit into memory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from headers import HEADS, ONE_STATE, PLAIN, STATE, WINDOW, write_header

from eva_local import opening
from eva_local.config.config import load_config
from eva_local.config.specs import EnsembleSpec, FusionSettings, LoadSettings, ModelSpec, PathSource
from eva_local.errors import ModelError
from eva_local.llama.llama_model import SPARE_CELLS
from eva_local.models.header import read_header
from eva_local.opening import bytes_of_text, free_memory, open_widest, slots_that_fit


def spec(path: Path, space: str = "pivot", **load: object) -> EnsembleSpec:
    member = ModelSpec("m", PathSource(path), load=LoadSettings(n_ctx=512, **load))
    return EnsembleSpec("m", (member,), "m", FusionSettings(space=space))


def test_auto_takes_what_fits(models, monkeypatch) -> None:
    spec = load_config(models / "models.toml", {}).ensemble("pair")
    with open_widest(spec, most=8) as ensemble:
        assert 1 <= ensemble.scheduler.n_slots <= 8
        assert ensemble.complete("the").text is not None
        assert ensemble.scheduler.n_waiting == ensemble.scheduler.n_running == 0


def test_members_share_the_memory(models, monkeypatch) -> None:
    spec = load_config(models / "models.toml", {}).ensemble("pair")
    one, two = (read_header(models / f"{name}.gguf") for name in ("one", "two"))
    # A layer of keys and values as wide as the model.
    assert one.n_cached == two.n_cached == 2 * 64
    files = sum((models / f"{name}.gguf").stat().st_size for name in ("one", "two"))
    # llama.cpp rounds 128 tokens up to 256.
    each = 2 * 256 * 2 * 64 * 2
    for n_fit in (1, 5, 20):
        free = files + n_fit * each / 0.75 + 1
        monkeypatch.setattr("eva_local.opening.free_memory", lambda free=free: free)
        assert slots_that_fit(spec, 16) == min(n_fit, 16)
    monkeypatch.setattr("eva_local.opening.free_memory", lambda: 0)
    assert slots_that_fit(spec, 16) == 1


@pytest.mark.parametrize(
    ("settings", "each"),
    [
        # A text has a state, or eight in bytes, and its snapshots.
        ({}, 512 * 4 * 4 * 32 * 2 + 5 * 36 * ONE_STATE),
        ({"kv_type": "f32"}, 512 * 4 * 4 * 32 * 4 + 5 * 36 * ONE_STATE),
        ({"snapshots": 0}, 512 * 4 * 4 * 32 * 2 + 36 * ONE_STATE),
        ({"space": "bytes"}, (512 + SPARE_CELLS) * 4 * 4 * 32 * 2 + 12 * 36 * ONE_STATE),
    ],
)
def test_places_are_counted_by_what_a_text_takes(tmp_path, monkeypatch, settings, each) -> None:
    heads = {"attention.head_count_kv": ([0] * 9 + [4]) * 4}
    values = {**HEADS, **STATE, "block_count": 40, **heads}
    path = write_header(tmp_path / "m.gguf", "granitehybrid", values)
    for n_fit in (1, 5, 20):
        free = path.stat().st_size + n_fit * each / 0.75 + 1
        monkeypatch.setattr("eva_local.opening.free_memory", lambda free=free: free)
        assert slots_that_fit(spec(path, **settings), 32) == n_fit
    monkeypatch.setattr("eva_local.opening.free_memory", lambda: None)
    # llama.cpp has 256 sequences: in bytes 12 for a text with its snapshots.
    most = 255 // 12 if "space" in settings else 32
    assert slots_that_fit(spec(path, **settings), 32) == most


def test_members_of_one_model_share_its_sequences(tmp_path, monkeypatch) -> None:
    values = {**HEADS, **STATE, "attention.head_count_kv": [0, 4]}
    path = write_header(tmp_path / "m.gguf", "granitehybrid", {**values, "block_count": 2})
    monkeypatch.setattr("eva_local.opening.free_memory", lambda: None)
    for space, count, most in (("bytes", 8, 255 // 96), ("bytes", 30, 1), ("pivot", 16, 15)):
        one = spec(path, space=space)
        members = tuple(replace(one.members[0], name=f"m{number}") for number in range(count))
        assert slots_that_fit(replace(one, members=members, pivot="m0"), 32) == most


def test_a_window_that_is_not_kept_whole_takes_less(tmp_path, monkeypatch) -> None:
    path = write_header(tmp_path / "m.gguf", "gpt-oss", WINDOW)
    # llama.cpp rounds 8 + 32 tokens up to 256.
    each = 2 * 64 * (512 + 256) * 2
    monkeypatch.setattr(
        "eva_local.opening.free_memory", lambda: path.stat().st_size + 7 * each / 0.75 + 1
    )
    assert slots_that_fit(spec(path, swa_full=False, n_batch=32), 32) == 7


@pytest.mark.parametrize(
    ("load", "n_fit"),
    [
        ({"main_gpu": 0}, 3),
        ({"main_gpu": 1}, 20),
        # Two members of a model share its weights.
        ({"main_gpu": 1, "twice": True}, 10),
        # Shared out among both.
        ({}, 23),
        ({"n_gpu_layers": 0}, 1),
        # What nobody tells, llama.cpp has to.
        ({"n_gpu_layers": 2, "main_gpu": 0}, 32),
        ({"main_gpu": 2}, 32),
        # llama.cpp has 256 sequences: 8 for a text, and one to guard a window.
        ({"n_gpu_layers": 2, "space": "bytes"}, 31),
    ],
)
def test_each_gpu_has_memory_of_its_own(tmp_path, monkeypatch, load, n_fit) -> None:
    path = write_header(tmp_path / "m.gguf", "llama", PLAIN)
    one = spec(path, **{key: value for key, value in load.items() if key != "twice"})
    if "twice" in load:
        (member,) = one.members
        one = replace(one, members=(member, replace(member, name="m-2")))
    size, each = path.stat().st_size, bytes_of_text(one.members[0], bytewise=False)
    free = [int(size + count * each / 0.75) + 1 for count in (3, 20)]
    monkeypatch.setattr(opening, "free_memory", lambda: 1)
    monkeypatch.setattr(opening, "free_on_gpus", lambda: free)
    if one.members[0].load.main_gpu < 0:
        free[0] -= size
    assert slots_that_fit(one, 32) == n_fit


def test_nothing_is_counted_where_the_system_does_not_tell(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(opening, "free_memory", lambda: None)
    path = write_header(tmp_path / "m.gguf", "llama", PLAIN)
    assert slots_that_fit(spec(path), 5) == 5


def test_half_as_many_are_tried_where_llama_cpp_has_no_room(models, monkeypatch) -> None:
    tried = []

    def open_some(*_: object, parallel: int) -> None:
        tried.append(parallel)
        raise ModelError("no room")

    monkeypatch.setattr(opening, "open_ensemble", open_some)
    monkeypatch.setattr(opening, "free_memory", lambda: None)
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
    found = free_memory(tmp_path)
    if free is None:
        # What the system has is more than these numbers.
        assert found is None or found > 1200
    else:
        assert found == free
