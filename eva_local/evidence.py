"""How well a member predicts the text it is given: log-likelihood per byte of its prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eva_local.model import Logits


class Evidence:
    """The log-likelihoods of the tokens of a prompt that were judged, by their place."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        """Judge tokens that stand for `pieces`."""
        self._pieces = pieces
        self._judged: dict[int, tuple[float, int]] = {}

    def begin(self, kept: int) -> None:
        """Begin a new prompt, of which the first `kept` tokens are the same as before."""
        self._judged = {place: found for place, found in self._judged.items() if place < kept}

    def adopt(self, other: Evidence) -> None:
        """Know what `other`, of the same member, knows."""
        self._judged = dict(other._judged)

    def judge(self, tokens: Sequence[int], place: int, logits: Logits) -> None:
        """Remember how likely the tokens from `place` on were, by the logits before each.

        `logits: (m, n_vocab)`. Tokens that stand for no bytes are not judged: a template wrote
        them.
        """
        best = logits.max(axis=1)
        totals = np.log(np.exp(logits - best[:, None]).sum(axis=1)) + best
        for row, token_id in enumerate(tokens):
            n_bytes = len(self._pieces[token_id])
            if n_bytes:
                nats = float(logits[row, token_id] - totals[row])
                self._judged[place + row] = (nats, n_bytes)

    def per_byte(self) -> float:
        """Return the mean log-likelihood of the judged tokens, in nats per byte; 0 for none."""
        n_bytes = sum(count for _, count in self._judged.values())
        return sum(nats for nats, _ in self._judged.values()) / n_bytes if n_bytes else 0.0
