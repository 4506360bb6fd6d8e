"""Frozen records that cross module borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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
    `max_tokens` counts steps (symbols of the shared space).
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise InputError for a value outside its range."""
        checks: Sequence[tuple[bool, str]] = (
            (self.max_tokens >= 1, f"max_tokens must be at least 1, not {self.max_tokens}"),
            (
                0 <= self.temperature < 100,
                f"temperature must be in [0, 100), not {self.temperature}",
            ),
            (self.top_k >= 0, f"top_k must be 0 (off) or more, not {self.top_k}"),
            (0 < self.top_p <= 1, f"top_p must be in (0, 1], not {self.top_p}"),
            (0 <= self.min_p < 1, f"min_p must be in [0, 1), not {self.min_p}"),
            (self.seed is None or self.seed >= 0, f"seed must be 0 or more, not {self.seed}"),
            (all(self.stop), "a stop string must not be empty"),
        )
        for holds, problem in checks:
            if not holds:
                raise InputError(problem)


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost; the tuples have one entry per member, in the ensemble's order.

    `prompt_tokens` counts each member's own tokens of the prompt, `cached_tokens` those that
    needed no decoding, `filtered` the steps in which the filter dropped the member,
    `decode_seconds` the time spent in llama.cpp. `seconds` is the whole time from the request
    to the end, `first_seconds` to the first step; `steps` counts symbols, END left out, and
    `steps_alone` those that the pivot was sure of, so that the others were not asked.
    """

    members: tuple[str, ...]
    prompt_tokens: tuple[int, ...]
    cached_tokens: tuple[int, ...]
    filtered: tuple[int, ...]
    decode_seconds: tuple[float, ...]
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
    of an answer has a `finish_reason` and the `usage`; `trace` is there on request.
    """

    piece: bytes
    text: str
    probability: float
    stayed: tuple[bool, ...]
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    trace: Trace | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    text: str
    finish_reason: FinishReason
    usage: Usage
