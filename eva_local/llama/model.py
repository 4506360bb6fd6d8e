"""What the rest of the program asks of a model, whoever answers: llama.cpp, or a fake in tests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eva_local.llama.tokenizer import Tokenizer
from eva_local.llama.vocab import Vocabulary

Logits = NDArray[np.float32]

# Stands for every sequence of a model, as llama.cpp has it.
ALL = -1


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens to append to one sequence of llama.cpp, of which the first has position `start`.

    `logits` says whether the distribution after the last token is wanted, `every` that it is
    after each of them.
    """

    seq_id: int
    start: int
    tokens: Sequence[int]
    logits: bool = True
    every: bool = False


class Model(Protocol):
    """A model with a cache of several sequences."""

    path: Path
    vocabulary: Vocabulary
    tokenizer: Tokenizer
    chat_template: str | None
    n_ctx: int
    n_batch: int
    can_roll_back: bool

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        """Decode all runs together; return one entry per run.

        That is a read-only view (n_vocab,), valid until the next call, or None where no logits
        are wanted. Raises ModelError where decoding fails or the logits are no numbers, RoomError
        where there is no room for all of them; any part of them may then have been decoded.
        """

    def decode_every(self, run: Run) -> Iterator[Logits]:
        """Decode one run; yield blocks (m, n_vocab) with the logits after each of its tokens.

        A block is valid until the next one is asked for.
        """

    def holds(self, seq_id: int, start: int) -> bool:
        """Return whether the cache has all that a token at position `start` may look back on."""

    def remove(self, seq_id: int, start: int) -> bool:
        """Forget positions from `start` on, of one sequence or of `ALL`.

        False, with nothing removed, where the past of `start` is gone; from 0 it always goes.
        """

    def copy(self, source: int, target: int, length: int = -1) -> bool:
        """Let `target` begin as a copy of the first `length` positions of `source` (-1: all).

        False, with an empty `target`, where `source` no longer holds them.
        """

    def close(self) -> None:
        """Free the memory; the model cannot be used afterwards."""
