"""The endpoints for texts that are there: their tokens, and how likely they are.

OpenAI's API has nothing like these.
"""

import asyncio
from collections.abc import Mapping, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eva_local.engine.request import Weights
from eva_local.errors import InputError
from eva_local.openai.answer import Body, chat_tokens, tokens_of
from eva_local.openai.call import texts_of, weights_of
from eva_local.openai.request import given, read_messages
from eva_local.openai.shapes import MOST_ANSWERS, DetokenizeRequest, ScoreRequest, TokenizeRequest
from eva_local.reading import read
from eva_local.server.service import Texts, asked, service_of


async def score(request: Request) -> Response:
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


async def tokenize(request: Request) -> Response:
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


async def detokenize(request: Request) -> Response:
    """Return the text that ids stand for."""
    model, body = await asked(request)
    text = model.text(read(body, DetokenizeRequest).tokens)
    return JSONResponse({"prompt": text, "content": text})


async def tokenizer_info(request: Request) -> Response:
    """Say what lm-evaluation-harness wants to know of a tokeniser: nothing is put in front."""
    model = service_of(request).named(None)
    return JSONResponse(
        {"model": model.name, "bos_token": None, "eos_token": None, "chat_template": None}
    )
