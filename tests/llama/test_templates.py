"""Prompts beside transformers' own template engine and llama.cpp's own tokeniser.

The templates and vocabularies are llama.cpp's, from the source that `make setup` keeps.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conversations import CONVERSATIONS
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import expected, llama_cpp_tokens, lost
from strategies import awkward_text

from eva_local.errors import PromptError
from eva_local.llama.chat_template import ChatTemplate, Thinker
from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.prompt import PromptWriter
from eva_local.llama.tokenizer import Tokenizer
from eva_local.llama.vocab import Kind, Vocabulary
from eva_local.types import Message

ROOT = Path(__file__).parents[2]
# Of a few hundred names in these templates; each must stay text where a person types it.
MODES = ("auto", "off", "on")
ASKED = [Message("user", "a question")]
CONTROL = re.compile(r"<[|｜][^<>\s{}'\"]+[|｜]>|\[/?[A-Z_]{3,}\]|</?s>|<(?:start|end)_of_turn>")


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
    ids = writer.read(messages)[0]
    return b"".join(vocabulary.pieces[i] or vocabulary.spelled(i).encode() for i in ids).decode()


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
                ids = writer.read([Message(role, content), Message("user", "b")])[0]
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
def vocabularies(llama_models: Path) -> Iterator[dict[str, LlamaModel]]:
    """Those of models that predict a next token."""
    names = [path for path in sorted(llama_models.glob("*.gguf")) if "bert" not in path.stem]
    opened = {path.stem: LlamaModel(path, vocabulary_only=True) for path in names}
    yield opened
    for model in opened.values():
        model.close()


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
                if writer.read(messages)[0] == ids:
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
            assert PromptWriter(model).read(text)[0] == ids, (name, text)


def test_white_space_beside_tokens_of_phi_3_goes(vocabularies: dict[str, LlamaModel]) -> None:
    model = vocabularies["ggml-vocab-phi-3"]
    markers = model.vocabulary.markers
    assert markers["<|user|>"] in model.vocabulary.strips_right
    model.chat_template = "<|user|>\n{{ messages[0].content }}<|end|>\n<|assistant|>\n"
    ids = PromptWriter(model).read([Message("user", "Hi")])[0]
    written = [markers.get(name) for name in ("<|user|>", "<|end|>", "<|assistant|>")]
    assert [i for i in ids if not model.vocabulary.speakable[i]][-3:] == written
    assert model.vocabulary.join(ids) == b" Hi"


#: How a prompt of each ends: untold, told not to think, told to.
ENDS = {
    "Qwen3.5-4B": ("<think>\n", "<think>\n\n</think>\n\n", "<think>\n"),
    "Qwen-Qwen3-0.6B": ("<think>\n", "<think>\n\n</think>\n\n", "<think>\n"),
    "openai-gpt-oss-120b": (
        "<|channel|>analysis<|message|>",
        "<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>",
        "<|channel|>analysis<|message|>",
    ),
    "llama-cpp-deepseek-r1": ("<think>\n", "<think>\n\n</think>\n\n", "<think>\n"),
    "mistralai-Ministral-3-14B-Reasoning-2512": ("[THINK]", "[THINK][/THINK]", "[THINK]"),
    "google-gemma-4-31B-it": (
        "<|channel>thought\n<channel|>",
        "<|channel>thought\n<channel|>",
        "model\n<|channel>thought\n",
    ),
    "GLM-4.6": ("<|assistant|><think>\n", "<think></think>", "<|assistant|><think>\n"),
    "GLM-4.7-Flash": ("<|assistant|><think>", "<|assistant|></think>", "<|assistant|><think>"),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": ("<think>\n", "<think></think>", "<think>\n"),
    "NVIDIA-Nemotron-Nano-v2": ("<think>\n", "<think>\n\n</think>\n\n", "<think>\n"),
    "ByteDance-Seed-OSS": ("<seed:think>\n", "<seed:think>\n\n</seed:think>\n\n", "<seed:think>\n"),
    "Kimi-K3": ("<|open|>think<|sep|>", "<|open|>response<|sep|>", "<|open|>think<|sep|>"),
    "MiniMax-M3": ("ai\n", "ai\n</mm:think>", "ai\n<mm:think>"),
    "tencent-Hy3": (
        "<think:opensource></think:opensource>",
        "<think:opensource></think:opensource>",
        "<｜hy_Assistant:opensource｜><think:opensource>\n",
    ),
    "upstage-Solar-Open-100B": (
        "<|think|>",
        "<|think|><|end|><|begin|>assistant<|content|>",
        "<|think|>",
    ),
    "deepseek-ai-DeepSeek-V3.1": ("<think></think>", "<think></think>", "<think>"),
    "Qwen3-Coder": ("assistant\n", "assistant\n", "assistant\n"),
}
#: Those that know no thoughts, or take them out of what was said before and write none.
THOUGHTLESS = 27


def test_each_template_opens_a_thought_or_closes_it_as_its_model_was_taught(
    templates: dict[str, str],
) -> None:
    found, thoughtless = {}, set()
    for name, source in templates.items():
        template = ChatTemplate(source, name, {"bos_token": "<s>", "eos_token": "</s>"})
        thinker = Thinker(template)
        if thinker.marks is None:
            thoughtless.add(name)
        for mode in MODES if thinker.marks else ():
            text = template.write(ASKED, thinker.arguments(mode), "")
            ended, is_open = thinker.ended(text, mode)
            assert is_open == (mode == "on" or (mode == "auto" and thinker.thinks)), name
            assert ended.rstrip().endswith(thinker.marks.begin.rstrip()) == is_open, name
            found[name, mode] = ended
    assert len(thoughtless) == THOUGHTLESS, sorted(thoughtless)
    for name, ends in ENDS.items():
        for mode, end in zip(MODES, ends, strict=True):
            assert name in thoughtless or found[name, mode].endswith(end), (name, mode)


def test_the_table_of_how_each_template_is_told_stands_in_docs(templates: dict[str, str]) -> None:
    rows: dict[tuple[str, str], list[str]] = {}
    for name in sorted(templates, key=str.lower):
        thinker = Thinker(
            ChatTemplate(templates[name], name, {"bos_token": "<s>", "eos_token": "</s>"})
        )
        told = ", ".join(f"`{argument}`" for argument in thinker.arguments("on"))
        kind = (told or "cannot be told", "thinks" if thinker.thinks else "does not think")
        rows.setdefault(kind if thinker.marks else ("knows no thoughts", "–"), []).append(name)
    table = "".join(
        f"| {told} | {untold} | {len(names)} | {', '.join(names)} |\n"
        for (told, untold), names in sorted(rows.items(), key=lambda row: (-len(row[1]), row))
    )
    # What failed shows the table as it must be.
    assert table in (ROOT / "docs/models.md").read_text(encoding="utf-8")
