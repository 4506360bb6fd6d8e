"""A job, from its input to its output: begun, or gone on with, and finished or interrupted."""

from __future__ import annotations

import contextlib
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from pathlib import Path

from eva_local.api import Ensemble
from eva_local.batch.forms import Form
from eva_local.batch.manifest import grounds_of
from eva_local.batch.results import NOTHING, Done, FileResults, Output, StreamResults
from eva_local.batch.rows import Row, Wishes
from eva_local.batch.source import Source
from eva_local.config.specs import EnsembleSpec
from eva_local.engine.request import Request, Told
from eva_local.errors import EvaError, InputError
from eva_local.openai.answer import Answer
from eva_local.types import Step

# How far the rows that are written in order may run ahead of one that takes long, for each slot.
_AHEAD = 64

# Opens the ensemble; told how many rows there are.
Opener = Callable[[int], Ensemble]


@dataclass(frozen=True, slots=True)
class Errand:
    """What is to be done: `source` and `target` are paths, or `-` for the standard streams."""

    source: str
    target: str
    spec: EnsembleSpec
    wishes: Wishes
    form: str | None = None
    restart: bool = False
    retry_errors: bool = False
    ordered: bool = False


@dataclass(slots=True)
class Progress:
    """How far a job is. `n_rows` are those of this run, `n_tokens` symbols of answers.

    Rows that come while the job runs make `n_rows` more.
    """

    n_rows: int
    n_done: int = 0
    n_failed: int = 0
    n_tokens: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.n_tokens / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """The time that the other rows will take, if they are like those before."""
        if not self.n_done:
            return None
        return self.seconds / self.n_done * (self.n_rows - self.n_done)


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What came of it: this run's progress, and what was there before it."""

    progress: Progress
    before: Done
    n_slots: int
    finished: bool

    @property
    def n_failed(self) -> int:
        """The rows of the output that failed, of this run and before."""
        return self.progress.n_failed + self.before.n_failed


def carry_out(
    errand: Errand,
    open_ensemble: Opener,
    stopped: Callable[[], bool] = lambda: False,
    told: Callable[[Progress], None] = lambda _: None,
) -> JobOutcome:
    """Answer every row of the input that has no answer in the output yet.

    All that can be wrong with input, output and an earlier run is found before `open_ensemble`
    is called, and nothing that is there is thrown away before it has returned. Ends early where
    `stopped`; what is missing then is done by the next run.

    Raises InputError and ConfigError.
    """
    with (
        contextlib.closing(Source(errand.source, errand.wishes, errand.form)) as source,
        _output(errand, source.form) as (output, done),
    ):
        n_left = source.count(done, ordered=errand.ordered)
        if not n_left:
            output.settled()
            return JobOutcome(Progress(0), done, 0, finished=True)
        with open_ensemble(n_left) as ensemble:
            files = ensemble.mapping_files()
            output.opened({file.name: sha256(file.read_bytes()).hexdigest() for file in files})
            job = Job(errand, ensemble, source.form, output, Progress(n_left))
            finished = job.run(source.left(done), stopped, told)
            return JobOutcome(job.progress, done, ensemble.n_slots, finished)


@dataclass(slots=True, eq=False)
class Job:
    """Writes the answers to rows: as they finish, or in order as they were put in."""

    errand: Errand
    ensemble: Ensemble
    form: Form
    output: Output
    progress: Progress
    # Rows that are being answered, each behind its place in the input, and what came so far.
    _asked: dict[int, tuple[int, Row, Answer]] = field(default_factory=dict)
    # Finished rows that wait for one before them, by their place in the input.
    _early: dict[int, Mapping[str, object]] = field(default_factory=dict)
    _next: int = 0

    def run(
        self, rows: Iterator[Row], stopped: Callable[[], bool], told: Callable[[Progress], None]
    ) -> bool:
        """Answer the rows until none is left, or until `stopped`; `told` hears of each step.

        Returns whether all rows are answered, however many there were.
        Raises InputError where the results cannot be written; what was written stays.
        """
        # Nobody reads along: what counts is when the last row is written.
        self.ensemble.for_throughput()
        with contextlib.closing(self.ensemble.runner(self._requests(rows))) as runner:
            while not (runner.done or stopped()):
                for number, each in runner.step():
                    self._take(number, each)
                told(self.progress)
            return not self._asked and next(rows, None) is None

    def _requests(self, rows: Iterator[Row]) -> Iterator[Request | None]:
        """Yield what rows ask for; those that ask for nothing that can be done are failed."""
        numbers = count()
        for place, row in enumerate(rows):
            while len(self._early) >= _AHEAD * self.ensemble.n_slots:
                yield None
            if row.asked is None:
                self._fail(place, row, row.problem)
                continue
            answer = Answer(told=row.asked.n_top is not None)
            self._asked[next(numbers)] = (place, row, answer)
            yield Request(
                row.asked.prompt,
                row.asked.sampling,
                trace=self.errand.wishes.shares,
                n_top=row.asked.n_top or 0,
            )

    def _take(self, number: int, told: Told) -> None:
        """Take what is told of a row; its answer is written with the last step."""
        place, row, answer = self._asked[number]
        if isinstance(told, EvaError):
            del self._asked[number]
            self._fail(place, row, str(told))
            return
        assert isinstance(told, Step)
        self.progress.n_tokens += bool(told.piece)
        answer.push(told)
        if told.finish_reason is None:
            return
        del self._asked[number]
        shares = None
        if self.errand.wishes.shares:
            traced = [step.trace for step in answer.steps if step.piece and step.trace]
            carried = Counter(trace.carrier for trace in traced)
            shares = {name: carried[name] / max(len(traced), 1) for name in self.ensemble.members}
        name = self.ensemble.spec.name
        self._write(place, self.form.answered(row, answer, name, shares))

    def _fail(self, place: int, row: Row, problem: str) -> None:
        self.progress.n_failed += 1
        self._write(place, self.form.failed(row, f"line {row.line}: {problem}"))

    def _write(self, place: int, result: Mapping[str, object]) -> None:
        self.progress.n_done += 1
        self.progress.n_rows = max(self.progress.n_rows, self.progress.n_done)
        if not self.errand.ordered:
            self.output.append(result)
            return
        self._early[place] = result
        while self._next in self._early:
            self.output.append(self._early.pop(self._next))
            self._next += 1


@contextlib.contextmanager
def _output(errand: Errand, form: Form) -> Iterator[tuple[Output, Done]]:
    """Open the output; also say what is done in it."""
    target = Path(errand.target)
    with contextlib.suppress(OSError):
        if target.samefile(errand.source):
            raise InputError(f"{errand.target} is the input itself; give another output")
    if errand.target == "-" or _keeps_nothing(target):
        if errand.retry_errors:
            raise InputError("--retry-errors needs an output that is a file")
        with contextlib.closing(StreamResults(errand.target)) as stream:
            yield stream, NOTHING
        return
    with FileResults(target, form) as file:
        grounds = grounds_of(errand.spec, errand.wishes, form.name)
        yield file, file.begin(grounds, restart=errand.restart, retry=errand.retry_errors)


def _keeps_nothing(path: Path) -> bool:
    """Return whether a path is there and is no regular file: a pipe, a device."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)
