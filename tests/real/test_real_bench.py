"""Steps with and without caches on the real models: caching changes nothing."""

from __future__ import annotations

import pytest

from eva_local.bench.naive import against_naive
from eva_local.config.config import load_config, shipped
from eva_local.opening import open_models

pytestmark = pytest.mark.real


@pytest.mark.parametrize("name", ["demo", "trio"])
def test_a_step_without_caches_decides_the_same(name: str) -> None:
    settings = {"n_ctx": 512, "space": "pivot", "combine": "mean"}
    spec = load_config(shipped("models.toml"), {}, settings).ensemble(name)
    with open_models(spec, parallel=2) as models:
        found = against_naive(spec, models, 100, 2, lambda _what, _share: None)
    assert found.n_compared == 2
    # llama.cpp rounds differently in batches of another size, and not at all in the same.
    assert found.difference is not None
    assert found.difference < 0.05
    assert found.difference_alike == 0
