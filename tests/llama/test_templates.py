"""Prompts beside transformers' own template engine and llama.cpp's own tokeniser.

The templates and vocabularies are llama.cpp's, from the source that `make setup` keeps.
"""

from __future__ import annotations

import ctypes
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llama_cpp.llama_cpp as llama
import pytest
from conversations import CONVERSATIONS
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import awkward_text
from transformers.utils.chat_template_utils import render_jinja_template

from eva_local.errors import PromptError
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.prompt import PromptWriter
from eva_local.llama.tokenizer import Tokenizer
from eva_local.llama.vocab import Kind, Vocabulary
from eva_local.types import Message
from tools import build_llama
from tools.recipe import REQUIREMENT, pinned

ROOT = Path(__file__).parents[2]
# Of a few hundred names in these templates; each must stay text where a person types it.
CONTROL = re.compile(r"<[|｜][^<>\s{}'\"]+[|｜]>|\[/?[A-Z_]{3,}\]|</?s>|<(?:start|end)_of_turn>")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


@pytest.fixture(scope="module")
def templates(models: Path) -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(models.glob("*.jinja"))}


def byte_model(template: str, control: Sequence[str] = ()) -> Any:
    """A model whose tokens are bytes, and control tokens."""
    names = list(dict.fromkeys(("<s>", "</s>", *control)))
    vocabulary = Vocabulary(
        [bytes([byte]) for byte in range(256)] + [b""] * len(names),
        [Kind.NORMAL] * 256 + [Kind.CONTROL] * len(names),
        [257],
        bos_id=256,
        eos_id=257,
        markers={name: 256 + number for number, name in enumerate(names)},
    )
    return SimpleNamespace(
        path=Path("bytes.gguf"),
        vocabulary=vocabulary,
        tokenizer=Tokenizer(vocabulary, list),
        chat_template=template,
    )


def told(writer: PromptWriter, vocabulary: Vocabulary, messages: Sequence[Message]) -> str:
    """Return what a model is given, as text."""
    ids = writer.tokens(messages)
    return b"".join(vocabulary.pieces[i] or vocabulary.spelled(i).encode() for i in ids).decode()


def expected(
    template: str, messages: Sequence[Message], bos: str = "<s>", eos: str = "</s>", **named: Any
) -> str | Exception:
    """Return what transformers makes of it, as `apply_chat_template` calls its engine."""
    is_open = messages[-1].role == "assistant"
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        texts, _ = render_jinja_template(
            [turns],
            chat_template=template,
            continue_final_message=is_open,
            add_generation_prompt=not is_open,
            bos_token=bos,
            eos_token=eos,
            **named,
        )
    except Exception as problem:  # noqa: BLE001
        return problem
    return str(texts[0])


def lost(text: str, messages: Sequence[Message]) -> bool:
    """Whether a message is nowhere in a text, not even its last line."""
    lines = (message.content.strip().rpartition("\n")[2] for message in messages)
    return any(re.sub(r"\s*/(no_)?think|.*</?think>", "", line) not in text for line in lines)


def outcome(ours: str | PromptError, theirs: str | Exception, messages: Sequence[Message]) -> str:
    if isinstance(theirs, str) and ours == theirs:
        return "equal"
    if isinstance(ours, PromptError):
        return "refused by us alone" if isinstance(theirs, str) else "refused by both"
    if lost(ours, messages):
        return "a message lost"
    if isinstance(theirs, str):
        return "without a message there" if lost(theirs, messages) else "different"
    return "refused there alone"


def test_law_12_a_prompt_is_what_transformers_writes(templates: dict[str, str]) -> None:
    found: dict[str, list[str]] = {}
    for name, template in templates.items():
        model = byte_model(template)
        writer = PromptWriter(model)
        for conversation, messages in CONVERSATIONS.items():
            theirs = expected(template, messages)
            ours: str | PromptError
            try:
                ours = told(writer, model.vocabulary, messages)
            except PromptError as problem:
                ours = problem
            which = f"{name}: {conversation}"
            found.setdefault(outcome(ours, theirs, messages), []).append(which)
    for outlaw in ("different", "a message lost", "refused by us alone"):
        assert found.get(outlaw, []) == []
    # docs/models.md tells these numbers.
    assert {name: len(each) for name, each in found.items()} == {
        "equal": 1900,
        "without a message there": 30,
        "refused there alone": 136,
        "refused by both": 34,
    }


class Writers:
    """Templates that take any system message and turns, compiled once."""

    def __init__(self, templates: dict[str, str]) -> None:
        usual = [CONVERSATIONS[name] for name in ("turns", "an open answer with a space")]
        self.all = [
            (each, PromptWriter(byte_model(each)))
            for each in templates.values()
            if not any(lost(str(expected(each, messages)), messages) for messages in usual)
        ]


@pytest.fixture(scope="module")
def writers(templates: dict[str, str]) -> Writers:
    return Writers(templates)


