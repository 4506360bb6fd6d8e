"""Where figures go beside the terminal: the options --json and --html."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import click

from eva_local.cli.session import Command
from eva_local.cli.table import print_json
from eva_local.errors import InputError

STDOUT = Path("-")


class Measured(Protocol):
    """What was measured, with all its figures."""

    def as_json(self) -> dict[str, object]:
        """Return the figures."""
        ...


def output_options(command: Command) -> Command:
    """Add --json and --html, as `json_out` and `html_out`."""
    path = click.Path(path_type=Path)
    html = click.option(
        "--html", "html_out", metavar="OUT", type=path, help="Write a report with plots."
    )
    figures = click.option(
        "--json",
        "json_out",
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
    outcome: Measured,
    show: Callable[[Any], None],
    page: Callable[[Any], str],
    json_out: Path | None,
    html_out: Path | None,
) -> None:
    """Print an outcome, and write its figures and its page to the files that were asked for."""
    figures = outcome.as_json()
    if json_out == STDOUT:
        print_json(figures)
    else:
        show(outcome)
        if json_out is not None:
            _write(json_out, json.dumps(figures, indent=1, default=str))
    if html_out is not None:
        _write(html_out, page(outcome))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
