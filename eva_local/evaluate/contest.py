"""Let members and ensembles answer the same rows, one contestant after the other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from eva_local.api import Ensemble, Report, ensemble_of
from eva_local.errors import ContextError
from eva_local.evaluate.forms import prompt_of, sampling_of, texts_of
from eva_local.evaluate.lanes import complete_each, score_each
from eva_local.evaluate.metrics import metric_of
from eva_local.evaluate.results import Result, Results, key_of
from eva_local.evaluate.rows import Row, Task
from eva_local.model import Model
from eva_local.prompt import Prompt
from eva_local.records import Sampling, Score
from eva_local.specs import EnsembleSpec, ModelSpec
from eva_local.store import locate


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
class Setting:
    """How rows are put to every contestant; `text_bytes` is how much of a long text is scored."""

    chat: bool = False
    max_tokens: int | None = None
    text_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """The results of one contestant on the rows of one task, in their order."""

    task: Task
    contestant: Contestant
    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Contest:
    """The models of all contestants, by name, open for `parallel` texts, and how they compete.

    Contestants take turns, so that what a task's prompts have in common is read once by each.
    """

    models: Mapping[str, Model]
    results: Results
    setting: Setting = field(default_factory=Setting)
    parallel: int = 1
    report: Report = lambda _what, _share: None

    def run(self, tasks: Sequence[Task], contestants: Sequence[Contestant]) -> list[Entry]:
        """Return what all contestants made of all tasks; what is known already is not done again.

        Raises InputError, naming the row, where a prompt does not fit.
        """
        jobs = [_Job(contestant, task, self) for contestant in contestants for task in tasks]
        total = max(sum(len(job.missing) for job in jobs), 1)
        done = 0
        for contestant in contestants:
            mine = [job for job in jobs if job.contestant is contestant and job.missing]
            for scored in (False, True):
                chosen = [job for job in mine if job.scored == scored]
                if not chosen:
                    continue
                with self._ensemble(contestant.spec, scored=scored) as ensemble:
                    for job in chosen:
                        self.report(job.label, done / total)
                        for _ in job.work(ensemble):
                            done += 1
                            self.report(job.label, done / total)
        return [job.entry() for job in jobs]

    def _ensemble(self, spec: EnsembleSpec, *, scored: bool) -> Ensemble:
        if scored:
            # Given texts hold unlikely tokens too, so all are candidates.
            spec = replace(spec, fusion=replace(spec.fusion, candidates=0))
        models = [self.models[member.name] for member in spec.members]
        return ensemble_of(spec, models, parallel=self.parallel)


class _Job:
    """One contestant on one task."""

    def __init__(self, contestant: Contestant, task: Task, contest: Contest) -> None:
        self.contestant = contestant
        self.label = f"{contestant.name}: {task.name}"
        self.scored = task.kind in ("choice", "bpb")
        self._task = task
        self._setting = contest.setting
        self._results = contest.results
        tokenizers = (model.tokenizer for model in contest.models.values())
        self._unspelled = frozenset[int]().union(*(each.missing_bytes for each in tokenizers))
        self._prompts = [prompt_of(row, task, chat=self._setting.chat) for row in task.rows]
        who = identity(contestant.spec)
        self._keys = [
            key_of(who, task.kind, *self._matter(row, prompt))
            for row, prompt in zip(task.rows, self._prompts, strict=True)
        ]
        self.missing = [i for i, key in enumerate(self._keys) if self._results.get(key) is None]

    def entry(self) -> Entry:
        """Return all results."""
        found = [self._results.get(key) for key in self._keys]
        return Entry(self._task, self.contestant, tuple(filter(None, found)))

    def work(self, ensemble: Ensemble) -> Iterator[None]:
        """Do what is missing, a row at a time."""
        began = time.perf_counter()
        try:
            for place, result in self._made(ensemble):
                now = time.perf_counter()
                about = {
                    "task": self._task.name,
                    "row": self._task.rows[place].name,
                    "contestant": self.contestant.name,
                }
                # Rows may be worked on side by side: what counts is how fast they come.
                self._results.add(self._keys[place], replace(result, seconds=now - began), about)
                began = now
                yield
        except ContextError as error:
            raise ContextError(f"{self.label}: {error}") from error

    def _matter(self, row: Row, prompt: Prompt) -> tuple[object, ...]:
        """Return what a result depends on beside the contestant."""
        said = prompt if isinstance(prompt, str) else list(prompt)
        return said, (self._texts(row) if self.scored else self._sampling())

    def _sampling(self) -> Sampling:
        task, setting = self._task, self._setting
        return sampling_of(task, metric_of(task), chat=setting.chat, max_tokens=setting.max_tokens)

    def _texts(self, row: Row) -> list[str]:
        setting = self._setting
        return texts_of(
            row, self._task, self._unspelled, chat=setting.chat, text_bytes=setting.text_bytes
        )

    def _made(self, ensemble: Ensemble) -> Iterator[tuple[int, Result]]:
        prompts = [self._prompts[place] for place in self.missing]
        if not self.scored:
            bytewise = self.contestant.spec.fusion.space == "bytes"
            for at, completion in complete_each(ensemble, prompts, self._sampling()):
                usage, text = completion.usage, completion.text
                # There is a vote on every byte there, and a step is several bytes.
                steps = len(text.encode()) if bytewise else usage.steps
                yield self.missing[at], Result(steps, usage.filtered, 0.0, text=text)
            return
        texts = [self._texts(self._task.rows[place]) for place in self.missing]
        for at, scores in score_each(ensemble, list(zip(prompts, texts, strict=True))):
            yield self.missing[at], _scored(scores, whole=self._task.kind == "bpb")


def _scored(scores: Sequence[Score], *, whole: bool) -> Result:
    """Return the scores of choices, or of the parts of one `whole` text."""
    likelihoods = tuple(score.log_likelihood for score in scores)
    sizes = tuple(score.n_bytes for score in scores)
    return Result(
        steps=sum(score.n_symbols for score in scores),
        filtered=tuple(map(sum, zip(*(score.filtered for score in scores), strict=True))),
        seconds=0.0,
        log_likelihoods=(sum(likelihoods),) if whole else likelihoods,
        n_bytes=(sum(sizes),) if whole else sizes,
        unseen=sum(score.unseen for score in scores),
    )


def identity(spec: EnsembleSpec) -> object:
    """Return what the answers of an ensemble depend on, beside the prompt and the sampling."""
    files = [_file(member) for member in spec.members]
    return [files, spec.pivot_index, spec.fusion] if len(files) > 1 else files


def _file(member: ModelSpec) -> object:
    """Name a model file by its hash, or by its size and age where no hash is known."""
    if member.sha256:
        return [member.sha256, member.load.kv_type]
    known = locate(member).stat()
    return [known.st_size, known.st_mtime_ns, member.load.kv_type]
