"""The endpoints that write, whole or as server-sent events, and those for texts that are there."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from eva_local.engine.request import AnyPrompt, Request, Weights
from eva_local.errors import EvaError, InputError
from eva_local.openai.answer import Answer, Body, Echo, Letterhead, Token, chat_tokens, tokens_of
from eva_local.openai.call import Call, read_call, texts_of, weights_of
from eva_local.openai.request import (
    CHAT,
    COMPLETION,
    KEYS,
    Values,
    given,
    in_chat,
    read_messages,
    refuse_undone,
)
from eva_local.openai.responses import Reply, ResponseRequest, chat_of
from eva_local.openai.shapes import MOST_ANSWERS, DetokenizeRequest, ScoreRequest, TokenizeRequest
from eva_local.reading import read
from eva_local.server.guard import problem_of
from eva_local.server.service import Measures, ServedModel, Texts, asked, service_of
from eva_local.types import Step

# The number of an answer, what it says next, and the tokens that are told by it.
Said = tuple[int, Echo | Step, Sequence[Token]]
# What is streamed; None is a sign of life.
Paced = AsyncGenerator[Body | None, None]

# How long nothing may be heard of an answer: proxies and clients give up after longer silence.
QUIET_S = 5.0
_HEADERS = {
    "Cache-Control": "no-store",
    # nginx would keep the parts until the answer is whole.
    "X-Accel-Buffering": "no",
}
_END: Body = {}
# What only the endpoints have a form for that OpenAI has for it.
_OF_OPENAI = ("n", "trace", "echo")
# Of names of keys, in the log.
_LONGEST = 500

log = logging.getLogger("eva_local")


async def complete(request: HttpRequest) -> ASGIApp:
    """Answer a conversation, or go on with texts: the path says which."""
    endpoint = CHAT if request.scope["path"].endswith("/chat/completions") else COMPLETION
    model, body = await asked(request)
    call = await called(request, model, body, endpoint)
    name = f"{'chatcmpl' if endpoint == CHAT else 'cmpl'}-{secrets.token_hex(12)}"
    options = call.request.stream_options
    counted = options is not None and options.include_usage
    told = (counted, call.request.trace, call.request.timings_per_token, call.request.n)
    head = Letterhead(endpoint, name, int(time.time()), model.name, *told)
    return await answered(request, model, call, head)


async def respond(request: HttpRequest) -> ASGIApp:
    """Answer as OpenAI's newer API does; nothing is kept."""
    model, body = await asked(request)
    chat = in_chat(body, ResponseRequest, chat_of)
    call = await called(request, model, chat, CHAT)
    return await answered(request, model, call, Reply(model.name, body, call.sampling))


async def called(request: HttpRequest, model: ServedModel, body: Values, endpoint: str) -> Call:
    """Return what a body asks for; raise InputError for what cannot be done."""
    for key in () if endpoint.endswith(request.scope["path"]) else _OF_OPENAI:
        refuse_undone(key, body.get(key))
    service = service_of(request)
    if service.takes_unknown and (unknown := body.keys() - KEYS):
        log.warning(
            "ignored what is not known: %s", ", ".join(map(repr, sorted(unknown)))[:_LONGEST]
        )
        body = {key: value for key, value in body.items() if key not in unknown}
    if body.get("chat_template") is not None and not service.trust_templates:
        raise InputError(
            "chat_template: this server takes no programs from clients (--trust-templates); "
            "chat_template_kwargs can be sent"
        )
    defaults = model.ensemble.spec.sampling
    call = read_call(
        body, endpoint, defaults, piece_of=lambda token: model.piece([token]), members=model.members
    )
    # A schema may take a while.
    check = model.ensemble.check
    await asyncio.to_thread(check, call.sampling, alone=model.alone, calls=call.calls)
    return call


async def answered(
    request: HttpRequest, model: ServedModel, call: Call, form: Letterhead
) -> ASGIApp:
    """Return the answers to a call in a protocol's form, whole or as a stream."""
    is_told = call.request.n_top is not None
    functions = [name for name, _ in call.calls.functions] if call.calls else []
    answers = [Answer(told=is_told, functions=functions) for _ in range(call.n_answers)]
    written = _written(model, call, answers, service_of(request).measures)
    if call.request.stream:
        return await event_stream(_parts(written, call, form, answers), form)
    async with contextlib.aclosing(written):
        async for _ in written:
            pass
    return JSONResponse(form.whole(answers))


