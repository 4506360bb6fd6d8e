"""A job, from its input to its output: begun, or gone on with, and finished or interrupted."""

import contextlib
import csv
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from eva_local.api import Ensemble
from eva_local.batch import forms, places
from eva_local.batch.fleet import Fleet
from eva_local.batch.forms import Csv, Form, JsonLines, OpenAI, Row, Text, Wishes
from eva_local.batch.results import Done, FileResults, grounds_of
from eva_local.config.specs import EnsembleSpec
from eva_local.engine.detokenizer import HEAD, refuse_utf16
from eva_local.engine.request import Request, Told
from eva_local.errors import EvaError, InputError, refusing
from eva_local.openai.answer import Answer
from eva_local.types import Step

# Pairs of lines with the same id that an error names.
_NAMED = 3
# How far the rows that are written in order may run ahead of one that takes long, for each slot.
_AHEAD = 64


@dataclass(slots=True)
class Source:
    """The rows of the input: a file that can be read twice."""

    name: str
    form: Form
    _file: BinaryIO
    # Which of how many shards is meant, from 1: each row is in one of them.
    shard: tuple[int, int] = (1, 1)
    # The line of each row that was counted, by its key; 0 for one that was read since.
    _lines: dict[str, int] = field(default_factory=dict)

    def rows(self) -> Iterator[Row]:
        """Yield all rows, from the first one."""
        self._file.seek(0)
        with refusing(f"{self.name}: cannot be read"):
            try:
                yield from self.form.rows(self._file)
            except InputError as error:
                raise InputError(f"{self.name}: {error}") from error

    def _mine(self) -> Iterator[tuple[bool, Row]]:
        """Yield all rows, and whether they are in this shard."""
        number, n_shards = self.shard
        return ((place % n_shards == number - 1, row) for place, row in enumerate(self.rows()))

    def count(self, done: Done, *, ordered: bool = False) -> int:
        """Return how many rows need an answer beside those that are done.

        Raises InputError where two rows have the same id, a row is not what was answered before,
        or an `ordered` output cannot be had.
        """
        n_left = 0
        repeated: dict[str, list[int]] = {}
        for is_mine, row in self._mine():
            is_done = is_mine and done.has(row)
            n_left += is_mine and not is_done
            if ordered and is_done and n_left:
                raise InputError(
                    f"line {row.line} is answered already, and one before it is not: the "
                    "output cannot be in order; leave --ordered out, or --restart"
                )
            first = self._lines.setdefault(row.key, row.line)
            if first != row.line:
                repeated.setdefault(str(row.id), [first]).append(row.line)
        if repeated:
            named = [
                f"{row_id!r} in lines {', '.join(map(str, found[:_NAMED]))}"
                for row_id, found in list(repeated.items())[:_NAMED]
            ]
            raise InputError(f"{self.name}: ids must differ, and some do not: {'; '.join(named)}")
        if not self._lines:
            raise InputError(f"{self.name}: holds no row")
        return n_left

    def left(self, done: Done) -> Iterator[Row]:
        """Yield the rows that need an answer, of an input that was counted, and may grow meanwhile.

        Raises InputError at a row whose id another one had.
        """
        for is_mine, row in self._mine():
            if self._lines.get(row.key) == 0:
                raise InputError(
                    f"{self.name}: ids must differ, and line {row.line} has {str(row.id)!r}, as "
                    "a row before it has; mend that, and the same command goes on"
                )
            self._lines[row.key] = 0
            if is_mine and not done.has(row):
                yield row


@contextlib.contextmanager
def open_source(name: str, wishes: Wishes, form: str | None = None) -> Iterator[Source]:
    """Open a file, or read standard input (`-`) or an address to its end; raise InputError."""
    shown = "standard input" if name == "-" else name
    with refusing(f"{shown}: cannot be read"):
        file = places.opened(name)
    with file:
        yield Source(shown, form_of(file, shown, wishes, form), file)


def form_of(file: BinaryIO, name: str, wishes: Wishes, wanted: str | None = None) -> Form:
    """Return the form of a file, by its content if none is `wanted`; InputError if it has none."""
    file.seek(0)
    refuse_utf16(file.read(HEAD), name)
    file.seek(0)
    lines = forms.lines_of(file)
    first = next(lines, (1, b""))[1].strip()
    is_only = next(lines, None) is None
    file.seek(0)
    found = wanted or _detected(first, name, wishes)
    if found != Csv.name and is_only and b"\r" in first:
        raise InputError(
            f"{name} ends its lines with carriage returns alone; write line feeds "
            "(tr '\\r' '\\n' does that)"
        )
    if wishes.template is not None and found not in (JsonLines.name, Csv.name):
        raise InputError(f"--prompt-template goes with csv and jsonl, and {name} is {found}")
    given = {"--system": wishes.system, "--raw": wishes.raw or None, "--logprobs": wishes.n_top}
    for option, value in given.items():
        if found == OpenAI.name and value is not None:
            raise InputError(f"{option} goes with csv, jsonl and text, and {name} is {found}")
    return forms.FORMS[found](wishes)


