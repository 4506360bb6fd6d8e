"""What the models say to one call: its answers, or its scores, all of them side by side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from eva_local.engine.request import AnyPrompt, Request, Weights
from eva_local.errors import EvaError
from eva_local.openai.answer import Token, tokens_of
from eva_local.openai.call import Call
from eva_local.server.models import ServedModel
from eva_local.types import Score, Step


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt in front of its answer; the tokens are there where probabilities are told."""

    text: str
    n_tokens: int
    tokens: tuple[Token, ...] = ()


async def answers(model: ServedModel, call: Call) -> AsyncGenerator[tuple[int, Echo | Step], None]:
    """Write all answers of a call; yield what each says, with its number, as it comes.

    An answer's echo, if there is one, comes before its steps. Closing the iterator ends them all.
    Raises RefusedError where there is no slot, and the first error that an answer meets.
    """
    with model.slots.take(call.n_answers):
        if call.echo:
            for number, echo in enumerate(await _echoes(model, call)):
                for sample in range(call.n):
                    yield number * call.n + sample, echo
        if call.scored:
            return
        requests = [
            Request(
                prompt,
                call.seeded(sample),
                trace=call.trace,
                n_top=call.n_top or 0,
                alone=model.alone,
                weights=call.weights,
            )
            for prompt in call.prompts
            for sample in range(call.n)
        ]
        async with contextlib.aclosing(model.ensemble.arun_many(requests)) as all_told:
            async for number, told in all_told:
                if isinstance(told, EvaError):
                    raise told
                assert isinstance(told, Step)
                yield number, told


async def score_all(
    model: ServedModel,
    texts: Sequence[tuple[AnyPrompt, str | Sequence[int]]],
    weights: Weights | None,
    n_top: int | None,
) -> list[Score]:
    """Score texts, each after its prompt; raise the first error that one of them meets.

    Each symbol is told where `n_top` is given, and as many of the likeliest in its place.
    """
    requests = [
        Request(
            prompt,
            continuation=text,
            symbols=n_top is not None,
            n_top=n_top or 0,
            alone=model.alone,
            weights=weights,
        )
        for prompt, text in texts
    ]
    scores: dict[int, Score] = {}
    async with contextlib.aclosing(model.ensemble.arun_many(requests)) as all_told:
        async for number, told in all_told:
            if isinstance(told, EvaError):
                raise told
            assert isinstance(told, Score)
            scores[number] = told
    return [scores[number] for number in range(len(requests))]


async def _echoes(model: ServedModel, call: Call) -> list[Echo]:
    """Return what stands in front of the answers to each prompt."""
    read = await asyncio.to_thread(lambda: [_read(model, prompt) for prompt in call.prompts])
    if call.n_top is None:
        return [Echo(text, len(ids)) for text, ids in read]
    scores = await score_all(model, [("", ids) for _, ids in read], call.weights, call.n_top)
    echoes = []
    for (text, ids), score in zip(read, scores, strict=True):
        first, *others = tokens_of(score.symbols)
        # OpenAI tells no probability of the first: evaluation harnesses expect that.
        echoes.append(Echo(text, len(ids), (replace(first, logprob=None), *others)))
    return echoes


def _read(model: ServedModel, prompt: AnyPrompt) -> tuple[str, Sequence[int]]:
    """Return a prompt as text and as tokens."""
    ensemble, alone = model.ensemble, model.alone
    if isinstance(prompt, str):
        return prompt, ensemble.tokenize(prompt, alone=alone)
    ids = [each for each in prompt if isinstance(each, int)]
    return ensemble.detokenize(ids, alone=alone).decode("utf-8", "replace"), ids
