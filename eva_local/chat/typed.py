"""What a person typed or pasted: a command or a message."""

from __future__ import annotations

import re
from dataclasses import dataclass

from eva_local.errors import InputError
from eva_local.reading import did_you_mean

QUOTES = '"""'
# Name, what follows it, what it does. The order is that of /help.
COMMANDS = (
    ("help", "", "this list"),
    ("exit", "", "leave; the conversation is saved"),
    ("clear", "", "begin a new conversation; the old one stays saved"),
    ("regen", "", "write the last answer again"),
    ("undo", "", "take the last message and its answer back"),
    ("system", "[TEXT]", 'show or change the system message; "" removes it'),
    ("set", "[NAME VALUE]", "show or change how answers are drawn; markdown on, stats off"),
    ("show", "[chat]", "the ensemble, its contexts and settings; or all that was said"),
    ("edit", "[TEXT]", "write a message in $VISUAL or $EDITOR"),
    ("read", "[FILE]", "put a text file in front of the next message; without FILE, forget it"),
    ("save", "FILE", "save the conversation: FILE.jsonl to load again, FILE.md to read"),
    ("load", "FILE", "go on with a conversation that /save wrote"),
    ("stats", "", "what the last answer cost"),
    ("why", "[N]", "how the members voted: on token N, or on the most disputed ones"),
    ("trace", "FILE", "why each token was chosen: a page FILE.html, or FILE.jsonl"),
)
# What /set turns on and off, beside the settings of sampling.
SWITCHES = ("markdown", "stats")
_NAMES = tuple(name for name, _, _ in COMMANDS)
_OTHER_NAMES = {"?": "help", "bye": "exit", "quit": "exit", "q": "exit"}
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
    with one slash. Raises InputError for a command that is not known.
    """
    quoted = _QUOTED.match(text)
    if quoted is not None:
        inner, _, after = quoted["text"].partition(QUOTES)
        if not after.strip():
            inner = inner.lstrip("\n").rstrip()
            return inner if quoted["name"] is None else _command(quoted["name"], inner)
    text = _without_blank_ends(text)
    if not text.startswith("/") or "\n" in text:
        return text
    if text.startswith("//"):
        return text[1:]
    name, _, argument = text[1:].partition(" ")
    return _command(name, argument.strip())


def _command(name: str, argument: str) -> Command:
    name = _OTHER_NAMES.get(name, name)
    if name not in _NAMES:
        hint = did_you_mean(f"/{name}", [f"/{known}" for known in _NAMES])
        raise InputError(f"/{name[:40]} is no command (//{name[:40]} is sent as text); {hint}")
    return Command(name, argument)


def sound(text: str) -> tuple[str, list[str]]:
    """Return `text` with whole characters and plain line ends, and notes on what was odd.

    Bytes that are no UTF-8 come from a terminal as lone surrogates; they become U+FFFD.
    """
    notes = []
    text, broken = re.subn("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
    if broken:
        notes.append(
            f"{_count(broken, 'byte was', 'bytes were')} no UTF-8 and became U+FFFD in the message"
        )
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    controls = len(_CONTROLS.findall(text))
    if controls:
        notes.append(
            f"{_count(controls, 'control character is', 'control characters are')} in the message; "
            "the models get the text as it is"
        )
    return text, notes


def _without_blank_ends(text: str) -> str:
    return re.sub(r"\A(?:[ \t]*\n)+", "", text).rstrip()


def _count(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
