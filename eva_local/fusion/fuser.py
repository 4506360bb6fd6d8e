"""How the votes of one step become one distribution: the filter, the weights, the fusion."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from eva_local.config.specs import FusionSettings
from eva_local.fusion.votes import Floats, Marks, Vote, combine, faithful, follow, softmax


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """The fused distribution of a step, and each member's part in it.

    A vote is None where a member was not asked. `weights` are what the votes counted: they sum
    to 1 over the members that stayed. `reasons` say why a member did not stay. `evidence` is what
    was known of the members: each one's mean log-likelihood, in nats per byte.
    """

    fused: Vote
    votes: tuple[Vote | None, ...]
    stayed: tuple[bool, ...]
    reasons: tuple[str, ...]
    weights: tuple[float, ...]
    evidence: tuple[float, ...]


# Called after each choice with its decision, the chosen candidate and how many bytes that has.
Observer = Callable[[Decision, int, int], None]


class Fuser:
    """Fuses the votes of one text, step by step.

    `evidence: (members,)` is each member's mean log-likelihood in nats per byte, of the prompt
    or of the text so far, 0 at first; weights that follow it are its softmax. It is -inf of one
    that is left out.
    """

    def __init__(self, fusion: FusionSettings, n_members: int) -> None:
        self._fusion = fusion
        self.evidence: Floats = np.zeros(n_members)

    def begin(self, evidence: Sequence[float]) -> None:
        """Take in how well each member predicts its prompt, in nats per byte."""
        self.evidence = np.array(evidence, dtype=np.float64)

    def leave_out(self, member: int) -> None:
        """Let a member, who will not vote, count for nothing."""
        self.evidence[member] = -math.inf

    def decide(
        self,
        votes: Sequence[Vote | None],
        allowed: Marks | None = None,
        known: dict[object, Vote] | None = None,
    ) -> Decision:
        """Filter, weigh and combine; rules put to the same votes share what is `known` of them.

        Where a grammar says which symbols are `allowed`, members are filtered by what they say of
        those: its text need not be what anyone likes best. The votes are fused whole.
        """
        heard = votes if allowed is None else [vote and vote.within(allowed) for vote in votes]
        # Those of negative weight propose nothing that could be unfaithful.
        proposes = (self.weights >= 0).tolist()
        rated = [vote for vote, rates in zip(heard, proposes, strict=True) if vote and rates]
        filtered = self._fusion.filter != "off" and len(rated) > 1
        stay = iter(faithful(rated, self._fusion.filter_n) if filtered else [True] * len(rated))
        pairs = zip(heard, proposes, strict=True)
        stayed = tuple(bool(vote) and (not rates or next(stay)) for vote, rates in pairs)
        weights = self.weights * stayed
        if weights.sum() <= 0:
            # Nobody is left whom the others could be held against.
            weights = np.maximum(weights, 0)
        if weights.sum() == 0:
            # Only members of weight 0 stayed: they are what there is.
            weights = np.multiply(stayed, proposes, dtype=np.float64)
        shares = tuple((weights / (weights.sum() or 1.0)).tolist())
        known = {} if known is None else known
        rule = shares, self._fusion.combine, self._fusion.sharpness
        if rule not in known:
            known[rule] = combine(votes, weights.tolist(), *rule[1:])
        judged = enumerate(zip(heard, stayed, strict=True))
        reasons = ["" if stays else self._reason(i, vote) for i, (vote, stays) in judged]
        evidence = tuple(self.evidence.tolist())
        return Decision(known[rule], tuple(votes), stayed, tuple(reasons), shares, evidence)

    def learn(self, decision: Decision, symbol: int, n_bytes: int) -> None:
        """Take in how likely each member thought the chosen symbol of `n_bytes` bytes."""
        if self._fusion.weights != "running" or not n_bytes:
            return
        present = np.isfinite(self.evidence)
        votes = [vote for vote, is_in in zip(decision.votes, present, strict=True) if is_in]
        if any(vote is None or not len(vote) for vote in votes):
            # Evidence compares members: a step in which not all spoke says nothing.
            return
        likelihood = np.log([vote.at_least(symbol) for vote in votes if vote is not None])
        decay = self._fusion.weight_decay
        self.evidence[present] = follow(self.evidence[present], likelihood, n_bytes, decay)

    @property
    def weights(self) -> Floats:
        """What each member counts as long as the filter keeps it; not scaled."""
        weights = self._fusion.weights
        if isinstance(weights, tuple):
            return np.where(np.isfinite(self.evidence), weights, 0.0)
        return softmax(self.evidence, self._fusion.weight_temperature)

    def _reason(self, member: int, vote: Vote | None) -> str:
        if not np.isfinite(self.evidence[member]):
            return "left out of this answer: its thought failed"
        if vote is None:
            return "not asked: the pivot was sure"
        if not len(vote):
            return "proposes nothing that can be written here"
        return f"its first choice is in no other member's top {self._fusion.filter_n}"
