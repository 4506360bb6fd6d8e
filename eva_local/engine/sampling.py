"""From a fused distribution to a symbol: pure functions, and the Sampler of one answer.

The order is llama.cpp's: logit bias, penalties, grammar, top-k, top-p, min-p, temperature.
"""

from __future__ import annotations

import functools
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np

from eva_local.engine.grammar import Grammar, Grammars, Symbols
from eva_local.errors import InputError
from eva_local.fusion.votes import Floats, Ids, Vote
from eva_local.types import Sampling


class Chooser(Protocol):
    """What turns the fused distributions of a text into its symbols."""

    @property
    def grammar(self) -> Grammar | None:
        """What the text obeys."""

    @property
    def complete(self) -> bool:
        """Whether nothing but END may follow."""

    def choose(self, vote: Vote) -> int:
        """Return the next symbol."""


class Forced:
    """Chooses the symbols of a given text, and adds up how likely they were.

    `log_likelihood` is in nats, `likelihoods` are its parts, symbol by symbol. `unseen` counts
    the symbols that a vote did not hold: such a symbol counts with the vote's smallest
    probability, which bounds the true one from above.
    """

    grammar = None

    def __init__(self, symbols: Sequence[int], n_symbols: int, n_top: int = 0) -> None:
        """Write `symbols`, out of `n_symbols` that the shared space has.

        In `tops` the `n_top` likeliest symbols are kept, each time.
        """
        self._symbols = symbols
        self._n_symbols = n_symbols
        self._n_top = n_top
        self.likelihoods: list[float] = []
        self.tops: list[list[tuple[int, float]]] = []
        self.chosen = 0
        self.log_likelihood = 0.0
        self.unseen = 0

    def __len__(self) -> int:
        """Return the number of symbols of the text."""
        return len(self._symbols)

    @property
    def complete(self) -> bool:
        """Whether all symbols were chosen."""
        return self.chosen == len(self._symbols)

    def choose(self, vote: Vote) -> int:
        """Return the next symbol of the text. Who abstains holds all symbols equally likely."""
        symbol = self._symbols[self.chosen]
        self.chosen += 1
        self.unseen += not vote.probability(symbol)
        self.likelihoods.append(vote.likelihood(symbol, self._n_symbols))
        self.log_likelihood += self.likelihoods[-1]
        self.tops.append(vote.top(self._n_top) if self._n_top else [])
        return symbol


class Sampler:
    """Draws the symbols of one answer, and remembers what its settings ask to be remembered."""

    def __init__(
        self,
        sampling: Sampling,
        end: int,
        grammar: Grammar | None = None,
        biases: Mapping[int, float] | None = None,
    ) -> None:
        """Begin an answer; `end` is END, and `biases` are those of the symbols.

        A `grammar` is at its beginning.
        """
        self._sampling = sampling
        self._end = end
        self.grammar = grammar
        self._generator = np.random.default_rng(sampling.seed)
        self._biases = biases or {}
        self._seen = _Seen(sampling, end)

    @property
    def complete(self) -> bool:
        """Whether nothing but END may follow."""
        return self.grammar is not None and self.grammar.complete

    def choose(self, vote: Vote) -> int:
        """Return the next symbol, and remember it. Costs O(candidates), whatever the text.

        Where no candidate is left, it is a symbol that the grammar allows; without one END.
        """
        shaped = self._shaped(vote)
        symbol = (
            choose(shaped, self._sampling, self._generator) if len(shaped) else self._way_on(vote)
        )
        self._seen.add(symbol)
        if self.grammar is not None:
            self.grammar.accept(symbol)
        return symbol

    def _shaped(self, vote: Vote) -> Vote:
        """Apply bias, penalties and grammar."""
        if self.grammar is not None:
            vote = vote.within(self.grammar.allowed)
        if not (self._biases or self._seen.penalised or self.grammar) or not len(vote):
            return vote
        logs = biased(vote.symbols, np.log(vote.probabilities), self._biases)
        if self._seen.penalised:
            logs = penalised(logs, self._seen.counts[vote.symbols], self._sampling)
        return _from_logs(vote.symbols, logs)

    def _way_on(self, vote: Vote) -> int:
        """Return a symbol where biases forbid all candidates, or nobody proposed an allowed one."""
        if self.grammar is None or self.grammar.allowed[self._end]:
            return self._end
        forbidden = [symbol for symbol, bias in self._biases.items() if bias == -np.inf]
        free = np.setdiff1d(np.flatnonzero(self.grammar.allowed), forbidden)
        if len(free):
            return int(free[0])
        # What the grammar demands wins over biases.
        kept = vote.within(self.grammar.allowed)
        if len(kept):
            return choose(kept, self._sampling, self._generator)
        return int(np.argmax(self.grammar.allowed))


