"""The loop of a chat: read, obey or ask, show the answer as it comes; what each command does."""

import json
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from rich.table import Table
from rich.text import Text

from eva_local.api import Ensemble, Report
from eva_local.chat.chat import Chat, Reply, Steps
from eva_local.chat.log import Conversation, Saved, first_words
from eva_local.chat.reader import PROMPT, Command, Reader, counted, sound, understood
from eva_local.chat.terminal import Screen, interruption_noted, typing_unseen
from eva_local.chat.votes import summary_line, usage_line, vote_lines
from eva_local.config.settings import keys_of, read_settings, read_text, refuse_unknown, user_path
from eva_local.config.specs import EnsembleSpec, FusionSettings
from eva_local.engine.detokenizer import harmless
from eva_local.errors import EvaError, InputError
from eva_local.pages.frame import shipped
from eva_local.reading import did_you_mean
from eva_local.types import Sampling, Thinking

# Characters of a message that are shown again.
_ECHOED = 400
# What /set changes: how answers are drawn, and how votes are fused.
_DRAWN = keys_of(Sampling)
_KEYS = (*_DRAWN, *keys_of(FusionSettings))
# What commands are called and do, what follows them, and what keys do.
_TOLD = json.loads(shipped("chat/help.json"))
_NOTHING = '""'
_THINK = (*get_args(Thinking), "fold", "show")
_ARGUMENTS = {"/set": _KEYS, "/think": _THINK}


@dataclass(eq=False)
class Repl:
    """A person and a chat: `reader` asks, `screen` shows.

    `spec_of` says what an ensemble of a name is, and `opened` opens one in place of the last.
    `texts` go in front of the next message.
    """

    chat: Chat
    reader: Reader
    screen: Screen
    spec_of: Callable[[str], EnsembleSpec]
    opened: Callable[[EnsembleSpec], Ensemble]
    texts: list[str] = field(default_factory=list)
    done: bool = False

    def run(self) -> None:
        """Go on until the person leaves."""
        while not self.done:
            try:
                text = self.reader.read()
                if text.strip():
                    self._take(understood(text))
                    self.screen.gap()
            except EOFError:
                return
            except EvaError as error:
                self.screen.say(str(error), "red" if self.screen.interactive else "")
                self.screen.gap()
            except KeyboardInterrupt:
                if not self.reader.somebody:
                    raise
                self.screen.note("Ctrl-D or /exit leaves")

    def answer(self, begin: Callable[[Report], Steps]) -> bool:
        """Show the answer that `begin` begins as it comes; return whether there is one now."""
        before = self.chat.last
        self._stream(begin)
        answer = self.chat.last
        if answer is None or answer is before:
            self.screen.note("stopped before a word was said; all is as it was")
            return False
        self.screen.note(" · ".join(filter(None, (self._ending(answer), summary_line(answer)))))
        return True

    def hear(self, member: str) -> bool:
        """Show what one member alone answers to the last message; False where it was stopped."""
        self.screen.note(f"{member} alone:")
        return self._stream(lambda report: self.chat.alone(member, report))

    def change(self, spec: EnsembleSpec) -> None:
        """Go on with another ensemble, or with other settings of it; the models are opened anew."""
        before = self.chat.ensemble.spec
        try:
            self.chat.ensemble = self.opened(spec)
        except EvaError:
            self.chat.ensemble = self.opened(before)
            raise
        self.chat.first, self.chat.last = 0, None
        self.greet()

    def heed(self, text: str) -> str:
        """Return text from outside with whole characters; say what was odd about it."""
        text, broken = sound(text)
        if broken:
            were = counted(broken, "byte was", "bytes were")
            self.screen.note(f"{were} no UTF-8 and became U+FFFD in the message")
        return text

    def greet(self) -> None:
        """Name the ensemble to a person."""
        ensemble = self.chat.ensemble
        name, members = ensemble.spec.name, " + ".join(ensemble.members)
        title = members if members == name else f"{name}: {members}"
        if self.screen.interactive:
            self.screen.note(f"{title}, context {min(ensemble.n_ctx)}, /help for help")

    def welcome(self, saved: Saved) -> None:
        """Say what was taken up, and show where it stands."""
        for note in saved.notes:
            self.screen.note(note)
        count = len(self.chat.conversation.turns)
        self.screen.note(f"{saved.path.stem}: {counted(count, 'turn', 'turns')}")
        for turn in self.chat.conversation.turns[-1:]:
            self.screen.gap()
            self.screen.note(f"{PROMPT}{first_words(turn.question, _ECHOED)}")
            if turn.answer is None:
                self.screen.note("this message has no answer; /regen writes one")
            else:
                self.screen.say(turn.answer.strip())

    def _take(self, meant: Command | str) -> None:
        if isinstance(meant, Command):
            name = _TOLD["other_names"].get(meant.name, meant.name)
            if name not in COMMANDS:
                told = f"/{name[:40]} is no command (//{name[:40]} is sent as text)"
                hint = did_you_mean(f"/{name}", [f"/{known}" for known in COMMANDS])
                raise InputError(f"{told}; {hint}")
            COMMANDS[name](self, sound(meant.argument)[0])
        elif meant.strip():
            # After the texts that were read for it.
            whole = "\n\n".join([*self.texts, self.heed(meant)])
            if self.answer(lambda report: self.chat.ask(whole, report)):
                self.texts = []

    def _stream(self, begin: Callable[[Report], Steps]) -> bool:
        """Show what is written as it comes; return whether nobody stopped it."""
        self.screen.begin()
        try:
            with interruption_noted() as interrupted, typing_unseen():

                def report(_: str, share: float) -> None:
                    if interrupted():
                        raise KeyboardInterrupt
                    self.screen.busy(f"reading {share:.0%}")

                with suppress(KeyboardInterrupt), closing(begin(report)) as steps:
                    for step in steps:
                        self.screen.think(step)
                        self.screen.write(step.text)
                        if interrupted():
                            break
                return not interrupted()
        finally:
            self.screen.end()

    def _ending(self, answer: Reply) -> str:
        reason, within = answer.steps[-1].finish_reason, ""
        if answer.steps[-1].reasoning is not None:
            within = " in the thought (it is kept with the message; /regen writes an answer)"
        if reason in (None, "cancelled"):
            return f"stopped{within}"
        if reason == "stop":
            said = any(step.text.strip() for step in answer.steps)
            return "" if said else "the answer is empty"
        limit = self.chat.sampling.max_tokens
        # Thoughts apart have a limit of their own.
        if sum(bool(step.piece) for step in answer.steps if step.member is None) >= limit:
            return f"cut off at max_tokens {limit}{within}"
        return f"cut off: the context is full{within}"


