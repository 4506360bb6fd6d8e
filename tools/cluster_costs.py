"""Measure what a Ray cluster costs on this machine: a call, a step of a remote member, rows.

    python tools/cluster_costs.py MODEL [OTHER] [--rows N] [--rounds N]

MODEL and OTHER are names of models.toml or GGUF files. All on 127.0.0.1; local and remote take
turns, and lower quartiles are told. Each model has one thread, so that processes do not take each
other's cores more than they must.
"""

import argparse
import json
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from eva_local.api import Ensemble
from eva_local.batch.fleet import Fleet
from eva_local.batch.forms import Wishes
from eva_local.batch.job import Errand, carry_out
from eva_local.cache.context import as_row
from eva_local.cluster.member import packed
from eva_local.cluster.worker import Worker, result
from eva_local.config.config import load_config
from eva_local.config.specs import EnsembleSpec
from eva_local.llama.model import Run
from eva_local.opening import open_ensemble
from eva_local.types import Sampling

PROMPT = "The sea is salty because"
SAMPLING = Sampling(max_tokens=17)


class Echo:
    """Returns a row of so many floats."""

    def row(self, count: int) -> Any:
        """Return it."""
        return np.zeros(count, np.float32)


def calls(rounds: int) -> None:
    """Tell how long a call of an actor takes, by the size of what it brings."""
    worker = Worker("ray", Echo)
    for count in (1, 640, 49152, 151936):
        times = [timed(lambda: result(worker.ask("row", count), 60)) for _ in range(rounds)]  # noqa: B023
        print(f"a call that brings {4 * count} bytes: {1e3 * quartile(times):.2f} ms")
    worker.end()


def bytes_sent() -> None:
    """Tell what goes over the wire for a step, beside Ray's own words."""
    logits = np.random.default_rng(0).normal(size=151936).astype(np.float32)
    for n_texts in (1, 16):
        for top in (320, 0):
            runs = [Run(n, 500, as_row([7]), top=top) for n in range(n_texts)]
            asked = len(pickle.dumps(([(500, "remove", (0, 500), {})], "decode", runs)))
            told = len(pickle.dumps([packed(logits.copy(), run) for run in runs]))
            what = f"the {top} likeliest" if top else "all 151936"
            print(f"a step of {n_texts} texts, {what} logits: {asked} bytes there, {told} back")


def steps(spec: EnsembleSpec, remote: tuple[str, ...], rounds: int) -> None:
    """Tell how long a step takes with members here, and with those of `remote` elsewhere."""
    members = tuple(replace(m, on="ray") if m.name in remote else m for m in spec.members)
    with open_ensemble(spec) as here, open_ensemble(replace(spec, members=members)) as there:
        found: dict[str, list[float]] = {"here": [], "there": []}
        for _ in range(rounds + 1):
            for name, ensemble in (("here", here), ("there", there)):
                found[name].append(step_seconds(ensemble))
        here_ms, there_ms = (1e3 * quartile(times[1:]) for times in found.values())
        assert here.complete(PROMPT).text == there.complete(PROMPT).text
    print(f"{' + '.join(m.name for m in spec.members)}, {spec.fusion.space}, ", end="")
    print(f"candidates {spec.fusion.candidates}, elsewhere: {', '.join(remote)}: ", end="")
    print(f"{here_ms:.2f} ms a step here, {there_ms:.2f} there, {there_ms - here_ms:.2f} added")


def step_seconds(ensemble: Ensemble) -> float:
    """Return the usual seconds between the pieces of an answer."""
    ends = [time.perf_counter() for _ in ensemble.stream(PROMPT, SAMPLING)]
    return quartile([after - before for before, after in pairwise(ends[1:])])


def quartile(times: Sequence[float]) -> float:
    """Return what a quarter of the times stay under: others on the machine only add to them."""
    return sorted(times)[len(times) // 4]


def rows(spec: EnsembleSpec, n_rows: int) -> None:
    """Tell how many rows a second one process answers, and one and two workers."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.jsonl"
        prompts = [f"{PROMPT} {number}" for number in range(n_rows)]
        lines = [json.dumps({"id": n, "prompt": prompt}) for n, prompt in enumerate(prompts)]
        source.write_text("\n".join(lines))
        for n_workers in (0, 1, 2):
            target = str(Path(folder) / f"{n_workers}.jsonl")
            errand = Errand(str(source), target, spec, Wishes(SAMPLING, raw=True))

            def opened(_count: int, n: int = n_workers) -> Ensemble | Fleet:
                return Fleet("ray", spec, n, 4) if n else open_ensemble(spec, parallel=4)

            progress = carry_out(errand, opened)
            who = f"{n_workers} workers" if n_workers else "one process"
            rate = progress.n_done / progress.seconds
            print(f"{who}, 4 slots each: {rate:.2f} rows/s, {progress.rate:.1f} tokens/s")


def timed(function: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--rows", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    settings = {"threads": 1, "drafter": "off", "n_ctx": 512, "batch_invariant": True}
    config = load_config(overrides=settings)
    alone, spec = config.ensemble(given.models[:1]), config.ensemble(given.models)
    bytes_sent()
    calls(4 * given.rounds)
    first = alone.members[0].name
    for fusion in ({}, {"candidates": 0}, {"space": "bytes"}):
        one = replace(alone, fusion=replace(alone.fusion, **fusion))
        steps(one, (first,), given.rounds)
    if len(spec.members) > 1:
        steps(spec, (spec.members[1].name,), given.rounds)
        steps(spec, tuple(member.name for member in spec.members), given.rounds)
    if given.rows:
        rows(spec, given.rows)


if __name__ == "__main__":
    main()
