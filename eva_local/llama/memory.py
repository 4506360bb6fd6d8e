"""llama.cpp's cache of one context, which it calls its memory: what it holds of each sequence."""

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from eva_local.errors import ModelError
from eva_local.llama.backend import library
from eva_local.llama.model import ALL

State = TypeVar("State")

# A text is gone back in only as far as its end is written anew.
_MOST_ROLLING = 2
# Of a snapshot, what recurrent layers hold and no more: what attention holds can be cut.
_PARTIAL_ONLY = 1


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


@dataclass(eq=False)
class Memory:
    """The cells of a context, asked before llama.cpp is believed.

    llama.cpp agrees to forget the end of a sequence also where a cache with a window no longer
    has what comes before that end, and then computes other logits. Layers of the model look back
    over `window` tokens, 0: over all. Sequence `guard_id`, if any, guards a window that texts
    share. Of each sequence there are at most `n_snapshots`, of beginnings of what it holds.
    """

    context: Any
    path: Path
    window: int
    is_recurrent: bool
    guard_id: int | None
    n_snapshots: int

    def __post_init__(self) -> None:
        self._llama = library()
        self._memory = self._llama.llama_get_memory(self.context)
        self._snapshots: dict[int, list[Snapshot[NDArray[np.uint8]]]] = {}
        # From which position on the guard must be told again what there is to guard.
        self._unguarded = 0

    def holds(self, seq_id: int, start: int) -> int:
        """Return the last position, at most `start`, from which a text can go on."""
        if self._reaches(seq_id, start):
            return start
        lengths = (each.length for each in self._snapshots.get(seq_id, ()))
        return max((length for length in lengths if length <= start), default=0)

    def _reaches(self, seq_id: int, start: int) -> bool:
        """Return whether there is all that a token at `start` may look back on."""
        if start == 0:
            return True
        newest = self._llama.llama_memory_seq_pos_max(self._memory, seq_id)
        if self.is_recurrent:
            return bool(newest == start - 1)
        oldest = self._llama.llama_memory_seq_pos_min(self._memory, seq_id)
        needed = max(0, start - self.window + 1) if self.window else 0
        return bool(0 <= oldest <= needed and newest >= start - 1)

    def remove(self, seq_id: int, start: int) -> int:
        """Forget positions from `start` on, of one sequence or of `ALL`; see `Model.remove`.

        Raises ModelError where llama.cpp refuses to forget a whole sequence.
        """
        if seq_id == ALL:
            assert start == 0
            self._llama.llama_memory_clear(self._memory, False)
            self._snapshots.clear()
            return 0
        kept = self.holds(seq_id, start)
        if self._reaches(seq_id, kept) or self._restore(seq_id, kept):
            # From 0 on, a recurrent model forgets only what it is told to forget as a whole.
            removed = self._llama.llama_memory_seq_rm(self._memory, seq_id, kept or -1, -1)
        else:
            removed = False
        if not removed and not kept:
            raise ModelError(f"{self.path}: llama.cpp does not let go of a text; open it again")
        self.touch(kept)
        held = self._snapshots.get(seq_id, ())
        self._snapshots[seq_id] = [each for each in held if each.length <= kept]
        return kept if removed else self.remove(seq_id, 0)

    def copy(self, source: int, target: int, length: int = -1) -> int:
        """Let `target` begin as a copy of `source`; see `Model.copy`.

        Between texts, llama.cpp copies whole sequences only; among the branches of one text the
        cache is shared and nothing is copied.
        """
        self.remove(target, 0)
        if length < 0:
            length = self._llama.llama_memory_seq_pos_max(self._memory, source) + 1
        kept = self.holds(source, length)
        # Of a recurrent model, llama.cpp would copy all there is of nothing.
        if kept:
            self._llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            self._snapshots[target] = list(self._snapshots.get(source, ()))
        return self.remove(target, kept)

    def snapshot(self, seq_id: int, *, lasting: bool) -> None:
        """Save what a sequence holds, in the host's memory; see `Model.snapshot`."""
        llama, held = self._llama, self._snapshots.get(seq_id, [])
        length = llama.llama_memory_seq_pos_max(self._memory, seq_id) + 1
        if not self.n_snapshots or length in (0, *(each.length for each in held)):
            return
        size = llama.llama_state_seq_get_size_ext(self.context, seq_id, _PARTIAL_ONLY)
        state = np.empty(size, np.uint8)
        got = llama.llama_state_seq_get_data_ext(
            self.context, _pointer(state), size, seq_id, _PARTIAL_ONLY
        )
        if got == size:
            new = Snapshot(length, lasting, state)
            self._snapshots[seq_id] = retained([*held, new], self.n_snapshots)

    def _restore(self, seq_id: int, length: int) -> bool:
        """Put a snapshot back; what attention holds beyond must be cut next."""
        (state,) = (each.state for each in self._snapshots[seq_id] if each.length == length)
        return bool(
            self._llama.llama_state_seq_set_data_ext(
                self.context, _pointer(state), state.size, seq_id, _PARTIAL_ONLY
            )
        )

    def touch(self, start: int) -> None:
        """Note that what stands at `start` and after it changes."""
        self._unguarded = min(self._unguarded, start)

    def guard(self) -> None:
        """Let one more sequence hold all cells of a cache with a window that texts share.

        Of cells that one sequence alone holds, llama.cpp overwrites those outside its window,
        from which a text could then not go back. The guard lets go of what was removed.
        """
        llama, since = self._llama, self._unguarded
        self._unguarded = sys.maxsize
        if self.guard_id is None or since == sys.maxsize:
            return
        llama.llama_memory_seq_rm(self._memory, self.guard_id, since, -1)
        for seq_id in range(self.guard_id):
            if llama.llama_memory_seq_pos_max(self._memory, seq_id) >= since:
                llama.llama_memory_seq_cp(self._memory, seq_id, self.guard_id, since, -1)


def _pointer(state: NDArray[np.uint8]) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
