"""Let members and ensembles answer the same rows, one contestant after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from eva_local.api import Ensemble, Report
from eva_local.config.specs import EnsembleSpec, ModelSpec
from eva_local.engine.request import Request
from eva_local.errors import ContextError, InputError
from eva_local.evaluate.forms import PLAIN, Conditions, prompt_of, sampling_of, scored_of
from eva_local.evaluate.lanes import answer_each
from eva_local.evaluate.replay import Replay, heard_by, hearing, judging
from eva_local.evaluate.results import Result, Results, key_of
from eva_local.evaluate.rows import Task
from eva_local.llama.model import Model
from eva_local.llama.prompt import Prompt
from eva_local.models.store import locate
from eva_local.opening import ensemble_of
from eva_local.types import Completion, Score


@dataclass(frozen=True, slots=True)
class Contestant:
    """An ensemble, or one member of it alone, under the name that it has in the report."""

    name: str
    spec: EnsembleSpec

    @property
    def alone(self) -> bool:
        """Return whether this is one model."""
        return len(self.spec.members) == 1


def alone(member: ModelSpec) -> Contestant:
    """Return a member as a contestant of its own."""
    return Contestant(member.name, EnsembleSpec(member.name, (member,), member.name))


@dataclass(frozen=True, slots=True)
class Entry:
    """The results of one contestant on the rows of one task, in their order."""

    task: Task
    contestant: Contestant
    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Contest:
    """The models of all contestants, by name, open for `parallel` texts, and how they compete.

    Contestants take turns at writing, so that what a task's prompts have in common is read once
    by each. Given texts are heard once for all contestants of the same members and the same
    mapping, who differ in what they make of the votes.
    """

    models: Mapping[str, Model]
    results: Results
    conditions: Conditions = PLAIN
    parallel: int = 1
    report: Report = lambda _what, _share: None

    def asked(self, task: Task) -> list[list[tuple[Prompt, str]]]:
        """Return what is scored of each row, each text with the prompt before it."""
        tokenizers = (model.tokenizer for model in self.models.values())
        unspelled = frozenset[int]().union(*(each.missing_bytes for each in tokenizers))
        return [scored_of(row, task, unspelled, self.conditions) for row in task.rows]

    def scorable(self, task: Task) -> Task:
        """Leave out texts of which nothing can be scored.

        Raises InputError where that is all, and where a choice cannot be spelled.
        """
        if task.kind not in ("choice", "bpb"):
            return task
        asked = list(zip(task.rows, self.asked(task), strict=True))
        if task.kind == "choice":
            for row, texts in asked:
                if not all(text.strip() for _, text in texts):
                    raise InputError(
                        f"{task.name}, row {row.name}: some member cannot spell one of its "
                        "choices; leave the row out"
                    )
            return task
        rows = tuple(row for row, texts in asked if texts)
        if not rows:
            raise InputError(f"{task.name}: no text is longer than its prompt")
        return replace(task, rows=rows)

    def run(self, tasks: Sequence[Task], contestants: Sequence[Contestant]) -> list[Entry]:
        """Return what all contestants made of all tasks; what is known already is not done again.

        Raises ContextError, naming contestant and task, where a prompt does not fit.
        """
        jobs = [_Job(contestant, task, self) for contestant in contestants for task in tasks]
        total = max(sum(len(job.missing) for job in jobs), 1)
        done = 0
        # One ensemble does all of one writer, or of one set of votes.
        for group in _grouped([job for job in jobs if job.missing], lambda job: job.voters):
            spec = group[0].voters
            if group[0].scored and any(job.judges for job in group):
                spec = replace(spec, fusion=judging(spec.fusion))
            models = [self.models[member.name] for member in spec.members]
            with ensemble_of(spec, models, parallel=self.parallel) as ensemble:
                for rivals in _grouped(group, lambda job: job.task.name):
                    label = rivals[0].label
                    self.report(label, done / total)
                    for count in _work(rivals, ensemble):
                        done += count
                        self.report(label, done / total)
        return [job.entry() for job in jobs]


def _grouped(jobs: Sequence[_Job], key: Callable[[_Job], object]) -> list[list[_Job]]:
    """Group jobs of one key; groups and jobs stay in their order."""
    groups: dict[object, list[_Job]] = {}
    for job in jobs:
        groups.setdefault(key(job), []).append(job)
    return list(groups.values())


def _work(rivals: Sequence[_Job], ensemble: Ensemble) -> Iterator[int]:
    """Do what is missing of one task, a row at a time; yield for how many contestants."""
    rows = sorted(set().union(*(job.missing for job in rivals)))
    asking = [[job for job in rivals if row in job.missing] for row in rows]
    # Of each row, for each of its texts, the replay of each contestant.
    replays = [
        [[job.replay(ensemble) for job in jobs] for _ in rivals[0].texts[row]]
        for row, jobs in zip(rows, asking, strict=True)
    ]
    requests = [
        [heard_by(request, each) for request, each in zip(rivals[0].texts[row], heard, strict=True)]
        for row, heard in zip(rows, replays, strict=True)
    ]
    began = time.perf_counter()
    try:
        for at, told in answer_each(ensemble, requests):
            # Rows may be worked on side by side: what counts is how fast they come.
            now = time.perf_counter()
            for job, heard in zip(asking[at], zip(*replays[at], strict=True), strict=True):
                job.keep(rows[at], told, heard, now - began)
            began = now
            yield len(asking[at])
    except ContextError as error:
        raise ContextError(f"{rivals[0].label}: {error}") from error


class _Job:
    """One contestant on one task."""

    def __init__(self, contestant: Contestant, task: Task, contest: Contest) -> None:
        self.contestant = contestant
        self.label = f"{contestant.name}: {task.name}"
        self.scored = task.kind in ("choice", "bpb")
        self.task = task
        self._chat = contest.conditions.chat and task.kind != "bpb"
        self._results = contest.results
        #: What is scored of each row, or the one answer that is asked for.
        self.texts: list[list[Request]]
        if self.scored:
            asked = contest.asked(task)
            self.texts = [[Request(p, continuation=text) for p, text in texts] for texts in asked]
            matter = [_matter(texts) for texts in asked]
        else:
            sampling = sampling_of(task, contest.conditions)
            prompts = [prompt_of(row, task, contest.conditions) for row in task.rows]
            self.texts = [[Request(prompt, sampling)] for prompt in prompts]
            # An answer ends where some member's context is full.
            sizes = [member.load.n_ctx for member in contestant.spec.members]
            matter = [(prompt, [sampling, sizes]) for prompt in prompts]
        who = identity(contestant.spec)
        self._keys = [key_of(who, task.kind, *each) for each in matter]
        # In their order.
        self.missing = {i: None for i, key in enumerate(self._keys) if not self._results.get(key)}

    def entry(self) -> Entry:
        """Return all results."""
        found = [self._results.get(key) for key in self._keys]
        return Entry(self.task, self.contestant, tuple(filter(None, found)))

    @property
    def voters(self) -> EnsembleSpec:
        """The ensemble that writes, or whose votes are heard: jobs of equal ones share it."""
        spec = self.contestant.spec
        if not self.scored:
            return spec
        return EnsembleSpec("", spec.members, spec.pivot, hearing(spec.fusion))

    @property
    def judges(self) -> bool:
        """Whether the votes are weighed by how well the members predict the prompt."""
        return self.contestant.spec.fusion.evidence_bytes(conversation=self._chat) > 0

    def replay(self, ensemble: Ensemble) -> Replay:
        """Return what finds the likelihood of one text from the votes of an ensemble."""
        fusion = self.contestant.spec.fusion
        if self.contestant.alone:
            # Nobody is weighed against one model.
            fusion = hearing(fusion)
        n_members, pivot = len(ensemble.members), ensemble.spec.pivot_index
        return Replay(fusion, n_members, pivot, ensemble.n_symbols, conversation=self._chat)

    def keep(
        self,
        row: int,
        told: Sequence[Completion | Score],
        replays: Sequence[Replay],
        seconds: float,
    ) -> None:
        """Keep what the contestant wrote, or thinks of choices, or of the parts of one text."""
        about = {
            "task": self.task.name,
            "row": self.task.rows[row].name,
            "contestant": self.contestant.name,
        }
        if isinstance(told[0], Completion):
            usage = told[0].usage
            result = Result(usage.steps, usage.filtered, seconds, text=told[0].text)
        else:
            scores = [score for score in told if isinstance(score, Score)]
            likelihoods = tuple(replay.log_likelihood for replay in replays)
            sizes = tuple(score.n_bytes for score in scores)
            if self.task.kind == "bpb":
                likelihoods, sizes = (sum(likelihoods),), (sum(sizes),)
            dropped = zip(*(replay.filtered for replay in replays), strict=True)
            result = Result(
                steps=sum(score.n_symbols for score in scores),
                filtered=tuple(map(sum, dropped)),
                seconds=seconds,
                log_likelihoods=likelihoods,
                n_bytes=sizes,
            )
        self._results.add(self._keys[row], result, about)


def _matter(asked: Sequence[tuple[Prompt, str]]) -> tuple[object, object]:
    """Return what scores depend on beside the contestant: the prompt, or prompts, and texts."""
    prompts, texts = [prompt for prompt, _ in asked], [text for _, text in asked]
    alike = all(prompt == prompts[0] for prompt in prompts)
    return prompts[0] if prompts and alike else prompts, texts


def identity(spec: EnsembleSpec) -> object:
    """Return what the answers of an ensemble depend on, beside the prompt and the sampling."""
    files = [_file(member) for member in spec.members]
    return [files, spec.pivot_index, spec.fusion] if len(files) > 1 else files


def _file(member: ModelSpec) -> object:
    """Name a model by its hash, or by its file and that one's size and age where none is known.

    What is kept of a window is what a model can be rolled back to, and so how it is read.
    """
    load = [member.load.kv_type, member.load.swa_full]
    if member.sha256:
        return [member.sha256, *load]
    path = locate(member).resolve()
    known = path.stat()
    return [str(path), known.st_size, known.st_mtime_ns, *load]
