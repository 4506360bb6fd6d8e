"""What each slash command does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from rich.table import Table
from rich.text import Text

from eva_local.chat import log
from eva_local.chat.chat import Reply
from eva_local.chat.conversation import Conversation
from eva_local.chat.reader import Command, counted, sound
from eva_local.chat.votes import usage_line, vote_lines
from eva_local.config.settings import (
    keys_of,
    read_settings,
    read_text,
    refuse_unknown,
    user_path,
)
from eva_local.engine.detokenizer import harmless
from eva_local.errors import InputError
from eva_local.reading import did_you_mean
from eva_local.types import Sampling

if TYPE_CHECKING:
    from eva_local.chat.repl import Repl

    Action = Callable[[Repl, str], None]

# What follows a command, what it does, and what does it. The order is that of /help.
COMMANDS: dict[str, tuple[str, str, Action]] = {}
# What /set changes: how answers are drawn, and what it turns on and off beside that.
KEYS = keys_of(Sampling)
SWITCHES = ("markdown", "stats")
_OTHER_NAMES = {"?": "help", "bye": "exit", "quit": "exit", "q": "exit"}
_ON_OFF = {"on": True, "off": False}
_NOTHING = '""'
_WITH_FILE = ("/read", "/save", "/load")
_ARGUMENTS = {"/set": (*KEYS, *SWITCHES), "/show": ("chat",)}
_HELP = (
    '\n""" begins and ends a message of several lines; Alt-Enter is a new line in any message.\n'
    "// begins a message with a slash. Ctrl-C stops an answer and clears a line; Ctrl-D leaves.\n"
    "Tab completes commands and files, Ctrl-R searches what you wrote."
)


def obey(repl: Repl, command: Command) -> None:
    """Do what a command says; EvaError where it is none, or that is not possible."""
    name = _OTHER_NAMES.get(command.name, command.name)
    if name not in COMMANDS:
        hint = did_you_mean(f"/{name}", [f"/{known}" for known in COMMANDS])
        raise InputError(f"/{name[:40]} is no command (//{name[:40]} is sent as text); {hint}")
    _, _, act = COMMANDS[name]
    act(repl, sound(command.argument)[0])


def _command(name: str, argument: str, text: str) -> Callable[[Action], Action]:
    def add(act: Action) -> Action:
        COMMANDS[name] = (argument, text, act)
        return act

    return add


@_command("help", "", "this list")
def _help(repl: Repl, _: str) -> None:
    rows = [(f"/{name} {follows}".rstrip(), text) for name, (follows, text, _) in COMMANDS.items()]
    repl.screen.show(_table(rows, "bold"), Text(_HELP))


@_command("exit", "", "leave; the conversation is saved")
def _exit(repl: Repl, _: str) -> None:
    repl.done = True


@_command("clear", "", "begin a new conversation; the old one stays saved")
def _clear(repl: Repl, _: str) -> None:
    system = repl.chat.conversation.system
    repl.chat.take_over(Conversation(system))
    repl.texts = []
    repl.screen.note(f"a new conversation{'; the system message stays' if system else ''}")


@_command("regen", "", "write the last answer again")
def _regen(repl: Repl, _: str) -> None:
    before = repl.chat.conversation
    repl.regenerate()
    if repl.chat.conversation == before and not repl.chat.is_open:
        sampling = repl.chat.sampling
        if sampling.temperature == 0:
            repl.screen.note("the same again: temperature is 0; try /set temperature 0.8")
        elif sampling.seed is not None:
            repl.screen.note("the same again: the seed is fixed; try /set seed random")


@_command("undo", "", "take the last message and its answer back")
def _undo(repl: Repl, _: str) -> None:
    question = log.first_words(repl.chat.undo())
    left = len(repl.chat.conversation.turns)
    repl.screen.note(f"taken back: {question} ({counted(left, 'turn', 'turns')} left)")


@_command("system", "[TEXT]", 'show or change the system message; "" removes it')
def _system(repl: Repl, text: str) -> None:
    if not text:
        repl.screen.say(repl.chat.conversation.system or "There is no system message.")
        return
    repl.chat.use_system("" if text == _NOTHING else text)
    repl.screen.note("no system message" if text == _NOTHING else "from the next answer on")


@_command("set", "[NAME VALUE]", "show or change how answers are drawn; markdown on, stats off")
def _set(repl: Repl, argument: str) -> None:
    name, _, value = argument.partition(" ")
    value = value.strip()
    if not name:
        repl.screen.show(_table([(key, _value(repl, key)) for key in (*KEYS, *SWITCHES)]))
        return
    refuse_unknown({name: value}, (*KEYS, *SWITCHES), "/set ")
    if not value:
        raise InputError(f"/set {name} needs a value; it is {_value(repl, name)}")
    if name in SWITCHES:
        if value not in _ON_OFF:
            raise InputError(f"/set {name} must be on or off, not {value}")
        repl.switches[name] = _ON_OFF[value]
    else:
        found = read_settings([Sampling], {name: value}, lambda key: f"/set {key}", text=True)
        changed: dict[str, Any] = {name: found[name].value}
        repl.chat.sampling = replace(repl.chat.sampling, **changed)
    repl.screen.note(f"{name} is {_value(repl, name)}")


