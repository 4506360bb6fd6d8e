"""A row of tokens, before it is decoded and after: what it expects of the bytes that follow."""

import functools
import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from eva_local.cache.branches import Branch
from eva_local.fusion.votes import Floats, Ids, highest
from eva_local.llama.model import Logits
from eva_local.spaces.base import Constraint
from eva_local.spaces.bytes.trie import ROOT, Masses, Trie

# Pieces, the last of them END where that may follow; how likely each is, (m,); and the share of
# the tokens that begin with it which are no longer, (m,).
Offer = tuple[list[bytes], Floats, Floats]

#: END among the symbols, after the 256 bytes.
END = 256

#: The kind of all borders.
ANY = "any"
# As many borders of a text count as much as all that was found in others.
_PRIOR = 8


@dataclass(slots=True, eq=False)
class Border:
    """A row that was not decoded yet: that at `branch` and then `tokens`.

    It covers the first `covers` bytes of the text, and `log_weight` is its log-probability, in
    nats. `log_share` is what it is thought to weigh with the bytes that have come since.
    """

    log_weight: float
    branch: Branch
    tokens: Sequence[int]
    covers: int
    #: Of what kind it is, as far as that tells how it goes on.
    kind: str = ANY
    log_share: float = 0.0


class OpenRow:
    """A row that was decoded; it covers the first `covers` bytes of the text.

    The open bytes, those after `covers`, led to `node` of the trie: `labels: (m,)` are the bytes
    that may follow them, `sums: (m,)` how likely each is given the row, and `left` how likely all
    of them are, with END, of probability `end`, at a border. `log_weight` is the log-probability
    of the row, in nats, and `last` its last token, where that is one of the text's. It begins at
    a border whose row is now at `branch`, with `logits: (n_vocab,)` after it.
    """

    __slots__ = (
        *("_masses", "_offset", "_scale", "_trie", "covers", "end", "labels", "last", "left"),
        *("log_weight", "node", "branch", "sums"),
    )

    def __init__(
        self, border: Border, branch: Branch, logits: Logits, trie: Trie, end_ids: Sequence[int]
    ) -> None:
        self.log_weight = border.log_weight
        self.branch = branch
        self.covers = border.covers
        self.last = border.tokens[-1] if border.covers else None
        self.node = ROOT
        self._trie = trie
        # Of the tokens `trie.token_ids[offset:]`, and a 0. Times `share` they are probabilities.
        self._masses, self._scale, self.end = _expected(logits, trie, end_ids)
        self._offset = 0
        self.look()

    def look(self) -> None:
        """See what may follow the open bytes."""
        self.labels: NDArray[np.uint8]
        self.labels, masses = self._trie.going_on(self.node, self._masses, self._offset)
        self.sums: Floats = np.multiply(masses, self._scale, dtype=np.float64)
        self.left = float(self.sums.sum()) + (self.end if self.node == ROOT else 0.0)

    def likeliest(self) -> tuple[int, float]:
        """Return the likeliest token that may come next, and how likely it is; END is -1."""
        best = int(self._masses.argmax())
        mass = float(self._masses[best]) * self._scale
        return int(self._trie.token_ids[best]) if mass > self.end else -1, mass

    def ending(self, node: int) -> tuple[int, float]:
        """Return the token whose piece ends at a node, and its mass: none is -1, and has none.

        Several ids may have the same bytes: their mass is one, and the likelier stands.
        """
        low, high = self._trie.exactly(node)
        if low == high:
            return -1, 0.0
        ended = self._masses[low - self._offset : high - self._offset]
        token = int(self._trie.token_ids[low + int(ended.argmax())])
        return token, float(ended.sum()) * self._scale

    def move(self, node: int) -> bool:
        """Take the bytes to `node` for the open ones; return whether a piece goes on from there."""
        if self._trie.exactly(node) == self._trie.span(node):
            return False
        if self.node == ROOT:
            # Most of the vocabulary is out of reach from here on.
            self._offset, high = self._trie.span(node)
            self._masses = self._masses[self._offset : high + 1].copy()
            self._masses[-1] = 0
        self.node = node
        return True

    def pieces(self, count: int, of_ids: Sequence[bytes], begun: int) -> Offer:
        """Return the likeliest ways to go on (m,): at most `count` pieces, and END.

        `of_ids` are the pieces of all ids; the first `begun` bytes of a piece are the open ones,
        and the rest is told. With them go how likely each is (m,), and the share of the tokens
        that begin with it which are no longer (m,). END is last, without bytes, at a border only.
        """
        trie = self._trie
        # What is longer than the open bytes.
        _, low = trie.exactly(self.node)
        _, high = trie.span(self.node)
        best = low + highest(self._masses[low - self._offset : high - self._offset], count)
        # Several ids may have the same bytes, and then stand together: a piece is named once.
        nodes = trie.ends[best]
        once = np.diff(nodes, prepend=-1) != 0
        nodes, indices = nodes[once], best[once]
        found = [of_ids[token_id][begun:] for token_id in trie.token_ids[indices].tolist()]
        return self._offer(found, nodes, ends_here=self.node == ROOT)

    def pieces_within(self, count: int, grammar: Constraint) -> Offer:
        """Return what `pieces` does, of what a grammar allows: the likeliest `count`, and END.

        The trie is searched from its likeliest parts on, and not where no text is allowed.
        """
        trie = self._trie
        found: list[tuple[bytes, int]] = []
        # A node stands for all that goes on from it, and once more, as whole, for itself.
        waiting = [(-float(self.sums.sum()), False, b"", self.node)]
        while waiting and len(found) < count:
            _, whole, piece, node = heapq.heappop(waiting)
            if whole:
                found.append((piece, node))
                continue
            if piece and not grammar.admits(piece):
                continue
            ended = self.ending(node)[1] if piece else 0.0
            if ended > 0:
                heapq.heappush(waiting, (-ended, True, piece, node))
            labels, masses = trie.going_on(node, self._masses, self._offset)
            for label, mass in zip(labels.tolist(), masses.tolist(), strict=True):
                if mass > 0 and (piece or grammar.allowed[label]):
                    entry = (-mass * self._scale, False, piece + bytes([label]))
                    heapq.heappush(waiting, (*entry, trie.child(node, label)))
        if forced := [each for each in found if grammar.forces(each[0])]:
            # There is one way on, whatever it is cut into.
            found = [max(forced)]
        nodes = np.asarray([node for _, node in found], dtype=np.int64)
        ends_here = self.node == ROOT and bool(grammar.allowed[END])
        return self._offer([piece for piece, _ in found], nodes, ends_here=ends_here)

    def _offer(self, pieces: list[bytes], nodes: Ids, *, ends_here: bool) -> Offer:
        low = self._trie.low[nodes]
        exact, under = self._between(low, low + self._trie.exact[nodes]), self._under(nodes)
        shares, ends = exact / self.left, exact / np.where(under > 0, under, 1.0)
        if ends_here:
            pieces.append(b"")
            shares, ends = np.append(shares, self.end / self.left), np.append(ends, 1.0)
        return pieces, shares, ends

    def support(
        self, opened: bytes, pieces: Sequence[bytes], shares: Floats, ends: Floats
    ) -> Floats:
        """Return (m,): the mass of the tokens that begin with each of `pieces`, END without bytes.

        Before each of them come the open bytes, `opened`.
        A piece is whole, and not the beginning of a longer one, with probability `ends: (m,)`.
        Where no token begins with a piece, the member would write it in several: the mass of the
        first of them is split among all pieces that it begins so, in proportion to `shares: (m,)`.
        """
        trie, here = self._trie, self.node
        paths = [trie.path(opened + piece) for piece in pieces]
        nodes = np.asarray([node for node, _ in paths])
        masses = np.zeros(len(pieces))
        reached = nodes > here
        masses[reached] = self._under(nodes[reached]) * ends[reached]
        masses[nodes == here] = self.end if here == ROOT else 0.0
        firsts: dict[int, list[int]] = {}
        for index in np.flatnonzero(nodes < 0).tolist():
            token = paths[index][1]
            # No token ends among the open bytes.
            if token > here:
                firsts.setdefault(token, []).append(index)
        for token, begun in firsts.items():
            _, mass = self.ending(token)
            for index in np.flatnonzero(nodes == token).tolist():
                masses[index] -= mass * ends[index]
                begun.append(index)
            whole = shares[begun].sum()
            masses[begun] += mass * shares[begun] / whole if whole > 0 else mass / len(begun)
        return masses

    def _under(self, nodes: Ids) -> Floats:
        """Return (m,): the mass of the tokens under each of `nodes`."""
        return self._between(self._trie.low[nodes], self._trie.high[nodes])

    def _between(self, lows: Ids, highs: Ids) -> Floats:
        """Return (m,): the mass of the tokens from each of `lows` to each of `highs`."""
        if not len(lows):
            return np.zeros(0)
        # Every second stretch is one that was asked for; an empty one is told as its first token.
        stretches = np.stack([lows, highs], axis=1).ravel() - self._offset
        sums = np.add.reduceat(self._masses, stretches)[::2]
        return np.multiply(np.where(lows < highs, sums, 0), self._scale, dtype=np.float64)


