"""Measure a batch job against what the members' raw decoding allows, and against one row at a time.

    .venv/bin/python -m tools.batch_rate ROWS.jsonl [--ensemble demo] [--rows 64] [--tokens 64]

Two ensembles of the same files are open: one writes all rows in `--parallel` places, one writes
some of them one at a time. They take turns, and after each turn the members decode alone, in
the same sequences and at the same places of them: one token in each place (the rate of
answers), one token in one place, and a run of tokens in a spare one (the rate of prompts). So
the machine may change its speed in the meantime: each turn is held against the raw rates of
its own moment. What a turn is allowed is the time that raw decoding would have taken for the
tokens that it decoded; what is printed are sums of these times and medians of the rates.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eva_local.api import Ensemble
from eva_local.config.config import load_config
from eva_local.engine.request import Request, Told
from eva_local.engine.runner import Runner
from eva_local.errors import EvaError
from eva_local.llama.model import Run
from eva_local.opening import open_ensemble
from eva_local.types import Message, Sampling, Step

TURN_S = 2.5
# Tokens of a prompt that are decoded at once to measure the rate of prompts.
PROMPT_RUN = 64


@dataclass
class Work:
    """Rows that are written in one way, and what it took so far.

    `written` and `read` count the tokens that each member decoded in answers and in prompts.
    """

    ensemble: Ensemble
    n_slots: int
    seconds: float = 0.0
    allowed: float = 0.0
    n_tokens: int = 0
    texts: dict[int, str] = field(default_factory=dict)
    runner: Runner = field(init=False)

    def __post_init__(self) -> None:
        """Count what the members decode."""
        self.written = [0] * len(self.ensemble.members)
        self.read = [0] * len(self.ensemble.members)
        for member in range(len(self.ensemble.members)):
            self._count(member)

    def begin(self, prompts: Sequence[str], sampling: Sampling) -> None:
        """Let the rows wait."""
        self.ensemble.n_slots = self.n_slots
        self.ensemble.for_throughput()
        requests = [Request([Message("user", prompt)], sampling) for prompt in prompts]
        self.runner = self.ensemble.runner(requests)

    @property
    def busy(self) -> bool:
        """Whether a row is left."""
        return not self.runner.done

    def turn(self, limit: float) -> tuple[float, list[int], list[int]]:
        """Step for some seconds; return the time, and the tokens of answers and of prompts."""
        written, read = list(self.written), list(self.read)
        began = time.perf_counter()
        while self.busy and time.perf_counter() - began < limit:
            for number, told in self.runner.step():
                self._hear(number, told)
        taken = time.perf_counter() - began
        self.seconds += taken
        return taken, difference(self.written, written), difference(self.read, read)

    def _hear(self, number: int, told: Told) -> None:
        if isinstance(told, EvaError):
            raise told
        assert isinstance(told, Step)
        self.texts[number] = self.texts.get(number, "") + told.text
        self.n_tokens += told.piece != b""

    def _count(self, member: int) -> None:
        model: Any = self.ensemble._models[member]
        states: Any = self.ensemble._engine._states
        decode = model.decode

        def counted(runs: Sequence[Run]) -> Any:
            for run in runs:
                border = next(
                    state[member].context._n_prompt
                    for state in states.values()
                    if state[member].context._seq_id == run.seq_id
                )
                of_prompt = max(min(border - run.start, len(run.tokens)), 0)
                self.read[member] += of_prompt
                self.written[member] += len(run.tokens) - of_prompt
            return decode(runs)

        model.decode = counted
        model.raw_decode = decode


def difference(now: Sequence[int], before: Sequence[int]) -> list[int]:
    """Return what was added, number by number."""
    return [a - b for a, b in zip(now, before, strict=True)]


@dataclass(frozen=True)
class Raw:
    """Seconds for a token of one member: beside others, alone, and in a prompt."""

    beside: float
    alone: float
    prompt: float


def raw(ensemble: Ensemble, places: int) -> list[Raw]:
    """Measure the members' own decoding, in the places of an ensemble and a spare one."""
    states: Any = ensemble._engine._states
    found = []
    for member in range(len(ensemble.members)):
        model: Any = ensemble._models[member]
        at = {slot: states[slot][member].context.cached for slot in range(places)}

        def decode(slots: Sequence[int], model: Any = model, at: dict[int, int] = at) -> float:
            for slot in slots:
                model.remove(slot, at[slot])
            taken = timed(lambda: model.raw_decode([Run(slot, at[slot], [100]) for slot in slots]))
            for slot in slots:
                model.remove(slot, at[slot])
            return taken

        prompt = Run(places, 0, list(range(100, 100 + PROMPT_RUN)), logits=False)
        found.append(
            Raw(
                beside=decode(range(places)) / places,
                alone=min(decode([0]), decode([0])),
                prompt=timed(lambda: model.raw_decode([prompt])) / PROMPT_RUN,  # noqa: B023
            )
        )
        model.remove(places, 0)
    return found


