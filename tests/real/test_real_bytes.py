"""The space of bytes on the real models."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from eva_local.api import Ensemble
from eva_local.config.config import shipped
from eva_local.llama.model import ALL, Run
from eva_local.opening import load
from eva_local.types import Message, Sampling

pytestmark = pytest.mark.real

PROMPTS = ("The capital of France is", "def add(a, b):\n    return", "Once upon a time")
LENGTH = 16


@pytest.fixture(scope="module")
def alone() -> Iterator[Ensemble]:
    with load("smollm2-135m", config=shipped("models.toml"), space="bytes") as ensemble:
        yield ensemble


@pytest.fixture(scope="module")
def demo_in_bytes() -> Iterator[Ensemble]:
    settings = {"space": "bytes", "combine": "geometric", "weights": "running", "filter": "off"}
    with load("demo", config=shipped("models.toml"), **settings) as ensemble:
        yield ensemble


@pytest.mark.parametrize("prompt", PROMPTS)
def test_law_2_a_model_alone_writes_what_llama_cpp_writes(alone: Ensemble, prompt: str) -> None:
    made = alone.complete(prompt, Sampling(max_tokens=LENGTH))
    (model,) = alone._engine._models
    ((tokens, _),) = alone._readers.read(prompt, Sampling())
    model.remove(ALL, 0)
    row, expected = list(tokens), b""
    allowed = model.vocabulary.speakable.copy()
    allowed[list(model.vocabulary.end_ids)] = True
    (logits,) = model.decode([Run(0, 0, row)])
    for _ in range(LENGTH):
        assert logits is not None
        best = int(np.where(allowed, logits, -np.inf).argmax())
        if best in model.vocabulary.end_ids:
            break
        expected += model.vocabulary.pieces[best]
        row.append(best)
        (logits,) = model.decode([Run(0, len(row) - 1, [best])])
    model.remove(ALL, 0)
    alone._engine._states.clear()
    assert made.text == expected.decode("utf-8", "ignore")


def test_two_models_write_one_answer(demo_in_bytes: Ensemble) -> None:
    question = [Message("user", "What is the capital of France? Answer in one sentence.")]
    steps = list(demo_in_bytes.stream(question, Sampling(max_tokens=20), trace=True))
    text = "".join(step.text for step in steps)
    assert "Paris" in text
    for step in steps:
        assert step.trace is not None
        assert sum(ballot.weight for ballot in step.trace.ballots) == pytest.approx(1)


def test_json_at_temperature_1(demo_in_bytes: Ensemble) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    sampling = Sampling(max_tokens=40, temperature=1, seed=3, json_schema=json.dumps(schema))
    answer = demo_in_bytes.complete([Message("user", "How old is Tim? Tim is 5.")], sampling)
    assert answer.finish_reason == "length" or isinstance(json.loads(answer.text)["age"], int)
