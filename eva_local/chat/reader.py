"""Where messages come from, a line editor or plain lines, and what is meant by them."""

from __future__ import annotations

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
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from eva_local.chat.terminal import ENDINGS, handled

PROMPT = "> "
_MORE = ". "
_HINT = "Write a message; /help lists the commands"
# Longer messages, such as pasted files, would make the history slow to read.
_REMEMBERED = 4000
QUOTES = '"""'
_QUOTED = re.compile(r'\s*(?:/(?P<name>\w+)[ \t]+)?"""(?P<text>.*)', re.DOTALL)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class LineEditor:
    """A line editor with history, completion and bracketed paste."""

    # A person sits there, who may go on after Ctrl-C.
    somebody = True

    def __init__(self, history: Path, completer: Completer) -> None:
        """Keep what is typed in the file `history`."""
        # Else it asks where the cursor is: an answer that comes late would be taken for
        # something that was typed.
        os.environ["PROMPT_TOOLKIT_NO_CPR"] = "1"
        is_unfinished = Condition(lambda: is_open(self._session.default_buffer.text))
        self._session: PromptSession[str] = PromptSession(
            FormattedText([("bold", PROMPT)]),
            history=_History(history),
            completer=completer,
            complete_while_typing=False,
            multiline=is_unfinished,
            prompt_continuation=_continuation,
            placeholder=_hint,
            key_bindings=_keys(is_unfinished),
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
        """Show a prompt only if somebody sits there."""
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
        """Return what was typed before, the newest first."""
        with contextlib.suppress(OSError):
            return list(super().load_history_strings())
        return []

    def store_string(self, string: str) -> None:
        """Keep what was typed, unless it is too long."""
        if len(string) <= _REMEMBERED:
            with contextlib.suppress(OSError):
                super().store_string(string.encode("utf-8", "replace").decode())


def _hint() -> FormattedText:
    """Return what stands in an empty line, but not in one that was left."""
    return FormattedText([] if get_app().is_done else [("fg:ansibrightblack", _HINT)])


def _continuation(_width: int, _line: int, wraps: int) -> str:
    """Return what stands before a line that goes on, at the edge of the screen or after Enter."""
    return " " * len(_MORE) if wraps else _MORE


def _keys(is_unfinished: Condition) -> KeyBindings:
    keys = KeyBindings()

    @keys.add("escape", "enter")
    @keys.add("enter", filter=is_unfinished)
    def new_line(event: KeyPressEvent) -> None:
        # Without the indentation of the line before, which would stand before closing quotes.
        event.current_buffer.newline(copy_margin=False)

    return keys


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

    A command is one line, so that what is pasted stays a message. Three quotes around a
    message, or around what follows a command, let it have several lines; `//` begins a message
    with one slash.
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


def sound(text: str) -> tuple[str, list[str]]:
    """Return `text` with whole characters and plain line ends, and notes on what was odd.

    Bytes that are no UTF-8 come from a terminal as lone surrogates; they become U+FFFD.
    """
    notes = []
    text, broken = re.subn("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
    if broken:
        said = counted(broken, "byte was", "bytes were")
        notes.append(f"{said} no UTF-8 and became U+FFFD in the message")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if controls := len(_CONTROLS.findall(text)):
        said = counted(controls, "control character is", "control characters are")
        notes.append(f"{said} in the message; the models get the text as it is")
    return text, notes


def counted(count: int, one: str, many: str) -> str:
    """Return a number and what it counts."""
    return f"{count} {one if count == 1 else many}"
