"""Steps with and without caches on the real models: caching changes nothing."""

from __future__ import annotations

import pytest

from eva_local.config.config import load_config, shipped
from eva_local.opening import open_ensemble
from tools.naive_steps import SETTINGS, pairs

pytestmark = pytest.mark.real


@pytest.mark.parametrize("name", ["demo", "trio"])
def test_a_step_without_caches_decides_the_same(name: str) -> None:
    settings = {**SETTINGS, "n_ctx": 512, "combine": "mean"}
    spec = load_config(shipped("models.toml"), {}, settings).ensemble(name)
    with open_ensemble(spec) as cached, open_ensemble(spec) as naive:
        for (_, again), (_, step) in pairs(cached, naive, 100, 2):
            assert again.piece == step.piece
            # llama.cpp rounds differently in batches of another size.
            assert again.probability == pytest.approx(step.probability, abs=0.05)
            assert again.usage is not None
            # All but the token that begins every text was read again.
            assert max(again.usage.cached_tokens) <= 1
