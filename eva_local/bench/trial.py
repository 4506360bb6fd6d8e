"""Let an ensemble read and write, and its members decode the same alone right after each step."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from eva_local.api import Ensemble, Report
from eva_local.bench.benchmark import Benchmark, Trial
from eva_local.bench.meter import Clock, Meter, busy
from eva_local.bench.pace import UNKNOWN, Part, Round, pace
from eva_local.bench.passage import passage
from eva_local.config.specs import EnsembleSpec
from eva_local.engine.scheduler import Request
from eva_local.errors import EvaError, InputError
from eva_local.opening import ensemble_of, open_models
from eva_local.types import Sampling, Step

# A short prompt is read so often, and so many batches of a long one are decoded again alone.
_READINGS = 3
# Steps before the rounds that count.
_WARM_UP = 2
# Symbols of the shared space are up to so many tokens of a member, mostly.
_TOKENS_A_STEP = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: texts after prompts of `contexts` tokens, one and `parallel` at a time."""

    contexts: tuple[int, ...] = (100, 3000)
    parallel: int = 8
    rounds: int = 20

    @property
    def widths(self) -> tuple[int, ...]:
        """Return how many texts are written at a time."""
        return (1,) if self.parallel == 1 else (1, self.parallel)


def measure(spec: EnsembleSpec, plan: Plan, report: Report) -> Benchmark:
    """Open the members of `spec` and measure all that `plan` names.

    Raises InputError where a context has no room for the prompts.
    """
    bytewise = spec.fusion.space == "bytes"
    with open_models(spec, report, parallel=plan.parallel, bytewise=bytewise) as models:
        meters = [Meter(model) for model in models]
        with ensemble_of(spec, meters, _sampling(spec), report, parallel=plan.parallel) as ensemble:
            prompts = [_prompts(ensemble, n_tokens, plan) for n_tokens in plan.contexts]
            trials = tuple(
                trial
                for n_tokens, texts in zip(plan.contexts, prompts, strict=True)
                for trial in Bench(ensemble, meters, plan.rounds, report).run(
                    n_tokens, texts, plan.widths
                )
            )
    return Benchmark.of(spec, plan.rounds, trials)


