"""What was said: a conversation, and the events that change it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from eva_local.types import Message

EventKind = Literal["system", "user", "answer", "undo"]


@dataclass(frozen=True, slots=True)
class Event:
    """One change of a conversation: what was said, empty for undo, and thought before an answer."""

    kind: EventKind
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
