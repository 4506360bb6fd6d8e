"""Outcomes of evaluations that were never run, for the report and its page."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

import numpy as np
from fakes import FakeModel

from eva_local.alignment.library import identity
from eva_local.alignment.mapping import surface_refined
from eva_local.api import Ensemble
from eva_local.config.specs import EnsembleSpec, FusionSettings, MemberSpec, ModelSpec, PathSource
from eva_local.engine.engine import Engine
from eva_local.evaluate.contest import Entry
from eva_local.evaluate.evaluation import Evaluation
from eva_local.evaluate.forms import Conditions
from eva_local.evaluate.rows import Result, Task, TaskRow
from eva_local.evaluate.summary import summarize
from eva_local.spaces.pivot import PivotSpace
from eva_local.types import Sampling

MEMBERS = ("qwen2.5-coder-0.5b", "smollm2-135m", "gemma3-270m")
WORDS = (*("the", "sea", "is", "salt", "because", "rivers", "carry"), *("minerals", "for", "ages"))


def spec(name: str = "trio", members: tuple[str, ...] = MEMBERS, **fusion: object) -> EnsembleSpec:
    models = tuple(ModelSpec(one, PathSource(f"{one}.gguf"), sha256=one) for one in members)
    return EnsembleSpec(name, models, members[0], FusionSettings(**fusion))


def alone(member: MemberSpec) -> EnsembleSpec:
    """A member as a contestant of its own."""
    return EnsembleSpec(member.name, (member,), member.name)


def contestants(
    members: tuple[str, ...] = MEMBERS, variants: tuple[str, ...] = ()
) -> list[EnsembleSpec]:
    whole = spec(members=members)
    ensembles = [whole, *(spec(name, members, combine="geometric") for name in variants)]
    return [*map(alone, whole.members), *ensembles]


def task(kind: str, count: int, name: str | None = None) -> Task:
    made = {
        "choice": lambda i: TaskRow(
            f"c{i}", prompt=f"Question: what is {i}?\nAnswer:", choices=("yes", "no", "so"), label=0
        ),
        "bpb": lambda i: TaskRow(f"b{i}", text=" ".join(WORDS) * (1 + i % 3)),
        "translate": lambda i: TaskRow(
            f"t{i}", prompt=f"French: {i}\nEnglish:", answers=(" ".join(WORDS),), language="en"
        ),
        "generate": lambda i: TaskRow(
            f"g{i}", prompt=f"Question: {i}?\nAnswer:", answers=(str(i),)
        ),
    }
    return Task(name or kind, kind, tuple(made[kind](i) for i in range(count)))


def entry(of: Task, contestant: EnsembleSpec, skill: float, seed: int) -> Entry:
    """Results of a contestant that is right in the share `skill` of the rows."""
    generator = np.random.default_rng(seed)
    size = len(contestant.members)

    def result(place: int, row: TaskRow) -> Result:
        # What is hard for one is hard for all, mostly.
        luck = 0.6 * np.random.default_rng(place).random() + 0.4 * generator.random()
        right = luck < skill
        filtered = (int(generator.integers(0, 5)),) * size if size > 1 else (0,)
        shared = {"steps": 20, "filtered": filtered, "seconds": 0.1 * size + 0.1 * luck}
        if of.kind == "choice":
            best = (-1.0, -5.0, -6.0) if right else (-6.0, -1.0, -5.0)
            return Result(**shared, log_likelihoods=best, n_bytes=(3, 2, 2))
        if of.kind == "bpb":
            nats = -len(row.text) * (0.9 - 0.3 * skill + 0.2 * luck)
            return Result(**shared, log_likelihoods=(nats,), n_bytes=(len(row.text),))
        if of.kind == "translate":
            words = [w if generator.random() < skill else "blue" for w in WORDS]
            return Result(**shared, text=" " + " ".join(words))
        return Result(**shared, text=f" The answer is {row.name[1:] if right else 'unclear'}.")

    results = tuple(result(place, row) for place, row in enumerate(of.rows))
    return Entry(of, contestant, results)


def outcome(
    kinds: tuple[str, ...] = ("generate", "choice", "translate", "bpb"),
    count: int = 60,
    members: tuple[str, ...] = MEMBERS,
    variants: tuple[str, ...] = ("combine=geometric,weights=running",),
    tuned: str = "",
) -> Evaluation:
    them = contestants(members, variants)
    summaries = []
    for number, kind in enumerate(kinds):
        of = task(kind, count)
        skills = (0.45, 0.25, 0.4, 0.55, 0.5, 0.35)
        entries = [
            entry(of, one, skill, 10 * number + place)
            for place, (one, skill) in enumerate(zip(them, skills, strict=False))
        ]
        summaries.append(summarize(entries, number))
    return Evaluation("trio", members[0], Conditions(), tuple(summaries), tuned)


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ANSWER = {"task": "sums", "prompt": "Question: 1+1?\nAnswer:", "answers": ["2"]}


SHOT = TaskRow(
    "s",
    prompt="Question: 2+2?\nAnswer:",
    answers=("4",),
    rationale="Two <<2+2=4>>and two\nmake 4.\n#### 4",
)


ASKED = TaskRow("a", prompt="Question: 1+1?\nAnswer: ", answers=("2",))


WHOLE = FusionSettings(candidates=0, filter="off")


def ensemble(models: list[FakeModel], fusion: FusionSettings = WHOLE) -> Ensemble:
    mappings = [
        identity(model)
        if model.vocabulary.fingerprint == models[0].vocabulary.fingerprint
        else surface_refined(model.tokenizer, models[0].tokenizer)
        for model in models
    ]
    names = [f"m{i}" for i in range(len(models))]
    space = PivotSpace(models, mappings, n_candidates=fusion.candidates)
    members = tuple(ModelSpec(name, PathSource(Path("fake.gguf"))) for name in names)
    engine = Engine(names, models, space, fusion)
    spec = EnsembleSpec("fakes", members, "m0", fusion)
    return Ensemble(spec, models, engine, Sampling(), contextlib.ExitStack())


def by_hand(model: FakeModel, prompt: str, text: str) -> float:
    """The sum over the text's tokens, of the speakable tokens and END alone."""
    tokens = [1, *model.tokenizer.encode(prompt.encode())]
    speakable = model.vocabulary.speakable.copy()
    speakable[list(model.vocabulary.end_ids)] = True
    total = 0.0
    for token_id in model.tokenizer.encode(text.encode()):
        logits = model._hashed(tokens).astype(float)
        weights = np.where(speakable, np.exp(logits - logits.max()), 0)
        total += math.log(weights[token_id] / weights.sum())
        tokens.append(token_id)
    return total
