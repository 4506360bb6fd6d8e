"""Where messages come from, a line editor or plain lines, and what is meant by them."""

import contextlib
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import Completer
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from eva_local.chat.terminal import ENDINGS, handled

PROMPT = "> "
_MORE = ". "
_HINT = "Write here; /help lists the commands"
# Longer messages, such as pasted files, would make the history slow to read.
_REMEMBERED = 4000
QUOTES = '"""'
_QUOTED = re.compile(r'\s*(?:/(?P<name>\w+)[ \t]+)?"""(?P<text>.*)', re.DOTALL)


class LineEditor:
    """A line editor with completion, bracketed paste, and a history in a file."""

    # A person sits there, who may go on after Ctrl-C.
    somebody = True

    def __init__(self, history: Path, completer: Completer) -> None:
        # Else it asks where the cursor is: an answer that comes late would be taken for
        # something that was typed.
        os.environ["PROMPT_TOOLKIT_NO_CPR"] = "1"
        is_unfinished = Condition(lambda: is_open(self._session.default_buffer.text))
        keys = KeyBindings()

        @keys.add("escape", "enter")
        @keys.add("enter", filter=is_unfinished)
        def new_line(event: KeyPressEvent) -> None:
            # Without the indentation of the line before, which would stand before closing quotes.
            event.current_buffer.newline(copy_margin=False)

        self._session: PromptSession[str] = PromptSession(
            [("bold", PROMPT)],
            history=_History(history),
            completer=completer,
            complete_while_typing=False,
            multiline=is_unfinished,
            prompt_continuation=lambda _width, _line, wraps: " " * len(_MORE) if wraps else _MORE,
            # It stands in an empty line, but not in one that was left.
            placeholder=lambda: [] if get_app().is_done else [("fg:ansibrightblack", _HINT)],
            key_bindings=keys,
            enable_open_in_editor=True,
            enable_suspend=True,
        )

    def read(self) -> str:
        """Let a person edit until Enter; EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C."""
        app = self._session.app
        told: list[int] = []

        def note(number: int, _frame: FrameType | None) -> None:
            # An exception that is raised here, amid the work of an event loop, may be lost.
            told.append(number)
            if app.loop is not None:
                app.loop.call_soon_threadsafe(leave)

        def leave() -> None:
            if told and app.future is not None and not app.future.done():
                app.exit(result="")

        try:
            with handled(note, *ENDINGS):
                return self._session.prompt(pre_run=leave)
        finally:
            if told:
                raise SystemExit(128 + told[0])


class PlainReader:
    """Lines of standard input, where that or the screen is no terminal."""

    def __init__(self) -> None:
        # There is a prompt only if somebody sits there.
        self.somebody = sys.stdin.isatty()

    def read(self) -> str:
        """Return a line, or all lines up to closing quotes; EOFError at the end."""
        text = self._line(PROMPT)
        while is_open(text):
            try:
                text = f"{text}\n{self._line(_MORE)}"
            except EOFError:
                # Nothing is lost: what there is counts as closed.
                return f'{text}"""'
        return text

    def _line(self, prompt: str) -> str:
        if self.somebody:
            click.echo(prompt, nl=False, err=True)
        line = sys.stdin.buffer.readline()
        if not line:
            if self.somebody:
                click.echo(err=True)
            raise EOFError
        return line.decode("utf-8", "surrogateescape").rstrip("\r\n")


Reader = LineEditor | PlainReader


class _History(FileHistory):
    """A history that never stands in the way of the chat."""

    def load_history_strings(self) -> Iterable[str]:
        with contextlib.suppress(OSError):
            return list(super().load_history_strings())
        return []

    def store_string(self, string: str) -> None:
        if len(string) <= _REMEMBERED:
            with contextlib.suppress(OSError):
                super().store_string(string.encode("utf-8", "replace").decode())


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command and what was written after it."""

    name: str
    argument: str = ""


def is_open(text: str) -> bool:
    """Return whether `text` begins with three quotes that are not closed yet."""
    quoted = _QUOTED.match(text)
    return quoted is not None and QUOTES not in quoted["text"]


def understood(text: str) -> Command | str:
    """Return the command or the message that `text` is; an empty message is none.

    A command is one line, so that what is pasted stays a message, but for what is in three quotes.
    """
    quoted = _QUOTED.match(text)
    if quoted is not None:
        inner, _, after = quoted["text"].partition(QUOTES)
        if not after.strip():
            inner = inner.lstrip("\n").rstrip()
            return inner if quoted["name"] is None else Command(quoted["name"], inner)
    # Without blank lines before and after it.
    text = re.sub(r"\A(?:[ \t]*\n)+", "", text).rstrip()
    if not text.startswith("/") or "\n" in text:
        return text
    if text.startswith("//"):
        return text[1:]
    name, _, argument = text[1:].partition(" ")
    return Command(name, argument.strip())


def sound(text: str) -> tuple[str, int]:
    """Return `text` with whole characters and plain line ends, and how many bytes were no UTF-8.

    These come from a terminal as lone surrogates.
    """
    text, broken = re.subn("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
    return text.replace("\r\n", "\n").replace("\r", "\n"), broken


def counted(count: int, one: str, many: str) -> str:
    """Return a number and what it counts."""
    return f"{count} {one if count == 1 else many}"