@settings(max_examples=300)
@given(
    number=st.integers(0, 99),
    system=awkward_text,
    said=st.lists(awkward_text, min_size=1, max_size=4),
)
def test_law_12_holds_whatever_is_said(
    writers: Writers, number: int, system: str, said: list[str]
) -> None:
    template, writer = writers.all[number % len(writers.all)]
    roles = ("user", "assistant")
    messages = [Message(roles[turn % 2], text) for turn, text in enumerate(said)]
    messages.insert(0, Message("system", system))
    theirs = expected(template, messages)
    # Ministral's refuses empty answers.
    if isinstance(theirs, str):
        assert told(writer, byte_model("").vocabulary, messages) == theirs


def test_law_8_what_looks_like_a_control_token_stays_text(templates: dict[str, str]) -> None:
    n_words = 0
    for name, template in templates.items():
        words = sorted(set(CONTROL.findall(template)))
        n_words += len(words)
        model = byte_model(template, words)
        writer = PromptWriter(model)

        def control(role: str, content: str, writer: PromptWriter = writer) -> list[int]:
            try:
                ids = writer.tokens([Message(role, content), Message("user", "b")])
            except PromptError:
                return []
            return [i for i in ids if i >= 256]

        typed = ["".join(words), "\n".join(words), " ".join(words)]
        # Halves that meet where a template takes out what stands between them.
        for hole in ("/think", "/no_think", "<think>", "</think>", " "):
            typed += [word[:at] + hole + word[at:] for word in words[:4] for at in (1, 2, -1)]
        for role in ("system", "user"):
            plain = control(role, "a")
            for content in typed:
                assert control(role, content) == plain, (name, role, content)
    assert n_words > 300


@pytest.fixture(scope="module")
def vocabularies(models: Path) -> Iterator[dict[str, LlamaModel]]:
    """Those of models that predict a next token."""
    names = [path for path in sorted(models.glob("*.gguf")) if "bert" not in path.stem]
    opened = {path.stem: LlamaModel(path, vocabulary_only=True) for path in names}
    yield opened
    for model in opened.values():
        model.close()


def llama_cpp_tokens(model: LlamaModel, text: str) -> list[int]:
    data = text.encode()
    buffer = (ctypes.c_int32 * (len(data) + 2))()
    count = llama.llama_tokenize(
        model._file.vocab, data, len(data), buffer, len(buffer), False, True
    )
    return buffer[:count]


def test_law_12_a_prompt_has_the_tokens_of_llama_cpp(
    templates: dict[str, str], vocabularies: dict[str, LlamaModel]
) -> None:
    wrong, n_equal = [], Counter[str]()
    names = list(CONVERSATIONS)
    for number, (name, model) in enumerate(vocabularies.items()):
        vocabulary = model.vocabulary
        bos, eos = (vocabulary.spelled(i) for i in (vocabulary.bos_id, vocabulary.eos_id))
        # Each vocabulary with a third of the templates, each of these with three conversations.
        for turn, template_name in enumerate(list(templates)[number % 3 :: 3]):
            template = model.chat_template = templates[template_name]
            writer = PromptWriter(model)
            for step in range(3):
                conversation = names[(number + 7 * turn + 11 * step) % len(names)]
                messages = CONVERSATIONS[conversation]
                text = expected(template, messages, bos, eos)
                if not isinstance(text, str) or lost(text, messages):
                    continue
                ids = llama_cpp_tokens(model, text)
                if vocabulary.add_bos and ids[:1] != [vocabulary.bos_id]:
                    ids.insert(0, vocabulary.bos_id)
                if writer.tokens(messages) == ids:
                    n_equal[name] += 1
                else:
                    wrong.append(f"{name}: {template_name}: {conversation}")
    assert wrong == []
    # docs/models.md tells these numbers.
    assert (len(n_equal), n_equal.total()) == (17, 1081)


def test_law_12_a_text_has_the_tokens_of_llama_cpp(vocabularies: dict[str, LlamaModel]) -> None:
    """SentencePiece's space in front belongs to them."""
    for name, model in vocabularies.items():
        vocabulary = model.vocabulary
        for text in ("Hello, world!", " x", "\n\ny", "Ünï 中文 😀", "a\u2581b"):
            ids = llama_cpp_tokens(model, text)
            if vocabulary.add_bos:
                ids.insert(0, vocabulary.bos_id)
            assert PromptWriter(model).tokens(text) == ids, (name, text)


def test_white_space_beside_tokens_of_phi_3_goes(vocabularies: dict[str, LlamaModel]) -> None:
    model = vocabularies["ggml-vocab-phi-3"]
    markers = model.vocabulary.markers
    assert markers["<|user|>"] in model.vocabulary.strips_right
    model.chat_template = "<|user|>\n{{ messages[0].content }}<|end|>\n<|assistant|>\n"
    ids = PromptWriter(model).tokens([Message("user", "Hi")])
    written = [markers.get(name) for name in ("<|user|>", "<|end|>", "<|assistant|>")]
    assert [i for i in ids if not model.vocabulary.speakable[i]][-3:] == written
    assert model.vocabulary.join(ids) == b" Hi"
