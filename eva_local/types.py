"""Frozen records that cross module borders."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from reprlib import repr as shortened
from typing import Any, Literal

from eva_local.errors import InputError

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn from the fused distribution.

    temperature 0 is greedy; then top_k, top_p and min_p have no effect. top_k 0, top_p 1 and
    min_p 0 switch the respective cut off. `seed` None draws a fresh seed for each request.
    `max_tokens` counts steps (symbols of the shared space). `stop` is one text or several.

    Penalties look at the last `repeat_last_n` symbols of the answer (-1: at all, 0: at none);
    repeat_penalty 1 and the others' 0 are off. `logit_bias` adds to the log-probability of
    the symbols that have exactly the bytes of a text; minus infinity (or False) forbids them.
    `grammar` is GBNF and `json_schema` JSON, of which an answer can obey one.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: Sequence[str] = ()
    logit_bias: Mapping[str, float | bool] | tuple[tuple[str, float | bool], ...] = ()
    grammar: str | None = None
    json_schema: str | None = None

    @property
    def penalises(self) -> bool:
        """Whether what was written is less likely to be written again."""
        return self.repeat_last_n != 0 and (
            self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        )

    def __post_init__(self) -> None:
        """Raise InputError for a value outside its range; make stop and biases tuples."""
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(
            self, "stop", tuple_of("stop", stop, (str,), "a text or a list of texts")
        )
        object.__setattr__(self, "logit_bias", _checked_biases(self.logit_bias))
        checks: Sequence[tuple[object, str]] = (
            (self.max_tokens >= 1, f"max_tokens must be at least 1, not {self.max_tokens}"),
            (
                0 <= self.temperature < 100,
                f"temperature must be in [0, 100), not {self.temperature}",
            ),
            (self.top_k >= 0, f"top_k must be 0 (off) or more, not {self.top_k}"),
            (0 < self.top_p <= 1, f"top_p must be in (0, 1], not {self.top_p}"),
            (0 <= self.min_p < 1, f"min_p must be in [0, 1), not {self.min_p}"),
            (
                0 < self.repeat_penalty <= 100,
                f"repeat_penalty must be in (0, 100], not {self.repeat_penalty}",
            ),
            (
                self.repeat_last_n >= -1,
                f"repeat_last_n must be 0 (off), -1 (all) or more, not {self.repeat_last_n}",
            ),
            (
                abs(self.presence_penalty) <= 100,
                f"presence_penalty must be in [-100, 100], not {self.presence_penalty}",
            ),
            (
                abs(self.frequency_penalty) <= 100,
                f"frequency_penalty must be in [-100, 100], not {self.frequency_penalty}",
            ),
            (self.seed is None or self.seed >= 0, f"seed must be 0 or more, not {self.seed}"),
            (all(self.stop), "a stop string must not be empty"),
            (
                self.grammar is None or self.json_schema is None,
                "grammar and json_schema exclude each other: give one",
            ),
            (self.grammar is None or self.grammar.strip(), "grammar must not be empty"),
            (self.json_schema is None or self.json_schema.strip(), "json_schema must not be empty"),
        )
        for holds, problem in checks:
            if not holds:
                raise InputError(problem)


def tuple_of(name: str, value: object, kinds: tuple[type, ...], wanted: str) -> tuple[Any, ...]:
    """Return a sequence as a tuple; raise InputError, naming it, for a text or what is none."""
    if (
        isinstance(value, str | bytes)
        or not isinstance(value, Sequence)
        or not all(isinstance(each, kinds) for each in value)
    ):
        raise InputError(f"{name} must be {wanted}, not {shortened(value)}")
    return tuple(value)


def _checked_biases(biases: object) -> tuple[tuple[str, float], ...]:
    pairs = tuple(biases.items()) if isinstance(biases, Mapping) else biases
    wanted = "a mapping of texts to numbers or false"
    checked: dict[str, float] = {}
    for pair in tuple_of("logit_bias", pairs, (tuple,), wanted):
        if len(pair) != 2 or not isinstance(pair[0], str):
            raise InputError(f"logit_bias must be {wanted}, not {shortened(biases)}")
        text, bias = pair
        amount: Any = -math.inf if bias is False else bias
        if not text:
            raise InputError("logit_bias must not have an empty text")
        _refuse_half_characters(text)
        # Whole numbers of Python and JSON have no end.
        is_number = isinstance(amount, Real) and not isinstance(amount, bool)
        is_finite = is_number and -sys.float_info.max <= amount <= sys.float_info.max
        if not (is_finite or amount == -math.inf):
            raise InputError(f"logit_bias of {text!r} must be a number or false, and finite")
        checked[text] = float(amount)
    return tuple(checked.items())


def _refuse_half_characters(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"logit_bias of {text!r}: half a surrogate pair is no text") from error


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost; the tuples have one entry per member, in the ensemble's order.

    `prompt_tokens` counts each member's own tokens of the prompt, `cached_tokens` those that
    needed no decoding, `filtered` the steps in which the filter dropped the member,
    `decode_seconds` the time spent in llama.cpp, where the time of a batch is shared out by the
    tokens of each text, `prompt_seconds` the part of it that went into the prompt. `seconds` is
    the whole time from the request to the end, `first_seconds` to the first step; `steps` counts
    symbols, END left out, and `steps_alone` those that the pivot was sure of, so that the others
    were not asked.
    """

    members: tuple[str, ...]
    prompt_tokens: tuple[int, ...]
    cached_tokens: tuple[int, ...]
    filtered: tuple[int, ...]
    decode_seconds: tuple[float, ...]
    prompt_seconds: tuple[float, ...]
    steps: int
    seconds: float
    first_seconds: float
    steps_alone: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A symbol that was considered: its bytes (empty for END) and its probability."""

    piece: bytes
    probability: float


@dataclass(frozen=True, slots=True)
class Ballot:
    """One member's part in a step.

    `top` are the likeliest symbols of its vote, `chosen` is the probability that it gave the
    chosen symbol. `reason` says why the filter dropped it, and is empty where it `stayed`.
    `weight` is its share in the fusion (0 where it was dropped; all shares sum to 1),
    `seconds` the time llama.cpp spent on it.
    """

    member: str
    top: tuple[Candidate, ...]
    chosen: float
    stayed: bool
    reason: str
    weight: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Trace:
    """Why a symbol was chosen: the likeliest symbols after fusion, and every member's part."""

    top: tuple[Candidate, ...]
    ballots: tuple[Ballot, ...]

    @property
    def carrier(self) -> str:
        """The member that gave the chosen symbol the largest part of its probability."""
        return max(self.ballots, key=lambda ballot: ballot.weight * ballot.chosen).member


