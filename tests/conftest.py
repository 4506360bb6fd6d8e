"""A browser for the pages; tiny models; the real demo models, opened once for all tests."""

from __future__ import annotations

import os
import re
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find_browser
from hypothesis import settings

from eva_local.api import Ensemble
from eva_local.config.config import load_config, shipped
from eva_local.config.specs import LoadSettings, ModelSpec
from eva_local.llama.backend import library
from eva_local.llama.llama_model import LlamaModel
from eva_local.models.store import locate
from eva_local.opening import load
from tools import build_llama
from tools.recipe import REQUIREMENT, pinned
from tools.tiny_gguf import write_tiny_gguf

ROOT = Path(__file__).parents[1]

# How long an example takes says more about the machine than about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# What the user has configured is nothing to the tests.
os.environ["XDG_CONFIG_HOME"] = str(ROOT / "tests" / "no-configuration")

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


def pytest_configure() -> None:
    # Some tests import llama_cpp by themselves: its threads are to wait as they do for users.
    library()


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


@pytest.fixture(scope="session")
def llama_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """llama.cpp's folder `models`: chat templates, and vocabularies without weights."""
    version, _ = pinned((ROOT / REQUIREMENT).read_text(encoding="utf-8"))
    source = build_llama.kept_source(version, build_llama.wheels_folder(os.environ))
    if not source.exists():
        pytest.fail(f"{source} is missing: run `make setup`, which fetches it (77 MB)")
    folder = tmp_path_factory.mktemp("llama.cpp")
    with tarfile.open(source) as archive:
        for file in archive:
            if re.search(r"/vendor/llama.cpp/models/.*\.(jinja|gguf)$", file.name):
                file.name = Path(file.name).name
                archive.extract(file, folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def templates(llama_models: Path) -> dict[str, str]:
    """The chat templates in llama.cpp's source, by their names."""
    paths = sorted(llama_models.glob("*.jinja"))
    return {path.stem: path.read_text(encoding="utf-8") for path in paths}


def spec(name: str) -> ModelSpec:
    return load_config(shipped("models.toml"), {}).models[name]


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
