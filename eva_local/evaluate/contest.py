"""Let members and ensembles answer the same rows, one contestant after the other.

Votes on a given text are heard once, and fused under many settings without asking again.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Literal

from eva_local.api import Ensemble, Report, completion_of
from eva_local.config.specs import EnsembleSpec, FusionSettings
from eva_local.engine.request import Request
from eva_local.errors import ContextError, EvaError, InputError
from eva_local.evaluate import forms
from eva_local.evaluate.rows import Result, Results, Task, key_of
from eva_local.fusion.votes import Decision, Fuser, Vote
from eva_local.llama.model import Model
from eva_local.llama.prompt import Prompt
from eva_local.models.store import locate
from eva_local.opening import ensemble_of
from eva_local.types import Completion, Score, Step

Answer = Completion | Score
# What an observer is told: a decision, the symbol that came, and how many bytes that stands for.
Heard = tuple[Decision, int, int]
# Weights under which there is evidence of the prompt, whatever it is.
JUDGING: Literal["prompt-perplexity"] = "prompt-perplexity"
#: The temperature at which samples are drawn for a vote.
DRAWN = 0.5


def each_alone(spec: EnsembleSpec) -> list[EnsembleSpec]:
    """Return the members as contestants; those of one model in one role are one."""
    kinds = {(member.source, str(member.role)): member for member in reversed(spec.members)}
    return [EnsembleSpec(one.name, (one,), one.name) for one in reversed(kinds.values())]


@dataclass(frozen=True, slots=True)
class Entry:
    """The results of an ensemble, or of a model alone, on the rows of one task, in their order.

    `samples` has all samples of each row where several were drawn, for a vote; then each of
    `results` is the first.
    """

    task: Task
    spec: EnsembleSpec
    results: tuple[Result, ...]
    samples: tuple[tuple[Result, ...], ...] = ()


@dataclass(eq=False)
class Replay:
    """How likely a given text is under some settings, from the members' votes on it.

    The space has `n_symbols`; `conversation` says that the text's prompt is one. The
    `log_likelihood` is in nats; `filtered` counts how often each member was dropped.
    """

    fusion: FusionSettings
    n_members: int
    pivot: int
    n_symbols: int
    conversation: bool
    log_likelihood: float = 0.0
    _first: bool = True

    def __post_init__(self) -> None:
        self.filtered = (0,) * self.n_members
        self._fuser = Fuser(self.fusion, self.n_members)

    def hear(
        self, heard: Decision, symbol: int, n_bytes: int, known: dict[object, Vote] | None = None
    ) -> None:
        """Take the next symbol, with the votes on it; see `Fuser.decide` for what is `known`."""
        if self._first and self.fusion.evidence_bytes(conversation=self.conversation):
            self._fuser.begin(heard.evidence)
        votes = [vote for vote in heard.votes if vote is not None]
        decision = self._fuser.decide(self._asked(votes), known=known)
        self._first = False
        self.log_likelihood += decision.fused.likelihood(symbol, self.n_symbols)
        dropped = zip(self.filtered, decision.votes, decision.stayed, strict=True)
        self.filtered = tuple(n + (vote is not None and not stays) for n, vote, stays in dropped)
        self._fuser.learn(decision, symbol, n_bytes)

    def _asked(self, votes: Sequence[Vote]) -> Sequence[Vote | None]:
        """Leave out, as the engine does, who a sure pivot would not have asked."""
        own = votes[self.pivot]
        gated = self.fusion.gate < 1 and not self._first and len(own)
        if not gated or own.probabilities.max() < self.fusion.gate:
            return votes
        return [own if member == self.pivot else None for member in range(len(votes))]


def heard_by(request: Request, listeners: Sequence[Replay]) -> Request:
    """Return a request for a score whose votes all `listeners` hear; answers are not heard."""
    if request.continuation is None:
        return request

    def observe(decision: Decision, symbol: int, n_bytes: int) -> None:
        known: dict[object, Vote] = {}
        for one in listeners:
            one.hear(decision, symbol, n_bytes, known)

    return replace(request, observe=observe)


def recording(fusion: FusionSettings) -> FusionSettings:
    """Return settings under which is heard all that other settings may need."""
    candidates = fusion.candidates or FusionSettings().candidates
    return replace(hearing(fusion), candidates=candidates, weights=JUDGING)


def hearing(fusion: FusionSettings) -> FusionSettings:
    """Return settings whose votes are those of `fusion`, all of them and with all candidates."""
    kept = {key: getattr(fusion, key) for key in ("space", "mapping", "prompt_evidence")}
    return FusionSettings(candidates=0, weights="equal", filter="off", **kept)


@dataclass(frozen=True, slots=True)
class Contest:
    """The models of all contestants, by name, open for `parallel` texts, and how they compete.

    Contestants take turns at writing, so that what a task's prompts have in common is read once
    by each. Given texts are heard once for all contestants of the same members and the same
    mapping, who differ in what they make of the votes.
    """

    models: Mapping[str, Model]
    results: Results
    conditions: forms.Conditions = forms.PLAIN
    parallel: int = 1
    report: Report = lambda _what, _share: None

    def asked(self, task: Task) -> list[list[tuple[Prompt, str]]]:
        """Return what is scored of each row, each text with the prompt before it."""
        tokenizers = (model.tokenizer for model in self.models.values())
        unspelled = frozenset[int]().union(*(each.missing_bytes for each in tokenizers))
        return [forms.scored_of(row, task, unspelled, self.conditions) for row in task.rows]

    def scorable(self, task: Task) -> Task:
        """Leave out texts without anything to score; InputError for all, or an unspelled choice."""
        if not task.scored:
            return task
        rows = []
        for row, texts in zip(task.rows, self.asked(task), strict=True):
            if task.kind == "choice" and not all(text.strip() for _, text in texts):
                raise InputError(
                    f"{task.name}, row {row.name}: some member cannot spell one of its choices; "
                    "leave the row out"
                )
            rows += [row] if texts else []
        if not rows:
            raise InputError(f"{task.name}: no text is longer than its prompt")
        return replace(task, rows=tuple(rows))

    def run(
        self, tasks: Sequence[Task], contestants: Sequence[EnsembleSpec], samples: int = 0
    ) -> list[Entry]:
        """Return what all contestants made of all tasks; what is known already is not done again.

        With `samples`, so many answers to each row are drawn, and not one greedy one given.
        Raises ContextError, naming contestant and task, where a prompt does not fit.
        """
        jobs = [_Job(spec, task, self, samples) for spec in contestants for task in tasks]
        total = max(sum(len(job.missing) for job in jobs), 1)
        done = 0
        # One ensemble does all of one writer, or of one set of votes.
        for group in _grouped([job for job in jobs if job.missing], lambda job: job.voters):
            spec = group[0].voters
            # Some votes may be weighed by how well the members predict the prompt.
            if group[0].task.scored and any(job.evidence_bytes for job in group):
                spec = replace(spec, fusion=replace(spec.fusion, weights=JUDGING))
            models = [self.models[member.name] for member in spec.members]
            with ensemble_of(spec, models, parallel=self.parallel) as ensemble:
                for rivals in _grouped(group, lambda job: job.task.name):
                    label = rivals[0].label
                    self.report(label, done / total)
                    for count in _work(rivals, ensemble):
                        done += count
                        self.report(label, done / total)
        return [job.entry() for job in jobs]


def _grouped(jobs: "Sequence[_Job]", key: "Callable[[_Job], object]") -> "list[list[_Job]]":
    groups: defaultdict[object, list[_Job]] = defaultdict(list)
    for job in jobs:
        groups[key(job)].append(job)
    return list(groups.values())


def _work(rivals: "Sequence[_Job]", ensemble: Ensemble) -> Iterator[int]:
    asking = []
    requests = []
    for row in sorted(set().union(*(job.missing for job in rivals))):
        jobs = [job for job in rivals if row in job.missing]
        texts = rivals[0].texts[row]
        # Of each text, the replay of each contestant.
        replays = [[job.replay(ensemble) for job in jobs] for _ in texts]
        asking.append((row, jobs, replays))
        requests.append([heard_by(*each) for each in zip(texts, replays, strict=True)])
    began = time.perf_counter()
    try:
        for at, told in answer_each(ensemble, requests):
            # Rows may be worked on side by side: what counts is how fast they come.
            now = time.perf_counter()
            row, jobs, replays = asking[at]
            for job, heard in zip(jobs, zip(*replays, strict=True), strict=True):
                job.keep(row, told, heard, now - began)
            began = now
            yield len(jobs)
    except ContextError as error:
        raise ContextError(f"{rivals[0].label}: {error}") from error


class _Job:
    def __init__(self, spec: EnsembleSpec, task: Task, contest: Contest, samples: int = 0) -> None:
        spec = forms.with_shots(spec, task, contest.conditions)
        self.spec = spec
        self.label = f"{spec.name}: {task.name}"
        self.task = task
        self._chat = contest.conditions.chat and task.kind != "bpb"
        self.evidence_bytes = spec.fusion.evidence_bytes(conversation=self._chat)
        self._results = contest.results
        self._n_samples = samples
        #: What is scored of each row, or the one answer that is asked for.
        self.texts: list[list[Request]]
        if task.scored:
            asked = contest.asked(task)
            self.texts = [[Request(p, continuation=text) for p, text in texts] for texts in asked]
            matter = [[_matter(texts)] for texts in asked]
        else:
            how = forms.sampling_of(task, contest.conditions, spec.sampling)
            drawn = [replace(how, seed=n, temperature=DRAWN) for n in range(samples)] or [how]
            prompts = [forms.prompt_of(row, task, contest.conditions) for row in task.rows]
            self.texts = [[Request(prompt, each) for each in drawn] for prompt in prompts]
            # An answer ends where some member's context is full.
            sizes = [member.load.n_ctx for member in spec.members]
            matter = [[(prompt, [each, sizes]) for each in drawn] for prompt in prompts]
        who = identity(spec)
        # Of each row, those of its samples.
        self._keys = [[key_of(who, task.kind, *each) for each in row] for row in matter]
        known = contest.results.known
        self.missing = {i for i, keys in enumerate(self._keys) if not known.keys() >= {*keys}}

    def entry(self) -> Entry:
        found = [tuple(self._results.known[key] for key in keys) for keys in self._keys]
        samples = tuple(found) if self._n_samples else ()
        return Entry(self.task, self.spec, tuple(first for first, *_ in found), samples)

    @property
    def voters(self) -> EnsembleSpec:
        """The ensemble that writes, or whose votes are heard: jobs of equal ones share it."""
        spec = self.spec
        if not self.task.scored:
            return spec
        return EnsembleSpec("", spec.members, spec.pivot, hearing(spec.fusion))

    def replay(self, ensemble: Ensemble) -> Replay:
        fusion, n_members = self.spec.fusion, len(ensemble.members)
        # Nobody is weighed against one model.
        fusion = hearing(fusion) if n_members == 1 else fusion
        pivot = ensemble.spec.pivot_index
        return Replay(fusion, n_members, pivot, ensemble.n_symbols, self._chat)

    def keep(
        self, row: int, told: Sequence[Answer], replays: Sequence[Replay], seconds: float
    ) -> None:
        """Keep what the contestant wrote, or thinks of choices, or of the parts of one text."""
        about = {"task": self.task.name, "row": self.task.rows[row].name}
        about["contestant"] = self.spec.name
        written = [each for each in told if isinstance(each, Completion)]
        for key, each in zip(self._keys[row] if written else (), written, strict=True):
            usage, share = each.usage, seconds / len(written)
            result = Result(usage.steps, usage.filtered, share, text=each.text)
            self._results.add(key, result, about)
        if scores := [each for each in told if isinstance(each, Score)]:
            likelihoods = tuple(replay.log_likelihood for replay in replays)
            sizes = tuple(score.n_bytes for score in scores)
            if self.task.kind == "bpb":
                likelihoods, sizes = (sum(likelihoods),), (sum(sizes),)
            steps = sum(score.n_symbols for score in scores)
            dropped = zip(*(replay.filtered for replay in replays), strict=True)
            result = Result(steps, tuple(map(sum, dropped)), seconds, "", likelihoods, sizes)
            self._results.add(self._keys[row][0], result, about)


def _matter(asked: Sequence[tuple[Prompt, str]]) -> tuple[object, object]:
    prompts, texts = [prompt for prompt, _ in asked], [text for _, text in asked]
    alike = all(prompt == prompts[0] for prompt in prompts)
    return prompts[0] if prompts and alike else prompts, texts


def identity(spec: EnsembleSpec) -> object:
    """Return what the answers of an ensemble depend on, beside the prompt and the sampling.

    A model is known by its hash, or by its file and that one's size and age where none is known.
    What is kept of a window is what a model can be rolled back to, and so how it is read.
    """
    files = []
    for member in spec.members:
        file: list[object] = [member.sha256]
        if not member.sha256:
            path = locate(member).resolve()
            file = [str(path), path.stat().st_size, path.stat().st_mtime_ns]
        role = [str(each) for each in member.role if each]
        files.append([*file, member.load.kv_type, member.load.swa_full, *role])
    # The drafter changes nothing of the answers.
    fusion = {key: value for key, value in asdict(spec.fusion).items() if key != "drafter"}
    return [files, spec.pivot_index, fusion] if len(files) > 1 else files


def answer_each(
    ensemble: Ensemble, rows: Sequence[Sequence[Request]]
) -> Iterator[tuple[int, list[Answer]]]:
    """Answer the requests of each row, all side by side; yield rows as they end, by their numbers.

    A prompt that the requests of a row have in common is read once.
    """
    asked = [(row, place) for row, each in enumerate(rows) for place in range(len(each))]
    found: list[dict[int, Answer]] = [{} for _ in rows]
    steps: defaultdict[int, list[Step]] = defaultdict(list)
    requests = [request for row in rows for request in row]
    with closing(ensemble.run_many(requests)) as all_told:
        for number, told in all_told:
            if isinstance(told, EvaError):
                raise told
            if isinstance(told, Step):
                steps[number].append(told)
                if told.finish_reason is None:
                    continue
            row, place = asked[number]
            ended = completion_of(steps.pop(number)) if isinstance(told, Step) else told
            found[row][place] = ended
            if len(found[row]) == len(rows[row]):
                yield row, [answer for _, answer in sorted(found[row].items())]
