"""Engines over fake models, in both spaces, and what drives them."""

from __future__ import annotations

from fakes import FakeModel

from eva_local.alignment.library import identity
from eva_local.alignment.surface import surface
from eva_local.config.specs import FusionSettings
from eva_local.engine.engine import Engine
from eva_local.engine.request import Ticket
from eva_local.engine.sequence import TextSequence
from eva_local.spaces.bytes.space import ByteSpace
from eva_local.spaces.pivot import PivotSpace
from eva_local.types import Sampling, Step

MEAN = FusionSettings(combine="mean", filter="off")


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
        for i, step in zip(live, engine.step([sequences[i] for i in live]), strict=True):
            if step is not None:
                steps[i].append(step)
    assert not any(sequence.error for sequence in sequences)
    return steps


def text_of(steps: list[Step]) -> bytes:
    return b"".join(step.piece for step in steps)


RUNNING = FusionSettings(space="bytes", combine="geometric", filter="off", weights="running")


def bytes_engine(*models: FakeModel, fusion: FusionSettings = RUNNING, pivot: int = 0) -> Engine:
    space = ByteSpace(models, pivot=pivot)
    return Engine([f"m{i}" for i in range(len(models))], models, space, fusion)


def ticket(engine: Engine, prompts, sampling: Sampling, *args, alone=None, **how) -> Ticket:
    """A ticket for prompts in tokens, for all members or one `alone`."""
    return Ticket(engine.panel(alone), prompts, sampling, *args, **how)


def begin(
    engine: Engine, models: list[FakeModel], text: bytes, sampling: Sampling, slot=0, scored=0
) -> TextSequence:
    prompts = [[1, *m.tokenizer.encode(text)] for m in models]
    return engine.begin(ticket(engine, prompts, sampling, scored_bytes=scored), slot)
