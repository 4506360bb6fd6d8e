"""Conversations in files: JSON Lines, a header and a line for each event, appended at once.

A conversation that is being held is locked, so that two chats never write into one file.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from msgspec import Struct

from eva_local.chat.conversation import Conversation, Event
from eva_local.chat.private import private_folder
from eva_local.errors import InputError
from eva_local.reading import did_you_mean
from eva_local.trace.checked import Checked, checked_lines
from eva_local.trace.file import json_line

SCHEMA = 1
_TORN = "the last line of the file is incomplete and was left out"


class _HeaderLine(Struct):
    ensemble: str


@dataclass(frozen=True, slots=True)
class Saved:
    """A conversation that was read: by which ensemble, and in plain words what was wrong."""

    path: Path
    ensemble: str
    conversation: Conversation
    notes: tuple[str, ...] = ()


class Log:
    """The file of the conversation that is being held."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Append to an open file; close it again with `close`."""
        self.path = path
        self._descriptor = descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise InputError(f"the conversation {path.stem} is open in another chat") from error

    @classmethod
    def begin(cls, folder: Path, ensemble: str, conversation: Conversation) -> Log:
        """Save `conversation` in a new file of `folder`, to go on with."""
        log = cls._create(folder)
        try:
            log._write(saved_form(ensemble, conversation))
        except InputError:
            log.close()
            raise
        return log

    @classmethod
    def resume(cls, saved: Saved) -> tuple[Log, Saved]:
        """Go on with a saved conversation; return it as it is now that nobody else writes it."""
        try:
            log = cls(saved.path, os.open(saved.path, os.O_RDWR | os.O_APPEND))
        except OSError as error:
            raise _unsaved(saved.path, error) from error
        try:
            saved = read(saved.path)
            log._mend()
        except InputError:
            log.close()
            raise
        return log, saved

    def append(self, event: Event) -> None:
        """Save an event; raise InputError where that is not possible."""
        self._write(json_line(_event_line(event)))

    def close(self) -> None:
        """Give the file free; do nothing if it is free."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @classmethod
    def _create(cls, folder: Path) -> Log:
        began = dt.datetime.now().strftime("%Y%m%d-%H%M%S")
        try:
            private_folder(folder)
            for number in range(1, 1000):
                path = folder / (f"{began}.jsonl" if number == 1 else f"{began}-{number}.jsonl")
                try:
                    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
                    return cls(path, os.open(path, flags, 0o600))
                except FileExistsError:
                    continue
        except OSError as error:
            raise _unsaved(folder, error) from error
        raise InputError(f"{folder} holds too many conversations of this second")

    def _mend(self) -> None:
        """Cut off a torn last line, or end a whole one, so that the next line stands alone."""
        try:
            data = self.path.read_bytes()
            whole = checked_lines(self.path, data)[1]
            os.ftruncate(self._descriptor, whole)
        except OSError as error:
            raise _unsaved(self.path, error) from error
        if not data[:whole].endswith(b"\n"):
            self._write(b"\n")

    def _write(self, lines: bytes) -> None:
        left = memoryview(lines)
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            raise _unsaved(self.path, error) from error


def saved_form(ensemble: str, conversation: Conversation) -> bytes:
    """Return a conversation as the bytes of a file."""
    began = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    header = {"schema": SCHEMA, "kind": "chat", "ensemble": ensemble, "began": began}
    lines = [header, *map(_event_line, conversation.events())]
    return b"".join(map(json_line, lines))


def read(path: Path) -> Saved:
    """Read a saved conversation; raise InputError, with the line, for what is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"the conversation {path} cannot be read: {reason}") from error
    lines, whole = checked_lines(path, data)
    if not lines:
        raise InputError(f"{path} holds no conversation")
    header, *events = lines
    header.kind("chat")
    header.refuse_other_schema(SCHEMA)
    conversation = Conversation()
    for line in events:
        try:
            conversation = conversation.after(_event(line))
        except ValueError as error:
            raise line.problem(f"cannot stand here: {error}") from error
    notes = (_TORN,) if whole < len(data) else ()
    return Saved(path, header.read(_HeaderLine).ensemble, conversation, notes)


