"""How likely a given text is: under the ensemble, and under each member."""

from __future__ import annotations

from collections.abc import Sequence

from eva_local.engine.sampling import Forced
from eva_local.engine.scheduler import Request
from eva_local.engine.sequence import Panel
from eva_local.errors import ContextError, EvaError, InputError
from eva_local.fusion.fuser import Decision, Fuser
from eva_local.fusion.votes import Floats, Marks, Vote
from eva_local.types import Candidate, Sampling, Score, ScoredSymbol, Step


class Witness(Fuser):
    """Judges as another does, and adds up how likely each member thought what came.

    `log_likelihoods` are in nats, by the members' own votes; None for a member that was not
    asked each time.
    """

    def __init__(self, judge: Fuser, n_members: int, n_symbols: int) -> None:
        """Let `judge` decide."""
        self._judge = judge
        self._n_symbols = n_symbols
        self.log_likelihoods: list[float | None] = [0.0] * n_members

    @property
    def evidence(self) -> Floats:  # type: ignore[override]
        """What the judge knows of each member."""
        return self._judge.evidence

    @property
    def weights(self) -> Floats:
        """What each member counts with the judge."""
        return self._judge.weights

    def begin(self, evidence: Sequence[float]) -> None:
        """Tell the judge."""
        self._judge.begin(evidence)

    def decide(self, votes: Sequence[Vote | None], allowed: Marks | None = None) -> Decision:
        """Let the judge decide."""
        return self._judge.decide(votes, allowed)

    def learn(self, decision: Decision, symbol: int, n_bytes: int) -> None:
        """Let the judge learn, and add up."""
        self._judge.learn(decision, symbol, n_bytes)
        self.log_likelihoods = [
            None
            if vote is None or known is None
            else known + vote.likelihood(symbol, self._n_symbols)
            for known, vote in zip(self.log_likelihoods, decision.votes, strict=True)
        ]


class Scoring:
    """A text that is being scored."""

    def __init__(
        self,
        panel: Panel,
        prompts: Sequence[Sequence[int]],
        symbols: Sequence[int],
        judge: Fuser | None = None,
        *,
        alone: int | None = None,
        judged: int = 0,
        detailed: bool = False,
        n_top: int = 0,
    ) -> None:
        """Put `symbols` of the panel's space behind each member's own prompt.

        The last `judged` bytes of the prompts are evidence; see `Engine.begin`.
        With `detailed` the score tells each symbol, and the `n_top` likeliest in its place.
        Raises InputError where there is nothing to score, or a symbol that nobody can write.
        """
        space = panel.space
        self._symbols = tuple(symbols)
        self._pieces = [space.piece(symbol) for symbol in symbols]
        if not self._pieces:
            raise InputError("there is no text to be scored")
        self._piece = space.piece
        self._detailed = detailed
        self._forced = Forced(symbols, space.end + 1, n_top)
        n_members = len(panel.members)
        self._witness = Witness(judge or Fuser(panel.fusion, n_members), n_members, space.end + 1)
        self._last: Step | EvaError | None = None
        #: What a scheduler must be asked for.
        self.request = Request(
            prompts,
            Sampling(max_tokens=len(symbols)),
            self.hear,
            chooser=lambda: self._forced,
            judge=self._witness,
            alone=alone,
            judged=judged,
        )

    @property
    def done(self) -> bool:
        """Whether there is a result."""
        return self.request.done

    def hear(self, told: Step | EvaError) -> None:
        """Take what is told of the request."""
        self._last = told

    def result(self) -> Score:
        """Return the score; raise the error that ended it, or ContextError without room."""
        last, forced = self._last, self._forced
        if isinstance(last, EvaError):
            raise last
        if not forced.complete:
            raise ContextError(
                f"the text to be scored does not fit: {forced.chosen} of {len(forced)} symbols "
                "did; shorten it or raise n_ctx"
            )
        assert last is not None
        assert last.usage is not None
        return Score(
            log_likelihood=forced.log_likelihood,
            n_bytes=sum(map(len, self._pieces)),
            n_symbols=len(forced),
            filtered=last.usage.filtered,
            unseen=forced.unseen,
            members=tuple(self._witness.log_likelihoods),
            symbols=self._told() if self._detailed else (),
        )

    def _told(self) -> tuple[ScoredSymbol, ...]:
        parts = zip(self._pieces, self._forced.likelihoods, self._forced.tops, strict=True)
        return tuple(
            ScoredSymbol(
                piece,
                likelihood,
                tuple(Candidate(self._piece(symbol), share) for symbol, share in top),
            )
            for piece, likelihood, top in parts
        )
