"""A member whose decoding is timed, and can be done once more to time it alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from eva_local.llama.model import ALL, Logits, Model, Run

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Decoding:
    """One call of llama.cpp: when it began and ended, in seconds, and how many tokens it took."""

    began: float
    ended: float
    n_tokens: int


class Meter:
    """A model, as the engine sees one, that notes when llama.cpp decodes for it.

    Its sequences from 0 on are those of the model from `first` on, so that two ensembles can
    have a part of one model each. `rows` are the tokens that the cache holds of each sequence,
    `borders` the places in them where a batch ended.
    """

    def __init__(
        self,
        model: Model,
        n_sequences: int,
        *,
        first: int = 0,
        clock: Clock = time.perf_counter,
    ) -> None:
        """Use `n_sequences` of `model` from `first` on; `clock` tells seconds."""
        self._model = model
        self._seq_ids = range(first, first + n_sequences)
        self._clock = clock
        self.path = model.path
        self.vocabulary = model.vocabulary
        self.tokenizer = model.tokenizer
        self.chat_template = model.chat_template
        self.n_ctx = model.n_ctx
        self.n_batch = model.n_batch
        self.can_roll_back = model.can_roll_back
        self.rows: dict[int, list[int]] = {}
        self.borders: dict[int, list[int]] = {}
        #: What was decoded since `reset`.
        self.decodings: list[Decoding] = []
        self._batches: list[Sequence[Run]] = []
        self._can_repeat = model.can_roll_back

    def reset(self) -> None:
        """Forget what was noted."""
        self.decodings = []
        self._batches = []
        self._can_repeat = self.can_roll_back

    @property
    def inside(self) -> float:
        """Return the seconds that llama.cpp decoded since `reset`."""
        return sum(each.ended - each.began for each in self.decodings)

    @property
    def n_tokens(self) -> int:
        """Return the tokens that were decoded since `reset`."""
        return sum(each.n_tokens for each in self.decodings)

    @property
    def n_rows(self) -> int:
        """Return how many sequences were decoded since `reset`."""
        return len({run.seq_id for batch in self._batches for run in batch})

    def again(self) -> float | None:
        """Decode once more what was decoded since `reset`, alone; return the seconds.

        The cache ends up as it was. None where that cannot be: tokens cannot be taken back, or
        were since then.
        """
        if not self._can_repeat:
            return None
        times = [self._repeat(batch) for batch in self._batches]
        known = [seconds for seconds in times if seconds is not None]
        return sum(known) if len(known) == len(times) else None

    def single(self) -> float | None:
        """Decode the last token of every sequence that was decoded since `reset`, alone.

        Return the seconds; see `again`.
        """
        if not self._can_repeat:
            return None
        last = {run.seq_id: run for batch in self._batches for run in batch}
        ends = [
            Run(run.seq_id, run.start + len(run.tokens) - 1, run.tokens[-1:])
            for run in last.values()
        ]
        return self._repeat(ends) if ends else 0.0

    def _repeat(self, runs: Sequence[Run]) -> float | None:
        if not all(self._model.remove(run.seq_id, run.start) for run in runs):
            return None
        began = self._clock()
        self._model.decode(runs)
        return self._clock() - began

    def decode(self, runs: Sequence[Run]) -> list[Logits | None]:
        """Decode all runs together; see `Model.decode`."""
        runs = self._shifted(runs)
        began = self._clock()
        logits = self._model.decode(runs)
        self._note(began, runs)
        return logits

    def decode_every(self, run: Run) -> Iterator[Logits]:
        """Decode one run; see `Model.decode_every`. Again it is decoded without those logits."""
        (run,) = self._shifted([run])
        blocks = self._model.decode_every(run)
        done = 0
        while True:
            began = self._clock()
            block = next(blocks, None)
            if block is None:
                return
            tokens = run.tokens[done : done + len(block)]
            self._note(began, [replace(run, start=run.start + done, tokens=tokens)])
            done += len(block)
            yield block

    def holds(self, seq_id: int, start: int) -> bool:
        """Return whether a sequence can be gone on from `start`; see `Model.holds`."""
        return self._model.holds(self._seq_ids[seq_id], start)

    def remove(self, seq_id: int, start: int) -> bool:
        """Forget positions from `start` on, of one sequence or of all that are the meter's."""
        self._can_repeat &= not self._batches
        seq_ids = self._seq_ids if seq_id == ALL else [self._seq_ids[seq_id]]
        for each in seq_ids:
            if not self._model.remove(each, start):
                return False
            self._keep(each, start, ())
        return True

    def copy(self, source: int, target: int, length: int = -1) -> bool:
        """Let `target` begin as a copy of `source`; see `Model.copy`."""
        self._can_repeat &= not self._batches
        if not self._model.copy(self._seq_ids[source], self._seq_ids[target], length):
            self.rows[target], self.borders[target] = [], []
            return False
        row = self.rows.get(source, [])
        kept = row[:length] if length >= 0 else list(row)
        self.rows[target] = kept
        self.borders[target] = [end for end in self.borders.get(source, []) if end <= len(kept)]
        return True

    def close(self) -> None:
        """Leave the model open: it is its owner's."""

    def _shifted(self, runs: Sequence[Run]) -> Sequence[Run]:
        if not self._seq_ids.start:
            return runs
        return [replace(run, seq_id=self._seq_ids[run.seq_id]) for run in runs]

    def _note(self, began: float, runs: Sequence[Run]) -> None:
        ended = self._clock()
        self.decodings.append(Decoding(began, ended, sum(len(run.tokens) for run in runs)))
        self._batches.append(runs)
        for run in runs:
            self._keep(run.seq_id, run.start, run.tokens)

    def _keep(self, seq_id: int, start: int, tokens: Sequence[int]) -> None:
        """Keep what the cache holds of a sequence before `start`, and put tokens there."""
        place = seq_id - self._seq_ids.start
        row = self.rows.setdefault(place, [])
        row[start:] = tokens
        borders = self.borders.setdefault(place, [])
        while borders and borders[-1] > start:
            borders.pop()
        borders.append(len(row))


def busy(meters: Sequence[Meter]) -> float:
    """Return the seconds in which some member decoded: what overlaps counts once."""
    spans = sorted((each.began, each.ended) for meter in meters for each in meter.decodings)
    total, until = 0.0, float("-inf")
    for began, ended in spans:
        total += max(ended - max(began, until), 0.0)
        until = max(until, ended)
    return total
