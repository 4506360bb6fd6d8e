"""What is judged of a prompt, without a model."""

from __future__ import annotations

from eva_local.cache.likelihood import PromptLikelihood


def test_prompts_with_a_common_beginning_are_judged_from_the_same_token_on() -> None:
    first = []
    for length in (221, 210, 216):
        evidence = PromptLikelihood([b"", b"x"])
        evidence.begin([1] * length, 0, n_bytes=30)
        first.append(evidence.stretch(0)[0] + 1)
    assert first == [128, 128, 128]
