"""The pivot's tokens and END as the shared space, as in EVA."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from collections.abc import Mapping as MappingOf

import numpy as np
from numpy.typing import NDArray

from eva_local.alignment.library import identity
from eva_local.alignment.mapping import Mapping
from eva_local.cache.context import Context
from eva_local.fusion.votes import Floats, Ids, Vote, normalised, project, reaching, top_k
from eva_local.llama.control import ControlTokens
from eva_local.llama.model import Logits, Model, Run
from eva_local.spaces.base import Candidates, Constraint


class PivotState:
    """A member that speaks in the pivot's tokens."""

    def __init__(
        self,
        context: Context,
        mapping: Mapping,
        symbol_pieces: Sequence[bytes],
        n_candidates: int,
        control: ControlTokens,
    ) -> None:
        """Write in a context; `mapping` carries the likeliest tokens of its model over.

        `control` are those of its tokens that it cannot.
        """
        self.context = context
        self._mapping = mapping
        self._pieces = symbol_pieces
        self._n_candidates = n_candidates
        self._control = control
        self._native = mapping.member == mapping.pivot
        self._likeliest: tuple[Ids, Floats] | None = None
        self._grammar: Constraint | None = None

    @property
    def room(self) -> int:
        """How many more tokens fit into the member's context; negative when it is full."""
        return self.context.room

    @property
    def unread(self) -> int:
        """0: `room` counts all tokens, decoded or not."""
        return 0

    @property
    def ready(self) -> bool:
        """Whether it can vote; else something is pending."""
        return self._likeliest is not None

    @property
    def n_cached(self) -> int:
        """How many tokens of a text the cache holds."""
        return self.context.cached

    def holds(self, prompt: Sequence[int]) -> int:
        """Return how many leading tokens of a prompt the cache holds."""
        return self.context.holds(prompt)

    def clear(self) -> None:
        """Hold nothing: what the cache holds after a failure is unknown."""
        self._likeliest = None
        self.context.clear()

    def adopt(self, other: PivotState) -> None:
        """Hold what another state of the same member holds; the text that was here ends."""
        self.context.adopt(other.context)

    def trade(self, other: PivotState) -> None:
        """Go on in the cells of another state, whose text is over, in llama.cpp's cache."""
        self.context.trade(other.context)

    def start(
        self, prompt: Sequence[int], scored: int = 0, grammar: Constraint | None = None
    ) -> None:
        """Begin a new text after the tokens of a prompt; see `MemberState.start`."""
        self._likeliest = None
        self._grammar = grammar
        self.context.start(prompt, scored)

    def pending(self, limit: int | None = None) -> list[Run]:
        """Return the one run of tokens that llama.cpp has not seen."""
        return [self.context.pending(limit)]

    def take(self, run: Run, logits: Logits | None) -> None:
        """Keep the likeliest tokens, since the logits are llama.cpp's until it decodes again."""
        self.context.decoded(run)
        if logits is not None:
            self._control.hear(logits)
            marks = None
            if self._grammar is not None and self._n_candidates:
                marks = reaching(self._mapping, self._grammar.allowed)
            self._likeliest = top_k(logits, self._n_candidates, marks)

    def commit(self, symbol: int) -> None:
        """Append the chosen symbol: as a token where the vocabularies are equal, else as bytes."""
        self._likeliest = None
        if self._native:
            self.context.append_token(symbol)
        else:
            self.context.append(self._pieces[symbol])

    def read(self, run: Run, blocks: Iterable[Logits]) -> None:
        """Take the logits after every token of a run, and remember how likely each was."""
        self.take(run, self.context.read(run, blocks))

    def prompt_log_likelihood(self) -> float:
        """Return the mean log-likelihood of what was scored of the prompt, in nats per byte."""
        return self.context.log_likelihood_per_byte()

    def vote(self, pivot: Vote | None) -> Vote:
        """Return the member's vote; `pivot` is the pivot's."""
        if self._likeliest is None:
            raise ValueError("a vote needs logits: decode what is pending first")
        return project(*self._likeliest, self._mapping, pivot)


