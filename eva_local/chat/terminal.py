"""The terminal: where answers and remarks go, its state, and the signals that come from it."""

import contextlib
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from types import FrameType

from rich.console import Console, RenderableType
from rich.status import Status
from rich.text import Text

from eva_local.engine.detokenizer import harmless
from eva_local.types import Step

ENDINGS = (signal.SIGTERM, signal.SIGHUP)


def is_terminal() -> bool:
    """Return whether a person reads and types at a terminal that can move its cursor."""
    dumb = os.environ.get("TERM", "dumb") in ("dumb", "unknown", "")
    return sys.stdin.isatty() and sys.stdout.isatty() and not dumb


class Screen:
    """Answers on standard output; all else there too at a terminal, and on stderr elsewhere."""

    def __init__(self, *, interactive: bool, folds: bool | None = None) -> None:
        self.interactive = interactive
        self._console = Console(stderr=not interactive, highlight=False, emoji=False, markup=False)
        self._busy: Status | None = None
        # Whether only the length of a thought is shown.
        self.folds = not interactive if folds is None else folds
        self._answer = self._held = self._thought = ""
        self._n_thought, self._began = 0, 0.0

    def show(self, *shown: RenderableType) -> None:
        """Show tables or texts that are safe to show."""
        for part in shown:
            # Lines that no terminal shows are for programs, which want them whole.
            self._console.print(part, soft_wrap=isinstance(part, Text) and not self.interactive)

    def say(self, text: str, style: str = "") -> None:
        """Show text that may hold anything."""
        self.show(Text(harmless(text), style=style))

    def note(self, text: str) -> None:
        """Show a remark."""
        self.say(text, "dim")

    def gap(self) -> None:
        """Leave a line free between two turns at a terminal."""
        if self.interactive:
            self._console.print()

    def begin(self) -> None:
        """Expect an answer; at a terminal, say that the members are reading."""
        self._answer = self._held = ""
        if self.interactive:
            self._busy = self._console.status(Text("reading", style="dim"))
            self._busy.start()

    def busy(self, what: str) -> None:
        """Say what the members are at, until something is shown."""
        if self._busy is not None:
            self._busy.update(Text(what, style="dim"))

    def think(self, step: Step) -> None:
        """Show what a step adds to a thought, dimmed, or how long that is where it is folded."""
        if step.reasoning is None:
            self.end_thought()
            return
        self._began = self._began or time.monotonic()
        self._n_thought += bool(step.piece)
        ready = self._ready(step.reasoning, self._thought)
        if self.folds:
            self.busy(f"thinking … {self._n_thought} tokens")
        elif ready:
            self._settle()
            shown = harmless(ready if self._thought else f"thinking\n{ready}")
            self._console.print(Text(shown, style="dim"), end="", soft_wrap=True)
        self._thought += ready

    def end_thought(self) -> None:
        """End a thought that was under way: with a blank line, or by saying how long it was."""
        if not self._began:
            return
        thought, n, seconds = self._thought, self._n_thought, time.monotonic() - self._began
        self._thought, self._held, self._n_thought, self._began = "", "", 0, 0.0
        if thought and self.folds:
            self._settle()
            tokens = f"{n} token{'s' * (n != 1)}"
            self.note(f"thought for {tokens} in {seconds:.0f} s; /thought shows it")
        elif thought:
            self._console.print("\n")

    def write(self, text: str) -> None:
        """Show the next part of the answer, without blank lines before and after it all."""
        if ready := self._ready(text, self._answer):
            self._settle()
            self._answer += ready
            # A model may write escape sequences; a terminal must not obey them.
            self._put(harmless(ready) if sys.stdout.isatty() else ready)

    def end(self) -> None:
        """End the answer with its line."""
        self._settle()
        self.end_thought()
        if self._answer:
            self._put("\n")

    def _ready(self, text: str, before: str) -> str:
        """Return what can be shown behind `before`: white space waits for what follows it."""
        text = self._held + (text if before else text.lstrip())
        ready = text.rstrip()
        self._held = text[len(ready) :]
        return ready

    def _put(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _settle(self) -> None:
        if self._busy is not None:
            self._busy.stop()
            self._busy = None


@contextlib.contextmanager
def interruption_noted() -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C was pressed, which cuts off no step or saving."""
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
    with contextlib.ExitStack() as stack:
        if sys.stdin.isatty():
            before = termios.tcgetattr(sys.stdin.fileno())
            stack.callback(termios.tcsetattr, sys.stdin.fileno(), termios.TCSADRAIN, before)
        yield


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
