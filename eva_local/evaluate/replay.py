"""Votes that were heard once, judged again under other settings without the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eva_local.decision import Decision, Judge
from eva_local.fusion import Vote
from eva_local.sampling import Forced
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
    return FusionSettings(
        space=fusion.space,
        mapping=fusion.mapping,
        candidates=fusion.candidates or FusionSettings().candidates,
        weights="prompt-perplexity",
        filter="off",
    )


def replay(transcript: Transcript, fusion: FusionSettings, lead: int, n_symbols: int) -> float:
    """Return the log-likelihood, in nats, that the text would have had under `fusion`."""
    judge = Judge(fusion, len(transcript.evidence))
    if fusion.weights == "prompt-perplexity":
        judge.evidence = np.array(transcript.evidence)
    forced = Forced([heard.symbol for heard in transcript.heard], n_symbols)
    for heard in transcript.heard:
        decision = judge.decide(_asked(heard.votes, fusion, lead, first=forced.chosen == 0))
        forced.choose(decision.fused)
        judge.learn(decision, heard.symbol, heard.n_bytes)
    return forced.log_likelihood


def _asked(
    votes: Sequence[Vote], fusion: FusionSettings, lead: int, *, first: bool
) -> Sequence[Vote | None]:
    """Leave out, as the engine does, who a sure lead would not have asked."""
    if fusion.gate == 1 or first or not len(votes[lead]):
        return votes
    if votes[lead].top(1)[0][1] < fusion.gate:
        return votes
    return [vote if member == lead else None for member, vote in enumerate(votes)]