def _detected(first: bytes, name: str, wishes: Wishes) -> str:
    if first.startswith(b"{"):
        try:
            is_openai = "custom_id" in json.loads(first.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            is_openai = b'"custom_id"' in first
        return OpenAI.name if is_openai else JsonLines.name
    if first == b"[" or first.startswith(b"[{"):
        raise InputError(f"{name} is a JSON array; give one object a line (jq -c '.[]' does that)")
    head = first.partition(b"\r")[0].decode("utf-8", "replace")
    columns, delimiter = list[str](), forms.delimiter_of(head)
    # What does not name its columns well is refused as a table; as plain text, it is answered.
    with contextlib.suppress(csv.Error, StopIteration):
        columns = next(csv.reader([head], delimiter=delimiter, skipinitialspace=True))
    has_prompt = "prompt" in [column.strip().lower() for column in columns]
    is_table = has_prompt or Path(name).suffix.lower() in (".csv", ".tsv")
    return Csv.name if is_table or wishes.template is not None else Text.name


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
    shard: tuple[int, int] = (1, 1)


@dataclass(slots=True)
class Progress:
    """How far this run is, and what was there before it.

    Rows that come while it runs make `n_rows` more; those that failed before are in `n_failed`.
    """

    before: Done
    n_rows: int = 0
    n_done: int = 0
    n_failed: int = 0
    n_tokens: int = 0
    n_slots: int = 0
    finished: bool = True
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.n_tokens / max(self.seconds, 1e-9)


def carry_out(
    errand: Errand,
    open_ensemble: Callable[[int], AbstractContextManager[Ensemble | Fleet]],
    stopped: Callable[[], bool] = lambda: False,
    told: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Answer every row of the input that has no answer in the output yet.

    All that can be wrong with input, output and an earlier run is found before `open_ensemble`
    is called with the number of rows, and nothing is thrown away before it has returned. Ends
    early where `stopped`. Raises InputError and ConfigError.
    """
    with contextlib.ExitStack() as files:
        source = files.enter_context(open_source(errand.source, errand.wishes, errand.form))
        with contextlib.suppress(OSError):
            if errand.source == errand.target != "-" or Path(errand.target).samefile(errand.source):
                raise InputError(f"{errand.target} is the input itself; give another output")
        target = files.enter_context(places.kept(errand.target))
        output = files.enter_context(FileResults(target, source.form))
        grounds = grounds_of(errand.spec, errand.wishes, source.form.name)
        done = output.begin(grounds, restart=errand.restart, retry=errand.retry_errors)
        source.shard = errand.shard
        n_left = source.count(done, ordered=errand.ordered)
        progress = Progress(done, n_left, n_failed=done.n_failed)
        if not n_left:
            output.opened()
            return progress
        with open_ensemble(n_left) as ensemble:
            output.opened(ensemble.mapping_files())
            progress.started = time.monotonic()
            job = Job(errand, ensemble, source.form, output, progress)
            progress.finished = job.run(source.left(done), stopped, told)
            return progress


@dataclass(slots=True, eq=False)
class Job:
    """Writes the answers to rows: as they finish, or in order as they were put in."""

    errand: Errand
    ensemble: Ensemble | Fleet
    form: Form
    output: FileResults
    progress: Progress
    # Rows that are being answered, each behind its place in the input, and what came so far.
    _asked: dict[int, tuple[int, Row, Answer]] = field(default_factory=dict)
    # Finished rows that wait for one before them, by their place in the input.
    _early: dict[int, Mapping[str, object]] = field(default_factory=dict)
    _next: int = 0

    def run(
        self, rows: Iterator[Row], stopped: Callable[[], bool], told: Callable[[Progress], None]
    ) -> bool:
        """Answer the rows, unless `stopped`; return whether all are, however many there were."""
        with contextlib.closing(self.ensemble.runner(self._requests(rows))) as runner:
            while not (runner.done or stopped()):
                for number, each in runner.step():
                    self._take(number, each)
                # More workers may have come.
                self.progress.n_slots = max(self.progress.n_slots, self.ensemble.n_slots)
                told(self.progress)
            return not self._asked and next(rows, None) is None

    def _requests(self, rows: Iterator[Row]) -> Iterator[Request | None]:
        number = 0
        for place, row in enumerate(rows):
            while len(self._early) >= _AHEAD * self.ensemble.n_slots:
                yield None
            asked = row.asked
            if asked is None:
                self._fail(place, row, row.problem)
                continue
            self._asked[number] = (place, row, Answer(told=asked.n_top is not None))
            number += 1
            yield Request(asked.prompt, asked.sampling, n_top=asked.n_top or 0)

    def _take(self, number: int, told: Told) -> None:
        place, row, answer = self._asked[number]
        if isinstance(told, EvaError):
            self._fail(place, row, str(told))
        else:
            assert isinstance(told, Step)
            self.progress.n_tokens += bool(told.piece)
            answer.push(told)
            if told.finish_reason is None:
                return
            name = self.ensemble.spec.name
            self._write(place, self.form.answered(row, answer, name))
        del self._asked[number]

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
