"""The standard streams, of which some may be closed."""

from __future__ import annotations

import fcntl
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


class _Notes(io.FileIO):
    """Standard error, of which a write never fails: no answer depends on who reads the notes.

    What a full disk or a broken pipe does not take is lost, for all who write to `sys.stderr`.
    """

    def write(self, data: Buffer, /) -> int:
        """Write what can be written, and say that all was."""
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError:
            return size
        # None: it would have to wait.
        return size if written is None else written


def open_streams() -> None:
    """Let no note on stderr fail, and put something in the place of a stream that is closed."""
    _open_closed()
    # Not where a test has put a stand-in there.
    if sys.stderr is sys.__stderr__:
        notes = io.BufferedWriter(_Notes(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(notes, "utf-8", "replace", line_buffering=True)


def _open_closed() -> None:
    """Put something in the place of each standard stream that is closed.

    Else the next file that is opened would get its number, and answers would be written into it.
    Who reads from or writes to what was closed gets an error, but for the notes on stderr.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken.
            os.set_inheritable(os.open(os.devnull, mode), True)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def give_up_output() -> None:
    """Let standard output lead nowhere; Python would complain at exit of what it cannot flush."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def input_is_closed() -> bool:
    """Return whether standard input was closed, so that nothing can be read from it."""
    try:
        mode = fcntl.fcntl(sys.stdin.fileno(), fcntl.F_GETFL) & os.O_ACCMODE
    except io.UnsupportedOperation:
        # A stand-in that is no file of the system.
        return False
    return mode == os.O_WRONLY
