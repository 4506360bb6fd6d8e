"""What one call asks of a server: several answers, perhaps streamed, scored or explained."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

from eva_local.engine.request import Weights
from eva_local.errors import InputError
from eva_local.llama.prompt import Prompt
from eva_local.openai.keys import given, refuse_keys_within, refuse_other_keys, shown
from eva_local.openai.request import (
    BODY_KEYS,
    CHAT,
    TEXT_BIAS,
    read_biases,
    read_messages,
    read_wishes,
    said,
)
from eva_local.types import Sampling

#: Answers that one call can ask for at most.
MOST_ANSWERS = 128
#: Stop strings and biases are looked at again in every step, beside all other answers.
MOST_STOPS = 16
LONGEST_STOP = 256
MOST_BIASES = 1024
#: Characters of a grammar or schema at most.
LONGEST_GRAMMAR = 64 * 1024

#: What a server can do beside what `read_wishes` reads.
OWN_KEYS = ("n", "stream", "stream_options", "echo", "trace", "weights", "logit_bias", "model")
# OpenAI pads the parts of a stream; padding says nothing of the answer.
_STREAM_KEYS = ("include_usage", "include_obfuscation")

# Returns the bytes of a token of the shared space; InputError where it has no text.
PieceOf = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Tokens of the shared space in place of a text."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """`n` answers to each of the prompts; with `echo` they begin with the prompt itself.

    `n_top` as in `Asked`. Where `scored` nothing is written: the prompt alone is echoed.
    `trace` asks why each token was chosen, `weights` weighs the members otherwise than the
    ensemble does.
    """

    prompts: tuple[Prompt | TokenIds, ...]
    sampling: Sampling
    n_top: int | None = None
    n: int = 1
    echo: bool = False
    scored: bool = False
    stream: bool = False
    include_usage: bool = False
    trace: bool = False
    weights: Weights | None = None

    @property
    def n_answers(self) -> int:
        """How many answers are asked for."""
        return len(self.prompts) * self.n

    def seeded(self, sample: int) -> Sampling:
        """Return how the answer number `sample` to a prompt is drawn: not as the one before."""
        if self.sampling.seed is None or not sample:
            return self.sampling
        return replace(self.sampling, seed=self.sampling.seed + sample)


def read_call(
    body: Mapping[str, object],
    endpoint: str,
    defaults: Sampling,
    *,
    piece_of: PieceOf,
    members: Sequence[str],
) -> Call:
    """Read the body of a call to an endpoint; `defaults` are what it does not say.

    Raises InputError and ConfigError where it asks for something that cannot be done.
    """
    body = said(body)
    refuse_other_keys(body, {*BODY_KEYS, *OWN_KEYS})
    own = {key: body.pop(key) for key in OWN_KEYS if key in body}
    if endpoint == CHAT and own.get("echo"):
        raise InputError("echo: a conversation is not repeated; leave it out")
    echo = _flag(own, "echo")
    scored = echo and body.get("max_tokens") == 0
    if scored:
        del body["max_tokens"]
    if "logit_bias" in own:
        body[TEXT_BIAS] = _text_biases(own["logit_bias"], piece_of, body.get(TEXT_BIAS))
    sampling, n_top = read_wishes(body, endpoint, defaults)
    _refuse_too_much(sampling)
    call = Call(
        prompts=tuple(_prompts(body, endpoint)),
        sampling=sampling,
        n_top=n_top,
        n=_count(own),
        echo=echo,
        scored=scored,
        stream=_flag(own, "stream"),
        include_usage=_include_usage(own),
        trace=_flag(own, "trace"),
        weights=read_weights(own.get("weights"), members),
    )
    if call.n_answers > MOST_ANSWERS:
        raise InputError(f"n: {call.n_answers} answers are asked for, and {MOST_ANSWERS} can be")
    return call


def read_ids(value: object, key: str) -> TokenIds:
    """Read tokens of the shared space; raise InputError for what is none."""
    if not isinstance(value, list) or not all(_is_whole(each) and each >= 0 for each in value):
        raise InputError(f"{key} must be a list of token ids")
    return TokenIds(tuple(value))


def is_ids(value: object) -> bool:
    """Return whether a value is meant as token ids; an empty list is."""
    return isinstance(value, list) and all(_is_whole(each) for each in value)


def _prompts(body: Mapping[str, object], endpoint: str) -> Iterator[Prompt | TokenIds]:
    if endpoint == CHAT:
        yield read_messages(body.get("messages"))
        return
    value = body.get("prompt")
    for each in value if isinstance(value, list) and not is_ids(value) else [value]:
        if isinstance(each, str):
            yield each
        elif is_ids(each) and each:
            yield read_ids(each, "prompt")
        else:
            raise InputError("prompt must be a text, a list of token ids, or a list of these")


def _count(own: Mapping[str, object]) -> int:
    n = own.get("n", 1)
    if not _is_whole(n) or not 1 <= n <= MOST_ANSWERS:
        raise InputError(f"n must be from 1 to {MOST_ANSWERS}, not {shown(n)}")
    return n


def _include_usage(own: Mapping[str, object]) -> bool:
    options = own.get("stream_options", {})
    if not isinstance(options, dict):
        raise InputError("stream_options must be an object")
    if options and not own.get("stream"):
        raise InputError("stream_options needs stream true")
    refuse_keys_within(options, _STREAM_KEYS, "stream_options")
    return _flag(given(options), "include_usage")


def _flag(values: Mapping[str, object], key: str) -> bool:
    value = values.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"{key} must be true or false, not {shown(value)}")
    return value


def read_weights(value: object, members: Sequence[str]) -> Weights | None:
    """Read what each member is to count; raise InputError for what is no weights of theirs."""
    if value is None or value == "equal" or value == "running":
        return value
    if isinstance(value, dict) and value.keys() == set(members):
        value = [value[name] for name in members]
    if (
        isinstance(value, list)
        and len(value) == len(members)
        and all(_is_number(each) and 0 <= each <= sys.float_info.max for each in value)
        and 0 < sum(map(float, value)) < math.inf
    ):
        return tuple(float(each) for each in value)
    raise InputError(
        "weights must be equal, running, or numbers from 0 up, with a sum above 0 that is "
        f"finite, one for each of {', '.join(members)}; not {shown(value)}"
    )


def _text_biases(value: object, piece_of: PieceOf, texts: object) -> dict[str, object]:
    """Return biases of token ids as biases of the texts that they stand for."""
    if not isinstance(value, dict):
        raise InputError("logit_bias must be an object of token ids with a number each")
    biases: dict[str, object] = {} if texts is None else dict(read_biases(texts))
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise InputError(
                f"logit_bias {shown(key)} is no token id (see /tokenize); {TEXT_BIAS} takes texts"
            )
        try:
            text = piece_of(int(key)).decode()
        except (InputError, UnicodeDecodeError):
            text = ""
        if not text:
            raise InputError(f"logit_bias {key}: no token, or one that is no whole text of its own")
        if text in biases and _as_bias(biases[text]) != _as_bias(bias):
            raise InputError(f"logit_bias {key}: {shown(text)} has another bias, too: give one")
        biases[text] = bias
    return biases


def _as_bias(value: object) -> tuple[object, bool]:
    """Return a bias as it can be compared: false forbids, which 0 does not."""
    return value, value is False


def _refuse_too_much(sampling: Sampling) -> None:
    if len(sampling.stop) > MOST_STOPS or any(len(stop) > LONGEST_STOP for stop in sampling.stop):
        raise InputError(
            f"stop: at most {MOST_STOPS} texts of {LONGEST_STOP} characters can be looked for"
        )
    if len(sampling.logit_bias) > MOST_BIASES:
        raise InputError(f"logit_bias: at most {MOST_BIASES} tokens can be biased")
    for key in ("grammar", "json_schema"):
        if len(getattr(sampling, key) or "") > LONGEST_GRAMMAR:
            raise InputError(f"{key}: at most {LONGEST_GRAMMAR} characters can be obeyed")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
