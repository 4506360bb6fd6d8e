"""Let an ensemble read and write, and its members decode the same alone right after each step.

And answers to what people ask, with look-ahead and without it, in turns.
"""

import json
import os
import platform
import random
import resource
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import count, islice
from statistics import median

import numpy as np

from eva_local.api import Ensemble, Report
from eva_local.bench.pace import Clock, Meter, Pace, Round, Spread, busy, pace
from eva_local.config.specs import EnsembleSpec
from eva_local.engine.request import Request, Told
from eva_local.engine.runner import Runner
from eva_local.errors import EvaError, InputError
from eva_local.llama.backend import can_offload
from eva_local.opening import ensemble_of, open_models
from eva_local.pages import frame
from eva_local.types import Message, Sampling, Usage

#: What is asked, by its kind.
ASKED: tuple[tuple[str, str], ...] = tuple(
    (row["kind"], row["text"])
    for row in map(json.loads, frame.shipped("bench/questions.jsonl").splitlines())
)
_TOKENS = 96
_TEMPERATURES = (0.0, 0.7)
# What four tokens in one batch may cost elsewhere, as a multiple of one.
_FOUR = (1.0, 1.5, 2.0)
# A short prompt is read so often.
_READINGS = 3
# Steps before the rounds that count.
_WARM_UP = 2
# Symbols of the shared space are up to so many tokens of a member, mostly.
_TOKENS_A_STEP = 2
# Parts of sentences, of which a text of any length is made that does not repeat itself.
_PARTS: list[list[str]] = json.loads(frame.shipped("bench/sentences.json"))


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


@dataclass(frozen=True, slots=True)
class Benchmark:
    """All trials of an ensemble, and the machine that they ran on; in seconds and bytes."""

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
    answers: tuple[Answers, ...] = ()


def measure(
    spec: EnsembleSpec,
    contexts: Iterable[int],
    parallel: int,
    rounds: int,
    n_asked: int,
    report: Report,
) -> Benchmark:
    """Open the members of `spec`; measure `rounds` steps after prompts of `contexts` tokens.

    One text and `parallel` at a time are written, and `n_asked` questions answered. Raises
    InputError where a context has no room.
    """
    bytewise = spec.fusion.space == "bytes"
    with open_models(spec, report, parallel=parallel, bytewise=bytewise) as models:
        # Members of one model have one meter.
        meters = {model: Meter(model) for model in models}
        metered = [meters[model] for model in models]
        with ensemble_of(spec, metered, _sampling(spec), report, parallel=parallel) as ensemble:
            named = {_named(spec, metered, meter): meter for meter in meters.values()}
            bench = Bench(ensemble, named, rounds, report)
            # What does not fit is found before minutes of work.
            prompts = {size: _prompts(ensemble, size, rounds) for size in sorted(set(contexts))}
            answered = tuple(answers(ensemble, n_asked, report))
            trials = tuple(
                trial
                for n_tokens, texts in prompts.items()
                for trial in bench.run(n_tokens, texts, sorted({1, parallel}))
            )
    return Benchmark(
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
        answers=answered,
    )


