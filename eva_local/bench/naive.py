"""The same steps without caches, as EVA's published code takes them, for comparison.

There every member reads the whole text again at every step. Here that is an ensemble of the
same members that knows nothing before each step: same text, same fusion, no cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from eva_local.api import Ensemble, Report
from eva_local.bench.meter import Clock, Meter
from eva_local.bench.pace import Spread
from eva_local.bench.passage import passage
from eva_local.config.specs import EnsembleSpec, FusionSettings
from eva_local.errors import InputError
from eva_local.fusion.fuser import Decision, Fuser
from eva_local.fusion.votes import Floats, Vote
from eva_local.llama.model import Logits, Model, Run
from eva_local.opening import ensemble_of


@dataclass(frozen=True, slots=True)
class Comparison:
    """Steps with caches against steps without, in seconds.

    `times` is naive over ours. `n_compared` of the steps read the same tokens in both ways; over
    these `difference` is the largest difference of a symbol's fused probability, and
    `same_choice` says whether the likeliest symbol was always the same. llama.cpp rounds
    differently in other batches: `difference_alike` is the difference of one more step, for
    which the text is read again in the batches in which it was read before.
    """

    prompt_tokens: tuple[int, ...]
    steps: int
    ours: Spread
    naive: Spread
    times: Spread
    n_compared: int
    difference: float | None
    same_choice: bool | None
    difference_alike: float | None


@dataclass(frozen=True, slots=True)
class Heard:
    """The decision of a step, what the members counted before it, and the bytes that came."""

    decision: Decision
    evidence: Floats
    n_bytes: int


class Listener(Fuser):
    """A judge that keeps what it decides."""

    def __init__(
        self, fusion: FusionSettings, n_members: int, evidence: Floats | None = None
    ) -> None:
        """Begin a text with what is known of the members."""
        super().__init__(fusion, n_members)
        if evidence is not None:
            self.evidence = evidence.copy()
        self.heard: list[Heard] = []

    def learn(self, decision: Decision, symbol: int, n_bytes: int) -> None:
        """Keep the decision about a symbol, and go on."""
        self.heard.append(Heard(decision, self.evidence.copy(), n_bytes))
        super().learn(decision, symbol, n_bytes)


class Retraced(Meter):
    """A meter that reads a text in the batches in which another one has read it."""

    def __init__(self, model: Model, other: Meter) -> None:
        """Use sequence 1 of a model, whose sequence 0 is that of `other`."""
        super().__init__(model, 1, first=1)
        self._other = other

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        """Decode one run part by part."""
        (run,) = runs
        logits: list[Logits | None] = []
        ends = [end - run.start for end in self._other.borders[0]]
        inner = [end for end in ends if 0 < end < len(run.tokens)]
        for first, end in pairwise([0, *inner, len(run.tokens)]):
            part = run.tokens[first:end]
            logits = super().decode([replace(run, start=run.start + first, tokens=part)])
        return logits


def against_naive(
    spec: EnsembleSpec,
    models: Sequence[Model],
    n_tokens: int,
    steps: int,
    report: Report,
    clock: Clock = time.perf_counter,
) -> Comparison:
    """Take `steps` steps after a text of `n_tokens`, each with caches and then without.

    `models` are open for two texts. Raises InputError where they have no room.
    """
    # EVA asks all members at every step.
    spec = replace(spec, fusion=replace(spec.fusion, gate=1.0))
    mine = [Meter(model, 1) for model in models]
    theirs = [Meter(model, 1, first=1) for model in models]
    alike: list[Meter] = [Retraced(model, meter) for model, meter in zip(models, mine, strict=True)]
    with ensemble_of(spec, mine, report=report) as ensemble:
        prompt, continuation = text_for(ensemble, n_tokens, steps)
        listener = Listener(spec.fusion, len(models))
        scoring = ensemble.submit_score(prompt, continuation, listener)
        while not listener.heard:
            report("against naive: reading", scoring.request.share_read)
            ensemble.scheduler.step()
        written, pairs = listener.heard[0].n_bytes, []
        # The last one is not timed.
        for number, meters in enumerate([*[theirs] * steps, alike]):
            report("against naive", number / (steps + 1))
            began = clock()
            ensemble.scheduler.step()
            ours = clock() - began
            heard = listener.heard[-1]
            text = prompt + continuation[:written], continuation[written:][: heard.n_bytes]
            naive, decision = _uncached(spec, meters, text, heard.evidence, clock)
            same = all(a.rows == b.rows for a, b in zip(mine, meters, strict=True))
            pairs.append(_Pair(ours, naive, heard.decision.fused, decision.fused, same))
            written += heard.n_bytes
        counts = ensemble.prompt_tokens(prompt)
    return _comparison(counts, pairs[:-1], pairs[-1])


@dataclass(frozen=True, slots=True, eq=False)
class _Pair:
    """A step in both ways: seconds, fused distributions, and whether the same tokens were read."""

    ours: float
    naive: float
    our_vote: Vote
    naive_vote: Vote
    same_rows: bool

    @property
    def difference(self) -> float | None:
        """Return the largest difference of a symbol's probability; None for other tokens."""
        return difference(self.our_vote, self.naive_vote) if self.same_rows else None