def timed(act: Callable[[], object]) -> float:
    """Return how long it takes to act, in seconds."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def main() -> None:
    """Print the rates and their ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--ensemble", default="demo")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--parallel", type=int, default=16)
    parser.add_argument("--single", type=int, default=8, help="rows that are written one by one")
    parser.add_argument("--n-ctx", type=int, default=1024)
    options = parser.parse_args()
    lines = options.file.read_text(encoding="utf-8").splitlines()[: options.rows]
    prompts = [json.loads(line)["prompt"] for line in lines]
    spec = load_config(overrides={"n_ctx": options.n_ctx}).ensemble(options.ensemble)
    sampling = replace(spec.sampling, max_tokens=options.tokens, temperature=0.0)
    with open_ensemble(spec, parallel=options.parallel + 1) as many, open_ensemble(spec) as one:
        wide, narrow = Work(many, options.parallel), Work(one, 1)
        wide.begin(prompts, sampling)
        narrow.begin(prompts[:: max(len(prompts) // options.single, 1)], sampling)
        raws = []
        while wide.busy or narrow.busy:
            turns = [(wide, wide.turn(TURN_S)), (narrow, narrow.turn(TURN_S / 2))]
            raws.append(raw(many, options.parallel))
            for work, (_, written, read) in turns:
                work.allowed += sum(
                    w * (r.alone if work.n_slots == 1 else r.beside) + p * r.prompt
                    for r, w, p in zip(raws[-1], written, read, strict=True)
                )
    report(wide, narrow, raws)


def report(wide: Work, narrow: Work, raws: Sequence[Sequence[Raw]]) -> None:
    """Print what was found."""
    for member, name in enumerate(wide.ensemble.members):
        beside, alone, prompt = (
            1 / statistics.median(getattr(each[member], kind) for each in raws)
            for kind in ("beside", "alone", "prompt")
        )
        print(
            f"{name}: raw {beside:.1f} tokens/s in {wide.n_slots} sequences, {alone:.1f} in one, "
            f"{prompt:.0f} in a prompt; decoded {wide.written[member]} tokens of answers and "
            f"{wide.read[member]} of prompts"
        )
    for work in (wide, narrow):
        print(
            f"parallel {work.n_slots}: {work.n_tokens} tokens in {work.seconds:.1f} s = "
            f"{work.n_tokens / work.seconds:.2f} tokens/s, {work.allowed / work.seconds:.3f} of "
            "what raw decoding allows"
        )
    gain, limit = (
        (wide.n_tokens / getattr(wide, kind)) / (narrow.n_tokens / getattr(narrow, kind))
        for kind in ("seconds", "allowed")
    )
    print(f"gain over one at a time: {gain:.2f}, where raw decoding would gain {limit:.2f}")


if __name__ == "__main__":
    main()
