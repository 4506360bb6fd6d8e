"""An ensemble of fake models to chat with, and bits that several tests of the chat need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fakes import WORDS_A, WORDS_B, FakeModel

from eva_local.api import Ensemble
from eva_local.chat.chat import Chat
from eva_local.config.specs import EnsembleSpec, FusionSettings, ModelSpec, PathSource
from eva_local.opening import ensemble_of
from eva_local.types import Sampling, Step


def fake_ensemble(
    spec: EnsembleSpec | None = None, *, n_ctx: tuple[int, int] = (4096, 4096)
) -> Ensemble:
    """Two fake models with vocabularies of their own. The cache of mappings must be a test's."""
    models = [FakeModel(WORDS_A, n_ctx=n_ctx[0]), FakeModel(WORDS_B, n_ctx=n_ctx[1])]
    members = tuple(ModelSpec(name, PathSource(Path("fake.gguf"))) for name in ("a-1", "b-2"))
    fusion = FusionSettings(mapping="surface")
    return ensemble_of(spec or EnsembleSpec("fake", members, "a-1", fusion), models)


def fake_chat(folder: Path, notes: list[str], max_tokens: int = 6, **options) -> Chat:
    return Chat(
        fake_ensemble(**options), Sampling(max_tokens=max_tokens), folder / "chats", notes.append
    )


def said(steps: Iterator[Step]) -> str:
    return "".join(step.text for step in steps)
