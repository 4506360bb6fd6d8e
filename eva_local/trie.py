"""The pieces of a vocabulary as a trie: which of them begin with given bytes, and their mass."""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

from eva_local.fusion import Floats
from eva_local.vocab import Vocabulary

#: The node of no bytes at all.
ROOT = 0


class Trie:
    """All speakable pieces of a vocabulary, sorted, so that those under a node stand together.

    A node stands for the bytes that lead to it. Nodes are numbered by depth, and in the order
    of their bytes within a depth: the children of a node follow each other, and so do the
    children of the next. `token_ids: (n,)` are the ids in the order of their pieces; the ids
    under `node` are `token_ids[low[node] : high[node]]`, and the first `exact[node]` of them are
    the ones whose piece is the node's bytes and nothing more.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        """Sort the pieces and number the nodes."""
        pieces = vocabulary.pieces
        ids = sorted(np.flatnonzero(vocabulary.speakable).tolist(), key=pieces.__getitem__)
        self.token_ids = np.asarray(ids, dtype=np.int64)
        text = np.frombuffer(b"".join(pieces[token_id] for token_id in ids), dtype=np.uint8)
        lengths = np.asarray([len(pieces[token_id]) for token_id in ids])
        self._number(text, np.cumsum(lengths) - lengths, lengths)

    def _number(
        self, text: NDArray[np.uint8], offsets: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> None:
        # One round for each depth, over the pieces that reach it; `node` is where each stands.
        lows, highs = [np.asarray([0])], [np.asarray([len(lengths)])]
        exacts, labels = [np.asarray([0])], [np.asarray([0], dtype=np.uint8)]
        children = []
        going = np.arange(len(lengths))
        node = np.zeros(len(lengths), dtype=np.int64)
        n_nodes = 1
        for depth in range(int(lengths.max(initial=0))):
            deep = lengths[going] > depth
            going, node = going[deep], node[deep]
            label = text[offsets[going] + depth]
            new = np.ones(len(going), dtype=np.bool_)
            new[1:] = (node[1:] != node[:-1]) | (label[1:] != label[:-1])
            place = np.cumsum(new) - 1
            count = int(place[-1]) + 1
            lows.append(going[new])
            highs.append(going[new] + np.bincount(place, minlength=count))
            ended = lengths[going] == depth + 1
            exacts.append(np.bincount(place[ended], minlength=count))
            labels.append(label[new])
            children.append(node[new])
            node = place + n_nodes
            n_nodes += count
        self.low = np.concatenate(lows).astype(np.int64)
        self.high = np.concatenate(highs).astype(np.int32)
        self.exact = np.concatenate(exacts).astype(np.int32)
        self._labels = np.concatenate(labels)
        parents = np.concatenate(children) if children else np.empty(0, dtype=np.int64)
        counts = np.bincount(parents, minlength=n_nodes)
        self._first = np.concatenate([[1], 1 + np.cumsum(counts)]).astype(np.int32)
        # Single values are read faster from these than from arrays.
        self._label_bytes = self._labels.tobytes()
        self._first_view = array("i", self._first.tobytes())

    def child(self, node: int, byte: int) -> int:
        """Return the node one byte further, or -1 where no piece goes on so."""
        start, end = self._first_view[node], self._first_view[node + 1]
        return self._label_bytes.find(byte, start, end)

    def is_leaf(self, node: int) -> bool:
        """Return whether no piece goes on from here."""
        return self._first_view[node] == self._first_view[node + 1]

    def going_on(self, node: int, masses: Floats, offset: int) -> tuple[NDArray[np.uint8], Floats]:
        """Return the bytes (m,) that may follow and the mass (m,) of the pieces behind each.

        `masses[i - offset]` is the mass of the token `token_ids[i]`.
        """
        start, end = self._first_view[node], self._first_view[node + 1]
        if start == end:
            return self._labels[:0], masses[:0]
        lows = self.low[start:end] - offset
        sums = np.add.reduceat(masses[: int(self.high[end - 1]) - offset], lows)
        return self._labels[start:end], sums
