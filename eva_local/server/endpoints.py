"""The endpoints that write, whole or as server-sent events, and those for texts that are there."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from eva_local.engine.request import AnyPrompt, Request
from eva_local.errors import EvaError, InputError
from eva_local.openai import request as asking
from eva_local.openai.answer import Answer, Body, Letterhead, Token, tokens_of
from eva_local.openai.request import CHAT, COMPLETION, Call, Values
from eva_local.openai.responses import ResponseLetterhead, ResponseRequest
from eva_local.openai.shapes import DetokenizeRequest, TokenizeRequest
from eva_local.reading import read
from eva_local.server.guard import problem_of
from eva_local.server.service import Measures, ServedModel, asked, service_of
from eva_local.types import Step

# The number of an answer that says more, and the tokens that are told by it.
Said = tuple[int, Sequence[Token]]

# How a protocol tells the answers to a call.
FormOf = Callable[[Call], Letterhead]

# How long nothing may be heard of an answer: proxies and clients give up after longer silence.
QUIET_S = 5.0
# nginx would keep the parts until the answer is whole.
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
# What only OpenAI's two older endpoints have a form for.
_OWN_FORM = ("n", "trace", "echo", "timings_per_token", "disagreement")
# Of names of keys, in the log.
_LONGEST = 500

log = logging.getLogger("eva_local")


async def complete(request: HttpRequest) -> ASGIApp:
    """Answer a conversation, or go on with texts: the path says which."""
    model, body = await asked(request)
    endpoint = CHAT if request.scope["path"].endswith("/chat/completions") else COMPLETION
    name = f"{'chatcmpl' if endpoint == CHAT else 'cmpl'}-{secrets.token_hex(12)}"
    form = partial(Letterhead, endpoint, name, int(time.time()), model.name)
    return await answered(request, model, body, endpoint, lambda call: form(call.request))


async def respond(request: HttpRequest) -> ASGIApp:
    """Answer as OpenAI's newer API does; nothing is kept."""
    model, body = await asked(request)
    chat = asking.in_chat(body, ResponseRequest)
    form = partial(ResponseLetterhead, model.name, body)
    return await answered(request, model, chat, CHAT, lambda call: form(call.sampling))


async def answered(
    request: HttpRequest, model: ServedModel, body: Values, endpoint: str, form_of: FormOf
) -> ASGIApp:
    """Return the answers to a body in a protocol's form, whole or as a stream.

    Raises InputError for what cannot be done.
    """
    for key in () if endpoint.endswith(request.scope["path"]) else _OWN_FORM:
        asking.refuse_undone(key, body.get(key))
    service = service_of(request)
    if service.takes_unknown and (unknown := body.keys() - asking.KEYS):
        names = ", ".join(map(repr, sorted(unknown)))
        log.warning("ignored what is not known: %s", names[:_LONGEST])
        body = {key: value for key, value in body.items() if key not in unknown}
    if body.get("chat_template") is not None and not service.trust_templates:
        why = "this server takes no programs from clients (--trust-templates)"
        raise InputError(f"chat_template: {why}; chat_template_kwargs can be sent")
    defaults, check = model.ensemble.spec.sampling, model.ensemble.check
    call = asking.read_call(
        body, endpoint, defaults, piece_of=lambda token: model.piece([token]), members=model.members
    )
    # A schema may take a while.
    await asyncio.to_thread(check, call.sampling, alone=model.alone)
    form, is_told = form_of(call), call.request.n_top is not None
    answers = [Answer(told=is_told) for _ in range(call.n_answers)]
    written = _written(model, call, answers, service.measures)
    if call.request.stream:
        return await event_stream(_parts(written, form, answers), form)
    async with contextlib.aclosing(written):
        async for _ in written:
            pass
    return JSONResponse(form.whole(answers))


async def _parts(
    written: AsyncGenerator[Said, None], form: Letterhead, answers: Sequence[Answer]
) -> AsyncGenerator[Body, None]:
    async with contextlib.aclosing(written):
        async for index, tokens in written:
            for part in form.parts(index, answers[index], tokens):
                yield part
    if (last := form.last(answers)) is not None:
        yield last