class PieceSampler:
    """Draws the pieces of one answer where symbols are no pieces.

    At each step some pieces are put forward, and a vote's symbols are their places. Biases and
    penalties speak of the bytes of a piece; what is not put forward, no bias can bring in.
    """

    complete = False
    grammar = None

    def __init__(self, sampling: Sampling) -> None:
        """Begin an answer."""
        self._sampling = sampling
        self._generator = np.random.default_rng(sampling.seed)
        self._biases = {text.encode(): bias for text, bias in dict(sampling.logit_bias).items()}
        self._counts: Counter[bytes] = Counter()
        self._window: deque[bytes] = deque()

    def choose_piece(self, vote: Vote, pieces: Sequence[bytes]) -> int:
        """Return the place of the next piece, and remember the piece."""
        shaped = self._shaped(vote, pieces)
        # Where a bias forbids all that was put forward, the vote stands.
        chosen = choose(shaped if len(shaped) else vote, self._sampling, self._generator)
        self._remember(pieces[chosen])
        return chosen

    def _shaped(self, vote: Vote, pieces: Sequence[bytes]) -> Vote:
        if not (self._biases or self._sampling.penalises):
            return vote
        offered = [pieces[place] for place in vote.symbols]
        logs = np.log(vote.probabilities)
        logs += np.asarray([self._biases.get(piece, 0.0) for piece in offered])
        counts = np.asarray([self._counts[piece] for piece in offered])
        return _from_logs(vote.symbols, penalised(logs, counts, self._sampling))

    def _remember(self, piece: bytes) -> None:
        if not self._sampling.penalises:
            return
        self._counts[piece] += 1
        if self._sampling.repeat_last_n > 0:
            self._window.append(piece)
            if len(self._window) > self._sampling.repeat_last_n:
                self._counts[self._window.popleft()] -= 1


# Makes what draws one answer, when its turn comes.
ChooserMaker = Callable[[], Chooser | PieceSampler]


class Samplers:
    """Makes what draws the answers in one shared space."""

    def __init__(
        self, symbols: Symbols, missing: frozenset[int] = frozenset(), *, by_piece: bool = False
    ) -> None:
        """Choose among `symbols`, never those with a byte of `missing`.

        With `by_piece` symbols are no pieces, and free answers are chosen piece by piece.
        """
        self._symbols = symbols
        self._grammars = Grammars(symbols, missing)
        self._by_piece = by_piece

    def prepare(self, sampling: Sampling) -> ChooserMaker:
        """Return what makes the choosers of answers that are drawn so.

        What takes long is done here, for any thread: compiling a grammar, looking through the
        symbols for biases. Raises InputError where a bias, grammar or schema cannot be used.
        """
        grammar = self._grammars.open(sampling)
        if self._by_piece and grammar is None:
            return functools.partial(PieceSampler, sampling)
        if self._by_piece and (sampling.logit_bias or sampling.penalises):
            raise InputError(
                "under a grammar or schema, the space of bytes chooses single bytes, and "
                "logit_bias and penalties speak of whole tokens: leave them out, or use "
                'space = "pivot"'
            )
        spelled = self._spelled if sampling.logit_bias else {}
        biases = biased_symbols(dict(sampling.logit_bias), spelled)
        end = self._symbols.end
        return lambda: Sampler(sampling, end, grammar and grammar.fork(), biases)

    @functools.cached_property
    def _spelled(self) -> Mapping[bytes, Sequence[int]]:
        """The symbols that stand for each piece."""
        found: dict[bytes, tuple[int, ...]] = {}
        for symbol in range(self._symbols.end):
            piece = self._symbols.piece(symbol)
            if piece:
                found[piece] = (*found.get(piece, ()), symbol)
        return found


