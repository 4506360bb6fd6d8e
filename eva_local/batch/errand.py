"""One job from its input to its output: begun, or gone on with, and finished or interrupted."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from eva_local.api import Ensemble
from eva_local.batch.forms import Form
from eva_local.batch.job import Job, Progress
from eva_local.batch.manifest import Grounds, Manifest, plain
from eva_local.batch.results import (
    NOTHING,
    Done,
    FileResults,
    Results,
    StreamResults,
    keeps_nothing,
)
from eva_local.batch.rows import Wishes
from eva_local.batch.source import Source
from eva_local.config.specs import EnsembleSpec
from eva_local.errors import InputError
from eva_local.models.store import checksum

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


@dataclass(frozen=True, slots=True)
class Outcome:
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
) -> Outcome:
    """Answer every row of the input that has no answer in the output yet.

    All that can be wrong with input, output and an earlier run is found before `open_ensemble`
    is called, and nothing that is there is thrown away before it has returned. Ends early where
    `stopped`; what is missing then is done by the next run.

    Raises InputError and ConfigError.
    """
    with (
        Source(errand.source, errand.wishes, errand.form) as source,
        _output(errand, source.form) as output,
    ):
        done = output.begin()
        n_left = source.count(done, ordered=errand.ordered)
        if not n_left:
            output.settled()
            return Outcome(Progress(0), done, 0, finished=True)
        with open_ensemble(n_left) as ensemble:
            output.opened(ensemble)
            job = Job(
                ensemble,
                source.form,
                output.results,
                n_left,
                shares=errand.wishes.shares,
                ordered=errand.ordered,
            )
            finished = job.run(source.left(done), stopped, told)
            return Outcome(job.progress, done, ensemble.n_slots, finished)


class _FileOutput:
    """A file that an earlier run may have begun."""

    def __init__(self, errand: Errand, results: FileResults, form: Form) -> None:
        self.results: Results = results
        self._file = results
        self._errand = errand
        self._form = form
        self._manifest = Manifest(Path(errand.target))
        self._earlier: Grounds | None = None
        self._grounds: Grounds = {}

    def begin(self) -> Done:
        """Return what is done; raise InputError where this job is not the one that was begun."""
        self._grounds = grounds_of(self._errand, self._form)
        if self._errand.restart or self._file.is_empty:
            return NOTHING
        self._earlier = self._manifest.read()
        if self._earlier is None:
            raise InputError(
                f"{self._errand.target} is there already, and no batch wrote it; give another "
                "output, or throw it away with --restart"
            )
        self._manifest.refuse_changes(self._earlier, self._grounds)
        return self._file.read(retry=self._errand.retry_errors)

    def opened(self, ensemble: Ensemble) -> None:
        """Make ready for rows, now that nothing can go wrong any more."""
        mappings = {file.name: _sha256(file) for file in ensemble.mapping_files()}
        if self._earlier is not None:
            self._manifest.refuse_changes(self._earlier, {"mappings": mappings})
            self.settled()
            return
        self._file.restart()
        self._manifest.write({**self._grounds, "mappings": mappings})

    def settled(self) -> None:
        """Take out a row that was not written whole, and failed rows that are tried again."""
        self._file.mend()
        if self._errand.retry_errors:
            self._file.drop_failed()


class _StreamOutput:
    """A place that keeps nothing: every run begins anew."""

    def __init__(self, results: StreamResults) -> None:
        self.results: Results = results

    def begin(self) -> Done:
        return NOTHING

    def opened(self, ensemble: Ensemble) -> None:
        pass

    def settled(self) -> None:
        pass


def grounds_of(errand: Errand, form: Form) -> Grounds:
    """Return what the answers rest on, as far as it is known before a model is opened."""
    wishes, spec = errand.wishes, errand.spec
    members = {
        f"{place}: {member.name}": {
            "sha256": checksum(member),
            "n_ctx": member.load.n_ctx,
            "kv_type": member.load.kv_type,
            "swa_full": member.load.swa_full,
        }
        for place, member in enumerate(spec.members)
    }
    rows = {
        "format": form.name,
        "prompt_template": None if wishes.template is None else wishes.template.text,
        "system": wishes.system,
        "raw": wishes.raw,
        "logprobs": wishes.n_top,
        "shares": wishes.shares,
    }
    grounds = {
        "members": members,
        "pivot": spec.pivot,
        "fusion": asdict(spec.fusion),
        "sampling": asdict(wishes.sampling),
        "rows": rows,
    }
    return {group: plain(value) for group, value in grounds.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _output(errand: Errand, form: Form) -> Iterator[_FileOutput | _StreamOutput]:
    target = Path(errand.target)
    _refuse_own_input(errand)
    if errand.target == "-" or keeps_nothing(target):
        if errand.retry_errors:
            raise InputError("--retry-errors needs an output that is a file")
        with _stream(errand.target) as stream:
            yield _StreamOutput(stream)
        return
    results = FileResults(target, form)
    try:
        yield _FileOutput(errand, results, form)
    finally:
        results.close()


@contextlib.contextmanager
def _stream(target: str) -> Iterator[StreamResults]:
    if target == "-":
        yield StreamResults(sys.stdout.fileno(), "standard output")
        return
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from error
    try:
        yield StreamResults(descriptor, target)
    finally:
        os.close(descriptor)


def _refuse_own_input(errand: Errand) -> None:
    with contextlib.suppress(OSError):
        if Path(errand.source).samefile(errand.target):
            raise InputError(f"{errand.target} is the input itself; give another output")
