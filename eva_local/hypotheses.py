"""The next byte of a text by one member: the sum over all ways to tokenise what stands there.

A hypothesis is a row of tokens whose pieces join to the beginning of the text; the rest of the
text, its open bytes, begins the next piece. The probability that the text goes on with a byte
is the sum, over all hypotheses, of the probability of the row times that of the pieces that
begin with the open bytes and this byte. (Phan et al. 2024, "Exact Byte-Level Probabilities from
Tokenized Language Models"; Hayase et al. 2025, "Sampling from Your Language Model One Byte at a
Time".)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from eva_local.branches import Place
from eva_local.customs import ANY, END, Customs, border_kind, found_before, inside_kind
from eva_local.fusion import Floats, highest
from eva_local.model import Logits
from eva_local.tokenizer import Tokenizer
from eva_local.trie import ROOT, Trie

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

T = TypeVar("T")


class Outlook:
    """What a member expects after a row of tokens.

    `masses: (n,)` are the probabilities of its speakable tokens in the order of the trie, `end`
    that of all END ids together; they sum to 1. Tokens that stand for nothing have none.
    """

    __slots__ = ("end", "masses")

    def __init__(self, logits: Logits, trie: Trie, end_ids: Sequence[int]) -> None:
        """Take the softmax of `logits: (n_vocab,)` over what can be said."""
        masses = logits.take(trie.token_ids).astype(np.float64)
        ends = logits.take(end_ids).astype(np.float64)
        highest = max(masses.max(), ends.max(initial=-np.inf))
        masses -= highest
        np.exp(masses, out=masses)
        end = float(np.exp(ends - highest).sum())
        total = masses.sum() + end
        masses /= total
        self.masses: Floats = masses
        self.end = end / total


@dataclass(slots=True, eq=False)
class Border:
    """A hypothesis without open bytes that was not decoded yet.

    Its row is that at `place` and then `tokens`; it covers the first `covers` bytes of the
    text, and `log_weight` is the log-probability of the row, in nats.
    """

    log_weight: float
    place: Place
    tokens: Sequence[int]
    covers: int
    #: Of what kind it is, as far as that tells how it goes on.
    kind: str = ANY


@dataclass(slots=True, eq=False)
class _Open:
    """A hypothesis whose outlook is known; its open bytes led to `node`."""

    log_weight: float
    place: Place
    covers: int
    masses: Floats
    offset: int
    end: float
    #: The last token of the row, where it is one of the text's.
    last: int | None = None
    node: int = ROOT
    labels: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    sums: Floats = field(default_factory=lambda: np.empty(0))
    #: The probability of all that may follow, given the row.
    left: float = 1.0


class Hypotheses:
    """All that one member thinks of as the tokens of one text.

    Hypotheses with open bytes cost no forward pass. A border costs one, and is decoded only
    where its share of the whole is at least `threshold`; else it waits, and is taken up when
    the others become so unlikely that its share has grown.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        trie: Trie,
        threshold: float,
        before: Mapping[str, Floats] | None = None,
    ) -> None:
        """Begin without a text; `trie` is that of the tokeniser's vocabulary.

        `before` is what follows borders in other texts, if not what comes along.
        """
        self._before = found_before() if before is None else before
        self._trie = trie
        self._pieces = tokenizer.vocabulary.pieces
        self._end_ids = sorted(tokenizer.vocabulary.end_ids)
        self._may_follow = tokenizer.may_follow
        self._threshold = threshold
        self._open: list[_Open] = []
        self._waiting: list[Border] = []
        self.text = bytearray()
        # Weights are told relative to this log-probability, so that they neither vanish nor grow.
        self._scale = 0.0
        # The log-probability of each beginning of the text, as far as it was known.
        self._fates = [0.0]
        self._now: Floats | None = None
        self.customs = Customs(self._before)

    def begin(self, border: Border) -> None:
        """Forget everything but one row that covers all of the text there is."""
        self._open = []
        self._waiting = [border]
        self._scale = border.log_weight
        self._now = None

    def clear(self) -> None:
        """Begin a new text."""
        self.text.clear()
        self._open, self._waiting = [], []
        self.customs = Customs(self._before)
        self._fates = [0.0]
        self._now = None

    @property
    def places(self) -> set[Place]:
        """The rows that are still needed."""
        return {h.place for h in self._open} | {b.place for b in self._waiting}

    def weakest(self, sequences: Collection[int]) -> int | None:
        """Return the one of `sequences` whose rows all together are the least likely."""
        shares = dict.fromkeys(sequences, 0.0)
        for hypothesis in self._open:
            if hypothesis.place.sequence in shares:
                shares[hypothesis.place.sequence] += self._weight(hypothesis)
        for border in self._waiting:
            if border.place.sequence in shares:
                shares[border.place.sequence] += self._share(border)
        return min(shares, key=shares.__getitem__, default=None)

    def leading(self) -> tuple[Place, int] | None:
        """Return the likeliest row that was decoded, and how many bytes it covers."""
        lead = max(self._open, key=self._weight, default=None)
        return None if lead is None else (lead.place, lead.covers)

    def rewrite(self, place: Place, kept: int, tokens: Sequence[int]) -> None:
        """Put other tokens with the same bytes after the first `kept` of the row at `place`."""
        (old,) = [h for h in self._open if h.place == place]
        self._open.remove(old)
        shorter = Place(place.sequence, kept)
        self._waiting.append(Border(old.log_weight, shorter, tokens, old.covers))
        self._now = None

    def holds(self, border: Border) -> bool:
        """Return whether a border still waits."""
        return border in self._waiting

    def forget(self, sequence: int) -> None:
        """Give up the rows in a sequence."""
        self._open = [h for h in self._open if h.place.sequence != sequence]
        self._waiting = [b for b in self._waiting if b.place.sequence != sequence]

    @property
    def lost(self) -> bool:
        """Whether no row is left that the text could be."""
        return not self._open and not self._waiting

    def wanted(self) -> list[Border]:
        """Return the borders that must be decoded before the next vote, the likeliest first."""
        if not self._waiting:
            return []
        shares = [self._share(border) for border in self._waiting]
        live = self._live()
        bound = self._threshold * (live + sum(shares))
        ranked = sorted(zip(shares, self._waiting, strict=True), key=lambda pair: -pair[0])
        found = [border for share, border in ranked if share >= bound]
        return found or ([] if live > 0 else [ranked[0][1]])

    def decoded(self, border: Border, place: Place, logits: Logits) -> None:
        """Take the logits after a border's row, which is now at `place`."""
        self._waiting.remove(border)
        self._now = None
        outlook = Outlook(logits, self._trie, self._end_ids)
        masses = outlook.masses
        last = border.tokens[-1] if border.covers else None
        entered = _Open(border.log_weight, place, border.covers, masses, 0, outlook.end, last)
        self._look(entered)
        self._learn(border.kind, entered)
        for offset in range(border.covers, len(self.text)):
            if not self._follow(entered, self.text[offset], offset + 1):
                return
        if entered.node != ROOT:
            self._look(entered)
        self._open.append(entered)

    def append(self, byte: int) -> None:
        """Go on with a byte."""
        masses = self.next()
        inside = self._inside()
        # What waits goes on as well as what is known does, or at least as is usual.
        fate = max(masses[byte], self.customs.expected(inside)[byte])
        self.customs.learn(inside, masses)
        self._fates.append(self._fates[-1] + math.log(fate))
        self._now = None
        self.text.append(byte)
        kept = [h for h in self._open if self._follow(h, byte, len(self.text))]
        for hypothesis in kept:
            self._look(hypothesis)
        self._open = kept
        if self._threshold:
            self._merge()
        here = self._here()
        whole = self._live() + sum(map(self._share, here))
        for border in here:
            border.kind = border_kind(byte, likely=self._share(border) >= whole / 2)
        self._prune()

    def _merge(self) -> None:
        """Let the likeliest of the rows that end here stand for all of them.

        They stand for the same bytes, so that what follows is nearly the same, and each of
        them would cost a forward pass for every token from here on.
        """
        here = self._here()
        if len(here) < 2:
            return
        best = max(here, key=lambda border: border.log_weight)
        logs = np.asarray([border.log_weight for border in here])
        best.log_weight = float(np.logaddexp.reduce(logs))
        self._waiting = [b for b in self._waiting if b is best or b.covers < len(self.text)]

    def settle(self) -> None:
        """Keep only the rows that end where the text ends: a piece was chosen that ends there."""
        here = self._here()
        if here:
            self._open, self._waiting, self._now = [], here, None

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
        for border in self._waiting:
            kind = border.kind if border.covers == len(self.text) else self._inside()
            masses += self._share(border) * self.customs.expected(kind)
        total = masses.sum()
        return masses / total if total > 0 else masses

    def _inside(self) -> str:
        """Return the kind of a place inside a piece, where the text ends."""
        return inside_kind(self.text[-1]) if self.text else ANY

    def _here(self) -> list[Border]:
        """Return the borders that are where the text ends."""
        return [border for border in self._waiting if border.covers == len(self.text)]

    def pieces(self, count: int) -> tuple[list[bytes], Floats, Floats]:
        """Return the likeliest pieces (m,) after the likeliest row, at most `count` and END.

        With them goes how likely each is, (m,), and the share of the rows that begin with its
        bytes which end there, (m,). Of a piece that was begun, the rest is told. END is last,
        without bytes, and is there at a border only.
        """
        lead = max(self._open, key=self._weight)
        low = int(self._trie.low[lead.node]) - lead.offset
        high = int(self._trie.high[lead.node]) - lead.offset
        low += int(self._trie.exact[lead.node])
        masses = lead.masses[low:high]
        count = min(count, len(masses))
        best = highest(masses, count).tolist() if count else []
        begun = len(self.text) - lead.covers
        token_ids = self._trie.token_ids
        # Several ids may have the same bytes: a piece is named once.
        found = sorted({self._pieces[token_ids[lead.offset + low + i]][begun:] for i in best})
        shares, ends = [], []
        for piece in found:
            node = self._down(lead.node, piece)
            start = int(self._trie.low[node]) - lead.offset
            under = float(lead.masses[start : int(self._trie.high[node]) - lead.offset].sum())
            exact = float(lead.masses[start : start + int(self._trie.exact[node])].sum())
            shares.append(exact / lead.left)
            ends.append(exact / under if under > 0 else 0.0)
        if lead.node == ROOT:
            found.append(b"")
            shares.append(lead.end / lead.left)
            ends.append(1.0)
        return found, np.asarray(shares), np.asarray(ends)

    def support(self, pieces: Sequence[bytes], shares: Floats, ends: Floats) -> Floats:
        """Return (m,): the mass that all rows give to each of `pieces`, END without bytes.

        That is the mass of the tokens that begin with a piece, times `ends: (m,)`, how surely it
        is whole and not the beginning of a longer one. Where no token begins with a piece, the
        member would write it in several: the mass of the first of them is split among all
        pieces that it begins so, in proportion to `shares: (m,)`.
        """
        places = {piece: place for place, piece in enumerate(pieces)}
        masses = np.zeros(len(pieces))
        for h in self._open:
            weight = math.exp(h.log_weight - self._scale)
            firsts: dict[bytes, list[int]] = {}
            for place, piece in enumerate(pieces):
                if not piece:
                    masses[place] += weight * h.end if h.node == ROOT else 0.0
                    continue
                node, first = self._walk(h.node, piece)
                if node >= 0:
                    masses[place] += weight * self._under(h, node) * ends[place]
                elif first:
                    firsts.setdefault(first, []).append(place)
            for first, begun in firsts.items():
                mass = weight * self._exactly(h, first)
                if first in places:
                    masses[places[first]] -= mass * ends[places[first]]
                    begun.append(places[first])
                whole = shares[begun].sum()
                masses[begun] += mass * shares[begun] / whole if whole > 0 else mass / len(begun)
        return masses

    def _walk(self, node: int, piece: bytes) -> tuple[int, bytes]:
        """Return the node of a piece, or -1 and the longest token that the piece begins with."""
        first = b""
        for count, byte in enumerate(piece, start=1):
            node = self._trie.child(node, byte)
            if node < 0:
                break
            if self._trie.exact[node]:
                first = piece[:count]
        return node, first

    def _under(self, hypothesis: _Open, node: int) -> float:
        h = hypothesis
        low, high = int(self._trie.low[node]) - h.offset, int(self._trie.high[node]) - h.offset
        return float(h.masses[low:high].sum())

    def _exactly(self, hypothesis: _Open, piece: bytes) -> float:
        h, node = hypothesis, self._down(hypothesis.node, piece)
        low = int(self._trie.low[node]) - h.offset
        return float(h.masses[low : low + int(self._trie.exact[node])].sum())

    def _down(self, node: int, piece: bytes) -> int:
        for byte in piece:
            node = self._trie.child(node, byte)
        return node

    def border_share(self) -> float:
        """Return the share of the rows that end exactly where the text ends."""
        here = sum(map(self._share, self._here()))
        live = self._live()
        rooted = sum(self._weight(h) for h in self._open if h.node == ROOT)
        whole = live + here
        return (here + rooted) / whole if whole > 0 else 1.0

    def _follow(self, hypothesis: _Open, byte: int, covers: int) -> bool:
        """Move a hypothesis on by a byte; what ends there becomes a border of its own."""
        trie, h = self._trie, hypothesis
        node = trie.child(h.node, byte)
        if node < 0:
            return False
        low = int(trie.low[node]) - h.offset
        high = int(trie.high[node]) - h.offset
        if exact := int(trie.exact[node]):
            ended = h.masses[low : low + exact]
            mass = float(ended.sum())
            # Several ids may have the same bytes: their mass is one, the likelier stands.
            token = int(trie.token_ids[h.offset + low + int(ended.argmax())])
            if mass > 0 and self._is_likely(h.last, token, mass):
                log_weight = h.log_weight + math.log(mass)
                self._waiting.append(Border(log_weight, h.place, [token], covers))
        if trie.is_leaf(node):
            return False
        if h.node == ROOT:
            # Most of the vocabulary is out of reach from here on.
            h.masses = h.masses[low:high].copy()
            h.offset += low
        h.node = node
        return True

    def _is_likely(self, last: int | None, token: int, mass: float) -> bool:
        """Return whether to follow a row that ends in these two tokens.

        What the tokeniser would not write, a model gives some mass all the same, to each a
        little. All together that is most of the rows that would be decoded.
        """
        if not self._threshold or last is None or mass >= _BELIEVED:
            return True
        return self._may_follow(last, token)

    def _learn(self, kind: str, hypothesis: _Open) -> None:
        """Learn how a border of a kind goes on, from one that was just decoded."""
        masses = np.zeros(END + 1)
        masses[hypothesis.labels] = hypothesis.sums
        masses[END] = hypothesis.end
        self.customs.learn(kind, masses)

    def _look(self, hypothesis: _Open) -> None:
        h = hypothesis
        h.labels, h.sums = self._trie.going_on(h.node, h.masses, h.offset)
        h.left = float(h.sums.sum()) + (h.end if h.node == ROOT else 0.0)

    def _weight(self, hypothesis: _Open) -> float:
        return math.exp(hypothesis.log_weight - self._scale) * hypothesis.left

    def _live(self) -> float:
        return sum(map(self._weight, self._open))

    def _share(self, border: Border) -> float:
        """Return what a border that waits is thought to weigh by now.

        Its first byte was as likely as is usual; from then on it shares the fate of the text.
        """
        log_weight = border.log_weight
        if border.covers < len(self.text):
            byte = self.text[border.covers]
            log_weight += math.log(self.customs.expected(border.kind)[byte])
            log_weight += self._fates[-1] - self._fates[border.covers + 1]
        return math.exp(min(log_weight - self._scale, _MOST_NATS))

    def _prune(self) -> None:
        """Forget what is negligible, and take the scale from what is left."""
        if self.lost:
            return
        weights = [self._weight(h) for h in self._open]
        shares = [self._share(border) for border in self._waiting]
        best = max([*weights, *shares])
        if best > 0:
            self._scale += math.log(best)
        if not self._threshold:
            return
        bound = best * _NEGLIGIBLE
        self._open = _best(self._open, weights, bound, _MOST_OPEN)
        waiting = _best(self._waiting, shares, bound, _MOST_WAITING)
        self._waiting = [b for b in waiting if len(self.text) - b.covers <= _LONGEST_WAIT]


def _best(items: list[T], weights: Sequence[float], bound: float, most: int) -> list[T]:
    """Return the heaviest items, in their order, as far as they weigh more than `bound`."""
    kept = [index for index, weight in enumerate(weights) if weight > bound]
    if len(kept) > most:
        kept = sorted(sorted(kept, key=lambda index: -weights[index])[:most])
    return [items[index] for index in kept]
