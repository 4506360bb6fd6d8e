"""The rows of a job through an ensemble: drawn as slots become free, written as they finish."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count

from eva_local.api import Ensemble
from eva_local.batch.forms import Form, Shares
from eva_local.batch.results import Output
from eva_local.batch.rows import Row
from eva_local.engine.request import Request, Told
from eva_local.errors import EvaError
from eva_local.openai.answer import Answer
from eva_local.types import Step

# How far the rows that are written in order may run ahead of one that takes long, for each slot.
_AHEAD = 64


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


@dataclass(slots=True, eq=False)
class _RowInHand:
    """A row that is being answered: its place in the input, and what came so far."""

    place: int
    row: Row
    answer: Answer
    carried: Counter[str] = field(default_factory=Counter)


class Job:
    """Writes the answers to rows."""

    def __init__(
        self,
        ensemble: Ensemble,
        form: Form,
        results: Output,
        n_rows: int,
        *,
        shares: bool = False,
        ordered: bool = False,
    ) -> None:
        """Write rows of `form` to `results`: as they finish, or `ordered` as they were put in.

        With `shares` a row says which share of its symbols each member carried.
        """
        self.progress = Progress(n_rows)
        # Nobody reads along: what counts is when the last row is written.
        ensemble.for_throughput()
        self._ensemble = ensemble
        self._form = form
        self._results = results
        self._shares = shares
        self._ordered = ordered
        self._asked: dict[int, _RowInHand] = {}
        # Finished rows that wait for one before them, by their place in the input.
        self._early: dict[int, Mapping[str, object]] = {}
        self._next = 0

    def run(
        self,
        rows: Iterator[Row],
        stopped: Callable[[], bool] = lambda: False,
        told: Callable[[Progress], None] = lambda _: None,
    ) -> bool:
        """Answer the rows until none is left, or until `stopped`; `told` hears of each step.

        Returns whether all rows are answered, however many there were.
        Raises InputError where the results cannot be written; what was written stays.
        """
        with contextlib.closing(self._ensemble.runner(self._requests(rows))) as runner:
            while not (runner.done or stopped()):
                for number, each in runner.step():
                    self._take(number, each)
                told(self.progress)
            return not self._asked and next(rows, None) is None

    def _requests(self, rows: Iterator[Row]) -> Iterator[Request | None]:
        """Yield what rows ask for; those that ask for nothing that can be done are failed."""
        numbers = count()
        for place, row in enumerate(rows):
            while len(self._early) >= _AHEAD * self._ensemble.n_slots:
                yield None
            if row.asked is None:
                self._fail(place, row, row.problem)
                continue
            answer = Answer(told=row.asked.n_top is not None)
            self._asked[next(numbers)] = _RowInHand(place, row, answer)
            yield Request(
                row.asked.prompt,
                row.asked.sampling,
                trace=self._shares,
                n_top=row.asked.n_top or 0,
            )

    def _take(self, number: int, told: Told) -> None:
        """Take what is told of a row; its answer is written with the last step."""
        asked = self._asked[number]
        row = asked.row
        if isinstance(told, EvaError):
            del self._asked[number]
            self._fail(asked.place, row, str(told))
            return
        assert isinstance(told, Step)
        if told.piece:
            self.progress.n_tokens += 1
            if told.trace is not None:
                asked.carried[told.trace.carrier] += 1
        asked.answer.push(told)
        if told.finish_reason is None:
            return
        del self._asked[number]
        shares = self._shares_of(asked.carried) if self._shares else None
        name = self._ensemble.spec.name
        self._write(asked.place, self._form.answered(row, asked.answer, name, shares))

    def _shares_of(self, carried: Counter[str]) -> Shares:
        total = max(carried.total(), 1)
        return {name: carried[name] / total for name in self._ensemble.members}

    def _fail(self, place: int, row: Row, problem: str) -> None:
        self.progress.n_failed += 1
        self._write(place, self._form.failed(row, f"line {row.line}: {problem}"))

    def _write(self, place: int, result: Mapping[str, object]) -> None:
        self.progress.n_done += 1
        self.progress.n_rows = max(self.progress.n_rows, self.progress.n_done)
        if not self._ordered:
            self._results.append(result)
            return
        self._early[place] = result
        while self._next in self._early:
            self._results.append(self._early.pop(self._next))
            self._next += 1
