"""Show how far a build is, from the lines that it prints."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable

_STEP = re.compile(r"\s*\[(\d+)/(\d+)\] ")
_SECONDS_BETWEEN_LINES = 30


def step(line: str) -> tuple[int, int] | None:
    """Return (done, of how many) where `line` is one of ninja's `[41/140]` lines."""
    found = _STEP.match(line)
    return (int(found[1]), int(found[2])) if found else None


def show(lines: Iterable[str]) -> None:
    """Follow a build on stderr until its lines end: a bar on a terminal, else a line at times."""
    if sys.stderr.isatty():
        _show_bar(lines)
    else:
        _show_lines(lines)


def _show_bar(lines: Iterable[str]) -> None:
    # Imported late: `make setup` with nothing to build should not wait for rich.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("downloading", total=None)
        for line in lines:
            if found := step(line):
                progress.update(task, description="compiling", completed=found[0], total=found[1])


def _show_lines(lines: Iterable[str]) -> None:
    begun = last = time.monotonic()
    for line in lines:
        now = time.monotonic()
        if (found := step(line)) and now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            print(f"  {found[0]} of {found[1]} after {now - begun:.0f} s", file=sys.stderr)
