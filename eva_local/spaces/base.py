"""The shared space: its symbols, how each member votes in it, and among what a step chooses.

A space hands out member states. A member state is one member's part in one text: it says what
must be decoded, takes the logits, votes, and is told which symbols were chosen.
"""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np

from eva_local.cache.context import PromptLikelihood
from eva_local.fusion.votes import Floats, Ids, Marks, Vote
from eva_local.llama.model import Logits, Model, Run

log = logging.getLogger("eva_local")


class Constraint(Protocol):
    """What may come next in a text, as its grammar has it."""

    @property
    def allowed(self) -> Marks:
        """(symbols,): which symbols of the space, END among them, may come next; never none."""

    def admits(self, symbols: Sequence[int]) -> bool:
        """Return whether the text may go on with these symbols, one after the other."""

    def forces(self, symbols: Sequence[int]) -> bool:
        """Return whether the text can go on with these symbols only, one after the other."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The pieces among which one step chooses, and the votes on them.

    A vote is None where a member was not asked. Its ids are those of candidates: `pieces` has
    the bytes of each, `end` is END, which has none, and -1 where the text cannot end here. A
    grammar admits those that are `allowed`, None: all. `proposer` put the pieces forward, where
    one member did. Where candidates are tokens, `tokens` are those of each piece; else the
    symbols of a candidate are its bytes.
    """

    votes: Sequence[Vote | None]
    pieces: Sequence[bytes]
    end: int
    allowed: Marks | None = None
    proposer: int | None = None
    tokens: Mapping[bytes, Sequence[int]] | None = None

    def piece(self, candidate: int) -> bytes:
        """Return the bytes of a candidate; END has none."""
        return b"" if candidate == self.end else self.pieces[candidate]

    def symbols(self, candidate: int) -> Sequence[int]:
        """Return the symbols of the space that a candidate stands for; END is none."""
        if self.tokens is None:
            return tuple(self.piece(candidate))
        return () if candidate == self.end else (candidate,)

    def possible(self) -> Ids:
        """Return what may be chosen where nothing that was voted for may."""
        if self.allowed is not None:
            return np.flatnonzero(self.allowed)
        return np.arange(len(self.pieces)) if self.tokens is None else np.asarray([self.end])

    def spread(self, candidates: Ids, values: Mapping[bytes, float]) -> Floats:
        """Return (m,): the value of the piece of each of `candidates`, which ascend, else 0."""
        if self.tokens is None or len(values) > len(candidates):
            return np.asarray([values.get(self.piece(each), 0.0) for each in candidates.tolist()])
        spread = np.zeros(len(candidates))
        found = [
            (each, value) for piece, value in values.items() for each in self.tokens.get(piece, ())
        ]
        if found and len(candidates):
            wanted, told = (np.asarray(column) for column in zip(*found, strict=True))
            index = np.minimum(np.searchsorted(candidates, wanted), len(candidates) - 1)
            held = candidates[index] == wanted
            spread[index[held]] = told[held]
        return spread


@dataclass(frozen=True, slots=True, eq=False)
class Beginning:
    """The tokens of a prompt, and what is asked of a member for the text after it.

    The log-likelihood of the last `scored` bytes of the prompt says how well the member predicts
    it. Where only some tokens are voted on, what a `grammar` allows is among them. The token
    `thought_end` counts as END. Others are about to begin with the first `shared` tokens.
    """

    prompt: Sequence[int]
    scored: int = 0
    grammar: Constraint | None = None
    thought_end: int | None = None
    shared: int = 0


class Cache(Protocol):
    """What the cache of a model holds of one text."""

    #: How likely a part of the prompt was.
    likelihood: PromptLikelihood

    @property
    def n_cached(self) -> int:
        """How many tokens that are."""

    def holds(self, prompt: Sequence[int]) -> int:
        """Return how many leading tokens of a prompt are there."""

    def adopt(self, other: Self) -> None:
        """Hold what `other`, of the same model, holds; the text that was here ends."""

    def trade(self, other: Self) -> None:
        """Go on in the cells of `other`, whose text is over, in llama.cpp's cache."""


