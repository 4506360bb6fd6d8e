"""Several token rows of one text in one member, which share their past in llama.cpp's cache."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from eva_local.cache.context import as_row, common
from eva_local.llama.model import Model, Run


@dataclass(frozen=True, slots=True)
class Branch:
    """A row of tokens in the cache: the first `length` of a sequence."""

    seq_id: int
    length: int


class Branches:
    """A tree of token rows, kept in a few sequences of a model.

    Rows that agree up to a token share what the cache holds of it. A row grows in its own
    sequence as long as nobody needs what stands there, else in a copy of it.
    """

    def __init__(self, model: Model, seq_ids: Sequence[int]) -> None:
        """Use `seq_ids`, which nobody else uses, of `model`."""
        self._model = model
        # What the cache may hold of each sequence, and how many tokens of it were decoded: an
        # interrupted decode may have stored any part of the rest.
        self._rows: dict[int, array[int]] = {seq_id: as_row(()) for seq_id in seq_ids}
        self._decoded = dict.fromkeys(seq_ids, 0)

    def holds(self, prompt: Sequence[int]) -> int:
        """Return how many leading tokens of a prompt some sequence holds."""
        return max(self._shared(seq_id, prompt) for seq_id in self._rows)

    @property
    def n_cached(self) -> int:
        """How many tokens the longest row has that was decoded."""
        return max(self._decoded.values())

    def clear(self) -> None:
        """Hold nothing, whatever the cache holds by now."""
        for seq_id in self._rows:
            self._empty(seq_id)

    def adopt(self, other: Branches) -> None:
        """Hold the longest row that `other`, of the same model, holds, and nothing else."""
        source, length = max(other._decoded.items(), key=lambda item: item[1])
        target = next(iter(self._rows))
        for seq_id in self._rows:
            self._clear(seq_id)
        self._copy(other, source, target, length)

    def begin(self, prompt: Sequence[int]) -> Branch:
        """Forget all but the longest beginning of `prompt` that some sequence holds.

        At least the last token of the prompt is left out, so that its logits can be had.
        """
        shared = {
            seq_id: min(self._shared(seq_id, prompt), len(prompt) - 1) for seq_id in self._rows
        }
        kept = max(shared, key=shared.__getitem__)
        for seq_id in self._rows:
            if seq_id != kept:
                self._clear(seq_id)
        self._truncate(kept, shared[kept])
        return Branch(kept, shared[kept])

    def reached(self, branch: Branch) -> bool:
        """Return whether the row at `branch` can be gone on from: its past is in the cache."""
        return self._model.holds(branch.seq_id, branch.length)

    def grow(self, branch: Branch, tokens: Sequence[int], needed: Collection[Branch]) -> Run | None:
        """Return the run that puts `tokens` after `branch`, whose logits are wanted.

        `needed` are the branches that must stay. `branch` can be `reached`. None where no sequence
        is free. Call `decoded` after the run was.
        """
        target = branch.seq_id
        if any(other.seq_id == target and other.length > branch.length for other in needed):
            taken = {other.seq_id for other in needed}
            free = [seq_id for seq_id in self._rows if seq_id not in taken]
            if not free:
                return None
            target = free[0]
            self._copy(self, branch.seq_id, target, branch.length)
        else:
            self._truncate(target, branch.length)
        self._rows[target] += as_row(tokens)
        return Run(target, branch.length, tokens)

    def decoded(self, run: Run) -> Branch:
        """Record that a run from `grow` was decoded; return where its row now is."""
        branch = Branch(run.seq_id, run.start + len(run.tokens))
        self._decoded[run.seq_id] = branch.length
        return branch

    def row(self, branch: Branch) -> Sequence[int]:
        """Return the tokens of a row."""
        return self._rows[branch.seq_id][: branch.length]

    def _truncate(self, seq_id: int, length: int) -> None:
        """Keep the first `length` tokens of a row, which can be gone on from."""
        row = self._rows[seq_id]
        if len(row) > length and self._model.remove(seq_id, length):
            del row[length:]
        assert len(row) == length
        self._decoded[seq_id] = min(self._decoded[seq_id], length)

    def _shared(self, seq_id: int, prompt: Sequence[int]) -> int:
        shared = min(common(self._rows[seq_id], prompt), self._decoded[seq_id])
        return shared if self._model.holds(seq_id, min(shared, len(prompt) - 1)) else 0

    def _copy(self, other: Branches, source: int, target: int, length: int) -> None:
        if not self._model.copy(source, target, length):
            length = 0
        self._rows[target] = other._rows[source][:length]
        self._decoded[target] = length

    def _clear(self, seq_id: int) -> None:
        if self._rows[seq_id]:
            self._empty(seq_id)

    def _empty(self, seq_id: int) -> None:
        self._rows[seq_id], self._decoded[seq_id] = as_row(()), 0
        self._model.remove(seq_id, 0)