def _expected(logits: Logits, trie: Trie, end_ids: Sequence[int]) -> tuple[Masses, float, float]:
    """Return masses (n + 1,) of the trie's tokens in its order and a 0, and what scales them.

    Scaled they are probabilities, which sum to 1 with that of all END ids together, which is
    returned third: tokens that stand for nothing have none.
    """
    masses = np.empty(len(trie.token_ids) + 1, dtype=np.float32)
    # In single precision, as the logits are: that is half of the time on a large vocabulary.
    raw = masses[:-1]
    logits.take(trie.token_ids, out=raw, mode="clip")
    ends = logits.take(end_ids)
    best = max(raw.max(), ends.max(initial=-np.inf))
    raw -= best
    np.exp(raw, out=raw)
    masses[-1] = 0
    end = float(np.exp((ends - best).astype(np.float64)).sum())
    share = 1 / (float(raw.sum()) + end)
    return masses, share, end * share


class BoundaryPrior:
    """What usually follows a border, learned from those of the text that were decoded.

    A border that waits is taken to go on like others of its kind: its last byte, and whether it
    was likely when it came up. That is what makes waiting cheap: with one mean for all kinds
    the loss is several times as high (docs/bytes.md). A text begins with what was found in
    others (`tools/boundary_prior.py`), `means: (257,)` of kinds, which counts as few borders, so
    that it soon learns its own.
    """

    def __init__(self, means: Mapping[str, Floats] | None = None) -> None:
        before = found_before() if means is None else means
        #: What is known of each kind, and of how many borders.
        self.means = {ANY: (np.full(END + 1, 1 / (END + 1)), 1)}
        self.means |= {kind: (mean, _PRIOR) for kind, mean in before.items()}

    def learn(self, kind: str, masses: Floats) -> None:
        """Take in `masses: (257,)`, how a border of a kind goes on; they sum to 1."""
        for key in (ANY, kind):
            # A kind begins with what is known of all.
            mean, count = self.means.get(key, (self.expected(key), 1))
            self.means[key] = mean + (masses - mean) / (count + 1), count + 1

    def expected(self, kind: str) -> Floats:
        """Return (257,): how a border of a kind is thought to go on."""
        return self.means.get(kind, self.means[ANY])[0]


@functools.cache
def found_before() -> Mapping[str, Floats]:
    """Return what follows borders in other texts, by kind."""
    with resources.files(__package__).joinpath("boundary.npz").open("rb") as file:
        held = np.load(file, allow_pickle=False)
        kinds, means = held["kinds"].tolist(), held["means"].astype(np.float64)
    return dict(zip(kinds, means, strict=True))


@functools.cache
def border_kind(byte: int, *, likely: bool | None = None) -> str:
    """Return the kind of a border: what `byte` before it is, and whether it was `likely`.

    That is when it came up; None stands for one inside a piece.
    """
    character, kind = chr(byte), f"byte {byte}"
    if byte >= 0x80:
        kind = "half"
    elif character.isalpha():
        kind = "upper" if character.isupper() else "lower"
    elif character.isdigit():
        kind = "digit"
    return f"{kind}, {'inside' if likely is None else 'likely' if likely else 'unlikely'}"
