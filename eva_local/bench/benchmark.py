"""What a bench came to: rounds summed up, against members decoding alone, and the machine."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from importlib.metadata import version

import numpy as np
from numpy.typing import ArrayLike

from eva_local.config.specs import EnsembleSpec
from eva_local.llama.backend import can_offload

# Seconds that were not measured; no ratio is formed with them.
UNKNOWN = math.nan


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of repeated measurements, with the quartiles around it."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: ArrayLike) -> Spread | None:
        """Return the spread of the values that are known, None where none is."""
        known = np.asarray(values, dtype=np.float64)
        known = known[np.isfinite(known)]
        if not known.size:
            return None
        low, median, high = np.quantile(known, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high, known.size)


@dataclass(frozen=True, slots=True)
class MemberPart:
    """A member's part in a round, in seconds: in the step, and the same alone right after it."""

    n_tokens: int
    inside: float
    alone: float = UNKNOWN


@dataclass(frozen=True, slots=True)
class Round:
    """A step of the ensemble, and right after it each member's decoding alone.

    `busy` are the seconds of the step in which some member decoded, `told` the symbols written.
    """

    seconds: float
    busy: float
    told: int
    parts: tuple[MemberPart, ...]


@dataclass(frozen=True, slots=True)
class MemberPace:
    """How fast a member decodes alone.

    `n_tokens` are its tokens in a step (mean), `rate` its tokens per second in these batches.
    """

    name: str
    n_tokens: float
    inside: Spread | None
    alone: Spread | None
    rate: float | None


@dataclass(frozen=True, slots=True)
class Pace:
    """What rounds came to: seconds of a step, its ratios, and tokens written per second.

    `over_sum` and `over_slowest` hold the step against the members decoding the same alone, one
    after the other and all at once; `inside_over_alone` holds the members' decoding in the step
    against the same alone.
    `bookkeeping` is the share of the step in which no member decoded.
    """

    step: Spread
    rate: Spread
    over_sum: Spread | None
    over_slowest: Spread | None
    inside_over_alone: Spread | None
    bookkeeping: Spread
    members: tuple[MemberPace, ...]


def pace(names: Sequence[str], rounds: Sequence[Round]) -> Pace:
    """Sum up rounds, of which there is at least one.

    Every ratio is formed within its round, since a machine changes its speed between them.
    """
    seconds = np.array([each.seconds for each in rounds])
    busy = np.array([each.busy for each in rounds])
    # In the space of bytes a step writes a token of some texts only, now of more, now of fewer.
    told = sum(each.told for each in rounds) / len(rounds)
    step, rate = Spread.of(seconds), Spread.of(told / seconds)
    bookkeeping = Spread.of(1 - busy / seconds)
    assert step is not None
    assert rate is not None
    assert bookkeeping is not None
    # Each (members, rounds).
    n_tokens, inside, alone = np.array(
        [[astuple(part) for part in each.parts] for each in rounds], dtype=np.float64
    ).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return Pace(
            step=step,
            rate=rate,
            over_sum=Spread.of(seconds / alone.sum(axis=0)),
            over_slowest=Spread.of(seconds / alone.max(axis=0)),
            inside_over_alone=Spread.of(inside.sum(axis=0) / alone.sum(axis=0)),
            bookkeeping=bookkeeping,
            members=tuple(
                MemberPace(
                    name=name,
                    n_tokens=float(n_tokens[i].mean()),
                    inside=Spread.of(inside[i]),
                    alone=Spread.of(alone[i]),
                    rate=found.median if (found := Spread.of(n_tokens[i] / alone[i])) else None,
                )
                for i, name in enumerate(names)
            ),
        )


@dataclass(frozen=True, slots=True)
class Trial:
    """Texts of one length, so many side by side.

    `context` tokens were asked for; `prompt_tokens` is what each member read. `first_seconds`
    is the time to the first token of a text that nothing is known of, `cached_first_seconds`
    that of all texts after a prompt that the caches hold. `peak_memory` is in bytes, of the
    process, up to the end of the trial.
    """

    context: int
    texts: int
    prompt_tokens: tuple[int, ...]
    first_seconds: float | None
    cached_first_seconds: float
    writing: Pace
    peak_memory: int


@dataclass(frozen=True, slots=True)
class Benchmark:
    """All trials of an ensemble, and the machine that they ran on."""

    ensemble: str
    members: tuple[str, ...]
    pivot: str
    space: str
    rounds: int
    machine: str
    cores: int
    threads: tuple[int, ...]
    can_offload: bool
    llama_cpp_python: str
    trials: tuple[Trial, ...]

    @classmethod
    def of(cls, spec: EnsembleSpec, rounds: int, trials: tuple[Trial, ...]) -> Benchmark:
        """Add what is known of the ensemble and the machine."""
        return cls(
            ensemble=spec.name,
            members=tuple(member.name for member in spec.members),
            pivot=spec.pivot,
            space=spec.fusion.space,
            rounds=rounds,
            machine=f"{platform.system()} {platform.machine()}",
            cores=os.cpu_count() or 1,
            threads=tuple(member.load.threads for member in spec.members),
            can_offload=can_offload(),
            llama_cpp_python=version("llama-cpp-python"),
            trials=trials,
        )

    def as_json(self) -> dict[str, object]:
        """Return all figures; times are in seconds, memory in bytes."""
        return asdict(self)
