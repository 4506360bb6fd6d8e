"""Bits per byte: how well members alone, and an ensemble under many settings, predict texts.

Teacher-forced: every token of the pivot's own tokenisation of a text is scored under the fused
distribution before all members read it. Members alone are scored on their own tokens. Lower is
better; models with different vocabularies compare, since bytes are counted.

All settings share the forward passes. Votes and weights are those of the engine, but that no
candidates are cut off.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Mapping as Table
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eva_local.alignment.mapping import Mapping
from eva_local.decision import Judge
from eva_local.evaluate.texts import cut, without
from eva_local.fusion import Floats, Vote, combine
from eva_local.model import Model, Run
from eva_local.prompt import PromptWriter
from eva_local.space import PivotSpace
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
    models, place = list(members.values()), list(members).index(pivot)
    readers = {
        method: _Reader(models, [mappings[method][name] for name in members], place)
        for method in {one.mapping: None for one in settings}
    }
    tallies = [_Tally(one) for one in settings]
    count = max(one.filter_n for one in settings)
    for passage in _told(chosen, "fused", progress):
        prompts = [passage.prompts[name] for name in members]
        evidence = _start(models, [*readers.values()], prompts)
        for tally in tallies:
            tally.begin(evidence)
        for symbol in members[pivot].tokenizer.encode(passage.text):
            _decode(models, [*readers.values()])
            steps = {
                method: _Step(reader.votes(), symbol, count) for method, reader in readers.items()
            }
            n_bytes = len(members[pivot].vocabulary.pieces[symbol])
            for tally in tallies:
                tally.add(steps[tally.fusion.mapping], n_bytes)
            for reader in readers.values():
                reader.commit(symbol)
    return {tally.fusion: tuple(tally.bits) for tally in tallies}


class _Reader:
    """The engine's own voices under one mapping, which vote with all of their tokens."""

    def __init__(self, models: Sequence[Model], table: Sequence[Mapping], pivot: int) -> None:
        """Let `models` read in sequence 0; `table` carries their tokens into those of `pivot`."""
        self._space = PivotSpace(models, table, pivot=pivot, n_candidates=0)
        self.voices = self._space.voices(0)

    def votes(self) -> list[Vote]:
        return self._space.votes(self.voices, self._space.lead_vote(self.voices))

    def commit(self, symbol: int) -> None:
        for voice in self.voices:
            voice.commit(symbol)


def _start(
    models: Sequence[Model], readers: Sequence[_Reader], prompts: Sequence[Sequence[int]]
) -> Floats:
    """Begin a passage; return how likely each member found its prompt, in nats per byte."""
    evidence = []
    for place, (model, prompt) in enumerate(zip(models, prompts, strict=True)):
        voices = [reader.voices[place] for reader in readers]
        model.remove(0, 0)
        for voice in voices:
            # What was read before is forgotten, so that all of the prompt is judged.
            voice.start(())
            voice.start(prompt)
        runs = [voice.pending()[0] for voice in voices]
        voices[0].read(runs[0], model.decode_every(runs[0]))
        for voice, run in zip(voices[1:], runs[1:], strict=True):
            voice.take(run, None)
        evidence.append(voices[0].evidence())
    return np.array(evidence)


def _decode(models: Sequence[Model], readers: Sequence[_Reader]) -> None:
    """Decode once for all readers, whose contexts hold the same tokens."""
    for place, model in enumerate(models):
        voices = [reader.voices[place] for reader in readers]
        runs = [voice.pending()[0] for voice in voices]
        (logits,) = model.decode(runs[:1])
        for voice, run in zip(voices, runs, strict=True):
            voice.take(run, logits)


class _Step:
    """The whole votes of one step, of which `symbol` came true."""

    def __init__(self, votes: Sequence[Vote], symbol: int, count: int) -> None:
        self.symbol = symbol
        self.seen = [_seen(vote, symbol, count) for vote in votes]
        self._votes = votes
        self._found: dict[tuple[str, tuple[float, ...]], float] = {}

    def probability(self, how: str, weights: tuple[float, ...]) -> float:
        """Return the fused probability of the true symbol; without mass, the smallest."""
        key = how, weights
        if key not in self._found:
            self._found[key] = combine(self._votes, weights, how).at_least(self.symbol)
        return self._found[key]


def _seen(vote: Vote, symbol: int, count: int) -> Vote:
    """Return what a Judge looks at: first choices, the true symbol, the smallest probability.

    So each setting can have a Judge of its own, and settings that come to the same weights
    share the fusion of whole votes, which takes the time.
    """
    if not len(vote):
        return vote
    least = int(vote.symbols[vote.probabilities.argmin()])
    looked_at = {least, *(first for first, _ in vote.top(count))}
    if vote.probability(symbol):
        looked_at.add(symbol)
    symbols = np.array(sorted(looked_at))
    return Vote(symbols, np.array([vote.probability(one) for one in symbols]))


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


def _log2_probability(logits: NDArray[np.float32], token_id: int) -> float:
    shifted = logits.astype(np.float64) - logits.max()
    return float((shifted[token_id] - np.log(np.exp(shifted).sum())) / math.log(2))


def _missing(members: Table[str, Model]) -> frozenset[int]:
    return frozenset[int]().union(*(model.tokenizer.missing_bytes for model in members.values()))
