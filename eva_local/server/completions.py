"""The endpoints that write: chats and plain completions, whole or streamed."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from eva_local.openai.answer import Answer, Counts, Letterhead, answer_of
from eva_local.openai.call import Call, read_call
from eva_local.openai.chunk import Choice, trace_of
from eva_local.openai.request import CHAT
from eva_local.server.answers import Echo, answers
from eva_local.server.body import read_object
from eva_local.server.events import Part, event_stream
from eva_local.server.models import ServedModel
from eva_local.server.service import Service, service_of
from eva_local.types import Step, Usage


async def complete(request: Request) -> ASGIApp:
    """Answer a conversation, or go on with texts: the path says which."""
    endpoint = request.scope["path"]
    service = service_of(request)
    body = await read_object(request)
    model = service.named(body.get("model"))
    call = read_call(
        body,
        endpoint,
        model.ensemble.spec.sampling,
        piece_of=lambda token: model.ensemble.detokenize([token], alone=model.alone),
        members=model.members,
    )
    # A schema may take a while.
    await asyncio.to_thread(model.ensemble.check, call.sampling, alone=model.alone)
    name = f"{'chatcmpl' if endpoint == CHAT else 'cmpl'}-{secrets.token_hex(12)}"
    head = Letterhead(endpoint, name, int(time.time()), model.name, counted=call.include_usage)
    if not call.stream:
        return JSONResponse(await _whole(service, model, call, head))
    return await event_stream(_parts(service, model, call, head))


async def _whole(
    service: Service, model: ServedModel, call: Call, head: Letterhead
) -> dict[str, object]:
    written = [_Written() for _ in range(call.n_answers)]
    async with contextlib.aclosing(answers(model, call)) as told:
        async for index, each in told:
            written[index].take(each)
            if isinstance(each, Step):
                service.measures.hear(model, each)
    whole = [each.answer(model, told=call.n_top is not None) for each in written]
    body = head.whole(whole, call.n, told=call.n_top is not None)
    if call.trace:
        for choice, so_far in zip(_choices(body), written, strict=True):
            choice["eva"] = [trace_of(step) for step in so_far.steps]
    return body


async def _parts(
    service: Service, model: ServedModel, call: Call, head: Letterhead
) -> AsyncGenerator[Part, None]:
    """Yield what is streamed."""
    told = call.n_top is not None
    choices = [Choice(head, i, told=told, traced=call.trace) for i in range(call.n_answers)]
    written = [_Written() for _ in choices]
    async with contextlib.aclosing(answers(model, call)) as all_told:
        async for index, each in all_told:
            choice, so_far = choices[index], written[index]
            so_far.take(each)
            if isinstance(each, Echo):
                yield choice.echo(each.text, each.tokens, last=call.scored)
                continue
            service.measures.hear(model, each)
            if head.endpoint == CHAT and len(so_far.steps) == 1:
                yield choice.opening()
            if (part := choice.step(each)) is not None:
                yield part
    if call.include_usage:
        yield head.last(Counts.of([each.answer(model) for each in written], call.n))


@dataclass(slots=True)
class _Written:
    """What is written of one answer."""

    echo: Echo | None = None
    steps: list[Step] = field(default_factory=list)

    def take(self, told: Echo | Step) -> None:
        """Add what came."""
        if isinstance(told, Echo):
            self.echo = told
        else:
            self.steps.append(told)

    def answer(self, model: ServedModel, *, told: bool = False) -> Answer:
        """Return the whole answer, behind its echo, with its tokens where they are `told`."""
        echo = self.echo
        if echo is None:
            return answer_of(self.steps, told=told)
        if not self.steps:
            return Answer(echo.text, "length", _unwritten(model, echo.n_tokens), echo.tokens)
        own = answer_of(self.steps, told=told, echo=echo.text)
        return replace(own, text=echo.text + own.text, tokens=(*echo.tokens, *own.tokens))


def _unwritten(model: ServedModel, n_tokens: int) -> Usage:
    """Return what a prompt costs that nothing is written after."""
    count = len(model.members)
    nothing, no_time = (0,) * count, (0.0,) * count
    return Usage(
        members=model.members,
        prompt_tokens=(n_tokens,) * count,
        cached_tokens=nothing,
        filtered=nothing,
        decode_seconds=no_time,
        prompt_seconds=no_time,
        steps=0,
        seconds=0.0,
        first_seconds=0.0,
    )


def _choices(body: dict[str, object]) -> list[dict[str, object]]:
    choices = body["choices"]
    assert isinstance(choices, list)
    return choices
