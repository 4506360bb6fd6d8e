"""Prompts as transformers' template engine and llama.cpp's tokeniser write them."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as llama
from transformers.utils.chat_template_utils import render_jinja_template

from eva_local.llama.llama_model import LlamaModel
from eva_local.types import Message


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


def llama_cpp_tokens(model: LlamaModel, text: str) -> list[int]:
    data = text.encode()
    buffer = (ctypes.c_int32 * (len(data) + 2))()
    count = llama.llama_tokenize(
        model._file.vocab, data, len(data), buffer, len(buffer), False, True
    )
    return buffer[:count]
