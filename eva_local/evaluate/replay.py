"""Votes that were heard once, judged under many settings without asking the models again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eva_local.config.specs import FusionSettings
from eva_local.fusion.fuser import Decision, Fuser
from eva_local.fusion.votes import Vote, combine


@dataclass(frozen=True, slots=True)
class Heard:
    """Every member's vote before `symbol`, which stands for `n_bytes` bytes."""

    votes: tuple[Vote, ...]
    symbol: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Transcript:
    """All votes of one given text, and each member's evidence of its prompt.

    `conversation` says that the prompt was one.
    """

    heard: tuple[Heard, ...]
    evidence: tuple[float, ...]
    conversation: bool = False

    @property
    def n_bytes(self) -> int:
        """Return the length of the text."""
        return sum(heard.n_bytes for heard in self.heard)


class Juror:
    """Says how likely a given text is under some settings, from the members' votes on it."""

    def __init__(
        self,
        fusion: FusionSettings,
        n_members: int,
        lead: int,
        n_symbols: int,
        *,
        conversation: bool = False,
    ) -> None:
        """Begin a text, in a space of `n_symbols` whose lead is the member `lead`."""
        self.fusion = fusion
        self._lead = lead
        self._n_symbols = n_symbols
        self._conversation = conversation
        self._judge = Fuser(fusion, n_members)
        self._first = True
        #: In nats.
        self.log_likelihood = 0.0
        #: How often each member was dropped, and how many symbols were no candidate.
        self.filtered = (0,) * n_members
        self.unseen = 0

    def begin(self, evidence: Sequence[float]) -> None:
        """Take in each member's evidence of the prompt, if the settings ask for it."""
        if self.fusion.evidence_bytes(conversation=self._conversation):
            self._judge.begin(evidence)

    def hear(
        self,
        heard: Heard,
        fuse: Callable[[Decision, FusionSettings], Vote] = lambda decision, _: decision.fused,
    ) -> None:
        """Take the next symbol; `fuse` makes one vote of a decision's, as the settings say."""
        decision = self._judge.decide(self._asked(heard.votes, first=self._first))
        self._first = False
        fused = fuse(decision, self.fusion)
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


class Jury:
    """An observer that lets jurors hear the votes of a text.

    They decide by what they look at in the votes. Whole votes are fused once for all who come to
    the same weights, since that takes the time: a vote may have hundreds of thousands of symbols.
    """

    def __init__(self, fusion: FusionSettings, jurors: Sequence[Juror]) -> None:
        """Begin a text, which is fused by `fusion`."""
        self._fusion = fusion
        self.jurors = jurors
        self._begun = False
        looks = [juror.fusion.filter_n for juror in jurors if juror.fusion.filter == "top-n"]
        # A gate asks for the first choice.
        self._n_top = max(looks, default=1)

    def __call__(self, decision: Decision, symbol: int, n_bytes: int) -> None:
        """Tell the jurors the votes, and which symbol came."""
        if not self._begun:
            self._begun = True
            for juror in self.jurors:
                juror.begin(decision.evidence)
        votes = tuple(vote for vote in decision.votes if vote is not None)
        mine = self._fusion
        known: dict[tuple[tuple[float, ...], str, float], Vote] = {
            (decision.weights, mine.combine, mine.sharpness): decision.fused
        }

        def fuse(theirs: Decision, rule: FusionSettings) -> Vote:
            key = theirs.weights, rule.combine, rule.sharpness
            if key not in known:
                known[key] = combine(votes, *key)
            return known[key]

        seen = tuple(_seen(vote, symbol, self._n_top) for vote in votes)
        heard = Heard(seen, symbol, n_bytes)
        for juror in self.jurors:
            juror.hear(heard, fuse)


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


class Recorder:
    """An observer that keeps what it hears."""

    def __init__(self, n_members: int, *, conversation: bool = False) -> None:
        """Begin a text."""
        self._evidence = (0.0,) * n_members
        self._conversation = conversation
        self._heard: list[Heard] = []

    def __call__(self, decision: Decision, symbol: int, n_bytes: int) -> None:
        """Keep the votes, and which symbol came."""
        votes = tuple(vote for vote in decision.votes if vote is not None)
        if not self._heard:
            self._evidence = decision.evidence
        self._heard.append(Heard(votes, symbol, n_bytes))

    def transcript(self) -> Transcript:
        """Return what was heard."""
        return Transcript(tuple(self._heard), self._evidence, self._conversation)


def recording(fusion: FusionSettings) -> FusionSettings:
    """Return settings under which a Recorder hears all that other settings may need."""
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


def replay(transcript: Transcript, fusion: FusionSettings, lead: int, n_symbols: int) -> float:
    """Return the log-likelihood, in nats, that the text would have had under `fusion`."""
    n_members, conversation = len(transcript.evidence), transcript.conversation
    juror = Juror(fusion, n_members, lead, n_symbols, conversation=conversation)
    juror.begin(transcript.evidence)
    for heard in transcript.heard:
        juror.hear(heard)
    return juror.log_likelihood