class _Seen:
    """Counts of the last symbols; nothing is kept where no penalty is on."""

    def __init__(self, sampling: Sampling, end: int) -> None:
        self.penalised = sampling.penalises
        # A table, so that the counts of all candidates are one indexing.
        self.counts = np.zeros(end + 1 if self.penalised else 0, dtype=np.int64)
        self._window: deque[int] = deque()
        self._size = sampling.repeat_last_n

    def add(self, symbol: int) -> None:
        if not self.penalised:
            return
        self.counts[symbol] += 1
        if self._size > 0:
            self._window.append(symbol)
            if len(self._window) > self._size:
                self.counts[self._window.popleft()] -= 1


def biased_symbols(
    biases: Mapping[str, float | bool], spelled: Mapping[bytes, Sequence[int]]
) -> dict[int, float]:
    """Return the bias of each symbol whose bytes are exactly those of a text.

    `spelled` are the symbols of each piece. Several may have the same bytes: all get the bias.
    " the" and "the" are two texts. Raises InputError for a text that is no symbol.
    """
    found: dict[int, float] = {}
    for text, bias in biases.items():
        symbols = spelled.get(text.encode())
        if not symbols:
            raise InputError(
                f"logit_bias {text!r}: no symbol of the shared space has exactly these bytes; "
                "give a single token of the pivot, with its leading space if it has one"
            )
        found |= dict.fromkeys(symbols, float(bias))
    return found


def biased(symbols: Ids, logs: Floats, biases: Mapping[int, float]) -> Floats:
    """Add each symbol's bias to its log-probability.

    `symbols: (m,)` ascending, `logs: (m,)`. A symbol that is not among them stays out.
    """
    if not biases:
        return logs
    chosen = np.fromiter(biases, dtype=np.int64, count=len(biases))
    amounts = np.fromiter(biases.values(), dtype=np.float64, count=len(biases))
    place = np.minimum(np.searchsorted(symbols, chosen), len(symbols) - 1)
    held = symbols[place] == chosen
    changed = logs.copy()
    changed[place[held]] += amounts[held]
    return changed


def penalised(logs: Floats, counts: Ids, sampling: Sampling) -> Floats:
    """Lower the symbols that occur among the last `repeat_last_n` chosen ones.

    `logs, counts: (m,)`. As llama.cpp does with logits, here with l = log p + bias of a
    symbol that occurs c > 0 times: l becomes l * repeat_penalty where l <= 0 (p becomes
    p^repeat_penalty) and l / repeat_penalty where a bias made it positive; then
    presence_penalty + c * frequency_penalty is subtracted. p is the probability after fusion,
    so that a symbol with p = 1 is beyond the reach of repeat_penalty.
    """
    repeat = sampling.repeat_penalty
    scaled = np.where(logs <= 0, logs * repeat, logs / repeat)
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
    logs = np.log(probabilities)
    # Of the likeliest it is 0, however cold; the others' may be too far below for a float.
    with np.errstate(over="ignore"):
        return _scaled(np.exp((logs - logs.max()) / temperature))


def draw(probabilities: Floats, generator: np.random.Generator) -> int:
    """Draw an index in proportion to `probabilities`, with one number of the generator."""
    sums = np.cumsum(probabilities)
    drawn = int(np.searchsorted(sums, generator.random() * sums[-1], side="right"))
    return min(drawn, len(sums) - 1)


def _from_logs(symbols: Ids, logs: Floats) -> Vote:
    """Return the softmax as a vote; what has no probability left is left out."""
    highest = logs.max()
    if highest == -np.inf:
        return Vote(symbols[:0], logs[:0])
    weights = np.exp(logs - highest)
    held = weights > 0
    return Vote(symbols[held], _scaled(weights[held]))


def _scaled(probabilities: Floats) -> Floats:
    scaled: Floats = probabilities / probabilities.sum()
    return scaled
