"""The command `batch`: many rows from a file to answers in a file."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from eva_local.cli.drawing import Drawing, drawing_options
from eva_local.cli.parallel import open_places, parallel_option, places_of
from eva_local.cli.session import Session, pass_session, system_option, written
from eva_local.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from eva_local.api import Ensemble
    from eva_local.batch.errand import JobOutcome, Opener
    from eva_local.batch.job import Progress
    from eva_local.batch.rows import Wishes
    from eva_local.config.specs import EnsembleSpec
    from eva_local.types import Sampling

# Without a terminal, a line of progress this often; on one, the bar this often.
LINE_EVERY_S = 30.0
BAR_EVERY_S = 0.2
FAILED = 1
_FORMATS = ("jsonl", "openai", "csv", "text")


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@drawing_options
@parallel_option("rows")
@click.option(
    "--resume/--restart",
    default=True,
    help="Go on with what OUT has (as is done anyway), or throw it away.",
)
@click.option("--retry-errors", is_flag=True, help="Try rows again that failed before.")
@click.option("--ordered", is_flag=True, help="Write the rows in the order of IN.")
@click.option("--format", "form", type=click.Choice(_FORMATS), help="What IN is, if not guessed.")
@click.option(
    "--prompt-template",
    metavar="TEXT",
    type=written,
    help="The prompt of each row: '… {column} …' of its values.",
)
@system_option
@click.option("--raw", is_flag=True, help="Go on with prompts as they are, without chat templates.")
@click.option(
    "--logprobs",
    metavar="N",
    type=click.IntRange(0, 20),
    help="Add the log-probability of each token, and the N likeliest.",
)
@click.option("--shares", is_flag=True, help="Add the share of tokens that each member carried.")
@pass_session
def batch(
    session: Session,
    source: str,
    target: str,
    drawing: Drawing,
    parallel: str,
    resume: bool,
    retry_errors: bool,
    ordered: bool,
    form: str | None,
    prompt_template: str | None,
    system: str | None,
    raw: bool,
    logprobs: int | None,
    shares: bool,
) -> int:
    """Answer every row of IN in OUT, one JSON object a line.

    IN is JSON lines with a prompt or messages, OpenAI's batch format, a table (CSV), or text
    with a prompt a line. - is standard input or output. A job that was interrupted goes on
    where it ended when the same command is given again. Exit code 1: some rows failed.
    """
    if raw and system is not None:
        raise InputError("--raw has no system message: leave --system out")
    if retry_errors and not resume:
        raise InputError("--restart tries all rows again: leave --retry-errors out")
    config, sampling = drawing.load(session)
    places = places_of(parallel)
    from eva_local.batch.errand import Errand, carry_out

    errand = Errand(
        source=source,
        target=target,
        spec=config.ensemble(),
        wishes=_wishes(sampling, system, prompt_template, raw=raw, n_top=logprobs, shares=shares),
        form=form,
        restart=not resume,
        retry_errors=retry_errors,
        ordered=ordered,
    )
    display = Display()
    interruption = Interruption()
    try:
        with interruption:
            opener = _opener(errand.spec, sampling, places, interruption)
            outcome = carry_out(errand, opener, interruption, display)
    except BrokenPipeError:
        # Whoever read the rows has enough of them; Python would complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        display.close()
    click.echo(_summary(outcome, target), err=True)
    if not outcome.finished:
        return 128 + interruption.signal
    return FAILED if outcome.n_failed else 0


class Interruption:
    """Ctrl-C and a request to end, as wishes while rows are being written; a context manager.

    A step is then never cut off in the middle. A second signal ends at once.
    """

    def __init__(self) -> None:
        """Begin without a signal."""
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __call__(self) -> bool:
        """Return whether there was a signal."""
        return bool(self.signal)

    def __enter__(self) -> Interruption:
        """Return this."""
        return self

    def watch(self) -> None:
        """Take the signals from now on."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)

    def __exit__(self, *_: object) -> None:
        """Leave the signals as they were."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number


class Display:
    """How far the job is, on stderr: a bar, or a line now and then where it is no terminal."""

    def __init__(self) -> None:
        """Start the clock."""
        self._shown = time.monotonic()
        self._bar: Bar | None = None

    def __call__(self, progress: Progress) -> None:
        """Show the progress, if it is time to."""
        now = time.monotonic()
        on_terminal = sys.stderr.isatty()
        if now - self._shown < (BAR_EVERY_S if on_terminal else LINE_EVERY_S):
            return
        self._shown = now
        if not on_terminal:
            click.echo(progress_line(progress), err=True)
            return
        if self._bar is None:
            self._bar = _new_bar(progress.n_rows)
        task = self._bar.task_ids[0]
        self._bar.update(
            task,
            completed=progress.n_done,
            total=progress.n_rows,
            description=progress_line(progress),
        )

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()


def progress_line(progress: Progress) -> str:
    """Word the progress: rows, tokens a second, time left, failures."""
    parts = [f"{progress.n_done} of {progress.n_rows} rows", f"{progress.rate:.1f} tokens/s"]
    if progress.seconds_left is not None:
        parts.append(f"{_duration(progress.seconds_left)} left")
    if progress.n_failed:
        parts.append(f"{progress.n_failed} failed")
    return ", ".join(parts)


def _new_bar(n_rows: int) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    bar = Progress(
        BarColumn(),
        TextColumn("{task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    bar.add_task("", total=n_rows)
    bar.start()
    return bar


def _summary(outcome: JobOutcome, target: str) -> str:
    progress, before = outcome.progress, outcome.before
    if not progress.n_rows:
        line = f"nothing to do: {before.n_rows} rows are answered in {target}"
    else:
        line = (
            f"{progress.n_done} of {progress.n_rows} rows in {_duration(progress.seconds)}, "
            f"{outcome.n_slots} side by side: {progress.n_tokens} tokens, "
            f"{progress.rate:.1f} tokens/s"
        )
        if before.n_rows:
            line += f"; {before.n_rows} were answered before"
    if outcome.n_failed:
        line += f"; {outcome.n_failed} failed (--retry-errors tries them again)"
    if not outcome.finished:
        line += "; interrupted: the same command goes on"
    return line


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _opener(
    spec: EnsembleSpec, sampling: Sampling, places: int | None, interruption: Interruption
) -> Opener:
    """Return what opens the ensemble, and lets signals be wishes from then on."""

    def opener(n_rows: int) -> Ensemble:
        ensemble = open_places(spec, sampling, places, most=n_rows)
        interruption.watch()
        return ensemble

    return opener


def _wishes(
    sampling: Sampling,
    system: str | None,
    template: str | None,
    *,
    raw: bool,
    n_top: int | None,
    shares: bool,
) -> Wishes:
    from eva_local.batch.rows import Wishes
    from eva_local.batch.template import Template

    return Wishes(
        sampling=sampling,
        system=system,
        raw=raw,
        template=None if template is None else Template(template),
        n_top=n_top,
        shares=shares,
    )
