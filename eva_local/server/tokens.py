"""The endpoints for tokens of the shared space: text to ids and back."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eva_local.errors import InputError
from eva_local.openai.call import read_ids
from eva_local.openai.keys import given, refuse_other_keys, shown
from eva_local.server.body import read_object
from eva_local.server.service import service_of

# Others' names for the text.
_TEXT_KEYS = ("prompt", "content", "text")
# Nothing is ever put in front of it, and text is text.
_NEVER = ("add_special_tokens", "parse_special")


async def tokenize(request: Request) -> Response:
    """Return the ids that a text has."""
    body = given(await read_object(request))
    refuse_other_keys(body, (*_TEXT_KEYS, *_NEVER, "model"))
    for key in _NEVER:
        if body.get(key):
            raise InputError(f"{key} {shown(body[key])} cannot be done here; leave it out")
    model = service_of(request).named(body.get("model"))
    texts = [body[key] for key in _TEXT_KEYS if key in body]
    if len(texts) != 1 or not isinstance(texts[0], str):
        raise InputError("prompt must be one text")
    ids = await asyncio.to_thread(model.ensemble.tokenize, texts[0], alone=model.alone)
    return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": model.n_ctx})


async def detokenize(request: Request) -> Response:
    """Return the text that ids stand for."""
    body = given(await read_object(request))
    refuse_other_keys(body, ("tokens", "model"))
    model = service_of(request).named(body.get("model"))
    ids = read_ids(body.get("tokens"), "tokens").ids
    text = model.ensemble.detokenize(ids, alone=model.alone).decode("utf-8", "replace")
    return JSONResponse({"prompt": text, "content": text})


async def tokenizer_info(request: Request) -> Response:
    """Say what lm-evaluation-harness wants to know of a tokeniser: nothing is put in front."""
    model = service_of(request).named(None)
    return JSONResponse(
        {"model": model.name, "bos_token": None, "eos_token": None, "chat_template": None}
    )