def newest_first(folder: Path) -> dict[Path, float]:
    """Return the saved conversations of a folder and when each was last held, the newest first."""
    times = {}
    for path in folder.glob("*.jsonl") if folder.is_dir() else ():
        # A link may lead nowhere, and a file be deleted meanwhile.
        with contextlib.suppress(OSError):
            times[path] = path.stat().st_mtime
    return dict(sorted(times.items(), key=lambda entry: entry[1], reverse=True))


def find(folder: Path, name: str) -> Saved:
    """Read the conversation of that name; InputError names the nearest."""
    # Looked up among what is there: a name is never taken for a path.
    paths = {path.stem: path for path in newest_first(folder)}
    if name not in paths:
        raise InputError(f"there is no conversation {name!r}; {did_you_mean(name, paths)}")
    return read(paths[name])


def newest(folder: Path) -> Saved:
    """Read the conversation that was last held, past files that hold none."""
    notes: list[str] = []
    for path in newest_first(folder):
        try:
            saved = read(path)
        except InputError as error:
            notes.append(str(error))
            continue
        return Saved(path, saved.ensemble, saved.conversation, (*notes, *saved.notes))
    raise InputError(f"there is no conversation to continue in {folder}")


def markdown(conversation: Conversation) -> str:
    """Return a conversation as a document for people."""
    parts = [f"*{conversation.system}*"] if conversation.system else []
    for turn in conversation.turns:
        parts.append("\n".join(f"> {line}".rstrip() for line in turn.question.split("\n")))
        parts += [] if turn.answer is None else [turn.answer.strip()]
    return "\n\n".join(parts) + "\n"


def export(path: Path, ensemble: str, conversation: Conversation) -> None:
    """Write a conversation to a file of the user: Markdown if its name ends so, else JSON Lines.

    Raises InputError rather than take the place of a file that is no saved conversation, or of
    one that is being held.
    """
    as_markdown = path.suffix.lower() in (".md", ".markdown")
    text = markdown(conversation).encode("utf-8", "replace")
    data = text if as_markdown else saved_form(ensemble, conversation)
    try:
        with _given_up(path, never=as_markdown):
            _replace(path, data)
    except OSError as error:
        raise _unsaved(path, error) from error


@contextlib.contextmanager
def _given_up(path: Path, *, never: bool) -> Iterator[None]:
    """Hold the file that is to be replaced, if there is one; InputError where it must not be."""
    if not path.exists():
        yield
        return
    if never or not _is_saved(path):
        raise InputError(f"{path} exists and stays as it is; give another name")
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{path} is the file of an open chat and stays as it is; give another name"
            ) from error
        yield


def _replace(path: Path, data: bytes) -> None:
    """Write a file in two moves, so that an old one is never half overwritten."""
    half = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        half.write_bytes(data)
        half.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            half.unlink()
        raise


def _is_saved(path: Path) -> bool:
    try:
        read(path)
    except InputError:
        return False
    return True


def _event_line(event: Event) -> dict[str, object]:
    return {"kind": event.kind} | ({} if event.kind == "undo" else {"text": event.text})


def _event(line: Checked) -> Event:
    event = line.read(Event)
    if event.kind != "undo" and "text" not in line.values:
        raise line.problem("has no text")
    return event


def _unsaved(path: Path, error: OSError) -> InputError:
    return InputError(f"{path}: the conversation cannot be saved: {error.strerror or error}")


def first_words(text: str, width: int = 50) -> str:
    """Return the beginning of a text, on one line."""
    words = " ".join(text.split())
    return words if len(words) <= width else f"{words[: width - 1]}…"
