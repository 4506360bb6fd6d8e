"""Tables: the fields of their rows, and where a quote goes wrong."""

from __future__ import annotations

import bisect
import contextlib
import csv
import io
import itertools
import re
from collections.abc import Iterator
from typing import BinaryIO

from eva_local.errors import InputError

_DELIMITERS = ",\t;"
_QUOTED = re.compile(r'"[^"]*(?:""[^"]*)*(?P<end>"?)')


def read_table(file: BinaryIO) -> Iterator[tuple[int, list[str]]]:
    """Yield the line in which a row begins and its fields, those of the head first.

    Raises InputError where a quote is not closed: what follows would be read as its text.
    """
    csv.field_size_limit(2**31 - 1)
    text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
    # The lines of the row that is being read.
    lines: list[str] = []
    line = 1
    try:
        delimiter = delimiter_of(text.readline())
        text.seek(0)
        table = csv.reader(_noted(text, lines), delimiter=delimiter, strict=True)
        for fields in table:
            lines.clear()
            yield line, fields
            line = table.line_num + 1
    except csv.Error as error:
        opened = _open_quote(lines, delimiter)
        if opened is None:
            raise InputError(f"line {line}: cannot be read as CSV: {error}") from error
        raise InputError(
            f"line {line + opened}: a field begins with a quote here and does not end with one; "
            "close it, and write a quote within it twice"
        ) from error
    finally:
        # Who leaves off in the middle may have closed the file by now.
        with contextlib.suppress(ValueError):
            text.detach()


def delimiter_of(head: str) -> str:
    """Return what stands between the columns of a head: not what is within quotes."""
    return max(_DELIMITERS, key=_QUOTED.sub("", head).count)


def _noted(text: Iterator[str], lines: list[str]) -> Iterator[str]:
    for line in text:
        lines.append(line)
        yield line


def _open_quote(lines: list[str], delimiter: str) -> int | None:
    """Return which of a row's lines has the first field whose quote does not end it."""
    row = "".join(lines)
    ends = list(itertools.accumulate(map(len, lines)))
    between = re.compile(rf"[{delimiter}\r\n]|\Z")
    at = 0
    while at < len(row):
        quoted = _QUOTED.match(row, at)
        if quoted and not (quoted["end"] and between.match(row, quoted.end())):
            return bisect.bisect_right(ends, at)
        after = between.search(row, quoted.end() if quoted else at)
        at = len(row) if after is None else after.end()
    return None
