"""Votes on a given text, heard once and fused under many settings without asking again."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from eva_local.config.specs import FusionSettings
from eva_local.engine.request import Request
from eva_local.fusion.fuser import Decision, Fuser
from eva_local.fusion.votes import Vote

# What an observer is told: a decision, the symbol that came, and how many bytes that stands for.
Heard = tuple[Decision, int, int]
# Weights under which there is evidence of the prompt, whatever it is.
JUDGING: Literal["prompt-perplexity"] = "prompt-perplexity"


@dataclass(eq=False)
class Replay:
    """How likely a given text is under some settings, from the members' votes on it.

    The space has `n_symbols`; `conversation` says that the text's prompt is one. The
    `log_likelihood` is in nats; `filtered` counts how often each member was dropped.
    """

    fusion: FusionSettings
    n_members: int
    pivot: int
    n_symbols: int
    conversation: bool
    log_likelihood: float = 0.0
    _first: bool = True

    def __post_init__(self) -> None:
        self.filtered = (0,) * self.n_members
        self._fuser = Fuser(self.fusion, self.n_members)

    def hear(
        self, heard: Decision, symbol: int, n_bytes: int, known: dict[object, Vote] | None = None
    ) -> None:
        """Take the next symbol, with the votes on it; see `Fuser.decide` for what is `known`."""
        if self._first and self.fusion.evidence_bytes(conversation=self.conversation):
            self._fuser.begin(heard.evidence)
        votes = [vote for vote in heard.votes if vote is not None]
        decision = self._fuser.decide(self._asked(votes), known=known)
        self._first = False
        self.log_likelihood += decision.fused.likelihood(symbol, self.n_symbols)
        dropped = zip(self.filtered, decision.votes, decision.stayed, strict=True)
        self.filtered = tuple(n + (vote is not None and not stays) for n, vote, stays in dropped)
        self._fuser.learn(decision, symbol, n_bytes)

    def _asked(self, votes: Sequence[Vote]) -> Sequence[Vote | None]:
        """Leave out, as the engine does, who a sure pivot would not have asked."""
        own = votes[self.pivot]
        gated = self.fusion.gate < 1 and not self._first and len(own)
        if not gated or own.probabilities.max() < self.fusion.gate:
            return votes
        return [own if member == self.pivot else None for member in range(len(votes))]


def heard_by(request: Request, listeners: Sequence[Replay]) -> Request:
    """Return a request for a score whose votes all `listeners` hear; answers are not heard."""
    if request.continuation is None:
        return request

    def observe(decision: Decision, symbol: int, n_bytes: int) -> None:
        known: dict[object, Vote] = {}
        for one in listeners:
            one.hear(decision, symbol, n_bytes, known)

    return replace(request, observe=observe)


def recording(fusion: FusionSettings) -> FusionSettings:
    """Return settings under which is heard all that other settings may need."""
    candidates = fusion.candidates or FusionSettings().candidates
    return replace(hearing(fusion), candidates=candidates, weights=JUDGING)


def hearing(fusion: FusionSettings) -> FusionSettings:
    """Return settings whose votes are those of `fusion`, all of them and with all candidates."""
    kept = {key: getattr(fusion, key) for key in ("space", "mapping", "prompt_evidence")}
    return FusionSettings(candidates=0, weights="equal", filter="off", **kept)
