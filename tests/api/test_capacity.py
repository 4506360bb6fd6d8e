"""How many texts fit into memory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from eva_local import opening
from eva_local.config.config import load_config
from eva_local.config.specs import EnsembleSpec, FusionSettings, LoadSettings, ModelSpec, PathSource
from eva_local.errors import ModelError
from eva_local.opening import free_memory, open_widest, planned, slots_that_fit
from tools.tiny_gguf import write_tiny_gguf


def spec(path: Path, space: str = "pivot", **load: object) -> EnsembleSpec:
    member = ModelSpec("m", PathSource(path), load=LoadSettings(**{"n_ctx": 512, **load}))
    return EnsembleSpec("m", (member,), "m", FusionSettings(space=space))


def test_auto_takes_what_fits(models, monkeypatch) -> None:
    spec = load_config(models / "models.toml", {}).ensemble("pair")
    with open_widest(spec, most=8) as ensemble:
        assert 1 <= ensemble.scheduler.n_slots <= 8
        assert ensemble.complete("the").text is not None
        assert ensemble.scheduler.n_waiting == ensemble.scheduler.n_running == 0


def fits(monkeypatch: pytest.MonkeyPatch, one: EnsembleSpec, size: int, n_fit: int) -> int:
    """Return how many texts fit beside `size` bytes of weights where there is room for `n_fit`."""
    plans = [planned(one, member) for member in one.members]
    size += sum(plan.working_bytes for plan in plans)
    free = size + n_fit * sum(plan.text_bytes for plan in plans) / 0.75 + 1
    monkeypatch.setattr(opening, "free_memory", lambda: free)
    return slots_that_fit(one, 16)


def test_members_share_the_memory(models, monkeypatch) -> None:
    spec = load_config(models / "models.toml", {}).ensemble("pair")
    files = sum((models / f"{name}.gguf").stat().st_size for name in ("one", "two"))
    for n_fit in (1, 5, 20):
        assert fits(monkeypatch, spec, files, n_fit) == min(n_fit, 16)
    monkeypatch.setattr(opening, "free_memory", lambda: 0)
    assert slots_that_fit(spec, 16) == 1


@pytest.mark.parametrize("settings", [{}, {"snapshots": 0}, {"space": "bytes"}])
def test_places_are_counted_by_what_a_text_takes(tmp_path, monkeypatch, settings) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", "granitehybrid", n_layers=4)
    one = spec(path, **settings)
    for n_fit in (1, 5):
        assert fits(monkeypatch, one, path.stat().st_size, n_fit) == n_fit
    monkeypatch.setattr(opening, "free_memory", lambda: None)
    # llama.cpp has 256 sequences: in bytes 12 for a text with its snapshots.
    most = 255 // 12 if "space" in settings else 32
    assert slots_that_fit(one, 32) == most


def test_members_of_one_model_share_its_sequences(tmp_path, monkeypatch) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", "granitehybrid", n_layers=4)
    monkeypatch.setattr("eva_local.opening.free_memory", lambda: None)
    for space, count, most in (("bytes", 8, 255 // 96), ("bytes", 30, 1), ("pivot", 16, 15)):
        one = spec(path, space=space)
        members = tuple(replace(one.members[0], name=f"m{number}") for number in range(count))
        assert slots_that_fit(replace(one, members=members, pivot="m0"), 32) == most


def test_a_window_that_is_not_kept_whole_takes_less(tmp_path, monkeypatch) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", "gpt-oss", n_ctx=4096)
    long, short = (
        planned(one, one.members[0]).text_bytes
        for one in (spec(path, n_ctx=4096, swa_full=full, n_batch=32) for full in (True, False))
    )
    # Of half of the layers, llama.cpp keeps 32 + 32 tokens, rounded up to 256.
    assert short == pytest.approx(long / 2 * (1 + 256 / 4096), rel=0.01)


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
    path = write_tiny_gguf(tmp_path / "m.gguf")
    one = spec(path, **{key: value for key, value in load.items() if key != "twice"})
    if "twice" in load:
        (member,) = one.members
        one = replace(one, members=(member, replace(member, name="m-2")))
    plan = planned(one, one.members[0])
    size, each = path.stat().st_size + plan.working_bytes, plan.text_bytes
    free = [int(size + count * each / 0.75) + 1 for count in (3, 20)]
    monkeypatch.setattr(opening, "free_memory", lambda: 1)
    monkeypatch.setattr(opening, "free_on_gpus", lambda: free)
    if one.members[0].load.main_gpu < 0:
        free[0] -= size
    assert slots_that_fit(one, 32) == n_fit


def test_nothing_is_counted_where_the_system_does_not_tell(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(opening, "free_memory", lambda: None)
    path = write_tiny_gguf(tmp_path / "m.gguf")
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
