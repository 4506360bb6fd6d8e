"""A row of tokens, before it is decoded and after: what it expects of the bytes that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eva_local.branches import Place
from eva_local.customs import ANY
from eva_local.fusion import Floats, highest
from eva_local.model import Logits
from eva_local.trie import ROOT, Trie


@dataclass(slots=True, eq=False)
class Border:
    """A row that was not decoded yet: that at `place` and then `tokens`.

    It covers the first `covers` bytes of the text, and `log_weight` is its log-probability, in
    nats.
    """

    log_weight: float
    place: Place
    tokens: Sequence[int]
    covers: int
    #: Of what kind it is, as far as that tells how it goes on.
    kind: str = ANY


class OpenRow:
    """A row that was decoded; it covers the first `covers` bytes of the text.

    The open bytes, those after `covers`, led to `node` of the trie: `labels: (m,)` are the bytes
    that may follow them, `sums: (m,)` how likely each is given the row, and `left` how likely all
    of them are, with END, of probability `end`, at a border. `log_weight` is the log-probability
    of the row, in nats, and `last` its last token, where that is one of the text's.
    """

    __slots__ = (
        *("_masses", "_offset", "_trie", "covers", "end", "labels", "last", "left"),
        *("log_weight", "node", "place", "sums"),
    )

    def __init__(
        self, border: Border, place: Place, logits: Logits, trie: Trie, end_ids: Sequence[int]
    ) -> None:
        """Stand at a border whose row is now at `place`, with `logits: (n_vocab,)` after it."""
        self.log_weight = border.log_weight
        self.place = place
        self.covers = border.covers
        self.last = border.tokens[-1] if border.covers else None
        self.node = ROOT
        self._trie = trie
        # Of the tokens `trie.token_ids[offset:]`.
        self._masses, self.end = _expected(logits, trie, end_ids)
        self._offset = 0
        self.look()

    def look(self) -> None:
        """See what may follow the open bytes."""
        self.labels: NDArray[np.uint8]
        self.labels, self.sums = self._trie.going_on(self.node, self._masses, self._offset)
        self.left = float(self.sums.sum()) + (self.end if self.node == ROOT else 0.0)

    def ending(self, node: int) -> tuple[int, float]:
        """Return the token whose piece ends at a node, and its mass: none is -1, and has none.

        Several ids may have the same bytes: their mass is one, and the likelier stands.
        """
        exact = int(self._trie.exact[node])
        if not exact:
            return -1, 0.0
        low = int(self._trie.low[node]) - self._offset
        ended = self._masses[low : low + exact]
        token = int(self._trie.token_ids[self._offset + low + int(ended.argmax())])
        return token, float(ended.sum())

    def move(self, node: int) -> bool:
        """Take the bytes to `node` for the open ones; return whether a piece goes on from there."""
        if self._trie.is_leaf(node):
            return False
        if self.node == ROOT:
            # Most of the vocabulary is out of reach from here on.
            low, high = int(self._trie.low[node]), int(self._trie.high[node])
            self._masses = self._masses[low - self._offset : high - self._offset].copy()
            self._offset = low
        self.node = node
        return True

    def pieces(
        self, count: int, of_ids: Sequence[bytes], begun: int
    ) -> tuple[list[bytes], Floats, Floats]:
        """Return the likeliest ways to go on (m,): at most `count` pieces, and END.

        `of_ids` are the pieces of all ids; the first `begun` bytes of a piece are the open ones,
        and the rest is told. With them go how likely each is (m,), and the share of the tokens
        that begin with it which are no longer (m,). END is last, without bytes, at a border only.
        """
        trie, node = self._trie, self.node
        low = int(trie.low[node]) + int(trie.exact[node])
        masses = self._masses[low - self._offset : int(trie.high[node]) - self._offset]
        count = min(count, len(masses))
        best = highest(masses, count).tolist() if count else []
        # Several ids may have the same bytes: a piece is named once.
        found = sorted({of_ids[trie.token_ids[low + place]][begun:] for place in best})
        shares, ends = [], []
        for piece in found:
            reached = self._down(piece)
            under, exact = self._under(reached), self._exactly(reached)
            shares.append(exact / self.left)
            ends.append(exact / under if under > 0 else 0.0)
        if node == ROOT:
            found.append(b"")
            shares.append(self.end / self.left)
            ends.append(1.0)
        return found, np.asarray(shares), np.asarray(ends)

    def support(self, pieces: Sequence[bytes], shares: Floats, ends: Floats) -> Floats:
        """Return (m,): the mass of the tokens that begin with each of `pieces`, END without bytes.

        A piece is whole, and not the beginning of a longer one, with probability `ends: (m,)`.
        Where no token begins with a piece, the member would write it in several: the mass of the
        first of them is split among all pieces that it begins so, in proportion to `shares: (m,)`.
        """
        places = {piece: place for place, piece in enumerate(pieces)}
        masses = np.zeros(len(pieces))
        firsts: dict[bytes, list[int]] = {}
        for place, piece in enumerate(pieces):
            if not piece:
                masses[place] = self.end if self.node == ROOT else 0.0
                continue
            node, first = self._walk(piece)
            if node >= 0:
                masses[place] = self._under(node) * ends[place]
            elif first:
                firsts.setdefault(first, []).append(place)
        for first, begun in firsts.items():
            mass = self._exactly(self._down(first))
            if first in places:
                masses[places[first]] -= mass * ends[places[first]]
                begun.append(places[first])
            whole = shares[begun].sum()
            masses[begun] += mass * shares[begun] / whole if whole > 0 else mass / len(begun)
        return masses

    def _walk(self, piece: bytes) -> tuple[int, bytes]:
        """Return the node of a piece, or -1 and the longest token that the piece begins with."""
        node, first = self.node, b""
        for count, byte in enumerate(piece, start=1):
            node = self._trie.child(node, byte)
            if node < 0:
                break
            if self._trie.exact[node]:
                first = piece[:count]
        return node, first

    def _down(self, piece: bytes) -> int:
        node = self.node
        for byte in piece:
            node = self._trie.child(node, byte)
        return node

    def _under(self, node: int) -> float:
        """Return the mass of the tokens under a node."""
        low, high = int(self._trie.low[node]), int(self._trie.high[node])
        return float(self._masses[low - self._offset : high - self._offset].sum())

    def _exactly(self, node: int) -> float:
        """Return the mass of the tokens that end at a node."""
        low = int(self._trie.low[node]) - self._offset
        return float(self._masses[low : low + int(self._trie.exact[node])].sum())


def _expected(logits: Logits, trie: Trie, end_ids: Sequence[int]) -> tuple[Floats, float]:
    """Return (n,), the probabilities of the trie's tokens in its order, and that of all END ids.

    Together they sum to 1: tokens that stand for nothing have none.
    """
    raw = logits.take(trie.token_ids)
    ends = logits.take(end_ids)
    best = max(raw.max(), ends.max(initial=-np.inf))
    # In single precision, as the logits are: that is half of the time on a large vocabulary.
    raw -= best
    np.exp(raw, out=raw)
    masses = raw.astype(np.float64)
    end = float(np.exp((ends - best).astype(np.float64)).sum())
    share = 1 / (masses.sum() + end)
    masses *= share
    return masses, end * share
