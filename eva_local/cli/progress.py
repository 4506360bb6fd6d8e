"""Show on stderr how far a slow step has come."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from eva_local.api import Ensemble
    from eva_local.config.specs import EnsembleSpec
    from eva_local.types import Sampling

# Nothing is shown of what takes less; then a bar on a terminal, a line every few seconds else.
PATIENCE_S = 2.0
LINE_EVERY_S = 10.0


class ProgressDisplay:
    """A bar, or lines where stderr is no terminal."""

    def __init__(self, patience: float = PATIENCE_S, every: float = LINE_EVERY_S) -> None:
        """Start the clock: show nothing for `patience` seconds, then a line `every` so many."""
        self._patience = patience
        self._every = every
        self._started = self._last_line = time.monotonic()
        self._last_what = ""
        self._bar: Bar | None = None

    def __call__(self, what: str, share: float | None = None, text: str = "") -> None:
        """Say which share of `what` is done, from 0 to 1, or `text` in place of that."""
        now = time.monotonic()
        if now - self._started < self._patience:
            return
        if sys.stderr.isatty():
            self._show_bar(what, share, text)
        elif what != self._last_what or now - self._last_line >= self._every:
            self._last_line = now
            percent = "" if share is None else f" {round(1000 * share) // 10}%"
            click.echo(text or f"{what}{percent}", err=True)
        self._last_what = what

    def count(self, what: str, done: int, total: int | None) -> None:
        """Say how many bytes of `what` are done."""
        self(what, done / total if total else None)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()

    def _show_bar(self, what: str, share: float | None, text: str) -> None:
        if self._bar is None:
            self._bar = _new_bar(with_time=not text)
            self._bar.add_task(what)
        total = None if share is None else 1.0
        task = self._bar.task_ids[0]
        if what != self._last_what:
            self._bar.reset(task)
        self._bar.update(task, completed=share or 0.0, total=total, description=text or what)


def _new_bar(*, with_time: bool) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        *([TimeRemainingColumn()] if with_time else []),
        console=Console(stderr=True),
        transient=True,
    )
    bar.start()
    return bar


def open_shown(
    spec: EnsembleSpec,
    sampling: Sampling | None = None,
    parallel: int | None = 1,
    *,
    most: int | None = None,
) -> Ensemble:
    """Open an ensemble for `parallel` texts, None for the best number, at most `most`."""
    from eva_local.capacity import MOST, open_widest
    from eva_local.opening import open_ensemble

    with closing(ProgressDisplay()) as progress:
        if parallel is None:
            return open_widest(spec, sampling, progress, most=min(most or MOST, MOST))
        return open_ensemble(spec, sampling, progress, parallel=min(parallel, most or parallel))