@dataclass(frozen=True, slots=True)
class Step:
    """One chosen symbol.

    `piece` are its bytes (empty for END), `text` what became safe to show by it, which may
    lag behind: half characters and possible stop strings wait. `probability` is the symbol's
    in the fused distribution, `stayed` says which members the filter let vote. The last step
    of an answer has a `finish_reason` and the `usage`. `trace`, and the likeliest symbols as
    `top`, are there on request.
    """

    piece: bytes
    text: str
    probability: float
    stayed: tuple[bool, ...]
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    trace: Trace | None = None
    top: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    text: str
    finish_reason: FinishReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class ScoredSymbol:
    """One symbol of a text that was scored.

    `piece` are its bytes, `log_probability` is in nats, `top` are the likeliest symbols there.
    """

    piece: bytes
    log_probability: float
    top: tuple[Candidate, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a given text is.

    `log_likelihood` is in nats, over `n_bytes` bytes in `n_symbols` symbols of the shared space.
    `filtered` counts for each member the symbols at which the filter dropped it, `unseen` the
    symbols that were no candidate: each counts as the least likely candidate there. `members`
    are the log-likelihoods of the same symbols by each member's own vote; None for a member that
    was not asked each time, because the pivot was sure. `symbols` are there on request.
    """

    log_likelihood: float
    n_bytes: int
    n_symbols: int
    filtered: tuple[int, ...]
    unseen: int
    members: tuple[float | None, ...]
    symbols: tuple[ScoredSymbol, ...] = ()

    @property
    def per_byte(self) -> float:
        """Return the mean log-likelihood of a byte, in nats; 0 for no bytes."""
        return self.log_likelihood / self.n_bytes if self.n_bytes else 0.0