class PivotSpace:
    """The pivot's tokens and END as the shared space, as in EVA.

    Symbols that some member cannot spell (a few vocabularies lack a byte) are never chosen,
    so that every member can follow.
    """

    def __init__(
        self,
        models: Sequence[Model],
        mappings: Sequence[Mapping],
        *,
        pivot: int = 0,
        n_candidates: int = 320,
        control: Sequence[ControlTokens] | None = None,
    ) -> None:
        """Use `models[pivot]`'s tokens; `mappings[i]` carries member i's tokens into them.

        `control` are the members' control tokens, where another space listens to them too.
        """
        vocabulary = models[pivot].vocabulary
        self._models = tuple(models)
        self._speakable = vocabulary.speakable
        self.end = len(vocabulary)
        self._pieces = vocabulary.pieces
        self._tokenizer = models[pivot].tokenizer
        self._mappings = tuple(mappings)
        self.pivot = pivot
        self._n_candidates = n_candidates
        self._control = control or [ControlTokens(model) for model in models]
        missing = frozenset[int]().union(*(model.tokenizer.missing_bytes for model in models))
        self._spelled = _without(self._pieces, missing) if missing else None

    def piece(self, symbol: int) -> bytes:
        """Return the bytes of a symbol; END has none."""
        return b"" if symbol == self.end else self._pieces[symbol]

    def spell(self, text: bytes) -> list[int]:
        """Return the pivot's own tokens of `text`."""
        return self._tokenizer.encode(text)

    def is_text(self, symbol: int) -> bool:
        """Return whether there is such a symbol and it stands for text: no END, no control."""
        return 0 <= symbol < self.end and bool(self._speakable[symbol])

    def states(self, slot: int) -> list[PivotState]:
        """Return a state of every member for the text in a slot."""
        return self._states([Context(model, slot) for model in self._models])

    def alone(self, member: int) -> PivotSpace:
        """Return the space of a member's own tokens."""
        model = self._models[member]
        return PivotSpace(
            [model],
            [identity(model)],
            n_candidates=self._n_candidates,
            control=[self._control[member]],
        )

    def over(self, states: Sequence[PivotState]) -> list[PivotState]:
        """Return states of this space in the sequences of others, of the same models."""
        return self._states([state.context for state in states])

    def candidates(
        self,
        states: Sequence[PivotState],
        _weights: Floats,
        grammar: Constraint | None = None,
        only: int | None = None,
    ) -> Candidates:
        """Return every member's vote on the pivot's tokens; see `Space.candidates`."""
        return Candidates(
            votes=self._votes(states, only),
            pieces=self._pieces,
            end=self.end,
            allowed=None if grammar is None else grammar.allowed,
            tokens=self._by_piece,
        )

    def symbols(self, states: Sequence[PivotState], only: int | None = None) -> Candidates:
        """Return every member's vote on the next token; see `Space.symbols`."""
        return self.candidates(states, np.empty(0), only=only)

    def commit(self, states: Sequence[PivotState], _candidates: Candidates, chosen: int) -> None:
        """Append a chosen token to the text of every member."""
        for state in states:
            state.commit(chosen)

    def may_offer(self, piece: bytes) -> bool:
        """Return whether a token has exactly these bytes."""
        return piece in self._by_piece

    @functools.cached_property
    def _by_piece(self) -> MappingOf[bytes, Sequence[int]]:
        """The tokens that stand for each piece: several may have the same bytes."""
        found: dict[bytes, tuple[int, ...]] = {}
        for token_id, piece in enumerate(self._pieces):
            if piece:
                found[piece] = (*found.get(piece, ()), token_id)
        return found

    def _votes(self, states: Sequence[PivotState], only: int | None) -> list[Vote | None]:
        """Return the votes; the pivot's may steer how the others' are split."""
        pivot = self._spellable(states[self.pivot].vote(None))
        return [
            pivot
            if index == self.pivot
            else None
            if only is not None
            else self._spellable(state.vote(pivot))
            for index, state in enumerate(states)
        ]

    def _states(self, contexts: Sequence[Context]) -> list[PivotState]:
        return [
            PivotState(context, mapping, self._pieces, self._n_candidates, control)
            for context, mapping, control in zip(
                contexts, self._mappings, self._control, strict=True
            )
        ]

    def _spellable(self, vote: Vote) -> Vote:
        if self._spelled is None:
            return vote
        kept = self._spelled[vote.symbols]
        if kept.all():
            return vote
        return normalised(vote.symbols[kept], vote.probabilities[kept])


def _without(pieces: Sequence[bytes], missing: frozenset[int]) -> NDArray[np.bool_]:
    """Return (symbols,): whether a piece has none of the bytes; END has none."""
    marks = [missing.isdisjoint(piece) for piece in pieces]
    return np.asarray([*marks, True], dtype=np.bool_)
