"""Conversations, and their files: JSON Lines, a header and a line for each event, written at once.

A conversation that is being held is locked, so that two chats never write into one file.
"""

import contextlib
import datetime as dt
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from msgspec import Struct

from eva_local.errors import InputError, refusing
from eva_local.jsonl import JsonlFile, checked_lines
from eva_local.reading import did_you_mean
from eva_local.types import Message

SCHEMA = 1
_TORN = "the last line of the file is incomplete and was left out"


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a conversation: what was said, empty for undo, and thought before an answer."""

    kind: Literal["system", "user", "answer", "undo"]
    text: str = ""
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """A message of the user and its answer, None where there is none yet."""

    question: str
    answer: str | None = None
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A system message (empty for none) and turns. Only the last may have no answer."""

    system: str = ""
    turns: tuple[Turn, ...] = ()

    def after(self, event: Event) -> "Conversation":
        """Return what an event leads to; ValueError for one that cannot come here."""
        if event.kind == "system":
            return replace(self, system=event.text)
        if event.kind == "user":
            if self.turns and self.turns[-1].answer is None:
                raise ValueError("a message follows one that has no answer")
            return replace(self, turns=(*self.turns, Turn(event.text)))
        if not self.turns:
            raise ValueError(f"there is no turn before this {event.kind}")
        *before, last = self.turns
        answered = replace(last, answer=event.text, reasoning=event.reasoning)
        return replace(self, turns=(*before, *([answered] if event.kind == "answer" else [])))

    def events(self) -> Iterator[Event]:
        """Yield the events that lead from nothing to this conversation."""
        if self.system:
            yield Event("system", self.system)
        for turn in self.turns:
            yield Event("user", turn.question)
            if turn.answer is not None:
                yield Event("answer", turn.answer, turn.reasoning)

    def prompt(self, first: int = 0) -> list[Message]:
        """Return the messages from turn `first` on, up to the last that the user wrote."""
        messages = [Message("system", self.system)] if self.system else []
        for turn in self.turns[first:-1]:
            messages.append(Message("user", turn.question))
            messages.append(Message("assistant", turn.answer or ""))
        return [*messages, Message("user", self.turns[-1].question)]


class _HeaderLine(Struct):
    ensemble: str


@dataclass(frozen=True, slots=True)
class Saved:
    """A conversation that was read: by which ensemble, and in plain words what was wrong."""

    path: Path
    ensemble: str
    conversation: Conversation
    notes: tuple[str, ...] = ()


class Log(JsonlFile):
    """The file of the conversation that is being held."""

    def __init__(self, path: Path) -> None:
        busy = f"the conversation {path.stem} is open in another chat"
        super().__init__(path, _unsaved(path), busy=busy, create=False)

    @classmethod
    def begin(cls, folder: Path, ensemble: str, conversation: Conversation) -> "Log":
        """Save `conversation` in a new file of `folder`, to go on with."""
        log = cls(_new_file(folder))
        began = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        header = {"schema": SCHEMA, "kind": "chat", "ensemble": ensemble, "began": began}
        with log.closed_on_failure():
            log.append(header, *map(_event_line, conversation.events()))
        return log

    @classmethod
    def resume(cls, saved: Saved) -> "tuple[Log, Saved]":
        """Go on with a saved conversation; return it as it is now that nobody else writes it."""
        log = cls(saved.path)
        with log.closed_on_failure():
            saved = read(saved.path)
            log.mend()
        return log, saved

    def save(self, event: Event) -> None:
        """Save an event; raise InputError where that is not possible."""
        self.append(_event_line(event))


def private_folder(folder: Path) -> None:
    """Make a folder and what it lies in for the user alone; close one that is there to others."""
    # mkdir gives a mode to the last folder only.
    before = os.umask(0o077)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(before)
    folder.chmod(0o700)


def _new_file(folder: Path) -> Path:
    began = dt.datetime.now().strftime("%Y%m%d-%H%M%S")
    with refusing(_unsaved(folder)):
        private_folder(folder)
        for number in range(1, 1000):
            path = folder / (f"{began}.jsonl" if number == 1 else f"{began}-{number}.jsonl")
            with contextlib.suppress(FileExistsError):
                path.touch(0o600, exist_ok=False)
                return path
    raise InputError(f"{folder} holds too many conversations of this second")


def read(path: Path) -> Saved:
    """Read a saved conversation; raise InputError, with the line, for what is none."""
    with refusing(f"the conversation {path} cannot be read"):
        lines, torn = checked_lines(path, path.read_bytes())
    if not lines:
        raise InputError(f"{path} holds no conversation")
    header, *events = lines
    header.kind("chat", schema=SCHEMA)
    conversation = Conversation()
    for line in events:
        event = line.read(Event)
        if event.kind != "undo" and "text" not in line.values:
            raise line.problem("has no text")
        try:
            conversation = conversation.after(event)
        except ValueError as error:
            raise line.problem(f"cannot stand here: {error}") from error
    ensemble = header.read(_HeaderLine).ensemble
    return Saved(path, ensemble, conversation, (_TORN,) if torn else ())


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
            return replace(saved, notes=(*notes, *saved.notes))
        except InputError as error:
            notes.append(str(error))
    raise InputError(f"there is no conversation to continue in {folder}")


def _event_line(event: Event) -> dict[str, object]:
    needed = ("kind",) if event.kind == "undo" else ("kind", "text")
    return {key: said for key, said in asdict(event).items() if said or key in needed}


def _unsaved(path: Path) -> str:
    return f"{path}: the conversation cannot be saved"


def first_words(text: str, width: int = 50) -> str:
    """Return the beginning of a text, on one line."""
    words = " ".join(text.split())
    return words if len(words) <= width else f"{words[: width - 1]}…"
