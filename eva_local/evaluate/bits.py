"""Bits per byte: how well members alone, and an ensemble under many settings, predict texts.

Teacher-forced: every token of the pivot's own tokenisation of a text is scored under the fused
distribution before all members read it. Members alone are scored on their own tokens. Lower is
better; models with different vocabularies compare, since bytes are counted.

All settings share the forward passes. Whole votes are fused (no candidates are cut off), in dense
arrays; what each vote weighs is left to the engine's own Judge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Mapping as Table
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eva_local.alignment.library import identity
from eva_local.alignment.mapping import Mapping
from eva_local.context import Context
from eva_local.decision import Judge
from eva_local.evaluate.texts import cut, without
from eva_local.fusion import Floats, Ids, Vote
from eva_local.model import Model, Run
from eva_local.prompt import PromptWriter
from eva_local.specs import FusionSettings

Progress = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Passage:
    """A text that is predicted after a prompt; `prompts[name]` are the tokens of each member."""

    prompts: Table[str, Sequence[int]]
    text: bytes


@dataclass(frozen=True, slots=True)
class Bits:
    """What each passage of `n_bytes` cost: each member alone, and fused under each setting."""

    n_bytes: tuple[int, ...]
    alone: Table[str, tuple[float, ...]]
    fused: Table[FusionSettings, tuple[float, ...]]

    def per_byte(self, bits: Sequence[float]) -> float:
        """Return bits per byte over all passages."""
        return sum(bits) / sum(self.n_bytes)


def passages(
    texts: Sequence[bytes], members: Table[str, Model], prompt_bytes: int = 0
) -> list[Passage]:
    """Make of the first `prompt_bytes` of each text a prompt, and of the rest what is predicted.

    Texts without a rest are left out, and so are characters that some member has no token for.
    """
    writers = {name: PromptWriter(model) for name, model in members.items()}
    missing = _missing(members)
    found = []
    for text in texts:
        prompt, rest = cut(without(text, missing), prompt_bytes)
        if rest:
            start = prompt.decode()
            prompts = {name: writer.tokens(start) for name, writer in writers.items()}
            found.append(Passage(prompts, rest))
    return found


def bits_per_byte(
    chosen: Sequence[Passage],
    members: Table[str, Model],
    pivot: str,
    settings: Sequence[FusionSettings],
    mappings: Table[str, Table[str, Mapping]],
    progress: Progress = lambda _what, _share: None,
) -> Bits:
    """Measure `members` on passages, alone and fused under each of some settings.

    `mappings[method][member]` carries a member's tokens into the tokens of `pivot`. Of the
    settings `mapping`, `combine`, the filter and the weights count.
    """
    sizes = tuple(len(passage.text) for passage in chosen)
    alone = {}
    for name, model in members.items():
        parts = _told(chosen, f"{name} alone", progress)
        alone[name] = tuple(_alone(model, part.prompts[name], part.text) for part in parts)
    fused: Table[FusionSettings, tuple[float, ...]] = {}
    if len(members) > 1 and settings:
        fused = _fused(chosen, members, pivot, settings, mappings, progress)
    return Bits(sizes, alone, fused)


def _told(chosen: Sequence[Passage], what: str, progress: Progress) -> Iterator[Passage]:
    """Go through the passages, and tell how far."""
    done, total = 0, sum(len(passage.text) for passage in chosen)
    for passage in chosen:
        progress(what, done / total)
        yield passage
        done += len(passage.text)


def _alone(model: Model, prompt: Sequence[int], text: bytes) -> float:
    model.remove(0, 0)
    tokens = model.tokenizer.encode(text)
    bits, place = 0.0, 1 - len(prompt)
    for block in model.decode_every(Run(0, 0, [*prompt, *tokens[:-1]])):
        for logits in block:
            if place >= 0:
                bits -= _log2_probability(logits, tokens[place])
            place += 1
    return bits


def _fused(
    chosen: Sequence[Passage],
    members: Table[str, Model],
    pivot: str,
    settings: Sequence[FusionSettings],
    mappings: Table[str, Table[str, Mapping]],
    progress: Progress,
) -> dict[FusionSettings, tuple[float, ...]]:
    readers = {name: _Reader(model) for name, model in members.items()}
    projector = _Projector(members, pivot, {one.mapping: mappings[one.mapping] for one in settings})
    tallies = [_Tally(one) for one in settings]
    count = max(one.filter_n for one in settings)
    tokenizer = members[pivot].tokenizer
    for passage in _told(chosen, "fused", progress):
        evidence = [reader.start(passage.prompts[name]) for name, reader in readers.items()]
        for tally in tallies:
            tally.begin(np.array(evidence))
        for token_id in tokenizer.encode(passage.text):
            spreads = {name: reader.next() for name, reader in readers.items()}
            steps = {
                method: _Step([_Whole(vote, token_id, count) for vote in votes], token_id)
                for method, votes in projector.votes(spreads)
            }
            piece = members[pivot].vocabulary.pieces[token_id]
            for tally in tallies:
                tally.add(steps[tally.fusion.mapping], len(piece))
            for reader in readers.values():
                reader.commit(members[pivot], token_id)
    return {tally.fusion: tuple(tally.bits) for tally in tallies}


class _Reader:
    """A member that reads a text token by token, and says what it expects next."""

    def __init__(self, model: Model) -> None:
        model.remove(0, 0)
        self._model = model
        self._context = Context(model)

    def start(self, prompt: Sequence[int]) -> float:
        """Read a prompt; return its mean log-likelihood in nats per byte, 0 without text."""
        self._context.start(prompt)
        run = self._context.pending()
        place = run.start + 1
        for block in self._model.decode_every(run):
            self._context.judge(place, block)
            place += len(block)
        self._context.decoded(run)
        return self._context.log_likelihood_per_byte()

    def next(self) -> Floats:
        """Return the next-token distribution (n_tokens,)."""
        run = self._context.pending()
        (logits,) = self._model.decode([run])
        self._context.decoded(run)
        assert logits is not None
        return _scaled(np.exp((logits - logits.max()).astype(np.float64)))

    def commit(self, pivot: Model, token_id: int) -> None:
        """Read one of the pivot's tokens."""
        if self._model.vocabulary.fingerprint == pivot.vocabulary.fingerprint:
            self._context.append_token(token_id)
        else:
            self._context.append(pivot.vocabulary.pieces[token_id])


