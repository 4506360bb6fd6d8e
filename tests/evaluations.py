"""Outcomes of evaluations that were never run, for the report and its page."""

from __future__ import annotations

import numpy as np

from eva_local.config.specs import EnsembleSpec, FusionSettings, ModelSpec, PathSource
from eva_local.evaluate.contest import Contestant, Entry, Setting, alone
from eva_local.evaluate.outcome import Outcome
from eva_local.evaluate.results import Result
from eva_local.evaluate.rows import Row, Task
from eva_local.evaluate.summary import summarize

MEMBERS = ("qwen2.5-coder-0.5b", "smollm2-135m", "gemma3-270m")
WORDS = (*("the", "sea", "is", "salt", "because", "rivers", "carry"), *("minerals", "for", "ages"))


def spec(name: str = "trio", members: tuple[str, ...] = MEMBERS, **fusion: object) -> EnsembleSpec:
    models = tuple(ModelSpec(one, PathSource(f"{one}.gguf"), sha256=one) for one in members)
    return EnsembleSpec(name, models, members[0], FusionSettings(**fusion))


def contestants(
    members: tuple[str, ...] = MEMBERS, variants: tuple[str, ...] = ()
) -> list[Contestant]:
    whole = spec(members=members)
    ensembles = [whole, *(spec(name, members, combine="geometric") for name in variants)]
    return [*map(alone, whole.members), *(Contestant(one.name, one) for one in ensembles)]


def task(kind: str, count: int, name: str | None = None) -> Task:
    made = {
        "choice": lambda i: Row(
            f"c{i}", prompt=f"Question: what is {i}?\nAnswer:", choices=("yes", "no", "so"), label=0
        ),
        "bpb": lambda i: Row(f"b{i}", text=" ".join(WORDS) * (1 + i % 3)),
        "translate": lambda i: Row(
            f"t{i}", prompt=f"French: {i}\nEnglish:", answers=(" ".join(WORDS),), language="en"
        ),
        "generate": lambda i: Row(f"g{i}", prompt=f"Question: {i}?\nAnswer:", answers=(str(i),)),
    }
    return Task(name or kind, kind, tuple(made[kind](i) for i in range(count)))


def entry(of: Task, contestant: Contestant, skill: float, seed: int) -> Entry:
    """Results of a contestant that is right in the share `skill` of the rows."""
    generator = np.random.default_rng(seed)
    size = len(contestant.spec.members)

    def result(place: int, row: Row) -> Result:
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
) -> Outcome:
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
    return Outcome("trio", members[0], Setting(), tuple(summaries), tuned)
