"""The endpoint that scores: how likely texts are, under the ensemble and under each member."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eva_local.openai.scored import read_score_call, scored
from eva_local.server.answers import score_all
from eva_local.server.body import read_object
from eva_local.server.service import service_of


async def score(request: Request) -> Response:
    """Return how likely each continuation is right after the prompt."""
    body = await read_object(request)
    model = service_of(request).named(body.get("model"))
    call = read_score_call(body, model.members)
    texts = [(call.prompt, each) for each in call.continuations]
    with model.slots.take(len(texts)):
        scores = await score_all(model, texts, call.weights, call.n_top)
    told = call.n_top is not None
    data = [scored(each, index, model.members, told=told) for index, each in enumerate(scores)]
    return JSONResponse({"object": "list", "model": model.name, "data": data})
