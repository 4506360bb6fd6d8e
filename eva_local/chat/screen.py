"""Where answers and remarks go: answers to standard output, as they come."""

from __future__ import annotations

import os
import sys

from rich.console import Console, RenderableType
from rich.markdown import Markdown
from rich.text import Text

from eva_local.chat.wrap import Wrap
from eva_local.text import harmless


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
        self._answer = ""
        self._size = self._console.size
        self._wrap = Wrap(self._size.width)

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
        """Expect an answer."""
        self._answer = ""
        self._size = self._console.size
        self._wrap = Wrap(self._size.width)

    def write(self, text: str) -> None:
        """Show the next part of the answer."""
        if not self._answer:
            # A model may begin with spaces and line ends, which are part of no layout.
            text = text.lstrip()
        if not text:
            return
        self._answer += text
        # A model may write escape sequences; a terminal must not obey them.
        shown = harmless(text) if sys.stdout.isatty() else text
        sys.stdout.write(self._wrap.push(shown) if self.interactive else shown)
        sys.stdout.flush()

    def end(self, *, markdown: bool = False) -> None:
        """End the answer with its line; show it as Markdown if it stands on the screen whole."""
        if self._answer and not self._answer.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
        if not (markdown and self.interactive and self._answer.strip()):
            return
        height = self._wrap.rows - self._answer.endswith("\n")
        if self._console.size == self._size and height < self._size.height:
            sys.stdout.write(f"\x1b[{height}A\r\x1b[J")
            sys.stdout.flush()
            self._console.print(Markdown(harmless(self._answer)))
