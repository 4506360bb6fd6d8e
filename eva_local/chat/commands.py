"""What each slash command does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from rich.table import Table
from rich.text import Text

from eva_local.chat import log
from eva_local.chat.chat import Reply
from eva_local.chat.log import Conversation
from eva_local.chat.reader import Command, counted, sound
from eva_local.chat.votes import usage_line, vote_lines
from eva_local.config.settings import keys_of, read_settings, read_text, refuse_unknown, user_path
from eva_local.engine.detokenizer import harmless
from eva_local.errors import InputError
from eva_local.reading import did_you_mean
from eva_local.types import Sampling, Thinking

if TYPE_CHECKING:
    from eva_local.chat.repl import Repl

    Action = Callable[[Repl, str], None]

# What /set changes: how answers are drawn.
KEYS = keys_of(Sampling)
_OTHER_NAMES = {"?": "help", "bye": "exit", "quit": "exit", "q": "exit"}
_NOTHING = '""'
_THINK = (*get_args(Thinking), "fold", "show")
_ARGUMENTS = {"/set": KEYS, "/think": _THINK}
_HELP = (
    '\n""" begins and ends a message of several lines; Alt-Enter is a new line in any message.\n'
    "// begins a message with a slash. Ctrl-C stops an answer and clears a line; Ctrl-D leaves.\n"
    "Tab completes commands and files, Ctrl-R searches what you wrote, Ctrl-X Ctrl-E edits it."
)


def obey(repl: Repl, command: Command) -> None:
    """Do what a command says; EvaError where it is none, or that is not possible."""
    name = _OTHER_NAMES.get(command.name, command.name)
    if name not in COMMANDS:
        hint = did_you_mean(f"/{name}", [f"/{known}" for known in COMMANDS])
        raise InputError(f"/{name[:40]} is no command (//{name[:40]} is sent as text); {hint}")
    COMMANDS[name][2](repl, sound(command.argument)[0])


def _help(repl: Repl, _: str) -> None:
    rows = [(f"/{name} {follows}".rstrip(), text) for name, (follows, text, _) in COMMANDS.items()]
    repl.screen.show(_table(rows, "bold"), Text(_HELP))


def _exit(repl: Repl, _: str) -> None:
    repl.done = True


def _clear(repl: Repl, _: str) -> None:
    system = repl.chat.conversation.system
    repl.chat.take_over(Conversation(system))
    repl.texts = []
    repl.screen.note(f"a new conversation{'; the system message stays' if system else ''}")


def _regen(repl: Repl, _: str) -> None:
    before = repl.chat.conversation
    if repl.answer(repl.chat.regenerate) and repl.chat.conversation == before:
        sampling = repl.chat.sampling
        if sampling.temperature == 0:
            repl.screen.note("the same again: temperature is 0; try /set temperature 0.8")
        elif sampling.seed is not None:
            repl.screen.note("the same again: the seed is fixed; try /set seed random")


def _undo(repl: Repl, _: str) -> None:
    question = log.first_words(repl.chat.undo())
    left = len(repl.chat.conversation.turns)
    repl.screen.note(f"taken back: {question} ({counted(left, 'turn', 'turns')} left)")


def _system(repl: Repl, text: str) -> None:
    if not text:
        repl.screen.say(repl.chat.conversation.system or "There is no system message.")
        return
    repl.chat.use_system("" if text == _NOTHING else text)
    repl.screen.note("no system message" if text == _NOTHING else "from the next answer on")


def _set(repl: Repl, argument: str) -> None:
    name, _, value = map(str.strip, argument.partition(" "))
    if not name:
        repl.screen.show(_table([(key, _value(repl, key)) for key in KEYS]))
        return
    refuse_unknown({name: value}, KEYS, "/set ")
    if not value:
        raise InputError(f"/set {name} needs a value; it is {_value(repl, name)}")
    found = read_settings([Sampling], {name: value}, lambda key: f"/set {key}", text=True)
    changed: dict[str, Any] = {name: found[name].value}
    repl.chat.sampling = replace(repl.chat.sampling, **changed)
    repl.screen.note(f"{name} is {_value(repl, name)}")


def _think(repl: Repl, how: Any) -> None:
    if how and how not in _THINK:
        raise InputError(f"/think takes {', '.join(_THINK)}, not {how}")
    if how in get_args(Thinking):
        repl.chat.sampling = replace(repl.chat.sampling, thinking=how)
    elif how:
        repl.screen.folds = how == "fold"
    shown = "folded" if repl.screen.folds else "shown"
    repl.screen.note(f"thinking is {repl.chat.sampling.thinking}; thoughts are {shown}")


def _thought(repl: Repl, _: str) -> None:
    thoughts = [turn.reasoning for turn in repl.chat.conversation.turns if turn.reasoning]
    if not thoughts:
        raise InputError("there is no thought in this conversation; /think on asks for them")
    repl.screen.note(thoughts[-1].strip())


def _value(repl: Repl, name: str) -> str:
    value = getattr(repl.chat.sampling, name)
    return {"seed": "random"}.get(name, "that of the answer") if value is None else str(value)


def _show(repl: Repl, _: str) -> None:
    chat = repl.chat
    spec, fusion = chat.ensemble.spec, chat.ensemble.spec.fusion
    given = fusion.weights
    weights = given if isinstance(given, str) else ",".join(map(str, given))
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


def _stats(repl: Repl, _: str) -> None:
    repl.screen.note(usage_line(_last(repl).steps[-1].usage))


def _why(repl: Repl, argument: str) -> None:
    try:
        number = int(argument) if argument else None
    except ValueError as error:
        raise InputError("/why needs the number of a token, such as /why 3") from error
    repl.screen.show(*vote_lines(_last(repl), number))


def _last(repl: Repl) -> Reply:
    if repl.chat.last is None:
        raise InputError("no answer was written since this chat began, or it was taken back")
    return repl.chat.last


def _table(rows: list[tuple[str, str]], style: str = "") -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    # A path that is too long goes on in the next line.
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(Text(name, style=style), Text(harmless(text)))
    return table


# What follows a command, what it does, and what does it. The order is that of /help.
COMMANDS: dict[str, tuple[str, str, Action]] = {
    "help": ("", "this list", _help),
    "exit": ("", "leave; the conversation is saved", _exit),
    "clear": ("", "begin a new conversation; the old one stays saved", _clear),
    "regen": ("", "write the last answer again", _regen),
    "undo": ("", "take the last message and its answer back", _undo),
    "system": ("[TEXT]", 'show or change the system message; "" removes it', _system),
    "set": ("[NAME VALUE]", "show or change how answers are drawn", _set),
    "show": ("", "the ensemble, its contexts and settings", _show),
    "read": ("[FILE]", "put a text file before the next message; without FILE, forget it", _read),
    "think": ("[HOW]", "auto, off, on, apart: how they think; fold, show: thoughts", _think),
    "thought": ("", "show the last thought", _thought),
    "stats": ("", "what the last answer cost", _stats),
    "why": ("[N]", "how the members voted: on token N, or on the most disputed ones", _why),
}


class CommandCompleter(Completer):
    """Completes commands and what follows them."""

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """Yield what the text before the cursor can become."""
        command, space, argument = document.text_before_cursor.partition(" ")
        if space and command == "/read":
            yield from PathCompleter(expanduser=True).get_completions(Document(argument), event)
        begun = argument if space else command
        known = _ARGUMENTS.get(command, ()) if space else (f"/{name}" for name in COMMANDS)
        for name in known if command else ():
            if name.startswith(begun):
                yield Completion(name, -len(begun))