class _Projector:
    """Carries whole distributions into the pivot's space, under several mappings."""

    def __init__(
        self, members: Table[str, Model], pivot: str, mappings: Table[str, Table[str, Mapping]]
    ) -> None:
        spelled = _spelled(members, pivot)
        self._pivot = pivot
        self._lead = _Projection(identity(members[pivot]), spelled)
        self._others = {
            method: {name: _Projection(table[name], spelled) for name in members if name != pivot}
            for method, table in mappings.items()
        }

    def votes(self, spreads: Table[str, Floats]) -> Iterator[tuple[str, list[Floats]]]:
        """Yield each method with the votes (n_symbols,) of the members, in their order."""
        lead = self._lead.project(spreads[self._pivot], None)
        for method, others in self._others.items():
            yield (
                method,
                [
                    lead if name == self._pivot else others[name].project(spread, lead)
                    for name, spread in spreads.items()
                ],
            )


class _Projection:
    """A mapping as it acts on whole distributions."""

    def __init__(self, mapping: Mapping, spelled: Floats) -> None:
        from scipy.sparse import csr_array

        shape = (len(mapping.indptr) - 1, mapping.n_symbols)
        matrix = csr_array((mapping.weights, mapping.indices, mapping.indptr), shape=shape)
        self._columns = matrix.T.tocsr().astype(np.float64)
        self._spelled = spelled
        self._symbols = np.flatnonzero(mapping.first >= 0)
        self._first = mapping.first[self._symbols]

    def project(self, probabilities: Floats, lead: Floats | None) -> Floats:
        """Carry (n_tokens,) to (n_symbols,), summing to 1; `lead` is the pivot's vote."""
        vote = np.zeros(self._columns.shape[0])
        if lead is not None and len(self._first):
            shares = lead[self._symbols]
            totals = np.bincount(self._first, shares, minlength=len(probabilities))
            split = totals > 0
            each = np.divide(probabilities, totals, out=np.zeros(len(totals)), where=split)
            vote[self._symbols] = each[self._first] * shares
            probabilities = np.where(split, 0, probabilities)
        vote += np.asarray(self._columns @ probabilities)
        return _scaled(vote * self._spelled)


