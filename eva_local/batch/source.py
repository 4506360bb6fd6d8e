"""The input: a file that can be read twice, in one of the forms, which its content tells."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from eva_local.batch.forms import FORMS, Csv, Form, JsonLines, OpenAI, Text, lines_of
from eva_local.batch.results import Done, Known
from eva_local.batch.rows import Row, Wishes
from eva_local.batch.table import delimiter_of
from eva_local.engine.detokenizer import HEAD, refuse_utf16
from eva_local.errors import InputError, refusing

# Pairs of lines with the same id that an error names.
_NAMED = 3


class Source:
    """The rows of the input."""

    def __init__(self, name: str, wishes: Wishes, form: str | None = None) -> None:
        """Open a file, or read standard input (`-`) to its end; raise InputError."""
        self.name = "standard input" if name == "-" else name
        self._file = self._opened(name)
        self._counted = Known(())
        try:
            self.form: Form = form_of(self._file, self.name, wishes, form)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def rows(self) -> Iterator[Row]:
        """Yield all rows, from the first one."""
        self._file.seek(0)
        with refusing(f"{self.name}: cannot be read"):
            try:
                yield from self.form.rows(self._file)
            except InputError as error:
                raise InputError(f"{self.name}: {error}") from error

    def count(self, done: Done, *, ordered: bool = False) -> int:
        """Return how many rows need an answer beside those that are done.

        Raises InputError where two rows have the same id, naming their lines, where a row is
        not what was answered before, and where those that are left would break an `ordered`
        output.
        """
        n_rows = n_left = 0

        def ids() -> Iterator[str]:
            nonlocal n_rows, n_left
            for row in self.rows():
                n_rows += 1
                is_done = done.has(row)
                n_left += not is_done
                if ordered and is_done and n_left:
                    raise InputError(
                        f"line {row.line} is answered already, and one before it is not: the "
                        "output cannot be in order; leave --ordered out, or --restart"
                    )
                yield row.key

        self._counted = Known(ids())
        repeated = self._counted.repeated()
        if len(repeated):
            self._refuse(repeated)
        if not n_rows:
            raise InputError(f"{self.name}: holds no row")
        return n_left

    def left(self, done: Done) -> Iterator[Row]:
        """Yield the rows that need an answer, of an input that was counted.

        Raises InputError at a row whose id another one had: there may be rows that were not
        counted, since the input may grow while it is read.
        """
        seen = bytearray(len(self._counted))
        added: set[str] = set()
        for row in self.rows():
            place = self._counted.place(row.key)
            if row.key in added if place is None else seen[place]:
                raise InputError(
                    f"{self.name}: ids must differ, and line {row.line} has {str(row.id)!r}, as "
                    "a row before it has; mend that, and the same command goes on"
                )
            if place is None:
                added.add(row.key)
            else:
                seen[place] = True
            if not done.has(row):
                yield row

    def _refuse(self, repeated: Known) -> None:
        """Raise InputError that names the lines of ids that several rows have."""
        lines: dict[str, list[int]] = {}
        for row in self.rows():
            if row.key in repeated:
                lines.setdefault(str(row.id), []).append(row.line)
        named = [
            f"{row_id!r} in lines {', '.join(map(str, found[:_NAMED]))}"
            for row_id, found in list(lines.items())[:_NAMED]
        ]
        raise InputError(f"{self.name}: ids must differ, and some do not: {'; '.join(named)}")

    def _opened(self, name: str) -> BinaryIO:
        with refusing(f"{self.name}: cannot be read"):
            file = sys.stdin.buffer if name == "-" else Path(name).open("rb")  # noqa: SIM115
            if name != "-" and file.seekable():
                return file
            # It is read several times, and a disk holds more than memory does.
            with file:
                spooled = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
                shutil.copyfileobj(file, spooled)
            return spooled


def form_of(file: BinaryIO, name: str, wishes: Wishes, wanted: str | None = None) -> Form:
    """Return the form of a file, by its content where none is `wanted`; leaves it at its start.

    Raises InputError where the wishes do not go with the form.
    """
    file.seek(0)
    refuse_utf16(file.read(HEAD), name)
    file.seek(0)
    found = wanted or _detected(file, name, wishes)
    file.seek(0)
    if found != Csv.name:
        _refuse_bare_returns(file, name)
    if wishes.template is not None and found not in (JsonLines.name, Csv.name):
        raise InputError(f"--prompt-template goes with csv and jsonl, and {name} is {found}")
    if found == OpenAI.name and (options := wishes.options()):
        raise InputError(f"{options[0]} goes with csv, jsonl and text, and {name} is {found}")
    return FORMS[found](wishes)


def _detected(file: BinaryIO, name: str, wishes: Wishes) -> str:
    first = next((content.strip() for _, content in lines_of(file)), b"")
    if first.startswith(b"{"):
        return OpenAI.name if _is_openai(first) else JsonLines.name
    if first == b"[" or first.startswith(b"[{"):
        raise InputError(f"{name} is a JSON array; give one object a line (jq -c '.[]' does that)")
    head = first.partition(b"\r")[0].decode("utf-8", "replace")
    is_table = Path(name).suffix.lower() in (".csv", ".tsv") or "prompt" in _columns(head)
    return Csv.name if is_table or wishes.template is not None else Text.name


def _columns(head: str) -> list[str]:
    """Return the columns of a line as a table would mean them, if it can be the head of one.

    One that does not name them well is then refused, where plain text would be answered.
    """
    try:
        columns = next(csv.reader([head], delimiter=delimiter_of(head), skipinitialspace=True), [])
    except csv.Error:
        return []
    return [column.strip().lower() for column in columns]


def _refuse_bare_returns(file: BinaryIO, name: str) -> None:
    """Raise InputError where all is one line because line ends are carriage returns alone."""
    lines = lines_of(file)
    _, first = next(lines, (1, b""))
    is_only = next(lines, None) is None
    file.seek(0)
    if is_only and b"\r" in first.strip():
        raise InputError(
            f"{name} ends its lines with carriage returns alone; write line feeds "
            "(tr '\\r' '\\n' does that)"
        )


def _is_openai(line: bytes) -> bool:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return b'"custom_id"' in line
    return isinstance(values, dict) and "custom_id" in values
