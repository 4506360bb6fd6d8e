"""Tables and JSON on standard output."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from eva_local.engine.detokenizer import harmless_line


def print_json(value: object) -> None:
    """Print a value as JSON; what JSON has no form for is printed as text."""
    click.echo(json.dumps(value, indent=2, default=str))


def print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows under a head, in columns. Cells may come from files: a terminal obeys none."""
    rows = [tuple(map(harmless_line, row)) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