async def _written(
    model: ServedModel, call: Call, answers: Sequence[Answer], measures: Measures
) -> AsyncGenerator[Said, None]:
    """Write all answers of a call; yield the number of each that says more, as it comes.

    An answer's echo, if there is one, comes before its steps. Closing the iterator ends them all.
    Raises RefusedError where there is no slot, and the first error that an answer meets.
    """
    with model.slots.take(call.n_answers):
        echoes = await _echoes(model, call) if call.request.echo else []
        for index, answer in enumerate(answers if echoes else ()):
            text, n_tokens, tokens = echoes[index // call.request.n]
            answer.repeat(text, n_tokens, tokens, last=call.scored)
            yield index, tokens
        if call.scored:
            return
        options: dict[str, Any] = {"alone": model.alone, "weights": call.weights}
        options |= {"trace": call.request.trace, "n_top": call.request.n_top or 0}
        # None is drawn as another one.
        drawn, first = call.sampling, call.sampling.seed
        seeds = [None if first is None else first + n for n in range(call.request.n)]
        requests = [
            Request(prompt, replace(drawn, seed=seed), **options)
            for prompt in call.prompts
            for seed in seeds
        ]
        async with contextlib.aclosing(model.run(requests)) as all_told:
            async for index, told in all_told:
                assert isinstance(told, Step)
                measures.hear(model.name, told)
                yield index, answers[index].push(told)


async def _echoes(model: ServedModel, call: Call) -> list[tuple[str, int, tuple[Token, ...]]]:
    """Return the prompts as texts, how many tokens they have, and those that are told."""

    def read(prompt: AnyPrompt) -> tuple[str, Sequence[int]]:
        if isinstance(prompt, str):
            return prompt, model.tokenize(prompt)
        ids = [each for each in prompt if isinstance(each, int)]
        return model.text(ids), ids

    texts = await asyncio.to_thread(lambda: list(map(read, call.prompts)))
    if call.request.n_top is None:
        return [(text, len(ids), ()) for text, ids in texts]
    scores = await model.score([("", ids) for _, ids in texts], call.weights, call.request.n_top)
    echoes = []
    for (text, ids), score in zip(texts, scores, strict=True):
        first, *others = tokens_of(score.symbols)
        # OpenAI tells no probability of the first: evaluation harnesses expect that.
        echoes.append((text, len(ids), (replace(first, logprob=None), *others)))
    return echoes


async def event_stream(
    parts: AsyncGenerator[Body, None], form: Letterhead, quiet: float = QUIET_S
) -> ASGIApp:
    """Return what sends `parts`, and a sign of life where none comes for `quiet` seconds.

    Waits that long for the first part, so that what is refused at once has its status: raises
    what the parts raise until then.
    """
    events = _events(parts, form, quiet)
    await anext(events)
    response = StreamingResponse(events, headers=_HEADERS, media_type=form.media)

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        # Whatever becomes of it, the parts are closed. `received` sees whether the client is there.
        async with contextlib.aclosing(events):
            await response.stream_response(send)

    return answer


async def _events(
    parts: AsyncGenerator[Body, None], form: Letterhead, quiet: float
) -> AsyncGenerator[bytes, None]:
    """Yield nothing once there is something, then what a stream has for parts and for pauses.

    Raises an error that comes first, and tells a later one. Closes the parts in any case.
    """
    begun = ended = False
    upcoming: asyncio.Future[Body | None] | None = None
    try:
        while not ended:
            upcoming = upcoming or asyncio.ensure_future(anext(parts, None))
            event = form.alive
            if (await asyncio.wait((upcoming,), timeout=quiet))[0]:
                part, upcoming = upcoming.result(), None
                ended = part is None
                event = form.done if part is None else form.event(part)
            if not begun:
                yield b""
            begun = True
            yield event
    except EvaError as error:
        if not begun:
            raise
        yield form.event(problem_of(error))
        yield form.done
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
        await parts.aclose()


async def tokenize(request: HttpRequest) -> Response:
    """Return the ids that a text has."""
    model, body = await asked(request)
    wanted = read(body, TokenizeRequest)
    for key in ("add_special_tokens", "parse_special"):
        # Nothing is ever put in front of a text.
        if getattr(wanted, key):
            raise InputError(f"{key} true cannot be done here; leave it out")
    texts = [each for each in (wanted.prompt, wanted.content, wanted.text) if each is not None]
    if len(texts) != 1:
        raise InputError("prompt must be one text")
    ids = await asyncio.to_thread(model.tokenize, texts[0])
    return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": model.n_ctx})


async def detokenize(request: HttpRequest) -> Response:
    """Return the text that ids stand for."""
    model, body = await asked(request)
    text = model.text(read(body, DetokenizeRequest).tokens)
    return JSONResponse({"prompt": text, "content": text})


async def tokenizer_info(request: HttpRequest) -> Response:
    """Say what lm-evaluation-harness wants to know of a tokeniser: nothing is put in front."""
    model = service_of(request).named(None)
    none = dict.fromkeys(("bos_token", "eos_token", "chat_template"))
    return JSONResponse({"model": model.name, **none})
