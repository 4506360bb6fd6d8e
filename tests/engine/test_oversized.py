"""Texts that cannot fit are refused by their length, before a tokeniser or a step sees them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from fakes import WORDS_A, FakeModel
from hypothesis import given
from hypothesis import strategies as st
from shared import open_shared, submit
from strategies import awkward_bytes, awkward_text

from eva_local.api import Ensemble
from eva_local.errors import ContextError
from eva_local.llama.prompt import PromptWriter
from eva_local.types import Message, Sampling

HUGE = 4_000_000
STRIPS = "{% for m in messages %}{{ m.content | trim }}{% endfor %}"
LAST_ONLY = "{{ messages[-1].content }}"
TEMPLATES = [FakeModel.chat_template, STRIPS, LAST_ONLY, None]


@pytest.fixture
def ensemble(monkeypatch: pytest.MonkeyPatch) -> Any:
    with open_shared(2, n_ctx=4096) as found:
        for model in found._models:

            def only_short(text: bytes, raw: Callable[[bytes], list[int]]) -> list[int]:
                assert len(text) < 100, f"{len(text)} bytes were tokenised"
                return raw(text)

            monkeypatch.setattr(
                model.tokenizer, "_raw", partial(only_short, raw=model.tokenizer._raw)
            )
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
        with pytest.raises(ContextError, match=r"b needs at least \d+ tokens of 4096; shorten"):
            ask()
    assert ensemble.scheduler.n_waiting == 0


def test_a_text_to_be_scored_that_cannot_fit_is_refused_too(ensemble: Ensemble) -> None:
    huge = "the " * (HUGE // 4)
    for prompt, text in ((huge, "a"), ("the", huge), ("the", [290] * (HUGE // 4))):
        with pytest.raises(ContextError, match="does not fit: a needs at least"):
            ensemble.score(prompt, text)


def test_what_does_not_fit_may_still_be_counted() -> None:
    with open_shared(1, n_ctx=40) as ensemble:
        assert min(ensemble.prompt_tokens("z" * 400)) > 400


contents = st.one_of(awkward_text, awkward_text.map(lambda text: f" {text}\n" * 20))


@pytest.mark.parametrize("template", TEMPLATES)
@given(said=st.lists(contents, min_size=1, max_size=3), missing=st.sampled_from([(), (0xC3, 0xF0)]))
def test_no_prompt_has_fewer_tokens_than_its_length_says(template, said, missing) -> None:
    model = FakeModel(WORDS_A, missing=missing)
    model.chat_template = template
    writer = PromptWriter(model)
    messages = [Message("user", text) for text in said]
    assert writer.least(messages) <= len(writer.read(messages)[0])
    assert writer.least(said[0]) <= len(writer.read(said[0])[0])


@given(data=awkward_bytes, missing=st.sampled_from([(), (0xC3, 0xEF, 0xF0)]))
def test_no_bytes_have_fewer_tokens_than_their_number_says(data, missing) -> None:
    writer = PromptWriter(FakeModel(WORDS_A, missing=missing))
    assert writer.least(data) <= len(writer.read(data)[0])
