"""Let an ensemble read and write, and its members decode the same alone right after each step."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import count

from eva_local.api import Ensemble, Report
from eva_local.bench.benchmark import Benchmark, Trial
from eva_local.bench.meter import Clock, Meter, busy
from eva_local.bench.pace import Round, pace
from eva_local.bench.passage import passage
from eva_local.config.specs import EnsembleSpec
from eva_local.engine.request import Request, Told
from eva_local.engine.runner import Runner
from eva_local.errors import EvaError, InputError
from eva_local.opening import ensemble_of, open_models
from eva_local.types import Sampling

# A short prompt is read so often, and so many batches of a long one are decoded again alone.
_READINGS = 3
# Steps before the rounds that count.
_WARM_UP = 2
# Symbols of the shared space are up to so many tokens of a member, mostly.
_TOKENS_A_STEP = 2


def measure(
    spec: EnsembleSpec, contexts: Iterable[int], parallel: int, rounds: int, report: Report
) -> Benchmark:
    """Open the members of `spec`; measure `rounds` steps after prompts of `contexts` tokens.

    One text and `parallel` at a time are written. Raises InputError where a context has no room.
    """
    bytewise = spec.fusion.space == "bytes"
    with open_models(spec, report, parallel=parallel, bytewise=bytewise) as models:
        meters = [Meter(model) for model in models]
        with ensemble_of(spec, meters, _sampling(spec), report, parallel=parallel) as ensemble:
            bench = Bench(ensemble, meters, rounds, report)
            # What does not fit is found before minutes of work.
            prompts = {size: _prompts(ensemble, size, rounds) for size in sorted(set(contexts))}
            trials = tuple(
                trial
                for n_tokens, texts in prompts.items()
                for trial in bench.run(n_tokens, texts, sorted({1, parallel}))
            )
    return Benchmark.of(spec, rounds, trials)


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
        self._ensemble.n_slots = 1
        for number, prompt in enumerate(prompts):
            rounds, first = self._read(prompt, number, f"{label}: reading", len(prompts))
            reading += rounds
            firsts.append(first)
        for width in widths:
            self._ensemble.n_slots = width
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

    def _read(
        self, prompt: str, seed: int, label: str, n_prompts: int
    ) -> tuple[list[Round], float]:
        """Read a prompt; return its steps, and the seconds until the first symbol."""
        tokens = self._ensemble.prompt_tokens(prompt)
        batches = max(
            math.ceil(size / meter.n_batch)
            for size, meter in zip(tokens, self._meters, strict=True)
        )
        # Reading takes as long as many steps: of a long prompt only some is done again.
        stride = max(1, batches * n_prompts // _READINGS)
        rounds: list[Round] = []
        with closing(self._texts(prompt, seed)) as runner:
            began = self._clock()
            runner.draw()
            first = self._clock() - began
            while not (rounds and rounds[-1].told):
                self._report(label, min(len(rounds) / batches, 1.0))
                rounds.append(self._round(runner, alone=len(rounds) % stride == 0, single=False))
                first += rounds[-1].seconds
        return rounds, first

    def _write(self, prompt: str, width: int, label: str) -> tuple[list[Round], float]:
        """Go on with a prompt that the cache holds; return the steps, and the seconds to begin."""
        rounds = []
        with closing(self._texts(prompt)) as runner:
            began = self._clock()
            begun: set[int] = set()
            while len(begun) < width:
                begun |= {number for number, _ in _steps(runner)}
            first = self._clock() - began
            for number in range(_WARM_UP + self._rounds):
                self._report(label, number / (_WARM_UP + self._rounds))
                runner.draw()
                rounds.append(self._round(runner, alone=True, single=True))
        return rounds[_WARM_UP:], first

    def _texts(self, prompt: str, seed: int = 0) -> Runner:
        """Return texts that go on from a prompt, one more for each that ends."""
        sampling = _sampling(self._ensemble.spec)
        seeds = count(seed)
        return self._ensemble.runner(
            Request(prompt, replace(sampling, seed=each)) for each in seeds
        )

    def _round(self, runner: Runner, *, alone: bool, single: bool) -> Round:
        """Take a step, then let each member decode alone what it decoded in the step."""
        for meter in self._meters:
            meter.reset()
        began = self._clock()
        told = len(_steps(runner))
        return Round(
            seconds=self._clock() - began,
            busy=busy(self._meters),
            told=told,
            parts=tuple(meter.part(alone=alone, single=single) for meter in self._meters),
        )


def _steps(runner: Runner) -> list[tuple[int, Told]]:
    """Return what is told of a step; raise what went wrong."""
    told = runner.step()
    for _, each in told:
        if isinstance(each, EvaError):
            raise each
    return told


def peak_memory() -> int:
    """Return the most bytes of memory that this process has had; on a GPU is not counted."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _prompts(ensemble: Ensemble, n_tokens: int, rounds: int) -> list[str]:
    """Return the prompts to read, several where they are short; refuse what does not fit."""
    pivot = ensemble.spec.pivot_index
    n_batch = ensemble.spec.members[pivot].load.n_batch
    count = _READINGS if n_tokens <= n_batch else 1
    prompts = [
        passage(n_tokens, lambda text: ensemble.prompt_tokens(text)[pivot], seed)
        for seed in range(count)
    ]
    steps = _TOKENS_A_STEP * (_WARM_UP + rounds + 1)
    for prompt in prompts:
        counts = ensemble.prompt_tokens(prompt)
        for name, size, n_ctx in zip(ensemble.members, counts, ensemble.n_ctx, strict=True):
            if size + steps > n_ctx:
                raise InputError(
                    f"{n_tokens} tokens of context and {rounds} rounds do not fit: {name} "
                    f"needs {size + steps} tokens of {n_ctx}; give a smaller --context, or "
                    "more --n-ctx"
                )
    return prompts


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
