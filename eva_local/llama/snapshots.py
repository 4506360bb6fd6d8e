"""Saved states of a cache that cannot take tokens back, so that a text can return to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

# A text is gone back in only as far as its end is written anew.
_MOST_ROLLING = 2

State = TypeVar("State")


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[State]):
    """A state after the first `length` tokens of a text: a `lasting` one stands in its prompt."""

    length: int
    lasting: bool
    state: State


def retained(snapshots: Sequence[Snapshot[State]], most: int) -> list[Snapshot[State]]:
    """Return which of a text's snapshots stay, at most `most`; of each kind the oldest go first.

    Those in prompts leave room for one of those in the answer, which are two at most.
    """
    lasting = [each for each in snapshots if each.lasting][-max(most - 1, 1) :]
    rolling = [each for each in snapshots if not each.lasting]
    n_rolling = min(len(rolling), _MOST_ROLLING, most - len(lasting))
    return [*lasting, *rolling[len(rolling) - n_rolling :]]
