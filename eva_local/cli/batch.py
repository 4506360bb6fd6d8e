"""The command `batch`: many rows from a file to answers in a file."""

import contextlib
import datetime as dt
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import click

from eva_local.api import Ensemble
from eva_local.batch import merge as merging
from eva_local.batch.fleet import Fleet
from eva_local.batch.forms import Template, Wishes
from eva_local.batch.job import Errand, Progress, carry_out
from eva_local.batch.places import pairs
from eva_local.cli.outputs import ProgressDisplay, open_shown
from eva_local.config.config import Config
from eva_local.errors import InputError
from eva_local.pages.frame import lines_of
from eva_local.types import Sampling

log = logging.getLogger("eva_local")

# Without a terminal, a line of progress this often.
LINE_EVERY_S = 30.0
FAILED = 1


def batch(
    config: Config,
    sampling: Sampling,
    source: str,
    target: str,
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
    """Answer every row of a file, or of each file of a folder; return the exit code."""
    for refused, told in (
        (raw and system is not None, "--raw has no system message: leave --system out"),
        (retry_errors and not resume, "--restart tries all rows again: leave --retry-errors out"),
        (workers is not None and on is None, "--workers are processes elsewhere: say where, --on"),
    ):
        if refused:
            raise InputError(told)
    template = None if prompt_template is None else Template(prompt_template)
    wishes = Wishes(sampling, system, raw, template, n_top)
    job |= {"restart": not resume, "retry_errors": retry_errors}
    whole = Errand(source, target, config.ensemble(), wishes, **job)
    spec = replace(whole.spec, sampling=sampling)
    errands = [replace(whole, source=one, target=other) for one, other in pairs(source, target)]
    signals: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        # No step is cut off in the middle; a second signal ends at once.
        if signals:
            raise KeyboardInterrupt
        signals.append(number)

    with contextlib.ExitStack() as stack:

        @cache
        def opened(most: int | None) -> Ensemble | Fleet:
            found: Ensemble | Fleet
            if on is None:
                found = ensemble = stack.enter_context(open_shown(spec, parallel, most=most))
                # Nobody reads along: what counts is when the last row is written.
                ensemble.for_throughput()
            else:
                # Ray prints what it has to say, and the output is open by now.
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
                found = stack.enter_context(Fleet(on, spec, workers, parallel))
            for number in (signal.SIGINT, signal.SIGTERM):
                stack.callback(signal.signal, number, signal.signal(number, note))
            return found

        return _carried_out(errands, opened, signals)


def _carried_out(
    errands: Sequence[Errand], opened: Callable[[int | None], Any], signals: Sequence[int]
) -> int:
    """Do each file until there are `signals`, and say what came of it; return the exit code."""
    is_one, code = len(errands) == 1, 0

    def opener(n_rows: int) -> contextlib.nullcontext[Ensemble | Fleet]:
        # It is opened once, and the next file may have more rows.
        return contextlib.nullcontext(opened(n_rows if is_one else None))

    def show(progress: Progress) -> None:
        display("", progress.n_done / progress.n_rows, ", ".join(_told("progress", progress)))

    for errand in errands:
        try:
            with contextlib.closing(ProgressDisplay(patience=0.0, every=LINE_EVERY_S)) as display:
                outcome = carry_out(errand, opener, lambda: bool(signals), show)
        except InputError as error:
            if is_one:
                raise
            log.error("%s", error)
            code = FAILED
            continue
        click.echo("; ".join(_told("summary", outcome, errand, is_one)), err=True)
        if not outcome.finished:
            return 128 + signals[0]
        code = FAILED if outcome.n_failed else code
    return code


def merge(target: Path, parts: tuple[Path, ...]) -> None:
    """Put the outputs of all shards of a batch together."""
    if not parts or Path("-") in (target, *parts):
        raise InputError("merge needs files, the outputs of all shards: eva-local merge OUT PARTS…")
    n_rows, n_failed = merging.merge(target, parts)
    click.echo(f"{n_rows} rows of {len(parts)} parts in {target}; {n_failed} failed", err=True)


def _told(macro: str, progress: Progress, *more: object) -> list[str]:
    return lines_of("cli/batch.txt", macro, progress, dt.timedelta, *more)
