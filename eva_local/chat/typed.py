"""What a person typed or pasted: a command or a message."""

from __future__ import annotations

import re
from dataclasses import dataclass

QUOTES = '"""'
_QUOTED = re.compile(r'\s*(?:/(?P<name>\w+)[ \t]+)?"""(?P<text>.*)', re.DOTALL)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


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
