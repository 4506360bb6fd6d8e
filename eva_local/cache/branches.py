"""Several token rows of one text in one member, which share their past in llama.cpp's cache."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from eva_local.cache.context import as_row, common
from eva_local.llama.model import Model, Run


@dataclass(frozen=True, slots=True)
class Place:
    """A row of tokens in the cache: the first `length` of a sequence."""

    sequence: int
    length: int


class Branches:
    """A tree of token rows, kept in a few sequences of a model.

    Rows that agree up to a place share what the cache holds of it. A row grows in its own
    sequence as long as nobody needs what stands there, else in a copy of it.
    """

    def __init__(self, model: Model, sequences: Sequence[int]) -> None:
        """Use `sequences`, which nobody else uses, of `model`."""
        self._model = model
        # What the cache may hold of each sequence, and how many tokens of it were decoded: an
        # interrupted decode may have stored any part of the rest.
        self._rows: dict[int, array[int]] = {sequence: as_row(()) for sequence in sequences}
        self._decoded = dict.fromkeys(sequences, 0)

    def holds(self, prompt: Sequence[int]) -> int:
        """Return how many leading tokens of a prompt some sequence holds."""
        return max(self._shared(sequence, prompt) for sequence in self._rows)

    @property
    def n_cached(self) -> int:
        """How many tokens the longest row has that was decoded."""
        return max(self._decoded.values())

    def clear(self) -> None:
        """Hold nothing, whatever the cache holds by now."""
        for sequence in self._rows:
            self._empty(sequence)

    def adopt(self, other: Branches) -> None:
        """Hold the longest row that `other`, of the same model, holds, and nothing else."""
        source, length = max(other._decoded.items(), key=lambda item: item[1])
        target = next(iter(self._rows))
        for sequence in self._rows:
            self._clear(sequence)
        self._copy(other, source, target, length)

    def begin(self, prompt: Sequence[int]) -> Place:
        """Forget all but the longest beginning of `prompt` that some sequence holds.

        At least the last token of the prompt is left out, so that its logits can be had.
        """
        shared = {
            sequence: min(self._shared(sequence, prompt), len(prompt) - 1)
            for sequence in self._rows
        }
        kept = max(shared, key=shared.__getitem__)
        for sequence in self._rows:
            if sequence != kept:
                self._clear(sequence)
        self._truncate(kept, shared[kept])
        return Place(kept, shared[kept])

    def reached(self, place: Place) -> bool:
        """Return whether the row at `place` can be gone on from: its past is in the cache."""
        return self._model.holds(place.sequence, place.length)

    def grow(self, place: Place, tokens: Sequence[int], needed: Collection[Place]) -> Run | None:
        """Return the run that puts `tokens` after `place`, whose logits are wanted.

        `needed` are the places that must stay. `place` can be `reached`. None where no sequence
        is free. Call `decoded` after the run was.
        """
        target = place.sequence
        if any(other.sequence == target and other.length > place.length for other in needed):
            taken = {other.sequence for other in needed}
            free = [sequence for sequence in self._rows if sequence not in taken]
            if not free:
                return None
            target = free[0]
            self._copy(self, place.sequence, target, place.length)
        else:
            self._truncate(target, place.length)
        self._rows[target] += as_row(tokens)
        return Run(target, place.length, tokens)

    def decoded(self, run: Run) -> Place:
        """Record that a run from `grow` was decoded; return where its row now is."""
        place = Place(run.sequence, run.start + len(run.tokens))
        self._decoded[run.sequence] = place.length
        return place

    def row(self, place: Place) -> Sequence[int]:
        """Return the tokens of a row."""
        return self._rows[place.sequence][: place.length]

    def _truncate(self, sequence: int, length: int) -> None:
        """Keep the first `length` tokens of a row, which can be gone on from."""
        row = self._rows[sequence]
        if len(row) > length and self._model.remove(sequence, length):
            del row[length:]
        assert len(row) == length
        self._decoded[sequence] = min(self._decoded[sequence], length)

    def _shared(self, sequence: int, prompt: Sequence[int]) -> int:
        shared = min(common(self._rows[sequence], prompt), self._decoded[sequence])
        return shared if self._model.holds(sequence, min(shared, len(prompt) - 1)) else 0

    def _copy(self, other: Branches, source: int, target: int, length: int) -> None:
        if not self._model.copy(source, target, length):
            length = 0
        self._rows[target] = other._rows[source][:length]
        self._decoded[target] = length

    def _clear(self, sequence: int) -> None:
        if self._rows[sequence]:
            self._empty(sequence)

    def _empty(self, sequence: int) -> None:
        self._rows[sequence], self._decoded[sequence] = as_row(()), 0
        self._model.remove(sequence, 0)
