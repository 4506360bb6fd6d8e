"""What a step took, against its members decoding alone: they are timed, and rounds summed up."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from eva_local.fusion.votes import Floats
from eva_local.llama.model import Logits, Model, Run

Clock = Callable[[], float]

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
    def of(cls, values: Floats) -> "Spread":
        """Return the spread of values, all of which are known."""
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high, np.size(values))


def spread_of(values: Floats) -> Spread | None:
    """Return the spread of the values that are known, None where none is."""
    known = values[np.isfinite(values)]
    return Spread.of(known) if known.size else None


class MemberPart(NamedTuple):
    """A member's part in a round, in seconds: in the step, and alone right after it.

    It decoded `n_tokens`, and `alone` the same batch again.
    """

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
    """Sum up rounds, of which there is one at least."""
    # Every ratio is formed within its round, since a machine changes its speed between them.
    seconds = np.array([each.seconds for each in rounds])
    busy = np.array([each.busy for each in rounds])
    # In the space of bytes a step writes a token of some texts only, now of more, now of fewer.
    told = sum(each.told for each in rounds) / len(rounds)
    # Each (members, rounds).
    parts = np.array([each.parts for each in rounds], dtype=np.float64)
    n_tokens, inside, alone = parts.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return Pace(
            step=Spread.of(seconds),
            rate=Spread.of(told / seconds),
            over_sum=spread_of(seconds / alone.sum(axis=0)),
            over_slowest=spread_of(seconds / alone.max(axis=0)),
            inside_over_alone=spread_of(inside.sum(axis=0) / alone.sum(axis=0)),
            bookkeeping=Spread.of(1 - busy / seconds),
            members=tuple(
                MemberPace(
                    name=name,
                    n_tokens=float(n_tokens[i].mean()),
                    inside=spread_of(inside[i]),
                    alone=spread_of(alone[i]),
                    rate=rate.median if (rate := spread_of(n_tokens[i] / alone[i])) else None,
                )
                for i, name in enumerate(names)
            ),
        )


class Meter:
    """A model, as the engine sees one, that notes when llama.cpp decodes for it, in seconds."""

    def __init__(self, model: Model, clock: Clock = time.perf_counter) -> None:
        self._model = model
        self._clock = clock
        self.reset()

    def __getattr__(self, name: str) -> Any:
        # All that takes no decoding is the model's own.
        return getattr(self._model, name)

    def reset(self) -> None:
        """Forget what was noted."""
        #: The calls of llama.cpp since then: when each began and ended, and what it decoded.
        self.decodings: list[tuple[float, float, Sequence[Run]]] = []
        self._can_repeat = self.can_roll_back

    def part(self) -> MemberPart:
        """Return what was decoded since `reset`, and how long that takes once more, by itself.

        The cache ends up as it was. Unknown is what cannot be done again: tokens cannot be taken
        back, or were since then.
        """
        n_tokens = sum(len(run.tokens) for *_, runs in self.decodings for run in runs)
        inside = sum(ended - began for began, ended, _ in self.decodings)
        return MemberPart(n_tokens, inside, alone=self._repeat())

    def _repeat(self) -> float:
        if not self._can_repeat:
            return UNKNOWN
        seconds = 0.0
        for *_, runs in self.decodings:
            if not all(self._model.remove(run.seq_id, run.start) == run.start for run in runs):
                return UNKNOWN
            began = self._clock()
            self._model.decode(runs)
            seconds += self._clock() - began
        return seconds

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        began = self._clock()
        logits = self._model.decode(runs)
        self.decodings.append((began, self._clock(), runs))
        return logits

    def remove(self, seq_id: int, start: int) -> int:
        self._can_repeat &= not self.decodings
        return self._model.remove(seq_id, start)

    def copy(self, source: int, target: int, length: int = -1) -> int:
        self._can_repeat &= not self.decodings
        return self._model.copy(source, target, length)

    def close(self) -> None:
        """Leave the model open: it is its owner's."""


def busy(meters: Iterable[Meter]) -> float:
    """Return the seconds in which some member decoded: what overlaps counts once."""
    spans = sorted(each[:2] for meter in meters for each in meter.decodings)
    total, until = 0.0, float("-inf")
    for began, ended in spans:
        total += max(ended - max(began, until), 0.0)
        until = max(until, ended)
    return total
