"""The pieces of a vocabulary as a trie: which of them begin with given bytes, and their mass."""

import functools

import numpy as np
from numpy.typing import NDArray

from eva_local.llama.vocab import Vocabulary

Masses = NDArray[np.float32]

#: The node of no bytes at all.
ROOT = 0
# Pieces that others put forward come again and again.
_REMEMBERED = 1 << 16


class Trie:
    """All speakable pieces of a vocabulary, sorted, so that those under a node stand together.

    A node stands for the bytes that lead to it. Nodes are numbered by depth, and in the order
    of their bytes within a depth: the children of a node follow each other, and so do the
    children of the next. `token_ids: (n,)` are the ids in the order of their pieces; the ids
    under `node` are `token_ids[low[node] : high[node]]`, and the first `exact[node]` of them are
    the ones whose piece is the node's bytes and nothing more. `ends: (n,)` are the nodes at which
    the pieces of `token_ids` end.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        pieces = vocabulary.pieces
        ids = sorted(np.flatnonzero(vocabulary.speakable).tolist(), key=pieces.__getitem__)
        self.token_ids = np.asarray(ids, dtype=np.int64)
        text = np.frombuffer(b"".join(pieces[token_id] for token_id in ids), dtype=np.uint8)
        lengths = np.asarray([len(pieces[token_id]) for token_id in ids])
        self._number(text, np.cumsum(lengths) - lengths, lengths)
        # Looking a piece up takes longer than all that is done with it.
        self.path = functools.lru_cache(_REMEMBERED)(functools.partial(self.walk, ROOT))

    def _number(
        self, text: NDArray[np.uint8], offsets: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> None:
        # One round for each depth, over the pieces that reach it; `node` is where each stands.
        lows, highs = [np.asarray([0])], [np.asarray([len(lengths)])]
        exacts, labels = [np.asarray([0])], [np.asarray([0], dtype=np.uint8)]
        children = []
        self.ends = np.zeros(len(lengths), dtype=np.int64)
        going = np.arange(len(lengths))
        node = np.zeros(len(lengths), dtype=np.int64)
        n_nodes = 1
        for depth in range(int(lengths.max(initial=0))):
            deep = lengths[going] > depth
            going, node = going[deep], node[deep]
            label = text[offsets[going] + depth]
            new = np.ones(len(going), dtype=np.bool_)
            new[1:] = (node[1:] != node[:-1]) | (label[1:] != label[:-1])
            index = np.cumsum(new) - 1
            count = int(index[-1]) + 1
            lows.append(going[new])
            highs.append(going[new] + np.bincount(index, minlength=count))
            ended = lengths[going] == depth + 1
            exacts.append(np.bincount(index[ended], minlength=count))
            labels.append(label[new])
            children.append(node[new])
            node = index + n_nodes
            n_nodes += count
            self.ends[going[ended]] = node[ended]
        self.low = np.concatenate(lows)
        self.high = np.concatenate(highs)
        self.exact = np.concatenate(exacts)
        self._labels = np.concatenate(labels)
        parents = np.concatenate(children) if children else np.empty(0, dtype=np.int64)
        counts = np.bincount(parents, minlength=n_nodes)
        first = np.concatenate([[1], 1 + np.cumsum(counts)])
        # Single values are read faster from these than from arrays.
        self._label_bytes = self._labels.tobytes()
        self._first = first.data
        self._low, self._high = self.low.data, self.high.data
        self._exact = self.exact.data

    def child(self, node: int, byte: int) -> int:
        """Return the node one byte further, or -1 where no piece goes on so."""
        return self._label_bytes.find(byte, self._first[node], self._first[node + 1])

    def walk(self, node: int, piece: bytes) -> tuple[int, int]:
        """Return where a piece leads to from a node, and where its longest beginning that is one.

        The first is -1 where no piece goes on so, the second where none of the beginnings is.
        """
        token = -1
        for byte in piece:
            node = self.child(node, byte)
            if node < 0:
                break
            if self._exact[node]:
                token = node
        return node, token

    def span(self, node: int) -> tuple[int, int]:
        """Return from where to where the ids under a node stand."""
        return self._low[node], self._high[node]

    def exactly(self, node: int) -> tuple[int, int]:
        """Return from where to where the ids stand whose piece ends at a node."""
        return self._low[node], self._low[node] + self._exact[node]

    def going_on(self, node: int, masses: Masses, offset: int) -> tuple[NDArray[np.uint8], Masses]:
        """Return the bytes (m,) that may follow and the mass (m,) of the pieces behind each.

        `masses[i - offset]` is the mass of the token `token_ids[i]`.
        """
        start, end = self._first[node], self._first[node + 1]
        if start == end:
            return self._labels[:0], masses[:0]
        sums = np.add.reduceat(masses[: self._high[end - 1] - offset], self.low[start:end] - offset)
        return self._labels[start:end], sums
