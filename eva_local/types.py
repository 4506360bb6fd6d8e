"""Frozen records that cross module borders."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from statistics import fmean
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from eva_local.errors import InputError
from eva_local.reading import MOST, Number, ReadError, Whole, Words, settle

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "tool_calls", "cancelled"]
Thinking = Literal["auto", "off", "on", "apart"]

#: Votes that are so many bits apart make a word disputed; how many words are told of an answer.
APART, _MOST_DISPUTED = 0.3, 8
_WORD = re.compile(rb"[\w\x80-\xff]+")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


class Function(Struct, frozen=True, forbid_unknown_fields=True):
    """A function that can be called; `strict` or not, its schema is obeyed where a call is due."""

    name: Words
    description: str = ""
    parameters: dict[str, Any] = {}
    strict: Any = None


class Tool(Struct, frozen=True, forbid_unknown_fields=True):
    """A tool, as OpenAI's API has it: a function."""

    type: Literal["function"]
    function: Function


# A tool that is chosen is named in the form of one.
ToolChoice = Literal["none", "auto", "required"] | Tool


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is asked for, and drawn from the fused distribution.

    temperature 0 is greedy; then top_k, top_p and min_p have no effect. top_k 0, top_p 1 and
    min_p 0 switch the respective cut off. `seed` None draws a fresh seed for each request.
    `max_tokens` counts steps (symbols of the shared space). `stop` is one text or several.

    Penalties look at the last `repeat_last_n` symbols of the answer (-1: at all, 0: at none);
    repeat_penalty 1 and the others' 0 are off. `logit_bias` adds to the log-probability of
    the symbols that have exactly the bytes of a text; minus infinity (or False) forbids them.
    `grammar` is GBNF and `json_schema` JSON, of which an answer can obey one.

    `thinking` says whether members think before they answer, each in its own marks; auto is off
    where several write together, and as the model does untold where one writes alone. on fuses one
    thought; apart lets each member think for itself, drawn with `thinking_temperature` (None: as
    the answer is), and fuses the answer. There a member whose template knows no thoughts is told
    the `thinking_instruction`, in which {mark} is the `thinking_mark` that ends its thought; a
    plain text is gone on with up to the mark. `thinking_budget` ends a thought after so many steps
    (-1: after `max_tokens`, which counts the steps of a fused thought too).
    `chat_template_kwargs` are told to every member's chat template, in whose
    place `chat_template` stands.

    `tools`, also as mappings in the form of OpenAI's API, are told to the members of a
    conversation, and an answer may call them; `tool_choice` says whether it must, and one that
    must obeys no other schema. Several calls are one answer's unless not `parallel_tool_calls`.
    """

    max_tokens: Annotated[int, Meta(ge=1)] = 512
    temperature: Annotated[float, Meta(ge=0, lt=100)] = 0.0
    top_k: Annotated[int, Meta(ge=0, description="0 (off) or more")] = 40
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.95
    min_p: Annotated[float, Meta(ge=0, lt=1)] = 0.05
    repeat_penalty: Annotated[float, Meta(gt=0, le=100)] = 1.0
    repeat_last_n: Annotated[int, Meta(ge=-1, description="0 (off), -1 (all) or more")] = 64
    presence_penalty: Annotated[float, Meta(ge=-100, le=100)] = 0.0
    frequency_penalty: Annotated[float, Meta(ge=-100, le=100)] = 0.0
    seed: Annotated[
        Annotated[int, Meta(ge=0, description="0 or more")] | None,
        Meta(description='a whole number or "random"'),
    ] = None
    stop: Words | Sequence[Words] = ()
    logit_bias: Annotated[
        Mapping[str, int | float | bool] | tuple[tuple[str, int | float | bool], ...],
        Meta(description="a mapping of texts to numbers or false"),
    ] = ()
    grammar: Words | None = None
    json_schema: Words | None = None
    thinking: Thinking = "auto"
    thinking_temperature: Annotated[float, Meta(ge=0, lt=100)] | None = None
    thinking_budget: Annotated[int, Meta(ge=-1, description="-1 (no limit) or more")] = -1
    thinking_mark: Words = "Answer:"
    thinking_instruction: Words = "Think step by step. Then write {mark} and your answer."
    chat_template: Words | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tools: tuple[Tool, ...] = field(default=(), hash=False)
    tool_choice: ToolChoice = field(default="auto", hash=False)
    parallel_tool_calls: bool = True

    @property
    def penalises(self) -> bool:
        """Whether what was written is less likely to be written again."""
        return self.repeat_last_n != 0 and (
            self.repeat_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0
        )

    def __post_init__(self) -> None:
        """Raise InputError for a value that cannot be; make stop and biases tuples."""
        if str(self.seed) in ("random", "-1"):
            object.__setattr__(self, "seed", None)
        settle(self)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "logit_bias", _checked_biases(dict(self.logit_bias)))
        if self.grammar is not None and self.json_schema is not None:
            raise InputError("grammar and json_schema exclude each other: give one")
        told = self.chat_template_kwargs
        switch = told.get("enable_thinking", told.get("thinking"))
        if not isinstance(told.get("enable_thinking"), bool | None):
            raise ReadError("chat_template_kwargs.enable_thinking", "must be true or false")
        if self.thinking == "auto" and isinstance(switch, bool):
            object.__setattr__(self, "thinking", "on" if switch else "off")
        if "{mark}" not in self.thinking_instruction:
            raise ReadError("thinking_instruction", "must have {mark}, which ends a thought")
        for name in ("grammar", "json_schema", "chat_template"):
            if not (getattr(self, name) or "x").strip():
                raise ReadError(name, "must not be empty")


#: What of it says whether and how members think.
THINKING_KEYS = tuple(each.name for each in fields(Sampling) if each.name.startswith("thinking"))


def _checked_biases(biases: Mapping[str, int | float | bool]) -> tuple[tuple[str, float], ...]:
    checked: dict[str, float] = {}
    for text, bias in biases.items():
        amount = -math.inf if bias is False else bias
        if not text:
            raise InputError("logit_bias must not have an empty text")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"logit_bias of {text!r}: half a surrogate pair is no text") from error
        if isinstance(amount, bool) or not (-MOST <= amount <= MOST or amount == -math.inf):
            raise InputError(f"logit_bias of {text!r} must be a number or false, and finite")
        checked[text] = float(amount)
    return tuple(checked.items())


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost; the tuples have one entry per member, in the ensemble's order.

    `prompt_tokens` counts each member's own tokens of the prompt, `cached_tokens` those that
    needed no decoding, `filtered` the steps in which the filter dropped the member,
    `decode_seconds` the time spent in llama.cpp, where the time of a batch is shared out by the
    tokens of each text, `prompt_seconds` the part of it that went into the prompt. `seconds` is
    the whole time from the request to the end, `first_seconds` to the first step; `steps` counts
    symbols, END left out, `steps_alone` those that the pivot was sure of, so that the others
    were not asked, and `reasoning_steps` those of the thought before the answer. `passes` counts
    how often each member decoded after its prompt, and `decoded` the tokens of that. Of `drafted`
    symbols that were decoded before they were chosen, `accepted` came so.
    """

    members: tuple[str, ...]
    prompt_tokens: tuple[Whole, ...]
    cached_tokens: tuple[Whole, ...]
    filtered: tuple[Whole, ...]
    decode_seconds: tuple[Number, ...]
    prompt_seconds: tuple[Number, ...]
    steps: Whole
    seconds: Number
    first_seconds: Number
    steps_alone: Whole = 0
    reasoning_steps: Whole = 0
    passes: tuple[Whole, ...] = ()
    decoded: tuple[Whole, ...] = ()
    drafted: Whole = 0
    accepted: Whole = 0


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
    `top`, are there on request. A step of the thought before the answer has what it shows as
    `reasoning`, and no text; a step of the answer has None there. Where each member thinks for
    itself, `member` is who does. `disagreement` is how far the votes were apart, in bits: their
    Jensen-Shannon divergence, each alike; None where fewer than two voted. The first choice of
    the `dissenters` was another symbol. The `tool_calls` of an answer, in the form of OpenAI's
    API, come with its last step, and no text shows anything of them.
    """

    piece: bytes
    text: str
    probability: float
    stayed: tuple[bool, ...]
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    trace: Trace | None = None
    top: tuple[Candidate, ...] = ()
    reasoning: str | None = None
    member: str | None = None
    disagreement: float | None = None
    dissenters: tuple[str, ...] = ()
    tool_calls: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer, and the thought that came before it.

    `disagreement` is the mean over the steps of the answer, in bits, None where nowhere two voted;
    `disputed` are its most disputed words, each with the most that a step of it has.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    reasoning: str = ""
    disagreement: float | None = None
    disputed: tuple[tuple[str, float], ...] = ()
    tool_calls: tuple[Mapping[str, Any], ...] = ()


def dispute(steps: Sequence[Step]) -> tuple[float | None, tuple[tuple[str, float], ...]]:
    """Return the `disagreement` and the `disputed` words of an answer, as in a `Completion`."""
    answer = [step for step in steps if step.reasoning is None]
    known = [step.disagreement for step in answer if step.disagreement is not None]
    bits = [step.disagreement or 0.0 for step in answer for _ in step.piece]
    # Nothing of a call is shown, nor of a stop string.
    shown = "".join(step.text for step in answer).encode("utf-8", "replace")
    places = [(word[0].decode("utf-8", "replace"), word.span()) for word in _WORD.finditer(shown)]
    found = [(word, max(bits[slice(*place)], default=0.0)) for word, place in places]
    apart = sorted((each for each in found if each[1] >= APART), key=lambda each: -each[1])
    return (fmean(known) if known else None), tuple(apart[:_MOST_DISPUTED])


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
