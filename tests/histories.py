"""What texts may do to a cache, at random, with the logits of a fresh context beside each."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from eva_local.llama.llama_model import LlamaModel
from eva_local.llama.model import ALL, Run

# Where a slip would show as a difference of whole units.
CLOSE = 0.1
LENGTHS, LONGEST = (1, 2, 5, 40, 90), 150


class History:
    """A model with several texts, and the rows of tokens that it should hold.

    They grow by one of `lengths`, and begin anew where they are longer than `longest`.
    """

    def __init__(
        self,
        model: LlamaModel,
        fresh: LlamaModel,
        seed: int,
        lengths: Sequence[int] = LENGTHS,
        longest: int = LONGEST,
    ) -> None:
        self.model, self.fresh = model, fresh
        self.lengths, self.longest = lengths, longest
        self.random = random.Random(seed)
        self.rows: dict[int, list[int]] = {
            seq_id: [] for seq_id in range(model.n_sequences * model.n_branches)
        }
        self.refused = self.returned = self.compared = 0

    def tokens(self, count: int) -> list[int]:
        return [self.random.randrange(33, 360) for _ in range(count)]

    def grow(self, seq_id: int, count: int) -> None:
        row = self.rows[seq_id]
        run = Run(seq_id, len(row), self.tokens(count))
        (logits,) = self.model.decode([run])
        row += run.tokens
        assert logits is not None
        self.compare(row, logits.copy())

    def grow_together(self) -> None:
        """Decode a few tokens of several texts in one batch, as answers are."""
        chosen = self.random.sample(sorted(self.rows), k=min(3, len(self.rows)))
        runs = [Run(s, len(self.rows[s]), self.tokens(self.random.randint(1, 3))) for s in chosen]
        found = [None if x is None else x.copy() for x in self.model.decode(runs)]
        for run, logits in zip(runs, found, strict=True):
            self.rows[run.seq_id] += run.tokens
            assert logits is not None
            self.compare(self.rows[run.seq_id], logits)

    def compare(self, row: list[int], logits: np.ndarray) -> None:
        self.fresh.remove(ALL, 0)
        (wanted,) = self.fresh.decode([Run(0, 0, row)])
        assert wanted is not None
        assert np.abs(logits - wanted).max() < CLOSE
        self.compared += 1

    def cut(self, seq_id: int, start: int) -> None:
        """Take tokens back; who cannot goes back to a snapshot or begins anew."""
        kept = self.model.holds(seq_id, start)
        assert self.model.remove(seq_id, start) == kept
        self.refused += kept < start
        self.returned += 0 < kept < start
        del self.rows[seq_id][kept:]

    def copy(self, source: int, target: int, length: int) -> None:
        row = self.rows[source]
        length = len(row) if length < 0 else length
        kept = self.model.holds(source, length)
        assert self.model.copy(source, target, length) == kept
        self.refused += kept < length
        self.rows[target] = row[:kept]

    def room(self, seq_id: int) -> None:
        """Make room in a text: rows that share a cache must fit into that of a text together."""
        n_rows = self.model.n_branches
        text = seq_id // n_rows
        rows = range(text * n_rows, (text + 1) * n_rows)
        if sum(len(self.rows[s]) for s in rows) > self.longest:
            for other in rows:
                self.model.remove(other, 0)
                self.rows[other] = []

    def step(self) -> None:
        seq_id = self.random.choice(sorted(self.rows))
        self.room(seq_id)
        row = self.rows[seq_id]
        self.model.snapshot(seq_id, lasting=self.random.random() < 0.3)
        match self.random.choice(("grow", "grow", "together", "cut", "regenerate", "copy")):
            case "grow":
                self.grow(seq_id, self.random.choice(self.lengths))
            case "together":
                for each in self.rows:
                    self.room(each)
                self.grow_together()
            case "cut":
                self.cut(seq_id, max(0, len(row) - self.random.randint(1, 12)))
            case "regenerate":
                self.cut(seq_id, self.random.randint(0, len(row)))
            case "copy":
                self.copy_some(seq_id)

    def copy_some(self, seq_id: int) -> None:
        n_rows = self.model.n_branches
        if n_rows > 1:
            first = seq_id - seq_id % n_rows
            target = self.random.choice([s for s in range(first, first + n_rows) if s != seq_id])
            length = self.random.choice((-1, self.random.randint(0, len(self.rows[seq_id]))))
            self.copy(seq_id, target, length)
            self.room(seq_id)
        else:
            self.copy(seq_id, self.random.choice([s for s in self.rows if s != seq_id]), -1)
