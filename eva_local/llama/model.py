"""What the rest of the program asks of a model, whoever answers: llama.cpp, or a fake in tests."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eva_local.errors import ModelError, RoomError
from eva_local.llama.tokenizer import Tokenizer
from eva_local.llama.vocab import Vocabulary

Logits = NDArray[np.float32]
# The logits after a run, if they are wanted, or what went wrong.
Outcome = Logits | ModelError | None

# Stands for every sequence of a model, as llama.cpp has it.
ALL = -1
# Rows of logits that one call may ask for: few, since a row is n_vocab floats.
LOGIT_ROWS = 32


@dataclass(frozen=True, slots=True)
class Run:
    """Tokens to append to one sequence of llama.cpp, of which the first has position `start`.

    `logits` says after how many of the last tokens the distribution is wanted, `every` that it
    is after each of them, however many. Of those, the `top` highest are all that counts: others
    may be -inf; 0: all count.
    """

    seq_id: int
    start: int
    tokens: Sequence[int]
    logits: int = 1
    every: bool = False
    top: int = 0


class Model(Protocol):
    """A model with a cache of several sequences."""

    path: Path
    vocabulary: Vocabulary
    tokenizer: Tokenizer
    chat_template: str | None
    n_ctx: int
    n_batch: int
    #: Sequences of each text, and snapshots that it can have: 0 where they are not needed.
    n_branches: int
    n_snapshots: int
    can_roll_back: bool

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        """Decode all runs together; return one entry per run.

        That is a read-only view (n_vocab,), valid until the next call; a copy (m, n_vocab) where
        those after m tokens are wanted, above 1; None where none are. Raises ModelError where
        decoding fails or the logits are no numbers, RoomError where there is no room for all of
        them; any part of them may then have been decoded.
        """

    def holds(self, seq_id: int, start: int) -> int:
        """Return the last position, at most `start`, with all that a token there looks back on.

        That is `start` itself, or where a snapshot stands, or 0.
        """

    def remove(self, seq_id: int, start: int) -> int:
        """Forget positions from what it `holds` of `start` on; return that position.

        Of `ALL` sequences, only all can be forgotten.
        """

    def copy(self, source: int, target: int, length: int = -1) -> int:
        """Let `target` begin as a copy of what `source` holds of `length` positions (-1: all).

        Returns how many these are.
        """

    def snapshot(self, seq_id: int, *, lasting: bool) -> None:
        """Save what a sequence holds, to go back to; see `retained` for how long."""

    def close(self) -> None:
        """Free the memory; the model cannot be used afterwards."""


def decode_all(model: Model, runs: Sequence[Run]) -> Sequence[Outcome]:
    """Decode runs together; where that fails, each by itself, so that the others go on.

    What the cache holds of a run that failed is unknown.
    """
    try:
        return model.decode(runs)
    except ModelError as error:
        if len(runs) == 1 and not isinstance(error, RoomError):
            return [error]
        return [_decode_alone(model, run, error) for run in runs]


def decode_every(model: Model, run: Run) -> Iterator[Logits]:
    """Decode one run; yield blocks (m, n_vocab) with the logits after each of its tokens."""
    size = min(LOGIT_ROWS, model.n_batch)
    for first in range(0, len(run.tokens), size):
        tokens = run.tokens[first : first + size]
        (rows,) = model.decode([Run(run.seq_id, run.start + first, tokens, len(tokens))])
        assert rows is not None
        yield np.atleast_2d(rows)


def _decode_alone(model: Model, run: Run, error: ModelError) -> Outcome:
    """Decode a run after `error`: whole, then in ever smaller parts while there is no room."""
    size = len(run.tokens)
    # A part of it may have been decoded.
    while size and model.remove(run.seq_id, run.start) == run.start:
        try:
            return _decode_in_parts(model, run, size)
        except RoomError as full:
            error, size = full, size // 2
        except ModelError as other:
            return other
    return error


def _decode_in_parts(model: Model, run: Run, size: int) -> Logits | None:
    # The tokens whose logits are wanted stay together, at the end.
    n_before = max(len(run.tokens) - max(size, run.logits), 0)
    for first in range(0, n_before, size):
        part = run.tokens[first : min(first + size, n_before)]
        model.decode([Run(run.seq_id, run.start + first, part, 0)])
    rest = run.tokens[n_before:]
    (logits,) = model.decode([Run(run.seq_id, run.start + n_before, rest, run.logits)])
    # llama.cpp writes over them when it decodes the next run.
    return None if logits is None else logits.copy()
