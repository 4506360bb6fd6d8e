"""One conversation with one ensemble: asks, answers, keeps to the budget, saves."""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

from eva_local.api import Ensemble, Report
from eva_local.chat.log import Conversation, Event, Log
from eva_local.errors import ContextError, InputError
from eva_local.types import Message, Sampling, Step

Steps = Generator[Step, None, None]
# Turns that are dropped make room for several new ones: each drop lets the members read
# everything that is left again.
_FULL_AFTER_DROP = 0.75
# At most this share of a context is kept free for the answer.
_ANSWER_SHARE = 4

# The tokens that each member reads a conversation as.
Count = Callable[[Sequence[Message]], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Budget:
    """Each member's context, less what an answer may take: `max_tokens`, or a quarter of it."""

    members: tuple[str, ...]
    limits: tuple[int, ...]
    max_tokens: int

    def holds(self, needs: Sequence[int], share: float = 1.0) -> bool:
        """Return whether every member has room for its prompt in `share` of its budget."""
        rooms = [limit - self._kept_free(limit) for limit in self.limits]
        return all(need <= share * room for need, room in zip(needs, rooms, strict=True))

    def numbers(self, needs: Sequence[int]) -> str:
        """Word how many tokens the fullest member needs, and how many it has."""
        members = zip(self.members, needs, self.limits, strict=True)
        name, need, limit = max(members, key=lambda member: member[1] / member[2])
        kept_free = self._kept_free(limit)
        return f"{name} needs {need} tokens of {limit}, and {kept_free} are kept for the answer"

    def _kept_free(self, limit: int) -> int:
        return min(self.max_tokens, limit // _ANSWER_SHARE)


def first_turn(conversation: Conversation, first: int, count: Count, budget: Budget) -> int:
    """Return the first turn, from `first` on, that a prompt can hold; ContextError for none."""
    if budget.holds(count(conversation.prompt(first))):
        return first
    newest = len(conversation.turns) - 1
    alone = count(conversation.prompt(newest))
    if not budget.holds(alone):
        with_system = " with the system message" if conversation.system else ""
        raise ContextError(
            f"this message{with_system} does not fit: {budget.numbers(alone)}; "
            "shorten it, or start with a larger --n-ctx"
        )
    for turn in range(first + 1, newest):
        if budget.holds(count(conversation.prompt(turn)), _FULL_AFTER_DROP):
            return turn
    return newest


@dataclass(frozen=True, slots=True)
class Reply:
    """The steps of an answer, the seconds from first to last, and the tokens in each context."""

    members: tuple[str, ...]
    steps: tuple[Step, ...]
    seconds: float
    used: tuple[int, ...]
    limits: tuple[int, ...]


class Chat:
    """A conversation, saved in `folder` as it goes; `tell` is told what must not be silent."""

    def __init__(
        self, ensemble: Ensemble, sampling: Sampling, folder: Path, tell: Callable[[str], None]
    ) -> None:
        self.ensemble = ensemble
        self.sampling = sampling
        self._folder = folder
        self._tell = tell
        self._log: Log | None = None
        self.take_over(Conversation())

    @property
    def path(self) -> Path | None:
        """The file of the conversation; None as long as nothing was said."""
        return None if self._log is None else self._log.path

    @property
    def budget(self) -> Budget:
        """The room in the members' contexts."""
        return Budget(self.ensemble.members, self.ensemble.n_ctx, self.sampling.max_tokens)

    @property
    def is_open(self) -> bool:
        """Whether the last message has no answer (its chat was killed)."""
        turns = self.conversation.turns
        return bool(turns) and turns[-1].answer is None

    def close(self) -> None:
        """Give the file of the conversation free."""
        if self._log is not None:
            self._log.close()

    def take_over(self, conversation: Conversation, log: Log | None = None) -> None:
        """Go on with a conversation, in its `log` or a new one; the one before stays saved."""
        self.close()
        self.conversation = conversation
        # The first turn that the members still read, and the last answer that was written.
        self.first = 0
        self.last: Reply | None = None
        self._log = log
        self._saves = True

    def use_system(self, text: str) -> None:
        """Change the system message; an empty text removes it."""
        self._record(Event("system", text))

    def undo(self) -> str:
        """Take the last message and its answer back; return the message."""
        turns = self.conversation.turns
        if not turns:
            raise InputError("there is nothing to take back")
        self._take_back()
        self.last = None
        return turns[-1].question

    def check(self, text: str) -> None:
        """Raise ContextError, with the numbers, for a message that can never fit."""
        self._fitting(Conversation(self.conversation.system).after(Event("user", text)))

    def ask(self, text: str, report: Report | None = None) -> Steps:
        """Send a message and write its answer step by step.

        Closing the iterator keeps what was said; where nothing was said, all is as it was before.
        Raises ContextError, and changes nothing, where it cannot fit.
        """
        before = self.conversation
        events = [*([Event("undo")] if self.is_open else []), Event("user", text)]
        first = self._fitting(reduce(Conversation.after, events, before))
        for event in events:
            self._record(event)
        self._drop(first)
        yield from self._answer(before, report)

    def regenerate(self, report: Report | None = None) -> Steps:
        """Write the last answer again; the old one stays until the new one is there."""
        if not self.conversation.turns:
            raise InputError("there is no answer to write again")
        self._drop(self._fitting(self.conversation))
        yield from self._answer(self.conversation, report)

    def alone(self, member: str, report: Report | None = None) -> Steps:
        """Let one member answer the last message by itself; the conversation stays as it is."""
        if not self.conversation.turns:
            raise InputError("there is no message yet to be answered")
        prompt = self.conversation.prompt(self.first)
        yield from self.ensemble.stream(prompt, self.sampling, alone=member, report=report)

    def used(self) -> tuple[int, ...]:
        """Return how many tokens of the conversation, without thoughts, each member holds."""
        turns = self.conversation.turns
        if not turns:
            return (0,) * len(self.ensemble.members)
        parts = [self._count(self.conversation.prompt(self.first))]
        if turns[-1].answer:
            # Counted apart: not every chat template lets a conversation end with an answer.
            parts.append(self.ensemble.prompt_tokens(turns[-1].answer))
        return tuple(map(min, map(sum, zip(*parts, strict=True)), self.ensemble.n_ctx))

    def _answer(self, before: Conversation, report: Report | None) -> Steps:
        steps: list[Step] = []
        times: list[float] = []
        try:
            prompt = self.conversation.prompt(self.first)
            for step in self.ensemble.stream(prompt, self.sampling, trace=True, report=report):
                times.append(time.perf_counter())
                steps.append(step)
                yield step
        finally:
            thought = "".join(step.reasoning or "" for step in steps)
            # A thought alone takes the place of no answer.
            if any(step.text or step.finish_reason for step in steps) or (thought and self.is_open):
                self._record(Event("answer", "".join(step.text for step in steps), thought))
                members, limits = self.ensemble.members, self.ensemble.n_ctx
                seconds = times[-1] - times[0]
                self.last = Reply(members, tuple(steps), seconds, self.used(), limits)
            elif self.conversation != before:
                self._take_back()
                if self.conversation != before:
                    # The message without an answer whose place it took.
                    self._record(Event("user", before.turns[-1].question))

    def _fitting(self, conversation: Conversation) -> int:
        return first_turn(conversation, self.first, self._count, self.budget)

    def _count(self, prompt: Sequence[Message]) -> tuple[int, ...]:
        return self.ensemble.prompt_tokens(prompt, self.sampling)

    def _drop(self, first: int) -> None:
        if dropped := first - self.first:
            turns = "turn is" if dropped == 1 else f"{dropped} turns are"
            numbers = self.budget.numbers(self._count(self.conversation.prompt(self.first)))
            self._tell(f"the context is full ({numbers}): the oldest {turns} left out from here on")
            self.first = first

    def _take_back(self) -> None:
        self._record(Event("undo"))
        if self.first >= len(self.conversation.turns):
            # What was dropped for the sake of turns that are gone may fit again.
            self.first = 0

    def _record(self, event: Event) -> None:
        self.conversation = self.conversation.after(event)
        if not self._saves:
            return
        try:
            if self._log is not None:
                self._log.save(event)
            elif self.conversation.turns:
                name = self.ensemble.spec.called or self.ensemble.spec.name
                self._log = Log.begin(self._folder, name, self.conversation)
        except InputError as error:
            self._saves = False
            self._tell(f"{error}; from here on it is not saved")
