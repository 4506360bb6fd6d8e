"""What is judged of a prompt, without a model."""

from __future__ import annotations

import numpy as np
import pytest

from eva_local.cache.context import PromptLikelihood
from eva_local.llama.model import Run


def test_prompts_with_a_common_beginning_are_judged_from_the_same_token_on() -> None:
    first = []
    for length in (221, 210, 216):
        evidence = PromptLikelihood([b"", b"x"])
        evidence.begin([1] * length, 0, n_bytes=30)
        first.append(evidence.stretch(0)[0] + 1)
    assert first == [128, 128, 128]


@pytest.mark.parametrize(("follows", "kept"), [(2, 10), (3, 9)])
def test_what_follows_the_kept_tokens_is_known_if_it_is_the_same(follows, kept) -> None:
    likelihood = PromptLikelihood([b"", b"a", b"b", b"c"])
    prompt = [1] * 10 + [2, 2]
    likelihood.begin(prompt, 0, n_bytes=30)
    likelihood.read(Run(0, 0, prompt, logits=True), [np.zeros((len(prompt), 4))])
    assert likelihood.begin([1] * 10 + [follows, 3], 10, n_bytes=30) == kept
