"""What commands print and write, and the standard streams, of which some may be closed."""

from __future__ import annotations

import fcntl
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import click

from eva_local.cli.options import Command
from eva_local.engine.detokenizer import harmless_line
from eva_local.errors import InputError, refusing

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

STDOUT = Path("-")


def print_json(value: object) -> None:
    """Print a value as JSON; what JSON has no form for is printed as text."""
    click.echo(json.dumps(value, indent=2, default=str))


def print_table(head: tuple[str, ...], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under a head, in columns; cells are worded as `shown` does, a row may be short."""
    lines = [head, *(tuple(map(shown, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip_longest(*lines, fillvalue="")]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=False))
        click.echo("  ".join(cells).rstrip())


def shown(value: object, form: str = "") -> str:
    """Word a value in one line; it may come from a file: a terminal obeys none of it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        value = ",".join(map(str, value)) or None
    return "-" if value is None else harmless_line(format(value, form))


def output_options(command: Command) -> Command:
    """Add --json and --html, as `json_out` and `html_out`."""
    path = click.Path(path_type=Path)
    html = click.option(
        "--html", "html_out", metavar="OUT", type=path, help="Write a report with plots."
    )
    figures = click.option(
        *("--json", "json_out"),
        is_flag=False,
        flag_value="-",
        metavar="OUT",
        type=path,
        help="Write all figures as JSON; - is stdout.",
    )
    return figures(html(command))


def refuse_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path] = ()) -> None:
    """Find out before long work what cannot be written, or would write over what is read.

    `outputs` are named by their options.
    """
    read = {path.resolve() for path in inputs}
    for name, path in outputs.items():
        if path is None or path == STDOUT:
            continue
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


class _Notes(io.FileIO):
    """Standard error, of which a write never fails: no answer depends on who reads the notes.

    What a full disk or a broken pipe does not take is lost, for all who write to `sys.stderr`.
    """

    def write(self, data: Buffer, /) -> int:
        """Write what can be written, and say that all was."""
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError:
            return size
        # None: it would have to wait.
        return size if written is None else written


def open_streams() -> None:
    """Let no note on stderr fail, and put something in the place of a stream that is closed."""
    _open_closed()
    # Not where a test has put a stand-in there.
    if sys.stderr is sys.__stderr__:
        notes = io.BufferedWriter(_Notes(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(notes, "utf-8", "replace", line_buffering=True)


def _open_closed() -> None:
    """Put something in the place of each standard stream that is closed.

    Else the next file that is opened would get its number, and answers would be written into it.
    Who reads from or writes to what was closed gets an error, but for the notes on stderr.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken.
            os.set_inheritable(os.open(os.devnull, mode), True)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


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
