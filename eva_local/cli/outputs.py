"""What commands print and write: tables, JSON, and the options --json and --html."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import click

from eva_local.cli.session import Command
from eva_local.engine.detokenizer import harmless_line
from eva_local.errors import InputError

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
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
