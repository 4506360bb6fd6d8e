"""The endpoints that write: chats and plain completions, whole or streamed."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from eva_local.engine.request import AnyPrompt, Request
from eva_local.errors import InputError
from eva_local.openai.answer import Answer, Body, Echo, Letterhead, Token, tokens_of
from eva_local.openai.call import Call, read_call
from eva_local.openai.request import CHAT
from eva_local.server.events import event_stream
from eva_local.server.measures import Measures
from eva_local.server.service import ServedModel, asked, service_of
from eva_local.types import Step

# The number of an answer, what it says next, and the tokens that are told by it.
Said = tuple[int, Echo | Step, Sequence[Token]]


async def complete(request: HttpRequest) -> ASGIApp:
    """Answer a conversation, or go on with texts: the path says which."""
    endpoint = request.scope["path"]
    model, body = await asked(request)
    if body.get("chat_template") is not None and not service_of(request).trust_templates:
        raise InputError(
            "chat_template: this server takes no programs from clients (--trust-templates); "
            "chat_template_kwargs can be sent"
        )
    defaults = model.ensemble.spec.sampling
    call = read_call(
        body, endpoint, defaults, piece_of=lambda token: model.piece([token]), members=model.members
    )
    # A schema may take a while.
    await asyncio.to_thread(model.ensemble.check, call.sampling, alone=model.alone)
    name = f"{'chatcmpl' if endpoint == CHAT else 'cmpl'}-{secrets.token_hex(12)}"
    options = call.request.stream_options
    counted = options is not None and options.include_usage
    head = Letterhead(endpoint, name, int(time.time()), model.name, counted, call.request.trace)
    answers = [Answer(told=call.request.n_top is not None) for _ in range(call.n_answers)]
    written = _written(model, call, answers, service_of(request).measures)
    if call.request.stream:
        return await event_stream(_parts(written, call, head, answers))
    async with contextlib.aclosing(written):
        async for _ in written:
            pass
    return JSONResponse(head.whole(answers, call.request.n))


async def _parts(
    written: AsyncGenerator[Said, None], call: Call, head: Letterhead, answers: Sequence[Answer]
) -> AsyncGenerator[Body, None]:
    async with contextlib.aclosing(written):
        async for index, said, tokens in written:
            if isinstance(said, Echo):
                yield head.echo(index, said, last=call.scored)
                continue
            if head.endpoint == CHAT and len(answers[index].steps) == 1:
                yield head.opening(index, thinks=said.reasoning is not None)
            if (part := head.step(index, said, tokens)) is not None:
                yield part
    if head.counted:
        yield head.last(answers, call.request.n)


async def _written(
    model: ServedModel, call: Call, answers: Sequence[Answer], measures: Measures
) -> AsyncGenerator[Said, None]:
    """Write all answers of a call; yield what each says as it comes.

    An answer's echo, if there is one, comes before its steps. Closing the iterator ends them all.
    Raises RefusedError where there is no slot, and the first error that an answer meets.
    """
    with model.slots.take(call.n_answers):
        for number, echo in enumerate(await _echoes(model, call) if call.request.echo else ()):
            for index in range(number * call.request.n, (number + 1) * call.request.n):
                answers[index].repeat(echo)
                yield index, echo, echo.tokens
        if call.scored:
            return
        options: dict[str, Any] = {"alone": model.alone, "weights": call.weights}
        options |= {"trace": call.request.trace, "n_top": call.request.n_top or 0}
        requests = [
            Request(prompt, call.seeded(sample), **options)
            for prompt in call.prompts
            for sample in range(call.request.n)
        ]
        async with contextlib.aclosing(model.run(requests)) as all_told:
            async for index, told in all_told:
                assert isinstance(told, Step)
                measures.hear(model.name, told)
                yield index, told, answers[index].push(told)


async def _echoes(model: ServedModel, call: Call) -> list[Echo]:
    read = await asyncio.to_thread(lambda: [_read(model, prompt) for prompt in call.prompts])
    if call.request.n_top is None:
        return [Echo(text, len(ids)) for text, ids in read]
    scores = await model.score([("", ids) for _, ids in read], call.weights, call.request.n_top)
    echoes = []
    for (text, ids), score in zip(read, scores, strict=True):
        first, *others = tokens_of(score.symbols)
        # OpenAI tells no probability of the first: evaluation harnesses expect that.
        echoes.append(Echo(text, len(ids), (replace(first, logprob=None), *others)))
    return echoes


def _read(model: ServedModel, prompt: AnyPrompt) -> tuple[str, Sequence[int]]:
    if isinstance(prompt, str):
        return prompt, model.tokenize(prompt)
    ids = [each for each in prompt if isinstance(each, int)]
    return model.text(ids), ids
