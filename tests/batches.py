"""A fake ensemble for batch jobs, and jobs in a process of their own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from fakes import WORDS_A, WORDS_B, FakeModel

from eva_local.alignment.library import identity
from eva_local.alignment.mapping import surface
from eva_local.api import Ensemble
from eva_local.batch.forms import Wishes
from eva_local.batch.job import Errand, Progress, carry_out
from eva_local.config.specs import EnsembleSpec, FusionSettings, ModelSpec, PathSource
from eva_local.engine.engine import Engine
from eva_local.spaces.pivot import PivotSpace
from eva_local.types import Sampling


def fake_spec(folder: Path, *names: str) -> EnsembleSpec:
    """An ensemble whose files are only there to have a checksum."""
    members = []
    for name in names or ("a", "b"):
        path = folder / f"{name}.gguf"
        if not path.exists():
            path.write_bytes(f"the weights of {name}".encode())
        members.append(ModelSpec(name, PathSource(path)))
    return EnsembleSpec("pair", tuple(members), members[0].name, FusionSettings(filter="off"))


def fake_ensemble(spec: EnsembleSpec, parallel: int = 4, **options: Any) -> Ensemble:
    """An ensemble of fake models."""
    words = (WORDS_A, WORDS_B)
    models = [FakeModel(each, **options) for each, _ in zip(words, spec.members, strict=False)]
    return ensemble_of_models(spec, models, parallel)


def ensemble_of_models(spec: EnsembleSpec, models: list[FakeModel], parallel: int) -> Ensemble:
    pivot = models[0]
    mappings = [
        identity(model) if model is pivot else surface(model.tokenizer, pivot.tokenizer)
        for model in models
    ]
    engine = Engine(
        [member.name for member in spec.members], models, PivotSpace(models, mappings), spec.fusion
    )
    return Ensemble(spec, models, engine, spec.sampling, contextlib.ExitStack(), parallel=parallel)


class Quick(FakeModel):
    """A model of one step: it wants one of a few words, then END, and costs next to nothing."""

    def __init__(self) -> None:
        super().__init__(WORDS_A, logits=self._simple)
        self._rows = np.full((8, len(self.vocabulary)), -20, dtype=np.float32)
        self._rows[0, 2] = 10
        for place in range(1, 8):
            self._rows[place, 270 + place] = 10

    def _simple(self, tokens):
        return self._rows[len(tokens) % 8]


SAMPLING = Sampling(max_tokens=6)


def errand(source: Path | str, target: Path | str, spec: EnsembleSpec, **options: Any) -> Errand:
    wishes = Wishes(options.pop("sampling", SAMPLING), **options.pop("wishes", {}))
    return Errand(str(source), str(target), spec, wishes, **options)


def do(job: Errand, parallel: int = 4, **options: Any) -> Progress:
    """Carry out an errand on fake models."""
    return carry_out(job, lambda _: fake_ensemble(job.spec, parallel), **options)


class Stop:
    """Says stop after some calls."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self) -> bool:
        self.calls -= 1
        return self.calls < 0


def results(path: Path) -> list[dict[str, Any]]:
    """Read an output that must be whole lines of JSON."""
    data = path.read_bytes()
    assert not data or data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def texts(path: Path) -> dict[str | int, str | None]:
    """Return the text of each id, None for one that failed; every id must be there once."""
    rows = results(path)
    found = {row["id"]: row.get("text") for row in rows}
    assert len(found) == len(rows), "an id is there twice"
    return found


def write_rows(path: Path, count: int, **more: Any) -> Path:
    with path.open("w") as file:
        for number in range(count):
            row = {"id": f"row-{number}", "prompt": f"the {number} unbelievable", **more}
            file.write(json.dumps(row) + "\n")
    return path


def killed_after(calls: int) -> None:
    """Let this process end itself, as `kill -9` ends it, after so many calls of functions."""
    left = itertools.count(calls, -1)

    def note(_frame: object, event: str, _function: object) -> None:
        if event in ("call", "c_call") and next(left) <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(note)


if __name__ == "__main__":
    # One run of a job, which may be killed: counted from its beginning, or from its first step.
    folder, source, target = map(Path, sys.argv[1:4])
    since, calls = sys.argv[4:] or ("never", 0)
    job = errand(source, target, fake_spec(folder))
    moments = iter([since == "step"])
    if since == "beginning":
        killed_after(int(calls))
    carry_out(
        job,
        lambda _: fake_ensemble(job.spec, 4),
        told=lambda _: killed_after(int(calls)) if next(moments, False) else None,
    )
