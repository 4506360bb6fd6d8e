"""Whether an ensemble of some models is worth it: what they are, what they cost, a short test.

The test is of texts that come with the package: questions with the right answer among wrong ones,
and prose, code and letters. Members write nothing, but say how likely each text is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from eva_local.api import Report
from eva_local.config.specs import EnsembleSpec
from eva_local.errors import ModelError
from eva_local.evaluate.contest import Contest
from eva_local.evaluate.evaluation import Evaluation, hold, in_words
from eva_local.evaluate.forms import Conditions
from eva_local.evaluate.rows import BUILT_IN, Results, read_tasks
from eva_local.evaluate.summary import Estimate, TaskSummary, lead
from eva_local.llama.model import Model
from eva_local.models.header import read_header
from eva_local.models.store import locate, size
from eva_local.opening import open_models, planned, rooms, slots_that_fit

# Rows go so many side by side, where memory has room.
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
class Speed:
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
    pace: Speed | None
    evaluation: Evaluation
    winner: EnsembleSpec
    verdict: str

    @property
    def needed(self) -> int:
        """The bytes of memory that all members need for one text."""
        return sum(fact.weights + fact.cache for fact in self.facts)

    def as_json(self) -> dict[str, object]:
        """Return all of it, and every contestant's answer to every row."""
        return {
            "ensemble": self.spec.name,
            "pivot": self.spec.pivot,
            "members": [asdict(fact) for fact in self.facts],
            "memory": {"needed": self.needed, "free": self.free},
            "seconds_per_token": self.pace and asdict(self.pace),
            "use": {"name": self.winner.name, "space": self.winner.fusion.space},
            "verdict": self.verdict,
            "test": self.evaluation.as_json(),
        }


def check(spec: EnsembleSpec, results: Results, report: Report, pace: Speed | None = None) -> Check:
    """Open the members of an ensemble, look at them, and let them and the ensemble do the test.

    Raises StoreError for a file that is not here or is none, ModelError where one cannot be opened.
    """
    free = sum(free for _, free, *_ in rooms(spec)) or None
    # In bytes a text takes most.
    bytewise = replace(spec, fusion=replace(spec.fusion, space="bytes"))
    n_slots = slots_that_fit(bytewise, _PARALLEL)
    with open_models(spec, report, parallel=n_slots, bytewise=len(spec.members) > 1) as models:
        facts = tuple(_facts(spec, models))
        evaluation = _tested(spec, models, results, n_slots, report)
    return Check(spec, facts, free, pace, evaluation, *_best(evaluation))


def refuse_too_large(spec: EnsembleSpec) -> None:
    """Raise ModelError, with what to change, where a memory has no room for its members."""
    for memory, free, weights, caches in rooms(spec):
        needed = sum(weights.values()) + caches
        if needed > free:
            largest = max(weights, key=weights.__getitem__)
            raise ModelError(
                f"{spec.name} needs {needed / 1e9:.1f} GB of {memory} and {free / 1e9:.1f} GB are "
                f"free: lower --ctx-size (now {largest.load.n_ctx}, for which {caches / 1e9:.1f} "
                f"GB are), leave {largest.name} out ({weights[largest] / 1e9:.1f} GB), or "
                "take smaller quantisations"
            )


def _facts(spec: EnsembleSpec, models: Sequence[Model]) -> Iterator[Fact]:
    pivot = set(models[spec.pivot_index].vocabulary.ids)
    seen = set[object]()
    for member, model in zip(spec.members, models, strict=True):
        path, plan = locate(member), planned(spec, member)
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
            weights=0 if member.opened in seen else (size(member) or 0) + plan.working_bytes,
            cache=plan.text_bytes,
        )
        seen.add(member.opened)


def _tested(
    spec: EnsembleSpec, models: Sequence[Model], results: Results, n_slots: int, report: Report
) -> Evaluation:
    named = {member.name: model for member, model in zip(spec.members, models, strict=True)}
    contest = Contest(named, results, Conditions(text_bytes=_TEXT_BYTES), n_slots, report)
    specs = [spec]
    if len(spec.members) > 1:
        other = replace(spec.fusion, space="pivot" if spec.fusion.space == "bytes" else "bytes")
        specs += [replace(spec, name=f"{spec.name}, {other.space}", fusion=other)]
    return hold(contest, specs, [contest.scorable(task) for task in read_tasks(BUILT_IN)])


def _best(evaluation: Evaluation) -> tuple[EnsembleSpec, str]:
    """Return who should be used and why, in one sentence.

    First the questions decide, then the texts: who is worse than the best for sure (paired
    bootstrap, 95%) is left out. Of the others the quickest is to be preferred. What is said is how
    an ensemble stands to the best member in each of them, or a member to the best ensemble.
    """
    first, *_ = evaluation.tasks
    left = [one.name for one in first.standings]
    for task in evaluation.tasks:
        leader = _leader(task, left)
        left = [name for name in left if _lead(task, leader, name).low <= 0]
    seconds = {name: sum(task.standing(name).seconds for task in evaluation.tasks) for name in left}
    quick = _AS_QUICK * min(seconds.values())
    chosen = first.standing(next(name for name in left if seconds[name] <= quick))
    others = [one.name for one in first.standings if one.alone != chosen.alone]
    said = []
    for task in evaluation.tasks if others else ():
        rival = _leader(task, others)
        said.append(in_words("standing", task, rival, _lead(task, chosen.name, rival)))
    return chosen.spec, in_words("use", evaluation, chosen, said, len(left))


def _leader(task: TaskSummary, names: Sequence[str]) -> str:
    return max(names, key=lambda name: _lead(task, name, names[0]).value)


def _lead(task: TaskSummary, one: str, other: str) -> Estimate:
    return lead(task.standing(one).score, task.standing(other).score, task.metric)
