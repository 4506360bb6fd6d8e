"""Answers to what people ask, with look-ahead and without it, in turns."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eva_local.api import Ensemble, Report
from eva_local.bench.pace import Spread
from eva_local.pages.frame import shipped
from eva_local.types import Message, Usage

#: What is asked, by its kind.
ASKED: tuple[tuple[str, str], ...] = tuple(
    (row["kind"], row["text"])
    for row in map(json.loads, shipped("bench/questions.jsonl").splitlines())
)
_TOKENS = 96
_TEMPERATURES = (0.0, 0.7)
# What four tokens in one batch may cost elsewhere, as a multiple of one.
_FOUR = (1.0, 1.5, 2.0)


@dataclass(frozen=True, slots=True)
class Answers:
    """What answers cost with one drafter, at one temperature.

    `step` is the time of a token, in seconds, and `over_sum` that of each answer over the time
    that all members together decoded for the same one without look-ahead: `total` is the same
    of all answers together, `by_kind` of those of a kind, and `over_each` over each member's own
    part of that decoding. `passes` and `decoded` are how often each member decoded for a token,
    and how many tokens. `elsewhere` is what `total` comes to by these counts where four tokens in
    a batch cost 1, 1.5 or 2 times as much as one.
    """

    drafter: str
    temperature: float
    step: Spread
    over_sum: Spread
    total: float
    by_kind: dict[str, float]
    over_each: tuple[float, ...]
    passes: tuple[float, ...]
    decoded: tuple[float, ...]
    drafted: int
    accepted: int
    elsewhere: tuple[float, ...]


def answers(ensemble: Ensemble, count: int, report: Report) -> Iterator[Answers]:
    """Yield what the first `count` of `ASKED` cost, without and with the ensemble's drafter."""
    asked, drafter = ASKED[:count], ensemble.drafter
    for temperature in _TEMPERATURES if asked else ():
        found: dict[str, list[Usage]] = {mode: [] for mode in ("off", drafter)}
        sampling = replace(
            ensemble.spec.sampling, temperature=temperature, max_tokens=_TOKENS, seed=0, stop=()
        )
        for number, (_, text) in enumerate(asked):
            report(f"answers at temperature {temperature}", number / len(asked))
            for mode in found if number % 2 else reversed(found):
                ensemble.drafter = mode
                told = ensemble.complete([Message("user", text)], sampling)
                found[mode].append(told.usage)
        for mode in found:
            yield _summed(mode, temperature, [kind for kind, _ in asked], found)
    ensemble.drafter = drafter


def _summed(
    drafter: str, temperature: float, kinds: Sequence[str], found: Mapping[str, Sequence[Usage]]
) -> Answers:
    usages, plain = found[drafter], found["off"]
    # Of each answer: its time, its tokens, and the decoding of each member without look-ahead.
    seconds = np.array([each.seconds - each.first_seconds for each in usages])
    steps = np.array([max(each.steps, 1) for each in usages])
    parts = np.array([np.subtract(u.decode_seconds, u.prompt_seconds) for u in plain])
    passes, decoded = (np.array([getattr(u, key) for u in usages]) for key in ("passes", "decoded"))
    singles = parts.sum(axis=0) / np.maximum(sum(np.array(u.passes) for u in plain), 1)
    sums = np.maximum(parts.sum(axis=1), 1e-9)
    over, step = Spread.of(seconds / sums), Spread.of(seconds / steps)
    assert over is not None
    assert step is not None
    more = decoded - passes
    return Answers(
        drafter=drafter,
        temperature=temperature,
        step=step,
        over_sum=over,
        total=float(seconds.sum() / sums.sum()),
        by_kind={
            kind: float(seconds[of_kind].sum() / sums[of_kind].sum())
            for kind in dict.fromkeys(kinds)
            if (of_kind := [each == kind for each in kinds])
        },
        over_each=tuple((seconds.sum() / np.maximum(parts.sum(axis=0), 1e-9)).tolist()),
        passes=tuple((passes.sum(axis=0) / steps.sum()).tolist()),
        decoded=tuple((decoded.sum(axis=0) / steps.sum()).tolist()),
        drafted=sum(each.drafted for each in usages),
        accepted=sum(each.accepted for each in usages),
        elsewhere=tuple(
            float(((passes + (four - 1) / 3 * more) @ singles).sum() / sums.sum()) for four in _FOUR
        ),
    )
