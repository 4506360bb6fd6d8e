"""The next byte of a text by one member: the sum over all ways to tokenise what stands there.

The beam holds rows of tokens whose pieces join to the beginning of the text; the rest of the
text, its open bytes, begins the next piece. The probability that the text goes on with a byte
is the sum, over all rows, of the probability of the row times that of the pieces that
begin with the open bytes and this byte. (Phan et al. 2024, "Exact Byte-Level Probabilities from
Tokenized Language Models"; Hayase et al. 2025, "Sampling from Your Language Model One Byte at a
Time".)
"""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from eva_local.cache.branches import Branch
from eva_local.fusion.votes import Floats
from eva_local.llama.model import Logits
from eva_local.llama.tokenizer import Tokenizer
from eva_local.spaces.base import Constraint
from eva_local.spaces.bytes.row import ANY, END, Border, BoundaryPrior, Offer, OpenRow, border_kind
from eva_local.spaces.bytes.trie import ROOT, Trie

# What is kept beside what is decoded: it costs no forward pass, but time on every byte.
_MOST_OPEN = 32
_MOST_WAITING = 16
_NEGLIGIBLE = 1e-9
# A token this likely is followed, even if the tokeniser would not write it there.
_BELIEVED = 0.1
# Longer than nearly every piece: who was right has shown it by then.
_LONGEST_WAIT = 32
# e to this power is still a float.
_MOST_NATS = 700.0


