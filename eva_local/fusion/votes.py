"""From logits to one fused distribution: top-k, project, filter, weigh, combine.

Nothing here knows of models, and all but the fuser of a text are pure functions. A vote is
sparse: its symbols ascend, its probabilities sum to 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eva_local.alignment.mapping import Mapping
from eva_local.config.specs import FusionSettings

# Symbols are dense where they are at least this part of all up to the highest.
_DENSE = 8
# Of what those it is held for think likely, a member of negative weight lowers some.
_PLAUSIBLE = 0.1

# So many of a vote's symbols say how far it is from others.
_LIKELY = 1000

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Marks = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Vote:
    """A sparse distribution over the shared space.

    `symbols: (m,)` ascending and unique; `probabilities: (m,)` positive, sum 1. A vote
    without symbols abstains: all its mass fell on tokens that stand for nothing here.
    """

    symbols: Ids
    probabilities: Floats

    def __len__(self) -> int:
        return len(self.symbols)

    def probability(self, symbol: int) -> float:
        """Return the probability of one symbol."""
        index = int(np.searchsorted(self.symbols, symbol))
        held = index < len(self.symbols) and self.symbols[index] == symbol
        return float(self.probabilities[index]) if held else 0.0

    def at_least(self, symbol: int) -> float:
        """Return the probability of a symbol; of one that was cut off, an upper bound."""
        return self.probability(symbol) or float(self.probabilities.min(initial=1.0))

    def likelihood(self, symbol: int, n_symbols: int) -> float:
        """Return a log-probability or a bound above, in nats; of who abstains 1 / n_symbols."""
        return math.log(self.at_least(symbol) if len(self) else 1 / n_symbols)

    def within(self, marks: NDArray[np.bool_]) -> "Vote":
        """Return the symbols that are marked, (symbols,), with their probabilities as they are."""
        kept = marks[self.symbols]
        return self if kept.all() else Vote(self.symbols[kept], self.probabilities[kept])

    @property
    def entropy(self) -> float:
        """The entropy, in bits."""
        return -float(self.probabilities @ np.log2(self.probabilities))

    def top(self, count: int) -> list[tuple[int, float]]:
        """Return the likeliest symbols with their probabilities; ties go to the lower symbol."""
        among = np.arange(len(self))
        if 0 < count < len(self):
            least = np.partition(self.probabilities, -count)[-count]
            among = np.flatnonzero(self.probabilities >= least)
        order = among[np.argsort(-self.probabilities[among], kind="stable")][:count]
        return [(int(self.symbols[i]), float(self.probabilities[i])) for i in order]


# Groups of values for each one that is wanted.
_GROUPS = 4

NOBODY = Vote(np.empty(0, dtype=np.int64), np.empty(0))


def top_k(
    logits: NDArray[np.float32], count: int, marks: NDArray[np.bool_] | None = None
) -> tuple[Ids, Floats]:
    """Return the `count` highest logits' ids (ascending) and the softmax over just those.

    `logits: (n_vocab,)`; `count` 0 takes them all. With `marks: (n_vocab,)` the highest of those
    that are marked are there too, so that the others' probabilities stay as they are.
    """
    ids = np.arange(len(logits)) if count == 0 else highest(logits, count)
    if count and marks is not None:
        marked = np.flatnonzero(marks)
        ids = np.union1d(ids, marked[highest(logits[marked], count)])
    kept = logits[ids]
    weights = np.exp((kept - kept.max()).astype(np.float64))
    return ids, weights / weights.sum()


def highest(values: NDArray[np.floating[Any]], count: int) -> Ids:
    """Return the indices of the `count` highest values, ascending."""
    if count >= len(values):
        return np.arange(len(values))
    n_groups = _GROUPS * count
    if len(values) < 2 * n_groups:
        return np.sort(np.argpartition(values, len(values) - count)[-count:])
    # The best of each group show what a value must at least be, and hardly more than `count`
    # values are: a quarter of the time that sorting out all of them takes.
    whole = len(values) - len(values) % n_groups
    peaks = values[:whole].reshape(-1, n_groups).max(axis=0)
    bound = np.partition(peaks, n_groups - count)[n_groups - count]
    # Nothing is less than what is no number, so that such values are among the highest.
    found = np.flatnonzero(~(values < bound))
    best = np.argpartition(values[found], len(found) - count)[-count:]
    return found[np.sort(best)]


def reaching(mapping: Mapping, marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return (member tokens,): which may send mass to a symbol of `marks: (symbols,)`."""
    tokens = np.zeros(len(mapping.indptr) - 1, dtype=np.bool_)
    rows = np.repeat(np.arange(len(tokens)), np.diff(mapping.indptr))
    tokens[rows[marks[mapping.indices]]] = True
    if len(mapping.first):
        first = mapping.first[marks]
        tokens[first[first >= 0]] = True
    return tokens


