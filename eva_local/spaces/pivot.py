"""The pivot's tokens and END as the shared space, as in EVA."""

import functools
from collections.abc import Mapping as MappingOf
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from eva_local.alignment.library import identity
from eva_local.alignment.mapping import Mapping
from eva_local.cache.context import Context
from eva_local.fusion.votes import Floats, Ids, Vote, normalised, project, reaching, top_k
from eva_local.llama.model import Logits, Model, Run
from eva_local.spaces.base import Beginning, Candidates, Constraint, ControlTokens, listeners, seats


@dataclass(eq=False, repr=False)
class PivotState:
    """A member that speaks in the pivot's tokens.

    `mapping` carries the likeliest tokens of its model over; `control` are those that it cannot.
    """

    cache: Context
    mapping: Mapping
    control: ControlTokens
    symbol_pieces: Sequence[bytes]
    n_candidates: int
    unread: int = 0
    _begun: Beginning = field(default_factory=lambda: Beginning(()))
    _likeliest: tuple[Ids, Floats] | None = None
    # Logits after rows that may come next, by the length of the row.
    _foreseen: dict[int, Logits] = field(default_factory=dict)
    _guess: int = 0

    @property
    def room(self) -> int:
        return self.cache.room

    @property
    def ready(self) -> bool:
        return self._likeliest is not None

    def clear(self) -> None:
        self._likeliest, self._foreseen = None, {}
        self.cache.clear()

    def start(self, begun: Beginning) -> None:
        self._likeliest, self._foreseen = None, {}
        self._begun = begun
        self.cache.start(begun.prompt, begun.scored, begun.shared)

    def tokens(self, text: bytes) -> Sequence[int]:
        return self.cache.spelled(text)

    def pending(self, limit: int | None = None) -> list[Run]:
        return [self._wanted(self.cache.pending(limit))]

    def take(self, run: Run, logits: Logits | None) -> None:
        self.cache.decoded(run)
        end = run.start + len(run.tokens)
        if logits is None:
            pass
        elif run.logits > 1:
            self._foreseen = dict(enumerate(logits, end - run.logits + 1))
        elif end > len(self.cache.tokens):
            self._foreseen[end] = logits.copy()
        else:
            self._hear(logits)
        self._look()

    def propose(self, data: bytes, most: int) -> None:
        self.cache.propose(data, most)

    @property
    def ahead(self) -> bytes:
        return b"".join(self.cache.pieces[token_id] for token_id in self.cache.ahead)

    def guess(self) -> tuple[bytes, float]:
        likeliest, count = self._likeliest, len(self.cache.ahead)
        if count:
            logits = self._foreseen.get(len(self.cache.tokens) + count)
            likeliest = None if logits is None else top_k(logits, self.n_candidates)
        if likeliest is None:
            return b"", 0.0
        best = int(likeliest[1].argmax())
        self._guess = int(likeliest[0][best])
        return self.cache.piece(self._guess), float(likeliest[1][best])

    def foresee(self) -> Run | None:
        run = self.cache.foresee(self._guess)
        return run and self._wanted(run)

    def _wanted(self, run: Run) -> Run:
        """Say of how many tokens the logits count, where `_hear` looks at no others."""
        if self._begun.grammar is not None or self._begun.thought_end is not None or run.every:
            return run
        return replace(run, top=self.n_candidates)

    def commit(self, symbol: int) -> None:
        self._likeliest = None
        if self.mapping.member == self.mapping.pivot:
            self.cache.append_token(symbol)
        else:
            self.cache.append(self.symbol_pieces[symbol])
        self._look()

    def _look(self) -> None:
        length = len(self.cache.tokens)
        logits = self._foreseen.pop(length, None)
        if self.cache.n_cached < length:
            self._foreseen = {}
        elif logits is not None:
            self._hear(logits)

    def _hear(self, logits: Logits) -> None:
        logits = self.control.ended(logits, self._begun.thought_end)
        self.control.hear(logits)
        marks = None
        if self._begun.grammar is not None and self.n_candidates:
            marks = reaching(self.mapping, self._begun.grammar.allowed)
        self._likeliest = top_k(logits, self.n_candidates, marks)

    def vote(self, pivot: Vote | None) -> Vote:
        """Return the member's vote; `pivot` is the pivot's."""
        assert self._likeliest is not None, "a vote needs logits: decode what is pending first"
        return project(*self._likeliest, self.mapping, pivot)