def _value(repl: Repl, name: str) -> str:
    if name in SWITCHES:
        return "on" if repl.switches[name] else "off"
    value = getattr(repl.chat.sampling, name)
    return "random" if value is None else str(value)


@_command("show", "[chat]", "the ensemble, its contexts and settings; or all that was said")
def _show(repl: Repl, what: str) -> None:
    chat = repl.chat
    if what == "chat":
        repl.show_turns(len(chat.conversation.turns))
        return
    if what:
        raise InputError("/show shows what is set, /show chat what was said")
    spec, fusion = chat.ensemble.spec, chat.ensemble.spec.fusion
    weights = (
        ",".join(map(str, fusion.weights)) if isinstance(fusion.weights, tuple) else fusion.weights
    )
    rooms = zip(chat.ensemble.members, chat.used(), chat.ensemble.n_ctx, strict=True)
    changed = [name for name in KEYS if getattr(chat.sampling, name) != getattr(Sampling(), name)]
    rows = (
        ("ensemble", f"{spec.name} (pivot: {spec.pivot})"),
        ("fusion", f"{fusion.combine}, weights {weights}, filter {fusion.filter}"),
        ("context", "\n".join(f"{name} {need}/{limit}" for name, need, limit in rooms)),
        ("turns", str(len(chat.conversation.turns))),
        ("left out", f"the oldest {chat.first}: the context is full" if chat.first else ""),
        ("system", chat.conversation.system),
        ("set", ", ".join(f"{name} {_value(repl, name)}" for name in changed)),
        ("read", ", ".join(log.first_words(text) for text in repl.texts)),
        ("saved in", str(chat.path or "")),
    )
    repl.screen.show(_table([(name, value) for name, value in rows if value], "dim"))


@_command("edit", "[TEXT]", "write a message in $VISUAL or $EDITOR")
def _edit(repl: Repl, text: str) -> None:
    begun = text or repl.unsent
    try:
        edited = click.edit(f"{begun}\n" if begun else "", extension=".md")
    except click.ClickException as error:
        raise InputError(error.format_message()) from error
    if edited is None or not edited.strip():
        repl.screen.note("nothing was written, nothing is sent")
        return
    edited = edited.rstrip()
    repl.echo(edited)
    repl.ask(repl.heed(edited))


@_command("read", "[FILE]", "put a text file in front of the next message; without FILE, forget it")
def _read(repl: Repl, name: str) -> None:
    if not name:
        repl.texts = []
        repl.screen.note("nothing goes in front of the next message")
        return
    path = user_path(name, "/read")
    text = repl.heed(read_text(path, "/read"))
    repl.chat.check("\n\n".join([*repl.texts, text]))
    repl.texts.append(text)
    repl.screen.note(f"{path.name}: {len(text)} characters go in front of the next message")


@_command("save", "FILE", "save the conversation: FILE.jsonl to load again, FILE.md to read")
def _save(repl: Repl, name: str) -> None:
    path = _file(name, "/save")
    if not repl.chat.conversation.turns:
        raise InputError("nothing was said yet")
    log.export(path, repl.chat.ensemble.spec.name, repl.chat.conversation)
    repl.screen.note(f"saved in {path}")


@_command("load", "FILE", "go on with a conversation that /save wrote")
def _load(repl: Repl, name: str) -> None:
    saved = log.read(_file(name, "/load"))
    repl.chat.take_over(saved.conversation)
    repl.welcome(saved)


@_command("stats", "", "what the last answer cost")
def _stats(repl: Repl, _: str) -> None:
    repl.screen.note(usage_line(_last(repl).steps[-1].usage))


@_command("why", "[N]", "how the members voted: on token N, or on the most disputed ones")
def _why(repl: Repl, argument: str) -> None:
    try:
        number = int(argument) if argument else None
    except ValueError as error:
        raise InputError("/why needs the number of a token, such as /why 3") from error
    repl.screen.show(*vote_lines(_last(repl), number))


def _file(name: str, command: str) -> Path:
    if not name:
        raise InputError(f"{command} needs the name of a file")
    return user_path(name, command)


def _last(repl: Repl) -> Reply:
    if repl.chat.last is None:
        raise InputError("no answer was written since this chat began, or it was taken back")
    return repl.chat.last


def _table(rows: list[tuple[str, str]], style: str = "") -> Table:
    """Lay names, in a style, and texts that may hold anything side by side."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    # A path that is too long goes on in the next line.
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(Text(name, style=style), Text(harmless(text)))
    return table


class CommandCompleter(Completer):
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
