"""What one call asks of a server: several answers, perhaps streamed, scored or explained."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from eva_local.engine.grammar import Calls
from eva_local.engine.request import AnyPrompt, Weights
from eva_local.errors import InputError
from eva_local.openai import shapes
from eva_local.openai.request import CHAT, Values, conversation, read_request, said
from eva_local.openai.tools import calls_of, told
from eva_local.reading import ReadError, shown
from eva_local.types import Sampling

#: Stop strings and biases are looked at again in every step, beside all other answers.
MOST_STOPS = 16
LONGEST_STOP = 256
MOST_BIASES = 1024
#: Characters of a grammar or schema at most.
LONGEST_GRAMMAR = 64 * 1024
# The bytes of a token.
PieceOf = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Call:
    """A request, with `request.n` answers to each of the prompts.

    Where `scored` nothing is written: the prompt alone is echoed. `weights` weighs the members
    otherwise than the ensemble does. `calls` of functions are what answers may be.
    """

    request: shapes.AnyRequest
    prompts: tuple[AnyPrompt, ...]
    sampling: Sampling
    scored: bool = False
    weights: Weights | None = None
    calls: Calls | None = None

    @property
    def n_answers(self) -> int:
        """How many answers are asked for."""
        return len(self.prompts) * self.request.n

    def seeded(self, sample: int) -> Sampling:
        """Return how the answer number `sample` to a prompt is drawn: not as the one before."""
        if self.sampling.seed is None or not sample:
            return self.sampling
        return replace(self.sampling, seed=self.sampling.seed + sample)


def read_call(
    body: Values, endpoint: str, defaults: Sampling, *, piece_of: PieceOf, members: Sequence[str]
) -> Call:
    """Read the body of a call; `piece_of` gives a token's bytes. Raises InputError."""
    body = said(body)
    if endpoint == CHAT and body.get("echo"):
        raise InputError("echo: a conversation is not repeated; leave it out")
    scored = body.get("echo") is True and body.get("max_tokens") == 0
    if scored:
        del body["max_tokens"]
    request, sampling = read_request(body, endpoint, defaults)
    if request.logit_bias is not None:
        sampling = replace(sampling, logit_bias=_text_biases(request.logit_bias, piece_of))
    _refuse_too_much(sampling)
    if request.stream_options is not None and not request.stream:
        raise InputError("stream_options needs stream true")
    prompts: tuple[AnyPrompt, ...]
    calls = None
    if not isinstance(request, shapes.ChatRequest):
        prompts = texts_of(request.prompt, "prompt")
    elif request.calls:
        prompts = (told(conversation(request.messages), request.tools),)
        several = request.parallel_tool_calls
        calls = calls_of(request.tools, request.tool_choice, several=several)
        if calls.due:
            sampling = replace(sampling, json_schema=None, grammar=None)
    else:
        prompts = (conversation(request.messages),)
    weights = weights_of(request.weights, members)
    call = Call(request, prompts, sampling, scored, weights, calls)
    if call.n_answers > shapes.MOST_ANSWERS:
        raise InputError(
            f"n: {call.n_answers} answers are asked for, and {shapes.MOST_ANSWERS} can be"
        )
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
        raise ReadError(key, f"must be {shapes.SEVERAL}, not {shown(value)}")
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
        raise InputError(
            f"weights must be {shapes.WEIGHTS} of {', '.join(members)}; not {shown(given)}"
        )
    return weights


def _text_biases(biases: shapes.Biases, piece_of: PieceOf) -> shapes.Biases:
    found: shapes.Biases = {}
    for key, bias in biases.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise InputError(f"logit_bias {shown(key)} is no token id (see /tokenize)")
        try:
            text = piece_of(int(key)).decode()
        except (InputError, UnicodeDecodeError):
            text = ""
        if not text:
            raise InputError(f"logit_bias {key}: no token, or one that is no whole text of its own")
        if text in found:
            raise InputError(f"logit_bias {key}: {shown(text)} has a bias already: give one")
        found[text] = bias
    return found


def _refuse_too_much(sampling: Sampling) -> None:
    if len(sampling.stop) > MOST_STOPS or any(len(stop) > LONGEST_STOP for stop in sampling.stop):
        raise InputError(
            f"stop: at most {MOST_STOPS} texts of {LONGEST_STOP} characters can be looked for"
        )
    if len(sampling.logit_bias) > MOST_BIASES:
        raise InputError(f"logit_bias: at most {MOST_BIASES} tokens can be biased")
    for key in ("grammar", "json_schema", "chat_template"):
        if len(getattr(sampling, key) or "") > LONGEST_GRAMMAR:
            raise InputError(f"{key}: at most {LONGEST_GRAMMAR} characters can be obeyed")
