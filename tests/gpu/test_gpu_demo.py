"""The demo models on a device: a few tokens, since a driver on the CPU is slow."""

from __future__ import annotations

from dataclasses import replace

import pytest
from real.test_real_models import PROMPTS, ensemble_of, llama_cpp_alone

from eva_local.config.config import load_config, shipped
from eva_local.opening import open_ensemble
from eva_local.types import Message, Sampling

pytestmark = [pytest.mark.real, pytest.mark.timeout(3600)]

TOKENS = 4
MEMBERS = ("smollm2-135m", "qwen2.5-coder-0.5b")


@pytest.mark.parametrize("name", MEMBERS)
def test_law_2_one_member_alone_writes_llama_cpps_tokens(name) -> None:
    expected = llama_cpp_alone(name, PROMPTS[0], TOKENS)
    with open_ensemble(ensemble_of(name)) as ensemble:
        ensemble.complete(PROMPTS[0], Sampling(max_tokens=TOKENS))
        (state,) = ensemble._engine._states[0]
        assert list(state.cache.tokens[state.cache._n_prompt :])[:TOKENS] == expected


def test_demo_thinks_on_the_device_as_on_the_cpu() -> None:
    demo = load_config(shipped("models.toml"), {}).ensemble("demo")
    found = []
    for n_gpu_layers in (-1, 0):
        load = {"n_ctx": 512, "n_gpu_layers": n_gpu_layers}
        members = tuple(replace(one, load=replace(one.load, **load)) for one in demo.members)
        with open_ensemble(replace(demo, members=members)) as ensemble:
            question = [Message("user", "What is the capital of France?")]
            found.append(ensemble.score(question, "The capital of France is Paris."))
    device, cpu = found
    assert device.log_likelihood == pytest.approx(cpu.log_likelihood, abs=0.2)
    assert device.n_bytes == cpu.n_bytes