def _help(repl: Repl, _: str) -> None:
    told = _TOLD["commands"].items()
    rows = [(f"/{name} {follows}".rstrip(), text) for name, (follows, text) in told]
    repl.screen.show(_table(rows, "bold"), Text("\n".join(_TOLD["keys"])))


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
    question = first_words(repl.chat.undo())
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
        repl.screen.show(_table([(key, _value(repl, key)) for key in _KEYS]))
        return
    refuse_unknown({name: value}, _KEYS, "/set ")
    if not value:
        raise InputError(f"/set {name} needs a value; it is {_value(repl, name)}")
    kinds = (Sampling, FusionSettings)
    found = read_settings(kinds, {name: value}, lambda key: f"/set {key}", text=True)
    changed: dict[str, Any] = {name: found[name].value}
    if name in _DRAWN:
        repl.chat.sampling = replace(repl.chat.sampling, **changed)
    else:
        spec = repl.chat.ensemble.spec
        repl.change(replace(spec, fusion=replace(spec.fusion, **changed)))
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
    of: object = repl.chat.sampling if name in _DRAWN else repl.chat.ensemble.spec.fusion
    value = getattr(of, name)
    return {"seed": "random"}.get(name, "that of the answer") if value is None else str(value)


def _show(repl: Repl, _: str) -> None:
    chat = repl.chat
    spec, fusion = chat.ensemble.spec, chat.ensemble.spec.fusion
    given = fusion.weights
    weights = given if isinstance(given, str) else ",".join(map(str, given))
    rooms = zip(chat.ensemble.members, chat.used(), chat.ensemble.n_ctx, strict=True)
    changed = [name for name in _DRAWN if getattr(chat.sampling, name) != getattr(Sampling(), name)]
    rows = (
        ("ensemble", f"{spec.name} (pivot: {spec.pivot})"),
        ("fusion", f"{fusion.combine}, weights {weights}, filter {fusion.filter}"),
        ("drafter", fusion.drafter),
        ("context", "\n".join(f"{name} {need}/{limit}" for name, need, limit in rooms)),
        ("turns", str(len(chat.conversation.turns))),
        ("left out", f"the oldest {chat.first}: the context is full" if chat.first else ""),
        ("system", chat.conversation.system),
        ("set", ", ".join(f"{name} {_value(repl, name)}" for name in changed)),
        ("read", ", ".join(first_words(text) for text in repl.texts)),
        ("saved in", str(chat.path or "")),
    )
    repl.screen.show(_table([(name, value) for name, value in rows if value], "dim"))


def _model(repl: Repl, name: str) -> None:
    if not name:
        raise InputError("/model takes an ensemble, a model, a file, or a,b,c")
    repl.change(repl.spec_of(name))


def _alone(repl: Repl, member: str) -> None:
    members = repl.chat.ensemble.members
    if member not in members:
        raise InputError(f"/alone takes one of {', '.join(members)}")
    repl.hear(member)


def _compare(repl: Repl, _: str) -> None:
    turns = repl.chat.conversation.turns
    if turns and turns[-1].answer:
        # Others may have written what was said before they were joined.
        repl.screen.note("together:" if repl.chat.last else "before:")
        repl.screen.say(turns[-1].answer.strip())
    for member in repl.chat.ensemble.members:
        if not repl.hear(member):
            return


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


# What does what help.json tells of.
COMMANDS: dict[str, Callable[[Repl, str], None]] = {
    each.__name__[1:]: each
    for each in (
        *(_help, _exit, _clear, _regen, _undo, _system, _set, _model),
        *(_alone, _compare, _show, _read, _think, _thought, _stats, _why),
    )
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
