"""JSON Lines files that survive a crash: records are appended whole, torn ones mended or named."""

import contextlib
import fcntl
import json
import mmap
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self, TypeVar

from eva_local.errors import InputError, refusing
from eva_local.reading import ReadError, read, shown

T = TypeVar("T")

# Line ends for readers other than JSON's, and what a terminal would obey: control characters,
# and marks that reorder what is shown.
_DELICATE = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# How every record begins.
_BEGINNING = b'{"'


def json_line(record: Mapping[str, object]) -> bytes:
    """Return an object as a line of JSON that is one line to any reader and harmless to print."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False, default=str)
    text = _DELICATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    # A lone surrogate has no UTF-8; its backslash form is JSON's own escape for it.
    return text.encode("utf-8", "backslashreplace") + b"\n"


def is_torn(line: bytes) -> bool:
    """Return whether a last line is the beginning of a record whose writer was interrupted.

    A record that only lacks its line end is whole, and what no record begins like is no part
    of one. After a power cut there may be zeros.
    """
    if not line or line.endswith(b"\n"):
        return False
    if line.strip(b"\0") and not _BEGINNING.startswith(line[:2]):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False


def write_whole(descriptor: int, data: bytes) -> None:
    """Write all of `data`; raise OSError where that cannot be done."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


def replace_file(path: Path, data: bytes) -> None:
    """Write a file in two moves, so that it is the old one or the new one, and never half."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class JsonlFile:
    """A file of records to append to; what is there stays. A context manager.

    One process at a time writes it; without `busy`, processes take turns and lock the file for
    one record. A pipe or a device is written too, but neither locked nor mended, and so is what
    an open `descriptor` leads to.
    Raises InputError: where the system refuses something, now or later, with `refusal` and its
    reason, and where another process writes, with `busy`.
    """

    def __init__(
        self,
        path: Path,
        refusal: str,
        *,
        busy: str | None = None,
        create: bool = True,
        descriptor: int | None = None,
    ) -> None:
        self.path = path
        self._refusal = refusal
        self._busy = busy
        with refusing(self._refusal):
            if descriptor is not None:
                self._file = os.dup(descriptor)
            else:
                self._file = self._opened(path, os.O_CREAT if create else 0)
            is_file = stat.S_ISREG(os.fstat(self._file).st_mode)
        #: Whether what is written is kept, and can be read again.
        self.is_regular = is_file and descriptor is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lines(self) -> Iterator[bytes]:
        """Yield what is there, line by line, with their ends."""
        with refusing(self._refusal), self.path.open("rb") as file:
            yield from file

    def append(self, *records: Mapping[str, object]) -> None:
        """Write records, all of them or, raising InputError, none."""
        data = b"".join(map(json_line, records))
        with refusing(self._refusal), self._turn():
            size = os.fstat(self._file).st_size
            try:
                write_whole(self._file, data)
            except BaseException:
                with contextlib.suppress(OSError):
                    self._cut(size)
                raise

    def restart(self) -> None:
        """Throw away what is there."""
        with refusing(self._refusal):
            self._cut(0)

    def mend(self) -> None:
        """Cut off a torn last line, or end a whole one, so that the next record stands alone."""
        with refusing(self._refusal):
            if is_torn(tail := self._tail()):
                self._cut(os.fstat(self._file).st_size - len(tail))
            elif tail:
                write_whole(self._file, b"\n")

    def keep(self, is_kept: Callable[[bytes], bool]) -> None:
        """Take out the other lines. The file is exchanged at once, or not at all."""
        with refusing(self._refusal):
            # A link to the file stays one.
            path = self.path.resolve()
            part = path.with_name(f"{path.name}.part")
            kept = self._opened(part, os.O_CREAT | os.O_TRUNC)
            try:
                os.fchmod(kept, os.fstat(self._file).st_mode & 0o777)
                for line in filter(is_kept, self.lines()):
                    write_whole(kept, line)
                os.fsync(kept)
                part.replace(path)
            except BaseException:
                os.close(kept)
                raise
            os.close(self._file)
            self._file = kept

    @contextlib.contextmanager
    def closed_on_failure(self) -> Iterator[None]:
        """Close the file where what follows the opening fails."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Bring all to the disk and let others write; do nothing if that is done."""
        if self._file < 0:
            return
        with refusing(self._refusal):
            try:
                if self.is_regular:
                    os.fsync(self._file)
            finally:
                os.close(self._file)
                self._file = -1

    def _opened(self, path: Path, flags: int) -> int:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | flags, 0o666)
        try:
            found = os.fstat(file)
            if self._busy is not None and stat.S_ISREG(found.st_mode):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.path.samestat(found, path.stat()):
                    # It was exchanged meanwhile: see `keep`.
                    raise BlockingIOError
        except BaseException as error:
            os.close(file)
            if isinstance(error, BlockingIOError):
                raise InputError(self._busy or "") from error
            raise
        return file

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the lock, unless it is held all the time, over a file without a torn line."""
        if self._busy is not None or not self.is_regular:
            yield
            return
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            self.mend()
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _tail(self) -> bytes:
        with self.path.open("rb") as file:
            # An empty file cannot be mapped.
            if not os.fstat(file.fileno()).st_size:
                return b""
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return data[data.rfind(b"\n") + 1 :]

    def _cut(self, size: int) -> None:
        if self.is_regular:
            os.ftruncate(self._file, size)


class Checked:
    """A JSON object that came from outside and stands `where`; InputError for another value."""

    def __init__(self, where: str, value: object) -> None:
        self._where = where
        if not isinstance(value, dict):
            raise self.problem("is no JSON object")
        self.values: Mapping[str, object] = value

    def problem(self, what: str) -> InputError:
        """Return an error about this object."""
        return InputError(f"{self._where} {what}")

    def read(self, kind: type[T]) -> T:
        """Return it as a `kind`; raise InputError for what does not fit."""
        try:
            return read(self.values, kind)
        except ReadError as error:
            raise InputError(f"{self._where}: {error}") from error

    def kind(self, *known: str, schema: object = None) -> str:
        """Return which of `known` its key `kind` says; InputError for another, or for a schema."""
        kind, found = self.values.get("kind"), self.values.get("schema")
        if kind not in known:
            raise self.problem(f"has kind {shown(kind)}, and it can be {', '.join(known)}")
        if schema and found != schema:
            raise self.problem(
                f"has schema {shown(found)}, and this eva-local reads schema {schema}"
            )
        return str(kind)


def checked_lines(path: Path, data: bytes) -> tuple[list[Checked], bool]:
    """Return the objects of JSON Lines, and whether a torn last line was left out.

    Raises InputError for any other line that is no JSON object.
    """
    lines = data.split(b"\n")
    torn = is_torn(lines[-1])
    if torn or not lines[-1]:
        del lines[-1]
    found = []
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            found.append(Checked(where, json.loads(line)))
        except (ValueError, RecursionError) as error:
            # A wrong UTF-8 byte is a ValueError too.
            raise InputError(f"{where} is no JSON: {error}") from error
    return found, torn