def normalised(symbols: Ids, masses: Floats) -> Vote:
    """Add up masses of equal symbols and scale to sum 1; symbols without mass are left out."""
    unique, (index,) = _united([symbols])
    summed = np.bincount(index, masses, minlength=len(unique))
    held = np.flatnonzero(summed > 0)
    kept = summed[held]
    return Vote(unique[held], kept / kept.sum())


def project(ids: Ids, probabilities: Floats, mapping: Mapping, pivot: Vote | None = None) -> Vote:
    """Carry a member's distribution into the shared space.

    `ids, probabilities: (k,)` from `top_k`. Mass of tokens with an empty row is dropped and
    the rest scaled to sum 1. `pivot` is the pivot's own vote; a mapping with `first` splits
    each token's mass among the symbols that it begins, in proportion to it.
    """
    if len(mapping.first) and pivot is not None:
        return _project_refined(ids, probabilities, mapping, pivot)
    return normalised(*_project_rows(ids, probabilities, mapping))


def _project_rows(ids: Ids, probabilities: Floats, mapping: Mapping) -> tuple[Ids, Floats]:
    if len(ids) == len(mapping.indptr) - 1:
        # All tokens: the entries are those of the mapping as they stand.
        masses = np.repeat(probabilities, np.diff(mapping.indptr)) * mapping.weights
        return mapping.indices.astype(np.int64), masses
    starts = mapping.indptr[ids]
    counts = mapping.indptr[ids + 1] - starts
    # Positions of all entries of the chosen rows, without a loop over the rows.
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    entries = np.repeat(starts, counts) + offsets
    masses = np.repeat(probabilities, counts) * mapping.weights[entries]
    return mapping.indices[entries].astype(np.int64), masses


def _project_refined(ids: Ids, probabilities: Floats, mapping: Mapping, pivot: Vote) -> Vote:
    begins = mapping.first[pivot.symbols]
    if len(ids) == len(mapping.indptr) - 1:
        # All tokens of the member: each stands at its own index.
        index, split = begins.astype(np.int64), begins >= 0
    else:
        index = np.searchsorted(ids, begins)
        index[index == len(ids)] = 0
        split = ids[index] == begins
    index, shares = index[split], pivot.probabilities[split]
    totals = np.bincount(index, shares, minlength=len(ids))
    # A token that begins none of the pivot's likely symbols keeps its row of the mapping.
    rest = totals == 0
    symbols, masses = _project_rows(ids[rest], probabilities[rest], mapping)
    return normalised(
        np.concatenate([pivot.symbols[split], symbols]),
        np.concatenate([probabilities[index] * shares / totals[index], masses]),
    )


def faithful(votes: Sequence[Vote], count: int) -> list[bool]:
    """Return which members stay: EVA's filter for members that propose unfaithful tokens.

    A member stays if the top symbol of its vote is among the `count` top symbols of at least
    one other member; if none would, all stay (Xu et al. 2024). Who abstains never stays.
    """
    best = [[symbol for symbol, _ in vote.top(count)] for vote in votes]
    stay = [
        any(mine[:1] and mine[0] in theirs for j, theirs in enumerate(best) if j != i)
        for i, mine in enumerate(best)
    ]
    return stay if any(stay) else [bool(mine) for mine in best]


def softmax(evidence: Floats, temperature: float) -> Floats:
    """Return weights (members,) that sum to 1: the softmax of evidence over a temperature.

    `evidence` is each member's mean log-likelihood, in nats per byte, so that members with
    different tokenisers compare. With the prompt's likelihood these are the weights of PackLLM
    (Mavromatis et al. 2024).
    """
    weights = np.exp((evidence - evidence.max()) / temperature)
    scaled: Floats = weights / weights.sum()
    return scaled