class MemberState(Protocol):
    """One member's part in one text."""

    @property
    def room(self) -> int:
        """How many more tokens fit into the member's context; negative when it is full."""

    @property
    def unread(self) -> int:
        """How many bytes of the text the member has not read and `room` does not count."""

    @property
    def ready(self) -> bool:
        """Whether it can vote; else something is pending."""

    @property
    def cache(self) -> Cache:
        """What the member's cache holds of the text."""

    def clear(self) -> None:
        """Hold nothing: what the cache holds after a failure is unknown."""

    def start(self, begun: Beginning) -> None:
        """Begin a new text after the tokens of a prompt, keeping what the cache has of them."""

    def tokens(self, text: bytes) -> Sequence[int]:
        """Return the tokens of the prompt and of `text`, with which the text begins."""

    def pending(self, limit: int | None) -> list[Run]:
        """Return what must be decoded before the next vote, at most `limit` tokens of it."""

    def take(self, run: Run, logits: Logits | None) -> None:
        """Take the result of a run from `pending` or `foresee`."""

    def propose(self, data: bytes, most: int) -> None:
        """Have what may come next decoded along with what is pending, at most so many tokens.

        As far as just that is committed, the member is ready at once. Who cannot take tokens
        back does nothing.
        """

    @property
    def ahead(self) -> bytes:
        """What may come next and was decoded, or will be with what is pending."""

    def guess(self) -> tuple[bytes, float]:
        """Return what the member itself thinks comes after what is `ahead`, and how likely.

        That is one token; where it knows of none, nothing.
        """

    def foresee(self) -> Run | None:
        """Return the run of what it has guessed, which is `ahead` then; None where it cannot."""


def seats(models: Sequence[Model], slot: int) -> list[tuple[Model, int]]:
    """Return each member's model and which of its texts is that of a slot.

    A model may have several members: the texts that they write in one slot are neighbours.
    """
    return [
        (model, slot * models.count(model) + models[:number].count(model))
        for number, model in enumerate(models)
    ]


S = TypeVar("S", bound=MemberState)


class Space(Protocol[S]):
    """The symbols in which votes are added up; one of them, `end`, is END."""

    end: int
    #: The member whose vote comes first: the others may depend on it.
    pivot: int

    def piece(self, symbol: int) -> bytes:
        """Return the bytes of a symbol; END has none."""

    def spell(self, text: bytes) -> list[int]:
        """Return symbols whose pieces join to `text`."""

    def is_text(self, symbol: int) -> bool:
        """Return whether there is such a symbol and it stands for text: no END, no control."""

    def may_offer(self, piece: bytes) -> bool:
        """Return whether a piece of exactly these bytes can ever be a candidate."""

    def states(self, slot: int) -> list[S]:
        """Return a state of every member for the text in a slot."""

    def alone(self, member: int) -> Self:
        """Return the space in which one member votes alone."""

    def over(self, states: Sequence[S]) -> list[S]:
        """Return states of this space in the sequences of others, of the same models."""

    def candidates(
        self,
        states: Sequence[S],
        weights: Floats,
        grammar: Constraint | None = None,
        only: int | None = None,
    ) -> Candidates:
        """Return the pieces among which to choose next, with every member's vote on them.

        `weights: (members,)` are what the members count. With `only`, no other member is asked.
        """

    def symbols(self, states: Sequence[S], only: int | None = None) -> Candidates:
        """Return every member's vote on the next symbol of the space, in which texts are scored.

        With `only`, no other member is asked.
        """

    def commit(self, states: Sequence[S], candidates: Candidates, chosen: int) -> None:
        """Append a chosen candidate that is not END to the text of every member."""


class ControlTokens:
    """What one member may want and no text can hold: control, unused and unknown tokens, not END.

    Votes leave out what it gives to them.
    """

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
        if mass < 1 or (share := mass / float(np.exp(logits - best).sum())) <= 0.5:
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
