"""One job from its input to its output: begun, or gone on with, and finished or interrupted."""

from __future__ import annotations

import contextlib
import hashlib
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from eva_local.api import Ensemble
from eva_local.batch.forms import Form
from eva_local.batch.job import Job, Progress
from eva_local.batch.manifest import grounds_of
from eva_local.batch.results import NOTHING, Done, FileResults, Output, StreamResults
from eva_local.batch.rows import Wishes
from eva_local.batch.source import Source
from eva_local.config.specs import EnsembleSpec
from eva_local.errors import InputError

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
        Source(errand.source, errand.wishes, errand.form) as source,
        _output(errand, source.form) as (output, done),
    ):
        n_left = source.count(done, ordered=errand.ordered)
        if not n_left:
            output.settled()
            return JobOutcome(Progress(0), done, 0, finished=True)
        with open_ensemble(n_left) as ensemble:
            output.opened({file.name: _sha256(file) for file in ensemble.mapping_files()})
            job = Job(
                ensemble,
                source.form,
                output,
                n_left,
                shares=errand.wishes.shares,
                ordered=errand.ordered,
            )
            finished = job.run(source.left(done), stopped, told)
            return JobOutcome(job.progress, done, ensemble.n_slots, finished)


@contextlib.contextmanager
def _output(errand: Errand, form: Form) -> Iterator[tuple[Output, Done]]:
    """Open the output; also say what is done in it."""
    target = Path(errand.target)
    _refuse_own_input(errand)
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


def _refuse_own_input(errand: Errand) -> None:
    with contextlib.suppress(OSError):
        if Path(errand.source).samefile(errand.target):
            raise InputError(f"{errand.target} is the input itself; give another output")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
