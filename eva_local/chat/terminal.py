"""The terminal: where answers and remarks go, its state, and the signals that come from it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType

from rich.cells import chop_cells
from rich.console import Console, RenderableType
from rich.markdown import Markdown
from rich.status import Status
from rich.text import Text

from eva_local.engine.detokenizer import harmless

ENDINGS = (signal.SIGTERM, signal.SIGHUP)


def is_terminal() -> bool:
    """Return whether a person reads and types at a terminal that can move its cursor."""
    dumb = os.environ.get("TERM", "dumb") in ("dumb", "unknown", "")
    return sys.stdin.isatty() and sys.stdout.isatty() and not dumb


class Screen:
    """Answers on standard output; all else there too at a terminal, and on stderr elsewhere."""

    def __init__(self, *, interactive: bool) -> None:
        """Use the terminal, or plain streams."""
        self.interactive = interactive
        self._console = Console(stderr=not interactive, highlight=False, emoji=False, markup=False)
        self._reading: Status | None = None
        self._answer = ""
        self._held = ""
        self._size = self._console.size

    def show(self, *shown: RenderableType) -> None:
        """Show tables or texts that are safe to show."""
        for part in shown:
            # Lines that no terminal shows are for programs, which want them whole.
            self._console.print(part, soft_wrap=isinstance(part, Text) and not self.interactive)

    def say(self, text: str) -> None:
        """Show text that may hold anything."""
        self.show(Text(harmless(text)))

    def note(self, text: str) -> None:
        """Show a remark."""
        self.show(Text(harmless(text), style="dim"))

    def problem(self, text: str) -> None:
        """Show what went wrong."""
        self.show(Text(harmless(text), style="red" if self.interactive else ""))

    def gap(self) -> None:
        """Leave a line free between two turns at a terminal."""
        if self.interactive:
            self._console.print()

    def begin(self) -> None:
        """Expect an answer; at a terminal, say that the members are reading."""
        self._answer = ""
        self._held = ""
        self._size = self._console.size
        if self.interactive:
            self._reading = self._console.status(Text("reading", style="dim"))
            self._reading.start()

    def reading(self, share: float) -> None:
        """Say how far the members have read."""
        if self._reading is not None:
            self._reading.update(Text(f"reading {share:.0%}", style="dim"))

    def write(self, text: str) -> None:
        """Show the next part of the answer, without blank lines before and after it all."""
        if not self._answer:
            text = text.lstrip()
        text = self._held + text
        ready = text.rstrip()
        self._held = text[len(ready) :]
        if not ready:
            return
        self._settle()
        self._answer += ready
        # A model may write escape sequences; a terminal must not obey them.
        sys.stdout.write(harmless(ready) if sys.stdout.isatty() else ready)
        sys.stdout.flush()

    def end(self, *, markdown: bool = False) -> None:
        """End the answer with its line; show it as Markdown if it stands on the screen whole."""
        self._settle()
        if not self._answer:
            return
        sys.stdout.write("\n")
        sys.stdout.flush()
        answer, size = harmless(self._answer), self._size
        # The terminal breaks lines where they reach its edge.
        lines = (chop_cells(line.expandtabs(), size.width) for line in answer.split("\n"))
        rows = sum(max(1, len(line)) for line in lines)
        if markdown and self.interactive and self._console.size == size and rows < size.height:
            sys.stdout.write(f"\x1b[{rows}A\r\x1b[J")
            sys.stdout.flush()
            self._console.print(Markdown(answer))

    def _settle(self) -> None:
        if self._reading is not None:
            self._reading.stop()
            self._reading = None


@contextlib.contextmanager
def interruption_noted() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C was pressed, and let it do nothing else.

    So a step is never cut off in the middle, nor is the saving of what was said.
    """
    pressed: list[int] = []
    with handled(lambda number, _frame: pressed.append(number), signal.SIGINT):
        yield lambda: bool(pressed)


@contextlib.contextmanager
def orderly_end() -> Iterator[None]:
    """Let a process that is told to end tidy up first: the terminal above all."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with handled(leave, *ENDINGS):
        yield


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
def handled(handler: Callable[[int, FrameType | None], None], *numbers: int) -> Iterator[None]:
    """Let `handler` take these signals."""
    with contextlib.ExitStack() as stack:
        for number in numbers:
            stack.callback(signal.signal, number, signal.signal(number, handler))
        yield
