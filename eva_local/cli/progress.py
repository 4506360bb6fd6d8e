"""Show on stderr how far a slow step has come."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

# Nothing is shown of what takes less; then a bar on a terminal, a line every few seconds else.
PATIENCE_S = 2.0
LINE_EVERY_S = 10.0


@contextmanager
def progress_shown() -> Iterator[ProgressDisplay]:
    """Give a function to call as progress(what, done, total), and tidy up after it."""
    display = ProgressDisplay()
    try:
        yield display
    finally:
        display.close()


class ProgressDisplay:
    """A bar, or lines where stderr is no terminal."""

    def __init__(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._last_line = 0.0
        self._last_what = ""
        self._bar: RichProgress | None = None

    def __call__(self, what: str, done: int, total: int | None) -> None:
        """Say that `done` of `total` is done of `what`."""
        now = time.monotonic()
        if now - self._started < PATIENCE_S:
            return
        if sys.stderr.isatty():
            self._show_bar(what, done, total)
        elif what != self._last_what or now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            share = f" {100 * done // total}%" if total else ""
            click.echo(f"{what}{share}", err=True)
        self._last_what = what

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()

    def _show_bar(self, what: str, done: int, total: int | None) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        if what != self._last_what or not self._bar.task_ids:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(what)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total)