def follow(evidence: Floats, log_likelihood: Floats, n_bytes: int, decay: float) -> Floats:
    """Return the evidence after `n_bytes` more bytes of log-likelihood (members,), in nats.

    A moving average per byte: each byte leaves the share `decay` of what was known before and
    brings its own log-likelihood with the share 1 - decay; the bytes of a piece share its
    log-likelihood equally.
    """
    left = decay**n_bytes
    return left * evidence + (1 - left) * log_likelihood / n_bytes


def combine(
    votes: Sequence[Vote | None],
    weights: Sequence[float],
    method: str = "mean",
    sharpness: float = 1.0,
) -> Vote:
    """Fuse votes into one distribution.

    A vote of weight 0 has no influence, and where no vote is left the result abstains. "mean" is
    the weighted arithmetic mean. "geometric" is the normalised weighted geometric mean to the
    power of `sharpness`; a symbol that a truncated vote does not hold counts there with its
    smallest probability, which bounds the true one from above. One vote that is left alone is
    the result as it is. In a geometric mean weights may be negative: of what members of positive
    weight give at least `_PLAUSIBLE` of their most, what the others think likely is less likely
    (Li et al. 2023, "Contrastive Decoding").
    """
    pairs = zip(votes, weights, strict=True)
    present = [(vote, weight) for vote, weight in pairs if vote is not None and weight]
    if sum(weight for _, weight in present) <= 0:
        present = [(vote, weight) for vote, weight in present if weight > 0]
    if not present:
        return NOBODY
    if len(present) == 1:
        return present[0][0]
    total = sum(weight for _, weight in present)
    if method == "mean":
        return normalised(
            np.concatenate([vote.symbols for vote, _ in present]),
            np.concatenate([vote.probabilities * (weight / total) for vote, weight in present]),
        )
    symbols, indices = _united([vote.symbols for vote, _ in present])
    liked, disliked = np.zeros(len(symbols)), np.zeros(len(symbols))
    for (vote, weight), index in zip(present, indices, strict=True):
        spread = np.full(len(symbols), vote.probabilities.min())
        spread[index] = vote.probabilities
        part = liked if weight > 0 else disliked
        part += (sharpness * weight / total) * np.log(spread)
    logs = liked + disliked
    if len(present) > sum(weight > 0 for _, weight in present):
        believed = sharpness * sum(weight for _, weight in present if weight > 0) / total
        kept = liked >= liked.max() + believed * math.log(_PLAUSIBLE)
        symbols, logs = symbols[kept], logs[kept]
    return normalised(symbols, np.exp(logs - logs.max()))


def divergence(votes: Sequence[Vote]) -> float:
    """Return how far votes are apart, each alike: their Jensen-Shannon divergence, in bits.

    From 0, where all say the same, to log2 of their number, where no two name the same symbol
    (Lin 1991, "Divergence measures based on the Shannon entropy"). Of each vote the
    likeliest 1,000 symbols count.
    """
    heads = []
    for vote in votes:
        best = highest(vote.probabilities, _LIKELY)
        masses = vote.probabilities[best]
        heads.append(Vote(vote.symbols[best], masses / masses.sum()))
    mixed = combine(heads, [1.0] * len(heads))
    return max(0.0, mixed.entropy - fmean(head.entropy for head in heads))


def _united(parts: Sequence[Ids]) -> tuple[Ids, list[Ids]]:
    """Return all symbols, ascending, and the indices of each part's symbols among them."""
    joined = np.concatenate(parts)
    if _DENSE * len(joined) <= joined.max(initial=0):
        symbols = np.unique(joined)
        return symbols, [np.searchsorted(symbols, part) for part in parts]
    # An array of all symbols is quicker than sorting these.
    held = np.bincount(joined) > 0
    index = np.cumsum(held) - 1
    return np.flatnonzero(held), [index[part] for part in parts]


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

    @property
    def disagreement(self) -> float | None:
        """The divergence of the votes, whether they stayed or not; None of fewer than two."""
        heard = [vote for vote in self.votes if vote]
        return divergence(heard) if len(heard) > 1 else None

    def dissenters(self, chosen: int, names: Sequence[str]) -> tuple[str, ...]:
        """Return those of the members' names whose first choice was another than the chosen."""
        votes = zip(names, self.votes, strict=True)
        return tuple(name for name, vote in votes if vote and vote.top(1)[0][0] != chosen)


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