async def _parts(
    written: AsyncGenerator[Said, None], call: Call, form: Letterhead, answers: Sequence[Answer]
) -> AsyncGenerator[Body, None]:
    async with contextlib.aclosing(written):
        async for index, said, tokens in written:
            if isinstance(said, Echo):
                yield form.echo(index, said, last=call.scored)
                continue
            for part in form.parts(index, answers[index], tokens):
                yield part
    if (last := form.last(answers)) is not None:
        yield last


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
        options: dict[str, Any] = {
            "alone": model.alone,
            "weights": call.weights,
            "calls": call.calls,
        }
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


async def event_stream(
    parts: AsyncGenerator[Body, None], form: Letterhead, quiet: float = QUIET_S
) -> ASGIApp:
    """Return what sends `parts`, and a sign of life where none comes for `quiet` seconds.

    Waits that long for the first part, so that what is refused at once has its status: raises
    what the parts raise until then.
    """
    paced = _paced(parts, quiet)
    events = _sent(await anext(paced, _END), paced, form)
    response = StreamingResponse(events, headers=_HEADERS, media_type=form.media)

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        # Whatever becomes of it, the parts are closed. `received` sees whether the client is there.
        async with contextlib.aclosing(paced):
            await response.stream_response(send)

    return answer


async def _sent(part: Body | None, others: Paced, form: Letterhead) -> AsyncGenerator[bytes, None]:
    try:
        while part is not _END:
            yield form.alive if part is None else form.event(part)
            part = await anext(others, _END)
    except EvaError as error:
        yield form.event(problem_of(error))
    yield form.done


async def _paced(parts: AsyncGenerator[Body, None], quiet: float) -> Paced:
    """Yield the parts, and None where none comes for `quiet` seconds; close them in any case."""
    upcoming = asyncio.ensure_future(anext(parts, _END))
    try:
        while True:
            if not (await asyncio.wait((upcoming,), timeout=quiet))[0]:
                yield None
            elif (part := upcoming.result()) is _END:
                return
            else:
                yield part
                upcoming = asyncio.ensure_future(anext(parts, _END))
    finally:
        upcoming.cancel()
        await asyncio.gather(upcoming, return_exceptions=True)
        await parts.aclose()


async def score(request: HttpRequest) -> Response:
    """Return how likely each continuation is right after the prompt."""
    model, body = await asked(request)
    texts, weights, n_top = read_score_call(body, model.members)
    with model.slots.take(len(texts)):
        scores = await model.score(texts, weights, n_top)
    data = []
    for index, each in enumerate(scores):
        # Log-likelihoods are in nats.
        told: Body = {
            "index": index,
            "object": "score",
            "log_likelihood": each.log_likelihood,
            "per_byte": each.per_byte,
            "n_bytes": each.n_bytes,
            "n_tokens": each.n_symbols,
            "unseen": each.unseen,
            "members": dict(zip(model.members, each.members, strict=True)),
        }
        if n_top is not None:
            told["logprobs"] = chat_tokens(tokens_of(each.symbols))
        data.append(told)
    return JSONResponse({"object": "list", "model": model.name, "data": data})


def read_score_call(
    body: Mapping[str, object], members: Sequence[str]
) -> tuple[Texts, Weights | None, int | None]:
    """Read a body: texts with their prompts, weights and `n_top`; raise InputError."""
    body = given(body)
    if "messages" in body and "prompt" in body:
        raise InputError("prompt and messages exclude each other: give one")
    messages = read_messages(body.pop("messages")) if "messages" in body else None
    request = read(body, ScoreRequest)
    continuations = texts_of(request.continuation, "continuation")
    if len(continuations) > MOST_ANSWERS:
        raise InputError(f"continuation: from 1 to {MOST_ANSWERS} texts can be scored at once")
    (prompt,) = texts_of(request.prompt, "prompt")
    texts = [(messages or prompt, each) for each in continuations]
    return texts, weights_of(request.weights, members), request.logprobs


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
    return JSONResponse(
        {"model": model.name, "bos_token": None, "eos_token": None, "chat_template": None}
    )
