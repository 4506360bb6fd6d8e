"""Engines over fake models, in both spaces, and what drives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from fakes import WORDS_A, WORDS_B, FakeModel

from eva_local.alignment.library import identity
from eva_local.alignment.mapping import surface
from eva_local.config.specs import FusionSettings
from eva_local.engine.engine import Engine
from eva_local.engine.request import Request, Ticket
from eva_local.engine.sequence import TextSequence
from eva_local.spaces.bytes.space import ByteSpace
from eva_local.spaces.pivot import PivotSpace
from eva_local.types import Sampling, Step

MEAN = FusionSettings(combine="mean", filter="off")

#: Models of members, what each reads before a text, and how their votes are fused.
Cast = tuple[list[FakeModel], Sequence[bytes], FusionSettings]


def pair() -> Cast:
    """Return two members that read the same."""
    return [FakeModel(WORDS_A), FakeModel(WORDS_B)], (b"", b""), MEAN


def roles() -> Cast:
    """Return two members of one model, one of them held against the others, and another one."""
    one, fusion = FakeModel(WORDS_A), replace(MEAN, combine="geometric", weights=(1.5, -0.5, 1.0))
    return [one, one, FakeModel(WORDS_B)], (b"is", b" un", b""), fusion


CASTS: Sequence[Callable[[], Cast]] = (pair, roles)


def pivot_engine(
    models: list[FakeModel], fusion: FusionSettings = MEAN, *, pivot: int = 0, build=surface
) -> Engine:
    mappings = [
        identity(model)
        if model.vocabulary.fingerprint == models[pivot].vocabulary.fingerprint
        else build(model.tokenizer, models[pivot].tokenizer)
        for model in models
    ]
    space = PivotSpace(models, mappings, pivot=pivot, n_candidates=fusion.candidates)
    return Engine([f"m{i}" for i in range(len(models))], models, space, fusion)


def run(engine: Engine, *sequences: TextSequence) -> list[list[Step]]:
    """Step until all texts are finished; return each one's steps."""
    steps: list[list[Step]] = [[] for _ in sequences]
    while not all(sequence.finished for sequence in sequences):
        live = [i for i, sequence in enumerate(sequences) if not sequence.finished]
        for i, told in zip(live, engine.step([sequences[i] for i in live]), strict=True):
            steps[i] += told
    assert not any(sequence.error for sequence in sequences)
    return steps


def text_of(steps: list[Step]) -> bytes:
    return b"".join(step.piece for step in steps)


RUNNING = FusionSettings(space="bytes", combine="geometric", filter="off", weights="running")


def bytes_engine(*models: FakeModel, fusion: FusionSettings = RUNNING, pivot: int = 0) -> Engine:
    space = ByteSpace(models, pivot=pivot)
    return Engine([f"m{i}" for i in range(len(models))], models, space, fusion)


def ticket(
    engine: Engine, prompts, sampling: Sampling, *args, alone=None, trace=False, n_top=0, **how
) -> Ticket:
    """A ticket for prompts in tokens, for all members or one `alone`."""
    how["asked"] = Request("", trace=trace, n_top=n_top)
    return Ticket(engine.panel(alone), prompts, sampling, *args, **how)


def begin(
    engine: Engine,
    models: list[FakeModel],
    text: bytes,
    sampling: Sampling,
    slot=0,
    scored=0,
    prefixes: Sequence[bytes] = (),
) -> TextSequence:
    prefixes = prefixes or [b""] * len(models)
    pairs = zip(models, prefixes, strict=True)
    prompts = [[1, *model.tokenizer.encode(prefix + text)] for model, prefix in pairs]
    return engine.begin(ticket(engine, prompts, sampling, scored_bytes=scored, said=text), slot)
