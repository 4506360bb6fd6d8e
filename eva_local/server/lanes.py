"""The answers to one call, all written side by side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from eva_local.llama.prompt import Prompt
from eva_local.openai.answer import Token, tokens_of
from eva_local.openai.call import Call, TokenIds
from eva_local.server.models import ServedModel
from eva_local.types import Step


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt in front of its answer; the tokens are there where probabilities are told."""

    text: str
    n_tokens: int
    tokens: tuple[Token, ...] = ()


# An answer's echo, if there is one, comes before its steps.
Told = tuple[int, Echo | Step]


async def answers(model: ServedModel, call: Call) -> AsyncGenerator[Told, None]:
    """Write all answers of a call; yield what each says, with its number, as it comes.

    Closing the iterator ends them all. Raises RefusedError where there is no slot, and the first
    error that an answer meets.
    """
    with model.slots.take(call.n_answers):
        lanes = [
            _lane(model, call, prompt, sample)
            for prompt in call.prompts
            for sample in range(call.n)
        ]
        async with contextlib.aclosing(_merged(lanes)) as told:
            async for each in told:
                yield each


async def _lane(
    model: ServedModel, call: Call, prompt: Prompt | TokenIds, sample: int
) -> AsyncGenerator[Echo | Step, None]:
    asked = prompt.ids if isinstance(prompt, TokenIds) else prompt
    if call.echo:
        yield await _echo(model, call, prompt)
    if call.scored:
        return
    steps = model.ensemble.astream(
        asked,
        call.seeded(sample),
        trace=call.trace,
        n_top=call.n_top or 0,
        alone=model.alone,
        weights=call.weights,
    )
    async with contextlib.aclosing(steps):
        async for step in steps:
            yield step


async def _echo(model: ServedModel, call: Call, prompt: Prompt | TokenIds) -> Echo:
    ensemble, alone = model.ensemble, model.alone
    if isinstance(prompt, TokenIds):
        ids: Sequence[int] = prompt.ids
        text = ensemble.detokenize(ids, alone=alone).decode("utf-8", "replace")
    else:
        text = str(prompt)
        ids = await asyncio.to_thread(ensemble.tokenize, text, alone=alone)
    if call.n_top is None:
        return Echo(text, len(ids))
    score = await ensemble.ascore(
        "", ids, alone=alone, symbols=True, n_top=call.n_top, weights=call.weights
    )
    first, *others = tokens_of(score.symbols)
    # OpenAI tells no probability of the first: evaluation harnesses expect that.
    return Echo(text, len(ids), (replace(first, logprob=None), *others))


async def _merged(
    lanes: Sequence[AsyncGenerator[Echo | Step, None]],
) -> AsyncGenerator[Told, None]:
    """Yield what several iterators yield, with their numbers, as it comes."""
    told: asyncio.Queue[tuple[int, Echo | Step | None]] = asyncio.Queue()

    async def follow(index: int, lane: AsyncGenerator[Echo | Step, None]) -> None:
        try:
            async with contextlib.aclosing(lane):
                async for each in lane:
                    told.put_nowait((index, each))
        finally:
            told.put_nowait((index, None))

    tasks = [asyncio.create_task(follow(*each)) for each in enumerate(lanes)]
    left = len(tasks)
    try:
        while left:
            index, each = await told.get()
            if each is not None:
                yield index, each
                continue
            left -= 1
            await tasks[index]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
