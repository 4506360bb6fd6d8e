"""Answers of all modes side by side: each is written as if it were alone, after any history."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fakes import WORDS_A, WORDS_B
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from thinkers import BY_ARGUMENT, NO_THOUGHTS, OTHER, TOLD, UNTOLD, Thinking, thinking_ensemble

from eva_local.api import Ensemble
from eva_local.engine.request import Request, Told
from eva_local.errors import ContextError, EvaError, ModelError
from eva_local.llama.model import ALL
from eva_local.llama.vocab import Kind
from eva_local.types import Message, Sampling, Step

SCHEMA = '{"enum": ["Paris", "the end"]}'
TEXTS = ("is it", "</think> un", "<think>", "a [/THINK]", "é 😀 中", "<|im_end|> the", "unb " * 20)


class Wild(Thinking):
    """One that wants anything: now and then END, a mark, or half a character.

    It cannot decode pieces from the one on that it `refuses`.
    """

    def __init__(self, template: str | None, seed: int, words: Sequence[bytes], **how) -> None:
        kind, snapshots = how.pop("kind"), how.pop("snapshots")
        refused = how.pop("refuses")
        super().__init__(template, "x", words=words, kind=kind, **how)
        self.seed = seed
        pieces = enumerate(self.vocabulary.pieces)
        self._refused = {i for i, piece in pieces if refused and piece >= refused}
        if snapshots is not None:
            self.can_roll_back, self.n_snapshots = False, snapshots
            self.n_branches = 8 + snapshots
        marks = ("<think>", "</think>", "[THINK]", "[/THINK]")
        spelled = self.vocabulary.spelled
        self._marks = [i for i in range(len(self.vocabulary)) if spelled(i) in marks]
        self._marks.append(min(self.vocabulary.end_ids))

    def decode(self, runs):
        if any(not self._refused.isdisjoint(run.tokens) for run in runs):
            raise ModelError("it cannot read that")
        return super().decode(runs)

    def _scripted(self, tokens):
        seed = hashlib.sha256(repr((self.seed, list(tokens))).encode()).digest()[:8]
        generator = np.random.default_rng(int.from_bytes(seed))
        row = generator.normal(0, 4, len(self.vocabulary)).astype(np.float32)
        if generator.random() < 0.15:
            row[generator.choice(self._marks)] = 20
        return row


wild = st.builds(
    Wild,
    st.sampled_from([TOLD, UNTOLD, OTHER, BY_ARGUMENT, NO_THOUGHTS, None]),
    st.integers(0, 99),
    st.sampled_from([WORDS_A, WORDS_B]),
    kind=st.sampled_from([Kind.USER, Kind.CONTROL, None]),
    snapshots=st.sampled_from([None, None, 0, 2]),
    refuses=st.sampled_from([None, None, b"\xd8"]),
    n_ctx=st.sampled_from([120, 200, 512]),
)
conversations = st.one_of(
    st.sampled_from(TEXTS),
    st.builds(lambda text: [Message("user", text)], st.sampled_from(TEXTS)),
    st.builds(
        lambda answer, text: [Message("user", "a"), Message("assistant", answer), *text],
        st.sampled_from(["the", "<think>\nun\n</think>\n\nthe"]),
        st.sampled_from([[], [Message("user", "is it")]]),
    ),
)
samplings = st.builds(
    Sampling,
    max_tokens=st.sampled_from([1, 3, 12, 200]),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 9),
    thinking=st.sampled_from(["auto", "off", "on", "apart"]),
    thinking_budget=st.sampled_from([-1, 0, 1, 5]),
    stop=st.sampled_from([(), (), ("un", "e")]),
    repeat_penalty=st.sampled_from([1.0, 1.3]),
    json_schema=st.sampled_from([None, None, None, SCHEMA]),
)
requests = st.lists(
    st.builds(Request, conversations, samplings, alone=st.sampled_from([None, None, "m0"])),
    min_size=1,
    max_size=4,
)


def answers(ensemble: Ensemble, asked: Sequence[Request]) -> list[list[object]]:
    told: list[list[Told]] = [[] for _ in asked]
    for number, each in ensemble.run_many(asked):
        told[number].append(each)
    for found, request in zip(told, asked, strict=True):
        is_as_asked(found, request.sampling)
    return [[str(e) if isinstance(e, EvaError) else _shown(e) for e in each] for each in told]


def _shown(step: Step) -> tuple[object, ...]:
    return step.piece, step.text, step.reasoning, step.member, step.finish_reason


def is_as_asked(told: list[Told], how: Sampling) -> None:
    *others, last = told
    if isinstance(last, EvaError):
        assert isinstance(last, ContextError | ModelError)
        return
    assert last.finish_reason
    assert all(step.finish_reason is step.usage is None for step in others)
    # First the thought, then the answer, and each piece counts once.
    is_answer = [step.reasoning is None for step in told]
    assert is_answer == sorted(is_answer)
    assert last.usage.steps == sum(bool(step.piece) for step in told)
    thought = [step for step in told if step.reasoning is not None and step.piece]
    assert last.usage.reasoning_steps == len(thought)
    for _, steps in itertools.groupby(thought, lambda step: step.member):
        assert how.thinking_budget < 0 or len(list(steps)) <= how.thinking_budget
    text = "".join(step.text for step in told)
    assert not any(stop in text for stop in how.stop)
    if how.json_schema and last.finish_reason == "stop" and not how.stop:
        assert text in ('"Paris"', '"the end"')


@pytest.mark.parametrize("space", ["pivot", "bytes"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    models=st.lists(wild, min_size=1, max_size=2),
    repeats=st.sampled_from([1, 1, 2, "in other roles, of negative weight"]),
    weights=st.sampled_from(["equal", "running", "thought", "prompt-perplexity"]),
    asked=requests,
    parallel=st.sampled_from([1, 2, 4]),
)
def test_answers_of_all_modes_are_as_if_alone(
    space, models, repeats, weights, asked, parallel
) -> None:
    def opened(parallel: int) -> Ensemble:
        for model in models:
            model.remove(ALL, 0)
        options: dict[str, Any] = {"space": space, "parallel": parallel, "weights": weights}
        if isinstance(repeats, int):
            return thinking_ensemble(*models * repeats, **options)
        n = len(models)
        options |= {"combine": "geometric", "weights": (2.0,) * n + (-1.0,) * n}
        return thinking_ensemble(*models * 2, prefixes=("",) * n + (" un",) * n, **options)

    each = []
    for request in asked:
        with opened(1) as ensemble:
            each += answers(ensemble, [request])
    with opened(parallel) as ensemble:
        assert answers(ensemble, asked) == each
        # And so it is in slots that others have left in the middle.
        for request in asked:
            steps = ensemble.stream(request.prompt, request.sampling, alone=request.alone)
            with contextlib.closing(steps), contextlib.suppress(EvaError):
                list(itertools.islice(steps, 3))
        assert answers(ensemble, asked) == each
