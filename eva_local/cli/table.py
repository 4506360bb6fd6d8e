"""Tables and JSON on standard output."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import click

from eva_local.engine.detokenizer import harmless_line


def print_json(value: object) -> None:
    """Print a value as JSON; what JSON has no form for is printed as text."""
    click.echo(json.dumps(value, indent=2, default=str))


def print_table(head: tuple[str, ...], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under a head, in columns; cells are worded as `shown` does."""
    lines = [head, *(tuple(map(shown, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def shown(value: object) -> str:
    """Word a value in one line; it may come from a file: a terminal obeys none of it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        value = ",".join(map(str, value)) or None
    return "-" if value is None else harmless_line(str(value))
