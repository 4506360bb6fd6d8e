"""Saved states of a cache that cannot take tokens back, so that a text can return to them."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from eva_local.llama.backend import library

# What recurrent layers hold and no more: what attention holds can be cut.
_PARTIAL_ONLY = 1
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


class Snapshots:
    """The snapshots of each sequence of a context, at most `most`, in the host's memory.

    Each is of a beginning of what its sequence holds.
    """

    def __init__(self, context: Any, most: int) -> None:
        self._llama = library()
        self._context = context
        self._most = most
        self._of: dict[int, list[Snapshot[NDArray[np.uint8]]]] = {}

    def take(self, seq_id: int, length: int, *, lasting: bool) -> None:
        """Save the state of a sequence, of `length` tokens."""
        held = self._of.get(seq_id, [])
        if not self._most or any(each.length == length for each in held):
            return
        size = self._llama.llama_state_seq_get_size_ext(self._context, seq_id, _PARTIAL_ONLY)
        state = np.empty(size, np.uint8)
        got = self._llama.llama_state_seq_get_data_ext(
            self._context, _pointer(state), size, seq_id, _PARTIAL_ONLY
        )
        if got == size:
            self._of[seq_id] = retained([*held, Snapshot(length, lasting, state)], self._most)

    def best(self, seq_id: int, start: int) -> int:
        """Return the length of the longest snapshot of at most `start` tokens, or 0."""
        held = self._of.get(seq_id, ())
        return max((each.length for each in held if each.length <= start), default=0)

    def restore(self, seq_id: int, length: int) -> bool:
        """Put a snapshot back; what attention holds beyond must be cut next."""
        (state,) = (each.state for each in self._of[seq_id] if each.length == length)
        return bool(
            self._llama.llama_state_seq_set_data_ext(
                self._context, _pointer(state), state.size, seq_id, _PARTIAL_ONLY
            )
        )

    def cut(self, seq_id: int, length: int) -> None:
        """Forget snapshots of more than `length` tokens."""
        if seq_id in self._of:
            self._of[seq_id] = [each for each in self._of[seq_id] if each.length <= length]

    def copy(self, source: int, target: int) -> None:
        """Let `target`, which holds what `source` does, go back to the same states."""
        self._of[target] = list(self._of.get(source, ()))

    def clear(self) -> None:
        """Forget all of them."""
        self._of = {}


def _pointer(state: NDArray[np.uint8]) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
