"""Whether an ensemble of some models is worth it: what they are, what they cost, a short test.

The test is of texts that come with the package: questions with the right answer among wrong ones,
and prose, code and letters. Members write nothing, but say how likely each text is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from eva_local.api import Report
from eva_local.config.specs import EnsembleSpec, MemberSpec
from eva_local.errors import ModelError
from eva_local.evaluate.contest import Contest, alone
from eva_local.evaluate.evaluation import Evaluation
from eva_local.evaluate.forms import Conditions
from eva_local.evaluate.results import Results
from eva_local.evaluate.rows import BUILT_IN, read_tasks
from eva_local.evaluate.summary import Estimate, Standing, TaskSummary, summarize
from eva_local.llama.backend import can_offload
from eva_local.llama.model import Model
from eva_local.models.header import read_header
from eva_local.models.store import locate, size
from eva_local.opening import bytes_of_text, free_memory, open_models

# Rows go so many side by side.
_PARALLEL = 4
# So much of each text is scored.
_TEXT_BYTES = 120
# A standing as quick as another, but for the noise of a machine.
_AS_QUICK = 1.05


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known of a member.

    `n_vocab` counts its tokens, `shared` is the share of the pivot's that it has too. `weights` and
    `cache` are bytes of memory: of a model that several members share, once, and of one text.
    """

    name: str
    path: Path
    architecture: str
    quantisation: str | None
    n_vocab: int
    shared: float
    has_chat_template: bool
    takes_back: bool
    weights: int
    cache: int


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of a token: each member decoding by itself, and the ensemble's answers."""

    alone: tuple[float, ...]
    together: float
    ahead: float


@dataclass(frozen=True, slots=True)
class Check:
    """What was found of an ensemble. `free` is the memory that was free before it was opened.

    `winner` is who should be used: the ensemble in one of its spaces, or a member alone.
    """

    spec: EnsembleSpec
    facts: tuple[Fact, ...]
    free: int | None
    pace: Pace | None
    evaluation: Evaluation
    winner: EnsembleSpec
    verdict: str

    def as_json(self) -> dict[str, object]:
        """Return all of it, and every contestant's answer to every row."""
        return {
            "ensemble": self.spec.name,
            "pivot": self.spec.pivot,
            "members": [asdict(fact) for fact in self.facts],
            "memory": {"needed": needed(self.facts), "free": self.free},
            "seconds_per_token": self.pace and asdict(self.pace),
            "use": {"name": self.winner.name, "space": self.winner.fusion.space},
            "verdict": self.verdict,
            "test": self.evaluation.as_json(),
        }


def needed(facts: Sequence[Fact]) -> int:
    """Return the bytes of memory that all members need for one text."""
    return sum(fact.weights + fact.cache for fact in facts)


def check(spec: EnsembleSpec, results: Results, report: Report, pace: Pace | None = None) -> Check:
    """Open the members of an ensemble, look at them, and let them and the ensemble do the test.

    Raises StoreError for a file that is not here or is none, ModelError where one cannot be opened.
    """
    free = free_memory()
    with open_models(spec, report, parallel=_PARALLEL, bytewise=len(spec.members) > 1) as models:
        facts = tuple(_facts(spec, models))
        evaluation = _tested(spec, models, results, report)
    return Check(spec, facts, free, pace, evaluation, *_best(evaluation))


def refuse_too_large(spec: EnsembleSpec) -> None:
    """Raise ModelError, with what to change, where memory has no room for the members."""
    free = free_memory()
    on_cpu = [each for each in spec.members if not can_offload() or not each.load.n_gpu_layers]
    weights = {member.opened: size(member) or 0 for member in on_cpu}
    caches = sum(_cache(spec, member) for member in on_cpu)
    needed = sum(weights.values()) + caches
    if free is not None and needed > free:
        largest = max(on_cpu, key=lambda member: weights[member.opened])
        raise ModelError(
            f"{spec.name} needs {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are free: "
            f"lower --ctx-size (now {largest.load.n_ctx}, for which {caches / 1e9:.1f} GB are), "
            f"leave {largest.name} out ({weights[largest.opened] / 1e9:.1f} GB), or take smaller "
            "quantisations"
        )


def _cache(spec: EnsembleSpec, member: MemberSpec) -> int:
    return bytes_of_text(member, bytewise=spec.fusion.space == "bytes")


