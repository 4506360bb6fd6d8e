"""Texts that cannot fit are refused before a step sees them, and scores before a tokeniser does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from shared import open_shared, submit

from eva_local.api import Ensemble
from eva_local.errors import ContextError
from eva_local.types import Message, Sampling

HUGE = 40_000


@pytest.fixture
def ensemble() -> Iterator[Ensemble]:
    with open_shared(2, n_ctx=4096) as found:
        yield found


@pytest.mark.parametrize(
    "prompt",
    [
        "the " * (HUGE // 4),
        "中" * (HUGE // 3),
        [Message("system", "the"), Message("user", "the " * (HUGE // 4))],
        [Message("user", "the " * (HUGE // 40))] * 10,
        [290] * (HUGE // 4),
    ],
    ids=["text", "chinese", "messages", "turns", "symbols"],
)
def test_a_prompt_that_cannot_fit_is_refused_with_the_numbers(
    ensemble: Ensemble, prompt: Any
) -> None:
    few = Sampling(max_tokens=1)
    for ask in (
        lambda: ensemble.complete(prompt, few),
        lambda: ensemble.complete(prompt, few, alone="b"),
        lambda: submit(ensemble, prompt, few, lambda _: None),
    ):
        with pytest.raises(ContextError, match=r"b needs \d+ tokens of 4096; shorten"):
            ask()
    assert ensemble.scheduler.n_waiting == 0


def test_a_text_to_be_scored_that_cannot_fit_is_refused_too(
    ensemble: Ensemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = "the " * (HUGE // 4)
    with pytest.raises(ContextError, match=r"the prompt does not fit: a needs \d+ tokens"):
        ensemble.score(huge, "a")
    for model in ensemble._models:
        monkeypatch.setattr(model.tokenizer, "_raw", None)
    for text in (huge, [290] * (HUGE // 4)):
        with pytest.raises(ContextError, match="the text to be scored does not fit: a needs at "):
            ensemble.score("the", text)


def test_what_does_not_fit_may_still_be_counted() -> None:
    with open_shared(1, n_ctx=40) as ensemble:
        assert min(ensemble.prompt_tokens("z" * 400)) > 400
