"""Signals while a chat is running: Ctrl-C as a wish, and an orderly end."""

from __future__ import annotations

import contextlib
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

_ENDINGS = (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def interruption_noted() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C was pressed, and let it do nothing else.

    So a step is never cut off in the middle, nor is the saving of what was said.
    """
    pressed: list[int] = []
    with handled((signal.SIGINT,), lambda number, _frame: pressed.append(number)):
        yield lambda: bool(pressed)


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """Let a process that is told to end tidy up first: the terminal above all."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with handled(_ENDINGS, leave):
        yield


@contextlib.contextmanager
def end_put_off(told: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Call `told` where the process is told to end, and let it end after the block.

    Gives a function that says whether it was told. An event loop needs this: an exception that
    a signal raises amid its own work may be lost, or stop it where it waits for ever.
    """
    numbers: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        numbers.append(number)
        told()

    try:
        with handled(_ENDINGS, note):
            yield lambda: bool(numbers)
    finally:
        if numbers:
            raise SystemExit(128 + numbers[0])


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


@contextlib.contextmanager
def handled(
    numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Let `handler` take these signals."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, handled)