@dataclass(frozen=True, slots=True)
class Bench:
    """An ensemble of metered members, of which `rounds` steps are measured in each trial."""

    ensemble: Ensemble
    meters: Mapping[str, Meter]
    rounds: int
    report: Report
    clock: Clock = time.perf_counter

    def run(self, n_tokens: int, prompts: Sequence[str], widths: Sequence[int]) -> Iterator[Trial]:
        """Read all prompts, which are `n_tokens` long, and go on with the last of them."""
        label = f"{n_tokens} tokens of context"
        # A step is held against the same decoded alone.
        self.ensemble.drafter = "off"
        firsts: list[float] = []
        self.ensemble.n_slots = 1
        for number, prompt in enumerate(prompts):
            self.report(f"{label}: reading", number / len(prompts))
            with closing(self._texts(prompt, number)) as runner:
                firsts.append(self._begin(runner, 1))
        for width in widths:
            self.ensemble.n_slots = width
            rounds, cached = self._write(prompts[-1], width, f"{label}: {width} at a time")
            yield Trial(
                context=n_tokens,
                texts=width,
                prompt_tokens=self.ensemble.prompt_tokens(prompts[-1]),
                first_seconds=median(firsts) if width == 1 else None,
                cached_first_seconds=cached,
                writing=pace(list(self.meters), rounds),
                peak_memory=peak_memory(),
            )

    def _begin(self, runner: Runner, width: int) -> float:
        """Return the seconds until so many texts have their first token."""
        began = self.clock()
        begun: set[int] = set()
        while len(begun) < width:
            begun |= {number for number, _ in _steps(runner)}
        return self.clock() - began

    def _write(self, prompt: str, width: int, label: str) -> tuple[list[Round], float]:
        rounds = []
        with closing(self._texts(prompt)) as runner:
            first = self._begin(runner, width)
            for number in range(_WARM_UP + self.rounds):
                self.report(label, number / (_WARM_UP + self.rounds))
                runner.draw()
                for meter in self.meters.values():
                    meter.reset()
                began = self.clock()
                told = len(_steps(runner))
                seconds = self.clock() - began
                parts = tuple(meter.part() for meter in self.meters.values())
                rounds.append(Round(seconds, busy(self.meters.values()), told, parts))
        return rounds[_WARM_UP:], first

    def _texts(self, prompt: str, seed: int = 0) -> Runner:
        own = _sampling(self.ensemble.spec)
        return self.ensemble.runner(Request(prompt, replace(own, seed=n)) for n in count(seed))


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
    more = decoded - passes
    return Answers(
        drafter=drafter,
        temperature=temperature,
        step=Spread.of(seconds / steps),
        over_sum=Spread.of(seconds / sums),
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


def _named(spec: EnsembleSpec, metered: Sequence[Meter], meter: Meter) -> str:
    pairs = zip(spec.members, metered, strict=True)
    first, *others = [member.name for member, its in pairs if its is meter]
    return f"{first} and {len(others)} more" if others else first


def _steps(runner: Runner) -> list[tuple[int, Told]]:
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

    def tokens(text: str) -> int:
        return ensemble.prompt_tokens(text)[pivot]

    n_prompts = _READINGS if n_tokens <= ensemble.spec.members[pivot].load.n_batch else 1
    prompts = [passage(n_tokens, tokens, seed) for seed in range(n_prompts)]
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
    free = replace(spec.sampling, stop=(), grammar=None, json_schema=None)
    return replace(free, temperature=free.temperature or 1.0, max_tokens=sys.maxsize)


def words(seed: int) -> Iterator[str]:
    """Yield words without end; the same `seed` gives the same, another begins differently."""
    chosen = random.Random(seed)
    yield from f"Chapter {seed + 1}.".split()
    while True:
        sentence = " ".join(chosen.choice(part) for part in _PARTS)
        yield from f"{sentence}, {chosen.randint(2, 99)} times.".split()


def passage(n_tokens: int, count: Callable[[str], int], seed: int = 0) -> str:
    """Return the longest text of at most `n_tokens` tokens, at least one word, by `count`."""
    source = words(seed)
    found = [next(source)]
    while count(" ".join(found)) <= n_tokens:
        found += islice(source, len(found))
    texts = range(len(found))
    longer = bisect_right(texts, n_tokens, lo=2, key=lambda n: count(" ".join(found[:n])))
    return " ".join(found[: longer - 1])


def report_page(benchmark: Benchmark) -> str:
    """Return the page, as HTML."""
    named = [(_name(trial), trial.writing) for trial in benchmark.trials]
    told = [(f"{one.drafter}, temperature {one.temperature:g}", one) for one in benchmark.answers]
    return frame.report(
        "bench/report.html",
        title=f"{benchmark.ensemble}: what it costs",
        benchmark=benchmark,
        answers=[x for name, one in told for x in _line(name, one.over_sum, "{:.2f}")],
        sums=[x for name, pace in named for x in _line(name, pace.over_sum, "{:.3f}")],
        slowest=[x for name, pace in named for x in _line(name, pace.over_slowest, "{:.3f}")],
        shares=[x for name, pace in named for x in _line(name, pace.bookkeeping, "{:.1f}%", 100)],
        trials=[(_name(trial), trial, list(_alone(trial))) for trial in benchmark.trials],
    )


def _name(trial: Trial) -> str:
    texts = "one text" if trial.texts == 1 else f"{trial.texts} texts"
    return f"{trial.context:,} tokens, {texts}"


def _alone(trial: Trial) -> Iterator[frame.Line]:
    for number, one in enumerate(trial.writing.members):
        yield from _line(one.name, one.alone, "{:.1f} ms", 1000, frame.member_class(number))
    yield from _line("ensemble", trial.writing.step, "{:.1f} ms", 1000)


def _line(
    label: str, spread: Spread | None, form: str, factor: float = 1, css: str = "main"
) -> Iterator[frame.Line]:
    if spread is not None:
        median, low, high = (factor * x for x in (spread.median, spread.low, spread.high))
        yield frame.Line(label, css, median, low, high, form.format(median))
