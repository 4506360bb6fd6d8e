"""What was opened is closed again where the opening fails, however far it came."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest
from headers import write_other

import eva_local
from eva_local.batch.forms import Wishes
from eva_local.batch.job import form_of
from eva_local.batch.results import FileResults
from eva_local.config.specs import EnsembleSpec
from eva_local.errors import InputError, StoreError
from eva_local.evaluate.rows import Result, Results
from eva_local.llama.llama_model import LlamaModel
from eva_local.opening import ensemble_of
from eva_local.types import Sampling


class Opened:
    """Counts the models that are open, and the threads of pools."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models: list[LlamaModel] = []
        self.before = set(threading.enumerate())
        init = LlamaModel.__init__

        def opened(model, *arguments, **options) -> None:
            self.models.append(model)
            init(model, *arguments, **options)

        monkeypatch.setattr(LlamaModel, "__init__", opened)

    @property
    def left(self) -> int:
        threads = set(threading.enumerate()) - self.before
        return len(threads) + sum(model._file.handle is not None for model in self.models)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(monkeypatch)


@pytest.mark.parametrize(
    "what",
    [
        "eva_local.api.Readers",
        "eva_local.api.Scheduler",
        "eva_local.api.Driver",
        "eva_local.opening.Engine",
        "eva_local.opening.PivotSpace",
    ],
)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_stays_open_where_an_ensemble_does_not_come_about(
    opened: Opened, models: Path, monkeypatch: pytest.MonkeyPatch, what: str, error: type
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(what, fail)
    with pytest.raises(error) as raised:
        eva_local.load("pair", config=models / "models.toml")
    assert len(opened.models) == 2
    # At once, and not when the error is forgotten.
    assert opened.left == 0
    del raised


def test_no_model_is_loaded_where_another_member_is_none(opened: Opened, models: Path) -> None:
    write_other(models / "none.gguf", "llama", {"general.type": "adapter"})
    with pytest.raises(StoreError, match=r"none\.gguf: a LoRA adapter"):
        eva_local.load("broken", config=models / "models.toml")
    (models / "none.gguf").unlink()
    assert not opened.models


def test_the_threads_over_models_of_others_end_and_the_models_stay(
    opened: Opened, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    with eva_local.load("pair", config=models / "models.toml") as ensemble:
        spec: EnsembleSpec = ensemble.spec
        monkeypatch.setattr("eva_local.engine.engine.Engine.close", lambda _: closed.append(1))
        monkeypatch.setattr("eva_local.api.Driver", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ensemble_of(spec, ensemble._models)
        assert len(closed) == 1
        monkeypatch.undo()
        assert ensemble.complete("the", Sampling(max_tokens=2)).usage.steps == 2


@pytest.mark.parametrize(
    ("main_gpu", "mixed", "in_threads"), [(-1, True, False), (0, True, True), (-1, False, True)]
)
def test_members_take_turns_where_a_device_would_mix_them_up(
    models: Path, monkeypatch: pytest.MonkeyPatch, main_gpu: int, mixed: bool, in_threads: bool
) -> None:
    monkeypatch.setattr("eva_local.opening.can_offload", lambda: True)
    monkeypatch.setattr("eva_local.opening.must_take_turns", lambda: mixed)
    with eva_local.load("pair", config=models / "models.toml", main_gpu=main_gpu) as ensemble:
        assert bool(ensemble._engine._beside) == in_threads


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors cannot be counted")
def test_a_file_of_results_that_another_writes_is_left_alone(tmp_path) -> None:
    rows = tmp_path / "in.txt"
    rows.write_text("the\n")
    path = tmp_path / "out.jsonl"
    with path.open("w") as held, rows.open("rb") as source:
        fcntl.flock(held, fcntl.LOCK_EX)
        form = form_of(source, "in.txt", Wishes(Sampling()), None)
        before = descriptors()
        with pytest.raises(InputError, match="another process"):
            FileResults(path, form)
        assert descriptors() == before


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors cannot be counted")
def test_results_that_cannot_be_mended_are_closed(tmp_path, monkeypatch) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text('{"torn')

    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", fail)
    before = descriptors()
    with pytest.raises(InputError, match="cannot be kept: No space left"), Results(path) as results:
        results.add("key", Result(1, (0,), 0.5), {})
    assert descriptors() == before
    assert path.read_text() == '{"torn'
