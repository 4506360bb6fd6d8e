"""What commands print and write, how far they are, and the standard streams, perhaps closed."""

import fcntl
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import zip_longest
from pathlib import Path
from shutil import get_terminal_size
from textwrap import fill
from typing import TYPE_CHECKING

import click

from eva_local.engine.detokenizer import harmless_line
from eva_local.errors import InputError, refusing

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from rich.progress import Progress as Bar

    from eva_local.api import Ensemble
    from eva_local.config.specs import EnsembleSpec

STDOUT = Path("-")
# Nothing is shown of what takes less; then a bar on a terminal, a line every few seconds else.
PATIENCE_S = 2.0
LINE_EVERY_S = 10.0


def print_json(value: object) -> None:
    """Print a value as JSON; what JSON has no form for is printed as text."""
    click.echo(json.dumps(value, indent=2, default=str))


def print_table(head: tuple[str, ...], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under a head, in columns; cells are worded as `shown` does, a row may be short."""
    click.echo(_in_columns([head, *(tuple(map(shown, row)) for row in rows)]))


def print_report(name: str, **values: object) -> None:
    """Print what a template says: it has `shown`, and `columns` to call, with " | " between two."""
    from eva_local.pages.frame import template

    def columns(caller: Callable[[], str]) -> str:
        head, *lines = caller().splitlines()
        # What stands in the last may be anything.
        return _in_columns([line.split(" | ", head.count(" | ")) for line in (head, *lines)])

    told = template(name).render(columns=columns, shown=shown, **values).rstrip()
    within = partial(fill, width=_width(), break_long_words=False, break_on_hyphens=False)
    click.echo(
        "\n".join(line if len(line) <= _width() else within(line) for line in told.split("\n"))
    )


def _in_columns(lines: Sequence[Sequence[str]]) -> str:
    """Return a table; what a terminal has no room for stands below, behind the first column."""
    columns = [*zip_longest(*lines, fillvalue="")]
    first, *others = ([cell.ljust(max(map(len, each))) for cell in each] for each in columns)
    tables = [[first]]
    for column in others:
        used = sum(len(each[0]) + 2 for each in tables[-1])
        if len(tables[-1]) > 1 and used + len(column[0]) > _width():
            tables.append([first])
        tables[-1].append(column)
    told = (("  ".join(row).rstrip() for row in zip(*table, strict=True)) for table in tables)
    return "\n\n".join(map("\n".join, told))


def _width() -> int:
    return get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


def shown(value: object) -> str:
    """Word a value in one line; a terminal obeys none of it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        value = ",".join(map(str, value)) or None
    return "-" if value is None else harmless_line(str(value))


def refuse_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path] = ()) -> None:
    """Find out before long work which of `outputs` (by option) cannot be written, or is read."""
    read = {path.resolve() for path in inputs}
    for option, path in outputs.items():
        if path is None or path == STDOUT:
            continue
        name = f"--{option.removesuffix('_out')}"
        if path.resolve() in read:
            raise InputError(f"{name} {path} is a file of rows; name another")
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise InputError(f"{name} {path} cannot be written: no such folder, or a folder itself")


def write_outputs(
    figures: object,
    show: Callable[[], None],
    page: Callable[[], str],
    json_out: Path | None,
    html_out: Path | None,
) -> None:
    """Show what was measured, and write figures and page to the files that were asked for."""
    if json_out == STDOUT:
        print_json(figures)
    else:
        show()
        if json_out is not None:
            _write(json_out, json.dumps(figures, indent=1, default=str))
    if html_out is not None:
        _write(html_out, page())


def _write(path: Path, text: str) -> None:
    with refusing(f"{path} cannot be written"):
        path.write_text(text, encoding="utf-8", errors="backslashreplace")


class ProgressDisplay:
    """A bar, or lines where stderr is no terminal; both only after `patience` seconds."""

    def __init__(self, patience: float = PATIENCE_S, every: float = LINE_EVERY_S) -> None:
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

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()

    def _show_bar(self, what: str, share: float | None, text: str) -> None:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import Progress

        told = escape(text or what)
        if self._bar is None:
            # A text tells the time that is left, as the last column does.
            columns = Progress.get_default_columns()[: 3 if text else 4]
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._bar.add_task(told)
        task, total = self._bar.task_ids[0], None if share is None else 1.0
        if what != self._last_what:
            self._bar.reset(task)
        self._bar.update(task, completed=share or 0.0, total=total, description=told)


def open_shown(
    spec: "EnsembleSpec", parallel: int | None = 1, *, most: int | None = None
) -> "Ensemble":
    """Open an ensemble for `parallel` texts, None for the best number, at most `most`."""
    from eva_local.opening import MOST, open_ensemble, open_widest

    with closing(ProgressDisplay()) as progress:
        if parallel is None:
            return open_widest(spec, progress, most=min(most or MOST, MOST))
        return open_ensemble(spec, progress, parallel=min(parallel, most or parallel))


class _Notes(io.FileIO):
    """Standard error, of which no write fails: no answer depends on who reads the notes."""

    def write(self, data: "Buffer", /) -> int:
        size = memoryview(data).nbytes
        with suppress(OSError):
            # None: it would have to wait.
            return super().write(data) or size
        return size


def open_streams() -> None:
    """Let no note on stderr fail, and put something in the place of a stream that is closed.

    Else the next file that is opened would get its number, and answers would be written into it.
    Who reads from or writes to what was closed gets an error, but for the notes on stderr.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken.
            os.set_inheritable(os.open(os.devnull, mode), True)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    # Not where a test has put a stand-in there.
    if sys.stderr is sys.__stderr__:
        notes = io.BufferedWriter(_Notes(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(notes, "utf-8", "replace", line_buffering=True)


def give_up_output() -> None:
    """Let standard output lead nowhere; Python would complain at exit of what it cannot flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def input_is_closed() -> bool:
    """Return whether standard input was closed, so that nothing can be read from it."""
    try:
        mode = fcntl.fcntl(sys.stdin.fileno(), fcntl.F_GETFL) & os.O_ACCMODE
    except io.UnsupportedOperation:
        # A stand-in that is no file of the system.
        return False
    return mode == os.O_WRONLY
