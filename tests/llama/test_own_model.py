"""The laws that a model can break, on a GGUF file of yours; a tiny one stands in beside it.

EVA_LOCAL_TEST_MODEL=FILE.gguf .venv/bin/python -m pytest tests/llama/test_own_model.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conversations import CONVERSATIONS
from prompts import expected, llama_cpp_tokens, lost

from eva_local.cache.context import Context
from eva_local.config.specs import EnsembleSpec, FusionSettings, LoadSettings, ModelSpec, PathSource
from eva_local.errors import PromptError
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import Run
from eva_local.llama.prompt import PromptWriter
from eva_local.llama.vocab import Kind
from eva_local.models.header import read_header
from eva_local.models.store import locate
from eva_local.opening import open_ensemble, plan
from eva_local.types import Message, Sampling
from tools.tiny_gguf import write_tiny_gguf

FILE = "EVA_LOCAL_TEST_MODEL"
TEMPLATE = (
    "{% for message in messages %}{{ bos_token if loop.first }}[{{ message.role }}]"
    "{{ message.content }}{{ eos_token if not loop.last or add_generation_prompt }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# A tiny model only waits for more threads.
LOAD = LoadSettings(n_ctx=1024, flash_attention="off", threads=0 if os.environ.get(FILE) else 1)
TEXTS = ("The history of the lighthouse begins", "The history of the sea, and of salt: ")


@pytest.fixture(scope="module", params=["tiny", "own"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "own":
        if not os.environ.get(FILE):
            pytest.skip(f"no model of yours is named: set {FILE} to the path of a GGUF file")
        return locate(ModelSpec("own", PathSource(Path(os.environ[FILE]).absolute())))
    folder = tmp_path_factory.mktemp("tiny")
    return write_tiny_gguf(folder / "tiny.gguf", n_ctx=1024, chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[LlamaModel]:
    with LlamaModel(path, LOAD) as opened:
        yield opened


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    return write_tiny_gguf(folder / "other.gguf", words=(" the", " a", "ed"), n_ctx=1024, seed=2)


def spec(*files: Path) -> EnsembleSpec:
    members = tuple(ModelSpec(f"m{n}", PathSource(file), load=LOAD) for n, file in enumerate(files))
    return EnsembleSpec("laws", members, "m0", FusionSettings(mapping="surface"))


def decode(model: LlamaModel, context: Context) -> np.ndarray:
    """Decode what is pending and return the logits."""
    while True:
        run = context.pending(model.n_batch)
        (row,) = model.decode([run])
        context.decoded(run)
        if row is not None:
            return row.copy()


def test_its_file_tells_what_llama_cpp_finds(path: Path, model: LlamaModel) -> None:
    header = read_header(path)
    assert header.n_vocab == len(model.vocabulary)
    assert model.n_ctx == LOAD.context(header.n_ctx_train)
    assert plan(path, LOAD, 1).text_bytes > 0
    assert model.vocabulary.end_ids, "no token ends an answer"


def test_law_12_a_prompt_is_transformers_text_in_llama_cpps_tokens(model: LlamaModel) -> None:
    vocabulary = model.vocabulary
    if model.chat_template is None:
        pytest.skip(f"{model.path.name} has no chat template")
    bos, eos = (vocabulary.spelled(i) for i in (vocabulary.bos_id, vocabulary.eos_id))
    writer, wrong, n_compared = PromptWriter(model), [], 0
    for name, messages in CONVERSATIONS.items():
        text = expected(model.chat_template, messages, bos, eos)
        # What transformers refuses or leaves out is told otherwise here.
        if not isinstance(text, str) or lost(text, messages):
            continue
        ids = llama_cpp_tokens(model, text)
        if vocabulary.add_bos and ids[:1] != [vocabulary.bos_id]:
            ids.insert(0, vocabulary.bos_id)
        n_compared += 1
        if writer.read(messages)[0] != ids:
            wrong.append(name)
    assert wrong == []
    assert n_compared > 5


def test_law_8_what_a_person_types_is_no_control_token(model: LlamaModel) -> None:
    vocabulary, writer = model.vocabulary, PromptWriter(model)
    words = [w for w, i in vocabulary.markers.items() if vocabulary.kinds[i] == Kind.CONTROL][:200]

    def control(said: str) -> list[int]:
        ids = writer.read([Message("user", said)])[0]
        return [i for i in ids if vocabulary.kinds[i] == Kind.CONTROL]

    try:
        plain = control("a")
    except PromptError as problem:
        pytest.skip(f"its template refuses a single question: {problem}")
    assert control(" ".join(words)) == plain
    assert control("".join(words)) == plain
    assert [word for word in words if control(word) != plain] == []


def test_law_2_alone_it_writes_llama_cpps_tokens(path: Path, model: LlamaModel) -> None:
    vocabulary = model.vocabulary
    allowed = vocabulary.speakable.copy()
    allowed[list(vocabulary.end_ids)] = True
    row = PromptWriter(model).read(TEXTS[0])[0]
    model.remove(0, 0)
    made: list[int] = []
    new = row
    while len(made) < 40:
        (logits,) = model.decode([Run(0, len(row) + len(made) - len(new), new)])
        assert logits is not None
        best = int(np.where(allowed, logits, -np.inf).argmax())
        if best in vocabulary.end_ids:
            break
        made.append(best)
        new = [best]
    with open_ensemble(spec(path)) as ensemble:
        ensemble.complete(TEXTS[0], Sampling(max_tokens=40))
        (state,) = ensemble._engine._states[0]
        assert list(state.cache.tokens[state.cache._n_prompt :])[: len(made)] == made


def test_law_7_logits_after_other_texts_are_those_of_a_fresh_context(model: LlamaModel) -> None:
    encode = model.tokenizer.encode
    bos = [model.vocabulary.bos_id] if model.vocabulary.add_bos else []
    context = Context(model)
    model.remove(0, 0)
    for text in (*TEXTS, TEXTS[0] * 3, TEXTS[1]):
        context.start([*bos, *encode(text.encode())])
        decode(model, context)
        for piece in (b" the", b" sea, and", b" the light", b"house is"):
            context.append(piece)
            found = decode(model, context)
    tokens = list(context.tokens)
    rows = []
    for size in (len(tokens), 1):
        model.remove(0, 0)
        for start in range(0, len(tokens), size):
            (row,) = model.decode([Run(0, start, tokens[start : start + size])])
        assert row is not None
        rows.append(row.copy())
    rounding = np.abs(rows[0] - rows[1]).max()
    assert np.abs(found - rows[0]).max() <= 2 * rounding + 0.01
    assert np.corrcoef(found, rows[0])[0, 1] > 0.999


@pytest.mark.parametrize("is_pivot", [True, False])
def test_law_1_members_agree_in_bytes(path: Path, other: Path, is_pivot: bool) -> None:
    files = (path, other) if is_pivot else (other, path)
    with open_ensemble(spec(*files)) as ensemble:
        for seed in range(3):
            sampling = Sampling(max_tokens=30, temperature=1.5, seed=seed)
            answer = ensemble.complete(TEXTS[1], sampling)
            states = ensemble._engine._states[0]
            texts = {bytes(state.cache.text) for state in states}
            for state, model in zip(states, ensemble._models, strict=True):
                assert (
                    model.vocabulary.join(state.cache.tokens[state.cache._n_prompt :])
                    == state.cache.text
                )
            assert len(texts) == 1
            assert texts.pop().decode("utf-8", "replace").startswith(answer.text.rstrip("\ufffd"))


def test_law_6_same_seed_same_text(path: Path) -> None:
    """From equal caches: what is cached is decoded in other batches, which round otherwise."""
    texts = []
    for _ in range(2):
        with open_ensemble(spec(path)) as ensemble:
            answer = ensemble.complete(TEXTS[0], Sampling(max_tokens=20, temperature=1.0, seed=5))
            texts.append(answer.text)
    assert texts[0] == texts[1]
