"""Arithmetic of rounds: what a step took, against its members decoding alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of repeated measurements, with the quartiles around it."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """Return the spread of the values that are there, None where there are none."""
        known = [value for value in values if value is not None]
        if not known:
            return None
        low, median, high = np.quantile(known, (0.25, 0.5, 0.75)).tolist()
        return cls(median, low, high, len(known))


@dataclass(frozen=True, slots=True)
class Part:
    """A member's part in a round, in seconds: in the step, and alone right after it.

    It decoded `n_tokens` in `n_rows` sequences. `alone` is the same batch decoded again,
    `single` one token in each of its sequences; None where it was not measured.
    """

    n_rows: int
    n_tokens: int
    inside: float
    alone: float | None = None
    single: float | None = None


@dataclass(frozen=True, slots=True)
class Round:
    """A step of the ensemble, and right after it each member's decoding alone.

    `busy` are the seconds of the step in which some member decoded, `told` the symbols written.
    """

    seconds: float
    busy: float
    told: int
    parts: tuple[Part, ...]

    @property
    def over_sum(self) -> float | None:
        """Return the step over the sum of the members: 1 is the limit of one after the other."""
        return _over(self.seconds, sum, [part.alone for part in self.parts])

    @property
    def over_slowest(self) -> float | None:
        """Return the step over the slowest member: 1 is the limit of all at once."""
        return _over(self.seconds, max, [part.alone for part in self.parts])

    @property
    def over_single(self) -> float | None:
        """Return the step over the sum of the members decoding one token each."""
        return _over(self.seconds, sum, [part.single for part in self.parts])

    @property
    def inside_over_alone(self) -> float | None:
        """Return the members' decoding in the step over the same decoding alone."""
        inside = sum(part.inside for part in self.parts)
        return _over(inside, sum, [part.alone for part in self.parts])

    @property
    def bookkeeping(self) -> float:
        """Return the share of the step in which no member decoded."""
        return 1 - self.busy / self.seconds


@dataclass(frozen=True, slots=True)
class MemberPace:
    """How fast a member decodes alone.

    `n_tokens` are its tokens in a step (mean), `rate` its tokens per second in these batches, and
    `single_rate` with one token in each sequence.
    """

    name: str
    n_tokens: float
    inside: Spread | None
    alone: Spread | None
    single: Spread | None
    rate: float | None
    single_rate: float | None


@dataclass(frozen=True, slots=True)
class Pace:
    """What rounds came to: seconds of a step, its ratios, and tokens written per second."""

    step: Spread
    rate: Spread
    over_sum: Spread | None
    over_slowest: Spread | None
    over_single: Spread | None
    inside_over_alone: Spread | None
    bookkeeping: Spread
    members: tuple[MemberPace, ...]


def pace(names: Sequence[str], rounds: Sequence[Round]) -> Pace | None:
    """Sum up rounds; None where there are none.

    Every ratio is formed within its round, since a machine changes its speed between them.
    """
    step = Spread.of(each.seconds for each in rounds)
    # In the space of bytes a step writes a token of some texts only, now of more, now of fewer.
    told = sum(each.told for each in rounds) / max(len(rounds), 1)
    rate = Spread.of(told / each.seconds for each in rounds)
    bookkeeping = Spread.of(each.bookkeeping for each in rounds)
    if step is None or rate is None or bookkeeping is None:
        return None
    return Pace(
        step=step,
        rate=rate,
        over_sum=Spread.of(each.over_sum for each in rounds),
        over_slowest=Spread.of(each.over_slowest for each in rounds),
        over_single=Spread.of(each.over_single for each in rounds),
        inside_over_alone=Spread.of(each.inside_over_alone for each in rounds),
        bookkeeping=bookkeeping,
        members=tuple(
            _member(name, [each.parts[place] for each in rounds])
            for place, name in enumerate(names)
        ),
    )


def _member(name: str, parts: Sequence[Part]) -> MemberPace:
    return MemberPace(
        name=name,
        n_tokens=sum(part.n_tokens for part in parts) / len(parts),
        inside=Spread.of(part.inside for part in parts),
        alone=Spread.of(part.alone for part in parts),
        single=Spread.of(part.single for part in parts),
        rate=_rate((part.n_tokens, part.alone) for part in parts),
        single_rate=_rate((part.n_rows, part.single) for part in parts),
    )


def _rate(counts: Iterable[tuple[int, float | None]]) -> float | None:
    """Return the median count per second; None where nothing was measured."""
    rates = Spread.of(count / seconds for count, seconds in counts if seconds)
    return rates.median if rates else None


def _over(
    seconds: float, limit: Callable[[Iterable[float]], float], known: Sequence[float | None]
) -> float | None:
    """Return the seconds over what the members' limit is; None where one was not measured."""
    measured = [value for value in known if value is not None]
    least = limit(measured) if len(measured) == len(known) else 0.0
    return seconds / least if least > 0 else None
