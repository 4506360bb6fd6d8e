"""Runs of several texts through one model, so that what cannot be decoded hinders no other."""

from collections.abc import Sequence

from eva_local.errors import ModelError, RoomError
from eva_local.llama.model import Logits, Model, Run

# The logits after a run, if they are wanted, or what went wrong.
Outcome = Logits | ModelError | None


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
