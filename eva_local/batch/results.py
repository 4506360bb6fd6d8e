"""The output: rows are appended whole, and what is there already is known again."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eva_local.batch.forms import Form
from eva_local.batch.manifest import Grounds, read_grounds, refuse_changes, write_grounds
from eva_local.batch.rows import Row
from eva_local.errors import InputError, refusing
from eva_local.jsonl import JsonlFile, is_torn, json_line, write_whole

# How the rows of all forms begin.
_BEGINNING = b'{"id": '
# What the JSON of another program raises where a row of output is looked for in it.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


def _hash(key: str) -> int:
    data = key.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


class Known:
    """Hashes of ids and lines, 8 bytes each: a job may have millions of rows."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Remember `keys`."""
        self._hashes = np.sort(np.fromiter(map(_hash, keys), dtype=np.uint64))

    def __contains__(self, key: str) -> bool:
        """Return whether a key is among them."""
        return self.place(key) is not None

    def place(self, key: str) -> int | None:
        """Return the number of a key among them, from 0; None where it is not there."""
        wanted = np.uint64(_hash(key))
        place = int(np.searchsorted(self._hashes, wanted))
        return place if place < len(self) and self._hashes[place] == wanted else None

    def repeated(self) -> Known:
        """Return the keys that came more than once."""
        found = Known(())
        found._hashes = np.unique(self._hashes[1:][self._hashes[1:] == self._hashes[:-1]])
        return found

    def __len__(self) -> int:
        """Return how many keys there are."""
        return len(self._hashes)


@dataclass(frozen=True, slots=True)
class Done:
    """What an earlier run has written: rows in all, rows that failed, and which they are."""

    n_rows: int
    n_failed: int
    known: Known

    def has(self, row: Row) -> bool:
        """Return whether a row needs no answer any more.

        Raises InputError where a row that is known by its line alone says something else now.
        """
        if not row.mark:
            return row.key in self.known
        if _key(row.line, row.mark) in self.known:
            return True
        if _key(row.line, "line") in self.known:
            raise InputError(
                f"line {row.line} of the input is not what was answered before: rows without an "
                "id are known by their line; give them ids, or begin anew with --restart"
            )
        return False


NOTHING = Done(0, 0, Known(()))


class FileResults(JsonlFile):
    """A file of results, which one process at a time may write; an earlier run may have begun it.

    Nothing that is there is changed before the models are open.
    """

    def __init__(self, path: Path, form: Form) -> None:
        """Open or create the file; raise InputError where it cannot be written."""
        super().__init__(
            path,
            f"{path}: cannot be written",
            busy=f"{path} is being written by another process",
        )
        self._form = form
        self._grounds: Grounds = {}
        self._earlier: Grounds | None = None
        self._retry = False

    def begin(self, grounds: Grounds, *, restart: bool = False, retry: bool = False) -> Done:
        """Return what is done; with `retry`, rows that failed are not.

        Raises InputError where this job is not the one that was begun, for a line that is no
        row of output, and for a last one that does not begin like one.
        """
        self._grounds, self._retry = grounds, retry
        if restart or self.is_empty:
            return NOTHING
        self._earlier = read_grounds(self.path)
        if self._earlier is None:
            raise InputError(
                f"{self.path} is there already, and no batch wrote it; give another "
                "output, or throw it away with --restart"
            )
        refuse_changes(self.path, self._earlier, grounds)
        return self._read()

    def opened(self, mappings: Mapping[str, str]) -> None:
        """Make ready for rows, now that nothing can go wrong any more."""
        if self._earlier is not None:
            refuse_changes(self.path, self._earlier, {"mappings": mappings})
            self.settled()
            return
        self.restart()
        write_grounds(self.path, {**self._grounds, "mappings": mappings})

    def settled(self) -> None:
        """Take out a row that was not written whole, and failed rows that are tried again."""
        self.mend()
        if self._retry:
            self.keep(lambda line: not self._parsed(line)[2])

    def _read(self) -> Done:
        keys: list[str] = []
        n_rows = n_failed = 0
        for number, line in enumerate(self.lines(), 1):
            if is_torn(line) and line[: len(_BEGINNING)] == _BEGINNING[: len(line)]:
                break
            try:
                row_id, mark, failed = self._parsed(line)
            except (*_MALFORMED, InputError) as error:
                raise InputError(
                    f"{self.path}, line {number}: is no row of a batch of the form "
                    f"{self._form.name}; mend the line, or begin anew with --restart"
                ) from error
            if not (failed and self._retry):
                keys += [_key(row_id, each) for each in (("line", mark) if mark else ("",))]
                n_rows += 1
                n_failed += failed
        return Done(n_rows, n_failed, Known(keys))

    def _parsed(self, line: bytes) -> tuple[str | int, str, bool]:
        """Return id and mark of the row that a line answers, and whether that row failed."""
        result = json.loads(line)
        return *self._form.identity(result), bool(result.get("error"))


class StreamResults:
    """Standard output, a pipe or a device, which keeps nothing: every run begins anew."""

    def __init__(self, target: str) -> None:
        """Open a path, or standard output (`-`); raise InputError where that cannot be done."""
        self._name = "standard output" if target == "-" else target
        with refusing(f"{self._name}: cannot be written"):
            # Without a buffer, what a failed write leaves behind cannot fail again later.
            self._descriptor = (
                os.dup(sys.stdout.fileno())
                if target == "-"
                else os.open(target, os.O_WRONLY | os.O_CLOEXEC)
            )

    def opened(self, mappings: Mapping[str, str]) -> None:
        """Have nothing to make ready."""

    def settled(self) -> None:
        """Have nothing to take out."""

    def append(self, result: Mapping[str, object]) -> None:
        """Write one row. Raises BrokenPipeError where nobody reads any more."""
        try:
            write_whole(self._descriptor, json_line(result))
        except BrokenPipeError:
            raise
        except OSError as error:
            raise InputError(f"{self._name}: cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Close what was opened."""
        os.close(self._descriptor)


Output = FileResults | StreamResults


def _key(row_id: str | int, mark: str) -> str:
    return f"{mark}:{row_id}"
