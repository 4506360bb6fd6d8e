"""The loop of a chat: read, obey or ask, show the answer as it comes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from eva_local.api import Report
from eva_local.chat import commands
from eva_local.chat.chat import Chat, Reply, Steps
from eva_local.chat.log import Saved
from eva_local.chat.reader import PROMPT, Command, Reader, counted, sound, understood
from eva_local.chat.terminal import Screen, interruption_noted, typing_unseen
from eva_local.chat.votes import summary_line
from eva_local.errors import EvaError

# Longer messages are echoed in part.
_ECHOED_LINES = 10


class _StoppedError(Exception):
    """Ctrl-C was pressed while the members were reading."""


class Repl:
    """A person and a chat."""

    def __init__(
        self, chat: Chat, reader: Reader, screen: Screen, *, markdown: bool = False
    ) -> None:
        """Let `reader` ask and `screen` show."""
        self.chat = chat
        self.screen = screen
        self.switches = dict.fromkeys(commands.SWITCHES, True) | {"markdown": markdown}
        # Texts that go in front of the next message, and a message that could not be sent.
        self.texts: list[str] = []
        self.unsent = ""
        self.done = False
        self._reader = reader

    def run(self) -> None:
        """Go on until the person leaves."""
        while not self.done:
            try:
                text = self._reader.read()
                if text.strip():
                    self._obey_or_ask(text)
                    self.screen.gap()
            except EOFError:
                return
            except EvaError as error:
                self._complain(str(error))
            except OSError as error:
                if error.filename is None:
                    # It is no file that the person named: the screen itself may be gone.
                    raise
                self._complain(f"{error.filename}: {error.strerror or error}")
            except KeyboardInterrupt:
                if not self._reader.somebody:
                    raise
                self.screen.note("Ctrl-D or /exit leaves")

    def ask(self, text: str) -> None:
        """Send a message, after the texts that were read for it."""
        self.unsent = text
        whole = "\n\n".join([*self.texts, text])
        if self._answer(lambda report: self.chat.ask(whole, report)):
            self.unsent = ""
            self.texts = []

    def regenerate(self) -> None:
        """Write the last answer again."""
        self._answer(self.chat.regenerate)

    def heed(self, text: str) -> str:
        """Return text from outside with whole characters; say what was odd about it."""
        text, notes = sound(text)
        for note in notes:
            self.screen.note(note)
        return text

    def greet(self) -> None:
        """Name the ensemble to a person."""
        if not self.screen.interactive:
            return
        ensemble = self.chat.ensemble
        name, members = ensemble.spec.name, " + ".join(ensemble.members)
        title = members if ensemble.members == (name,) else f"{name}: {members}"
        self.screen.note(f"{title}, context {min(ensemble.n_ctx)}, /help for help")

    def welcome(self, saved: Saved) -> None:
        """Say what was taken up, and show where it stands."""
        for note in saved.notes:
            self.screen.note(note)
        count = len(self.chat.conversation.turns)
        self.screen.note(f"{saved.path.stem}: {counted(count, 'turn', 'turns')}")
        self.show_turns(1)
        if self.chat.is_open:
            self.screen.note("this message has no answer; /regen writes one")

    def show_turns(self, count: int) -> None:
        """Show the last turns of the conversation."""
        turns = self.chat.conversation.turns
        for turn in turns[max(len(turns) - count, 0) :]:
            self.screen.gap()
            self.echo(turn.question)
            if turn.answer is not None:
                self.screen.say(turn.answer.strip())

    def echo(self, question: str) -> None:
        """Show the beginning of a message that was not typed here."""
        lines = question.split("\n")
        shown = lines if len(lines) <= _ECHOED_LINES else lines[: _ECHOED_LINES - 1]
        for number, line in enumerate(shown):
            self.screen.note(f"{PROMPT if number == 0 else '  '}{line}")
        if len(shown) < len(lines):
            self.screen.note(f"  … and {len(lines) - len(shown)} lines")

    def _complain(self, problem: str) -> None:
        self.screen.problem(problem)
        self.screen.gap()

    def _obey_or_ask(self, text: str) -> None:
        meant = understood(text)
        if isinstance(meant, Command):
            commands.obey(self, meant)
        elif meant.strip():
            self.ask(self.heed(meant))

    def _answer(self, begin: Callable[[Report], Steps]) -> bool:
        """Show an answer as it comes, until its end or Ctrl-C; return whether there is one."""
        before = self.chat.last
        self.screen.begin()
        try:
            with interruption_noted() as interrupted, typing_unseen():
                self._stream(begin, interrupted)
        finally:
            self.screen.end(markdown=self.switches["markdown"])
        answer = self.chat.last
        if answer is None or answer is before:
            self.screen.note("stopped before a word was said; all is as it was")
            return False
        cost = summary_line(answer) if self.switches["stats"] else ""
        if remark := " · ".join(filter(None, (self._ending(answer), cost))):
            self.screen.note(remark)
        return True

    def _stream(self, begin: Callable[[Report], Steps], interrupted: Callable[[], bool]) -> None:
        def report(_: str, share: float) -> None:
            if interrupted():
                raise _StoppedError
            self.screen.reading(share)

        with (
            contextlib.suppress(_StoppedError),
            contextlib.closing(begin(report)) as steps,
        ):
            for step in steps:
                self.screen.write(step.text)
                if interrupted():
                    return

    def _ending(self, answer: Reply) -> str:
        """Return why an answer ended where it did, if not by itself."""
        reason = answer.steps[-1].finish_reason or "cancelled"
        if reason == "cancelled":
            return "stopped"
        if reason == "stop":
            said = any(step.text.strip() for step in answer.steps)
            return "" if said else "the answer is empty"
        limit = self.chat.sampling.max_tokens
        if sum(bool(step.piece) for step in answer.steps) >= limit:
            return f"cut off at max_tokens {limit}"
        return "cut off: the context is full"
