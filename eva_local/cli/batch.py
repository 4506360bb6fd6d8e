"""The command `batch`: many rows from a file to answers in a file."""

from __future__ import annotations

import contextlib
import datetime as dt
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from eva_local.cli.options import declared, drawing_options
from eva_local.cli.outputs import ProgressDisplay, open_shown
from eva_local.errors import InputError

if TYPE_CHECKING:
    from eva_local.api import Ensemble
    from eva_local.batch.job import Progress
    from eva_local.config.config import Config
    from eva_local.types import Sampling

# Without a terminal, a line of progress this often.
LINE_EVERY_S = 30.0
FAILED = 1


@click.command()
@click.argument("source", metavar="IN", type=click.Path())
@click.argument("target", metavar="OUT", type=click.Path())
@drawing_options
@declared("batch")
def batch(
    config: Config,
    sampling: Sampling,
    parallel: int | None,
    resume: bool,
    retry_errors: bool,
    prompt_template: str | None,
    system: str | None,
    raw: bool,
    n_top: int | None,
    on: str | None,
    workers: int | None,
    **job: Any,
) -> int:
    """Answer every row of IN in OUT, one JSON object a line.

    IN is JSON lines with a prompt or messages, OpenAI's batch format, a table (CSV), or text
    with a prompt a line. - is standard input or output. A job that was interrupted goes on
    where it ended when the same command is given again. Exit code 1: some rows failed.
    """
    for refused, told in (
        (raw and system is not None, "--raw has no system message: leave --system out"),
        (retry_errors and not resume, "--restart tries all rows again: leave --retry-errors out"),
        (workers is not None and on is None, "--workers are processes elsewhere: say where, --on"),
    ):
        if refused:
            raise InputError(told)
    from eva_local.batch.fleet import Fleet
    from eva_local.batch.forms import Template, Wishes
    from eva_local.batch.job import Errand, carry_out

    template = None if prompt_template is None else Template(prompt_template)
    wishes = Wishes(sampling, system, raw, template, n_top)
    job |= {"restart": not resume, "retry_errors": retry_errors}
    errand = Errand(spec=config.ensemble(), wishes=wishes, **job)
    display = ProgressDisplay(patience=0.0, every=LINE_EVERY_S)
    signals: list[int] = []

    def show(progress: Progress) -> None:
        display("", progress.n_done / progress.n_rows, _progress_line(progress))

    def note(number: int, _frame: FrameType | None) -> None:
        # No step is cut off in the middle; a second signal ends at once.
        if signals:
            raise KeyboardInterrupt
        signals.append(number)

    with contextlib.ExitStack() as stack:
        stack.callback(display.close)

        def opener(n_rows: int) -> Ensemble | Fleet:
            spec = replace(errand.spec, sampling=sampling)
            if on is None:
                ensemble: Ensemble | Fleet = open_shown(spec, parallel, most=n_rows)
            else:
                # Ray prints what it has to say, and the output is open by now.
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
                ensemble = Fleet(on, spec, workers, parallel)
            for number in (signal.SIGINT, signal.SIGTERM):
                stack.callback(signal.signal, number, signal.signal(number, note))
            return ensemble

        outcome = carry_out(errand, opener, lambda: bool(signals), show)
    click.echo(_summary(outcome, errand.target), err=True)
    if not outcome.finished:
        return 128 + signals[0]
    return FAILED if outcome.n_failed else 0


@click.command()
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.argument("parts", metavar="PARTS...", type=click.Path(path_type=Path), nargs=-1)
def merge(target: Path, parts: tuple[Path, ...]) -> None:
    """Put the outputs of the shards of a batch together.

    OUT must not be there. The same batch command without --shard then says whether a row is
    missing, and does it.
    """
    from eva_local.batch.merge import merge as put_together

    if not parts:
        raise InputError("merge needs the outputs of the shards: eva-local merge OUT PARTS…")
    n_rows, n_failed = put_together(target, parts)
    click.echo(f"{n_rows} rows of {len(parts)} parts in {target}; {n_failed} failed", err=True)


def _progress_line(progress: Progress) -> str:
    n_done, n_rows = progress.n_done, progress.n_rows
    parts = [f"{n_done} of {n_rows} rows", f"{progress.rate:.1f} tokens/s"]
    if n_done:
        # If the other rows are like those before.
        parts.append(f"{_duration(progress.seconds / n_done * (n_rows - n_done))} left")
    if progress.n_failed:
        parts.append(f"{progress.n_failed} failed")
    return ", ".join(parts)


def _summary(progress: Progress, target: str) -> str:
    n_before = progress.before.n_rows
    whole = (
        f"{progress.n_done} of {progress.n_rows} rows in {_duration(progress.seconds)}, "
        f"{progress.n_slots} side by side: {progress.n_tokens} tokens, {progress.rate:.1f} tokens/s"
    )
    parts = [whole, *([f"{n_before} were answered before"] if n_before else [])]
    if not progress.n_rows:
        parts = [f"nothing to do: {n_before} rows are answered in {target}"]
    if progress.n_failed:
        parts.append(f"{progress.n_failed} failed (--retry-errors tries them again)")
    if not progress.finished:
        parts.append("interrupted: the same command goes on")
    return "; ".join(parts)


def _duration(seconds: float) -> dt.timedelta:
    return dt.timedelta(seconds=round(seconds))
