"""Signals while a chat is running: Ctrl-C as a wish, and an orderly end."""

from __future__ import annotations

import contextlib
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType

_ENDINGS = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def interruption_noted() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C was pressed, and let it do nothing else.

    So a step is never cut off in the middle, nor is the saving of what was said.
    """
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """Let a process that is told to end tidy up first: the terminal above all."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in _ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def terminal_restored() -> Iterator[None]:
    """Put the terminal back into the state that it has now."""
    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def typing_unseen() -> Iterator[None]:
    """Let what is typed wait for the next prompt, without a trace on the screen."""
    with terminal_restored():
        if sys.stdin.isatty():
            tty.setcbreak(sys.stdin.fileno(), termios.TCSANOW)
        yield
