"""The command `trace`: the page of a trace file."""

from __future__ import annotations

from pathlib import Path

import click

from eva_local.errors import InputError


@click.command()
@click.argument("file", metavar="FILE.jsonl", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    metavar="PAGE.html",
    help="Write the page there; - is stdout. Without it, FILE.html beside FILE.jsonl.",
)
def trace(file: Path, output: str | None) -> None:
    """Make a page of a trace that `run --trace FILE.jsonl` wrote.

    The page shows which member carried each token, the votes that were filtered, and each
    member's candidates. It is one file and opens in any browser, without a network.
    """
    from eva_local.trace import read_trace, summarize, trace_page

    found = read_trace(file)
    for note in found.notes:
        click.echo(f"eva-local: {file}: {note}", err=True)
    page = trace_page(found).encode()
    if output == "-":
        click.echo(page, nl=False)
        return
    path = file.with_suffix(".html") if output is None else Path(output)
    if path.resolve() == file.resolve():
        raise InputError(f"{path} is the trace itself; name another page with -o PAGE.html")
    try:
        path.write_bytes(page)
    except OSError as error:
        raise InputError(f"the page {path} cannot be written: {error.strerror}") from error
    summary = summarize(found.members, found.steps)
    click.echo(f"{path}: {summary.tokens} tokens, {summary.disputed} disputed", err=True)
