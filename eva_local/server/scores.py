"""The endpoint that scores: how likely texts are, under the ensemble and under each member."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eva_local.openai.call import TokenIds
from eva_local.openai.scored import ScoreCall, read_score_call, scored
from eva_local.server.body import read_object
from eva_local.server.models import ServedModel
from eva_local.server.service import service_of
from eva_local.types import Score


async def score(request: Request) -> Response:
    """Return how likely each continuation is right after the prompt."""
    body = await read_object(request)
    model = service_of(request).named(body.get("model"))
    call = read_score_call(body, model.members)
    with model.slots.take(len(call.continuations)):
        tasks = [asyncio.create_task(_score(model, call, each)) for each in call.continuations]
        try:
            scores = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    told = call.n_top is not None
    data = [scored(each, index, model.members, told=told) for index, each in enumerate(scores)]
    return JSONResponse({"object": "list", "model": model.name, "data": data})


async def _score(model: ServedModel, call: ScoreCall, continuation: str | TokenIds) -> Score:
    return await model.ensemble.ascore(
        call.prompt.ids if isinstance(call.prompt, TokenIds) else call.prompt,
        continuation.ids if isinstance(continuation, TokenIds) else continuation,
        alone=model.alone,
        symbols=call.n_top is not None,
        n_top=call.n_top or 0,
        weights=call.weights,
    )