class PivotSpace:
    """The pivot's tokens and END as the shared space, as in EVA.

    Symbols that some member cannot spell (a few vocabularies lack a byte) are never chosen,
    so that every member can follow. `mappings[i]` carries member i's tokens into those of
    `models[pivot]`. `control` are the members' control tokens, where another space listens to
    them too.
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
        vocabulary = models[pivot].vocabulary
        self._models = tuple(models)
        self._speakable = vocabulary.speakable
        self.end = len(vocabulary)
        self._pieces = vocabulary.pieces
        self._tokenizer = models[pivot].tokenizer
        self._mappings = tuple(mappings)
        self.pivot = pivot
        self._n_candidates = n_candidates
        self._control = control or listeners(models)
        missing = frozenset[int]().union(*(model.tokenizer.missing_bytes for model in models))
        spelled = map(missing.isdisjoint, self._pieces) if missing else [True] * self.end
        self._spelled = np.asarray([*spelled, True])

    def piece(self, symbol: int) -> bytes:
        return b"" if symbol == self.end else self._pieces[symbol]

    def spell(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text)

    def is_text(self, symbol: int) -> bool:
        return 0 <= symbol < self.end and bool(self._speakable[symbol])

    def states(self, slot: int) -> list[PivotState]:
        return self._states([Context(*seat) for seat in seats(self._models, slot)])

    def alone(self, member: int) -> "PivotSpace":
        model = self._models[member]
        control, count = [self._control[member]], self._n_candidates
        return PivotSpace([model], [identity(model)], n_candidates=count, control=control)

    def over(self, states: Sequence[PivotState]) -> list[PivotState]:
        return self._states([state.cache for state in states])

    def candidates(
        self,
        states: Sequence[PivotState],
        _weights: Floats,
        grammar: Constraint | None = None,
        only: int | None = None,
    ) -> Candidates:
        votes: list[Vote | None] = [None] * len(states)
        # The pivot's vote may steer how the others' are split.
        votes[self.pivot] = pivot = self._spellable(states[self.pivot].vote(None))
        for index, state in enumerate(states):
            if only is None and index != self.pivot:
                votes[index] = self._spellable(state.vote(pivot))
        allowed = None if grammar is None else grammar.allowed
        return Candidates(votes, self._pieces, self.end, allowed, tokens=self._by_piece)

    def symbols(self, states: Sequence[PivotState], only: int | None = None) -> Candidates:
        return self.candidates(states, np.empty(0), only=only)

    def commit(self, states: Sequence[PivotState], _candidates: Candidates, chosen: int) -> None:
        for state in states:
            state.commit(chosen)

    def may_offer(self, piece: bytes) -> bool:
        return piece in self._by_piece

    @functools.cached_property
    def _by_piece(self) -> MappingOf[bytes, Sequence[int]]:
        """The tokens that stand for each piece: several may have the same bytes."""
        found: dict[bytes, tuple[int, ...]] = {}
        for token_id, piece in enumerate(self._pieces):
            if piece:
                found[piece] = (*found.get(piece, ()), token_id)
        return found

    def _states(self, contexts: Sequence[Context]) -> list[PivotState]:
        rows = zip(contexts, self._mappings, self._control, strict=True)
        return [PivotState(*row, self._pieces, self._n_candidates) for row in rows]

    def _spellable(self, vote: Vote | None) -> Vote | None:
        if vote is None or (kept := vote.within(self._spelled)) is vote:
            return vote
        return normalised(kept.symbols, kept.probabilities)
