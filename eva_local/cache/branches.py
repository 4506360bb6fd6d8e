"""Several token rows of one text in one member, which share their past in llama.cpp's cache."""

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from eva_local.cache.context import PromptLikelihood, as_row, common, reusable
from eva_local.llama.memory import Snapshot, retained
from eva_local.llama.model import Model, Run


@dataclass(frozen=True, slots=True)
class Branch:
    """A row of tokens in the cache: the first `length` of a sequence."""

    seq_id: int
    length: int


class Branches:
    """A tree of token rows, kept in a few sequences of a model.

    Rows that agree up to a token share what the cache holds of it. A row grows in its own
    sequence as long as nobody needs what stands there, else in a copy of it. Where tokens cannot
    be taken back, that is whenever somebody needs the row itself; snapshots are copies, too, in
    which nobody goes on. Nobody else uses `seq_ids` of `model`.
    """

    def __init__(self, model: Model, seq_ids: Sequence[int]) -> None:
        self._model = model
        self._snapshots: list[Snapshot[int]] = []
        # What the cache may hold of each sequence, and how many tokens of it were decoded: an
        # interrupted decode may have stored any part of the rest.
        self._rows: dict[int, array[int]] = {seq_id: as_row(()) for seq_id in seq_ids}
        self._decoded = dict.fromkeys(seq_ids, 0)
        #: How likely a part of the prompt was.
        self.likelihood = PromptLikelihood(model.vocabulary.pieces)

    def holds(self, prompt: Sequence[int]) -> int:
        """Return how many leading tokens of a prompt some sequence holds."""
        return max(
            reusable(self._model, seq_id, self._same(seq_id, prompt), prompt)
            for seq_id in self._rows
        )

    @property
    def n_cached(self) -> int:
        """How many tokens the longest row has that was decoded."""
        return max(self._decoded.values())

    def clear(self) -> None:
        """Hold nothing, whatever the cache holds by now."""
        self._snapshots = []
        for seq_id in self._rows:
            self._clear(seq_id)
        self.likelihood.begin((), 0, 0)

    def trade(self, other: "Branches") -> None:
        """Stay: all texts share one cache, in which no place is better than another."""

    def adopt(self, other: "Branches") -> None:
        """Hold the longest row and the snapshots of `other`, of the same model; nothing else."""
        for seq_id in self._rows:
            self._clear(seq_id)
        longest = max(other._decoded, key=other._decoded.__getitem__)
        sources = dict.fromkeys([longest, *other.saved])
        homes = dict(zip(sources, self._rows, strict=False))
        for source, target in homes.items():
            self._copy(other, source, target, other._decoded[source])
        self._snapshots = [replace(each, state=homes[each.state]) for each in other._snapshots]
        self.likelihood.adopt(other.likelihood)

    def begin(self, prompt: Sequence[int]) -> Branch:
        """Forget all but the longest beginning of `prompt` that some sequence holds.

        At least the last token of the prompt is left out, so that its logits can be had.
        Snapshots of such beginnings stay.
        """
        prompt = as_row(prompt)
        kept, length = self._longest(prompt, len(prompt) - 1)
        self._snapshots = [
            each for each in self._snapshots if self._same(each.state, prompt[:-1]) == each.length
        ]
        for seq_id in self._rows.keys() - {kept, *self.saved}:
            if self._rows[seq_id]:
                self._clear(seq_id)
        self._truncate(kept, length)
        return Branch(kept, length)

    @property
    def saved(self) -> set[int]:
        """The sequences that are snapshots."""
        return {each.state for each in self._snapshots}

    def save(self, branch: Branch, *, lasting: bool) -> None:
        """Keep the row at `branch`, where it may be gone then; see `retained` for how long."""
        row = self._rows[branch.seq_id]
        known = branch.length != len(row) or any(self._rows[s] == row for s in self.saved)
        if self._model.n_snapshots and not known:
            new = Snapshot(branch.length, lasting, branch.seq_id)
            self._snapshots = retained([*self._snapshots, new], self._model.n_snapshots)

    def behind(self, branch: Branch) -> int:
        """Return how many tokens of a row must be decoded again before it goes on."""
        return branch.length - self._source(branch)[1]

    def grow(self, branch: Branch, tokens: Sequence[int], needed: Collection[Branch]) -> Run | None:
        """Return the run that puts `tokens` after `branch`, whose logits are wanted.

        Before them go those of its row that the cache no longer holds. `needed` are the branches
        that must stay. None where no sequence is free. Call `decoded` after the run was.
        """
        source, kept = self._source(branch)
        tokens = [*self._rows[branch.seq_id][kept : branch.length], *tokens]
        target, saved = source, self.saved
        stays = kept if self._model.can_roll_back else kept - 1
        if source in saved or any(b.seq_id == source and b.length > stays for b in needed):
            taken = saved | {other.seq_id for other in needed}
            free = [seq_id for seq_id in self._rows if seq_id not in taken]
            if not free:
                return None
            target = free[0]
            self._copy(self, source, target, kept)
        else:
            self._truncate(target, kept)
        self._rows[target] += as_row(tokens)
        return Run(target, kept, tokens)

    def decoded(self, run: Run) -> Branch:
        """Record that a run from `grow` was decoded; return where its row now is."""
        branch = Branch(run.seq_id, run.start + len(run.tokens))
        self._decoded[run.seq_id] = branch.length
        return branch

    def ahead(self, branch: Branch, tokens: Sequence[int]) -> Branch | None:
        """Return where `tokens` behind a row end, if they were decoded behind it already."""
        end = branch.length + len(tokens)
        row = self._rows[branch.seq_id][branch.length : end]
        decoded = end <= self._decoded[branch.seq_id] and row == as_row(tokens)
        return Branch(branch.seq_id, end) if decoded else None

    def row(self, branch: Branch) -> Sequence[int]:
        """Return the tokens of a row."""
        return self._rows[branch.seq_id][: branch.length]

    def _truncate(self, seq_id: int, length: int) -> None:
        row = self._rows[seq_id]
        if len(row) > length:
            del row[self._model.remove(seq_id, length) :]
        assert len(row) == length
        self._decoded[seq_id] = min(self._decoded[seq_id], length)

    def _same(self, seq_id: int, row: Sequence[int]) -> int:
        return min(common(self._rows[seq_id], row), self._decoded[seq_id])

    def _source(self, branch: Branch) -> tuple[int, int]:
        """Return the sequence that holds most of the row at `branch`, and how much."""
        if self._model.holds(branch.seq_id, branch.length) == branch.length:
            return branch.seq_id, branch.length
        return self._longest(self.row(branch), branch.length)

    def _longest(self, row: Sequence[int], most: int) -> tuple[int, int]:
        """Return the sequence that holds most, at most `most` tokens, of a row, and how many."""
        found = {
            seq_id: self._model.holds(seq_id, min(self._same(seq_id, row), most))
            for seq_id in self._rows
        }
        return max(found.items(), key=lambda item: item[1])

    def _copy(self, other: "Branches", source: int, target: int, length: int) -> None:
        length = self._model.copy(source, target, length)
        self._rows[target] = other._rows[source][:length]
        self._decoded[target] = length

    def _clear(self, seq_id: int) -> None:
        self._rows[seq_id], self._decoded[seq_id] = as_row(()), 0
        self._model.remove(seq_id, 0)
