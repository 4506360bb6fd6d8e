"""Texts that are scored: what a call asks for, and what it gets. OpenAI has nothing like it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eva_local.engine.request import Weights
from eva_local.errors import InputError
from eva_local.llama.prompt import Prompt
from eva_local.openai.answer import chat_tokens, tokens_of
from eva_local.openai.call import (
    MOST_ANSWERS,
    TokenIds,
    is_ids,
    read_ids,
    read_weights,
)
from eva_local.openai.keys import given, refuse_other_keys
from eva_local.openai.request import read_messages, read_n_top
from eva_local.types import Score

_KEYS = ("model", "prompt", "messages", "continuation", "logprobs", "weights")


@dataclass(frozen=True, slots=True)
class ScoreCall:
    """Texts that are to be scored after a prompt; `n_top` and `weights` as in `Call`."""

    prompt: Prompt | TokenIds
    continuations: tuple[str | TokenIds, ...]
    n_top: int | None = None
    weights: Weights | None = None


def read_score_call(body: Mapping[str, object], members: Sequence[str]) -> ScoreCall:
    """Read a body; raise InputError and ConfigError where it asks for what cannot be done."""
    body = given(body)
    refuse_other_keys(body, _KEYS)
    if "messages" in body and "prompt" in body:
        raise InputError("prompt and messages exclude each other: give one")
    if "messages" in body:
        prompt: Prompt | TokenIds = read_messages(body["messages"])
    else:
        prompt = _text(body.get("prompt", ""), "prompt")
    value = body.get("continuation")
    several = value if isinstance(value, list) and not is_ids(value) else [value]
    if not 1 <= len(several) <= MOST_ANSWERS:
        raise InputError(f"continuation: from 1 to {MOST_ANSWERS} texts can be scored at once")
    return ScoreCall(
        prompt=prompt,
        continuations=tuple(_text(each, "continuation") for each in several),
        n_top=read_n_top(body.get("logprobs")),
        weights=read_weights(body.get("weights"), members),
    )


def scored(score: Score, index: int, members: Sequence[str], *, told: bool) -> dict[str, object]:
    """Return a score; `told` adds its tokens. Log-likelihoods are in nats."""
    result: dict[str, object] = {
        "index": index,
        "object": "score",
        "log_likelihood": score.log_likelihood,
        "per_byte": score.per_byte,
        "n_bytes": score.n_bytes,
        "n_tokens": score.n_symbols,
        "unseen": score.unseen,
        "members": dict(zip(members, score.members, strict=True)),
    }
    return result | {"logprobs": chat_tokens(tokens_of(score.symbols))} if told else result


def _text(value: object, key: str) -> str | TokenIds:
    if isinstance(value, str):
        return value
    if is_ids(value):
        return read_ids(value, key)
    raise InputError(f"{key} must be a text, or a list of token ids")
