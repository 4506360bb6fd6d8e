"""The loop of a chat: read, obey or ask, show the answer as it comes."""

from collections.abc import Callable
from contextlib import closing, suppress

from eva_local.api import Ensemble, Report
from eva_local.chat import commands
from eva_local.chat.chat import Chat, Reply, Steps
from eva_local.chat.log import Saved, first_words
from eva_local.chat.reader import PROMPT, Command, Reader, counted, sound, understood
from eva_local.chat.terminal import Screen, interruption_noted, typing_unseen
from eva_local.chat.votes import summary_line
from eva_local.config.specs import EnsembleSpec
from eva_local.errors import EvaError

# Characters of a message that are shown again.
_ECHOED = 400


class Repl:
    """A person and a chat: `reader` asks, `screen` shows.

    `specs` says what an ensemble of a name is, and `opened` opens one in place of the last.
    """

    def __init__(
        self,
        chat: Chat,
        reader: Reader,
        screen: Screen,
        specs: Callable[[str], EnsembleSpec],
        opened: Callable[[EnsembleSpec], Ensemble],
    ) -> None:
        self.spec_of = specs
        self._open = opened
        self.chat = chat
        self.screen = screen
        # Texts that go in front of the next message.
        self.texts: list[str] = []
        self.done = False
        self._reader = reader

    def run(self) -> None:
        """Go on until the person leaves."""
        while not self.done:
            try:
                text = self._reader.read()
                if text.strip():
                    self._take(understood(text))
                    self.screen.gap()
            except EOFError:
                return
            except EvaError as error:
                self.screen.say(str(error), "red" if self.screen.interactive else "")
                self.screen.gap()
            except KeyboardInterrupt:
                if not self._reader.somebody:
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
            self.chat.ensemble = self._open(spec)
        except EvaError:
            self.chat.ensemble = self._open(before)
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
            commands.obey(self, meant)
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
