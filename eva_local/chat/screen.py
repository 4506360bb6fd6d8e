"""Where answers and remarks go: answers to standard output, as they come."""

from __future__ import annotations

import os
import sys

from rich.cells import chop_cells
from rich.console import Console, RenderableType
from rich.markdown import Markdown
from rich.status import Status
from rich.text import Text

from eva_local.engine.detokenizer import harmless


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
