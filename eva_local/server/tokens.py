"""The endpoints for tokens of the shared space: text to ids and back."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eva_local.errors import InputError
from eva_local.openai.shapes import DetokenizeRequest, TokenizeRequest
from eva_local.reading import read
from eva_local.server.service import asked, service_of


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