def text_for(ensemble: Ensemble, n_tokens: int, steps: int) -> tuple[str, str]:
    """Return a prompt of `n_tokens` of the pivot's tokens, and how it goes on.

    Raises InputError where a member has no room for both.
    """
    pivot = ensemble.spec.pivot_index

    def count(text: str) -> int:
        return ensemble.prompt_tokens(text)[pivot]

    prompt = passage(n_tokens, count)
    # Two symbols more than steps, at the least: one before and one after them.
    whole = passage(n_tokens + 4 * steps + 12, count)
    counts = ensemble.prompt_tokens(whole)
    for name, needed, n_ctx in zip(ensemble.members, counts, ensemble.n_ctx, strict=True):
        if needed >= n_ctx:
            raise InputError(
                f"{n_tokens} tokens of text do not fit: {name} needs {needed} tokens of {n_ctx}; "
                "give fewer --naive-tokens, or more --n-ctx"
            )
    return prompt, whole[len(prompt) :]


def _uncached(
    spec: EnsembleSpec,
    meters: Sequence[Meter],
    text: tuple[str, str],
    evidence: Floats,
    clock: Clock,
) -> tuple[float, Decision]:
    """Read a text anew and decide on the piece that follows; return the seconds, and how."""
    fusion = spec.fusion
    # The prompt of this step is the whole text so far: what counts was found before.
    fusion = replace(fusion, prompt_evidence=0)
    listener = Listener(fusion, len(meters), evidence)
    with ensemble_of(replace(spec, fusion=fusion), meters) as ensemble:
        began = clock()
        scoring = ensemble.submit_score(*text, listener)
        while not scoring.done:
            ensemble.scheduler.step()
        seconds = clock() - began
        scoring.result()
    return seconds, listener.heard[0].decision


def _comparison(counts: tuple[int, ...], pairs: Sequence[_Pair], alike: _Pair) -> Comparison:
    ours = Spread.of(each.ours for each in pairs)
    naive = Spread.of(each.naive for each in pairs)
    times = Spread.of(each.naive / each.ours for each in pairs)
    assert ours is not None
    assert naive is not None
    assert times is not None
    known = [each for each in pairs if each.same_rows]
    choices = [each.our_vote.top(1)[0][0] == each.naive_vote.top(1)[0][0] for each in known]
    return Comparison(
        prompt_tokens=counts,
        steps=len(pairs),
        ours=ours,
        naive=naive,
        times=times,
        n_compared=len(known),
        difference=max((each.difference or 0.0 for each in known), default=None),
        same_choice=all(choices) if choices else None,
        difference_alike=alike.difference,
    )


def difference(left: Vote, right: Vote) -> float:
    """Return the largest difference of a symbol's probability in two votes."""
    symbols = np.union1d(left.symbols, right.symbols)
    shares = np.zeros((2, len(symbols)))
    for row, vote in zip(shares, (left, right), strict=True):
        row[np.searchsorted(symbols, vote.symbols)] = vote.probabilities
    return float(np.abs(shares[0] - shares[1]).max(initial=0.0))
