"""How well a member predicts the text it is given: log-likelihood per byte of its prompt."""

from collections.abc import Iterable, Sequence

import numpy as np

from eva_local.llama.model import Logits, Run

# What is scored begins at a multiple of so many tokens: prompts with a common beginning then
# mostly begin at the same token, and what was scored for one of them serves the others.
_STRIDE = 64


class PromptLikelihood:
    """The log-likelihoods of the last tokens of a prompt, by position; they stand for `pieces`."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._scored: dict[int, tuple[float, int, int]] = {}
        self._prompt: Sequence[int] = ()
        self._first = 0

    def begin(self, prompt: Sequence[int], kept: int, n_bytes: int) -> int:
        """Begin a new prompt, of which the first `kept` tokens are the same as before.

        Its last `n_bytes` bytes are to be scored, as whole tokens, with up to a stride of those
        before. Returns how many leading tokens need not be decoded: at most `kept`, fewer where
        some of what is to be scored was not yet.
        """
        same, known = (kept, *prompt[kept : kept + 1]), self._scored.items()
        self._scored = {at: its for at, its in known if at < kept or (at, its[2]) == same}
        self._prompt, self._first = prompt, len(prompt)
        # Nothing comes before the first token that could say how likely it was.
        while self._first > 1 and n_bytes > 0:
            self._first -= 1
            n_bytes -= len(self._pieces[prompt[self._first]])
        if self._first < len(prompt):
            self._first = max(self._first - self._first % _STRIDE, 1)
        # The token after those that are kept is scored by the logits after the last of these.
        for position in range(self._first, min(kept + 1, len(prompt))):
            if position not in self._scored and self._pieces[prompt[position]]:
                return position - 1
        return kept

    def stretch(self, position: int) -> tuple[int, bool]:
        """Return where a run of the prompt from `position` on must end at the latest.

        With it goes whether the logits after each of its tokens are wanted, to score the next.
        """
        end = len(self._prompt)
        if self._first == end or position >= end - 1:
            return end, False
        return (self._first - 1, False) if position < self._first - 1 else (end, True)

    def adopt(self, other: "PromptLikelihood") -> None:
        """Know what `other`, of the same member, knows."""
        self._scored = dict(other._scored)

    def read(self, run: Run, blocks: Iterable[Logits]) -> Logits | None:
        """Score what comes after each token of a run; `blocks` are the logits after them.

        Returns the logits after the last, if the run wants them.
        """
        position = run.start + 1
        for block in blocks:
            self._score(self._prompt[position : position + len(block)], position, block)
            position += len(block)
            last = block[-1]
        return last if run.logits else None

    def _score(self, tokens: Sequence[int], position: int, logits: Logits) -> None:
        """Remember how likely the tokens from `position` on were, by the logits before each.

        `logits: (m, n_vocab)`. Tokens that stand for no bytes are not scored: a template wrote
        them.
        """
        # Row by row in the same memory: half of the time that fresh memory for all of them takes.
        spread = np.empty_like(logits[0])
        for offset, (token_id, row) in enumerate(zip(tokens, logits, strict=False)):
            n_bytes = len(self._pieces[token_id])
            if n_bytes:
                best = row.max()
                np.exp(np.subtract(row, best, out=spread), out=spread)
                nats = float(row[token_id] - best) - float(np.log(spread.sum()))
                self._scored[position + offset] = (nats, n_bytes, token_id)

    def per_byte(self) -> float:
        """Return the mean log-likelihood of what was to be scored, in nats per byte; else 0."""
        found = [scored for position, scored in self._scored.items() if position >= self._first]
        n_bytes = sum(count for _, count, _ in found)
        return sum(nats for nats, *_ in found) / n_bytes if n_bytes else 0.0