class Bench:
    """An ensemble of metered members, and how many rounds are measured."""

    def __init__(
        self,
        ensemble: Ensemble,
        meters: Sequence[Meter],
        rounds: int,
        report: Report,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Measure `rounds` steps of each trial; `report` is told how far it is."""
        self._ensemble = ensemble
        self._meters = meters
        self._rounds = rounds
        self._report = report
        self._clock = clock

    def run(self, n_tokens: int, prompts: Sequence[str], widths: Sequence[int]) -> Iterator[Trial]:
        """Read all prompts, which are `n_tokens` long, and go on with the last of them."""
        label = f"{n_tokens} tokens of context"
        reading: list[Round] = []
        firsts: list[float] = []
        self._ensemble.scheduler.n_slots = 1
        for number, prompt in enumerate(prompts):
            text = _Text(self._ensemble, prompt, seed=number)
            rounds, first = self._read(text, f"{label}: reading", len(prompts))
            reading += rounds
            firsts.append(first)
            text.end()
        for width in widths:
            self._ensemble.scheduler.n_slots = width
            rounds, cached = self._write(prompts[-1], width, f"{label}: {width} at a time")
            written = pace(self._ensemble.members, rounds)
            assert written is not None
            yield Trial(
                context=n_tokens,
                texts=width,
                prompt_tokens=self._ensemble.prompt_tokens(prompts[-1]),
                reading=pace(self._ensemble.members, reading) if width == 1 else None,
                first_seconds=sorted(firsts)[len(firsts) // 2] if width == 1 else None,
                cached_first_seconds=cached,
                writing=written,
                peak_memory=peak_memory(),
            )

    def _read(self, text: _Text, label: str, n_prompts: int) -> tuple[list[Round], float]:
        """Read a prompt; return its steps, and the seconds until the first symbol."""
        began = self._clock()
        text.begin()
        first = self._clock() - began
        tokens = self._ensemble.prompt_tokens(text.prompt)
        batches = max(
            math.ceil(count / meter.n_batch)
            for count, meter in zip(tokens, self._meters, strict=True)
        )
        # Reading takes as long as many steps: of a long prompt only some is done again.
        stride = max(1, batches * n_prompts // _READINGS)
        rounds: list[Round] = []
        while not text.told:
            self._report(label, min(len(rounds) / batches, 1.0))
            rounds.append(self._round([text], alone=len(rounds) % stride == 0, single=False))
            first += rounds[-1].seconds
        return rounds, first

    def _write(self, prompt: str, width: int, label: str) -> tuple[list[Round], float]:
        """Go on with a prompt that the cache holds; return the steps, and the seconds to begin."""
        texts = [_Text(self._ensemble, prompt, seed=number) for number in range(width)]
        began = self._clock()
        for text in texts:
            text.begin()
        while not all(text.told for text in texts):
            self._ensemble.scheduler.step()
            _raise_what_went_wrong(texts)
        first = self._clock() - began
        rounds = []
        for number in range(_WARM_UP + self._rounds):
            self._report(label, number / (_WARM_UP + self._rounds))
            for text in texts:
                text.renew()
            rounds.append(self._round(texts, alone=True, single=True))
        for text in texts:
            text.end()
        return rounds[_WARM_UP:], first

    def _round(self, texts: Sequence[_Text], *, alone: bool, single: bool) -> Round:
        """Take a step, then let each member decode alone what it decoded in the step."""
        for meter in self._meters:
            meter.reset()
        told = sum(text.told for text in texts)
        began = self._clock()
        self._ensemble.scheduler.step()
        seconds = self._clock() - began
        _raise_what_went_wrong(texts)
        told = sum(text.told for text in texts) - told
        return Round(
            seconds=seconds,
            busy=busy(self._meters),
            told=told,
            parts=tuple(_part(meter, alone=alone, single=single) for meter in self._meters),
        )


class _Text:
    """A text that is written on and on, from its prompt again where it ends."""

    def __init__(self, ensemble: Ensemble, prompt: str, seed: int) -> None:
        self.prompt = prompt
        self.told = 0
        self.error: EvaError | None = None
        self._ensemble = ensemble
        self._seed = seed
        self._request: Request | None = None

    def begin(self) -> None:
        sampling = replace(_sampling(self._ensemble.spec), seed=self._seed)
        self._request = self._ensemble.submit(self.prompt, sampling, self._sink)

    def renew(self) -> None:
        if self._request is None or self._request.done:
            self._seed += 1000
            self.begin()

    def end(self) -> None:
        if self._request is not None:
            self._ensemble.scheduler.cancel(self._request)

    def _sink(self, told: Step | EvaError) -> None:
        if isinstance(told, EvaError):
            self.error = told
        else:
            self.told += 1


def _raise_what_went_wrong(texts: Sequence[_Text]) -> None:
    for text in texts:
        if text.error is not None:
            raise text.error


def peak_memory() -> int:
    """Return the most bytes of memory that this process has had; on a GPU is not counted."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _part(meter: Meter, *, alone: bool, single: bool) -> Part:
    n_rows, n_tokens = meter.n_rows, meter.n_tokens
    again = meter.again() if alone else UNKNOWN
    if single:
        # Where each sequence had one token, both are the same.
        one = again if n_rows == n_tokens else meter.single()
    return Part(n_rows, n_tokens, meter.inside, again, one if single else UNKNOWN)


def _prompts(ensemble: Ensemble, n_tokens: int, plan: Plan) -> list[str]:
    """Return the prompts to read: several where they are short."""
    pivot = ensemble.spec.pivot_index
    n_batch = ensemble.spec.members[pivot].load.n_batch
    count = _READINGS if n_tokens <= n_batch else 1
    prompts = [
        passage(n_tokens, lambda text: ensemble.prompt_tokens(text)[pivot], seed)
        for seed in range(count)
    ]
    _refuse_unless_fits(ensemble, n_tokens, prompts, plan)
    return prompts


def _refuse_unless_fits(
    ensemble: Ensemble, n_tokens: int, prompts: Sequence[str], plan: Plan
) -> None:
    steps = _TOKENS_A_STEP * (_WARM_UP + plan.rounds + 1)
    for prompt in prompts:
        counts = ensemble.prompt_tokens(prompt)
        for name, count, n_ctx in zip(ensemble.members, counts, ensemble.n_ctx, strict=True):
            if count + steps > n_ctx:
                raise InputError(
                    f"{n_tokens} tokens of context and {plan.rounds} rounds do not fit: {name} "
                    f"needs {count + steps} tokens of {n_ctx}; give a smaller --context, or "
                    "more --n-ctx"
                )


def _sampling(spec: EnsembleSpec) -> Sampling:
    """Return how texts are drawn: as the ensemble does, but all of them different and endless."""
    return replace(
        spec.sampling,
        temperature=spec.sampling.temperature or 1.0,
        max_tokens=sys.maxsize,
        stop=(),
        grammar=None,
        json_schema=None,
    )
