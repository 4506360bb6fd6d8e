"""Where messages come from: a line editor at a terminal, or plain lines."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from eva_local.chat.commands import COMMANDS, KEYS, SWITCHES
from eva_local.chat.signals import end_put_off
from eva_local.chat.typed import is_open

PROMPT = "> "
_MORE = ". "
_HINT = "Write a message; /help lists the commands"
# Longer messages, such as pasted files, would make the history slow to read.
_REMEMBERED = 4000
_WITH_FILE = ("/read", "/save", "/load", "/trace")
_ARGUMENTS = {"/set": (*KEYS, *SWITCHES), "/show": ("chat",)}


class LineEditor:
    """A line editor with history, completion and bracketed paste."""

    # A person sits there, who may go on after Ctrl-C.
    somebody = True

    def __init__(self, history: Path) -> None:
        """Keep what is typed in the file `history`."""
        # Else it asks where the cursor is: an answer that comes late would be taken for
        # something that was typed.
        os.environ["PROMPT_TOOLKIT_NO_CPR"] = "1"
        is_unfinished = Condition(lambda: is_open(self._session.default_buffer.text))
        self._session: PromptSession[str] = PromptSession(
            FormattedText([("bold", PROMPT)]),
            history=_History(history),
            completer=_Completer(),
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
        with end_put_off(self._wake) as is_ending:
            return self._session.prompt(pre_run=lambda: self._leave() if is_ending() else None)

    def _wake(self) -> None:
        """Leave the prompt, from within a signal handler; before it runs, `read` does."""
        if (loop := self._session.app.loop) is not None:
            loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        answer = self._session.app.future
        if answer is not None and not answer.done():
            self._session.app.exit(result="")


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


class _Completer(Completer):
    """Completes commands and what follows them."""

    _paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """Yield what the text before the cursor can become."""
        command, space, argument = document.text_before_cursor.partition(" ")
        if not space:
            names = (f"/{name}" for name in COMMANDS)
            return _beginning_with(command, names) if command.startswith("/") else ()
        if command in _WITH_FILE:
            return self._paths.get_completions(Document(argument), event)
        return _beginning_with(argument, _ARGUMENTS.get(command, ()))


def _beginning_with(text: str, known: Iterable[str]) -> list[Completion]:
    return [Completion(name, -len(text)) for name in known if name.startswith(text)]


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
