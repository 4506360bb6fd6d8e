"""Grammars and JSON schemas on the real models: an answer is valid, or it ran out of tokens."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import real_path

from eva_local.api import Ensemble
from eva_local.config.specs import EnsembleSpec, LoadSettings, ModelSpec, PathSource
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import ALL, Run
from eva_local.opening import ensemble_of
from eva_local.types import Message, Sampling

pytestmark = pytest.mark.real

COLOURS = {"red", "green", "blue"}
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "tags": {
                "type": "array",
                "items": {"enum": sorted(COLOURS)},
                "minItems": 1,
                "maxItems": 3,
            },
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize("seed", range(5))
def test_json_obeys_its_schema(demo: Ensemble, seed: int) -> None:
    # No cuts: at temperature 1 the models would often leave the path.
    sampling = Sampling(
        max_tokens=80, temperature=1, top_k=0, top_p=1, min_p=0, seed=seed, json_schema=SCHEMA
    )
    done = demo.complete([Message("user", "Invent a person. Answer in JSON.")], sampling)
    if done.finish_reason == "length":
        assert done.usage.steps == 80
        return
    person = json.loads(done.text)
    assert list(person) == ["name", "age", "tags"]
    assert isinstance(person["name"], str)
    assert len(person["name"]) <= 20
    assert type(person["age"]) is int
    assert 0 <= person["age"] <= 130
    assert 1 <= len(person["tags"]) <= 3
    assert set(person["tags"]) <= COLOURS


def test_an_answer_obeys_its_grammar(demo: Ensemble) -> None:
    gbnf = 'root ::= ("- " line "\\n"){3}\nline ::= [A-Z] [a-z ]{2,30}'
    question = [Message("user", "Name three rivers.")]
    done = demo.complete(question, Sampling(max_tokens=100, grammar=gbnf))
    assert done.finish_reason == "stop"
    assert re.fullmatch(r"(- [A-Z][a-z ]{2,30}\n){3}", done.text)


@pytest.mark.parametrize(
    "prompt", ["Her favourite colour was", "Once upon a time there was a little girl who"]
)
def test_the_digit_is_the_likeliest_however_unlikely_digits_are(prompt: str) -> None:
    path = real_path("smollm2-135m")
    with LlamaModel(path, LoadSettings(n_ctx=64)) as model:
        spec = EnsembleSpec("one", (ModelSpec("one", PathSource(path)),), "one")
        digits = [model.tokenizer.encode(b"%d" % digit)[0] for digit in range(10)]
        with ensemble_of(spec, [model]) as one:
            found = one.complete(prompt, Sampling(grammar="root ::= [0-9]")).text
            tokens = one._readers.read(prompt, Sampling())[0][0]
        model.remove(ALL, 0)
        (logits,) = model.decode([Run(0, 0, tokens)])
        assert logits is not None
        # None is among the candidates of a vote.
        assert np.sort(logits)[-spec.fusion.candidates] > logits[digits].max()
        assert int(found) == int(np.argmax(logits[digits]))


def test_what_is_forbidden_is_not_written(demo: Ensemble) -> None:
    question = [Message("user", "What is the capital of France? Answer in one sentence.")]
    biases = {text: float("-inf") for text in (" Paris", "Paris")}
    done = demo.complete(question, Sampling(max_tokens=20, logit_bias=biases))
    assert "Paris" not in done.text


def test_penalties_end_a_repetition(demo: Ensemble) -> None:
    prompt = "no no no no no no no no"
    plain = demo.complete(prompt, Sampling(max_tokens=24)).text
    varied = demo.complete(prompt, Sampling(max_tokens=24, frequency_penalty=2)).text
    assert len(set(varied.split())) > len(set(plain.split()))


def test_a_grammar_of_models_toml_and_one_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "digit.gbnf").write_text("root ::= [0-9]")
    (tmp_path / "word.gbnf").write_text('root ::= "yes" | "no"')
    (tmp_path / "models.toml").write_text(
        "schema = 1\n[models.smol]\n"
        f"path = '{real_path('smollm2-135m')}'\n"
        '[ensembles.digit]\nmembers = ["smol"]\ngrammar = "digit.gbnf"\n'
        'candidates = 0\nlogit_bias = { "7" = 100 }\n'
    )

    def answer(*options: str) -> str:
        command = [sys.executable, "-m", "eva_local", "--config", str(tmp_path / "models.toml")]
        asked = [*command, "run", "-e", "digit", *options, "--raw", "One or two?"]
        done = subprocess.run(asked, input="", capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert answer() == "7"
    assert answer("--logit-bias", "7=false", "--logit-bias", "3=100") == "3"
    assert answer("--grammar", str(tmp_path / "word.gbnf")) in {"yes", "no"}
