"""An ensemble of fake models that several threads and event loops use at once."""

from __future__ import annotations

from pathlib import Path

from batches import ensemble_of_models
from fakes import WORDS_A, WORDS_B, FakeModel

from eva_local.api import Ensemble
from eva_local.config.specs import EnsembleSpec, FusionSettings, ModelSpec, PathSource
from eva_local.engine.request import AnyPrompt, Request, Sink, Ticket
from eva_local.types import Sampling

#: More than any test waits for.
ENDLESS = 1_000_000
PROMPTS = ("the", " a", "Paris is", "un", "the unbelievable end of it", "é中", "z", "there")


class Endless(FakeModel):
    """A model that never wants END, with a context that is never full."""

    def __init__(self, words: list[bytes], n_ctx: int = 2 * ENDLESS) -> None:
        super().__init__(words, n_ctx=n_ctx, endless=True)
        #: What the next decoding raises.
        self.fault: Exception | None = None

    def decode(self, runs):
        if self.fault is not None:
            raise self.fault
        return super().decode(runs)


def open_shared(parallel: int = 3, drafter: str = "auto", **options) -> Ensemble:
    models = [Endless(words, **options) for words in (WORDS_A, WORDS_B)]
    members = tuple(ModelSpec(name, PathSource(Path("fake.gguf"))) for name in ("a", "b"))
    spec = EnsembleSpec("pair", members, "a", FusionSettings(filter="off", drafter=drafter))
    return ensemble_of_models(spec, models, parallel)


def alone(prompt: str, sampling: Sampling) -> str:
    """What an ensemble writes that nobody else uses."""
    with open_shared(1) as ensemble:
        return ensemble.complete(prompt, sampling).text


def submit(
    ensemble: Ensemble, prompt: AnyPrompt, sampling: Sampling | None, sink: Sink, **options
) -> Ticket:
    """Ask for an answer that `scheduler.step` will write and tell `sink` of."""
    ticket = ensemble._ticket(Request(prompt, sampling, **options))
    ticket.sink = sink
    return ensemble.scheduler.submit(ticket)
