"""How likely a given text is: under the ensemble, and under each member."""

from collections.abc import Mapping, Sequence

from eva_local.engine.request import Ticket
from eva_local.engine.sampling import Sampler
from eva_local.engine.sequence import Follower, TextSequence, likeliest
from eva_local.errors import ContextError
from eva_local.fusion.fuser import Decision
from eva_local.spaces.base import Candidates, MemberState
from eva_local.types import Score, ScoredSymbol


class ScoredSequence(TextSequence):
    """A text that is given: its symbols are committed one by one, by `Vote.likelihood`."""

    def __init__(
        self,
        ticket: Ticket,
        states: Sequence[MemberState],
        followers: Mapping[int, Follower] | None = None,
    ) -> None:
        super().__init__(ticket, states, Sampler(ticket.sampling), followers)
        self._symbols = tuple(ticket.symbols or ())
        self._log_likelihood = 0.0
        self._unseen = 0
        # None for a member that was not asked each time.
        self._members: list[float | None] = [0.0] * len(states)
        self._told: list[ScoredSymbol] = []

    def _advance(self) -> Score | None:
        while self.ready:
            candidates = self._vote()
            decision = self._fuse(candidates)
            symbol = self._symbols[self.steps]
            self.steps += 1
            self._add(candidates, decision, symbol)
            self._commit(candidates, decision, symbol)
            if self.steps == len(self._symbols):
                self.finished = True
                return self._score()
            if self._is_full:
                raise ContextError(
                    f"the text to be scored does not fit: {self.steps} of {len(self._symbols)} "
                    "symbols did; shorten it or raise n_ctx"
                )
        return None

    def _candidates(self, only: int | None = None) -> Candidates:
        return self.panel.space.symbols(self.states, only)

    def _add(self, candidates: Candidates, decision: Decision, symbol: int) -> None:
        fused, n_symbols = decision.fused, self.panel.space.end + 1
        likelihood = fused.likelihood(symbol, n_symbols)
        self._log_likelihood += likelihood
        self._unseen += not fused.probability(symbol)
        self._members = [
            None if vote is None or known is None else known + vote.likelihood(symbol, n_symbols)
            for known, vote in zip(self._members, decision.votes, strict=True)
        ]
        if self._ticket.detailed:
            top = likeliest(fused, self._ticket.n_top, candidates)
            self._told.append(ScoredSymbol(candidates.piece(symbol), likelihood, top))

    def _score(self) -> Score:
        piece = self.panel.space.piece
        return Score(
            log_likelihood=self._log_likelihood,
            n_bytes=sum(len(piece(symbol)) for symbol in self._symbols),
            n_symbols=len(self._symbols),
            filtered=tuple(self._filtered.tolist()),
            unseen=self._unseen,
            members=tuple(self._members),
            symbols=tuple(self._told),
        )
