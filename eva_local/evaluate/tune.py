"""Find settings of an ensemble that fit some rows.

The right answers of the rows are forced through the members once, and every vote is kept. The
settings are then sought, one after the other, under which these answers are likeliest: that needs
no model. The best few of different kinds do the rows for real, and the best score wins.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from eva_local.api import Report
from eva_local.config.catalogue import written_table
from eva_local.config.specs import EnsembleSpec, FusionSettings
from eva_local.engine.request import Request
from eva_local.errors import InputError
from eva_local.evaluate.contest import Contest, Heard, Replay, answer_each, recording
from eva_local.evaluate.forms import Conditions, scored_of
from eva_local.evaluate.metrics import metric_of
from eva_local.evaluate.rows import Task
from eva_local.evaluate.summary import summarize
from eva_local.opening import ensemble_of

# Bytes of right answers that are listened to, of each task, and of a text at least.
_BYTES = 12_000
_LEAST_BYTES = 200
# Settings that do the rows for real, beside those that the ensemble has.
_FINALISTS = 3
_LEAST_LOSS = 1e-6
_ROUNDS = 3
_USUAL_TRIALS = 100
_WEIGHTS = ("equal", "prompt-perplexity", "running")
_FILTERS = (1, 2, 3, 5, 10)
_TEMPERATURES = (0.03, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0)
_SHARPNESSES = (1.0, 1.05, 1.1)
_DECAYS = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995)
# Fixed weights are so many parts, shared out among the members; every member gets one.
_PARTS = {2: 10, 3: 6}


def block(spec: EnsembleSpec, tasks: Sequence[Task]) -> str:
    """Return the block of models.toml that makes an ensemble which was tuned on some tasks."""
    rows = sum(len(task.rows) for task in tasks)
    on = f"tuned on {rows} rows of {', '.join(task.name for task in tasks)}"
    members = [member.name for member in spec.members]
    # What it left out would be what `[defaults]` says.
    values = {"description": on, "members": members, "pivot": spec.pivot, **asdict(spec.fusion)}
    return written_table("ensembles", spec.name, values)


def halves(tasks: Sequence[Task]) -> tuple[list[Task], list[Task]]:
    """Return tasks with every second row, and with the others: to fit on, and to report on."""
    for task in tasks:
        if len(task.rows) < 2:
            raise InputError(f"--tune needs at least 2 rows of {task.name}, better 100")
    tasks = [replace(task, metric=metric_of(task)) for task in tasks]
    fit = [replace(task, rows=task.rows[::2]) for task in tasks]
    return fit, [replace(task, rows=task.rows[1::2]) for task in tasks]


def tune(contest: Contest, tasks: Sequence[Task], spec: EnsembleSpec) -> EnsembleSpec:
    """Fit combine, filter and weights of an ensemble on the rows of some tasks."""
    search = _Search(spec.fusion, listen(contest, tasks, spec), contest.report)
    name = f"{spec.name}-tuned"
    entrants = [
        replace(spec, name=f"{name}-{number}", fusion=fusion)
        for number, fusion in enumerate(dict.fromkeys([spec.fusion, *search.finalists()]))
    ]
    entries = contest.run(tasks, entrants)
    found = [summarize([entry for entry in entries if entry.task is task]) for task in tasks]

    def gain(entrant: EnsembleSpec) -> float:
        changes = (summary.standing(entrant.name).change for summary in found)
        return sum(change.value for change in changes if change)

    # Of equal ones the first: the ensemble's own settings, then the likeliest.
    best = max(entrants, key=gain)
    return replace(best, name=name)


@dataclass(frozen=True, slots=True)
class Example:
    """The votes on each choice of a row, of which `label` is right; or on its one right text."""

    texts: tuple[Sequence[Heard], ...]
    label: int

    @property
    def sizes(self) -> list[int]:
        """Return the bytes of each text."""
        return [sum(n_bytes for _, _, n_bytes in text) for text in self.texts]


@dataclass(frozen=True, slots=True)
class Lesson:
    """What was heard of one task, whose prompts were conversations, in a space of `n_symbols`."""

    examples: tuple[Example, ...]
    pivot: int
    n_symbols: int
    conversation: bool

    def loss(self, fusion: FusionSettings) -> float:
        """Return how unlikely the right answers are: nats per byte, or per right choice."""
        nats = [[self._nats(text, fusion) for text in one.texts] for one in self.examples]
        if len(nats[0]) == 1:
            return -sum(value for (value,) in nats) / sum(one.sizes[0] for one in self.examples)
        losses = []
        for each, example in zip(nats, self.examples, strict=True):
            # Choices compare per byte.
            sizes = np.array(example.sizes)
            logs = np.array(each) / sizes * sizes.mean()
            losses.append(float(np.logaddexp.reduce(logs) - logs[example.label]))
        # Losses are compared by their ratios.
        return max(sum(losses) / len(losses), _LEAST_LOSS)

    def _nats(self, text: Sequence[Heard], fusion: FusionSettings) -> float:
        n_members = len(text[0][0].votes)
        replay = Replay(fusion, n_members, self.pivot, self.n_symbols, self.conversation)
        for heard in text:
            replay.hear(*heard)
        return replay.log_likelihood


def listen(contest: Contest, tasks: Sequence[Task], spec: EnsembleSpec) -> list[Lesson]:
    """Force right answers through all members, as many as tuning needs, and keep the votes."""
    spec = replace(spec, fusion=recording(spec.fusion))
    models = [contest.models[member.name] for member in spec.members]
    lessons = []
    with ensemble_of(spec, models, parallel=contest.parallel) as ensemble:
        for number, task in enumerate(tasks):
            rows = list(_few(task, contest.conditions, ensemble.missing_bytes))
            if not rows:
                raise InputError(f"{task.name}: --tune finds no text in it that can be scored")
            requests = [requests for requests, _ in rows]
            for done, _ in enumerate(answer_each(ensemble, requests)):
                share = (number + done / len(rows)) / len(tasks)
                contest.report(f"tuning: listening to {task.name}", share)
            examples = tuple(example for _, example in rows)
            chat = contest.conditions.chat and task.kind != "bpb"
            lessons.append(Lesson(examples, spec.pivot_index, ensemble.n_symbols, chat))
    return lessons


def _few(
    task: Task, conditions: Conditions, missing: frozenset[int]
) -> Iterator[tuple[list[Request], Example]]:
    left = _BYTES
    for row in task.rows:
        size = max(_BYTES // len(task.rows), _LEAST_BYTES)
        cut = replace(conditions, text_bytes=conditions.prompt_bytes + size)
        asked = scored_of(row, task, missing, cut)
        # One part of a long text is enough.
        asked = asked[:1] if task.kind == "bpb" else asked
        if left <= 0 or not asked or not all(text for _, text in asked):
            continue
        left -= sum(len(text.encode()) for _, text in asked)
        texts: tuple[list[Heard], ...] = tuple([] for _ in asked)
        requests = [
            Request(prompt, continuation=text, observe=lambda *told, to=heard: to.append(told))
            for (prompt, text), heard in zip(asked, texts, strict=True)
        ]
        yield requests, Example(texts, row.label)


class _Search:
    def __init__(self, start: FusionSettings, lessons: Sequence[Lesson], report: Report) -> None:
        self._start = replace(start, gate=1.0)
        self._lessons = lessons
        self._report = report
        n_members = len(lessons[0].examples[0].texts[0][0][0].votes)
        parts = _PARTS.get(n_members, n_members + 1)
        #: All fixed weights that are tried.
        self._fixed = [
            tuple(round(one / parts, 2) for one in shares)
            for shares in product(range(1, parts), repeat=n_members)
            if sum(shares) == parts
        ]
        self._losses: dict[FusionSettings, float] = {}

    def finalists(self) -> list[FusionSettings]:
        for combine in ("mean", "geometric"):
            self._descend(replace(self._start, combine=combine))
        best: dict[str, FusionSettings] = {}
        for fusion in sorted(self._losses, key=self.loss):
            kind = fusion.weights if isinstance(fusion.weights, str) else "fixed"
            best.setdefault(kind, fusion)
        return list(best.values())[:_FINALISTS]

    def loss(self, fusion: FusionSettings) -> float:
        """Return the mean over the tasks of the log of the loss: tasks compare by ratios."""
        if fusion not in self._losses:
            self._report("tuning: trying settings", min(len(self._losses) / _USUAL_TRIALS, 1.0))
            logs = [math.log(lesson.loss(fusion)) for lesson in self._lessons]
            self._losses[fusion] = sum(logs) / len(logs)
        return self._losses[fusion]

    def _descend(self, best: FusionSettings) -> None:
        for _ in range(_ROUNDS):
            before = best
            for axis in range(len(self._changes(best))):
                others = [replace(best, **change) for change in self._changes(best)[axis]]
                best = min((best, *others), key=self.loss)
            if best == before:
                return

    def _changes(self, now: FusionSettings) -> list[list[dict[str, Any]]]:
        follows = now.weights in ("running", "prompt-perplexity")
        return [
            [{"combine": one} for one in ("mean", "geometric")],
            [{"sharpness": one} for one in _SHARPNESSES if now.combine == "geometric"],
            [{"filter": "off"}, *({"filter": "top-n", "filter_n": n} for n in _FILTERS)],
            [{"weights": one} for one in (*_WEIGHTS, *self._fixed)],
            [{"weight_temperature": one} for one in _TEMPERATURES if follows],
            [{"weight_decay": one} for one in _DECAYS if now.weights == "running"],
        ]
