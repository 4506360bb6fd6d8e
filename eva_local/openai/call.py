"""What one call asks of a server: several answers, perhaps streamed, scored or explained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from eva_local.engine.request import AnyPrompt, Weights
from eva_local.errors import InputError
from eva_local.openai.request import CHAT, TEXT_BIAS, conversation, n_top, read_request, said
from eva_local.openai.shapes import (
    MOST_ANSWERS,
    SEVERAL,
    WEIGHTS,
    AnswerRequest,
    Biases,
    ChatRequest,
    CompletionRequest,
)
from eva_local.reading import ReadError, shown
from eva_local.types import Sampling

#: Stop strings and biases are looked at again in every step, beside all other answers.
MOST_STOPS = 16
LONGEST_STOP = 256
MOST_BIASES = 1024
#: Characters of a grammar or schema at most.
LONGEST_GRAMMAR = 64 * 1024


@dataclass(frozen=True, slots=True)
class Call:
    """`n` answers to each of the prompts; with `echo` they begin with the prompt itself.

    `n_top` as in `Asked`. Where `scored` nothing is written: the prompt alone is echoed.
    `trace` asks why each token was chosen, `weights` weighs the members otherwise than the
    ensemble does.
    """

    prompts: tuple[AnyPrompt, ...]
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
    piece_of: Callable[[int], bytes],
    members: Sequence[str],
) -> Call:
    """Read the body of a call to an endpoint; `defaults` are what it does not say.

    `piece_of` returns the bytes of a token, and raises InputError where it has no text.
    Raises InputError where it asks for something that cannot be done.
    """
    body = said(body)
    if endpoint == CHAT and body.get("echo"):
        raise InputError("echo: a conversation is not repeated; leave it out")
    scored = body.get("echo") is True and body.get("max_tokens") == 0
    if scored:
        del body["max_tokens"]
    request, sampling = read_request(body, endpoint, defaults)
    if request.logit_bias is not None or request.text_bias is not None:
        sampling = replace(sampling, logit_bias=_text_biases(request, piece_of))
    _refuse_too_much(sampling)
    if request.stream_options is not None and not request.stream:
        raise InputError("stream_options needs stream true")
    call = Call(
        prompts=(
            (conversation(request.messages),)
            if isinstance(request, ChatRequest)
            else texts_of(request.prompt, "prompt")
        ),
        sampling=sampling,
        n_top=n_top(request),
        n=request.n,
        echo=isinstance(request, CompletionRequest) and request.echo,
        scored=scored,
        stream=request.stream,
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
        trace=request.trace,
        weights=weights_of(request.weights, members),
    )
    if call.n_answers > MOST_ANSWERS:
        raise InputError(f"n: {call.n_answers} answers are asked for, and {MOST_ANSWERS} can be")
    return call


def texts_of(
    value: str | Sequence[int | str | Sequence[int]], key: str
) -> tuple[str | tuple[int, ...], ...]:
    """Return texts and lists of token ids: one of them where `value` is one."""
    if isinstance(value, str):
        return (value,)
    ids = tuple(each for each in value if isinstance(each, int))
    texts = [each for each in value if not isinstance(each, int)]
    if not texts:
        return (ids,)
    if ids:
        raise ReadError(key, f"must be {SEVERAL}, not {shown(value)}")
    return tuple(each if isinstance(each, str) else tuple(each) for each in texts)


def weights_of(value: Weights | dict[str, float] | None, members: Sequence[str]) -> Weights | None:
    """Return what each member is to count; raise InputError for what is no weights of theirs."""
    if value is None or isinstance(value, str):
        return value
    weights = value
    if isinstance(value, dict) and value.keys() == set(members):
        weights = tuple(value[name] for name in members)
    if isinstance(weights, dict) or len(weights) != len(members) or not 0 < sum(weights) < math.inf:
        given = list(value) if isinstance(value, tuple) else value
        raise InputError(f"weights must be {WEIGHTS} of {', '.join(members)}; not {shown(given)}")
    return weights


def _text_biases(request: AnswerRequest, piece_of: Callable[[int], bytes]) -> Biases:
    """Return all biases as biases of texts, for token ids of those that they stand for."""
    biases = dict(request.text_bias or {})
    for key, bias in (request.logit_bias or {}).items():
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
        other = biases.get(text, bias)
        # False forbids, which 0 does not.
        if (other, other is False) != (bias, bias is False):
            raise InputError(f"logit_bias {key}: {shown(text)} has another bias, too: give one")
        biases[text] = bias
    return biases


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
