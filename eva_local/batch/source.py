"""The input: a file that can be read twice, in one of the forms, which its content tells."""

import contextlib
import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from eva_local.batch.forms import FORMS, Csv, Form, JsonLines, OpenAI, Text, delimiter_of, lines_of
from eva_local.batch.results import Done
from eva_local.batch.rows import Row, Wishes
from eva_local.engine.detokenizer import HEAD, refuse_utf16
from eva_local.errors import InputError, refusing

# Pairs of lines with the same id that an error names.
_NAMED = 3


@dataclass(slots=True)
class Source:
    """The rows of the input."""

    name: str
    form: Form
    _file: BinaryIO
    # The line of each row that was counted, by its key; 0 for one that was read since.
    _lines: dict[str, int] = field(default_factory=dict)

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

        Raises InputError where two rows have the same id, a row is not what was answered before,
        or an `ordered` output cannot be had.
        """
        n_left = 0
        repeated: dict[str, list[int]] = {}
        for row in self.rows():
            is_done = done.has(row)
            n_left += not is_done
            if ordered and is_done and n_left:
                raise InputError(
                    f"line {row.line} is answered already, and one before it is not: the "
                    "output cannot be in order; leave --ordered out, or --restart"
                )
            first = self._lines.setdefault(row.key, row.line)
            if first != row.line:
                repeated.setdefault(str(row.id), [first]).append(row.line)
        if repeated:
            named = [
                f"{row_id!r} in lines {', '.join(map(str, found[:_NAMED]))}"
                for row_id, found in list(repeated.items())[:_NAMED]
            ]
            raise InputError(f"{self.name}: ids must differ, and some do not: {'; '.join(named)}")
        if not self._lines:
            raise InputError(f"{self.name}: holds no row")
        return n_left

    def left(self, done: Done) -> Iterator[Row]:
        """Yield the rows that need an answer, of an input that was counted, and may grow meanwhile.

        Raises InputError at a row whose id another one had.
        """
        for row in self.rows():
            if self._lines.get(row.key) == 0:
                raise InputError(
                    f"{self.name}: ids must differ, and line {row.line} has {str(row.id)!r}, as "
                    "a row before it has; mend that, and the same command goes on"
                )
            self._lines[row.key] = 0
            if not done.has(row):
                yield row


@contextlib.contextmanager
def open_source(name: str, wishes: Wishes, form: str | None = None) -> Iterator[Source]:
    """Open a file, or read standard input (`-`) to its end; raise InputError."""
    shown = "standard input" if name == "-" else name
    with contextlib.ExitStack() as stack:
        with refusing(f"{shown}: cannot be read"):
            file = sys.stdin.buffer if name == "-" else Path(name).open("rb")  # noqa: SIM115
            stack.callback(file.close)
            if name == "-" or not file.seekable():
                # It is read several times, and a disk holds more than memory does.
                spooled = stack.enter_context(tempfile.TemporaryFile())
                shutil.copyfileobj(file, spooled)
                file = spooled
        yield Source(shown, form_of(file, shown, wishes, form), file)


def form_of(file: BinaryIO, name: str, wishes: Wishes, wanted: str | None = None) -> Form:
    """Return the form of a file, by its content if none is `wanted`; InputError if it has none."""
    file.seek(0)
    refuse_utf16(file.read(HEAD), name)
    file.seek(0)
    lines = lines_of(file)
    first = next(lines, (1, b""))[1].strip()
    is_only = next(lines, None) is None
    file.seek(0)
    found = wanted or _detected(first, name, wishes)
    if found != Csv.name and is_only and b"\r" in first:
        raise InputError(
            f"{name} ends its lines with carriage returns alone; write line feeds "
            "(tr '\\r' '\\n' does that)"
        )
    if wishes.template is not None and found not in (JsonLines.name, Csv.name):
        raise InputError(f"--prompt-template goes with csv and jsonl, and {name} is {found}")
    given = {"--system": wishes.system, "--raw": wishes.raw or None, "--logprobs": wishes.n_top}
    for option, value in given.items():
        if found == OpenAI.name and value is not None:
            raise InputError(f"{option} goes with csv, jsonl and text, and {name} is {found}")
    return FORMS[found](wishes)


def _detected(first: bytes, name: str, wishes: Wishes) -> str:
    if first.startswith(b"{"):
        try:
            is_openai = "custom_id" in json.loads(first.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            is_openai = b'"custom_id"' in first
        return OpenAI.name if is_openai else JsonLines.name
    if first == b"[" or first.startswith(b"[{"):
        raise InputError(f"{name} is a JSON array; give one object a line (jq -c '.[]' does that)")
    head = first.partition(b"\r")[0].decode("utf-8", "replace")
    columns: list[str] = []
    # What does not name its columns well is refused as a table; as plain text, it is answered.
    with contextlib.suppress(csv.Error, StopIteration):
        columns = next(csv.reader([head], delimiter=delimiter_of(head), skipinitialspace=True))
    has_prompt = "prompt" in [column.strip().lower() for column in columns]
    is_table = has_prompt or Path(name).suffix.lower() in (".csv", ".tsv")
    return Csv.name if is_table or wishes.template is not None else Text.name
