"""Votes on a given text, heard once and fused under many settings without asking again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eva_local.config.specs import FusionSettings
from eva_local.fusion.fuser import Decision, Fuser, Observer
from eva_local.fusion.votes import Vote, combine


@dataclass(frozen=True, slots=True)
class Heard:
    """Every member's vote before `symbol`, which stands for `n_bytes` bytes.

    `evidence: (members,)` is how well each member predicted the prompt, in nats per byte.
    """

    votes: tuple[Vote, ...]
    symbol: int
    n_bytes: int
    evidence: tuple[float, ...]


def recorder(heard: list[Heard]) -> Observer:
    """Return an observer that keeps the votes on a text in a list."""

    def observe(decision: Decision, symbol: int, n_bytes: int) -> None:
        votes = tuple(vote for vote in decision.votes if vote is not None)
        heard.append(Heard(votes, symbol, n_bytes, decision.evidence))

    return observe


class Replay:
    """How likely a given text is under some settings, from the members' votes on it."""

    def __init__(
        self,
        fusion: FusionSettings,
        n_members: int,
        pivot: int,
        n_symbols: int,
        *,
        conversation: bool = False,
    ) -> None:
        """Begin a text, in a space of `n_symbols`; `conversation` says that its prompt is one."""
        self.fusion = fusion
        self._pivot = pivot
        self._n_symbols = n_symbols
        self._judged = fusion.evidence_bytes(conversation=conversation) > 0
        self._fuser = Fuser(fusion, n_members)
        self._first = True
        #: In nats.
        self.log_likelihood = 0.0
        #: How often each member was dropped, and how many symbols were no candidate.
        self.filtered = (0,) * n_members
        self.unseen = 0

    def hear(
        self,
        heard: Heard,
        fuse: Callable[[Decision, FusionSettings], Vote] = lambda decision, _: decision.fused,
    ) -> None:
        """Take the next symbol; `fuse` makes one vote of a decision's, as the settings say."""
        if self._first and self._judged:
            self._fuser.begin(heard.evidence)
        decision = self._fuser.decide(self._asked(heard.votes))
        self._first = False
        fused = fuse(decision, self.fusion)
        self.log_likelihood += fused.likelihood(heard.symbol, self._n_symbols)
        self.unseen += not fused.probability(heard.symbol)
        dropped = zip(self.filtered, decision.votes, decision.stayed, strict=True)
        self.filtered = tuple(n + (vote is not None and not stays) for n, vote, stays in dropped)
        self._fuser.learn(decision, heard.symbol, heard.n_bytes)

    def _asked(self, votes: Sequence[Vote]) -> Sequence[Vote | None]:
        """Leave out, as the engine does, who a sure pivot would not have asked."""
        own = votes[self._pivot]
        if self.fusion.gate == 1 or self._first or not len(own):
            return votes
        if own.top(1)[0][1] < self.fusion.gate:
            return votes
        return [vote if member == self._pivot else None for member, vote in enumerate(votes)]


class Replays:
    """An observer that lets several settings hear the votes on a text.

    They decide by what they look at in the votes. Whole votes are fused once for all that come to
    the same weights, since that takes the time: a vote may have hundreds of thousands of symbols.
    """

    def __init__(self, fusion: FusionSettings, each: Sequence[Replay]) -> None:
        """Begin a text, which is fused by `fusion` as it is heard."""
        self._fusion = fusion
        self.each = each
        looks = [one.fusion.filter_n for one in each if one.fusion.filter == "top-n"]
        # A gate asks for the first choice.
        self._n_top = max(looks, default=1)

    def __call__(self, decision: Decision, symbol: int, n_bytes: int) -> None:
        """Pass on the votes, and which symbol came."""
        votes = tuple(vote for vote in decision.votes if vote is not None)
        known: dict[tuple[tuple[float, ...], str, float], Vote] = {
            (decision.weights, self._fusion.combine, self._fusion.sharpness): decision.fused
        }

        def fuse(theirs: Decision, rule: FusionSettings) -> Vote:
            key = theirs.weights, rule.combine, rule.sharpness
            if key not in known:
                known[key] = combine(votes, *key)
            return known[key]

        seen = tuple(_seen(vote, symbol, self._n_top) for vote in votes)
        heard = Heard(seen, symbol, n_bytes, decision.evidence)
        for one in self.each:
            one.hear(heard, fuse)


def _seen(vote: Vote, symbol: int, count: int) -> Vote:
    """Return what a Fuser looks at: first choices, the true symbol, the smallest probability."""
    if not len(vote):
        return vote
    least = int(vote.symbols[vote.probabilities.argmin()])
    looked_at = {least, *(first for first, _ in vote.top(count))}
    if vote.probability(symbol):
        looked_at.add(symbol)
    symbols = np.array(sorted(looked_at))
    return Vote(symbols, np.array([vote.probability(one) for one in symbols]))


def recording(fusion: FusionSettings) -> FusionSettings:
    """Return settings under which is heard all that other settings may need."""
    candidates = fusion.candidates or FusionSettings().candidates
    return replace(hearing(fusion, judged=True), candidates=candidates)


def hearing(fusion: FusionSettings, *, judged: bool) -> FusionSettings:
    """Return settings whose votes are those of `fusion`, all of them and with all candidates.

    With `judged` there is evidence of the prompt, whatever it is.
    """
    return FusionSettings(
        space=fusion.space,
        mapping=fusion.mapping,
        candidates=0,
        weights="prompt-perplexity" if judged else "equal",
        filter="off",
        prompt_evidence=fusion.prompt_evidence,
    )
