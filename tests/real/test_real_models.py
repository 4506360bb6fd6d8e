"""The laws that need real logits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import REAL_MODELS, real_path, spec

from eva_local.cache.context import Context
from eva_local.config.specs import EnsembleSpec, FusionSettings
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import Run, decode_every
from eva_local.opening import open_ensemble
from eva_local.types import Message, Sampling

pytestmark = pytest.mark.real

PROMPTS = (
    "The history of the lighthouse begins",
    "def fibonacci(n):\n",
    "Zwei Äpfel und drei Birnen kosten",
)


def llama_cpp_alone(name: str, prompt: str, count: int) -> list[int]:
    """What llama-cpp-python's own greedy loop writes, on the device that ours is on."""
    from llama_cpp import Llama

    same = {"n_ctx": 512, "n_threads": 2, "n_gpu_layers": -1, "swa_full": True}
    model = Llama(str(real_path(name)), verbose=False, **same)
    try:
        made: list[int] = []
        for token_id in model.generate(model.tokenize(prompt.encode()), temp=0, repeat_penalty=1):
            if model._model.token_eos() == token_id or len(made) == count:
                break
            made.append(token_id)
        return made
    finally:
        model.close()


def ensemble_of(*names: str) -> EnsembleSpec:
    """Members that llama.cpp computes exactly as it does for llama-cpp-python's class."""
    members = []
    for number, name in enumerate(names):
        one = replace(spec(name), name=f"{name}-{number}")
        same = {"n_ctx": 512, "threads": 2, "flash_attention": "off", "batch_invariant": False}
        members.append(replace(one, load=replace(one.load, **same)))
    return EnsembleSpec("laws", tuple(members), f"{names[0]}-0", FusionSettings())


@pytest.mark.parametrize("name", REAL_MODELS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_law_2_one_member_alone_writes_llama_cpps_tokens(name, prompt) -> None:
    expected = llama_cpp_alone(name, prompt, 100)
    with open_ensemble(ensemble_of(name)) as ensemble:
        ensemble.complete(prompt, Sampling(max_tokens=100))
        (state,) = ensemble._engine._states[0]
        assert list(state.cache.tokens[state.cache._n_prompt :])[:100] == expected


def test_law_2_two_copies_of_one_model_write_its_tokens() -> None:
    expected = llama_cpp_alone("smollm2-135m", PROMPTS[0], 100)
    with open_ensemble(ensemble_of("smollm2-135m", "smollm2-135m")) as ensemble:
        ensemble.complete(PROMPTS[0], Sampling(max_tokens=100))
        for state in ensemble._engine._states[0]:
            assert list(state.cache.tokens[state.cache._n_prompt :])[:100] == expected


@pytest.mark.parametrize("name", REAL_MODELS)
def test_law_7_logits_after_rollback_are_those_of_a_fresh_context(name) -> None:
    """Equal up to what llama.cpp itself rounds otherwise in a batch and token by token."""
    with LlamaModel(real_path(name), replace(spec(name).load, n_ctx=512)) as model:
        context = Context(model)
        context.start(model.tokenizer.encode(b"The capital of France is"))
        for piece in (b" Par", b"is, and", b" the cap", b"ital of It", b"aly is"):
            run = context.pending()
            model.decode([run])
            context.decoded(run)
            context.append(piece)
        rolled = logits_of(model, [context.pending()])
        tokens = list(context.tokens)
        at_once = fresh_logits(model, [tokens])
        one_by_one = fresh_logits(model, [[token] for token in tokens])
    rounding = np.abs(one_by_one - at_once).max()
    assert np.abs(rolled - at_once).max() <= 2 * rounding + 1e-3
    assert np.corrcoef(rolled, at_once)[0, 1] > 0.999


@pytest.mark.parametrize("name", REAL_MODELS)
def test_law_7_what_was_rolled_back_leaves_no_trace(name) -> None:
    with LlamaModel(real_path(name), replace(spec(name).load, n_ctx=512)) as model:
        first, second = (model.tokenizer.encode(text.encode()) for text in PROMPTS[:2])
        model.decode([Run(0, 0, first)])
        model.decode([Run(0, len(first), second[::-1])])
        assert model.remove(0, len(first)) == len(first)
        rolled = logits_of(model, [Run(0, len(first), second)])
        assert np.abs(rolled - fresh_logits(model, [first, second])).max() < 1e-3


def logits_of(model: LlamaModel, runs: list[Run]) -> np.ndarray:
    return np.array(model.decode(runs)[-1])


def fresh_logits(model: LlamaModel, parts: list[list[int]]) -> np.ndarray:
    """Return the logits after the joined parts, decoded one after the other."""
    assert model.remove(0, 0) == 0
    position = 0
    for part in parts:
        row = logits_of(model, [Run(0, position, part)])
        position += len(part)
    return row


def test_many_texts_in_one_batch_are_each_as_alone() -> None:
    name = "smollm2-135m"
    with LlamaModel(real_path(name), replace(spec(name).load, n_ctx=128), n_sequences=3) as model:
        texts = [model.tokenizer.encode(prompt.encode()) for prompt in PROMPTS]
        runs = [Run(place, 0, tokens) for place, tokens in enumerate(texts)]
        together = [np.array(row) for row in model.decode(runs)]
        for place, tokens in enumerate(texts):
            assert model.remove(place, 0) == 0
            (alone,) = model.decode([Run(place, 0, tokens)])
            assert np.abs(together[place] - alone).max() < 0.02 * np.abs(alone).max()
        model.copy(0, 2)
        last = [Run(0, len(texts[0]), [5]), Run(2, len(texts[0]), [5])]
        one, copied = (np.array(row) for row in model.decode(last))
        assert np.abs(one - copied).max() < 0.02 * np.abs(one).max()


def test_blocks_of_logits_are_the_single_ones() -> None:
    name = "smollm2-135m"
    with LlamaModel(real_path(name), replace(spec(name).load, n_ctx=128)) as model:
        tokens = model.tokenizer.encode(PROMPTS[0].encode() * 8)
        assert len(tokens) > 40
        rows = np.concatenate([np.array(b) for b in decode_every(model, Run(0, 0, tokens))])
        assert rows.shape == (len(tokens), len(model.vocabulary))
        model.remove(0, 0)
        (last,) = model.decode([Run(0, 0, tokens)])
        assert np.abs(rows[-1] - last).max() < 0.02 * np.abs(last).max()


def test_law_6_same_seed_same_text(demo) -> None:
    question = [Message("user", "Name three birds.")]
    sampling = Sampling(max_tokens=16, temperature=1.0, seed=5)
    assert demo.complete(question, sampling).text == demo.complete(question, sampling).text


def test_a_follow_up_reads_only_what_is_new(demo) -> None:
    turns = [Message("user", "My name is Ada, and I like ships. " * 8)]
    first = demo.complete(turns, Sampling(max_tokens=8))
    turns += [Message("assistant", first.text), Message("user", "What is my name?")]
    usage = demo.complete(turns, Sampling(max_tokens=8)).usage
    for read, cached in zip(usage.prompt_tokens, usage.cached_tokens, strict=True):
        assert cached > 0.7 * read