class ByteBeam:
    """All that one member thinks of as the tokens of one text.

    Rows with open bytes cost no forward pass. A border costs one, and is decoded only
    where its share of the whole is at least `threshold`; else it waits, and is taken up when
    the others become so unlikely that its share has grown. `before` is what follows borders in
    other texts, if not what comes along.
    """

    _open: list[OpenRow]
    _waiting: list[Border]
    # What was worked out of them.
    _now: Floats | None
    _shares: list[float] | None

    def __init__(
        self,
        tokenizer: Tokenizer,
        trie: Trie,
        threshold: float,
        before: Mapping[str, Floats] | None = None,
    ) -> None:
        self._before = before
        self._trie = trie
        self._pieces = tokenizer.vocabulary.pieces
        self._end_ids = sorted(tokenizer.vocabulary.end_ids)
        self._may_follow = tokenizer.may_follow
        self._threshold = threshold
        # Weights are told relative to this log-probability, so that they neither vanish nor grow.
        self._scale = 0.0
        self.clear()

    def begin(self, border: Border) -> None:
        """Forget everything but one row that covers all of the text there is."""
        self._open = []
        self._waiting = [border]
        self._scale = border.log_share = border.log_weight
        self._change()

    def clear(self) -> None:
        """Begin a new text."""
        self.text = bytearray()
        self._open, self._waiting = [], []
        self.boundary_prior = BoundaryPrior(self._before)
        # The log-probability of each beginning of the text, as far as it was known.
        self._fates = [0.0]
        self._change()

    def branches(self, but: Border | None = None) -> set[Branch]:
        """Return the rows that are still needed by others than a border."""
        waiting = {border.branch for border in self._waiting if border is not but}
        return {h.branch for h in self._open} | waiting

    def longest(self) -> int:
        """Return how many tokens the longest row has, with those that wait to be decoded."""
        waiting = (border.branch.length + len(border.tokens) for border in self._waiting)
        return max([*waiting, *(row.branch.length for row in self._open)], default=0)

    def unread(self) -> int:
        """Return how many bytes of the text no row covers."""
        rows: list[OpenRow | Border] = [*self._open, *self._waiting]
        return len(self.text) - max((row.covers for row in rows), default=0)

    def weakest(self, seq_ids: Collection[int]) -> int | None:
        """Return the one of `seq_ids` whose rows all together are the least likely."""
        shares = dict.fromkeys(seq_ids, 0.0)
        for row in self._open:
            if row.branch.seq_id in shares:
                shares[row.branch.seq_id] += self._weight(row)
        for border, share in zip(self._waiting, self._waiting_shares(), strict=True):
            if border.branch.seq_id in shares:
                shares[border.branch.seq_id] += share
        return min(shares, key=shares.__getitem__, default=None)

    def likeliest(self) -> OpenRow | None:
        """Return the likeliest row that was decoded."""
        return max(self._open, key=self._weight, default=None)

    def rewrite(self, branch: Branch, kept: int, tokens: Sequence[int]) -> None:
        """Put other tokens with the same bytes after the first `kept` of the row at `branch`."""
        (old,) = [h for h in self._open if h.branch == branch]
        self._open.remove(old)
        shorter = Branch(branch.seq_id, kept)
        self._wait(Border(old.log_weight, shorter, tokens, old.covers))
        self._change()

    def holds(self, border: Border) -> bool:
        """Return whether a border still waits."""
        return border in self._waiting

    def forget(self, seq_id: int) -> None:
        """Give up the rows in a sequence."""
        self._open = [h for h in self._open if h.branch.seq_id != seq_id]
        self._waiting = [b for b in self._waiting if b.branch.seq_id != seq_id]
        self._change()

    @property
    def lost(self) -> bool:
        """Whether no row is left that the text could be."""
        return not self._open and not self._waiting

    def wanted(self) -> list[Border]:
        """Return the borders that must be decoded before the next vote, the likeliest first."""
        if not self._waiting:
            return []
        shares = self._waiting_shares()
        live = sum(map(self._weight, self._open))
        bound = self._threshold * (live + sum(shares))
        ranked = sorted(zip(shares, self._waiting, strict=True), key=lambda pair: -pair[0])
        found = [border for share, border in ranked if share >= bound]
        return found or ([] if live > 0 else [ranked[0][1]])

    def decoded(self, border: Border, branch: Branch, logits: Logits) -> None:
        """Take the logits after a border's row, which is now at `branch`."""
        self._waiting.remove(border)
        self._change()
        entered = OpenRow(border, branch, logits, self._trie, self._end_ids)
        masses = np.zeros(END + 1)
        masses[entered.labels], masses[END] = entered.sums, entered.end
        self.boundary_prior.learn(border.kind, masses)
        for offset in range(border.covers, len(self.text)):
            if not self._follow(entered, self.text[offset], offset + 1):
                return
        if entered.node != ROOT:
            entered.look()
        self._open.append(entered)

    def append(self, byte: int) -> None:
        """Go on with a byte."""
        masses = self.next()
        inside = self._inside()
        # What waits goes on as well as what is known does, or at least as is usual.
        fate = math.log(max(masses[byte], self.boundary_prior.expected(inside)[byte]))
        self.boundary_prior.learn(inside, masses)
        self._fates.append(self._fates[-1] + fate)
        self._change()
        n_before, n_bytes = len(self._waiting), len(self.text)
        for border in self._waiting:
            border.log_share += fate if border.covers < n_bytes else self._first(border, byte)
        self.text.append(byte)
        self._open = [h for h in self._open if self._follow(h, byte, len(self.text))]
        for row in self._open:
            row.look()
        here = self._waiting[n_before:]
        if self._threshold and len(here) > 1:
            self._waiting[n_before:] = here = [_merged(here)]
        weights = [self._weight(h) for h in self._open]
        shares = [self._share(border) for border in self._waiting]
        whole = sum(weights) + sum(shares[n_before:])
        for border, share in zip(here, shares[n_before:], strict=True):
            border.kind = border_kind(byte, likely=share >= whole / 2)
        self._prune(weights, shares)

    def settle(self) -> None:
        """Keep only the rows that end where the text ends: a piece was chosen that ends there."""
        if here := [each for each in self._waiting if each.covers == len(self.text)]:
            self._open, self._waiting = [], here
            self._change()

    def next(self) -> Floats:
        """Return (257,): the probability of each next byte, and of END; they sum to 1."""
        if self._now is None:
            self._now = self._summed()
        return self._now

    def _summed(self) -> Floats:
        masses = np.zeros(END + 1)
        for h in self._open:
            weight = math.exp(h.log_weight - self._scale)
            # The labels of one node are all different.
            masses[h.labels] += weight * h.sums
            if h.node == ROOT:
                masses[END] += weight * h.end
        # Most of what waits is of one kind.
        kinds: dict[str, float] = {}
        inside = self._inside()
        n_bytes = len(self.text)
        for border, share in zip(self._waiting, self._waiting_shares(), strict=True):
            kind = border.kind if border.covers == n_bytes else inside
            kinds[kind] = kinds.get(kind, 0.0) + share
        for kind, share in kinds.items():
            masses += share * self.boundary_prior.expected(kind)
        total = masses.sum()
        return masses / total if total > 0 else masses

    def _inside(self) -> str:
        return border_kind(self.text[-1]) if self.text else ANY

    def pieces(self, count: int) -> Offer:
        """Return how the likeliest row may go on, as `OpenRow.pieces`: at most `count` and END."""
        likeliest = max(self._open, key=self._weight)
        return likeliest.pieces(count, self._pieces, len(self.text) - likeliest.covers)

    def pieces_within(self, count: int, grammar: Constraint) -> Offer:
        """Return how the likeliest row may go on as a grammar allows; see `OpenRow`."""
        return max(self._open, key=self._weight).pieces_within(count, grammar)

    def support(self, pieces: Sequence[bytes], shares: Floats, ends: Floats) -> Floats:
        """Return (m,): the mass that all rows give to each of `pieces`, as `OpenRow.support`."""
        masses = np.zeros(len(pieces))
        for h in self._open:
            begun = bytes(self.text[h.covers :])
            masses += math.exp(h.log_weight - self._scale) * h.support(begun, pieces, shares, ends)
        return masses

    def _follow(self, row: OpenRow, byte: int, covers: int) -> bool:
        node = self._trie.child(row.node, byte)
        if node < 0:
            return False
        token, mass = row.ending(node)
        if mass > 0 and self._is_likely(row.last, token, mass):
            log_weight = row.log_weight + math.log(mass)
            self._wait(Border(log_weight, row.branch, [token], covers))
        return row.move(node)

    def _wait(self, border: Border) -> None:
        border.log_share = border.log_weight
        if border.covers < len(self.text):
            border.log_share += self._first(border, self.text[border.covers])
            border.log_share += self._fates[-1] - self._fates[border.covers + 1]
        self._waiting.append(border)

    def _first(self, border: Border, byte: int) -> float:
        """Return the log of how likely it is taken to be that `byte` comes after a border."""
        return math.log(self.boundary_prior.expected(border.kind)[byte])

    def _is_likely(self, last: int | None, token: int, mass: float) -> bool:
        """Return whether to follow a row that ends in these two tokens.

        What the tokeniser would not write, a model gives some mass all the same, to each a
        little. All together that is most of the rows that would be decoded.
        """
        if not self._threshold or last is None or mass >= _BELIEVED:
            return True
        return self._may_follow(last, token)

    def _weight(self, row: OpenRow) -> float:
        return math.exp(row.log_weight - self._scale) * row.left

    def _waiting_shares(self) -> list[float]:
        if self._shares is None:
            self._shares = [self._share(border) for border in self._waiting]
        return self._shares

    def _change(self) -> None:
        self._now = self._shares = None

    def _share(self, border: Border) -> float:
        """Return what a border that waits is thought to weigh by now.

        Its first byte was as likely as is usual; from then on it shares the fate of the text.
        """
        return math.exp(min(border.log_share - self._scale, _MOST_NATS))

    def _prune(self, weights: Sequence[float], shares: Sequence[float]) -> None:
        if self.lost:
            return
        best = max([*weights, *shares])
        if best > 0:
            self._scale += math.log(best)
        if not self._threshold:
            return
        bound = best * _NEGLIGIBLE
        self._open = [self._open[i] for i in _heaviest(weights, bound, _MOST_OPEN)]
        since = len(self.text) - _LONGEST_WAIT
        kept = _heaviest(shares, bound, _MOST_WAITING)
        kept = [i for i in kept if self._waiting[i].covers >= since]
        self._waiting = [self._waiting[i] for i in kept]
        self._shares = [shares[i] / best for i in kept]


def _merged(borders: Sequence[Border]) -> Border:
    """Return the likeliest of rows that end at one byte, which stands for all of them.

    They stand for the same bytes, so that what follows is nearly the same, and each of them would
    cost a forward pass for every token from here on.
    """
    best = max(borders, key=lambda border: border.log_weight)
    logs = np.asarray([border.log_weight for border in borders])
    best.log_share = best.log_weight = float(np.logaddexp.reduce(logs))
    return best


def _heaviest(weights: Sequence[float], bound: float, most: int) -> list[int]:
    """Return the indices of the highest weights, ascending, as far as they are over `bound`."""
    kept = [index for index, weight in enumerate(weights) if weight > bound]
    if len(kept) > most:
        kept = sorted(sorted(kept, key=lambda index: -weights[index])[:most])
    return kept
