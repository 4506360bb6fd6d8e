"""The standard streams, of which some may be closed."""

from __future__ import annotations

import fcntl
import io
import os
import sys


def open_closed_streams() -> None:
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
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def input_is_closed() -> bool:
    """Return whether standard input was closed, so that nothing can be read from it."""
    try:
        mode = fcntl.fcntl(sys.stdin.fileno(), fcntl.F_GETFL) & os.O_ACCMODE
    except io.UnsupportedOperation:
        # A stand-in that is no file of the system.
        return False
    return mode == os.O_WRONLY