class _Whole:
    """A whole vote: `masses: (n_symbols,)`, of which the true next symbol is `symbol`."""

    def __init__(self, masses: Floats, symbol: int, count: int) -> None:
        self.masses = masses
        self.held = masses > 0
        least = int(np.where(self.held, masses, np.inf).argmin())
        best = np.argpartition(masses, -count)[-count:]
        looked_at: Ids = np.unique([*best, least, symbol])
        looked_at = looked_at[self.held[looked_at]]
        # What a Judge looks at: the first choices, the true symbol, the smallest probability.
        self.seen = Vote(looked_at, masses[looked_at])

    @cached_property
    def logs(self) -> Floats:
        """The logarithms; what has no mass counts with the smallest, as in `fusion.combine`."""
        logs: Floats = np.log(np.where(self.held, self.masses, self.seen.probabilities.min()))
        return logs


class _Step:
    """The whole votes of one step under one mapping."""

    def __init__(self, votes: Sequence[_Whole], symbol: int) -> None:
        self.symbol = symbol
        self.seen = [vote.seen for vote in votes]
        self._votes = votes
        self._found: dict[tuple[str, tuple[float, ...]], float] = {}

    def probability(self, combine: str, weights: tuple[float, ...]) -> float:
        """Return the fused probability of the true symbol; without mass, the smallest."""
        key = combine, weights
        if key not in self._found:
            fused = fuse(self._votes, weights, combine)
            self._found[key] = float(fused[self.symbol] or fused[fused > 0].min())
        return self._found[key]


class _Tally:
    """What the passages cost under one setting."""

    def __init__(self, fusion: FusionSettings) -> None:
        self.fusion = fusion
        self.bits: list[float] = []

    def begin(self, evidence: Floats) -> None:
        """Begin a passage, whose prompt gave each member this evidence."""
        self._judge = Judge(self.fusion, len(evidence))
        if self.fusion.weights == "prompt-perplexity":
            self._judge.evidence = evidence
        self.bits.append(0.0)

    def add(self, step: _Step, n_bytes: int) -> None:
        """Score a symbol of `n_bytes` bytes, then let the weights learn from it."""
        decision = self._judge.decide(step.seen)
        probability = step.probability(self.fusion.combine, decision.weights)
        self.bits[-1] -= math.log2(probability)
        self._judge.learn(decision, step.symbol, n_bytes)


def fuse(votes: Sequence[_Whole], weights: Sequence[float], combine: str) -> Floats:
    """Do to whole votes what `fusion.combine` does to sparse ones; `weights` sum to 1."""
    present = [(vote, weight) for vote, weight in zip(votes, weights, strict=True) if weight > 0]
    total = np.zeros(len(votes[0].masses))
    if combine == "mean" or len(present) == 1:
        for vote, weight in present:
            total += weight * vote.masses
        return total
    for vote, weight in present:
        total += weight * vote.logs
    held = np.logical_or.reduce([vote.held for vote, _ in present])
    return _scaled(np.exp(total - total.max()) * held)


def _scaled(masses: Floats) -> Floats:
    scaled: Floats = masses / masses.sum()
    return scaled


def _log2_probability(logits: NDArray[np.float32], token_id: int) -> float:
    shifted = logits.astype(np.float64) - logits.max()
    return float((shifted[token_id] - np.log(np.exp(shifted).sum())) / math.log(2))


def _missing(members: Table[str, Model]) -> frozenset[int]:
    return frozenset[int]().union(*(model.tokenizer.missing_bytes for model in members.values()))


def _spelled(members: Table[str, Model], pivot: str) -> Floats:
    """Return (n_symbols,): 1 for what every member can spell, else 0; END counts as spelled."""
    missing = _missing(members)
    pieces = members[pivot].vocabulary.pieces
    return np.array([*(missing.isdisjoint(piece) for piece in pieces), True], dtype=np.float64)
