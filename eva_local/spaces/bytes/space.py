"""The 256 bytes and END as the shared space: no mapping between vocabularies is needed."""

from collections.abc import Mapping, Sequence

import numpy as np

from eva_local.fusion.votes import Floats
from eva_local.llama.model import Model
from eva_local.spaces.base import Candidates, Constraint, ControlTokens, listeners, seats
from eva_local.spaces.bytes.row import END, Offer
from eva_local.spaces.bytes.state import ByteState
from eva_local.spaces.bytes.trie import Trie

#: Sequences that a text may have in each member, for rows that are tried beside each other.
BRANCHES = 8
#: Rows with a smaller share wait; see docs/bytes.md for what it costs and brings.
THRESHOLD = 0.04
# Pieces to choose among.
_PUT_FORWARD = 64
_BYTES = (*(bytes([byte]) for byte in range(END)), b"")


class ByteSpace:
    """The bytes as the shared space: each member's votes are exact, whatever its tokens are.

    Bytes that some member cannot spell (a few vocabularies lack some) are never chosen. Models
    have BRANCHES sequences for a text or more. `models[pivot]` decides alone where it is sure, if
    it may. `control` are the members' control tokens, where another space listens to them too.

    A row of tokens whose share of a member's belief is under `threshold` is not decoded until
    that share has grown; 0 decodes them all. `before` is what follows borders in other texts, if
    not what comes along.
    """

    end = END

    def __init__(
        self,
        models: Sequence[Model],
        threshold: float = THRESHOLD,
        before: Mapping[str, Floats] | None = None,
        *,
        pivot: int = 0,
        control: Sequence[ControlTokens] | None = None,
    ) -> None:
        self._before = before
        self._models = tuple(models)
        self.pivot = pivot
        tries = {model: Trie(model.vocabulary) for model in models}
        self._tries = [tries[model] for model in models]
        # Of equals the one with the most tokens leads, whatever the order of the members.
        self._ranks = [(len(m.vocabulary), m.vocabulary.fingerprint, str(m.path)) for m in models]
        self._threshold = threshold
        self._control = control or listeners(models)
        self._missing = frozenset[int]().union(*(m.tokenizer.missing_bytes for m in models))
        self._symbols = np.asarray([s for s in range(END + 1) if s not in self._missing])

    def piece(self, symbol: int) -> bytes:
        return b"" if symbol == END else bytes([symbol])

    def spell(self, text: bytes) -> list[int]:
        return list(text)

    def is_text(self, symbol: int) -> bool:
        return 0 <= symbol < END

    def states(self, slot: int) -> list[ByteState]:
        taken = seats(self._models, slot)
        own = [range(seat * m.n_branches, (seat + 1) * m.n_branches) for m, seat in taken]
        rows = zip(self._models, own, self._tries, self._control, strict=True)
        how = self._threshold, self._before
        return [ByteState(m, ids, trie, *how, control) for m, ids, trie, control in rows]

    def alone(self, member: int) -> "ByteSpace":
        control = [self._control[member]]
        return ByteSpace([self._models[member]], self._threshold, self._before, control=control)

    def over(self, states: Sequence[ByteState]) -> list[ByteState]:
        return list(states)

    def may_offer(self, _piece: bytes) -> bool:
        return True

    def candidates(
        self,
        states: Sequence[ByteState],
        weights: Floats,
        grammar: Constraint | None = None,
        only: int | None = None,
    ) -> Candidates:
        """Return the pieces among which to choose next; see `Space.candidates`.

        The member with the highest weight puts its likeliest pieces forward. A vote is the mass
        that a member gives to the bytes of a piece, times how surely the proposer's piece ends
        there and is not the beginning of a longer one; so the proposer's vote is its own
        distribution.
        """
        proposer = self._heaviest(weights) if only is None else only
        offer = self._spellable(states[proposer].beam.pieces(_PUT_FORWARD))
        allowed = None
        if grammar is not None:
            # What it forbids is there too, so that each member's whole vote counts.
            within = states[proposer].pieces_within(_PUT_FORWARD, grammar)
            offer = _joined(offer, within)
            admitted = frozenset(within[0])
            allowed = np.asarray([piece in admitted for piece in offer[0]])
        pieces, shares, ends = offer
        votes = [
            state.vote_on(pieces, shares, ends) if only in (None, member) else None
            for member, state in enumerate(states)
        ]
        end = -1 if pieces[-1] else len(pieces) - 1
        return Candidates(votes, pieces, end, allowed, proposer)

    def _spellable(self, offer: Offer) -> Offer:
        pieces, shares, ends = offer
        spelled = [i for i, piece in enumerate(pieces) if self._missing.isdisjoint(piece)]
        if len(spelled) in (0, len(pieces)):
            return offer
        return [pieces[i] for i in spelled], shares[spelled], ends[spelled]

    def symbols(self, states: Sequence[ByteState], only: int | None = None) -> Candidates:
        votes = [
            state.vote(self._symbols) if only in (None, member) else None
            for member, state in enumerate(states)
        ]
        return Candidates(votes=votes, pieces=_BYTES, end=END)

    def commit(self, states: Sequence[ByteState], candidates: Candidates, chosen: int) -> None:
        for state in states:
            for byte in candidates.piece(chosen):
                state.commit(byte)
        if candidates.proposer is not None:
            states[candidates.proposer].settle()
            for state in states:
                state.look()

    def _heaviest(self, weights: Floats) -> int:
        ranked = range(len(weights))
        return max(ranked, key=lambda i: (round(float(weights[i]), 9), self._ranks[i]))


def _joined(one: Offer, other: Offer) -> Offer:
    """Return the pieces of two offers, ascending, each once, END last."""
    found = {piece: values for offer in (one, other) for piece, *values in zip(*offer, strict=True)}
    pieces = sorted(found, key=lambda piece: (not piece, piece))
    shares, ends = np.asarray([found[piece] for piece in pieces]).T
    return pieces, shares, ends
