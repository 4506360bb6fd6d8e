"""A browser for the pages; tiny models; the real demo models, opened once for all tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find_browser
from hypothesis import settings

from eva_local.api import Ensemble
from eva_local.config.config import load_config, shipped
from eva_local.config.specs import LoadSettings, ModelSpec
from eva_local.llama.llama_model import LlamaModel
from eva_local.models.store import locate
from eva_local.opening import load
from tools.tiny_gguf import write_tiny_gguf

# How long an example takes says more about the machine than about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell has its background jobs ignore Ctrl-C, and their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Set to `required`, a browser that is missing fails the tests that need one.
REQUIRED = "EVA_LOCAL_TEST_BROWSER"
TINY = """
schema = 1
[defaults]
n_ctx = 128
[models.one]
path = "{folder}/one.gguf"
[models.two]
path = "{folder}/two.gguf"
[models.none]
path = "{folder}/none.gguf"
[ensembles.pair]
members = ["one", "two"]
[ensembles.broken]
members = ["one", "none"]
"""
REAL_MODELS = ("smollm2-135m", "qwen2.5-coder-0.5b", "gemma3-270m")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        missing = "no chromium: apt install chromium"
        if os.environ.get(REQUIRED) == "required":
            pytest.fail(f"{missing} ({REQUIRED}=required)")
        pytest.skip(missing)
    with Browser(program, tmp_path_factory.mktemp("browser") / "profile") as found:
        yield found


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models.toml, and two models with random weights that it names."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_gguf(folder / "one.gguf", n_layers=1, n_ctx=256, seed=1)
    words = (" the", " a", "ed")
    write_tiny_gguf(folder / "two.gguf", n_layers=1, n_ctx=256, words=words, seed=2)
    (folder / "models.toml").write_text(TINY.format(folder=folder))
    return folder


def spec(name: str) -> ModelSpec:
    return load_config(shipped("models.toml"), {}).model(name)


def real_path(name: str) -> Path:
    return locate(spec(name))


@pytest.fixture(scope="session")
def vocabularies() -> Iterator[dict[str, LlamaModel]]:
    """The real models, of which only vocabularies, tokenisers and templates are used."""
    # A small context, and weights that are mapped and not copied, take hardly any memory.
    small = LoadSettings(n_ctx=64, n_gpu_layers=0, batch_invariant=True)
    models = {name: LlamaModel(real_path(name), small) for name in REAL_MODELS}
    yield models
    for model in models.values():
        model.close()


@pytest.fixture(scope="session")
def demo() -> Iterator[Ensemble]:
    with load("demo", config=shipped("models.toml")) as ensemble:
        yield ensemble
