"""The output: rows are appended whole, and what is there already is known again."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from eva_local.batch.forms import Form
from eva_local.batch.rows import Row
from eva_local.errors import InputError
from eva_local.trace.file import json_line

# How the rows of all forms begin.
_BEGINNING = b'{"id": '
# What the JSON of another program raises where a row of output is looked for in it.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class Results(Protocol):
    """A place for rows of output."""

    def append(self, result: Mapping[str, object]) -> None:
        """Write one row, whole; raise InputError where that cannot be done."""


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
        if not len(self._hashes):
            return None
        wanted = np.uint64(_hash(key))
        place = int(np.searchsorted(self._hashes, wanted))
        is_there = place < len(self._hashes) and self._hashes[place] == wanted
        return place if is_there else None

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


class FileResults:
    """A file of results, which one process at a time may write."""

    def __init__(self, path: Path, form: Form) -> None:
        """Open or create the file; raise InputError where it cannot be written."""
        self._path = path
        self._form = form
        self._held: list[int] = []
        try:
            self._file = self._locked(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
            self._size = os.fstat(self._file).st_size
        except BaseException as error:
            self._let_go()
            if isinstance(error, OSError):
                raise self._refused(error) from error
            raise
        # Up to where the file is whole lines; known once it was read.
        self._whole = self._size

    @property
    def is_empty(self) -> bool:
        """Whether nothing is there."""
        return self._size == 0

    def restart(self) -> None:
        """Throw away what is there."""
        self._shorten(0)

    def read(self, *, retry: bool = False) -> Done:
        """Return what is there already; a last line that was not written whole is not: see `mend`.

        With `retry`, rows that failed count as not there; see `drop_failed`. Raises InputError
        for a line that is no row of output, and a last one that does not begin like one.
        """
        keys: list[str] = []
        n_rows = n_failed = at = 0
        with self._reader() as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    self._refuse_strange(number, line)
                    break
                at += len(line)
                row_id, mark, failed = self._known(number, line)
                if not (failed and retry):
                    keys += _keys(row_id, mark)
                    n_rows += 1
                    n_failed += failed
        self._whole = at
        return Done(n_rows, n_failed, Known(keys))

    def mend(self) -> None:
        """Take out a last line that was not written whole."""
        if self._whole < self._size:
            self._shorten(self._whole)

    def drop_failed(self) -> None:
        """Take out the rows that failed. The file is exchanged at once, or not at all."""
        try:
            # A link to the file stays one.
            path = self._path.resolve()
            part = path.with_name(f"{path.name}.part")
            mode = os.fstat(self._file).st_mode & 0o777
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            kept = self._locked(os.open(part, flags, mode))
            with self._reader() as file:
                for number, line in enumerate(file, 1):
                    *_, failed = self._known(number, line)
                    if not failed:
                        _write(kept, line)
            os.fsync(kept)
            part.replace(path)
        except OSError as error:
            raise self._refused(error) from error
        self._file = kept
        self._size = os.fstat(kept).st_size

    def append(self, result: Mapping[str, object]) -> None:
        """Write one row; raise InputError, with nothing half written, where that fails."""
        line = json_line(result)
        try:
            os.lseek(self._file, self._size, os.SEEK_SET)
            _write(self._file, line)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise self._refused(error) from error
        self._size += len(line)

    def close(self) -> None:
        """Make sure that everything is on the disk, and let others write the file."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise self._refused(error) from error
        finally:
            self._let_go()

    def _let_go(self) -> None:
        for held in self._held:
            os.close(held)
        self._held = []

    def _locked(self, descriptor: int) -> int:
        # Kept until the end: the lock of a file that was exchanged keeps others away too.
        self._held.append(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{self._path} is being written by another process") from error
        return descriptor

    def _reader(self) -> BinaryIO:
        os.lseek(self._file, 0, os.SEEK_SET)
        return os.fdopen(os.dup(self._file), "rb")

    def _shorten(self, size: int) -> None:
        try:
            os.ftruncate(self._file, size)
        except OSError as error:
            raise self._refused(error) from error
        self._size = size

    def _known(self, number: int, line: bytes) -> tuple[str | int, str, bool]:
        """Return id and mark of the row that a line answers, and whether that row failed."""
        try:
            result = json.loads(line)
            return *self._form.identity(result), bool(result.get("error"))
        except (*_MALFORMED, InputError) as error:
            raise self._no_row(number) from error

    def _refuse_strange(self, number: int, line: bytes) -> None:
        """Raise InputError for a last line that was not written by a batch that was killed."""
        if line[: len(_BEGINNING)] != _BEGINNING[: len(line)]:
            raise self._no_row(number)

    def _no_row(self, number: int) -> InputError:
        return InputError(
            f"{self._path}, line {number}: is no row of a batch of the form "
            f"{self._form.name}; mend the line, or begin anew with --restart"
        )

    def _refused(self, error: OSError) -> InputError:
        return InputError(f"{self._path}: cannot be written: {error.strerror or error}")


class StreamResults:
    """Standard output, or another place that keeps nothing."""

    def __init__(self, descriptor: int, name: str) -> None:
        """Write rows to an open file, which stays open."""
        # Without a buffer, what a failed write leaves behind cannot fail again later.
        self._descriptor = descriptor
        self._name = name

    def append(self, result: Mapping[str, object]) -> None:
        """Write one row. Raises BrokenPipeError where nobody reads any more."""
        try:
            _write(self._descriptor, json_line(result))
        except BrokenPipeError:
            raise
        except OSError as error:
            raise InputError(f"{self._name}: cannot be written: {error.strerror}") from error


def keeps_nothing(path: Path) -> bool:
    """Return whether a path is there and is no regular file: a pipe, a device."""
    try:
        return not stat.S_ISREG(path.stat().st_mode) and not path.is_dir()
    except OSError:
        return False


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def _keys(row_id: str | int, mark: str) -> list[str]:
    """Return what a row of output is remembered by."""
    return [_key(row_id, "line"), _key(row_id, mark)] if mark else [_key(row_id)]


def _key(row_id: str | int, mark: str = "") -> str:
    return f"{mark}:{row_id}"