def _facts(spec: EnsembleSpec, models: Sequence[Model]) -> Iterator[Fact]:
    pivot = set(models[spec.pivot_index].vocabulary.ids)
    seen = set[object]()
    for member, model in zip(spec.members, models, strict=True):
        path = locate(member)
        header = read_header(path)
        yield Fact(
            name=member.name,
            path=path,
            architecture=header.architecture,
            quantisation=header.quantisation,
            n_vocab=len(model.vocabulary),
            shared=len(pivot & set(model.vocabulary.ids)) / max(len(pivot), 1),
            has_chat_template=bool(member.chat_template) or header.has_chat_template,
            takes_back=model.can_roll_back,
            weights=0 if member.opened in seen else size(member) or 0,
            cache=_cache(spec, member),
        )
        seen.add(member.opened)


def _tested(
    spec: EnsembleSpec, models: Sequence[Model], results: Results, report: Report
) -> Evaluation:
    named = {member.name: model for member, model in zip(spec.members, models, strict=True)}
    contest = Contest(named, results, Conditions(text_bytes=_TEXT_BYTES), _PARALLEL, report)
    # Members of one model in one role are one contestant.
    kinds = {(member.opened, str(member.role)): member for member in reversed(spec.members)}
    contestants = [alone(member) for member in reversed(kinds.values())]
    n_members = len(contestants)
    if len(spec.members) > 1:
        other = replace(spec.fusion, space="pivot" if spec.fusion.space == "bytes" else "bytes")
        contestants += [spec, replace(spec, name=f"{spec.name}, {other.space}", fusion=other)]
    tasks = [contest.scorable(task) for task in read_tasks(BUILT_IN)]
    entries = contest.run(tasks, contestants)
    summaries = [
        summarize([entry for entry in entries if entry.task is task], seed, n_members)
        for seed, task in enumerate(tasks)
    ]
    return Evaluation(spec.name, spec.pivot, contest.conditions, tuple(summaries))


def _best(evaluation: Evaluation) -> tuple[EnsembleSpec, str]:
    """Return who should be used and why, in one sentence.

    Who is best is told by points of the questions and, of the texts, percent of the bits of the
    best member, added up. Who cannot be told from the best and is quicker is to be preferred.
    """
    tasks = evaluation.tasks
    found = [(one, _worth(tasks, one.name)) for one in tasks[0].standings]
    # The best first.
    found.sort(key=lambda each: each[1].value, reverse=True)
    worth = {one.name: estimate for one, estimate in found}
    seconds = {name: sum(task.standing(name).seconds for task in tasks) for name in worth}
    tied = [one for one, estimate in found if (found[0][1] - estimate).low <= 0]
    quick = _AS_QUICK * min(seconds[one.name] for one in tied)
    chosen = next(one for one in tied if seconds[one.name] <= quick)
    n_rows = sum(len(task.task.rows) for task in tasks)
    return chosen.spec, _sentence(chosen, n_rows, worth, seconds)


def _worth(tasks: Sequence[TaskSummary], name: str) -> Estimate:
    parts = []
    for task in tasks:
        best = task.standing(task.best).score.value or 1.0
        parts.append((-100 / best if task.scale.in_bits else 1.0, task.standing(name).score))
    value = sum(factor * score.value for factor, score in parts)
    return Estimate(value, np.sum([factor * each.resamples for factor, each in parts], axis=0))


def _sentence(
    chosen: Standing, n_rows: int, worth: dict[str, Estimate], seconds: dict[str, float]
) -> str:
    if len(worth) == 1:
        return f"{chosen.name} is one model; give several to see what they are worth together."
    space = "" if chosen.alone else f" in the space {chosen.spec.fusion.space}"
    told = f"Use {chosen.name}{' alone' if chosen.alone else space}"
    leader, second, *_ = worth
    if leader != chosen.name:
        lead = worth[leader] - worth[chosen.name]
        times = seconds[leader] / max(seconds[chosen.name], 1e-9)
        return (
            f"{told}: {n_rows} rows cannot tell it from {leader} ({lead.value:+.1f} points, 95% "
            f"interval {lead.interval()}), which takes {times:.1f} times as long."
        )
    lead = worth[leader] - worth[second]
    sure = "surely" if lead.low > 0 else "as it seems"
    return (
        f"{told}: it is {sure} the best, {lead.value:.1f} points before {second} (95% interval "
        f"{lead.interval()}, {n_rows} rows)."
    )
