"""How much of a conversation the members can still read."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eva_local.chat.conversation import Conversation
from eva_local.errors import ContextError
from eva_local.types import Message

# Turns that are dropped make room for several new ones: each drop lets the members read
# everything that is left again.
_FULL_AFTER_DROP = 0.75
# At most this share of a context is kept free for the answer.
_ANSWER_SHARE = 4

# The tokens that each member reads a conversation as.
Count = Callable[[Sequence[Message]], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Budget:
    """The room of each member: `limits` are the tokens of its context, in the order of `members`.

    Room for an answer is kept free: `max_tokens`, or a quarter of the context if that is less.
    """

    members: tuple[str, ...]
    limits: tuple[int, ...]
    max_tokens: int

    def holds(self, needs: Sequence[int], share: float = 1.0) -> bool:
        """Return whether every member has room for its prompt in `share` of its budget."""
        return all(
            need <= share * (limit - self._kept_free(limit))
            for need, limit in zip(needs, self.limits, strict=True)
        )

    def numbers(self, needs: Sequence[int]) -> str:
        """Word how many tokens the fullest member needs, and how many it has."""
        member = max(range(len(needs)), key=lambda member: needs[member] / self.limits[member])
        limit = self.limits[member]
        return (
            f"{self.members[member]} needs {needs[member]} tokens of {limit}, "
            f"and {self._kept_free(limit)} are kept for the answer"
        )

    def _kept_free(self, limit: int) -> int:
        return min(self.max_tokens, limit // _ANSWER_SHARE)


def first_turn(conversation: Conversation, first: int, count: Count, budget: Budget) -> int:
    """Return the first turn that the next prompt can hold; turns before `first` stay out.

    Raises ContextError, with the numbers, where not even the newest message fits.
    """
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
    later = range(first + 1, newest)
    return (first + 1) + bisect_left(
        later,
        True,
        key=lambda turn: budget.holds(count(conversation.prompt(turn)), _FULL_AFTER_DROP),
    )
