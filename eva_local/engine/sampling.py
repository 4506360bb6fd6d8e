"""From a fused distribution to a piece: pure functions, and the Sampler of one answer.

The order is llama.cpp's: logit bias, penalties, grammar, top-k, top-p, min-p, temperature.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from eva_local.engine.grammar import Grammar, Grammars
from eva_local.errors import InputError
from eva_local.fusion.votes import NOBODY, Floats, Vote, softmax
from eva_local.spaces.base import Candidates, Space
from eva_local.types import Sampling


class Sampler:
    """Draws the pieces of one answer, and remembers what its settings ask to be remembered."""

    def __init__(self, sampling: Sampling, grammar: Grammar | None = None) -> None:
        self._sampling = sampling
        self.grammar = grammar
        self._generator = np.random.default_rng(sampling.seed)
        biases: Mapping[str, float | bool] = dict(sampling.logit_bias)
        self._biases = {text.encode(): float(bias) for text, bias in biases.items()}
        self._seen: Counter[bytes] = Counter()
        self._window: deque[bytes] = deque()

    @property
    def complete(self) -> bool:
        """Whether nothing but END may follow."""
        return self.grammar is not None and self.grammar.complete

    def choose(self, fused: Vote, candidates: Candidates) -> int:
        """Return the next candidate, and remember its piece. Costs O(candidates).

        Where none is left that was voted for, it is one that the grammar allows; without one
        END, or where the text cannot end here what was voted for, whatever biases say.
        """
        voted = fused if candidates.allowed is None else fused.within(candidates.allowed)
        shaped = self._shaped(voted, candidates)
        if len(shaped):
            chosen = choose(shaped, self._sampling, self._generator)
        else:
            chosen = self._way_on(voted, candidates)
        self._remember(candidates.piece(chosen))
        if self.grammar is not None:
            self.grammar.accept(candidates.symbols(chosen))
        return chosen

    @np.errstate(over="ignore")  # What is beyond a float is forbidden, or as likely as can be.
    def _shaped(self, vote: Vote, candidates: Candidates) -> Vote:
        if not (self._biases or self._sampling.penalises or self.grammar) or not len(vote):
            return vote
        logs = np.log(vote.probabilities)
        if self._biases:
            logs = logs + candidates.spread(vote.symbols, self._biases)
        if self._sampling.penalises:
            logs = penalised(logs, candidates.spread(vote.symbols, self._seen), self._sampling)
        if logs.max() == -np.inf:
            return NOBODY
        probabilities = softmax(logs, 1.0)
        # What has no probability left is left out.
        held = probabilities > 0
        return Vote(vote.symbols[held], probabilities[held])

    def _way_on(self, vote: Vote, candidates: Candidates) -> int:
        """Return a candidate where biases forbid all, or nobody proposed an allowed one."""
        possible = candidates.possible()
        if candidates.end in possible:
            return candidates.end
        free = possible[candidates.spread(possible, self._biases) > -np.inf]
        if len(free):
            return int(free[0])
        # What the grammar demands wins over biases.
        return choose(vote, self._sampling, self._generator) if len(vote) else int(possible[0])

    def _remember(self, piece: bytes) -> None:
        if not self._sampling.penalises:
            return
        self._seen[piece] += 1
        if self._sampling.repeat_last_n > 0:
            self._window.append(piece)
            if len(self._window) > self._sampling.repeat_last_n:
                oldest = self._window.popleft()
                self._seen[oldest] -= 1
                if not self._seen[oldest]:
                    del self._seen[oldest]


# Makes the sampler of one answer, when its turn comes.
SamplerMaker = Callable[[], Sampler]


class Samplers:
    """Makes the samplers of answers in one shared space."""

    def __init__(self, space: Space[Any], missing: frozenset[int] = frozenset()) -> None:
        self._space = space
        self._grammars = Grammars(space, missing)

    def prepare(self, sampling: Sampling) -> SamplerMaker:
        """Return what makes the samplers of answers that are drawn so.

        What takes long is done here, for any thread: compiling a grammar, looking through the
        symbols for biases. Raises InputError where a bias, grammar, schema or tool cannot be used.
        """
        grammar = self._grammars.open(sampling)
        for text in dict(sampling.logit_bias):
            if not self._space.may_offer(text.encode()):
                raise InputError(
                    f"logit_bias {text!r}: no symbol of the shared space has exactly these bytes; "
                    "give a single token of the pivot, with its leading space if it has one"
                )
        if sampling.penalises:
            # The pieces are looked through once, and not in a step.
            self._space.may_offer(b"")
        return lambda: Sampler(sampling, grammar and grammar.fork())


def penalised(logs: Floats, counts: Floats, sampling: Sampling) -> Floats:
    """Lower the pieces that occur among the last `repeat_last_n` chosen ones.

    `logs, counts: (m,)`. As llama.cpp does with logits, here with l = log p + bias of a
    piece that occurs c > 0 times: l becomes l * repeat_penalty where l <= 0 (p becomes
    p^repeat_penalty) and l / repeat_penalty where a bias made it positive; then
    presence_penalty + c * frequency_penalty is subtracted. p is the probability after fusion,
    so that a piece with p = 1 is beyond the reach of repeat_penalty.
    """
    repeat = sampling.repeat_penalty
    scaled = np.where(logs <= 0, logs * repeat, np.minimum(logs / repeat, np.finfo(float).max))
    lowered = scaled - sampling.presence_penalty - counts * sampling.frequency_penalty
    return np.where(counts > 0, lowered, logs)


def choose(vote: Vote, sampling: Sampling, generator: np.random.Generator) -> int:
    """Return a symbol: the likeliest if greedy, else drawn after the cuts.

    The order is llama.cpp's: top-k, top-p, min-p, temperature. Ties go to the lower symbol.
    """
    if sampling.temperature == 0:
        return int(vote.symbols[np.argmax(vote.probabilities)])
    order = np.argsort(-vote.probabilities, kind="stable")
    probabilities = vote.probabilities[order]
    probabilities = keep_top_k(probabilities, sampling.top_k)
    probabilities = keep_top_p(probabilities, sampling.top_p)
    probabilities = keep_min_p(probabilities, sampling.min_p)
    probabilities = heat(probabilities, sampling.temperature)
    return int(vote.symbols[order[draw(probabilities, generator)]])


def keep_top_k(probabilities: Floats, count: int) -> Floats:
    """Keep the first `count` of descending probabilities (0: all), scaled to sum 1."""
    return _scaled(probabilities[:count] if count else probabilities)


def keep_top_p(probabilities: Floats, mass: float) -> Floats:
    """Keep the shortest beginning of descending probabilities that holds at least `mass`."""
    if mass >= 1:
        return probabilities
    enough = int(np.searchsorted(np.cumsum(probabilities), mass)) + 1
    return _scaled(probabilities[:enough])


def keep_min_p(probabilities: Floats, share: float) -> Floats:
    """Keep descending probabilities that are at least `share` of the highest."""
    return _scaled(probabilities[probabilities >= share * probabilities[0]])


def heat(probabilities: Floats, temperature: float) -> Floats:
    """Return p^(1/temperature), scaled to sum 1."""
    # Of the likeliest the log is 0, however cold; the others' may be too far below for a float.
    with np.errstate(over="ignore"):
        return softmax(np.log(probabilities), temperature)


def draw(probabilities: Floats, generator: np.random.Generator) -> int:
    """Draw an index in proportion to `probabilities`, with one number of the generator."""
    sums = np.cumsum(probabilities)
    drawn = int(np.searchsorted(sums, generator.random() * sums[-1], side="right"))
    return min(drawn, len(sums) - 1)


def _scaled(probabilities: Floats) -> Floats:
    scaled: Floats = probabilities / probabilities.sum()
    return scaled
