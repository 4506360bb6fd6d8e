"""The input: a file that can be read twice, in one of the forms."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

from eva_local.batch.detection import form_of
from eva_local.batch.forms import Form
from eva_local.batch.results import Done, Known
from eva_local.batch.rows import Row, Wishes
from eva_local.errors import InputError

# Pairs of lines with the same id that an error names.
_NAMED = 3


class Source:
    """The rows of the input; a context manager."""

    def __init__(self, name: str, wishes: Wishes, form: str | None = None) -> None:
        """Open a file, or read standard input (`-`) to its end; raise InputError."""
        self.name = "standard input" if name == "-" else name
        self._file = self._opened(name)
        self._counted = Known(())
        try:
            self.form: Form = form_of(self._file, self.name, wishes, form)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        """Return the open source."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    def rows(self) -> Iterator[Row]:
        """Yield all rows, from the first one."""
        self._file.seek(0)
        try:
            yield from self.form.rows(self._file)
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from error
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read: {error.strerror}") from error

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
        try:
            file = sys.stdin.buffer if name == "-" else Path(name).open("rb")  # noqa: SIM115
            if name != "-" and file.seekable():
                return file
            # It is read several times, and a disk holds more than memory does.
            with file:
                spooled = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__
                shutil.copyfileobj(file, spooled)
            return spooled
        except OSError as error:
            raise InputError(f"{self.name}: cannot be read: {error.strerror}") from error
