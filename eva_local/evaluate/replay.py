"""Votes that were heard once, judged under many settings without asking the models again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eva_local.decision import Decision, Judge
from eva_local.fusion import Vote, combine
from eva_local.specs import FusionSettings


@dataclass(frozen=True, slots=True)
class Heard:
    """Every member's vote before `symbol`, which stands for `n_bytes` bytes."""

    votes: tuple[Vote, ...]
    symbol: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Transcript:
    """All votes of one given text, and each member's evidence of its prompt."""

    heard: tuple[Heard, ...]
    evidence: tuple[float, ...]

    @property
    def n_bytes(self) -> int:
        """Return the length of the text."""
        return sum(heard.n_bytes for heard in self.heard)


class Juror:
    """Says how likely a given text is under some settings, from the members' votes on it."""

    def __init__(self, fusion: FusionSettings, lead: int, n_symbols: int) -> None:
        """Begin a text, in a space of `n_symbols` whose lead is the member `lead`."""
        self.fusion = fusion
        self._lead = lead
        self._n_symbols = n_symbols
        self._judge: Judge | None = None
        #: In nats.
        self.log_likelihood = 0.0
        #: How often each member was dropped, and how many symbols were no candidate.
        self.filtered: tuple[int, ...] = ()
        self.unseen = 0

    def hear(
        self,
        heard: Heard,
        evidence: Sequence[float],
        fuse: Callable[[Decision, str], Vote] = lambda decision, _how: decision.fused,
    ) -> None:
        """Take the next symbol; `evidence` is each member's of the prompt.

        `fuse` makes one vote of a decision's in the way that is named.
        """
        first = self._judge is None
        if self._judge is None:
            self._judge = Judge(self.fusion, len(heard.votes))
            self.filtered = (0,) * len(heard.votes)
            if self.fusion.weights == "prompt-perplexity":
                self._judge.evidence = np.array(evidence)
        decision = self._judge.decide(self._asked(heard.votes, first=first))
        fused = fuse(decision, self.fusion.combine)
        self.log_likelihood += fused.likelihood(heard.symbol, self._n_symbols)
        self.unseen += not fused.probability(heard.symbol)
        dropped = zip(self.filtered, decision.votes, decision.stayed, strict=True)
        self.filtered = tuple(n + (vote is not None and not stays) for n, vote, stays in dropped)
        self._judge.learn(decision, heard.symbol, heard.n_bytes)

    def _asked(self, votes: Sequence[Vote], *, first: bool) -> Sequence[Vote | None]:
        """Leave out, as the engine does, who a sure lead would not have asked."""
        lead = self._lead
        if self.fusion.gate == 1 or first or not len(votes[lead]):
            return votes
        if votes[lead].top(1)[0][1] < self.fusion.gate:
            return votes
        return [vote if member == lead else None for member, vote in enumerate(votes)]


class Jury(Judge):
    """A judge that lets jurors hear the votes of a text too.

    They decide by what they look at in the votes. Whole votes are fused once for all who come to
    the same weights, since that takes the time: a vote may have hundreds of thousands of symbols.
    """

    def __init__(self, fusion: FusionSettings, n_members: int, jurors: Sequence[Juror]) -> None:
        """Begin a text."""
        super().__init__(fusion, n_members)
        self.jurors = jurors
        looks = [juror.fusion.filter_n for juror in jurors if juror.fusion.filter == "top-n"]
        # A gate asks for the first choice.
        self._n_top = max(looks, default=1)

    def learn(self, decision: Decision, symbol: int, n_bytes: int) -> None:
        """Tell the jurors the votes, and which symbol came."""
        votes = tuple(vote for vote in decision.votes if vote is not None)
        known: dict[tuple[str, tuple[float, ...]], Vote] = {
            (self._fusion.combine, decision.weights): decision.fused
        }

        def fuse(theirs: Decision, how: str) -> Vote:
            key = how, theirs.weights
            if key not in known:
                known[key] = combine(votes, theirs.weights, how)
            return known[key]

        seen = tuple(_seen(vote, symbol, self._n_top) for vote in votes)
        heard, evidence = Heard(seen, symbol, n_bytes), self.evidence.tolist()
        for juror in self.jurors:
            juror.hear(heard, evidence, fuse)


def _seen(vote: Vote, symbol: int, count: int) -> Vote:
    """Return what a Judge looks at: first choices, the true symbol, the smallest probability."""
    if not len(vote):
        return vote
    least = int(vote.symbols[vote.probabilities.argmin()])
    looked_at = {least, *(first for first, _ in vote.top(count))}
    if vote.probability(symbol):
        looked_at.add(symbol)
    symbols = np.array(sorted(looked_at))
    return Vote(symbols, np.array([vote.probability(one) for one in symbols]))


class Recorder(Judge):
    """A judge that keeps what it hears."""

    def __init__(self, fusion: FusionSettings, n_members: int) -> None:
        """Begin a text."""
        super().__init__(fusion, n_members)
        self._heard: list[Heard] = []

    def learn(self, decision: Decision, symbol: int, n_bytes: int) -> None:
        """Keep the votes, and which symbol came."""
        votes = tuple(vote for vote in decision.votes if vote is not None)
        self._heard.append(Heard(votes, symbol, n_bytes))

    def transcript(self) -> Transcript:
        """Return what was heard."""
        return Transcript(tuple(self._heard), tuple(self.evidence.tolist()))


def recording(fusion: FusionSettings) -> FusionSettings:
    """Return settings under which a Recorder hears all that other settings may need."""
    candidates = fusion.candidates or FusionSettings().candidates
    return replace(hearing(fusion, prompts=True), candidates=candidates)


def hearing(fusion: FusionSettings, *, prompts: bool) -> FusionSettings:
    """Return settings whose votes are those of `fusion`, all of them and with all candidates.

    `prompts` has the members judge their prompts too, as the weights prompt-perplexity need.
    """
    return FusionSettings(
        space=fusion.space,
        mapping=fusion.mapping,
        candidates=0,
        weights="prompt-perplexity" if prompts else "equal",
        filter="off",
    )


def replay(transcript: Transcript, fusion: FusionSettings, lead: int, n_symbols: int) -> float:
    """Return the log-likelihood, in nats, that the text would have had under `fusion`."""
    juror = Juror(fusion, lead, n_symbols)
    for heard in transcript.heard:
        juror.hear(heard, transcript.evidence)
    return juror.log_likelihood
