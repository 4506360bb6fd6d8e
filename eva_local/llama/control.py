"""The tokens that a member may want and no text can hold: control tokens that are not END."""

import logging
import threading
from collections.abc import Sequence

import numpy as np

from eva_local.llama.model import Logits, Model

log = logging.getLogger("eva_local")


class ControlTokens:
    """Control, unused and unknown tokens of one member; votes leave out what it gives to them."""

    def __init__(self, model: Model) -> None:
        vocabulary = model.vocabulary
        is_dropped = ~vocabulary.speakable
        is_dropped[list(vocabulary.end_ids)] = False
        self._ids = np.flatnonzero(is_dropped)
        self._end_id = min(vocabulary.end_ids, default=None)
        self._model = model
        self._first = threading.Lock()

    def ended(self, logits: Logits, thought_end: int | None) -> Logits:
        """Return logits in which the token that ends a thought, if there is one, counts as END."""
        if thought_end is None or self._end_id is None or thought_end == self._end_id:
            return logits
        logits = logits.copy()
        logits[self._end_id] = np.logaddexp(logits[self._end_id], logits[thought_end])
        logits[thought_end] = -np.inf
        return logits

    def hear(self, logits: Logits) -> None:
        """Warn, the first time that such tokens have more than half of the probability.

        `logits: (n_vocab,)` are those after a text that the member goes on with.
        """
        if self._first.locked() or not len(self._ids):
            return
        dropped, best = logits.take(self._ids), logits.max()
        mass = float(np.exp(dropped - best).sum())
        # Where the likeliest token is none of them, it has a mass of 1: the rest need no look.
        if mass < 1:
            return
        share = mass / float(np.exp(logits - best).sum())
        if share <= 0.5:
            return
        if not self._first.acquire(blocking=False):
            return
        token_id = int(self._ids[dropped.argmax()])
        log.warning(
            "%s wants to go on with %r (%.0f%%), a control token that does not end its answer; "
            "text cannot hold it, so it is dropped and what the model wants next counts instead. "
            "Look whether its chat template suits the task, and whether the file marks the token "
            "as the end of an answer",
            self._model.path.name,
            self._model.vocabulary.spelled(token_id) or f"token {token_id}",
            100 * share,
        )


def listeners(models: Sequence[Model]) -> list[ControlTokens]:
    """Return who listens to each member: one for all members of a model."""
    found = {model: ControlTokens(model) for model in models}
    return [found[model] for model in models]
